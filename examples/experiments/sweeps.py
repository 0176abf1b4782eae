"""6. Sweeps: what each choice costs and gives, one at a time, by the path estimator.

scikit-learn's 8x8 digits as 64 pixels, scaled to a variance of one on average, 1,100 for training; ten spherical
components, residual MLP 3x256, 2,000 optimizer steps of 256 evaluations, 100 uniform noising steps to 3 times the
largest variance. And, in the plane, score features and the residual form on four modes and ring at n = 5,000.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from . import images, latent_space, methods, planar, stiff

NAME, VERSION = "sweeps", 1
SETTINGS = methods.DEFAULTS | {
    "n": 1100,
    "evaluated": 348,
    "drawn": 2000,
    "steps": 2000,
    "shorten": False,
    "nonlinear": {"T": 3.0, "grid": "uniform"},
}
VARIATIONS: dict[str, list[dict[str, Any]]] = {
    "components": [{"components": k} for k in (1, 2, 5, 10, 20, 50)],
    "covariance": [
        {"covariance": kind, "reg_covar": reg, "n_steps": "needed"}
        for kind, reg in (
            *(("spherical", 1e-3), ("spherical", 1e-1), ("spherical", 3e-1)),
            *(("tied", 1e-2), ("tied", 1e-1), ("diag", 1e-1), ("diag", 3e-1), ("full", 1e-1), ("full", 3e-1)),
        )
    ],
    "n_steps": [{"n_steps": n} for n in (10, 25, 50, 200)],
    "T": [{"nonlinear": {"T": t, "grid": "uniform"}} for t in (0.5, 1.0, 6.0)],
    "grid": [{"nonlinear": {"T": 3.0, "grid": "quadratic"}}],
    "features": [{"features": True}],
    "residual": [{"residual": False}],
}
PLANE = {
    "features and residual": {},
    "no features": {"features": False},
    "no residual": {"residual": False, "features": False},
}
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return one configuration for each run of a seed: the base once (as ten components), then every variation."""
    base = SETTINGS | ({"drawn": 100, "steps": 10, "hidden": [32]} if quick else {})
    made = []
    for sweep, variations in VARIATIONS.items():
        for varied in variations:
            settings = base | {"data": "digits", "sweep": sweep, "seed": seed} | varied
            rows = (methods.PI, methods.PATH) if sweep in ("components", "covariance") else (methods.PATH,)
            made += [settings | {"row": row} for row in rows]
    made.append(base | {"data": "digits", "sweep": "held-out", "seed": seed, "row": methods.HELD_OUT})
    plane = [c for c in planar.configs(seed, quick) if c["row"] == methods.PATH and c["n"] == (100 if quick else 5000)]
    for config in plane:
        if config["data"] != "moons":
            made += [config | {"sweep": f"plane: {name}"} | varied for name, varied in PLANE.items()]
    return made


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return 1 if config["sweep"] == "components" else 2


@lru_cache(maxsize=1)
def scene(n: int, evaluated: int, seed: int) -> images.Scene:
    """Return the digits; the reference for Frechet distances is the training part, as the held-out one is small."""
    given = images.pool("digits")
    order = torch.randperm(len(given.labels), generator=torch.Generator().manual_seed(seed))
    train, held_out = given.images[order[:n]], given.images[order[n : n + evaluated]]
    return images.Scene(train, given.labels[order[:n]], train, held_out, latent_space.Pixels(train), given)


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures."""
    if config["data"] != "digits":
        return planar.perform(config)[0], None
    given = scene(config["n"], config["evaluated"], config["seed"])
    if config["row"] == methods.HELD_OUT:
        return given.measure(given.z_held_out), None
    nonlinear = config["nonlinear"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pi = methods.fit_reference(given.z, config, config["seed"])
    needed = methods.steps_needed(pi, nonlinear["T"], nonlinear["grid"])
    smallest, largest = (float(value) for value in methods.extremes(pi))
    n_steps = max(100, needed) if config["n_steps"] == "needed" else config["n_steps"]
    facts = {"steps_needed": needed, "eigenvalue_ratio": largest / smallest, "n_steps": n_steps}
    if config["row"] == methods.PATH and n_steps > stiff.MOST_STEPS:
        return facts | {"trained": False}, None
    settings = config | {"n_steps": n_steps}
    z, cost = methods.draw(config["row"], given.z, settings, config["seed"], config["drawn"], pi)
    return given.measure(z) | facts | cost, None
