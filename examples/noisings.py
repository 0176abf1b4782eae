"""One line says how data are noised: nonlinear, linear, linear with the mixture, EDM with it, or a flow from it.

    python examples/noisings.py [--steps 1000]

All else is the same: network, loss, trainer, sampler, likelihood. When to take which: docs/choosing.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch

import fastndsm
from fastndsm import data, networks, training

# The one line: a mixture -> a process.
NOISINGS: dict[str, Callable[[fastndsm.GaussianMixture], fastndsm.process.ReferenceProcess]] = {
    "nonlinear": lambda pi: fastndsm.LangevinProcess(pi, grid="quadratic"),
    "linear": lambda pi: fastndsm.OUProcess(pi.dim, T=6.0, grid="quadratic"),
    "linear, mixture": lambda pi: fastndsm.OUProcess(pi.dim, T=3.0, grid="quadratic", reference=pi),
    "EDM, mixture": lambda pi: fastndsm.EDMProcess(pi.dim, pi),
    "flow from the mixture": lambda pi: fastndsm.FlowProcess(pi),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args(arguments).steps

    moons = data.load("moons", n=4000)
    x, fresh = moons.train, moons.test[:2000]
    pi = fastndsm.GaussianMixture.fit(x, n_components=2, random_state=0)
    drawn = pi.sample(2000, seed=1).float()
    found = {"draws from the mixture": {"energy distance": fastndsm.metrics.energy_distance(drawn, fresh)}}
    for name, noising in NOISINGS.items():
        process = noising(pi)
        torch.manual_seed(0)
        net = fastndsm.ResidualScore(networks.MLP(2, (96, 96), horizon=process.T), process)
        trainer = training.Trainer(net, fastndsm.loss_for(process), x, training.TrainConfig(steps=steps))
        trainer.fit(progress=False)
        samples = fastndsm.sample(trainer.ema_net, process, 2000, n_evaluations=20, seed=1)
        likelihood = fastndsm.log_likelihood(trainer.ema_net, process, fresh[:100], n_evaluations=50)
        found[name] = {
            "energy distance": fastndsm.metrics.energy_distance(samples, fresh),
            "log-likelihood": float(likelihood.mean()),
        }
    for name, figures in found.items():
        print(f"{name:25}" + "".join(f"  {what} {value:8.4f}" for what, value in figures.items()))
    return found


if __name__ == "__main__":
    main()
