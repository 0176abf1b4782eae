"""The sections of a run, each in a process of its own with a limit of its own, and what came of them.

A run is three parts, check, time and peers, each a call of its own that ends within ENTIRE seconds; the limits of a
part's sections add up to less. A section that has ended has a file of its own, so that a call that was killed is
repeated and goes on where it was. A section that crashes, hangs or spoils the device's context takes nothing with it:
what it had written stays, it counts as failed, and the rest runs. Sections are forked from a parent that has imported
everything and never asks for a device (or spawned, where a forked process cannot have one). Nothing runs beside what
is timed; the others run several at a time.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from fastndsm.backends import registry

from . import cases, log
from .device import NoDevice, backends, device
from .processes import end_with

ENTIRE = float(os.environ.get("FASTNDSM_BENCH_SECONDS", "530"))  # of a call
SLOTS = int(os.environ.get("FASTNDSM_BENCH_PROCESSES", "8"))  # sections at a time where nothing is timed
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


def _checks() -> list[Section]:
    named = [(f"{family} {kind}", (family, kind)) for family in cases.BY_KIND for kind in cases.COVARIANCE_TYPES]
    named += [(family, (family,)) for family in cases.ALONE]
    return [Section(f"check {n}", "checks:check_family", 55, a, together=True, each=True) for n, a in named]


def _sanitized() -> list[Section]:
    families = ("mixture", "simulate", "loss", "reverse steps", "mlp sampler")
    return [
        Section(f"{tool} {family}", "sanitizer:run", 65, (tool, family), together=True, each=True)
        for tool, family in itertools.product(("memcheck", "racecheck"), families)
    ]


FIRST = Section("environment", "environment:describe", 20)  # of every call
BUILD = (  # before everything else, once
    Section("build", "environment:build", 100, together=True),
    Section("compile", "environment:compile_kernels", 100, together=True),
)
PARTS: dict[str, tuple[Section, ...]] = {
    "check": (
        *_checks(),
        Section("check low precision", "checks:check_low_precision", 30, together=True, each=True),
        Section("check determinism", "checks:check_determinism", 40, together=True, each=True),
        Section("check sampler", "checks:check_sampler", 40, together=True),
        *_sanitized(),
    ),
    "time": (
        Section("ceilings", "timings:time_ceilings", 15),
        Section("time simulate", "simulations:time_ours", 45, each=True),
        Section("time noise", "timings:time_ops", 10, ("noise",), each=True),
        Section("time losses", "timings:time_ops", 30, ("losses",), each=True),
        Section("time mixture score", "timings:time_ops", 25, ("mixture score",), each=True),
        Section("time reverse steps", "timings:time_ops", 30, ("reverse steps",), each=True),
        Section("time sampler", "timings:time_samplers", 30, each=True),
        Section("time training step", "training:time_steps", 55),
    ),
    "peers": (
        Section("peer eager", "simulations:time_peer", 30, ("eager",), ours=False),
        Section("peer compiled", "simulations:time_peer", 80, ("compiled",), ours=False),
        Section("peer noise", "timings:time_peers", 10, ("noise",), ours=False),
        Section("peer losses", "timings:time_peers", 80, ("losses",), ours=False),
        Section("peer mixture score", "timings:time_peers", 25, ("mixture score",), ours=False),
        Section("peer reverse steps", "timings:time_peers", 40, ("reverse steps",), ours=False),
        Section("peer torchsde", "simulations:time_peer", 40, ("torchsde",), ours=False),
        Section("peer jax", "simulations:time_peer", 90, ("jax",), ours=False),
    ),
}


def sections_of(part: str, built: Sequence[str]) -> list[Section]:
    """Return a part's sections, those of each backend that was built."""
    return [one for section in PARTS[part] for one in section.by(built)]


def longest(sections: Sequence[Section], slots: int) -> float:
    """Return the seconds that sections take if each takes all it may."""
    total = 0.0
    for together, group in itertools.groupby(sections, key=lambda s: s.together):
        ends = [0.0] * (slots if together else 1)
        for section in group:
            ends[ends.index(min(ends))] += section.seconds
        total += max(ends)
    return total


@dataclass
class Outcome:
    """The end of a section: ok, failed, killed (at its limit), or left (not run yet)."""

    section: Section
    status: str
    seconds: float = 0.0
    found: dict[str, list[Any]] = field(default_factory=dict)
    output: str = ""

    @property
    def failures(self) -> list[str]:
        """Failures, a line each."""
        checks = [log.Check(**c) for c in self.found.get("check", [])]
        lines = [f"{c.op} {c.case}: {c.found}" for c in checks if not c.passed] + self.found.get("failure", [])
        if self.status not in ("ok", LEFT):
            lines.append(self.status if self.status != "failed" or not self.output else self.output.splitlines()[-1])
        return [f"{self.section.name}: {line}" for line in lines]

    @property
    def verdict(self) -> str:
        """ok, or how it ended or how much of it failed."""
        return f"{len(self.failures)} failed" if self.status == "ok" and self.failures else self.status


LEFT = "left: not run yet"


# --- what has ended ----------------------------------------------------------------------------------------------


