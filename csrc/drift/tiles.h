// Whole trajectories of a process whose drift is a generated program, on tiles of samples: there, back, and F at points.
//
//   mean_n = x_n + dt_n F(x_n, t_n),   x_{n+1} = mean_n + s_n z_n
//   target_{n+1} = rho_n target_n + [rho_n dt_n J^T z_n - (1 - rho_n) z_n] / s_n,   rho_n = c_n v_n / v_{n+1}
//   v_{n+1} = s_n^2 + c_n^2 v_n,   c_n = 1 - rate dt_n
//
// Program<V> is one: kDim, value(x, t, p, f) and, for the target, value_and_product(x, t, z, p, f, g) with g = J^T z.
#pragma once

#include <numeric>
#include <vector>

#include "../cpu/batch.h"
#include "../include/reverse.h"
#include "functions.h"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace fastndsm::drift {

// body(begin, end) of shares of 0..n, each on a thread of its own.
template <typename Body>
void parallel(int64_t n, int64_t n_threads, const Body& body) {
#if defined(_OPENMP)
  const int64_t used = std::min(n_threads, n);
  if (used > 1) {
#pragma omp parallel num_threads(static_cast<int>(used))
    {
      const int64_t i = omp_get_thread_num(), shares = omp_get_num_threads();
      body(n * i / shares, n * (i + 1) / shares);
    }
    return;
  }
#endif
  body(0, n);
}

// What a step takes, from t_n on.
template <typename S>
struct Step {
  S time, dt, std;
  S rho, own, push, variance;  // of the target; v after the step
};

template <typename S>
struct Process {
  std::vector<Step<S>> steps;
  const S* parameters;
  NoiseStream noise;

  Process(const double* times, const double* std, int64_t n_steps, double rate, const S* parameters, NoiseStream noise)
      : steps(n_steps), parameters(parameters), noise(noise) {
    double v = 0;
    for (int64_t n = 0; n < n_steps; ++n) {
      const double dt = times[n + 1] - times[n], c = 1 - rate * dt, s = std[n], next = s * s + c * c * v;
      const double rho = c * v / next;
      steps[n] = {S(times[n]), S(dt), S(s), S(rho), S((1 - rho) / s), S(rho * dt / s), S(next)};
      v = next;
    }
  }
};

template <int D, typename V>
FASTNDSM_HD void draw(const typename PathCounters<words_of<V>>::AtStep& counters, V* z) {
  constexpr int chunk = 8;  // of two counters, which registers hold
  FASTNDSM_UNROLL
  for (int j = 0; j + chunk <= D; j += chunk) some_normals<chunk>(counters, static_cast<uint32_t>(j / 4), z + j);
  constexpr int rest = D % chunk;
  if constexpr (rest > 0) some_normals<rest>(counters, static_cast<uint32_t>((D - rest) / 4), z + D - rest);
}

enum class Output { state, transition, target };

// One path in each lane; the target's second member takes the first one's noise with the sign turned.
template <template <typename> class Program, typename S, Output output, int members>
class Walk {
  using V = typename BatchRows<S>::V;
  static constexpr int D = Program<V>::kDim;
  static constexpr bool kTarget = output == Output::target;
  static constexpr int kDrawn = D <= 4 ? 2 : 1;  // steps whose noise is drawn at once

 public:
  static void run(const Process<S>& process, const Batch<S>& batch, const Schedule& schedule, int64_t begin, int64_t end) {
    RecordLists due;
    for (int64_t i = begin; i < end; ++i) {
      const BatchRows<S> rows(batch, schedule, i);
      Walk(process, rows).all(due);
    }
  }

 private:
  Walk(const Process<S>& process, const BatchRows<S>& rows) : process_(process), rows_(rows) {}

