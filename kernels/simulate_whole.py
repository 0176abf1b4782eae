"""Whole trajectories under full covariances in 9 to 32 dimensions: blocks of paths in registers, one launch.

A program owns its rows, each whole and padded with zeros to a power of two W. Of each component, under a running
minimum of the energies (online softmax),

    G_k = P_k (x - m_k),    E_k = log2(e) [1/2 (x - m_k) . G_k - log_scale_k],    e_k = 2^(E_min - E_k)
    score = -A / sum e_k,   A = sum e_k G_k
    Hess z = [sum e_k ((G_k . z) G_k - P_k z) - A (A . z) / sum e_k] / sum e_k

with the products on tensor cores. The target's recursion (`trajectory`) runs along the axes of the component that x_0
is in, every row along its own: z and Hess z are turned into them row by row, by way of a scratch array.

By count (`python -m benchmarks.gpu.predict full`) that is 1.9 and 1.6 times the multiply-adds of d = 16 and 32 with 10
components, where launches in each step took over 25; between powers of two the zeros are paid for too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_small import LOG2_E
from .philox import seed_words
from .simulate_tiled_passes import noise
from .trajectory import HIGHEST, due_at, record_row, target_of, target_step


@triton.jit
def whole_noise(key_low, key_high, path, n, in_columns, ROWS: tl.constexpr, W: tl.constexpr):
    """Draw the normals of each path at step n [ROWS, W], 0 beyond the last dimension."""
    n0, n1, n2, n3 = noise(key_low, key_high, path, n, 0, W // 4)
    z = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (ROWS, W))
    return tl.where(in_columns, z, 0.0)


@triton.jit
def load_matrix(ptr, k, W: tl.constexpr):
    """Load the k-th matrix of an array [., W, W]."""
    rows = tl.arange(0, W)
    return tl.load(ptr + k * (W * W) + rows[:, None] * W + rows[None, :])


@triton.jit
def weigh(x, means_ptr, precisions_ptr, log_scale_ptr, k, W: tl.constexpr, PRECISION: tl.constexpr):
    """Return E_k [ROWS], G_k [ROWS, W] and P_k."""
    matrix = load_matrix(precisions_ptr, k, W)
    apart = x - tl.load(means_ptr + k * W + tl.arange(0, W))[None, :]
    pull = tl.dot(apart, matrix, input_precision=PRECISION)
    energy = tl.sum(apart * pull, 1) * (0.5 * LOG2_E) - tl.load(log_scale_ptr + k) * LOG2_E
    return energy, pull, matrix


@triton.jit
def heaviest_component(
    x, means_ptr, precisions_ptr, log_scale_ptr, n_components, ROWS: tl.constexpr, W: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the component of the lowest energy at x, the first of them; 0 where all overflow."""
    low = tl.full((ROWS,), HIGHEST, tl.float32)
    heaviest = tl.zeros((ROWS,), tl.int64)
    for k in range(0, n_components):
        energy, _, _ = weigh(x, means_ptr, precisions_ptr, log_scale_ptr, k, W, PRECISION)
        heaviest = tl.where(energy < low, k, heaviest)
        low = tl.minimum(energy, low)
    return heaviest


