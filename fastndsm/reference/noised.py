"""A Gaussian mixture widened by noise of another variance in each row: log-density and score.

    pi_s(x) = sum_k w_k N(x; m_k, Sigma_k + s I),    s of the row

In the axes of Sigma_k = U_k diag(lambda_k) U_k^T all is elementwise. Rows share the parameters, but not the precisions
1 / (lambda_k + s). As in `mixture`, posterior means are accumulated over blocks of components under a running maximum,
so that nothing of size B x K x d is stored.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .mixture import BLOCK_ELEMENTS


class NoisedOperands(NamedTuple):
    """A mixture by its covariances' axes, in an op's compute dtype.

    means [K, d], if tied along the axes; variances [K] spherical, [K, d] diag, [d] tied, [K, d] full; log_weights [K];
    rotations None, but [d, d] tied and [K, d, d] full, an eigenvector a column.
    """

    means: Tensor
    variances: Tensor
    log_weights: Tensor
    rotations: Tensor | None
    covariance_type: str


def _evaluated(x: Tensor, variance: Tensor, m: NoisedOperands) -> tuple[Tensor, Tensor]:
    """Return log pi_s(x) [B] and its gradient [B, d] for x [B, d] and s = variance [B]."""
    tied, full = m.covariance_type == "tied", m.covariance_type == "full"
    if tied and m.rotations is not None:
        x = x @ m.rotations
    n_components, dim = m.means.shape
    spread = {"spherical": lambda: m.variances[:, None], "tied": lambda: m.variances[None]}
    variances = spread.get(m.covariance_type, lambda: m.variances)()  # [K or 1, d or 1]
    times = dim // variances.shape[1]
    maximum = x.new_full((len(x),), torch.finfo(x.dtype).min)
    total, score = torch.zeros_like(maximum), torch.zeros_like(x)
    block = max(1, min(n_components, BLOCK_ELEMENTS // max(1, x.numel())))
    for start in range(0, n_components, block):
        part = slice(start, start + block)
        wide = (variances if tied else variances[part]) + variance[:, None, None]
        apart = m.means[part] - x[:, None, :]
        if full:
            assert m.rotations is not None
            apart = torch.einsum("bki,kij->bkj", apart, m.rotations[part])
        pull = apart / wide
        logits = m.log_weights[part] - 0.5 * ((apart * pull).sum(-1) + times * wide.log().sum(-1))
        higher = torch.maximum(maximum, logits.amax(1)).detach()  # cancels: no gradient needed
        weights, shrink = (logits - higher[:, None]).exp(), (maximum - higher).exp()
        total = total * shrink + weights.sum(1)
        if full:
            assert m.rotations is not None
            added = torch.einsum("bkj,kij->bi", weights[:, :, None] * pull, m.rotations[part])
        else:
            added = (weights[:, None, :] @ pull)[:, 0]
        score, maximum = score * shrink[:, None] + added, higher
    score = score / total[:, None]
    if tied and m.rotations is not None:
        score = score @ m.rotations.T
    return maximum + total.log() - 0.5 * dim * math.log(2.0 * math.pi), score


def noised_score(x: Tensor, variance: Tensor, m: NoisedOperands) -> Tensor:
    """Return grad log pi_s(x) for x [B, d] and s = variance [B] -> [B, d]."""
    return _evaluated(x, variance, m)[1]


def noised_log_prob(x: Tensor, variance: Tensor, m: NoisedOperands) -> Tensor:
    """Return log pi_s(x) for x [B, d] and s = variance [B] -> [B]."""
    return _evaluated(x, variance, m)[0]
