"""The ranks of a torch.distributed run: which one this is, and what all of them must agree on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of ranks; 0 and 1 where no process group is initialised."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def gathered(value: Any) -> list[Any]:
    """Return every rank's value, small and picklable."""
    world = rank_and_world()[1]
    values = [value] * world
    if world > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def agreed(name: str, value: Any, expected: str = "the same on all ranks") -> None:
    """Refuse a value that is not equal on all ranks, on all of them, naming the first rank that differs from rank 0.

    Of a dict, the first entry that differs is named.
    """
    values = gathered(value)
    for rank, other in enumerate(values):
        if other == values[0]:
            continue
        first = values[0]
        if isinstance(first, Mapping):
            key = next(key for key in {**first, **other} if first.get(key) != other.get(key))
            name, first, other = f"{name}.{key}", first.get(key), other.get(key)
        raise ValueError(f"{name}: expected {expected}, found {first} on rank 0 and {other} on rank {rank}")


def on_rank_zero(function: Callable[[], Any]) -> Any:
    """Call the function on rank 0 and return its result, small and picklable, on all; so is what it raises."""
    rank, world = rank_and_world()
    if world == 1:
        return function()
    result: list[Any] = [None, None]
    if rank == 0:
        try:
            result[0] = function()
        except Exception as error:
            result[1] = error
    torch.distributed.broadcast_object_list(result, 0)
    if result[1] is not None:
        raise result[1]
    return result[0]


def averaged(values: Tensor) -> Tensor:
    """Return the mean of the ranks' tensors of one shape, the same on all of them."""
    world = rank_and_world()[1]
    if world > 1:
        values = values.clone()
        torch.distributed.all_reduce(values)
        values /= world
    return values