@triton.jit
def score_and_product(
    x, z, means_ptr, precisions_ptr, log_scale_ptr, n_components, PRODUCT: tl.constexpr, ROWS: tl.constexpr,
    W: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return the score and, with PRODUCT, Hess z, [ROWS, W]; else z in its place."""
    low = tl.full((ROWS,), HIGHEST, tl.float32)
    total, along = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS,), tl.float32)
    a, b = tl.zeros((ROWS, W), tl.float32), tl.zeros((ROWS, W), tl.float32)
    for k in range(0, n_components):
        energy, pull, matrix = weigh(x, means_ptr, precisions_ptr, log_scale_ptr, k, W, PRECISION)
        lowest = tl.minimum(low, energy)
        shrink, weight = tl.exp2(lowest - low), tl.exp2(lowest - energy)
        low = lowest
        total = tl.fma(total, shrink, weight)
        a = tl.fma(a, shrink[:, None], pull * weight[:, None])
        if PRODUCT:
            slope = tl.sum(pull * z, 1)
            along = tl.fma(along, shrink, weight * slope)
            moved = tl.dot(z, matrix, input_precision=PRECISION)
            b = tl.fma(b, shrink[:, None], (pull * slope[:, None] - moved) * weight[:, None])
    inverse = 1.0 / total
    score, product = a * -inverse[:, None], z
    if PRODUCT:
        product = tl.fma(score, (along * inverse)[:, None], b * inverse[:, None])
    return score, product


@triton.jit
def turned(first, second, rows_ptr, array, rotation_ptr, dim, W: tl.constexpr):
    """Return U^T v of both [ROWS, W], with each row's own U at rotation_ptr [ROWS]; rows_ptr is scratch of the rows.

    dim is no constant: the compiler would load all of U ahead of its use, for which there are no registers.
    """
    column = tl.arange(0, W)[None, :]
    tl.store(rows_ptr[:, None] + column, first)
    tl.store(rows_ptr[:, None] + array + column, second)
    tl.debug_barrier()
    first_out, second_out = tl.zeros_like(first), tl.zeros_like(second)
    for j in range(0, dim):
        u = tl.load(rotation_ptr[:, None] + j * W + column)
        first_out = tl.fma(u, tl.load(rows_ptr + j)[:, None], first_out)
        second_out = tl.fma(u, tl.load(rows_ptr + array + j)[:, None], second_out)
    tl.debug_barrier()
    return first_out, second_out


@triton.jit
def write(outputs, row, mask, state, OUTPUT: tl.constexpr, D: tl.constexpr, W: tl.constexpr):
    """Store x, and second and third if asked for, of one path each."""
    at = (row * D)[:, None] + tl.arange(0, W)[None, :]
    tl.store(outputs[0] + at, state[0], mask=mask)
    if OUTPUT == "transition":
        tl.store(outputs[1] + at, state[1], mask=mask)
        tl.store(outputs[2] + at, state[2], mask=mask)
    elif OUTPUT == "target":
        (target,) = target_of((state[1],), (state[2],))
        tl.store(outputs[1] + at, target, mask=mask)
        tl.store(outputs[2] + at, state[2], mask=mask)


@triton.jit
def write_due(
    n, outputs, steps_ptr, records_ptr, row, shift, n_records, cursor, inside, state, OUTPUT: tl.constexpr,
    D: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Store the records that are taken after n steps, `shift` rows further on; return the cursors behind them."""
    due = due_at(n, steps_ptr, row, n_records, cursor, n_records, inside)
    while tl.max(due.to(tl.int32), axis=0) > 0:
        to = record_row(records_ptr, row, n_records, cursor, due) + shift
        write(outputs, to, due[:, None] & (tl.arange(0, W) < D)[None, :], state, OUTPUT, D, W)
        cursor += due.to(tl.int32)
        due = due_at(n, steps_ptr, row, n_records, cursor, n_records, inside)
    return cursor


@triton.jit(do_not_specialize=["n_rows", "n_records", "n_steps", "n_components", "first_path", "dim"])
def simulate_whole_kernel(
    x_ptr,
    second_ptr,
    third_ptr,
    x0_ptr,
    steps_ptr,
    records_ptr,
    order_ptr,
    drift_scale_ptr,
    noise_std_ptr,
    means_ptr,
    precisions_ptr,
    log_scale_ptr,
    rotations_ptr,
    rates_ptr,
    component_ptr,
    scratch_ptr,
    seed_ptr,
    n_rows: tl.int64,
    n_records: tl.int64,
    n_steps: tl.int64,
    n_components: tl.int64,
    first_path: tl.int64,
    dim: tl.int64,
    OUTPUT: tl.constexpr,
    ANTITHETIC: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Run x [n_rows, D] from x0: x <- x + a_n score(x) + s_n z_n, n < steps[row], z_n normals of path first_path + row.

    Outputs, ANTITHETIC, records and order are those of `simulate_small_kernel`, but mirrored paths are rows of programs
    of their own: for both of a pair there are no registers. Target and variance are along the axes (rotations
    [K, W, W], rates [K, W]) of the row's component, which is stored as component [n_rows]. means [K, W] and precisions
    [K, W, W] have zeros beyond D. scratch is [2, rows of all programs, W]; dim is D.
    """
    lanes = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = lanes < n_rows * (1 + ANTITHETIC)
    mirrored = lanes >= n_rows if ANTITHETIC else lanes < 0
    row = tl.where(mirrored, lanes - n_rows, lanes)
    if order_ptr is not None:
        row = tl.load(order_ptr + row, mask=inside, other=0)
    final = row if records_ptr is None else (row + 1) * n_records - 1
    steps = tl.minimum(tl.load(steps_ptr + final, mask=inside, other=0), n_steps).to(tl.int32)
    path, last = first_path + row, tl.max(steps, axis=0)
    shift = tl.where(mirrored, n_rows * n_records, 0)
    sign = tl.where(mirrored, -1.0, 1.0)[:, None]
    key_low, key_high = seed_words(seed_ptr)
    column = tl.arange(0, W)[None, :]
    in_columns = column < D
    moving = inside[:, None] & in_columns
    x = tl.load(x0_ptr + (row * D)[:, None] + column, mask=moving, other=0.0)
    zero = tl.zeros((ROWS, W), tl.float32)
    second, third, p = x, zero, zero
    rows_ptr, array, rotation_ptr = scratch_ptr + lanes * W, tl.num_programs(0).to(tl.int64) * (ROWS * W), lanes
    if OUTPUT == "target":
        component = heaviest_component(
            x, means_ptr, precisions_ptr, log_scale_ptr, n_components, ROWS, W, PRECISION
        )  # fmt: skip
        tl.store(component_ptr + row, component, mask=inside & (lanes < n_rows))
        rotation_ptr = rotations_ptr + component * (W * W)
        p = tl.load(rates_ptr + (component * W)[:, None] + column)
        second = zero

    cursor, outputs = tl.zeros((ROWS,), tl.int32), (x_ptr, second_ptr, third_ptr)
    for n in range(0, last):
        if records_ptr is not None:
            cursor = write_due(
                n, outputs, steps_ptr, records_ptr, row, shift, n_records, cursor, inside, (x, second, third),
                OUTPUT, D, W,
            )  # fmt: skip
        active = (n < steps)[:, None]
        a, s = tl.load(drift_scale_ptr + n), tl.load(noise_std_ptr + n)
        z = whole_noise(key_low, key_high, path, n, in_columns, ROWS, W) * sign
        score, product = score_and_product(
            x, z, means_ptr, precisions_ptr, log_scale_ptr, n_components, OUTPUT == "target", ROWS, W, PRECISION
        )  # fmt: skip
        mean = tl.fma(a, score, x)
        x = tl.where(active, tl.fma(s, z, mean), x)
        if OUTPUT == "transition":
            second, third = tl.where(active, mean, second), tl.where(active, z, third)
        elif OUTPUT == "target":
            along, product = turned(z, product, rows_ptr, array, rotation_ptr, dim, W)
            h, v = target_step((second,), (third,), (p,), (product,), 1.0, (along,), a, s)
            second, third = tl.where(active, h[0], second), tl.where(active, v[0], third)

    if records_ptr is None:
        write(outputs, row + shift, moving, (x, second, third), OUTPUT, D, W)
    else:
        write_due(
            last, outputs, steps_ptr, records_ptr, row, shift, n_records, cursor, inside, (x, second, third),
            OUTPUT, D, W,
        )  # fmt: skip
