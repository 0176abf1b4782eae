"""The residual parametrisation of a score network: what makes 64 and more dimensions work."""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from . import _checks
from ._condition import Condition, checked
from .process import NoisingProcess


class ResidualScore(nn.Module):
    """s(x, t) = grad log pi(x) + net(x, t) / sqrt(v(t)): the reference's score plus a learnt correction.

    Of a linear process pi is its reference noised to t, in closed form. Of an EDMProcess this is its preconditioning.

    Args:
        net: module (x [B, ...], t [B]) -> like x; a last layer initialised to zero starts it at the reference's score.
            A condition goes on to it, as (x, t, condition).
        process: one with a reference, such as a LangevinProcess; v is its noise_variance, linear between grid points.
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

    @property
    def takes_condition(self) -> bool:
        """True if its network takes a condition."""
        return takes_condition(self.net)

    @property
    def null_trained(self) -> bool:
        """True if its network was trained on samples under its null condition, or does not tell."""
        return null_trained(self.net)

    def null_condition(self, condition: Condition) -> Condition:
        """Return its network's null condition, like `condition`."""
        return null_condition(self.net, condition)

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
        """Return the score at x [B, ...] and t [B] -> like x."""
        reference = self.process.reference_score(x, t, condition)
        inputs, time = self.process.network_inputs(x, t)
        inputs = torch.cat([inputs, reference * self.feature_scale], dim=1) if self.features else inputs
        correction = _checks.score_output(called(self.net, inputs, time, condition), x)
        scale = self.process.residual_scale(t).reshape(-1, *[1] * (x.ndim - 1))
        return (reference + correction * scale).to(x.dtype)


def unwrapped(net: Any) -> Any:
    """Return the user's module inside DistributedDataParallel and torch.compile."""
    while True:
        inner = net.module if isinstance(net, nn.parallel.DistributedDataParallel) else getattr(net, "_orig_mod", net)
        if inner is net:
            return net
        net = inner


def called(net: Any, x: Tensor, t: Tensor, condition: Condition | None) -> Any:
    """Return net(x, t), or net(x, t, condition) if there is one."""
    return net(x, t) if condition is None else net(x, t, condition)


def score_at(score_net: Any, x: Tensor, t: Tensor, condition: Condition | None = None) -> Tensor:
    """Return the score at x [B, ...] and t [B], under a condition if there is one -> like x."""
    return _checks.score_output(called(score_net, x, t, condition), x)


def takes_condition(score_net: Any) -> bool:
    """Return whether a network can be called as (x, t, condition): by what it says of itself, else by its signature."""
    net = unwrapped(score_net)
    own = getattr(net, "takes_condition", None)
    return _callable_with(net, 3) if own is None else bool(own)


def null_trained(score_net: Any) -> bool:
    """Return whether a network knows its null condition; one that does not tell is believed to."""
    return bool(getattr(unwrapped(score_net), "null_trained", True))


def has_null_condition(score_net: Any) -> bool:
    """Return whether there is a null condition: a method of the network's, or of that of a ResidualScore."""
    net = unwrapped(score_net)
    return has_null_condition(net.net) if isinstance(net, ResidualScore) else hasattr(net, "null_condition")


def null_condition(score_net: Any, condition: Condition) -> Condition:
    """Return the network's null condition, like `condition`."""
    return unwrapped(score_net).null_condition(condition)  # type: ignore[no-any-return]


def check_condition(
    score_net: Any, condition: Any, rows: int, device: torch.device | None, net_name: str = "score_net"
) -> None:
    """Refuse a condition that is not one of `rows` samples on that device, or that the network does not take."""
    if torch.compiler.is_compiling():
        return
    found, hint = type(unwrapped(score_net)).__name__, _checks.cure("conditions")
    if condition is None:
        if not _callable_with(score_net, 2) and takes_condition(score_net):
            raise ValueError(
                f"condition: expected one, as {net_name}, {found}, takes three arguments; found None{hint}"
            )
        return
    checked("condition", condition, rows, device)
    if not takes_condition(score_net):
        raise ValueError(f"condition: expected None, as {net_name} takes none; found one for {found} (x, t){hint}")


def _callable_with(net: Any, n_arguments: int) -> bool:
    net = unwrapped(net)
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):  # it has none that can be read
        return True
    try:
        signature.bind(*[None] * n_arguments)
    except TypeError:
        return False
    return True


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
            f"{_checks.cure('another-process')}"
        )


def _named(process: Any) -> str:
    mixture = getattr(process, "reference", None)
    parts = [process.extra_repr(), f"sigma={process.sigma!r}", "" if mixture is None else mixture.extra_repr()]
    return f"{type(process).__name__}({', '.join(part for part in parts if part)})"
