// CUDA kernels on the host: the threads of a block take turns on one thread of the machine, each until it waits for others;
// one block after the other. Enough of the language for csrc/cuda/*.cuh; slow, and no evidence of speed or of what a GPU's
// memory model allows.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
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
inline Index threadIdx, blockIdx, blockDim;

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

// Where `count` threads wait for each other.
struct Barrier {
  unsigned count, arrived = 0, generation = 0;
};

constexpr size_t kStack = 1 << 17;

struct Thread {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  Barrier* waits = nullptr;  // and for which generation to pass
  unsigned generation = 0;
  bool ended = false;
};

struct Warp {
  Barrier barrier{32};
  float values[32][6];
};

inline std::vector<Thread> threads;
inline std::vector<Warp> warps;
inline Barrier block{0};
inline ucontext_t scheduler;
inline std::function<void()> body;

inline Warp& own_warp() { return warps[threadIdx.x / 32]; }

inline void wait(Barrier& barrier) {
  Thread& own = threads[threadIdx.x];
  if (++barrier.arrived == barrier.count) {
    barrier.arrived = 0, ++barrier.generation;
    return;
  }
  own.waits = &barrier, own.generation = barrier.generation;
  swapcontext(&own.context, &scheduler);
}

inline void run() {
  body();
  threads[threadIdx.x].ended = true;
}

inline void run_block(unsigned count) {
  if (threads.size() < count) threads = std::vector<Thread>(count);
  warps.assign((count + 31) / 32, {});
  block = {count};
  for (unsigned i = 0; i < count; ++i) {
    Thread& own = threads[i];
    own.waits = nullptr, own.ended = false;
    getcontext(&own.context);
    own.context.uc_stack.ss_sp = own.stack.data(), own.context.uc_stack.ss_size = own.stack.size();
    own.context.uc_link = &scheduler;
    makecontext(&own.context, run, 0);
  }
  for (unsigned left = count; left > 0;) {
    bool some = false;
    for (unsigned i = 0; i < count; ++i) {
      Thread& own = threads[i];
      if (own.ended || (own.waits && own.waits->generation == own.generation)) continue;
      own.waits = nullptr, threadIdx.x = i, some = true;
      swapcontext(&scheduler, &own.context);
      left -= own.ended;
    }
    if (!some) std::fputs("a block's threads wait for each other for ever\n", stderr), std::abort();
  }
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::block); }
inline void __syncwarp() { emulation::wait(emulation::own_warp().barrier); }

inline float __shfl_sync(unsigned, float v, int from, int width = 32) {
  emulation::Warp& warp = emulation::own_warp();
  const unsigned lane = threadIdx.x % 32;
  warp.values[lane][0] = v;
  __syncwarp();
  const float other = warp.values[lane / width * width + from % width][0];
  __syncwarp();
  return other;
}

inline float __shfl_xor_sync(unsigned mask, float v, int by) { return __shfl_sync(mask, v, int(threadIdx.x % 32) ^ by); }

inline long long atomicMin(long long* to, long long value) { return *to = std::min(*to, value); }

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

namespace fastndsm::cuda {

alignas(16) float shared[58 * 1024];  // what a kernel's own declaration of it refers to

inline float exp2_of(float x) { return std::exp2(x); }
inline float inverse_of(float x) { return 1.0f / x; }

// mma.sync.m16n8k8 of tf32: an operand's low 13 bits do not count. Sums run over k here, in no order that a GPU promises.
inline void multiply_add(const float (&a)[4], const float (&b)[2], float (&sum)[4]) {
  emulation::Warp& warp = emulation::own_warp();
  const int lane = int(threadIdx.x % 32), group = lane / 4, quarter = lane % 4;
  const auto cut = [](float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); };
  for (int i = 0; i < 4; ++i) warp.values[lane][i] = cut(a[i]);
  for (int i = 0; i < 2; ++i) warp.values[lane][4 + i] = cut(b[i]);
  __syncwarp();
  for (int i = 0; i < 4; ++i) {
    const int row = group * 4, column = (2 * quarter + i % 2) * 4;  // first lanes of a row of a, a column of b
    for (int k = 0; k < 8; ++k) {
      sum[i] += warp.values[row + k % 4][i / 2 + k / 4 * 2] * warp.values[column + k % 4][4 + k / 4];
    }
  }
  __syncwarp();
}

}  // namespace fastndsm::cuda

namespace emulation {

// kernel<<<blocks, threads>>>(arguments...), shared memory holding NaN before.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, const Arguments&... arguments) {
  blockDim.x = threads;
  body = [&] { kernel(arguments...); };
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    std::fill(std::begin(fastndsm::cuda::shared), std::end(fastndsm::cuda::shared),
              std::numeric_limits<float>::quiet_NaN());
    run_block(threads);
  }
}

}  // namespace emulation
