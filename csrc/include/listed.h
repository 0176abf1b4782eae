// Leaves out the components that have no weight, among many of them: each sample of a tile by itself, along a trajectory from
// a list of its own, for a single evaluation (`once`) from a component's or after a sieve of all.
//
// Near a sample only a few of a thousand components have weight, others near each sample: a tile that visits all that one of
// its samples needs visits many. So here the noise and the update keep a sample a lane, and the mixture is evaluated row by row:
//
//   close    components that can have weight while the sample is within a radius of an anchor (near.h); or, where such lists
//            are long or end soon, those whose logit is not too low by a sieve of all, for four samples at a time;
//   heavy    those whose weight is at least 2^-kNearCut of the largest, by exact logits of the close ones; products, weights
//            and moments of these alone, summed in their fixed order, so that no bit depends on what else was visited.
//
// Where one component is all there is, score = P (m - x) and H z = -P z: lanes in which no other can have weight yet take it
// from vectors, without a look at the list.
#pragma once

#include <bit>

#include "near.h"
#include "screen.h"

namespace fastndsm {

// What a tile keeps from step to step, and the memory that it works in.
template <typename V>
struct NearLists {
  using S = scalar_of<V>;
  static constexpr int L = lanes_of<V>;
  static constexpr int W = NearComponents<S>::W;

  struct Close {  // a list as it is visited: arrays of `count`, and up to W beyond
    const int32_t* at;
    const S* log_scale;
    const S* half;
    int64_t count;
  };

  struct Sample {
    const Anchor<S>* source = nullptr;  // a component's, or its own
    const Anchor<S>* list = nullptr;  // what `at` is a part of: the source, or what is around a later place
    Anchor<S> own, around;
    std::vector<S> own_origin, around_origin;
    std::vector<int32_t> at;  // the close ones, and their parameters
    std::vector<S> log_scale, half;
    int64_t count = 0;
    int64_t ahead = 0;  // how many a sieve found that could have weight soon
    int32_t heaviest = -1;  // at the last visit
    int dense = 0;  // steps to go without a list
    int32_t shown = -1;  // the component whose parameters the tile has in this lane
    bool single = false;  // no other can have weight
  };

  const NearComponents<S>* near = nullptr;
  bool once = false;  // samples are seen once: no lists are made for them, but for anchors
  Sample sample[L];
  std::vector<S> levels;  // [4, n_padded], or [n_components, L] if full: logits for a sieve
  std::vector<V> lanes;  // [4, d]: origins, means and (diag) precisions; places relative to the centre
  V limit{};  // squared moves up to which the lists hold
  V precision{};  // spherical: of the component shown
  std::vector<S> rows;  // [6, pitch]: x, z, score, H z, and two to compute with
  std::vector<S> logits, weights, products, reach, distance;
  std::vector<int32_t> heavy, candidates;
  Base<S> base;

  NearLists() = default;
  explicit NearLists(const MixtureView<S>& m) : near(m.near) {
    if (!near) return;
    lanes.resize(4 * m.dim), rows.resize(6 * near->pitch());
    logits.resize(near->count() + W), weights.resize(near->count() + W), products.resize(near->count() + W);
    heavy.resize(near->count() + 2 * W);
    levels.resize(m.kind == Covariance::full ? L * near->count() : 4 * near->n_padded());
  }

  // Other samples.
  void forget() {
    for (Sample& one : sample) {
      one.source = one.list = nullptr, one.count = 0, one.dense = 0, one.heaviest = one.shown = -1, one.single = false;
      one.own.radius = one.around.radius = S(-1);
    }
    limit = splat<V>(S(-1));
  }
};

template <typename V, Covariance kind, bool with_product>
class ListedTile : public MixtureTile<V, kind, with_product> {
  using Tile = MixtureTile<V, kind, with_product>;
  using S = scalar_of<V>;
  using Lists = NearLists<V>;
  using Sample = typename Lists::Sample;
  using Close = typename Lists::Close;
  using Tile::m_, Tile::t_, Tile::rate_;
  using R = typename NearComponents<S>::V;  // a vector of dimensions or components, of one sample
  static constexpr int L = lanes_of<V>, W = lanes_of<R>;
  static constexpr bool kWhitened = kind == Covariance::tied, kFull = kind == Covariance::full;
  static constexpr S kMore = S(1 + 1e-3);  // over what rounding can hide of a move

