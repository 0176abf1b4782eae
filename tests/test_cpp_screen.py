"""Trajectories in many dimensions leave components of responsibility zero out; no sample's values show it."""

from __future__ import annotations

import time

import pytest
import torch
from cpp_cases import assert_same, dtypes, kernels  # noqa: F401
from helpers import normals, quietly
from torch import Tensor

from fastndsm import GaussianMixture, LangevinProcess, functional
from fastndsm.testing import SEED

ROWS = 75
kinds = pytest.mark.parametrize("kind", ["spherical", "diag"])
spreads = pytest.mark.parametrize("spread", [0.2, 1.5])
sizes = pytest.mark.parametrize("size", [(32, 10), (45, 3), (64, 40), (100, 12)], ids=lambda s: f"d{s[0]}-K{s[1]}")


def process(kind: str, dim: int, components: int, spread: float = 1.5, steps: int = 120) -> LangevinProcess:
    """Build a process over a time in which rows come home from afar, from one component to the next."""
    g = torch.Generator().manual_seed(100 * dim + components)
    weights, means = torch.rand(components, generator=g).double() + 0.1, normals(components, dim, seed=1) * spread
    variances = 0.2 + torch.rand(components, 1, generator=g).double() * torch.ones(dim)
    variances *= 0.7 + 0.6 * torch.rand(components, dim, generator=g).double()
    if kind == "spherical":
        variances = variances.mean(1)
    mixture = GaussianMixture(weights / weights.sum(), means, variances, kind)
    return quietly(mixture, T=0.025 * steps, n_steps=steps)


def start(p: LangevinProcess) -> Tensor:
    """Draw rows in the components, between two of them, where they change hands, and far from all; exact in float32."""
    means, noise = p.reference.means, normals(ROWS, p.reference.means.shape[1], seed=2)
    i, j = torch.arange(ROWS) % len(means), (torch.arange(ROWS) // 3 + 1) % len(means)
    between = torch.where(torch.arange(ROWS) % 3 == 0, 0.5, 0.0)[:, None]
    x = means[i] + between * (means[j] - means[i]) + 0.7 * noise
    x[4::5] *= torch.linspace(2.0, 40.0, len(x[4::5]))[:, None]
    return x.float().double()


def outputs(
    p: LangevinProcess, x: Tensor, steps: Tensor | None = None, first_path: int = 0, backend: str = "cpp"
) -> tuple[Tensor, ...]:
    """Return x; x, mean and noise; x, target and variance, then those of both halves of antithetic pairs."""
    options = {"seed": SEED, "first_path": first_path, "backend": backend}
    antithetic = functional.simulate_target(x, p, steps, antithetic=True, **options)
    return (
        functional.simulate(x, p, steps, **options),
        *functional.simulate_transition(x, p, steps, **options),
        *functional.simulate_target(x, p, steps, **options),
        *(t.chunk(2)[half] for half in (0, 1) for t in antithetic),
    )


def assert_agrees(p: LangevinProcess, x: Tensor, dtype: torch.dtype) -> None:
    """Require 1e-10 of the largest value; in float32 1e-5 of it and ten times what the reference loses there."""
    exact, own = outputs(p, x, backend="reference"), outputs(p, x.to(dtype), backend="reference")
    for one, right, rounded in zip(outputs(p, x.to(dtype)), exact, own, strict=True):
        scale = max(1.0, float(right.abs().amax()))
        lost = 10.0 * float((rounded.double() - right).abs().amax()) + 1e-5 * scale
        atol = lost if dtype == torch.float32 else 1e-10 * scale
        torch.testing.assert_close(one.double(), right, rtol=0.0, atol=atol)


@dtypes
@kinds
@spreads
@sizes
def test_agrees_with_the_reference(size: tuple[int, int], spread: float, kind: str, dtype: torch.dtype) -> None:
    p = process(kind, *size, spread)
    assert_agrees(p, start(p), dtype)


@dtypes
@kinds
@spreads
@sizes
def test_neighbours_change_no_bit(size: tuple[int, int], spread: float, kind: str, dtype: torch.dtype) -> None:
    """Equal steps, where tiles are made of one component's rows, and others."""
    p = process(kind, *size, spread)
    x = start(p).to(dtype)
    mixed = torch.randint(1, len(p.drift_scale) + 1, (ROWS,), generator=torch.Generator().manual_seed(0))
    for steps in (None, mixed):
        whole = outputs(p, x, steps)
        for i in (0, 1, 3, 4, 24, 50, 74):
            alone = outputs(p, x[i : i + 1], None if steps is None else steps[i : i + 1], first_path=i)
            assert_same(alone, tuple(t[i : i + 1] for t in whole))
        torch.set_num_threads(2)
        assert_same(outputs(p, x, steps), whole)
        torch.set_num_threads(1)


@kinds
@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_neighbours_change_no_bit_of_data_far_from_zero(offset: float, kind: str) -> None:
    """Move the data so far that float32 rounds a row by up to a tenth of a deviation."""
    p = process(kind, 64, 12, 0.5)
    m = p.reference
    moved = quietly(GaussianMixture(m.weights, m.means + offset, m.covariances, kind), T=p.T, n_steps=p.n_steps)
    x = (start(p) + offset).float()
    whole = outputs(moved, x)
    for i in range(0, ROWS, 6):
        assert_same(outputs(moved, x[i : i + 1], first_path=i), tuple(t[i : i + 1] for t in whole))


@dtypes
@kinds
def test_rows_that_overflow_change_no_bit_of_others(kind: str, dtype: torch.dtype) -> None:
    p = process(kind, 64, 12)
    x = start(p).to(dtype)
    spoilt = x.clone()
    spoilt[7], spoilt[20, 3] = torch.finfo(dtype).max / 4, torch.finfo(dtype).max ** 0.6
    good = torch.ones(ROWS, dtype=torch.bool)
    good[[7, 20]] = False
    found = outputs(p, spoilt)
    assert_same(tuple(t[good] for t in found), tuple(t[good] for t in outputs(p, x)))
    assert not torch.equal(found[0][~good], outputs(p, x)[0][~good])


@kinds
def test_components_far_away_cost_little(kind: str) -> None:
    """64 of them, one near: two fifths (spherical) and 0.3 of the time of 64 near ones were measured."""
    seconds = []
    for spread in (1.5, 0.0):
        p = process(kind, 256, 64, spread, steps=16)
        x = p.reference.sample(1024, seed=1).float()
        times = []
        for _ in range(7):
            begin = time.perf_counter()
            functional.simulate(x, p, seed=1, backend="cpp")
            times.append(time.perf_counter() - begin)
        seconds.append(min(times))
    assert seconds[0] < 0.6 * seconds[1]
