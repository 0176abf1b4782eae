// mixture_score, mixture_log_prob and mixture_hvp: one evaluation of the mixture a row.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <deque>
#include <functional>

#include "../include/listed.h"
#include "far.h"
#include "row_ranges.h"

namespace fastndsm {
namespace {

// Tiles that share one pass over the components where there are too many to stay in the cache.
template <typename V>
int64_t tiles_per_group(const MixtureView<scalar_of<V>>& m) {
  if (m.n_components <= kResident || m.kind == Covariance::full) return 1;
  return std::clamp<int64_t>((int64_t(1) << 20) / int64_t(2 * m.dim * sizeof(V)), 1, 16);
}

// What is done with a tile after its first pass: (tile, x, z, first row, rows).
template <typename Tile, typename V>
using Use = std::function<void(Tile&, V*, V*, int64_t, int64_t)>;

// Tiles over rows begin..end. One copy for each kind of mixture, whatever is done with it.
template <typename V, Covariance kind, bool with_product, typename Tile = MixtureTile<V, kind, with_product>>
void evaluate_rows(const MixtureView<scalar_of<V>>& m, const scalar_of<V>* x, const scalar_of<V>* z, int64_t begin,
                   int64_t end, const std::type_identity_t<Use<Tile, V>>& use) {
  constexpr int W = lanes_of<V>;
  const int64_t d = m.dim, group = tiles_per_group<V>(m);
  const int64_t own = MixtureScratch<V>::vectors(m.n_components, d) + (with_product ? 2 : 1) * d;
  std::vector<V> memory(group * own);
  for (int64_t row = begin; row < end; row += group * W) {
    const int64_t tiles = std::min(group, (end - row + W - 1) / W);
    std::vector<Tile> tile;
    std::vector<V*> tile_x, tile_z;
    for (int64_t i = 0; i < tiles; ++i) {
      V* base = memory.data() + i * own;
      const int64_t first = row + i * W, count = std::min<int64_t>(W, end - first);
      tile_x.push_back(base), tile_z.push_back(with_product ? base + d : nullptr);
      gather_rows(x, first, count, d, tile_x[i]);
      if constexpr (with_product) gather_rows(z, first, count, d, tile_z[i]);
      tile.emplace_back(m, MixtureScratch<V>(base + (with_product ? 2 : 1) * d, m.n_components, d));
    }
    if (group == 1) {
      tile[0].prepare(tile_x[0], tile_z[0]);
    } else {
      for (int64_t i = 0; i < tiles; ++i) tile[i].begin(), tile[i].transform(tile_x[i], tile_z[i]);
      for (int64_t k = 0; k < m.n_components; k += tile[0].block_size()) {
        for (int64_t i = 0; i < tiles; ++i) tile[i].absorb(tile_x[i], tile_z[i], k);
      }
      for (int64_t i = 0; i < tiles; ++i) tile[i].finish();
    }
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t first = row + i * W;
      use(tile[i], tile_x[i], tile_z[i], first, std::min<int64_t>(W, end - first));
    }
  }
}

// The same where few components have weight: a sieve of all, and the rows' own few exactly.
template <typename V, Covariance kind, bool with_product, typename Body>
void sieve_rows(const MixtureView<scalar_of<V>>& m, const scalar_of<V>* x, const scalar_of<V>* z, int64_t begin,
                int64_t end, const Body& use) {
  constexpr int W = lanes_of<V>;
  const int64_t d = m.dim;
  std::vector<V> memory(2 * d + MixtureScratch<V>::vectors(m.n_components, d));
  V *const tile_x = memory.data(), *const tile_z = with_product ? tile_x + d : nullptr;
  NearLists<V> lists(m);
  lists.once = true;
  for (int64_t row = begin; row < end; row += W) {
    lists.forget();
    const int64_t count = std::min<int64_t>(W, end - row);
    gather_rows(x, row, count, d, tile_x);
    if constexpr (with_product) gather_rows(z, row, count, d, tile_z);
    ListedTile<V, kind, with_product> tile(m, MixtureScratch<V>(tile_x + 2 * d, m.n_components, d), &lists);
    tile.prepare(tile_x, tile_z, scalar_of<V>(0));
    use(tile, tile_x, tile_z, row, count);
  }
}

// Calls body(lane) for each of the first `count` lanes whose largest logit is at most `limit`.
template <typename V, typename Body>
void for_far_lanes(V maximum, scalar_of<V> limit, int64_t count, const Body& body) {
  if (!any_lane(!(maximum > limit))) return;
  const auto* lanes = reinterpret_cast<const scalar_of<V>*>(&maximum);
  for (int64_t l = 0; l < count; ++l) {
    if (!(lanes[l] > limit)) body(l);
  }
}

// Rows of one range, one after another from `first` on, and their components.
template <typename S>
struct ConsecutiveRows {
  MixtureArgument<S> mixture;
  int64_t first, count;

