// Rows so far from every component that a tile's logits overflow, or that nothing is left of their Hessian-vector product: one
// at a time in double, about the component c of the largest density, as the reference takes them. With u_k = m_k - x,
//
//   u_k^T P_k u_k - u_c^T P_c u_c = (m_k - m_c)^T P_k (u_k + u_c) + u_c^T (P_k - P_c) u_c
//   h_k = g_k - g_c               = P_k (m_k - m_c) + (P_k - P_c) u_c
//   score = g_c + sum_k r_k h_k,    H z = sum_k r_k (h_k (h_k . z) - P_k z) - h (h . z),    h = sum_k r_k h_k
//
// where each difference is taken before it is rounded. Lengths are scaled by a power of two s where squares would overflow.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "../include/mixture_view.h"

namespace fastndsm {

template <typename S>
class FarRow {
 public:
  FarRow(const MixtureView<S>& mixture, const S* x)
      : m_(mixture), x_(x, x + mixture.dim), u_(mixture.dim), g_c_(mixture.dim) {
    double largest = 0;
    for (const double value : x_) largest = std::max(largest, std::abs(value));
    int exponent = 0;
    if (std::isfinite(largest)) std::frexp(largest, &exponent);
    scale_ = std::ldexp(1.0, std::min(100 - exponent, 0));
    find_nearest();
    weigh();
  }

  double log_prob() const { return log_scale(c_) - 0.5 * square_ / scale_ / scale_ + highest_ + std::log(total_); }

  void score(S* out) {
    std::vector<double> h(m_.dim), sum(m_.dim);
    for (int64_t k = 0; k < m_.n_components; ++k) {
      if (weights_[k] == 0) continue;
      shift(k, h.data());
      for (int64_t j = 0; j < m_.dim; ++j) sum[j] += weights_[k] * h[j];
    }
    for (int64_t j = 0; j < m_.dim; ++j) out[j] = static_cast<S>(g_c_[j] / scale_ + sum[j]);
  }

  void product(const S* z, S* out) {
    const std::vector<double> along(z, z + m_.dim);
    std::vector<double> h(m_.dim), pz(m_.dim), mean(m_.dim), sum(m_.dim);
    double slope = 0;
    for (int64_t k = 0; k < m_.n_components; ++k) {
      if (weights_[k] == 0) continue;
      shift(k, h.data());
      times_precision(k, along.data(), pz.data());
      double hz = 0;
      for (int64_t j = 0; j < m_.dim; ++j) hz += h[j] * along[j];
      slope += weights_[k] * hz;
      for (int64_t j = 0; j < m_.dim; ++j) mean[j] += weights_[k] * h[j], sum[j] += weights_[k] * (h[j] * hz - pz[j]);
    }
    for (int64_t j = 0; j < m_.dim; ++j) out[j] = static_cast<S>(sum[j] - mean[j] * slope);
  }

 private:
  double mean(int64_t k, int64_t j) const { return double(m_.means[k * m_.dim + j]); }
  double log_scale(int64_t k) const { return double(m_.log_scale[k]) * 0.69314718055994530942; }

  double precision(int64_t k, int64_t i, int64_t j) const {
    switch (m_.kind) {
      case Covariance::spherical: return i == j ? double(m_.precisions[k]) : 0.0;
      case Covariance::diag: return i == j ? double(m_.precisions[k * m_.dim + i]) : 0.0;
      case Covariance::tied: return double(m_.precisions[i * m_.dim + j]);
      default: return double(m_.precisions[(k * m_.dim + i) * m_.dim + j]);
    }
  }

  bool diagonal() const { return m_.kind == Covariance::spherical || m_.kind == Covariance::diag; }

  // out = (P_k - P_less) v; P_k v without `less`.
  void times_precision(int64_t k, const double* v, double* out, int64_t less = -1) const {
    for (int64_t i = 0; i < m_.dim; ++i) {
      out[i] = 0;
      for (int64_t j = diagonal() ? i : 0; j < (diagonal() ? i + 1 : m_.dim); ++j)
        out[i] += (precision(k, i, j) - (less < 0 ? 0.0 : precision(less, i, j))) * v[j];
    }
  }

  // The component of the largest density, its u and g, both times the scale, and u . g.
  void find_nearest() {
    std::vector<double> u(m_.dim), g(m_.dim);
    double least = std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < m_.n_components; ++k) {
      double square = 0;
      for (int64_t j = 0; j < m_.dim; ++j) u[j] = mean(k, j) * scale_ - x_[j] * scale_;
      times_precision(k, u.data(), g.data());
      for (int64_t j = 0; j < m_.dim; ++j) square += u[j] * g[j];
      const double level = 0.5 * square - log_scale(k) * scale_ * scale_;
      if (k == 0 || level < least) c_ = k, least = level, square_ = square, u_ = u, g_c_ = g;
    }
  }

  // Weights relative to the largest, and their sum.
  void weigh() {
    std::vector<double> apart(m_.dim), between(m_.dim), p(m_.dim);
    weights_.resize(m_.n_components);
    highest_ = -std::numeric_limits<double>::infinity();
    for (int64_t k = 0; k < m_.n_components; ++k) {
      for (int64_t j = 0; j < m_.dim; ++j) {
        apart[j] = (mean(k, j) - mean(c_, j)) * scale_;
        between[j] = mean(k, j) * scale_ - x_[j] * scale_ + u_[j];
      }
      double change = 0;
      times_precision(k, between.data(), p.data());
      for (int64_t j = 0; j < m_.dim; ++j) change += apart[j] * p[j];
      times_precision(k, u_.data(), p.data(), c_);
      for (int64_t j = 0; j < m_.dim; ++j) change += u_[j] * p[j];
      weights_[k] = log_scale(k) - log_scale(c_) - 0.5 * change / scale_ / scale_;
      if (!(weights_[k] <= highest_)) highest_ = weights_[k];
    }
    total_ = 0;
    for (double& w : weights_) w = std::exp(w - highest_), total_ += w;
    for (double& w : weights_) w /= total_;
  }

  // h_k
  void shift(int64_t k, double* out) {
    std::vector<double> apart(m_.dim), p(m_.dim);
    for (int64_t j = 0; j < m_.dim; ++j) apart[j] = mean(k, j) - mean(c_, j);
    times_precision(k, apart.data(), out);
    times_precision(k, u_.data(), p.data(), c_);
    for (int64_t j = 0; j < m_.dim; ++j) out[j] += p[j] / scale_;
  }

  const MixtureView<S>& m_;
  std::vector<double> x_, u_, g_c_, weights_;
  double scale_, square_ = 0, highest_, total_;
  int64_t c_ = 0;
};

}  // namespace fastndsm
