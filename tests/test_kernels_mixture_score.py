"""The mixture in Triton: interpreted, against `reference` in float64; compiled ahead of time."""

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
from helpers import COVARIANCE_TYPES, normals, random_mixture
from torch import Tensor

from fastndsm import GaussianMixture, functional, reference
from fastndsm.backends import registry
from fastndsm.reference.mixture import score_and_hvp

Shape = tuple[int, int, int]  # rows B, dimension d, components K

# --- what is computed --------------------------------------------------------------------------------------------

IN_REGISTERS: list[Shape] = [(1, 1, 1), (31, 2, 3), (33, 3, 17), (5, 4, 6)]
WHOLE: list[Shape] = [(33, 5, 3), (1, 13, 1), (31, 16, 17), (5, 33, 40)]
IN_TILES: list[Shape] = [(33, 67, 1), (1, 67, 3), (31, 67, 17)]
LARGE: list[Shape] = [(2, 784, 3), (2, 33, 1031)]  # of one kind alone
SHAPES = IN_REGISTERS + WHOLE + IN_TILES
SHARED_OUT: list[Shape] = [(3, 2, 40), (3, 9, 40), (3, 67, 64)]  # among programs
FAR: list[Shape] = [(5, 2, 3), (5, 16, 3), (5, 67, 17)]
OPS = ("log_prob", "score", "hvp")

shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
kinds = pytest.mark.parametrize("kind", COVARIANCE_TYPES)


def name_of(kind: str, shape: Shape, variant: str = "") -> str:
    return f"{kind} {shape} {variant}"


def inputs(kind: str, shape: Shape) -> tuple[GaussianMixture, Tensor, Tensor]:
    """Draw a mixture and x, v [B, d] in float32, about as far from its components as they are from each other."""
    rows, dim, components = shape
    x, v = (2.0 * normals(rows, dim, seed=seed, dtype=torch.float32) for seed in range(2))
    return random_mixture(kind, components, dim), x, v


def overlapping(kind: str, dim: int) -> tuple[GaussianMixture, Tensor, Tensor]:
    """Draw components that share the samples, so that third derivatives stand out of the rounding."""
    x, v = (normals(4, dim, seed=seed, dtype=torch.float32) for seed in range(2))
    return random_mixture(kind, 3, dim, ratio=2.0), x, v


def strided(t: Tensor) -> Tensor:
    """Return the same values, not contiguous."""
    return torch.stack([t, t], dim=-1)[..., 0]


# --- in the interpreter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted_by(__file__, tmp_path_factory.mktemp("interpret"))


def expected(kind: str, shape: Shape, dtype: torch.dtype) -> dict[str, Tensor]:
    mixture, x, v = inputs(kind, shape)
    x, v, operands = x.to(dtype), v.to(dtype), mixture.operands(dtype)
    score, hvp = score_and_hvp(x, v, operands)
    return {"log_prob": reference.mixture_log_prob(x, operands), "score": score, "hvp": hvp}


def assert_close(made: Tensor, kind: str, shape: Shape, op: str, factor: float) -> None:
    """Require a root mean square error of at most `factor` times that of the float32 reference, and a few ulp."""
    exact, single = (expected(kind, shape, dtype)[op] for dtype in (torch.float64, torch.float32))
    assert made.dtype == torch.float32 and made.shape == exact.shape

    def rms(t: Tensor) -> float:
        return float(t.double().square().mean().sqrt())

    ceiling = factor * rms(single - exact) + 4 * torch.finfo(torch.float32).eps * rms(exact)
    assert rms(made - exact) <= ceiling, (rms(made - exact), rms(single - exact), rms(exact))


