// film_mlp: the residual perceptron of mlp.h on rows whose times differ, and its gradients.
//
//   table = SiLU(E W_1' + c_1) W_2' + c_2                          [U, 2 S], scales of all hidden layers, then shifts
//   h_l = [h_{l-1} +] SiLU(scale_l * z_l + shift_l),    z_l = h_{l-1} W_l' + c_l,    output = h_L W' + c
//
// Row b has row index[b] of the table, so that rows of one time share what the time gives. What is between two products is
// one pass, forward and backward; backward a thread has columns of its own and takes the rows in their order, so that no
// sum depends on the number of threads.
#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <memory>
#include <vector>

#include "../include/loss.h"
#include "../include/mlp.h"
#include "arguments.h"
#include "products.h"

namespace fastndsm {
namespace {

constexpr int64_t kGrainValues = 1 << 13;
constexpr int64_t kGrainColumns = 32;
constexpr int64_t kChunk = 4096;  // rows whose activations are not kept

// Columns over the threads: body(first, count).
template <typename S, typename Body>
void parallel_columns(int64_t n, const Body& body) {
  constexpr int64_t W = kLanes<S>;
  at::parallel_for(0, (n + W - 1) / W, std::max<int64_t>(1, kGrainColumns / W),
                   [&](int64_t begin, int64_t end) { body(begin * W, std::min(end * W, n) - begin * W); });
}

// to[i] = silu(a[i]), n of them.
template <typename S>
void silu_all(const S* a, int64_t n, S* to) {
  at::parallel_for(0, n, kGrainValues, [&](int64_t begin, int64_t end) {
    map_row<S>(end - begin, [=](int64_t j, auto lane) {
      using V = decltype(lane);
      store(to + begin + j, silu(load<V>(a + begin + j)));
    });
  });
}

// d SiLU / d a.
template <typename V>
V silu_slope(V a) {
  using S = scalar_of<V>;
  const V s = logistic(a);
  return s * fused(a, V(S(1) - s), splat<V>(S(1)));
}

// grad[i] *= silu'(a[i]).
template <typename S>
void silu_all_backward(const S* a, int64_t n, S* grad) {
  at::parallel_for(0, n, kGrainValues, [&](int64_t begin, int64_t end) {
    map_row<S>(end - begin, [=](int64_t j, auto lane) {
      using V = decltype(lane);
      store(grad + begin + j, V(load<V>(grad + begin + j) * silu_slope(load<V>(a + begin + j))));
    });
  });
}

// to[j] = sum_b a[b][j].
template <typename S>
void column_sums(const S* a, int64_t rows, int64_t n, S* to) {
  parallel_columns<S>(n, [&](int64_t first, int64_t count) {
    std::fill_n(to + first, count, S(0));
    for (int64_t b = 0; b < rows; ++b) {
      map_row<S>(count, [=](int64_t j, auto lane) {
        using V = decltype(lane);
        store(to + first + j, V(load<V>(to + first + j) + load<V>(a + b * n + first + j)));
      });
    }
  });
}

// A hidden layer's pieces of the table's rows, which rows of its [rows, width] arrays have by index.
template <typename S>
struct Modulation {
  int64_t rows, width, stride;
  const int64_t* index;    // [rows], or null: row b has row b
  const S *scale, *shift;  // of the table's row 0; rows are `stride` apart

  int64_t at(int64_t b) const { return (index ? index[b] : b) * stride; }
};

// h = [before +] SiLU(scale * z + shift); h may be z.
template <typename S>
void modulate(const Modulation<S>& p, const S* z, const S* before, S* h) {
  at::parallel_for(0, p.rows, std::max<int64_t>(1, kGrainValues / p.width), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const S *scale = p.scale + p.at(b), *shift = p.shift + p.at(b);
      const int64_t row = b * p.width;
      map_row<S>(p.width, [=](int64_t j, auto lane) {
        using V = decltype(lane);
        const V step = silu(fused(load<V>(scale + j), load<V>(z + row + j), load<V>(shift + j)));
        store(h + row + j, before ? V(load<V>(before + row + j) + step) : step);
      });
    }
  });
}

