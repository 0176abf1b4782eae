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
//   BoxMullerAhead                    many pairs one after the other, in stages that go side by side
//   some_normals, normals             those of some or many dimensions of some paths; NoiseAhead, step after step
//   path_words(path, stream, c0, c1)  the first two counter words of a path
//
// Every function is generic in the number of lanes (vec.h), one included, and takes part in host and device code.
//
// What a register of counters costs, in instructions, on AVX2 (8 counters; 32 normals):
//
//   a round      16   4 widening products of 32-bit words, even places and others apart; as many shuffles that bring the high
//                     halves down; 8 exclusive ors. No way of joining the two halves in between takes fewer.
//   first two    16   for both together (and 4 to spread the lanes); a trajectory's third round takes no more than they do
//   last         14   4 products, 6 shuffles that join the halves, 4 exclusive ors
//   logarithm    21   of which 10 the polynomial, 9 uniform and exponent; a root
//   sine, cosine 19   of which 8 the polynomials; 2 products. Logarithm, root, these and the products twice: 86
//
// together 232, and 212 where a trajectory draws them; on NEON (4 counters) a round is 12: 4 products, 4 shuffles that part
// low halves from high ones, 4 exclusive ors. At four a cycle 232 are 1.8 cycles a normal; a round's chain is 6 to 9 cycles
// long, ten of them and 65 cycles of logarithm and root, so that three stages go side by side (BoxMullerAhead). GCC makes 290
// of them, with what does not fit 16 registers. Zen 3 takes 2.7 to 3.1 cycles a normal, and 2.1 to 2.6 for the same instructions
// where none waits for another.
#pragma once

#include "vecmath.h"

namespace fastndsm {

// The key of a stream; round r takes k0 + r 0x9E3779B9 and k1 + r 0xBB67AE85.
struct PhiloxKey {
  uint32_t k0, k1;
#if !defined(__CUDACC__)
  // In memory, from where a vector instruction takes them at no cost: it broadcasts one on AVX-512, elsewhere whole
  // registers hold nothing else.
  static constexpr int kCopies = kVectorBytes == 64 || kVectorBytes == 0 ? 1 : kVectorBytes / 8;
  alignas(8 * kCopies) uint64_t schedule[10][2][kCopies];
#endif

  FASTNDSM_HD PhiloxKey(uint32_t k0, uint32_t k1) : k0(k0), k1(k1) {
#if !defined(__CUDACC__)
    for (int round = 0; round < 10; ++round) {
      for (int word = 0; word < 2; ++word) {
        for (uint64_t& copy : schedule[round][word]) copy = of(round, word) * 0x100000001ull;  // for lanes of either width
      }
    }
#endif
  }

  FASTNDSM_HD uint32_t of(int round, int word) const {
    return word == 0 ? k0 + round * 0x9E3779B9u : k1 + round * 0xBB67AE85u;
  }

  // In all lanes; the high halves of 64-bit ones are arbitrary.
  template <typename V>
  FASTNDSM_HD V lanes(int round, int word) const {
#if !defined(__CUDACC__)
    if constexpr (detail::kIsPack<V>) {
      return detail::each([&](auto part) { return lanes<decltype(part)>(round, word); }, V{});
    } else if constexpr (lanes_of<V> > 1 && kCopies > 1) {
      static_assert(sizeof(V) <= 8 * kCopies, "no more than a register");
      return load<V>(reinterpret_cast<const scalar_of<V>*>(schedule[round][word]));
    } else if constexpr (sizeof(scalar_of<V>) == 8) {
      return splat<V>(schedule[round][word][0]);
    }
#endif
    return splat<V>(of(round, word));
  }
};

namespace detail {

constexpr uint32_t kPhilox0 = 0xD2511F53u, kPhilox1 = 0xCD9E8D57u;

// A word of as many counters as U32 has lanes, in 64-bit lanes: two vectors of half of them each, kept apart through all
// rounds. Only the low 32 bits of a lane mean anything: a multiplication reads no others, so that the low half of a
// product, which the next round needs, is the product itself.
template <typename U32, bool dense = kMultipliesWords<U32>>
struct CounterWord {
  static constexpr int kHalves = lanes_of<U32> == 1 ? 1 : 2;
  using Lanes = vec<uint64_t, lanes_of<U32> / kHalves>;
  Lanes half[kHalves];

