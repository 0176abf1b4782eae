// What a compiled drift is written in: elementary functions on short vectors that give what PyTorch gives for every
// argument, infinite, not a number and beyond the domain included (a result below the smallest normal number may be 0).
//
// Those without a vector form here are taken lane by lane from the C library.
#pragma once

#include <cmath>
#include <limits>

#include "../include/vecmath.h"

namespace fastndsm::functions {

namespace detail {

using fastndsm::detail::kIsPack;
using fastndsm::detail::kSingle;

template <typename V>
constexpr scalar_of<V> kInfinity = std::numeric_limits<scalar_of<V>>::infinity();
template <typename V>
constexpr scalar_of<V> kNaN = std::numeric_limits<scalar_of<V>>::quiet_NaN();

// f of each lane.
template <typename F, typename V, typename... Rest>
FASTNDSM_HD V lanewise(F f, V x, Rest... rest) {
  if constexpr (lanes_of<V> == 1) {
    return f(x, rest...);
  } else if constexpr (kIsPack<V>) {
    return fastndsm::detail::each([&](auto... parts) { return lanewise(f, parts...); }, x, rest...);
  } else {
    V y;
    for (int i = 0; i < lanes_of<V>; ++i) y[i] = f(x[i], rest[i]...);
    return y;
  }
}

template <typename V>
FASTNDSM_HD V magnitude(V x) {
  using I = bits_of<V>;
  constexpr scalar_of<I> most = std::numeric_limits<scalar_of<I>>::max();
  return reinterpret<V>(reinterpret<I>(x) & most);
}

template <typename V>
FASTNDSM_HD V with_sign_of(V positive, V x) {
  using I = bits_of<V>;
  constexpr scalar_of<I> top = std::numeric_limits<scalar_of<I>>::min();
  return reinterpret<V>(reinterpret<I>(positive) | (reinterpret<I>(x) & top));
}

template <typename V>
FASTNDSM_OUTLINE V sin_by_lanes(V x) {
  return lanewise([](scalar_of<V> lane) { return std::sin(lane); }, x);
}
template <typename V>
FASTNDSM_OUTLINE V cos_by_lanes(V x) {
  return lanewise([](scalar_of<V> lane) { return std::cos(lane); }, x);
}

}  // namespace detail

// By lambdas, as the functions are overloaded.
#define FASTNDSM_LANEWISE(kind, name)                                              \
  template <typename V>                                                            \
  kind V name(V x) {                                                               \
    return detail::lanewise([](scalar_of<V> lane) { return std::name(lane); }, x); \
  }
#define FASTNDSM_LANEWISE_PAIRS(name)                                                              \
  template <typename V>                                                                            \
  FASTNDSM_OUTLINE V name(V x, V y) {                                                              \
    return detail::lanewise([](scalar_of<V> a, scalar_of<V> b) { return std::name(a, b); }, x, y); \
  }
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, asin)
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, acos)
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, asinh)
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, acosh)
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, atanh)
FASTNDSM_LANEWISE(FASTNDSM_HD, floor)
FASTNDSM_LANEWISE(FASTNDSM_HD, ceil)
FASTNDSM_LANEWISE(FASTNDSM_HD, trunc)
FASTNDSM_LANEWISE_PAIRS(pow)
FASTNDSM_LANEWISE_PAIRS(atan2)
FASTNDSM_LANEWISE_PAIRS(fmod)
#undef FASTNDSM_LANEWISE
#undef FASTNDSM_LANEWISE_PAIRS

// Half to even.
template <typename V>
FASTNDSM_HD V round(V x) {
  return detail::lanewise([](scalar_of<V> lane) { return std::nearbyint(lane); }, x);
}

using fastndsm::exp;
using fastndsm::sqrt;

template <typename V>
FASTNDSM_HD V abs(V x) {
  return detail::magnitude(x);
}

// NaN where either is.
template <typename V>
FASTNDSM_HD V maximum(V a, V b) {
  return select(a > b, a, V(select(a == a, b, a)));
}
template <typename V>
FASTNDSM_HD V minimum(V a, V b) {
  return select(a < b, a, V(select(a == a, b, a)));
}

