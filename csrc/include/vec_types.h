// The vector types of vec.h: one register of lanes, or a Pack of several in lock step.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__CUDACC__)
#define FASTNDSM_HD __host__ __device__ __forceinline__
#define FASTNDSM_INLINE
#define FASTNDSM_UNROLL _Pragma("unroll")
#else
#define FASTNDSM_HD inline __attribute__((always_inline))
#define FASTNDSM_INLINE __attribute__((always_inline))  // of a lambda
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

// Loops over several chains of dependent instructions, whose order of instructions GCC is to mix before it gives out registers.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && defined(__OPTIMIZE__)
#define FASTNDSM_MIXED __attribute__((noinline, optimize("schedule-insns", "sched-pressure")))
#else
#define FASTNDSM_MIXED FASTNDSM_OUTLINE
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

// Vector registers of the machine. MIXED_FEW is MIXED where there are few: there GCC's own order was measured to be behind.
#if defined(FASTNDSM_AVX512) || (defined(__ARM_NEON) && defined(__aarch64__))
constexpr int kRegisters = 32;
#define FASTNDSM_MIXED_FEW
#else
constexpr int kRegisters = 16;
#define FASTNDSM_MIXED_FEW FASTNDSM_MIXED
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

#define FASTNDSM_PACK_OPERATOR(op)                                                                  \
  template <typename V, int N>                                                                      \
  FASTNDSM_HD auto operator op(Pack<V, N> a, Pack<V, N> b) {                                        \
    return detail::each([](V x, V y) { return x op y; }, a, b);                                     \
  }                                                                                                 \
  template <typename V, int N, typename S, std::enable_if_t<std::is_arithmetic<S>::value, int> = 0> \
  FASTNDSM_HD auto operator op(Pack<V, N> a, S b) {                                                 \
    return detail::each([b](V x) { return x op b; }, a);                                            \
  }                                                                                                 \
  template <typename V, int N, typename S, std::enable_if_t<std::is_arithmetic<S>::value, int> = 0> \
  FASTNDSM_HD auto operator op(S a, Pack<V, N> b) {                                                 \
    return detail::each([a](V y) { return a op y; }, b);                                            \
  }
#define FASTNDSM_PACK_ASSIGNMENT(op)                              \
  template <typename V, int N, typename B>                        \
  FASTNDSM_HD Pack<V, N>& operator op## = (Pack<V, N> & a, B b) { \
    return a = a op b;                                            \
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
template <typename V, int N>
FASTNDSM_HD auto operator!(Pack<V, N> mask) {
  return detail::each([](V x) { return !x; }, mask);
}

}  // namespace fastndsm
