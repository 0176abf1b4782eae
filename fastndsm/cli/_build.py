"""fastndsm build: compile the C++ kernels and, where that can be done, the CUDA kernels."""

from __future__ import annotations

import argparse
import sys

from ..jit import core, cuda
from ..jit.cache import BuildError

NAME = "build"
PURPOSE = "Compile the C++ kernels now, instead of on first use, and the CUDA kernels where there is a GPU."
EXAMPLE = "fastndsm build --verbose"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--cuda",
        nargs="?",
        const="",
        metavar="80,90",
        help="fail if the CUDA kernels cannot be built; for these compute capabilities, default those of the GPUs here",
    )
    parser.add_argument("--verbose", action="store_true", help="show the compiler's output")


def run(arguments: argparse.Namespace) -> int:
    """Build, and print where the libraries lie."""
    # a library each: on first use it is looked for by the capability of the GPU there
    each: list[tuple[int, ...] | None] = [(architecture,) for architecture in _architectures(arguments.cuda)]
    print(core.build(verbose=arguments.verbose))
    try:
        for architectures in each or [None]:
            print(cuda.build(architectures, arguments.verbose))
    except BuildError as error:
        if arguments.cuda is not None:
            raise BuildError(f"the CUDA kernels cannot be built: {error}") from error
        print(f"the CUDA kernels are not built: {str(error).splitlines()[0]}", file=sys.stderr)
    return 0


def _architectures(named: str | None) -> list[int]:
    words = named.split(",") if named else []
    if not all(word.isdecimal() and int(word) >= cuda.OLDEST for word in words):
        raise ValueError(f"--cuda: expected compute capabilities from {cuda.OLDEST} on, as 80,90, found {named!r}")
    return [int(word) for word in words]
