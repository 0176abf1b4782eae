// Launches of the fused sampler, with the weights on chip where there is room.
#include "sample_mlp.cuh"

#include "launch.h"

namespace fastndsm::cuda {
namespace {

struct Shape {
  bool resident;
  size_t bytes;  // 0: there is no room
};

Shape shape_for(const MlpSampling& a) {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return {false, 0};
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  for (const bool resident : {true, false}) {
    const int floats = (resident ? a.network_floats : 0) + sampler_floats(a.width, a.inputs, a.mixture.dim);
    const size_t bytes = sizeof(float) * size_t(floats);
    if (bytes <= size_t(most)) return {resident, bytes};
  }
  return {false, 0};
}

template <int kWidth, bool resident, Covariance kind>
cudaError_t launch(const MlpSampling& a, size_t bytes, cudaStream_t stream) {
  const auto kernel = sample_kernel<kWidth, resident, kind>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes));
  if (error != cudaSuccess) return error;
  kernel<<<dim3(unsigned((a.rows + kTile - 1) / kTile)), kSamplerThreads, bytes, stream>>>(a);
  return cudaGetLastError();
}

template <int kWidth, bool resident>
cudaError_t launch(const MlpSampling& a, size_t bytes, cudaStream_t stream) {
  switch (a.mixture.kind) {
    case Kind::spherical: return launch<kWidth, resident, Covariance::spherical>(a, bytes, stream);
    case Kind::diag: return launch<kWidth, resident, Covariance::diag>(a, bytes, stream);
    default: return launch<kWidth, resident, Covariance::full>(a, bytes, stream);
  }
}

}  // namespace

bool sample_mlp_fits(const MlpSampling& a) {
  return (a.width == 64 || a.width == 128) && a.mixture.dim <= kMostDim && shape_for(a).bytes > 0;
}

cudaError_t sample_mlp(const MlpSampling& a, cudaStream_t stream) {
  const auto [resident, bytes] = shape_for(a);
  if (bytes == 0) return cudaErrorInvalidConfiguration;
  if (a.width == 64) return resident ? launch<64, true>(a, bytes, stream) : launch<64, false>(a, bytes, stream);
  if (a.width == 128) return resident ? launch<128, true>(a, bytes, stream) : launch<128, false>(a, bytes, stream);
  return cudaErrorInvalidValue;
}

}  // namespace fastndsm::cuda
