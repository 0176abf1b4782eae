// noised_score and noised_log_prob: a mixture that each row sees widened by a variance of its own.
#include "../include/noised.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "arguments.h"

namespace fastndsm {
namespace {

// The tensors of a mixture, contiguous and in the dtype of the data.
template <typename S>
class NoisedArgument {
 public:
  NoisedArgument(const at::Tensor& means, const at::Tensor& variances, const at::Tensor& log_weights,
                 const std::optional<at::Tensor>& rotations, Covariance kind)
      : means_(means.contiguous()), variances_(variances.contiguous()), log_weights_(log_weights.contiguous()) {
    const int64_t n_components = means.size(0), dim = means.size(1);
    if (rotations) rotations_ = rotations->contiguous();
    const S* values = variances_.const_data_ptr<S>();
    const auto [smallest, largest] = std::minmax_element(values, values + variances_.numel());
    const S* weights = log_weights_.const_data_ptr<S>();
    for (int64_t k = 0; k < n_components; ++k) packed_.push_back(packed_log_scale(weights[k]));
    view_ = {n_components,
             dim,
             means_.const_data_ptr<S>(),
             values,
             packed_.data(),
             rotations ? rotations_.const_data_ptr<S>() : nullptr,
             *smallest,
             *largest};
    if (kind == Covariance::spherical && n_components >= NoisedTile<S, Covariance::spherical>::kSieved) centre();
  }
  NoisedArgument(const NoisedArgument&) = delete;

  const NoisedView<S>& view() const { return view_; }

 private:
  // What a sieve reads.
  void centre() {
    const int64_t n = view_.n_components, d = view_.dim;
    centre_ = mean_of_rows(view_.means, n, d), centred_.resize(n * d);
    S longest = S(0);
    for (int64_t k = 0; k < n; ++k) {
      double square = 0;
      for (int64_t j = 0; j < d; ++j) {
        const S value = view_.means[k * d + j] - centre_[j];
        centred_[k * d + j] = value, square += double(value) * double(value);
      }
      squares_.push_back(S(square)), longest = std::max(longest, squares_.back());
      view_.largest_weight = std::max(view_.largest_weight, std::abs(packed_[k]));
    }
    view_.centre = centre_.data(), view_.centred = centred_.data(), view_.squares = squares_.data();
    view_.extent = std::sqrt(longest);
  }

  at::Tensor means_, variances_, log_weights_, rotations_;
  std::vector<S> packed_, centre_, centred_, squares_;
  NoisedView<S> view_;
};

void check(const at::Tensor& x, const at::Tensor& variance, const at::Tensor& means, const at::Tensor& variances,
           const at::Tensor& log_weights, const std::optional<at::Tensor>& rotations, Covariance kind) {
  TORCH_CHECK_VALUE(means.dim() == 2 && means.numel() > 0, "means: expected shape [K, d], found ", means.sizes());
  const int64_t n_components = means.size(0), dim = means.size(1);
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) == dim, "x: expected shape [B, ", dim, "], found ", x.sizes());
  check_shape("variance", variance, {x.size(0)});
  check_shape("log_weights", log_weights, {n_components});
  switch (kind) {
    case Covariance::spherical: check_shape("variances", variances, {n_components}); break;
    case Covariance::tied: check_shape("variances", variances, {dim}); break;
    default: check_shape("variances", variances, {n_components, dim});
  }
  const bool turned = kind == Covariance::tied || kind == Covariance::full;
  TORCH_CHECK_VALUE(rotations.has_value() == turned, "rotations: expected them for tied and full covariances alone");
  if (kind == Covariance::tied) check_shape("rotations", *rotations, {dim, dim});
  if (kind == Covariance::full) check_shape("rotations", *rotations, {n_components, dim, dim});
}

// Where there are registers for it, two share what is read of a matrix.
template <Covariance kind, typename S>
constexpr int kNoisedLanes = (kind == Covariance::full && kRegisters >= 32 ? 2 : 1) * kLanes<S>;

// The score of each row [B, d], or its log-density [B].
template <bool score>
at::Tensor evaluated(const at::Tensor& x, const at::Tensor& variance, const at::Tensor& means, const at::Tensor& variances,
                     const at::Tensor& log_weights, const std::optional<at::Tensor>& rotations,
                     const std::string& covariance_type) {
  const Covariance kind = covariance_kind(covariance_type);
  check(x, variance, means, variances, log_weights, rotations, kind);
  const int64_t n = x.size(0), d = x.size(1);
  at::Tensor out = score ? at::empty({n, d}, x.options()) : at::empty({n}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "fastndsm::noised", [&] {
    const NoisedArgument<scalar_t> mixture(means, variances, log_weights, rotations, kind);
    const at::Tensor points = x.contiguous(), noise = variance.contiguous();
    const scalar_t *in = points.const_data_ptr<scalar_t>(), *s = noise.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    by_kind(kind, [&](auto of_kind) {
      using V = vec<scalar_t, kNoisedLanes<of_kind, scalar_t>>;
      constexpr int W = lanes_of<V>;
      using Tile = NoisedTile<V, of_kind>;
      at::parallel_for(0, (n + W - 1) / W, 1, [&](int64_t begin, int64_t end) {
        std::vector<V> memory(2 * d + Tile::vectors(mixture.view().n_components, d));
        V *tile_x = memory.data(), *result = tile_x + d;
        Tile tile(mixture.view(), result + d);
        for (int64_t first = begin * W; first < std::min(end * W, n); first += W) {
          const int64_t count = std::min<int64_t>(W, n - first);
          V tile_s;
          gather_rows(in, first, count, d, tile_x);
          gather_rows(s, first, count, 1, &tile_s);
          tile.evaluate(tile_x, tile_s);
          if constexpr (score) {
            tile.score(result);
            scatter_rows(result, first, count, d, to);
          } else {
            const V value = tile.log_prob();
            scatter_rows(&value, first, count, 1, to);
          }
        }
      });
    });
  });
  return out;
}

}  // namespace

#define FASTNDSM_NOISED                                                                                \
  "Tensor x, Tensor variance, Tensor means, Tensor variances, Tensor log_weights, Tensor? rotations, " \
  "str covariance_type"

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def("noised_score(" FASTNDSM_NOISED ") -> Tensor");
  m.def("noised_log_prob(" FASTNDSM_NOISED ") -> Tensor");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) {
  m.impl("noised_score", evaluated<true>);
  m.impl("noised_log_prob", evaluated<false>);
}

}  // namespace fastndsm
