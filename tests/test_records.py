"""Records: R samples of one path, each what a call for its step alone gives; how they are drawn, and their law."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cpp_cases import dtypes, kernels  # noqa: F401
from helpers import COVARIANCE_TYPES, normals, quietly, random_mixture
from test_estimators import Field, data, process, stein_difference

import fastndsm
from fastndsm import DriftProcess, GaussianMixture, LangevinProcess, NDSMLoss, OUProcess, functional
from fastndsm.process import Noised, NoisingProcess

BACKENDS = ("reference", "cpp")
SIZES = [(1, 1), (2, 10), (3, 3), (5, 10), (16, 3), (67, 3)]  # d, K: in registers, staged, whole vectors and not
ROWS = 37
N_STEPS = 150  # more than the history of a tile in registers


def langevin(kind: str, dim: int, components: int) -> LangevinProcess:
    return quietly(random_mixture(kind, components, dim), T=1.0, n_steps=N_STEPS)


def some_steps(rows: int, n: int, records: int = 5) -> torch.Tensor:
    """Return steps in 0..n, neither sorted nor distinct, with rows of nothing but 0 and n and of a history's end."""
    steps = torch.randint(0, n + 1, (rows, records), generator=torch.Generator().manual_seed(3))
    steps[0], steps[1], steps[2, :3] = 0, n, n
    steps[3] = (126 + torch.arange(records)).clamp(max=n)
    return steps


@dtypes
@pytest.mark.parametrize("antithetic", [False, True], ids=["path", "antithetic"])
@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_record_is_that_of_a_call_for_its_step(
    backend: str, kind: str, antithetic: bool, dtype: torch.dtype
) -> None:
    """Bit for bit in C++; the reference's matrix products may differ in the last bit with the rows under way."""
    for dim, components in SIZES if backend == "cpp" else SIZES[1:4:2]:
        p, x0 = langevin(kind, dim, components), normals(ROWS, dim).to(dtype)
        steps = some_steps(ROWS, N_STEPS)
        options: dict[str, Any] = {"seed": 1, "first_path": 2**32 - 3, "antithetic": antithetic, "backend": backend}
        records = functional.simulate_target(x0, p, steps, **options)
        for r in range(steps.shape[1]):
            one = functional.simulate_target(x0, p, steps[:, r], **options)
            for found, expected in zip(records, one, strict=True):
                assert found.shape == (expected.shape[0], steps.shape[1], *expected.shape[1:])
                if backend == "cpp":
                    assert torch.equal(found[:, r], expected)
                else:
                    bound = (1e-12 if dtype == torch.float64 else 1e-3) * float(expected.abs().amax())
                    torch.testing.assert_close(found[:, r], expected, rtol=0.0, atol=bound)


@pytest.mark.parametrize("size", [(2, 10), (16, 3), (784, 3)], ids=str)
def test_many_records_and_threads_change_no_bit(size: tuple[int, int]) -> None:
    """So many that a tile's are written at once where they go, not staged; on one thread and on three."""
    p, x0 = langevin("diag", *size), normals(ROWS, size[0], dtype=torch.float32)
    steps = some_steps(ROWS, N_STEPS, 200)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(functional.simulate_target(x0, p, steps, seed=1, backend="cpp"))
    torch.set_num_threads(1)
    few = functional.simulate_target(x0, p, steps[:, ::67].contiguous(), seed=1, backend="cpp")
    for one, other, part in zip(*found, few, strict=True):
        assert torch.equal(one, other) and torch.equal(one[:, ::67], part)


def drift_process() -> DriftProcess:
    return DriftProcess(lambda x, t: -x.tanh(), GaussianMixture.standard_normal(2), T=1.0, n_steps=8, rate=0.5)


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("make", [drift_process, lambda: OUProcess(2, n_steps=8)], ids=["drift", "ou"])
def test_every_process_records(make: Any, antithetic: bool) -> None:
    p: NoisingProcess = make()
    x0, steps = normals(9, 2), some_steps(9, 7)
    noised = p.noised(x0, steps, seed=1, antithetic=antithetic)
    rows = 18 if antithetic else 9
    assert noised.x.shape == noised.target.shape == (rows, 5, 2)
    assert noised.variance.shape == noised.t.shape == noised.step.shape == (rows, 5)
    for r in range(5):
        for found, expected in zip(noised, p.noised(x0, steps[:, r], seed=1, antithetic=antithetic), strict=True):
            torch.testing.assert_close(found[:, r], expected, rtol=1e-12, atol=1e-12)


def test_data_of_any_shape() -> None:
    p = quietly(random_mixture("diag", 3, 6), n_steps=5, T=0.1)
    noised = p.noised(normals(4, 1, 2, 3), records=2, seed=1)
    assert noised.x.shape == noised.target.shape == noised.variance.shape == (4, 2, 1, 2, 3)


