"""The user's own arrays: .npy and .npz."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ._dataset import Dataset

__all__ = ["from_file"]

_SAMPLES, _LABELS, _TEST, _TEST_LABELS = ("x", "train"), ("y", "labels"), ("test",), ("test_labels",)


def from_file(path: str | Path, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The user's samples from a .npy or .npz file.

    A .npy file holds them; a .npz file has `x` (or `train`) and, if wanted, `y` (or `labels`), `test` and
    `test_labels`.

    Values keep their scale and only become float32. Parameters of mixture and process are in the data's
    units; their defaults suit data of unit scale.

    Args:
        path: of the file. Pickled objects are refused.
        test_fraction: share of the samples held out, in (0, 1), unless the file has `test`.
        seed: chooses which.

    Raises FileNotFoundError without the file; ValueError or TypeError, naming the array, for anything but two
    or more finite real samples, [n, *event] or [n], and integer labels in 0..n - 1.
    """
    path = Path(path)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction: expected a number in (0, 1), found {test_fraction}")
    arrays = _read(path)
    x = _samples(path, *_pick(path, arrays, _SAMPLES, required=True))
    y = _labels(path, *_pick(path, arrays, _LABELS), x)
    test = _samples(path, *_pick(path, arrays, _TEST)) if "test" in arrays else None
    test_labels = None
    if test is None:
        order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
        n_test = min(max(1, round(test_fraction * len(x))), len(x) - 1)
        held_out, kept = order[:n_test], order[n_test:]
        x, test = x[kept], x[held_out]
        if y is not None:
            y, test_labels = y[kept], y[held_out]
    else:
        test_labels = _labels(path, *_pick(path, arrays, _TEST_LABELS), test)
        if (y is None) != (test_labels is None):
            raise ValueError(f"{path}: expected labels for both x and test, or neither; found them for one")
    return Dataset(
        name=path.stem,
        train=x,
        test=test,
        labels=y,
        test_labels=test_labels,
        description=f"{path.name}, scale kept: mean {x.mean():.3g}, standard deviation {x.std():.3g}",
    )


def _read(path: Path) -> dict[str, NDArray[Any]]:
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"path: expected a .npy or .npz file, found {path}")
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file, found none at {path}")
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"x": loaded}
        with loaded:
            arrays = {key: loaded[key] for key in loaded.files}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a whole file of plain arrays, found: {error}") from error
    known = {*_SAMPLES, *_LABELS, *_TEST, *_TEST_LABELS}
    if unknown := sorted(set(arrays) - known):
        raise ValueError(f"{path}: expected arrays among {sorted(known)}, found {unknown}")
    return arrays


def _pick(
    path: Path, arrays: dict[str, NDArray[Any]], names: tuple[str, ...], required: bool = False
) -> tuple[str, NDArray[Any] | None]:
    found = [name for name in names if name in arrays]
    if len(found) > 1 or (required and not found):
        raise ValueError(f"{path}: expected one array named {' or '.join(names)}, found {sorted(arrays)}")
    return (found[0], arrays[found[0]]) if found else (names[0], None)


def _samples(path: Path, name: str, array: NDArray[Any] | None) -> torch.Tensor:
    assert array is not None
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"{path}: {name}: expected real numbers, found dtype {array.dtype}")
    if array.ndim == 0 or len(array) < 2 or array.size == 0:
        raise ValueError(f"{path}: {name}: expected [n, *event] with n >= 2, found shape {array.shape}")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is reported below
        values = torch.from_numpy(array.astype(np.float32))
    if bad := int((~values.isfinite()).sum()):
        raise ValueError(f"{path}: {name}: expected values finite in float32, found {bad} that are not")
    return values[:, None] if values.ndim == 1 else values


def _labels(path: Path, name: str, array: NDArray[Any] | None, x: torch.Tensor) -> torch.Tensor | None:
    if array is None:
        return None
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{path}: {name}: expected integer labels, found dtype {array.dtype}")
    if array.shape != (len(x),):
        raise ValueError(f"{path}: {name}: expected [{len(x)}], one for each sample, found shape {array.shape}")
    if array.min() < 0 or array.max() >= len(x):
        found = f"{array.min()}..{array.max()}"
        raise ValueError(f"{path}: {name}: expected labels in 0..{len(x) - 1}, found {found}")
    return torch.from_numpy(array.astype(np.int64))
