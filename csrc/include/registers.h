// Trajectories in small dimension with the state of a sample in registers: one sample a thread on a GPU, one a lane on the CPU.
//
// V is what a register holds: a number, or a vector of samples. D is the dimension, filled up with zeros where the caller's
// is smaller. The mixture is visited once a step: groups of components under a running maximum (online softmax), their
// logits, weights and sums in registers,
//
//   score = sum_k r_k g_k,    H z = sum_k r_k (g_k (g_k . z) - P_k z) - score (score . z),    g_k = P_k (m_k - x)
//
// as in mixture.h, and the same recursions as in simulate.h:
//
//   x <- x + a_n score + s_n z
//   h <- c h + [(s_n^2 - c (1 - c) v) z - c v a_n H z] / s_n,    v <- s_n^2 + c^2 v,    c = 1 - a_n p(x_0),    target = -h / v
//
// and back, by the steps of reverse.h.
#pragma once

#include "mixture.h"
#include "philox.h"
#include "reverse.h"

namespace fastndsm {

enum class Mode { state, target, reverse };  // noising, noising with the path estimator's target, the reverse process

// Parameters of the mixture, dimensions padded to D with zeros; on a GPU components to whole groups of kComponents with
// log_scale kNeverChosen. `full` is also for tied covariances, with a stride of 0.
template <typename S>
struct RegisterMixture {
  int n_components;
  const S* means;  // [K, D] spherical, full
  const S* roots;  // [K, D] diag, as in MixtureView
  const S* shifts;
  const S* pulls;
  const S* precisions;  // [K], [K, D] or [K or 1, D, D]
  int precision_stride;  // of full ones
  const S* log_scale;  // [K], in units of log 2
};

// The dimension that vectors of samples have registers for, or 0; and the mixture as they read it.
template <typename S>
int known_dimension(const MixtureView<S>& m) {
  const bool small = sizeof(S) == 4 && m.dim >= 2 && m.dim <= 3;
  return small && (m.kind == Covariance::spherical || m.kind == Covariance::diag) ? static_cast<int>(m.dim) : 0;
}

template <typename S>
RegisterMixture<S> known_mixture(const MixtureView<S>& m) {
  return {static_cast<int>(m.n_components), m.means, m.roots, m.shifts, m.pulls, m.precisions, 0, m.log_scale};
}

template <Covariance kind>
constexpr int kComponents = kind == Covariance::full ? 1 : 4;
constexpr double kNeverChosen = -1.0e38;

// 2^x for x <= 0; on a GPU by its own instruction, to 2 ulp.
template <typename V>
FASTNDSM_HD V weight_of(V x) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof(V) == 4) return ::exp2f(::fmaxf(x, -100.0f));
#endif
  return exp2_nonpositive(x);
}

template <typename V, Covariance kind, int D, bool with_product>
class OnlineMixture {
  using S = scalar_of<V>;
  static constexpr S kHalfLog2e = S(0.72134752044448170368);
  // Components taken at once: on a GPU many parameters would cost as many registers, vectors have them in memory.
  static constexpr int G = kind == Covariance::full  ? 1
                           : lanes_of<V> > 1         ? 8
                           : D < 8                   ? kComponents<kind>
                           : D >= 32 && with_product ? 1
                                                     : 2;
  static constexpr bool kDiag = kind == Covariance::diag, kFull = kind == Covariance::full;
  static constexpr bool kSpherical = kind == Covariance::spherical;

 public:
  // All components; z only with_product.
  FASTNDSM_HD OnlineMixture(const RegisterMixture<S>& m, const V (&x)[D], const V* z) : m_(m) {
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) a_[j] = V{};
    if constexpr (with_product) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) b_[j] = V{};
    }
    if constexpr (kDiag) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) r_[j] = V{};
    }
    if constexpr (kDiag && with_product) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) s_[j] = V{};
    }
    int k = 0;
    for (; k + G <= m.n_components; k += G) absorb<G>(k, x, z);
#if !defined(__CUDA_ARCH__)
    rest(k, x, z);
