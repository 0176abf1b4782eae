"""From a Python drift to a program: F and J^T z of one sample, traced operator by operator.

The function runs on two rows, and J^T z by autograd, while every PyTorch operator is seen: beside the values of a
tensor's storage there are the numbers of its scalars. What makes a view has nothing to do for them, what moves data
runs on the numbers unchanged, and what computes has a rule (`rules`). The first row is the program; its outputs have
to be made of its own inputs alone.

Tensors that the function closes over are parameters: what is computed of them alone is left to PyTorch, at each call
(`Traced.parameters`), and its results are arguments of the program. Integer and bool tensors, and Python numbers, are
constants of the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..reference.far import near_rows_alone
from .program import Expressions, Node, Program, finished
from .rules import COMPOSED, INDICES, MOVES, OF_SHAPES, RULES, TAKES_PLACES, mask, number

pytree: Any = torch.utils._pytree
Mode: Any = torch.utils._python_dispatch.TorchDispatchMode
Drift = Callable[[Tensor, Tensor], Tensor]
LARGEST_DIMENSION = 64
MOST_OPERATIONS = 4000
ROWS = 2


class Unsupported(NotImplementedError):
    """The drift cannot be compiled; the message says which operator, or what size, stands in the way."""


@dataclass(frozen=True)
class _Late:
    """The place of a value that is computed at each call, of the parameters alone."""

    place: int


@dataclass(frozen=True)
class _Step:
    """A call of a PyTorch operator on the values of places, at each call."""

    target: Callable[..., Any]
    args: Any
    kwargs: Any


@dataclass(frozen=True)
class Traced:
    """A traced drift.

    program: what it computes. sources: the tensors that it closes over and what PyTorch makes of them, in an order to
    compute them in. taken: the places among their values that are the program's parameters.
    """

    program: Program
    sources: tuple[Tensor | _Step, ...]
    taken: tuple[int, ...]

    def parameters(self, like: Tensor) -> Tensor:
        """Return the program's parameters [P] as they are now, in the dtype of `like`; differentiable."""
        values: list[Any] = []
        for source in self.sources:
            if isinstance(source, Tensor):
                values.append(source)
            else:
                args, kwargs = pytree.tree_map_only(
                    _Late, lambda late: values[late.place], (source.args, source.kwargs)
                )
                made = source.target(*args, **kwargs)
                values.extend(made if isinstance(made, tuple | list) else (made,))
        parts = [values[place].to(like.dtype).reshape(-1) for place in self.taken]
        return torch.cat(parts) if parts else like.new_empty(0)


