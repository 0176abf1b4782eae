"""A data set by its name, from a path, or from an object that holds one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from .. import _checks
from ._arrays import from_arrays
from ._dataset import Dataset
from ._files import SUFFIXES, from_file
from ._images import digits, mnist
from ._planar import four_modes, moons, ring
from ._tables import read_frame
from ._torch import read_dataset, read_loader

__all__ = ["NAMES", "load"]

_BUILT_IN: dict[str, Callable[..., Dataset]] = {
    "four_modes": four_modes,
    "ring": ring,
    "moons": moons,
    "digits": digits,
    "mnist": mnist,
}
NAMES = tuple(_BUILT_IN)


def load(source: Any, **options: Any) -> Dataset:
    """Return a data set made, with these options, from what the user has.

    source, and whose options:
        a name of `NAMES`: the built-in set's, `n` and `seed` among them.
        a path of a .npy, .npz, .csv, .tsv or .parquet file: `from_file`'s.
        a NumPy array or a Tensor: `from_arrays`'s, `labels` among them.
        a pandas DataFrame: `label_column` and `from_arrays`'s.
        a torch Dataset of samples, or of pairs of a sample and its class, or a DataLoader: `from_arrays`'s.
        a fastndsm Dataset: it is given back; none.

    Raises ValueError for another name or path, TypeError for another object and for an option that is not there, and
    what these functions raise.
    """
    if isinstance(source, Dataset):
        if options:
            raise TypeError(f"source: expected no options beside a fastndsm Dataset, found {', '.join(options)}")
        return source
    if isinstance(source, str | Path):
        return _by_name(str(source), options)
    if isinstance(source, Tensor | np.ndarray):
        return from_arrays(source, **options)
    if _checks.is_frame(source):
        table = read_frame(source, "DataFrame", options.pop("label_column", None))
        return from_arrays(table.x, table.labels, **options)
    if isinstance(source, DataLoader | TorchDataset):
        x, labels = read_loader(source) if isinstance(source, DataLoader) else read_dataset(source)
        return from_arrays(x, **{"labels": labels, **options})
    found = f"{type(source).__module__}.{type(source).__qualname__}"
    raise TypeError(
        "source: expected a name, a path, a NumPy array, a Tensor, a pandas DataFrame, a torch Dataset or a "
        f"DataLoader, found {found}; make an array of it"
    )


def _by_name(name: str, options: dict[str, Any]) -> Dataset:
    if name in _BUILT_IN:
        return _BUILT_IN[name](**options)
    if Path(name).suffix.lower() in SUFFIXES:
        return from_file(name, **options)
    files = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
    raise ValueError(f"source: expected one of {', '.join(NAMES)}, or a {files} file, found {name!r}")
