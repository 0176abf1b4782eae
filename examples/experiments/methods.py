"""The rows of every comparison: one network, one budget of network evaluations, and noising that differs.

    linear VP DSM                   dX = -X/2 dt + dW, prior N(0, I), exact transitions, score -x + net / sqrt(v)
    linear noising, mixture prior   the same noising; the fitted mixture, noised in closed form, is prior and residual
    path, K = 1                     Langevin noising towards one fitted spherical Gaussian
    path, path antithetic, plain antithetic, control_variate    nonlinear noising towards the fitted mixture

Each is a row of the tables. "linear VP DSM antithetic" is a setting of the first.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import DSMLoss, GaussianMixture, LangevinProcess, NDSMLoss, OUProcess, ResidualScore, networks
from fastndsm.process import Noised, NoisingProcess
from fastndsm.training.trainer import TrainConfig, Trainer

from .baselines import P_STD

PI, FULL, HELD_OUT = "draws from pi", "draws from a full mixture", "held-out data"
LINEAR, LINEAR_MIXTURE, LINEAR_FULL = "linear VP DSM", "linear noising, mixture prior", "linear noising, full mixture"
LINEAR_PAIRS = f"{LINEAR} antithetic"
ONE, PATH = "path, K = 1", "path"
ESTIMATORS: dict[str, dict[str, Any]] = {
    "control_variate": {"estimator": "control_variate"},
    "plain antithetic": {"estimator": "plain", "antithetic": True},
    PATH: {"estimator": "path"},
    "path antithetic": {"estimator": "path", "antithetic": True},
}
TRAINED = (LINEAR, LINEAR_MIXTURE, ONE, *ESTIMATORS)
UNTRAINED = (PI, FULL, HELD_OUT)
TWO_EVALUATIONS = ("control_variate", "plain antithetic", "path antithetic", LINEAR_PAIRS)

# What a configuration may change. T of linear noising is a time; T of nonlinear noising a multiple of the largest
# variance of a component (sigma = 1), and so is that of `path, K = 1`, which needs the longer one to forget its start.
DEFAULTS: dict[str, Any] = {
    "components": 10,
    "covariance": "spherical",
    "reg_covar": 1e-2,
    "hidden": [256, 256, 256],
    "steps": 2000,
    "evaluations": 256,  # of the network, each optimizer step
    "n_init": 5,  # starts of EM, of which the most likely is taken: a bad fit costs more than any estimator gains
    "n_steps": 100,
    "shorten": True,  # the horizon, where n_steps could not resolve the narrowest component (q above 0.2)
    "features": False,
    "residual": True,
    "linear": {"T": 10.0, "grid": "quadratic"},
    "linear_mixture": {"T": 3.0, "grid": "quadratic"},
    "nonlinear": {"T": 3.0, "grid": "quadratic"},
}
# The best of the three tries that each family had (tuning.py).
TUNED_PLANE = {
    "linear": {"T": 6.0, "grid": "quadratic"},
    "linear_mixture": {"T": 1.0, "grid": "quadratic"},
    "nonlinear": {"T": 6.0, "grid": "quadratic"},
}
TUNED_IMAGES = {
    "linear": {"T": 6.0, "grid": "quadratic"},
    "linear_mixture": {"T": 3.0, "grid": "quadratic"},
    "nonlinear": {"T": 3.0, "grid": "quadratic"},
}
# With the better of the second tries that linear and nonlinear noising had (imbalance.py).
RETUNED_IMAGES = TUNED_IMAGES | {"linear": {"T": 4.0, "grid": "quadratic"}, "components": 50}


class NoiseLevels(NDSMLoss):
    """The path estimator at EDM's noise levels: log(sqrt(v) / sqrt(largest variance)) ~ N(p_mean, 1.2^2), not uniform.

    The weight stays v, as EDM's is one over the variance of what the network learns. Source: Karras et al. 2022.
    """

    def __init__(self, process: LangevinProcess, p_mean: float) -> None:
        super().__init__(process)
        level = (process.noise_variance / process.reference.largest_variance).sqrt().log()
        widths = level.diff(prepend=2 * level[:1] - level[1:2])
        density = widths * torch.exp(-0.5 * ((level - p_mean) / P_STD).square())
        self.probabilities = density / density.sum()

    def draw(self, x0: Tensor, seed: Any = None, step: Any = None, first_path: Any = None, records: Any = None) -> Any:
        if step is None:  # a function of the first path alone, as the trainer's noise is
            generator = torch.Generator().manual_seed(int(first_path))
            step = torch.multinomial(self.probabilities, len(x0), replacement=True, generator=generator)
        return super().draw(x0, seed, step, first_path, records)


class AntitheticDSM(DSMLoss):
    """Denoising score matching on pairs of one x_0 and step whose noise differs in sign, as path's antithetic pairs."""

    def draw(self, *arguments: Any, **options: Any) -> Noised:
        drawn = super().draw(*arguments, **options)
        mirrored = drawn.x + 2.0 * drawn.variance[:, None] * drawn.target  # the target is -noise / sqrt(v)
        return Noised(*map(torch.cat, zip(drawn, drawn._replace(x=mirrored, target=-drawn.target), strict=True)))