def trace(drift: Drift, event_shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Traced:
    """Trace a drift (x [B, ...], t [B]) -> like x, for samples of a dtype on a device.

    Raises:
        Unsupported: if an operator has no rule, the drift or its dimension is too large, rows depend on one another, or
            the trace does not give the drift's values.
    """
    dim = math.prod(event_shape)
    if dim > LARGEST_DIMENSION:
        raise Unsupported(f"drift: expected at most {LARGEST_DIMENSION} dimensions, found {dim}")
    with torch.inference_mode(False), torch.enable_grad(), near_rows_alone():
        x, t, z = _points(ROWS, event_shape, dtype, device)
        try:
            value_and_product(drift, x, t, z)  # once before, so that what it keeps for later calls is there
            with _Recorder() as recorder:
                value_and_product(drift, x, t, z)
            with _Tracer(recorder, x, t, z) as tracer:
                found = value_and_product(drift, x, t, z)
            traced = tracer.finish(*found)
            _check_values(traced, drift, *_points(ROWS + 1, event_shape, dtype, device))
        except Unsupported:
            raise
        except Exception as error:  # whatever the user's function raises where it is not called as usual
            reason = str(error).strip().partition("\n")[0]
            raise Unsupported(f"drift: it cannot be traced: {type(error).__name__}: {reason}") from error
    return traced


def _points(
    rows: int, event_shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, t and z of some rows."""
    generator = torch.Generator("cpu").manual_seed(rows)  # not the default one, whose state is the user's
    x, z = (
        torch.randn((rows, *event_shape), generator=generator, dtype=dtype, device="cpu").to(device) for _ in range(2)
    )
    return x.requires_grad_(), torch.linspace(0.1, 0.9, rows, dtype=dtype, device=device), z


def value_and_product(drift: Drift, x: Tensor, t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return F and J^T z, both like x, by autograd."""
    point = x.clone()
    value = drift(point, t)
    if not isinstance(value, Tensor) or value.shape != x.shape or value.dtype != x.dtype:
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise Unsupported(f"drift: expected output like x, {x.dtype} {list(x.shape)}, found {found}")
    if not value.requires_grad:
        return value, torch.zeros_like(x)
    product = torch.autograd.grad(value, x, z, allow_unused=True)[0]
    return value, torch.zeros_like(x) if product is None else product


def _key(tensor: Tensor) -> int:
    """Return what names the tensor's storage as long as it lives."""
    return int(tensor.untyped_storage()._cdata)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


class _Mode(Mode):  # type: ignore[misc]
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would import all of it, for seconds


class _Recorder(_Mode):
    """The storages that operators are given and that none of them has made."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs)):
            if _key(tensor) not in self.made:
                self.given[_key(tensor)] = tensor
        for tensor in _tensors(out):
            if _key(tensor) not in self.given:
                self.made[_key(tensor)] = tensor
        return out


class _Tracer(_Mode):
    """Runs a function and has the numbers of its scalars beside their values."""

    def __init__(self, before: _Recorder, x: Tensor, t: Tensor, z: Tensor) -> None:
        super().__init__()
        self.e = Expressions()
        self.dtype, self.dim = x.dtype, x[0].numel()
        self.before = before
        self.sources: list[Tensor | _Step] = []
        self.taken: list[int] = []
        self.n_parameters = 0
        self._alive: list[Tensor] = []  # so that no storage takes the place of another
        self._numbers: dict[int, Tensor] = {}  # of storages
        self._parameters: dict[int, Tensor] = {}  # the same, of what is made of the parameters alone
        self._late: dict[int, list[tuple[Tensor, int]]] = {}  # tensors made of them, with their places
        self._n_places = 0
        self._constant: set[int] = set()  # storages made here of neither
        for kind, tensor in (("x", x), ("z", z), ("t", t)):
            ids = [self.e.input(kind, place) for place in range(tensor.numel())]
            self._put(self._numbers, tensor, torch.tensor(ids, device="cpu").reshape(tensor.shape))

    def _put(self, numbers: dict[int, Tensor], tensor: Tensor, ids: Tensor) -> None:
        """Keep the numbers of a tensor; of the rest of its storage, none or those that are there."""
        flat = numbers.get(_key(tensor))
        if flat is None:
            size = tensor.untyped_storage().nbytes() // tensor.element_size()
            flat = numbers[_key(tensor)] = torch.full((size,), -1, device="cpu")
            self._alive.append(tensor)
        flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(ids)

    def _get(self, numbers: dict[int, Tensor], tensor: Tensor) -> Tensor:
        ids = numbers[_key(tensor)].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        if bool((ids < 0).any()):
            raise Unsupported("drift: expected tensors of whole storages, found one beside a part that is known")
        return ids

    def finish(self, value: Tensor, product: Tensor) -> Traced:
        """Return what was traced, given the outputs."""
        dim, e = self.dim, self.e
        row = torch.cat([self.ids(value)[0].reshape(-1), self.ids(product)[0].reshape(-1)]).tolist()

        def own(node: Node) -> int:
            if node.op != "p" and int(node.value) >= (1 if node.op == "t" else dim):
                raise Unsupported("drift: expected each sample's drift to depend on itself alone, found on others")
            return e.input(node.op, node.value)

        row = e.renamed([number(e, n) for n in row], own)
        program = finished(e, dim, self.n_parameters, row[:dim], row[dim:])
        count = program.operations((*program.value, *program.product))
        if count > MOST_OPERATIONS:
            raise Unsupported(f"drift: expected at most {MOST_OPERATIONS} scalar operations, found {count}")
        return Traced(program, tuple(self.sources), tuple(self.taken))

    # --- operators -------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        if not any(_key(tensor) in self._numbers for tensor in tensors):
            return self._without_inputs(function, args, kwargs)
        name = function._schema.name.partition("::")[2]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"):
            raise Unsupported(f"drift: expected no choice by a sample's values, found {function}")
        composed = None if name in RULES else self._composed(function, name)
        if composed is not None:
            with self:
                return composed(*args, **kwargs)
        written = function._schema.is_mutable
        if written:
            self._prepare(function, args[0])
        out = function(*args, **kwargs)
        if name in OF_SHAPES:
            self._constant.update(_key(made) for made in _tensors(out))
            self._alive.extend(_tensors(out))
            return out
        outs = list(out) if isinstance(out, tuple | list) else [out]
        if not written and all(_key(o) in self._numbers for o in _tensors(out)) and _tensors(out):
            return out  # views
        self._check_dtype(function, _tensors(out))
        ids = self._convert(function, name.removesuffix("_") if written else name, args, kwargs, outs)
        if written:
            self._put(self._numbers, args[0], ids)
        else:
            for made, numbers in zip(outs, ids if isinstance(ids, tuple | list) else [ids], strict=True):
                if numbers is not None:
                    self._put(self._numbers, made, numbers)
        if len(self.e.nodes) > 8 * ROWS * MOST_OPERATIONS:
            raise Unsupported(f"drift: expected at most {MOST_OPERATIONS} scalar operations, found more")
        return out

    def _without_inputs(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator on constants, or on parameters and constants: the latter again at each call."""
        if function._schema.name == "aten::_efficientzerotensor":  # which has no storage
            return torch.zeros(*args, device=kwargs.get("device", "cpu"), dtype=kwargs.get("dtype"))
        if torch.Tag.nondeterministic_seeded in function.tags:
            raise Unsupported(f"drift: expected no random numbers, found {function}")
        tensors = _tensors((args, kwargs))
        for tensor in tensors:
            self._meet(tensor)
        out = function(*args, **kwargs)
        made = _tensors(out)
        self._alive.extend(made)
        if not any(_key(tensor) in self._late for tensor in tensors):
            self._constant.update(_key(tensor) for tensor in made)
            return out
        if function._schema.is_mutable:
            raise Unsupported(f"drift: expected it to leave the tensors it closes over as they are, found {function}")
        self.sources.append(_Step(function, *pytree.tree_map_only(Tensor, self._place, (args, kwargs))))
        for value in out if isinstance(out, tuple | list) else (out,):
            self._keep_place(value)
        return out

    def _keep_place(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._late.setdefault(_key(value), []).append((value, self._n_places))
        self._n_places += 1

    def _meet(self, tensor: Tensor) -> None:
        """Make a tensor from outside a leaf if it was there in an earlier call, else a constant."""
        key = _key(tensor)
        if key in self._late or key in self._constant or key in self._numbers:
            return
        self._alive.append(tensor)
        if key in self.before.given and tensor.is_floating_point():
            self.sources.append(tensor)
            self._keep_place(tensor)
        else:
            self._constant.add(key)

    def _place(self, tensor: Tensor) -> Any:
        """Return where a tensor that is made of parameters will be found, or a constant itself."""
        known = self._late.get(_key(tensor))
        if known is None:
            return tensor.detach()
        for other, place in known:
            if other is tensor or _same_view(other, tensor):
                return _Late(place)
        raise Unsupported("drift: expected views made by PyTorch's operators, found another")

    def _composed(self, function: Any, name: str) -> Callable[..., Any] | None:
        """Return an operator without a rule in terms of others, if there is such a function."""
        if name in COMPOSED:
            return COMPOSED[name]
        if name in MOVES or name in OF_SHAPES or function._schema.is_mutable or function.is_view:
            return None
        return torch._decomp.decomposition_table.get(function)

    def _check_dtype(self, function: Any, made: list[Tensor]) -> None:
        for tensor in made:
            if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype != self.dtype:
                raise Unsupported(f"drift: expected {self.dtype} throughout, found {tensor.dtype} from {function}")

    def _prepare(self, function: Any, target: Tensor) -> None:
        """Have numbers of a tensor that is to be written to, from before that."""
        self._meet(target)
        if _key(target) in self._late:
            raise Unsupported(f"drift: expected it to leave the tensors it closes over as they are, found {function}")
        if _key(target) not in self._numbers:
            whole = target.as_strided((target.untyped_storage().nbytes() // target.element_size(),), (1,), 0)
            self._put(self._numbers, whole, self._constants(whole))

    def _convert(self, function: Any, name: str, args: Any, kwargs: Any, outs: list[Any]) -> Any:
        """Return the numbers of what an operator makes."""
        e = self.e
        if name in ("_to_copy", "convert_element_type", "to", "copy"):
            return self._cast(self.ids(args[1] if name == "copy" else args[0]), outs[0])
        if name in ("fill", "zero"):
            return self.ids(args[1] if name == "fill" else 0.0).expand(outs[0].shape)
        if name == "constant_pad_nd":
            if len(args) > 2 and args[2] != 0:
                raise Unsupported(f"drift: expected operators with a rule, found {function} with a value")
            return torch.ops.aten.constant_pad_nd(self.ids(args[0]), args[1], 0)
        if name in ("index_put", "_index_put_impl") and (args[3] if len(args) > 3 else kwargs.get("accumulate", False)):
            return RULES["index_put_accumulate"](e, self.ids(args[0]), args[1], self.ids(args[2]))
        if name in MOVES or function.is_view:
            plain = getattr(torch.ops.aten, name) if function._schema.is_mutable else function
            kept = [a if i == INDICES.get(name) else self._moved(a) for i, a in enumerate(args)]
            return plain(*kept, **{key: self._moved(a) for key, a in kwargs.items()})
        rule = RULES.get(name)
        if rule is None:
            raise Unsupported(f"drift: expected operators with a rule, found {function}")
        taken = [self._operand(a, name in TAKES_PLACES, i > 0) for i, a in enumerate(args)]
        named = {key: self._operand(a, name in TAKES_PLACES, True) for key, a in kwargs.items()}
        try:
            return rule(e, *taken, **named)
        except (NotImplementedError, TypeError) as error:  # it does not know this form of the operator
            raise Unsupported(f"drift: expected operators with a rule, found this use of {function}") from error

    def _cast(self, source: Tensor, made: Tensor) -> Tensor:
        convert = mask if made.dtype == torch.bool else number
        found = [convert(self.e, n) for n in source.reshape(-1).tolist()]
        if not (made.is_floating_point() or made.dtype == torch.bool):
            found = [self.e.apply("trunc", n) for n in found]
        return torch.tensor(found, dtype=torch.int64, device="cpu").reshape(source.shape).expand(made.shape)

    def _moved(self, value: Any) -> Any:
        """Return an operand of what moves data: numbers in the place of tensors."""
        if isinstance(value, Tensor):
            return self.ids(value)
        if isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value):
            return [self.ids(v) for v in value]
        return value

    def _operand(self, value: Any, places: bool, later: bool) -> Any:
        """Return an operand of a rule: numbers in the place of tensors, and of Python numbers that stand for one."""
        if isinstance(value, Tensor):
            return value if places and later and not value.is_floating_point() else self.ids(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return self.ids(value) if is_number and not places else value

    def ids(self, value: Any) -> Tensor:
        """Return the numbers of a tensor or a Python number."""
        if not isinstance(value, Tensor):
            return torch.tensor(self.e.const(float(value)), device="cpu")
        self._meet(value)
        key = _key(value)
        if key in self._numbers:
            return self._get(self._numbers, value)
        if key not in self._late:
            return self._constants(value)
        if key not in self._parameters:
            first, place = self._late[key][0]
            ids = [self.e.input("p", self.n_parameters + i) for i in range(first.numel())]
            self._put(self._parameters, first, torch.tensor(ids, dtype=torch.int64, device="cpu").reshape(first.shape))
            self.n_parameters += first.numel()
            self.taken.append(place)
        return self._get(self._parameters, value)

    def _constants(self, value: Tensor) -> Tensor:
        found = [self.e.const(float(v)) for v in value.detach().reshape(-1).tolist()]
        return torch.tensor(found, dtype=torch.int64, device="cpu").reshape(value.shape)


def _same_view(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.stride() == b.stride() and a.storage_offset() == b.storage_offset()


def _check_values(traced: Traced, drift: Drift, x: Tensor, t: Tensor, z: Tensor) -> None:
    """Compare with the drift on other points, and more of them: of chance or state, it has other values there."""
    program = traced.program
    outputs = (*program.value, *program.product)
    expected = torch.cat([part.flatten(1) for part in value_and_product(drift, x, t, z)], 1).detach()
    with torch.no_grad():
        found = program.evaluate(outputs, x.flatten(1), t, traced.parameters(x), z.flatten(1))
    finite = expected.isfinite() & found.isfinite()
    scale = float(expected[finite].abs().amax()) if bool(finite.any()) else 1.0
    tolerance = 1e-6 if x.dtype == torch.float64 else 1e-2
    if bool(((found - expected)[finite].abs() > tolerance * scale + 1e-30).any()):
        raise Unsupported("drift: expected the values that were traced, found others: of chance or the batch size")
