"""3. Small training sets: MNIST with n = 200, 1,000, 5,000 and 60,000 images.

32 principal components of those n images, 50 components of pi (10 at n = 200), residual MLP 3x256. The Frechet distance
is to 4,000 held-out images; the distance to the nearest training image is divided by that of held-out images, so that
1 is as near as new images are, and copies are samples three times nearer to one training image than to any other.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastndsm import latent

from . import images, methods

NAME, VERSION = "small", 1
SIZES = (200, 1000, 5000, 60_000)
SETTINGS = methods.DEFAULTS | methods.RETUNED_IMAGES | {"source": "mnist", "dim": 32, "evaluated": 4000}
QUICK: dict[str, Any] = {"components": 6, "n_init": 1}
QUICK |= {"source": "digits", "dim": 16, "evaluated": 150, "steps": 40, "hidden": [32]}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return one configuration for each run of a seed."""
    settings = SETTINGS | (QUICK if quick else {})
    rows = (*methods.UNTRAINED, *methods.TRAINED)
    return [
        {"n": n, "row": row, "seed": seed, **settings, "components": min(50, n // 20)}
        for n in (SIZES[:1] if quick else SIZES)
        for row in rows
    ]


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 0 if config["n"] in (200, 5000) else 1


@lru_cache(maxsize=1)
def scene(source: str, dim: int, n: int, evaluated: int, seed: int) -> images.Scene:
    """Return the data of a run: n of the training part, the held-out from the other."""
    given = images.pool(source)
    generator = torch.Generator().manual_seed(seed)
    train = torch.randperm(given.n_train, generator=generator)[:n]
    others = given.n_train + torch.randperm(len(given.labels) - given.n_train, generator=generator)
    reference, held_out = others[:evaluated], others[evaluated : 2 * evaluated]
    encoder = latent.PCA.fit(given.images[train], dim)
    picked = (given.images[part] for part in (reference, held_out))
    return images.Scene(given.images[train], given.labels[train], *picked, encoder, given)


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures, and the samples to keep for the picture."""
    given = scene(*(config[k] for k in ("source", "dim", "n", "evaluated", "seed")))
    z, cost = images.perform(config, given)
    return given.measure(z) | cost, images.kept(config, given, z)