  CounterWord() = default;
  FASTNDSM_HD explicit CounterWord(U32 word) {
    if constexpr (kHalves == 1) {
      half[0] = word;
    } else {
      spread_words(word, half[0], half[1]);
    }
  }

  FASTNDSM_HD CounterWord times(uint32_t factor) const {
    CounterWord out;
    for (int h = 0; h < kHalves; ++h) out.half[h] = mul_low32(half[h], splat<Lanes>(factor));
    return out;
  }
  FASTNDSM_HD CounterWord high() const {  // of a product
    CounterWord out;
    for (int h = 0; h < kHalves; ++h) out.half[h] = high32(half[h]);
    return out;
  }
  FASTNDSM_HD CounterWord operator^(const CounterWord& other) const {
    CounterWord out;
    for (int h = 0; h < kHalves; ++h) out.half[h] = half[h] ^ other.half[h];
    return out;
  }
  FASTNDSM_HD CounterWord operator^(Lanes same) const {
    CounterWord out;
    for (int h = 0; h < kHalves; ++h) out.half[h] = half[h] ^ same;
    return out;
  }

  // The words again, and those of the high halves.
  FASTNDSM_HD U32 words() const {
    if constexpr (kHalves == 1) {
      return static_cast<uint32_t>(half[0]);
    } else {
      return merge_low32(half[0], half[1]);
    }
  }
  FASTNDSM_HD U32 high_words() const {
    if constexpr (kHalves == 1) {
      return static_cast<uint32_t>(half[0] >> 32);
    } else {
      return merge_high32(half[0], half[1]);
    }
  }
};

// The same where a multiplication takes 32-bit lanes as they lie.
template <typename U32>
struct CounterWord<U32, true> {
  using Lanes = U32;
  U32 low, upper;  // upper: of a product

  CounterWord() = default;
  FASTNDSM_HD explicit CounterWord(U32 word) : low(word) {}

