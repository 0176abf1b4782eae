"""Device functions of a Gaussian mixture in at most 4 dimensions, in registers, for every kernel that needs one.

    log w_k N(x; m_k, Sigma_k) = log_scale_k - 1/2 (x - m_k)^T P_k (x - m_k),    g_k = P_k (m_k - x)
    score = sum_k r_k g_k,    second = sum_k r_k (g_k (g_k . v) - P_k v),    H v = second - score (score . v)

Each thread has samples of its own: a vector is a tuple of D tensors [ROWS], parameters are scalars that all threads
share, and nothing is exchanged between threads. Exponents are in base 2. KIND is the covariance type. Trajectories sum
over the same components in `simulate_small_sums`.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.44269504088896340736)
LN_2 = tl.constexpr(0.69314718055994530942)
LOWEST = tl.constexpr(-3.0e38)  # a maximum before any component
LEVELS = tl.constexpr(6)  # of halves of up to 64 dimensions
UNROLL = tl.constexpr(4)  # components that share one rescaling


@triton.jit
def weight_of(exponent):
    """Return 2^exponent (exponent <= 0), at least 2^-100, so that no total is 0, no weight denormal; NaN stays NaN."""
    return tl.exp2(tl.maximum(exponent, -100.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def log_of_sum(maximum, total):
    """Return log(2^maximum total); -infinity where all components' densities are 0 in float32; NaN for a NaN total."""
    return tl.where((maximum == LOWEST) & (total == total), float("-inf"), (maximum + tl.log2(total)) * LN_2)


# --- vectors, as tuples of tensors -------------------------------------------------------------------------------


