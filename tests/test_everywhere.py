"""Every public class and function inside a larger program.

Objects are pickled, copied, sent to a spawned process, saved and loaded into others; made and used inside
inference_mode, under another default device and another default dtype; compiled, and printed where there are no values.
What each is made and judged by is in `public.py`.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from public import ALL, ELSEWHERE, EXAMPLES, FUNCTIONS, TAKES_GRADIENTS, Given, leaves, points, public, pull, same, seen
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastndsm import GaussianMixture, LangevinProcess, NDSMLoss, _checks, log_likelihood, networks, sample, testing
from fastndsm.metrics import energy_distance

examples = pytest.mark.parametrize("name", ALL)
functions = pytest.mark.parametrize("name", [n for n, f in public().items() if f in FUNCTIONS])
MODULES = {name: e for name, e in ALL.items() if issubclass(e.kind, nn.Module)}


@pytest.fixture(autouse=True)
def _one_thread(_same_start: None) -> None:
    torch.set_num_threads(1)  # what is done here is small


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    """Set a default device on which nothing has values: what is made there by mistake is not what it should be."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


AMBIENT = {
    "inference mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "default device": default_device,
    "default float64": lambda: default_dtype(torch.float64),
    "default bfloat16": lambda: default_dtype(torch.bfloat16),
}


def test_everything_public_has_an_example() -> None:
    known = {*EXAMPLES, *FUNCTIONS}
    assert [name for name, value in public().items() if value not in known and name not in ELSEWHERE] == []


# --- copies ------------------------------------------------------------------------------------------------------


