// Leaves out the components whose responsibilities are zero, along a trajectory.
//
// In many dimensions a sample is in one component and the others' responsibilities are far below what floating point can
// add: those below 2^-64 of the largest (2^-128 in double) are taken as 0. So that their logits need not be computed either,
// each tile keeps, from the last step that visited all of them, the place x_0 and the distances
//
//   N_k = |x_0 - m_k|_k,   |v|_k^2 = 1/2 log2(e) v^T P_k v,   l_k = log_scale_k - N_k^2 in units of log 2.
//
// By the triangle inequality, with |v|^2 = 1/2 log2(e) sum_j max_k P_kj v_j^2 >= |v|_k^2,
//
//   l_k(x) <= log_scale_k - max(N_k - |x - x_0|, 0)^2,
//
// and where that is below the cut in every lane of a tile, component k is left out: Elkan's bounds for k-means (2003), for
// responsibilities. No sample's values depend on it: its own would have been 0, and sums are taken in one order.
#pragma once

#include "mixture.h"

namespace fastndsm {

constexpr int64_t kScreenedDim = 32;  // below, weights are rarely 0 and distances cost as much as logits

struct ListedComponents {
  static constexpr bool kInOrder = true;
  const int32_t* at;
  int64_t count;
  FASTNDSM_HD int64_t operator[](int64_t i) const { return at[i]; }
};

// Whether trajectories leave components out.
template <typename S>
FASTNDSM_HD bool screens(const MixtureView<S>& m) {
  const bool one_metric = m.kind == Covariance::spherical || m.kind == Covariance::diag;
  return one_metric && !m.near && m.dim >= kScreenedDim && m.n_components <= kResident;
}

// What a tile keeps from step to step: `vectors` and `integers` of memory.
template <typename V>
struct Screen {
  V* origin;  // [d] x_0 in the metric
  V* distance;  // [min(K, kResident)] N_k
  V unseen;  // what rounding can hide of a move, where data lie far from 0
  int32_t* all;  // [K] 0, 1, ...
  int32_t* near;  // [min(K, kResident)] components that steps visit while the screen holds
  int32_t* heavy;  // [min(K, kResident)] those that have weight at this step
  int64_t n_near;
  bool holds;  // whether origin, distance and near are of this trajectory
  int age;  // steps that it has held for
  int wait, patience;  // steps to go without a screen, and how many when it next fails to pay

  static int64_t kept(int64_t n_components) { return std::min<int64_t>(n_components, kResident); }
  static int64_t vectors(int64_t n_components, int64_t dim) { return kept(n_components) + dim; }
  static int64_t integers(int64_t n_components) { return n_components + 2 * kept(n_components); }

  Screen() = default;
  Screen(V* base, int32_t* list, int64_t n_components, int64_t dim)
      : origin(base), distance(base + dim), all(list), near(all + n_components), heavy(near + kept(n_components)) {
    for (int64_t k = 0; k < n_components; ++k) all[k] = static_cast<int32_t>(k);
    forget();
  }
  void forget() { n_near = 0, holds = false, age = 0, wait = 0, patience = 1; }
};

template <typename V, Covariance kind, bool with_product>
class ScreenedTile : public MixtureTile<V, kind, with_product, ListedComponents> {
 protected:
  using MixtureTile<V, kind, with_product, ListedComponents>::m_, MixtureTile<V, kind, with_product, ListedComponents>::t_;

 private:
  static_assert(kind == Covariance::spherical || kind == Covariance::diag, "one metric bounds all components' distances");
  using Tile = MixtureTile<V, kind, with_product, ListedComponents>;
  using S = scalar_of<V>;
  using Tile::components_, Tile::maximum_, Tile::summed_;
  using typename Tile::Sums;

  static constexpr S kCut = S(detail::kSingle<V> ? 64 : 128);
  static constexpr S kRounding = S(1) / 4096;  // of a distance: far more than it can lose
  static constexpr int kAhead = 4;  // steps that the near components are chosen for
  static constexpr int kLongestWait = 32;

 public:
  ScreenedTile(const MixtureView<S>& mixture, MixtureScratch<V> scratch, Screen<V>& screen)
      : Tile(mixture, scratch, ListedComponents{screen.all, mixture.n_components}), screen_(screen) {}

  // First pass of a step whose noise has standard deviation `std`.
  void prepare(const V* x, const V* z, S std) {
    if (!screens(m_)) return Tile::prepare(x, z);
    this->begin();
    if (screen_.holds && near_suffice(x, z)) {
      ++screen_.age;
    } else {
      visit(x, z, {screen_.all, m_.n_components});
      choose(x, std);
    }
    weigh();
    this->finish();
  }

