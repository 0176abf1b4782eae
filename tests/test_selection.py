"""GaussianMixture.select: the number of components by held-out likelihood, and what it warns of."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from fastndsm import GaussianMixture, LangevinProcess, selection


def clusters(n: int, k: int = 4, dim: int = 3, seed: int = 0) -> np.ndarray:
    """Return k clusters of deviation 1, far apart."""
    rng = np.random.default_rng(seed)
    centres = 8.0 * np.eye(k, dim) - 8.0 * np.eye(k, dim, -1)
    return centres[rng.integers(k, size=n)] + rng.standard_normal((n, dim))


@pytest.mark.parametrize("n", [200, 2500])
def test_finds_the_number_of_separated_clusters(n: int) -> None:
    """By folds and by one split; the mixture is that of a fit to all rows."""
    x = clusters(n)
    found = GaussianMixture.select(x, (1, 2, 3, 4, 5, 8), random_state=0)
    assert found.chosen.n_components == found.mixture.n_components == 4 and found.warning is None
    same = GaussianMixture.fit(x, 4, random_state=0, n_init=5, eigenvalue_floor=0.03)
    assert found.mixture.digest == same.digest


def test_by_bic_types_compete() -> None:
    x = clusters(600) * np.array([3.0, 1.0, 0.2])
    options = {"reg_covar": 1e-6, "eigenvalue_floor": None, "max_steps": 10**6, "random_state": 0}
    found = GaussianMixture.select(x, (1, 4, 6), "auto", by="bic", **options)
    assert (found.chosen.n_components, found.chosen.covariance_type) == (4, "tied")
    assert all(row.held_out is None for row in found.table)
    assert found.chosen.bic == min(row.bic for row in found.table)
    theirs = found.mixture.to_sklearn()
    assert found.chosen.bic == pytest.approx(theirs.bic(x), rel=1e-6)


def test_is_the_same_whenever_it_is_asked() -> None:
    x = clusters(120)
    one, two = (GaussianMixture.select(torch.from_numpy(x), (2, 4), random_state=5) for _ in range(2))
    assert one.mixture.digest == two.mixture.digest
    assert [row.held_out for row in one.table] == [row.held_out for row in two.table]


def test_held_out_likelihood_is_that_of_rows_not_fitted_to() -> None:
    x = clusters(3000)
    row = GaussianMixture.select(x, 4, random_state=3, eigenvalue_floor=None).table[0]
    order = np.random.RandomState(3).permutation(3000)
    m = GaussianMixture.fit(x[order[600:]], 4, random_state=3, n_init=5)
    assert row.held_out == pytest.approx(float(m.log_prob(torch.from_numpy(x[order[:600]])).mean()), rel=1e-12)
    assert row.train == pytest.approx(float(m.log_prob(torch.from_numpy(x[order[600:]])).mean()), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "dim", "kind", "largest"),
    [(200, 32, "spherical", 15), (60_000, 32, "spherical", 1000), (60_000, 32, "full", 300), (2, 2, "full", 1)],
)
def test_candidates_have_ten_values_to_a_parameter(n: int, dim: int, kind: str, largest: int) -> None:
    made = selection.default_components(n, dim, kind)
    assert made[0] == 1 and made[-1] == largest and list(made) == sorted(set(made))
    assert n < 10 or all(10 * selection.parameters_of(k, kind, dim) <= n * dim for k in made)


def test_a_large_mixture_of_few_rows_is_behind() -> None:
    """A mixture that memorises is not chosen, though its training rows like it best."""
    x = np.random.default_rng(0).standard_normal((200, 8))
    x[:100, 0] += 12.0
    found = GaussianMixture.select(x, (1, 2, 20, 100), reg_covar=1e-4, eigenvalue_floor=None, random_state=0)
    assert found.chosen.n_components == 2
    assert found.table[-1].train > found.table[1].train + 3.0 and found.table[-1].behind > 3.0


def test_what_noising_cannot_afford_is_left_out() -> None:
    """A wide cluster and a narrow one: two components ask for hundreds of steps, and one for few."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.standard_normal((100, 2)), 8.0 + 0.05 * rng.standard_normal((100, 2))])
    options = {"reg_covar": 1e-6, "eigenvalue_floor": None, "random_state": 0}
    free = GaussianMixture.select(x, (1, 2), max_steps=10**6, **options)
    assert free.chosen.n_components == 2 and free.chosen.n_steps > 1000
    assert GaussianMixture.select(x, (1, 2), max_steps=300, **options).chosen.n_components == 1
    floored = GaussianMixture.select(x, (1, 2), max_steps=300, **{**options, "eigenvalue_floor": 0.2})
    assert floored.chosen.n_components == 2
    process = LangevinProcess(floored.mixture, grid="uniform", n_steps=floored.chosen.n_steps + 1)
    assert float(process.drift_scale.max()) / floored.mixture.smallest_variance <= 0.2 * 1.05
    forced = GaussianMixture.select(x, 2, max_steps=300, **options)
    assert forced.warning is not None and forced.warning.startswith("every candidate asks for more than 300 noising")


def test_a_bad_fit_is_told() -> None:
    x = np.random.default_rng(0).standard_normal((100, 3))
    alone = GaussianMixture.select(x, (1, 2, 5), random_state=0)
    assert alone.chosen.n_components == 1 and "a single Gaussian describes held-out rows as well" in str(alone.warning)
    learnt = GaussianMixture.select(x, 60, reg_covar=1e-3, eigenvalue_floor=None, max_steps=10**6, random_state=0)
    assert "by heart" in str(learnt.warning)


def test_images_keep_their_shape_and_warnings_come_once() -> None:
    images = torch.from_numpy(1e-2 * clusters(80)).reshape(80, 1, 3, 1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert GaussianMixture.select(images, (1, 2), random_state=0).mixture.event_shape == (1, 3, 1)
    assert [str(w.message).partition(":")[0] for w in seen] == ["reg_covar"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 90}, "n_components: expected at most the number of rows fitted to, 64, found 90"),
        ({"n_components": ()}, "n_components: expected one or more positive ints"),
        ({"n_components": (1, 0)}, "n_components: expected a positive int, found 0"),
        ({"covariance_types": ()}, "covariance_types: expected one or more, found none"),
        ({"covariance_types": ("round",)}, "covariance_types: expected one of 'spherical'"),
        ({"by": "aic"}, "by: expected one of 'held-out', 'bic', found 'aic'"),
        ({"max_steps": 0}, "max_steps: expected an integer of at least 1, found 0"),
        ({"n_init": 0}, "n_init: expected an integer of at least 1, found 0"),
        ({"eigenvalue_floor": 2.0}, r"eigenvalue_floor: expected a number in \(0, 1\], found 2.0"),
        ({"X": np.zeros((3, 2))}, "X: expected at least 4 samples to choose by, found 3"),
        ({"random_state": -1}, r"random_state: expected an int in \[0, 2\^32\)"),
    ],
    ids=str,
)
def test_bad_input(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        GaussianMixture.select(**{"X": clusters(80), **options})
