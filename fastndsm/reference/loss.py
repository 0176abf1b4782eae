"""Per-sample losses of the estimators and their gradients in the score, accumulated in at least float32.

    plain            1/2 |s|^2 + z . s / s_n
    control_variate  1/2 |s|^2 + z . (s - h) / s_n             s at x, h at mean
    antithetic       the mean of plain at z and at -z
    path             1/2 |s - target|^2                        (dsm_loss)

Weights and reductions act on [B] and stay outside.
"""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """Return float64 if any tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def ndsm_loss(scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool) -> Tensor:
    """Return loss [B] from scores [B, d] (plain) or [2B, d] (control_variate, antithetic), noise [B, d], std [B]."""
    dtype = accumulation_dtype(scores, noise)
    z = noise.to(dtype) / std.to(dtype)[:, None]
    s = scores.to(dtype)
    if estimator == "control_variate":
        first, second = s.chunk(2)
        return 0.5 * first.square().sum(1) + (z * (first - second)).sum(1)
    if antithetic:
        plus, minus = s.chunk(2)
        return 0.25 * (plus.square().sum(1) + minus.square().sum(1)) + 0.5 * (z * (plus - minus)).sum(1)
    return 0.5 * s.square().sum(1) + (z * s).sum(1)


def ndsm_loss_backward(
    grad: Tensor, scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool
) -> Tensor:
    """Return the gradient in scores, of their shape and dtype, from grad [B]."""
    dtype = accumulation_dtype(scores, noise)
    grad = grad.to(dtype)[:, None]
    z = grad * (noise.to(dtype) / std.to(dtype)[:, None])
    s = scores.to(dtype)
    if estimator == "control_variate":
        out = torch.cat([grad * s.chunk(2)[0] + z, -z])
    elif antithetic:
        plus, minus = s.chunk(2)
        out = 0.5 * torch.cat([grad * plus + z, grad * minus - z])
    else:
        out = grad * s + z
    return out.to(scores.dtype)


def dsm_loss(score: Tensor, target: Tensor) -> Tensor:
    """Return 1/2 |score - target|^2 [B] for score, target [B, d]."""
    dtype = accumulation_dtype(score, target)
    return 0.5 * (score.to(dtype) - target.to(dtype)).square().sum(1)


def dsm_loss_backward(grad: Tensor, score: Tensor, target: Tensor) -> Tensor:
    """Return the gradient in score, of its shape and dtype, from grad [B]."""
    dtype = accumulation_dtype(score, target)
    return (grad.to(dtype)[:, None] * (score.to(dtype) - target.to(dtype))).to(score.dtype)
