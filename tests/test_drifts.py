"""Compiled drifts in a noising process: against the reference's loops, bit for bit whatever the split, and laws."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from drift_cases import WEIGHT, calls, turn, well
from helpers import z_score
from patience import PATIENCE
from torch import Tensor, nn

from fastndsm import (
    BackendError,
    DriftProcess,
    GaussianMixture,
    NDSMLoss,
    cli,
    compile_drift,
    drifts,
    functional,
    use_backend,
)
from fastndsm.jit import drift as jit


@pytest.fixture(autouse=True)
def on_cpp() -> Iterator[None]:
    with use_backend("cpp"):
        yield


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["single", "double"]
)
@pytest.mark.parametrize("make", [well, turn])
def test_every_op_against_the_reference(make: Callable[[], DriftProcess], dtype: torch.dtype, tolerance: float) -> None:
    p = make()
    x = 0.7 * torch.randn(37, p.dim, dtype=torch.float32).double()
    found = calls(p, x.to(dtype))
    with use_backend("reference"):
        exact = calls(p, x)
    for name, parts in exact.items():
        for ours, reference in zip(found[name], parts, strict=True):
            assert ours.dtype == dtype and ours.shape == reference.shape, name
            scale = reference.abs().mean() + reference.abs()
            assert bool(((ours.double() - reference).abs() <= tolerance * scale).all()), name


def test_bits_do_not_depend_on_threads_split_or_what_else_is_asked_for() -> None:
    p, x = turn(), torch.randn(101, 5)
    steps = torch.arange(101) % 8 + 1
    whole = functional.simulate_target(x, p, steps, seed=1, antithetic=True)
    torch.set_num_threads(2)
    assert all(map(torch.equal, whole, functional.simulate_target(x, p, steps, seed=1, antithetic=True)))
    assert torch.equal(functional.simulate(x, p, steps, seed=1), whole[0][:101])
    assert torch.equal(functional.simulate_transition(x, p, steps, seed=1)[0], whole[0][:101])
    for rows in (slice(0, 1), slice(1, 40), slice(40, 101)):
        part = functional.simulate_target(x[rows], p, steps[rows], seed=1, first_path=rows.start)
        assert all(torch.equal(a, b[:101][rows]) for a, b in zip(part, whole, strict=True))
    several = functional.simulate_target(x, p, torch.stack([steps, steps.flip(0)], 1), seed=1)
    assert all(torch.equal(a[:, 0], b[:101]) for a, b in zip(several, whole, strict=True))


def test_a_row_that_overflows_stays_alone() -> None:
    x = torch.randn(33, 2)
    clean = functional.simulate_target(x, well(), seed=1)
    x[5, 0] = 1e30
    for found, before in zip(functional.simulate_target(x, well(), seed=1)[:2], clean[:2], strict=True):
        others = torch.arange(33) != 5
        assert bool(found[5].isnan().any()) and torch.equal(found[others], before[others])


def test_steps_out_of_range_are_refused_by_the_op_too() -> None:
    p = well()
    operands = compile_drift(p.drift_function, 2).operands(torch.zeros(1, 2))
    assert operands is not None
    parameters, program = operands
    tables = torch.tensor([2, 9]), p.times, p.noise_std
    with pytest.raises(ValueError, match=r"steps: expected values in 0\.\.8, found 9"):
        torch.ops.fastndsm.drift_simulate(torch.zeros(2, 2), parameters, *tables, program, torch.tensor(1), 0, "cpp")


# --- laws ----------------------------------------------------------------------------------------------------------


def test_weak_order_is_one() -> None:
    """Errors of E x^2 at T halve with the step."""
    n, x0 = 1 << 18, 2.0

    def second_moment(steps: int) -> float:
        start = torch.full((n, 2), x0)
        p = DriftProcess(drifts.DoubleWell(), GaussianMixture.standard_normal(2), T=0.5, n_steps=steps, compiled=True)
        return float(p.simulate(start, seed=steps).double().square().mean())

    fine = second_moment(160)
    coarse = [second_moment(steps) - fine for steps in (10, 20)]
    assert 1.5 < coarse[0] / coarse[1] < 2.8, coarse


def test_targets_are_scores_on_average() -> None:
    """Stein's identity of the law of x: E [target . f(x) + div f(x)] = 0."""
    for p in (well(), turn()):
        x0 = torch.full((1 << 17, p.dim), 0.3)
        x, target, _ = functional.simulate_target(x0, p, seed=3)
        for f, slope in ((torch.sin, torch.cos), (lambda x: x, torch.ones_like)):
            assert abs(z_score((target.detach() * f(x) + slope(x)).double().sum(1))) < 4.5


