// Gaussian mixture on tiles of samples: log-density, score, Hessian-vector product, mean precision (spherical, diag).
//
//   log pi(x) = log sum_k exp(l_k),  l_k = log_scale_k - 1/2 (x - m_k)^T P_k (x - m_k)
//   score     = sum_k r_k g_k,       g_k = P_k (m_k - x)
//   H z       = sum_k r_k (g_k (g_k . z) - P_k z) - score (score . z)
//
// A tile is one vector of samples: x[j] holds dimension j of W samples, so that every lane is a sample of its own and
// what a sample gets depends neither on its lane nor on its neighbours. Two passes over the components: logits (and
// g_k . z), then posterior means. Up to kResident components their weights are kept and the second pass may go dimension
// chunk by chunk; beyond, components are absorbed block by block under a running maximum (online softmax).
// In the smallest dimensions trajectories have kernels of their own, in registers.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "mixture_view.h"

namespace fastndsm {

// Which components the passes visit: all of them, or (screen.h) a list in ascending order.
struct AllComponents {
  static constexpr bool kInOrder = false;  // whether sums over them are taken one by one
  int64_t count;
  FASTNDSM_HD int64_t operator[](int64_t i) const { return i; }
};

// Sums over them are those over a list of all.
struct OrderedComponents : AllComponents {
  static constexpr bool kInOrder = true;
};

template <typename V, Covariance kind, bool with_product, typename Components = AllComponents,
          typename Number = scalar_of<V>>
class MixtureTile {
 protected:
  using S = scalar_of<V>;
  static constexpr S kHalfLog2e = S(0.72134752044448170368);
  static constexpr S kLn2 = S(0.69314718055994530942);

 public:
  static constexpr S kLowest = kLowestLogit<V>;
  // A largest logit from which on H z is a difference of terms whose rounding exceeds it.
  static constexpr S kNothingLeft = S(-0.72134752044448170368) / std::numeric_limits<S>::epsilon();

  FASTNDSM_HD MixtureTile(const MixtureView<S, Number>& mixture, MixtureScratch<V> scratch)
      : MixtureTile(mixture, scratch, Components{mixture.n_components}) {}

  FASTNDSM_HD int64_t dim() const { return m_.dim; }
  // The largest logit; the lowest there is where one of them is NaN.
  FASTNDSM_HD V maximum() const { return select(total_ == total_, maximum_, splat<V>(kLowest)); }

  // First pass. x [d], z [d] (only with_product). After it `moments` may be called for any chunk of dimensions.
  FASTNDSM_HD void prepare(const V* x, const V* z) {
    begin();
    transform(x, z);
    if (resident()) {
      all_logits(x, z, 0, m_.n_components);
      weigh(0, m_.n_components);
    } else {
      for (int64_t k = 0; k < m_.n_components; k += block_size()) absorb(x, z, k);
    }
    finish();
  }

  // The three parts of a blockwise first pass, for callers that take the blocks of components in their own order.
  FASTNDSM_HD void begin() {
    maximum_ = splat<V>(kLowest);
    total_ = V{}, rate_ = V{}, along_ = V{}, slope_ = V{}, best_ = V{};
  }

  FASTNDSM_HD void transform(const V* x, const V* z) {
    if constexpr (kind == Covariance::tied) {
      matvec(m_.precisions, x, t_.u);
      if constexpr (with_product) matvec(m_.precisions, z, t_.w);
    }
    if (!resident()) clear(t_.a, t_.r, t_.b, t_.s);
  }

  FASTNDSM_HD int64_t block_size() const { return kPairs ? 2 : kind == Covariance::full ? 1 : kResident; }

  FASTNDSM_HD void absorb(const V* x, const V* z, int64_t k0) {
    const int64_t k1 = std::min<int64_t>(k0 + block_size(), m_.n_components);
    if constexpr (kPairs) {
      k1 - k0 == 2 ? absorb_full<2>(x, k0) : absorb_full<1>(x, k0);
    } else {
      all_logits(x, z, k0, k1);
      weigh(k0, k1);
      accumulate(k0, k1);
    }
  }

