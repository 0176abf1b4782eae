"""Trajectories in Triton: interpreted, against `reference` on the same noise; bit for bit however they are run."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from _kernels import CPU, interpreted_by, main, poisoned
from helpers import normals, quietly, random_mixture
from torch import Tensor

from fastndsm import reference

# --- what is computed --------------------------------------------------------------------------------------------

SEED, FIRST_PATH = torch.tensor(-0x123456789ABCDEF), 2**32 - 2  # path numbers become longer than 32 bits on the way
N_STEPS, POOL = 3, 64
Shape = tuple[int, int, int]  # rows B, dimension d, components K
SHAPES: dict[str, list[Shape]] = {
    "spherical": [(31, 1, 1), (33, 2, 17), (1, 3, 3), (3, 5, 3), (3, 9, 3), (3, 16, 17), (5, 67, 8)],
    "diag": [(33, 2, 8), (3, 3, 5), (1, 4, 1), (3, 8, 17), (9, 17, 3), (3, 67, 1)],
    "tied": [(33, 1, 3), (3, 3, 17), (17, 7, 5), (17, 9, 3), (3, 17, 8), (1, 67, 1)],
    "full": [(33, 2, 3), (3, 3, 5), (31, 5, 3), (5, 8, 3), (17, 9, 4), (3, 17, 8), (1, 32, 1), (1, 67, 1)],
}
CASES = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]
# Where whatever else could change a bit is tried: one size for each kernel and way through it.
BITWISE = [
    ("diag", (9, 2, 3)),
    ("spherical", (9, 3, 5)),
    ("spherical", (9, 17, 3)),
    ("diag", (9, 7, 6)),
    ("diag", (9, 9, 12)),
    ("tied", (9, 9, 3)),
    ("full", (9, 3, 5)),
    ("full", (9, 2, 3)),
    ("full", (9, 5, 3)),
    ("full", (9, 7, 3)),
    ("full", (9, 9, 3)),
]
SPLIT = (1, 4)  # rows of the pieces but for the last

Arguments = tuple[Any, ...]  # x0, steps, process, seed, first_path


class Case:
    """A process and POOL rows of data, exact in float32; steps from 0 to N, both among the first rows."""

    def __init__(self, kind: str, dim: int, components: int) -> None:
        self.mixture = random_mixture(kind, components, dim)
        self.process = quietly(self.mixture, T=0.2, n_steps=N_STEPS)
        self.x0 = 2.0 * normals(POOL, dim, dtype=torch.float32)
        self.steps = torch.randint(0, N_STEPS + 1, (POOL,), generator=torch.Generator().manual_seed(dim))
        self.steps[:3] = torch.tensor([N_STEPS, 0, 2])

    def arguments(self, rows: slice, dtype: torch.dtype = torch.float32) -> Arguments:
        start = FIRST_PATH + rows.indices(POOL)[0]
        return self.x0[rows].to(dtype), self.steps[rows], self.process.dynamics.operands(dtype), SEED, start

    def axes(self, dtype: torch.dtype = torch.float32) -> reference.PrincipalAxes | None:
        return self.mixture.principal_axes(dtype)


@functools.cache
def case(kind: str, dim: int, components: int) -> Case:
    return Case(kind, dim, components)


def run(op: str, module: Any, arguments: Arguments, axes: reference.PrincipalAxes | None) -> tuple[Tensor, ...]:
    name = op.removeprefix("antithetic ")
    if name == "simulate_target":
        x0, steps, process, *paths = arguments
        out = module.simulate_target(x0, steps, process, axes, *paths, op != name)
    else:
        out = getattr(module, name)(*arguments)
    return (out,) if isinstance(out, Tensor) else tuple(out)


TARGET = "simulate_target"
OPS = ("simulate", "simulate_transition", TARGET, f"antithetic {TARGET}")


def title(kind: str, shape: Shape) -> str:
    return f"{kind} {'x'.join(map(str, shape))}"


cases = pytest.mark.parametrize(("kind", "shape"), CASES, ids=[title(*c) for c in CASES])
bitwise = pytest.mark.parametrize(("kind", "shape"), BITWISE, ids=[title(*c) for c in BITWISE])

# --- in the interpreter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted_by(__file__, tmp_path_factory.mktemp("interpret"))


def strided(t: Tensor) -> Tensor:
    """Return the same values, not contiguous."""
    return torch.stack([t, t], dim=-1)[..., 0]


def interpret() -> dict[str, Any]:
    """Return what the interpreter gives, to be judged by the tests below."""
    from fastndsm.kernels import ops, simulate

    ops.prepare()
    agreement, variants = {}, {}
    for kind, shape in CASES:
        c = case(kind, *shape[1:])
        arguments = c.arguments(slice(shape[0])), c.axes()
        for op in OPS:
            if op in ("simulate_transition", "antithetic simulate_target") or shape == SHAPES[kind][0]:
                agreement[title(kind, shape), op] = poisoned(run, op, ops, *arguments)
    for kind, shape in BITWISE:
        c = case(kind, *shape[1:])
        rows = shape[0]
        x0, steps, process, seed, start = arguments = c.arguments(slice(rows))
        found = variants[title(kind, shape)] = {op: run(op, ops, arguments, c.axes()) for op in OPS}
        draws = [(rows, x0.shape[1], seed, step, 0, start) for step in (torch.tensor(0), (steps - 1).clamp(min=0))]
        found["first normals"], found["last normals"] = (ops.philox_normal(*d, torch.float32, CPU) for d in draws)
        starts = (*itertools.accumulate((0, *SPLIT)), rows)
        found["pieces"] = [run(TARGET, ops, c.arguments(slice(*ends)), c.axes()) for ends in itertools.pairwise(starts)]
        a, s, *mixture, _ = process.flat
        scattered = reference.ProcessOperands(
            strided(a), strided(s), reference.MixtureOperands(*map(strided, mixture), kind)
        )
        axes = c.axes() and reference.PrincipalAxes(*map(strided, c.axes()))
        with mock.patch.multiple(simulate, ORDERED_ROWS=1, ORDERED_TILED_ROWS=1):
            found["ordered"] = run(TARGET, ops, (strided(x0), strided(steps), scattered, seed, start), axes)
        others = torch.where(torch.arange(rows) % 3 == 0, steps, N_STEPS - steps)
        found["others"] = run(TARGET, ops, (x0, others, *arguments[2:]), c.axes())
        several = torch.stack([others, steps, steps], dim=1)
        found["records"] = run(TARGET, ops, (x0, several, *arguments[2:]), c.axes())
        found["antithetic records"] = run(f"antithetic {TARGET}", ops, (x0, several, *arguments[2:]), c.axes())
        found["one step"] = run(f"antithetic {TARGET}", ops, (x0, torch.ones_like(steps), *arguments[2:]), c.axes())
    return {"agreement": agreement, "variants": variants, "refused": refusals(ops.simulate)}


def refusals(op: Callable[..., Tensor]) -> dict[str, str]:
    names = ("x0", "steps", "process", "seed", "first_path")
    good = dict(zip(names, case("diag", 2, 3).arguments(slice(4)), strict=True))
    fields = vars(good["process"])
    said = {}
    for name, changed in REFUSED.items():
        try:
            ((key, change),) = changed[0].items()
            if key in fields:
                given = {"process": dataclasses.replace(good["process"], **{key: change(fields[key])})}
            else:
                given = {key: change(good[key])}
            op(**good | given)
            said[name] = "accepted"
        except (TypeError, ValueError) as error:
            said[name] = str(error)
    return said


REFUSED: dict[str, tuple[dict[str, Callable[[Any], Any]], str]] = {
    "x0 dtype": ({"x0": lambda t: t.double()}, "x0: expected torch.float32, found torch.float64"),
    "x0 shape": ({"x0": lambda t: t[:, :1]}, "x0: expected shape [B, 2], found (4, 1)"),
    "steps dtype": ({"steps": lambda t: t.int()}, "steps: expected torch.int64, found torch.int32"),
    "steps shape": ({"steps": lambda t: t[:3]}, "steps: expected shape (4,), found (3,)"),
    "scales": (
        {"noise_std": lambda t: t[:2]},
        "drift_scale, noise_std: expected one shape [N], found (3,) and (2,)",
    ),
    "mixture dtype": (
        {"mixture": lambda m: m._replace(means=m.means.double())},
        "means: expected torch.float32, found torch.float64",
    ),
    "covariance type": (
        {"mixture": lambda m: m._replace(covariance_type="round")},
        "covariance_type: expected one of spherical, diag, tied, full, found 'round'",
    ),
    "seed": ({"seed": lambda t: t[None]}, "seed: expected a 0-d tensor, found shape (1,)"),
}


@functools.cache
def pool(kind: str, dim: int, components: int, op: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return all POOL rows by the reference."""
    c = case(kind, dim, components)
    return run(op, reference, c.arguments(slice(POOL), dtype), c.axes(dtype))


