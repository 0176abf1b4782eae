"""Labelled images, pixels in [-1, 1]: scikit-learn's bundled digits, and MNIST from IDX files or OpenML."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _checks
from ._dataset import Dataset

__all__ = ["digits", "mnist", "read_idx"]

DATA_FOLDER = "FASTNDSM_DATA"
_UBYTE = 0x08
_SPLITS = (("train", 60_000), ("t10k", 10_000))


def digits(seed: int = 0) -> Dataset:
    """Return scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, event shape (1, 8, 8), scaled to [-1, 1].

    A stratified 1,437 for training and 360 held out; `seed` chooses which.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch: Any = load_digits()
    images = (bunch.images / 8.0 - 1.0).astype(np.float32)[:, None]
    train, test, labels, test_labels = train_test_split(
        images, bunch.target.astype(np.int64), test_size=360, random_state=seed, stratify=bunch.target
    )
    return Dataset(
        name="digits",
        train=torch.from_numpy(train),
        test=torch.from_numpy(test),
        labels=torch.from_numpy(labels),
        test_labels=torch.from_numpy(test_labels),
        scale=8.0,
        shift=8.0,
        description="scikit-learn's handwritten digits, pixels 0..16 scaled to [-1, 1]",
    )


def mnist(folder: str | Path | None = None, *, n: int | None = None, n_test: int | None = None) -> Dataset:
    """Return MNIST, event shape (1, 28, 28), pixels scaled to [-1, 1]: 60,000 for training and 10,000 held out.

    Args:
        folder: of the four IDX files under their usual names, with or without .gz; else the environment
            variable FASTNDSM_DATA names it (or the folder above one called mnist); else the set is downloaded
            from OpenML through scikit-learn, which keeps it in its own cache.
        n, n_test: keep only the first of each part.

    Raises FileNotFoundError if the folder does not hold the files, ValueError if one is damaged,
    ConnectionError if there is neither a folder nor OpenML.
    """
    for argument, value, most in (("n", n, 60_000), ("n_test", n_test, 10_000)):
        if value is not None and (not isinstance(value, int) or not 2 <= value <= most):
            raise ValueError(f"{argument}: expected an int in 2..{most} or None, found {value!r}")
    source = folder if folder is not None else os.environ.get(DATA_FOLDER) or None
    if source is None:
        parts, origin = _from_openml(), "OpenML mnist_784"
    else:
        argument = "folder" if folder is not None else DATA_FOLDER
        parts, origin = [_from_folder(argument, Path(source), *split) for split in _SPLITS], "IDX files"
    (train, labels), (test, test_labels) = parts
    return Dataset(
        name="mnist",
        train=_pixels(train[:n]),
        test=_pixels(test[:n_test]),
        labels=torch.from_numpy(labels[:n].astype(np.int64)),
        test_labels=torch.from_numpy(test_labels[:n_test].astype(np.int64)),
        scale=127.5,
        shift=127.5,
        description=f"MNIST from {origin}, pixels 0..255 scaled to [-1, 1]",
    )


def read_idx(path: str | Path, ndim: int) -> NDArray[np.uint8]:
    """Read the array of unsigned bytes in an IDX file (LeCun's format for MNIST), plain or gzipped (.gz).

    The format: two zero bytes, the type (0x08, unsigned byte), the number of dimensions, each dimension as a
    big-endian 32-bit integer, then the values, the last dimension fastest.

    Raises ValueError if the type or `ndim` is another, a dimension is zero, or the values are fewer or more
    than declared.
    """
    path = Path(path)
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
        try:
            n_head = 4 + 4 * ndim
            head = stream.read(n_head)
            if head[:4] != bytes([0, 0, _UBYTE, ndim])[: len(head)]:
                magic = f"{_UBYTE << 8 | ndim:#010x} (unsigned bytes, {ndim} dimensions)"
                raise ValueError(f"{path}: expected the IDX magic {magic}, found 0x{head[:4].hex()}")
            if len(head) < n_head:
                raise ValueError(f"{path}: expected a header of {n_head} bytes, found {len(head)}: truncated")
            shape = tuple(int.from_bytes(head[i : i + 4], "big") for i in range(4, n_head, 4))
            if 0 in shape:
                raise ValueError(f"{path}: expected positive dimensions, found {shape}")
            size = math.prod(shape)
            values = _read_at_most(stream, size + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: expected a whole gzip file, found it damaged: {error}") from error
    if len(values) != size:
        found = f"{len(values)}: truncated" if len(values) < size else "more"
        raise ValueError(f"{path}: expected {size} values for dimensions {shape}, found {found}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def _read_at_most(stream: Any, limit: int) -> bytes:
    # by pieces: a damaged header may declare terabytes, and read(limit) may reserve them
    pieces: list[bytes] = []
    while limit > 0 and (piece := stream.read(min(limit, 1 << 24))):
        pieces.append(piece)
        limit -= len(piece)
    return b"".join(pieces)


def _from_folder(argument: str, folder: Path, prefix: str, most: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images_path = _find(argument, folder, f"{prefix}-images", "idx3-ubyte")
    labels_path = _find(argument, folder, f"{prefix}-labels", "idx1-ubyte")
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (28, 28) or not 2 <= len(images) <= most:
        raise ValueError(f"{images_path}: expected 2 to {most} images of 28 x 28, found {images.shape}")
    if len(labels) != len(images):
        raise ValueError(f"{labels_path}: expected {len(images)} labels, one per image, found {len(labels)}")
    if labels.max() > 9:
        raise ValueError(f"{labels_path}: expected labels in 0..9, found {labels.max()}")
    return images, labels


def _find(argument: str, folder: Path, stem: str, kind: str) -> Path:
    for root in (folder, folder / "mnist"):
        for name in (f"{stem}-{kind}", f"{stem}.{kind}"):
            for path in (root / name, root / f"{name}.gz"):
                if path.is_file():
                    return path
    raise FileNotFoundError(f"{argument}: expected {stem}-{kind} or its .gz in {folder}, found neither")


def _from_openml() -> list[tuple[NDArray[Any], NDArray[Any]]]:
    from importlib.util import find_spec

    from sklearn.datasets import fetch_openml

    try:
        # the pandas parser is many times faster, but pandas is not a dependency
        parser = "pandas" if find_spec("pandas") else "liac-arff"
        x, y = fetch_openml("mnist_784", version=1, return_X_y=True, as_frame=False, parser=parser)
    except OSError as error:  # URLError and time-outs are OSErrors
        raise ConnectionError(
            f"mnist: expected a folder of IDX files (argument folder or environment variable {DATA_FOLDER}) "
            f"or a connection to openml.org, found neither: {error}{_checks.cure('mnist')}"
        ) from error
    images, labels = np.asarray(x).reshape(-1, 28, 28), np.asarray(y).astype(np.int64)
    n = _SPLITS[0][1]
    return [(images[:n], labels[:n]), (images[n:], labels[n:])]


def _pixels(images: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / 127.5 - 1.0)[:, None]
