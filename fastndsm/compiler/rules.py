"""Rules for PyTorch's operators: what each that computes does to scalars; those that only move data need none.

A rule takes the `Expressions` and tensors of their numbers, int64 and of the shapes that the operator sees, and returns
such tensors. What an operator fills with zeros is number 0, so that operators that move data run on numbers unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .program import Expressions

Rule = Callable[..., Any]

MOVES = frozenset(
    """
    cat stack index _unsafe_index index_select gather flip roll clone repeat tril triu select_scatter slice_scatter
    diagonal_scatter as_strided_scatter index_put _index_put_impl scatter select_backward slice_backward
    diagonal_backward unfold_backward lift_fresh lift_fresh_copy diag_embed take repeat_interleave _unsafe_view
    index_copy constant_pad_nd _to_copy convert_element_type copy fill zero
    """.split()
)  # and what makes views; the last line with a little more to it
INDICES = {
    **dict.fromkeys(("index", "_unsafe_index", "index_put", "_index_put_impl", "take"), 1),
    **dict.fromkeys(("index_select", "gather", "scatter", "index_copy"), 2),
}  # which argument of these holds the places, which are no numbers
TAKES_PLACES = frozenset(
    ("sum", "mean", "prod", "amax", "amin", "any", "all", "max", "min", "cumsum", "scatter_add", "index_add", "var")
)  # rules whose integers, and integer tensors, are dimensions and places
OF_SHAPES = frozenset(
    """
    zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty new_empty_strided sym_size sym_numel
    empty_strided
    """.split()
)  # what these give depends on shapes alone
RULES: dict[str, Rule] = {}
COMPOSED: dict[str, Callable[..., Any]] = {}  # operators in terms of others


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


# --- elementwise -------------------------------------------------------------------------------------------------


def number(e: Expressions, a: int) -> int:
    """Return the number of an expression, 1 and 0 of what is true or false."""
    return e.apply("select", a, e.const(1.0), 0) if e.is_bool(a) else a


def mask(e: Expressions, a: int) -> int:
    """Return whether an expression is not 0."""
    if e.is_bool(a) or e.nodes[a].op == "const":
        return a
    return e.apply("ne", a, 0)


def each(e: Expressions, function: Callable[..., int], *operands: Tensor) -> Tensor:
    """Return a function of numbers for each element of operands that broadcast."""
    wide = torch.broadcast_tensors(*operands)
    found = [function(*a) for a in zip(*(w.reshape(-1).tolist() for w in wide), strict=True)]
    return torch.tensor(found, dtype=torch.int64, device="cpu").reshape(wide[0].shape)


def _elementwise(names: Sequence[str], function: Callable[..., int]) -> None:
    def rule(e: Expressions, *operands: Tensor) -> Tensor:
        return each(e, lambda *a: function(e, *(number(e, b) for b in a)), *operands)

    RULES.update(dict.fromkeys(names, rule))


def _compose(name: str) -> Callable[[Callable[..., int]], None]:
    return lambda function: _elementwise([name], function)


def _apply(op: str) -> Callable[..., int]:
    return lambda e, *a: e.apply(op, *a)


for _name in (
    *(
        "neg",
        "abs",
        "sqrt",
        "exp",
        "expm1",
        "log",
        "log1p",
        "sin",
        "cos",
        "tan",
        "tanh",
        "sinh",
        "cosh",
        "asin",
        "acos",
    ),
    *("atan", "asinh", "acosh", "atanh", "erf", "floor", "ceil", "trunc"),
    *("pow", "atan2", "maximum", "minimum", "fmod", "mul"),
):
    _elementwise([_name], _apply(_name))
for _name, _op in {"clamp_min": "maximum", "clamp_max": "minimum"}.items():
    _elementwise([_name], _apply(_op))


@_rule("add")
def _add(e: Expressions, a: Tensor, b: Tensor, *, alpha: Tensor | None = None, op: str = "add") -> Tensor:
    def function(x: int, y: int, scale: int) -> int:
        return e.apply(op, number(e, x), e.apply("mul", scale, number(e, y)))

    return each(e, function, a, b, torch.tensor(e.const(1.0), device="cpu") if alpha is None else alpha)


@_rule("sub")
def _sub(e: Expressions, a: Tensor, b: Tensor, *, alpha: Tensor | None = None) -> Tensor:
    return _add(e, a, b, alpha=alpha, op="sub")


@_rule("rsub")
def _rsub(e: Expressions, a: Tensor, b: Tensor, alpha: Tensor | None = None) -> Tensor:
    return _add(e, b, a, alpha=alpha, op="sub")


@_rule("div")
def _div(e: Expressions, a: Tensor, b: Tensor, *, rounding_mode: str | None = None) -> Tensor:
    def function(x: int, y: int) -> int:
        x, y = number(e, x), number(e, y)
        quotient = e.apply("div", x, y)
        if rounding_mode == "floor":
            rest = e.apply("fmod", x, y)
            whole = e.apply("div", e.apply("sub", x, rest), y)
            whole = e.apply("select", _across(e, rest, y), e.apply("sub", whole, e.const(1.0)), whole)
            return e.apply("select", e.apply("eq", y, 0), quotient, e.apply("round", whole))
        return quotient if rounding_mode is None else e.apply(rounding_mode, quotient)

    return each(e, function, a, b)


@_rule("round")
def _round(e: Expressions, a: Tensor, *, decimals: int = 0) -> Tensor:
    if decimals != 0:
        raise NotImplementedError("decimals")
    return each(e, lambda x: e.apply("round", number(e, x)), a)


@_compose("reciprocal")
def _(e: Expressions, a: int) -> int:
    return e.apply("div", e.const(1.0), a)


@_compose("rsqrt")
def _(e: Expressions, a: int) -> int:
    return e.apply("div", e.const(1.0), e.apply("sqrt", a))


@_compose("square")
def _(e: Expressions, a: int) -> int:
    return e.apply("mul", a, a)


@_compose("sigmoid")
def _(e: Expressions, a: int) -> int:
    return e.apply("div", e.const(1.0), e.apply("add", e.const(1.0), e.apply("exp", e.apply("neg", a))))


@_compose("exp2")
def _(e: Expressions, a: int) -> int:
    return e.apply("exp", e.apply("mul", a, e.const(math.log(2.0))))


@_compose("log2")
def _(e: Expressions, a: int) -> int:
    return e.apply("mul", e.apply("log", a), e.const(1.0 / math.log(2.0)))


@_compose("log10")
def _(e: Expressions, a: int) -> int:
    return e.apply("mul", e.apply("log", a), e.const(1.0 / math.log(10.0)))


@_compose("erfc")
def _(e: Expressions, a: int) -> int:
    return e.apply("sub", e.const(1.0), e.apply("erf", a))


@_compose("relu")
def _(e: Expressions, a: int) -> int:
    return e.apply("maximum", a, 0)


@_compose("sign")
def _(e: Expressions, a: int) -> int:
    below = e.apply("select", e.apply("lt", a, 0), e.const(-1.0), 0)
    return e.apply("select", e.apply("lt", 0, a), e.const(1.0), below)


RULES["sgn"] = RULES["sign"]


@_compose("hypot")
def _(e: Expressions, a: int, b: int) -> int:
    return e.apply("sqrt", e.apply("add", e.apply("mul", a, a), e.apply("mul", b, b)))


def _across(e: Expressions, rest: int, b: int) -> int:
    """Return whether what fmod leaves has another sign than the divisor."""
    return e.apply("and", e.apply("ne", rest, 0), e.apply("xor", e.apply("lt", rest, 0), e.apply("lt", b, 0)))


def _remainder(e: Expressions, a: int, b: int) -> int:
    rest = e.apply("fmod", a, b)
    return e.apply("select", _across(e, rest, b), e.apply("add", rest, b), rest)


_elementwise(["remainder"], _remainder)


@_compose("logaddexp")
def _(e: Expressions, a: int, b: int) -> int:
    apart = e.apply("neg", e.apply("abs", e.apply("sub", a, b)))
    return e.apply("add", e.apply("maximum", a, b), e.apply("log1p", e.apply("exp", apart)))


@_rule("clamp")
def _clamp(e: Expressions, a: Tensor, min: Tensor | None = None, max: Tensor | None = None) -> Tensor:
    low = a if min is None else each(e, lambda x, y: e.apply("maximum", number(e, x), number(e, y)), a, min)
    return low if max is None else each(e, lambda x, y: e.apply("minimum", number(e, x), number(e, y)), low, max)


RULES["hardtanh"] = _clamp


@_rule("addcmul")
def _addcmul(e: Expressions, a: Tensor, b: Tensor, c: Tensor, *, value: Tensor | None = None) -> Tensor:
    return _add(e, a, RULES["mul"](e, b, c), alpha=value)


@_rule("addcdiv")
def _addcdiv(e: Expressions, a: Tensor, b: Tensor, c: Tensor, *, value: Tensor | None = None) -> Tensor:
    return _add(e, a, _div(e, b, c), alpha=value)


@_rule("lerp")
def _lerp(e: Expressions, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    return _add(e, a, RULES["mul"](e, weight, _sub(e, b, a)))


# --- masks -------------------------------------------------------------------------------------------------------


def _compare(names: Sequence[str], op: str, swap: bool) -> None:
    def rule(e: Expressions, a: Tensor, b: Tensor) -> Tensor:
        operands = (b, a) if swap else (a, b)
        return each(e, lambda x, y: e.apply(op, number(e, x), number(e, y)), *operands)

    RULES.update(dict.fromkeys(names, rule))


for _name, _op, _swap in (
    *(("lt", "lt", False), ("le", "le", False), ("gt", "lt", True), ("ge", "le", True)),
    *(("eq", "eq", False), ("ne", "ne", False)),
):
    _compare([_name], _op, _swap)


def _logical(names: Sequence[str], op: str) -> None:
    def rule(e: Expressions, *operands: Tensor) -> Tensor:
        return each(e, lambda *a: e.apply(op, *(mask(e, b) for b in a)), *operands)

    RULES.update(dict.fromkeys(names, rule))


for _op in ("and", "or", "xor", "not"):
    _logical([f"logical_{_op}", f"bitwise_{_op}", f"__{_op}__"], _op)


@_rule("isnan")
def _isnan(e: Expressions, a: Tensor) -> Tensor:
    return each(e, lambda x: e.apply("ne", x, x), a)


@_rule("isinf")
def _isinf(e: Expressions, a: Tensor) -> Tensor:
    return each(e, lambda x: e.apply("eq", e.apply("abs", x), e.const(math.inf)), a)


@_rule("where")
def _where(e: Expressions, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    def function(c: int, x: int, y: int) -> int:
        c = mask(e, c)
        if e.is_bool(x) and e.is_bool(y):
            other = e.apply("and", e.apply("not", c), y)
            return e.apply("or", e.apply("and", c, x), other)
        return e.apply("select", c, number(e, x), number(e, y))

    return each(e, function, condition, a, b)


@_rule("masked_fill")
def _masked_fill(e: Expressions, a: Tensor, condition: Tensor, value: Tensor) -> Tensor:
    return _where(e, condition, value, a)


# --- reductions --------------------------------------------------------------------------------------------------


def _over(a: Tensor, dim: Any, keepdim: bool) -> tuple[Tensor, torch.Size]:
    """Return a with the dimensions that are reduced in one, the last, and the shape of the result."""
    dims = range(a.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    reduced = sorted(d % max(a.ndim, 1) for d in dims) if a.ndim else []
    kept = [d for d in range(a.ndim) if d not in reduced]
    shape = [1 if d in reduced else a.shape[d] for d in range(a.ndim) if keepdim or d not in reduced]
    return a.permute(*kept, *reduced).reshape(*(a.shape[d] for d in kept), -1), torch.Size(shape)


def _reduction(names: Sequence[str], op: str, convert: Callable[[Expressions, int], int], empty: float) -> None:
    def rule(e: Expressions, a: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
        rows, shape = _over(a, dim, keepdim)
        found = []
        for row in rows.reshape(-1, rows.shape[-1]).tolist():
            found.append(e.reduce(op, [convert(e, n) for n in row]) if row else e.const(empty))
        return torch.tensor(found, dtype=torch.int64, device="cpu").reshape(shape)

    RULES.update(dict.fromkeys(names, rule))


for _names, _op, _convert, _empty in (
    (("sum",), "add", number, 0.0),
    (("prod",), "mul", number, 1.0),
    (("amax",), "maximum", number, -math.inf),
    (("amin",), "minimum", number, math.inf),
    (("any",), "or", mask, 0.0),
    (("all",), "and", mask, 1.0),
):
    _reduction(_names, _op, _convert, _empty)


@_rule("mean")
def _mean(e: Expressions, a: Tensor, dim: Any = None, keepdim: bool = False, **_: Any) -> Tensor:
    total = RULES["sum"](e, a, dim, keepdim)
    count = e.const(a.numel() / max(1, total.numel()))
    return each(e, lambda x: e.apply("div", x, count), total)


@_rule("var")
def _var(e: Expressions, a: Tensor, dim: Any = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    apart = _sub(e, a, _mean(e, a, dim, True))
    total = RULES["sum"](e, RULES["mul"](e, apart, apart), dim, keepdim)
    count = e.const(max(a.numel() / max(1, total.numel()) - correction, 0.0))
    return each(e, lambda x: e.apply("div", x, count), total)


@_rule("cumsum")
def _cumsum(e: Expressions, a: Tensor, dim: int, **_: Any) -> Tensor:
    if a.ndim == 0:
        return a
    columns = a.movedim(dim, 0)
    out = [columns[0]] if len(columns) else []
    for column in columns[1:]:
        out.append(RULES["add"](e, out[-1], column))
    return torch.stack(out).movedim(0, dim) if out else a


# --- products ----------------------------------------------------------------------------------------------------


def _product(e: Expressions, a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix product of [n, k] and [k, m]; each sum a chain, which fused multiply-adds take."""
    columns = b.T.tolist()
    found = []
    for row in a.tolist():
        for column in columns:
            terms = [e.apply("mul", x, y) for x, y in zip(row, column, strict=True)]
            total = terms[0] if terms else 0
            for term in terms[1:]:
                total = e.apply("add", term, total)
            found.append(total)
    return torch.tensor(found, dtype=torch.int64, device="cpu").reshape(len(a), len(columns))


