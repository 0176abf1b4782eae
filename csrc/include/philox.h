// The noise stream: Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, Random123) and Box-Muller normals.
//
//   key       the 64-bit seed
//   counter   (path low 32 bits, path bits 32..55 with the stream number in the top byte, step, dimension block)
//
// One counter gives the four normals of dimensions 4 block .. 4 block + 3 of one path at one step. Lanes of a vector
// are independent counters: lanes may be 16 paths at the same step and block, or 16 blocks of one path, or any mixture.
//
//   PathCounters(low, high)           the counters of some paths: .at(step, key).words(block, out)
//   CommonWords(c1, step, key)        counters that differ in path low word and block: .words(path, block, out)
//   philox4x32_10(c, key)             any counters
//   box_muller(w0, w1, n0, n1)        two normals, float or double, from two words
//   some_normals, normals             those of some or many dimensions of some paths
//   path_words(path, stream, c0, c1)  the first two counter words of a path
//
// Every function is generic in the number of lanes (vec.h), one included, and takes part in host and device code.
#pragma once

#include "vecmath.h"

namespace fastndsm {

// The key of a stream with its ten round keys: k0 + round 0x9E3779B9 and k1 + round 0xBB67AE85.
struct PhiloxKey {
  uint32_t k0, k1;
#if !defined(__CUDACC__)
  uint64_t schedule[10][2];  // in memory, from where a vector instruction broadcasts at no cost
#endif

  FASTNDSM_HD PhiloxKey(uint32_t k0, uint32_t k1) : k0(k0), k1(k1) {
#if !defined(__CUDACC__)
    for (uint32_t round = 0; round < 10; ++round) {
      schedule[round][0] = k0 + round * 0x9E3779B9u, schedule[round][1] = k1 + round * 0xBB67AE85u;
    }
#endif
  }

  FASTNDSM_HD uint64_t of(int round, int word) const {
#if !defined(__CUDACC__)
    return schedule[round][word];
#else
    return word == 0 ? k0 + round * 0x9E3779B9u : k1 + round * 0xBB67AE85u;
#endif
  }
};

namespace detail {

constexpr uint32_t kPhilox0 = 0xD2511F53u, kPhilox1 = 0xCD9E8D57u;

// Words in 64-bit lanes: the even lanes of the 32-bit vector, and its odd ones. Only the low 32 bits of a lane mean
// anything: a multiplication reads no others, so that the low half of a product, which the next round needs, is the
// product itself.
template <typename U32>
constexpr int kHalves = lanes_of<U32> == 1 ? 1 : 2;
template <typename U32>
using Wide = vec<uint64_t, lanes_of<U32> / kHalves<U32>>;

template <typename U32>
FASTNDSM_HD void widen(U32 c, Wide<U32> (&half)[kHalves<U32>]) {
  if constexpr (lanes_of<U32> == 1) {
    half[0] = c;
  } else {
    half[0] = reinterpret<Wide<U32>>(c);  // as they lie (little endian)
    half[1] = high32(half[0]);
  }
}

template <typename U64>
FASTNDSM_HD void philox_round(U64 (&c)[4], uint64_t k0, uint64_t k1) {
  const U64 p0 = mul_low32(c[0], splat<U64>(kPhilox0));
  const U64 p1 = mul_low32(c[2], splat<U64>(kPhilox1));
  c[0] = high32(p1) ^ c[1] ^ splat<U64>(k0);
  c[2] = high32(p0) ^ c[3] ^ splat<U64>(k1);
  c[1] = p1;
  c[3] = p0;
}

// Rounds first .. 9 of N counters in step with one another, to overlap their latencies; out[n] are their words.
template <typename U32, int N>
FASTNDSM_HD void philox_rounds(int first, Wide<U32> (&c)[N][kHalves<U32>][4], const PhiloxKey& key, U32 (&out)[N][4]) {
  using U64 = Wide<U32>;
  constexpr int halves = kHalves<U32>;
  FASTNDSM_UNROLL
  for (int round = first; round < 9; ++round) {
    FASTNDSM_UNROLL
    for (int n = 0; n < N; ++n) {
      FASTNDSM_UNROLL
      for (int h = 0; h < halves; ++h) philox_round(c[n][h], key.of(round, 0), key.of(round, 1));
    }
  }
  FASTNDSM_UNROLL
  for (int n = 0; n < N; ++n) {
    if constexpr (halves == 1) {
      philox_round(c[n][0], key.of(9, 0), key.of(9, 1));
      for (int i = 0; i < 4; ++i) out[n][i] = static_cast<uint32_t>(c[n][0][i]);
    } else {  // the last round in 32-bit lanes: even and odd lanes come together with its products
      const U64 m0 = splat<U64>(kPhilox0), m1 = splat<U64>(kPhilox1);
      const U64 even0 = mul_low32(c[n][0][0], m0), odd0 = mul_low32(c[n][1][0], m0);
      const U64 even1 = mul_low32(c[n][0][2], m1), odd1 = mul_low32(c[n][1][2], m1);
      const U32 k0 = splat<U32>(static_cast<uint32_t>(key.of(9, 0))), k1 = splat<U32>(static_cast<uint32_t>(key.of(9, 1)));
      out[n][0] = merge_high32(even1, odd1) ^ merge_low32(c[n][0][1], c[n][1][1]) ^ k0;
      out[n][1] = merge_low32(even1, odd1);
      out[n][2] = merge_high32(even0, odd0) ^ merge_low32(c[n][0][3], c[n][1][3]) ^ k1;
      out[n][3] = merge_low32(even0, odd0);
    }
  }
}

}  // namespace detail

template <typename U32, int N>
FASTNDSM_HD void philox4x32_10(U32 (&c)[N][4], const PhiloxKey& key) {
  static_assert(std::is_same<scalar_of<U32>, uint32_t>::value, "counters are 32-bit words");
  detail::Wide<U32> wide[N][detail::kHalves<U32>][4];
  for (int n = 0; n < N; ++n) {
    for (int i = 0; i < 4; ++i) {
      detail::Wide<U32> word[detail::kHalves<U32>];
      detail::widen(c[n][i], word);
      for (int h = 0; h < detail::kHalves<U32>; ++h) wide[n][h][i] = word[h];
    }
  }
  detail::philox_rounds(0, wide, key, c);
}

// What the counters of some paths have in common. The first two rounds act on path, step and block almost separately:
//
//   round 0   c0 = hi(M1 step) ^ c1 ^ k0      c1 = lo(M1 step)     c2 = hi(M0 path) ^ block ^ k1    c3 = lo(M0 path)
//   round 1   hi and lo of M1 c2: path and block alone;            of M0 c0: path high word and step alone
//
// so that the steps of a trajectory and its dimension blocks share most of them.
template <typename U32>
struct PathCounters {
  using U64 = detail::Wide<U32>;
  static constexpr int kHalves = detail::kHalves<U32>;

