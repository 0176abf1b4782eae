"""Programs of drifts in Triton: interpreted, against float64; compiled ahead of time; how they come to be served."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _kernels import TARGETS, Row, check_resources, compile_ahead, interpreted_by, main, poisoned
from drift_cases import (
    Block,
    blocks,
    calls,
    close,
    expected,
    gradient,
    groups,
    particles,
    points,
    side_by_side,
    special_points,
    turn,
    well,
)
from torch import Tensor

from fastndsm import BackendError, DriftProcess, compile_drift, drifts, functional, use_backend
from fastndsm.backends import registry
from fastndsm.jit import drift as jit
from fastndsm.jit import triton as printed

GROUPS = groups(blocks())
PLACES = [(n, b, sum(o.dim for o in group[:i])) for n, group in enumerate(GROUPS) for i, b in enumerate(group)]
each_block = pytest.mark.parametrize(("number", "block", "first"), PLACES, ids=[b.name for _, b, _ in PLACES])
PROCESSES: dict[str, Callable[[], DriftProcess]] = {"double well": well, "turning": turn}
ROWS = 37  # one program's and a few


# --- in the interpreter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("interpret")
    return interpreted_by(__file__, place, FASTNDSM_CACHE_DIR=str(place / "sources"))


def inputs(number: int) -> tuple[Tensor, Tensor, Tensor]:
    x, t = points(GROUPS[number], 40), torch.rand(40, generator=torch.Generator().manual_seed(1)).double()
    return x, t, torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()


def starts(dim: int) -> Tensor:
    return 0.7 * torch.randn(ROWS, dim, generator=torch.Generator().manual_seed(dim))


def interpret() -> dict[str, Any]:
    """Return what the interpreter gives, to be judged by the tests below."""
    registry.BACKENDS["triton"] = dataclasses.replace(registry.BACKENDS["triton"], devices=("cpu",))
    use_backend("triton")
    found: dict[str, Any] = {"values": [], "special": [], "calls": {}, "bits": {}}
    for number, group in enumerate(GROUPS):
        x, t, z = (part.float() for part in inputs(number))
        drift = compile_drift(side_by_side(group), x.shape[1])
        both, untouched = poisoned(drift.product, x, t, z)
        found["values"].append((both, untouched, drift(x, t)))
        at = special_points(group)
        found["special"].append(drift.product(at, 0.25, torch.ones_like(at)))
    for name, make in PROCESSES.items():
        p = make()
        x = starts(p.dim)
        found["calls"][name] = calls(p, x)
        found["bits"][name] = bits(p, x)
    return found


def bits(p: DriftProcess, x: Tensor) -> dict[str, Any]:
    """Return a path's target with others beside it, alone, and what else of it can be asked for."""
    steps = torch.arange(ROWS) % (p.n_steps + 1)
    whole, untouched = poisoned(functional.simulate_target, x, p, steps, seed=1, antithetic=True)
    pieces = [
        functional.simulate_target(x[rows], p, steps[rows], seed=1, first_path=rows.start)
        for rows in (slice(0, 1), slice(1, 6), slice(6, ROWS))
    ]
    other = x.clone()
    other[5, 0] = 1e30
    back, back_untouched = poisoned(functional.reverse_steps, x, x.sin(), None, p, 5, 1, seed=3)
    return {
        "untouched": untouched and back_untouched,
        "whole": whole,
        "pieces": pieces,
        "state": functional.simulate(x, p, steps, seed=1),
        "transition": functional.simulate_transition(x, p, steps.clamp(min=1), seed=1),
        "beside": functional.simulate_target(other, p, steps, seed=1),
        "back": back,
        "one by one": functional.reverse_steps(
            functional.reverse_steps(x, x.sin(), None, p, 5, 3, seed=3), x.sin(), None, p, 3, 1, seed=3
        ),
    }


@each_block
def test_values_against_eager(number: int, block: Block, first: int, interpreted: dict[str, Any]) -> None:
    (value, product), untouched, alone = interpreted["values"][number]
    assert untouched and torch.equal(alone, value)  # the same bits without J^T z
    x, t, z = inputs(number)
    own = slice(first, first + block.dim)
    exact = expected(block.function, x[:, own], t, z[:, own])
    assert close(value[:, own].double(), exact[0], 1e-5), (value[:, own] - exact[0]).abs().max()
    assert close(product[:, own].double(), exact[1], 1e-5), (product[:, own] - exact[1]).abs().max()


