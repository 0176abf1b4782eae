"""Points so far off that squares overflow: true values where the dtype holds them, by exact arithmetic."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor

from fastndsm import GaussianMixture, functional, testing
from fastndsm.testing import COVARIANCE_TYPES, normals, random_mixture

BACKENDS = ("reference", "cpp")
SCALES = {
    torch.float32: (1e5, 1e10, 1e18, 1e19, 1e20, 1e30, torch.finfo(torch.float32).max),
    torch.float64: (1e10, 1e20, 1e100, 1e154, 1e160, 1e300),
}
all_types = pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
all_dtypes = pytest.mark.parametrize("dtype", SCALES, ids=str)


def far_points(scale: float, rows: int, dim: int, dtype: torch.dtype) -> Tensor:
    directions = normals(rows, dim, seed=1)
    return (directions / directions.abs().amax(1, keepdim=True) * scale).to(dtype)


def exact(x: Tensor, v: Tensor, m: GaussianMixture, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return log_prob, score and hvp where one component has all the weight, in fractions of the rounded parameters."""
    means, precisions, log_scale, kind = m.operands(dtype)
    dim, rows = x.shape[1], []
    precisions = {
        "spherical": lambda: precisions[:, None, None] * torch.eye(dim, dtype=dtype),
        "diag": lambda: torch.diag_embed(precisions),
        "tied": lambda: precisions.expand(len(means), dim, dim),
        "full": lambda: precisions,
    }[kind]()

    def product(matrix: Any, vector: list[Fraction]) -> list[Fraction]:
        return [sum((Fraction(p) * u for p, u in zip(row, vector, strict=True)), Fraction()) for row in matrix]

    for point, direction in zip(x.tolist(), v.tolist(), strict=True):
        found = []
        for mean, matrix, scale in zip(means.tolist(), precisions.tolist(), log_scale.tolist(), strict=True):
            u = [Fraction(a) - Fraction(b) for a, b in zip(mean, point, strict=True)]
            g = product(matrix, u)
            log_prob = Fraction(scale) - sum(a * b for a, b in zip(u, g, strict=True)) / 2
            found.append((log_prob, g, [-p for p in product(matrix, [Fraction(a) for a in direction])]))
        found.sort(key=lambda values: -values[0])
        assert len(found) == 1 or found[0][0] - found[1][0] > 50
        rows.append(found[0])

    def rounded(value: Any) -> float:
        limit = Fraction(torch.finfo(dtype).max)
        return float(value) if abs(value) <= limit else float("inf") * (1 if value > 0 else -1)

    log_prob = torch.tensor([rounded(row[0]) for row in rows], dtype=dtype)
    score, hvp = (torch.tensor([[rounded(e) for e in row[i]] for row in rows], dtype=dtype) for i in (1, 2))
    return log_prob, score, hvp


@all_types
@all_dtypes
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n_components", "dim"), [(1, 3), (3, 2), (70, 3), (5, 40)], ids=str)
def test_far_points_have_their_true_values(
    n_components: int, dim: int, backend: str, dtype: torch.dtype, covariance_type: str
) -> None:
    m = random_mixture(covariance_type, n_components, dim)
    rows = 2 if dim > 10 or n_components > 10 else 9
    v = normals(rows, dim, seed=2, dtype=dtype)
    close = {torch.float32: 1e-6, torch.float64: 1e-11}[dtype]
    for scale in SCALES[dtype]:
        x = far_points(scale, rows, dim, dtype)
        found = (
            functional.mixture_log_prob(x, m, backend=backend),
            functional.mixture_score(x, m, backend=backend),
            functional.mixture_hvp(x, v, m, backend=backend),
        )
        for name, value, expected in zip(("log_prob", "score", "hvp"), found, exact(x, v, m, dtype), strict=True):
            assert torch.equal(value.isinf(), expected.isinf()) and not value.isnan().any(), (name, scale)
            finite = expected.isfinite()
            size = expected[finite].abs().max() if bool(finite.any()) else 0.0
            allowed = float(size) * close
            torch.testing.assert_close(
                value[finite], expected[finite], rtol=0.0, atol=allowed, msg=f"{name} at {scale}"
            )


@all_types
@pytest.mark.parametrize("backend", BACKENDS)
def test_far_rows_change_no_bit_of_others(backend: str, covariance_type: str) -> None:
    m, x = random_mixture(covariance_type, 5, 3), normals(33, 3, dtype=torch.float32)
    spoilt = x.clone()
    spoilt[[3, 17]], spoilt[20], spoilt[29] = 1e30, float("nan"), float("inf")
    others = [i for i in range(33) if i not in (3, 17, 20, 29)]
    for op in (functional.mixture_log_prob, functional.mixture_score, functional.mixture_hvp):
        a, b = (
            (op(p, x, m, backend=backend) if "hvp" in op.__name__ else op(p, m, backend=backend)) for p in (x, spoilt)
        )
        assert torch.equal(a[others], b[others])
        assert b[20].isnan().all() and b[29].isnan().all() and not b[[3, 17]].isnan().any()


@all_types
@pytest.mark.parametrize("backend", BACKENDS)
def test_far_points_between_two_components_that_weigh_the_same(backend: str, covariance_type: str) -> None:
    """Compare across the line between them: each has half the weight however far the point is."""
    one = {
        "spherical": [1.0, 1.0],
        "diag": [[1.0, 1.0]] * 2,
        "tied": torch.eye(2),
        "full": torch.eye(2).expand(2, 2, 2),
    }
    m = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], one[covariance_type], covariance_type)
    for scale in (1e10, 1e18, 1e25):
        x, v = torch.tensor([[0.0, scale]]), torch.tensor([[1.0, 0.0]])
        assert functional.mixture_score(x, m, backend=backend).tolist() == [[0.0, -float(x[0, 1])]]
        assert functional.mixture_hvp(x, v, m, backend=backend).tolist() == [[0.0, 0.0]]  # -1 within, 1 between
        assert m.responsibilities(x).tolist() == [[0.5, 0.5]]


@all_types
def test_far_points_are_differentiated_and_stepped(covariance_type: str) -> None:
    m = random_mixture(covariance_type, 3, 2)
    v = normals(4, 2, dtype=torch.float32)
    process = testing.coarse_process(m, T=0.1, n_steps=4)
    for scale in (1e10, 1e20, 1e30):
        x = far_points(scale, 4, 2, torch.float32).requires_grad_()
        (gradient,) = torch.autograd.grad((m.score(x) * v).sum(), x)
        torch.testing.assert_close(gradient, exact(x, v, m, torch.float32)[2], rtol=1e-5, atol=1e-5)
        (third,) = torch.autograd.grad(m.hvp(x, v).sum(), x)
        assert third.isfinite().all()
        assert m.responsibilities(x).sum(1).tolist() == [1.0] * 4
        steps = [functional.reverse_step(x.detach(), v, process, 2, seed=1, backend=b) for b in BACKENDS]
        torch.testing.assert_close(*steps, rtol=1e-6, atol=0.0)