// From grad, that in h: grad_z, grad_bias, and what is added to grad_scale and grad_shift, laid out as scale and shift.
template <typename S>
void modulate_backward(const Modulation<S>& p, const S* z, const S* grad, S* grad_z, S* grad_scale, S* grad_shift,
                       S* grad_bias) {
  parallel_columns<S>(p.width, [&](int64_t first, int64_t count) {
    std::fill_n(grad_bias + first, count, S(0));
    for (int64_t b = 0; b < p.rows; ++b) {
      const int64_t at = p.at(b) + first, row = b * p.width + first;
      map_row<S>(count, [=](int64_t j, auto lane) {
        using V = decltype(lane);
        const V value = load<V>(z + row + j), scale = load<V>(p.scale + at + j);
        const V of_a = load<V>(grad + row + j) * silu_slope(fused(scale, value, load<V>(p.shift + at + j)));
        const V of_z = of_a * scale;
        store(grad_z + row + j, of_z);
        store(grad_scale + at + j, fused(of_a, value, load<V>(grad_scale + at + j)));
        store(grad_shift + at + j, V(load<V>(grad_shift + at + j) + of_a));
        store(grad_bias + first + j, V(load<V>(grad_bias + first + j) + of_z));
      });
    }
  });
}

// [outputs, inputs] and its bias.
template <typename S>
struct Layer {
  int64_t inputs, outputs;
  const S *weight, *bias;

  bool residual() const { return inputs == outputs; }
  Panels<S> forward() const { return {{weight, 1, inputs}, inputs, outputs, bias}; }
  Panels<S> backward() const { return {{weight, inputs, 1}, outputs, inputs}; }
};

// d loss / d weight [outputs, inputs] of a layer from that in its output [rows, outputs].
template <typename S>
void weight_gradient(const S* grad, const S* input, int64_t rows, const Layer<S>& layer, S* to) {
  product<S>({grad, 1, layer.outputs}, layer.outputs, Panels<S>({input, layer.inputs, 1}, rows, layer.inputs), false, to);
}

template <typename S>
Strided<S> rows_of(const S* data, int64_t n) {
  return {data, n, 1};
}

// The arguments of a call, and where the parts of `states` lie: a [U, E] and SiLU(a), the table [U, 2 S], and z and h
// [B, width] of every hidden layer.
template <typename S>
class Call {
 public:
  Call(const at::Tensor& x, const at::Tensor& embedded, const std::optional<at::Tensor>& index, at::TensorList weights,
       at::TensorList biases) {
    TORCH_CHECK_VALUE(weights.size() >= 3 && weights.size() == biases.size(),
                      "weights: expected three layers or more, and as many biases, found ", weights.size(), " and ",
                      biases.size());
    TORCH_CHECK_VALUE(x.dim() == 2, "x: expected shape [B, inputs], found ", x.sizes());
    TORCH_CHECK_VALUE(embedded.dim() == 2, "embedded: expected shape [U, E], found ", embedded.sizes());
    rows_ = x.size(0), times_ = embedded.size(0);
    x_ = kept(x, "x"), embedded_ = kept(embedded, "embedded");
    int64_t inputs = embedded.size(1);
    for (size_t l = 0; l < weights.size(); ++l) {
      if (l == 2) inputs = x.size(1);
      TORCH_CHECK_VALUE(weights[l].dim() == 2, "weights: expected [outputs, inputs], found ", weights[l].sizes());
      check_shape("weights", weights[l], {weights[l].size(0), inputs});
      const int64_t outputs = weights[l].size(0);
      check_shape("biases", biases[l], {outputs});
      const S *weight = kept(weights[l], "weights"), *bias = kept(biases[l], "biases");
      layers_.push_back({inputs, outputs, weight, bias});
      if (l >= 2 && l + 1 < weights.size()) total_ += outputs;
      inputs = outputs;
    }
    check_shape("weights", weights[1], {2 * total_, weights[0].size(0)});
    if (!index) {
      TORCH_CHECK_VALUE(times_ == rows_, "embedded: expected ", rows_, " rows as x, found ", times_);
      return;
    }
    check_shape("index", *index, {rows_});
    TORCH_CHECK_TYPE(index->scalar_type() == at::kLong, "index: expected int64, found ", index->scalar_type());
    owned_.push_back(index->contiguous());
    index_ = owned_.back().template const_data_ptr<int64_t>();
    for (int64_t b = 0; b < rows_; ++b) {
      TORCH_CHECK_VALUE(0 <= index_[b] && index_[b] < times_, "index: expected rows 0..", times_ - 1, ", found ",
                        index_[b]);
    }
  }
  Call(const Call&) = delete;

  int64_t rows() const { return rows_; }
  int64_t outputs() const { return last().outputs; }
  int64_t states() const { return times_ * (2 * layers_[0].outputs + 2 * total_) + 2 * total_ * rows_; }