def saved(value: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {"pickle": lambda v: pickle.loads(pickle.dumps(v)), "deepcopy": copy.deepcopy, "torch.save": saved}


@examples
def test_copies_are_what_the_original_is(name: str) -> None:
    example = ALL[name]
    value = example.make()
    expected = seen(example, value)
    for way, copied in COPIES.items():
        assert same(seen(example, copied(value)), expected), way
    assert same(seen(example, value), expected)


def _in_another_process(rank: int, objects: dict[str, Any], folder: str) -> None:
    torch.set_num_threads(1)
    torch.save({name: seen(ALL[name], value) for name, value in objects.items()}, Path(folder) / "seen.pt")


def test_a_spawned_process_sees_the_same(tmp_path: Path) -> None:
    objects = {name: example.make() for name, example in ALL.items()}
    torch.multiprocessing.spawn(_in_another_process, (objects, str(tmp_path)), nprocs=1)
    found = torch.load(tmp_path / "seen.pt", weights_only=False)
    assert [name for name, value in objects.items() if not same(found[name], seen(ALL[name], value))] == []


@pytest.mark.parametrize("name", MODULES)
def test_a_state_dict_gives_equal_values_or_an_error(name: str) -> None:
    """Load it also into one on another mixture, horizon or sigma."""
    example = MODULES[name]
    value = example.make()
    expected, state = seen(example, value), saved(value.state_dict())
    for make in (example.make, *example.others):
        other = make()
        different = not same(seen(example, other), expected)
        assert different == (make is not example.make)
        try:
            other.load_state_dict(state)
        except (RuntimeError, ValueError):
            assert different
        else:
            assert same(seen(example, other), expected)


# --- ambient modes -----------------------------------------------------------------------------------------------


GRADIENTS = ("inference mode", "no_grad")  # modes in which there are none


@examples
def test_made_or_used_under_a_mode_an_object_is_the_same_after_it(name: str) -> None:
    example = ALL[name]
    for mode, ambient in AMBIENT.items():
        value = example.make()
        with ambient(), contextlib.suppress(RuntimeError) if mode in GRADIENTS else contextlib.nullcontext():
            inside = seen(example, value)
        expected = seen(example, example.make())
        assert mode in GRADIENTS or same(inside, expected), mode
        assert same(seen(example, value), expected), mode
        if not example.parameters:
            with ambient():
                made = example.make()
            assert same(seen(example, made), expected), mode


@contextlib.contextmanager
def fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


LEAVE_NOTHING = {
    "fake tensors": fake,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "meta": lambda: torch.device("meta"),
    "forward AD": torch.autograd.forward_ad.dual_level,
    "saved tensors": lambda: torch.autograd.graph.save_on_cpu(),
}


@examples
def test_nothing_stays_of_a_mode_that_an_object_was_used_in(name: str) -> None:
    example = ALL[name]
    expected = seen(example, example.make())
    for mode, ambient in LEAVE_NOTHING.items():
        value = example.make()
        with ambient(), contextlib.suppress(Exception):  # it may be refused there
            seen(example, value)
        assert same(seen(example, value), expected), mode


@pytest.mark.parametrize("dtype", _checks.FLOATS, ids=str)
@pytest.mark.parametrize("call", testing.CALLS, ids=lambda call: call.name)
def test_an_op_gives_the_same_under_a_mode_as_without_it(call: testing.Call, dtype: torch.dtype) -> None:
    for backend in ("auto", "reference"):
        arguments = testing.random_arguments("diag", 5, 2, 3, dtype=dtype)
        expected, gradients = (list(leaves(f(arguments, backend))) for f in (call, call.with_gradients))
        for mode, ambient in AMBIENT.items():
            arguments = testing.random_arguments("diag", 5, 2, 3, dtype=dtype)
            with ambient():
                assert same(list(leaves(call(arguments, backend))), expected), mode
                if mode not in GRADIENTS:
                    assert same(list(leaves(call.with_gradients(arguments, backend))), gradients), mode
            assert same(list(leaves(call.with_gradients(arguments, backend))), gradients), mode


def test_what_was_drawn_in_inference_mode_is_used_outside() -> None:
    net = ALL["ResidualScore-0"].make()
    with torch.inference_mode():
        x = sample(net, net.process, 6, seed=1)
        noised = net.process.noised(x, seed=2)
        scores, drawn = net(x, torch.full((6,), 0.2)), net.process.prior.sample(6, seed=3).float()
    for points_ in (x, noised.x, scores, drawn):
        assert log_likelihood(net, net.process, points_).isfinite().all()
        loss = NDSMLoss(net.process)(net, points_, seed=3)
        loss.backward()
        assert net.process.reference.score(points_.clone().requires_grad_()).requires_grad
        assert energy_distance(points_, x) < 100.0
    assert all(p.grad is not None for p in net.parameters())


# --- compiled, and without values --------------------------------------------------------------------------------

COMPILED = (
    "GaussianMixture",
    "LangevinProcess",
    "OUProcess",
    "ResidualScore",
    "MLP",
    "UNet",
    "TimeEmbedding",
    "NDSMLoss",
)


def calls_of(value: Any) -> list[Any]:
    x, v, t = points(), points(seed=1), torch.full((5,), 0.2)
    if isinstance(value, GaussianMixture):
        return [lambda: (value.log_prob(x), value.score(x), value.hvp(x, v), value.sample(4, seed=1))]
    if isinstance(value, LangevinProcess):
        return [lambda: (value.simulate(x, seed=1), *value.transition(x, 3, 1), *value.noised(x, 3, 1))]
    if isinstance(value, NDSMLoss):
        return [lambda: value(pull, x, seed=1)]
    if isinstance(value, networks.TimeEmbedding):
        return [lambda: value(t)]
    x = points(5, 64).reshape(5, 1, 8, 8) if isinstance(value, networks.UNet) else x
    return [lambda: value(x, t)]


@pytest.mark.parametrize("name", [n for n in ALL if n.split("-")[0] in COMPILED])
@pytest.mark.parametrize("moved", [False, True], ids=["fresh", "moved"])
def test_what_promises_it_compiles_to_one_graph_and_is_the_same_after_it(name: str, moved: bool) -> None:
    example = ALL[name]
    value = example.make()
    if moved:
        value = value.to("cpu").float()
    expected = [call() for call in calls_of(value)]
    fresh = example.make()
    if moved:
        fresh = fresh.to("cpu").float()
    torch._dynamo.reset()
    try:
        found = [torch.compile(call, fullgraph=True, backend="eager")() for call in calls_of(fresh)]
    finally:
        torch._dynamo.reset()
    for outcome in (found, [call() for call in calls_of(fresh)]):
        if outcome is found and isinstance(value, torch.nn.Module) and any(map(is_mlp, value.modules())):
            torch.testing.assert_close(list(leaves(outcome)), list(leaves(expected)))  # a compiler sees its layers
        else:
            assert same(list(leaves(outcome)), list(leaves(expected)))


def is_mlp(module: object) -> bool:
    return isinstance(module, networks.MLP)


@pytest.mark.parametrize("name", MODULES)
def test_without_values_it_can_be_printed_and_copied(name: str) -> None:
    value = MODULES[name].make()
    shown = repr(value)
    empty = value.to("meta")
    assert repr(empty) == shown == repr(copy.deepcopy(empty)) == repr(pickle.loads(pickle.dumps(empty)))
    assert all(t.is_meta for t in (*empty.parameters(), *empty.buffers()))


@functions
def test_a_function_gives_the_same_under_a_mode_as_without_it(name: str, tmp_path: Path) -> None:
    function, given = FUNCTIONS[public()[name]], Given(tmp_path)
    expected = list(leaves(function(given)))
    for mode, ambient in AMBIENT.items():
        if public()[name] in TAKES_GRADIENTS and mode in GRADIENTS:
            continue
        with ambient():
            found = function(given)
        assert same(list(leaves(found)), expected), mode
        assert same(list(leaves(function(given))), expected), mode


# --- in the sources ----------------------------------------------------------------------------------------------

FACTORIES = "arange empty eye full linspace logspace ones rand randint randn randperm tensor zeros as_tensor".split()


def _without_a_device(source: str) -> Iterator[int]:
    """Yield lines of factory calls that leave the device to the default; a buffer goes where its parameters go."""
    tree = ast.parse(source)
    buffers = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "self.register_buffer"]
    exempt = {id(inner) for buffer in buffers for inner in ast.walk(buffer)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in [f"torch.{name}" for name in FACTORIES]:
            if id(node) not in exempt and "device" not in [keyword.arg for keyword in node.keywords]:
                yield node.lineno


def test_no_factory_call_leaves_the_device_to_the_default() -> None:
    assert list(_without_a_device("x = torch.zeros(3)\ny = torch.ones(3, device=x.device)")) == [1]
    root = Path(__file__).resolve().parent.parent
    found = [
        f"{path.relative_to(root)}:{line}"
        for folder in ("fastndsm", "kernels", "benchmarks")
        for path in sorted((root / folder).rglob("*.py"))
        for line in _without_a_device(path.read_text(encoding="utf-8"))
    ]
    assert found == []
