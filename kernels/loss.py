"""Per-sample losses of the estimators and their gradients in the score, each one pass over its inputs.

    plain            1/2 |s|^2 + z . s / s_n
    control_variate  1/2 |s|^2 + z . (s - h) / s_n             s at x, h at mean
    antithetic       the mean of plain at z and at -z
    path             1/2 |s - target|^2                        (dsm_loss)

Inputs are float32, bfloat16 or float16, also mixed; sums are float32, in an order that the batch has no part in. A tile
of ROWS samples by COLUMNS values is read at a time. Forward, a program walks along its rows, each lane with sums of its
own, and adds the lanes up at the end; backward, tiles have nothing to do with each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configurations import architecture_of, configuration

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
VECTOR_BYTES = 16  # the widest load of a thread


# --- device functions --------------------------------------------------------------------------------------------


@triton.jit
def tile_of_rows(tile, rows, ROWS: tl.constexpr):
    """Return the samples of a tile [ROWS], int64, and which of them exist."""
    first = tile.to(tl.int64) * ROWS
    lanes = tl.arange(0, ROWS)
    return first + lanes, lanes < tl.minimum(rows - first, ROWS).to(tl.int32)


@triton.jit
def tile_of_columns(start, dim, VECTOR: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the values from `start` on [COLUMNS], int64, and which of them exist."""
    lanes = tl.arange(0, COLUMNS)
    # VECTOR divides dim: nothing changes, but the compiler sees that whole vectors can be read
    left = tl.minimum(dim - start, COLUMNS).to(tl.int32) // VECTOR * VECTOR
    return start + lanes, lanes < left


