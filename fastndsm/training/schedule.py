"""The learning rate's schedule: a cosine, or any of torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

MakeScheduler = Callable[[Optimizer], LRScheduler]


class Schedule:
    """The rates of an optimizer, step by step.

    Args:
        make: a function that makes a torch scheduler of the optimizer; None: a cosine to 0 over `steps`.
        steps: of the run.
    """

    def __init__(self, optimizer: Optimizer, make: MakeScheduler | None, steps: int) -> None:
        self.own = make is not None
        for group in optimizer.param_groups:  # one that was scheduled before starts anew
            group["lr"] = copy.deepcopy(group.setdefault("initial_lr", group["lr"]))
            if self.own:
                del group["initial_lr"]  # some schedulers bring one of their own
        self.scheduler = CosineAnnealingLR(optimizer, steps) if make is None else _made(make, optimizer)
        self.waits = isinstance(self.scheduler, ReduceLROnPlateau)  # for validation losses
        self.taken = 0  # before step n (from 0) it has been stepped n times

    def before(self, step: int) -> None:
        """Set the rate of this step; before the step, so that a checkpoint holds the rate of its last one."""
        if self.taken < step:
            self.taken += 1
            if not self.waits:
                self.scheduler.step()

    def validated(self, loss: float) -> None:
        """Tell a scheduler that waits for them a validation loss."""
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides the rates, which the optimizer has; nothing of the cosine."""
        return self.scheduler.state_dict() if self.own else {}

    def load(self, state: dict[str, Any], step: int) -> None:
        """Go on from a checkpoint of that step."""
        self.taken = max(step - 1, 0)
        self.scheduler.load_state_dict(state if self.own else {"last_epoch": self.taken, "_step_count": step + 1})


def _made(make: Any, optimizer: Optimizer) -> LRScheduler:
    if isinstance(make, LRScheduler) or not callable(make):
        found = f"the {type(make).__name__} itself" if isinstance(make, LRScheduler) else repr(make)
        raise TypeError(
            "scheduler: expected a function that makes one of the optimizer, such as "
            f"lambda o: torch.optim.lr_scheduler.LinearLR(o), found {found}"
        )
    made = make(optimizer)
    if not isinstance(made, LRScheduler):
        raise TypeError(f"scheduler: expected it to make a torch scheduler, found {type(made).__name__}")
    if made.optimizer is not optimizer:
        raise ValueError("scheduler: expected one of the optimizer that the function is given, found another's")
    return made
