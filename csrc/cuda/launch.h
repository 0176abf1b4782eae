// The kernels as the ops call them: no PyTorch, and nothing of them in nvcc's way. Each returns what the launch returned.
#pragma once

#include <cuda_runtime_api.h>

#include "arguments.h"

namespace fastndsm::cuda {

// Numbers in the block of a mixture's parameters.
int64_t block_size(Kind kind, int n_components, int dim);

cudaError_t pack(const Packing&, cudaStream_t);

bool sample_mlp_fits(const MlpSampling&);
cudaError_t sample_mlp(const MlpSampling&, cudaStream_t);

}  // namespace fastndsm::cuda
