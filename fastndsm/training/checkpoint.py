"""Checkpoints of a training run, and trained models, as folders of safetensors and JSON.

    DIRECTORY/step-000500/     model.safetensors  ema.safetensors  optimizer.safetensors  state.json
    MODEL/                     model.safetensors  reference.safetensors  [encoder.safetensors]  model.json

Both are written whole or not at all and verified when read; nothing is ever unpickled.
"""

from __future__ import annotations

import inspect
import math
import pkgutil
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks, networks
from .._state import ordinary_modes
from ..flow import FlowProcess
from ..linear import EDMProcess
from ..mixture import GaussianMixture
from ..process import LangevinProcess, NoisingProcess, OUProcess, ReferenceProcess, TabulatedSigma
from ..score import ResidualScore, network_dtype, unwrapped
from .storage import CheckpointError, json_object, read_folder, remove_leftovers, write_folder

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "checkpoints",
    "latest",
    "load_checkpoint",
    "load_encoder",
    "load_model",
    "process_from",
    "process_parts",
    "save_checkpoint",
    "save_model",
]

_STATE_FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")
# The methods that leave complex and integer tensors alone, as `to` does not.
_CASTS = {"float16": "half", "bfloat16": "bfloat16", "float32": "float", "float64": "double"}
DOCUMENT, HUB_DOCUMENT = "model.json", "config.json"  # of a model: its name, and that on the Hugging Face Hub
_MODEL_FILES = ("model.safetensors", "reference.safetensors")
ENCODER_FILE = "encoder.safetensors"
_PROCESSES = (LangevinProcess, OUProcess, EDMProcess, FlowProcess)
Parts = tuple[dict[str, Any], dict[str, Tensor]]  # JSON-able values, and tensors by name
Maker = Callable[..., nn.Module]  # a class of networks, or a function that makes one


class Checkpoint(NamedTuple):
    """A training state: weights and their average by name, the optimizer's state_dict, the JSON document.

    extra: what `get_extra_state` of the network's modules gave, by name. scheduler: its state_dict, if there was one.
    """

    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    extra: dict[str, Any]
    scheduler: dict[str, Any] = {}  # noqa: RUF012 of a tuple, never written to


def checkpoints(directory: str | Path) -> list[Path]:
    """Return the checkpoint folders in `directory`, earliest first."""
    found = []
    if Path(directory).is_dir():
        for path in Path(directory).iterdir():
            if (match := re.fullmatch(r"step-(\d+)", path.name)) and path.is_dir():
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def latest(directory: str | Path) -> Path | None:
    """Return the last checkpoint folder in `directory`, or None."""
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
    *,
    extra: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
    trial: bool = False,
) -> Path:
    """Write DIRECTORY/step-NNNNNN, then delete all but the last `keep` checkpoints.

    Args:
        optimizer: an optimizer's state_dict, of tensors, numbers, strings, None and containers of these.
        state: JSON-able.
        extra: of modules by name, of the same kinds as the optimizer's.
        scheduler: a scheduler's state_dict, of the same kinds.
        trial: only find out whether it can be written; nothing is left behind, and nothing deleted.
    """
    directory = Path(directory)
    path = directory / f"step-{step:06d}"
    tensors: dict[str, Tensor] = {}
    document = {"step": step, "optimizer": _encode(optimizer, tensors, "optimizer", "state"), **state}
    if extra:
        document["extra"] = _encode(extra, tensors, "score_net", "extra")
    if scheduler:
        document["scheduler"] = _encode(scheduler, tensors, "scheduler", "scheduler")
    groups = dict(zip(_STATE_FILES, (model, ema, tensors), strict=True))
    write_folder(path, "state.json", "checkpoint", document, groups, trial=trial)
    for old in [] if trial else checkpoints(directory)[: -max(1, keep)]:
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
        optimizer = _decode(state["optimizer"], flat)
        extra, scheduler = (_decode(state.get(name, {"dict": []}), flat) for name in ("extra", "scheduler"))
        return Checkpoint(int(state["step"]), model, ema, optimizer, state, extra, scheduler)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / 'state.json'}: expected a training state, found none ({error!r})") from error


