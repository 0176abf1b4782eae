// Which of many components can have weight at a place or near it, and their parameters as one sample reads them.
//
// A component whose weight is below 2^-kNearCut of a sample's largest counts as 0. At a place, `levels` tells those that have
// more: logits of all by one multiply-add a dimension, to within a slack. Around it their reach does, for trajectories. Let b
// be a component and l_k the logits in units of log 2 at a place x_0. For every u,
//
//   l_k(x_0 + u) - l_b(x_0 + u) <= (l_k - l_b)(x_0) + log2(e) [|g_k - g_b| |u| + max((P_b - P_k)+) |u|^2 / 2],
//
// so that k has no weight before |u| reaches the root of that bound at -kNearCut: its reach. Lengths of gradients and moves
// are taken in one metric, |u|^2 = sum_j max_k P_kj u_j^2 if diag. An Anchor holds the components of reach up to its radius.
// To have an anchor where none is near, groups of components go first: a ball bounds all that it holds.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "mixture_view.h"

namespace fastndsm {

// After a visit to all components a sample has a list made where so few could have a weight kAhead lower.
constexpr int64_t kFewAhead = 8;
template <typename S>
constexpr S kAhead = kNearCut<S>;

// Whether trajectories may keep lists of components sample by sample; `uses` of NearComponents says whether they do.
template <typename S>
bool lists_components(Covariance kind, int64_t n_components, int64_t dim) {
  return dim >= 4 && n_components >= 24 && (kind != Covariance::full || n_components * dim * dim <= (int64_t(1) << 28));
}

// Whether single evaluations may sieve: not those of full matrices, which no sieve is cheaper than, nor where a batch would
// take longer to group the components than to visit all.
template <typename S>
bool sieves_components(Covariance kind, int64_t n_components, int64_t dim) {
  return lists_components<S>(kind, n_components, dim) && kind != Covariance::full && n_components > kResident &&
         n_components * dim <= (int64_t(1) << 21);
}

// The components that can have weight within `radius` of a place.
template <typename S>
struct Anchor {
  S radius = S(-1);
  const S* origin = nullptr;
  std::vector<int32_t> at;  // ascending
  std::vector<S> reach;  // of each, and what none has beyond, for whole vectors

  void clear() { at.clear(), reach.clear(); }
  void add(int32_t k, S its_reach) { at.push_back(k), reach.push_back(its_reach); }
  void close() { reach.insert(reach.end(), kLanes<S>, std::numeric_limits<S>::infinity()); }

  // body(i, bits, reach) for each vector of them; a bit is set where the reach is within r.
  template <typename Body>
  void split(S r, const Body& body) const {
    using V = vec<S, kLanes<S>>;
    for (size_t i = 0; i < at.size(); i += lanes_of<V>) {
      const V each = load<V>(reach.data() + i);
      uint32_t bits = lanes_not_below(splat<V>(r), each);
      if (at.size() - i < lanes_of<V>) bits &= (uint32_t(1) << (at.size() - i)) - 1;
      body(static_cast<int32_t>(i), bits, each);
    }
  }
  int64_t within(S r) const {
    int64_t count = 0;
    split(r, [&](int32_t, uint32_t bits, auto) { count += std::popcount(bits); });
    return count;
  }
};

// A component that others are compared with at a place.
template <typename S>
struct Base {
  int32_t at = -1;
  S logit;
  std::vector<S> pull;  // g_b
};

template <typename S>
class NearComponents {
 public:
  using V = vec<S, kLanes<S>>;
  static constexpr int W = lanes_of<V>;
  static constexpr S kHalf = S(0.72134752044448170368);  // log2(e) / 2

  // visits_all: nothing is left out, which changes no bit.
  explicit NearComponents(const MixtureView<S>& m, bool visits_all = false)
      : kind_(m.kind), n_(m.n_components), d_(m.dim), pitch_((d_ + W - 1) / W * W), visits_all_(visits_all) {
    centre_ = mean_of_rows(m.means, n_, d_);
    if (kind_ == Covariance::tied) whiten(m);
    group(m);
    pack(m);
    bound_groups();
    pack_blocks();
    anchors_ = std::make_unique<std::atomic<Anchor<S>*>[]>(n_);
    by_kind(kind_, [&](auto kind) { uses_ = costs<decltype(kind)::value>(); });
  }
  ~NearComponents() {
    for (int64_t k = 0; k < n_; ++k) delete anchors_[k].load();
  }
  NearComponents(const NearComponents&) = delete;

  int64_t count() const { return n_; }
  int64_t pitch() const { return pitch_; }
  bool visits_all() const { return visits_all_; }
  S metric_norm() const { return metric_norm_; }
  const S* metric() const { return values(metric_); }
  // tied: L^T and L of P = L L^T, [d, d], and the place that coordinates are relative to.
  const S* to_whitened() const { return to_whitened_.data(); }
  const S* from_whitened() const { return from_whitened_.data(); }
  const S* centre() const { return centre_.data(); }

  const int32_t* everyone() const { return everyone_.data(); }
  const S* log_scale() const { return log_scale_.data(); }
  const S* half() const { return half_.data(); }
  int32_t id(int64_t at) const { return id_[at]; }
  S scale(int64_t at) const { return scale_[at]; }
  const S* mean(int64_t at) const { return values(means_) + at * pitch_; }
  const S* precision(int64_t at) const { return values(precisions_) + at * pitch_; }
  const S* root(int64_t at) const { return values(roots_) + at * pitch_; }
  const S* shift(int64_t at) const { return values(shifts_) + at * pitch_; }
  const S* matrix(int64_t at) const { return values(matrices_) + at * d_ * pitch_; }

