// Some lanes of many vectors, each laid out in memory one value after the other.
#pragma once

#include <algorithm>

#include "vec.h"

namespace fastndsm {

// N lanes, a power of two: as many vectors as a register has lanes are read at once, the lanes asked for picked out of pairs
// of them, then pairs of pairs and so on joined: 2 W instructions for W / 2 lanes of W vectors, where one value after the
// other takes as many as there are values. Without a register to pick by, it is one after the other.
template <typename V, int N>
class Columns {
  using S = scalar_of<V>;
  static constexpr int W = lanes_of<V>;
#if defined(FASTNDSM_AVX512)
  static constexpr bool kPicks = sizeof(V) == 64;
#elif defined(__AVX2__) && !defined(__CUDACC__) && !defined(FASTNDSM_SCALAR)
  static constexpr bool kPicks = sizeof(V) == 32 && sizeof(S) == 4;
#else
  static constexpr bool kPicks = false;
#endif

 public:
  explicit Columns(const int* lanes) {
    std::copy_n(lanes, N, lanes_);
    for (int i = 0; i < W; ++i) order_[i] = lanes[i / 2 % N] + i % 2 * W;
  }

  // to[i stride + j] = lane i of from[j], j = 0..count-1.
  void lay(const V* from, int64_t count, S* to, int64_t stride) const {
    int64_t j = 0;
    if constexpr (kPicks) {
      for (; j + W <= count; j += W) {
        V v[W / 2];
        FASTNDSM_UNROLL
        for (int i = 0; i < W / 2; ++i) v[i] = pick(from[j + 2 * i], from[j + 2 * i + 1]);
        join<2, W / 2, 1>(v);
        FASTNDSM_UNROLL
        for (int i = 0; i < N; ++i) store(to + i * stride + j, v[i]);
      }
    }
    for (; j < count; ++j) {
      const S* const values = reinterpret_cast<const S*>(from + j);
      for (int i = 0; i < N; ++i) to[i * stride + j] = values[lanes_[i]];
    }
  }

 private:
  using Order = vec<std::conditional_t<sizeof(S) == 4, int32_t, int64_t>, W>;

  // Of two vectors a value each of every lane: (a, b), (a, b), ...
  V pick(V a, V b) const {
#if defined(FASTNDSM_AVX512)
    if constexpr (sizeof(S) == 4) {
      return (V)_mm512_permutex2var_ps((__m512)a, (__m512i)load<Order>(order_), (__m512)b);
    } else {
      return (V)_mm512_permutex2var_pd((__m512d)a, (__m512i)load<Order>(order_), (__m512d)b);
    }
#elif defined(__AVX2__) && !defined(__CUDACC__) && !defined(FASTNDSM_SCALAR)
    const __m256i order = (__m256i)load<Order>(order_);  // the lower bits alone count
    return (V)_mm256_blend_ps(_mm256_permutevar8x32_ps((__m256)a, order), _mm256_permutevar8x32_ps((__m256)b, order), 0xaa);
#else
    return a;
#endif
  }

  // `groups` times `each` vectors, which have `unit` values of a lane side by side, to one group of N.
  template <int unit, int groups, int each>
  static void join(V* v) {
    if constexpr (groups > 1) {
      constexpr bool both = 2 * unit * N > W * each;  // the lanes take twice as many vectors
      V joined[groups / 2 * (both ? 2 * each : each)];
      FASTNDSM_UNROLL
      for (int g = 0; g < groups / 2; ++g) {
        FASTNDSM_UNROLL
        for (int i = 0; i < each; ++i) {
          const V a = v[2 * g * each + i], b = v[(2 * g + 1) * each + i];
          if constexpr (both) {
            joined[2 * (g * each + i)] = side_by_side<unit, 0>(a, b, std::make_index_sequence<W>());
            joined[2 * (g * each + i) + 1] = side_by_side<unit, W / 2>(a, b, std::make_index_sequence<W>());
          } else {
            joined[g * each + i] = side_by_side<unit, 0>(a, b, std::make_index_sequence<W>());
          }
        }
      }
      std::copy_n(joined, groups / 2 * (both ? 2 * each : each), v);
      join<2 * unit, groups / 2, both ? 2 * each : each>(v);
    }
  }

  // Units of values of a and b in turn, from a place on.
  template <int unit, int from, std::size_t... i>
  static V side_by_side(V a, V b, std::index_sequence<i...>) {
    return __builtin_shufflevector(a, b, int(from + i / (2 * unit) * unit + i % unit + (i / unit % 2) * W)...);
  }

  int lanes_[N];
  scalar_of<Order> order_[W];
};

}  // namespace fastndsm
