// Short SIMD vectors behind one header: the same source runs on AVX-512, AVX2, SSE2, NEON and, lane by lane, under nvcc.
//
//   vec<T, W>         W lanes of T (float, double, [u]int32_t, [u]int64_t); vec<T, 1> is T itself, so that code
//                     written for vectors is at the same time the scalar code, on the host and on the device; beyond
//                     one register it is a Pack, which goes through every function here in lock step (vec_types.h).
//   kLanes<T>         lanes of T that fill one register of the machine this is compiled for (1 under nvcc, and with
//                     FASTNDSM_SCALAR defined).
//   kVectorISA        the name of that instruction set.
//
// Arithmetic, shifts and comparisons are the operators of the language (GCC and clang vector extensions). A comparison
// gives a mask: an integer vector of 0 and -1 of the same lane width, or a bool for one lane; `select` takes either.
// a * b + c becomes one fused multiply-add under -ffp-contract=fast, where the compiler sees fit; `fused` is one always,
// so that what it ends in has the same bits wherever it is inlined (and `fma` is, with FASTNDSM_FUSES_EXPLICITLY defined).
// Only what the operators cannot say is a function here, and only those functions know an instruction set.
#pragma once

#include "vec_types.h"

namespace fastndsm {

// ---- moving values ----------------------------------------------------------------------------------------------

template <typename V>
FASTNDSM_HD V splat(scalar_of<V> x) {
  if constexpr (lanes_of<V> == 1) {
    return x;
  } else if constexpr (detail::kIsPack<V>) {
    return detail::each([x](auto part) { return splat<decltype(part)>(x); }, V{});
  } else {
    return x - V{};  // a plain broadcast: x + 0 would have to turn -0 into 0, by an addition
  }
}

// A number in all lanes, or a vector that has one there.
template <typename V, typename Number>
FASTNDSM_HD V in_lanes(Number x) {
  if constexpr (std::is_same_v<V, Number>) {
    return x;
  } else {
    return splat<V>(x);
  }
}

template <typename V>
FASTNDSM_HD V load(const scalar_of<V>* p) {  // unaligned
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

template <typename V>
FASTNDSM_HD void store(scalar_of<V>* p, V v) {  // unaligned
  std::memcpy(p, &v, sizeof(V));
}

constexpr size_t kStreamedBytes = 8 << 20;  // of results that no cache keeps until they are read

// Past the caches, where there is such an instruction: for results larger than they are, which would otherwise be read
// before they are written. p is aligned to V; `end_streams` before another thread reads.
template <typename V>
FASTNDSM_HD void stream(scalar_of<V>* p, V v) {
#if defined(FASTNDSM_AVX512)
  if constexpr (sizeof(V) == 64 && !detail::kIsPack<V>) return _mm512_stream_si512((__m512i*)p, (__m512i)v);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)v);
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128((__m128i*)p, (__m128i)v);
#endif
  store(p, v);
}

FASTNDSM_HD void end_streams() {
#if defined(__SSE2__) && !defined(__CUDACC__)
  _mm_sfence();
#endif
}

// The same bits read as another type of the same size.
template <typename To, typename From>
FASTNDSM_HD To reinterpret(From x) {
  static_assert(sizeof(To) == sizeof(From), "reinterpret keeps the size");
  if constexpr (detail::kIsPack<From>) {
    using Part = std::remove_reference_t<decltype(To{}.part[0])>;
    return detail::each([](auto part) { return reinterpret<Part>(part); }, x);
  } else {
    To y;
    std::memcpy(&y, &x, sizeof(To));
    return y;
  }
}

// The same values in another type with the same number of lanes.
template <typename To, typename From>
FASTNDSM_HD To convert(From x) {
  static_assert(lanes_of<To> == lanes_of<From>, "convert keeps the lanes");
  if constexpr (lanes_of<To> == 1) {
    return static_cast<To>(x);
  } else if constexpr (detail::kIsPack<From>) {
    using Part = std::remove_reference_t<decltype(To{}.part[0])>;
    return detail::each([](auto part) { return convert<Part>(part); }, x);
  } else {
    return __builtin_convertvector(x, To);
  }
}

