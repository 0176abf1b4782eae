"""Few evaluations of the network on a fine grid: order of convergence, what stays exact, and what it agrees with."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from helpers import COVARIANCE_TYPES, normals, on_one_backend, random_mixture  # noqa: F401
from torch import Tensor

from fastndsm import (
    DriftProcess,
    GaussianMixture,
    LangevinProcess,
    OUProcess,
    functional,
    log_likelihood,
    metrics,
    sample,
)
from fastndsm._scheme import METHODS, PREDICTIONS, Schedule, evaluation_indices

MEAN, DEVIATION = 0.7, 0.5


def one_gaussian(n_steps: int, grid: str = "quadratic") -> LangevinProcess:
    """Return a process towards N(0, 1), d = 1, that is not known to be one spherical component."""
    return LangevinProcess(GaussianMixture([1.0], [[0.0]], [[1.0]], "diag"), T=4.0, n_steps=n_steps, grid=grid)


def score(x: Tensor, t: Tensor) -> Tensor:
    """Return the score of data N(MEAN, DEVIATION^2) noised towards N(0, 1)."""
    decay = (-t).exp().reshape(-1, 1)
    return -(x - MEAN * decay.sqrt()) / (DEVIATION**2 * decay + 1.0 - decay)


# --- order of convergence ----------------------------------------------------------------------------------------


def law(process: LangevinProcess, method: str, prediction: str, order: int, M: int) -> tuple[float, float]:
    """Return mean and deviation of the samples, which are affine in the noise: their moments, step by step."""
    grid = "cubic" if prediction == "score" else "quadratic"
    schedule = process.reverse_scheme(method, prediction).schedule(
        evaluation_indices(process.times, M, grid), order
    )
    bounds, coefficients, evaluations = (part.tolist() for part in schedule)
    mean, cov = torch.zeros(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64)  # of y and before
    cov[0, 0] = 1.0
    for k, (high, low) in enumerate(pairwise(bounds)):
        of_y, of_reference, of_residual, inverse_gap, _, _ = evaluations[k]
        t = process.times[high].reshape(1)
        at_zero, at_one = (float(score(torch.full((1, 1), x, dtype=torch.float64), t)) for x in (0.0, 1.0))
        # held = gain y + shift
        gain = of_y - of_reference + of_residual * (at_one - at_zero + 1.0)
        shift = of_residual * at_zero
        step = torch.tensor([[1.0, 0.0], [gain, 0.0], [inverse_gap * gain, -inverse_gap]], dtype=torch.float64)
        mean = step @ mean + torch.tensor([0.0, shift, inverse_gap * shift], dtype=torch.float64)
        cov = step @ cov @ step.T
        for n in reversed(range(low, high)):
            decay, drift, weight, position, std, _ = (row[n] for row in coefficients)
            move = torch.eye(3, dtype=torch.float64)
            move[0] = torch.tensor([decay - drift, weight, weight * position])
            mean, cov = move @ mean, move @ cov @ move.T
            cov[0, 0] += std**2
        mean, cov = mean[:2], cov[:2, :2]
    return float(mean[0]), math.sqrt(float(cov[0, 0]))


@pytest.mark.parametrize("prediction", ["data", "score"])
@pytest.mark.parametrize("method", METHODS)
def test_order_of_convergence(method: str, prediction: str) -> None:
    """In W2 to the law at all 2,048 evaluations, for Gaussian data with its exact score."""
    process = one_gaussian(2048)
    for order, (least, most) in {1: (0.75, 1.35), 2: (1.7, 2.6)}.items():
        limit = law(process, method, prediction, 2, 2048)
        errors = [math.dist(law(process, method, prediction, order, M), limit) for M in (8, 16, 32, 64)]
        slope = math.log2(errors[0] / errors[-1]) / 3
        print(method, prediction, order, errors, slope)
        assert least < slope < most, (errors, slope)
