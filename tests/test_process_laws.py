"""Laws of the noising processes: weak order, stationarity, and the exact transitions of Ornstein-Uhlenbeck."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import (
    COVARIANCE_TYPES,
    full_covariances,
    normals,
    on_one_backend,  # noqa: F401
    quietly,
    random_mixture,
)

from fastndsm import GaussianMixture, LangevinProcess, OUProcess

all_types = pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)


def exact_expectation(m: GaussianMixture, phi: object, x0: float, T: float) -> float:
    """Return E phi(X_T) for dX = 1/2 grad log pi dt + dW in one dimension: the backward equation on a fine grid."""
    from scipy.sparse import diags
    from scipy.sparse.linalg import expm_multiply

    grid = np.linspace(-7.0, 9.0, 1601)
    h = grid[1] - grid[0]
    drift = 0.5 * m.score(torch.from_numpy(grid)[:, None]).numpy()[:, 0]
    up, down = 0.5 / h**2 + drift / (2 * h), 0.5 / h**2 - drift / (2 * h)
    up[-1] = down[0] = 0.0
    L = diags([down[1:], -(up + down), up[:-1]], [-1, 0, 1], format="csc")
    values = expm_multiply(T * L, phi(grid))  # type: ignore[operator]
    return float(np.interp(x0, grid, values))


def test_weak_order_one() -> None:
    """Error of E cos(X_T) on a nonlinear process against dt: the slope is 1."""
    m = GaussianMixture([0.4, 0.6], [[-1.0], [0.8]], [0.5, 0.7], "spherical")
    T, start = 1.0, 3.0
    exact = exact_expectation(m, np.cos, start, T)
    x0 = torch.full((200_000, 1), start, dtype=torch.float64)
    counts, errors = [2, 4, 8], []
    for N in counts:
        found = quietly(m, T=T, n_steps=N).simulate(x0, seed=1).cos()
        errors.append(abs(float(found.mean()) - exact))
        assert errors[-1] > 15 * float(found.std()) / math.sqrt(len(x0))  # the bias stands clear of the noise
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert 0.85 < slope < 1.15


@pytest.mark.parametrize("q", [0.2, 0.8])
def test_stationary_variance_of_a_gaussian(q: float) -> None:
    """Euler-Maruyama keeps N(m, Sigma / (1 - q/2)), the law of DESIGN's stability rule, and forgets any other start."""
    mean, variance = torch.tensor([1.0, -2.0]).double(), 0.3
    m = GaussianMixture([1.0], mean[None], [variance], "spherical")
    p = quietly(m, T=24 * variance, n_steps=round(12 / q))
    assert float(p.drift_scale[0]) / variance == pytest.approx(q)
    wide = variance / (1 - q / 2)
    n = 40_000
    for x0 in (mean + math.sqrt(wide) * normals(n, 2), torch.zeros(n, 2).double()):
        x = p.simulate(x0, seed=0)
        assert (1 - q) ** p.n_steps < 1e-5  # left of the start
        assert float(((x.mean(0) - mean) / math.sqrt(wide / n)).abs().amax()) < 4.5
        assert float(((x.var(0) / wide - 1) / math.sqrt(2 / n)).abs().amax()) < 4.5


@all_types
def test_pi_is_stationary(covariance_type: str) -> None:
    """With small steps draws from pi stay draws from pi: moments within noise and 1 / (1 - q/2)."""
    m = random_mixture(covariance_type, 3, 2, ratio=4.0)
    p = LangevinProcess(m, T=1.0, n_steps=50)
    precision = 1.0 / float(m.covariance_eigenvalues()[0].min())
    q = float(p.drift_scale[0]) * precision
    assert q < 0.05
    n = 40_000
    x0 = m.sample(n, seed=1)
    x = p.simulate(x0, seed=2)
    assert float((x - x0).norm(dim=1).mean()) > 0.5  # it did move
    mean = m.weights @ m.means
    centred = m.means - mean
    covariance = torch.einsum("k,kij->ij", m.weights, full_covariances(m) + centred[:, :, None] * centred[:, None])
    bias = 1 / (1 - q / 2) - 1
    standard = covariance.diagonal().sqrt()
    assert float(((x.mean(0) - mean).abs() / standard).amax()) < 4.5 / math.sqrt(n) + bias
    outer = (x - mean)[:, :, None] * (x - mean)[:, None]
    error = (outer.mean(0) - covariance).abs() - 4.5 * outer.std(0) / math.sqrt(n)
    assert bool((error < bias * standard[:, None] * standard).all())
    # and the fractions in each component
    r = m.responsibilities(x)
    assert float((r.mean(0) - m.weights).abs().amax()) < 4.5 * float(r.std(0).amax()) / math.sqrt(n) + bias


def test_ou_exact_transitions() -> None:
    p = OUProcess(2, T=3.0, n_steps=60, sigma=lambda t: 1.0 + 0.5 * t)
    scale, variance = p.marginal()
    # the law of the piecewise constant sigma: m = exp(-1/2 int sigma^2), v = 1 - m^2
    integral = np.cumsum((1.0 + 0.5 * p.times[:-1].numpy()) ** 2 * 0.05)
    np.testing.assert_allclose(scale.numpy(), np.exp(-0.5 * integral), rtol=1e-12)
    np.testing.assert_allclose(variance.numpy(), 1.0 - np.exp(-integral), rtol=1e-12)
    x0 = torch.tensor([[1.5, -0.5]], dtype=torch.float64).expand(100_000, 2)
    for step in (0, 9, 59):
        noised = p.exact_noised(x0, step, seed=1)
        mean, v = scale[step] * x0[0], float(variance[step])
        assert float(((noised.x.mean(0) - mean) / math.sqrt(v / len(x0))).abs().amax()) < 4.5
        assert float(((noised.x.var(0) / v - 1) / math.sqrt(2 / len(x0))).abs().amax()) < 4.5
        torch.testing.assert_close(noised.target, -(noised.x - mean) / v)
        torch.testing.assert_close(noised.variance, variance[step].expand(len(x0)))
    drawn = p.exact_noised(normals(9, 2), seed=3)
    assert torch.equal(drawn.step, p.draw_steps(9, seed=3))
    assert torch.equal(drawn.t, p.times[drawn.step + 1])


def test_euler_tends_to_the_exact_transitions_of_ou() -> None:
    """Mean factor and variance of the chain against those of the process: first order in dt."""
    errors = []
    for N in (20, 40, 80):
        p = OUProcess(1, T=1.0, n_steps=N)
        scale, variance = p.marginal()
        zero, one = (p.simulate(torch.full((1, 1), value).double(), seed=0) for value in (0.0, 1.0))
        errors.append((abs(float(one - zero) - float(scale[-1])), abs(float(p.noise_variance[-1] - variance[-1]))))
    ratios = np.array(errors)[:-1] / np.array(errors)[1:]
    assert (np.abs(ratios - 2.0) < 0.1).all()


def test_ou_is_the_langevin_process_of_the_standard_normal() -> None:
    ou = OUProcess(3, T=2.0, n_steps=20, event_shape=(3, 1))
    langevin = LangevinProcess(GaussianMixture.standard_normal(3), T=2.0, n_steps=20)
    x0 = normals(9, 3)
    for found, expected in zip(ou.noised(x0, seed=1), langevin.noised(x0, seed=1), strict=True):
        assert torch.equal(found, expected)
    assert ou.event_shape == (3, 1)
