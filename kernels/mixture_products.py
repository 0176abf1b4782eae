"""Device functions of a Gaussian mixture in any dimension, on tiles of samples, components and dimensions.

A tile of logits or of sums over components is one matrix product, as in flash attention. In coordinates relative to
the first mean, a = x - m_0, b_k = m_k - m_0, and for tied covariances with the products u = P a, q_k = P b_k:

    squares (x - m_k)^T P_k (x - m_k)     spherical   P_k (|a|^2 - 2 a . b_k + |b_k|^2)
                                          diag        (a^2) . P_k - 2 a . (P_k b_k) + b_k . (P_k b_k)
                                          tied        a . u - 2 a . q_k + b_k . q_k
    slopes  g_k . v                       spherical   P_k (v . b_k - v . a)
                                          diag        v . (P_k b_k) - (a v) . P_k
                                          tied        v . q_k - v . u

Squares are summed tile by tile of dimensions, each with its own cancellation, which bounds what it costs in rounding.
With weights w_k = 2^(l_k - maximum), l_k = log2 of the component's density, and c_k = w_k (g_k . v), the posterior
means are

    sums    A = sum w_k K_k,  R = sum w_k P_k,  B = sum c_k K_k,  S = sum c_k P_k,     keys K_k = P_k b_k (tied: q_k)
    score   g = (A - a R) / total               second = (B - a S - v R) / total       (tied: a P = u, v P = P v)

where R and S are numbers of the sample unless diag. Then H v = second - g (g . v), with g . v = sum c_k / total.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_small import LOG2_E, LOWEST, weight_of


@triton.jit
def load_tile(ptr, first, lanes, columns, inside, dim):
    """Load x[first + lanes, columns] of an array [., dim]; 0 outside. first is int64, lanes, columns, dim are int32."""
    return tl.load(ptr + first * dim + (lanes[:, None] * dim + columns[None, :]), mask=inside, other=0.0)


@triton.jit
def store_tile(ptr, first, lanes, columns, inside, dim, values):
    tl.store(ptr + first * dim + (lanes[:, None] * dim + columns[None, :]), values, mask=inside)


@triton.jit
def load_row(ptr, columns, dim):
    return tl.load(ptr + columns, mask=columns < dim, other=0.0)[None, :]


@triton.jit
def sample_tile(x, u, v, w, means, keys, row, lanes, columns, inside, dim, KIND: tl.constexpr, HVP: tl.constexpr):
    """Load a; u = P a if tied, else a again; v; and P v if tied, else v again (a for v without HVP)."""
    a = load_tile(x, row, lanes, columns, inside, dim) - load_row(means, columns, dim)
    pulled, along, pulled_along = a, a, a
    if KIND == "tied":
        pulled = load_tile(u, row, lanes, columns, inside, dim) - load_row(keys, columns, dim)
    if HVP:
        along = load_tile(v, row, lanes, columns, inside, dim)
        pulled_along = along
        if KIND == "tied":
            pulled_along = load_tile(w, row, lanes, columns, inside, dim)
    return a, pulled, along, pulled_along


@triton.jit
def component_tile(means, keys, start, slots, columns, end, dim, KIND: tl.constexpr):
    """Load b_k, K_k (spherical: b_k), and P_k if diag, else b_k again; keys are precisions if diag, P m if tied."""
    inside = (slots < end - start)[:, None] & (columns < dim)[None, :]
    b = load_tile(means, start, slots, columns, inside, dim) - load_row(means, columns, dim)
    key, precision = b, b
    if KIND == "diag":
        precision = load_tile(keys, start, slots, columns, inside, dim)
        key = precision * b
    if KIND == "tied":
        key = load_tile(keys, start, slots, columns, inside, dim) - load_row(keys, columns, dim)
    return b, key, precision


@triton.jit
def partial_logits(a, u, v, b, key, precision, KIND: tl.constexpr, HVP: tl.constexpr, PRECISION: tl.constexpr):
    """Return what a tile of dimensions adds to squares and slopes [ROWS, COMPONENTS], spherical ones without P_k."""
    columns = tl.trans(key)
    products = tl.dot(a, columns, input_precision=PRECISION)
    own = tl.sum(b * key, 1)[None, :]
    if KIND == "diag":
        shares = tl.trans(precision)
        squares = tl.dot(a * a, shares, input_precision=PRECISION) + tl.fma(products, -2.0, own)
    else:
        squares = tl.fma(products, -2.0, tl.sum(a * u, 1)[:, None] + own)
    slopes = squares
    if HVP:
        slopes = tl.dot(v, columns, input_precision=PRECISION)
        if KIND == "diag":
            slopes -= tl.dot(a * v, shares, input_precision=PRECISION)
        else:
            slopes -= tl.sum(u * v, 1)[:, None]
    return squares, slopes


@triton.jit
def direct_logits(
    a,
    u,
    v,
    means,
    keys,
    columns,
    start,
    end,
    dim,
    KIND: tl.constexpr,
    HVP: tl.constexpr,
    COMPONENTS: tl.constexpr,
):
    """Return the same from differences b_k - a, one component at a time: with the reference's rounding."""
    slots = tl.arange(0, COMPONENTS)[None, :]
    squares = tl.zeros((a.shape[0], COMPONENTS), tl.float32)
    slopes = squares
    for i in range(0, tl.minimum(end - start, COMPONENTS)):
        at = (start + i) * dim
        diff = load_row(means + at, columns, dim) - load_row(means, columns, dim) - a
        g = diff
        if KIND == "diag":
            g = load_row(keys + at, columns, dim) * diff
        if KIND == "tied":
            g = load_row(keys + at, columns, dim) - load_row(keys, columns, dim) - u
        squares = tl.where(slots == i, tl.sum(diff * g, 1)[:, None], squares)
        if HVP:
            slopes = tl.where(slots == i, tl.sum(g * v, 1)[:, None], slopes)
    return squares, slopes


