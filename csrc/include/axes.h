// The principal axes of tied and full covariances, along which the path estimator's rho is diagonal: those of the component
// that x_0 is in, which differs from lane to lane if full.
//
//   v'_j = sum_i U_ij v_i,    back: v_i = sum_j U_ij v'_j
//
// Sums run in ascending order by fused multiply-adds, so that they are the same bits whichever way the axes are read: by all
// lanes at once where they share U or, in few dimensions, each have a copy in the tile; else lane by lane.
#pragma once

#include <type_traits>

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
  static constexpr int64_t kCopiedDim = 64;  // up to it a tile has copies: 256 KiB in vectors of 64 bytes

 public:
  // Vectors of memory for the copies.
  FASTNDSM_HD static int64_t vectors(int64_t dim) { return dim <= kCopiedDim ? dim * dim : 0; }

  TileAxes() = default;
  TileAxes(const AxesView<S>& axes, V* copies) : axes_(axes), copies_(copies) {}

  // Takes the component of each lane, and fills its rates [d].
  FASTNDSM_HD void choose(V component, V* rate) {
    const int64_t d = axes_.dim;
    S numbers[W];
    store(numbers, component);
    shared_ = true;
    for (int l = 0; l < W; ++l) {
      component_[l] = static_cast<int64_t>(numbers[l]), shared_ = shared_ && component_[l] == component_[0];
      for (int64_t j = 0; j < d; ++j) lane(rate, j, l) = axes_.rates[component_[l] * d + j];
    }
    if (shared_ || d > kCopiedDim) return;
    for (int64_t i = 0; i < d; ++i) {
      for (int64_t j = 0; j < d; ++j) {
        S axis[W];
        for (int l = 0; l < W; ++l) axis[l] = matrix(l)[i * d + j];
        copies_[j * d + i] = load<V>(axis);
      }
    }
  }

  // U^T v and U^T w.
  FASTNDSM_HD void turn(const V* v, const V* w, V* to_v, V* to_w) const {
    const int64_t d = axes_.dim;
    if (shared_) {
      for (int64_t j = 0; j < d; ++j) to_v[j] = V{}, to_w[j] = V{};
      int64_t i = 0;
      for (; i + kRows <= d; i += kRows) add_rows<kRows>(i, v, w, to_v, to_w);
      for (; i < d; ++i) add_rows<1>(i, v, w, to_v, to_w);
    } else if (d <= kCopiedDim) {
      int64_t j = 0;
      for (; j + 4 <= d; j += 4) turn_copies<4>(j, v, w, to_v, to_w);
      for (; j < d; ++j) turn_copies<1>(j, v, w, to_v, to_w);
    } else {
      for (int l = 0; l < W; ++l) {
        int64_t j = 0;
        for (; j + 4 * W <= d; j += 4 * W) turn_lane<V, 4>(l, j, v, w, to_v, to_w);
        for (; j + W <= d; j += W) turn_lane<V, 1>(l, j, v, w, to_v, to_w);
        for (; j < d; ++j) turn_lane<S, 1>(l, j, v, w, to_v, to_w);
      }
    }
  }

  // U h and the diagonal of U diag(v) U^T in place; memory: [2, d].
  FASTNDSM_HD void turn_back(V* h, V* v, V* memory) const {
    const int64_t d = axes_.dim;
    const auto rows = [&](auto row) {
      int64_t i = 0;
      for (; i + 4 <= d; i += 4) row(i, std::integral_constant<int, 4>{});
      for (; i < d; ++i) row(i, std::integral_constant<int, 1>{});
    };
    if (shared_) {
      const S* u = matrix(0);
      rows([&](int64_t i, auto n) {
        turn_rows_back<V, decltype(n)::value>([&](int64_t j, int g) { return splat<V>(u[(i + g) * d + j]); },
                                              [&](int64_t j) { return h[j]; }, [&](int64_t j) {
          return v[j];
        }, [&](int g, V sum, V square) { memory[i + g] = sum, memory[d + i + g] = square; });
      });
    } else if (d <= kCopiedDim) {
      rows([&](int64_t i, auto n) {
        turn_rows_back<V, decltype(n)::value>([&](int64_t j, int g) { return copies_[j * d + i + g]; },
                                              [&](int64_t j) { return h[j]; }, [&](int64_t j) {
          return v[j];
        }, [&](int g, V sum, V square) { memory[i + g] = sum, memory[d + i + g] = square; });
      });
    } else {
      for (int l = 0; l < W; ++l) {
        const S* u = matrix(l);
        rows([&](int64_t i, auto n) {
          turn_rows_back<S, decltype(n)::value>([&](int64_t j, int g) { return u[(i + g) * d + j]; },
                                                [&](int64_t j) { return lane(h, j, l); }, [&](int64_t j) {
            return lane(v, j, l);
          }, [&](int g, S sum, S square) { lane(memory, i + g, l) = sum, lane(memory + d, i + g, l) = square; });
        });
      }
    }
    for (int64_t i = 0; i < d; ++i) h[i] = memory[i], v[i] = memory[d + i];
  }

 private:
  static constexpr int kRows = kRegisters >= 32 ? 8 : 4;  // of U, whose v and w are held

  FASTNDSM_HD const S* matrix(int l) const { return axes_.rotations + component_[l] * axes_.dim * axes_.dim; }
  FASTNDSM_HD static S& lane(V* v, int64_t j, int l) { return reinterpret_cast<S*>(v)[j * W + l]; }
  FASTNDSM_HD static S lane(const V* v, int64_t j, int l) { return reinterpret_cast<const S*>(v)[j * W + l]; }

  // axis(j, g) = U_ij of the g-th of G rows i; put(g, ., .) takes their sums.
  template <typename R, int G, typename Axis, typename H, typename Variance, typename Put>
  FASTNDSM_HD void turn_rows_back(const Axis& axis, const H& h, const Variance& v, const Put& put) const {
    R sum[G], square[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum[g] = R{}, square[g] = R{};
    for (int64_t j = 0; j < axes_.dim; ++j) {
      const R along = h(j), variance = v(j);
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const R u = axis(j, g);
        sum[g] = fused(u, along, sum[g]), square[g] = fused(R(u * u), variance, square[g]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) put(g, sum[g], square[g]);
  }

  // What R rows of the U of all lanes add: row by row, as they lie in memory.
  template <int R>
  FASTNDSM_OUTLINE void add_rows(int64_t i, const V* v, const V* w, V* to_v, V* to_w) const {
    const int64_t d = axes_.dim;
    const S* u = matrix(0) + i * d;
    V one[R], other[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) one[r] = v[i + r], other[r] = w[i + r];
    for (int64_t j = 0; j < d; ++j) {
      V sum_v = to_v[j], sum_w = to_w[j];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const V axis = splat<V>(u[r * d + j]);
        sum_v = fused(axis, one[r], sum_v), sum_w = fused(axis, other[r], sum_w);
      }
      to_v[j] = sum_v, to_w[j] = sum_w;
    }
  }

  // The G axes from j on, of the copies.
  template <int G>
  FASTNDSM_HD void turn_copies(int64_t j, const V* v, const V* w, V* to_v, V* to_w) const {
    const int64_t d = axes_.dim;
    V sum_v[G], sum_w[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum_v[g] = V{}, sum_w[g] = V{};
    for (int64_t i = 0; i < d; ++i) {
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const V axis = copies_[(j + g) * d + i];
        sum_v[g] = fused(axis, v[i], sum_v[g]), sum_w[g] = fused(axis, w[i], sum_w[g]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) to_v[j + g] = sum_v[g], to_w[j + g] = sum_w[g];
  }

  // The axes from j on that G registers hold, of one lane.
  template <typename R, int G>
  FASTNDSM_HD void turn_lane(int l, int64_t j, const V* v, const V* w, V* to_v, V* to_w) const {
    constexpr int width = lanes_of<R>;
    R sum_v[G], sum_w[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sum_v[g] = R{}, sum_w[g] = R{};
    const S* u = matrix(l) + j;
    for (int64_t i = 0; i < axes_.dim; ++i, u += axes_.dim) {
      const R one = splat<R>(lane(v, i, l)), other = splat<R>(lane(w, i, l));
#pragma GCC unroll 4
      for (int g = 0; g < G; ++g) {
        const R axis = load<R>(u + g * width);
        sum_v[g] = fused(axis, one, sum_v[g]), sum_w[g] = fused(axis, other, sum_w[g]);
      }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
      S values[2][width];
      store(values[0], sum_v[g]), store(values[1], sum_w[g]);
      for (int i = 0; i < width; ++i) {
        const int64_t at = j + g * width + i;
        lane(to_v, at, l) = values[0][i], lane(to_w, at, l) = values[1][i];
      }
    }
  }

  AxesView<S> axes_{nullptr, nullptr, 0};
  V* copies_ = nullptr;  // [d, d], an axis a row
  int64_t component_[W] = {};
  bool shared_ = true;
};

}  // namespace fastndsm
