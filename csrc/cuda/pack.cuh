// The block of a mixture's parameters from its tensors: a thread a number, in one launch, where ops on tensors would be many.
#pragma once

#include "../include/parameters.h"
#include "arguments.h"

namespace fastndsm::cuda {

constexpr int kPackThreads = 128;

template <Covariance kind>
__global__ void __launch_bounds__(kPackThreads) pack_kernel(const __grid_constant__ Packing a) {
  const bool tied = a.kind == Kind::tied;
  const int64_t i = int64_t(blockIdx.x) * kPackThreads + threadIdx.x;
  if (i >= block_size<kind>(a.n_components, a.dim, tied)) return;
  const MixtureTensors<float> mixture{a.n_components, a.dim, tied, a.means, a.precisions, a.log_scale};
  a.parameters[i] = parameter<kind>(mixture, i);
}

}  // namespace fastndsm::cuda
