// The noise stream: Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, Random123) and Box-Muller normals.
//
//   key       the 64-bit seed
//   counter   (path low 32 bits, path bits 32..55 with the stream number in the top byte, step, dimension block)
//
// One counter gives the four normals of dimensions 4 block .. 4 block + 3 of one path at one step. Lanes of a vector
// are independent counters: lanes may be 16 paths at the same step and block, or 16 blocks of one path, or any mixture.
//
//   philox4x32_10(c, k0, k1)          c[0..3], vectors of 32-bit words, become the four random words, in place
//   box_muller(w0, w1, n0, n1)        two normals, float or double, from two words
//   path_words(path, stream, c0, c1)  the first two counter words of a path
//   NoiseStream(seed, stream)         all of it: stream.normals(c0, c1, step, block, n)
//
// Every function is generic in the number of lanes (vec.h), one included, and takes part in host and device code.
#pragma once

#include "vecmath.h"

namespace fastndsm {

namespace detail {

// The rounds on N independent vectors of 64-bit lanes, in step with one another to overlap their latencies. Only the
// low 32 bits of each lane mean anything, in and out: a multiplication reads no others, so that the low half of a
// product, which the next round needs, is the product itself.
template <typename U64, int N>
FASTNDSM_HD void philox_rounds(U64 (&c)[N][4], uint32_t k0, uint32_t k1) {
  const U64 m0 = splat<U64>(0xD2511F53u), m1 = splat<U64>(0xCD9E8D57u);
  FASTNDSM_UNROLL
  for (int round = 0; round < 10; ++round) {
    FASTNDSM_UNROLL
    for (int i = 0; i < N; ++i) {
      const U64 p0 = mul_low32(c[i][0], m0);
      const U64 p1 = mul_low32(c[i][2], m1);
      c[i][0] = high32(p1) ^ c[i][1] ^ splat<U64>(k0);
      c[i][2] = high32(p0) ^ c[i][3] ^ splat<U64>(k1);
      c[i][1] = p1;
      c[i][3] = p0;
    }
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

}  // namespace detail

template <typename U32, int N>
FASTNDSM_HD void philox4x32_10(U32 (&c)[N][4], uint32_t k0, uint32_t k1) {
  static_assert(std::is_same<scalar_of<U32>, uint32_t>::value, "counters are 32-bit words");
  if constexpr (lanes_of<U32> == 1) {
    uint64_t wide[N][4];
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < 4; ++i) wide[n][i] = c[n][i];
    }
    detail::philox_rounds(wide, k0, k1);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < 4; ++i) c[n][i] = static_cast<uint32_t>(wide[n][i]);
    }
  } else {
    using U64 = vec<uint64_t, lanes_of<U32> / 2>;
    U64 halves[2 * N][4];  // the even lanes of c as they lie (little endian), and the odd ones shifted down
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < 4; ++i) {
        halves[2 * n][i] = reinterpret<U64>(c[n][i]);
        halves[2 * n + 1][i] = high32(halves[2 * n][i]);
      }
    }
    detail::philox_rounds(halves, k0, k1);
    for (int n = 0; n < N; ++n) {
      for (int i = 0; i < 4; ++i) {
        c[n][i] = reinterpret<U32>((halves[2 * n][i] & uint64_t(0xffffffff)) | (halves[2 * n + 1][i] << 32));
      }
    }
  }
}

template <typename U32>
FASTNDSM_HD void philox4x32_10(U32 (&c)[4], uint32_t k0, uint32_t k1) {
  U32 one[1][4] = {{c[0], c[1], c[2], c[3]}};
  philox4x32_10(one, k0, k1);
  for (int i = 0; i < 4; ++i) c[i] = one[0][i];
}

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
  uint32_t k0, k1, stream;

  FASTNDSM_HD NoiseStream(int64_t seed, uint32_t stream)
      : k0(static_cast<uint32_t>(seed)), k1(static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32)), stream(stream) {}

  // n[0..3]: dimensions 4 block .. 4 block + 3 of the paths whose counter words are c0, c1.
  template <typename V>
  FASTNDSM_HD void normals(words_of<V> c0, words_of<V> c1, words_of<V> step, words_of<V> block, V (&n)[4]) const {
    words_of<V> c[4] = {c0, c1, step, block};
    philox4x32_10(c, k0, k1);
    box_muller(c[0], c[1], n[0], n[1]);
    box_muller(c[2], c[3], n[2], n[3]);
  }

  // n[0..1] alone, for the last block where one or two dimensions are left.
  template <typename V>
  FASTNDSM_HD void normals(words_of<V> c0, words_of<V> c1, words_of<V> step, words_of<V> block, V (&n)[2]) const {
    words_of<V> c[4] = {c0, c1, step, block};
    philox4x32_10(c, k0, k1);
    box_muller(c[0], c[1], n[0], n[1]);
  }
};

}  // namespace fastndsm
