"""The baselines, the solvers and the choice of settings that quality against network evaluations rests on."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastndsm import DSMLoss, GaussianMixture, OUProcess, networks
from fastndsm.training.trainer import TrainConfig

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from experiments import baselines, best, claims, evaluations, methods, solvers, tables, trained
from experiments.store import Store

VARIANCE = 0.36  # of Gaussian data, whose denoiser, score and velocity are known
MIXTURE = GaussianMixture([0.3, 0.7], [[2.1, -0.7, 0.7], [-0.9, 0.3, -0.3]], [0.2, 0.7], "spherical")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def exact(x: Tensor, sigma: Tensor) -> Tensor:
    return x * (VARIANCE / (VARIANCE + sigma.square()))[:, None]


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_the_mixture_denoises_as_its_score_says(sigma: float) -> None:
    """Tweedie's formula: E[x_0 | x] = x + sigma^2 grad log of the noised mixture."""
    noised = GaussianMixture(MIXTURE.weights, MIXTURE.means, MIXTURE.covariances + sigma**2, "spherical")
    x = MIXTURE.sample(50, seed=1).double() + sigma * torch.randn(50, 3, dtype=torch.float64)
    found = baselines.SphericalMixture(MIXTURE, torch.float64).denoise(x, torch.full((50,), sigma, dtype=torch.float64))
    torch.testing.assert_close(found, x + sigma**2 * noised.score(x))


def test_untrained_denoisers_are_their_skip_and_targets_have_variance_one() -> None:
    data = MIXTURE.sample(8000, seed=0).float()
    x0, noise = data[:4000], torch.randn(4000, 3, generator=generator())
    for make in (baselines.Denoiser, lambda net, z: baselines.MixtureDenoiser(net, z, MIXTURE)):
        model = make(networks.MLP(3, (8,), horizon=80.0), data)
        for sigma in (0.01, 0.3, 5.0):
            levels = torch.full((4000,), sigma)
            denoised = model(x0 + sigma * noise, levels)
            torch.testing.assert_close(denoised, model.skip(x0 + sigma * noise, levels))
            target = (x0 - denoised) / model.scale(levels)[:, None]
            assert float(target.detach().square().mean()) == pytest.approx(1.0, rel=0.1)


def test_couplings_keep_their_marginals_and_shorten_the_way() -> None:
    x1 = MIXTURE.sample(256, seed=0).float()
    x0, paired = (couple(x1, generator()) for couple in (baselines.independent, baselines.optimal))
    torch.testing.assert_close(x0.sort(0).values, paired.sort(0).values)
    assert float((x1 - paired).square().sum()) < 0.8 * float((x1 - x0).square().sum())
    apart = GaussianMixture([0.5, 0.5], [[50.0], [-50.0]], [1.0, 1.0], "spherical")
    x1 = apart.sample(4000, seed=0).float()
    x0 = baselines.component(apart)(x1, generator())
    assert torch.equal(x0.sign(), x1.sign()) and float((x0.abs() - 50.0).std()) == pytest.approx(1.0, abs=0.05)


def test_training_lowers_the_loss_and_repeats_itself() -> None:
    data = MIXTURE.sample(2000, seed=0).float()
    ends = []
    for _ in range(2):
        torch.manual_seed(0)
        model = baselines.MixtureDenoiser(networks.MLP(3, (32,), horizon=80.0), data * 1.5, MIXTURE)
        loss = baselines.denoising(-0.5)
        before = float(loss(model, data * 1.5, generator(1)).detach())
        average = baselines.train(model, loss, data * 1.5, TrainConfig(steps=200, batch_size=128, seed=3))
        assert float(loss(average, data * 1.5, generator(1))) < 0.9 * before
        ends.append(torch.cat([p.flatten() for p in average.parameters()]))
    assert torch.equal(*ends)