  FASTNDSM_HD CounterWord times(uint32_t factor) const {
    CounterWord out;
    mul_words(low, factor, out.low, out.upper);
    return out;
  }
  FASTNDSM_HD CounterWord high() const { return CounterWord(upper); }
  FASTNDSM_HD CounterWord operator^(const CounterWord& other) const { return CounterWord(low ^ other.low); }
  FASTNDSM_HD CounterWord operator^(U32 same) const { return CounterWord(low ^ same); }
  FASTNDSM_HD U32 words() const { return low; }
  FASTNDSM_HD U32 high_words() const { return upper; }
};

// Rounds first .. 9 of N counters in step with one another; out[n] are their words.
template <typename U32, int N>
FASTNDSM_HD void philox_rounds(int first, CounterWord<U32> (&c)[N][4], const PhiloxKey& key, U32 (&out)[N][4]) {
  using Word = CounterWord<U32>;
  using Lanes = typename Word::Lanes;
  FASTNDSM_UNROLL
  for (int round = first; round < 9; ++round) {
    FASTNDSM_UNROLL
    for (int n = 0; n < N; ++n) {
      const Word p0 = c[n][0].times(kPhilox0), p1 = c[n][2].times(kPhilox1);
      c[n][0] = p1.high() ^ c[n][1] ^ key.lanes<Lanes>(round, 0);
      c[n][2] = p0.high() ^ c[n][3] ^ key.lanes<Lanes>(round, 1);
      c[n][1] = p1;
      c[n][3] = p0;
    }
  }
  FASTNDSM_UNROLL
  for (int n = 0; n < N; ++n) {  // the last round in 32-bit lanes: halves come together with its products
    const Word p0 = c[n][0].times(kPhilox0), p1 = c[n][2].times(kPhilox1);
    out[n][0] = p1.high_words() ^ c[n][1].words() ^ key.lanes<U32>(9, 0);
    out[n][1] = p1.words();
    out[n][2] = p0.high_words() ^ c[n][3].words() ^ key.lanes<U32>(9, 1);
    out[n][3] = p0.words();
  }
}

// Counters whose rounds go in lock step, to overlap their latencies: as many as registers hold.
constexpr int kInStep = kRegisters >= 32 ? 2 : 1;

// start(n, c) gives the words of N counters before round `first`.
template <typename U32, int N, typename Start>
FASTNDSM_HD void philox_from(int first, const PhiloxKey& key, U32 (&out)[N][4], const Start& start) {
  constexpr int together = N % kInStep == 0 ? kInStep : 1;
  FASTNDSM_UNROLL
  for (int n = 0; n < N; n += together) {
    CounterWord<U32> c[together][4];
    U32 words[together][4];
    FASTNDSM_UNROLL
    for (int i = 0; i < together; ++i) start(n + i, c[i]);
    philox_rounds(first, c, key, words);
    FASTNDSM_UNROLL
    for (int i = 0; i < together; ++i) {
      FASTNDSM_UNROLL
      for (int w = 0; w < 4; ++w) out[n + i][w] = words[i][w];
    }
  }
}

}  // namespace detail

template <typename U32, int N>
FASTNDSM_HD void philox4x32_10(U32 (&c)[N][4], const PhiloxKey& key) {
  static_assert(std::is_same<scalar_of<U32>, uint32_t>::value, "counters are 32-bit words");
  detail::philox_from(0, key, c, [&](int n, detail::CounterWord<U32>(&start)[4]) FASTNDSM_INLINE {
    FASTNDSM_UNROLL
    for (int i = 0; i < 4; ++i) start[i] = detail::CounterWord<U32>(c[n][i]);
  });
}

// What the counters of some paths have in common. The first rounds act on path, step and block almost separately:
//
//   round 0   c0 = hi(M1 step) ^ c1 ^ k0      c1 = lo(M1 step)     c2 = hi(M0 path) ^ block ^ k1    c3 = lo(M0 path)
//   round 1   hi and lo of M1 c2: path and block alone;            of M0 c0: path high word and step alone
//   round 2   c2 and c3, and so hi and lo of M1 c2: path and step alone
//
// so that the steps of a trajectory and its dimension blocks share most of them.
template <typename U32>
struct PathCounters {
  using Word = detail::CounterWord<U32>;
  using Lanes = typename Word::Lanes;

  Word low, high;  // M0 path, and its high half
  Word c1;  // the path's high word

  FASTNDSM_HD PathCounters() = default;
  FASTNDSM_HD PathCounters(U32 path_low, U32 path_high)
      : low(Word(path_low).times(detail::kPhilox0)), high(low.high()), c1(path_high) {}

  // words(block, out): of the consecutive blocks from `block` on, at one step.
  struct AtStep {
    const PathCounters& path;
    const PhiloxKey& key;
    uint32_t mask;  // what the second round adds to c0
    Word m0, c1, m2;  // of the third: its c1, and what it adds to c0 and c2

    template <int N>
    FASTNDSM_HD void words(uint32_t block, U32 (&out)[N][4]) const {
      detail::philox_from(3, key, out, [&](int n, Word(&c)[4]) FASTNDSM_INLINE { start(block + n, c); });
    }

    // The words of a block before the fourth round.
    FASTNDSM_HD void start(uint32_t block, Word (&c)[4]) const {
      const Word p1 = (path.high ^ splat<Lanes>(block ^ key.of(0, 1))).times(detail::kPhilox1);
      const Word p0 = (p1.high() ^ splat<Lanes>(mask)).times(detail::kPhilox0);
      c[0] = p1 ^ m0;
      c[1] = c1;
      c[2] = p0.high() ^ m2;
      c[3] = p0;
    }
  };

