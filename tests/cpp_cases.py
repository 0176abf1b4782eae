"""Shared by the tests of the C++ backend: its kernels, loaded; the cases; every op as a function of a case."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import COVARIANCE_TYPES, normals, quietly, random_mixture
from torch import Tensor

from fastndsm import functional
from fastndsm.jit import core

SEED, FIRST_PATH = -0x123456789ABCDEF, 2**32 - 9
POOL = 64  # rows that every case draws; of these the first B are given to the op
Shape = tuple[int, int, int]  # rows B, dimension d, components K


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    """Built and loaded; a machine without any compiler has none."""
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("no C++ compiler")
    core.load()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Unless a test says otherwise (threads of busy machines spin)."""
    torch.set_num_threads(1)


# --- cases -------------------------------------------------------------------------------------------------------

SHAPES: list[Shape] = [(1, 1, 1), (33, 1, 3), (31, 2, 10), (33, 3, 3), (31, 4, 300), (1, 4, 10), (33, 5, 300)]
SHAPES += [(31, 16, 10), (33, 16, 1), (31, 67, 3)]
LOSSES = [("plain", False), ("plain", True), ("control_variate", False)]

kinds = pytest.mark.parametrize("kind", COVARIANCE_TYPES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
loss_kinds = pytest.mark.parametrize(
    ("estimator", "antithetic"), LOSSES, ids=["plain", "plain antithetic", "control variate"]
)
BITWISE = [(1, 3), (2, 10), (3, 3), (4, 10), (4, 300), (5, 3), (16, 10), (67, 3)]  # d, K
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
sizes = pytest.mark.parametrize("size", BITWISE, ids=lambda s: "x".join(map(str, s)))


class Case:
    """A process and POOL rows of data, exact in float32; steps from 0 to N, both among the first rows."""

    def __init__(self, kind: str, dim: int, components: int) -> None:
        self.mixture = random_mixture(kind, components, dim)
        self.process = quietly(self.mixture, T=0.4, n_steps=12)
        self.x, self.v = (2.0 * normals(POOL, dim, seed=i, dtype=torch.float32).double() for i in range(2))
        self.steps = torch.randint(0, 13, (POOL,), generator=torch.Generator().manual_seed(dim))
        self.steps[:3] = torch.tensor([12, 0, 5])


@functools.cache
def case(kind: str, dim: int, components: int) -> Case:
    return Case(kind, dim, components)


Run = Callable[[Case, Tensor, Tensor, int, int, str], Any]  # case, x, v, rows, first row, backend
OPS: dict[str, Run] = {
    "log_prob": lambda c, x, v, n, i, b: functional.mixture_log_prob(x, c.mixture, backend=b),
    "score": lambda c, x, v, n, i, b: functional.mixture_score(x, c.mixture, backend=b),
    "hvp": lambda c, x, v, n, i, b: functional.mixture_hvp(x, v, c.mixture, backend=b),
    "sample": lambda c, x, v, n, i, b: functional.mixture_sample(
        n, c.mixture, seed=SEED, first_path=FIRST_PATH + i, dtype=x.dtype, backend=b
    ),
    "simulate": lambda c, x, v, n, i, b: functional.simulate(
        x, c.process, c.steps[i : i + n], seed=SEED, first_path=FIRST_PATH + i, backend=b
    ),
    "transition": lambda c, x, v, n, i, b: functional.simulate_transition(
        x, c.process, c.steps[i : i + n].clamp(min=1), seed=SEED, first_path=FIRST_PATH + i, backend=b
    ),
    "target": lambda c, x, v, n, i, b: functional.simulate_target(
        x, c.process, c.steps[i : i + n], seed=SEED, first_path=FIRST_PATH + i, backend=b
    ),
    "mirrored target": lambda c, x, v, n, i, b: functional.simulate_target(
        x, c.process, c.steps[i : i + n], seed=SEED, first_path=FIRST_PATH + i, antithetic=True, backend=b
    ),
    "reverse sde": lambda c, x, v, n, i, b: functional.reverse_step(
        x, v, c.process, 3, seed=SEED, first_path=FIRST_PATH + i, backend=b
    ),
    "last reverse sde": lambda c, x, v, n, i, b: functional.reverse_step(
        x, v, c.process, 0, seed=SEED, first_path=FIRST_PATH + i, backend=b
    ),
    "reverse ode": lambda c, x, v, n, i, b: functional.reverse_step(
        x, v, c.process, 3, seed=SEED, first_path=FIRST_PATH + i, method="ode", backend=b
    ),
}
every_op = pytest.mark.parametrize("op", OPS)


def run(
    op: str, c: Case, backend: str, dtype: torch.dtype = torch.float64, rows: slice = slice(POOL)
) -> tuple[Tensor, ...]:
    first, last, _ = rows.indices(POOL)
    out = OPS[op](c, c.x[rows].to(dtype), c.v[rows].to(dtype), last - first, first, backend)
    return (out,) if isinstance(out, Tensor) else tuple(out)


@functools.cache
def reference_pool(op: str, kind: str, dim: int, components: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """All POOL rows by the reference."""
    return run(op, case(kind, dim, components), "reference", dtype)


def first_rows(pool: Tensor, rows: int) -> Tensor:
    """Of each half where the pool is mirrored."""
    return torch.cat([half[:rows] for half in pool.split(POOL)])


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Bit for bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def loss_inputs(rows: int, dim: int, pairs: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    scores, noise = normals(rows * (1 + pairs), dim), normals(rows, dim, seed=1)
    return scores.to(dtype), noise.to(dtype), (0.1 + normals(rows, seed=2).abs()).to(dtype)


def strided(t: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return torch.stack([t, t], dim=-1)[..., 0]
