"""The gate for bad input to the metrics."""

from __future__ import annotations

import torch
from torch import Tensor


def samples(name: str, x: Tensor, least: int = 1) -> Tensor:
    """x [n, *event], `least` or more finite samples, as [n, d] float64; else a TypeError or ValueError."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name}: expected a floating-point Tensor, found {found}")
    if x.ndim < 2 or len(x) < least or x.numel() == 0:
        raise ValueError(f"{name}: expected [n, *event] with n >= {least}, found shape {tuple(x.shape)}")
    if bad := int((~x.isfinite()).sum()):
        raise ValueError(f"{name}: expected finite values, found {bad} that are not")
    return x.detach().flatten(1).to(torch.float64)


def pair(x_name: str, x: Tensor, y_name: str, y: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
    """Two sets of samples of the same dimension on the same device, as [n, d] and [m, d] float64."""
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.device != y.device:
        raise ValueError(f"{y_name}: expected a Tensor on {x.device} as {x_name} is, found {y.device}")
    x, y = samples(x_name, x, least), samples(y_name, y, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"{y_name}: expected {x.shape[1]} values a sample as in {x_name}, found {y.shape[1]}")
    return x, y


def probabilities(name: str, p: Tensor, ndim: int) -> Tensor:
    """p [C] or [n, C], non-negative with sums of one along the last dimension, as float64."""
    if not isinstance(p, Tensor) or not p.is_floating_point():
        found = p.dtype if isinstance(p, Tensor) else type(p).__name__
        raise TypeError(f"{name}: expected a floating-point Tensor, found {found}")
    if p.ndim != ndim or p.numel() == 0:
        raise ValueError(f"{name}: expected {'[C]' if ndim == 1 else '[n, C]'}, found shape {tuple(p.shape)}")
    p = p.detach().to(torch.float64)
    if not (bool((p >= 0).all()) and bool(((p.sum(-1) - 1).abs() < 1e-4).all())):
        least, sums = float(p.min()), p.sum(-1)
        raise ValueError(
            f"{name}: expected values >= 0 that sum to one, found a least value of {least:.4g} and "
            f"sums of {float(sums.min()):.4g} to {float(sums.max()):.4g}"
        )
    return p


def labels(name: str, y: Tensor, n: int, of: str) -> Tensor:
    """y [n] int64 from 0."""
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        found = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(f"{name}: expected an int64 Tensor, found {found}")
    if y.shape != (n,):
        raise ValueError(f"{name}: expected [{n}], one for each sample of {of}, found {tuple(y.shape)}")
    if int(y.min()) < 0:
        raise ValueError(f"{name}: expected labels from 0, found {int(y.min())}")
    return y
