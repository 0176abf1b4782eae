// Rows of a batch as the lanes of tiles: which rows share one, and where their records go. Whatever the drift.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../include/columns.h"
#include "../include/lanes.h"

namespace fastndsm {

template <typename S>
struct Batch {
  int64_t n_rows, n_records, n_steps, first_path;
  const S* x0;  // [n_rows, d]
  const int64_t* steps;  // [n_rows, n_records], 0..n_steps: after how many of them a path's records are taken
  const int64_t *first, *last;  // [n_rows], the least and the most of them
  S* x;  // [n_rows, n_records, d], or [2 n_rows, n_records, d] if mirrored
  S* mean;  // like x, or null
  S* noise;
  S* target;  // like x, or null
  S* variance;  // [rows of x, n_records, 1] spherical, else like x
  bool mirrored;

  // Whether the results are larger than the caches, and written past them.
  bool streams(int64_t d, int64_t rates) const {
    const int64_t records = n_rows * n_records * (mirrored ? 2 : 1);
    const int64_t values = target ? 2 * d + rates : mean ? 3 * d : d;
    return records * values * sizeof(S) >= kStreamedBytes;
  }

  // Rows whose records a cache holds: those that share a tile had better be no further from each other than that.
  int64_t neighbors(int64_t d) const {
    const int64_t bytes = n_records * (sizeof(int64_t) + 3 * d * sizeof(S));
    return std::max<int64_t>(1024, (1 << 20) / bytes);
  }
};

// The least and the most steps after which a path has a record.
class StepRanges {
 public:
  // steps [n_rows, n_records]; `look` at all rows, in any parts, comes first.
  StepRanges(const int64_t* steps, int64_t n_rows, int64_t n_records)
      : first(n_rows), last(n_rows), steps_(steps), n_records_(n_records) {}

  void look(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t* own = steps_ + i * n_records_;
      int64_t least = own[0], most = own[0];
      for (int64_t r = 1; r < n_records_; ++r) least = std::min(least, own[r]), most = std::max(most, own[r]);
      first[i] = least, last[i] = most;
    }
  }

  // Where the first number outside 0..n_steps is, -1 if there is none.
  int64_t outside(int64_t n_steps) const {
    for (size_t i = 0; i < first.size(); ++i) {
      if (first[i] >= 0 && last[i] <= n_steps) continue;
      const int64_t* own = steps_ + static_cast<int64_t>(i) * n_records_;
      return std::find_if(own, own + n_records_, [=](int64_t n) { return n < 0 || n > n_steps; }) - steps_;
    }
    return -1;
  }

  std::vector<int64_t> first, last;

 private:
  const int64_t* steps_;
  int64_t n_records_;
};

// Rows that take all the same number of steps where `steps` is null; else by descending number of steps, so that the lanes
// of a tile finish together, and among equals by component (0 .. n_components - 1), so that the lanes of a tile leave the
// same ones out; then long and short tiles in turn, so that every thread's share of consecutive tiles costs the same. Rows
// are sorted in groups of `together`, if it is given.
class Schedule {
 public:
  // steps and component by the number of a row.
  Schedule(const int64_t* steps, std::vector<int64_t> rows, int64_t n_steps, int lanes, const int32_t* component = nullptr,
           int64_t n_components = 0, int64_t together = 0);
  int64_t n_tiles() const { return n_tiles_; }
  int lanes() const { return lanes_; }
  // The rows of tile i; lanes beyond the last row repeat it and are not written back.
  int rows(int64_t i, const int64_t*& row) const;

 private:
  int64_t n_rows_, n_tiles_;
  int lanes_;
  std::vector<int64_t> order_;
};

inline Schedule::Schedule(const int64_t* steps, std::vector<int64_t> rows, int64_t n_steps, int lanes,
                          const int32_t* component, int64_t n_components, int64_t together)
    : n_rows_(static_cast<int64_t>(rows.size())),
      n_tiles_((n_rows_ + lanes - 1) / lanes),
      lanes_(lanes),
      order_(std::move(rows)) {
  std::vector<int64_t> before, start;
  const auto counting_sort = [&](int64_t begin, int64_t end, int64_t n_keys, auto key) {  // stable
    before.assign(order_.begin() + begin, order_.begin() + end), start.assign(n_keys + 1, 0);
    for (int64_t row : before) ++start[key(row) + 1];
    for (int64_t k = 0; k < n_keys; ++k) start[k + 1] += start[k];
    for (int64_t row : before) order_[begin + start[key(row)]++] = row;
  };
  if (component) counting_sort(0, n_rows_, n_components, [&](int64_t row) { return component[row]; });
  if (!steps) return;
  if (together == 0) together = n_rows_;
  for (int64_t begin = 0; begin < n_rows_; begin += together) {
    counting_sort(begin, std::min(begin + together, n_rows_), n_steps + 1,
                  [&](int64_t row) { return n_steps - steps[row]; });
  }
}

