"""One step of the reverse process, from t_{n+1} to t_n, with drift, score term and noise in one launch.

    sde   y <- y - a_n grad log pi(y) + s_n^2 s(y, t_{n+1}) + s_n xi_n        no noise on the last step, n = 0
    ode   y <- y - a_n grad log pi(y) + 1/2 s_n^2 s(y, t_{n+1})

n, a_n and s_n are read from device memory, the noise is drawn in place, and nothing on the host changes from step to
step: a CUDA graph of one launch replays for every step once the step tensor is counted down. The mixture is that of
`mixture_score`; for full covariances in more than a few dimensions, and where the components are shared out among
programs, grad log pi comes from its launches and the update is one more.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import mixture_products, mixture_small
from .configurations import SMALL, architecture_of, configuration
from .mixture_score import check, mixture_score, operands_of, scratch_of
from .mixture_split import shares
from .operands import Process
from .philox import normals, on_device, philox_words, seed_words
from .precision_product import dot_precision

REVERSE = tl.constexpr(2)  # the stream of this use of random numbers
METHODS = ("sde", "ode")


# --- device functions --------------------------------------------------------------------------------------------


@triton.jit
def coefficients(step_ptr, drift_scale_ptr, noise_std_ptr, METHOD: tl.constexpr):
    """Return n, a_n, the factor of the score term and that of the noise."""
    n = tl.load(step_ptr)
    a = tl.load(drift_scale_ptr + n)
    s = tl.load(noise_std_ptr + n)
    if METHOD == "ode":
        return n, a, 0.5 * s * s, s
    else:
        return n, a, s * s, tl.where(n == 0, 0.0, s)


@triton.jit
def noise_tile(key_low, key_high, paths, step, columns, METHOD: tl.constexpr):
    """Draw normals of the reverse stream [ROWS, DIMS] for paths [ROWS] and columns [DIMS] from a multiple of 4 on."""
    ROWS: tl.constexpr = paths.shape[0]
    DIMS: tl.constexpr = columns.shape[0]
    blocks = tl.min(columns, 0) // 4 + tl.arange(0, DIMS // 4)
    w0, w1, w2, w3 = philox_words(key_low, key_high, paths[:, None], step, blocks[None, :], REVERSE)
    n0, n1 = normals(w0, w1)
    n2, n3 = normals(w2, w3)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (ROWS, DIMS))


@triton.jit
def updated_tile(
    y,
    drift,
    score,
    a,
    weight,
    std,
    key_low,
    key_high,
    paths,
    step,
    columns,
    METHOD: tl.constexpr,
):
    """Return y - a drift + weight score + std xi, of tiles [ROWS, DIMS]."""
    out = tl.fma(score, weight, tl.fma(drift, -a, y))
    if METHOD == "sde":
        out = tl.fma(noise_tile(key_low, key_high, paths, step, columns, METHOD), std, out)
    return out


# --- kernels -----------------------------------------------------------------------------------------------------


@triton.jit(do_not_specialize=["n_rows", "n_components", "first_path"])
def reverse_step_small_kernel(
    out_ptr,
    y_ptr,
    score_ptr,
    seed_ptr,
    step_ptr,
    drift_scale_ptr,
    noise_std_ptr,
    means_ptr,
    precisions_ptr,
    log_scale_ptr,
    n_rows: tl.int64,
    n_components: tl.int64,
    first_path: tl.int64,
    DIM: tl.constexpr,
    KIND: tl.constexpr,
    METHOD: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Step rows whole in registers, DIM <= 4: one counter of Philox each."""
    n, a, weight, std = coefficients(step_ptr, drift_scale_ptr, noise_std_ptr, METHOD)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n_rows
    y = mixture_small.load_vector(y_ptr, rows, inside, DIM)
    score = mixture_small.load_vector(score_ptr, rows, inside, DIM)
    begin = tl.zeros_like(n_components)
    _, total, drift, _ = mixture_small.posterior_sums(
        y, y, means_ptr, precisions_ptr, log_scale_ptr, begin, n_components, KIND, 1
    )
    out = mixture_small.add_multiple(mixture_small.add_multiple(y, -a / total, drift), weight, score)
    if METHOD == "sde":
        key_low, key_high = seed_words(seed_ptr)
        w0, w1, w2, w3 = philox_words(key_low, key_high, first_path + rows, n, tl.zeros_like(rows), REVERSE)
        noise = normals(w0, w1)
        if DIM > 2:
            noise += normals(w2, w3)
        out = mixture_small.add_multiple(out, std, noise)
    mixture_small.store_vector(out_ptr, rows, out, inside, DIM)