  void all(RecordLists& due) {
    const Lanes<V> lanes = rows_.lanes(process_.noise);
    due.fill(rows_, rows_, lanes.last);
    rows_.gather(rows_.batch.x0, D, x_[0]);
    for (int i = 0; i < members; ++i) {
      for (int j = 0; j < D; ++j) x_[i][j] = mean_[i][j] = x_[0][j], second_[i][j] = V{};
    }
    take(0, due, V{});
    const auto at = [&](int64_t n) FASTNDSM_INLINE { return lanes.paths.at(static_cast<uint32_t>(n), process_.noise.key); };
    for (int64_t n = 0; n < lanes.last; n += kDrawn) {
      V z[kDrawn][D];
      if constexpr (kDrawn > 1) {
        normals_of_steps(at, n, z);
      } else {
        draw<D>(at(n), z[0]);
      }
      for (int64_t i = n; i < std::min(n + kDrawn, lanes.last); ++i) {
        const Step<S>& step = process_.steps[i];
        FASTNDSM_UNROLL
        for (int member = 0; member < members; ++member) advance(step, member, z[i - n]);
        take(i + 1, due, splat<V>(step.variance));
      }
    }
  }

  FASTNDSM_HD void advance(const Step<S>& step, int i, const V* noise) {
    V z[D], f[D], x[D];
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) z[j] = i == 0 ? noise[j] : V(-noise[j]), x[j] = x_[i][j];
    if constexpr (kTarget) {
      V product[D];
      Program<V>::value_and_product(x, splat<V>(step.time), z, process_.parameters, f, product);
      FASTNDSM_UNROLL
      for (int j = 0; j < D; ++j) {
        const V pushed = fused(splat<V>(step.push), product[j], V(-step.own * z[j]));
        second_[i][j] = fused(splat<V>(step.rho), second_[i][j], pushed);
      }
    } else {
      Program<V>::value(x, splat<V>(step.time), process_.parameters, f);
    }
    FASTNDSM_UNROLL
    for (int j = 0; j < D; ++j) {
      const V mean = fused(splat<V>(step.dt), f[j], x[j]);
      x_[i][j] = fused(splat<V>(step.std), z[j], mean);
      if constexpr (output == Output::transition) mean_[i][j] = mean, second_[i][j] = z[j];
    }
  }

  void take(int64_t n, RecordLists& due, V variance) const {
    for (int i = 0; i < members; ++i) {
      const Record* records;
      const int64_t shift = i * rows_.batch.n_rows * rows_.batch.n_records, count = due.find(n, shift, records);
      if (count == 0) continue;
      constexpr std::integral_constant<int, D> d;
      if constexpr (kTarget) {
        rows_.template write<true>(records, count, d, 1, x_[i], second_[i], &variance);
      } else {
        rows_.write(records, count, d, D, x_[i], mean_[i], second_[i]);
      }
    }
  }

  const Process<S>& process_;
  const BatchRows<S>& rows_;
  V x_[members][D], mean_[members][D], second_[members][D];  // second: the target, or the noise
};

// Returns the first of `steps` that is not in 0..n_steps, or -1.
template <template <typename> class Program, typename S, bool target>
int64_t simulate(const S* x0, const int64_t* steps, int64_t n_rows, int64_t n_records, const double* times,
                 const double* std, int64_t n_steps, double rate, const S* parameters, int64_t seed, int64_t first_path,
                 bool mirrored, S* x, S* second, S* third, int64_t n_threads) {
  StepRanges due(steps, n_rows, n_records);
  parallel(n_rows, n_threads, [&](int64_t begin, int64_t end) { due.look(begin, end); });
  if (const int64_t outside = due.outside(n_steps); outside >= 0) return outside;
  const Process<S> process(times, std, n_steps, rate, parameters, NoiseStream(seed, 0));
  Batch<S> batch{n_rows,          n_records, n_steps, first_path, x0,      steps,   due.first.data(),
                 due.last.data(), x,         nullptr, nullptr,    nullptr, nullptr, mirrored};
  (target ? batch.target : batch.mean) = second, (target ? batch.variance : batch.noise) = third;
  std::vector<int64_t> rows(n_rows);
  std::iota(rows.begin(), rows.end(), 0);
  const Schedule schedule(due.last.data(), std::move(rows), n_steps, kLanes<S>, nullptr, 0,
                          batch.neighbors(Program<S>::kDim));
  parallel(schedule.n_tiles(), n_threads, [&](int64_t begin, int64_t end) {
    if constexpr (target) {
      const auto run = mirrored ? Walk<Program, S, Output::target, 2>::run : Walk<Program, S, Output::target, 1>::run;
      run(process, batch, schedule, begin, end);
    } else {
      const auto run = second ? Walk<Program, S, Output::transition, 1>::run : Walk<Program, S, Output::state, 1>::run;
      run(process, batch, schedule, begin, end);
    }
    end_streams();
  });
  return -1;
}

