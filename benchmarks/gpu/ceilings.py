"""Rates of this GPU, measured in the same run: bytes copied, multiply-adds in registers, our normals in registers.

On a CPU, where only the code path counts, the rates are those of benchmarks/roofline.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import roofline
from ..problems import TINY
from .device import device, timed

COPIED = 1 << (16 if TINY else 30)  # bytes of the array


def measure() -> dict[str, float]:
    """Measure, per second, `bandwidth` (bytes read and written by a copy), `fma` (multiply-adds) and `normals`."""
    if device().type != "cuda":
        rates = roofline.measure()
        return {"bandwidth": roofline.bandwidth(3 * COPIED), "fma": rates.fma, "normals": rates.normals}
    fma, normals = _arithmetic()
    return {"bandwidth": copy_bandwidth(), "fma": fma, "normals": normals}


def copy_bandwidth() -> float:
    source = torch.ones(COPIED // 4, device=device())
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * COPIED / min(timed(lambda: target.copy_(source)).seconds)


def _arithmetic() -> tuple[float, float]:
    """Measure multiply-adds and normals per second, of programs that keep everything in registers."""
    from . import ceiling_kernels as kernels

    programs = 32 * torch.cuda.get_device_properties(device()).multi_processor_count
    out = torch.empty(programs, device=device())

    def rate(launch: Callable[[], Any], count: float) -> float:
        launch()
        return count / min(timed(launch).seconds)

    fma_per_program, normals_per_program = kernels.counts()
    return (
        rate(lambda: kernels.multiply_adds(out, programs), programs * fma_per_program),
        rate(lambda: kernels.normals(out, programs), programs * normals_per_program),
    )
