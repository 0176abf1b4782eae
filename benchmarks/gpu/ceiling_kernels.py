"""Kernels that do nothing but multiply-adds, or nothing but our normals, in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from fastndsm.kernels import philox
from torch import Tensor

WARPS = 4
SIZE, UNROLLED = 1024, 16  # 8 chains a thread
COUNTERS = 256  # 2 a thread
FMA_ITERATIONS, NORMAL_ITERATIONS = 4096, 2048


@triton.jit
def multiply_add_kernel(out_ptr, factor, iterations, SIZE: tl.constexpr, UNROLLED: tl.constexpr):
    """Iterate SIZE independent chains of x <- factor x + factor."""
    x = tl.arange(0, SIZE).to(tl.float32)
    for _ in range(iterations):
        for _ in tl.static_range(UNROLLED):
            x = tl.fma(x, factor, factor)
    tl.store(out_ptr + tl.program_id(0), tl.sum(x, 0))


@triton.jit
def normal_kernel(out_ptr, seed_ptr, iterations, SIZE: tl.constexpr):
    """Sum the four normals of SIZE counters at every step."""
    low, high = philox.seed_words(seed_ptr)
    path = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for step in range(iterations):
        w0, w1, w2, w3 = philox.philox_words(low, high, path, step, 0, 0)
        n0, n1 = philox.normals(w0, w1)
        n2, n3 = philox.normals(w2, w3)
        total += (n0 + n1) + (n2 + n3)
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, 0))


def counts() -> tuple[int, int]:
    """Count the multiply-adds and normals of one program."""
    return SIZE * UNROLLED * FMA_ITERATIONS, COUNTERS * 4 * NORMAL_ITERATIONS


def multiply_adds(out: Tensor, programs: int) -> None:
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    multiply_add_kernel[(programs,)](out, 0.5, FMA_ITERATIONS, SIZE=SIZE, UNROLLED=UNROLLED, **options)


def normals(out: Tensor, programs: int) -> None:
    seed = torch.full((), 1, dtype=torch.int64, device=out.device)
    normal_kernel[(programs,)](out, seed, NORMAL_ITERATIONS, SIZE=COUNTERS, num_warps=WARPS, enable_fp_fusion=False)
