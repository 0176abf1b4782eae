"""Drifts as programs: every operator with a rule against eager PyTorch in float64, in PyTorch and as compiled code."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from drift_cases import Block, Function, blocks, close, expected, gradient, groups, points, side_by_side, special_points
from torch import Tensor

from fastndsm import BackendError, DriftProcess, GaussianMixture, compile_drift, use_backend
from fastndsm.compiler import MOST_OPERATIONS, Unsupported, rules, trace

EVERY = blocks()
GROUPS = groups(EVERY)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_cpp() -> Iterator[None]:
    with use_backend("cpp"):
        yield


PLACES = [(n, b, sum(o.dim for o in group[:i])) for n, group in enumerate(GROUPS) for i, b in enumerate(group)]
each_block = pytest.mark.parametrize(("number", "block", "first"), PLACES, ids=[b.name for _, b, _ in PLACES])


@cache
def results(number: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return points, times and directions in float64, and compiled F and J^T z there."""
    group = GROUPS[number]
    x, t = points(group, 203), torch.rand(203, generator=torch.Generator().manual_seed(1)).double()
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    drift = compile_drift(side_by_side(group), x.shape[1])
    value, product = drift.product(x.to(dtype), t.to(dtype), z.to(dtype))
    assert torch.equal(drift(x.to(dtype), t.to(dtype)), value)  # the same bits alone
    return x, t, z, value.double(), product.double()


@each_block
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["single", "double"]
)
def test_compiled_against_eager(number: int, block: Block, first: int, dtype: torch.dtype, tolerance: float) -> None:
    x, t, z, value, product = results(number, dtype)
    own = slice(first, first + block.dim)
    exact = expected(block.function, x[:, own], t, z[:, own])
    assert close(value[:, own], exact[0], tolerance), (value[:, own] - exact[0]).abs().max()
    assert close(product[:, own], exact[1], tolerance), (product[:, own] - exact[1]).abs().max()


