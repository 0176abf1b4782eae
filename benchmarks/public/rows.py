"""The rows of a public comparison: a file with one a line, each with its date and with what it was measured."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from ..record import versions


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows that were measured."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def add(path: Path, row: dict[str, Any], packages: Sequence[str]) -> None:
    """Write one more, with the versions of those packages that are installed."""
    row = row | {"date": date.today().isoformat(), "versions": versions(packages), "machine": platform.machine()}
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