  void forward(S* out, S* states) const {
    const auto of_times = unset(states ? 0 : times_ * (2 * layers_[0].outputs + 2 * total_));
    const Times<S> at = times(states ? states : of_times.get());
    product(rows_of(embedded_, layers_[0].inputs), times_, layers_[0].forward(), false, at.a);
    silu_all(at.a, times_ * layers_[0].outputs, at.silu);
    product(rows_of<S>(at.silu, layers_[1].inputs), times_, layers_[1].forward(), false, at.table);
    std::vector<Panels<S>> panels;
    int64_t widest = 0;
    for (int64_t l = 0; l <= hidden(); ++l) panels.push_back(layer(l).forward());
    for (int64_t l = 0; l < hidden(); ++l) widest = std::max(widest, layer(l).outputs);
    const int64_t most = states ? rows_ : std::min(rows_, kChunk);
    const auto buffer = unset(states ? 0 : 2 * most * widest);
    for (int64_t first = 0; first < rows_; first += most) {
      const int64_t n = std::min(most, rows_ - first);
      const S* h = x_ + first * layer(0).inputs;
      S* kept = at.layers;
      for (int64_t l = 0; l < hidden(); ++l) {
        const int64_t values = n * layer(l).outputs;
        S* z = states ? kept : buffer.get() + l % 2 * most * widest;
        S* next = states ? kept + values : z;
        product(rows_of(h, layer(l).inputs), n, panels[l], false, z);
        modulate<S>(modulation(l, at.table, first, n), z, layer(l).residual() ? h : nullptr, next);
        h = next, kept += 2 * values;
      }
      product(rows_of(h, last().inputs), n, panels[hidden()], false, out + first * outputs());
    }
  }

  // grad [B, outputs] -> the gradients in x and embedded, where wanted, and in the weights and biases.
  void backward(const S* grad, const S* states, S* of_x, S* of_embedded, const std::vector<S*>& of_weights,
                const std::vector<S*>& of_biases) const {
    const Times<const S> at = times(states);
    int64_t widest = 0;
    for (int64_t l = 0; l <= hidden(); ++l) widest = std::max(widest, layer(l).inputs);
    std::vector<S> of_table(times_ * 2 * total_, S(0));
    const auto of_h = unset(rows_ * widest), of_z = unset(rows_ * widest);
    const auto input = [&](int64_t l) { return l > 0 ? h(at, l - 1) : x_; };
    const int64_t L = hidden();
    weight_gradient(grad, input(L), rows_, last(), of_weights[L + 2]);
    column_sums(grad, rows_, outputs(), of_biases[L + 2]);
    if (L > 0 || of_x) product(rows_of(grad, outputs()), rows_, last().backward(), false, L > 0 ? of_h.get() : of_x);
    for (int64_t l = L - 1; l >= 0; --l) {
      S *scale = of_table.data() + piece(l), *shift = scale + total_;
      modulate_backward<S>(modulation(l, at.table, 0, rows_), h(at, l) - rows_ * layer(l).outputs, of_h.get(), of_z.get(),
                           scale, shift, of_biases[l + 2]);
      weight_gradient<S>(of_z.get(), input(l), rows_, layer(l), of_weights[l + 2]);
      S* to = l > 0 ? of_h.get() : of_x;
      if (!to) break;
      if (l == 0 && layer(0).residual()) std::copy_n(of_h.get(), rows_ * layer(0).inputs, to);
      product(rows_of<S>(of_z.get(), layer(l).outputs), rows_, layer(l).backward(), layer(l).residual(), to);
    }
    const Layer<S>&in = layers_[0], &out = layers_[1];
    weight_gradient<S>(of_table.data(), at.silu, times_, out, of_weights[1]);
    column_sums<S>(of_table.data(), times_, out.outputs, of_biases[1]);
    const auto of_a = unset(times_ * out.inputs);
    product(rows_of<S>(of_table.data(), out.outputs), times_, out.backward(), false, of_a.get());
    silu_all_backward<S>(at.a, times_ * out.inputs, of_a.get());
    weight_gradient<S>(of_a.get(), embedded_, times_, in, of_weights[0]);
    column_sums<S>(of_a.get(), times_, in.outputs, of_biases[0]);
    if (of_embedded) product(rows_of<S>(of_a.get(), in.outputs), times_, in.backward(), false, of_embedded);
  }

 private:
  static std::unique_ptr<S[]> unset(int64_t n) { return std::unique_ptr<S[]>(new S[n]); }

  template <typename T>
  struct Times {
    T *a, *silu, *table, *layers;
  };

  template <typename T>
  Times<T> times(T* states) const {
    const int64_t values = times_ * layers_[0].outputs;
    return {states, states + values, states + 2 * values, states + 2 * values + times_ * 2 * total_};
  }

