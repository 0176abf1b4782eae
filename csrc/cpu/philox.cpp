// philox_normal: standard normals of the counter-based stream, one row a path.
//
// The output is a sequence of blocks of four dimensions (of two, where dim <= 2), rows after one another. Lanes are
// consecutive blocks, whichever rows they belong to, and every value is computed by the same vector code, in the tail
// too: a value depends on its counter alone, never on threads, chunks or its place in the batch.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "../include/interleave.h"
#include "../include/philox.h"

namespace fastndsm {
namespace {

constexpr int64_t kGrainBlocks = 4096;
constexpr int kTogether = detail::kInStep;  // vectors of counters

struct Rows {
  int64_t n_paths, dim, first_path;
  const int64_t* step;
  bool step_per_path;
};

// The steps of the rows that the W blocks from g on belong to.
template <typename V, int P>
words_of<V> lane_steps(const Rows& rows, int64_t g, int64_t per_row) {
  uint32_t step[lanes_of<V>];
  for (int l = 0; l < lanes_of<V>; ++l) {
    const int64_t row = (g + interleaved_place<V, P>(l)) / per_row;
    step[l] = static_cast<uint32_t>(rows.step[std::min(row, rows.n_paths - 1)]);
  }
  return load<words_of<V>>(step);
}

// The rows of the output, where blocks are written one after another; the last of a row may have fewer than P values.
template <typename S, int P>
struct BlockWriter {
  S* out;
  int64_t dim, first;  // first: dimension of the next value

  FASTNDSM_OUTLINE void put(const S* values, int64_t n_blocks) {
    for (; n_blocks > 0; --n_blocks, values += P) {
      const int64_t kept = std::min<int64_t>(P, dim - first);
      std::copy_n(values, kept, out);
      out += kept;
      first = first + P < dim ? first + P : 0;
    }
  }
};

// Blocks [begin, end) of the output, P values each; their paths share the high counter word c1. The words of some are made
// beside the normals of those before: two long chains of dependent instructions, which fill each other's waits.
template <typename V, int P, bool step_per_path>
FASTNDSM_MIXED void fill_blocks(scalar_of<V>* out, const Rows& rows, const NoiseStream& noise, uint32_t c1, int64_t begin,
                                int64_t end) {
  using U = words_of<V>;
  using S = scalar_of<V>;
  constexpr int W = lanes_of<V>;
  const int64_t per_row = (rows.dim + P - 1) / P, first = begin % per_row * P;
  const bool contiguous = rows.dim % P == 0;
  BlockWriter<S, P> writer{out + begin / per_row * rows.dim + first, rows.dim, first};

  uint32_t path_lane[W], block_lane[W];
  for (int l = 0; l < W; ++l) {
    const int64_t g = begin + interleaved_place<V, P>(l);
    path_lane[l] = static_cast<uint32_t>(rows.first_path + g / per_row);
    block_lane[l] = static_cast<uint32_t>(g % per_row);
  }
  U path = load<U>(path_lane), block = load<U>(block_lane);
  const U rows_ahead = splat<U>(static_cast<uint32_t>(W / per_row));
  const U blocks_ahead = splat<U>(static_cast<uint32_t>(W % per_row));
  const U row_length = splat<U>(static_cast<uint32_t>(per_row));

  const CommonWords common(c1, static_cast<uint32_t>(rows.step[0]), noise.key);
  const auto draw = [&](int64_t at, U(&words)[kTogether][4]) FASTNDSM_INLINE {
    U paths[kTogether], blocks[kTogether];
    FASTNDSM_UNROLL
    for (int i = 0; i < kTogether; ++i) {
      paths[i] = path, blocks[i] = block;
      block += blocks_ahead;
      path += rows_ahead;
      const auto wrapped = block >= row_length;
      path = select(wrapped, U(path + 1u), path);
      block = select(wrapped, U(block - row_length), block);
    }
    if constexpr (step_per_path) {
      for (int i = 0; i < kTogether; ++i) {
        words[i][0] = paths[i], words[i][1] = splat<U>(c1);
        words[i][2] = lane_steps<V, P>(rows, at + i * W, per_row), words[i][3] = blocks[i];
      }
      philox4x32_10(words, noise.key);
    } else {
      common.words(paths, blocks, words);
    }
  };
  constexpr int group = kTogether * W;
  BoxMullerAhead<V, kTogether, P> stages;
  V normals[kTogether][P];
  int64_t drawn = begin;
  const auto turn = [&]() FASTNDSM_INLINE {
    U words[kTogether][4];
    draw(drawn, words);
    stages.turn(words, normals);
    drawn += group;
  };
  for (int i = 0; i < stages.kTurns; ++i) turn();
  const auto normals_of_group = [&](S* to) FASTNDSM_INLINE {
    turn();
    FASTNDSM_UNROLL
    for (int i = 0; i < kTogether; ++i) store_interleaved(to + i * P * W, normals[i]);
  };
  if (contiguous) {
    for (; end - begin >= group; begin += group, writer.out += P * group) normals_of_group(writer.out);
  }
  S values[P * group];
  for (; begin < end; begin += group) {
    normals_of_group(values);
    writer.put(values, std::min<int64_t>(group, end - begin));
  }
}

template <typename V, int P>
void fill(scalar_of<V>* out, const Rows& rows, const NoiseStream& noise) {
  const int64_t per_row = (rows.dim + P - 1) / P;
  at::parallel_for(0, rows.n_paths * per_row, kGrainBlocks, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // once, unless the low word of the path runs over in this chunk
      const int64_t path = rows.first_path + begin / per_row;
      const int64_t next_high = ((path >> 32) + 1) << 32;
      const int64_t stop = std::min(end, (next_high - rows.first_path) * per_row);
      uint32_t c0, c1;
      path_words(path, noise.stream, c0, c1);
      if (rows.step_per_path) {
        fill_blocks<V, P, true>(out, rows, noise, c1, begin, stop);
      } else {
        fill_blocks<V, P, false>(out, rows, noise, c1, begin, stop);
      }
      begin = stop;
    }
  });
}

