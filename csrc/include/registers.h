// Trajectories in small dimension with the state of a sample in registers: what one thread of a GPU does, and one lane here.
//
// D is the dimension, filled up with zeros to a size known at compile time. The mixture is visited once a step: groups of
// components under a running maximum (online softmax), their sums in registers,
//
//   score = sum_k r_k g_k,    H z = sum_k r_k (g_k (g_k . z) - P_k z) - score (score . z),    g_k = P_k (m_k - x)
//
// as in mixture.h, and the same recursions as in simulate.h:
//
//   x <- x + a_n score + s_n z
//   h <- c h + [(s_n^2 - c (1 - c) v) z - c v a_n H z] / s_n,    v <- s_n^2 + c^2 v,    c = 1 - a_n p(x_0),    target = -h / v
#pragma once

#include "mixture.h"
#include "philox.h"

namespace fastndsm {

enum class Mode { state, target, reverse };  // noising, noising with the path estimator's target, one step back

// Parameters of the mixture, padded: dimensions to D with zeros, components to whole groups with log_scale kNeverChosen.
// `full` is also for tied covariances, with a stride of 0.
template <typename S>
struct RegisterMixture {
  int n_components;   // a multiple of kComponents
  const S* means;     // [K, D] spherical, full
  const S* roots;     // [K, D] diag: sqrt(P), -sqrt(P) m and P m
  const S* shifts;
  const S* pulls;
  const S* precisions;     // [K], [K, D] or [K or 1, D, D]
  int precision_stride;    // of full ones
  const S* log_scale;      // [K], in units of log 2
};

template <Covariance kind>
constexpr int kComponents = kind == Covariance::full ? 1 : 4;
constexpr double kNeverChosen = -1.0e38;

// 2^x for x <= 0; on a GPU by its own instruction, to 2 ulp.
template <typename S>
FASTNDSM_HD S weight_of(S x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(S) == 4) return ::exp2f(::fmaxf(x, -100.0f));
#endif
  return exp2_nonpositive(x);
}

template <typename S, Covariance kind, int D, bool with_product>
class OnlineMixture {
  static constexpr S kHalfLog2e = S(0.72134752044448170368);
  // Components taken at once: many parameters would cost as many registers.
  static constexpr int G = D < 8 || kind == Covariance::full ? kComponents<kind> : D >= 32 && with_product ? 1 : 2;
  static constexpr bool kDiag = kind == Covariance::diag, kFull = kind == Covariance::full;
  static constexpr bool kSpherical = kind == Covariance::spherical;

