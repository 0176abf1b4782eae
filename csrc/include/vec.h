// Short SIMD vectors behind one header: the same source runs on AVX-512, AVX2, SSE2, NEON and, lane by lane, under nvcc.
//
//   vec<T, W>         W lanes of T (float, double, [u]int32_t, [u]int64_t); vec<T, 1> is T itself, so that code
//                     written for vectors is at the same time the scalar code, on the host and on the device.
//   kLanes<T>         lanes of T that fill one register of the machine this is compiled for (1 under nvcc, and with
//                     FASTNDSM_SCALAR defined).
//   kVectorISA        the name of that instruction set.
//
// Arithmetic, shifts and comparisons are the operators of the language (GCC and clang vector extensions). A comparison
// gives a mask: an integer vector of 0 and -1 of the same lane width, or a bool for one lane; `select` takes either.
// a * b + c becomes one fused multiply-add under -ffp-contract=fast, where the compiler sees fit; `fused` is one always,
// so that what it ends in has the same bits wherever it is inlined.
// Only what the operators cannot say is a function here, and only those functions know an instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define FASTNDSM_HD __host__ __device__ __forceinline__
#define FASTNDSM_UNROLL _Pragma("unroll")
#else
#define FASTNDSM_HD inline __attribute__((always_inline))
#if defined(__clang__)
#define FASTNDSM_UNROLL _Pragma("unroll")
#else
#define FASTNDSM_UNROLL _Pragma("GCC unroll 16")
#endif
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#endif

// Loops that are long in themselves: one copy of each, whoever calls.
#if defined(__CUDACC__)
#define FASTNDSM_OUTLINE __host__ __device__
#else
#define FASTNDSM_OUTLINE __attribute__((noinline))
#endif

namespace fastndsm {

#if defined(__CUDACC__) || defined(FASTNDSM_SCALAR)
constexpr int kVectorBytes = 0;
constexpr const char* kVectorISA = "scalar";
#elif defined(__AVX512F__) && defined(__AVX512DQ__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define FASTNDSM_AVX512 1
constexpr int kVectorBytes = 64;
constexpr const char* kVectorISA = "avx512";
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr const char* kVectorISA = "avx2";
#elif defined(__SSE2__)
constexpr int kVectorBytes = 16;
constexpr const char* kVectorISA = "sse2";
#elif defined(__ARM_NEON)
constexpr int kVectorBytes = 16;
constexpr const char* kVectorISA = "neon";
#else
constexpr int kVectorBytes = 0;
constexpr const char* kVectorISA = "scalar";
#endif

template <typename T>
constexpr int kLanes = kVectorBytes == 0 ? 1 : kVectorBytes / static_cast<int>(sizeof(T));

// Vectors wider than a register: N of them, through every operation in lock step. One vector is a chain of dependent
// instructions; N chains side by side keep the machine busy where one would leave it waiting.
template <typename V, int N>
struct Pack {
  V part[N];
};

namespace detail {

template <typename T, int W, bool wide = (kLanes<T> > 1 && W > kLanes<T>)>
struct VecType {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <typename T>
struct VecType<T, 1, false> {
  using type = T;
};
template <typename T, int W>
struct VecType<T, W, true> {
  using type = Pack<typename VecType<T, kLanes<T>>::type, W / kLanes<T>>;
};

template <typename V>
constexpr bool kIsPack = false;
template <typename V, int N>
constexpr bool kIsPack<Pack<V, N>> = true;

// f of each part.
template <typename F, typename V, int N, typename... Rest>
FASTNDSM_HD auto each(F f, Pack<V, N> first, Rest... rest) {
  Pack<decltype(f(first.part[0], rest.part[0]...)), N> out;
  FASTNDSM_UNROLL
  for (int i = 0; i < N; ++i) out.part[i] = f(first.part[i], rest.part[i]...);
  return out;
}

template <typename V, bool = std::is_arithmetic<V>::value>
struct Traits {  // of a vector
  using scalar = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V&>()[0])>>;
  static constexpr int lanes = sizeof(V) / sizeof(scalar);
};
template <typename V, int N>
struct Traits<Pack<V, N>, false> {
  using scalar = typename Traits<V>::scalar;
  static constexpr int lanes = N * Traits<V>::lanes;
};
template <typename V>
struct Traits<V, true> {  // of a single lane
  using scalar = V;
  static constexpr int lanes = 1;
};

template <typename T>
using SignedBits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

}  // namespace detail

template <typename T, int W>
using vec = typename detail::VecType<T, W>::type;

template <typename V>
using scalar_of = typename detail::Traits<V>::scalar;
template <typename V>
constexpr int lanes_of = detail::Traits<V>::lanes;

// The vector of signed integers with the lanes and the lane width of V, and that of 32-bit words with the lanes of V.
template <typename V>
using bits_of = vec<detail::SignedBits<scalar_of<V>>, lanes_of<V>>;
template <typename V>
using words_of = vec<uint32_t, lanes_of<V>>;

#define FASTNDSM_PACK_OPERATOR(op)                                                             \
  template <typename V, int N>                                                                 \
  FASTNDSM_HD auto operator op(Pack<V, N> a, Pack<V, N> b) {                                   \
    return detail::each([](V x, V y) { return x op y; }, a, b);                                \
  }                                                                                            \
  template <typename V, int N, typename S, std::enable_if_t<std::is_arithmetic<S>::value, int> = 0> \
  FASTNDSM_HD auto operator op(Pack<V, N> a, S b) {                                            \
    return detail::each([b](V x) { return x op b; }, a);                                       \
  }                                                                                            \
  template <typename V, int N, typename S, std::enable_if_t<std::is_arithmetic<S>::value, int> = 0> \
  FASTNDSM_HD auto operator op(S a, Pack<V, N> b) {                                            \
    return detail::each([a](V y) { return a op y; }, b);                                       \
  }
#define FASTNDSM_PACK_ASSIGNMENT(op)                             \
  template <typename V, int N, typename B>                       \
  FASTNDSM_HD Pack<V, N>& operator op##=(Pack<V, N>& a, B b) {   \
    return a = a op b;                                           \
  }
