// From tensors to views: the op arguments that several ops share.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <string>

#include "../include/simulate.h"
#include "near_cache.h"
#include "packed_mixture.h"

namespace fastndsm {

inline Covariance covariance_kind(const std::string& name) {
  if (name == "spherical") return Covariance::spherical;
  if (name == "diag") return Covariance::diag;
  if (name == "tied") return Covariance::tied;
  TORCH_CHECK_VALUE(name == "full", "covariance_type: expected spherical, diag, tied or full, found ", name);
  return Covariance::full;
}

inline int64_t seed_value(const at::Tensor& seed) {
  TORCH_CHECK_VALUE(seed.scalar_type() == at::kLong && seed.dim() == 0, "seed: expected a 0-d int64 tensor, found ",
                    seed.scalar_type(), " of shape ", seed.sizes());
  return *seed.const_data_ptr<int64_t>();
}

inline void check_shape(const char* name, const at::Tensor& t, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(t.sizes() == expected, name, ": expected shape ", expected, ", found ", t.sizes());
}

// N of the coefficients [5, N] of the reverse process.
inline int64_t checked_coefficients(const at::Tensor& coefficients) {
  TORCH_CHECK_VALUE(coefficients.dim() == 2 && coefficients.size(0) == 6, "coefficients: expected shape [6, N], found ",
                    coefficients.sizes());
  return coefficients.size(1);
}

inline void check_factors(const char* name, const at::Tensor& t, Covariance kind, int64_t n_components, int64_t dim) {
  switch (kind) {
    case Covariance::spherical: return check_shape(name, t, {n_components});
    case Covariance::diag: return check_shape(name, t, {n_components, dim});
    case Covariance::tied: return check_shape(name, t, {dim, dim});
    case Covariance::full: return check_shape(name, t, {n_components, dim, dim});
  }
}

// means, if the other tensors of the mixture have the shapes that go with it.
inline const at::Tensor& checked_means(const at::Tensor& means, const at::Tensor& precisions, const at::Tensor& log_scale,
                                       Covariance kind) {
  TORCH_CHECK_VALUE(means.dim() == 2 && means.numel() > 0, "means: expected shape [K, d], found ", means.sizes());
  check_factors("precisions", precisions, kind, means.size(0), means.size(1));
  check_shape("log_scale", log_scale, {means.size(0)});
  return means;
}

// The tensors of a mixture, contiguous and in the dtype of the data, and what is packed of them.
template <typename S>
class MixtureArgument {
 public:
  MixtureArgument(const at::Tensor& means, const at::Tensor& precisions, const at::Tensor& log_scale,
                  const std::string& covariance_type, Visits visits = Visits::once)
      : means_(checked_means(means, precisions, log_scale, covariance_kind(covariance_type)).contiguous()),
        precisions_(precisions.contiguous()),
        log_scale_(log_scale.contiguous()),
        packed_(covariance_kind(covariance_type), means_.size(0), means_.size(1), means_.const_data_ptr<S>(),
                precisions_.const_data_ptr<S>(), log_scale_.const_data_ptr<S>()) {
    packed_.look_up_in(near_components(packed_.view(), visits));
  }

  const MixtureView<S>& view() const { return packed_.view(); }

 private:
  at::Tensor means_, precisions_, log_scale_;
  PackedMixture<S> packed_;
};

// Copies rows of a [n, d] array into a tile, lane by lane, and back.
template <typename V>
void gather_rows(const scalar_of<V>* from, int64_t first, int64_t count, int64_t d, V* to) {
  auto* lanes = reinterpret_cast<scalar_of<V>*>(to);
  for (int l = 0; l < lanes_of<V>; ++l) {
    const auto* source = from + (first + std::min<int64_t>(l, count - 1)) * d;
    for (int64_t j = 0; j < d; ++j) lanes[j * lanes_of<V> + l] = source[j];
  }
}

template <typename V>
void scatter_rows(const V* from, int64_t first, int64_t count, int64_t d, scalar_of<V>* to) {
  const auto* lanes = reinterpret_cast<const scalar_of<V>*>(from);
  for (int64_t l = 0; l < count; ++l) {
    auto* destination = to + (first + l) * d;
    for (int64_t j = 0; j < d; ++j) destination[j] = lanes[j * lanes_of<V> + l];
  }
}

}  // namespace fastndsm
