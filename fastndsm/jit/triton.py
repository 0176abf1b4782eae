"""Keeps the Triton source of drifts' programs in the cache, and imports it from there.

Triton reads the source of its functions from a file, and keeps what it compiles of them in a cache of its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

from ..compiler import Program, triton
from .cache import default_cache_dir, kept, make_private
from .drift import CACHE

NAME = "drift.py"
FUNCTIONS = "fastndsm.kernels.functions"
_lock = threading.Lock()
_loaded: dict[tuple[str, Path], ModuleType] = {}


def load(program: Program) -> ModuleType:
    """Return the module with the device functions of a program, which is written first if the cache does not have it.

    Raises:
        BuildError: the cache cannot be used or is not safe.
    """
    place = program.key, default_cache_dir()
    with _lock:
        if place not in _loaded:
            _loaded[place] = _import(_written(triton.source(program, FUNCTIONS)))
    return _loaded[place]


def _written(source: str) -> Path:
    """Return the file of a source, in the place that a hash of it names."""
    make_private(default_cache_dir())
    root = default_cache_dir() / CACHE
    path = root / hashlib.sha256(source.encode()).hexdigest()[:32] / NAME

    def write(folder: Path) -> None:
        (folder / NAME).write_text(source)

    return kept(root, path, NAME, write)


def _import(path: Path) -> ModuleType:
    name = f"fastndsm_drift_{path.parent.name}"  # by which Triton tells functions apart
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
