"""Results as rows of JSON: one line a run, keyed by its configuration, replaced atomically under a lock."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastndsm
from fastndsm.cli import diagnosis

Config = dict[str, Any]
Row = dict[str, Any]


def key(config: Config, version: int) -> str:
    """Return the key of a run: a hash of its configuration and the version of its experiment's code."""
    text = json.dumps({"config": config, "version": version}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Store:
    """Rows in folder/NAME.jsonl and a few samples of each run in folder/samples/KEY.npz."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)

    def read(self, name: str) -> dict[str, Row]:
        """Return the rows of an experiment by key."""
        path = self.folder / f"{name}.jsonl"
        if not path.is_file():
            return {}
        return {row["key"]: row for row in map(json.loads, path.read_text().splitlines())}

    def add(self, name: str, config: Config, version: int, result: dict[str, Any], samples: Tensor | None) -> None:
        """Append the row, or replace that of the same key."""
        identity = key(config, version)
        row = {
            "key": identity,
            "config": config,
            "result": {k: _rounded(v) for k, v in result.items()},
            "version": version,
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "machine": f"{diagnosis.machine()['processor']}, {torch.get_num_threads()} thread",
            "torch": torch.__version__,
            "fastndsm": fastndsm.__version__,
        }
        self.keep(identity, samples)
        with self._locked():
            rows = self.read(name) | {identity: row}
            path = self.folder / f"{name}.jsonl"
            part = path.with_suffix(".part")
            part.write_text("".join(json.dumps(r) + "\n" for r in rows.values()))
            os.replace(part, path)

    def keep(self, identity: str, samples: Tensor | None) -> None:
        """Keep the samples of a run, if it gave any."""
        if samples is not None:
            np.savez_compressed(self.folder / "samples" / f"{identity}.npz", x=samples.numpy().astype(np.float16))

    def samples(self, identity: str) -> Tensor | None:
        """Return the samples kept of a run, if any were."""
        path = self.folder / "samples" / f"{identity}.npz"
        return torch.from_numpy(np.load(path)["x"].astype(np.float32)) if path.is_file() else None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
