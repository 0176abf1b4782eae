// Which rows of a batch share a tile, by where they start.
#pragma once

#include "row_ranges.h"
#include "trajectory.h"

namespace fastndsm {

constexpr int64_t kFewSteps = 8;  // from which on one more visit to all components is nothing

// Of some rows, by their numbers, the component in which each starts (with spherical covariances, narrow ones before others).
template <typename S>
void first_components(const MixtureView<S>& mixture, const S* x0, const std::vector<int64_t>& rows, int32_t* component) {
  using V = vec<S, kLanes<S>>;
  constexpr int64_t W = lanes_of<V>;
  const int64_t d = mixture.dim, n_rows = static_cast<int64_t>(rows.size());
  const auto tiles = [&](auto kind, int64_t begin, int64_t end) {
    std::vector<V> memory(MixtureScratch<V>::vectors(mixture.n_components, d) + d);
    V* x = memory.data();
    MixtureTile<V, decltype(kind)::value, false> tile(mixture, MixtureScratch<V>(x + d, mixture.n_components, d));
    for (int64_t row = begin * W; row < std::min(end * W, n_rows); row += W) {
      const TileRows<V> own{rows.data() + row, static_cast<int>(std::min(W, n_rows - row))};
      own.gather(x0, d, x);
      tile.prepare(x, nullptr);
      S lanes[W];
      store(lanes, tile.heaviest());
      for (int l = 0; l < own.count; ++l) component[own.row[l]] = static_cast<int32_t>(lanes[l]);
    }
  };
  at::parallel_for(0, (n_rows + W - 1) / W, 1, [&](int64_t begin, int64_t end) {
    if (mixture.kind == Covariance::spherical) {
      tiles(std::integral_constant<Covariance, Covariance::spherical>{}, begin, end);
    } else {
      tiles(std::integral_constant<Covariance, Covariance::diag>{}, begin, end);
    }
  });
}

// Whether rows that start in one component are to share tiles.
template <typename S>
bool sorts_components(const MixtureView<S>& mixture) {
  return screens(mixture) && mixture.n_components > 1;
}

// Of some of a batch's rows. component: room for one of each row of the batch.
template <typename S>
Schedule schedule_of(const MixtureView<S>& m, const Batch<S>& batch, const std::vector<int64_t>& rows, int32_t* component) {
  std::vector<int64_t> taking(batch.n_steps + 1, 0);
  for (const int64_t row : rows) ++taking[batch.last[row]];
  int64_t in_tiles = 0;  // rows with company of as many steps
  for (int64_t n = kFewSteps; n <= batch.n_steps; ++n) in_tiles += taking[n] >= 2 * kLanes<S> ? taking[n] : 0;
  if (!sorts_components(m) || 2 * in_tiles < static_cast<int64_t>(rows.size())) {
    return Schedule(batch.last, rows, batch.n_steps, kLanes<S>, nullptr, 0, batch.neighbors(m.dim));
  }
  first_components(m, batch.x0, rows, component);
  return Schedule(batch.last, rows, batch.n_steps, kLanes<S>, component, m.n_components);
}

// Rows of one range, on trajectories by their components, and the tiles that they make: View is ProcessView or ReverseView.
template <typename S, template <typename> class View>
struct ScheduledRows {
  MixtureArgument<S> mixture;
  View<S> view;
  Schedule schedule;

  // view(mixture, part) and schedule(mixture, rows) give the others.
  template <typename MakeView, typename MakeSchedule>
  ScheduledRows(const MixtureInput& input, const RangeRows& part, const MakeView& view, const MakeSchedule& schedule)
      : mixture(input.of<S>(part, Visits::along_a_trajectory)),
        view(view(mixture.view(), part)),
        schedule(schedule(mixture.view(), part.rows)) {}

  int64_t n_tiles() const { return schedule.n_tiles(); }
};

}  // namespace fastndsm
