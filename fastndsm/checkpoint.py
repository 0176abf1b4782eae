"""Another name for `fastndsm.training.checkpoint`."""

from .training.checkpoint import *  # noqa: F403
from .training.checkpoint import __all__ as __all__
