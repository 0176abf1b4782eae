"""The residual parametrisation of a score network: what makes 64 and more dimensions work."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from .process import NoisingProcess


class ResidualScore(nn.Module):
    """s(x, t) = grad log pi(x) + net(x, t) / sqrt(v(t)): the reference's score plus a learnt correction.

    Args:
        net: module (x [B, ...], t [B]) -> like x; a last layer initialised to zero starts it at the reference's score.
        process: a LangevinProcess; v is its noise_variance, linear between grid points.
        features: give the network torch.cat([x, grad log pi(x) sqrt(lambda_max)], dim=1), twice the channels of x.
            Helps in small d.
    """

    def __init__(self, net: nn.Module, process: NoisingProcess, features: bool = False) -> None:
        super().__init__()
        if getattr(process, "reference", None) is None:
            raise TypeError(f"process: expected a LangevinProcess, found {type(process).__name__}")
        _checks.function("net", net, "a module (x, t) -> like x")
        self.net = net
        self.process: Any = process
        self.features = _checks.flag("features", features)

    @property
    def feature_scale(self) -> float:
        """sqrt(lambda_max) of the process's mixture, also after another one was loaded into it."""
        return float(self.process.reference.largest_variance) ** 0.5

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score at x [B, ...] and t [B] -> like x."""
        reference = self.process.reference.score(x)
        inputs = torch.cat([x, reference * self.feature_scale], dim=1) if self.features else x
        correction = _checks.score_output(self.net(inputs, t), x)
        scale = self.process.variance_at(t).rsqrt().reshape(-1, *[1] * (x.ndim - 1))
        return (reference + correction * scale).to(x.dtype)


def unwrapped(net: Any) -> Any:
    """Return the user's module inside DistributedDataParallel and torch.compile."""
    while True:
        inner = net.module if isinstance(net, nn.parallel.DistributedDataParallel) else getattr(net, "_orig_mod", net)
        if inner is net:
            return net
        net = inner


def network_dtype(net: Any) -> torch.dtype | None:
    """Return the floating point dtype that most of a network's parameters have; None where it has none."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in net.parameters() if isinstance(net, nn.Module) else ():
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.numel()
    return sizes.most_common(1)[0][0] if sizes else None


@contextlib.contextmanager
def evaluating(net: Any) -> Iterator[None]:
    """Put a module and all in it into eval mode, and back into the modes they came in."""
    modules = list(net.modules()) if isinstance(net, nn.Module) else []
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_process(score_net: Any, process: NoisingProcess) -> None:
    """Refuse a ResidualScore that is not of this process, nor of one that differs from it in the grid alone."""
    net = unwrapped(score_net)
    if torch.compiler.is_compiling() or not isinstance(net, ResidualScore) or net.process is process:
        return
    if not net.process.same_law(process):
        raise ValueError(
            "score_net: expected a ResidualScore on the mixture, sigma and T of process, "
            f"{_named(process)}, found one on {_named(net.process)}"
        )


def _named(process: Any) -> str:
    mixture = getattr(process, "reference", None)
    parts = [process.extra_repr(), f"sigma={process.sigma!r}", "" if mixture is None else mixture.extra_repr()]
    return f"{type(process).__name__}({', '.join(part for part in parts if part)})"
