"""Rows of a benchmark run: what was timed, on what machine, and the table that is made of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import fastndsm

from .floor import Rates
from .spread import Spread

SHARE_OF_FLOOR = 0.4  # to reach
PACKAGES = ("torch", "jax", "jaxlib", "torchsde", "numpy")
FAMILIES = ("jax", "eager", "compiled", "torchsde")  # a peer's family is the first word of its name


@dataclass
class Row(Spread):
    """One contender on one case. Times are seconds of one call, of every round."""

    op: str
    case: str
    contender: str
    unit: str  # what `count` counts
    count: int  # sample-steps, values, ... of one call
    deviation: float  # from the reference, or in law (see `check`)
    check: str
    seconds: list[float] = field(default_factory=list)
    configuration: str = ""
    floor_seconds: float | None = None
    floor: str = ""  # what the floor is made of
    targets: dict[str, float] = field(default_factory=dict)  # family of peers -> times ahead, to reach

    def nanoseconds(self, seconds: float) -> float:
        """Per unit."""
        return 1e9 * seconds / self.count

    def as_dict(self) -> dict[str, Any]:
        summary = {
            "rounds": len(self.seconds),
            "median_ns_per_unit": self.nanoseconds(self.median),
            "quartiles_ns_per_unit": [self.nanoseconds(q) for q in self.quartiles],
            "fastest_ns_per_unit": self.nanoseconds(min(self.seconds)),
        }
        return asdict(self) | summary


@dataclass
class Memory:
    """Bytes that a call allocates at its peak beyond its result, beside those of its inputs."""

    op: str
    case: str
    contender: str
    inputs: int
    extra: int
    how: str


class Record:
    """The rows of one run."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], Row] = {}
        self.memory: list[Memory] = []
        self.failed: list[str] = []
        self.rates: Rates | None = None
        self.began = time.time()
        self.load = os.getloadavg()[0]  # of the machine before the run: an idle one is near 0

    def add(self, row: Row, seconds: Iterable[float]) -> None:
        """Rounds of a row; those of several turns are pooled."""
        self.rows.setdefault((row.op, row.case, row.contender), row).seconds.extend(seconds)

    def best(self, op: str, case: str, family: str) -> Row | None:
        """The fastest contender of a family on a case."""
        rows = [r for r in self.rows.values() if (r.op, r.case) == (op, case) and r.contender.split()[0] == family]
        return min(rows, key=lambda r: r.median, default=None)

    def missed(self) -> list[str]:
        """Figures that fall short of what is to be reached."""
        lines = []
        for ours in self._ours():
            for family, target in ours.targets.items():
                peer = self.best(ours.op, ours.case, family)
                if peer is not None and peer.median < target * ours.median:
                    ratio = peer.median / ours.median
                    lines.append(f"{ours.op} {ours.case}: {ratio:.3g} of {family}'s time, to reach {target:.3g}")
            if ours.floor_seconds is not None and ours.floor_seconds < SHARE_OF_FLOOR * ours.median:
                share = ours.floor_seconds / ours.median
                lines.append(f"{ours.op} {ours.case}: {share:.0%} of the floor, to reach {SHARE_OF_FLOOR:.0%}")
        return lines

    def _ours(self) -> list[Row]:
        return [r for r in self.rows.values() if r.contender == "ours"]

    def as_dict(self) -> dict[str, Any]:
        return {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "seconds": round(time.time() - self.began),
            "load_before": self.load,
            "machine": machine(),
            "versions": versions(),
            "rates": None if self.rates is None else self.rates.as_dict(),
            "rows": [row.as_dict() for row in self.rows.values()],
            "memory": [asdict(row) for row in self.memory],
            "missed": self.missed(),
            "failed": self.failed,
        }

    def markdown(self) -> str:
        where, parts = machine(), []
        parts.append(
            f"{time.strftime('%Y-%m-%d')}, {where['cpu']} ({where['instructions']}), {where['threads']} threads; "
            + ", ".join(f"{name} {version}" for name, version in versions().items())
            + f"; load average before the run {self.load:.2f}. Medians, quartiles in brackets; each figure stands "
            "behind a comparison with the reference."
        )
        if self.rates is not None:
            r = self.rates
            parts.append(
                f"Measured in this run: {r.fma / 1e9:.4g} G multiply-adds/s ({r.fma_source}; sgemm reaches "
                f"{r.sgemm / 1e9:.4g}), {r.normals / 1e9:.3g} G normals/s."
            )
        ours = self._ours()
        if speeds := [r for r in ours if "dsm" not in r.targets]:
            parts.append(self._speeds(speeds))
        if steps := [r for r in ours if "dsm" in r.targets]:
            parts.append(self._steps(steps))
        if self.memory:
            parts.append(self._memory())
        for title, lines in (("Not reached", self.missed()), ("Failed", self.failed)):
            if lines:
                parts.append("\n".join([f"{title}:", "", *(f"- {line}" for line in lines)]))
        return "\n\n".join(parts) + "\n"

    def _speeds(self, ours: list[Row]) -> str:
        head = ("op", "case", "ours, ns", "floor, ns", "of the floor", *FAMILIES)
        body = []
        for row in ours:
            low, high = (row.nanoseconds(q) for q in row.quartiles)
            cells = [row.op, row.case, f"{row.nanoseconds(row.median):.3g} [{low:.3g}, {high:.3g}] {row.unit}"]
            if row.floor_seconds is None:
                cells += ["", ""]
            else:
                cells.append(f"{row.nanoseconds(row.floor_seconds):.3g} ({row.floor})")
                cells.append(f"{row.floor_seconds / row.median:.0%}")
            cells += [self._against(row, family) for family in FAMILIES]
            body.append(cells)
        return table(head, body)

    def _against(self, ours: Row, family: str) -> str:
        """A peer's time and how far ours is ahead of it."""
        peer = self.best(ours.op, ours.case, family)
        if peer is None:
            return ""
        name = ": ".join(part for part in (peer.contender.removeprefix(family).strip(), peer.configuration) if part)
        cell = f"{peer.nanoseconds(peer.median):.3g}, **{peer.median / ours.median:.3g}x**"
        if family in ours.targets:
            cell += f" (to reach {ours.targets[family]:g}x)"
        return f"{cell}; {name}" if name else cell

    def _steps(self, ours: list[Row]) -> str:
        head = ("training step", "NDSM, ms", "linear DSM, ms", "NDSM / DSM", "at most")
        body = []
        for row in ours:
            for peer in (r for r in self.rows.values() if r.case == row.case and r.contender.startswith("dsm")):
                times = [
                    f"{1e3 * r.median:.4g} [{', '.join(f'{1e3 * q:.4g}' for q in r.quartiles)}]" for r in (row, peer)
                ]
                bound = f"{1.0 / row.targets['dsm']:.3g}" if peer.contender == "dsm" else ""
                label = f"{row.case}, {peer.contender.removeprefix('dsm').strip() or 'same network'}"
                body.append([label, *times, f"**{row.median / peer.median:.3f}**", bound])
        return table(head, body)

    def _memory(self) -> str:
        head = ("op", "case", "contender", "inputs, MB", "beyond inputs and result, MB", "measured by")
        body = [
            [m.op, m.case, m.contender, f"{m.inputs / 1e6:.4g}", f"{m.extra / 1e6:.4g}", m.how] for m in self.memory
        ]
        return table(head, body)

    def store(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "cpu.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        (directory / "cpu.md").write_text(self.markdown())


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    rows = [list(head), ["---"] * len(list(head)), *map(list, body)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "instructions": torch.ops.fastndsm_cpp.vector_isa(),
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    found = {"fastndsm": fastndsm.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