# Integers have neither, and PyTorch's own kernel makes NaN of gelu(inf).
NOT_FINITE = [place for place in PLACES if place[1].name not in ("integers", "gelu")]


@pytest.mark.parametrize(("number", "block", "first"), NOT_FINITE, ids=[b.name for _, b, _ in NOT_FINITE])
def test_infinity_and_nan_are_those_of_eager(
    number: int, block: Block, first: int, interpreted: dict[str, Any]
) -> None:
    x = special_points(GROUPS[number])[:, first : first + block.dim]
    exact = expected(block.function, x, torch.full((len(x),), 0.25), torch.ones_like(x))
    for a, b in zip(interpreted["special"][number], exact, strict=True):
        a = a[:, first : first + block.dim]
        assert torch.equal(a.isnan(), b.isnan()), (a, b)
        assert torch.equal(torch.where(a.isinf(), a, 0.0), torch.where(b.isinf(), b, 0.0)), (a, b)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_op_against_the_reference(name: str, interpreted: dict[str, Any]) -> None:
    p = PROCESSES[name]()
    with use_backend("reference"):
        exact = calls(p, starts(p.dim).double())
    for op, parts in exact.items():
        for ours, reference in zip(interpreted["calls"][name][op], parts, strict=True):
            assert ours.dtype == torch.float32 and ours.shape == reference.shape, op
            scale = reference.abs().mean() + reference.abs()
            assert bool(((ours.double() - reference).abs() <= 1e-5 * scale).all()), op


@pytest.mark.parametrize("name", PROCESSES)
def test_bits_depend_on_the_path_alone(name: str, interpreted: dict[str, Any]) -> None:
    """Not on the split, on other rows, nor on what else is asked for; all memory was NaN before."""
    found = interpreted["bits"][name]
    assert found["untouched"]
    whole = tuple(part[:ROWS] for part in found["whole"])
    for piece, part in zip(zip(*found["pieces"], strict=True), whole, strict=True):
        assert torch.equal(torch.cat(piece), part)
    assert torch.equal(found["state"], whole[0])
    moved = torch.arange(ROWS) % 9 > 0
    assert torch.equal(found["transition"][0][moved], whole[0][moved])
    others = torch.arange(ROWS) != 5
    assert all(torch.equal(a[others], b[others]) for a, b in zip(found["beside"], whole, strict=True))
    assert torch.equal(found["back"], found["one by one"])


# --- compiled ahead of time --------------------------------------------------------------------------------------


LIGHT = {"double well": (drifts.DoubleWell(2.0), 2), "particles": (gradient(particles), 8)}
HEAVY = {"every operator of one": (side_by_side(GROUPS[0]), GROUPS[0]), "of two": (side_by_side(GROUPS[1]), GROUPS[1])}
REGISTERS = {"double well": 96, "particles": 255}  # a thread


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target: str, compiled: list[Row]) -> None:
    """Small drifts spill nothing; with dimensions by the dozen, the state goes to memory."""
    rows = [row for row in compiled if row["target"] == target]
    assert {row["kernel"] for row in rows} == {"drift_walk_kernel", "drift_reverse_kernel", "drift_value_kernel"}
    for row in rows:
        if row["drift"] in LIGHT:
            check_resources(row, REGISTERS[row["drift"]], 0)
        else:
            assert "error" not in row, row


def test_a_launch_takes_each_drift_for_itself(compiled: list[Row]) -> None:
    (row,) = [row for row in compiled if row["target"] == "launch"]
    assert row["equal"] == [True, False, True]