  ConsecutiveRows(const MixtureInput& input, const RangeRows& part, int64_t first, Visits visits)
      : mixture(input.of<S>(part, visits)), first(first), count(static_cast<int64_t>(part.rows.size())) {}
  int64_t n_tiles() const { return (count + kLanes<S> - 1) / kLanes<S>; }
};

// The rows of a batch, those of one range next to each other.
template <typename S>
class GroupedRows {
 public:
  GroupedRows(const MixtureInput& input, const std::optional<at::Tensor>& ranges, int64_t n_rows,
              Visits visits = Visits::once) {
    std::vector<int64_t> order;
    for (const RangeRows& part : rows_by_range(ranges, n_rows, input.means.size(0))) {
      parts_.emplace_back(input, part, static_cast<int64_t>(order.size()), visits);
      order.insert(order.end(), part.rows.begin(), part.rows.end());
    }
    if (parts_.size() > 1) order_ = at::tensor(order, at::kLong);
  }

  at::Tensor grouped(const at::Tensor& rows) const {
    return order_.defined() ? rows.index_select(0, order_) : rows.contiguous();
  }
  at::Tensor ungrouped(const at::Tensor& rows) const {
    return order_.defined() ? at::empty(rows.sizes(), rows.options()).index_copy_(0, order_, rows) : rows;
  }

  // body(mixture, begin, end) of rows in whole tiles over the threads, so that a row is computed the same way wherever the
  // cuts fall.
  template <typename Body>
  void parallel(const Body& body) const {
    constexpr int64_t W = kLanes<S>;
    parallel_tiles(parts_, [&](const ConsecutiveRows<S>& part, int64_t begin, int64_t end) {
      body(part.mixture.view(), part.first + begin * W, part.first + std::min(end * W, part.count));
    });
  }