template <typename V>
FASTNDSM_HD V log(V x) {
  using S = scalar_of<V>;
  constexpr S smallest = std::numeric_limits<S>::min(), scale = detail::kSingle<V> ? S(0x1p40) : S(0x1p100);
  constexpr S shift = detail::kSingle<V> ? S(27.7258872223978123767) : S(69.3147180559945309417);  // log scale
  const auto tiny = x < smallest;
  V y = fastndsm::log(V(select(tiny, V(x * scale), x)));
  y = select(tiny, V(y - shift), y);
  y = select(x > S(0), y, V(select(x == S(0), splat<V>(-detail::kInfinity<V>), splat<V>(detail::kNaN<V>))));
  return select(x < detail::kInfinity<V>, y, V(x - S(0)));  // infinity and NaN
}

template <typename V>
FASTNDSM_HD V expm1(V x) {
  using S = scalar_of<V>;
  constexpr S log2e = S(1.44269504088896340736),
              most = detail::kSingle<V> ? S(89) : S(710);  // beyond, the result is infinite
  constexpr S ln2_high = detail::kSingle<V> ? S(0.693145751953125) : S(0x1.62e42fefa3800p-1);
  constexpr S ln2_low = detail::kSingle<V> ? S(1.4286068203094172321e-6) : S(5.4979230187083711747e-14);
  const V y = select(x < -most, splat<V>(-most), V(select(x > most, splat<V>(most), x)));
  const V n = fastndsm::detail::round_to_integer(V(y * log2e));
  const V r = log2e * fma(n, splat<V>(-ln2_low), fma(n, splat<V>(-ln2_high), y));
  const V half = scale_by_power_of_two(splat<V>(S(0.5)), n);  // 2^n may be infinite where the result is not
  return S(2) * fused(half, V(r * fastndsm::detail::exp2_quotient(r)), V(half - S(0.5)));
}

template <typename V>
FASTNDSM_HD V log1p(V x) {
  using S = scalar_of<V>;
  const V u = S(1) + x;
  const V rest = (x - (u - S(1))) / u;  // what the sum has lost
  const V y = log(u) + rest;
  return select(u == S(1), x, V(select(u > S(0), V(select(u < detail::kInfinity<V>, y, u)), log(u))));
}

template <typename V>
FASTNDSM_HD V tanh(V x) {
  using S = scalar_of<V>;
  const V u = expm1(V(S(-2) * detail::magnitude(x)));
  const V y = -u / (u + S(2));
  return select(x == x, detail::with_sign_of(y, x), x);
}

template <typename V>
FASTNDSM_HD V sinh(V x) {
  using S = scalar_of<V>;
  const V size = detail::magnitude(x), u = expm1(size), root = exp(V(S(0.5) * size));
  const V small = S(0.5) * (u + u / (u + S(1))), large = S(0.5) * root * root;  // where exp overflows too soon
  return select(x == x, detail::with_sign_of(V(select(size < S(40), small, large)), x), x);
}

template <typename V>
FASTNDSM_HD V cosh(V x) {
  using S = scalar_of<V>;
  const V root = exp(V(S(0.5) * detail::magnitude(x))), half = S(0.5) * root * root;
  return half + S(0.25) / half;
}

// The argument less n pi/2, by three parts of pi/2 and exact products; large ones, and where the machine does not fuse, by
// the C library.
template <typename V>
FASTNDSM_HD void sincos(V x, V& sin, V& cos) {
  using S = scalar_of<V>;
  using I = bits_of<V>;
  constexpr bool single = detail::kSingle<V>;
#if defined(__FMA__) || defined(__ARM_NEON) || defined(__CUDACC__)
  constexpr S largest = single ? S(0x1p17) : S(0x1p30);
#else
  constexpr S largest = S(0);
#endif
  constexpr S high = single ? S(0x1.921fb6p0) : S(0x1.921fb54442d18p0);
  constexpr S middle = single ? S(-0x1.777a5cp-25) : S(0x1.1a62633145c07p-54);
  constexpr S low = single ? S(-0x1.ee59dap-50) : S(-0x1.f1976b7ed8fbcp-110);
  const V n = fastndsm::detail::round_to_integer(V(x * S(0.636619772367581343076)));
  const V r = fused(n, splat<V>(-low), fused(n, splat<V>(-middle), fused(n, splat<V>(-high), x)));
  V s, c;
  fastndsm::detail::sincos_reduced(r, s, c);
  const auto within = detail::magnitude(x) < largest;
  const I quadrant = convert<I>(V(select(within, n, V{})));
  constexpr int shift = single ? 30 : 62;
  const auto swap = (quadrant & 1) != 0;
  sin = reinterpret<V>(reinterpret<I>(select(swap, c, s)) ^ I((quadrant & 2) << shift));
  cos = reinterpret<V>(reinterpret<I>(select(swap, s, c)) ^ I(((quadrant + 1) & 2) << shift));
  if (any_lane(!within)) {  // of these alone: what a lane gets does not depend on its neighbours
    sin = select(within, sin, detail::sin_by_lanes(x));
    cos = select(within, cos, detail::cos_by_lanes(x));
  }
}

