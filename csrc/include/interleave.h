// Stores of vectors whose values lie side by side in memory, lane by lane.
#pragma once

#include "vec.h"

namespace fastndsm {

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

}  // namespace fastndsm
