"""Images in pixels: MNIST at 28 x 28 with a U-Net, classes of unequal weights, few images and many.

    python -m benchmarks.public.pixels --data FOLDER      every run that has no row yet, then the page
    python -m benchmarks.public.pixels --page             the page alone, from the rows there are

FOLDER holds MNIST's four IDX files. "Unequal" has one class of ten at 2% and the others at equal weights; "mirrored"
has the digits 2 to 7 and 9, which mirroring changes, two fifths of the images mirrored. n images of the 60,000 to train
on: 1,000, and 50,000 or 30,000, about as many as the weights leave. Nothing is encoded: mixtures are of pixels.

Every network is `networks.UNet` with 16 channels (32 at half the size), 2,000 steps of 64 images, averaged weights: a
budget for processors, not what the method can do; a longer one is a row of its own (--steps), and rows of a budget are
compared among themselves. Frechet distances are between 2,000 samples and 2,000 of the 10,000 test images, in features
of a classifier trained on the 60,000. "weights" is the total variation between the classes' weights and those of the
training set; "rare" is the weight of the class at 2%, or of mirrored images; "coverage" the share of test images of
that class, or of the mirrored ones, with a sample nearer than their fifth nearest other; "copies" the share of samples
three times nearer to one training image than to any other, of 1,000.

EDM's preconditioning is sampled by its own Heun method as it is published (levels 80 to 0.002, rho 7; two evaluations
a step but for the last) and by SDE-DPM-Solver++ (2M) between gentler levels; each cell is the nearer one. Path and
linear VP DSM have `fastndsm.sample`'s defaults.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import (
    EDMProcess,
    GaussianMixture,
    LangevinProcess,
    OUProcess,
    ResidualScore,
    data,
    loss_for,
    metrics,
    networks,
)
from fastndsm.cli.tables import markdown
from fastndsm.process import NoisingProcess
from fastndsm.training import TrainConfig, Trainer

from .rows import complete, publish, read
from .shared import copies, path

RESULTS = Path(__file__).resolve().parent.parent / "results"
ROWS, PAGE = "public-pixels.jsonl", "public-pixels.md"
PACKAGES = ("torch", "scikit-learn")
EVALUATIONS = (10, 20, 50)
UNEQUAL, MIRRORED = "unequal", "mirrored"
SIZES = {UNEQUAL: (1000, 50_000), MIRRORED: (1000, 30_000)}
RARE, SHARE, TURNED = 5, 0.02, 0.4
CHIRAL = (2, 3, 4, 5, 6, 7, 9)
COMPONENTS = (10, 50, 200)
HELD_OUT, TRAINING = "test images", "training images again"
PRIORS = {f"mixture alone, K = {k}": k for k in COMPONENTS}
FIGURES = ("frechet", "weights", "rare", "coverage", "copies")


class Budget(NamedTuple):
    """Source of the images, optimizer steps, batch, the U-Net's channels, samples."""

    source: str = "mnist"
    steps: int = 2000
    batch: int = 64
    base: int = 16
    evaluated: int = 2000


def nonlinear(k: int, x: Tensor, seed: int) -> LangevinProcess:
    """Return noising towards k spherical components."""
    return path(reference(x, k, seed))


def reference(x: Tensor, k: int, seed: int) -> GaussianMixture:
    """Return the spherical mixture of k components of images x [n, 1, H, W]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GaussianMixture.fit(x[:20_000], min(k, len(x) // 5), "spherical", random_state=seed)


def linear(x: Tensor, seed: int) -> OUProcess:
    """Return linear VP noising."""
    return OUProcess(x[0].numel(), T=4.0, n_steps=100, grid="quadratic", event_shape=x.shape[1:])


def edm(x: Tensor, seed: int) -> EDMProcess:
    """Return EDM's noising of the images, of their own deviation."""
    return EDMProcess(x[0].numel(), sigma_data=float(x.std()), event_shape=x.shape[1:])


METHODS: dict[str, Callable[[Tensor, int], NoisingProcess]] = {
    **{f"path, K = {k}": partial(nonlinear, k) for k in COMPONENTS},
    "linear VP DSM": linear,
    "EDM": edm,
}
EVERY = (HELD_OUT, TRAINING, *PRIORS, *METHODS)


