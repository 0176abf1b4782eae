"""The settings of a training run, its history, its failure, and the gate for what a Trainer is given."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import _checks
from .._condition import checked
from ..objective import DSMLoss, NDSMLoss
from ..score import has_null_condition, network_dtype, unwrapped

SMALLEST_POOL = 1000
PRECISIONS = ("full", "bfloat16")
NOT_STREAMED = (Tensor, np.ndarray, str, bytes, Mapping, list, tuple)


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run; JSON-able.

    Args:
        steps: optimizer steps.
        batch_size: paths a step, of all ranks together (twice as many rows if the loss is antithetic); may exceed the
            data's size.
        lr: Adam's learning rate at the start, decaying to 0 along a cosine. An optimizer given to the Trainer
            starts from its own.
        ema: decay of the weights' moving average; (1 + step) / (10 + step) while that is less.
        seed: of everything random.
        checkpoint_every: steps between checkpoints; one more is written at the end.
        noised_ahead: batches whose paths are simulated by one call.
        paths: "fresh" for every batch, or the size of a pool of noised paths, at least max(n, 1000), of which
            each is used pool_passes times before the next pool is drawn. Small pools cost more quality than
            they save time.
        pool_passes: see `paths`.
        records_per_path: R: of each path R samples, at as many times on its way, in as many batches; for the path
            estimator. Simulation costs about R / 2 times less (a path goes to the latest of its records), for which
            fewer paths, of fewer rows of the data, are behind as many steps: one epoch over n rows is n R samples. At
            equal steps quality is level and then falls: Frechet distance on the 8x8 digits 1.3 at R = 1, 4, 8 and 16,
            1.7 at 32 (4,000 steps, means of three seeds, `benchmarks/quality.py records`); on MNIST with K = 1,000,
            where simulation takes most of a step and R = 4 halves the time, 6 to 9% more at R = 4 (one seed,
            `examples/experiments`, section 9). noised_ahead mixes more paths.
        grad_clip: largest norm of the gradient, or None.
        condition_dropout: share of the paths whose condition is replaced by the network's null condition, which trains
            the network to do without: what guidance needs. 0 for a network without `null_condition`.
        accumulate: parts of a rank's batch that are evaluated one after the other, in so much less memory; their
            gradients add up to that of the whole.
        precision: of the network's evaluations: "full", that of its weights, or "bfloat16", by torch.autocast.
        validate_every: steps between looks at the validation loss; one more is taken at the end.
        patience: looks without a new lowest validation loss after which the training ends, or None: it never does so.
    """

    steps: int = 4000
    batch_size: int = 256
    lr: float = 2e-3
    ema: float = 0.99
    seed: int = 0
    checkpoint_every: int = 500
    noised_ahead: int = 4
    paths: str | int = "fresh"
    pool_passes: int = 4
    records_per_path: int = 1
    grad_clip: float | None = None
    condition_dropout: float = 0.1
    accumulate: int = 1
    precision: str = "full"
    validate_every: int = 200
    patience: int | None = None

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "checkpoint_every", "noised_ahead", "pool_passes", "records_per_path")
        for name in (*counts, "accumulate", "validate_every", "patience"):
            if name != "patience" or self.patience is not None:
                _checks.count(name, getattr(self, name))
        _checks.choice("precision", self.precision, PRECISIONS)
        _checks.positive("lr", self.lr)
        if isinstance(self.ema, bool) or not isinstance(self.ema, int | float) or not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a number in [0, 1), found {self.ema!r}")
        _checks.seed(_checks.index("seed", self.seed, "an integer"))
        if isinstance(self.paths, str):
            _checks.choice("paths", self.paths, ("fresh",))
        else:
            _checks.count("paths", self.paths)
        if self.grad_clip is not None:
            _checks.positive("grad_clip", self.grad_clip)
        if _checks.non_negative("condition_dropout", self.condition_dropout, "a number in [0, 1]") > 1.0:
            raise ValueError(f"condition_dropout: expected a number in [0, 1], found {self.condition_dropout}")


