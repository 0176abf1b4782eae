// The per-sample losses and their gradients, one row at a time.
//
//   plain            1/2 |s|^2 + z . s / sigma
//   control_variate  1/2 |s|^2 + z . (s - h) / sigma
//   antithetic       1/4 (|s+|^2 + |s-|^2) + 1/2 z . (s+ - s-) / sigma
//   dsm              1/2 |s - target|^2
#pragma once

#include "vec.h"

namespace fastndsm {

enum class Estimator { plain, control_variate, antithetic };

// sum_j term(j), where term<V>(j) loads lanes j, j + 1, ...: four vectors of partial sums, then the rest one by one.
template <typename S, typename Term>
FASTNDSM_HD S sum_row(int64_t d, const Term& term) {
  constexpr int W = kLanes<S>;
  using V = vec<S, W>;
  V sum[4] = {V{}, V{}, V{}, V{}};
  int64_t j = 0;
  for (; j + 4 * W <= d; j += 4 * W) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) sum[i] += term(j + i * W, V{});
  }
  for (; j + W <= d; j += W) sum[0] += term(j, V{});
  S rest = 0;
  for (; j < d; ++j) rest += term(j, S(0));
  return sum_lanes(V((sum[0] + sum[1]) + (sum[2] + sum[3]))) + rest;
}

// Whether rows of results that start here can be streamed.
template <typename S>
FASTNDSM_HD bool streams(const S* row) {
  return kVectorBytes > 0 && reinterpret_cast<uintptr_t>(row) % (kVectorBytes > 0 ? kVectorBytes : 1) == 0;
}

template <bool streamed, typename V>
FASTNDSM_HD void put(scalar_of<V>* p, V v) {
  if constexpr (streamed && lanes_of<V> > 1) {
    stream(p, v);
  } else {
    store(p, v);
  }
}

// to[j] = term(j) for every j.
template <typename S, typename Term>
FASTNDSM_HD void map_row(int64_t d, const Term& term) {
  constexpr int W = kLanes<S>;
  int64_t j = 0;
  for (; j + W <= d; j += W) term(j, vec<S, W>{});
  for (; j < d; ++j) term(j, S(0));
}

template <typename S>
FASTNDSM_HD S ndsm_row(Estimator estimator, const S* first, const S* second, const S* z, S inverse_std, int64_t d) {
  if (estimator == Estimator::plain) {
    return sum_row<S>(d, [=](int64_t j, auto lane) {
      using V = decltype(lane);
      const V s = load<V>(first + j);
      return V(s * fused(splat<V>(S(0.5)), s, V(inverse_std * load<V>(z + j))));
    });
  }
  if (estimator == Estimator::control_variate) {
    return sum_row<S>(d, [=](int64_t j, auto lane) {
      using V = decltype(lane);
      const V s = load<V>(first + j);
      return fused(V(S(0.5) * s), s, V(inverse_std * load<V>(z + j) * (s - load<V>(second + j))));
    });
  }
  return sum_row<S>(d, [=](int64_t j, auto lane) {
    using V = decltype(lane);
    const V plus = load<V>(first + j), minus = load<V>(second + j);
    const V along = S(0.5) * inverse_std * load<V>(z + j) * (plus - minus);
    return fused(splat<V>(S(0.25)), fused(plus, plus, V(minus * minus)), along);
  });
}

// Streamed, the rows to_first and to_second (of two estimators) are aligned.
template <bool streamed = false, typename S>
FASTNDSM_HD void ndsm_row_backward(Estimator estimator, S grad, const S* first, const S* second, const S* z, S inverse_std,
                                   int64_t d, S* to_first, S* to_second) {
  map_row<S>(d, [=](int64_t j, auto lane) {
    using V = decltype(lane);
    const V noise = grad * inverse_std * load<V>(z + j);
    const V to = fused(splat<V>(grad), load<V>(first + j), noise);
    if (estimator == Estimator::antithetic) {
      put<streamed>(to_first + j, V(S(0.5) * to));
      put<streamed>(to_second + j, V(S(0.5) * fused(splat<V>(grad), load<V>(second + j), V(-noise))));
    } else {
      put<streamed>(to_first + j, to);
      if (estimator == Estimator::control_variate) put<streamed>(to_second + j, V(-noise));
    }
  });
}

template <typename S>
FASTNDSM_HD S dsm_row(const S* score, const S* target, int64_t d) {
  return sum_row<S>(d, [=](int64_t j, auto lane) {
    using V = decltype(lane);
    const V difference = load<V>(score + j) - load<V>(target + j);
    return V(S(0.5) * difference * difference);
  });
}

template <bool streamed = false, typename S>
FASTNDSM_HD void dsm_row_backward(S grad, const S* score, const S* target, int64_t d, S* to) {
  map_row<S>(d, [=](int64_t j, auto lane) {
    using V = decltype(lane);
    put<streamed>(to + j, V(grad * (load<V>(score + j) - load<V>(target + j))));
  });
}

}  // namespace fastndsm