#endif
    inverse_ = S(1) / total_;
    product_inverse_ = kDiag ? V(inverse_ * (S(1) / kHalfLog2e)) : inverse_;
    rate_ *= inverse_, along_ *= product_inverse_, slope_ *= inverse_;
  }

  FASTNDSM_HD V score(int j, const V (&x)[D]) const {
    if constexpr (kFull) return a_[j] * inverse_;
    return fused(V(-x[j]), precision(j), V(a_[j] * inverse_));
  }

  // Of dimension j, whose score is g.
  FASTNDSM_HD V product(int j, V g, const V (&x)[D], const V* z) const {
    if constexpr (kFull) return fused(V(-g), along_, V(b_[j] * product_inverse_));
    const V q = kDiag ? V(s_[kDiag ? j : 0] * product_inverse_) : slope_;
    return fused(V(-g), along_, fused(V(-precision(j)), z[j], fused(V(-x[j]), q, V(b_[j] * product_inverse_))));
  }

  // The largest logit; the lowest there is where one of them is NaN.
  FASTNDSM_HD V maximum() const { return select(total_ == total_, maximum_, splat<V>(kLowestLogit<V>)); }

  // sum_k r_k (P_k)_jj.
  FASTNDSM_HD V precision(int j) const {
    if constexpr (kDiag) return r_[j] * inverse_;
    return rate_;
  }

  // The same of full covariances, all dimensions. Only the first step asks for it: a pass of its own.
  FASTNDSM_HD void full_precisions(const V (&x)[D], V* out) const {
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) out[j] = V{};
    for (int k = 0; k < m_.n_components; ++k) {
      V u[D], w[D], l, along;
      full_logit(k, x, nullptr, u, w, l, along);
      const V r = weight_of(V(l - maximum_)) * inverse_;
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) out[j] = fma(r, splat<V>(m_.precisions[k * m_.precision_stride + j * (D + 1)]), out[j]);
    }
  }

 private:
  // Where components do not fill whole groups.
  FASTNDSM_HD void rest(int k, const V (&x)[D], const V* z) {
    if constexpr (G > 4) {
      if (k + 4 <= m_.n_components) absorb<4>(k, x, z), k += 4;
    }
    for (; k < m_.n_components; ++k) absorb<1>(k, x, z);
  }

  template <int N>
  FASTNDSM_HD void absorb(int k0, const V (&x)[D], const V* z) {
    V l[N], along[N];
    V u[kFull ? D : 1], w[kFull ? D : 1];
    if constexpr (kFull) {
      full_logit(k0, x, z, u, w, l[0], along[0]);
    } else {
      logits<N>(k0, x, z, l, along);
    }
    V peak = maximum_;
    FASTNDSM_UNROLL
    for (int g = 0; g < N; ++g) peak = fastndsm::max(l[g], peak);
    // The maximum may have grown: what was summed so far shrinks. A branch costs a GPU registers, and saves it little.
    if (lanes_of<V> == 1 || k0 > 0) {
      const V factor = weight_of(V(maximum_ - peak));
      total_ *= factor, rate_ *= factor, along_ *= factor, slope_ *= factor;
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        a_[j] *= factor;
        if constexpr (with_product) b_[j] *= factor;
        if constexpr (kDiag) r_[j] *= factor;
        if constexpr (kDiag && with_product) s_[j] *= factor;
      }
    }
    maximum_ = peak;
    FASTNDSM_UNROLL
    for (int g = 0; g < N; ++g) {
      const int k = k0 + g;
      V e = weight_of(V(l[g] - peak)), c = V{};
      total_ += e;
      if constexpr (with_product) c = e * along[g], along_ += c;
      if constexpr (kSpherical) {
        const S p = m_.precisions[k];
        e *= p, rate_ += e;
        if constexpr (with_product) c *= p, slope_ += c;
      }
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        V value;
        if constexpr (kFull) {
          value = u[j];
        } else {
          value = splat<V>((kDiag ? m_.pulls : m_.means)[k * D + j]);
        }
        a_[j] = fma(e, value, a_[j]);
        if constexpr (with_product) b_[j] = fma(c, value, b_[j]);
        if constexpr (kFull && with_product) b_[j] = fma(V(-e), w[j], b_[j]);
        if constexpr (kDiag) {
          const V p = splat<V>(m_.precisions[k * D + j]);
          r_[j] = fma(e, p, r_[j]);
          if constexpr (with_product) s_[j] = fma(c, p, s_[j]);
        }
      }
    }
  }

  // In units of log 2, and g_k . z, the latter times kHalfLog2e if diag.
  template <int N>
  FASTNDSM_HD void logits(int k0, const V (&x)[D], const V* z, V (&l)[N], V (&along)[N]) const {
    FASTNDSM_UNROLL
    for (int g = 0; g < N; ++g) {
      V q = kDiag ? splat<V>(m_.log_scale[k0 + g]) : V{}, product = V{};
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        const int at = (k0 + g) * D + j;
        const V t = kDiag ? fma(x[j], splat<V>(m_.roots[at]), splat<V>(m_.shifts[at])) : V(x[j] - m_.means[at]);
        q = fma(kDiag ? V(-t) : t, t, q);
        if constexpr (with_product) product = fma(V(-t), kDiag ? V(z[j] * m_.roots[at]) : z[j], product);
      }
      const S p = kSpherical ? m_.precisions[k0 + g] : S(1);
      l[g] = kDiag ? q : fma(q, splat<V>(-kHalfLog2e * p), splat<V>(m_.log_scale[k0 + g]));
      if constexpr (with_product) along[g] = p * product;
    }
  }

  // u = P (m - x), w = P z.
  FASTNDSM_HD void full_logit(int k, const V (&x)[D], const V* z, V* u, V* w, V& l, V& along) const {
    const S *mean = m_.means + k * D, *precision = m_.precisions + k * m_.precision_stride;
    V q = V{};
    along = V{};
    FASTNDSM_UNROLL
    for (int i = 0; i < D; ++i) {
      V sum = V{}, product = V{};
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        sum = fma(splat<V>(precision[i * D + j]), V(mean[j] - x[j]), sum);
        if (with_product && z) product = fma(splat<V>(precision[i * D + j]), z[j], product);
      }
      u[i] = sum, w[i] = product;
      q = fma(V(mean[i] - x[i]), sum, q);
      if (with_product && z) along = fma(sum, z[i], along);
    }
    l = fma(q, splat<V>(-kHalfLog2e), splat<V>(m_.log_scale[k]));
  }

  const RegisterMixture<S>& m_;
  V maximum_ = splat<V>(kLowestLogit<V>);
  V total_ = V{}, rate_ = V{}, along_ = V{}, slope_ = V{}, inverse_ = V{}, product_inverse_ = V{};
  V a_[D], b_[with_product ? D : 1];
  V r_[kDiag ? D : 1], s_[kDiag && with_product ? D : 1];
};

