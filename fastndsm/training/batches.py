"""Noised batches as a function of (seed, step) alone, so that training resumes exactly from any step.

Position p of the data stream is row perm_e[p mod n] of the data in epoch e = p // n, and path p of the
noising process. Paths are drawn several batches at a time, in fixed groups: the noise of a path does not
depend on its group, but the last bit of a matrix product may.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from ..objective import RANK_STRIDE, DSMLoss, NDSMLoss


def derived_seed(*parts: int | str) -> int:
    """Return 63 bits that depend on all the parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Batches:
    """The noised batch of each step.

    Args:
        data: [n, ...].
        loss: draws the noised samples.
        steps, batch_size, seed: of the run.
        noised_ahead: batches drawn by one call.
        pool: None, or the number of paths drawn together and used `passes` times before the next are drawn.
        rank, world: of the process in a data-parallel run; each takes rows and paths of its own.
        device: where the batches are made.
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
        rank: int = 0,
        world: int = 1,
        device: torch.device,
    ) -> None:
        self.data, self.loss, self.device = data, loss, device
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.group = noised_ahead * batch_size
        self.ahead, self.pool = noised_ahead, pool
        self.pool_steps = 0 if pool is None else math.ceil(pool * passes / batch_size)
        self.rank, self.world = rank, world
        self.antithetic = bool(getattr(loss, "antithetic", False))
        self._orders: dict[int, Tensor] = {}
        self._held: tuple[int, Any] = (-1, None)

    def __call__(self, step: int) -> Any:
        """Return `Noised` or `Transition` of batch_size paths (twice the rows if antithetic)."""
        if self.pool is not None:
            return self._from_pool(step, self.pool)
        number, within = divmod(step, self.ahead)
        if self._held[0] != number:
            batches = min(self.ahead, self.steps - number * self.ahead)
            self._held = number, self._noised(number * self.group, batches * self.batch_size)
        first = within * self.batch_size
        return self._rows(self._held[1], slice(first, first + self.batch_size))

    def _from_pool(self, step: int, pool: int) -> Any:
        number, within = divmod(step, self.pool_steps)
        if self._held[0] != number:
            starts = range(0, pool, self.group)
            parts = [self._noised(number * pool + start, min(self.group, pool - start)) for start in starts]
            self._held = number, self._joined(parts)
        rows = []
        position, end = within * self.batch_size, (within + 1) * self.batch_size
        while position < end:
            turn, first = divmod(position, pool)
            count = min(end - position, pool - first)
            order = _permutation(pool, derived_seed(self.seed, "pool", self.rank, number, turn))
            rows.append(order[first : first + count])
            position += count
        return self._rows(self._held[1], torch.cat(rows).to(self.device))

    def _noised(self, start: int, count: int) -> Any:
        """Draw paths start .. start + count - 1 of this process."""
        x0 = self.data.index_select(0, self._indices(start, count)).to(self.device)
        with torch.no_grad():
            return self.loss.draw(x0, seed=self.seed, first_path=self.rank * RANK_STRIDE + start)

    def _indices(self, start: int, count: int) -> Tensor:
        n = len(self.data)
        positions = torch.arange(start, start + count, device="cpu") * self.world + self.rank
        first, last = int(positions[0]) // n, int(positions[-1]) // n
        self._orders = {epoch: order for epoch, order in self._orders.items() if epoch >= first}
        parts = []
        for epoch in range(first, last + 1):
            if epoch not in self._orders:
                self._orders[epoch] = _permutation(n, derived_seed(self.seed, "epoch", epoch))
            inside = positions[(positions >= epoch * n) & (positions < (epoch + 1) * n)] - epoch * n
            parts.append(self._orders[epoch][inside])
        return torch.cat(parts).to(self.data.device)

    def _rows(self, drawn: Any, rows: slice | Tensor) -> Any:
        """Return the given paths; of an antithetic draw, their antithetic ones too, behind them."""
        if not self.antithetic:
            return type(drawn)(*(field[rows] for field in drawn))
        half = len(drawn[0]) // 2
        return type(drawn)(*(torch.cat([field[:half][rows], field[half:][rows]]) for field in drawn))

    def _joined(self, parts: list[Any]) -> Any:
        def join(fields: tuple[Tensor, ...]) -> Tensor:
            if not self.antithetic:
                return torch.cat(fields)
            halves = [field.chunk(2) for field in fields]
            return torch.cat([h[0] for h in halves] + [h[1] for h in halves])

        return type(parts[0])(*(join(fields) for fields in zip(*parts, strict=True)))


def _permutation(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
