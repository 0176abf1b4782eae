"""Shared by the tests of the core: mixtures to test on, independent references, and one statistic.

The laws are checked on the backend that FASTNDSM_BACKEND names, by default the reference.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastndsm import GaussianMixture, LangevinProcess, use_backend

BACKEND = os.environ.get("FASTNDSM_BACKEND") or "reference"
COVARIANCE_TYPES = ("spherical", "diag", "tied", "full")


@pytest.fixture(autouse=True)
def on_one_backend() -> Iterator[None]:
    """Every op of the test on one backend and one thread (threads of busy machines spin)."""
    torch.set_num_threads(1)
    with use_backend(BACKEND):
        yield


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def quietly(*arguments: Any, **options: Any) -> LangevinProcess:
    """A process with large steps, without the warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return LangevinProcess(*arguments, **options)


def random_mixture(
    covariance_type: str, n_components: int, dim: int, *, seed: int = 0, ratio: float = 30.0, **options: Any
) -> GaussianMixture:
    """Means spread over about [-2, 2], standard deviations between 1/sqrt(ratio) and 1, unequal weights; float64."""
    g = generator(1000 * seed + 10 * n_components + dim)
    weights = torch.rand(n_components, generator=g, dtype=torch.float64) + 0.2
    means = 2.0 * torch.randn(n_components, dim, generator=g, dtype=torch.float64)

    def variances(*shape: int) -> Tensor:
        return ratio ** -torch.rand(*shape, generator=g, dtype=torch.float64)

    def matrices(count: int) -> Tensor:
        basis = torch.linalg.qr(torch.randn(count, dim, dim, generator=g, dtype=torch.float64))[0]
        return basis @ torch.diag_embed(variances(count, dim)) @ basis.mT

    covariances = {
        "spherical": lambda: variances(n_components),
        "diag": lambda: variances(n_components, dim),
        "tied": lambda: matrices(1)[0],
        "full": lambda: matrices(n_components),
    }[covariance_type]()
    return GaussianMixture(weights / weights.sum(), means, covariances, covariance_type, **options)


def full_covariances(m: GaussianMixture) -> Tensor:
    """Sigma_k [K, d, d]."""
    eye = torch.eye(m.dim, dtype=m.means.dtype)
    return {
        "spherical": lambda: m.covariances[:, None, None] * eye,
        "diag": lambda: torch.diag_embed(m.covariances),
        "tied": lambda: m.covariances.expand(m.n_components, -1, -1),
        "full": lambda: m.covariances,
    }[m.covariance_type]()


def torch_mixture(m: GaussianMixture) -> torch.distributions.MixtureSameFamily:
    """The same law by torch.distributions, float64."""
    components = torch.distributions.MultivariateNormal(m.means.double(), full_covariances(m).double())
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(m.weights.double()), components)


def z_score(differences: Tensor) -> float:
    """Mean over standard error of independent differences [n]."""
    return float(differences.mean() / differences.std() * len(differences) ** 0.5)
