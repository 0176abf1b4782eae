"""Whole trajectories of the Langevin noising process in small dimensions: the state never leaves the registers.

A lane is a path, and every dimension a tensor of lanes of its own: no lane waits for another, and what a path gets
depends neither on its lane nor on its neighbours. The mixture is that of `simulate_small_sums`, the recursion of the
target that of `trajectory`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_small import store_vector
from .philox import normals, philox_words, seed_words
from .simulate_small_sums import (
    curvature,
    heaviest_component,
    load_axes,
    load_common,
    load_components,
    mixture_sums,
    rates,
    reciprocal,
    turned,
    turned_back,
)
from .trajectory import TWO_LN2, due_at, record_row, target_of, target_step


@triton.jit
def noise(key_low, key_high, path, step, D: tl.constexpr, STREAM: tl.constexpr = 0):
    """Draw the D normals of each path at this step, by default of the stream of the noising process."""
    z = ()
    for block in tl.static_range((D + 3) // 4):
        w0, w1, w2, w3 = philox_words(key_low, key_high, path, step, block, STREAM)
        n0, n1 = normals(w0, w1)
        n2, n3 = normals(w2, w3)
        z += (n0, n1, n2, n3)
    return z[:D]


@triton.jit
def kept(active, new, old, D: tl.constexpr):
    """Return the D new values where the path is still under way, else the old ones."""
    values = ()
    for j in tl.static_range(D):
        values += (tl.where(active, new[j], old[j]),)
    return values


@triton.jit
def step(
    x,
    second,
    third,
    p,
    rotation,
    z,
    active,
    a,
    s,
    resident,
    means_ptr,
    precisions_ptr,
    log_scale_ptr,
    n_components,
    KIND: tl.constexpr,
    OUTPUT: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Return x, second and third (see the kernel; h and v for the target) after the step with the noise z."""
    sums = mixture_sums(
        x,
        z,
        resident,
        means_ptr,
        precisions_ptr,
        log_scale_ptr,
        n_components,
        KIND,
        D,
        COMPONENTS,
        RESIDENT,
        OUTPUT == "target",
    )
    u = reciprocal(sums[0]) * TWO_LN2
    pull = a * u
    mean, after = (), ()
    for j in tl.static_range(D):
        mean += (tl.fma(-pull, sums[1 + j], x[j]),)
        after += (tl.fma(s, z[j], mean[j]),)
    if OUTPUT == "transition":
        second, third = kept(active, mean, second, D), kept(active, z, third, D)
    elif OUTPUT == "target":
        hessian_z = curvature(sums, u, z, resident, KIND, D, RESIDENT)
        hessian_z, along = turned(rotation, hessian_z, D), turned(rotation, z, D)
        h, v = target_step(second, third, p, hessian_z, u, along, a, s)
        second, third = kept(active, h, second, D), kept(active, v, third, len(v))
    return kept(active, after, x, D), second, third


@triton.jit
def lanes_of(steps_ptr, records_ptr, order_ptr, n_rows, n_records, n_steps, ROWS: tl.constexpr):
    """Return the rows of a program's paths, which of them there are, and how many steps each takes."""
    lanes = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = lanes < n_rows
    row = lanes
    if order_ptr is not None:
        row = tl.load(order_ptr + lanes, mask=inside, other=0)
    final = row
    if records_ptr is not None:
        final = (row + 1) * n_records - 1
    return row, inside, tl.minimum(tl.load(steps_ptr + final, mask=inside, other=0), n_steps).to(tl.int32)


@triton.jit
def opposite(z):
    """Return -z."""
    out = ()
    for j in tl.static_range(len(z)):
        out += (-z[j],)
    return out


@triton.jit
def store(ptr, row, inside, values, D: tl.constexpr):
    """Store values [D] to row `row` of an array of D columns."""
    if D > 4:
        store_vector(ptr, row, values, inside, D)
    else:
        for j in tl.static_range(D):
            tl.store(ptr + row * D + j, values[j], mask=inside)


@triton.jit
def write(outputs, row, inside, state, rotation, OUTPUT: tl.constexpr, D: tl.constexpr):
    """Store the outputs of one path each; state is x, second and third."""
    x_ptr, second_ptr, third_ptr = outputs
    x, second, third = state
    store(x_ptr, row, inside, x, D)
    if OUTPUT == "transition":
        store(second_ptr, row, inside, second, D)
        store(third_ptr, row, inside, third, D)
    elif OUTPUT == "target":
        target, variance = turned_back(rotation, target_of(second, third), third, D)
        store(second_ptr, row, inside, target, D)
        store(third_ptr, row, inside, variance, len(third))


@triton.jit
def write_pair(outputs, row, out_rows, inside, pair, rotation, OUTPUT: tl.constexpr, D: tl.constexpr):
    """Store the outputs of the paths and, out_rows further on, those of the antithetic ones, if there are any."""
    write(outputs, row, inside, pair[0], rotation, OUTPUT, D)
    if len(pair[1]) > 0:
        write(outputs, row + out_rows, inside, pair[1], rotation, OUTPUT, D)


