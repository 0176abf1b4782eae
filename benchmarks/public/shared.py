"""Noising by path, and the share of samples that are copies, as several commands take them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastndsm import GaussianMixture, LangevinProcess


def path(pi: GaussianMixture) -> LangevinProcess:
    """Return noising towards pi in 100 steps, its horizon cut to what they resolve of the narrowest component."""
    horizon = 3.0 * pi.largest_variance
    needed = horizon / (0.2 * pi.smallest_variance)  # q is 0.2 at the last of them, the longest
    return LangevinProcess(pi, T=horizon * min(1.0, 100 / needed), n_steps=100, grid="quadratic")


def copies(x: Tensor, train: Tensor) -> float:
    """Return the share of samples x [n, d] three times nearer to one training point than to any other."""
    nearest = torch.cdist(x, train).topk(2, largest=False).values
    return float((nearest[:, 0] < nearest[:, 1] / 3.0).double().mean())
