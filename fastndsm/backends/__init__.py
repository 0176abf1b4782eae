"""Choice of the backend that serves an op (`registry`), and the backends that live in this package: C++ and CUDA.

The reference is `fastndsm.reference`, the Triton backend `fastndsm.kernels`.
"""

from .registry import BackendError, use_backend

__all__ = ["BackendError", "use_backend"]
