"""Noised batches as a function of (seed, step) alone, so that training resumes exactly from any step, on any ranks.

Position p of the data stream is row perm_e[p mod n] of the data in epoch e = p // n, and path p of the
noising process. Paths are drawn several batches at a time, in fixed groups: the noise of a path does not
depend on its group, but the last bit of a matrix product may.

Of R records a path, a group or pool is gone through R times as often, in a new order and by another record of
each path every time: a batch has no two records of one path, unless it is where one time ends and the next begins
in a pool whose size it does not divide.

Rank r of W takes the r-th part of every batch, which is the same batch for any W. Where paths are shuffled, in a pool
or for their records, every rank draws all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._condition import Condition, mapped, rows_of
from ..objective import DSMLoss, NDSMLoss
from ..reference import philox
from ..score import null_condition


def derived_seed(*parts: int | str) -> int:
    """Return 63 bits that depend on all the parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Batches:
    """The noised batch of each step.

    Args:
        data: [n, ...].
        loss: draws the noised samples.
        steps, batch_size, seed: of the run; batch_size of all ranks together, a multiple of their number.
        noised_ahead: batches whose paths are drawn by one call.
        pool: None, or the number of paths drawn together and used `passes` times before the next are drawn.
        records: R of each path, all of them used so often; the loss draws them.
        rank, world: of the process in a data-parallel run.
        device: where the batches are made.
        conditions: of the data, on their device, or None.
        classes: labels [n] under which the data are noised, beside them, or None.
        dropout: share of the paths whose condition is the null one.
    """

    def __init__(
        self,
        data: Tensor,
        loss: NDSMLoss | DSMLoss,
        *,
        steps: int,
        batch_size: int,
        seed: int,
        noised_ahead: int = 1,
        pool: int | None = None,
        passes: int = 1,
        records: int = 1,
        rank: int = 0,
        world: int = 1,
        device: torch.device,
        conditions: Condition | None = None,
        classes: Tensor | None = None,
        dropout: float = 0.0,
    ) -> None:
        self.conditions, self.classes, self.dropout = conditions, classes, dropout
        self.data, self.loss, self.device = data, loss, device
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.group = noised_ahead * batch_size
        self.ahead, self.pool, self.records = noised_ahead, pool, records
        self.pool_steps = 0 if pool is None else math.ceil(pool * records * passes / batch_size)
        self.rank, self.share, self.alone = rank, batch_size // world, world == 1
        self.antithetic = bool(getattr(loss, "antithetic", False))
        self._orders: dict[int, Tensor] = {}
        self._held: tuple[int, Any] = (-1, None)
        self._origins: list[Any] = []  # of the paths held: rows of the data [paths], whether dropped [paths]

    def __call__(self, step: int) -> Any:
        """Return `Noised` or `Transition` of this rank's paths of the batch (twice the rows if antithetic)."""
        rows = self._hold(step)
        return rows_of_draw(self._held[1], rows, self.antithetic)

    def condition(self, step: int, score_net: Any) -> Any:
        """Return the condition of the paths of this rank's batch, the network's null one where it is dropped."""
        if self.conditions is None:
            return None
        rows = self._hold(step)
        paths = rows if isinstance(rows, slice) else rows // self.records
        origin, dropped = self._origins[0]
        picked = origin[paths if isinstance(paths, slice) else paths.to(origin.device)]
        condition = mapped(lambda part: part.index_select(0, picked).to(self.device), self.conditions)
        return without(condition, dropped[paths], score_net) if self.dropout else condition

    def _hold(self, step: int) -> slice | Tensor:
        """Draw the paths that the step is among, if they are not held; return which of their rows it takes."""
        if self.pool is not None:
            return self._hold_pool(step, self.pool)
        number, within = divmod(step, self.ahead * self.records)
        batches = min(self.ahead, self.steps - (step - within))
        start, count = number * self.group, batches * self.batch_size
        own = self.records == 1 and not self.alone  # draw this rank's paths alone
        if self._held[0] != number and own:
            starts = range(start + self.rank * self.share, start + count, self.batch_size)
            self._held = number, self._several([(first, self.share) for first in starts])
        elif self._held[0] != number:
            self._held = number, self._several([(start, count)])
        turn, batch = divmod(within, batches)
        first = batch * self.share if own else batch * self.batch_size + self.rank * self.share
        rows = slice(first, first + self.share)
        if self.records == 1:
            return rows
        order = _permutation(count, derived_seed(self.seed, "records", 0, number, turn))
        return self._places(order[rows], turn)

    def _hold_pool(self, step: int, pool: int) -> Tensor:
        number, within = divmod(step, self.pool_steps)
        if self._held[0] != number:
            starts = range(0, pool, self.group)
            parts = [(number * pool + start, min(self.group, pool - start)) for start in starts]
            self._held = number, self._several(parts)
        rows = []
        position = within * self.batch_size + self.rank * self.share
        end = position + self.share
        while position < end:
            turn, first = divmod(position, pool)
            count = min(end - position, pool - first)
            order = _permutation(pool, derived_seed(self.seed, "pool", 0, number, turn))
            rows.append(self._places(order[first : first + count], turn))
            position += count
        return torch.cat(rows)

    def _places(self, paths: Tensor, turn: int) -> Tensor:
        """Return where the records that are due in this turn are, of some of the paths drawn."""
        return (paths * self.records + turn % self.records).to(self.device)

    def _several(self, ranges: list[tuple[int, int]]) -> Any:
        """Draw the paths of each range (first, count), in one; their origins are kept."""
        self._origins = []
        parts = [self._noised(*part) for part in ranges]
        if len(parts) == 1:
            return parts[0]
        if self._origins:
            self._origins = [tuple(map(torch.cat, zip(*self._origins, strict=True)))]
        return self._joined(parts)

    def _noised(self, start: int, count: int) -> Any:
        """Draw paths start .. start + count - 1; records one after another, as rows of their own."""
        indices = self._indices(start, count)
        x0 = self.data.index_select(0, indices).to(self.device)
        options: dict[str, Any] = {} if self.records == 1 else {"records": self.records}
        if self.conditions is not None:
            null = dropped(count, start, self.seed, self.dropout, self.device)
            self._origins.append((indices, null))
            if self.classes is not None:
                options["condition"] = kept_labels(self.classes.index_select(0, indices), null)
        with torch.no_grad():
            drawn = self.loss.draw(x0, seed=self.seed, first_path=start, **options)
        return drawn if self.records == 1 else type(drawn)(*(field.flatten(0, 1) for field in drawn))

    def _indices(self, start: int, count: int) -> Tensor:
        n = len(self.data)
        positions = torch.arange(start, start + count, device="cpu")
        first, last = int(positions[0]) // n, int(positions[-1]) // n
        self._orders = {epoch: order for epoch, order in self._orders.items() if epoch >= first}
        parts = []
        for epoch in range(first, last + 1):
            if epoch not in self._orders:
                self._orders[epoch] = _permutation(n, derived_seed(self.seed, "epoch", epoch))
            inside = positions[(positions >= epoch * n) & (positions < (epoch + 1) * n)] - epoch * n
            parts.append(self._orders[epoch][inside])
        return torch.cat(parts).to(self.data.device)

    def _joined(self, parts: list[Any]) -> Any:
        def join(fields: tuple[Tensor, ...]) -> Tensor:
            if not self.antithetic:
                return torch.cat(fields)
            halves = [field.chunk(2) for field in fields]
            return torch.cat([h[0] for h in halves] + [h[1] for h in halves])

        return type(parts[0])(*(join(fields) for fields in zip(*parts, strict=True)))