@triton.jit
def write_due(
    n,
    outputs,
    steps_ptr,
    records_ptr,
    row,
    n_records,
    cursor,
    out_rows,
    inside,
    pair,
    rotation,
    OUTPUT: tl.constexpr,
    D: tl.constexpr,
):
    """Store the records that are taken after n steps; return the cursors behind them."""
    due = due_at(n, steps_ptr, row, n_records, cursor, n_records, inside)
    while tl.max(due.to(tl.int32), axis=0) > 0:
        to = record_row(records_ptr, row, n_records, cursor, due)
        write_pair(outputs, to, out_rows, due, pair, rotation, OUTPUT, D)
        cursor += due.to(tl.int32)
        due = due_at(n, steps_ptr, row, n_records, cursor, n_records, inside)
    return cursor


@triton.jit(do_not_specialize=["n_rows", "n_records", "n_steps", "n_components", "first_path"])
def simulate_small_kernel(
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
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Run x [n_rows, D] from x0: x <- x + a_n score(x) + s_n z_n, n < steps[row], z_n normals of path first_path + row.

    OUTPUT "transition" also writes mean and noise of the last step [n_rows, D] as second and third, "target"
    target [n_rows, D] and variance ([n_rows, 1] if spherical, else [n_rows, D]). ANTITHETIC: all outputs have n_rows
    more rows, for paths driven by -z_n; MIRRORED: these are such paths. With records, steps [n_rows, n_records] ascend
    in a row; the outputs have so many rows a path, and in that of records[row, i] what it was after steps[row, i]. With
    order a program takes rows order[i], order[i + 1], ..., not i, i + 1, ...
    RESIDENT: there are COMPONENTS components, whose parameters stay in registers; else their number is a multiple of
    that, and they are read in blocks of COMPONENTS under a running minimum of the energies (online softmax).
    rotations [D, D] or [COMPONENTS, D, D] and rates are the axes that the target of tied and full covariances takes.
    """
    row, inside, steps = lanes_of(steps_ptr, records_ptr, order_ptr, n_rows, n_records, n_steps, ROWS)
    path, last = first_path + row, tl.max(steps, axis=0)
    key_low, key_high = seed_words(seed_ptr)
    if RESIDENT:
        resident = load_components(means_ptr, precisions_ptr, log_scale_ptr, 0, KIND, D, COMPONENTS)
        if KIND == "tied":
            resident = (resident[0], resident[1], load_common(precisions_ptr, D))
    elif KIND == "tied":
        resident = load_common(precisions_ptr, D)
    else:
        resident = ()

    x = ()
    for j in tl.static_range(D):
        x += (tl.load(x0_ptr + row * D + j, mask=inside, other=0.0),)
    zeros = ()
    for j in tl.static_range(D):
        zeros += (tl.zeros_like(x[j]),)
    second, third, p, rotation = x, zeros, (), ()
    if OUTPUT == "target" and (KIND == "tied" or KIND == "full"):
        component = tl.zeros(x[0].shape, tl.int64)
        if KIND == "full":
            component = heaviest_component(
                x, resident, means_ptr, precisions_ptr, log_scale_ptr, n_components, D, COMPONENTS, RESIDENT
            )
        rotation, p = load_axes(rotations_ptr, rates_ptr, component, D)
        second, third = zeros, zeros
    elif OUTPUT == "target":
        # z plays no part in the rate
        sums = mixture_sums(
            x,
            zeros,
            resident,
            means_ptr,
            precisions_ptr,
            log_scale_ptr,
            n_components,
            KIND,
            D,
            COMPONENTS,
            RESIDENT,
            True,
        )
        p = rates(sums, reciprocal(sums[0]) * TWO_LN2, KIND, D)
        second, third = zeros, zeros[: len(p)]
    if ANTITHETIC:
        antithetic_x, antithetic_second, antithetic_third = x, second, third

    cursor, out_rows, outputs = tl.zeros((ROWS,), tl.int32), n_rows * n_records, (x_ptr, second_ptr, third_ptr)
    for n in range(0, last):
        if records_ptr is not None:
            pair = (x, second, third), ()
            if ANTITHETIC:
                pair = (x, second, third), (antithetic_x, antithetic_second, antithetic_third)
            cursor = write_due(
                n, outputs, steps_ptr, records_ptr, row, n_records, cursor, out_rows, inside, pair, rotation,
                OUTPUT, D,
            )  # fmt: skip
        active = n < steps
        a = tl.load(drift_scale_ptr + n)
        s = tl.load(noise_std_ptr + n)
        z = noise(key_low, key_high, path, n, D)
        if MIRRORED:
            z = opposite(z)
        x, second, third = step(
            x,
            second,
            third,
            p,
            rotation,
            z,
            active,
            a,
            s,
            resident,
            means_ptr,
            precisions_ptr,
            log_scale_ptr,
            n_components,
            KIND,
            OUTPUT,
            D,
            COMPONENTS,
            RESIDENT,
        )
        if ANTITHETIC:
            antithetic_x, antithetic_second, antithetic_third = step(
                antithetic_x,
                antithetic_second,
                antithetic_third,
                p,
                rotation,
                opposite(z),
                active,
                a,
                s,
                resident,
                means_ptr,
                precisions_ptr,
                log_scale_ptr,
                n_components,
                KIND,
                OUTPUT,
                D,
                COMPONENTS,
                RESIDENT,
            )

    pair = (x, second, third), ()
    if ANTITHETIC:
        pair = (x, second, third), (antithetic_x, antithetic_second, antithetic_third)
    if records_ptr is None:
        write_pair(outputs, row, out_rows, inside, pair, rotation, OUTPUT, D)
    else:
        write_due(
            last, outputs, steps_ptr, records_ptr, row, n_records, cursor, out_rows, inside, pair, rotation,
            OUTPUT, D,
        )  # fmt: skip
