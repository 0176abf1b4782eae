"""The device, the backends under test on it, and how calls are timed: events around replays of a graph, on a GPU.

Nothing here asks for a device when it is imported: the parent of the sections must not, see suite.py.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastndsm import testing
from fastndsm.backends import registry
from fastndsm.sampling.cuda_graph import CUDAGraph

from ..problems import TINY

Run = Callable[[], Any]
DEVICE = "FASTNDSM_BENCH_DEVICE"
SECONDS = 0.0 if TINY else 0.5  # of samples, for one contender
FEWEST, MOST = (2, 2) if TINY else (3, 100)
SAMPLE_SECONDS = 2e-3  # events are exact to about a microsecond


class NoDevice(RuntimeError):
    """There is no GPU here, and the sizes are not tiny."""


@cache
def device() -> torch.device:
    """Return the GPU; at tiny sizes the CPU serves where there is none, and where it is asked for."""
    if os.environ.get(DEVICE) == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if not TINY:
        raise NoDevice("PyTorch finds no GPU; FASTNDSM_BENCH_SIZE=tiny runs the code path on a CPU")
    return torch.device("cpu")


@cache
def backends() -> tuple[str, ...]:
    """Return the backends under test. On a CPU: those FASTNDSM_BACKEND names, by default the reference, and cpp."""
    if device().type == "cuda":
        return "triton", "cuda"
    named = os.environ.get(registry.ENVIRONMENT) or "reference"
    return tuple(dict.fromkeys(("reference" if named == "auto" else named, "cpp")))


def refusal(backend: str, op: str) -> str | None:
    """Return why a backend does not serve an op, or None."""
    return registry.BACKENDS[backend].refuses(op, device(), torch.float32)


def lender(backend: str, op: str) -> str | None:
    """Return the earlier one of the backends under test whose function this one serves the op by, or None."""
    for other in backends()[: backends().index(backend)]:
        if refusal(other, op) is None and refusal(backend, op) is None:
            if registry.BACKENDS[other].function(op) is registry.BACKENDS[backend].function(op):
                return other
    return None


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


@dataclass
class Timing:
    """Seconds of one call, of every sample, and how they were taken."""

    seconds: list[float]
    how: str

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def timed(runs: Sequence[Run] | Run, graph: bool = True, seconds: float = SECONDS) -> Timing:
    """Time one call, by calling all of `runs`, which do the same on inputs of their own, one after the other.

    So a GPU's cache holds no input from the call before. They have to have run before: what is compiled or cached on
    first use is none of the times. graph: record them in a CUDA graph where that is possible.
    """
    runs = [runs] if callable(runs) else list(runs)
    if device().type != "cuda":
        return Timing(_samples(lambda: _wall_clock(runs), len(runs), seconds), "wall clock")
    replay = _recorded(runs) if graph else None

    def once() -> None:
        if replay is not None:
            replay()
        else:
            for run in runs:
                run()

    inner = max(1, math.ceil(SAMPLE_SECONDS / max(_events(once, 1), 1e-9)))
    samples = _samples(lambda: _events(once, inner), len(runs) * inner, seconds)
    return Timing(samples, "graph" if replay is not None else "events")


def _samples(measure: Callable[[], float], calls: int, seconds: float) -> list[float]:
    measure()
    taken: list[float] = []
    while len(taken) < FEWEST or (sum(taken) < seconds and len(taken) < MOST):
        taken.append(measure())
    return [t / calls for t in taken]


def _wall_clock(runs: Sequence[Run]) -> float:
    start = time.perf_counter()
    for run in runs:
        run()
    return time.perf_counter() - start


def wall_clock(run: Run, seconds: float = SECONDS) -> Timing:
    """Time calls that end on the host, such as another library's."""

    def measure() -> float:
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        return time.perf_counter() - start

    return Timing(_samples(measure, 1, seconds), "wall clock")


def _events(run: Run, inner: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(inner):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def _recorded(runs: Sequence[Run]) -> Run | None:
    """Record a replay of all runs; return None where one waits for the device and cannot be recorded."""
    graph = CUDAGraph(device())
    kept: list[Any] = []

    def all_runs() -> None:
        kept[:] = [run() for run in runs]  # alive while recorded, so that no output takes the place of another

    try:
        graph.rehearse(all_runs, ())
        graph.record(all_runs, ())
    except RuntimeError:
        return None
    return graph.replay


def gpu_sets(nbytes: int) -> int:
    """Return how many sets of inputs of that size it takes so that a GPU's cache does not hold them."""
    if device().type != "cuda":
        return 1
    cache_bytes = torch.cuda.get_device_properties(device()).L2_cache_size
    return min(16, max(1, math.ceil(3 * cache_bytes / nbytes)))


def normals(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw standard normals on the device; they are the same on every machine."""
    return testing.normals(*shape, seed=seed, dtype=dtype, device=device())
