"""Expectation maximisation: scikit-learn's, from the same start, with nothing of size n x K in memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Estimator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastndsm import GaussianMixture, _em

TYPES = ("spherical", "diag", "tied", "full")
all_types = pytest.mark.parametrize("kind", TYPES)
INIT = ("weights_init", "means_init", "precisions_init")


def clusters(n: int = 1200, dim: int = 5, k: int = 12, seed: int = 0) -> np.ndarray:
    """Return overlapping clusters [n, dim], centred, so that iterations are many."""
    rng = np.random.default_rng(seed)
    x = 1.5 * rng.standard_normal((k, dim))[rng.integers(k, size=n)]
    x += rng.standard_normal((n, dim)) * rng.uniform(0.3, 1.2, dim) @ np.linalg.qr(rng.standard_normal((dim, dim)))[0]
    return x - x.mean(0)


def start(x: np.ndarray, k: int, kind: str, seed: int = 0) -> dict[str, Any]:
    """Return weights, means and precisions to start from."""
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0.5, 1.5, k)
    d = x.shape[1]
    root = rng.standard_normal((k, d, d))
    full = np.eye(d) + 0.2 * root @ root.transpose(0, 2, 1)
    precisions = {
        "spherical": rng.uniform(0.5, 2.0, k),
        "diag": rng.uniform(0.5, 2.0, (k, d)),
        "tied": full[0],
        "full": full,
    }[kind]
    return dict(zip(INIT, (weights / weights.sum(), x[rng.choice(len(x), k, replace=False)], precisions), strict=True))


def both(x: np.ndarray, k: int, kind: str, **options: Any) -> tuple[_em.Fit, Estimator]:
    """Return our fit and scikit-learn's."""
    ours, theirs = (Estimator(k, covariance_type=kind, **{"reg_covar": 1e-3, **options}) for _ in range(2))
    _em.check(ours, x.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return _em.fit(torch.from_numpy(x), ours), theirs.fit(x)


def assert_equal(found: _em.Fit, theirs: Estimator, tolerance: float) -> None:
    assert len(found.lower_bounds) == theirs.n_iter_ and found.converged == theirs.converged_
    np.testing.assert_allclose(found.lower_bounds[-1], theirs.lower_bound_, rtol=tolerance)
    for name, value in found.parameters._asdict().items():
        np.testing.assert_allclose(value.numpy(), getattr(theirs, f"{name}_"), rtol=tolerance, atol=tolerance)


@all_types
@pytest.mark.parametrize("options", [{"tol": 0.0, "max_iter": 40}, {"tol": 1e-4, "max_iter": 500}, {"max_iter": 1}])
def test_equals_scikit_learn_from_the_same_start(kind: str, options: dict[str, Any]) -> None:
    x = clusters()
    assert_equal(*both(x, 30, kind, **start(x, 30, kind), **options), tolerance=1e-8)


@pytest.mark.parametrize("kind", ["spherical", "full"])
@pytest.mark.parametrize("method", _em.INITS)
def test_starts_as_scikit_learn_does(method: str, kind: str) -> None:
    """The same draws of the same generator, for each of several starts, of which the most likely is kept."""
    assert_equal(*both(clusters(), 6, kind, init_params=method, n_init=3, random_state=3, max_iter=300), tolerance=1e-8)


@pytest.mark.parametrize("given", INIT)
def test_what_is_given_of_a_start_is_taken(given: str) -> None:
    x = clusters()
    one = {given: start(x, 6, "diag")[given]}
    found, theirs = both(x, 6, "diag", **one, random_state=0, max_iter=3)
    assert_equal(found, theirs, tolerance=1e-9)
    assert found.lower_bounds[0] != both(x, 6, "diag", random_state=0, max_iter=3)[0].lower_bounds[0]


@all_types
def test_empty_and_collapsed_components_are_scikit_learn_s(kind: str) -> None:
    """A component that no row is near, and two that lie on copies of one row."""
    x = clusters(300)
    x[:40] = x[0]
    given = start(x, 6, kind)
    given["means_init"][0] = 1e3
    given["means_init"][1:3] = x[0]
    assert_equal(*both(x, 6, kind, **given, max_iter=25, tol=0.0), tolerance=1e-6)


class Largest(TorchDispatchMode):
    """Remembers how many values the largest tensor made meanwhile has, views of x left out."""

    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x, self.values = x.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() != self.x:
            self.values = max(self.values, made.numel())
        return made


@all_types
def test_nothing_of_size_n_times_k_is_held(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, k = clusters(4000, 3), 60
    whole = both(x, k, kind, **start(x, k, kind), max_iter=5)[0]
    monkeypatch.setattr(_em, "_ENTRIES", 7 * k)
    monkeypatch.setattr(_em, "_FEWEST", 1)
    options = Estimator(k, covariance_type=kind, reg_covar=1e-3, **start(x, k, kind), max_iter=5)
    _em.check(options, 3)
    rows = torch.from_numpy(x)
    with Largest(rows) as seen:
        found = _em.fit(rows, options)
    assert 0 < seen.values <= 10 * k < x.size  # seven rows' responsibilities; features and covariances of K components
    for one, other in zip(found.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@all_types
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_row_of_weight_two_counts_as_two_rows(kind: str) -> None:
    x = clusters(500)
    weights = np.random.default_rng(1).integers(0, 4, 500)
    options = {**start(x, 5, kind), "max_iter": 20, "tol": 0.0}
    weighted = GaussianMixture.fit(x, 5, kind, **options, sample_weight=weights)
    repeated = GaussianMixture.fit(np.repeat(x, weights, 0), 5, kind, **options)
    for name, value in weighted.named_buffers():
        torch.testing.assert_close(value, repeated.get_buffer(name), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["kmeans", "k-means++"])
def test_a_start_heeds_weights(method: str) -> None:
    x = np.repeat(100.0 * np.eye(3), 50, 0) + np.random.default_rng(0).standard_normal((150, 3))
    m = GaussianMixture.fit(x, 2, sample_weight=np.repeat([0, 1, 2], 50), init_params=method, random_state=0)
    assert sorted(m.weights.tolist()) == pytest.approx([1 / 3, 2 / 3])
    assert float(m.means[:, 0].abs().max()) < 1.0


@pytest.mark.filterwarnings("error")
def test_a_fit_that_did_not_converge_is_told() -> None:
    x = clusters()
    with pytest.raises(
        ConvergenceWarning, match=r"^max_iter: expected convergence to tol = 0.001, found none after 2 "
    ):
        GaussianMixture.fit(x, 5, max_iter=2, random_state=0)
    GaussianMixture.fit(x, 5, max_iter=0, random_state=0)  # the start is asked for
    GaussianMixture.fit(x, 5, random_state=0)


@all_types
def test_a_singular_covariance_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"^covariances: expected positive definite"):
        GaussianMixture.fit(np.ones((20, 3)), 1, kind, reg_covar=0.0)


def test_verbose_tells_of_each_start(capsys: pytest.CaptureFixture[str]) -> None:
    GaussianMixture.fit(clusters(), 2, verbose=1, n_init=2, random_state=0)
    assert capsys.readouterr().out.count("mean log-density") == 2
    GaussianMixture.fit(clusters(), 2, random_state=0)
    assert not capsys.readouterr().out
