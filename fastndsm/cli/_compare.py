"""fastndsm compare: the backends of this machine against the reference."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from .. import _checks
from ..backends import registry
from . import _common
from .comparison import CASES, compare, format_comparisons
from .diagnosis import machine, versions

NAME = "compare"
PURPOSE = "Run every op on each available backend against the reference, on the same noise."
EXAMPLE = "fastndsm compare --ops simulate simulate_target --size full"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    known = list(dict.fromkeys(case.op for case in CASES))
    parser.add_argument("--ops", nargs="+", metavar="OP", choices=known, help=f"of {', '.join(known)}; default all")
    parser.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        choices=tuple(registry.BACKENDS),
        help="default all there are",
    )
    parser.add_argument("--size", default="small", choices=("small", "full"), help="default small")
    parser.add_argument("--seed", type=int, default=0, help="of inputs and noise; default 0")
    parser.add_argument("--threads", type=int, help="CPU threads; default torch's")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Compare; return 1 if a backend does not agree."""
    _common.set_threads(arguments.threads)
    _checks.seed(arguments.seed)
    rows = compare(arguments.size, ops=arguments.ops, backends=arguments.backends, seed=arguments.seed)
    found, known = machine(), versions()
    if arguments.json:
        listed = [{**asdict(row), "agrees": row.agrees} for row in rows]
        print(json.dumps({"machine": found, "versions": known, "rows": listed}))
    else:
        print(format_comparisons(rows))
        print(f"{found['processor']}, {found['threads']} threads, torch {known['torch']}")
        for name, backend in registry.BACKENDS.items():
            if not any(row.backend == name for row in rows) and (reason := backend.unavailable()):
                print(f"not compared: {name}: {reason}")
    return 0 if all(row.agrees for row in rows) else 1
