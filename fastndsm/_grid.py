"""The time grid 0 = t_0 < ... < t_N = T of a noising process, and the variance of what it adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks

ROUNDING = 1e-6  # of T, where the grid was given in float32


def time_grid(horizon: float | None, n_steps: int, grid: str | Sequence[float] | Tensor) -> Tensor:
    """Return the N+1 times of a grid, float64; the horizon may be None where `grid` gives the times."""
    if isinstance(grid, str):
        _checks.choice("grid", grid, ("uniform", "quadratic"))
        horizon = _checks.positive("T", horizon)
        fractions = torch.arange(_checks.count("n_steps", n_steps) + 1, dtype=torch.float64, device="cpu") / n_steps
        return horizon * (fractions if grid == "uniform" else fractions**2)
    try:
        times = torch.as_tensor(grid, dtype=torch.float64, device="cpu").detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"grid: expected 'uniform', 'quadratic' or N+1 times, found {grid!r}") from error
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"grid: expected N+1 times with N >= 1, found shape {tuple(times.shape)}")
    _checks.finite("grid", times)
    if float(times[0]) != 0.0 or not bool((times.diff() > 0).all()):
        raise ValueError(f"grid: expected times that increase from 0, found {times.tolist()[:5]}...")
    if horizon is not None and abs(float(times[-1]) - _checks.positive("T", horizon)) > ROUNDING * horizon:
        raise ValueError(f"T: expected the last time of grid, {float(times[-1])}, found {horizon}")
    return times


def variance_recursion(noise_std: Tensor, contraction: Tensor) -> Tensor:
    """Return v_{n+1} = s_n^2 + contraction_n^2 v_n from v_0 = 0, [N]."""
    values, v = [], noise_std.new_zeros(())
    for s, c in zip(noise_std, contraction, strict=True):
        v = s**2 + c**2 * v
        values.append(v)
    return torch.stack(values)