LEVELS = {steps: [10.0 * 0.02 ** (i / steps) for i in range(steps + 1)] for steps in (32, 128)}  # none to zero
START = torch.full((1, 1), (VARIANCE + 100.0) ** 0.5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("solver", "order"), [(solvers.ODE_2M, 2.0), (solvers.HEUN, 2.0), (solvers.SDE_1, 1.0), (solvers.SDE_2M, 2.0)]
)
def test_denoising_solvers_converge(solver: str, order: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of D = log sigma, which has dx / dsigma = p (x - D) / sigma in closed form; p = 2 for the mean of the SDE."""
    monkeypatch.setattr(solvers, "normal", lambda like, _: torch.zeros_like(like))
    p = 2.0 if solver in (solvers.SDE_1, solvers.SDE_2M) else 1.0

    def primitive(sigma: float) -> float:
        return (math.log(sigma) + 1.0 / p) / sigma**p

    errors = []
    for sigmas in LEVELS.values():
        end = sigmas[-1] ** p * (float(START) / sigmas[0] ** p + primitive(sigmas[-1]) - primitive(sigmas[0]))
        found = solvers.denoise(solver, lambda x, sigma: sigma.log()[:, None], START, sigmas, generator())
        errors.append(abs(float(found) - end))
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("solver", [solvers.SDE_1, solvers.SDE_2M])
def test_the_noise_of_the_sde_is_that_of_the_data(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps are linear in x and noise: start and noise of each step, followed apart, give the deviation."""
    sigmas = LEVELS[128]
    drawn = iter(range(1, len(sigmas)))

    def unit(like: Tensor, _: torch.Generator) -> Tensor:
        return torch.zeros_like(like).index_fill_(0, torch.tensor(next(drawn)), 1.0)

    monkeypatch.setattr(solvers, "normal", unit)
    paths = torch.cat([START, torch.zeros(len(sigmas) - 1, 1, dtype=torch.float64)])
    found = solvers.denoise(solver, exact, paths, sigmas, generator()).square().sum().sqrt()
    assert float(found) == pytest.approx((VARIANCE + sigmas[-1] ** 2) ** 0.5, rel=0.03)


@pytest.mark.parametrize(
    ("solver", "order"), [(solvers.EULER, 1.0), (solvers.HEUN, 2.0), (solvers.MIDPOINT, 2.0), (solvers.AB2, 2.0)]
)
def test_flow_solvers_converge(solver: str, order: float) -> None:
    errors = []
    for steps in (16, 64):
        x = torch.full((1, 1), 1.0, dtype=torch.float64)
        errors.append(
            abs(float(solvers.flow(solver, lambda x, t: (1.0 - 2.0 * t)[:, None] * x - x, x, steps)) - math.exp(-1.0))
        )
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.3)


def test_scores_and_velocities_become_denoisers() -> None:
    def score(x: Tensor, t: Tensor) -> Tensor:
        return -x / (VARIANCE * (-t).exp() - (-t).expm1())[:, None]

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        rate = (t * VARIANCE - (1.0 - t)) / (t.square() * VARIANCE + (1.0 - t).square())
        return x * rate[:, None]

    x, sigma = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0.01, 0.3, 1.0, 5.0, 70.0], dtype=torch.float64)
    torch.testing.assert_close(solvers.of_score(score)(x, sigma), exact(x, sigma))  # type: ignore[arg-type]
    torch.testing.assert_close(solvers.of_velocity(velocity)(x, sigma), exact(x, sigma))  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", [*solvers.DENOISING, *solvers.FLOWING])
@pytest.mark.parametrize("calls", [1, 2, 3, 10])
def test_no_solver_takes_more_evaluations_than_it_may(solver: str, calls: int) -> None:
    counted = 0

    def zero(x: Tensor, _: Tensor) -> Tensor:
        nonlocal counted
        counted += 1
        return torch.zeros_like(x)

    steps, x = solvers.steps_of(solver, calls), torch.randn(2, 2)
    if solver in solvers.DENOISING:
        solvers.denoise(solver, zero, x, solvers.noise_levels(steps), generator())
        assert calls - 1 <= counted <= calls
    if solver in solvers.FLOWING:
        counted = 0
        solvers.flow(solver, zero, x, steps)
        assert calls - 1 <= counted <= max(calls, 2 * (solver == solvers.MIDPOINT))


