"""A model of each class: train under labels, sample a class, stress it by guidance, say how likely a point is under it.

    python examples/class_conditional.py [--steps 1500]

The reference is fitted under the labels too: each class has components of its own, from which its samples start and
towards which its rows are noised. A reference of all the data does as well; `process.fit_prior(x, labels)` then finds
which of its components a class starts from, since noising does not move a sample from mode to mode.

A network of your own takes the place of MLP if it is called (x, t, condition), takes (x, t) for the case of none, and
has `null_condition(condition)`, which gives what stands for none (see `fastndsm.networks`). Conditions may be vectors,
images, or a dict of several tensors.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

import fastndsm
from fastndsm import data, networks, training


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args(arguments).steps

    torch.manual_seed(0)
    moons = data.load("moons", n=4000)
    x, labels = moons.train, moons.labels  # [n, 2] and [n], int64 from 0
    test, test_labels = moons.test[:1000], moons.test_labels[:1000]

    reference = fastndsm.GaussianMixture.fit(x, n_components=8, labels=labels, random_state=0)  # four of each class
    process = fastndsm.LangevinProcess(reference, grid="quadratic")
    net = networks.MLP(2, (96, 96), in_dim=4, horizon=process.T, classes=2)
    score_net = fastndsm.ResidualScore(net, process, features=True)

    config = training.TrainConfig(steps=steps, condition_dropout=0.1)  # a tenth trains the network to do without
    trainer = training.Trainer(score_net, fastndsm.NDSMLoss(process), x, config, conditions=labels)
    trainer.fit()
    score_net = trainer.ema_net

    def error(points: Tensor, classes: Tensor) -> float:
        """Return how often a point's nearest neighbour in the data is of another class."""
        return float((labels[torch.cdist(points, x).argmin(1)] != classes).double().mean())

    wanted = torch.arange(1000) % 2
    found = {"error of held-out data": error(test, test_labels)}
    start = process.draw_prior(1000, seed=2, condition=wanted)
    found["error of draws from the reference"] = error(start.float(), wanted)
    for guidance in (0.0, 1.0, 2.0):  # no class, the class, more than the class
        drawn = fastndsm.sample(score_net, process, 1000, condition=wanted, guidance=guidance, seed=1)
        found[f"error at guidance {guidance:g}"] = error(drawn, wanted)
        if guidance == 1.0:
            for c in (0, 1):
                distance = fastndsm.metrics.energy_distance(drawn[wanted == c], test[test_labels == c])
                found[f"energy distance to class {c}"] = distance

    right = fastndsm.log_likelihood(score_net, process, test[:200], condition=test_labels[:200])
    wrong = fastndsm.log_likelihood(score_net, process, test[:200], condition=1 - test_labels[:200])
    found["mean log-likelihood under the right class"] = float(right.mean())
    found["under the other"] = float(wrong.mean())
    for name, value in found.items():
        print(f"{name:45} {value:8.4f}")
    return found


if __name__ == "__main__":
    main()
