// Runs tiles of trajectories, and of the reverse process: which rows share a tile, where their state lies, and which kernel serves the dimension.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "reverse_tile.h"

namespace fastndsm {

template <typename S>
struct Batch {
  int64_t n_rows, n_steps, first_path;
  const S* x0;  // [n_rows, d]
  const int64_t* steps;  // [n_rows], 0..n_steps
  S* x;  // [n_rows, d], or [2 n_rows, d] if mirrored
  S* mean;  // [n_rows, d] or null
  S* noise;
  S* target;  // like x, or null
  S* variance;  // [rows of x, 1] spherical, else like x
  bool mirrored;
};

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

  void scatter(const V* from, int64_t shift, int64_t d, S* to) const {
    const S* lanes = reinterpret_cast<const S*>(from);
    for (int l = 0; l < count; ++l) {
      S* destination = to + (row[l] + shift) * d;
      for (int64_t j = 0; j < d; ++j) destination[j] = lanes[j * W + l];
    }
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
    Lanes<V> lanes;
    S steps[lanes_of<V>];
    lanes.first = batch.n_steps, lanes.last = 0;
    for (int l = 0; l < lanes_of<V>; ++l) {
      const int64_t n = batch.steps[this->at(l)];
      steps[l] = S(n);
      lanes.first = std::min(lanes.first, n), lanes.last = std::max(lanes.last, n);
    }
    lanes.paths = this->paths(batch.first_path, noise.stream), lanes.steps = load<V>(steps);
    return lanes;
  }
};

// Tiles of known dimension, their state in registers.
template <typename S, Covariance kind, int D, bool target>
struct RegisterRunner {
  using V = typename BatchRows<S>::V;
  using Sample = RegisterTrajectory<V, kind, D, target>;

  static void run(const ProcessView<S>& view, const Batch<S>& batch, const Schedule& schedule, int64_t begin, int64_t end) {
    const RegisterProcess<S> process{known_mixture(view.mixture), D, view.drift_scale, view.noise_std, view.noise};
    for (int64_t tile = begin; tile < end; ++tile) {
      const BatchRows<S> rows(batch, schedule, tile);
      if (target && batch.mirrored) {
        both(process, rows);
      } else {
        one(process, rows);
      }
    }
  }

 private:
  static void one(const RegisterProcess<S>& process, const BatchRows<S>& rows) {
    const Lanes<V> lanes = rows.lanes(process.noise);
    V x0[D], h[D], z[D], mean[D], noise[D];
    rows.gather(rows.batch.x0, D, x0);
    Sample sample(h, 1);
    const bool keeps = !target && rows.batch.mean;
    for (int j = 0; j < D; ++j) sample.x[j] = mean[j] = x0[j], noise[j] = V{};
    for (int64_t n = 0; n < lanes.last; ++n) {
      const auto counters = lanes.paths.at(static_cast<uint32_t>(n), process.noise.key);
      if constexpr (Sample::kAhead) Sample::draw(process.dim, counters, z);
      const auto last = lanes.steps == S(n + 1);
      sample.step(process, counters, static_cast<int>(n), z, S(1), lanes.steps > S(n), [&](int j, V at, V drawn) {
        if (keeps) mean[j] = select(last, at, mean[j]), noise[j] = select(last, drawn, noise[j]);
      });
    }
    finish(rows, sample, 0);
    if (keeps) rows.scatter(mean, 0, D, rows.batch.mean), rows.scatter(noise, 0, D, rows.batch.noise);
  }

  // A tile and its antithetic one, by the same noise.
  static void both(const RegisterProcess<S>& process, const BatchRows<S>& rows) {
    const Lanes<V> lanes = rows.lanes(process.noise);
    V x0[D], h[2][D], z[D];
    rows.gather(rows.batch.x0, D, x0);
    Sample sample[2] = {Sample(h[0], 1), Sample(h[1], 1)};
    for (int j = 0; j < D; ++j) sample[0].x[j] = sample[1].x[j] = x0[j];
    for (int64_t n = 0; n < lanes.last; ++n) {
      const auto counters = lanes.paths.at(static_cast<uint32_t>(n), process.noise.key);
      Sample::draw(process.dim, counters, z);
      for (int i = 0; i < 2; ++i) {
        sample[i].step(process, counters, static_cast<int>(n), z, S(1 - 2 * i), lanes.steps > S(n), [](int, V, V) {});
      }
    }
    for (int i = 0; i < 2; ++i) finish(rows, sample[i], i * rows.batch.n_rows);
  }

