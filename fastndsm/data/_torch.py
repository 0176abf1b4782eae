"""PyTorch's own data sets and loaders, read as samples and labels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as TorchDataset

__all__ = ["read_dataset", "read_loader"]

_EXPECTED = "a sample, or a sample and its class (an integer or a text)"


def read_dataset(dataset: TorchDataset[Any]) -> tuple[Any, Any]:
    """Read every item of a dataset that has a length: samples [n, *event] and labels [n] or None."""
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"source: expected a Dataset that has a length, found {type(dataset).__name__}; make an array of its items"
        )
    samples, labels = [], []
    for i in range(len(dataset)):
        x, y = _parts(f"source[{i}]", dataset[i])
        samples.append(_values(f"source[{i}]", x))
        if samples[-1].shape != samples[0].shape:
            raise ValueError(
                f"source[{i}]: expected shape {samples[0].shape} as in source[0], found {samples[-1].shape}"
            )
        labels.append(y.item() if isinstance(y, Tensor | np.ndarray) and y.ndim == 0 else y)
    if not samples:
        raise ValueError("source: expected a Dataset with items, found an empty one")
    return np.stack(samples), _all_or_none(labels)


def read_loader(loader: DataLoader[Any]) -> tuple[Any, Any]:
    """Read every batch of one pass over a loader: samples [n, *event] and labels [n] or None."""
    if isinstance(loader.dataset, IterableDataset):
        found = type(loader.dataset).__name__
        raise TypeError(f"source: expected a DataLoader over a Dataset that has a length, found {found}")
    samples, labels = [], []
    for i, batch in enumerate(loader):
        x, y = _parts(f"batch {i} of source", batch)
        samples.append(_values(f"batch {i} of source", x))
        labels.append(None if y is None else np.atleast_1d(np.asarray(y)))
    if not samples:
        raise ValueError("source: expected a DataLoader with batches, found none")
    found = _all_or_none(labels)
    return np.concatenate(samples), None if found is None else np.concatenate(found)


def _parts(what: str, item: Any) -> tuple[Any, Any]:
    if isinstance(item, tuple | list):
        if len(item) in (1, 2):
            return item[0], item[1] if len(item) == 2 else None
        raise TypeError(f"{what}: expected {_EXPECTED}, found {len(item)} parts")
    return item, None


def _values(what: str, x: Any) -> np.ndarray[Any, Any]:
    if isinstance(x, Tensor):
        x = x.detach().cpu()
        return (x.float() if x.dtype == torch.bfloat16 else x).numpy()
    if isinstance(x, np.ndarray | np.number | int | float) or hasattr(x, "__array_interface__"):  # Pillow's images, too
        return np.asarray(x)
    raise TypeError(f"{what}: expected {_EXPECTED}, found {type(x).__name__}")


def _all_or_none(labels: Iterable[Any]) -> Any:
    listed = list(labels)
    return None if all(label is None for label in listed) else listed
