// Runs tiles of trajectories, and of the reverse process: which rows share a tile, where their state lies, and which kernel serves the dimension.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "reverse_tile.h"

namespace fastndsm {

template <typename S>
struct Batch {
  int64_t n_rows, n_records, n_steps, first_path;
  const S* x0;  // [n_rows, d]
  const int64_t* steps;  // [n_rows, n_records], 0..n_steps: after how many of them a path's records are taken
  const int64_t* last;  // [n_rows], the most of them
  S* x;  // [n_rows, n_records, d], or [2 n_rows, n_records, d] if mirrored
  S* mean;  // like x, or null
  S* noise;
  S* target;  // like x, or null
  S* variance;  // [rows of x, n_records, 1] spherical, else like x
  bool mirrored;
};

inline std::vector<int64_t> last_steps(const int64_t* steps, int64_t n_rows, int64_t n_records) {
  std::vector<int64_t> last(n_rows);
  for (int64_t i = 0; i < n_rows; ++i) last[i] = *std::max_element(steps + i * n_records, steps + (i + 1) * n_records);
  return last;
}

// Rows that take all the same number of steps where `steps` is null; else by descending number of steps, so that the lanes of a tile finish together, and among equals by component (0 ..
// n_components - 1), so that the lanes of a tile leave the same ones out; then long and short tiles in turn, so that every
// thread's share of consecutive tiles costs the same.
class Schedule {
 public:
  Schedule(const int64_t* steps, int64_t n_rows, int64_t n_steps, int lanes, const int32_t* component = nullptr,
           int64_t n_components = 0);
  int64_t n_tiles() const { return n_tiles_; }
  int lanes() const { return lanes_; }
  // The rows of tile i; lanes beyond the last row repeat it and are not written back.
  int rows(int64_t i, const int64_t*& row) const;

 private:
  int64_t n_rows_, n_tiles_;
  int lanes_;
  std::vector<int64_t> order_;
};

inline Schedule::Schedule(const int64_t* steps, int64_t n_rows, int64_t n_steps, int lanes, const int32_t* component,
                          int64_t n_components)
    : n_rows_(n_rows), n_tiles_((n_rows + lanes - 1) / lanes), lanes_(lanes), order_(n_rows) {
  for (int64_t i = 0; i < n_rows; ++i) order_[i] = i;
  const auto counting_sort = [&](int64_t n_keys, auto key) {  // stable
    const std::vector<int64_t> rows = order_;
    std::vector<int64_t> start(n_keys + 1, 0);
    for (int64_t row : rows) ++start[key(row) + 1];
    for (int64_t k = 0; k < n_keys; ++k) start[k + 1] += start[k];
    for (int64_t row : rows) order_[start[key(row)]++] = row;
  };
  if (component) counting_sort(n_components, [&](int64_t row) { return component[row]; });
  if (steps) counting_sort(n_steps + 1, [&](int64_t row) { return n_steps - steps[row]; });
}

inline int Schedule::rows(int64_t i, const int64_t*& row) const {
  const int64_t tile = i % 2 == 0 ? i / 2 : n_tiles_ - 1 - i / 2;
  row = order_.data() + tile * lanes_;
  return static_cast<int>(std::min<int64_t>(lanes_, n_rows_ - tile * lanes_));
}

// Rows as the lanes of a tile; lanes beyond the last row repeat it.
template <typename V>
struct TileRows {
  static constexpr int W = lanes_of<V>;
  using S = scalar_of<V>;

  const int64_t* row;
  int count;

  int64_t at(int lane) const { return row[std::min(lane, count - 1)]; }

  PathCounters<words_of<V>> paths(int64_t first_path, uint32_t stream) const {
    uint32_t c0[W], c1[W];
    for (int l = 0; l < W; ++l) path_words(first_path + at(l), stream, c0[l], c1[l]);
    return {load<words_of<V>>(c0), load<words_of<V>>(c1)};
  }

