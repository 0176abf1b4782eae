// Runs tiles of trajectories: which rows share a tile, where their state lies, and which kernel serves the dimension.
#pragma once

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
  // The rows of tile i; lanes beyond the last row repeat it and are not written back.
  int rows(int64_t i, const int64_t*& row) const;

 private:
  int64_t n_rows_, n_tiles_;
  int lanes_;
  std::vector<int64_t> order_;
};

// Tiles begin..end of the schedule.
template <typename S>
void run_tiles(const ProcessView<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin, int64_t end);

template <typename S, Covariance kind, int D, bool target>
struct TileRunner {
  using V = vec<S, kLanes<S>>;
  static constexpr int W = kLanes<S>;

  static void run(const ProcessView<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin,
                  int64_t end) {
    const int64_t d = process.mixture.dim, k = process.mixture.n_components;
    const int64_t rates = kind == Covariance::spherical ? 1 : d;
    const int64_t own = target ? 2 * d + 2 * rates : 3 * d;
    const int n_states = batch.mirrored ? 2 : 1;
    std::vector<V> memory(MixtureScratch<V>::vectors(k, d) + d + n_states * own);
    V* base = memory.data();
    const MixtureScratch<V> scratch(base, k, d);
    base += MixtureScratch<V>::vectors(k, d);

    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t* row;
      const int count = schedule.rows(tile, row);
      const Lanes<V> lanes = tile_lanes(process, batch, row, count);
      if constexpr (D > 0) {
        V z[D], state[target ? 2 : 1][4][D];
        TileState<V> t[2];
        for (int i = 0; i < n_states; ++i) {
          if constexpr (target) {
            t[i] = {state[i][0], nullptr, nullptr, state[i][1], state[i][2], state[i][3]};
          } else {
            const bool keeps = batch.mean != nullptr;
            t[i] = {state[i][0], keeps ? state[i][1] : nullptr, state[i][2], nullptr, nullptr, nullptr};
          }
        }
        one(process, batch, scratch, z, t, n_states, lanes, row, count);
      } else {
        TileState<V> t[2];
        V* next = base + d;
        for (int i = 0; i < n_states; ++i, next += own) {
          if constexpr (target) {
            t[i] = {next, nullptr, nullptr, next + d, next + 2 * d, next + 2 * d + rates};
          } else {
            t[i] = {next, batch.mean ? next + d : nullptr, next + 2 * d, nullptr, nullptr, nullptr};
          }
        }
        one(process, batch, scratch, base, t, n_states, lanes, row, count);
      }
    }
  }

 private:
  static Lanes<V> tile_lanes(const ProcessView<S>& process, const Batch<S>& batch, const int64_t* row, int count) {
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
    lanes.c0 = load<words_of<V>>(c0), lanes.c1 = load<words_of<V>>(c1), lanes.steps = load<V>(steps);
    return lanes;
  }

  static FASTNDSM_HD void one(const ProcessView<S>& process, const Batch<S>& batch, const MixtureScratch<V>& scratch, V* z,
                              TileState<V>* t, int n_states, const Lanes<V>& lanes, const int64_t* row, int count) {
    const int64_t d = D > 0 ? D : process.mixture.dim, rates = kind == Covariance::spherical ? 1 : d;
    for (int i = 0; i < n_states; ++i) {
      gather(batch.x0, row, count, d, t[i].x);
      if constexpr (target) {
        for (int64_t j = 0; j < d; ++j) t[i].h[j] = V{};
        for (int64_t j = 0; j < rates; ++j) t[i].v[j] = V{};
      } else if (t[i].mean) {
        for (int64_t j = 0; j < d; ++j) t[i].mean[j] = t[i].x[j], t[i].noise[j] = V{};
      }
    }
    Trajectory<V, kind, D, target ? Output::target : Output::state> trajectory{process, scratch, z};
    trajectory.run(lanes, t, n_states);
    for (int i = 0; i < n_states; ++i) {
      const int64_t shift = i * batch.n_rows;
      scatter(t[i].x, row, count, shift, d, batch.x);
      if constexpr (target) {
        for (int64_t j = 0; j < d; ++j) {
          const V v = t[i].v[kind == Covariance::spherical ? 0 : j];
          t[i].h[j] = select(v > S(0), V(-t[i].h[j] / v), V{});  // no step taken: nothing to regress on
        }
        scatter(t[i].h, row, count, shift, d, batch.target);
        scatter(t[i].v, row, count, shift, rates, batch.variance);
      } else if (t[i].mean) {
        scatter(t[i].mean, row, count, shift, d, batch.mean);
        scatter(t[i].noise, row, count, shift, d, batch.noise);
      }
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

// The kernel of this covariance type and dimension; small dimensions are known at compile time where it pays.
template <typename S, bool target>
void dispatch_tiles(const ProcessView<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin,
                    int64_t end) {
  const auto go = [&](auto kind, auto dim) {
    TileRunner<S, decltype(kind)::value, decltype(dim)::value, target>::run(process, batch, schedule, begin, end);
  };
  const auto by_dim = [&](auto kind) {
    if constexpr (sizeof(S) == 4) {
      if (process.mixture.n_components <= kResident) {
        switch (process.mixture.dim) {
          case 1: return go(kind, std::integral_constant<int, 1>{});
          case 2: return go(kind, std::integral_constant<int, 2>{});
          case 3: return go(kind, std::integral_constant<int, 3>{});
          case 4: return go(kind, std::integral_constant<int, 4>{});
          default: break;
        }
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

}  // namespace fastndsm
