"""Rows of a benchmark run: what was timed, on what machine, and the table that is made of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fastndsm
from fastndsm.cli.tables import markdown

from .roofline import Rates
from .rows import Row, Rows, spread

SHARE_OF_ROOFLINE = 0.4  # to reach
OURS = "ours"
PACKAGES = ("torch", "jax", "jaxlib", "torchsde", "scikit-learn", "numpy")
FAMILIES = ("jax", "eager", "compiled", "torchsde", "scikit-learn")  # a peer's family is the first word of its name


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
        self.rows = Rows({OURS})
        self.memory: list[Memory] = []
        self.failed: list[str] = []
        self.rates: Rates | None = None
        self.began = time.time()
        self.load = os.getloadavg()[0]  # of the machine before the run: an idle one is near 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "seconds": round(time.time() - self.began),
            "load_before": self.load,
            "machine": machine(),
            "versions": versions(),
            "rates": None if self.rates is None else self.rates.as_dict(),
            "rows": [_as_dict(row) for row in self.rows],
            "memory": [asdict(row) for row in self.memory],
            "missed": self.rows.missed(),
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
        if speeds := [r for r in self.rows.ours if "dsm" not in r.targets]:
            parts.append(self._speeds(speeds))
        if steps := [r for r in self.rows.ours if "dsm" in r.targets]:
            parts.append(self._steps(steps))
        if self.memory:
            parts.append(self._memory())
        for title, lines in (("Not reached", self.rows.missed()), ("Failed", self.failed)):
            if lines:
                parts.append("\n".join([f"{title}:", "", *(f"- {line}" for line in lines)]))
        return "\n\n".join(parts) + "\n"

    def _speeds(self, ours: list[Row]) -> str:
        head = ("op", "case", "ours, ns", "roofline, ns", "of the roofline", *FAMILIES)
        body = []
        for row in ours:
            cells = [row.op, row.case, f"{spread(row, partial(nanoseconds, row))} {row.unit}"]
            if row.roofline_seconds is None:
                cells += ["", ""]
            else:
                cells.append(f"{nanoseconds(row, row.roofline_seconds):.3g} ({row.roofline})")
                cells.append(f"{row.roofline_seconds / row.median:.0%}")
            cells += [self.rows.against(row, family, _median_nanoseconds) for family in FAMILIES]
            body.append(cells)
        return markdown(head, body)

    def _steps(self, ours: list[Row]) -> str:
        head = ("training step", "NDSM, ms", "linear DSM, ms", "NDSM / DSM", "at most")
        body = []
        for row in ours:
            for peer in (r for r in self.rows if r.case == row.case and r.contender.endswith("dsm")):
                times = [spread(r, lambda seconds: 1e3 * seconds) for r in (row, peer)]
                most = f"{1.0 / row.targets['dsm']:.3g}" if peer.contender == "dsm" else ""
                label = f"{row.case}, {'same network' if peer.contender == 'dsm' else 'without residual'}"
                body.append([label, *times, f"**{row.over(peer):.3f}**", most])
        return markdown(head, body)

    def _memory(self) -> str:
        head = ("op", "case", "contender", "inputs, MB", "beyond inputs and result, MB", "measured by")
        body = [
            [m.op, m.case, m.contender, f"{m.inputs / 1e6:.4g}", f"{m.extra / 1e6:.4g}", m.how] for m in self.memory
        ]
        return markdown(head, body)

    def store(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"cpu-{instruction_set()}"
        (directory / f"{name}.json").write_text(json.dumps(self.as_dict(), indent=1) + "\n")
        (directory / f"{name}.md").write_text(self.markdown())


def nanoseconds(row: Row, seconds: float) -> float:
    """Return nanoseconds per unit."""
    return 1e9 * seconds / row.count


def _median_nanoseconds(row: Row) -> float:
    return nanoseconds(row, row.median)


def _as_dict(row: Row) -> dict[str, Any]:
    summary = {
        "rounds": len(row.seconds),
        "median_ns_per_unit": nanoseconds(row, row.median),
        "quartiles_ns_per_unit": [nanoseconds(row, q) for q in row.quartiles],
        "fastest_ns_per_unit": nanoseconds(row, min(row.seconds)),
    }
    return asdict(row) | summary


def instruction_set() -> str:
    """Return the instruction set that the kernels are compiled for, once they are loaded."""
    return str(torch.ops.fastndsm_cpp.vector_isa())


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
        "instructions": instruction_set(),
        "system": platform.platform(),
    }


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    found = {"fastndsm": fastndsm.__version__, "python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
