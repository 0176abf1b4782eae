"""A sampler whose noising process is the Langevin dynamics of an energy of your own, compiled from its Python function.

    python examples/target_energy.py [--steps 1500]

The data are in two of the four wells of the energy. Its own dynamics carry them over the barriers, towards its
stationary law, and the trained sampler brings them back. The drift has no mixture; one is fitted to where paths end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import drifts, networks
from fastndsm.metrics import energy_distance


def log_prob(x: Tensor) -> Tensor:
    """Return the log-density of the target [B], up to a constant: wells at (+-1, +-1), and a bend between them."""
    return -1.2 * ((x * x - 1.0) ** 2).sum(1) - 0.2 * torch.sin(3.0 * x[:, 0] * x[:, 1])


def wells(n: int, seed: int) -> Tensor:
    """Draw data: 70% near (1, 1) and 30% near (-1, 1)."""
    g = torch.Generator().manual_seed(seed)
    side = 1.0 - 2.0 * (torch.rand(n, generator=g) < 0.3)
    return torch.stack([side, torch.ones(n)], 1) + 0.15 * torch.randn(n, 2, generator=g)


class Score(nn.Module):
    """s(x, t) = grad log p(x) + net(x, t) / sqrt(v(t)), grad log p the target's."""

    def __init__(self, process: fastndsm.DriftProcess) -> None:
        super().__init__()
        self.process, self.net = process, networks.MLP(2, (96, 96), horizon=process.T)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        std = self.process.variance_at(t).sqrt()[:, None]
        return 2.0 * self.process.drift(x, t) + self.net(x, t) / std


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    x, held_out = wells(20_000, seed=0), wells(2_000, seed=1)
    drift = drifts.Langevin(log_prob)
    noising = {"T": 2.0, "n_steps": 200, "grid": "quadratic", "rate": 1.0}
    start = fastndsm.DriftProcess(drift, fastndsm.GaussianMixture.standard_normal(2), **noising, compiled=True)
    begin = time.perf_counter()
    start.simulate(x[:1], seed=0)
    built, begin = time.perf_counter() - begin, time.perf_counter()
    end = start.simulate(x, seed=0)
    found = {"seconds to compile, or to find compiled": built, "seconds for all paths": time.perf_counter() - begin}
    prior = fastndsm.GaussianMixture.fit(end, n_components=12, covariance_type="diag", random_state=0)
    process = fastndsm.DriftProcess(drift, prior, **noising, compiled=True)

    net, loss = Score(process), fastndsm.NDSMLoss(process)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.steps)
    for step in range(given.steps):
        batch = x[torch.randint(len(x), (512,))]
        loss(net, batch, seed=step).backward()
        optimizer.step(), optimizer.zero_grad(), schedule.step()

    drawn = fastndsm.sample(net, process, 2_000, n_evaluations=40, seed=1)
    found["energy distance of the noised data"] = float(energy_distance(end[:2_000], held_out))
    found["energy distance of samples"] = float(energy_distance(drawn, held_out))
    found["share of samples on the right (0.7)"] = float((drawn[:, 0] > 0).float().mean())
    for name, value in found.items():
        print(f"{name:40} {value:8.4f}")
    return found


if __name__ == "__main__":
    main()
