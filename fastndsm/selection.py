"""The choice of a reference: number of components and covariance type, by held-out likelihood.

Measured on MNIST in 32 principal components, spherical: held-out likelihood is best with 10 to 20 rows a component,
from 1,000 rows to 50,000; from 5 rows a component on, draws are nearer to training rows than held-out rows are, and
some copy one. That is ten values of data to a parameter, which is what candidates are limited to.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from . import _checks, _classes, _em
from .reference.components import COVARIANCE_TYPES

__all__ = ["CRITERIA", "Candidate", "Selection", "default_components", "default_starts", "select"]

CRITERIA = ("held-out", "bic")
_GRID = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100, 300, 1000)
_VALUES = 10  # of data to a parameter, at least
_SPAN = 100  # candidates are of 1 and of the largest number over this up to it
_FEW, _FOLDS, _HELD_OUT = 2000, 5, 10_000  # rows below which folds take turns; rows held out at most
_EQUAL = 0.01  # nats a dimension, within which candidates are equal, for components cost time
_GAP = 0.25  # nats a dimension from training rows to held-out ones, beyond which the former are known by heart
_STEPS = 3.0 / (2.0 * 0.2)  # T = 3 lambda_max over steps of q = 0.2, 2 q lambda_min: a LangevinProcess's


class Mixture(Protocol):
    """The part of a mixture that a choice looks at."""

    @property
    def smallest_variance(self) -> float:
        """The smallest eigenvalue of any covariance."""
        ...

    @property
    def largest_variance(self) -> float:
        """The largest eigenvalue of any covariance."""
        ...

    def log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log-densities [B] of x [B, d], under labels [B] if there are any."""
        ...


M = TypeVar("M", bound=Mixture)


@dataclass(frozen=True)
class Candidate:
    """A number of components and a covariance type, and how the fit is.

    Attributes:
        held_out: mean log-density of held-out rows in nats, the floor applied; None by "bic".
        behind: how far its score is below the best candidate's, in nats a row; error: its standard error (0 by "bic").
        train: mean log-density of the rows that it was fitted to.
        bic: Bayesian information criterion of that fit, lower is better.
        seconds: that the fits took.
        smallest_variance, largest_variance: eigenvalues of the covariances.
        n_steps: noising steps that stability asks for, T = 3 largest / sigma^2 at q = 0.2.
    """

    n_components: int
    covariance_type: str
    held_out: float | None
    behind: float
    error: float
    train: float
    bic: float
    seconds: float
    smallest_variance: float
    largest_variance: float
    n_steps: int


@dataclass(frozen=True)
class Selection(Generic[M]):
    """The choice of `GaussianMixture.select`, and the candidates it is from.

    Attributes:
        mixture: fitted to all rows.
        chosen: the candidate that it is.
        table: all candidates.
        warning: why the fit is a bad one, in a sentence; None if it is not.
    """

    mixture: M
    chosen: Candidate
    table: tuple[Candidate, ...]
    warning: str | None


def parameters_of(n_components: int, covariance_type: str, dim: int) -> int:
    """Return the number of a mixture's free parameters."""
    matrix = dim * (dim + 1) // 2
    covariances = {"spherical": n_components, "diag": n_components * dim, "tied": matrix, "full": n_components * matrix}
    return n_components * (dim + 1) - 1 + covariances[covariance_type]


def default_components(n: int, dim: int, covariance_type: str = "spherical") -> tuple[int, ...]:
    """Return the numbers of components to try for n rows of `dim` values: those with ten values to a parameter."""
    borne = [k for k in _GRID if _VALUES * parameters_of(k, covariance_type, dim) <= n * dim] or [1]
    return tuple(k for k in borne if k == 1 or k * _SPAN >= borne[-1])


