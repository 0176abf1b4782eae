// Runs tiles of trajectories, and of the reverse process: which rows share a tile, where their state lies, and which kernel serves the dimension.
#pragma once

#include <numeric>
#include <vector>

#include "batch.h"
#include "reverse_tile.h"

namespace fastndsm {

// The records of a tile where a cache holds them: row by row in the end, memory takes them faster than one by one.
template <typename S>
class Staged {
  using V = typename BatchRows<S>::V;

 public:
  Staged(const Batch<S>& batch, int64_t d, int64_t rates, int members) : batch_(batch) {
    const int64_t rows = lanes_of<V>, values = rows * members * batch.n_records;
    const int64_t second = batch.target || batch.mean ? d : 0, third = batch.target ? rates : second;
    fits_ = batch.n_records > 1 && values * (d + second + third) * sizeof(S) <= kBytes;
    if (!fits_) return;
    memory_.resize(values * (d + second + third));
    S *const x = memory_.data(), *const after = x + values * d, *const last = after + values * second;
    batch_.n_rows = rows, batch_.x = x;
    if (batch.target) batch_.target = after, batch_.variance = last;
    if (batch.mean) batch_.mean = after, batch_.noise = last;
    std::iota(row_, row_ + rows, 0);
  }
  Staged(const Staged&) = delete;

  // Where the records of rows go at first.
  BatchRows<S> rows(const BatchRows<S>& rows) const { return fits_ ? BatchRows<S>{batch_, row_, rows.count} : rows; }

  // And from there to where they belong.
  void write(const BatchRows<S>& from, const BatchRows<S>& to, int64_t members, int64_t d, int64_t rates) const {
    for (int64_t i = 0; fits_ && i < members; ++i) {
      for (int l = 0; l < to.count; ++l) from.copy(l, i * from.batch.n_rows, to, i * to.batch.n_rows, d, rates);
    }
  }

 private:
  static constexpr size_t kBytes = 256 << 10;
  bool fits_;
  Batch<S> batch_;
  int64_t row_[lanes_of<V>];
  std::vector<S> memory_;
};

// Tiles of known dimension, their state in registers. What it was after each step is kept, and the records are taken from
// there a history at a time: to look for them in every step would cost more than a step does.
template <typename S, Covariance kind, int D, bool target>
struct RegisterRunner {
  using V = typename BatchRows<S>::V;
  using Sample = RegisterTrajectory<V, kind, D, target>;
  // Steps whose noise is drawn at once: two where the mixture's drift leaves the pipes room, and registers hold them.
  static constexpr int kDrawn = target && kRegisters >= 32 ? 2 : 1;
  static constexpr int64_t kHistory = 128, kState = target ? 2 * D + Sample::kRates : 3 * D;

  static void run(const ProcessView<S>& view, const Batch<S>& batch, const Schedule& schedule, int64_t begin, int64_t end) {
    const KnownMixture<S> mixture(view.mixture);
    const RegisterProcess<S> process{mixture, D, view.drift_scale, view.noise_std, view.noise};
    const bool pairs = target && batch.mirrored;
    const int members = pairs ? 2 : 1;
    std::vector<V> history(members * kHistory * kState);
    Staged<S> staged(batch, D, Sample::kRates, members);
    for (int64_t tile = begin; tile < end; ++tile) {
      const BatchRows<S> rows(batch, schedule, tile), out = staged.rows(rows);
      if (pairs) {
        walk<2, false>(process, rows, out, history.data());
      } else if (!target && batch.mean) {
        walk<1, !target>(process, rows, out, history.data());
      } else {
        walk<1, false>(process, rows, out, history.data());
      }
      staged.write(out, rows, members, D, Sample::kRates);
    }
  }

 private:
  struct Own {
    V h[D];
    Sample sample{h, 1};
  };

  // A tile, or it and its antithetic one by the same noise. keeps: also each step's mean and noise.
  template <int members, bool keeps>
  FASTNDSM_MIXED_FEW static void walk(const RegisterProcess<S>& process, const BatchRows<S>& rows, const BatchRows<S>& out,
                                      V* history) {
    const Lanes<V> lanes = rows.lanes(process.noise);
    V x0[D], z[kDrawn][D];
    rows.gather(rows.batch.x0, D, x0);
    Own own[members];
    for (int i = 0; i < members; ++i) {
      V* const state = history + i * kHistory * kState;
      for (int j = 0; j < D; ++j) own[i].sample.x[j] = x0[j];
      if (lanes.first > 0) continue;
      if constexpr (keeps) {
        for (int j = 0; j < D; ++j) state[D + j] = x0[j], state[2 * D + j] = V{};
      }
      put(own[i].sample, state);
    }
    const auto counters = [&](int64_t n)
                              FASTNDSM_INLINE { return lanes.paths.at(static_cast<uint32_t>(n), process.noise.key); };
    normals_of_steps(counters, 0, z);
    int64_t n = 0;
    for (int64_t first = 0; first <= lanes.last; first += kHistory) {  // the steps whose states the history has room for
      for (const int64_t end = std::min(lanes.last, first + kHistory - 1); n < end; ++n) {
        const bool draws = n % kDrawn == kDrawn - 1;
        V next[kDrawn][D];
        for (int i = 0; i < members; ++i) {
          V* const state = history + (i * kHistory + n + 1 - first) * kState;
          own[i].sample.step(process, counters(n), static_cast<int>(n), z[n % kDrawn], S(1 - 2 * i),
                             [&](int j, V mean, V noise) {
            if constexpr (keeps) state[D + j] = mean, state[2 * D + j] = noise;
          }, [&]() FASTNDSM_INLINE {
            if (i == 0 && draws) normals_of_steps(counters, n + 1, next);
          });
          if (n + 1 >= lanes.first) put(own[i].sample, state);
        }
        FASTNDSM_UNROLL
        for (int i = 0; i < kDrawn * D; ++i) {  // one by one: std::copy_n goes through memory
          if (draws) z[i / D][i % D] = next[i / D][i % D];
        }
      }
      take<members>(rows, out, history, first, std::min(kHistory, lanes.last + 1 - first));
    }
    if constexpr (target) divide<members>(rows.count, out);
  }

