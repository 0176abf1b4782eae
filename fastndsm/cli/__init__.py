"""The command line: fastndsm train | sample | evaluate | compare | doctor | build."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from functools import partial

from .._version import __version__
from ..backends import registry
from ..jit.cache import BuildError
from . import _build, _compare, _doctor, _evaluate, _options, _sample, _train

__all__ = ["main", "parser"]

COMMANDS = (_train, _sample, _evaluate, _compare, _doctor, _build)


def parser() -> _options.Parser:
    """Return the parser of all commands."""
    top = _options.Parser(
        prog="fastndsm",
        description="Nonlinear denoising score matching: train, sample and judge score models.",
        epilog=f"a first run:\n  {_train.EXAMPLE}\n  {_sample.EXAMPLE}\n\ndata of your own: docs/start.md",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"fastndsm {__version__}")
    top.add_argument("--traceback", action="store_true", help="show where an error arose")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        made = commands.add_parser(
            command.NAME,
            help=command.PURPOSE,
            description=command.PURPOSE,
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(made)
        made.set_defaults(run=command.run, spoken=partial(_options.spoken, options=made.options()))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its status: 0, 1 (failed run or check), 2 (bad input), 130 (interrupted)."""
    arguments = parser().parse_args(argv)

    def fail(error: BaseException, status: int) -> int:
        if arguments.traceback:
            raise error
        message = arguments.spoken(" ".join(str(error).split())) or type(error).__name__
        print(f"fastndsm {arguments.command}: error: {message}", file=sys.stderr)
        return status

    def show_warning(message: Warning | str, *_: object, **__: object) -> None:
        print(f"warning: {arguments.spoken(' '.join(str(message).split()))}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            return int(arguments.run(arguments))
        except FloatingPointError as error:
            return fail(error, 1)
        except (ValueError, TypeError, OSError, ImportError, registry.BackendError, BuildError) as error:
            return fail(error, 2)
        except KeyboardInterrupt:
            again = "; continue with --resume" if arguments.command == "train" else ""
            print(f"\nfastndsm {arguments.command}: interrupted{again}", file=sys.stderr)
            return 130
