"""Conditions of samples: a tensor [B, ...], or a dict of them, with a row for each sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from . import _checks

Condition = Tensor | Mapping[str, Tensor]


def checked(
    name: str, condition: Any, rows: int, device: torch.device | None = None, beside: str = "process"
) -> Condition:
    """Check that a condition has `rows` rows, finite (on the CPU), on the device, which is `beside`'s; return it."""
    expected = "a Tensor [B, ...] or a dict of them"
    if isinstance(condition, Mapping) and not (condition and all(isinstance(key, str) for key in condition)):
        raise TypeError(f"{name}: expected {expected}, by name, found {list(condition)}")
    parts = condition if isinstance(condition, Mapping) else {"": condition}
    for key, part in parts.items():
        part_name = f"{name}[{key!r}]" if key else name
        _checks.tensor(part_name, part, expected)
        if part.ndim < 1 or part.shape[0] != rows:
            raise ValueError(f"{part_name}: expected {rows} rows, one for each sample, found shape {tuple(part.shape)}")
        if device is not None:
            _checks.same_device(part_name, part, beside, device)
        if part.dtype in _checks.FLOATS and part.device.type == "cpu" and not torch.compiler.is_compiling():
            _checks.finite(part_name, part)
    return condition  # type: ignore[no-any-return]


def mapped(function: Callable[..., Tensor], *conditions: Any) -> Any:
    """Return function(tensor, ...), or of conditions that are dicts a dict of it."""
    if isinstance(conditions[0], Mapping):
        return {key: function(*(one[key] for one in conditions)) for key in conditions[0]}
    return function(*conditions)


def rows_of(condition: Any, rows: slice | Tensor) -> Any:
    """Return the given rows of a condition; None of None."""
    return None if condition is None else mapped(lambda part: part[rows], condition)


def repeated(condition: Any, times: int) -> Any:
    """Return all rows, then all of them again, `times` times in all; None of None."""
    return condition if condition is None or times == 1 else mapped(lambda part: torch.cat([part] * times), condition)


def interleaved(condition: Any, times: int) -> Any:
    """Return each row `times` times, one after the other; None of None."""
    if condition is None or times == 1:
        return condition
    return mapped(lambda part: part.repeat_interleave(times, 0), condition)