@triton.jit
def weights_of(
    squares,
    slopes,
    maximum,
    total,
    rate,
    along,
    slope,
    precisions,
    log_scale,
    start,
    slots,
    end,
    KIND: tl.constexpr,
    HVP: tl.constexpr,
):
    """Return K_k's weights in A and in B, the factor of what was summed before, and the sums over components so far.

    rate, along, slope are the sums of w_k P_k (spherical), c_k and c_k P_k (spherical).
    """
    inside = slots < end - start
    scale = tl.load(log_scale + start + slots, mask=inside, other=float("-inf")) * LOG2_E
    half = tl.full(scale.shape, -0.5 * LOG2_E, tl.float32)
    if KIND == "spherical":
        precision = tl.load(precisions + start + slots, mask=inside, other=0.0)
        half *= precision
    logits = tl.fma(squares, half[None, :], scale[None, :])
    peak = tl.maximum(maximum, tl.max(logits, 1))
    shrink = weight_of(maximum - peak)
    weights = weight_of(logits - peak[:, None])
    total = tl.fma(total, shrink, tl.sum(weights, 1))
    products = weights
    if HVP:
        products = weights * slopes
        if KIND == "spherical":
            products *= precision[None, :]
        along = tl.fma(along, shrink, tl.sum(products, 1))
    if KIND == "spherical":
        weights *= precision[None, :]
        rate = tl.fma(rate, shrink, tl.sum(weights, 1))
        if HVP:
            products *= precision[None, :]
            slope = tl.fma(slope, shrink, tl.sum(products, 1))
    return weights, products, shrink, peak, total, rate, along, slope


@triton.jit
def add_components(
    A, R, B, S, weights, products, key, precision, KIND: tl.constexpr, HVP: tl.constexpr, PRECISION: tl.constexpr
):
    """Return A, R, B, S with a block of components added; those that do not exist as they were."""
    A = tl.dot(weights, key, A, input_precision=PRECISION)
    if KIND == "diag":
        R = tl.dot(weights, precision, R, input_precision=PRECISION)
    if HVP:
        B = tl.dot(products, key, B, input_precision=PRECISION)
        if KIND == "diag":
            S = tl.dot(products, precision, S, input_precision=PRECISION)
    return A, R, B, S


@triton.jit
def shrunk(A, R, B, S, shrink, KIND: tl.constexpr, HVP: tl.constexpr):
    """Return A, R, B, S, as far as they are used, times the factor of each row."""
    factor = shrink[:, None]
    A *= factor
    if KIND == "diag":
        R *= factor
    if HVP:
        B *= factor
        if KIND == "diag":
            S *= factor
    return A, R, B, S


@triton.jit
def posterior_means(a, u, v, w, A, R, B, S, total, rate, along, slope, KIND: tl.constexpr, HVP: tl.constexpr):
    """Return a tile of the score and of the other posterior mean (the score again without HVP)."""
    inverse = (1.0 / total)[:, None]
    if KIND == "diag":
        score = tl.fma(-a, R, A) * inverse
    elif KIND == "spherical":
        score = tl.fma(-a, rate[:, None], A) * inverse
    else:
        score = tl.fma(A, inverse, -u)
    second = score
    if HVP:
        if KIND == "diag":
            second = tl.fma(-v, R, tl.fma(-a, S, B)) * inverse
        elif KIND == "spherical":
            second = tl.fma(-v, rate[:, None], tl.fma(-a, slope[:, None], B)) * inverse
        else:
            second = tl.fma(tl.fma(-u, along[:, None], B), inverse, -w)
    return score, second


# --- samples whole: d up to DIMS ---------------------------------------------------------------------------------


