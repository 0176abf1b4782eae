"""Calls of every op whose samples are paths with numbers: a path's bits do not depend on the others of its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fastndsm import LangevinProcess, functional

from . import cases
from .device import device, normals

PATHS = 67
Call = Callable[[int, int], tuple[Tensor, ...]]  # of paths i <= number < j


def calls(backend: str) -> Iterator[tuple[str, str, Call]]:
    """Op, label and call of what has paths of its own, in few dimensions and in many."""
    each: dict[str, Any] = {"seed": 1, "backend": backend}
    for dim in (2, 67):
        p, label = cases.process("diag", dim, 3), f"d={dim}"
        x, score = (normals(PATHS, dim, seed=i) for i in range(2))
        ends = (torch.arange(PATHS, device=device()) * 5) % cases.STEPS + 1

        def simulate(i: int, j: int, p: LangevinProcess = p, x: Tensor = x, ends: Tensor = ends) -> tuple[Tensor, ...]:
            return (functional.simulate(x[i:j], p, ends[i:j], first_path=i, **each),)

        def transition(
            i: int, j: int, p: LangevinProcess = p, x: Tensor = x, ends: Tensor = ends
        ) -> tuple[Tensor, ...]:
            return functional.simulate_transition(x[i:j], p, ends[i:j], first_path=i, **each)

        def target(i: int, j: int, p: LangevinProcess = p, x: Tensor = x, ends: Tensor = ends) -> tuple[Tensor, ...]:
            return functional.simulate_target(x[i:j], p, ends[i:j], first_path=i, **each)

        def reverse(i: int, j: int, p: LangevinProcess = p, x: Tensor = x, s: Tensor = score) -> tuple[Tensor, ...]:
            return (functional.reverse_step(x[i:j], s[i:j], p, 3, first_path=i, **each),)

        yield "simulate", label, simulate
        yield "simulate_transition", label, transition
        yield "simulate_target", label, target
        yield "reverse_step", label, reverse
    p = cases.process("diag", 2, 3)
    net = cases.score_network(p, (64, 64), "residual")
    yield (
        "sample_mlp",
        "d=2",
        lambda i, j: (cases.sampled(net, p, j - i, backend, torch.float32, seed=1, first_path=i),),
    )