// All rows in order, tile by tile, over the threads: body(rows).
template <typename V, typename Body>
void each_tile(int64_t n_rows, int64_t n_threads, const Body& body) {
  constexpr int W = lanes_of<V>;
  std::vector<int64_t> row(n_rows);
  std::iota(row.begin(), row.end(), 0);
  parallel((n_rows + W - 1) / W, n_threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      body(TileRows<V>{row.data() + i * W, static_cast<int>(std::min<int64_t>(W, n_rows - i * W))});
    }
  });
}

// Back from t_first to t_last. The drift's part of a step is coefficient B times F dt_n / a_n, a_n = s_n^2 / 2.
template <template <typename> class Program, typename S>
void reverse_steps(const S* y, const S* held, const S* slope, const S* rate, int64_t n_rows, int64_t first, int64_t last,
                   const S* coefficients, const double* times, const double* std, int64_t n_steps, const S* parameters,
                   int64_t seed, int64_t first_path, S* out, int64_t n_threads) {
  using V = vec<S, kLanes<S>>;
  constexpr int D = Program<V>::kDim;
  const Process<S> process(times, std, n_steps, 0, parameters, NoiseStream(seed, kReverseStream));
  const ReverseTable<S> table{coefficients, n_steps};
  each_tile<V>(n_rows, n_threads, [&](const TileRows<V>& rows) {
    V state[D], network[D], change[D], own{};
    rows.gather(y, D, state), rows.gather(held, D, network);
    if (slope) rows.gather(slope, D, change);
    if (rate) rows.gather(rate, 1, &own);
    const auto paths = rows.paths(first_path, process.noise.stream);
    for (int64_t n = first - 1; n >= last; --n) {
      const Step<S>& forward = process.steps[n];
      ReverseStep<S> step = table[n];
      V f[D], z[D];
      const bool drifts = step.drift != S(0), draws = step.std != S(0);
      if (drifts) {
        Program<V>::value(state, splat<V>(forward.time), parameters, f);
      } else {
        for (int j = 0; j < D; ++j) f[j] = V{};
      }
      if (draws) {
        draw<D>(paths.at(static_cast<uint32_t>(n), process.noise.key), z);
      } else {
        for (int j = 0; j < D; ++j) z[j] = V{};
      }
      step.drift *= S(2) * forward.dt / (forward.std * forward.std);
      const SampleStep<V> lanes = rate ? step.rated(own) : step.template unrated<V>();
      for (int j = 0; j < D; ++j) {
        state[j] = lanes.next(state[j], f[j], slope ? lanes.network(network[j], change[j]) : network[j], z[j]);
      }
    }
    rows.scatter(state, D, out);
  });
}

// F at x [n_rows, D] and t [n_rows], and J^T z unless z is null.
template <template <typename> class Program, typename S, bool product>
void evaluate(const S* x, const S* t, const S* z, int64_t n_rows, const S* parameters, S* value, S* turned,
              int64_t n_threads) {
  using V = vec<S, kLanes<S>>;
  constexpr int D = Program<V>::kDim;
  each_tile<V>(n_rows, n_threads, [&](const TileRows<V>& rows) {
    V at[D], time, f[D], direction[D], g[D];
    rows.gather(x, D, at), rows.gather(t, 1, &time);
    if constexpr (product) {
      rows.gather(z, D, direction);
      Program<V>::value_and_product(at, time, direction, parameters, f, g);
      rows.scatter(g, D, turned);
    } else {
      Program<V>::value(at, time, parameters, f);
    }
    rows.scatter(f, D, value);
  });
}

}  // namespace fastndsm::drift

// The functions of a library, with S and Program defined before.
#define FASTNDSM_DRIFT extern "C" __attribute__((visibility("default")))
