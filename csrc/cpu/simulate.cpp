// simulate, simulate_transition, simulate_target: whole trajectories in one call, each row with its own last step; of the
// last one, several records of each.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <deque>
#include <optional>

#include "schedule.h"

namespace fastndsm {
namespace {

struct Outputs {
  at::Tensor x, mean, noise, target, variance;
};

// Principal axes, which the target of tied and full covariances needs.
struct Axes {
  at::Tensor rotations, rates;

  Axes() = default;
  Axes(const std::optional<at::Tensor>& u, const std::optional<at::Tensor>& p, Covariance kind, at::IntArrayRef means) {
    if (kind == Covariance::spherical || kind == Covariance::diag) return;
    TORCH_CHECK_VALUE(u && p, "rotations, rates: expected the principal axes of tied and full covariances, found None");
    check_factors("rotations", *u, kind, means[0], means[1]);
    check_shape("rates", *p, u->sizes().slice(0, u->dim() - 1));
    rotations = u->contiguous(), rates = p->contiguous();
  }

  // Of the components from `start` on.
  template <typename S>
  AxesView<S> view(int64_t dim, int64_t start) const {
    if (!rotations.defined()) return {nullptr, nullptr, dim};
    const int64_t first = rates.dim() == 1 ? 0 : start;  // tied: one matrix
    return {rotations.const_data_ptr<S>() + first * dim * dim, rates.const_data_ptr<S>() + first * dim, dim};
  }
};

template <typename S>
void run(const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale, const at::Tensor& noise_std,
         const MixtureInput& mixture, const Axes& axes, const at::Tensor& seed, int64_t first_path, bool mirrored,
         const std::optional<at::Tensor>& ranges, Outputs& out) {
  const at::Tensor start = x0.contiguous(), counts = steps.contiguous();
  const at::Tensor a = drift_scale.contiguous(), s = noise_std.contiguous();
  const int64_t n_rows = x0.size(0), n_steps = a.size(0);
  const auto pointer = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<S>() : nullptr; };
  const NoiseStream noise(seed_value(seed), 0);
  const int64_t* taken = counts.const_data_ptr<int64_t>();
  const int64_t n_records = counts.numel() / n_rows;
  StepRanges due(taken, n_rows, n_records);
  at::parallel_for(0, n_rows, 4096, [&](int64_t begin, int64_t end) { due.look(begin, end); });
  const int64_t outside = due.outside(n_steps);
  TORCH_CHECK_VALUE(outside < 0, "steps: expected values in 0..", n_steps, ", found ", taken[outside]);
  const Batch<S> batch{n_rows,
                       n_records,
                       n_steps,
                       first_path,
                       start.const_data_ptr<S>(),
                       taken,
                       due.first.data(),
                       due.last.data(),
                       pointer(out.x),
                       pointer(out.mean),
                       pointer(out.noise),
                       pointer(out.target),
                       pointer(out.variance),
                       mirrored};
  std::vector<int32_t> component(n_rows);
  std::deque<ScheduledRows<S, ProcessView>> parts;
  for (const RangeRows& part : rows_by_range(ranges, n_rows, mixture.means.size(0))) {
    parts.emplace_back(mixture, part, [&](const MixtureView<S>& m, const RangeRows& part) {
      return ProcessView<S>{m, a.const_data_ptr<S>(), s.const_data_ptr<S>(), noise, axes.view<S>(m.dim, part.start)};
    }, [&](const MixtureView<S>& m, const std::vector<int64_t>& rows) {
      return schedule_of(m, batch, rows, component.data());
    });
  }
  parallel_tiles(parts, [&](const auto& part, int64_t begin, int64_t end) {
    const auto run = batch.target ? run_tiles<S, true> : run_tiles<S, false>;
    run(part.view, batch, part.schedule, begin, end);
  });
}

void simulate_into(const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale,
                   const at::Tensor& noise_std, const at::Tensor& means, const at::Tensor& precisions,
                   const at::Tensor& log_scale, const std::string& covariance_type, const at::Tensor& seed,
                   int64_t first_path, bool mirrored, const std::optional<at::Tensor>& ranges, const Axes& axes,
                   Outputs& out) {
  TORCH_CHECK_VALUE(means.dim() == 2, "means: expected shape [K, d], found ", means.sizes());
  TORCH_CHECK_VALUE(x0.dim() == 2 && x0.size(1) == means.size(1), "x0: expected shape [B, ", means.size(1), "], found ",
                    x0.sizes());
  const bool records = out.target.defined() && steps.dim() == 2;
  TORCH_CHECK_VALUE(steps.scalar_type() == at::kLong && (records || steps.dim() == 1) && steps.size(0) == x0.size(0),
                    "steps: expected int64 [", x0.size(0), out.target.defined() ? "] or [" : "]",
                    out.target.defined() ? std::to_string(x0.size(0)) + ", R]" : "", ", found ", steps.scalar_type(),
                    " of shape ", steps.sizes());
  TORCH_CHECK_VALUE(drift_scale.dim() == 1, "drift_scale: expected shape [N], found ", drift_scale.sizes());
  check_shape("noise_std", noise_std, drift_scale.sizes());
  if (steps.numel() == 0) return;
  const MixtureInput mixture{means, precisions, log_scale, covariance_type};
  AT_DISPATCH_FLOATING_TYPES(x0.scalar_type(), "fastndsm::simulate", [&] {
    run<scalar_t>(x0, steps, drift_scale, noise_std, mixture, axes, seed, first_path, mirrored, ranges, out);
  });
}

at::Tensor simulate(const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale,
                    const at::Tensor& noise_std, const at::Tensor& means, const at::Tensor& precisions,
                    const at::Tensor& log_scale, const std::string& covariance_type, const at::Tensor& seed,
                    int64_t first_path, const std::optional<at::Tensor>& ranges) {
  Outputs out;
  out.x = at::empty(x0.sizes(), x0.options());
  simulate_into(x0, steps, drift_scale, noise_std, means, precisions, log_scale, covariance_type, seed, first_path, false,
                ranges, Axes(), out);
  return out.x;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> simulate_transition(
    const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale, const at::Tensor& noise_std,
    const at::Tensor& means, const at::Tensor& precisions, const at::Tensor& log_scale, const std::string& covariance_type,
    const at::Tensor& seed, int64_t first_path, const std::optional<at::Tensor>& ranges) {
  Outputs out;
  for (at::Tensor* t : {&out.x, &out.mean, &out.noise}) *t = at::empty(x0.sizes(), x0.options());
  simulate_into(x0, steps, drift_scale, noise_std, means, precisions, log_scale, covariance_type, seed, first_path, false,
                ranges, Axes(), out);
  return {out.x, out.mean, out.noise};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> simulate_target(
    const at::Tensor& x0, const at::Tensor& steps, const at::Tensor& drift_scale, const at::Tensor& noise_std,
    const at::Tensor& means, const at::Tensor& precisions, const at::Tensor& log_scale, const std::string& covariance_type,
    const std::optional<at::Tensor>& rotations, const std::optional<at::Tensor>& rates, const at::Tensor& seed,
    int64_t first_path, bool antithetic, const std::optional<at::Tensor>& ranges) {
  TORCH_CHECK_VALUE(means.dim() == 2, "means: expected shape [K, d], found ", means.sizes());
  const Axes axes(rotations, rates, covariance_kind(covariance_type), means.sizes());
  std::vector<int64_t> shape = steps.sizes().vec();
  TORCH_CHECK_VALUE(!shape.empty(), "steps: expected shape [B] or [B, R], found []");
  shape[0] *= antithetic ? 2 : 1, shape.push_back(x0.size(1));
  Outputs out;
  out.x = at::empty(shape, x0.options());
  out.target = at::empty(shape, x0.options());
  if (covariance_kind(covariance_type) == Covariance::spherical) shape.back() = 1;
  out.variance = at::empty(shape, x0.options());
  simulate_into(x0, steps, drift_scale, noise_std, means, precisions, log_scale, covariance_type, seed, first_path,
                antithetic, ranges, axes, out);
  return {out.x, out.target, out.variance};
}

#define FASTNDSM_PROCESS \
  "Tensor drift_scale, Tensor noise_std, Tensor means, Tensor precisions, Tensor log_scale, str covariance_type, "
#define FASTNDSM_PATHS "Tensor seed, int first_path"

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def("simulate(Tensor x0, Tensor steps, " FASTNDSM_PROCESS FASTNDSM_PATHS ", Tensor? ranges=None) -> Tensor");
  m.def("simulate_transition(Tensor x0, Tensor steps, " FASTNDSM_PROCESS FASTNDSM_PATHS
        ", Tensor? ranges=None) -> (Tensor, Tensor, Tensor)");
  m.def("simulate_target(Tensor x0, Tensor steps, " FASTNDSM_PROCESS "Tensor? rotations, Tensor? rates, " FASTNDSM_PATHS
        ", bool antithetic, Tensor? ranges=None) -> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) {
  m.impl("simulate", simulate);
  m.impl("simulate_transition", simulate_transition);
  m.impl("simulate_target", simulate_target);
}

}  // namespace fastndsm