 private:
  // Logits of the listed components and the largest of them.
  void visit(const V* x, const V* z, ListedComponents list) {
    components_ = list;
    this->all_logits(x, z, 0, list.count);
    maximum_ = splat<V>(Tile::kLowest);
    for (int64_t i = 0; i < list.count; ++i) maximum_ = fastndsm::max(t_.weights[i], maximum_);
  }

  // Visits the near components; false if another one could have a weight.
  bool near_suffice(const V* x, const V* z) {
    visit(x, z, {screen_.near, screen_.n_near});
    const V moved = sqrt(squared_move(x)) + screen_.unseen;
    V highest = splat<V>(Tile::kLowest);
    for (int64_t k = 0, i = 0; k < m_.n_components; ++k) {
      if (i < screen_.n_near && screen_.near[i] == k) {
        ++i;
      } else {
        highest = fastndsm::max(bound(k, moved), highest);
      }
    }
    return !any_lane(!(V(maximum_ - highest) > kCut + S(1)));
  }

  // The largest l_k at most `moved` from the origin.
  V bound(int64_t k, V moved) const {
    const V left = screen_.distance[k] * (S(1) - kRounding) - moved * (S(1) + kRounding);
    const V least = fastndsm::max(left, V{});
    return m_.log_scale[k] - least * least;
  }

  S metric(int64_t j) const { return m_.metric[kind == Covariance::spherical ? 0 : j]; }

  V squared_move(const V* x) const {
    constexpr int parts = 4;  // as many independent sums as the latency needs
    V sum[parts] = {V{}, V{}, V{}, V{}};
    const auto add = [&](int64_t j, V& to) {
      const V move = fma(x[j], splat<V>(metric(j)), V(-screen_.origin[j]));
      to = fma(move, move, to);
    };
    int64_t j = 0;
    for (; j + parts <= m_.dim; j += parts) {
      FASTNDSM_UNROLL
      for (int i = 0; i < parts; ++i) add(j + i, sum[i]);
    }
    for (; j < m_.dim; ++j) add(j, sum[0]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // Sets the screen after a visit to all components, unless it does not pay: near is who could have a weight kAhead steps on.
  void choose(const V* x, S std) {
    if (screen_.wait > 0) {
      --screen_.wait;
      return;
    }
    const bool brief = screen_.holds && screen_.age < kAhead / 2;
    V square = V{};
    for (int64_t j = 0; j < m_.dim; ++j) {
      const V at = x[j] * metric(j);
      screen_.origin[j] = at, square = fma(at, at, square);
    }
    screen_.unseen = sqrt(square) * (S(16) * std::numeric_limits<S>::epsilon());
    const V ahead = screen_.unseen + std * std::sqrt(S(kAhead)) * m_.metric_norm;
    screen_.n_near = 0;
    for (int64_t k = 0; k < m_.n_components; ++k) {
      screen_.distance[k] = sqrt(fastndsm::max(V(m_.log_scale[k] - t_.weights[k]), V{}));
      if (any_lane(!(V(maximum_ - bound(k, ahead)) > kCut + S(1))))
        screen_.near[screen_.n_near++] = static_cast<int32_t>(k);
    }
    screen_.holds = !brief && 4 * screen_.n_near <= 3 * m_.n_components;
    screen_.age = 0;
    screen_.patience = screen_.holds ? 1 : std::min(2 * screen_.patience, kLongestWait);
    screen_.wait = screen_.holds ? 0 : screen_.patience;
  }

  // Weights and products of the components that have weight in some lane, in ascending order whoever was visited.
  void weigh() {
    // Where all logits overflowed all weigh the same.
    const V lowest = select(maximum_ > Tile::kLowest, V(maximum_ - kCut), splat<V>(-std::numeric_limits<S>::infinity()));
    Sums sums{V{}, V{}, V{}, V{}};
    int64_t n = 0;
    for (int64_t i = 0; i < components_.count; ++i) {
      const V l = t_.weights[i];
      if (!any_lane(!(l < lowest))) continue;
      const int64_t k = components_[i];
      this->put_weight(n, k, select(l < lowest, V{}, exp2_nonpositive(V(l - maximum_))), t_.products[i], sums);
      screen_.heavy[n++] = static_cast<int32_t>(k);
    }
    summed_ = {screen_.heavy, n};
    this->add(sums);
  }

  Screen<V>& screen_;
};

}  // namespace fastndsm