@cache
def at_special_values(number: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Return points of float32 whose blocks begin with special values, and compiled F and J^T z there for z = 1."""
    group = GROUPS[number]
    x = special_points(group)
    return x, compile_drift(side_by_side(group), x.shape[1]).product(x, 0.25, torch.ones_like(x))


# Integers have neither, and PyTorch's own kernel makes NaN of gelu(inf).
NOT_FINITE = [place for place in PLACES if place[1].name not in ("integers", "gelu")]


@pytest.mark.parametrize(("number", "block", "first"), NOT_FINITE, ids=[b.name for _, b, _ in NOT_FINITE])
def test_infinity_and_nan_are_those_of_eager(number: int, block: Block, first: int) -> None:
    x, found = at_special_values(number)
    own = x[:, first : first + block.dim]
    for a, b in zip(
        found, expected(block.function, own, torch.full((len(x),), 0.25), torch.ones_like(own)), strict=True
    ):
        a = a[:, first : first + block.dim]
        assert torch.equal(a.isnan(), b.isnan()), (a, b)
        assert torch.equal(torch.where(a.isinf(), a, 0.0), torch.where(b.isinf(), b, 0.0)), (a, b)


def test_every_rule_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: set[str] = set()
    same = {name: id(rule) for name, rule in rules.RULES.items()}
    for table in (rules.RULES, rules.COMPOSED):
        for name, rule in list(table.items()):

            def recorded(*arguments, _name=name, _rule=rule, **options):  # type: ignore[no-untyped-def]
                tried.add(_name)
                return _rule(*arguments, **options)

            monkeypatch.setitem(table, name, recorded)
    for number in range(len(GROUPS)):
        group = GROUPS[number]
        trace(side_by_side(group), (sum(b.dim for b in group),), torch.float32, CPU)
    aliases = {name for name, rule in same.items() if rule in {same.get(other) for other in tried}}
    assert not {*rules.RULES, *rules.COMPOSED} - tried - aliases


# --- random compositions -----------------------------------------------------------------------------------------


UNARIES = ["sin", "cos", "tanh", "exp", "sigmoid", "abs", "square", "neg", "atan", "erf", "softplus", "relu"]


def composed(seed: int) -> tuple[Function, int]:
    """Draw a function of one to five dimensions."""
    chance = random.Random(seed)
    dim = chance.randint(1, 5)
    constants = [chance.uniform(-2.0, 2.0) for _ in range(8)]
    parameter = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    plan = [(chance.randrange(10), chance.choice(UNARIES), chance.randrange(8), chance.random()) for _ in range(8)]

    def combined(kind: int, i: int, m: Tensor, b: Tensor) -> Tensor:
        return (
            m + constants[i] * b if kind == 0
            else m * b if kind == 1
            else m / (1.0 + b.square()) if kind == 2
            else torch.where(b > constants[i], m, b) if kind == 3
            else torch.maximum(m, b) if kind == 4
            else m.flip(1) - b if kind == 5
            else m @ parameter.to(m.dtype) if kind == 6
            else m.sum(1, keepdim=True) + b if kind == 7
            else m.cumsum(1) * constants[i] if kind == 8
            else m.softmax(1) - b
        )  # fmt: skip

    def function(x: Tensor, t: Tensor) -> Tensor:
        known = [x, t[:, None].expand_as(x)]
        for kind, unary, i, pick in plan:
            a = known[int(pick * len(known))].clamp(-3.0, 3.0)
            made = torch.nn.functional.softplus(a) if unary == "softplus" else getattr(torch, unary)(a)
            known.append(combined(kind, i, made, known[-1]))
        return known[-1]

    return function, dim


@pytest.mark.parametrize("seed", [*range(60), *(pytest.param(n, marks=pytest.mark.slow) for n in range(60, 200))])
def test_random_compositions(seed: int) -> None:
    function, dim = composed(seed)
    made = trace(function, (dim,), torch.float64, CPU)
    x, z = (torch.randn(7, dim, generator=torch.Generator().manual_seed(seed + k), dtype=torch.float64) for k in (1, 2))
    t = torch.linspace(0.0, 1.0, 7, dtype=torch.float64)
    program = made.program
    found = program.evaluate((*program.value, *program.product), x, t, made.parameters(x), z)
    assert close(found, torch.cat(expected(function, x, t, z), 1), 1e-9)


def test_random_compositions_compiled() -> None:
    group = [Block(str(seed), *composed(seed)) for seed in range(20)]
    x, t = points(group, 64), torch.linspace(0.0, 1.0, 64).double()
    z = torch.ones_like(x)
    found = compile_drift(side_by_side(group), x.shape[1]).product(x, t, z)
    for a, b in zip(found, expected(side_by_side(group), x, t, z), strict=True):
        assert close(a, b, 1e-9)


# --- what a program is -------------------------------------------------------------------------------------------


def test_equal_expressions_are_computed_once_and_constants_folded() -> None:
    made = trace(lambda x, t: (x + 0.0) * (2.0 * 0.5) + x.exp() - x.exp() * 3.0 + (1.0 / 4.0), (1,), torch.float64, CPU)
    kinds = [made.program.nodes[n].op for n in made.program.reachable(made.program.value)]
    assert (
        kinds.count("exp") == 1
        and kinds.count("mul") == 0
        and sorted(k for k in kinds if k != "const")
        == [
            "add",
            "add",
            "exp",
            "fnma",
            "x",
        ]
    )


def test_times_zero_is_not_simplified() -> None:
    made = trace(lambda x, t: x * 0.0, (1,), torch.float64, CPU)
    assert made.program.evaluate(
        made.program.value, torch.tensor([[math.inf]]).double(), torch.zeros(1), x_none()
    ).isnan()


def x_none() -> Tensor:
    return torch.empty(0, dtype=torch.float64)


def test_new_values_of_parameters_need_no_new_program() -> None:
    weight = torch.nn.Parameter(torch.randn(2, 2, dtype=torch.float64))
    drift = compile_drift(lambda x, t: x @ weight.softmax(1), 2)
    x = torch.randn(5, 2, dtype=torch.float64)
    before = drift.traced(torch.float64).program.key
    for _ in range(3):
        with torch.no_grad():
            weight.mul_(1.7)
        torch.testing.assert_close(drift(x, 0.0), x @ weight.softmax(1))
    assert drift.traced(torch.float64).program.key == before


def test_numbers_and_tensors_that_are_replaced_are_seen() -> None:
    class Pull:
        strength, centre = 1.0, torch.zeros(2)

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return self.strength * (self.centre - x)

    pull = Pull()
    drift, x = compile_drift(pull, 2), torch.randn(4, 2)
    torch.testing.assert_close(drift(x, 0.0), -x)
    pull.strength, pull.centre = 2.0, torch.ones(2)
    torch.testing.assert_close(drift(x, 0.0), 2.0 * (1.0 - x))


def test_gradients_reach_points_and_parameters() -> None:
    weight = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    drift = compile_drift(lambda x, t: (x @ weight).sin() * t[:, None], 2)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    times = torch.rand(3, dtype=torch.float64)
    found = torch.autograd.grad(drift(x, times).square().sum(), (x, weight))
    exact = torch.autograd.grad(((x @ weight).sin() * times[:, None]).square().sum(), (x, weight))
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b)


REFUSED: dict[str, tuple[Function, int, str]] = {
    "an operator without a rule": (lambda x, t: x.sort(1)[0], 2, "aten.sort"),
    "the place of a maximum": (lambda x, t: x * x.max(1, keepdim=True)[0], 2, "aten.max.dim"),
    "random numbers": (lambda x, t: x + torch.randn(2), 2, "no random numbers"),
    "a batch": (lambda x, t: x - x.mean(0), 2, "depend on itself alone"),
    "its size": (lambda x, t: x / len(x), 2, "found others"),
    "a choice by values": (lambda x, t: x if x.sum() > 0 else -x, 2, "no choice by a sample's values"),
    "another precision": (lambda x, t: (2.0 * x.double()).to(x.dtype), 2, "float32 throughout"),
    "another shape": (lambda x, t: x.sum(1), 2, "output like x"),
    "many dimensions": (lambda x, t: -x, 65, "at most 64 dimensions"),
    "many operations": (lambda x, t: (x[:, :, None] * x[:, None] * x.sin()[:, None]).cos().sum(1), 64, "at most 4000"),
    "an error of its own": (lambda x, t: x @ torch.ones(5, 5), 2, "it cannot be traced"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stands_in_the_way_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    function, dim, message = REFUSED[name]
    prior = GaussianMixture.standard_normal(dim)
    with pytest.raises(Unsupported, match=message):
        trace(function, (dim,), torch.float32, CPU)
    with pytest.raises(BackendError, match=message):
        DriftProcess(function, prior, T=1.0, n_steps=2, compiled=True)
    if name in ("another precision", "many dimensions"):  # PyTorch takes these
        p = DriftProcess(function, prior, T=1.0, n_steps=2)
        for _ in range(2):
            p.simulate(torch.zeros(3, dim), seed=0)
        assert sum(message in record.message for record in caplog.records) <= 1


def test_the_ceiling_on_operations_is_not_far_below() -> None:
    layers = [0.3 * torch.randn(16, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def network(x: Tensor, t: Tensor) -> Tensor:
        for layer in layers:
            x = torch.tanh(x @ layer)
        return x

    program = trace(network, (16,), torch.float32, CPU).program
    count = program.operations((*program.value, *program.product))
    assert 0.35 * MOST_OPERATIONS < count < MOST_OPERATIONS


def test_a_drift_that_is_an_energys_gradient_by_functorch_is_traced() -> None:
    def energy(x: Tensor) -> Tensor:
        return (x**4).sum()

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return -torch.func.grad(energy)(x)

    own = gradient(lambda x: (x**4).sum(1))
    programs = [trace(f, (2,), torch.float32, CPU).program.key for f in (drift, own)]
    assert programs[0] == programs[1]
