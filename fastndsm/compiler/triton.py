"""A program as Triton: the two device functions that kernels/drift.py takes for a drift."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch

from .program import INPUTS, Node, Program

OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "fmod": "%", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
OPERATORS |= {"and": "&", "or": "|", "xor": "^"}
OF_TRITON = ("abs", "sqrt", "log", "sin", "cos", "erf", "floor", "ceil", "fma")
OTHER_FORMS = {
    "neg": "-{0}",
    "not": "{0} == 0",
    "select": "tl.where({0}, {1}, {2})",
    "fms": "tl.fma({0}, {1}, -{2})",
    "fnma": "tl.fma(-{0}, {1}, {2})",
    **{name: f"tl.{name}({', '.join(['{0}', '{1}', '{2}'][: 3 if name == 'fma' else 1])})" for name in OF_TRITON},
    **{name: f"{{0}} {symbol} {{1}}" for name, symbol in OPERATORS.items()},
}
MODULE = '''\
"""F and J^T z of one drift: generated, program {key}."""

import triton
import triton.language as tl
{imports}

@triton.jit
def value(x, t, p):
{value}


@triton.jit
def value_and_product(x, t, z, p):
{both}
'''


def source(program: Program, functions: str) -> str:
    """Return the module of a program's device functions; functions: the module that has the elementary ones."""
    nodes = [program.nodes[n] for n in program.reachable((*program.value, *program.product))]
    names = sorted({node.op for node in nodes} - {"const", *INPUTS, *OTHER_FORMS})
    return MODULE.format(
        key=program.key,
        imports=f"from {functions} import {', '.join(names)}\n" if names else "",
        value="\n".join(_body(program, program.value)),
        both="\n".join(_body(program, program.value, program.product)),
    )


def _body(program: Program, *outputs: Sequence[int]) -> Iterable[str]:
    """Return the lines that compute outputs, and that return them."""
    for number in program.reachable([n for part in outputs for n in part]):
        yield f"    v{number} = {_expression(program.nodes[number])}"
    tuples = ["".join(f"v{n}, " for n in part).rstrip() for part in outputs]
    yield f"    return {', '.join(f'({numbers})' for numbers in tuples)}"


def _expression(node: Node) -> str:
    op, args, value = node
    if op == "const":
        return f"tl.full(x[0].shape, {_literal(float(value))}, tl.float32)"
    if op in ("t", "p"):
        return f"tl.broadcast_to({'t' if op == 't' else f'tl.load(p + {value})'}, x[0].shape)"
    if op in INPUTS:
        return f"{op}[{value}]"
    v = [f"v{a}" for a in args]
    return OTHER_FORMS[op].format(*v) if op in OTHER_FORMS else f"{op}({', '.join(v)})"


def _literal(value: float) -> str:
    """Return a float32: what one does not hold would make Triton compute in float64."""
    rounded = float(torch.tensor(value, dtype=torch.float32, device="cpu"))
    if not math.isfinite(rounded):
        return f'float("{rounded}")'
    return repr(rounded if abs(rounded) >= torch.finfo(torch.float32).tiny else 0.0)
