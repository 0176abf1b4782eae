"""Solvers of the reverse process and of flows, each at a number of network evaluations.

A denoiser D(x, sigma) estimates x_0 of x = x_0 + sigma n: EDM's coordinates. Linear VP noising and the Gaussian path of
flow matching become denoisers by scaling x, so that one set of solvers serves all (Karras et al. 2022, section 2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from .baselines import SIGMA_MAX, SIGMA_MIN, normal

Function = Callable[[Tensor, Tensor], Tensor]  # (x [n, d], time or noise [n]) -> [n, d]
RHO = 7.0
HEUN, SDE_1, SDE_2M, ODE_2M = "Heun", "SDE-DPM-Solver++ 1", "SDE-DPM-Solver++ 2M", "DPM-Solver++ 2M"
DENOISING = (HEUN, SDE_1, SDE_2M, ODE_2M)
EULER, MIDPOINT, AB2 = "Euler", "midpoint", "AB2"
FLOWING = (EULER, HEUN, MIDPOINT, AB2)


def noise_levels(steps: int, largest: float = SIGMA_MAX, smallest: float = SIGMA_MIN) -> list[float]:
    """Return sigma_0 > ... > sigma_steps = 0 by the schedule of Karras et al. 2022 (rho = 7)."""
    a, b = largest ** (1 / RHO), smallest ** (1 / RHO)
    return [(a + i / max(1, steps - 1) * (b - a)) ** RHO for i in range(steps)] + [0.0]


def steps_of(solver: str, evaluations: int) -> int:
    """Return the steps that a solver takes at no more than so many evaluations."""
    if solver == HEUN:  # two a step, but for the last
        return (evaluations + 1) // 2
    return max(1, evaluations // 2) if solver == MIDPOINT else evaluations


def denoise(solver: str, denoiser: Function, x: Tensor, sigmas: list[float], generator: Generator) -> Tensor:
    """Solve from x [n, d] at sigmas[0] down to the last.

    Sources: Karras et al. 2022, algorithm 1 (Heun); Lu et al. 2022, DPM-Solver++ (2M and SDE).
    """
    last: Tensor | None = None
    width = math.inf  # of the last step in log sigma
    for sigma, after in itertools.pairwise(sigmas):
        x0 = denoiser(x, x.new_full((len(x),), sigma))
        if after == 0.0:
            return x0
        ratio = after / sigma
        if solver == HEUN:
            there = torch.lerp(x0, x, ratio)
            x = x + (after - sigma) * 0.5 * ((x - x0) / sigma + (there - denoiser(there, _like(x, after))) / after)
            continue
        h = -math.log(ratio)
        change = 0.0 if last is None else (x0 - last) * (0.5 * h / width)
        if solver == ODE_2M:
            x = torch.lerp(x0 + change, x, ratio)
        elif solver in (SDE_1, SDE_2M):
            x = torch.lerp(x0 + (change if solver == SDE_2M else 0.0), x, ratio**2)
            x = x + after * math.sqrt(1.0 - ratio**2) * normal(x, generator)
        else:
            raise ValueError(f"solver: expected one of {DENOISING}, found {solver!r}")
        last, width = x0, h
    return x


def flow(solver: str, velocity: Function, x: Tensor, steps: int) -> Tensor:
    """Solve dx/dt = v(x, t) from 0 to 1 in equal steps; Heun's last step is one of Euler."""
    dt, last = 1.0 / steps, x
    for i in range(steps):
        t = i * dt
        v = velocity(x, _like(x, t))
        if solver == HEUN and i + 1 < steps:
            x = x + 0.5 * dt * (v + velocity(x + dt * v, _like(x, t + dt)))
        elif solver == MIDPOINT:
            x = x + dt * velocity(x + 0.5 * dt * v, _like(x, t + 0.5 * dt))
        elif solver == AB2 and i > 0:
            x = x + dt * (1.5 * v - 0.5 * last)
        elif solver in FLOWING:
            x = x + dt * v
        else:
            raise ValueError(f"solver: expected one of {FLOWING}, found {solver!r}")
        last = v
    return x


def of_score(score_net: nn.Module) -> Function:
    """Return the denoiser of a score under linear VP noising of rate 1/2: sigma^2 = e^t - 1, x scaled by e^(t/2)."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        t = sigma.square().log1p()
        scale = (-0.5 * t).exp()[:, None]
        return x + sigma.square()[:, None] * scale * score_net(x * scale, t)

    return denoiser


def of_velocity(velocity: nn.Module) -> Function:
    """Return the denoiser of a flow from N(0, I): x_t = t (x_1 + sigma x_0), sigma = (1 - t) / t."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        t = 1.0 / (1.0 + sigma)
        there = t[:, None] * x
        return there + (1.0 - t)[:, None] * velocity(there, t)

    return denoiser


def _like(x: Tensor, value: float) -> Tensor:
    return x.new_full((len(x),), value)