// Lane numbers 0, 1, ..., W - 1.
template <typename V>
FASTNDSM_HD V iota() {
  if constexpr (lanes_of<V> == 1) {
    return V(0);
  } else {
    scalar_of<V> lanes[lanes_of<V>];
    for (int i = 0; i < lanes_of<V>; ++i) lanes[i] = static_cast<scalar_of<V>>(i);
    return load<V>(lanes);
  }
}

template <typename M, typename V>
FASTNDSM_HD V select(M mask, V a, V b) {
  if constexpr (detail::kIsPack<V>) {
    return detail::each([](auto m, auto x, auto y) { return select(m, x, y); }, mask, a, b);
  } else {
    return mask ? a : b;
  }
}

// Lane by lane, a where the integer is negative, else b.
template <typename I, typename V>
FASTNDSM_HD V select_negative(I sign, V a, V b) {
  if constexpr (detail::kIsPack<V>) {
    return detail::each([](auto i, auto x, auto y) { return select_negative(i, x, y); }, sign, a, b);
  }
#if defined(__AVX2__) && !defined(FASTNDSM_AVX512) && !defined(__CUDACC__)
  if constexpr (std::is_same<V, vec<float, 8>>::value) return (V)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)sign);
  if constexpr (std::is_same<V, vec<double, 4>>::value) return (V)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)sign);
#endif
  return select(sign < 0, a, b);
}

// ---- arithmetic that has no operator ----------------------------------------------------------------------------

template <typename V>
FASTNDSM_HD V fused(V a, V b, V c) {
  if constexpr (detail::kIsPack<V>) return detail::each([](auto x, auto y, auto z) { return fused(x, y, z); }, a, b, c);
#if defined(FASTNDSM_AVX512)
  if constexpr (std::is_same<V, vec<float, 16>>::value) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  if constexpr (std::is_same<V, vec<double, 8>>::value) return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#endif
#if defined(__FMA__) && !defined(__CUDACC__)
  if constexpr (std::is_same<V, vec<float, 8>>::value) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  if constexpr (std::is_same<V, vec<double, 4>>::value) return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#endif
#if defined(__ARM_NEON) && defined(__aarch64__) && !defined(__CUDACC__)
  if constexpr (std::is_same<V, vec<float, 4>>::value) {
    return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  }
  if constexpr (std::is_same<V, vec<double, 2>>::value) {
    return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
  }
#endif
#if defined(__FMA__) || defined(__ARM_NEON) || defined(__CUDACC__)
  if constexpr (std::is_same<V, float>::value) return ::fmaf(a, b, c);
  if constexpr (std::is_same<V, double>::value) return ::fma(a, b, c);
#endif
  return a * b + c;  // a machine without the instruction fuses nothing anywhere
}

template <typename V>
FASTNDSM_HD V fma(V a, V b, V c) {
#if defined(FASTNDSM_FUSES_EXPLICITLY)  // under -ffp-contract=off
  return fused(a, b, c);
#else
  return a * b + c;
#endif
}

// a > b ? a : b, that is b where either is NaN.
template <typename V>
FASTNDSM_HD V max(V a, V b) {
  if constexpr (detail::kIsPack<V>) return detail::each([](auto x, auto y) { return fastndsm::max(x, y); }, a, b);
#if defined(FASTNDSM_AVX512)
  if constexpr (std::is_same<V, vec<float, 16>>::value) return (V)_mm512_max_ps((__m512)a, (__m512)b);
  if constexpr (std::is_same<V, vec<double, 8>>::value) return (V)_mm512_max_pd((__m512d)a, (__m512d)b);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (std::is_same<V, vec<float, 8>>::value) return (V)_mm256_max_ps((__m256)a, (__m256)b);
  if constexpr (std::is_same<V, vec<double, 4>>::value) return (V)_mm256_max_pd((__m256d)a, (__m256d)b);
#endif
  return select(a > b, a, b);
}

