"""Drifts as programs: traced from Python (`trace`), straight-line scalar code (`program`), printed for a compiler."""

from .program import Program, programs
from .trace import LARGEST_DIMENSION, MOST_OPERATIONS, Traced, Unsupported, trace

__all__ = ["LARGEST_DIMENSION", "MOST_OPERATIONS", "Program", "Traced", "Unsupported", "programs", "trace"]
