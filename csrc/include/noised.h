// A Gaussian mixture widened by noise of another variance s in each row, on tiles of samples: log-density and score.
//
//   Sigma_k = U_k diag(lambda_k) U_k^T,   u_k = U_k^T (m_k - x),   p_k = 1 / (lambda_k + s)
//   l_k     = log w_k - 1/2 sum_j [u_kj^2 p_kj + log(lambda_kj + s)],    score = sum_k r_k U_k (p_k u_k)
//
// As in mixture.h every lane is a sample. Precisions are of the lane and the component, so that what a row costs more than
// mixture.h's is: spherical, a division and a logarithm for 2 d multiply-adds; diag, a quarter of a division in every
// dimension, and a root; tied, nothing for each component; full, U_k a second time, where the component has weight.
//
// Diag and full components are absorbed block by block under a running maximum (online softmax). Spherical and tied ones,
// whose logits are enough to add them later, go in three passes: logits of all by one multiply-add a dimension, to within a
// slack (spherical, where components are many); exact ones of those that can have weight in a lane; and sums over those
// that have. What weighs less than 2^-kNearCut of the largest counts as 0, and sums are taken one component after the other,
// so that no bit depends on what the other lanes need.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "mixture_view.h"

namespace fastndsm {

template <typename S>
struct NoisedView {
  int64_t n_components, dim;
  const S* means;  // [K, d]; tied: along the axes
  const S* variances;  // [K], [K, d], [d] or [K, d]
  const S* log_weights;  // [K], in units of log 2
  const S* rotations;  // tied [d, d], full [K, d, d], an eigenvector a column
  S smallest, largest;  // of the variances
  // Of spherical components for a sieve, or null: the mean of their means [d], means less it [K, d], squares of their lengths
  // [K], the largest length and |log-weight|.
  const S *centre = nullptr, *centred = nullptr, *squares = nullptr;
  S extent = S(0), largest_weight = S(0);
};

template <typename V, Covariance kind>
class NoisedTile {
  using S = scalar_of<V>;
  static constexpr S kHalfLog2e = S(0.72134752044448170368);
  static constexpr S kLn2 = S(0.69314718055994530942);
  static constexpr bool kTied = kind == Covariance::tied, kFull = kind == Covariance::full;
  static constexpr bool kKeeps = kind == Covariance::diag || kFull;  // p u of each component
  static constexpr int kBlock = kFull ? 1 : kRegisters >= 32 ? 10 : kind == Covariance::diag ? 4 : 8;
  static constexpr int64_t kPart = 64;  // dimensions of a short sum, as in mixture.h
  static constexpr int64_t kPass = 4096;  // components of the three passes
  static constexpr int kListed = 4;  // of a list that go together
  static constexpr int kWait = 15;  // tiles without a sieve after one that left most of the components

 public:
  // Components from which on a sieve may pay.
  static constexpr int64_t kSieved = kind == Covariance::spherical ? kResident + 1 : std::numeric_limits<int64_t>::max();

  // Vectors of scratch.
  static int64_t vectors(int64_t n_components, int64_t d) {
    return kKeeps ? (5 + kBlock) * d : 5 * d + 2 * std::min(n_components, kPass);
  }

  NoisedTile(const NoisedView<S>& mixture, V* scratch) : m_(mixture) {
    const int64_t d = m_.dim;
    a_ = scratch, x_ = a_ + d, p_ = x_ + d, w_ = p_ + d, t_ = w_ + d, u_ = t_ + d;
    if constexpr (!kKeeps) {
      const int64_t n = std::min(m_.n_components, kPass);
      logits_ = u_, precisions_ = logits_ + n;
      at_.resize(n);
    }
  }

  // x [d] and s of a tile.
  FASTNDSM_HD void evaluate(const V* x, V s) {
    const int64_t d = m_.dim;
    maximum_ = splat<V>(kLowestLogit<V>), total_ = V{}, rate_ = V{}, s_ = s;
    V mantissa;
    split(V(s + m_.largest), mantissa, exponent_);
    top_ = scale_by_power_of_two(splat<V>(S(1)), V(-exponent_));
    constexpr S far = S(detail::kSingle<V> ? 1e9 : 1e75);  // products of four stay finite and normal
    in_fours_ = !any_lane((V(s + m_.largest) > far) | (V(s + m_.smallest) < S(1) / far));
    common_ = V{};
    for (int64_t j = 0; j < d; ++j) a_[j] = V{}, x_[j] = x[j];
    if constexpr (kTied) {
      turn<true>(m_.rotations, x, x_);
      for (int64_t j = 0; j < d; ++j) {
        const V wide = s + m_.variances[j];
        p_[j] = S(1) / wide, w_[j] = fastndsm::sqrt(p_[j]), x_[j] = x_[j] * w_[j];
        common_ = common_ + log(V(wide * top_));
      }
    }
    if constexpr (kKeeps) {
      int64_t k = 0;
      for (; k + kBlock <= m_.n_components; k += kBlock) absorb<kBlock>(k);
      if constexpr (kBlock > 1) absorb_rest<kBlock / 2>(k);
    } else {
      for (int64_t k = 0; k < m_.n_components; k += kPass) pass(k, std::min(kPass, m_.n_components - k));
    }
  }

