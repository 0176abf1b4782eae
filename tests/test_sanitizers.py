"""The C++ kernels apart from PyTorch: under address and undefined-behaviour sanitizers, and with other vector widths.

A stand-alone program, csrc/driver.cpp, runs the kernels on the shapes of driver.py in builds of its own: sanitized,
with plain scalars, and for instruction sets that are not this machine's best. Each must give the reference's numbers
and the same random words. The library itself, with its loops over rows and threads, is sanitized in a slow test.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from driver import (  # noqa: F401
    BUILDS,
    COMPILER,
    DTYPES,
    FIRST_PATH,
    HERE,
    LOSS_SHAPES,
    QUICK,
    SANITIZERS,
    SEED,
    SHAPES,
    SHIPPED,
    SPLIT_ROWS,
    SPLIT_SHAPES,
    WHATS,
    Request,
    Shape,
    all_answers,
    built_drivers,
    case,
    function_points,
    loss_inputs,
    random_counters,
    run,
    trajectory,
    way_back,
)
from helpers import COVARIANCE_TYPES
from philox_cases import KNOWN_ANSWERS, edge_words, words_of
from torch import Tensor

from fastndsm import reference
from fastndsm.jit import core
from fastndsm.jit.toolchain import machine_flags
from fastndsm.reference.philox import philox4x32_10

pytestmark = [pytest.mark.slow, pytest.mark.skipif(COMPILER is None, reason="g++ is not on PATH")]
Answers = Callable[[str], dict[str, list[Tensor]]]

builds = pytest.mark.parametrize("build", [*BUILDS, *(pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED)])
dtypes = pytest.mark.parametrize("dtype", DTYPES)
kinds = pytest.mark.parametrize("kind", COVARIANCE_TYPES)
cases = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))

# --- noise and functions -----------------------------------------------------------------------------------------


def assert_within_ulps(found: Tensor, exact: np.ndarray, dtype: str, ulps: float, floor: float = 0.0) -> None:
    """Bound errors in units in the last place of `dtype`; below `floor` in magnitude a result may be 0 besides."""
    values, limits = found.numpy().astype(np.longdouble), np.finfo(DTYPES[dtype])
    ulp = np.maximum(np.abs(exact) * limits.eps, limits.smallest_normal * limits.eps)
    good = np.abs(values - exact) <= ulps * ulp
    good |= (np.abs(exact) < floor) & (values == 0)
    good |= (np.abs(exact) > limits.max) & (values == np.copysign(np.inf, exact))
    assert good.all(), (values[~good][:5], exact[~good][:5])


@builds
@pytest.mark.parametrize("name", [*KNOWN_ANSWERS, "random"])
def test_words(name: str, build: str, answers: Answers) -> None:
    """Compare vectors and words one by one, bit for bit."""
    if name == "random":
        expected = torch.stack(philox4x32_10(random_counters().unbind(1), (5, 6)), dim=1)  # type: ignore[arg-type]
    else:
        expected = torch.tensor([words_of(KNOWN_ANSWERS[name][2])])
    in_vectors, one_by_one = answers(build)[f"words {name}"]
    assert torch.equal(in_vectors, expected) and torch.equal(one_by_one, expected)


@builds
@dtypes
def test_normals_at_the_seams_of_their_functions(dtype: str, build: str, answers: Answers) -> None:
    radius_word, angle_word = (words.numpy() for words in edge_words())
    complement = -((2**32 - radius_word).astype(np.longdouble) - np.longdouble(0.5)) / 2**32  # u - 1, exact
    radius = np.sqrt(-2 * np.log1p(complement))
    turns = angle_word.astype(np.int64).astype(np.int32).astype(np.longdouble) / 2**32
    # sin and cos of the part of the angle beyond a whole number of quarter turns
    quarter = np.rint(4 * turns)
    rest = 2 * np.longdouble("3.14159265358979323846264338327950288") * (turns - quarter / 4)
    cosine, sine = np.cos(rest), np.sin(rest)
    for _ in range(3):
        turn = quarter.astype(np.int64) % 4 > 0
        cosine, sine = np.where(turn, -sine, cosine), np.where(turn, cosine, sine)
        quarter = np.where(turn, quarter.astype(np.int64) % 4 - 1, 0)
    found = answers(build)[f"normals {dtype}"]
    assert_within_ulps(found[0], radius * cosine, dtype, 4.0)
    assert_within_ulps(found[1], radius * sine, dtype, 4.0)


@builds
@dtypes
@pytest.mark.parametrize("name", ["exp2", "exp", "log"])
def test_functions_are_within_4_ulp(name: str, dtype: str, build: str, answers: Answers) -> None:
    x = function_points(dtype).numpy().astype(np.longdouble)
    with np.errstate(over="ignore"):
        exact = np.log(np.abs(x)) if name == "log" else getattr(np, name)(x)
    found = answers(build)[f"functions {dtype}"][("exp2", "exp", "log").index(name)]
    assert_within_ulps(found, exact, dtype, 4.0, floor=np.finfo(DTYPES[dtype]).smallest_normal)


# --- against the reference ---------------------------------------------------------------------------------------


def assert_agree(found: list[Tensor], expected: list[Tensor], dtype: str) -> None:
    """Require 1e-10 of the largest value, in float32 what cancellation costs there; nothing is left unwritten."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        atol = (1e-10 if dtype == "float64" else 2e-3) * max(1.0, float(other.abs().amax()))
        torch.testing.assert_close(one, other, rtol=0.0, atol=atol)