@triton.jit
def load_vector(ptr, rows, inside, D: tl.constexpr):
    """Load x[rows] of an array [B, D], rows int64."""
    if D == 2:
        pair = tl.load(ptr + rows[:, None] * 2 + tl.arange(0, 2)[None, :], mask=inside[:, None], other=0.0)
        out = tl.split(pair)
    elif D == 4:
        four = tl.load(ptr + rows[:, None] * 4 + tl.arange(0, 4)[None, :], mask=inside[:, None], other=0.0)
        even, odd = tl.split(tl.reshape(four, (four.shape[0], 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        out = (x0, x1, x2, x3)
    elif D < 4:
        out = ()
        for j in tl.static_range(D):
            out += (tl.load(ptr + rows * D + j, mask=inside, other=0.0),)
    else:
        WIDTH: tl.constexpr = triton.next_power_of_2(D)
        columns = tl.arange(0, WIDTH)[None, :]
        block = tl.load(ptr + rows[:, None] * D + columns, mask=inside[:, None] & (columns < D), other=0.0)
        out = columns_of(block, WIDTH)[:D]
    return out


@triton.jit
def every_other(block):
    """Return the even and the odd columns of a block; of two, each as a vector."""
    if block.shape[1] > 2:
        block = tl.reshape(block, (block.shape[0], block.shape[1] // 2, 2))
    return tl.split(block)


@triton.jit
def columns_of(block, WIDTH: tl.constexpr):
    """Return the columns of a block [ROWS, WIDTH], WIDTH a power of two."""
    out = (block,)
    for _ in tl.static_range(LEVELS):
        if len(out) < WIDTH:
            even, odd = (), ()
            for k in tl.static_range(len(out)):
                first, second = every_other(out[k])
                even += (first,)
                odd += (second,)
            out = even + odd
    return out


@triton.jit
def block_of(columns, WIDTH: tl.constexpr):
    """Return a block [ROWS, WIDTH] of columns, WIDTH a power of two; beyond them zeros."""
    out = columns
    for _ in tl.static_range(WIDTH - len(columns)):
        out += (tl.zeros_like(columns[0]),)
    for _ in tl.static_range(LEVELS):
        if len(out) > 1:
            joined = ()
            for k in tl.static_range(len(out) // 2):
                joined += (tl.join(out[k], out[k + len(out) // 2]),)
            out = joined
    return tl.reshape(out[0], (columns[0].shape[0], WIDTH))


@triton.jit
def store_vector(ptr, rows, values, inside, D: tl.constexpr):
    """Store x[rows] = values."""
    if D == 2:
        pair = tl.join(values[0], values[1])
        tl.store(ptr + rows[:, None] * 2 + tl.arange(0, 2)[None, :], pair, mask=inside[:, None])
    elif D == 4:
        four = tl.join(tl.join(values[0], values[2]), tl.join(values[1], values[3]))
        four = tl.reshape(four, (rows.shape[0], 4))
        tl.store(ptr + rows[:, None] * 4 + tl.arange(0, 4)[None, :], four, mask=inside[:, None])
    elif D < 4:
        for j in tl.static_range(D):
            tl.store(ptr + rows * D + j, values[j], mask=inside)
    else:
        WIDTH: tl.constexpr = triton.next_power_of_2(D)
        columns = tl.arange(0, WIDTH)[None, :]
        mask = inside[:, None] & (columns < D)
        tl.store(ptr + rows[:, None] * D + columns, block_of(values, WIDTH), mask=mask)


@triton.jit
def zeros_like_vector(x):
    out = ()
    for j in tl.static_range(len(x)):
        out += (tl.zeros_like(x[j]),)
    return out


@triton.jit
def dot(x, y, START: tl.constexpr = 0):
    """Return sum_j x[START + j] y[j]."""
    total = x[START] * y[0]
    for j in tl.static_range(1, len(y)):
        total = tl.fma(x[START + j], y[j], total)
    return total


@triton.jit
def add_multiple(x, factor, y):
    """Return x + factor y."""
    out = ()
    for j in tl.static_range(len(x)):
        out += (tl.fma(factor, y[j], x[j]),)
    return out


@triton.jit
def scaled(x, factor):
    """Return factor x."""
    out = ()
    for j in tl.static_range(len(x)):
        out += (x[j] * factor,)
    return out


# --- components, as tuples of numbers ----------------------------------------------------------------------------


@triton.jit
def load_matrix(matrix_ptr, SCALE: tl.constexpr, D: tl.constexpr):
    """Load a symmetric [D, D] matrix times SCALE, row by row."""
    values = ()
    for i in tl.static_range(D):
        for j in tl.static_range(D):
            if j < i:
                values += (values[j * D + i],)
            else:
                values += (tl.load(matrix_ptr + i * D + j) * SCALE,)
    return values


@triton.jit
def load_precisions(precisions_ptr, k, SCALE: tl.constexpr, KIND: tl.constexpr, D: tl.constexpr):
    """Load P_k times SCALE: 1 number if spherical, D if diag, D * D if full; none if tied, where all have one."""
    values = ()
    if KIND == "spherical":
        values = (tl.load(precisions_ptr + k) * SCALE,)
    elif KIND == "diag":
        for j in tl.static_range(D):
            values += (tl.load(precisions_ptr + k * D + j) * SCALE,)
    elif KIND == "full":
        values = load_matrix(precisions_ptr + k * (D * D), SCALE, D)
    return values


@triton.constexpr_function
def start_of(i, KIND, D):
    """Return the start of the i-th of several components' precisions."""
    return i * {"spherical": 1, "diag": D, "tied": 0, "full": D * D}[KIND]


@triton.jit
def load_mean(means_ptr, k, D: tl.constexpr):
    values = ()
    for j in tl.static_range(D):
        values += (tl.load(means_ptr + k * D + j),)
    return values


@triton.jit
def precision_product(precisions, START: tl.constexpr, v, KIND: tl.constexpr):
    """Return P v, of precisions as `load_precisions` gives them from START on, or one matrix if tied."""
    D: tl.constexpr = len(v)
    out = ()
    for j in tl.static_range(D):
        if KIND == "spherical":
            out += (precisions[START] * v[j],)
        elif KIND == "diag":
            out += (precisions[START + j] * v[j],)
        else:
            out += (dot(precisions, v, START + j * D),)
    return out


# --- log-density, score and Hessian-vector product, component by component -----------------------------------------


@triton.jit
def component(x, means, precisions, log_scale, k, end, KIND: tl.constexpr):
    """Return log2 of w_k N(x; m_k, Sigma_k), -infinity from k = end on, g_k and P_k; k is int64."""
    D: tl.constexpr = len(x)
    inside = k < end
    k = tl.minimum(k, end - 1)
    diff = ()
    mean = load_mean(means, k, D)
    for j in tl.static_range(D):
        diff += (mean[j] - x[j],)
    if KIND == "tied":
        precision = load_matrix(precisions, 1.0, D)
    else:
        precision = load_precisions(precisions, k, 1.0, KIND, D)
    g = precision_product(precision, 0, diff, KIND)
    scale = tl.where(inside, tl.load(log_scale + k) * LOG2_E, float("-inf"))
    return tl.fma(dot(diff, g), -0.5 * LOG2_E, scale), g, precision


@triton.jit
def posterior_sums(x, v, means, precisions, log_scale, begin, end, KIND: tl.constexpr, ORDER: tl.constexpr):
    """Sum over the components begin <= k < end (int64), with weights 2^(l_k - maximum), l_k = log2 of w_k N_k(x).

    Returns maximum and total, the sums of g_k (ORDER >= 1) and of g_k (g_k . v) - P_k v (ORDER == 2), x else.
    """
    D: tl.constexpr = len(x)
    maximum = tl.full(x[0].shape, LOWEST, tl.float32)
    total = tl.zeros_like(x[0])
    first = zeros_like_vector(x)
    second = zeros_like_vector(x)
    for start in range(begin, end, UNROLL):
        logits, scores, own = (), (), ()
        peak = maximum
        for i in tl.static_range(UNROLL):
            logit, g, precision = component(x, means, precisions, log_scale, start + i, end, KIND)
            logits += (logit,)
            scores += (g,)
            own += (precision,)
            peak = tl.maximum(peak, logit)
        shrink = weight_of(maximum - peak)
        maximum = peak
        total *= shrink
        new_first, new_second = (), ()
        for j in tl.static_range(D):
            new_first += (first[j] * shrink,)
            new_second += (second[j] * shrink,)
        for i in tl.static_range(UNROLL):
            weight = weight_of(logits[i] - peak)
            total += weight
            g = scores[i]
            if ORDER >= 1:
                new_first = add_multiple(new_first, weight, g)
            if ORDER == 2:
                new_second = add_multiple(new_second, weight * dot(g, v), g)
                new_second = add_multiple(new_second, -weight, precision_product(own[i], 0, v, KIND))
        first, second = new_first, new_second
    return maximum, total, first, second
