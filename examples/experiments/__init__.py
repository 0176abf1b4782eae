"""The method's claims, tested: `python examples/experiments/run.py --help`."""

from __future__ import annotations

from types import ModuleType

from . import (
    classes,
    evaluations,
    imbalance,
    latent_space,
    planar,
    records,
    reference,
    small,
    stiff,
    sweeps,
    symmetry,
    tuning,
)

# In the order in which they are run; each has configs(seed, quick), priority(config), perform(config), NAME, VERSION.
EXPERIMENTS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        tuning,
        planar,
        imbalance,
        symmetry,
        latent_space,
        small,
        stiff,
        sweeps,
        reference,
        evaluations,
        classes,
        records,
    )
}
