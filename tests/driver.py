"""The stand-alone driver of the kernels, csrc/driver.cpp: its builds, what it is asked, and how it answers."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import COVARIANCE_TYPES, normals, random_mixture
from patience import PATIENCE
from philox_cases import KNOWN_ANSWERS, edge_words, words_of
from torch import Tensor

from fastndsm import GaussianMixture
from fastndsm.jit.core import COMPILE_FLAGS
from fastndsm.jit.toolchain import INSTRUCTION_SETS, instruction_sets, machine_flags

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("g++")
DTYPES = {"float32": np.float32, "float64": np.float64}
Shape = tuple[int, int, int, int]  # rows, dimension, components, steps

# --- builds ------------------------------------------------------------------------------------------------------

# Without forced inlining the unoptimised kernels compile in seconds.
QUICK = ("-O0", "-Dalways_inline=unused")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")
BUILDS = {
    "sanitized": (*QUICK, *SANITIZERS, *machine_flags()),
    "scalar": (*QUICK, *machine_flags(), "-DFASTNDSM_SCALAR"),
    **{isa: (*QUICK, f"-march={INSTRUCTION_SETS[isa].march}") for isa in ("sse2", "avx2")},
}
SHIPPED = {f"{isa} as shipped": f"-march={INSTRUCTION_SETS[isa].march}" for isa in ("sse2", "avx2")}


def flags(build: str) -> tuple[str, ...]:
    return BUILDS[build] if build in BUILDS else (*COMPILE_FLAGS, SHIPPED[build])


def runs_here(build: str) -> bool:
    """Return whether this machine has the build's instruction set."""
    isa = build.split()[0]
    return isa not in INSTRUCTION_SETS or isa in instruction_sets()


def compiled_driver(options: tuple[str, ...], path: Path) -> Path:
    command = [str(COMPILER), "-std=c++20", *options, str(HERE / "csrc" / "driver.cpp"), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="module", name="drivers")