@_rule("mm")
def _mm(e: Expressions, a: Tensor, b: Tensor) -> Tensor:
    return _product(e, a, b)


@_rule("bmm")
def _bmm(e: Expressions, a: Tensor, b: Tensor) -> Tensor:
    return torch.stack([_product(e, x, y) for x, y in zip(a, b, strict=True)])


@_rule("mv")
def _mv(e: Expressions, a: Tensor, b: Tensor) -> Tensor:
    return _product(e, a, b[:, None])[:, 0]


@_rule("dot")
def _dot(e: Expressions, a: Tensor, b: Tensor) -> Tensor:
    return _product(e, a[None], b[:, None])[0, 0]


@_rule("addmm")
def _addmm(
    e: Expressions, bias: Tensor, a: Tensor, b: Tensor, *, beta: Tensor | None = None, alpha: Tensor | None = None
) -> Tensor:
    product = _product(e, a, b)
    bias = bias if beta is None else RULES["mul"](e, bias, beta)
    return _add(e, bias, product, alpha=alpha)


@_rule("baddbmm")
def _baddbmm(
    e: Expressions, bias: Tensor, a: Tensor, b: Tensor, *, beta: Tensor | None = None, alpha: Tensor | None = None
) -> Tensor:
    bias = bias if beta is None else RULES["mul"](e, bias, beta)
    return _add(e, bias, _bmm(e, a, b), alpha=alpha)


