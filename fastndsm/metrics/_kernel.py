"""Held-out likelihood of a kernel density estimate on samples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import _checks
from ._distances import centred, pairwise, parts

__all__ = ["kernel_log_likelihood"]


def kernel_log_likelihood(samples: Tensor, held_out: Tensor, bandwidth: float | None = None) -> float:
    """Return the mean log-density of held_out [m, *event], in nats a point, under a kernel estimate on samples.

    The density is (1/n) sum_i N(y; x_i, h^2 I) over the samples x_i (Parzen 1962), h the bandwidth. Missing modes lower
    it, and so do copies of few training points. Where no bandwidth is given, it is the one under which the samples'
    likelihood is greatest, each left out of its own estimate (Habbema, Hermans and van den Broek 1974; Duin 1976): the
    best of a geometric grid with steps of at most 1.5, then Brent's search between its neighbours, to a thousandth.
    The same samples give the same bandwidth. The search takes 10 to 20 passes over the n^2 pairs of samples. A sample
    far from all others widens it for all (Schuster and Gregory 1981): give a bandwidth where some may have diverged.

    Compare values only at equal n, and in few dimensions or latent ones: in many, smoothing is most of the value, and
    rows may stand in another order than by the models' own likelihoods (Theis, van den Oord and Bethge 2016).
    """
    x, y = _checks.pair("samples", samples, "held_out", held_out)
    x, y = centred(x, y)
    h = _bandwidth(x) if bandwidth is None else _checks.positive("bandwidth", bandwidth)
    return _mean_log_densities(y, x, [h])[0]


def _bandwidth(x: Tensor) -> float:
    """Return the bandwidth of the greatest leave-one-out likelihood.

    Its derivative by log h is the mean over i of E_i / h^2 - d, where E_i, a mean of |x_i - x_j|^2 with weights that
    fall with distance, lies between the least and the plain mean: so do the squares of all maxima, times d.
    """
    from scipy.optimize import minimize_scalar

    if len(x) < 2:
        raise ValueError(f"samples: expected two or more, to choose a bandwidth by, found {len(x)}; give a bandwidth")
    nearest = torch.cat([d.amin(1) for d in _distances(x, x)])
    least = float(nearest.square().mean())
    if least == 0:
        raise ValueError(
            f"samples: expected one without a copy among them, to choose a bandwidth by, found copies of all {len(x)}; "
            "give a bandwidth"
        )
    most = 2 * float(x.var(0).sum())
    low, high = (0.5 * math.log(square / x.shape[1]) for square in (min(least, most), most))
    steps = max(1, math.ceil((high - low) / math.log(1.5)))
    grid = [low + (high - low) * step / steps for step in range(steps + 1)]
    likelihoods = _mean_log_densities(x, x, [math.exp(v) for v in grid])
    best = max(range(len(grid)), key=likelihoods.__getitem__)
    found = minimize_scalar(
        lambda v: -_mean_log_densities(x, x, [math.exp(v)])[0],
        bounds=(grid[max(best - 1, 0)], grid[min(best + 1, steps)]),
        method="bounded",
        options={"xatol": 1e-3},
    )
    return math.exp(found.x)


def _distances(points: Tensor, samples: Tensor) -> Iterator[Tensor]:
    """Yield the distances of points to samples in blocks of rows; a sample is infinitely far from itself."""
    first = 0
    for part in parts(points, samples):
        found = pairwise(part, samples)
        if points is samples:
            found.diagonal(first).fill_(math.inf)
        first += len(part)
        yield found


def _mean_log_densities(points: Tensor, samples: Tensor, bandwidths: Sequence[float]) -> list[float]:
    """Return the points' mean log-density for each bandwidth; samples themselves are left out of their own."""
    totals = [0.0] * len(bandwidths)
    for distances in _distances(points, samples):
        for b, h in enumerate(bandwidths):
            totals[b] += float((distances / h).square_().mul_(-0.5).logsumexp(1).sum())
    others = len(samples) - (points is samples)
    normalizer = math.log(others) + samples.shape[1] * 0.5 * math.log(2 * math.pi)
    return [
        t / len(points) - normalizer - samples.shape[1] * math.log(h) for t, h in zip(totals, bandwidths, strict=True)
    ]
