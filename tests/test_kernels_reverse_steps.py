"""Steps of the reverse process in Triton: interpreted, against `reference` in float64; compiled ahead of time."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from _kernels import CPU, TARGETS, Row, check_resources, compile_ahead, compiled_by, interpreted_by, main, poisoned
from _kernels import tensor_cores as on_tensor_cores
from helpers import COVARIANCE_TYPES, normals, quietly, random_mixture
from torch import Tensor

from fastndsm import LangevinProcess, functional, reference
from fastndsm._scheme import plain_coefficients
from fastndsm.backends import registry
from fastndsm.reference.reverse_steps import mean_decay

Shape = tuple[int, int, int]  # rows B, dimension d, components K

# --- what is computed --------------------------------------------------------------------------------------------

N_STEPS = 12
SEED, FIRST_PATH = torch.tensor(-0x123456789ABCDEF), 2**32 - 9
QUICK: list[Shape] = [(1, 1, 1), (31, 1, 70), (33, 3, 7), (31, 8, 7), (33, 9, 7), (31, 17, 1), (1, 40, 7), (3, 130, 2)]
SLOW: list[Shape] = [(33, 2, 70), (31, 3, 1), (1, 4, 70), (3, 5, 1), (31, 5, 70), (3, 9, 1), (31, 9, 70), (3, 17, 70)]
SLOW += [(33, 40, 7), (1, 130, 7)]
RATES = torch.cat([torch.zeros(1), torch.logspace(-8, 1, 37), torch.tensor([0.99999, 1.0, 2.0, 1e4])])
ONE_OF_EACH = [(12, 2, 7), (12, 9, 3), (12, 67, 2)]  # in registers, in a tile, in several


@dataclasses.dataclass(frozen=True)
class Way:
    """Steps from first down to last; the plain ones are by Euler-Maruyama with the whole score."""

    method: str
    prediction: str
    first: int
    last: int
    slope: bool = True
    rate: bool = False

    def coefficients(self, process: LangevinProcess) -> Tensor:
        if self.prediction == "plain":
            return plain_coefficients(process.drift_scale, process.noise_std, self.method)
        return process.reverse_scheme(self.method, self.prediction).coefficients(self.first, self.last)


WAYS = {
    "data": Way("sde", "data", 6, 4),
    "score to t_0": Way("sde", "score", 2, 0, slope=False),
    "data ode": Way("ode", "data", 6, 4),
    "one step": Way("sde", "plain", 4, 3, slope=False),
    "linear": Way("sde", "linear", 6, 4, rate=True),
    "linear ode to t_0": Way("ode", "linear", 2, 0, slope=False, rate=True),
}
MORE_WAYS = {
    "score": Way("sde", "score", 6, 3),
    "data to t_0": Way("sde", "data", 2, 0),
    "score ode": Way("ode", "score", N_STEPS, N_STEPS - 2, slope=False),
    "last step": Way("sde", "plain", 1, 0, slope=False),
    "one step ode": Way("ode", "plain", 4, 3, slope=False),
    "linear to t_0": Way("sde", "linear", 2, 0, rate=True),
    "linear ode": Way("ode", "linear", 6, 4, slope=False, rate=True),
    "linear without a rate": Way("sde", "linear", 6, 4),
}
NAMES = ("y", "held", "slope", "rate", "bounds", "coefficients", "mixture", "seed", "first_path")

kinds = pytest.mark.parametrize("kind", COVARIANCE_TYPES)
sizes = pytest.mark.parametrize("shape", ONE_OF_EACH, ids=str)


def inputs(kind: str, shape: Shape) -> tuple[LangevinProcess, Tensor, Tensor, Tensor]:
    """Draw a process, and y, held and slope [B, d] in float32."""
    rows, dim, components = shape
    process = quietly(random_mixture(kind, components, dim), T=0.4, n_steps=N_STEPS)
    y, held, slope = (2.0 * normals(rows, dim, seed=seed, dtype=torch.float32) for seed in range(3))
    return process, y, held, 0.25 * slope


def rates(rows: int) -> Tensor:
    """Return rates [B] of 2 to 40, and of 0 in the last row of several, where steps take x on both sides of 1."""
    drawn = torch.logspace(math.log10(2.0), math.log10(40.0), rows)
    drawn[1:][-1:] = 0.0
    return drawn


def arguments(kind: str, shape: Shape, way: Way, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return the arguments of the backend's function by name."""
    process, y, held, slope = inputs(kind, shape)
    network = held.to(dtype), slope.to(dtype) if way.slope else None, rates(len(y)).to(dtype) if way.rate else None
    table = torch.tensor([way.first, way.last]), way.coefficients(process).to(dtype)
    mixture = process.dynamics.operands(dtype).mixture
    return dict(zip(NAMES, (y.to(dtype), *network, *table, mixture, SEED, FIRST_PATH), strict=True))


