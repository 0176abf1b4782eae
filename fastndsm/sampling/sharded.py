"""Sampling on several ranks: the samples of one process, bit for bit, for any number of ranks.

Batches are cut at the same rows for any number of ranks, and a rank makes whole ones: what is in a batch together
decides the last bit of a matrix product, and nothing else of a sample does.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _checks
from .._condition import Condition, checked, rows_of
from .._ranks import agreed, gathered, on_rank_zero, rank_and_world
from ..objective import ScoreNet
from ..process import NoisingProcess
from .sampler import sample

BATCH = 1024


class _Run(NamedTuple):
    """A checked call: what each batch needs, and what its samples depend on, by name."""

    n: int
    batch_size: int
    first_path: int
    seed: int
    condition: Condition | None
    start: tuple[Tensor, float] | None
    x_T: Tensor | None
    rank: int
    world: int
    alone: bool
    identity: dict[str, Any]

    def batches(self, rank: int) -> list[slice]:
        """Return the rows of each batch of a rank, in order."""
        count = -(-self.n // self.batch_size)
        numbers = range(rank * count // self.world, (rank + 1) * count // self.world)
        return [slice(i * self.batch_size, min((i + 1) * self.batch_size, self.n)) for i in numbers]

    def options(self, rows: slice) -> dict[str, Any]:
        """Return what `sample` takes for these rows."""
        return {
            "seed": self.seed,
            "first_path": self.first_path + rows.start,
            "condition": rows_of(self.condition, rows),
            "start": (self.start[0][rows], self.start[1]) if isinstance(self.start, tuple | list) else self.start,
            "x_T": None if self.x_T is None else self.x_T[rows],
        }


def sample_sharded(
    score_net: ScoreNet,
    process: NoisingProcess,
    n: int,
    method: str = "sde",
    *,
    batch_size: int = BATCH,
    seed: int | Tensor | None = None,
    first_path: int = 0,
    condition: Condition | None = None,
    start: tuple[Tensor, float] | None = None,
    x_T: Tensor | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Draw n samples [n, *event_shape] on all ranks together; each gets all: those of `sample`, bit for bit.

    On one rank, and on any number, they are what `sample` gives with this batch_size on one process of one machine's
    kind. All ranks of the process group must call it, with the same arguments.

    Args:
        score_net, process, n, method, first_path: as for `sample`; a network that fully_shard has divided is to be put
            together first.
        batch_size: samples that a rank holds at once: n / batch_size batches are dealt out.
        seed: default one of rank 0's generator.
        condition, start, x_T: as for `sample`, of all n samples on every rank.
        rank, world_size: without a process group: which of how many, to get the rows of that rank's batches alone;
            those of all ranks, one after the other, are the samples.
        options: of `sample`, but `trajectory`. A guide gets a batch.
    """
    if seed is None and rank is not None and world_size is not None:
        raise ValueError("seed: expected an integer with rank and world_size, found None")
    run = _checked(score_net, process, n, method, batch_size, seed, first_path, condition, start, x_T, options)
    run = _placed(run, rank, world_size)
    parts: list[Tensor] = []
    with _failing_together(run):
        parts = [sample(score_net, process, r.stop - r.start, method, **run.options(r), **options) for r in _own(run)]
    if run.alone:
        return torch.cat(parts) if parts else torch.empty(0, *process.event_shape, device=process.times.device)
    described = next(d for d in gathered(_described(parts)) if d is not None)
    made = torch.empty(run.n, *described[1], dtype=described[0], device=process.times.device)
    for source in range(run.world):
        rows = run.batches(source)
        if rows:
            whole = made[rows[0].start : rows[-1].stop]
            if source == run.rank:
                torch.cat(parts, out=whole)
            if run.world > 1:
                torch.distributed.broadcast(whole, source)
    return made


def write_samples(
    directory: str | Path,
    score_net: ScoreNet,
    process: NoisingProcess,
    n: int,
    method: str = "sde",
    *,
    seed: int,
    batch_size: int = BATCH,
    first_path: int = 0,
    condition: Condition | None = None,
    start: tuple[Tensor, float] | None = None,
    x_T: Tensor | None = None,
    rank: int | None = None,
    world_size: int | None = None,
    **options: Any,
) -> list[Path]:
    """Write the samples of `sample_sharded`, a safetensors file a batch; return the files, in order of their rows.

    A batch that is there already is not made again: a call that was killed is repeated, on any number of ranks. Files
    are whole or not there at all. `read_samples` puts them together.

    Args:
        directory: where the files go; one that all ranks see.
        seed: as it has to be the same when the call is repeated.
        rank, world_size: without a process group, as in an array of jobs: which of how many; returns that rank's files.

    Raises:
        ValueError: if a file there is of another call, naming what differs.
    """
    seed = _checks.index("seed", seed)
    run = _checked(score_net, process, n, method, batch_size, seed, first_path, condition, start, x_T, options)
    run = _placed(run, rank, world_size)
    directory = Path(directory)
    with _failing_together(run):
        directory.mkdir(parents=True, exist_ok=True)
        for rows in _own(run):
            path = _file(directory, rows)
            if path.exists():
                _check_identity(path, run.identity)
            else:
                _write(
                    path,
                    sample(score_net, process, rows.stop - rows.start, method, **run.options(rows), **options),
                    run,
                )
    ranks = [run.rank] if run.alone else range(run.world)
    return [_file(directory, rows) for rank in ranks for rows in run.batches(rank)]


