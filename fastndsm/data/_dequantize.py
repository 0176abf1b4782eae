"""Integers as continuous data: each is spread uniformly over a cell, and cells fill an interval."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..reference import philox

__all__ = ["dequantize"]


def _cell_width(levels: int, low: float, high: float) -> float:
    """Return (high - low) / levels, all three checked."""
    if _checks.count("levels", levels, 2) > 1 << 24:
        raise ValueError(f"levels: expected at most 2^24, found {levels}")
    if _checks.number("low", low) >= _checks.number("high", high):
        raise ValueError(f"high: expected a number above low, {low:g}, found {high:g}")
    return (high - low) / levels


def dequantize(
    x: Tensor,
    levels: int = 256,
    low: float = -1.0,
    high: float = 1.0,
    *,
    seed: int | Tensor | None = None,
    first_path: int = 0,
    step: int = 0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return low + (high - low) (x + u) / levels, u uniform in (0, 1): [n, *event] of `dtype` for integers x.

    A network trained on this has a density whose mean over a cell bounds a model of the integers:
    `metrics.bits_per_dimension`. The noise of row i depends on seed, step and first_path + i alone.

    Args:
        x: [n, *event] in 0..levels-1, of an integer dtype, or of floating point with integers as values.
        low, high: of the interval that the cells fill. Images at 2 k / 255 - 1 lie in the middle of the cells of
            -1 - 1/255 to 1 + 1/255.
        step: another number for each further draw of the same rows.

    Source: Theis, van den Oord and Bethge, arXiv 1511.01844; Uria, Murray and Larochelle 2013.
    """
    width = _cell_width(levels, low, high)
    _integers(x, levels)
    dtype, key = _checks.floating_dtype("dtype", dtype), _checks.seed(seed)
    first, step = _checks.first_path(first_path), _checks.count("step", step, 0)
    flat = x.detach().reshape(len(x), -1)
    paths = philox.path_range(len(x), first, x.device)
    words = philox.philox_words(paths, (flat.shape[1] + 3) // 4, int(key), step, philox.DEQUANTIZE)
    noise = philox.uniform(torch.stack(words, dim=-1).flatten(1)[:, : flat.shape[1]])
    return (low + width * (flat.double() + noise)).to(dtype).reshape(x.shape)


def _integers(x: Any, levels: int) -> None:
    _checks.tensor("x", x, "a Tensor of integers")
    if x.dtype == torch.bool or x.is_complex():
        raise TypeError(f"x: expected a Tensor of integers, found {x.dtype}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x: expected a non-empty [n, *event], found shape {tuple(x.shape)}")
    if x.is_floating_point() and not bool((x == x.round()).all()):
        raise ValueError(
            "x: expected integers, 0..levels-1, found numbers between them; scale back, by ((x + 1) * 127.5).round()"
        )
    least, most = (x.double().amin().item(), x.double().amax().item())
    if least < 0 or most >= levels:
        raise ValueError(f"x: expected integers in 0..{levels - 1}, found {least:.0f} to {most:.0f}")
