// The ops torch.ops.fastndsm_cuda: from tensors to the launches of launch.h. Mixtures are packed first, see parameters.h.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <optional>
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
                int64_t dim, int64_t padded) {
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
    memory_ = at::empty({block_size(kind, int(n), int(padded))}, means.options());
    const Packing a{kind,
                    int(n),
                    int(dim),
                    int(padded),
                    means.const_data_ptr<float>(),
                    precisions.const_data_ptr<float>(),
                    log_scale.const_data_ptr<float>(),
                    memory_.mutable_data_ptr<float>()};
    check_launch("pack", pack(a, stream()));
    block_ = {kind, a.n_components, a.dim, a.padded, a.parameters, int(memory_.numel())};
  }

  const MixtureBlock& block() const { return block_; }

 private:
  at::Tensor memory_;
  MixtureBlock block_;
};

// x and, as asked for, mean and noise of the last step ("transition"), or target and variance ("target", "mirrored").
std::tuple<at::Tensor, at::Tensor, at::Tensor> simulate_op(
    const at::Tensor& x0, const at::Tensor& steps, const std::optional<at::Tensor>& records, const at::Tensor& order,
    const at::Tensor& drift_scale, const at::Tensor& noise_std, const at::Tensor& means, const at::Tensor& precisions,
    const at::Tensor& log_scale, const std::string& kind, const std::optional<at::Tensor>& rotations,
    const std::optional<at::Tensor>& rates, int64_t padded, int64_t seed, int64_t first_path, const std::string& what,
    bool tiled) {
  const c10::cuda::CUDAGuard guard(x0.device());
  const int64_t rows = x0.size(0), d = x0.size(1), n_records = records ? records->size(1) : 1;
  check("x0", x0, at::kFloat, {rows, d});
  check("steps", steps, at::kLong, {rows, n_records});
  if (records) check("records", *records, at::kLong, {rows, n_records});
  check("order", order, at::kLong, {rows});
  check("drift_scale", drift_scale, at::kFloat, {drift_scale.numel()});
  check("noise_std", noise_std, at::kFloat, {drift_scale.numel()});
  const bool transition = what == "transition", mirrored = what == "mirrored", target = mirrored || what == "target";
  TORCH_CHECK_VALUE(transition || target || what == "state", "what: expected state, transition, target or mirrored, found ",
                    what);
  TORCH_CHECK_VALUE(target || n_records == 1, "records: expected with what target or mirrored, found ", what);
  const int64_t out_rows = rows * (mirrored ? 2 : 1);
  const auto like = [&](int64_t width) { return at::empty({out_rows * n_records, width}, x0.options()); };
  at::Tensor x = like(d), second, third;
  if (transition || target) second = like(d), third = like(transition || kind != "spherical" ? d : 1);
  const auto pointer = [](const at::Tensor& t, bool wanted) { return wanted ? t.mutable_data_ptr<float>() : nullptr; };
  const PackedMixture mixture(means, precisions, log_scale, kind, d, padded);
  const bool turned = target && (kind == "tied" || kind == "full");
  TORCH_CHECK_VALUE(!turned || (rotations && rates),
                    "rotations, rates: expected the principal axes of tied and full covariances, found None");
  if (turned) {
    check("rotations", *rotations, at::kFloat, precisions.sizes());
    check("rates", *rates, at::kFloat, precisions.sizes().slice(0, precisions.dim() - 1));
  }
  const Noising a{mixture.block(),
                  drift_scale.const_data_ptr<float>(),
                  noise_std.const_data_ptr<float>(),
                  seed,
                  first_path,
                  rows,
                  n_records,
                  x0.const_data_ptr<float>(),
                  steps.const_data_ptr<int64_t>(),
                  records ? records->const_data_ptr<int64_t>() : nullptr,
                  order.const_data_ptr<int64_t>(),
                  x.mutable_data_ptr<float>(),
                  pointer(second, transition),
                  pointer(third, transition),
                  pointer(second, target),
                  pointer(third, target),
                  turned ? rotations->const_data_ptr<float>() : nullptr,
                  turned ? rates->const_data_ptr<float>() : nullptr,
                  mirrored};
  if (rows > 0) check_launch("simulate", tiled ? simulate_tiled(a, stream()) : simulate(a, stream()));
  if (!second.defined()) second = at::empty({0}, x0.options()), third = at::empty({0}, x0.options());
  return {x, second, third};
}