template <typename V>
FASTNDSM_HD V sqrt(V x) {
  if constexpr (detail::kIsPack<V>) return detail::each([](auto x) { return fastndsm::sqrt(x); }, x);
#if defined(FASTNDSM_AVX512)
  if constexpr (std::is_same<V, vec<float, 16>>::value) return (V)_mm512_sqrt_ps((__m512)x);
  if constexpr (std::is_same<V, vec<double, 8>>::value) return (V)_mm512_sqrt_pd((__m512d)x);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (std::is_same<V, vec<float, 8>>::value) return (V)_mm256_sqrt_ps((__m256)x);
  if constexpr (std::is_same<V, vec<double, 4>>::value) return (V)_mm256_sqrt_pd((__m256d)x);
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
  if constexpr (std::is_same<V, vec<float, 4>>::value) return (V)_mm_sqrt_ps((__m128)x);
  if constexpr (std::is_same<V, vec<double, 2>>::value) return (V)_mm_sqrt_pd((__m128d)x);
#endif
#if defined(__ARM_NEON) && defined(__aarch64__) && !defined(__CUDACC__)
  if constexpr (std::is_same<V, vec<float, 4>>::value) return (V)vsqrtq_f32((float32x4_t)x);
  if constexpr (std::is_same<V, vec<double, 2>>::value) return (V)vsqrtq_f64((float64x2_t)x);
#endif
  if constexpr (lanes_of<V> == 1) {
    if constexpr (sizeof(V) == 4) {
      return ::sqrtf(x);
    } else {
      return ::sqrt(x);
    }
  } else if constexpr (!detail::kIsPack<V>) {
    V y;
    for (int i = 0; i < lanes_of<V>; ++i) y[i] = fastndsm::sqrt(static_cast<scalar_of<V>>(x[i]));
    return y;
  }
}

// x with its sign turned where the integer is negative.
template <typename I, typename V>
FASTNDSM_HD V flip_sign(I sign, V x) {
  if constexpr (detail::kIsPack<V>) return detail::each([](auto i, auto y) { return flip_sign(i, y); }, sign, x);
  constexpr auto top = static_cast<scalar_of<I>>(uint64_t(1) << (8 * sizeof(scalar_of<I>) - 1));
  return reinterpret<V>(I(reinterpret<I>(x) ^ (sign & top)));
}

// x 2^n for integral n (given as a floating-point vector), right through underflow and overflow; |n| <= 2000 for
// double and 250 for float.
template <typename V>
FASTNDSM_HD V scale_by_power_of_two(V x, V n) {
  if constexpr (detail::kIsPack<V>) return detail::each([](auto x, auto y) { return scale_by_power_of_two(x, y); }, x, n);
#if defined(FASTNDSM_AVX512)
  if constexpr (std::is_same<V, vec<float, 16>>::value) return (V)_mm512_scalef_ps((__m512)x, (__m512)n);
  if constexpr (std::is_same<V, vec<double, 8>>::value) return (V)_mm512_scalef_pd((__m512d)x, (__m512d)n);
#endif
  using I = bits_of<V>;
  constexpr int mantissa = sizeof(scalar_of<V>) == 4 ? 23 : 52;
  constexpr int bias = sizeof(scalar_of<V>) == 4 ? 127 : 1023;
  const I k = convert<I>(n);
  const I half = k >> 1;  // two factors, since 2^n itself may be no normal number
  return x * reinterpret<V>((half + bias) << mantissa) * reinterpret<V>((k - half + bias) << mantissa);
}

// Whether a table of 32 words is looked up by one instruction.
#if defined(FASTNDSM_AVX512)
template <typename V>
constexpr bool kLooksUp = std::is_same<V, vec<int32_t, 16>>::value;

// Lane by lane, word index mod 32 of an aligned table.
template <typename V>
FASTNDSM_HD V look_up(const int32_t* table, V index) {
  return (V)_mm512_permutex2var_epi32(_mm512_load_si512(table), (__m512i)index, _mm512_load_si512(table + 16));
}
#else
template <typename V>
constexpr bool kLooksUp = false;
#endif

