"""The settings of a training run, its history, its failure, and the gate for what a Trainer is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from .. import _checks
from ..objective import DSMLoss, NDSMLoss

SMALLEST_POOL = 1000


@dataclass(frozen=True)
class TrainConfig:
    """How to train; JSON-able.

    Args:
        steps: optimizer steps.
        batch_size: paths a step (twice as many rows if the loss is antithetic); may exceed the data's size.
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
        grad_clip: largest norm of the gradient, or None.
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
    grad_clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "noised_ahead", "pool_passes"):
            _checks.count(name, getattr(self, name))
        _checks.positive("lr", self.lr)
        if isinstance(self.ema, bool) or not isinstance(self.ema, int | float) or not 0 <= self.ema < 1:
            raise ValueError(f"ema: expected a number in [0, 1), found {self.ema!r}")
        _checks.seed(_checks.count("seed", self.seed, minimum=-(2**63)))
        if isinstance(self.paths, str):
            _checks.choice("paths", self.paths, ("fresh",))
        else:
            _checks.count("paths", self.paths)
        if self.grad_clip is not None:
            _checks.positive("grad_clip", self.grad_clip)


class Row(NamedTuple):
    """Up to 20 steps: the last step, mean loss, learning rate, seconds so far, mean norm of the gradient."""

    step: int
    loss: float
    lr: float
    seconds: float
    gradient_norm: float


History = list[Row]


class NonFiniteLoss(FloatingPointError):
    """Training met a NaN or infinite loss, gradient or weight.

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
        return f"{self.what} at step {self.step}; {where}. Try a smaller lr or grad_clip, or look at the data's scale"


def check_arguments(score_net: Any, loss: Any, data: Any, config: Any) -> None:
    if not isinstance(score_net, nn.Module):
        raise TypeError(f"score_net: expected a torch.nn.Module, found {type(score_net).__name__}")
    if not isinstance(loss, NDSMLoss | DSMLoss):
        raise TypeError(f"loss: expected an NDSMLoss or DSMLoss, found {type(loss).__name__}")
    if loss.reduction == "none":
        raise ValueError("loss: expected reduction 'mean' or 'sum', found 'none'")
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config: expected a TrainConfig, found {type(config).__name__}")
    parameters = [p for p in score_net.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("score_net: expected parameters that require a gradient, found none")
    if len(devices := {p.device for p in parameters}) > 1:
        raise ValueError(f"score_net: expected parameters on one device, found {sorted(map(str, devices))}")
    _checks.finite("data", _checks.batch("data", data, loss.process.dim))
    if data.dtype != parameters[0].dtype:
        raise TypeError(f"data: expected {parameters[0].dtype}, the network's dtype, found {data.dtype}")
    _checks.same_device("score_net", parameters[0], "loss.process", loss.process.times.device)
    smallest = max(len(data), SMALLEST_POOL)
    if not isinstance(config.paths, str) and config.paths < smallest:
        raise ValueError(
            f"paths: expected 'fresh' or a pool of at least max(n, {SMALLEST_POOL}) = {smallest} paths, "
            f"found {config.paths}"
        )
