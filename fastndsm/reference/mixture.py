"""Gaussian mixture pi(x) = sum_k w_k N(x; m_k, Sigma_k): log-density, score, Hessian-vector product, exact draws.

With P_k = Sigma_k^-1, g_k(x) = P_k (m_k - x) and responsibilities r_k(x):

    score      grad log pi(x) = sum_k r_k g_k
    its HVP    H v = sum_k r_k (g_k (g_k . v) - P_k v) - g (g . v),    g = sum_k r_k g_k

Every quantity is a posterior mean over components, accumulated over blocks of them with a running maximum (online
softmax), so that nothing of size B x K is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import philox

BLOCK_ELEMENTS = 1 << 22  # ceiling on B x (components in a block) x d


class MixtureOperands(NamedTuple):
    """A mixture as an op needs it, in its compute dtype.

    means [K, d]; precisions [K] spherical, [K, d] diag, [d, d] tied, [K, d, d] full;
    log_scale [K] = log w_k + 1/2 log det P_k - d/2 log 2 pi.
    """

    means: Tensor
    precisions: Tensor
    log_scale: Tensor
    covariance_type: str

    def block(self, start: int, stop: int) -> MixtureOperands:
        """Return the components start..stop."""
        precisions = self.precisions if self.covariance_type == "tied" else self.precisions[start:stop]
        return MixtureOperands(self.means[start:stop], precisions, self.log_scale[start:stop], self.covariance_type)


def component_scores(x: Tensor, m: MixtureOperands) -> tuple[Tensor, Tensor]:
    """Return log w_k N(x; m_k, Sigma_k) [B, K] and g_k = P_k (m_k - x) [B, K, d]."""
    diff = m.means - x[:, None, :]
    if m.covariance_type == "spherical":
        g = m.precisions[:, None] * diff
    elif m.covariance_type == "diag":
        g = m.precisions * diff
    elif m.covariance_type == "tied":
        g = diff @ m.precisions
    else:
        g = torch.einsum("kij,bkj->bki", m.precisions, diff)
    return m.log_scale - 0.5 * (diff * g).sum(-1), g


def weighted_precision_product(weights: Tensor, v: Tensor, m: MixtureOperands) -> Tensor:
    """Return sum_k weights_k P_k v for weights [B, K], v [B, d] -> [B, d]."""
    if m.covariance_type == "spherical":
        return (weights @ m.precisions)[:, None] * v
    if m.covariance_type == "diag":
        return (weights @ m.precisions) * v
    if m.covariance_type == "tied":
        return weights.sum(1, keepdim=True) * (v @ m.precisions)
    return torch.einsum("bk,kij,bj->bi", weights, m.precisions, v)


WeightedSum = Callable[[Tensor, Tensor, MixtureOperands], Tensor]  # weights [B, k], g [B, k, d], block -> [B, .]


def posterior_means(x: Tensor, m: MixtureOperands, *weighted_sums: WeightedSum) -> tuple[Tensor, list[Tensor]]:
    """Return log pi(x) [B] and posterior means over components, one for each weighted sum, online over blocks."""
    n_components = m.means.shape[0]
    block = max(1, min(n_components, BLOCK_ELEMENTS // max(1, x.numel())))
    maximum = x.new_full((x.shape[0],), torch.finfo(x.dtype).min)
    total = torch.zeros_like(maximum)
    sums: list[Tensor] = []
    for start in range(0, n_components, block):
        part = m.block(start, min(start + block, n_components))
        log_joint, g = component_scores(x, part)
        new_maximum = torch.maximum(maximum, log_joint.amax(1)).detach()  # cancels: no gradient needed
        weights = (log_joint - new_maximum[:, None]).exp()
        rescale = (maximum - new_maximum).exp()
        total = total * rescale + weights.sum(1)
        values = [weighted_sum(weights, g, part) for weighted_sum in weighted_sums]
        sums = [s * rescale[:, None] + v for s, v in zip(sums, values, strict=True)] if sums else values
        maximum = new_maximum
    return maximum + total.log(), [s / total[:, None] for s in sums]


def _score_sum(weights: Tensor, g: Tensor, part: MixtureOperands) -> Tensor:
    return (weights[:, None, :] @ g)[:, 0]


def mixture_log_prob(x: Tensor, m: MixtureOperands) -> Tensor:
    """Return log pi(x) for x [B, d] -> [B]."""
    return posterior_means(x, m)[0]


def mixture_score(x: Tensor, m: MixtureOperands) -> Tensor:
    """Return grad log pi(x) for x [B, d] -> [B, d]."""
    return posterior_means(x, m, _score_sum)[1][0]


def score_and_hvp(x: Tensor, v: Tensor, m: MixtureOperands) -> tuple[Tensor, Tensor]:
    """Return grad log pi(x) and (hessian of log pi)(x) v, sharing the responsibilities."""

    def second_sum(weights: Tensor, g: Tensor, part: MixtureOperands) -> Tensor:
        along = weights * (g @ v[:, :, None])[..., 0]
        return (along[:, None, :] @ g)[:, 0] - weighted_precision_product(weights, v, part)

    _, (score, second) = posterior_means(x, m, _score_sum, second_sum)
    return score, second - score * (score * v).sum(1, keepdim=True)


def mixture_hvp(x: Tensor, v: Tensor, m: MixtureOperands) -> Tensor:
    """Return (hessian of log pi)(x) v for x, v [B, d] -> [B, d]."""
    return score_and_hvp(x, v, m)[1]


def mean_precision_diagonal(x: Tensor, m: MixtureOperands) -> Tensor:
    """Return p_j(x) = sum_k r_k(x) (P_k)_jj: [B, 1] for spherical, else [B, d]."""
    if m.covariance_type == "tied":
        return m.precisions.diagonal().expand_as(x)

    def diagonal_sum(weights: Tensor, g: Tensor, part: MixtureOperands) -> Tensor:
        if part.covariance_type == "spherical":
            return (weights @ part.precisions)[:, None]
        diagonals = part.precisions if part.covariance_type == "diag" else part.precisions.diagonal(dim1=1, dim2=2)
        return weights @ diagonals

    return posterior_means(x, m, diagonal_sum)[1][0]


def mixture_sample(
    n: int,
    cumulative_weights: Tensor,
    means: Tensor,
    factors: Tensor,
    covariance_type: str,
    seed: Tensor,
    first_path: int,
    dtype: torch.dtype,
) -> Tensor:
    """Return exact draws [n, d]: m_k + L_k z with L_k L_k^T = Sigma_k and k by inversion of the weights.

    cumulative_weights [K] float64; factors [K], [K, d], [d, d] or [K, d, d], lower triangular where matrices.
    Stream PRIOR: step 0 gives z, step 1 (word 0 of block 0) gives k.
    """
    device, dim = means.device, means.shape[1]
    paths = philox.path_range(n, first_path, device)
    u = philox.uniform(philox.philox_words(paths, 1, int(seed), 1, philox.PRIOR)[0][:, 0])
    k = torch.searchsorted(cumulative_weights, u, right=True).clamp_(max=means.shape[0] - 1)
    z = philox.normal(paths, dim, seed=int(seed), step=0, stream=philox.PRIOR, dtype=means.dtype)
    if covariance_type == "spherical":
        deviation = factors[k, None] * z
    elif covariance_type == "diag":
        deviation = factors[k] * z
    elif covariance_type == "tied":
        deviation = z @ factors.T
    else:
        deviation = torch.empty_like(z)
        for component in k.unique():
            rows = k == component
            deviation[rows] = z[rows] @ factors[component].T
    return (means[k] + deviation).to(dtype)
