// What the kernels are given: plain pointers to device memory. All arrays are contiguous, float32 unless another type is written.
#pragma once

#include <cstdint>

#include "../include/reverse.h"

namespace fastndsm::cuda {

enum class Kind { spherical, diag, tied, full };

// A mixture as one block of memory, which `parameters.h` lays out.
struct MixtureBlock {
  Kind kind;
  int n_components;  // those of the mixture; the block may hold more
  int dim;
  const float* parameters;
};

// A mixture's tensors and where its block is to be written.
struct Packing {
  Kind kind;
  int n_components, dim;
  const float *means, *precisions, *log_scale;
  float* parameters;
};

// Parameters of a network in one block: for each layer weights as [outputs / 8][inputs / 16][8 outputs][4][2][2], of inputs
// 8 j + 2 i + k of the 16 at [i][j][k], then biases; padded with zeros.
struct MlpSampling {
  MixtureBlock mixture;
  const float* coefficients;
  int n_steps;
  int64_t seed, first_path, rows;
  const int64_t* bounds;  // [M + 1]
  int n_evaluations;
  const Evaluation<float>* evaluations;  // [M]
  float feature_scale;
  const float* network;
  int network_floats, n_hidden, width, inputs;  // hidden layers all of one width, 64 or 128
  const float *scales, *shifts;  // [M, n_hidden * width]
  const float* y;
  float* out;
  int64_t* failed;  // one number, M before
};

}  // namespace fastndsm::cuda
