"""reverse_steps from t_N to t_0 in one call, against the loop of its steps in PyTorch: same paths, same noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastndsm import functional
from fastndsm.reference.philox import REVERSE
from fastndsm.testing import deviation, normals

from . import roofline
from .problems import CHECKED_ROWS, IMAGES, PLANAR, VECTORS, Problem, law_deviation
from .rows import Row

FULL = Problem(VECTORS.dim, VECTORS.components, VECTORS.rows, VECTORS.steps, "full")
PROBLEMS = [Problem(p.dim, p.components, p.rows, p.steps, "spherical") for p in (PLANAR, VECTORS, IMAGES)] + [FULL]
TARGETS = {"eager": 5.0}
SHARE_OF_ROOFLINE = 0.5
FLOAT32 = 1e-5  # plus ten times the reference's own error in float32
MATMUL_FORM = 5e-5  # P |x|^2 - 2 P x m cancels
LARGEST_Z = 6.0
Operands = tuple[Tensor, Tensor, Tensor]  # y at t_N; the paths' starts, as a network would guess them; their slope
Score = Callable[[Tensor], Tensor]


@lru_cache(maxsize=1)
def operands(problem: Problem) -> Operands:
    y = functional.simulate(problem.x0, problem.process, seed=1)
    return y, problem.x0, 0.01 * normals(*y.shape, seed=2, dtype=torch.float32)


def ours(problem: Problem, given: Operands, backend: str) -> Tensor:
    return functional.reverse_steps(*given, problem.process, problem.steps, 0, seed=2, backend=backend)


# --- the loop in PyTorch -----------------------------------------------------------------------------------------


def spherical_score(problem: Problem) -> Score:
    """Return the score by two products, and r P beside r P m."""
    means, precisions, log_scale, _ = problem.mixture.operands(torch.float32)
    pulls = precisions[:, None] * means
    right = torch.cat([pulls, precisions[:, None]], 1)
    offsets, left = log_scale - 0.5 * (pulls * means).sum(1), pulls.T.contiguous()

    def score(x: Tensor) -> Tensor:
        logits = torch.addmm(offsets, x, left).addmm_(x.square().sum(1, keepdim=True), precisions[None], alpha=-0.5)
        both = logits.softmax(1) @ right
        return torch.addcmul(both[:, :-1], x, both[:, -1:], value=-1.0)

    return score


def full_score(problem: Problem) -> Score:
    """Return the score by one product with all precisions side by side, and their sums over components."""
    means, precisions, log_scale, _ = problem.mixture.operands(torch.float32)
    (n, d), pulls = means.shape, torch.einsum("kij,kj->ki", precisions, means)
    left = -precisions.transpose(1, 2).permute(1, 0, 2).reshape(d, n * d)

    def score(x: Tensor) -> Tensor:
        u = torch.addmm(pulls.flatten(), x, left).reshape(len(x), n, d)
        logits = torch.einsum("bkd,bkd->bk", means - x[:, None], u).mul_(-0.5).add_(log_scale)
        return torch.bmm(logits.softmax(1)[:, None], u)[:, 0]

    return score


@torch.inference_mode()
def eager(problem: Problem, score: Score, table: list[list[float]], given: Operands, noise: Tensor | None) -> Tensor:
    """Take all steps, in place; noise [N, B, d] is drawn here where there is none given."""
    y, held, slope = given
    y, buffer = y.clone(), torch.empty_like(y)
    for n in reversed(range(problem.steps)):
        decay, drift, weight, position, std, _ = table[n]
        g = score(y)
        y.mul_(decay).add_(g, alpha=drift).add_(held, alpha=weight).add_(slope, alpha=weight * position)
        if std != 0.0:
            y.add_(buffer.normal_() if noise is None else noise[n], alpha=std)
    return y


# --- the race ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: f"{p.covariance_type}-d{p.dim}")
def test_reverse_steps(problem: Problem, contender: str, rates: roofline.Rates, race: Any) -> None:
    given = operands(problem)
    few: Operands = tuple(t[:CHECKED_ROWS] for t in given)  # type: ignore[assignment]
    exact = ours(problem, tuple(t.double() for t in few), "reference")  # type: ignore[arg-type]
    own = deviation((ours(problem, few, "reference"),), (exact,))
    found = ours(problem, given, "cpp")
    error = deviation((found[:CHECKED_ROWS],), (exact,))
    assert error <= FLOAT32 + 10.0 * own

    check = "float64 reference, same noise"
    row = Row("reverse_steps", problem.label, contender, "a sample-step", problem.sample_steps, check)
    if contender == "ours":
        row.deviation = error
        count = roofline.reverse_steps_multiply_adds(problem.covariance_type, problem.dim, problem.weighing)
        arithmetic, drawn = rates.roofline(count), rates.roofline(0, problem.dim)
        row.roofline_seconds = problem.sample_steps * (arithmetic + drawn)
        row.roofline = f"arithmetic {1e9 * arithmetic:.3g} + normals {1e9 * drawn:.3g}"
        row.targets, row.share = TARGETS, SHARE_OF_ROOFLINE
        race(row, partial(ours, problem, given, "cpp"))
        return
    score = {"spherical": spherical_score, "full": full_score}[problem.covariance_type](problem)
    table = problem.process.reverse_scheme("sde", "data").coefficients(problem.steps, 0).T.tolist()
    loop = partial(eager, problem, score, table)
    error = deviation((loop(few, problem.noise(CHECKED_ROWS, 2, REVERSE)),), (exact,))
    assert error <= MATMUL_FORM
    z = law_deviation(loop(given, None), found)
    assert z <= LARGEST_Z
    row.check, row.deviation = f"{check}; law, largest z {z:.2g}", error
    race(row, partial(loop, given, None))
