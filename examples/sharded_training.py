"""Divide a large network among processes (fully_shard), in a loop of your own, with distributed checkpoints.

    torchrun --nproc-per-node 2 examples/sharded_training.py --out runs/sharded [--steps 400]

Repeat the command after a process was killed, also with another --nproc-per-node: it goes on from the last checkpoint,
which torch.distributed.checkpoint reads on any number of processes. At the end rank 0 writes an ordinary model folder.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fastndsm
from fastndsm import data, networks, training


def build(width: int) -> tuple[fastndsm.ResidualScore, fastndsm.LangevinProcess, torch.Tensor]:
    torch.manual_seed(0)  # the same on all ranks: weights, batches and noise
    x = data.load("digits").train.flatten(1)  # [n, 64]
    reference = fastndsm.GaussianMixture.fit(x, n_components=10, random_state=0)
    process = fastndsm.LangevinProcess(reference)
    return fastndsm.ResidualScore(networks.MLP(64, (width, width), horizon=process.T), process), process, x


def latest(folder: Path) -> Path | None:
    """Return the last whole checkpoint: its metadata are written when all ranks have written their parts."""
    whole = sorted(path.parent for path in folder.glob("step-*/.metadata"))
    return whole[-1] if whole else None


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder that all processes see")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--kill-at", type=int, help="kill the last process at this step, to see what is left")
    given = parser.parse_args(arguments)

    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()

    score_net, process, x = build(given.width)
    score_net.to(device)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")  # it stays as it is
    for layer in (*score_net.net.layers, score_net.net):  # parts that are put together one at a time
        if isinstance(layer, nn.Linear | networks.MLP):
            fully_shard(layer, mesh=init_device_mesh(device.type, (world,)))
    optimizer = torch.optim.Adam(score_net.parameters(), lr=1e-3)
    loss_fn = fastndsm.NDSMLoss(process)

    begin = 0
    if (newest := latest(given.out)) is not None:
        model, moments = get_state_dict(score_net, optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": moments}
        dcp.load(state, checkpoint_id=newest)
        set_state_dict(score_net, optimizer, model_state_dict=model, optim_state_dict=moments)
        begin = int(newest.name.removeprefix("step-"))

    rows = 256 // world  # of each rank's part of a batch of 256
    for step in range(begin, given.steps):
        picked = torch.randint(len(x), (256,), generator=torch.Generator().manual_seed(step))  # of the step alone
        batch = x[picked[rank * rows : (rank + 1) * rows]].to(device)
        loss = loss_fn(score_net, batch, seed=step)  # rank r draws the noise of its rows of the batch of 256
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % given.every == 0 or step + 1 == given.steps:
            model, moments = get_state_dict(score_net, optimizer)
            dcp.save({"model": model, "optimizer": moments}, checkpoint_id=given.out / f"step-{step + 1:06d}")
        if step + 1 == given.kill_at and rank == world - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    whole = get_model_state_dict(score_net, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    found = {"processes": float(world), "resumed at step": float(begin)}
    if rank == 0:
        own, process, x = build(given.width)
        own.load_state_dict(whole)
        training.save_model(given.out / "model", own, process)
        score_net, process, _ = training.load_model(given.out / "model")
        samples = fastndsm.sample(score_net, process, 500, seed=1)
        found["energy distance to the data"] = fastndsm.metrics.energy_distance(samples, x)
        drawn = process.reference.sample(500, seed=1).float()
        found["of draws from the mixture"] = fastndsm.metrics.energy_distance(drawn, x)
        for old in sorted(given.out.glob("step-*"))[:-1]:
            shutil.rmtree(old)
        for name, value in found.items():
            print(f"{name:40} {value:10.4g}")
    dist.barrier()
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    main()
