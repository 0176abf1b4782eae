"""Checkpoints of a training run, and trained models, as folders of safetensors and JSON.

    DIRECTORY/step-000500/     model.safetensors  ema.safetensors  optimizer.safetensors  state.json
    MODEL/                     model.safetensors  reference.safetensors  model.json

Both are written whole or not at all and verified when read; nothing is ever unpickled.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import networks
from .._state import ordinary_modes
from ..mixture import GaussianMixture
from ..process import LangevinProcess, NoisingProcess, OUProcess
from ..score import ResidualScore
from .storage import CheckpointError, read_folder, remove_leftovers, write_folder

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "checkpoints",
    "latest",
    "load_checkpoint",
    "load_model",
    "process_from",
    "process_parts",
    "save_checkpoint",
    "save_model",
]

_STATE_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
_MODEL_FILES = ("model.safetensors", "reference.safetensors")


class Checkpoint(NamedTuple):
    """A training state: weights and their average by name, the optimizer's state_dict, the JSON document."""

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]


def checkpoints(directory: str | Path) -> list[Path]:
    """The checkpoint folders in `directory`, earliest first."""
    found = []
    if Path(directory).is_dir():
        for path in Path(directory).iterdir():
            if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir():
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def latest(directory: str | Path) -> Path | None:
    """The last checkpoint folder in `directory`, or None."""
    found = checkpoints(directory)
    return found[-1] if found else None


def save_checkpoint(
    directory: str | Path,
    step: int,
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write DIRECTORY/step-NNNNNN, then delete all but the last `keep` checkpoints.

    Args:
        optimizer: an optimizer's state_dict, of tensors, numbers, strings, None and containers of these.
        state: JSON-able.
    """
    directory = Path(directory)
    path = directory / f"step-{step:06d}"
    tensors: dict[str, Tensor] = {}
    tree = _encode(optimizer, tensors, "state")
    groups = dict(zip(_STATE_FILES, (model, ema, tensors), strict=True))
    write_folder(path, "state.json", "checkpoint", {"step": step, "optimizer": tree, **state}, groups)
    for old in checkpoints(directory)[: -max(1, keep)]:
        shutil.rmtree(old)
    return path


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify one checkpoint folder; tensors on the CPU.

    Raises:
        CheckpointError: if a file is missing, truncated, altered or foreign, naming it.
    """
    path = Path(path)
    state, tensors = read_folder(path, "state.json", "checkpoint", _STATE_FILES)
    model, ema, flat = (tensors[name] for name in _STATE_FILES)
    try:
        return Checkpoint(int(state["step"]), model, ema, _decode(state["optimizer"], flat), state)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / 'state.json'}: expected a training state, found none ({error!r})") from error


def clear(directory: str | Path) -> None:
    """Delete every checkpoint in `directory`, and what killed processes left there."""
    for path in checkpoints(directory):
        shutil.rmtree(path)
    if Path(directory).is_dir():
        remove_leftovers(Path(directory))


def save_model(
    path: str | Path, score_net: nn.Module, process: NoisingProcess, *, meta: Mapping[str, Any] | None = None
) -> None:
    """Write a self-contained model folder: network, mixture, process, and `meta` (JSON-able).

    Args:
        score_net: a `networks.MLP` or `networks.UNet`, or a ResidualScore of one.
        process: a LangevinProcess or OUProcess with constant sigma.
    """
    net = score_net.net if isinstance(score_net, ResidualScore) else score_net
    if not isinstance(net, networks.MLP | networks.UNet):
        raise TypeError(f"score_net: expected fastndsm's MLP or UNet, or its ResidualScore, found {type(net).__name__}")
    described, reference = process_parts(process)
    document = {
        "network": {"name": net.architecture, "config": net.config},
        "residual": isinstance(score_net, ResidualScore),
        "features": bool(getattr(score_net, "features", False)),
        "process": described,
        "meta": dict(meta or {}),
    }
    groups = dict(zip(_MODEL_FILES, (net.state_dict(), reference), strict=True))
    write_folder(Path(path), "model.json", "model", document, groups)


@ordinary_modes()
def load_model(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[nn.Module, LangevinProcess, dict[str, Any]]:
    """(score_net in eval mode, process, meta) from what `save_model` wrote.

    Raises:
        CheckpointError: if a file is missing, truncated, altered or foreign, naming it.
    """
    path = Path(path)
    document, tensors = read_folder(path, "model.json", "model", _MODEL_FILES)
    weights, reference = (tensors[name] for name in _MODEL_FILES)
    try:
        process = process_from(document["process"], reference).to(device)
        net: nn.Module = networks.build(document["network"]["name"], **document["network"]["config"])
        for name, parameter in net.named_parameters():
            parameter.data = parameter.data.to(device, weights[name].dtype)
        net.to(device).load_state_dict(weights)
        score_net = ResidualScore(net, process, document["features"]) if document["residual"] else net
        meta = dict(document["meta"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: expected a model folder of this version, found: {error}") from error
    return score_net.eval(), process, meta


def process_parts(process: NoisingProcess) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A process as a JSON-able dict and named tensors; `process_from` rebuilds it."""
    if type(process) not in (LangevinProcess, OUProcess):
        raise TypeError(f"process: expected a LangevinProcess or OUProcess, found {type(process).__name__}")
    if callable(process.sigma):
        raise TypeError("process: expected a constant sigma, found a callable, which cannot be stored")
    assert isinstance(process, LangevinProcess)
    reference = process.reference
    described = {
        "type": type(process).__name__,
        "sigma": float(process.sigma),
        "event_shape": list(process.event_shape),
        "covariance_type": reference.covariance_type,
    }
    names = ("weights", "means", "covariances")
    return described, {"times": process.times, **{name: getattr(reference, name) for name in names}}


def process_from(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LangevinProcess:
    """The process of `process_parts`; a stability warning given when it was first built is not repeated."""
    sigma, event_shape, times = described["sigma"], described["event_shape"], tensors["times"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if described["type"] == "OUProcess":
            return OUProcess(tensors["means"].shape[1], sigma=sigma, grid=times, event_shape=event_shape)
        reference = GaussianMixture(
            tensors["weights"],
            tensors["means"],
            tensors["covariances"],
            described["covariance_type"],
            event_shape=event_shape,
        )
        return LangevinProcess(reference, sigma=sigma, grid=times)


def _encode(node: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """A tree of containers as JSON, its tensors moved to `tensors`; keys may be integers, unlike JSON's."""
    if isinstance(node, Tensor):
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, Mapping):
        pairs = [[key, _encode(value, tensors, f"{name}.{key}")] for key, value in node.items()]
        return {"dict": pairs}
    if isinstance(node, list | tuple):
        items = [_encode(value, tensors, f"{name}.{i}") for i, value in enumerate(node)]
        return {"tuple" if isinstance(node, tuple) else "list": items}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"optimizer: expected tensors, numbers and containers, found {type(node).__name__} at {name}")


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _decode(value, tensors) for key, value in content}
    items = [_decode(value, tensors) for value in content]
    return tuple(items) if kind == "tuple" else items
