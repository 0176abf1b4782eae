// reverse_steps: the reverse process between two evaluations of the network, all steps in one call.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <deque>
#include <optional>

#include "schedule.h"

namespace fastndsm {
namespace {

template <typename S>
void run(const at::Tensor& y, const at::Tensor& held, const std::optional<at::Tensor>& slope,
         const std::optional<at::Tensor>& rate, int64_t first, int64_t last, const at::Tensor& coefficients,
         const MixtureInput& mixture, const at::Tensor& seed, int64_t first_path, const std::optional<at::Tensor>& ranges,
         at::Tensor& out) {
  const at::Tensor start = y.contiguous(), network = held.contiguous(), table = coefficients.contiguous();
  const at::Tensor change = slope ? slope->contiguous() : at::Tensor(), own = rate ? rate->contiguous() : at::Tensor();
  const NoiseStream noise(seed_value(seed), kReverseStream);
  const ReverseBatch<S> batch{y.size(0),
                              first_path,
                              first,
                              last,
                              start.const_data_ptr<S>(),
                              network.const_data_ptr<S>(),
                              slope ? change.const_data_ptr<S>() : nullptr,
                              rate ? own.const_data_ptr<S>() : nullptr,
                              out.mutable_data_ptr<S>()};
  const int64_t n = first - last;
  std::vector<int32_t> component(batch.n_rows);
  std::deque<ScheduledRows<S, ReverseView>> parts;
  for (const RangeRows& part : rows_by_range(ranges, batch.n_rows, mixture.means.size(0))) {
    parts.emplace_back(mixture, part, [&](const MixtureView<S>& m, const RangeRows&) {
      return ReverseView<S>{m, {table.const_data_ptr<S>(), table.size(1)}, noise};
    }, [&](const MixtureView<S>& m, const std::vector<int64_t>& rows) {
      const bool sorts = sorts_components(m) && n >= kFewSteps && static_cast<int64_t>(rows.size()) > kLanes<S>;
      if (sorts) first_components(m, batch.y, rows, component.data());
      return Schedule(nullptr, rows, n, kLanes<S>, sorts ? component.data() : nullptr, m.n_components);
    });
  }
  parallel_tiles(parts, [&](const auto& part, int64_t begin, int64_t end) {
    run_tiles_back(part.view, batch, part.schedule, begin, end);
  });
}

at::Tensor reverse_steps(const at::Tensor& y, const at::Tensor& held, const std::optional<at::Tensor>& slope,
                         const std::optional<at::Tensor>& rate, const at::Tensor& bounds, const at::Tensor& coefficients,
                         const at::Tensor& means, const at::Tensor& precisions, const at::Tensor& log_scale,
                         const std::string& covariance_type, const at::Tensor& seed, int64_t first_path,
                         const std::optional<at::Tensor>& ranges) {
  TORCH_CHECK_VALUE(means.dim() == 2, "means: expected shape [K, d], found ", means.sizes());
  TORCH_CHECK_VALUE(y.dim() == 2 && y.size(1) == means.size(1), "y: expected shape [B, ", means.size(1), "], found ",
                    y.sizes());
  check_shape("held", held, y.sizes());
  if (slope) check_shape("slope", *slope, y.sizes());
  if (rate) check_shape("rate", *rate, {y.size(0)});
  const int64_t n_steps = checked_coefficients(coefficients);
  TORCH_CHECK_VALUE(bounds.scalar_type() == at::kLong && bounds.sizes() == at::IntArrayRef({2}),
                    "bounds: expected int64 [2], found ", bounds.scalar_type(), " of shape ", bounds.sizes());
  const int64_t first = bounds[0].item<int64_t>(), last = bounds[1].item<int64_t>();
  TORCH_CHECK_VALUE(last >= 0 && first >= last && first <= n_steps, "bounds: expected ", n_steps,
                    " >= first >= last >= 0, found ", first, " and ", last);
  const MixtureInput mixture{means, precisions, log_scale, covariance_type};
  at::Tensor out = at::empty(y.sizes(), y.options());
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "fastndsm::reverse_steps", [&] {
    if (y.size(0) == 0) return;
    run<scalar_t>(y, held, slope, rate, first, last, coefficients, mixture, seed, first_path, ranges, out);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def(
      "reverse_steps(Tensor y, Tensor held, Tensor? slope, Tensor? rate, Tensor bounds, Tensor coefficients, Tensor means, "
      "Tensor precisions, Tensor log_scale, str covariance_type, Tensor seed, int first_path, Tensor? ranges=None) -> "
      "Tensor");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) { m.impl("reverse_steps", reverse_steps); }

}  // namespace fastndsm
