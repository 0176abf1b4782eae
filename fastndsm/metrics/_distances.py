"""Distances between two sets of samples, in float64.

Samples x [n, *event] and y [m, *event] are compared as vectors of d values, about the mean of y: far from 0, sums of
products would cancel. Pairwise distances are made in blocks, so that memory does not grow with n * m. They come from
the expansion |x|^2 + |y|^2 - 2 x . y, a matrix product; those which its rounding could change are taken from x - y.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _checks

__all__ = ["energy_distance", "frechet_distance", "nearest_distance", "sliced_wasserstein"]

_BLOCK = 1 << 22  # distances held at a time: 32 MiB
_MANY = 32  # dimensions from which neighbours lie far apart beside float32's rounding, so that it tells most of them
_FEW = 16  # one distance in so many, at most, is taken again by itself


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Return 2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely and Rizzo 2013; not its square root), in the data's units.

    The unbiased U-statistic: the means over X, X' and over Y, Y' leave out a sample's distance to itself. For
    two samples of one distribution it is zero on average, and may be slightly negative. Needs n, m >= 2.
    """
    x, y = centred(*_checks.pair("x", x, "y", y, least=2))
    within = (_sum_of_distances(z, z) / (len(z) * (len(z) - 1)) for z in (x, y))
    return 2 * _sum_of_distances(x, y) / (len(x) * len(y)) - sum(within)


def sliced_wasserstein(x: Tensor, y: Tensor, n_projections: int = 128, seed: int = 0) -> float:
    """Return (mean over directions of W_2^2)^(1/2), the sliced 2-Wasserstein distance (Bonneel et al. 2015).

    In the data's units. W_2 between the projections on each of `n_projections` random directions is exact,
    also for n different from m. Unlike the energy distance it is not centred: two samples of one distribution
    are about n^(-1/2) apart.
    """
    x, y = centred(*_checks.pair("x", x, "y", y))
    _checks.integer("n_projections", n_projections)
    generator = torch.Generator("cpu").manual_seed(seed)
    directions = torch.randn(n_projections, x.shape[1], generator=generator, dtype=x.dtype, device="cpu").to(x.device)
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
    """Return the Euclidean distance from each sample [n, *event] to its nearest of train [m, *event]: [n] float64.

    Far below that of held-out data it tells of memorisation; far above, of samples off the data.
    """
    x, y = _checks.pair("samples", samples, "train", train)
    found: Tensor = torch.linalg.vector_norm(x - y[nearest_index(samples, train)], dim=1)
    return found


def nearest_index(samples: Tensor, train: Tensor) -> Tensor:
    """Return the index of the training sample nearest to each sample, the first of equally near ones: [n] int64."""
    x, y = centred(*_checks.pair("samples", samples, "train", train))
    return torch.cat([_nearest(part, y) for part in parts(x, y)])


def frechet_distance(fx: Tensor, fy: Tensor) -> float:
    """Return |mu_x - mu_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^(1/2)) of features fx [n, f], fy [m, f] (Frechet 1957).

    The squared 2-Wasserstein distance between the normal distributions with the features' means and unbiased
    covariances. Compare values only at equal n and m: sampling adds a bias of order f / n. Raises ValueError
    below f + 1 samples, where a covariance is singular whatever the distribution.
    """
    fx, fy = centred(*_checks.pair("fx", fx, "fy", fy))
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


def centred(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    mean = y.mean(0)
    return x - mean, y - mean


def parts(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Yield x in blocks of rows whose distances to y are held at a time."""
    return x.split(max(1, _BLOCK // len(y)))


def _sum_of_distances(x: Tensor, y: Tensor) -> float:
    total, first = 0.0, 0
    for part in parts(x, y):
        distances = pairwise(part, y)
        if x is y:
            distances.diagonal(first).zero_()
        total += float(distances.sum())
        first += len(part)
    return total


def pairwise(x: Tensor, y: Tensor) -> Tensor:
    """Return |x_i - y_j| [n, m], each to a millionth or better."""
    found, squares = expanded(x, y, torch.float64)
    i, j = (found.square() < 1e6 * squares).nonzero(as_tuple=True)
    if len(i) > found.numel() // _FEW:
        return direct(x, y)
    found[i, j] = _norms(x, y, i, j)
    return found


def _nearest(x: Tensor, y: Tensor) -> Tensor:
    """Return the index of the y_j nearest to each x_i, by the differences of all that may be it."""
    for dtype in (torch.float32, torch.float64)[len(x[0]) <= _MANY :]:
        found, squares = expanded(x, y, dtype)
        within = (found.amin(1, keepdim=True).square() + 2 * squares).sqrt()
        i, j = (found <= within).nonzero(as_tuple=True)
        if len(i) <= max(2 * len(x), found.numel() // _FEW):
            distances = _norms(x, y, i, j)
            least = distances.new_full((len(x),), math.inf).scatter_reduce(0, i, distances, "amin")
            i, j = (index[distances == least[i]] for index in (i, j))
            return j.new_full((len(x),), len(y)).scatter_reduce(0, i, j, "amin")
    return direct(x, y).argmin(1)


def expanded(x: Tensor, y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return |x_i - y_j| [n, m] by the expansion, and what its rounding can change the squares by, [n, 1]."""
    largest = x.norm(dim=1, keepdim=True) + y.norm(dim=1).amax()
    rounding = (x.shape[1] + 8) * torch.finfo(dtype).eps * largest.square()
    return torch.cdist(x.to(dtype), y.to(dtype), compute_mode="use_mm_for_euclid_dist"), rounding.to(dtype)


def direct(x: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _norms(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return |x_i - y_j| of pairs."""
    size = max(1, _BLOCK // x.shape[1])
    pairs = zip(i.split(size), j.split(size), strict=True)
    return torch.cat([torch.linalg.vector_norm(x[a] - y[b], dim=1) for a, b in pairs])
