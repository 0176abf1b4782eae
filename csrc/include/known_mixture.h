// The numbers of a mixture in whole registers, where registers are few.
#pragma once

#include <vector>

#include "mixture_view.h"

namespace fastndsm {

// A mixture as vectors of samples read it: each number as often as a register has lanes, where no instruction takes a single one
// from memory into all lanes.
template <typename S>
class KnownMixture {
  static constexpr int kCopies = kRegisters >= 32 ? 1 : kLanes<S>;

 public:
  using Number = vec<S, kCopies>;

  int n_components;
  // Where the [K, D] or [K] numbers of MixtureView begin that its kind has; scales: -P log2(e) / 2.
  int means, roots, shifts, pulls, precisions, scales, log_scale;

  explicit KnownMixture(const MixtureView<S>& m) : n_components(static_cast<int>(m.n_components)) {
    const int64_t k = m.n_components, all = k * m.dim, rates = m.kind == Covariance::diag ? all : k;
    const auto put = [&](const S* from, int64_t n, S factor) {
      const int begin = static_cast<int>(numbers_.size());
      for (int64_t i = 0; from && i < n; ++i) numbers_.push_back(splat<Number>(from[i] * factor));
      return begin;
    };
    means = put(m.means, all, 1), roots = put(m.roots, all, 1), shifts = put(m.shifts, all, 1),
    pulls = put(m.pulls, all, 1);
    precisions = put(m.precisions, rates, 1), scales = put(m.precisions, rates, S(-kLog2e / 2));
    log_scale = put(m.log_scale, k, 1);
  }

  // A number, in all lanes.
  template <typename V>
  FASTNDSM_HD V at(int i) const {
    if constexpr (lanes_of<V> == kCopies) {
      return numbers_[i];
    } else {
      return splat<V>(reinterpret_cast<const S*>(numbers_.data())[i * kCopies]);
    }
  }

  // Whether a first-level cache of 32 KiB holds what a MixtureTile reads of them, beside the tile. Spherical and diag.
  static bool fits(const MixtureView<S>& m) {
    const int64_t read = m.n_components * (m.kind == Covariance::diag ? 4 * m.dim : m.dim + 1);
    return read * int64_t(sizeof(Number)) <= kBytes;
  }

  // As a MixtureTile reads them; of the mixture that it was made of.
  MixtureView<S, Number> view(const MixtureView<S>& m) const {
    const auto from = [&](int begin) { return numbers_.data() + begin; };
    return {m.kind,      m.n_components, m.dim,       from(means), from(precisions), m.log_scale,
            from(roots), from(shifts),   from(pulls), m.metric,    m.metric_norm};
  }

 private:
  static constexpr int64_t kBytes = 24 << 10;
  std::vector<Number> numbers_;
};

}  // namespace fastndsm