def clear(directory: str | Path) -> None:
    """Delete every checkpoint in `directory`, and what killed processes left there."""
    for path in checkpoints(directory):
        shutil.rmtree(path)
    if Path(directory).is_dir():
        remove_leftovers(Path(directory))


def save_model(
    path: str | Path,
    score_net: nn.Module,
    process: NoisingProcess,
    *,
    meta: Mapping[str, Any] | None = None,
    encoder: Parts | None = None,
) -> None:
    """Write a self-contained model folder: network, mixture, process, and `meta` (JSON-able).

    Args:
        score_net: a network, or a ResidualScore of one, compiled or not. Of a class of your own, the name is stored
            and, if it has an attribute `config` that is a dict, or a method that returns one, that: what its
            constructor is called with when the model is loaded.
        process: a LangevinProcess, OUProcess, EDMProcess or FlowProcess; a sigma that is a callable is stored as its
            values on the grid.
        encoder: `latent.encoder_parts` of what decodes the process's samples; `load_encoder` reads them again.
    """
    outer = unwrapped(_checks.instance("score_net", score_net, nn.Module, "a torch.nn.Module"))
    residual = type(outer) is ResidualScore
    net = unwrapped(outer.net) if residual else outer
    described, reference = process_parts(process)
    weights, aliases = _named_once(net)
    document = {
        "network": _network_document(net),
        "aliases": aliases,
        "residual": residual,
        "features": residual and outer.features,
        "process": described,
        "meta": json_object("meta", meta),
    }
    groups = dict(zip(_MODEL_FILES, (weights, reference), strict=True))
    if encoder is not None:
        document["encoder"], groups[ENCODER_FILE] = json_object("encoder", encoder[0]), encoder[1]
    write_folder(Path(path), DOCUMENT, "model", document, groups)


def load_encoder(path: str | Path) -> Parts | None:
    """Return the parts of the encoder that `save_model` stored with a model, if there is one: a dict, and tensors.

    Raises:
        CheckpointError: if its file or model.json is missing, truncated, altered or foreign, naming it.
    """
    named = Path(path), _document(Path(path)), "model", _MODEL_FILES, (ENCODER_FILE,)
    document, tensors = read_folder(*named, optional_alone=True)
    return (document["encoder"], tensors[ENCODER_FILE]) if ENCODER_FILE in tensors else None


def is_model(path: Path) -> bool:
    """Return whether a folder has the description of a model, by either name."""
    return (path / _document(path)).is_file()


def _document(path: Path) -> str:
    """Return what the description of the model in a folder is called."""
    return HUB_DOCUMENT if (path / HUB_DOCUMENT).is_file() and not (path / DOCUMENT).is_file() else DOCUMENT


def _network_document(net: nn.Module) -> dict[str, Any]:
    """Return the description that the network is built from: the library's by name, others by class."""
    if type(net) in (networks.MLP, networks.UNet):
        return {"name": net.architecture, "config": net.config}
    config = getattr(net, "config", None)
    config = config() if inspect.ismethod(config) else config
    config = json_object("score_net.config", config) if isinstance(config, Mapping) else None
    dtype = str(network_dtype(net)).removeprefix("torch.")
    return {"class": f"{type(net).__module__}.{type(net).__qualname__}", "config": config, "dtype": dtype}


