"""7. Quality against the number of network evaluations, beside fair baselines.

All rows have the network, the optimizer steps, the batches, the moving average and the evaluations in sampling in
common. MNIST in 32 principal components and in an autoencoder's 16 dimensions (all 60,000 training images, K = 50,
MLP 3x256, 8,000 steps of 256), three seeds; scikit-learn's digits in 64 pixels and the plane, one. The first space has
every try of every row's knobs on seed 0; all others have those that were best there for some number of evaluations.
On MNIST the rows with a mixture are run again with K = 1,000, fitted to all of the data; in 64 principal components and
another autoencoder's 32 dimensions with as many alone.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from typing import Any

import torch
from torch import Tensor

import fastndsm
from fastndsm import LangevinProcess, OUProcess, metrics

from . import images, methods, planar, solvers, trained
from .trained import EDM, FLOW, I_CFM, OT_CFM, PATH, SKIP, VP, Config, Model

NAME, VERSION = "evaluations", 1
CALLS = (1, 2, 3, 5, 7, 10, 20, 50, 100)  # of the network, for each sample
TABLED = (5, 10, 20, 100)  # with second figures
COMMON = 2  # draws that every number of evaluations has
FEW = (3, *TABLED)
MAIN = ("PCA 32", "AE 16")  # of three seeds
WIDER = ("AE 32", "PCA 64")  # of three seeds too, with many components alone
SPACES = (*MAIN, *WIDER, "digits", *trained.PLANE)
SAMPLER = 2  # path's, so that rows of an earlier one are no longer used
IMAGES: Config = {"source": "mnist", "n": 60_000, "encoder_steps": 4000, "evaluated": 4000, "drawn": 4000}
IMAGES |= {"hidden": [256, 256, 256], "steps": 8000, "components": 50}
MANY, T_OF_MANY = 1000, 0.5  # components, and path's horizon in units of the largest variance: they are narrow
DIGITS: Config = {"n": 1100, "evaluated": 348, "drawn": 2000, "hidden": [256, 256, 256], "steps": 4000}
DIGITS |= {"components": 50}
POINTS: Config = {"n": 5000, "evaluated": 10_000, "drawn": 10_000, "hidden": [128, 128, 128], "steps": 4000}
QUICK_IMAGES: Config = {"source": "digits", "n": 1000, "encoder_steps": 20, "evaluated": 150, "drawn": 150}
QUICK: Config = {"hidden": [32], "steps": 10, "components": 4}
EM = "Euler-Maruyama"
PLAIN = "one step an evaluation"
LATER = "linear, from T / 64"
FINER = "linear, from T / 64, 200 steps"
# The multirate sampler of path, by what it holds or extrapolates between evaluations; the first is its default.
OF_PATH: dict[str, dict[str, Any]] = {
    "linear": {"prediction": "linear", "order": 2, "grid": "quadratic"},
    LATER: {"prediction": "linear", "order": 2, "first": 1 / 64},
    FINER: {"prediction": "linear", "order": 2, "first": 1 / 64, "n_steps": 200},
    "linear, flow": {"method": "ode", "prediction": "linear", "order": 2, "grid": "quadratic"},
    "data": {"prediction": "data", "order": 2, "grid": "quadratic"},
    "score": {"prediction": "score", "order": 2, "grid": "cubic"},
    PLAIN: {"prediction": "score", "order": 1},
}
KEPT_OF_PATH = ("linear", LATER, FINER, "linear, flow", PLAIN)
# sigma at the start and before the last step; the mixture as source needs less noise
WIDE, NARROW, SHORT, SHORT_SKIP = [80.0, 0.002], [10.0, 0.03], [5.0, 0.1], [3.0, 0.1]
CONTROL = ", untrained"
P_MEAN, P_MEAN_SKIP, HORIZON = 0.0, -0.5, 4.0  # the best of the tries
PAIRS: Config = {"antithetic": True}  # half as many points a batch, each noised twice: equal evaluations
SDE, ODE, HEUN = solvers.SDE_2M, solvers.ODE_2M, solvers.HEUN


def _levels(chosen: list[tuple[str, list[float]]], **knobs: float) -> list[Config]:
    return [knobs | {"solver": solver, "levels": levels} for solver, levels in chosen]


def _vp(horizon: float, smallest: float) -> list[float]:
    """Return sigma at the horizon of linear VP noising, and the smallest."""
    return [round(math.expm1(horizon) ** 0.5, 4), smallest]


# Those that were best at some number of evaluations: every space and seed has them.
KEPT: dict[str, list[Config]] = {
    PATH: [{"solver": solver} for solver in KEPT_OF_PATH],
    EDM: _levels([(SDE, NARROW), (SDE, SHORT)], p_mean=P_MEAN),
    SKIP: _levels([(SDE, NARROW), (SDE, SHORT_SKIP)], p_mean=P_MEAN_SKIP),
    VP: [*_levels([(SDE, _vp(HORIZON, 0.03))], T=HORIZON), {"T": HORIZON, "solver": EM}],
    FLOW: [{"solver": solver} for solver in (solvers.AB2, solvers.EULER)],
    OT_CFM: [{"solver": solver} for solver in (solvers.AB2, solvers.EULER)],
    I_CFM: [{"solver": solvers.AB2}, *_levels([(SDE, NARROW), (SDE, SHORT)])],
}
# The others, on the first space and seed alone, by one draw each.
DROPPED: dict[str, list[Config]] = {
    PATH: [{"solver": solver} for solver in OF_PATH if solver not in KEPT_OF_PATH],
    EDM: [
        *_levels([(SDE, WIDE), (ODE, WIDE), (ODE, NARROW), (ODE, SHORT), (HEUN, WIDE), (HEUN, NARROW)], p_mean=P_MEAN),
        *(setting for p_mean in (-1.2, -0.5) for setting in _levels([(SDE, NARROW), (SDE, SHORT)], p_mean=p_mean)),
        *(setting | PAIRS for setting in KEPT[EDM]),
    ],
    SKIP: [
        *_levels(
            [(SDE, WIDE), (ODE, WIDE), (ODE, NARROW), (ODE, SHORT_SKIP), (HEUN, NARROW), (HEUN, SHORT_SKIP)],
            p_mean=P_MEAN_SKIP,
        ),
        *_levels([(SDE, NARROW), (SDE, SHORT_SKIP)], p_mean=-1.2),
        *(setting | PAIRS for setting in KEPT[SKIP]),
    ],
    VP: [
        *_levels([(SDE, _vp(HORIZON, 0.002)), (ODE, _vp(HORIZON, 0.03)), (ODE, _vp(HORIZON, 0.002))], T=HORIZON),
        *({"T": 6.0, "solver": EM}, *_levels([(SDE, _vp(6.0, 0.03))], T=6.0)),
        *(setting | PAIRS for setting in KEPT[VP]),
    ],
    FLOW: [{"solver": solver} for solver in (solvers.HEUN, solvers.MIDPOINT)],
    OT_CFM: [{"solver": solver} for solver in (solvers.HEUN, solvers.MIDPOINT)],
    I_CFM: [*({"solver": s} for s in (solvers.EULER, solvers.HEUN, solvers.MIDPOINT)), *_levels([(SDE, WIDE)])],
}

# With many components: horizon, estimator, EDM's distribution of noise, and twice the training, that of the others too.
LONGER = {"steps": 16_000}
DROPPED_OF_MANY: dict[str, list[Config]] = {
    PATH: [
        {"solver": "linear"} | knob
        for knob in (
            {"T": methods.RETUNED_IMAGES["nonlinear"]["T"]},
            PAIRS,
            {"p_mean": -0.5},
            {"p_mean": -1.2},
            LONGER,
        )
    ],
    SKIP: [setting | LONGER for setting in KEPT[SKIP]],
    FLOW: [setting | LONGER for setting in KEPT[FLOW][:1]],
}


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return one configuration for each run of a seed."""
    made = []
    for space in ("PCA 32", "four_modes") if quick else (*MAIN, *WIDER) if seed else SPACES:
        base: Config = {"space": space, "seed": seed, "evaluations": methods.DEFAULTS["evaluations"]}
        if space in trained.PLANE:
            base |= POINTS | {"components": planar.COMPONENTS[space]}
        else:
            base |= DIGITS if space == "digits" else IMAGES
        if quick:
            base |= QUICK | ({"evaluated": 200, "drawn": 200} if space in trained.PLANE else QUICK_IMAGES)
        untrained = {"steps": 0, "calls": 0, "draws": 2}
        fewer = (methods.PI, *trained.WITH_MIXTURE) if space in WIDER else ()
        made += [base | {"row": row} | untrained for row in (methods.PI, methods.HELD_OUT) if row not in fewer]
        for row in trained.TRAINED:
            made += _of_row(base, row, quick) if row not in fewer else []
        if not quick:
            many = base | {"components": MANY}
            made.append(many | {"row": methods.PI} | untrained)
            for row in trained.WITH_MIXTURE:
                made += _of_row(many, row, quick)
    return [config for config in made if possible(config)]


