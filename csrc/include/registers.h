// Trajectories in small dimension with the state of samples in registers, one a lane. Spherical and diagonal covariances.
//
// V is what a register holds: a vector of samples, or a number. D is the dimension. The mixture is visited once a step: groups
// of components under a running maximum (online softmax), their logits, weights and sums in registers,
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

#include "known_mixture.h"
#include "mixture.h"
#include "philox.h"
#include "reverse.h"

namespace fastndsm {

// The dimension that vectors of samples have registers for, or 0.
template <typename S>
int known_dimension(const MixtureView<S>& m) {
  const bool small = sizeof(S) == 4 && m.dim >= 2 && m.dim <= 3;
  return small && (m.kind == Covariance::spherical || m.kind == Covariance::diag) ? static_cast<int>(m.dim) : 0;
}

struct Nothing {
  FASTNDSM_HD void operator()() const {}
};

template <typename V, Covariance kind, int D, bool with_product>
class OnlineMixture {
  using S = scalar_of<V>;
  static constexpr int G = lanes_of<V> > 1 ? 8 : 4;  // components taken at once
  static constexpr bool kDiag = kind == Covariance::diag, kSpherical = kind == Covariance::spherical;
  static_assert(kDiag || kSpherical, "others have no registers");

 public:
  // All components; z only with_product. meanwhile() is something else to be done, which the first sums' waits have room for.
  template <typename Meanwhile>
  FASTNDSM_HD OnlineMixture(const KnownMixture<S>& m, const V (&x)[D], const V* z, const Meanwhile& meanwhile) : m_(m) {
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
    if (lanes_of<V> > 1 && G <= m.n_components) {  // the first ones by themselves, beside what else there is
      meanwhile();
      absorb<G, true>(0, x, z);
      k = G;
    } else {
      meanwhile();
    }
    for (; k + G <= m.n_components; k += G) absorb<G>(k, x, z);
    rest(k, x, z);
    inverse_ = S(1) / total_;
    product_inverse_ = kDiag ? V(inverse_ * (S(1) / S(kLog2e / 2))) : inverse_;
    rate_ *= inverse_, along_ *= product_inverse_, slope_ *= inverse_;
  }

  FASTNDSM_HD V score(int j, const V (&x)[D]) const { return fused(V(-x[j]), precision(j), V(a_[j] * inverse_)); }

  // Of dimension j, whose score is g.
  FASTNDSM_HD V product(int j, V g, const V (&x)[D], const V* z) const {
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

 private:
  // Where components do not fill whole groups.
  FASTNDSM_HD void rest(int k, const V (&x)[D], const V* z) {
    if constexpr (G > 4) {
      if (k + 4 <= m_.n_components) absorb<4>(k, x, z), k += 4;
    }
    for (; k < m_.n_components; ++k) absorb<1>(k, x, z);
  }

  template <int N, bool first = false>
  FASTNDSM_HD void absorb(int k0, const V (&x)[D], const V* z) {
    V l[N], along[N];
    logits<N>(k0, x, z, l, along);
    V peak = maximum_;
    FASTNDSM_UNROLL
    for (int g = 0; g < N; ++g) peak = fastndsm::max(l[g], peak);
    // The maximum may have grown: what was summed so far shrinks.
    if (!first && (lanes_of<V> == 1 || k0 > 0)) {
      const V factor = exp2_nonpositive(V(maximum_ - peak));
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
      V e = exp2_nonpositive(V(l[g] - peak)), c = V{};
      total_ += e;
      if constexpr (with_product) c = e * along[g], along_ += c;
      if constexpr (kSpherical) {
        const V p = m_.template at<V>(m_.precisions + k);
        e *= p, rate_ += e;
        if constexpr (with_product) c *= p, slope_ += c;
      }
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        const V value = m_.template at<V>((kDiag ? m_.pulls : m_.means) + k * D + j);
        a_[j] = fma(e, value, a_[j]);
        if constexpr (with_product) b_[j] = fma(c, value, b_[j]);
        if constexpr (kDiag) {
          const V p = m_.template at<V>(m_.precisions + k * D + j);
          r_[j] = fma(e, p, r_[j]);
          if constexpr (with_product) s_[j] = fma(c, p, s_[j]);
        }
      }
    }
  }