# --- parameters, gradients, copies ---------------------------------------------------------------------------------


def test_gradients_through_paths_are_those_of_the_reference() -> None:
    def gradients(backend: str) -> tuple[Tensor, ...]:
        x = torch.linspace(-1.0, 1.0, 15, dtype=torch.float64).reshape(3, 5).requires_grad_()
        with use_backend(backend):
            p = turn(n_steps=3)
            made = (*functional.simulate_target(x, p, seed=1)[:2], *functional.simulate_transition(x, p, seed=1)[:2])
            made += (functional.reverse_steps(x, x.sin(), None, p, 3, 0, seed=1),)
            return torch.autograd.grad(sum(m.square().sum() for m in made), (x, WEIGHT))

    for found, exact in zip(gradients("cpp"), gradients("reference"), strict=True):
        torch.testing.assert_close(found, exact)


def test_new_values_of_a_network_are_taken_without_a_new_build() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    p = DriftProcess(lambda x, t: net(x), GaussianMixture.standard_normal(2), T=1.0, n_steps=4, compiled=True)
    x, built = torch.randn(9, 2), 0
    for _ in range(3):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1)
        found = p.simulate(x, seed=1)
        built = built or len(jit.generated())
        with use_backend("reference"):
            torch.testing.assert_close(found, p.simulate(x, seed=1), rtol=1e-4, atol=1e-5)
    assert len(jit.generated()) == built


def test_copies_go_their_own_way() -> None:
    p = well()
    x = torch.randn(4, 2)
    expected = p.simulate(x, seed=1)
    for other in (copy.deepcopy(p), pickle.loads(pickle.dumps(p))):
        assert torch.equal(other.simulate(x, seed=1), expected)


def test_never_and_always() -> None:
    x = torch.randn(4, 2)
    assert well(compiled=False).dynamics.compiled is None
    torch.testing.assert_close(well(compiled=False).simulate(x, seed=1), well().simulate(x, seed=1))
    for compiled in ("never", 1):
        with pytest.raises(ValueError, match="compiled: expected 'auto', True or False"):
            well(compiled=compiled)
    with pytest.raises(BackendError, match="on the CPU, found meta"):
        compile_drift(drifts.DoubleWell(), 2)(x.to("meta"), 0.0)


def test_it_is_one_graph_under_the_compiler() -> None:
    p, x = well(T=0.1), torch.randn(6, 2)
    operands = compile_drift(p.drift_function, 2).operands(x)
    assert operands is not None
    parameters, program = operands

    def run(x: Tensor, seed: Tensor) -> Tensor:
        rest = p.times, p.noise_std, 0.4, program, seed, 0, True, "cpp"
        made = torch.ops.fastndsm.drift_target(2.0 * x, parameters, torch.full((6,), 8), *rest)
        return made[0] - made[1]

    torch.testing.assert_close(
        torch.compile(run, fullgraph=True, backend="aot_eager")(x, torch.tensor(1)), run(x, torch.tensor(1))
    )