template <typename S>
void fill(S* out, const Rows& rows, const NoiseStream& noise) {
  using V = vec<S, kLanes<S>>;
  if (rows.dim <= 2) {
    fill<V, 2>(out, rows, noise);
  } else {
    fill<V, 4>(out, rows, noise);
  }
}

at::Tensor philox_normal(int64_t n_paths, int64_t dim, const at::Tensor& seed, const at::Tensor& step, int64_t stream,
                         int64_t first_path, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(n_paths >= 0, "n_paths: expected at least 0, found ", n_paths);
  TORCH_CHECK_VALUE(dim >= 1 && dim <= (int64_t(1) << 33), "dim: expected 1 to 2^33, found ", dim);
  TORCH_CHECK_VALUE(first_path >= 0, "first_path: expected at least 0, found ", first_path);
  TORCH_CHECK_VALUE(stream >= 0 && stream < 256, "stream: expected 0 to 255, found ", stream);
  TORCH_CHECK_VALUE(seed.scalar_type() == at::kLong && seed.dim() == 0, "seed: expected a 0-d int64 tensor, found ",
                    seed.scalar_type(), " of shape ", seed.sizes());
  TORCH_CHECK_VALUE(step.scalar_type() == at::kLong && (step.dim() == 0 || (step.dim() == 1 && step.size(0) == n_paths)),
                    "step: expected an int64 tensor, 0-d or [", n_paths, "], found ", step.scalar_type(), " of shape ",
                    step.sizes());
  const bool half = dtype == at::kHalf || dtype == at::kBFloat16;
  TORCH_CHECK_TYPE(half || dtype == at::kFloat || dtype == at::kDouble,
                   "dtype: expected float32, float64, float16 or bfloat16, found ", dtype);

  at::Tensor out = at::empty({n_paths, dim}, seed.options().dtype(half ? at::kFloat : dtype));
  if (n_paths > 0) {
    const at::Tensor steps = step.contiguous();
    const Rows rows{n_paths, dim, first_path, steps.const_data_ptr<int64_t>(), step.dim() == 1};
    const NoiseStream noise(*seed.const_data_ptr<int64_t>(), static_cast<uint32_t>(stream));
    if (dtype == at::kDouble) {
      fill(out.mutable_data_ptr<double>(), rows, noise);
    } else {
      fill(out.mutable_data_ptr<float>(), rows, noise);
    }
  }
  return half ? out.to(dtype) : out;
}

std::string vector_isa() { return kVectorISA; }

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def(
      "philox_normal(int n_paths, int dim, Tensor seed, Tensor step, int stream, int first_path, ScalarType dtype) -> "
      "Tensor");
  m.def("vector_isa() -> str", vector_isa);  // the instruction set that this library was compiled for
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) { m.impl("philox_normal", philox_normal); }

}  // namespace fastndsm