// Lane by lane, the 64-bit product of the low 32 bits of a and of b; their high bits are ignored.
template <typename V>
FASTNDSM_HD V mul_low32(V a, V b) {
  static_assert(std::is_same<scalar_of<V>, uint64_t>::value, "mul_low32 takes 64-bit lanes");
  if constexpr (detail::kIsPack<V>) return detail::each([](auto x, auto y) { return mul_low32(x, y); }, a, b);
#if defined(FASTNDSM_AVX512)
  if constexpr (lanes_of<V> == 8) return (V)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (lanes_of<V> == 4) return (V)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
  if constexpr (lanes_of<V> == 2) return (V)_mm_mul_epu32((__m128i)a, (__m128i)b);
#endif
#if defined(__ARM_NEON) && !defined(__CUDACC__)
  if constexpr (lanes_of<V> == 2) return (V)vmull_u32(vmovn_u64((uint64x2_t)a), vmovn_u64((uint64x2_t)b));
#endif
  return (a & uint64_t(0xffffffff)) * (b & uint64_t(0xffffffff));
}

// Lane by lane, the high 32 bits of a in the low 32; the high 32 of the result are arbitrary. A shuffle and no shift:
// it does not compete with multiplications for the same port.
template <typename V>
FASTNDSM_HD V high32(V a) {
  static_assert(std::is_same<scalar_of<V>, uint64_t>::value, "high32 takes 64-bit lanes");
  if constexpr (detail::kIsPack<V>) return detail::each([](auto x) { return high32(x); }, a);
#if defined(FASTNDSM_AVX512)
  if constexpr (lanes_of<V> == 8) return (V)_mm512_shuffle_epi32((__m512i)a, (_MM_PERM_ENUM)0xf5);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (lanes_of<V> == 4) return (V)_mm256_shuffle_epi32((__m256i)a, 0xf5);
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
  if constexpr (lanes_of<V> == 2) return (V)_mm_shuffle_epi32((__m128i)a, 0xf5);
#endif
  return a >> 32;
}

// 32-bit words in the low halves of 64-bit lanes, some in `first` and the others in `second`, in the order that costs least;
// high halves are arbitrary. merge_low32 puts them back in their places, merge_high32 the words of the high halves.
template <typename U>
FASTNDSM_HD void spread_words(U words, vec<uint64_t, lanes_of<U> / 2>& first, vec<uint64_t, lanes_of<U> / 2>& second) {
  using V = vec<uint64_t, lanes_of<U> / 2>;
  if constexpr (detail::kIsPack<U>) {
    constexpr int N = sizeof(U) / sizeof(words.part[0]);
    for (int i = 0; i < N; ++i) spread_words(words.part[i], first.part[i], second.part[i]);
  } else {
#if defined(FASTNDSM_AVX512)
    if constexpr (sizeof(U) == 64) {
      first = (V)_mm512_unpacklo_epi32((__m512i)words, (__m512i)words);
      second = (V)_mm512_unpackhi_epi32((__m512i)words, (__m512i)words);
      return;
    }
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
    if constexpr (sizeof(U) == 32) {
      first = (V)_mm256_unpacklo_epi32((__m256i)words, (__m256i)words);
      second = (V)_mm256_unpackhi_epi32((__m256i)words, (__m256i)words);
      return;
    }
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
    if constexpr (sizeof(U) == 16) {
      first = (V)_mm_unpacklo_epi32((__m128i)words, (__m128i)words);
      second = (V)_mm_unpackhi_epi32((__m128i)words, (__m128i)words);
      return;
    }
#endif
    first = reinterpret<V>(words);  // even and odd ones (little endian)
    second = first >> 32;
  }
}

namespace detail {

// The low (0) or high (1) words of a, then those of b, within each 128 bits.
template <int high, typename V>
FASTNDSM_HD vec<uint32_t, 2 * lanes_of<V>> merge32(V a, V b) {
  using U = vec<uint32_t, 2 * lanes_of<V>>;
  if constexpr (kIsPack<V>) return each([](auto x, auto y) { return merge32<high>(x, y); }, a, b);
  constexpr int order = high ? 0xdd : 0x88;
#if defined(FASTNDSM_AVX512)
  if constexpr (sizeof(V) == 64) return (U)_mm512_shuffle_ps((__m512)a, (__m512)b, order);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (sizeof(V) == 32) return (U)_mm256_shuffle_ps((__m256)a, (__m256)b, order);
#endif
#if defined(__SSE2__) && !defined(__CUDACC__)
  if constexpr (sizeof(V) == 16) return (U)_mm_shuffle_ps((__m128)a, (__m128)b, order);
#endif
  if constexpr (high) return reinterpret<U>((a >> 32) | (b & ~uint64_t(0xffffffff)));
  return reinterpret<U>((a & uint64_t(0xffffffff)) | (b << 32));
}

}  // namespace detail