@torch.no_grad()
def heun(net: nn.Module, process: EDMProcess, n: int, evaluations: int, seed: int) -> Tensor:
    """Return n samples by EDM's second-order method (its algorithm 1), 2 N - 1 evaluations for N levels.

    Source: Karras et al., arXiv 2206.00364.
    """
    steps = max(2, (evaluations + 1) // 2)
    generator = torch.Generator("cpu").manual_seed(seed)
    place = torch.linspace(0.0, 1.0, steps, dtype=torch.float64, device="cpu")
    ends = [level ** (1.0 / process.rho) for level in (process.sigma_max, process.sigma_min)]
    levels = [*((ends[0] + place * (ends[1] - ends[0])) ** process.rho).tolist(), 0.0]
    x = levels[0] * torch.randn(n, *process.event_shape, generator=generator, device="cpu")
    for now, then in pairwise(levels):
        slope = -now * net(x, torch.full((n,), now, device=x.device))  # (x - D) / sigma = -sigma s
        moved = x + (then - now) * slope
        if then > 0.0:
            slope = 0.5 * (slope - then * net(moved, torch.full((n,), then, device=x.device)))
        x = x + (then - now) * slope
    return x


class Scene:
    """Training images of a case, test images beside them, and the judge."""

    def __init__(self, case: str, n: int, seed: int, budget: Budget) -> None:
        given = images(budget.source)
        assert given.labels is not None and given.test_labels is not None
        self.case, generator = case, torch.Generator("cpu").manual_seed(seed)
        chosen = partial(chosen_of, case=case, generator=generator)
        self.train, kept = chosen(given.train, given.labels, n=n)
        both = chosen(given.test, given.test_labels, n=2 * budget.evaluated)
        self.target, self.fresh = both[0].chunk(2)
        self.labels = both[1].chunk(2)[0]
        self.judge = judge(budget.source, case)
        self.weights = torch.bincount(kept, minlength=self.judge.n_classes).double() / len(kept)
        self.features = self.judge.features(self.target)

    def rare(self, labels: Tensor) -> Tensor:
        """Return which labels are of the rare class, or of mirrored images."""
        return labels == RARE if self.case == UNEQUAL else labels >= len(CHIRAL)

    def measure(self, x: Tensor) -> dict[str, float]:
        """Return the figures of samples x [n, 1, H, W]."""
        features, probabilities = self.judge.features(x), self.judge.probabilities(x)
        theirs = self.features[self.rare(self.labels)]
        radius = torch.cdist(theirs, theirs).topk(min(6, len(theirs)), largest=False).values[:, -1]
        return {
            "frechet": metrics.frechet_distance(features, self.features),
            "weights": metrics.total_variation(metrics.class_balance(probabilities), self.weights),
            "rare": float(self.rare(probabilities.argmax(1)).double().mean()),
            "coverage": float((torch.cdist(theirs, features).amin(1) <= radius).double().mean()),
            "copies": copies(x[:1000].flatten(1), self.train.flatten(1)),
        }


def turned(x: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return images x [n, 1, H, W], a share of them mirrored, and which."""
    mirrored = torch.rand(len(x), generator=generator, device="cpu") < share
    return torch.where(mirrored[:, None, None, None], x.flip(-1), x), mirrored


def chosen_of(x: Tensor, labels: Tensor, *, case: str, generator: torch.Generator, n: int) -> tuple[Tensor, Tensor]:
    """Return n images of a case with their labels; of mirrored ones, the place in CHIRAL, plus its length if turned."""
    order = torch.randperm(len(x), generator=generator, device="cpu")
    x, labels = x[order], labels[order]
    if case == UNEQUAL:
        few = round(SHARE * n)
        common = [label for label in range(10) if label != RARE]
        counts = {RARE: few} | {label: (n - few + i) // 9 for i, label in enumerate(common)}
        at = torch.cat([(labels == label).nonzero()[:count, 0] for label, count in counts.items()])
        if len(at) < n:
            raise ValueError(f"n: expected as many images as the classes' weights leave, {len(at)}, found {n}")
        at = at[torch.randperm(n, generator=generator, device="cpu")]
        return x[at], labels[at]
    place = torch.full((10,), -1, device="cpu")
    place[list(CHIRAL)] = torch.arange(len(CHIRAL), device="cpu")
    kept = (place[labels] >= 0).nonzero()[:n, 0]
    if len(kept) < n:
        raise ValueError(f"n: expected at most {len(kept)} images of these digits, found {n}")
    made, mirrored = turned(x[kept], TURNED, generator)
    return made, place[labels[kept]] + len(CHIRAL) * mirrored


@lru_cache(maxsize=1)
def images(source: str) -> data.Dataset:
    """Return the images of a source: MNIST, or scikit-learn's digits to try the code."""
    return data.load(source)


@lru_cache(maxsize=2)
def judge(source: str, case: str) -> metrics.FeatureClassifier:
    """Train the classifier that judges: of ten classes, or of seven in both orientations."""
    given, steps = images(source), 2000 if source == "mnist" else 100
    x, labels = given.train, given.labels
    assert labels is not None
    if case == UNEQUAL:
        return metrics.FeatureClassifier.fit(x, labels, n_classes=10, steps=steps)
    generator = torch.Generator("cpu").manual_seed(0)
    many = int(torch.isin(labels, torch.tensor(CHIRAL, device=labels.device)).sum())
    x, labels = chosen_of(x, labels, case=case, generator=generator, n=many)
    return metrics.FeatureClassifier.fit(x, labels, n_classes=2 * len(CHIRAL), steps=steps)


@lru_cache(maxsize=1)
def scene(case: str, n: int, seed: int, budget: Budget) -> Scene:
    """Return the data of a run."""
    return Scene(case, n, seed, budget)


def perform(case: str, n: int, method: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Return the row of a method: figures at each number of evaluations, of the nearer solver."""
    given, count, started = scene(case, n, seed, budget), budget.evaluated, time.process_time()
    row: dict[str, Any] = {"case": case, "n": n, "method": method, "seed": seed, **budget._asdict()}
    if method in (HELD_OUT, TRAINING) or method in PRIORS:
        if method == HELD_OUT:
            x = given.fresh
        elif method == TRAINING:
            generator = torch.Generator("cpu").manual_seed(seed)
            x = given.train[torch.randint(n, (count,), generator=generator, device="cpu")]
        else:
            x = reference(given.train, PRIORS[method], seed).sample(count, seed=seed).float()
        return row | {"found": {"": {"": given.measure(x)}}, "seconds": round(time.process_time() - started, 1)}
    process = METHODS[method](given.train, seed)
    torch.manual_seed(seed)
    unet = networks.UNet(1, given.train.shape[-1], budget.base, horizon=process.T)
    config = TrainConfig(steps=budget.steps, batch_size=budget.batch, seed=seed)
    trainer = Trainer(ResidualScore(unet, process), loss_for(process), given.train, config)
    trainer.fit(progress=False)
    row["seconds"] = round(time.process_time() - started, 1)
    net, found = trainer.ema_net, {}
    for calls in EVALUATIONS:
        draw = partial(fastndsm.sample, n=count, seed=seed, n_evaluations=calls, batch_size=500)
        if isinstance(process, EDMProcess):
            gentle = EDMProcess(
                process.dim,
                sigma_data=process.sigma_data,
                sigma_min=0.03,
                sigma_max=10.0,
                event_shape=process.event_shape,
            )
            solvers = {"Heun": heun(net, process, count, calls, seed), "SDE-DPM-Solver++": draw(net, gentle)}
        else:
            solvers = {"": draw(net, process)}
        found[str(calls)] = {solver: given.measure(x) for solver, x in solvers.items()}
    return row | {"found": found}


def cell(rows: Sequence[dict[str, Any]], calls: str) -> tuple[str, dict[str, float]] | None:
    """Return the solver of the lowest mean Frechet distance over seeds, and its mean figures."""
    given = [row["found"][calls] for row in rows if calls in row["found"]]
    if not given:
        return None
    means = {
        solver: {key: float(np.mean([found[solver][key] for found in given])) for key in FIGURES} for solver in given[0]
    }
    return min(means.items(), key=lambda item: item[1]["frechet"])


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page: a table for each case, size and budget."""
    assert __doc__ is not None
    parts = ["# Images in pixels", "", *__doc__.split("\n\n", 2)[2].strip().splitlines()]
    for case, sizes in SIZES.items():
        for n in sizes:
            of = [row for row in rows if (row["case"], row["n"]) == (case, n)]
            for steps in sorted({row["steps"] for row in of}):
                lines = []
                for method in EVERY:
                    mine = [row for row in of if row["method"] == method and row["steps"] == steps]
                    for calls in ("", *map(str, EVALUATIONS)):
                        found = cell(mine, calls)
                        if found is not None:
                            solver, figures = found
                            shown = [f"{figures[key]:.{1 if key == 'frechet' else 3}f}" for key in FIGURES]
                            seconds = f"{np.mean([row['seconds'] for row in mine]):.0f}"
                            lines.append([method, calls, *shown, solver, seconds, str(len(mine))])
                head = ["", "evaluations", *FIGURES, "solver", "processor s", "seeds"]
                parts += ["", f"## {case.capitalize()}, {n:,} images, {steps:,} steps", "", markdown(head, lines)]
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of MNIST's four IDX files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of rows and page; default benchmarks/results")
    parser.add_argument("--cases", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--sizes", nargs="+", type=int, help="default 1,000 and as many as there are")
    parser.add_argument("--methods", nargs="+", choices=EVERY, default=list(EVERY))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=Budget().steps, help="of the optimizer: another budget")
    parser.add_argument("--quick", action="store_true", help="8x8 digits and few steps, to try the code; needs --out")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args(arguments)
    if options.quick and options.out == RESULTS:
        raise SystemExit("--quick: expected a folder of its own, by --out")
    if options.data is not None:
        os.environ["FASTNDSM_DATA"] = str(options.data)
    budget = Budget("digits", 20, 32, 8, 120) if options.quick else Budget(steps=options.steps)
    rows = options.out / ROWS
    if not options.page:
        runs = [
            (case, n, method, seed, budget.steps)
            for seed in range(options.seeds)
            for case in options.cases
            for n in options.sizes or SIZES[case]
            for method in options.methods
        ]
        told = lambda row: [{calls: cell([row], calls)} for calls in row["found"]]  # noqa: E731
        performed = lambda case, n, method, seed, steps: perform(case, n, method, seed, budget)  # noqa: E731
        complete(rows, ("case", "n", "method", "seed", "steps"), runs, performed, PACKAGES, told)
    publish(options.out / PAGE, page(read(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