  // -infinity where every component's overflows.
  FASTNDSM_HD V log_prob() const {
    const V value = fma(maximum_, splat<V>(kLn2), log(total_));
    const V widths = common_ - S(m_.dim) * log(top_);
    const V found = value - S(0.5) * (widths + S(1.83787706640934548356) * S(m_.dim));
    const V finite = select(maximum_ > kLowestLogit<V>, found, splat<V>(-std::numeric_limits<S>::infinity()));
    return select(total_ == total_, finite, total_);  // log takes no NaN
  }

  FASTNDSM_HD void score(V* to) {
    const int64_t d = m_.dim;
    const V inverse = S(1) / total_;
    if constexpr (kTied) {
      for (int64_t j = 0; j < d; ++j) t_[j] = fma(a_[j], V(inverse * p_[j]), V(-x_[j] * w_[j]));
      turn<false>(m_.rotations, t_, to);
    } else if constexpr (kind == Covariance::spherical) {
      const V rate = rate_ * inverse;
      for (int64_t j = 0; j < d; ++j) to[j] = fma(a_[j], inverse, V(-x_[j] * rate));
    } else {
      for (int64_t j = 0; j < d; ++j) to[j] = a_[j] * inverse;
    }
  }

 private:
  // Fewer than 2 KB components from k on; lone ones would wait for their sums.
  template <int KB>
  FASTNDSM_HD void absorb_rest(int64_t k) {
    for (; k + KB <= m_.n_components; k += KB) absorb<KB>(k);
    if constexpr (KB > 1) absorb_rest<KB / 2>(k);
  }

  template <int KB>
  FASTNDSM_HD void absorb(int64_t k0) {
    V logit[KB], weight[KB];
    if constexpr (kFull) {
      logit[0] = full_logit(k0, weight[0]);
    } else {
      diag_logits<KB>(k0, logit, weight);
    }
    V peak = maximum_;
    FASTNDSM_UNROLL
    for (int k = 0; k < KB; ++k) peak = fastndsm::max(logit[k], peak);
    grow(peak);
    V e[KB];
    FASTNDSM_UNROLL
    for (int k = 0; k < KB; ++k) e[k] = exp2_nonpositive(V(logit[k] - peak)) * weight[k], total_ = total_ + e[k];
    if constexpr (kFull) {
      // Below the least there is, in all lanes: nothing that a sum would see.
      if (!any_lane(V(logit[0] - peak) > kNothing)) return;
      turn<false>(m_.rotations + k0 * m_.dim * m_.dim, u_, t_);
      for (int64_t j = 0; j < m_.dim; ++j) a_[j] = fma(e[0], t_[j], a_[j]);
    } else {
      add<KB>(e);
    }
  }

  // The maximum grows: what was summed so far shrinks.
  FASTNDSM_HD void grow(V peak) {
    const V shrink = exp2_nonpositive(V(maximum_ - peak));
    maximum_ = peak;
    if (!any_lane(shrink != S(1))) return;
    total_ = total_ * shrink, rate_ = rate_ * shrink;
    for (int64_t j = 0; j < m_.dim; ++j) a_[j] = a_[j] * shrink;
  }

  // ---- spherical and tied components ------------------------------------------------------------------------------

  // Some of the components: those from `first` on, or of a list.
  struct Consecutive {
    int64_t first;
    FASTNDSM_HD int64_t operator[](int64_t i) const { return first + i; }
  };

