// How the parameters of a mixture lie in the block of memory that a GPU's kernels read, dimensions padded with zeros:
//
//   spherical    means [K, D], precisions [K], log_scale [K]
//   diag         roots, shifts, pulls, precisions, each [K, D], log_scale [K]; see MixtureView
//   tied, full   means [K, D], precisions [1 or K, D, D], log_scale [K]
//
// log_scale is in units of log 2. K is padded to whole groups of four (spherical, diag) with log_scale kNeverChosen and zeros.
// `parameter` says what each number of the block is, in terms of a mixture's tensors.
#pragma once

#include "registers.h"

namespace fastndsm {

template <Covariance kind>
FASTNDSM_HD int padded_components(int n) {
  return (n + kComponents<kind> - 1) / kComponents<kind> * kComponents<kind>;
}

template <Covariance kind>
FASTNDSM_HD int64_t block_size(int n_components, int D, bool tied) {
  const int64_t n = padded_components<kind>(n_components), size = n * D;
  if constexpr (kind == Covariance::spherical) return size + 2 * n;
  if constexpr (kind == Covariance::diag) return 4 * size + n;
  return size + (tied ? D : size) * D + n;
}

// A mixture's own tensors: means [K, d], precisions [K], [K, d], [d, d] (tied) or [K, d, d], log_scale [K].
template <typename S>
struct MixtureTensors {
  int n_components, dim;
  bool tied;
  const S *means, *precisions, *log_scale;
};

// Number i of the block of dimension D.
template <Covariance kind, typename S>
FASTNDSM_HD S parameter(const MixtureTensors<S>& m, int D, int64_t i) {
  const int64_t n = padded_components<kind>(m.n_components), size = n * D;
  constexpr int kArrays = kind == Covariance::diag ? 4 : 1;  // [n, D]
  if (i < kArrays * size) {
    const int64_t k = i % size / D, j = i % D, at = k * m.dim + j;
    if (k >= m.n_components || j >= m.dim) return S(0);
    if constexpr (kind != Covariance::diag) return m.means[at];
    const S precision = m.precisions[at];
    const int64_t array = i / size;
    if (array == 0) return packed_root(precision);
    if (array == 1) return packed_shift(packed_root(precision), m.means[at]);
    return array == 2 ? packed_pull(precision, m.means[at]) : precision;
  }
  i -= kArrays * size;
  if constexpr (kind == Covariance::spherical) {
    if (i < n) return i < m.n_components ? m.precisions[i] : S(0);
    i -= n;
  } else if constexpr (kind == Covariance::full) {
    const int64_t square = int64_t(D) * D, matrices = (m.tied ? 1 : n) * square;
    if (i < matrices) {
      const int64_t row = i % square / D, column = i % D;
      return row < m.dim && column < m.dim ? m.precisions[(i / square * m.dim + row) * m.dim + column] : S(0);
    }
    i -= matrices;
  }
  return i < m.n_components ? packed_log_scale(m.log_scale[i]) : S(kNeverChosen);
}

template <Covariance kind, typename S>
FASTNDSM_HD RegisterMixture<S> register_mixture(const S* block, int n_components, int D, bool tied) {
  const int n = padded_components<kind>(n_components), size = n * D;
  if constexpr (kind == Covariance::spherical) {
    return {n, block, nullptr, nullptr, nullptr, block + size, 0, block + size + n};
  } else if constexpr (kind == Covariance::diag) {
    return {n, nullptr, block, block + size, block + 2 * size, block + 3 * size, 0, block + 4 * size};
  } else {
    const int stride = tied ? 0 : D * D;
    return {n, block, nullptr, nullptr, nullptr, block + size, stride, block + size + (tied ? D * D : n * D * D)};
  }
}

}  // namespace fastndsm
