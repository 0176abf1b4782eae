"""The reverse process between two evaluations of the network: all steps from t_first down to t_last.

    y_n = A e^-x y_{n+1} + f(x) [B grad log pi(y_{n+1}) + C (held + X slope)] + S f(2 x)^1/2 xi_n

for n = first - 1, ..., last, with x = rate R and f(x) = (1 - e^-x) / x; x = 0 without a rate. The mixture's score is
taken anew at every step; what the network gave is held, or extrapolated along its slope. The coefficients [6, N], rows
A, B, C, X, S, R, are those of a scheme (`fastndsm._scheme`), and one step is a case of them.

Splittings of this kind: Knoth and Wolke 1998; MRI-GARK, Sandu 2019.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import philox
from .components import MixtureOperands
from .mixture import mixture_score


def mean_decay(x: Tensor) -> Tensor:
    """Return f(x) = (1 - e^-x) / x for x >= 0, 1 at 0."""
    small = x < 1e-4
    return torch.where(small, 1.0 - 0.5 * x, -torch.expm1(-x) / torch.where(small, torch.ones_like(x), x))


def walk_back(
    y: Tensor,
    held: Tensor,
    slope: Tensor | None,
    rate: Tensor | None,
    first: int,
    last: int,
    coefficients: Tensor,
    score: Callable[[int, Tensor], Tensor],
    seed: int,
    first_path: int,
) -> Tensor:
    """Return y [B, d] at t_last for any score (n, y_{n+1}) -> [B, d] of the reference; held, slope [B, d], rate [B]."""
    paths = philox.path_range(len(y), first_path, y.device)
    for n in reversed(range(last, first)):
        decay, drift, weight, position, std, rate_scale = (float(c) for c in coefficients[:, n])
        forcing = weight * (held if slope is None else held + position * slope)
        if drift != 0.0:
            forcing = forcing + drift * score(n, y)
        noise = None
        if std != 0.0:
            noise = std * philox.normal(paths, y.shape[1], seed=seed, step=n, stream=philox.REVERSE, dtype=y.dtype)
        if rate is not None:
            x = rate_scale * rate[:, None]
            y, forcing = (-x).exp() * y, mean_decay(x) * forcing
            noise = None if noise is None else mean_decay(2.0 * x).sqrt() * noise
        y = decay * y + forcing
        y = y if noise is None else y + noise
    return y


def reverse_steps(
    y: Tensor,
    held: Tensor,
    slope: Tensor | None,
    rate: Tensor | None,
    bounds: Tensor,
    coefficients: Tensor,
    mixture: MixtureOperands,
    seed: Tensor,
    first_path: int,
    ranges: Tensor | None = None,
) -> Tensor:
    """Take the steps of bounds = (first, last), int64 [2], from y [B, d] -> [B, d]; held, slope [B, d], rate [B].

    ranges: int64 [B, 2], the components start..stop of each row; None is all.
    """
    first, last = (int(bound) for bound in bounds)

    def score(_: int, x: Tensor) -> Tensor:
        return mixture_score(x, mixture, ranges)

    return walk_back(y, held, slope, rate, first, last, coefficients, score, int(seed), first_path)