  FASTNDSM_HD AtStep at(uint32_t step, const PhiloxKey& key) const {
    const uint64_t q1 = uint64_t(step) * detail::kPhilox1;
    const Word p0 = (c1 ^ splat<Lanes>(static_cast<uint32_t>(q1 >> 32) ^ key.of(0, 0))).times(detail::kPhilox0);
    const Word p1 = (p0.high() ^ low ^ splat<Lanes>(key.of(1, 1))).times(detail::kPhilox1);
    return {*this,
            key,
            static_cast<uint32_t>(q1) ^ key.of(1, 0),
            p1.high() ^ key.lanes<Lanes>(2, 0),
            p1,
            p0 ^ key.lanes<Lanes>(2, 1)};
  }
};

// What counters with the same second and third word have in common: the path's high word and the step. The first two
// rounds then need one multiplication each.
struct CommonWords {
  const PhiloxKey& key;
  uint32_t mask0, mask2, c3;  // what the second round adds to c0 and c2, and its c3

  FASTNDSM_HD CommonWords(uint32_t c1, uint32_t step, const PhiloxKey& key) : key(key) {
    const uint64_t p1 = uint64_t(step) * detail::kPhilox1;
    const uint64_t p0 = uint64_t(static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key.of(0, 0)) * detail::kPhilox0;
    mask0 = static_cast<uint32_t>(p1) ^ key.of(1, 0);
    mask2 = static_cast<uint32_t>(p0 >> 32) ^ key.of(1, 1);
    c3 = static_cast<uint32_t>(p0);
  }

  template <typename U32, int N>
  FASTNDSM_HD void words(const U32 (&path)[N], const U32 (&block)[N], U32 (&out)[N][4]) const {
    using Word = detail::CounterWord<U32>;
    using Lanes = typename Word::Lanes;
    detail::philox_from(2, key, out, [&](int n, Word(&c)[4]) FASTNDSM_INLINE {
      const Word p0 = Word(path[n]).times(detail::kPhilox0);
      const Word p1 = (p0.high() ^ Word(block[n]) ^ key.lanes<Lanes>(0, 1)).times(detail::kPhilox1);
      c[0] = p1.high() ^ splat<Lanes>(mask0);
      c[1] = p1;
      c[2] = p0 ^ splat<Lanes>(mask2);
      c[3] = Word(splat<U32>(c3));
    });
  }
};

// r cos(theta) and r sin(theta), theta = 2 pi int32(angle) 2^-32.
template <typename V>
FASTNDSM_HD void from_polar(V r_squared, words_of<V> angle, V& n0, V& n1) {
  bits_of<V> turned;
  V s, c;
  sincos_half_turns<V>(angle, s, c, turned);
  const V r = flip_sign(turned, sqrt(r_squared));
  n0 = r * c;
  n1 = r * s;
}

// Those of r^2 = -2 ln u, u = (w0 + 1/2) 2^-32, and the angle w1. |n| < 6.8.
template <typename V>
FASTNDSM_HD void box_muller(words_of<V> w0, words_of<V> w1, V& n0, V& n1) {
  from_polar(minus_two_log_uniform<V>(w0), w1, n0, n1);
}

namespace detail {

// N vectors side by side as one, where registers hold them: each is one long chain of dependent instructions.
template <typename V, int N>
constexpr bool kSideBySide = N > 1 && lanes_of<V> == kLanes<float>&& lanes_of<V> > 1 && kSingle<V>;

template <typename V, int N>
FASTNDSM_HD Pack<V, N> packed(const V (&x)[N]) {
  Pack<V, N> out;
  FASTNDSM_UNROLL
  for (int i = 0; i < N; ++i) out.part[i] = x[i];
  return out;
}
template <typename V, int N>
FASTNDSM_HD void unpack(const Pack<V, N>& pack, V (&x)[N]) {
  FASTNDSM_UNROLL
  for (int i = 0; i < N; ++i) x[i] = pack.part[i];
}

template <int N, typename V>
FASTNDSM_HD void minus_two_log_uniforms(const words_of<V> (&w)[N], V (&out)[N]) {
  if constexpr (kSideBySide<V, N>) {
    unpack(minus_two_log_uniform<Pack<V, N>>(packed(w)), out);
  } else {
    FASTNDSM_UNROLL
    for (int i = 0; i < N; ++i) out[i] = minus_two_log_uniform<V>(w[i]);
  }
}

template <int N, typename V>
FASTNDSM_HD void all_from_polar(const V (&r_squared)[N], const words_of<V> (&angle)[N], V (&n0)[N], V (&n1)[N]) {
  if constexpr (kSideBySide<V, N>) {
    Pack<V, N> cosine, sine;
    from_polar(packed(r_squared), packed(angle), cosine, sine);
    unpack(cosine, n0), unpack(sine, n1);
  } else {
    FASTNDSM_UNROLL
    for (int i = 0; i < N; ++i) from_polar(r_squared[i], angle[i], n0[i], n1[i]);
  }
}

}  // namespace detail

// N pairs.
template <int N, typename V>
FASTNDSM_HD void box_mullers(const words_of<V> (&w0)[N], const words_of<V> (&w1)[N], V (&n0)[N], V (&n1)[N]) {
  V r_squared[N];
  detail::minus_two_log_uniforms(w0, r_squared);
  detail::all_from_polar(r_squared, w1, n0, n1);
}

// The normals of counters one after the other, N a turn, P dimensions of each: words go in, and come out as normals kTurns turns
// later. What goes side by side then: the words of one turn, which the caller makes, the logarithms of the one before, and
// sine, cosine and root of the one before that. With many registers two turns are as good, and take fewer of them.
template <typename V, int N, int P>
class BoxMullerAhead {
  using U = words_of<V>;
  static constexpr int kPairs = N * P / 2;
  static constexpr bool kLogAhead = kRegisters < 32;
  U u_[kPairs]{}, angle_[kPairs]{}, angle_of_r_[kPairs]{};
  V r_squared_[kPairs]{};

