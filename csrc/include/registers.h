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
// where h, v, p, z and H z are those along the principal axes of x_0's component with full covariances; and back, by the steps
// of reverse.h.
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

struct Nothing {
  FASTNDSM_HD void operator()() const {}
};

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
  // All components; z only with_product. meanwhile() is something else to be done, which the first sums' waits have room for.
  template <typename Meanwhile>
  FASTNDSM_HD OnlineMixture(const RegisterMixture<S>& m, const V (&x)[D], const V* z, const Meanwhile& meanwhile) : m_(m) {
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

  // Full and with_product: the component of the largest responsibility, the first of them; 0 of tied covariances.
  FASTNDSM_HD V heaviest() const { return m_.precision_stride == 0 ? V{} : best_; }

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
    V u[kFull ? D : 1], w[kFull ? D : 1];
    if constexpr (kFull) {
      full_logit(k0, x, z, u, w, l[0], along[0]);
    } else {
      logits<N>(k0, x, z, l, along);
    }
    V peak = maximum_;
    if constexpr (kFull && with_product) best_ = select(l[0] > maximum_, splat<V>(static_cast<S>(k0)), best_);
    FASTNDSM_UNROLL
    for (int g = 0; g < N; ++g) peak = fastndsm::max(l[g], peak);
    // The maximum may have grown: what was summed so far shrinks. A branch costs a GPU registers, and saves it little.
    if (!first && (lanes_of<V> == 1 || k0 > 0)) {
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
  V total_ = V{}, rate_ = V{}, along_ = V{}, slope_ = V{}, inverse_ = V{}, product_inverse_ = V{}, best_ = V{};
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
  const S* rotations = nullptr;  // target of full covariances: see AxesView, not padded
  const S* rates = nullptr;
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
  static constexpr bool kTurns = target && kind == Covariance::full;
  static_assert(!kTurns || lanes_of<V> == 1, "every lane would have axes of its own");

  V x[D];
  V* h;  // v H, element j at h[j stride]: the one array that is read only once a step, and may lie elsewhere
  int stride;
  V v[kRates], rate[kRates];
  const S* rotation = nullptr;  // the axes, once a step was taken

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
    V product[kTurns ? D : 1];
    FASTNDSM_UNROLL
    for (int j0 = 0; j0 < D; j0 += C) {
      if constexpr (!kAhead) padded_normals<C, V>(counters, j0, p.dim, z);
      FASTNDSM_UNROLL
      for (int i = 0; i < C; ++i) {
        const int j = j0 + i, r = kRates == 1 ? 0 : j;
        const V zj = z[kAhead ? j : i];
        const V score = mixture.score(j, x);
        if constexpr (kTurns) {
          product[j] = mixture.product(j, score, x, z);
        } else if constexpr (target) {
          if (n == 0) rate[r] = mixture.precision(j);
          add_to_target(p, n, j, r, zj, mixture.product(j, score, x, z));
        }
        const V mean = fused(splat<V>(a), score, x[j]);
        keep(j, mean, zj);
        x[j] = fused(splat<V>(s), zj, mean);
      }
    }
    if constexpr (kTurns) {
      if (n == 0) choose_axes(p, static_cast<int>(mixture.heaviest()));
      turned_target(p, n, product, z);
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

  // Target and variance along the data's own axes.
  FASTNDSM_HD void results(const RegisterProcess<S>& p, V (&to)[D], V (&variance)[kRates]) const {
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) to[j] = target_value(j);
    FASTNDSM_UNROLL
    for (int r = 0; r < kRates; ++r) variance[r] = v[r];
    if constexpr (kTurns) {
      if (!rotation) return;
      V along[D];
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) along[j] = to[j];
      const S* row = rotation;
      FASTNDSM_UNROLL
      for (int i = 0; i < D; ++i) {
        if (i >= p.dim) break;
        V sum = V{}, square = V{};
        FASTNDSM_UNROLL
        for (int j = 0; j < D; ++j) {
          const V u = j < p.dim ? row[j] : S(0);
          sum = fused(u, along[j], sum), square = fused(V(u * u), v[j], square);
        }
        to[i] = sum, variance[i] = square;
        row += p.dim;
      }
    }
  }

 private:
  FASTNDSM_HD void choose_axes(const RegisterProcess<S>& p, int k) {
    rotation = p.rotations + int64_t(k) * p.dim * p.dim;
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) rate[j] = j < p.dim ? p.rates[int64_t(k) * p.dim + j] : S(0);
  }

  // h of dimension j, whose v and p are at r.
  FASTNDSM_HD void add_to_target(const RegisterProcess<S>& p, int n, int j, int r, V noise, V product) {
    const S a = p.drift_scale[n], s = p.noise_std[n];
    const V c = S(1) - a * rate[r];
    const V own = s - c * (S(1) - c) * v[r] * (S(1) / s);
    h[j * stride] = fused(c, h[j * stride], fused(own, noise, V(c * v[r] * (-a / s) * product)));
  }

  // h along the axes, from z and H z turned.
  FASTNDSM_HD void turned_target(const RegisterProcess<S>& p, int n, const V (&product)[D], const V (&z)[D]) {
    // Row by row, none before the last one is used: all of U at once would cost a GPU as many registers.
    V noise[D], turned[D];
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) noise[j] = turned[j] = V{};
    const S* row = rotation;
    FASTNDSM_UNROLL
    for (int i = 0; i < D; ++i) {
      if (i >= p.dim) break;
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        const V u = j < p.dim ? row[j] : S(0);
        noise[j] = fused(u, z[i], noise[j]), turned[j] = fused(u, product[i], turned[j]);
      }
      row += p.dim;
    }
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) add_to_target(p, n, j, j, noise[j], turned[j]);
  }
};

}  // namespace fastndsm
