"""Noising processes: their tables, Euler-Maruyama against a plain loop, and what draws promise."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers import (
    COVARIANCE_TYPES,
    full_covariances,
    normals,
    on_one_backend,  # noqa: F401
    quietly,
    random_mixture,
    torch_mixture,
    z_score,
)
from torch import Tensor

from fastndsm import (
    DriftProcess,
    GaussianMixture,
    LangevinProcess,
    NDSMLoss,
    OUProcess,
    functional,
    log_likelihood,
    sample,
)
from fastndsm.functional import philox_normal
from fastndsm.process import NoisingProcess

all_types = pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
UNEVEN = [0.0, 0.003, 0.01, 0.012, 0.02]


def swirl(x: Tensor, t: Tensor) -> Tensor:
    """Return a drift that is no gradient and depends on time."""
    turned = torch.cat([x[:, 1:], -x[:, :1]], dim=1)
    return -0.5 * x + t[:, None] * torch.sin(turned)


def swirl_process(dim: int = 2, **options: object) -> DriftProcess:
    prior = GaussianMixture.standard_normal(dim)
    return DriftProcess(swirl, prior, **{"T": 1.0, "n_steps": 5, "rate": 0.5, **options})  # type: ignore[arg-type]


# --- the grid and its tables -----------------------------------------


def test_tables_of_a_uniform_grid() -> None:
    p = LangevinProcess(random_mixture("diag", 3, 2), T=0.5, n_steps=50, sigma=0.7)
    assert p.times.dtype == torch.float64 and p.n_steps == 50 and p.T == 0.5
    torch.testing.assert_close(p.times, torch.linspace(0, 0.5, 51, dtype=torch.float64))
    torch.testing.assert_close(p.drift_scale, torch.full((50,), 0.5 * 0.49 * 0.01, dtype=torch.float64))
    torch.testing.assert_close(p.noise_std, torch.full((50,), 0.7 * 0.1, dtype=torch.float64))


def test_tables_of_a_quadratic_grid_and_a_sigma_of_time() -> None:
    p = LangevinProcess(
        random_mixture("full", 3, 2, ratio=4.0), T=0.2, n_steps=40, sigma=lambda t: 1.0 + t, grid="quadratic"
    )
    times = 0.2 * (np.arange(41) / 40) ** 2
    dt, sigma = np.diff(times), 1.0 + times[:-1]
    np.testing.assert_allclose(p.times.numpy(), times, rtol=1e-12)
    np.testing.assert_allclose(p.drift_scale.numpy(), 0.5 * sigma**2 * dt, rtol=1e-12)
    np.testing.assert_allclose(p.noise_std.numpy(), sigma * np.sqrt(dt), rtol=1e-12)


# N, and how many of the steps are quadratic; 750 of the longest make up T
STIFF = [(None, 50, 776), (760, 19, 760), (900, 299, 900), (1499, 1497, 1499), (2000, 2000, 2000)]


@pytest.mark.parametrize(("n_steps", "quadratic", "found"), STIFF)
def test_a_stiff_grid_is_quadratic_and_then_uniform(n_steps: int | None, quadratic: int, found: int) -> None:
    m = GaussianMixture([0.5, 0.5], [[0.0], [1.0]], [0.01, 2.0], "spherical")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # q <= 0.2
        p = LangevinProcess(m, T=0.75, n_steps=n_steps, sigma=2.0, grid="stiff")
    assert p.times[0] == 0.0 and p.T == 0.75 and p.n_steps == found
    dt = p.times.diff()
    uniform = np.full(found - quadratic, 2 * quadratic + 1)  # the next of c, 3 c, 5 c, ...
    np.testing.assert_allclose(dt / dt[0], np.append(2 * np.arange(quadratic) + 1, uniform), rtol=1e-6)
    longest = 2 * 0.2 * 0.01 / 2.0**2
    assert n_steps == 2000 or float(dt.max()) == pytest.approx(longest, rel=2e-3)


def test_a_stiff_grid_of_a_gentle_reference_is_quadratic() -> None:
    m = GaussianMixture([0.5, 0.5], [[0.0], [1.0]], [1.0, 2.0], "spherical")
    p = LangevinProcess(m, grid="stiff")
    assert p.n_steps == 50 and p.T == pytest.approx(6.0)
    np.testing.assert_allclose(p.times, 6.0 * (np.arange(51) / 50) ** 2, rtol=1e-12)
    q = copy.deepcopy(p)
    assert torch.equal(q.times, p.times) and p.extra_repr() == "T=6, n_steps=50"


def test_a_grid_of_times_sets_the_horizon() -> None:
    m = random_mixture("spherical", 3, 2)
    for grid in (UNEVEN, torch.tensor(UNEVEN, dtype=torch.float64), np.array(UNEVEN)):
        p = LangevinProcess(m, grid=grid)
        assert p.T == UNEVEN[-1] and p.n_steps == 4
        assert p.times.tolist() == UNEVEN


def test_default_horizon_is_three_relaxation_times_of_the_widest_component() -> None:
    m = GaussianMixture([0.5, 0.5], [[0.0], [1.0]], [0.3, 2.0], "spherical")
    assert LangevinProcess(m, n_steps=200).T == pytest.approx(6.0)
    assert LangevinProcess(m, n_steps=200, sigma=2.0).T == pytest.approx(1.5)
    assert LangevinProcess(m, n_steps=200, sigma=lambda t: 2.0 + 0 * t).T == pytest.approx(1.5)


@all_types
def test_noise_variance_follows_its_recursion(covariance_type: str) -> None:
    m = random_mixture(covariance_type, 3, 2)
    p = LangevinProcess(m, grid=UNEVEN, sigma=lambda t: 1.0 + 20 * t)
    slowest = 1.0 / float(torch.linalg.eigvalsh(full_covariances(m)).amax())
    v = 0.0
    for n in range(4):
        v = float(p.noise_std[n]) ** 2 + (1.0 - float(p.drift_scale[n]) * slowest) ** 2 * v
        assert float(p.noise_variance[n]) == pytest.approx(v, rel=1e-12)


def test_variance_at_is_linear_between_grid_points() -> None:
    p = LangevinProcess(random_mixture("spherical", 3, 2), grid=UNEVEN)
    v = p.noise_variance
    torch.testing.assert_close(p.variance_at(p.times[1:]), v, rtol=0, atol=0)
    middle = p.variance_at(torch.tensor([0.0, 0.001, 0.0065, 0.016, 1.0], dtype=torch.float64))
    expected = torch.stack([v[0], v[0], (v[0] + v[1]) / 2, (v[2] + v[3]) / 2, v[3]])
    torch.testing.assert_close(middle, expected, rtol=1e-12, atol=0)
    single = LangevinProcess(random_mixture("spherical", 3, 2), T=0.01, n_steps=1)
    torch.testing.assert_close(
        single.variance_at(torch.tensor([0.0, 0.01, 2.0])), single.noise_variance.float().expand(3)
    )


def test_drift() -> None:
    m = random_mixture("full", 3, 2, event_shape=(1, 2))
    x = normals(5, 2)
    p = LangevinProcess(m, T=0.1, sigma=lambda t: 1.0 + t)
    expected = 0.5 * torch.tensor([1.0, 1.1, 1.2, 1.3, 1.4]).double()[:, None] ** 2 * m.score(x)
    t = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    torch.testing.assert_close(p.drift(x, t), expected)
    torch.testing.assert_close(p.drift(x.reshape(5, 1, 2), t), expected.reshape(5, 1, 2))
    torch.testing.assert_close(p.drift(x, 0.2), 0.5 * 1.44 * m.score(x))
    torch.testing.assert_close(swirl_process().drift(x, 0.5), swirl(x, torch.full((5,), 0.5).double()))


# --- the simulator against a plain loop -----------------------------------------


def euler_maruyama(
    p: NoisingProcess, score: object, x0: Tensor, steps: int, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_n, mean_{n-1}, z_{n-1} by the formulas."""
    x = x0
    for n in range(steps):
        z = philox_normal(len(x0), x0.shape[1], seed=seed, step=n, dtype=torch.float64)
        dt = float(p.times[n + 1] - p.times[n])
        sigma = float(p.noise_std[n]) / math.sqrt(dt)
        mean = x + 0.5 * sigma**2 * dt * score(x)  # type: ignore[operator]
        x = mean + sigma * math.sqrt(dt) * z
    return x, mean, z