@triton.jit
def row_offsets(row, pitch, VECTOR: tl.constexpr):
    """Return the offsets of the rows' beginnings [ROWS, 1]; VECTOR divides pitch."""
    return row[:, None] * (pitch // VECTOR * VECTOR)


# --- ndsm_loss ---------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows", "dim", "score_pitch", "noise_pitch", "std_stride"])
def ndsm_loss_kernel(
    loss_ptr,
    scores_ptr,
    noise_ptr,
    std_ptr,
    rows: tl.int64,
    dim: tl.int64,
    score_pitch: tl.int64,
    noise_pitch: tl.int64,
    std_stride: tl.int64,
    ESTIMATOR: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute loss[i] = 1/2 |s_i|^2 + z_i . u_i / std_i

    plain            u = s
    control_variate  u = s - h
    antithetic       u = (plus - minus) / 2,  1/2 |s|^2 the mean of the two

    with s = scores[i] and h = scores[rows + i]; plus and minus likewise.
    """
    row, in_rows = tile_of_rows(tl.program_id(0), rows, ROWS)
    first = row_offsets(row, score_pitch, VECTOR)
    second = row_offsets(rows + row, score_pitch, VECTOR)
    noise = row_offsets(row, noise_pitch, VECTOR)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, dim, COLUMNS):
        column, in_columns = tile_of_columns(start, dim, VECTOR, COLUMNS)
        inside = in_rows[:, None] & in_columns[None, :]
        s = tl.load(scores_ptr + (first + column[None, :]), mask=inside, other=0.0).to(tl.float32)
        z = tl.load(noise_ptr + (noise + column[None, :]), mask=inside, other=0.0).to(tl.float32)
        u = s
        squares = tl.fma(s, s, squares)
        if ESTIMATOR != "plain":
            h = tl.load(scores_ptr + (second + column[None, :]), mask=inside, other=0.0).to(tl.float32)
            u = s - h
            if ESTIMATOR == "antithetic":
                squares = tl.fma(h, h, squares)
        products = tl.fma(z, u, products)
    std = tl.load(std_ptr + row * std_stride, mask=in_rows, other=1.0).to(tl.float32)
    loss = tl.fma(tl.sum(squares, 1), 0.5, tl.div_rn(tl.sum(products, 1), std))
    if ESTIMATOR == "antithetic":
        loss = 0.5 * loss
    tl.store(loss_ptr + row, loss, mask=in_rows)


@triton.jit(
    do_not_specialize=["column_tiles", "rows", "dim", "grad_stride", "score_pitch", "noise_pitch", "std_stride"]
)
def ndsm_loss_backward_kernel(
    out_ptr,
    grad_ptr,
    scores_ptr,
    noise_ptr,
    std_ptr,
    column_tiles: tl.int32,
    rows: tl.int64,
    dim: tl.int64,
    grad_stride: tl.int64,
    score_pitch: tl.int64,
    noise_pitch: tl.int64,
    std_stride: tl.int64,
    ESTIMATOR: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute out = d sum_i grad_i loss_i / d scores, with g = grad_i:

    plain            g s + g z / std
    control_variate  g s + g z / std,  and -g z / std in the second half
    antithetic       1/2 (g plus + g z / std),  and 1/2 (g minus - g z / std) in the second half
    """
    tile = tl.program_id(0)
    row, in_rows = tile_of_rows(tile // column_tiles, rows, ROWS)
    start = (tile % column_tiles).to(tl.int64) * COLUMNS
    column, in_columns = tile_of_columns(start, dim, VECTOR, COLUMNS)
    inside = in_rows[:, None] & in_columns[None, :]
    first = row_offsets(row, score_pitch, VECTOR) + column[None, :]
    second = row_offsets(rows + row, score_pitch, VECTOR) + column[None, :]
    noise = row_offsets(row, noise_pitch, VECTOR) + column[None, :]
    g = tl.load(grad_ptr + row * grad_stride, mask=in_rows, other=0.0).to(tl.float32)
    std = tl.load(std_ptr + row * std_stride, mask=in_rows, other=1.0).to(tl.float32)
    s = tl.load(scores_ptr + first, mask=inside, other=0.0).to(tl.float32)
    z = tl.load(noise_ptr + noise, mask=inside, other=0.0).to(tl.float32)
    if ESTIMATOR == "antithetic":
        g = 0.5 * g
    pull = z * tl.div_rn(g, std)[:, None]
    out = out_ptr + (row_offsets(row, dim, VECTOR) + column[None, :])
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    tl.store(out, tl.fma(s, g[:, None], pull).to(dtype), mask=inside)
    if ESTIMATOR != "plain":
        other = -pull
        if ESTIMATOR == "antithetic":
            minus = tl.load(scores_ptr + second, mask=inside, other=0.0).to(tl.float32)
            other = tl.fma(minus, g[:, None], other)
        out = out_ptr + (row_offsets(rows + row, dim, VECTOR) + column[None, :])
        tl.store(out, other.to(dtype), mask=inside)


def ndsm_loss(scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool) -> Tensor:
    """Return loss [B], float32, from scores [B, d] (plain) or [2B, d] (the others), noise [B, d], std [B].

    Raises:
        TypeError: if a dtype is not float32, bfloat16 or float16.
        ValueError: if the shapes do not fit together.
    """
    kind = _kind(estimator, antithetic)
    _check_floats(scores=scores, noise=noise, std=std)
    rows, dim = noise.shape
    _check_shapes(scores=(scores, (_halves(kind) * rows, dim)), std=(std, (rows,)))
    loss = torch.empty(noise.shape[:1], dtype=torch.float32, device=scores.device)
    _launch(ndsm_loss_kernel, loss, noise.shape, (scores, noise, std), whole_rows=True, ESTIMATOR=kind)
    return loss


def ndsm_loss_backward(
    grad: Tensor, scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool
) -> Tensor:
    """Return the gradient in scores, of their shape and dtype, from grad [B]; raises as `ndsm_loss` does."""
    kind = _kind(estimator, antithetic)
    _check_floats(grad=grad, scores=scores, noise=noise, std=std)
    rows, dim = noise.shape
    _check_shapes(scores=(scores, (_halves(kind) * rows, dim)), std=(std, (rows,)), grad=(grad, (rows,)))
    out = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    tensors = (grad, scores, noise, std)
    _launch(ndsm_loss_backward_kernel, out, noise.shape, tensors, whole_rows=False, ESTIMATOR=kind)
    return out


def _kind(estimator: str, antithetic: bool) -> str:
    return "antithetic" if antithetic and estimator == "plain" else estimator


def _halves(kind: str) -> int:
    return 1 if kind == "plain" else 2


# --- dsm_loss ----------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["rows", "dim", "score_pitch", "target_pitch"])
def dsm_loss_kernel(
    loss_ptr,
    score_ptr,
    target_ptr,
    rows: tl.int64,
    dim: tl.int64,
    score_pitch: tl.int64,
    target_pitch: tl.int64,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute loss[i] = 1/2 |score_i - target_i|^2"""
    row, in_rows = tile_of_rows(tl.program_id(0), rows, ROWS)
    first = row_offsets(row, score_pitch, VECTOR)
    second = row_offsets(row, target_pitch, VECTOR)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, dim, COLUMNS):
        column, in_columns = tile_of_columns(start, dim, VECTOR, COLUMNS)
        inside = in_rows[:, None] & in_columns[None, :]
        score = tl.load(score_ptr + (first + column[None, :]), mask=inside, other=0.0).to(tl.float32)
        target = tl.load(target_ptr + (second + column[None, :]), mask=inside, other=0.0).to(tl.float32)
        error = score - target
        squares = tl.fma(error, error, squares)
    tl.store(loss_ptr + row, 0.5 * tl.sum(squares, 1), mask=in_rows)


@triton.jit(do_not_specialize=["column_tiles", "rows", "dim", "grad_stride", "score_pitch", "target_pitch"])
def dsm_loss_backward_kernel(
    out_ptr,
    grad_ptr,
    score_ptr,
    target_ptr,
    column_tiles: tl.int32,
    rows: tl.int64,
    dim: tl.int64,
    grad_stride: tl.int64,
    score_pitch: tl.int64,
    target_pitch: tl.int64,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute out_i = grad_i (score_i - target_i)"""
    tile = tl.program_id(0)
    row, in_rows = tile_of_rows(tile // column_tiles, rows, ROWS)
    start = (tile % column_tiles).to(tl.int64) * COLUMNS
    column, in_columns = tile_of_columns(start, dim, VECTOR, COLUMNS)
    inside = in_rows[:, None] & in_columns[None, :]
    first = row_offsets(row, score_pitch, VECTOR) + column[None, :]
    second = row_offsets(row, target_pitch, VECTOR) + column[None, :]
    g = tl.load(grad_ptr + row * grad_stride, mask=in_rows, other=0.0).to(tl.float32)
    score = tl.load(score_ptr + first, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(target_ptr + second, mask=inside, other=0.0).to(tl.float32)
    out = out_ptr + (row_offsets(row, dim, VECTOR) + column[None, :])
    tl.store(out, (g[:, None] * (score - target)).to(out_ptr.dtype.element_ty), mask=inside)


def dsm_loss(score: Tensor, target: Tensor) -> Tensor:
    """Return 1/2 |score - target|^2 [B], float32, for score, target [B, d]; raises as `ndsm_loss` does."""
    _check_floats(score=score, target=target)
    _check_shapes(target=(target, score.shape))
    loss = torch.empty(score.shape[:1], dtype=torch.float32, device=score.device)
    _launch(dsm_loss_kernel, loss, score.shape, (score, target), whole_rows=True)
    return loss


def dsm_loss_backward(grad: Tensor, score: Tensor, target: Tensor) -> Tensor:
    """Return the gradient in score, of its shape and dtype, from grad [B]; raises as `ndsm_loss` does."""
    _check_floats(grad=grad, score=score, target=target)
    _check_shapes(target=(target, score.shape), grad=(grad, score.shape[:1]))
    out = torch.empty(score.shape, dtype=score.dtype, device=score.device)
    _launch(dsm_loss_backward_kernel, out, score.shape, (grad, score, target), whole_rows=False)
    return out


# --- launches ----------------------------------------------------------------------------------------------------


def _check_floats(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name}: expected one of {', '.join(map(str, DTYPES))}, found {tensor.dtype}")


def _check_shapes(**tensors: tuple[Tensor, Sequence[int]]) -> None:
    for name, (tensor, expected) in tensors.items():
        if tensor.shape != torch.Size(expected):
            raise ValueError(f"{name}: expected shape {tuple(expected)}, found {tuple(tensor.shape)}")


def _launch(
    kernel: Any, out: Tensor, shape: torch.Size, tensors: tuple[Tensor, ...], *, whole_rows: bool, **constants: Any
) -> None:
    """Launch kernel(out, *tensors, B, d, *their strides): a program for each tile of rows, or for each tile of values.

    Rows may be any distance apart; where the values of a row are not side by side, a copy is read.
    """
    rows, dim = shape
    if out.numel() == 0:
        return
    tensors = tuple(t.contiguous() if t.ndim == 2 and t.stride(1) != 1 and dim > 1 else t for t in tensors)
    matrices = [t for t in tensors if t.ndim == 2]
    config = configuration("loss", dim, architecture=architecture_of(out.device))
    row_tiles, column_tiles = triton.cdiv(rows, config["ROWS"]), triton.cdiv(dim, config["COLUMNS"])
    widest = VECTOR_BYTES // min(t.element_size() for t in matrices)
    with torch.cuda.device_of(out):
        kernel[(row_tiles if whole_rows else row_tiles * column_tiles,)](
            out,
            *tensors,
            *(() if whole_rows else (column_tiles,)),
            rows,
            dim,
            *(t.stride(0) for t in tensors),
            VECTOR=math.gcd(widest, dim, *(t.stride(0) for t in matrices)),
            **constants,
            **config.launch,
            enable_fp_fusion=False,  # every fused multiply-add is written out, so that all GPUs round alike
        )
