"""A program as C++ on the short vectors of csrc/include/vec.h: what csrc/drift/tiles.h takes for a drift."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .program import INPUTS, Program

INLINE_OPERATIONS = 600  # up to which it is compiled into the loops, state in registers; longer ones are calls
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "eq": "==", "ne": "!=", "and": "&", "or": "|"}
OPERATORS["xor"] = "^"

HEADER = """\
// F and J^T z of one drift: generated, program {key}.
#pragma once

#include "{drift}/tiles.h"

namespace fastndsm::drift {{

template <typename V>
struct Program {{
  using S = scalar_of<V>;
  static constexpr int kDim = {dim};

  static {kind} void value(const V* x, [[maybe_unused]] V t, [[maybe_unused]] const S* p, V* f) {{
{value}
  }}

  static {kind} void value_and_product(const V* x, [[maybe_unused]] V t, const V* z, [[maybe_unused]] const S* p, V* f,
                                       V* g) {{
{both}
  }}
}};

}}  // namespace fastndsm::drift
"""
STATE = """\
// Trajectories of the drift in drift.h, there and back.
#include "drift.h"

using S = {scalar};
using namespace fastndsm;

FASTNDSM_DRIFT int64_t fastndsm_drift_simulate(const S* x0, const int64_t* steps, int64_t n_rows, int64_t n_records,
    const double* times, const double* std, int64_t n_steps, double rate, const S* parameters, int64_t seed,
    int64_t first_path, int64_t mirrored, S* x, S* second, S* third, int64_t n_threads) {{
  return drift::simulate<drift::Program, S, false>(x0, steps, n_rows, n_records, times, std, n_steps, rate, parameters,
                                                   seed, first_path, mirrored, x, second, third, n_threads);
}}

FASTNDSM_DRIFT void fastndsm_drift_reverse_steps(const S* y, const S* held, const S* slope, const S* rate,
    int64_t n_rows, int64_t first, int64_t last, const S* coefficients, const double* times, const double* std,
    int64_t n_steps, const S* parameters, int64_t seed, int64_t first_path, S* out, int64_t n_threads) {{
  drift::reverse_steps<drift::Program, S>(y, held, slope, rate, n_rows, first, last, coefficients, times, std, n_steps,
                                          parameters, seed, first_path, out, n_threads);
}}

FASTNDSM_DRIFT void fastndsm_drift_value(const S* x, const S* t, const S* z, int64_t n_rows, const S* parameters,
    S* value, S* product, int64_t n_threads) {{
  drift::evaluate<drift::Program, S, false>(x, t, z, n_rows, parameters, value, product, n_threads);
}}
"""
TARGET = """\
// The path estimator's target by the drift in drift.h.
#include "drift.h"

using S = {scalar};
using namespace fastndsm;

FASTNDSM_DRIFT int64_t fastndsm_drift_target(const S* x0, const int64_t* steps, int64_t n_rows, int64_t n_records,
    const double* times, const double* std, int64_t n_steps, double rate, const S* parameters, int64_t seed,
    int64_t first_path, int64_t mirrored, S* x, S* second, S* third, int64_t n_threads) {{
  return drift::simulate<drift::Program, S, true>(x0, steps, n_rows, n_records, times, std, n_steps, rate, parameters,
                                                  seed, first_path, mirrored, x, second, third, n_threads);
}}

FASTNDSM_DRIFT void fastndsm_drift_product(const S* x, const S* t, const S* z, int64_t n_rows, const S* parameters,
    S* value, S* product, int64_t n_threads) {{
  drift::evaluate<drift::Program, S, true>(x, t, z, n_rows, parameters, value, product, n_threads);
}}
"""


def sources(program: Program, scalar: str, drift: str = "drift") -> dict[str, str]:
    """Return the files of a library by name; scalar "float" or "double", drift where csrc/drift is found from there."""
    long = program.operations((*program.value, *program.product)) > INLINE_OPERATIONS
    header = HEADER.format(
        key=program.key,
        drift=drift,
        dim=program.dim,
        kind="FASTNDSM_OUTLINE" if long else "FASTNDSM_HD",
        value="\n".join(statements(program, {"f": program.value})),
        both="\n".join(statements(program, {"f": program.value, "g": program.product})),
    )
    return {"drift.h": header, "state.cpp": STATE.format(scalar=scalar), "target.cpp": TARGET.format(scalar=scalar)}


def statements(program: Program, outputs: dict[str, Sequence[int]]) -> Iterable[str]:
    """Return the lines that compute outputs, by the names of their arrays."""
    numbers = program.reachable([n for array in outputs.values() for n in array])
    angles = {
        kind: {program.nodes[n].args[0]: n for n in numbers if program.nodes[n].op == kind} for kind in ("sin", "cos")
    }
    done: set[int] = set()
    for number in numbers:
        op, args, value = program.nodes[number]
        if op in ("sin", "cos") and args[0] in angles["sin"] and args[0] in angles["cos"]:
            sine, cosine = (angles[kind][args[0]] for kind in ("sin", "cos"))
            if number not in done:
                yield f"    V v{sine}, v{cosine}; functions::sincos(v{args[0]}, v{sine}, v{cosine});"
            done |= {sine, cosine}
        else:
            kind = "const auto" if number in program.booleans else "const V"
            yield f"    {kind} v{number} = {_expression(op, args, value)};"
    for name, array in outputs.items():
        yield from (f"    {name}[{j}] = v{number};" for j, number in enumerate(array))


def _expression(op: str, args: tuple[int, ...], value: float | int) -> str:
    v = [f"v{a}" for a in args]
    if op == "const":
        return f"splat<V>(S({_literal(float(value))}))"
    if op in INPUTS:
        return {"t": "t", "p": f"splat<V>(p[{value}])"}.get(op, f"{op}[{value}]")
    if op in OPERATORS:
        return f"{v[0]} {OPERATORS[op]} {v[1]}"
    if op == "le":
        return f"{v[1]} >= {v[0]}"
    if op == "neg":
        return f"-{v[0]}"
    if op == "not":
        return f"!{v[0]}"
    if op == "select":
        return f"select({', '.join(v)})"
    if op == "fma":
        return f"fused({', '.join(v)})"
    if op == "fms":
        return f"fused({v[0]}, {v[1]}, V(-{v[2]}))"
    if op == "fnma":
        return f"fused(V(-{v[0]}), {v[1]}, {v[2]})"
    return f"functions::{op}({', '.join(v)})"


def _literal(value: float) -> str:
    if math.isnan(value):
        return '__builtin_nan("")'
    if math.isinf(value):
        return "__builtin_inf()" if value > 0 else "-__builtin_inf()"
    return value.hex()
