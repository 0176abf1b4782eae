"""The reverse step in Triton: interpreted, against `reference` in float64; compiled ahead of time."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from _kernels import TARGETS, Row, check_resources, compile_ahead, compiled_by, interpreted_by, main, poisoned
from _kernels import tensor_cores as on_tensor_cores
from helpers import COVARIANCE_TYPES, normals, quietly, random_mixture
from torch import Tensor

from fastndsm import LangevinProcess, functional, reference
from fastndsm.backends import registry

Shape = tuple[int, int, int]  # rows B, dimension d, components K

# --- what is computed --------------------------------------------------------------------------------------------

SHAPES: list[Shape] = [(1, 1, 1), (31, 2, 3), (33, 3, 5), (5, 4, 17), (33, 5, 3), (31, 33, 17), (1, 67, 1), (33, 67, 3)]
BLOCKWISE: list[Shape] = [(3, 67, 40)]  # more components than a program takes at once
SHARED_OUT: list[Shape] = [(3, 2, 40), (3, 67, 64)]  # among programs
STEPS = {"sde": (0, 3), "ode": (3,)}
CALLS = [(method, step) for method, steps in STEPS.items() for step in steps]
SEED, FIRST_PATH = -0x123456789ABCDEF, 2**32 - 9

kinds = pytest.mark.parametrize("kind", COVARIANCE_TYPES)
calls = pytest.mark.parametrize(("method", "step"), CALLS)


def cases() -> Iterator[tuple[str, Shape]]:
    for kind in COVARIANCE_TYPES:
        for shape in SHAPES:
            yield kind, shape
        for shape in BLOCKWISE if kind != "full" else ():
            yield kind, shape


def inputs(kind: str, shape: Shape) -> tuple[LangevinProcess, Tensor, Tensor]:
    """Draw a process of 12 steps, y and the network's score [B, d] in float32."""
    rows, dim, components = shape
    process = quietly(random_mixture(kind, components, dim), T=0.4, n_steps=12)
    y, score = (2.0 * normals(rows, dim, seed=seed, dtype=torch.float32) for seed in range(2))
    return process, y, score


def arguments(
    process: LangevinProcess, y: Tensor, score: Tensor, method: str, step: int, dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    """Return the arguments of the backend's function."""
    operands = process.dynamics.operands(dtype)
    return y.to(dtype), score.to(dtype), torch.tensor(step), operands, torch.tensor(SEED), FIRST_PATH, method


def strided(t: Tensor) -> Tensor:
    """Return the same values, not contiguous."""
    return torch.stack([t, t], dim=-1)[..., 0]


# --- in the interpreter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted_by(__file__, tmp_path_factory.mktemp("interpret"))


def assert_close(made: Tensor, kind: str, shape: Shape, method: str, step: int) -> None:
    """Require a largest error of at most 4 times that of the float32 reference, and a few ulp."""
    given = inputs(kind, shape)
    exact = reference.reverse_step(*arguments(*given, method, step, torch.float64))
    single = reference.reverse_step(*arguments(*given, method, step))
    assert made.dtype == torch.float32 and made.shape == exact.shape
    ceiling = 4 * float((single - exact).abs().max()) + 4 * torch.finfo(torch.float32).eps * float(exact.abs().max())
    assert float((made - exact).abs().max()) <= ceiling


@pytest.mark.parametrize(("kind", "shape"), list(cases()), ids=str)
@calls
def test_steps_agree_with_the_reference(
    method: str, step: int, kind: str, shape: Shape, interpreted: dict[str, Any]
) -> None:
    """Every buffer was NaN before, and the memory around it still is."""
    made, untouched = interpreted[f"{kind} {shape} {method} {step}"]
    assert_close(made, kind, shape, method, step)
    assert untouched


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, shape) for kind in COVARIANCE_TYPES for shape in SHARED_OUT if kind != "full" or shape[1] <= 4],
    ids=str,
)
def test_components_shared_out(kind: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    made, untouched = interpreted[f"shared out {kind} {shape}"]
    assert_close(made, kind, shape, "sde", 3)
    assert untouched


@kinds
@pytest.mark.parametrize("dim", [3, 9, 67])
def test_a_batch_may_be_split(dim: int, kind: str, interpreted: dict[str, Any]) -> None:
    """Row i's noise and step depend on first_path + i alone, beyond 32 bits too."""
    whole, pieces = interpreted[f"split {kind} {dim}"]
    torch.testing.assert_close(torch.cat(pieces), whole, rtol=1e-5, atol=1e-5)


@kinds
@pytest.mark.parametrize("dim", [3, 9])
def test_noise_is_that_of_the_reverse_stream(dim: int, kind: str, interpreted: dict[str, Any]) -> None:
    """Compare the sde step, less twice the score term of the ode step, with that noise, exactly once."""
    process, _, score = inputs(kind, (5, dim, 3))
    sde, ode = interpreted[f"noise {kind} {dim}"]
    std = float(process.noise_std[3])
    found = (sde.double() - ode.double() - 0.5 * std**2 * score.double()) / std
    drawn = functional.philox_normal(5, dim, seed=SEED, step=3, stream=2, first_path=FIRST_PATH, dtype=torch.float64)
    torch.testing.assert_close(found, drawn, rtol=1e-4, atol=2e-5 / std)


@kinds
@pytest.mark.parametrize("dim", [3, 9, 67])
def test_strided_inputs(dim: int, kind: str, interpreted: dict[str, Any]) -> None:
    plain, given_strides = interpreted[f"strided {kind} {dim}"]
    assert torch.equal(plain, given_strides)


@kinds
def test_the_step_is_read_by_the_launch(kind: str, interpreted: dict[str, Any]) -> None:
    """Counting one tensor down gives what a new tensor for each step gives."""
    counted, new = interpreted[f"counted {kind}"]
    assert len(counted) == 12
    for one, other in zip(counted, new, strict=True):
        assert torch.equal(one, other)


@kinds
@pytest.mark.parametrize("method", ["sde", "ode"])
def test_gradients_agree_with_autograd_of_the_reference(method: str, kind: str, interpreted: dict[str, Any]) -> None:
    process, y, score = inputs(kind, (4, 3, 3))
    exact = gradients(process, y.double(), score.double(), method, "reference")
    for made, expected in zip(interpreted[f"gradients {kind} {method}"], exact, strict=True):
        torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("y", "y: expected torch.float32, found torch.float64"),
        ("score", "score: expected the shape of y, (2, 3), found (2, 4)"),
        ("step dtype", "step: expected torch.int64, found torch.int32"),
        ("step shape", "step: expected a 0-d tensor, found shape (1,)"),
        ("seed", "seed: expected torch.int64, found torch.int32"),
        ("tables", "drift_scale, noise_std: expected one shape [N], found (12,) and (11,)"),
        ("method", "method: expected one of sde, ode, found 'heun'"),
    ],
)
def test_bad_arguments_are_refused(name: str, message: str, interpreted: dict[str, Any]) -> None:
    assert interpreted["refused"][name] == message