template <typename V>
FASTNDSM_HD vec<uint32_t, 2 * lanes_of<V>> merge_low32(V a, V b) {
  return detail::merge32<0>(a, b);
}

template <typename V>
FASTNDSM_HD vec<uint32_t, 2 * lanes_of<V>> merge_high32(V a, V b) {
  return detail::merge32<1>(a, b);
}

// Whether a multiplication of 32-bit lanes gives both halves of their products without 64-bit lanes around it.
#if defined(__ARM_NEON) && defined(__aarch64__) && !defined(__CUDACC__)
template <typename U>
constexpr bool kMultipliesWords = lanes_of<U> > 1;

// Lane by lane, the halves of the 64-bit product with a factor.
template <typename U>
FASTNDSM_HD void mul_words(U words, uint32_t factor, U& low, U& high) {
  if constexpr (detail::kIsPack<U>) {
    constexpr int N = sizeof(U) / sizeof(words.part[0]);
    for (int i = 0; i < N; ++i) mul_words(words.part[i], factor, low.part[i], high.part[i]);
  } else if constexpr (lanes_of<U> == 4) {
    const uint32x4_t a = (uint32x4_t)words, m = vdupq_n_u32(factor);
    const uint32x4_t first = vreinterpretq_u32_u64(vmull_u32(vget_low_u32(a), vget_low_u32(m)));
    const uint32x4_t second = vreinterpretq_u32_u64(vmull_high_u32(a, m));
    low = (U)vuzp1q_u32(first, second), high = (U)vuzp2q_u32(first, second);
  } else {
    const uint64x2_t product = vmull_u32((uint32x2_t)words, vdup_n_u32(factor));
    low = (U)vmovn_u64(product), high = (U)vshrn_n_u64(product, 32);
  }
}
#else
template <typename U>
constexpr bool kMultipliesWords = false;
#endif

// ---- across lanes -----------------------------------------------------------------------------------------------

// Whether a comparison holds in any lane.
template <typename M>
FASTNDSM_HD bool any_lane(M mask) {
  if constexpr (lanes_of<M> == 1) {
    return mask;
  } else if constexpr (detail::kIsPack<M>) {
    bool any = false;
    for (const auto& part : mask.part) any |= any_lane(part);
    return any;
  } else {
#if defined(FASTNDSM_AVX512)
    if constexpr (std::is_same<M, vec<int32_t, 16>>::value) return _mm512_movepi32_mask((__m512i)mask) != 0;
    if constexpr (std::is_same<M, vec<int64_t, 8>>::value) return _mm512_movepi64_mask((__m512i)mask) != 0;
#endif
    uint64_t words[sizeof(M) / 8], any = 0;
    std::memcpy(words, &mask, sizeof(M));
    for (uint64_t word : words) any |= word;
    return any != 0;
  }
}

// Bit i: whether lane i of a is at least that of b, or either is NaN.
template <typename V>
FASTNDSM_HD uint32_t lanes_not_below(V a, V b) {
#if defined(FASTNDSM_AVX512)
  if constexpr (std::is_same<V, vec<float, 16>>::value) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_NLT_UQ);
  if constexpr (std::is_same<V, vec<double, 8>>::value) return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_NLT_UQ);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (std::is_same<V, vec<float, 8>>::value)
    return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_NLT_UQ));
  if constexpr (std::is_same<V, vec<double, 4>>::value)
    return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_NLT_UQ));
