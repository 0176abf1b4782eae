"""Whole trajectories of the Langevin noising process in large dimensions, tile by tile of the dimension.

A program owns its rows for all steps. The state lives in the output arrays, in practice in the caches: nothing but a
barrier of its own few warps stands between a program's passes. A lane holds four consecutive dimensions of a row, one
Philox counter. Each step takes two passes over the tiles of d: the energies of the components, then their weighted sums
(see `simulate_tiled_mixture`), the noise, the new state and the recursion of the target (`trajectory`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import normals, philox_words, seed_words
from .simulate_tiled_mixture import (
    add_components,
    both,
    energies,
    in_row,
    load_columns,
    load_rows,
    matrix_product,
    minus,
    pitch,
    plus,
    scaled,
    store_rows,
    times,
    weigh,
)
from .trajectory import DIAG, HIGHEST, SPHERICAL, TARGET, TIED, TRANSITION, target_of, target_step

# Scratch arrays [rows of x, d]: the noise; p(x_0); P x and P z; sums over the blocks of components so far.
Z, RATE, PX, PZ, SUM_A, SUM_B, SUM_Q = (tl.constexpr(i) for i in range(7))


@triton.constexpr_function
def scratch_arrays(kind: int, output: int, resident: bool) -> list[bool]:
    """Which of the scratch arrays there are."""
    target, diag, tied = output == 2, kind == 1, kind == 2
    own = [target, target and diag, tied, target and tied]
    sums = [True, target, target and diag]
    return own + [not resident and needed for needed in sums]


@triton.constexpr_function
def place(array, KIND, OUTPUT, RESIDENT):
    """How many scratch arrays stand before this one."""
    return sum(scratch_arrays(KIND, OUTPUT, RESIDENT)[:array])


@triton.jit
def noise(key_low, key_high, path, step, first, LANES: tl.constexpr):
    """The normals of dimensions first .. first + 4 LANES - 1; path [ROWS]."""
    block = first // 4 + tl.arange(0, LANES)
    w0, w1, w2, w3 = philox_words(key_low, key_high, path[:, None], step, block[None, :], 0)
    n0, n1 = normals(w0, w1)
    n2, n3 = normals(w2, w3)
    return n0, n1, n2, n3


@triton.jit(do_not_specialize=["n_rows", "n_steps", "n_components", "first_path"])
def simulate_tiled_kernel(
    x_ptr,
    second_ptr,
    third_ptr,
    x0_ptr,
    steps_ptr,
    order_ptr,
    drift_scale_ptr,
    noise_std_ptr,
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
    OUTPUT: tl.constexpr,
    MIRRORED: tl.constexpr,
    ORDERED: tl.constexpr,
    RESIDENT: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x [n_rows, D] from x0: x <- x + a_n score(x) + s_n z_n for n < steps[row], z_n the normals of path
    first_path + row.

    Outputs, MIRRORED, ORDERED and RESIDENT are those of `simulate_small_kernel`; KIND is not full. pulls are P m_k
    [K, D], both relative to the first mean, if tied. means, pulls and (unless spherical) precisions have zeros beyond
    column D, up to a multiple of COLUMNS. n_components is a multiple of COMPONENTS. PRECISION is that of tl.dot.
    """
    LANES: tl.constexpr = COLUMNS // 4
    PRODUCT: tl.constexpr = OUTPUT == TARGET
    lanes = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = lanes < n_rows
    row = tl.minimum(lanes, n_rows - 1)  # the last row again, which is not written
    if ORDERED:
        row = tl.load(order_ptr + row)
    path = first_path + row
    steps = tl.minimum(tl.load(steps_ptr + row), n_steps).to(tl.int32)
    last = tl.max(steps, axis=0)
    key_low, key_high = seed_words(seed_ptr)
    columns = tl.arange(0, COLUMNS)
    at_row = row * D
    array = n_rows * D
    z_row = scratch_ptr + (array * place(Z, KIND, OUTPUT, RESIDENT) + at_row)
    rate_row = scratch_ptr + (array * place(RATE, KIND, OUTPUT, RESIDENT) + at_row)
    px_row = scratch_ptr + (array * place(PX, KIND, OUTPUT, RESIDENT) + at_row)
    pz_row = scratch_ptr + (array * place(PZ, KIND, OUTPUT, RESIDENT) + at_row)
    a_row = scratch_ptr + (array * place(SUM_A, KIND, OUTPUT, RESIDENT) + at_row)
    b_row = scratch_ptr + (array * place(SUM_B, KIND, OUTPUT, RESIDENT) + at_row)
    q_row = scratch_ptr + (array * place(SUM_Q, KIND, OUTPUT, RESIDENT) + at_row)

    for start in range(0, D, COLUMNS):
        column = start + columns
        mask = in_row(column, D, COLUMNS)
        moving = both(inside, mask)
        x = load_rows(x0_ptr + at_row[:, None] + column[None, :], mask, ROWS, LANES)
        zero = minus(x, x)
        for member in range(1 + MIRRORED):
            at = (at_row + member * array)[:, None] + column[None, :]
            store_rows(x_ptr + at, x, moving, ROWS, LANES)
            if OUTPUT == TRANSITION:
                store_rows(second_ptr + at, x, moving, ROWS, LANES)
                store_rows(third_ptr + at, zero, moving, ROWS, LANES)
            elif OUTPUT == TARGET:
                store_rows(second_ptr + at, zero, moving, ROWS, LANES)
                if KIND != SPHERICAL:
                    store_rows(third_ptr + at, zero, moving, ROWS, LANES)
    tl.debug_barrier()
    rate = tl.zeros((ROWS, 1), tl.float32)
    variance = rate

    for n in range(0, last):
        a = tl.load(drift_scale_ptr + n)
        s = tl.load(noise_std_ptr + n)
        active = inside & (n < steps)
        final = inside & (n + 1 == steps)
        if PRODUCT:
            for start in range(0, D, COLUMNS):
                column = start + columns
                mask = in_row(column, D, COLUMNS)
                moving = both(active, mask)
                z = noise(key_low, key_high, path, n, start, LANES)
                store_rows(z_row[:, None] + column[None, :], z, moving, ROWS, LANES)
            tl.debug_barrier()
            if KIND == TIED:
                matrix_product(pz_row, z_row, means_ptr, precisions_ptr, active, False, D, ROWS, COLUMNS, PRECISION)
        for member in range(1 + MIRRORED):
            sign = 1.0 - 2.0 * member
            at_member = at_row + member * array
            x_row = x_ptr + at_member
            if KIND == TIED:
                matrix_product(px_row, x_row, means_ptr, precisions_ptr, active, True, D, ROWS, COLUMNS, PRECISION)

            low = tl.full((ROWS,), HIGHEST, tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            along, q, c = total, total, total
            if RESIDENT:
                values, products = energies(
                    x_row,
                    px_row,
                    z_row,
                    means_ptr,
                    precisions_ptr,
                    log_scale_ptr,
                    pulls_ptr,
                    0,
                    sign,
                    PRODUCT,
                    KIND,
                    D,
                    COMPONENTS,
                    ROWS,
                    LANES,
                )
                low, total, along, q, c, shrink, weights, slopes = weigh(
                    low, total, along, q, c, values, products, precisions_ptr, 0, KIND, PRODUCT, True
                )
            else:
                for first in range(0, n_components, COMPONENTS):
                    values, products = energies(
                        x_row,
                        px_row,
                        z_row,
                        means_ptr,
                        precisions_ptr,
                        log_scale_ptr,
                        pulls_ptr,
                        first,
                        sign,
                        PRODUCT,
                        KIND,
                        D,
                        COMPONENTS,
                        ROWS,
                        LANES,
                    )
                    low, total, along, q, c, shrink, weights, slopes = weigh(
                        low,
                        total,
                        along,
                        q,
                        c,
                        values,
                        products,
                        precisions_ptr,
                        first,
                        KIND,
                        PRODUCT,
                        False,
                    )
                    for start in range(0, D, COLUMNS):
                        column = start + columns
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
                            if KIND == DIAG:
                                sum_q = load_rows(q_row[:, None] + column[None, :], known, ROWS, LANES)
                                sum_q = scaled(sum_q, shrink[:, None])
                        sum_a, sum_b, sum_q = add_components(
                            sum_a, sum_b, sum_q, x, weights, slopes, means_ptr, precisions_ptr, pulls_ptr,
                            first, column, PRODUCT, KIND, D, LANES,
                        )  # fmt: skip
                        store_rows(a_row[:, None] + column[None, :], sum_a, moving, ROWS, LANES)
                        if PRODUCT:
                            store_rows(b_row[:, None] + column[None, :], sum_b, moving, ROWS, LANES)
                            if KIND == DIAG:
                                store_rows(q_row[:, None] + column[None, :], sum_q, moving, ROWS, LANES)
                    tl.debug_barrier()

            inverse = (1.0 / total)[:, None]
            along, q, c = along[:, None] * inverse, q[:, None] * inverse, c[:, None] * inverse
            if n == 0:
                rate = q  # if spherical
            for start in range(0, D, COLUMNS):
                column = start + columns
                mask = in_row(column, D, COLUMNS)
                moving = both(active, mask)
                at = at_member[:, None] + column[None, :]
                at_scratch = column[None, :]
                x = load_rows(x_ptr + at, mask, ROWS, LANES)
                if RESIDENT:
                    sum_a = minus(x, x)
                    sum_a, sum_b, sum_q = add_components(
                        sum_a, sum_a, sum_a, x, weights, slopes, means_ptr, precisions_ptr, pulls_ptr,
                        0, column, PRODUCT, KIND, D, LANES,
                    )  # fmt: skip
                else:
                    sum_a = load_rows(a_row[:, None] + at_scratch, mask, ROWS, LANES)
                score = scaled(sum_a, inverse)
                if KIND == SPHERICAL:
                    score = plus(score, x, -q)
                elif KIND == TIED:
                    px = load_rows(px_row[:, None] + at_scratch, mask, ROWS, LANES)
                    score = minus(score, px)
                if PRODUCT:
                    z = scaled(load_rows(z_row[:, None] + at_scratch, mask, ROWS, LANES), sign)
                else:
                    z = scaled(noise(key_low, key_high, path, n, start, LANES), sign)
                mean = plus(x, score, a)
                store_rows(x_ptr + at, plus(mean, z, s), moving, ROWS, LANES)
                if OUTPUT == TRANSITION:
                    store_rows(second_ptr + at, mean, both(final, mask), ROWS, LANES)
                    store_rows(third_ptr + at, z, both(final, mask), ROWS, LANES)
                elif OUTPUT == TARGET:
                    if not RESIDENT:
                        sum_b = load_rows(b_row[:, None] + at_scratch, mask, ROWS, LANES)
                    hessian_z = plus(scaled(sum_b, inverse), score, -along)
                    if KIND == SPHERICAL:
                        hessian_z = plus(plus(hessian_z, x, -c), z, -q)
                        p, v = (rate,), (variance,)
                    else:
                        v = load_rows(third_ptr + at, mask, ROWS, LANES)
                    if KIND == DIAG:
                        if not RESIDENT:
                            sum_q = load_rows(q_row[:, None] + at_scratch, mask, ROWS, LANES)
                        precision = scaled(sum_q, inverse)
                        hessian_z = minus(hessian_z, times(precision, z))
                        if n == 0:
                            p = precision
                            store_rows(rate_row[:, None] + at_scratch, p, moving, ROWS, LANES)
                        else:
                            p = load_rows(rate_row[:, None] + at_scratch, mask, ROWS, LANES)
                    elif KIND == TIED:
                        pz = load_rows(pz_row[:, None] + at_scratch, mask, ROWS, LANES)
                        hessian_z = minus(plus(hessian_z, px, -along), scaled(pz, sign))
                        p = load_columns(precisions_ptr + column * (pitch(D, COLUMNS) + 1), LANES)
                    h = load_rows(second_ptr + at, mask, ROWS, LANES)
                    h, v = target_step(h, v, p, hessian_z, 1.0, z, a, s)
                    store_rows(second_ptr + at, h, moving, ROWS, LANES)
                    if KIND != SPHERICAL:
                        store_rows(third_ptr + at, v, moving, ROWS, LANES)
            tl.debug_barrier()
        if KIND == SPHERICAL:
            c = 1.0 - a * rate
            variance = tl.where(active[:, None], tl.fma(c, c * variance, s * s), variance)

    if OUTPUT == TARGET:
        for member in range(1 + MIRRORED):
            for start in range(0, D, COLUMNS):
                column = start + columns
                mask = in_row(column, D, COLUMNS)
                moving = both(inside, mask)
                at = (at_row + member * array)[:, None] + column[None, :]
                h = load_rows(second_ptr + at, mask, ROWS, LANES)
                v = (variance,)
                if KIND != SPHERICAL:
                    v = load_rows(third_ptr + at, mask, ROWS, LANES)
                store_rows(second_ptr + at, target_of(h, v), moving, ROWS, LANES)
            if KIND == SPHERICAL:
                tl.store(third_ptr + (row + member * n_rows)[:, None], variance, mask=inside[:, None])