  void gather(const S* from, int64_t d, V* to) const {
    S* lanes = reinterpret_cast<S*>(to);
    for (int l = 0; l < W; ++l) {
      const S* source = from + at(l) * d;
      for (int64_t j = 0; j < d; ++j) lanes[j * W + l] = source[j];
    }
  }

  void scatter(const V* from, int64_t d, S* to) const {
    for (int l = 0; l < count; ++l) take(from, l, d, to + row[l] * d);
  }

  // The values of one lane.
  static void take(const V* from, int lane, int64_t d, S* to) {
    const S* values = reinterpret_cast<const S*>(from) + lane;
    for (int64_t j = 0; j < d; ++j) to[j] = values[j * W];
  }
};

template <typename S>
struct BatchRows : TileRows<vec<S, kLanes<S>>> {
  using V = vec<S, kLanes<S>>;

  const Batch<S>& batch;

  BatchRows(const Batch<S>& batch, const Schedule& schedule, int64_t tile) : batch(batch) {
    this->count = schedule.rows(tile, this->row);
  }

  Lanes<V> lanes(const NoiseStream& noise) const {
    Lanes<V> lanes{this->paths(batch.first_path, noise.stream), batch.n_steps, 0};
    for (int l = 0; l < this->count; ++l) {
      const int64_t n = batch.last[this->row[l]];
      lanes.first = std::min(lanes.first, n), lanes.last = std::max(lanes.last, n);
    }
    return lanes;
  }

  const int64_t* steps(int lane) const { return batch.steps + this->row[lane] * batch.n_records; }

  // Where record r of a lane is in the outputs, of the mirrored path with a shift of n_rows.
  int64_t record(int lane, int64_t shift, int64_t r) const { return (this->row[lane] + shift) * batch.n_records + r; }

  // Record `at` of x; and of h and v for the target, or mean and noise. d may be a constant.
  template <typename Dim>
  void write(int lane, int64_t at, Dim d, int64_t rates, const V* x, const V* second, const V* third) const {
    this->take(x, lane, d, batch.x + at * d);
    if (batch.target) {
      this->take(second, lane, d, batch.target + at * d);
      this->take(third, lane, rates, batch.variance + at * rates);
    } else if (batch.mean) {
      this->take(second, lane, d, batch.mean + at * d);
      this->take(third, lane, d, batch.noise + at * d);
    }
  }

  // Makes -h / v of h in n records from `at` on; 0 where no step was taken: nothing to regress on.
  void divide(int64_t at, int64_t n, int64_t d, int64_t rates) const {
    const auto targets = [](S* h, int64_t size, auto variance) {
      for (int64_t j = 0; j < size; ++j) {
        const S v = variance(j), target = -h[j] / v;
        h[j] = v > S(0) ? target : S(0);
      }
    };
    S* const h = batch.target + at * d;
    const S* const v = batch.variance + at * rates;
    if (rates == d) return targets(h, n * d, [v](int64_t j) { return v[j]; });
    for (int64_t r = 0; r < n; ++r) targets(h + r * d, d, [v = v[r]](int64_t) { return v; });
  }
};

// The records of a tile, listed by their step.
class RecordLists {
 public:
  template <typename S>
  void fill(const BatchRows<S>& rows, int64_t last) {
    n_records_ = static_cast<int32_t>(rows.batch.n_records);
    head_.assign(last + 1, kNone), next_.resize(rows.count * n_records_);
    int32_t entry = 0;
    for (int l = 0; l < rows.count; ++l) {
      const int64_t* steps = rows.steps(l);
      for (int32_t r = 0; r < n_records_; ++r, ++entry) next_[entry] = std::exchange(head_[steps[r]], entry);
    }
  }

  bool any(int64_t n) const { return head_[n] != kNone; }

  // body(lane, r) of the records of step n.
  template <typename Body>
  void each(int64_t n, const Body& body) const {
    for (int32_t entry = head_[n]; entry != kNone; entry = next_[entry]) body(entry / n_records_, entry % n_records_);
  }