def launched(kernel: Any) -> Row:
    """Return which of three launches, up to the call of the driver, takes the kernel of the first: drifts a, b, a."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver
    from triton.runtime.jit import MockTensor

    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget(*TARGETS["sm_90"]),
        )
    )
    pointer = MockTensor(torch.float32)
    options = {"D": 2, "ROWS": 32, "num_warps": 1, "enable_fp_fusion": False, "grid": (1,)}
    functions = [printed.load(program(strength=strength)).value for strength in (1.25, 2.25, 1.25)]
    made = [kernel.warmup(*[pointer] * 4, None, pointer, 100, DRIFT=f, **options) for f in functions]
    return {"kernel": kernel.__name__, "target": "launch", "equal": [one.hash == made[0].hash for one in made]}


def compile_all() -> Iterator[Row]:
    """Yield resources of every kernel for small drifts, and of F and J^T z with every operator there is."""
    from fastndsm.kernels import drift
    from fastndsm.kernels.configurations import configuration

    integers = ("steps_ptr", "records_ptr", "order_ptr", "seed_ptr", "bounds_ptr")

    def row(kernel: Any, target: str, name: str, dim: int, **constants: Any) -> Row:
        tile = configuration("drift", dim, architecture=target)
        names = [n for n in kernel.arg_names if n.islower() and n not in constants]
        types = {n: "*i64" if n in integers else "*fp32" for n in names if n.endswith("_ptr")}
        types |= {n: "fp32" if n == "rate" else "i64" for n in names if not n.endswith("_ptr")}
        constants |= {"D": dim, **tile.constants}
        made = compile_ahead(kernel, types, constants, target, **tile.options, enable_fp_fusion=False)
        return made | {"constants": {}, "drift": name}

    for target in TARGETS:
        for name, (function, dim) in LIGHT.items():
            made = printed.load(compile_drift(function, dim).traced(torch.float32).program)
            yield row(drift.drift_reverse_kernel, target, name, dim, DRIFT=made.value)
            options = {"DRIFT": made.value_and_product, "OUTPUT": "target", "ANTITHETIC": True}
            yield row(drift.drift_walk_kernel, target, name, dim, **options)
        for name, (function, group) in HEAVY.items():
            dim = sum(block.dim for block in group)
            made = printed.load(compile_drift(function, dim).traced(torch.float32).program)
            yield row(drift.drift_value_kernel, target, name, dim, DRIFT=made.value_and_product)
    if "sm_90" in TARGETS:
        yield launched(drift.drift_value_kernel)


# --- how they come to be served ----------------------------------------------------------------------------------


def program(**options: Any) -> Any:
    return compile_drift(drifts.DoubleWell(**options), 2).traced(torch.float32).program


def test_sources_are_kept_by_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTNDSM_CACHE_DIR", str(tmp_path))
    first = printed.load(program(strength=3.5))
    (path,) = jit.generated()
    assert Path(str(first.__file__)) == path and "def value_and_product(x, t, z, p):" in path.read_text()
    assert path.parent.parent.stat().st_mode & 0o077 == 0
    assert printed.load(program(strength=3.5)) is first and len(jit.generated()) == 1
    printed.load(program(strength=4.5))
    assert len(jit.generated()) == 2


def test_a_cache_that_others_may_write_to_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "drifts").mkdir(mode=0o777)
    (tmp_path / "drifts").chmod(0o777)
    monkeypatch.setenv("FASTNDSM_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="others may write to it"):
        printed.load(program(strength=5.5))


def test_a_backend_that_cannot_serve_says_so(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 2)
    with use_backend("triton"), pytest.raises(BackendError, match="it serves cuda tensors, found cpu"):
        compile_drift(drifts.DoubleWell(), 2)(x, 0.0)
    loose = DriftProcess(lambda x, t: x.sort(1)[0], well().prior, T=1.0, n_steps=2)
    with use_backend("triton"), caplog.at_level(logging.WARNING):
        loose.simulate(x, seed=0)  # what has no program runs in PyTorch on every backend
    assert "aten.sort" in caplog.text
    monkeypatch.setitem(registry.BACKENDS, "cpp", dataclasses.replace(registry.BACKENDS["cpp"], dtypes=()))
    with pytest.raises(BackendError, match="no compiled code can serve drift_value: cpp: it computes in"):
        compile_drift(drifts.DoubleWell(), 2)(x, 0.0)


if __name__ == "__main__":
    main(interpret, compile_all)