  FASTNDSM_HD void finish() {
    inverse_ = S(1) / total_;
    rate_ = rate_ * inverse_, along_ = along_ * inverse_, slope_ = slope_ * inverse_;
  }

  // Second pass: score, H z and (spherical, diag) the mean precision of the C dimensions from j0 on; the last two may be null,
  // and are where the tile has no products.
  template <int C>
  FASTNDSM_HD void moments(const V* x, const V* z, int64_t j0, V* score, V* hvp, V* rate) {
    constexpr int G = C < kGroup ? C : kGroup;
    static_assert(C % G == 0, "whole groups");
    FASTNDSM_UNROLL
    for (int i = 0; i < C; i += G)
      group<G>(x, z, j0 + i, score + i, with_product ? hvp + i : nullptr, rate ? rate + i : nullptr);
  }

  // Of all dimensions.
  FASTNDSM_HD void all_moments(const V* x, const V* z, V* score, V* hvp, V* rate) {
    const auto at = [](V* p, int64_t j) { return p ? p + j : nullptr; };
    int64_t j = 0;
    for (; j + kGroup <= dim(); j += kGroup) moments<kGroup>(x, z, j, score + j, at(hvp, j), at(rate, j));
    for (; j < dim(); ++j) moments<1>(x, z, j, score + j, at(hvp, j), at(rate, j));
  }

  // Dimensions that go together: as many independent sums as the multiply-adds' latency needs.
  static constexpr int kGroup = kind == Covariance::diag || with_product ? 4 : 8;

  // The component of the largest responsibility, after a first pass whose weights are kept or, if full, with_product; the
  // first of them, or where there is none.
  FASTNDSM_HD V heaviest() const {
    if constexpr (kind == Covariance::full) return best_;
    V best = V{}, weight = V{};
    for (int64_t i = 0; i < components_.count; ++i) {
      const S k = static_cast<S>(components_[i]);
      best = select(t_.weights[i] > weight, splat<V>(k), best), weight = fastndsm::max(t_.weights[i], weight);
    }
    return best;
  }

  // -infinity where every component's overflows.
  FASTNDSM_HD V log_prob() const {
    const V value = (maximum_ + log(total_) * S(1.44269504088896340736)) * kLn2;
    const V finite = select(maximum_ > kLowest, value, splat<V>(-std::numeric_limits<S>::infinity()));
    return select(total_ == total_, finite, total_);  // log takes no NaN
  }

 protected:
  FASTNDSM_HD MixtureTile(const MixtureView<S, Number>& mixture, MixtureScratch<V> scratch, Components components)
      : m_(mixture), t_(scratch), components_(components), summed_(components) {}

  FASTNDSM_HD bool resident() const { return kind != Covariance::full && m_.n_components <= kResident; }

  // The posterior means of G dimensions from j0 on.
  template <int G>
  FASTNDSM_HD void group(const V* x, const V* z, int64_t j0, V* score, V* hvp, V* rate) const {
    V a[G], r[G], b[G], s[G];
    if (resident()) {
      sum_components<G>(j0, a, r, b, s);
    } else {
      FASTNDSM_UNROLL
      for (int i = 0; i < G; ++i) a[i] = t_.a[j0 + i], r[i] = t_.r[j0 + i], b[i] = t_.b[j0 + i], s[i] = t_.s[j0 + i];
    }
    FASTNDSM_UNROLL
    for (int i = 0; i < G; ++i) {
      const int64_t j = j0 + i;
      if constexpr (kind == Covariance::spherical || kind == Covariance::diag) {
        const V p = kind == Covariance::diag ? V(r[i] * inverse_) : rate_;
        const V g = fused(V(-x[j]), p, V(a[i] * inverse_));
        score[i] = g;
        if constexpr (with_product) {
          const V q = kind == Covariance::diag ? V(s[i] * inverse_) : slope_;
          hvp[i] = fused(V(-g), along_, fused(V(-p), z[j], fused(V(-x[j]), q, V(b[i] * inverse_))));
        }
        if (rate) rate[i] = p;
      } else if constexpr (kind == Covariance::tied) {
        const V g = fused(a[i], inverse_, V(-t_.u[j]));
        score[i] = g;
        if constexpr (with_product) hvp[i] = fused(b[i], inverse_, V(-t_.w[j])) - along_ * (t_.u[j] + g);
      } else {
        const V g = a[i] * inverse_;
        score[i] = g;
        if constexpr (with_product) hvp[i] = fused(V(-g), along_, V(b[i] * inverse_));
      }
    }
  }