  // P (m - x) of a full component, in the first half of memory [2, pitch]; other kinds have no need of it.
  template <Covariance kind>
  const S* prepare_row(int64_t at, const S* x, S* memory) const {
    if constexpr (kind == Covariance::full) {
      S* difference = memory + pitch_;
      for (int64_t j = 0; j < pitch_; j += W) store(difference + j, V(load<V>(mean(at) + j) - load<V>(x + j)));
      times_matrix(at, difference, memory);
    }
    return memory;
  }

  // P v, [pitch], of a full component.
  void times_matrix(int64_t at, const S* v, S* out) const {
    const S* p = matrix(at);
    for (int64_t i = 0; i < pitch_; i += W) {
      V sum[4] = {V{}, V{}, V{}, V{}};
      int64_t j = 0;
      for (; j + 4 <= d_; j += 4) {
        FASTNDSM_UNROLL
        for (int c = 0; c < 4; ++c) sum[c] = fused(splat<V>(v[j + c]), load<V>(p + (j + c) * pitch_ + i), sum[c]);
      }
      for (; j < d_; ++j) sum[0] = fused(splat<V>(v[j]), load<V>(p + j * pitch_ + i), sum[0]);
      store(out + i, V((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
  }

  // Sums over dimensions of term(k, u, j), u what prepare_row gives, of the first W of the n components k at[0 ..]; 0 beyond.
  template <Covariance kind, typename Term>
  V sum_dimensions(const int32_t* at, int64_t n, const S* x, S* memory, const Term& term) const {
    V sum[W];
    if (n < W) {
      for (V& none : sum) none = V{};
    }
    for (int i = 0; i < W && i < n; ++i) {
      V part[2] = {V{}, V{}};
      const S* u = prepare_row<kind>(at[i], x, memory);
      const int64_t k = at[i];
      int64_t j = 0;
      for (; j + 2 * W <= pitch_; j += 2 * W) term(k, u, j, part[0]), term(k, u, j + W, part[1]);
      if (j < pitch_) term(k, u, j, part[0]);
      sum[i] = part[0] + part[1];
    }
    return sum_each(sum);
  }

  // Their (x - m)^T P (x - m), up to `half`.
  template <Covariance kind>
  FASTNDSM_OUTLINE V quadratic(const int32_t* at, int64_t n, const S* x, S* memory) const {
    return sum_dimensions<kind>(at, n, x, memory, [&](int64_t k, const S* u, int64_t j, V& to) FASTNDSM_INLINE {
      if constexpr (kind == Covariance::full) {
        to = fused(V(load<V>(mean(k) + j) - load<V>(x + j)), load<V>(u + j), to);
      } else if constexpr (kind == Covariance::diag) {
        const V t = fused(load<V>(x + j), load<V>(root(k) + j), load<V>(shift(k) + j));
        to = fused(t, t, to);
      } else {
        const V t = load<V>(mean(k) + j) - load<V>(x + j);
        to = fused(t, t, to);
      }
    });
  }

  // Their g . z, up to `scale`.
  template <Covariance kind>
  FASTNDSM_OUTLINE V product(const int32_t* at, int64_t n, const S* x, const S* z, S* memory) const {
    return sum_dimensions<kind>(at, n, x, memory, [&](int64_t k, const S* u, int64_t j, V& to) FASTNDSM_INLINE {
      if constexpr (kind == Covariance::full) {
        to = fused(load<V>(u + j), load<V>(z + j), to);
      } else if constexpr (kind == Covariance::diag) {
        const V r = load<V>(root(k) + j);
        to = fused(fused(load<V>(x + j), r, load<V>(shift(k) + j)), V(r * load<V>(z + j)), to);
      } else {
        to = fused(V(load<V>(mean(k) + j) - load<V>(x + j)), load<V>(z + j), to);
      }
    });
  }

  // g of one component, [pitch].
  template <Covariance kind>
  void pull(int64_t at, const S* x, S* memory, S* out) const {
    const S* u = prepare_row<kind>(at, x, memory);
    for (int64_t j = 0; j < pitch_; j += W) {
      if constexpr (kind == Covariance::full) {
        store(out + j, load<V>(u + j));
      } else if constexpr (kind == Covariance::diag) {
        const V r = load<V>(this->root(at) + j);
        const V t = fused(load<V>(x + j), r, load<V>(shift(at) + j));
        store(out + j, V(V(t * r) * scale_[at]));
      } else {
        store(out + j, V((load<V>(mean(at) + j) - load<V>(x + j)) * scale_[at]));
      }
    }
  }

  template <Covariance kind>
  Base<S>& compare_with(int64_t at, const S* x, S* memory, Base<S>& base) const {
    base.at = static_cast<int32_t>(at), base.pull.resize(pitch_);
    S q[W];
    store(q, quadratic<kind>(&base.at, 1, x, memory));
    base.logit = log_scale_[at] - half_[at] * q[0];
    pull<kind>(at, x, memory, base.pull.data());
    return base;
  }

  // Reach of the n listed components from x; `at` may be read up to a multiple of W. Returns the place in the list of the largest logit.
  template <Covariance kind>
  FASTNDSM_OUTLINE int64_t reaches(const int32_t* at, int64_t n, const S* x, const Base<S>& base, S* memory,
                                   S* reach) const {
    const S* gb = base.pull.data();
    const S* inverse = values(inverse_metric_);
    int64_t best = 0;
    S highest = -std::numeric_limits<S>::infinity();
    for (int64_t first = 0; first < n; first += W) {
      V q[W], square[W], length[W];
      S curve[W], scale[W], half[W], level[W];
      for (int i = 0; i < W; ++i) {
        const int64_t k = at[std::min(first + i, n - 1)];
        const S* u = prepare_row<kind>(k, x, memory);
        q[i] = V{}, square[i] = V{}, length[i] = V{};
        scale[i] = scale_[k], half[i] = half_[k], level[i] = log_scale_[k];
        V steepest = V{};
        for (int64_t j = 0; j < pitch_; j += W) {
          V apart;
          if constexpr (kind == Covariance::full) {
            const V t = load<V>(mean(k) + j) - load<V>(x + j);
            q[i] = fused(t, load<V>(u + j), q[i]), length[i] = fused(t, t, length[i]);
            apart = load<V>(u + j) - load<V>(gb + j);
          } else if constexpr (kind == Covariance::diag) {
            const V r = load<V>(root(k) + j), t = fused(load<V>(x + j), r, load<V>(shift(k) + j)),
                    to = load<V>(inverse + j);
            q[i] = fused(t, t, q[i]);
            apart = fused(V(t * r), splat<V>(scale[i]), V(-load<V>(gb + j))) * to;
            const V p = load<V>(precision(k) + j);
            steepest = fastndsm::max(V((load<V>(precision(base.at) + j) - p) * to * to), steepest);
          } else {
            const V t = load<V>(mean(k) + j) - load<V>(x + j);
            q[i] = fused(t, t, q[i]);
            apart = fused(t, splat<V>(scale[i]), V(-load<V>(gb + j)));
          }
          square[i] = fused(apart, apart, square[i]);
        }
        if constexpr (kind == Covariance::full) length[i] = length[i] * high_[k];  // what its terms can add up to
        curve[i] = kind == Covariance::diag ? max_lanes(steepest) : std::max(high_[base.at] - low_[k], S(0));
      }
      const V l = fused(V(-load<V>(half)), sum_each(q), load<V>(level));
      S lanes[W];
      store(lanes, l);
      for (int i = 0; i < W && first + i < n; ++i) {
        if (lanes[i] > highest) highest = lanes[i], best = first + i;
      }
      V terms = V(load<V>(level) - l);
      if constexpr (kind == Covariance::full) terms = sum_each(length) * S(kHalf * (4 + double(d_) / 16));
      const V r = reach_of(l, load<V>(level), terms, base.logit, sqrt(sum_each(square)), load<V>(curve));
      S values[W];
      store(values, r);
      for (int i = 0; i < W && first + i < n; ++i) reach[first + i] = values[i];
    }
    return best;
  }

  // Looks for the component of the largest logit in the groups that x is nearest to, until found(component).
  template <Covariance kind, typename Found>
  int32_t guess(const S* x, S* memory, std::vector<S>& distance, const Found& found) const {
    constexpr int kGroups = 8;
    constexpr S kNone = -std::numeric_limits<S>::infinity();
    group_distances<kind>(x, distance);
    S* const level = distance.data();  // what a group's components have at its centre
    for (int64_t g = 0; g < n_groups(); ++g) {
      level[g] = top_[g] - kHalf * (low_group_[g] + high_group_[g]) / 2 * distance[g] * distance[g];
    }
    std::fill(distance.begin() + n_groups(), distance.end(), kNone);
    S best = kNone;
    int32_t at = 0;
    for (int tries = 0; tries < kGroups; ++tries) {
      const auto [group, nearest] = largest(level, static_cast<int64_t>(distance.size()));
      if (!(nearest > kNone)) break;
      level[group] = kNone;
      for (int32_t k = start_[group]; k < start_[group + 1]; k += W) {
        const V q = quadratic<kind>(everyone_.data() + k, start_[group + 1] - k, x, memory);
        V l = fused(V(-load<V>(half_.data() + k)), q, load<V>(log_scale_.data() + k));
        const V left = splat<V>(S(start_[group + 1] - k)) - iota<V>();
        l = select(left > S(0), l, splat<V>(kNone));
        S lanes[W];
        store(lanes, l);
        const auto [place, value] = largest(lanes, W);
        if (value > best) best = value, at = k + place;
      }
      if (found(at)) break;
    }
    return at;
  }

  // The first of n values, a multiple of W, that none is above; and it.
  static std::pair<int32_t, S> largest(const S* values, int64_t n) {
    V most = load<V>(values);
    for (int64_t i = W; i < n; i += W) most = fastndsm::max(load<V>(values + i), most);
    const S value = max_lanes(most);
    for (int64_t i = 0; i < n; i += W) {
      const uint32_t bits = lanes_not_below(load<V>(values + i), splat<V>(value));
      if (bits) return {static_cast<int32_t>(i + std::countr_zero(bits)), value};
    }
    return {0, value};
  }

  // Appends the components of the groups whose reach is at most `radius`.
  template <Covariance kind>
  void candidates(const S* x, const Base<S>& base, S radius, std::vector<S>& distance, std::vector<int32_t>& at) const {
    group_distances<kind>(x, distance);
    S pulls = S(0);
    for (int64_t j = 0; j < pitch_; ++j) {
      const S g = base.pull[j] * (kind == Covariance::diag ? values(inverse_metric_)[j] : S(1));
      pulls += g * g;
    }
    pulls = std::sqrt(pulls);
    for (int64_t g = 0; g < n_groups(); ++g) {
      const S away = std::max(distance[g] * S(1 - 1e-3) - radius_[g], S(0)),
              within = distance[g] * S(1 + 1e-3) + radius_[g];
      const S highest = top_[g] - kHalf * low_group_[g] * away * away;
      const S slope = high_group_[g] * within + pulls, curve = std::max(high_[base.at] - low_group_[g], S(0));
      const S reach = reach_of(highest, top_[g], top_[g] - highest, base.logit, slope, curve);
      if (reach > radius) continue;
      at.insert(at.end(), everyone_.begin() + start_[g], everyone_.begin() + start_[g + 1]);
    }
  }

  // Logits of all components of n samples, to within `slack`: less exact than a sample's own, and many times faster.
  // x: where a sample lies, relative to the centre, its dimensions `stride` apart; squares: their lengths squared; out: rows
  // of n_padded().
  int64_t n_padded() const { return (n_ + W - 1) / W * W; }
  template <Covariance kind, int n>
  FASTNDSM_OUTLINE void levels(const S* const* x, int64_t stride, const S* squares, S* const* out, V* peaks) const {
    constexpr int B = kRegisters >= 32 ? 4 : 2;
    const int64_t blocks = n_padded() / W;
    int64_t b = 0;
    for (; b + B <= blocks; b += B) some_levels<kind, n, B>(b, x, stride, squares, out, peaks);
    for (; b < blocks; ++b) some_levels<kind, n, 1>(b, x, stride, squares, out, peaks);
  }

  // The same of a full component, in all lanes.
  template <typename T>
  T level(int64_t at, const T* x) const {
    const S* p = matrix(at);
    T q = T{};
    for (int64_t i = 0; i < d_; ++i, p += pitch_) {
      T sum[2] = {T{}, T{}};  // of the triangle
      int64_t j = 0;
      for (; j + 2 <= i; j += 2) {
        sum[0] = fused(splat<T>(p[j]), T(x[j] - mean(at)[j]), sum[0]);
        sum[1] = fused(splat<T>(p[j + 1]), T(x[j + 1] - mean(at)[j + 1]), sum[1]);
      }
      if (j < i) sum[0] = fused(splat<T>(p[j]), T(x[j] - mean(at)[j]), sum[0]);
      const T t = x[i] - mean(at)[i];
      q = fused(t, fused(t, splat<T>(p[i]), T(S(2) * (sum[0] + sum[1]))), q);
    }
    return fused(q, splat<T>(-kHalf), splat<T>(log_scale_[at]));
  }

  // What rounding can make of a logit, at a place `away` from the centre in the metric.
  S slack(S away) const {
    const S reach = extent_ + away;
    return S(1) + S(4 * (d_ + 8)) * std::numeric_limits<S>::epsilon() * (largest_scale_ + kHalf * highest_ * reach * reach);
  }

  // What is faster than visits to all components by whole tiles: lists along trajectories that start in the mixture, and a
  // sieve of all before a single evaluation. Functions of the mixture alone: the two ways differ in rounding. And whether
  // an anchor mostly saves a single evaluation the sieve.
  struct Uses {
    bool lists = false, sieve = false, anchors = false;
  };
  const Uses& uses() const { return uses_; }

  // The anchor at the mean of a component, or null where none was made.
  const Anchor<S>* anchor(int64_t at) const { return anchors_[at].load(std::memory_order_acquire); }

  // Makes it.
  template <Covariance kind>
  const Anchor<S>* make_anchor(int64_t at, S* memory) const {
    constexpr size_t kMost = 64;
    const S* origin = mean(at);
    Base<S> base;
    compare_with<kind>(at, origin, memory, base);
    std::vector<S> reach(n_);
    reaches<kind>(everyone_.data(), n_, origin, base, memory, reach.data());
    auto made = std::make_unique<Anchor<S>>();
    made->origin = origin, made->radius = std::numeric_limits<S>::max();
    if (size_t(n_) > kMost) {
      std::vector<S> sorted = reach;
      std::nth_element(sorted.begin(), sorted.begin() + kMost, sorted.end());
      made->radius = sorted[kMost] * S(1 - 1e-3);
    }
    for (int64_t k = 0; k < n_; ++k) {
      if (!(reach[k] > made->radius)) made->add(static_cast<int32_t>(k), reach[k]);
    }
    made->close();
    Anchor<S>* expected = nullptr;
    if (anchors_[at].compare_exchange_strong(expected, made.get(), std::memory_order_acq_rel)) return made.release();
    return expected;
  }

  // |x - y| in the metric.
  template <Covariance kind>
  S distance(const S* x, const S* y) const {
    V sum = V{};
    for (int64_t j = 0; j < pitch_; j += W) {
      V t = load<V>(x + j) - load<V>(y + j);
      if constexpr (kind == Covariance::diag) t = t * load<V>(values(metric_) + j);
      sum = fused(t, t, sum);
    }
    return std::sqrt(sum_lanes(sum));
  }

 private:
  static const S* values(const std::vector<V>& v) { return reinterpret_cast<const S*>(v.data()); }
  static S* values(std::vector<V>& v) { return reinterpret_cast<S*>(v.data()); }
  int64_t n_groups() const { return static_cast<int64_t>(top_.size()); }

  // Of components whose logit is l, at their mean level, and the sum of l's terms at most `terms`; slope and curve bound the
  // change of l - l_b. Rounding is allowed for: that of logits, and a thousandth of a slope.
  template <typename T>
  static T reach_of(T l, T level, T terms, S base_logit, T slope, T curve) {
    constexpr S kRounding = S(256) * std::numeric_limits<S>::epsilon();
    const auto absolute = [](T v) { return fastndsm::max(v, T(-v)); };
    const T slack = (absolute(terms) + absolute(level) + splat<T>(std::abs(base_logit))) * kRounding + S(1);
    const T below = fastndsm::max(T(base_logit - l - kNearCut<S> - slack), T{});
    const T b = slope * S(2 * kHalf * (1 + 1e-3)), c = curve * S(kHalf * (1 + 1e-3));
    // That of one which has weight already is 0, also where neither slope nor curve would end it: the base's own.
    return select(below > S(0), T(below * S(2) / (b + sqrt(T(b * b + c * below * S(4))))), T{});
  }

  void whiten(const MixtureView<S>& m) {
    const std::vector<double> l = factor(m.precisions, d_);
    to_whitened_.resize(d_ * d_), from_whitened_.resize(d_ * d_);
    for (int64_t i = 0; i < d_; ++i) {
      for (int64_t j = 0; j < d_; ++j) from_whitened_[i * d_ + j] = to_whitened_[j * d_ + i] = S(l[i * d_ + j]);
    }
    whitened_.resize(n_ * d_);
    for (int64_t k = 0; k < n_; ++k) {
      for (int64_t i = 0; i < d_; ++i) {
        double sum = 0;
        for (int64_t j = i; j < d_; ++j) sum += l[j * d_ + i] * (double(m.means[k * d_ + j]) - double(centre_[j]));
        whitened_[k * d_ + i] = S(sum);
      }
    }
  }

  const S* means_of(const MixtureView<S>& m) const { return kind_ == Covariance::tied ? whitened_.data() : m.means; }

  // Groups of about sqrt(K) components, nearest to one of them; components are numbered group by group.
  void group(const MixtureView<S>& m) {
    metric_.assign(pitch_ / W, V{}), inverse_metric_.assign(pitch_ / W, V{});
    double squares = 0;
    for (int64_t j = 0; j < d_; ++j) {
      S most = S(1);
      if (kind_ == Covariance::diag) {
        most = S(0);
        for (int64_t k = 0; k < n_; ++k) most = std::max(most, m.precisions[k * d_ + j]);
      }
      values(metric_)[j] = std::sqrt(most), values(inverse_metric_)[j] = S(1) / std::sqrt(most);
      squares += kind_ == Covariance::tied ? double(m.precisions[j * d_ + j]) : double(most);
    }
    metric_norm_ = S(std::sqrt(squares));
    const S* from = means_of(m);
    std::vector<V> place(n_ * pitch_ / W, V{});
    for (int64_t k = 0; k < n_; ++k) {
      for (int64_t j = 0; j < d_; ++j) values(place)[k * pitch_ + j] = from[k * d_ + j] * values(metric_)[j];
    }
    const int64_t size = std::max<int64_t>(W, std::llround(std::sqrt(double(n_)))), groups = (n_ + size - 1) / size;
    centres_.assign(groups * pitch_ / W, V{});
    for (int64_t g = 0; g < groups; ++g) {
      const S* pivot = values(place) + g * n_ / groups * pitch_;
      std::copy(pivot, pivot + pitch_, values(centres_) + g * pitch_);
    }
    std::vector<int32_t> own(n_), size_of(groups);
    for (int round = 0; round < 2; ++round) {
      std::fill(size_of.begin(), size_of.end(), 0);
      for (int64_t k = 0; k < n_; ++k) ++size_of[own[k] = nearest(values(place) + k * pitch_, groups)];
      if (round == 1) break;
      std::fill(centres_.begin(), centres_.end(), V{});
      for (int64_t k = 0; k < n_; ++k) {
        S* c = values(centres_) + own[k] * pitch_;
        for (int64_t j = 0; j < d_; ++j) c[j] += values(place)[k * pitch_ + j] / S(size_of[own[k]]);
      }
    }
    start_.assign(groups + 1, 0);
    for (int64_t g = 0; g < groups; ++g) start_[g + 1] = start_[g] + size_of[g];
    std::vector<int32_t> next(start_.begin(), start_.end() - 1);
    id_.resize(n_);
    for (int64_t k = 0; k < n_; ++k) id_[next[own[k]]++] = static_cast<int32_t>(k);
  }

  int32_t nearest(const S* x, int64_t groups) const {
    int32_t best = 0;
    S least = std::numeric_limits<S>::max();
    for (int64_t g = 0; g < groups; ++g) {
      V sum = V{};
      for (int64_t j = 0; j < pitch_; j += W) {
        const V t = load<V>(x + j) - load<V>(values(centres_) + g * pitch_ + j);
        sum = fused(t, t, sum);
      }
      const S square = sum_lanes(sum);
      if (square < least) least = square, best = static_cast<int32_t>(g);
    }
    return best;
  }

  void pack(const MixtureView<S>& m) {
    const S* from = means_of(m);
    const auto rows = [&](std::vector<V>& to, const S* source) {
      to.assign(n_ * pitch_ / W, V{});
      for (int64_t at = 0; at < n_; ++at) std::copy_n(source + id_[at] * d_, d_, values(to) + at * pitch_);
    };
    rows(means_, from);
    if (kind_ == Covariance::diag) rows(roots_, m.roots), rows(shifts_, m.shifts), rows(precisions_, m.precisions);
    if (kind_ == Covariance::full) {
      matrices_.assign(n_ * d_ * pitch_ / W, V{});
      for (int64_t at = 0; at < n_; ++at) {
        for (int64_t i = 0; i < d_; ++i) {
          std::copy_n(m.precisions + (id_[at] * d_ + i) * d_, d_, values(matrices_) + (at * d_ + i) * pitch_);
        }
      }
    }
    everyone_.assign(n_ + W, static_cast<int32_t>(n_ - 1));
    log_scale_.assign(n_ + W, -std::numeric_limits<S>::infinity()), half_.assign(n_ + W, S(1));
    scale_.resize(n_), low_.resize(n_), high_.resize(n_);
    for (int64_t at = 0; at < n_; ++at) {
      const int64_t k = id_[at];
      everyone_[at] = static_cast<int32_t>(at), log_scale_[at] = m.log_scale[k];
      low_[at] = high_[at] = scale_[at] = S(1), half_[at] = kHalf;
      if (kind_ == Covariance::spherical) {
        low_[at] = high_[at] = scale_[at] = m.precisions[k], half_[at] = kHalf * m.precisions[k];
      } else if (kind_ == Covariance::diag) {
        scale_[at] = S(-1) / kHalf, half_[at] = S(1);
        low_[at] = std::numeric_limits<S>::max(), high_[at] = S(0);
        for (int64_t j = 0; j < d_; ++j) {
          const S to = values(inverse_metric_)[j], p = m.precisions[k * d_ + j] * to * to;
          low_[at] = std::min(low_[at], p), high_[at] = std::max(high_[at], p);
        }
      } else if (kind_ == Covariance::full) {
        bound_eigenvalues(m.precisions + k * d_ * d_, low_[at], high_[at]);
      }
    }
  }

  // Of a precision: (tr P^8)^(1/8) is at least the largest, and within a factor d^(1/8) of it; so with P^-1 and the smallest.
  // Of many and large matrices the Frobenius norm, and 0.
  void bound_eigenvalues(const S* precision, S& low, S& high) const {
    const std::vector<double> p(precision, precision + d_ * d_);
    const auto largest = [&](std::vector<double> power, int squarings) {
      std::vector<double> square(d_ * d_);
      for (int n = 0; n < squarings; ++n) {
        std::fill(square.begin(), square.end(), 0.0);
        for (int64_t i = 0; i < d_; ++i) {
          for (int64_t k = 0; k < d_; ++k) {
            const double factor = power[i * d_ + k];
            for (int64_t j = 0; j < d_; ++j) square[i * d_ + j] += factor * power[k * d_ + j];
          }
        }
        std::swap(power, square);
      }
      double sum = 0;
      for (const double value : power) sum += value * value;
      return std::pow(sum, 0.5 / (1 << squarings)) * (1 + 1e-3);
    };
    const bool cheap = n_ * d_ * d_ * d_ <= int64_t(1) << 28;
    low = S(0), high = S(largest(p, cheap ? 2 : 0));
    if (!cheap) return;
    std::vector<double> column(d_), inverse(d_ * d_);
    const std::vector<double> l = factor(precision, d_);
    for (int64_t c = 0; c < d_; ++c) {
      for (int64_t i = 0; i < d_; ++i) {
        column[i] = i == c ? 1.0 : 0.0;
        for (int64_t j = 0; j < i; ++j) column[i] -= l[i * d_ + j] * column[j];
        column[i] /= l[i * d_ + i];
      }
      solve_transposed(l, column);
      for (int64_t i = 0; i < d_; ++i) inverse[i * d_ + c] = column[i];
    }
    const double bound = 1 / largest(inverse, 2);
    if (std::isfinite(bound)) low = S(bound * (1 - 1e-3));
  }

  // L of P = L L^T; rows of P lie `pitch` apart.
  std::vector<double> factor(const S* p, int64_t pitch) const {
    std::vector<double> l(d_ * d_);
    for (int64_t i = 0; i < d_; ++i) {
      for (int64_t j = 0; j <= i; ++j) {
        double sum = p[i * pitch + j];
        for (int64_t k = 0; k < j; ++k) sum -= l[i * d_ + k] * l[j * d_ + k];
        l[i * d_ + j] = i == j ? std::sqrt(std::max(sum, 0.0)) : sum / l[j * d_ + j];
      }
    }
    return l;
  }

  // L^-T z, in place.
  void solve_transposed(const std::vector<double>& l, std::vector<double>& z) const {
    for (int64_t i = d_ - 1; i >= 0; --i) {
      for (int64_t j = i + 1; j < d_; ++j) z[i] -= l[j * d_ + i] * z[j];
      z[i] /= l[i * d_ + i];
    }
  }

  void bound_groups() {
    const int64_t groups = static_cast<int64_t>(start_.size()) - 1;
    top_.resize(groups), radius_.resize(groups), low_group_.resize(groups), high_group_.resize(groups);
    for (int64_t g = 0; g < groups; ++g) {
      top_[g] = -std::numeric_limits<S>::infinity(), low_group_[g] = std::numeric_limits<S>::max();
      for (int64_t at = start_[g]; at < start_[g + 1]; ++at) {
        double square = 0;
        for (int64_t j = 0; j < d_; ++j) {
          const double t = double(mean(at)[j]) * values(metric_)[j] - values(centres_)[g * pitch_ + j];
          square += t * t;
        }
        top_[g] = std::max(top_[g], log_scale_[at]), radius_[g] = std::max(radius_[g], S(std::sqrt(square) * (1 + 1e-3)));
        low_group_[g] = std::min(low_group_[g], low_[at]), high_group_[g] = std::max(high_group_[g], high_[at]);
      }
    }
  }

  // |x - centre| of each group, in the metric.
  template <Covariance kind>
  void group_distances(const S* x, std::vector<S>& distance) const {
    const int64_t groups = n_groups();
    distance.resize((groups + W - 1) / W * W);
    for (int64_t g0 = 0; g0 < groups; g0 += W) {
      V sum[W];
      for (int i = 0; i < W; ++i) {
        const S* c = values(centres_) + std::min(g0 + i, groups - 1) * pitch_;
        sum[i] = V{};
        for (int64_t j = 0; j < pitch_; j += W) {
          V at = load<V>(x + j);
          if constexpr (kind == Covariance::diag) at = at * load<V>(values(metric_) + j);
          const V t = at - load<V>(c + j);
          sum[i] = fused(t, t, sum[i]);
        }
      }
      store(distance.data() + g0, sqrt(sum_each(sum)));
    }
  }

  // Draws from components in turn, looks who has weight there and how long a list of one would hold, and compares what the two
  // ways cost: nanoseconds a sample-step, fitted to measurements with products on AVX-512.
  template <Covariance kind>
  Uses costs() const {
    constexpr int kDraws = 32, n = 4;
    constexpr bool kFull = kind == Covariance::full;
    const int64_t padded = n_padded();
    std::vector<S> places(n * d_), levels(n * padded), row(3 * pitch_), reach(n_);
    std::vector<double> z(d_);
    uint64_t state = 0;
    const auto uniform = [&] {  // splitmix64
      uint64_t w = state += 0x9e3779b97f4a7c15u;
      w = (w ^ (w >> 30)) * 0xbf58476d1ce4e5b9u, w = (w ^ (w >> 27)) * 0x94d049bb133111ebu;
      return (double((w ^ (w >> 31)) >> 11) + 0.5) * 0x1p-53;
    };
    const auto centre = [&](int64_t j) { return kind == Covariance::tied || kFull ? S(0) : centre_[j]; };
    double heavy = 0, alone = 0, held = 0, few = 0, some = 0;
    for (int draw = 0; draw < kDraws; draw += n) {
      const S* x[n];
      S squares[n] = {}, *out[n];
      V peak[n];
      for (int s = 0; s < n; ++s) {
        const int64_t k = (draw + s) * n_ / kDraws;
        for (double& value : z) value = std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307179586 * uniform());
        if constexpr (kFull) solve_transposed(factor(matrix(k), pitch_), z);
        for (int64_t j = 0; j < d_; ++j) {
          if constexpr (kind == Covariance::spherical) z[j] /= std::sqrt(double(scale_[k]));
          if constexpr (kind == Covariance::diag) z[j] /= std::sqrt(double(precision(k)[j]));
          places[s * d_ + j] = S(z[j] + mean(k)[j] - centre(j)), squares[s] += places[s * d_ + j] * places[s * d_ + j];
        }
        x[s] = &places[s * d_], out[s] = &levels[s * padded], peak[s] = splat<V>(kLowestLogit<V>);
      }
      if constexpr (kFull) {
        for (int s = 0; s < n; ++s) {
          for (int64_t k = 0; k < n_; ++k)
            out[s][k] = level(k, x[s]), peak[s] = fastndsm::max(splat<V>(out[s][k]), peak[s]);
        }
      } else {
        this->levels<kind, n>(x, 1, squares, out, peak);
      }
      for (int s = 0; s < n; ++s) {
        const S highest = max_lanes(peak[s]);
        const auto above = [&](S cut) {
          return std::count_if(out[s], out[s] + n_, [&](S l) { return l > highest - cut; });
        };
        heavy += double(above(kNearCut<S>)) / kDraws;
        if (above(kNearCut<S> + kAhead<S>) > kFewAhead) continue;
        alone += 1.0 / kDraws;
        // Held on the way to another draw of the same component.
        const int64_t own = std::max_element(out[s], out[s] + n_) - out[s];
        for (int64_t j = 0; j < d_; ++j) row[j] = x[s][j] + centre(j);
        Base<S> base;
        compare_with<kind>(own, row.data(), row.data() + pitch_, base);
        reaches<kind>(everyone_.data(), n_, row.data(), base, row.data() + pitch_, reach.data());
        const S away = S(1.5) * distance<kind>(row.data(), mean(own));
        const int64_t close = std::count_if(reach.begin(), reach.end(), [&](S r) { return !(r > away); });
        (close <= 1 ? held : close <= kFewAhead ? few : some) += close <= 4 * kFewAhead ? 1.0 / kDraws : 0.0;
      }
    }
    const double k = double(n_), d = double(d_), each = kFull ? d * d : kind == Covariance::diag ? 2 * d : d;
    const double visit = kFull ? k * 0.012 * each : k * (0.1 + 0.012 * each);
    const double of_heavy = kFull ? 0.1 * each : 6 + 0.1 * each;
    const double all = kFull ? k * 0.03 * each : k * (0.26 + 0.032 * each);
    const bool screened = (kind == Covariance::spherical || kind == Covariance::diag) && n_ <= kResident && d_ >= 32;
    const double apart = held + few, listed = kFull ? held : apart + some;
    const double tile = all * (screened ? 1 - 0.9 * apart - 0.5 * (alone - apart) : 1.0);
    const double known = kFull ? held * (40 + of_heavy) : 5 * held + few * (16 + of_heavy) + some * (84 + of_heavy);
    const double other = 180 + heavy * of_heavy + visit * (2 * (alone - listed) + 1 - alone);
    const double single = k * (0.2 + 0.03 * each);  // without products
    return {known + (1 - listed) * other < tile, 180 + heavy * of_heavy + visit < single, apart > 0.75};
  }

  template <Covariance kind, int n, int B>
  FASTNDSM_HD void some_levels(int64_t b0, const S* const* x, int64_t stride, const S* squares, S* const* out,
                               V* peaks) const {
    constexpr int arrays = kind == Covariance::diag ? 2 : 1;
    const V* block = blocks_.data() + b0 * d_ * arrays;
    V sum[B][n];
    FASTNDSM_UNROLL
    for (int b = 0; b < B; ++b) {
      FASTNDSM_UNROLL
      for (int s = 0; s < n; ++s) sum[b][s] = load<V>(offset_.data() + (b0 + b) * W);
    }
    for (int64_t j = 0; j < d_; ++j) {
      FASTNDSM_UNROLL
      for (int b = 0; b < B; ++b) {
        const V m = block[(b * d_ + j) * arrays];
        FASTNDSM_UNROLL
        for (int s = 0; s < n; ++s) {
          const V xj = splat<V>(x[s][j * stride]);
          if constexpr (kind == Covariance::diag) {
            sum[b][s] = fused(xj, fused(xj, block[(b * d_ + j) * arrays + 1], m), sum[b][s]);
          } else {
            sum[b][s] = fused(xj, m, sum[b][s]);
          }
        }
      }
    }
    FASTNDSM_UNROLL
    for (int b = 0; b < B; ++b) {
      FASTNDSM_UNROLL
      for (int s = 0; s < n; ++s) {
        V l = sum[b][s];
        if constexpr (kind != Covariance::diag)
          l = fused(V(-load<V>(half_.data() + (b0 + b) * W)), splat<V>(squares[s]), l);
        store(out[s] + (b0 + b) * W, l);
        peaks[s] = fastndsm::max(l, peaks[s]);
      }
    }
  }

  // Components W by W, for levels.
  void pack_blocks() {
    const int arrays = kind_ == Covariance::diag ? 2 : kind_ == Covariance::full ? 0 : 1;
    blocks_.assign(n_padded() / W * d_ * arrays, V{}), offset_.assign(n_padded(), -std::numeric_limits<S>::infinity());
    for (int64_t k = 0; k < n_; ++k) {
      double square = 0, length = 0;
      for (int64_t j = 0; j < d_; ++j) {
        const double p = kind_ == Covariance::diag ? precision(k)[j] : kind_ == Covariance::spherical ? scale_[k] : S(1);
        const double m = double(mean(k)[j]) - (kind_ == Covariance::tied ? 0.0 : double(centre_[j]));
        S* to = values(blocks_) + ((k / W * d_ + j) * arrays) * W + k % W;
        if (arrays > 0) to[0] = S(kLog2e * p * m);
        if (arrays == 2) to[W] = S(-kHalf * p);
        square += p * m * m, length += m * m * double(values(metric_)[j]) * values(metric_)[j];
      }
      offset_[k] = S(double(log_scale_[k]) - double(kHalf) * square);
      extent_ = std::max(extent_, S(std::sqrt(length) * (1 + 1e-3))), highest_ = std::max(highest_, high_[k]);
      largest_scale_ = std::max(largest_scale_, std::abs(log_scale_[k]));
    }
    if (kind_ == Covariance::full) highest_ *= std::sqrt(S(d_));  // of |P|, whose terms are rounded
  }

  Covariance kind_;
  int64_t n_, d_, pitch_;
  bool visits_all_;
  S metric_norm_;
  std::vector<V> metric_, inverse_metric_, means_, roots_, shifts_, precisions_, matrices_, centres_;  // rows of `pitch`
  std::vector<S> to_whitened_, from_whitened_, centre_, whitened_;
  std::vector<int32_t> id_, everyone_, start_;
  std::vector<V> blocks_;  // [K / W, d] log2(e) P (m - centre), and (diag) -P log2(e) / 2
  std::vector<S> offset_;
  S extent_ = S(0), highest_ = S(0), largest_scale_ = S(0);
  std::vector<S> log_scale_, half_, scale_, low_, high_;
  std::vector<S> top_, radius_, low_group_, high_group_;
  std::unique_ptr<std::atomic<Anchor<S>*>[]> anchors_;
  Uses uses_;
};

}  // namespace fastndsm