def _of_row(base: Config, row: str, quick: bool) -> list[Config]:
    """Return the runs of a row: settings at numbers of evaluations, and its untrained control."""
    space, seed, kept = base["space"], base["seed"], KEPT[row][:1] if quick else KEPT[row]
    own = base if row in trained.WITH_MIXTURE else {k: v for k, v in base.items() if k != "components"}
    own = own | {"row": row} | ({"sampler": SAMPLER} if row == PATH else {})
    many = own.get("components") == MANY
    if row == PATH and many:
        own["T"] = T_OF_MANY
    elif row == PATH and not quick:
        kept = kept + [setting | PAIRS for setting in kept]
    calls = FEW if space in (*MAIN, *WIDER) else TABLED
    if (row == PATH and not many) or (space in MAIN and seed == 0):
        calls = CALLS
    made = []
    for setting, m in itertools.product(kept, (1, 20) if quick else calls):
        made.append(own | setting | {"calls": m, "draws": 3 if m in TABLED[:3] else 2})
        if row in trained.WITH_MIXTURE and setting == kept[0] and m in TABLED and seed == 0:
            made.append(made[-1] | {"steps": 0, "draws": 2})
    if space == SPACES[0] and seed == 0 and not quick:
        dropped = DROPPED_OF_MANY if many else DROPPED
        made += [own | s | {"calls": m, "draws": 1} for s in dropped.get(row, []) for m in TABLED]
    return made