inline int Schedule::rows(int64_t i, const int64_t*& row) const {
  const int64_t tile = i % 2 == 0 ? i / 2 : n_tiles_ - 1 - i / 2;
  row = order_.data() + tile * lanes_;
  return static_cast<int>(std::min<int64_t>(lanes_, n_rows_ - tile * lanes_));
}

// Rows as the lanes of a tile; lanes beyond the last row repeat it.
template <typename V>
struct TileRows {
  static constexpr int W = lanes_of<V>;
  using S = scalar_of<V>;

  const int64_t* row;
  int count;

  int64_t at(int lane) const { return row[std::min(lane, count - 1)]; }

  PathCounters<words_of<V>> paths(int64_t first_path, uint32_t stream) const {
    uint32_t c0[W], c1[W];
    for (int l = 0; l < W; ++l) path_words(first_path + at(l), stream, c0[l], c1[l]);
    return {load<words_of<V>>(c0), load<words_of<V>>(c1)};
  }

  void gather(const S* from, int64_t d, V* to) const {
    S* lanes = reinterpret_cast<S*>(to);
    for (int l = 0; l < W; ++l) {
      const S* source = from + at(l) * d;
      for (int64_t j = 0; j < d; ++j) lanes[j * W + l] = source[j];
    }
  }

  void scatter(const V* from, int64_t d, S* to) const {
    const S* lanes = reinterpret_cast<const S*>(from);
    for (int l = 0; l < count; ++l) {
      S* destination = to + row[l] * d;
      for (int64_t j = 0; j < d; ++j) destination[j] = lanes[j * W + l];
    }
  }
};

// The target of paths whose h and v are these.
template <typename T>
FASTNDSM_HD T target_of(T h, T v) {
  return select(v > scalar_of<T>(0), T(-h / v), T{});  // no step taken: nothing to regress on
}

// Of which lane of a tile, and where in the outputs.
struct Record {
  int lane;
  int64_t at;
};

template <typename S>
struct BatchRows : TileRows<vec<S, kLanes<S>>> {
  using V = vec<S, kLanes<S>>;

  const Batch<S>& batch;

  BatchRows(const Batch<S>& batch, const Schedule& schedule, int64_t tile) : batch(batch) {
    this->count = schedule.rows(tile, this->row);
  }
  BatchRows(const Batch<S>& batch, const int64_t* row, int count) : TileRows<V>{row, count}, batch(batch) {}

  Lanes<V> lanes(const NoiseStream& noise) const {
    Lanes<V> lanes{this->paths(batch.first_path, noise.stream), batch.n_steps, 0};
    for (int l = 0; l < this->count; ++l) {
      lanes.first = std::min(lanes.first, batch.first[this->row[l]]);
      lanes.last = std::max(lanes.last, batch.last[this->row[l]]);
    }
    return lanes;
  }

  const int64_t* steps(int lane) const { return batch.steps + this->row[lane] * batch.n_records; }

  Record record(int lane, int64_t shift, int64_t r) const {
    return {lane, (this->row[lane] + shift) * batch.n_records + r};
  }

  // All records of a lane to where they are in another batch.
  void copy(int lane, int64_t shift, const BatchRows& to, int64_t to_shift, int64_t d, int64_t rates) const {
    const int64_t from_at = record(lane, shift, 0).at, to_at = to.record(lane, to_shift, 0).at;
    const bool streams = to.batch.streams(d, rates);
    const auto rows = [&](const S* from, S* destination, int64_t width) {
      if (!from) return;
      const S* const source = from + from_at * width;
      put(0, batch.n_records * width, destination + to_at * width, streams,
          [=](auto width, int64_t i) { return load<decltype(width)>(source + i); });
    };
    rows(batch.x, to.batch.x, d), rows(batch.mean, to.batch.mean, d), rows(batch.noise, to.batch.noise, d);
    rows(batch.target, to.batch.target, d), rows(batch.variance, to.batch.variance, rates);
  }

  // n records of x; and of mean and noise, or of the target and the variance, h being the target where it is `divided`. As
  // many of them as half a register has lanes, block by block: a tile's state is too large to be read for each.
  template <bool divided = false, typename Dim>
  void write(const Record* records, int64_t n, Dim d, int64_t rates, const V* x, const V* second, const V* third) const {
    for (constexpr int64_t most = std::max(1, lanes_of<V> / 2); n > 0; records += most, n -= most) {
      by_power(std::min(n, most), [&](auto size) FASTNDSM_INLINE {
        write_some<size, divided>(records, std::min(n, most), d, rates, x, second, third);
      });
    }
  }

