// Tiles of samples on their way back, between two evaluations of the network.
#pragma once

#include <optional>
#include <vector>

#include "../include/registers.h"
#include "far.h"
#include "walks.h"

namespace fastndsm {

// The scores of lanes whose logits overflow, one by one.
template <typename V>
class FarLanes {
  using S = scalar_of<V>;
  static constexpr int W = lanes_of<V>;

 public:
  explicit FarLanes(const MixtureView<S>& mixture) : mixture_(mixture) {}

  // [d], of the lanes whose largest logit is the lowest there is; anything in others.
  const V* operator()(const V* y, V maximum) const {
    const int64_t d = mixture_.dim;
    scores_.resize(d);
    std::vector<S> point(d), score(d);
    const S *from = reinterpret_cast<const S*>(y), *largest = reinterpret_cast<const S*>(&maximum);
    for (int l = 0; l < W; ++l) {
      if (largest[l] > kLowestLogit<V>) continue;
      for (int64_t j = 0; j < d; ++j) point[j] = from[j * W + l];
      FarRow<S>(mixture_, point.data()).score(score.data());
      for (int64_t j = 0; j < d; ++j) reinterpret_cast<S*>(scores_.data())[j * W + l] = score[j];
    }
    return scores_.data();
  }

 private:
  const MixtureView<S>& mixture_;
  mutable std::vector<V> scores_;
};

template <typename V, Covariance kind>
class ReverseTile {
  using S = scalar_of<V>;

 public:
  explicit ReverseTile(const ReverseView<S>& view)
      : view_(view),
        walks_(view),
        far_(view.mixture),
        memory_(vectors(view.mixture)),
        screen_(Screen<V>::integers(view.mixture.n_components)),
        lists_(view.mixture) {
    const int64_t k = view.mixture.n_components, d = view.mixture.dim;
    V* const base = memory_.data() + 3 * d;
    y = memory_.data(), held = y + d, slope = held + d;
    member_.state = {.x = y};
    member_.scratch = MixtureScratch<V>(base, k, d);
    member_.screen = Screen<V>(base + MixtureScratch<V>::vectors(k, d), screen_.data(), k, d);
    if (known_dimension(view.mixture) > 0) known_.emplace(view.mixture);
    member_.lists = &lists_;
    member_.noise = base + MixtureScratch<V>::vectors(k, d) + Screen<V>::vectors(k, d);
  }
  ReverseTile(const ReverseTile&) = delete;

  V *y, *held, *slope;  // [d] each
  V own{};              // rates

  // Other samples, of these paths.
  void start(const PathCounters<words_of<V>>& paths) {
    member_.lanes.paths = paths;
    member_.forget();
    member_.screen.forget();
    lists_.forget();
  }

  // grad log pi(y), [d].
  void score(V* out) {
    walks_.with([&](const auto& walk) { walk.score(member_, far_, out); });
  }

  // y from t_first down to t_last, with a slope or without, and so with rates.
  void run(int64_t first, int64_t last, bool sloped, bool rated) {
    if constexpr (sizeof(S) == 4 && (kind == Covariance::spherical || kind == Covariance::diag)) {
      switch (known_dimension(view_.mixture)) {
        case 2: return in_registers<2>(first, last, sloped, rated);
        case 3: return in_registers<3>(first, last, sloped, rated);
        default: break;
      }
    }
    member_.state.held = held, member_.state.slope = sloped ? slope : nullptr;
    member_.state.own = rated ? &own : nullptr;
    walks_.with([&](const auto& walk) { walk.run_back(member_, first, last, far_); });
  }

 private:
  static int64_t vectors(const MixtureView<S>& m) {
    const int64_t k = m.n_components, d = m.dim;
    return 3 * d + MixtureScratch<V>::vectors(k, d) + Screen<V>::vectors(k, d) + Member<V>::noise_vectors(d, false);
  }

  template <int D>
  void in_registers(int64_t first, int64_t last, bool sloped, bool rated) {
    RegisterTrajectory<V, kind, D, false> sample(nullptr, 1);
    V network[D], change[D];
    for (int j = 0; j < D; ++j) sample.x[j] = y[j], network[j] = held[j], change[j] = sloped ? slope[j] : V{};
    for (int64_t n = first - 1; n >= last; --n) {
      const auto counters = member_.lanes.paths.at(static_cast<uint32_t>(n), view_.noise.key);
      const ReverseStep<S> step = view_.table[n];
      const SampleStep<V> lanes = rated ? step.rated(own) : step.template unrated<V>();
      sample.step_back(*known_, D, step, lanes, counters, network, change, 1, far_);
    }
    for (int j = 0; j < D; ++j) y[j] = sample.x[j];
  }

  const ReverseView<S>& view_;
  Walks<V, kind, Output::reverse> walks_;
  FarLanes<V> far_;
  std::vector<V> memory_;
  std::vector<int32_t> screen_;
  NearLists<V> lists_;
  std::optional<KnownMixture<S>> known_;
  Member<V> member_;
};

}  // namespace fastndsm
