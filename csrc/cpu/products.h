// Products of small matrices, C = A B [+ start], for networks whose layers are too small for a BLAS to pay off.
//
// B is packed into panels of two registers' columns; a tile of C, kRows by a panel, is sums in registers over all of K. An
// element of C is one chain of multiply-adds in the order of k, whatever else is in the matrices and however many threads
// there are.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>

#include "../include/vec.h"

namespace fastndsm {

#if defined(FASTNDSM_AVX512)
constexpr int kRows = 8;  // 16 sums: twice what two multiply-adds a cycle wait for
#else
constexpr int kRows = 6;  // as many as 16 registers hold
#endif

// Element (i, j) is data[i * down + j * right].
template <typename S>
struct Strided {
  const S* data;
  int64_t down, right;

  Strided transposed() const { return {data, right, down}; }
};

template <typename S>
class Panels {
 public:
  static constexpr int kWidth = 2 * kLanes<S>;

  // B [K, N], and the row that every row of C starts from, if there is one.
  Panels(Strided<S> b, int64_t k, int64_t n, const S* start = nullptr)
      : k_(k), n_(n), values_(new S[(n + kWidth - 1) / kWidth * (k + 1) * kWidth]) {
    at::parallel_for(0, count(), std::max<int64_t>(1, (1 << 14) / (k * kWidth + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        S* to = values_.get() + p * (k_ + 1) * kWidth;
        const int64_t kept = std::min<int64_t>(kWidth, n_ - p * kWidth);
        if (!start || kept < kWidth) std::fill_n(to, kept < kWidth ? (k_ + 1) * kWidth : kWidth, S(0));
        if (start) std::copy_n(start + p * kWidth, kept, to);
        const S* from = b.data + p * kWidth * b.right;
        if (b.right == 1) {
          for (int64_t i = 0; i < k_; ++i) std::copy_n(from + i * b.down, kept, to + (i + 1) * kWidth);
        } else {
          for (int64_t block = 0; block < k_; block += 8) {  // a few lines at a time
            const int64_t last = std::min<int64_t>(block + 8, k_);
            for (int64_t j = 0; j < kept; ++j) {
              for (int64_t i = block; i < last; ++i) to[(i + 1) * kWidth + j] = from[i * b.down + j * b.right];
            }
          }
        }
      }
    });
  }

  int64_t depth() const { return k_; }
  int64_t columns() const { return n_; }
  int64_t count() const { return (n_ + kWidth - 1) / kWidth; }
  const S* panel(int64_t p) const { return values_.get() + p * (k_ + 1) * kWidth; }  // its start, then its K rows

 private:
  int64_t k_, n_;
  std::unique_ptr<S[]> values_;
};

// `rows` rows of a panel's columns of C, `kept` of them: c = [c +] a B + start.
template <typename S>
FASTNDSM_OUTLINE void tile_product(Strided<S> a, const S* panel, int64_t depth, int rows, int64_t kept, bool add, S* c,
                                   int64_t c_down) {
  using V = vec<S, kLanes<S>>;
  constexpr int W = kLanes<S>;
  const S* from[kRows];
  V sum[kRows][2];
  for (int r = 0; r < kRows; ++r) {
    from[r] = a.data + std::min(r, rows - 1) * a.down;
    sum[r][0] = load<V>(panel), sum[r][1] = load<V>(panel + W);
  }
  const S* b = panel + 2 * W;
  for (int64_t k = 0, at = 0; k < depth; ++k, at += a.right, b += 2 * W) {
    const V left = load<V>(b), right = load<V>(b + W);
    FASTNDSM_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const V value = splat<V>(from[r][at]);
      sum[r][0] = fma(value, left, sum[r][0]);
      sum[r][1] = fma(value, right, sum[r][1]);
    }
  }
  for (int r = 0; r < rows; ++r, c += c_down) {
    if (kept == 2 * W) {
      store(c, add ? V(load<V>(c) + sum[r][0]) : sum[r][0]);
      store(c + W, add ? V(load<V>(c + W) + sum[r][1]) : sum[r][1]);
      continue;
    }
    S row[2 * W];
    store(row, sum[r][0]), store(row + W, sum[r][1]);
    for (int64_t j = 0; j < kept; ++j) c[j] = add ? c[j] + row[j] : row[j];
  }
}

// C [M, N] = [C +] A [M, K] B + start, rows of C side by side.
template <typename S>
void product(Strided<S> a, int64_t m, const Panels<S>& b, bool add, S* c) {
  constexpr int64_t kBlock = 128 / kRows;  // tiles of rows that one panel meets before the next
  const int64_t n = b.columns(), tiles = (m + kRows - 1) / kRows;
  const int64_t work = std::max<int64_t>(1, (1 << 15) / (b.depth() * n * kRows + 1));
  at::parallel_for(0, tiles, work, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block += kBlock) {
      for (int64_t p = 0; p < b.count(); ++p) {
        const int64_t first = p * Panels<S>::kWidth, kept = std::min<int64_t>(Panels<S>::kWidth, n - first);
        for (int64_t i = block; i < std::min(block + kBlock, end); ++i) {
          const int rows = static_cast<int>(std::min<int64_t>(kRows, m - i * kRows));
          const Strided<S> of_tile{a.data + i * kRows * a.down, a.down, a.right};
          tile_product(of_tile, b.panel(p), b.depth(), rows, kept, add, c + i * kRows * n + first, n);
        }
      }
    }
  });
}

}  // namespace fastndsm
