"""The C++ backend against `reference` on the same noise: every op, every gradient, the same integers."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from cpp_cases import (  # noqa: F401
    OPS,
    POOL,
    Shape,
    case,
    dtypes,
    every_op,
    first_rows,
    kernels,
    kinds,
    loss_inputs,
    loss_kinds,
    reference_pool,
    run,
    shapes,
)
from helpers import normals, random_mixture
from torch import Tensor

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, NDSMLoss, functional
from fastndsm._ops import SCHEMAS, ops
from fastndsm.backends import cpp, registry
from fastndsm.reference.philox import PRIOR, philox_words
from fastndsm.testing import FIRST_PATH, SEED

# --- against the reference ---------------------------------------------------------------------------------------


@every_op
@kinds
@shapes
def test_float64_agrees_with_the_reference(shape: Shape, kind: str, op: str) -> None:
    rows, *size = shape
    found = run(op, case(kind, *size), "cpp", rows=slice(rows))
    for one, pool in zip(found, reference_pool(op, kind, *size, torch.float64), strict=True):
        scale = float(pool.abs().amax())
        torch.testing.assert_close(one, first_rows(pool, rows), rtol=0.0, atol=1e-10 * scale)


@every_op
@kinds
@shapes
def test_float32_errs_little_more_than_the_reference(shape: Shape, kind: str, op: str) -> None:
    """Largest error over the rows, against float64: at most 8 times that of the reference in float32 over the pool."""
    rows, *size = shape
    found = run(op, case(kind, *size), "cpp", torch.float32, slice(rows))
    pools = (reference_pool(op, kind, *size, dtype) for dtype in (torch.float32, torch.float64))
    for one, single, exact in zip(found, *pools, strict=True):
        allowed = float((single.double() - exact).abs().amax())
        allowed = max(allowed, float(exact.abs().amax()) * torch.finfo(torch.float32).eps)
        assert one.dtype == torch.float32
        assert float((one.double() - first_rows(exact, rows)).abs().amax()) <= 8.0 * allowed


@loss_kinds
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 16, 67, 784])
@pytest.mark.parametrize("rows", [1, 31, 33])
def test_ndsm_loss_agrees_with_the_reference(rows: int, dim: int, estimator: str, antithetic: bool) -> None:
    scores, noise, std = loss_inputs(rows, dim, antithetic or estimator != "plain")
    grad = normals(rows, seed=3)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        results = []
        for backend in ("cpp", "reference"):
            leaf = scores.to(dtype, copy=True).requires_grad_()
            losses = ops.ndsm_loss(leaf, noise.to(dtype), std.to(dtype), estimator, antithetic, backend)
            results.append((losses.detach(), torch.autograd.grad(losses, leaf, grad.to(dtype))[0]))
        for found, expected in zip(*results, strict=True):
            scale = float(expected.abs().amax())
            torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance * scale)


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 16, 67, 784])
@pytest.mark.parametrize("rows", [1, 31, 33])
def test_dsm_loss_agrees_with_the_reference(rows: int, dim: int) -> None:
    pair, grad = [normals(rows, dim), normals(rows, dim, seed=1)], normals(rows, seed=2)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        results = []
        for backend in ("cpp", "reference"):
            leaves = [t.to(dtype, copy=True).requires_grad_() for t in pair]
            losses = ops.dsm_loss(*leaves, backend)
            results.append((losses.detach(), *torch.autograd.grad(losses, leaves, grad.to(dtype))))
        for found, expected in zip(*results, strict=True):
            scale = float(expected.abs().amax())
            torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance * scale)


DIFFERENTIATED: list[Shape] = [(1, 1, 1), (33, 3, 3), (31, 4, 300), (31, 16, 10)]


@pytest.mark.parametrize("op", [op for op in OPS if op != "mixture_sample"])
@kinds
@pytest.mark.parametrize("shape", DIFFERENTIATED, ids=lambda s: "x".join(map(str, s)))
def test_gradients_agree_with_the_reference(shape: Shape, kind: str, op: str) -> None:
    """C++ forward and the registered backward, in x and in v, of a random combination of the outputs."""
    rows, *size = shape
    c = case(kind, *size)
    results = []
    for backend in ("cpp", "reference"):
        leaves = [t[:rows].clone().requires_grad_() for t in (c.x, c.v)]
        out = OPS[op](dataclasses.replace(c[:rows], x=leaves[0], v=leaves[1]), backend)
        outputs = [o for o in out if o.requires_grad]
        weights = [normals(*o.shape, seed=7 + i) for i, o in enumerate(outputs)]
        results.append(torch.autograd.grad(outputs, leaves, weights, materialize_grads=True))
    assert bool((results[1][0] != 0).any())
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10 * float(expected.abs().amax()))


# --- noise: the same integers ------------------------------------------------------------------------------------


def words_behind(z: Tensor) -> Tensor:
    """Return the random words [n, d] that gave the float64 normals z [n, d], d even."""
    pair = z.reshape(-1, 2)
    uniform = (-0.5 * pair.square().sum(1)).exp()
    turns = torch.atan2(pair[:, 1], pair[:, 0]) / (2.0 * math.pi)
    words = torch.stack([uniform * 2.0**32 - 0.5, turns * 2.0**32], dim=1).round().long() % 2**32
    return words.reshape(z.shape)


def test_known_answer_behind_the_normals() -> None:
    """Random123's vector for counter and key zero; the others need dimensions that no memory holds."""
    z = functional.philox_normal(1, 4, seed=0, dtype=torch.float64, backend="cpp")
    assert words_behind(z).tolist() == [[0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]]


