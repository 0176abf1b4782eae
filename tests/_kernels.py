"""Shared by the tests of the Triton kernels: a process of their own, poisoned outputs, compilation ahead of time.

Triton decides when it is imported whether it interprets. So a test file also runs as a program, in a process of its own
for either purpose, which calls or compiles the kernels and writes down what came of it; the tests judge that.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from patience import PATIENCE
from torch import Tensor

from benchmarks.gpu.launches import TARGETS, resources

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")

if "ONE_TARGET" in os.environ:
    TARGETS = {os.environ["ONE_TARGET"]: TARGETS[os.environ["ONE_TARGET"]]}
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}  # bytes a block

Row = dict[str, Any]

# --- a process of their own --------------------------------------------------------------------------------------


def in_own_process(
    file: str, purpose: str, place: Path, seconds: float | None = PATIENCE, /, **environment: str
) -> Path:
    """Run the test file for that purpose, see `main`, for so long at most; return the file it wrote."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    done = subprocess.run(
        [sys.executable, file, purpose, place / "result"],
        env=inherited | {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(place / "cache")} | environment,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "result"


def interpreted_by(file: str, place: Path, **environment: str) -> Any:
    """Return what the file's `interpret` gives, in a process where kernels are interpreted."""
    return torch.load(in_own_process(file, "interpret", place, TRITON_INTERPRET="1", **environment))


def compiled_by(
    file: str, place: Path, targets: Iterable[str] = TARGETS, seconds: float | None = PATIENCE, /, **environment: str
) -> list[Row]:
    """Return what the file's `compile_all` yields, in parallel processes where kernels are compiled, one a target."""

    def rows(target: str) -> list[Row]:
        (place / target).mkdir()
        made = in_own_process(file, "compile", place / target, seconds, ONE_TARGET=target, **environment)
        return json.loads(made.read_text())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return [row for part in pool.map(rows, targets) for row in part]


def main(interpret: Callable[[], Any], compile_all: Callable[[], Iterable[Row]]) -> None:
    """Run as `in_own_process` has it; interpret returns anything torch.save takes, compile_all yields rows."""
    _, purpose, result = sys.argv
    torch.set_num_threads(1)
    if purpose == "interpret":
        with ordered_products():
            torch.save(interpret(), result)
    else:
        Path(result).write_text(json.dumps(list(compile_all())))


# --- in the interpreter ------------------------------------------------------------------------------------------


def poisoned(op: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, bool]:
    """Return what op does when all memory it takes was NaN, and whether the 64 values on either side stayed NaN.

    An op takes memory by torch.empty and torch.empty_like alone; any number of buffers, outputs or not. Of integers
    the smallest stands for NaN.
    """
    buffers: list[Tensor] = []
    ends: list[Tensor] = []

    def empty(*size: Any, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        shape = tuple(size[0]) if len(size) == 1 and not isinstance(size[0], int) else size
        dtype = torch.get_default_dtype() if dtype is None else dtype
        poison = math.nan if dtype.is_floating_point else torch.iinfo(dtype).min
        count = math.prod(shape)
        buffer = torch.full((count + 128,), poison, dtype=dtype, device=device)
        buffers.append(buffer)
        ends.extend((buffer[:64], buffer[64 + count :]))
        return buffer[64 : 64 + count].view(shape)

    def empty_like(like: Tensor, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        return empty(like.shape, dtype=dtype or like.dtype, device=device or like.device)

    with mock.patch.object(torch, "empty", empty), mock.patch.object(torch, "empty_like", empty_like):
        out = op(*arguments, **options)
    assert buffers, f"{op} takes no memory by torch.empty"
    untouched = all(
        bool((end.isnan() if end.is_floating_point() else end == torch.iinfo(end.dtype).min).all()) for end in ends
    )
    out = out.clone() if isinstance(out, Tensor) else tuple(o.clone() for o in out)
    return out, untouched


def product(a: Any, b: Any) -> Any:
    """Return a b [..., m, n] of float32 arrays, summed in one order: a BLAS gives a row other bits among other rows."""
    import numpy as np

    total = np.zeros((*a.shape[:-1], b.shape[-1]), np.float32)
    term = np.empty_like(total)
    for k in range(a.shape[-1]):
        total += np.multiply(a[..., k, None], b[..., None, k, :], out=term)
    return total


@contextlib.contextmanager
def ordered_products() -> Iterator[None]:
    """Make tl.dot in the interpreter add in one order, so that bits are those of no processor's BLAS."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return TensorHandle(product(a.data, b.data) + d.data, d.dtype.scalar)

    with mock.patch.object(InterpreterBuilder, "create_dot", dot):
        yield


@contextlib.contextmanager
def tensor_cores() -> Iterator[None]:
    """Compute tl.dot of precision tf32x3 in the interpreter as tensor cores do: three products of tf32 parts."""
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    exact = InterpreterBuilder.create_dot

    def parts(values: Any) -> tuple[Any, Any]:
        bits = values.astype(np.float32).view(np.uint32)
        high = (bits + 0x1000 & 0xFFFFE000).view(np.float32)  # rounded
        return high, ((values - high).view(np.uint32) & 0xFFFFE000).view(np.float32)  # the rest, truncated

    def dot(self: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        if precision.name != "TF32x3":
            return exact(self, a, b, d, precision, *rest)
        (a_high, a_low), (b_high, b_low) = parts(a.data), parts(b.data)
        small = product(a_low, b_high) + product(a_high, b_low)
        return TensorHandle(np.where(np.isnan(small), 0, small) + product(a_high, b_high) + d.data, d.dtype.scalar)

    with mock.patch.object(InterpreterBuilder, "create_dot", dot):
        yield


# --- compiled ahead of time --------------------------------------------------------------------------------------


def compile_ahead(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    target: str,
    *,
    num_warps: int,
    aligned: Iterable[str] | None = None,
    **options: Any,
) -> Row:
    """Compile a kernel as a launch would, and say what it takes: shared, and what `resources` has; or error.

    Args:
        signature: types of the kernel's run-time arguments by name, such as "*fp32", "*i64", "i32", "fp32".
        constants: its constexpr arguments by name.
        target: a name of TARGETS.
        aligned: arguments that a launch finds to be multiples of 16; default every pointer.
        options: of the compiler, such as num_stages and enable_fp_fusion.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if aligned is None:
        aligned = [name for name, kind in signature.items() if kind.startswith("*")]
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    row: Row = {"kernel": kernel.__name__, "target": target, "constants": dict(constants), "num_warps": num_warps}
    try:
        made = triton.compile(
            ASTSource(kernel, types, dict(constants), attributes),
            target=GPUTarget(*TARGETS[target]),
            options={"num_warps": num_warps} | options,
        )
        return row | {"shared": made.metadata.shared} | resources(made)
    except Exception as error:
        return row | {"error": repr(error)}


def check_resources(row: Row, registers: int, shared: int | None = None) -> None:
    """Check that it compiles, spills nothing, and keeps below these ceilings and the chip's own."""
    assert "error" not in row, f"{row['kernel']} cannot be compiled for {row['target']} here: {row}"
    assert row["spilled"] == 0, row
    assert 0 < row["registers"] <= registers, row
    ceiling = SHARED_MEMORY[row["target"]]
    assert row["shared"] <= (ceiling if shared is None else min(shared, ceiling)), row
