"""2-D sets with known structure, drawn from a seed; training and held-out points have separate streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _checks
from ._dataset import Dataset

__all__ = ["four_modes", "moons", "ring"]

Points = NDArray[np.float64]
Generator = np.random.Generator

MODE_CENTERS = ((-2.0, -1.5), (2.0, -1.5), (-1.5, 2.0), (2.0, 2.0))


def four_modes(
    n: int = 5000, seed: int = 0, weights: Sequence[float] = (0.6, 0.25, 0.1, 0.05), *, n_test: int = 5000
) -> Dataset:
    """Draw four well separated, unequally likely modes, none Gaussian: banana, ring, tilted rectangle, arc.

    Each mode lies within 1.4 of its center and the centers are 3.5 or more apart, so that the nearest center
    gives the mode of every point. Labels are the modes.

    Args:
        n: training points.
        seed: of the draw.
        weights: probability of each mode.
        n_test: held-out points.
    """
    probabilities = np.asarray(weights, dtype=np.float64)
    if probabilities.shape != (4,) or not (probabilities >= 0).all() or abs(probabilities.sum() - 1) > 1e-6:
        raise ValueError(f"weights: expected four numbers >= 0 that sum to one, found {weights!r}")
    shapes = (_banana, _small_ring, _rectangle, _arc)

    def draw(rng: Generator, count: int) -> tuple[Points, NDArray[np.int64]]:
        labels = rng.choice(4, size=count, p=probabilities / probabilities.sum())
        points = np.asarray(MODE_CENTERS)[labels]
        for mode, shape in enumerate(shapes):
            mine = labels == mode
            points[mine] += shape(rng, int(mine.sum()))
        return points, labels

    about = f"four modes of weight {tuple(float(w) for w in probabilities)}: banana, ring, rectangle, arc"
    return _dataset("four_modes", draw, n, n_test, seed, about, centers=MODE_CENTERS)


def ring(n: int = 5000, seed: int = 0, *, noise: float = 0.05, n_test: int = 5000) -> Dataset:
    """Draw the unit circle with normal noise of deviation `noise` in each coordinate. One class, so no labels."""
    _check_noise(noise)

    def draw(rng: Generator, count: int) -> tuple[Points, None]:
        return _circle(rng.uniform(-math.pi, math.pi, count)) + noise * rng.standard_normal((count, 2)), None

    return _dataset("ring", draw, n, n_test, seed, f"unit circle, noise {noise:g}")


def moons(n: int = 5000, seed: int = 0, *, noise: float = 0.05, n_test: int = 5000) -> Dataset:
    """Draw two interlocking half circles of radius one with normal noise, centred; labels 0 (upper) and 1."""
    _check_noise(noise)

    def draw(rng: Generator, count: int) -> tuple[Points, NDArray[np.int64]]:
        labels = rng.integers(0, 2, count)
        sign = 1.0 - 2.0 * labels[:, None]
        points = sign * (_circle(rng.uniform(0, math.pi, count)) - np.asarray([0.5, 0.25]))
        return points + noise * rng.standard_normal((count, 2)), labels

    return _dataset("moons", draw, n, n_test, seed, f"two half moons, noise {noise:g}")


def _dataset(
    name: str,
    draw: Callable[[Generator, int], tuple[Points, NDArray[np.int64] | None]],
    n: int,
    n_test: int,
    seed: int,
    description: str,
    centers: Sequence[Sequence[float]] | None = None,
) -> Dataset:
    for argument, value, least in (("n", n, 2), ("n_test", n_test, 2), ("seed", seed, 0)):
        _checks.integer(argument, value, least)
    train, labels = draw(np.random.default_rng([seed, 0]), n)
    test, test_labels = draw(np.random.default_rng([seed, 1]), n_test)
    return Dataset(
        name=name,
        train=torch.from_numpy(train).float(),
        test=torch.from_numpy(test).float(),
        labels=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
        test_labels=None if test_labels is None else torch.from_numpy(test_labels.astype(np.int64)),
        centers=None if centers is None else torch.tensor(centers, dtype=torch.float32, device="cpu"),
        description=description,
    )


def _circle(angle: Points) -> Points:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _banana(rng: Generator, n: int) -> Points:
    u = rng.uniform(-1, 1, n)
    return np.stack([u, 0.9 * (u**2 - 1 / 3)], axis=1) + 0.08 * _clipped_normal(rng, n)


def _small_ring(rng: Generator, n: int) -> Points:
    return 0.7 * _circle(rng.uniform(-math.pi, math.pi, n)) + 0.05 * _clipped_normal(rng, n)


def _rectangle(rng: Generator, n: int) -> Points:
    box = rng.uniform(-1, 1, (n, 2)) * np.asarray([0.9, 0.25])
    turned: Points = box @ np.asarray([[math.cos(0.6), math.sin(0.6)], [-math.sin(0.6), math.cos(0.6)]])
    return turned


def _arc(rng: Generator, n: int) -> Points:
    # shifted by the arc's mean 2 / pi, so that its center is its mean
    return 0.8 * (_circle(rng.uniform(0, math.pi, n)) - [0, 2 / math.pi]) + 0.05 * _clipped_normal(rng, n)


def _clipped_normal(rng: Generator, n: int) -> Points:
    # bounded, so that the promise on each mode's extent is exact
    return np.clip(rng.standard_normal((n, 2)), -2, 2)


def _check_noise(noise: float) -> None:
    if not (math.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise: expected a finite standard deviation >= 0, found {noise}")
