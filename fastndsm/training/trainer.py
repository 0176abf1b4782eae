"""Training a score network: noise ahead, step, average, and resume exactly.

Everything random is a function of (seed, step): the rows of a batch, the noise of its paths, dropout.
Weights, their average, the optimizer's state and the step are therefore all that a checkpoint needs for the
resumed run to end with the weights of an uninterrupted one, bit for bit on the same machine and thread count.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from .. import _checks
from .._condition import Condition
from ..objective import DSMLoss, NDSMLoss
from ..process import NoisingProcess
from ..score import unwrapped
from . import checkpoint
from .batches import Batches, derived_seed
from .config import History, NonFiniteLoss, Row, TrainConfig, check_arguments, check_directory, made_optimizer
from .fingerprint import differences, extra_states, fingerprint, overlapping, shapes, state_tensors
from .lock import locked
from .storage import CheckpointError, json_object

__all__ = ["CheckpointError", "History", "NonFiniteLoss", "Row", "TrainConfig", "Trainer"]

WINDOW = 20  # steps between looks at the losses: each look waits for the device
HALF = (torch.bfloat16, torch.float16)  # too coarse to accumulate in


class Trainer:
    """Training of `score_net` on `data`, with a moving average of the weights and checkpoints.

    Weights in bfloat16 and float16 are stepped, and averaged, in float32: those dtypes lose small changes.

    Args:
        score_net: module (x [B, ...], t [B]) -> like x, with conditions (x, t, condition) -> like x. In a
            torch.distributed run, wrapped in DistributedDataParallel; each rank then takes rows and paths of its own.
        loss: NDSMLoss or DSMLoss with reduction "mean" or "sum". A separate control variate is trained along.
        data: [n, ...], finite, in the network's dtype; batches are moved to the network's device.
        config: see `TrainConfig`.
        optimizer: a function that makes a torch optimizer of the parameters, one whose step needs no closure; its rates
            follow the cosine. Default Adam.
        directory: where checkpoints go; None writes none. One process at a time trains in it.
        meta: JSON-able, stored in the checkpoints.
        conditions: of the data, a tensor [n, ...] or a dict of them, on their device. Those of condition_dropout of the
            paths are replaced by the network's null condition.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what was found.
    """

    def __init__(
        self,
        score_net: nn.Module,
        loss: NDSMLoss | DSMLoss,
        data: Tensor,
        config: TrainConfig | None = None,
        *,
        optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
        directory: str | Path | None = None,
        meta: dict[str, Any] | None = None,
        conditions: Condition | None = None,
    ) -> None:
        config = TrainConfig() if config is None else config
        check_arguments(score_net, loss, data, config, conditions)
        self.score_net, self.loss, self.data, self.config = score_net, loss, data, config
        self.directory = None if directory is None else check_directory(directory)
        self.meta = json_object("meta", meta)
        self.step, self.seconds, self.history = 0, 0.0, History()
        net = unwrapped(score_net)
        processes = [m for m in net.modules() if isinstance(m, NoisingProcess)]
        self._ema = copy.deepcopy(net, {id(p): p for p in processes}).requires_grad_(False)
        trained = [(p, q) for p, q in zip(net.parameters(), self._ema.parameters(), strict=True) if p.requires_grad]
        self._weights: list[Tensor] = [p for p, _ in trained]
        self._average: list[Tensor] = [q.detach().float() if q.dtype in HALF else q for _, q in trained]
        self._given_out = [q for _, q in trained]
        h = getattr(loss, "control_variate", None)
        self._control_variate = h if isinstance(h, nn.Module) else None
        known = {id(p) for p in self._weights}
        extra = [] if self._control_variate is None else list(self._control_variate.parameters())
        self._parameters = self._weights + [p for p in extra if p.requires_grad and id(p) not in known]
        stepped = [nn.Parameter(p.detach().float()) if p.dtype in HALF else p for p in self._parameters]
        self.optimizer = (
            _adam(stepped, config.lr) if optimizer is None else made_optimizer(optimizer, stepped, self._parameters)
        )
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        pairs = zip(self._parameters, stepped, strict=True)
        self._masters = [(p, master) for p, master in pairs if p is not master and id(master) in held]
        for group in self.optimizer.param_groups:  # one that was scheduled before starts anew
            group["lr"] = copy.deepcopy(group.setdefault("initial_lr", group["lr"]))
        self._schedule = CosineAnnealingLR(self.optimizer, config.steps)
        self._settings = [
            {k: repr(v) for k, v in g.items() if k not in ("params", "lr")} for g in self.optimizer.param_groups
        ]
        self.device = self._weights[0].device
        self._rank, world = _rank_and_world()
        self._batches = Batches(
            data,
            loss,
            steps=config.steps,
            batch_size=config.batch_size,
            seed=config.seed,
            noised_ahead=config.noised_ahead,
            pool=None if isinstance(config.paths, str) else config.paths,
            passes=config.pool_passes,
            records=config.records_per_path,
            rank=self._rank,
            world=world,
            device=self.device,
            conditions=conditions,
            dropout=config.condition_dropout,
        )
        self._recent: list[tuple[Tensor, Tensor]] = []

    @property
    def ema_net(self) -> nn.Module:
        """The network with averaged weights, in eval mode; its process is the trained network's own."""
        with torch.no_grad():
            for q, average in zip(self._given_out, self._average, strict=True):
                if q is not average:
                    q.copy_(average)
        for own, other in zip(self._ema.buffers(), unwrapped(self.score_net).buffers(), strict=True):
            if own is not other:
                own.copy_(other)
        states = extra_states(("", unwrapped(self.score_net)))
        for name, module in extra_states(("", self._ema)).items():
            module.set_extra_state(copy.deepcopy(states[name].get_extra_state()))
        return self._ema.eval()

    def fit(self, progress: bool = True) -> History:
        """Train from the current step to config.steps; return the history, whole also after `resume`.

        Raises:
            NonFiniteLoss: on a NaN or infinite loss, gradient or weight; names step and last good checkpoint.
            CheckpointError: if the directory holds checkpoints of later steps and `resume` was not called, or another
                process trains in it.
            ValueError, TypeError: before the first step, if something could not be saved, naming it.
        """
        _checks.flag("progress", progress)
        with self._locked():
            newest = None if self.directory is None else checkpoint.latest(self.directory)
            if newest is not None and int(newest.name.removeprefix("step-")) > self.step:
                raise CheckpointError(
                    f"directory: expected none beyond step {self.step}, found checkpoint {newest}; call resume()"
                )
            self._take_over()
            self._try_to_save()
            self._train(progress)
        return self.history

    def _train(self, progress: bool) -> None:
        self.score_net.train()
        started = time.perf_counter() - self.seconds
        others = [] if self.device.type == "cpu" else [self.device]
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.random.fork_rng(others, device_type="cuda" if not others else self.device.type),
            tqdm(total=self.config.steps, initial=self.step, disable=not progress, desc="train", unit="step") as bar,
        ):
            while self.step < self.config.steps:
                self._train_step()
                if self.step == 0:
                    self._try_to_save()  # now with a state of the optimizer
                self.step += 1
                bar.update()
                end = self.step == self.config.steps
                save = self.directory is not None and (end or self.step % self.config.checkpoint_every == 0)
                if save or end or self.step % WINDOW == 0:
                    self.seconds = time.perf_counter() - started
                    self._record()
                    bar.set_postfix(loss=f"{self.history[-1].loss:.4g}", refresh=False)
                if save:
                    self._save()

    def _train_step(self) -> None:
        self._seed_dropout()
        drawn, condition = self._batches(self.step), self._batches.condition(self.step, self.score_net)
        loss = self.loss.evaluate(self.score_net, drawn, condition)
        for p in self._parameters:
            p.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = get_total_norm([g.float() if g.dtype in HALF else g for g in gradients])
        if self.config.grad_clip is not None:
            clip_grads_with_norm_(self._parameters, self.config.grad_clip, norm)
        if self._schedule.last_epoch < self.step:  # before the step: a checkpoint holds the rate of its last one
            self._schedule.step()
        for p, master in self._masters:
            master.grad = None if p.grad is None else p.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            for p, master in self._masters:
                p.copy_(master)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        weights = [p.to(q.dtype) for p, q in zip(self._weights, self._average, strict=True)]
        get_ema_multi_avg_fn(decay)(self._average, weights, None)
        self._recent.append((loss.detach(), norm))

    def _seed_dropout(self) -> None:
        seed = derived_seed(self.config.seed, "network", self._rank, self.step)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs 100 times as much
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _record(self) -> None:
        """Look at the losses since the last look, name the first bad step, and add a row to the history."""
        losses, norms = torch.stack([torch.stack(pair).double() for pair in self._recent], dim=1).tolist()
        first = self.step - len(losses) + 1
        self._recent = []
        for offset, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            for name, value in (("loss", loss), ("gradient", norm)):
                if not math.isfinite(value):
                    raise self._failure(f"{name}: expected a finite value, found {value}", first + offset)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.history.append(Row(self.step, _mean(losses), lr, self.seconds, _mean(norms)))

    def _failure(self, what: str, step: int) -> NonFiniteLoss:
        return NonFiniteLoss(what, step, None if self.directory is None else checkpoint.latest(self.directory))

    def save(self) -> Path:
        """Write a checkpoint of this step to the directory (rank 0 alone does); return its folder."""
        with self._locked():
            return self._save()

    def _save(self) -> Path:
        if self.directory is None:
            raise ValueError("directory: expected a folder for checkpoints, found None")
        if self._recent:
            self._record()
        for name, tensor in self._named_tensors()[0].items():
            floating = tensor.is_floating_point() or tensor.is_complex()
            if floating and not bool(torch.isfinite(tensor).all()):
                raise self._failure(f"{name}: expected finite weights, found NaN or infinite", self.step)
        return self._write(self.directory)

    def _try_to_save(self) -> None:
        """Try to save all, so that what cannot be saved fails now, not after hours of training."""
        if shared := overlapping(state_tensors(*self._networks())):
            raise ValueError(
                f"score_net: expected parameters and buffers in memory of their own, found {shared[0]} and {shared[1]} "
                "sharing some; neither an average nor a checkpoint could have both"
            )
        if self.directory is not None:
            self._write(self.directory, trial=True)

    def _write(self, directory: Path, trial: bool = False) -> Path:
        if self._rank == 0:
            state = {
                "fingerprint": self._fingerprint(),
                "history": [list(row) for row in self.history],
                "seconds": self.seconds,
                "versions": {"torch": torch.__version__},
                "meta": self.meta,
            }
            model, average = self._named_tensors()
            extra = {name: module.get_extra_state() for name, module in extra_states(*self._networks()).items()}
            optimizer = self.optimizer.state_dict()
            checkpoint.save_checkpoint(directory, self.step, model, average, optimizer, state, extra=extra, trial=trial)
        return directory / f"step-{self.step:06d}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self.directory is None or self._rank != 0:
            yield
            return
        with locked(self.directory, "directory"):
            yield

    def resume(self) -> int:
        """Continue from the last checkpoint in the directory, if there is one; return the step.

        Raises:
            CheckpointError: if the checkpoint is damaged, or of another configuration, data set, process,
                loss, optimizer or network, naming what differs.
        """
        newest = None if self.directory is None else checkpoint.latest(self.directory)
        if newest is None:
            return self.step
        loaded = checkpoint.load_checkpoint(newest)
        model, average = self._named_tensors()
        pairs = ((model, loaded.model), (average, loaded.ema))
        halves = {name for name, t in state_tensors(*self._networks()).items() if t.dtype in HALF}
        narrow = False  # as half precision was once stored
        for own, stored in pairs:
            for name in halves & own.keys() & stored.keys():
                if stored[name].dtype in HALF:
                    stored[name], narrow = stored[name].to(own[name].dtype), True
        stored = loaded.state.get("fingerprint", {})
        found = {
            **stored,
            "config": {"records_per_path": 1, **stored.get("config", {})},  # older ones do not say
            "network": shapes(loaded.model),
            "average": shapes(loaded.ema),
        }
        unequal = differences(found, {**self._fingerprint(), "network": shapes(model), "average": shapes(average)})
        if unequal:
            raise CheckpointError(f"{newest}: expected a checkpoint of this run, found another's: {'; '.join(unequal)}")
        with torch.no_grad():
            for own, stored in pairs:
                for name, tensor in own.items():
                    tensor.copy_(stored[name])
            for p, master in self._masters:
                p.copy_(master)
        for name, module in extra_states(*self._networks()).items():
            if name in loaded.extra:
                module.set_extra_state(loaded.extra[name])
        self.optimizer.load_state_dict(loaded.optimizer)
        if not narrow:
            _undo_casts(self.optimizer, loaded.optimizer)
        self.step, self.seconds = loaded.step, float(loaded.state["seconds"])
        # what the schedule knows besides the rates, which the optimizer has
        self._schedule.load_state_dict({"last_epoch": max(self.step - 1, 0), "_step_count": self.step + 1})
        self.history = [Row(*row) for row in loaded.state["history"]]
        self._recent = []
        return self.step

    def _networks(self) -> list[tuple[str, nn.Module]]:
        """Return the trained networks, with the prefixes that their tensors are stored under."""
        networks = [("", unwrapped(self.score_net))]
        if self._control_variate is not None:
            networks.append(("control_variate/", unwrapped(self._control_variate)))
        return networks

    @torch.no_grad()
    def _take_over(self) -> None:
        """Go on from other weights, if the user has put any into the network."""
        for p, master in self._masters:
            if not torch.equal(p, master.to(p.dtype)):
                master.copy_(p)

    def _named_tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return what is stored of the trained networks and of the average: float32 tensors where there are some."""
        self._take_over()
        wide = {id(p): master for p, master in self._masters}
        wide |= {id(q): average for q, average in zip(self._given_out, self._average, strict=True)}
        both = state_tensors(*self._networks()), state_tensors(("", self.ema_net))
        model, average = ({name: wide.get(id(t), t) for name, t in tensors.items()} for tensors in both)
        return model, average

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        return fingerprint(self.loss, self.data, self._batches.conditions)

    def _fingerprint(self) -> dict[str, Any]:
        """Return the description that must be equal in a run and its continuation."""
        free = {"checkpoint_every"}
        if self._batches.conditions is None:
            free.add("condition_dropout")  # which nothing depends on, nor earlier checkpoints have
        return {
            "config": {k: v for k, v in asdict(self.config).items() if k not in free},
            "optimizer": {"type": type(self.optimizer).__name__, "settings": self._settings},
            "ranks": self._batches.world,
            **self._fixed,
        }


def _adam(parameters: list[Tensor], lr: float) -> Optimizer:
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.Adam(parameters, lr=lr, fused=fused or None)


def _undo_casts(optimizer: Optimizer, stored: dict[str, Any]) -> None:
    """Give the state back the dtypes it was stored in: torch loads it in those of the parameters."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in stored["param_groups"] for number in group["params"]]
    for number, p in zip(numbers, parameters, strict=True):
        for name, value in stored["state"].get(number, {}).items():
            own = optimizer.state[p].get(name)
            if isinstance(value, Tensor) and isinstance(own, Tensor) and own.dtype != value.dtype:
                optimizer.state[p][name] = value.to(own.device)


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