def first_rows(t: Tensor, rows: int) -> Tensor:
    """Return the first rows, of each half where the pool is antithetic."""
    return torch.cat([half[:rows] for half in t.split(POOL)])


@cases
def test_agreement_with_the_reference(kind: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    """Largest error over the rows, against float64: at most 4 times that of the reference in float32 over the pool.

    Every output was NaN before, as was the memory around them, which stays so.
    """
    rows, *size = shape
    found = {op: made for (name, op), made in interpreted["agreement"].items() if name == title(kind, shape)}
    assert len(found) >= 2
    for op, (outputs, untouched) in found.items():
        assert untouched
        pools = (pool(kind, *size, op, dtype) for dtype in (torch.float32, torch.float64))
        for one, single, exact in zip(outputs, *pools, strict=True):
            allowed = float((single.double() - exact).abs().amax())
            allowed = max(allowed, float(exact.abs().amax()) * torch.finfo(torch.float32).eps)
            expected = first_rows(exact, rows)
            assert one.dtype == torch.float32 and one.shape == expected.shape
            assert float((one.double() - expected).abs().amax()) <= 4.0 * allowed, op


@cases
def test_rows_that_take_no_step(kind: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    rows, *size = shape
    c = case(kind, *size)
    still = c.steps[:rows] == 0
    x0 = c.x0[:rows][still]
    (x, mean, noise), _ = interpreted["agreement"][title(kind, shape), "simulate_transition"]
    assert torch.equal(x[still], x0) and torch.equal(mean[still], x0) and not noise[still].any()
    (x, target, variance), _ = interpreted["agreement"][title(kind, shape), "antithetic simulate_target"]
    both = still.repeat(2)
    assert torch.equal(x[both], x0.repeat(2, 1)) and not target[both].any() and not variance[both].any()


@cases
def test_x_is_the_same_whatever_comes_with_it(kind: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    found = [made[0] for (name, _), (made, _) in interpreted["agreement"].items() if name == title(kind, shape)]
    assert len(found) >= 2
    assert all(torch.equal(x[: shape[0]], found[0]) for x in found)


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@bitwise
def test_a_path_depends_on_itself_alone(kind: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    """Bit for bit: with or without its antithetic path, in a batch or its pieces, ordered or not, beside any others;
    and whether its inputs are contiguous or not."""
    rows = shape[0]
    found = interpreted["variants"][title(kind, shape)]
    alone = found[TARGET]
    assert_same(tuple(t[:rows] for t in found[f"antithetic {TARGET}"]), alone)
    assert_same(tuple(torch.cat(parts) for parts in zip(*found["pieces"], strict=True)), alone)
    assert_same(found["ordered"], alone)
    kept = torch.arange(rows) % 3 == 0
    for one, other in zip(found["others"], alone, strict=True):
        assert torch.equal(one[kept], other[kept]) and not torch.equal(one, other)


@bitwise
def test_a_record_is_that_of_a_call_for_its_step(kind: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    """Bit for bit, also two of one step; along axes in more than a few dimensions, where the interpreter's product with
    the rotations rounds by the rows beside, to a few ulp."""
    found = interpreted["variants"][title(kind, shape)]
    rounded = kind == "tied" and shape[1] > 3
    for name, prefix in (("records", ""), ("antithetic records", "antithetic ")):
        both = len(found[name][0]) // shape[0]
        for i, records in enumerate(found[name]):
            one, other = found[f"{prefix}{TARGET}"][i], found["others"][i]
            for record, expected in ((records[:, 1], one), (records[:, 2], one), (records[: shape[0], 0], other)):
                assert record.shape == expected.shape
                bound = 8 * torch.finfo(torch.float32).eps * float(expected.abs().amax()) if rounded and i > 0 else 0.0
                assert float((record - expected).abs().amax()) <= bound
            assert len(records) == both * shape[0] and bool(records.isfinite().all())


@bitwise
def test_the_noise_is_that_of_philox_normal(kind: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    """Bit for bit; in the antithetic case read off after one step, where the target is -z_0 / s_0."""
    found = interpreted["variants"][title(kind, shape)]
    c, rows = case(kind, *shape[1:]), shape[0]
    moved = c.steps[:rows] > 0
    assert torch.equal(found["simulate_transition"][2][moved], found["last normals"][moved])
    target = found["one step"][1]
    assert torch.equal(target[:rows], -target[rows:])
    torch.testing.assert_close(-target[:rows] * c.process.noise_std[0].float(), found["first normals"])


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name: str, interpreted: dict[str, Any]) -> None:
    assert interpreted["refused"][name] == REFUSED[name][1]


if __name__ == "__main__":
    main(interpret, lambda: ())
