"""Euler-Maruyama noising of dX = F dt + sigma dW, and the path estimator's target accumulated along the way.

    mean_n = x_n + a_n grad log pi(x_n),    x_{n+1} = mean_n + s_n z_n

    v_{n+1} = s_n^2 + (1 - a_n p)^2 v_n,    rho_n = (1 - a_n p) v_n / v_{n+1},    v_0 = 0
    H_{n+1} = rho_n H_n + [(1 - rho_n) z_n - rho_n a_n Hess(x_n) z_n] / s_n,      H_0 = 0,    target = -H

rho may be any matrix that depends on x_0 and n alone. With spherical and diag covariances it is diagonal, of
p_j = sum_k r_k(x_0) (P_k)_jj. With tied and full ones it is diagonal along the principal axes U of the component that
x_0 is in: the recursion is that of U^T H, with U^T z and U^T Hess z and the precisions p_j along these axes. For K = 1
it is classical denoising score matching then.

Targets of this kind: Pidstrigach et al., arXiv 2504.03461 (ICML 2025; Malliavin calculus); Domingo-Enrich et al., arXiv
2312.02027 (NeurIPS 2024; path-wise reparameterisation); Mirafzali et al., arXiv 2503.16917, 2507.05550; Heng et al.,
arXiv 2111.07243 (rho = 0). These rho, exact for the chain, are this library's.

A path passes every step: with steps [B, R] each gives R records, what one call for each of its steps would give.

The drift enters through `Drift`, so that a mixture and any other differentiable drift share these loops. Each row stops
at its own last step: rows are ordered by it, and the active ones are always the first rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import philox
from .components import PrincipalAxes
from .mixture import heaviest_component, mean_precision, mixture_score, score_and_hvp
from .process import ProcessOperands


@dataclass(frozen=True)
class Frame:
    """The axes of each row along which rho is diagonal, and p(x_0) along them.

    rate [B, 1] or [B, d]. The axes are the columns of rotations [d, d], or of rotations[component] with component [B]
    and rotations [K, d, d]; of None, the data's own.
    """

    rate: Tensor
    rotations: Tensor | None = None
    component: Tensor | None = None

    def of(self, rows: Tensor | slice) -> Frame:
        """Return the frame of some of the rows."""
        return Frame(self.rate[rows], self.rotations, None if self.component is None else self.component[rows])

    def _matrices(self) -> Tensor:
        assert self.rotations is not None
        return self.rotations if self.component is None else self.rotations[self.component]

    def turn(self, v: Tensor) -> Tensor:
        """Return U^T v [B, d]."""
        return v if self.rotations is None else (v[:, None, :] @ self._matrices())[:, 0]

    def turn_back(self, v: Tensor) -> Tensor:
        """Return U v [B, d]."""
        return v if self.rotations is None else (v[:, None, :] @ self._matrices().mT)[:, 0]

    def diagonal(self, v: Tensor) -> Tensor:
        """Return the diagonal of U diag(v) U^T [B, d]."""
        return v if self.rotations is None else (v[:, None, :] @ self._matrices().square().mT)[:, 0]


class Drift(Protocol):
    """The drift part of one step."""

    def of(self, rows: Tensor | slice) -> Drift:
        """Return the drift of some of the rows."""

    def increment(self, n: int, x: Tensor) -> Tensor:
        """Return mean_n - x_n [B, d]."""

    def increment_and_product(self, n: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_n - x_n and its transposed Jacobian times z, both [B, d] (a_n Hess(x_n) z for Langevin)."""

    def contraction(self, n: int, p: Tensor) -> Tensor:
        """Return 1 - a_n p, [B, 1] or [B, d]."""

    def frame(self, x0: Tensor) -> Frame:
        """Return where rho is diagonal for paths from x0 [B, d], and p(x_0)."""


