// A residual multilayer perceptron on tiles of samples, with the time in every hidden layer.
//
//   h_l = [h_{l-1} +] SiLU(scale_l * (W_l h_{l-1} + c_l) + shift_l),    output = W h_L + c
//
// the bracket where widths agree. All samples of a step share one time, so that scale_l and shift_l are rows of a table.
// h[k] holds unit k of as many samples as V has lanes; G outputs of them are sums in registers, to which every h[k] is
// added once, times G weights that lie side by side: weights of a layer are packed as [ceil(outputs / G)][inputs][G].
// Packed rows beyond the last output are zero; so are their biases, scales and shifts, and SiLU(0) = 0.
#pragma once

#include <cstdint>

#include "vecmath.h"

namespace fastndsm {

#if defined(__CUDACC__) || defined(FASTNDSM_AVX512)
constexpr int kOutputs = 8;  // G: with two registers a vector 16 sums, twice what two multiply-adds a cycle wait for
#else
constexpr int kOutputs = 4;  // as many as 16 registers hold
#endif
constexpr int kMostLayers = 8;

constexpr int64_t padded_outputs(int64_t n) { return (n + kOutputs - 1) / kOutputs * kOutputs; }

template <typename S>
struct MlpView {
  int64_t n_hidden;                  // hidden layers
  int64_t inputs, outputs;
  int64_t widths[kMostLayers];       // of the hidden layers
  const S* weights[kMostLayers + 1];  // packed; the output layer's last
  const S* biases[kMostLayers + 1];   // padded
  const S* scales;                   // [times, stride]: those of all hidden layers, padded each, side by side
  const S* shifts;
  int64_t stride;

  FASTNDSM_HD int64_t widest() const {  // vectors a buffer of activations needs
    int64_t most = padded_outputs(inputs);
    for (int64_t l = 0; l < n_hidden; ++l) {
      if (padded_outputs(widths[l]) > most) most = padded_outputs(widths[l]);
    }
    return most;
  }
};

// 1 / (1 + exp(-x)).
template <typename V>
FASTNDSM_HD V logistic(V x) {
  using S = scalar_of<V>;
  constexpr S limit = S(126);  // beyond it the quotient is 1, or 0, up to rounding
  V t = x * S(-1.44269504088896340736);
  t = fastndsm::max(splat<V>(-limit), t);
  t = select(t > limit, splat<V>(limit), t);
  const V n = detail::round_to_integer(t);
  const V e = scale_by_power_of_two(detail::exp2_reduced(V(t - n)), n);
  return reciprocal(V(e + S(1)));
}

template <typename V>
FASTNDSM_HD V silu(V x) {
  return x * logistic(x);
}

// sum[g] += sum_k w[k][g] h[k].
template <int G, typename V>
FASTNDSM_HD void dense(const scalar_of<V>* w, const V* h, int64_t n_inputs, V (&sum)[G]) {
  for (int64_t k = 0; k < n_inputs; ++k) {
    const V x = h[k];
    FASTNDSM_UNROLL
    for (int g = 0; g < G; ++g) sum[g] = fma(splat<V>(w[k * G + g]), x, sum[g]);
  }
}

// The hidden layers, from h to the returned one of the two buffers; row is the time's.
template <typename V>
FASTNDSM_OUTLINE V* hidden_layers(const MlpView<scalar_of<V>>& net, int64_t row, V* h, V* other) {
  using S = scalar_of<V>;
  const S *scale = net.scales + row * net.stride, *shift = net.shifts + row * net.stride;
  int64_t n_inputs = net.inputs;
  for (int64_t l = 0; l < net.n_hidden; ++l) {
    const int64_t n = net.widths[l];
    const bool residual = n == n_inputs;
    const S *w = net.weights[l], *bias = net.biases[l];
    for (int64_t i = 0; i < n; i += kOutputs) {
      V sum[kOutputs];
      FASTNDSM_UNROLL
      for (int g = 0; g < kOutputs; ++g) sum[g] = splat<V>(bias[i + g]);
      dense(w + i * n_inputs, h, n_inputs, sum);
      FASTNDSM_UNROLL
      for (int g = 0; g < kOutputs; ++g) {
        const V step = silu(fused(splat<V>(scale[i + g]), sum[g], splat<V>(shift[i + g])));
        other[i + g] = residual && i + g < n ? V(h[i + g] + step) : step;
      }
    }
    V* const next = other;
    other = h, h = next;
    scale += padded_outputs(n), shift += padded_outputs(n);
    n_inputs = n;
  }
  return h;
}

// Outputs from the last hidden layer h to out, whose length is padded.
template <typename V>
FASTNDSM_HD void output_layer(const MlpView<scalar_of<V>>& net, const V* h, V* out) {
  const int64_t n_inputs = net.n_hidden > 0 ? net.widths[net.n_hidden - 1] : net.inputs;
  for (int64_t i = 0; i < net.outputs; i += kOutputs) {
    V sum[kOutputs];
    FASTNDSM_UNROLL
    for (int g = 0; g < kOutputs; ++g) sum[g] = splat<V>(net.biases[net.n_hidden][i + g]);
    dense(net.weights[net.n_hidden] + i * n_inputs, h, n_inputs, sum);
    FASTNDSM_UNROLL
    for (int g = 0; g < kOutputs; ++g) out[i + g] = sum[g];
  }
}

}  // namespace fastndsm
