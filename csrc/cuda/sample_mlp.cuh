// sample_mlp: the reverse process of a small network's score, all of it in one launch: evaluations of the network, and the
// steps of reverse.h between them.
//
// A block owns a tile of samples. Their activations lie in shared memory as [unit][sample]; a thread forms 8 outputs of 4
// samples, sums in registers, and the network's weights are in shared memory too where they fit (as [input][output]). The
// mixture, the noise and the update are one thread's for each sample.
#pragma once

#include "../include/mlp.h"
#include "../include/parameters.h"
#include "arguments.h"

namespace fastndsm::cuda {

constexpr int kOut = 8, kSamples = 4;  // outputs and samples of a thread

__host__ __device__ constexpr int padded8(int n) { return (n + 7) / 8 * 8; }

// A sample's own memory: the mixture's scratch, then y, grad log pi, what is held and its slope. Odd: threads use all banks.
__host__ __device__ int record_floats(int n_components, int dim) {
  const int resident = n_components < kResident ? n_components : kResident;
  return (2 * resident + 10 * dim) | 1;
}

__device__ MixtureView<float> view_of(const MixtureBlock& m) {
  const int d = m.dim, n = m.kind == Kind::full ? m.n_components : (m.n_components + 3) / 4 * 4;
  const float* p = m.parameters;
  if (m.kind == Kind::spherical) {
    return {Covariance::spherical, n, d, p, p + n * d, p + n * d + n, nullptr, nullptr, nullptr};
  }
  if (m.kind == Kind::diag) {
    return {Covariance::diag, n, d, nullptr, p + 3 * n * d, p + 4 * n * d, p, p + n * d, p + 2 * n * d};
  }
  return {Covariance::full, n, d, p, p + n * d, p + n * d + n * d * d, nullptr, nullptr, nullptr};
}

template <Covariance kind>
__device__ void mixture_score(const MixtureView<float>& m, float* scratch, const float* x, float* score) {
  const int64_t k = m.n_components < kResident ? m.n_components : kResident;
  MixtureScratch<float> parts;
  parts.weights = scratch, parts.products = scratch + k, parts.a = scratch + 2 * k;
  parts.r = parts.a + m.dim, parts.b = parts.r + m.dim, parts.s = parts.b + m.dim;
  parts.u = parts.s + m.dim, parts.w = parts.u + m.dim;
  MixtureTile<float, kind, false> tile(m, parts);
  tile.prepare(x, nullptr);
  tile.all_moments(x, nullptr, score, nullptr, nullptr);
}

__device__ __noinline__ void mixture_score(const MixtureView<float>& m, float* scratch, const float* x, float* score) {
  switch (m.kind) {
    case Covariance::spherical: return mixture_score<Covariance::spherical>(m, scratch, x, score);
    case Covariance::diag: return mixture_score<Covariance::diag>(m, scratch, x, score);
    default: return mixture_score<Covariance::full>(m, scratch, x, score);
  }
}

// sum[g][i] += sum_k w[k][g] h[k][i]; rows of w are w_stride apart, those of h the samples of the tile.
__device__ __forceinline__ void dense(const float* w, int w_stride, const float* h, int tile, int n_inputs,
                                      float (&sum)[kOut][kSamples]) {
#pragma unroll 4
  for (int k = 0; k < n_inputs; ++k) {
    const float4 x = *reinterpret_cast<const float4*>(h + k * tile);
    const float4 low = *reinterpret_cast<const float4*>(w + k * w_stride);
    const float4 high = *reinterpret_cast<const float4*>(w + k * w_stride + 4);
    const float row[kOut] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int g = 0; g < kOut; ++g) {
      sum[g][0] = fma(row[g], x.x, sum[g][0]), sum[g][1] = fma(row[g], x.y, sum[g][1]);
      sum[g][2] = fma(row[g], x.z, sum[g][2]), sum[g][3] = fma(row[g], x.w, sum[g][3]);
    }
  }
}

// The network on the tile's inputs [inputs, tile], by all threads of the block, to outputs [padded8(dim), tile].
template <int kWidth>
__device__ void network(const MlpSampling& a, const float* weights, int row, int tile, const float* inputs, float* h,
                        float* outputs) {
  const int quads = tile / kSamples, own = threadIdx.x % quads * kSamples, group = threadIdx.x / quads * kOut;
  const float *scale = a.scales + int64_t(row) * a.n_hidden * kWidth + group, *shift = a.shifts + (scale - a.scales);
  const float* source = inputs;
  int n_inputs = a.inputs;
  for (int l = 0; l < a.n_hidden; ++l) {
    const float *bias = weights + n_inputs * kWidth + group, *w = weights + group;
    float sum[kOut][kSamples];
#pragma unroll
    for (int g = 0; g < kOut; ++g) {
#pragma unroll
      for (int i = 0; i < kSamples; ++i) sum[g][i] = bias[g];
    }
    dense(w, kWidth, source + own, tile, n_inputs, sum);
#pragma unroll
    for (int g = 0; g < kOut; ++g) {
#pragma unroll
      for (int i = 0; i < kSamples; ++i) {
        const float step = silu(fused(scale[g], sum[g][i], shift[g]));
        sum[g][i] = n_inputs == kWidth ? source[(group + g) * tile + own + i] + step : step;
      }
    }
    __syncthreads();  // all have read what is written over now
#pragma unroll
    for (int g = 0; g < kOut; ++g) {
      *reinterpret_cast<float4*>(h + (group + g) * tile + own) = make_float4(sum[g][0], sum[g][1], sum[g][2], sum[g][3]);
    }
    __syncthreads();
    weights += (n_inputs + 1) * kWidth, scale += kWidth, shift += kWidth;
    n_inputs = kWidth, source = h;
  }
  const int n_outputs = padded8(a.mixture.dim);
  if (group < n_outputs) {
    float sum[kOut][kSamples];
#pragma unroll
    for (int g = 0; g < kOut; ++g) {
#pragma unroll
      for (int i = 0; i < kSamples; ++i) sum[g][i] = weights[kWidth * n_outputs + group + g];
    }
    dense(weights + group, n_outputs, h + own, tile, kWidth, sum);
#pragma unroll
    for (int g = 0; g < kOut; ++g) {
      *reinterpret_cast<float4*>(outputs + (group + g) * tile + own) =
          make_float4(sum[g][0], sum[g][1], sum[g][2], sum[g][3]);
    }
  }
  __syncthreads();
}

