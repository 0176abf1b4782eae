"""The Triton backend: the functions of `fastndsm.kernels.ops`; a drift's program goes there as printed functions."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from ..compiler import Program
from ..jit import triton as printed


def __getattr__(name: str) -> Callable[..., Any]:
    function = getattr(importlib.import_module("fastndsm.kernels.ops"), name)
    if not name.startswith("drift_"):
        return function  # type: ignore[no-any-return]
    return lambda *arguments: function(*(printed.load(a) if isinstance(a, Program) else a for a in arguments))


def load_drift(program: Program, dtype: torch.dtype) -> None:
    """Print and load a drift's program; raise BuildError with the reason. Triton compiles it when it first runs."""
    printed.load(program)