 public:
  // All components; z only with_product.
  FASTNDSM_HD OnlineMixture(const RegisterMixture<S>& m, const S (&x)[D], const S* z) : m_(m) {
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) a_[j] = S(0);
    if constexpr (with_product) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) b_[j] = S(0);
    }
    if constexpr (kDiag) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) r_[j] = S(0);
    }
    if constexpr (kDiag && with_product) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) s_[j] = S(0);
    }
    for (int k = 0; k < m.n_components; k += G) absorb(k, x, z);
    inverse_ = S(1) / total_;
    rate_ *= inverse_, along_ *= inverse_, slope_ *= inverse_;
  }

  FASTNDSM_HD S score(int j, const S (&x)[D]) const {
    if constexpr (kFull) return a_[j] * inverse_;
    return fused(S(-x[j]), precision(j), S(a_[j] * inverse_));
  }

  // Of dimension j, whose score is g.
  FASTNDSM_HD S product(int j, S g, const S (&x)[D], const S* z) const {
    if constexpr (kFull) return fused(S(-g), along_, S(b_[j] * inverse_));
    const S q = kDiag ? S(s_[kDiag ? j : 0] * inverse_) : slope_;
    return fused(S(-g), along_, fused(S(-precision(j)), z[j], fused(S(-x[j]), q, S(b_[j] * inverse_))));
  }

  // sum_k r_k (P_k)_jj.
  FASTNDSM_HD S precision(int j) const {
    if constexpr (kDiag) return r_[j] * inverse_;
    return rate_;
  }

  // The same of full covariances, all dimensions. Only the first step asks for it: a pass of its own.
  FASTNDSM_HD void full_precisions(const S (&x)[D], S* out) const {
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) out[j] = S(0);
    for (int k = 0; k < m_.n_components; ++k) {
      S u[D], w[D], l, along;
      full_logit(k, x, nullptr, u, w, l, along);
      const S r = weight_of(S(l - maximum_)) * inverse_;
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) out[j] = fma(r, m_.precisions[k * m_.precision_stride + j * (D + 1)], out[j]);
    }
  }

 private:
  FASTNDSM_HD void absorb(int k0, const S (&x)[D], const S* z) {
    S l[G], along[G];
    S u[kFull ? D : 1], w[kFull ? D : 1];
    if constexpr (kFull) {
      full_logit(k0, x, z, u, w, l[0], along[0]);
    } else {
      logits(k0, x, z, l, along);
    }
    S peak = maximum_;
    FASTNDSM_UNROLL
    for (int g = 0; g < G; ++g) peak = fastndsm::max(l[g], peak);
    const S factor = weight_of(S(maximum_ - peak));
    maximum_ = peak;
    total_ *= factor, rate_ *= factor, along_ *= factor, slope_ *= factor;
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) {
      a_[j] *= factor;
      if constexpr (with_product) b_[j] *= factor;
      if constexpr (kDiag) r_[j] *= factor;
      if constexpr (kDiag && with_product) s_[j] *= factor;
    }
    FASTNDSM_UNROLL
    for (int g = 0; g < G; ++g) {
      const int k = k0 + g;
      S e = weight_of(S(l[g] - peak)), c = S(0);
      total_ += e;
      if constexpr (with_product) c = e * along[g], along_ += c;
      if constexpr (kSpherical) {
        const S p = m_.precisions[k];
        e *= p, rate_ += e;
        if constexpr (with_product) c *= p, slope_ += c;
      }
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        const S value = kFull ? u[kFull ? j : 0] : kDiag ? m_.pulls[k * D + j] : m_.means[k * D + j];
        a_[j] = fma(e, value, a_[j]);
        if constexpr (with_product) b_[j] = fma(c, value, b_[j]);
        if constexpr (kFull && with_product) b_[j] = fma(S(-e), w[j], b_[j]);
        if constexpr (kDiag) {
          const S p = m_.precisions[k * D + j];
          r_[j] = fma(e, p, r_[j]);
          if constexpr (with_product) s_[j] = fma(c, p, s_[j]);
        }
      }
    }
  }

  // In units of log 2, and g_k . z.
  FASTNDSM_HD void logits(int k0, const S (&x)[D], const S* z, S (&l)[G], S (&along)[G]) const {
    FASTNDSM_UNROLL
    for (int g = 0; g < G; ++g) {
      S q = S(0), product = S(0);
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        const int at = (k0 + g) * D + j;
        const S t = kDiag ? fma(x[j], m_.roots[at], m_.shifts[at]) : S(x[j] - m_.means[at]);
        q = fma(t, t, q);
        if constexpr (with_product) product = fma(S(-t), kDiag ? S(z[j] * m_.roots[at]) : z[j], product);
      }
      const S p = kSpherical ? m_.precisions[k0 + g] : S(1);
      l[g] = fma(q, S(-kHalfLog2e * p), m_.log_scale[k0 + g]);
      along[g] = p * product;
    }
  }

  // u = P (m - x), w = P z.
  FASTNDSM_HD void full_logit(int k, const S (&x)[D], const S* z, S* u, S* w, S& l, S& along) const {
    const S *mean = m_.means + k * D, *precision = m_.precisions + k * m_.precision_stride;
    S q = S(0);
    along = S(0);
    FASTNDSM_UNROLL
    for (int i = 0; i < D; ++i) {
      S sum = S(0), product = S(0);
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        sum = fma(precision[i * D + j], S(mean[j] - x[j]), sum);
        if (with_product && z) product = fma(precision[i * D + j], z[j], product);
      }
      u[i] = sum, w[i] = product;
      q = fma(S(mean[i] - x[i]), sum, q);
      if (with_product && z) along = fma(sum, z[i], along);
    }
    l = fma(q, S(-kHalfLog2e), m_.log_scale[k]);
  }

  const RegisterMixture<S>& m_;
  S maximum_ = S(detail::kSingle<S> ? -3.0e38 : -1.0e308);
  S total_ = S(0), rate_ = S(0), along_ = S(0), slope_ = S(0), inverse_ = S(0);
  S a_[D], b_[with_product ? D : 1];
  S r_[kDiag ? D : 1], s_[kDiag && with_product ? D : 1];
};

template <typename S>
struct RegisterProcess {
  RegisterMixture<S> mixture;
  int dim;
  const S* drift_scale;  // a_n [N]
  const S* noise_std;    // s_n [N]
  NoiseStream noise;
};

// z[0 .. C): the normals of dimensions j0 .. j0 + C - 1, 0 from dimension `dim` on; 4 divides j0.
template <int C, typename S>
FASTNDSM_HD void padded_normals(const typename PathCounters<uint32_t>::AtStep& counters, int j0, int dim, S* z) {
  uint32_t w[1][4];
  counters.words(static_cast<uint32_t>(j0 / 4), w);
  FASTNDSM_UNROLL
  for (int i = 0; i < C; i += 2) box_muller<S>(w[0][i], w[0][i + 1], z[i], z[i + 1]);
  FASTNDSM_UNROLL
  for (int i = 0; i < C; ++i) z[i] = j0 + i < dim ? z[i] : S(0);
}

