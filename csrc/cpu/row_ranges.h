// Rows that have some of the components, as those of a class have: they are computed with the rows of the same range, each
// with the bits that it has alone.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arguments.h"

namespace fastndsm {

// Components start..stop and the rows that have them, in ascending order.
struct RangeRows {
  int64_t start, stop;
  std::vector<int64_t> rows;
};

inline void check_ranges(const at::Tensor& ranges, int64_t n_rows, int64_t n_components) {
  TORCH_CHECK_VALUE(ranges.scalar_type() == at::kLong && ranges.sizes() == at::IntArrayRef({n_rows, 2}),
                    "ranges: expected int64 [", n_rows, ", 2], found ", ranges.scalar_type(), " of shape ", ranges.sizes());
  const at::Tensor values = ranges.contiguous();
  const int64_t* at = values.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < n_rows; ++i) {
    const int64_t start = at[2 * i], stop = at[2 * i + 1];
    TORCH_CHECK_VALUE(0 <= start && start < stop && stop <= n_components,
                      "ranges: expected 0 <= start < stop <= ", n_components, ", found ", start, " and ", stop, " in row ",
                      i);
  }
}

// All rows with all components where there are no ranges [n_rows, 2].
inline std::vector<RangeRows> rows_by_range(const std::optional<at::Tensor>& ranges, int64_t n_rows, int64_t n_components) {
  if (!ranges) {
    std::vector<RangeRows> all{{0, n_components, std::vector<int64_t>(n_rows)}};
    std::iota(all[0].rows.begin(), all[0].rows.end(), 0);
    return all;
  }
  check_ranges(*ranges, n_rows, n_components);
  const at::Tensor values = ranges->contiguous();
  const int64_t* at = values.const_data_ptr<int64_t>();
  std::map<std::pair<int64_t, int64_t>, std::vector<int64_t>> found;
  for (int64_t i = 0; i < n_rows; ++i) found[{at[2 * i], at[2 * i + 1]}].push_back(i);
  std::vector<RangeRows> made;
  for (auto& [range, rows] : found) made.push_back({range.first, range.second, std::move(rows)});
  return made;
}

// A mixture as ops take it.
struct MixtureInput {
  const at::Tensor &means, &precisions, &log_scale;
  const std::string& covariance_type;

  // The components of some rows.
  template <typename S>
  MixtureArgument<S> of(const RangeRows& part, Visits visits = Visits::once) const {
    const Covariance kind = covariance_kind(covariance_type);
    checked_means(means, precisions, log_scale, kind);
    const auto some = [&](const at::Tensor& t) { return t.narrow(0, part.start, part.stop - part.start); };
    const at::Tensor own = kind == Covariance::tied ? precisions : some(precisions);
    return MixtureArgument<S>(some(means), own, some(log_scale), covariance_type, visits);
  }
};

// Tiles of all parts, over the threads: body(part, begin, end) of tiles begin..end of one.
template <typename Parts, typename Body>
void parallel_tiles(const Parts& parts, const Body& body) {
  int64_t total = 0;
  for (const auto& part : parts) total += part.n_tiles();
  at::parallel_for(0, total, 1, [&](int64_t begin, int64_t end) {
    int64_t first = 0;
    for (const auto& part : parts) {
      const int64_t from = std::max<int64_t>(begin - first, 0), to = std::min(end - first, part.n_tiles());
      if (from < to) body(part, from, to);
      first += part.n_tiles();
    }
  });
}

}  // namespace fastndsm