 public:
  using Tile::kLowest;

  // Of a mixture that has its near components.
  ListedTile(const MixtureView<S>& mixture, MixtureScratch<V> scratch, Lists* lists)
      : Tile(mixture, scratch), lists_(lists), near_(mixture.near) {}

  // First pass of a step whose noise has standard deviation `std`.
  void prepare(const V* x, const V* z, S std) {
    const int64_t d = m_.dim;
    if constexpr (kWhitened) {
      for (int64_t j = 0; j < d; ++j) t_.s[j] = x[j] - near_->centre()[j];
      this->matvec(near_->to_whitened(), t_.s, t_.u);
      if constexpr (with_product) this->matvec(near_->to_whitened(), z, t_.w);
      x = t_.u, z = t_.w;
    }
    const V moved = lists_->once ? V{} : squared_move(x);
    S lanes[L], limits[L];
    store(lanes, moved), store(limits, lists_->limit);
    all_single_ = true;
    highest_ = V{};
    rate_ = lists_->precision;
    int dense[L], n_dense = 0;
    for (int l = 0; l < L; ++l) {
      Sample& one = lists_->sample[l];
      const bool holds = lanes[l] * kMore <= limits[l];
      if (holds && one.single) continue;
      if (!holds && (one.dense > 0 || (lists_->once && !near_->uses().anchors))) {
        one.dense = std::max(one.dense - 1, 0), dense[n_dense++] = l;
        continue;
      }
      gather(x, l, row(0));
      if (!holds && !renew(l, one, std)) {
        dense[n_dense++] = l;
        continue;
      }
      evaluate(l, one, closest(one), z);
    }
    if (n_dense > 0) visit(dense, n_dense, x, z, std);
    single_ = load_singles();
    if constexpr (kWhitened) unwhiten();
  }

  V maximum() const { return highest_; }

  V heaviest() const {
    S lanes[L];
    for (int l = 0; l < L; ++l) lanes[l] = S(near_->id(lists_->sample[l].heaviest));
    return load<V>(lanes);
  }

  template <int C>
  FASTNDSM_HD void moments(const V* x, const V* z, int64_t j0, V* score, V* hvp, V* rate) {
    if constexpr (kWhitened || kFull) {
      FASTNDSM_UNROLL
      for (int i = 0; i < C; ++i) {
        score[i] = t_.a[j0 + i];
        if constexpr (with_product) hvp[i] = t_.b[j0 + i];
      }
      return;
    }
    const V *const mean = lists_->lanes.data() + m_.dim + j0, *const precision = mean + m_.dim;
    const V common = lists_->precision, rates = rate_;
    FASTNDSM_UNROLL
    for (int i = 0; i < C; ++i) {
      const V p = kind == Covariance::diag ? precision[i] : common;
      score[i] = p * (mean[i] - x[j0 + i]);
      if constexpr (with_product) hvp[i] = -p * z[j0 + i];
      if (rate) rate[i] = kind == Covariance::diag ? p : rates;
    }
    if (all_single_) return;
    const V single = single_;
    FASTNDSM_UNROLL
    for (int i = 0; i < C; ++i) {
      score[i] = select(single > S(0), score[i], t_.a[j0 + i]);
      if constexpr (with_product) hvp[i] = select(single > S(0), hvp[i], t_.b[j0 + i]);
      if (kind == Covariance::diag && rate) rate[i] = select(single > S(0), rate[i], t_.r[j0 + i]);
    }
  }

