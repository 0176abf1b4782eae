"""Choice of the backend that serves an op on given tensors, and the reasons against the others.

A backend is a module that offers the functions of `fastndsm.reference` under the same names with the same arguments.
`auto` takes the first of ORDER that can serve and logs once why it passed over one that was built for the device;
a backend named outright that cannot serve raises BackendError, with the reason and the list of those that can.
"""

from __future__ import annotations

import contextvars
import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from .. import _checks

logger = logging.getLogger("fastndsm")

ENVIRONMENT = "FASTNDSM_BACKEND"
ABSENT = "this version of fastndsm has none"
_requested: contextvars.ContextVar[str | None] = contextvars.ContextVar("fastndsm_backend", default=None)
_logged: set[str] = set()


class BackendError(RuntimeError):
    """The backend asked for by name cannot serve."""


@dataclass(frozen=True)
class Backend:
    """A backend: where its functions live, and which tensors it takes."""

    name: str
    module: str
    devices: tuple[str, ...]  # torch device types; empty: any
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)
    untested: bool = False  # it never ran on the devices it is for: auto never takes it
    left: tuple[str, ...] = ()  # ops that it leaves to the reference, in every dtype
    ranges: bool = True  # it serves rows with components of their own

    def load(self) -> ModuleType:
        """Import (and on first use build) the backend; raise ImportError or RuntimeError with the reason."""
        return _load(self.module)

    def unavailable(self) -> str | None:
        """Return why this backend cannot run here at all, or None."""
        return _unavailable(self)

    def refuses(self, op: str, device: torch.device, dtype: torch.dtype, ranges: bool = False) -> str | None:
        """Return why this backend cannot serve `op` on such tensors, with ranges of components of rows, or None."""
        if self.devices and device.type not in self.devices:
            return f"it serves {' and '.join(self.devices)} tensors, found {device.type}"
        if op in self.left:
            return self.unavailable()
        if dtype not in self.dtypes:
            return f"it computes in {', '.join(map(str, self.dtypes))}, found {dtype}"
        if ranges and not self.ranges:
            return "it has every row use all components, found rows with those of their class alone"
        reason = self.unavailable()
        if reason is None and not hasattr(self.load(), op):
            reason = f"it has no {op}"
        return reason

    def function(self, op: str) -> Callable[..., Any]:
        """Return the function that serves `op`, where nothing refuses it."""
        return getattr((REFERENCE if op in self.left else self).load(), op)


@functools.cache
def _load(module: str) -> ModuleType:
    loaded = importlib.import_module(module)
    prepare = getattr(loaded, "prepare", None)  # builds compiled code on first use
    if prepare is not None:
        prepare()
    return loaded


