"""Few images: MNIST with n = 200 and 1,000, the closed-form smoothed score of those images beside trained networks.

    python -m benchmarks.public.few --data FOLDER      every run that has no row yet, then the page
    python -m benchmarks.public.few --page             the page alone, from the rows there are

FOLDER holds MNIST's four IDX files. Space, sizes and network are those of the experiments' section on small training
sets: 32 principal components of the n images, a residual MLP of three layers of 256, 2,000 steps of 256 paths, a
spherical mixture of n / 20 components; samples take 20 evaluations of `fastndsm.sample`. Frechet distances are between
4,000 samples and 4,000 held-out images as the encoder passes them, in features of a classifier trained on MNIST's
60,000 images. "nearest" is the mean distance of samples to the nearest training image over that of other held-out
images, so that 1 is as near as new images are; copies are samples three times nearer to one training image than to any
other; both of 1,000.

The closed-form score is that of Scarvelis, Borde and Solomon (arXiv 2310.12395): the noised score of the training
points themselves, here of a mixture with one component a point, its denoiser averaged over 8 points around x, of
deviation sigma (1 + t) at noise t (theirs, written for x_0 + t n), followed along the probability flow. "Kernel" is a
Gaussian around each training point, its width that of the largest likelihood of each fifth of the images given the
others.

What was tried against copying, of the path's rows: "early stop" holds out a fifth of the images, and keeps the averaged
weights of the lowest validation loss, seen every 50 steps; "kernel data" trains on 50,000 draws of the kernel estimate
in place of the images, as wide or half as wide; "decayed" is AdamW with a weight decay of 0.1.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import (
    EDMProcess,
    GaussianMixture,
    OUProcess,
    ResidualScore,
    data,
    latent,
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
ROWS, PAGE = "public-few.jsonl", "public-few.md"
PACKAGES = ("torch", "scikit-learn")
SIZES = (200, 1000)
SEEDS = 3
WIDTHS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2)
NARROW = 1e-3  # deviation of a training point's own component
AROUND = 8
HELD_OUT, TRAINING, PRIOR = "held-out images", "training images again", "mixture alone"
KERNELS = {"kernel": 1.0, "kernel half as wide": 0.5}
CLOSED = {f"closed-form score, sigma {sigma}": sigma for sigma in (0.1, 0.2, 0.4, 0.6, 1.0)}


class Budget(NamedTuple):
    """Data set and its dimension, samples, optimizer steps, widths, evaluations a sample."""

    source: str = "mnist"
    dim: int = 32
    evaluated: int = 4000
    steps: int = 2000
    hidden: tuple[int, ...] = (256, 256, 256)
    evaluations: int = 20


class Trained(NamedTuple):
    """A trained row: its process, what it trains on, and how."""

    process: Callable[[GaussianMixture], NoisingProcess]
    validated: bool = False
    kernel: float = 0.0  # the width of its training data's kernel, over what likelihood chooses
    decay: float = 0.0
    share: float = 1.0  # of the budget's steps


METHODS = {
    "path": Trained(path),
    "path, early stop": Trained(path, validated=True),
    "path, a quarter of the steps": Trained(path, share=0.25),
    "path, half of the steps": Trained(path, share=0.5),
    "path, kernel data": Trained(path, kernel=1.0),
    "path, kernel data half as wide": Trained(path, kernel=0.5),
    "path, decayed": Trained(path, decay=0.1),
    "linear VP DSM": Trained(lambda pi: OUProcess(pi.dim, T=4.0, n_steps=100, grid="quadratic")),
    "linear VP DSM, early stop": Trained(
        lambda pi: OUProcess(pi.dim, T=4.0, n_steps=100, grid="quadratic"), validated=True
    ),
    "linear, the mixture as skip": Trained(lambda pi: EDMProcess(pi.dim, pi)),
}
EVERY = (HELD_OUT, TRAINING, *KERNELS, PRIOR, *CLOSED, *METHODS)


class SmoothedScore(nn.Module):
    """The score of a denoiser averaged around x: D = mean_m E[x_0 | x + sigma (1 + t) z_m], score = (D - x) / t^2.

    Args:
        process: EDM's noising of the points' mixture.
        sigma: how far around.
        seed: of z [AROUND, d], the same for all x and t.
    """

    def __init__(self, process: EDMProcess, sigma: float, seed: int = 0) -> None:
        super().__init__()
        self.process, self.sigma = process, sigma
        generator = torch.Generator("cpu").manual_seed(seed)
        self.around = torch.randn(AROUND, process.dim, generator=generator, device="cpu")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        denoised = torch.zeros_like(x)
        for z in self.around:
            y = x + self.sigma * (1.0 + t[:, None]) * z
            denoised += y + t[:, None].square() * self.process.reference_score(y, t)
        return (denoised / AROUND - x) / t[:, None].square()


class Scene:
    """Training images in principal components, the held-out ones, and the judge."""

    def __init__(self, n: int, seed: int, budget: Budget) -> None:
        given = images(budget.source)
        generator = torch.Generator("cpu").manual_seed(seed)
        train = given.train[torch.randperm(len(given.train), generator=generator, device="cpu")[:n]]
        order = torch.randperm(len(given.test), generator=generator, device="cpu")
        self.encoder = latent.PCA.fit(train, budget.dim)
        self.z = self.encoder.encode(train)
        self.target = self.encoder.encode(given.test[order[: budget.evaluated]])
        self.fresh = self.encoder.encode(given.test[order[budget.evaluated : 2 * budget.evaluated]])
        self.judge = judge(budget.source)

    @cached_property
    def features(self) -> Tensor:
        """The judge's features of held-out images as the encoder passes them."""
        return self.judge.features(self.encoder.decode(self.target))

    def measure(self, z: Tensor) -> dict[str, float]:
        """Return the figures of samples z [n, d]."""
        features = self.judge.features(self.encoder.decode(z))
        some, ordinary = z[:1000], metrics.nearest_distance(self.fresh[:1000], self.z).mean()
        return {
            "frechet": metrics.frechet_distance(features, self.features),
            "recall": float(metrics.precision_recall(features[:1000], self.features[:1000]).recall),
            "nearest": float(metrics.nearest_distance(some, self.z).mean() / ordinary),
            "copies": copies(some, self.z),
        }


