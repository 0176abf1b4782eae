"""2. Unequal classes: MNIST with one class at 2%, and four classes at 5, 60, 25 and 10%.

5,000 training images in 32 principal components, residual MLP 3x256. Class weights by the judge; the coverage of the
rare class is the share of its held-out images with a sample within their distance to the fifth nearest other held-out
image of the class, in the judge's features (Naeem et al. 2020).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastndsm import latent

from . import images, methods

NAME, VERSION = "imbalance", 1
CASES = {
    "5/60/25/10": {0: 0.05, 1: 0.60, 2: 0.25, 3: 0.10},
    "one at 2%": {label: 0.02 if label == 5 else 0.98 / 9 for label in range(10)},
}
# second tries, made after the first rows had been seen: one for nonlinear noising, one for linear
FIFTY, FOUR = ", K = 50", ", T = 4"
RARE = {"5/60/25/10": 0, "one at 2%": 5}
SETTINGS = methods.DEFAULTS | methods.TUNED_IMAGES | {"source": "mnist", "dim": 32, "n": 5000, "evaluated": 4000}
QUICK: dict[str, Any] = {"components": 6, "n_init": 1}
QUICK |= {"source": "digits", "dim": 16, "n": 160, "evaluated": 70, "steps": 40, "hidden": [32]}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return one configuration for each run of a seed."""
    settings = SETTINGS | (QUICK if quick else {})
    made = []
    for case in CASES:
        base = {"case": case, "seed": seed, **settings}
        for row in (*methods.UNTRAINED, *methods.TRAINED, methods.LINEAR_FULL):
            made.append(base | {"row": row, "components": len(CASES[case])})
        for row in (methods.PI, methods.LINEAR_MIXTURE, methods.PATH):
            made.append(base | {"row": row + FIFTY, "components": 50})
        shorter = {"linear": {"T": 4.0, "grid": "quadratic"}, "components": len(CASES[case])}
        made.append(base | {"row": methods.LINEAR + FOUR} | shorter)
    return made


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 0


@lru_cache(maxsize=1)
def scene(case: str, source: str, dim: int, n: int, evaluated: int, seed: int) -> tuple[images.Scene, Tensor]:
    """Return the data of a run, and features of held-out images of the rare class."""
    given = images.pool(source)
    weights = torch.zeros(10, dtype=torch.float64)
    for label, weight in CASES[case].items():
        weights[label] = weight
    train, reference, held_out = images.parts(given.labels, weights, (n, evaluated, evaluated), seed)
    encoder = latent.PCA.fit(given.images[train], dim)
    made = images.Scene(
        given.images[train], given.labels[train], given.images[reference], given.images[held_out], encoder, given
    )
    unused = torch.ones(len(given.labels), dtype=torch.bool)
    unused[torch.cat([train, held_out])] = False
    rare = ((given.labels == RARE[case]) & unused).nonzero()[:1000, 0]
    return made, given.judge.features(encoder.decode(encoder.encode(given.images[rare])))


def coverage(features: Tensor, real: Tensor, neighbours: int = 5) -> float:
    """Return the share of real [m, f] with one of features [n, f] within their `neighbours`-th neighbour's distance."""
    radius = torch.cdist(real, real).topk(neighbours + 1, largest=False).values[:, -1]
    return float((torch.cdist(real, features).amin(1) <= radius).double().mean())


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures, and the samples to keep for the picture."""
    given, rare = scene(*(config[k] for k in ("case", "source", "dim", "n", "evaluated", "seed")))
    z, cost = images.perform(config | {"row": config["row"].removesuffix(FIFTY).removesuffix(FOUR)}, given)
    decoded = given.encoder.decode(z)
    found = given.pool.judge.probabilities(decoded).argmax(1)
    label = RARE[config["case"]]
    result = given.measure(z) | {
        "rare_weight": float((found == label).double().mean()),
        "rare_expected": float(given.weights[label]),
        "rare_coverage": coverage(given.pool.judge.features(decoded), rare),
    }
    return result | cost, images.kept(config, given, z)