@functools.cache
def expected_mixture(kind: str, shape: Shape) -> list[Tensor]:
    m, x, z, *_ = case(kind, shape)
    operands = m.operands(torch.float64)
    score, hvp = reference.mixture.score_and_hvp(x, z, operands)
    found = [reference.mixture_log_prob(x, operands), score, hvp]
    if kind == "full":
        found.append(reference.mixture.heaviest_component(x, operands).double())
    elif kind != "tied":
        found.append(reference.mixture.mean_precision(x, operands).expand_as(x))
    return found


@functools.cache
def expected_trajectory(kind: str, shape: Shape, what: str) -> list[Tensor]:
    m, x, _, steps, drift_scale, noise_std = case(kind, shape)
    if what.startswith("back"):
        coefficients, held, slope, rate = way_back(shape)
        rest = torch.tensor([shape[3], 0]), coefficients, m.operands(torch.float64), torch.tensor(SEED), FIRST_PATH
        network = (slope, rate) if what == "back with slope" else (None, None)
        return [reference.reverse_steps(x, held, *network, *rest)]
    process = reference.ProcessOperands(drift_scale, noise_std, m.operands(torch.float64))
    paths = torch.tensor(SEED), FIRST_PATH
    if what == "state":
        return [reference.simulate(x, steps, process, *paths)]
    if what == "transition":
        return list(reference.simulate_transition(x, steps, process, *paths))
    axes = m.principal_axes(torch.float64)
    return list(reference.simulate_target(x, steps, process, axes, *paths, what == "antithetic target"))


@builds
@dtypes
@kinds
@cases
def test_mixture(shape: Shape, kind: str, dtype: str, build: str, answers: Answers) -> None:
    assert_agree(answers(build)[f"mixture {kind} {shape} {dtype}"], expected_mixture(kind, shape), dtype)


@builds
@dtypes
@kinds
@cases
def test_trajectory(shape: Shape, kind: str, dtype: str, build: str, answers: Answers) -> None:
    for what in WHATS:
        found = answers(build)[f"{what} {kind} {shape} {dtype}"]
        assert_agree(found, expected_trajectory(kind, shape, what), dtype)


@builds
@dtypes
@kinds
def test_tiles_and_neighbours_change_no_bit(kind: str, dtype: str, build: str, answers: Answers) -> None:
    found = answers(build)
    for shape, what in itertools.product(SPLIT_SHAPES, WHATS):
        name = f"{what} {kind} {shape} {dtype}"
        for other in ("tile by tile", "all components"):
            for whole, same in zip(found[name], found[f"{other} {name}"], strict=True):
                assert torch.equal(whole, same)
        for row in SPLIT_ROWS:
            for whole, alone in zip(found[name], found[f"row {row} {name}"], strict=True):
                assert torch.equal(whole[row :: shape[0]], alone)  # antithetic paths follow the others


@builds
@dtypes
@pytest.mark.parametrize(("rows", "dim"), LOSS_SHAPES)
def test_losses(rows: int, dim: int, dtype: str, build: str, answers: Answers) -> None:
    first, second, z, std, grad = loss_inputs(rows, dim)
    expected: list[Tensor] = []
    for estimator, antithetic in (("plain", False), ("control_variate", False), ("plain", True)):
        pairs = estimator != "plain" or antithetic
        scores = torch.cat([first, second]) if pairs else first
        expected.append(reference.ndsm_loss(scores, z, std, estimator, antithetic))
        gradient = reference.ndsm_loss_backward(grad, scores, z, std, estimator, antithetic)
        expected.extend(gradient.chunk(2) if pairs else [gradient])
    expected += [reference.dsm_loss(first, second), reference.dsm_loss_backward(grad, first, second)]
    assert_agree(answers(build)[f"losses {rows}x{dim} {dtype}"], expected, dtype)


