"""fastndsm build: compile the C++ kernels."""

from __future__ import annotations

import argparse

from .. import _jit

NAME = "build"
PURPOSE = "Compile the C++ kernels now, instead of on first use."
EXAMPLE = "fastndsm build --verbose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--verbose", action="store_true", help="show the compiler's output")


def run(arguments: argparse.Namespace) -> int:
    """Build and print where the library lies."""
    print(_jit.build(verbose=arguments.verbose))
    return 0
