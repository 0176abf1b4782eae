"""Noised batches of an iterable, such as a DataLoader: (seed, step) alone decides, as far as the iterable lets it.

Before each batch is asked for, PyTorch's generator is set by seed, rank and number of the batch, so that a DataLoader
over a data set with a length gives the same batches in every run, whatever its workers. A resumed run goes through the
batches that the first one had, without computing anything, and checks the last of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._condition import Condition, checked, mapped
from ..objective import DSMLoss, NDSMLoss
from ..score import has_null_condition, network_dtype, takes_condition
from .batches import derived_seed, dropped, kept_labels, without
from .storage import tensor_digest

RANK_STRIDE = 1 << 40  # paths set aside for each rank, whose batches may differ in size


class Stream:
    """The noised batch of each step, in the iterable's order, over and over.

    Args:
        source: gives batches x [B, ...], or (x, condition), anew each time that it is iterated; what samplers of a
            DataLoader have as `set_epoch` is called. Conditions are left aside if the network takes none.
        loss: draws the noised samples.
        seed, rank: of the run; each rank has an iterable of its own.
        device: where the batches are made.
        dropout: share of the paths whose condition is the null one.
    """

    def __init__(
        self,
        source: Iterable[Any],
        loss: NDSMLoss | DSMLoss,
        *,
        seed: int,
        rank: int,
        device: torch.device,
        dropout: float = 0.0,
    ) -> None:
        self.source, self.loss, self.device = source, loss, device
        self.seed, self.rank, self.dropout = seed, rank, dropout
        self.antithetic = bool(getattr(loss, "antithetic", False))
        self._expected: tuple[int, str] | None = None
        self._restart()

    def _restart(self) -> None:
        self.taken, self.epoch, self._first_path, self._next_path = 0, -1, 0, 0
        self._iterator: Iterator[Any] = iter(())
        self._x, self._condition = torch.empty(0, device="cpu"), None  # of the batch taken last
        self._drawn: Any = None

    def __call__(self, step: int) -> Any:
        """Return `Noised` or `Transition` of the step's batch (twice the rows if antithetic)."""
        if step < self.taken - 1:
            self._restart()
        while self.taken <= step:
            self._take()
        if self._drawn is None:
            x0 = self._x.to(self.device)
            labels = self.loss.process.class_labels(self._condition)
            if labels is not None:
                labels = kept_labels(labels, self._dropped())
            with torch.no_grad():
                self._drawn = self.loss.draw(x0, seed=self.seed, first_path=self._first_path, condition=labels)
        return self._drawn

    def condition(self, step: int, score_net: Any) -> Any:
        """Return the condition of the step's paths, the network's null one where it is dropped; check the batch."""
        name = f"data, batch {step}"
        if self._x.dtype != (dtype := network_dtype(score_net) or self._x.dtype):
            raise TypeError(f"{name}: expected {dtype}, the network's dtype, found {self._x.dtype}")
        if self._condition is None or not takes_condition(score_net):
            self.loss.check_condition(score_net, None, len(self._x), None)
            return None
        checked(f"{name}, condition", self._condition, len(self._x))
        self.loss.check_condition(score_net, self._condition, len(self._x), None)
        condition: Condition = mapped(lambda part: part.to(self.device), self._condition)
        if not self.dropout:
            return condition
        if not has_null_condition(score_net):
            raise ValueError(
                f"condition_dropout: expected 0 for a network without null_condition(condition), found {self.dropout}"
            )
        return without(condition, self._dropped(), score_net)

    def _dropped(self) -> Tensor:
        """Return which paths of the batch have the null condition."""
        return dropped(len(self._x), self._first_path, self.seed, self.dropout, self.device)

    def digest(self) -> str:
        """Return a digest of the batch taken last, by which a resumed run knows it again."""
        return tensor_digest(self._x) if self._expected is None else self._expected[1]

    def expect(self, step: int, digest: str | None) -> None:
        """Go on from this step, and warn if the batch before it is another than that of the digest, if there is one."""
        self._restart()
        self._expected = None if digest is None else (step, digest)

    def _take(self) -> None:
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(derived_seed(self.seed, "data", self.rank, self.taken))
            try:
                batch = next(self._iterator)
            except StopIteration:
                batch = self._first_of_an_epoch()
        parts = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
        if len(parts) not in (1, 2) or not isinstance(parts[0], Tensor):
            found = [type(part).__name__ for part in parts]
            raise TypeError(f"data, batch {self.taken}: expected x [B, ...], or x and a condition, found {found}")
        self._x, self._condition = parts[0].detach(), parts[1] if len(parts) == 2 else None
        name = f"data, batch {self.taken}"
        _checks.finite(name, _checks.batch(name, self._x, self.loss.process.dim))
        self._first_path = self.rank * RANK_STRIDE + self._next_path
        self._next_path += len(self._x)
        self._drawn = None
        self.taken += 1
        if self._expected is not None and self._expected[0] == self.taken:
            if tensor_digest(self._x) != self._expected[1]:
                warnings.warn(
                    f"data: batch {self.taken - 1} is another than in the run that is resumed; it goes on, but not "
                    "as it would have without a stop. Give a DataLoader over a data set with a length, or an iterable "
                    "that gives the same batches each time",
                    stacklevel=2,
                )
            self._expected = None

    def _first_of_an_epoch(self) -> Any:
        self.epoch += 1
        for name in ("sampler", "batch_sampler"):
            set_epoch = getattr(getattr(self.source, name, None), "set_epoch", None)
            if set_epoch is not None:
                set_epoch(self.epoch)
        self._iterator = iter(self.source)
        try:
            return next(self._iterator)
        except StopIteration:
            raise ValueError(
                f"data: expected batches whenever it is iterated, found none left after {self.taken}; an iterator "
                "ends for good: give a DataLoader, or an object whose __iter__ starts anew"
            ) from None
