"""simulate and simulate_target against PyTorch, torch.compile, JAX and torchsde, at three sizes; records of a path.

Ours and the peers agree with the reference on the same noise, path by path; and a peer's own draws with ours in law.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastndsm import GaussianMixture, LangevinProcess, functional
from fastndsm.testing import deviation

from . import peers, peers_jax, roofline
from .problems import CHECKED_ROWS, IMAGES, MANY, MINGLED, PLANAR, THIRTY_TWO, VECTORS, Problem, law_deviation
from .rows import Row

SIMULATE = {
    PLANAR: {"jax": 8.0, "eager": 25.0, "torchsde": 60.0},
    VECTORS: {"jax": 6.0, "eager": 10.0, "torchsde": 60.0},
    IMAGES: {"jax": 4.0, "eager": 7.0, "torchsde": 20.0},
}
SIMULATE_TARGET = {problem: {"jax": 4.0, "eager": 10.0} for problem in SIMULATE}
PEERS: dict[str, Callable[[Problem, bool], dict[str, peers.Peer]]] = {
    "eager": peers.eager,
    "compiled": peers.compiled,
    **{name: partial(peers_jax.simulate, generator) for name, generator in peers_jax.GENERATORS.items()},
    "torchsde": peers.torchsde,
}
FLOAT32 = 1e-5  # plus ten times the reference's own error in float32
MATMUL_FORM = 5e-5  # x P x - 2 x b cancels
LARGEST_Z = 6.0
RECORDS = 16
CLASSES = 10


def label(problem: Problem) -> str:
    return f"d{problem.dim}"


def skip_missing(contender: str) -> None:
    if contender.startswith("jax") and not peers_jax.available():
        pytest.skip("jax is not installed")
    if contender == "torchsde" and not peers.torchsde_available():
        pytest.skip("torchsde is not installed")


def simulate(problem: Problem, target: bool, x0: Tensor, backend: str) -> tuple[Tensor, ...]:
    """Return x, or x and target, of the first paths."""
    if target:
        return functional.simulate_target(x0, problem.process, seed=1, backend=backend)[:2]
    return (functional.simulate(x0, problem.process, seed=1, backend=backend),)


@lru_cache(maxsize=1)
def checked(problem: Problem, target: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], float, float]:
    """Return ours on all paths, the float64 reference on the first ones, our deviation from it, and its bound."""
    few = problem.x0[:CHECKED_ROWS]
    exact = simulate(problem, target, few.double(), "reference")
    own = deviation(simulate(problem, target, few, "reference"), exact)
    ours = simulate(problem, target, problem.x0, "cpp")
    return ours, exact, deviation(tuple(t[: len(few)] for t in ours), exact), FLOAT32 + 10.0 * own


def row(problem: Problem, target: bool, contender: str, error: float, check: str) -> Row:
    op = "simulate_target" if target else "simulate"
    return Row(op, problem.label, contender, "a sample-step", problem.sample_steps, check, deviation=error)


def run_ours(problem: Problem, target: bool, targets: dict[str, float], rates: roofline.Rates, race: Any) -> None:
    _, _, error, bound = checked(problem, target)
    assert error <= bound
    ours = row(problem, target, "ours", error, "float64 reference, same noise")
    if problem.covariance_type == "spherical":
        count = roofline.spherical_target_multiply_adds
    else:
        count = roofline.simulate_target_multiply_adds if target else roofline.simulate_multiply_adds
    arithmetic = rates.roofline(count(problem.dim, problem.weighing))
    normals = rates.roofline(0, problem.dim)
    ours.roofline_seconds = problem.sample_steps * (arithmetic + normals)
    ours.roofline = f"arithmetic {1e9 * arithmetic:.3g} + normals {1e9 * normals:.3g}"
    ours.targets = targets
    race(ours, partial(simulate, problem, target, problem.x0, "cpp"))


def run_peer(problem: Problem, target: bool, contender: str, race: Any) -> None:
    ours, exact, error, bound = checked(problem, target)
    assert error <= bound
    configurations = PEERS[contender](problem, target)
    noise = problem.noise(CHECKED_ROWS, seed=1)
    few, worst, furthest = problem.x0[:CHECKED_ROWS], 0.0, 0.0
    for peer in configurations.values():
        worst = max(worst, deviation(peer(problem, few, noise), exact))
        assert worst <= MATMUL_FORM
        furthest = max(furthest, *map(law_deviation, peer(problem, problem.x0, None), ours))
        assert furthest <= LARGEST_Z
    check = f"float64 reference, same noise; law, largest z {furthest:.2g}"
    timed = {name: partial(peer, problem, problem.x0, None) for name, peer in configurations.items()}
    race(row(problem, target, contender, worst, check), timed)


@pytest.mark.parametrize("contender", ["ours", *PEERS])
@pytest.mark.parametrize("problem", SIMULATE, ids=label)
def test_simulate(problem: Problem, contender: str, rates: roofline.Rates, race: Any) -> None:
    skip_missing(contender)
    if contender == "ours":
        run_ours(problem, False, SIMULATE[problem], rates, race)
    else:
        run_peer(problem, False, contender, race)


@pytest.mark.parametrize("contender", ["ours", *(name for name in PEERS if name != "torchsde")])
@pytest.mark.parametrize("problem", SIMULATE_TARGET, ids=label)
def test_simulate_target(problem: Problem, contender: str, rates: roofline.Rates, race: Any) -> None:
    skip_missing(contender)
    if contender == "ours":
        run_ours(problem, True, SIMULATE_TARGET[problem], rates, race)
    else:
        run_peer(problem, True, contender, race)


@pytest.mark.parametrize("contender", ["ours", "path"])
@pytest.mark.parametrize("problem", (PLANAR, VECTORS, THIRTY_TWO, IMAGES), ids=label)
def test_records(problem: Problem, contender: str, race: Any) -> None:
    """Sixteen records of each path against one path to the last of them, whose bits it has."""
    steps = problem.process.draw_steps(problem.rows, seed=2, records=RECORDS) + 1
    last, at = steps.max(dim=1)
    call = partial(functional.simulate_target, problem.x0, problem.process, seed=1, backend="cpp")
    for records, one in zip(call(steps), call(last), strict=True):
        index = at.reshape(-1, 1, *[1] * (records.ndim - 2)).expand(-1, 1, *records.shape[2:])
        assert torch.equal(records.gather(1, index)[:, 0], one)
    case, count = f"{problem.label} R={RECORDS}", int(last.sum())
    row = Row("simulate_target records", case, contender, "a sample-step", count, "the last record's bits")
    row.targets = {"path": 1 / 1.3} if contender == "ours" else {}
    race(row, partial(call, steps if contender == "ours" else last))


@pytest.mark.parametrize("problem", [*MANY.values(), MINGLED], ids=lambda p: p.label.replace(" ", "-"))
def test_simulate_target_among_many_components(problem: Problem, rates: roofline.Rates, race: Any) -> None:
    """Components apart and mingled: what thousands cost beside ten."""
    run_ours(problem, True, {}, rates, race)


@pytest.mark.parametrize("contender", ["ours", "alone"])
@pytest.mark.parametrize("target", [False, True], ids=["simulate", "simulate_target"])
def test_rows_of_classes(target: bool, contender: str, race: Any) -> None:
    """Rows of ten classes of a hundred components against as many rows of the mixture that one class is."""
    m, size = MINGLED.mixture, MINGLED.components // CLASSES
    ranges = [(start, start + size) for start in range(0, MINGLED.components, size)]
    every = GaussianMixture(m.weights, m.means, m.covariances, m.covariance_type, ranges=ranges)
    labels, steps = (
        torch.arange(MINGLED.rows, device="cpu") % CLASSES,
        MINGLED.process.draw_steps(MINGLED.rows, seed=2) + 1,
    )

    def call(process: LangevinProcess, x0: Tensor, y: Tensor | None) -> tuple[Tensor, ...]:
        if target:
            return functional.simulate_target(x0, process, steps, seed=1, condition=y, backend="cpp")
        return (functional.simulate(x0, process, steps, seed=1, condition=y, backend="cpp"),)

    one = every.of_class(0)
    of_all, of_one = (LangevinProcess(mixture, grid=MINGLED.process.times) for mixture in (every, one))
    x0 = every.sample(MINGLED.rows, seed=1, labels=labels).float()
    first = labels == 0
    for mixed, of_first in zip(call(of_all, x0, labels), call(of_all, x0, 0 * labels), strict=True):
        assert torch.equal(mixed[first], of_first[first])
    op, case = "simulate_target classes" if target else "simulate classes", f"{MINGLED.label} classes={CLASSES}"
    row = Row(op, case, contender, "a sample-step", int(steps.sum()), "bits of a batch of one class")
    row.targets = {"alone": 1 / 1.6} if contender == "ours" else {}
    ours, alone = partial(call, of_all, x0, labels), partial(call, of_one, one.sample(len(x0), seed=1).float(), None)
    race(row, ours if contender == "ours" else alone)