template <int kWidth, bool resident>
__global__ void __launch_bounds__(256, 1) sample_kernel(const __grid_constant__ MlpSampling a, int tile) {
  extern __shared__ __align__(16) float shared[];
  float* h = shared + (resident ? a.network_floats : 0);
  float* inputs = h + kWidth * tile;
  float* outputs = inputs + a.inputs * tile;
  const int d = a.mixture.dim, record = record_floats(a.mixture.n_components + 3, d), t = threadIdx.x;
  const float* weights = resident ? shared : a.network;
  if constexpr (resident) {
    for (int i = t; i < a.network_floats; i += blockDim.x) shared[i] = a.network[i];
  }
  const int64_t row = int64_t(blockIdx.x) * tile + t;
  const bool active = t < tile && row < a.rows;
  float* scratch = outputs + padded8(d) * tile + t * record;
  float *y = scratch + record - 4 * d, *reference = y + d, *held = reference + d, *slope = held + d;
  if (t < tile) {
    for (int j = 0; j < d; ++j) y[j] = active ? a.y[row * d + j] : 0.0f, held[j] = 0.0f;
  }
  const MixtureView<float> mixture = view_of(a.mixture);
  const ReverseTable<float> table{a.coefficients, a.n_steps};
  const NoiseStream noise(a.seed, kReverseStream);
  uint32_t c0, c1;
  path_words(a.first_path + row, kReverseStream, c0, c1);
  const PathCounters<uint32_t> path(c0, c1);
  int failed = a.n_evaluations;
  float rate = 0.0f;
  for (int k = 0; k < a.n_evaluations; ++k) {
    if (t < tile) {
      mixture_score(mixture, scratch, y, reference);
      for (int j = 0; j < d; ++j) {
        inputs[j * tile + t] = y[j];
        if (a.inputs > d) inputs[(d + j) * tile + t] = a.feature_scale * reference[j];
      }
    }
    __syncthreads();
    network<kWidth>(a, weights, k, tile, inputs, h, outputs);
    if (t < tile) {
      const Evaluation<float> now = a.evaluations[k];
      float sum = 0.0f;
      for (int j = 0; j < d; ++j) {
        const float residual = now.residual(reference[j], outputs[j * tile + t]);
        sum = fused(residual, residual + reference[j], sum);
      }
      const float before = rate;
      rate = now.rate(sum, d);
      for (int j = 0; j < d; ++j) {
        const float current = now.current(y[j], reference[j], now.residual(reference[j], outputs[j * tile + t]));
        slope[j] = now.inverse_gap != 0.0f ? now.slope(y[j], current, held[j], before) : 0.0f;
        held[j] = fused(rate, y[j], current);
      }
      const int last = int(a.bounds[k + 1]);
      for (int n = int(a.bounds[k]) - 1; n >= last; --n) {
        const ReverseStep<float> step = table[n];
        const SampleStep<float> own = now.limit != 0.0f ? step.rated(rate) : step.unrated();
        if (step.drift != 0.0f) mixture_score(mixture, scratch, y, reference);
        for (int j0 = 0; j0 < d; j0 += 4) {
          float z[4] = {0.0f, 0.0f, 0.0f, 0.0f};
          if (step.std != 0.0f) padded_normals<4, float>(path.at(static_cast<uint32_t>(n), noise.key), j0, d, z);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const int j = j0 + i;
            if (j >= d) continue;
            const float score = step.drift != 0.0f ? reference[j] : 0.0f;
            y[j] = own.next(y[j], score, own.network(held[j], slope[j]), z[i]);
          }
        }
      }
      float none = 0.0f;
      for (int j = 0; j < d; ++j) none = fma(y[j], 0.0f, none);  // NaN from NaN and infinity
      if (none != 0.0f && k < failed) failed = k;
    }
  }
  if (active) {
    for (int j = 0; j < d; ++j) a.out[row * d + j] = y[j];
    if (failed < a.n_evaluations) atomicMin(reinterpret_cast<long long*>(a.failed), static_cast<long long>(failed));
  }
}

}  // namespace fastndsm::cuda