 public:
  static constexpr int kTurns = kLogAhead ? 2 : 1;

  FASTNDSM_HD void turn(const U (&words)[N][4], V (&normals)[N][P]) {
    V even[kPairs], odd[kPairs];
    if constexpr (kLogAhead) {
      V r_squared[kPairs];
      detail::minus_two_log_uniforms(u_, r_squared);
      detail::all_from_polar(r_squared_, angle_of_r_, even, odd);
      FASTNDSM_UNROLL
      for (int i = 0; i < kPairs; ++i) r_squared_[i] = r_squared[i], angle_of_r_[i] = angle_[i];
    } else {
      box_mullers(u_, angle_, even, odd);
    }
    FASTNDSM_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      const U(&w)[4] = words[2 * i / P];
      u_[i] = w[2 * i % P], angle_[i] = w[2 * i % P + 1];
    }
    FASTNDSM_UNROLL
    for (int i = 0; i < N * P; ++i) normals[i / P][i % P] = i % 2 == 0 ? even[i / 2] : odd[i / 2];
  }
};

// z[0 .. C): the normals of the words of consecutive counters, C of their dimensions.
template <int C, typename V>
FASTNDSM_HD void normals_of(const words_of<V> (*w)[4], V* z) {
  constexpr int pairs = (C + 1) / 2;
  words_of<V> u[pairs], angle[pairs];
  V even[pairs], odd[pairs];
  FASTNDSM_UNROLL
  for (int i = 0; i < pairs; ++i) u[i] = w[i / 2][i % 2 * 2], angle[i] = w[i / 2][i % 2 * 2 + 1];
  box_mullers(u, angle, even, odd);
  FASTNDSM_UNROLL
  for (int i = 0; i < C; ++i) z[i] = i % 2 == 0 ? even[i / 2] : odd[i / 2];
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
  normals_of<C, V>(w, z);
}

