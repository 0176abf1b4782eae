"""Steps of the reverse process in large dimensions, tile by tile of the dimension.

As in `simulate_tiled`, a program owns its rows for all steps, the state lives in the output, in practice in the caches,
and each step takes two passes over the tiles of d: the components' energies (`mixture_lanes`), then the new state. Full
covariances take a matrix product for each component, which is then weighed as a block of one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_lanes import (
    add_components,
    both,
    energies,
    in_row,
    load_rows,
    matrix_product,
    minus,
    pitch,
    plus,
    scaled,
    store_rows,
    weigh,
)
from .philox import seed_words
from .reverse_steps_small import REVERSE, bounds_of, coefficients_of, under_rate
from .simulate_tiled_passes import add_block, noise, start_paths, weigh_components
from .trajectory import HIGHEST


@triton.constexpr_function
def scratch_arrays(kind: str, resident: bool) -> tuple[bool, bool]:
    """Tell whether there are the scratch arrays [rows of y, d] of P y, and of sums over the blocks so far."""
    return kind in ("tied", "full"), not resident


@triton.jit
def weigh_full(
    y_row,
    py_row,
    sum_row,
    mixture,
    n_components,
    inside,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return what `weigh_components` does of full covariances; the sums A are in the scratch."""
    PITCH: tl.constexpr = pitch(D, COLUMNS)
    means_ptr, precisions_ptr = mixture[0], mixture[1]
    low = tl.full((ROWS,), HIGHEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    for k in range(0, n_components):
        origin_ptr, matrix_ptr = means_ptr + k * PITCH, precisions_ptr + k * (PITCH * PITCH)
        matrix_product(py_row, y_row, origin_ptr, matrix_ptr, inside, True, D, ROWS, COLUMNS, PRECISION)
        values, products = energies(y_row, py_row, y_row, mixture, k, 1.0, False, "full", D, 1, ROWS, COLUMNS // 4)
        low, total, _, _, _, shrink, weights, slopes = weigh(
            low, total, total, total, total, values, products, precisions_ptr, k, "full", False, False
        )
        add_block(
            py_row, (sum_row, sum_row, sum_row), mixture, k, shrink, weights, slopes, inside,
            False, "full", D, ROWS, COLUMNS,
        )  # fmt: skip
    inverse = (1.0 / total)[:, None]
    return inverse, inverse, inverse, inverse, (), ()


@triton.jit
def move_back(
    rows,
    slope_ptr,
    rate,
    at_row,
    mixture,
    found,
    coefficients,
    key_low,
    key_high,
    path,
    n,
    inside,
    KIND: tl.constexpr,
    RESIDENT: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Take the last pass: y after the step to t_n, from what `weigh_components` or `weigh_full` found."""
    LANES: tl.constexpr = COLUMNS // 4
    y_row, held_row, py_row, sum_row = rows
    decay, drift, weight, position, std, rate_scale = coefficients
    drifts, noisy = drift != 0.0, std != 0.0
    if rate is not None:
        decay, drift, weight, std = under_rate(decay, drift, weight, std, rate[:, None] * rate_scale)
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = in_row(column, D, COLUMNS)
        y = load_rows(y_row[:, None] + column[None, :], mask, ROWS, LANES)
        zero = tl.zeros((ROWS, LANES), tl.float32)
        score = (zero, zero, zero, zero)
        if drifts:
            inverse, _, q, _, weights, slopes = found
            if RESIDENT:
                total = minus(y, y)
                total, _, _ = add_components(
                    total, total, total, y, weights, slopes, mixture, 0, column, False, KIND, D, LANES
                )
            else:
                total = load_rows(sum_row[:, None] + column[None, :], mask, ROWS, LANES)
            score = scaled(total, inverse)
            if KIND == "spherical":
                score = plus(score, y, -q)
            elif KIND == "tied":
                score = minus(score, load_rows(py_row[:, None] + column[None, :], mask, ROWS, LANES))
        network = load_rows(held_row[:, None] + column[None, :], mask, ROWS, LANES)
        if slope_ptr is not None:
            slope = load_rows(slope_ptr + (at_row[:, None] + column[None, :]), mask, ROWS, LANES)
            network = plus(network, slope, position)
        after = plus(plus(scaled(y, decay), network, weight), score, drift)
        if noisy:
            after = plus(after, noise(key_low, key_high, path, n, start, LANES, REVERSE), std)
        store_rows(y_row[:, None] + column[None, :], after, both(inside, mask), ROWS, LANES)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["n_rows", "n_steps", "n_components", "first_path"])
def reverse_steps_tiled_kernel(
    out_ptr,
    y_ptr,
    held_ptr,
    slope_ptr,
    rate_ptr,
    bounds_ptr,
    coefficients_ptr,
    means_ptr,
    precisions_ptr,
    log_scale_ptr,
    pulls_ptr,
    scratch_ptr,
    seed_ptr,
    n_rows: tl.int64,
    n_steps: tl.int64,
    n_components: tl.int64,
    first_path: tl.int64,
    KIND: tl.constexpr,
    RESIDENT: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Take y [n_rows, D] down from bounds[0] to bounds[1], as `reverse_steps_small_kernel` has it.

    The mixture's operands, RESIDENT and PRECISION are those of `simulate_tiled_kernel`. If full, precisions have zeros
    beyond row and column D, up to a multiple of COLUMNS, COMPONENTS is 1, and they are not RESIDENT.
    """
    lanes = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = lanes < n_rows
    row = tl.minimum(lanes, n_rows - 1)  # the last row again, which is not written
    path = first_path + row
    first, last = bounds_of(bounds_ptr, n_steps)
    key_low, key_high = seed_words(seed_ptr)
    mixture = (means_ptr, precisions_ptr, log_scale_ptr, pulls_ptr)
    at_row = row * D
    array = n_rows * D
    y_row = out_ptr + at_row
    py_row = scratch_ptr + at_row
    sum_row = py_row + array * scratch_arrays(KIND, RESIDENT)[0]
    rows = (y_row, held_ptr + at_row, py_row, sum_row)

    start_paths(out_ptr, out_ptr, out_ptr, y_ptr, at_row, at_row, array, inside, KIND, "state", False, D, ROWS, COLUMNS)
    nothing = tl.zeros((ROWS, 1), tl.float32)
    rate = None
    if rate_ptr is not None:
        rate = tl.load(rate_ptr + row)
    for taken in range(0, first - last):
        n = first - 1 - taken
        coefficients = coefficients_of(coefficients_ptr, n, n_steps)
        weights = ()
        for _ in tl.static_range(COMPONENTS if RESIDENT else 0):
            weights += (tl.zeros((ROWS,), tl.float32),)
        found = (nothing, nothing, nothing, nothing, weights, ())
        if coefficients[1] != 0.0:
            if KIND == "full":
                found = weigh_full(y_row, py_row, sum_row, mixture, n_components, inside, D, ROWS, COLUMNS, PRECISION)
            else:
                if KIND == "tied":
                    matrix_product(py_row, y_row, means_ptr, precisions_ptr, inside, True, D, ROWS, COLUMNS, PRECISION)
                found = weigh_components(
                    y_row, py_row, y_row, (sum_row, sum_row, sum_row), mixture, n_components, 1.0, inside,
                    False, KIND, RESIDENT, D, COMPONENTS, ROWS, COLUMNS,
                )  # fmt: skip
        move_back(
            rows, slope_ptr, rate, at_row, mixture, found, coefficients, key_low, key_high, path, n, inside,
            KIND, RESIDENT, D, ROWS, COLUMNS,
        )  # fmt: skip