  const S* kept(const at::Tensor& t, const char* name) {
    TORCH_CHECK_TYPE(t.scalar_type() == c10::CppTypeToScalarType<S>::value, name, ": expected the dtype of x, found ",
                     t.scalar_type());
    owned_.push_back(t.contiguous());
    return owned_.back().template const_data_ptr<S>();
  }

  int64_t hidden() const { return static_cast<int64_t>(layers_.size()) - 3; }
  const Layer<S>& layer(int64_t l) const { return layers_[l + 2]; }  // of x's, from 0
  const Layer<S>& last() const { return layers_.back(); }

  int64_t piece(int64_t l) const {  // where the layer's scales begin in a row of the table
    int64_t from = 0;
    for (int64_t i = 0; i < l; ++i) from += layer(i).outputs;
    return from;
  }

  const S* h(const Times<const S>& at, int64_t l) const { return at.layers + rows_ * (2 * piece(l) + layer(l).outputs); }

  Modulation<S> modulation(int64_t l, const S* table, int64_t first, int64_t n) const {
    if (!index_) table += first * 2 * total_;
    const S* scale = table + piece(l);
    return {n, layer(l).outputs, 2 * total_, index_ ? index_ + first : nullptr, scale, scale + total_};
  }

  std::vector<at::Tensor> owned_;
  std::vector<Layer<S>> layers_;  // the two of the times first
  const S *x_, *embedded_;
  const int64_t* index_ = nullptr;
  int64_t rows_, times_, total_ = 0;
};

// The output [B, outputs], and what the gradient needs of the activations, if it is to be kept.
std::tuple<at::Tensor, at::Tensor> film_mlp(const at::Tensor& x, const at::Tensor& embedded,
                                            const std::optional<at::Tensor>& index, at::TensorList weights,
                                            at::TensorList biases, bool keep) {
  at::Tensor out, states;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "fastndsm::film_mlp", [&] {
    const Call<scalar_t> call(x, embedded, index, weights, biases);
    out = at::empty({call.rows(), call.outputs()}, x.options());
    states = at::empty({keep ? call.states() : 0}, x.options());
    call.forward(out.mutable_data_ptr<scalar_t>(), keep ? states.mutable_data_ptr<scalar_t>() : nullptr);
  });
  return {out, states};
}

// The gradients in x and embedded (empty unless wanted), the weights and the biases, from that in the output.
std::vector<at::Tensor> film_mlp_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& embedded,
                                          const std::optional<at::Tensor>& index, at::TensorList weights,
                                          at::TensorList biases, const at::Tensor& states, bool wants_x,
                                          bool wants_embedded) {
  std::vector<at::Tensor> out;
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "fastndsm::film_mlp_backward", [&] {
    const Call<scalar_t> call(x, embedded, index, weights, biases);
    check_shape("grad", grad, {call.rows(), call.outputs()});
    check_shape("states", states, {call.states()});
    const auto gradient = [&](const at::Tensor& of, bool wanted) {
      out.push_back(wanted ? at::empty(of.sizes(), x.options()) : at::empty({0}, x.options()));
      return wanted ? out.back().mutable_data_ptr<scalar_t>() : nullptr;
    };
    scalar_t* const of_x = gradient(x, wants_x);
    scalar_t* const of_embedded = gradient(embedded, wants_embedded);
    std::vector<scalar_t*> of_weights, of_biases;
    for (const at::Tensor& weight : weights) of_weights.push_back(gradient(weight, true));
    for (const at::Tensor& bias : biases) of_biases.push_back(gradient(bias, true));
    const at::Tensor g = grad.contiguous(), activations = states.contiguous();
    call.backward(g.const_data_ptr<scalar_t>(), activations.const_data_ptr<scalar_t>(), of_x, of_embedded, of_weights,
                  of_biases);
  });
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fastndsm_cpp, m) {
  m.def(
      "film_mlp(Tensor x, Tensor embedded, Tensor? index, Tensor[] weights, Tensor[] biases, bool keep) "
      "-> (Tensor, Tensor)");
  m.def(
      "film_mlp_backward(Tensor grad, Tensor x, Tensor embedded, Tensor? index, Tensor[] weights, Tensor[] biases, "
      "Tensor states, bool wants_x, bool wants_embedded) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(fastndsm_cpp, CPU, m) {
  m.impl("film_mlp", film_mlp);
  m.impl("film_mlp_backward", film_mlp_backward);
}

}  // namespace fastndsm
