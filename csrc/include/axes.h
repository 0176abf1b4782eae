// The principal axes of tied and full covariances, along which the path estimator's rho is diagonal: those of the component
// that x_0 is in, which differs from lane to lane if full.
//
//   v'_j = sum_i U_ij v_i,    back: v_i = sum_j U_ij v'_j
//
// Sums run in ascending order by fused multiply-adds, so that they are the same bits whether the lanes share U or not.
#pragma once

#include "vec.h"

namespace fastndsm {

template <typename S>
struct AxesView {
  const S* rotations;  // U, [d, d] tied, [K, d, d] full; an axis a column
  const S* rates;  // p, [d] or [K, d]
  int64_t dim;
};

template <typename V>
class TileAxes {
  using S = scalar_of<V>;
  static constexpr int W = lanes_of<V>;

 public:
  TileAxes() = default;
  explicit TileAxes(const AxesView<S>& axes) : axes_(axes) {}

  // Takes the component of each lane, and fills its rates [d].
  FASTNDSM_HD void choose(V component, V* rate) {
    S numbers[W];
    store(numbers, component);
    shared_ = true;
    for (int l = 0; l < W; ++l) {
      component_[l] = static_cast<int64_t>(numbers[l]), shared_ = shared_ && component_[l] == component_[0];
      for (int64_t j = 0; j < axes_.dim; ++j) lane(rate, j, l) = axes_.rates[component_[l] * axes_.dim + j];
    }
  }

  // U^T v and U^T w.
  FASTNDSM_HD void turn(const V* v, const V* w, V* to_v, V* to_w) const {
    if (shared_) return turn_together(v, w, to_v, to_w);
    for (int l = 0; l < W; ++l) {
      int64_t j = 0;
      for (; j + 4 * W <= axes_.dim; j += 4 * W) turn_lane<V, 4>(l, j, v, w, to_v, to_w);
      for (; j + W <= axes_.dim; j += W) turn_lane<V, 1>(l, j, v, w, to_v, to_w);
      for (; j < axes_.dim; ++j) turn_lane<S, 1>(l, j, v, w, to_v, to_w);
    }
  }

  // U h and the diagonal of U diag(v) U^T in place; memory: [2, d].
  FASTNDSM_HD void turn_back(V* h, V* v, V* memory) const {
    const int64_t d = axes_.dim;
    for (int l = 0; l < W; ++l) {
      const S* u = matrix(l);
      for (int64_t i = 0; i < d; ++i, u += d) {
        S sum = S(0), square = S(0);
        for (int64_t j = 0; j < d; ++j) {
          sum = fused(u[j], lane(h, j, l), sum);
          square = fused(S(u[j] * u[j]), lane(v, j, l), square);
        }
        lane(memory, i, l) = sum, lane(memory + d, i, l) = square;
      }
    }
    for (int64_t i = 0; i < d; ++i) h[i] = memory[i], v[i] = memory[d + i];
  }

 private:
  FASTNDSM_HD const S* matrix(int l) const { return axes_.rotations + component_[l] * axes_.dim * axes_.dim; }
  FASTNDSM_HD static S& lane(V* v, int64_t j, int l) { return reinterpret_cast<S*>(v)[j * W + l]; }
  FASTNDSM_HD static S lane(const V* v, int64_t j, int l) { return reinterpret_cast<const S*>(v)[j * W + l]; }

  // The axes from j on that G registers hold, of one lane.
  template <typename R, int G>
  FASTNDSM_HD void turn_lane(int l, int64_t j, const V* v, const V* w, V* to_v, V* to_w) const {
    constexpr int width = lanes_of<R>;
    R sum_v[G], sum_w[G];
    FASTNDSM_UNROLL
    for (int g = 0; g < G; ++g) sum_v[g] = R{}, sum_w[g] = R{};
    const S* u = matrix(l) + j;
    for (int64_t i = 0; i < axes_.dim; ++i, u += axes_.dim) {
      const R one = splat<R>(lane(v, i, l)), other = splat<R>(lane(w, i, l));
      FASTNDSM_UNROLL
      for (int g = 0; g < G; ++g) {
        const R axis = load<R>(u + g * width);
        sum_v[g] = fused(axis, one, sum_v[g]), sum_w[g] = fused(axis, other, sum_w[g]);
      }
    }
    FASTNDSM_UNROLL
    for (int g = 0; g < G; ++g) {
      S values[2][width];
      store(values[0], sum_v[g]), store(values[1], sum_w[g]);
      for (int i = 0; i < width; ++i) {
        const int64_t at = j + g * width + i;
        lane(to_v, at, l) = values[0][i], lane(to_w, at, l) = values[1][i];
      }
    }
  }

  FASTNDSM_HD void turn_together(const V* v, const V* w, V* to_v, V* to_w) const {
    constexpr int G = 4;
    const int64_t d = axes_.dim;
    int64_t j = 0;
    for (; j + G <= d; j += G) together<G>(j, v, w, to_v, to_w);
    for (; j < d; ++j) together<1>(j, v, w, to_v, to_w);
  }

  // The G axes from j on, of all lanes.
  template <int G>
  FASTNDSM_HD void together(int64_t j, const V* v, const V* w, V* to_v, V* to_w) const {
    V sum_v[G], sum_w[G];
    FASTNDSM_UNROLL
    for (int g = 0; g < G; ++g) sum_v[g] = V{}, sum_w[g] = V{};
    const S* u = matrix(0) + j;
    for (int64_t i = 0; i < axes_.dim; ++i, u += axes_.dim) {
      FASTNDSM_UNROLL
      for (int g = 0; g < G; ++g) {
        const V axis = splat<V>(u[g]);
        sum_v[g] = fused(axis, v[i], sum_v[g]), sum_w[g] = fused(axis, w[i], sum_w[g]);
      }
    }
    FASTNDSM_UNROLL
    for (int g = 0; g < G; ++g) to_v[j + g] = sum_v[g], to_w[j + g] = sum_w[g];
  }

  AxesView<S> axes_{nullptr, nullptr, 0};
  int64_t component_[W] = {};
  bool shared_ = true;
};

}  // namespace fastndsm
