"""Description of the machine that the figures were taken on, and of the backends that can be had there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from functools import partial
from typing import Any

import torch

import fastndsm
from fastndsm.backends import registry
from fastndsm.jit.cache import BuildError, CompilationError

from ..problems import TINY
from . import launches
from .device import DEVICE, backends, device
from .log import Log
from .processes import end_with

PACKAGES = ("torch", "triton", "jax", "jaxlib", "torchsde", "numpy")
LAST_VARIANT = 25.0  # seconds before its end in which the compilation begins no other
ASKED = "driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"


def describe(log: Log) -> None:
    """Log the environment; fail where no device can be had."""
    log.write("environment", environment())


def build(log: Log) -> None:
    """Load, and so build, each backend under test. What cannot be tried here is told, and is no failure."""
    for name in backends():
        log.attempt(name, partial(_load, name, log))


def compile_kernels(log: Log) -> None:
    """Compile, in parallel, the variants of Triton's kernels that the checks will launch, into Triton's cache.

    In a process that does not see the GPU; what it has no time for, the checks compile themselves. On a CPU variants
    are only listed, those of an H100.
    """
    gpu = device().type == "cuda"
    architecture = _architecture() if gpu else "sm_90"
    if architecture not in launches.TARGETS:
        log.write("note", f"kernels are not compiled ahead for {architecture}: expected {', '.join(launches.TARGETS)}")
        return
    how = ["--seconds", str(log.left() - LAST_VARIANT)] if gpu else ["--list"]
    command = [sys.executable, "-m", f"{__package__}.launches", architecture, *how]
    settings = {DEVICE: "cpu", "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "FASTNDSM_DISABLE_JIT": "1"}
    done = subprocess.run(
        command,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=partial(end_with, os.getpid()),
    )
    if done.returncode != 0:
        raise RuntimeError(f"variants cannot be compiled: {command} ended with {done.returncode}")
    made = json.loads(done.stdout)
    found = [launches.Compiled(**row) for row in made["compiled"]]
    for one in found:
        if one.error:
            log.write("failure", f"{one.kernel} of {one.case}: {one.error[:500]} ({one.said})")
    spilled = sum(one.spilled > 0 for one in found)
    said = f"{len(found)} of {made['variants']} variants of kernels {'compiled' if gpu else 'listed'}"
    log.write("note", f"{said} for {architecture}, {spilled} with spills")


def _architecture() -> str:
    """Return the GPU's name as `launches.TARGETS` has it."""
    properties = torch.cuda.get_device_properties(device())
    return getattr(properties, "gcnArchName", f"sm_{properties.major}{properties.minor}").split(":")[0]


def _load(name: str, log: Log) -> None:
    try:
        registry.BACKENDS[name].load()
    except CompilationError:
        raise
    except BuildError as error:
        log.write("note", f"backend {name} cannot be built here: {error}")
    else:
        log.write("backend", name)


def environment() -> dict[str, Any]:
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "device": platform.processor() or platform.machine(),
        "tiny": TINY,
        "system": platform.platform(),
        "versions": versions(),
    }
    if device().type == "cuda":
        properties = torch.cuda.get_device_properties(device())
        torch.zeros(1, device=device())  # the context, or the reason why there is none
        found |= {
            "device": properties.name,
            "capability": getattr(properties, "gcnArchName", f"{properties.major}.{properties.minor}"),
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2": properties.L2_cache_size,
            "cuda": torch.version.cuda or torch.version.hip,
            "nvidia-smi": _nvidia_smi(),
        }
    return found


def versions() -> dict[str, str]:
    found = {"fastndsm": fastndsm.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        if importlib.util.find_spec(name) is not None:
            found[name] = importlib.metadata.version(name)
    return found


def _nvidia_smi() -> str | None:
    """Return driver, memory, highest clocks and power limit."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    arguments = [command, f"--query-gpu={ASKED}", "--format=csv,noheader"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
    return done.stdout.strip() if done.returncode == 0 else None
