// What the kernels are given: plain pointers to device memory. All arrays are contiguous, float32 unless another type is written.
#pragma once

#include <cstdint>

#include "../include/reverse.h"

namespace fastndsm::cuda {

constexpr uint32_t kNoisingStream = 0;

enum class Kind { spherical, diag, tied, full };

// A mixture as one block of memory, which `parameters.h` lays out, for dimension `padded`.
struct MixtureBlock {
  Kind kind;
  int n_components;  // those of the mixture; the block may hold more
  int dim, padded;
  const float* parameters;
  int floats;  // in the block
};

// A mixture's tensors and where its block is to be written.
struct Packing {
  Kind kind;
  int n_components, dim, padded;
  const float *means, *precisions, *log_scale;
  float* parameters;
};

struct Noising {
  MixtureBlock mixture;
  const float* drift_scale;  // [N]
  const float* noise_std;
  int64_t seed, first_path, rows, n_records;
  const float* x0;  // [rows, dim]
  const int64_t* steps;  // [rows, n_records], ascending in each row
  const int64_t* records;  // [rows, n_records]: where in the row of the outputs the record goes; or null, as they are
  const int64_t* order;  // [rows]: which row the i-th sample is, rows with the most steps first
  float *x, *mean, *noise;  // [rows, n_records, dim]; mean and noise, of one record, may be null
  float *target, *variance;  // not null: the path estimator; variance [rows, n_records, 1] spherical, else like x
  const float *rotations, *rates;  // tied, full: the principal axes that the target takes, see AxesView
  bool mirrored;  // outputs have 2 rows then, the antithetic ones last
};

// As reverse.h has it.
struct Reverse {
  MixtureBlock mixture;
  const float* coefficients;  // [6, N]
  int n_steps;
  int64_t seed, first_path, rows;
  const int64_t* bounds;  // first and last; on the device, where a graph that is launched again finds others
  const float *y, *held, *slope;  // [rows, dim]; slope may be null
  const float* own;  // [rows], rates; or null
  float* out;
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
