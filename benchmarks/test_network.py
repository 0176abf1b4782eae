"""The score network of a training step, forward and backward: one op on the CPU, PyTorch layer by layer, or compiled.

Times are those that a batch of noised samples has, drawn from a grid of a hundred, so that rows share them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

import fastndsm
from fastndsm import networks
from fastndsm.testing import deviation

from . import roofline
from .problems import TINY
from .rows import Row

GRID = 100
FLOAT32 = 1e-4
CASES = {"plane": (2, 128, 512), "latent": (32, 256, 256)}  # d, width of three layers, B
AHEAD = 1.5  # of PyTorch's layers


class Step:
    """A network, noised samples, and what stands for the gradient of a loss."""

    def __init__(self, dim: int, width: int, rows: int) -> None:
        width, rows = (16, 8) if TINY else (width, rows)
        generator = torch.Generator().manual_seed(0)
        torch.manual_seed(0)
        self.net = networks.MLP(dim, (width,) * 3)
        torch.nn.init.normal_(self.net.last.weight, std=0.1, generator=generator)
        self.x = torch.randn(rows, dim, generator=generator, device="cpu")
        self.t = torch.randint(1, GRID + 1, (rows,), generator=generator, device="cpu") / GRID
        self.weights = torch.randn(rows, dim, generator=generator, device="cpu")
        self.label = f"forward + backward MLP 3x{width} d={dim} B={rows} {len(self.t.unique())} times"
        self.compiled: Callable[[Tensor, Tensor], Tensor] = torch.compile(self.net)

    def gradients(self, net: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, ...]:
        loss = (net(self.x, self.t) * self.weights).mean()
        return torch.autograd.grad(loss, list(self.net.parameters()))

    def ours(self) -> tuple[Tensor, ...]:
        return self.gradients(self.net)

    def eager(self) -> tuple[Tensor, ...]:
        with fastndsm.use_backend("reference"):
            return self.gradients(self.net)

    def inductor(self) -> tuple[Tensor, ...]:
        return self.gradients(self.compiled)

    def multiply_adds(self) -> int:
        """Count those of all products and of what is between them, at B rows and U different times.

        Each weight is in three products, the first layers' in two, since nothing asks for the gradient in the inputs.
        SiLU is an exponential and two more, its slope an exponential and five; scale and shift 1 and 5.
        """
        rows, times = len(self.x), len(self.t.unique())
        first, out = self.net.film.hidden, self.net.film.out
        products = times * (2 * first.weight.numel() + 3 * out.weight.numel())
        products += rows * sum(3 * layer.weight.numel() for layer in (*self.net.layers, self.net.last))
        products -= rows * self.net.layers[0].weight.numel()
        units = times * first.out_features + rows * sum(self.net.hidden)
        return products + units * (2 * roofline.EXPONENTIAL + 13)


@lru_cache
def step(name: str) -> Step:
    return Step(*CASES[name])


CONTENDERS = {"ours": Step.ours, "eager": Step.eager, "compiled": Step.inductor}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("name", CASES)
def test_network(name: str, contender: str, race: Any, rates: roofline.Rates) -> None:
    made = step(name)
    error = deviation(CONTENDERS[contender](made), made.eager())
    assert error <= FLOAT32
    row = Row("network", made.label, contender, "a row", len(made.x), "PyTorch's layers", deviation=error)
    if contender == "ours":
        row.roofline_seconds = rates.roofline(made.multiply_adds())
        row.roofline, row.targets = "arithmetic", {"eager": AHEAD}
    race(row, lambda: CONTENDERS[contender](made))
