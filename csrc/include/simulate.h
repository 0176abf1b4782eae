// Whole trajectories of the Langevin noising process on one tile of W samples, state and target never leaving the tile.
//
//   x <- x + a_n score(x) + s_n z
//
//   v_{n+1} = s_n^2 + c^2 v_n,   c = 1 - a_n p,   rho_n = c v_n / v_{n+1}
//   H_{n+1} = rho_n H_n + [(1 - rho_n) z - rho_n a_n Hess(x_n) z] / s_n,   target = -H
//
// With h_n = v_n H_n the recursion of the target needs no division until the end:
//
//   h_{n+1} = c h_n + [(s_n^2 - c (1 - c) v_n) z - c v_n a_n Hess(x_n) z] / s_n
//
// With tied and full covariances rho is a matrix: h, v and p are those along the axes of axes.h, as are z and Hess z then.
// And back, by the steps of reverse.h.
#pragma once

#include "axes.h"
#include "lanes.h"
#include "reverse.h"
#include "listed.h"

namespace fastndsm {

enum class Output { state, target, reverse };

template <typename S, typename Number = S>
struct ProcessView {
  MixtureView<S, Number> mixture;
  const S* drift_scale;  // a_n [N]
  const S* noise_std;    // s_n [N]
  NoiseStream noise;
  AxesView<S> axes;  // target of tied and full covariances

  template <typename Other>
  ProcessView<S, Other> with(const MixtureView<S, Other>& other) const {
    return {other, drift_scale, noise_std, noise, axes};
  }
};

template <typename S, typename Number = S>
struct ReverseView {
  MixtureView<S, Number> mixture;
  ReverseTable<S> table;
  NoiseStream noise;

  template <typename Other>
  ReverseView<S, Other> with(const MixtureView<S, Other>& other) const {
    return {other, table, noise};
  }
};

// Arrays of [d] vectors each.
template <typename V>
struct TileState {
  V* x;
  V* mean = nullptr;   // mean and noise of this step, or null
  V* noise = nullptr;
  V* h = nullptr;      // target: v H
  V* v = nullptr;      // target: [d], or [1] where the mixture is spherical
  V* rate = nullptr;   // target: p(x_0)
  V* turned = nullptr;  // target, tied and full: [4, d] score, H z, z and H z along the axes
  const V* held = nullptr;   // reverse: what the network gave
  const V* slope = nullptr;  // reverse: or null
  const V* own = nullptr;    // reverse: the rates of the lanes, or null
};

// How much noise is drawn at once, in vectors: so little that a cache holds it, and of several steps where they are short.
constexpr int64_t kNoiseAtOnce = 128;

// What travels together: the second member of an antithetic pair takes the first one's noise with the sign turned.
template <typename V>
struct Member {
  Lanes<V> lanes;
  TileState<V> state;
  MixtureScratch<V> scratch;
  Screen<V> screen;
  NearLists<V>* lists;
  TileAxes<V> axes;
  V* noise;  // [noise_vectors]
  scalar_of<V> sign;
  const V* z = nullptr;  // [d] noise of this step, where it is drawn as a whole
  int64_t drawn_from = 0, n_drawn = 0;  // the steps whose noise is there
  NoiseAhead<V> ahead{};

  static int64_t noise_vectors(int64_t d, bool target) { return target ? std::max(d, kNoiseAtOnce) : kNoiseAtOnce; }

  // The member is to go on from elsewhere, or along other paths.
  void forget() { n_drawn = 0, ahead = {}; }
};

// listed: of a mixture that has its near components. Number: V where the mixture's numbers are there in whole registers.
template <typename V, Covariance kind, Output output, bool listed, typename Number = scalar_of<V>>
struct Trajectory {
  using S = scalar_of<V>;
  static constexpr bool kKnown = !std::is_same_v<Number, S>;
  static constexpr bool kTarget = output == Output::target;
  static constexpr bool kScreens = !listed && !kKnown && (kind == Covariance::spherical || kind == Covariance::diag);
  static constexpr bool kTurns = kTarget && (kind == Covariance::tied || kind == Covariance::full);
  using All = std::conditional_t<kKnown, OrderedComponents, AllComponents>;
  using Whole = std::conditional_t<kScreens, ScreenedTile<V, kind, kTarget>, MixtureTile<V, kind, kTarget, All, Number>>;
  using Mixture = std::conditional_t<listed, ListedTile<V, kind, kTarget>, Whole>;