 private:
  static constexpr int32_t kNone = -1;
  int32_t n_records_ = 1;
  std::vector<int32_t> head_, next_;
};

// Tiles of known dimension, their state in registers. What it was after each step is kept, and the records are taken from
// there a history at a time: to look for them in every step would cost more than a step does.
template <typename S, Covariance kind, int D, bool target>
struct RegisterRunner {
  using V = typename BatchRows<S>::V;
  using Sample = RegisterTrajectory<V, kind, D, target>;
  static constexpr int64_t kHistory = 128, kState = target ? 2 * D + Sample::kRates : 3 * D;

  static void run(const ProcessView<S>& view, const Batch<S>& batch, const Schedule& schedule, int64_t begin, int64_t end) {
    const RegisterProcess<S> process{known_mixture(view.mixture), D, view.drift_scale, view.noise_std, view.noise};
    const bool pairs = target && batch.mirrored;
    std::vector<V> history((pairs ? 2 : 1) * kHistory * kState);
    for (int64_t tile = begin; tile < end; ++tile) {
      const BatchRows<S> rows(batch, schedule, tile);
      if (pairs) {
        walk<2>(process, rows, history.data());
      } else {
        walk<1>(process, rows, history.data());
      }
    }
  }

 private:
  struct Own {
    V h[D];
    Sample sample{h, 1};
  };

  // A tile, or it and its antithetic one by the same noise.
  template <int members>
  static void walk(const RegisterProcess<S>& process, const BatchRows<S>& rows, V* history) {
    const Lanes<V> lanes = rows.lanes(process.noise);
    const bool keeps = !target && rows.batch.mean;
    V x0[D], z[D];
    rows.gather(rows.batch.x0, D, x0);
    Own own[members];
    for (int i = 0; i < members; ++i) {
      V* const state = history + i * kHistory * kState;
      for (int j = 0; j < D; ++j) own[i].sample.x[j] = x0[j];
      if (keeps) {
        for (int j = 0; j < D; ++j) state[D + j] = x0[j], state[2 * D + j] = V{};
      }
      put(own[i].sample, state);
    }
    int64_t first = 0;  // number of steps before the state that the history starts with
    for (int64_t n = 0; n < lanes.last; ++n) {
      if (n + 1 == first + kHistory) take<members>(rows, history, first, kHistory), first += kHistory;
      const auto counters = lanes.paths.at(static_cast<uint32_t>(n), process.noise.key);
      if constexpr (Sample::kAhead) Sample::draw(process.dim, counters, z);
      for (int i = 0; i < members; ++i) {
        V* const state = history + (i * kHistory + n + 1 - first) * kState;
        own[i].sample.step(process, counters, static_cast<int>(n), z, S(1 - 2 * i), [&](int j, V mean, V noise) {
          if (keeps) state[D + j] = mean, state[2 * D + j] = noise;
        });
        put(own[i].sample, state);
      }
    }
    take<members>(rows, history, first, lanes.last + 1 - first);
    if constexpr (target) {
      for (int i = 0; i < members; ++i) {
        for (int l = 0; l < rows.count; ++l) {
          rows.divide(rows.record(l, i * rows.batch.n_rows, 0), rows.batch.n_records, D, Sample::kRates);
        }
      }
    }
  }

  static void put(const Sample& sample, V* state) {
    for (int j = 0; j < D; ++j) state[j] = sample.x[j];
    if constexpr (target) {
      for (int j = 0; j < D; ++j) state[D + j] = sample.h[j];
      for (int r = 0; r < Sample::kRates; ++r) state[2 * D + r] = sample.v[r];
    }
  }

