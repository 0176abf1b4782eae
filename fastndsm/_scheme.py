"""Coefficients of the reverse process where the network is evaluated at some of the grid's times alone.

With s = grad log pi + r the reverse SDE is Langevin towards pi plus a forcing, and the mixture cancels from the flow:

    sde   dY = [1/2 sigma^2 grad log pi(Y) + sigma^2 r(Y, t)] |dt| + sigma dW
    ode   dY = 1/2 sigma^2 r(Y, t) |dt|

The mixture's part is stepped on the process's own grid; between two evaluations of the network one of these is held, or
extrapolated along a coordinate from the last two evaluations:

    score   r itself, along w = int sigma^2 dt / sqrt(v).
    data    D = y + v r, along log E. Its part of the drift, sigma^2 (D - y) / v, is integrated exactly:
            y -> D + c (y - D), c = E(t_n) / E(t_{n+1}), log E = int sigma^2 dt / v, with noise and the mixture's part
            under the same integrating factor. For one spherical component the mixture's part is linear and integrated
            exactly, too; D is then E[x_0 | y], and this is SDE-DPM-Solver++ (2M), or DPM-Solver++ (2M) for the flow
            (Lu et al., arXiv 2211.01095).
    linear  F = r + omega y of r(Y, t) = (v(t_e) / v(t))^(2/3) (F - omega Y), along -log v: an exponential Rosenbrock
            step. omega = r . s / d, kept in 0..1/v: by Stein's identity its mean is that of -div r / d, so that each
            sample brings the slope of its residual along. Below t_1, where no network is trained, v(t) is v(t_1).
            Ours; the exponent was chosen by measurement. r = 0 leaves Langevin dynamics as they are.

Every step is, with x = omega R and f(x) = (1 - exp(-x)) / x (omega = 0 but for `linear`),

    y_n = A exp(-x) y_{n+1} + f(x) [B grad log pi(y_{n+1}) + C (held + X slope)] + S sqrt(f(2 x)) xi.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import _checks

METHODS = ("sde", "ode")
PREDICTIONS = ("data", "score", "linear")
GRIDS = {"uniform": 1, "quadratic": 2, "cubic": 3}
STEEP = 4.0  # of log E over a step, beyond which its integrals need the closed form
NODES = 32
GROWTH = 2.0 / 3.0  # of r with 1 / v at a fixed point, in `linear`


class Schedule(NamedTuple):
    """M evaluations and what lies between them.

    bounds int64 [M+1]: evaluation k is at t_n, n = bounds[k], and serves the steps down to bounds[k+1]. coefficients
    [6, bounds[0]]: rows A, B, C, X, S, R. evaluations [M, 6]: what is held is e_0 y + e_1 grad log pi(y) + e_2 r +
    omega y; its slope e_3 (held - omega y - e_4 (before - omega_before y)), `before` what was held last; omega = r . s
    / d, kept in 0..e_5.
    """

    bounds: Tensor
    coefficients: Tensor
    evaluations: Tensor


@dataclass(frozen=True)
class ReverseScheme:
    """A method and a prediction on a process's grid, in float64.

    steps [5, N]: rows A, B, C, S, R. position [N]: of each step along the coordinate of extrapolation, and at [N+1]: of
    each grid point. gains [N+1, 3]: of y, grad log pi(y) and r in what is held there. scale [N+1]: what C and R are
    multiplied by for an evaluation there. limit [N+1]: of omega. variance [N+1]: v. endless: whether the coordinate is
    infinite at t_0.
    """

    steps: Tensor
    position: Tensor
    at: Tensor
    gains: Tensor
    scale: Tensor
    limit: Tensor
    variance: Tensor
    endless: bool

    def coefficients(self, first: int, last: int) -> Tensor:
        """Return the coefficients [6, N] for one evaluation at t_first; steps outside first..last mean nothing."""
        return self._table(self.position - self.at[first], self.scale[first])

    def schedule(self, indices: Sequence[int], order: int) -> Schedule:
        """Return the schedule of evaluations at these grid points, from the latest, which is N or where one starts."""
        device = self.steps.device
        bounds = torch.tensor([*indices, 0], dtype=torch.int64, device="cpu")
        origin = torch.repeat_interleave(bounds[:-1].flip(0), (bounds[:-1] - bounds[1:]).flip(0)).to(device)
        evaluated = bounds[:-1].to(device)
        inverse_gap, ratio = torch.zeros_like(self.at[evaluated]), torch.ones_like(self.at[evaluated])
        ratio[1:] = self.scale[evaluated[:-1]] / self.scale[evaluated[1:]]
        if order == 2:
            inverse_gap[1:] = 1.0 / self.at[evaluated].diff()
            if self.endless:
                inverse_gap[-1] = 0.0
        coefficients = self._table(self.position[: len(origin)] - self.at[origin], self.scale[origin])
        row = self.gains[evaluated], inverse_gap[:, None], ratio[:, None], self.limit[evaluated, None]
        return Schedule(bounds.to(device), coefficients, torch.cat(row, dim=1))

    def _table(self, position: Tensor, scale: Tensor) -> Tensor:
        decay, mixture, weight, std, rate = self.steps[:, : len(position)]
        return torch.stack([decay, mixture, scale * weight, position, std, scale * rate])


def plain_coefficients(drift_scale: Tensor, noise_std: Tensor, method: str) -> Tensor:
    """Return the coefficients [6, N] of Euler-Maruyama steps with the whole score held: y - a grad log pi + s^2 score.

    For the flow with half of the score's part, and without noise; the SDE has none on its last step, n = 0.
    """
    one, zero = torch.ones_like(drift_scale), torch.zeros_like(drift_scale)
    squared = noise_std**2
    if method == "ode":
        return torch.stack([one, -drift_scale, 0.5 * squared, zero, zero, zero])
    return torch.stack([one, -drift_scale, squared, zero, _silent_last(noise_std), zero])


def _silent_last(noise_std: Tensor) -> Tensor:
    return torch.cat([noise_std.new_zeros(1), noise_std[1:]])


@cache
def _gauss_legendre() -> tuple[list[float], list[float]]:
    """Return nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    return (0.5 * (nodes + 1.0)).tolist(), (0.5 * weights).tolist()