def test_no_samples(interpreted: dict[str, Any]) -> None:
    assert interpreted["no samples"] == (0, 3)


def gradients(process: LangevinProcess, y: Tensor, score: Tensor, method: str, backend: str) -> tuple[Tensor, ...]:
    """Return gradients of a weighted sum of the step in y and in the score."""
    y, score = y.clone().requires_grad_(), score.clone().requires_grad_()
    out = functional.reverse_step(y, score, process, 3, seed=SEED, method=method, backend=backend)
    return torch.autograd.grad((out * normals(*y.shape, seed=2).to(y.dtype)).sum(), (y, score))


@contextlib.contextmanager
def serving_the_cpu() -> Iterator[None]:
    """Have the backend take the interpreter's tensors."""
    backend = dataclasses.replace(registry.BACKENDS["triton"], devices=("cpu",))
    with mock.patch.dict(registry.BACKENDS, triton=backend):
        yield


def interpret() -> dict[str, Any]:
    """Return what the interpreter gives, to be judged by the tests above."""
    with on_tensor_cores():
        return interpreted_outputs()


def interpreted_outputs() -> dict[str, Any]:
    from fastndsm.kernels import mixture_score, mixture_split, ops

    made: dict[str, Any] = {}
    for kind, shape in cases():
        for method, step in CALLS:
            given = arguments(*inputs(kind, shape), method, step)
            with mock.patch.object(mixture_split, "PROGRAMS", 1):
                made[f"{kind} {shape} {method} {step}"] = poisoned(ops.reverse_step, *given)
    for kind in COVARIANCE_TYPES:
        for shape in SHARED_OUT:
            if kind == "full" and shape[1] > mixture_score.SMALL:
                continue
            with mock.patch.multiple(mixture_split, LEAST=1, BLOCK=16):
                given = arguments(*inputs(kind, shape), "sde", 3)
                made[f"shared out {kind} {shape}"] = poisoned(ops.reverse_step, *given)
        for dim in (3, 9, 67):
            process, y, score = inputs(kind, (12, dim, 3))
            given = arguments(process, y, score, "sde", 3)
            pieces = []
            for rows in (slice(0, 1), slice(1, 8), slice(8, 12)):  # path 2^32 is row 9
                first = FIRST_PATH + rows.start
                pieces.append(ops.reverse_step(y[rows], score[rows], *given[2:-2], first, "sde"))
            made[f"split {kind} {dim}"] = ops.reverse_step(*given), pieces
            y_, score_, step, operands, *rest = given
            a, s, *mixture, _ = operands.flat
            odd = reference.ProcessOperands(
                strided(a), strided(s), reference.MixtureOperands(*map(strided, mixture), kind)
            )
            other = ops.reverse_step(strided(y_), strided(score_), step, odd, *rest)
            made[f"strided {kind} {dim}"] = ops.reverse_step(*given), other
        for dim in (3, 9):
            given = inputs(kind, (5, dim, 3))
            both = [ops.reverse_step(*arguments(*given, method, 3)) for method in ("sde", "ode")]
            made[f"noise {kind} {dim}"] = tuple(both)
        process, y, score = inputs(kind, (3, 2, 3))
        step, counted, new = torch.tensor(12), [], []
        for n in reversed(range(12)):
            step -= 1
            given = arguments(process, y, score, "sde", n)
            counted.append(ops.reverse_step(*given[:2], step, *given[3:]))
            new.append(ops.reverse_step(*given))
        made[f"counted {kind}"] = counted, new
        with serving_the_cpu():
            for method in ("sde", "ode"):
                made[f"gradients {kind} {method}"] = gradients(*inputs(kind, (4, 3, 3)), method, "triton")

    given = dict(zip(NAMES, arguments(*inputs("diag", (2, 3, 3)), "sde", 3), strict=True))
    made["no samples"] = tuple(ops.reverse_step(**given | {"y": torch.empty(0, 3), "score": torch.empty(0, 3)}).shape)

    def refusal(**changed: Any) -> str:
        try:
            ops.reverse_step(**given | changed)
        except (TypeError, ValueError) as error:
            return str(error)
        return "accepted"

    made["refused"] = {
        "y": refusal(y=given["y"].double()),
        "score": refusal(score=torch.zeros(2, 4)),
        "step dtype": refusal(step=torch.tensor(1, dtype=torch.int32)),
        "step shape": refusal(step=torch.tensor([1])),
        "seed": refusal(seed=torch.tensor(1, dtype=torch.int32)),
        "tables": refusal(process=dataclasses.replace(given["process"], noise_std=given["process"].noise_std[1:])),
        "method": refusal(method="heun"),
    }
    return made