template <typename S>
struct RegisterProcess {
  RegisterMixture<S> mixture;
  int dim;
  const S* drift_scale;  // a_n [N]
  const S* noise_std;  // s_n [N]
  NoiseStream noise;
};

// z[0 .. C): the normals of dimensions j0 .. j0 + C - 1, 0 from dimension `dim` on; 4 divides j0.
template <int C, typename V>
FASTNDSM_HD void padded_normals(const typename PathCounters<words_of<V>>::AtStep& counters, int j0, int dim, V* z) {
  some_normals<C, V>(counters, static_cast<uint32_t>(j0 / 4), z);
  FASTNDSM_UNROLL
  for (int i = 0; i < C; ++i) z[i] = j0 + i < dim ? z[i] : V{};
}

// Dimensions of one counter.
template <int D>
constexpr int kCounter = D < 4 ? D : 4;

template <typename V, Covariance kind, int D, bool target>
struct RegisterTrajectory {
  using S = scalar_of<V>;
  using Counters = typename PathCounters<words_of<V>>::AtStep;
  static constexpr int kRates = !target || kind == Covariance::spherical ? 1 : D;
  // Noise ahead of the mixture: the target needs it there, and vectors overlap its long chains with the mixture's.
  static constexpr bool kAhead = target || lanes_of<V> > 1;

  V x[D];
  V* h;  // v H, element j at h[j stride]: the one array that is read only once a step, and may lie elsewhere
  int stride;
  V v[kRates], rate[kRates];