@triton.jit(do_not_specialize=["n_rows", "n_components", "first_path"])
def reverse_step_whole_kernel(
    out_ptr,
    y_ptr,
    score_ptr,
    seed_ptr,
    step_ptr,
    drift_scale_ptr,
    noise_std_ptr,
    u_ptr,
    means_ptr,
    keys_ptr,
    log_scale_ptr,
    n_rows: tl.int64,
    n_components: tl.int64,
    first_path: tl.int64,
    dim: tl.int32,
    KIND: tl.constexpr,
    METHOD: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Step rows whole, dim <= DIMS; u and keys as in `mixture_score.Operands`."""
    n, a, weight, std = coefficients(step_ptr, drift_scale_ptr, noise_std_ptr, METHOD)
    key_low, key_high = seed_words(seed_ptr)
    row = tl.program_id(0).to(tl.int64) * ROWS
    lanes = tl.arange(0, ROWS)
    columns = tl.arange(0, DIMS)
    inside = (lanes < n_rows - row)[:, None] & (columns < dim)[None, :]
    centred, u, v, w = mixture_products.sample_tile(
        y_ptr, u_ptr, y_ptr, y_ptr, means_ptr, keys_ptr, row, lanes, columns, inside, dim, KIND, False
    )
    begin = tl.zeros_like(n_components)
    _, total, rate, along, slope, A, R, B, S = mixture_products.sums_of_whole_rows(
        centred, u, v, means_ptr, keys_ptr, log_scale_ptr, columns, begin, n_components, dim,
        KIND, 1, COMPONENTS, PRECISION,
    )  # fmt: skip
    drift, _ = mixture_products.posterior_means(centred, u, v, w, A, R, B, S, total, rate, along, slope, KIND, False)
    y = mixture_products.load_tile(y_ptr, row, lanes, columns, inside, dim)
    score = mixture_products.load_tile(score_ptr, row, lanes, columns, inside, dim)
    paths = first_path + row + lanes
    out = updated_tile(y, drift, score, a, weight, std, key_low, key_high, paths, n, columns, METHOD)
    mixture_products.store_tile(out_ptr, row, lanes, columns, inside, dim, out)


@triton.jit(do_not_specialize=["n_rows", "n_components", "first_path", "size"])
def reverse_step_tiled_kernel(
    out_ptr,
    scratch_ptr,
    y_ptr,
    score_ptr,
    seed_ptr,
    step_ptr,
    drift_scale_ptr,
    noise_std_ptr,
    u_ptr,
    means_ptr,
    keys_ptr,
    log_scale_ptr,
    n_rows: tl.int64,
    n_components: tl.int64,
    first_path: tl.int64,
    size: tl.int64,
    dim: tl.int32,
    KIND: tl.constexpr,
    METHOD: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    DIMS: tl.constexpr,
    DIRECT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Step rows of any dim, in tiles of DIMS, with a scratch as in `mixture_score_tiled_kernel`."""
    row = tl.program_id(0).to(tl.int64) * ROWS
    lanes = tl.arange(0, ROWS)
    in_rows = lanes < n_rows - row
    slots = tl.arange(0, COMPONENTS)
    maximum = tl.full((ROWS,), mixture_small.LOWEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    rate, along, slope = total, total, total
    for start in range(tl.zeros_like(n_components), n_components, COMPONENTS):
        weights, products, shrink, maximum, total, rate, along, slope = mixture_products.block_of_tiles(
            y_ptr, u_ptr, y_ptr, y_ptr, means_ptr, keys_ptr, log_scale_ptr, row, lanes, in_rows, start, n_components,
            dim, maximum, total, rate, along, slope, KIND, False, COMPONENTS, DIMS, DIRECT, PRECISION,
        )  # fmt: skip
        for j in range(0, dim, DIMS):
            columns = j + tl.arange(0, DIMS)
            inside = in_rows[:, None] & (columns < dim)[None, :]
            A, R, B, S = mixture_products.tile_of_sums(
                scratch_ptr, size, start > 0, weights, products, shrink, means_ptr, keys_ptr, start, slots,
                n_components, row, lanes, columns, inside, dim, KIND, False, PRECISION,
            )  # fmt: skip
            if start + COMPONENTS < n_components:
                mixture_products.store_sums(
                    scratch_ptr, size, row, lanes, columns, inside, dim, A, R, B, S, KIND, False
                )
            else:
                centred, u, v, w = mixture_products.sample_tile(
                    y_ptr, u_ptr, y_ptr, y_ptr, means_ptr, keys_ptr, row, lanes, columns, inside, dim, KIND, False
                )
                drift, _ = mixture_products.posterior_means(
                    centred, u, v, w, A, R, B, S, total, rate, along, slope, KIND, False
                )
                y = mixture_products.load_tile(y_ptr, row, lanes, columns, inside, dim)
                score = mixture_products.load_tile(score_ptr, row, lanes, columns, inside, dim)
                # read here and not above: in the loop over the components they would only take registers
                n, a, weight, std = coefficients(step_ptr, drift_scale_ptr, noise_std_ptr, METHOD)
                key_low, key_high = seed_words(seed_ptr)
                paths = first_path + row + lanes
                out = updated_tile(y, drift, score, a, weight, std, key_low, key_high, paths, n, columns, METHOD)
                mixture_products.store_tile(out_ptr, row, lanes, columns, inside, dim, out)
        tl.debug_barrier()  # another thread may load what this one stored


@triton.jit(do_not_specialize=["n_rows", "first_path"])
def reverse_step_update_kernel(
    out_ptr,
    y_ptr,
    drift_ptr,
    score_ptr,
    seed_ptr,
    step_ptr,
    drift_scale_ptr,
    noise_std_ptr,
    n_rows: tl.int64,
    first_path: tl.int64,
    dim: tl.int32,
    METHOD: tl.constexpr,
    ROWS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """Update y from grad log pi(y) in drift."""
    n, a, weight, std = coefficients(step_ptr, drift_scale_ptr, noise_std_ptr, METHOD)
    key_low, key_high = seed_words(seed_ptr)
    row = tl.program_id(0).to(tl.int64) * ROWS
    lanes = tl.arange(0, ROWS)
    columns = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    inside = (lanes < n_rows - row)[:, None] & (columns < dim)[None, :]
    y = mixture_products.load_tile(y_ptr, row, lanes, columns, inside, dim)
    drift = mixture_products.load_tile(drift_ptr, row, lanes, columns, inside, dim)
    score = mixture_products.load_tile(score_ptr, row, lanes, columns, inside, dim)
    paths = first_path + row + lanes
    out = updated_tile(y, drift, score, a, weight, std, key_low, key_high, paths, n, columns, METHOD)
    mixture_products.store_tile(out_ptr, row, lanes, columns, inside, dim, out)


# --- launches ----------------------------------------------------------------------------------------------------


def reverse_step(
    y: Tensor,
    score: Tensor,
    step: Tensor,
    process: Process,
    seed: Tensor,
    first_path: int,
    method: str,
) -> Tensor:
    """Take the reverse step of y, score [B, d], step and seed 0-d int64 -> [B, d].

    step and seed are read when the launch runs if they lie on y's device, and when it is made otherwise.

    Raises:
        TypeError: if a dtype is not float32, or int64 for step and seed.
        ValueError: if a shape does not fit, or method is unknown.
    """
    drift_scale, noise_std, mixture = process.drift_scale, process.noise_std, process.mixture
    check(mixture, y=y, score=score)
    _check(step, drift_scale, noise_std, seed, method)
    y, score = y.contiguous(), score.contiguous()
    out = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    if out.numel() == 0:
        return out
    rows, dim = y.shape
    n_components = mixture.means.shape[0]
    kind = mixture.covariance_type
    architecture = architecture_of(y.device)
    tile = configuration("reverse_step", dim, n_components, architecture)
    n, key = (on_device(value, y.device) for value in (step, seed))
    tables = score, key, n, drift_scale.to(y.device).contiguous(), noise_std.to(y.device).contiguous()
    options = {"METHOD": method, "enable_fp_fusion": False}
    grid = (triton.cdiv(rows, tile["ROWS"]),)
    with torch.cuda.device_of(y):
        if shares(rows, n_components, tile)[0] > 1 or (kind == "full" and dim > SMALL):
            tile = configuration("reverse_step_update", dim, architecture=architecture)
            drift = mixture_score(y, mixture)
            grid_2d = triton.cdiv(rows, tile["ROWS"]), triton.cdiv(dim, tile["DIMS"])
            reverse_step_update_kernel[grid_2d](out, y, drift, *tables, rows, first_path, dim, **tile.launch, **options)
        elif dim <= SMALL:
            parameters = (t.contiguous() for t in (mixture.means, mixture.precisions, mixture.log_scale))
            sizes = rows, n_components, first_path, dim, kind
            reverse_step_small_kernel[grid](out, y, *tables, *parameters, *sizes, **tile.launch, **options)
        else:
            operands = operands_of(y, y, mixture, 1)
            parameters = operands.u, operands.means, operands.keys, operands.log_scale
            options |= {"KIND": kind, "PRECISION": dot_precision(architecture)}
            sizes = rows, n_components, first_path
            if "DIRECT" not in tile.constants:
                reverse_step_whole_kernel[grid](out, y, *tables, *parameters, *sizes, dim, **tile.launch, **options)
            else:
                scratch, size = scratch_of(y, 1, n_components, 1, tile)
                reverse_step_tiled_kernel[grid](
                    out, scratch, y, *tables, *parameters, *sizes, size, dim, **tile.launch, **options
                )
    return out


def _check(step: Tensor, drift_scale: Tensor, noise_std: Tensor, seed: Tensor, method: str) -> None:
    for name, value in (("drift_scale", drift_scale), ("noise_std", noise_std)):
        if value.dtype != torch.float32:
            raise TypeError(f"{name}: expected torch.float32, found {value.dtype}")
    for name, value in (("step", step), ("seed", seed)):
        if value.dtype != torch.int64:
            raise TypeError(f"{name}: expected torch.int64, found {value.dtype}")
        if value.ndim != 0:
            raise ValueError(f"{name}: expected a 0-d tensor, found shape {tuple(value.shape)}")
    if drift_scale.ndim != 1 or noise_std.shape != drift_scale.shape:
        found = f"{tuple(drift_scale.shape)} and {tuple(noise_std.shape)}"
        raise ValueError(f"drift_scale, noise_std: expected one shape [N], found {found}")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, found {method!r}")