  // Sums over all components, whose weights lie in the scratch; in a small dimension even and odd ones apart, again to have
  // sums enough.
  template <int G>
  FASTNDSM_HD void sum_components(int64_t j0, V* a, V* r, V* b, V* s) const {
    constexpr int parts = G < 4 && !Components::kInOrder ? 2 : 1;
    V sum[parts][4][G];
    FASTNDSM_UNROLL
    for (int q = 0; q < parts; ++q) {
      FASTNDSM_UNROLL
      for (int i = 0; i < G; ++i) sum[q][0][i] = V{}, sum[q][1][i] = V{}, sum[q][2][i] = V{}, sum[q][3][i] = V{};
    }
    const int64_t n = summed_.count;
    int64_t i = 0;
    for (; i + parts <= n; i += parts) {
      FASTNDSM_UNROLL
      for (int q = 0; q < parts; ++q) add_component<G>(i + q, j0, sum[q]);
    }
    if (parts > 1 && i < n) add_component<G>(i, j0, sum[0]);
    FASTNDSM_UNROLL
    for (int i = 0; i < G; ++i) {
      const auto both = [&](int q) { return parts == 1 ? sum[0][q][i] : V(sum[0][q][i] + sum[parts - 1][q][i]); };
      a[i] = both(0), r[i] = both(1), b[i] = both(2), s[i] = both(3);
    }
  }

  template <int G>
  FASTNDSM_HD void add_component(int64_t slot, int64_t j0, V (&sum)[4][G]) const {
    const int64_t at = summed_[slot] * dim() + j0;
    const Number* value = (kind == Covariance::spherical ? m_.means : m_.pulls) + at;
    const Number* precision = m_.precisions + (kind == Covariance::diag ? at : 0);
    const V e = t_.weights[slot], c = with_product ? t_.products[slot] : V{};
    FASTNDSM_UNROLL
    for (int i = 0; i < G; ++i) {
      const V m = in_lanes<V>(value[i]);
      sum[0][i] = fma(e, m, sum[0][i]);
      if constexpr (with_product) sum[2][i] = fma(c, m, sum[2][i]);
      if constexpr (kind == Covariance::diag) {
        const V p = in_lanes<V>(precision[i]);
        sum[1][i] = fma(e, p, sum[1][i]);
        if constexpr (with_product) sum[3][i] = fma(c, p, sum[3][i]);
      }
    }
  }

  FASTNDSM_HD void clear(V* a, V* r, V* b, V* s) const {
    for (int64_t j = 0; j < dim(); ++j) {
      a[j] = V{}, r[j] = V{};
      if constexpr (with_product) b[j] = V{}, s[j] = V{};
    }
  }

  FASTNDSM_OUTLINE void general_logits(const V* x, const V* z, int64_t k0, int64_t k1) {
    for (int64_t k = k0, size; k < k1; k += size) {
      const int64_t left = k1 - k;  // the last two blocks are alike
      size = left >= 2 * kBlock ? kBlock : left > kBlock ? (left + 1) / 2 : left;
      some_logits<kBlock>(x, z, k, k - k0, size);
    }
  }

  // Logits of k0..k1 and g_k . z, into the weights and products.
  FASTNDSM_HD void all_logits(const V* x, const V* z, int64_t k0, int64_t k1) {
    if constexpr (kind == Covariance::full) {
      full_logits<1>(x, z, k0);
    } else {
      general_logits(x, z, k0, k1);
    }
  }