def test_a_whole_training_step_under_the_compiler_is_that_of_eager() -> None:
    """The path is drawn between two graphs; a parameter that the drift closes over may change from step to step."""
    weight = WEIGHT.detach().clone().requires_grad_()
    drift = lambda x, t: torch.tanh(x @ weight.to(x.dtype)) - x  # noqa: E731
    p = DriftProcess(drift, GaussianMixture.standard_normal(5), T=1.0, n_steps=4, compiled=True)
    loss, net = NDSMLoss(p), nn.Linear(5, 5)

    def training_step(x: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
        value = loss(lambda x, t: net(x) * t[:, None], x, seed=seed)
        return value, *torch.autograd.grad(value, tuple(net.parameters()))

    compiled = torch.compile(training_step, backend="aot_eager")
    for i in range(3):
        x, seed = torch.randn(9, 5), torch.tensor(i)
        for found, expected in zip(compiled(x, seed), training_step(x, seed), strict=True):
            torch.testing.assert_close(found, expected)
        with torch.no_grad():
            weight.add_(0.01)


# --- the drifts of the library -------------------------------------------------------------------------------------


DRIFTS: dict[str, tuple[Any, int]] = {
    "double well": (drifts.DoubleWell(1.5, 0.8), 3),
    "Mueller-Brown": (drifts.MuellerBrown(0.01), 2),
    "Lorenz": (drifts.Lorenz(), 3),
    "Lotka-Volterra": (drifts.LotkaVolterra(1.1, 0.4, 0.1, 0.4), 2),
    "Langevin": (drifts.Langevin(GaussianMixture.standard_normal(2).log_prob, 1.3), 2),
    "sum": (drifts.Sum(drifts.DoubleWell(), lambda x, t: -x), 2),
}


@pytest.mark.parametrize("name", DRIFTS)
def test_drifts_are_traced_and_right(name: str) -> None:
    drift, dim = DRIFTS[name]
    traced = compile_drift(drift, dim).traced(torch.float64)
    x, t = torch.randn(6, dim, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    program = traced.program
    torch.testing.assert_close(program.evaluate(program.value, x, t, traced.parameters(x)), drift(x, t))


def test_energies_and_their_drifts_agree() -> None:
    x, t = torch.randn(6, 2, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    own = drifts.Langevin(lambda x: -(((x * x - 0.64) ** 2).sum(1) * 1.5 / 4.0), math.sqrt(2.0))
    torch.testing.assert_close(drifts.DoubleWell(1.5, 0.8)(x, t), own(x, t))

    def mueller_brown(x: Tensor) -> Tensor:
        terms = [(x[:, 0] - p, x[:, 1] - q, h, a, b, c) for h, a, b, c, p, q in drifts.MUELLER_BROWN]
        return -0.01 * sum(h * (a * u * u + b * u * v + c * v * v).exp() for u, v, h, a, b, c in terms)

    torch.testing.assert_close(drifts.MuellerBrown(0.01)(x, t), drifts.Langevin(mueller_brown, math.sqrt(2.0))(x, t))
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 3\] for Lorenz"):
        drifts.Lorenz()(x, t)


# --- the cache -----------------------------------------------------------------------------------------------------


LOAD = """
import time, torch
from fastndsm import compile_drift
from fastndsm.jit import drift
import logging; logging.basicConfig(level=logging.INFO)
begin, used = time.perf_counter(), time.process_time()
traced = compile_drift(lambda x, t: t[:, None] * torch.sin(x) - x ** 3, 2).traced(torch.float32)
drift.load(traced.program, torch.float32)
print(time.process_time() - used)
"""


@pytest.mark.slow  # of the builder itself in test_jit.py
def test_eight_processes_build_once_and_a_ninth_not_at_all(
    tmp_path: Path, start_python: Callable[..., Any], run_python: Callable[..., str]
) -> None:
    started = [start_python(LOAD, FASTNDSM_CACHE_DIR=str(tmp_path)) for _ in range(8)]
    logs = [process.communicate(timeout=PATIENCE)[1] for process in started]
    assert all(process.returncode == 0 for process in started), logs
    assert sum("building fastndsm_drift (once" in log for log in logs) == 1
    assert len(list((tmp_path / "drifts").glob("*/libfastndsm_drift.so"))) == 1
    assert float(run_python(LOAD, FASTNDSM_CACHE_DIR=str(tmp_path))) < 1.0  # seconds of the processor: others may run


def test_generated_code_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    well().simulate(torch.zeros(1, 2), seed=1)
    assert cli.main(["doctor", "--sources"]) == 0
    out = capsys.readouterr().out
    assert "struct Program" in out and str(jit.generated()[0]) in out