@functools.cache
def _unavailable(backend: Backend) -> str | None:
    try:
        if importlib.util.find_spec(backend.module) is None:
            return ABSENT
        backend.load()
    except (ImportError, OSError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return None


REFERENCE = Backend("reference", "fastndsm.reference", devices=())
# Draws: once a run, a few launches, and a fit's is in float64. Noised in each row: only training asks for it, sampling
# has one time a call, for which `mixture_score` serves.
LEFT = ("mixture_sample", "noised_score", "noised_log_prob")
BACKENDS: dict[str, Backend] = {
    "cuda": Backend(
        "cuda", "fastndsm.backends.cuda", ("cuda",), (torch.float32,), untested=True, left=LEFT, ranges=False
    ),
    "triton": Backend("triton", "fastndsm.backends.triton", ("cuda",), (torch.float32,), left=LEFT, ranges=False),
    "cpp": Backend("cpp", "fastndsm.backends.cpp", devices=("cpu",)),
    "reference": REFERENCE,
}
NAMES = ("auto", *BACKENDS)


def _check_name(name: str, where: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{where}: expected one of {', '.join(NAMES)}, found {name!r}")
    return name


def requested(backend: str = "auto") -> str:
    """Return the name in force: the op's own argument, else `use_backend`, else FASTNDSM_BACKEND, else auto."""
    if _check_name(backend, "backend") != "auto":
        return backend
    current = _requested.get()
    if current is not None:
        return current
    return _check_name(os.environ.get(ENVIRONMENT) or "auto", ENVIRONMENT)


class use_backend:
    """Serve every op by the backend `name`: from this call on, or inside a `with` block or a decorated function.

    Like torch.set_grad_enabled it acts when it is called, in the calling thread, and a `with` block restores at its end
    what was in force before.

    Args:
        name: reference, cpp, triton, cuda or auto.

    Raises:
        ValueError: if the name is unknown. An op that the named backend cannot serve raises BackendError when called.
    """

    def __init__(self, name: str) -> None:
        self.name = _check_name(name, "name")
        self._before: list[str | None] = [_requested.get()]
        self._entered = False
        _requested.set(self.name)

    def __enter__(self) -> None:
        if self._entered:  # the call itself set it the first time
            self._before.append(_requested.get())
            _requested.set(self.name)
        self._entered = True

    def __exit__(self, *_: object) -> None:
        _requested.set(self._before.pop())

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate a function; outside it, what was in force before the decorator is."""
        _requested.set(self._before.pop())

        @functools.wraps(function)
        def decorated(*arguments: Any, **options: Any) -> Any:
            with use_backend(self.name):
                return function(*arguments, **options)

        return decorated


def serving(op: str, device: torch.device, dtype: torch.dtype, ranges: bool = False) -> list[str]:
    """Return the names of the backends that can serve, fastest first; without those that auto never takes."""
    return [b.name for b in BACKENDS.values() if not b.untested and b.refuses(op, device, dtype, ranges) is None]


def select(
    op: str, backend: str, device: torch.device, dtypes: Sequence[torch.dtype], *, ranges: bool = False
) -> Callable[..., Any]:
    """Return the function that serves `op` on tensors of this device and compute dtype.

    ranges: where it takes ranges of components, a row each.
    """
    return choose(op, backend, device, dtypes, ranges=ranges).function(op)


def choose(
    op: str,
    backend: str,
    device: torch.device,
    dtypes: Sequence[torch.dtype],
    *,
    ranges: bool = False,
    compiled: bool = False,
) -> Backend:
    """Return the backend that serves `op`, as `select` has it; raise BackendError where compiled code alone will do."""
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    name = requested(backend)
    if name != "auto":
        reason = BACKENDS[name].refuses(op, device, dtype, ranges)
        if reason is not None:
            can = ", ".join(serving(op, device, dtype, ranges))
            hint = _checks.cure("backends")
            raise BackendError(f"backend {name!r} cannot serve {op}: {reason}; these can: {can}{hint}")
        return BACKENDS[name]
    reasons = []
    for candidate in BACKENDS.values():
        if candidate.untested or (candidate.devices and device.type not in candidate.devices):
            continue
        if compiled and candidate is REFERENCE:
            break
        reason = candidate.refuses(op, device, dtype, ranges)
        if reason is None:
            return candidate
        # A user wants to hear of compiled code that should serve here and cannot.
        expected = candidate.unavailable() not in (None, ABSENT) or (ranges and not candidate.ranges)
        level = logging.WARNING if expected else logging.INFO
        hint = _checks.cure("passed-over") if expected else ""
        log_once(level, f"backend auto: {candidate.name} passed over: {reason}{hint}")
        reasons.append(f"{candidate.name}: {reason}")
    raise BackendError(f"no compiled code can serve {op}: {'; '.join(reasons)}")


def find(op: str, device: torch.device, dtype: torch.dtype) -> Callable[..., Any] | str:
    """Return the function that serves an op which not every backend has, or why there is none."""
    name = requested()
    candidates = [b for b in BACKENDS.values() if not b.untested] if name == "auto" else [BACKENDS[name]]
    reasons = []
    for candidate in candidates:
        reason = candidate.refuses(op, device, dtype)
        if reason is None:
            return candidate.function(op)
        if name != "auto" or not candidate.devices or device.type in candidate.devices:
            reasons.append(f"{candidate.name}: {reason}")
    return "; ".join(reasons)


def log_once(level: int, message: str) -> None:
    """Log a message the first time it comes up."""
    if message not in _logged:
        _logged.add(message)
        logger.log(level, message)