@all_types
@pytest.mark.parametrize(("rows", "dim", "n_components"), [(1, 1, 1), (31, 1, 4), (33, 3, 1), (31, 5, 7)])
def test_simulation_follows_the_formulas(covariance_type: str, rows: int, dim: int, n_components: int) -> None:
    m = random_mixture(covariance_type, n_components, dim)
    p = quietly(m, grid=UNEVEN, sigma=lambda t: 1.0 + 10 * t)
    x0 = normals(rows, dim)

    def score(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(torch_mixture(m).log_prob(x).sum(), x)[0]

    for step in (0, 1, 3):
        x, mean, z = euler_maruyama(p, score, x0, step + 1, seed=7)
        drawn = p.transition(x0, step, seed=7)
        torch.testing.assert_close(drawn.mean, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(drawn.x, x, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(drawn.noise, z, rtol=1e-13, atol=1e-13)
        assert torch.equal(drawn.std, p.noise_std[step].expand(rows))
        assert torch.equal(drawn.t, p.times[step + 1].expand(rows))
        assert torch.equal(drawn.step, torch.full((rows,), step))
        torch.testing.assert_close(p.simulate(x0, step + 1, seed=7), x, rtol=1e-9, atol=1e-9)
    assert torch.equal(p.simulate(x0, 0, seed=7), x0)
    assert torch.equal(p.simulate(x0, seed=7), p.simulate(x0, 4, seed=7))


PROCESSES = [
    *(
        pytest.param(lambda kind=kind: quietly(random_mixture(kind, 4, 2), grid=UNEVEN, sigma=3.0), id=kind)
        for kind in COVARIANCE_TYPES
    ),
    pytest.param(swirl_process, id="drift"),
    pytest.param(lambda: OUProcess(2, T=2.0, n_steps=10), id="ou"),
]
all_processes = pytest.mark.parametrize("build", PROCESSES)


@all_processes
def test_each_sample_stops_at_its_own_step(build: object) -> None:
    p: NoisingProcess = build()  # type: ignore[operator]
    x0 = normals(7, 2)
    steps = torch.tensor([3, 0, 4, 1, 1, 2, 0])
    whole = p.simulate(x0, steps, seed=2)
    for row, n in enumerate(steps.tolist()):
        torch.testing.assert_close(whole[row], p.simulate(x0, n, seed=2)[row], rtol=1e-13, atol=1e-13)
    n = steps.clamp(max=p.n_steps - 1)
    drawn, noised = p.transition(x0, n, seed=2), p.noised(x0, n, seed=2)
    for row, step in enumerate(n.tolist()):
        one, other = p.transition(x0, step, seed=2), p.noised(x0, step, seed=2)
        for found, expected in zip((*drawn, *noised), (*one, *other), strict=True):
            torch.testing.assert_close(found[row], expected[row], rtol=1e-12, atol=1e-12)


@all_processes
def test_a_path_does_not_depend_on_its_batch(build: object) -> None:
    p: NoisingProcess = build()  # type: ignore[operator]
    x0 = normals(33, 2)
    first = 2**32 - 11
    whole = p.noised(x0, seed=4, first_path=first)
    halves = [p.noised(x0[:12], seed=4, first_path=first), p.noised(x0[12:], seed=4, first_path=first + 12)]
    for k, found in enumerate(whole):
        torch.testing.assert_close(torch.cat([half[k] for half in halves]), found, rtol=1e-12, atol=1e-12)
    assert torch.equal(torch.cat([half.step for half in halves]), whole.step)


@all_processes
@pytest.mark.parametrize("step", [0, 2, None], ids=["first", "third", "drawn"])
def test_noised_and_transition_give_the_same_x(build: object, step: int | None) -> None:
    p: NoisingProcess = build()  # type: ignore[operator]
    for dtype in (torch.float32, torch.float64):
        x0 = normals(33, 2).to(dtype)
        drawn, noised = p.transition(x0, step, seed=3), p.noised(x0, step, seed=3)
        assert torch.equal(noised.x, drawn.x)
        assert torch.equal(noised.t, drawn.t) and torch.equal(noised.step, drawn.step)
        assert torch.equal(p.simulate(x0, drawn.step + 1, seed=3), drawn.x)
        assert noised.x.dtype == noised.target.dtype == noised.variance.dtype == noised.t.dtype == dtype
        std = drawn.std[:, None]
        torch.testing.assert_close(drawn.x, drawn.mean + std * drawn.noise, rtol=1e-6, atol=1e-6)


@all_processes
def test_antithetic_layout(build: object) -> None:
    p: NoisingProcess = build()  # type: ignore[operator]
    x0 = normals(9, 2)
    plain, pair = p.transition(x0, 2, seed=3), p.transition(x0, 2, seed=3, antithetic=True)
    for found, expected in zip(pair, plain, strict=True):
        assert torch.equal(found[:9], expected)
    assert torch.equal(pair.noise[9:], -plain.noise)
    assert torch.equal(pair.mean[9:], plain.mean)
    torch.testing.assert_close(pair.x[9:], 2 * plain.mean - plain.x)
    for name in ("std", "t", "step"):
        assert torch.equal(getattr(pair, name)[9:], getattr(plain, name))

    single, paths = p.noised(x0, 2, seed=3), p.noised(x0, 2, seed=3, antithetic=True)
    for found, expected in zip(paths, single, strict=True):
        torch.testing.assert_close(found[:9], expected, rtol=1e-13, atol=1e-13)
    assert torch.equal(paths.variance[9:], paths.variance[:9])
    assert torch.equal(paths.t[9:], single.t) and torch.equal(paths.step[9:], single.step)
    # the first step of the antithetic path: x_1 = mean_0 - s_0 z_0
    one = p.transition(x0, 0, seed=3)
    other = p.noised(x0, 0, seed=3, antithetic=True).x[9:]
    torch.testing.assert_close(other, one.mean - one.std[:, None] * one.noise, rtol=1e-13, atol=1e-13)
    assert not torch.allclose(paths.x[9:], pair.x[9:])  # whole paths are antithetic, not the last step alone


def test_images_keep_their_shape_and_input_is_left_alone() -> None:
    m = random_mixture("diag", 3, 6, event_shape=(1, 2, 3))
    p = LangevinProcess(m, grid=UNEVEN)
    x0 = normals(5, 6).reshape(5, 1, 2, 3)
    before = x0.clone()
    flat = p.noised(x0.reshape(5, 6), 2, seed=1)
    noised = p.noised(x0, 2, seed=1)
    assert noised.x.shape == noised.target.shape == noised.variance.shape == x0.shape
    for found, expected in zip(noised[:3], flat[:3], strict=True):
        assert torch.equal(found.reshape(5, 6), expected)
    strided = x0.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    assert not strided.is_contiguous()
    assert torch.equal(p.noised(strided, 2, seed=1).x, noised.x)
    assert torch.equal(p.transition(x0, 2, seed=1).x, noised.x)
    assert torch.equal(x0, before)


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_variance_of_the_target_is_scalar_for_spherical_mixtures(covariance_type: str) -> None:
    p = LangevinProcess(random_mixture(covariance_type, 3, 2), grid=UNEVEN)
    shape = (5,) if covariance_type == "spherical" else (5, 2)
    assert p.noised(normals(5, 2), 2, seed=0).variance.shape == shape


# --- drawn steps -----------------------------------------


def test_drawn_steps_are_uniform_and_belong_to_the_path() -> None:
    from scipy.stats import chisquare

    p = OUProcess(2, T=1.0, n_steps=13)
    steps = p.draw_steps(130_000, seed=1)
    counts = torch.bincount(steps, minlength=13)
    assert len(counts) == 13 and chisquare(counts.numpy()).pvalue > 1e-3
    parts = [p.draw_steps(50_000, seed=1), p.draw_steps(80_000, seed=1, first_path=50_000)]
    assert torch.equal(torch.cat(parts), steps)
    assert torch.equal(p.transition(normals(50, 2), seed=1).step, steps[:50])
    assert not torch.equal(p.draw_steps(50, seed=2), steps[:50])
    # independent of the noise of the same path
    z = philox_normal(130_000, 1, seed=1, dtype=torch.float64)[:, 0]
    assert abs(z_score((steps.double() - 6.0) * z)) < 4.0


def test_manual_seed_governs_draws_without_a_seed() -> None:
    p = OUProcess(2, T=1.0, n_steps=13)
    x0 = normals(9, 2)
    torch.manual_seed(5)
    first, second = p.noised(x0), p.noised(x0)
    torch.manual_seed(5)
    assert torch.equal(p.noised(x0).x, first.x)
    assert not torch.equal(first.x, second.x) and not torch.equal(first.step, second.step)


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: LangevinProcess(random_mixture("full", 3, 2), T=0.01, n_steps=1), id="langevin"),
        pytest.param(lambda: swirl_process(n_steps=1, T=0.1), id="drift"),
        pytest.param(lambda: OUProcess(2, T=0.1, n_steps=1), id="ou"),
    ],
)
def test_a_single_step(build: object) -> None:
    p: NoisingProcess = build()  # type: ignore[operator]
    x0 = normals(5, 2)
    assert torch.equal(p.draw_steps(5, seed=0), torch.zeros(5, dtype=torch.int64))
    noised, drawn = p.noised(x0, seed=0), p.transition(x0, seed=0)
    assert torch.equal(noised.x, drawn.x)
    torch.testing.assert_close(noised.target, -drawn.noise / drawn.std[:, None])  # plain, on the first step
    net = torch.nn.Linear(2, 2).double()
    for estimator in ("path", "plain", "control_variate"):
        loss = NDSMLoss(p, estimator)(lambda x, t: net(x), x0, seed=0)
        assert bool(torch.isfinite(loss))


