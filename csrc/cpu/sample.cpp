// mixture_sample: exact draws m_k + L_k z, with k by inversion of the cumulative weights. Stream 1: step 0 gives z, word 0 of
// block 0 of step 1 gives k.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "row_ranges.h"

namespace fastndsm {
namespace {

constexpr uint32_t kPriorStream = 1;

template <typename S>
struct Source {
  Covariance kind;
  int64_t n_components, dim;
  const double* cumulative;
  const S *means, *factors;
  const int64_t* ranges;  // [n, 2], or null: the components that draw i has

  // The component of draw i by a uniform number.
  int64_t choose(int64_t i, double u) const {
    const int64_t start = ranges ? ranges[2 * i] : 0, stop = ranges ? ranges[2 * i + 1] : n_components;
    if (ranges) {
      const double below = start > 0 ? cumulative[start - 1] : 0.0;
      u = below + u * (cumulative[stop - 1] - below);
    }
    const int64_t k = std::upper_bound(cumulative, cumulative + n_components, u) - cumulative;
    return std::clamp(k, start, stop - 1);
  }
};

// Lane l of z [d] becomes row `out` of component k.
template <typename S, int W>
void place(const Source<S>& source, int64_t k, const S* z, int l, S* out) {
  const int64_t d = source.dim;
  const S* mean = source.means + k * d;
  if (source.kind == Covariance::spherical || source.kind == Covariance::diag) {
    for (int64_t j = 0; j < d; ++j) {
      out[j] = mean[j] + source.factors[source.kind == Covariance::diag ? k * d + j : k] * z[j * W + l];
    }
    return;
  }
  const S* factor = source.factors + (source.kind == Covariance::full ? k * d * d : 0);
  for (int64_t i = 0; i < d; ++i) {
    S sum = 0;
    for (int64_t j = 0; j <= i; ++j) sum += factor[i * d + j] * z[j * W + l];
    out[i] = mean[i] + sum;
  }
}

template <typename S>
void sample_into(const Source<S>& source, const NoiseStream& noise, int64_t n, int64_t first_path, S* out) {
  using V = vec<S, kLanes<S>>;
  using U = words_of<V>;
  constexpr int W = kLanes<S>;
  const int64_t d = source.dim;
  at::parallel_for(0, (n + W - 1) / W, 16, [&](int64_t begin, int64_t end) {
    std::vector<V> z(d);
    for (int64_t tile = begin; tile < end; ++tile) {
      uint32_t low[W], high[W], word[W];
      for (int l = 0; l < W; ++l) path_words(first_path + tile * W + l, kPriorStream, low[l], high[l]);
      const PathCounters<U> paths(load<U>(low), load<U>(high));
      U choice[1][4];
      paths.at(1, noise.key).words(0, choice);
      store(word, choice[0][0]);
      normals(paths, noise.key, 0, d, z.data());
      for (int l = 0; l < std::min<int64_t>(W, n - tile * W); ++l) {
        const double u = (word[l] + 0.5) * 0x1p-32;
        place<S, W>(source, source.choose(tile * W + l, u), reinterpret_cast<const S*>(z.data()), l,
                    out + (tile * W + l) * d);
      }
    }
  });
}

at::Tensor mixture_sample(int64_t n, const at::Tensor& cumulative_weights, const at::Tensor& means,
                          const at::Tensor& factors, const std::string& covariance_type, const at::Tensor& seed,
                          int64_t first_path, const std::optional<at::Tensor>& ranges) {
  TORCH_CHECK_VALUE(means.dim() == 2 && means.size(0) == cumulative_weights.size(0), "means: expected shape [",
                    cumulative_weights.size(0), ", d], found ", means.sizes());
  TORCH_CHECK_VALUE(cumulative_weights.scalar_type() == at::kDouble, "cumulative_weights: expected float64, found ",
                    cumulative_weights.scalar_type());
  TORCH_CHECK_VALUE(n >= 0, "n: expected at least 0, found ", n);
  check_shape("cumulative_weights", cumulative_weights, {means.size(0)});
  check_factors("factors", factors, covariance_kind(covariance_type), means.size(0), means.size(1));
  if (ranges) check_ranges(*ranges, n, means.size(0));
  const at::Tensor own = ranges ? ranges->contiguous() : at::Tensor();
  at::Tensor out = at::empty({n, means.size(1)}, means.options());
  const at::Tensor cumulative = cumulative_weights.contiguous(), m = means.contiguous(), f = factors.contiguous();
  const NoiseStream noise(seed_value(seed), kPriorStream);
  AT_DISPATCH_FLOATING_TYPES(means.scalar_type(), "fastndsm::mixture_sample", [&] {
    const Source<scalar_t> source{covariance_kind(covariance_type),
                                  m.size(0),
                                  m.size(1),
                                  cumulative.const_data_ptr<double>(),
                                  m.const_data_ptr<scalar_t>(),
                                  f.const_data_ptr<scalar_t>(),
                                  ranges ? own.const_data_ptr<int64_t>() : nullptr};
    sample_into(source, noise, n, first_path, out.mutable_data_ptr<scalar_t>());
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def(
      "mixture_sample(int n, Tensor cumulative_weights, Tensor means, Tensor factors, str covariance_type, Tensor seed, "
      "int first_path, Tensor? ranges=None) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) { m.impl("mixture_sample", mixture_sample); }

}  // namespace fastndsm