  // n components from k0 on.
  FASTNDSM_OUTLINE void pass(int64_t k0, int64_t n) {
    int64_t count = n;
    if (m_.centred && --wait_ < 0) {
      count = sieve(k0, n);
      if (2 * count > n) wait_ = kWait, count = n;
    }
    if (count == n) {
      exact_logits<kBlock>(Consecutive{k0}, 0, n);
      std::iota(at_.begin(), at_.begin() + n, static_cast<int32_t>(k0));
    } else {
      exact_logits<kListed>(at_.data(), 0, count);
    }
    V peak = maximum_;
    for (int64_t i = 0; i < count; ++i) peak = fastndsm::max(logits_[i], peak);
    if (k0 > 0) grow(peak);
    maximum_ = peak;
    // Where all logits overflowed all weigh the same.
    const V lowest = select(peak > kLowestLogit<V>, V(peak - kNearCut<S>), splat<V>(-std::numeric_limits<S>::infinity()));
    int64_t heavy = 0;
    for (int64_t i = 0; i < count; ++i) {
      const V logit = logits_[i];
      if (!any_lane(!(logit < lowest))) continue;
      V e = select(logit < lowest, V{}, exp2_nonpositive(V(logit - peak)));
      total_ = total_ + e;
      if constexpr (kind == Covariance::spherical) e = e * precisions_[i], rate_ = rate_ + e;
      logits_[heavy] = e, at_[heavy++] = at_[i];
    }
    heavy == n ? add_means<kBlock>(Consecutive{k0}, 0, n) : add_means<kListed>(at_.data(), 0, heavy);
  }

  // Lists those that can have weight in a lane.
  FASTNDSM_OUTLINE int64_t sieve(int64_t k0, int64_t n) {
    const int64_t d = m_.dim;
    V square = V{};
    for (int64_t j = 0; j < d; ++j) t_[j] = x_[j] - m_.centre[j], square = fma(t_[j], t_[j], square);
    V peak = maximum_;
    int64_t k = 0;
    for (; k + kBlock <= n; k += kBlock) rough_logits<kBlock>(k0 + k, square, logits_ + k, peak);
    for (; k < n; ++k) rough_logits<1>(k0 + k, square, logits_ + k, peak);
    // What rounding makes of a logit, and the rough logarithm.
    const V reach = fastndsm::sqrt(square) + m_.extent, wide = s_ + m_.smallest;
    const V terms = reach * reach / wide * kHalfLog2e + (m_.largest_weight + S(d) * (S(1) - log(V(wide * top_))));
    const V slack = S(1) + S(1e-3) * S(d) + terms * (S(4 * (d + 8)) * std::numeric_limits<S>::epsilon());
    const V lowest = peak - (S(2) * slack + kNearCut<S>);
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      at_[count] = static_cast<int32_t>(k0 + i);
      count += any_lane(!(logits_[i] < lowest));
    }
    return count;
  }

  template <int KB>
  FASTNDSM_HD void rough_logits(int64_t k0, V square, V* to, V& peak) const {
    const int64_t d = m_.dim;
    const S* means = m_.centred + k0 * d;
    V product[KB];
    FASTNDSM_UNROLL
    for (int k = 0; k < KB; ++k) product[k] = V{};
#pragma GCC unroll 4
    for (int64_t j = 0; j < d; ++j) {
      const V x = t_[j];
      FASTNDSM_UNROLL
      for (int k = 0; k < KB; ++k) product[k] = fma(x, splat<V>(means[k * d + j]), product[k]);
    }
    FASTNDSM_UNROLL
    for (int k = 0; k < KB; ++k) {
      const V wide = s_ + m_.variances[k0 + k], q = fma(product[k], splat<V>(S(-2)), V(square + m_.squares[k0 + k]));
      V mantissa;
      bits_of<V> field;
      detail::split_exponent(V(wide * top_), mantissa, field);
      const V f = mantissa - S(1);
      const V log2 = fma(f, detail::polynomial(f, 1.44100691, -0.75688875, 0.53093962),  // to 9e-4
                         V(convert<V>(field) * S(1 / detail::kOneInExponentField<V>)));
      const V l =
          fma(q, V(reciprocal(wide) * -kHalfLog2e), fma(log2, splat<V>(S(-0.5) * S(d)), splat<V>(m_.log_weights[k0 + k])));
      to[k] = l, peak = fastndsm::max(l, peak);
    }
  }