 private:
  // body(the least power of two from n on, half the lanes at most).
  template <int N = 1, typename Body>
  static void by_power(int64_t n, const Body& body) {
    if constexpr (2 * N < lanes_of<V>) {
      if (n > N) return by_power<2 * N>(n, body);
    }
    body(std::integral_constant<int, N>());
  }

  template <int N, bool divided, typename Dim>
  void write_some(const Record* records, int64_t n, Dim d, int64_t rates, const V* x, const V* second,
                  const V* third) const {
    constexpr int64_t block = 64;
    alignas(64) S values[2][N * block];
    const bool streams = batch.streams(d, rates);
    int lanes[N];
    for (int i = 0; i < N; ++i) lanes[i] = records[std::min<int64_t>(i, n - 1)].lane;
    const Columns<V, N> columns(lanes);
    const auto copy = [&](const V* from, S* to, int64_t width, int64_t first, int64_t last) FASTNDSM_INLINE {
      columns.lay(from + first, last - first, values[0], block);
      for (int i = 0; i < n; ++i) {
        const S* const own = values[0] + i * block;
        put(first, last, to + records[i].at * width, streams,
            [=](auto like, int64_t at) { return load<decltype(like)>(own + (at - first)); });
      }
    };
    for (int64_t j = 0; j < d; j += block) {
      const int64_t end = std::min<int64_t>(j + block, d);
      copy(x, batch.x, d, j, end);
      if (batch.target) {
        const int64_t last = std::min(end, rates);
        if (j < rates) copy(third, batch.variance, rates, j, last);
        if constexpr (divided) {
          copy(second, batch.target, d, j, end);
        } else {
          columns.lay(second + j, end - j, values[1], block);
          for (int i = 0; i < n; ++i) {
            const S *const h = values[1] + i * block, *const v = values[0] + i * block;
            const S same = reinterpret_cast<const S*>(third)[records[i].lane];
            put(j, end, batch.target + records[i].at * d, streams, [=](auto like, int64_t at) {
              using T = decltype(like);
              return target_of(load<T>(h + (at - j)), rates == 1 ? splat<T>(same) : load<T>(v + (at - j)));
            });
          }
        }
      } else if (batch.mean) {
        copy(second, batch.mean, d, j, end);
        copy(third, batch.noise, d, j, end);
      }
    }
  }

  // to[j] = value(T, j), in vectors of four where a whole one is too many. Past the caches if `streams`, from the first place
  // on that takes whole vectors so.
  template <typename Value>
  static void put(int64_t first, int64_t last, S* to, bool streams, const Value& value) {
    using Four = vec<S, std::min(4, lanes_of<V>)>;
    int64_t j = first;
    if (streams) {
      for (; j < last && reinterpret_cast<uintptr_t>(to + j) % sizeof(V) != 0; ++j) to[j] = value(S{}, j);
      for (; j + lanes_of<V> <= last; j += lanes_of<V>) stream(to + j, value(V{}, j));
    }
    for (; j + lanes_of<V> <= last; j += lanes_of<V>) store(to + j, value(V{}, j));
    for (; j + lanes_of<Four> <= last; j += lanes_of<Four>) store(to + j, value(Four{}, j));
    for (; j < last; ++j) to[j] = value(S{}, j);
  }
};

// The records of a tile, listed by their step.
class RecordLists {
 public:
  // By the steps of rows, with places in `out`.
  template <typename S>
  void fill(const BatchRows<S>& rows, const BatchRows<S>& out, int64_t last) {
    head_.assign(last + 1, kNone), entries_.clear();
    for (int l = 0; l < rows.count; ++l) {
      const int64_t* steps = rows.steps(l);
      for (int64_t r = 0; r < rows.batch.n_records; ++r) {
        const int32_t entry = static_cast<int32_t>(entries_.size());
        entries_.push_back({out.record(l, 0, r), std::exchange(head_[steps[r]], entry)});
      }
    }
    found_.resize(entries_.size());
  }

  // Those of step n, `shift` places on; how many.
  int64_t find(int64_t n, int64_t shift, const Record*& records) {
    int64_t count = 0;
    for (int32_t i = head_[n]; i != kNone; i = entries_[i].next) {
      const Record& one = entries_[i].record;
      found_[count++] = {one.lane, one.at + shift};
    }
    records = found_.data();
    return count;
  }

 private:
  static constexpr int32_t kNone = -1;
  struct Entry {
    Record record;
    int32_t next;
  };
  std::vector<int32_t> head_;
  std::vector<Entry> entries_;
  std::vector<Record> found_;
};

}  // namespace fastndsm
