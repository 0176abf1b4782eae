// What the tiles read of a mixture, made once per call: log normalisers in units of log 2, roots and products of the
// parameters where they save work per sample.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "../include/near.h"

namespace fastndsm {

template <typename S>
class PackedMixture {
 public:
  PackedMixture(Covariance kind, int64_t n_components, int64_t dim, const S* means, const S* precisions, const S* log_scale)
      : log_scale_(n_components) {
    for (int64_t k = 0; k < n_components; ++k) log_scale_[k] = packed_log_scale(log_scale[k]);
    const int64_t n = n_components * dim;
    double squares = 0;
    if (kind == Covariance::spherical || kind == Covariance::diag) {
      metric_.assign(kind == Covariance::diag ? dim : 1, S(0));
      const int64_t rates = static_cast<int64_t>(metric_.size());
      for (int64_t i = 0; i < n_components * rates; ++i) metric_[i % rates] = std::max(metric_[i % rates], precisions[i]);
      for (S& m : metric_) m = packed_root(m), squares += double(m) * m;
      squares *= double(dim) / rates;
    }
    if (kind == Covariance::diag) {
      roots_.resize(n), shifts_.resize(n), pulls_.resize(n);
      for (int64_t i = 0; i < n; ++i) {
        roots_[i] = packed_root(precisions[i]);
        shifts_[i] = packed_shift(roots_[i], means[i]);
        pulls_[i] = packed_pull(precisions[i], means[i]);
      }
    } else if (kind == Covariance::tied) {
      pulls_.resize(n);
      for (int64_t k = 0; k < n_components; ++k) {
        for (int64_t i = 0; i < dim; ++i) {
          double sum = 0;
          for (int64_t j = 0; j < dim; ++j) sum += double(precisions[i * dim + j]) * means[k * dim + j];
          pulls_[k * dim + i] = S(sum);
        }
      }
    }
    view_ = {kind,          n_components,   dim,           means,          precisions,           log_scale_.data(),
             roots_.data(), shifts_.data(), pulls_.data(), metric_.data(), S(std::sqrt(squares))};
  }
  PackedMixture(const PackedMixture&) = delete;

  // Of many components: each sample looks those that can have weight up there.
  void look_up_in(std::shared_ptr<const NearComponents<S>> near) { near_ = std::move(near), view_.near = near_.get(); }

  const MixtureView<S>& view() const { return view_; }

 private:
  std::vector<S> log_scale_, roots_, shifts_, pulls_, metric_;
  MixtureView<S> view_;
  std::shared_ptr<const NearComponents<S>> near_;
};

}  // namespace fastndsm
