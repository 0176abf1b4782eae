"""Sampling and likelihoods with scores that are known exactly."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import COVARIANCE_TYPES, generator, on_one_backend, random_mixture  # noqa: F401
from torch import Tensor

from fastndsm import GaussianMixture, LangevinProcess, OUProcess, log_likelihood, sample

MEAN = torch.tensor([1.0, -0.5])
DEVIATION = 0.4


def gaussian_score(x: Tensor, t: Tensor) -> Tensor:
    """Return the score of data N(MEAN, DEVIATION^2 I) noised by the Ornstein-Uhlenbeck process with sigma = 1."""
    decay = (-t).exp()[:, None]
    return -(x - MEAN.to(x) * decay.sqrt()) / (DEVIATION**2 * decay + 1.0 - decay)


def ou(n_steps: int, T: float = 10.0) -> OUProcess:
    return OUProcess(2, T=T, n_steps=n_steps, grid="quadratic")


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_gaussian_data_is_recovered(method: str) -> None:
    n = 40_000
    y = sample(gaussian_score, ou(200), n, method=method, n_evaluations=200, seed=1)
    assert y.shape == (n, 2) and y.dtype == torch.get_default_dtype()
    # 4 standard errors and what the first order in dt and T = 10 leave: exp(-5) of the mean, 1% of the deviation
    error = (y.mean(0) - MEAN).abs()
    assert float(error.amax()) < 4 * DEVIATION / math.sqrt(n) + 0.005
    assert float((y.std(0) / DEVIATION - 1).abs().amax()) < 4 / math.sqrt(2 * n) + 0.01
    correlation = float(torch.corrcoef(y.T)[0, 1])
    assert abs(correlation) < 4 / math.sqrt(n)


def test_the_ode_converges_faster_than_first_order() -> None:
    """Error against the number of evaluations, from the same draws of the prior; the last step is of order 1."""

    def flow(M: int) -> Tensor:
        return sample(gaussian_score, ou(1600, T=2.0), 500, "ode", n_evaluations=M, grid="cubic", seed=1)

    exact = flow(800)
    errors = [float((flow(M) - exact).abs().mean()) for M in (20, 40, 80)]
    assert errors[0] > 3.0 * errors[1] > 3.0**2 * errors[2]


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_data_of_the_law_of_the_reference_stays_as_it_is(covariance_type: str) -> None:
    """If the data is pi, every marginal is pi: the flow stands still, the SDE keeps the law, the likelihood is pi's."""
    m = random_mixture(covariance_type, 3, 2, ratio=4.0)
    p = LangevinProcess(m, T=1.0, n_steps=40)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return m.score(x)

    still = sample(score, p, 500, method="ode", seed=3)
    torch.testing.assert_close(still, m.sample(500, seed=3).float(), rtol=1e-4, atol=1e-4)
    x = m.sample(20, seed=4)
    torch.testing.assert_close(log_likelihood(score, p, x), m.log_prob(x), rtol=1e-9, atol=1e-9)
    moved = sample(score, p, 20_000, method="sde", seed=3).double()
    r = m.responsibilities(moved)
    error = (r.mean(0) - m.weights).abs() / (r.std(0) / math.sqrt(len(moved)))
    assert float(error.amax()) < 5.0
    mean = m.weights @ m.means
    assert float(((moved.mean(0) - mean) / (moved.std(0) / math.sqrt(len(moved)))).abs().amax()) < 5.0


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_samples_do_not_depend_on_the_batch(method: str) -> None:
    whole = sample(gaussian_score, ou(20, T=2.0), 33, method=method, seed=5)
    for batch_size in (1, 10, 32, 100):
        batched = sample(gaussian_score, ou(20, T=2.0), 33, method=method, seed=5, batch_size=batch_size)
        torch.testing.assert_close(batched, whole, rtol=1e-5, atol=1e-5)
    later = sample(gaussian_score, ou(20, T=2.0), 13, method=method, seed=5, first_path=20)
    torch.testing.assert_close(later, whole[20:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_seeds(method: str) -> None:
    def draw(seed: int | Tensor | None) -> Tensor:
        return sample(gaussian_score, ou(10, T=1.0), 5, method=method, seed=seed)

    assert torch.equal(draw(1), draw(1)) and torch.equal(draw(torch.tensor(1)), draw(1))
    assert not torch.equal(draw(2), draw(1))
    torch.manual_seed(0)
    first, second = draw(None), draw(None)
    torch.manual_seed(0)
    assert torch.equal(draw(None), first) and not torch.equal(first, second)


def test_steps_and_times_seen_by_the_network() -> None:
    """From T down to t_1, never 0."""
    p = ou(4, T=0.5)
    for method, expected in (("sde", [4, 3, 2, 1]), ("ode", [4, 3, 2, 1])):
        seen: list[float] = []

        def score(x: Tensor, t: Tensor, seen: list[float] = seen) -> Tensor:
            assert t.shape == (len(x),) and t.dtype == x.dtype
            seen.append(float(t[0]))
            return -x

        sample(score, p, 3, method=method, seed=0)
        assert seen == pytest.approx([float(p.times[n]) for n in expected])


def test_images_and_a_single_step() -> None:
    m = random_mixture("diag", 2, 6, event_shape=(1, 2, 3))
    p = LangevinProcess(m, T=0.005, n_steps=1)
    for method in ("sde", "ode"):
        assert sample(lambda x, t: m.score(x), p, 5, method=method, seed=0).shape == (5, 1, 2, 3)
    x = m.sample(4, seed=1)
    torch.testing.assert_close(log_likelihood(lambda x, t: m.score(x), p, x), m.log_prob(x))


def test_no_gradient_is_kept_and_a_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    weight = torch.ones((), requires_grad=True)
    y = sample(lambda x, t: -weight * x, ou(5, T=0.5), 4, seed=0, batch_size=2, progress=True)
    assert not y.requires_grad
    assert "10/10" in capsys.readouterr().err


def test_non_finite_samples_stop_with_the_step() -> None:
    p = ou(5, T=0.5)

    def score(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t < 0.2)[:, None], torch.full_like(x, math.nan), -x)

    # t_3 = 0.18 is the first time below 0.2
    with pytest.raises(
        FloatingPointError,
        match=r"^score_net: expected finite samples, found NaN .* after evaluation 3 of 5, t = 0\.18;",
    ):
        sample(score, p, 3, seed=0)


# --- likelihood -----------------------------------------


def gaussian_data(dim: int) -> tuple[Tensor, Tensor]:
    """Return mean and covariance, correlated and unequal."""
    g = generator(dim)
    basis = torch.linalg.qr(torch.randn(dim, dim, generator=g, dtype=torch.float64))[0]
    variances = torch.linspace(0.2, 1.5, dim, dtype=torch.float64)
    return torch.randn(dim, generator=g, dtype=torch.float64), basis @ torch.diag(variances) @ basis.T


@pytest.mark.parametrize("dim", [1, 2, 16, 17])
def test_log_likelihood_of_gaussian_data(dim: int) -> None:
    """Within 1% of the closed form: exact divergence up to 16 dimensions, Hutchinson's beyond."""
    mean, covariance = gaussian_data(dim)
    eye = torch.eye(dim, dtype=torch.float64)

    def score(x: Tensor, t: Tensor) -> Tensor:
        decay = float((-t[0]).exp())
        return -torch.linalg.solve(decay * covariance + (1.0 - decay) * eye, (x - decay**0.5 * mean).T).T

    law = torch.distributions.MultivariateNormal(mean, covariance)
    x = law.sample((12,))
    p = OUProcess(dim, T=10.0, n_steps=120, grid="quadratic")
    found = log_likelihood(score, p, x, n_probes=16)
    expected = law.log_prob(x)
    assert found.shape == (12,)
    assert abs(float(found.mean() / expected.mean()) - 1.0) < 0.01
    assert float((found - expected).abs().amax()) < 0.01 * float(expected.abs().mean()) * (4 if dim > 16 else 1)


def test_hutchinson_probes_come_from_the_seed() -> None:
    p = OUProcess(20, T=1.0, n_steps=5)
    w = torch.randn(20, 20, generator=generator(0), dtype=torch.float64) / 5
    x = torch.randn(4, 20, generator=generator(1), dtype=torch.float64)

    def run(**options: int) -> Tensor:
        return log_likelihood(lambda x, t: torch.tanh(x @ w), p, x, **options)

    assert torch.equal(run(), run(seed=0))
    assert not torch.equal(run(), run(seed=1))
    many = torch.stack([run(seed=seed, n_probes=16) for seed in range(20)])
    # unbiased: the average over seeds tends to the exact divergence, which one probe per unit vector gives
    import fastndsm.sampling.likelihood as module

    limit, module.EXACT_DIVERGENCE_DIM = module.EXACT_DIVERGENCE_DIM, 20
    try:
        exact = run()
    finally:
        module.EXACT_DIVERGENCE_DIM = limit
    z = (many.mean(0) - exact) / (many.std(0) / math.sqrt(20))
    assert float(z.abs().amax()) < 4.0


def test_log_likelihood_of_images_in_float32() -> None:
    m = GaussianMixture([1.0], torch.zeros(1, 6), torch.ones(1), "spherical", event_shape=(1, 2, 3))
    p = LangevinProcess(m, T=3.0, n_steps=50)
    x = torch.randn(5, 1, 2, 3)
    found = log_likelihood(lambda x, t: -x, p, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, m.log_prob(x), rtol=1e-4, atol=1e-4)