def reverse_scheme(
    noise_std: Tensor, growth: Tensor, method: str, prediction: str, variance: float | None = None
) -> ReverseScheme:
    """Return the scheme of a process with s_n = noise_std [N] whose reference forgets at the rate growth_n / dt_n.

    Args:
        growth: int 2 p dt over each step [N], p the slowest rate of the drift: v' = sigma^2 - 2 p v.
        variance: that of the reference, if it is one spherical component.
    """
    squared = noise_std**2
    origin = torch.zeros_like(squared[:1])
    forgotten = torch.cat([origin, growth.cumsum(0)])
    flat = growth.abs() < 1e-12
    rate = torch.where(flat, torch.ones_like(growth), growth)
    added = squared * torch.where(flat, torch.ones_like(growth), rate.expm1() / rate)
    log_e = torch.cat([origin - torch.inf, (forgotten[:-1] + added.log()).logcumsumexp(0)])
    v = (log_e - forgotten).exp()
    low = v[:-1]
    nodes, weights = (torch.tensor(part, dtype=torch.float64, device=v.device)[:, None] for part in _gauss_legendre())

    def variance_inside(u: Tensor) -> Tensor:
        return (-growth * u).exp() * low + squared * torch.where(flat, u, -torch.expm1(-rate * u) / rate)

    zero, one = torch.zeros_like(v), torch.ones_like(v)
    if prediction == "score":
        # int sigma^2 dt / sqrt(v), by u = x^2: finite also where v starts from 0
        w = torch.cat([origin, (weights * 2.0 * nodes * squared * variance_inside(nodes**2).rsqrt()).sum(0).cumsum(0)])
        steps = [one[1:], 0.5 * squared, squared, _silent_last(noise_std), zero[1:]]
        if method == "ode":
            steps = [one[1:], zero[1:], 0.5 * squared, zero[1:], zero[1:]]
        gains = torch.stack([zero, zero, one], dim=1)
        return ReverseScheme(torch.stack(steps), 0.5 * (w[:-1] + w[1:]), w, gains, one, zero, v, endless=False)

    if prediction == "linear":
        # int sigma^2 v^-2/3 dt; on the last step with v(t_1): no network is trained below t_1, nor known to grow there
        inside = variance_inside(nodes)
        inside[:, 0] = v[1]
        density = weights * squared * inside**-GROWTH
        forcing = density.sum(0)
        position = -(density * inside.log()).sum(0) / forcing
        steps = [one[1:], 0.5 * squared, forcing, _silent_last(noise_std), forcing]
        if method == "ode":
            steps = [one[1:], zero[1:], 0.5 * forcing, zero[1:], 0.5 * forcing]
        gains = torch.stack([zero, zero, one], dim=1)
        return ReverseScheme(torch.stack(steps), position, -v.log(), gains, v**GROWTH, 1.0 / v, v, endless=True)

    fall = log_e.diff()  # infinite on the last step, whose end is D itself
    c = (-fall).exp()
    alpha = (-0.5 * forgotten).exp()
    gains = torch.stack([one, zero, v], dim=1)
    if variance is not None:
        gains = torch.stack([one, variance * (1.0 - alpha), v / alpha], dim=1)
        ratio = alpha[:-1] / alpha[1:]
        # of y - m, once with and once without noise in the way
        kept, taken = (c * ratio, 1.0 - c) if method == "sde" else (c.sqrt() * ratio, 1.0 - c.sqrt())
        taken = alpha[:-1] * taken
        noise = (low * (1.0 - c)).sqrt() if method == "sde" else zero[1:]
        steps = [1.0 - taken, variance * (1.0 - kept - taken), taken, noise]
    elif method == "ode":
        steps = [c.sqrt(), zero[1:], 1.0 - c.sqrt(), zero[1:]]
    else:
        ratio = (-growth * nodes).exp() * low / variance_inside(nodes)  # E(t_n) / E(t) inside the step
        mixture, noise = (weights * ratio).sum(0), (weights * ratio**2).sum(0)
        # steep steps, whose integrand is a narrow peak: in closed form, by partial fractions
        steep = fall > STEEP
        rest = squared - growth * low
        rest = torch.where(steep & (rest > 0), rest, torch.ones_like(rest))
        excess = torch.where(low > 0, fall - growth, torch.zeros_like(fall))
        mixture = torch.where(steep, low * excess / rest, mixture)
        noise = torch.where(steep, low / rest * (1.0 - c - growth * low * excess / rest), noise)
        steps = [c, 0.5 * squared * mixture, 1.0 - c, (squared * noise).clamp(min=0.0).sqrt()]
    middle = 0.5 * (log_e[:-1] + log_e[1:])
    position = torch.cat([log_e[1:2], middle[1:]])
    return ReverseScheme(torch.stack([*steps, zero[1:]]), position, log_e, gains, one, zero, v, endless=True)


