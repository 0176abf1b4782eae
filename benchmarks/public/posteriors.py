"""The posteriors of sbibm: two moons and SLCP, learnt from their samples and amortised over simulations.

    pip install --no-deps sbibm==1.1.0
    python -m benchmarks.public.posteriors             every run that has no row yet, then the page
    python -m benchmarks.public.posteriors --page      the page alone, from the rows there are

sbibm (Lueckmann, Boelts, Greenberg, Goncalves and Macke, AISTATS 2021, arXiv 2101.04653) has 10,000 samples of the true
posterior for each of ten observations. C2ST is the accuracy of its classifier on draws and on reference samples: 0.5
is no difference that it sees, lower is better, below 0.5 is chance. Parameters are standardised, in SLCP after the
logit of their place in the prior's interval, as sbibm's own algorithms have them; draws outside the prior are made
anew. Rows in italics are sbibm's published means over the ten observations, of 10,000 draws each.

**One posterior**: n of its samples to learn from, the others held out: at most 8,000 of two moons, 2,000 of SLCP. Every
network is an MLP of three layers of 128, 2,000 steps of 256 paths, averaged weights; 50 evaluations a draw. Mixtures
are what the likelihood of held-out rows chooses (`GaussianMixture.select`); spherical ones in coordinates in which the
covariance within a mode, that of the best mixture of one common covariance, is the identity up to a factor. These
coordinates and the path's horizon, three mean variances, were settled among some variants on SLCP's first observation
at n = 500, by C2ST itself: that cell flatters path. "A component a mode" has as many spherical components as a
posterior has modes, in standardised coordinates, and a network that sees the mixture's score; it was found among some
thirty variants (components, horizon, coordinates, features) on SLCP's first two observations, which flatter it. On SLCP
no variant was below linear VP DSM on both. A row is the nearer one of SDE and flow, where all its runs have both;
"every step" takes an evaluation for each step of the process, to see what 50 cost. OT-CFM pairs 128 rows at a time.
"Fresh reference samples" are half of the held-out ones against the other half.

**Amortised**: parameters drawn from the prior and simulated, a tenth of them to stop by (the lowest validation loss, of
at most 4,000 steps); the network, an MLP of three layers of 256, sees the standardised observation beside its input,
and takes 30 evaluations a draw. C2ST is the mean over the observations, of 2,000 draws and 2,000 reference samples
each; a classifier of 10,000, as published rows have them, sees more: "observation 1" has both. EDM's training noise
was settled with C2ST of two moons' first three and SLCP's first two observations, at 1,000 simulations, in sight.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal, Uniform

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, OUProcess, ResidualScore, loss_for, networks
from fastndsm.cli.tables import markdown
from fastndsm.data import Standardizer
from fastndsm.process import Noised, NoisingProcess
from fastndsm.training import TrainConfig, Trainer

from .rows import complete, publish, read

RESULTS = Path(__file__).resolve().parent.parent / "results"
ROWS, PAGE = "public-posteriors.jsonl", "public-posteriors.md"
PACKAGES = ("torch", "scikit-learn", "sbibm")
OBSERVATIONS = tuple(range(1, 11))
MOST_STEPS = 1000  # of nonlinear noising
PAIRED = 128  # rows that OT-CFM pairs at a time
ITERATIONS = 10_000  # of the classifier, at most
SIZES = (500, 2000, 8000)
SIMULATIONS = (1000, 10_000)
PARTS = POSTERIOR, AMORTISATION = "posterior", "amortised"
EDM = "linear, EDM"
PATH = "path, spherical mixture"
BROAD = "path, a component a mode"
UNMIXED = "linear VP DSM", "OT-CFM"
BOTH = "sde", "ode"
RIVALS = (*UNMIXED, "linear, full mixture", "flow from the spherical mixture", "spherical mixture alone")
TRUTH, FULL, SPHERICAL = "fresh reference samples", "full mixture alone", "spherical mixture alone"


def two_moons(theta: Tensor) -> Tensor:
    """Return an observation [n, 2] for each theta [n, 2]: a half circle shifted by theta turned, up to a sign."""
    angle = Uniform(-math.pi / 2, math.pi / 2).expand((len(theta), 1)).sample()
    radius = Normal(0.1, 0.01).expand((len(theta), 1)).sample()
    shift = torch.stack([-theta.sum(1).abs(), theta[:, 1] - theta[:, 0]], dim=1) / math.sqrt(2.0)
    return torch.cat([angle.cos() * radius + 0.25, angle.sin() * radius], dim=1) + shift


def slcp(theta: Tensor) -> Tensor:
    """Return an observation [n, 8] for each theta [n, 5]: four points of a Gaussian that depends on it nonlinearly."""
    first, second, rho = theta[:, 2].square(), theta[:, 3].square(), theta[:, 4].tanh()
    covariance = theta.new_empty(len(theta), 2, 2)
    covariance[:, 0, 0], covariance[:, 1, 1] = first.square() + 1e-6, second.square() + 1e-6
    covariance[:, 0, 1] = covariance[:, 1, 0] = rho * first * second
    return MultivariateNormal(theta[:, None, :2], covariance[:, None]).expand((len(theta), 4)).sample().flatten(1)


class Task(NamedTuple):
    """A simulator and its prior, uniform in (-bound, bound)^dim.

    unbounded: whether theta is learnt as its logit, as sbibm's own algorithms have it in this task.
    held_out: the most of a posterior's other samples that are classified: what the classifier costs differs.
    classified: samples under each observation that amortised rows are judged by, of the published 10,000.
    modes: of a posterior.
    published: mean C2ST over the ten observations, by algorithm and simulations (Lueckmann et al. 2021).
    """

    simulate: Callable[[Tensor], Tensor]
    dim: int
    bound: float
    unbounded: bool
    held_out: int
    classified: int
    modes: int
    published: dict[str, dict[int, float]]
    published_samples: int = 10_000

    def prior(self, n: int) -> Tensor:
        """Draw n parameters by PyTorch's generator."""
        ends = torch.full((self.dim,), self.bound, device="cpu")
        return Uniform(-ends, ends).sample((n,))

    def encode(self, theta: Tensor) -> Tensor:
        """Return theta as it is learnt."""
        if not self.unbounded:
            return theta
        return torch.logit((theta.double() + self.bound) / (2.0 * self.bound), eps=1e-6).float()

    def decode(self, u: Tensor) -> Tensor:
        """Return the theta of u."""
        return (2.0 * torch.sigmoid(u) - 1.0) * self.bound if self.unbounded else u


