"""One step of a loop as a CUDA graph: called once, launched again for every step without Python.

A graph repeats what was launched while it was recorded, at the same addresses. So all that a step changes lives in
tensors that keep their place, the state, the number of the step among them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Run = Callable[..., Any]


class CaptureError(RuntimeError):
    """A step cannot be recorded; the message says why."""


class Graph(Protocol):
    """Graph that `replayed` needs: a torch.cuda.CUDAGraph, or what a test puts in its place."""

    def warm_up(self, run: Run, state: State) -> None:
        """Call run(*state), so that all that is compiled or cached on first use is there."""

    def rehearse(self, run: Run, state: State) -> None:
        """Call run(*state), and raise RuntimeError where it waits for the device."""

    def record(self, run: Run, state: State) -> None:
        """Record what run(*state) launches, in place of running it."""

    def replay(self) -> None:
        """Launch it."""


class CUDAGraph:
    """A graph on a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, run: Run, state: State) -> None:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            run(*state)
        current.wait_stream(self._stream)

    def rehearse(self, run: Run, state: State) -> None:
        # A recording that breaks off leaves PyTorch's allocator in disorder (until 2.12 at least): what would break it
        # is found before.
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            self.warm_up(run, state)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    def record(self, run: Run, state: State) -> None:
        with (
            torch.cuda.device(self._stream.device),
            torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            run(*state)

    def replay(self) -> None:
        self._graph.replay()


def supports(device: torch.device) -> bool:
    """Return whether there are graphs on the device."""
    return device.type == "cuda"


def replayed(step: Callable[..., State], state: State, graph: Graph) -> Callable[[], None]:
    """Return a function that does state <- step(*state), in place, by a replay of the graph.

    step is called three times: to warm up, to see that it never waits for the device, and to be recorded. Neither the
    state nor PyTorch's random numbers are changed by that.

    Raises:
        CaptureError: if step cannot be recorded. What it raises when it warms up is an error of its own.
    """

    def run(*state: Tensor) -> None:
        for old, new in zip(state, step(*state), strict=True):
            old.copy_(new)

    devices = [state[0].device] if state[0].is_cuda else []  # the CPU's random numbers are looked after anyway
    with torch.random.fork_rng(devices, device_type="cuda"), _no_autocast_cache():
        graph.warm_up(step, state)
        try:
            graph.rehearse(step, state)
            graph.record(run, state)
        except RuntimeError as error:
            raise CaptureError(str(error).strip().partition("\n")[0]) from error
    return graph.replay


@contextlib.contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Switch autocast's cache off: a cast kept while recording would be lost with the graph's memory."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
