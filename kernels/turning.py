"""Rows turned into the principal axes of their components, and back: full covariances in more than a few dimensions."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import architecture_of, configuration


@triton.jit(do_not_specialize=["dim"])
def turn_kernel(
    first_out_ptr,
    second_out_ptr,
    first_ptr,
    second_ptr,
    rotations_ptr,
    component_ptr,
    dim: tl.int64,
    BACK: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Store first U and second U of each row, of two arrays [., dim], with U [dim, dim] that of its component.

    BACK: first U^T, and second U^T with the elements of U squared.
    """
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    matrix_ptr = rotations_ptr + tl.load(component_ptr + row) * dim * dim
    first_sum = tl.zeros((COLUMNS,), tl.float32)
    second_sum = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, dim, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        inside = (depth < dim)[:, None] & (columns < dim)[None, :]
        if BACK:
            at = columns[None, :] * dim + depth[:, None]
        else:
            at = depth[:, None] * dim + columns[None, :]
        matrix = tl.load(matrix_ptr + at, mask=inside, other=0.0)
        first = tl.load(first_ptr + row * dim + depth, mask=depth < dim, other=0.0)
        second = tl.load(second_ptr + row * dim + depth, mask=depth < dim, other=0.0)
        first_sum += tl.sum(first[:, None] * matrix, 0)
        if BACK:
            matrix *= matrix
        second_sum += tl.sum(second[:, None] * matrix, 0)
    tl.store(first_out_ptr + row * dim + columns, first_sum, mask=columns < dim)
    tl.store(second_out_ptr + row * dim + columns, second_sum, mask=columns < dim)


def turn(
    first: Tensor, second: Tensor, rotations: Tensor, component: Tensor, *, back: bool = False
) -> tuple[Tensor, Tensor]:
    """Return U^T v of the rows v of both arrays [B, d], with U = rotations[component] of [K, d, d].

    back: U v of the first; of the second, variances along the axes, those along the data's own.
    """
    rows, dim = first.shape
    first_out, second_out = torch.empty_like(first), torch.empty_like(second)
    if first.numel() == 0:
        return first_out, second_out
    tile = configuration("turn", dim, architecture=architecture_of(first.device))
    with torch.cuda.device_of(first):
        turn_kernel[rows, triton.cdiv(dim, tile["COLUMNS"])](
            first_out,
            second_out,
            first.contiguous(),
            second.contiguous(),
            rotations,
            component,
            dim,
            BACK=back,
            **tile.launch,
            enable_fp_fusion=False,
        )
    return first_out, second_out
