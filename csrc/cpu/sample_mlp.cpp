// sample_mlp: the reverse process of a small network's score, all evaluations and all steps in one call.
//
//   out = network(y [, feature_scale grad log pi(y)]) at the time of evaluation k,    g = grad log pi(y)
//   held = gains_k0 y + gains_k1 g + gains_k2 out,    slope = (held - held before) inverse_gap_k
//
// then the steps of reverse.h from t_bounds[k] down to t_bounds[k + 1].
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <vector>

#include "../include/mlp.h"
#include "arguments.h"
#include "reverse_tile.h"

namespace fastndsm {
namespace {

// The network's parameters as the tiles read them.
class PackedMlp {
 public:
  PackedMlp(at::TensorList weights, at::TensorList biases, const at::Tensor& scales, const at::Tensor& shifts) {
    const int64_t n_layers = weights.size();
    TORCH_CHECK_VALUE(n_layers >= 1 && n_layers <= kMostLayers + 1 && biases.size() == weights.size(),
                      "weights: expected 1 to ", kMostLayers + 1, " layers and as many biases, found ", n_layers, " and ",
                      biases.size());
    view_.n_hidden = n_layers - 1;
    for (int64_t l = 0; l < n_layers; ++l) {
      TORCH_CHECK_VALUE(weights[l].dim() == 2 && weights[l].numel() > 0, "weights: expected [outputs, inputs], found ",
                        weights[l].sizes());
      if (l > 0) check_shape("weights", weights[l], {weights[l].size(0), weights[l - 1].size(0)});
      check_shape("biases", biases[l], {weights[l].size(0)});
      packed_.push_back(packed(weights[l].contiguous()));
      biases_.push_back(padded(biases[l].contiguous(), {weights[l].size(0)}, 1));
    }
    view_.inputs = weights[0].size(1), view_.outputs = weights[n_layers - 1].size(0);
    std::vector<int64_t> widths;
    int64_t total = 0;
    view_.stride = 0;
    for (int64_t l = 0; l < view_.n_hidden; ++l) {
      widths.push_back(view_.widths[l] = weights[l].size(0));
      total += widths[l], view_.stride += padded_outputs(widths[l]);
    }
    check_shape("scales", scales, {scales.size(0), total});
    check_shape("shifts", shifts, scales.sizes());
    scales_ = padded(scales.contiguous(), widths, scales.size(0));
    shifts_ = padded(shifts.contiguous(), widths, scales.size(0));
    view_.scales = scales_.data(), view_.shifts = shifts_.data();
    for (int64_t l = 0; l < n_layers; ++l) view_.weights[l] = packed_[l].data(), view_.biases[l] = biases_[l].data();
  }
  PackedMlp(const PackedMlp&) = delete;

  const MlpView<float>& view() const { return view_; }

 private:
  static std::vector<float> packed(const at::Tensor& weight) {
    const int64_t n = weight.size(0), inputs = weight.size(1);
    const float* from = weight.const_data_ptr<float>();
    std::vector<float> to(padded_outputs(n) * inputs, 0.0f);
    for (int64_t i = 0; i < n; ++i) {
      float* group = to.data() + i / kOutputs * kOutputs * inputs + i % kOutputs;
      for (int64_t k = 0; k < inputs; ++k) group[k * kOutputs] = from[i * inputs + k];
    }
    return to;
  }

  // Rows of pieces of these widths, each filled up with zeros.
  static std::vector<float> padded(const at::Tensor& values, const std::vector<int64_t>& widths, int64_t rows) {
    const float* from = values.const_data_ptr<float>();
    std::vector<float> to;
    for (int64_t row = 0; row < rows; ++row) {
      for (const int64_t n : widths) {
        to.insert(to.end(), from, from + n);
        to.resize(to.size() + padded_outputs(n) - n, 0.0f);
        from += n;
      }
    }
    return to;
  }