  // In units of log 2, and g_k . z, the latter times log2(e) / 2 if diag.
  template <int N>
  FASTNDSM_HD void logits(int k0, const V (&x)[D], const V* z, V (&l)[N], V (&along)[N]) const {
    const auto number = [&](int i) FASTNDSM_INLINE { return m_.template at<V>(i); };
    FASTNDSM_UNROLL
    for (int g = 0; g < N; ++g) {
      const int k = k0 + g;
      V q = kDiag ? number(m_.log_scale + k) : V{}, product = V{};
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        const int at = k * D + j;
        const V t = kDiag ? fma(x[j], number(m_.roots + at), number(m_.shifts + at)) : V(x[j] - number(m_.means + at));
        q = fma(kDiag ? V(-t) : t, t, q);
        if constexpr (with_product) product = fma(V(-t), kDiag ? V(z[j] * number(m_.roots + at)) : z[j], product);
      }
      l[g] = kDiag ? q : fma(q, number(m_.scales + k), number(m_.log_scale + k));
      if constexpr (with_product) along[g] = kSpherical ? V(number(m_.precisions + k) * product) : product;
    }
  }

  const KnownMixture<S>& m_;
  V maximum_ = splat<V>(kLowestLogit<V>);
  V total_ = V{}, rate_ = V{}, along_ = V{}, slope_ = V{}, inverse_ = V{}, product_inverse_ = V{};
  V a_[D], b_[with_product ? D : 1];
  V r_[kDiag ? D : 1], s_[kDiag && with_product ? D : 1];
};

template <typename S>
struct RegisterProcess {
  const KnownMixture<S>& mixture;
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

  // Step n. drawn is its noise if kAhead, to be multiplied by sign. keep(j, mean, noise) sees both; meanwhile() as above.
  template <typename Keep, typename Meanwhile = Nothing>
  FASTNDSM_HD void step(const RegisterProcess<S>& p, const Counters& counters, int n, const V* drawn, S sign,
                        const Keep& keep, const Meanwhile& meanwhile = {}) {
    constexpr int C = kCounter<D>;
    const S a = p.drift_scale[n], s = p.noise_std[n];
    V z[kAhead ? D : C];
    if constexpr (kAhead) {
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) z[j] = drawn[j] * sign;
    }
    const OnlineMixture<V, kind, D, target> mixture(p.mixture, x, target ? z : nullptr, meanwhile);
    FASTNDSM_UNROLL
    for (int j0 = 0; j0 < D; j0 += C) {
      if constexpr (!kAhead) padded_normals<C, V>(counters, j0, p.dim, z);
      FASTNDSM_UNROLL
      for (int i = 0; i < C; ++i) {
        const int j = j0 + i, r = kRates == 1 ? 0 : j;
        const V zj = z[kAhead ? j : i];
        const V score = mixture.score(j, x);
        if constexpr (target) {
          if (n == 0) rate[r] = mixture.precision(j);
          add_to_target(p, n, j, r, zj, mixture.product(j, score, x, z));
        }
        const V mean = fused(splat<V>(a), score, x[j]);
        keep(j, mean, zj);
        x[j] = fused(splat<V>(s), zj, mean);
      }
    }
    if constexpr (target) {
      FASTNDSM_UNROLL
      for (int r = 0; r < kRates; ++r) {
        const V c = S(1) - a * rate[r];
        v[r] = fused(V(c * c), v[r], splat<V>(s * s));
      }
    }
  }

  // One step back, `lanes` its coefficients of the lanes; held and slope of dimension j lie at [j at]. far(x, maximum) gives the scores of lanes whose largest
  // logit is the lowest there is; a null pointer leaves them.
  template <typename Far>
  FASTNDSM_HD void step_back(const KnownMixture<S>& mixture, int dim, const ReverseStep<S>& step,
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
      const OnlineMixture<V, kind, D, false> online(mixture, x, nullptr, [] {});
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

 private:
  // h of dimension j, whose v and p are at r.
  FASTNDSM_HD void add_to_target(const RegisterProcess<S>& p, int n, int j, int r, V noise, V product) {
    const S a = p.drift_scale[n], s = p.noise_std[n];
    const V c = S(1) - a * rate[r];
    const V own = s - c * (S(1) - c) * v[r] * (S(1) / s);
    h[j * stride] = fused(c, h[j * stride], fused(own, noise, V(c * v[r] * (-a / s) * product)));
  }
};

}  // namespace fastndsm
