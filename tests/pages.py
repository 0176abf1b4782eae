"""README.md and the pages of docs/: their blocks of code, links, headings and pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

DOCS = ROOT / "docs"
FENCE = re.compile(r"^(?P<ticks>`{3,})(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=ticks)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<picture>!?)\[(?P<label>[^\]]*)\]\((?P<target>[^)\s]+)\)")
LABEL = re.compile(r"^\((?P<name>[\w-]+)\)=$", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str
    line: int


def pages() -> list[Path]:
    """Return every page that users read: README.md, what stands beside it, and docs/."""
    beside = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    built = [path for path in sorted(DOCS.rglob("*.md")) if "_build" not in path.parts]
    return [*beside, ROOT / "examples" / "experiments" / "README.md", *built]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page, directives among them."""
    for found in FENCE.finditer(text):
        yield Block(found["language"].strip(), found["text"], text.count("\n", 0, found.start()) + 1)


def prose(text: str) -> str:
    """Return a page without fenced blocks, code in backticks and formulas, line by line as it was."""
    without = FENCE.sub(lambda found: "\n" * found[0].count("\n"), text)
    without = re.sub(r"\$\$.*?\$\$", lambda found: "\n" * found[0].count("\n"), without, flags=re.DOTALL)
    return re.sub(r"`[^`\n]*`|\$[^$\n]*\$", "", without)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page: labels of its own, and its headings as GitHub and MyST name them."""
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
    return slugs | set(LABEL.findall(text))