def built_drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Return the path of a build of the driver; those of BUILDS are begun at once, as many as there are cores."""
    place = tmp_path_factory.mktemp("drivers")

    @functools.cache
    def build(name: str) -> Path:
        return compiled_driver(flags(name), place / name.replace(" ", "_"))

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        begun = {name: pool.submit(build, name) for name in BUILDS if runs_here(name)}
        yield lambda name: begun[name].result() if name in begun else build(name)
        for future in begun.values():
            future.cancel()


# --- requests ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request:
    """A request to the driver, and the shapes of its answer."""

    payload: bytes
    shapes: tuple[tuple[int, ...], ...]
    integers: bool = False


def packed(*parts: int | Tensor | np.ndarray) -> bytes:
    return b"".join(
        np.int64(part).tobytes()
        if isinstance(part, int)
        else np.ascontiguousarray(part, dtype=np.int64 if np.asarray(part).dtype.kind in "iu" else np.float64).tobytes()
        for part in parts
    )


def size_of(dtype: str) -> int:
    return np.dtype(DTYPES[dtype]).itemsize


def mixture_parts(m: GaussianMixture) -> tuple[int | Tensor, ...]:
    means, precisions, log_scale, kind = m.operands(torch.float64)
    return COVARIANCE_TYPES.index(kind), *means.shape, means, precisions, log_scale


def run(
    driver: Path, requests: list[Request], place: Path
) -> tuple[subprocess.CompletedProcess[str], list[list[Tensor]]]:
    """Run the driver; return its process and its answers, as many as it wrote if it was stopped."""
    (place / "requests").write_bytes(b"".join(request.payload for request in requests))
    done = subprocess.run(
        [driver, place / "requests", place / "answers"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
    )
    data = (place / "answers").read_bytes()
    answers: list[list[Tensor]] = []
    for request in requests:
        answers.append([])
        for shape in request.shapes:
            count = math.prod(shape)
            values = np.frombuffer(data[: 8 * count], dtype=np.int64 if request.integers else np.float64)
            data = data[8 * count :]
            if values.size == count:  # a driver that was stopped has written less
                answers[-1].append(torch.from_numpy(values.copy()).reshape(shape))
    assert not data
    return done, answers


# --- what is asked -----------------------------------------------------------------------------------------------

SHAPES = [(1, 1, 1, 3), (33, 1, 3, 2), (31, 2, 3, 7), (33, 3, 10, 5), (33, 4, 1, 4), (31, 5, 300, 3), (17, 2, 300, 2)]
SHAPES += [(33, 16, 10, 3), (3, 67, 3, 3), (2, 130, 9, 1), (1, 4, 10, 1), (31, 20, 60, 8), (31, 40, 12, 12)]
# rows, dimension, components, steps; the last two are of trajectories that leave components out
SPLIT_SHAPES, SPLIT_ROWS = (SHAPES[2], SHAPES[5], SHAPES[-2], SHAPES[-1]), (0, 7, 16, 30)
WHATS = ("state", "transition", "target", "antithetic target", "back", "back with slope")
SEED, FIRST_PATH = -0x123456789ABCDEF, 2**32 - 9
LOSS_SHAPES = [(1, 1), (2, 7), (3, 64), (2, 133)]


def random_counters() -> Tensor:
    return torch.randint(0, 2**32, (70, 4), generator=torch.Generator().manual_seed(1))


def function_points(dtype: str) -> Tensor:
    """Return points reaching well beyond overflow and underflow of exp2 and exp, dense near 0 and 1, never 0."""
    reach = 200.0 if dtype == "float32" else 1300.0
    spread = torch.linspace(-reach, reach, 4000, dtype=torch.float64)
    small = 2.0 ** torch.linspace(-20, 4, 500, dtype=torch.float64)
    seams = torch.tensor([0.5, 2 / 3, 4 / 3, 1.0, 2.0], dtype=torch.float64)[:, None] + torch.arange(-3, 4) * 2.0**-23
    points = torch.cat([spread, small, -small, seams.flatten()])
    return points.to(torch.float32).double() if dtype == "float32" else points


Case = tuple[GaussianMixture, Tensor, Tensor, Tensor, Tensor, Tensor]


@functools.cache
def case(kind: str, shape: Shape) -> Case:
    """Draw mixture, x, z, steps, drift_scale and noise_std, exact in float32."""
    rows, dim, components, n_steps = shape
    m = random_mixture(kind, components, dim, ratio=8.0)
    x, z = (2.0 * normals(rows, dim, seed=i, dtype=torch.float32).double() for i in range(2))
    steps = torch.randint(0, n_steps + 1, (rows,), generator=torch.Generator().manual_seed(rows))
    steps[-1] = n_steps
    noise_std = (0.1 + 0.1 * torch.rand(n_steps, generator=torch.Generator().manual_seed(dim))).double()
    return m, x, z, steps, (0.5 * noise_std.square()).float().double(), noise_std


def trajectory(
    kind: str,
    shape: Shape,
    what: str,
    dtype: str,
    *,
    rows: slice | None = None,
    tiles: int = 1 << 30,
    visits_all: bool = False,
    given: Case | None = None,
) -> Request:
    m, x, _, steps, drift_scale, noise_std = given or case(kind, shape)
    first, last, _ = (rows or slice(None)).indices(len(x))
    n, dim = last - first, x.shape[1]
    axes = m.principal_axes(torch.float64) or ()
    tables = steps[first:last], drift_scale, noise_std, x[first:last], *axes
    parts = n, len(noise_std), SEED, FIRST_PATH + first, tiles, 0, int(visits_all), *tables
    total = n * (2 if what == "antithetic target" else 1)
    shapes: tuple[tuple[int, ...], ...] = ((total, dim),)
    if what == "transition":
        shapes = shapes * 3
    elif what != "state":
        shapes = (*shapes, (total, dim), (total, 1 if kind == "spherical" else dim))
    return Request(packed(4, size_of(dtype), *mixture_parts(m), WHATS.index(what), *parts), shapes)


@functools.cache
def way_back(shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw coefficients [6, N], held, slope and rates, exact in float32; no noise at step 0, no mixture at step 1."""
    rows, dim, _, n_steps = shape
    coefficients = torch.rand(6, n_steps, generator=torch.Generator().manual_seed(dim))
    coefficients = torch.tensor([[0.9], [0.02], [0.1], [-0.5], [0.1], [0.5]]) * (1.0 + 0.1 * coefficients)
    coefficients[4, 0] = 0.0
    coefficients[1, 1:2] = 0.0
    held, slope = (normals(rows, dim, seed=i, dtype=torch.float32).double() for i in (2, 3))
    return coefficients.double(), held, slope, slope.abs().amax(1)


