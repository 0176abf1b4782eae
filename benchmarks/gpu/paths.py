"""Calls of every op whose samples are paths with numbers: a path's bits do not depend on the others of its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastndsm.testing import CALLS

from . import cases

PATHS = 67
OPS = ("simulate", "simulate_transition", "simulate_target", "reverse_steps linear")
Call = Callable[[int, int], tuple[Tensor, ...]]  # of paths i <= number < j


def calls(backend: str) -> Iterator[tuple[str, str, Call]]:
    """Yield op, label and call of whatever has paths of its own, in few dimensions and in many."""
    for dim in (2, 67):
        inputs = cases.arguments("diag", PATHS, dim, 3)
        for call in CALLS:
            if call.name in OPS:
                yield call.op, f"d={dim}", lambda i, j, call=call, inputs=inputs: call(inputs[i:j], backend)
    p = cases.arguments("diag", PATHS, 2, 3).process
    net = cases.score_network(p, (64, 64), "residual")
    yield (
        "sample_mlp",
        "d=2",
        lambda i, j: (cases.sampled(net, p, j - i, backend, torch.float32, seed=1, first_path=i),),
    )
