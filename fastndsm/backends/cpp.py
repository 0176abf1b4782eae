"""The fused CPU backend: the functions of `fastndsm.reference`, served by the C++ ops in csrc/."""

from __future__ import annotations

import torch
from torch import Tensor

from ..jit import core as jit
from ..reference import MixtureOperands, NoisedOperands, PrincipalAxes, ProcessOperands
from ..reference.loss import accumulation_dtype

_ops = torch.ops.fastndsm_cpp


def prepare() -> None:
    """Build and load the ops; raise BuildError with the reason."""
    jit.load()


def philox_normal(
    n_paths: int,
    dim: int,
    seed: Tensor,
    step: Tensor,
    stream: int,
    first_path: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    return _ops.philox_normal(n_paths, dim, seed, step, stream, first_path, dtype)


def mixture_score(x: Tensor, mixture: MixtureOperands, ranges: Tensor | None = None) -> Tensor:
    return _ops.mixture_score(x, *mixture, ranges)


def mixture_log_prob(x: Tensor, mixture: MixtureOperands, ranges: Tensor | None = None) -> Tensor:
    return _ops.mixture_log_prob(x, *mixture, ranges)


def mixture_hvp(x: Tensor, v: Tensor, mixture: MixtureOperands, ranges: Tensor | None = None) -> Tensor:
    return _ops.mixture_hvp(x, v, *mixture, ranges)


def noised_score(x: Tensor, variance: Tensor, mixture: NoisedOperands) -> Tensor:
    return _ops.noised_score(x, variance, *mixture)


def noised_log_prob(x: Tensor, variance: Tensor, mixture: NoisedOperands) -> Tensor:
    return _ops.noised_log_prob(x, variance, *mixture)


def mixture_sample(
    n: int,
    cumulative_weights: Tensor,
    means: Tensor,
    factors: Tensor,
    covariance_type: str,
    seed: Tensor,
    first_path: int,
    dtype: torch.dtype,
    ranges: Tensor | None = None,
) -> Tensor:
    out: Tensor = _ops.mixture_sample(n, cumulative_weights, means, factors, covariance_type, seed, first_path, ranges)
    return out.to(dtype)


def simulate(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    seed: Tensor,
    first_path: int,
    ranges: Tensor | None = None,
) -> Tensor:
    out = _ops.simulate(x0, steps, *process.flat, seed, first_path, ranges)
    return out


def simulate_transition(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    seed: Tensor,
    first_path: int,
    ranges: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    out = _ops.simulate_transition(x0, steps, *process.flat, seed, first_path, ranges)
    return out


def simulate_target(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    axes: PrincipalAxes | None,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
    ranges: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    operands = *process.flat, *(axes or (None, None))
    out = _ops.simulate_target(x0, steps, *operands, seed, first_path, antithetic, ranges)
    return out


def reverse_steps(
    y: Tensor,
    held: Tensor,
    slope: Tensor | None,
    rate: Tensor | None,
    bounds: Tensor,
    coefficients: Tensor,
    mixture: MixtureOperands,
    seed: Tensor,
    first_path: int,
    ranges: Tensor | None = None,
) -> Tensor:
    return _ops.reverse_steps(y, held, slope, rate, bounds, coefficients, *mixture, seed, first_path, ranges)


def sample_mlp(
    y: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    scales: Tensor,
    shifts: Tensor,
    feature_scale: float,
    bounds: Tensor,
    coefficients: Tensor,
    evaluations: Tensor,
    mixture: MixtureOperands,
    seed: Tensor,
    first_path: int,
) -> tuple[Tensor, Tensor]:
    """Evaluate the network and take all steps, y_N -> y_0 [B, d].

    Args:
        weights, biases, scales, shifts, feature_scale: as in `fused_mlp.FusedNetwork`.
        bounds, coefficients: as in `_scheme.Schedule`. evaluations: as in `fused_mlp.FusedNetwork`.

    Returns:
        y_0, and [] the first evaluation, from 0, after which values were not finite; -1 if none.
    """
    network = weights, biases, scales, shifts, feature_scale
    out = _ops.sample_mlp(y, *network, bounds, coefficients, evaluations, *mixture, seed, first_path)
    return out


def ndsm_loss(scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool) -> Tensor:
    dtype = accumulation_dtype(scores, noise)
    out = _ops.ndsm_loss(scores.to(dtype), noise.to(dtype), std.to(dtype), estimator, antithetic)
    return out


def ndsm_loss_backward(
    grad: Tensor, scores: Tensor, noise: Tensor, std: Tensor, estimator: str, antithetic: bool
) -> Tensor:
    dtype = accumulation_dtype(scores, noise)
    parts = (t.to(dtype) for t in (grad, scores, noise, std))
    out: Tensor = _ops.ndsm_loss_backward(*parts, estimator, antithetic)
    return out.to(scores.dtype)


def dsm_loss(score: Tensor, target: Tensor) -> Tensor:
    dtype = accumulation_dtype(score, target)
    return _ops.dsm_loss(score.to(dtype), target.to(dtype))


def dsm_loss_backward(grad: Tensor, score: Tensor, target: Tensor) -> Tensor:
    dtype = accumulation_dtype(score, target)
    out: Tensor = _ops.dsm_loss_backward(*(t.to(dtype) for t in (grad, score, target)))
    return out.to(score.dtype)