  static void finish(const BatchRows<S>& rows, const Sample& sample, int64_t shift) {
    V values[D];  // a copy: whose address is taken does not stay in registers
    for (int j = 0; j < D; ++j) values[j] = sample.x[j];
    rows.scatter(values, shift, D, rows.batch.x);
    if constexpr (target) {
      for (int j = 0; j < D; ++j) values[j] = sample.target_value(j);
      rows.scatter(values, shift, D, rows.batch.target);
      for (int r = 0; r < Sample::kRates; ++r) values[r] = sample.v[r];
      rows.scatter(values, shift, Sample::kRates, rows.batch.variance);
    }
  }
};

// Tiles of any dimension, their state in memory.
template <typename S, Covariance kind, bool target>
struct TileRunner {
  using V = typename BatchRows<S>::V;

  static void run(const ProcessView<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin,
                  int64_t end) {
    const int64_t d = process.mixture.dim, k = process.mixture.n_components;
    const int64_t rates = kind == Covariance::spherical ? 1 : d;
    const int64_t state = d + (target ? d + 2 * rates : batch.mean ? 2 * d : 0);
    const int64_t scratch = MixtureScratch<V>::vectors(k, d), screen = Screen<V>::vectors(k, d),
                  own = scratch + screen + d + state;
    const int members = batch.mirrored ? 2 : 1;
    std::vector<V> memory(members * own);
    std::vector<int32_t> lists(members * Screen<V>::integers(k));
    for (int64_t tile = begin; tile < end; ++tile) {
      const BatchRows<S> rows(batch, schedule, tile);
      Member<V> member[2];
      for (int i = 0; i < members; ++i) {
        V* base = memory.data() + i * own;
        V* z = base + scratch + screen;
        V* x = z + d;
        const bool mirror = batch.mirrored && i == 1;
        member[i] = {rows.lanes(process.noise),
                     target       ? TileState<V>{.x = x, .h = x + d, .v = x + 2 * d, .rate = x + 2 * d + rates}
                     : batch.mean ? TileState<V>{.x = x, .mean = x + d, .noise = x + 2 * d}
                                  : TileState<V>{.x = x},
                     MixtureScratch<V>(base, k, d),
                     Screen<V>(base + scratch, lists.data() + i * Screen<V>::integers(k), k, d),
                     mirror ? member[0].z : z,
                     mirror ? S(-1) : S(1),
                     !mirror};
        load_state(rows, member[i].state, d, rates);
      }
      Trajectory<V, kind, target ? Output::target : Output::state>{process}.run(member, members);
      for (int i = 0; i < members; ++i) store_state(rows, member[i].state, i * batch.n_rows, d, rates);
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

  static void store_state(const BatchRows<S>& rows, TileState<V>& t, int64_t shift, int64_t d, int64_t rates) {
    const Batch<S>& batch = rows.batch;
    rows.scatter(t.x, shift, d, batch.x);
    if constexpr (target) {
      for (int64_t j = 0; j < d; ++j) {
        const V v = t.v[kind == Covariance::spherical ? 0 : j];
        t.h[j] = select(v > S(0), V(-t.h[j] / v), V{});  // no step taken: nothing to regress on
      }
      rows.scatter(t.h, shift, d, batch.target);
      rows.scatter(t.v, shift, rates, batch.variance);
    } else if (t.mean) {
      rows.scatter(t.mean, shift, d, batch.mean);
      rows.scatter(t.noise, shift, d, batch.noise);
    }
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
      rows.scatter(tile.y, 0, d, batch.out);
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
