"""Data in coordinates of mean 0 and deviation 1, the scale for which the library's defaults are made, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._state import KeepsDtype

__all__ = ["Standardizer"]

_CHUNK = 4096  # samples in float64 at a time


class Standardizer(KeepsDtype):
    """The map z = (x - shift) / scale, computed in float64; `Standardizer.fit` makes one, `decode` undoes it.

    A feature that is constant has scale 0: it is 0 in z, and its constant in whatever is decoded.

    It is an encoder for `latent.LatentModel.fit`: the network, the mixture and the process see z, samples are x again.

    Attributes:
        shift, scale: [D] for each value of an event, or [1] for all; float64, whatever a module around them is cast to.
        event_shape: of a sample, and of z.
        dim: D.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Any, scale: Any, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = _checks.integers("event_shape", event_shape)
        self.dim = math.prod(self.event_shape)
        with torch.inference_mode(False):
            for name, value in (("shift", shift), ("scale", scale)):
                made = _checks.parameter(name, value).double()
                if made.shape not in ((1,), (self.dim,)):
                    raise ValueError(f"{name}: expected shape [1] or [{self.dim}], found {tuple(made.shape)}")
                self.register_buffer(name, made)
        if not bool((self.scale >= 0).all()):
            raise ValueError(f"scale: expected numbers of at least 0, found {float(self.scale.min())}")

    @classmethod
    @torch.no_grad()
    def fit(cls, X: Tensor, per_feature: bool | None = None) -> Standardizer:
        """Take mean and deviation of X [n, *event], two or more finite samples of real numbers.

        A feature that does not vary beyond its rounding is taken for constant.

        Args:
            per_feature: each value of an event has a shift and a scale of its own; False: all share one. Default: True
                for points and tables [n, d], False for images and other arrays [n, *event].
        """
        x = _checks.samples("X", _real("X", X), least=2)
        event = tuple(x.shape[1:])
        by_feature = len(event) == 1 if per_feature is None else per_feature
        rows = x.flatten(1) if by_feature else x.reshape(-1, 1)
        # About the first row and then about the mean: far from 0, squares would be differences of large numbers.
        first = rows[0].double()
        shift = first + _total((part.double() - first for part in _parts(rows)), first) / len(rows)
        low, high = (function(rows, 0).double() for function in (torch.amin, torch.amax))
        reach = torch.maximum(high - shift, shift - low)
        safe = reach.clamp_min(torch.finfo(torch.float64).tiny)  # in units of it no square over- or underflows
        squares = _total((((part.double() - shift) / safe).square() for part in _parts(rows)), first)
        scale = reach * (squares / len(rows)).sqrt()
        largest = torch.maximum(high.abs(), low.abs())
        constant = (scale <= torch.finfo(x.dtype).eps * largest) | (low == high)
        return cls(torch.where(low == high, low, shift), torch.where(constant, 0.0, scale), event)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Return z of the shape of x [n, *event] and of its dtype, float32 for integers."""
        inverse = torch.where(self.scale > 0, 1.0 / self.scale, 0.0)
        return self._map("x", _real("x", x), lambda part: (part - self.shift) * inverse)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return x of the shape and dtype of z [n, *event], rounded once."""
        return self._map("z", _checks.floating("z", z), lambda part: part * self.scale + self.shift)

    def _map(self, name: str, x: Tensor, function: Any) -> Tensor:
        if x.ndim < 2 or x[:1].numel() != self.dim * len(x[:1]):
            expected = ", ".join(map(str, self.event_shape))
            raise ValueError(f"{name}: expected a Tensor [n, {expected}], found {tuple(x.shape)}")
        parts = [function(part.double()).to(x.dtype) for part in _parts(x.reshape(len(x), self.dim))]
        return torch.cat(parts).reshape(len(x), *self.event_shape)

    def to_dict(self) -> dict[str, Any]:
        """Return the defining values, JSON-able and exact; `from_dict` makes it again."""
        return {"shift": self.shift.tolist(), "scale": self.scale.tolist(), "event_shape": list(self.event_shape)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Standardizer:
        """Make the one that `to_dict` described."""
        return cls(values["shift"], values["scale"], values["event_shape"])

    def extra_repr(self) -> str:
        """Return the part of `repr` between the brackets."""
        return f"event_shape={self.event_shape}, per_feature={len(self.scale) > 1}"


def _real(name: str, x: Any) -> Tensor:
    """Return x as it is if it is floating point, as float32 if of integers that float32 holds, else as float64."""
    _checks.tensor(name, x, "a Tensor of real numbers")
    if x.dtype in (torch.uint8, torch.int8, torch.int16):
        return x.float()  # type: ignore[no-any-return]
    if x.dtype in (torch.int32, torch.int64):
        return x.double()  # type: ignore[no-any-return]
    return _checks.tensor(name, x, "a Tensor of real numbers", _checks.FLOATS)


def _parts(x: Tensor) -> tuple[Tensor, ...]:
    return x.split(max(1, _CHUNK * 64 // x.shape[1]))


def _total(parts: Any, like: Tensor) -> Tensor:
    total = torch.zeros_like(like)
    for part in parts:
        total += part.sum(0)
    return total
