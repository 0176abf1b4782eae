"""The user's own files: .npy and .npz arrays, and tables."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._arrays import make_dataset
from ._dataset import Dataset
from ._tables import read_csv, read_parquet

__all__ = ["SUFFIXES", "from_file"]

_ARRAYS, _CSV, _PARQUET = (".npy", ".npz"), (".csv", ".tsv"), (".parquet", ".pq")
SUFFIXES = (*_ARRAYS, *_CSV, *_PARQUET)
_NAMES = {"x": ("x", "train"), "labels": ("y", "labels"), "test": ("test",), "test_labels": ("test_labels",)}


def from_file(
    path: str | Path,
    test_fraction: float = 0.2,
    seed: int = 0,
    *,
    layout: str = "auto",
    label_column: str | None = None,
    labels: Any = None,
) -> Dataset:
    """Read the user's samples from a .npy, .npz, .csv, .tsv or .parquet file, as `from_arrays` makes them.

    A .npy file holds them; a .npz file has `x` (or `train`) and, if wanted, `y` (or `labels`), `test` and
    `test_labels`. A table has a sample a row, numbers in every column, and classes in the one named `label` (or
    `labels`).

    Args:
        path: of the file. Pickled objects are refused.
        test_fraction, seed, layout: see `from_arrays`.
        label_column: of a table, by name, in place of `label`.
        labels: [n], the class of each sample, in place of the file's.

    Raises FileNotFoundError without the file; ValueError or TypeError, naming the array, or the row and the column,
    for a missing or non-finite value, for text among numbers, and for what `from_arrays` refuses; ImportError for
    Parquet without pandas.
    """
    path = Path(path)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number in (0, 1), found {test_fraction}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"path: expected a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, found {path}")
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file, found none at {path}")
    if suffix in _ARRAYS:
        if label_column is not None:
            raise ValueError(f"label_column: expected with a table, found {path}")
        named = _named(path, _read(path))
    else:
        table = (read_csv if suffix in _CSV else read_parquet)(path, label_column)
        named = {"x": ("x", table.x)} | ({} if table.labels is None else {"labels": ("labels", table.labels)})
    arrays = {argument: array for argument, (_, array) in named.items()}
    if labels is not None:
        arrays["labels"] = labels
        named.pop("labels", None)
    called = {argument: f"{path}: {name}" for argument, (name, _) in named.items()}
    return make_dataset(arrays, called, test_fraction, seed, layout, path.stem, path.name)


def _read(path: Path) -> dict[str, NDArray[Any]]:
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a whole file of plain arrays, found: {error}") from error


def _named(path: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, tuple[str, NDArray[Any]]]:
    """Return name and array in a file for each argument of `from_arrays`."""
    known = {name for names in _NAMES.values() for name in names}
    if unknown := sorted(set(arrays) - known):
        raise ValueError(f"{path}: expected arrays among {sorted(known)}, found {unknown}")
    chosen = {}
    for argument, names in _NAMES.items():
        found = [name for name in names if name in arrays]
        if len(found) > 1 or (argument == "x" and not found):
            raise ValueError(f"{path}: expected one array named {' or '.join(names)}, found {sorted(arrays)}")
        if found:
            chosen[argument] = (found[0], arrays[found[0]])
    return chosen
