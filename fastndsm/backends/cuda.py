"""The CUDA backend, untested on GPUs: noising and its reverse, state on the chip throughout, and the fused sampler.

Small dimension: a thread a sample, in registers. Large dimension: a warp a sample or four, in shared memory. The other
ops are Triton's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..jit import cuda as jit
from ..reference import MixtureOperands, PrincipalAxes, ProcessOperands

_ops = torch.ops.fastndsm_cuda
MOST_REGISTER_PARAMETERS = 16384  # numbers in shared memory beside threads that hold their state in registers
WIDTHS = (64, 128)  # of networks
OTHERS = (
    "philox_normal",
    "uniform_steps",
    "mixture_score",
    "mixture_log_prob",
    "mixture_hvp",
    "ndsm_loss",
    "ndsm_loss_backward",
    "dsm_loss",
    "dsm_loss_backward",
)


def prepare() -> None:
    """Build and load the ops; raise BuildError with the reason."""
    jit.load()


def __getattr__(name: str) -> Callable[..., Any]:
    if name not in OTHERS:
        raise AttributeError(name)
    return getattr(importlib.import_module("fastndsm.kernels.ops"), name)


def packed_network(weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    """Return each layer's weights as `arguments.h` has them, then its biases, outputs padded to a multiple of 8."""
    parts = []
    for weight, bias in zip(weights, biases, strict=True):
        outputs, inputs = weight.shape
        more = -outputs % 8
        blocks = F.pad(weight, (0, -inputs % 16, 0, more)).unflatten(0, (-1, 8)).unflatten(2, (-1, 2, 4, 2))
        parts += [blocks.permute(0, 2, 1, 4, 3, 5).flatten(), F.pad(bias, (0, more))]
    return torch.cat(parts)


def _served(op: str, mixture: MixtureOperands, target: bool) -> tuple[int, bool]:
    """Return the dimension that parameters are padded to, and whether the tiled kernels serve."""
    (n, dim), kind = mixture.means.shape, mixture.covariance_type
    padded: int = _ops.register_dimension(kind, dim)
    if padded and _ops.block_size(kind, n, padded) <= MOST_REGISTER_PARAMETERS:
        return padded, False
    if not _ops.tiled_fits(kind, dim, n, target):
        raise NotImplementedError(
            f"backend 'cuda' cannot serve {op} in {dim} dimensions with {n} {kind} components: expected spherical or "
            "diag up to 3072, tied or full up to 8, and room for the state on chip; triton and reference can"
        )
    return dim + -dim % 4, True


def _contiguous(mixture: MixtureOperands) -> MixtureOperands:
    means, precisions, log_scale, kind = mixture
    return MixtureOperands(means.contiguous(), precisions.contiguous(), log_scale.contiguous(), kind)


def _tables(process: ProcessOperands) -> tuple[Tensor, Tensor]:
    return process.drift_scale.contiguous(), process.noise_std.contiguous()


def _simulate(
    what: str,
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    seed: Tensor,
    first_path: int,
    axes: PrincipalAxes | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    padded, tiled = _served("simulate", process.mixture, what in ("target", "mirrored"))
    rows, shape = len(x0), steps.shape[1:]
    steps, records = steps.sort(dim=1) if steps.numel() > rows else (steps.reshape(rows, 1), None)
    if rows < 2 or steps.stride(0) == 0:  # all the same
        order = torch.arange(rows, device=x0.device)
    else:
        order = steps[:, -1].argsort(descending=True, stable=True)
    tables = x0.contiguous(), steps.contiguous(), records, order, *_tables(process)
    mixture = *_contiguous(process.mixture), *(t if t is None else t.contiguous() for t in axes or (None, None))
    x, second, third = _ops.simulate(*tables, *mixture, padded, int(seed), first_path, what, tiled)
    x, second, third = (out.reshape(-1, *shape, out.shape[1]) if shape else out for out in (x, second, third))
    return x, second, third


def simulate(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    seed: Tensor,
    first_path: int,
) -> Tensor:
    return _simulate("state", x0, steps, process, seed, first_path)[0]


def simulate_transition(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    seed: Tensor,
    first_path: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _simulate("transition", x0, steps, process, seed, first_path)


def simulate_target(
    x0: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    axes: PrincipalAxes | None,
    seed: Tensor,
    first_path: int,
    antithetic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    what = "mirrored" if antithetic else "target"
    return _simulate(what, x0, steps, process, seed, first_path, axes)


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
) -> Tensor:
    padded, tiled = _served("reverse_steps", mixture, False)
    network = held.contiguous(), *(None if part is None else part.contiguous() for part in (slope, rate))
    tables = bounds.to(y.device).contiguous(), coefficients.contiguous()
    out: Tensor = _ops.reverse_steps(
        y.contiguous(), *network, *tables, *_contiguous(mixture), padded, int(seed), first_path, tiled
    )
    return out


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
    """Sample as `cpp.sample_mlp` does, for networks whose hidden layers are all 64 or all 128 wide."""
    widths = {len(weight) for weight in weights[:-1]}
    if len(widths) != 1 or not widths <= set(WIDTHS):
        raise NotImplementedError(f"backend 'cuda' serves hidden layers all of 64 or all of 128 units, found {widths}")
    (width,) = widths
    network = packed_network(weights, biases), len(weights) - 1, width, weights[0].shape[1]
    tables = scales.contiguous(), shifts.contiguous(), feature_scale
    schedule = tuple(t.contiguous() for t in (bounds.to(y.device), coefficients, evaluations))
    out, failed = _ops.sample_mlp(
        y.contiguous(), *network, *tables, *schedule, *_contiguous(mixture), int(seed), first_path
    )
    return out, torch.where(failed < len(evaluations), failed, -1)
