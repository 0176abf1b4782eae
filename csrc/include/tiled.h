// Trajectories in large dimension with the state on chip: what one warp of a GPU does with N samples, all steps of them.
//
// Lane l takes the dimensions 4 (32 i + l) .. + 3, i = 0, 1, ...: those of one counter of the noise. A step visits the
// mixture twice: first the logits of all components, sums over dimensions that end in a sum over lanes, then, with the
// weights known, the posterior means and the update dimension by dimension. Parameters are read from global memory, which
// every warp does in the same order, once for N samples.
//
// Warp is 32 lanes: V holds a number of each, one of them in a thread of a GPU, all in a test on the host.
//
//   lane()                                   0 .. 31
//   shuffle_xor(v, mask)                     of each lane l, the value of lane l ^ mask
//   load4, store4(p, block, n_blocks, v[4])  p[4 (block + lane) + c], 0 beyond n_blocks
//   load_row, store_row(p, block, dim, v[4]) the same of a row that is not padded
//   load_lanes(p, i, n, repeat, otherwise)   p[(i + lane) / repeat], `otherwise` where i + lane >= n
//   store_lanes(p, i, n, v)                  p[i + lane], where i + lane < n
//   below(i, n)                              1 where i + lane < n, else 0
//   put(p, v)                                *p, from lane 0
//   sync()                                   what lanes have stored is seen by the others
#pragma once

#include "parameters.h"
#include "records.h"
#include "simulate.h"

namespace fastndsm {

constexpr int kWarp = 32;

template <typename S>
struct TiledProcess {
  RegisterMixture<S> mixture;  // dimensions padded to `padded`
  int dim, padded;             // padded: a multiple of 4
  const S* drift_scale;        // a_n [N]
  const S* noise_std;          // s_n [N]
  NoiseStream noise;
};

// The N samples of a warp.
template <typename S, int N>
struct TiledRows {
  int64_t path[N];
  int64_t from[N], to[N];  // rows of the inputs, and where those of the outputs begin
  int steps[N];            // the most that a record takes
  PathRecords records[N];
  S sign[N];
  int count;  // the others repeat one of these and are not stored
};

template <typename S>
struct TiledArrays {
  const S* start;  // [rows, dim]: x0, or y
  const S *held, *slope, *own;  // reverse; slope, and the rates [rows], may be null
  S *x, *mean, *noise, *target, *variance;
};

template <typename Warp, typename S, Covariance kind, Mode mode, int N>
class WarpTrajectory {
  using V = typename Warp::V;
  using U = typename Warp::U;
  static constexpr bool kTarget = mode == Mode::target, kDiag = kind == Covariance::diag;
  static constexpr bool kRates = kTarget && kDiag;  // v and p(x_0) of every dimension
  static constexpr int kTogether = N == 1 ? 8 : 4;  // components
  static constexpr S kHalfLog2e = S(0.72134752044448170368);

 public:
  // Memory of a warp, in numbers.
  FASTNDSM_HD static int64_t floats(int n_components, int padded) {
    return int64_t(N) * padded * (kRates ? 5 : kTarget ? 3 : 1) + int64_t(N) * n_components * (kTarget ? 2 : 1) + 4 * N;
  }

  FASTNDSM_HD WarpTrajectory(const TiledProcess<S>& process, const TiledRows<S, N>& rows, const TiledArrays<S>& arrays,
                             S* memory, Warp warp)
      : p_(process), rows_(rows), to_(arrays), warp_(warp), n_(process.mixture.n_components), blocks_(process.padded / 4) {
    const int size = N * p_.padded;
    x_ = memory, z_ = x_ + size, h_ = z_ + size, v_ = h_ + size, rate_ = v_ + size;
    weights_ = memory + size * (kRates ? 5 : kTarget ? 3 : 1);
    products_ = weights_ + N * n_, sums_ = weights_ + N * n_ * (kTarget ? 2 : 1);
  }

