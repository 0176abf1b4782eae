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
from fastndsm._scheme import METHODS, PREDICTIONS, evaluation_indices

MEAN, DEVIATION = 1.5, 0.9


def one_gaussian(n_steps: int, grid: str = "quadratic") -> LangevinProcess:
    """Return a process towards N(0, 1), d = 1, that is not known to be one spherical component."""
    return LangevinProcess(GaussianMixture([1.0], [[0.0]], [[1.0]], "diag"), T=2.0, n_steps=n_steps, grid=grid)


def score(x: Tensor, t: Tensor) -> Tensor:
    """Return the score of data N(MEAN, DEVIATION^2) noised towards N(0, 1)."""
    decay = (-t).exp().reshape(-1, 1)
    return -(x - MEAN * decay.sqrt()) / (DEVIATION**2 * decay + 1.0 - decay)


# --- order of convergence ----------------------------------------------------------------------------------------


def law(process: LangevinProcess, method: str, prediction: str, order: int, M: int) -> tuple[float, float]:
    """Return mean and deviation of the samples, which are affine in the noise: their moments, step by step."""
    schedule = process.reverse_scheme(method, prediction).schedule(evaluation_indices(process.times, M, "cubic"), order)
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
    """In W2 to the law at all 2,048 evaluations, for Gaussian data with its exact score.

    The flow with `data` has not come to its order at 8 evaluations, where two errors cancel.
    """
    process = one_gaussian(2048)
    for order, (least, most) in {1: (0.75, 1.35), 2: (1.7, 2.6)}.items():
        limit = law(process, method, prediction, 2, 2048)
        counts = (16, 64) if (method, prediction) == ("ode", "data") else (8, 64)
        errors = [math.dist(law(process, method, prediction, order, M), limit) for M in counts]
        slope = math.log2(errors[0] / errors[1]) / math.log2(counts[1] / counts[0])
        assert least < slope < most, (errors, slope)


def test_the_linearised_residual_converges_to_the_law_of_the_data() -> None:
    """Its slope depends on the sample, so that laws are measured: of 50,000 samples, with one noise for every M."""
    process = one_gaussian(256)

    def found(method: str, order: int, M: int, prediction: str = "linear") -> tuple[float, float]:
        x = sample(score, process, 50_000, method, n_evaluations=M, order=order, prediction=prediction, seed=1)
        return float(x.mean()), float(x.std())

    for method in METHODS:
        limit = found(method, 2, 256)
        assert math.dist(limit, found(method, 1, 256, "score")) < 0.01
        for order, (least, most) in {1: (0.8, 1.6), 2: (1.7, 4.0)}.items():
            slope = (
                math.log2(math.dist(found(method, order, 8), limit) / math.dist(found(method, order, 64), limit)) / 3
            )
            assert least < slope < most, (method, order, slope)


