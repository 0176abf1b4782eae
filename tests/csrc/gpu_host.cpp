// What the threads of a GPU do, here on the host: the kernels of csrc/cuda, emulated. Called from Python by plain pointers.
#include "cuda_emulation.h"
// the above first
#include "../../csrc/cuda/pack.cuh"
#include "../../csrc/cuda/sample_mlp.cuh"

extern "C" {

struct Sampling {
  const float *parameters, *coefficients, *evaluations, *network, *scales, *shifts, *y;
  const int64_t* bounds;
  float* out;
  int64_t* failed;
  int64_t kind, n_components, dim, n_steps, n_evaluations, seed, first_path, rows, network_floats, n_hidden, width, inputs;
  int64_t resident;
  double feature_scale;
};

void sample_mlp_kernel(const Sampling* a) {
  using namespace fastndsm::cuda;
  const int d = int(a->dim);
  const MlpSampling arguments{{static_cast<Kind>(a->kind), int(a->n_components), d, a->parameters},
                              a->coefficients,
                              int(a->n_steps),
                              a->seed,
                              a->first_path,
                              a->rows,
                              a->bounds,
                              int(a->n_evaluations),
                              reinterpret_cast<const fastndsm::Evaluation<float>*>(a->evaluations),
                              float(a->feature_scale),
                              a->network,
                              int(a->network_floats),
                              int(a->n_hidden),
                              int(a->width),
                              int(a->inputs),
                              a->scales,
                              a->shifts,
                              a->y,
                              a->out,
                              a->failed};
  const unsigned blocks = unsigned((a->rows + kTile - 1) / kTile);
  const auto launch = [&](auto kind) {
    constexpr fastndsm::Covariance k = kind;
    auto kernel = a->resident ? sample_kernel<128, true, k> : sample_kernel<128, false, k>;
    if (a->width == 64) kernel = a->resident ? sample_kernel<64, true, k> : sample_kernel<64, false, k>;
    emulation::launch(kernel, blocks, unsigned(kSamplerThreads), arguments);
  };
  using fastndsm::Covariance;
  if (a->kind == int(Covariance::spherical)) return launch(std::integral_constant<Covariance, Covariance::spherical>{});
  if (a->kind == int(Covariance::diag)) return launch(std::integral_constant<Covariance, Covariance::diag>{});
  launch(std::integral_constant<Covariance, Covariance::full>{});
}

struct Packing {
  const float *means, *precisions, *log_scale;
  float* parameters;
  int64_t kind, n_components, dim;
};

// Fills parameters, if given; their number.
int64_t pack_kernel(const Packing* a) {
  using namespace fastndsm;
  const int n = int(a->n_components), d = int(a->dim);
  const cuda::Packing arguments{
      static_cast<cuda::Kind>(a->kind), n, d, a->means, a->precisions, a->log_scale, a->parameters};
  auto kernel = cuda::pack_kernel<Covariance::full>;
  int64_t size = block_size<Covariance::full>(n, d, arguments.kind == cuda::Kind::tied);
  if (arguments.kind == cuda::Kind::spherical) {
    kernel = cuda::pack_kernel<Covariance::spherical>, size = block_size<Covariance::spherical>(n, d, false);
  } else if (arguments.kind == cuda::Kind::diag) {
    kernel = cuda::pack_kernel<Covariance::diag>, size = block_size<Covariance::diag>(n, d, false);
  }
  const unsigned blocks = unsigned((size + cuda::kPackThreads - 1) / cuda::kPackThreads);
  if (a->parameters) emulation::launch(kernel, blocks, unsigned(cuda::kPackThreads), arguments);
  return size;
}

// Words of the counters (c0, c1, step, block), as one thread draws them.
void words(uint32_t c0, uint32_t c1, uint32_t step, uint32_t block, int64_t seed, uint32_t* out) {
  uint32_t w[1][4], v[1][4], path[1] = {c0}, at[1] = {block};
  const fastndsm::NoiseStream noise(seed, 0);
  fastndsm::PathCounters<uint32_t>(c0, c1).at(step, noise.key).words(block, w);
  fastndsm::CommonWords(c1, step, noise.key).words(path, at, v);
  for (int i = 0; i < 4; ++i) out[i] = w[0][i], out[4 + i] = v[0][i];
}
}
