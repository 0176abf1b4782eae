// The launch that packs a mixture.
#include "pack.cuh"

#include "launch.h"

namespace fastndsm::cuda {

int64_t block_size(Kind kind, int n_components, int dim) {
  switch (kind) {
    case Kind::spherical: return fastndsm::block_size<Covariance::spherical>(n_components, dim, false);
    case Kind::diag: return fastndsm::block_size<Covariance::diag>(n_components, dim, false);
    default: return fastndsm::block_size<Covariance::full>(n_components, dim, kind == Kind::tied);
  }
}

cudaError_t pack(const Packing& a, cudaStream_t stream) {
  const auto kernel = a.kind == Kind::spherical ? pack_kernel<Covariance::spherical>
                      : a.kind == Kind::diag    ? pack_kernel<Covariance::diag>
                                                : pack_kernel<Covariance::full>;
  const int64_t size = block_size(a.kind, a.n_components, a.dim);
  kernel<<<dim3(unsigned((size + kPackThreads - 1) / kPackThreads)), kPackThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace fastndsm::cuda
