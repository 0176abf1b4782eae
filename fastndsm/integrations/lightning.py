"""Training by Lightning: a LightningModule around the loss.

    from lightning.pytorch import Trainer
    from lightning.pytorch.callbacks import EMAWeightAveraging
    module = NDSMModule(net, fastndsm.NDSMLoss(process))
    ema = EMAWeightAveraging(decay=0.99, use_buffers=False)
    Trainer(max_steps=4000, callbacks=[ema]).fit(module, DataLoader(TensorDataset(x), 256, shuffle=True))
    samples = module.sample(64)

After `fit` the callback leaves the averaged weights in the module; averaged buffers would be the process's tables with
other last digits. This library's own is `fastndsm.training.Trainer`, which noises batches ahead and resumes to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR

from .. import _checks
from .._condition import Condition, mapped
from ..objective import DSMLoss, NDSMLoss
from ..sampling import sample
from ..score import has_null_condition, null_condition
from . import _missing

try:
    from lightning.pytorch import LightningModule
except ImportError as error:
    raise _missing("lightning", error) from error

__all__ = ["NDSMModule"]


class NDSMModule(LightningModule):  # type: ignore[misc]
    """A score network and its loss; a batch is x [B, *event], or (x,), or (x, condition), as DataLoaders give it.

    Args:
        score_net: a network, or a ResidualScore of one.
        loss: an NDSMLoss or DSMLoss of reduction "mean".
        lr: Adam's at the start, decaying to 0 along a cosine over the steps of the Trainer, if they are bounded.
        optimizer: instead, a function of the parameters that makes one, such as lambda p: torch.optim.SGD(p, lr=1e-2).
        condition_dropout: share of samples whose condition is replaced by the network's null condition.
        seed: of the noise of validation, which is the same for a batch in every epoch.

    It logs "train_loss" and "val_loss".
    """

    def __init__(
        self,
        score_net: nn.Module,
        loss: NDSMLoss | DSMLoss,
        *,
        lr: float = 2e-3,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        condition_dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _checks.instance("score_net", score_net, nn.Module, "a torch.nn.Module")
        if not isinstance(loss, NDSMLoss | DSMLoss) or loss.reduction != "mean":
            found = f"reduction {loss.reduction!r}" if isinstance(loss, NDSMLoss | DSMLoss) else type(loss).__name__
            raise ValueError(f"loss: expected an NDSMLoss or DSMLoss of reduction 'mean', found {found}")
        if _checks.non_negative("condition_dropout", condition_dropout, "a number in [0, 1]") > 1.0:
            raise ValueError(f"condition_dropout: expected a number in [0, 1], found {condition_dropout}")
        if condition_dropout and not has_null_condition(score_net):
            raise ValueError(
                "condition_dropout: expected 0 for a network without null_condition(condition), found "
                f"{condition_dropout}"
            )
        self.score_net, self.loss = score_net, loss
        self.lr, self.make_optimizer = _checks.positive("lr", lr), optimizer
        self.condition_dropout, self.seed = condition_dropout, seed

    def forward(self, x: Tensor, t: Tensor, condition: Condition | None = None) -> Any:
        """Return the score at x [B, ...] and t [B] -> like x."""
        return self.score_net(x, t) if condition is None else self.score_net(x, t, condition)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch, noised afresh; ranks that drew the same seed still have noise of their own."""
        x, condition = _parts(batch)
        if condition is not None and self.condition_dropout:
            dropped = torch.rand(len(x), device=x.device) < self.condition_dropout
            condition = mapped(
                lambda part, null: torch.where(dropped.reshape(-1, *[1] * (part.ndim - 1)), null, part),
                condition,
                null_condition(self.score_net, condition),
            )
        loss: Tensor = self.loss(self.score_net, x, condition=condition)
        self.log("train_loss", loss.detach(), prog_bar=True, batch_size=len(x))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss of a batch, with the same noise in every epoch."""
        x, condition = _parts(batch)
        path = batch_idx * self.trainer.world_size + self.global_rank << 20  # of each rank's batch its own
        loss = self.loss(self.score_net, x, seed=self.seed, first_path=path, condition=condition)
        self.log("val_loss", loss, prog_bar=True, batch_size=len(x), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and for the default one its schedule by steps."""
        parameters = [p for p in self.parameters() if p.requires_grad]
        if self.make_optimizer is not None:
            return self.make_optimizer(parameters)
        optimizer = torch.optim.Adam(parameters, lr=self.lr)
        if not math.isfinite(steps := self.trainer.estimated_stepping_batches):
            return optimizer
        schedule = CosineAnnealingLR(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def sample(self, n: int, method: str = "sde", **options: Any) -> Tensor:
        """Draw n samples [n, *event]; options are those of `fastndsm.sample`."""
        return sample(self.score_net, self.loss.process, n, method, **options)


def _parts(batch: Any) -> tuple[Tensor, Condition | None]:
    """Return samples and condition of a batch."""
    if isinstance(batch, Tensor):
        return batch, None
    if not isinstance(batch, list | tuple) or len(batch) not in (1, 2):
        raise TypeError(f"batch: expected x, (x,) or (x, condition), found {type(batch).__name__}")
    return batch[0], batch[1] if len(batch) == 2 else None
