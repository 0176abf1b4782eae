// The reverse process of a small network's score on one tile of samples, all steps of it: network, drift and noise.
//
//   sde   y <- y - a_n grad log pi(y) + s_n^2 score(y, t_{n+1}) + s_n xi_n        no noise on the last step, n = 0
//   ode   y <- y - a_n grad log pi(y) + 1/2 s_n^2 score(y, t_{n+1}), then Heun's second stage at t_n but for n = 0
//
//   score(y, t) = net(y, t), or grad log pi(y) + net(y, t) / sqrt(v(t)) (residual), where the network may be given
//   grad log pi(y) times a number as d inputs more (features).
#pragma once

#include "mixture.h"
#include "mlp.h"
#include "philox.h"

namespace fastndsm {

template <typename S>
struct ReverseView {
  MixtureView<S> mixture;
  MlpView<S> net;          // row n of its tables is for t_{n+1}
  const S* drift_scale;    // a_n [N]
  const S* noise_std;      // s_n [N]
  const S* inverse_std;    // v(t_{n+1})^-1/2 [N], or null: not residual
  S feature_scale;         // 0: no features
  int64_t n_steps;
  NoiseStream noise;
  bool ode;
};

// y - a grad log pi + weight score.
template <typename V>
FASTNDSM_HD V reverse_mean(V y, V reference, V score, scalar_of<V> a, scalar_of<V> weight) {
  return fused(splat<V>(weight), score, fused(splat<V>(-a), reference, y));
}

template <typename V>
FASTNDSM_HD V residual_score(V reference, V correction, scalar_of<V> inverse_std) {
  return fused(splat<V>(inverse_std), correction, reference);
}

template <typename V, Covariance kind>
struct ReverseTile {
  using S = scalar_of<V>;

  const ReverseView<S>& p;
  MixtureScratch<V> scratch;
  V *y, *euler;           // [d]
  V *reference, *output;  // [padded d]
  V *h, *other;           // [net.widest()]

  static int64_t vectors(const ReverseView<S>& p) {
    const int64_t d = p.mixture.dim;
    return MixtureScratch<V>::vectors(p.mixture.n_components, d) + 2 * d + 2 * padded_outputs(d) + 2 * p.net.widest();
  }

  FASTNDSM_HD ReverseTile(const ReverseView<S>& view, V* base)
      : p(view), scratch(base, view.mixture.n_components, view.mixture.dim) {
    const int64_t d = p.mixture.dim;
    y = base + MixtureScratch<V>::vectors(p.mixture.n_components, d), euler = y + d;
    reference = euler + d, output = reference + padded_outputs(d);
    h = output + padded_outputs(d), other = h + p.net.widest();
  }

  // y_N -> y_0. The step that first gave a value that is not finite in one of the first `count` lanes, or -1.
  FASTNDSM_HD int64_t run(const PathCounters<words_of<V>>& paths, int count) const {
    const int64_t d = p.mixture.dim;
    for (int64_t n = p.n_steps - 1; n >= 0; --n) {
      const S s = p.noise_std[n];
      if (p.ode) {
        euler_step(y, n, n, S(0.5) * s * s, euler);
        if (n > 0) {
          euler_step(euler, n, n - 1, S(0.5) * s * s, euler);
          for (int64_t j = 0; j < d; ++j) y[j] = S(0.5) * (y[j] + euler[j]);
        } else {
          for (int64_t j = 0; j < d; ++j) y[j] = euler[j];
        }
      } else {
        euler_step(y, n, n, s * s, y);
        if (n > 0) {
          normals(paths.at(static_cast<uint32_t>(n), p.noise.key), 0, d, euler);
          for (int64_t j = 0; j < d; ++j) y[j] = fused(splat<V>(s), euler[j], y[j]);
        }
      }
      if (!finite(count)) return n;
    }
    return -1;
  }

 private:
  // The mean of step n from x to `to`, with the network at the time of this row.
  FASTNDSM_HD void euler_step(const V* x, int64_t n, int64_t row, S weight, V* to) const {
    const int64_t d = p.mixture.dim;
    MixtureTile<V, kind, false> mixture(p.mixture, scratch);
    mixture.prepare(x, nullptr);
    mixture.all_moments(x, nullptr, reference, nullptr, nullptr);
    for (int64_t j = 0; j < d; ++j) h[j] = x[j];
    if (p.feature_scale != S(0)) {
      for (int64_t j = 0; j < d; ++j) h[d + j] = p.feature_scale * reference[j];
    }
    output_layer(p.net, hidden_layers(p.net, row, h, other), output);
    for (int64_t j = 0; j < d; ++j) {
      const V score = p.inverse_std ? residual_score(reference[j], output[j], p.inverse_std[row]) : output[j];
      to[j] = reverse_mean(x[j], reference[j], score, p.drift_scale[n], weight);
    }
  }

  FASTNDSM_HD bool finite(int count) const {
    V none = V{};
    for (int64_t j = 0; j < p.mixture.dim; ++j) none = fma(y[j], splat<V>(S(0)), none);  // NaN from NaN and infinity
    S lanes[lanes_of<V>];
    store(lanes, none);
    bool all = true;
    for (int l = 0; l < count; ++l) all &= lanes[l] == S(0);
    return all;
  }
};

}  // namespace fastndsm
