"""Rows of results: what was timed, its speed, and how far it is from what is to be reached."""

from __future__ import annotations

import itertools
import operator
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field


@dataclass
class Row:
    """One contender on one case. Times are seconds of one call, of every round; counts are those of one call."""

    op: str
    case: str
    contender: str  # ours, a backend, or a peer, whose family is its first word
    unit: str  # what `count` counts: "a value", "a sample-step", ...
    count: int
    check: str  # what holds for its results
    seconds: list[float] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)  # rounds of each turn, where contenders take turns
    deviation: float | None = None  # of its results, in that check
    how: str = ""  # they were timed: graph, events or wall clock
    configuration: str = ""
    # what ours cannot do without, and the seconds that it takes at the rates of this machine
    multiply_adds: float = 0.0
    normals: float = 0.0
    bytes: float = 0.0
    roofline_seconds: float | None = None
    roofline: str = ""  # what it is made of
    # to reach
    share: float | None = None  # of the roofline
    targets: dict[str, float] = field(default_factory=dict)  # family of peers -> times ahead
    rate: float | None = None  # units per second

    @property
    def family(self) -> str:
        return self.contender.split()[0]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def over(self, other: Row) -> float:
        """Return how many times the other's time it takes: the median over turns, if they took as many.

        What a machine changes its speed by from turn to turn is in both of a turn's times.
        """
        if len(self.turns) != len(other.turns) or len(self.turns) < 2:
            return self.median / other.median
        return statistics.median(map(operator.truediv, self._turn_medians(), other._turn_medians()))

    def _turn_medians(self) -> list[float]:
        ends = list(itertools.accumulate(self.turns, initial=0))
        return [statistics.median(self.seconds[first:last]) for first, last in itertools.pairwise(ends)]


class Rows:
    """The rows of one run; `names` are the contenders that are ours."""

    def __init__(self, names: Collection[str], rows: Iterable[Row] = ()) -> None:
        self.names = names
        self.rows: dict[tuple[str, ...], Row] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Add a row; rounds of several turns are pooled."""
        known = self.rows.setdefault((row.op, row.case, row.contender, row.configuration), row)
        if known is not row:
            known.seconds.extend(row.seconds)
            known.turns.extend(row.turns)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows.values())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ours(self) -> list[Row]:
        return [row for row in self if row.contender in self.names]

    def best(self, ours: Row, family: str) -> Row | None:
        """Return the fastest of another family on the same case."""
        rows = [r for r in self if (r.op, r.case, r.family) == (ours.op, ours.case, family) and r.family != ours.family]
        return min(rows, key=lambda r: r.median, default=None)

    def missed(self) -> list[str]:
        """Return the figures that fall short of what is to be reached."""
        lines = []
        for row in self.ours:
            name = f"{row.op} {row.case}" + (f", {row.contender}" if len(self.names) > 1 else "")
            for family, target in row.targets.items():
                peer = self.best(row, family)
                if peer is not None and (ahead := peer.over(row)) < target:
                    lines.append(f"{name}: {ahead:.3g} of {family}'s time, to reach {target:.3g}")
            if None not in (row.share, row.roofline_seconds) and row.roofline_seconds < row.share * row.median:
                lines.append(
                    f"{name}: {row.roofline_seconds / row.median:.0%} of the roofline, to reach {row.share:.0%}"
                )
            if row.rate is not None and row.count < row.rate * row.median:
                lines.append(f"{name}: {row.count / row.median:.3g} a second, to reach {row.rate:.3g}")
        return lines

    def against(self, ours: Row, family: str, figure: Callable[[Row], float]) -> str:
        """Return a peer's time, as the figure gives it, and how far ours is ahead of it."""
        peer = self.best(ours, family)
        if peer is None:
            return ""
        name = ": ".join(part for part in (peer.contender.removeprefix(family).strip(), peer.configuration) if part)
        cell = f"{figure(peer):.4g}, **{peer.over(ours):.3g}x**" + bound("{:.3g}x", ours.targets.get(family))
        return f"{cell}; {name}" if name else cell


def bound(form: str, value: float | None) -> str:
    """Return what is to be reached, in brackets."""
    return "" if value is None else f" (to reach {form.format(value)})"


def spread(row: Row, figure: Callable[[float], float]) -> str:
    """Return the median with the quartiles in brackets, of times as the figure gives them."""
    low, high = map(figure, row.quartiles)
    return f"{figure(row.median):.4g} [{low:.4g}, {high:.4g}]"