  // Logits of n components, from place i on, and (spherical) their precisions.
  template <int KB, typename Components>
  FASTNDSM_HD void exact_logits(const Components& at, int64_t i, int64_t n) {
    for (; i + KB <= n; i += KB) {
      V q[KB];
      distances<KB>(at, i, q);
      FASTNDSM_UNROLL
      for (int k = 0; k < KB; ++k) {
        if constexpr (kind == Covariance::spherical) {
          const V wide = s_ + m_.variances[at[i + k]];
          precisions_[i + k] = S(1) / wide;
          q[k] = fused(q[k], precisions_[i + k], V(S(m_.dim) * log(V(wide * top_))));
        }
        logits_[i + k] = fused(q[k], splat<V>(-kHalfLog2e), splat<V>(m_.log_weights[at[i + k]]));
      }
    }
    if constexpr (KB > 1) exact_logits<KB / 2>(at, i, n);
  }

  // sum_j (x - m_k)_j^2, each times p_j if tied.
  template <int KB, typename Components>
  FASTNDSM_HD void distances(const Components& at, int64_t i, V* q) const {
    const int64_t d = m_.dim;
    const S* mean[KB];
    FASTNDSM_UNROLL
    for (int k = 0; k < KB; ++k) mean[k] = m_.means + at[i + k] * d, q[k] = V{};
#pragma GCC unroll 1
    for (int64_t j0 = 0; j0 < d; j0 += kPart) {
      V part[KB];
      FASTNDSM_UNROLL
      for (int k = 0; k < KB; ++k) part[k] = V{};
      const int64_t end = std::min<int64_t>(d, j0 + kPart);
#pragma GCC unroll 4
      for (int64_t j = j0; j < end; ++j) {
        V t[KB];
        FASTNDSM_UNROLL
        for (int k = 0; k < KB; ++k) {
          if constexpr (kTied) {
            t[k] = fused(splat<V>(-mean[k][j]), w_[j], x_[j]);
          } else {
            t[k] = x_[j] - mean[k][j];
          }
        }
        FASTNDSM_UNROLL
        for (int k = 0; k < KB; ++k) part[k] = fused(t[k], t[k], part[k]);
      }
      FASTNDSM_UNROLL
      for (int k = 0; k < KB; ++k) q[k] = q[k] + part[k];
    }
  }

  // Adds the means of n components, from place i on, times their weights.
  template <int KB, typename Components>
  FASTNDSM_HD void add_means(const Components& at, int64_t i, int64_t n) {
    const int64_t d = m_.dim;
    for (; i + KB <= n; i += KB) {
      const S* mean[KB];
      V e[KB];
      FASTNDSM_UNROLL
      for (int k = 0; k < KB; ++k) mean[k] = m_.means + at[i + k] * d, e[k] = logits_[i + k];
#pragma GCC unroll 4
      for (int64_t j = 0; j < d; ++j) {
        V sum = a_[j];
        FASTNDSM_UNROLL
        for (int k = 0; k < KB; ++k) sum = fused(e[k], splat<V>(mean[k][j]), sum);
        a_[j] = sum;
      }
    }
    if constexpr (KB > 1) add_means<KB / 2>(at, i, n);
  }

  // ---- diag and full components -----------------------------------------------------------------------------------

  static constexpr S kNothing = S(detail::kSingle<V> ? -100 : -160);

  // What the dimensions of a component add up to: squares of u under the precisions, and the product of the variances,
  // its exponent apart from its mantissa.
  struct Sums {
    V q, mantissa, exponent;
  };

  FASTNDSM_HD Sums no_sums() const { return {V{}, splat<V>(S(1)), V(exponent_ * -S(m_.dim))}; }

  // to = p u of one or four neighbouring dimensions; u may be where the result goes.
  template <int N>
  FASTNDSM_HD void pull(const S* variances, const V (&u)[N], V* to, Sums& sums) const {
    V w[N], p[N];
    FASTNDSM_UNROLL
    for (int i = 0; i < N; ++i) w[i] = s_ + variances[i];
    V product = w[0];
    if constexpr (N == 4) {  // their inverses by one of the product of all
      const V low = w[0] * w[1], high = w[2] * w[3];
      product = low * high;
      const V inverse = reciprocal(product), of_low = inverse * high, of_high = inverse * low;
      p[0] = of_low * w[1], p[1] = of_low * w[0], p[2] = of_high * w[3], p[3] = of_high * w[2];
    } else {
      static_assert(N == 1);
      p[0] = reciprocal(product);
    }
    FASTNDSM_UNROLL
    for (int i = 0; i < N; ++i) to[i] = p[i] * u[i], sums.q = fma(to[i], u[i], sums.q);
    V exponent;
    split(V(sums.mantissa * product), sums.mantissa, exponent);
    sums.exponent = sums.exponent + exponent;
  }