  std::vector<std::vector<float>> packed_, biases_;
  std::vector<float> scales_, shifts_;
  MlpView<float> view_;
};

using V = vec<float, kLanes<float> == 1 ? 1 : 2 * kLanes<float>>;
constexpr int W = lanes_of<V>;

struct Sampling {
  ReverseView<float> reverse;
  MlpView<float> net;           // row k of its tables is for evaluation k
  float feature_scale;          // 0: no features
  int64_t n_evaluations;
  const int64_t* bounds;        // [M + 1]
  const Evaluation<float>* evaluations;  // [M]
};

template <Covariance kind>
class SamplingTile {
 public:
  explicit SamplingTile(const Sampling& sampling) : p_(sampling), tile_(sampling.reverse) {
    const int64_t d = p_.reverse.mixture.dim, most = p_.net.widest();
    memory_.resize(2 * d + padded_outputs(d) + 2 * most);
    before_ = memory_.data(), reference_ = before_ + d, output_ = reference_ + d;
    h_ = output_ + padded_outputs(d), other_ = h_ + most;
  }

  V* y() { return tile_.y; }

  // y_N -> y_0. The evaluation after which a value in one of the first `count` lanes was not finite, or M.
  int64_t run(const PathCounters<words_of<V>>& paths, int count) {
    const int64_t d = p_.reverse.mixture.dim;
    tile_.start(paths);
    V rate_before{};
    for (int64_t k = 0; k < p_.n_evaluations; ++k) {
      evaluate(k);
      const Evaluation<float> now = p_.evaluations[k];
      const bool sloped = now.inverse_gap != 0.0f, rated = now.limit != 0.0f;
      V rate{};
      if (rated) {
        V sum{};
        for (int64_t j = 0; j < d; ++j) {
          const V residual = now.residual(reference_[j], output_[j]);
          sum = fused(residual, V(residual + reference_[j]), sum);
        }
        rate = now.rate(sum, d);
      }
      for (int64_t j = 0; j < d; ++j) {
        const V y = tile_.y[j], current = now.current(y, reference_[j], now.residual(reference_[j], output_[j]));
        if (sloped) tile_.slope[j] = now.slope(y, current, before_[j], rate_before);
        before_[j] = tile_.held[j] = fused(rate, y, current);
      }
      tile_.own = rate_before = rate;
      tile_.run(p_.bounds[k], p_.bounds[k + 1], sloped, rated);
      if (!finite(count)) return k;
    }
    return p_.n_evaluations;
  }

 private:
  // grad log pi and the network at y.
  void evaluate(int64_t k) {
    const int64_t d = p_.reverse.mixture.dim;
    tile_.score(reference_);
    for (int64_t j = 0; j < d; ++j) h_[j] = tile_.y[j];
    if (p_.feature_scale != 0.0f) {
      for (int64_t j = 0; j < d; ++j) h_[d + j] = p_.feature_scale * reference_[j];
    }
    output_layer(p_.net, hidden_layers(p_.net, k, h_, other_), output_);
  }

  bool finite(int count) const {
    V none = V{};
    for (int64_t j = 0; j < p_.reverse.mixture.dim; ++j) {
      none = fma(tile_.y[j], splat<V>(0.0f), none);  // NaN from NaN and infinity
    }
    float lanes[W];
    store(lanes, none);
    return std::all_of(lanes, lanes + count, [](float x) { return x == 0.0f; });
  }

