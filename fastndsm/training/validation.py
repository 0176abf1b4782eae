"""The loss on held-out data, with the same noise each time, so that only the network changes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._condition import Condition, mapped, rows_of
from .._ranks import averaged, rank_and_world
from ..objective import DSMLoss, NDSMLoss
from .batches import derived_seed


class Validation:
    """The mean loss of a path from each row of x [m, ...], in chunks of `rows` that the ranks share.

    Args:
        conditions: of x, or None.
        loss: of the training; its reduction does not matter.
        seed: of the run.
        device: of the network.
    """

    def __init__(
        self,
        x: Tensor,
        conditions: Condition | None,
        loss: NDSMLoss | DSMLoss,
        *,
        rows: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.x, self.conditions, self.loss, self.device = x, conditions, loss, device
        self.rows, self.seed = rows, derived_seed(seed, "validation")

    @torch.no_grad()
    def __call__(self, score_net: Any) -> float:
        """Return the loss of a network in eval mode."""
        rank, world = rank_and_world()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for begin in range(rank * self.rows, len(self.x), world * self.rows):
            rows = slice(begin, min(begin + self.rows, len(self.x)))
            condition: Any = rows_of(self.conditions, rows)
            if condition is not None:
                condition = mapped(lambda part: part.to(self.device), condition)
            x0 = self.x[rows].to(self.device)
            drawn: Any = self.loss.draw(x0, seed=self.seed, first_path=begin, condition=condition)
            value = self.loss.evaluate(score_net, drawn, condition)
            total += value.double() * (1 if self.loss.reduction == "sum" else rows.stop - rows.start)
        return float(averaged(total)) * world / len(self.x)
