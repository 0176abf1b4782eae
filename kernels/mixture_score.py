"""Log-density, score and Hessian-vector product of a Gaussian mixture, for any number of components and dimensions.

    log pi(x)  = log sum_k exp(l_k),    l_k = log_scale_k - 1/2 (x - m_k)^T P_k (x - m_k)
    score      = sum_k r_k g_k,         g_k = P_k (m_k - x),    r_k = exp(l_k) / sum_i exp(l_i)
    H v        = sum_k r_k (g_k (g_k . v) - P_k v) - score (score . v)

The sums run online over blocks of components under a running maximum, as in flash attention, so that nothing of size
B x K is stored. The hessian is symmetric: the backward pass of the score is H v with the incoming gradient as v. Three
kernels by dimension: samples in registers, samples whole, samples in tiles. Many components for few samples are shared
out among programs, each of which gives the posterior means of its own, and merged in a second launch.

Source of the running maximum: Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import mixture_full, mixture_products, mixture_small
from .configurations import MANY, SMALL, WHOLE, Configuration, architecture_of, configuration
from .mixture_small import LOWEST, log_of_sum
from .mixture_split import merge, shares
from .operands import Mixture
from .precision_product import dot_precision, precision_product

# --- kernels -----------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_rows", "n_components", "share"])
def mixture_score_small_kernel(
    mass_ptr,
    score_ptr,
    second_ptr,
    along_ptr,
    x_ptr,
    v_ptr,
    means_ptr,
    precisions_ptr,
    log_scale_ptr,
    n_rows: tl.int64,
    n_components: tl.int64,
    share: tl.int64,
    DIM: tl.constexpr,
    KIND: tl.constexpr,
    ORDER: tl.constexpr,
    PARTIAL: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Take rows whole in registers, DIM <= 4. Program (i, s) has tile i and components s share <= k < (s + 1) share.

    ORDER, of the derivative: 0 for mass, 1 for the score, 2 for the score, if wanted, and H v. mass is log pi(x). If
    PARTIAL, of these components alone: mass in base 2, the score, second = H v + score (score . v), along = score . v.
    """
    split = tl.program_id(1).to(tl.int64)
    begin = split * share
    end = tl.minimum(begin + share, n_components)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_rows
    x = mixture_small.load_vector(x_ptr, rows, inside, DIM)
    v = x
    if ORDER == 2:
        v = mixture_small.load_vector(v_ptr, rows, inside, DIM)
    maximum, total, score, second = mixture_small.posterior_sums(
        x, v, means_ptr, precisions_ptr, log_scale_ptr, begin, end, KIND, ORDER
    )
    out = split * n_rows + rows
    if PARTIAL:
        tl.store(mass_ptr + out, maximum + tl.log2(total), mask=inside)
    elif ORDER == 0:
        tl.store(mass_ptr + out, log_of_sum(maximum, total), mask=inside)
    if ORDER >= 1:
        inverse = 1.0 / total
        score = mixture_small.scaled(score, inverse)
        if score_ptr is not None:
            mixture_small.store_vector(score_ptr, out, score, inside, DIM)
    if ORDER == 2:
        second = mixture_small.scaled(second, inverse)
        along = mixture_small.dot(score, v)
        if PARTIAL:
            tl.store(along_ptr + out, along, mask=inside)
        else:
            second = mixture_small.add_multiple(second, -along, score)
        mixture_small.store_vector(second_ptr, out, second, inside, DIM)


