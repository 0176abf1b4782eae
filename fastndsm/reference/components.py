"""The components of a Gaussian mixture: what describes them, and their densities and scores at a point."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

COVARIANCE_TYPES = ("spherical", "diag", "tied", "full")


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


class PrincipalAxes(NamedTuple):
    """Eigenvectors and eigenvalues of the precisions of tied and full covariances, in an op's compute dtype.

    rotations [d, d] tied, [K, d, d] full, an eigenvector a column; rates [d] or [K, d].
    """

    rotations: Tensor
    rates: Tensor


def component_scores(
    x: Tensor, m: MixtureOperands, ranges: Tensor | None = None, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Return log w_k N(x; m_k, Sigma_k) [B, K] and g_k = P_k (m_k - x) [B, K, d].

    ranges: int64 [B, 2], the components start..stop that a row has; others have log-density -inf. first: the number of
    m's first component.
    """
    diff = m.means - x[:, None, :]
    g = precision_product(diff, m)
    return within(m.log_scale - 0.5 * (diff * g).sum(-1), ranges, first), g


def within(values: Tensor, ranges: Tensor | None, first: int = 0, other: float = -math.inf) -> Tensor:
    """Return values [B, K] with `other` at the components that are not in a row's range; see `component_scores`."""
    if ranges is None:
        return values
    k = torch.arange(first, first + values.shape[1], device=values.device)
    return values.masked_fill((k < ranges[:, :1]) | (k >= ranges[:, 1:]), other)


def precision_product(diff: Tensor, m: MixtureOperands) -> Tensor:
    """Return P_k diff_k [B, K, d]."""
    if m.covariance_type == "spherical":
        return m.precisions[:, None] * diff
    if m.covariance_type == "diag":
        return m.precisions * diff
    if m.covariance_type == "tied":
        return diff @ m.precisions
    return torch.einsum("kij,bkj->bki", m.precisions, diff)


def weighted_precision_product(weights: Tensor, v: Tensor, m: MixtureOperands) -> Tensor:
    """Return sum_k weights_k P_k v for weights [B, K], v [B, d] -> [B, d]."""
    if m.covariance_type == "spherical":
        return (weights @ m.precisions)[:, None] * v
    if m.covariance_type == "diag":
        return (weights @ m.precisions) * v
    if m.covariance_type == "tied":
        return weights.sum(1, keepdim=True) * (v @ m.precisions)
    return torch.einsum("bk,kij,bj->bi", weights, m.precisions, v)
