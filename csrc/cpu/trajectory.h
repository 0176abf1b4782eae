// Runs tiles of trajectories: which rows share a tile, where their state lies, and which kernel serves the dimension.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../include/simulate.h"

namespace fastndsm {

template <typename S>
struct Batch {
  int64_t n_rows, n_steps, first_path;
  const S* x0;           // [n_rows, d]
  const int64_t* steps;  // [n_rows], 0..n_steps
  S* x;                  // [n_rows, d], or [2 n_rows, d] if mirrored
  S* mean;               // [n_rows, d] or null
  S* noise;
  S* target;             // like x, or null
  S* variance;           // [rows of x, 1] spherical, else like x
  bool mirrored;
};

// Rows by descending number of steps, so that the lanes of a tile finish together; then long and short tiles in turn, so
// that every thread's share of consecutive tiles costs the same.
class Schedule {
 public:
  Schedule(const int64_t* steps, int64_t n_rows, int64_t n_steps, int lanes);
  int64_t n_tiles() const { return n_tiles_; }
  int lanes() const { return lanes_; }
  // The rows of tile i; lanes beyond the last row repeat it and are not written back.
  int rows(int64_t i, const int64_t*& row) const;

 private:
  int64_t n_rows_, n_tiles_;
  int lanes_;
  std::vector<int64_t> order_;
};

inline Schedule::Schedule(const int64_t* steps, int64_t n_rows, int64_t n_steps, int lanes)
    : n_rows_(n_rows), n_tiles_((n_rows + lanes - 1) / lanes), lanes_(lanes), order_(n_rows) {
  std::vector<int64_t> start(n_steps + 2, 0);  // counting sort, descending and stable
  for (int64_t i = 0; i < n_rows; ++i) ++start[n_steps - steps[i] + 1];
  for (int64_t n = 0; n <= n_steps; ++n) start[n + 1] += start[n];
  for (int64_t i = 0; i < n_rows; ++i) order_[start[n_steps - steps[i]]++] = i;
}

inline int Schedule::rows(int64_t i, const int64_t*& row) const {
  const int64_t tile = i % 2 == 0 ? i / 2 : n_tiles_ - 1 - i / 2;
  row = order_.data() + tile * lanes_;
  return static_cast<int>(std::min<int64_t>(lanes_, n_rows_ - tile * lanes_));
}

// Lanes of a tile: two vectors of rows in the small dimensions, where one would leave the machine waiting.
template <typename S>
constexpr int tile_lanes(int D) {
  return kLanes<S> * (D > 0 && kLanes<S> > 1 ? 2 : 1);
}

template <typename S>
int known_dimension(const ProcessView<S>& process) {  // 0 if the kernels know it at run time only
  const auto kind = process.mixture.kind;
  const bool small = sizeof(S) == 4 && process.mixture.dim >= 2 && process.mixture.dim <= 3 && process.mixture.n_components <= kResident;
  return small && (kind == Covariance::spherical || kind == Covariance::diag) ? static_cast<int>(process.mixture.dim) : 0;
}

template <typename S, Covariance kind, int D, bool target>
struct TileRunner {
  static constexpr int W = tile_lanes<S>(D);
  using V = vec<S, W>;

  static void run(const ProcessView<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin,
                  int64_t end) {
    const int64_t d = process.mixture.dim, k = process.mixture.n_components;
    const int64_t rates = kind == Covariance::spherical ? 1 : d;
    const int64_t state = d + (target ? d + 2 * rates : batch.mean ? 2 * d : 0);
    const int64_t own = MixtureScratch<V>::vectors(k, d) + d + state;
    const int members = batch.mirrored ? 2 : 1;
    std::vector<V> memory(members * own);
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t* row;
      const int count = schedule.rows(tile, row);
      Member<V> member[2];
      for (int i = 0; i < members; ++i) {
        V* base = memory.data() + i * own;
        V* z = base + MixtureScratch<V>::vectors(k, d);
        V* x = z + d;
        const bool mirror = batch.mirrored && i == 1;
        member[i] = {lanes_of_rows(process, batch, row, count),
                     target       ? TileState<V>{x, nullptr, nullptr, x + d, x + 2 * d, x + 2 * d + rates}
                     : batch.mean ? TileState<V>{x, x + d, x + 2 * d, nullptr, nullptr, nullptr}
                                  : TileState<V>{x, nullptr, nullptr, nullptr, nullptr, nullptr},
                     MixtureScratch<V>(base, k, d),
                     mirror ? member[0].z : z,
                     mirror ? S(-1) : S(1),
                     !mirror};
        load_state(batch, member[i].state, row, count, d, rates);
      }
      Trajectory<V, kind, D, target ? Output::target : Output::state>{process}.run(member, members);
      for (int i = 0; i < members; ++i) {
        store_state(batch, member[i].state, row, count, batch.mirrored ? i * batch.n_rows : 0, d, rates);
      }
    }
  }

