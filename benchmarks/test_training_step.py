"""NDSM at the price of DSM: a step of the path estimator against one of classical denoising score matching.

A step takes a batch of noised samples as `Trainer` does, evaluates the loss of the network, goes backward and updates
by Adam. Both networks are the same, both scores residual (grad log pi(x) + net(x, t) / sqrt(v)); the second baseline
leaves even that out. The contenders take turns, so that a machine that slows down slows them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import DSMLoss, GaussianMixture, LangevinProcess, NDSMLoss, OUProcess, ResidualScore, data, networks
from fastndsm.testing import deviation
from fastndsm.training import TrainConfig
from fastndsm.training.batches import Batches

from .problems import MANY, TINY
from .rows import Row

TURNS, SECONDS = 2 if TINY else 16, 0.4  # short turns: a machine changes its speed within seconds
NOISING_STEPS = 100
AGREEMENT = 1e-4  # of loss and gradients in float32, from the reference's on the same noise


class Set(NamedTuple):
    """Data, a reference for it, and an untrained network."""

    label: str
    data: Tensor
    reference: GaussianMixture
    network: Callable[[float], nn.Module]
    batch: int
    ahead: int = 1  # batches noised by one call; a round is a step of each
    most: float = 1.15  # times the linear step


@lru_cache
def planar() -> Set:
    dataset = data.load("four_modes", n=5000, seed=0)
    reference = GaussianMixture.fit(dataset.train, 4 if TINY else 8, random_state=0)
    width, batch = (16, 32) if TINY else (128, 512)
    label = f"2-D, MLP 3x{width}, B={batch}, N={NOISING_STEPS}"
    return Set(label, dataset.train, reference, lambda T: networks.MLP(2, (width,) * 3, horizon=T), batch)


@lru_cache
def images() -> Set:
    generator = torch.Generator().manual_seed(0)
    side, base, batch = (8, 4, 4) if TINY else (28, 16, 128)
    means = torch.rand(10, side * side, generator=generator, dtype=torch.float64, device="cpu")
    variances = 0.05 + 0.05 * torch.rand(10, generator=generator, dtype=torch.float64, device="cpu")
    weights = torch.full((10,), 0.1, dtype=torch.float64, device="cpu")
    reference = GaussianMixture(weights, means, variances, "spherical", event_shape=(1, side, side))
    label = f"{side}x{side}, U-Net base {base}, B={batch}, N={NOISING_STEPS}"
    points = reference.sample(8 * batch, seed=0).float()
    return Set(label, points, reference, lambda T: networks.UNet(1, side, base, horizon=T), batch)


@lru_cache
def thousand() -> Set:
    problem = MANY[10 if TINY else 1000]
    width, batch = (16, 32) if TINY else (256, 256)
    points = problem.mixture.sample(32 * batch, seed=0).float()
    label = f"{problem.dim}-D, K={problem.components:,}, MLP 3x{width}, B={batch}, N={NOISING_STEPS}"
    return Set(
        label,
        points,
        problem.mixture,
        lambda T: networks.MLP(problem.dim, (width,) * 3, horizon=T),
        batch,
        TrainConfig.noised_ahead,
        1.2,
    )


SETS = {"planar": planar, "images": images, "thousand": thousand}
CONTENDERS = ("ours", "dsm", "bare dsm")  # bare: without the residual


class Training:
    """One contender's network, loss and optimizer."""

    def __init__(self, chosen: Set, contender: str) -> None:
        torch.manual_seed(0)
        if contender == "ours":
            self.process: LangevinProcess = LangevinProcess(chosen.reference, n_steps=NOISING_STEPS)
            self.loss: Any = NDSMLoss(self.process)
        else:
            shape = chosen.reference.event_shape
            linear = OUProcess(chosen.reference.dim, T=10.0, n_steps=NOISING_STEPS, event_shape=shape)
            self.process, self.loss = linear, DSMLoss(linear)
        net = chosen.network(self.process.T)
        self.net = net if contender == "bare dsm" else ResidualScore(net, self.process)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3, fused=True)
        self.data, self.steps, self.step = chosen.data, chosen.ahead, 0
        self.batches = Batches(
            chosen.data,
            self.loss,
            steps=10**9,
            batch_size=chosen.batch,
            noised_ahead=chosen.ahead,
            seed=0,
            device=torch.device("cpu"),
        )

    def __call__(self) -> None:
        for step in range(self.step, self.step + self.steps):
            loss = self.loss.evaluate(self.net, self.batches(step))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
        self.step += self.steps

    def outcome(self, backend: str) -> tuple[Tensor, ...]:
        """Return the loss of a few samples and its gradients."""
        with fastndsm.use_backend(backend):
            loss = self.loss(self.net, self.data[:16], seed=1)
        gradients = torch.autograd.grad(loss, list(self.net.parameters()), allow_unused=True)
        flat = torch.cat([g.flatten() for g in gradients if g is not None])
        return loss.detach(), flat


@lru_cache
def training(name: str, contender: str) -> tuple[Training, float]:
    """Return the contender, and how far its loss and gradients are from the reference's."""
    made = Training(SETS[name](), contender)
    for _ in range(2):  # the last layer starts at zero, and with it most gradients
        made()
    return made, deviation(made.outcome("cpp"), made.outcome("reference"))


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("turn", range(TURNS))
@pytest.mark.parametrize("name", SETS)
def test_training_step(name: str, turn: int, contender: str, race: Any) -> None:
    step, error = training(name, contender)
    assert error <= AGREEMENT
    chosen, check = SETS[name](), "reference, same noise: loss and gradients"
    row = Row("training step", chosen.label, contender, "a step", chosen.ahead, check, deviation=error)
    if contender == "ours":
        row.targets = {"dsm": 1.0 / chosen.most}
    race(row, step, SECONDS)