class LangevinDrift:
    """F = 1/2 sigma^2 grad log pi of a mixture; the target of tied and full covariances needs their axes.

    ranges: int64 [B, 2], the components start..stop of each row; None is all.
    """

    def __init__(
        self, process: ProcessOperands, axes: PrincipalAxes | None = None, ranges: Tensor | None = None
    ) -> None:
        self.process, self.axes, self.ranges = process, axes, ranges
        self.mixture = process.mixture
        self.drift_scale = process.drift_scale

    def of(self, rows: Tensor | slice) -> LangevinDrift:
        return self if self.ranges is None else LangevinDrift(self.process, self.axes, self.ranges[rows])

    def increment(self, n: int, x: Tensor) -> Tensor:
        return self.drift_scale[n] * mixture_score(x, self.mixture, self.ranges)

    def increment_and_product(self, n: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        score, hvp = score_and_hvp(x, z, self.mixture, self.ranges)
        return self.drift_scale[n] * score, self.drift_scale[n] * hvp

    def contraction(self, n: int, p: Tensor) -> Tensor:
        return 1.0 - self.drift_scale[n] * p

    def frame(self, x0: Tensor) -> Frame:
        kind = self.mixture.covariance_type
        if kind in ("spherical", "diag"):
            return Frame(mean_precision(x0, self.mixture, self.ranges))
        if self.axes is None:
            raise ValueError(f"axes: expected the principal axes of {kind} covariances, found None")
        if kind == "tied":
            return Frame(self.axes.rates.expand_as(x0), self.axes.rotations)
        component = heaviest_component(x0, self.mixture, self.ranges)
        return Frame(self.axes.rates[component], self.axes.rotations, component)


class _Rows:
    """Rows ordered by descending last step, and the records of them by their step.

    Args:
        steps: [B] or [B, R].
    """

    def __init__(self, steps: Tensor) -> None:
        self.shape = steps.shape
        steps = steps[:, None] if steps.ndim == 1 else steps
        last = steps.amax(1)
        ordered, self.order = last.sort(descending=True, stable=True)
        self.n_steps = int(ordered[0]) if len(steps) else 0
        grid = torch.arange(self.n_steps + 1, device=steps.device)
        # active[n] = number of rows that take step n
        active = len(steps) - torch.searchsorted(ordered.flip(0).contiguous(), grid, right=True)
        recorded, self.records = steps.flatten().sort(stable=True)
        ends = torch.searchsorted(recorded, grid, right=True)
        # under torch.func, 2.9 has no list of a tensor
        self.active, self.ends = [int(n) for n in active], [int(n) for n in ends]
        self.at = _inverse(self.order)[self.records // steps.shape[1]]  # the ordered row of a record
        self.done: list[tuple[Tensor, ...]] = []

    def record(self, state: tuple[Tensor, ...], n: int) -> tuple[Tensor, ...]:
        """Keep the records of `state` after n steps; return the rows of it that take step n."""
        at = self.at[self.ends[n - 1] if n else 0 : self.ends[n]]
        self.done.append(tuple(s[at] for s in state))
        return tuple(s[: self.active[n]] for s in state)

    def collect(self) -> tuple[Tensor, ...]:
        """Return the records in their original order, [B, ...] or [B, R, ...]."""
        inverse = _inverse(self.records)
        parts = (torch.cat(parts)[inverse] for parts in zip(*self.done, strict=True))
        return tuple(part.reshape(*self.shape, part.shape[1]) for part in parts)


def _inverse(order: Tensor) -> Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return inverse


def walk(
    x0: Tensor, steps: Tensor, drift: Drift, noise_std: Tensor, paths: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_n, mean_{n-1} and z_{n-1} after n = steps [B] steps from x0 [B, d] (x0, x0 and 0 where n = 0)."""
    rows = _Rows(steps)
    paths, drift = paths[rows.order], drift.of(rows.order)
    x = x0[rows.order]
    state: tuple[Tensor, ...] = (x, x, torch.zeros_like(x))
    for n in range(rows.n_steps):
        (x, _, _) = rows.record(state, n)
        z = philox.normal(paths[: len(x)], x.shape[1], seed=seed, step=n, stream=philox.NOISING, dtype=x.dtype)
        mean = x + drift.of(slice(len(x))).increment(n, x)
        state = (mean + noise_std[n] * z, mean, z)
    rows.record(state, rows.n_steps)
    x, mean, z = rows.collect()
    return x, mean, z


def walk_with_target(
    x0: Tensor, steps: Tensor, drift: Drift, noise_std: Tensor, paths: Tensor, sign: Tensor, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_n [B, d], target -H_n [B, d], v_n ([B, 1] or [B, d]); a row's noise is multiplied by its sign [B, 1].

    With steps [B, R] the three are [B, R, d] or [B, R, 1].
    """
    rows = _Rows(steps)
    paths, sign = paths[rows.order], sign[rows.order]
    frame = drift.frame(x0)
    x, ordered, drift = x0[rows.order], frame.of(rows.order), drift.of(rows.order)
    state: tuple[Tensor, ...] = (x, torch.zeros_like(x), torch.zeros_like(ordered.rate))
    for n in range(rows.n_steps):
        x, h, v = rows.record(state, n)
        m, s = len(x), noise_std[n]
        z = sign[:m] * philox.normal(paths[:m], x.shape[1], seed=seed, step=n, stream=philox.NOISING, dtype=x.dtype)
        increment, product = drift.of(slice(m)).increment_and_product(n, x, z)
        now = ordered.of(slice(m))
        contraction = drift.contraction(n, now.rate)
        v_next = s**2 + contraction**2 * v
        rho = contraction * v / v_next
        h = rho * h + ((1.0 - rho) * now.turn(z) - rho * now.turn(product)) / s
        state = (x + increment + s * z, h, v_next)
    rows.record(state, rows.n_steps)
    x, h, v = rows.collect()
    return x, -_each_record(frame.turn_back, h), _each_record(frame.diagonal, v)


def _each_record(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Return the function of [B, d] or, record by record so that its bits are those of one, of [B, R, d]."""
    return function(value) if value.ndim == 2 else torch.stack([function(v) for v in value.unbind(1)], dim=1)


def simulate(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    seed: Tensor,
    first_path: int,
    ranges: Tensor | None = None,
) -> Tensor:
    """Return x [B, d] after steps [B] steps of the Langevin process from x0 [B, d]; ranges: as for LangevinDrift."""
    paths = philox.path_range(len(x0), first_path, x0.device)
    return walk(x0, steps, LangevinDrift(process, None, ranges), process.noise_std, paths, int(seed))[0]


def simulate_transition(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    seed: Tensor,
    first_path: int,
    ranges: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, and mean and noise of the last step, each [B, d], after steps [B] >= 1 steps."""
    paths = philox.path_range(len(x0), first_path, x0.device)
    return walk(x0, steps, LangevinDrift(process, None, ranges), process.noise_std, paths, int(seed))


def antithetic_pairs(
    paths: Tensor, x0: Tensor, steps: Tensor, antithetic: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x0, steps, paths and signs; twice over, the second time with mirrored noise, if antithetic."""
    sign = torch.ones(len(x0), 1, dtype=x0.dtype, device=x0.device)
    if antithetic:
        x0, steps, paths = torch.cat([x0, x0]), torch.cat([steps, steps]), torch.cat([paths, paths])
        sign = torch.cat([sign, -sign])
    return x0, steps, paths, sign


def simulate_target(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    axes: PrincipalAxes | None,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
    ranges: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x [B, d], target [B, d] and variance ([B, 1] spherical, else [B, d]); 2B rows if antithetic.

    With steps [B, R], R records of each path: x and target [B, R, d], variance [B, R, 1] or [B, R, d].
    axes: of tied and full covariances; else None.
    """
    paths = philox.path_range(len(x0), first_path, x0.device)
    x0, steps, paths, sign = antithetic_pairs(paths, x0, steps, antithetic)
    if ranges is not None and antithetic:
        ranges = torch.cat([ranges, ranges])
    drift = LangevinDrift(process, axes, ranges)
    return walk_with_target(x0, steps, drift, process.noise_std, paths, sign, int(seed))
