"""Another name for `fastndsm.training.trainer`."""

from .training.trainer import *  # noqa: F403
from .training.trainer import __all__ as __all__
