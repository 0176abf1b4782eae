"""Bits per dimension of integers, such as pixels, under the density of a score network."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import torch
from torch import Tensor

from .. import _checks
from ..data import Standardizer, dequantize
from ..objective import ScoreNet
from ..process import NoisingProcess
from ..sampling.likelihood import log_likelihood
from ..score import network_dtype

__all__ = ["bits_per_dimension"]


@overload
def bits_per_dimension(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    standardizer: Standardizer | None = None,
    n_draws: int = 1,
    seed: int | Tensor | None = 0,
    dtype: torch.dtype | None = None,
    return_error: Literal[False] = False,
    **options: Any,
) -> Tensor: ...


@overload
def bits_per_dimension(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    standardizer: Standardizer | None = None,
    n_draws: int = 1,
    seed: int | Tensor | None = 0,
    dtype: torch.dtype | None = None,
    return_error: Literal[True],
    **options: Any,
) -> tuple[Tensor, Tensor]: ...


def bits_per_dimension(
    score_net: ScoreNet,
    process: NoisingProcess,
    x: Tensor,
    *,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    standardizer: Standardizer | None = None,
    n_draws: int = 1,
    seed: int | Tensor | None = 0,
    dtype: torch.dtype | None = None,
    return_error: bool = False,
    **options: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return an upper bound of -log2 P(x) / d of integers x [B, *event], float64 [B], by uniform dequantisation.

    With z = low + c (x + u), c = (high - low) / levels, as `data.dequantize` draws it, and p the network's density,

        log2 P(x) >= E_u log2 p(z) + d log2 c,

    so that the mean over the data is what the field reports as bits per dimension. The network must have been trained
    on such z; E_u is estimated by n_draws draws.

    Args:
        x, levels, low, high: as for `data.dequantize`.
        standardizer: what takes z to the network's coordinates, if something does; its scale enters the density.
        dtype: of z; default that of the network's parameters, float32 where it has none.
        return_error: return (bits, error), error [B] as `fastndsm.log_likelihood` estimates it, in bits per dimension.
        options: of `fastndsm.log_likelihood`: n_evaluations, n_probes, condition.

    Source: Theis, van den Oord and Bethge, arXiv 1511.01844, section 3.1; Song et al., arXiv 2011.13456.
    """
    dtype = (network_dtype(score_net) or torch.float32) if dtype is None else dtype
    key, draws = _checks.seed(seed), range(_checks.count("n_draws", n_draws))
    if standardizer is not None:
        _checks.instance("standardizer", standardizer, Standardizer, "a data.Standardizer")
        if not bool((standardizer.scale > 0).all()):
            raise ValueError("standardizer: expected scales above 0, of dequantized data, found a constant feature")
    parts: list[Any] = []
    for draw in draws:
        z = dequantize(x, levels, low, high, seed=key, step=draw, dtype=dtype)
        z = z if standardizer is None else standardizer.encode(z)
        options["return_error"] = return_error
        parts.append(log_likelihood(score_net, process, z, seed=key, **options))
    volume = math.log((high - low) / levels)
    if standardizer is not None:
        volume -= float(standardizer.scale.log().mean())

    def mean(values: Any) -> Tensor:
        return torch.stack(list(values)).double().mean(0) / (process.dim * math.log(2.0))

    if return_error:
        return -mean(p for p, _ in parts) - volume / math.log(2.0), mean(error for _, error in parts)
    return -mean(parts) - volume / math.log(2.0)
