"""The sections of a run, each in a process of its own with a limit of its own, and what came of them.

A section that crashes, hangs or spoils the device's context takes nothing with it: what it had written stays, and the
rest runs. Sections are forked from a parent that has imported everything and never asks for a device (or spawned, where
a forked process cannot have one). Nothing runs beside what is timed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fastndsm.backends import registry

from . import log
from .device import NoDevice, backends, device

ENTIRE = float(os.environ.get("FASTNDSM_BENCH_SECONDS", "460"))
LEAST = 5.0  # seconds: a section that would have less is left out
TAIL = 4_000  # characters of a failed section's output that are kept


@dataclass(frozen=True)
class Section:
    """A function of this package, (log, *arguments) or (log, backend, *arguments), and the seconds it may take."""

    name: str
    function: str  # module:function
    seconds: float
    arguments: tuple[str, ...] = ()
    ours: bool = True  # whether its failure is the library's
    together: bool = False  # with its neighbours: nothing in it is timed
    each: bool = False  # once for each backend that was built
    backend: str = ""

    def by(self, built: Sequence[str]) -> list[Section]:
        """Return the section itself, or a copy of it for each backend."""
        if not self.each:
            return [self]
        return [replace(self, name=f"{self.name}, {name}", backend=name) for name in built]


FIRST = (  # of every run
    Section("environment", "environment:describe", 60),
    Section("build", "environment:build", 120),
)
SECTIONS = (
    *(
        Section(f"check {family}", "checks:check_family", 150, (family,), together=True, each=True)
        for family in ("mixture", "simulate", "reverse steps", "loss", "philox", "mlp sampler", "drift")
    ),
    Section("check low precision", "checks:check_low_precision", 60, together=True, each=True),
    Section("check determinism", "checks:check_determinism", 60, together=True, each=True),
    Section("check sampler", "checks:check_sampler", 60, together=True),
    Section("ceilings", "timings:time_ceilings", 30),
    Section("time simulate", "simulations:time_ours", 60, each=True),
    Section("time other ops", "timings:time_ops", 75, each=True),
    Section("time training step", "training:time_steps", 60),
    Section("peer eager", "simulations:time_peer", 30, ("eager",), ours=False),
    Section("peer compiled", "simulations:time_peer", 80, ("compiled",), ours=False),
    Section("compute-sanitizer", "sanitizer:run", 60, each=True),
    Section("peer torchsde", "simulations:time_peer", 40, ("torchsde",), ours=False),
    Section("peer jax", "simulations:time_peer", 70, ("jax",), ours=False),
)


@dataclass
class Outcome:
    """The end of a section: ok, failed, killed (at its limit) or left out (no time was left)."""

    section: Section
    status: str
    seconds: float
    found: dict[str, list[Any]] = field(default_factory=dict)
    output: str = ""

    @property
    def failures(self) -> list[str]:
        """Failures, a line each."""
        checks = [log.Check(**c) for c in self.found.get("check", [])]
        lines = [f"{c.op} {c.case}: {c.found}" for c in checks if not c.passed] + self.found.get("failure", [])
        if self.status != "ok":
            lines.append(self.status if self.status != "failed" or not self.output else self.output.splitlines()[-1])
        return [f"{self.section.name}: {line}" for line in lines]

    @property
    def verdict(self) -> str:
        """ok, or how it ended or how much of it failed."""
        return f"{len(self.failures)} failed" if self.status == "ok" and self.failures else self.status


def run(sections: Sequence[Section], entire: float = ENTIRE) -> list[Outcome]:
    """Run all of them, in order; the first one says whether a forked process can have the device."""
    end = time.monotonic() + entire
    with tempfile.TemporaryDirectory() as place:
        method = "fork"
        outcomes = _run_together(sections[:1], Path(place), method, end)
        if outcomes[0].status != "ok" and NoDevice.__name__ not in outcomes[0].output:
            method = "spawn"
            outcomes = _run_together(sections[:1], Path(place), method, end)
        if outcomes[0].status != "ok":
            return outcomes
        for together, group in itertools.groupby(_by_backend(sections[1:], outcomes), key=lambda s: s.together):
            for batch in [list(group)] if together else ([section] for section in group):
                outcomes += _run_together(batch, Path(place), method, end)
    return outcomes


def _by_backend(sections: Sequence[Section], outcomes: list[Outcome]) -> Iterator[Section]:
    """Yield each section, once what went before it has said which backends there are."""
    for section in sections:
        yield from section.by([name for outcome in outcomes for name in outcome.found.get("backend", [])])


def _run_together(sections: Sequence[Section], place: Path, method: str, end: float) -> list[Outcome]:
    running = [_Running(section, place, method, end - time.monotonic()) for section in sections]
    outcomes = [one.outcome() for one in running]
    for outcome in outcomes:
        print(f"{outcome.section.name}: {outcome.verdict}, {outcome.seconds:.1f} s", flush=True)
        for line in outcome.failures:
            print(f"  {line}", flush=True)
    return outcomes


class _Running:
    """A section's process, from its start."""

    def __init__(self, section: Section, place: Path, method: str, left: float) -> None:
        self.section, self.start, self.limit = section, time.monotonic(), min(section.seconds, left)
        name = f"{method} {section.name}"
        self.lines, self.output = place / f"{name}.jsonl", place / f"{name}.txt"
        arguments = section, self.lines, self.output, self.limit
        # typed by what all contexts have in common, which is less
        context: Any = multiprocessing.get_context(method)
        self.process = context.Process(target=_child, args=arguments)
        if self.limit >= LEAST:
            self.process.start()

    def outcome(self) -> Outcome:
        """Return the outcome, at the latest at its limit."""
        if self.limit < LEAST:
            return Outcome(self.section, "left out: no time was left", 0.0)
        self.process.join(max(0.0, self.start + self.limit - time.monotonic()))
        code, taken = self.process.exitcode, time.monotonic() - self.start
        self._end()
        if code is None:
            status = f"killed: still running after {self.limit:.0f} s"
        elif code < 0:
            status = f"killed by {signal.Signals(-code).name}"
        else:
            status = "ok" if code == 0 else "failed"
        said = self.output.read_text(errors="replace") if self.output.exists() else ""
        found = log.read(self.lines)
        (taken,) = found.pop("seconds", [taken])  # its own, where it came to its end
        return Outcome(self.section, status, taken, found, said[-TAIL:].strip())

    def _end(self) -> None:
        """End the process, and those that it started."""
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.is_alive():  # it may not yet be the head of a group
            self.process.kill()
        self.process.join()


def _child(section: Section, lines: Path, output: Path, seconds: float) -> None:
    os.setsid()
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    faulthandler.dump_traceback_later(max(0.1, seconds - 1.0))  # where it was when its time ran out
    if device().type == "cpu":
        os.environ[registry.ENVIRONMENT] = backends()[0]  # also what is not compared
    module, _, function = section.function.partition(":")
    entry = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    begun, lines_of = time.monotonic(), log.Log(lines, seconds)
    entry(lines_of, *([section.backend] if section.each else []), *section.arguments)
    lines_of.write("seconds", time.monotonic() - begun)
