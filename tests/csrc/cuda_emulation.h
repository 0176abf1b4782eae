// CUDA kernels on the host: a thread of the machine for each thread of a block, one block after the other. Enough of the
// language for csrc/cuda/*.cuh; slow, and no evidence of speed or of what a GPU's memory model allows.
#pragma once

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim;

struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

struct Warp {
  std::barrier<> barrier{32};
  float values[32];
};
inline std::unique_ptr<std::barrier<>> block_barrier;
inline std::vector<std::unique_ptr<Warp>> warps;
inline Warp& own_warp() { return *warps[threadIdx.x / 32]; }

}  // namespace emulation

inline void __syncthreads() { emulation::block_barrier->arrive_and_wait(); }
inline void __syncwarp() { emulation::own_warp().barrier.arrive_and_wait(); }

inline float __shfl_xor_sync(unsigned, float v, int mask) {
  emulation::Warp& warp = emulation::own_warp();
  const unsigned lane = threadIdx.x % 32;
  warp.values[lane] = v;
  warp.barrier.arrive_and_wait();
  const float other = warp.values[lane ^ unsigned(mask)];
  warp.barrier.arrive_and_wait();
  return other;
}

inline long long atomicMin(long long* to, long long value) {
  std::atomic_ref<long long> shared(*to);
  long long before = shared;
  while (value < before && !shared.compare_exchange_weak(before, value)) {
  }
  return before;
}

namespace fastndsm::cuda {
alignas(16) float shared[58 * 1024];  // what a kernel's own declaration of it refers to
}

namespace emulation {

// kernel<<<blocks, threads>>>(arguments...), shared memory holding NaN before.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, const Arguments&... arguments) {
  for (unsigned block = 0; block < blocks; ++block) {
    std::fill(std::begin(fastndsm::cuda::shared), std::end(fastndsm::cuda::shared), std::numeric_limits<float>::quiet_NaN());
    blockDim.x = threads;
    block_barrier = std::make_unique<std::barrier<>>(threads);
    warps.clear();
    for (unsigned i = 0; i < threads; i += 32) warps.push_back(std::make_unique<Warp>());
    std::vector<std::thread> running;
    for (unsigned i = 0; i < threads; ++i) {
      running.emplace_back([=, &arguments...] {
        threadIdx.x = i, blockIdx.x = block;
        kernel(arguments...);
      });
    }
    for (std::thread& thread : running) thread.join();
  }
}

}  // namespace emulation