TASKS = {
    "two_moons": Task(
        two_moons,
        2,
        1.0,
        False,
        8000,
        2000,
        2,
        {"NPE": {1000: 0.725, 10_000: 0.606}, "SNPE": {1000: 0.643, 10_000: 0.554}},
    ),
    "slcp": Task(
        slcp, 5, 3.0, True, 2000, 2000, 4, {"NPE": {1000: 0.975, 10_000: 0.901}, "SNLE": {1000: 0.921, 10_000: 0.713}}
    ),
}


class OptimalFlow(fastndsm.FlowProcess):
    """OT-CFM: straight lines from N(0, I), paired with the data by optimal transport within each batch."""

    def __init__(self, dim: int) -> None:
        super().__init__(GaussianMixture.standard_normal(dim))

    def exact_noised(self, x0: Tensor, step: Any = None, seed: Any = None, first_path: int = 0) -> Noised:
        drawn = super().exact_noised(x0, step, seed, first_path)
        y = x0 - drawn.target
        for rows in torch.arange(len(x0), device="cpu").split(PAIRED):
            costs = torch.cdist(x0[rows], y[rows]).square().numpy()
            y[rows] = y[rows][torch.from_numpy(linear_sum_assignment(costs)[1])]
        return drawn._replace(x=x0 + drawn.t[:, None] * (y - x0), target=x0 - y)