class Plain(nn.Module):
    """net(x, t) / sqrt(v(t)): no reference score added."""

    def __init__(self, net: nn.Module, process: NoisingProcess) -> None:
        super().__init__()
        self.net, self.process = net, process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t) * self.process.variance_at(t).rsqrt()[:, None]


class Fitted(NamedTuple):
    """A trained network, its process, and what training cost on the processor."""

    score_net: nn.Module
    process: NoisingProcess
    seconds: float
    evaluations: int


def fit_reference(z: Tensor, settings: dict[str, Any], seed: int) -> GaussianMixture:
    """Fit the settings' pi to z, of which at most 20,000 samples are used, or 60 a component."""
    chosen = {part: settings.get(part, 1) for part in ("components", "covariance", "reg_covar", "n_init")}
    identity = (_digest(z), seed, *chosen.values())
    if identity not in _references:
        components, kind, reg_covar, starts = chosen.values()
        most = max(MOST, 60 * components)
        kept = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(seed))[:most]]
        if len(_references) > 1:
            _references.clear()
        _references[identity] = GaussianMixture.fit(kept, components, kind, reg_covar, random_state=seed, n_init=starts)
    return _references[identity]


def build(
    row: str, z: Tensor, settings: dict[str, Any], seed: int, reference: GaussianMixture | None
) -> NoisingProcess:
    """Build the noising process of a row."""
    steps, linear, nonlinear = settings["n_steps"], settings["linear"], settings["nonlinear"]
    if row == LINEAR:
        return OUProcess(z.shape[1], T=linear["T"], n_steps=steps, grid=linear["grid"])
    if row == ONE:
        gaussian = GaussianMixture.fit(z, 1, "spherical", settings["reg_covar"], random_state=seed)
        horizon = linear["T"] * float(gaussian.covariances[0])
        return LangevinProcess(gaussian, T=horizon, n_steps=steps, grid=linear["grid"])
    if row == LINEAR_FULL:
        reference = best_full_mixture(z, seed)
    reference = fit_reference(z, settings, seed) if reference is None else reference
    if row in (LINEAR_MIXTURE, LINEAR_FULL):
        mixture = settings["linear_mixture"]
        return OUProcess(reference.dim, T=mixture["T"], n_steps=steps, grid=mixture["grid"], reference=reference)
    horizon = nonlinear["T"] * float(extremes(reference)[1])
    if settings.get("shorten", False):
        needed = steps_needed(reference, nonlinear["T"], nonlinear["grid"])
        horizon *= min(1.0, steps / needed)
    return LangevinProcess(reference, T=horizon, n_steps=steps, grid=nonlinear["grid"])


def fit(
    row: str,
    z: Tensor,
    settings: dict[str, Any],
    seed: int,
    reference: GaussianMixture | None = None,
    wrap: Callable[[nn.Module], nn.Module] | None = None,
) -> Fitted:
    """Train the row's model on z [n, d] with the evaluations that the settings allow, whatever the estimator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EM at its last iteration; q slightly above its bound is reported by sweeps
        process = build(row, z, settings, seed, reference)
    score_net = untrained(process, settings, seed)
    return train(row, score_net if wrap is None else wrap(score_net), process, z, settings, seed)


def untrained(process: NoisingProcess, settings: dict[str, Any], seed: int) -> nn.Module:
    """Return the score network of a row's process, its output zero."""
    torch.manual_seed(seed)
    dim, features = process.dim, settings["features"]
    net = networks.MLP(dim, settings["hidden"], in_dim=2 * dim if features else dim, horizon=process.T)
    return ResidualScore(net, process, features) if settings["residual"] else Plain(net, process)


