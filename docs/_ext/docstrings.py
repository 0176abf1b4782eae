"""Docstrings of the library as reStructuredText: sections become lists, indented lines stay as they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

SECTION = re.compile(r"(Args|Attributes|Returns|Raises|Yields|Example):$")
ENTRY = re.compile(r"(?P<name>[^:`]+(?:`[^`]*`[^:`]*)*): (?P<text>.*)")
CODE = re.compile(r"(``.+?``|`[^`]+`)")
COLUMNS = re.compile(r"\S {3,}\S")


def indent_of(line: str) -> int:
    """Return the number of spaces that a line begins with."""
    return len(line) - len(line.lstrip())


def escaped(text: str) -> str:
    """Return text whose stars, bars and underscores mean themselves; what stands in backticks is code."""
    parts = CODE.split(text)
    return "".join(part if i % 2 else re.sub(r"([\\*|]|_(?!\w))", r"\\\1", part) for i, part in enumerate(parts))


def paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Yield runs of lines; a heading of a section takes the lines below it along."""
    run: list[str] = []
    heading = False
    for line in [*lines, ""]:
        inside = heading and (not line.strip() or indent_of(line) > 0)
        if inside or (line.strip() and not (run and SECTION.match(line))):
            run.append(line)
            heading = heading or bool(SECTION.match(line))
            continue
        if run:
            yield run
        run, heading = ([line], True) if line.strip() else ([], False)
    if run:
        yield run


def section(title: str, lines: list[str]) -> Iterator[str]:
    """Yield a section as a list of its entries."""
    filled = [line for line in lines if line.strip()]
    least = min(map(indent_of, filled), default=0)
    yield from (f"**{title}**", "")
    for line in lines:
        entry = ENTRY.fullmatch(line.strip()) if line.strip() and indent_of(line) == least else None
        if entry:
            yield from ("", f"- *{escaped(entry['name'])}* — {escaped(entry['text'])}")
        elif line.strip():
            yield f"  {escaped(line.strip())}"
    yield ""


def converted(lines: list[str]) -> Iterator[str]:
    """Yield a docstring in reStructuredText."""
    for run in paragraphs(lines):
        if SECTION.match(run[0]):
            yield from section(run[0].rstrip(":"), run[1:])
        elif indent_of(run[0]) or sum(bool(COLUMNS.search(line)) for line in run) > 1:
            yield from (".. code-block:: text", "", *(f"   {line}" for line in run), "")
        else:
            yield from (*map(escaped, run), "")


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Convert a docstring in place; one that is inherited from torch or Python is not ours to convert."""
    lines[:] = converted(list(lines))


def public_bases(app: Any, name: str, obj: Any, options: Any, bases: list[Any]) -> None:
    """Put in place of each base that is private the first that is not."""
    for i, base in enumerate(bases):
        if isinstance(base, type):
            bases[i] = next(b for b in base.__mro__ if "._" not in f".{b.__module__}.{b.__qualname__}")


def setup(app: Any) -> dict[str, bool]:
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-bases", public_bases)
    return {"parallel_read_safe": True}