def possible(config: Config) -> bool:
    """Return whether a setting can be run at so many evaluations: Euler-Maruyama takes no step with q >= 1."""
    calls = config["calls"]
    if config.get("solver") == PLAIN:
        return bool(calls == methods.DEFAULTS["n_steps"])
    if config.get("solver") in (LATER, FINER):  # fewer start later anyhow; a hundred have 200 steps in both
        fine = config["solver"] == FINER and calls == methods.DEFAULTS["n_steps"]
        return bool(calls**-2 < OF_PATH[LATER]["first"]) and not fine
    if config.get("solver") != EM:
        return True
    longest = config["T"] * (2 * calls - 1) / calls**2
    return bool(0.5 * longest < 1.0)


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return SPACES.index(config["space"]) if config["draws"] > 1 else len(SPACES)


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures, and the samples to keep for the picture."""
    given = trained.scene(config)
    row = config["row"]
    if row == methods.HELD_OUT:
        z = given.held_out if isinstance(given, planar.Points) else given.z_held_out
        return figures([z], given, True), kept(config, given, z)
    if row == methods.PI:
        pi = trained.mixture(config, trained.training_data(given))
        draws = [pi.sample(config["drawn"], seed).float() for seed in range(config["draws"])]
        return figures(draws, given, True), kept(config, given, draws[0])
    model = trained.load(config)
    started = time.process_time()
    draws = [sample(model, config, seed) for seed in range(config["draws"])]
    seconds = (time.process_time() - started) / len(draws)
    cost = {
        "train_seconds": round(model.seconds, 2),
        "train_evaluations": config["steps"] * config["evaluations"],
        "sample_seconds": round(seconds, 3),
    }
    second = config["draws"] > 1 and config["calls"] in TABLED
    return figures(draws, given, second) | cost, kept(config, given, draws[0])


def figures(draws: list[Tensor], given: trained.Scene, second: bool) -> dict[str, Any]:
    """Return the main figure of all draws and its mean; of the first draw also those that see diversity."""
    name = "energy" if isinstance(given, planar.Points) else "frechet"
    values = [distance(z, given) for z in draws]
    result: dict[str, Any] = {"draws": [float(f"{v:.5g}") for v in values]}
    if isinstance(given, planar.Points):
        result |= {"variance_ratio": variance_ratio(draws[0], given.train)}
        if second:
            result |= planar.measure(draws[0], given) | {"sliced": metrics.sliced_wasserstein(draws[0], given.fresh)}
    else:
        result |= {"variance_ratio": variance_ratio(draws[0], given.z)}
        if second:
            result |= given.measure(draws[0]) | given.diversity(draws[0])
    return result | {name: sum(values) / len(values)}


def distance(z: Tensor, given: trained.Scene) -> float:
    """Return the main figure: Frechet distance, or the energy distance of points."""
    if isinstance(given, planar.Points):
        return metrics.energy_distance(z, given.fresh)
    return metrics.frechet_distance(given.pool.judge.features(given.encoder.decode(z)), given.features)


def variance_ratio(z: Tensor, data: Tensor) -> float:
    """Return the trace of the samples' covariance over that of the data's."""
    return float(z.double().var(0).sum() / data.double().var(0).sum())


def kept(config: Config, given: trained.Scene, z: Tensor) -> Tensor | None:
    """Return the samples kept for the picture: those of seed 0 in the autoencoder's space."""
    return images.kept(config, given, z) if config["space"] == "AE 16" and isinstance(given, images.Scene) else None