@triton.jit(do_not_specialize=["n_rows", "n_components", "share"])
def mixture_score_whole_kernel(
    mass_ptr,
    score_ptr,
    second_ptr,
    along_ptr,
    x_ptr,
    u_ptr,
    v_ptr,
    w_ptr,
    means_ptr,
    keys_ptr,
    log_scale_ptr,
    n_rows: tl.int64,
    n_components: tl.int64,
    share: tl.int64,
    dim: tl.int32,
    KIND: tl.constexpr,
    ORDER: tl.constexpr,
    PARTIAL: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take rows whole, dim <= DIMS, with programs and outputs as above; u, w, keys as in `Operands`."""
    HVP: tl.constexpr = ORDER == 2
    split = tl.program_id(1).to(tl.int64)
    begin = split * share
    end = tl.minimum(begin + share, n_components)
    row = tl.program_id(0).to(tl.int64) * ROWS
    lanes = tl.arange(0, ROWS)
    columns = tl.arange(0, DIMS)
    in_rows = lanes < n_rows - row
    inside = in_rows[:, None] & (columns < dim)[None, :]
    a, u, v, w = mixture_products.sample_tile(
        x_ptr, u_ptr, v_ptr, w_ptr, means_ptr, keys_ptr, row, lanes, columns, inside, dim, KIND, HVP
    )
    maximum, total, rate, along, slope, A, R, B, S = mixture_products.sums_of_whole_rows(
        a, u, v, means_ptr, keys_ptr, log_scale_ptr, columns, begin, end, dim,
        KIND, ORDER, COMPONENTS, PRECISION,
    )  # fmt: skip
    out = split * n_rows + row
    if PARTIAL:
        tl.store(mass_ptr + out + lanes, maximum + tl.log2(total), mask=in_rows)
        if HVP:
            tl.store(along_ptr + out + lanes, along / total, mask=in_rows)
    elif ORDER == 0:
        tl.store(mass_ptr + out + lanes, log_of_sum(maximum, total), mask=in_rows)
    if ORDER >= 1:
        score, second = mixture_products.posterior_means(a, u, v, w, A, R, B, S, total, rate, along, slope, KIND, HVP)
        if score_ptr is not None:
            mixture_products.store_tile(score_ptr, out, lanes, columns, inside, dim, score)
        if HVP:
            if not PARTIAL:
                second = tl.fma(-score, (along / total)[:, None], second)
            mixture_products.store_tile(second_ptr, out, lanes, columns, inside, dim, second)


@triton.jit(do_not_specialize=["n_rows", "n_components", "share", "size"])
def mixture_score_tiled_kernel(
    mass_ptr,
    score_ptr,
    second_ptr,
    along_ptr,
    scratch_ptr,
    x_ptr,
    u_ptr,
    v_ptr,
    w_ptr,
    means_ptr,
    keys_ptr,
    log_scale_ptr,
    n_rows: tl.int64,
    n_components: tl.int64,
    share: tl.int64,
    size: tl.int64,
    dim: tl.int32,
    KIND: tl.constexpr,
    ORDER: tl.constexpr,
    PARTIAL: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    DIMS: tl.constexpr,
    DIRECT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take any dim, in tiles of DIMS: first the weights of a block of components, then tile by tile what they weigh.

    The same programs and outputs as above. The sums over blocks before the last wait in the scratch, `size` elements
    for each of its arrays.
    """
    HVP: tl.constexpr = ORDER == 2
    split = tl.program_id(1).to(tl.int64)
    begin = split * share
    end = tl.minimum(begin + share, n_components)
    row = tl.program_id(0).to(tl.int64) * ROWS
    lanes = tl.arange(0, ROWS)
    in_rows = lanes < n_rows - row
    out = split * n_rows + row
    slots = tl.arange(0, COMPONENTS)
    maximum = tl.full((ROWS,), LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    rate, along, slope = total, total, total
    for start in range(begin, end, COMPONENTS):
        weights, products, shrink, maximum, total, rate, along, slope = mixture_products.block_of_tiles(
            x_ptr, u_ptr, v_ptr, w_ptr, means_ptr, keys_ptr, log_scale_ptr, row, lanes, in_rows, start, end, dim,
            maximum, total, rate, along, slope, KIND, HVP, COMPONENTS, DIMS, DIRECT, PRECISION,
        )  # fmt: skip
        if ORDER >= 1:
            for j in range(0, dim, DIMS):
                columns = j + tl.arange(0, DIMS)
                inside = in_rows[:, None] & (columns < dim)[None, :]
                A, R, B, S = mixture_products.tile_of_sums(
                    scratch_ptr, size, start > begin, weights, products, shrink, means_ptr, keys_ptr, start, slots, end,
                    out, lanes, columns, inside, dim, KIND, HVP, PRECISION,
                )  # fmt: skip
                if start + COMPONENTS < end:
                    mixture_products.store_sums(
                        scratch_ptr, size, out, lanes, columns, inside, dim, A, R, B, S, KIND, HVP
                    )
                else:
                    a, u, v, w = mixture_products.sample_tile(
                        x_ptr, u_ptr, v_ptr, w_ptr, means_ptr, keys_ptr, row, lanes, columns, inside, dim, KIND, HVP
                    )
                    score, second = mixture_products.posterior_means(
                        a, u, v, w, A, R, B, S, total, rate, along, slope, KIND, HVP
                    )
                    if score_ptr is not None:
                        mixture_products.store_tile(score_ptr, out, lanes, columns, inside, dim, score)
                    if HVP:
                        if not PARTIAL:
                            second = tl.fma(-score, (along / total)[:, None], second)
                        mixture_products.store_tile(second_ptr, out, lanes, columns, inside, dim, second)
            tl.debug_barrier()  # another thread may load what this one stored
    if PARTIAL:
        tl.store(mass_ptr + out + lanes, maximum + tl.log2(total), mask=in_rows)
        if HVP:
            tl.store(along_ptr + out + lanes, along / total, mask=in_rows)
    elif ORDER == 0:
        tl.store(mass_ptr + out + lanes, log_of_sum(maximum, total), mask=in_rows)


# --- launches ----------------------------------------------------------------------------------------------------


class Operands(NamedTuple):
    """Arrays that the tiles read besides x: u = P x and w = P v if tied, keys = P m if tied, else the precisions."""

    u: Tensor
    v: Tensor
    w: Tensor
    means: Tensor
    keys: Tensor
    log_scale: Tensor


def mixture_log_prob(x: Tensor, mixture: Mixture) -> Tensor:
    """Return log pi(x) for x [B, d] -> [B]."""
    return posterior_means(x, x, mixture, 0)[0]


def mixture_score(x: Tensor, mixture: Mixture) -> Tensor:
    """Return grad log pi(x) for x [B, d] -> [B, d]."""
    return posterior_means(x, x, mixture, 1)[1]


def mixture_hvp(x: Tensor, v: Tensor, mixture: Mixture) -> Tensor:
    """Return (hessian of log pi)(x) v for x, v [B, d] -> [B, d]: the gradient of v . score, too."""
    return posterior_means(x, v, mixture, 2, keep_score=False)[2]


def score_and_hvp(x: Tensor, v: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Return grad log pi(x) and (hessian of log pi)(x) v, sharing the responsibilities."""
    return posterior_means(x, v, mixture, 2)[1:]


def posterior_means(
    x: Tensor, v: Tensor, mixture: Mixture, order: int, keep_score: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log pi(x) (order = 0) or the score and, for order = 2, H v; empty in place of what is not asked for.

    Raises:
        TypeError: if x, v or the mixture is not float32.
        ValueError: if x or v does not fit the mixture.
    """
    check(mixture, x=x, v=v)
    x, v = x.contiguous(), v.contiguous()
    rows, dim = x.shape
    n_components = mixture.means.shape[0]
    kind = mixture.covariance_type
    nothing = x.new_empty(0)
    if kind == "full" and dim > SMALL:
        given = mixture.means, mixture.precisions, mixture.log_scale
        found = mixture_full.posterior_means(x, v, *given, order)
        return tuple(nothing if part is None else part for part in found)  # type: ignore[return-value]
    architecture = architecture_of(x.device)
    op = "mixture_hvp" if order == 2 else "mixture_score"
    # diag covariances have twice as many sums, for which there is no room beside larger blocks
    if order < 2 and kind != "diag" and dim > WHOLE and n_components > MANY:
        op = "mixture_score_many"
    tile = configuration(op, dim, n_components, architecture)
    splits, share = shares(rows, n_components, tile)

    def outputs(*leading: int) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Allocate mass, score, second and along, as far as they are written."""

        def new(wanted: bool, *shape: int) -> Tensor | None:
            return torch.empty((*leading, rows, *shape), dtype=x.dtype, device=x.device) if wanted else None

        partial = bool(leading)
        score = order >= 1 and (keep_score or partial)
        return new(order == 0 or partial), new(score, dim), new(order == 2, dim), new(order == 2 and partial)

    whole = outputs()
    if rows > 0:
        parts = outputs(splits) if splits > 1 else whole
        constants = {"KIND": kind, "ORDER": order, "PARTIAL": splits > 1} | tile.launch
        grid = (triton.cdiv(rows, tile["ROWS"]), splits)
        sizes = rows, n_components, share
        with torch.cuda.device_of(x):
            if dim <= SMALL:
                parameters = mixture.means, mixture.precisions, mixture.log_scale
                given = x, v, *(t.contiguous() for t in parameters)
                mixture_score_small_kernel[grid](*parts, *given, *sizes, dim, **constants, enable_fp_fusion=False)
            else:
                operands = operands_of(x, v, mixture, order)
                constants["PRECISION"] = dot_precision(architecture)
                if "DIRECT" not in tile.constants:
                    mixture_score_whole_kernel[grid](
                        *parts, x, *operands, *sizes, dim, **constants, enable_fp_fusion=False
                    )
                else:
                    scratch, size = scratch_of(x, splits, share, order, tile)
                    mixture_score_tiled_kernel[grid](
                        *parts, scratch, x, *operands, *sizes, size, dim, **constants, enable_fp_fusion=False
                    )
            if splits > 1:
                merge(whole, parts, splits, dim, order, architecture)
    log_prob, score, hvp, _ = whole
    return tuple(nothing if part is None else part for part in (log_prob, score, hvp))  # type: ignore[return-value]


def check(mixture: Mixture, **samples: Tensor) -> None:
    """Refuse samples that are not of one shape [B, d] that fits the mixture, and of one dtype."""
    for name, value in (*samples.items(), ("means", mixture.means)):
        if value.dtype != torch.float32:
            raise TypeError(f"{name}: expected torch.float32, found {value.dtype}")
    dim = mixture.means.shape[1]
    (first, x), *others = samples.items()
    if x.ndim != 2 or x.shape[1] != dim:
        raise ValueError(f"{first}: expected shape [B, {dim}], found {tuple(x.shape)}")
    for name, value in others:
        if value.shape != x.shape:
            raise ValueError(f"{name}: expected the shape of {first}, {tuple(x.shape)}, found {tuple(value.shape)}")


def operands_of(x: Tensor, v: Tensor, mixture: Mixture, order: int) -> Operands:
    """Return operands for the kernels of d > SMALL; x in place of what is not read."""
    means, precisions, log_scale = (t.contiguous() for t in (mixture.means, mixture.precisions, mixture.log_scale))
    if mixture.covariance_type != "tied":
        return Operands(x, v, v, means, precisions, log_scale)
    w = precision_product(v, precisions) if order == 2 else v
    return Operands(precision_product(x, precisions), v, w, means, precision_product(means, precisions), log_scale)


def scratch_of(x: Tensor, splits: int, share: int, order: int, tile: Configuration) -> tuple[Tensor, int]:
    """Allocate the sums of `prepare_tiles` if components make several blocks; return them and the size per array."""
    size = splits * x.numel() if share > tile["COMPONENTS"] and order >= 1 else 0
    return torch.empty((4 if order == 2 else 2, size), dtype=x.dtype, device=x.device), size
