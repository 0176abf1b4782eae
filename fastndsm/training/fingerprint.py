"""The identity of a training run: a continuation must agree in all of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .._condition import Condition
from .._state import ExtraState
from ..linear import EDMProcess
from ..objective import DSMLoss, NDSMLoss
from ..process import NoisingProcess
from .storage import tensor_digest

_NOT_NOISING = ("_extra_state", "class_weights")  # of a process's state


def state_tensors(*modules: tuple[str, nn.Module]) -> dict[str, Tensor]:
    """Return parameters and buffers by prefix and name, each once, but for a noising process's, which never change."""
    processes = [m for _, module in modules for m in module.modules() if isinstance(m, NoisingProcess)]
    seen = {id(tensor) for process in processes for tensor in process.state_dict(keep_vars=True).values()}
    tensors = {}
    for prefix, module in modules:
        for name, tensor in module.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and id(tensor) not in seen and not name.endswith("_extra_state"):
                seen.add(id(tensor))
                tensors[prefix + name] = tensor
    return tensors


def extra_states(*modules: tuple[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the modules with a state of the user's own beside tensors (`get_extra_state`), by prefix and name."""
    found: dict[int, tuple[str, nn.Module]] = {}
    for prefix, module in modules:
        for name, part in module.named_modules():
            own = type(part).get_extra_state is not nn.Module.get_extra_state
            if own and not isinstance(part, ExtraState):
                found.setdefault(id(part), (prefix + name, part))
    return dict(found.values())


def overlapping(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the names of two tensors that share memory, if there are any."""
    spans = []
    for name, tensor in tensors.items():
        if tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
            extent = 1 + sum((n - 1) * abs(stride) for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
            start = tensor.data_ptr()
            spans.append((str(tensor.device), start, start + extent * tensor.element_size(), name))
    for one, other in pairwise(sorted(spans)):
        if one[0] == other[0] and other[1] < one[2]:
            return one[3], other[3]
    return None


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return shape and dtype of each tensor, for messages."""
    return {name: f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors.items()}


def fingerprint(loss: NDSMLoss | DSMLoss, data: Any, conditions: Condition | None = None) -> dict[str, Any]:
    """Describe data, process and loss of a run, JSON-able; callables and iterables only by their presence."""
    weighting = loss.weighting
    buffers = loss.process.state_dict()
    parts = dict(sorted(conditions.items())) if isinstance(conditions, Mapping) else {"": conditions}
    described = {name: tensor_digest(part) for name, part in parts.items() if part is not None}
    of_data: dict[str, Any] = {"type": type(data).__name__}
    if isinstance(data, Tensor):
        of_data = {"shape": list(data.shape), "dtype": str(data.dtype), "sha256": tensor_digest(data)}
    return {
        **({"conditions": described} if described else {}),
        "data": of_data,
        "process": {
            "type": type(loss.process).__name__,
            "sha256": tensor_digest(*(t for name, t in buffers.items() if not name.endswith(_NOT_NOISING))),
            **({"config": loss.process.config} if isinstance(loss.process, EDMProcess) else {}),
        },
        "loss": {
            "type": type(loss).__name__,
            "estimator": getattr(loss, "estimator", None),
            "antithetic": bool(getattr(loss, "antithetic", False)),
            "weighting": weighting if weighting is None or isinstance(weighting, str) else "callable",
            "reduction": loss.reduction,
        },
    }


def differences(stored: Any, own: Any, name: str = "") -> list[str]:
    """Return the differences of two JSON-able trees, each as "name (checkpoint 1, now 2)"."""
    if not (isinstance(stored, Mapping) and isinstance(own, Mapping)):
        return [] if stored == own else [f"{name} (checkpoint {_short(stored)}, now {_short(own)})"]
    found = []
    for key in {**own, **stored}:
        inner = f"{name}.{key}" if name else str(key)
        found += differences(stored.get(key), own.get(key), inner)
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
