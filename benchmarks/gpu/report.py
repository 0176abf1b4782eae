"""The results of a run as JSON and as a Markdown table, with the device and the date they were taken on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastndsm.backends.registry import BACKENDS

from ..record import table
from .log import Check, Row
from .suite import Outcome

FAMILIES = (*BACKENDS, "eager", "compiled", "torchsde", "jax", "dsm", "plain")  # a contender's is its first word


class Report:
    """All outcomes of a run."""

    def __init__(self, outcomes: Sequence[Outcome], seconds: float) -> None:
        self.outcomes, self.seconds = outcomes, seconds
        self.environment: dict[str, Any] = next(iter(self._all("environment")), {})
        self.rates: dict[str, float] = next(iter(self._all("rates")), {})
        self.backends: list[str] = self._all("backend")
        self.checks = [(o.section.backend, Check(**c)) for o in outcomes for c in o.found.get("check", [])]
        self.refused = [{"backend": o.section.backend} | r for o in outcomes for r in o.found.get("refused", [])]
        self.notes: list[str] = self._all("note")
        self.rows = self._rows()

    def _all(self, kind: str) -> list[Any]:
        return [value for outcome in self.outcomes for value in outcome.found.get(kind, [])]

    def _rows(self) -> list[Row]:
        """Those of several turns pooled."""
        pooled: dict[tuple[str, ...], Row] = {}
        for value in self._all("row"):
            row = Row(**value)
            key = row.op, row.case, row.contender, row.configuration
            if key in pooled:
                pooled[key].seconds += row.seconds
            else:
                pooled[key] = row
        return list(pooled.values())

    @property
    def failures(self) -> list[str]:
        """What failed of the library's own."""
        return [line for o in self.outcomes if o.section.ours for line in o.failures]

    @property
    def peers_failures(self) -> list[str]:
        return [line for o in self.outcomes if not o.section.ours for line in o.failures]

    def best(self, ours: Row, family: str) -> Row | None:
        """The fastest of another family on the same case."""
        if family == ours.contender:
            return None
        rows = [r for r in self.rows if (r.op, r.case) == (ours.op, ours.case) and r.contender.split()[0] == family]
        return min(rows, key=lambda r: r.median, default=None)

    def missed(self) -> list[str]:
        """Figures that fall short of what is to be reached."""
        lines = []
        for row in self._ours():
            for family, target in row.targets.items():
                peer = self.best(row, family)
                if peer is not None and peer.median < target * row.median:
                    ahead = f"{peer.median / row.median:.3g} of {family}'s time, to reach {target:.3g}"
                    lines.append(f"{self._name(row)}: {ahead}")
            floor = row.floor(self.rates)
            if row.share is not None and floor is not None and floor < row.share * row.median:
                lines.append(f"{self._name(row)}: {floor / row.median:.0%} of the floor, to reach {row.share:.0%}")
            if row.rate is not None and row.count < row.rate * row.median:
                lines.append(f"{self._name(row)}: {row.count / row.median:.3g} a second, to reach {row.rate:.3g}")
        return lines

    def _name(self, row: Row) -> str:
        return f"{row.op} {row.case}, {row.contender}"

    def _ours(self) -> list[Row]:
        return [r for r in self.rows if r.contender in BACKENDS]

    def as_dict(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "backends": self.backends,
            "seconds": round(self.seconds),
            "rates": self.rates,
            "rows": [
                vars(row) | {"median": row.median, "quartiles": row.quartiles, "floor": row.floor(self.rates)}
                for row in self.rows
            ],
            "checks": [{"backend": backend} | vars(check) for backend, check in self.checks],
            "refused": self.refused,
            "notes": self.notes,
            "failures": self.failures,
            "peers_failures": self.peers_failures,
            "missed": self.missed(),
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
                f"{r['fma'] / 1e12:.3g} T multiply-adds/s, {r['normals'] / 1e9:.3g} G normals/s in registers. The "
                "floor of an op is its multiply-adds and normals at these rates, or its bytes where those take longer."
            )
        if self._ours():
            parts.append(self._speeds())
        for title, lines in (
            ("Not reached", self.missed()),
            ("Failed", self.failures),
            ("Peers that failed", self.peers_failures),
            ("Notes", self.notes),
        ):
            if lines:
                parts.append("\n".join([f"{title}:", "", *(f"- {' '.join(line.split())}" for line in lines)]))
        sections = [[o.section.name, o.verdict, f"{o.seconds:.1f}"] for o in self.outcomes]
        parts.append(table(("section", "status", "seconds"), sections))
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
        """Passed, refused and failed by op and backend."""
        body = []
        for op, backend in dict.fromkeys((check.op, backend) for backend, check in self.checks):
            of_op = [check for by, check in self.checks if (check.op, by) == (op, backend)]
            failed = [check for check in of_op if not check.passed]
            absent = [check.found for check in of_op if check.case == "served"]
            said = absent[0] if absent else f"{len(of_op) - len(failed)} of {len(of_op)}"
            reasons = [r["reason"] for r in self.refused if (r["op"], r["backend"]) == (op, backend)]
            refused = f"{len(reasons)}: {reasons[0]}" if reasons else ""
            wrong = "; ".join(f"{c.case}: {c.found}" for c in failed[:3] if c.case != "served")
            body.append([op, backend, said, refused, wrong])
        return table(("op, against the float64 reference", "backend", "checks passed", "refused", "failed"), body)

    def _speeds(self) -> str:
        met = {row.contender.split()[0] for row in self.rows}
        families = [family for family in FAMILIES if family in met]
        head = ("op", "case", "backend", "us", "rate", "floor, us", "of the floor", *families)
        body = []
        for row in self._ours():
            low, high = (1e6 * q for q in row.quartiles)
            floor = row.floor(self.rates)
            body.append(
                [
                    row.op,
                    row.case,
                    ": ".join(part for part in (row.contender, row.configuration) if part),
                    f"{1e6 * row.median:.4g} [{low:.4g}, {high:.4g}] {row.how}",
                    self._rate(row),
                    "" if floor is None else f"{1e6 * floor:.4g}",
                    "" if floor is None else f"{floor / row.median:.0%}" + _bound("{:.0%}", row.share),
                    *(self._against(row, family) for family in families),
                ]
            )
        return table(head, body)

    def _rate(self, row: Row) -> str:
        """Units and, where bytes are what counts, bytes per second."""
        said = f"{row.count / row.median:.3g} {row.unit.removeprefix('a ')}s/s" + _bound("{:.3g}", row.rate)
        return f"{said}, {row.bytes / row.median / 1e9:.4g} GB/s" if row.bytes else said

    def _against(self, ours: Row, family: str) -> str:
        """A peer's time and how far ours is ahead of it."""
        peer = self.best(ours, family)
        if peer is None:
            return ""
        name = ": ".join(p for p in (peer.contender.removeprefix(family).strip(), peer.configuration) if p)
        cell = f"{1e6 * peer.median:.4g}, **{peer.median / ours.median:.3g}x**"
        cell += _bound("{:.3g}x", ours.targets.get(family))
        return f"{cell}; {name}" if name else cell

    def store(self, directory: Path) -> list[Path]:
        """Write both files, named after the device."""
        device = str(self.environment.get("device", "none")).removeprefix("NVIDIA ")
        name = "gpu-" + re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        directory.mkdir(parents=True, exist_ok=True)
        paths = [directory / f"{name}.json", directory / f"{name}.md"]
        for path, text in zip(paths, (json.dumps(self.as_dict(), indent=1) + "\n", self.markdown()), strict=True):
            path.write_text(text)
        return paths


def _bound(form: str, value: float | None) -> str:
    return "" if value is None else f" (to reach {form.format(value)})"
