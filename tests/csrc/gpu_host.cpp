// What the threads and warps of a GPU do, here on the host: registers.h one sample at a time, tiled.h on warps whose 32 lanes
// are one vector, and the kernels themselves, emulated. Called from Python by plain pointers.
#include "cuda_emulation.h"
// the above first
#include "../../csrc/cuda/pack.cuh"
#include "../../csrc/cuda/sample_mlp.cuh"
#include "../../csrc/cuda/simulate.cuh"
#include "../../csrc/cuda/simulate_tiled.cuh"

namespace fastndsm {
namespace {

template <typename S>
struct HostWarp {
  using V = vec<S, kWarp>;
  using U = vec<uint32_t, kWarp>;

  U lane() const { return iota<U>(); }
  V shuffle_xor(V v, int mask) const {
    V out;
    for (int l = 0; l < kWarp; ++l) out[l] = v[l ^ mask];
    return out;
  }
  void sync() const {}
  void load4(const S* p, int block, int n_blocks, V (&v)[4]) const { load_row(p, block, 4 * n_blocks, v); }
  void store4(S* p, int block, int n_blocks, const V (&v)[4]) const { store_row(p, block, 4 * n_blocks, v); }
  void load_row(const S* p, int block, int dim, V (&v)[4]) const {
    for (int l = 0; l < kWarp; ++l) {
      for (int c = 0, j = 4 * (block + l); c < 4; ++c) v[c][l] = j + c < dim ? p[j + c] : S(0);
    }
  }
  void store_row(S* p, int block, int dim, const V (&v)[4]) const {
    for (int l = 0; l < kWarp; ++l) {
      for (int c = 0, j = 4 * (block + l); c < 4; ++c) {
        if (j + c < dim) p[j + c] = v[c][l];
      }
    }
  }
  V load_lanes(const S* p, int i, int n, int repeat, S otherwise) const {
    V v;
    for (int l = 0; l < kWarp; ++l) v[l] = i + l < n ? p[(i + l) / repeat] : otherwise;
    return v;
  }
  void store_lanes(S* p, int i, int n, V v) const {
    for (int l = 0; l < kWarp && i + l < n; ++l) p[i + l] = v[l];
  }
  V below(int i, int n) const {
    V v;
    for (int l = 0; l < kWarp; ++l) v[l] = i + l < n ? S(1) : S(0);
    return v;
  }
  void put(S* p, V v) const { *p = v[0]; }
};

template <typename S>
struct Arguments {
  const S *parameters, *drift_scale, *noise_std, *coefficients;
  int64_t n_components, dim, padded, tied, seed, first_path, rows, mirrored, n_steps, n_records;
  const S* start;
  const int64_t *steps, *records;  // [rows, n_records] or null; reverse: steps are first and last
  const S *held, *slope, *own;
  S *x, *second, *third;  // mean and noise, or target and variance
  const S *rotations, *rates;  // or null
};

template <typename S>
PathRecords records_of(const Arguments<S>& a, int64_t row) {
  return {a.steps + row * a.n_records, a.records ? a.records + row * a.n_records : nullptr, a.n_records};
}

// ---- one sample at a time ---------------------------------------------------------------------------------------

template <Covariance kind, int D, Mode mode, typename S>
void in_registers(const Arguments<S>& a) {
  const int d = static_cast<int>(a.dim);
  const RegisterProcess<S> process{register_mixture<kind>(a.parameters, int(a.n_components), D, a.tied != 0),
                                   d,
                                   a.drift_scale,
                                   a.noise_std,
                                   NoiseStream(a.seed, mode == Mode::reverse ? 2 : 0),
                                   a.rotations,
                                   a.rates};
  const int64_t mirrored = mode == Mode::target && a.mirrored;
  for (int64_t i = 0; i < a.rows * (mirrored ? 2 : 1); ++i) {
    const int64_t row = i % a.rows;
    uint32_t c0, c1;
    path_words(a.first_path + row, process.noise.stream, c0, c1);
    const PathCounters<uint32_t> path(c0, c1);
    if constexpr (mode == Mode::reverse) {
      S held[D], slope[D];
      RegisterTrajectory<S, kind, D, false> sample(nullptr, 1);
      for (int j = 0; j < D; ++j) {
        sample.x[j] = j < d ? a.start[row * d + j] : S(0), held[j] = j < d ? a.held[row * d + j] : S(0);
        slope[j] = a.slope && j < d ? a.slope[row * d + j] : S(0);
      }
      const ReverseTable<S> table{a.coefficients, a.n_steps};
      for (int64_t n = a.steps[0] - 1; n >= a.steps[1]; --n) {
        const auto counters = path.at(static_cast<uint32_t>(n), process.noise.key);
        const ReverseStep<S> step = table[n];
        const SampleStep<S> own = a.own ? step.rated(a.own[row]) : step.unrated();
        sample.step_back(process.mixture, d, step, own, counters, held, slope, 1, nullptr);
      }
      for (int j = 0; j < d; ++j) a.x[row * d + j] = sample.x[j];
    } else {
      constexpr bool target = mode == Mode::target;
      S h[D], z[D];
      RegisterTrajectory<S, kind, D, target> sample(h, 1);
      for (int j = 0; j < D; ++j) sample.x[j] = j < d ? a.start[row * d + j] : S(0);
      PathRecords records = records_of(a, row);
      const int steps = records.last();
      for (int n = 0;; ++n) {
        records.take(n, [&](int64_t place) {
          const int64_t to = i * a.n_records + place;
          for (int j = 0; j < d; ++j) a.x[to * d + j] = sample.x[j];
          if constexpr (target) {
            constexpr int kRates = RegisterTrajectory<S, kind, D, target>::kRates;
            S values[D], variance[kRates];
            sample.results(process, values, variance);
            for (int j = 0; j < d; ++j) a.second[to * d + j] = values[j];
            for (int r = 0; r < std::min(kRates, d); ++r) a.third[to * std::min(kRates, d) + r] = variance[r];
          }
        });
        if (n == steps) break;
        const auto counters = path.at(static_cast<uint32_t>(n), process.noise.key);
        const bool last = !target && a.second && n + 1 == steps;
        if constexpr (target) sample.draw(d, counters, z);
        sample.step(process, counters, n, z, S(i < a.rows ? 1 : -1), [&](int j, S mean, S noise) {
          if (last && j < d) a.second[i * d + j] = mean, a.third[i * d + j] = noise;
        });
      }
    }
  }
}

template <Covariance kind, Mode mode, typename S>
void in_registers(const Arguments<S>& a) {
  switch (a.padded) {
    case 2: return in_registers<kind, 2, mode>(a);
    case 4: return in_registers<kind, 4, mode>(a);
    case 8: return in_registers<kind, 8, mode>(a);
    default: break;
  }
  if constexpr (kind != Covariance::full) {
    if (a.padded == 16) return in_registers<kind, 16, mode>(a);
  }
  if constexpr (kind == Covariance::spherical) return in_registers<kind, 32, mode>(a);
}

// ---- a warp at a time -------------------------------------------------------------------------------------------

template <Covariance kind, Mode mode, int N, typename S>
void in_warps(const Arguments<S>& a) {
  using Warp = WarpTrajectory<HostWarp<S>, S, kind, mode, N>;
  const TiledProcess<S> process{register_mixture<kind>(a.parameters, int(a.n_components), int(a.padded), false),
                                int(a.dim),
                                int(a.padded),
                                a.drift_scale,
                                a.noise_std,
                                NoiseStream(a.seed, mode == Mode::reverse ? 2 : 0)};
  constexpr bool target = mode == Mode::target;
  const TiledArrays<S> arrays{a.start,
                              a.held,
                              a.slope,
                              a.own,
                              a.x,
                              target ? nullptr : a.second,
                              target ? nullptr : a.third,
                              target ? a.second : nullptr,
                              target ? a.third : nullptr};
  const int64_t samples = a.rows * (target && a.mirrored ? 2 : 1);
  for (int64_t first = 0; first < samples; first += N) {
    TiledRows<S, N> rows;
    rows.count = static_cast<int>(std::min<int64_t>(N, samples - first));
    for (int s = 0; s < N; ++s) {
      const int64_t i = s < rows.count ? first + s : first, row = i % a.rows;
      rows.path[s] = a.first_path + row, rows.from[s] = row, rows.to[s] = i * a.n_records;
      rows.steps[s] = 0, rows.sign[s] = S(i < a.rows ? 1 : -1);
      if (mode != Mode::reverse) rows.records[s] = records_of(a, row), rows.steps[s] = rows.records[s].last();
    }
    // exactly what it should need, for the sanitizer, and not cleared
    std::vector<S> memory(Warp::floats(process.mixture.n_components, process.padded), std::numeric_limits<S>::quiet_NaN());
    Warp warp(process, rows, arrays, memory.data(), {});
    if constexpr (mode == Mode::reverse) {
      warp.reverse({a.coefficients, a.n_steps}, int(a.steps[0]), int(a.steps[1]));
    } else {
      warp.simulate();
    }
  }
}

template <Covariance kind, Mode mode, typename S>
void run(int samples_a_warp, const Arguments<S>& a) {
  if constexpr (kind != Covariance::full) {
    if (samples_a_warp == 1) return in_warps<kind, mode, 1>(a);
    if (samples_a_warp == 4) return in_warps<kind, mode, 4>(a);
  }
  in_registers<kind, mode>(a);
}

template <Covariance kind, typename S>
void run(Mode mode, int samples_a_warp, const Arguments<S>& a) {
  switch (mode) {
    case Mode::state: return run<kind, Mode::state>(samples_a_warp, a);
    case Mode::target: return run<kind, Mode::target>(samples_a_warp, a);
    case Mode::reverse: return run<kind, Mode::reverse>(samples_a_warp, a);
  }
}

template <typename S>
void run(int kind, int mode, int samples_a_warp, const Arguments<S>& a) {
  switch (static_cast<Covariance>(kind)) {
    case Covariance::spherical: return run<Covariance::spherical>(Mode(mode), samples_a_warp, a);
    case Covariance::diag: return run<Covariance::diag>(Mode(mode), samples_a_warp, a);
    default: return run<Covariance::full>(Mode(mode), samples_a_warp, a);
  }
}

// ---- the block of parameters ------------------------------------------------------------------------------------

template <typename S>
struct Packing {
  const S *means, *precisions, *log_scale;
  S* parameters;
  int64_t kind, n_components, dim, padded;
};

template <Covariance kind, typename S>
int64_t pack(const Packing<S>& a, bool tied) {
  const int n = int(a.n_components), D = int(a.padded);
  const MixtureTensors<S> mixture{n, int(a.dim), tied, a.means, a.precisions, a.log_scale};
  const int64_t size = block_size<kind>(n, D, tied);
  for (int64_t i = 0; a.parameters && i < size; ++i) a.parameters[i] = parameter<kind>(mixture, D, i);
  return size;
}

// Fills parameters, if given; their number.
template <typename S>
int64_t pack(const Packing<S>& a) {
  switch (static_cast<Covariance>(a.kind)) {
    case Covariance::spherical: return pack<Covariance::spherical>(a, false);
    case Covariance::diag: return pack<Covariance::diag>(a, false);
    case Covariance::tied: return pack<Covariance::full>(a, true);
    default: return pack<Covariance::full>(a, false);
  }
}

// ---- the kernels, emulated --------------------------------------------------------------------------------------

constexpr int kEmulatedWarps = 2;  // a block

template <Covariance kind, int D, int N>
void emulate(Mode mode, const Arguments<float>& a, const int64_t* order, int64_t floats) {
  const cuda::Kind named = a.tied ? cuda::Kind::tied : static_cast<cuda::Kind>(kind);
  const cuda::MixtureBlock block{named, int(a.n_components), int(a.dim), int(a.padded), a.parameters, int(floats)};
  const int64_t samples = a.rows * (mode == Mode::target && a.mirrored ? 2 : 1);
  const int64_t each = N > 0 ? N * kEmulatedWarps : cuda::kThreads;
  const unsigned blocks = unsigned((samples + each - 1) / each), threads = N > 0 ? kEmulatedWarps * kWarp : cuda::kThreads;
  if (mode == Mode::reverse) {
    const cuda::Reverse step{block,   a.coefficients, int(a.n_steps), a.seed,  a.first_path, a.rows,
                             a.steps, a.start,        a.held,         a.slope, a.own,        a.x};
    if constexpr (N > 0) {
      emulation::launch(cuda::reverse_tiled_kernel<kind, N>, blocks, threads, step);
    } else {
      emulation::launch(cuda::reverse_kernel<kind, D>, blocks, threads, step);
    }
    return;
  }
  const bool target = mode == Mode::target;
  const cuda::Noising noising{block,
                              a.drift_scale,
                              a.noise_std,
                              a.seed,
                              a.first_path,
                              a.rows,
                              a.n_records,
                              a.start,
                              a.steps,
                              a.records,
                              order,
                              a.x,
                              target ? nullptr : a.second,
                              target ? nullptr : a.third,
                              target ? a.second : nullptr,
                              target ? a.third : nullptr,
                              a.rotations,
                              a.rates,
                              a.mirrored != 0};
  if constexpr (N > 0) {
    emulation::launch(target ? cuda::simulate_tiled_kernel<kind, true, N> : cuda::simulate_tiled_kernel<kind, false, N>,
                      blocks, threads, noising);
  } else {
    emulation::launch(target ? cuda::simulate_kernel<kind, D, true> : cuda::simulate_kernel<kind, D, false>, blocks,
                      threads, noising);
  }
}

}  // namespace
}  // namespace fastndsm

