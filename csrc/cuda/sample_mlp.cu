// Launches of the fused sampler: how many samples a block, and whether the weights are on chip.
#include "sample_mlp.cuh"

#include "launch.h"

namespace fastndsm::cuda {
namespace {

struct Shape {
  bool resident;
  int tile;  // samples a block; 0: there is no room
  size_t bytes;
};

// The largest tile beside which the weights have room, else the largest without them; a smaller one where the samples
// do not make a block for every multiprocessor.
Shape shape_for(const MlpSampling& a) {
  int device = 0, most = 0, multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return {false, 0, 0};
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  int largest = 8192 / a.width;
  while (largest > 32 && (a.rows + largest - 1) / largest < multiprocessors) largest /= 2;
  const size_t each =
      a.width + a.inputs + padded8(a.mixture.dim) + record_floats(a.mixture.n_components + 3, a.mixture.dim);
  for (const bool resident : {true, false}) {
    for (int tile = largest; tile >= 32; tile /= 2) {
      const size_t bytes = sizeof(float) * ((resident ? a.network_floats : 0) + tile * each);
      if (bytes <= size_t(most)) return {resident, tile, bytes};
    }
  }
  return {false, 0, 0};
}

template <int kWidth, bool resident>
cudaError_t launch(const MlpSampling& a, Shape shape, cudaStream_t stream) {
  const auto kernel = sample_kernel<kWidth, resident>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shape.bytes));
  if (error != cudaSuccess) return error;
  const int threads = shape.tile / kSamples * (kWidth / kOut);
  kernel<<<dim3(unsigned((a.rows + shape.tile - 1) / shape.tile)), threads, shape.bytes, stream>>>(a, shape.tile);
  return cudaGetLastError();
}

}  // namespace

bool sample_mlp_fits(const MlpSampling& a) { return (a.width == 64 || a.width == 128) && shape_for(a).tile > 0; }

cudaError_t sample_mlp(const MlpSampling& a, cudaStream_t stream) {
  const Shape shape = shape_for(a);
  if (shape.tile == 0) return cudaErrorInvalidConfiguration;
  if (a.width == 64) return shape.resident ? launch<64, true>(a, shape, stream) : launch<64, false>(a, shape, stream);
  if (a.width == 128) return shape.resident ? launch<128, true>(a, shape, stream) : launch<128, false>(a, shape, stream);
  return cudaErrorInvalidValue;
}

}  // namespace fastndsm::cuda
