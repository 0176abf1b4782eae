// sample_mlp: the reverse process of a small network's score, all of it in one launch: evaluations of the network, and the
// steps of reverse.h between them.
//
// A block owns a tile of samples. The network's products are tensor cores', of numbers split into two of tf32 each, x =
// high + low: high high + (low high + high low) is float32's product up to 2^-20 of it. A warp forms the sums of a
// quarter of the units for half of the samples, and keeps them for the next layer's residual; activations go from warp to warp
// through shared memory, where the weights are too if they fit. Mixture, noise and update are eight threads' for each
// sample: four dimensions each, and as many components at a time as there are threads left.
//
// Warps issue 733 instructions for a sample and evaluation of 3 x 128 units in the plane, 2,072 where multiply-adds were
// float32's and the mixture one thread's (`python -m benchmarks.gpu.predict MLP`).
#pragma once

#include "../include/parameters.h"
#include "arguments.h"

namespace fastndsm::cuda {

constexpr int kTile = 32;  // samples a block; fixed, so that no sum depends on how many samples there are
constexpr int kSamplerWarps = 8, kSamplerThreads = 32 * kSamplerWarps;
constexpr int kShare = kSamplerThreads / kTile;  // threads a sample
constexpr int kOwn = 4;  // dimensions a thread
constexpr int kMostDim = kShare * kOwn;

__host__ __device__ constexpr int padded8(int n) { return (n + 7) / 8 * 8; }
__host__ __device__ constexpr int padded16(int n) { return (n + 15) / 16 * 16; }

#if defined(__CUDACC__)
// sum += a b for a [16, 8], b [8, 8] in tf32, sum [16, 8]; with g = lane / 4 and t = lane % 4 a thread has a of (g, t),
// (g + 8, t), (g, t + 4), (g + 8, t + 4), b of (t, g), (t + 4, g), sum of (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1).
__device__ __forceinline__ void multiply_add(const float (&a)[4], const float (&b)[2], float (&sum)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}

// 2^x and 1 / x, each in one instruction, to two and one units of the last place; denormal numbers are 0.
__device__ __forceinline__ float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float inverse_of(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

// ---- the network ------------------------------------------------------------------------------------------------

// The part of x that tf32 holds.
__device__ __forceinline__ float high_part(float x) { return __uint_as_float(__float_as_uint(x) & 0xffffe000u); }

__device__ __forceinline__ float silu_of(float x) { return x * inverse_of(1.0f + exp2_of(-1.44269504088896340736f * x)); }

__device__ __forceinline__ void load4(const float* from, float (&to)[4]) {
  const float4 x = *reinterpret_cast<const float4*>(from);
  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}

// Activations [units, kTile] in shared memory, high parts and then low ones. They lie as a thread has its four sums of a
// product, and as one with the same lane takes its four factors for the next: in blocks of 8 units by 16 samples, units 2 t
// and 2 t + 1 of samples g and g + 8 side by side. The order of a sum's parts is free, so that 2 t is taken for t in it.
struct Activations {
  float* memory;
  int floats;  // of either part

  __device__ static int place(int sample, int unit) {
    const int block = unit / 8 * (kTile / 16) + sample / 16, lane = sample % 8 * 4 + unit % 8 / 2;
    return (block * 32 + lane) * 4 + unit % 2 * 2 + sample % 16 / 8;
  }
  __device__ void put(int sample, int unit, float x) const {
    const int at = place(sample, unit);
    memory[at] = high_part(x), memory[floats + at] = x - high_part(x);
  }
  // A thread's four sums, of units 8 i + 2 t and the next, of block m of samples.
  __device__ void put(int m, int i, int lane, const float (&x)[4]) const {
    float high[4], low[4];
#pragma unroll
    for (int c = 0; c < 4; ++c) high[c] = high_part(x[c]), low[c] = x[c] - high[c];
    float* const to = memory + ((i * (kTile / 16) + m) * 32 + lane) * 4;
    *reinterpret_cast<float4*>(to) = make_float4(high[0], high[2], high[1], high[3]);
    *reinterpret_cast<float4*>(to + floats) = make_float4(low[0], low[2], low[1], low[3]);
  }
  __device__ void get(int m, int i, int lane, float (&x)[4]) const {
    const float* const from = memory + ((i * (kTile / 16) + m) * 32 + lane) * 4;
    float high[4], low[4];
    load4(from, high), load4(from + floats, low);
#pragma unroll
    for (int c = 0; c < 4; ++c) x[c] = high[c % 2 * 2 + c / 2] + low[c % 2 * 2 + c / 2];
  }
};

// sum[n] += the products of block m of 16 samples with kN blocks of 8 units, over blocks of 16 inputs. Weights lie in blocks
// [units / 8][inputs / 16] of 8 units by 16 inputs, in which a thread has those of unit g and inputs 2 t, 2 t + 1, 2 t + 8
// and 2 t + 9; w is at the first of the kN.
template <int kN>
__device__ __forceinline__ void products(const float* w, Activations from, int m, int n_blocks, float (&sum)[kN][4]) {
  const float* a = from.memory + (m * 32 + threadIdx.x % 32) * 4;
  w += threadIdx.x % 32 * 4;
  float rest[kN][4] = {};  // low high + high low: small numbers are summed by themselves
#pragma unroll 1
  for (int block = 0; block < n_blocks; ++block) {
    float high[2][4], low[2][4];
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      const float* const at = a + (2 * block + s) * (kTile / 16) * 128;
      load4(at, high[s]), load4(at + from.floats, low[s]);
    }
    float strong[kN][4], weak[kN][4];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      float all[4];
      load4(w + (n * n_blocks + block) * 128, all);
#pragma unroll
      for (int i = 0; i < 4; ++i) strong[n][i] = high_part(all[i]), weak[n][i] = all[i] - strong[n][i];
    }
#pragma unroll
    for (int s = 0; s < 2; ++s) {
#pragma unroll
      for (int part = 0; part < 3; ++part) {
#pragma unroll
        for (int n = 0; n < kN; ++n) {
          const auto& y = part == 1 ? weak[n] : strong[n];
          const float other[2] = {y[2 * s], y[2 * s + 1]};
          multiply_add(part == 0 ? low[s] : high[s], other, part == 2 ? sum[n] : rest[n]);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kN; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[n][i] += rest[n][i];
  }
}

// The network on the tile's inputs, by all threads of the block, to outputs [kTile, padded8(dim)]; inputs and h are given up.
template <int kWidth>
__device__ __forceinline__ void network(const MlpSampling& a, const float* weights, int row, Activations inputs,
                                        const Activations& h, float* outputs) {
  constexpr int kM = kTile / 16, kN = kWidth / 8 / (kSamplerWarps / kM);  // blocks of samples; those of units a warp
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, pair = lane % 4 * 2;
  const int m = warp % kM, block = warp / kM * kN, first = block * 8 + pair, sample = m * 16 + lane / 4;
  const float *scale = a.scales + int64_t(row) * a.n_hidden * kWidth + first, *shift = a.shifts + (scale - a.scales);
  float own[kN][4];  // units first + 8 n and the next, of samples g and g + 8
#pragma unroll
  for (int n = 0; n < kN; ++n) {
    for (int i = 0; i < 4; ++i) own[n][i] = 0.0f;
    if (a.inputs == kWidth) inputs.get(m, block + n, lane, own[n]);
  }
  int n_inputs = a.inputs;
  for (int l = 0; l < a.n_hidden; ++l) {
    const int size = padded16(n_inputs);
    const float* const bias = weights + size * kWidth + first;
    float sum[kN][4];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[n][i] = bias[8 * n + i % 2];
    }
    const Activations from{l == 0 ? inputs.memory : h.memory, l == 0 ? inputs.floats : h.floats};
    products<kN>(weights + block * 8 * size, from, m, size / 16, sum);
    if (l > 0) __syncthreads();  // all have read what is written over now
#pragma unroll
    for (int n = 0; n < kN; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        own[n][i] += silu_of(fused(scale[8 * n + i % 2], sum[n][i], shift[8 * n + i % 2]));
      }
      h.put(m, block + n, lane, own[n]);
    }
    __syncthreads();
    weights += (size + 1) * kWidth, scale += kWidth, shift += kWidth;
    n_inputs = kWidth;
  }
  const int n_outputs = padded8(a.mixture.dim);
  if (const int unit = warp / kM * 8; unit < n_outputs) {
    const float* const bias = weights + kWidth * n_outputs + unit + pair;
    float sum[1][4] = {{bias[0], bias[1], bias[0], bias[1]}};
    products<1>(weights + unit * kWidth, h, m, kWidth / 16, sum);
    float* const to = outputs + sample * n_outputs + unit + pair;
    to[0] = sum[0][0], to[1] = sum[0][1];
    to[8 * n_outputs] = sum[0][2], to[8 * n_outputs + 1] = sum[0][3];
  }
  __syncthreads();
}

// ---- the mixture ------------------------------------------------------------------------------------------------

// The threads of a sample: `quads` of them have dimensions of their own, four each, and with the same dimensions there are
// kShare / quads, which have components of their own and the same of everything else.
struct Team {
  int dim, quads, first;  // first: of the own dimensions
  int component;  // which of the teams' components at a time is one's own

