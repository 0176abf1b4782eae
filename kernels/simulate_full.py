"""Trajectories under full covariances in more than a few dimensions: launches in each step, batched matrix products.

x_{n+1} = x_n + a_n score(x_n) + s_n z_n

v_{n+1} = s_n^2 + c^2 v_n,    c = 1 - a_n p,    p = sum_k r_k(x_0) diag(P_k)
H_{n+1} = rho_n H_n + [(1 - rho_n) z_n - rho_n a_n Hess(x_n) z_n] / s_n,    rho_n = c v_n / v_{n+1},    target = -H
"""

from __future__ import annotations

import torch
from torch import Tensor

from .mixture_full import BLOCK_ELEMENTS, FLOOR, posterior_means
from .philox import philox_normal
from .precision_product import precision_product

TRANSITION, TARGET = 1, 2
NOISING = 0  # the stream of these normals


def simulate_full(
    outputs: tuple[Tensor, Tensor, Tensor],
    output: int,
    x0: Tensor,
    steps: Tensor,
    drift_scale: Tensor,
    noise_std: Tensor,
    mixture: tuple[Tensor, Tensor, Tensor],
    seed: Tensor,
    first_path: int,
    mirrored: bool,
) -> None:
    """Fill x, second and third (see `simulate_small_kernel`), each [rows, d]; mixture: means, precisions, log_scale.

    Rows by descending last step, so that those under way are the first ones; their number in each step is read from
    the device once.
    """
    n_rows, dim = x0.shape
    signs = torch.ones_like(steps, dtype=x0.dtype)[:, None]
    rows = torch.arange(n_rows, device=x0.device)
    if mirrored:
        steps, rows, signs = torch.cat((steps, steps)), torch.cat((rows, rows)), torch.cat((signs, -signs))
    ordered, order = steps.sort(descending=True, stable=True)
    grid = torch.arange(len(drift_scale), device=x0.device)
    active = (len(order) - torch.searchsorted(ordered.flip(0).contiguous(), grid, right=True)).tolist()
    rows, signs = rows[order], signs[order]

    x = x0[rows]
    second, third = (torch.zeros_like(x) if output == TARGET else x.clone()), torch.zeros_like(x)
    rate = mean_precision_diagonal(x, *mixture) if output == TARGET else x
    for n, m in enumerate(active):
        if m == 0:
            break
        step = torch.full((), n, dtype=torch.int64, device=x.device)
        z = philox_normal(n_rows, dim, seed, step, NOISING, first_path, x.dtype, x.device)[rows[:m]] * signs[:m]
        now = x[:m]
        a, s = drift_scale[n], noise_std[n]
        if output == TARGET:
            _, score, product = posterior_means(now, z, *mixture, 2)
            c = 1.0 - a * rate[:m]
            v = third[:m]
            v_next = s**2 + c**2 * v
            rho = c * v / v_next
            second[:m] = rho * second[:m] + ((1.0 - rho) * z - rho * a * product) / s
            third[:m] = v_next
        else:
            _, score, _ = posterior_means(now, None, *mixture, 1)
        mean = now + a * score
        if output == TRANSITION:
            second[:m], third[:m] = mean, z
        x[:m] = mean + s * z
    if output == TARGET:
        second = -second
    outputs[0][order] = x
    if output in (TRANSITION, TARGET):
        outputs[1][order], outputs[2][order] = second, third


def mean_precision_diagonal(x: Tensor, means: Tensor, precisions: Tensor, log_scale: Tensor) -> Tensor:
    """p_j(x) = sum_k r_k(x) (P_k)_jj [B, d], online over blocks of components."""
    block = max(1, BLOCK_ELEMENTS // max(1, x.numel()))
    diagonals = precisions.diagonal(dim1=1, dim2=2)
    maximum = x.new_full((x.shape[0],), torch.finfo(x.dtype).min)
    total, sums = torch.zeros_like(maximum), torch.zeros_like(x)
    for start in range(0, len(means), block):
        part = slice(start, start + block)
        g = precision_product(x, precisions[part], means[part])  # [k, B, d]
        squares = torch.linalg.vecdot(means[part, None, :] - x, g)
        logits = torch.add(log_scale[part, None], squares, alpha=-0.5)
        peak = torch.maximum(maximum, logits.amax(0))
        shrink = (maximum - peak).clamp_(min=FLOOR).exp_()
        weights = (logits - peak).clamp_(min=FLOOR).exp_()
        total = total * shrink + weights.sum(0)
        sums = sums * shrink[:, None] + (weights[:, :, None] * diagonals[part, None, :]).sum(0)
        maximum = peak
    return sums / total[:, None]
