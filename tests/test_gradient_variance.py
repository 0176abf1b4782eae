"""The variance of the gradient against the step dt: 1/dt for plain, bounded for the estimators that tame it.

Of the gradient, not of the loss: a detached control variate lowers the latter and leaves the former as it was.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import generator, on_one_backend  # noqa: F401
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from fastndsm import GaussianMixture, LangevinProcess, NDSMLoss

LAST_STEPS = [1e-3, 10**-3.5, 1e-4]
N_SAMPLES = 8192
ESTIMATORS = {
    "plain": {"estimator": "plain"},
    "plain antithetic": {"estimator": "plain", "antithetic": True},
    "control variate": {"estimator": "control_variate"},
    "path": {"estimator": "path"},
    "path antithetic": {"estimator": "path", "antithetic": True},
}


class SmallNet(nn.Module):
    """Smooth and untrained."""

    def __init__(self) -> None:
        super().__init__()
        g = generator(0)
        self.first, self.last = nn.Linear(3, 8).double(), nn.Linear(8, 2).double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.7, generator=g)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.first(torch.cat([x, t[:, None]], dim=1)).tanh())


def process(last: float) -> LangevinProcess:
    """Build a process that reaches t = 0.5 in ten coarse steps and a last one of length `last`."""
    m = GaussianMixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], [[0.5, 1.0], [1.0, 0.4]], "diag")
    grid = [*np.linspace(0.0, 0.5 - last, 11), 0.5]
    return LangevinProcess(m, grid=grid)


def data() -> Tensor:
    angle = 6.28 * torch.rand(N_SAMPLES, generator=generator(1), dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], dim=1)


def per_sample_gradients(net: nn.Module, loss: NDSMLoss, x0: Tensor, step: int) -> Tensor:
    """Return the gradient in the network's parameters of each sample's loss, [B, P]."""
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(x: Tensor, t: Tensor) -> Tensor:
        score = net(x, t).detach().requires_grad_()
        calls.append((x, t, score))
        return score

    loss(record, x0, seed=3, step=step).sum().backward()
    ((x, t, score),) = calls
    parameters = dict(net.named_parameters())

    def pull(x: Tensor, t: Tensor, grad: Tensor) -> Tensor:
        _, back = vjp(lambda p: functional_call(net, p, (x[None], t[None])), parameters)
        return torch.cat([g.flatten() for g in back(grad[None])[0].values()])

    assert score.grad is not None
    gradients = vmap(pull)(x, t, score.grad).detach()
    return gradients.reshape(-1, len(x0), gradients.shape[1]).sum(0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_trace_against_dt(estimator: str) -> None:
    net, x0 = SmallNet(), data()
    traces = []
    for last in LAST_STEPS:
        loss = NDSMLoss(process(last), weighting=None, reduction="none", **ESTIMATORS[estimator])  # type: ignore[arg-type]
        gradients = per_sample_gradients(net, loss, x0, step=10)
        traces.append(float(gradients.var(0).sum()))
    exponent = np.polyfit(np.log(LAST_STEPS), np.log(traces), 1)[0]
    if estimator == "plain":
        assert -1.1 < exponent < -0.9
    else:
        assert abs(exponent) < 0.1


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_per_sample_gradients_are_those_of_the_loss(estimator: str) -> None:
    net, x0, p = SmallNet(), data()[:32], process(1e-3)
    each = NDSMLoss(p, reduction="none", **ESTIMATORS[estimator])  # type: ignore[arg-type]
    mean = NDSMLoss(p, reduction="mean", **ESTIMATORS[estimator])  # type: ignore[arg-type]
    mean(net, x0, seed=3, step=10).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(per_sample_gradients(net, each, x0, 10).mean(0), expected)


def test_a_detached_control_variate_lowers_the_variance_of_the_loss_alone() -> None:
    """The separate network h = s, fixed: loss of control_variate, gradient of plain."""
    net, x0, p = SmallNet(), data(), process(1e-4)
    fixed = SmallNet()
    plain = NDSMLoss(p, "plain", weighting=None, reduction="none")
    detached = NDSMLoss(p, "control_variate", control_variate=fixed, weighting=None, reduction="none")
    with torch.no_grad():
        spread = [float(loss(net, x0, seed=3, step=10).var()) for loss in (plain, detached)]
    assert spread[0] > 100 * spread[1]
    parameters = list(net.parameters())
    gradients = [
        torch.autograd.grad(loss(net, x0[:64], seed=3, step=10).mean(), parameters) for loss in (plain, detached)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