  __device__ explicit Team(int d) : dim(d) {
    quads = d <= kOwn ? 1 : d <= 2 * kOwn ? 2 : d <= 4 * kOwn ? 4 : 8;
    const int i = threadIdx.x % kShare;
    first = i % quads * kOwn, component = i / quads;
  }
  __device__ int components() const { return kShare / quads; }
  __device__ bool owns(int i) const { return first + i < dim; }
  // Over dimensions; every thread has the same sum, bit for bit, for the same numbers are added in pairs.
  __device__ float sum(float x) const {
    for (int by = 1; by < quads; by *= 2) x += __shfl_xor_sync(~0u, x, by);
    return x;
  }
};

// g_k = P_k (m_k - x) in the own dimensions, and the logit of component k in units of log 2.
template <Covariance kind>
__device__ __forceinline__ float component(const RegisterMixture<float>& m, const Team& team, int k, const float (&x)[kOwn],
                                           float (&g)[kOwn]) {
  constexpr float kHalfLog2e = 0.72134752044448170368f;
  const int d = team.dim, at = k * d + team.first;
  float square = 0.0f;
  if constexpr (kind == Covariance::full) {
    float difference[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) g[i] = 0.0f, difference[i] = team.owns(i) ? m.means[at + i] - x[i] : 0.0f;
#pragma unroll 1
    for (int quad = 0; quad < team.quads; ++quad) {
#pragma unroll
      for (int c = 0; c < kOwn; ++c) {
        const float other = __shfl_sync(~0u, difference[c], quad, team.quads);
        const int j = quad * kOwn + c;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          if (j < d && team.owns(i)) g[i] = fma(m.precisions[k * m.precision_stride + j * d + team.first + i], other, g[i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) square = fma(difference[i], g[i], square);
  } else {
    const float precision = kind == Covariance::spherical ? m.precisions[k] : 0.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      g[i] = 0.0f;
      if (!team.owns(i)) continue;
      if constexpr (kind == Covariance::spherical) {
        const float difference = m.means[at + i] - x[i];
        g[i] = precision * difference, square = fma(difference, g[i], square);
      } else {
        const float root = fma(m.roots[at + i], x[i], m.shifts[at + i]);
        g[i] = fma(-m.precisions[at + i], x[i], m.pulls[at + i]), square = fma(root, root, square);
      }
    }
  }
  return fma(kind == Covariance::diag ? -1.0f : -kHalfLog2e, team.sum(square), m.log_scale[k]);
}

// score = sum_k r_k g_k, by all threads of the warp.
template <Covariance kind>
__device__ __forceinline__ void mixture_score(const RegisterMixture<float>& m, const Team& team, int n,
                                              const float (&x)[kOwn], float (&score)[kOwn]) {
  float most = kLowestLogit<float>, total = 0.0f;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) score[i] = 0.0f;
#pragma unroll 1
  for (int k0 = 0; k0 < n; k0 += team.components()) {
    const int k = k0 + team.component;
    float g[kOwn], logit = component<kind>(m, team, k < n ? k : 0, x, g);
    if (k >= n) logit = kLowestLogit<float>;
    const float peak = logit > most ? logit : most, shrunk = exp2_nonpositive(most - peak);
    const float weight = k < n ? exp2_nonpositive(logit - peak) : 0.0f;
    most = peak, total = fma(total, shrunk, weight);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) score[i] = fma(weight, g[i], score[i] * shrunk);
  }
  float peak = most;
  for (int by = team.quads; by < kShare; by *= 2) peak = fastndsm::max(__shfl_xor_sync(~0u, peak, by), peak);
  const float shrunk = exp2_nonpositive(most - peak);
  total *= shrunk;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) score[i] *= shrunk;
  for (int by = team.quads; by < kShare; by *= 2) {
    total += __shfl_xor_sync(~0u, total, by);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) score[i] += __shfl_xor_sync(~0u, score[i], by);
  }
  const float inverse = 1.0f / total;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) score[i] *= inverse;
}

