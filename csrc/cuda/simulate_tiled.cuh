// simulate, simulate_target and reverse_steps in large dimension: a warp owns one or four samples, a block up to 32, whose
// state stays in shared memory for all steps; parameters are read from global memory, through the caches.
#pragma once

#include "../include/tiled.h"
#include "arguments.h"

namespace fastndsm::cuda {

constexpr int kMostWarps = 8;

struct DeviceWarp {
  using V = float;
  using U = uint32_t;

  __device__ uint32_t lane() const { return threadIdx.x % kWarp; }
  __device__ float shuffle_xor(float v, int mask) const { return __shfl_xor_sync(0xffffffffu, v, mask); }
  __device__ void sync() const { __syncwarp(); }

  __device__ void load4(const float* p, int block, int n_blocks, float (&v)[4]) const {
    float4 four = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    const int at = block + int(lane());
    if (at < n_blocks) four = reinterpret_cast<const float4*>(p)[at];
    v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
  }
  __device__ void store4(float* p, int block, int n_blocks, const float (&v)[4]) const {
    const int at = block + int(lane());
    if (at < n_blocks) reinterpret_cast<float4*>(p)[at] = make_float4(v[0], v[1], v[2], v[3]);
  }
  __device__ void load_row(const float* p, int block, int dim, float (&v)[4]) const {
    const int j = 4 * (block + int(lane()));
#pragma unroll
    for (int c = 0; c < 4; ++c) v[c] = j + c < dim ? p[j + c] : 0.0f;
  }
  __device__ void store_row(float* p, int block, int dim, const float (&v)[4]) const {
    const int j = 4 * (block + int(lane()));
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (j + c < dim) p[j + c] = v[c];
    }
  }
  __device__ float load_lanes(const float* p, int i, int n, int repeat, float otherwise) const {
    const int at = i + int(lane());
    return at < n ? p[at / repeat] : otherwise;
  }
  __device__ void store_lanes(float* p, int i, int n, float v) const {
    if (i + int(lane()) < n) p[i + lane()] = v;
  }
  __device__ float below(int i, int n) const { return i + int(lane()) < n ? 1.0f : 0.0f; }
  __device__ void put(float* p, float v) const {
    if (lane() == 0) *p = v;
  }
};

// The numbers of a block's and a warp's own memory.
template <Covariance kind, Mode mode, int N>
__device__ float* memory(const MixtureBlock& m, float* shared) {
  using Trajectory = WarpTrajectory<DeviceWarp, float, kind, mode, N>;
  return shared + threadIdx.x / kWarp * Trajectory::floats(padded_components<kind>(m.n_components), m.padded);
}

template <Covariance kind, bool target, int N>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1) simulate_tiled_kernel(const __grid_constant__ Noising a) {
  extern __shared__ __align__(16) float shared[];
  constexpr Mode mode = target ? Mode::target : Mode::state;
  const MixtureBlock& m = a.mixture;
  const TiledProcess<float> process{register_mixture<kind>(m.parameters, m.n_components, m.padded, false),
                                    m.dim,
                                    m.padded,
                                    a.drift_scale,
                                    a.noise_std,
                                    NoiseStream(a.seed, kNoisingStream)};
  const int64_t first = (int64_t(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp) * N;
  const int64_t samples = a.rows * (a.mirrored ? 2 : 1);
  if (first >= samples) return;
  TiledRows<float, N> rows;
  rows.count = int(samples - first < N ? samples - first : N);
#pragma unroll
  for (int s = 0; s < N; ++s) {
    const int64_t i = s < rows.count ? first + s : first, row = a.order[i % a.rows];
    rows.path[s] = a.first_path + row, rows.from[s] = row;
    rows.to[s] = (i < a.rows ? row : row + a.rows) * a.n_records, rows.sign[s] = i < a.rows ? 1.0f : -1.0f;
    const int64_t first_record = row * a.n_records;
    rows.records[s] = PathRecords(a.steps + first_record, a.records ? a.records + first_record : nullptr, a.n_records);
    rows.steps[s] = rows.records[s].last();
  }
  const TiledArrays<float> arrays{a.x0, nullptr, nullptr, nullptr, a.x, a.mean, a.noise, a.target, a.variance};
  WarpTrajectory<DeviceWarp, float, kind, mode, N>(process, rows, arrays, memory<kind, mode, N>(m, shared), {}).simulate();
}

template <Covariance kind, int N>
__global__ void __launch_bounds__(kMostWarps* kWarp, 1) reverse_tiled_kernel(const __grid_constant__ Reverse a) {
  extern __shared__ __align__(16) float shared[];
  const MixtureBlock& m = a.mixture;
  const TiledProcess<float> process{register_mixture<kind>(m.parameters, m.n_components, m.padded, false),
                                    m.dim,
                                    m.padded,
                                    nullptr,
                                    nullptr,
                                    NoiseStream(a.seed, kReverseStream)};
  const int64_t first = (int64_t(blockIdx.x) * (blockDim.x / kWarp) + threadIdx.x / kWarp) * N;
  if (first >= a.rows) return;
  TiledRows<float, N> rows;
  rows.count = int(a.rows - first < N ? a.rows - first : N);
#pragma unroll
  for (int s = 0; s < N; ++s) {
    const int64_t row = s < rows.count ? first + s : first;
    rows.path[s] = a.first_path + row, rows.from[s] = rows.to[s] = row, rows.steps[s] = 0, rows.sign[s] = 1.0f;
  }
  const TiledArrays<float> arrays{a.y, a.held, a.slope, a.own, a.out, nullptr, nullptr, nullptr, nullptr};
  WarpTrajectory<DeviceWarp, float, kind, Mode::reverse, N>(process, rows, arrays,
                                                            memory<kind, Mode::reverse, N>(m, shared), {})
      .reverse({a.coefficients, a.n_steps}, int(a.bounds[0]), int(a.bounds[1]));
}

}  // namespace fastndsm::cuda
