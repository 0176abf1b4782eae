"""fastndsm: nonlinear denoising score matching (NDSM), fast.

Fit a Gaussian mixture to the data, noise the data by the Langevin process that has this mixture as its stationary law,
train a score network, sample by the reverse process. Method: Birrell, Katsoulakis, Rey-Bellet, Zhang and Zhu,
arXiv 2405.15625.

    GaussianMixture           the reference: fit, select, score, sample
    LangevinProcess           nonlinear noising
    OUProcess, EDMProcess     linear noising
    FlowProcess               a flow from the mixture
    DriftProcess              noising by a drift of your own
    NDSMLoss, DSMLoss         losses; loss_for finds that of a process
    ResidualScore             the mixture's score and a network
    sample, log_likelihood    the reverse process
    data, metrics             data sets and files; how good samples are
    networks, training        networks; the trainer, saved models
    latent, tabular           models in a latent space; of tables
    functional                the ops as functions
    drifts, integrations      drifts; adapters to other libraries
    use_backend               which kernels serve

`fastndsm --help` is the command line; docs/start.md begins with data of your own.
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import _checkout, functional
from ._compiled import compile_drift
from ._version import __version__
from .backends import BackendError, use_backend
from .flow import FlowProcess
from .linear import EDMProcess
from .mixture import GaussianMixture
from .objective import DSMLoss, FlowMatchingLoss, NDSMLoss, loss_for
from .process import DriftProcess, LangevinProcess, Noised, OUProcess, Transition
from .sampling import log_likelihood, read_samples, sample, sample_sharded, write_samples
from .score import ResidualScore

if _TYPE_CHECKING:
    from . import (
        checkpoint,
        cli,
        data,
        drifts,
        integrations,
        latent,
        metrics,
        networks,
        tabular,
        testing,
        trainer,
        training,
    )

_checkout.expose_kernels_and_sources()

# Imported when first asked for (PEP 562): what they need takes longer to import than all of the above.
_SUBMODULES = (
    "checkpoint",
    "cli",
    "data",
    "drifts",
    "integrations",
    "latent",
    "metrics",
    "networks",
    "tabular",
    "testing",
    "trainer",
    "training",
)

__all__ = [
    "BackendError",
    "DSMLoss",
    "DriftProcess",
    "EDMProcess",
    "FlowMatchingLoss",
    "FlowProcess",
    "GaussianMixture",
    "LangevinProcess",
    "NDSMLoss",
    "Noised",
    "OUProcess",
    "ResidualScore",
    "Transition",
    "__version__",
    "checkpoint",
    "cli",
    "compile_drift",
    "data",
    "drifts",
    "functional",
    "integrations",
    "latent",
    "log_likelihood",
    "loss_for",
    "metrics",
    "networks",
    "read_samples",
    "sample",
    "sample_sharded",
    "tabular",
    "testing",
    "trainer",
    "training",
    "use_backend",
    "write_samples",
]


def __getattr__(name: str) -> _Any:
    if name in _SUBMODULES:
        return _importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBMODULES})
