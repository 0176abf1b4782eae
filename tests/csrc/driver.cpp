// The kernels without PyTorch: answers requests read from one file into another, so that the same source can be built for
// other vector widths and under sanitizers.
//
// A request is its number, then 64-bit integers, then arrays of doubles, which are cast to the type S that it names; an
// answer is arrays of doubles or of 64-bit integers. Arrays have exactly the size they should, and outputs hold NaN before.
#include <cstdio>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "../../csrc/cpu/packed_mixture.h"
#include "../../csrc/cpu/trajectory.h"
#include "../../csrc/include/loss.h"

namespace fastndsm {

FASTNDSM_RUN_TILES(float, false);
FASTNDSM_RUN_TILES(float, true);
FASTNDSM_RUN_TILES(double, false);
FASTNDSM_RUN_TILES(double, true);
FASTNDSM_RUN_TILES_BACK(float);
FASTNDSM_RUN_TILES_BACK(double);

namespace {

class Channel {
 public:
  Channel(const char* from, const char* to) : in_(std::fopen(from, "rb")), out_(std::fopen(to, "wb")) {
    if (!in_ || !out_) throw std::runtime_error("a file cannot be opened");
  }
  ~Channel() { std::fclose(in_), std::fclose(out_); }
  Channel(const Channel&) = delete;

  bool next(int64_t& x) { return std::fread(&x, sizeof(x), 1, in_) == 1; }

  int64_t integer() {
    int64_t x;
    if (!next(x)) throw std::runtime_error("the request is too short");
    return x;
  }

  std::vector<int64_t> integers(int64_t n) {
    std::vector<int64_t> out(n);
    for (int64_t& x : out) x = integer();
    return out;
  }

  template <typename S>
  std::vector<S> reals(int64_t n) {
    std::vector<S> out(n);
    for (S& x : out) x = static_cast<S>(reinterpret<double>(integer()));
    return out;
  }

  template <typename T>
  void answer(const std::vector<T>& values) {
    using Wide = std::conditional_t<std::is_floating_point<T>::value, double, int64_t>;
    for (const T value : values) {
      const Wide wide = static_cast<Wide>(value);
      std::fwrite(&wide, sizeof(wide), 1, out_);
    }
  }

 private:
  FILE *in_, *out_;
};

template <typename S>
std::vector<S> unwritten(int64_t n) {
  return std::vector<S>(n, std::numeric_limits<S>::quiet_NaN());
}

// ---- noise and functions ----------------------------------------------------------------------------------------

// The ten rounds on W counters at a time, two by two where there is more than one; W counters are at from[W i ...].
template <int W>
std::vector<uint32_t> random_words(const std::vector<int64_t>& counters, uint32_t k0, uint32_t k1) {
  using U = vec<uint32_t, W>;
  const int64_t n = counters.size() / 4;
  std::vector<uint32_t> out(counters.size());
  for (int64_t first = 0; first < n; first += 2 * W) {
    uint32_t lanes[2][4][W];
    U c[2][4];
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) {
        for (int l = 0; l < W; ++l) {
          lanes[half][i][l] = static_cast<uint32_t>(counters[std::min(first + half * W + l, n - 1) * 4 + i]);
        }
        c[half][i] = load<U>(lanes[half][i]);
      }
    }
    philox4x32_10(c, PhiloxKey(k0, k1));
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < 4; ++i) store(lanes[half][i], c[half][i]);
    }
    for (int64_t row = first; row < std::min(first + 2 * W, n); ++row) {
      for (int i = 0; i < 4; ++i) out[4 * row + i] = lanes[(row - first) / W][i][(row - first) % W];
    }
  }
  return out;
}

void words(Channel& channel) {
  const int64_t n = channel.integer();
  const uint32_t k0 = static_cast<uint32_t>(channel.integer()), k1 = static_cast<uint32_t>(channel.integer());
  const std::vector<int64_t> counters = channel.integers(4 * n);
  channel.answer(random_words<kLanes<uint32_t>>(counters, k0, k1));
  channel.answer(random_words<1>(counters, k0, k1));
}

// Calls use(first, count) for every W of n.
template <int W, typename Use>
void in_vectors(int64_t n, const Use& use) {
  for (int64_t first = 0; first < n; first += W) use(first, std::min<int64_t>(W, n - first));
}

template <typename V, typename T>
V load_some(const std::vector<T>& from, int64_t first, int64_t count) {
  scalar_of<V> lanes[lanes_of<V>];
  for (int64_t l = 0; l < lanes_of<V>; ++l) lanes[l] = static_cast<scalar_of<V>>(from[first + std::min(l, count - 1)]);
  return load<V>(lanes);
}

