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
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm.auto import tqdm

from .. import _checks
from .._condition import Condition
from .._ranks import agreed, averaged, gathered, on_rank_zero, rank_and_world
from ..objective import DSMLoss, NDSMLoss
from ..process import NoisingProcess
from ..score import unwrapped
from . import checkpoint
from .batches import Batches, derived_seed, split
from .config import (
    History,
    NonFiniteLoss,
    Row,
    TrainConfig,
    check_arguments,
    check_directory,
    check_hooks,
    made_optimizer,
)
from .fingerprint import differences, extra_states, fingerprint, overlapping, shapes, state_tensors
from .lock import locked
from .loggers import Logger
from .parallel import Parallel
from .schedule import MakeScheduler, Schedule
from .storage import CheckpointError, json_object
from .stream import Stream
from .validation import Validation

__all__ = ["CheckpointError", "History", "NonFiniteLoss", "Row", "TrainConfig", "Trainer"]

WINDOW = 20  # steps between looks at the losses: each look waits for the device
HALF = (torch.bfloat16, torch.float16)  # too coarse to accumulate in
BEST = "best/"  # before the names of the best average's tensors, beside the average's


class Trainer:
    """Training of `score_net` on `data`, with a moving average of the weights and checkpoints.

    Weights in bfloat16 and float16 are stepped, and averaged, in float32: those dtypes lose small changes.

    On several ranks of torch.distributed, with a process group, each takes its part of every batch, and gradients are
    averaged: the batches are the same for any number of ranks, so that a run resumes on another number, to rounding,
    and on the same one bit for bit. Rank 0 writes, logs and shows progress; all must call `fit`, `save` and `resume`.

    Args:
        score_net: module (x [B, ...], t [B]) -> like x, with conditions (x, t, condition) -> like x. On several ranks
            it may be wrapped in DistributedDataParallel, which sends gradients while others are still computed.
        loss: NDSMLoss or DSMLoss with reduction "mean" or "sum". A separate control variate is trained along.
        data: [n, ...], finite, in the network's dtype, the same on all ranks; batches are moved to the network's
            device. Or an iterable of batches x [B, ...], or (x, condition), such as a DataLoader, gone through again
            and again, each rank's its own. Resuming goes through the batches again: exact where the iterable gives the
            same ones, as a DataLoader over a data set with a length does (its shuffling and its workers' seeds are set
            by the config's); otherwise it warns. batch_size, noised_ahead, paths and records are for tensors.
        config: see `TrainConfig`.
        optimizer: a function that makes a torch optimizer of the parameters, one whose step needs no closure.
            Default Adam.
        scheduler: a function that makes a torch scheduler of the optimizer, stepped before each step but the first;
            ReduceLROnPlateau instead with each validation loss. Default: a cosine to 0 over the config's steps.
        directory: where checkpoints go; None writes none. One process at a time trains in it; several ranks share it.
        meta: JSON-able, stored in the checkpoints.
        conditions: of the data, a tensor [n, ...] or a dict of them, on their device. Those of condition_dropout of the
            paths are replaced by the network's null condition.
        validation: held-out data [m, ...]: every `validate_every` steps the loss of the averaged weights on them, with
            the same noise each time, goes into the history. The weights with the lowest are `best_net`.
        validation_conditions: those of the held-out data.
        callbacks: each called as callback(trainer) after every step, on every rank; one that returns True, on all of
            them, ends the training there.
        loggers: see `fastndsm.training.Logger`; they get the history's rows.

    Raises:
        ValueError, TypeError: naming the argument, what was expected and what was found.
    """

    def __init__(
        self,
        score_net: nn.Module,
        loss: NDSMLoss | DSMLoss,
        data: Tensor | Iterable[Any],
        config: TrainConfig | None = None,
        *,
        optimizer: Callable[[Iterable[Tensor]], Optimizer] | None = None,
        scheduler: MakeScheduler | None = None,
        directory: str | Path | None = None,
        meta: dict[str, Any] | None = None,
        conditions: Condition | None = None,
        validation: Tensor | None = None,
        validation_conditions: Condition | None = None,
        callbacks: Sequence[Callable[[Trainer], object]] = (),
        loggers: Sequence[Logger] = (),
    ) -> None:
        config = TrainConfig() if config is None else config
        self._rank, self._world = rank_and_world()
        check_arguments(score_net, loss, data, config, conditions, validation, validation_conditions, self._world)
        check_hooks(callbacks, loggers)
        self.score_net, self.loss, self.data, self.config = score_net, loss, data, config
        self.callbacks, self.loggers = list(callbacks), list(loggers)
        self.directory = None if directory is None else check_directory(directory)
        self.meta = json_object("meta", meta)
        self.step, self.seconds, self.history = 0, 0.0, History()
        net = unwrapped(score_net)
        h = getattr(loss, "control_variate", None)
        self._control_variate = h if isinstance(h, nn.Module) else None
        self._weights: list[Tensor] = [p for p in net.parameters() if p.requires_grad]
        known = {id(p) for p in self._weights}
        extra = [] if self._control_variate is None else list(self._control_variate.parameters())
        self._parameters = self._weights + [p for p in extra if p.requires_grad and id(p) not in known]
        called = [score_net] if self._control_variate is None else [score_net, self._control_variate]
        self._parallel = Parallel(called, list(state_tensors(*self._networks()).values()), self._parameters)
        self.device = self._weights[0].device
        self._conditions = conditions
        self._validation: Validation | None = None
        if validation is not None:
            options: dict[str, Any] = {"rows": config.batch_size, "seed": config.seed, "device": self.device}
            self._validation = Validation(validation, validation_conditions, loss, **options)
        self._agree()
        self._ema = self._copied(net).requires_grad_(False)
        self._best: nn.Module | None = None
        trained = [(p, q) for p, q in zip(net.parameters(), self._ema.parameters(), strict=True) if p.requires_grad]
        self._average: list[Tensor] = [q.detach().float() if q.dtype in HALF else q for _, q in trained]
        self._given_out = [q for _, q in trained]
        stepped = [nn.Parameter(p.detach().float()) if p.dtype in HALF else p for p in self._parameters]
        self.optimizer = (
            _adam(stepped, config.lr) if optimizer is None else made_optimizer(optimizer, stepped, self._parameters)
        )
        held = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        pairs = zip(self._parameters, stepped, strict=True)
        self._masters = [(p, master) for p, master in pairs if p is not master and id(master) in held]
        self._schedule = Schedule(self.optimizer, scheduler, config.steps)
        if self._schedule.waits and validation is None:
            raise ValueError("scheduler: expected validation data with ReduceLROnPlateau, found none")
        self._settings = [
            {k: repr(v) for k, v in g.items() if k not in ("params", "lr")} for g in self.optimizer.param_groups
        ]
        of_all: dict[str, Any] = {
            "seed": config.seed,
            "rank": self._rank,
            "device": self.device,
            "dropout": config.condition_dropout,
        }
        self._batches: Batches | Stream
        if isinstance(data, Tensor):
            self._batches = Batches(
                data,
                loss,
                steps=config.steps,
                batch_size=config.batch_size,
                noised_ahead=config.noised_ahead,
                pool=None if isinstance(config.paths, str) else config.paths,
                passes=config.pool_passes,
                records=config.records_per_path,
                world=self._world,
                conditions=conditions,
                classes=loss.process.class_labels(conditions),
                **of_all,
            )
        else:
            self._batches = Stream(data, loss, **of_all)
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

    @property
    def best_net(self) -> nn.Module:
        """The averaged weights, in eval mode, with the lowest validation loss so far; `ema_net` before there is one."""
        return self.ema_net if self._best is None else self._best

    @property
    def best(self) -> Row | None:
        """The history's row with the lowest validation loss, None where there is none."""
        validated = [row for row in self.history if row.validation is not None]
        return min(validated, key=lambda row: row.validation or 0.0) if validated else None

    @property
    def stopped_early(self) -> bool:
        """True if the last `patience` validation losses were not below the lowest of before."""
        best, patience = self.best, self.config.patience
        if best is None or patience is None:
            return False
        return sum(row.validation is not None for row in self.history if row.step > best.step) >= patience

    def fit(self, progress: bool = True) -> History:
        """Train from the current step to config.steps, or until it ends early; return the history.

        The history is whole also after `resume`.

        Raises:
            NonFiniteLoss: on a NaN or infinite loss, gradient or weight; names step and last good checkpoint.
            CheckpointError: if the directory holds checkpoints of later steps and `resume` was not called, or another
                process trains in it.
            ValueError, TypeError: before the first step, if something could not be saved, naming it.
        """
        _checks.flag("progress", progress)
        with self._locked(), contextlib.ExitStack() as stack:
            for logger in self.loggers:
                stack.callback(logger.close)
            on_rank_zero(self._check_newest)
            self._take_over()
            self._try_to_save()
            self._train(progress and self._rank == 0)
        return self.history

    def _check_newest(self) -> None:
        newest = None if self.directory is None else checkpoint.latest(self.directory)
        if newest is not None and int(newest.name.removeprefix("step-")) > self.step:
            raise CheckpointError(
                f"directory: expected none beyond step {self.step}, found checkpoint {newest}; call resume()"
            )

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
            ended = self.stopped_early
            while self.step < self.config.steps and not ended:
                self._train_step()
                if self.step == 0:
                    self._try_to_save()  # now with a state of the optimizer
                self.step += 1
                bar.update()
                end = self.step == self.config.steps
                save = self.directory is not None and (end or self.step % self.config.checkpoint_every == 0)
                validate = self._validation is not None and (end or self.step % self.config.validate_every == 0)
                if save or end or validate or self.step % WINDOW == 0:
                    self.seconds = time.perf_counter() - started
                    self._record(validate)
                    bar.set_postfix(loss=f"{self.history[-1].loss:.4g}", refresh=False)
                ended = any([callback(self) is True for callback in self.callbacks])
                ended = ended or (validate and self.stopped_early)
                if ended and self._recent:
                    self._record()
                if save or (ended and self.directory is not None):
                    self._save()

    def _train_step(self) -> None:
        self._seed_dropout()
        drawn, condition = self._batches(self.step), self._batches.condition(self.step, self.score_net)
        loss = self._backward(drawn, condition)
        self._parallel.average_gradients()
        self._parallel.share_buffers()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = get_total_norm([g.float() if g.dtype in HALF else g for g in gradients])
        if self.config.grad_clip is not None:
            clip_grads_with_norm_(self._parameters, self.config.grad_clip, norm)
        self._schedule.before(self.step)
        for p, master in self._masters:
            master.grad = None if p.grad is None else p.grad.float()
        self.optimizer.step()
        with torch.no_grad():
            for p, master in self._masters:
                p.copy_(master)
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        weights = [p.to(q.dtype) for p, q in zip(self._weights, self._average, strict=True)]
        get_ema_multi_avg_fn(decay)(self._average, weights, None)
        self._recent.append((loss, norm))

    def _backward(self, drawn: Any, condition: Any) -> Tensor:
        """Compute the gradients of a batch, part by part; return its loss."""
        for p in self._parameters:
            p.grad = None
        parts = list(split(drawn, condition, self.config.accumulate, self._batches.antithetic))
        losses = []
        for i, (part, its_condition, share) in enumerate(parts):
            with self._parallel.gathering(last=i == len(parts) - 1):
                with self._precision():
                    loss = self.loss.evaluate(self.score_net, part, its_condition)
                # gradients are averaged over the ranks: those of a sum are to be added
                loss = loss * (self._world if self.loss.reduction == "sum" else share)
                loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses).sum() if len(parts) > 1 else losses[0]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.precision == "full":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _seed_dropout(self) -> None:
        seed = derived_seed(self.config.seed, "network", self._rank, self.step)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed costs 100 times as much
        if self.device.type != "cpu":
            torch.get_device_module(self.device).manual_seed(seed)

    def _record(self, validate: bool = False) -> None:
        """Look at the losses since the last look, name the first bad step, and add a row to the history."""
        recent = torch.stack([torch.stack(pair).double() for pair in self._recent], dim=1)
        losses, norms = averaged(recent).tolist()
        first = self.step - len(losses) + 1
        self._recent = []
        for offset, (loss, norm) in enumerate(zip(losses, norms, strict=True)):
            for name, value in (("loss", loss), ("gradient", norm)):
                if not math.isfinite(value):
                    raise self._failure(f"{name}: expected a finite value, found {value}", first + offset)
        lr = float(self.optimizer.param_groups[0]["lr"])
        row = Row(self.step, _mean(losses), lr, self.seconds, _mean(norms), self._validated() if validate else None)
        self.history.append(row)
        if validate and self.best is row:
            self._best = self._copied(self.ema_net)
        metrics = {name: value for name, value in row._asdict().items() if name != "step" and value is not None}
        for logger in self.loggers if self._rank == 0 else []:
            logger.log(metrics, self.step)

    def _validated(self) -> float:
        assert self._validation is not None
        with self._precision():
            value = self._validation(self.ema_net)
        if not math.isfinite(value):
            raise self._failure(f"validation: expected a finite loss, found {value}", self.step)
        self._schedule.validated(value)
        return value

    def _failure(self, what: str, step: int) -> NonFiniteLoss:
        return NonFiniteLoss(what, step, None if self.directory is None else checkpoint.latest(self.directory))

    def save(self) -> Path:
        """Write a checkpoint of this step to the directory; return its folder. On several ranks, all call it."""
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
        digests = gathered(self._batches.digest()) if isinstance(self._batches, Stream) else None

        def write() -> None:
            state: dict[str, Any] = {
                "fingerprint": self._fingerprint(),
                "history": [list(row) for row in self.history],
                "seconds": self.seconds,
                "versions": {"torch": torch.__version__},
                "meta": self.meta,
            }
            if digests is not None:
                state["batches"] = digests
            model, average = self._named_tensors()
            networks = self._networks() + ([] if self._best is None else [(BEST, self._best)])
            extra = {name: module.get_extra_state() for name, module in extra_states(*networks).items()}
            others: dict[str, Any] = {"extra": extra, "scheduler": self._schedule.state(), "trial": trial}
            optimizer = self.optimizer.state_dict()
            checkpoint.save_checkpoint(directory, self.step, model, average, optimizer, state, **others)

        on_rank_zero(write)
        return directory / f"step-{self.step:06d}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            if self.directory is not None:
                directory = self.directory
                on_rank_zero(lambda: stack.enter_context(locked(directory, "directory")))
            yield

    def resume(self) -> int:
        """Continue from the last checkpoint in the directory, if there is one; return the step.

        Raises:
            CheckpointError: if the checkpoint is damaged, or of another configuration, data set, process,
                loss, optimizer or network, naming what differs.
        """
        newest = None if self.directory is None else checkpoint.latest(self.directory)
        if self.directory is not None:
            agreed("directory", "no checkpoint" if newest is None else newest.name, "one folder of all ranks")
        if newest is None:
            return self.step
        loaded = checkpoint.load_checkpoint(newest)
        kept = any(name.startswith(BEST) for name in loaded.ema)
        self._best = self._copied(self.ema_net) if kept else None
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
            "config": {**_defaults(), **stored.get("config", {})},  # older ones do not know all of it
            "network": shapes(loaded.model),
            "average": shapes(loaded.ema),
        }
        found["config"] = {name: value for name, value in found["config"].items() if name not in self._free()}
        if stored.get("ranks") == 1:  # of before the batches were the same on any number
            del found["ranks"]
        unequal = differences(found, {**self._fingerprint(), "network": shapes(model), "average": shapes(average)})
        if unequal:
            raise CheckpointError(f"{newest}: expected a checkpoint of this run, found another's: {'; '.join(unequal)}")
        with torch.no_grad():
            for own, stored in pairs:
                for name, tensor in own.items():
                    tensor.copy_(stored[name])
            for p, master in self._masters:
                p.copy_(master)
        networks = self._networks() + ([] if self._best is None else [(BEST, self._best)])
        for name, module in extra_states(*networks).items():
            if name in loaded.extra:
                module.set_extra_state(loaded.extra[name])
        self.optimizer.load_state_dict(loaded.optimizer)
        if not narrow:
            _undo_casts(self.optimizer, loaded.optimizer)
        self.step, self.seconds = loaded.step, float(loaded.state["seconds"])
        self._schedule.load(loaded.scheduler, self.step)
        if isinstance(self._batches, Stream):
            digests = loaded.state.get("batches", [])
            if len(digests) != self._world:
                warnings.warn(
                    f"data: expected the {len(digests)} iterables of the run that is resumed, found {self._world}; it "
                    "goes on, but not as it would have without a stop",
                    stacklevel=2,
                )
            self._batches.expect(self.step, digests[self._rank] if len(digests) == self._world else None)
        self.history = [Row(*row) for row in loaded.state["history"]]
        self._recent = []
        return self.step

    def _networks(self) -> list[tuple[str, nn.Module]]:
        """Return the trained networks, with the prefixes that their tensors are stored under."""
        networks = [("", unwrapped(self.score_net))]
        if self._control_variate is not None:
            networks.append(("control_variate/", unwrapped(self._control_variate)))
        return networks

    def _copied(self, net: nn.Module) -> nn.Module:
        """Return a copy of a network, on the same processes."""
        return copy.deepcopy(net, {id(m): m for m in net.modules() if isinstance(m, NoisingProcess)})

    def _agree(self) -> None:
        """Refuse what differs from rank to rank, and start all from the weights of rank 0."""
        if self._world == 1:
            return
        agreed("config", asdict(self.config))
        agreed("score_net", shapes(state_tensors(*self._networks())))
        for name, value in self._fixed.items():
            agreed(name, value)
        held_out = None if self._validation is None else tuple(self._validation.x.shape)
        agreed("validation", held_out)
        agreed("directory", "a folder" if self.directory is not None else None)
        self._parallel.begin()

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
        averages = [("", self.ema_net)] + ([] if self._best is None else [(BEST, self._best)])
        both = state_tensors(*self._networks()), state_tensors(*averages)
        model, average = ({name: wide.get(id(t), t) for name, t in tensors.items()} for tensors in both)
        return model, average

    @cached_property
    def _fixed(self) -> dict[str, Any]:
        return fingerprint(self.loss, self.data, self._conditions)

    def _free(self) -> set[str]:
        """Return the settings that a continuation may change."""
        free = {"checkpoint_every", "validate_every", "patience"}
        if self._conditions is None:
            free.add("condition_dropout")  # which nothing depends on, nor earlier checkpoints have
        if isinstance(self._batches, Stream):
            free |= {"batch_size", "noised_ahead", "pool_passes"}
        return free

    def _fingerprint(self) -> dict[str, Any]:
        """Return the description that must be equal in a run and its continuation."""
        free = self._free()
        scheduler = {"scheduler": type(self._schedule.scheduler).__name__} if self._schedule.own else {}
        return {
            "config": {k: v for k, v in asdict(self.config).items() if k not in free},
            "optimizer": {"type": type(self.optimizer).__name__, "settings": self._settings},
            **scheduler,
            **self._fixed,
        }


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in fields(TrainConfig)}


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


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
