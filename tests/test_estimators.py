"""Every estimator against its Stein reference, and against copies broken on purpose.

For any smooth field s the objective with weight 1 equals E[1/2 |s|^2 + div s](x_{n+1}) (path: 1/2 |s|^2 - s . target).
Both sides are taken on the same samples, so that their difference has a small variance: a paired test.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
from helpers import (
    COVARIANCE_TYPES,
    full_covariances,
    generator,
    on_one_backend,  # noqa: F401
    random_mixture,
    z_score,
)
from torch import Tensor

from fastndsm import DriftProcess, GaussianMixture, LangevinProcess, NDSMLoss, OUProcess
from fastndsm.functional import philox_normal
from fastndsm.process import Noised, NoisingProcess, Transition
from fastndsm.reference.mixture import heaviest_component

N_SAMPLES = 200_000


class Field:
    """s(x) = A tanh(B x + c): smooth, nonlinear, no gradient of a function, with its divergence in closed form.

    It varies where the noised samples are, about the components, and as fast as their noise is wide: a sharp test.
    """

    def __init__(self, p: NoisingProcess) -> None:
        g = generator(p.dim)
        centres = p.prior.means[torch.arange(6) % p.prior.n_components]
        self.b = torch.randn(6, p.dim, generator=g, dtype=torch.float64) / float(p.noise_variance[-1]) ** 0.5
        self.c = 0.5 * torch.randn(6, generator=g, dtype=torch.float64) - (self.b * centres).sum(1)
        # A close to B^T, so that the divergence does not average out.
        self.a = torch.nn.functional.normalize(self.b.T, dim=0)
        self.a = self.a + 0.5 * torch.randn(p.dim, 6, generator=g, dtype=torch.float64)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return (x @ self.b.T + self.c).tanh() @ self.a.T

    def divergence(self, x: Tensor) -> Tensor:
        slope = 1.0 - (x @ self.b.T + self.c).tanh().square()
        return slope @ (self.a * self.b.T).sum(0)


def langevin(covariance_type: str, dim: int, grid: list[float], ratio: float, sigma: object = 1.0) -> LangevinProcess:
    """Build a process with steps as large as it allows (q < 1): the identity is exact at any dt."""
    mixture = random_mixture(covariance_type, 3, dim, ratio=ratio)
    precision = 1.0 / float(mixture.covariance_eigenvalues()[0].min())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return LangevinProcess(mixture, grid=(torch.tensor(grid) / precision).tolist(), sigma=sigma)  # type: ignore[arg-type]


def swirl(x: Tensor, t: Tensor) -> Tensor:
    turned = torch.cat([x[:, 1:], -x[:, :1]], dim=1)
    return -x + (2.0 + t[:, None]) * torch.sin(2.0 * turned)


def standard_drift() -> DriftProcess:
    return DriftProcess(
        swirl,
        GaussianMixture.standard_normal(2),
        grid=[0.0, 0.1, 0.3, 0.35, 0.55, 0.6],
        sigma=lambda t: 1.0 + t,
        rate=1.0,
    )


UNEVEN = [0.0, 0.5, 0.6, 1.8, 2.0, 3.5]  # in units of the narrowest variance
PROCESSES: dict[str, Callable[[], NoisingProcess]] = {
    "spherical d=1": lambda: langevin("spherical", 1, UNEVEN, ratio=100.0),
    "diag d=2, very unequal": lambda: langevin("diag", 2, UNEVEN, ratio=1000.0),
    "tied d=2": lambda: langevin("tied", 2, UNEVEN, ratio=30.0),
    "tied d=3, very unequal": lambda: langevin("tied", 3, UNEVEN, ratio=200.0),
    "full d=3, very unequal": lambda: langevin("full", 3, UNEVEN, ratio=1000.0),
    "full d=2, sigma of time": lambda: langevin(
        "full", 2, UNEVEN, ratio=30.0, sigma=lambda t: 0.7 + 0.1 * math.cos(50 * t)
    ),
    "drift d=2": standard_drift,
}
ESTIMATORS = {
    "plain": {"estimator": "plain"},
    "plain antithetic": {"estimator": "plain", "antithetic": True},
    "control variate": {"estimator": "control_variate"},
    "path": {"estimator": "path"},
    "path antithetic": {"estimator": "path", "antithetic": True},
}
STEPS = {"first": 0, "middle": 2, "last": 4}


@cache
def process(name: str) -> NoisingProcess:
    return PROCESSES[name]()


def data(name: str) -> Tensor:
    """Draw points about the components, in two tight clusters each: any law will do for x_0."""
    p = process(name)
    mixture = p.prior
    g = generator(7)
    k = torch.randint(mixture.n_components, (N_SAMPLES,), generator=g)
    side = torch.randint(2, (N_SAMPLES, 1), generator=g) * 2.0 - 1.0
    width = mixture.covariance_eigenvalues()[0].min() ** 0.5
    return mixture.means[k] + width * (side + 0.3 * torch.randn(N_SAMPLES, p.dim, generator=g, dtype=torch.float64))


def stein_difference(p: NoisingProcess, losses: Tensor, drawn: Noised | Transition, antithetic: bool) -> Tensor:
    """Return per-sample losses less what they estimate, [B]."""
    field = Field(p)
    reference = field.divergence(drawn.x)
    if isinstance(drawn, Transition) or not antithetic:
        reference = reference + 0.5 * field(drawn.x, drawn.t).square().sum(1)
    if isinstance(drawn, Noised):  # 1/2 |s - target|^2 holds 1/2 |target|^2 besides
        reference = field.divergence(drawn.x) + 0.5 * (field(drawn.x, drawn.t).square() + drawn.target.square()).sum(1)
    if antithetic:
        reference = reference.reshape(2, -1).mean(0)
    return losses - reference


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimator_equals_its_stein_reference(estimator: str, name: str, step: str) -> None:
    p = process(name)
    loss = NDSMLoss(p, weighting=None, reduction="none", **ESTIMATORS[estimator])  # type: ignore[arg-type]
    drawn = loss.draw(data(name), seed=11, step=STEPS[step])
    losses = loss.evaluate(Field(p), drawn)
    assert losses.dtype == torch.float64 and losses.shape == (N_SAMPLES,)
    assert abs(z_score(stein_difference(p, losses, drawn, loss.antithetic))) < 4.0


# --- copies broken on purpose -----------------------------------------


def plain(p: NoisingProcess, x0: Tensor, step: int, sign: float = 1.0, power: float = 1.0) -> Tensor:
    field, drawn = Field(p), p.transition(x0, step, seed=11)
    s = field(drawn.x, drawn.t)
    return sign * (drawn.noise * s).sum(1) / drawn.std**power - field.divergence(drawn.x)


def antithetic(
    p: NoisingProcess, x0: Tensor, step: int, half: float = 0.5, sign: float = 1.0, power: float = 1.0
) -> Tensor:
    field, drawn = Field(p), p.transition(x0, step, seed=11, antithetic=True)
    plus, minus = field(drawn.x, drawn.t).chunk(2)
    z, std = drawn.noise[: len(x0)], drawn.std[: len(x0)]
    estimate = half * sign * (z * (plus - minus)).sum(1) / std**power
    return estimate - field.divergence(drawn.x).reshape(2, -1).mean(0)


def control_variate(p: NoisingProcess, x0: Tensor, step: int, sign: float = 1.0, power: float = 1.0) -> Tensor:
    field, drawn = Field(p), p.transition(x0, step, seed=11)
    difference = field(drawn.x, drawn.t) - field(drawn.mean, drawn.t)
    return sign * (drawn.noise * difference).sum(1) / drawn.std**power - field.divergence(drawn.x)


def path_target(
    p: LangevinProcess,
    x0: Tensor,
    step: int,
    hessian: float = 1.0,
    with_a: bool = True,
    turned: bool = True,
    back: bool = True,
    other: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_{n+1}, the target and v by the formulas: H <- rho H + [(1 - rho) z - rho a Hess z] / s.

    Tied and full: along the axes U of x_0's component. turned: Hess z is turned by U^T; back: H by U, not by U^T;
    other: how many components on from x_0's the axes are taken from.
    """
    m = p.reference
    r = m.responsibilities(x0)
    if m.covariance_type in ("spherical", "diag"):
        rate = r @ m._precisions.reshape(m.n_components, -1)
        U = torch.eye(p.dim, dtype=x0.dtype).expand(len(x0), -1, -1)
    else:
        rates, axes = torch.linalg.eigh(m._precisions.expand(m.n_components, -1, -1))
        k = (r.argmax(1) + other) % m.n_components
        rate, U = rates[k], axes[k]
    into, out = (lambda v, A=A: torch.einsum("bij,bj->bi", A, v) for A in (U.mT, U))
    x, H, v = x0, torch.zeros_like(x0), torch.zeros_like(rate)
    for n in range(step + 1):
        a, s = p.drift_scale[n], p.noise_std[n]
        z = philox_normal(len(x0), p.dim, seed=11, step=n, dtype=torch.float64)
        before, v = v, s**2 + (1 - a * rate) ** 2 * v
        rho = (1 - a * rate) * before / v
        product = hessian * m.hvp(x, z)
        product = into(product) if turned else product
        H = rho * H + ((1 - rho) * into(z) - rho * (a if with_a else 1.0) * product) / s
        x = x + a * m.score(x) + s * z
    variance = v if rate.shape[1] == 1 else torch.einsum("bij,bj->bi", U.square(), v)
    return x, -(out(H) if back else into(H)), variance


