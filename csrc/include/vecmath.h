// Elementary functions on the short vectors of vec.h, in float and in double.
//
//   exp2(x), exp(x)                     every x; results below the smallest normal number may be flushed to 0
//   log(x)                              x > 0 and normal
//   sincos_turns(v, sin, cos)           of the angle 2 pi v 2^-32, v a 32-bit integer: a full turn is 2^32
//   reciprocal(x), reciprocal_root(x)   1 / x and 1 / sqrt(x) for normal x > 0 of moderate size, to about an ulp
//   split(x, m, e)                      x = m 2^e > 0, normal, with m in [1/2, 2)
//   minus_two_log_uniform(w)            -2 ln u with u = (w + 1/2) 2^-32, w a 32-bit word
//
// Each is an exact reduction of the argument and a minimax polynomial (Remez, in relative error). All stay within 4 ulp,
// also where the result is near zero: the angle is reduced in integers, and u near 1 is taken from its complement.
#pragma once

#include "vec.h"

namespace fastndsm {

namespace detail {

template <typename V>
constexpr bool kSingle = sizeof(scalar_of<V>) == 4;
template <typename V>
constexpr double kOneInExponentField = kSingle<V> ? 0x1p23 : 0x1p52;

// c0 + c1 x + c2 x^2 + ..., by Horner's rule.
template <typename V>
FASTNDSM_HD V polynomial(V, double c0) {
  return splat<V>(static_cast<scalar_of<V>>(c0));
}
template <typename V, typename... Rest>
FASTNDSM_HD V polynomial(V x, double c0, Rest... rest) {
  return fma(polynomial(x, rest...), x, splat<V>(static_cast<scalar_of<V>>(c0)));
}

template <typename V>
FASTNDSM_HD V round_to_integer(V x) {  // |x| below 2^22 (float) or 2^51 (double)
  using S = scalar_of<V>;
  constexpr S magic = kSingle<V> ? S(12582912.0) : S(6755399441055744.0);  // 1.5 2^23, 1.5 2^52
  return (x + magic) - magic;
}

// 2^r - 1 = r p for r in [-1/2, 1/2]: returns p.
template <typename V>
FASTNDSM_HD V exp2_quotient(V r) {
  V p;
  if constexpr (kSingle<V>) {
    p = polynomial(r, 0.6931472257, 0.2402265109, 0.05550296859, 0.009618030388, 0.001341015429, 0.000154698647);
  } else {
    p = polynomial(r, 0.693147180559945308, 0.240226506959101339, 0.055504108664821743, 0.00961812910759305014,
                   0.00133335581463787188, 0.000154035304584685503, 0.0000152527338678505691, 1.32154346087362901e-6,
                   1.01780463314261824e-7, 7.07389811030893264e-9, 4.45740687566758971e-10);
  }
  return p;
}

template <typename V>
FASTNDSM_HD V exp2_reduced(V r) {
  return fma(exp2_quotient(r), r, splat<V>(1));
}

// 2^x where 2^x and 1 / 2^x are normal numbers: the integer part of x goes into the exponent as it is. NaN stays NaN.
template <typename V>
FASTNDSM_HD V exp2_normal(V x) {
  using S = scalar_of<V>;
  constexpr S magic = kSingle<V> ? S(12582912.0) : S(6755399441055744.0);  // as in round_to_integer
  const V shifted = x + magic;
  const V r = x - (shifted - magic);
  const V power = reinterpret<V>((reinterpret<bits_of<V>>(shifted) << (kSingle<V> ? 23 : 52)) +
                                 reinterpret<scalar_of<bits_of<V>>>(S(1)));
  return fma(V(power * r), exp2_quotient(r), power);
}

#if defined(FASTNDSM_AVX512)
// 2^x for |x| below 2^7, in lanes whose exponent's 32 parts fit one table: 2^(n + i/32) 2^r, |r| <= 1/64. Entry i is the
// bits of 2^(i/32) less i 2^18, which adding (32 n + i) 2^18 puts back.
template <typename V>
FASTNDSM_HD V exp2_by_table(V x) {
  alignas(64) static constexpr int32_t table[32] = {
      0x3f800000, 0x3f7ecd87, 0x3f7daac3, 0x3f7c980f, 0x3f7b95c2, 0x3f7aa43a, 0x3f79c3d3, 0x3f78f4f0,
      0x3f7837f0, 0x3f778d3a, 0x3f76f532, 0x3f767043, 0x3f75fed7, 0x3f75a15b, 0x3f75583f, 0x3f7523f6,
      0x3f7504f3, 0x3f74fbaf, 0x3f7508a4, 0x3f752c4d, 0x3f75672a, 0x3f75b9be, 0x3f76248c, 0x3f76a81e,
      0x3f7744fd, 0x3f77fbb8, 0x3f78ccdf, 0x3f79b907, 0x3f7ac0c7, 0x3f7be4ba, 0x3f7d257d, 0x3f7e83b3};
  constexpr float magic = 12582912.0f / 32.0f;  // rounds to 32nds; the low bits of the sum count them
  const V shifted = x + magic;
  const V r = x - (shifted - magic);
  const auto parts = reinterpret<bits_of<V>>(shifted);
  const V power = reinterpret<V>(look_up(table, parts) + (parts << 18));
  return fma(V(power * r), polynomial(r, 0.6931573298, 0.2402264974), power);
}
#endif

// k ln(1 + f) for f in [-1/3, 1/3].
template <typename V>
FASTNDSM_HD V log1p_reduced(V f, double k) {
  if constexpr (kSingle<V>) {
    // k f is exact for k a power of two, and the rest is small: one rounding. Even and odd powers apart are half as long a chain
    // as Horner's rule.
    const V z = f * f;
    const V even = polynomial(z, k * -0.5, k * -0.2500423773095, k * -0.1647232633635, k * -0.1512218592445);
    const V odd = polynomial(z, k * 0.3333326599625, k * 0.200079210702, k * 0.140422869838, k * 0.1382033054555);
    return fused(fma(odd, f, even), z, V(f * static_cast<scalar_of<V>>(k)));
  } else {
    const V s = f / (f + 2.0);  // ln(1 + f) = 2 atanh(s), |s| <= 1/5
    const V z = s * s;
    const V p =
        polynomial(z, 0.33333333333333298641, 0.20000000000027990708, 0.14285714277998904283, 0.11111112138624597302,
                   0.090908335132284785804, 0.076955372184271785861, 0.065871141709711959939, 0.069193961377141842157);
    return (2.0 * k) * fma(V(s * z), p, s);
  }
}

// Of an angle in [-pi/4, pi/4].
template <typename V>
FASTNDSM_HD void sincos_reduced(V angle, V& s, V& c) {
  const V z = angle * angle;
  if constexpr (kSingle<V>) {
    s = angle * polynomial(z, 1.0, -0.166666546743, 0.00833210095313, -0.000195039631257);
    c = polynomial(z, 1.0, -0.5, 0.0416666546518, -0.00138876543845, 0.000024463837439);
  } else {
    s = angle * polynomial(z, 1.0, -0.16666666666666632068, 0.0083333333333224245758, -0.00019841269829816985563,
                           2.7557313695237596212e-6, -2.5050758654857290778e-8, 1.5896828012628420585e-10);
    c = polynomial(z, 1.0, -0.5, 0.041666666666666592976, -0.0013888888888873063202, 0.000024801587288854746869,
                   -2.7557314179919878036e-7, 2.0875700900895969411e-9, -1.1358538569922633736e-11);
  }
}

// Splits x > 0 into m 2^e with m in [2/3, 4/3); exponent_field is e shifted left by the width of the mantissa.
template <typename V>
FASTNDSM_HD void split_exponent(V x, V& m, bits_of<V>& exponent_field) {
  using I = bits_of<V>;
  using S = scalar_of<I>;
  constexpr int mantissa = kSingle<V> ? 23 : 52;
  constexpr S two_thirds = static_cast<S>(kSingle<V> ? 0x3f2aaaab : 0x3fe5555555555555);
  constexpr S exponent_bits = -(S(1) << mantissa);
  const I bits = reinterpret<I>(x);
  exponent_field = (bits - two_thirds) & exponent_bits;
  m = reinterpret<V>(bits - exponent_field);
}

}  // namespace detail

template <typename V>
FASTNDSM_HD V exp2(V x) {
  using S = scalar_of<V>;
  x = select(x < S(detail::kSingle<V> ? -200 : -1200), splat<V>(S(detail::kSingle<V> ? -200 : -1200)), x);
  x = select(x > S(detail::kSingle<V> ? 200 : 1200), splat<V>(S(detail::kSingle<V> ? 200 : 1200)), x);
  const V n = detail::round_to_integer(x);
  return scale_by_power_of_two(detail::exp2_reduced(V(x - n)), n);
}

template <typename V>
FASTNDSM_HD V exp(V x) {
  using S = scalar_of<V>;
  constexpr S log2e = S(1.44269504088896340736);
  constexpr S ln2_high = detail::kSingle<V> ? S(0.693145751953125) : S(0x1.62e42fefa3800p-1);
  constexpr S ln2_low = detail::kSingle<V> ? S(1.4286068203094172321e-6) : S(5.4979230187083711747e-14);
  x = select(x < S(detail::kSingle<V> ? -140 : -800), splat<V>(S(detail::kSingle<V> ? -140 : -800)), x);
  x = select(x > S(detail::kSingle<V> ? 140 : 800), splat<V>(S(detail::kSingle<V> ? 140 : 800)), x);
  const V n = detail::round_to_integer(V(x * log2e));
  const V r = fma(n, splat<V>(-ln2_low), fma(n, splat<V>(-ln2_high), x));
  return scale_by_power_of_two(detail::exp2_reduced(V(r * log2e)), n);
}

template <typename V>
FASTNDSM_HD V log(V x) {
  using S = scalar_of<V>;
  V m;
  bits_of<V> e;
  detail::split_exponent(x, m, e);
  constexpr S ln2 = S(0.693147180559945309417 / detail::kOneInExponentField<V>);
  return fused(convert<V>(e), splat<V>(ln2), detail::log1p_reduced(V(m - S(1)), 1.0));
}

template <typename V>
FASTNDSM_HD void split(V x, V& m, V& e) {
#if defined(FASTNDSM_AVX512)
  if constexpr (std::is_same<V, vec<float, 16>>::value) {
    m = (V)_mm512_getmant_ps((__m512)x, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_src), e = (V)_mm512_getexp_ps((__m512)x);
    return;
  }
#endif
  bits_of<V> field;
  detail::split_exponent(x, m, field);
  e = convert<V>(field) * scalar_of<V>(1.0 / detail::kOneInExponentField<V>);
}

template <typename V>
FASTNDSM_HD V reciprocal(V x) {
  if constexpr (detail::kIsPack<V>) return detail::each([](auto part) { return reciprocal(part); }, x);
#if defined(FASTNDSM_AVX512)
  if constexpr (std::is_same<V, vec<float, 16>>::value) {
    const V r = (V)_mm512_rcp14_ps((__m512)x);
    return fused(r, V(scalar_of<V>(1) - x * r), r);
  }
#endif
  return scalar_of<V>(1) / x;
}

template <typename V>
FASTNDSM_HD V reciprocal_root(V x) {
  if constexpr (detail::kIsPack<V>) return detail::each([](auto part) { return reciprocal_root(part); }, x);
#if defined(FASTNDSM_AVX512)
  if constexpr (std::is_same<V, vec<float, 16>>::value) {
    const V r = (V)_mm512_rsqrt14_ps((__m512)x);
    return fused(V(scalar_of<V>(0.5) * r), V(scalar_of<V>(1) - V(x * r) * r), r);
  }
#endif
  return scalar_of<V>(1) / fastndsm::sqrt(x);
}

// V is float or double in any number of lanes; w has as many.
template <typename V>
FASTNDSM_HD V minus_two_log_uniform(words_of<V> w) {
  using S = scalar_of<V>;
  // h is u below 1/2 and u - 1 from there on, each to full relative precision.
  const V h = fma(convert<V>(reinterpret<vec<int32_t, lanes_of<V>>>(w)), splat<V>(S(0x1p-32)), splat<V>(S(0x1p-33)));
  const V u = select_negative(reinterpret<bits_of<V>>(h), V(h + S(1)), h);
  V m;
  bits_of<V> e;
  detail::split_exponent(u, m, e);
  const V f = select_negative(e, V(m - S(1)), h);  // e is 0 from u = 2/3 on
  constexpr S minus_two_ln2 = S(-1.38629436111989061883 / detail::kOneInExponentField<V>);
  return fused(convert<V>(e), splat<V>(minus_two_ln2), detail::log1p_reduced(f, -2.0));
}

// Sine and cosine of a whole angle up to a sign that both share: it is that of the top bit of `turned`.
template <typename V>
FASTNDSM_HD void sincos_half_turns(words_of<V> v, V& sin, V& cos, bits_of<V>& turned) {
  using S = scalar_of<V>;
  using I = bits_of<V>;
  // v = quadrant 2^30 + rest, -2^29 <= rest < 2^29; v << 2 is 4 rest as a signed number.
  const V angle = convert<V>(reinterpret<vec<int32_t, lanes_of<V>>>(v << 2)) * S(3.6572951981678992026e-10);  // 2 pi 2^-34
  V s, c;
  detail::sincos_reduced(angle, s, c);
  // The two top bits are the quadrant. A half turn is a sign, and in what is left a quarter turn swaps: cos(x + pi/2) = -sin x.
  const auto quadrant = reinterpret<vec<int32_t, lanes_of<V>>>(v + 0x20000000u);
  if constexpr (detail::kSingle<V>) {
    turned = quadrant;
  } else {
    turned = convert<I>(quadrant) << 32;
  }
  const I odd = turned << 1;
  sin = select_negative(odd, c, s);
  cos = select_negative(odd, V(-s), c);
}

template <typename V>
FASTNDSM_HD void sincos_turns(words_of<V> v, V& sin, V& cos) {
  bits_of<V> turned;
  sincos_half_turns(v, sin, cos, turned);
  sin = flip_sign(turned, sin), cos = flip_sign(turned, cos);
}

}  // namespace fastndsm
