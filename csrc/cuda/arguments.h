// What the kernels are given: plain pointers to device memory. All arrays are contiguous, float32 unless another type is written.
#pragma once

#include <cstdint>

namespace fastndsm::cuda {

constexpr uint32_t kNoisingStream = 0, kReverseStream = 2;

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
  int64_t seed, first_path, rows;
  const float* x0;  // [rows, dim]
  const int64_t* steps;  // [rows]
  const int64_t* order;  // [rows]: which row the i-th sample is, rows with the most steps first
  float *x, *mean, *noise;  // like x0; mean and noise may be null
  float *target, *variance;  // not null: the path estimator; variance [rows, 1] spherical, else like x0
  const float *rotations, *rates;  // tied, full: the principal axes that the target takes, see AxesView
  bool mirrored;  // outputs have 2 rows then, the antithetic ones last
};

struct ReverseStep {
  MixtureBlock mixture;
  const float* drift_scale;
  const float* noise_std;
  int64_t seed, first_path, rows;
  const int64_t* step;  // one number, on the device
  const float *y, *score;
  float* out;
  bool ode;
};

// Parameters of a network in one block: for each layer weights packed in groups of 8 outputs, then biases padded to 8.
struct MlpSampling {
  MixtureBlock mixture;
  const float* drift_scale;
  const float* noise_std;
  const float* inverse_std;  // or null
  float feature_scale;
  int n_steps;
  int64_t seed, first_path, rows;
  const float* network;
  int network_floats, n_hidden, width, inputs;  // hidden layers all of one width, 64 or 128
  const float *scales, *shifts;  // [N, n_hidden * width]
  const float* y;
  float* out;
  int64_t* failed;  // one number, -1 before
  bool ode;
};

}  // namespace fastndsm::cuda
