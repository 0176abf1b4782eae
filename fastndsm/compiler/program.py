"""Straight-line scalar programs in single assignment.

An expression is a number in an `Expressions`, which gives equal ones the same number, folds constants and simplifies
what stays the same for every value, infinite and not a number included: x + 0, x 1, small integer powers; but not x 0.
(The sign of a zero may differ.) Number 0 is the constant 0, so that what moves tensors of numbers and fills with zeros
needs no rule of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

Scalar = float | int  # of a constant its value; of an input its place: x j, z j, p i


class Node(NamedTuple):
    """An operation on numbered arguments; of "const", "x", "z" and "p" the value or place."""

    op: str
    args: tuple[int, ...]
    value: Scalar = 0


INPUTS = ("x", "z", "t", "p")
COMPARISONS = ("lt", "le", "eq", "ne")
BOOLEAN = (*COMPARISONS, "and", "or", "xor", "not")
COMMUTATIVE = ("add", "mul", "maximum", "minimum", "eq", "ne", "and", "or", "xor")
LARGEST_POWER = 64  # of an integer exponent that is written as products
NORMAL = (1e-30, 1e30)  # constants whose reciprocals float32 holds

TORCH: dict[str, Callable[..., Any]] = {
    "fma": lambda a, b, c: a * b + c,
    "fms": lambda a, b, c: a * b - c,
    "fnma": lambda a, b, c: c - a * b,
    "select": torch.where,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "xor": torch.logical_xor,
    "not": torch.logical_not,
    **{
        name: getattr(torch, name)
        for name in (
            *("add", "sub", "mul", "div", "neg", "abs", "sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tan"),
            *("tanh", "sinh", "cosh", "asin", "acos", "atan", "asinh", "acosh", "atanh", "erf", "floor", "ceil"),
            *("round", "trunc", "pow", "atan2", "maximum", "minimum", "fmod", *COMPARISONS),
        )
    },
}


def _is_literal(node: Node, *values: float) -> bool:
    return node.op == "const" and node.value in values


class Expressions:
    """Expressions over the inputs x_j, z_j, t and the parameters p_i, numbered as they come up."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._numbers: dict[object, int] = {}
        self.const(0.0)

    def _number(self, op: str, args: tuple[int, ...] = (), value: Scalar = 0) -> int:
        key = (op, args, float(value).hex() if op == "const" else value)  # -0 is not 0, and NaN is NaN
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.nodes)
            self.nodes.append(Node(op, args, value))
        return found

    def const(self, value: float) -> int:
        """Return the number of a constant."""
        return self._number("const", (), float(value))

    def input(self, kind: str, place: Scalar = 0) -> int:
        """Return the number of x_j, z_j or p_i, or of t."""
        return self._number(kind, (), place)

    def is_bool(self, number: int) -> bool:
        """Return whether the expression is true or false."""
        return self.nodes[number].op in BOOLEAN

    def apply(self, op: str, *args: int) -> int:
        """Return the number of an operation on expressions."""
        nodes = [self.nodes[a] for a in args]
        if all(node.op == "const" for node in nodes) and op not in BOOLEAN:
            values = [torch.tensor(node.value, dtype=torch.float64, device="cpu") for node in nodes]
            if op != "select":
                return self.const(float(TORCH[op](*values)))
        simpler = getattr(self, f"_{op}", None)
        found = None if simpler is None else simpler(args, nodes)
        if found is not None:
            return int(found)
        return self._number(op, tuple(sorted(args)) if op in COMMUTATIVE else args)

    # --- simplifications: the number of what is the same and simpler, or None --------------------------------------

    def _add(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        if nodes[0].op == nodes[1].op == "neg":
            return self.apply("neg", self.apply("add", *nodes[0].args, *nodes[1].args))
        for (a, _), second in ((args, nodes[1]), (args[::-1], nodes[0])):
            if _is_literal(second, 0.0):
                return a
            if second.op == "neg":
                return self.apply("sub", a, *second.args)
        return None

    def _sub(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        (a, b), (first, second) = args, nodes
        if _is_literal(second, 0.0):
            return a
        if _is_literal(first, 0.0):
            return self.apply("neg", b)
        if second.op == "neg":
            return self.apply("add", a, *second.args)
        return None

    def _mul(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        for (a, b), (first, second) in ((args, nodes), (args[::-1], nodes[::-1])):
            if _is_literal(second, 1.0):
                return a
            if _is_literal(second, -1.0):
                return self.apply("neg", a)
            if first.op == "neg" and second.op == "const":
                return self.apply("mul", *first.args, self.const(-float(second.value)))
            if first.op == "neg":
                return self.apply("neg", self.apply("mul", *first.args, b))
        return None

    def _div(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        (a, b), (first, second) = args, nodes
        if second.op == "const" and NORMAL[0] < abs(float(second.value)) < NORMAL[1]:
            return self.apply("mul", a, self.const(1.0 / float(second.value)))
        if first.op == "neg":
            return self.apply("neg", self.apply("div", *first.args, b))
        if second.op == "neg":
            return self.apply("neg", self.apply("div", a, *second.args))
        return None

    def _neg(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        (node,) = nodes
        if node.op == "neg":
            return node.args[0]
        return self.apply("sub", *node.args[::-1]) if node.op == "sub" else None

    def _abs(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        return self.apply("abs", *nodes[0].args) if nodes[0].op == "neg" else None

    def _select(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        _, a, b = args
        if a == b:
            return a
        if nodes[0].op == "not":
            return self.apply("select", *nodes[0].args, b, a)
        if nodes[0].op == "const":
            return a if nodes[0].value else b
        return None

    def _not(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        if nodes[0].op == "const":
            return self.const(float(not nodes[0].value))
        return nodes[0].args[0] if nodes[0].op == "not" else None

    def _and(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        for a, node in zip(args, nodes[::-1], strict=True):
            if node.op == "const":
                return a if node.value else self.const(0.0)
        return None

    def _or(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        found = self._and([self.apply("not", a) for a in args], [self.nodes[self.apply("not", a)] for a in args])
        return None if found is None else self.apply("not", found)

    def _xor(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        for a, node in zip(args, nodes[::-1], strict=True):
            if node.op == "const":
                return self.apply("not", a) if node.value else a
        return None

    def _pow(self, args: Sequence[int], nodes: list[Node]) -> int | None:
        base, exponent = args[0], nodes[1].value
        if nodes[1].op != "const":
            return None
        assert isinstance(exponent, float)
        if exponent < 0.0 and (exponent.is_integer() or exponent == -0.5) and exponent >= -LARGEST_POWER:
            return self.apply("div", self.const(1.0), self.apply("pow", base, self.const(-exponent)))
        if exponent == 0.5:
            return self.apply("sqrt", base)
        if exponent.is_integer() and 0 <= exponent <= LARGEST_POWER:
            return self._power(base, int(exponent))
        return None

    def _power(self, base: int, exponent: int) -> int:
        if exponent == 0:
            return self.const(1.0)
        if exponent == 1:
            return base
        half = self._power(base, exponent // 2)
        square = self.apply("mul", half, half)
        return self.apply("mul", square, base) if exponent % 2 else square

    # --- many of them ----------------------------------------------------------------------------------------------

    def reduce(self, op: str, numbers: Sequence[int]) -> int:
        """Return an associative operation of them all, of halves where they are many."""
        if len(numbers) > 8:
            middle = (len(numbers) + 1) // 2
            return self.apply(op, self.reduce(op, numbers[:middle]), self.reduce(op, numbers[middle:]))
        total = numbers[0]
        for number in numbers[1:]:
            total = self.apply(op, total, number)
        return total

    def renamed(self, numbers: Iterable[int], inputs: Callable[[Node], int]) -> list[int]:
        """Return expressions with other inputs in the place of theirs."""
        changed: dict[int, int] = {}
        for number in self.reachable(numbers):
            node = self.nodes[number]
            if node.op in INPUTS:
                changed[number] = inputs(node)
            elif node.op == "const":
                changed[number] = number
            else:
                changed[number] = self.apply(node.op, *(changed[a] for a in node.args))
        return [changed[number] for number in numbers]

    def reachable(self, numbers: Iterable[int]) -> list[int]:
        """Return what expressions are made of and they themselves, each after its arguments, depth first."""
        return _reachable(self.nodes, numbers)


def _reachable(nodes: Sequence[Node], numbers: Iterable[int]) -> list[int]:
    seen: dict[int, None] = {}
    stack = [(number, False) for number in reversed(list(numbers))]
    while stack:
        number, done = stack.pop()
        if done:
            seen[number] = None
        elif number not in seen:
            stack.append((number, True))
            stack.extend((a, False) for a in reversed(nodes[number].args) if a not in seen)
    return list(seen)


@dataclass(frozen=True)
class Program:
    """F [d] and J^T z [d] of one sample, from x [d], t, z [d] and the parameters p.

    nodes in single assignment; value, product: the numbers of the outputs. Products that end in one sum are fused with
    it, those of F the same way with J^T z and without, so that F has the same bits.
    """

    dim: int
    n_parameters: int
    nodes: tuple[Node, ...]
    value: tuple[int, ...]
    product: tuple[int, ...]
    booleans: frozenset[int] = field(default_factory=frozenset)

    def reachable(self, outputs: Iterable[int]) -> list[int]:
        """Return the numbers that outputs need, in an order to compute them in."""
        return _reachable(self.nodes, outputs)

    @cached_property
    def text(self) -> str:
        """The program as lines "number = operation arguments", and the outputs."""
        lines = [f"dim {self.dim} parameters {self.n_parameters}"]
        for number in self.reachable((*self.value, *self.product)):
            node = self.nodes[number]
            value = float(node.value).hex() if node.op == "const" else node.value
            tail = [str(value)] if node.op in ("const", *INPUTS) else map(str, node.args)
            lines.append(f"{number} = {node.op} {' '.join(tail)}")
        return "\n".join([*lines, f"value {self.value}", f"product {self.product}"])

    @cached_property
    def key(self) -> str:
        """A name of the program by what it computes: programs of one name are equal."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]

    def operations(self, outputs: Iterable[int]) -> int:
        """Return how many scalar operations the outputs take."""
        return sum(self.nodes[n].op not in ("const", *INPUTS) for n in self.reachable(outputs))

    def evaluate(
        self, outputs: Sequence[int], x: Tensor, t: Tensor, parameters: Tensor, z: Tensor | None = None
    ) -> Tensor:
        """Return outputs [B, n] in PyTorch, differentiable: x and z [B, d], t [] or [B], parameters [P]."""
        columns = {"x": x.unbind(1), "z": () if z is None else z.unbind(1)}
        values: dict[int, Tensor] = {}
        for number in self.reachable(outputs):
            op, args, value = self.nodes[number]
            if op == "const":
                values[number] = x.new_full((), float(value))
            elif op == "t":
                values[number] = t
            elif op == "p":
                values[number] = parameters[int(value)]
            elif op in columns:
                values[number] = columns[op][int(value)]
            else:
                values[number] = TORCH[op](*(values[a] for a in args))
        return torch.stack([values[number].expand(len(x)) for number in outputs], 1)


programs: dict[str, Program] = {}  # by their keys, for ops: whose arguments are no such objects


def finished(e: Expressions, dim: int, n_parameters: int, value: Sequence[int], product: Sequence[int]) -> Program:
    """Return the program of these outputs, with products and sums fused."""
    out = _Fused(e)
    value, product = out.outputs(value), out.outputs(product)
    booleans = frozenset(n for n in range(len(out.nodes)) if out.is_bool(n))
    program = Program(dim, n_parameters, tuple(out.nodes), tuple(value), tuple(product), booleans)
    return programs.setdefault(program.key, program)


class _Fused(Expressions):
    """The expressions of another, sums and differences of products that nothing else needs in one operation each."""

    def __init__(self, source: Expressions) -> None:
        super().__init__()
        self._source = source
        self._copy: dict[int, int] = {0: 0}
        self._sums: set[int] = set()  # what outputs so far took

    def outputs(self, numbers: Sequence[int]) -> list[int]:
        nodes = self._source.nodes
        new = [n for n in self._source.reachable(numbers) if n not in self._sums]
        uses: dict[int, int] = dict.fromkeys(numbers, 2)
        for n in new:
            for a in nodes[n].args:
                uses[a] = uses.get(a, 0) + 1
        self._sums.update(new)

        def fuses(a: int) -> bool:
            return nodes[a].op == "mul" and uses[a] == 1

        for n in new:
            op, args, value = nodes[n]
            first, second = (fuses(args[0]), fuses(args[1])) if op in ("add", "sub") else (False, False)
            if op == "add" and (first or second):
                product, other = args if first else args[::-1]
                self._copy[n] = self._number("fma", (*self._of(nodes[product].args), *self._of((other,))))
            elif op == "sub" and (first or second):
                product, other = args if first else args[::-1]
                kind = "fms" if first else "fnma"
                self._copy[n] = self._number(kind, (*self._of(nodes[product].args), *self._of((other,))))
            else:  # also products that are fused: what nothing reaches is no part of a program
                self._copy[n] = self._number(op, tuple(self._of(args)), value)
        return self._of(numbers)

    def _of(self, numbers: Iterable[int]) -> list[int]:
        return [self._copy[n] for n in numbers]
