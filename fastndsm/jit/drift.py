"""Compiles a drift's program on first use and loads it: a library of plain C functions, without torch."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..compiler import Program, cpp
from .cache import BuildError, CompilationError, default_cache_dir, make_private
from .core import Builder, compile_flags, csrc_directory, require_enabled
from .toolchain import machine_flags

NAME = "fastndsm_drift"
CACHE = "drifts"  # within the cache: with a lock of its own, seconds need not wait for what takes minutes
SCALARS = {torch.float32: "float", torch.float64: "double"}
_P, _I, _D = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double
_SIMULATE = (_P, _P, _I, _I, _P, _P, _I, _D, _P, _I, _I, _I, _P, _P, _P, _I)
_VALUE = (_P, _P, _P, _I, _P, _P, _P, _I)
_REVERSE = (_P, _P, _P, _P, _I, _I, _I, _P, _P, _P, _I, _P, _I, _I, _P, _I)


@dataclass(frozen=True)
class DriftLibrary:
    """The functions of a compiled drift; pointers are integers, see csrc/drift/tiles.h."""

    path: Path
    simulate: Callable[..., int]
    target: Callable[..., int]
    reverse_steps: Callable[..., None]
    value: Callable[..., None]
    product: Callable[..., None]


def builder(program: Program, dtype: torch.dtype) -> Builder:
    """Return the builder of a program's library for samples of a dtype, float32 or float64."""
    csrc = csrc_directory()
    headers = sorted([*csrc.glob("include/*.h"), csrc / "cpu" / "batch.h", *csrc.glob("drift/*.h")])
    # Fused where the program says so and nowhere else: F has the same bits in every loop it is compiled into.
    flags = (*compile_flags(), "-ffp-contract=off", "-DFASTNDSM_FUSES_EXPLICITLY")
    files = tuple(cpp.sources(program, SCALARS[dtype]).items())
    cache = default_cache_dir() / CACHE
    return Builder(
        NAME, (), tuple(headers), flags, generated=files, include=(csrc,), links_torch=False, cache_dir=cache
    )


_lock = threading.Lock()
_loaded: dict[tuple[object, ...], DriftLibrary | BuildError] = {}


def load(program: Program, dtype: torch.dtype) -> DriftLibrary:
    """Return the library of a program, built first where the cache does not have it.

    A failure is kept, and raised again without another attempt.

    Raises:
        BuildError: as `Builder.build`, or the library cannot be loaded.
    """
    require_enabled()
    circumstances = (program.key, dtype, default_cache_dir(), machine_flags())
    with _lock:
        found = _loaded.get(circumstances)
        if found is None:
            try:
                make_private(default_cache_dir())
                found = _open(builder(program, dtype).build())
            except BuildError as error:
                found = error
            _loaded[circumstances] = found
    if isinstance(found, BuildError):
        raise BuildError(str(found)) from found
    return found


def _open(path: Path) -> DriftLibrary:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompilationError(f"{path} cannot be loaded: {error}") from error

    def function(name: str, arguments: tuple[type, ...], result: type | None) -> Callable[..., int]:
        found = getattr(library, f"fastndsm_drift_{name}")
        found.argtypes, found.restype = arguments, result
        return found  # type: ignore[no-any-return]

    return DriftLibrary(
        path,
        function("simulate", _SIMULATE, _I),
        function("target", _SIMULATE, _I),
        function("reverse_steps", _REVERSE, None),  # type: ignore[arg-type]
        function("value", _VALUE, None),  # type: ignore[arg-type]
        function("product", _VALUE, None),  # type: ignore[arg-type]
    )


def generated() -> list[Path]:
    """Return the sources of the drifts that are in the cache, C++ headers and Triton modules, the newest first."""
    folder = default_cache_dir() / CACHE
    return sorted(folder.glob("*/drift.[hp]*"), key=lambda path: path.stat().st_mtime, reverse=True)
