"""Generators of the rows of one class: a mixture with a component at each row, or a network trained by NDSM.

Both draw noised rows and denoise them once, at a level sigma: the denoised row is an average of the rows that are
likely behind the noised one. The larger the level, the farther from any one row, and the narrower all of them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors

from ..mixture import GaussianMixture
from ..networks import MLP
from ..objective import NDSMLoss
from ..process import LangevinProcess
from ..sampling import sample
from ..score import ResidualScore
from ..training import TrainConfig, Trainer
from ._columns import Encoded

__all__ = ["STATISTICS", "Coordinates", "NetworkRows", "SmoothedRows"]

STATISTICS = ("mean", "median")
_MOST = 5000  # components of a mixture
_HELD = 1 << 22  # weights at a time
_HIDDEN, _HORIZON, _STEPS_OF_GRID, _EVALUATIONS = (128, 128, 128), 5.0, 200, 10
_STEPS_A_ROW, _LEAST_STEPS, _MOST_STEPS = 20, 500, 8000  # of training

Floats = NDArray[np.float64]


class Coordinates(NamedTuple):
    """The coordinates of a class: numbers about their mean in their deviations, categories as corners of a simplex."""

    mean: Floats
    deviation: Floats
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, rows: Encoded, sizes: tuple[int, ...], overall: Floats) -> Coordinates:
        """Return those of a class's rows; where they do not vary, a tenth of the table's deviation is their unit."""
        deviation = rows.numbers.std(0)
        varies = deviation > 1e-9 * np.abs(rows.numbers).max(0, initial=0.0)
        unit = np.where(overall > 0.0, 0.1 * overall, 1.0)
        return cls(rows.numbers.mean(0), np.where(varies, deviation, unit), sizes)

    def __call__(self, rows: Encoded) -> Floats:
        """Return points [n, d]; categories that differ are as far apart as numbers by a deviation."""
        parts = [(rows.numbers - self.mean) / self.deviation]
        parts += [np.eye(size)[rows.codes[:, i]] / math.sqrt(2.0) for i, size in enumerate(self.sizes)]
        return np.concatenate(parts, axis=1)

    def seen(self, rows: Encoded) -> NDArray[np.bool_]:
        """Return which coordinates [n, d] of rows are known, where some cells are missing."""
        known = [np.repeat(rows.codes[:, i : i + 1] >= 0, size, axis=1) for i, size in enumerate(self.sizes)]
        return np.concatenate([rows.observed, *known], axis=1)


class SmoothedRows:
    """Rows of a class, drawn at random, noised, and denoised by the exact denoiser of the rows themselves.

    Row i is noised to x = z_i + s_i n. If all rows had been noised to s_i, row j would be behind x with a weight w_j in
    proportion to the noise's density at (x - z_j) / s_i. Of statistic "mean" the noise is Gaussian and the denoised row
    the mean sum_j w_j z_j = x + s_i^2 grad log p(x), p the noised rows' density (Robbins 1956), which is nearest in
    squares; of "median" the noise is Laplace's, of the same variance, and the denoised row the median of each column
    under the weights, which is nearest in absolute value and one of the column's values. Categories are those of one
    row drawn by the weights. s_i is the level, and larger for a row far from all others, which would be copied else: in
    proportion to the distance to its nearest neighbour (as in adaptive kernel density estimates, Abramson 1982).
    Source: the smoothed empirical score of Scarvelis, Borde and Solomon, arXiv 2310.12395; Laplace noise is ours.
    """

    def __init__(self, rows: Encoded, coordinates: Coordinates) -> None:
        if len(rows) > _MOST:
            rows = rows.take(np.sort(np.random.default_rng(0).choice(len(rows), _MOST, replace=False)))
        self.rows, self.coordinates = rows, coordinates
        self.points = self.coordinates(rows)
        self._order = np.argsort(rows.numbers, axis=0, kind="stable")
        self._widths = _widths(self.points)

    def draw(self, n: int, level: float, statistic: str, generator: np.random.Generator) -> Encoded:
        """Draw n rows at a level."""
        made = []
        for start in range(0, n, size := max(1, _HELD // len(self.points))):
            source = generator.integers(len(self.points), size=min(size, n - start))
            s = level * self._widths[source, None]
            shape = (len(source), self.points.shape[1])
            if statistic == "mean":
                x = self.points[source] + s * generator.standard_normal(shape)
                logits = -0.5 * cdist(x, self.points, "sqeuclidean") / s**2
            else:
                scale = s / math.sqrt(2.0)
                x = self.points[source] + scale * generator.laplace(size=shape)
                logits = -cdist(x, self.points, "cityblock") / scale
            made.append(self._denoised(softmax(logits, axis=1), statistic, generator))
        return Encoded.joined(made)

    def _denoised(self, weights: Floats, statistic: str, generator: np.random.Generator) -> Encoded:
        numbers = weights @ self.rows.numbers if statistic == "mean" else self._median(weights)
        return Encoded.of_numbers(numbers, self.rows.codes[drawn(weights, generator)])

    def _median(self, weights: Floats) -> Floats:
        made = np.empty((len(weights), self.rows.numbers.shape[1]))
        for j in range(made.shape[1]):
            order = self._order[:, j]
            place = (weights[:, order].cumsum(axis=1) >= 0.5).argmax(axis=1)
            made[:, j] = self.rows.numbers[order[place], j]
        return made

    def log_weights(self, rows: Encoded, level: float) -> Floats:
        """Return log w [B, n] of this class's rows behind rows with missing cells, from what is known of them."""
        seen, points = self.coordinates.seen(rows), self.coordinates(replace(rows, codes=rows.codes.clip(0)))
        distances = np.empty((len(rows), len(self.points)))
        for i, known in enumerate(seen):
            distances[i] = np.square(self.points[:, known] - points[i, known]).sum(1)
        volume = rows.observed @ np.log(self.coordinates.deviation)  # of classes in different units
        return -0.5 * distances / level**2 - volume[:, None]