FASTNDSM_PACK_OPERATOR(+)
FASTNDSM_PACK_OPERATOR(-)
FASTNDSM_PACK_OPERATOR(*)
FASTNDSM_PACK_OPERATOR(/)
FASTNDSM_PACK_OPERATOR(&)
FASTNDSM_PACK_OPERATOR(|)
FASTNDSM_PACK_OPERATOR(^)
FASTNDSM_PACK_OPERATOR(<<)
FASTNDSM_PACK_OPERATOR(>>)
FASTNDSM_PACK_OPERATOR(<)
FASTNDSM_PACK_OPERATOR(>)
FASTNDSM_PACK_OPERATOR(>=)
FASTNDSM_PACK_OPERATOR(==)
FASTNDSM_PACK_OPERATOR(!=)
FASTNDSM_PACK_ASSIGNMENT(+)
FASTNDSM_PACK_ASSIGNMENT(-)
FASTNDSM_PACK_ASSIGNMENT(*)
#undef FASTNDSM_PACK_OPERATOR
#undef FASTNDSM_PACK_ASSIGNMENT

template <typename V, int N>
FASTNDSM_HD Pack<V, N> operator-(Pack<V, N> a) {
  return detail::each([](V x) { return V(-x); }, a);
}

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
    V v;
    for (int i = 0; i < lanes_of<V>; ++i) v[i] = static_cast<scalar_of<V>>(i);
    return v;
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

// ---- arithmetic that has no operator ----------------------------------------------------------------------------

template <typename V>
FASTNDSM_HD V fma(V a, V b, V c) {
  return a * b + c;
}

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

// The 32-bit words of the low, or of the high halves of 64-bit lanes, even (from a) and odd (from b) in turn.
template <typename V>
FASTNDSM_HD vec<uint32_t, 2 * lanes_of<V>> merge_low32(V a, V b) {
  using U = vec<uint32_t, 2 * lanes_of<V>>;
  if constexpr (detail::kIsPack<V>) return detail::each([](auto x, auto y) { return merge_low32(x, y); }, a, b);
#if defined(FASTNDSM_AVX512)
  if constexpr (lanes_of<V> == 8) return (U)_mm512_mask_shuffle_epi32((__m512i)a, 0xaaaa, (__m512i)b, (_MM_PERM_ENUM)0xa0);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (lanes_of<V> == 4) return (U)_mm256_blend_epi32((__m256i)a, _mm256_slli_epi64((__m256i)b, 32), 0xaa);
#endif
  return reinterpret<U>((a & uint64_t(0xffffffff)) | (b << 32));
}

