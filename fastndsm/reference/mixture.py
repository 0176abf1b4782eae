"""Gaussian mixture pi(x) = sum_k w_k N(x; m_k, Sigma_k): log-density, score, Hessian-vector product, exact draws.

With P_k = Sigma_k^-1, g_k(x) = P_k (m_k - x) and responsibilities r_k(x):

    score      grad log pi(x) = sum_k r_k g_k
    its HVP    H v = sum_k r_k (g_k (g_k . v) - P_k v) - g (g . v),    g = sum_k r_k g_k

Every quantity is a posterior mean over components, accumulated over blocks of them with a running maximum (online
softmax), so that nothing of size B x K is stored. Rows so far off that this overflows, or that nothing is left of H v,
are taken in float64 about the component of the largest density (`far`).

A row may have some of the components: ranges, int64 [B, 2], are start..stop of each row. All sums over k are over these
then, with their w_k as they are, so that log pi is not normalised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import philox
from .components import MixtureOperands, component_scores, weighted_precision_product
from .far import Centred, far_rows, with_far_rows

BLOCK_ELEMENTS = 1 << 22  # ceiling on B x (components in a block) x d


WeightedSum = Callable[[Tensor, Tensor, MixtureOperands], Tensor]  # weights [B, k], g [B, k, d], block -> [B, .]


def posterior_means(
    x: Tensor, m: MixtureOperands, *weighted_sums: WeightedSum, ranges: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Return log pi(x) [B] and posterior means over components, one for each weighted sum, online over blocks."""
    n_components = m.means.shape[0]
    block = max(1, min(n_components, BLOCK_ELEMENTS // max(1, x.numel())))
    maximum = x.new_full((x.shape[0],), torch.finfo(x.dtype).min)
    total = torch.zeros_like(maximum)
    sums: list[Tensor] = []
    for start in range(0, n_components, block):
        part = m.block(start, min(start + block, n_components))
        log_joint, g = component_scores(x, part, ranges, start)
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


def _far_score(far: Centred, _: Tensor) -> Tensor:
    return far.g + _score_sum(far.weights, far.shift, far.mixture)


def mixture_log_prob(x: Tensor, m: MixtureOperands, ranges: Tensor | None = None) -> Tensor:
    """Return log pi(x) for x [B, d] -> [B]."""
    log_prob = posterior_means(x, m, ranges=ranges)[0]
    again = partial(mixture_log_prob, m=m, ranges=ranges)
    return with_far_rows(log_prob, far_rows(log_prob), x, m, lambda far, _: far.log_prob, again, ranges)


def mixture_score(x: Tensor, m: MixtureOperands, ranges: Tensor | None = None) -> Tensor:
    """Return grad log pi(x) for x [B, d] -> [B, d]."""
    log_prob, (score,) = posterior_means(x, m, _score_sum, ranges=ranges)
    return _replaced_score(score, log_prob, x, m, ranges)


def _replaced_score(score: Tensor, log_prob: Tensor, x: Tensor, m: MixtureOperands, ranges: Tensor | None) -> Tensor:
    again = partial(mixture_score, m=m, ranges=ranges)
    return with_far_rows(score, far_rows(log_prob), x, m, _far_score, again, ranges)


def score_and_hvp(x: Tensor, v: Tensor, m: MixtureOperands, ranges: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return grad log pi(x) and (hessian of log pi)(x) v, sharing the responsibilities."""

    def second_sum(weights: Tensor, g: Tensor, part: MixtureOperands, v: Tensor = v) -> Tensor:
        along = weights * (g @ v[:, :, None])[..., 0]
        return (along[:, None, :] @ g)[:, 0] - weighted_precision_product(weights, v, part)

    log_prob, (score, second) = posterior_means(x, m, _score_sum, second_sum, ranges=ranges)
    hvp = second - score * (score * v).sum(1, keepdim=True)

    def far_hvp(far: Centred, rows: Tensor) -> Tensor:
        along = v[rows].double()
        shift = _score_sum(far.weights, far.shift, far.mixture)
        second = second_sum(far.weights, far.shift, far.mixture, along)
        return second - shift * (shift * along).sum(1, keepdim=True)

    rows = far_rows(log_prob, -0.5 / torch.finfo(x.dtype).eps)
    if rows is None:
        return score, hvp
    again = partial(mixture_hvp, v=v, m=m, ranges=ranges)
    return _replaced_score(score, log_prob, x, m, ranges), with_far_rows(hvp, rows, x, m, far_hvp, again, ranges)


def mixture_hvp(x: Tensor, v: Tensor, m: MixtureOperands, ranges: Tensor | None = None) -> Tensor:
    """Return (hessian of log pi)(x) v for x, v [B, d] -> [B, d]."""
    return score_and_hvp(x, v, m, ranges)[1]


def mean_precision(x: Tensor, m: MixtureOperands, ranges: Tensor | None = None) -> Tensor:
    """Return sum_k r_k(x) P_k of spherical ([B, 1]) or diag ([B, d]) covariances."""

    def diagonal_sum(weights: Tensor, g: Tensor, part: MixtureOperands) -> Tensor:
        mean = weights @ part.precisions
        return mean[:, None] if part.covariance_type == "spherical" else mean

    log_prob, (rate,) = posterior_means(x, m, diagonal_sum, ranges=ranges)

    def far_rate(far: Centred, _: Tensor) -> Tensor:
        return diagonal_sum(far.weights, far.shift, far.mixture)

    again = partial(mean_precision, m=m, ranges=ranges)
    return with_far_rows(rate, far_rows(log_prob), x, m, far_rate, again, ranges)


def heaviest_component(x: Tensor, m: MixtureOperands, ranges: Tensor | None = None) -> Tensor:
    """Return the component of the largest responsibility at x [B, d], the first of them, int64 [B]."""
    x = x.detach()
    block = max(1, min(len(m.means), BLOCK_ELEMENTS // max(1, x.numel())))
    maximum = x.new_full((x.shape[0],), -math.inf)
    heaviest = torch.zeros_like(maximum, dtype=torch.int64)
    for start in range(0, len(m.means), block):
        peak, k = component_scores(x, m.block(start, start + block), ranges, start)[0].max(1)
        heaviest = torch.where(peak > maximum, start + k, heaviest)
        maximum = torch.maximum(maximum, peak)
    again = partial(heaviest_component, m=m, ranges=ranges)
    return with_far_rows(heaviest, far_rows(maximum), x, m, lambda far, _: far.weights.argmax(1), again, ranges)


def mixture_sample(
    n: int,
    cumulative_weights: Tensor,
    means: Tensor,
    factors: Tensor,
    covariance_type: str,
    seed: Tensor,
    first_path: int,
    dtype: torch.dtype,
    ranges: Tensor | None = None,
) -> Tensor:
    """Return exact draws [n, d]: m_k + L_k z with L_k L_k^T = Sigma_k and k by inversion of the weights, in its range.

    cumulative_weights [K] float64; factors [K], [K, d], [d, d] or [K, d, d], lower triangular where matrices.
    Stream PRIOR: step 0 gives z, step 1 (word 0 of block 0) gives k.
    """
    device, dim = means.device, means.shape[1]
    paths = philox.path_range(n, first_path, device)
    u = philox.uniform(philox.philox_words(paths, 1, int(seed), 1, philox.PRIOR)[0][:, 0])
    if ranges is None:
        k = torch.searchsorted(cumulative_weights, u, right=True).clamp_(max=means.shape[0] - 1)
    else:
        first, stop = ranges.unbind(1)
        below = F.pad(cumulative_weights, (1, 0))
        u = below[first] + u * (below[stop] - below[first])
        k = torch.searchsorted(cumulative_weights, u, right=True).clamp_(first, stop - 1)
    z = philox.normal(paths, dim, seed=int(seed), step=0, stream=philox.PRIOR, dtype=means.dtype)
    return component_draws(k, z, means, factors, covariance_type).to(dtype)


def component_draws(k: Tensor, z: Tensor, means: Tensor, factors: Tensor, covariance_type: str) -> Tensor:
    """Return m_k + L_k z of components k [n] and normals z [n, d]."""
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
    return means[k] + deviation
