"""Steps of the reverse process in small dimensions: the state never leaves the registers.

A lane is a path, as in `simulate_small`, whose noise it shares; the mixture is that of `simulate_small_sums`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .mixture_small import LOG2_E, add_multiple, load_vector, scaled, store_vector
from .philox import seed_words
from .simulate_small import noise
from .simulate_small_sums import load_common, load_components, mixture_sums, reciprocal
from .trajectory import TWO_LN2

REVERSE = tl.constexpr(2)  # the stream of this use of random numbers


@triton.jit
def bounds_of(bounds_ptr, n_steps):
    """Return first and last of the grid's points 0..N, which no bound leaves."""
    first = tl.minimum(tl.load(bounds_ptr), n_steps).to(tl.int32)
    last = tl.maximum(tl.load(bounds_ptr + 1), 0).to(tl.int32)
    return first, last


@triton.jit
def coefficients_of(coefficients_ptr, n, n_steps):
    """Return A, B, C, X, S and R of the step to t_n."""
    at = coefficients_ptr + n
    decay, drift, weight = tl.load(at), tl.load(at + n_steps), tl.load(at + 2 * n_steps)
    return decay, drift, weight, tl.load(at + 3 * n_steps), tl.load(at + 4 * n_steps), tl.load(at + 5 * n_steps)


@triton.jit
def under_rate(decay, drift, weight, std, x):
    """Return A e^-x, B f(x), C f(x) and S f(2 x)^1/2 for x >= 0, with f(x) = (1 - e^-x) / x and 1 at 0.

    f(x) = e^(-x/2) sinh(x/2) / (x/2), which is summed where 1 - e^-x cancels; f(2 x) = f(x) (1 + e^-x) / 2.
    """
    half = tl.exp2(x * (-0.5 * LOG2_E))
    left = half * half
    u = 0.25 * (x * x)
    series = tl.fma(tl.fma(tl.fma(u, 1.0 / 5040.0, 1.0 / 120.0), u, 1.0 / 6.0), u, 1.0)
    mean = tl.where(x < 1.0, half * series, (1.0 - left) / tl.maximum(x, 1.0))
    return decay * left, drift * mean, weight * mean, std * tl.sqrt(mean * tl.fma(left, 0.5, 0.5))


@triton.jit(do_not_specialize=["n_rows", "n_steps", "n_components", "first_path"])
def reverse_steps_small_kernel(
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
):
    """Take y [n_rows, D] down from bounds[0] to bounds[1]: y <- A y + B score(y) + C (held + X slope) + S xi_n.

    coefficients [6, n_steps] has rows A, B, C, X, S, R; xi_n are the reverse stream's normals of path first_path + row.
    With rate [n_rows] each row has its own A, B, C and S, `under_rate` at x = rate R. Without slope X counts for
    nothing, and R without rate. RESIDENT and COMPONENTS are those of `simulate_small_kernel`.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < n_rows
    path = first_path + row
    first, last = bounds_of(bounds_ptr, n_steps)
    key_low, key_high = seed_words(seed_ptr)
    if RESIDENT:
        resident = load_components(means_ptr, precisions_ptr, log_scale_ptr, 0, KIND, D, COMPONENTS)
        if KIND == "tied":
            resident = (resident[0], resident[1], load_common(precisions_ptr, D))
    elif KIND == "tied":
        resident = load_common(precisions_ptr, D)
    else:
        resident = ()

    y = load_vector(y_ptr, row, inside, D)
    held = load_vector(held_ptr, row, inside, D)
    if slope_ptr is not None:
        slope = load_vector(slope_ptr, row, inside, D)
    if rate_ptr is not None:
        rate = tl.load(rate_ptr + row, mask=inside, other=0.0)
    for taken in range(0, first - last):
        n = first - 1 - taken
        decay, drift, weight, position, std, rate_scale = coefficients_of(coefficients_ptr, n, n_steps)
        drifts, noisy = drift != 0.0, std != 0.0
        if rate_ptr is not None:
            decay, drift, weight, std = under_rate(decay, drift, weight, std, rate * rate_scale)
        network = held
        if slope_ptr is not None:
            network = add_multiple(held, position, slope)
        after = add_multiple(scaled(y, decay), weight, network)
        if drifts:
            sums = mixture_sums(
                y, y, resident, means_ptr, precisions_ptr, log_scale_ptr, n_components, KIND, D, COMPONENTS, RESIDENT,
                False,
            )  # fmt: skip
            after = add_multiple(after, -drift * (reciprocal(sums[0]) * TWO_LN2), sums[1:])
        if noisy:
            after = add_multiple(after, std, noise(key_low, key_high, path, n, D, REVERSE))
        y = after
    store_vector(out_ptr, row, y, inside, D)
