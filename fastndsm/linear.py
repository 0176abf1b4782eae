"""EDM's form of linear noising: x_t = x_0 + t n, its noise levels, preconditioning, training noise and weight.

Source: Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _checks
from ._condition import Condition
from ._linear import LinearNoising, interpolated
from ._ops import ops
from ._scheme import ReverseScheme
from .dynamics import DriftlessDynamics
from .mixture import GaussianMixture
from .process import FORGOTTEN, Noised, ReferenceProcess, checked_reference, coordinate_dtype
from .reference import philox

Self = TypeVar("Self", bound="Driftless")
C_NOISE = ("sigma", "log")
LEVELS, MEASURED = 50, 4000  # of c_out, and the points that it is measured on


def edm_levels(n: int, largest: float, smallest: float, rho: float) -> Tensor:
    """Return n noise levels, increasing to the largest, evenly spaced in their power 1/rho: of one, the largest.

    Source: Karras et al., arXiv 2206.00364, equation 5.
    """
    high, low = largest ** (1.0 / rho), smallest ** (1.0 / rho)
    fractions = torch.arange(n, dtype=torch.float64, device="cpu") / max(1, n - 1)
    return (high + fractions * (low - high)).flip(0) ** rho


def edm_sigma(t: float) -> float:
    """Return the diffusion coefficient at which noise of deviation t has been added by t: its variance grows by 2 t."""
    return math.sqrt(2.0 * t)


class Driftless(ReferenceProcess):
    """A process without drift of its own, whose grid may be another without changing the law."""

    _normal: GaussianMixture  # which fused ops take for a mixture, though no multiple of its score is used

    def _on_grid(self: Self, times: Tensor) -> Self:
        """Return the same process on other times [N+1] from 0."""
        other = copy.deepcopy(self, {id(child): child for child in self.children()})
        other.tabulate(times.to(self.times.device))
        return other

    def tabulate(self, times: Tensor) -> None:
        """Make the tables of times [N+1] from 0, in place of those there are."""
        raise NotImplementedError

    def drift(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> Tensor:
        _checks.batch("x", x, self.dim)
        _checks.time("t", t, len(x))
        return torch.zeros_like(x)

    @property
    def dynamics(self) -> DriftlessDynamics:
        return DriftlessDynamics(self.drift_scale, self.noise_std, self._normal)

    def _growth(self) -> Tensor:
        return torch.zeros_like(self.noise_std)

    def reverse_scheme(self, method: str = "sde", prediction: str = "data") -> ReverseScheme:
        scheme = super().reverse_scheme(method, prediction)
        decay, mixture, *rest = scheme.steps
        return replace(scheme, steps=torch.stack([decay, torch.zeros_like(mixture), *rest]))

    def _law(self) -> tuple[Any, ...]:
        return type(self), self.reference.digest  # whatever the horizon, at a time the law is one

    def _uniform(self, n: int, seed: Tensor, first_path: int) -> Tensor:
        """Return four numbers in (0, 1) of each path's own, that its time is drawn by; float64 [4, n]."""
        paths = philox.path_range(n, first_path, self.times.device)
        return philox.uniform(torch.stack(philox.philox_words(paths, 1, int(seed), 0, philox.LEVEL))[:, :, 0])

    def _normal_numbers(self, x0: Tensor, seed: Tensor, first_path: int) -> Tensor:
        """Return standard normals [B, d] for x0 [B, ...], in its dtype."""
        step = torch.zeros((), dtype=torch.int64, device="cpu")
        return ops.philox_normal(len(x0), self.dim, seed, step, philox.NOISING, first_path, x0.dtype, x0.device, "auto")

    def _step_at(self, t: Tensor) -> Tensor:
        """Return the step n [B] that ends at t, or at the first time of the grid after it."""
        return (torch.searchsorted(self.times, t.to(self.times.dtype)) - 1).clamp(0, self.n_steps - 1)


