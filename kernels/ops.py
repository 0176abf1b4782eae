"""The Triton backend: functions of `fastndsm.reference` under their names and with their arguments, in float32.

Triton is imported by `prepare` or by the first op asked for, not with this module. It decides then whether it compiles
or, with TRITON_INTERPRET=1, interprets the kernels on the CPU.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

MODULES = {
    "philox_normal": "philox",
    "uniform_steps": "philox",
    "mixture_log_prob": "mixture_score",
    "mixture_score": "mixture_score",
    "mixture_hvp": "mixture_score",
    "simulate": "simulate",
    "simulate_transition": "simulate",
    "simulate_target": "simulate",
    "ndsm_loss": "loss",
    "ndsm_loss_backward": "loss",
    "dsm_loss": "loss",
    "dsm_loss_backward": "loss",
    "reverse_steps": "reverse_steps",
    "drift_value": "drift",
    "drift_product": "drift",
    "drift_simulate": "drift",
    "drift_transition": "drift",
    "drift_target": "drift",
    "drift_reverse_steps": "drift",
}


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{MODULES[name]}", __package__), name)


def prepare() -> None:
    """Raise RuntimeError with the reason if no kernel can run here: no Triton, or nothing to run on."""
    try:
        from triton import JITFunction

        from . import philox
    except ImportError as error:
        raise RuntimeError(f"Triton cannot be imported: {error}") from error
    compiled = isinstance(philox.philox_normal_kernel, JITFunction)
    if compiled and not torch.cuda.is_available():
        raise RuntimeError("it needs a GPU, and PyTorch finds none")