// z[i]: the normals of dimensions 0 .. C - 1 <= 3 at each of N steps from `first` on, whose counters are at(step). They are made
// side by side: those of one step are a chain of dependent instructions, which leaves the pipes empty.
template <typename At, int C, int N, typename V>
FASTNDSM_HD void normals_of_steps(const At& at, int64_t first, V (&z)[N][C]) {
  static_assert(C <= 4, "one counter a step");
  using Word = detail::CounterWord<words_of<V>>;
  constexpr int pairs = (C + 1) / 2;
  words_of<V> w[N][4], u[N * pairs], angle[N * pairs];
  V even[N * pairs], odd[N * pairs];
  detail::philox_from(3, at(first).key, w, [&](int n, Word(&c)[4]) FASTNDSM_INLINE { at(first + n).start(0, c); });
  FASTNDSM_UNROLL
  for (int i = 0; i < N * pairs; ++i) u[i] = w[i / pairs][i % pairs * 2], angle[i] = w[i / pairs][i % pairs * 2 + 1];
  box_mullers(u, angle, even, odd);
  FASTNDSM_UNROLL
  for (int n = 0; n < N; ++n) {
    FASTNDSM_UNROLL
    for (int j = 0; j < C; ++j) z[n][j] = j % 2 == 0 ? even[n * pairs + j / 2] : odd[n * pairs + j / 2];
  }
}

// The normals of a path's steps one after the other, all dimensions of each: what comes next is begun beside what is asked for.
template <typename V>
class NoiseAhead {
  using U = words_of<V>;
  static constexpr int kCounters = detail::kInStep;
  using Stages = BoxMullerAhead<V, kCounters, 4>;

  struct Place {
    int64_t step, j;
  };
  Stages stages_;
  Place out_{0, -1}, in_{0, 0};  // of the values that come out next, and of the words that go in

 public:
  static constexpr int kChunk = 4 * kCounters;

  // z[0 .. n): those from dimension j of dim at a step on, step + way after it, and so on. kChunk divides j, and n unless a step
  // ends there. To go on elsewhere than where the last call ended costs kTurns more chunks.
  FASTNDSM_HD void normals(const PathCounters<U>& paths, const PhiloxKey& key, int64_t step, int64_t way, int64_t dim,
                           int64_t j, int64_t n, V* z) {
    if (step != out_.step || j != out_.j) {
      in_ = out_ = {step, j};
      turns(paths, key, way, dim, Stages::kTurns, nullptr);
    }
    const int64_t chunks = (dim + kChunk - 1) / kChunk, end = j + n;  // of whole steps, and of a part of the last
    turns(paths, key, way, dim, end / dim * chunks + (end % dim + kChunk - 1) / kChunk - j / kChunk, z);
  }

 private:
  // To z goes what comes out, unless it is null.
  FASTNDSM_MIXED void turns(const PathCounters<U>& paths, const PhiloxKey& key, int64_t way, int64_t dim, int64_t n, V* z) {
    Stages stages = stages_;
    Place in = in_, out = out_;
    while (n > 0) {
      const auto counters = paths.at(static_cast<uint32_t>(in.step), key);
      for (; n > 0 && in.j < dim; --n, in.j += kChunk) {
        U words[kCounters][4];
        counters.words(static_cast<uint32_t>(in.j / 4), words);
        V own[kCounters][4];
        stages.turn(words, own);
        if (!z) continue;
        const int64_t left = dim - out.j;
        if (left >= kChunk) {
          FASTNDSM_UNROLL
          for (int i = 0; i < kChunk; ++i) z[i] = own[i / 4][i % 4];
        } else {
          for (int64_t i = 0; i < left; ++i) z[i] = own[i / 4][i % 4];
        }
        z += std::min<int64_t>(left, kChunk);
        out.j += kChunk;
        if (out.j >= dim) out = {out.step + way, 0};
      }
      if (in.j >= dim) in = {in.step + way, 0};
    }
    stages_ = stages, in_ = in, out_ = out;
  }
};

// z[0 .. dim): those of dimensions 0 .. dim - 1 at one step.
template <typename V>
FASTNDSM_HD void normals(const PathCounters<words_of<V>>& paths, const PhiloxKey& key, int64_t step, int64_t dim, V* z) {
  NoiseAhead<V>().normals(paths, key, step, 1, dim, 0, dim, z);
}

}  // namespace fastndsm
