"""A generator of table rows, class by class, its settings chosen on folds of the rows that it is fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.special import softmax

from .. import _checks
from ..training import storage
from ._columns import Column, Encoded, Schema, read
from ._generators import STATISTICS, Coordinates, NetworkRows, SmoothedRows, drawn

__all__ = ["LEVELS", "Candidate", "TabularModel"]

LEVELS = tuple(round(2.0 ** (k / 4.0), 2) for k in range(-4, 10))  # sigma, in deviations of a class's columns
GENERATORS = ("auto", "smoothed", "network")
_MOST = 2000  # rows that folds are made of
_GENERATED = 4  # rows for each that is left out
_COPIES = 0.05  # share of copies beyond that of rows left out, above which a setting is passed over
_NEAR = 0.1  # of a row's distance to its nearest neighbour: nearer than that is a copy
_HIDDEN = 0.3  # share of cells that are hidden to choose the level of imputation
_FIELDS, _PLACES = ("numbers", "observed", "codes"), ("mean", "deviation")
_DOCUMENT, _KIND, _VERSION = "table.json", "fastndsm table model", 1

Floats = NDArray[np.float64]


class Candidate(NamedTuple):
    """A setting, and how its rows are on folds: their distance to rows left out, and the share that are copies.

    The distance is the exact 1-Wasserstein distance between as many rows as can be, cost the sum over columns of the
    absolute difference, numbers in units of their range and differing categories as one.
    """

    generator: str
    statistic: str
    level: float
    distance: float
    copies: float


class TabularModel:
    """A generator of rows like those of a table; made by `fit` or `load`.

    Attributes:
        candidates: the settings that were tried, best first.
        choice: the one that was taken.
        classes: the values of the target, in order; [None] without one.
    """

    def __init__(
        self,
        schema: Schema,
        target: str | None,
        classes: Sequence[Any],
        counts: Sequence[int],
        generators: Sequence[SmoothedRows | NetworkRows],
        rows: Sequence[SmoothedRows],
        candidates: Sequence[Candidate],
        choice: Candidate,
        imputation_level: float,
    ) -> None:
        self.schema, self.target, self.classes, self.counts = schema, target, list(classes), list(counts)
        self.candidates, self.choice, self.imputation_level = list(candidates), choice, imputation_level
        self._generators, self._rows = list(generators), list(rows)

    @classmethod
    def fit(
        cls,
        table: Any,
        target: str | None = None,
        *,
        categorical: Sequence[str] = (),
        generator: str = "auto",
        levels: Sequence[float] = LEVELS,
        n_folds: int = 5,
        steps: int | None = None,
        seed: int = 0,
    ) -> TabularModel:
        """Fit a generator to the rows of a table.

        Numbers may be whole (then rows are), bounded by what was seen, skewed, and missing (None or NaN); text,
        booleans and pandas categories are categories. Each class of the target has coordinates and a generator of its
        own. The setting is the one whose rows are nearest to those of folds left out, among those that do not copy.

        Args:
            table: pandas DataFrame, dict of columns, or array [n, d]; rows come back in the same form.
            target: name of the column that tells classes ("0", "1", ... of an array), or None.
            categorical: names of columns of numbers that are categories, such as codes.
            generator: "smoothed" (the rows' exact denoiser), "network" (NDSM, the path estimator) or "auto", which
                takes the one that is better on a fold.
            levels: of noise, in deviations of a class's columns, to choose from.
            n_folds: folds, at least 2.
            steps: of a network's training, for each class; default 20 a row, 500 to 8,000.
            seed: of folds, of training and of the rows that settings are judged by.

        Raises:
            TypeError, ValueError: naming the argument or the column, what was expected and what was found.
        """
        _checks.choice("generator", generator, GENERATORS)
        folds = _checks.count("n_folds", n_folds, 2)
        levels = [_checks.positive("levels", level) for level in levels]
        if not levels:
            raise ValueError("levels: expected at least one number, found none")
        schema = Schema.of(table, [*categorical, *([] if target is None else [target])])
        if target is not None and None in (schema.coded[schema.index(target)].categories or ()):
            raise ValueError(f"target: expected a class in every row, found a missing cell in column {target!r}")
        encoded = schema.encode(table)
        if len(encoded) < 2 * folds:
            raise ValueError(f"table: expected at least 2 n_folds = {2 * folds} rows, found {len(encoded)}")
        fitting = _Fitting(schema, target, seed, None if steps is None else _checks.count("steps", steps))
        judging = fitting.some(encoded)
        candidates = fitting.candidates(judging, folds, levels, generator)
        choice = candidates[0]
        parts = fitting.by_class(encoded)
        rows = fitting.smoothed(parts)
        chosen = fitting.networks(parts) if choice.generator == "network" else rows
        best = fitting.imputation_level(judging, folds, levels)
        return cls(schema, target, fitting.classes, [len(p) for p in parts], chosen, rows, candidates, choice, best)

    def sample(self, n: int, seed: int | None = None, *, target: Any = None, counts: str = "random") -> Any:
        """Draw n rows, in the form of the table that was fitted.

        Args:
            seed: of the rows; None draws one from PyTorch's default generator.
            target: rows of this class alone.
            counts: of classes: "random", multinomial as n rows of the data would have them, or "exact", as near to the
                shares of the data as n allows.
        """
        n = _checks.count("n", n)
        _checks.choice("counts", counts, ("random", "exact"))
        generator = np.random.default_rng(int(_checks.seed(seed)) & (1 << 64) - 1)
        shares = np.array(self.counts, dtype=np.float64) / sum(self.counts)
        if target is not None:
            if self.target is None or target not in self.classes:
                known = "None of a model without classes" if self.target is None else f"one of {self.classes}"
                raise ValueError(f"target: expected {known}, found {target!r}")
            shares = np.array([float(c == target) for c in self.classes])
        of_class = generator.multinomial(n, shares) if counts == "random" else _exact(n, shares)
        rows, labels = _draw(self._generators, of_class, self.choice, generator)
        mixed = generator.permutation(n)
        return self._decoded(rows.take(mixed), labels[mixed])

    def impute(self, table: Any, seed: int | None = None) -> Any:
        """Return the table with its missing cells, and columns that are not there, filled by draws given the others.

        All cells of a row are taken from one row of the data, drawn by how likely it is behind the known cells (a
        hot deck with kernel weights), so that they fit each other. Known cells stay. Another seed gives another draw.
        """
        generator = np.random.default_rng(int(_checks.seed(seed)) & (1 << 64) - 1)
        rows = self.schema.encode(table, gaps=True)
        labels, given = self._split(rows)
        logits = np.full((len(rows), sum(len(r.points) for r in self._rows)), -np.inf)
        of_class = np.repeat(np.arange(len(self._rows)), [len(r.points) for r in self._rows])
        for c, smoothed in enumerate(self._rows):
            mine = (labels == c) | (labels < 0)
            if mine.any():
                logits[np.ix_(mine, of_class == c)] = smoothed.log_weights(given.take(mine), self.imputation_level)
        chosen = drawn(softmax(logits, axis=1), generator)
        source = Encoded.joined([r.rows for r in self._rows]).take(chosen)
        numbers = np.where(given.observed, given.numbers, source.numbers)
        codes = np.where(given.codes >= 0, given.codes, source.codes)
        first = len(self.schema.coded) - (self.target is not None)
        codes[:, first:] = 1  # what may be missing is not, in a filled row
        filled = Encoded(numbers, np.ones_like(given.observed), codes)
        return self._decoded(filled, np.where(labels >= 0, labels, of_class[chosen]), read(table)[0])

    def _split(self, rows: Encoded) -> tuple[NDArray[np.int64], Encoded]:
        return _Fitting(self.schema, self.target).split(rows)

    def _decoded(self, rows: Encoded, labels: NDArray[np.int64], form: str | None = None) -> Any:
        if self.target is not None:
            rows = rows.with_code(self.schema.index(self.target), labels)
        schema = self.schema if form is None else Schema(self.schema.columns, form)
        return schema.decode(rows)

    def save(self, path: str | Path) -> None:
        """Write the model to a folder, replacing an older one. It holds rows of the data."""
        columns = [column.to_dict() for column in self.schema.columns]
        document = storage.json_object(
            "table",
            {
                "version": _VERSION,
                "columns": columns,
                "form": self.schema.form,
                "target": self.target,
                "counts": self.counts,
                "candidates": [candidate._asdict() for candidate in self.candidates],
                "choice": self.candidates.index(self.choice),
                "imputation_level": self.imputation_level,
            },
        )
        tensors: dict[str, dict[str, torch.Tensor]] = {"rows.safetensors": {}, "networks.safetensors": {}}
        for c, (smoothed, made) in enumerate(zip(self._rows, self._generators, strict=True)):
            for name in _FIELDS:
                values = np.ascontiguousarray(getattr(smoothed.rows, name))
                tensors["rows.safetensors"][f"{c}.{name}"] = torch.from_numpy(values)
            for name in _PLACES:
                values = np.ascontiguousarray(getattr(smoothed.coordinates, name))
                tensors["rows.safetensors"][f"{c}.{name}"] = torch.from_numpy(values)
            if isinstance(made, NetworkRows):
                state = made.net.state_dict()
                tensors["networks.safetensors"] |= {f"{c}.{name}": value for name, value in state.items()}
        tensors = {name: held for name, held in tensors.items() if held}
        storage.write_folder(Path(path), _DOCUMENT, _KIND, document, tensors)

    @classmethod
    def load(cls, path: str | Path) -> TabularModel:
        """Return the model that `save` wrote.

        Raises:
            CheckpointError: if a file is missing, truncated, altered or foreign, naming it.
        """
        files = ("rows.safetensors", "networks.safetensors")
        document, tensors = storage.read_folder(Path(path), _DOCUMENT, _KIND, files[:1], files[1:])
        columns = []
        for column in document["columns"]:
            categories = column["categories"]
            columns.append(Column(**column | {"categories": None if categories is None else tuple(categories)}))
        schema, target = Schema(columns, document["form"]), document["target"]
        fitting = _Fitting(schema, target)
        classes = range(len(document["counts"]))
        held = [Encoded(*(tensors[files[0]][f"{c}.{name}"].numpy() for name in _FIELDS)) for c in classes]
        places = []
        for c in classes:
            mean, deviation = (tensors[files[0]][f"{c}.{name}"].numpy() for name in _PLACES)
            places.append(Coordinates(mean, deviation, fitting.sizes))
        rows = [SmoothedRows(*given) for given in zip(held, places, strict=True)]
        generators = []
        for c in classes:
            state = {k.removeprefix(f"{c}."): v for k, v in tensors.get(files[1], {}).items() if k.startswith(f"{c}.")}
            if state:
                generators.append(NetworkRows(places[c]))
                generators[-1].net.load_state_dict(state)
        candidates = [Candidate(**candidate) for candidate in document["candidates"]]
        made = candidates[document["choice"]]
        return cls(
            *(schema, target, fitting.classes, document["counts"], generators or rows, rows, candidates, made),
            document["imputation_level"],
        )


class _Fitting:
    """Splits the rows of a schema by class, and judges what is generated."""

    def __init__(self, schema: Schema, target: str | None, seed: int = 0, steps: int | None = None) -> None:
        self.schema, self.target, self.seed, self.steps = schema, target, seed, steps
        self.place = None if target is None else schema.index(target)
        self.classes = [None] if self.place is None else list(schema.coded[self.place].categories or ())
        self.sizes = tuple(size for i, size in enumerate(schema.sizes) if i != self.place)

    def coordinates(self, parts: Sequence[Encoded]) -> list[Coordinates]:
        """Return those of each class."""
        overall = Encoded.joined(parts).numbers.std(0)
        return [Coordinates.of(part, self.sizes, overall) for part in parts]

    def smoothed(self, parts: Sequence[Encoded]) -> list[SmoothedRows]:
        """Return the smoothed rows of each class."""
        return [SmoothedRows(*given) for given in zip(parts, self.coordinates(parts), strict=True)]

    def networks(self, parts: Sequence[Encoded]) -> list[NetworkRows]:
        """Train a network for each class."""
        pairs = zip(parts, self.coordinates(parts), strict=True)
        return [NetworkRows(coordinates, self.seed).fit(part, self.steps) for part, coordinates in pairs]

    def split(self, rows: Encoded) -> tuple[NDArray[np.int64], Encoded]:
        """Return the class of each row, -1 where it is missing, and the rows without it."""
        if self.place is None:
            return np.zeros(len(rows), dtype=np.int64), rows
        return rows.codes[:, self.place], replace(rows, codes=np.delete(rows.codes, self.place, axis=1))

    def some(self, rows: Encoded) -> Encoded:
        """Return the rows that folds are made of: all, or as many as that takes no long."""
        if len(rows) <= _MOST:
            return rows
        return rows.take(np.random.default_rng(self.seed).choice(len(rows), _MOST, replace=False))

    def by_class(self, rows: Encoded) -> list[Encoded]:
        """Return the rows of each class."""
        labels, given = self.split(rows)
        return [given.take(labels == c) for c in range(len(self.classes))]

    def folds(self, rows: Encoded, n: int) -> Iterator[tuple[Encoded, Encoded]]:
        """Yield rows to fit to and rows left out, classes in equal shares; every class stays in the former."""
        generator = np.random.default_rng(self.seed)
        labels = self.split(rows)[0]
        order = generator.permutation(len(rows))
        order = order[np.argsort(labels[order], kind="stable")]
        fold = np.empty(len(rows), dtype=np.int64)
        fold[order] = np.arange(len(rows)) % n
        for i in range(n):
            left = fold == i
            for c in range(len(self.classes)):
                mine = labels == c
                if (left | ~mine).all():  # its only rows
                    left = left & ~mine
            yield rows.take(~left), rows.take(left)

    def candidates(self, rows: Encoded, n_folds: int, levels: Sequence[float], generator: str) -> list[Candidate]:
        """Return all settings, best first: those that copy behind the others, then by distance."""
        scale = _Scale(rows)
        settings = [("smoothed", statistic, level) for statistic in STATISTICS for level in levels]
        found: dict[tuple[str, str, float], list[tuple[float, float]]] = {}
        ordinary = []
        folds = list(self.folds(rows, n_folds))
        if generator != "network":
            for fold in folds:
                made = self.smoothed(self.by_class(fold[0]))
                own = scale.neighbours(fold[0])
                ordinary.append(scale.copies(fold[1], fold[0], own))
                for setting in settings:
                    found.setdefault(setting, []).append(self._judged(made, fold, own, setting, scale))
        smoothed = self._sorted(found, float(np.mean(ordinary)) if ordinary else 1.0)
        if generator == "smoothed":
            return smoothed
        fit, left = folds[0]
        networks = self.networks(self.by_class(fit))
        tried, own = {}, scale.neighbours(fit)
        for level in levels:
            setting = ("network", "mean", level)
            tried[setting] = [self._judged(networks, folds[0], own, setting, scale)]
        of_networks = self._sorted(tried, scale.copies(left, fit, own))
        if not smoothed:
            return of_networks
        rival = found[smoothed[0][:3]][0][0]  # on the same fold
        better = of_networks[0].distance < rival
        return [*of_networks, *smoothed] if better else [*smoothed, *of_networks]

    def _judged(
        self,
        made: Sequence[SmoothedRows | NetworkRows],
        fold: tuple[Encoded, Encoded],
        own: Floats,
        setting: tuple[str, str, float],
        scale: _Scale,
    ) -> tuple[float, float]:
        fit, left = fold
        labels = self.split(fit)[0]
        generator = np.random.default_rng(self.seed)
        n = len(left) * min(_GENERATED, max(1, len(fit) // len(left)))
        shares = np.bincount(labels, minlength=len(self.classes)) / len(labels)
        rows, drawn_labels = _draw(made, _exact(n, shares), Candidate(*setting, 0.0, 0.0), generator)
        if self.place is not None:
            rows = rows.with_code(self.place, drawn_labels)
        return scale.distance(rows, left), scale.copies(rows, fit, own)

    def _sorted(self, found: Mapping[tuple[str, str, float], Any], ordinary: float) -> list[Candidate]:
        made = [Candidate(*setting, *map(float, np.mean(judged, axis=0))) for setting, judged in found.items()]
        return sorted(made, key=lambda c: (max(0.0, round(c.copies - ordinary - _COPIES, 6)), c.distance))

    def imputation_level(self, rows: Encoded, n_folds: int, levels: Sequence[float]) -> float:
        """Return the level at which hidden numbers of rows left out are filled with the smallest error."""
        if not self.schema.numeric:
            return min(levels)
        errors = dict.fromkeys(levels, 0.0)
        generator = np.random.default_rng(self.seed)
        scale = _Scale(rows)
        for fit, left in self.folds(rows, n_folds):
            made = self.smoothed(self.by_class(fit))
            hidden = (generator.random(left.observed.shape) < _HIDDEN) & left.observed
            given = self.split(replace(left, observed=left.observed & ~hidden))[1]
            source = np.concatenate([r.rows.numbers for r in made])
            for level in levels:
                logits = np.concatenate([r.log_weights(given, level) for r in made], axis=1)
                expected = softmax(logits, axis=1) @ source
                errors[level] += float((np.abs(expected - left.numbers) / scale.span)[hidden].sum())
        return min(errors, key=errors.__getitem__)


class _Scale:
    """The units of distances between rows: the range of each column of numbers."""

    def __init__(self, rows: Encoded) -> None:
        span = np.ptp(rows.numbers, axis=0) if len(rows) else np.ones(rows.numbers.shape[1])
        self.span = np.where(span > 0, span, 1.0)

    def costs(self, a: Encoded, b: Encoded) -> Floats:
        """Return the distances [n, m]: ranges of numbers, and one for each category that differs."""
        made = np.zeros((len(a), len(b)))
        x, y = a.numbers / self.span, b.numbers / self.span
        for j in range(x.shape[1]):
            made += np.abs(x[:, j, None] - y[None, :, j])
        for j in range(a.codes.shape[1]):
            made += a.codes[:, j, None] != b.codes[None, :, j]
        return made

    def distance(self, made: Encoded, left: Encoded) -> float:
        """Return the exact 1-Wasserstein distance; the generated rows are a multiple of those left out."""
        costs = np.repeat(self.costs(made, left), len(made) // len(left), axis=1)
        return float(costs[linear_sum_assignment(costs)].mean())

    def neighbours(self, rows: Encoded) -> Floats:
        """Return each row's distance to the nearest other one [n]."""
        own = self.costs(rows, rows)
        np.fill_diagonal(own, np.inf)
        return own.min(1)  # type: ignore[no-any-return]

    def copies(self, made: Encoded, fit: Encoded, own: Floats) -> float:
        """Return the share of rows that are much nearer to a row of `fit` than that is to its neighbour, at `own`."""
        between = self.costs(made, fit)
        return float((between.min(1) < _NEAR * own[between.argmin(1)]).mean())


def _draw(
    made: Sequence[SmoothedRows | NetworkRows], of_class: Any, choice: Candidate, generator: np.random.Generator
) -> tuple[Encoded, NDArray[np.int64]]:
    """Draw so many rows of each class; return them and their classes."""
    parts = [
        one.draw(int(count), choice.level, choice.statistic, generator)
        for one, count in zip(made, of_class, strict=True)
        if count
    ]
    labels = np.repeat(np.arange(len(made)), of_class)
    return Encoded.joined(parts), labels


def _exact(n: int, shares: Floats) -> NDArray[np.int64]:
    """Return counts that sum to n, nearest to the shares (largest remainder)."""
    wanted = n * shares
    counts = np.floor(wanted).astype(np.int64)
    counts[np.argsort(counts - wanted, kind="stable")[: n - int(counts.sum())]] += 1
    return counts