extern "C" {

// As run_float, but by the kernel; of those in registers spherical with 4 and 32, diag with 2 and full with 4 dimensions.
void run_kernel(int kind, int mode, int samples_a_warp, const fastndsm::Arguments<float>* a, const int64_t* order,
                int64_t floats) {
  using namespace fastndsm;
  const Mode m = static_cast<Mode>(mode);
  constexpr Covariance spherical = Covariance::spherical, diag = Covariance::diag;
  switch (100 * kind + 1000 * samples_a_warp + (samples_a_warp > 0 ? 0 : int(a->padded))) {
    case 4: return emulate<spherical, 4, 0>(m, *a, order, floats);
    case 32: return emulate<spherical, 32, 0>(m, *a, order, floats);
    case 102: return emulate<diag, 2, 0>(m, *a, order, floats);
    case 304: return emulate<Covariance::full, 4, 0>(m, *a, order, floats);
    case 1000: return emulate<spherical, 0, 1>(m, *a, order, floats);
    case 1100: return emulate<diag, 0, 1>(m, *a, order, floats);
    case 4000: return emulate<spherical, 0, 4>(m, *a, order, floats);
    case 4100: return emulate<diag, 0, 4>(m, *a, order, floats);
    default: return;  // the outputs keep their NaN
  }
}

struct Sampling {
  const float *parameters, *coefficients, *evaluations, *network, *scales, *shifts, *y;
  const int64_t* bounds;
  float* out;
  int64_t* failed;
  int64_t kind, n_components, dim, n_steps, n_evaluations, seed, first_path, rows, network_floats, n_hidden, width, inputs;
  int64_t resident;
  double feature_scale;
};

void sample_mlp_kernel(const Sampling* a) {
  using namespace fastndsm::cuda;
  const int d = int(a->dim);
  const MlpSampling arguments{{static_cast<Kind>(a->kind), int(a->n_components), d, d, a->parameters, 0},
                              a->coefficients,
                              int(a->n_steps),
                              a->seed,
                              a->first_path,
                              a->rows,
                              a->bounds,
                              int(a->n_evaluations),
                              reinterpret_cast<const fastndsm::Evaluation<float>*>(a->evaluations),
                              float(a->feature_scale),
                              a->network,
                              int(a->network_floats),
                              int(a->n_hidden),
                              int(a->width),
                              int(a->inputs),
                              a->scales,
                              a->shifts,
                              a->y,
                              a->out,
                              a->failed};
  const unsigned blocks = unsigned((a->rows + kTile - 1) / kTile);
  const auto launch = [&](auto kind) {
    constexpr fastndsm::Covariance k = kind;
    auto kernel = a->resident ? sample_kernel<128, true, k> : sample_kernel<128, false, k>;
    if (a->width == 64) kernel = a->resident ? sample_kernel<64, true, k> : sample_kernel<64, false, k>;
    emulation::launch(kernel, blocks, unsigned(kSamplerThreads), arguments);
  };
  using fastndsm::Covariance;
  if (a->kind == int(Covariance::spherical)) return launch(std::integral_constant<Covariance, Covariance::spherical>{});
  if (a->kind == int(Covariance::diag)) return launch(std::integral_constant<Covariance, Covariance::diag>{});
  launch(std::integral_constant<Covariance, Covariance::full>{});
}

int64_t pack_float(const fastndsm::Packing<float>* a) { return fastndsm::pack(*a); }
int64_t pack_double(const fastndsm::Packing<double>* a) { return fastndsm::pack(*a); }

// As pack_float, by the kernel, of `size` numbers.
void pack_kernel(const fastndsm::Packing<float>* a, int64_t size) {
  using namespace fastndsm;
  const cuda::Packing arguments{static_cast<cuda::Kind>(a->kind),
                                int(a->n_components),
                                int(a->dim),
                                int(a->padded),
                                a->means,
                                a->precisions,
                                a->log_scale,
                                a->parameters};
  const unsigned blocks = unsigned((size + cuda::kPackThreads - 1) / cuda::kPackThreads);
  auto kernel = cuda::pack_kernel<Covariance::full>;
  if (a->kind == int(Covariance::spherical)) kernel = cuda::pack_kernel<Covariance::spherical>;
  if (a->kind == int(Covariance::diag)) kernel = cuda::pack_kernel<Covariance::diag>;
  emulation::launch(kernel, blocks, unsigned(cuda::kPackThreads), arguments);
}

// kind: as Covariance; mode: as Mode; samples_a_warp: 0 in registers.
void run_float(int kind, int mode, int samples_a_warp, const fastndsm::Arguments<float>* a) {
  fastndsm::run(kind, mode, samples_a_warp, *a);
}
void run_double(int kind, int mode, int samples_a_warp, const fastndsm::Arguments<double>* a) {
  fastndsm::run(kind, mode, samples_a_warp, *a);
}

// Words of the counters (c0, c1, step, block), as one thread draws them.
void words(uint32_t c0, uint32_t c1, uint32_t step, uint32_t block, int64_t seed, uint32_t* out) {
  uint32_t w[1][4], v[1][4], path[1] = {c0}, at[1] = {block};
  const fastndsm::NoiseStream noise(seed, 0);
  fastndsm::PathCounters<uint32_t>(c0, c1).at(step, noise.key).words(block, w);
  fastndsm::CommonWords(c1, step, noise.key).words(path, at, v);
  for (int i = 0; i < 4; ++i) out[i] = w[0][i], out[4 + i] = v[0][i];
}
}