# --- other drifts -----------------------------------------


@pytest.mark.parametrize("n_components", [1, 3])
def test_a_drift_of_the_mixture_is_the_langevin_process(n_components: int) -> None:
    m = random_mixture("spherical", n_components, 2)
    langevin = LangevinProcess(m, T=0.05, n_steps=5)
    rate = 0.5 / float(m.covariances[0])
    drift = DriftProcess(lambda x, t: 0.5 * m.score(x), m, T=0.05, n_steps=5, rate=rate)
    x0 = normals(9, 2)
    for step in (0, 4, None):
        ours, theirs = drift.transition(x0, step, seed=1), langevin.transition(x0, step, seed=1)
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(drift.simulate(x0, 3, seed=1), langevin.simulate(x0, 3, seed=1))
        if n_components == 1:  # then the rate p is the same too, and with it the target
            ours, theirs = drift.noised(x0, step, seed=1), langevin.noised(x0, step, seed=1)
            for found, expected in zip(ours, theirs, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_drift_sees_the_shape_of_the_data_and_the_time() -> None:
    prior = random_mixture("diag", 2, 6, event_shape=(1, 2, 3))
    seen = []

    def drift(x: Tensor, t: Tensor) -> Tensor:
        seen.append((tuple(x.shape), float(t[0])))
        return -x.flip(-1) * t.reshape(-1, 1, 1, 1)

    p = DriftProcess(drift, prior, T=0.4, n_steps=2, rate=0.1)
    assert p.event_shape == (1, 2, 3)
    noised = p.noised(normals(5, 6).reshape(5, 1, 2, 3), 1, seed=0)
    assert noised.x.shape == noised.target.shape == (5, 1, 2, 3) and noised.variance.shape == (5,)
    assert seen == [((5, 1, 2, 3), 0.0), ((5, 1, 2, 3), pytest.approx(0.2))]


def test_moved_to_float32_a_process_still_runs() -> None:
    p = LangevinProcess(random_mixture("full", 3, 2), grid=UNEVEN).to(torch.float32)
    noised = p.noised(normals(5, 2), 2, seed=0)
    assert noised.x.dtype == torch.float64 and bool(torch.isfinite(noised.target).all())


def far(dim: int, mean: float) -> GaussianMixture:
    return GaussianMixture([0.5, 0.5], [[0.0] * dim, [0.0] * (dim - 1) + [-mean]], [1.0, 2.0], "spherical")


FAR = {
    "simulate": ("x0", lambda p, x: p.simulate(x, seed=0)),
    "transition": ("x0", lambda p, x: p.transition(x, seed=0)),
    "noised": ("x0", lambda p, x: p.noised(x, seed=0)),
    "functional.simulate": ("x0", lambda p, x: functional.simulate(x, p, seed=0)),
    "functional.simulate_transition": ("x0", lambda p, x: functional.simulate_transition(x, p, seed=0)),
    "functional.simulate_target": ("x0", lambda p, x: functional.simulate_target(x, p, seed=0)),
    "reverse_step": ("y", lambda p, x: functional.reverse_step(x, x, p, 1, seed=0)),
    "loss": ("x0", lambda p, x: NDSMLoss(p)(lambda x, t: -x, x)),
    "sample": ("dtype", lambda p, x: sample(lambda x, t: -x, p, 3, dtype=x.dtype, seed=0)),
    "log_likelihood": ("x", lambda p, x: log_likelihood(lambda x, t: -x, p, x)),
}


@pytest.mark.parametrize("call", FAR)
@pytest.mark.parametrize("drift", [False, True], ids=["mixture", "callable"])
def test_steps_that_float32_loses_beside_the_means_are_refused(call: str, drift: bool) -> None:
    name, function = FAR[call]

    def process(mean: float) -> NoisingProcess:
        mixture = far(2, mean)
        if drift:
            return DriftProcess(lambda x, t: mixture.score(x), mixture, T=3.0, n_steps=12)
        return LangevinProcess(mixture, T=3.0, n_steps=12)

    x = torch.zeros(3, 2)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        shown = torch.float32 if call in ("sample", "log_likelihood") else dtype
        with pytest.raises(ValueError, match=rf"^{name}: expected torch.float64 .* found {shown}; .*Standardizer"):
            function(process(2.0**22), x.to(dtype))  # 0.5 apart, noise_std 0.5
    function(process(2.0**22), x.double())
    function(process(2.0**21), x)  # 0.25 apart


def test_whether_float32_will_do_follows_what_is_loaded_and_moved() -> None:
    near, away = (LangevinProcess(far(2, mean), T=3.0, n_steps=12) for mean in (1.0, 1e8))
    away.to("meta").check_dtype("x0", torch.float64)
    with pytest.raises(ValueError, match=r"means reach 1e[+]08"):
        away.check_dtype("x0", torch.float32)
    near.load_state_dict(LangevinProcess(far(2, 1e7), T=3.0, n_steps=12).state_dict())
    with pytest.raises(ValueError, match=r"means reach 1e[+]07"):
        pickle.loads(pickle.dumps(near)).check_dtype("x0", torch.float32)
