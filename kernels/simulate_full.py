"""Trajectories under full covariances in more than 32 dimensions: launches in each step, batched matrix products.

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
    records: Tensor | None,
    mixture: tuple[Tensor, Tensor, Tensor],
    axes: Axes | None,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> None:
    """Fill x, second and third (see `simulate_small_kernel`), each [rows, d]; mixture: means, precisions, log_scale.

    axes: of the components, for the target. records: as there, [B, R] beside steps [B, R], or None and steps [B].

    Rows by descending last step, so that those under way are the first ones; their number in each step is read from
    the device once.
    """
    n_rows, dim = x0.shape
    signs = torch.ones_like(x0[:, :1])
    rows = torch.arange(n_rows, device=x0.device)
    if antithetic:
        steps, rows, signs = torch.cat((steps, steps)), torch.cat((rows, rows)), torch.cat((signs, -signs))
    ordered, order = (steps if records is None else steps[:, -1]).sort(descending=True, stable=True)
    grid = torch.arange(len(drift_scale) + 1, device=x0.device)
    # the output row of each state, and of each record before the last one with its state and step
    to = order
    if records is not None:
        n_records = records.shape[1]
        places = torch.arange(len(steps), device=x0.device)[:, None] * n_records + records[rows]
        to = places[order, -1]
        taken, which = steps[order, :-1].flatten().sort(stable=True)
        places, states = places[order, :-1].flatten()[which], which // (n_records - 1)
        ends = [0, *torch.searchsorted(taken, grid, right=True).tolist()]
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
        if records is not None:
            due = slice(ends[n], ends[n + 1])
            for out, state in zip(outputs, (x, second, third), strict=True):
                out[places[due]] = state[states[due]]
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
    outputs[0][to] = x
    if output != "state":
        outputs[1][to], outputs[2][to] = second, third
    if output == "target":
        of_row = torch.empty_like(component)
        of_row[order] = component
        of_row = of_row.repeat_interleave(len(outputs[0]) // len(order))
        back = turn(-outputs[1], outputs[2], rotations, of_row, back=True)
        outputs[1].copy_(back[0]), outputs[2].copy_(back[1])