  const Sampling& p_;
  ReverseTile<V, kind> tile_;
  std::vector<V> memory_;
  V *before_, *reference_, *output_;  // what was held last; [d], [d], [padded d]
  V *h_, *other_;                     // [net.widest()]
};

template <Covariance kind>
void run_tiles(const Sampling& p, const float* from, int64_t n_rows, int64_t first_path, int64_t begin, int64_t end,
               float* to, std::atomic<int64_t>& failed) {
  const int64_t d = p.reverse.mixture.dim;
  SamplingTile<kind> tile(p);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i * W, count = std::min<int64_t>(W, n_rows - first);
    uint32_t low[W], high[W];
    for (int l = 0; l < W; ++l) path_words(first_path + first + l, p.reverse.noise.stream, low[l], high[l]);
    gather_rows(from, first, count, d, tile.y());
    const int64_t found = tile.run({load<words_of<V>>(low), load<words_of<V>>(high)}, static_cast<int>(count));
    scatter_rows(tile.y(), first, count, d, to);
    for (int64_t earliest = failed; found < earliest && !failed.compare_exchange_weak(earliest, found);) {
    }
  }
}

// y_0, and the first evaluation after which a value was not finite, -1 if there is none.
std::tuple<at::Tensor, at::Tensor> sample_mlp(const at::Tensor& y, at::TensorList weights, at::TensorList biases,
                                              const at::Tensor& scales, const at::Tensor& shifts, double feature_scale,
                                              const at::Tensor& bounds, const at::Tensor& coefficients,
                                              const at::Tensor& evaluations, const at::Tensor& means,
                                              const at::Tensor& precisions, const at::Tensor& log_scale,
                                              const std::string& covariance_type, const at::Tensor& seed,
                                              int64_t first_path) {
  TORCH_CHECK_VALUE(means.dim() == 2 && y.dim() == 2 && y.size(1) == means.size(1),
                    "y: expected shape [B, d] as means [K, d] ", means.sizes(), ", found ", y.sizes());
  TORCH_CHECK_TYPE(y.scalar_type() == at::kFloat, "y: expected float32, found ", y.scalar_type());
  TORCH_CHECK_VALUE(scales.dim() == 2 && scales.size(0) > 0, "scales: expected shape [M, widths], found ", scales.sizes());
  const int64_t n_steps = checked_coefficients(coefficients), n_evaluations = scales.size(0), d = y.size(1);
  check_shape("evaluations", evaluations, {n_evaluations, 8});
  check_shape("bounds", bounds, {n_evaluations + 1});
  const at::Tensor points = bounds.contiguous();
  const int64_t* at = points.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(
      at[0] <= n_steps && at[n_evaluations] >= 0 && std::is_sorted(at, at + n_evaluations + 1, std::greater<>()),
      "bounds: expected ", n_steps, " at most, then ever less, 0 at least, found ", bounds);
  const PackedMlp net(weights, biases, scales, shifts);
  TORCH_CHECK_VALUE(net.view().outputs == d && net.view().inputs == (feature_scale != 0.0 ? 2 * d : d),
                    "weights: expected a network of ", feature_scale != 0.0 ? 2 * d : d, " inputs and ", d,
                    " outputs, found ", net.view().inputs, " and ", net.view().outputs);
  const MixtureArgument<float> mixture(means, precisions, log_scale, covariance_type, Visits::along_a_trajectory);
  const at::Tensor start = y.contiguous(), table = coefficients.contiguous(), rows = evaluations.contiguous();
  const Sampling sampling{
      {mixture.view(), {table.const_data_ptr<float>(), n_steps}, NoiseStream(seed_value(seed), kReverseStream)},
      net.view(),
      static_cast<float>(feature_scale),
      n_evaluations,
      at,
      reinterpret_cast<const Evaluation<float>*>(rows.const_data_ptr<float>())};
  at::Tensor out = at::empty(y.sizes(), y.options());
  std::atomic<int64_t> failed{n_evaluations};
  by_kind(mixture.view().kind, [&](auto kind) {
    at::parallel_for(0, (y.size(0) + W - 1) / W, 1, [&](int64_t begin, int64_t end) {
      run_tiles<decltype(kind)::value>(sampling, start.const_data_ptr<float>(), y.size(0), first_path, begin, end,
                                       out.mutable_data_ptr<float>(), failed);
    });
  });
  const int64_t found = failed == n_evaluations ? -1 : failed.load();
  return {out, at::full({}, found, y.options().dtype(at::kLong))};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def(
      "sample_mlp(Tensor y, Tensor[] weights, Tensor[] biases, Tensor scales, Tensor shifts, float feature_scale, "
      "Tensor bounds, Tensor coefficients, Tensor evaluations, Tensor means, Tensor precisions, "
      "Tensor log_scale, str covariance_type, Tensor seed, int first_path) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) { m.impl("sample_mlp", sample_mlp); }

}  // namespace fastndsm
