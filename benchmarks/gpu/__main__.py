"""python -m benchmarks.gpu [check | time | peers | merge] [WORD ...]: a part of the suite, or all three.

A part goes on where a call before it was killed or ran out of time; with words it runs those of its sections anew whose
names contain one of them. merge writes the table of what there is, and so does every part at its end.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..problems import TINY

# Imported before the sections are forked, so that each of them finds it done.
from . import cases, ceilings, checks, environment, sanitizer, simulations, timings, training  # noqa: F401
from .report import Report, name_of
from .suite import BUILD, LEFT, PARTS, Outcome, Run, Section, Store, sections_of

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("fastndsm", "kernels", "csrc", "benchmarks")
SUFFIXES = (".py", ".h", ".cpp", ".cu", ".cuh")


def main(*words: str) -> int:
    """Run parts; return 0, 1 if something of the library's own failed, or 2 if sections are left for another call."""
    part, *words_of = words if words and words[0] in (*PARTS, "merge", "all") else ("all", *words)
    begun, run = time.monotonic(), Run()
    first = run.first()
    if first.status != "ok":
        print(f"\n{Report([first], 0.0).markdown()}")
        return 1
    name, folder = name_of(Report([first], 0.0).environment), results()
    store = Store(folder / "gpu-sections" / (f"{name}-tiny" if TINY else name), stamp(name))
    store.put(first)
    outcomes = store.outcomes() if part == "merge" else [first]
    for chosen in PARTS if part == "all" else (part,):
        if chosen in PARTS:
            outcomes += _part(chosen, words_of, run, store)
            run.begin()
    report = Report(outcomes, time.monotonic() - begun)
    print(f"\n{report.markdown()}")
    if "FASTNDSM_BENCH_RESULTS" in os.environ or not TINY:
        whole = store.outcomes()
        for path in Report(whole, sum(o.seconds for o in whole)).store(folder):
            print(path)
    if any(outcome.status == LEFT for outcome in outcomes):
        return 2
    return 1 if report.failures else 0


def _part(part: str, words: list[str], run: Run, store: Store) -> list[Outcome]:
    """Run what is left of a part, or the sections that are named, and return all outcomes."""
    build = _run(BUILD, run, store)
    if any(outcome.status == LEFT for outcome in build):
        return build
    sections = sections_of(part, store.built())
    if not words:
        return [*build, *_run(sections, run, store)]
    return [*build, *run.all([s for s in sections if any(word in s.name for word in words)], store.put)]


def _run(sections: Sequence[Section], run: Run, store: Store) -> list[Outcome]:
    """Run those that no call before has run to their end."""
    known = {s.name: outcome for s in sections if (outcome := store.get(s)) is not None}
    for name, outcome in known.items():
        print(f"{name}: {outcome.verdict}, in a call before")
    made = {o.section.name: o for o in run.all([s for s in sections if s.name not in known], store.put)}
    return [(known | made)[s.name] for s in sections]


def results() -> Path:
    """Return the folder of results."""
    return Path(os.environ.get("FASTNDSM_BENCH_RESULTS") or ROOT / "benchmarks" / "results")


def stamp(device: str) -> str:
    """Return what a section's outcome depends on beside the section: the device, the size and the sources."""
    made = hashlib.sha256(f"{device} {TINY}".encode())
    for path in sorted(path for top in SOURCES for path in (ROOT / top).rglob("*") if path.suffix in SUFFIXES):
        made.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return made.hexdigest()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