def dropped(count: int, first_path: int, seed: int, share: float, device: torch.device) -> Tensor:
    """Return which paths have the null condition, bool [count]; that of a path depends on seed and number alone."""
    paths = philox.path_range(count, first_path, device)
    word = philox.philox_words(paths, 1, seed, 0, philox.DROPOUT)[0][:, 0]
    return philox.uniform(word) < share


def kept_labels(labels: Tensor, null: Tensor) -> Tensor:
    """Return labels [B] to noise under: -1, all components, where the condition is dropped, on that mask's device."""
    return torch.where(null, -1, labels.to(null.device).long())


def without(condition: Condition, rows: Tensor, score_net: Any) -> Any:
    """Return the condition with the network's null one in the given rows, bool [B]."""

    def drop(part: Tensor, null: Tensor) -> Tensor:
        return torch.where(rows.reshape(-1, *[1] * (part.ndim - 1)), null, part)

    return mapped(drop, condition, null_condition(score_net, condition))


def rows_of_draw(drawn: Any, rows: slice | Tensor, antithetic: bool) -> Any:
    """Return the given rows of a draw; of an antithetic one, their antithetic ones too, behind them."""
    if not antithetic:
        return type(drawn)(*(field[rows] for field in drawn))
    half = len(drawn[0]) // 2
    return type(drawn)(*(torch.cat([field[:half][rows], field[half:][rows]]) for field in drawn))


def split(drawn: Any, condition: Any, parts: int, antithetic: bool) -> Iterator[tuple[Any, Any, float]]:
    """Yield the batch in parts, draws and conditions, with the share that each has of its rows."""
    n = len(drawn[0]) // (2 if antithetic else 1)
    parts = min(parts, n)
    if parts == 1:
        yield drawn, condition, 1.0
        return
    for i in range(parts):
        rows = slice(i * n // parts, (i + 1) * n // parts)
        yield rows_of_draw(drawn, rows, antithetic), rows_of(condition, rows), (rows.stop - rows.start) / n


def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
