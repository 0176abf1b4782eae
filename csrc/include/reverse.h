// A step of the reverse process, from t_{n+1} to t_n, with what the network gave held or extrapolated along its slope.
//
//   y_n = A e^-x y_{n+1} + f(x) [B grad log pi(y_{n+1}) + C (held + X slope)] + S f(2 x)^1/2 xi,   f(x) = (1 - e^-x) / x
//
// x = rate R with a rate of the sample's own, at least 0, and 0 without one. xi are the normals of the reverse stream at step
// n. Where B = 0 the mixture is not evaluated, and where S = 0 nothing is drawn; zeros take their places.
#pragma once

#include "vecmath.h"

namespace fastndsm {

constexpr uint32_t kReverseStream = 2;

// A step's coefficients of one sample, or of the samples in the lanes of C.
template <typename C>
struct SampleStep {
  C decay, drift, weight, std;
  scalar_of<C> position;

  template <typename V>
  FASTNDSM_HD V network(V held, V slope) const {
    return fused(splat<V>(position), slope, held);
  }

  template <typename V>
  FASTNDSM_HD V next(V y, V score, V network, V noise) const {
    return fused(wide<V>(decay), y, fused(wide<V>(drift), score, fused(wide<V>(weight), network, V(wide<V>(std) * noise))));
  }

 private:
  template <typename V>
  FASTNDSM_HD static V wide(C value) {
    if constexpr (std::is_same<C, V>::value) {
      return value;
    } else {
      return splat<V>(value);
    }
  }
};

template <typename S>
struct ReverseStep {
  S decay, drift, weight, position, std, rate;  // A, B, C, X, S, R

  template <typename C = S>
  FASTNDSM_HD SampleStep<C> unrated() const {
    return {splat<C>(decay), splat<C>(drift), splat<C>(weight), splat<C>(std), position};
  }

  // With the rates of samples.
  template <typename C>
  FASTNDSM_HD SampleStep<C> rated(C own) const {
    constexpr bool kSingle = sizeof(S) == 4;
    const C x = rate * own, e = exp(C(-x));
    // below, the difference from 1 loses digits that the series has
    const auto small = x < S(kSingle ? 0.5 : 0.03125);
    const C series =
        detail::polynomial(x, 1.0, -1.0 / 2, 1.0 / 6, -1.0 / 24, 1.0 / 120, -1.0 / 720, 1.0 / 5040, -1.0 / 40320);
    const C f = select(small, series, C((S(1) - e) / select(small, splat<C>(S(1)), x)));
    const C twice = S(0.5) * f * (S(1) + e);  // f(2 x)
    return {C(decay * e), C(drift * f), C(weight * f), C(std * sqrt(twice)), position};
  }
};

template <typename S>
struct ReverseTable {
  const S* coefficients;  // [6, N], rows A, B, C, X, S, R
  int64_t n_steps;

  FASTNDSM_HD ReverseStep<S> operator[](int64_t n) const {
    const S* c = coefficients + n;
    return {c[0], c[n_steps], c[2 * n_steps], c[3 * n_steps], c[4 * n_steps], c[5 * n_steps]};
  }
};

// What is made of an evaluation of the network: a row of the sampler's table, 8 numbers.
template <typename S>
struct Evaluation {
  S reference, output;  // what they are multiplied by in the residual r
  S of_y, of_reference, of_residual;  // in what is held, but for rate y
  S inverse_gap, ratio, limit;  // of the slope, and of the rate

  template <typename V>
  FASTNDSM_HD V residual(V score, V network) const {
    return fused(splat<V>(reference), score, V(output * network));
  }

  // From sum_j r_j s_j over d dimensions.
  template <typename V>
  FASTNDSM_HD V rate(V sum, int64_t d) const {
    const V mean = sum * (S(1) / S(d)), positive = select(mean > S(0), mean, splat<V>(S(0)));
    return select(positive < limit, positive, splat<V>(limit));
  }

  template <typename V>
  FASTNDSM_HD V current(V y, V score, V r) const {
    return fused(splat<V>(of_y), y, fused(splat<V>(of_reference), score, V(of_residual * r)));
  }

  template <typename V>
  FASTNDSM_HD V slope(V y, V current, V before, V rate_before) const {
    return inverse_gap * fused(splat<V>(-ratio), fused(V(-rate_before), y, before), current);
  }
};

}  // namespace fastndsm