 private:
  static Lanes<V> lanes_of_rows(const ProcessView<S>& process, const Batch<S>& batch, const int64_t* row, int count) {
    Lanes<V> lanes;
    uint32_t c0[W], c1[W];
    S steps[W];
    lanes.first = batch.n_steps, lanes.last = 0;
    for (int l = 0; l < W; ++l) {
      const int64_t r = row[std::min(l, count - 1)], n = batch.steps[r];
      path_words(batch.first_path + r, process.noise.stream, c0[l], c1[l]);
      steps[l] = S(n);
      lanes.first = std::min(lanes.first, n), lanes.last = std::max(lanes.last, n);
    }
    lanes.paths = {load<words_of<V>>(c0), load<words_of<V>>(c1)}, lanes.steps = load<V>(steps);
    return lanes;
  }

  static void load_state(const Batch<S>& batch, TileState<V>& t, const int64_t* row, int count, int64_t d, int64_t rates) {
    gather(batch.x0, row, count, d, t.x);
    if constexpr (target) {
      for (int64_t j = 0; j < d; ++j) t.h[j] = V{};
      for (int64_t j = 0; j < rates; ++j) t.v[j] = V{};
    } else if (t.mean) {
      for (int64_t j = 0; j < d; ++j) t.mean[j] = t.x[j], t.noise[j] = V{};
    }
  }

  static void store_state(const Batch<S>& batch, TileState<V>& t, const int64_t* row, int count, int64_t shift, int64_t d,
                          int64_t rates) {
    scatter(t.x, row, count, shift, d, batch.x);
    if constexpr (target) {
      for (int64_t j = 0; j < d; ++j) {
        const V v = t.v[kind == Covariance::spherical ? 0 : j];
        t.h[j] = select(v > S(0), V(-t.h[j] / v), V{});  // no step taken: nothing to regress on
      }
      scatter(t.h, row, count, shift, d, batch.target);
      scatter(t.v, row, count, shift, rates, batch.variance);
    } else if (t.mean) {
      scatter(t.mean, row, count, shift, d, batch.mean);
      scatter(t.noise, row, count, shift, d, batch.noise);
    }
  }

  static void gather(const S* from, const int64_t* row, int count, int64_t d, V* to) {
    S* lanes = reinterpret_cast<S*>(to);
    for (int l = 0; l < W; ++l) {
      const S* source = from + row[std::min(l, count - 1)] * d;
      for (int64_t j = 0; j < d; ++j) lanes[j * W + l] = source[j];
    }
  }

  static void scatter(const V* from, const int64_t* row, int count, int64_t shift, int64_t d, S* to) {
    const S* lanes = reinterpret_cast<const S*>(from);
    for (int l = 0; l < count; ++l) {
      S* destination = to + (row[l] + shift) * d;
      for (int64_t j = 0; j < d; ++j) destination[j] = lanes[j * W + l];
    }
  }
};

// Tiles begin..end of the schedule, by the kernel of this covariance type and dimension.
template <typename S, bool target>
void run_tiles(const ProcessView<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin, int64_t end) {
  const auto go = [&](auto kind, auto dim) {
    TileRunner<S, decltype(kind)::value, decltype(dim)::value, target>::run(process, batch, schedule, begin, end);
  };
  const auto by_dim = [&](auto kind) {
    if constexpr (sizeof(S) == 4) {
      switch (known_dimension(process)) {
        case 2: return go(kind, std::integral_constant<int, 2>{});
        case 3: return go(kind, std::integral_constant<int, 3>{});
        default: break;
      }
    }
    go(kind, std::integral_constant<int, 0>{});
  };
  constexpr auto general = std::integral_constant<int, 0>{};
  switch (process.mixture.kind) {
    case Covariance::spherical: return by_dim(std::integral_constant<Covariance, Covariance::spherical>{});
    case Covariance::diag: return by_dim(std::integral_constant<Covariance, Covariance::diag>{});
    case Covariance::tied: return go(std::integral_constant<Covariance, Covariance::tied>{}, general);
    case Covariance::full: return go(std::integral_constant<Covariance, Covariance::full>{}, general);
  }
}

// Long to compile: each in a file of its own.
#define FASTNDSM_RUN_TILES(S, target) \
  template void run_tiles<S, target>(const ProcessView<S>&, const Batch<S>&, const Schedule&, int64_t, int64_t)
extern FASTNDSM_RUN_TILES(float, false);
extern FASTNDSM_RUN_TILES(float, true);
extern FASTNDSM_RUN_TILES(double, false);
extern FASTNDSM_RUN_TILES(double, true);

}  // namespace fastndsm