def evaluation_indices(times: Tensor, n_evaluations: int | None, grid: str | Sequence[float] | Tensor) -> list[int]:
    """Return the grid points [M] where the network is evaluated, the last one, N, first.

    Args:
        times: of the process [N+1].
        grid: "uniform", "quadratic", "cubic" (t_j = T (j / M)^p), or the times themselves, T among them; each is taken
            to the nearest of the process's that is left.
    """
    values = times.detach().to("cpu", torch.float64)
    n_steps = len(values) - 1
    if isinstance(grid, str):
        power = GRIDS[_checks.choice("grid", grid, tuple(GRIDS))]
        count = n_steps if n_evaluations is None else _checks.count("n_evaluations", n_evaluations)
        if count > n_steps:
            raise ValueError(
                f"n_evaluations: expected at most {n_steps}, the process's steps, found {count}; "
                "give a process of the same law with more n_steps"
            )
        wanted = float(values[-1]) * (torch.arange(1, count + 1, dtype=torch.float64, device="cpu") / count) ** power
    else:
        wanted = _times_of_evaluation(grid, float(values[-1]))
        if n_evaluations not in (None, len(wanted)):
            raise ValueError(f"n_evaluations: expected {len(wanted)}, the times of grid, found {n_evaluations}")
        if len(wanted) > n_steps:
            raise ValueError(f"grid: expected at most {n_steps} times, the process's steps, found {len(wanted)}")
    right = torch.searchsorted(values, wanted).clamp(1, n_steps)
    nearest = torch.where(wanted - values[right - 1] < values[right] - wanted, right - 1, right).tolist()
    chosen: list[int] = []
    for j, n in enumerate(nearest):
        lowest = chosen[-1] + 1 if chosen else 1
        chosen.append(min(max(n, lowest), n_steps - (len(nearest) - 1 - j)))
    return chosen[::-1]


def _times_of_evaluation(grid: Sequence[float] | Tensor, horizon: float) -> Tensor:
    try:
        wanted = torch.as_tensor(grid, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"grid: expected {', '.join(map(repr, GRIDS))} or times, found {grid!r}") from error
    if wanted.ndim != 1 or len(wanted) == 0:
        raise ValueError(f"grid: expected times [M] with M >= 1, found shape {tuple(wanted.shape)}")
    wanted = _checks.finite("grid", wanted).sort().values
    if not bool((wanted.diff() > 0).all()) or float(wanted[0]) <= 0.0:
        raise ValueError(f"grid: expected distinct positive times, found {wanted.tolist()[:5]}...")
    if abs(float(wanted[-1]) - horizon) > 1e-6 * horizon:
        raise ValueError(f"grid: expected T = {horizon:.6g} as its latest time, found {float(wanted[-1]):.6g}")
    return wanted
