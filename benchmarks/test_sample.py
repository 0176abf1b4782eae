"""Samples by a small MLP: all evaluations and steps in one call, against the sampler that calls the PyTorch module.

Both are `fastndsm.sample` on the same noise; the second still has all steps between two evaluations in one op.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fastndsm
from fastndsm import ResidualScore, networks
from fastndsm.testing import deviation

from . import roofline
from .problems import PLANAR, TINY, Problem
from .rows import Row

PROBLEM = Problem(PLANAR.dim, PLANAR.components, *(64, 4) if TINY else (10_000, 200))
EVALUATIONS = 4 if TINY else 20
HIDDEN = (16 if TINY else 128,) * 3
SAME_SAMPLES = 1e-4  # largest error over the largest value, after all steps in float32
CONTENDERS = {"ours": True, "eager": False}


@lru_cache
def score_net(layers: bool) -> ResidualScore:
    """Build a network with weights like a trained one's: it starts at an output of zero, which would hide an error.

    With `layers` PyTorch evaluates them: a hook asks for each.
    """
    torch.manual_seed(0)
    net = networks.MLP(PROBLEM.dim, HIDDEN, horizon=PROBLEM.process.T)
    torch.nn.init.normal_(net.last.weight, std=0.05)
    if layers:
        net.last.register_forward_hook(lambda *_: None)
    return ResidualScore(net, PROBLEM.process).eval()


def draw(fused: bool) -> Tensor:
    options = {"n_evaluations": EVALUATIONS, "seed": 1}
    return fastndsm.sample(score_net(not fused), PROBLEM.process, PROBLEM.rows, fused=fused, **options)


@pytest.mark.parametrize("contender", CONTENDERS)
def test_sample(contender: str, rates: roofline.Rates, race: Any) -> None:
    error = deviation((draw(CONTENDERS[contender]),), (draw(not CONTENDERS[contender]),))
    assert error <= SAME_SAMPLES
    case, d, k = f"MLP {len(HIDDEN)}x{HIDDEN[0]} M={EVALUATIONS}, {PROBLEM.label}", PROBLEM.dim, PROBLEM.components
    row = Row("sample", case, contender, "a sample", PROBLEM.rows, "the other, same noise", deviation=error)
    if contender == "ours":
        steps = roofline.reverse_steps_multiply_adds("diag", d, k)
        evaluation = roofline.simulate_multiply_adds(d, k) - 2 * d + roofline.mlp_multiply_adds([d, *HIDDEN, d])
        arithmetic = PROBLEM.steps * steps + EVALUATIONS * evaluation
        row.roofline_seconds = PROBLEM.rows * rates.roofline(arithmetic, PROBLEM.steps * d)
        row.roofline = "arithmetic + normals"
        row.targets = {"eager": 1.5}
    race(row, partial(draw, CONTENDERS[contender]))