class NetworkRows:
    """Rows of a class from a score network: trained by the path estimator, sampled to a level, denoised there.

    Noising is Langevin dynamics towards the class's Gaussian in its own coordinates; the last evaluation of the network
    is at the time when that has added noise of the level.
    """

    def __init__(self, coordinates: Coordinates, seed: int = 0) -> None:
        self.coordinates, self.seed = coordinates, seed
        dim = len(coordinates.mean) + sum(coordinates.sizes)
        reference = GaussianMixture.standard_normal(dim)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # q of the last step
            self.process = LangevinProcess(reference, T=_HORIZON, n_steps=_STEPS_OF_GRID, grid="quadratic")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net: torch.nn.Module = ResidualScore(MLP(dim, _HIDDEN, horizon=_HORIZON), self.process)
        self.net.eval()

    def fit(self, rows: Encoded, steps: int | None = None) -> NetworkRows:
        """Train on rows, and return the generator."""
        points = torch.from_numpy(self.coordinates(rows)).float()
        if steps is None:
            steps = min(_MOST_STEPS, max(_LEAST_STEPS, _STEPS_A_ROW * len(points)))
        config = TrainConfig(steps=steps, batch_size=min(256, max(32, len(points))), seed=self.seed)
        trainer = Trainer(self.net, NDSMLoss(self.process), points, config)
        trainer.fit(progress=False)
        self.net = trainer.ema_net.eval()
        return self

    def draw(self, n: int, level: float, statistic: str, generator: np.random.Generator) -> Encoded:
        """Draw n rows, their last evaluation at the level; the statistic is the mean, a network's own."""
        del statistic
        seed = int(generator.integers(1 << 62))
        dim, p = self.process.dim, len(self.coordinates.mean)
        first = math.log1p(level**2)
        times = np.linspace(math.sqrt(first), math.sqrt(_HORIZON), _EVALUATIONS) ** 2
        options: dict[str, Any] = {"grid": times.tolist(), "prediction": "data", "order": 1, "seed": seed}
        z = sample(self.net, self.process, n, **options).double().numpy().reshape(n, dim)
        numbers = z[:, :p] * self.coordinates.deviation + self.coordinates.mean
        codes, start = np.empty((n, len(self.coordinates.sizes)), dtype=np.int64), p
        for i, size in enumerate(self.coordinates.sizes):
            codes[:, i] = z[:, start : start + size].argmax(1)
            start += size
        return Encoded.of_numbers(numbers, codes)


def _widths(points: Floats) -> Floats:
    """Return how much wider than the others' each point's noise is, at least 1."""
    if len(points) < 3:
        return np.ones(len(points))
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)[0][:, 1]
    typical = float(np.median(nearest))
    return np.maximum(nearest / typical, 1.0) if typical > 0 else np.ones(len(points))


def drawn(weights: Floats, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draw an index by each row of weights [B, n]."""
    edges = weights.cumsum(axis=1)
    u = generator.random((len(weights), 1)) * edges[:, -1:]
    return (edges > u).argmax(axis=1)
