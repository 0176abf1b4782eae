"""A data set by its name, or from a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ._dataset import Dataset
from ._files import from_file
from ._images import digits, mnist
from ._planar import four_modes, moons, ring

__all__ = ["NAMES", "load"]

_BUILT_IN: dict[str, Callable[..., Dataset]] = {
    "four_modes": four_modes,
    "ring": ring,
    "moons": moons,
    "digits": digits,
    "mnist": mnist,
}
NAMES = tuple(_BUILT_IN)


def load(name_or_path: str | Path, **options: Any) -> Dataset:
    """A built-in set by name (`NAMES`), or the user's .npy or .npz file, made with these options.

    Raises ValueError for anything else, with the list of names; TypeError for an option that function does
    not have.
    """
    name = str(name_or_path)
    if name in _BUILT_IN:
        return _BUILT_IN[name](**options)
    if Path(name).suffix in (".npy", ".npz"):
        return from_file(name, **options)
    names = ", ".join(NAMES)
    raise ValueError(f"name_or_path: expected one of {names}, or a .npy or .npz file, found {name!r}")