def rows_of(given: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Return the arguments of these rows alone."""
    part = {name: None if given[name] is None else given[name][rows] for name in ("y", "held", "slope", "rate")}
    return given | part | {"first_path": FIRST_PATH + rows.start}


def strided(t: Tensor) -> Tensor:
    """Return the same values, not contiguous."""
    return torch.stack([t, t], dim=-1)[..., 0]


# --- in the interpreter ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return interpreted_by(__file__, tmp_path_factory.mktemp("interpret"))


def check_agreement(made: dict[str, Any], kind: str, shape: Shape, name: str, factor: int = 4) -> None:
    """Require a largest error of at most `factor` times that of the float32 reference, and a few ulp.

    Every buffer was NaN before, and the memory around it still is.
    """
    found, untouched = made[f"{kind} {shape} {name}"]
    way = (WAYS | MORE_WAYS)[name]
    exact, single = (
        reference.reverse_steps(**arguments(kind, shape, way, dtype)) for dtype in (torch.float64, torch.float32)
    )
    assert found.dtype == torch.float32 and found.shape == exact.shape
    own, largest = float((single - exact).abs().max()), float(exact.abs().max())
    ceiling = factor * own + 4 * torch.finfo(torch.float32).eps * largest
    assert float((found - exact).abs().max()) <= ceiling
    assert untouched


@kinds
@pytest.mark.parametrize("shape", QUICK, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_steps_agree_with_the_reference(way: str, shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    check_agreement(interpreted, kind, shape, way)


@pytest.mark.slow
@kinds
def test_more_shapes_and_ways_agree_with_the_reference(kind: str, tmp_path: Path) -> None:
    """P (x - m_0) and P (m_k - m_0) of tied covariances, 22 bits each on tensor cores, cancel in many dimensions."""
    made = interpreted_by(__file__, tmp_path, MORE_OF=kind)
    assert len(made) == len(QUICK) * len(MORE_WAYS) + len(SLOW) * len(WAYS | MORE_WAYS)
    for shape in QUICK + SLOW:
        for way in MORE_WAYS if shape in QUICK else WAYS | MORE_WAYS:
            check_agreement(made, kind, shape, way, factor=8 if kind == "tied" else 4)


@kinds
@sizes
def test_a_row_depends_on_its_path_alone(shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    """Bit for bit, beyond 32 bits of path numbers too: in a batch or its pieces, beside any others, strided or not."""
    variants = interpreted[f"variants {kind} {shape}"]
    assert torch.equal(torch.cat(variants["pieces"]), variants["whole"])
    assert torch.equal(variants["strided"], variants["whole"])
    assert bool(variants["beside NaN"][1].isnan().all())
    others = torch.arange(shape[0]) != 1
    assert torch.equal(variants["beside NaN"][others], variants["whole"][others])


@kinds
@sizes
def test_a_rate_of_zero_gives_the_bits_of_none(shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    variants = interpreted[f"variants {kind} {shape}"]
    assert torch.equal(variants["rate of zero"], variants["no rate"])
    assert not torch.equal(variants["whole"], variants["no rate"])


@pytest.mark.parametrize("dim", [3, 9])
def test_factors_of_a_rate_are_precise(dim: int, interpreted: dict[str, Any]) -> None:
    """A e^-x, B f(x), C f(x) and S f(2 x)^1/2 to 4 ulp, near 0 and beyond where they vanish, too."""
    x, made = RATES.double(), interpreted[f"factors {dim}"]
    exact = {"A": (-x).exp(), "C": mean_decay(x), "S": mean_decay(2.0 * x).sqrt()}
    exact["B"] = exact["C"]
    for name, factor in exact.items():
        found = made[name].double() / made[name][:1].double()  # x = 0 in the first row
        allowed = 4 * torch.finfo(torch.float32).eps * (1.0 if name == "A" else factor[:, None])
        assert bool(((found - factor[:, None]).abs() <= allowed).all()), name


@kinds
@sizes
def test_one_step_at_a_time_gives_the_same_bits(shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    """With one tensor of bounds, counted down in place between the launches."""
    variants = interpreted[f"variants {kind} {shape}"]
    assert torch.equal(variants["one at a time"], variants["whole"])


@kinds
@sizes
def test_noise_is_that_of_the_reverse_stream(shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    """Bit for bit, drawn once a step: with A = B = C = 0 and S = 1 a step gives nothing else."""
    variants = interpreted[f"variants {kind} {shape}"]
    assert torch.equal(variants["noise alone"], variants["normals"])
    drawn = functional.philox_normal(*shape[:2], seed=SEED, step=3, stream=2, first_path=FIRST_PATH)
    torch.testing.assert_close(variants["normals"], drawn)


@kinds
@sizes
def test_what_has_no_weight_is_not_read(shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    """A mixture of NaN where B = 0, positions of NaN without a slope, and R of NaN without a rate."""
    expected = reference.reverse_steps(**arguments(kind, shape, WAYS["data ode"]) | {"slope": None})
    torch.testing.assert_close(interpreted[f"variants {kind} {shape}"]["unread"], expected)


@kinds
@sizes
def test_bounds(shape: Shape, kind: str, interpreted: dict[str, Any]) -> None:
    """No step between equal bounds; those beyond the grid count as its ends."""
    variants = interpreted[f"variants {kind} {shape}"]
    assert torch.equal(variants["no steps"], inputs(kind, shape)[1])
    assert torch.equal(variants["beyond"], variants["all steps"])
    assert not torch.equal(variants["all steps"], variants["no steps"])


@kinds
@pytest.mark.parametrize("dim", [3, 9])
@pytest.mark.parametrize("method", ["sde", "ode"])
@pytest.mark.parametrize("step", [0, 3])
def test_reverse_step_is_euler_maruyama(
    step: int, method: str, dim: int, kind: str, interpreted: dict[str, Any]
) -> None:
    """y - a grad log pi + s^2 score + s xi, or y - a grad log pi + s^2/2 score; no noise at n = 0."""
    process, y, score, _ = inputs(kind, (4, dim, 3))
    y, score = y.double(), score.double()
    a, s = float(process.drift_scale[step]), float(process.noise_std[step])
    expected = y - a * process.reference.score(y) + (0.5 if method == "ode" else 1.0) * s * s * score
    if method == "sde" and step > 0:
        expected += s * functional.philox_normal(4, dim, seed=SEED, step=step, stream=2, dtype=torch.float64)
    found = interpreted[f"functional {kind} {dim}"][method, step]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@kinds
@pytest.mark.parametrize("n_points", [2, 3, 4], ids=["constant", "slope", "slope and rate"])
def test_gradients_agree_with_autograd_of_the_reference(n_points: int, kind: str, interpreted: dict[str, Any]) -> None:
    process, *points = inputs(kind, (4, 3, 3))
    exact = gradients(process, [p.double() for p in (*points, rates(4))[:n_points]], "reference")
    for made, expected in zip(interpreted[f"gradients {kind}"][n_points], exact, strict=True):
        torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "y": ({"y": torch.zeros(2, 3).double()}, "y: expected torch.float32, found torch.float64"),
    "held": ({"held": torch.zeros(2, 4)}, "held: expected the shape of y, (2, 3), found (2, 4)"),
    "slope": ({"slope": torch.zeros(3, 3)}, "slope: expected the shape of y, (2, 3), found (3, 3)"),
    "rate dtype": ({"rate": torch.zeros(2).double()}, "rate: expected torch.float32, found torch.float64"),
    "rate shape": ({"rate": torch.zeros(2, 1)}, "rate: expected shape (2,), found (2, 1)"),
    "bounds dtype": (
        {"bounds": torch.tensor([1, 0], dtype=torch.int32)},
        "bounds: expected torch.int64, found torch.int32",
    ),
    "bounds shape": ({"bounds": torch.tensor(1)}, "bounds: expected shape (2,), found ()"),
    "seed dtype": ({"seed": torch.tensor(1, dtype=torch.int32)}, "seed: expected torch.int64, found torch.int32"),
    "seed shape": ({"seed": torch.tensor([1])}, "seed: expected shape (), found (1,)"),
    "coefficients dtype": (
        {"coefficients": torch.zeros(6, 12).double()},
        "coefficients: expected torch.float32, found torch.float64",
    ),
    "coefficients shape": ({"coefficients": torch.zeros(5, 12)}, "coefficients: expected shape [6, N], found (5, 12)"),
    "covariance type": (
        {"mixture": reference.MixtureOperands(torch.zeros(1, 3), torch.ones(1), torch.zeros(1), "round")},
        "covariance_type: expected one of spherical, diag, tied, full, found 'round'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused(name: str, interpreted: dict[str, Any]) -> None:
    assert interpreted["refused"][name] == REFUSED[name][1]


def test_no_samples(interpreted: dict[str, Any]) -> None:
    assert interpreted["no samples"] == (0, 3)


def gradients(process: LangevinProcess, points: list[Tensor], backend: str) -> tuple[Tensor, ...]:
    """Return gradients of a weighted sum of y after two steps in y, held and, if given, slope and rate."""
    points = [p.clone().requires_grad_() for p in points]
    y, held, slope, rate = *points, *[None] * (4 - len(points))
    out = functional.reverse_steps(
        y, held, slope, process, 5, 3, rate=rate, seed=SEED, prediction="linear", backend=backend
    )
    return torch.autograd.grad((out * normals(*y.shape, seed=3).to(y.dtype)).sum(), points)


@contextlib.contextmanager
def serving_the_cpu() -> Iterator[None]:
    """Have the backend take the interpreter's tensors."""
    backend = dataclasses.replace(registry.BACKENDS["triton"], devices=("cpu",))
    with mock.patch.dict(registry.BACKENDS, triton=backend):
        yield


def interpret() -> dict[str, Any]:
    """Return what the interpreter gives, to be judged by the tests above."""
    with on_tensor_cores():
        if kind := os.environ.get("MORE_OF"):
            return dict(agreement(kind, QUICK, MORE_WAYS)) | dict(agreement(kind, SLOW, WAYS | MORE_WAYS))
        return interpreted_outputs()


def agreement(kind: str, shapes: list[Shape], ways: dict[str, Way]) -> Iterator[tuple[str, Any]]:
    from fastndsm.kernels import ops

    for shape in shapes:
        for name, way in ways.items():
            yield f"{kind} {shape} {name}", poisoned(ops.reverse_steps, **arguments(kind, shape, way))


def interpreted_outputs() -> dict[str, Any]:
    from fastndsm.kernels import ops

    made: dict[str, Any] = {}
    for kind in COVARIANCE_TYPES:
        made |= agreement(kind, QUICK, WAYS)
        made |= {f"variants {kind} {shape}": variants(kind, shape) for shape in ONE_OF_EACH}
        with serving_the_cpu():
            for dim in (3, 9):
                process, y, score, _ = inputs(kind, (4, dim, 3))
                made[f"functional {kind} {dim}"] = {
                    (m, n): functional.reverse_step(y, score, process, n, seed=SEED, method=m, backend="triton")
                    for m in ("sde", "ode")
                    for n in (0, 3)
                }
            process, *points = inputs(kind, (4, 3, 3))
            points.append(rates(4))
            made[f"gradients {kind}"] = {n: gradients(process, points[:n], "triton") for n in (2, 3, 4)}

    made |= {f"factors {dim}": factors(dim) for dim in (3, 9)}
    given = arguments("diag", (2, 3, 3), WAYS["one step"])
    nothing = torch.empty(0, 3)
    made["no samples"] = tuple(ops.reverse_steps(**given | {"y": nothing, "held": nothing}).shape)

    def refusal(changed: dict[str, Any]) -> str:
        try:
            ops.reverse_steps(**given | changed)
        except (TypeError, ValueError) as error:
            return str(error)
        return "accepted"

    made["refused"] = {name: refusal(changed) for name, (changed, _) in REFUSED.items()}
    return made


def factors(dim: int) -> dict[str, Tensor]:
    """Return y [B, d] after a step with each of A, B, C and S alone 1, at x = RATES, from rows that are the same."""
    from fastndsm.kernels import ops

    given = arguments("diag", (1, dim, 3), WAYS["one step"])
    given |= {name: given[name].expand(len(RATES), dim) for name in ("y", "held")}
    made = {}
    for name, row in {"A": 0, "B": 1, "C": 2, "S": 4}.items():
        table = torch.zeros(6, N_STEPS)
        table[row] = table[5] = 1.0
        given |= {"rate": RATES, "coefficients": table}
        if name != "S":
            made[name] = ops.reverse_steps(**given)
            continue
        given |= {"y": given["y"][:1], "held": given["held"][:1]}  # the noise is that of a row: one at a time
        made[name] = torch.cat([ops.reverse_steps(**given | {"rate": RATES[i : i + 1]}) for i in range(len(RATES))])
    return made


def variants(kind: str, shape: Shape) -> dict[str, Any]:
    """Return results that should be one another's bits."""
    from fastndsm.kernels import ops

    given = arguments(kind, shape, WAYS["linear"])
    whole = ops.reverse_steps(**given)
    # path 2^32 is row 9
    pieces = [ops.reverse_steps(**rows_of(given, rows)) for rows in (slice(0, 1), slice(1, 8), slice(8, 12))]
    scattered = {n: strided(given[n]) for n in ("y", "held", "slope", "rate", "bounds", "coefficients")}
    *tensors, _ = given["mixture"]
    scattered["mixture"] = reference.MixtureOperands(*map(strided, tensors), kind)
    bad = given["y"].clone()
    bad[1, 0] = torch.nan
    made = {
        "whole": whole,
        "pieces": pieces,
        "strided": ops.reverse_steps(**given | scattered),
        "beside NaN": ops.reverse_steps(**given | {"y": bad}),
        "no rate": ops.reverse_steps(**given | {"rate": None}),
        "rate of zero": ops.reverse_steps(**given | {"rate": torch.zeros(len(whole))}),
    }

    first, last = given["bounds"].tolist()
    y, bounds = given["y"], torch.tensor([first + 1, first])
    for _ in range(first - last):
        bounds -= 1
        y = ops.reverse_steps(**given | {"y": y, "bounds": bounds})
    made["one at a time"] = y

    noise = torch.zeros(6, N_STEPS)
    noise[4] = 1.0
    one = {"bounds": torch.tensor([4, 3]), "coefficients": noise}
    made["noise alone"] = ops.reverse_steps(**given | one)
    made["normals"] = ops.philox_normal(*shape[:2], SEED, torch.tensor(3), 2, FIRST_PATH, torch.float32, CPU)

    ode = arguments(kind, shape, WAYS["data ode"]) | {"slope": None}
    ode["coefficients"][[3, 5]] = torch.nan
    ode["mixture"] = reference.MixtureOperands(*(torch.full_like(t, torch.nan) for t in tensors), kind)
    made["unread"] = ops.reverse_steps(**ode)

    def between(first: int, last: int) -> Tensor:
        return ops.reverse_steps(**given | {"bounds": torch.tensor([first, last]), "coefficients": few})

    few = given["coefficients"][:, 4:6].contiguous()
    return made | {"no steps": between(1, 1), "all steps": between(2, 0), "beyond": between(2**40, -(2**40))}


# --- compiled ahead of time --------------------------------------------------------------------------------------

OPS = ("simulate_small", "simulate_eight", "simulate_eight_full")  # in registers
OPS += ("simulate_spherical", "simulate_diag", "reverse_steps_tied", "reverse_steps_full")
REGISTERS = dict.fromkeys(TARGETS, 255) | {"gfx942": 320}  # a thread
SHARED = 16 << 10  # bytes
LARGE = 784  # a dimension that is no multiple of a tile's columns


def check_all(target: str, rows: list[Row]) -> None:
    mine = [row for row in rows if row["target"] == target]
    assert {row["op"] for row in mine} == set(OPS)
    for row in mine:
        check_resources(row, REGISTERS[target], SHARED)


@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_for(target: str, compiled: list[Row]) -> None:
    """Of each kernel the configuration that serves everything, with a slope and a rate."""
    check_all(target, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_configuration_compiles_for(target: str, tmp_path: Path) -> None:
    check_all(target, compiled_by(__file__, tmp_path, [target], EVERY_CONFIGURATION="1"))


def test_small_kernels_are_light(compiled: list[Row]) -> None:
    """On sm_90, in the plane: enough warps at once to hide latencies."""
    (light,) = [row for row in compiled if row["op"] == "simulate_small" and row["constants"]["RESIDENT"]]
    check_resources(light, 96, 0)


def compile_all() -> Iterator[Row]:
    """Yield resources of the last configuration of each op, or with EVERY_CONFIGURATION of all, on every target."""
    from fastndsm.kernels.configurations import configurations
    from fastndsm.kernels.precision_product import dot_precision
    from fastndsm.kernels.reverse_steps_small import reverse_steps_small_kernel
    from fastndsm.kernels.reverse_steps_tiled import reverse_steps_tiled_kernel

    def row(op: str, target: str, tile: Any, **constants: Any) -> Row:
        small = op in OPS[:3]
        kernel = reverse_steps_small_kernel if small else reverse_steps_tiled_kernel
        if not small:
            constants["PRECISION"] = dot_precision(target)
        constants = dict(tile.constants) | constants
        integers = dict.fromkeys(("seed_ptr", "bounds_ptr"), "*i64")
        names = [name for name in kernel.arg_names if name not in constants]
        types = {n: integers.get(n, "*fp32" if n.endswith("_ptr") else "i64") for n in names}
        return compile_ahead(kernel, types, constants, target, **tile.options, enable_fp_fusion=False) | {"op": op}

    every = "EVERY_CONFIGURATION" in os.environ
    for target, op in itertools.product(TARGETS, OPS):
        kind = {"simulate_small": "full", "simulate_eight": "tied"}.get(op) or op.rpartition("_")[2]
        for tile in configurations(op, target):
            last = tile.dim is None and tile.components is None  # those that follow are for other architectures
            if last or every:
                dim = tile.dim or {"simulate_small": 4, "simulate_eight": 8, "simulate_eight_full": 8}.get(op, LARGE)
                constants = {"KIND": kind, "D": dim, "RESIDENT": tile.components is not None}
                for absent in ([], ["rate_ptr"], ["slope_ptr"], ["slope_ptr", "rate_ptr"]) if every else ([],):
                    yield row(op, target, tile, **constants, **dict.fromkeys(absent))
            if last:
                break
    if "sm_90" in TARGETS and not every:
        tile = next(c for c in configurations("simulate_small", "sm_90") if c.serves(2, 8, "sm_90"))
        yield row("simulate_small", "sm_90", tile, KIND="diag", D=2, COMPONENTS=8, RESIDENT=True)


if __name__ == "__main__":
    main(interpret, compile_all)
