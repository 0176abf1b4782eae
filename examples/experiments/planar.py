"""1. Points of the plane: do the modes keep their weights, and does the shape come out, at n = 100, 500, 5,000?

Residual MLP 3x128. Data are divided by their standard deviation. Energy distance and mode weights of 10,000 samples
against 10,000 fresh points of the data's own law.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastndsm import data, metrics

from . import methods

NAME, VERSION = "planar", 1
COMPONENTS = {"four_modes": 4, "ring": 10, "moons": 2}
SIZES = (500, 100, 5000)
SETTINGS = methods.DEFAULTS | methods.TUNED_PLANE | {"hidden": [128, 128, 128], "steps": 1500, "features": True}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return one configuration for each run of a seed."""
    settings = SETTINGS | ({"steps": 40, "hidden": [32], "evaluated": 400} if quick else {"evaluated": 10_000})
    return [
        {"data": name, "n": n, "row": row, "seed": seed, **settings, "components": COMPONENTS[name]}
        for n in (SIZES[1:2] if quick else SIZES)
        for name in COMPONENTS
        for row in (*methods.UNTRAINED, *methods.TRAINED)
    ]


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 0 if config["n"] == 500 else 1


class Points(NamedTuple):
    """Scaled points, fresh points to compare with, others to be judged like samples, mode centers and weights."""

    train: Tensor
    fresh: Tensor
    held_out: Tensor
    centers: Tensor | None
    weights: Tensor | None
    true_weights: Tensor | None


@lru_cache(maxsize=2)
def points(name: str, n: int, seed: int, evaluated: int) -> Points:
    """Return the data of a run."""
    dataset = data.load(name, n=n, seed=seed, n_test=2 * evaluated)
    scale = dataset.train.std(0).mean()
    test = dataset.test / scale
    centers = None if dataset.centers is None else dataset.centers / scale
    true = torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64) if centers is not None else None
    return Points(dataset.train / scale, test[:evaluated], test[evaluated:], centers, dataset.class_weights, true)


def measure(samples: Tensor, given: Points) -> dict[str, float]:
    """Return the figures of a row."""
    nearest = metrics.nearest_distance(samples, given.train)
    fresh = metrics.nearest_distance(given.fresh, given.train)
    figures = {
        "energy": metrics.energy_distance(samples, given.fresh),
        "nearest_ratio": float(nearest.mean() / fresh.mean()),
        "copies": copies(samples, given.train),
    }
    if given.centers is not None and given.weights is not None and given.true_weights is not None:
        found = metrics.mode_weights(samples, given.centers)
        figures["mode_tv"] = metrics.total_variation(found, given.weights)
        figures["mode_tv_true"] = metrics.total_variation(found, given.true_weights)
    return figures


def copies(samples: Tensor, train: Tensor) -> float:
    """Return the share of samples three times nearer to one training sample than to any other (Yoon et al. 2023)."""
    near = torch.cat([torch.cdist(part, train).topk(2, largest=False).values for part in samples.split(1000)])
    return float((near[:, 0] < near[:, 1] / 3.0).double().mean())


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures, and the samples to keep for the picture."""
    given = points(config["data"], config["n"], config["seed"], config["evaluated"])
    cost: dict[str, Any] = {}
    if config["row"] == methods.HELD_OUT:
        samples = given.held_out
    else:
        samples, cost = methods.draw(config["row"], given.train, config, config["seed"], config["evaluated"])
    return measure(samples, given) | cost, samples[:1000] if config["seed"] == 0 else None
