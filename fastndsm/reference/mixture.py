"""Gaussian mixture pi(x) = sum_k w_k N(x; m_k, Sigma_k): log-density, score, Hessian-vector product, exact draws.

With P_k = Sigma_k^-1, g_k(x) = P_k (m_k - x) and responsibilities r_k(x):

    score      grad log pi(x) = sum_k r_k g_k
    its HVP    H v = sum_k r_k (g_k (g_k . v) - P_k v) - g (g . v),    g = sum_k r_k g_k

Every quantity is a posterior mean over components, accumulated over blocks of them with a running maximum (online
softmax), so that nothing of size B x K is stored. Rows so far off that this overflows, or that nothing is left of H v,
are taken in float64 about the component that is nearest (`centred`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from . import philox

BLOCK_ELEMENTS = 1 << 22  # ceiling on B x (components in a block) x d


class MixtureOperands(NamedTuple):
    """What an op needs of a mixture, in its compute dtype.

    means [K, d]; precisions [K] spherical, [K, d] diag, [d, d] tied, [K, d, d] full;
    log_scale [K] = log w_k + 1/2 log det P_k - d/2 log 2 pi.
    """

    means: Tensor
    precisions: Tensor
    log_scale: Tensor
    covariance_type: str

    def block(self, start: int, stop: int) -> MixtureOperands:
        """The components start..stop."""
        precisions = self.precisions if self.covariance_type == "tied" else self.precisions[start:stop]
        return MixtureOperands(self.means[start:stop], precisions, self.log_scale[start:stop], self.covariance_type)


def component_scores(x: Tensor, m: MixtureOperands) -> tuple[Tensor, Tensor]:
    """log w_k N(x; m_k, Sigma_k) [B, K] and g_k = P_k (m_k - x) [B, K, d]."""
    diff = m.means - x[:, None, :]
    g = precision_product(diff, m)
    return m.log_scale - 0.5 * (diff * g).sum(-1), g


def precision_product(diff: Tensor, m: MixtureOperands) -> Tensor:
    """P_k diff_k [B, K, d]."""
    if m.covariance_type == "spherical":
        return m.precisions[:, None] * diff
    if m.covariance_type == "diag":
        return m.precisions * diff
    if m.covariance_type == "tied":
        return diff @ m.precisions
    return torch.einsum("kij,bkj->bki", m.precisions, diff)


def weighted_precision_product(weights: Tensor, v: Tensor, m: MixtureOperands) -> Tensor:
    """sum_k weights_k P_k v for weights [B, K], v [B, d] -> [B, d]."""
    if m.covariance_type == "spherical":
        return (weights @ m.precisions)[:, None] * v
    if m.covariance_type == "diag":
        return (weights @ m.precisions) * v
    if m.covariance_type == "tied":
        return weights.sum(1, keepdim=True) * (v @ m.precisions)
    return torch.einsum("bk,kij,bj->bi", weights, m.precisions, v)


Moment = Callable[[Tensor, Tensor, MixtureOperands], Tensor]  # weights [B, k], g [B, k, d], block -> [B, .]


def posterior_means(x: Tensor, m: MixtureOperands, *moments: Moment) -> tuple[Tensor, list[Tensor]]:
    """log pi(x) [B] and the posterior mean over components of each moment, online over blocks of components."""
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
        values = [moment(weights, g, part) for moment in moments]
        sums = [s * rescale[:, None] + v for s, v in zip(sums, values, strict=True)] if sums else values
        maximum = new_maximum
    return maximum + total.log(), [s / total[:, None] for s in sums]


def far_rows(log_prob: Tensor, below: float = -math.inf) -> Tensor | None:
    """Rows whose log-density is at most `below`, or NaN; None if there are none, or asking would stall the caller."""
    if log_prob.device.type != "cpu" or torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    near = log_prob > below
    return None if bool(near.all()) else (~near).nonzero()[:, 0]


class Centred(NamedTuple):
    """Far rows about a component c of each, in float64: g_k = g_c + shift_k.

    log_prob [B], g = g_c [B, d], weights = r_k [B, K], shift [B, K, d], and the mixture.
    """

    log_prob: Tensor
    g: Tensor
    weights: Tensor
    shift: Tensor
    mixture: MixtureOperands


def centred(x: Tensor, m: MixtureOperands) -> Centred:
    """With u_k = m_k - x and c the component of the largest density, each difference is taken before it is rounded:

        u_k^T P_k u_k - u_c^T P_c u_c = (m_k - m_c)^T P_k (u_k + u_c) + u_c^T (P_k - P_c) u_c
        g_k - g_c                     = P_k (m_k - m_c) + (P_k - P_c) u_c

    Where squares of u would overflow, all lengths are scaled by a power of two.
    """
    x, means, log_scale = x.double(), m.means.double(), m.log_scale.double()
    m = MixtureOperands(means, m.precisions.double(), log_scale, m.covariance_type)
    exponent = torch.frexp(x.detach().abs().amax(1))[1]
    s = torch.ldexp(torch.ones_like(x[:, 0]), (100 - exponent).clamp(max=0))[:, None]
    u = means * s[..., None] - (x * s)[:, None, :]
    g = precision_product(u, m)
    square = (u * g).sum(-1)
    c = (0.5 * square - log_scale * s * s).argmin(1)
    rows = torch.arange(len(x), device=x.device)
    u_c, g_c, square_c = u[rows, c][:, None], g[rows, c][:, None], square[rows, c]
    apart = (means - means[c][:, None]) * s[..., None]
    beside = _other_precisions(u_c, c, m)
    change = (apart * precision_product(u + u_c, m)).sum(-1) + (u_c * beside).sum(-1)
    logits = log_scale - log_scale[c][:, None] - 0.5 * change / s / s
    weights = logits.softmax(1)
    shift = (precision_product(apart, m) + beside) / s[..., None]
    shift = torch.where(weights[..., None] == 0.0, 0.0, shift)  # no component without weight adds inf * 0
    log_prob = log_scale[c] - 0.5 * square_c / s[:, 0] / s[:, 0] + logits.logsumexp(1)
    return Centred(log_prob, g_c[:, 0] / s, weights, shift, m)


def _other_precisions(u: Tensor, c: Tensor, m: MixtureOperands) -> Tensor:
    """(P_k - P_c) u for u [B, 1, d] and components c [B] -> [B, K, d]."""
    if m.covariance_type == "tied":
        return torch.zeros_like(u)
    apart = m.precisions - m.precisions[c][:, None]
    if m.covariance_type == "full":
        return (apart @ u[..., None])[..., 0]
    return (apart[..., None] if m.covariance_type == "spherical" else apart) * u


def with_far_rows(
    values: Tensor,
    rows: Tensor | None,
    x: Tensor,
    m: MixtureOperands,
    function: Callable[[Centred, Tensor], Tensor],
    again: Callable[[Tensor], Tensor],
) -> Tensor:
    """values with those of `rows` by `function`, which takes rows about their component, and their numbers.

    again: x -> values. Those with a gradient are made again, since overflow in a replaced row makes its gradient NaN.
    """
    if rows is None:
        return values
    if values.requires_grad:
        values = again(x.index_copy(0, rows, m.means[m.log_scale.argmax()].expand(len(rows), -1)))
    size = max(1, BLOCK_ELEMENTS // max(m.means.numel(), m.precisions.numel()))
    made = torch.cat([function(centred(x[part], m), part) for part in rows.split(size)])
    return values.index_copy(0, rows, made.to(values.dtype))


def _score_moment(weights: Tensor, g: Tensor, part: MixtureOperands) -> Tensor:
    return (weights[:, None, :] @ g)[:, 0]


def _far_score(far: Centred, _: Tensor) -> Tensor:
    return far.g + _score_moment(far.weights, far.shift, far.mixture)


def mixture_log_prob(x: Tensor, m: MixtureOperands) -> Tensor:
    """log pi(x) for x [B, d] -> [B]."""
    log_prob = posterior_means(x, m)[0]
    return with_far_rows(
        log_prob, far_rows(log_prob), x, m, lambda far, _: far.log_prob, partial(mixture_log_prob, m=m)
    )


def mixture_score(x: Tensor, m: MixtureOperands) -> Tensor:
    """grad log pi(x) for x [B, d] -> [B, d]."""
    log_prob, (score,) = posterior_means(x, m, _score_moment)
    return with_far_rows(score, far_rows(log_prob), x, m, _far_score, partial(mixture_score, m=m))


def score_and_hvp(x: Tensor, v: Tensor, m: MixtureOperands) -> tuple[Tensor, Tensor]:
    """grad log pi(x) and (hessian of log pi)(x) v, sharing the responsibilities."""

    def second_moment(weights: Tensor, g: Tensor, part: MixtureOperands, v: Tensor = v) -> Tensor:
        along = weights * (g @ v[:, :, None])[..., 0]
        return (along[:, None, :] @ g)[:, 0] - weighted_precision_product(weights, v, part)

    log_prob, (score, second) = posterior_means(x, m, _score_moment, second_moment)
    hvp = second - score * (score * v).sum(1, keepdim=True)

    def far_hvp(far: Centred, rows: Tensor) -> Tensor:
        along = v[rows].double()
        shift = _score_moment(far.weights, far.shift, far.mixture)
        second = second_moment(far.weights, far.shift, far.mixture, along)
        return second - shift * (shift * along).sum(1, keepdim=True)

    rows = far_rows(log_prob, -0.5 / torch.finfo(x.dtype).eps)
    if rows is None:
        return score, hvp
    score = with_far_rows(score, far_rows(log_prob), x, m, _far_score, partial(mixture_score, m=m))
    return score, with_far_rows(hvp, rows, x, m, far_hvp, partial(mixture_hvp, v=v, m=m))


def mixture_hvp(x: Tensor, v: Tensor, m: MixtureOperands) -> Tensor:
    """(hessian of log pi)(x) v for x, v [B, d] -> [B, d]."""
    return score_and_hvp(x, v, m)[1]


def mean_precision_diagonal(x: Tensor, m: MixtureOperands) -> Tensor:
    """p_j(x) = sum_k r_k(x) (P_k)_jj: [B, 1] for spherical, else [B, d]."""
    if m.covariance_type == "tied":
        return m.precisions.diagonal().expand_as(x)

    def moment(weights: Tensor, g: Tensor, part: MixtureOperands) -> Tensor:
        if part.covariance_type == "spherical":
            return (weights @ part.precisions)[:, None]
        diagonals = part.precisions if part.covariance_type == "diag" else part.precisions.diagonal(dim1=1, dim2=2)
        return weights @ diagonals

    log_prob, (rate,) = posterior_means(x, m, moment)

    def far_rate(far: Centred, _: Tensor) -> Tensor:
        return moment(far.weights, far.shift, far.mixture)

    return with_far_rows(rate, far_rows(log_prob), x, m, far_rate, partial(mean_precision_diagonal, m=m))


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
    """Exact draws [n, d]: m_k + L_k z with L_k L_k^T = Sigma_k and k by inversion of the weights.

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
