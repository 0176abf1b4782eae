"""The residual multilayer perceptron of `networks.MLP`, as one function of its inputs and weights.

    h_l = [h_{l-1} +] SiLU(scale_l * (W_l h_{l-1} + c_l) + shift_l),       output = W h_L + c

the bracket where widths agree. Scales and shifts are rows of a table, which rows of x of one time share:

    table = W_2 SiLU(W_1 E + c_1) + c_2,                                   E the embedded times
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def film_mlp(
    x: Tensor, embedded: Tensor, index: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Return the output [B, outputs] at x [B, inputs].

    Args:
        embedded: [U, E], the embedded times.
        index: the time of each row of x, int64 [B], a row of `embedded`; None: row b has row b.
        weights, biases: [outputs, inputs] and [outputs] of the two layers that make the table of the embedded times,
            then of the hidden layers, then of the last.
    """
    table = F.linear(F.silu(F.linear(embedded, weights[0], biases[0])), weights[1], biases[1])
    widths = [len(bias) for bias in biases[2:-1]]
    parts = (table if index is None else table[index]).split(widths * 2, dim=1)
    layers = zip(parts[: len(widths)], parts[len(widths) :], weights[2:-1], biases[2:-1], strict=True)
    h = x
    for scale, shift, weight, bias in layers:
        step = F.silu(torch.addcmul(shift, F.linear(h, weight, bias), scale))
        h = h + step if h.shape == step.shape else step
    return F.linear(h, weights[-1], biases[-1])