def path(p: LangevinProcess, x0: Tensor, step: int, sign: float = 1.0, **broken: bool | float) -> Tensor:
    field = Field(p)
    x, target, _ = path_target(p, x0, step, **broken)  # type: ignore[arg-type]
    return -sign * (field(x, x[:, 0]) * target).sum(1) - field.divergence(x)


MUTANTS = {
    "plain": (plain, {"sign flipped": {"sign": -1.0}, "1/s_n missing": {"power": 0.0}}),
    "plain antithetic": (
        antithetic,
        {"sign flipped": {"sign": -1.0}, "1/s_n missing": {"power": 0.0}, "mean without its 1/2": {"half": 1.0}},
    ),
    "control variate": (control_variate, {"sign flipped": {"sign": -1.0}, "1/s_n missing": {"power": 0.0}}),
    "path": (
        path,
        {
            "sign flipped": {"sign": -1.0},
            "Hess with its sign flipped": {"hessian": -1.0},
            "without a_n": {"with_a": False},
        },
    ),
}


@pytest.mark.parametrize("name", ["spherical d=1", "full d=3, very unequal"])
@pytest.mark.parametrize(
    ("estimator", "mutation"),
    [(estimator, mutation) for estimator, (_, mutations) in MUTANTS.items() for mutation in (None, *mutations)],
)
def test_broken_copies_are_caught(estimator: str, mutation: str | None, name: str) -> None:
    function, mutations = MUTANTS[estimator]
    p, x0 = process(name), data(name)
    if mutation is None:
        assert abs(z_score(function(p, x0, STEPS["last"]))) < 4.0  # type: ignore[arg-type]
    else:
        assert abs(z_score(function(p, x0, STEPS["last"], **mutations[mutation]))) > 10.0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["full d=3, very unequal", "tied d=3, very unequal"])
