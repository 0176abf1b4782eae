"""Random inputs of every kind, and one list of calls of the ops on them: for tests, comparisons and benchmarks.

    for call in CALLS:
        for covariance_type in COVARIANCE_TYPES:
            inputs = random_arguments(covariance_type, 33, 5, 3)
            exact = call(inputs, "reference")
            assert deviation(call(inputs.to(torch.float32), "cpp"), exact) < 1e-4

All is drawn on the CPU, so that it is the same on every device; what ops are called with is exact in float32.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from . import functional
from .mixture import GaussianMixture
from .process import LangevinProcess
from .reference.components import COVARIANCE_TYPES

__all__ = [
    "CALLS",
    "COVARIANCE_TYPES",
    "FIRST_PATH",
    "LOSSES",
    "SEED",
    "Arguments",
    "Call",
    "coarse_process",
    "deviation",
    "differentiated",
    "generator",
    "normals",
    "random_arguments",
    "random_mixture",
    "strided",
]

SEED, FIRST_PATH = -0x123456789ABCDEF, 2**32 - 9  # with high bits set, and paths on both sides of 2^32
LOSSES = {  # name -> estimator, antithetic
    "plain": ("plain", False),
    "antithetic": ("plain", True),
    "control_variate": ("control_variate", False),
}

# --- random inputs -----------------------------------------------------------------------------------------------


def generator(seed: int) -> torch.Generator:
    """Return a generator on the CPU that starts from the seed."""
    return torch.Generator("cpu").manual_seed(seed)


def normals(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw standard normals in float64 and round them."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64, device="cpu").to(device, dtype)


def random_mixture(
    covariance_type: str,
    n_components: int,
    dim: int,
    *,
    seed: int | torch.Generator = 0,
    ratio: float = 30.0,
    overlapping: bool = False,
    **options: Any,
) -> GaussianMixture:
    """Draw a mixture in float64 with unequal weights, its principal axes at random.

    Args:
        covariance_type, options: as of GaussianMixture.
        seed: of the draw, or the generator to draw from.
        ratio: of the largest eigenvalue that covariances may have, 1, to the smallest. Means are normals of variance 4.
        overlapping: instead, means uniform in [-2, 2]^d and eigenvalues in [0.3, 1.3], so that many components share
            each point.
    """
    g = seed if isinstance(seed, torch.Generator) else generator(1000 * seed + 10 * n_components + dim)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64, device="cpu")

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64, device="cpu")

    def variances(*shape: int) -> Tensor:
        return 0.3 + uniform(*shape) if overlapping else ratio ** -uniform(*shape)

    def matrices(count: int) -> Tensor:
        basis = torch.linalg.qr(normal(count, dim, dim))[0]
        return basis @ torch.diag_embed(variances(count, dim)) @ basis.mT

    weights = uniform(n_components) + 0.2
    means = 4.0 * uniform(n_components, dim) - 2.0 if overlapping else 2.0 * normal(n_components, dim)
    covariances = {
        "spherical": lambda: variances(n_components),
        "diag": lambda: variances(n_components, dim),
        "tied": lambda: matrices(1)[0],
        "full": lambda: matrices(n_components),
    }[covariance_type]()
    return GaussianMixture(weights / weights.sum(), means, covariances, covariance_type, **options)


def coarse_process(reference: GaussianMixture, **options: Any) -> LangevinProcess:
    """Return a LangevinProcess that does not warn of large steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return LangevinProcess(reference, **options)


def strided(t: Tensor) -> Tensor:
    """Return the same values, not contiguous."""
    return torch.stack([t, t], dim=-1)[..., 0]


@dataclass
class Arguments:
    """Arguments that the ops are called with on B paths: the same values in every dtype and on every device."""

    process: LangevinProcess
    x: Tensor  # [B, d]: data, noised samples, a score
    v: Tensor  # [B, d]: a direction, a score, a target
    scores: Tensor  # [2B, d]: of pairs, first halves first
    noise: Tensor  # [B, d]
    std: Tensor  # [B]
    steps: Tensor  # [B] in 0..N
    seed: int
    first_path: int

    @property
    def mixture(self) -> GaussianMixture:
        """The reference of the process."""
        return self.process.reference

    @property
    def shape(self) -> tuple[int, int]:
        """B and d."""
        return len(self.x), self.x.shape[1]

    def to(self, dtype: torch.dtype) -> Arguments:
        """Return the same with data of that dtype; the process keeps its own."""
        return replace(self, **{name: getattr(self, name).to(dtype) for name in ("x", "v", "scores", "noise", "std")})

    def __getitem__(self, rows: slice) -> Arguments:
        """Return the paths of these consecutive rows."""
        first, last, _ = rows.indices(len(self.x))
        return replace(
            self,
            **{name: getattr(self, name)[first:last] for name in ("x", "v", "noise", "std", "steps")},
            scores=torch.cat([half[first:last] for half in self.scores.split(len(self.x))]),
            first_path=self.first_path + first,
        )


