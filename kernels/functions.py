"""Elementary functions in float32 that give what PyTorch gives, infinite, not a number and beyond the domain included.

What a drift's program is printed in, beside Triton's own log, sin, cos, erf, sqrt, floor and ceil: those that Triton
lacks or approximates. A result below the smallest normal number may be 0, and the sign of a zero may differ.
"""

from __future__ import annotations

import triton
import triton.language as tl

ROUNDER = tl.constexpr(12582912.0)  # 1.5 2^23: adding it rounds numbers below 2^22 to integers, half to even
LOG2_E = tl.constexpr(1.44269504088896340736)
LN2_HIGH, LN2_LOW = tl.constexpr(0.693145751953125), tl.constexpr(1.4286068203094172321e-6)
LN_2 = tl.constexpr(0.69314718055994530942)
PI, PI_2, PI_4 = tl.constexpr(3.14159265358979), tl.constexpr(1.57079632679489662), tl.constexpr(0.785398163397448310)
WHOLE = tl.constexpr(16777216.0)  # 2^24: from here on every float32 is an even integer
LARGE = tl.constexpr(1.0e10)  # its square is still finite, and 1 beside it nothing


@triton.jit
def with_sign_of(positive, x):
    """Return positive with the sign of x."""
    return tl.where(x < 0.0, -positive, positive)


# --- exponentials ------------------------------------------------------------------------------------------------


