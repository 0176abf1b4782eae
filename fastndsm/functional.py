"""The ops as functions: data of any event shape in, the same shape out; `backend="auto"` on each.

Noise is counter-based (see `fastndsm.reference.philox`): it depends on the seed, the path's number and the step alone,
so a batch may be split, reordered over devices or simulated in pieces by moving `first_path`.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from . import _checks
from ._condition import Condition
from ._ops import ops
from ._scheme import METHODS, PREDICTIONS, ReverseScheme, plain_coefficients
from .dynamics import Dynamics
from .reference import MixtureOperands, NoisedOperands

__all__ = [
    "dsm_loss",
    "mixture_hvp",
    "mixture_log_prob",
    "mixture_sample",
    "mixture_score",
    "ndsm_loss",
    "noised_log_prob",
    "noised_score",
    "philox_normal",
    "reverse_step",
    "reverse_steps",
    "simulate",
    "simulate_target",
    "simulate_transition",
]

REDUCTIONS = ("mean", "sum", "none")


class Mixture(Protocol):
    """A Gaussian mixture, as `fastndsm.GaussianMixture` is one."""

    event_shape: tuple[int, ...]

    @property
    def dim(self) -> int: ...
    def operands(self, dtype: torch.dtype) -> MixtureOperands: ...
    def sampling_operands(self) -> tuple[Tensor, Tensor, Tensor, str]: ...
    def noised_operands(self, dtype: torch.dtype) -> NoisedOperands: ...
    def widened_operands(self, dtype: torch.dtype, variance: Tensor) -> MixtureOperands: ...
    def ranges_of(self, labels: Any, n: int) -> Tensor: ...
    def class_log_weights(self, labels: Any, n: int) -> Tensor: ...


class Process(Protocol):
    """A noising process, as `fastndsm.LangevinProcess` is one."""

    drift_scale: Tensor
    noise_std: Tensor

    @property
    def dim(self) -> int: ...
    @property
    def n_steps(self) -> int: ...
    def dynamics_under(self, condition: Condition | None, rows: int) -> Dynamics: ...
    def check_dtype(self, name: str, dtype: torch.dtype) -> None: ...
    def reverse_scheme(self, method: str = "sde", prediction: str = "data") -> ReverseScheme: ...
    def check_paths(
        self,
        x0: Tensor,
        steps: int | Tensor | None,
        seed: int | Tensor | None,
        first_path: int,
        *,
        least: int = 0,
        antithetic: bool = False,
        records: bool = False,
    ) -> tuple[Tensor, Tensor, int]: ...


def _name(backend: Any) -> str:
    """Return a backend's name; whether there is one, the op looks itself."""
    return _checks.instance("backend", backend, str, "the name of a backend")  # type: ignore[no-any-return]


def _mixture(mixture: Any) -> Mixture:
    if not hasattr(mixture, "operands") or isinstance(mixture, type):
        raise TypeError(f"mixture: expected a GaussianMixture, found {type(mixture).__name__}")
    return mixture  # type: ignore[no-any-return]


def _process(process: Any) -> Process:
    if not hasattr(process, "noise_std") or isinstance(process, type):
        raise TypeError(f"process: expected a noising process, found {type(process).__name__}")
    return process  # type: ignore[no-any-return]