at::Tensor reverse_op(const at::Tensor& y, const at::Tensor& held, const std::optional<at::Tensor>& slope,
                      const std::optional<at::Tensor>& rate, const at::Tensor& bounds, const at::Tensor& coefficients,
                      const at::Tensor& means, const at::Tensor& precisions, const at::Tensor& log_scale,
                      const std::string& kind, int64_t padded, int64_t seed, int64_t first_path, bool tiled) {
  const c10::cuda::CUDAGuard guard(y.device());
  check("y", y, at::kFloat, {y.size(0), y.size(1)});
  check("held", held, at::kFloat, y.sizes());
  if (slope) check("slope", *slope, at::kFloat, y.sizes());
  if (rate) check("rate", *rate, at::kFloat, {y.size(0)});
  check("bounds", bounds, at::kLong, {2});
  check("coefficients", coefficients, at::kFloat, {6, coefficients.size(1)});
  at::Tensor out = at::empty(y.sizes(), y.options());
  const PackedMixture mixture(means, precisions, log_scale, kind, y.size(1), padded);
  const Reverse a{mixture.block(),
                  coefficients.const_data_ptr<float>(),
                  int(coefficients.size(1)),
                  seed,
                  first_path,
                  y.size(0),
                  bounds.const_data_ptr<int64_t>(),
                  y.const_data_ptr<float>(),
                  held.const_data_ptr<float>(),
                  slope ? slope->const_data_ptr<float>() : nullptr,
                  rate ? rate->const_data_ptr<float>() : nullptr,
                  out.mutable_data_ptr<float>()};
  if (y.size(0) > 0) check_launch("reverse_steps", tiled ? reverse_steps_tiled(a, stream()) : reverse_steps(a, stream()));
  return out;
}

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
  const PackedMixture mixture(means, precisions, log_scale, kind, d, d);
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

int64_t block_size_op(const std::string& kind, int64_t n_components, int64_t padded) {
  return block_size(kind_of(kind), int(n_components), int(padded));
}

int64_t register_dimension_op(const std::string& kind, int64_t dim) {
  return dim > 32 ? 0 : register_dimension(kind_of(kind), int(dim));
}

bool tiled_fits_op(const std::string& kind, int64_t dim, int64_t n_components, bool target) {
  return dim <= 3072 && n_components <= 1 << 20 && tiled_fits(kind_of(kind), int(dim), int(n_components), target);
}

}  // namespace

TORCH_LIBRARY(fastndsm_cuda, m) {
  m.def(
      "simulate(Tensor x0, Tensor steps, Tensor? records, Tensor order, Tensor drift_scale, Tensor noise_std, Tensor "
      "means, Tensor "
      "precisions, "
      "Tensor log_scale, str kind, Tensor? rotations, Tensor? rates, int padded, int seed, int first_path, str what, bool "
      "tiled) -> (Tensor, Tensor, "
      "Tensor)");
  m.def(
      "reverse_steps(Tensor y, Tensor held, Tensor? slope, Tensor? rate, Tensor bounds, Tensor coefficients, Tensor means, "
      "Tensor precisions, Tensor log_scale, str kind, int padded, int seed, int first_path, bool tiled) -> Tensor");
  m.def(
      "sample_mlp(Tensor y, Tensor network, int n_hidden, int width, int inputs, Tensor scales, Tensor shifts, "
      "float feature_scale, Tensor bounds, Tensor coefficients, Tensor evaluations, Tensor means, "
      "Tensor precisions, Tensor log_scale, str kind, int seed, int first_path) -> (Tensor, Tensor)");
  m.def("block_size(str kind, int n_components, int padded) -> int", block_size_op);
  m.def("register_dimension(str kind, int dim) -> int", register_dimension_op);
  m.def("tiled_fits(str kind, int dim, int n_components, bool target) -> bool", tiled_fits_op);
}

TORCH_LIBRARY_IMPL(fastndsm_cuda, CUDA, m) {
  m.impl("simulate", simulate_op);
  m.impl("reverse_steps", reverse_op);
  m.impl("sample_mlp", sample_mlp_op);
}

}  // namespace fastndsm::cuda