@pytest.mark.parametrize("shape", LARGE, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("op", OPS)
def test_large_samples_agree_with_the_reference(op: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    assert_close(interpreted[name_of("spherical", shape)][op][0], "spherical", shape, op, 4.0)


@kinds
@shapes
@pytest.mark.parametrize("op", OPS)
def test_outputs_agree_with_the_reference(op: str, shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    """Every buffer was NaN before, and the memory around it still is."""
    made, untouched = interpreted[name_of(kind, shape)][op]
    assert_close(made, kind, shape, op, 4.0)
    assert untouched


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(kind, shape) for kind in COVARIANCE_TYPES for shape in SHARED_OUT if kind != "full" or shape[1] <= 4],
    ids=str,
)
@pytest.mark.parametrize("op", OPS)
def test_components_shared_out(op: str, kind: str, shape: Shape, interpreted: dict[str, Any]) -> None:
    """Among programs, and all by one program in blocks."""
    assert interpreted[name_of(kind, shape, "parts")] > 1
    for variant in ("shared out", "by one"):
        made, untouched = interpreted[name_of(kind, shape, variant)][op]
        assert_close(made, kind, shape, op, 4.0)
        assert untouched


@kinds
@pytest.mark.parametrize("shape", FAR, ids=lambda s: "x".join(map(str, s)))
def test_far_samples_are_finite_and_nan_stays_in_its_row(shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    """A row 1e12 away, where every density underflows, and a NaN: score and log-density of the rows beside them."""
    mixture, x, _ = inputs(kind, shape)
    log_prob, score = interpreted[name_of(kind, shape, "far")]
    exact = reference.mixture_score(spoilt(x).double(), mixture.operands(torch.float64))
    near = expected(kind, shape, torch.float64)
    assert bool(score[1].isnan().all() and log_prob[1].isnan())
    assert bool(torch.isfinite(log_prob[3])) and float(log_prob[3]) < -1e20
    torch.testing.assert_close(score[3].double(), exact[3], rtol=1e-3, atol=1e-3 * float(exact[3].abs().max()))
    others = [0, 2, 4]
    torch.testing.assert_close(score[others].double(), near["score"][others], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(log_prob[others].double(), near["log_prob"][others], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("shape", [(5, 2, 3), (5, 16, 3)], ids=["2", "16"])
def test_density_0_has_the_logarithm_minus_infinity(shape: Shape, interpreted: dict[str, Any]) -> None:
    log_prob, score = interpreted[name_of("spherical", shape, "out of range")]
    assert bool((log_prob == -torch.inf).all()) and bool(torch.isfinite(score).all())


@kinds
@pytest.mark.parametrize("dim", [3, 9, 67])
def test_strided_inputs(dim: int, kind: str, interpreted: dict[str, Any]) -> None:
    plain, given_strides = interpreted[f"strided {kind} {dim}"]
    for made, other in zip(plain, given_strides, strict=True):
        assert torch.equal(made, other)


@kinds
@pytest.mark.parametrize("dim", [2, 9])
@pytest.mark.parametrize("op", ["log_prob", "score", "hvp in x", "hvp in v"])
def test_gradients_agree_with_autograd_of_the_reference(
    op: str, dim: int, kind: str, interpreted: dict[str, Any]
) -> None:
    mixture, x, v = overlapping(kind, dim)
    exact = gradients(mixture, x.double(), v.double(), "reference")
    made = interpreted[f"gradients {kind} {dim}"][op].double()
    torch.testing.assert_close(made, exact[op], rtol=1e-3, atol=1e-3 * float(exact[op].abs().max()))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dtype", "x: expected torch.float32, found torch.float64"),
        ("mixture dtype", "means: expected torch.float32, found torch.float64"),
        ("shape", "x: expected shape [B, 3], found (2, 4)"),
        ("v shape", "v: expected the shape of x, (2, 3), found (1, 3)"),
    ],
)
def test_bad_arguments_are_refused(name: str, message: str, interpreted: dict[str, Any]) -> None:
    assert interpreted["refused"][name] == message


def test_no_samples(interpreted: dict[str, Any]) -> None:
    assert interpreted["no samples"] == [(0,), (0, 3), (0, 3)]


def spoilt(x: Tensor) -> Tensor:
    x = x.clone()
    x[1, 0] = torch.nan
    x[3] = 1e12
    return x


def gradients(mixture: GaussianMixture, x: Tensor, v: Tensor, backend: str) -> dict[str, Tensor]:
    """Return gradients of v . output (the sum of the log-densities) in x, and of the product in v."""
    x, v = x.clone().requires_grad_(), v.clone().requires_grad_()
    weights = v.detach().flip(0)
    hvp = (functional.mixture_hvp(x, v, mixture, backend=backend) * weights).sum()
    in_x, in_v = torch.autograd.grad(hvp, (x, v))
    (of_score,) = torch.autograd.grad((functional.mixture_score(x, mixture, backend=backend) * weights).sum(), x)
    (of_log_prob,) = torch.autograd.grad(functional.mixture_log_prob(x, mixture, backend=backend).sum(), x)
    return {"log_prob": of_log_prob, "score": of_score, "hvp in x": in_x, "hvp in v": in_v}


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
    from fastndsm.kernels.configurations import configuration

    made: dict[str, Any] = {}

    def outputs(mixture: GaussianMixture, x: Tensor, v: Tensor) -> dict[str, Any]:
        operands = mixture.operands(torch.float32)
        return {
            "log_prob": poisoned(ops.mixture_log_prob, x, operands),
            "score": poisoned(ops.mixture_score, x, operands),
            "hvp": poisoned(ops.mixture_hvp, x, v, operands),
        }

    for kind in COVARIANCE_TYPES:
        for shape in SHAPES + LARGE if kind == "spherical" else SHAPES:
            made[name_of(kind, shape)] = outputs(*inputs(kind, shape))
        for shape in SHARED_OUT:
            if kind == "full" and shape[1] > mixture_score.SMALL:
                continue
            with mock.patch.multiple(mixture_split, LEAST=1, BLOCK=16):
                tile = configuration("mixture_score", *shape[1:])
                made[name_of(kind, shape, "parts")] = mixture_split.shares(shape[0], shape[2], tile)[0]
                made[name_of(kind, shape, "shared out")] = outputs(*inputs(kind, shape))
            with mock.patch.object(mixture_split, "PROGRAMS", 1):
                made[name_of(kind, shape, "by one")] = outputs(*inputs(kind, shape))
        for shape in FAR:
            mixture, x, _ = inputs(kind, shape)
            operands = mixture.operands(torch.float32)
            x = spoilt(x)
            made[name_of(kind, shape, "far")] = ops.mixture_log_prob(x, operands), ops.mixture_score(x, operands)
        for dim in (3, 9, 67):
            mixture, x, v = inputs(kind, (3, dim, 3))
            operands = mixture.operands(torch.float32)
            odd = operands._replace(**{n: strided(getattr(operands, n)) for n in ("means", "precisions", "log_scale")})
            plain = mixture_score.score_and_hvp(x, v, operands)
            made[f"strided {kind} {dim}"] = plain, mixture_score.score_and_hvp(strided(x), strided(v), odd)
        with serving_the_cpu():
            for dim in (2, 9):
                made[f"gradients {kind} {dim}"] = gradients(*overlapping(kind, dim), "triton")
    for shape in ((5, 2, 3), (5, 16, 3)):
        mixture, x, _ = inputs("spherical", shape)
        operands = mixture.operands(torch.float32)
        x = torch.full_like(x, 1e25)
        made[name_of("spherical", shape, "out of range")] = (
            ops.mixture_log_prob(x, operands),
            ops.mixture_score(x, operands),
        )

    mixture = random_mixture("diag", 2, 3)
    operands = mixture.operands(torch.float32)
    none = torch.empty(0, 3)
    made["no samples"] = [
        tuple(ops.mixture_log_prob(none, operands).shape),
        tuple(ops.mixture_score(none, operands).shape),
        tuple(ops.mixture_hvp(none, none, operands).shape),
    ]

    def refusal(x: Tensor, v: Tensor, operands: Any = operands) -> str:
        try:
            ops.mixture_hvp(x, v, operands)
        except (TypeError, ValueError) as error:
            return str(error)
        return "accepted"

    good = torch.zeros(2, 3)
    made["refused"] = {
        "dtype": refusal(good.double(), good),
        "mixture dtype": refusal(good, good, mixture.operands(torch.float64)),
        "shape": refusal(torch.zeros(2, 4), torch.zeros(2, 4)),
        "v shape": refusal(good, good[:1]),
    }
    return made


# --- compiled ahead of time --------------------------------------------------------------------------------------

REGISTERS = {"small": 168, "whole": 255, "tiled": 255, "merge": 64, "product": 255}  # a thread
UNIFIED = {"gfx942": 2}  # twice as many, accumulation registers among them
SHARED = {"small": 4 << 10, "whole": 24 << 10, "tiled": 48 << 10, "merge": 16 << 10, "product": 64 << 10}  # bytes


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
    from fastndsm.kernels import mixture_score as kernels
    from fastndsm.kernels import mixture_split
    from fastndsm.kernels.configurations import configurations
    from fastndsm.kernels.precision_product import dot_precision, precision_product_kernel

    every = "EVERY_VARIANT" in os.environ

    def row(part: str, kernel: Any, constants: dict[str, Any], target: str, options: dict[str, int]) -> Row:
        if part != "small":
            constants |= {"PRECISION": dot_precision(target)} if "PRECISION" in kernel.arg_names else {}
        names = [name for name in kernel.arg_names if name not in constants]
        integers = {"dim": "i64" if part in ("merge", "product") else "i32", "splits": "i32"}
        types = {n: "*fp32" if n.endswith("_ptr") else integers.get(n, "i64") for n in names}
        aligned = [n for n in names if n.endswith("_ptr") or n == "dim"]
        made = compile_ahead(kernel, types, constants, target, aligned=aligned, **options, enable_fp_fusion=False)
        return made | {"part": part}

    def outputs(order: int, partial: bool, keep_score: bool) -> dict[str, None]:
        """Return the pointers that are not given."""
        given = {
            "mass_ptr": partial or order == 0,
            "score_ptr": order >= 1 and (keep_score or partial),
            "second_ptr": order == 2,
            "along_ptr": order == 2 and partial,
        }
        return {name: None for name, there in given.items() if not there}

    for target in TARGETS:
        scores = (1, 0) if every else (1,)
        for op, orders in (("mixture_score", scores), ("mixture_score_many", scores), ("mixture_hvp", (2,))):
            for tile in configurations(op, target):
                in_registers = "COMPONENTS" not in tile.constants
                part = "small" if in_registers else "tiled" if "DIRECT" in tile.constants else "whole"
                kernel = getattr(kernels, f"mixture_score_{part}_kernel")
                heaviest = ("full",) if in_registers else ("diag",)
                kinds_of = COVARIANCE_TYPES if in_registers else COVARIANCE_TYPES[:3]
                if op == "mixture_score_many":
                    heaviest, kinds_of = ("tied",), ("spherical", "tied")
                for kind in kinds_of if every else heaviest:
                    for dim in ((1, 2, 3, 4) if every else (1, 4)) if in_registers else (None,):
                        for order in orders:
                            for partial in (False, True) if every else (False,):
                                constants = {"KIND": kind, "ORDER": order, "PARTIAL": partial, **tile.constants}
                                constants |= outputs(order, partial, keep_score=True)
                                constants |= {"DIM": dim} if in_registers else {}
                                yield row(part, kernel, constants, target, tile.options)
        for tile in configurations("mixture_merge", target):
            for order in (0, 1, 2) if every else (2,):
                constants = {"ORDER": order, **tile.constants}
                yield row("merge", mixture_split.mixture_score_merge_kernel, constants, target, tile.options)
        for tile in configurations("precision_product", target):
            for without in ({}, {"means_ptr": None}) if every else ({},):
                yield row("product", precision_product_kernel, without | dict(tile.constants), target, tile.options)


if __name__ == "__main__":
    main(interpret, compile_all)