def default_starts(n_components: int) -> int:
    """Return the number of starts: one may merge two of a few modes, while fits of many components are alike."""
    return 1 if n_components == 1 else max(1, min(5, 30 // n_components))


def select(
    fit: Callable[..., M],
    X: Any,
    n_components: int | Sequence[int] | None,
    covariance_types: str | Sequence[str],
    *,
    by: str,
    n_init: int | None,
    max_steps: int,
    random_state: Any,
    labels: Any = None,
    **options: Any,
) -> Selection[M]:
    """Choose among candidates made by `fit`; see `GaussianMixture.select`."""
    points, event_shape = _checks.points("X", X)
    n, dim = points.shape
    if n < 4:
        raise ValueError(f"X: expected at least 4 samples to choose by, found {n}")
    _checks.choice("by", by, CRITERIA)
    _checks.count("max_steps", max_steps)
    if n_init is not None:
        _checks.count("n_init", n_init)
    x = torch.from_numpy(points).to(X.device if isinstance(X, Tensor) else "cpu")
    order = torch.from_numpy(_em.random_state(random_state).permutation(n)).to(x.device)
    y = None
    if labels is not None:
        y = _classes.checked_labels(labels, n, x.device)
        order = order[y[order].argsort(stable=True)]  # so that what is held out has its share of every class
    splits = [(order, order)] if by == "bic" else list(_splits(order, y is not None))
    n_classes = 1 if y is None else int(y.max()) + 1
    pairs = _pairs(n_components, covariance_types, min(len(train) for train, _ in splits), dim, n_classes)

    def make(rows: Tensor | slice, k: int, kind: str) -> M:
        starts = default_starts(k) if n_init is None else n_init
        own = options if y is None else {**options, "labels": y[rows]}
        return fit(x[rows].reshape(-1, *event_shape), k, kind, random_state=random_state, n_init=starts, **own)

    def log_prob(mixture: M, rows: Tensor) -> Tensor:
        return mixture.log_prob(x[rows]) if y is None else mixture.log_prob(x[rows], y[rows])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the last fit warns of what it has in common with those before
        found = [_judge(make, log_prob, dim, splits, k, kind) for k, kind in pairs]
    table, place = _choose(found, max_steps, _EQUAL * dim)
    began = time.perf_counter()
    mixture = make(slice(None), table[place].n_components, table[place].covariance_type)
    chosen = dataclasses.replace(table[place], seconds=table[place].seconds + time.perf_counter() - began)
    table[place] = chosen
    return Selection(mixture, chosen, tuple(table), _warning(chosen, table, dim, max_steps))


def _pairs(
    n_components: int | Sequence[int] | None, covariance_types: str | Sequence[str], n: int, dim: int, least: int
) -> list[tuple[int, str]]:
    """Return the candidates, the simplest first; those left open have `least` components or more."""
    if isinstance(covariance_types, str):
        kinds: Sequence[str] = COVARIANCE_TYPES if covariance_types == "auto" else (covariance_types,)
    else:
        kinds = tuple(covariance_types)
    if not kinds:
        raise ValueError("covariance_types: expected one or more, found none")
    for kind in kinds:
        _checks.choice("covariance_types", kind, COVARIANCE_TYPES)
    if n_components is None:
        made = [(max(k, least), kind) for kind in kinds for k in default_components(n, dim, kind)]
    else:
        given = (n_components,) if isinstance(n_components, int) else _checks.integers("n_components", n_components)
        for k in given:
            if _checks.count("n_components", k) > n:
                raise ValueError(f"n_components: expected at most the number of rows fitted to, {n}, found {k}")
        made = [(k, kind) for kind in kinds for k in given]
    return sorted(set(made), key=lambda pair: parameters_of(pair[0], pair[1], dim))


def _splits(order: Tensor, spread: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows to fit to and rows held out: every fold in turn where rows are few, one split where they are not.

    spread: hold out rows from everywhere in the order.
    """
    n = len(order)
    if n >= _FEW:
        size = min(n // _FOLDS, _HELD_OUT)
        if spread:
            out = torch.zeros(n, dtype=torch.bool, device=order.device)
            out[torch.arange(size, device=order.device) * n // size] = True
            yield order[~out], order[out]
            return
        yield order[size:], order[:size]
        return
    folds = min(_FOLDS, n // 2)
    of = torch.arange(n, device=order.device) % folds
    for fold in range(folds):
        yield order[of != fold], order[of == fold]


class _Judged(NamedTuple):
    """A candidate and its scores: of each held-out row, or the one by BIC; in nats a row."""

    candidate: Candidate
    scores: Tensor


def _judge(
    make: Callable[[Tensor, int, str], M],
    log_prob: Callable[[M, Tensor], Tensor],
    dim: int,
    splits: Sequence[tuple[Tensor, Tensor]],
    k: int,
    kind: str,
) -> _Judged:
    """Fit a candidate to each split."""
    began = time.perf_counter()
    scores, train, bic, variances = [], 0.0, 0.0, []
    for fitted, held_out in splits:
        mixture = make(fitted, k, kind)
        density = float(log_prob(mixture, fitted).mean())
        penalty = parameters_of(k, kind, dim) * math.log(len(fitted))
        train += density / len(splits)
        bic += (penalty - 2.0 * len(fitted) * density) / len(splits)
        variances += [mixture.smallest_variance, mixture.largest_variance]
        in_sample = held_out is fitted
        of_all = torch.tensor([-0.5 * bic / len(fitted)], dtype=torch.float64, device=fitted.device)
        scores.append(of_all if in_sample else log_prob(mixture, held_out))
    joined = torch.cat(scores)
    steps = math.ceil(_STEPS * max(variances) / min(variances))
    candidate = Candidate(
        k,
        kind,
        held_out=None if in_sample else float(joined.mean()),
        behind=0.0,
        error=0.0,
        train=train,
        bic=bic,
        seconds=time.perf_counter() - began,
        smallest_variance=min(variances),
        largest_variance=max(variances),
        n_steps=steps,
    )
    return _Judged(candidate, joined)


def _choose(found: Sequence[_Judged], max_steps: int, equal: float) -> tuple[list[Candidate], int]:
    """Return the candidates, with their distance to the best one, and the place of the chosen one.

    It is the simplest, of those that noising can afford, within one standard error of the best of them or `equal`; the
    error is that of the mean difference of rows. Where none can be afforded, it is that of fewest steps.
    """
    steps = [judged.candidate.n_steps for judged in found]
    affordable = [i for i, needed in enumerate(steps) if needed <= max_steps] or [steps.index(min(steps))]
    best = max(affordable, key=lambda i: float(found[i].scores.mean()))
    table = []
    for candidate, scores in found:
        behind = found[best].scores - scores
        error = float(behind.std() / len(behind) ** 0.5) if len(behind) > 1 else 0.0
        table.append(dataclasses.replace(candidate, behind=float(behind.mean()), error=error))
    return table, next(i for i in affordable if table[i].behind <= max(table[i].error, equal))


def _warning(chosen: Candidate, table: Sequence[Candidate], dim: int, max_steps: int) -> str | None:
    """Return what is bad about the chosen fit."""
    gap = 0.0 if chosen.held_out is None else chosen.train - chosen.held_out
    if chosen.n_steps > max_steps:
        return (
            f"every candidate asks for more than {max_steps} noising steps, the chosen one for {chosen.n_steps:,}; "
            "raise the narrow eigenvalues by a larger eigenvalue_floor"
        )
    if gap > _GAP * dim:
        return (
            f"the reference knows its rows by heart: their mean log-density is {gap:.3g} nats above that of held-out "
            "rows; take fewer components, a larger reg_covar or more data"
        )
    if chosen.n_components == 1 and any(row.n_components > 1 for row in table):
        return (
            "a single Gaussian describes held-out rows as well as any mixture tried; noising by it is linear, and a "
            "reference of clusters says nothing about these data"
        )
    return None
