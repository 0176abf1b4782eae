"""The way from the mixture to the data, and samples begun from a sketch of your own (SDEdit).

    python examples/paths_and_edits.py [--steps 1500] [--png paths.png]

Source of the editing: Meng et al., arXiv 2108.01073.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import fastndsm
from fastndsm import data, networks, training


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--png", help="picture of the paths, if wanted")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    x = data.load("moons", n=4000).train
    reference = fastndsm.GaussianMixture.fit(x, n_components=8, random_state=0)
    process = fastndsm.LangevinProcess(reference, grid="quadratic")
    net = networks.MLP(2, (96, 96), in_dim=4, horizon=process.T)
    score_net = fastndsm.ResidualScore(net, process, features=True)
    config = training.TrainConfig(steps=given.steps)
    trainer = training.Trainer(score_net, fastndsm.NDSMLoss(process), x, config)
    trainer.fit()
    score_net = trainer.ema_net

    def off(points: Tensor) -> float:
        """Return the mean distance from the nearest point of the data."""
        return float(torch.cdist(points, x).amin(1).mean())

    found: dict[str, float] = {}

    def look(seen: dict[str, float]) -> None:
        found[f"distance from the data at t = {seen['t']:.4f}"] = off(seen["x"])

    states = fastndsm.sample(score_net, process, 300, "ode", seed=1, trajectory=10, callback=look)  # [11, 300, 2]
    found["distance from the data at the end"] = off(states[-1])
    if given.png:
        from fastndsm.cli.pictures import draw_paths

        draw_paths(Path(given.png), states)

    angle = torch.linspace(0.0, 2.0 * torch.pi, 301)[:-1]
    sketch = torch.stack([1.2 * angle.cos(), 0.8 * angle.sin()], dim=1) + x.mean(0)  # a ring, which moons are not
    found["distance from the data: sketch"] = off(sketch)
    for share in (0.25, 0.5, 1.0):  # the further it is noised, the more is made anew
        step = round(share * process.n_steps)
        noised = process.simulate(sketch, step, seed=2)
        edited = fastndsm.sample(score_net, process, 300, start=(noised, float(process.times[step])), seed=1)
        found[f"distance from the data: after {share:.0%}"] = off(edited)
        found[f"distance from the sketch: after {share:.0%}"] = float((edited - sketch).norm(dim=1).mean())
    for name, value in found.items():
        print(f"{name:40} {value:6.3f}")
    return found


if __name__ == "__main__":
    main()