# --- what stays as it is -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
@pytest.mark.parametrize("prediction", ["auto", "linear", "score"])
def test_without_a_residual_the_law_of_the_reference_is_kept(prediction: str, covariance_type: str) -> None:
    """However few the evaluations: the samples are those of Langevin dynamics, which do not depend on M."""
    m = random_mixture(covariance_type, 3, 2, ratio=4.0)
    process = LangevinProcess(m, T=1.0, n_steps=60)
    drawn = [
        sample(
            lambda x, t: m.score(x), process, 4000, n_evaluations=M, prediction=prediction, seed=2, dtype=torch.float64
        )
        for M in (1, 2, 5, 60)
    ]
    for few in drawn[:-1]:
        torch.testing.assert_close(few, drawn[-1], rtol=1e-9, atol=1e-9)
    r = m.responsibilities(drawn[0])
    error = (r.mean(0) - m.weights).abs() / (r.std(0) / math.sqrt(len(r)))
    assert float(error.amax()) < 5.0


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_every_step_evaluated_is_euler_maruyama(covariance_type: str) -> None:
    m = random_mixture(covariance_type, 3, 2, ratio=4.0)
    process = LangevinProcess(m, T=1.0, n_steps=12)

    def other(x: Tensor, t: Tensor) -> Tensor:
        return m.score(x) - 0.3 * x * t[:, None]

    found = sample(other, process, 50, n_evaluations=12, order=1, prediction="score", seed=4, dtype=torch.float64)
    y = m.sample(50, seed=4)
    for n in reversed(range(12)):
        t = process.times[n + 1].expand(50)
        y = functional.reverse_step(y, other(y, t), process, n, seed=4)
    torch.testing.assert_close(found, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_steps_may_be_taken_in_pieces(prediction: str) -> None:
    """What is held at t_first serves down to t_last, in one call or in two."""
    process = LangevinProcess(random_mixture("spherical", 3, 4), T=0.3, n_steps=20, grid="quadratic")
    y, held = normals(7, 4, seed=1), normals(7, 4, seed=2)
    scheme = process.reverse_scheme("sde", prediction)
    table = scheme.coefficients(15, 3)
    seed = torch.tensor(5)

    def go(y: Tensor, first: int, last: int) -> Tensor:
        bounds = torch.tensor([first, last])
        return process.dynamics.reverse_steps(y, held, 0.1 * held, None, bounds, table, seed, 0, "auto")

    whole = functional.reverse_steps(y, held, 0.1 * held, process, 15, 3, seed=5, prediction=prediction)
    assert torch.equal(go(go(y, 15, 9), 9, 3), whole)


def test_one_spherical_component_is_dpm_solver() -> None:
    """SDE-DPM-Solver++ (2M) and DPM-Solver++ (2M), written from their paper (arXiv 2211.01095, algorithms 2 and 4)."""
    d, M = 3, 8
    with pytest.warns(UserWarning, match="q above 0.2"):  # of the mixture's Euler steps, which are not taken here
        process = OUProcess(d, T=5.0, n_steps=M, grid="quadratic")
    t = process.times
    alpha, sigma = (-0.5 * t).exp(), (-torch.expm1(-t)).sqrt()
    half_log_snr = alpha.log() - sigma.log()

    def eps(x: Tensor, time: Tensor) -> Tensor:
        return torch.tanh(x) * (1.0 - 0.1 * time[:, None])

    def net(x: Tensor, time: Tensor) -> Tensor:
        return -eps(x, time) / (-torch.expm1(-time)).sqrt()[:, None]

    for method in METHODS:
        found = sample(net, process, 5, method, n_evaluations=M, prediction="data", seed=3, dtype=torch.float64)
        x = process.prior.sample(5, seed=3)
        before: Tensor | None = None
        for i in reversed(range(M)):
            now = (x - sigma[i + 1] * eps(x, t[i + 1].expand(5))) / alpha[i + 1]
            if i == 0:  # the last step, to sigma = 0, is of order 1
                x = now
                break
            h = half_log_snr[i] - half_log_snr[i + 1]
            data = now
            if before is not None:
                r = (half_log_snr[i + 1] - half_log_snr[i + 2]) / h
                data = (1 + 1 / (2 * r)) * now - 1 / (2 * r) * before
            before = now
            if method == "ode":
                x = sigma[i] / sigma[i + 1] * x - alpha[i] * torch.expm1(-h) * data
                continue
            z = functional.philox_normal(5, d, seed=3, step=i, stream=2, dtype=torch.float64)
            fall = -torch.expm1(-2 * h)
            x = sigma[i] / sigma[i + 1] * (-h).exp() * x + alpha[i] * fall * data + sigma[i] * fall.sqrt() * z
        torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_a_stiff_reference_needs_few_evaluations() -> None:
    """Eigenvalues in a ratio of 200, data with the exact score: 20 evaluations are as good as 400."""
    d, ratio = 8, 200.0
    variances = torch.logspace(0, -math.log10(ratio), d, dtype=torch.float64)
    axes = torch.linalg.qr(normals(d, d, seed=1))[0]
    covariance = (axes * variances) @ axes.T
    process = LangevinProcess(GaussianMixture([1.0], torch.zeros(1, d), covariance[None], "full"), n_steps=1500)
    factor = torch.linalg.cholesky(covariance) @ (
        0.7 * torch.eye(d, dtype=torch.float64) + 0.05 * normals(d, d, seed=2)
    )
    mean, law = 0.5 * factor.sum(1), factor @ factor.T

    def exact(x: Tensor, t: Tensor) -> Tensor:
        forget = (axes * (-t[0].double() / (2 * variances)).exp()) @ axes.T
        added = (axes * (variances * -torch.expm1(-t[0].double() / variances))) @ axes.T
        noised = forget @ law @ forget + added
        return -(x.double() - forget @ mean) @ torch.linalg.inv(noised)

    white = axes * variances.rsqrt()

    def distance(M: int) -> float:
        x = sample(exact, process, 10_000, n_evaluations=M, seed=1, dtype=torch.float64)
        target = torch.distributions.MultivariateNormal(mean, law)
        torch.manual_seed(0)
        return metrics.frechet_distance(x @ white, target.sample((40_000,)) @ white)

    assert distance(20) < distance(400) + 0.05


def test_other_drifts_and_likelihoods() -> None:
    """A DriftProcess with the drift of a mixture gives what the mixture gives; so does the likelihood at few points."""
    m = random_mixture("diag", 2, 2, ratio=3.0)
    langevin = LangevinProcess(m, T=1.0, n_steps=30, grid="quadratic")
    rate = 0.5 / m.largest_variance
    drift = DriftProcess(lambda x, t: 0.5 * m.score(x), m, T=1.0, n_steps=30, grid="quadratic", rate=rate)

    def other(x: Tensor, t: Tensor) -> Tensor:
        return m.score(x) - 0.3 * torch.sin(x) * (1 + t[:, None])

    for prediction in PREDICTIONS:
        for method in METHODS:
            options = {"n_evaluations": 6, "prediction": prediction, "seed": 1, "dtype": torch.float64}
            found, expected = (sample(other, p, 20, method, **options) for p in (drift, langevin))
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    x = m.sample(30, seed=2)
    exact = log_likelihood(other, LangevinProcess(m, T=1.0, n_steps=800, grid="quadratic"), x)
    errors = [float((log_likelihood(other, langevin, x, n_evaluations=M) - exact).abs().mean()) for M in (5, 10, 30)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.01


# --- arguments ---------------------------------------------------------------------------------------------------


def test_the_network_is_evaluated_as_often_as_asked() -> None:
    process = LangevinProcess(random_mixture("diag", 2, 3), T=0.5, n_steps=30)
    for grid, M in (("uniform", 7), ("quadratic", 5), ("cubic", 30), ([0.5, 0.1, 0.3], None)):
        seen: list[float] = []

        def counted(x: Tensor, t: Tensor, seen: list[float] = seen) -> Tensor:
            seen.append(float(t[0]))
            return -x

        sample(counted, process, 4, n_evaluations=M, grid=grid, seed=0)
        assert len(seen) == (M or 3) and seen == sorted(set(seen), reverse=True) and seen[0] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_evaluations": 31}, "n_evaluations: expected at most 30, the process's steps, found 31"),
        ({"n_evaluations": 0}, "n_evaluations: expected an integer of at least 1, found 0"),
        ({"order": 3}, "order: expected 1 or 2, found 3"),
        ({"prediction": "noise"}, "prediction: expected one of 'auto', 'data', 'score', 'linear', found"),
        ({"grid": "log"}, "grid: expected one of 'uniform', 'quadratic', 'cubic', found"),
        ({"grid": [0.1, 0.2]}, "grid: expected T = 0.5 as its latest time, found 0.2"),
        ({"grid": [0.5, 0.2], "n_evaluations": 3}, "n_evaluations: expected 2, the times of grid, found 3"),
        ({"grid": []}, "grid: expected times"),
    ],
)
def test_bad_arguments(options: dict[str, object], message: str) -> None:
    process = LangevinProcess(random_mixture("diag", 2, 3), T=0.5, n_steps=30)
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        sample(lambda x, t: -x, process, 4, **options)  # type: ignore[arg-type]


def test_reverse_steps_checks_its_arguments() -> None:
    process = LangevinProcess(random_mixture("diag", 2, 3), T=0.5, n_steps=30)
    y = normals(4, 3)
    for change, message in (
        ({"first": 31}, "first: expected an integer in 1..30, found 31"),
        ({"last": 5}, "last: expected an integer in 0..4, found 5"),
        ({"held": y[:2]}, "held: expected the shape of y"),
        ({"slope": y[:, :2]}, "slope: expected the shape of y"),
        ({"rate": torch.ones(4)}, "rate: expected None with prediction 'data'"),
        ({"prediction": "linear", "rate": torch.ones(3)}, r"rate: expected shape \(4,\), found \(3,\)"),
    ):
        arguments = {"held": y, "slope": None, "process": process, "first": 5, "last": 2, "seed": 0} | change
        with pytest.raises(ValueError, match=message):
            functional.reverse_steps(y, **arguments)  # type: ignore[arg-type]
