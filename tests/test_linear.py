"""Linear noising with a mixture: closed forms, the laws that sampling and likelihood keep, EDM's form, flows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import COVARIANCE_TYPES, full_covariances, normals, on_one_backend, random_mixture
from torch import Tensor, nn

import fastndsm
from fastndsm import (
    DSMLoss,
    EDMProcess,
    FlowMatchingLoss,
    FlowProcess,
    GaussianMixture,
    LangevinProcess,
    NDSMLoss,
    OUProcess,
    ResidualScore,
    checkpoint,
    functional,
    log_likelihood,
    loss_for,
    metrics,
    networks,
    sample,
)

__all__ = ["on_one_backend"]

kinds = pytest.mark.parametrize("kind", COVARIANCE_TYPES)
F64 = torch.float64


def growing(t: float) -> float:
    return 1.0 + 0.4 * t


class Zero(nn.Module):
    """A network that has learnt nothing, with a parameter all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return 0.0 * self.weight * x


def linear_processes(m: GaussianMixture) -> dict[str, Any]:
    return {
        "vp": OUProcess(m.dim, T=2.0, n_steps=60, grid="quadratic", reference=m),
        "vp, sigma(t)": OUProcess(m.dim, T=1.5, n_steps=60, sigma=growing, grid="quadratic", reference=m),
        "edm": EDMProcess(m.dim, m),
    }


def brute(m: GaussianMixture, scale: float, variance: float) -> Any:
    """Return the noised law by torch.distributions."""
    eye = torch.eye(m.dim, dtype=F64)
    components = torch.distributions.MultivariateNormal(
        scale * m.means, scale**2 * full_covariances(m) + variance * eye
    )
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(m.weights), components)


# --- the noised mixture --------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("name", ["vp", "vp, sigma(t)", "edm"])
def test_the_noised_reference_at_each_rows_own_time(kind: str, name: str) -> None:
    m = random_mixture(kind, 5, 3)
    process = linear_processes(m)[name]
    t = 0.01 + 1.4 * torch.rand(8, dtype=F64, generator=torch.Generator().manual_seed(1))
    x = (2.0 * normals(8, 3)).requires_grad_()
    scale, variance = process.scale_and_variance(t)
    laws = [brute(m, float(a), float(v)) for a, v in zip(scale, variance, strict=True)]
    expected = torch.stack([law.log_prob(row) for law, row in zip(laws, x, strict=True)])
    (score,) = torch.autograd.grad(expected.sum(), x)
    torch.testing.assert_close(process.reference_log_prob(x, t), expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(process.reference_score(x, t), score, rtol=1e-9, atol=1e-10)
    for i in range(8):  # all rows at one time take another way
        one = process.reference_score(x, t[i].expand(8))[i], process.reference_log_prob(x, t[i].expand(8))[i]
        torch.testing.assert_close(one, (score[i], expected[i]), rtol=1e-9, atol=1e-10)
        noised = process.noised_reference(float(t[i]))
        torch.testing.assert_close(noised.score(x[i : i + 1])[0], score[i], rtol=1e-9, atol=1e-10)


def test_sigma_of_t_is_integrated_as_the_steps_have_it() -> None:
    process = OUProcess(2, T=1.5, n_steps=60, sigma=growing, reference=random_mixture("diag", 3, 2))
    scale, variance = process.scale_and_variance(process.times[1:])
    torch.testing.assert_close((scale, variance), process.marginal(), rtol=1e-12, atol=1e-12)


@kinds
def test_it_compiles_to_one_graph(kind: str) -> None:
    m = random_mixture(kind, 4, 3)
    x, variance = normals(5, 3), 0.1 + normals(5, seed=1).abs()
    compiled = torch.compile(functional.noised_score, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, variance, m), functional.noised_score(x, variance, m))


