"""5b. Stiff references: are full, tied or diagonal covariances worth their steps, plain or in whitened coordinates?

Digits (8x8) in 40 and MNIST (5,000 images) in 32 principal components, ten components, T = 3 times the largest
variance, a uniform grid of as many steps as keep q at 0.2, at least 100; above 600 a reference is only measured, not
trained with. Residual MLP 3x256, 1,500 optimizer steps. Sampling takes as many evaluations as the grid has steps.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastndsm import latent

from . import images, methods

NAME, VERSION = "stiff", 1
MOST_STEPS = 600
REFERENCES = (("spherical", 1e-2), ("tied", 1e-2), ("diag", 1e-1), ("full", 1e-1), ("full", 1e-2))
DATA = {"digits": {"dim": 40, "n": 1100, "evaluated": 340}, "mnist": {"dim": 32, "n": 5000, "evaluated": 4000}}
SETTINGS = methods.DEFAULTS | {"nonlinear": {"T": 3.0, "grid": "uniform"}, "steps": 1500, "shorten": False}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return a configuration for each run of a seed: draws from pi and path, for each reference and coordinates."""
    made = []
    for name in ("digits",) if quick else DATA:
        for whiten in (False, True):
            case = f"{name}, {'whitened' if whiten else 'plain'}"
            base = {"case": case, "source": name, "whiten": whiten, "seed": seed, **SETTINGS, **DATA[name]}
            if quick:
                base |= {"dim": 12, "evaluated": 150, "steps": 20, "hidden": [32]}
            for kind, reg_covar in REFERENCES:
                chosen = {"covariance": kind, "reg_covar": reg_covar}
                made += [base | chosen | {"row": row} for row in (methods.PI, methods.PATH)]
            made.append(base | {"row": methods.HELD_OUT})
    return made


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 1 if config["source"] == "digits" else 2


@lru_cache(maxsize=1)
def scene(source: str, whiten: bool, dim: int, n: int, evaluated: int, seed: int) -> images.Scene:
    """Return the data of a run."""
    given = images.pool(source)
    order = torch.randperm(len(given.labels), generator=torch.Generator().manual_seed(seed))[: n + 2 * evaluated]
    train, reference, held_out = order.split([n, evaluated, evaluated])
    encoder = latent.PCA.fit(given.images[train], dim, whiten=whiten)
    picked = (given.images[part] for part in (reference, held_out))
    return images.Scene(given.images[train], given.labels[train], *picked, encoder, given)


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures, and the samples to keep for the picture."""
    given = scene(*(config[k] for k in ("source", "whiten", "dim", "n", "evaluated", "seed")))
    if config["row"] == methods.HELD_OUT:
        return given.measure(given.z_held_out), None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pi = methods.fit_reference(given.z, config, config["seed"])
    smallest, largest = (float(value) for value in methods.extremes(pi))
    nonlinear = config["nonlinear"]
    needed = methods.steps_needed(pi, nonlinear["T"], nonlinear["grid"])
    facts = {"eigenvalue_ratio": largest / smallest, "steps_needed": needed}
    if config["row"] == methods.PATH and needed > MOST_STEPS:
        return facts | {"trained": False}, None
    settings = config | {"n_steps": max(config["n_steps"], needed)}
    z, cost = methods.draw(config["row"], given.z, settings, config["seed"], config["evaluated"], pi)
    return given.measure(z) | facts | cost, None
