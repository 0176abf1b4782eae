"""NDSM at the price of DSM: a step of the path estimator beside one of classical denoising score matching.

A step draws noised samples, evaluates the network's loss, goes backward and updates by Adam. The networks are the same
and both scores residual (grad log pi(x) + net(x, t) / sqrt(v)). The contenders take turns. Steps are timed as a user
runs them, launched one by one, and as replays of a CUDA graph, where no time passes but the device's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastndsm import DSMLoss, GaussianMixture, LangevinProcess, NDSMLoss, OUProcess, ResidualScore, networks
from fastndsm.testing import deviation

from ..problems import TINY
from ..rows import Row
from .device import SECONDS, backends, device, timed
from .log import Log

BOUND = 1.1  # times a linear step's
NOISING_STEPS = 100
TURNS = 1 if TINY else 3
AGREEMENT = 1e-4  # of loss and gradients in float32, from the reference's on the same noise


class Set(NamedTuple):
    """Data, a reference for it, and an untrained network."""

    label: str
    data: Tensor
    reference: GaussianMixture
    network: Callable[[float], nn.Module]
    batch: int


def planar() -> Set:
    generator = torch.Generator().manual_seed(0)
    width, batch = (16, 32) if TINY else (128, 4096)
    angles = torch.arange(8, device="cpu") * (torch.pi / 4)
    means = 2.0 * torch.stack([angles.cos(), angles.sin()], 1)
    weights, variances = (
        torch.full((8,), 0.125, dtype=torch.float64, device="cpu"),
        torch.full((8,), 0.05, dtype=torch.float64, device="cpu"),
    )
    reference = GaussianMixture(weights, means.double(), variances, "spherical").to(device())
    data = means[torch.randint(8, (batch,), generator=generator, device="cpu")] + 0.2 * torch.randn(
        batch, 2, generator=generator, device="cpu"
    )
    label = f"2-D, MLP 3x{width}, B={batch:,}, N={NOISING_STEPS}"
    return Set(label, data.to(device()), reference, lambda T: networks.MLP(2, (width,) * 3, horizon=T), batch)


def images() -> Set:
    generator = torch.Generator().manual_seed(0)
    side, base, batch = (8, 4, 4) if TINY else (28, 16, 128)
    means = torch.rand(10, side * side, generator=generator, dtype=torch.float64, device="cpu")
    variances = 0.05 + 0.05 * torch.rand(10, generator=generator, dtype=torch.float64, device="cpu")
    weights = torch.full((10,), 0.1, dtype=torch.float64, device="cpu")
    reference = GaussianMixture(weights, means, variances, "spherical", event_shape=(1, side, side)).to(device())
    data = reference.sample(batch, seed=0).float()
    label = f"{side}x{side}, U-Net base {base}, B={batch}, N={NOISING_STEPS}"
    return Set(label, data, reference, lambda T: networks.UNet(1, side, base, horizon=T), batch)


class Training:
    """One contender's network, loss and optimizer; a call is a step."""

    def __init__(self, chosen: Set, contender: str) -> None:
        torch.manual_seed(0)
        if contender != "dsm":
            process: LangevinProcess = LangevinProcess(chosen.reference, n_steps=NOISING_STEPS)
            self.loss: Any = NDSMLoss(process)
        else:
            shape = chosen.reference.event_shape
            process = OUProcess(chosen.reference.dim, T=10.0, n_steps=NOISING_STEPS, event_shape=shape).to(device())
            self.loss = DSMLoss(process)  # type: ignore[arg-type]
        self.net = ResidualScore(chosen.network(process.T).to(device()), process)
        parameters, capturable = list(self.net.parameters()), device().type == "cuda"
        self.optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=capturable)
        self.data, self.seed = chosen.data, 0

    def __call__(self) -> None:
        self.seed += 1
        loss = self.loss.evaluate(self.net, self.loss.draw(self.data, seed=self.seed))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def outcome(self, how: str) -> tuple[Tensor, ...]:
        """Return the loss of a few samples and its gradients."""
        import fastndsm

        with fastndsm.use_backend(how):
            loss = self.loss(self.net, self.data[:16], seed=1)
            gradients = torch.autograd.grad(loss, list(self.net.parameters()), allow_unused=True)
        return loss.detach(), torch.cat([g.flatten() for g in gradients if g is not None])


@cache
def training(make: Callable[[], Set], contender: str) -> tuple[Training, Set, float]:
    """Return a contender, and how far its loss and gradients are from those of the reference."""
    chosen = make()
    made = Training(chosen, contender)
    for _ in range(3):  # the last layer starts at zero, and with it most gradients
        made()
    return made, chosen, deviation(made.outcome(backends()[0]), made.outcome("reference"))


def time_steps(log: Log) -> None:
    for make in (planar, images):
        for graph in (False, True):
            for _ in range(TURNS):
                for contender in (backends()[0], "dsm"):
                    log.attempt(f"{make.__name__} {contender}", partial(_time_step, make, contender, graph, log))


def _time_step(make: Callable[[], Set], contender: str, graph: bool, log: Log) -> None:
    step, chosen, error = training(make, contender)
    if not error <= AGREEMENT:
        raise AssertionError(f"loss and gradients {error:.2g} from the reference's, at most {AGREEMENT}")
    timing = timed(step, graph=graph, seconds=SECONDS / TURNS)
    case = f"{chosen.label}, {'as replays' if timing.how == 'graph' else 'as launched'}"
    row = Row("training step", case, contender, "a step", 1, f"reference, same noise, error {error:.2g}")
    row.seconds, row.how = timing.seconds, timing.how
    if contender != "dsm":
        row.targets = {"dsm": 1.0 / BOUND}
    log.row(row)