NAMES = ("y", "score", "step", "process", "seed", "first_path", "method")

# --- compiled ahead of time --------------------------------------------------------------------------------------

REGISTERS = {"small": 128, "whole": 255, "tiled": 255, "update": 64}  # a thread
UNIFIED = {"gfx942": 2}  # twice as many, accumulation registers among them
SHARED = {"small": 4 << 10, "whole": 24 << 10, "tiled": 32 << 10, "update": 4 << 10}  # bytes


def check_all(target: str, rows: list[Row]) -> None:
    mine = [row for row in rows if row["target"] == target]
    assert {row["part"] for row in mine} == set(REGISTERS)
    for row in mine:
        check_resources(row, REGISTERS[row["part"]] * UNIFIED.get(target, 1), SHARED[row["part"]])


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target: str, compiled: list[Row]) -> None:
    """Every configuration of the table, its heaviest variant."""
    check_all(target, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_variant_compiles_for(target: str, tmp_path: Path) -> None:
    check_all(target, compiled_by(__file__, tmp_path, [target], EVERY_VARIANT="1"))


def compile_all() -> Iterator[Row]:
    """Yield resources of every kernel on every target, of its heaviest variant, or with EVERY_VARIANT of all."""
    from fastndsm.kernels import reverse_step as kernels
    from fastndsm.kernels.configurations import configurations
    from fastndsm.kernels.precision_product import dot_precision

    every = "EVERY_VARIANT" in os.environ

    def row(part: str, constants: dict[str, Any], target: str, options: dict[str, int]) -> Row:
        kernel = getattr(kernels, f"reverse_step_{part}_kernel")
        constants |= {"PRECISION": dot_precision(target)} if "PRECISION" in kernel.arg_names else {}
        names = [name for name in kernel.arg_names if name not in constants]
        known = {"seed_ptr": "*i64", "step_ptr": "*i64", "dim": "i32"}
        types = {n: known.get(n, "*fp32" if n.endswith("_ptr") else "i64") for n in names}
        aligned = [n for n in names if n.endswith("_ptr") or n == "dim"]
        made = compile_ahead(kernel, types, constants, target, aligned=aligned, **options, enable_fp_fusion=False)
        return made | {"part": part}

    for target in TARGETS:
        for method in ("sde", "ode") if every else ("sde",):
            for tile in configurations("reverse_step", target):
                constants = {"METHOD": method, **tile.constants}
                if "COMPONENTS" in tile.constants:
                    part = "tiled" if "DIRECT" in tile.constants else "whole"
                    for kind in COVARIANCE_TYPES[:3] if every else ("diag",):
                        yield row(part, constants | {"KIND": kind}, target, tile.options)
                else:
                    for kind in COVARIANCE_TYPES if every else ("full",):
                        for dim in (1, 2, 3, 4) if every else (1, 4):
                            yield row("small", constants | {"KIND": kind, "DIM": dim}, target, tile.options)
            for tile in configurations("reverse_step_update", target):
                yield row("update", {"METHOD": method, **tile.constants}, target, tile.options)


if __name__ == "__main__":
    main(interpret, compile_all)