  FASTNDSM_HD void simulate() {
    start();
    int longest = 0;
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) longest = rows_.steps[s] > longest ? rows_.steps[s] : longest;
    PathRecords records[N];
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) records[s] = rows_.records[s];
    for (int n = 0;; ++n) {
      FASTNDSM_UNROLL
      for (int s = 0; s < N; ++s) {
        if (s < rows_.count) records[s].take(n, [&](int64_t place) { finish(s, rows_.to[s] + place); });
      }
      if (n == longest) break;
      if constexpr (kTarget) draw(n);
      weigh();
      for (int b = 0; b < blocks_; b += kWarp) noising_step(n, b);
      if constexpr (kTarget && !kDiag) {
        FASTNDSM_UNROLL
        for (int s = 0; s < N; ++s) {
          if (n == 0) scalar_rate_[s] = sums_[N + s];
          const S c = S(1) - p_.drift_scale[n] * scalar_rate_[s], std = p_.noise_std[n];
          if (n < rows_.steps[s]) scalar_v_[s] = fused(S(c * c), scalar_v_[s], S(std * std));
        }
      }
      warp_.sync();
    }
  }

  // From t_first down to t_last.
  FASTNDSM_HD void reverse(const ReverseTable<S>& table, int first, int last) {
    start();
    for (int n = first - 1; n >= last; --n) {
      const ReverseStep<S> step = table[n];
      if (step.drift != S(0)) weigh();
      for (int b = 0; b < blocks_; b += kWarp) step_back(step, n, b);
      warp_.sync();
    }
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) {
      if (s < rows_.count) finish(s, rows_.to[s]);
    }
  }

 private:
  FASTNDSM_HD void start() {
    const V zero[4] = {V{}, V{}, V{}, V{}};
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) {
      scalar_v_[s] = scalar_rate_[s] = S(0);
      for (int b = 0; b < blocks_; b += kWarp) {
        V x[4];
        warp_.load_row(to_.start + rows_.from[s] * p_.dim, b, p_.dim, x);
        warp_.store4(x_ + s * p_.padded, b, blocks_, x);
        if constexpr (kTarget) warp_.store4(h_ + s * p_.padded, b, blocks_, zero);
        if constexpr (kRates) warp_.store4(v_ + s * p_.padded, b, blocks_, zero);
        if (mode == Mode::state && to_.mean && rows_.steps[s] == 0 && s < rows_.count) {
          warp_.store_row(to_.mean + rows_.to[s] * p_.dim, b, p_.dim, x);
          warp_.store_row(to_.noise + rows_.to[s] * p_.dim, b, p_.dim, zero);
        }
      }
    }
  }

  // Of sample s at step n, its sign apart; 0 beyond the last dimension.
  FASTNDSM_HD void normals(int s, int n, int block, V (&z)[4]) const {
    uint32_t c0, c1;
    path_words(rows_.path[s], p_.noise.stream, c0, c1);
    const CommonWords common(c1, static_cast<uint32_t>(n), p_.noise.key);
    const U path[1] = {splat<U>(c0)}, at[1] = {U(warp_.lane() + static_cast<uint32_t>(block))};
    U w[1][4];
    common.words(path, at, w);
    box_muller<V>(w[0][0], w[0][1], z[0], z[1]);
    box_muller<V>(w[0][2], w[0][3], z[2], z[3]);
    FASTNDSM_UNROLL
    for (int c = 0; c < 4; ++c) z[c] *= warp_.below(block, (p_.dim - c + 3) / 4);
  }

  FASTNDSM_HD void draw(int n) const {
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) {
      for (int b = 0; b < blocks_; b += kWarp) {
        V z[4];
        normals(s, n, b, z);
        FASTNDSM_UNROLL
        for (int c = 0; c < 4; ++c) z[c] *= rows_.sign[s];
        warp_.store4(z_ + s * p_.padded, b, blocks_, z);
      }
    }
  }

  // Logits and g_k . z of all components; from them the weights, times P_k if spherical, and the sums over components.
  FASTNDSM_HD void weigh() const {
    for (int k = 0; k < n_; k += kTogether) logits(k);
    warp_.sync();
    const int entries = n_ * N;  // entry i is of component i / N and sample i % N, which is that of the lane
    V peak = splat<V>(S(-3.0e38));
    for (int i = 0; i < entries; i += kWarp) {
      peak = fastndsm::max(warp_.load_lanes(weights_, i, entries, 1, S(-3.0e38)), peak);
    }
    for (int mask = N; mask < kWarp; mask *= 2) peak = fastndsm::max(warp_.shuffle_xor(peak, mask), peak);
    V total = V{}, rate = V{}, along = V{}, slope = V{};
    for (int i = 0; i < entries; i += kWarp) {
      const V one = warp_.below(i, entries);
      V e = one * weight_of(V(warp_.load_lanes(weights_, i, entries, 1, S(-3.0e38)) - peak)), c = V{};
      total += e;
      if constexpr (kTarget) c = e * warp_.load_lanes(products_, i, entries, 1, S(0)), along += c;
      if constexpr (!kDiag) {
        const V precision = warp_.load_lanes(p_.mixture.precisions, i, entries, N, S(0));
        e *= precision, rate += e;
        if constexpr (kTarget) c *= precision, slope += c;
      }
      warp_.store_lanes(weights_, i, entries, e);
      if constexpr (kTarget) warp_.store_lanes(products_, i, entries, c);
    }
    for (int mask = N; mask < kWarp; mask *= 2) {
      total += warp_.shuffle_xor(total, mask), rate += warp_.shuffle_xor(rate, mask);
      along += warp_.shuffle_xor(along, mask), slope += warp_.shuffle_xor(slope, mask);
    }
    const V inverse = S(1) / total;
    warp_.store_lanes(sums_, 0, N, inverse);
    warp_.store_lanes(sums_ + N, 0, N, V(rate * inverse));
    warp_.store_lanes(sums_ + 2 * N, 0, N, V(along * inverse));
    warp_.store_lanes(sums_ + 3 * N, 0, N, V(slope * inverse));
    warp_.sync();
  }

  FASTNDSM_HD void logits(int k0) const {
    V q[kTogether][N], along[kTogether][kTarget ? N : 1];
    FASTNDSM_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      FASTNDSM_UNROLL
      for (int s = 0; s < N; ++s) q[k][s] = V{}, along[k][kTarget ? s : 0] = V{};
    }
    const int last = n_ - 1;
    for (int b = 0; b < blocks_; b += kWarp) {
      V x[N][4], z[kTarget ? N : 1][4];
      FASTNDSM_UNROLL
      for (int s = 0; s < N; ++s) {
        warp_.load4(x_ + s * p_.padded, b, blocks_, x[s]);
        if constexpr (kTarget) warp_.load4(z_ + s * p_.padded, b, blocks_, z[s]);
      }
      FASTNDSM_UNROLL
      for (int k = 0; k < kTogether; ++k) {
        const int64_t at = int64_t(k0 + k < last ? k0 + k : last) * p_.padded;
        V first[4], second[4];
        warp_.load4((kDiag ? p_.mixture.roots : p_.mixture.means) + at, b, blocks_, first);
        if constexpr (kDiag) warp_.load4(p_.mixture.shifts + at, b, blocks_, second);
        FASTNDSM_UNROLL
        for (int s = 0; s < N; ++s) {
          FASTNDSM_UNROLL
          for (int c = 0; c < 4; ++c) {
            const V t = kDiag ? fma(x[s][c], first[c], second[c]) : V(x[s][c] - first[c]);
            q[k][s] = fma(t, t, q[k][s]);
            if constexpr (kTarget) along[k][s] = fma(V(-t), kDiag ? V(z[s][c] * first[c]) : z[s][c], along[k][s]);
          }
        }
      }
    }
    FASTNDSM_UNROLL
    for (int k = 0; k < kTogether; ++k) {
      const bool real = k0 + k <= last;
      const S p = kDiag ? S(1) / kHalfLog2e : real ? p_.mixture.precisions[k0 + k] : S(1);
      const S half = kDiag ? S(1) : kHalfLog2e * p, offset = real ? p_.mixture.log_scale[k0 + k] : S(0);
      FASTNDSM_UNROLL
      for (int s = 0; s < N; ++s) {
        const V l = fma(sum(q[k][s]), splat<V>(-half), splat<V>(offset));
        if (real) warp_.put(weights_ + (k0 + k) * N + s, l);
        if constexpr (kTarget) {
          const V product = p * sum(along[k][s]);
          if (real) warp_.put(products_ + (k0 + k) * N + s, product);
        }
      }
    }
  }

  FASTNDSM_HD V sum(V v) const {
    FASTNDSM_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) v += warp_.shuffle_xor(v, mask);
    return v;
  }

  // Score, and with the target H z and the mean precision (diagonal), of the lanes' dimensions of this block.
  FASTNDSM_HD void moments(int b, V (&score)[N][4], V (&product)[kTarget ? N : 1][4]) const {
    V rate[kDiag ? N : 1][4];
    moments(b, score, product, rate);
  }

  FASTNDSM_HD void moments(int b, V (&score)[N][4], V (&product)[kTarget ? N : 1][4], V (&rate)[kDiag ? N : 1][4]) const {
    constexpr int M = kTarget && kDiag ? N : 1;
    V slope[M][4];
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) {
      FASTNDSM_UNROLL
      for (int c = 0; c < 4; ++c) {
        score[s][c] = V{}, rate[kDiag ? s : 0][c] = V{}, slope[M == 1 ? 0 : s][c] = V{};
        if constexpr (kTarget) product[s][c] = V{};
      }
    }
    for (int k = 0; k < n_; ++k) {
      V value[4], precision[4];
      warp_.load4((kDiag ? p_.mixture.pulls : p_.mixture.means) + int64_t(k) * p_.padded, b, blocks_, value);
      if constexpr (kDiag) warp_.load4(p_.mixture.precisions + int64_t(k) * p_.padded, b, blocks_, precision);
      FASTNDSM_UNROLL
      for (int s = 0; s < N; ++s) {
        const V e = splat<V>(weights_[k * N + s]);
        V f = V{};
        if constexpr (kTarget) f = splat<V>(products_[k * N + s]);
        FASTNDSM_UNROLL
        for (int c = 0; c < 4; ++c) {
          score[s][c] = fma(e, value[c], score[s][c]);
          if constexpr (kTarget) product[s][c] = fma(f, value[c], product[s][c]);
          if constexpr (kDiag) rate[s][c] = fma(e, precision[c], rate[s][c]);
          if constexpr (kTarget && kDiag) slope[s][c] = fma(f, precision[c], slope[s][c]);
        }
      }
    }
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) {
      const S inverse = sums_[s], along = sums_[2 * N + s];
      V x[4], z[4];
      warp_.load4(x_ + s * p_.padded, b, blocks_, x);
      if constexpr (kTarget) warp_.load4(z_ + s * p_.padded, b, blocks_, z);
      FASTNDSM_UNROLL
      for (int c = 0; c < 4; ++c) {
        V& p = rate[kDiag ? s : 0][c];
        p = kDiag ? V(p * inverse) : splat<V>(sums_[N + s]);
        const V g = fused(V(-x[c]), p, V(score[s][c] * inverse));
        score[s][c] = g;
        if constexpr (kTarget) {
          const V q = kDiag ? V(slope[M == 1 ? 0 : s][c] * inverse) : splat<V>(sums_[3 * N + s]);
          product[s][c] = fused(V(-g), splat<V>(along), fused(V(-p), z[c], fused(V(-x[c]), q, V(product[s][c] * inverse))));
        }
      }
    }
  }

  FASTNDSM_HD void noising_step(int n, int b) const {
    const S a = p_.drift_scale[n], std = p_.noise_std[n];
    V score[N][4], product[kTarget ? N : 1][4], rate[kDiag ? N : 1][4];
    moments(b, score, product, rate);
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) {
      if (n >= rows_.steps[s]) continue;
      V x[4], mean[4], z[4];
      warp_.load4(x_ + s * p_.padded, b, blocks_, x);
      if constexpr (kTarget) {
        warp_.load4(z_ + s * p_.padded, b, blocks_, z);
        target_step(n, b, s, z, product[s], rate[kDiag ? s : 0]);
      } else {
        normals(s, n, b, z);
      }
      FASTNDSM_UNROLL
      for (int c = 0; c < 4; ++c) {
        mean[c] = fused(splat<V>(a), score[s][c], x[c]);
        x[c] = fused(splat<V>(std), z[c], mean[c]);
      }
      warp_.store4(x_ + s * p_.padded, b, blocks_, x);
      if (mode == Mode::state && to_.mean && n + 1 == rows_.steps[s] && s < rows_.count) {
        warp_.store_row(to_.mean + rows_.to[s] * p_.dim, b, p_.dim, mean);
        warp_.store_row(to_.noise + rows_.to[s] * p_.dim, b, p_.dim, z);
      }
    }
  }

  FASTNDSM_HD void step_back(const ReverseStep<S>& step, int n, int b) const {
    V score[N][4], product[1][4];
    if (step.drift != S(0)) {
      moments(b, score, product);
    } else {
      FASTNDSM_UNROLL
      for (int s = 0; s < N; ++s) {
        FASTNDSM_UNROLL
        for (int c = 0; c < 4; ++c) score[s][c] = V{};
      }
    }
    FASTNDSM_UNROLL
    for (int s = 0; s < N; ++s) {
      const int64_t from = rows_.from[s] * p_.dim;
      const SampleStep<S> own = to_.own ? step.rated(to_.own[rows_.from[s]]) : step.unrated();
      V y[4], network[4], z[4] = {V{}, V{}, V{}, V{}};
      warp_.load4(x_ + s * p_.padded, b, blocks_, y);
      warp_.load_row(to_.held + from, b, p_.dim, network);
      if (to_.slope) {
        V slope[4];
        warp_.load_row(to_.slope + from, b, p_.dim, slope);
        FASTNDSM_UNROLL
        for (int c = 0; c < 4; ++c) network[c] = own.network(network[c], slope[c]);
      }
      if (step.std != S(0)) normals(s, n, b, z);
      FASTNDSM_UNROLL
      for (int c = 0; c < 4; ++c) y[c] = own.next(y[c], score[s][c], network[c], z[c]);
      warp_.store4(x_ + s * p_.padded, b, blocks_, y);
    }
  }

  FASTNDSM_HD void target_step(int n, int b, int s, const V (&z)[4], const V (&product)[4], const V (&now)[4]) const {
    const S a = p_.drift_scale[n], std = p_.noise_std[n];
    const int64_t at = int64_t(s) * p_.padded;
    V h[4], v[4], rate[4];
    warp_.load4(h_ + at, b, blocks_, h);
    if constexpr (kRates) {
      warp_.load4(v_ + at, b, blocks_, v);
      if (n == 0) warp_.store4(rate_ + at, b, blocks_, now);
      warp_.load4(rate_ + at, b, blocks_, rate);
    } else {
      FASTNDSM_UNROLL
      for (int c = 0; c < 4; ++c) v[c] = splat<V>(scalar_v_[s]), rate[c] = n == 0 ? now[c] : splat<V>(scalar_rate_[s]);
    }
    FASTNDSM_UNROLL
    for (int c = 0; c < 4; ++c) {
      const V k = S(1) - a * rate[c];
      const V own = std - k * (S(1) - k) * v[c] * (S(1) / std);
      h[c] = fused(k, h[c], fused(own, z[c], V(k * v[c] * (-a / std) * product[c])));
      v[c] = fused(V(k * k), v[c], splat<V>(std * std));
    }
    warp_.store4(h_ + at, b, blocks_, h);
    if constexpr (kRates) warp_.store4(v_ + at, b, blocks_, v);
  }

  // Sample s as it is, to a row of the outputs.
  FASTNDSM_HD void finish(int s, int64_t to) const {
    const int64_t at = int64_t(s) * p_.padded;
    for (int b = 0; b < blocks_; b += kWarp) {
      V x[4];
      warp_.load4(x_ + at, b, blocks_, x);
      warp_.store_row(to_.x + to * p_.dim, b, p_.dim, x);
      if constexpr (kTarget) {
        V h[4], v[4];
        warp_.load4(h_ + at, b, blocks_, h);
        if constexpr (kRates) {
          warp_.load4(v_ + at, b, blocks_, v);
          warp_.store_row(to_.variance + to * p_.dim, b, p_.dim, v);
        } else {
          for (int c = 0; c < 4; ++c) v[c] = splat<V>(scalar_v_[s]);
        }
        FASTNDSM_UNROLL
        for (int c = 0; c < 4; ++c) h[c] = select(v[c] > S(0), V(-h[c] / v[c]), V{});
        warp_.store_row(to_.target + to * p_.dim, b, p_.dim, h);
      }
    }
    if constexpr (kTarget && !kRates) warp_.put(to_.variance + to, splat<V>(scalar_v_[s]));
  }

  const TiledProcess<S>& p_;
  const TiledRows<S, N>& rows_;
  const TiledArrays<S>& to_;
  Warp warp_;
  int n_, blocks_;  // components; blocks of four dimensions
  S *x_, *z_, *h_, *v_, *rate_;      // [N, padded] each
  S *weights_, *products_, *sums_;   // [components, N], the same, [4, N]
  S scalar_v_[N], scalar_rate_[N];   // spherical
};

}  // namespace fastndsm