@triton.jit
def power_of_two(n):
    """Return 2^n for an int32 n in -126..127."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def reduced(x):
    """Return n, an integer as float32, and q with e^x = 2^n (1 + q)."""
    n = tl.fma(x, LOG2_E, ROUNDER) - ROUNDER
    r = LOG2_E * tl.fma(n, -LN2_LOW, tl.fma(n, -LN2_HIGH, x))
    p = tl.fma(r, 0.000154698647, 0.001341015429)
    p = tl.fma(p, r, 0.009618030388)
    p = tl.fma(p, r, 0.05550296859)
    p = tl.fma(p, r, 0.2402265109)
    return n, r * tl.fma(p, r, 0.6931472257)


@triton.jit
def exp(x):
    """Return e^x."""
    n, q = reduced(tl.where(x < -104.0, -104.0, tl.where(x > 89.0, 89.0, x)))
    whole = n.to(tl.int32)
    half = whole >> 1
    return (1.0 + q) * power_of_two(half) * power_of_two(whole - half)


@triton.jit
def expm1(x):
    """Return e^x - 1, also where it is small."""
    n, q = reduced(tl.where(x < -30.0, -30.0, tl.where(x > 89.0, 89.0, x)))
    half = power_of_two(n.to(tl.int32) - 1)  # 2^n may be infinite where the result is not
    return 2.0 * tl.fma(half, q, half - 0.5)


@triton.jit
def tanh(x):
    """Return tanh x."""
    u = expm1(-2.0 * tl.abs(x))
    return with_sign_of(-u / (u + 2.0), x)


@triton.jit
def sinh(x):
    """Return sinh x."""
    size = tl.abs(x)
    u, root = expm1(size), exp(0.5 * size)
    # e^x overflows before its half does
    return with_sign_of(tl.where(size < 40.0, 0.5 * (u + u / (u + 1.0)), 0.5 * root * root), x)


@triton.jit
def cosh(x):
    """Return cosh x."""
    root = exp(0.5 * tl.abs(x))
    half = 0.5 * root * root
    return half + 0.25 / half


# --- logarithms --------------------------------------------------------------------------------------------------


@triton.jit
def log1p(x):
    """Return log(1 + x), also where it is small."""
    u = 1.0 + x
    log = tl.log(u)
    whole = (u > 0.0) & (u < float("inf"))
    rest = (x - (u - 1.0)) / tl.where(whole, u, 1.0)  # what the sum has lost
    return tl.where(u == 1.0, x, tl.where(whole, log + rest, log))


@triton.jit
def asinh(x):
    """Return the inverse of sinh."""
    size = tl.abs(x)
    near = tl.where(size > LARGE, 1.0, size)
    square = near * near
    small = log1p(near + square / (1.0 + tl.sqrt(1.0 + square)))
    return with_sign_of(tl.where(size > LARGE, tl.log(size) + LN_2, small), x)


@triton.jit
def acosh(x):
    """Return the inverse of cosh."""
    above = tl.where(x > LARGE, 1.0, x - 1.0)
    small = log1p(above + tl.sqrt(above * (above + 2.0)))
    return tl.where(x < 1.0, float("nan"), tl.where(x > LARGE, tl.log(x) + LN_2, small))


@triton.jit
def atanh(x):
    """Return the inverse of tanh."""
    size = tl.abs(x)
    return with_sign_of(0.5 * log1p(2.0 * size / (1.0 - size)), x)


@triton.jit
def pow(x, y):
    """Return x^y; the error grows with its logarithm, to some 1e-5 of results near the largest number."""
    size = tl.abs(x)
    of_size = exp(y * tl.log(size))
    half, negative = 0.5 * y, x < 0.0
    whole = (tl.abs(y) >= WHOLE) | (tl.floor(y) == y)
    out = tl.where(negative & whole & (tl.floor(half) != half), -of_size, of_size)
    out = tl.where(negative & (size < float("inf")) & (whole == 0), float("nan"), out)
    out = tl.where((size == 1.0) & (tl.abs(y) == float("inf")), 1.0, out)
    return tl.where((y == 0.0) | (x == 1.0), 1.0, out)


# --- angles ------------------------------------------------------------------------------------------------------


@triton.jit
def tan(x):
    """Return tan x."""
    return tl.sin(x) / tl.cos(x)


@triton.jit
def asin_reduced(x, square):
    """Return asin x for x in 0..1/2."""
    p = tl.fma(square, 4.2163199048e-2, 2.4181311049e-2)
    p = tl.fma(p, square, 4.5470025998e-2)
    p = tl.fma(p, square, 7.4953002686e-2)
    p = tl.fma(p, square, 1.6666752422e-1)
    return tl.fma(p * square, x, x)


@triton.jit
def half_angle(x):
    """Return |x|, whether it is above 1/2, and asin |x|, or there half acos |x|."""
    size = tl.abs(x)
    large = size > 0.5
    square = tl.where(large, 0.5 * (1.0 - size), size * size)
    return large, asin_reduced(tl.where(large, tl.sqrt(square), size), square)


@triton.jit
def asin(x):
    """Return the inverse of sin."""
    large, angle = half_angle(x)
    return with_sign_of(tl.where(large, PI_2 - 2.0 * angle, angle), x)


@triton.jit
def acos(x):
    """Return the inverse of cos."""
    large, angle = half_angle(x)
    whole = tl.where(x < 0.0, PI - 2.0 * angle, 2.0 * angle)
    return tl.where(large, whole, PI_2 - with_sign_of(angle, x))


@triton.jit
def atan(x):
    """Return the inverse of tan: of x, (|x| - 1) / (|x| + 1) or -1 / |x|, whichever is small."""
    size = tl.abs(x)
    far, middle = size > 2.414213562373095, size > 0.4142135623730950
    over = tl.where(far, -1.0, tl.where(middle, size - 1.0, size))
    under = tl.where(far, size, tl.where(middle, size + 1.0, 1.0))
    u = over / under
    z = u * u
    p = tl.fma(z, 8.05374449538e-2, -1.38776856032e-1)
    p = tl.fma(p, z, 1.99777106478e-1)
    p = tl.fma(p, z, -3.33329491539e-1)
    angle = tl.fma(p * z, u, u) + tl.where(far, PI_2, tl.where(middle, PI_4, 0.0))
    return with_sign_of(angle, x)


@triton.jit
def atan2(y, x):
    """Return the angle of the point (x, y)."""
    height, width = tl.abs(y), tl.abs(x)
    angle = tl.where(height == width, PI_4, atan(height / width))
    angle = tl.where(height == 0.0, 0.0, angle)
    angle = tl.where(x.to(tl.int32, bitcast=True) < 0, PI - angle, angle)
    angle = tl.where(y.to(tl.int32, bitcast=True) < 0, -angle, angle)
    return tl.where((x == x) & (y == y), angle, x + y)


# --- whole numbers, and the larger of two --------------------------------------------------------------------------


@triton.jit
def trunc(x):
    """Return x without its fraction."""
    return tl.where(x < 0.0, tl.ceil(x), tl.floor(x))


@triton.jit
def round(x):
    """Return the nearest integer, the even one of two."""
    size = tl.abs(x)
    return tl.where(size < 4194304.0, with_sign_of((size + ROUNDER) - ROUNDER, x), x)


@triton.jit
def maximum(x, y):
    """Return the larger, NaN where either is."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """Return the smaller, NaN where either is."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)
