// What a tile reads of a mixture, where it keeps its weights, and their exponential.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "vecmath.h"

namespace fastndsm {

enum class Covariance { spherical, diag, tied, full };

// body(kind) with the kind as a constant.
template <typename Body>
void by_kind(Covariance kind, const Body& body) {
  switch (kind) {
    case Covariance::spherical: return body(std::integral_constant<Covariance, Covariance::spherical>{});
    case Covariance::diag: return body(std::integral_constant<Covariance, Covariance::diag>{});
    case Covariance::tied: return body(std::integral_constant<Covariance, Covariance::tied>{});
    case Covariance::full: return body(std::integral_constant<Covariance, Covariance::full>{});
  }
}

constexpr int kResident = 256;  // components whose weights a tile keeps
constexpr int kBlockK = 8;      // components a pass holds in registers
constexpr double kLog2e = 1.44269504088896340736;
constexpr double kRootScale = 0.84932180028801904272;  // sqrt(log2(e) / 2)

// Where running maxima of logits start: it stays there where every logit overflows.
template <typename V>
constexpr scalar_of<V> kLowestLogit = scalar_of<V>(detail::kSingle<V> ? -3.0e38 : -1.0e308);

// A component whose weight is below 2^-kNearCut of a sample's largest counts as 0 where components are listed: low enough that
// 60,000 of them, with a thousand times the square of the others' gradients, are lost in rounding.
template <typename S>
constexpr S kNearCut = S(sizeof(S) == 4 ? 40 : 80);

// What is made of a mixture's parameters before anything is computed with them.
template <typename S>
FASTNDSM_HD S packed_log_scale(S log_scale) {
  return S(log_scale * kLog2e);
}
template <typename S>
FASTNDSM_HD S packed_root(S precision) {
  return S(fastndsm::sqrt(precision) * kRootScale);
}
template <typename S>
FASTNDSM_HD S packed_shift(S root, S mean) {
  return -root * mean;
}
template <typename S>
FASTNDSM_HD S packed_pull(S precision, S mean) {
  return precision * mean;
}

// The mean of n rows [n, d].
template <typename S>
std::vector<S> mean_of_rows(const S* rows, int64_t n, int64_t d) {
  std::vector<double> sum(d);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < d; ++j) sum[j] += double(rows[i * d + j]);
  }
  std::vector<S> mean;
  for (const double total : sum) mean.push_back(S(total / double(n)));
  return mean;
}

template <typename S>
class NearComponents;

// Number: S, or a vector that has it in each lane.
template <typename S, typename Number = S>
struct MixtureView {
  Covariance kind;
  int64_t n_components, dim;
  const Number* means;  // [K, d]
  const Number* precisions;  // [K], [K, d], [d, d] or [K, d, d]
  const S* log_scale;  // [K], in units of log 2
  const Number* roots;  // diag: sqrt(P) kRootScale [K, d], so that squares are in units of log 2
  const Number* shifts;  // diag: -roots m [K, d]
  const Number* pulls;  // diag, tied: P m [K, d]
  const S* metric;  // spherical, diag: sqrt(max_k P_k) kRootScale [1] or [d]
  S metric_norm;  // root of the sum of its squares over dimensions
  const NearComponents<S>* near = nullptr;  // of many components (near.h), or null
};

// 2^x for x <= 0, at least 2^-100 (2^-160 in double), so that no product of weights is a slow denormal number. What that adds
// to a sum is below its rounding even where a far, narrow component multiplies it by the square of a huge g. NaN stays NaN.
template <typename V>
FASTNDSM_HD V exp2_nonpositive(V x) {
  constexpr auto low = scalar_of<V>(detail::kSingle<V> ? -100 : -160);
  x = fastndsm::max(splat<V>(low), x);
#if defined(FASTNDSM_AVX512)
  if constexpr (detail::kIsPack<V>) {
    return detail::each([](auto part) { return exp2_nonpositive(part); }, x);
  } else if constexpr (kLooksUp<bits_of<V>>) {
    return detail::exp2_by_table(x);
  }
#endif
  return detail::exp2_normal(x);
}

// Per-tile scratch, in vectors: `vectors(dim, ...)` of them.
template <typename V>
struct MixtureScratch {
  V* weights;  // [min(K, kResident)]
  V* products;  // the same
  V* a;  // [d] each: sums over components of weights and products with pulls and precisions
  V* r;
  V* b;
  V* s;
  V* u;  // [d] P x, P z (tied), or the current component's (full)
  V* w;

  static int64_t vectors(int64_t n_components, int64_t dim) {
    return 2 * std::min<int64_t>(n_components, kResident) + 6 * dim;
  }
  MixtureScratch() = default;
  MixtureScratch(V* base, int64_t n_components, int64_t dim) {
    const int64_t k = std::min<int64_t>(n_components, kResident);
    weights = base, products = base + k, a = base + 2 * k;
    r = a + dim, b = r + dim, s = b + dim, u = s + dim, w = u + dim;
  }
};

}  // namespace fastndsm
