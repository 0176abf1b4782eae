"""Full covariances in more than a few dimensions: batched matrix products, a block of components at a time.

    g_k = P_k (m_k - x),    l_k = log_scale_k - 1/2 (m_k - x) . g_k

and online softmax over the blocks, with weights no smaller than 2^-100 of the largest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .precision_product import precision_product

BLOCK_ELEMENTS = 1 << 24  # ceiling on B x (components in a block) x d
MAX_BLOCK = 65_535  # components: one grid dimension of CUDA and HIP
FLOOR = -100.0 * math.log(2.0)


def posterior_means(
    x: Tensor, v: Tensor | None, means: Tensor, precisions: Tensor, log_scale: Tensor, moments: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """log pi(x) [B], the score [B, d] if moments >= 1, and H v [B, d] if moments == 2."""
    n_components = means.shape[0]
    block = max(1, min(n_components, MAX_BLOCK, BLOCK_ELEMENTS // max(1, x.numel())))
    lowest = torch.finfo(x.dtype).min
    maximum = x.new_full((x.shape[0],), lowest)
    total = torch.zeros_like(maximum)
    along = torch.zeros_like(maximum)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for start in range(0, n_components, block):
        part = slice(start, start + block)
        g = precision_product(x, precisions[part], means[part])  # [k, B, d]
        squares = torch.linalg.vecdot(means[part, None, :] - x, g)  # [k, B]
        logits = torch.add(log_scale[part, None], squares, alpha=-0.5)
        peak = torch.maximum(maximum, logits.amax(0))
        shrink = (maximum - peak).clamp_(min=FLOOR).exp_()
        weights = (logits - peak).clamp_(min=FLOOR).exp_()
        total = total * shrink + weights.sum(0)
        if moments >= 1:
            first = first * shrink[:, None] + (weights[:, :, None] * g).sum(0)
        if moments == 2:
            assert v is not None
            slopes = weights * torch.linalg.vecdot(g, v)
            along = along * shrink + slopes.sum(0)
            moved = precision_product(v, precisions[part])
            second = second * shrink[:, None] + (slopes[:, :, None] * g - weights[:, :, None] * moved).sum(0)
        maximum = peak
    log_prob = torch.where(maximum > lowest, maximum + total.log(), -math.inf)
    log_prob = torch.where(total.isnan(), total, log_prob)
    if moments == 0:
        return log_prob, None, None
    score = first / total[:, None]
    if moments == 1:
        return log_prob, score, None
    return log_prob, score, (second - score * along[:, None]) / total[:, None]