class Budget(NamedTuple):
    """The settings that are the same for every row.

    steps, hidden: optimizer steps and widths of the networks of one posterior; held_out: the task's own if None.
    amortised_steps, conditional, fewer: steps, widths, evaluations; samples: the task's own if None.
    """

    steps: int = 2000
    batch: int = 256
    hidden: tuple[int, ...] = (128, 128, 128)
    evaluations: int = 50
    held_out: int | None = None
    amortised_steps: int = 4000
    conditional: tuple[int, ...] = (256, 256, 256)
    samples: int | None = None
    fewer: int = 30


class Mixtures(NamedTuple):
    """Fits to standardised rows: full covariances, and spherical ones in coordinates y = white z.

    In those the covariance within a mode, that of a mixture of one covariance, is the identity up to a factor.
    broad: spherical ones of z, as many as a posterior has modes.
    """

    full: GaussianMixture
    spherical: GaussianMixture
    white: Tensor
    broad: GaussianMixture


def linear(dim: int, pi: GaussianMixture | None = None) -> OUProcess:
    """Return linear VP noising whose first step, of deviation 0.004, resolves a moon's width."""
    return OUProcess(dim, T=6.0 if pi is None else 3.0, n_steps=600, grid="quadratic", reference=pi)


def nonlinear(pi: GaussianMixture) -> LangevinProcess:
    """Return Langevin noising towards pi over three mean variances, as far as MOST_STEPS resolve its narrowest one."""
    horizon = 3.0 * pi.mean_variance
    process = LangevinProcess(pi, T=horizon, grid="stiff")
    if process.n_steps <= MOST_STEPS:
        return process
    return LangevinProcess(pi, T=horizon * MOST_STEPS / process.n_steps, grid="stiff")


class Method(NamedTuple):
    """A row: its process, whether it is in white coordinates, and the solvers, of which the nearer is taken.

    every: whether a draw takes as many evaluations as the process has steps, in place of the budget's.
    features: whether the network sees the mixture's score.
    """

    process: Callable[[int, Mixtures], NoisingProcess]
    white: bool = False
    solvers: tuple[str, ...] = ("",)
    every: bool = False
    features: bool = False


METHODS = {
    PATH: Method(lambda d, fit: nonlinear(fit.spherical), white=True, solvers=BOTH),
    f"{PATH}, every step": Method(lambda d, fit: nonlinear(fit.spherical), white=True, solvers=BOTH, every=True),
    BROAD: Method(
        lambda d, fit: LangevinProcess(fit.broad, T=3.0 * fit.broad.mean_variance, n_steps=200, grid="quadratic"),
        solvers=BOTH,
        features=True,
    ),
    "path, full mixture": Method(lambda d, fit: nonlinear(fit.full), solvers=BOTH),
    "flow from the spherical mixture": Method(lambda d, fit: fastndsm.FlowProcess(fit.spherical), white=True),
    "linear, full mixture": Method(lambda d, fit: linear(d, fit.full), solvers=BOTH),
    "linear VP DSM": Method(lambda d, fit: linear(d), solvers=BOTH),
    "OT-CFM": Method(lambda d, fit: OptimalFlow(d)),
}


def c2st(x: Tensor, y: Tensor, seed: int = 1) -> float:
    """Return the accuracy of sbibm's classifier (`sbibm.metrics.c2st`) on x and y [n, d], scaled by x."""
    center, scale = x.mean(0), x.std(0)
    points = np.concatenate([((part - center) / scale).numpy() for part in (x, y)])
    target = np.concatenate([np.zeros(len(x)), np.ones(len(y))])
    widths = (10 * x.shape[1], 10 * x.shape[1])
    network = MLPClassifier(widths, activation="relu", solver="adam", max_iter=ITERATIONS, random_state=seed)
    folds = KFold(n_splits=5, shuffle=True, random_state=seed)
    return float(np.mean(cross_val_score(network, points, target, cv=folds, scoring="accuracy")))