  // The records after `first` steps and up to n - 1 more.
  template <int members>
  static void take(const BatchRows<S>& rows, const V* history, int64_t first, int64_t n) {
    constexpr std::integral_constant<int, D> d;
    for (int i = 0; i < members; ++i) {
      for (int l = 0; l < rows.count; ++l) {
        const int64_t* steps = rows.steps(l);
        const int64_t at = rows.record(l, i * rows.batch.n_rows, 0);
        for (int64_t r = 0; r < rows.batch.n_records; ++r) {
          if (steps[r] < first || steps[r] >= first + n) continue;
          const V* state = history + (i * kHistory + steps[r] - first) * kState;
          rows.write(l, at + r, d, Sample::kRates, state, state + D, state + 2 * D);
        }
      }
    }
  }
};

// Tiles of any dimension, their state in memory.
template <typename S, Covariance kind, bool target>
struct TileRunner {
  using V = typename BatchRows<S>::V;
  static constexpr bool kTurns = target && (kind == Covariance::tied || kind == Covariance::full);

  static void run(const ProcessView<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin,
                  int64_t end) {
    const int64_t d = process.mixture.dim, k = process.mixture.n_components;
    const int64_t rates = kind == Covariance::spherical ? 1 : d, turned = kTurns ? 4 * d : 0;
    const int64_t state = d + (target ? d + 2 * rates + turned : batch.mean ? 2 * d : 0);
    const int64_t scratch = MixtureScratch<V>::vectors(k, d), screen = Screen<V>::vectors(k, d),
                  own = scratch + screen + d + state;
    const int members = batch.mirrored ? 2 : 1;
    const int64_t copies = kTurns && kind == Covariance::full ? TileAxes<V>::vectors(d) : 0;
    std::vector<V> memory(members * own + copies);
    std::vector<int32_t> lists(members * Screen<V>::integers(k));
    RecordLists due;
    for (int64_t tile = begin; tile < end; ++tile) {
      const BatchRows<S> rows(batch, schedule, tile);
      Member<V> member[2];
      for (int i = 0; i < members; ++i) {
        V* base = memory.data() + i * own;
        V* z = base + scratch + screen;
        V* x = z + d;
        const bool mirror = batch.mirrored && i == 1;
        member[i] = {rows.lanes(process.noise),
                     target       ? TileState<V>{.x = x,
                                                 .h = x + d,
                                                 .v = x + 2 * d,
                                                 .rate = x + 2 * d + rates,
                                                 .turned = x + 2 * d + 2 * rates}
                     : batch.mean ? TileState<V>{.x = x, .mean = x + d, .noise = x + 2 * d}
                                  : TileState<V>{.x = x},
                     MixtureScratch<V>(base, k, d),
                     Screen<V>(base + scratch, lists.data() + i * Screen<V>::integers(k), k, d),
                     TileAxes<V>(process.axes, memory.data() + members * own),
                     mirror ? member[0].z : z,
                     mirror ? S(-1) : S(1),
                     !mirror};
        load_state(rows, member[i].state, d, rates);
      }
      due.fill(rows, member[0].lanes.last);
      Trajectory<V, kind, target ? Output::target : Output::state>{process}.run(member, members, [&](int64_t n) {
        if (!due.any(n)) return;
        for (int i = 0; i < members; ++i) record(rows, due, n, member[i], i * batch.n_rows, d, rates);
      });
    }
  }

 private:
  static void load_state(const BatchRows<S>& rows, TileState<V>& t, int64_t d, int64_t rates) {
    rows.gather(rows.batch.x0, d, t.x);
    if constexpr (target) {
      for (int64_t j = 0; j < d; ++j) t.h[j] = V{};
      for (int64_t j = 0; j < rates; ++j) t.v[j] = V{};
    } else if (t.mean) {
      for (int64_t j = 0; j < d; ++j) t.mean[j] = t.x[j], t.noise[j] = V{};
    }
  }

