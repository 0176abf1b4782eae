"""Full covariances in more than a few dimensions: batched matrix products, a block of components at a time.

    g_k = P_k (m_k - x),    l_k = log_scale_k - 1/2 (m_k - x) . g_k

and online softmax over the blocks, with weights no smaller than 2^-100 of the largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .precision_product import precision_product

BLOCK_ELEMENTS = 1 << 24  # ceiling on B x (components in a block) x d
MAX_BLOCK = 65_535  # components: one grid dimension of CUDA and HIP
FLOOR = -100.0 * math.log(2.0)


class Block(NamedTuple):
    """A block of components, and the sums so far."""

    part: slice
    g: Tensor  # [k, B, d]
    weights: Tensor  # [k, B]
    shrink: Tensor  # [B]: the factor of what was summed before
    maximum: Tensor  # [B]
    total: Tensor  # [B]


def blocks(x: Tensor, means: Tensor, precisions: Tensor, log_scale: Tensor) -> Iterator[Block]:
    """Yield all components at x [B, d], weighed under a running maximum."""
    size = max(1, min(MAX_BLOCK, BLOCK_ELEMENTS // max(1, x.numel())))
    maximum = x.new_full((x.shape[0],), torch.finfo(x.dtype).min)
    total = torch.zeros_like(maximum)
    for start in range(0, len(means), size):
        part = slice(start, start + size)
        g = precision_product(x, precisions[part], means[part])
        squares = torch.linalg.vecdot(means[part, None, :] - x, g)  # [k, B]
        logits = torch.add(log_scale[part, None], squares, alpha=-0.5)
        peak = torch.maximum(maximum, logits.amax(0))
        shrink = (maximum - peak).clamp_(min=FLOOR).exp_()
        weights = (logits - peak).clamp_(min=FLOOR).exp_()
        maximum, total = peak, total * shrink + weights.sum(0)
        yield Block(part, g, weights, shrink, maximum, total)


def posterior_means(
    x: Tensor, v: Tensor | None, means: Tensor, precisions: Tensor, log_scale: Tensor, order: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return log pi(x) [B] if order == 0, the score [B, d] if order >= 1, and H v [B, d] if order == 2."""
    first, second, along = x, x, x  # as far as there are no sums
    if order >= 1:
        first = torch.zeros_like(x)
    if order == 2:
        second, along = torch.zeros_like(x), x.new_zeros(x.shape[0])
    for block in blocks(x, means, precisions, log_scale):
        if order >= 1:
            first = first * block.shrink[:, None] + (block.weights[:, :, None] * block.g).sum(0)
        if order == 2:
            assert v is not None
            slopes = block.weights * torch.linalg.vecdot(block.g, v)
            along = along * block.shrink + slopes.sum(0)
            moved = precision_product(v, precisions[block.part])
            change = (slopes[:, :, None] * block.g - block.weights[:, :, None] * moved).sum(0)
            second = second * block.shrink[:, None] + change
    maximum, total = block.maximum, block.total
    if order == 0:
        log_prob = torch.where(maximum > torch.finfo(x.dtype).min, maximum + total.log(), -math.inf)
        return torch.where(total.isnan(), total, log_prob), None, None
    score = first / total[:, None]
    if order == 1:
        return None, score, None
    return None, score, (second - score * along[:, None]) / total[:, None]


def heaviest_component(x: Tensor, means: Tensor, precisions: Tensor, log_scale: Tensor) -> Tensor:
    """Return the component of the largest responsibility at x [B, d], the first of them, int64 [B]."""
    heaviest = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    highest = x.new_full((x.shape[0],), torch.finfo(x.dtype).min)
    for block in blocks(x, means, precisions, log_scale):
        found = block.part.start + block.weights.argmax(0)
        heaviest = torch.where(block.maximum > highest, found, heaviest)
        highest = block.maximum
    return heaviest
