"""Products of rows with precision matrices, which tied and full covariances in more than a few dimensions need."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import architecture_of, configuration


@triton.jit(do_not_specialize=["n_rows"])
def precision_product_kernel(
    out_ptr,
    x_ptr,
    means_ptr,
    matrices_ptr,
    n_rows: tl.int64,
    dim: tl.int64,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Store out[k] = (m_k - x) P_k, or x P_k without means, for x [n_rows, dim], m [K, dim], P [K, dim, dim].

    The differences are formed before they are multiplied, so that nothing cancels in the products.
    """
    k = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, dim, DEPTH):
        depth = start + tl.arange(0, DEPTH)
        inside = (rows < n_rows)[:, None] & (depth < dim)[None, :]
        x = tl.load(x_ptr + rows[:, None] * dim + depth[None, :], mask=inside, other=0.0)
        if means_ptr is not None:
            x = tl.load(means_ptr + k * dim + depth, mask=depth < dim, other=0.0)[None, :] - x
        inside = (depth < dim)[:, None] & (columns < dim)[None, :]
        at = k * dim * dim + depth[:, None] * dim + columns[None, :]
        matrix = tl.load(matrices_ptr + at, mask=inside, other=0.0)
        total = tl.dot(x, matrix, total, input_precision=PRECISION)
    inside = (rows < n_rows)[:, None] & (columns < dim)[None, :]
    tl.store(out_ptr + (k * n_rows + rows)[:, None] * dim + columns[None, :], total, mask=inside)


def precision_product(x: Tensor, matrices: Tensor, means: Tensor | None = None) -> Tensor:
    """Return x P [B, d] for P [d, d], x P_k [K, B, d] for [K, d, d]; of m_k - x in place of x with means [K, d]."""
    rows, dim = x.shape
    out = torch.empty((*matrices.shape[:-2], rows, dim), dtype=x.dtype, device=x.device)
    if out.numel() == 0:
        return out
    architecture = architecture_of(x.device)
    tile = configuration("precision_product", dim, architecture=architecture)
    components = 1 if matrices.ndim == 2 else matrices.shape[0]
    grid = (triton.cdiv(rows, tile["ROWS"]), triton.cdiv(dim, tile["COLUMNS"]), components)
    with torch.cuda.device_of(out):
        precision_product_kernel[grid](
            out,
            x.contiguous(),
            None if means is None else means.contiguous(),
            matrices.contiguous(),
            rows,
            dim,
            PRECISION=dot_precision(architecture),
            **tile.launch,
            enable_fp_fusion=False,
        )
    return out


def dot_precision(architecture: str | None) -> str:
    """Return tl.dot's precision with the error of float32: three products of tf32 parts, or float32 itself on AMD."""
    return "ieee" if architecture is not None and architecture.startswith("gfx") else "tf32x3"