@triton.jit
def sums_of_whole_rows(
    a,
    u,
    v,
    means,
    keys,
    log_scale,
    columns,
    begin,
    end,
    dim,
    KIND: tl.constexpr,
    ORDER: tl.constexpr,
    COMPONENTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return maximum, total, rate, along, slope [ROWS] and A, R, B, S [ROWS, DIMS] over components begin..end.

    ORDER: 0 for maximum and total, 1 for the score, 2 for H v besides.
    """
    HVP: tl.constexpr = ORDER == 2
    maximum = tl.full((a.shape[0],), LOWEST, tl.float32)
    total = tl.zeros_like(maximum)
    rate, along, slope = total, total, total
    A, R, B, S = tl.zeros_like(a), tl.zeros_like(a), tl.zeros_like(a), tl.zeros_like(a)
    for start in range(begin, end, COMPONENTS):
        slots = tl.arange(0, COMPONENTS)
        squares, slopes = direct_logits(a, u, v, means, keys, columns, start, end, dim, KIND, HVP, COMPONENTS)
        weights, products, shrink, maximum, total, rate, along, slope = weights_of(
            squares, slopes, maximum, total, rate, along, slope, keys, log_scale, start, slots, end, KIND, HVP
        )
        if ORDER >= 1:
            _, key, precision = component_tile(means, keys, start, slots, columns, end, dim, KIND)
            A, R, B, S = shrunk(A, R, B, S, shrink, KIND, HVP)
            A, R, B, S = add_components(A, R, B, S, weights, products, key, precision, KIND, HVP, PRECISION)
    return maximum, total, rate, along, slope, A, R, B, S


# --- samples tile by tile: any d ---------------------------------------------------------------------------------


@triton.jit
def block_of_tiles(
    x,
    u,
    v,
    w,
    means,
    keys,
    log_scale,
    row,
    lanes,
    in_rows,
    start,
    end,
    dim,
    maximum,
    total,
    rate,
    along,
    slope,
    KIND: tl.constexpr,
    HVP: tl.constexpr,
    COMPONENTS: tl.constexpr,
    DIMS: tl.constexpr,
    DIRECT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return `weights_of` the components from `start` on, their squares summed over tiles of dimensions."""
    slots = tl.arange(0, COMPONENTS)
    squares = tl.zeros((lanes.shape[0], COMPONENTS), tl.float32)
    slopes = tl.zeros((lanes.shape[0], COMPONENTS), tl.float32)
    for j in range(0, dim, DIMS):
        columns = j + tl.arange(0, DIMS)
        inside = in_rows[:, None] & (columns < dim)[None, :]
        a, pulled, direction, _ = sample_tile(x, u, v, w, means, keys, row, lanes, columns, inside, dim, KIND, HVP)
        if DIRECT:
            more_squares, more_slopes = direct_logits(
                a, pulled, direction, means, keys, columns, start, end, dim, KIND, HVP, COMPONENTS
            )
        else:
            b, key, precision = component_tile(means, keys, start, slots, columns, end, dim, KIND)
            more_squares, more_slopes = partial_logits(a, pulled, direction, b, key, precision, KIND, HVP, PRECISION)
        squares += more_squares
        if HVP:
            slopes += more_slopes
    return weights_of(
        squares, slopes, maximum, total, rate, along, slope, keys, log_scale, start, slots, end, KIND, HVP
    )


@triton.jit
def tile_of_sums(
    scratch,
    size,
    resumed,
    weights,
    products,
    shrink,
    means,
    keys,
    start,
    slots,
    end,
    row,
    lanes,
    columns,
    inside,
    dim,
    KIND: tl.constexpr,
    HVP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Return a tile's A, R, B, S with a block of components added to what `store_sums` left there, if resumed."""
    _, key, precision = component_tile(means, keys, start, slots, columns, end, dim, KIND)
    there = inside & (columns < tl.where(resumed, dim, 0))[None, :]
    A = load_tile(scratch, row, lanes, columns, there, dim)
    R, B, S = A, A, A
    if KIND == "diag":
        R = load_tile(scratch + size, row, lanes, columns, there, dim)
    if HVP:
        B = load_tile(scratch + 2 * size, row, lanes, columns, there, dim)
        if KIND == "diag":
            S = load_tile(scratch + 3 * size, row, lanes, columns, there, dim)
    A, R, B, S = shrunk(A, R, B, S, shrink, KIND, HVP)
    return add_components(A, R, B, S, weights, products, key, precision, KIND, HVP, PRECISION)


@triton.jit
def store_sums(scratch, size, row, lanes, columns, inside, dim, A, R, B, S, KIND: tl.constexpr, HVP: tl.constexpr):
    """Store the sums so far of a tile: 4 arrays [., dim] of `size` elements, A, R, B, S, used as far as they exist."""
    store_tile(scratch, row, lanes, columns, inside, dim, A)
    if KIND == "diag":
        store_tile(scratch + size, row, lanes, columns, inside, dim, R)
    if HVP:
        store_tile(scratch + 2 * size, row, lanes, columns, inside, dim, B)
        if KIND == "diag":
            store_tile(scratch + 3 * size, row, lanes, columns, inside, dim, S)
