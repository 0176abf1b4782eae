"""Inputs and calls of the ops that `fastndsm.compare` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .. import functional
from ..mixture import GaussianMixture
from ..process import LangevinProcess

Run = Callable[["Inputs", str], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One op on one shape: rows B, dimension d, components K, steps N, for each size."""

    op: str
    run: Run
    small: tuple[int, int, int, int]
    full: tuple[int, int, int, int]
    covariance_type: str = "diag"
    note: str = field(default="")

    def shape(self, size: str) -> tuple[int, int, int, int]:
        return self.small if size == "small" else self.full

    def label(self, size: str) -> str:
        rows, dim, components, steps = self.shape(size)
        parts = [self.note, f"B={rows} d={dim}"]
        if self.op not in ("philox_normal", "ndsm_loss", "dsm_loss"):
            parts.append(f"K={components} {self.covariance_type}")
        if self.op.startswith("simulate"):
            parts.append(f"N={steps}")
        return " ".join(part for part in parts if part)


class Inputs:
    """Tensors of a case: the same values in float32 and float64, made when first asked for."""

    def __init__(self, case: Case, size: str, dtype: torch.dtype, device: torch.device, seed: int) -> None:
        self.rows, self.dim, self.components, self.n_steps = case.shape(size)
        self.covariance_type, self.dtype, self.device, self.seed = case.covariance_type, dtype, device, seed

    def normal(self, index: int, *shape: int) -> Tensor:
        """Draw number `index`, rounded to float32 whatever the dtype."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        return torch.randn(*shape, generator=generator).to(self.device, self.dtype)

    @cached_property
    def x(self) -> Tensor:
        return self.normal(0, self.rows, self.dim)

    @cached_property
    def v(self) -> Tensor:
        return self.normal(1, self.rows, self.dim)

    @cached_property
    def pair(self) -> Tensor:
        return self.normal(2, 2 * self.rows, self.dim)

    @cached_property
    def std(self) -> Tensor:
        return 0.1 + self.normal(3, self.rows).abs()

    @cached_property
    def steps(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randint(1, self.n_steps + 1, (self.rows,), generator=generator).to(self.device)

    @cached_property
    def mixture(self) -> GaussianMixture:
        k, d = self.components, self.dim
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        weights, means = 0.2 + draw(k), 4.0 * draw(k, d) - 2.0
        if self.covariance_type in ("spherical", "diag"):
            covariances = 0.3 + draw(k) if self.covariance_type == "spherical" else 0.3 + draw(k, d)
        else:
            factors = draw(d, d) if self.covariance_type == "tied" else draw(k, d, d)
            covariances = 0.5 * factors @ factors.mT / d + 0.5 * torch.eye(d, dtype=torch.float64)
        made = GaussianMixture(weights / weights.sum(), means, covariances, self.covariance_type)
        return made.to(self.device)

    @cached_property
    def process(self) -> LangevinProcess:
        return LangevinProcess(self.mixture, T=2.0, n_steps=self.n_steps)


def _philox_normal(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    made = functional.philox_normal(i.rows, i.dim, seed=i.seed, step=3, dtype=i.dtype, device=i.device, backend=backend)
    return (made,)


def _mixture_log_prob(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    return (functional.mixture_log_prob(i.x, i.mixture, backend=backend),)


def _mixture_score(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    return (functional.mixture_score(i.x, i.mixture, backend=backend),)


def _mixture_score_backward(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    x = i.x.clone().requires_grad_()
    return torch.autograd.grad(functional.mixture_score(x, i.mixture, backend=backend), x, i.v)


def _mixture_hvp(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    return (functional.mixture_hvp(i.x, i.v, i.mixture, backend=backend),)


def _mixture_sample(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    return (functional.mixture_sample(i.rows, i.mixture, seed=i.seed, dtype=i.dtype, backend=backend),)


def _simulate(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    return (functional.simulate(i.x, i.process, i.steps, seed=i.seed, backend=backend),)


def _simulate_transition(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    return functional.simulate_transition(i.x, i.process, i.steps, seed=i.seed, backend=backend)


def _simulate_target(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    return functional.simulate_target(i.x, i.process, i.steps, seed=i.seed, backend=backend)


def _simulate_target_antithetic(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    return functional.simulate_target(i.x, i.process, i.steps, seed=i.seed, antithetic=True, backend=backend)


def _ndsm_loss(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    scores = i.pair.clone().requires_grad_()
    loss = functional.ndsm_loss(scores, i.x, i.std, estimator="control_variate", backend=backend)
    return loss.detach(), *torch.autograd.grad(loss, scores)


def _dsm_loss(i: Inputs, backend: str) -> tuple[Tensor, ...]:
    score = i.x.clone().requires_grad_()
    loss = functional.dsm_loss(score, i.v, i.std, backend=backend)
    return loss.detach(), *torch.autograd.grad(loss, score)


def _reverse(method: str) -> Run:
    def run(i: Inputs, backend: str) -> tuple[Tensor, ...]:
        step = i.n_steps // 2
        return (functional.reverse_step(i.x, i.v, i.process, step, seed=i.seed, method=method, backend=backend),)

    return run


_PLANAR, _VECTORS, _IMAGES = (65_536, 2, 8, 100), (8_192, 16, 10, 100), (1_024, 784, 10, 50)
_SMALL, _SMALL_VECTORS, _SMALL_IMAGES = (1_024, 2, 8, 50), (512, 16, 10, 50), (64, 784, 10, 20)

CASES = (
    Case("philox_normal", _philox_normal, (16_384, 16, 1, 1), (262_144, 16, 1, 1)),
    *(
        Case(op, run, _SMALL_VECTORS, _VECTORS, covariance_type, note)
        for covariance_type in ("spherical", "diag", "tied", "full")
        for op, run, note in (
            ("mixture_log_prob", _mixture_log_prob, ""),
            ("mixture_score", _mixture_score, ""),
            ("mixture_score", _mixture_score_backward, "backward"),
            ("mixture_hvp", _mixture_hvp, ""),
            ("mixture_sample", _mixture_sample, ""),
        )
    ),
    *(
        Case(op, run, small, full, note=note)
        for small, full in ((_SMALL, _PLANAR), (_SMALL_VECTORS, _VECTORS), (_SMALL_IMAGES, _IMAGES))
        for op, run, note in (
            ("simulate", _simulate, ""),
            ("simulate_transition", _simulate_transition, ""),
            ("simulate_target", _simulate_target, ""),
            ("simulate_target", _simulate_target_antithetic, "antithetic"),
        )
    ),
    Case("ndsm_loss", _ndsm_loss, (512, 784, 1, 1), (4_096, 784, 1, 1), note="forward+backward"),
    Case("dsm_loss", _dsm_loss, (512, 784, 1, 1), (4_096, 784, 1, 1), note="forward+backward"),
    Case("reverse_step", _reverse("sde"), _SMALL_VECTORS, _VECTORS, note="sde"),
    Case("reverse_step", _reverse("ode"), _SMALL_VECTORS, _VECTORS, note="ode"),
)
