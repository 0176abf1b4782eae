"""Data sets: 2-D toys with known structure, digits, MNIST, and the user's own; and data brought to unit scale."""

from __future__ import annotations

from ._arrays import LAYOUTS, from_arrays
from ._dataset import Dataset
from ._dequantize import dequantize
from ._files import SUFFIXES, from_file
from ._images import digits, mnist, read_idx
from ._load import NAMES, load
from ._planar import four_modes, moons, ring
from ._standardizer import Standardizer

__all__ = [
    "LAYOUTS",
    "NAMES",
    "SUFFIXES",
    "Dataset",
    "Standardizer",
    "dequantize",
    "digits",
    "four_modes",
    "from_arrays",
    "from_file",
    "load",
    "mnist",
    "moons",
    "read_idx",
    "ring",
]