  const std::conditional_t<output == Output::reverse, ReverseView<S, Number>, ProcessView<S, Number>>& p;

  FASTNDSM_HD int64_t dim() const { return p.mixture.dim; }

  // One tile, or an antithetic pair; record(n) sees it after n steps, n = 0, 1, ...
  template <typename Record>
  FASTNDSM_HD void run(Member<V>* member, int n_members, const Record& record) const {
    record(0);
    const int64_t last = member[0].lanes.last;
    for (int64_t n = 0; n < last; ++n) {
      if (draws_steps()) {
        draw_step(n, 1, last - n, member[0]);
        member[n_members - 1].z = member[0].z;
      }
      for (int i = 0; i < n_members; ++i) step(n, member[i]);
      record(n + 1);
    }
  }

  FASTNDSM_HD void step(int64_t n, Member<V>& one) const {
    Mixture mixture = tile(one);
    prepare(mixture, one, p.noise_std[n]);
    if constexpr (kTurns) {
      advance_turned(n, one, mixture);
    } else {
      advance(n, one, mixture);
    }
  }

  // Whether the noise of a step is drawn as a whole: the target's logits need it, and short steps share a call. Else it is
  // drawn with the update.
  FASTNDSM_HD bool draws_steps() const { return kTarget || dim() <= kNoiseAtOnce; }

  // z of step n, after which come n + way and so on, `left` with it.
  FASTNDSM_HD void draw_step(int64_t n, int64_t way, int64_t left, Member<V>& one) const {
    int64_t i = (n - one.drawn_from) * way;
    if (i < 0 || i >= one.n_drawn) {
      i = 0, one.drawn_from = n, one.n_drawn = std::clamp<int64_t>(kNoiseAtOnce / dim(), 1, left);
      draw(n, way, one, 0, one.n_drawn * dim());
    }
    one.z = one.noise + i * dim();
  }

  FASTNDSM_HD void draw(int64_t step, int64_t way, Member<V>& one, int64_t j, int64_t n) const {
    one.ahead.normals(one.lanes.paths, p.noise.key, step, way, dim(), j, n, one.noise);
  }

  // One tile from t_first down to t_last. far(x, maximum) gives the scores of lanes whose largest logit is the lowest there
  // is, where the tile has none.
  template <typename Far>
  FASTNDSM_HD void run_back(Member<V>& one, int64_t first, int64_t last, Far& far) const {
    for (int64_t n = first - 1; n >= last; --n) {
      const ReverseStep<S> step = p.table[n];
      const SampleStep<V> lanes = one.state.own ? step.rated(*one.state.own) : step.template unrated<V>();
      Mixture mixture = tile(one);
      const V* beyond = nullptr;
      if (step.drift != S(0)) {
        prepare(mixture, one, step.std);
        if (any_lane(!(mixture.maximum() > Mixture::kLowest))) beyond = far(one.state.x, mixture.maximum());
      }
      const bool draws = step.std != S(0);
      if (draws && draws_steps()) draw_step(n, -1, n - last + 1, one);
      in_chunks(n, -1, draws, one, [&](auto size, int64_t j, const V* z) FASTNDSM_INLINE {
        update_back<decltype(size)::value>(step.drift != S(0), lanes, one, mixture, beyond, j, z);
      });
    }
  }

