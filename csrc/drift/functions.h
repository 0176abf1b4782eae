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
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, atan)
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, asinh)
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, acosh)
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, atanh)
FASTNDSM_LANEWISE(FASTNDSM_OUTLINE, erf)
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

}  // namespace fastndsm::functions
