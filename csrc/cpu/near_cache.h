// The components of a mixture as samples look them up, made once for all calls with the same parameters.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "../include/near.h"

namespace fastndsm {

// What a mixture is taken for: trajectories visit it again and again near the same places, scores once at each.
enum class Visits { once, for_scores, along_a_trajectory };

// Null where that does not pay. Parameters are compared by value: tensors may have been written to.
template <typename S>
std::shared_ptr<const NearComponents<S>> near_components(const MixtureView<S>& m, Visits visits) {
  const bool scores = visits == Visits::for_scores;
  const auto may = scores ? sieves_components<S> : lists_components<S>;
  if (visits == Visits::once || !may(m.kind, m.n_components, m.dim)) return nullptr;
  constexpr size_t kKept = 4, kValues = size_t(1) << 22;  // entries kept, and more while all have no more values
  struct Entry {
    Covariance kind;
    int64_t dim;
    std::vector<S> means, precisions, log_scale;
    std::shared_ptr<const NearComponents<S>> components;  // null where they serve nothing

    std::shared_ptr<const NearComponents<S>> for_use(bool scores) const {
      return components && (scores ? components->uses().sieve : components->uses().lists) ? components : nullptr;
    }
  };
  static std::mutex mutex;
  static std::vector<std::shared_ptr<Entry>> entries;  // the last one used first
  const auto same = [](const std::vector<S>& kept, const S* values) {
    return std::memcmp(kept.data(), values, kept.size() * sizeof(S)) == 0;
  };
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto entry = entries.begin(); entry != entries.end(); ++entry) {
    const Entry& e = **entry;
    if (e.kind != m.kind || e.dim != m.dim || static_cast<int64_t>(e.log_scale.size()) != m.n_components) continue;
    if (!same(e.log_scale, m.log_scale) || !same(e.means, m.means) || !same(e.precisions, m.precisions)) continue;
    std::rotate(entries.begin(), entry, entry + 1);
    return entries.front()->for_use(scores);
  }
  const int64_t k = m.n_components, d = m.dim;
  const int64_t sizes[] = {k, k * d, d * d, k * d * d};
  auto made = std::make_shared<Entry>(Entry{m.kind,
                                            d,
                                            {m.means, m.means + k * d},
                                            {m.precisions, m.precisions + sizes[static_cast<int>(m.kind)]},
                                            {m.log_scale, m.log_scale + k},
                                            std::make_shared<NearComponents<S>>(m)});
  if (!made->for_use(false) && !made->for_use(true)) made->components.reset();
  const auto values = [&] {
    size_t sum = 0;
    for (const auto& entry : entries) sum += entry->means.size() + entry->precisions.size();
    return sum;
  };
  while (entries.size() >= kKept && values() > kValues) entries.pop_back();
  entries.insert(entries.begin(), made);
  return made->for_use(scores);
}

}  // namespace fastndsm
