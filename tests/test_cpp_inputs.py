"""The C++ backend on awkward inputs, and under opcheck and torch.compile."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cpp_cases import (  # noqa: F401
    assert_same,
    case,
    dtypes,
    every_op,
    kernels,
    kinds,
    loss_inputs,
    loss_kinds,
    new_case,
    run,
)
from helpers import COVARIANCE_TYPES, normals, random_mixture
from test_ops import op_arguments
from torch import Tensor

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, NDSMLoss, functional
from fastndsm._ops import SCHEMAS, ops
from fastndsm.testing import strided

# --- inputs ------------------------------------------------------------------------------------------------------


@every_op
@kinds
def test_any_strides_and_nothing_is_written_into_inputs(kind: str, op: str) -> None:
    c = case(kind, 5, 3)
    odd = new_case(kind, 5, 3)
    odd.x, odd.v, odd.steps = strided(c.x), strided(c.v), strided(c.steps)
    m = odd.mixture
    for name in ("means", "_precisions", "_log_scale", "_factors"):
        setattr(m, name, strided(getattr(m, name)))
    copies = [t.clone() for t in (odd.x, odd.v, odd.steps, *m.buffers())]
    assert_same(run(op, odd, "cpp"), run(op, c, "cpp"))
    for before, after in zip(copies, (odd.x, odd.v, odd.steps, *m.buffers()), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_op
def test_low_precision_is_float32_rounded(op: str, dtype: torch.dtype) -> None:
    c, rounded = case("diag", 5, 3), new_case("diag", 5, 3)
    rounded.x, rounded.v = (t.to(dtype).double() for t in (c.x, c.v))
    expected = run(op, rounded, "cpp", torch.float32)
    if op == "mixture_sample":  # draws are made in the dtype of the mixture
        expected = run(op, rounded, "cpp", torch.float64)
    assert_same(run(op, rounded, "cpp", dtype), tuple(t.to(dtype) for t in expected))


@loss_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision_losses_are_those_of_float32(estimator: str, antithetic: bool, dtype: torch.dtype) -> None:
    inputs = loss_inputs(33, 67, antithetic or estimator != "plain", dtype)
    wide = tuple(t.float() for t in inputs)
    rest = estimator, antithetic, "cpp"
    assert_same((ops.ndsm_loss(*inputs, *rest),), (ops.ndsm_loss(*wide, *rest),))
    grad = normals(33, seed=3).float()
    gradient = ops.ndsm_loss_backward(grad, *wide, *rest).to(dtype)
    assert_same((ops.ndsm_loss_backward(grad, *inputs, *rest),), (gradient,))


@kinds
def test_far_away_points_and_empty_components(kind: str) -> None:
    """1,000 standard deviations off in float32; components of weight zero change nothing, not even a whole block."""
    m = random_mixture(kind, 10, 3)
    far = torch.cat([1000.0 * normals(31, 3, seed=5), m.means[:2]]).float()
    direction = normals(33, 3, seed=6).float()
    for op in (functional.mixture_log_prob, functional.mixture_score):
        exact = op(far.double(), m, backend="reference")
        found, allowed = ((op(far, m, backend=b).double() - exact).abs().amax() for b in ("cpp", "reference"))
        assert float(found) <= 8.0 * float(allowed)
    assert bool(functional.mixture_hvp(far, direction, m, backend="cpp").isfinite().all())

    weights = torch.cat([torch.zeros(300, dtype=torch.float64), m.weights])
    covariances = m.covariances
    if kind != "tied":
        covariances = torch.cat([covariances[:1].expand(300, *covariances.shape[1:]), covariances])
    padded = GaussianMixture(weights, torch.cat([normals(300, 3, seed=7), m.means]), covariances, kind)
    x, v = normals(33, 3), normals(33, 3, seed=1)
    for op in (functional.mixture_log_prob, functional.mixture_score, functional.mixture_hvp):
        arguments = (x, v) if op is functional.mixture_hvp else (x,)
        torch.testing.assert_close(op(*arguments, padded, backend="cpp"), op(*arguments, m, backend="cpp"))


@pytest.mark.parametrize("kind", ["spherical", "diag", "full"])
@pytest.mark.parametrize("deviation", [1e-2, 1e-3, 1e-4])
def test_a_narrow_component_far_away_leaves_no_trace_in_float32(deviation: float, kind: str) -> None:
    """Its g is up to 1e9 and its weight 0: what stands in for 0 must not show, times g squared, in the hessian."""
    variances = torch.tensor([1.0, deviation**2], dtype=torch.float64)
    covariances = {"spherical": variances, "diag": variances[:, None].expand(2, 2)}.get(
        kind, variances[:, None, None] * torch.eye(2, dtype=torch.float64)
    )
    m = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [10.0, 0.0]], covariances, kind)
    x, v = normals(64, 2).float(), normals(64, 2, seed=1).float()
    expected = functional.mixture_hvp(x.double(), v.double(), m, backend="reference")
    torch.testing.assert_close(functional.mixture_hvp(x, v, m, backend="cpp").double(), expected, rtol=0.0, atol=3e-6)


@kinds
@dtypes
@pytest.mark.parametrize("components", [3, 300])
def test_what_is_not_a_number_stays_so_and_stays_alone(components: int, dtype: torch.dtype, kind: str) -> None:
    """A NaN in one dimension makes its whole row NaN, as in the reference, and touches no other row."""
    m = random_mixture(kind, components, 5)
    x, v = normals(9, 5).to(dtype), normals(9, 5, seed=1).to(dtype)
    broken = x.clone()
    broken[4, 1] = math.nan
    others = torch.arange(9) != 4
    for op in (functional.mixture_log_prob, functional.mixture_score, functional.mixture_hvp):
        rest = (v, m) if op is functional.mixture_hvp else (m,)
        clean, found = op(x, *rest, backend="cpp"), op(broken, *rest, backend="cpp")
        assert bool(found[4].isnan().all()) and torch.equal(found[others], clean[others])
    beyond = torch.full((1, 5), math.inf, dtype=dtype)
    log_prob = functional.mixture_log_prob(beyond, m, backend="cpp")
    assert bool((log_prob == -math.inf).all() | log_prob.isnan().all())


@pytest.mark.parametrize("kind", ["spherical", "tied"])
def test_many_components_in_many_dimensions(kind: str) -> None:
    """Blocks of components shared by several tiles of rows, and the last of each incomplete."""
    m = random_mixture(kind, 1500, 130, ratio=4.0)
    x, v = m.means[:70] + 0.3 * normals(70, 130), normals(70, 130, seed=1)
    for op in (functional.mixture_log_prob, functional.mixture_score, functional.mixture_hvp):
        rest = (v, m) if op is functional.mixture_hvp else (m,)
        found, expected = op(x, *rest, backend="cpp"), op(x, *rest, backend="reference")
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10 * float(expected.abs().amax()))


@pytest.mark.parametrize("n_steps", [1, 2])
def test_short_grids_and_both_ends(n_steps: int) -> None:
    p = LangevinProcess(random_mixture("full", 3, 3, ratio=4.0), T=0.05, n_steps=n_steps)
    x0 = normals(5, 3)
    for steps in (0, 1, n_steps):
        for op in (functional.simulate, functional.simulate_target):
            found, expected = (op(x0, p, steps, seed=1, backend=backend) for backend in ("cpp", "reference"))
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    x, target, variance = functional.simulate_target(x0, p, 0, seed=1, antithetic=True, backend="cpp")
    assert torch.equal(x, torch.cat([x0, x0])) and not target.any() and not variance.any()


# --- PyTorch's own machinery -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in SCHEMAS if "str backend" in SCHEMAS[name]])
def test_opcheck(name: str) -> None:
    operator = getattr(torch.ops.fastndsm, name).default
    with fastndsm.use_backend("cpp"):
        for kind in COVARIANCE_TYPES if "covariance_type" in SCHEMAS[name] else ("diag",):
            torch.library.opcheck(operator, op_arguments(name, kind))


def test_compiles_to_one_graph() -> None:
    """All ops, the backend named inside the graph, and a loss with its gradient."""
    p = LangevinProcess(random_mixture("diag", 3, 2, ratio=4.0), T=0.2, n_steps=5)
    m, loss, seed = p.reference, NDSMLoss(p, "path"), torch.tensor(3)
    bounds, coefficients = torch.tensor([4, 1]), p.reverse_scheme("sde", "data").coefficients(4, 1)
    named: dict[str, Any] = {"backend": "cpp"}

    def function(x: Tensor, v: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        return (
            functional.mixture_log_prob(x, m, **named),
            functional.mixture_score(x, m, **named),
            functional.mixture_hvp(x, v, m, **named),
            functional.mixture_sample(4, m, seed=seed, **named),
            functional.philox_normal(3, 2, seed=seed, **named),
            functional.simulate(x, p, 3, seed=seed, **named),
            *functional.simulate_target(x, p, 3, seed=seed, antithetic=True, **named),
            functional.reverse_step(x, v, p, 2, seed=seed, **named),
            p.dynamics.reverse_steps(x, v, x, v[:, 0].abs(), bounds, coefficients, seed, 0, "cpp"),
            functional.ndsm_loss(x, v, v[:, 0].abs() + 0.1, estimator="plain", **named),
            functional.dsm_loss(x, v, **named),
        )

    def training(x: Tensor, scale: Tensor) -> Tensor:
        return loss(lambda x, t: scale * x + t[:, None], x, seed=seed)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for rows in (5, 7):
        x, v = normals(rows, 2), normals(rows, 2, seed=1)
        for found, expected in zip(compiled(x, v, seed), function(x, v, seed), strict=True):
            torch.testing.assert_close(found, expected)
    scale = torch.tensor(-0.5, dtype=torch.float64, requires_grad=True)
    gradients = []
    with fastndsm.use_backend("cpp"):
        for step in (torch.compile(training, fullgraph=True, backend="aot_eager"), training):
            gradients.append(torch.autograd.grad(step(normals(6, 2), scale), scale))
    torch.testing.assert_close(*gradients)
    torch._dynamo.reset()