def random_arguments(
    covariance_type: str,
    rows: int,
    dim: int,
    n_components: int,
    *,
    n_steps: int = 12,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Arguments:
    """Draw arguments, exact in float32; `options` are those of random_mixture.

    Steps of the process are large, 1/30; the first of the paths end at N, 0 and N // 2.
    """
    mixture = random_mixture(covariance_type, n_components, dim, seed=seed, **options).to(device)

    def normal(index: int, *shape: int) -> Tensor:
        return normals(*shape, seed=10 * seed + index, dtype=torch.float32)

    steps = torch.randint(0, n_steps + 1, (rows,), generator=generator(10 * seed + dim), device="cpu")
    steps[:3] = steps.new_tensor([n_steps, 0, n_steps // 2])[:rows]
    x, v = (2.0 * normal(i, rows, dim) for i in range(2))
    scores, noise, std = normal(2, 2 * rows, dim), normal(3, rows, dim), 0.1 + normal(4, rows).abs()
    x, v, scores, noise, std = (t.to(device, dtype) for t in (x, v, scores, noise, std))
    process = coarse_process(mixture, T=n_steps / 30, n_steps=n_steps)
    return Arguments(process, x, v, scores, noise, std, steps.to(device), SEED + seed, FIRST_PATH)


# --- calls of the ops --------------------------------------------------------------------------------------------

Results = tuple[Tensor, ...]


def differentiated(function: Callable[..., Tensor], *inputs: Tensor) -> Results:
    """Return the result, and its gradients in all inputs along a fixed direction."""
    points = [x.detach().requires_grad_() for x in inputs]
    out = function(*points)
    return out.detach(), *torch.autograd.grad(out, points, _direction(out.shape, out.dtype, out.device))


@lru_cache(maxsize=8)
def _direction(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Draw it once, so that the times of calls have no part of it."""
    with torch.inference_mode(False):
        return normals(*shape, seed=9, dtype=dtype, device=device)


@dataclass(frozen=True)
class Call:
    """A function of `fastndsm.functional`, called in one way."""

    op: str
    function: Callable[[Arguments, str], Tensor | Results]
    way: str = ""
    inputs: tuple[str, ...] = ()  # those of the arguments in which its backend gives gradients too

    @property
    def name(self) -> str:
        """The op and the way, unlike any other's."""
        return f"{self.op} {self.way}".rstrip()

    @property
    def takes_mixture(self) -> bool:
        """True if the op depends on the process or its mixture."""
        return self.op not in ("philox_normal", "ndsm_loss", "dsm_loss")

    def __call__(self, arguments: Arguments, backend: str = "auto") -> Results:
        """Return the results."""
        found = self.function(arguments, backend)
        return (found,) if isinstance(found, Tensor) else found

    def with_gradients(self, arguments: Arguments, backend: str = "auto") -> Results:
        """Return the results and, if there are `inputs`, the gradients in them."""
        if not self.inputs:
            return self(arguments, backend)

        def at(*points: Tensor) -> Tensor:
            changed: dict[str, Any] = dict(zip(self.inputs, points, strict=True))
            return self(replace(arguments, **changed), backend)[0]

        return differentiated(at, *(getattr(arguments, name) for name in self.inputs))


def _philox_normal(a: Arguments, backend: str) -> Tensor:
    options: dict[str, Any] = {"dtype": a.x.dtype, "device": a.x.device, "backend": backend}
    return functional.philox_normal(*a.shape, seed=a.seed, stream=3, step=5, first_path=a.first_path, **options)


def _philox_normal_at_steps(a: Arguments, backend: str) -> Tensor:
    options: dict[str, Any] = {"dtype": a.x.dtype, "device": a.x.device, "backend": backend}
    first_path = 2**56 - len(a.x)  # the last there are
    return functional.philox_normal(*a.shape, seed=a.seed, stream=3, step=7 * a.steps, first_path=first_path, **options)


def _mixture_log_prob(a: Arguments, backend: str) -> Tensor:
    return functional.mixture_log_prob(a.x, a.mixture, backend=backend)


def _mixture_score(a: Arguments, backend: str) -> Tensor:
    return functional.mixture_score(a.x, a.mixture, backend=backend)


def _mixture_hvp(a: Arguments, backend: str) -> Tensor:
    return functional.mixture_hvp(a.x, a.v, a.mixture, backend=backend)


def _noised_score(a: Arguments, backend: str) -> Tensor:
    return functional.noised_score(a.x, _variance(a), a.mixture, backend=backend)


def _noised_log_prob(a: Arguments, backend: str) -> Tensor:
    return functional.noised_log_prob(a.x, _variance(a), a.mixture, backend=backend)


def _variance(a: Arguments) -> Tensor:
    """Return variances [B] that are exact in every dtype."""
    return a.v.flatten(1).abs().amax(1)


def _mixture_sample(a: Arguments, backend: str) -> Tensor:
    options: dict[str, Any] = {"seed": a.seed, "first_path": a.first_path, "dtype": a.x.dtype, "backend": backend}
    return functional.mixture_sample(len(a.x), a.mixture, **options)


def _simulate(a: Arguments, backend: str) -> Tensor:
    return functional.simulate(a.x, a.process, a.steps, seed=a.seed, first_path=a.first_path, backend=backend)


def _simulate_transition(a: Arguments, backend: str) -> Results:
    options: dict[str, Any] = {"seed": a.seed, "first_path": a.first_path, "backend": backend}
    return functional.simulate_transition(a.x, a.process, a.steps.clamp(min=1), **options)


def _simulate_target(a: Arguments, backend: str, *, antithetic: bool) -> Results:
    options: dict[str, Any] = {"seed": a.seed, "first_path": a.first_path, "backend": backend}
    return functional.simulate_target(a.x, a.process, a.steps, antithetic=antithetic, **options)


def _reverse_step(a: Arguments, backend: str, *, method: str, last: bool) -> Tensor:
    step = 0 if last else a.process.n_steps // 4
    options: dict[str, Any] = {"seed": a.seed, "first_path": a.first_path, "method": method, "backend": backend}
    return functional.reverse_step(a.x, a.v, a.process, step, **options)


def _reverse_steps(a: Arguments, backend: str, *, method: str, prediction: str, to_the_end: bool) -> Tensor:
    high = max(a.process.n_steps // 2, 1)
    slope = None if to_the_end else 0.25 * a.v.flip(1)  # of the row itself: batches may be split
    last = 0 if to_the_end else high // 2
    options: dict[str, Any] = {"seed": a.seed, "first_path": a.first_path, "method": method, "prediction": prediction}
    if prediction == "linear":
        options["rate"] = _variance(a)
    return functional.reverse_steps(a.x, a.v, slope, a.process, high, last, backend=backend, **options)


def _ndsm_loss(a: Arguments, backend: str, *, estimator: str, antithetic: bool) -> Tensor:
    scores = a.scores if antithetic or estimator == "control_variate" else a.x
    options: dict[str, Any] = {"estimator": estimator, "antithetic": antithetic, "reduction": "none"}
    return functional.ndsm_loss(scores, a.noise, a.std, backend=backend, **options)


def _dsm_loss(a: Arguments, backend: str) -> Tensor:
    return functional.dsm_loss(a.x, a.v, reduction="none", backend=backend)


def _ndsm_loss_calls() -> Sequence[Call]:
    made = []
    for name, (estimator, antithetic) in LOSSES.items():
        function = partial(_ndsm_loss, estimator=estimator, antithetic=antithetic)
        made.append(Call("ndsm_loss", function, name, ("x",) if name == "plain" else ("scores",)))
    return made


CALLS = (
    Call("philox_normal", _philox_normal),
    Call("philox_normal", _philox_normal_at_steps, "at steps"),
    Call("mixture_log_prob", _mixture_log_prob, inputs=("x",)),
    Call("mixture_score", _mixture_score, inputs=("x",)),
    Call("mixture_hvp", _mixture_hvp),
    Call("mixture_sample", _mixture_sample),
    Call("noised_score", _noised_score, inputs=("x",)),
    Call("noised_log_prob", _noised_log_prob, inputs=("x",)),
    Call("simulate", _simulate),
    Call("simulate_transition", _simulate_transition),
    Call("simulate_target", partial(_simulate_target, antithetic=False)),
    Call("simulate_target", partial(_simulate_target, antithetic=True), "antithetic"),
    Call("reverse_step", partial(_reverse_step, method="sde", last=False), "sde"),
    Call("reverse_step", partial(_reverse_step, method="sde", last=True), "last sde"),
    Call("reverse_step", partial(_reverse_step, method="ode", last=False), "ode"),
    Call("reverse_steps", partial(_reverse_steps, method="sde", prediction="data", to_the_end=False), "data"),
    Call("reverse_steps", partial(_reverse_steps, method="sde", prediction="score", to_the_end=False), "score"),
    Call("reverse_steps", partial(_reverse_steps, method="sde", prediction="score", to_the_end=True), "to t_0"),
    Call("reverse_steps", partial(_reverse_steps, method="ode", prediction="data", to_the_end=False), "ode"),
    Call("reverse_steps", partial(_reverse_steps, method="sde", prediction="linear", to_the_end=False), "linear"),
    Call("reverse_steps", partial(_reverse_steps, method="ode", prediction="linear", to_the_end=True), "linear ode"),
    *_ndsm_loss_calls(),
    Call("dsm_loss", _dsm_loss, inputs=("x", "v")),
)

# --- agreement ---------------------------------------------------------------------------------------------------


def deviation(found: Results, exact: Results) -> float:
    """Return the largest absolute error over the largest absolute value; NaN, below no bound, where one is NaN."""
    errors = [
        (f.double() - e.double()).abs().max() / e.double().abs().max().clamp_min(1e-300)
        for f, e in zip(found, exact, strict=True)
    ]
    return float(torch.stack(errors).max())