  void all_moments(const V* x, const V* z, V* score, V* hvp, V* rate) {
    const auto at = [](V* p, int64_t j) { return p ? p + j : nullptr; };
    for (int64_t j = 0; j < m_.dim; ++j) moments<1>(x, z, j, score + j, at(hvp, j), at(rate, j));
  }

 private:
  S* row(int i) const { return lists_->rows.data() + i * near_->pitch(); }
  S* memory() const { return row(4); }
  static S& lane(V* v, int64_t j, int l) { return reinterpret_cast<S*>(v)[j * L + l]; }

  void gather(const V* from, int l, S* to) const {
    const S* lanes = reinterpret_cast<const S*>(from) + l;
    for (int64_t j = 0; j < m_.dim; ++j) to[j] = lanes[j * L];
  }

  void scatter(const S* from, int l, V* to) const {
    S* lanes = reinterpret_cast<S*>(to) + l;
    for (int64_t j = 0; j < m_.dim; ++j) lanes[j * L] = from[j];
  }

  V squared_move(const V* x) const {
    const V* origin = lists_->lanes.data();
    V sum[4] = {V{}, V{}, V{}, V{}};
    const auto add = [&](int64_t j, V& to) FASTNDSM_INLINE {
      V move = x[j] - origin[j];
      if constexpr (kind == Covariance::diag) move = move * near_->metric()[j];
      to = fma(move, move, to);
    };
    int64_t j = 0;
    for (; j + 4 <= m_.dim; j += 4) {
      FASTNDSM_UNROLL
      for (int i = 0; i < 4; ++i) add(j + i, sum[i]);
    }
    for (; j < m_.dim; ++j) add(j, sum[0]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }

  // ---- lists ------------------------------------------------------------------------------------------------------

  // Radii in lengths of a step: of the close ones at least, of what they are taken from around a place, and of an own anchor.
  static constexpr S kFew = S(1.5), kAround = S(3), kOwn = S(8);
  static constexpr int kDense = 8;  // steps that a sieve is tried for before a list is

  // A list that holds at x, in row 0, if there is an anchor for it.
  FASTNDSM_OUTLINE bool renew(int l, Sample& one, S std) {
    if (near_->visits_all()) return false;
    const S* x = row(0);
    S step = std * near_->metric_norm();
    if (one.list) {
      const S moved = distance(x, one.list->origin);
      if (step == S(0)) step = moved;
      // One alone was all for a step or so: the list itself may hold for more.
      if (moved <= S(one.count == 1 ? 1 - 1e-3 : 0.6) * one.list->radius) return take(l, one, moved, step), true;
    }
    const auto serves = [&](const Anchor<S>* anchor) { return anchor && room(anchor) >= kFew * step; };
    if (!serves(one.source)) {
      if (one.heaviest < 0) {
        one.heaviest = near_->template guess<kind>(x, memory(), lists_->distance,
                                                   [&](int32_t at) { return serves(near_->anchor(at)); });
      }
      one.source = near_->anchor(one.heaviest);
      if (!serves(one.source)) return one.source = nullptr, false;
    }
    make_around(l, one, step);
    return true;
  }

  // From a source to where it ends, at x.
  S room(const Anchor<S>* a) const { return a ? a->radius * S(1 - 1e-3) - distance(row(0), a->origin) * kMore : S(-1); }

  // That of the heaviest component, made now if there is none.
  const Anchor<S>* anchor_of(const Sample& one) const {
    const Anchor<S>* found = near_->anchor(one.heaviest);
    return found ? found : near_->template make_anchor<kind>(one.heaviest, memory());
  }

  // A source and a list from it, after a sieve that found few.
  void settle(int l, Sample& one, S std) {
    const S step = std * near_->metric_norm();
    one.source = anchor_of(one);
    if (room(one.source) < kFew * step || room(one.source) < S(0)) {
      if (step == S(0)) return one.source = nullptr, void();
      make_own(one, step);
      one.source = &one.own;
    }
    one.list = one.source;
    take(l, one, distance(row(0), one.source->origin) * kMore, step);
  }

  // The samples of n lanes, by all components.
  FASTNDSM_OUTLINE void visit(const int* lanes, int n, const V* x, const V* z, S std) {
    const bool sieves = !near_->visits_all();
    if (sieves) sieve(lanes, n, x);
    for (int i = 0; i < n; ++i) {
      const int l = lanes[i];
      Sample& one = lists_->sample[l];
      gather(x, l, row(0));
      evaluate(l, one, sieves ? closest(one) : all(), z);
      one.single = false, one.list = nullptr;
      lane(&lists_->limit, 0, l) = S(-1);
      if (!sieves) continue;
      const bool few = one.ahead <= kFewAhead;
      if (lists_->once) {
        if (few && near_->uses().anchors) anchor_of(one);
      } else if (few) {
        settle(l, one, std);
      } else {
        one.dense = kDense;
      }
    }
  }

  Close all() const { return {near_->everyone(), near_->log_scale(), near_->half(), near_->count()}; }
  static Close closest(const Sample& one) { return {one.at.data(), one.log_scale.data(), one.half.data(), one.count}; }

  // Lists, in n lanes, the components whose logit is not too low for a weight, and counts those that could have one soon.
  void sieve(const int* lanes, int n, const V* x) {
    const int64_t d = m_.dim, padded = near_->n_padded();
    V* const places = lists_->lanes.data() + 3 * d;
    V squares = V{}, lengths = V{};
    for (int64_t j = 0; j < d; ++j) {
      const V at = kWhitened ? x[j] : V(x[j] - near_->centre()[j]);
      places[j] = at, squares = fused(at, at, squares);
      if constexpr (kind == Covariance::diag)
        lengths = fused(V(at * near_->metric()[j]), V(at * near_->metric()[j]), lengths);
    }
    S away[L], square[L];
    store(square, squares), store(away, sqrt(kind == Covariance::diag ? lengths : squares));
    if constexpr (kFull) {
      S* const levels = lists_->levels.data();
      V peak = splat<V>(kLowest);
      for (int64_t k = 0; k < near_->count(); ++k) {
        const V level = near_->level(k, x);
        store(levels + k * L, level), peak = fastndsm::max(level, peak);
      }
      S peaks[L], lowest[L];
      store(peaks, peak);
      for (int l = 0; l < L; ++l) lowest[l] = peaks[l] - (kNearCut<S> + 2 * near_->slack(away[l]));
      for (int i = 0; i < n; ++i) {
        Sample& one = lists_->sample[lanes[i]];
        reserve(one, near_->count()), one.count = one.ahead = 0;
      }
      const V low = load<V>(lowest);
      for (int64_t k = 0; k < near_->count(); ++k) {
        const uint32_t soon = lanes_not_below(load<V>(levels + k * L), V(low - kAhead<S>));
        if (soon == 0) continue;
        const uint32_t now = lanes_not_below(load<V>(levels + k * L), low);
        for (int i = 0; i < n; ++i) {
          Sample& one = lists_->sample[lanes[i]];
          one.ahead += soon >> lanes[i] & 1;
          if (now >> lanes[i] & 1) one.at[one.count++] = static_cast<int32_t>(k);
        }
      }
      for (int i = 0; i < n; ++i) close_list(lists_->sample[lanes[i]], lists_->sample[lanes[i]].count);
    } else {
      constexpr int kTogether = 4;
      for (int i = 0; i < n; i += kTogether) {
        const S* from[kTogether];
        S own[kTogether], *out[kTogether];
        R peak[kTogether];
        for (int s = 0; s < kTogether; ++s) {
          const int l = lanes[std::min(i + s, n - 1)];
          from[s] = reinterpret_cast<const S*>(places) + l, own[s] = square[l], peak[s] = splat<R>(kLowest);
          out[s] = lists_->levels.data() + s * padded;
        }
        near_->template levels<kind, kTogether>(from, L, own, out, peak);
        for (int s = 0; s < kTogether && i + s < n; ++s) {
          const S lowest = max_lanes(peak[s]) - (kNearCut<S> + 2 * near_->slack(away[lanes[i + s]]));
          list_levels(lists_->sample[lanes[i + s]], out[s], lowest);
        }
      }
    }
  }

  void list_levels(Sample& one, const S* levels, S lowest) const {
    const R low = splat<R>(lowest), soon = splat<R>(lowest - kAhead<S>);
    reserve(one, near_->n_padded());
    int32_t* at = one.at.data();
    int64_t n = 0;
    one.ahead = 0;
    for (int64_t i = 0; i < near_->n_padded(); i += W) {
      const R l = load<R>(levels + i);
      if (one.ahead <= kFewAhead) one.ahead += std::popcount(lanes_not_below(l, soon));  // more are as good as many
      n += store_set_bits<W>(at + n, static_cast<int32_t>(i), lanes_not_below(l, low));
    }
    while (n > 0 && at[n - 1] >= near_->count()) --n;  // of a row that overflows
    close_list(one, n);
  }

  static void reserve(Sample& one, int64_t n) {
    if (static_cast<int64_t>(one.log_scale.size()) >= n + W) return;
    one.at.resize(n + 2 * W), one.log_scale.resize(n + W), one.half.resize(n + W);
  }

  // What goes with the first n of its `at`.
  void close_list(Sample& one, int64_t n) const {
    one.count = n;
    for (int64_t i = 0; i < n; ++i) {
      one.log_scale[i] = near_->log_scale()[one.at[i]], one.half[i] = near_->half()[one.at[i]];
    }
    for (int64_t i = n; i < n + W; ++i) {
      one.at[i] = 0, one.log_scale[i] = -std::numeric_limits<S>::infinity(), one.half[i] = S(1);
    }
  }

  S distance(const S* x, const S* y) const { return near_->template distance<kind>(x, y); }

  // From all components.
  void make_own(Sample& one, S step) {
    const S* x = row(0);
    int32_t at = one.heaviest;
    Base<S>& base = lists_->base;
    std::vector<int32_t>& candidates = lists_->candidates;
    S radius = kOwn * step;
    for (int tries = 0; tries < 3; ++tries) {
      near_->template compare_with<kind>(at, x, memory(), base);
      candidates.clear();
      near_->template candidates<kind>(x, base, radius, lists_->distance, candidates);
      const int64_t n = static_cast<int64_t>(candidates.size());
      lists_->reach.resize(n + W);
      if (n == 0) break;
      const int64_t best = near_->template reaches<kind>(candidates.data(), n, x, base, memory(), lists_->reach.data());
      if (candidates[best] == at) break;
      at = candidates[best];
    }
    const S* reach = lists_->reach.data();
    const size_t n = candidates.size(), most = std::max<size_t>(64, near_->count() / 4);
    const auto within = [&](S r) {
      size_t count = 0;
      for (size_t i = 0; i < n; ++i) count += !(reach[i] > r);
      return count;
    };
    for (int i = 0; i < 6 && within(radius) > most; ++i) radius *= S(0.75);
    one.own.clear();
    for (size_t i = 0; i < n; ++i) {
      if (!(reach[i] > radius)) one.own.add(candidates[i], reach[i]);
    }
    one.own.close();
    one.own.radius = radius;
    one.own_origin.assign(x, x + near_->pitch());
    one.own.origin = one.own_origin.data();
    one.heaviest = base.at;
  }

  // From what is in the source.
  void make_around(int l, Sample& one, S step) {
    const S* x = row(0);
    const Anchor<S>& source = *one.source;
    const S from = distance(x, source.origin) * kMore, room = source.radius * S(1 - 1e-3) - from;
    if (source.within(from + kFew * step) <= W) {  // as good as it gets
      one.list = &source;
      return take(l, one, from, step);
    }
    const S radius = std::min(room, kAround * step);
    std::vector<int32_t>& candidates = lists_->candidates;
    candidates.clear();
    for (size_t i = 0; i < source.at.size(); ++i) {
      if (!(source.reach[i] > from + radius)) candidates.push_back(source.at[i]);
    }
    near_->template compare_with<kind>(one.heaviest, x, memory(), lists_->base);
    const int64_t n = static_cast<int64_t>(candidates.size());
    lists_->reach.resize(n + W);
    if (n > 0) near_->template reaches<kind>(candidates.data(), n, x, lists_->base, memory(), lists_->reach.data());
    Anchor<S>& to = one.around;
    to.clear(), to.radius = radius;
    for (int64_t i = 0; i < n; ++i) {
      if (!(lists_->reach[i] > radius)) to.add(candidates[i], lists_->reach[i]);
    }
    to.close();
    one.around_origin.assign(x, x + near_->pitch());
    to.origin = one.around_origin.data();
    one.list = &to;
    take(l, one, S(0), step);
  }

  // The part of the list that can have weight within some steps of a place `moved` from its origin.
  void take(int l, Sample& one, S moved, S step) {
    const Anchor<S>& list = *one.list;
    // Alone for about a step, whose square adds to that of the move where dimensions are many; else all of a few steps.
    const S next_move = std::sqrt(moved * moved + step * step);
    const S radius = std::min(list.radius, list.within(next_move) == 1 ? next_move : moved + kFew * step);
    reserve(one, static_cast<int64_t>(list.at.size()));
    R next = splat<R>(list.radius);  // where the first one left out comes in
    int64_t count = 0;
    list.split(radius, [&](int32_t i, uint32_t bits, R reach) FASTNDSM_INLINE {
      count += store_set_bits<W>(one.at.data() + count, i, bits);
      const R out = select(reach > radius, reach, splat<R>(list.radius));
      next = select(out < next, out, next);
    });
    for (int64_t i = 0; i < count; ++i) one.at[i] = list.at[one.at[i]];
    close_list(one, count);
    const S limit = -max_lanes(R(-next)) * S(1 - 1e-3);
    lane(&lists_->limit, 0, l) = limit * limit;
    scatter(list.origin, l, lists_->lanes.data());
  }

  // ---- one sample -------------------------------------------------------------------------------------------------

  // Score and H z of lane l, whose x is in row 0.
  FASTNDSM_OUTLINE void evaluate(int l, Sample& one, Close close, const V* z) {
    S highest = find_logits(close);
    if (!(highest > kLowest) && close.count < near_->count()) close = all(), highest = find_logits(close);
    lane(&highest_, 0, l) = highest;
    const int64_t n = find_heavy(close, highest);
    const bool alone = n == 1 && !kFull;
    one.single = alone && close.count == 1;
    if (alone) {
      one.heaviest = close.at[lists_->heavy[0]];
      if (one.shown != one.heaviest) show(l, one);
    }
    if (!alone) {
      if constexpr (with_product) gather(z, l, row(1));
      all_single_ = false;
      one.heaviest = sum(l, close, n, highest);
    }
    several_[l] = !alone;
  }

  S find_logits(const Close& close) {
    S* logits = lists_->logits.data();
    R peak = splat<R>(kLowest);
    for (int64_t i = 0; i < close.count; i += W) {
      const R q = near_->template quadratic<kind>(close.at + i, close.count - i, row(0), memory());
      const R l = fused(R(-load<R>(close.half + i)), q, load<R>(close.log_scale + i));
      store(logits + i, l);
      peak = fastndsm::max(l, peak);
    }
    return max_lanes(peak);
  }

  // Places in the list of the components that have weight, and their logits, side by side.
  int64_t find_heavy(const Close& close, S highest) {
    S* logits = lists_->logits.data();
    int32_t* heavy = lists_->heavy.data();
    // Where all logits overflowed all weigh the same.
    const S lowest = highest > kLowest ? highest - kNearCut<S> : -std::numeric_limits<S>::infinity();
    int64_t n = 0;
    for (int64_t i = 0; i < close.count; i += W) {
      n += store_set_bits<W>(heavy + n, static_cast<int32_t>(i), lanes_not_below(load<R>(logits + i), splat<R>(lowest)));
    }
    while (n > 0 && heavy[n - 1] >= close.count) --n;  // of a row that overflows
    for (int64_t i = 0; i < n; ++i) logits[i] = logits[heavy[i]];
    return n;
  }

  // Weights, products and moments of the n heavy ones; returns the heaviest.
  int32_t sum(int l, const Close& close, int64_t n, S highest) {
    S *logits = lists_->logits.data(), *weights = lists_->weights.data(), *products = lists_->products.data();
    int32_t* heavy = lists_->heavy.data();
    int32_t best = 0;
    S largest = -std::numeric_limits<S>::infinity();
    for (int64_t i = 0; i < n; ++i) {
      heavy[i] = close.at[heavy[i]];
      if (logits[i] > largest || i == 0) largest = logits[i], best = heavy[i];
    }
    for (int64_t i = n; i < (n + W - 1) / W * W; ++i) heavy[i] = heavy[n - 1], logits[i] = highest;
    R total = R{}, rate = R{}, along = R{};
    for (int64_t i = 0; i < n; i += W) {
      S scales[W], ones[W];
      for (int c = 0; c < W; ++c) scales[c] = near_->scale(heavy[i + c]), ones[c] = S(i + c < n);
      const R scale = load<R>(scales);
      const R e = exp2_nonpositive(R(load<R>(logits + i) - highest)) * load<R>(ones);
      total += e;
      if constexpr (with_product) {
        const R g = near_->template product<kind>(heavy + i, n - i, row(0), row(1), memory()) * scale, c = e * g;
        along += c;
        store(products + i, R(c * scale));
      }
      store(weights + i, R(e * scale));
      if constexpr (kind == Covariance::spherical) rate += e * scale;
    }
    const S inverse = S(1) / sum_lanes(total), mean_rate = sum_lanes(rate) * inverse;
    S slope = sum_lanes(along) * inverse;
    if (n == 1) slope = products[0] = S(0);  // what they give is 0
    if constexpr (kind == Covariance::spherical) lane(&rate_, 0, l) = mean_rate;
    if (!(inverse == inverse)) lane(&highest_, 0, l) = kLowest;
    if constexpr (kFull) {
      full_moments(l, n, inverse, slope);
    } else {
      moments_of(l, n, inverse, slope, mean_rate);
    }
    return best;
  }

  void moments_of(int l, int64_t n, S inverse, S slope, S rate) {
    const S *weights = lists_->weights.data(), *products = lists_->products.data();
    const int32_t* heavy = lists_->heavy.data();
    S *score = row(2), *hvp = row(3), *rates = row(4);
    for (int64_t j = 0; j < near_->pitch(); j += W) {
      const R x = load<R>(row(0) + j);
      R a[2] = {R{}, R{}}, b[2] = {R{}, R{}}, r[2] = {R{}, R{}};
      const auto add = [&](int64_t i, int part) FASTNDSM_INLINE {
        const int64_t k = heavy[i];
        R t;
        if constexpr (kind == Covariance::diag) {
          const R root = load<R>(near_->root(k) + j);
          t = fused(x, root, load<R>(near_->shift(k) + j)) * root;
          // weights carry the scale
          r[part] = fused(splat<R>(weights[i]), load<R>(near_->precision(k) + j), r[part]);
        } else {
          t = load<R>(near_->mean(k) + j) - x;
        }
        a[part] = fused(splat<R>(weights[i]), t, a[part]);
        if constexpr (with_product) b[part] = fused(splat<R>(products[i]), t, b[part]);
      };
      int64_t i = 0;
      for (; i + 2 <= n; i += 2) add(i, 0), add(i + 1, 1);
      if (i < n) add(i, 0);
      const R g = R(a[0] + a[1]) * inverse;
      store(score + j, g);
      R p = splat<R>(kind == Covariance::spherical ? rate : S(1));
      if constexpr (kind == Covariance::diag) p = R(r[0] + r[1]) * S(inverse / near_->scale(0)), store(rates + j, p);
      if constexpr (with_product) {
        const R own = fused(R(-p), load<R>(row(1) + j), R(R(b[0] + b[1]) * inverse));
        store(hvp + j, fused(R(-g), splat<R>(slope), own));
      }
    }
    scatter(score, l, kWhitened ? t_.r : t_.a);
    if constexpr (with_product) scatter(hvp, l, kWhitened ? t_.s : t_.b);
    if constexpr (kind == Covariance::diag) scatter(rates, l, t_.r);
  }

  void full_moments(int l, int64_t n, S inverse, S slope) {
    const S *weights = lists_->weights.data(), *products = lists_->products.data();
    S *score = row(2), *hvp = row(3);
    std::fill(score, score + 2 * near_->pitch(), S(0));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t k = lists_->heavy[i];
      const S* u = near_->template prepare_row<kind>(k, row(0), memory());
      S* w = memory() + near_->pitch();
      if constexpr (with_product) near_->times_matrix(k, row(1), w);
      for (int64_t j = 0; j < near_->pitch(); j += W) {
        store(score + j, fused(splat<R>(weights[i]), load<R>(u + j), load<R>(score + j)));
        if constexpr (with_product) {
          const R b = fused(splat<R>(-weights[i]), load<R>(w + j), load<R>(hvp + j));
          store(hvp + j, fused(splat<R>(products[i]), load<R>(u + j), b));
        }
      }
    }
    for (int64_t j = 0; j < near_->pitch(); j += W) {
      const R g = load<R>(score + j) * inverse;
      store(score + j, g);
      if constexpr (with_product) {
        const R own = load<R>(hvp + j) * inverse;
        store(hvp + j, fused(R(-g), splat<R>(slope), own));
      }
    }
    scatter(score, l, t_.a);
    if constexpr (with_product) scatter(hvp, l, t_.b);
  }