class Row(NamedTuple):
    """A row for up to 20 steps: the last step, mean loss, learning rate, seconds so far, mean norm of the gradient.

    validation: the loss on held-out data after these steps, where it was looked at.
    """

    step: int
    loss: float
    lr: float
    seconds: float
    gradient_norm: float
    validation: float | None = None


History = list[Row]


class NonFiniteLoss(FloatingPointError):
    """Raised where training met a NaN or infinite loss, gradient or weight.

    Attributes:
        step: where, counted from 1.
        checkpoint: the last good checkpoint, or None.
    """

    def __init__(self, what: str, step: int, last: Path | None) -> None:
        super().__init__(what, step, last)  # its own arguments, so that it can be pickled
        self.what, self.step, self.checkpoint = what, step, last

    def __str__(self) -> str:
        last = self.checkpoint
        where = f"last good checkpoint: {last}" if last is not None else "no checkpoint was written"
        return (
            f"{self.what} at step {self.step}; {where}. Try a smaller lr or grad_clip, or "
            f"look at the data's scale{_checks.cure('non-finite-loss')}"
        )


def check_directory(directory: Any) -> Path:
    """Check that a directory is a path and no file, though it need not exist; return it as a Path."""
    if not isinstance(directory, str | os.PathLike):
        raise TypeError(f"directory: expected a path, found {type(directory).__name__}")
    path = Path(directory)
    if path.exists() and not path.is_dir():
        raise ValueError(f"directory: expected a folder, found the file {path}")
    return path


def made_optimizer(make: Any, parameters: list[Tensor], others: list[Tensor]) -> Optimizer:
    """Make an optimizer of the parameters by the user's function, and check that a training can run it.

    `others` are tensors that it may step instead.
    """
    if isinstance(make, Optimizer):
        name = type(make).__name__
        raise TypeError(
            "optimizer: expected a function that makes one of the parameters, such as "
            f"lambda p: {name}(p, lr=1e-3), found the {name} itself"
        )
    if not callable(make) or (isinstance(make, type) and not issubclass(make, Optimizer)):
        raise TypeError(f"optimizer: expected a function that makes one of the parameters, found {make!r}")
    made = make(parameters)
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer: expected it to make a torch.optim.Optimizer, found {type(made).__name__}")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(
            "optimizer: expected one that steps once for each gradient, found "
            f"{type(made).__name__}, which evaluates the loss by a closure"
        )
    known = {id(p) for p in (*parameters, *others)}
    if any(id(p) not in known for group in made.param_groups for p in group["params"]):
        raise ValueError(
            f"optimizer: expected it to step the parameters that the function is given, found a {type(made).__name__} "
            "of others"
        )
    return made


def check_hooks(callbacks: Any, loggers: Any) -> None:
    """Check that callbacks are callable and that loggers have their two methods."""
    for name, value in (("callbacks", callbacks), ("loggers", loggers)):
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name}: expected a list of them, found {type(value).__name__}")
    for callback in callbacks:
        _checks.function("callbacks", callback, "callables of the Trainer")
    for logger in loggers:
        if isinstance(logger, type) or not all(callable(getattr(logger, name, None)) for name in ("log", "close")):
            found = f"the class {logger.__name__}" if isinstance(logger, type) else type(logger).__name__
            raise TypeError(f"loggers: expected objects with log(metrics, step) and close(), found {found}")


