"""The ranks' part of a training: equal weights at the start, and the mean of the gradients at every step.

What is wrapped in DistributedDataParallel sees to itself; the rest is done here, after the backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .._ranks import averaged, rank_and_world


class Parallel:
    """The networks of a training that runs on several ranks; on one rank, nothing is done.

    Args:
        networks: as they are called, wrapped or not.
        tensors: all that is trained and all other state of the networks.
        parameters: those that are trained.
    """

    def __init__(self, networks: Sequence[nn.Module], tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
        self.world = rank_and_world()[1]
        wrappers = [_wrapper(net) for net in networks] if self.world > 1 else []
        self._wrappers = [wrapper for wrapper in wrappers if wrapper is not None]
        known = {id(p) for wrapper in self._wrappers for p in wrapper.parameters()}
        own = {id(p) for p in parameters}
        self._loose = [p for p in parameters if id(p) not in known]
        rest = [t for t in tensors if id(t) not in own]
        self._frozen = [t for t in rest if isinstance(t, nn.Parameter)]
        self._buffers = [t for t in rest if not isinstance(t, nn.Parameter)]

    @torch.no_grad()
    def begin(self) -> None:
        """Give all ranks the weights and buffers of rank 0."""
        for t in [*self._loose, *self._frozen, *self._buffers] if self.world > 1 else []:
            _broadcast(t.data)

    @torch.no_grad()
    def share_buffers(self) -> None:
        """Give all ranks the buffers of rank 0, as running means differ after a step."""
        for t in self._buffers if self.world > 1 else []:
            _broadcast(t)

    @contextlib.contextmanager
    def gathering(self, last: bool) -> Iterator[None]:
        """Leave the wrapped networks' gradients to add up, unless the part of the batch is the last."""
        with contextlib.ExitStack() as stack:
            for wrapper in [] if last else self._wrappers:
                stack.enter_context(wrapper.no_sync())  # type: ignore[no-untyped-call]
            yield

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Replace the gradients by their means over the ranks; one that no rank has stays None."""
        if self.world == 1 or not self._loose:
            return
        device = self._loose[0].device
        present = averaged(torch.tensor([float(p.grad is not None) for p in self._loose], device=device)).tolist()
        groups: dict[torch.dtype, list[Tensor]] = {}
        for p, share in zip(self._loose, present, strict=True):
            if share:
                groups.setdefault(torch.promote_types(p.dtype, torch.float32), []).append(p)
        for dtype, parameters in groups.items():
            for p in parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            flat = torch.cat([_real(p.grad.to(dtype)).flatten() for p in parameters])  # type: ignore[union-attr]
            sizes = [p.numel() * (2 if p.is_complex() else 1) for p in parameters]
            for p, mean in zip(parameters, averaged(flat).split(sizes), strict=True):
                _real(p.grad).copy_(mean.view_as(_real(p.grad)))  # type: ignore[arg-type]


def _broadcast(t: Tensor) -> None:
    """Give all ranks the values of rank 0, of any dtype and memory format."""
    whole = _real(t).contiguous()
    torch.distributed.broadcast(whole, 0)
    _real(t).copy_(whole)


def _real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def _wrapper(net: Any) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel around a network, also inside torch.compile."""
    while not isinstance(net, DistributedDataParallel):
        net = getattr(net, "_orig_mod", None)
        if net is None:
            return None
    return net
