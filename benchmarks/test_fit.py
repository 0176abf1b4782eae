"""Expectation maximisation: iterations of `GaussianMixture.fit` against scikit-learn's from the same start.

Both in float64, on the same rows, for as many iterations; parameters are compared after them.
"""

from __future__ import annotations

import warnings
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from sklearn.mixture import GaussianMixture as Estimator
from torch import Tensor

from fastndsm import GaussianMixture
from fastndsm.testing import deviation

from .problems import TINY
from .rows import Row

ROWS, DIM, COMPONENTS, ITERATIONS = (400, 4, 5, 2) if TINY else (20_000, 32, 1000, 3)
CONTENDERS = ("ours", "scikit-learn")
AGREEMENT = 1e-6  # of weights, means and variances, over the largest


@lru_cache
def problem() -> tuple[Any, dict[str, Any]]:
    """Return rows in clusters, and the options of a start at some of them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(COMPONENTS, DIM, generator=generator, dtype=torch.float64, device="cpu")
    noise = torch.randn(ROWS, DIM, generator=generator, dtype=torch.float64, device="cpu")
    x = centres[torch.arange(ROWS, device="cpu") % COMPONENTS] + 0.5 * noise
    x -= x.mean(0)
    ones = torch.ones(COMPONENTS, dtype=torch.float64, device="cpu")
    start = {"weights_init": ones / COMPONENTS, "means_init": x[:COMPONENTS], "precisions_init": 3.0 * ones}
    options = {"reg_covar": 1e-2, "tol": 0.0, "max_iter": ITERATIONS}
    return x.numpy(), {**{name: value.numpy() for name, value in start.items()}, **options}


def fit(contender: str) -> tuple[Tensor, ...]:
    """Return weights, means and variances."""
    x, options = problem()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few iterations do not converge
        if contender == "ours":
            made = GaussianMixture.fit(x, COMPONENTS, **options)
            return made.weights, made.means, made.covariances
        theirs = Estimator(COMPONENTS, covariance_type="spherical", **options).fit(x)
    return tuple(torch.from_numpy(t) for t in (theirs.weights_, theirs.means_, theirs.covariances_))


@lru_cache
def error() -> float:
    """Return how far the two are from each other."""
    return deviation(fit("ours"), fit("scikit-learn"))


@pytest.mark.parametrize("contender", CONTENDERS)
def test_fit(contender: str, race: Any) -> None:
    assert error() <= AGREEMENT
    label = f"d={DIM} K={COMPONENTS} n={ROWS:,} spherical, {ITERATIONS} iterations"
    row = Row("fit", label, contender, "a row-iteration", ROWS * ITERATIONS, "the other, same start", deviation=error())
    if contender == "ours":
        row.targets = {"scikit-learn": 3.0}
    race(row, partial(fit, contender))
