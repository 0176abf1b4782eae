"""Score networks that a backend's `sample_mlp` evaluates by itself, a whole sample in one call, and what it takes.

That is `networks.MLP`, alone or in `ResidualScore`, as the library builds them. What the time gives every layer is
computed here, by the network's own modules and for all evaluations at once; the rest goes to the op as it is.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._scheme import Schedule
from ..mixture import GaussianMixture
from ..networks import MLP, changed, hooked
from ..process import LangevinProcess, NoisingProcess
from ..reference import MixtureOperands
from ..score import ResidualScore

LARGEST_DIM = 32
LARGEST_WIDTH = 512
MOST_HIDDEN_LAYERS = 8


@dataclass(frozen=True)
class FusedNetwork:
    """A score network as `sample_mlp` takes it: row k of its tables is for the time of evaluation k.

    weights, biases: of the hidden layers, then of the output. scales, shifts [M, sum of hidden widths]. feature_scale:
    what grad log pi is multiplied by as inputs more, 0 without features. evaluations [M, 8]: what grad log pi and the
    output are multiplied by to give r, then as in `Schedule`. mixture: the components that the samples have.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    scales: Tensor
    shifts: Tensor
    feature_scale: float
    evaluations: Tensor
    mixture: MixtureOperands


def fused_network(
    score_net: Any, process: NoisingProcess, schedule: Schedule, dtype: torch.dtype, condition: Any = None
) -> FusedNetwork | str:
    """Return the network's parameters and tables under a condition [1, ...], or why the op does not evaluate it."""
    residual = score_net if type(score_net) is ResidualScore else None
    net: Any = score_net if residual is None else residual.net
    reason = _refuses_network(net, dtype) or _refuses_process(process, residual)
    if reason is None and residual is not None:
        reason = hooked([residual])
    if reason is not None:
        return reason
    inputs = process.dim * (2 if residual is not None and residual.features else 1)
    if (net.in_dim, net.dim) != (inputs, process.dim):
        return f"the network maps {net.in_dim} values to {net.dim}, the process has {process.dim}"
    layers = [*net.layers, net.last]
    device = net.last.weight.device
    if process.times.device != device:
        return f"the process is on {process.times.device}, the network on {device}"
    t = process.times[schedule.bounds[:-1]].to(dtype)
    # r as a combination of grad log pi and the network's output
    ones = torch.ones_like(t)
    parts = [-ones, ones] if residual is None else [0.0 * ones, residual.process.variance_at(t).rsqrt()]
    # in float64, whose rounding to float32 does not depend on how many threads multiply
    of_all = None if condition is None else condition.expand(len(t), *condition.shape[1:])
    film = copy.deepcopy(net.film).double()(t.double(), of_all)
    return FusedNetwork(
        weights=[layer.weight.detach() for layer in layers],
        biases=[layer.bias.detach() for layer in layers],
        scales=torch.cat([scale for scale, _ in film], dim=1).detach().to(dtype),
        shifts=torch.cat([shift for _, shift in film], dim=1).detach().to(dtype),
        feature_scale=residual.feature_scale if residual is not None and residual.features else 0.0,
        evaluations=torch.cat([torch.stack(parts, dim=1).to(dtype), schedule.evaluations.to(dtype)], dim=1),
        mixture=_components(process, condition, dtype),
    )


def _components(process: Any, condition: Any, dtype: torch.dtype) -> MixtureOperands:
    """Return the reference's components, those of the class where a condition [1, ...] names one of its classes."""
    mixture: MixtureOperands = process.stationary.operands(dtype)
    labels = process.class_labels(condition)
    if labels is None:
        return mixture
    return mixture.block(*process.reference.ranges_of(labels, 1)[0].tolist())


def _refuses_network(net: Any, dtype: torch.dtype) -> str | None:
    if type(net) is not MLP:
        return f"the network is no fastndsm.networks.MLP but {type(net).__name__}"
    reason = changed(net) or hooked([net])
    if reason is not None:
        return reason
    if dtype != torch.float32 or any(p.dtype != dtype for p in net.parameters()):
        return "network and samples are not float32"
    if net.dim > LARGEST_DIM:
        return f"it serves up to {LARGEST_DIM} dimensions, found {net.dim}"
    if max(net.hidden) > LARGEST_WIDTH or len(net.layers) > MOST_HIDDEN_LAYERS:
        return f"it serves up to {MOST_HIDDEN_LAYERS} hidden layers of {LARGEST_WIDTH} units, found {list(net.hidden)}"
    if torch.is_autocast_enabled(net.last.weight.device.type):
        return "autocast is on"
    return None


def _refuses_process(process: NoisingProcess, residual: ResidualScore | None) -> str | None:
    for own in [process] if residual is None else [process, residual.process]:
        if not isinstance(own, LangevinProcess) or type(own).dynamics is not LangevinProcess.dynamics:
            return f"the process is no LangevinProcess but {type(own).__name__}"
        if type(own.stationary) is not GaussianMixture:
            return f"the reference is no GaussianMixture but {type(own.stationary).__name__}"
        if residual is not None and own.reference is not own.stationary:
            return "the mixture in the network's score changes with t"
    if residual is not None and not _same(process, residual.process):
        return "the network's reference is not that of the process"
    return None


def _same(process: Any, own: Any) -> bool:
    """Return whether their references are the same mixture."""
    one: MixtureOperands = process.stationary.operands(torch.float32)
    other: MixtureOperands = own.stationary.operands(torch.float32)
    if one.covariance_type != other.covariance_type:
        return False
    pairs = list(zip(one[:3], other[:3], strict=True))
    return all(a.shape == b.shape and a.device == b.device and torch.equal(a, b) for a, b in pairs)
