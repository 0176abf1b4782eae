"""The process of a drift's program in PyTorch, evaluated in the loops of `simulate` and `reverse_steps`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from . import philox
from .reverse_steps import walk_back
from .simulate import Frame, antithetic_pairs, walk, walk_with_target


class Program(Protocol):
    """A drift as a program, as `fastndsm.compiler.Program` is one: the numbers of F and of J^T z, and their values."""

    @property
    def value(self) -> tuple[int, ...]: ...
    @property
    def product(self) -> tuple[int, ...]: ...
    def evaluate(
        self, outputs: Sequence[int], x: Tensor, t: Tensor, parameters: Tensor, z: Tensor | None = None
    ) -> Tensor: ...


@dataclass(frozen=True)
class ProgramDrift:
    """A program's drift as `simulate.Drift`; times [N+1], the rate at which the target forgets."""

    program: Program
    parameters: Tensor
    times: Tensor
    rate: float = 0.0

    def of(self, rows: Tensor | slice) -> ProgramDrift:
        return self

    def _dt(self, n: int, dtype: torch.dtype) -> Tensor:
        return (self.times[n + 1] - self.times[n]).to(dtype)

    def increment(self, n: int, x: Tensor) -> Tensor:
        t = self.times[n].to(x.dtype)
        return self._dt(n, x.dtype) * self.program.evaluate(self.program.value, x, t, self.parameters)

    def increment_and_product(self, n: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        t = self.times[n].to(x.dtype)
        value, product = drift_product(x, self.parameters, z, t.expand(len(x)), self.program)
        return self._dt(n, x.dtype) * value, self._dt(n, x.dtype) * product

    def contraction(self, n: int, p: Tensor) -> Tensor:
        return 1.0 - self._dt(n, p.dtype) * p

    def frame(self, x0: Tensor) -> Frame:
        return Frame(x0.new_full((len(x0), 1), self.rate))


def drift_value(x: Tensor, parameters: Tensor, t: Tensor, program: Program) -> Tensor:
    """Return F(x, t) [B, d] for x [B, d], t [B]."""
    return program.evaluate(program.value, x, t, parameters)


def drift_product(x: Tensor, parameters: Tensor, z: Tensor, t: Tensor, program: Program) -> tuple[Tensor, Tensor]:
    """Return F(x, t) and J(x, t)^T z, [B, d] each."""
    both = program.evaluate((*program.value, *program.product), x, t, parameters, z)
    value, product = both.split(x.shape[1], dim=1)
    return value.clone(), product.clone()


def drift_simulate(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    program: Program,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    """Return x [B, d] after steps [B] steps of dX = F dt + sigma dW from x0 [B, d]."""
    return drift_transition(x0, parameters, steps, times, noise_std, program, seed, first_path)[0]


def drift_transition(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    program: Program,
    seed: Tensor,
    first_path: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, and mean and noise of the last step, each [B, d]."""
    paths = philox.path_range(len(x0), first_path, x0.device)
    drift = ProgramDrift(program, parameters, times)
    return walk(x0, steps, drift, noise_std.to(x0.dtype), paths, int(seed))


def drift_target(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    rate: float,
    program: Program,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x and target [B, d] and variance [B, 1], or [B, R, ...] with steps [B, R]; 2B rows if antithetic."""
    paths = philox.path_range(len(x0), first_path, x0.device)
    x0, steps, paths, sign = antithetic_pairs(paths, x0, steps, antithetic)
    drift = ProgramDrift(program, parameters, times, rate)
    return walk_with_target(x0, steps, drift, noise_std.to(x0.dtype), paths, sign, int(seed))


def drift_reverse_steps(
    y: Tensor,
    parameters: Tensor,
    held: Tensor,
    slope: Tensor | None,
    rate: Tensor | None,
    bounds: Tensor,
    coefficients: Tensor,
    times: Tensor,
    noise_std: Tensor,
    program: Program,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    """Take the steps of bounds = (first, last) back, F dt_n / a_n in the place of the mixture's score."""
    first, last = (int(bound) for bound in bounds)
    drift = ProgramDrift(program, parameters, times)

    def score(n: int, x: Tensor) -> Tensor:
        return drift.increment(n, x) / (0.5 * noise_std[n].to(x.dtype) ** 2)

    return walk_back(y, held, slope, rate, first, last, coefficients, score, int(seed), first_path)