  // grad log pi of one tile, [d].
  template <typename Far>
  FASTNDSM_HD void score(Member<V>& one, Far& far, V* out) const {
    Mixture mixture = tile(one);
    prepare(mixture, one, S(0));
    mixture.all_moments(one.state.x, nullptr, out, nullptr, nullptr);
    if (!any_lane(!(mixture.maximum() > Mixture::kLowest))) return;
    const V* const beyond = far(one.state.x, mixture.maximum());
    for (int64_t j = 0; j < dim(); ++j) out[j] = within(mixture, out[j], beyond[j]);
  }

  FASTNDSM_HD void prepare(Mixture& mixture, Member<V>& one, S std) const {
    if constexpr (listed || kScreens) {
      mixture.prepare(one.state.x, one.z, std);
    } else {
      mixture.prepare(one.state.x, one.z);
    }
  }

  FASTNDSM_HD Mixture tile(Member<V>& one) const {
    if constexpr (listed) {
      return Mixture(p.mixture, one.scratch, one.lists);
    } else if constexpr (kScreens) {
      return Mixture(p.mixture, one.scratch, one.screen);
    } else {
      return Mixture(p.mixture, one.scratch);
    }
  }

  // body(C, j, z) of the C dimensions from j on and their noise, all of them: the member's where it is drawn as a whole, else drawn
  // here, or 0 if it draws nothing. Step n, which n + way follows.
  template <typename Body>
  FASTNDSM_HD void in_chunks(int64_t n, int64_t way, bool draws, Member<V>& member, const Body& body) const {
    const bool whole = draws && draws_steps();
    if (!draws) std::fill_n(member.noise, kNoiseAtOnce, V{}), member.n_drawn = 0;
    for (int64_t j = 0; j < dim();) {
      const int64_t end = whole ? dim() : std::min<int64_t>(j + kNoiseAtOnce, dim());
      if (draws && !whole) draw(n, way, member, j, end - j);
      const V* const z = whole ? member.z : member.noise - j;
      for (; j + 8 <= end; j += 8) body(std::integral_constant<int, 8>{}, j, z + j);
      for (; j + 4 <= end; j += 4) body(std::integral_constant<int, 4>{}, j, z + j);
      for (; j < end; ++j) body(std::integral_constant<int, 1>{}, j, z + j);
    }
  }

  // x, and what goes with it, from step n to n + 1.
  FASTNDSM_HD void advance(int64_t n, Member<V>& member, Mixture& mixture) const {
    // Rates come with the first step, when v and h are 0.
    const bool shares = kTarget && kind == Covariance::spherical && n > 0;
    const TargetStep shared = shares ? target_step(n, member, 0) : TargetStep{V{}, splat<V>(p.noise_std[n]), V{}};
    in_chunks(n, 1, true, member, [&](auto size, int64_t j, const V* z) FASTNDSM_INLINE {
      update<decltype(size)::value>(n, member, mixture, shared, j, z);
    });
    if constexpr (kTarget && kind == Covariance::spherical) {
      member.state.v[0] = shared.next_variance(member.state.v[0], p.noise_std[n]);
    }
  }

  // The same with a target along the axes, which takes all dimensions at once.
  FASTNDSM_HD void advance_turned(int64_t n, Member<V>& member, Mixture& mixture) const {
    TileState<V>& t = member.state;
    const int64_t d = dim();
    V *score = t.turned, *product = score + d, *z = product + d, *turned_product = z + d;
    mixture.all_moments(t.x, member.z, score, product, nullptr);
    if (n == 0) member.axes.choose(kind == Covariance::full ? mixture.heaviest() : V{}, t.rate);
    member.axes.turn(member.z, product, z, turned_product);
    const S a = p.drift_scale[n], s = p.noise_std[n], sign = member.sign;
    for (int64_t j = 0; j < d; ++j) {
      const V mean = fused(splat<V>(a), score[j], t.x[j]);
      t.x[j] = fused(splat<V>(s), V(member.z[j] * sign), mean);
      add_to_target(n, member, j, V(z[j] * sign), turned_product[j]);
    }
  }

