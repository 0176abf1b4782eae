"""python -m benchmarks.gpu [SECTION ...]: all sections, or those whose names contain one of the words given."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ..problems import TINY

# Imported before the sections are forked, so that each of them finds it done.
from . import cases, ceilings, checks, environment, sanitizer, simulations, timings, training  # noqa: F401
from .report import Report
from .suite import FIRST, SECTIONS, run

RESULTS = Path(__file__).resolve().parent.parent / "results"


def main(*words: str) -> int:
    """Run the sections; return 0, or 1 if something of the library's own failed."""
    begun = time.monotonic()
    chosen = [s for s in SECTIONS if not words or any(word in s.name for word in words)]
    report = Report(run((*FIRST, *chosen)), time.monotonic() - begun)
    print(f"\n{report.markdown()}")
    place = os.environ.get("FASTNDSM_BENCH_RESULTS")
    if report.environment and (place or not (words or TINY)):  # results are of one whole run
        for path in report.store(Path(place) if place else RESULTS):
            print(path)
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
