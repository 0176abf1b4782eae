"""fastndsm: nonlinear denoising score matching (NDSM), fast.

Fit a Gaussian mixture to the data, noise the data by the Langevin process that has this mixture as its stationary law,
train a score network, sample by the reverse process. Method: Birrell, Katsoulakis, Rey-Bellet, Zhang and Zhu,
arXiv 2405.15625.
"""

from __future__ import annotations

from pathlib import Path as _Path

# In a source checkout kernels/ and csrc/ stand beside this package; installed, they lie inside it.
_root = _Path(__file__).resolve().parent.parent
if (_root / "pyproject.toml").is_file() and (_root / "csrc").is_dir():
    __path__.append(str(_root))

from . import functional  # noqa: E402
from ._backend import BackendError, use_backend  # noqa: E402
from .mixture import GaussianMixture  # noqa: E402
from .objective import DSMLoss, NDSMLoss  # noqa: E402
from .process import DriftProcess, LangevinProcess, Noised, OUProcess, Transition  # noqa: E402
from .sampler import log_likelihood, sample  # noqa: E402
from .score import ResidualScore  # noqa: E402

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "DSMLoss",
    "DriftProcess",
    "GaussianMixture",
    "LangevinProcess",
    "NDSMLoss",
    "Noised",
    "OUProcess",
    "ResidualScore",
    "Transition",
    "functional",
    "log_likelihood",
    "sample",
    "use_backend",
]
