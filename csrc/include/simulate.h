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
#pragma once

#include "mixture.h"
#include "philox.h"

namespace fastndsm {

enum class Output { state, target };

template <typename S>
struct ProcessView {
  MixtureView<S> mixture;
  const S* drift_scale;  // a_n [N]
  const S* noise_std;    // s_n [N]
  NoiseStream noise;
};

// The W samples of a tile, lane by lane.
template <typename V>
struct Lanes {
  words_of<V> c0, c1;       // counter words of the paths
  V steps;                  // steps each lane takes
  int64_t first, last;      // the smallest and the largest of them
};

// Arrays of [d] vectors each.
template <typename V>
struct TileState {
  V* x;
  V* mean;   // mean and noise of the last step, or null
  V* noise;
  V* h;      // target: v H
  V* v;      // target: [d], or [1] where the mixture is spherical
  V* rate;   // target: p(x_0)
};

// What travels together: the second member of a mirrored pair takes the first one's noise with the sign turned.
template <typename V>
struct Member {
  Lanes<V> lanes;
  TileState<V> state;
  MixtureScratch<V> scratch;
  V* z;  // [d] noise of this step
  scalar_of<V> sign;
  bool draws;
};

template <typename V, Covariance kind, int D, Output output>
struct Trajectory {
  using S = scalar_of<V>;
  static constexpr bool kTarget = output == Output::target;
  using Mixture = MixtureTile<V, kind, D, kTarget>;
  static constexpr int kMembers = 2;

  const ProcessView<S>& p;

  FASTNDSM_HD int64_t dim() const { return D > 0 ? D : p.mixture.dim; }

  // Four normals of block j / 4 from dimension j on, as many as there are dimensions.
  FASTNDSM_HD void normals(const Lanes<V>& lanes, int64_t n, int64_t j, V (&out)[4]) const {
    using U = words_of<V>;
    const U step = splat<U>(static_cast<uint32_t>(n)), block = splat<U>(static_cast<uint32_t>(j / 4));
    if (dim() - j <= 2) {
      V pair[2];
      p.noise.normals(lanes.c0, lanes.c1, step, block, pair);
      out[0] = pair[0], out[1] = pair[1];
    } else {
      p.noise.normals(lanes.c0, lanes.c1, step, block, out);
    }
  }

  FASTNDSM_HD void draw(const Member<V>& member, int64_t n) const {
    const int64_t d = dim();
#pragma GCC unroll 4
    for (int64_t j = 0; j < d; j += 4) {
      V four[4];
      normals(member.lanes, n, j, four);
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) {
        if (j + i < d) member.z[j + i] = four[i];
      }
    }
  }

  // One tile alone, two tiles side by side, or one and its mirror image.
  FASTNDSM_HD void run(Member<V>* member, int n_members) const {
    int64_t n = 0;
    if constexpr (D > 0) {  // in general dimensions a tile has work enough to fill the gaps itself
      const int64_t both = n_members == 2 ? std::min(member[0].lanes.last, member[1].lanes.last) : 0;
      for (; n < both; ++n) step(n, member[0], member[1]);
    }
    alone(n, member, n_members);
  }

  // Each member by itself, from step n on; a mirror image after the member whose noise it takes.
  FASTNDSM_OUTLINE void alone(int64_t n, Member<V>* member, int n_members) const {
    for (bool active = true; active; ++n) {
      active = false;
      for (int i = 0; i < n_members; ++i) {
        if (n < member[i].lanes.last) step(n, member[i]), active = true;
      }
    }
  }

  FASTNDSM_HD void step(int64_t n, Member<V>& one) const {
    if (kTarget && one.draws) draw(one, n);
    Mixture mixture(p.mixture, one.scratch);
    mixture.prepare(one.state.x, one.z);
    advance(n, one, mixture);
  }

  FASTNDSM_HD void step(int64_t n, Member<V>& one, Member<V>& two) const {
    if (kTarget) draw(one, n);
    if (kTarget && two.draws) draw(two, n);
    Mixture first(p.mixture, one.scratch), second(p.mixture, two.scratch);
    first.prepare_logits(one.state.x, one.z);
    second.prepare_logits(two.state.x, two.z);
    first.prepare_weights();
    second.prepare_weights();
    advance(n, one, first);
    advance(n, two, second);
  }

  // x, and what goes with it, from step n to n + 1; only in lanes that have not taken their last step.
  FASTNDSM_HD void advance(int64_t n, Member<V>& member, Mixture& mixture) const {
    const Lanes<V>& lanes = member.lanes;
    TileState<V>& t = member.state;
    const int64_t d = dim();
    const S a = p.drift_scale[n], s = p.noise_std[n], sign = member.sign;
    const auto active = lanes.steps > S(n);
    const bool keeps = t.mean != nullptr && n + 1 >= lanes.first;
    constexpr int chunk = D > 0 ? D : Mixture::kChunk;
    V score[chunk], product[chunk], rate[chunk];
#pragma GCC unroll 1
    for (int64_t j0 = 0; j0 < d; j0 += chunk) {
      const int64_t j1 = D > 0 ? D : std::min<int64_t>(j0 + chunk, d);
      const bool first = kTarget && n == 0;
      // H (-z) = -(H z): the sign enters below.
      mixture.moments(t.x, member.z, j0, j1, score, product, first ? rate : nullptr);
      if (first) keep_rate(t, rate, j0, j1);
#pragma GCC unroll 4
      for (int64_t j = j0; j < j1; j += 4) {
        V four[4];
        if constexpr (!kTarget) normals(lanes, n, j, four);
#pragma GCC unroll 4
        for (int64_t i = 0; i < 4; ++i) {
          if (j + i >= j1) break;
          const V noise = kTarget ? V(member.z[j + i] * sign) : four[i];
          const V x = t.x[j + i];
          const V mean = fused(splat<V>(a), score[j - j0 + i], x);
          t.x[j + i] = select(active, fused(splat<V>(s), noise, mean), x);
          if (keeps) {
            const auto last = lanes.steps == S(n + 1);
            t.mean[j + i] = select(last, mean, t.mean[j + i]);
            t.noise[j + i] = select(last, noise, t.noise[j + i]);
          }
          if constexpr (kTarget) {
            const int64_t r = kind == Covariance::spherical ? 0 : j + i;
            const V v = t.v[r], c = S(1) - a * t.rate[r];
            const V own = s - c * (S(1) - c) * v * (S(1) / s);
            const V push = c * v * (-a / s * sign);
            const V h = fused(c, t.h[j + i], fused(own, noise, V(push * product[j - j0 + i])));
            t.h[j + i] = select(active, h, t.h[j + i]);
            if (kind != Covariance::spherical) t.v[r] = select(active, fused(V(c * c), v, splat<V>(s * s)), v);
          }
        }
      }
    }
    if constexpr (kTarget && kind == Covariance::spherical) {
      const V c = S(1) - a * t.rate[0];
      t.v[0] = select(active, fused(V(c * c), t.v[0], splat<V>(s * s)), t.v[0]);
    }
  }

  FASTNDSM_HD void keep_rate(TileState<V>& t, const V* rate, int64_t j0, int64_t j1) const {
    if constexpr (kind == Covariance::spherical) {
      t.rate[0] = rate[0];
    } else {
      for (int64_t j = j0; j < j1; ++j) t.rate[j] = rate[j - j0];
    }
  }
};

}  // namespace fastndsm
