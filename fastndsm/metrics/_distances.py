"""Distances between two sets of samples, in float64.

Samples x [n, *event] and y [m, *event] are compared as vectors of d values. Pairwise distances are made in
blocks, so that memory does not grow with n * m.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _checks

__all__ = ["energy_distance", "frechet_distance", "nearest_distance", "sliced_wasserstein"]

_BLOCK = 1 << 22  # distances held at a time: 32 MiB
_MANY = 32  # dimensions from which neighbours lie far apart beside float32's rounding, so that it finds them


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013; not its square root), in the data's units.

    The unbiased U-statistic: the means over X, X' and over Y, Y' leave out a sample's distance to itself. For
    two samples of one distribution it is zero on average, and may be slightly negative. Needs n, m >= 2.
    """
    x, y = _checks.pair("x", x, "y", y, least=2)
    within = (_sum_of_distances(z, z) / (len(z) * (len(z) - 1)) for z in (x, y))
    return 2 * _sum_of_distances(x, y) / (len(x) * len(y)) - sum(within)


def sliced_wasserstein(x: Tensor, y: Tensor, n_projections: int = 128, seed: int = 0) -> float:
    """(mean over directions of W_2^2)^(1/2), the sliced 2-Wasserstein distance (Bonneel et al. 2015).

    In the data's units. W_2 between the projections on each of `n_projections` random directions is exact,
    also for n different from m. Unlike the energy distance it is not centred: two samples of one distribution
    are about n^(-1/2) apart.
    """
    x, y = _checks.pair("x", x, "y", y)
    _checks.integer("n_projections", n_projections)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_projections, x.shape[1], generator=generator, dtype=x.dtype).to(x.device)
    directions /= directions.norm(dim=1, keepdim=True)

    # the quantile functions step at i / n and j / m; in units of 1 / (n m) the steps are integers
    n, m = len(x), len(y)
    steps = [torch.arange(1, n + 1, device=x.device) * m, torch.arange(1, m + 1, device=x.device) * n]
    ends = torch.unique(torch.cat(steps))
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    mass = (ends - starts).double() / (n * m)
    i, j = starts.div(m, rounding_mode="floor"), starts.div(n, rounding_mode="floor")

    total = 0.0
    for block in torch.split(directions, max(1, _BLOCK // (n + m))):
        u, v = (x @ block.T).sort(dim=0).values, (y @ block.T).sort(dim=0).values
        total += float((mass @ (u[i] - v[j]).square()).sum())
    return math.sqrt(total / n_projections)


def nearest_distance(samples: Tensor, train: Tensor) -> Tensor:
    """Euclidean distance from each sample [n, *event] to its nearest of train [m, *event]: [n] float64.

    Far below that of held-out data it tells of memorisation; far above, of samples off the data.
    """
    x, y = _checks.pair("samples", samples, "train", train)
    found: Tensor = torch.linalg.vector_norm(x - y[nearest_index(samples, train)], dim=1)
    return found


def nearest_index(samples: Tensor, train: Tensor) -> Tensor:
    """The index of the training sample nearest to each sample: [n] int64."""
    x, y = _checks.pair("samples", samples, "train", train)
    dtype = torch.float32 if x.shape[1] > _MANY else torch.float64
    return torch.cat([distances.argmin(1) for distances in _blocks(x, y, dtype=dtype)])


def frechet_distance(fx: Tensor, fy: Tensor) -> float:
    """|mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of features fx [n, f] and fy [m, f] (Frechet 1957).

    The squared 2-Wasserstein distance between the normal distributions with the features' means and unbiased
    covariances. Compare values only at equal n and m: sampling adds a bias of order f / n. Raises ValueError
    below f + 1 samples, where a covariance is singular whatever the distribution.
    """
    fx, fy = _checks.pair("fx", fx, "fy", fy)
    for name, f in (("fx", fx), ("fy", fy)):
        if len(f) <= f.shape[1]:
            raise ValueError(f"{name}: expected more samples than its {f.shape[1]} features, found {len(f)}")
    sx, sy = (torch.cov(f.T).reshape(f.shape[1], f.shape[1]) for f in (fx, fy))
    # the eigenvalues of S_x S_y are those of the symmetric S_x^(1/2) S_y S_x^(1/2)
    values, vectors = torch.linalg.eigh(sx)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ sy @ root).clamp_min(0).sqrt().sum()
    distance = (fx.mean(0) - fy.mean(0)).square().sum() + sx.trace() + sy.trace() - 2 * cross
    return max(0.0, float(distance))  # rounding may leave equal features just below zero


def _sum_of_distances(x: Tensor, y: Tensor) -> float:
    total = sum(float(distances.sum()) for distances in _blocks(x, y, same=x is y))
    return total


def _blocks(x: Tensor, y: Tensor, same: bool = False, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """|x_i - y_j| for consecutive blocks of rows i; with `same`, x is y and the diagonal is exactly zero."""
    mean = y.mean(0)  # near the origin the expansion of |x - y|^2 cancels least
    x, y = (x - mean).to(dtype), (y - mean).to(dtype)
    rows = max(1, _BLOCK // len(y))
    for first in range(0, len(x), rows):
        distances = torch.cdist(x[first : first + rows], y)
        if same:
            distances.diagonal(first).zero_()
        yield distances