def philox_normal(
    n_paths: int,
    dim: int,
    *,
    seed: int | Tensor | None,
    step: int | Tensor = 0,
    stream: int = 0,
    first_path: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """Draw standard normals [n_paths, dim] of the paths first_path, first_path + 1, ...

    Args:
        seed: 64-bit key; None draws one from PyTorch's default generator.
        step: step in [0, 2^32), an int or int64 [n_paths].
        stream: which use of random numbers this is, 0..255; 0 is the noising process.

    Source: Philox4x32-10, Salmon et al. 2011; Box-Muller.
    """
    _checks.count("n_paths", n_paths)
    _checks.count("dim", dim)
    _checks.floating_dtype("dtype", dtype)
    if not 0 <= _checks.count("stream", stream, minimum=0) < 256:
        raise ValueError(f"stream: expected an integer in 0..255, found {stream}")
    steps = _checks.steps("step", step, n_paths, 2**32 - 1, device=None)
    return ops.philox_normal(
        n_paths,
        dim,
        _checks.seed(seed),
        steps,
        stream,
        _checks.first_path(first_path),
        dtype,
        _checks.device("device", device, usable=False),
        _name(backend),
    )


def _mixture_arguments(name: str, x: Tensor, mixture: Mixture, labels: Tensor | None) -> tuple[Any, ...]:
    operands = mixture.operands(x.dtype)
    _checks.same_device(name, x, "mixture", operands.means.device)
    return *operands, None if labels is None else mixture.ranges_of(labels, len(x))


def mixture_score(x: Tensor, mixture: Mixture, *, labels: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return grad log pi(x) for x [B, ...] -> like x. Differentiable in x (by the HVP), twice.

    labels: integers [B], of a mixture with classes: row by row that of the class's components alone. A label that is
        no class stands for all of them.
    """
    flat = _checks.batch("x", x, _mixture(mixture).dim)
    return ops.mixture_score(flat, *_mixture_arguments("x", x, mixture, labels), _name(backend)).reshape(x.shape)


def mixture_log_prob(x: Tensor, mixture: Mixture, *, labels: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return log pi(x) in nats for x [B, ...] -> [B]; with labels, as for `mixture_score`, log pi(x | label)."""
    flat = _checks.batch("x", x, _mixture(mixture).dim)
    log_prob: Tensor = ops.mixture_log_prob(flat, *_mixture_arguments("x", x, mixture, labels), _name(backend))
    return log_prob if labels is None else log_prob - mixture.class_log_weights(labels, len(x)).to(log_prob.dtype)


def mixture_hvp(
    x: Tensor, v: Tensor, mixture: Mixture, *, labels: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Return the Hessian of log pi at x times v, for x, v [B, ...] -> like x; labels as for `mixture_score`."""
    flat = _checks.batch("x", x, _mixture(mixture).dim)
    direction = _checks.like("v", v, "x", x).reshape(flat.shape)
    arguments = _mixture_arguments("x", x, mixture, labels)
    return ops.mixture_hvp(flat, direction, *arguments, _name(backend)).reshape(x.shape)


def noised_score(x: Tensor, variance: Tensor, mixture: Mixture, *, backend: str = "auto") -> Tensor:
    """Return the score at x [B, ...] of the mixture with covariances Sigma_k + variance I -> like x. Differentiable.

    In C++ a row of 32 values costs 1.2 times what it costs `mixture_score` if spherical, 1.5 times if diag, 1.4 if full
    and as much if tied (K = 50, float32, AVX-512; `pytest benchmarks/test_ops.py -k noised`).

    Args:
        variance: not negative, [B], of each row its own, or 0-d, for all rows: then by `mixture_score`.
    """
    flat, variance = _noised_arguments(x, variance, mixture)
    if variance.ndim == 0:
        operands = mixture.widened_operands(x.dtype, variance)
        return ops.mixture_score(flat, *operands, None, _name(backend)).reshape(x.shape)
    return ops.noised_score(flat, variance, *mixture.noised_operands(x.dtype), _name(backend)).reshape(x.shape)


def noised_log_prob(x: Tensor, variance: Tensor, mixture: Mixture, *, backend: str = "auto") -> Tensor:
    """Return the log-density [B] in nats at x [B, ...] of the mixture with covariances Sigma_k + variance I.

    variance: not negative, [B], of each row its own, or 0-d, for all rows.
    """
    flat, variance = _noised_arguments(x, variance, mixture)
    if variance.ndim == 0:
        return ops.mixture_log_prob(flat, *mixture.widened_operands(x.dtype, variance), None, _name(backend))
    return ops.noised_log_prob(flat, variance, *mixture.noised_operands(x.dtype), _name(backend))


def _noised_arguments(x: Tensor, variance: Tensor, mixture: Mixture) -> tuple[Tensor, Tensor]:
    flat = _checks.batch("x", x, _mixture(mixture).dim)
    _checks.same_device("x", x, "mixture", mixture.operands(x.dtype).means.device)
    _checks.floating("variance", variance)
    if variance.shape not in ((), (len(flat),)):
        raise ValueError(f"variance: expected shape () or ({len(flat)},), found {tuple(variance.shape)}")
    _checks.same_device("variance", variance, "x", x.device)
    if not torch.compiler.is_compiling() and variance.device.type == "cpu" and not bool((variance >= 0.0).all()):
        raise ValueError(f"variance: expected non-negative values, found {float(variance.amin())}")
    return flat, variance


def mixture_sample(
    n: int,
    mixture: Mixture,
    *,
    seed: int | Tensor | None,
    first_path: int = 0,
    dtype: torch.dtype | None = None,
    labels: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Draw n exact samples [n, ...] from the mixture, in its own dtype unless another is given.

    labels: of the samples, integers [n], as for `mixture_score`.
    """
    _checks.count("n", n)
    cumulative, means, factors, covariance_type = _mixture(mixture).sampling_operands()
    dtype = means.dtype if dtype is None else _checks.floating_dtype("dtype", dtype)
    key, start = _checks.seed(seed), _checks.first_path(first_path)
    ranges = None if labels is None else mixture.ranges_of(labels, n)
    out = ops.mixture_sample(n, cumulative, means, factors, covariance_type, key, start, dtype, ranges, _name(backend))
    return out.reshape(n, *mixture.event_shape)


def simulate(
    x0: Tensor,
    process: Process,
    steps: int | Tensor | None = None,
    *,
    seed: int | Tensor | None,
    first_path: int = 0,
    condition: Condition | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return x after `steps` (int or [B], 0..N; default N) Euler-Maruyama steps from x0 [B, ...] -> like x0.

    condition: of x0; where the process's reference has classes, rows are noised towards that of theirs.

    Source: Kloeden and Platen, Numerical Solution of SDEs; noise of path first_path + i at step n by `philox_normal`.
    """
    taken, key, start = _process(process).check_paths(x0, steps, seed, first_path)
    return process.dynamics_under(condition, len(x0)).simulate(x0, taken, key, start, _name(backend))


def simulate_transition(
    x0: Tensor,
    process: Process,
    steps: int | Tensor | None = None,
    *,
    seed: int | Tensor | None,
    first_path: int = 0,
    condition: Condition | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x after `steps` (1..N) steps with the mean and the noise of the last one, each like x0 [B, ...]."""
    taken, key, start = _process(process).check_paths(x0, steps, seed, first_path, least=1)
    dynamics = process.dynamics_under(condition, len(x0))
    return dynamics.simulate_transition(x0, taken, key, start, _name(backend))


def simulate_target(
    x0: Tensor,
    process: Process,
    steps: int | Tensor | None = None,
    *,
    seed: int | Tensor | None,
    first_path: int = 0,
    antithetic: bool = False,
    condition: Condition | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return x as `simulate` gives it, the path estimator's target, and its reference variance v.

    Args:
        steps: an int, [B], or [B, R] in any order for R records of each path, in about the time of the one of most
            steps: outputs are [B, R, ...] then, each record the bits of a call with its steps alone.
        condition: as for `simulate`.

    Returns:
        x and target [B, ...], variance [B] (spherical mixtures) or like x; 2B rows if antithetic, the B paths driven
        by z first, then those driven by -z. E[target | x] is the score of the law of x. Where steps = 0, target = 0
        and v = 0.
    """
    options = {"antithetic": antithetic, "records": True}
    taken, key, start = _process(process).check_paths(x0, steps, seed, first_path, **options)
    dynamics = process.dynamics_under(condition, len(x0))
    return dynamics.simulate_target(x0, taken, key, start, antithetic, _name(backend))


def reduce(losses: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Weight [B] and reduce per-sample losses [B]."""
    if weight is not None:
        losses = losses * weight.to(losses.dtype)
    if reduction == "none":
        return losses
    return losses.mean() if reduction == "mean" else losses.sum()


def _check_weight(weight: Tensor | None, rows: int) -> None:
    if weight is not None:
        if _checks.floating("weight", weight).shape != (rows,):
            raise ValueError(f"weight: expected shape ({rows},), found {tuple(weight.shape)}")
        _checks.loss_weights("weight", weight)


def ndsm_loss(
    scores: Tensor,
    noise: Tensor,
    std: Tensor,
    *,
    estimator: str,
    antithetic: bool = False,
    weight: Tensor | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Return the `plain` or `control_variate` estimator of the NDSM objective, differentiable in `scores`.

    Args:
        scores: [B, ...] at x for "plain"; [2B, ...] for "control_variate" (at x, then at mean) and antithetic (at
            mean + s z, then at mean - s z), as one batched call of the network returns them.
        noise: z [B, ...]; for antithetic, `Transition.noise` with its 2B rows (z, then -z) will do too.
        std: s_n [B] (or the 2B rows of an antithetic `Transition`).
        weight: lambda [B]; None is 1.
        reduction: "mean", "sum" or "none" ([B], an antithetic pair averaged).

    Source: Birrell et al., arXiv 2405.15625.
    """
    _checks.choice("estimator", estimator, ("plain", "control_variate"))
    _checks.choice("reduction", reduction, REDUCTIONS)
    if _checks.flag("antithetic", antithetic) and estimator == "control_variate":
        raise ValueError("antithetic: expected False with estimator 'control_variate', found True")
    _checks.floating("scores", scores), _checks.floating("noise", noise), _checks.floating("std", std)
    pairs = antithetic or estimator == "control_variate"
    if antithetic and len(noise) == len(scores):
        noise = noise[: len(noise) // 2]
    rows = len(noise)
    if antithetic and len(std) == 2 * rows:
        std = std[:rows]
    expected = (rows * (2 if pairs else 1), *noise.shape[1:])
    if rows == 0 or noise.ndim < 2:
        raise ValueError(f"noise: expected shape [B, ...] with B >= 1, found {tuple(noise.shape)}")
    if scores.shape != expected:
        raise ValueError(f"scores: expected shape {expected} for {estimator!r}, found {tuple(scores.shape)}")
    if std.shape != (rows,):
        raise ValueError(f"std: expected shape ({rows},), found {tuple(std.shape)}")
    for name, tensor in (("noise", noise), ("std", std)):
        _checks.same_device(name, tensor, "scores", scores.device)
        if tensor.requires_grad:
            raise ValueError(f"{name}: expected a tensor that needs no gradient; detach it")
    _check_weight(weight, rows)
    losses = ops.ndsm_loss(scores.flatten(1), noise.flatten(1), std, estimator, antithetic, _name(backend))
    return reduce(losses, weight, reduction)


def dsm_loss(
    score: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    backend: str = "auto",
) -> Tensor:
    """Return weight/2 |score - target|^2 summed over a sample, for score, target [B, ...]; weight [B]; differentiable.

    Source: Vincent 2011 (denoising score matching); with the path target, NDSM in one evaluation.
    """
    _checks.choice("reduction", reduction, REDUCTIONS)
    _checks.like("target", target, "score", _checks.floating("score", score))
    if score.ndim < 2 or len(score) == 0:
        raise ValueError(f"score: expected shape [B, ...] with B >= 1, found {tuple(score.shape)}")
    _check_weight(weight, len(score))
    return reduce(ops.dsm_loss(score.flatten(1), target.flatten(1), _name(backend)), weight, reduction)


def reverse_steps(
    y: Tensor,
    held: Tensor,
    slope: Tensor | None,
    process: Process,
    first: int,
    last: int,
    *,
    rate: Tensor | None = None,
    seed: int | Tensor | None,
    first_path: int = 0,
    method: str = "sde",
    prediction: str = "data",
    condition: Condition | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return y at t_last from y [B, ...] at t_first: all steps between two evaluations of the network, in one call.

    Args:
        held: what the network gave at t_first, like y: the residual r = s - grad log pi for "score", the residual
            denoiser y + v r for "data" (E[x_0 | y] where the reference is one spherical component), r + rate y for
            "linear".
        slope: its derivative, like y, along int sigma^2 dt / sqrt(v) for "score", log E for "data" and -log v for
            "linear", as `process.reverse_scheme` has them; None holds it constant.
        first, last: numbers of grid points, N >= first > last >= 0.
        rate: omega [B] of "linear", at least 0; None is 0.
        method: "sde" adds the noise of the reverse stream except at the step to t_0; "ode" is the probability flow.
        condition: of y; where the process's reference has classes, grad log pi is that of a row's class.

    Source: the reverse SDE, Anderson 1982; exponential integrators for it, Lu et al., arXiv 2211.01095.
    """
    _checks.choice("method", method, METHODS)
    _checks.choice("prediction", prediction, PREDICTIONS)
    held = _reverse_operand("held", held, y, process)
    slope = None if slope is None else _reverse_operand("slope", slope, y, process)
    rate = None if rate is None else _rate(rate, y, prediction)
    high = _checks.grid_point("first", first, 1, process.n_steps)
    low = _checks.grid_point("last", last, 0, high - 1)
    key, start = _checks.seed(seed), _checks.first_path(first_path)
    coefficients = process.reverse_scheme(method, prediction).coefficients(high, low)
    bounds = torch.tensor([high, low], dtype=torch.int64, device="cpu").to(y.device)
    dynamics = process.dynamics_under(condition, len(y))
    return dynamics.reverse_steps(y, held, slope, rate, bounds, coefficients, key, start, _name(backend))


def reverse_step(
    y: Tensor,
    score: Tensor,
    process: Process,
    step: int | Tensor,
    *,
    seed: int | Tensor | None,
    first_path: int = 0,
    method: str = "sde",
    condition: Condition | None = None,
    backend: str = "auto",
) -> Tensor:
    """Take the step y_{n+1} -> y_n in reverse, n = step (0..N-1, int or 0-d); score = s(y, t_{n+1}) like y [B, ...].

    It is the case of one step of `reverse_steps`, by Euler-Maruyama. "sde" adds the noise of the reverse stream except
    at n = 0; "ode" is the Euler step of the probability flow. condition: as for `reverse_steps`.

    Source: Anderson 1982; Song et al. 2021.
    """
    _checks.choice("method", method, METHODS)
    held = _reverse_operand("score", score, y, process)
    n = _checks.steps("step", step, None, process.n_steps - 1, y.device)
    key, start = _checks.seed(seed), _checks.first_path(first_path)
    bounds = torch.stack([n + 1, n])
    coefficients = plain_coefficients(process.drift_scale, process.noise_std, method)
    dynamics = process.dynamics_under(condition, len(y))
    return dynamics.reverse_steps(y, held, None, None, bounds, coefficients, key, start, _name(backend))


def _reverse_operand(name: str, value: Tensor, y: Tensor, process: Process) -> Tensor:
    """Check y and a tensor like it that the reverse process takes; return the latter in the dtype of y."""
    _checks.batch("y", y, _process(process).dim)
    _checks.same_device("y", y, "process", process.noise_std.device)
    process.check_dtype("y", y.dtype)
    return _checks.like(name, value, "y", y).to(y.dtype)


def _rate(rate: Tensor, y: Tensor, prediction: str) -> Tensor:
    if prediction != "linear":
        raise ValueError(f"rate: expected None with prediction {prediction!r}, found a tensor")
    if _checks.floating("rate", rate).shape != (len(y),):
        raise ValueError(f"rate: expected shape ({len(y)},), found {tuple(rate.shape)}")
    _checks.same_device("rate", rate, "y", y.device)
    return rate.to(y.dtype)
