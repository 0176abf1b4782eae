"""A run of days by the Trainer: held-out data, early stop, any schedule, figures and callbacks of your own.

    python examples/trainer_options.py [--steps 3000] [--out runs/options] [--logger tensorboard]

Interrupt it, and call it again with the same --out: it goes on as if it had not been.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

import fastndsm
from fastndsm import data, networks, training


class Printed:
    """A logger of your own: these two methods are all there is to it."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if "validation" in metrics:
            print(f"step {step:5d}  loss {metrics['loss']:.3f}  on held-out data {metrics['validation']:.4f}")

    def close(self) -> None:
        print("done")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--logger", choices=("tensorboard", "wandb"), help="whose package is installed")
    given = parser.parse_args(arguments)

    torch.manual_seed(0)
    digits = data.load("digits")
    x = digits.train.flatten(1)[:200]  # so few that a network learns them by heart
    held_out = digits.test.flatten(1)[:200]
    process = fastndsm.LangevinProcess(fastndsm.GaussianMixture.fit(x, n_components=5, random_state=0))
    net = fastndsm.ResidualScore(networks.MLP(64, (256, 256), horizon=process.T), process)

    loggers: list[training.Logger] = [Printed()]
    if given.logger == "tensorboard":
        loggers.append(training.TensorBoard((given.out or Path("runs")) / "tensorboard"))
    if given.logger == "wandb":
        loggers.append(training.WandB(project="fastndsm"))

    def warmed_up(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        """Return any scheduler of torch's; here a tenth of the steps upwards, then a cosine."""
        up, down = max(1, given.steps // 10), given.steps
        first = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=up)
        then = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, down - up)
        return torch.optim.lr_scheduler.SequentialLR(optimizer, [first, then], [up])

    distances: dict[int, float] = {}

    def look(trainer: training.Trainer) -> bool:
        """Sample on the way; True would end the training here."""
        if trainer.step % max(1, given.steps // 4) == 0:
            drawn = fastndsm.sample(trainer.ema_net, process, 200, seed=1)
            distances[trainer.step] = fastndsm.metrics.energy_distance(drawn, held_out)
        return False

    config = training.TrainConfig(
        steps=given.steps,
        accumulate=2,  # half the memory of a batch at once
        precision="bfloat16",  # of the network's evaluations
        validate_every=max(1, given.steps // 40),
        patience=5,
    )
    trainer = training.Trainer(
        net,
        fastndsm.NDSMLoss(process),
        DataLoader(TensorDataset(x), batch_size=128, shuffle=True),  # or the tensor itself, which is faster
        config,
        scheduler=warmed_up,
        validation=held_out,
        callbacks=[look],
        loggers=loggers,
        directory=None if given.out is None else given.out / "checkpoints",
    )
    trainer.resume()
    trainer.fit(progress=False)
    assert trainer.best is not None and trainer.best.validation is not None
    drawn = fastndsm.sample(trainer.best_net, process, 200, seed=1)
    found = {
        "steps taken": float(trainer.step),
        "best step": float(trainer.best.step),
        "its loss on held-out data": trainer.best.validation,
        "the last": next(row.validation for row in reversed(trainer.history) if row.validation is not None),
        "energy distance of the best": fastndsm.metrics.energy_distance(drawn, held_out),
    }
    found |= {f"energy distance at step {step}": value for step, value in distances.items()}
    for name, value in found.items():
        print(f"{name:35} {value:10.4g}")
    return found


if __name__ == "__main__":
    main()