  // Their exponentials relative to the running maximum, and the sums over components.
  FASTNDSM_HD void weigh(int64_t k0, int64_t k1) {
    V peak = maximum_;
    // Two partial results each: the chains of dependent additions are what a small mixture waits for.
    const int64_t count = k1 - k0;
    V other = peak;
    for (int64_t k = 0; k + 1 < count; k += 2) {
      peak = fastndsm::max(t_.weights[k], peak), other = fastndsm::max(t_.weights[k + 1], other);
    }
    if (count % 2) peak = fastndsm::max(t_.weights[count - 1], peak);
    peak = fastndsm::max(peak, other);
    if constexpr (kind == Covariance::full && with_product) {  // blocks of one
      best_ = select(t_.weights[0] > maximum_, splat<V>(static_cast<S>(k0)), best_);
    }
    if (k0 > 0) rescale(exp2_nonpositive(V(maximum_ - peak)));
    maximum_ = peak;
    Sums even{V{}, V{}, V{}, V{}}, odd = even;
    for (int64_t k = 0; k + 1 < count; k += 2) exponentiate(k0, k, even), exponentiate(k0, k + 1, odd);
    if (count % 2) exponentiate(k0, count - 1, even);
    add({even.total + odd.total, even.rate + odd.rate, even.along + odd.along, even.slope + odd.slope});
  }

  struct Sums {
    V total, rate, along, slope;
  };

  FASTNDSM_HD void add(const Sums& sums) {
    total_ += sums.total, rate_ += sums.rate, along_ += sums.along, slope_ += sums.slope;
  }

  // Weight and product of slot k from its logit and g_k . z.
  FASTNDSM_HD void exponentiate(int64_t k0, int64_t k, Sums& sums) {
    put_weight(k, components_[k0 + k], exp2_nonpositive(V(t_.weights[k] - maximum_)), t_.products[k], sums);
  }

  // e = exp(l_k - maximum) and e g_k . z, times P_k if spherical, into a slot; product is g_k . z.
  FASTNDSM_HD void put_weight(int64_t slot, int64_t k, V e, V product, Sums& sums) {
    sums.total += e;
    const Number precision = kind == Covariance::spherical ? m_.precisions[k] : Number{};
    if constexpr (with_product) {
      V c = e * product;
      sums.along += c;
      if constexpr (kind == Covariance::spherical) c = c * precision, sums.slope += c;
      t_.products[slot] = c;
    }
    if constexpr (kind == Covariance::spherical) e = e * precision, sums.rate += e;
    t_.weights[slot] = e;
  }

  // The maximum has grown: what was summed so far shrinks.
  FASTNDSM_HD void rescale(V factor) {
    if (!any_lane(factor != S(1))) return;
    total_ *= factor, rate_ *= factor, along_ *= factor, slope_ *= factor;
    for (int64_t j = 0; j < dim(); ++j) {
      t_.a[j] *= factor;
      if constexpr (with_product) t_.b[j] *= factor;
      if constexpr (kind == Covariance::diag) {
        t_.r[j] *= factor;
        if constexpr (with_product) t_.s[j] *= factor;
      }
    }
  }

  // Components whose sums and, where registers are many, differences they hold.
  static constexpr bool kHoldsDifferences = kRegisters >= 32 && lanes_of<V> > 1;
  static constexpr int kBlock = kHoldsDifferences && !with_product ? 10 : kBlockK;

  template <int KB>
  FASTNDSM_HD void some_logits(const V* x, const V* z, int64_t k, int64_t slot, int64_t size) {
    if (size == KB) return logits<KB>(x, z, k, slot);
    if constexpr (KB > 1) some_logits<KB - 1>(x, z, k, slot, size);
  }

