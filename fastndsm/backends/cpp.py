"""The fused CPU backend: the functions of `fastndsm.reference`, served by the C++ ops in csrc/."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..compiler import Program
from ..jit import core as jit
from ..jit import drift as compiled_drifts
from ..reference import MixtureOperands, NoisedOperands, PrincipalAxes, ProcessOperands
from ..reference.loss import accumulation_dtype
from ..reference.philox import uniform_steps as uniform_steps  # a few integers, once a batch

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


def load_drift(program: Program, dtype: torch.dtype) -> None:
    """Build and load a drift's program for samples of a dtype; raise BuildError with the reason."""
    compiled_drifts.load(program, dtype)


def drift_value(x: Tensor, parameters: Tensor, t: Tensor, program: Program) -> Tensor:
    return _drift_values(x, parameters, None, t, program)[0]


def drift_product(x: Tensor, parameters: Tensor, z: Tensor, t: Tensor, program: Program) -> tuple[Tensor, Tensor]:
    return _drift_values(x, parameters, z, t, program)


def _drift_values(
    x: Tensor, parameters: Tensor, z: Tensor | None, t: Tensor, program: Program
) -> tuple[Tensor, Tensor]:
    library = compiled_drifts.load(program, x.dtype)
    x, t, parameters, z = (a if a is None else a.contiguous() for a in (x, t, parameters, z))  # type: ignore[assignment]
    value, product = torch.empty_like(x), x.new_empty(0 if z is None else x.shape)
    evaluate = library.value if z is None else library.product
    given = [_pointer(a) for a in (x, t, z)]
    evaluate(*given, len(x), *(_pointer(a) for a in (parameters, value, product)), torch.get_num_threads())
    return value, product


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def drift_simulate(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    program: Program,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    out = torch.empty_like(x0, memory_format=torch.contiguous_format)
    simulate = compiled_drifts.load(program, x0.dtype).simulate
    _drift_run(simulate, (out, None, None), x0, parameters, steps, times, noise_std, 0.0, seed, first_path, False)
    return out


def drift_transition(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    program: Program,
    seed: Tensor,
    first_path: int,
) -> tuple[Tensor, Tensor, Tensor]:
    x, mean, noise = (torch.empty_like(x0, memory_format=torch.contiguous_format) for _ in range(3))
    simulate = compiled_drifts.load(program, x0.dtype).simulate
    _drift_run(simulate, (x, mean, noise), x0, parameters, steps, times, noise_std, 0.0, seed, first_path, False)
    return x, mean, noise


def drift_target(
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    rate: float,
    program: Program,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = len(x0) * (2 if antithetic else 1), *steps.shape[1:], x0.shape[1]
    x, target, variance = x0.new_empty(shape), x0.new_empty(shape), x0.new_empty((*shape[:-1], 1))
    out, walk = (x, target, variance), compiled_drifts.load(program, x0.dtype).target
    _drift_run(walk, out, x0, parameters, steps, times, noise_std, rate, seed, first_path, antithetic)
    return x, target, variance


def _drift_run(
    walk: Callable[..., int],
    out: tuple[Tensor | None, ...],
    x0: Tensor,
    parameters: Tensor,
    steps: Tensor,
    times: Tensor,
    noise_std: Tensor,
    rate: float,
    seed: Tensor,
    first_path: int,
    mirrored: bool,
) -> None:
    if steps.numel() == 0:
        return
    x0, parameters, steps = x0.contiguous(), parameters.contiguous(), steps.contiguous()
    times, noise_std = (table.to(torch.float64).contiguous() for table in (times, noise_std))
    rows, records, n_steps = len(x0), steps.numel() // len(x0), len(noise_std)
    wrong = walk(
        *(_pointer(x0), _pointer(steps), rows, records, _pointer(times), _pointer(noise_std), n_steps, rate),
        *(_pointer(parameters), int(seed), first_path, mirrored, *(_pointer(o) for o in out)),
        torch.get_num_threads(),
    )
    if wrong >= 0:
        raise ValueError(f"steps: expected values in 0..{n_steps}, found {int(steps.flatten()[wrong])}")


def drift_reverse_steps(
    y: Tensor,
    parameters: Tensor,
    held: Tensor,
    slope: Tensor | None,
    rate: Tensor | None,
    bounds: Tensor,
    coefficients: Tensor,
    times: Tensor,
    noise_std: Tensor,
    program: Program,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    first, last = (int(bound) for bound in bounds)
    out = torch.empty_like(y, memory_format=torch.contiguous_format)
    network = [None if a is None else a.contiguous() for a in (y, held, slope, rate)]
    tables = [coefficients.contiguous(), *(table.to(torch.float64).contiguous() for table in (times, noise_std))]
    parameters = parameters.contiguous()
    compiled_drifts.load(program, y.dtype).reverse_steps(
        *(*map(_pointer, network), len(y), first, last, *map(_pointer, tables), len(noise_std), _pointer(parameters)),
        *(int(seed), first_path, _pointer(out), torch.get_num_threads()),
    )
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


def film_mlp(
    x: Tensor, embedded: Tensor, index: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor], keep: bool
) -> tuple[Tensor, Tensor]:
    out = _ops.film_mlp(x, embedded, index, weights, biases, keep)
    return out


def film_mlp_backward(
    grad: Tensor,
    x: Tensor,
    embedded: Tensor,
    index: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    states: Tensor,
    wants_x: bool,
    wants_embedded: bool,
) -> list[Tensor]:
    out: list[Tensor] = _ops.film_mlp_backward(
        grad, x, embedded, index, weights, biases, states, wants_x, wants_embedded
    )
    return out
