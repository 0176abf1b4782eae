"""The reverse process between two evaluations of the network: all steps from t_first down to t_last.

    y_n = A_n y_{n+1} + B_n grad log pi(y_{n+1}) + C_n (held + X_n slope) + S_n xi_n,    n = first - 1, ..., last

The mixture's score is taken anew at every step; what the network gave is held, or extrapolated along its slope. The
coefficients [5, N], rows A, B, C, X, S, are those of a scheme (`fastndsm._scheme`), and one step is a case of them.
Splittings of this kind: Knoth and Wolke 1998; MRI-GARK, Sandu 2019.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from . import philox
from .components import MixtureOperands
from .mixture import mixture_score


def walk_back(
    y: Tensor,
    held: Tensor,
    slope: Tensor | None,
    first: int,
    last: int,
    coefficients: Tensor,
    score: Callable[[int, Tensor], Tensor],
    seed: int,
    first_path: int,
) -> Tensor:
    """Return y [B, d] at t_last for any score (n, y_{n+1}) -> [B, d] of the reference; held, slope [B, d]."""
    paths = philox.path_range(len(y), first_path, y.device)
    for n in reversed(range(last, first)):
        decay, drift, weight, position, std = (float(c) for c in coefficients[:, n])
        network = held if slope is None else held + position * slope
        following = decay * y + weight * network
        if drift != 0.0:
            following = following + drift * score(n, y)
        if std != 0.0:
            noise = philox.normal(paths, y.shape[1], seed=seed, step=n, stream=philox.REVERSE, dtype=y.dtype)
            following = following + std * noise
        y = following
    return y


def reverse_steps(
    y: Tensor,
    held: Tensor,
    slope: Tensor | None,
    bounds: Tensor,
    coefficients: Tensor,
    mixture: MixtureOperands,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    """Take the steps of bounds = (first, last), int64 [2], from y [B, d] with held, slope [B, d] -> [B, d]."""
    first, last = (int(bound) for bound in bounds)
    key = int(seed)
    return walk_back(y, held, slope, first, last, coefficients, lambda _, x: mixture_score(x, mixture), key, first_path)