  static void put(const Sample& sample, V* state) {
    for (int j = 0; j < D; ++j) state[j] = sample.x[j];
    if constexpr (target) {
      for (int j = 0; j < D; ++j) state[D + j] = sample.h[j];
      for (int r = 0; r < Sample::kRates; ++r) state[2 * D + r] = sample.v[r];
    }
  }

  // The records after `first` steps and up to n - 1 more: value by value, as they are too few in a row for vectors, with h
  // where the target is to be.
  template <int members>
  static void take(const BatchRows<S>& rows, const BatchRows<S>& to, const V* history, int64_t first, int64_t n) {
    constexpr int W = lanes_of<V>, rates = Sample::kRates;
    const Batch<S>& out = to.batch;
    for (int i = 0; i < members; ++i) {
      for (int l = 0; l < rows.count; ++l) {
        const S* const states = reinterpret_cast<const S*>(history + i * kHistory * kState) + l;
        const int64_t* steps = rows.steps(l);
        const int64_t place = to.record(l, i * out.n_rows, 0).at;
        for (int64_t r = 0; r < out.n_records; ++r) {
          if (steps[r] < first || steps[r] >= first + n) continue;
          const S* const state = states + (steps[r] - first) * kState * W;
          const int64_t at = place + r;
          for (int j = 0; j < D; ++j) out.x[at * D + j] = state[j * W];
          if constexpr (target) {
            const S* const v = state + 2 * D * W;
            for (int k = 0; k < rates; ++k) out.variance[at * rates + k] = v[k * W];
            for (int j = 0; j < D; ++j) out.target[at * D + j] = state[(D + j) * W];
          } else if (out.mean) {
            for (int j = 0; j < D; ++j) {
              out.mean[at * D + j] = state[(D + j) * W], out.noise[at * D + j] = state[(2 * D + j) * W];
            }
          }
        }
      }
    }
  }

  // All targets, of a lane's records together: divisions are dear one by one.
  template <int members>
  static void divide(int count, const BatchRows<S>& to) {
    constexpr int rates = Sample::kRates;
    const Batch<S>& out = to.batch;
    for (int i = 0; i < members; ++i) {
      for (int l = 0; l < count; ++l) {
        const int64_t at = to.record(l, i * out.n_rows, 0).at;
        S* const targets = out.target + at * D;
        const S* const v = out.variance + at * rates;
        for (int64_t r = 0; r < out.n_records; ++r) {
          for (int j = 0; j < D; ++j) targets[r * D + j] = target_of(targets[r * D + j], v[rates == 1 ? r : r * D + j]);
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
                  noise = Member<V>::noise_vectors(d, target), own = scratch + screen + noise + state;
    const int members = batch.mirrored ? 2 : 1;
    const int64_t copies = kTurns && kind == Covariance::full ? TileAxes<V>::vectors(d) : 0;
    std::vector<V> memory(members * own + copies);
    std::vector<int32_t> screens(members * Screen<V>::integers(k));
    std::vector<NearLists<V>> lists;
    for (int i = 0; i < members; ++i) lists.emplace_back(process.mixture);
    const Walks<V, kind, target ? Output::target : Output::state> walks(process);
    RecordLists due;
    Staged<S> staged(batch, d, rates, members);
    for (int64_t tile = begin; tile < end; ++tile) {
      const BatchRows<S> rows(batch, schedule, tile);
      Member<V> member[2];
      for (int i = 0; i < members; ++i) {
        V* base = memory.data() + i * own;
        V* x = base + scratch + screen + noise;
        member[i] = {rows.lanes(process.noise),
                     target       ? TileState<V>{.x = x,
                                                 .h = x + d,
                                                 .v = x + 2 * d,
                                                 .rate = x + 2 * d + rates,
                                                 .turned = x + 2 * d + 2 * rates}
                     : batch.mean ? TileState<V>{.x = x, .mean = x + d, .noise = x + 2 * d}
                                  : TileState<V>{.x = x},
                     MixtureScratch<V>(base, k, d),
                     Screen<V>(base + scratch, screens.data() + i * Screen<V>::integers(k), k, d),
                     &lists[i],
                     TileAxes<V>(process.axes, memory.data() + members * own),
                     base + scratch + screen,
                     S(1 - 2 * i)};
        lists[i].forget();
        load_state(rows, member[i].state, d, rates);
      }
      const BatchRows<S> out = staged.rows(rows);
      due.fill(rows, out, member[0].lanes.last);
      const auto take = [&](int64_t n) {
        for (int i = 0; i < members; ++i) record(out, due, n, member[i], i * out.batch.n_rows, d, rates);
      };
      walks.with([&](const auto& walk) { walk.run(member, members, take); });
      staged.write(out, rows, members, d, rates);
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
  static void record(const BatchRows<S>& rows, RecordLists& due, int64_t n, const Member<V>& member, int64_t shift,
                     int64_t d, int64_t rates) {
    const Record* records;
    const int64_t count = due.find(n, shift * rows.batch.n_records, records);
    if (count == 0) return;
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
    rows.template write<kTurns>(records, count, d, rates, t.x, second, third);
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
  end_streams();
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
