"""Median and quartiles of the times of a contender."""

from __future__ import annotations

import statistics


class Spread:
    """For rows that keep the `seconds` of their rounds."""

    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high