  // l_k but for the mantissa, less than a factor of 2, whose root divides the component's weight.
  FASTNDSM_HD V logit(int64_t k, const Sums& sums, V& weight) const {
    weight = reciprocal_root(sums.mantissa);
    const V halves = fma(sums.exponent, splat<V>(S(-0.5)), splat<V>(m_.log_weights[k]));
    return fma(sums.q, splat<V>(-kHalfLog2e), halves);
  }

  template <int KB>
  FASTNDSM_HD void diag_logits(int64_t k0, V* logits, V* weights) {
    const int64_t d = m_.dim;
    Sums sums[KB];
    FASTNDSM_UNROLL
    for (int k = 0; k < KB; ++k) sums[k] = no_sums();
    const auto some = [&](int64_t j, auto count) {
      constexpr int N = decltype(count)::value;
      FASTNDSM_UNROLL
      for (int k = 0; k < KB; ++k) {
        const int64_t at = (k0 + k) * d + j;
        V u[N];
        FASTNDSM_UNROLL
        for (int i = 0; i < N; ++i) u[i] = m_.means[at + i] - x_[j + i];
        pull<N>(m_.variances + at, u, u_ + k * d + j, sums[k]);
      }
    };
    int64_t j = 0;
    for (; in_fours_ && j + 4 <= d; j += 4) some(j, std::integral_constant<int, 4>{});
    for (; j < d; ++j) some(j, std::integral_constant<int, 1>{});
    FASTNDSM_UNROLL
    for (int k = 0; k < KB; ++k) logits[k] = logit(k0 + k, sums[k], weights[k]);
  }

  FASTNDSM_HD V full_logit(int64_t k, V& weight) {
    const int64_t d = m_.dim;
    for (int64_t j = 0; j < d; ++j) t_[j] = m_.means[k * d + j] - x_[j];
    turn<true>(m_.rotations + k * d * d, t_, u_);
    Sums sums = no_sums();
    const S* variances = m_.variances + k * d;
    int64_t j = 0;
    for (; in_fours_ && j + 4 <= d; j += 4) {
      pull<4>(variances + j, {u_[j], u_[j + 1], u_[j + 2], u_[j + 3]}, u_ + j, sums);
    }
    for (; j < d; ++j) pull<1>(variances + j, {u_[j]}, u_ + j, sums);
    return logit(k, sums, weight);
  }

  // Adds p u of KB components, by their weights.
  template <int KB>
  FASTNDSM_HD void add(const V* e) {
    const int64_t d = m_.dim;
#pragma GCC unroll 4
    for (int64_t j = 0; j < d; ++j) {
      V sum = V{};
      FASTNDSM_UNROLL
      for (int k = 0; k < KB; ++k) sum = fma(e[k], u_[k * d + j], sum);
      a_[j] = a_[j] + sum;
    }
  }

  // to = U^T x (transposed) or U x, for U [d, d].
  template <bool transposed>
  FASTNDSM_OUTLINE void turn(const S* matrix, const V* x, V* to) const {
    const int64_t d = m_.dim;
    int64_t i = 0;
    for (; i + 8 <= d; i += 8) turn_rows<transposed, 8>(matrix, x, to, i);
    for (; i < d; ++i) turn_rows<transposed, 1>(matrix, x, to, i);
  }

  template <bool transposed, int R>
  FASTNDSM_HD void turn_rows(const S* matrix, const V* x, V* to, int64_t i) const {
    const int64_t d = m_.dim;
    V sum[R];
    FASTNDSM_UNROLL
    for (int r = 0; r < R; ++r) sum[r] = V{};
    for (int64_t j = 0; j < d; ++j) {
      const V value = x[j];
      FASTNDSM_UNROLL
      for (int r = 0; r < R; ++r) {
        sum[r] = fma(value, splat<V>(transposed ? matrix[j * d + i + r] : matrix[(i + r) * d + j]), sum[r]);
      }
    }
    FASTNDSM_UNROLL
    for (int r = 0; r < R; ++r) to[i + r] = sum[r];
  }

  const NoisedView<S>& m_;
  V *a_, *x_, *p_, *w_, *t_, *u_;
  V *logits_ = nullptr, *precisions_ = nullptr;  // of a pass; then weights
  std::vector<int32_t> at_;  // its components
  int wait_ = 0;  // tiles to go without a sieve
  V maximum_, total_, rate_, s_, top_, exponent_, common_;  // top_ = 2^-exponent_, next to 1 / (s + largest)
  bool in_fours_;
};

}  // namespace fastndsm
