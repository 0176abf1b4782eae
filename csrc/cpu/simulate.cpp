// simulate, simulate_transition, simulate_target: whole trajectories in one call, each row with its own last step.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "schedule.h"

namespace fastndsm {
namespace {

struct Outputs {
  at::Tensor x, mean, noise, target, variance;
};

template <typename S>
void run(const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale, const at::Tensor& noise_std,
         const MixtureArgument<S>& mixture, const at::Tensor& seed, int64_t first_path, bool mirrored, Outputs& out) {
  const at::Tensor start = x0.contiguous(), counts = steps.contiguous();
  const at::Tensor a = drift_scale.contiguous(), s = noise_std.contiguous();
  const int64_t n_rows = x0.size(0), n_steps = a.size(0);
  const auto pointer = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<S>() : nullptr; };
  const ProcessView<S> process{mixture.view(), a.const_data_ptr<S>(), s.const_data_ptr<S>(),
                               NoiseStream(seed_value(seed), 0)};
  const Batch<S> batch{
      n_rows,         n_steps,           first_path,         start.const_data_ptr<S>(), counts.const_data_ptr<int64_t>(),
      pointer(out.x), pointer(out.mean), pointer(out.noise), pointer(out.target),       pointer(out.variance),
      mirrored};
  for (int64_t i = 0; i < n_rows; ++i) {
    TORCH_CHECK_VALUE(batch.steps[i] >= 0 && batch.steps[i] <= n_steps, "steps: expected values in 0..", n_steps,
                      ", found ", batch.steps[i]);
  }
  const Schedule schedule = schedule_of(process, batch);
  at::parallel_for(0, schedule.n_tiles(), 1, [&](int64_t begin, int64_t end) {
    const auto run = batch.target ? run_tiles<S, true> : run_tiles<S, false>;
    run(process, batch, schedule, begin, end);
  });
}

void simulate_into(const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale,
                   const at::Tensor& noise_std, const at::Tensor& means, const at::Tensor& precisions,
                   const at::Tensor& log_scale, const std::string& covariance_type, const at::Tensor& seed,
                   int64_t first_path, bool mirrored, Outputs& out) {
  TORCH_CHECK_VALUE(means.dim() == 2, "means: expected shape [K, d], found ", means.sizes());
  TORCH_CHECK_VALUE(x0.dim() == 2 && x0.size(1) == means.size(1), "x0: expected shape [B, ", means.size(1), "], found ",
                    x0.sizes());
  TORCH_CHECK_VALUE(steps.scalar_type() == at::kLong && steps.dim() == 1 && steps.size(0) == x0.size(0),
                    "steps: expected int64 [", x0.size(0), "], found ", steps.scalar_type(), " of shape ", steps.sizes());
  TORCH_CHECK_VALUE(drift_scale.dim() == 1, "drift_scale: expected shape [N], found ", drift_scale.sizes());
  check_shape("noise_std", noise_std, drift_scale.sizes());
  if (x0.size(0) == 0) return;
  AT_DISPATCH_FLOATING_TYPES(x0.scalar_type(), "fastndsm::simulate", [&] {
    const MixtureArgument<scalar_t> mixture(means, precisions, log_scale, covariance_type);
    run<scalar_t>(x0, steps, drift_scale, noise_std, mixture, seed, first_path, mirrored, out);
  });
}

at::Tensor simulate(const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale,
                    const at::Tensor& noise_std, const at::Tensor& means, const at::Tensor& precisions,
                    const at::Tensor& log_scale, const std::string& covariance_type, const at::Tensor& seed,
                    int64_t first_path) {
  Outputs out;
  out.x = at::empty(x0.sizes(), x0.options());
  simulate_into(x0, steps, drift_scale, noise_std, means, precisions, log_scale, covariance_type, seed, first_path, false,
                out);
  return out.x;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> simulate_transition(
    const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale, const at::Tensor& noise_std,
    const at::Tensor& means, const at::Tensor& precisions, const at::Tensor& log_scale, const std::string& covariance_type,
    const at::Tensor& seed, int64_t first_path) {
  Outputs out;
  for (at::Tensor* t : {&out.x, &out.mean, &out.noise}) *t = at::empty(x0.sizes(), x0.options());
  simulate_into(x0, steps, drift_scale, noise_std, means, precisions, log_scale, covariance_type, seed, first_path, false,
                out);
  return {out.x, out.mean, out.noise};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> simulate_target(const at::Tensor& x0, const at::Tensor& steps,
                                                               const at::Tensor& drift_scale, const at::Tensor& noise_std,
                                                               const at::Tensor& means, const at::Tensor& precisions,
                                                               const at::Tensor& log_scale,
                                                               const std::string& covariance_type, const at::Tensor& seed,
                                                               int64_t first_path, bool antithetic) {
  const int64_t rows = x0.size(0) * (antithetic ? 2 : 1), d = x0.size(1);
  Outputs out;
  out.x = at::empty({rows, d}, x0.options());
  out.target = at::empty({rows, d}, x0.options());
  out.variance = at::empty({rows, covariance_kind(covariance_type) == Covariance::spherical ? 1 : d}, x0.options());
  simulate_into(x0, steps, drift_scale, noise_std, means, precisions, log_scale, covariance_type, seed, first_path,
                antithetic, out);
  return {out.x, out.target, out.variance};
}

#define FASTNDSM_PROCESS                                                                                           \
  "Tensor drift_scale, Tensor noise_std, Tensor means, Tensor precisions, Tensor log_scale, str covariance_type, " \
  "Tensor seed, int first_path"

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def("simulate(Tensor x0, Tensor steps, " FASTNDSM_PROCESS ") -> Tensor");
  m.def("simulate_transition(Tensor x0, Tensor steps, " FASTNDSM_PROCESS ") -> (Tensor, Tensor, Tensor)");
  m.def("simulate_target(Tensor x0, Tensor steps, " FASTNDSM_PROCESS ", bool antithetic) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) {
  m.impl("simulate", simulate);
  m.impl("simulate_transition", simulate_transition);
  m.impl("simulate_target", simulate_target);
}

}  // namespace fastndsm