@torch.no_grad()
def sample(model: Model, config: Config, seed: int) -> Tensor:
    """Draw samples [n, d] of a model by the configuration's solver, at no more than `calls` evaluations."""
    row, solver, calls, n = (config[k] for k in ("row", "solver", "calls", "drawn"))
    if row == PATH:
        assert isinstance(model.process, LangevinProcess)
        options, process = dict(OF_PATH[solver]), model.process
        finer = options.pop("n_steps", process.n_steps)
        if "first" in options:
            options["grid"] = quadratic(process.T, calls, options.pop("first"))
            if calls == process.n_steps:  # all of them, whatever the grid
                finer = 2 * calls
        if finer != process.n_steps:
            process = LangevinProcess(process.reference, process.T, finer, grid="quadratic")
        return fastndsm.sample(model.net, process, n, seed=seed, n_evaluations=calls, **options)
    if solver == EM:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # q above 0.2
            process = OUProcess(model.process.dim, T=config["T"], n_steps=calls, grid="quadratic")  # type: ignore[union-attr]
        return methods.euler_maruyama(model.net, process, n, seed)
    generator = torch.Generator().manual_seed(seed)
    steps = solvers.steps_of(solver, calls)
    source = None if model.mixture is None else trained.baselines.SphericalMixture(model.mixture)
    x = torch.empty(n, model.net.net.dim)  # type: ignore[union-attr, arg-type]
    x = solvers.normal(x, generator) if source is None else source.sample(n, generator)
    if "levels" not in config:
        return solvers.flow(solver, model.net, x, steps)
    sigmas = solvers.noise_levels(steps, *config["levels"])
    if source is None:  # x_0 of variance one on average, noised
        x = x * (1.0 + sigmas[0] ** 2) ** 0.5
    else:
        x = x + sigmas[0] * solvers.normal(x, generator)
    functions = {VP: solvers.of_score, I_CFM: solvers.of_velocity}
    denoiser = functions[row](model.net) if row in functions else model.net
    return solvers.denoise(solver, denoiser, x, sigmas, generator)


def quadratic(horizon: float, calls: int, first: float) -> list[float]:
    """Return so many times up to the horizon, quadratic from `first`, a fraction of it, on."""
    start = math.sqrt(first)
    return [horizon * (start + (1.0 - start) * j / (calls - 1)) ** 2 for j in range(calls - 1)] + [horizon]
