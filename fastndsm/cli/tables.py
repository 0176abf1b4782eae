"""Tables of text: Markdown's, and columns for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["columns", "markdown"]


def markdown(head: Iterable[str], body: Iterable[Iterable[str]], *, aligned: bool = False) -> str:
    """Return a Markdown table; aligned: for eyes that see it as text, too."""
    rows = [list(head), *map(list, body)]
    rules = ["---"] * len(rows[0])
    if aligned:
        rows = _aligned(rows)
        rules = ["-" * len(cell) for cell in rows[0]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (rows[0], rules, *rows[1:]))


def columns(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """Return lines of aligned cells with nothing but spaces between."""
    return "\n".join("  ".join(cells).rstrip() for cells in _aligned([list(head), *map(list, body)]))


def _aligned(rows: list[list[str]]) -> list[list[str]]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