def _named_once(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the network's tensors by name, and further names of the same tensors."""
    names: dict[int, str] = {}
    tensors, aliases = {}, {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"score_net: expected a state of tensors, found {type(tensor).__name__} as {name}")
        if id(tensor) in names:
            aliases[name] = names[id(tensor)]
        else:
            names[id(tensor)] = name
            tensors[name] = tensor
    return tensors, aliases


@ordinary_modes()
def load_model(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    network: Maker | Mapping[str, Maker] | None = None,
    allow_import: str | Sequence[str] = (),
) -> tuple[nn.Module, ReferenceProcess, dict[str, Any]]:
    """Return (score_net in eval mode, process, meta) from what `save_model` wrote.

    Args:
        network: of a network of your own, its class, called with the stored config, or a function of no arguments that
            makes one like it; or a dict of these by the classes' names, "Class" or "package.module.Class".
        allow_import: instead, what the class may be imported from: packages, modules or classes, by name, as
            "package", "package.module" or "package.module.Class". Importing runs code, so name none but your own.

    Raises:
        CheckpointError: if a file is missing, truncated, altered or foreign, naming it.
        ValueError: if the network is of a class that was neither given nor allowed, naming it.
    """
    path, device = Path(path), _checks.device("device", device)
    for given in network.values() if isinstance(network, Mapping) else [network]:
        if given is not None and not callable(given):
            raise TypeError(f"network: expected a class or a function that makes a network, found {given!r}")
    allowed = _names("allow_import", allow_import)
    document, tensors = read_folder(path, _document(path), "model", _MODEL_FILES, (ENCODER_FILE,))
    weights, reference = (tensors[name] for name in _MODEL_FILES)
    try:
        described = dict(document["network"])
        process = process_from(document["process"], reference).to(device)
        weights.update({name: weights[first] for name, first in document.get("aliases", {}).items()})
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected a model folder of this version, found: {error}") from error
    net = _own_network(path, described, network, allowed) if "class" in described else None
    try:
        if net is None:
            net = networks.build(described["name"], **described["config"])
        for name, tensor in net.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and name in weights and not name.endswith("_extra_state"):
                tensor.data = tensor.data.to(device, weights[name].dtype)
        net.to(device).load_state_dict(weights)
        score_net = ResidualScore(net, process, document["features"]) if document["residual"] else net
        meta = dict(document["meta"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: expected a model folder of this version, found: {error}") from error
    return score_net.eval(), process, meta


def _names(argument: str, value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"{argument}: expected names of packages or classes, found {value!r}")
    if wrong := [name for name in names if not all(part.isidentifier() for part in name.split("."))]:
        raise ValueError(f"{argument}: expected names of packages or classes, found {', '.join(map(repr, wrong))}")
    return tuple(names)


def _own_network(
    path: Path, described: Mapping[str, Any], given: Maker | Mapping[str, Maker] | None, allowed: tuple[str, ...]
) -> nn.Module:
    """Make a network of the user's own class, in the dtype that it had, its weights not yet loaded."""
    name = str(described["class"])
    if isinstance(given, Mapping):
        given = given.get(name, given.get(name.rpartition(".")[2]))
    make = _imported(path, name, allowed) if given is None else given
    config = described.get("config") if isinstance(make, type) else None
    try:
        net = make(**(config or {}))
    except TypeError as error:
        advice = "pass a function of no arguments that makes the network"
        if config is None:
            advice += ", or save it with an attribute `config`, a dict of its constructor's arguments"
        raise TypeError(
            f"network: expected {getattr(make, '__name__', make)} to take the stored config, {config}, found: {error}; "
            f"{advice}"
        ) from error
    _checks.instance("network", net, nn.Module, "it to make a torch.nn.Module")
    dtype = str(described.get("dtype"))
    if dtype in _CASTS and dtype != str(network_dtype(net)).removeprefix("torch."):
        getattr(net, _CASTS[dtype])()
    return net


def _imported(path: Path, name: str, allowed: tuple[str, ...]) -> Maker:
    """Return the class of networks of that name, if it may be imported."""
    if not any(name == given or name.startswith(f"{given}.") for given in allowed):
        importable = not name.startswith("__main__.") and "<locals>" not in name
        advice = f", or allow_import={name!r} to have it imported" if importable else ""
        raise ValueError(
            f"network: expected the class {name}, which {path} was saved from, found None; pass it{advice}"
        )
    try:
        found: Any = pkgutil.resolve_name(name)
    except (ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"allow_import: expected a class that can be imported, found {name!r} ({error})") from error
    _checks.instance("allow_import", found, type, "the name of a class")
    own = f"{found.__module__}.{found.__qualname__}"
    # By another's name a file could call what an allowed module imports, subprocess.Popen for one.
    if own != name or not issubclass(found, nn.Module):
        raise ValueError(f"allow_import: expected the own name of a class of networks, found {name!r} for {own}")
    return found  # type: ignore[no-any-return]


def process_parts(process: NoisingProcess) -> Parts:
    """Return a process as a JSON-able dict and named tensors; `process_from` rebuilds it."""
    if type(process) not in _PROCESSES:
        raise TypeError(f"process: expected a LangevinProcess or OUProcess, found {type(process).__name__}")
    assert isinstance(process, ReferenceProcess)
    reference = process.reference
    described: dict[str, Any] = {
        "type": type(process).__name__,
        "event_shape": list(process.event_shape),
        "covariance_type": reference.covariance_type,
    }
    tensors = {name: getattr(reference, name) for name in ("weights", "means", "covariances")}
    if isinstance(process, EDMProcess | FlowProcess):
        described["config"] = process.config
    else:
        assert isinstance(process, LangevinProcess)
        described["class_key"] = process.class_key
        described["sigma"] = None if callable(process.sigma) else float(process.sigma)
        tensors["times"] = process.times
        if callable(process.sigma):
            tensors["sigma"] = process.sigma_on_grid()
    if isinstance(process, EDMProcess):
        tensors["output_logs"] = process.output_logs
    if isinstance(process, EDMProcess | OUProcess):
        described["mixture"] = process.has_mixture
    if reference.ranges is not None:
        tensors["ranges"] = reference.ranges
    if process.class_weights is not None:
        tensors["class_weights"] = process.class_weights
    return described, tensors


def process_from(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ReferenceProcess:
    """Rebuild the process of `process_parts`; a stability warning given when it was first built is not repeated."""
    weights, means, covariances = (tensors[name] for name in ("weights", "means", "covariances"))
    kind, event_shape = described["covariance_type"], described["event_shape"]
    reference = GaussianMixture(
        weights, means, covariances, kind, event_shape=event_shape, ranges=tensors.get("ranges")
    )
    mixture = reference if described.get("mixture") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = _made(described, tensors, reference, mixture, event_shape)
    process.class_weights = tensors.get("class_weights")
    return process


def _made(
    described: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    reference: GaussianMixture,
    mixture: GaussianMixture | None,
    event_shape: Sequence[int],
) -> ReferenceProcess:
    """Make the process of a reference; `mixture` is the same, or None where the process is to make its own."""
    if described["type"] == "FlowProcess":
        return FlowProcess(reference, **described["config"])
    if described["type"] == "EDMProcess":
        # c_out was measured once: what is measured here is replaced, and may be of any point
        made = EDMProcess(
            *(reference.dim, mixture, reference.means[:1]), event_shape=event_shape, **described["config"]
        )
        made.output_logs = tensors["output_logs"]
        return made
    sigma, times = described["sigma"], tensors["times"]
    if sigma is None:
        sigma = TabulatedSigma(tuple(times[:-1].tolist()), tuple(tensors["sigma"].tolist()))
    if described["type"] == "OUProcess":
        return OUProcess(reference.dim, sigma=sigma, grid=times, event_shape=event_shape, reference=mixture)
    return LangevinProcess(reference, sigma=sigma, grid=times, class_key=described.get("class_key", "labels"))


def _encode(node: Any, tensors: dict[str, Tensor], argument: str, name: str) -> Any:
    """Return a tree of containers as JSON, its tensors moved to `tensors`; keys may be integers, unlike JSON's."""
    if isinstance(node, Tensor):
        tensors[name] = node
        return {"tensor": name}
    if isinstance(node, Mapping):
        pairs = [[key, _encode(value, tensors, argument, f"{name}.{key}")] for key, value in node.items()]
        return {"dict": pairs}
    if isinstance(node, list | tuple):
        items = [_encode(value, tensors, argument, f"{name}.{i}") for i, value in enumerate(node)]
        return {"tuple" if isinstance(node, tuple) else "list": items}
    if isinstance(node, float) and not math.isfinite(node):
        return {"float": str(node)}  # JSON has no such numbers
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"{argument}: expected tensors, numbers and containers, found {type(node).__name__} at {name}")


def _decode(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: _decode(value, tensors) for key, value in content}
    items = [_decode(value, tensors) for value in content]
    return tuple(items) if kind == "tuple" else items
