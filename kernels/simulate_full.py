"""Trajectories under full covariances in more than a few dimensions: launches in each step, batched matrix products.

x_{n+1} = x_n + a_n score(x_n) + s_n z_n

v_{n+1} = s_n^2 + c^2 v_n,    c = 1 - a_n p
H_{n+1} = rho_n H_n + [(1 - rho_n) z_n - rho_n a_n Hess(x_n) z_n] / s_n,    rho_n = c v_n / v_{n+1},    target = -H

along the principal axes of the component that x_0 is in, p its precisions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .mixture_full import heaviest_component, posterior_means
from .operands import Axes
from .philox import philox_normal
from .turning import turn

NOISING = 0  # the stream of these normals


def simulate_full(
    outputs: tuple[Tensor, Tensor, Tensor],
    output: str,
    x0: Tensor,
    steps: Tensor,
    drift_scale: Tensor,
    noise_std: Tensor,
    mixture: tuple[Tensor, Tensor, Tensor],
    axes: Axes | None,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> None:
    """Fill x, second and third (see `simulate_small_kernel`), each [rows, d]; mixture: means, precisions, log_scale.

    axes: of the components, for the target.

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
    component, rate, rotations = order, x, x
    if output == "target":
        assert axes is not None
        component = heaviest_component(x, *mixture)
        rate, rotations = axes.rates[component], axes.rotations.contiguous()
    for n, m in enumerate(active):
        if m == 0:
            break
        step = torch.full((), n, dtype=torch.int64, device=x.device)
        z = philox_normal(n_rows, dim, seed, step, NOISING, first_path, x.dtype, x.device)[rows[:m]] * signs[:m]
        now = x[:m]
        a, s = drift_scale[n], noise_std[n]
        if output == "target":
            _, score, product = posterior_means(now, z, *mixture, 2)
            assert product is not None
            turned, product = turn(z, product, rotations, component[:m])
            c = 1.0 - a * rate[:m]
            v = third[:m]
            v_next = s**2 + c**2 * v
            rho = c * v / v_next
            second[:m] = rho * second[:m] + ((1.0 - rho) * turned - rho * a * product) / s
            third[:m] = v_next
        else:
            _, score, _ = posterior_means(now, None, *mixture, 1)
        mean = now + a * score
        if output == "transition":
            second[:m], third[:m] = mean, z
        x[:m] = mean + s * z
    if output == "target":
        second, third = turn(-second, third, rotations, component, back=True)
    outputs[0][order] = x
    if output != "state":
        outputs[1][order], outputs[2][order] = second, third
