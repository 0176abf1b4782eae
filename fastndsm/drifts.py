"""Drifts F(x, t) that are integrated again and again, for `DriftProcess` and `compile_drift`, and sums of drifts.

Each is called (x [B, d], t [B]) -> [B, d], and can be compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import _checks

__all__ = ["DoubleWell", "Langevin", "Lorenz", "LotkaVolterra", "MuellerBrown", "Sum"]

Function = Callable[[Tensor, Tensor], Tensor]

# A_k, a_k, b_k, c_k, x_k, y_k of K. Mueller and L. D. Brown, Theoretica Chimica Acta 53 (1979).
MUELLER_BROWN = (
    (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
    (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
    (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
    (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
)


def _components(x: Tensor, dim: int, name: str) -> tuple[Tensor, ...]:
    if x.shape[1:] != (dim,):
        raise ValueError(f"x: expected shape [B, {dim}] for {name}, found {tuple(x.shape)}")
    return x.unbind(1)


@dataclass(frozen=True)
class DoubleWell:
    """The drift -grad U of double wells, U(x) = strength sum_j (x_j^2 - width^2)^2 / 4, minima at +-width; any d."""

    strength: float = 1.0
    width: float = 1.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F(x, t), like x [B, d]."""
        return self.strength * x * (self.width**2 - x * x)


@dataclass(frozen=True)
class MuellerBrown:
    """The drift -scale grad U of the Mueller-Brown potential, a standard test of rare events; d = 2.

    Source: K. Mueller and L. D. Brown, Theoretica Chimica Acta 53, 75 (1979).
    """

    scale: float = 1.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F(x, t), like x [B, 2]."""
        u, v = _components(x, 2, "MuellerBrown")
        along, across = torch.zeros_like(u), torch.zeros_like(v)
        for height, a, b, c, x_k, y_k in MUELLER_BROWN:
            p, q = u - x_k, v - y_k
            weight = (-self.scale * height) * (a * p * p + b * p * q + c * q * q).exp()
            along = along + weight * (2.0 * a * p + b * q)
            across = across + weight * (b * p + 2.0 * c * q)
        return torch.stack([along, across], 1)


@dataclass(frozen=True)
class Lorenz:
    """The Lorenz system, chaotic at its standard parameters; d = 3.

    Source: E. N. Lorenz, Deterministic nonperiodic flow, 1963.
    """

    sigma: float = 10.0
    rho: float = 28.0
    beta: float = 8.0 / 3.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F(x, t), like x [B, 3]."""
        a, b, c = _components(x, 3, "Lorenz")
        return torch.stack([self.sigma * (b - a), a * (self.rho - c) - b, a * b - self.beta * c], 1)


@dataclass(frozen=True)
class LotkaVolterra:
    """Prey and predators, x (growth - capture y) and y (conversion x - death); d = 2."""

    growth: float = 1.0
    capture: float = 1.0
    conversion: float = 1.0
    death: float = 1.0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F(x, t), like x [B, 2]."""
        prey, predators = _components(x, 2, "LotkaVolterra")
        grown, died = self.growth - self.capture * predators, self.conversion * prey - self.death
        return torch.stack([prey * grown, predators * died], 1)


class Langevin(nn.Module):
    """The drift 1/2 sigma^2 grad log p of a density, by autograd: p is stationary under a noise of sigma.

    Args:
        log_prob: x [B, ...] -> log p(x) [B], up to a constant, differentiable; a module or a function.
        sigma: the process's own, a number.
    """

    def __init__(self, log_prob: Callable[[Tensor], Tensor], sigma: float = 1.0) -> None:
        super().__init__()
        _checks.function("log_prob", log_prob, "a callable x -> log p(x)")
        self.log_prob = log_prob
        self.sigma = _checks.positive("sigma", sigma)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F(x, t), like x [B, ...]."""
        with torch.enable_grad():
            keeps = x.requires_grad
            point = x if keeps else x.detach().requires_grad_()
            value = self.log_prob(point)
            if value.shape != x.shape[:1]:
                raise ValueError(f"log_prob: expected output [{len(x)}], found {tuple(value.shape)}")
            (score,) = torch.autograd.grad(value.sum(), point, create_graph=keeps)
        return 0.5 * self.sigma**2 * score


class Sum(nn.Module):
    """The sum of drifts, compiled as one: a mixture's Langevin drift and a confinement, say."""

    def __init__(self, *drifts: Function) -> None:
        super().__init__()
        if not drifts:
            raise ValueError("drifts: expected at least one, found none")
        self.drifts = tuple(drifts)
        for i, drift in enumerate(drifts):
            _checks.network(f"drifts[{i}]", drift)
            if isinstance(drift, nn.Module):
                self.add_module(str(i), drift)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return F(x, t), like x [B, ...]."""
        total = self.drifts[0](x, t)
        for drift in self.drifts[1:]:
            total = total + drift(x, t)
        return total
