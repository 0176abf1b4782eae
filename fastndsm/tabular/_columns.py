"""The columns of a table: what they hold, as numbers and codes of categories, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _checks

__all__ = ["Encoded", "Schema"]

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]
MISSING = None  # the category of a missing cell


@dataclass(frozen=True)
class Encoded:
    """Rows as numbers [n, p], missing ones filled, their mask [n, p], and codes [n, q] of categories.

    Each column of categories has one code, and each column of numbers that may be missing has one: 0 where it is.
    A code of -1 is a missing one of rows that are to be filled.
    """

    numbers: Floats
    observed: NDArray[np.bool_]
    codes: Codes

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: NDArray[Any]) -> Encoded:
        """Return the rows of a mask or of indices."""
        return Encoded(self.numbers[rows], self.observed[rows], self.codes[rows])

    def with_code(self, place: int, code: Codes) -> Encoded:
        """Return the rows with one more column of codes."""
        return replace(self, codes=np.insert(self.codes, place, code, axis=1))

    @classmethod
    def of_numbers(cls, numbers: Floats, codes: Codes) -> Encoded:
        """Return whole rows."""
        return cls(numbers, np.ones(numbers.shape, dtype=np.bool_), codes)

    @classmethod
    def joined(cls, parts: Sequence[Encoded]) -> Encoded:
        """Return the rows of all parts."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class Column:
    """One column: numbers in low..high, or one of the categories; `missing` if some cell was empty."""

    name: str
    categories: tuple[Any, ...] | None
    missing: bool
    integer: bool = False
    low: float = 0.0
    high: float = 0.0
    fill: float = 0.0
    dtype: str = "object"

    @property
    def native(self) -> bool:
        """Return whether an array of numpy's own holds it."""
        return self.dtype != "object" and not (self.missing and np.dtype(self.dtype).kind in "iub")

    def to_dict(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)


class Schema:
    """All columns, in order, and the form that the table came in: "frame", "mapping" or "array"."""

    def __init__(self, columns: Sequence[Column], form: str) -> None:
        self.columns, self.form = tuple(columns), form
        self.numeric = tuple(c for c in self.columns if c.categories is None)
        self.coded = tuple(c for c in self.columns if c.categories is not None)
        self.gaps = tuple(i for i, c in enumerate(self.numeric) if c.missing)  # numbers that may be missing

    @property
    def sizes(self) -> tuple[int, ...]:
        """Return how many categories each code has."""
        return tuple(len(c.categories or ()) for c in self.coded) + (2,) * len(self.gaps)

    @classmethod
    def of(cls, table: Any, categorical: Sequence[str] = ()) -> Schema:
        """Return the schema of a table; columns named in `categorical` hold categories though they are numbers."""
        form, cells = read(table)
        frame = _checks.is_frame(table)
        dtypes = {n: str(table[n].dtype if frame and n in table else c.dtype) for n, c in cells.items()}
        if unknown := [name for name in categorical if name not in cells]:
            expected = ", ".join(map(repr, cells))
            raise ValueError(f"categorical: expected names of columns, {expected}, found {unknown[0]!r}")
        return cls([_column(name, values, name in categorical, dtypes[name]) for name, values in cells.items()], form)

    def index(self, name: str) -> int:
        """Return the place of a column of categories among the codes."""
        return [c.name for c in self.coded].index(name)

    def encode(self, table: Any, gaps: bool = False) -> Encoded:
        """Return the rows of a table of this schema; with `gaps`, columns that are not there are missing."""
        _, cells = read(table)
        names = [c.name for c in self.columns]
        if unknown := [name for name in cells if name not in names]:
            raise ValueError(f"table: expected the columns {', '.join(map(repr, names))}, found {unknown[0]!r}")
        absent = [name for name in names if name not in cells]
        if absent and not gaps:
            raise ValueError(f"table: expected a column {absent[0]!r}, found none of that name")
        n = len(next(iter(cells.values())))
        empty = np.full(n, None, dtype=object)
        numbers = np.empty((n, len(self.numeric)))
        for i, column in enumerate(self.numeric):
            numbers[:, i] = _numbers(column.name, cells.get(column.name, empty))
        observed = ~np.isnan(numbers)
        for i, column in enumerate(self.numeric):
            if not gaps and not column.missing and not observed[:, i].all():
                raise ValueError(f"table: column {column.name!r}: expected no missing cell, as in fitting, found one")
        codes = [self._codes(column, cells.get(column.name, empty), gaps) for column in self.coded]
        codes += [np.where(observed[:, i], 1, -1 if gaps else 0) for i in self.gaps]
        filled = np.where(observed, numbers, [c.fill for c in self.numeric] if self.numeric else numbers)
        return Encoded(filled, observed, np.stack(codes, 1) if codes else np.empty((n, 0), dtype=np.int64))

    def _codes(self, column: Column, cells: NDArray[Any], gaps: bool) -> Codes:
        categories = column.categories or ()
        of = {_key(value): code for code, value in enumerate(categories)}
        found = np.empty(len(cells), dtype=np.int64)
        for i, cell in enumerate(cells):
            missing = _missing(cell)
            if missing and gaps:
                found[i] = -1
                continue
            code = of.get(_key(MISSING if missing else cell))
            if code is None:
                known = ", ".join(repr(c) for c in categories[:5])
                raise ValueError(f"table: column {column.name!r}: expected one of {known} ..., found {cell!r}")
            found[i] = code
        return found

    def decode(self, rows: Encoded) -> Any:
        """Return the table of rows, in the form that the schema has."""
        cells: dict[str, Any] = {}
        for i, column in enumerate(self.numeric):
            values = rows.numbers[:, i].clip(column.low, column.high)
            if column.integer:
                values = np.round(values)
            if i in self.gaps:
                code = rows.codes[:, len(self.coded) + self.gaps.index(i)]
                values = np.where(code == 0, np.nan, values)
            cells[column.name] = values
        for i, column in enumerate(self.coded):
            assert column.categories is not None
            chosen = np.empty(len(column.categories), dtype=object)
            chosen[:] = column.categories
            cells[column.name] = chosen[rows.codes[:, i]]
        ordered = {column.name: cells[column.name] for column in self.columns}
        if self.form == "array":
            return np.stack([np.asarray(values, dtype=np.float64) for values in ordered.values()], axis=1)
        if self.form == "mapping":
            return {c.name: ordered[c.name].astype(c.dtype) if c.native else ordered[c.name] for c in self.columns}
        import pandas

        frame = pandas.DataFrame(ordered)
        for column in self.columns:
            if column.dtype == "category":
                known = [c for c in column.categories or () if c is not MISSING]
                frame[column.name] = pandas.Categorical(frame[column.name], categories=known)
            elif column.dtype != "object":
                frame[column.name] = frame[column.name].astype(column.dtype)
        return frame


