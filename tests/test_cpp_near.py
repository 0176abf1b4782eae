"""Trajectories among many components visit those near a sample alone; no bit of any value shows it.

The stand-alone driver runs each case twice, the second time without leaving a component out.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cpp_cases import assert_same, dtypes, kernels, kinds  # noqa: F401
from driver import COMPILER, DTYPES, QUICK, SEED, Case, Request, back, compiled_driver, run, trajectory
from helpers import normals, quietly
from test_cpp_screen import assert_agrees, outputs

from fastndsm import GaussianMixture, LangevinProcess, functional
from fastndsm.jit.toolchain import machine_flags
from fastndsm.testing import random_mixture

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not on PATH")
WHATS = ("transition", "antithetic target", "back with slope")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Components in `groups` places `spread` deviations apart, and half of `within` of that in one place.

    Deviations differ by up to `ratio`.
    """

    dim: int
    components: int
    groups: int
    spread: float
    within: float = 1.0
    ratio: float = 1.5
    offset: float = 0.0
    steps: int = 16

    def mixture(self, kind: str) -> GaussianMixture:
        m = random_mixture(kind, self.components, self.dim, ratio=self.ratio**2)
        places = normals(self.groups, self.dim, seed=1)[torch.arange(self.components) % self.groups]
        within = self.within if self.groups < self.components else 0.0
        means = self.spread * (places + 0.5 * within * normals(self.components, self.dim, seed=2))
        means[-1] = means[0]  # a copy but for its covariance and weight
        return GaussianMixture(m.weights, means + self.offset, m.covariances, kind)

    def case(self, kind: str, rows: int = 19) -> Case:
        """Draw rows in components, at their means, between them and far away; steps of a tenth of a deviation."""
        m = self.mixture(kind)
        i = torch.arange(rows) % self.components
        x = m.means[i] + torch.linspace(0.0, 1.0, rows)[:, None] * (m.means[(i + 1) % self.components] - m.means[i])
        x = x + 0.7 * normals(rows, self.dim, seed=3)
        x[::3] = m.means[i[::3]] + 0.7 / self.ratio * normals(len(x[::3]), self.dim, seed=4)
        x[4::5] += (torch.linspace(2.0, 60.0, len(x[4::5])) / math.sqrt(self.dim))[:, None]
        steps = torch.randint(1, self.steps + 1, (rows,), generator=torch.Generator().manual_seed(rows))
        noise_std = torch.linspace(0.05, 0.5, self.steps, dtype=torch.float64) / self.ratio
        drift_scale = 0.5 * noise_std.square()
        return m, x.float().double(), x, steps, drift_scale.float().double(), noise_std.float().double()