template <typename V>
void store_some(std::vector<scalar_of<V>>& to, int64_t first, int64_t count, V v) {
  scalar_of<V> lanes[lanes_of<V>];
  store(lanes, v);
  std::copy_n(lanes, count, to.begin() + first);
}

template <typename S>
void normals(Channel& channel) {
  using V = vec<S, kLanes<S>>;
  const int64_t n = channel.integer();
  const std::vector<int64_t> radius = channel.integers(n), angle = channel.integers(n);
  std::vector<S> cosine = unwritten<S>(n), sine = unwritten<S>(n);
  in_vectors<kLanes<S>>(n, [&](int64_t first, int64_t count) {
    V n0, n1;
    box_muller(load_some<words_of<V>>(radius, first, count), load_some<words_of<V>>(angle, first, count), n0, n1);
    store_some(cosine, first, count, n0), store_some(sine, first, count, n1);
  });
  channel.answer(cosine), channel.answer(sine);
}

// exp2, exp and log of x.
template <typename S>
void functions(Channel& channel) {
  using V = vec<S, kLanes<S>>;
  const int64_t n = channel.integer();
  const std::vector<S> x = channel.reals<S>(n);
  std::vector<S> out[3] = {unwritten<S>(n), unwritten<S>(n), unwritten<S>(n)};
  in_vectors<kLanes<S>>(n, [&](int64_t first, int64_t count) {
    const V v = load_some<V>(x, first, count);
    store_some(out[0], first, count, fastndsm::exp2(v));
    store_some(out[1], first, count, fastndsm::exp(v));
    store_some(out[2], first, count, fastndsm::log(V(fastndsm::max(v, V(-v)))));
  });
  for (const auto& values : out) channel.answer(values);
}

// ---- mixtures and trajectories ----------------------------------------------------------------------------------

template <typename S>
struct Parameters {
  Covariance kind;
  int64_t n_components, dim;
  std::vector<S> means, precisions, log_scale;

  explicit Parameters(Channel& channel)
      : kind(static_cast<Covariance>(channel.integer())), n_components(channel.integer()), dim(channel.integer()) {
    const int64_t k = n_components, d = dim;
    const int64_t sizes[] = {k, k * d, d * d, k * d * d};
    means = channel.reals<S>(k * d);
    precisions = channel.reals<S>(sizes[static_cast<int>(kind)]);
    log_scale = channel.reals<S>(k);
  }
};

// log-density, score, Hessian-vector product and (spherical, diag) mean precision of each row; if full, its component.
template <typename S, Covariance kind>
void evaluate(Channel& channel, const MixtureView<S>& mixture) {
  using V = vec<S, kLanes<S>>;
  const int64_t n = channel.integer(), d = mixture.dim;
  const std::vector<S> x = channel.reals<S>(n * d), z = channel.reals<S>(n * d);
  constexpr bool kRate = kind == Covariance::spherical || kind == Covariance::diag;
  std::vector<S> component = unwritten<S>(n);
  std::vector<S> log_prob = unwritten<S>(n), out[3] = {unwritten<S>(n * d), unwritten<S>(n * d), unwritten<S>(n * d)};
  std::vector<V> scratch(MixtureScratch<V>::vectors(mixture.n_components, d)), tile_x(d), tile_z(d), moments[3];
  for (auto& m : moments) m.resize(d);
  using Tile = MixtureTile<V, kind, true>;
  Tile tile(mixture, MixtureScratch<V>(scratch.data(), mixture.n_components, d));
  in_vectors<kLanes<S>>(n, [&](int64_t first, int64_t count) {
    for (int64_t j = 0; j < d; ++j) {
      S lanes[2][kLanes<S>];
      for (int64_t l = 0; l < kLanes<S>; ++l) {
        const int64_t at = (first + std::min(l, count - 1)) * d + j;
        lanes[0][l] = x[at], lanes[1][l] = z[at];
      }
      tile_x[j] = load<V>(lanes[0]), tile_z[j] = load<V>(lanes[1]);
    }
    tile.prepare(tile_x.data(), tile_z.data());
    store_some(log_prob, first, count, tile.log_prob());
    tile.all_moments(tile_x.data(), tile_z.data(), moments[0].data(), moments[1].data(),
                     kRate ? moments[2].data() : nullptr);
    if constexpr (kind == Covariance::full) store_some(component, first, count, tile.heaviest());
    for (int m = 0; m < (kRate ? 3 : 2); ++m) {
      // spherical: one mean precision for all dimensions
      for (int64_t j = 0; j < d; ++j) {
        S lanes[kLanes<S>];
        store(lanes, moments[m][j]);
        for (int64_t l = 0; l < count; ++l) out[m][(first + l) * d + j] = lanes[l];
      }
    }
  });
  channel.answer(log_prob);
  for (int m = 0; m < (kRate ? 3 : 2); ++m) channel.answer(out[m]);
  if constexpr (kind == Covariance::full) channel.answer(component);
}

