"""Simulated problems: their sizes, their mixtures and processes, and their parameters in matmul form.

FASTNDSM_BENCH_SIZE=tiny shrinks every size, so that the suite's code runs in seconds; its figures mean nothing.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastndsm import GaussianMixture, LangevinProcess
from fastndsm.functional import philox_normal
from fastndsm.testing import generator, random_mixture

TINY = os.environ.get("FASTNDSM_BENCH_SIZE", "full") == "tiny"
CHECKED_ROWS = 8 if TINY else 32  # paths compared one by one


class MatmulForm(NamedTuple):
    """A diag mixture as matrix products want it; b_k = P_k m_k.

    log w_k N(x; m_k, P_k^-1) = offset_k + b_k . x - 1/2 P_k . x^2 (+ a constant),  score = r b - x (r P),  r = softmax

    pulls b [K, d]; precisions P [K, d]; offsets [K].
    """

    pulls: Tensor
    precisions: Tensor
    offsets: Tensor


@dataclass(frozen=True)
class Problem:
    """K components in d dimensions, B paths, N steps, float32; with a `spread`, components of about deviation 1 whose
    means are normals of that one."""

    dim: int
    components: int
    rows: int
    steps: int
    covariance_type: str = "diag"
    spread: float | None = None

    @property
    def label(self) -> str:
        kind = "" if self.covariance_type == "diag" else f" {self.covariance_type}"
        kind += "" if self.spread is None else f" spread {self.spread:g}"
        return f"d={self.dim} K={self.components:,} B={self.rows:,} N={self.steps}{kind}"

    @property
    def sample_steps(self) -> int:
        return self.rows * self.steps

    @cached_property
    def mixture(self) -> GaussianMixture:
        if self.spread is not None:
            g = generator(self.dim)
            means = self.spread * torch.randn(self.components, self.dim, generator=g, dtype=torch.float64, device="cpu")
            variances = 0.8 + 0.4 * torch.rand(self.components, generator=g, dtype=torch.float64, device="cpu")
            return GaussianMixture(torch.ones_like(variances) / self.components, means, variances, self.covariance_type)
        return random_mixture(
            self.covariance_type, self.components, self.dim, seed=generator(self.dim), overlapping=True
        )

    @cached_property
    def weighing(self) -> float:
        """Components whose responsibility is at least 2^-64 of a row's largest, on average over the first rows.

        2^-40 where each row looks its own components up.
        """
        least = 2.0**-64 if self.spread is None else 2.0**-40
        r = self.mixture.responsibilities(self.x0[:1024].double())
        return float((r >= least * r.amax(dim=1, keepdim=True)).sum(dim=1).double().mean())

    @cached_property
    def process(self) -> LangevinProcess:
        return LangevinProcess(self.mixture, T=0.02 * self.steps, n_steps=self.steps)

    @cached_property
    def x0(self) -> Tensor:
        return self.mixture.sample(self.rows, seed=1).float()

    @cached_property
    def drift_scale(self) -> list[float]:
        return self.process.drift_scale.tolist()

    @cached_property
    def noise_std(self) -> list[float]:
        return self.process.noise_std.tolist()

    @cached_property
    def matmul_form(self) -> MatmulForm:
        assert self.covariance_type == "diag"
        precisions, means = 1.0 / self.mixture.covariances, self.mixture.means
        offsets = self.mixture.weights.log() + 0.5 * precisions.log().sum(1) - 0.5 * (precisions * means**2).sum(1)
        return MatmulForm((precisions * means).float(), precisions.float(), offsets.float())

    def noise(self, rows: int, seed: int, stream: int = 0) -> Tensor:
        """Return the normals [N, rows, d] that the first paths see, by the reference."""
        draw = partial(philox_normal, rows, self.dim, seed=seed, stream=stream, backend="reference")
        return torch.stack([draw(step=n) for n in range(self.steps)])


PLANAR = Problem(2, 8, *(128, 3) if TINY else (65_536, 100))
VECTORS = Problem(16, 10, *(128, 3) if TINY else (8_192, 100))
THIRTY_TWO = Problem(32, 10, *(128, 3) if TINY else (4_096, 100))
IMAGES = Problem(784, 10, *(128, 3) if TINY else (1_024, 50))

MANY = {
    components: Problem(32, components, *(32, 3) if TINY else (256, 100), "spherical", 4.0)
    for components in (10, 1_000, 10_000)
}
MINGLED = Problem(32, 1_000, *(32, 3) if TINY else (256, 100), "spherical", 1.4)


def law_deviation(found: Tensor, other: Tensor) -> float:
    """Return the largest |z| over the means of each coordinate and of its square, of two independent samples [B, d]."""
    worst = []
    for a, b in ((found, other), (found.square(), other.square())):
        a, b = a.double(), b.double()
        error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
        worst.append(((a.mean(0) - b.mean(0)) / error).abs().max())
    return float(torch.stack(worst).max())