def package() -> Path:
    """Return the folder of the installed sbibm, which is not imported: it asks for more than its files do."""
    found = importlib.util.find_spec("sbibm")
    if found is None or not found.submodule_search_locations:
        raise SystemExit(
            "sbibm: expected it installed (pip install --no-deps sbibm==1.1.0) or --sbibm FOLDER, found none"
        )
    return Path(next(iter(found.submodule_search_locations)))


@lru_cache(maxsize=32)
def table(folder: Path, task: str, observation: int, name: str) -> Tensor:
    """Return a file of an observation's as a tensor [rows, columns]."""
    path = folder / "tasks" / task / "files" / f"num_observation_{observation}" / name
    return torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)).float()


class Scene(NamedTuple):
    """Standardised training rows, held-out rows as theta, the scaler, the mixtures and their seconds."""

    train: Tensor
    held_out: Tensor
    scaler: Standardizer
    mixtures: Mixtures
    seconds: float


@lru_cache(maxsize=1)
def scene(folder: Path, name: str, observation: int, n: int, seed: int, held_out: int) -> Scene:
    """Return the data of a run: n rows to train on, and as many of the others as are to be held out."""
    task, rows = TASKS[name], table(folder, name, observation, "reference_posterior_samples.csv.bz2")
    order = torch.randperm(len(rows), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    mine, others = rows[order[:n]], rows[order[n:]][-held_out:]
    scaler = Standardizer.fit(task.encode(mine))
    train, started = scaler.encode(task.encode(mine)).float(), time.process_time()
    mixtures = fitted(train, task.modes, seed)
    return Scene(train, others, scaler, mixtures, time.process_time() - started)


def fitted(z: Tensor, modes: int, seed: int) -> Mixtures:
    """Return mixtures of rows z [n, d]: narrow components, chosen by the likelihood of held-out rows; one a mode."""
    options: dict[str, Any] = {"reg_covar": 1e-4, "max_steps": 10**7, "random_state": seed}  # the horizon will be cut
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        full = GaussianMixture.select(z, covariance_types="full", eigenvalue_floor=0.03, **options).mixture
        tied = GaussianMixture.select(z, covariance_types="tied", eigenvalue_floor=0.003, **options).mixture
        white = torch.linalg.inv(torch.linalg.cholesky(tied.covariances.double()))
        white /= (z.double() @ white.T).var(0).mean().sqrt()
        y = (z.double() @ white.T).float()
        spherical = GaussianMixture.select(y, covariance_types="spherical", eigenvalue_floor=0.03, **options).mixture
    return Mixtures(full, spherical, white, GaussianMixture.fit(z, modes, "spherical", random_state=seed))


def inside(task: Task, draw: Callable[[int, int], Tensor], n: int, seed: int) -> tuple[Tensor, float]:
    """Return n draws within the prior's bounds, those outside made anew, and the share that was outside."""
    kept, drawn = torch.empty(0, task.dim, device="cpu"), 0
    while len(kept) < n and drawn < 20 * n:
        theta = draw(n, seed + 1_000_003 * (drawn // n))
        drawn += n
        kept = torch.cat([kept, theta[(theta.abs() <= task.bound).all(1)]])
    if len(kept) < n:
        raise RuntimeError(f"draw: expected samples within the prior's bounds, found {len(kept)} of {drawn}")
    return kept[:n], 1.0 - len(kept) / drawn


def learn(process: NoisingProcess, z: Tensor, seed: int, budget: Budget, features: bool = False) -> nn.Module:
    """Return the trained network of a process, its weights averaged."""
    torch.manual_seed(seed)
    seen = (2 if features else 1) * process.dim
    net: nn.Module = networks.MLP(process.dim, budget.hidden, in_dim=seen, horizon=process.T)
    net = net if isinstance(process, fastndsm.FlowProcess) else ResidualScore(net, process, features)
    config = TrainConfig(steps=budget.steps, batch_size=budget.batch, seed=seed)
    trainer = Trainer(net, loss_for(process), z, config)
    trainer.fit(progress=False)
    return trainer.ema_net


def posterior(
    folder: Path, name: str, observation: int, n: int, method: str, seed: int, budget: Budget
) -> dict[str, Any]:
    """Train one method on n samples of one posterior, and classify its draws against held-out ones."""
    task = TASKS[name]
    given = scene(folder, name, observation, n, seed, budget.held_out or task.held_out)
    size = len(given.held_out)
    if method == TRUTH:
        return {"c2st": {"": c2st(*given.held_out.chunk(2))}, "held_out": size, "seconds": 0.0}
    chosen, fit = METHODS.get(method), given.mixtures
    white = method == SPHERICAL or (chosen is not None and chosen.white)

    def theta(y: Tensor) -> Tensor:
        z = torch.linalg.solve(fit.white, y.double().T).T if white else y
        return task.decode(given.scaler.decode(z.float()))

    row: dict[str, Any] = {"held_out": size}
    if chosen is None:
        pi = fit.spherical if white else fit.full
        drawn, outside = inside(task, lambda m, s: theta(pi.sample(m, seed=s)), size, seed)
        row |= {"components": pi.n_components, "seconds": round(given.seconds, 1)}
        return row | {"c2st": {"": c2st(given.held_out, drawn)}, "outside": round(outside, 4)}
    process, started = chosen.process(task.dim, fit), time.process_time()
    if method not in UNMIXED:
        row["components"] = process.reference.n_components
    z = (given.train.double() @ fit.white.T).float() if white else given.train
    net = learn(process, z, seed, budget, chosen.features)
    row |= {"seconds": round(time.process_time() - started, 1), "process_steps": process.n_steps, "c2st": {}}
    calls = process.n_steps if chosen.every else min(budget.evaluations, process.n_steps)
    for solver in chosen.solvers:

        def draw(m: int, s: int, method: str | None = solver or None) -> Tensor:
            return theta(fastndsm.sample(net, process, m, method, seed=s, n_evaluations=calls))

        drawn, outside = inside(task, draw, size, seed)
        row["c2st"][solver] = c2st(given.held_out, drawn)
    return row | {"outside": round(outside, 4)}


class Conditional(nn.Module):
    """An MLP that sees the observation beside its input: (u [B, d], t [B], {"x": [B, c], ...}) -> [B, d]."""

    def __init__(self, dim: int, width: int, hidden: Sequence[int], horizon: float) -> None:
        super().__init__()
        self.net = networks.MLP(dim, hidden, in_dim=dim + width, horizon=horizon)

    def forward(self, u: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.net(torch.cat([u, condition["x"]], dim=1), t)
        return out


def edm(dim: int) -> fastndsm.EDMProcess:
    """Return EDM's noising with training noise for posteriors a hundredth as wide as the prior."""
    return fastndsm.EDMProcess(dim, sigma_data=1.0, sigma_max=20.0, p_mean=-1.5, p_std=1.5)


class Neighbourhoods:
    """Groups of simulations whose observations are alike, by k-means; as a condition, x and the number of its group."""

    def __init__(self, x: Tensor, seed: int) -> None:
        groups = max(1, min(50, len(x) // 100))
        self.means = KMeans(groups, n_init=1, random_state=seed).fit(x.double().numpy())

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return the condition of observations x [n, c]."""
        return {"x": x, "labels": torch.from_numpy(self.means.predict(x.double().numpy())).long()}


def grouped(z: Tensor, labels: Tensor, seed: int) -> LangevinProcess:
    """Return Langevin noising towards a mixture of each group's own; of full covariances, two to a group or more."""
    groups = int(labels.max()) + 1
    options: dict[str, Any] = {"reg_covar": 1e-4, "eigenvalue_floor": 0.03, "max_steps": 10**7, "n_init": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = [groups, 2 * groups, 4 * groups]
        found = GaussianMixture.select(z, numbers, "full", labels=labels, random_state=seed, **options)
    return nonlinear(found.mixture)


AMORTISED: dict[str, Callable[[Tensor, Tensor, int], NoisingProcess]] = {
    EDM: lambda z, labels, seed: edm(z.shape[1]),
    "path, a mixture of each group": grouped,
    "flow matching": lambda z, labels, seed: fastndsm.FlowProcess(GaussianMixture.standard_normal(z.shape[1])),
}


def amortised(
    folder: Path, name: str, observations: Sequence[int], n: int, method: str, seed: int, budget: Budget
) -> dict[str, Any]:
    """Train one method on n simulations, and classify its draws under each observation against the reference's."""
    task, started = TASKS[name], time.process_time()
    torch.manual_seed(seed)
    theta = task.prior(n)
    x, u = task.simulate(theta), task.encode(theta)
    scaler, seen = Standardizer.fit(u), Standardizer.fit(x)
    z, c = scaler.encode(u).float(), seen.encode(x).float()
    left = n // 10  # the first of them are held out, to stop by
    condition = Neighbourhoods(c, seed)
    of_all = condition(c)
    process = AMORTISED[method](z[left:], of_all["labels"][left:], seed)
    torch.manual_seed(seed)
    net: nn.Module = Conditional(task.dim, c.shape[1], budget.conditional, process.T)
    net = net if isinstance(process, fastndsm.FlowProcess) else ResidualScore(net, process)
    config = TrainConfig(
        steps=budget.amortised_steps,
        batch_size=budget.batch,
        seed=seed,
        condition_dropout=0.0,
        patience=10,
    )
    rows = torch.arange(left, device="cpu").repeat(max(1, 2000 // left))  # several noises of each
    trainer = Trainer(
        net,
        loss_for(process),
        z[left:],
        config,
        conditions={part: values[left:] for part, values in of_all.items()},
        validation=z[rows],
        validation_conditions={part: values[rows] for part, values in of_all.items()},
    )
    trainer.fit(progress=False)
    row: dict[str, Any] = {"seconds": round(time.process_time() - started, 1), "best_step": trainer.best.step}
    classified = budget.samples or task.classified
    row |= {"process_steps": process.n_steps, "samples": classified, "c2st": {}, "c2st_of_all": {}, "outside": {}}
    likelihoods = fastndsm.log_likelihood(
        trainer.best_net,
        process,
        z[: min(left, 500)],
        condition={part: values[: min(left, 500)] for part, values in of_all.items()},
        n_evaluations=min(100, process.n_steps),
    )
    row["log_likelihood"] = round(float(likelihoods.mean()), 3)  # of standardised parameters held out

    def measure(observation: int, size: int) -> None:
        given = condition(seen.encode(table(folder, name, observation, "observation.csv")).float())
        target = table(folder, name, observation, "reference_posterior_samples.csv.bz2")[:size]

        def draw(m: int, s: int) -> Tensor:
            under = {part: values.expand(m, *values.shape[1:]) for part, values in given.items()}
            calls = min(budget.fewer, process.n_steps)
            made = fastndsm.sample(trainer.best_net, process, m, seed=s, condition=under, n_evaluations=calls)
            return task.decode(scaler.decode(made))

        drawn, outside = inside(task, draw, len(target), seed)
        row["c2st" if size == classified else "c2st_of_all"][str(observation)] = c2st(target, drawn)
        row["outside"][str(observation)] = round(outside, 4)

    for observation in observations:
        measure(observation, classified)
    if budget.samples is None and classified < task.published_samples:
        measure(observations[0], task.published_samples)
    return row


Run = tuple[str, str, int, int, str, int]  # part, task, observation (0: all), rows or simulations, method, seed


def plan(
    tasks: Sequence[str], observations: Sequence[int], sizes: Sequence[int], simulations: Sequence[int], seeds: int
) -> list[Run]:
    """Return all runs: of every part the first observation and seed first."""
    runs: list[Run] = []
    for seed in range(seeds):
        for observation in observations:
            for name in tasks:
                for n in sizes:
                    methods = (TRUTH, FULL, SPHERICAL, *METHODS)
                    runs += [(POSTERIOR, name, observation, n, method, seed) for method in methods]
            if observation == observations[0]:
                for method in AMORTISED:
                    runs += [(AMORTISATION, name, 0, n, method, seed) for name in tasks for n in simulations]
    return runs


def shown(values: Sequence[float]) -> str:
    """Return the mean of values, with their spread where there are several."""
    spread = f" ± {np.std(values):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}" if len(values) else ""


def nearest(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Return the C2ST of rows by the solver whose mean is the lowest, of those that all of them have.

    Rows of one unnamed solver are those of a process's default, which is the SDE of all that have both.
    """
    by_row = [{solver or BOTH[0]: value for solver, value in row["c2st"].items()} for row in rows]
    if not by_row:
        return []
    solvers = [solver for solver in by_row[0] if all(solver in values for values in by_row)]
    return min(([values[solver] for values in by_row] for solver in solvers), key=lambda v: float(np.mean(v)))


def shared(rows: Sequence[dict[str, Any]], first: str, second: str) -> tuple[list[float], list[float]]:
    """Return the C2ST of two methods over the observations and seeds that both have."""
    both = []
    for method, other in ((first, second), (second, first)):
        runs = {(row["observation"], row["seed"]) for row in rows if row["method"] == other}
        both.append(nearest([r for r in rows if r["method"] == method and (r["observation"], r["seed"]) in runs]))
    return both[0], both[1]


def standing(rows: Sequence[dict[str, Any]], method: str, rivals: Sequence[str]) -> list[str]:
    """Return a method's lead over each rival in rows of one n, over the observations and seeds that both have."""
    cells = []
    for rival in rivals:
        mine, theirs = shared(rows, method, rival)
        gap = float(np.mean(theirs) - np.mean(mine)) if mine else 0.0
        runs = "" if len(mine) == 1 else f", {len(mine)} runs"
        side = "ahead" if gap > 0 else "level" if gap == 0 else "behind"
        cells.append(f"{side} by {abs(gap):.3f}{runs}" if mine else "not run")
    return cells


def standings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the part of the page that says where path stands on one posterior, and amortised rows beside NPE's."""
    body = []
    for name in TASKS:
        for n in SIZES:
            of_n = [r for r in rows if (r["part"], r["task"], r["n"]) == (POSTERIOR, name, n)]
            for method in (PATH, BROAD):
                observations = {row["observation"] for row in of_n if row["method"] == method}
                cells = [*standing(of_n, method, RIVALS), str(len(observations))]
                body.append([f"{name.replace('_', ' ')}, n = {n:,}", method, *cells])
    head = ["one posterior", "path", *RIVALS, "observations of ten"]
    parts = ["", "## Where path stands, so far", "", markdown(head, body), ""]
    body = []
    for name, task in TASKS.items():
        for n in SIMULATIONS:
            of_n = [r for r in rows if (r["part"], r["task"], r["n"]) == (AMORTISATION, name, n)]
            cells = []
            for method in AMORTISED:
                found = [float(np.mean(list(row["c2st"].values()))) for row in of_n if row["method"] == method]
                gap = task.published["NPE"][n] - float(np.mean(found)) if found else 0.0
                cells.append(f"{'ahead' if gap > 0 else 'behind'} by {abs(gap):.3f}" if found else "not run")
            body.append([f"{name.replace('_', ' ')}, {n:,} simulations", *cells])
    return [*parts, markdown(["amortised, beside published NPE", *AMORTISED], body)]


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page: where path stands, and for each task one posterior's samples, then amortised ones."""
    assert __doc__ is not None
    parts = ["# The posteriors of sbibm", "", *__doc__.split("\n\n", 2)[2].strip().splitlines()]
    parts += standings(rows)
    for name, task in TASKS.items():
        mine = [row for row in rows if row["task"] == name]
        lines = []
        for method in (TRUTH, FULL, SPHERICAL, *METHODS):
            of_method = [row for row in mine if row["part"] == POSTERIOR and row["method"] == method]
            if not of_method:
                continue
            by_size = [[row for row in of_method if row["n"] == n] for n in SIZES]
            components = " / ".join(
                ", ".join(
                    sorted({str(row["components"]) for row in few if "components" in row and method not in UNMIXED})
                )
                for few in by_size
            )
            seconds = f"{np.mean([row['seconds'] for row in of_method]):.0f}"
            counts = " / ".join(str(len(few)) for few in by_size)
            lines.append([method, *(shown(nearest(few)) for few in by_size), components.strip(" /"), seconds, counts])
        title = name.replace("_", " ").capitalize() if name != "slcp" else "SLCP"
        if lines:
            head = ["C2ST", *(f"n = {n:,}" for n in SIZES), "components", "processor s", "runs"]
            parts += ["", f"## {title}: one posterior", "", markdown(head, lines)]
        lines = []
        for method in AMORTISED:
            of_method = [row for row in mine if row["part"] == AMORTISATION and row["method"] == method]
            if not of_method:
                continue
            cells, beside, likelihoods = [], [], []
            for n in SIMULATIONS:
                few = [row for row in of_method if row["n"] == n]
                cells.append(shown([float(np.mean(list(row["c2st"].values()))) for row in few]))
                both = [(row["c2st"]["1"], row["c2st_of_all"]["1"]) for row in few if "1" in row["c2st_of_all"]]
                beside.append(" / ".join(f"{np.mean(values):.3f}" for values in zip(*both, strict=True)))
                likelihoods.append(shown([row["log_likelihood"] for row in few]))
            seconds = f"{np.mean([row['seconds'] for row in of_method]):.0f}"
            observations = str(max(len(row["c2st"]) for row in of_method))
            lines.append([method, *cells, *beside, *likelihoods, seconds, observations])
        if lines:
            for method, published in task.published.items():
                lines.append([f"*{method}*", *(f"{published[n]:.3f}" for n in SIMULATIONS), *[""] * 5, "10"])
            head = ["C2ST", *(f"{n:,} simulations" for n in SIMULATIONS)]
            head += [f"observation 1, {n:,}: 2,000 / 10,000 draws" for n in SIMULATIONS]
            head += [f"log-likelihood, {n:,}" for n in SIMULATIONS] + ["processor s", "observations"]
            parts += ["", f"## {title}: amortised", "", markdown(head, lines)]
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [TRUTH, FULL, SPHERICAL, *METHODS, *AMORTISED]
    parser.add_argument("--sbibm", type=Path, help="the package's folder; default where it is installed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of rows and page; default benchmarks/results")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=every, default=every)
    parser.add_argument("--observations", nargs="+", type=int, choices=OBSERVATIONS, default=list(OBSERVATIONS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--simulations", nargs="+", type=int, default=list(SIMULATIONS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, help="of all networks, to try the code")
    parser.add_argument("--samples", type=int, help="that are classified, to try the code")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args(arguments)
    budget = Budget()
    if options.steps is not None:
        budget = budget._replace(steps=options.steps, amortised_steps=options.steps)
    if options.samples is not None:
        budget = budget._replace(held_out=options.samples, samples=options.samples)
    path = options.out / ROWS

    def performed(part: str, name: str, observation: int, n: int, method: str, seed: int) -> dict[str, Any]:
        folder = package() if options.sbibm is None else options.sbibm
        row = {"part": part, "task": name, "observation": observation, "n": n, "method": method, "seed": seed}
        if part == POSTERIOR:
            return row | posterior(folder, name, observation, n, method, seed, budget)
        return row | amortised(folder, name, options.observations, n, method, seed, budget)

    if not options.page:
        runs = plan(options.tasks, options.observations, options.sizes, options.simulations, options.seeds)
        runs = [run for run in runs if run[0] in options.parts and run[4] in options.methods]
        parts = ("part", "task", "observation", "n", "method", "seed")
        told = lambda row: [{key: round(value, 3) for key, value in row["c2st"].items()}]  # noqa: E731
        complete(path, parts, runs, performed, PACKAGES, told)
    publish(options.out / PAGE, page(read(path)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
