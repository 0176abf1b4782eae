"""Dynamics of a noising process: its steps and those of its reverse.

    mean_n  = x_n + F(x_n, t_n) dt_n,    x_{n+1} = mean_n + s_n z_n

A mixture's drift, F dt = a_n grad log pi, runs in the fused ops, a Python function's as a compiled program or in the
reference's loops. A process gives its `dynamics`, made of its tables as they are at the time; `functional` takes any
object that has them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from . import _checks
from ._compiled import CompiledDrift
from ._ops import ops
from .reference import MixtureOperands, PrincipalAxes, ProcessOperands, philox
from .reference.reverse_steps import walk_back
from .reference.simulate import Frame, antithetic_pairs, walk, walk_with_target


class Dynamics(Protocol):
    """Steps of a noising process and of its reverse; arguments are checked already.

    x0 and y [B, ...]; steps int64 [B], those that each row takes, of the target also [B, R]; step 0-d; seed 0-d int64.
    """

    def simulate(self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, backend: str) -> Tensor:
        """Return x after `steps` steps, like x0."""

    def simulate_transition(
        self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x, and mean and noise of the last step, each like x0."""

    def simulate_target(
        self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, antithetic: bool, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x and target like x0 and the variance, [B] or like x0; 2B rows if antithetic.

        With steps [B, R], R records of each path: x and target [B, R, ...], variance [B, R] or like them.
        """

    def drift_score(self, y: Tensor, step: Tensor) -> Tensor:
        """Return F / a_n dt_n, like y: grad log pi of a mixture, and what stands in its place for another drift."""

    def reverse_steps(
        self,
        y: Tensor,
        held: Tensor,
        slope: Tensor | None,
        rate: Tensor | None,
        bounds: Tensor,
        coefficients: Tensor,
        seed: Tensor,
        first_path: int,
        backend: str,
    ) -> Tensor:
        """Return y at t_last from y at t_first, bounds = (first, last); a scheme's coefficients [6, N], rate [B]."""


class Mixture(Protocol):
    """A Gaussian mixture, as far as its drift goes."""

    @property
    def covariance_type(self) -> str: ...
    def operands(self, dtype: torch.dtype) -> MixtureOperands: ...
    def operands_and_axes(self, dtype: torch.dtype) -> tuple[MixtureOperands, PrincipalAxes | None]: ...


@dataclass(frozen=True)
class MixtureDynamics:
    """Langevin dynamics towards a mixture: F dt = a_n grad log pi, in the fused ops.

    ranges: int64 [B, 2], the components start..stop of each row; None is all.
    """

    drift_scale: Tensor
    noise_std: Tensor
    mixture: Mixture
    ranges: Tensor | None = None

    def operands(self, dtype: torch.dtype) -> ProcessOperands:
        """Return what a backend takes for data of `dtype`."""
        drift_scale, noise_std, *mixture = self._arguments(dtype)
        return ProcessOperands(drift_scale, noise_std, MixtureOperands(*mixture))

    def _arguments(self, dtype: torch.dtype) -> tuple[Any, ...]:
        """Return the operands in a row, as op schemas list them."""
        return self._beside(self.mixture.operands(dtype))

    def _beside(self, mixture: MixtureOperands) -> tuple[Any, ...]:
        compute = mixture.means.dtype
        return self.drift_scale.to(compute), self.noise_std.to(compute), *mixture

    def simulate(self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, backend: str) -> Tensor:
        operands = self._arguments(x0.dtype)
        return ops.simulate(x0.flatten(1), steps, *operands, seed, first_path, self.ranges, backend).reshape(x0.shape)

    def simulate_transition(
        self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        operands = self._arguments(x0.dtype)
        flat = x0.flatten(1)
        x, mean, noise = ops.simulate_transition(flat, steps, *operands, seed, first_path, self.ranges, backend)
        return x.reshape(x0.shape), mean.reshape(x0.shape), noise.reshape(x0.shape)

    def simulate_target(
        self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, antithetic: bool, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        mixture, axes = self.mixture.operands_and_axes(x0.dtype)
        operands = *self._beside(mixture), *(axes or (None, None))
        flat = x0.flatten(1)
        made = ops.simulate_target(flat, steps, *operands, seed, first_path, antithetic, self.ranges, backend)
        return _shaped(made, x0, scalar_variance=self.mixture.covariance_type == "spherical")

    def drift_score(self, y: Tensor, step: Tensor) -> Tensor:
        operands = self.mixture.operands(y.dtype)
        return ops.mixture_score(y.flatten(1), *operands, self.ranges, "auto").reshape(y.shape)

    def reverse_steps(
        self,
        y: Tensor,
        held: Tensor,
        slope: Tensor | None,
        rate: Tensor | None,
        bounds: Tensor,
        coefficients: Tensor,
        seed: Tensor,
        first_path: int,
        backend: str,
    ) -> Tensor:
        mixture = self.mixture.operands(y.dtype)
        network = held.flatten(1), None if slope is None else slope.flatten(1)
        flat = ops.reverse_steps(
            y.flatten(1), *network, rate, bounds, coefficients, *mixture, seed, first_path, self.ranges, backend
        )
        return flat.reshape(y.shape)


@dataclass(frozen=True)
class DriftlessDynamics(MixtureDynamics):
    """dX = sigma dW, in the same ops: no multiple of the mixture's score is taken, whatever the mixture."""

    def drift_score(self, y: Tensor, step: Tensor) -> Tensor:
        return torch.zeros_like(y)


@dataclass(frozen=True)
class CallableDrift:
    """A Python drift as `reference.simulate.Drift`: a_n Hess z is the transposed Jacobian product of dt_n F."""

    function: Callable[[Tensor, Tensor], Tensor]
    times: Tensor
    event_shape: tuple[int, ...]
    contraction_rate: float

    def of(self, rows: Tensor | slice) -> CallableDrift:
        return self

    def _dt(self, n: int, dtype: torch.dtype) -> Tensor:
        return (self.times[n + 1] - self.times[n]).to(dtype)

    def increment(self, n: int, x: Tensor) -> Tensor:
        t = self.times[n].to(x.dtype).expand(len(x))
        shaped = x.reshape(len(x), *self.event_shape)
        value = _checks.drift_output(self.function(shaped, t), shaped)
        return self._dt(n, x.dtype) * value.reshape(x.shape)

    def increment_and_product(self, n: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        increment, pullback, *_ = torch.func.vjp(lambda point: self.increment(n, point), x)
        return increment, pullback(z)[0]

    def contraction(self, n: int, p: Tensor) -> Tensor:
        return 1.0 - self._dt(n, p.dtype) * p

    def frame(self, x0: Tensor) -> Frame:
        return Frame(x0.new_full((len(x0), 1), self.contraction_rate))


@dataclass(frozen=True)
class CallableDynamics:
    """The dynamics of a Python drift: by its compiled program where one serves, else in the reference's loops."""

    drift: CallableDrift
    noise_std: Tensor
    compiled: CompiledDrift | None = None

    def _operands(self, x: Tensor, backend: str) -> tuple[Tensor, str] | None:
        return None if self.compiled is None else self.compiled.operands(x, backend)

    def simulate(self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, backend: str) -> Tensor:
        operands = self._operands(x0, backend)
        if operands is None:
            return self._walk(x0, steps, seed, first_path)[0]
        parameters, program = operands
        tables = steps, self.drift.times, self.noise_std
        flat = ops.drift_simulate(x0.flatten(1), parameters, *tables, program, seed, first_path, backend)
        return flat.reshape(x0.shape)

    def simulate_transition(
        self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        operands = self._operands(x0, backend)
        if operands is None:
            return self._walk(x0, steps, seed, first_path)
        parameters, program = operands
        tables = steps, self.drift.times, self.noise_std
        made = ops.drift_transition(x0.flatten(1), parameters, *tables, program, seed, first_path, backend)
        x, mean, noise = (part.reshape(x0.shape) for part in made)
        return x, mean, noise

    def _walk(self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int) -> tuple[Tensor, Tensor, Tensor]:
        paths = philox.path_range(len(x0), first_path, x0.device)
        x, mean, noise = walk(x0.flatten(1), steps, self.drift, self.noise_std.to(x0.dtype), paths, int(seed))
        return x.reshape(x0.shape), mean.reshape(x0.shape), noise.reshape(x0.shape)

    def simulate_target(
        self, x0: Tensor, steps: Tensor, seed: Tensor, first_path: int, antithetic: bool, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        operands = self._operands(x0, backend)
        if operands is not None:
            parameters, program = operands
            tables = steps, self.drift.times, self.noise_std, self.drift.contraction_rate
            rest = program, seed, first_path, antithetic, backend
            made = ops.drift_target(x0.flatten(1), parameters, *tables, *rest)
            return _shaped(made, x0, scalar_variance=True)
        paths = philox.path_range(len(x0), first_path, x0.device)
        flat, steps, paths, sign = antithetic_pairs(paths, x0.flatten(1), steps, antithetic)
        std = self.noise_std.to(x0.dtype)
        made = walk_with_target(flat, steps, self.drift, std, paths, sign, int(seed))
        return _shaped(made, x0, scalar_variance=True)

    def drift_score(self, y: Tensor, step: Tensor) -> Tensor:
        n = int(step)
        operands, flat = self._operands(y, "auto"), y.flatten(1)
        if operands is None:
            increment = self.drift.increment(n, flat)
        else:
            times = self.drift.times.to(y.dtype)
            value = ops.drift_value(flat, operands[0], times[n].expand(len(y)), operands[1], "auto")
            increment = (times[n + 1] - times[n]) * value
        return (increment / self._scale(n)).reshape(y.shape)

    def reverse_steps(
        self,
        y: Tensor,
        held: Tensor,
        slope: Tensor | None,
        rate: Tensor | None,
        bounds: Tensor,
        coefficients: Tensor,
        seed: Tensor,
        first_path: int,
        backend: str,
    ) -> Tensor:
        network = held.flatten(1), None if slope is None else slope.flatten(1)
        table = coefficients.to(y.dtype)
        operands = self._operands(y, backend)
        if operands is not None:
            parameters, program = operands
            tables = bounds, table, self.drift.times, self.noise_std
            flat = y.flatten(1), parameters, *network, rate
            out = ops.drift_reverse_steps(*flat, *tables, program, seed, first_path, backend)
            return out.reshape(y.shape)
        first, last = (int(bound) for bound in bounds)

        def score(n: int, x: Tensor) -> Tensor:
            return self.drift.increment(n, x) / self._scale(n)

        out = walk_back(y.flatten(1), *network, rate, first, last, table, score, int(seed), first_path)
        return out.reshape(y.shape)

    def _scale(self, n: int) -> float:
        """Return a_n = s_n^2 / 2."""
        return 0.5 * float(self.noise_std[n]) ** 2


def _shaped(made: tuple[Tensor, Tensor, Tensor], x0: Tensor, scalar_variance: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Give x, target and variance [..., d] (the variance [..., 1] if it is scalar) the event shape of x0."""
    x, target, variance = made
    shape = (*x.shape[:-1], *x0.shape[1:])
    return x.reshape(shape), target.reshape(shape), variance[..., 0] if scalar_variance else variance.reshape(shape)