def read_samples(directory: str | Path) -> Tensor:
    """Return all samples [n, *event_shape] that `write_samples` wrote to a folder, on the CPU.

    Raises:
        ValueError: if there are none, if files are missing, or of several calls, naming them.
    """
    from safetensors.torch import load_file

    directory = Path(directory)
    paths = sorted(directory.glob("samples-*.safetensors"))
    if not paths:
        raise ValueError(f"directory: expected a folder that write_samples wrote to, found no samples in {directory}")
    identity = _identity(paths[0])
    n, size = int(identity["n"]), int(identity["batch_size"])
    expected = [_file(directory, slice(i, min(i + size, n))) for i in range(0, n, size)]
    if missing := [path.name for path in expected if path not in paths]:
        found = f"{len(missing)} missing, first {missing[0]}"
        raise ValueError(f"directory: expected {len(expected)} files of samples in {directory}, found {found}")
    for path in paths:
        _check_identity(path, identity)
    return torch.cat([load_file(path)["x"] for path in expected])


def _checked(
    score_net: Any,
    process: Any,
    n: Any,
    method: Any,
    batch_size: Any,
    seed: Any,
    first_path: Any,
    condition: Any,
    start: Any,
    x_T: Any,
    options: dict[str, Any],
) -> _Run:
    """Check what `sample` would see of a batch alone; the rest it checks itself."""
    _checks.network("score_net", score_net)
    _checks.instance("process", process, NoisingProcess, "a noising process")
    if isinstance(score_net, nn.Module) and any(hasattr(p, "full_tensor") for p in score_net.parameters()):
        raise TypeError("score_net: expected whole parameters, found those that fully_shard has divided; gather them")
    if options.get("trajectory") is not None:
        raise ValueError("trajectory: expected None on several ranks, found a number; give a callback")
    n, batch_size = _checks.count("n", n), _checks.count("batch_size", batch_size)
    if condition is not None:
        checked("condition", condition, n)
    for name, x in (("start", start[0] if isinstance(start, tuple | list) and start else None), ("x_T", x_T)):
        if isinstance(x, Tensor) and len(x) != n:
            raise ValueError(f"{name}: expected {n} rows, one for each sample, found shape {tuple(x.shape)}")
    key = int(_checks.seed(seed))
    key = on_rank_zero(lambda: key) if seed is None else key
    first_path = _checks.first_path(first_path)
    identity = {"n": n, "batch_size": batch_size, "seed": key, "first_path": first_path, "method": str(method)}
    identity |= {
        name: str(value) for name, value in options.items() if isinstance(value, str | int | float | torch.dtype)
    }
    given = {"score_net": score_net, "process": process, "condition": condition, "start": start, "x_T": x_T}
    identity |= {name: _digest(value) for name, value in given.items()}
    return _Run(n, batch_size, first_path, key, condition, start, x_T, 0, 1, False, identity)


def _placed(run: _Run, rank: int | None, world_size: int | None) -> _Run:
    """Return the run as this rank's."""
    if rank is None and world_size is None:
        agreed("sample", run.identity)
        own, world = rank_and_world()
        return run._replace(rank=own, world=world)
    if rank is None or world_size is None:
        raise ValueError(f"rank, world_size: expected both or neither, found {rank} and {world_size}")
    world = _checks.count("world_size", world_size)
    own = _checks.count("rank", rank, 0)
    if own >= world:
        raise ValueError(f"rank: expected one below world_size = {world}, found {own}")
    return run._replace(rank=own, world=world, alone=True)


def _own(run: _Run) -> list[slice]:
    return run.batches(run.rank)


@contextlib.contextmanager
def _failing_together(run: _Run) -> Iterator[None]:
    """Wait for all ranks at the end, and raise everywhere what one of them raised."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if not run.alone:
        texts = gathered(None if error is None else f"{type(error).__name__}: {error}")
        for rank, text in enumerate(texts):
            if error is None and text is not None:
                raise RuntimeError(f"sample: rank {rank} failed: {text}")
    if error is not None:
        raise error


def _described(parts: list[Tensor]) -> tuple[torch.dtype, tuple[int, ...]] | None:
    return (parts[0].dtype, tuple(parts[0].shape[1:])) if parts else None


def _digest(value: Any) -> Any:
    """Return what tells a module's tensors, a condition or a start from another, JSON-able; None of a callable."""
    from ..training.storage import tensor_digest

    if isinstance(value, nn.Module):
        return tensor_digest(*(t for t in value.state_dict().values() if isinstance(t, Tensor)))
    if isinstance(value, Mapping):
        return {name: _digest(part) for name, part in sorted(value.items())}
    if isinstance(value, tuple | list):
        return [_digest(part) for part in value]
    if isinstance(value, Tensor):
        return tensor_digest(value)
    return value if isinstance(value, int | float) else None


def _file(directory: Path, rows: slice) -> Path:
    return directory / f"samples-{rows.start:09d}-{rows.stop:09d}.safetensors"


def _write(path: Path, x: Tensor, run: _Run) -> None:
    from safetensors.torch import save_file

    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        save_file({"x": x.cpu().contiguous()}, temporary, {"run": json.dumps(run.identity)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _identity(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return dict(json.loads(file.metadata()["run"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"directory: expected files of write_samples, found {path} ({error!r})") from error


def _check_identity(path: Path, identity: dict[str, Any]) -> None:
    found = _identity(path)
    for name in {**identity, **found}:
        if identity.get(name) != found.get(name):
            raise ValueError(
                f"directory: expected samples of one call, found {path.name} of another, with {name} = "
                f"{found.get(name)} in place of {identity.get(name)}; give an empty folder"
            )
