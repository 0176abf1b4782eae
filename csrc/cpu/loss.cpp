// ndsm_loss and dsm_loss, forward and backward: one pass over the inputs each, rows over the threads, sums in at least
// float32 and in an order that depends on the dimension alone.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <string>

#include "../include/loss.h"

namespace fastndsm {
namespace {

constexpr int64_t kGrainValues = 1 << 15;

template <typename Body>
void parallel_rows(int64_t n_rows, int64_t dim, const Body& body) {
  at::parallel_for(0, n_rows, std::max<int64_t>(1, kGrainValues / std::max<int64_t>(1, dim)),
                   [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
    end_streams();
  });
}

Estimator estimator_of(const std::string& name, bool antithetic) {
  if (name == "control_variate") return Estimator::control_variate;
  TORCH_CHECK_VALUE(name == "plain", "estimator: expected plain or control_variate, found ", name);
  return antithetic ? Estimator::antithetic : Estimator::plain;
}

void check_rows(const at::Tensor& scores, const at::Tensor& noise, const at::Tensor& std, Estimator estimator) {
  const int64_t copies = estimator == Estimator::plain ? 1 : 2;
  TORCH_CHECK_VALUE(
      noise.dim() == 2 && scores.dim() == 2 && scores.size(0) == copies * noise.size(0) && scores.size(1) == noise.size(1),
      "scores: expected shape [", copies * noise.size(0), ", ", noise.size(1), "], found ", scores.sizes());
  TORCH_CHECK_VALUE(std.dim() == 1 && std.size(0) == noise.size(0), "std: expected shape [", noise.size(0), "], found ",
                    std.sizes());
}

void check_grad(const at::Tensor& grad, int64_t n_rows) {
  TORCH_CHECK_VALUE(grad.dim() == 1 && grad.size(0) == n_rows, "grad: expected shape [", n_rows, "], found ", grad.sizes());
}

void check_pair(const at::Tensor& score, const at::Tensor& target) {
  TORCH_CHECK_VALUE(score.dim() == 2 && score.sizes() == target.sizes(), "target: expected the shape of score, ",
                    score.sizes(), ", found ", target.sizes());
}

at::Tensor ndsm_loss(const at::Tensor& scores, const at::Tensor& noise, const at::Tensor& std, std::string name,
                     bool antithetic) {
  const Estimator estimator = estimator_of(name, antithetic);
  check_rows(scores, noise, std, estimator);
  const int64_t n = noise.size(0), d = noise.size(1);
  at::Tensor out = at::empty({n}, noise.options());
  AT_DISPATCH_FLOATING_TYPES(noise.scalar_type(), "fastndsm::ndsm_loss", [&] {
    const at::Tensor s = scores.contiguous(), z = noise.contiguous(), width = std.contiguous();
    const scalar_t *first = s.const_data_ptr<scalar_t>(), *second = first + n * d, *normal = z.const_data_ptr<scalar_t>();
    const scalar_t* sigma = width.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    parallel_rows(n, d, [&](int64_t i) {
      to[i] = ndsm_row(estimator, first + i * d, second + i * d, normal + i * d, scalar_t(1) / sigma[i], d);
    });
  });
  return out;
}

at::Tensor ndsm_loss_backward(const at::Tensor& grad, const at::Tensor& scores, const at::Tensor& noise,
                              const at::Tensor& std, std::string name, bool antithetic) {
  const Estimator estimator = estimator_of(name, antithetic);
  check_rows(scores, noise, std, estimator);
  check_grad(grad, noise.size(0));
  const int64_t n = noise.size(0), d = noise.size(1);
  at::Tensor out = at::empty(scores.sizes(), scores.options());
  AT_DISPATCH_FLOATING_TYPES(noise.scalar_type(), "fastndsm::ndsm_loss_backward", [&] {
    const at::Tensor s = scores.contiguous(), z = noise.contiguous(), width = std.contiguous(), g = grad.contiguous();
    const scalar_t *first = s.const_data_ptr<scalar_t>(), *second = first + n * d, *normal = z.const_data_ptr<scalar_t>();
    const scalar_t *sigma = width.const_data_ptr<scalar_t>(), *slope = g.const_data_ptr<scalar_t>();
    scalar_t *to_first = out.mutable_data_ptr<scalar_t>(), *to_second = to_first + n * d;
    const bool large =
        out.nbytes() >= kStreamedBytes && streams(to_first) && (estimator == Estimator::plain || streams(to_second));
    parallel_rows(n, d, [&](int64_t i) {
      const auto run =
          large && streams(to_first + i * d) ? ndsm_row_backward<true, scalar_t> : ndsm_row_backward<false, scalar_t>;
      run(estimator, slope[i], first + i * d, second + i * d, normal + i * d, scalar_t(1) / sigma[i], d, to_first + i * d,
          to_second + i * d);
    });
  });
  return out;
}

at::Tensor dsm_loss(const at::Tensor& score, const at::Tensor& target) {
  check_pair(score, target);
  const int64_t n = score.size(0), d = score.size(1);
  at::Tensor out = at::empty({n}, score.options());
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "fastndsm::dsm_loss", [&] {
    const at::Tensor s = score.contiguous(), t = target.contiguous();
    const scalar_t *a = s.const_data_ptr<scalar_t>(), *b = t.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    parallel_rows(n, d, [&](int64_t i) { to[i] = dsm_row(a + i * d, b + i * d, d); });
  });
  return out;
}

at::Tensor dsm_loss_backward(const at::Tensor& grad, const at::Tensor& score, const at::Tensor& target) {
  check_pair(score, target);
  check_grad(grad, score.size(0));
  const int64_t n = score.size(0), d = score.size(1);
  at::Tensor out = at::empty(score.sizes(), score.options());
  AT_DISPATCH_FLOATING_TYPES(score.scalar_type(), "fastndsm::dsm_loss_backward", [&] {
    const at::Tensor s = score.contiguous(), t = target.contiguous(), g = grad.contiguous();
    const scalar_t *a = s.const_data_ptr<scalar_t>(), *b = t.const_data_ptr<scalar_t>(),
                   *slope = g.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const bool large = out.nbytes() >= kStreamedBytes;
    parallel_rows(n, d, [&](int64_t i) {
      const auto run = large && streams(to + i * d) ? dsm_row_backward<true, scalar_t> : dsm_row_backward<false, scalar_t>;
      run(slope[i], a + i * d, b + i * d, d, to + i * d);
    });
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def("ndsm_loss(Tensor scores, Tensor noise, Tensor std, str estimator, bool antithetic) -> Tensor");
  m.def(
      "ndsm_loss_backward(Tensor grad, Tensor scores, Tensor noise, Tensor std, str estimator, bool antithetic) -> Tensor");
  m.def("dsm_loss(Tensor score, Tensor target) -> Tensor");
  m.def("dsm_loss_backward(Tensor grad, Tensor score, Tensor target) -> Tensor");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) {
  m.impl("ndsm_loss", ndsm_loss);
  m.impl("ndsm_loss_backward", ndsm_loss_backward);
  m.impl("dsm_loss", dsm_loss);
  m.impl("dsm_loss_backward", dsm_loss_backward);
}

}  // namespace fastndsm