# --- sums into places --------------------------------------------------------------------------------------------


def sums_into(e: Expressions, shape: Sequence[int], base: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Return base [shape] with values added at flat places, int64 of their shape."""
    out = base.reshape(-1).tolist()
    for place, value in zip(places.reshape(-1).tolist(), values.reshape(-1).tolist(), strict=True):
        out[place] = e.apply("add", out[place], number(e, value))
    return torch.tensor(out, dtype=torch.int64, device="cpu").reshape(*shape)


@_rule("index_put_accumulate")
def _index_put(e: Expressions, base: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> Tensor:
    flat = torch.arange(base.numel(), device="cpu").reshape(base.shape)
    places = torch.ops.aten.index(flat, list(indices))
    return sums_into(e, base.shape, base, places, values.expand(places.shape))


@_rule("scatter_add")
def _scatter_add(e: Expressions, base: Tensor, dim: int, index: Tensor, values: Tensor) -> Tensor:
    flat = torch.arange(base.numel(), device="cpu").reshape(base.shape)
    corner = tuple(slice(0, n) if i != dim % base.ndim else slice(None) for i, n in enumerate(index.shape))
    places = flat[corner].gather(dim, index)
    return sums_into(e, base.shape, base, places, values[tuple(slice(0, n) for n in index.shape)])


@_rule("index_add")
def _index_add(e: Expressions, base: Tensor, dim: int, index: Tensor, values: Tensor) -> Tensor:
    places = torch.arange(base.numel(), device="cpu").reshape(base.shape).index_select(dim, index)
    return sums_into(e, base.shape, base, places, values)


# --- operators in terms of others --------------------------------------------------------------------------------


def _composed(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        COMPOSED.update(dict.fromkeys(names, function))
        return function

    return register


@_composed("tanh_backward")
def _(grad: Tensor, y: Tensor) -> Tensor:
    return grad * (1.0 - y * y)


@_composed("sigmoid_backward")
def _(grad: Tensor, y: Tensor) -> Tensor:
    return grad * (y * (1.0 - y))


@_composed("threshold_backward")
def _(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    return torch.where(x <= threshold, 0.0, grad)


@_composed("silu")
def _(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@_composed("silu_backward")
def _(grad: Tensor, x: Tensor) -> Tensor:
    y = x.sigmoid()
    return grad * (y * (1.0 + x * (1.0 - y)))


@_composed("softplus")
def _(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    scaled = x * beta
    return torch.where(scaled > threshold, x, scaled.exp().log1p() / beta)


@_composed("softplus_backward")
def _(grad: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    scaled = x * beta
    return torch.where(scaled > threshold, grad, grad * scaled.sigmoid())


@_composed("gelu")
def _(x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x)))
    return 0.5 * x * (1.0 + torch.erf(x * math.sqrt(0.5)))


@_composed("gelu_backward")
def _(grad: Tensor, x: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        scale = math.sqrt(2.0 / math.pi)
        y = torch.tanh(scale * (x + 0.044715 * x * x * x))
        slope = scale * (1.0 + 3.0 * 0.044715 * x * x)
        return grad * (0.5 * (1.0 + y) + 0.5 * x * ((1.0 - y * y) * slope))
    density = torch.exp(-0.5 * x * x) / math.sqrt(2.0 * math.pi)
    return grad * (0.5 * (1.0 + torch.erf(x * math.sqrt(0.5))) + x * density)


@_composed("_softmax")
def _(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    y = (x - x.amax(dim, keepdim=True)).exp()
    return y / y.sum(dim, keepdim=True)


@_composed("_softmax_backward_data")
def _(grad: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    weighted = grad * y
    return weighted - y * weighted.sum(dim, keepdim=True)


@_composed("_log_softmax")
def _(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    apart = x - x.amax(dim, keepdim=True)
    return apart - apart.exp().sum(dim, keepdim=True).log()


@_composed("_log_softmax_backward_data")
def _(grad: Tensor, y: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    return grad - y.exp() * grad.sum(dim, keepdim=True)


@_composed("logsumexp")
def _(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    peak = x.amax(dim, keepdim=True)
    peak = torch.where(peak.abs() == math.inf, 0.0, peak)
    total = (x - peak).exp().sum(dim, keepdim=True).log() + peak
    return total if keepdim else total.squeeze(dim)


@_composed("linalg_vector_norm")
def _(x: Tensor, ord: float = 2.0, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    dims = list(range(x.ndim)) if dim is None else dim
    if ord == math.inf:
        return x.abs().amax(dims, keepdim=keepdim)
    if ord == 1.0:
        return x.abs().sum(dims, keepdim=keepdim)
    if ord == 2.0:
        return x.square().sum(dims, keepdim=keepdim).sqrt()
    return x.abs().pow(ord).sum(dims, keepdim=keepdim).pow(1.0 / ord)
