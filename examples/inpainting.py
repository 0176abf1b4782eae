"""Fill in the lower half of handwritten digits, whose upper half is known, by a model that was not trained for it.

    python examples/inpainting.py [--steps 1500]

The known pixels enter twice: they say which components of the mixture to start from, exactly, and a guide pulls the
samples to them on the way, as strongly as noise of variance v(t) in them allows.
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
    digits = data.load("digits")
    x, truth = digits.train, digits.test[:200]  # [., 1, 8, 8]
    reference = fastndsm.GaussianMixture.fit(x, n_components=20, random_state=0)
    process = fastndsm.LangevinProcess(reference)
    net = fastndsm.ResidualScore(networks.MLP(64, (256, 256), horizon=process.T), process)
    trainer = training.Trainer(net, fastndsm.NDSMLoss(process), x, training.TrainConfig(steps=steps))
    trainer.fit()
    score_net = trainer.ema_net

    known = torch.zeros(1, 8, 8)
    known[:, :4] = 1.0

    def guide(x: Tensor, t: Tensor) -> Tensor:
        """Return grad log N(known pixels; x, v(t))."""
        return known * (truth - x) / process.variance_at(t).reshape(-1, 1, 1, 1)

    def start() -> Tensor:
        """Draw from the mixture given the known pixels: the component by them, then around its mean."""
        seen = known.flatten().bool()
        variances = reference.covariances[:, None]
        of_seen = fastndsm.GaussianMixture(reference.weights, reference.means[:, seen], variances[:, 0], "spherical")
        k = torch.multinomial(of_seen.responsibilities(truth.flatten(1)[:, seen]), 1)[:, 0]
        drawn = reference.means[k] + variances[k].sqrt() * torch.randn(len(truth), 64)
        return drawn.reshape(truth.shape).float()

    def error(drawn: Tensor, where: Tensor) -> float:
        return float(((drawn - truth).square() * where).sum().div(where.sum() * len(truth)).sqrt())

    n, found = len(truth), {}
    for name, options in {
        "unguided": {},
        "guide": {"guide": guide},
        "guide and start": {"guide": guide, "x_T": start()},
    }.items():
        drawn = fastndsm.sample(score_net, process, n, seed=1, **options)
        found[f"{name}: known"], found[f"{name}: filled in"] = error(drawn, known), error(drawn, 1.0 - known)
    found["mean of the data: filled in"] = error(x.mean(0).expand_as(truth), 1.0 - known)
    print("root mean square of error, pixels from -1 to 1")
    for name, value in found.items():
        print(f"{name:30} {value:6.3f}")
    return found


if __name__ == "__main__":
    main()
