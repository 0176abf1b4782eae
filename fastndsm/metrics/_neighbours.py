"""Fidelity and diversity apart, by balls about the points of one set that reach their k-th nearest neighbour in it.

A point on the sphere is in the ball, and so a copy in its original's, also where neighbours coincide. The expansion
of `_distances` tells, in blocks, which points lie within; differences do where its rounding could change the answer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import _checks
from ._distances import centred, direct, expanded, parts

__all__ = ["DensityCoverage", "PrecisionRecall", "density_coverage", "precision_recall"]

_BLOCK = 1 << 22  # values of pairs held at a time: 32 MiB
_FEW = 16  # one pair in so many, at most, is taken by itself


class PrecisionRecall(NamedTuple):
    """The share of samples that lie in the data's balls, and that of data which lie in the samples' balls."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """The mean number of the data's balls that hold a sample, over k, and the share of them that hold one or more."""

    density: float
    coverage: float


def precision_recall(samples: Tensor, data: Tensor, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991) of features [n, *event].

    Precision is the share of samples within some data point's k-th nearest neighbour among the data, recall the share
    of data points within some sample's among the samples. Precision falls where samples lie off the data, recall where
    modes are missing. Give a classifier's features or latent vectors, and as many samples as data (the paper has
    50,000 of each): both rise as sets shrink. Neither tells copies of the data from samples of their distribution, and
    an outlier has a large ball; `density_coverage` depends less on those.
    """
    x, y = _checks.pair("samples", samples, "data", data)
    _neighbours(k, samples=x, data=y)
    in_data, _ = _held(y, _radii(y, k), x)
    in_samples, _ = _held(x, _radii(x, k), y)
    return PrecisionRecall(_share(in_data), _share(in_samples))


def density_coverage(samples: Tensor, data: Tensor, k: int = 5) -> DensityCoverage:
    """Return density and coverage (Naeem et al. 2020, arXiv:2002.09797) of features [n, *event].

    Density is 1 / (k n) times the sum over the n samples of the number of the data's balls that hold it, 1 on average
    for samples of the data's distribution and more where they crowd together; coverage is the share of the data's balls
    that hold a sample. A ball reaches its center's k-th nearest neighbour among the data. For equal distributions and n
    samples of n data, coverage is 1 - 2^-k on average, about (Lemma 2 of the paper).
    """
    x, y = _checks.pair("samples", samples, "data", data)
    _neighbours(k, data=y)
    balls, points = _held(y, _radii(y, k), x)
    return DensityCoverage(int(balls.sum()) / (k * len(x)), _share(points))


def _neighbours(k: int, **sets: Tensor) -> None:
    _checks.integer("k", k)
    for name, points in sets.items():
        if k >= len(points):
            raise ValueError(f"k: expected less than the number of {name}, {len(points)}, found {k}")


def _share(counts: Tensor) -> float:
    return int(counts.count_nonzero()) / len(counts)


def _radii(x: Tensor, k: int) -> Tensor:
    """Return the distance from each point to its k-th nearest other one: [n]."""
    z, _ = centred(x, x)
    radii, first = [], 0
    for part, near in zip(parts(x, x), parts(z, z), strict=True):
        found, squares = expanded(near, z, torch.float64)
        found.diagonal(first).fill_(math.inf)
        first += len(part)
        low, high = _bounds(found.kthvalue(k, dim=1, keepdim=True).values, squares)
        may_be = (found >= low) & (found <= high)
        rank = k - (found < low).sum(1)
        i, j = may_be.nonzero(as_tuple=True)
        # rows are of unequal length: sorted by length, then by row
        lengths, order = _lengths(part, x, i, j).sort()
        lengths = lengths[i[order].argsort(stable=True)]
        ends = may_be.sum(1).cumsum(0)
        radii.append(lengths[ends - may_be.sum(1) + rank - 1])
    return torch.cat(radii)


def _held(centers: Tensor, radii: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of balls that hold each point, and of points that each ball holds."""
    c, z = centred(centers, points)
    balls, held = torch.zeros(len(points), dtype=torch.int64, device=points.device), []
    blocks = zip(parts(centers, points), parts(c, z), parts(radii, points), strict=True)
    for part, near, radius in blocks:
        found, squares = expanded(near, z, torch.float64)
        low, high = _bounds(radius[:, None], squares)
        inside = found < low
        i, j = ((found >= low) & (found <= high)).nonzero(as_tuple=True)
        inside[i, j] = _lengths(part, points, i, j) <= radius[i]
        balls += inside.sum(0)
        held.append(inside.sum(1))
    return balls, torch.cat(held)


def _bounds(distance: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a distance found by the expansion is below, or above, only where the true one is."""
    square = distance.square()
    return (square - 2 * squares).clamp_min(0).sqrt(), (square + 2 * squares).sqrt()


def _lengths(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return |x_i - y_j| of pairs, the same bits for equal pairs in any company: radii are compared with them."""
    if len(i) > len(x) * len(y) // _FEW:
        return direct(x, y)[i, j]
    size = max(1, _BLOCK // x.shape[1])
    pairs = zip(i.split(size), j.split(size), strict=True)
    return torch.cat([direct(x[a, None], y[b, None]).flatten() for a, b in pairs])
