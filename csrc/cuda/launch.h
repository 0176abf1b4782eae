// The kernels as the ops call them: no PyTorch, and nothing of them in nvcc's way. Each returns what the launch returned.
#pragma once

#include <cuda_runtime_api.h>

#include "arguments.h"

namespace fastndsm::cuda {

// Whether the register kernels serve dimension and kind, and to which dimension they pad; 0 if they do not.
int register_dimension(Kind kind, int dim);

// Whether the tiled kernels find room for it: d up to 3072, spherical and diagonal covariances.
bool tiled_fits(Kind kind, int dim, int n_components, bool target);

// Numbers in the block of a mixture's parameters.
int64_t block_size(Kind kind, int n_components, int padded);

cudaError_t pack(const Packing&, cudaStream_t);
cudaError_t simulate(const Noising&, cudaStream_t);
cudaError_t simulate_tiled(const Noising&, cudaStream_t);
cudaError_t reverse_steps(const Reverse&, cudaStream_t);
cudaError_t reverse_steps_tiled(const Reverse&, cudaStream_t);

bool sample_mlp_fits(const MlpSampling&);
cudaError_t sample_mlp(const MlpSampling&, cudaStream_t);

}  // namespace fastndsm::cuda
