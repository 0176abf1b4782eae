"""The passes of `simulate_tiled_kernel` over the tiles of d, one function each.

outputs are pointers to x, second and third, whose rows start at at_row [ROWS]; scratch_rows and sum_rows are pointers
[ROWS] to rows of the arrays that `simulate_tiled` names. A barrier ends every pass that writes what a later one reads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_lanes import (
    add_components,
    both,
    energies,
    in_row,
    load_columns,
    load_rows,
    minus,
    plus,
    scaled,
    store_rows,
    times,
    weigh,
)
from .philox import normals, philox_words
from .trajectory import HIGHEST, due_at, record_row, target_of, target_step


@triton.jit
def noise(key_low, key_high, path, step, first, LANES: tl.constexpr, STREAM: tl.constexpr = 0):
    """Draw the normals of dimensions first .. first + 4 LANES - 1; path [ROWS]; by default of the noising process."""
    block = first // 4 + tl.arange(0, LANES)
    w0, w1, w2, w3 = philox_words(key_low, key_high, path[:, None], step, block[None, :], STREAM)
    n0, n1 = normals(w0, w1)
    n2, n3 = normals(w2, w3)
    return n0, n1, n2, n3


@triton.jit
def noise_of_rows(key_low, key_high, path, step, first, DIM: tl.constexpr, LANES: tl.constexpr):
    """Draw the normals of the noising process in a tile, 0 from dimension DIM on."""
    z0, z1, z2, z3 = noise(key_low, key_high, path, step, first, LANES)
    if DIM % 4 == 0:
        return z0, z1, z2, z3
    else:
        left = DIM - (first + 4 * tl.arange(0, LANES))[None, :]
        z0, z1 = tl.where(left > 0, z0, 0.0), tl.where(left > 1, z1, 0.0)
        return z0, z1, tl.where(left > 2, z2, 0.0), tl.where(left > 3, z3, 0.0)


@triton.jit
def start_paths(
    x_ptr,
    second_ptr,
    third_ptr,
    x0_ptr,
    at_row,
    at_out,
    out_array,
    inside,
    KIND: tl.constexpr,
    OUTPUT: tl.constexpr,
    ANTITHETIC: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store the outputs before any step: x0, and no noise or h = v = 0."""
    LANES: tl.constexpr = COLUMNS // 4
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = in_row(column, D, COLUMNS)
        moving = both(inside, mask)
        x = load_rows(x0_ptr + at_row[:, None] + column[None, :], mask, ROWS, LANES)
        zero = minus(x, x)
        for member in range(1 + ANTITHETIC):
            at = (at_out + member * out_array)[:, None] + column[None, :]
            store_rows(x_ptr + at, x, moving, ROWS, LANES)
            if OUTPUT == "transition":
                store_rows(second_ptr + at, x, moving, ROWS, LANES)
                store_rows(third_ptr + at, zero, moving, ROWS, LANES)
            elif OUTPUT == "target":
                store_rows(second_ptr + at, zero, moving, ROWS, LANES)
                if KIND != "spherical":
                    store_rows(third_ptr + at, zero, moving, ROWS, LANES)
    tl.debug_barrier()


