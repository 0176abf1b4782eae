"""Shared by the tests of the core: the backend, independent references, and one statistic.

The laws are checked on the backend that FASTNDSM_BACKEND names, by default the reference.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastndsm import GaussianMixture, use_backend
from fastndsm.testing import COVARIANCE_TYPES, generator, normals, random_mixture
from fastndsm.testing import coarse_process as quietly

__all__ = [
    "BACKEND",
    "COVARIANCE_TYPES",
    "full_covariances",
    "generator",
    "normals",
    "on_one_backend",
    "quietly",
    "random_mixture",
    "torch_mixture",
    "z_score",
]

BACKEND = os.environ.get("FASTNDSM_BACKEND") or "reference"


@pytest.fixture(autouse=True)
def on_one_backend() -> Iterator[None]:
    """Serve every op of the test by one backend."""
    with use_backend(BACKEND):
        yield


def full_covariances(m: GaussianMixture) -> Tensor:
    """Return Sigma_k [K, d, d]."""
    eye = torch.eye(m.dim, dtype=m.means.dtype)
    return {
        "spherical": lambda: m.covariances[:, None, None] * eye,
        "diag": lambda: torch.diag_embed(m.covariances),
        "tied": lambda: m.covariances.expand(m.n_components, -1, -1),
        "full": lambda: m.covariances,
    }[m.covariance_type]()


def torch_mixture(m: GaussianMixture) -> torch.distributions.MixtureSameFamily:
    """Return the same law by torch.distributions, float64."""
    components = torch.distributions.MultivariateNormal(m.means.double(), full_covariances(m).double())
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(m.weights.double()), components)


def z_score(differences: Tensor) -> float:
    """Return mean over standard error of independent differences [n]."""
    return float(differences.mean() / differences.std() * len(differences) ** 0.5)
