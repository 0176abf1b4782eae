"""Costs of the kernels in multiply-adds of this machine, measured in seconds, beside those that were recorded.

    python -m benchmarks.costs             the table; what has become dearer than recorded is said
    python -m benchmarks.costs --record    writes results/costs-INSTRUCTION_SET.json, on an idle machine

A time alone says little on a machine that others use or that is another one. A cost is a time multiplied by the rate of
multiply-adds (fma.c, or sgemm's) measured in the same run, both on one thread: how many of them the machine could have
done meanwhile. It depends on the instruction set, and so there is a file for each (FASTNDSM_ISA chooses one).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastndsm
from fastndsm.cli.tables import markdown
from fastndsm.functional import philox_normal, simulate, simulate_target
from fastndsm.jit import core

from . import record, roofline
from .problems import IMAGES, PLANAR, VECTORS, Problem

RESULTS = Path(__file__).resolve().parent / "results"
DEARER = 1.25  # times the recorded cost, from which on it is said


def cases() -> dict[str, tuple[int, Callable[[], Any]]]:
    """Return by its name what is measured: how many units one call does, and the call."""
    found: dict[str, tuple[int, Callable[[], Any]]] = {
        "philox_normal, a value": (2**18, lambda: philox_normal(2**14, 16, seed=1))
    }
    for op in (simulate, simulate_target):
        for problem, rows in ((PLANAR, 4096), (VECTORS, 1024), (IMAGES, 64)):
            few = dataclasses.replace(problem, rows=rows)
            found[f"{op.__name__} d={few.dim} K={few.components}, a sample-step"] = few.sample_steps, _of(op, few)
    return found


def _of(op: Callable[..., Any], problem: Problem) -> Callable[[], Any]:
    return lambda: op(problem.x0, problem.process, seed=1)


def measure(seconds: float = 0.3) -> dict[str, float]:
    """Return the cost of each case in multiply-adds a unit, from the fastest of the calls of so many seconds each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with fastndsm.use_backend("cpp"):
            rates, fastest = [roofline.fma_rate()[0]], {}
            for name, (units, run) in cases().items():
                fastest[name] = roofline.best_seconds(run, seconds) / units
            rates.append(roofline.fma_rate()[0])
    finally:
        torch.set_num_threads(threads)
    return {name: one * max(rates) for name, one in fastest.items()}


def path() -> Path:
    """Return where costs of the instruction set in use are recorded."""
    return RESULTS / f"costs-{record.instruction_set()}.json"


def recorded() -> dict[str, float]:
    """Return the recorded costs of this instruction set; none where there is no record."""
    return json.loads(path().read_text())["costs"] if path().is_file() else {}  # type: ignore[no-any-return]


def dearer(found: dict[str, float], before: dict[str, float]) -> list[str]:
    """Return a line for each case that costs DEARER times what it did, or more."""
    return [
        f"{name}: {found[name]:.4g} multiply-adds, {found[name] / cost:.3g} times the {cost:.4g} recorded"
        for name, cost in before.items()
        if name in found and found[name] >= DEARER * cost
    ]


def main() -> None:
    """Measure and print, and record if asked."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="write the costs to results/")
    arguments = parser.parse_args()
    core.load()
    found, before = measure(), recorded()
    where = record.machine()
    print(f"{where['cpu']} ({where['instructions']}), one thread\n")
    body = [[name, f"{cost:.4g}", f"{before[name]:.4g}" if name in before else ""] for name, cost in found.items()]
    print(markdown(("case", "multiply-adds", "recorded"), body))
    for line in dearer(found, before):
        print(f"dearer: {line}")
    if arguments.record:
        about = {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": where, "versions": record.versions()}
        path().write_text(json.dumps(about | {"costs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