def back(
    kind: str,
    shape: Shape,
    what: str,
    dtype: str,
    *,
    rows: slice | None = None,
    tiles: int = 1 << 30,
    visits_all: bool = False,
    given: Case | None = None,
) -> Request:
    m, y, *_ = given or case(kind, shape)
    coefficients, held, slope, rate = way_back(shape)
    first, last, _ = (rows or slice(None)).indices(len(y))
    sloped = what == "back with slope"
    tables = coefficients, *(t[first:last] for t in ((y, held, slope, rate) if sloped else (y, held)))
    paths = SEED, FIRST_PATH + first, tiles
    parts = last - first, coefficients.shape[1], *paths, int(sloped), int(sloped), int(visits_all), *tables
    return Request(packed(6, size_of(dtype), *mixture_parts(m), *parts), ((last - first, y.shape[1]),))


def loss_inputs(rows: int, dim: int) -> tuple[Tensor, ...]:
    first, second, z = (normals(rows, dim, seed=i, dtype=torch.float32).double() for i in range(3))
    return first, second, z, 0.5 + normals(rows, seed=3, dtype=torch.float32).abs().double(), normals(rows, seed=4)


def all_requests() -> Iterator[tuple[str, Request]]:
    """Return all requests by name; those of a case carry its parameters in the name."""
    for name, (counter, key, _) in KNOWN_ANSWERS.items():
        yield f"words {name}", Request(packed(0, 8, 1, *words_of(key), *words_of(counter)), ((1, 4),) * 2, True)
    yield "words random", Request(packed(0, 8, 70, 5, 6, random_counters()), ((70, 4),) * 2, True)
    for dtype in DTYPES:
        size = size_of(dtype)
        radius, angle = edge_words()
        yield f"normals {dtype}", Request(packed(1, size, len(radius), radius, angle), ((len(radius),),) * 2)
        x = function_points(dtype)
        yield f"functions {dtype}", Request(packed(2, size, len(x), x), ((len(x),),) * 3)
        for rows, dim in LOSS_SHAPES:
            matrix, vector = (rows, dim), (rows,)
            shapes = (vector, matrix, *(vector, matrix, matrix) * 2, vector, matrix)
            yield f"losses {rows}x{dim} {dtype}", Request(packed(5, size, rows, dim, *loss_inputs(rows, dim)), shapes)
        for kind, shape in itertools.product(COVARIANCE_TYPES, SHAPES):
            m, x, z, *_ = case(kind, shape)
            payload = packed(3, size, *mixture_parts(m), len(x), x, z)
            extra: dict[str, tuple[tuple[int, ...], ...]] = {"tied": (), "full": ((len(x),),)}
            shapes = ((len(x),), *(tuple(x.shape),) * 2, *extra.get(kind, (tuple(x.shape),)))
            yield f"mixture {kind} {shape} {dtype}", Request(payload, shapes)
            for what in WHATS:
                request = back if what.startswith("back") else trajectory
                yield f"{what} {kind} {shape} {dtype}", request(kind, shape, what, dtype)
        for kind, shape, what in itertools.product(COVARIANCE_TYPES, SPLIT_SHAPES, WHATS):
            name = f"{what} {kind} {shape} {dtype}"
            request = back if what.startswith("back") else trajectory
            yield f"tile by tile {name}", request(kind, shape, what, dtype, tiles=1)
            yield f"all components {name}", request(kind, shape, what, dtype, visits_all=True)
            for row in SPLIT_ROWS:
                yield f"row {row} {name}", request(kind, shape, what, dtype, rows=slice(row, row + 1))


@pytest.fixture(scope="module", name="answers")
def all_answers(
    drivers: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, list[Tensor]]]:
    """Return all answers of a build, by the name of the request; nothing may have been reported."""

    @functools.cache
    def ask(build: str) -> dict[str, list[Tensor]]:
        if not runs_here(build):
            pytest.skip(f"this machine cannot run {build}")
        named = dict(all_requests())
        done, found = run(drivers(build), list(named.values()), tmp_path_factory.mktemp("answers"))
        assert done.returncode == 0 and not done.stderr, done.stderr
        if build != "sanitized":
            assert done.stdout.strip() == build.split()[0]  # the instruction set that was compiled in
        return dict(zip(named, found, strict=True))

    return ask
