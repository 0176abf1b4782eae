"""Findings of a section, one line of JSON each as it is found: a section that is killed keeps what it had."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..rows import Row


@dataclass
class Check:
    """A comparison, or something else that has to hold."""

    op: str
    case: str
    found: str
    passed: bool


class Log:
    """The lines of a section."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds, self.end = path, seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds until this section is killed."""
        return self.end - time.monotonic()

    def write(self, kind: str, value: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "value": value}) + "\n")

    def check(self, check: Check) -> None:
        self.write("check", asdict(check))

    def row(self, row: Row) -> None:
        self.write("row", asdict(row))

    def attempt(self, name: str, run: Callable[[], Any]) -> Any:
        """Call run(); what it raises is a failure of this section, and not its end."""
        try:
            return run()
        except Exception as error:
            self.write("failure", f"{name}: {type(error).__name__}: {error}"[:1000])
            traceback.print_exc()
            return None


def read(path: Path) -> dict[str, list[Any]]:
    """Return the lines of a section by kind."""
    found: dict[str, list[Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # cut off when the section was killed
            continue
        found.setdefault(entry["kind"], []).append(entry["value"])
    return found