@lru_cache(maxsize=1)
def images(source: str) -> data.Dataset:
    """Return the images of a source: MNIST, or scikit-learn's digits to try the code."""
    return data.load(source)


@lru_cache(maxsize=1)
def judge(source: str) -> metrics.FeatureClassifier:
    """Train the classifier that judges."""
    given = images(source)
    steps = 2000 if source == "mnist" else 300
    return metrics.FeatureClassifier.fit(given.train, given.labels, n_classes=10, steps=steps)


@lru_cache(maxsize=1)
def scene(n: int, seed: int, budget: Budget) -> Scene:
    """Return the data of a run."""
    return Scene(n, seed, budget)


def folds(z: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return five pairs of a part of z [n, d] to fit to and the fifth left out."""
    of = torch.arange(len(z), device=z.device) % 5
    return [(z[of != fold], z[of == fold]) for fold in range(5)]


def kernel(z: Tensor) -> tuple[GaussianMixture, float]:
    """Return the kernel estimate of z [n, d], and the width that the likelihood of fifths left out chooses."""

    def score(width: float) -> float:
        left = [GaussianMixture.from_points(a, width).log_prob(b.double()).mean() for a, b in folds(z)]
        return float(torch.stack(left).mean())

    width = max(WIDTHS, key=score)
    return GaussianMixture.from_points(z, width), width


def closed_form(z: Tensor, sigma: float, n: int, seed: int, evaluations: int) -> Tensor:
    """Return n samples by the smoothed score of the points z, along the probability flow."""
    spread = float(z.var(0).mean().sqrt())
    process = EDMProcess(z.shape[1], GaussianMixture.from_points(z, NARROW), z, sigma_data=spread)
    net = SmoothedScore(process, sigma, seed)
    return fastndsm.sample(net, process, n, "ode", seed=seed, n_evaluations=evaluations, dtype=torch.float32)


def reference(z: Tensor, seed: int, n: int) -> GaussianMixture:
    """Return the spherical mixture of n / 20 components."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GaussianMixture.fit(z, max(1, n // 20), "spherical", random_state=seed, n_init=5)


def train(z: Tensor, method: Trained, seed: int, budget: Budget) -> tuple[nn.Module, NoisingProcess, dict[str, Any]]:
    """Return the network of a row, its process, and what there is to say of it."""
    n, said = len(z), {}
    fitted, left = folds(z)[0] if method.validated else (z, None)
    process = method.process(reference(fitted, seed, n))
    if method.kernel:
        said["width"] = method.kernel * kernel(fitted)[1]
        smooth = GaussianMixture.from_points(fitted, said["width"])
        fitted = smooth.sample(50_000, seed=seed).float()
    torch.manual_seed(seed)
    net = ResidualScore(networks.MLP(z.shape[1], budget.hidden, horizon=process.T), process)
    options: dict[str, Any] = {}
    if left is not None:
        options["validation"] = left.repeat(-(-1000 // len(left)), 1)
    if method.decay:
        options["optimizer"] = lambda weights: torch.optim.AdamW(weights, 2e-3, weight_decay=method.decay)
    config = TrainConfig(steps=round(method.share * budget.steps), seed=seed, validate_every=50)
    trainer = Trainer(net, loss_for(process), fitted, config, **options)
    trainer.fit(progress=False)
    if left is None:
        return trainer.ema_net, process, said
    return trainer.best_net, process, said | {"best_step": trainer.best.step}


def perform(n: int, method: str, seed: int, budget: Budget) -> dict[str, Any]:
    """Return the row of a method."""
    given = scene(n, seed, budget)
    z, count, started, said = given.z, budget.evaluated, time.process_time(), {}
    if method == HELD_OUT:
        drawn = given.fresh
    elif method == TRAINING:
        drawn = z[torch.randint(n, (count,), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")]
    elif method in KERNELS:
        said["width"] = KERNELS[method] * kernel(z)[1]
        pi = GaussianMixture.from_points(z, said["width"])
        drawn = pi.sample(count, seed=seed).float()
    elif method == PRIOR:
        drawn = reference(z, seed, n).sample(count, seed=seed).float()
    elif method in CLOSED:
        drawn = closed_form(z, CLOSED[method], count, seed, budget.evaluations)
    else:
        net, process, said = train(z, METHODS[method], seed, budget)
        drawn = fastndsm.sample(net, process, count, seed=seed, n_evaluations=budget.evaluations)
    seconds = round(time.process_time() - started, 1)
    return {"n": n, "method": method, "seed": seed, **said, "seconds": seconds, **given.measure(drawn)}


def missing(rows: Sequence[dict[str, Any]]) -> str:
    """Return what has no row, of the rows of one n: methods by seed."""
    said = []
    for seed in range(SEEDS):
        done = {row["method"] for row in rows if row["seed"] == seed}
        left = "all" if not done else "; ".join(method for method in EVERY if method not in done)
        said += [f"seed {seed}: {left}"] if left else []
    return ". ".join(said)


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page: a table for each n, and what has not been run."""
    assert __doc__ is not None
    parts = ["# Few images", "", *__doc__.split("\n\n", 2)[2].strip().splitlines()]
    for n in SIZES:
        lines, of_n = [], [row for row in rows if row["n"] == n]
        for method in EVERY:
            mine = [row for row in of_n if row["method"] == method]
            if not mine:
                continue
            cells = [f"{np.mean([row[key] for row in mine]):.{2 if key != 'frechet' else 1}f}" for key in FIGURES]
            chosen = [f"{key} {row[key]}" for row in mine for key in ("width", "best_step") if key in row]
            seconds = f"{np.mean([row['seconds'] for row in mine]):.0f}"
            lines.append([method, *cells, ", ".join(dict.fromkeys(chosen)).replace("_", " "), seconds, str(len(mine))])
        parts += ["", f"## {n:,} images"]
        if lines:
            head = [f"n = {n:,}", *FIGURES, "chosen", "processor s", "seeds"]
            parts += ["", markdown(head, lines)]
        if missing(of_n):
            parts += ["", f"Not run: {missing(of_n)}."]
    return "\n".join(parts) + "\n"


FIGURES = ("frechet", "recall", "nearest", "copies")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of MNIST's four IDX files")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of rows and page; default benchmarks/results")
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--methods", nargs="+", choices=EVERY, default=list(EVERY))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--quick", action="store_true", help="8x8 digits and 40 steps, to try the code; needs --out")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args(arguments)
    if options.quick and options.out == RESULTS:
        raise SystemExit("--quick: expected a folder of its own, by --out")
    if options.data is not None:
        os.environ["FASTNDSM_DATA"] = str(options.data)
    budget = Budget("digits", 8, 150, 40, (32,), 5) if options.quick else Budget()
    rows = options.out / ROWS
    if not options.page:
        runs = [(n, method, seed) for seed in range(options.seeds) for n in options.sizes for method in options.methods]
        told = lambda row: [{key: round(row[key], 3) for key in FIGURES}]  # noqa: E731
        complete(rows, ("n", "method", "seed"), runs, partial(perform, budget=budget), PACKAGES, told)
    publish(options.out / PAGE, page(read(rows)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