  // l_k (in units of log 2) and g_k . z of KB components. The sums over dimensions are made of short ones, so that their
  // rounding grows with the square root of the number of parts.
  template <int KB>
  FASTNDSM_HD void logits(const V* x, const V* z, int64_t k0, int64_t slot) {
    const int64_t d = dim();
    V q[KB], along[KB];
#pragma GCC unroll 10
    for (int k = 0; k < KB; ++k) q[k] = V{}, along[k] = V{};
    int64_t j0 = 0;
    if constexpr (KB <= 2 && lanes_of<V> > 1) j0 = parts_side_by_side<KB>(x, z, k0, q, along);
#pragma GCC unroll 1
    for (; j0 < d; j0 += kPart) {
      V part_q[KB], part_along[KB];
#pragma GCC unroll 10
      for (int k = 0; k < KB; ++k) part_q[k] = V{}, part_along[k] = V{};
      const int64_t count = d - j0 < kPart ? d - j0 : kPart;
#pragma GCC unroll 4
      for (int64_t i = 0; i < count; ++i) {
        const int64_t j = j0 + i;
        const auto at = [&](int k) { return components_[k0 + k] * d + j; };
        if constexpr (kHoldsDifferences) {  // all of them before the sums: another order costs a tenth of the time
          V t[KB];
#pragma GCC unroll 10
          for (int k = 0; k < KB; ++k) t[k] = difference(x, at(k), j);
#pragma GCC unroll 10
          for (int k = 0; k < KB; ++k) add_difference(t[k], x, z, at(k), j, part_q[k], part_along[k]);
        } else {
#pragma GCC unroll 10
          for (int k = 0; k < KB; ++k) add_difference(difference(x, at(k), j), x, z, at(k), j, part_q[k], part_along[k]);
        }
      }
#pragma GCC unroll 10
      for (int k = 0; k < KB; ++k) {
        q[k] += part_q[k];
        if constexpr (with_product) along[k] += part_along[k];
      }
    }
#pragma GCC unroll 10
    for (int k = 0; k < KB; ++k) {
      const int64_t at = components_[k0 + k];
      if constexpr (kind == Covariance::spherical) {
        const Number p = m_.precisions[at];
        t_.weights[slot + k] = fma(q[k], in_lanes<V>(Number(-(kHalfLog2e * p))), splat<V>(m_.log_scale[at]));
        if constexpr (with_product) t_.products[slot + k] = p * along[k];
      } else {
        constexpr S half = kind == Covariance::diag ? S(1) : kHalfLog2e,
                    p = kind == Covariance::diag ? S(1) / kHalfLog2e : S(1);
        t_.weights[slot + k] = fma(q[k], splat<V>(-half), splat<V>(m_.log_scale[at]));
        if constexpr (with_product) t_.products[slot + k] = p * along[k];
      }
    }
  }

  static constexpr int64_t kPart = 64;