  // x is the caller's to set.
  FASTNDSM_HD RegisterTrajectory(V* h, int stride) : h(h), stride(stride) {
    if constexpr (target) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) h[j * stride] = V{};
    }
    FASTNDSM_UNROLL
    for (int r = 0; r < kRates; ++r) v[r] = V{};
  }

  // The noise of a step.
  FASTNDSM_HD static void draw(int dim, const Counters& counters, V (&z)[D]) {
    FASTNDSM_UNROLL
    for (int j = 0; j < D; j += kCounter<D>) padded_normals<kCounter<D>, V>(counters, j, dim, z + j);
  }

  // Step n, in lanes that are active (a mask, or true). drawn is its noise if kAhead, to be multiplied by sign.
  // keep(j, mean, noise) sees both.
  template <typename Mask, typename Keep>
  FASTNDSM_HD void step(const RegisterProcess<S>& p, const Counters& counters, int n, const V* drawn, S sign, Mask active,
                        const Keep& keep) {
    constexpr int C = kCounter<D>;
    const S a = p.drift_scale[n], s = p.noise_std[n];
    V z[kAhead ? D : C];
    if constexpr (kAhead) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) z[j] = drawn[j] * sign;
    }
    const OnlineMixture<V, kind, D, target> mixture(p.mixture, x, target ? z : nullptr);
    if constexpr (target && kind == Covariance::full) {
      if (n == 0) mixture.full_precisions(x, rate);
    }
    FASTNDSM_UNROLL
    for (int j0 = 0; j0 < D; j0 += C) {
      if constexpr (!kAhead) padded_normals<C, V>(counters, j0, p.dim, z);
      FASTNDSM_UNROLL
      for (int i = 0; i < C; ++i) {
        const int j = j0 + i, r = kRates == 1 ? 0 : j;
        const V zj = z[kAhead ? j : i];
        const V score = mixture.score(j, x);
        if constexpr (target) {
          if (kind != Covariance::full && n == 0) rate[r] = mixture.precision(j);
          const V c = S(1) - a * rate[r];
          const V own = s - c * (S(1) - c) * v[r] * (S(1) / s);
          const V next = fused(c, h[j * stride], fused(own, zj, V(c * v[r] * (-a / s) * mixture.product(j, score, x, z))));
          h[j * stride] = select(active, next, h[j * stride]);
        }
        const V mean = fused(splat<V>(a), score, x[j]);
        keep(j, mean, zj);
        x[j] = select(active, fused(splat<V>(s), zj, mean), x[j]);
      }
    }
    if constexpr (target) {
      FASTNDSM_UNROLL
      for (int r = 0; r < kRates; ++r) {
        const V c = S(1) - a * rate[r];
        v[r] = select(active, fused(V(c * c), v[r], splat<V>(s * s)), v[r]);
      }
    }
  }

  // One step back, `lanes` its coefficients of the lanes; held and slope of dimension j lie at [j at]. far(x, maximum) gives the scores of lanes whose largest
  // logit is the lowest there is; a null pointer leaves them.
  template <typename Far>
  FASTNDSM_HD void step_back(const RegisterMixture<S>& mixture, int dim, const ReverseStep<S>& step,
                             const SampleStep<V>& lanes, const Counters& counters, const V* held, const V* slope, int at,
                             const Far& far) {
    constexpr int C = kCounter<D>;
    const bool draws = step.std != S(0);
    V z[kAhead ? D : C], score[D];
    FASTNDSM_UNROLL
    for (int i = 0; i < (kAhead ? D : C); ++i) z[i] = V{};
    if constexpr (kAhead) {
      if (draws) draw(dim, counters, z);
    }
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) score[j] = V{};
    if (step.drift != S(0)) {
      const OnlineMixture<V, kind, D, false> online(mixture, x, nullptr);
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) score[j] = online.score(j, x);
      if constexpr (!std::is_null_pointer<Far>::value) {
        const auto within = online.maximum() > kLowestLogit<V>;
        if (any_lane(!within)) {
          V point[D];  // a copy: whose address is taken does not stay in registers
          for (int j = 0; j < D; ++j) point[j] = x[j];
          const V* const beyond = far(point, online.maximum());
          for (int j = 0; j < D; ++j) score[j] = select(within, score[j], beyond[j]);
        }
      }
    }
    FASTNDSM_UNROLL
    for (int j0 = 0; j0 < D; j0 += C) {
      if (!kAhead && draws) padded_normals<C, V>(counters, j0, dim, z);
      FASTNDSM_UNROLL
      for (int i = 0; i < C; ++i) {
        const int j = j0 + i;
        x[j] = lanes.next(x[j], score[j], lanes.network(held[j * at], slope[j * at]), z[kAhead ? j : i]);
      }
    }
  }

  // -h / v, or 0 where no step was taken.
  FASTNDSM_HD V target_value(int j) const {
    const V own = v[kRates == 1 ? 0 : j];
    return select(own > S(0), V(-h[j * stride] / own), V{});
  }
};

}  // namespace fastndsm