class EDMProcess(LinearNoising, Driftless):
    """EDM's noising x_t = x_0 + t n: the time is the noise's deviation, sigma. A ResidualScore on it is preconditioned:

        D(x, sigma) = c_skip x + c_out net(c_in x, c_noise),   score = (D - x) / sigma^2

    and with a reference its exact denoiser E[x_0 | x] stands in place of c_skip x, which is that of N(0, sigma_data^2).
    `DSMLoss` draws sigma log-normal and weights by 1 / c_out^2. `sample` evaluates at EDM's levels; its default is
    SDE-DPM-Solver++ (2M), method "ode" DPM-Solver++ (2M).

    Args:
        dim: d.
        reference: a mixture fitted to the data, any covariance type; default N(0, sigma_data^2 I), which is EDM.
        data: [n, d] to measure c_out on, of which 4,000 are used; default draws from the reference. Without a reference
            c_out = sigma sigma_data / sqrt(sigma^2 + sigma_data^2); with one it is the deviation of x_0 from its
            denoised x_t, at 50 levels, log-linear between.
        sigma_data: the data's deviation; default the reference's, or 1.
        p_mean, p_std: of log sigma in training; p_mean is by default log sigma_data - 1/2, -1.2 at a sigma_data of 1/2.
        sigma_min, sigma_max, rho: of the levels; by default 0.002, 80 and 7, with a reference 0.03 and 10 times
            sigma_data, which did best in the experiments.
        n_steps: levels of the grid that `simulate` and `log_likelihood` step on.
        c_noise: "sigma", for networks that embed its logarithm themselves, as the library's do, or "log", log(sigma)/4.
        event_shape: shape of one sample; default the reference's, or (dim,).

    Source: Karras et al., arXiv 2206.00364.
    """

    level_logs: Tensor
    output_logs: Tensor
    keeps_scale = True

    def __init__(
        self,
        dim: int,
        reference: GaussianMixture | None = None,
        data: Tensor | None = None,
        *,
        sigma_data: float | None = None,
        p_mean: float | None = None,
        p_std: float = 1.2,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        rho: float = 7.0,
        n_steps: int = 200,
        c_noise: str = "sigma",
        event_shape: Sequence[int] | None = None,
    ) -> None:
        _checks.count("dim", dim)
        shape = checked_reference(reference, dim, event_shape)
        if sigma_data is None:
            sigma_data = 1.0 if reference is None else _deviation(reference)
        sigma_data = _checks.positive("sigma_data", sigma_data)
        smallest, largest = (0.002, 80.0) if reference is None else (0.03 * sigma_data, 10.0 * sigma_data)
        smallest = smallest if sigma_min is None else _checks.positive("sigma_min", sigma_min)
        largest = largest if sigma_max is None else _checks.positive("sigma_max", sigma_max)
        if smallest >= largest:
            raise ValueError(f"sigma_min: expected less than sigma_max = {largest:g}, found {smallest:g}")
        rho, steps = _checks.positive("rho", rho), _checks.count("n_steps", n_steps)
        times = _from_zero(edm_levels(steps, largest, smallest, rho))
        super().__init__(dim, None, None, edm_sigma, times)
        self.register_buffer("class_weights", None)
        self.sigma_data, self.sigma_min, self.sigma_max, self.rho = sigma_data, smallest, largest, rho
        self.p_mean = math.log(sigma_data) - 0.5 if p_mean is None else _checks.number("p_mean", p_mean)
        self.p_std, self.c_noise = _checks.positive("p_std", p_std), _checks.choice("c_noise", c_noise, C_NOISE)
        self._normal = GaussianMixture([1.0], [[0.0] * dim], [1.0], "spherical", event_shape=shape)
        self.has_mixture = reference is not None
        if reference is None:
            reference = GaussianMixture([1.0], [[0.0] * dim], [sigma_data**2], "spherical", event_shape=shape)
        self.reference = reference
        with torch.inference_mode(False):
            self.tabulate(self.times)
            ends = math.log(0.002), math.log(80.0)
            self.register_buffer("level_logs", torch.linspace(*ends, LEVELS, dtype=torch.float64, device="cpu"))
            self.register_buffer("output_logs", self._output_logs(data))
            self.to(reference.means.device)
        self._read_tables()

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that it was made with besides dim, reference, data and event_shape: numbers and texts."""
        names = ("sigma_data", "p_mean", "p_std", "sigma_min", "sigma_max", "rho", "n_steps", "c_noise")
        return {name: getattr(self, name) for name in names}

    def get_extra_state(self) -> Tensor:
        """Return the numbers of `config` but n_steps, which the tables tell."""
        return torch.tensor([*self._numbers(), C_NOISE.index(self.c_noise)], dtype=torch.float64, device="cpu")

    def _numbers(self) -> tuple[float, ...]:
        return self.sigma_data, self.p_mean, self.p_std, self.sigma_min, self.sigma_max, self.rho

    def set_extra_state(self, state: Tensor) -> None:
        *numbers, c_noise = state.tolist()
        self.sigma_data, self.p_mean, self.p_std, self.sigma_min, self.sigma_max, self.rho = numbers
        self.c_noise = C_NOISE[int(c_noise)]

    def sigma_on_grid(self) -> Tensor:
        return (self.times[:-1] + self.times[1:]).sqrt()  # whose square times dt is what t^2 grows by

    def tabulate(self, times: Tensor) -> None:
        self.times = times
        self.noise_std = self.sigma_on_grid() * times.diff().sqrt()
        self.drift_scale = torch.zeros_like(self.noise_std)
        self.register_buffer("noise_variance", times[1:].square())
        self._read_tables()

    @torch.no_grad()
    def _output_logs(self, data: Tensor | None) -> Tensor:
        """Return the logarithm of c_out at every level [LEVELS], float64."""
        squares = (2.0 * self.level_logs).exp()
        if not self.has_mixture:
            return 0.5 * (squares.log() + 2.0 * math.log(self.sigma_data) - (squares + self.sigma_data**2).log())
        device = self.reference.means.device
        if data is None:
            x0 = self.reference.sample(MEASURED // 4, seed=0)
        else:
            _checks.data("data", data, self.dim)
            chosen = torch.randperm(len(data), generator=torch.Generator("cpu").manual_seed(0), device="cpu")
            x0 = data[chosen[:MEASURED].to(data.device)]
        x0 = x0.flatten(1).to(device, torch.float32)
        found = []
        for i, square in enumerate(squares.tolist()):
            level = torch.tensor(math.sqrt(square), dtype=torch.float64, device=device)
            seed = torch.tensor(i, dtype=torch.int64, device="cpu")
            z = ops.philox_normal(len(x0), self.dim, seed, seed, philox.LEVEL, 0, x0.dtype, device, "auto")
            x = x0 + level * z
            denoised = x + square * LinearNoising.reference_score(self, x, level.expand(len(x)))
            found.append((x0 - denoised).square().mean().log())
        return 0.5 * torch.stack(found).double().cpu()

    def scale_and_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha(t) = 1 and v(t) = t^2 of times t of any shape, float64."""
        t = t.to(torch.float64)
        return torch.ones_like(t), t.square()

    def output_scale(self, t: Tensor) -> Tensor:
        """Return c_out at times t [B], in their dtype."""
        logs = t.detach().to(torch.float64).log()
        ends = self.level_logs[0] - logs, logs - self.level_logs[-1]
        inside = interpolated(self.level_logs, self.output_logs, logs)
        # towards 0 c_out is sigma; far up it is the data's deviation
        return (inside - ends[0].clamp(min=0.0)).exp().to(t.dtype)

    def residual_scale(self, t: Tensor) -> Tensor:
        return self.output_scale(t) / t.square()

    def network_inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return c_in x and c_noise of x [B, ...] and t [B]."""
        scale = (t.square() + self.sigma_data**2).rsqrt().reshape(-1, *[1] * (x.ndim - 1))
        return (x * scale).to(x.dtype), t if self.c_noise == "sigma" else 0.25 * t.log()

    def loss_weight(self, drawn: Noised) -> Tensor:
        """Return EDM's weight 1 / c_out^2 of |D - x_0|^2, for the score: sigma^4 / c_out^2, [B]."""
        return self.residual_scale(drawn.t) ** -2

    def exact_noised(
        self,
        x0: Tensor,
        step: int | Tensor | None = None,
        seed: int | Tensor | None = None,
        first_path: int = 0,
    ) -> Noised:
        """Draw x_0 + sigma n with target -n / sigma for x0 [B, ...]; sigma is log-normal, or t_{step+1}."""
        n, key, start = self._draw(x0, step, seed, first_path)
        t = self.times[n + 1]
        if step is None:
            u, v, *_ = self._uniform(len(x0), key, start)
            level = (-2.0 * u.log()).sqrt() * (2.0 * math.pi * v).cos()  # of a normal law, by Box and Muller
            t = (self.p_mean + self.p_std * level).exp()
            n = self._step_at(t)
        t = t.to(coordinate_dtype(x0.dtype))
        z = self._normal_numbers(x0, key, start).reshape(x0.shape)
        wide = t.reshape(-1, *[1] * (x0.ndim - 1))
        return Noised((x0 + wide * z).to(x0.dtype), (-z / wide).to(x0.dtype), t.square(), t, n)

    @property
    def prior(self) -> GaussianMixture:  # type: ignore[override]
        """The law that sampling starts from: the reference noised by sigma_max."""
        return self.noised_prior

    @property
    def forgets(self) -> bool:
        return self.sigma_data < FORGOTTEN * self.T

    @property
    def default_prediction(self) -> str:
        return "data"

    def for_evaluations(self, n_evaluations: int | None, start: float | None) -> EDMProcess:
        """Return the process on EDM's levels, one an evaluation, from `start` (None: T) down to sigma_min."""
        largest = self.T if start is None else start
        count = self.n_steps if n_evaluations is None else n_evaluations
        return self._on_grid(_from_zero(edm_levels(count, largest, min(self.sigma_min, largest), self.rho)))

    def extra_repr(self) -> str:
        return f"sigma={self.sigma_min:g}..{self.sigma_max:g}, sigma_data={self.sigma_data:g}, n_steps={self.n_steps}"


def _from_zero(levels: Tensor) -> Tensor:
    return torch.cat([levels.new_zeros(1), levels])


def _deviation(mixture: GaussianMixture) -> float:
    """Return the mean standard deviation of a coordinate: of components and of their means."""
    weights, means = mixture.weights.double(), mixture.means.double()
    between = (weights[:, None] * (means - weights @ means).square()).sum(0).mean()
    return math.sqrt(mixture.mean_variance + float(between))
