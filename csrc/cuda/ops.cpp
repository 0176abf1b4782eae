// The op torch.ops.fastndsm_cuda.sample_mlp: from tensors to the launches of launch.h. The mixture is packed first, see
// parameters.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <string>
#include <tuple>

#include "launch.h"

namespace fastndsm::cuda {
namespace {

Kind kind_of(const std::string& name) {
  if (name == "spherical") return Kind::spherical;
  if (name == "diag") return Kind::diag;
  if (name == "tied") return Kind::tied;
  TORCH_CHECK_VALUE(name == "full", "covariance_type: expected spherical, diag, tied or full, found ", name);
  return Kind::full;
}

void check(const char* name, const at::Tensor& t, at::ScalarType type, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(t.is_cuda() && t.is_contiguous() && t.scalar_type() == type && t.sizes() == shape, name,
                    ": expected a contiguous CUDA tensor of ", type, " and shape ", shape, ", found ", t.scalar_type(),
                    " of shape ", t.sizes(), " on ", t.device());
}

void check_launch(const char* op, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, op, ": the kernel could not be launched: ", cudaGetErrorString(error));
}

cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// A mixture's block, and the memory that it lies in.
class PackedMixture {
 public:
  PackedMixture(const at::Tensor& means, const at::Tensor& precisions, const at::Tensor& log_scale, const std::string& name,
                int64_t dim) {
    const Kind kind = kind_of(name);
    const int64_t n = means.size(0);
    check("means", means, at::kFloat, {n, dim});
    switch (kind) {
      case Kind::spherical: check("precisions", precisions, at::kFloat, {n}); break;
      case Kind::diag: check("precisions", precisions, at::kFloat, {n, dim}); break;
      case Kind::tied: check("precisions", precisions, at::kFloat, {dim, dim}); break;
      case Kind::full: check("precisions", precisions, at::kFloat, {n, dim, dim}); break;
    }
    check("log_scale", log_scale, at::kFloat, {n});
    memory_ = at::empty({block_size(kind, int(n), int(dim))}, means.options());
    const Packing a{kind,
                    int(n),
                    int(dim),
                    means.const_data_ptr<float>(),
                    precisions.const_data_ptr<float>(),
                    log_scale.const_data_ptr<float>(),
                    memory_.mutable_data_ptr<float>()};
    check_launch("pack", pack(a, stream()));
    block_ = {kind, a.n_components, a.dim, a.parameters};
  }

  const MixtureBlock& block() const { return block_; }

 private:
  at::Tensor memory_;
  MixtureBlock block_;
};

// y_0, and the first evaluation after which a value was not finite, M if there is none.
std::tuple<at::Tensor, at::Tensor> sample_mlp_op(const at::Tensor& y, const at::Tensor& network, int64_t n_hidden,
                                                 int64_t width, int64_t inputs, const at::Tensor& scales,
                                                 const at::Tensor& shifts, double feature_scale, const at::Tensor& bounds,
                                                 const at::Tensor& coefficients, const at::Tensor& evaluations,
                                                 const at::Tensor& means, const at::Tensor& precisions,
                                                 const at::Tensor& log_scale, const std::string& kind, int64_t seed,
                                                 int64_t first_path) {
  const c10::cuda::CUDAGuard guard(y.device());
  const int64_t d = y.size(1), n_evaluations = evaluations.size(0), outputs = (d + 7) / 8 * 8;
  check("y", y, at::kFloat, {y.size(0), d});
  check("network", network, at::kFloat,
        {((inputs + 15) / 16 * 16 + 1) * width + (n_hidden - 1) * (width + 1) * width + (width + 1) * outputs});
  check("scales", scales, at::kFloat, {n_evaluations, n_hidden * width});
  check("shifts", shifts, at::kFloat, scales.sizes());
  check("bounds", bounds, at::kLong, {n_evaluations + 1});
  check("coefficients", coefficients, at::kFloat, {6, coefficients.size(1)});
  check("evaluations", evaluations, at::kFloat, {n_evaluations, 8});
  TORCH_CHECK_VALUE(inputs == d || inputs == 2 * d, "inputs: expected ", d, " or ", 2 * d, ", found ", inputs);
  at::Tensor out = at::empty(y.sizes(), y.options());
  at::Tensor failed = at::full({}, n_evaluations, y.options().dtype(at::kLong));
  const PackedMixture mixture(means, precisions, log_scale, kind, d);
  const MlpSampling a{mixture.block(),
                      coefficients.const_data_ptr<float>(),
                      int(coefficients.size(1)),
                      seed,
                      first_path,
                      y.size(0),
                      bounds.const_data_ptr<int64_t>(),
                      int(n_evaluations),
                      reinterpret_cast<const Evaluation<float>*>(evaluations.const_data_ptr<float>()),
                      float(feature_scale),
                      network.const_data_ptr<float>(),
                      int(network.numel()),
                      int(n_hidden),
                      int(width),
                      int(inputs),
                      scales.const_data_ptr<float>(),
                      shifts.const_data_ptr<float>(),
                      y.const_data_ptr<float>(),
                      out.mutable_data_ptr<float>(),
                      failed.mutable_data_ptr<int64_t>()};
  TORCH_CHECK_NOT_IMPLEMENTED(sample_mlp_fits(a),
                              "sample_mlp: expected at most 32 dimensions, and room for the activations in "
                              "shared memory, found ",
                              d, " dimensions and a width of ", width);
  if (y.size(0) > 0) check_launch("sample_mlp", sample_mlp(a, stream()));
  return {out, failed};
}

}  // namespace

TORCH_LIBRARY(fastndsm_cuda, m) {
  m.def(
      "sample_mlp(Tensor y, Tensor network, int n_hidden, int width, int inputs, Tensor scales, Tensor shifts, "
      "float feature_scale, Tensor bounds, Tensor coefficients, Tensor evaluations, Tensor means, "
      "Tensor precisions, Tensor log_scale, str kind, int seed, int first_path) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastndsm_cuda, CUDA, m) { m.impl("sample_mlp", sample_mlp_op); }

}  // namespace fastndsm::cuda
