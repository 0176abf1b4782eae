"""Tables: CSV and TSV files, Parquet files and pandas' frames, read as samples and labels."""

from __future__ import annotations

import contextlib
import csv
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _checks

__all__ = ["Table", "read_csv", "read_frame", "read_parquet"]

_LABELS = ("label", "labels")  # names of the column of labels, in any case
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
_DELIMITERS = (",", ";", "\t")


class Table(NamedTuple):
    """Samples x [n, d] float64 and labels [n] or None."""

    x: NDArray[np.float64]
    labels: NDArray[Any] | None


def read_csv(path: Path, label_column: str | None = None) -> Table:
    """Read the table in a text file: numbers, and a header where one of the first line's cells is no number.

    The first line tells the delimiter, of comma, semicolon and tab. A first column without a name that counts from 0,
    as pandas writes it, is left out with a warning.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, found: {error}") from error
    lines = text.splitlines()
    first_line = next((line for line in lines if line.strip()), "")
    delimiter = max(_DELIMITERS, key=first_line.count)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError(f"{path}: expected a table, found an empty file")
    width = len(rows[0][1])
    header = any(_number(cell) is None and not _missing(cell) for cell in rows[0][1])
    names = rows.pop(0)[1] if header else [str(i + 1) for i in range(width)]
    for line, row in rows:
        if len(row) != width:
            raise ValueError(f"{path}: line {line}: expected {width} cells as in the first line, found {len(row)}")
    columns = [_parsed([row[i] for _, row in rows]) for i in range(width)]
    if header and names[0] == "" and width > 1 and list(columns[0]) == list(range(len(rows))):
        warnings.warn(f"{path}: the first column has no name and counts the rows: it is left out", stacklevel=2)
        names, columns = names[1:], columns[1:]
    where = [f"row {i + 1} (line {line})" for i, (line, _) in enumerate(rows)]
    return _table(str(path), names, columns, where, label_column)


def read_parquet(path: Path, label_column: str | None = None) -> Table:
    """Read the table in a Parquet file, through pandas."""
    try:
        import pandas

        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise ImportError(
            f"{path}: reading Parquet needs pandas and pyarrow: pip install 'fastndsm[tables]' ({error})"
            f"{_checks.cure('missing-packages')}"
        ) from error
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: expected a whole Parquet file, found: {error}") from error
    return read_frame(frame, str(path), label_column)


def read_frame(frame: Any, origin: str, label_column: str | None = None) -> Table:
    """Read the table in a pandas DataFrame."""
    columns = []
    for i in range(frame.shape[1]):
        values = frame.iloc[:, i]
        empty = values.isna().to_numpy()
        if values.dtype.kind in "fiu" and not empty.any():
            columns.append(values.to_numpy(dtype=np.float64))
        else:
            made = np.array(values.astype(object))
            made[empty] = ""
            columns.append(made)
    counted = list(frame.index) == list(range(len(frame)))
    where = [f"row {i + 1}" + ("" if counted else f" (index {label!r})") for i, label in enumerate(frame.index)]
    return _table(origin, [str(name) for name in frame.columns], columns, where, label_column)


def _table(
    origin: str, names: Sequence[str], columns: Sequence[NDArray[Any]], where: Sequence[str], label_column: str | None
) -> Table:
    """Return columns of cells, text or objects, as numbers and labels; messages name a row by `where`."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{origin}: expected columns of different names, found {twice[0]!r} twice")
    if label_column is not None and label_column not in names:
        raise ValueError(f"label_column: expected one of {', '.join(map(repr, names))}, found {label_column!r}")
    of_labels = [name for name in names if (name.lower() in _LABELS if label_column is None else name == label_column)]
    if len(of_labels) > 1:
        raise ValueError(f"{origin}: expected one column of labels, found {' and '.join(map(repr, of_labels))}")
    if not len(where):
        raise ValueError(f"{origin}: expected rows, found none below the header")
    samples, labels = [], None
    for name, cells in zip(names, columns, strict=True):
        for i, cell in enumerate(cells if cells.dtype == object else ()):
            if _missing(cell):
                hint = _checks.cure("text-in-a-table")
                raise ValueError(f"{origin}: {where[i]}, column {name!r}: expected a value, found {_shown(cell)}{hint}")
        if name in of_labels:
            labels = _labels(f"{origin}: column {name!r}", cells)
        else:
            samples.append(_numbers(origin, name, cells, where))
    if not samples:
        raise ValueError(f"{origin}: expected a column of numbers, found labels alone")
    return Table(np.stack(samples, axis=1), labels)


def _parsed(cells: Sequence[str]) -> NDArray[Any]:
    """Return cells as float64 if each is a finite number, else as they are, so that messages name the first other."""
    if not any("_" in cell for cell in cells):
        with contextlib.suppress(ValueError):
            found = np.array([float(cell) for cell in cells])
            if np.isfinite(found).all():
                return found
    return np.array(cells, dtype=object)


def _numbers(origin: str, name: str, cells: NDArray[Any], where: Sequence[str]) -> NDArray[np.float64]:
    if cells.dtype != object and np.isfinite(cells).all():
        return cells
    values = np.empty(len(cells))
    for i, cell in enumerate(cells):
        number = _number(cell)
        if number is None:
            raise TypeError(
                f"{origin}: column {name!r}: expected numbers, found {_shown(cell)} in {where[i]}; leave the column "
                f"out, turn it into numbers, or call it 'label' (label_column={name!r}) if it tells classes"
                f"{_checks.cure('text-in-a-table')}"
            )
        if not math.isfinite(number):
            raise ValueError(f"{origin}: {where[i]}, column {name!r}: expected a finite number, found {_shown(cell)}")
        values[i] = number
    return values


def _labels(what: str, cells: NDArray[Any]) -> NDArray[Any]:
    numbers = [_number(cell) for cell in cells]
    if all(number is not None and math.isfinite(number) for number in numbers):
        found = np.array(numbers, dtype=np.float64)
        if bool((found != np.round(found)).any()):
            first = found[found != np.round(found)][0]
            raise TypeError(f"{what}: expected integer labels, found {first:g}; integers and texts name classes")
        return found.astype(np.int64)
    return np.array([str(cell) for cell in cells])


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool | np.bool_) or isinstance(cell, complex):
        return None
    if isinstance(cell, str):
        if "_" in cell:  # Python's own spelling of numbers
            return None
    elif not isinstance(cell, int | float | np.integer | np.floating) and type(cell).__name__ != "Decimal":
        return None  # a date or a category would turn into some number
    try:
        return float(cell)
    except ValueError:
        return None


def _missing(cell: Any) -> bool:
    return isinstance(cell, str) and cell.lower() in _MISSING


def _shown(cell: Any) -> str:
    return "an empty cell" if cell == "" else repr(cell if isinstance(cell, str) else str(cell))
