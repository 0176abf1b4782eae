"""Noising processes on a grid 0 = t_0 < ... < t_N = T, by Euler-Maruyama.

    dX = F(X, t) dt + sigma(t) dW,    F = 1/2 sigma(t)^2 grad log pi     (Langevin: pi is stationary)
    mean_n  = x_n + a_n grad log pi(x_n),    a_n = 1/2 sigma(t_n)^2 dt_n
    x_{n+1} = mean_n + s_n z_n,              s_n = sigma(t_n) sqrt(dt_n),    z_n ~ N(0, I)

where dt_n = t_{n+1} - t_n.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _checks, functional
from ._compiled import CompiledDrift
from ._condition import Condition
from ._grid import stiff_grid, time_grid, variance_recursion
from ._linear import LinearNoising, interpolated
from ._ops import ops
from ._prior import fitted_weights, is_labels, log_prob_by_class, sample_by_class
from ._scheme import METHODS, PREDICTIONS, ReverseScheme, reverse_scheme
from ._state import ExtraState, KeepsDtype
from .dynamics import CallableDrift, CallableDynamics, Dynamics, MixtureDynamics
from .mixture import GaussianMixture
from .reference import philox

Sigma = float | Callable[[float], float]
STABLE, REFUSED = 0.2, 1.0  # bounds on q = a_n lambda_max(P_k)
GRIDS = ("uniform", "quadratic", "stiff")
FORGOTTEN = 0.1  # of a mean at T, below which one component's prior is taken for that under any condition
LARGEST_FLOOR = 0.1  # of eigenvalues, in units of the mean variance: beyond, draws from pi are worse


@dataclass(frozen=True)
class TabulatedSigma:
    """A sigma known at times alone: linear between them, constant beyond. It is equal to another by its values."""

    times: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, t: float) -> float:
        i = max(bisect.bisect_right(self.times, t) - 1, 0)
        if i + 1 == len(self.times):
            return self.values[i]
        weight = max(t - self.times[i], 0.0) / (self.times[i + 1] - self.times[i])
        return self.values[i] + weight * (self.values[i + 1] - self.values[i])

    def __repr__(self) -> str:
        return f"TabulatedSigma({len(self.values)} values in {min(self.values):.4g}..{max(self.values):.4g})"


def coordinate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of times and deviations beside data of `dtype`: bfloat16 would merge half of 1,000 steps."""
    return torch.promote_types(dtype, torch.float32)


class Transition(NamedTuple):
    """One step of the noising process: x = mean + std * noise.

    x, mean, noise [B, ...]; std [B], t [B] (of x), both float32 at least, and step [B] with x = x_{step+1},
    t = t_{step+1}. Antithetic: 2B rows, the B samples first, then their mirror images.
    """

    x: Tensor
    mean: Tensor
    noise: Tensor
    std: Tensor
    t: Tensor
    step: Tensor


class Noised(NamedTuple):
    """A noised sample and a regression target whose conditional mean is the score of its law.

    x, target [B, ...]; variance v_{n+1} [B] or like x; t [B], float32 at least; step [B]. Antithetic: 2B rows, as in
    `Transition`. Of R records a path, [B, R, ...] and [B, R].
    """

    x: Tensor
    target: Tensor
    variance: Tensor
    t: Tensor
    step: Tensor


def _sigma_at(sigma: Sigma, t: float) -> float:
    if not callable(sigma):
        return _checks.positive("sigma", sigma)
    _checks.function("sigma", sigma, "a positive number or a callable of t")
    value: Any = sigma(t)
    item = getattr(value, "item", None)  # of a tensor or an array
    return _checks.positive(f"sigma({t:.6g})", value if item is None or math.prod(value.shape) != 1 else item())


def _read_tables_again(process: NoisingProcess, _: Any) -> None:
    process._read_tables()