#endif
  if constexpr (lanes_of<V> == 1) {
    return a < b ? 0 : 1;
  } else if constexpr (detail::kIsPack<V>) {
    constexpr int each = lanes_of<std::remove_reference_t<decltype(a.part[0])>>;
    static_assert(lanes_of<V> <= 32, "a bit a lane");
    uint32_t bits = 0;
    for (int i = 0; i < lanes_of<V> / each; ++i) bits |= lanes_not_below(a.part[i], b.part[i]) << (i * each);
    return bits;
  } else {
    uint32_t bits = 0;
    for (int i = 0; i < lanes_of<V>; ++i) bits |= (a[i] < b[i] ? uint32_t(0) : uint32_t(1)) << i;
    return bits;
  }
}

// Stores i, i + 1, ... for the bits set, side by side, and returns how many; up to W more numbers may be overwritten.
template <int W>
FASTNDSM_HD int store_set_bits(int32_t* to, int32_t i, uint32_t bits) {
#if defined(FASTNDSM_AVX512)
  if constexpr (W == 16) {
    const __m512i all = (__m512i)(vec<int32_t, 16>)(iota<vec<int32_t, 16>>() + i);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all));
    return std::popcount(bits);
  }
  if constexpr (W == 8) {
    const __m256i all = (__m256i)(vec<int32_t, 8>)(iota<vec<int32_t, 8>>() + i);
    _mm256_storeu_si256((__m256i*)to, _mm256_maskz_compress_epi32(static_cast<__mmask8>(bits), all));
    return std::popcount(bits);
  }
#endif
  int n = 0;
  for (; bits; bits &= bits - 1) to[n++] = i + std::countr_zero(bits);
  return n;
}

// Sum of the lanes, by halves: the order depends on the number of lanes alone.
template <typename V>
FASTNDSM_HD scalar_of<V> sum_lanes(V v) {
  if constexpr (lanes_of<V> == 1) {
    return v;
  } else {
    using Half = vec<scalar_of<V>, lanes_of<V> / 2>;
    Half low, high;
    std::memcpy(&low, &v, sizeof(Half));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(Half), sizeof(Half));
    return sum_lanes(static_cast<Half>(low + high));
  }
}

#if !defined(__CUDACC__) && (defined(__clang__) || __GNUC__ >= 12)
namespace detail {

// Lanes i with bit `step` from b, the others from a, each plus the lane that differs in that bit.
template <int step, typename V, std::size_t... i>
FASTNDSM_HD V fold(V a, V b, std::index_sequence<i...>) {
  constexpr int W = lanes_of<V>;
  return __builtin_shufflevector(a, b, int(i & step ? W + i - step : i)...) +
         __builtin_shufflevector(a, b, int(i & step ? W + i : i + step)...);
}

template <int step, int n, typename V>
FASTNDSM_HD V fold_all(V* v) {
  if constexpr (n == 1) {
    return v[0];
  } else {
    FASTNDSM_UNROLL
    for (int i = 0; i < n / 2; ++i) v[i] = fold<step>(v[2 * i], v[2 * i + 1], std::make_index_sequence<lanes_of<V>>());
    return fold_all<2 * step, n / 2>(v);
  }
}

}  // namespace detail
#endif

// Lane i: the sum of the lanes of v[i]; v is spent.
template <typename V>
FASTNDSM_HD V sum_each(V (&v)[lanes_of<V>]) {
  constexpr int W = lanes_of<V>;
  if constexpr (W == 1) {
    return v[0];
  } else {
#if !defined(__CUDACC__) && (defined(__clang__) || __GNUC__ >= 12)
    return detail::fold_all<1, W>(v);
#else
    scalar_of<V> lanes[W];
    for (int i = 0; i < W; ++i) lanes[i] = sum_lanes(v[i]);
    return load<V>(lanes);
#endif
  }
}

template <typename V>
FASTNDSM_HD scalar_of<V> max_lanes(V v) {
  if constexpr (lanes_of<V> == 1) {
    return v;
  } else {
    using Half = vec<scalar_of<V>, lanes_of<V> / 2>;
    Half low, high;
    std::memcpy(&low, &v, sizeof(Half));
    std::memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof(Half), sizeof(Half));
    return max_lanes(fastndsm::max(low, high));
  }
}

}  // namespace fastndsm
