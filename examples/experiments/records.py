"""9. Records of a path: R samples of each path, for 2 / R of the simulation nearly, at equal optimizer steps.

MNIST in 32 principal components and an autoencoder's 16 dimensions with K = 1,000, as in experiment 7; path with the
sampler's defaults. Simulation takes most of a step there.
"""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor

from . import evaluations, methods, trained

NAME, VERSION = "records", 1
COUNTS = (1, 4, 8, 16)  # a path
SPACES = evaluations.MAIN
Config = dict[str, Any]


def configs(seed: int, quick: bool = False) -> list[Config]:
    """Return one configuration for each run of a seed."""
    common: Config = {"seed": seed, "evaluations": methods.DEFAULTS["evaluations"], "row": trained.PATH}
    common |= {"sampler": evaluations.SAMPLER, "solver": "linear", "draws": evaluations.COMMON}
    made = []
    for space in SPACES[:1] if quick else SPACES:
        base = common | {"space": space} | evaluations.IMAGES
        base |= {"components": evaluations.MANY, "T": evaluations.T_OF_MANY}
        if quick:
            base |= evaluations.QUICK | evaluations.QUICK_IMAGES
        counts, numbers = ((1, 4), (20,)) if quick else (COUNTS, evaluations.TABLED)
        for count, calls in itertools.product(counts, numbers):
            made.append(base | {"records_per_path": count, "calls": calls})
    return made


def priority(config: Config) -> int:
    """Return the run's place in its seed: a lower number comes first."""
    return SPACES.index(config["space"])


def perform(config: Config) -> tuple[dict[str, Any], Tensor | None]:
    """Run a configuration: its figures."""
    return evaluations.perform(config)[0], None