 private:
  std::deque<ConsecutiveRows<S>> parts_;
  at::Tensor order_;
};

void check_points(const char* name, const at::Tensor& x, const at::Tensor& means) {
  TORCH_CHECK_VALUE(means.dim() == 2, "means: expected shape [K, d], found ", means.sizes());
  TORCH_CHECK_VALUE(x.dim() == 2 && x.size(1) == means.size(1), name, ": expected shape [B, ", means.size(1), "], found ",
                    x.sizes());
}

at::Tensor mixture_log_prob(const at::Tensor& x, const at::Tensor& means, const at::Tensor& precisions,
                            const at::Tensor& log_scale, const std::string& covariance_type,
                            const std::optional<at::Tensor>& ranges) {
  check_points("x", x, means);
  const MixtureInput input{means, precisions, log_scale, covariance_type};
  at::Tensor out = at::empty({x.size(0)}, x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "fastndsm::mixture_log_prob", [&] {
    using V = vec<scalar_t, kLanes<scalar_t>>;
    const GroupedRows<scalar_t> rows(input, ranges, x.size(0));
    const at::Tensor points = rows.grouped(x);
    const scalar_t* in = points.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    by_kind(covariance_kind(covariance_type), [&](auto kind) {
      rows.parallel([&](const MixtureView<scalar_t>& mixture, int64_t begin, int64_t end) {
        evaluate_rows<V, kind, false>(mixture, in, nullptr, begin, end,
                                      [&](auto& tile, V*, V*, int64_t first, int64_t count) {
          const V value = tile.log_prob();
          scatter_rows(&value, first, count, 1, to);
          for_far_lanes(tile.maximum(), tile.kLowest, count, [&](int64_t l) {
            const FarRow<scalar_t> row(mixture, in + (first + l) * x.size(1));
            to[first + l] = static_cast<scalar_t>(row.log_prob());
          });
        });
      });
    });
    out = rows.ungrouped(out);
  });
  return out;
}

// The score of each row, or its Hessian-vector product with z.
template <bool with_product>
at::Tensor moment(const at::Tensor& x, const at::Tensor& z, const at::Tensor& means, const at::Tensor& precisions,
                  const at::Tensor& log_scale, const std::string& covariance_type,
                  const std::optional<at::Tensor>& ranges) {
  check_points("x", x, means);
  const MixtureInput input{means, precisions, log_scale, covariance_type};
  at::Tensor out = at::empty(x.sizes(), x.options());
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "fastndsm::mixture", [&] {
    using V = vec<scalar_t, kLanes<scalar_t>>;
    const GroupedRows<scalar_t> rows(input, ranges, x.size(0), Visits::for_scores);
    const at::Tensor points = rows.grouped(x), directions = with_product ? rows.grouped(z) : points;
    const scalar_t *in = points.const_data_ptr<scalar_t>(), *along = directions.const_data_ptr<scalar_t>();
    scalar_t* to = out.mutable_data_ptr<scalar_t>();
    const int64_t d = x.size(1);
    by_kind(covariance_kind(covariance_type), [&](auto kind) {
      rows.parallel([&](const MixtureView<scalar_t>& mixture, int64_t begin, int64_t end) {
        std::vector<V> memory(2 * d);
        V *score = memory.data(), *product = score + d;
        const auto use = [&](auto& tile, const V* tx, const V* tz, int64_t first, int64_t count) {
          tile.all_moments(tx, tz, score, product, nullptr);
          scatter_rows(with_product ? product : score, first, count, d, to);
          for_far_lanes(tile.maximum(), with_product ? tile.kNothingLeft : tile.kLowest, count, [&](int64_t l) {
            const int64_t at = (first + l) * d;
            FarRow<scalar_t> row(mixture, in + at);
            if constexpr (with_product)
              row.product(along + at, to + at);
            else
              row.score(to + at);
          });
        };
        if constexpr (kind != Covariance::full) {
          if (mixture.near) return sieve_rows<V, kind, with_product>(mixture, in, along, begin, end, use);
        }
        evaluate_rows<V, kind, with_product>(mixture, in, along, begin, end, use);
      });
    });
    out = rows.ungrouped(out);
  });
  return out;
}

at::Tensor mixture_score(const at::Tensor& x, const at::Tensor& means, const at::Tensor& precisions,
                         const at::Tensor& log_scale, const std::string& covariance_type,
                         const std::optional<at::Tensor>& ranges) {
  return moment<false>(x, x, means, precisions, log_scale, covariance_type, ranges);
}

at::Tensor mixture_hvp(const at::Tensor& x, const at::Tensor& v, const at::Tensor& means, const at::Tensor& precisions,
                       const at::Tensor& log_scale, const std::string& covariance_type,
                       const std::optional<at::Tensor>& ranges) {
  check_points("v", v, means);
  TORCH_CHECK_VALUE(x.sizes() == v.sizes(), "v: expected the shape of x, ", x.sizes(), ", found ", v.sizes());
  return moment<true>(x, v, means, precisions, log_scale, covariance_type, ranges);
}

}  // namespace

#define FASTNDSM_MIXTURE "Tensor means, Tensor precisions, Tensor log_scale, str covariance_type, Tensor? ranges=None"

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def("mixture_score(Tensor x, " FASTNDSM_MIXTURE ") -> Tensor");
  m.def("mixture_log_prob(Tensor x, " FASTNDSM_MIXTURE ") -> Tensor");
  m.def("mixture_hvp(Tensor x, Tensor v, " FASTNDSM_MIXTURE ") -> Tensor");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) {
  m.impl("mixture_score", mixture_score);
  m.impl("mixture_log_prob", mixture_log_prob);
  m.impl("mixture_hvp", mixture_hvp);
}

}  // namespace fastndsm