template <typename S, Covariance kind, int D, bool target>
struct RegisterTrajectory {
  static constexpr int kRates = !target || kind == Covariance::spherical ? 1 : D;
  static constexpr int C = D < 4 ? D : 4;  // dimensions of one counter

  S x[D];
  S* h;        // v H, element j at h[j stride]: the one array that is read only once a step, and may lie elsewhere
  int stride;
  S v[kRates], rate[kRates];

  FASTNDSM_HD RegisterTrajectory(const S* x0, int dim, S* h, int stride) : h(h), stride(stride) {
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) {
      x[j] = j < dim ? x0[j] : S(0);
      if constexpr (target) h[j * stride] = S(0);
    }
    FASTNDSM_UNROLL
    for (int r = 0; r < kRates; ++r) v[r] = S(0);
  }

  // Step n; its mean and noise go where the two pointers say, if they do. The noise is multiplied by sign.
  FASTNDSM_HD void step(const RegisterProcess<S>& p, const PathCounters<uint32_t>& path, int n, S sign, S* mean, S* noise) {
    const auto counters = path.at(static_cast<uint32_t>(n), p.noise.key);
    const S a = p.drift_scale[n], s = p.noise_std[n];
    S z[target ? D : C];
    if constexpr (target) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; j += C) {
        padded_normals<C>(counters, j, p.dim, z + j);
        FASTNDSM_UNROLL
        for (int i = 0; i < C; ++i) z[j + i] *= sign;
      }
    }
    const OnlineMixture<S, kind, D, target> mixture(p.mixture, x, z);
    if constexpr (target && kind == Covariance::full) {
      if (n == 0) mixture.full_precisions(x, rate);
    }
    FASTNDSM_UNROLL
    for (int j0 = 0; j0 < D; j0 += C) {
      if constexpr (!target) padded_normals<C>(counters, j0, p.dim, z);
      FASTNDSM_UNROLL
      for (int i = 0; i < C; ++i) {
        const int j = j0 + i, r = kRates == 1 ? 0 : j;
        const S zj = z[target ? j : i];
        const S score = mixture.score(j, x);
        if constexpr (target) {
          if (kind != Covariance::full && n == 0) rate[r] = mixture.precision(j);
          const S c = S(1) - a * rate[r];
          const S own = s - c * (S(1) - c) * v[r] * (S(1) / s);
          h[j * stride] = fused(c, h[j * stride], fused(own, zj, S(c * v[r] * (-a / s) * mixture.product(j, score, x, z))));
        }
        const S at = fused(a, score, x[j]);
        x[j] = fused(s, zj, at);
        if (mean && j < p.dim) mean[j] = at, noise[j] = zj;
      }
    }
    if constexpr (target) {
      FASTNDSM_UNROLL
      for (int r = 0; r < kRates; ++r) {
        const S c = S(1) - a * rate[r];
        v[r] = fused(S(c * c), v[r], S(s * s));
      }
    }
  }

  // -h / v, or 0 where no step was taken.
  FASTNDSM_HD S target_value(int j) const {
    const S own = v[kRates == 1 ? 0 : j];
    return own > S(0) ? S(-h[j * stride] / own) : S(0);
  }
};

// One step of the reverse process, in place: y - a grad log pi(y) + weight score + s xi; s is 0 where there is no noise.
template <Covariance kind, int D, typename S>
FASTNDSM_HD void reverse_step(const RegisterProcess<S>& p, const PathCounters<uint32_t>& path, int n, S weight, S s,
                              const S* score, S (&y)[D]) {
  constexpr int C = D < 4 ? D : 4;
  const OnlineMixture<S, kind, D, false> mixture(p.mixture, y, nullptr);
  const auto counters = path.at(static_cast<uint32_t>(n), p.noise.key);
  FASTNDSM_UNROLL
  for (int j0 = 0; j0 < D; j0 += C) {
    S z[C];
    if (s != S(0)) {
      padded_normals<C>(counters, j0, p.dim, z);
    } else {
      FASTNDSM_UNROLL
      for (int i = 0; i < C; ++i) z[i] = S(0);
    }
    FASTNDSM_UNROLL
    for (int i = 0; i < C; ++i) {
      const int j = j0 + i;
      const S learnt = j < p.dim ? score[j] : S(0);
      y[j] = fused(s, z[i], fused(weight, learnt, fused(S(-p.drift_scale[n]), mixture.score(j, y), y[j])));
    }
  }
}

}  // namespace fastndsm