template <typename V>
FASTNDSM_HD V sin(V x) {
  V s, c;
  sincos(x, s, c);
  return s;
}

template <typename V>
FASTNDSM_HD V cos(V x) {
  V s, c;
  sincos(x, s, c);
  return c;
}

template <typename V>
FASTNDSM_HD V tan(V x) {
  V s, c;
  sincos(x, s, c);
  return s / c;
}

// Of x, (|x| - 1) / (|x| + 1) or -1 / |x|, whichever is small.
template <typename V>
FASTNDSM_HD V atan(V x) {
  using S = scalar_of<V>;
  using fastndsm::detail::polynomial;
  const V size = detail::magnitude(x);
  const auto far = size > S(2.41421356237309505), middle = size > S(0.414213562373095049);
  const V over = select(far, splat<V>(S(-1)), V(select(middle, V(size - S(1)), size)));
  const V under = select(far, size, V(select(middle, V(size + S(1)), splat<V>(S(1)))));
  const V start = select(far, splat<V>(S(1.57079632679489662)), V(select(middle, splat<V>(S(0.785398163397448310)), V{})));
  const V u = over / under, z = u * u;
  V p;
  if constexpr (detail::kSingle<V>) {
    p = polynomial(z, -0.3333328656, 0.1999123774, -0.1402414284, 0.08520492036);
  } else {
    p = polynomial(z, -0.3333333333333333016, 0.1999999999999552068, -0.1428571428466654292, 0.1111111101525636173,
                   -0.0909090457812390189, 0.07692183190826086564, -0.06664511447381948, 0.05858148912802209882,
                   -0.05085449737940259861, 0.0392316582955871913, -0.01917688711906225899);
  }
  return detail::with_sign_of(V(start + fused(V(z * p), u, u)), x);
}

// Below 1 an odd polynomial; beyond, 1 - e^(-x^2) g with g a polynomial in 2 / (2 + |x|), moved to -1..1.
template <typename V>
FASTNDSM_OUTLINE V erf(V x) {
  using S = scalar_of<V>;
  using fastndsm::detail::polynomial;
  constexpr bool single = detail::kSingle<V>;
  constexpr S most = single ? S(4) : S(6);  // from here on the result is 1
  constexpr S middle = single ? S(0.5) : S(0.4583333333333333), scale = single ? S(6) : S(4.8);
  const V size = detail::magnitude(x), square = x * x;
  const V far = select(size > most, splat<V>(most), size);
  const V u = scale * (S(2) / (S(2) + far) - middle);
  V near, tail;
  if constexpr (single) {
    near = polynomial(square, 1.128379166, -0.3761262667, 0.1128359472, -0.02685421201, 0.005189087423, -0.0008016864287,
                      7.875875063e-5);
    tail = polynomial(u, 0.2553956763, 0.1423952828, 0.02685091046, 0.002925128635, 4.608528429e-5, -2.878170381e-5,
                      -1.162764854e-6, 4.295962058e-7, 7.602003038e-9);
  } else {
    near = polynomial(square, 1.128379167095512574, -0.3761263890318374806, 0.1128379167095487867, -0.02686617064507679325,
                      0.005223977624818014467, -0.0008548326980833789905, 0.0001205533111164271092,
                      -0.00001492559526683118157, 1.646100048412136803e-6, -1.635031270105469501e-7,
                      1.465977527404743581e-8, -1.137284885679167367e-9, 5.957176147748911404e-11);
    tail = polynomial(u, 0.2214295402299318065, 0.1618935680410249828, 0.03856057042518240663, 0.005588816281839573584,
                      0.0001971391777283486946, -0.0000807922042624364513, -7.340517941415228276e-6, 1.97956181585397738e-6,
                      1.634993861464746728e-7, -7.005318546704507298e-8, -5.886316438866986411e-10, 2.624002410316086444e-9,
                      -2.686673727909544878e-10, -7.360635504868663342e-11, 2.211654530754847031e-11,
                      -1.391934782638739735e-13, -9.321424201169892246e-13, 1.449564311341957891e-13);
  }
  const V large = S(1) - exp(V(-far * far)) * tail;
  return select(size < S(1), V(x * near), detail::with_sign_of(large, x));
}

}  // namespace fastndsm::functions
