"""Weights of modes and classes, from labels or from a classifier's probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _checks
from ._distances import nearest_index

__all__ = ["class_balance", "confidence", "mode_weights", "total_variation"]


def mode_weights(samples: Tensor, centers: Tensor) -> Tensor:
    """Return the share of samples [n, *event] nearest to each of the centers [M, *event]: [M] float64."""
    nearest = nearest_index(samples, centers)
    return torch.bincount(nearest, minlength=len(centers)).double() / len(samples)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return 1/2 sum |p - q| of two probability vectors [C]: 0 where equal, 1 where disjoint."""
    p, q = _checks.probabilities("p", p, 1), _checks.probabilities("q", q, 1)
    if p.shape != q.shape:
        raise ValueError(f"q: expected {tuple(p.shape)} as p has, found {tuple(q.shape)}")
    return 0.5 * float((p - q.to(p.device)).abs().sum())


def class_balance(probs: Tensor) -> Tensor:
    """Return the share of samples of which each class is the most probable one: probs [n, C] -> [C] float64."""
    probs = _checks.probabilities("probs", probs, 2)
    return torch.bincount(probs.argmax(1), minlength=probs.shape[1]).double() / len(probs)


def confidence(probs: Tensor) -> float:
    """Return the mean over samples of the largest class probability, probs [n, C]."""
    return float(_checks.probabilities("probs", probs, 2).amax(1).mean())