LAYOUTS = {
    "apart": Layout(16, 60, 60, 8.0),
    "mingled": Layout(16, 60, 60, 0.7),
    "in groups": Layout(8, 150, 12, 5.0),
    "plane and two": Layout(4, 80, 80, 2.0),
    "narrow and wide": Layout(12, 48, 48, 3.0, ratio=100.0),
    "narrow in wide": Layout(12, 48, 6, 3.0, within=0.0, ratio=30.0),
    "groups apart": Layout(6, 120, 12, 12.0, within=0.3),
    "far from zero": Layout(33, 200, 200, 8.0, offset=1e4),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled_driver((*QUICK, *machine_flags()), tmp_path_factory.mktemp("near") / "driver")


def requests(layout: Layout, kind: str, dtype: str, given: Case, **options: bool) -> list[Request]:
    shape = len(given[1]), layout.dim, layout.components, layout.steps
    ask: Callable[..., Request]
    found = []
    for what in WHATS:
        ask = back if what.startswith("back") else trajectory
        found.append(ask(kind, shape, what, dtype, given=given, **options))
    return found


@needs_compiler
@kinds
@layouts
def test_components_left_out_change_no_bit(layout: Layout, kind: str, driver: Path, tmp_path: Path) -> None:
    for dtype in DTYPES:
        given = layout.case(kind, rows=10)
        few, all_ = requests(layout, kind, dtype, given), requests(layout, kind, dtype, given, visits_all=True)
        done, answers = run(driver, [*few, *all_], tmp_path)
        assert done.returncode == 0, done.stderr
        for some, other in zip(answers[: len(few)], answers[len(few) :], strict=True):
            assert bool(some[0].isfinite().all())
            assert_same(tuple(some), tuple(other))


# --- the library -------------------------------------------------------------------------------------------------


@functools.cache
def process(layout: Layout, kind: str) -> LangevinProcess:
    return quietly(layout.mixture(kind), T=0.02 * layout.steps / layout.ratio**2, n_steps=layout.steps)


@dtypes
@kinds
@layouts
def test_agrees_with_the_reference(layout: Layout, kind: str, dtype: torch.dtype) -> None:
    assert_agrees(process(layout, kind), layout.case(kind)[1], dtype)


@dtypes
@kinds
@layouts
def test_neighbours_threads_and_earlier_calls_change_no_bit(layout: Layout, kind: str, dtype: torch.dtype) -> None:
    p, x = process(layout, kind), layout.case(kind)[1].to(dtype)
    mixed = layout.case(kind)[3]
    for steps in (None, mixed):
        whole = outputs(p, x, steps)
        for i in (0, 3, 4, 18):
            alone = outputs(p, x[i : i + 1], None if steps is None else steps[i : i + 1], first_path=i)
            assert_same(alone, tuple(t[i : i + 1] for t in whole))
        torch.set_num_threads(2)
        assert_same(outputs(p, x, steps), whole)
        torch.set_num_threads(1)


def with_rows_that_overflow(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x with two such rows, and which rows [B] are as they were."""
    spoilt, good = x.clone(), torch.ones(len(x), dtype=torch.bool)
    spoilt[7], spoilt[12, 3] = torch.finfo(x.dtype).max / 4, torch.finfo(x.dtype).max ** 0.6
    good[[7, 12]] = False
    return spoilt, good


@dtypes
@kinds
def test_rows_that_overflow_change_no_bit_of_others(kind: str, dtype: torch.dtype) -> None:
    layout = LAYOUTS["apart"]
    p, x = process(layout, kind), layout.case(kind)[1].to(dtype)
    spoilt, good = with_rows_that_overflow(x)
    found = outputs(p, spoilt)
    assert_same(tuple(t[good] for t in found), tuple(t[good] for t in outputs(p, x)))
    assert not torch.equal(found[0][~good], outputs(p, x)[0][~good])


@kinds
def test_parameters_written_in_place_are_seen(kind: str) -> None:
    """Require that what is kept from call to call goes by the parameters' values."""
    layout = LAYOUTS["in groups"]
    p, x = process(layout, kind), layout.case(kind)[1]
    operands = p.reference.operands(torch.float64)
    before = outputs(p, x)
    means = operands.means.clone()
    try:
        operands.means.add_(1.0)
        assert_same(
            outputs(
                quietly(
                    GaussianMixture(p.reference.weights, means + 1.0, p.reference.covariances, kind),
                    T=p.T,
                    n_steps=p.n_steps,
                ),
                x,
            ),
            outputs(p, x),
        )
        assert not torch.equal(outputs(p, x)[0], before[0])
    finally:
        operands.means.copy_(means)
    assert_same(outputs(p, x), before)


# --- single evaluations ------------------------------------------------------------------------------------------

SIEVED = {
    "apart": Layout(8, 1000, 1000, 6.0),
    "mingled": Layout(32, 600, 600, 0.7),
    "in groups": Layout(16, 700, 12, 5.0),
    "narrow and wide": Layout(12, 400, 400, 3.0, ratio=30.0),
    "far from zero": Layout(33, 500, 500, 8.0, offset=1e3),
}
sieved = pytest.mark.parametrize("layout", SIEVED.values(), ids=list(SIEVED))


def scores(layout: Layout, kind: str, x: torch.Tensor, backend: str = "cpp") -> tuple[torch.Tensor, torch.Tensor]:
    m = process(layout, kind).reference
    v = torch.linspace(-1.0, 1.0, layout.dim, dtype=x.dtype).expand_as(x)
    return functional.mixture_score(x, m, backend=backend), functional.mixture_hvp(x, v, m, backend=backend)


@dtypes
@kinds
@sieved
def test_scores_agree_with_the_reference(layout: Layout, kind: str, dtype: torch.dtype) -> None:
    """Near components, between them and far away, in the rounding of logits that cancel far from zero."""
    x = layout.case(kind)[1].to(dtype)
    exact = scores(layout, kind, x.double(), "reference")
    bounds = {torch.float32: (2e-5, 1e-3), torch.float64: (5e-14, 5e-12)}[dtype]
    for found, expected, bound in zip(scores(layout, kind, x), exact, bounds, strict=True):
        error = (found.double() - expected).abs().amax(1) / expected.abs().amax(1)
        assert float(error.max()) < bound * (1.0 + layout.offset / 100.0)


@dtypes
@kinds
@sieved
def test_neighbours_and_threads_change_no_bit_of_a_score(layout: Layout, kind: str, dtype: torch.dtype) -> None:
    x = layout.case(kind, rows=70)[1].to(dtype)
    whole = scores(layout, kind, x)
    for i in (0, 3, 17, 69):
        assert_same(scores(layout, kind, x[i : i + 1]), tuple(t[i : i + 1] for t in whole))
    torch.set_num_threads(2)
    assert_same(scores(layout, kind, x), whole)
    torch.set_num_threads(1)


def assert_rows_that_overflow_or_are_nan_alone(
    evaluate: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], x: torch.Tensor
) -> None:
    """Require that such rows change no bit of others, and that NaN stays NaN."""
    spoilt, good = with_rows_that_overflow(x)
    spoilt[15, 1], good[15] = math.nan, False
    for found, clean in zip(evaluate(spoilt), evaluate(x), strict=True):
        assert_same((found[good],), (clean[good],))
        assert bool(found[15].isnan().all())


@dtypes
@kinds
def test_scores_of_rows_that_overflow_or_are_nan(kind: str, dtype: torch.dtype) -> None:
    layout = SIEVED["apart"]
    assert_rows_that_overflow_or_are_nan_alone(functools.partial(scores, layout, kind), layout.case(kind)[1].to(dtype))


# --- single evaluations under noise of each row's own ------------------------------------------------------------

WIDENED = SIEVED | {"in passes": Layout(3, 9000, 9000, 2.0)}
widened = pytest.mark.parametrize("layout", WIDENED.values(), ids=list(WIDENED))
noises = pytest.mark.parametrize("noise", [0.0, 0.1, "mixed"])


def variances(noise: float | str, x: torch.Tensor) -> torch.Tensor:
    """Return none, the same for all rows, or from none up to a thousand times a component's in turn."""
    if not isinstance(noise, str):
        return x.new_full(x.shape[:1], noise)
    powers = torch.arange(len(x), dtype=x.dtype, device=x.device) % 8.0
    return torch.where(powers == 0.0, 0.0, 10.0 ** (powers - 4.0))


def noised(
    layout: Layout, kind: str, x: torch.Tensor, variance: torch.Tensor, backend: str = "cpp"
) -> tuple[torch.Tensor, torch.Tensor]:
    m = process(layout, kind).reference
    return (
        functional.noised_score(x, variance, m, backend=backend),
        functional.noised_log_prob(x, variance, m, backend=backend),
    )


@dtypes
@kinds
@widened
@noises
def test_noised_scores_agree_with_the_reference(
    layout: Layout, kind: str, dtype: torch.dtype, noise: float | str
) -> None:
    x = layout.case(kind)[1].to(dtype)
    variance = variances(noise, x)
    exact = noised(layout, kind, x.double(), variance.double(), "reference")
    bound = {torch.float32: 5e-5, torch.float64: 2e-13}[dtype] * (1.0 + layout.offset / 50.0)
    for found, expected in zip(noised(layout, kind, x, variance), exact, strict=True):
        error = (found.double() - expected).reshape(len(x), -1).abs().amax(1)
        error = error / expected.reshape(len(x), -1).abs().amax(1).clamp(min=1.0)
        assert float(error.max()) < bound


@dtypes
@kinds
@widened
@noises
def test_neighbours_and_threads_change_no_bit_of_a_noised_score(
    layout: Layout, kind: str, dtype: torch.dtype, noise: float | str
) -> None:
    x = layout.case(kind, rows=70)[1].to(dtype)
    variance = variances(noise, x)
    whole = noised(layout, kind, x, variance)
    for i in (0, 3, 17, 69):
        assert_same(noised(layout, kind, x[i : i + 1], variance[i : i + 1]), tuple(t[i : i + 1] for t in whole))
    order = variance.argsort()  # tiles of little noise leave components out, others none
    assert_same(noised(layout, kind, x[order], variance[order]), tuple(t[order] for t in whole))
    torch.set_num_threads(2)
    assert_same(noised(layout, kind, x, variance), whole)
    torch.set_num_threads(1)


@dtypes
@kinds
def test_noised_scores_of_rows_that_overflow_or_are_nan(kind: str, dtype: torch.dtype) -> None:
    layout = SIEVED["apart"]
    x = layout.case(kind)[1].to(dtype)
    evaluate = functools.partial(noised, layout, kind, variance=variances("mixed", x))
    assert_rows_that_overflow_or_are_nan_alone(evaluate, x)


def test_a_thousand_components_cost_little() -> None:
    """Far apart in 32 dimensions, 1,000 cost 0.9 to 1.5 times as much as 10; 50 times as much if all were visited."""
    seconds = []
    for components in (10, 1000):
        layout = Layout(32, components, components, 8.0)
        p = quietly(layout.mixture("spherical"), n_steps=50)
        x = p.reference.sample(256, seed=1).float()
        times = []
        for _ in range(7):
            begin = time.process_time()
            functional.simulate_target(x, p, seed=SEED, backend="cpp")
            times.append(time.process_time() - begin)
        seconds.append(min(times))
    assert seconds[1] < 3.0 * seconds[0]
