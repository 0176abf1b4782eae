"""The reverse process of a small MLP: all steps in one call, against the sampler that calls the PyTorch module.

Both are `fastndsm.sample` on the same noise; the second still has the fused drift and noise of every step.
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
HIDDEN = (16 if TINY else 128,) * 3
SAME_SAMPLES = 1e-4  # largest error over the largest value, after all steps in float32
CONTENDERS = {"ours": True, "eager": False}


@lru_cache
def score_net() -> ResidualScore:
    """Build a network with weights like a trained one's: it starts at an output of zero, which would hide an error."""
    torch.manual_seed(0)
    net = networks.MLP(PROBLEM.dim, HIDDEN, horizon=PROBLEM.process.T)
    torch.nn.init.normal_(net.last.weight, std=0.05)
    return ResidualScore(net, PROBLEM.process).eval()


def draw(fused: bool) -> Tensor:
    return fastndsm.sample(score_net(), PROBLEM.process, PROBLEM.rows, seed=1, fused=fused)


@pytest.mark.parametrize("contender", CONTENDERS)
def test_sample(contender: str, rates: roofline.Rates, race: Any) -> None:
    error = deviation((draw(CONTENDERS[contender]),), (draw(not CONTENDERS[contender]),))
    assert error <= SAME_SAMPLES
    case, d = f"MLP {len(HIDDEN)}x{HIDDEN[0]}, {PROBLEM.label}", PROBLEM.dim
    row = Row(
        "sample", case, contender, "a sample-step", PROBLEM.sample_steps, "the other, same noise", deviation=error
    )
    if contender == "ours":
        arithmetic = roofline.simulate_multiply_adds(d, PROBLEM.components)
        arithmetic += roofline.mlp_multiply_adds([d, *HIDDEN, d])
        row.roofline_seconds = PROBLEM.sample_steps * rates.roofline(arithmetic, d)
        row.roofline = "arithmetic + normals"
        row.targets = {"eager": 1.5}
    race(row, partial(draw, CONTENDERS[contender]))
