"""A mixture as kernels of trajectories read it: in whole blocks and tiles, padded once and kept with its tensors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .mixture_lanes import pitch
from .operands import Axes
from .precision_product import precision_product

NOTHING = -2.0e38  # log density scale of a component that weighs nothing, as energy still a number of float32

_kept: Any = WeakTensorKeyDictionary()  # first tensor -> layout -> (the other tensors, versions, what was made)


def kept(sources: tuple[Tensor, ...], layout: Hashable, make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Return make(), which is called once for these tensors with these values; it lives as long as the first of them.

    Not what a CUDA graph is recording, whose memory is the graph's, nor of tensors that do not count their changes.
    """
    recording = sources[0].is_cuda and torch.cuda.is_current_stream_capturing()
    if recording or any(t.is_inference() for t in sources):
        return make()
    versions, layouts = [t._version for t in sources], _kept.setdefault(sources[0], {})
    if layout in layouts:
        others, known, made = layouts[layout]
        if known == versions and all(ref() is t for ref, t in zip(others, sources[1:], strict=True)):
            return tuple(sources[t] if isinstance(t, int) else t for t in made)
    found = make()
    # a source that was left as it is goes by its place, or the entry would keep its own key alive
    places = {id(t): i for i, t in enumerate(sources)}
    layouts[layout] = [weakref.ref(t) for t in sources[1:]], versions, [places.get(id(t), t) for t in found]
    return found


def packed(
    parameters: tuple[Tensor, Tensor, Tensor], kind: str, components: int, columns: int | None = None
) -> tuple[Tensor, ...]:
    """Return means, precisions and log_scale with components of responsibility 0 up to a multiple of `components`.

    columns: rows are padded with zeros up to a multiple of it, and pulls come last: P m_k, both relative to the first
    mean, if tied, else the means.
    """

    def make() -> tuple[Tensor, ...]:
        means, precisions, log_scale = parameters
        more = -len(means) % components
        if more:
            if kind != "tied":
                precisions = F.pad(precisions, (0, 0) * (precisions.ndim - 1) + (0, more))
            log_scale = F.pad(log_scale, (0, more), value=NOTHING)
            means = F.pad(means, (0, 0, 0, more))
        if columns is None:
            return means, precisions, log_scale
        wide = _whole_tiles(means, columns)
        pulls = _whole_tiles(precision_product(means - means[:1], precisions), columns) if kind == "tied" else wide
        if kind != "spherical":
            precisions = _whole_tiles(precisions, columns, square=kind in ("tied", "full"))
        return wide, precisions, log_scale, pulls

    return kept(parameters, (kind, components, columns), make)


def packed_axes(axes: Axes, columns: int) -> tuple[Tensor, ...]:
    """Return rotations and rates with zeros up to whole tiles of `columns`."""
    sources = axes.rotations.contiguous(), axes.rates.contiguous()
    return kept(
        sources, columns, lambda: (_whole_tiles(sources[0], columns, square=True), _whole_tiles(sources[1], columns))
    )


def _whole_tiles(parameter: Tensor, columns: int, square: bool = False) -> Tensor:
    """Pad a parameter [..., d], of a square one the rows too."""
    dim = parameter.shape[-1]
    more = pitch(dim, columns) - dim
    return F.pad(parameter, (0, more, 0, more) if square else (0, more)) if more else parameter