  // Parameters of the only component into lane l.
  void show(int l, Sample& one) {
    one.shown = one.heaviest;
    V* const shown = lists_->lanes.data();
    scatter(near_->mean(one.shown), l, shown + m_.dim);
    if constexpr (kind == Covariance::diag) scatter(near_->precision(one.shown), l, shown + 2 * m_.dim);
    if constexpr (kind == Covariance::spherical) {
      lane(&lists_->precision, 0, l) = near_->scale(one.shown), lane(&rate_, 0, l) = near_->scale(one.shown);
    }
  }

  V load_singles() const {
    S lanes[L];
    for (int l = 0; l < L; ++l) lanes[l] = several_[l] ? S(0) : S(1);
    return load<V>(lanes);
  }

  void unwhiten() {
    const int64_t d = m_.dim;
    const V* const mean = lists_->lanes.data() + d;
    for (int64_t j = 0; j < d; ++j) {
      t_.r[j] = select(single_ > S(0), V(mean[j] - t_.u[j]), t_.r[j]);
      if constexpr (with_product) t_.s[j] = select(single_ > S(0), V(-t_.w[j]), t_.s[j]);
    }
    this->matvec(near_->from_whitened(), t_.r, t_.a);
    if constexpr (with_product) this->matvec(near_->from_whitened(), t_.s, t_.b);
  }

  Lists* lists_;
  const NearComponents<S>* near_;
  V highest_{}, single_{};
  bool all_single_ = true;
  bool several_[L] = {};
};

}  // namespace fastndsm
