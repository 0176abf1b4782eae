// Which rows of a batch share a tile, by where they start.
#pragma once

#include <ATen/Parallel.h>

#include "arguments.h"
#include "trajectory.h"

namespace fastndsm {

constexpr int64_t kFewSteps = 8;  // from which on one more visit to all components is nothing

// Of each row, the component in which it starts (with spherical covariances, narrow ones before others).
template <typename S>
std::vector<int32_t> first_components(const MixtureView<S>& mixture, const S* x0, int64_t n_rows) {
  using V = vec<S, kLanes<S>>;
  constexpr int64_t W = lanes_of<V>;
  const int64_t d = mixture.dim;
  std::vector<int32_t> component(n_rows);
  const auto rows = [&](auto kind, int64_t begin, int64_t end) {
    std::vector<V> memory(MixtureScratch<V>::vectors(mixture.n_components, d) + d);
    V* x = memory.data();
    MixtureTile<V, decltype(kind)::value, false> tile(mixture, MixtureScratch<V>(x + d, mixture.n_components, d));
    for (int64_t row = begin * W; row < std::min(end * W, n_rows); row += W) {
      const int64_t count = std::min(W, n_rows - row);
      gather_rows(x0, row, count, d, x);
      tile.prepare(x, nullptr);
      S lanes[W];
      store(lanes, tile.heaviest());
      for (int64_t l = 0; l < count; ++l) component[row + l] = static_cast<int32_t>(lanes[l]);
    }
  };
  at::parallel_for(0, (n_rows + W - 1) / W, 1, [&](int64_t begin, int64_t end) {
    if (mixture.kind == Covariance::spherical) {
      rows(std::integral_constant<Covariance, Covariance::spherical>{}, begin, end);
    } else {
      rows(std::integral_constant<Covariance, Covariance::diag>{}, begin, end);
    }
  });
  return component;
}

// Whether rows that start in one component are to share tiles.
template <typename S>
bool sorts_components(const MixtureView<S>& mixture) {
  return screens(mixture) && mixture.n_components > 1;
}

template <typename S>
Schedule schedule_of(const ProcessView<S>& process, const Batch<S>& batch) {
  const MixtureView<S>& m = process.mixture;
  std::vector<int64_t> rows(batch.n_steps + 1, 0);
  for (int64_t i = 0; i < batch.n_rows; ++i) ++rows[batch.last[i]];
  int64_t in_tiles = 0;  // rows with company of as many steps
  for (int64_t n = kFewSteps; n <= batch.n_steps; ++n) in_tiles += rows[n] >= 2 * kLanes<S> ? rows[n] : 0;
  if (!sorts_components(m) || 2 * in_tiles < batch.n_rows) {
    return Schedule(batch.last, batch.n_rows, batch.n_steps, kLanes<S>);
  }
  const std::vector<int32_t> component = first_components(m, batch.x0, batch.n_rows);
  return Schedule(batch.last, batch.n_rows, batch.n_steps, kLanes<S>, component.data(), m.n_components);
}

}  // namespace fastndsm