  // What a step of noise s makes of h, the noise and H z, and of v.
  struct TargetStep {
    V c, own, push;

    FASTNDSM_HD V next(V h, V noise, V product) const { return fused(c, h, fused(own, noise, V(push * product))); }
    FASTNDSM_HD V next_variance(V v, S s) const { return fused(V(c * c), v, splat<V>(s * s)); }
  };

  // r: the place of v and p.
  FASTNDSM_HD TargetStep target_step(int64_t n, const Member<V>& member, int64_t r) const {
    const S a = p.drift_scale[n], s = p.noise_std[n];
    const V v = member.state.v[r], c = S(1) - a * member.state.rate[r];
    return {c, s - c * (S(1) - c) * v * (S(1) / s), c * v * (-a / s * member.sign)};  // H (-z) = -(H z)
  }

  // h and v of dimension j.
  FASTNDSM_HD void add_to_target(int64_t n, Member<V>& member, int64_t j, V noise, V product) const {
    const TargetStep step = target_step(n, member, j);
    TileState<V>& t = member.state;
    t.h[j] = step.next(t.h[j], noise, product);
    t.v[j] = step.next_variance(t.v[j], p.noise_std[n]);
  }

  // The C dimensions from j0 on; z their noise. shared: the target's step where it is that of all dimensions.
  template <int C>
  FASTNDSM_HD void update(int64_t n, Member<V>& member, Mixture& mixture, const TargetStep& shared, int64_t j0,
                          const V* z) const {
    TileState<V>& t = member.state;
    const S a = p.drift_scale[n], s = p.noise_std[n], sign = member.sign;
    const bool keeps = t.mean != nullptr && n + 1 >= member.lanes.first;
    V score[C], product[C], rate[C];
    const bool first = kTarget && n == 0;
    mixture.template moments<C>(t.x, member.z, j0, score, product, first ? rate : nullptr);
    FASTNDSM_UNROLL
    for (int i = 0; i < C; ++i) {
      const int64_t j = j0 + i, r = kind == Covariance::spherical ? 0 : j;
      if (first && (r > 0 || i == 0)) t.rate[r] = rate[i];
      const V noise = kTarget ? V(z[i] * sign) : z[i];
      const V x = t.x[j];
      const V mean = fused(splat<V>(a), score[i], x);
      t.x[j] = fused(splat<V>(s), noise, mean);
      if (keeps) t.mean[j] = mean, t.noise[j] = noise;
      if constexpr (kTarget && kind == Covariance::spherical) t.h[j] = shared.next(t.h[j], noise, product[i]);
      if constexpr (kTarget && kind != Covariance::spherical) add_to_target(n, member, j, noise, product[i]);
    }
  }

  // The same of a step back; beyond as `far` gave it.
  template <int C>
  FASTNDSM_HD void update_back(bool drifts, const SampleStep<V>& step, Member<V>& member, Mixture& mixture, const V* beyond,
                               int64_t j0, const V* z) const {
    TileState<V>& t = member.state;
    V score[C];
    if (drifts) {
      mixture.template moments<C>(t.x, nullptr, j0, score, nullptr, nullptr);
    } else {
      FASTNDSM_UNROLL
      for (int i = 0; i < C; ++i) score[i] = V{};
    }
    FASTNDSM_UNROLL
    for (int i = 0; i < C; ++i) {
      const int64_t j = j0 + i;
      if (beyond) score[i] = within(mixture, score[i], beyond[j]);
      t.x[j] = step.next(t.x[j], score[i], t.slope ? step.network(t.held[j], t.slope[j]) : t.held[j], z[i]);
    }
  }

  // What the tile found where it found anything.
  FASTNDSM_HD static V within(const Mixture& mixture, V found, V beyond) {
    return select(mixture.maximum() > Mixture::kLowest, found, beyond);
  }
};

}  // namespace fastndsm