def train(
    row: str,
    score_net: nn.Module,
    process: NoisingProcess,
    z: Tensor,
    settings: dict[str, Any],
    seed: int,
    p_mean: float | None = None,
) -> Fitted:
    """Train a row's score network on z [n, d]; a `p_mean` draws the path estimator's steps as EDM draws noise."""
    if row == LINEAR_PAIRS:
        loss: NDSMLoss | DSMLoss = AntitheticDSM(process)
    else:
        loss = DSMLoss(process) if _linear(row) else NDSMLoss(process, **ESTIMATORS[PATH if row == ONE else row])
    if p_mean is not None:
        assert isinstance(process, LangevinProcess)
        loss = NoiseLevels(process, p_mean)
    evaluations = settings["evaluations"]
    batch = evaluations // 2 if row in TWO_EVALUATIONS else evaluations
    records = settings.get("records_per_path", 1)
    config = TrainConfig(steps=settings["steps"], batch_size=batch, seed=seed, records_per_path=records)
    trainer = Trainer(score_net, loss, z, config)
    started = time.process_time()
    trainer.fit(progress=False)
    seconds = time.process_time() - started
    return Fitted(trainer.ema_net, process, seconds, settings["steps"] * evaluations)


def draw(
    row: str, z: Tensor, settings: dict[str, Any], seed: int, n: int, reference: GaussianMixture | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Draw n samples of a row; return them [n, d] and what they cost."""
    if row == PI:
        pi = fit_reference(z, settings, seed) if reference is None else reference
        return pi.sample(n, seed).to(z), {}
    if row == FULL:
        mixture = best_full_mixture(z, seed)
        return mixture.sample(n, seed).to(z), {"components": mixture.n_components}
    fitted = fit(row, z, settings, seed, reference)
    started = time.process_time()
    samples = euler_maruyama(fitted.score_net, fitted.process, n, seed)
    return samples, {
        "train_seconds": round(fitted.seconds, 2),
        "sample_seconds": round(time.process_time() - started, 2),
        "train_evaluations": fitted.evaluations,
        "sample_evaluations": fitted.process.n_steps,
        "T": round(fitted.process.T, 4),
    }


def euler_maruyama(score_net: nn.Module, process: NoisingProcess, n: int, seed: int) -> Tensor:
    """Draw n samples by one evaluation for each of the process's steps."""
    options: dict[str, Any] = {"n_evaluations": process.n_steps, "order": 1, "prediction": "score"}
    return fastndsm.sample(score_net, process, n, seed=seed, batch_size=4000, **options)


def extremes(mixture: GaussianMixture) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest eigenvalue of all the covariances."""
    smallest, largest = mixture.covariance_eigenvalues()
    return smallest.min(), largest.max()


def steps_needed(mixture: GaussianMixture, horizon: float, grid: str) -> int:
    """Return the steps to T = horizon lambda_max at which q = a_n lambda_max(P_k) is 0.2 where it is largest."""
    smallest, largest = (float(part) for part in extremes(mixture))
    longest = horizon * largest * (2.0 if grid == "quadratic" else 1.0)
    return max(1, math.ceil(0.5 * longest / (0.2 * smallest)))


MOST = 20_000  # samples that a mixture is fitted to
_references: dict[tuple[Any, ...], GaussianMixture] = {}  # the last two
_best: dict[tuple[str, int], GaussianMixture] = {}


def _digest(z: Tensor) -> str:
    return hashlib.sha256(z.numpy().tobytes()).hexdigest()


def best_full_mixture(z: Tensor, seed: int) -> GaussianMixture:
    """Fit full covariances, with the best likelihood on a fifth of z left out, and refit that mixture on all of it.

    Of 1, 5, 10, 20, 40 components and reg_covar 1e-4, 1e-3, 1e-2 (at the best number), on at most 20,000 samples.
    """
    identity = (_digest(z), seed)
    if identity not in _best:
        generator = torch.Generator().manual_seed(seed)
        z = z[torch.randperm(len(z), generator=generator)[:MOST]]
        kept, left = z[len(z) // 5 :], z[: len(z) // 5]

        def score(components: int, reg_covar: float) -> float:
            mixture = GaussianMixture.fit(kept, components, "full", reg_covar, random_state=seed)
            return float(mixture.log_prob(left.double()).mean())

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            components = max((k for k in (1, 5, 10, 20, 40) if 2 * k <= len(kept)), key=lambda k: score(k, 1e-3))
            reg_covar = max((1e-4, 1e-3, 1e-2), key=lambda reg: score(components, reg))
            _best.clear()
            _best[identity] = GaussianMixture.fit(z, components, "full", reg_covar, random_state=seed)
    return _best[identity]


def _linear(row: str) -> bool:
    return row in (LINEAR, LINEAR_MIXTURE, LINEAR_FULL)
