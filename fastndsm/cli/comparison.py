"""Every op on each available backend against the reference, on the same noise: largest deviation, and speed.

The yardstick is the reference in float64; how far the reference itself is from it in float32 stands beside
each figure. A backend agrees if it is within 1e-5 + 10 times that; speed is told only where it agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from ..backends import registry
from ..testing import CALLS, COVARIANCE_TYPES, Arguments, Call, deviation, random_arguments
from .tables import columns

__all__ = ["CASES", "Case", "Comparison", "compare", "format_comparisons"]

BUDGET = 0.2  # seconds spent on timing one op on one backend
Shape = tuple[int, int, int, int]  # rows B, dimension d, components K, steps N


@dataclass(frozen=True)
class Case:
    """One call of an op, at a shape for each size."""

    call: Call
    small: Shape
    full: Shape
    covariance_type: str = "diag"
    gradients: bool = False

    @property
    def op(self) -> str:
        return self.call.op

    def label(self, size: str) -> str:
        """Say how the op is called."""
        rows, dim, components, steps = self._shape(size)
        parts = [self.call.way, "with gradients" if self.gradients else "", f"B={rows} d={dim}"]
        if self.call.takes_mixture:
            parts.append(f"K={components} {self.covariance_type}")
        if self.op.startswith("simulate"):
            parts.append(f"N={steps}")
        return " ".join(part for part in parts if part)

    def arguments(self, size: str, device: torch.device, seed: int) -> Arguments:
        """Draw them in float64; components overlap, so that none can be left out."""
        rows, dim, components, steps = self._shape(size)
        options: dict[str, Any] = {"n_steps": steps, "seed": seed, "device": device, "overlapping": True}
        return random_arguments(self.covariance_type, rows, dim, components, **options)

    def run(self, arguments: Arguments, backend: str) -> tuple[Tensor, ...]:
        """Call the op."""
        return (self.call.with_gradients if self.gradients else self.call)(arguments, backend)

    def _shape(self, size: str) -> Shape:
        return self.small if size == "small" else self.full


_PLANAR: tuple[Shape, Shape] = (1_024, 2, 8, 50), (65_536, 2, 8, 100)
_VECTORS: tuple[Shape, Shape] = (512, 16, 10, 50), (8_192, 16, 10, 100)
_IMAGES: tuple[Shape, Shape] = (64, 784, 10, 20), (1_024, 784, 10, 50)
_LOSSES: tuple[Shape, Shape] = (512, 784, 1, 1), (4_096, 784, 1, 1)


def _cases(call: Call) -> Iterator[Case]:
    if call.op == "philox_normal":
        yield Case(call, (16_384, 16, 1, 1), (262_144, 16, 1, 1))
    elif call.op.startswith("simulate"):
        yield from (Case(call, *sizes) for sizes in (_PLANAR, _VECTORS, _IMAGES))
    elif call.op.startswith(("mixture", "noised")):
        yield from (Case(call, *_VECTORS, kind) for kind in COVARIANCE_TYPES)
        if call.op == "mixture_score":
            yield from (Case(call, *_VECTORS, kind, gradients=True) for kind in COVARIANCE_TYPES)
    elif call.op.endswith("loss"):
        yield Case(call, *_LOSSES, gradients=True)
    else:
        yield Case(call, *_VECTORS)


_LEFT_OUT = ("philox_normal at steps", "ndsm_loss plain", "ndsm_loss antithetic", "reverse_step last sde")
CASES = tuple(case for call in CALLS if call.name not in _LEFT_OUT for case in _cases(call))


@dataclass(frozen=True)
class Comparison:
    """One op on one backend. A deviation is the largest absolute error over the largest absolute value."""

    op: str
    case: str
    device: str
    backend: str
    deviation: float
    reference_deviation: float
    seconds: float
    speed_up: float | None  # of the reference in the same dtype; None where the backend does not agree

    @property
    def agrees(self) -> bool:
        """True if the deviation is that of rounding."""
        return self.deviation <= 1e-5 + 10.0 * self.reference_deviation


def compare(
    size: str = "small",
    *,
    ops: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Run the ops in float32 on every device and backend that serves them.

    Args:
        size: "small" (seconds) or "full" (shapes of real use; minutes).
        ops: names of ops, default all.
        backends: names of backends, default every one that can serve; the reference always runs.
        seed: of the inputs and the noise.
    """
    _checks.choice("size", size, ("small", "full"))
    known = sorted({case.op for case in CASES})
    for op in ops or ():
        _checks.choice("ops", op, tuple(known))
    for name in backends or ():
        _checks.choice("backends", name, tuple(registry.BACKENDS))
        if (reason := registry.BACKENDS[name].unavailable()) is not None:
            raise registry.BackendError(f"backend {name!r} cannot be compared: {reason}")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    rows = []
    for case in CASES:
        if ops is None or case.op in ops:
            for device in devices:
                rows += _compare_case(case, size, torch.device(device), backends, seed)
    return rows


def format_comparisons(rows: Iterable[Comparison]) -> str:
    """Return a table of text, one line a row."""
    head = ("op", "case", "device", "backend", "deviation", "reference's", "ms", "speed-up")
    body = []
    for row in rows:
        speed = "does not agree" if row.speed_up is None else f"{row.speed_up:.1f}x"
        figures = f"{row.deviation:.1e}", f"{row.reference_deviation:.1e}", f"{row.seconds * 1e3:.3g}", speed
        body.append((row.op, row.case, row.device, row.backend, *figures))
    return columns(head, body)


def _compare_case(
    case: Case, size: str, device: torch.device, backends: Sequence[str] | None, seed: int
) -> list[Comparison]:
    inputs = case.arguments(size, device, seed)
    exact = case.run(inputs, "reference")
    inputs = inputs.to(torch.float32)
    serving = [n for n in registry.serving(case.op, device, torch.float32) if n != "reference"]
    rows: list[Comparison] = []
    own = base = 0.0
    for name in ("reference", *(n for n in serving if backends is None or n in backends)):
        error = deviation(case.run(inputs, name), exact)
        seconds = _median_seconds(partial(case.run, inputs, name))
        if name == "reference":
            own, base = error, seconds
        row = Comparison(case.op, case.label(size), device.type, name, error, own, seconds, base / seconds)
        if not row.agrees:
            row = replace(row, speed_up=None)
        rows.append(row)
    return rows


def _median_seconds(run: Callable[[], Any]) -> float:
    """Time it on the threads that are set, synchronised; the comparison before has warmed it up."""
    from torch.utils.benchmark import Timer  # it would take a tenth of the time in which the command line starts

    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return float(timer.blocked_autorange(min_run_time=BUDGET).median)
