"""The residual parametrisation of a score network: what makes 64 and more dimensions work."""

from __future__ import annotations

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
        reference = getattr(process, "reference", None)
        if reference is None:
            raise TypeError(f"process: expected a LangevinProcess, found {type(process).__name__}")
        if not callable(net):
            raise TypeError(f"net: expected a module (x, t) -> like x, found {type(net).__name__}")
        self.net = net
        self.process: Any = process
        self.features = bool(features)
        self.feature_scale = float(reference.covariance_eigenvalues()[1].max()) ** 0.5

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score at x [B, ...] and t [B] -> like x."""
        reference = self.process.reference.score(x)
        inputs = torch.cat([x, reference * self.feature_scale], dim=1) if self.features else x
        correction = _checks.score_output(self.net(inputs, t), x)
        scale = self.process.variance_at(t).rsqrt().reshape(-1, *[1] * (x.ndim - 1))
        return reference + correction * scale
