"""A whole MLP as one function of its inputs and weights: two calls of a backend, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import reference
from ._ops import transforming
from .backends import registry

SERVING = "cpp"


def serves(x: Tensor, weights: Tensor) -> bool:
    """Return whether there is a backend for them, and nobody looks at every operation.

    That is a compiler or tracer, a transform, a dispatch mode or autocast: they are to see the layers.
    """
    dtype = x.dtype
    if x.device.type != "cpu" or weights.dtype != dtype or dtype not in (torch.float32, torch.float64):
        return False
    if (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or transforming()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.is_autocast_enabled("cpu")
    ):
        return False
    plain = type(x) in (Tensor, torch.nn.Parameter)
    return plain and registry.choose("film_mlp", "auto", x.device, [dtype]).name == SERVING


def film_mlp(
    x: Tensor, embedded: Tensor, index: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Return `reference.film_mlp` of these arguments, where `serves` says so; differentiable as that is."""
    if torch.is_grad_enabled() and any(p.requires_grad for p in (x, embedded, *weights, *biases)):
        return _FilmMlp.apply(index, x, embedded, *weights, *biases)  # type: ignore[no-untyped-call, no-any-return]
    out: Tensor
    out, _ = _function("film_mlp")(x, embedded, index, weights, biases, False)
    return out


def _function(name: str) -> Callable[..., Any]:
    return registry.BACKENDS[SERVING].function(name)


class _FilmMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, index: Tensor | None, x: Tensor, embedded: Tensor, *layers: Tensor) -> Tensor:
        n = len(layers) // 2
        out, states = _function("film_mlp")(x, embedded, index, layers[:n], layers[n:], True)
        ctx.save_for_backward(index, states, x, embedded, *layers)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        index, states, *points = ctx.saved_tensors
        n = 1 + len(points) // 2
        if torch.is_grad_enabled():  # a gradient of this one will be asked for
            points = [p.view_as(p) if p.requires_grad else p.detach().requires_grad_() for p in points]
            output = reference.film_mlp(points[0], points[1], index, points[2:n], points[n:])
            found = torch.autograd.grad(output, points, grad, create_graph=True, materialize_grads=True)
        else:
            wanted = ctx.needs_input_grad[1:3]
            found = _function("film_mlp_backward")(
                grad, points[0], points[1], index, points[2:n], points[n:], states, *wanted
            )
        return None, *(g if need else None for g, need in zip(found, ctx.needs_input_grad[1:], strict=True))
