// A step of the reverse process, from t_{n+1} to t_n, with what the network gave held or extrapolated along its slope.
//
//   y_n = A_n y_{n+1} + B_n grad log pi(y_{n+1}) + C_n (held + X_n slope) + S_n xi_n
//
// xi_n are the normals of the reverse stream at step n. Where B_n = 0 the mixture is not evaluated, and where S_n = 0 nothing
// is drawn; zeros take their places.
#pragma once

#include "vec.h"

namespace fastndsm {

constexpr uint32_t kReverseStream = 2;

template <typename S>
struct ReverseStep {
  S decay, drift, weight, position, std;  // A, B, C, X, S

  template <typename V>
  FASTNDSM_HD V network(V held, V slope) const {
    return fused(splat<V>(position), slope, held);
  }

  template <typename V>
  FASTNDSM_HD V next(V y, V score, V network, V noise) const {
    return fused(splat<V>(decay), y, fused(splat<V>(drift), score, fused(splat<V>(weight), network, V(std * noise))));
  }
};

template <typename S>
struct ReverseTable {
  const S* coefficients;  // [5, N], rows A, B, C, X, S
  int64_t n_steps;

  FASTNDSM_HD ReverseStep<S> operator[](int64_t n) const {
    const S* c = coefficients + n;
    return {c[0], c[n_steps], c[2 * n_steps], c[3 * n_steps], c[4 * n_steps]};
  }
};

}  // namespace fastndsm
