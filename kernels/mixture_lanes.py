"""The mixture in large dimensions, a component at a time in the lanes of a warp: for the kernels of trajectories.

Its parts of the two passes over the tiles of d; a mixture is its pointers (means, precisions, log_scale, pulls).

A quad is a tuple of four arrays [ROWS, LANES], four consecutive dimensions a lane. With w_k = 2^(E_min - E_k) and
E_k = -log2 of the component's weight times its density,

    score = A - Q x (tied: A - P x),                        A = mean of y_k,             Q = mean of P_k
    Hess z = B - C x (tied: B - C P x) - P z - score C',    B = mean of (g_k . z) y_k,   C = mean of (g_k . z) P_k

where means are over components with weights w_k, g_k = P_k (m_k - x), y_k = P_k m_k, C' the mean of g_k . z, and
Q, P, C are numbers of the row if spherical; if tied P is the same for all, y_k come from a matrix product beforehand,
P x and P z from one in each step, and C = C'. If diag or full, y_k stands for g_k, and no term in x is left; full
covariances take a product P_k (x - m_k) for each component, and the score alone. Where all are weighed at once,
g_k . z counts from its mean C', which is then 0: nothing cancels where one outweighs the others.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_small import LOG2_E

# --- quads -------------------------------------------------------------------------------------------------------


@triton.constexpr_function
def pitch(D, COLUMNS):
    """Return the columns of the parameters: D and zeros up to whole tiles, so that no load of them needs a mask."""
    return (D + COLUMNS - 1) // COLUMNS * COLUMNS


@triton.jit
def in_row(column, D: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the columns' mask [1, COLUMNS]; a constant where every tile is a whole one, so that no load is masked."""
    if D % COLUMNS == 0:
        return tl.full((1, COLUMNS), 1, tl.int1)
    else:
        return (column < D)[None, :]


@triton.jit
def both(row_mask, column_mask):
    """Return the mask of both [ROWS, COLUMNS]."""
    return row_mask[:, None] & column_mask