@pytest.mark.parametrize(
    "broken", [{"turned": False}, {"back": False}], ids=["Hess z not turned", "turned back by U^T"]
)
def test_axes_that_are_mixed_up_are_caught(broken: dict[str, bool], name: str) -> None:
    p, x0 = process(name), data(name)
    assert abs(z_score(path(p, x0, STEPS["last"]))) < 4.0  # type: ignore[arg-type]
    assert abs(z_score(path(p, x0, STEPS["last"], **broken))) > 10.0  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [name for name in PROCESSES if "drift" not in name])
@pytest.mark.parametrize("step", STEPS)
def test_the_copy_of_the_path_target_is_the_library_s(name: str, step: str) -> None:
    p, x0 = process(name), data(name)[:31]
    x, target, variance = path_target(p, x0, STEPS[step])  # type: ignore[arg-type]
    noised = p.noised(x0, STEPS[step], seed=11)
    torch.testing.assert_close(noised.x, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(noised.target, target, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(noised.variance.reshape(variance.shape), variance, rtol=1e-10, atol=0.0)


# --- one component: classical denoising score matching -----------------------------------------


def classical(p: LangevinProcess, k: Tensor, x0: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return mean [B, d] and covariance [B, d, d] of the discrete chain under component k [B] alone."""
    m, eye = p.reference, torch.eye(p.dim, dtype=torch.float64)
    precision = torch.linalg.inv(full_covariances(m))[k]
    mean, covariance = x0, torch.zeros(len(x0), p.dim, p.dim, dtype=torch.float64)
    for n in range(steps):
        factor = eye - p.drift_scale[n] * precision
        mean = m.means[k] + torch.einsum("bij,bj->bi", factor, mean - m.means[k])
        covariance = p.noise_std[n] ** 2 * eye + factor @ covariance @ factor
    return mean, covariance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance_type", [*COVARIANCE_TYPES, "ou"])
@pytest.mark.parametrize("step", STEPS)
def test_with_one_component_path_is_classical_dsm(step: str, covariance_type: str, dtype: torch.dtype) -> None:
    """target = -V^-1 (x - m(x_0)), with the mean and the covariance of the discrete chain."""
    if covariance_type == "ou":
        p: LangevinProcess = OUProcess(3, grid=[0.0, 0.1, 0.15, 0.4, 0.5, 0.7])
    else:
        p = langevin(covariance_type, 3, UNEVEN, ratio=10.0)
        one = p.reference
        one = GaussianMixture(
            [1.0], one.means[:1], one.covariances[: None if covariance_type == "tied" else 1], covariance_type
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            p = LangevinProcess(one, grid=p.times)
    x0 = torch.randn(1000, 3, generator=generator(3), dtype=torch.float64)
    mean, covariance = classical(p, torch.zeros(1000, dtype=torch.int64), x0, STEPS[step] + 1)
    noised = p.noised(x0.to(dtype), STEPS[step], seed=5)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    expected = -torch.linalg.solve(covariance, noised.x.double() - mean)
    widest = float(covariance.diagonal(dim1=1, dim2=2).amin()) ** -0.5
    torch.testing.assert_close(noised.target.double(), expected, rtol=tolerance, atol=tolerance * widest)
    variance = noised.variance.double().reshape(1000, -1)
    diagonal = covariance.diagonal(dim1=1, dim2=2)[:, : variance.shape[1]]
    torch.testing.assert_close(variance, diagonal, rtol=tolerance, atol=0.0)
    # and its covariance is V^-1, exactly
    spread = torch.einsum("ij,bj->bi", torch.linalg.cholesky(covariance[0]).mT, noised.target.double()).var(0)
    assert float(((spread - 1.0) / math.sqrt(2 / 1000)).abs().amax()) < 4.0


def apart(covariance_type: str) -> LangevinProcess:
    """Build three components so far apart that x has to do with its own alone; eigenvalues of ratio 200."""
    g = generator(4)
    axes = torch.linalg.qr(torch.randn(3, 4, 4, generator=g, dtype=torch.float64))[0]
    variances = 10.0 ** -torch.tensor([0.0, 0.5, 2.0, math.log10(200.0)], dtype=torch.float64)
    covariances = (axes * variances[torch.randperm(4, generator=g)]) @ axes.mT
    m = GaussianMixture(
        [0.2, 0.3, 0.5],
        300.0 * torch.eye(3, 4, dtype=torch.float64),
        covariances if covariance_type == "full" else covariances[0],
        covariance_type,
    )
    return LangevinProcess(m, T=0.4, n_steps=300)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance_type", ["tied", "full"])
def test_far_from_the_others_path_is_classical_dsm_of_the_own_component(
    covariance_type: str, dtype: torch.dtype
) -> None:
    p = apart(covariance_type)
    k = torch.arange(60) % 3
    x0 = p.reference.means[k] + 0.3 * torch.randn(60, 4, generator=generator(5), dtype=torch.float64)
    x0 = x0.to(dtype).double()
    mean, covariance = classical(p, k, x0, 300)
    noised = p.noised(x0.to(dtype), 299, seed=11)
    expected = -torch.linalg.solve(covariance, noised.x.double() - mean)
    scale = float(expected.abs().amax())
    exact = dtype == torch.float64
    assert float((noised.target.double() - expected).abs().amax()) < (1e-9 if exact else 2e-3) * scale
    diagonal = covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(
        noised.variance.double(), diagonal, rtol=1e-9 if dtype == torch.float64 else 1e-4, atol=0.0
    )
    if covariance_type == "full" and dtype == torch.float64:  # the axes of another component would be seen
        _, target, variance = path_target(p, x0, 299, other=1)
        assert float((target - expected).abs().amax()) > 0.1 * scale
        assert float((variance / diagonal).log().abs().amax()) > 0.1


def test_of_components_that_share_a_point_the_first_gives_the_axes() -> None:
    m = GaussianMixture([0.2, 0.4, 0.4], [[9.0, 0.0], [1.0, 0.0], [1.0, 0.0]], torch.eye(2).expand(3, -1, -1), "full")
    x = torch.randn(7, 2, generator=generator(5), dtype=torch.float64)
    assert heaviest_component(x, m.operands(x.dtype)).tolist() == [1] * 7
    far = torch.full((1, 2), 1e200, dtype=torch.float64)  # where densities overflow
    assert heaviest_component(far, m.operands(x.dtype)).tolist() == [0]


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_on_the_first_step_path_is_plain(covariance_type: str) -> None:
    p = langevin(covariance_type, 2, UNEVEN, ratio=30.0)
    x0 = torch.randn(31, 2, generator=generator(3), dtype=torch.float64)
    drawn, noised = p.transition(x0, 0, seed=5), p.noised(x0, 0, seed=5)
    torch.testing.assert_close(noised.target, -drawn.noise / drawn.std[:, None])
    torch.testing.assert_close(noised.variance.reshape(31, -1)[:, 0], p.noise_std[0].square().expand(31))
