"""The CUDA backend, untested on GPUs: the fused sampler, network and all steps in one launch. The ops are Triton's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..jit import cuda as jit
from ..reference import MixtureOperands

_ops = torch.ops.fastndsm_cuda
WIDTHS = (64, 128)  # of networks


def prepare() -> None:
    """Build and load the op; raise BuildError with the reason."""
    jit.load()


def __getattr__(name: str) -> Callable[..., Any]:
    if name.startswith("drift_"):  # a program is printed for Triton
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


def _contiguous(mixture: MixtureOperands) -> MixtureOperands:
    means, precisions, log_scale, kind = mixture
    return MixtureOperands(means.contiguous(), precisions.contiguous(), log_scale.contiguous(), kind)


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