  // The same sums of one or two components, several parts at a time: as many independent ones as the latency needs. Returns
  // how many dimensions it took.
  template <int KB>
  FASTNDSM_HD int64_t parts_side_by_side(const V* x, const V* z, int64_t k0, V* q, V* along) const {
    constexpr int parts = 4 / KB;
    const int64_t d = dim();
    int64_t j0 = 0;
#pragma GCC unroll 1
    for (; j0 + parts * kPart <= d; j0 += parts * kPart) {
      V part_q[4], part_along[4];
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) part_q[n] = V{}, part_along[n] = V{};
#pragma GCC unroll 4
      for (int64_t i = 0; i < kPart; ++i) {
#pragma GCC unroll 4
        for (int n = 0; n < 4; ++n) {
          const int64_t j = j0 + n / KB * kPart + i;
          const int64_t at = components_[k0 + n % KB] * d + j;
          add_difference(difference(x, at, j), x, z, at, j, part_q[n], part_along[n]);
        }
      }
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        q[n % KB] += part_q[n];
        if constexpr (with_product) along[n % KB] += part_along[n];
      }
    }
    return j0;
  }

  // Of element `at` of the parameters and dimension j: x - m, the same times the root of P (diag), or P (m - x) (tied).
  FASTNDSM_HD V difference(const V* x, int64_t at, int64_t j) const {
    if constexpr (kind == Covariance::spherical) {
      return x[j] - in_lanes<V>(m_.means[at]);
    } else if constexpr (kind == Covariance::diag) {
      return fma(x[j], in_lanes<V>(m_.roots[at]), in_lanes<V>(m_.shifts[at]));
    } else {
      return m_.pulls[at] - t_.u[j];
    }
  }

  // Adds what it gives to (x - m)^T P (x - m) and to g . z (up to P_k, if spherical).
  FASTNDSM_HD void add_difference(V t, const V* x, const V* z, int64_t at, int64_t j, V& q, V& along) const {
    if constexpr (kind == Covariance::tied) {
      q = fma(V(m_.means[at] - x[j]), t, q);
      if constexpr (with_product) along = fma(t, z[j], along);
    } else {
      q = fma(t, t, q);
      if constexpr (with_product) along = fma(V(-t), kind == Covariance::diag ? V(z[j] * m_.roots[at]) : z[j], along);
    }
  }

  // Full components go in pairs where there is no P z: twice as many independent sums, and one visit to a for both.
  static constexpr bool kPairs = kind == Covariance::full && !with_product;
  // Rows of a matrix that go together: as many sums, of two vectors or two components, as registers hold.
  static constexpr int kFullRows = kRegisters >= 32 ? 8 : 4;

  // R rows of u = P (m - x) of N full components, the second of which has its own in w; or of one component's u and w = P z.
  // P is symmetric: its columns are read, whose values of R rows follow each other.
  template <int N, int R>
  FASTNDSM_HD void full_rows(const V* z, int64_t k, int64_t i0) {
    const int64_t d = dim();
    const V *first = t_.r, *second = t_.s;
    const S *precision = m_.precisions + k * d * d + i0, *other = precision + d * d;
    V u[R], w[R];
    FASTNDSM_UNROLL
    for (int i = 0; i < R; ++i) u[i] = V{}, w[i] = V{};
    for (int64_t j = 0; j < d; ++j, precision += d, other += d) {
      FASTNDSM_UNROLL
      for (int i = 0; i < R; ++i) {
        const V p = splat<V>(precision[i]);
        u[i] = fma(first[j], p, u[i]);
        if constexpr (N == 2) w[i] = fma(second[j], splat<V>(other[i]), w[i]);
        if constexpr (with_product) w[i] = fma(z[j], p, w[i]);
      }
    }
    FASTNDSM_UNROLL
    for (int i = 0; i < R; ++i) {
      t_.u[i0 + i] = u[i];
      if constexpr (N == 2 || with_product) t_.w[i0 + i] = w[i];
    }
  }

  // Logits of N full components from k on, and g_k . z, into the weights and products.
  template <int N>
  FASTNDSM_OUTLINE void full_logits(const V* x, const V* z, int64_t k) {
    const int64_t d = dim();
    const S* mean = m_.means + k * d;
    V *first = t_.r, *second = t_.s;  // m - x
    for (int64_t j = 0; j < d; ++j) {
      first[j] = mean[j] - x[j];
      if constexpr (N == 2) second[j] = mean[d + j] - x[j];
    }
    int64_t i = 0;
    for (; i + kFullRows <= d; i += kFullRows) full_rows<N, kFullRows>(z, k, i);
    if constexpr (kFullRows > 4) {
      for (; i + 4 <= d; i += 4) full_rows<N, 4>(z, k, i);
    }
    for (; i < d; ++i) full_rows<N, 1>(z, k, i);
    V q = V{}, other = V{}, along = V{};
    for (int64_t j = 0; j < d; ++j) {
      q = fma(first[j], t_.u[j], q);
      if constexpr (N == 2) other = fma(second[j], t_.w[j], other);
      if constexpr (with_product) along = fma(t_.u[j], z[j], along);
    }
    t_.weights[0] = fma(q, splat<V>(-kHalfLog2e), splat<V>(m_.log_scale[k]));
    if constexpr (N == 2) t_.weights[1] = fma(other, splat<V>(-kHalfLog2e), splat<V>(m_.log_scale[k + 1]));
    if constexpr (with_product) t_.products[0] = along;
  }

  // The same of their weights, and added to its sums: as if one came after the other, to the bit.
  template <int N>
  FASTNDSM_HD void absorb_full(const V* x, int64_t k) {
    full_logits<N>(x, nullptr, k);
    const V* const u[2] = {t_.u, t_.w};
    V shrink[N], e[N];
    FASTNDSM_UNROLL
    for (int n = 0; n < N; ++n) {
      const V peak = fastndsm::max(t_.weights[n], maximum_);
      shrink[n] = exp2_nonpositive(V(maximum_ - peak)), e[n] = exp2_nonpositive(V(t_.weights[n] - peak));
      maximum_ = peak;
      const V shrunk = fused(total_, shrink[n], V{});  // rounded: a product would become one with the sum
      total_ = shrunk + e[n];
    }
    for (int64_t j = 0; j < dim(); ++j) {
      V a = t_.a[j];
      FASTNDSM_UNROLL
      for (int n = 0; n < N; ++n) a = fused(e[n], u[n][j], V(a * shrink[n]));
      t_.a[j] = a;
    }
  }

  // out = P x for one [d, d] matrix.
  FASTNDSM_OUTLINE void matvec(const S* matrix, const V* x, V* out) const {
    const int64_t d = dim();
    int64_t i = 0;
    for (; i + 8 <= d; i += 8) {
      V u[8];
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) u[k] = V{};
      for (int64_t j = 0; j < d; ++j) {
        const V xj = x[j];
#pragma GCC unroll 8
        for (int k = 0; k < 8; ++k) u[k] = fma(xj, splat<V>(matrix[(i + k) * d + j]), u[k]);
      }
#pragma GCC unroll 8
      for (int k = 0; k < 8; ++k) out[i + k] = u[k];
    }
    for (; i < d; ++i) {
      V u = V{};
      for (int64_t j = 0; j < d; ++j) u = fma(x[j], splat<V>(matrix[i * d + j]), u);
      out[i] = u;
    }
  }

  // Adds components k0..k1, whose weights lie in the scratch, to its sums.
  FASTNDSM_HD void accumulate(int64_t k0, int64_t k1) {
    if constexpr (kind == Covariance::full) {
      const V e = t_.weights[0];
      for (int64_t j = 0; j < dim(); ++j) {
        t_.a[j] = fma(e, t_.u[j], t_.a[j]);
        if constexpr (with_product) t_.b[j] = fma(t_.products[0], t_.u[j], fma(V(-e), t_.w[j], t_.b[j]));
      }
    } else {
      general_add(k0, k1);
    }
  }

  FASTNDSM_OUTLINE void general_add(int64_t k0, int64_t k1) {
    int64_t k = k0;
    for (; k + kBlockK <= k1; k += kBlockK) add<kBlockK>(k, k - k0);
    if (k + 4 <= k1) add<4>(k, k - k0), k += 4;
    if (k + 2 <= k1) add<2>(k, k - k0), k += 2;
    if (k < k1) add<1>(k, k - k0);
  }

  template <int KB>
  FASTNDSM_HD void add(int64_t k0, int64_t slot) {
    const int64_t d = dim();
    const Number* values = (kind == Covariance::spherical ? m_.means : m_.pulls) + k0 * d;
    const Number* precisions = m_.precisions + (kind == Covariance::diag ? k0 * d : 0);
    V e[KB], c[KB];
#pragma GCC unroll 8
    for (int k = 0; k < KB; ++k) {
      e[k] = t_.weights[slot + k];
      if constexpr (with_product) c[k] = t_.products[slot + k];
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < d; ++i) {
      V sum_a = V{}, sum_r = V{}, sum_b = V{}, sum_s = V{};
#pragma GCC unroll 8
      for (int k = 0; k < KB; ++k) {
        const V value = in_lanes<V>(values[k * d + i]);
        sum_a = fma(e[k], value, sum_a);
        if constexpr (with_product) sum_b = fma(c[k], value, sum_b);
        if constexpr (kind == Covariance::diag) {
          const V p = in_lanes<V>(precisions[k * d + i]);
          sum_r = fma(e[k], p, sum_r);
          if constexpr (with_product) sum_s = fma(c[k], p, sum_s);
        }
      }
      t_.a[i] += sum_a;
      if constexpr (with_product) t_.b[i] += sum_b;
      if constexpr (kind == Covariance::diag) {
        t_.r[i] += sum_r;
        if constexpr (with_product) t_.s[i] += sum_s;
      }
    }
  }

  const MixtureView<S, Number>& m_;
  MixtureScratch<V> t_;
  Components components_, summed_;  // of the first pass and of the second; slot i is of the i-th
  V maximum_, total_, inverse_;
  V rate_;  // spherical: sum r_k P_k
  V along_;  // sum r_k g_k . z = score . z
  V slope_;  // spherical: sum r_k (g_k . z) P_k
  V best_;  // full: the component of the largest logit
};

}  // namespace fastndsm
