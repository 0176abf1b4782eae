"""What several commands share: where to run, how to find a model and its data."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import data
from ..backends import registry
from ..process import LangevinProcess
from ..sampling.sampler import sample
from ..training.checkpoint import load_model

SAMPLE_ROWS = 1000  # samples held at once unless told otherwise


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """--device, --backend, --threads, --no-progress."""
    group = parser.add_argument_group("where to run")
    group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default cuda if there is one")
    group.add_argument("--backend", default="auto", choices=registry.NAMES, help="which kernels; default auto")
    group.add_argument("--threads", type=int, help="CPU threads; default torch's")
    group.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")


def add_sampling_options(parser: argparse.ArgumentParser, n: int) -> None:
    """MODEL, --n, --method, --seed, --batch-size."""
    parser.add_argument("model", metavar="MODEL", help="folder of a run, or of its model")
    parser.add_argument("--n", type=int, default=n, help=f"number of samples; default {n}")
    parser.add_argument(
        "--method",
        default="sde",
        choices=("sde", "ode"),
        help="reverse SDE, or probability flow; default sde",
    )
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--batch-size", type=int, default=SAMPLE_ROWS, help=f"default {SAMPLE_ROWS}")


def set_threads(threads: int | None) -> None:
    """Torch's CPU threads, if a number is given."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads: expected a positive number, found {threads}")
        torch.set_num_threads(threads)


@contextlib.contextmanager
def running(arguments: argparse.Namespace) -> Iterator[torch.device]:
    """Sets threads and backend for a command, and gives its device."""
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
    """The model folder itself, or that of a run."""
    given = Path(path)
    inner = given / "model"
    return inner if not (given / "model.json").is_file() and (inner / "model.json").is_file() else given


def load(arguments: argparse.Namespace, device: torch.device) -> tuple[nn.Module, LangevinProcess, dict[str, Any]]:
    """The model of the command line."""
    return load_model(find_model(arguments.model), device)


def draw(
    score_net: nn.Module, process: LangevinProcess, n: int, arguments: argparse.Namespace, **options: Any
) -> Tensor:
    """Samples [n, *event] on the CPU."""
    return sample(score_net, process, n, progress=arguments.progress, **options).cpu()


def load_data(name: str, n_train: int | None) -> data.Dataset:
    """A data set, with the number of training samples where it can be chosen."""
    if n_train is None:
        return data.load(name)
    if name not in ("four_modes", "ring", "moons", "mnist"):
        raise ValueError(f"--n-train: expected with four_modes, ring, moons or mnist, found {name!r}")
    return data.load(name, n=n_train)
