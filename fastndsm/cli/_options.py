"""The library's messages in the words of the command line: its options in place of arguments' names."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping

__all__ = ["Parser", "spoken"]

# The library's names of what an option gives, where they are not the option's own.
_ALIASES = {
    "n_components": "components",
    "covariance_type": "covariance",
    "source": "data",
    "path": "data",
    "n": "n_train",
    "horizon": "T",
    "n_evaluations": "evaluations",
    "dim": "latent_dim",
    "condition": "label",
    "loggers": "logger",
}
_NO_WORDS = ("T", "sigma", "lr", "ema")  # names without an underscore that are no words of a sentence either
_LEAD = re.compile(r"[A-Za-z]\w*(?:, [A-Za-z]\w*)*(?=: )")


class Parser(argparse.ArgumentParser):
    """A parser that knows which of its options gives an argument of the library."""

    def options(self) -> dict[str, str]:
        """Return the option for each of the library's names."""
        own = {action.dest: action.option_strings[0] for action in self._actions if action.option_strings}
        return {**{name: own[dest] for name, dest in _ALIASES.items() if dest in own}, **own}


def spoken(message: str, options: Mapping[str, str]) -> str:
    """Return the message with options for arguments' names: for any at its head, elsewhere where they are no words."""
    lead = _LEAD.match(message)
    end = lead.end() if lead else 0
    head = ", ".join(options.get(name, name) for name in message[:end].split(", "))
    names = sorted((name for name in options if "_" in name or name in _NO_WORDS), key=len, reverse=True)
    if not names:
        return head + message[end:]
    # Not in quotes, paths, calls and equations.
    anywhere = re.compile(rf"(?<![\w./'\"-])({'|'.join(names)})(?:=([\w.+-]*\w))?(?![\w/'\"(^]|\.\w| =)")

    def option(found: re.Match[str]) -> str:
        return options[found[1]] + ("" if found[2] is None else f" {found[2]}")

    return head + anywhere.sub(option, message[end:])
