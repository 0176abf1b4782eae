"""A Python drift and its programs: traced when first used, and again when what the function closes over has changed."""

from __future__ import annotations

import functools
import logging
import math
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks
from ._ops import compute_dtype, ops
from .backends import BackendError, registry
from .compiler import Traced, Unsupported, trace
from .jit.cache import BuildError

Function = Callable[[Tensor, Tensor], Tensor]
DEPTH = 6  # of objects within objects that are looked through for what a function closes over
MOST_TRACES = 32  # of one function, after which it changes too often to be worth compiling


def _reached(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """Yield what a trace of a function depends on: identities of tensors and other objects, and plain values."""
    if isinstance(value, Tensor):
        yield id(value), value.dtype, value.device, None if value.is_floating_point() else value._version
    elif value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
        yield value
    elif depth == 0:
        yield id(value)
    elif isinstance(value, functools.partial):
        for part in (value.func, value.args, value.keywords):
            yield from _reached(part, depth - 1)
    elif isinstance(value, types.MethodType):
        yield from _reached(value.__func__, depth)
        yield from _reached(value.__self__, depth - 1)
    elif isinstance(value, types.FunctionType):
        yield id(value.__code__)
        known = value.__globals__
        for part in (
            *(cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell)),
            *(value.__defaults__ or ()),
            *(value.__kwdefaults__ or {}).values(),
            *(known[name] for name in value.__code__.co_names if _may_change(known.get(name))),
        ):
            yield from _reached(part, depth - 1)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _reached(part, depth - 1)
    elif isinstance(value, dict):
        for name, part in value.items():
            yield name if isinstance(name, str | int) else id(name)
            yield from _reached(part, depth - 1)
    else:
        yield id(value)
        if not isinstance(value, type | types.ModuleType):
            yield from _reached(getattr(value, "__dict__", None), depth - 1)


def _is_empty(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _may_change(value: Any) -> bool:
    return value is not None and not isinstance(value, type | types.ModuleType | types.BuiltinFunctionType)


class CompiledDrift:
    """A drift F(x, t) as compiled code: call it for F, `product` for F and J^T z.

    Both are ops: differentiable, in the compute dtype of x, on the backend that is in force. Where no compiled code can
    serve, they run in PyTorch.
    """

    def __init__(self, function: Function, event_shape: Sequence[int], required: bool = True) -> None:
        self.function = function
        self.event_shape = tuple(event_shape)
        self.required = required
        self._traces: dict[Any, Traced | Unsupported] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledDrift:
        import copy

        return CompiledDrift(copy.deepcopy(self.function, memo), self.event_shape, self.required)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_traces": {}}

    @property
    def dim(self) -> int:
        """Dimension d, the number of values in a sample."""
        return math.prod(self.event_shape)

    def traced(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Traced:
        """Return the drift as it is now, traced for samples of a dtype, float32 or float64; raise if it cannot be."""
        device = torch.device(device)
        key = dtype, device, tuple(_reached(self.function))
        found = self._traces.get(key)
        if found is None:
            try:
                if len(self._traces) >= MOST_TRACES:
                    raise Unsupported(
                        f"drift: expected it to stay the same, found {MOST_TRACES} changes of what it is made of"
                    )
                found = trace(self.function, self.event_shape, dtype, device)
            except Unsupported as error:
                found = error
            self._traces[key] = found
            self._traces[(dtype, device, tuple(_reached(self.function)))] = found  # tracing itself may fill caches
        if isinstance(found, Unsupported):
            raise Unsupported(str(found)) from found
        return found

    def check(self) -> None:
        """Raise BackendError, with the reason, if it cannot be traced for samples of the default dtype."""
        try:
            self.traced(compute_dtype(torch.get_default_dtype()))
        except Unsupported as error:
            raise BackendError(str(error)) from error

    def operands(self, x: Tensor, backend: str = "auto") -> tuple[Tensor, str] | None:
        """Return what ops take, the parameters as they are now and the key of the program; None to run in PyTorch.

        Raises:
            BackendError: if `required`, or a backend that is asked for by name, cannot serve; with the reason.
        """
        name = registry.requested(backend)
        if name == "reference" or torch._C._functorch.peek_interpreter_stack() is not None:
            return None
        try:
            return self._operands(x, name)
        except (Unsupported, BuildError, BackendError) as error:
            if self.required:
                raise BackendError(str(error)) from error
            if name not in ("auto", "cpp") and not isinstance(error, Unsupported):
                raise
            registry.log_once(logging.WARNING, f"a drift runs in PyTorch, which is slower: {error}")
            return None

    def _operands(self, x: Tensor, backend: str) -> tuple[Tensor, str]:
        if x.device.type not in ("cpu", "cuda"):
            raise Unsupported(f"drift: expected samples on a GPU or on the CPU, found {x.device.type}")
        dtype = compute_dtype(x.dtype)
        traced = self.traced(dtype, x.device)
        chosen = registry.choose("drift_value", backend, x.device, [dtype], compiled=True)
        chosen.load().load_drift(traced.program, dtype)
        return traced.parameters(x.new_empty(0, dtype=dtype)), traced.program.key

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        """Return F(x, t) for x [B, ...], t a number or [B] -> like x."""
        flat, times = self._checked(x, t)
        operands = self.operands(x)
        if operands is None:
            return _checks.drift_output(self.function(x, times), x)
        return ops.drift_value(flat, operands[0], times, operands[1], "auto").reshape(x.shape)  # type: ignore[no-any-return]

    def product(self, x: Tensor, t: float | Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return F(x, t) and J^T z, the transposed Jacobian of F in x times z, for x, z [B, ...] -> like x each."""
        flat, times = self._checked(x, t)
        along = _checks.like("z", z, "x", x).reshape(flat.shape)
        operands = self.operands(x)
        if operands is None:
            value, pullback, *_ = torch.func.vjp(lambda point: _checks.drift_output(self.function(point, times), x), x)
            return value, pullback(z)[0]
        value, product = ops.drift_product(flat, operands[0], along, times, operands[1], "auto")
        return value.reshape(x.shape), product.reshape(x.shape)

    def _checked(self, x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        flat = _checks.batch("x", x, self.dim)
        _checks.time("t", t, len(x))
        return flat, torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1).expand(len(x))

    def source(self, dtype: torch.dtype = torch.float32) -> str:
        """Return the program as text: scalar operations in single assignment."""
        return self.traced(dtype).program.text


def compile_drift(drift: Function, dim: int | Sequence[int]) -> CompiledDrift:
    """Compile a drift F(x, t), a Python function: (x [B, ...], t [B]) -> like x, each row of it a function of that row.

    It is traced as operators of PyTorch, once for each dtype, and built on first use: as C++ for samples on the CPU, by
    Triton, in float32 alone and untested on GPUs, for those on a GPU. Tensors that it closes over are arguments of the
    compiled code: new values need no new code. Python numbers are constants in it.

    Args:
        dim: d, or the shape of a sample; at most 64 values, and about 4,000 scalar operations for F and its Jacobian.

    Raises:
        BackendError: when it is called, if it cannot be compiled: which operator or size stands in the way.
    """
    _checks.network("drift", drift)
    if isinstance(dim, Sequence):
        shape = tuple(_checks.count("dim", n) for n in dim)
        if not shape:
            raise ValueError("dim: expected at least one dimension, found none")
    else:
        shape = (_checks.count("dim", dim),)
    return CompiledDrift(drift, shape)
