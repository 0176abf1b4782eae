"""Whole trajectories of the Langevin noising process in large dimensions, tile by tile of the dimension.

A program owns its rows for all steps. The state lives in the output arrays, in practice in the caches: nothing but a
barrier of its own few warps stands between a program's passes. A lane holds four consecutive dimensions of a row, one
Philox counter. Each step takes two passes over the tiles of d: the energies of the components, then their weighted sums
(see `mixture_lanes`), the noise, the new state and the recursion of the target (`trajectory`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_lanes import matrix_product
from .philox import seed_words
from .simulate_tiled_passes import (
    move,
    start_paths,
    step_turned,
    store_due,
    store_noise,
    store_targets,
    weigh_components,
)
from .trajectory import record_row

LANE = 4  # dimensions of a row that a lane holds

# Scratch arrays [rows of x, d]: the noise; p(x_0); P x and P z; Hess z, and it and the noise along the principal axes;
# sums over the blocks of components so far.
Z, RATE, PX, PZ, HZ, TURNED_HZ, TURNED_Z, SUM_A, SUM_B, SUM_Q = (tl.constexpr(i) for i in range(10))


@triton.constexpr_function
def scratch_arrays(kind: str, output: str, resident: bool) -> list[bool]:
    """Tell for each of the scratch arrays whether there is one."""
    target, diag, tied = output == "target", kind == "diag", kind == "tied"
    own = [target, target and diag, tied, *[target and tied] * 4]
    sums = [True, target, target and diag]
    return own + [not resident and needed for needed in sums]


@triton.constexpr_function
def place(array, KIND, OUTPUT, RESIDENT):
    """Return how many scratch arrays stand before this one."""
    return sum(scratch_arrays(KIND, OUTPUT, RESIDENT)[:array])


@triton.jit(do_not_specialize=["n_rows", "n_records", "n_steps", "n_components", "first_path"])
def simulate_tiled_kernel(
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
    pulls_ptr,
    rotations_ptr,
    rates_ptr,
    scratch_ptr,
    seed_ptr,
    n_rows: tl.int64,
    n_records: tl.int64,
    n_steps: tl.int64,
    n_components: tl.int64,
    first_path: tl.int64,
    KIND: tl.constexpr,
    OUTPUT: tl.constexpr,
    ANTITHETIC: tl.constexpr,
    MIRRORED: tl.constexpr,
    RESIDENT: tl.constexpr,
    DIM: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Simulate x [n_rows, D] from x0: x <- x + a_n score(x) + s_n z_n for n < steps[row], z_n the normals of path
    first_path + row. From dimension DIM on x0 and the noise are 0, and stay so: rows are whole lanes.

    Outputs, ANTITHETIC, records, order and RESIDENT are those of `simulate_small_kernel`; KIND is not full.
    MIRRORED: these are the paths driven by -z_n. On the way a state is where its last record will be. pulls are P m_k
    [K, D], both relative to the first mean, if tied, whose target is that along the axes (rotations, rates): to be
    turned back, as the variance. means, pulls, (unless spherical) precisions and the axes have zeros beyond
    column D, up to a multiple of COLUMNS. n_components is a multiple of COMPONENTS. PRECISION is that of tl.dot.
    """
    PRODUCT: tl.constexpr = OUTPUT == "target"
    lanes = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = lanes < n_rows
    row = tl.minimum(lanes, n_rows - 1)  # the last row again, which is not written
    if order_ptr is not None:
        row = tl.load(order_ptr + row)
    path = first_path + row
    out, out_rows = row, n_rows * n_records
    if records_ptr is not None:
        out = record_row(records_ptr, row, n_records, n_records - 1, inside)
    cursor = tl.zeros((ROWS,), tl.int32)
    steps = tl.minimum(tl.load(steps_ptr + (row + 1) * n_records - 1), n_steps).to(tl.int32)
    last = tl.max(steps, axis=0)
    key_low, key_high = seed_words(seed_ptr)
    outputs = (x_ptr, second_ptr, third_ptr)
    mixture = (means_ptr, precisions_ptr, log_scale_ptr, pulls_ptr)
    at_row = row * D
    array = n_rows * D
    at_out = out * D
    out_array = out_rows * D
    z_row = scratch_ptr + (array * place(Z, KIND, OUTPUT, RESIDENT) + at_row)
    rate_row = scratch_ptr + (array * place(RATE, KIND, OUTPUT, RESIDENT) + at_row)
    px_row = scratch_ptr + (array * place(PX, KIND, OUTPUT, RESIDENT) + at_row)
    pz_row = scratch_ptr + (array * place(PZ, KIND, OUTPUT, RESIDENT) + at_row)
    a_row = scratch_ptr + (array * place(SUM_A, KIND, OUTPUT, RESIDENT) + at_row)
    b_row = scratch_ptr + (array * place(SUM_B, KIND, OUTPUT, RESIDENT) + at_row)
    q_row = scratch_ptr + (array * place(SUM_Q, KIND, OUTPUT, RESIDENT) + at_row)
    hz_row = scratch_ptr + (array * place(HZ, KIND, OUTPUT, RESIDENT) + at_row)
    turned_hz_row = scratch_ptr + (array * place(TURNED_HZ, KIND, OUTPUT, RESIDENT) + at_row)
    turned_z_row = scratch_ptr + (array * place(TURNED_Z, KIND, OUTPUT, RESIDENT) + at_row)
    scratch_rows, sum_rows = (z_row, rate_row, px_row, pz_row, hz_row), (a_row, b_row, q_row)

    start_paths(
        x_ptr, second_ptr, third_ptr, x0_ptr, at_row, at_out, out_array, inside, KIND, OUTPUT, ANTITHETIC,
        D, ROWS, COLUMNS,
    )  # fmt: skip
    rate = tl.zeros((ROWS, 1), tl.float32)  # if spherical, as is the variance
    variance = rate
    for n in range(0, last):
        if records_ptr is not None:
            cursor = store_due(
                n, outputs, steps_ptr, records_ptr, row, n_records, cursor, at_out, out_rows, inside,
                variance, KIND, ANTITHETIC, D, ROWS, COLUMNS,
            )  # fmt: skip
        a = tl.load(drift_scale_ptr + n)
        s = tl.load(noise_std_ptr + n)
        active = inside & (n < steps)
        final = inside & (n + 1 == steps)
        if PRODUCT:
            store_noise(z_row, key_low, key_high, path, n, active, DIM, D, ROWS, COLUMNS)
            if KIND == "tied":
                matrix_product(pz_row, z_row, means_ptr, precisions_ptr, active, False, D, ROWS, COLUMNS, PRECISION)
                matrix_product(
                    turned_z_row, z_row, means_ptr, rotations_ptr, active, False, D, ROWS, COLUMNS, PRECISION
                )
        for member in range(1 + ANTITHETIC):
            sign = 1.0 - 2.0 * (member + MIRRORED)
            at_member = at_out + member * out_array
            x_row = x_ptr + at_member
            if KIND == "tied":
                matrix_product(px_row, x_row, means_ptr, precisions_ptr, active, True, D, ROWS, COLUMNS, PRECISION)
            found = weigh_components(
                x_row, px_row, z_row, sum_rows, mixture, n_components, sign, active,
                PRODUCT, KIND, RESIDENT, D, COMPONENTS, ROWS, COLUMNS,
            )  # fmt: skip
            if n == 0:
                rate = found[2]
            move(
                outputs, at_member, scratch_rows, sum_rows, mixture, found, rate, variance, key_low, key_high, path,
                n, a, s, sign, active, final, KIND, OUTPUT, RESIDENT, DIM, D, ROWS, COLUMNS,
            )  # fmt: skip
            if PRODUCT and KIND == "tied":
                matrix_product(
                    turned_hz_row, hz_row, means_ptr, rotations_ptr, active, False, D, ROWS, COLUMNS, PRECISION
                )
                step_turned(
                    second_ptr, third_ptr, at_member, turned_hz_row, turned_z_row, rates_ptr, a, s, sign, active,
                    D, ROWS, COLUMNS,
                )  # fmt: skip
        if KIND == "spherical":
            c = 1.0 - a * rate
            variance = tl.where(active[:, None], tl.fma(c, c * variance, s * s), variance)
    if records_ptr is not None:
        store_due(
            last, outputs, steps_ptr, records_ptr, row, n_records, cursor, at_out, out_rows, inside, variance,
            KIND, ANTITHETIC, D, ROWS, COLUMNS,
        )  # fmt: skip
    if PRODUCT:
        store_targets(outputs, at_out, out, out_rows, inside, variance, False, KIND, ANTITHETIC, D, ROWS, COLUMNS)
