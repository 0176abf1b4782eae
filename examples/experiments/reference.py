"""6b. How many components does a reference bear? Held-out likelihood and copies against K and n.

MNIST in the 32 principal components of its training images, spherical covariances, one start. Held-out likelihood is
the mean log-density of 5,000 other images, in nats; draws from pi are compared with the training images: a ratio of
1 is as near as held-out images are. `GaussianMixture.select` takes its rule for K from here.
"""

from __future__ import annotations

import time
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastndsm import GaussianMixture, latent, metrics

from . import images
from .planar import copies

NAME, VERSION = "reference", 1
SIZES = (1000, 5000, 20_000, 50_000)
COMPONENTS = (1, 10, 30, 100, 300, 1000, 3000, 10_000)
HELD_OUT = 5000
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return a configuration for each number of rows and of components, one for two rows at most."""
    given = {"source": "mnist", "dim": 32, "held_out": HELD_OUT, "reg_covar": 1e-2}
    sizes, most = SIZES, max(COMPONENTS)
    if quick:
        given |= {"source": "digits", "dim": 8, "held_out": 200}
        sizes, most = (600,), 30
    return [
        {"row": f"K = {k:,}", "n": n, "components": k, "seed": seed, **given}
        for n in sizes
        for k in COMPONENTS
        if k <= min(n // 2, most)
    ]


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 0 if config["components"] <= 1000 else 1


@lru_cache(maxsize=1)
def latents(source: str, dim: int) -> Tensor:
    """Return the latent vectors of a source's training images."""
    given = images.pool(source)
    train = given.images[: given.n_train]
    return latent.PCA.fit(train, dim).encode(train)


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures."""
    z = latents(config["source"], config["dim"])
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(config["seed"]))
    held_out, train = z[order[: config["held_out"]]], z[order[config["held_out"] :][: config["n"]]]
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pi = GaussianMixture.fit(
            train, config["components"], "spherical", config["reg_covar"], random_state=config["seed"]
        )
    seconds = time.process_time() - began
    draws = pi.sample(images.NEAREST, seed=config["seed"]).to(z)
    near = [float(metrics.nearest_distance(x[: images.NEAREST], train).mean()) for x in (draws, held_out)]
    return {
        "trained": False,
        "train": float(pi.log_prob(train).mean()),
        "held_out": float(pi.log_prob(held_out).mean()),
        "nearest_ratio": near[0] / near[1],
        "copies": copies(draws, train),
        "copies_held_out": copies(held_out[: images.NEAREST], train),
        "smallest_variance": pi.smallest_variance,
        "largest_variance": pi.largest_variance,
        "fit_seconds": seconds,
    }, None