// ---- the sampler ------------------------------------------------------------------------------------------------

// Numbers in shared memory beside the weights.
__host__ __device__ constexpr int sampler_floats(int width, int inputs, int dim) {
  return kTile * (2 * width + 2 * padded16(inputs) + padded8(dim));
}

template <int kWidth, bool resident, Covariance kind>
__global__ void __launch_bounds__(kSamplerThreads, 1) sample_kernel(const __grid_constant__ MlpSampling a) {
  extern __shared__ __align__(16) float shared[];
  const int d = a.mixture.dim, n_inputs = padded16(a.inputs), n_outputs = padded8(d), t = threadIdx.x;
  float* const memory = shared + (resident ? a.network_floats : 0);
  const Activations h{memory, kTile * kWidth}, inputs{memory + 2 * kTile * kWidth, kTile * n_inputs};
  float* const outputs = inputs.memory + 2 * inputs.floats;
  const float* const weights = resident ? shared : a.network;
  if constexpr (resident) {
    for (int i = t; i < a.network_floats; i += kSamplerThreads) shared[i] = a.network[i];
  }
  for (int i = t; i < 2 * inputs.floats; i += kSamplerThreads) inputs.memory[i] = 0.0f;
  const int sample = t / kShare;
  const int64_t row = int64_t(blockIdx.x) * kTile + sample;
  const Team team(d);
  const bool writes = row < a.rows && team.component == 0;
  float y[kOwn], reference[kOwn], held[kOwn], slope[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    y[i] = row < a.rows && team.owns(i) ? a.y[row * d + team.first + i] : 0.0f, held[i] = 0.0f, slope[i] = 0.0f;
  }
  const RegisterMixture<float> mixture =
      register_mixture<kind>(a.mixture.parameters, a.mixture.n_components, d, a.mixture.kind == Kind::tied);
  const ReverseTable<float> table{a.coefficients, a.n_steps};
  const NoiseStream noise(a.seed, kReverseStream);
  uint32_t c0, c1;
  path_words(a.first_path + row, kReverseStream, c0, c1);
  const PathCounters<uint32_t> path(c0, c1);
  int k = -1, failed = a.n_evaluations;
  float rate = 0.0f;
  __syncthreads();  // the inputs are clear
  // From t_n to t_{n-1}. One place for the mixture and two uses, as the first step after an evaluation starts where that was.
  for (int n = int(a.bounds[0]), last = int(a.bounds[a.n_evaluations]); n > last; --n) {
    const ReverseStep<float> step = table[n - 1];
    const bool evaluates = n == int(a.bounds[k + 1]);
    if (evaluates || step.drift != 0.0f) mixture_score<kind>(mixture, team, a.mixture.n_components, y, reference);
    if (evaluates) {
      ++k;
      if (team.component == 0) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          if (!team.owns(i)) continue;
          inputs.put(sample, team.first + i, y[i]);
          if (a.inputs > d) inputs.put(sample, d + team.first + i, a.feature_scale * reference[i]);
        }
      }
      __syncthreads();
      network<kWidth>(a, weights, k, inputs, h, outputs);
      const Evaluation<float> now = a.evaluations[k];
      float residual[kOwn], sum = 0.0f;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        residual[i] = team.owns(i) ? now.residual(reference[i], outputs[sample * n_outputs + team.first + i]) : 0.0f;
        sum = fused(residual[i], residual[i] + reference[i], sum);
      }
      const float before = rate;
      rate = now.rate(team.sum(sum), d);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const float current = now.current(y[i], reference[i], residual[i]);
        slope[i] = now.inverse_gap != 0.0f ? now.slope(y[i], current, held[i], before) : 0.0f;
        held[i] = fused(rate, y[i], current);
      }
    }
    const SampleStep<float> own = a.evaluations[k].limit != 0.0f ? step.rated(rate) : step.unrated();
    float z[kOwn] = {0.0f, 0.0f, 0.0f, 0.0f};
    if (step.std != 0.0f) padded_normals<kOwn, float>(path.at(static_cast<uint32_t>(n - 1), noise.key), team.first, d, z);
    float none = 0.0f;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const float score = step.drift != 0.0f ? reference[i] : 0.0f;
      y[i] = team.owns(i) ? own.next(y[i], score, own.network(held[i], slope[i]), z[i]) : 0.0f;
      none = fma(y[i], 0.0f, none);  // NaN from NaN and infinity, which stay
    }
    if (none != 0.0f && k < failed) failed = k;
  }
  if (!writes) return;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (team.owns(i)) a.out[row * d + team.first + i] = y[i];
  }
  if (failed < a.n_evaluations) atomicMin(reinterpret_cast<long long*>(a.failed), static_cast<long long>(failed));
}

}  // namespace fastndsm::cuda