def read(table: Any) -> tuple[str, dict[str, NDArray[Any]]]:
    """Return the form of a table and its columns by name."""
    if _checks.is_frame(table):
        if not table.columns.is_unique:
            twice = table.columns[table.columns.duplicated()][0]
            raise ValueError(f"table: expected columns of different names, found {twice!r} twice")
        form, cells = "frame", {str(name): _array(table[name]) for name in table.columns}
    elif isinstance(table, Mapping):
        form, cells = "mapping", {str(name): _array(values) for name, values in table.items()}
    else:
        try:
            values = np.asarray(table, dtype=np.float64)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.ndim != 2:
            found = type(table).__name__ + (f" of shape {tuple(np.shape(table))}" if hasattr(table, "shape") else "")
            raise TypeError(
                f"table: expected a DataFrame, a dict of columns or an array [n, d] of numbers, found {found}"
            )
        form, cells = "array", {str(i): column for i, column in enumerate(values.T)}
    lengths = {len(values) for values in cells.values()}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"table: expected columns of one length of at least 1, found lengths {sorted(lengths)}")
    return form, cells


def _array(values: Any) -> NDArray[Any]:
    if hasattr(values, "isna"):  # a pandas column: its missing cells come as None
        kind = str(values.dtype)
        if kind.startswith(("datetime", "timedelta", "period")):
            raise TypeError(
                f"table: column {values.name!r}: expected numbers or categories, found {kind}: "
                "turn it into numbers, of days say"
            )
        if values.dtype.kind in "fiu" and not values.isna().any():
            return np.asarray(values)
        made = np.array(values.astype(object), dtype=object)
        made[np.asarray(values.isna())] = None
        return made
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    made = np.asarray(values)
    if made.ndim != 1:
        raise ValueError(f"table: expected columns of one dimension, found shape {made.shape}")
    if made.dtype.kind in "US":
        return np.asarray(values, dtype=object)
    return made


def _column(name: str, cells: NDArray[Any], categorical: bool, dtype: str) -> Column:
    missing = np.array([_missing(cell) for cell in cells]) if cells.dtype.kind in "Of" else np.zeros(len(cells), bool)
    held = cells[~missing]
    if not len(held):
        raise ValueError(f"table: column {name!r}: expected values, found only missing cells")
    if categorical or cells.dtype == bool or not all(_is_number(cell) for cell in held):
        categories: list[Any] = sorted({_plain(cell) for cell in held}, key=lambda c: (type(c).__name__, c))
        return Column(name, (*categories, *([MISSING] if missing.any() else [])), bool(missing.any()), dtype=dtype)
    values = _numbers(name, held)
    return Column(
        name,
        None,
        bool(missing.any()),
        bool((values == np.round(values)).all()),
        float(values.min()),
        float(values.max()),
        float(np.median(values)),
        dtype,
    )


def _numbers(name: str, cells: NDArray[Any]) -> Floats:
    made = np.empty(len(cells))
    for i, cell in enumerate(cells):
        if _missing(cell):
            made[i] = np.nan
        elif not _is_number(cell):
            raise TypeError(f"table: column {name!r}: expected numbers, found {cell!r} in row {i + 1}")
        else:
            made[i] = float(cell)
            if math.isinf(made[i]):
                raise ValueError(f"table: column {name!r}: expected finite numbers, found {made[i]} in row {i + 1}")
    return made


def _is_number(cell: Any) -> bool:
    return isinstance(cell, int | float | np.integer | np.floating) and not isinstance(cell, bool | np.bool_)


def _missing(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float | np.floating) and math.isnan(cell))


def _plain(cell: Any) -> Any:
    return cell.item() if isinstance(cell, np.generic) else cell


def _key(cell: Any) -> tuple[str, Any]:
    cell = _plain(cell)
    return ("number" if _is_number(cell) else type(cell).__name__, cell)