  U64 low[kHalves], high[kHalves];  // M0 path, and its high half
  U64 c1[kHalves];                  // the path's high word

  FASTNDSM_HD PathCounters() = default;
  FASTNDSM_HD PathCounters(U32 path_low, U32 path_high) {
    U64 path[kHalves];
    detail::widen(path_low, path);
    detail::widen(path_high, c1);
    for (int h = 0; h < kHalves; ++h) low[h] = mul_low32(path[h], splat<U64>(detail::kPhilox0)), high[h] = high32(low[h]);
  }

  // words(block, out): of the consecutive blocks from `block` on, at one step.
  struct AtStep {
    const PathCounters& path;
    const PhiloxKey& key;
    U64 c2[kHalves], c3[kHalves];  // after two rounds
    uint64_t mask;                 // what the second round adds to c0

    template <int N>
    FASTNDSM_HD void words(uint32_t block, U32 (&out)[N][4]) const {
      U64 c[N][kHalves][4];
      for (int n = 0; n < N; ++n) {
        for (int h = 0; h < kHalves; ++h) {
          const U64 first = path.high[h] ^ splat<U64>(uint64_t(block + n) ^ key.of(0, 1));
          const U64 p1 = mul_low32(first, splat<U64>(detail::kPhilox1));
          c[n][h][0] = high32(p1) ^ splat<U64>(mask);
          c[n][h][1] = p1;
          c[n][h][2] = c2[h];
          c[n][h][3] = c3[h];
        }
      }
      detail::philox_rounds(2, c, key, out);
    }
  };

  FASTNDSM_HD AtStep at(uint32_t step, const PhiloxKey& key) const {
    AtStep s{*this, key, {}, {}, 0};
    const uint64_t p1 = uint64_t(step) * detail::kPhilox1;
    s.mask = static_cast<uint32_t>(p1) ^ key.of(1, 0);
    const U64 first = splat<U64>((p1 >> 32) ^ key.of(0, 0));
    for (int h = 0; h < kHalves; ++h) {
      s.c3[h] = mul_low32(U64(first ^ c1[h]), splat<U64>(detail::kPhilox0));
      s.c2[h] = high32(s.c3[h]) ^ low[h] ^ splat<U64>(key.of(1, 1));
    }
    return s;
  }
};

// What counters with the same second and third word have in common: the path's high word and the step. The first two
// rounds then need one multiplication each.
struct CommonWords {
  const PhiloxKey& key;
  uint64_t mask0, mask2, c3;  // what the second round adds to c0 and c2, and its c3

