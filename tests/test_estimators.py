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
from helpers import COVARIANCE_TYPES, generator, on_one_backend, random_mixture, z_score  # noqa: F401
from torch import Tensor

from fastndsm import DriftProcess, GaussianMixture, LangevinProcess, NDSMLoss, OUProcess
from fastndsm.functional import philox_normal
from fastndsm.process import Noised, NoisingProcess, Transition

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
    p: LangevinProcess, x0: Tensor, step: int, hessian: float = 1.0, with_a: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x_{n+1}, the target and v by the formulas: H <- rho H + [(1 - rho) z - rho a Hess z] / s."""
    m = p.reference
    diagonals = (
        m._precisions if m.covariance_type in ("spherical", "diag") else m._precisions.diagonal(dim1=-2, dim2=-1)
    )
    if m.covariance_type == "tied":
        diagonals = diagonals.expand(m.n_components, -1)
    r = m.responsibilities(x0)
    rate = r @ (diagonals[:, None] if m.covariance_type == "spherical" else diagonals)
    x, H, v = x0, torch.zeros_like(x0), torch.zeros_like(rate)
    for n in range(step + 1):
        a, s = p.drift_scale[n], p.noise_std[n]
        z = philox_normal(len(x0), p.dim, seed=11, step=n, dtype=torch.float64)
        before, v = v, s**2 + (1 - a * rate) ** 2 * v
        rho = (1 - a * rate) * before / v
        H = rho * H + ((1 - rho) * z - rho * (a if with_a else 1.0) * hessian * m.hvp(x, z)) / s
        x = x + a * m.score(x) + s * z
    return x, -H, v


def path(
    p: LangevinProcess, x0: Tensor, step: int, hessian: float = 1.0, with_a: bool = True, sign: float = 1.0
) -> Tensor:
    field = Field(p)
    x, target, _ = path_target(p, x0, step, hessian, with_a)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance_type", ["spherical", "diag", "ou"])
@pytest.mark.parametrize("step", STEPS)
def test_with_one_component_path_is_classical_dsm(step: str, covariance_type: str, dtype: torch.dtype) -> None:
    """target = -(x - m(x_0)) / v = -z_eff / sqrt(v), with the mean and the variance of the discrete chain."""
    if covariance_type == "ou":
        p: LangevinProcess = OUProcess(3, grid=[0.0, 0.1, 0.15, 0.4, 0.5, 0.7])
    else:
        p = langevin(covariance_type, 3, UNEVEN, ratio=10.0)
        one = p.reference
        one = GaussianMixture([1.0], one.means[:1], one.covariances[:1], covariance_type)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            p = LangevinProcess(one, grid=p.times)
    precision = p.reference._precisions.reshape(1, -1)
    mean = x0 = torch.randn(1000, 3, generator=generator(3), dtype=torch.float64)
    v = torch.zeros(1, 1, dtype=torch.float64)
    for n in range(STEPS[step] + 1):
        factor = 1.0 - p.drift_scale[n] * precision
        mean = mean + p.drift_scale[n] * precision * (p.reference.means - mean)
        v = p.noise_std[n] ** 2 + factor**2 * v
    noised = p.noised(x0.to(dtype), STEPS[step], seed=5)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    expected = -(noised.x.double() - mean) / v
    torch.testing.assert_close(
        noised.target.double(), expected, rtol=tolerance, atol=tolerance * float(v.amin()) ** -0.5
    )
    variance = noised.variance.double().reshape(1000, -1)
    torch.testing.assert_close(variance, v.expand_as(variance), rtol=tolerance, atol=0.0)
    # and its variance is 1 / v, exactly
    spread = noised.target.double().var(0) * v[0]
    assert float(((spread - 1.0) / math.sqrt(2 / 1000)).abs().amax()) < 4.0


@pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
def test_on_the_first_step_path_is_plain(covariance_type: str) -> None:
    p = langevin(covariance_type, 2, UNEVEN, ratio=30.0)
    x0 = torch.randn(31, 2, generator=generator(3), dtype=torch.float64)
    drawn, noised = p.transition(x0, 0, seed=5), p.noised(x0, 0, seed=5)
    torch.testing.assert_close(noised.target, -drawn.noise / drawn.std[:, None])
    torch.testing.assert_close(noised.variance.reshape(31, -1)[:, 0], p.noise_std[0].square().expand(31))
