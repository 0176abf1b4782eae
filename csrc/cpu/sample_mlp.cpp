// sample_mlp: the reverse process of a small network's score, all steps in one call.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "../include/reverse.h"
#include "arguments.h"

namespace fastndsm {
namespace {

constexpr uint32_t kReverseStream = 2;

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

template <Covariance kind>
void run_tiles(const ReverseView<float>& p, const float* from, int64_t n_rows, int64_t first_path, int64_t begin,
               int64_t end, float* to, std::atomic<int64_t>& failed) {
  std::vector<V> memory(ReverseTile<V, kind>::vectors(p));
  const ReverseTile<V, kind> tile(p, memory.data());
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i * W, count = std::min<int64_t>(W, n_rows - first);
    uint32_t low[W], high[W];
    for (int l = 0; l < W; ++l) path_words(first_path + first + l, kReverseStream, low[l], high[l]);
    gather_rows(from, first, count, p.mixture.dim, tile.y);
    const int64_t step = tile.run({load<words_of<V>>(low), load<words_of<V>>(high)}, static_cast<int>(count));
    scatter_rows(tile.y, first, count, p.mixture.dim, to);
    for (int64_t latest = failed; step > latest && !failed.compare_exchange_weak(latest, step);) {
    }
  }
}

// y_0, and the first step (they go down) that gave a value that is not finite, -1 if none did.
std::tuple<at::Tensor, at::Tensor> sample_mlp(const at::Tensor& y, at::TensorList weights, at::TensorList biases,
                                              const at::Tensor& scales, const at::Tensor& shifts,
                                              const std::optional<at::Tensor>& inverse_std, double feature_scale,
                                              const at::Tensor& drift_scale, const at::Tensor& noise_std,
                                              const at::Tensor& means, const at::Tensor& precisions,
                                              const at::Tensor& log_scale, const std::string& covariance_type,
                                              const at::Tensor& seed, int64_t first_path, const std::string& method) {
  TORCH_CHECK_VALUE(means.dim() == 2 && y.dim() == 2 && y.size(1) == means.size(1),
                    "y: expected shape [B, d] as means [K, d] ", means.sizes(), ", found ", y.sizes());
  TORCH_CHECK_TYPE(y.scalar_type() == at::kFloat, "y: expected float32, found ", y.scalar_type());
  TORCH_CHECK_VALUE(drift_scale.dim() == 1 && drift_scale.size(0) > 0, "drift_scale: expected shape [N], found ",
                    drift_scale.sizes());
  TORCH_CHECK_VALUE(scales.dim() == 2, "scales: expected shape [N, widths], found ", scales.sizes());
  TORCH_CHECK_VALUE(method == "sde" || method == "ode", "method: expected sde or ode, found ", method);
  const int64_t n_steps = drift_scale.size(0), d = y.size(1);
  check_shape("noise_std", noise_std, {n_steps});
  check_shape("scales", scales, {n_steps, scales.size(1)});
  if (inverse_std) check_shape("inverse_std", *inverse_std, {n_steps});
  const PackedMlp net(weights, biases, scales, shifts);
  TORCH_CHECK_VALUE(net.view().outputs == d && net.view().inputs == (feature_scale != 0.0 ? 2 * d : d),
                    "weights: expected a network of ", feature_scale != 0.0 ? 2 * d : d, " inputs and ", d,
                    " outputs, found ", net.view().inputs, " and ", net.view().outputs);
  const MixtureArgument<float> mixture(means, precisions, log_scale, covariance_type);
  const at::Tensor start = y.contiguous(), a = drift_scale.contiguous(), s = noise_std.contiguous();
  const at::Tensor r = inverse_std ? inverse_std->contiguous() : at::Tensor();
  const ReverseView<float> view{mixture.view(),
                                net.view(),
                                a.const_data_ptr<float>(),
                                s.const_data_ptr<float>(),
                                inverse_std ? r.const_data_ptr<float>() : nullptr,
                                static_cast<float>(feature_scale),
                                n_steps,
                                NoiseStream(seed_value(seed), kReverseStream),
                                method == "ode"};
  at::Tensor out = at::empty(y.sizes(), y.options());
  std::atomic<int64_t> failed{-1};
  const auto run = [&](auto kind) {
    at::parallel_for(0, (y.size(0) + W - 1) / W, 1, [&](int64_t begin, int64_t end) {
      run_tiles<kind>(view, start.const_data_ptr<float>(), y.size(0), first_path, begin, end, out.mutable_data_ptr<float>(),
                      failed);
    });
  };
  switch (mixture.view().kind) {
    case Covariance::spherical: run(std::integral_constant<Covariance, Covariance::spherical>{}); break;
    case Covariance::diag: run(std::integral_constant<Covariance, Covariance::diag>{}); break;
    case Covariance::tied: run(std::integral_constant<Covariance, Covariance::tied>{}); break;
    case Covariance::full: run(std::integral_constant<Covariance, Covariance::full>{}); break;
  }
  return {out, at::full({}, failed.load(), y.options().dtype(at::kLong))};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def(
      "sample_mlp(Tensor y, Tensor[] weights, Tensor[] biases, Tensor scales, Tensor shifts, Tensor? inverse_std, "
      "float feature_scale, Tensor drift_scale, Tensor noise_std, Tensor means, Tensor precisions, Tensor log_scale, "
      "str covariance_type, Tensor seed, int first_path, str method) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) { m.impl("sample_mlp", sample_mlp); }

}  // namespace fastndsm
