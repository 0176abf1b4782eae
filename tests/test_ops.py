"""Every op: opcheck, gradients of first and second order, low precision, odd shapes and strides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import COVARIANCE_TYPES, normals, on_one_backend, random_mixture  # noqa: F401
from torch import Tensor

from fastndsm import LangevinProcess, compile_drift, functional
from fastndsm._ops import DRIFT_OPS, SCHEMAS

SEED = torch.tensor(3)
STEPS = torch.tensor([1, 2, 0, 3])
LOSSES = [("plain", False), ("plain", True), ("control_variate", False)]
loss_kinds = pytest.mark.parametrize(
    ("estimator", "antithetic"), LOSSES, ids=["plain", "plain antithetic", "control variate"]
)


def process(covariance_type: str = "diag") -> LangevinProcess:
    return LangevinProcess(random_mixture(covariance_type, 3, 2, ratio=4.0), T=0.2, n_steps=5)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    return normals(*shape, seed=seed).requires_grad_()


# --- opcheck -----------------------------------------


def drift_arguments(name: str) -> tuple[Any, ...]:
    """Draw arguments of an op of a drift that is a program, or of its gradient: of all that it gives."""
    p, pull = process(), leaf(2, 2, seed=6)
    traced = compile_drift(lambda x, t: t[:, None] * (x @ pull).tanh() - x, 2).traced(torch.float64)
    x, v, parameters = leaf(4, 2), leaf(4, 2, seed=1), traced.parameters(pull).detach().requires_grad_()
    times = torch.rand(4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tables, program = (p.times, p.noise_std), traced.program.key
    reverse = torch.tensor([4, 1]), p.reverse_scheme(prediction="linear").coefficients(4, 1)
    op = name.removesuffix("_backward")
    forward = {
        "drift_value": (x, parameters, times, program, "auto"),
        "drift_product": (x, parameters, v, times, program, "auto"),
        "drift_simulate": (x, parameters, STEPS, *tables, program, SEED, 0, "auto"),
        "drift_transition": (x, parameters, STEPS + 1, *tables, program, SEED, 0, "auto"),
        "drift_target": (x, parameters, STEPS, *tables, 0.5, program, SEED, 0, True, "auto"),
        "drift_reverse_steps": (
            x,
            parameters,
            v,
            leaf(4, 2, seed=2),
            None,
            *reverse,
            *tables,
            program,
            SEED,
            0,
            "auto",
        ),
    }[op]
    if op == name:
        return forward
    made = getattr(torch.ops.fastndsm, op)(*forward)
    grads = (torch.ones_like(m).detach() for m in ((made,) if isinstance(made, Tensor) else made))
    return *grads, *(a.detach() if isinstance(a, Tensor) else a for a in forward[:-1])


def op_arguments(name: str, covariance_type: str, ranges: Tensor | None = None) -> tuple[Any, ...]:
    """Draw arguments of the op `name`, inputs that are differentiable requiring grad; ranges [4, 2] or none."""
    if name.removesuffix("_backward") in DRIFT_OPS:
        return drift_arguments(name)
    p = process(covariance_type)
    m = p.reference
    mixture = tuple(m.operands(torch.float64))
    tables = (p.drift_scale, p.noise_std, *mixture)
    axes = m.principal_axes(torch.float64) or (None, None)
    x, v = leaf(4, 2), leaf(4, 2, seed=1)
    noised, variance = tuple(m.noised_operands(torch.float64)), normals(4, seed=6).abs().requires_grad_()
    pair = (normals(2, 2, seed=2), normals(2, seed=3).abs() + 0.1, "control_variate", False, "auto")
    width = 1 if covariance_type == "spherical" else 2
    reverse = torch.tensor([4, 1]), p.reverse_scheme(prediction="linear").coefficients(4, 1)
    rate = normals(4, seed=5).abs().requires_grad_()
    return {
        "philox_normal": (4, 2, SEED, STEPS, 0, 2**33, torch.float32, torch.device("cpu"), "auto"),
        "uniform_steps": (4, 5, SEED, 2**33, torch.device("cpu"), None, "auto"),
        "mixture_score": (x, *mixture, ranges, "auto"),
        "mixture_log_prob": (x, *mixture, ranges, "auto"),
        "mixture_hvp": (x, v, *mixture, ranges, "auto"),
        "mixture_hvp_backward": (normals(4, 2, seed=2), x.detach(), v.detach(), *mixture, ranges),
        "mixture_sample": (4, *m.sampling_operands(), SEED, 0, torch.float32, ranges, "auto"),
        "simulate": (x, STEPS, *tables, SEED, 0, ranges, "auto"),
        "simulate_backward": (normals(4, 2, seed=2), x.detach(), STEPS, *tables, SEED, 0, ranges),
        "simulate_transition": (x, STEPS + 1, *tables, SEED, 0, ranges, "auto"),
        "simulate_target": (x, STEPS, *tables, *axes, SEED, 0, True, ranges, "auto"),
        "noised_score": (x, variance, *noised, "auto"),
        "noised_score_backward": (normals(4, 2, seed=2), x.detach(), variance.detach(), *noised),
        "noised_log_prob": (x, variance, *noised, "auto"),
        "noised_log_prob_backward": (normals(4, seed=2), x.detach(), variance.detach(), *noised),
        "simulate_target_backward": (
            *(normals(8, 2, seed=2), normals(8, 2, seed=3), normals(8, width, seed=4)),
            *(x.detach(), STEPS, *tables, *axes, SEED, 0, True, ranges),
        ),
        "ndsm_loss": (x, *pair),
        "ndsm_loss_backward": (normals(2, seed=4), x.detach(), *pair),
        "dsm_loss": (x, v, "auto"),
        "dsm_loss_backward": (normals(4, seed=4), x.detach(), v.detach(), "auto"),
        "reverse_steps": (x, v, leaf(4, 2, seed=2), rate, *reverse, *mixture, SEED, 0, ranges, "auto"),
        "reverse_steps_backward": (
            normals(4, 2, seed=3),
            x.detach(),
            v.detach(),
            None,
            rate.detach(),
            *reverse,
            *mixture,
            SEED,
            0,
            ranges,
        ),
    }[name]


@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck(name: str) -> None:
    operator = getattr(torch.ops.fastndsm, name).default
    for covariance_type in COVARIANCE_TYPES if "covariance_type" in SCHEMAS[name] else ("diag",):
        torch.library.opcheck(operator, op_arguments(name, covariance_type))
    if "ranges" in SCHEMAS[name]:
        ranges = torch.tensor([[0, 1], [1, 3], [0, 3], [1, 3]])
        torch.library.opcheck(operator, op_arguments(name, "full", ranges))


# --- gradients -----------------------------------------


def differentiable_functions() -> Iterator[Any]:
    for kind in COVARIANCE_TYPES:
        m, p = process(kind).reference, process(kind)
        x, v = (4, 2), (4, 2)
        yield pytest.param(m.log_prob, (x,), id=f"log_prob {kind}")
        yield pytest.param(m.score, (x,), id=f"score {kind}")
        yield pytest.param(m.hvp, (x, v), id=f"hvp {kind}")
        for op in (functional.noised_score, functional.noised_log_prob):
            noised = lambda x, s, m=m, op=op: op(x, 0.1 + s.square(), m)  # noqa: E731
            yield pytest.param(noised, (x, (4,)), id=f"{op.__name__} {kind}")
        yield pytest.param(lambda x, p=p: p.simulate(x, STEPS, seed=1), (x,), id=f"simulate {kind}")
        yield pytest.param(lambda x, p=p: p.transition(x, STEPS, seed=1)[:2], (x,), id=f"transition {kind}")
        yield pytest.param(lambda x, p=p: p.noised(x, STEPS, seed=1, antithetic=True)[:3], (x,), id=f"noised {kind}")
        for method in ("sde", "ode"):
            step = lambda y, s, p=p, how=method: functional.reverse_step(y, s, p, 2, seed=1, method=how)  # noqa: E731
            yield pytest.param(step, (x, v), id=f"reverse_step {method} {kind}")
    for estimator, antithetic in LOSSES:
        rows = 8 if antithetic or estimator == "control_variate" else 4

        def loss(s: Tensor, estimator: str = estimator, antithetic: bool = antithetic) -> Tensor:
            std = normals(4, seed=5).abs() + 0.1
            return functional.ndsm_loss(
                s, normals(4, 2, seed=6), std, estimator=estimator, antithetic=antithetic, weight=std, reduction="none"
            )

        yield pytest.param(loss, ((rows, 2),), id=f"ndsm_loss {estimator} {antithetic}")
    yield pytest.param(
        lambda s, target: functional.dsm_loss(s, target, reduction="none"), ((4, 2), (4, 2)), id="dsm_loss"
    )


@pytest.mark.parametrize(("function", "shapes"), list(differentiable_functions()))
def test_gradients_of_first_and_second_order(function: Callable[..., Any], shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = tuple(leaf(*shape, seed=i) for i, shape in enumerate(shapes))
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("name", ["mixture_hvp_backward", "simulate_backward", "simulate_target_backward"])
def test_gradient_ops_give_the_same_under_compile_and_inference_mode(name: str) -> None:
    """They run autograd inside an op, where the dispatcher has switched it off."""
    operator, arguments = getattr(torch.ops.fastndsm, name), op_arguments(name, "full")
    expected = operator(*arguments)
    assert bool((expected != 0).all(1).any())
    compiled = torch.compile(lambda *tensors: operator(*tensors), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), expected)
    with torch.inference_mode():
        torch.testing.assert_close(operator(*arguments).clone(), expected)


# --- low precision -----------------------------------------


def eager(scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool) -> Tensor:
    """Return the loss as one would write it in PyTorch, in the dtype of the scores."""
    noise, std = noise.to(scores.dtype), std.to(scores.dtype)
    if estimator == "control_variate":
        s, h = scores.chunk(2)
        return 0.5 * (s * s).sum(1) + (noise * (s - h)).sum(1) / std
    if antithetic:
        plus, minus = scores.chunk(2)
        return 0.25 * (plus * plus + minus * minus).sum(1) + 0.5 * (noise * (plus - minus)).sum(1) / std
    return 0.5 * (scores * scores).sum(1) + (noise * scores).sum(1) / std


@loss_kinds
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_ndsm_loss(estimator: str, antithetic: bool, dtype: torch.dtype) -> None:
    """Error against float64 on the same rounded inputs: at most twice that of PyTorch in the same dtype."""
    rows = 128 if antithetic or estimator == "control_variate" else 64
    scores, noise = normals(rows, 33).to(dtype), normals(64, 33, seed=1).to(dtype)
    std = (normals(64, seed=2).abs() + 0.2).to(dtype)
    options = {"estimator": estimator, "antithetic": antithetic}

    def value_and_gradient(scores: Tensor, function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        scores = scores.clone().requires_grad_()
        losses = function(scores)
        return losses.detach(), torch.autograd.grad(losses.sum(), scores)[0]

    exact = value_and_gradient(scores.double(), lambda s: eager(s, noise.double(), std.double(), **options))  # type: ignore[arg-type]
    theirs = value_and_gradient(scores, lambda s: eager(s, noise, std, **options))  # type: ignore[arg-type]
    ours = value_and_gradient(
        scores,
        lambda s: functional.ndsm_loss(s, noise, std, reduction="none", **options),  # type: ignore[arg-type]
    )
    assert ours[0].dtype == torch.float32 and ours[1].dtype == dtype
    for found, peer, truth in zip(ours, theirs, exact, strict=True):
        error, allowed = ((t.double() - truth).abs().amax() for t in (found, peer))
        assert float(error) <= 2.0 * float(allowed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_dsm_loss(dtype: torch.dtype) -> None:
    score, target = normals(64, 33).to(dtype), normals(64, 33, seed=1).to(dtype)

    def eager_dsm(s: Tensor, t: Tensor) -> Tensor:
        return 0.5 * (s - t).square().sum(1)

    def value_and_gradients(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        inputs = tuple(t.clone().requires_grad_() for t in inputs)
        losses = function(*inputs)
        return losses.detach(), *torch.autograd.grad(losses.sum(), inputs)

    exact = value_and_gradients(eager_dsm, score.double(), target.double())
    theirs = value_and_gradients(eager_dsm, score, target)
    ours = value_and_gradients(lambda s, t: functional.dsm_loss(s, t, reduction="none"), score, target)
    assert ours[0].dtype == torch.float32 and ours[1].dtype == ours[2].dtype == dtype
    for found, peer, truth in zip(ours, theirs, exact, strict=True):
        error, allowed = ((t.double() - truth).abs().amax() for t in (found, peer))
        assert float(error) <= 2.0 * float(allowed)


# --- inputs are read only -----------------------------------------


def strided(t: Tensor) -> Tensor:
    """Return the same values, not contiguous."""
    if t.ndim < 2:
        return torch.stack([t, t], dim=-1)[..., 0]
    return t.transpose(0, 1).contiguous().transpose(0, 1)


@loss_kinds
def test_ndsm_loss_reads_its_inputs_only_and_takes_any_strides(estimator: str, antithetic: bool) -> None:
    rows = 62 if antithetic or estimator == "control_variate" else 31
    inputs = normals(rows, 5), normals(31, 5, seed=1), normals(31, seed=2).abs() + 0.1, normals(31, seed=3).abs()

    def run(scores: Tensor, noise: Tensor, std: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        scores = scores.detach().requires_grad_()
        loss = functional.ndsm_loss(
            scores, noise, std, estimator=estimator, antithetic=antithetic, weight=weight, reduction="sum"
        )
        return loss.detach(), torch.autograd.grad(loss, scores)[0]

    expected = run(*inputs)
    odd = [strided(t) for t in inputs]
    copies = [t.clone() for t in odd]
    assert not any(t.is_contiguous() for t in odd)
    for found, value in zip(run(*odd), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(odd, copies, strict=True))


def test_dsm_loss_and_reverse_step_read_their_inputs_only_and_take_any_strides() -> None:
    p = process()
    inputs = normals(31, 2), normals(31, 2, seed=1)
    odd = [strided(t) for t in inputs]
    copies = [t.clone() for t in odd]
    for function in (functional.dsm_loss, lambda y, s: functional.reverse_step(y, s, p, 2, seed=1)):
        torch.testing.assert_close(function(*odd), function(*inputs))
        gradients = []
        for pair in (odd, inputs):
            leaves = [t.detach().requires_grad_() for t in pair]
            gradients.append(torch.autograd.grad(function(*leaves).sum(), leaves))
        torch.testing.assert_close(*gradients)
    assert all(torch.equal(a, b) for a, b in zip(odd, copies, strict=True))


@pytest.mark.parametrize("rows", [1, 31, 33])
@pytest.mark.parametrize("dim", [1, 5])
@loss_kinds
def test_ndsm_loss_at_odd_shapes(estimator: str, antithetic: bool, rows: int, dim: int) -> None:
    pairs = 2 if antithetic or estimator == "control_variate" else 1
    scores, noise, std = leaf(pairs * rows, dim), normals(rows, dim, seed=1), normals(rows, seed=2).abs() + 0.1
    found = functional.ndsm_loss(scores, noise, std, estimator=estimator, antithetic=antithetic, reduction="none")
    expected = eager(scores, noise, std, estimator, antithetic)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    grad = normals(rows, seed=3)
    ours, theirs = (torch.autograd.grad(losses, scores, grad)[0] for losses in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_an_antithetic_transition_may_be_given_whole() -> None:
    p, x0 = process(), normals(9, 2)
    drawn = p.transition(x0, seed=0, antithetic=True)
    scores = -drawn.x
    whole = functional.ndsm_loss(scores, drawn.noise, drawn.std, estimator="plain", antithetic=True)
    half = functional.ndsm_loss(scores, drawn.noise[:9], drawn.std[:9], estimator="plain", antithetic=True)
    assert torch.equal(whole, half)


@pytest.mark.parametrize("method", ["sde", "ode"])
@pytest.mark.parametrize("step", [0, 2, 4])
def test_reverse_step_follows_the_formula(method: str, step: int) -> None:
    p, y, s = process("full"), normals(31, 2), normals(31, 2, seed=1)
    dt, sigma = 0.04, 1.0
    expected = y - 0.5 * sigma**2 * p.reference.score(y) * dt + (0.5 if method == "ode" else 1.0) * sigma**2 * s * dt
    if method == "sde" and step > 0:
        z = functional.philox_normal(31, 2, seed=8, step=step, stream=2, first_path=5, dtype=torch.float64)
        expected = expected + sigma * dt**0.5 * z
    found = functional.reverse_step(y, s, p, step, seed=8, first_path=5, method=method)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, functional.reverse_step(y, s, p, torch.tensor(step), seed=8, first_path=5, method=method))