def check_arguments(
    score_net: Any,
    loss: Any,
    data: Any,
    config: Any,
    conditions: Any,
    validation: Any,
    validation_conditions: Any,
    world: int,
) -> None:
    if not isinstance(score_net, nn.Module):
        raise TypeError(f"score_net: expected a torch.nn.Module, found {type(score_net).__name__}")
    if not isinstance(loss, NDSMLoss | DSMLoss):
        raise TypeError(f"loss: expected an NDSMLoss or DSMLoss, found {type(loss).__name__}")
    if loss.reduction == "none":
        raise ValueError("loss: expected reduction 'mean' or 'sum', found 'none'")
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config: expected a TrainConfig, found {type(config).__name__}")
    if lazy := [name for name, p in score_net.named_parameters() if nn.parameter.is_lazy(p)]:
        raise ValueError(f"score_net: expected initialised parameters, found {lazy[0]} is not; call the network once")
    parameters = [p for p in score_net.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("score_net: expected parameters that require a gradient, found none")
    if any(hasattr(p, "full_tensor") for p in parameters):
        raise TypeError(
            "score_net: expected whole parameters, found those that fully_shard has divided among the ranks; "
            "train it in a loop of your own, as examples/sharded_training.py does"
        )
    if len(devices := {p.device for p in parameters}) > 1:
        raise ValueError(f"score_net: expected parameters on one device, found {sorted(map(str, devices))}")
    _checks.same_device("score_net", parameters[0], "loss.process", loss.process.times.device)
    streamed = isinstance(data, Iterable) and not isinstance(data, NOT_STREAMED)
    if streamed:
        _check_streamed(config, conditions)
    else:
        _check_data("data", data, "conditions", conditions, score_net, loss)
        if config.batch_size % world:
            raise ValueError(f"batch_size: expected a multiple of the {world} ranks, found {config.batch_size}")
        if config.accumulate > config.batch_size // world:
            most = config.batch_size // world
            raise ValueError(f"accumulate: expected at most the {most} paths of a batch, found {config.accumulate}")
    if validation is not None:
        _check_data("validation", validation, "validation_conditions", validation_conditions, score_net, loss)
        if conditions is not None and validation_conditions is None:
            raise ValueError("validation_conditions: expected those of validation, as there are conditions, found None")
    elif validation_conditions is not None or config.patience is not None:
        name = "patience" if validation_conditions is None else "validation_conditions"
        raise ValueError(f"{name}: expected None without validation data, found some; give `validation`")
    if conditions is not None:
        if config.condition_dropout and not has_null_condition(score_net):
            raise ValueError(
                f"condition_dropout: expected 0 for {type(unwrapped(score_net)).__name__}, which has no "
                f"null_condition(condition), found {config.condition_dropout}"
            )
    estimator = getattr(loss, "estimator", None)
    if config.records_per_path > 1 and estimator != "path":
        name = type(loss).__name__ if estimator is None else f"estimator {estimator!r}"
        raise ValueError(f"records_per_path: expected 1 with {name}, found {config.records_per_path}")
    smallest = SMALLEST_POOL if streamed else max(len(data), SMALLEST_POOL)
    if not isinstance(config.paths, str) and config.paths < smallest:
        raise ValueError(
            f"paths: expected 'fresh' or a pool of at least max(n, {SMALLEST_POOL}) = {smallest} paths, "
            f"found {config.paths}"
        )


def _check_data(name: str, x: Any, its_conditions: str, conditions: Any, score_net: nn.Module, loss: Any) -> None:
    _checks.finite(name, _checks.batch(name, x, loss.process.dim))
    if x.dtype != (dtype := network_dtype(score_net) or x.dtype):
        raise TypeError(f"{name}: expected {dtype}, the network's dtype, found {x.dtype}")
    if conditions is not None:
        checked(its_conditions, conditions, len(x), x.device, name)
        loss.check_condition(score_net, conditions, len(x), None)


def _check_streamed(config: TrainConfig, conditions: Any) -> None:
    if conditions is not None:
        raise ValueError("conditions: expected None, as an iterable gives (x, condition) itself, found some")
    if config.paths != "fresh" or config.records_per_path != 1:
        name = "paths" if config.paths != "fresh" else "records_per_path"
        found = getattr(config, name)
        raise ValueError(f"{name}: expected the default with an iterable, found {found}; give a tensor")