template <typename S>
void mixture(Channel& channel) {
  const Parameters<S> p(channel);
  const PackedMixture<S> packed(p.kind, p.n_components, p.dim, p.means.data(), p.precisions.data(), p.log_scale.data());
  switch (p.kind) {
    case Covariance::spherical: return evaluate<S, Covariance::spherical>(channel, packed.view());
    case Covariance::diag: return evaluate<S, Covariance::diag>(channel, packed.view());
    case Covariance::tied: return evaluate<S, Covariance::tied>(channel, packed.view());
    case Covariance::full: return evaluate<S, Covariance::full>(channel, packed.view());
  }
}

// As the ops do; visits_all: without leaving any component out.
template <typename S>
void look_up(PackedMixture<S>& packed, bool visits_all) {
  const MixtureView<S>& m = packed.view();
  if (!lists_components<S>(m.kind, m.n_components, m.dim)) return;
  packed.look_up_in(std::make_shared<NearComponents<S>>(m, visits_all));
}

std::vector<int64_t> all_rows(int64_t n) {
  std::vector<int64_t> rows(n);
  std::iota(rows.begin(), rows.end(), 0);
  return rows;
}

enum class What { state, transition, target, mirrored_target };

// x, and mean and noise or target and variance; `missing` values of x0 are left out, for which a sanitizer must stop it.
template <typename S>
void trajectory(Channel& channel) {
  const Parameters<S> p(channel);
  const What what = static_cast<What>(channel.integer());
  const int64_t n_rows = channel.integer(), n_steps = channel.integer(), seed = channel.integer();
  const int64_t first_path = channel.integer(), tiles_per_call = channel.integer(), missing = channel.integer();
  const bool visits_all = channel.integer() != 0;
  const std::vector<int64_t> steps = channel.integers(n_rows);
  const std::vector<S> drift_scale = channel.reals<S>(n_steps), noise_std = channel.reals<S>(n_steps);
  const std::vector<S> x0 = channel.reals<S>(n_rows * p.dim - missing);
  const int64_t axes = p.kind == Covariance::full ? p.n_components : p.kind == Covariance::tied ? 1 : 0;
  const std::vector<S> rotations = channel.reals<S>(axes * p.dim * p.dim), rates = channel.reals<S>(axes * p.dim);
  PackedMixture<S> packed(p.kind, p.n_components, p.dim, p.means.data(), p.precisions.data(), p.log_scale.data());
  look_up(packed, visits_all);

  const bool mirrored = what == What::mirrored_target, target = what == What::target || mirrored;
  const int64_t out_rows = n_rows * (mirrored ? 2 : 1);
  std::vector<S> x = unwritten<S>(out_rows * p.dim), second, third;
  if (what == What::transition || target) second = unwritten<S>(out_rows * p.dim);
  if (what == What::transition) third = unwritten<S>(out_rows * p.dim);
  if (target) third = unwritten<S>(out_rows * (p.kind == Covariance::spherical ? 1 : p.dim));

  const ProcessView<S> process{
      packed.view(), drift_scale.data(), noise_std.data(), NoiseStream(seed, 0), {rotations.data(), rates.data(), p.dim}};
  Batch<S> batch{};
  batch.n_rows = n_rows, batch.n_records = 1, batch.n_steps = n_steps, batch.first_path = first_path;
  batch.x0 = x0.data(), batch.steps = batch.first = batch.last = steps.data(), batch.x = x.data(), batch.mirrored = mirrored;
  (target ? batch.target : batch.mean) = second.data();
  (target ? batch.variance : batch.noise) = third.data();
  const Schedule schedule(steps.data(), all_rows(n_rows), n_steps, kLanes<S>);
  for (int64_t begin = 0; begin < schedule.n_tiles(); begin += tiles_per_call) {
    const int64_t end = std::min(begin + tiles_per_call, schedule.n_tiles());
    if (target) {
      run_tiles<S, true>(process, batch, schedule, begin, end);
    } else {
      run_tiles<S, false>(process, batch, schedule, begin, end);
    }
  }
  channel.answer(x), channel.answer(second), channel.answer(third);
}