# --- the sanitizers are awake ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["heap-buffer-overflow", "index 4 out of bounds"])
def test_a_fault_is_seen(fault: str, drivers: Callable[[str], Path], tmp_path: Path) -> None:
    """x0 one value too short; a covariance type that there is not."""
    request = trajectory("diag", SHAPES[2], "state", "float64")
    numbers = np.frombuffer(request.payload, dtype=np.int64).copy()
    if fault == "heap-buffer-overflow":
        m, x, *_ = case("diag", SHAPES[2])
        parameters = 2 + 3 + sum(t.numel() for t in m.operands(torch.float64)[:3])
        assert numbers[parameters + 1] == len(x) and numbers[parameters + 6] == 0
        numbers[parameters + 6] = 1
    else:
        assert numbers[2] == COVARIANCE_TYPES.index("diag")
        numbers[2] = 4
    broken = Request(numbers.tobytes(), ())
    (tmp_path / "answers").touch()
    done, _ = run(drivers("sanitized"), [broken], tmp_path)
    assert done.returncode != 0 and fault in done.stderr


# --- the whole library -------------------------------------------------------------------------------------------

UNDER_SANITIZERS = """
import sys
sys.path.insert(0, sys.argv[2])
import torch
from fastndsm import functional
from fastndsm.jit import core
torch.ops.load_library(sys.argv[1])
core.load = lambda: None  # it is loaded
from cpp_cases import BITWISE, LOSSES, OPS, SHAPES, case, loss_inputs, run
from fastndsm._ops import ops
from fastndsm.testing import COVARIANCE_TYPES, FIRST_PATH, SEED
import test_cpp_refusals, test_film_mlp
sizes = sorted({shape[1:] for shape in SHAPES} | set(BITWISE))
for threads in (1, 2):
    torch.set_num_threads(threads)
    for dtype in (torch.float32, torch.float64):
        for size in sizes:
            for kind in COVARIANCE_TYPES:
                for op in OPS:
                    for rows in (1, 31, 33, 64) if threads == 1 else (33,):
                        run(op, case(kind, *size), "cpp", dtype, slice(rows))
            for rows in (1, 33):
                draw = {"seed": SEED, "first_path": FIRST_PATH, "dtype": dtype, "backend": "cpp"}
                functional.philox_normal(rows, size[0], **draw)
                functional.philox_normal(rows, size[0], step=torch.arange(rows), **draw)
                for estimator, antithetic in LOSSES:
                    inputs = loss_inputs(rows, size[0], antithetic or estimator != "plain", dtype)
                    ops.ndsm_loss(*inputs, estimator, antithetic, "cpp")
                    ops.ndsm_loss_backward(inputs[2], *inputs, estimator, antithetic, "cpp")
                ops.dsm_loss(inputs[1], inputs[1], "cpp"), ops.dsm_loss_backward(inputs[2], inputs[1], inputs[1], "cpp")
        for shape in test_film_mlp.SHAPES.values():
            net = test_film_mlp.made(shape, dtype)
            for rows in (1, 2, 37):
                test_film_mlp.results(net, *test_film_mlp.points(net, rows, dtype))
test_cpp_refusals.test_no_rows_are_served()
print("clean")
"""


@pytest.mark.slow
def test_the_library_runs_clean(tmp_path: Path) -> None:
    """Every op on the shapes of the tests of the C++ backend, in a process with the sanitizers' allocator."""
    builder = dataclasses.replace(
        core.csrc_builder(),
        compile_flags=("-std=c++20", *machine_flags(), "-fPIC", "-fvisibility=hidden", *QUICK, *SANITIZERS),
        link_flags=SANITIZERS[:1],
        cache_dir=tmp_path / "cache",
    )
    library = builder.build()
    runtime = subprocess.check_output([str(COMPILER), "-print-file-name=libasan.so"], text=True).strip()
    done = subprocess.run(
        [sys.executable, "-c", UNDER_SANITIZERS, library, HERE],
        env=os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": str(HERE.parent)},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0 and done.stdout == "clean\n", done.stderr[-8000:]
