"""The Triton backend: the functions of `fastndsm.reference`, each one launch on a GPU, in float32.

Triton is imported by `prepare` or by the first op called, not with this module. It decides then whether it compiles
or, with TRITON_INTERPRET=1, interprets the kernels on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor


def prepare() -> None:
    """Raises RuntimeError with the reason if no kernel can run here: no Triton, or nothing to run on."""
    try:
        from triton import JITFunction

        from . import philox
    except ImportError as error:
        raise RuntimeError(f"Triton cannot be imported: {error}") from error
    compiled = isinstance(philox.philox_normal_kernel, JITFunction)
    if compiled and not torch.cuda.is_available():
        raise RuntimeError("it needs a GPU, and PyTorch finds none")


def philox_normal(
    n_paths: int,
    dim: int,
    seed: Tensor,
    step: Tensor,
    stream: int,
    first_path: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    from . import philox

    return philox.philox_normal(n_paths, dim, seed, step, stream, first_path, dtype, device)
