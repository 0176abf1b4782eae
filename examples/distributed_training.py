"""Train and sample on several processes, each with its own GPU if there are some; kill one and go on, on any number.

    torchrun --nproc-per-node 2 examples/distributed_training.py --out runs/distributed [--steps 1500]
    python examples/distributed_training.py --out runs/distributed      the same run, or the rest of it, on one process

The batches are the same for any number of processes, and so is the noise: process r of W takes the r-th part of each.
A loop of your own needs nothing but the lines marked (*): under one seed, the losses draw for process r the noise that
one process would draw for its rows of one large batch.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

import fastndsm
from fastndsm import data, networks, training


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder that all processes see")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--kill-at", type=int, help="kill the last process at this step, to see what is left")
    given = parser.parse_args(arguments)

    device = torch.device("cpu")
    if "RANK" in os.environ:  # which torchrun sets
        if torch.cuda.is_available():
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")  # (*)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)

    torch.manual_seed(0)  # (*) the same on all
    x = data.load("moons", n=4000).train  # all of it on all processes
    reference = fastndsm.GaussianMixture.fit(x, n_components=8, random_state=0)
    process = fastndsm.LangevinProcess(reference, grid="quadratic").to(device)
    net = networks.MLP(2, (96, 96), in_dim=4, horizon=process.T)
    score_net = fastndsm.ResidualScore(net, process, features=True).to(device)

    def kill(trainer: training.Trainer) -> None:
        if trainer.step == given.kill_at and rank == world - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = training.Trainer(
        score_net,  # or DistributedDataParallel(score_net), which sends gradients while others are computed
        fastndsm.NDSMLoss(process),
        x,
        training.TrainConfig(steps=given.steps, batch_size=512, checkpoint_every=max(1, given.steps // 10)),
        directory=given.out / "checkpoints",
        callbacks=[kill],
    )
    found = {"processes": float(world), "resumed at step": float(trainer.resume())}
    trainer.fit(progress=rank == 0)

    options = {"seed": 1, "batch_size": 500}
    fastndsm.write_samples(given.out / "samples", trainer.ema_net, process, given.samples, **options)  # parts, as files
    samples = fastndsm.read_samples(given.out / "samples")
    gathered = fastndsm.sample_sharded(trainer.ema_net, process, given.samples, **options)  # or in memory, on all
    found["files and gathered samples differ by"] = float((samples - gathered.cpu()).abs().max())
    found["energy distance to the data"] = fastndsm.metrics.energy_distance(samples, x)
    if rank == 0:
        for name, value in found.items():
            print(f"{name:40} {value:10.4g}")
    if dist.is_initialized():
        dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