class NoisingProcess(ExtraState, KeepsDtype):
    """The time grid, its tables, and draws of noised samples; subclasses give the drift.

    Attributes:
        times [N+1], drift_scale [N] (a_n), noise_std [N] (s_n), noise_variance [N] (v_{n+1} at the reference's slowest
        rate): float64 buffers, whatever a module around the process is cast to.
        prior: where sampling starts, a mixture (or, for DriftProcess, anything with sample(n, seed=, first_path=)).
    """

    times: Tensor
    drift_scale: Tensor
    noise_std: Tensor
    noise_variance: Tensor
    prior: Any

    def __init__(
        self, dim: int, horizon: float | None, n_steps: int | None, sigma: Sigma, grid: str | Sequence[float] | Tensor
    ) -> None:
        super().__init__()
        self._dim = dim
        self.sigma = sigma
        with torch.inference_mode(False):  # tensors made inside could never be part of a gradient
            times = time_grid(horizon, n_steps, grid)
            dt = times.diff()
            self.register_buffer("times", times)
            sigmas = self.sigma_on_grid()
            self.register_buffer("drift_scale", 0.5 * sigmas**2 * dt)
            self.register_buffer("noise_std", sigmas * dt.sqrt())
        self._read_tables()
        self.register_load_state_dict_post_hook(_read_tables_again)  # type: ignore[no-untyped-call]

    def _read_tables(self) -> None:
        """Read numbers that are asked for where the tables are out of reach: on a device, or on none (meta)."""
        self._horizon, shortest = float(self.times[-1]), float(self.noise_std.amin())
        mean = getattr(getattr(self, "prior", None), "largest_mean", 0.0)
        spacing = math.ldexp(1.0, math.frexp(mean)[1] - 24) if mean > 0.0 else 0.0
        self._lost: str | None = None  # how float32 loses the noise beside the means
        if spacing > 0.5 * shortest:
            self._lost = (
                f"expected torch.float64 where means reach {mean:.4g}, float32 values there are {spacing:.3g} apart "
                f"and the smallest noise_std is {shortest:.3g}"
            )

    def _register_noise_variance(self, contraction: Tensor) -> None:
        with torch.inference_mode(False):
            self.register_buffer("noise_variance", variance_recursion(self.noise_std, contraction))

    def get_extra_state(self) -> Tensor:
        """Return sigma and, of a DriftProcess, the rate; NaN for a sigma that is a callable."""
        sigma = math.nan if callable(self.sigma) else self.sigma
        return torch.tensor([sigma, getattr(self, "rate", 0.0)], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        sigma, rate = state.tolist()
        if math.isnan(sigma) != callable(self.sigma):
            found = "a callable" if math.isnan(sigma) else f"{sigma:g}"
            own = "a callable" if callable(self.sigma) else f"{self.sigma:g}"
            raise ValueError(f"state_dict: expected a process with sigma {own}, found {found}")
        if not callable(self.sigma):
            self.sigma = sigma
        if hasattr(self, "rate"):
            self.rate = rate

    def _sigma(self, t: float) -> float:
        return _sigma_at(self.sigma, t)

    def sigma_on_grid(self) -> Tensor:
        """Return sigma(t_n) at the start of each step, float64 [N]."""
        return torch.tensor([self._sigma(t) for t in self.times[:-1].tolist()], dtype=torch.float64, device="cpu")

    @property
    def n_steps(self) -> int:
        """N, the number of steps."""
        return len(self.times) - 1

    @property
    def T(self) -> float:
        """The horizon t_N."""
        return self._horizon

    @property
    def dim(self) -> int:
        """Dimension d, the number of values in a sample."""
        return self._dim

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(getattr(self.prior, "event_shape", (self.dim,)))

    def check_dtype(self, name: str, dtype: torch.dtype) -> None:
        """Refuse data of a dtype that computes in float32 where float32 loses the noise beside the means."""
        if dtype != torch.float64 and self._lost is not None:
            raise ValueError(
                f"{name}: {self._lost}, found {dtype}; or centre the data, for example by data.Standardizer"
                f"{_checks.cure('far-from-zero')}"
            )

    @abstractmethod
    def drift(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> Tensor:
        """Return F(x, t) for x [B, ...] and t a number or [B] -> like x, under a condition that the reference knows."""

    @property
    @abstractmethod
    def dynamics(self) -> Dynamics:
        """Its steps and those of its reverse, with the tables as they are now."""

    def dynamics_under(self, condition: Condition | None, rows: int) -> Dynamics:
        """Return `dynamics` of so many rows under a condition, as far as the reference has classes."""
        return self.dynamics

    def class_labels(self, condition: Condition | None) -> Tensor | None:
        """Return the labels [B] that a condition has, where the reference has classes; else None."""
        return None

    def simulate(
        self,
        x0: Tensor,
        steps: int | Tensor | None = None,
        seed: int | Tensor | None = None,
        first_path: int = 0,
        *,
        condition: Condition | None = None,
    ) -> Tensor:
        """Return x after `steps` (int or [B], 0..N; default N) steps from x0 [B, ...] -> like x0.

        condition: of x0; where the reference has classes, rows are noised towards that of theirs.
        """
        return functional.simulate(x0, self, steps, seed=seed, first_path=first_path, condition=condition)

    def draw_steps(
        self, n: int, seed: int | Tensor | None = None, first_path: int = 0, records: int | None = None
    ) -> Tensor:
        """Draw steps uniform on 0..N-1, int64 [n]; that of a path depends on the seed and its number alone.

        records: R, for [n, R]: R steps a path, each uniform and together spread over the grid, the first that of [n].
        """
        rows, start = _checks.count("n", n), _checks.first_path(first_path)
        records = None if records is None else _checks.count("records", records)
        return self._uniform_steps(rows, _checks.seed(seed), start, self.times.device, records)

    def _uniform_steps(
        self, rows: int, seed: Tensor, first_path: int, device: torch.device, records: int | None
    ) -> Tensor:
        if device.type == "cpu":  # a few integers: an op's way there is longer than the drawing
            return philox.uniform_steps(rows, self.n_steps, seed, first_path, device, records)
        return ops.uniform_steps(rows, self.n_steps, seed, first_path, device, records, "auto")  # type: ignore[no-any-return]

    def check_paths(
        self,
        x0: Tensor,
        steps: int | Tensor | None,
        seed: int | Tensor | None,
        first_path: int,
        *,
        name: str = "steps",
        least: int = 0,
        most: int | None = None,
        antithetic: bool = False,
        records: bool = False,
    ) -> tuple[Tensor, Tensor, int]:
        """Check what paths from x0 are asked for with; return steps [B], N if None, seed and first path.

        steps lie in least..most (default N), and go by `name` in messages; [B, R] is for several records of a path.
        """
        key, start = self._check_start(x0, seed, first_path, antithetic)
        most = self.n_steps if most is None else most
        taken = _checks.steps(name, most if steps is None else steps, len(x0), most, x0.device, least, records=records)
        return taken if taken.ndim == 2 else taken.expand(len(x0)), key, start

    def _check_start(
        self, x0: Tensor, seed: int | Tensor | None, first_path: int, antithetic: bool
    ) -> tuple[Tensor, int]:
        key, start = _checks.paths(x0, self._dim, self.times.device, seed, first_path, antithetic)
        self.check_dtype("x0", x0.dtype)
        return key, start

    def _draw(
        self,
        x0: Tensor,
        step: int | Tensor | None,
        seed: int | Tensor | None,
        first_path: int,
        antithetic: bool = False,
        records: int | None = None,
        *,
        several: bool = False,
    ) -> tuple[Tensor, Tensor, int]:
        """Return steps [B] in 0..N-1, drawn if None; seed and first path; all checked.

        several: [B, R] will do, or is drawn if records is R.
        """
        if records is not None:
            _checks.count("records", records)
            if step is not None:
                raise ValueError("records: expected None where `step` gives the steps, found both")
        if step is not None:
            options: dict[str, Any] = {"name": "step", "most": self.n_steps - 1, "antithetic": antithetic}
            return self.check_paths(x0, step, seed, first_path, records=several, **options)
        key, start = self._check_start(x0, seed, first_path, antithetic)
        return self._uniform_steps(len(x0), key, start, x0.device, records), key, start

    def transition(
        self,
        x0: Tensor,
        step: int | Tensor | None = None,
        seed: int | Tensor | None = None,
        first_path: int = 0,
        antithetic: bool = False,
        *,
        condition: Condition | None = None,
    ) -> Transition:
        """Run x0 [B, ...] to step n and take one more: x = x_{n+1}, mean = mean_n, noise = z_n, std = s_n, t = t_{n+1}.

        Args:
            step: n in 0..N-1, int or [B]; drawn uniformly if None.
            antithetic: 2B rows, mean + s z with noise z first, then mean - s z with noise -z.
            condition: as for `simulate`.
        """
        n, key, start = self._draw(x0, step, seed, first_path, antithetic)
        x, mean, noise = self.dynamics_under(condition, len(x0)).simulate_transition(x0, n + 1, key, start, "auto")
        std = self.noise_std[n].to(coordinate_dtype(x.dtype))
        if antithetic:
            mirror = (mean - std.reshape(-1, *[1] * (x.ndim - 1)) * noise).to(x.dtype)
            x, mean, noise = torch.cat([x, mirror]), torch.cat([mean, mean]), torch.cat([noise, -noise])
            std, n = torch.cat([std, std]), torch.cat([n, n])
        return Transition(x, mean, noise, std, self.times[n + 1].to(coordinate_dtype(x.dtype)), n)

    def noised(
        self,
        x0: Tensor,
        step: int | Tensor | None = None,
        seed: int | Tensor | None = None,
        first_path: int = 0,
        antithetic: bool = False,
        records: int | None = None,
        *,
        condition: Condition | None = None,
    ) -> Noised:
        """Draw the path estimator's pair at t_{n+1}: E[target | x] = grad log p_{n+1}(x), variance about 1 / v_{n+1}.

        The same x as `transition` gives for the same seed and step. Antithetic: two whole paths, driven by z and by -z.

        Args:
            step: n in 0..N-1: int, [B], or [B, R] for R records of each path, [B, R, ...], at about the cost of one.
                Those of one path are correlated: a batch should hold few of them. Drawn uniformly if None.
            records: R, to have [B, R] steps drawn as `draw_steps` does; None draws [B].
            condition: as for `simulate`.
        """
        n, key, start = self._draw(x0, step, seed, first_path, antithetic, records, several=True)
        dynamics = self.dynamics_under(condition, len(x0))
        x, target, variance = dynamics.simulate_target(x0, n + 1, key, start, antithetic, "auto")
        n = torch.cat([n, n]) if antithetic else n
        return Noised(x, target, variance, self.times[n + 1].to(coordinate_dtype(x.dtype)), n)

    def reverse_scheme(self, method: str = "sde", prediction: str = "data") -> ReverseScheme:
        """Return how the reverse process goes on between evaluations of the network: coefficients on the own grid.

        method "sde" or "ode"; prediction "data", "score" or "linear": what of the network is held. Source:
        `fastndsm._scheme`.
        """
        _checks.choice("method", method, METHODS)
        _checks.choice("prediction", prediction, PREDICTIONS)
        return reverse_scheme(self.noise_std, self._growth(), method, prediction, self.single_variance)

    @abstractmethod
    def _growth(self) -> Tensor:
        """Return int 2 p dt over each step [N], p the slowest rate at which the drift forgets."""

    @property
    def stiffness(self) -> float:
        """Ratio of the drift's fastest rate to its slowest: of the reference's eigenvalues; 1 where it is not known."""
        return 1.0

    @property
    def single_variance(self) -> float | None:
        """The variance of the reference if it is one spherical component, else None."""
        return None

    def draw_prior(
        self, n: int, seed: int | Tensor | None = None, first_path: int = 0, condition: Condition | None = None
    ) -> Tensor:
        """Draw n samples [n, ...] to start from at T, under a condition of n rows as far as the prior knows it."""
        return self.prior.sample(n, seed=seed, first_path=first_path)  # type: ignore[no-any-return]

    def prior_log_prob(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        """Return log p(x) [B] at T for x [B, ...], under a condition as far as the prior knows it."""
        return self.prior.log_prob(x)  # type: ignore[no-any-return]

    def prior_knows(self, condition: Condition) -> bool:
        """Return whether the prior is that under the condition, or the noising forgets it; True where none can tell."""
        return True

    @property
    def default_method(self) -> str:
        """The method of sampling where none is asked for."""
        return "sde"

    @property
    def default_prediction(self) -> str:
        """The prediction of sampling by default: "data", exact for one spherical component, or "linear"."""
        return "linear" if self.single_variance is None else "data"

    def for_evaluations(self, n_evaluations: int | None, start: float | None) -> NoisingProcess:
        """Return the process to sample by from time `start` (None: T) if times of evaluation are left to it: itself."""
        return self

    def residual_scale(self, t: Tensor) -> Tensor:
        """Return what a network's output is multiplied by to be added to the reference's score, [B] at times t [B]."""
        return self.variance_at(t).rsqrt()

    def network_inputs(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a network is given for x [B, ...] and t [B]: themselves."""
        return x, t

    def same_law(self, other: NoisingProcess) -> bool:
        """Return whether the other process noises data alike, grids aside: one mixture or drift, one sigma, one T."""
        return self is other or (self._law() == other._law() and self._same_sigma(other))

    def _law(self) -> tuple[Any, ...]:
        return type(self.prior), float(f"{self.T:.6g}")

    def _same_sigma(self, other: NoisingProcess) -> bool:
        """Return whether both have one sigma, or equal values: where it is tabulated, if it is, else on both grids."""
        if self.sigma is other.sigma or not (callable(self.sigma) or callable(other.sigma)):
            return self.sigma == other.sigma
        tabulated = [p for p in (self, other) if isinstance(p.sigma, TabulatedSigma)]
        times = [t for p in tabulated or (self, other) for t in p.times[:-1].tolist()]
        return all(math.isclose(self._sigma(t), other._sigma(t), rel_tol=1e-6) for t in times)

    def variance_at(self, t: Tensor) -> Tensor:
        """Return noise_variance at times t [B], linear between grid points, constant before t_1; in the dtype of t."""
        times = self.times[1:].to(_checks.floating("t", t).dtype)
        values = self.noise_variance.to(t.dtype)
        return values.expand(t.shape) if self.n_steps == 1 else interpolated(times, values, t)

    def extra_repr(self) -> str:
        return f"T={self.T:.6g}, n_steps={self.n_steps}"


class ReferenceProcess(NoisingProcess):
    """A process with a mixture for its reference, and for its prior one of the same components.

    Attributes:
        class_weights: weights of the components at T for each class [C, K], from `fit_prior`; else None. A reference
            with classes of its own has no need of them.
    """

    reference: GaussianMixture
    class_weights: Tensor | None

    @property
    @abstractmethod
    def forgets(self) -> bool:
        """True if the noising forgets by T which component a sample lay in."""

    @abstractmethod
    def reference_score(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return what a residual network adds to at x [B, ...] and t [B], the reference's score -> like x.

        Under a condition it is that of each row's class, where the reference has classes.
        """

    def _noised_to_end(self, x0: Tensor) -> Tensor:
        return self.simulate(x0, seed=0)

    def fit_prior(self, x0: Tensor, labels: Tensor, n_classes: int | None = None) -> None:
        """Fit the law at T of each class: weights of the components, to x0 [n, ...] noised to T; kept as class_weights.

        Noising within T forgets a sample's place in a mode, not the mode. Sampling under a class starts from its
        weights, and log_likelihood ends there.

        Args:
            labels: int64 [n], from 0.
            n_classes: default the largest label and one.
        """
        if self.reference.n_classes:
            raise ValueError("fit_prior: expected a reference without classes, found one that has the law of each at T")
        _checks.data("x0", x0, self.dim)
        _checks.labels("labels", labels, len(x0))
        found = int(labels.max()) + 1
        n_classes = found if n_classes is None else _checks.count("n_classes", n_classes, found)
        with torch.inference_mode(False), torch.no_grad():
            noised = self._noised_to_end(x0)
            self.class_weights = fitted_weights(self.prior, noised, labels.to(noised.device), n_classes)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        stored = state_dict.get(f"{prefix}class_weights")
        self.class_weights = None if stored is None else torch.empty_like(stored, device=self.times.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def draw_prior(
        self,
        n: int,
        seed: int | Tensor | None = None,
        first_path: int = 0,
        condition: Condition | None = None,
        *,
        t: float | None = None,
    ) -> Tensor:
        """Draw n samples [n, ...] to start from at T, or at an earlier t of linear noising; as of NoisingProcess."""
        law = self.prior if t is None else self.prior_at(t)
        labels = self.class_labels(condition)
        if self.class_weights is None or not is_labels(condition):  # as where the reference has classes
            return law.sample(n, seed, first_path=first_path, labels=labels)
        assert isinstance(condition, Tensor)
        return sample_by_class(law, self.class_weights, condition, seed, first_path)

    def prior_at(self, t: float) -> GaussianMixture:
        """Return the reference noised to t, where that is known in closed form."""
        raise TypeError(f"start: expected (x, t) with a {type(self).__name__}, found a time alone")

    def prior_log_prob(self, x: Tensor, condition: Condition | None = None) -> Tensor:
        labels = self.class_labels(condition)
        if self.class_weights is None or not is_labels(condition):
            return self.prior.log_prob(x, labels)
        assert isinstance(condition, Tensor)
        return log_prob_by_class(self.prior, self.class_weights, condition, x)

    def prior_knows(self, condition: Condition) -> bool:
        several = self.prior.n_components > 1
        fitted = self.reference.n_classes > 0 or (self.class_weights is not None and is_labels(condition))
        return self.forgets or (several and fitted)


def checked_reference(reference: Any, dim: int, event_shape: Sequence[int] | None = None) -> Sequence[int] | None:
    """Check the mixture of a linear process of `dim` values, if there is one; return the shape of one sample."""
    if reference is None:
        return event_shape
    _checks.instance("reference", reference, GaussianMixture, "a GaussianMixture")
    if reference.dim != dim:
        raise ValueError(f"reference: expected a mixture of {dim} values, found {reference.dim}")
    if reference.n_classes:
        raise ValueError(
            "reference: expected a mixture without classes, whose law at T under each `fit_prior` finds, found one "
            f"with {reference.n_classes}; LangevinProcess takes it"
        )
    if event_shape is not None and tuple(event_shape) != reference.event_shape:
        raise ValueError(f"event_shape: expected the reference's, {reference.event_shape}, found {event_shape}")
    return reference.event_shape


class LangevinProcess(ReferenceProcess):
    """Langevin noising whose stationary law is the mixture `reference`: F = 1/2 sigma(t)^2 grad log pi.

    Args:
        reference: pi.
        T: horizon in units of time; default 3 lambda_max(Sigma) / sigma^2 (sigma at 0 if callable).
        n_steps: N, default 100, or with a stiff grid as many as it takes; ignored where `grid` gives the times.
        sigma: diffusion coefficient, a positive number or a callable of t.
        grid: "uniform", "quadratic" (t_n = T (n/N)^2), "stiff" (t_n = c n^2 first, then uniform steps that continue
            it, with q <= 0.2: as few steps as a stiff reference allows; for a constant sigma), or the N+1 times
            themselves, from 0.
        class_key: of a reference with classes, where their labels are in a condition that is a dict. Under a condition,
            noising, prior and residual of a row are those of its class; a label that is no class (-1, or the null
            condition) stands for all components.

    Raises:
        ValueError: if q = a_n lambda_max(P_k) reaches 1, where Euler-Maruyama is far off (beyond 2 it diverges).

    Warns:
        UserWarning: if q exceeds 0.2, where the stationary variance is 1 / (1 - q/2) of the true one.

    Source: Birrell et al., arXiv 2405.15625.
    """

    def __init__(
        self,
        reference: GaussianMixture,
        T: float | None = None,
        n_steps: int | None = None,
        sigma: Sigma = 1.0,
        grid: str | Sequence[float] | Tensor = "uniform",
        *,
        class_key: str = "labels",
    ) -> None:
        if not isinstance(reference, GaussianMixture):
            raise TypeError(f"reference: expected a GaussianMixture, found {type(reference).__name__}")
        smallest, _ = reference.covariance_eigenvalues()
        slowest = reference.largest_variance
        if T is None and isinstance(grid, str):
            T = 3.0 * slowest / _sigma_at(sigma, 0.0) ** 2
        if isinstance(grid, str) and _checks.choice("grid", grid, GRIDS) == "stiff":
            if callable(sigma):
                raise ValueError("grid: expected 'stiff' with a constant sigma, found a callable; give the times")
            longest = 2.0 * STABLE * float(smallest.amin()) / _sigma_at(sigma, 0.0) ** 2
            grid = stiff_grid(T, n_steps, longest)
        super().__init__(reference.dim, T, n_steps, sigma, grid)
        self.reference = reference
        self.class_key: str = _checks.instance("class_key", class_key, str, "a string")
        self.register_buffer("class_weights", None)
        self._register_noise_variance(1.0 - self.drift_scale / slowest)
        self._check_stability(1.0 / smallest, grid)
        with torch.inference_mode(False):
            self.to(reference.means.device)
        self._read_tables()

    def _check_stability(self, precisions: Tensor, grid: str | Sequence[float] | Tensor) -> None:
        """Check q = a_n lambda_max(P_k) at the worst step n and component k."""
        worst = self.drift_scale >= (1.0 - 1e-9) * self.drift_scale.amax()  # the first of them, despite rounding
        n, k = int(worst.int().argmax()), int(precisions.argmax())
        q = float(self.drift_scale[n] * precisions[k])
        if q <= STABLE:
            return
        if isinstance(grid, str):
            sigma = max(self._sigma(self.T * i / 1000) for i in range(1000)) if callable(self.sigma) else self.sigma
            longest = self.T if grid == "uniform" else 2.0 * self.T  # N times the longest step, at most
            enough = 0.5 * sigma**2 * longest * float(precisions[k]) / STABLE
            advice = f"n_steps={math.ceil(1.01 * enough)}"
        else:
            advice = f"steps {math.ceil(q / STABLE)} times finer"
        floor = float(self.drift_scale[n]) / (STABLE * self.reference.mean_variance)
        floor = math.ceil(1010.0 * floor) / 1000.0  # rounded up to what one would type
        if floor <= LARGEST_FLOOR:
            advice = f"reference.conditioned({floor:g}) or a fit with eigenvalue_floor={floor:g}, {advice}"
        message = (
            f"{type(self).__name__}: q = a_n lambda_max(P_k) = {q:.3g} at step {n}, component {k}; use {advice}, "
            "a smaller T or sigma, or a reference fitted with a larger reg_covar"
        )
        cure = _checks.cure("large-steps")
        if q >= REFUSED:
            raise ValueError(f"{message} (expected q < {REFUSED:g}: Euler-Maruyama is unstable){cure}")
        wide = 100.0 * (1.0 / (1.0 - q / 2.0) - 1.0)
        warnings.warn(
            f"{message} (q above {STABLE}: the stationary variance is {wide:.0f}% too wide){cure}",
            stacklevel=3 if type(self) is LangevinProcess else 4,
        )

    @property
    def stationary(self) -> GaussianMixture:
        """The law that the noising leaves as it is: the reference."""
        return self.reference

    @property
    def forgets(self) -> bool:
        return self.stationary.n_components == 1 and math.exp(-0.5 * float(self._growth().sum())) < FORGOTTEN

    def reference_score(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the score of the reference at x [B, ...] -> like x, whatever the times t [B]; of each row's class."""
        return self.reference.score(x, self.class_labels(condition))

    def _growth(self) -> Tensor:
        return 2.0 * self.drift_scale / self.stationary.largest_variance

    @property
    def stiffness(self) -> float:
        """Ratio of the largest to the smallest eigenvalue of any component's covariance."""
        return self.stationary.largest_variance / self.stationary.smallest_variance

    @property
    def single_variance(self) -> float | None:
        """The variance of the reference if it is one spherical component, else None."""
        alone = self.stationary.n_components == 1 and self.stationary.covariance_type == "spherical"
        return float(self.stationary.largest_variance) if alone else None

    def _law(self) -> tuple[Any, ...]:
        return *super()._law(), self.reference.digest

    @property
    def prior(self) -> GaussianMixture:  # type: ignore[override]
        """The law that sampling starts from: pi itself; under a class, with the weights that `fit_prior` found."""
        return self.reference

    def class_labels(self, condition: Condition | None) -> Tensor | None:
        if condition is None or self.reference.n_classes == 0:
            return None
        labels = condition.get(self.class_key) if isinstance(condition, Mapping) else condition
        if not is_labels(labels):
            found = sorted(condition) if isinstance(condition, Mapping) else _checks.shown(condition)
            raise ValueError(
                f"condition: expected class labels, integers [B], or a dict with them as {self.class_key!r}, for a "
                f"reference with {self.reference.n_classes} classes, found {found}"
            )
        return labels

    def drift(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> Tensor:
        score = self.stationary.score(x, self.class_labels(condition))
        _checks.time("t", t, len(x))
        if not isinstance(t, Tensor):
            return 0.5 * self._sigma(float(t)) ** 2 * score
        if not callable(self.sigma):
            return 0.5 * self.sigma**2 * score
        values = [self._sigma(value) for value in t.reshape(-1).tolist()]
        sigma = torch.tensor(values, dtype=torch.float64, device="cpu").to(score)
        return 0.5 * (sigma**2).reshape(-1, *[1] * (score.ndim - 1)) * score

    @property
    def dynamics(self) -> MixtureDynamics:
        return MixtureDynamics(self.drift_scale, self.noise_std, self.stationary)

    def dynamics_under(self, condition: Condition | None, rows: int) -> Dynamics:
        labels = self.class_labels(condition)
        if labels is None:
            return self.dynamics
        return dataclasses.replace(self.dynamics, ranges=self.reference.ranges_of(labels, rows))


class OUProcess(LinearNoising, LangevinProcess):
    """The Ornstein-Uhlenbeck (variance preserving) process towards N(0, I), with exact transitions besides.

    Args:
        dim: d.
        T, n_steps, sigma, grid: as for LangevinProcess. Without a mixture it starts near N(0, I) only if
            exp(-1/2 int sigma^2) is small: T = 10 is usual at sigma = 1. With one the prior is right at any T, as far
            as the mixture is; the default, 3, will do.
        event_shape: shape of one sample; default the reference's, or (dim,).
        reference: a mixture fitted to the data, any covariance type. Noised to T it is the prior, and at each row's own
            t what a ResidualScore adds to. Default N(0, I), which noising leaves as it is: the classical baseline.

    Between grid points sigma is taken for what it is at the last of them, as in the steps.

    Source: for the mixture, Wang and Vastola, arXiv 2412.09726 (the Gaussian and mixture parts of a learnt score).
    """

    def __init__(
        self,
        dim: int,
        T: float | None = None,
        n_steps: int | None = None,
        sigma: Sigma = 1.0,
        grid: str | Sequence[float] | Tensor = "uniform",
        *,
        event_shape: Sequence[int] | None = None,
        reference: GaussianMixture | None = None,
    ) -> None:
        _checks.count("dim", dim)
        event_shape = checked_reference(reference, dim, event_shape)
        normal = GaussianMixture([1.0], [[0.0] * dim], [1.0], "spherical", event_shape=event_shape)
        super().__init__(normal, T, n_steps, sigma, grid)
        self._normal: GaussianMixture | None = None
        if reference is not None:
            self._normal, self.reference = normal, reference
            with torch.inference_mode(False):
                self.to(reference.means.device)
        self._read_tables()

    @property
    def has_mixture(self) -> bool:
        """True if a reference was given."""
        return self._normal is not None

    @property
    def stationary(self) -> GaussianMixture:
        """The law that the noising leaves as it is: N(0, I)."""
        return self.reference if self._normal is None else self._normal

    @property
    def prior(self) -> GaussianMixture:  # type: ignore[override]
        """The law that sampling starts from: the reference noised to T, which is N(0, I) where there is none."""
        if getattr(self, "_normal", None) is None:
            return self.reference
        return self.noised_prior

    def reference_score(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        return self.reference.score(x) if self._normal is None else super().reference_score(x, t)

    def scale_and_variance(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha(t) = exp(-1/2 int sigma^2) and v(t) = 1 - alpha^2 of times t of any shape, float64."""
        if callable(self.sigma):
            exponent = torch.cat([self.drift_scale.new_zeros(1), self.drift_scale.cumsum(0)])
            at = interpolated(self.times, exponent, t)
        else:
            at = 0.5 * self.sigma**2 * t.to(torch.float64)
        return (-at).exp(), -(-2.0 * at).expm1()

    def marginal(self) -> tuple[Tensor, Tensor]:
        """Return m, v of the exact law x_t | x_0 = N(m x_0, v I) at t_1..t_N: m = exp(-sum a_n), v = 1 - m^2; [N]."""
        exponent = self.drift_scale.cumsum(0)
        return (-exponent).exp(), -(-2.0 * exponent).expm1()

    def exact_noised(
        self,
        x0: Tensor,
        step: int | Tensor | None = None,
        seed: int | Tensor | None = None,
        first_path: int = 0,
    ) -> Noised:
        """Draw x_{t_{n+1}} at once, target -z / sqrt(v): the pair of classical denoising score matching."""
        n, key, start = self._draw(x0, step, seed, first_path)
        z = ops.philox_normal(
            len(x0), self.dim, key, n.cpu(), philox.NOISING, start, x0.dtype, x0.device, "auto"
        ).reshape(x0.shape)
        scale, variance = (table[n].to(x0.dtype) for table in self.marginal())
        std = variance.sqrt()
        wide = [-1] + [1] * (x0.ndim - 1)
        x = scale.reshape(wide) * x0 + std.reshape(wide) * z
        return Noised(x, -z / std.reshape(wide), variance, self.times[n + 1].to(coordinate_dtype(x0.dtype)), n)


class DriftProcess(NoisingProcess):
    """Noising with any differentiable drift F(x, t): dX = F dt + sigma dW.

    Args:
        drift: callable (x [B, ...], t [B]) -> like x, differentiable in x (the path estimator takes its transposed
            Jacobian product); or what `compile_drift` made of one.
        prior: where sampling starts, close to the law at T: a GaussianMixture, or an object with `dim` and
            sample(n, seed=..., first_path=...).
        T: horizon; required unless `grid` gives the times.
        rate: rough contraction rate of the drift, -dF/dx, at which the path estimator forgets; any value leaves it
            unbiased, a good one lowers its variance.
        compiled: whether whole trajectories run as compiled code (`compile_drift`): "auto" where that can be done, and
            says once why it cannot; True always; False never, all of it in PyTorch.

    Raises:
        BackendError: if compiled is True and the drift cannot be compiled: an operator that has no rule, or its size.
    """

    def __init__(
        self,
        drift: Callable[[Tensor, Tensor], Tensor],
        prior: Any,
        T: float | None = None,
        n_steps: int = 100,
        sigma: Sigma = 1.0,
        grid: str | Sequence[float] | Tensor = "uniform",
        *,
        rate: float = 0.0,
        compiled: str | bool = "auto",
    ) -> None:
        _checks.network("drift", drift)
        _checks.flag_or_auto("compiled", compiled)
        if not (hasattr(prior, "sample") and hasattr(prior, "dim")):
            raise TypeError(f"prior: expected a GaussianMixture or the like, found {type(prior).__name__}")
        if T is None and isinstance(grid, str):
            raise ValueError("T: expected a horizon, found None; only a LangevinProcess has a default")
        super().__init__(_checks.count("prior.dim", prior.dim), T, n_steps, sigma, grid)
        self.prior = prior
        self.compiled = compiled
        if isinstance(drift, CompiledDrift):
            drift = drift.function
        self.drift_function = drift
        self._program = CompiledDrift(drift, self.event_shape, required=compiled is True) if compiled else None
        if self._program is not None and self._program.required:
            self._program.check()
        self.rate = _checks.number("rate", rate)
        contraction = 1.0 - self.rate * self.times.diff()
        if not bool((contraction > 0).all()):
            raise ValueError(f"rate: expected rate * dt below 1, found {rate} * {float(self.times.diff().max()):.3g}")
        self._register_noise_variance(contraction)
        self._read_tables()

    def drift(self, x: Tensor, t: float | Tensor, condition: Condition | None = None) -> Tensor:
        _checks.batch("x", x, self.dim)
        _checks.time("t", t, len(x))
        times = torch.as_tensor(t, dtype=x.dtype, device=x.device).reshape(-1).expand(len(x))
        return _checks.drift_output(self.drift_function(x, times), x)

    def _growth(self) -> Tensor:
        return 2.0 * self.rate * self.times.diff()

    def _law(self) -> tuple[Any, ...]:
        return *super()._law(), self.drift_function

    @property
    def dynamics(self) -> CallableDynamics:
        drift = CallableDrift(self.drift_function, self.times, self.event_shape, self.rate)
        return CallableDynamics(drift, self.noise_std, self._program)
