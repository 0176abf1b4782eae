"""Shared by the tests of the C++ backend: its kernels, loaded; the cases; every op as a function of a case."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
from torch import Tensor

from fastndsm import testing
from fastndsm.jit import core
from fastndsm.testing import CALLS, COVARIANCE_TYPES, Arguments, normals, random_arguments

POOL = 64  # rows that every case draws; of these the first B are given to the op
Shape = tuple[int, int, int]  # rows B, dimension d, components K


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    """Build and load the kernels; a machine without any compiler has none."""
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("no C++ compiler")
    core.load()


# --- cases -------------------------------------------------------------------------------------------------------

SHAPES: list[Shape] = [(1, 1, 1), (33, 1, 3), (31, 2, 10), (33, 3, 3), (31, 4, 300), (1, 4, 10), (33, 5, 300)]
SHAPES += [(31, 16, 10), (33, 16, 1), (31, 67, 3)]
LOSSES = list(testing.LOSSES.values())

kinds = pytest.mark.parametrize("kind", COVARIANCE_TYPES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
loss_kinds = pytest.mark.parametrize(("estimator", "antithetic"), LOSSES, ids=list(testing.LOSSES))
BITWISE = [(1, 3), (2, 10), (3, 3), (4, 10), (4, 300), (5, 3), (16, 10), (67, 3)]  # d, K
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
sizes = pytest.mark.parametrize("size", BITWISE, ids=lambda s: "x".join(map(str, s)))


def new_case(kind: str, dim: int, components: int) -> Arguments:
    """Draw a case of POOL rows; steps 0 and N are among the first."""
    return random_arguments(kind, POOL, dim, components)


case = functools.cache(new_case)
OPS = {call.name: call for call in CALLS if call.takes_mixture}
every_op = pytest.mark.parametrize("op", OPS)


def run(
    op: str, c: Arguments, backend: str, dtype: torch.dtype = torch.float64, rows: slice = slice(POOL)
) -> tuple[Tensor, ...]:
    return OPS[op](c[rows].to(dtype), backend)


@functools.cache
def reference_pool(op: str, kind: str, dim: int, components: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Return all POOL rows by the reference."""
    return run(op, case(kind, dim, components), "reference", dtype)


def first_rows(pool: Tensor, rows: int) -> Tensor:
    """Return the first rows, of each half where the pool is antithetic."""
    return torch.cat([half[:rows] for half in pool.split(POOL)])


def assert_same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Require equality bit for bit."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


def loss_inputs(rows: int, dim: int, pairs: bool, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    scores, noise = normals(rows * (1 + pairs), dim), normals(rows, dim, seed=1)
    return scores.to(dtype), noise.to(dtype), (0.1 + normals(rows, seed=2).abs()).to(dtype)
