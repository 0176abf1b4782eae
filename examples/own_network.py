"""Train a network of a class of your own, store it, and load it again.

    python examples/own_network.py [--steps 2000] [--folder runs/own]

A model's folder holds the class's name and what its constructor was called with, from `config`, but no code: whoever
loads it gives the class, or names the packages that it may be imported from.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import data, networks, training


class Fourier(nn.Module):
    """A multilayer perceptron on sinusoids of x; any class will do that is called (x, t) and has a `config`."""

    def __init__(self, dim: int, width: int, horizon: float) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"dim": dim, "width": width, "horizon": horizon}
        self.time = networks.TimeEmbedding(16, horizon)
        self.waves = nn.Linear(dim, width)
        self.body = nn.Sequential(nn.Linear(width + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.last = nn.Linear(width, dim)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.body(torch.cat([self.waves(x).sin(), self.time(t).to(x.dtype)], dim=1)))


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--folder", default="runs/own")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    moons = data.load("moons")
    process = fastndsm.LangevinProcess(fastndsm.GaussianMixture.fit(moons.train, 8, random_state=0))
    net = fastndsm.ResidualScore(Fourier(2, 128, process.T), process)
    trainer = training.Trainer(net, fastndsm.NDSMLoss(process), moons.train, training.TrainConfig(steps=given.steps))
    trainer.fit()
    training.save_model(given.folder, trainer.ema_net, process)

    try:
        training.load_model(given.folder)
    except ValueError as error:
        print(f"without the class: {error}")
    # or allow_import=["my_package"], and on the command line: fastndsm sample FOLDER --allow-import my_package
    loaded, process, _ = training.load_model(given.folder, network=Fourier)

    before, after = (fastndsm.sample(n, process, 1000, seed=1) for n in (trainer.ema_net, loaded))
    found = {
        "largest difference of samples": float((before - after).abs().max()),
        "energy distance to held-out data": fastndsm.metrics.energy_distance(after, moons.test),
    }
    for name, value in found.items():
        print(f"{name:34} {value:.4f}")
    return found


if __name__ == "__main__":
    main()
