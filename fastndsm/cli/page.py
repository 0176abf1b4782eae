"""A page of headings, text, tables and pictures, as Markdown, and as one HTML file that has its pictures inside."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from .tables import markdown

__all__ = ["Block", "Heading", "Picture", "Table", "Text", "as_html", "as_markdown"]

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #8886; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto; }
th, td { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: bottom; }
th { border-bottom: 1px solid #8886; }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1.5rem 0; } img { max-width: 100%; background: white; } figcaption { opacity: .8; }
.warning { border-left: 4px solid #c60; padding-left: .8rem; }
"""

_NUMBER = re.compile(r"-|[-+]?[\d.,]+(e[-+]\d+)?( (to|\+-) [\d.,]+(e[-+]\d+)?)?")


class Heading(NamedTuple):
    """The title of the page (level 1) or of a part of it."""

    text: str
    level: int = 2


class Text(NamedTuple):
    """A paragraph."""

    text: str
    warning: bool = False


class Table(NamedTuple):
    """A head and lines of as many cells; the first names the line."""

    head: Sequence[str]
    body: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG file of the page's folder, and what it shows."""

    file: str
    caption: str


Block = Heading | Text | Table | Picture


def as_markdown(blocks: Iterable[Block]) -> str:
    """Return the page as Markdown; its pictures stay files."""
    return "\n\n".join(map(_markdown, blocks)) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return f"**{block.text}**" if block.warning else block.text
    if isinstance(block, Table):
        return markdown(block.head, block.body, aligned=True)
    return f"![{Path(block.file).stem}]({block.file})\n\n{block.caption}"


def as_html(blocks: Sequence[Block], folder: Path) -> str:
    """Return the page as one HTML document that needs no other file, nor a network; pictures are read in `folder`."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    body = "\n".join(_html(block, folder) for block in blocks)
    start = f'<!doctype html>\n<html lang="en">\n<head>{head}<style>{STYLE}</style></head>'
    return f"{start}\n<body>\n{body}\n</body>\n</html>\n"


def _html(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f'<p class="warning">{escape(block.text)}</p>' if block.warning else f"<p>{escape(block.text)}</p>"
    if isinstance(block, Table):
        kinds = [all(map(_NUMBER.fullmatch, column)) for column in zip(*block.body, strict=True)]
        lines = [_line("th", block.head, kinds), *(_line("td", line, kinds) for line in block.body)]
        return "\n".join(["<table>", *lines, "</table>"])
    data = base64.b64encode((folder / block.file).read_bytes()).decode("ascii")
    name, caption = escape(Path(block.file).stem), escape(block.caption)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{name}"><figcaption>{caption}</figcaption></figure>'


def _line(tag: str, cells: Sequence[str], numbers: Sequence[bool]) -> str:
    classes = (' class="number"' if number else "" for number in numbers)
    inside = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, classes, strict=True))
    return f"<tr>{''.join(inside)}</tr>"
