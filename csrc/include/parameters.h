// How the parameters of a mixture lie in the block of memory that a GPU's kernel reads:
//
//   spherical    means [K, d], precisions [K], log_scale [K]
//   diag         roots, shifts, pulls, precisions, each [K, d], log_scale [K]; see MixtureView
//   tied, full   means [K, d], precisions [1 or K, d, d], log_scale [K]
//
// log_scale is in units of log 2. `parameter` says what each number of the block is, in terms of a mixture's tensors.
#pragma once

#include "registers.h"

namespace fastndsm {

// The block as a kernel reads it; tied precisions have a stride of 0.
template <typename S>
struct RegisterMixture {
  int n_components;
  const S* means;  // [K, D] spherical, full
  const S* roots;  // [K, D] diag, as in MixtureView
  const S* shifts;
  const S* pulls;
  const S* precisions;  // [K], [K, D] or [K or 1, D, D]
  int precision_stride;  // of full ones
  const S* log_scale;  // [K], in units of log 2
};

template <Covariance kind>
FASTNDSM_HD int64_t block_size(int64_t n, int64_t d, bool tied) {
  if constexpr (kind == Covariance::spherical) return n * d + 2 * n;
  if constexpr (kind == Covariance::diag) return 4 * n * d + n;
  return n * d + (tied ? d : n * d) * d + n;
}

// A mixture's own tensors: means [K, d], precisions [K], [K, d], [d, d] (tied) or [K, d, d], log_scale [K].
template <typename S>
struct MixtureTensors {
  int n_components, dim;
  bool tied;
  const S *means, *precisions, *log_scale;
};

// Number i of the block.
template <Covariance kind, typename S>
FASTNDSM_HD S parameter(const MixtureTensors<S>& m, int64_t i) {
  const int64_t size = int64_t(m.n_components) * m.dim;
  if constexpr (kind == Covariance::diag) {
    if (i >= 4 * size) return packed_log_scale(m.log_scale[i - 4 * size]);
    const int64_t at = i % size, array = i / size;
    const S precision = m.precisions[at];
    if (array == 0) return packed_root(precision);
    if (array == 1) return packed_shift(packed_root(precision), m.means[at]);
    return array == 2 ? packed_pull(precision, m.means[at]) : precision;
  } else {
    if (i < size) return m.means[i];
    const int64_t others = block_size<kind>(m.n_components, m.dim, m.tied) - m.n_components;
    return i < others ? m.precisions[i - size] : packed_log_scale(m.log_scale[i - others]);
  }
}

template <Covariance kind, typename S>
FASTNDSM_HD RegisterMixture<S> register_mixture(const S* block, int n, int d, bool tied) {
  const int size = n * d;
  if constexpr (kind == Covariance::spherical) {
    return {n, block, nullptr, nullptr, nullptr, block + size, 0, block + size + n};
  } else if constexpr (kind == Covariance::diag) {
    return {n, nullptr, block, block + size, block + 2 * size, block + 3 * size, 0, block + 4 * size};
  } else {
    return {n, block, nullptr, nullptr, nullptr, block + size, tied ? 0 : d * d, block + size + (tied ? d : size) * d};
  }
}

}  // namespace fastndsm