template <typename V>
FASTNDSM_HD vec<uint32_t, 2 * lanes_of<V>> merge_high32(V a, V b) {
  using U = vec<uint32_t, 2 * lanes_of<V>>;
  if constexpr (detail::kIsPack<V>) return detail::each([](auto x, auto y) { return merge_high32(x, y); }, a, b);
#if defined(FASTNDSM_AVX512)
  if constexpr (lanes_of<V> == 8) return (U)_mm512_mask_shuffle_epi32((__m512i)b, 0x5555, (__m512i)a, (_MM_PERM_ENUM)0xf5);
#endif
#if defined(__AVX2__) && !defined(__CUDACC__)
  if constexpr (lanes_of<V> == 4) return (U)_mm256_blend_epi32(_mm256_srli_epi64((__m256i)a, 32), (__m256i)b, 0xaa);
#endif
  return reinterpret<U>((a >> 32) | (b & ~uint64_t(0xffffffff)));
}

// ---- interleaved stores -----------------------------------------------------------------------------------------

// Storing P = 2 or 4 vectors so that lane by lane their values lie side by side is cheap on x86 only in a permuted
// order of the lanes: lane l comes out in place interleaved_place<V, P>(l).
template <typename V, int P>
constexpr int interleaved_place(int l) {
#if defined(__SSE2__) && !defined(__CUDACC__)
  constexpr int W = lanes_of<V>;
  if constexpr (sizeof(scalar_of<V>) == 4 && W >= 4) {
    const int i = l % 4, quarter = l / 4;
    return P == 4 ? W / 4 * i + quarter : (i < 2 ? 0 : W / 2) + 2 * quarter + i % 2;
  }
#endif
  return l;
}

#if defined(__SSE2__) && !defined(__CUDACC__)
namespace detail {

// Within each 128 bits: (a0, b0, a1, b1) and (a2, b2, a3, b3).
template <typename V>
FASTNDSM_HD void unpack32(V a, V b, V& low, V& high) {
#if defined(FASTNDSM_AVX512)
  if constexpr (sizeof(V) == 64) {
    low = (V)_mm512_unpacklo_ps((__m512)a, (__m512)b);
    high = (V)_mm512_unpackhi_ps((__m512)a, (__m512)b);
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    low = (V)_mm256_unpacklo_ps((__m256)a, (__m256)b);
    high = (V)_mm256_unpackhi_ps((__m256)a, (__m256)b);
    return;
  }
#endif
  if constexpr (sizeof(V) == 16) {
    low = (V)_mm_unpacklo_ps((__m128)a, (__m128)b);
    high = (V)_mm_unpackhi_ps((__m128)a, (__m128)b);
  }
}

template <typename V>
FASTNDSM_HD void unpack64(V a, V b, V& low, V& high) {
#if defined(FASTNDSM_AVX512)
  if constexpr (sizeof(V) == 64) {
    low = (V)_mm512_unpacklo_pd((__m512d)a, (__m512d)b);
    high = (V)_mm512_unpackhi_pd((__m512d)a, (__m512d)b);
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) {
    low = (V)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
    high = (V)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
    return;
  }
#endif
  if constexpr (sizeof(V) == 16) {
    low = (V)_mm_unpacklo_pd((__m128d)a, (__m128d)b);
    high = (V)_mm_unpackhi_pd((__m128d)a, (__m128d)b);
  }
}

}  // namespace detail
#endif

// p[P place(l) + i] = n[i][l].
template <typename V, int P>
FASTNDSM_HD void store_interleaved(scalar_of<V>* p, const V (&n)[P]) {
  static_assert(P == 2 || P == 4, "two or four vectors");
  constexpr int W = lanes_of<V>;
#if defined(__SSE2__) && !defined(__CUDACC__)
  if constexpr (sizeof(scalar_of<V>) == 4 && W >= 4) {
    V ab_low, ab_high;
    detail::unpack32(n[0], n[1], ab_low, ab_high);
    if constexpr (P == 2) {
      store(p, ab_low);
      store(p + W, ab_high);
    } else {
      V cd_low, cd_high, row[4];
      detail::unpack32(n[2], n[3], cd_low, cd_high);
      detail::unpack64(ab_low, cd_low, row[0], row[1]);
      detail::unpack64(ab_high, cd_high, row[2], row[3]);
      for (int i = 0; i < 4; ++i) store(p + W * i, row[i]);
    }
    return;
  }
#endif
  scalar_of<V> values[P][W];
  for (int i = 0; i < P; ++i) store(values[i], n[i]);
  for (int l = 0; l < W; ++l) {
    for (int i = 0; i < P; ++i) p[P * l + i] = values[i][l];
  }
}

// ---- across lanes -----------------------------------------------------------------------------------------------

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
