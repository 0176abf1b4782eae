"""The rows of a public comparison: a file with one a line, each with its date and with what it was measured."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from ..record import versions


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows that were measured."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def add(path: Path, row: dict[str, Any], packages: Sequence[str]) -> None:
    """Write one more, with the versions of those packages that are installed."""
    row = row | {"date": date.today().isoformat(), "versions": versions(packages), "machine": platform.machine()}
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def complete(
    path: Path,
    parts: Sequence[str],
    runs: Iterable[tuple[Any, ...]],
    perform: Callable[..., dict[str, Any]],
    packages: Sequence[str],
    told: Callable[[dict[str, Any]], Sequence[Any]],
) -> None:
    """Perform the runs that have no row yet, in one thread, and write each as soon as it is done.

    parts: the keys of a row that are a run. told: what is printed of a row, beside the run and its seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    done = {tuple(row[part] for part in parts) for row in read(path)}
    for run in runs:
        if run not in done:
            row = perform(*run)
            add(path, row, packages)
            print(*run, *told(row), row["seconds"], flush=True)


def publish(path: Path, page: str) -> None:
    """Write the page, and print it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    print(page)