def test_drawn_steps_are_uniform_and_of_seed_path_and_number_alone() -> None:
    p = quietly(random_mixture("spherical", 3, 2), n_steps=20, T=0.4)
    n, records = 20_000, 8
    steps = p.draw_steps(n, seed=5, records=records)
    assert torch.equal(steps[:, 0], p.draw_steps(n, seed=5))
    assert torch.equal(p.draw_steps(100, seed=5, first_path=700, records=3), steps[700:800, :3])
    for r in range(records):
        counts = torch.bincount(steps[:, r], minlength=20).double()
        chi = float(((counts - n / 20) ** 2 / (n / 20)).sum())
        assert chi < 50.0  # 19 degrees of freedom: 1e-4
    assert int((steps.sort(dim=1).values.diff(dim=1) == 0).sum()) == 0  # spread, so that few steps are drawn twice
    x0 = normals(30, 2)
    drawn = p.noised(x0, seed=5, records=records)
    assert torch.equal(drawn.step, p.draw_steps(30, seed=5, records=records))
    for found, expected in zip(drawn, p.noised(x0, seed=5), strict=True):
        torch.testing.assert_close(found[:, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["spherical d=1", "full d=3, very unequal", "drift d=2"])
@pytest.mark.parametrize("antithetic", [False, True], ids=["path", "antithetic"])
def test_every_record_estimates_the_score_of_its_law(name: str, antithetic: bool) -> None:
    """By Stein's identity, on records of 50,000 paths."""
    p = process(name)
    n, steps = 50_000, torch.tensor([4, 0, 2])
    loss = NDSMLoss(p, "path", antithetic, weighting=None, reduction="none")
    drawn = loss.draw(data(name)[:n], seed=2, step=steps.expand(n, 3))
    assert isinstance(drawn, Noised)
    for r in range(3):
        one = Noised(*(field[:, r] for field in drawn))
        difference = stein_difference(p, loss.evaluate(Field(p), one), one, antithetic)
        assert abs(float(difference.mean() / difference.std() * n**0.5)) < 4.5


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_loss_of_records_is_that_of_as_many_rows(reduction: str, antithetic: bool) -> None:
    p = quietly(random_mixture("diag", 3, 2), n_steps=10, T=0.2)
    loss = NDSMLoss(p, antithetic=antithetic, reduction=reduction)
    x0, steps = normals(6, 2), some_steps(6, 9, 4)

    def net(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        assert x.shape == (48 if antithetic else 24, 2) and t.shape == x.shape[:1]
        return (x * (1.0 + t[:, None])).sin()

    found = loss(net, x0, seed=1, step=steps)
    if reduction == "none":
        assert found.shape == (6, 4)
    single = NDSMLoss(p, antithetic=antithetic, reduction="none")
    one = [single(lambda x, t: (x * (1.0 + t[:, None])).sin(), x0, seed=1, step=steps[:, r]) for r in range(4)]
    expected = torch.stack(one, dim=1)
    expected = expected if reduction == "none" else getattr(expected, reduction)()
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["spherical", "full"])
def test_gradients_and_the_compiler(kind: str) -> None:
    p = quietly(random_mixture(kind, 2, 2), T=0.3, n_steps=4)
    steps = torch.tensor([[3, 0, 3], [1, 2, 0]])
    x0 = normals(2, 2).requires_grad_()
    function = lambda x: p.noised(x, steps, seed=1, antithetic=True)[:3]  # noqa: E731
    with fastndsm.use_backend("cpp"):
        assert torch.autograd.gradcheck(function, (x0,)) and torch.autograd.gradgradcheck(function, (x0,))
        compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
        for found, expected in zip(compiled(x0), function(x0), strict=True):
            assert torch.equal(found, expected)
    operands = p.reference.operands(torch.float64), p.reference.principal_axes(torch.float64) or (None, None)
    arguments = (p.drift_scale, p.noise_std, *operands[0], *operands[1], torch.tensor(1), 0, True, None, "cpp")
    torch.library.opcheck(torch.ops.fastndsm.simulate_target.default, (x0, steps, *arguments))


def test_bad_input_is_refused() -> None:
    p, x0 = OUProcess(2, n_steps=10), torch.zeros(3, 2)
    two = torch.zeros(3, 2, dtype=torch.int64)
    for call, message in (
        (lambda: p.noised(x0, two[:2]), r"step: expected an integer or shape \[3\] or \[3, R\], found shape \(2, 2\)"),
        (lambda: p.noised(x0, two[:, :0]), r"found shape \(3, 0\)"),
        (lambda: p.noised(x0, two + 10), r"step: expected values in 0\.\.9, found 10\.\.10"),
        (lambda: p.noised(x0, 3, records=2), "records: expected None where `step` gives the steps, found both"),
        (lambda: p.noised(x0, records=0), "records: expected an integer of at least 1, found 0"),
        (lambda: p.transition(x0, two), r"step: expected an integer or shape \[3\], found shape \(3, 2\)"),
        (lambda: p.simulate(x0, two), r"steps: expected an integer or shape \[3\], found shape \(3, 2\)"),
        (lambda: NDSMLoss(p, "plain").draw(x0, records=2), "records: expected None with estimator 'plain', found 2"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
