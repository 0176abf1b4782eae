"""Train on dequantized digits and report bits per dimension of held-out ones, with the error of integration.

    python examples/bits_per_dimension.py [--steps 2000]

Pixels are integers from 0 to 16. Spread uniformly over their cells they have a density, and its mean bounds -log2 P of
the integers (Theis et al., arXiv 1511.01844). log2 17 = 4.09 is what pixels without any model take.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

import torch

import fastndsm
from fastndsm import data, metrics, networks, training

LEVELS = 17


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    steps = parser.parse_args(arguments).steps

    torch.manual_seed(0)
    digits = data.load("digits")
    train, test = (((x + 1.0) * 8.0).round().long() for x in (digits.train, digits.test[:200]))  # 0..16
    x = torch.cat([data.dequantize(train, LEVELS, seed=0, step=k) for k in range(4)])  # in -1..1

    reference = fastndsm.GaussianMixture.fit(x, n_components=20, random_state=0)
    process = fastndsm.LangevinProcess(reference, grid="quadratic")
    net = fastndsm.ResidualScore(networks.MLP(64, (256, 256), horizon=process.T), process)
    trainer = training.Trainer(net, fastndsm.NDSMLoss(process), x, training.TrainConfig(steps=steps))
    trainer.fit()

    options = {"levels": LEVELS, "n_evaluations": 50, "return_error": True}
    bits, error = metrics.bits_per_dimension(trainer.ema_net, process, test, **options)
    spread = float(bits.std()) / len(bits) ** 0.5
    alone = -reference.log_prob(data.dequantize(test, LEVELS, seed=0)).mean() / math.log(2.0) / 64
    found = {
        "no model": math.log2(LEVELS),
        "mixture alone": float(alone) - math.log2(2.0 / LEVELS),
        "network": float(bits.mean()),
        "its standard error": spread,
        "its error of integration": float(error.mean()),
    }
    for name, value in found.items():
        print(f"{name:26} {value:6.3f} bits per dimension")
    return found


if __name__ == "__main__":
    main()
