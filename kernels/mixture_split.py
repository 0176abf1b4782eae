"""Many components for few samples: shared out among programs, whose posterior means a second launch merges.

    mass_s = log2 sum_{k in s} 2^(l_k),    mean = sum_s 2^(mass_s) mean_s / sum_s 2^(mass_s)

Source: "Flash-Decoding for long-context inference", Dao, Haziza, Massa, Sizov, 2023.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from . import mixture_small
from .configurations import Configuration, configuration
from .mixture_small import LOWEST, log_of_sum

PROGRAMS = 264  # enough to fill a GPU: two for each of 132 multiprocessors
LEAST = 4  # blocks of components a program takes, or a launch more is not worth it
BLOCK = 64  # components that count as a block where samples are held in registers


def shares(rows: int, n_components: int, tile: Configuration) -> tuple[int, int]:
    """Return into how many programs the components are split for each tile of rows, and how many each takes."""
    at_once = tile.constants.get("COMPONENTS", BLOCK)
    most = n_components // (LEAST * at_once)
    splits = max(1, min(PROGRAMS // max(1, triton.cdiv(rows, tile["ROWS"])), most))
    share = triton.cdiv(triton.cdiv(n_components, splits), at_once) * at_once
    return triton.cdiv(n_components, share), share


@triton.jit(do_not_specialize=["n_rows", "splits"])
def mixture_score_merge_kernel(
    log_prob_ptr,
    score_ptr,
    hvp_ptr,
    mass_ptr,
    scores_ptr,
    seconds_ptr,
    alongs_ptr,
    n_rows: tl.int64,
    splits,
    dim: tl.int64,
    ORDER: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Merge the parts' posterior means, weighted by their shares of density: out = sum_s out_s 2^(mass_s - mass)."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    in_rows = rows < n_rows
    inside = in_rows[:, None] & (columns < dim)[None, :]
    maximum = tl.full((ROWS,), LOWEST, tl.float32)
    for s in range(0, splits):
        maximum = tl.maximum(maximum, tl.load(mass_ptr + s * n_rows + rows, mask=in_rows, other=LOWEST))
    total = tl.zeros((ROWS,), tl.float32)
    along = tl.zeros((ROWS,), tl.float32)
    score = tl.zeros((ROWS, DIMS), tl.float32)
    second = tl.zeros((ROWS, DIMS), tl.float32)
    for s in range(0, splits):
        at = s * n_rows + rows
        mass = tl.load(mass_ptr + at, mask=in_rows, other=LOWEST)
        weight = mixture_small.weight_of(mass - maximum)
        total += weight
        if ORDER >= 1:
            tile = at[:, None] * dim + columns[None, :]
            score = tl.fma(weight[:, None], tl.load(scores_ptr + tile, mask=inside, other=0.0), score)
        if ORDER == 2:
            second = tl.fma(weight[:, None], tl.load(seconds_ptr + tile, mask=inside, other=0.0), second)
            along = tl.fma(weight, tl.load(alongs_ptr + at, mask=in_rows, other=0.0), along)
    if ORDER == 0:
        tl.store(log_prob_ptr + rows, log_of_sum(maximum, total), mask=in_rows)
    else:
        inverse = 1.0 / total
        tile = rows[:, None] * dim + columns[None, :]
        score *= inverse[:, None]
        if score_ptr is not None:
            tl.store(score_ptr + tile, score, mask=inside)
        if ORDER == 2:
            hvp = tl.fma(-score, (along * inverse)[:, None], second * inverse[:, None])
            tl.store(hvp_ptr + tile, hvp, mask=inside)


def merge(
    whole: tuple[Tensor | None, ...],
    parts: tuple[Tensor | None, ...],
    splits: int,
    dim: int,
    order: int,
    architecture: str | None,
) -> None:
    """Write the outputs of all components from those of their parts."""
    mass = parts[0]
    assert mass is not None
    rows = mass.shape[1]
    tile = configuration("mixture_merge", dim, architecture=architecture)
    grid = (triton.cdiv(rows, tile["ROWS"]), triton.cdiv(dim, tile["DIMS"]) if order else 1)
    mixture_score_merge_kernel[grid](
        *whole[:3], *parts, rows, splits, dim, ORDER=order, **tile.launch, enable_fp_fusion=False
    )
