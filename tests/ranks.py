"""The program of each rank of `test_ranks.py`: python ranks.py JOB RANK WORLD FOLDER."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import fastndsm
from fastndsm.networks import MLP
from fastndsm.training import TrainConfig, Trainer

N, SIZE = 10, 3  # samples, and those of a batch


def mixture(shift: float = 0.0) -> fastndsm.GaussianMixture:
    return fastndsm.GaussianMixture([0.5, 0.5], [[-1.0, shift], [1.0, 0.5]], [0.4, 0.6], "spherical")


def process(shift: float = 0.0) -> fastndsm.LangevinProcess:
    return fastndsm.LangevinProcess(mixture(shift), n_steps=20)


def data(n: int = 60) -> Tensor:
    return mixture().sample(n, seed=1).float()


class Normalised(nn.Module):
    """A network with running means, a parameter that is never used, and others of unusual dtype and layout."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net = nn.BatchNorm1d(2), network()
        self.unused = nn.Parameter(torch.ones(3))
        self.across = nn.Parameter(torch.randn(3, 2).T)
        self.turn = nn.Parameter(torch.ones(2, dtype=torch.complex64))
        self.register_buffer("shift", torch.tensor([1.0 + 1.0j, 2.0]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.net(self.norm(x), t)
        return out * (self.turn * self.shift).real + (x @ self.across).sum(1, keepdim=True)


def network(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    net = MLP(2, (16,), embedding_dim=8, horizon=2.0)
    with torch.no_grad():
        net.last.weight.normal_(std=0.1)
    return net


def trainer(directory: Path | None = None, net: nn.Module | None = None, **options: Any) -> Trainer:
    hooks = {name: options.pop(name) for name in ("callbacks", "validation") if name in options}
    reduction, antithetic = options.pop("reduction", "mean"), options.pop("antithetic", False)
    x, noising = options.pop("data", None), process(options.pop("shift", 0.0))
    config = TrainConfig(**{"steps": 13, "batch_size": 12, "checkpoint_every": 4, "noised_ahead": 3, **options})
    loss = fastndsm.NDSMLoss(noising, antithetic=antithetic, reduction=reduction)
    net = network() if net is None else net
    return Trainer(net, loss, data() if x is None else x, config, directory=directory, **hooks)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum, antithetic": {"reduction": "sum", "antithetic": True, "lr": 1e-3},
    "clipped, in parts": {"grad_clip": 0.5, "accumulate": 2},
    "records": {"records_per_path": 2},
    "pool": {"paths": 1000, "pool_passes": 1},
}


def weights(net: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in net.state_dict().items() if isinstance(t, Tensor)}


def message(call: Callable[[], Any]) -> str:
    try:
        call()
    except (ValueError, TypeError, RuntimeError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def train(rank: int, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    torch.manual_seed(5)
    found["drawn"] = fastndsm.NDSMLoss(process()).draw(data(8)[4 * rank : 4 * rank + 4])
    for name, options in RUNS.items():
        made = trainer(net=network(seed=rank), **options)  # those of rank 0 count
        history = made.fit(progress=False)
        found[name] = weights(made.ema_net), [row.loss for row in history]
    wrapped = trainer(net=nn.parallel.DistributedDataParallel(network()), accumulate=2)
    wrapped.fit(progress=False)
    found["wrapped"] = weights(wrapped.ema_net)
    del wrapped

    whole = trainer(net=Normalised(), validation=data(30), validate_every=5)
    found["validation"] = [row.validation for row in whole.fit(progress=False)]
    found["normalised"] = weights(whole.ema_net)
    first = trainer(folder / "resumed", Normalised(), callbacks=[lambda t: t.step == 8])
    first.fit(progress=False)
    again = trainer(folder / "resumed", Normalised())
    found["resumed at"] = again.resume()
    again.fit(progress=False)
    found["resumed"] = weights(again.ema_net)
    found["logged"] = logged(folder)
    trainer(folder / "elsewhere", callbacks=[lambda t: t.step == 8]).fit(progress=False)
    return found


def logged(folder: Path) -> list[int]:
    class Steps:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def log(self, metrics: Any, step: int) -> None:
            self.steps.append(step)

        def close(self) -> None:
            self.steps.append(-1)

    steps = Steps()
    loss = fastndsm.NDSMLoss(process())
    Trainer(network(), loss, data(), TrainConfig(steps=3, batch_size=4), loggers=[steps]).fit(progress=False)
    return steps.steps


class FailsOnOne(nn.Module):
    """A network whose loss is NaN on rank 1 in the third step, and its gradient nowhere."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.net, self.rank, self.calls = network(), rank, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.net(x, t)
        return out + (torch.nan if self.rank == 1 and self.calls == 3 else 0.0)


def refused(rank: int, folder: Path) -> dict[str, str]:
    def only_one() -> None:
        own = folder / f"own-{rank}"
        if rank == 0:
            own.mkdir()
            (own / "step-000004").mkdir()
        trainer(own).resume()

    def sampled() -> Tensor:
        net = (lambda x, t: x * torch.nan) if rank == 1 else (lambda x, t: -x)
        return fastndsm.sample_sharded(net, process(), N, batch_size=SIZE)

    divided = network()
    fully_shard(divided, mesh=init_device_mesh("cpu", (2,)))
    return {
        "divided": message(lambda: trainer(net=divided)),
        "sample of a divided network": message(lambda: fastndsm.sample_sharded(divided, process(), N)),
        "shape": message(lambda: trainer(data=data(60 + rank))),
        "values": message(lambda: trainer(data=data() + rank)),
        "mixture": message(lambda: trainer(shift=0.1 * rank)),
        "loss": message(lambda: trainer(antithetic=rank == 1)),
        "validation": message(lambda: trainer(validation=data(5 + rank))),
        "directory": message(lambda: trainer(folder if rank == 0 else None)),
        "config": message(lambda: trainer(lr=1e-3 * (1 + rank))),
        "network": message(lambda: trainer(net=MLP(2, (16 + rank,), embedding_dim=8))),
        "batch": message(lambda: trainer(batch_size=7)),
        "parts": message(lambda: trainer(batch_size=4, accumulate=3)),
        "NaN": message(lambda: trainer(net=FailsOnOne(rank)).fit(progress=False)),
        "checkpoint": message(only_one),
        "sample": message(sampled),
        "sample of another n": message(lambda: fastndsm.sample_sharded(network(), process(), N + rank)),
        "sample of another network": message(lambda: fastndsm.sample_sharded(network(rank), process(), N)),
    }


def samples(rank: int, folder: Path) -> dict[str, Any]:
    torch.manual_seed(rank)  # of the seed, that of rank 0 counts
    net = network()
    return {
        "drawn seed": fastndsm.sample_sharded(net, process(), N, batch_size=SIZE),
        "seed 3": fastndsm.sample_sharded(net, process(), N, "ode", batch_size=SIZE, seed=3, first_path=7, order=1),
        "few": fastndsm.sample_sharded(net, process(), 2, seed=3),
        "files": fastndsm.write_samples(folder / "samples", net, process(), N, seed=3, batch_size=SIZE),
    }


def killed(rank: int, folder: Path) -> None:
    """Train until rank 1 is killed, a checkpoint at every second step; rank 0 is then left with an error."""

    def kill(made: Trainer) -> None:
        if rank == 1 and made.step == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer(folder / "killed", checkpoint_every=2, callbacks=[kill]).fit(progress=False)


def main(job: str, rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / f'store-{job}'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    if job == "killed":
        killed(rank, folder)
    else:
        found = {**train(rank, folder), "refused": refused(rank, folder), "samples": samples(rank, folder)}
        torch.save(found, folder / f"found-{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
