"""Trajectories under full covariances in more than a few dimensions: launches in each step, batched matrix products.

x_{n+1} = x_n + a_n score(x_n) + s_n z_n

v_{n+1} = s_n^2 + c^2 v_n,    c = 1 - a_n p,    p = sum_k r_k(x_0) diag(P_k)
H_{n+1} = rho_n H_n + [(1 - rho_n) z_n - rho_n a_n Hess(x_n) z_n] / s_n,    rho_n = c v_n / v_{n+1},    target = -H
"""

from __future__ import annotations

import torch
from torch import Tensor

from .mixture_full import mean_precision_diagonal, posterior_means
from .philox import philox_normal

NOISING = 0  # the stream of these normals


def simulate_full(
    outputs: tuple[Tensor, Tensor, Tensor],
    output: str,
    x0: Tensor,
    steps: Tensor,
    drift_scale: Tensor,
    noise_std: Tensor,
    mixture: tuple[Tensor, Tensor, Tensor],
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> None:
    """Fill x, second and third (see `simulate_small_kernel`), each [rows, d]; mixture: means, precisions, log_scale.

    Rows by descending last step, so that those under way are the first ones; their number in each step is read from
    the device once.
    """
    n_rows, dim = x0.shape
    signs = torch.ones_like(steps, dtype=x0.dtype)[:, None]
    rows = torch.arange(n_rows, device=x0.device)
    if antithetic:
        steps, rows, signs = torch.cat((steps, steps)), torch.cat((rows, rows)), torch.cat((signs, -signs))
    ordered, order = steps.sort(descending=True, stable=True)
    grid = torch.arange(len(drift_scale), device=x0.device)
    active = (len(order) - torch.searchsorted(ordered.flip(0).contiguous(), grid, right=True)).tolist()
    rows, signs = rows[order], signs[order]

    x = x0[rows]
    second, third = (torch.zeros_like(x) if output == "target" else x.clone()), torch.zeros_like(x)
    rate = mean_precision_diagonal(x, *mixture) if output == "target" else x
    for n, m in enumerate(active):
        if m == 0:
            break
        step = torch.full((), n, dtype=torch.int64, device=x.device)
        z = philox_normal(n_rows, dim, seed, step, NOISING, first_path, x.dtype, x.device)[rows[:m]] * signs[:m]
        now = x[:m]
        a, s = drift_scale[n], noise_std[n]
        if output == "target":
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
        if output == "transition":
            second[:m], third[:m] = mean, z
        x[:m] = mean + s * z
    if output == "target":
        second = -second
    outputs[0][order] = x
    if output != "state":
        outputs[1][order], outputs[2][order] = second, third
