"""Components that belong to classes: which ones a row of a class has, and how many each class is fitted with."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from . import _checks

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def checked_ranges(ranges: Any, n_components: int, device: torch.device) -> Tensor | None:
    """Check ranges [C, 2] of components, start..stop of one class after another; return them as int64, None of None."""
    if ranges is None:
        return None
    made = torch.as_tensor(ranges, device=device)
    if made.dtype not in INTEGERS:
        raise TypeError(f"ranges: expected integers, found {made.dtype}")
    if made.ndim != 2 or made.shape[1] != 2 or len(made) == 0:
        raise ValueError(f"ranges: expected shape [C, 2], found {tuple(made.shape)}")
    ends = made.flatten().tolist()
    starts, stops = ends[::2], ends[1::2]
    if (
        starts != [0, *stops[:-1]]
        or stops[-1] != n_components
        or any(a >= b for a, b in zip(starts, stops, strict=True))
    ):
        raise ValueError(
            f"ranges: expected the {n_components} components, one class after another, each with some, found {ends}"
        )
    return made.to(torch.int64)


def checked_labels(labels: Any, n: int, device: torch.device | str) -> Tensor:
    """Check labels of n samples X, integers from 0; return them as int64 on the device."""
    try:
        made = torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"labels: expected integers [n], found {_checks.shown(labels)}") from None
    return _checks.labels("labels", made.long() if made.dtype in INTEGERS else made, n, "X")


def can_fit(labels: Tensor, n_components: Any) -> bool:
    """Return whether there are rows, and of a number of components enough, for a mixture of each class."""
    sizes = labels.bincount()
    return int(sizes.min()) >= 2 and not (isinstance(n_components, int) and n_components < len(sizes))


def by_label(of_classes: Tensor, of_none: Tensor, labels: Tensor) -> Tensor:
    """Return the row of a table [C, ...] for each label [B], and of_none [1, ...] for one that is no class."""
    return torch.cat([of_classes, of_none])[labels.long().clamp(-1, len(of_classes))]


def of_component(ranges: Tensor) -> Tensor:
    """Return the class of each component, int64 [K]."""
    return torch.arange(len(ranges), device=ranges.device).repeat_interleave(ranges[:, 1] - ranges[:, 0])


def consecutive(counts: Sequence[int]) -> list[tuple[int, int]]:
    """Return the ranges of classes with so many components each."""
    return list(pairwise(accumulate(counts, initial=0)))


def components_by_class(n_components: Any, sizes: Sequence[int]) -> list[int]:
    """Return each class's number of components, at most its number of samples.

    n_components: each one's, by class or in a sequence; or the sum of them, which classes share by size (Sainte-Lague),
    with one each at least.
    """
    n_classes, name = len(sizes), "n_components"
    if isinstance(n_components, Mapping):
        if set(n_components) != set(range(n_classes)):
            raise ValueError(f"{name}: expected the classes 0..{n_classes - 1}, found {sorted(n_components)}")
        n_components = [n_components[c] for c in range(n_classes)]
    if isinstance(n_components, Sequence) and not isinstance(n_components, str):
        if len(n_components) != n_classes:
            raise ValueError(f"{name}: expected one for each of {n_classes} classes, found {len(n_components)}")
        counts = [_checks.count(f"{name}[{c}]", k) for c, k in enumerate(n_components)]
    else:
        total = _checks.count(name, n_components)
        if not n_classes <= total <= sum(sizes):
            raise ValueError(
                f"{name}: expected {n_classes}, one for each class, to {sum(sizes)}, one for each sample, found {total}"
            )
        counts = [1] * n_classes
        queue = [(-size / 1.5, c) for c, size in enumerate(sizes) if size > 1]
        heapq.heapify(queue)
        for _ in range(total - n_classes):
            c = queue[0][1]
            counts[c] += 1
            if counts[c] < sizes[c]:
                heapq.heapreplace(queue, (-sizes[c] / (counts[c] + 0.5), c))
            else:
                heapq.heappop(queue)
    for c, (count, size) in enumerate(zip(counts, sizes, strict=True)):
        if count > size:
            raise ValueError(f"{name}: expected at most the samples of class {c}, {size}, found {count}")
    return counts