@pytest.mark.parametrize("dim", [4, 8, 68])
@pytest.mark.parametrize("seed", [SEED, 2**63 - 1, 0])
def test_words_behind_the_normals_are_those_of_the_reference(seed: int, dim: int) -> None:
    first, steps = 2**56 - 33, torch.randint(0, 2**32, (33,))
    z = functional.philox_normal(
        33, dim, seed=seed, step=steps, stream=255, first_path=first, dtype=torch.float64, backend="cpp"
    )
    words = torch.stack(philox_words(first + torch.arange(33), dim // 4, seed, steps, 255), dim=2)
    assert torch.equal(words_behind(z), words.flatten(1))


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 16, 67])
@pytest.mark.parametrize("rows", [1, 31, 33, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_normals_agree_with_the_reference(dtype: torch.dtype, rows: int, dim: int) -> None:
    """Require 4 ulp; the absolute term is the rounding of float64's pi at a zero."""
    for step in (7, torch.randint(0, 2**32, (2 * rows,))[::2]):
        found, expected = (
            functional.philox_normal(rows, dim, seed=SEED, step=step, first_path=FIRST_PATH, dtype=dt, backend=backend)
            for backend, dt in (("cpp", dtype), ("reference", torch.float64))
        )
        torch.testing.assert_close(found.double(), expected, rtol=4 * torch.finfo(dtype).eps, atol=2e-15)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 67])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_trajectory_draws_the_normals_of_philox_normal(dtype: torch.dtype, dim: int) -> None:
    """Bit for bit, in the plain case and in the antithetic one, from which the noise is read off at the first step."""
    c = case("spherical", dim, 3)
    steps = c.steps.clamp(min=1)
    common = {"seed": SEED, "first_path": FIRST_PATH, "backend": "cpp"}
    expected = functional.philox_normal(POOL, dim, step=steps - 1, dtype=dtype, **common)  # type: ignore[arg-type]
    noise = functional.simulate_transition(c.x.to(dtype), c.process, steps, **common)[2]  # type: ignore[arg-type]
    assert torch.equal(noise, expected)
    target = functional.simulate_target(c.x.to(dtype), c.process, 1, antithetic=True, **common)[1]  # type: ignore[arg-type]
    first = functional.philox_normal(POOL, dim, dtype=dtype, **common)  # type: ignore[arg-type]
    torch.testing.assert_close(-target[:POOL] * c.process.noise_std[0].to(dtype), first)
    assert torch.equal(target[:POOL], -target[POOL:])


def test_steps_and_components_are_the_same_integers() -> None:
    """The steps that a process draws, and the component behind each exact draw, read off well separated means."""
    p = LangevinProcess(random_mixture("diag", 3, 2), n_steps=100)
    x0 = normals(200, 2)
    drawn = {}
    for backend in ("cpp", "reference"):
        with fastndsm.use_backend(backend):
            drawn[backend] = [p.transition(x0, seed=SEED).step, p.noised(x0, seed=SEED).step]
    assert all(torch.equal(one, other) for one, other in zip(drawn["cpp"], drawn["reference"], strict=True))

    weights = torch.rand(300, dtype=torch.float64)
    weights[[0, 17, 299]] = 0.0
    m = GaussianMixture(weights / weights.sum(), torch.arange(300.0)[:, None], torch.full((300,), 1e-6), "spherical")
    found = functional.mixture_sample(5000, m, seed=SEED, first_path=FIRST_PATH, backend="cpp").round().long()[:, 0]
    words = philox_words(FIRST_PATH + torch.arange(5000), 1, SEED, 1, PRIOR)[0][:, 0]
    u = (words.double() + 0.5) * 2.0**-32
    assert torch.equal(found, torch.searchsorted(m.sampling_operands()[0], u, right=True))
    assert not torch.isin(found, torch.tensor([0, 17, 299])).any()


# --- which backend serves ----------------------------------------------------------------------------------------


def test_auto_is_cpp_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op, in both dtypes, unless told otherwise."""
    names = [name for name in SCHEMAS if "str backend" in SCHEMAS[name]]
    for name, dtype in itertools.product(names, (torch.float32, torch.float64)):
        assert registry.serving(name, torch.device("cpu"), dtype) == ["cpp", "reference"]
        assert registry.select(name, "auto", torch.device("cpu"), [dtype]) is getattr(cpp, name)
    called: list[str] = []
    names = [name for name in names if not name.startswith("drift_")]  # those are built one by one, in test_drifts.py
    for name in names:
        function = getattr(cpp, name)
        spy = lambda *args, f=function, n=name: (called.append(n), f(*args))[1]  # noqa: E731
        monkeypatch.setattr(cpp, name, spy)
    c = case("diag", 2, 3)
    for op in OPS:
        run(op, c, "auto", torch.float32, slice(5))
    loss = NDSMLoss(c.process, "control_variate")(lambda x, t: x.requires_grad_(), c.x.float(), seed=1)
    loss.backward()
    functional.philox_normal(2, 2, seed=1)
    ops.uniform_steps(2, 3, torch.tensor(1), 0, torch.device("cpu"), None, "auto")  # losses draw theirs without it
    x = normals(2, 2).requires_grad_()
    functional.dsm_loss(x, x.detach() + 1.0).backward()
    assert set(called) == set(names)
