// How the parameters of a mixture lie in the block of memory that a GPU's kernels read, dimensions padded with zeros:
//
//   spherical    means [K, D], precisions [K], log_scale [K]
//   diag         roots, shifts, pulls, precisions, each [K, D], log_scale [K]; see MixtureView
//   tied, full   means [K, D], precisions [1 or K, D, D], log_scale [K]
//
// log_scale is in units of log 2. K is padded to whole groups of four (spherical, diag) with log_scale kNeverChosen and zeros.
#pragma once

#include "registers.h"

namespace fastndsm {

template <Covariance kind>
FASTNDSM_HD int padded_components(int n) {
  return (n + kComponents<kind> - 1) / kComponents<kind> * kComponents<kind>;
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