def test_a_network_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trained, "folder", tmp_path)
    config = next(
        c for c in evaluations.configs(0, quick=True) if c["space"] == "four_modes" and c["row"] == trained.SKIP
    )
    first = trained.load(config)
    monkeypatch.setattr(trained, "_train", lambda *_: pytest.fail("trained again"))
    again = trained.load(config | {"calls": 7, "solver": solvers.HEUN})  # settings of sampling alone
    for a, b in zip(first.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.seconds == first.seconds > 0
    assert isinstance(trained.load(config | {"steps": 0}).net, nn.Module)  # untrained: no file, no training
    assert len(list(tmp_path.iterdir())) == 2


def test_pairs_of_the_baselines_differ_in_the_sign_of_the_noise_alone() -> None:
    x0 = torch.randn(6, 3, generator=generator())
    process = OUProcess(3, T=4.0, n_steps=20)
    alone, pairs = (kind(process).draw(x0, seed=1, first_path=0) for kind in (DSMLoss, methods.AntitheticDSM))
    for a, b in zip(alone, pairs, strict=True):
        assert torch.equal(a, b[:6])  # the first of each pair
    middle = alone.x + alone.variance[:, None] * alone.target  # the decayed x_0
    torch.testing.assert_close(pairs.x[6:], 2.0 * middle - alone.x)
    assert torch.equal(pairs.target[6:], -alone.target) and torch.equal(pairs.step[6:], alone.step)

    class Recorded(baselines.Denoiser):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            self.seen = x, sigma
            return x

    denoiser = Recorded(nn.Identity(), x0)
    baselines.denoising(0.0, antithetic=True)(denoiser, x0, generator(2))
    (x, sigma), n = denoiser.seen, len(x0)
    torch.testing.assert_close(x[:n] + x[n:], 2.0 * x0)
    assert torch.equal(sigma[:n], sigma[n:]) and not torch.equal(x[:n], x0)


def test_every_configuration_is_planned_once_and_can_be_run() -> None:
    for seed in range(2):
        made = evaluations.configs(seed)
        assert len({str(sorted(c.items())) for c in made}) == len(made)
        for config in made:
            if config["row"] in trained.TRAINED and config.get("solver") == evaluations.EM:
                assert 0.5 * config["T"] * (1 - (1 - 1 / config["calls"]) ** 2) < 1.0


def test_the_best_setting_is_of_the_least_mean_and_of_most_seeds(tmp_path: Path) -> None:
    store = Store(tmp_path)
    values = {evaluations.SDE: {0: [4.0, 5.0], 1: [3.0, 3.0]}, evaluations.ODE: {0: [1.0]}}
    for seed in range(2):
        for config in evaluations.configs(seed):
            if (config["space"], config["row"], config["calls"]) == ("PCA 32", trained.EDM, 5) and config["steps"]:
                kept = config["draws"] > 1 and config["levels"] == evaluations.NARROW
                draws = [2.0] if config["draws"] == 1 else values[evaluations.SDE][seed] if kept else [9.0]
                result = {"draws": draws, "frechet": sum(draws) / len(draws), "cpu_seconds": 1.0}
                store.add("evaluations", config, evaluations.VERSION, result, None)
            elif (config["space"], config["row"], config["calls"]) == ("PCA 32", trained.PATH, 5):
                mean = 2.0 + seed if config["solver"] == "linear, flow" else 6.0
                result = {"draws": [mean], "frechet": mean, "cpu_seconds": 1.0}
                store.add("evaluations", config, evaluations.VERSION, result, None)
    results = tables.Results("evaluations", store, 2)
    found = best.best(results, "PCA 32", trained.EDM, 5)
    assert found is not None and (found.mean, found.low, found.high) == (3.75, 3.0, 5.0)
    assert found.setting == "SDE-DPM-Solver++ 2M, sigma 10 to 0.03"
    assert best.best(results, "PCA 32", trained.EDM, 10) is None and best.best(results, "PCA 32", methods.PI, 0) is None
    assert "| EDM | p_mean = -1.2 |" in best.tries(results)

    claim = next(c for c in claims.all_claims() if c.text == "Best settings, frechet: path below EDM")
    assert claims.judge(claim, {"evaluations": results}) == {
        "PCA 32, 5 evaluations": ("undecided so far (2 of 3 seeds)", "2.5 (2 to 3) against 3.75 (3 to 4.5)")
    }