@triton.jit
def load_rows(ptr, mask, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Load the quad at [ROWS, 4 LANES] addresses."""
    values = tl.load(ptr, mask=mask, other=0.0)
    even, odd = tl.split(tl.reshape(values, (ROWS, LANES, 2, 2)))
    v0, v2 = tl.split(even)
    v1, v3 = tl.split(odd)
    return v0, v1, v2, v3


@triton.jit
def load_columns(ptr, LANES: tl.constexpr):
    """Load the quad at [4 LANES] addresses, the same for all rows: four arrays [1, LANES]."""
    even, odd = tl.split(tl.reshape(tl.load(ptr), (LANES, 2, 2)))
    v0, v2 = tl.split(even)
    v1, v3 = tl.split(odd)
    return v0[None, :], v1[None, :], v2[None, :], v3[None, :]


@triton.jit
def store_rows(ptr, quad, mask, ROWS: tl.constexpr, LANES: tl.constexpr):
    """Store the quad to [ROWS, 4 LANES] addresses."""
    values = tl.join(tl.join(quad[0], quad[2]), tl.join(quad[1], quad[3]))
    tl.store(ptr, tl.reshape(values, (ROWS, 4 * LANES)), mask=mask)


@triton.jit
def scaled(quad, weight):
    return quad[0] * weight, quad[1] * weight, quad[2] * weight, quad[3] * weight


@triton.jit
def minus(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3]


@triton.jit
def times(a, b):
    return a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3]


@triton.jit
def plus(a, b, weight):
    """Return a + weight b."""
    return (
        tl.fma(b[0], weight, a[0]),
        tl.fma(b[1], weight, a[1]),
        tl.fma(b[2], weight, a[2]),
        tl.fma(b[3], weight, a[3]),
    )


@triton.jit
def add_dot(total, a, b):
    """Return total + the sum of a b over the quad."""
    for e in tl.static_range(4):
        total = tl.fma(a[e], b[e], total)
    return total


# --- first pass: energies ----------------------------------------------------------------------------------------


@triton.jit
def energies(
    x_ptr,
    px_ptr,
    z_ptr,
    mixture,
    first,
    sign,
    PRODUCT: tl.constexpr,
    KIND: tl.constexpr,
    D: tl.constexpr,
    COMPONENTS: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Return energies E_k [ROWS] of COMPONENTS components from `first` on, and with PRODUCT g_k . z.

    x_ptr, px_ptr and z_ptr are [ROWS]; of z the sign is that of this path's member of an antithetic pair. If full,
    COMPONENTS is 1, and at px_ptr is P_k (x - m_k).
    """
    PITCH: tl.constexpr = pitch(D, 4 * LANES)
    means_ptr, precisions_ptr, log_scale_ptr, pulls_ptr = mixture
    columns = tl.arange(0, 4 * LANES)
    squares, slopes = (), ()
    for _ in tl.static_range(COMPONENTS):
        squares += (tl.zeros((ROWS, LANES), tl.float32),)
        if PRODUCT:
            slopes += (tl.zeros((ROWS, LANES), tl.float32),)
    for start in range(0, D, 4 * LANES):
        column = start + columns
        mask = in_row(column, D, 4 * LANES)
        x = load_rows(x_ptr[:, None] + column[None, :], mask, ROWS, LANES)
        if KIND == "tied" or KIND == "full":
            px = load_rows(px_ptr[:, None] + column[None, :], mask, ROWS, LANES)
        if PRODUCT:
            z = scaled(load_rows(z_ptr[:, None] + column[None, :], mask, ROWS, LANES), sign)
        new_squares, new_slopes = (), ()
        for i in tl.static_range(COMPONENTS):
            at = (first + i) * PITCH + column
            apart = minus(load_columns(means_ptr + at, LANES), x)
            if KIND == "spherical":
                pull = apart
            elif KIND == "diag":
                pull = times(load_columns(precisions_ptr + at, LANES), apart)
            elif KIND == "full":
                pull = scaled(px, -1.0)
            else:
                pull = minus(load_columns(pulls_ptr + at, LANES), px)
            new_squares += (add_dot(squares[i], apart, pull),)
            if PRODUCT:
                new_slopes += (add_dot(slopes[i], pull, z),)
        squares, slopes = new_squares, new_slopes

    values, products = (), ()
    for i in tl.static_range(COMPONENTS):
        factor = 0.5 * LOG2_E
        if KIND == "spherical":
            precision = tl.load(precisions_ptr + first + i)
            factor = factor * precision
        energy = tl.fma(tl.sum(squares[i], axis=1), factor, tl.load(log_scale_ptr + first + i) * -LOG2_E)
        values += (energy,)
        if PRODUCT:
            product = tl.sum(slopes[i], axis=1)
            if KIND == "spherical":
                product = product * precision
            products += (product,)
    return values, products


# --- second pass: weighted sums, and the step --------------------------------------------------------------------


@triton.jit
def weigh(
    low,
    total,
    along,
    q,
    c,
    values,
    products,
    precisions_ptr,
    first,
    KIND: tl.constexpr,
    PRODUCT: tl.constexpr,
    ALL: tl.constexpr,
):
    """Take these components up: E_min, the sums of weights, g_k . z and (spherical) P_k and (g_k . z) P_k, by what
    all sums so far shrink, and the weights of y_k in A and B. ALL: no others; g_k . z counts from its mean."""
    lowest = low
    for i in tl.static_range(len(values)):
        lowest = tl.minimum(lowest, values[i])
    shrink = tl.exp2(lowest - low)
    total, along, q, c = total * shrink, along * shrink, q * shrink, c * shrink
    weights, slopes = (), ()
    for i in tl.static_range(len(values)):
        weight = tl.exp2(lowest - values[i])
        total += weight
        if PRODUCT:
            along = tl.fma(weight, products[i], along)
        if KIND == "spherical":
            weight *= tl.load(precisions_ptr + first + i)
            q += weight
        weights += (weight,)
    if PRODUCT:
        middle = tl.zeros_like(along)
        if ALL:
            middle = along / total
            along = tl.zeros_like(middle)
        for i in tl.static_range(len(values)):
            slope = weights[i] * (products[i] - middle)
            slopes += (slope,)
            if KIND == "spherical":
                c += slope
    return lowest, total, along, q, c, shrink, weights, slopes


@triton.jit
def add_components(
    sum_a,
    sum_b,
    sum_q,
    x,
    weights,
    slopes,
    mixture,
    first,
    column,
    PRODUCT: tl.constexpr,
    KIND: tl.constexpr,
    D: tl.constexpr,
    LANES: tl.constexpr,
):
    """Return A, B and (diag) Q, up to the sum of weights, with these components added; quads of columns `column`.

    If full, x stands for P_k (x - m_k) of the one component.
    """
    means_ptr, precisions_ptr, _, pulls_ptr = mixture
    for i in tl.static_range(len(weights)):
        at = (first + i) * pitch(D, 4 * LANES) + column
        if KIND == "diag":
            precision = load_columns(precisions_ptr + at, LANES)
            y = times(precision, minus(load_columns(means_ptr + at, LANES), x))
            if PRODUCT:
                sum_q = plus(sum_q, precision, weights[i][:, None])
        elif KIND == "tied":
            y = load_columns(pulls_ptr + at, LANES)
        elif KIND == "full":
            y = scaled(x, -1.0)
        else:
            y = load_columns(means_ptr + at, LANES)
        sum_a = plus(sum_a, y, weights[i][:, None])
        if PRODUCT:
            sum_b = plus(sum_b, y, slopes[i][:, None])
    return sum_a, sum_b, sum_q


@triton.jit
def matrix_product(
    out_ptr,
    ptr,
    origin_ptr,
    matrix_ptr,
    inside,
    RELATIVE: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Multiply the rows at ptr [ROWS], RELATIVE to the origin, by a symmetric matrix [D, D], to out_ptr [ROWS].

    Threads read here what others have written before a barrier, and the other way round after it.
    """
    PITCH: tl.constexpr = pitch(D, COLUMNS)
    lanes = tl.arange(0, COLUMNS)
    for start in range(0, D, COLUMNS):
        column = start + lanes
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for first in range(0, D, COLUMNS):
            depth = first + lanes
            values = tl.load(ptr[:, None] + depth[None, :], mask=(depth < D)[None, :], other=0.0)
            if RELATIVE:
                values -= tl.load(origin_ptr + depth)[None, :]
            matrix = tl.load(matrix_ptr + depth[:, None] * PITCH + column[None, :])
            total = tl.dot(values, matrix, total, input_precision=PRECISION)
        tl.store(out_ptr[:, None] + column[None, :], total, mask=both(inside, (column < D)[None, :]))
    tl.debug_barrier()
