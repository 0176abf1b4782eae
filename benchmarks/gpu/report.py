"""The results of a run as JSON and as a Markdown table, with the device and the date they were taken on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastndsm.backends.registry import BACKENDS
from fastndsm.cli.tables import markdown

from ..rows import Row, Rows, bound, spread
from .log import Check
from .suite import Outcome

FAMILIES = (*BACKENDS, "eager", "compiled", "torchsde", "jax", "dsm", "plain")  # a contender's is its first word


class Report:
    """All outcomes of a run."""

    def __init__(self, outcomes: Sequence[Outcome], seconds: float) -> None:
        self.outcomes, self.seconds = outcomes, seconds
        self.environment: dict[str, Any] = next(iter(self._all("environment")), {})
        self.rates: dict[str, float] = next(iter(self._all("rates")), {})
        self.backends: list[str] = self._all("backend")
        found = [(o.section.backend, Check(**c)) for o in outcomes for c in o.found.get("check", [])]
        # that an op is not served is found in each section that asks for it
        once = {(by, c.op): (by, c) for by, c in found if c.case == "served"}
        self.checks = [entry for entry in found if entry[1].case != "served"] + list(once.values())
        self.refused = [{"backend": o.section.backend} | r for o in outcomes for r in o.found.get("refused", [])]
        self.notes: list[str] = list(dict.fromkeys(self._all("note")))
        self.rows = self._rows()

    def _all(self, kind: str) -> list[Any]:
        return [value for outcome in self.outcomes for value in outcome.found.get(kind, [])]

    def _rows(self) -> Rows:
        rows = Rows(BACKENDS, (Row(**value) for value in self._all("row")))
        for row in rows:
            row.roofline_seconds = roofline(row, self.rates)
        return rows

    @property
    def failures(self) -> list[str]:
        """Failures of the library's own."""
        return [*(line for o in self.outcomes if o.section.ours for line in o.failures), *self._refused_entirely()]

    def _refused_entirely(self) -> list[str]:
        """Return a line for each op of which a backend refused every case: shapes may be refused, an op may not."""
        checked = {(by, check.op) for by, check in self.checks if "split in two" not in check.case}
        entirely = dict.fromkeys(
            (r["op"], r["backend"]) for r in self.refused if (r["backend"], r["op"]) not in checked
        )
        return [f"{op}, {backend}: it refuses every case" for op, backend in entirely]

    @property
    def peers_failures(self) -> list[str]:
        return [line for o in self.outcomes if not o.section.ours for line in o.failures]

    def as_dict(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "backends": self.backends,
            "seconds": round(self.seconds),
            "rates": self.rates,
            "rows": [
                asdict(row) | {"median": row.median, "quartiles": row.quartiles, "roofline": row.roofline_seconds}
                for row in self.rows
            ],
            "checks": [{"backend": backend} | vars(check) for backend, check in self.checks],
            "refused": self.refused,
            "notes": self.notes,
            "failures": self.failures,
            "peers_failures": self.peers_failures,
            "missed": self.rows.missed(),
            "sections": [
                {"name": o.section.name, "status": o.verdict, "seconds": round(o.seconds, 1)}
                | ({"output": o.output} if o.failures else {})
                for o in self.outcomes
            ],
        }

    def markdown(self) -> str:
        parts = [self._heading(), self._checks()]
        if self.rates:
            r = self.rates
            parts.append(
                f"Measured in this run: {r['bandwidth'] / 1e9:.4g} GB/s copied (read and written), "
                f"{r['fma'] / 1e12:.3g} T multiply-adds/s, {r['normals'] / 1e9:.3g} G normals/s in registers. "
                "The roofline of an op is its multiply-adds and normals at these rates, or its bytes where those take "
                "longer."
            )
        if self.rows.ours:
            parts.append(self._speeds())
        for title, lines in (
            ("Not reached", self.rows.missed()),
            ("Failed", self.failures),
            ("Peers that failed", self.peers_failures),
            ("Notes", self.notes),
        ):
            if lines:
                parts.append("\n".join([f"{title}:", "", *(f"- {' '.join(line.split())}" for line in lines)]))
        sections = [[o.section.name, o.verdict, f"{o.seconds:.1f}"] for o in self.outcomes]
        parts.append(markdown(("section", "status", "seconds"), sections))
        return "\n\n".join(parts) + "\n"

    def _heading(self) -> str:
        e = self.environment
        if not e:
            return "No device could be had."
        versions = ", ".join(f"{name} {version}" for name, version in e["versions"].items())
        cuda = f", CUDA {e['cuda']}, capability {e['capability']}" if "cuda" in e else ""
        tiny = " Tiny sizes: the figures mean nothing." if e["tiny"] else ""
        driver = f" Driver, memory, highest clocks, power limit: {e['nvidia-smi']}." if e.get("nvidia-smi") else ""
        return (
            f"{e['date']}, {e['device']}{cuda}; {versions}; backends {', '.join(self.backends)}; "
            f"the run took {self.seconds:.0f} s.{driver}{tiny} Medians of one call, quartiles in brackets; each figure "
            "stands behind a comparison with the reference."
        )

    def _checks(self) -> str:
        """Tabulate passed, refused and failed checks by op and backend."""
        body = []
        named = [(check.op, by) for by, check in self.checks] + [(r["op"], r["backend"]) for r in self.refused]
        for op, backend in dict.fromkeys(named):
            of_op = [check for by, check in self.checks if (check.op, by) == (op, backend)]
            failed = [check for check in of_op if not check.passed]
            absent = [check.found for check in of_op if check.case == "served"]
            said = absent[0] if absent else f"{len(of_op) - len(failed)} of {len(of_op)}"
            said = said if of_op else "it refuses every case"
            reasons = [r["reason"] for r in self.refused if (r["op"], r["backend"]) == (op, backend)]
            refused = f"{len(reasons)}: {reasons[0]}" if reasons else ""
            wrong = "; ".join(f"{c.case}: {c.found}" for c in failed[:3] if c.case != "served")
            body.append([op, backend, said, refused, wrong])
        return markdown(("op, against the float64 reference", "backend", "checks passed", "refused", "failed"), body)

    def _speeds(self) -> str:
        met = {row.family for row in self.rows}
        families = [family for family in FAMILIES if family in met]
        head = ("op", "case", "backend", "us", "rate", "roofline, us", "of the roofline", *families)
        body = []
        for row in self.rows.ours:
            seconds = row.roofline_seconds
            body.append(
                [
                    row.op,
                    row.case,
                    ": ".join(part for part in (row.contender, row.configuration) if part),
                    f"{spread(row, lambda seconds: 1e6 * seconds)} {row.how}",
                    self._rate(row),
                    "" if seconds is None else f"{1e6 * seconds:.4g}",
                    "" if seconds is None else f"{seconds / row.median:.0%}" + bound("{:.0%}", row.share),
                    *(self.rows.against(row, family, lambda peer: 1e6 * peer.median) for family in families),
                ]
            )
        return markdown(head, body)

    def _rate(self, row: Row) -> str:
        """Return units and, where bytes are what counts, bytes per second."""
        said = f"{row.count / row.median:.3g} {row.unit.removeprefix('a ')}s/s" + bound("{:.3g}", row.rate)
        return f"{said}, {row.bytes / row.median / 1e9:.4g} GB/s" if row.bytes else said

    def store(self, directory: Path) -> list[Path]:
        """Write both files, named after the device."""
        name = name_of(self.environment)
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / f"{name}.json", directory / f"{name}.md"]
        for path, text in zip(paths, (json.dumps(self.as_dict(), indent=1) + "\n", self.markdown()), strict=True):
            path.write_text(text)
        return paths


def name_of(environment: dict[str, Any]) -> str:
    """Return the name of the device's results."""
    device = str(environment.get("device", "none")).removeprefix("NVIDIA ")
    return "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def roofline(row: Row, rates: dict[str, float]) -> float | None:
    """Return seconds: arithmetic and normals, or the bytes where those take longer. None where nothing was counted."""
    if not rates or not (row.multiply_adds or row.normals or row.bytes):
        return None
    arithmetic = row.multiply_adds / rates["fma"] + row.normals / rates["normals"]
    return max(arithmetic, row.bytes / rates["bandwidth"])
