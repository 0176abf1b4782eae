"""The time grid 0 = t_0 < ... < t_N = T of a noising process, and the variance of what it adds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import _checks

STEPS = 100  # where no number is given
ROUNDING = 1e-6  # of T, where the grid was given in float32
# Of a stiff grid. The first step adds noise of variance 0.4 lambda_min / (2 m + 1), 0.4% of the narrowest.
QUADRATIC_STEPS = 50


def time_grid(horizon: float | None, n_steps: int | None, grid: str | Sequence[float] | Tensor) -> Tensor:
    """Return the N+1 times of a grid, float64; the horizon may be None where `grid` gives the times.

    n_steps: N; None is STEPS. `stiff_grid` is for a process that knows how long its steps may be.
    """
    if isinstance(grid, str):
        _checks.choice("grid", grid, ("uniform", "quadratic"))
        horizon = _checks.positive("T", horizon)
        n = _checks.count("n_steps", STEPS if n_steps is None else n_steps)
        fractions = torch.arange(n + 1, dtype=torch.float64, device="cpu") / n
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


def stiff_grid(horizon: float | None, n_steps: int | None, longest: float) -> Tensor:
    """Return N+1 times, float64: t_n = c n^2 up to step m, then N - m uniform steps, none above `longest`.

    The steps c (2n + 1) of the first part grow to the uniform step w at n = m, so that T = w (m^2 / (2m + 1) + N - m).
    n_steps: N, of which as many are quadratic as leave w <= longest; None: as many as QUADRATIC_STEPS of them take.
    """
    horizon = _checks.positive("T", horizon)

    def needed(m: int) -> int:
        return max(m, math.ceil(horizon / longest * (1.0 - ROUNDING) + m - m * m / (2 * m + 1)))

    if n_steps is None:
        m = QUADRATIC_STEPS
        n_steps = needed(m)
    elif _checks.count("n_steps", n_steps) < needed(1):
        raise ValueError(
            f"n_steps: expected at least {needed(1)} with grid 'stiff', whose steps are {longest:.4g} at most, "
            f"and T = {horizon:.6g}, found {n_steps}; None takes as many as are needed"
        )
    else:
        m = max(m for m in range(1, n_steps + 1) if needed(m) <= n_steps)
    step = horizon / (m * m / (2 * m + 1) + n_steps - m)
    counts = torch.arange(n_steps + 1, dtype=torch.float64, device="cpu")
    joined = step * (m * m / (2 * m + 1) + counts - m)
    times = torch.where(counts <= m, step / (2 * m + 1) * counts**2, joined)
    times[-1] = horizon
    return times


def variance_recursion(noise_std: Tensor, contraction: Tensor) -> Tensor:
    """Return v_{n+1} = s_n^2 + contraction_n^2 v_n from v_0 = 0, [N]."""
    values, v = [], noise_std.new_zeros(())
    for s, c in zip(noise_std, contraction, strict=True):
        v = s**2 + c**2 * v
        values.append(v)
    return torch.stack(values)
