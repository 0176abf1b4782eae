"""Parts that several commands share: options of a run, the model and its units, the data."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import _checks, data, latent
from .._scheme import PREDICTIONS
from ..backends import registry
from ..process import ReferenceProcess
from ..sampling.sampler import sample
from ..training import checkpoint
from .report import Evaluation

SAMPLE_ROWS = 1000  # samples held at once unless told otherwise
JUDGED = 1000  # held-out samples that an encoder is judged by


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add --device, --backend, --threads and --no-progress."""
    group = parser.add_argument_group("where to run")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default cuda if there is one")
    group.add_argument("--backend", default="auto", choices=registry.NAMES, help="which kernels; default auto")
    group.add_argument("--threads", type=int, help="CPU threads; default torch's")
    group.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")


def add_sampling_options(parser: argparse.ArgumentParser, n: int) -> None:
    """Add MODEL, --n, what `fastndsm.sample` takes, --guidance among it, --seed and --batch-size."""
    parser.add_argument("model", metavar="MODEL", help="folder of a run, or of its model")
    parser.add_argument("--n", type=int, default=n, help=f"number of samples; default {n}")
    parser.add_argument(
        "--method",
        choices=("sde", "ode"),
        help="reverse SDE, or probability flow; default sde, of a flow ode",
    )
    parser.add_argument("--evaluations", type=int, help="of the network for each sample; default 10, at most --n-steps")
    parser.add_argument("--order", type=int, default=2, choices=(1, 2), help="of the method; default 2")
    parser.add_argument(
        "--prediction",
        default="auto",
        choices=("auto", *PREDICTIONS),
        help="what of the network is held between evaluations; default auto",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        help="weight of the class, of a model trained with --labels: 0 is without, default 1, more stresses it",
    )
    parser.add_argument(
        "--allow-import",
        nargs="+",
        default=(),
        metavar="PACKAGE",
        help="of a model with a network of your own: what its class may be imported from, which runs the code there",
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--batch-size", type=int, default=SAMPLE_ROWS, help=f"default {SAMPLE_ROWS}")


def sampling_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_sampling_options` gave for `fastndsm.sample`."""
    names = {"n_evaluations": "evaluations"} | {n: n for n in ("method", "order", "prediction", "seed", "batch_size")}
    return {name: getattr(arguments, option) for name, option in names.items()}


def classes_of(dataset: data.Dataset) -> dict[str, Any]:
    """Return names and shares of a data set's classes, JSON-able, as a model trained on its labels stores them."""
    assert dataset.class_weights is not None
    names = dataset.label_names or tuple(map(str, range(dataset.n_classes)))
    return {"names": list(names), "weights": dataset.class_weights.tolist()}


def conditions(
    classes: Mapping[str, Any] | None, n: int, seed: int, guidance: float | None = None, named: Sequence[str] = ()
) -> dict[str, Any]:
    """Return condition and guidance of n samples for `fastndsm.sample`; none for a model without classes.

    Labels are those named, in turn, or else all, in the shares of the training data and an order of the seed's.
    """
    if classes is None:
        for option, value in (("--label", named), ("--guidance", guidance)):
            if value not in (None, (), []):
                raise ValueError(f"{option}: expected a model trained with --labels, found one without")
        return {}
    names = classes["names"]
    if unknown := [name for name in named if name not in names]:
        raise ValueError(f"--label: expected among {', '.join(names)}, found {', '.join(unknown)}")
    if named:
        given = torch.tensor([names.index(name) for name in named], device="cpu")
        labels = given[torch.arange(n, device="cpu") % len(given)]
    else:
        shares = torch.tensor(classes["weights"], dtype=torch.float64, device="cpu").cumsum(0)
        middles = (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) / n
        labels = torch.searchsorted(shares, middles).clamp(max=len(names) - 1)
        generator = torch.Generator("cpu").manual_seed(int(_checks.seed(seed)))
        labels = labels[torch.randperm(n, generator=generator, device="cpu")]
    return {"condition": labels} if guidance is None else {"condition": labels, "guidance": guidance}


def set_threads(threads: int | None) -> None:
    """Set the number of torch's CPU threads, if one is given."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads: expected a positive number, found {threads}")
        torch.set_num_threads(threads)


@contextlib.contextmanager
def running(arguments: argparse.Namespace) -> Iterator[torch.device]:
    """Set threads and backend for a command, and give its device."""
    set_threads(arguments.threads)
    name = arguments.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: expected a device that torch can use, found {name!r} ({error})") from error
    with registry.use_backend(arguments.backend):
        yield device


def find_model(path: str) -> Path:
    """Return the model folder: the path itself, or the run's."""
    given = Path(path)
    inner = given / "model"
    return inner if not checkpoint.is_model(given) and checkpoint.is_model(inner) else given


@dataclass(frozen=True)
class Units:
    """An encoder: from the data to what network, mixture and process see, and back into the data's dtype."""

    encoder: latent.Coordinates
    dtype: torch.dtype

    @classmethod
    def of(cls, dataset: data.Dataset, kind: str, dim: int | None = None, seed: int = 0) -> Units:
        """Return the units of a data set: by one of ENCODERS, of dim values; seed is that of a training."""
        x = dataset.train
        if kind == "none":
            return cls(_unchanged(dataset.event_shape), x.dtype)
        if kind == "standardizer":
            return cls(data.Standardizer.fit(x), x.dtype)
        assert dim is not None
        flat = x.to(torch.promote_types(x.dtype, torch.float32))
        made = latent.PCA.fit(flat, dim) if kind == "pca" else latent.Autoencoder.fit(flat, dim, seed=seed)
        return cls(made, x.dtype)

    @classmethod
    def from_stored(
        cls, units: Mapping[str, Any] | None, encoder: checkpoint.Parts | None, event_shape: tuple[int, ...]
    ) -> Units:
        """Return the units that `units` and `encoder` described; None, None: the data's own, as in models of before.

        A model with an encoder alone is none of the command line's.
        """
        if units is None and encoder is None:
            return cls(_unchanged(event_shape), torch.float32)
        dtype = torch.float32 if units is None else getattr(torch, units["dtype"])
        made = latent.encoder_from(*encoder) if encoder is not None else data.Standardizer.from_dict(units or {})
        return cls(made, dtype)

    def to_dict(self) -> dict[str, Any]:
        """Return the values that define the dtype and a standardizer, JSON-able."""
        values = self.encoder.to_dict() if isinstance(self.encoder, data.Standardizer) else {}
        return {**values, "dtype": str(self.dtype).removeprefix("torch.")}

    def encoder_parts(self) -> checkpoint.Parts | None:
        """Return the parts of an encoder to a latent space, if it is one."""
        return None if isinstance(self.encoder, data.Standardizer) else latent.encoder_parts(self.encoder)

    @property
    def dim(self) -> int:
        """Values of a sample of the data."""
        return math.prod(self.encoder.event_shape)

    def kept(self, x: Tensor) -> float:
        """Return the share of the variance of x [n, *event] that passes through the encoder and back."""
        x = x[:JUDGED].cpu()
        lost = self.outer(self.inner(x)).double() - x.double()
        return 1.0 - float(lost.square().mean() / (x.double() - x.double().mean(0)).square().mean())

    def inner(self, x: Tensor) -> Tensor:
        """Return data as the network sees them, floating point."""
        return self.encoder.encode(x.to(torch.promote_types(x.dtype, torch.float32)))

    def outer(self, z: Tensor) -> Tensor:
        """Return draws on the CPU in the data's units."""
        if isinstance(self.encoder, latent.Encoder):
            return self.encoder.decode(z.cpu().float()).to(self.dtype)
        return self.encoder.decode(z.cpu().to(self.dtype))


def _unchanged(event_shape: tuple[int, ...]) -> data.Standardizer:
    return data.Standardizer([0.0], [1.0], event_shape)


def load(
    arguments: argparse.Namespace, device: torch.device
) -> tuple[nn.Module, ReferenceProcess, Units, dict[str, Any]]:
    """Load the model of the command line; return network, process, units, and the metadata stored with it."""
    path = find_model(arguments.model)
    score_net, process, meta = checkpoint.load_model(path, device, allow_import=arguments.allow_import)
    units = Units.from_stored(meta.get("units"), checkpoint.load_encoder(path), process.event_shape)
    return score_net, process, units, meta


def draw(
    score_net: nn.Module,
    process: ReferenceProcess,
    units: Units,
    n: int,
    arguments: argparse.Namespace,
    **options: Any,
) -> Tensor:
    """Draw samples [n, *event], or a trajectory of them, on the CPU in the data's units."""
    if "condition" in options:
        options["condition"] = options["condition"].to(process.times.device)
    drawn = sample(score_net, process, n, progress=arguments.progress, **options)
    made = units.outer(drawn.reshape(-1, *process.event_shape))
    return made.reshape(*drawn.shape[: -len(process.event_shape)], *made.shape[1:])


def draw_reference(process: ReferenceProcess, units: Units, n: int, seed: int) -> Tensor:
    """Draw [n, *event] from the reference, on the CPU in the data's units, with the seed after that of the samples."""
    return units.outer(process.reference.sample(n, seed=_checks.seed(seed) + 1).to(units.dtype))


def absolute(name: str) -> str:
    """Return the name of a data set, or its file's path from the root, which holds in every folder."""
    return name if name in data.NAMES or not Path(name).suffix else os.path.abspath(name)


def load_data(
    name: str,
    n_train: int | None = None,
    layout: str = "auto",
    label_column: str | None = None,
    labels: str | None = None,
) -> data.Dataset:
    """Load a data set, with the number of training samples where it can be chosen; labels: "auto", or a file's name."""
    options: dict[str, Any] = {}
    if n_train is not None:
        if name not in ("four_modes", "ring", "moons", "mnist"):
            raise ValueError(f"--n-train: expected with four_modes, ring, moons or mnist, found {name!r}")
        options["n"] = n_train
    given = {"layout": layout, "label_column": label_column, "labels": None if labels == "auto" else labels}
    for option, value in given.items():
        if value not in (None, "auto"):
            if name in data.NAMES:
                raise ValueError(f"{option}: expected with a file, found {name!r}")
            options[option] = _read_labels(value) if option == "labels" else value
    return data.load(name, **options)


def _read_labels(path: str) -> np.ndarray[Any, Any]:
    """Read labels [n] from a .npy file, or from a text file with one a line."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--labels: expected auto or a file, found none at {path}")
    if Path(path).suffix == ".npy":
        try:
            return np.asarray(np.load(path, allow_pickle=False))
        except (EOFError, OSError, ValueError) as error:
            raise ValueError(f"--labels: expected a plain array in {path}, found: {error}") from error
    return np.array([line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()])


def verdict(evaluation: Evaluation, arguments: argparse.Namespace) -> int:
    """Warn if the samples are worse than draws from the reference; return the status, which with --strict is then 1."""
    if not evaluation.worse:
        return 0
    print(f"warning: {arguments.spoken(evaluation.worse)}{_checks.cure('worse-than-the-reference')}", file=sys.stderr)
    return int(arguments.strict)
