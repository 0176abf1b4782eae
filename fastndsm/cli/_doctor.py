"""fastndsm doctor: versions, devices and backends of this machine."""

from __future__ import annotations

import argparse
import json

from ..jit import drift
from .diagnosis import diagnose, format_diagnosis

NAME = "doctor"
PURPOSE = "Print versions, devices, and each backend or the reason why it cannot serve."
EXAMPLE = "fastndsm doctor --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--sources", action="store_true", help="print the generated code of compiled drifts instead, the newest first"
    )


def run(arguments: argparse.Namespace) -> int:
    """Diagnose and print."""
    if arguments.sources:
        for path in drift.generated():
            print(f"// {path}\n{path.read_text()}")
        return 0
    found = diagnose()
    print(json.dumps(found) if arguments.json else format_diagnosis(found))
    return 0
