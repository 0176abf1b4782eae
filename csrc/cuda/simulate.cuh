// simulate, simulate_target and reverse_steps in small dimension: one thread a sample, its state in registers for all steps,
// the mixture in shared memory.
#pragma once

#include "../include/parameters.h"
#include "../include/records.h"
#include "arguments.h"

namespace fastndsm::cuda {

constexpr int kThreads = 128;

// Whether v H of the path estimator lies in shared memory: registers do not hold it besides x, z and the two sums.
template <int D>
constexpr bool kInShared = D >= 32;

// The block's parameters copied to shared memory.
template <Covariance kind, int D>
__device__ RegisterMixture<float> shared_mixture(const MixtureBlock& m, float* shared) {
  for (int i = threadIdx.x; i < m.floats; i += blockDim.x) shared[i] = m.parameters[i];
  __syncthreads();
  return register_mixture<kind>(shared, m.n_components, D, m.kind == Kind::tied);
}

// The sample as it is, to row `out` of the outputs.
template <Covariance kind, int D, bool target>
__device__ void store_record(const Noising& a, const RegisterProcess<float>& process,
                             const RegisterTrajectory<float, kind, D, target>& sample, int64_t out) {
  const int d = a.mixture.dim;
#pragma unroll
  for (int j = 0; j < D; ++j) {
    if (j < d) a.x[out * d + j] = sample.x[j];
  }
  if constexpr (target) {
    constexpr int kRates = RegisterTrajectory<float, kind, D, target>::kRates;
    float values[D], variance[kRates];
    sample.results(process, values, variance);
#pragma unroll
    for (int j = 0; j < D; ++j) {
      if (j < d) a.target[out * d + j] = values[j];
    }
#pragma unroll
    for (int r = 0; r < kRates; ++r) {
      if (kind == Covariance::spherical) {
        a.variance[out] = variance[r];
      } else if (r < d) {
        a.variance[out * d + r] = variance[r];
      }
    }
  }
}

template <Covariance kind, int D, bool target>
__global__ void __launch_bounds__(kThreads, 1) simulate_kernel(const __grid_constant__ Noising a) {
  extern __shared__ __align__(16) float shared[];
  const int d = a.mixture.dim;
  const RegisterProcess<float> process{shared_mixture<kind, D>(a.mixture, shared), d,           a.drift_scale, a.noise_std,
                                       NoiseStream(a.seed, kNoisingStream),        a.rotations, a.rates};
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.rows * (a.mirrored ? 2 : 1)) return;
  const int64_t row = a.order[i % a.rows], out = i < a.rows ? row : row + a.rows;
  const float sign = i < a.rows ? 1.0f : -1.0f;
  uint32_t c0, c1;
  path_words(a.first_path + row, kNoisingStream, c0, c1);
  const PathCounters<uint32_t> path(c0, c1);
  PathRecords records(a.steps + row * a.n_records, a.records ? a.records + row * a.n_records : nullptr, a.n_records);
  const int steps = records.last();
  float own[target && !kInShared<D> ? D : 1];
  float* h = kInShared<D> ? shared + a.mixture.floats + threadIdx.x : own;
  RegisterTrajectory<float, kind, D, target> sample(h, kInShared<D> ? kThreads : 1);
#pragma unroll
  for (int j = 0; j < D; ++j) sample.x[j] = j < d ? a.x0[row * d + j] : 0.0f;
  if (!target && a.mean && steps == 0) {
    for (int j = 0; j < d; ++j) a.mean[out * d + j] = a.x0[row * d + j], a.noise[out * d + j] = 0.0f;
  }
  for (int n = 0;; ++n) {
    records.take(n, [&](int64_t place) { store_record<kind, D, target>(a, process, sample, out * a.n_records + place); });
    if (n == steps) break;
    const auto counters = path.at(static_cast<uint32_t>(n), process.noise.key);
    const bool last = !target && n + 1 == steps && a.mean;
    float z[target ? D : 1];
    if constexpr (target) sample.draw(d, counters, z);
    sample.step(process, counters, n, z, sign, [&](int j, float mean, float noise) {
      if (last && j < d) a.mean[out * d + j] = mean, a.noise[out * d + j] = noise;
    });
  }
}

// What the network gave lies in shared memory, 2 D numbers a thread.
template <Covariance kind, int D>
__global__ void __launch_bounds__(kThreads, 1) reverse_kernel(const __grid_constant__ Reverse a) {
  extern __shared__ __align__(16) float shared[];
  const int d = a.mixture.dim;
  const RegisterMixture<float> mixture = shared_mixture<kind, D>(a.mixture, shared);
  const ReverseTable<float> table{a.coefficients, a.n_steps};
  const NoiseStream noise(a.seed, kReverseStream);
  const int64_t row = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= a.rows) return;
  uint32_t c0, c1;
  path_words(a.first_path + row, kReverseStream, c0, c1);
  const PathCounters<uint32_t> path(c0, c1);
  float *held = shared + a.mixture.floats + threadIdx.x, *slope = held + D * kThreads;
  RegisterTrajectory<float, kind, D, false> sample(nullptr, 1);
#pragma unroll
  for (int j = 0; j < D; ++j) {
    sample.x[j] = j < d ? a.y[row * d + j] : 0.0f;
    held[j * kThreads] = j < d ? a.held[row * d + j] : 0.0f;
    slope[j * kThreads] = a.slope && j < d ? a.slope[row * d + j] : 0.0f;
  }
  const float own = a.own ? a.own[row] : 0.0f;
  const int last = static_cast<int>(a.bounds[1]);
  for (int n = static_cast<int>(a.bounds[0]) - 1; n >= last; --n) {
    const auto counters = path.at(static_cast<uint32_t>(n), noise.key);
    const ReverseStep<float> step = table[n];
    const SampleStep<float> now = a.own ? step.rated(own) : step.unrated();
    sample.step_back(mixture, d, step, now, counters, held, slope, kThreads, nullptr);
  }
#pragma unroll
  for (int j = 0; j < D; ++j) {
    if (j < d) a.out[row * d + j] = sample.x[j];
  }
}

}  // namespace fastndsm::cuda