@triton.jit
def store_noise(
    z_row,
    key_low,
    key_high,
    path,
    n,
    active,
    DIM: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store the normals of the step in the scratch."""
    LANES: tl.constexpr = COLUMNS // 4
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        moving = both(active, in_row(column, D, COLUMNS))
        z = noise_of_rows(key_low, key_high, path, n, start, DIM, LANES)
        store_rows(z_row[:, None] + column[None, :], z, moving, ROWS, LANES)
    tl.debug_barrier()


@triton.jit
def add_block(
    x_row,
    sum_rows,
    mixture,
    first,
    shrink,
    weights,
    slopes,
    active,
    PRODUCT: tl.constexpr,
    KIND: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add the block of components from `first` on to the sums A, B and (diag) Q in the scratch."""
    LANES: tl.constexpr = COLUMNS // 4
    a_row, b_row, q_row = sum_rows
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = in_row(column, D, COLUMNS)
        moving = both(active, mask)
        known = both(active & (first > 0), mask)
        x = load_rows(x_row[:, None] + column[None, :], mask, ROWS, LANES)
        sum_a = load_rows(a_row[:, None] + column[None, :], known, ROWS, LANES)
        sum_a = scaled(sum_a, shrink[:, None])
        sum_b, sum_q = sum_a, sum_a
        if PRODUCT:
            sum_b = load_rows(b_row[:, None] + column[None, :], known, ROWS, LANES)
            sum_b = scaled(sum_b, shrink[:, None])
            if KIND == "diag":
                sum_q = load_rows(q_row[:, None] + column[None, :], known, ROWS, LANES)
                sum_q = scaled(sum_q, shrink[:, None])
        sum_a, sum_b, sum_q = add_components(
            sum_a, sum_b, sum_q, x, weights, slopes, mixture, first, column, PRODUCT, KIND, D, LANES
        )
        store_rows(a_row[:, None] + column[None, :], sum_a, moving, ROWS, LANES)
        if PRODUCT:
            store_rows(b_row[:, None] + column[None, :], sum_b, moving, ROWS, LANES)
            if KIND == "diag":
                store_rows(q_row[:, None] + column[None, :], sum_q, moving, ROWS, LANES)
    tl.debug_barrier()


@triton.jit
def weigh_components(
    x_row,
    px_row,
    z_row,
    sum_rows,
    mixture,
    n_components,
    sign,
    active,
    PRODUCT: tl.constexpr,
    KIND: tl.constexpr,
    RESIDENT: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return 1 / the sum of weights, C', Q and C (spherical) [ROWS, 1], and the weights of y_k in A and B.

    Unless RESIDENT the last are of no use: the sums A, B and Q are in the scratch.
    """
    LANES: tl.constexpr = COLUMNS // 4
    low = tl.full((ROWS,), HIGHEST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    along, q, c = total, total, total
    if RESIDENT:
        values, products = energies(x_row, px_row, z_row, mixture, 0, sign, PRODUCT, KIND, D, COMPONENTS, ROWS, LANES)
        low, total, along, q, c, shrink, weights, slopes = weigh(
            low, total, along, q, c, values, products, mixture[1], 0, KIND, PRODUCT, True
        )
    else:
        weights, slopes = (), ()
        for first in range(0, n_components, COMPONENTS):
            values, products = energies(
                x_row, px_row, z_row, mixture, first, sign, PRODUCT, KIND, D, COMPONENTS, ROWS, LANES
            )
            low, total, along, q, c, shrink, block_weights, block_slopes = weigh(
                low, total, along, q, c, values, products, mixture[1], first, KIND, PRODUCT, False
            )
            add_block(
                x_row, sum_rows, mixture, first, shrink, block_weights, block_slopes, active,
                PRODUCT, KIND, D, ROWS, COLUMNS,
            )  # fmt: skip
    inverse = (1.0 / total)[:, None]
    return inverse, along[:, None] * inverse, q[:, None] * inverse, c[:, None] * inverse, weights, slopes


@triton.jit
def hessian_product(
    score,
    x,
    px,
    z,
    sums,
    means,
    pz_row,
    rate_row,
    column,
    mask,
    moving,
    n,
    sign,
    KIND: tl.constexpr,
    RESIDENT: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Return Hess z of a tile, and p(x_0) if diag, which keeps it in the scratch from the first step on."""
    LANES: tl.constexpr = COLUMNS // 4
    sum_b, sum_q, q_row = sums
    inverse, along, q, c = means
    value = plus(scaled(sum_b, inverse), score, -along)
    if KIND == "spherical":
        value = plus(plus(value, x, -c), z, -q)
        p = ()
    elif KIND == "diag":
        if not RESIDENT:
            sum_q = load_rows(q_row[:, None] + column[None, :], mask, ROWS, LANES)
        precision = scaled(sum_q, inverse)
        value = minus(value, times(precision, z))
        p = precision
        if n == 0:
            store_rows(rate_row[:, None] + column[None, :], p, moving, ROWS, LANES)
        else:
            p = load_rows(rate_row[:, None] + column[None, :], mask, ROWS, LANES)
    else:
        pz = load_rows(pz_row[:, None] + column[None, :], mask, ROWS, LANES)
        value = minus(plus(value, px, -along), scaled(pz, sign))
        p = ()
    return value, p


@triton.jit
def move(
    outputs,
    at_row,
    scratch_rows,
    sum_rows,
    mixture,
    found,
    rate,
    variance,
    key_low,
    key_high,
    path,
    n,
    a,
    s,
    sign,
    active,
    final,
    KIND: tl.constexpr,
    OUTPUT: tl.constexpr,
    RESIDENT: tl.constexpr,
    DIM: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Take the second pass: x and the other outputs after step n, from what `weigh_components` found."""
    LANES: tl.constexpr = COLUMNS // 4
    PRODUCT: tl.constexpr = OUTPUT == "target"
    x_ptr, second_ptr, third_ptr = outputs
    z_row, rate_row, px_row, pz_row, hz_row = scratch_rows
    a_row, b_row, q_row = sum_rows
    inverse, along, q, c, weights, slopes = found
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = in_row(column, D, COLUMNS)
        moving = both(active, mask)
        at = at_row[:, None] + column[None, :]
        x = load_rows(x_ptr + at, mask, ROWS, LANES)
        if RESIDENT:
            sum_a = minus(x, x)
            sum_a, sum_b, sum_q = add_components(
                sum_a, sum_a, sum_a, x, weights, slopes, mixture, 0, column, PRODUCT, KIND, D, LANES
            )
        else:
            sum_a = load_rows(a_row[:, None] + column[None, :], mask, ROWS, LANES)
            sum_b, sum_q = sum_a, sum_a  # read later, or they would only take registers
        score = scaled(sum_a, inverse)
        px = x
        if KIND == "spherical":
            score = plus(score, x, -q)
        elif KIND == "tied":
            px = load_rows(px_row[:, None] + column[None, :], mask, ROWS, LANES)
            score = minus(score, px)
        if PRODUCT:
            z = scaled(load_rows(z_row[:, None] + column[None, :], mask, ROWS, LANES), sign)
        else:
            z = scaled(noise_of_rows(key_low, key_high, path, n, start, DIM, LANES), sign)
        mean = plus(x, score, a)
        store_rows(x_ptr + at, plus(mean, z, s), moving, ROWS, LANES)
        if OUTPUT == "transition":
            store_rows(second_ptr + at, mean, both(final, mask), ROWS, LANES)
            store_rows(third_ptr + at, z, both(final, mask), ROWS, LANES)
        elif OUTPUT == "target":
            if not RESIDENT:
                sum_b = load_rows(b_row[:, None] + column[None, :], mask, ROWS, LANES)
            hessian_z, p = hessian_product(
                score, x, px, z, (sum_b, sum_q, q_row), (inverse, along, q, c), pz_row, rate_row, column,
                mask, moving, n, sign, KIND, RESIDENT, D, ROWS, COLUMNS,
            )  # fmt: skip
            if KIND == "tied":
                store_rows(hz_row[:, None] + column[None, :], hessian_z, moving, ROWS, LANES)
            else:
                if KIND == "spherical":
                    p, v = (rate,), (variance,)
                else:
                    v = load_rows(third_ptr + at, mask, ROWS, LANES)
                h = load_rows(second_ptr + at, mask, ROWS, LANES)
                h, v = target_step(h, v, p, hessian_z, 1.0, z, a, s)
                store_rows(second_ptr + at, h, moving, ROWS, LANES)
                if KIND != "spherical":
                    store_rows(third_ptr + at, v, moving, ROWS, LANES)
    tl.debug_barrier()


@triton.jit
def step_turned(
    second_ptr,
    third_ptr,
    at_row,
    turned_hz_row,
    turned_z_row,
    rates_ptr,
    a,
    s,
    sign,
    active,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Take the third pass, if tied: h and v along the axes after the step, from Hess z and z along them."""
    LANES: tl.constexpr = COLUMNS // 4
    for start in range(0, D, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        mask = in_row(column, D, COLUMNS)
        moving = both(active, mask)
        at = at_row[:, None] + column[None, :]
        hessian_z = load_rows(turned_hz_row[:, None] + column[None, :], mask, ROWS, LANES)
        z = scaled(load_rows(turned_z_row[:, None] + column[None, :], mask, ROWS, LANES), sign)
        h = load_rows(second_ptr + at, mask, ROWS, LANES)
        v = load_rows(third_ptr + at, mask, ROWS, LANES)
        h, v = target_step(h, v, load_columns(rates_ptr + column, LANES), hessian_z, 1.0, z, a, s)
        store_rows(second_ptr + at, h, moving, ROWS, LANES)
        store_rows(third_ptr + at, v, moving, ROWS, LANES)
    tl.debug_barrier()


@triton.jit
def store_targets(
    outputs,
    at_row,
    to,
    out_rows,
    due,
    variance,
    COPIES: tl.constexpr,
    KIND: tl.constexpr,
    ANTITHETIC: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store the target, from h and v at at_row, in the rows `to`; x and the variance too where no pass has done so.

    COPIES: `to` is another row than that of the state.
    """
    x_ptr, second_ptr, third_ptr = outputs
    LANES: tl.constexpr = COLUMNS // 4
    for member in range(1 + ANTITHETIC):
        row = to + member * out_rows
        if COPIES and COLUMNS >= 128:  # by itself, for want of registers
            for start in range(0, D, COLUMNS):
                column = start + tl.arange(0, COLUMNS)
                mask = in_row(column, D, COLUMNS)
                x = load_rows(x_ptr + (at_row + member * out_rows * D)[:, None] + column[None, :], mask, ROWS, LANES)
                store_rows(x_ptr + (row * D)[:, None] + column[None, :], x, both(due, mask), ROWS, LANES)
        for start in range(0, D, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            mask = in_row(column, D, COLUMNS)
            moving = both(due, mask)
            at = (at_row + member * out_rows * D)[:, None] + column[None, :]
            at_record = (row * D)[:, None] + column[None, :]
            h = load_rows(second_ptr + at, mask, ROWS, LANES)
            v = (variance,)
            if KIND != "spherical":
                v = load_rows(third_ptr + at, mask, ROWS, LANES)
                if COPIES:
                    store_rows(third_ptr + at_record, v, moving, ROWS, LANES)
            if COPIES and COLUMNS < 128:
                store_rows(x_ptr + at_record, load_rows(x_ptr + at, mask, ROWS, LANES), moving, ROWS, LANES)
            store_rows(second_ptr + at_record, target_of(h, v), moving, ROWS, LANES)
        if KIND == "spherical":
            tl.store(third_ptr + row[:, None], variance, mask=due[:, None])
    if COPIES:
        tl.debug_barrier()


@triton.jit
def store_due(
    n,
    outputs,
    steps_ptr,
    records_ptr,
    row,
    n_records,
    cursor,
    at_row,
    out_rows,
    inside,
    variance,
    KIND: tl.constexpr,
    ANTITHETIC: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Store the records, all but the final ones, that are taken after n steps; return the cursors behind them."""
    due = due_at(n, steps_ptr, row, n_records, cursor, n_records - 1, inside)
    while tl.max(due.to(tl.int32), axis=0) > 0:
        to = record_row(records_ptr, row, n_records, cursor, due)
        store_targets(outputs, at_row, to, out_rows, due, variance, True, KIND, ANTITHETIC, D, ROWS, COLUMNS)
        cursor += due.to(tl.int32)
        due = due_at(n, steps_ptr, row, n_records, cursor, n_records - 1, inside)
    return cursor