class Store:
    """A file for each section that has ended; one of other sources, or of another device, counts as none.

    The environment has a file too, by which all of them are found again.
    """

    def __init__(self, folder: Path, stamp: str) -> None:
        self.folder, self.stamp = folder, stamp

    def _path(self, section: Section) -> Path:
        return self.folder / (re.sub(r"[^a-z0-9]+", "-", section.name.lower()).strip("-") + ".json")

    def get(self, section: Section) -> Outcome | None:
        """Return what came of a section, or None where it has not ended."""
        try:
            read = json.loads(self._path(section).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        if read.pop("stamp", None) != self.stamp or read.pop("section", None) != section.name:
            return None
        return Outcome(section, **read)

    def put(self, outcome: Outcome) -> None:
        """Write a section's file, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(outcome.section)
        made = asdict(outcome) | {"stamp": self.stamp, "section": outcome.section.name}
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(made, indent=1) + "\n")
        partial.replace(path)

    def built(self) -> list[str]:
        """Return the backends that were built."""
        outcome = self.get(BUILD[0])
        return [] if outcome is None else outcome.found.get("backend", [])

    def outcomes(self) -> list[Outcome]:
        """Return what came of every section of all parts, LEFT where there is nothing yet."""
        every = [FIRST, *BUILD, *(s for part in PARTS for s in sections_of(part, self.built()))]
        return [self.get(section) or Outcome(section, LEFT) for section in every]


# --- runs --------------------------------------------------------------------------------------------------------


class Run:
    """Processes of a call, which end with it."""

    def __init__(self, entire: float = ENTIRE, slots: int = SLOTS) -> None:
        self.entire, self.slots, self.method = entire, slots, "fork"
        self.begin()

    def begin(self) -> None:
        """Begin a call's time."""
        self.end = time.monotonic() + self.entire

    def first(self) -> Outcome:
        """Return the environment, once it is known whether a forked process can have the device."""
        (outcome,) = self.all([FIRST])
        if outcome.status == "failed" and NoDevice.__name__ not in outcome.output:
            self.method = "spawn"
            (outcome,) = self.all([FIRST])
        return outcome

    def all(self, sections: Sequence[Section], ended: Callable[[Outcome], Any] = lambda outcome: None) -> list[Outcome]:
        """Run sections in order, as far as there is time; call `ended` with each that was not left."""
        outcomes = {}
        with tempfile.TemporaryDirectory() as place:
            for together, group in itertools.groupby(sections, key=lambda s: s.together):
                for outcome in self._some(list(group), self.slots if together else 1, Path(place)):
                    outcomes[outcome.section.name] = outcome
                    print(f"{outcome.section.name}: {outcome.verdict}, {outcome.seconds:.1f} s", flush=True)
                    for line in outcome.failures:
                        print(f"  {line}", flush=True)
                    if outcome.status != LEFT:
                        ended(outcome)
        return [outcomes[section.name] for section in sections]

    def _some(self, waiting: list[Section], slots: int, place: Path) -> Iterator[Outcome]:
        """Yield outcomes as sections end, `slots` at a time; one starts only where there is time for all of it."""
        running: list[_Running] = []
        while waiting or running:
            while waiting and len(running) < slots:
                section = waiting.pop(0)
                if self.end - time.monotonic() < section.seconds:
                    yield Outcome(section, LEFT)
                else:
                    running.append(_Running(section, place, self.method))
            soonest = min((one.end for one in running), default=0.0)
            multiprocessing.connection.wait(
                [one.process.sentinel for one in running], max(0.0, soonest - time.monotonic())
            )
            for one in [one for one in running if one.over()]:
                running.remove(one)
                yield one.outcome()


class _Running:
    """A section's process, from its start."""

    def __init__(self, section: Section, place: Path, method: str) -> None:
        self.section, self.start = section, time.monotonic()
        self.end = self.start + section.seconds
        name = f"{method} {section.name}"
        self.lines, self.output = place / f"{name}.jsonl", place / f"{name}.txt"
        # typed by what all contexts have in common, which is less
        context: Any = multiprocessing.get_context(method)
        self.process = context.Process(target=_child, args=(section, self.lines, self.output, os.getpid()))
        self.process.start()

    def over(self) -> bool:
        """Return whether it has ended, or has to."""
        return self.process.exitcode is not None or time.monotonic() >= self.end

    def outcome(self) -> Outcome:
        """Return the outcome; its process and those that it started are ended."""
        code, taken = self.process.exitcode, time.monotonic() - self.start
        self._end()
        if code is None:
            status = f"killed: still running after {self.section.seconds:.0f} s"
        elif code < 0:
            status = f"killed by {signal.Signals(-code).name}"
        else:
            status = "ok" if code == 0 else "failed"
        said = self.output.read_text(errors="replace") if self.output.exists() else ""
        found = log.read(self.lines)
        (taken,) = found.pop("seconds", [taken])  # its own, where it came to its end
        return Outcome(self.section, status, taken, found, said[-TAIL:].strip())

    def _end(self) -> None:
        assert self.process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.is_alive():  # it may not yet be the head of a group
            self.process.kill()
        self.process.join()


def _child(section: Section, lines: Path, output: Path, parent: int) -> None:
    end_with(parent)
    os.setsid()
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    faulthandler.dump_traceback_later(max(0.1, section.seconds - 1.0))  # where it was when its time ran out
    if device().type == "cpu":
        os.environ[registry.ENVIRONMENT] = backends()[0]  # also what is not compared
    module, _, function = section.function.partition(":")
    entry = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    begun, lines_of = time.monotonic(), log.Log(lines, section.seconds)
    entry(lines_of, *([section.backend] if section.each else []), *section.arguments)
    lines_of.write("seconds", time.monotonic() - begun)