  // Those of step n.
  static void record(const BatchRows<S>& rows, const RecordLists& due, int64_t n, const Member<V>& member, int64_t shift,
                     int64_t d, int64_t rates) {
    const TileState<V>& t = member.state;
    const V *second = target ? t.h : t.mean, *third = target ? t.v : t.noise;
    if constexpr (kTurns) {
      V *turned = t.turned, *variance = turned + d;  // what a step leaves there is done with
      for (int64_t j = 0; j < d; ++j) {
        turned[j] = select(t.v[j] > S(0), V(-t.h[j] / t.v[j]), V{}), variance[j] = t.v[j];
      }
      member.axes.turn_back(turned, variance, variance + d);
      second = turned, third = variance;
    }
    due.each(n, [&](int lane, int64_t r) {
      const int64_t at = rows.record(lane, shift, r);
      rows.write(lane, at, d, rates, t.x, second, third);
      if constexpr (target && !kTurns) rows.divide(at, 1, d, rates);
    });
  }
};

// Tiles begin..end of the schedule, by the kernel of this covariance type and dimension.
template <typename S, bool target>
void run_tiles(const ProcessView<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin, int64_t end) {
  const auto general = [&](auto kind) {
    TileRunner<S, decltype(kind)::value, target>::run(process, batch, schedule, begin, end);
  };
  const auto by_dim = [&](auto kind) {
    constexpr Covariance k = decltype(kind)::value;
    if constexpr (sizeof(S) == 4) {
      switch (known_dimension(process.mixture)) {
        case 2: return RegisterRunner<S, k, 2, target>::run(process, batch, schedule, begin, end);
        case 3: return RegisterRunner<S, k, 3, target>::run(process, batch, schedule, begin, end);
        default: break;
      }
    }
    general(kind);
  };
  by_kind(process.mixture.kind, [&](auto kind) {
    if constexpr (kind == Covariance::spherical || kind == Covariance::diag) {
      by_dim(kind);
    } else {
      general(kind);
    }
  });
}

// Rows on their way back, from t_first to t_last.
template <typename S>
struct ReverseBatch {
  int64_t n_rows, first_path, first, last;
  const S *y, *held, *slope;  // [n_rows, d]; slope may be null
  const S* own;  // [n_rows], rates; or null
  S* out;
};

// Tiles begin..end of the schedule.
template <typename S>
void run_tiles_back(const ReverseView<S>& view, const ReverseBatch<S>& batch, const Schedule& schedule, int64_t begin,
                    int64_t end) {
  using V = vec<S, kLanes<S>>;
  const int64_t d = view.mixture.dim;
  by_kind(view.mixture.kind, [&](auto kind) {
    ReverseTile<V, decltype(kind)::value> tile(view);
    for (int64_t i = begin; i < end; ++i) {
      TileRows<V> rows;
      rows.count = schedule.rows(i, rows.row);
      rows.gather(batch.y, d, tile.y), rows.gather(batch.held, d, tile.held);
      if (batch.slope) rows.gather(batch.slope, d, tile.slope);
      if (batch.own) rows.gather(batch.own, 1, &tile.own);
      tile.start(rows.paths(batch.first_path, view.noise.stream));
      tile.run(batch.first, batch.last, batch.slope != nullptr, batch.own != nullptr);
      rows.scatter(tile.y, d, batch.out);
    }
  });
}

// Long to compile: each in a file of its own.
#define FASTNDSM_RUN_TILES(S, target) \
  template void run_tiles<S, target>(const ProcessView<S>&, const Batch<S>&, const Schedule&, int64_t, int64_t)
#define FASTNDSM_RUN_TILES_BACK(S) \
  template void run_tiles_back<S>(const ReverseView<S>&, const ReverseBatch<S>&, const Schedule&, int64_t, int64_t)
extern FASTNDSM_RUN_TILES_BACK(float);
extern FASTNDSM_RUN_TILES_BACK(double);
extern FASTNDSM_RUN_TILES(float, false);
extern FASTNDSM_RUN_TILES(float, true);
extern FASTNDSM_RUN_TILES(double, false);
extern FASTNDSM_RUN_TILES(double, true);

}  // namespace fastndsm
