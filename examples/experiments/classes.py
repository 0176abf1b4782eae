"""8. Class-conditional references: a reference of each class beside one for all, on MNIST with one class at 2%.

50,000 training images in 32 principal components, MLP 3x256 under labels, path estimator, ten evaluations a sample.
Every row has as many components in all. Without labels, the weights of classes are those that the mixture and its
noising give; with labels and one reference for all, the start of each class is fitted (`fit_prior`); with a reference
of each class, its rows are noised towards it and start from it.

Samples are of labels in the data's shares. Those of the rare class are judged apart: 1,000 of them (of the labels'
rows) against 1,000 held-out images of the class, by the Frechet distance and by coverage as in experiment 2.
"""

from __future__ import annotations

import time
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, NDSMLoss, ResidualScore, metrics, networks
from fastndsm.training.trainer import TrainConfig, Trainer

from . import images, imbalance, methods

NAME, VERSION = "classes", 1
CASE, RARE = "one at 2%", 5
NO_LABELS, FITTED, OF_CLASSES = "path, no labels", "path, labels, fit_prior", "path, a reference of each class"
TRAINED = (OF_CLASSES, FITTED, NO_LABELS)
MANY, T_OF_MANY = 1000, 0.5  # components, and the horizon in units of the largest variance: they are narrow
SETTINGS = methods.DEFAULTS | methods.RETUNED_IMAGES
SETTINGS |= {"source": "mnist", "dim": 32, "n": 50_000, "evaluated": 4000, "rare": 1000, "steps": 4000}
SETTINGS |= {"components": 100, "n_init": 1, "calls": 10}
QUICK: dict[str, Any] = {"source": "digits", "dim": 16, "n": 160, "evaluated": 70, "rare": 70, "steps": 20}
QUICK |= {"components": 12, "hidden": [16]}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return one configuration for each run of a seed."""
    base = {"seed": seed, **SETTINGS, **(QUICK if quick else {})}
    many = {"components": 20 if quick else MANY, "nonlinear": {"T": T_OF_MANY, "grid": "quadratic"}}
    made = [base | {"row": row} for row in (methods.HELD_OUT, methods.PI, *TRAINED)]
    return made + [base | many | {"row": row} for row in (methods.PI, *TRAINED)]


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 0 if config["components"] < MANY else 1


@lru_cache(maxsize=1)
def scene(source: str, dim: int, n: int, evaluated: int, seed: int) -> tuple[images.Scene, Tensor, Tensor]:
    """Return the data of a run, the labels of its training images, and features of held-out ones of the rare class."""
    made, rare = imbalance.scene(CASE, source, dim, n, evaluated, seed)
    given = images.pool(source)
    weights = torch.tensor([imbalance.CASES[CASE][label] for label in range(10)], dtype=torch.float64)
    train = images.parts(given.labels, weights, (n, evaluated, evaluated), seed)[0]
    return made, given.labels[train], rare


def in_shares(weights: Tensor, n: int, seed: int) -> Tensor:
    """Return n labels in these shares, to rounding, in any order."""
    middles = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    labels = torch.searchsorted(weights.cumsum(0), middles).clamp(max=len(weights) - 1)
    return labels[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


def reference(config: Config, z: Tensor, labels: Tensor) -> GaussianMixture:
    """Fit the reference of a row: a mixture of each class, or one for all."""
    of_classes = labels if config["row"] in (OF_CLASSES, methods.PI) else None
    options: dict[str, Any] = {"random_state": config["seed"], "n_init": config["n_init"], "labels": of_classes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # EM at its last iteration
        return GaussianMixture.fit(z, config["components"], config["covariance"], config["reg_covar"], **options)


def trained(config: Config, z: Tensor, labels: Tensor) -> tuple[nn.Module, LangevinProcess, dict[str, Any]]:
    """Return the network of a row, its process, and what they cost."""
    seed, row = config["seed"], config["row"]
    started = time.process_time()
    pi = reference(config, z, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # q slightly above its bound
        process = methods.build(methods.PATH, z, config, seed, pi)
    assert isinstance(process, LangevinProcess)
    if row == FITTED:
        process.fit_prior(z, labels)
    fitted = time.process_time()
    torch.manual_seed(seed)
    classes = None if row == NO_LABELS else 10
    net = networks.MLP(process.dim, config["hidden"], horizon=process.T, classes=classes)
    chosen = TrainConfig(steps=config["steps"], batch_size=config["evaluations"], seed=seed)
    conditions = None if classes is None else labels
    trainer = Trainer(ResidualScore(net, process), NDSMLoss(process), z, chosen, conditions=conditions)
    trainer.fit(progress=False)
    cost = {
        "fit_seconds": round(fitted - started, 2),
        "train_seconds": round(time.process_time() - fitted, 2),
        "train_evaluations": config["steps"] * config["evaluations"],
        "sample_evaluations": config["calls"],
        "T": round(process.T, 4),
    }
    return trainer.ema_net, process, cost


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures, and the samples to keep."""
    given, labels, rare = scene(*(config[k] for k in ("source", "dim", "n", "evaluated", "seed")))
    seed, z = config["seed"], given.z
    wanted = in_shares(given.weights, config["evaluated"], seed)
    ordered = torch.full((config["rare"],), RARE)
    result: dict[str, Any] = {}
    apart: Tensor | None = None
    if config["row"] == methods.HELD_OUT:
        samples = given.z_held_out
    elif config["row"] == methods.PI:
        pi = reference(config, z, labels)
        samples, apart = (pi.sample(len(y), seed + i, labels=y).to(z) for i, y in enumerate((wanted, ordered)))
    else:
        net, process, result = trained(config, z, labels)
        drawn = []
        for i, y in enumerate((wanted, ordered)):
            condition = None if config["row"] == NO_LABELS else y
            options: dict[str, Any] = {"n_evaluations": config["calls"], "seed": seed + i, "condition": condition}
            drawn.append(fastndsm.sample(net, process, len(y), batch_size=4000, **options))
        samples, apart = drawn[0], None if config["row"] == NO_LABELS else drawn[1]
    judge = given.pool.judge
    found = judge.probabilities(given.encoder.decode(samples)).argmax(1)
    features = judge.features(given.encoder.decode(samples))
    result |= given.measure(samples) | {
        "rare_weight": float((found == RARE).double().mean()),
        "rare_coverage": imbalance.coverage(features, rare),
    }
    if config["row"] not in (methods.HELD_OUT, NO_LABELS):
        result["accuracy"] = float((found == wanted).double().mean())
    if apart is not None:
        features = judge.features(given.encoder.decode(apart))
        result |= {
            "rare_accuracy": judge.accuracy(given.encoder.decode(apart), ordered),
            "rare_frechet": metrics.frechet_distance(features, rare),
            "rare_covered": imbalance.coverage(features, rare),
        }
    return result, images.kept(config, given, samples)