// y at t_0 from y at t_N, with a slope or without.
template <typename S>
void back(Channel& channel) {
  const Parameters<S> p(channel);
  const int64_t n_rows = channel.integer(), n_steps = channel.integer(), seed = channel.integer();
  const int64_t first_path = channel.integer(), tiles_per_call = channel.integer(), sloped = channel.integer(),
                rated = channel.integer();
  const bool visits_all = channel.integer() != 0;
  const std::vector<S> coefficients = channel.reals<S>(6 * n_steps), y = channel.reals<S>(n_rows * p.dim);
  const std::vector<S> held = channel.reals<S>(n_rows * p.dim), slope = channel.reals<S>(sloped ? n_rows * p.dim : 0);
  const std::vector<S> own = channel.reals<S>(rated ? n_rows : 0);
  PackedMixture<S> packed(p.kind, p.n_components, p.dim, p.means.data(), p.precisions.data(), p.log_scale.data());
  look_up(packed, visits_all);
  std::vector<S> out = unwritten<S>(n_rows * p.dim);
  const ReverseView<S> view{packed.view(), {coefficients.data(), n_steps}, NoiseStream(seed, kReverseStream)};
  const ReverseBatch<S> batch{n_rows,
                              first_path,
                              n_steps,
                              0,
                              y.data(),
                              held.data(),
                              sloped ? slope.data() : nullptr,
                              rated ? own.data() : nullptr,
                              out.data()};
  const Schedule schedule(nullptr, all_rows(n_rows), n_steps, kLanes<S>);
  for (int64_t begin = 0; begin < schedule.n_tiles(); begin += tiles_per_call) {
    run_tiles_back(view, batch, schedule, begin, std::min(begin + tiles_per_call, schedule.n_tiles()));
  }
  channel.answer(out);
}

// ---- losses -----------------------------------------------------------------------------------------------------

// Per row: the loss of each estimator and dsm, then the gradients.
template <typename S>
void losses(Channel& channel) {
  const int64_t n = channel.integer(), d = channel.integer();
  const std::vector<S> first = channel.reals<S>(n * d), second = channel.reals<S>(n * d), z = channel.reals<S>(n * d);
  const std::vector<S> std = channel.reals<S>(n), grad = channel.reals<S>(n);
  for (const Estimator estimator : {Estimator::plain, Estimator::control_variate, Estimator::antithetic}) {
    std::vector<S> loss = unwritten<S>(n), to_first = unwritten<S>(n * d), to_second = unwritten<S>(n * d);
    for (int64_t i = 0; i < n; ++i) {
      const S *a = &first[i * d], *b = &second[i * d], *noise = &z[i * d];
      loss[i] = ndsm_row(estimator, a, b, noise, S(1) / std[i], d);
      ndsm_row_backward(estimator, grad[i], a, b, noise, S(1) / std[i], d, &to_first[i * d], &to_second[i * d]);
    }
    channel.answer(loss), channel.answer(to_first);
    if (estimator != Estimator::plain) channel.answer(to_second);
  }
  std::vector<S> loss = unwritten<S>(n), to = unwritten<S>(n * d);
  for (int64_t i = 0; i < n; ++i) {
    loss[i] = dsm_row(&first[i * d], &second[i * d], d);
    dsm_row_backward(grad[i], &first[i * d], &second[i * d], d, &to[i * d]);
  }
  channel.answer(loss), channel.answer(to);
}

template <typename S>
void serve(Channel& channel, int64_t request) {
  switch (request) {
    case 0: return words(channel);
    case 1: return normals<S>(channel);
    case 2: return functions<S>(channel);
    case 3: return mixture<S>(channel);
    case 4: return trajectory<S>(channel);
    case 5: return losses<S>(channel);
    case 6: return back<S>(channel);
    default: throw std::runtime_error("no such request");
  }
}

}  // namespace
}  // namespace fastndsm

int main(int argc, char** argv) {
  if (argc != 3) return std::fprintf(stderr, "usage: driver REQUESTS ANSWERS\n"), 2;
  fastndsm::Channel channel(argv[1], argv[2]);
  for (int64_t request; channel.next(request);) {
    if (channel.integer() == 4) {
      fastndsm::serve<float>(channel, request);
    } else {
      fastndsm::serve<double>(channel, request);
    }
  }
  std::puts(fastndsm::kVectorISA);
}
