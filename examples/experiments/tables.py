"""Rows gathered over seeds, and Markdown tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fastndsm.cli.tables import markdown

from . import EXPERIMENTS
from .store import Row, Store, key

NOT_RUN = "*Not run yet.*"


class Spread(NamedTuple):
    """A figure over the seeds there are."""

    mean: float
    low: float
    high: float
    seeds: int

    def __str__(self) -> str:
        if self.seeds == 1:
            return short(self.mean)
        return f"{short(self.mean)} ({short(self.low)} to {short(self.high)})"


def short(value: float) -> str:
    """Format a number to three figures."""
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def spread(rows: Sequence[Row], metric: str) -> Spread | None:
    """Return a figure of rows that differ in the seed, if there is one."""
    values = [row["result"][metric] for row in rows if row["result"].get(metric) is not None]
    return Spread(sum(values) / len(values), min(values), max(values), len(values)) if values else None


class Results:
    """The rows of one experiment that belong to its present configurations."""

    def __init__(self, name: str, store: Store, seeds: int, quick: bool = False) -> None:
        self.name, self.store = name, store
        experiment, found = EXPERIMENTS[name], store.read(name)
        keys = [key(c, experiment.VERSION) for seed in range(seeds) for c in experiment.configs(seed, quick)]
        self.planned = len(keys)
        self.rows: list[Row] = [found[k] for k in keys if k in found]
        self.missing: list[Row] = []  # whose samples were asked for and are not there

    def select(self, **wanted: Any) -> list[Row]:
        """Return the rows whose configuration has these values."""
        return [r for r in self.rows if all(r["config"].get(k) == v for k, v in wanted.items())]

    def spread(self, metric: str, **wanted: Any) -> Spread | None:
        """Return a figure over seeds, if there is one."""
        return spread(self.select(**wanted), metric)

    def values(self, field: str, **wanted: Any) -> list[Any]:
        """Return the values that a field of the configuration takes, in order."""
        return list(dict.fromkeys(r["config"].get(field) for r in self.select(**wanted)))

    def samples(self, **wanted: Any) -> Any:
        """Return the samples of the row of seed 0, the only ones that are kept; or None."""
        for row in self.select(seed=0, **wanted):
            found = self.store.samples(row["key"])
            if found is None:
                self.missing.append(row)
            return found
        return None


def table(
    results: Results, columns: Mapping[str, str], field: str = "row", names: Sequence[Any] | None = None, **wanted: Any
) -> str:
    """Return Markdown: a line a value of `field`, a column a metric (by heading), means and ranges of seeds."""
    body = []
    for value in results.values(field, **wanted) if names is None else names:
        cells = [results.spread(metric, **{field: value}, **wanted) for metric in columns.values()]
        if any(cell is not None for cell in cells):
            seeds = max(cell.seeds for cell in cells if cell is not None)
            body.append([str(value), *map(shown, cells), str(seeds)])
    return markdown(["", *columns, "seeds"], body) if body else NOT_RUN


def shown(cell: Any) -> str:
    """Return the text of a cell, empty for None."""
    return "" if cell is None else str(cell)