  FASTNDSM_HD CommonWords(uint32_t c1, uint32_t step, const PhiloxKey& key) : key(key) {
    const uint64_t p1 = uint64_t(step) * detail::kPhilox1;
    const uint64_t p0 = ((p1 >> 32) ^ c1 ^ key.of(0, 0)) * detail::kPhilox0;
    mask0 = static_cast<uint32_t>(p1) ^ key.of(1, 0);
    mask2 = (p0 >> 32) ^ key.of(1, 1);
    c3 = static_cast<uint32_t>(p0);
  }

  template <typename U32, int N>
  FASTNDSM_HD void words(const U32 (&path)[N], const U32 (&block)[N], U32 (&out)[N][4]) const {
    using U64 = detail::Wide<U32>;
    constexpr int halves = detail::kHalves<U32>;
    U64 c[N][halves][4];
    for (int n = 0; n < N; ++n) {
      U64 low[halves], dimensions[halves];
      detail::widen(path[n], low);
      detail::widen(block[n], dimensions);
      for (int h = 0; h < halves; ++h) {
        const U64 p0 = mul_low32(low[h], splat<U64>(detail::kPhilox0));
        const U64 p1 = mul_low32(U64(high32(p0) ^ dimensions[h] ^ splat<U64>(key.of(0, 1))), splat<U64>(detail::kPhilox1));
        c[n][h][0] = high32(p1) ^ splat<U64>(mask0);
        c[n][h][1] = p1;
        c[n][h][2] = p0 ^ splat<U64>(mask2);
        c[n][h][3] = splat<U64>(c3);
      }
    }
    detail::philox_rounds(2, c, key, out);
  }
};

// r cos(theta) and r sin(theta), r = sqrt(-2 ln u), u = (w0 + 1/2) 2^-32, theta = 2 pi int32(w1) 2^-32. |n| < 6.8.
template <typename V>
FASTNDSM_HD void box_muller(words_of<V> w0, words_of<V> w1, V& n0, V& n1) {
  const V r = sqrt(minus_two_log_uniform<V>(w0));
  V s, c;
  sincos_turns<V>(w1, s, c);
  n0 = r * c;
  n1 = r * s;
}

FASTNDSM_HD void path_words(int64_t path, uint32_t stream, uint32_t& c0, uint32_t& c1) {
  c0 = static_cast<uint32_t>(path);
  c1 = (static_cast<uint32_t>(static_cast<uint64_t>(path) >> 32) & 0x00ffffffu) | stream << 24;
}

struct NoiseStream {
  PhiloxKey key;
  uint32_t stream;

  FASTNDSM_HD NoiseStream(int64_t seed, uint32_t stream)
      : key(static_cast<uint32_t>(seed), static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)), stream(stream) {}
};

// z[0 .. C): the normals of dimensions 4 block .. 4 block + C - 1.
template <int C, typename V>
FASTNDSM_HD void some_normals(const typename PathCounters<words_of<V>>::AtStep& counters, uint32_t block, V* z) {
  words_of<V> w[(C + 3) / 4][4];
  counters.words(block, w);
  FASTNDSM_UNROLL
  for (int i = 0; i < C; i += 2) {
    V second;
    box_muller(w[i / 4][i % 4], w[i / 4][i % 4 + 1], z[i], second);
    if (i + 1 < C) z[i + 1] = second;
  }
}

// z[0 .. j1 - j0): those of dimensions j0 .. j1 - 1; 4 divides j0.
template <typename V>
FASTNDSM_OUTLINE void normals(const typename PathCounters<words_of<V>>::AtStep& counters, int64_t j0, int64_t j1, V* z) {
  int64_t j = j0;
  for (; j + 8 <= j1; j += 8) some_normals<8>(counters, static_cast<uint32_t>(j / 4), z + j - j0);
  for (; j < j1; j += 4) {
    V four[4];
    some_normals<4>(counters, static_cast<uint32_t>(j / 4), four);
    for (int64_t i = 0; i < 4 && j + i < j1; ++i) z[j + i - j0] = four[i];
  }
}

}  // namespace fastndsm