@kinds
def test_blocks_of_components_are_one_sum(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastndsm.reference import noised

    m = random_mixture(kind, 11, 3)
    x, variance = 2.0 * normals(4, 3), normals(4, seed=1).abs()
    whole = functional.noised_score(x, variance, m, backend="reference")
    monkeypatch.setattr(noised, "BLOCK_ELEMENTS", 3 * x.numel())
    torch.testing.assert_close(functional.noised_score(x, variance, m, backend="reference"), whole, rtol=1e-12, atol=0)


def test_half_precision_is_computed_in_float32() -> None:
    m = random_mixture("spherical", 4, 3)
    process = OUProcess(3, T=2.0, reference=m)
    x, t = normals(6, 3).to(torch.bfloat16), torch.linspace(0.1, 2.0, 6)
    exact = process.reference_score(x.double(), t.double())
    assert float((process.reference_score(x, t).double() - exact).abs().max() / exact.abs().max()) < 2**-8


def test_without_a_mixture_the_process_is_the_one_it_was() -> None:
    plain = OUProcess(3, T=4.0, n_steps=20)
    standard = OUProcess(3, T=4.0, n_steps=20, reference=GaussianMixture.standard_normal(3))
    x, t = normals(5, 3), torch.linspace(0.1, 4.0, 5, dtype=F64)
    assert torch.equal(plain.reference_score(x, t), plain.reference.score(x))
    torch.testing.assert_close(standard.reference_score(x, t), -x)
    assert set(plain.state_dict()) == {k for k in standard.state_dict() if not k.startswith("_normal")}


# --- sampling ------------------------------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("method", ["sde", "ode"])
def test_exact_scores_give_the_data(kind: str, method: str) -> None:
    """Data of the mixture itself: the residual is zero, and what an untrained network samples is right."""
    m = random_mixture(kind, 4, 2, ratio=4.0)
    exact = m.sample(4000, seed=3)
    for process in linear_processes(m).values():
        net = ResidualScore(Zero(), process)
        drawn = sample(net, process, 4000, method, n_evaluations=40, seed=0)
        assert metrics.energy_distance(drawn, exact) < 0.008
        later = sample(net, process, 4000, method, n_evaluations=20, seed=0, start=0.7)
        assert metrics.energy_distance(later, exact) < 0.008


@pytest.mark.parametrize("name", ["vp", "edm"])
def test_one_component_is_sampled_exactly(name: str) -> None:
    m = GaussianMixture([1.0], [[1.0, -2.0]], [[[0.5, 0.2], [0.2, 0.3]]])
    process = linear_processes(m)[name]
    drawn = sample(ResidualScore(Zero(), process), process, 20_000, "ode", n_evaluations=50, seed=0)
    torch.testing.assert_close(drawn.mean(0), m.means[0], rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.T.cov(), m.covariances[0], rtol=0, atol=0.02)


def test_sampling_starts_from_the_noised_mixture_at_t() -> None:
    m = random_mixture("full", 4, 2)
    for process in (OUProcess(2, T=2.0, n_steps=40, reference=m), EDMProcess(2, m)):
        net = ResidualScore(Zero(), process)
        states = sample(net, process, 50, n_evaluations=4, start=1.0, seed=5, trajectory=4)
        t = float(process.times[1:][(process.times[1:] - 1.0).abs().argmin()]) if process.T == 2.0 else 1.0
        torch.testing.assert_close(states[0], process.noised_reference(t).sample(50, seed=5))


def test_edm_takes_the_steps_of_dpm_solver() -> None:
    """Compare with Lu et al.'s DPM-Solver++ (2M) as it is written down, on EDM's levels."""
    m = random_mixture("spherical", 3, 2)
    process = EDMProcess(2, m, sigma_min=0.1, sigma_max=5.0)
    net = ResidualScore(Zero(), process)
    x = process.prior.sample(6, seed=0)
    found = sample(net, process, 6, "ode", n_evaluations=7, x_T=x)
    levels = [(5.0 ** (1 / 7) + i / 6 * (0.1 ** (1 / 7) - 5.0 ** (1 / 7))) ** 7 for i in range(7)] + [0.0]
    last, width = None, math.inf
    for sigma, after in itertools.pairwise(levels):
        t = torch.full((6,), sigma, dtype=F64)
        denoised = x + sigma**2 * net(x, t)
        if after == 0.0:
            x = denoised
            break
        h = math.log(sigma / after)
        held = denoised if last is None else denoised + (denoised - last) * (0.5 * h / width)
        x, last, width = held + (after / sigma) * (x - held), denoised, h
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


# --- likelihood ----------------------------------------------------------------------------------------------------


@kinds
def test_likelihood_to_one_percent(kind: str) -> None:
    m = random_mixture(kind, 4, 3, ratio=4.0)
    x = m.sample(20, seed=1)
    exact = m.log_prob(x)
    processes = [OUProcess(3, T=3.0, n_steps=150, grid="quadratic", reference=m), EDMProcess(3, m), FlowProcess(m)]
    for process in processes:
        found = log_likelihood(ResidualScore(Zero(), process), process, x)
        assert float((found - exact).abs().mean()) < 0.01 * float(exact.abs().mean()), type(process)


# --- training ------------------------------------------------------------------------------------------------------


@kinds
def test_preconditioned_outputs_have_variance_one(kind: str) -> None:
    """Find what the network is to give, E[x_0 | x] aside, of variance one at every noise level: by c_out."""
    m = random_mixture(kind, 4, 6, ratio=4.0)
    process = EDMProcess(6, m, m.sample(4000, seed=1))
    loss = DSMLoss(process, reduction="none")
    x0 = m.sample(4000, seed=2)
    for level in range(0, process.n_steps, 40):
        found = loss(ResidualScore(Zero(), process), x0, seed=0, step=level)
        assert float(2.0 * found.detach().mean() / 6) == pytest.approx(1.0, abs=0.06)


def test_edm_without_a_mixture_is_karras() -> None:
    process = EDMProcess(2, sigma_data=0.5, p_std=1.2)
    t = torch.tensor([0.01, 0.3, 5.0, 300.0], dtype=F64)
    x, square = normals(4, 2), t.square()[:, None]
    skip = 0.25 / (square + 0.25) * x
    torch.testing.assert_close(x + square * process.reference_score(x, t), skip)
    torch.testing.assert_close(
        process.output_scale(t[:3]), t[:3] * 0.5 * (t[:3] ** 2 + 0.25).rsqrt(), rtol=3e-3, atol=0
    )
    assert float(process.output_scale(t)[3]) == pytest.approx(0.5, rel=1e-3)
    assert process.p_mean == pytest.approx(-1.2, abs=0.01) and process.T == 80.0
    drawn = process.exact_noised(torch.zeros(20_000, 2, dtype=F64), seed=0)
    logs = drawn.t.log()
    assert float(logs.mean()) == pytest.approx(process.p_mean, abs=0.03)
    assert float(logs.std()) == pytest.approx(1.2, abs=0.03)
    torch.testing.assert_close(drawn.x, -drawn.target * drawn.variance[:, None])
    inputs, noise = process.network_inputs(x, t)
    torch.testing.assert_close(inputs, x * (square + 0.25).rsqrt())
    assert torch.equal(noise, t)
    torch.testing.assert_close(EDMProcess(2, c_noise="log").network_inputs(x, t)[1], 0.25 * t.log())


@pytest.mark.parametrize("make", [lambda m: OUProcess(2, T=2.0, n_steps=30, reference=m), lambda m: EDMProcess(2, m)])
def test_targets_have_the_score_for_their_mean(make: Callable[[GaussianMixture], Any]) -> None:
    """E[target . f(x)] = E[score . f(x)] for f(x) = tanh(x), data of the mixture, at one step."""
    m = random_mixture("diag", 3, 2)
    process = make(m)
    drawn = process.exact_noised(m.sample(40_000, seed=1), step=process.n_steps // 2, seed=2)
    score = process.reference_score(drawn.x, drawn.t)
    differences = ((drawn.target - score) * drawn.x.tanh()).sum(1)
    assert abs(float(differences.mean() / differences.std())) * 200 < 4.0


def test_a_path_has_its_time_and_noise_whatever_the_batch() -> None:
    m = random_mixture("spherical", 3, 2)
    x0 = m.sample(9, seed=1)
    for process in (EDMProcess(2, m), FlowProcess(m)):
        whole, part = process.exact_noised(x0, seed=3), process.exact_noised(x0[4:7], seed=3, first_path=4)
        for one, other in zip(whole, part, strict=True):
            torch.testing.assert_close(one[4:7], other)
        assert len(whole.t.unique()) == 9


def test_the_path_estimator_runs_on_edm() -> None:
    """Its chain has no drift: target and variance are those of classical denoising score matching."""
    process = EDMProcess(2, random_mixture("spherical", 3, 2))
    x0 = normals(5, 2)
    drawn = process.noised(x0, step=40, seed=0)
    torch.testing.assert_close(drawn.target, -(drawn.x - x0) / process.times[41] ** 2)
    torch.testing.assert_close(drawn.variance, (process.times[41] ** 2).expand(5))


# --- flows ---------------------------------------------------------------------------------------------------------


def test_a_line_ends_in_the_component_of_its_start() -> None:
    m = GaussianMixture([0.3, 0.7], [[-8.0, 0.0], [8.0, 0.0]], [1.0, 0.25], "spherical")
    x0 = m.sample(2000, seed=1)
    drawn = FlowProcess(m).exact_noised(x0, seed=2)
    y = x0 - drawn.target
    torch.testing.assert_close(drawn.x, x0 + drawn.t[:, None] * (y - x0))
    assert torch.equal(y[:, 0] > 0, x0[:, 0] > 0)
    for sign, deviation in ((-1, 1.0), (1, 0.5)):
        assert float(y[sign * x0[:, 0] > 0].std(0).mean()) == pytest.approx(deviation, rel=0.05)
    assert 0.0 < float(drawn.t.min()) and float(drawn.t.max()) < 1.0
    assert float(drawn.t.mean()) == pytest.approx(0.5, abs=0.02)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """Return E[x_0 - y | x_t] of x_0 ~ N(2, 1/4) and y ~ N(0, 1), independent."""
    t = t[:, None]
    variance = 0.25 * (1.0 - t) ** 2 + t**2
    return 2.0 + (0.25 * (1.0 - t) - t) / variance * (x - 2.0 * (1.0 - t))


def test_a_flow_takes_steps_of_adams_and_bashforth() -> None:
    process = FlowProcess(GaussianMixture.standard_normal(1))
    x = torch.linspace(-2.0, 2.0, 9, dtype=F64)[:, None]
    exact = 2.0 + 0.5 * x
    errors = {}
    for order, steps in ((1, 10), (2, 10), (2, 20)):
        found = sample(velocity, process, 9, order=order, n_evaluations=steps, x_T=x, dtype=F64)
        errors[order, steps] = float((found - exact).abs().max())
    assert errors[2, 10] < 0.5 * errors[1, 10]
    assert errors[2, 20] < 0.35 * errors[2, 10]
    y, last = x, None
    for i in range(10):  # as it is written down
        v = velocity(y, torch.full((9,), 1.0 - i / 10, dtype=F64))
        y, last = y + 0.1 * (v if last is None else 1.5 * v - 0.5 * last), v
    torch.testing.assert_close(sample(velocity, process, 9, n_evaluations=10, x_T=x, dtype=F64), y)


def test_the_likelihood_of_a_flow() -> None:
    process = FlowProcess(GaussianMixture.standard_normal(1), n_steps=400)
    x = torch.tensor([[1.0], [2.0], [2.7]], dtype=F64)
    exact = torch.distributions.Normal(2.0, 0.5).log_prob(x)[:, 0].double()
    torch.testing.assert_close(log_likelihood(velocity, process, x), exact, rtol=0.01, atol=0.01)


def test_a_flow_knows_its_one_method() -> None:
    process = FlowProcess(random_mixture("diag", 3, 2))
    with pytest.raises(ValueError, match="method: expected 'ode' with a FlowProcess, found 'sde'"):
        sample(velocity, process, 3, "sde")
    with pytest.raises(ValueError, match="prediction: expected 'score' with a FlowProcess"):
        sample(velocity, process, 3, prediction="data")
    with pytest.raises(TypeError, match="found a FlowProcess; use FlowMatchingLoss"):
        NDSMLoss(process)(velocity, normals(3, 2))


# --- one line ------------------------------------------------------------------------------------------------------

ALL: dict[str, Callable[[GaussianMixture], Any]] = {
    "nonlinear": lambda m: LangevinProcess(m, n_steps=50),
    "linear": lambda m: OUProcess(2, T=6.0, n_steps=40, grid="quadratic"),
    "linear, mixture": lambda m: OUProcess(2, n_steps=40, grid="quadratic", reference=m),
    "edm": lambda m: EDMProcess(2),
    "edm, mixture": lambda m: EDMProcess(2, m, m.sample(100, seed=0), p_mean=-0.7),
    "flow": lambda m: FlowProcess(m, n_steps=30),
}


@pytest.mark.parametrize("name", ALL)
def test_a_process_is_all_that_they_differ_in(name: str, tmp_path: Any) -> None:
    """Train, sample, take likelihoods, save and load, by the same lines."""
    m = random_mixture("spherical", 4, 2, ratio=3.0)
    process = ALL[name](m)
    assert isinstance(
        loss_for(process), FlowMatchingLoss if name == "flow" else NDSMLoss if name == "nonlinear" else DSMLoss
    )
    torch.manual_seed(0)
    net = ResidualScore(networks.MLP(2, (16,), horizon=process.T, embedding_dim=8), process)
    data = m.sample(200, seed=1).float()
    config = fastndsm.training.TrainConfig(steps=12, batch_size=16, checkpoint_every=6)
    folder = tmp_path / "run"
    trainer = fastndsm.training.Trainer(net, loss_for(process), data, config, directory=folder)
    trainer.fit(progress=False)
    drawn = sample(trainer.ema_net, process, 20, n_evaluations=5, seed=0)
    assert drawn.shape == (20, 2) and bool(drawn.isfinite().all())
    likelihood = log_likelihood(trainer.ema_net, process, data[:5], n_evaluations=20)
    checkpoint.save_model(tmp_path / "model", trainer.ema_net, process)
    loaded, again, _ = checkpoint.load_model(tmp_path / "model")
    assert type(again) is type(process) and again.same_law(process)
    torch.testing.assert_close(sample(loaded, again, 20, n_evaluations=5, seed=0), drawn)
    torch.testing.assert_close(log_likelihood(loaded, again, data[:5], n_evaluations=20), likelihood)
    x0 = data[:5]
    torch.testing.assert_close(loss_for(again)(loaded, x0, seed=1), loss_for(process)(trainer.ema_net, x0, seed=1))
    resumed = fastndsm.training.Trainer(net, loss_for(process), data, config, directory=folder)
    assert resumed.resume() == 12


def test_a_network_of_one_noising_is_not_sampled_by_another() -> None:
    m = random_mixture("spherical", 4, 2)
    processes = [make(m) for make in ALL.values()]
    for one, other in itertools.permutations(processes, 2):
        with pytest.raises(ValueError, match="score_net: expected a ResidualScore on"):
            sample(ResidualScore(Zero(), one), other, 3)


@pytest.mark.parametrize("name", ["linear, mixture", "flow"])
def test_classes_start_from_their_components(name: str) -> None:
    m = GaussianMixture([0.5, 0.5], [[-8.0, 0.0], [8.0, 0.0]], [1.0, 1.0], "spherical")
    process = ALL[name](m)
    x0 = m.sample(400, seed=1)
    labels = (x0[:, 0] > 0).long()
    process.fit_prior(x0, labels)
    wanted = torch.arange(40) % 2
    drawn = process.draw_prior(40, seed=0, condition=wanted)
    if name == "flow":
        assert torch.equal((drawn[:, 0] > 0).long(), wanted)
    else:
        assert float(drawn[wanted == 1, 0].mean()) > 1.0 > -1.0 > float(drawn[wanted == 0, 0].mean())
    assert process.prior_knows(wanted)


# --- bad input -----------------------------------------------------------------------------------------------------


def test_bad_input_is_refused() -> None:
    m = random_mixture("diag", 3, 2)
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: OUProcess(3, reference=m), ValueError, "reference: expected a mixture of 3 values, found 2"),
        (lambda: OUProcess(2, reference=1), TypeError, "reference: expected a GaussianMixture, found int"),
        (lambda: EDMProcess(3, m), ValueError, "reference: expected a mixture of 3 values, found 2"),
        (lambda: EDMProcess(2, sigma_min=3.0, sigma_max=2.0), ValueError, "sigma_min: expected less than"),
        (lambda: EDMProcess(2, p_std=0.0), ValueError, "p_std: expected a finite positive number, found 0.0"),
        (lambda: EDMProcess(2, c_noise="t"), ValueError, "c_noise: expected one of 'sigma', 'log', found 't'"),
        (lambda: FlowProcess(2), TypeError, "reference: expected a GaussianMixture, found int"),
        (lambda: FlowMatchingLoss(EDMProcess(2)), TypeError, "process: expected a FlowProcess, found EDMProcess"),
        (
            lambda: DSMLoss(LangevinProcess(m, n_steps=300)),
            TypeError,
            "process: expected an OUProcess or an EDMProcess",
        ),
        (lambda: loss_for(m), TypeError, "process: expected a noising process, found GaussianMixture"),
        (
            lambda: functional.noised_score(normals(3, 2), normals(2), m),
            ValueError,
            r"variance: expected shape \(\) or",
        ),
        (lambda: functional.noised_score(normals(1, 2), -torch.ones(1), m), ValueError, "variance: expected non-neg"),
        (lambda: m.noised(0.0, 1.0), ValueError, "scale: expected a finite positive number"),
        (
            lambda: sample(velocity, LangevinProcess(m, n_steps=300), 2, start=0.1),
            TypeError,
            r"start: expected \(x, t\) with a LangevinProcess, found a time alone",
        ),
        (lambda: sample(velocity, OUProcess(2, reference=m), 2, start=9.0), ValueError, "start: expected a time of at"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
