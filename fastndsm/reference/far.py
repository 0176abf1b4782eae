"""Points so far from every component that their densities overflow, or that nothing is left of H v.

There all terms of the posterior means are alike but for their last bits. So they are taken in float64 about the
component of the largest density, and each difference before it is rounded.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from .components import MixtureOperands, precision_product, within

BLOCK_ELEMENTS = 1 << 22  # ceiling on the values of a block of rows
near_alone = contextvars.ContextVar("near_alone", default=False)  # whether this is inside `near_rows_alone`


@contextlib.contextmanager
def near_rows_alone() -> Iterator[None]:
    """Take every row for near: while operators are traced, no values may be asked for."""
    token = near_alone.set(True)
    try:
        yield
    finally:
        near_alone.reset(token)


def far_rows(log_prob: Tensor, below: float = -math.inf) -> Tensor | None:
    """Find rows whose log-density is at most `below`, or NaN; None where there are none, or asking would stall."""
    if near_alone.get() or log_prob.device.type != "cpu" or torch._C._functorch.peek_interpreter_stack() is not None:
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


def centred(x: Tensor, m: MixtureOperands, ranges: Tensor | None = None) -> Centred:
    """Centre rows: with u_k = m_k - x and c the component of the largest density, differences come before rounding:

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
    c = within(0.5 * square - log_scale * s * s, ranges, other=math.inf).argmin(1)
    rows = torch.arange(len(x), device=x.device)
    u_c, g_c, square_c = u[rows, c][:, None], g[rows, c][:, None], square[rows, c]
    apart = (means - means[c][:, None]) * s[..., None]
    beside = _other_precisions(u_c, c, m)
    change = (apart * precision_product(u + u_c, m)).sum(-1) + (u_c * beside).sum(-1)
    logits = within(log_scale - log_scale[c][:, None] - 0.5 * change / s / s, ranges)
    weights = logits.softmax(1)
    shift = (precision_product(apart, m) + beside) / s[..., None]
    shift = torch.where(weights[..., None] == 0.0, 0.0, shift)  # no component without weight adds inf * 0
    log_prob = log_scale[c] - 0.5 * square_c / s[:, 0] / s[:, 0] + logits.logsumexp(1)
    return Centred(log_prob, g_c[:, 0] / s, weights, shift, m)


def _other_precisions(u: Tensor, c: Tensor, m: MixtureOperands) -> Tensor:
    """Return (P_k - P_c) u for u [B, 1, d] and components c [B] -> [B, K, d]."""
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
    ranges: Tensor | None = None,
) -> Tensor:
    """Replace the values of `rows` by those of `function`, which takes rows about their component, and their numbers.

    again: x -> values. Those with a gradient are made again, since overflow in a replaced row makes its gradient NaN.
    """
    if rows is None:
        return values
    if values.requires_grad:
        heaviest = within(m.log_scale.expand(len(rows), -1), None if ranges is None else ranges[rows]).argmax(1)
        values = again(x.index_copy(0, rows, m.means[heaviest]))
    size = max(1, BLOCK_ELEMENTS // max(m.means.numel(), m.precisions.numel()))
    parts = [(part, None if ranges is None else ranges[part]) for part in rows.split(size)]
    made = torch.cat([function(centred(x[part], m, own), part) for part, own in parts])
    return values.index_copy(0, rows, made.to(values.dtype))
