"""Run samplers that were written for Song et al.'s score_sde on a process of this library: the two here are theirs.

    python examples/score_sde_sampler.py [--steps 2000]

Their predictor (reverse diffusion) takes all steps of the process; `fastndsm.sample` does with ten evaluations.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

import fastndsm
from fastndsm import data, metrics, networks, training
from fastndsm.integrations.score_sde import SDE


def reverse_diffusion(sde: SDE, score: torch.nn.Module, shape: tuple[int, ...], probability_flow: bool) -> Tensor:
    """Draw samples by the predictor of their sampling.py, `ReverseDiffusionPredictor`."""
    reverse = sde.reverse(score, probability_flow)
    x = sde.prior_sampling(shape)
    for t in sde.process.times[1:].flip(0).float():
        f, G = reverse.discretize(x, t.expand(len(x)))
        x = x - f + G[:, None] * torch.randn_like(x)
    return x


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args(arguments).steps

    torch.manual_seed(0)
    modes = data.load("four_modes")
    process = fastndsm.LangevinProcess(fastndsm.GaussianMixture.fit(modes.train, 2, random_state=0))
    net = fastndsm.ResidualScore(networks.MLP(2, (128, 128), horizon=process.T), process)
    trainer = training.Trainer(net, fastndsm.NDSMLoss(process), modes.train, training.TrainConfig(steps=steps))
    trainer.fit()
    score = trainer.ema_net.eval()

    sde = SDE(process)
    try:
        sde.marginal_prob(modes.train[:2], torch.ones(2))
    except NotImplementedError as error:
        print(error)
    n = 2000
    with torch.no_grad():
        drawn = {
            "prior": sde.prior_sampling((n, 2)),
            "their predictor, reverse SDE": reverse_diffusion(sde, score, (n, 2), False),
            "their predictor, probability flow": reverse_diffusion(sde, score, (n, 2), True),
            "fastndsm.sample": fastndsm.sample(score, process, n),
        }
    found = {name: metrics.energy_distance(x, modes.test) for name, x in drawn.items()}
    print("energy distance to held-out data")
    for name, value in found.items():
        print(f"{name:34} {value:.4f}")
    return found


if __name__ == "__main__":
    main()
