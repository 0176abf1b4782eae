// Which trajectory serves a mixture: by its near components, by numbers in whole registers, or by those in memory.
#pragma once

#include <optional>

#include "../include/known_mixture.h"
#include "../include/simulate.h"

namespace fastndsm {

template <typename V, Covariance kind, Output output>
class Walks {
  using S = scalar_of<V>;
  using Number = typename KnownMixture<S>::Number;
  template <typename N>
  using View = std::conditional_t<output == Output::reverse, ReverseView<S, N>, ProcessView<S, N>>;
  static constexpr bool kKnows = sizeof(S) == 4 && std::is_same_v<Number, V> && !std::is_same_v<Number, S> &&
                                 (kind == Covariance::spherical || kind == Covariance::diag);

 public:
  explicit Walks(const View<S>& view) : view_(view) {
    const MixtureView<S>& m = view.mixture;
    if (!kKnows || m.near || screens(m) || !KnownMixture<S>::fits(m)) return;
    numbers_.emplace(m);
    known_.emplace(view.with(numbers_->view(m)));
  }
  Walks(const Walks&) = delete;

  // body(trajectory) with the one that serves.
  template <typename Body>
  void with(const Body& body) const {
    if (view_.mixture.near) return body(Trajectory<V, kind, output, true>{view_});
    if constexpr (kKnows) {
      if (known_) return body(Trajectory<V, kind, output, false, Number>{*known_});
    }
    body(Trajectory<V, kind, output, false>{view_});
  }

 private:
  const View<S>& view_;
  std::optional<KnownMixture<S>> numbers_;
  std::optional<View<Number>> known_;
};

}  // namespace fastndsm
