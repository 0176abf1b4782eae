"""Diagnosis of this machine: versions, devices, each backend or the reason why not. Builds nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from .._version import __version__
from ..backends import registry
from ..jit import core as jit
from ..jit import cuda as jit_cuda

__all__ = ["diagnose", "format_diagnosis", "machine", "versions"]

PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "safetensors", "tqdm", "triton", "matplotlib", "ninja")
NOT_RUN_ON_GPU = "not yet run on a GPU"


def versions() -> dict[str, str | None]:
    """Return the versions of fastndsm, Python and the packages it uses; None where one is not installed."""
    found: dict[str, str | None] = {"fastndsm": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def machine() -> dict[str, Any]:
    """Return processor, operating system, thread count and accelerators."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def diagnose() -> dict[str, Any]:
    """Return everything that `fastndsm doctor` prints, JSON-able."""
    compiled = jit.status()
    backends = {name: _backend_state(name, compiled) for name in registry.BACKENDS}
    return {
        "versions": versions(),
        "machine": machine(),
        "requested_backend": registry.requested(),
        "backends": backends,
        "jit": jit.status(),  # once more: the library may have been loaded
    }


def format_diagnosis(diagnosis: dict[str, Any]) -> str:
    """Return a diagnosis as lines of text."""
    lines = []
    for title in ("versions", "machine", "jit"):
        lines.append(f"{title}:")
        for key, value in diagnosis[title].items():
            text = " ".join(map(str, value)) if isinstance(value, list) else value
            lines.append(f"  {key:18} {'none' if text in (None, '') else text}")
    lines.append(f"backends (requested: {diagnosis['requested_backend']}):")
    for name, state in diagnosis["backends"].items():
        lines.append(f"  {name:18} {'available' if state['available'] else 'not available'}: {state['note']}")
    return "\n".join(lines)


def _backend_state(name: str, compiled: dict[str, Any]) -> dict[str, Any]:
    backend = registry.BACKENDS[name]
    if name == "reference":
        return {"available": True, "note": "pure PyTorch, every device"}
    if name == "cpp":
        if compiled["reason"] is not None:
            return {"available": False, "note": compiled["reason"]}
        if not compiled["built"]:
            return {"available": True, "note": "built on first use, or now by `fastndsm build`"}
        reason = backend.unavailable()
        return {"available": reason is None, "note": reason or "built; CPU tensors"}
    if name == "cuda":  # asking whether it is available would build it
        cuda = jit_cuda.status()
        state = "built" if cuda["built"] else "built on first use, or now by `fastndsm build`"
        parts = [cuda["reason"] or f"{state}; auto does not take it", cuda["nvcc"], NOT_RUN_ON_GPU]
        return {"available": cuda["reason"] is None, "note": "; ".join(part for part in parts if part)}
    if not torch.cuda.is_available():
        return {"available": False, "note": f"it serves cuda tensors, found no such device; {NOT_RUN_ON_GPU}"}
    reason = backend.unavailable()
    return {"available": reason is None, "note": f"{reason or 'cuda tensors'}; {NOT_RUN_ON_GPU}"}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
