"""Metrics: each against a closed form or an enumeration, and the classifier and `evaluate` on real data."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import torch
from sklearn.neighbors import KernelDensity
from torch import Tensor

from fastndsm import data
from fastndsm.data import Dataset
from fastndsm.metrics import (
    FeatureClassifier,
    _distances,
    _neighbours,
    class_balance,
    confidence,
    density_coverage,
    energy_distance,
    evaluate,
    frechet_distance,
    kernel_log_likelihood,
    label_weights,
    mode_weights,
    nearest_distance,
    precision_recall,
    sliced_wasserstein,
    total_variation,
)

NAN = float("nan")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# energy distance


def test_energy_distance_is_the_u_statistic_enumerated() -> None:
    x, y = normal(5, 2, 3), normal(7, 2, 3, seed=1) + 0.3
    a, b = x.flatten(1).numpy(), y.flatten(1).numpy()
    cross = np.mean([np.linalg.norm(u - v) for u in a for v in b])
    within = [
        np.mean([np.linalg.norm(z[i] - z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]) for z in (a, b)
    ]
    assert energy_distance(x, y) == pytest.approx(2 * cross - sum(within), rel=1e-12)
    assert energy_distance(y, x) == pytest.approx(energy_distance(x, y), rel=1e-12)


def test_energy_distance_of_shifted_normals_in_one_dimension() -> None:
    shift, n = 1.0, 6000
    # X - Y is N(shift, 2); |N(m, s^2)| has mean s (2 / pi)^(1/2) exp(-m^2 / 2 s^2) + m erf(m / s 2^(1/2))
    s = math.sqrt(2)
    cross = s * math.sqrt(2 / math.pi) * math.exp(-(shift**2) / (2 * s**2)) + shift * math.erf(
        shift / (s * math.sqrt(2))
    )
    exact = 2 * cross - 2 * s * math.sqrt(2 / math.pi)
    x, y = normal(n, 1), normal(n, 1, seed=1) + shift
    # the statistic's deviation by its Hajek projection, h(x) = 2 E|x - Y| - 2 E|x - X'| and likewise for y
    h = [2 * torch.cdist(z[:500], b).mean(1) - 2 * torch.cdist(z[:500], z).mean(1) for z, b in ((x, y), (y, x))]
    deviation = math.sqrt(sum(float(v.var()) for v in h) / n)
    assert deviation < 0.05 * exact
    assert abs(energy_distance(x, y) - exact) < 4 * deviation


def test_energy_distance_of_equal_laws_is_zero_on_average() -> None:
    found = torch.tensor([energy_distance(normal(6, 2, seed=2 * i), normal(9, 2, seed=2 * i + 1)) for i in range(2000)])
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean()) < 4 * error
    # the V-statistic, whose means include each sample's distance to itself, is caught
    biased = found + 2 * math.gamma(1.5) * (1 / 6 + 1 / 9)
    assert biased.mean() > 10 * error


def test_blocks_change_nothing(monkeypatch: Any) -> None:
    x, y = normal(53, 3), normal(41, 3, seed=1)
    whole = energy_distance(x, y), sliced_wasserstein(x, y), nearest_distance(x, y)
    monkeypatch.setattr(_distances, "_BLOCK", 100)
    parts = energy_distance(x, y), sliced_wasserstein(x, y), nearest_distance(x, y)
    assert parts[:2] == pytest.approx(whole[:2], rel=1e-12)
    torch.testing.assert_close(parts[2], whole[2], rtol=1e-12, atol=0)


@pytest.mark.parametrize("metric", [energy_distance, sliced_wasserstein, frechet_distance])
@pytest.mark.parametrize("shift", [2.0**20, 2.0**34])
def test_distances_do_not_see_where_the_data_are(metric: Any, shift: float) -> None:
    x, y = ((normal(60, 2, seed=i) * 2**16).round() / 2**16 for i in range(2))  # so that the shift is exact
    assert metric(x + shift, y + shift) == pytest.approx(metric(x, y), rel=1e-9)


@pytest.mark.parametrize("dim", [2, 40, 100])
@pytest.mark.parametrize("apart", [1e4, 1e6, 1e8])
def test_distances_within_clusters_far_apart(dim: int, apart: float) -> None:
    train = normal(300, dim)
    train[::2] += apart
    train[1::2] -= apart
    assert nearest_distance(train[:50], train).tolist() == [0.0] * 50
    near = train[:50] + 1e-2 * normal(50, dim, seed=1)
    expected = (near[:, None] - train).norm(dim=2).amin(1)
    torch.testing.assert_close(nearest_distance(near, train), expected, rtol=1e-12, atol=0)

    x, y = train[:100], train[100:]
    exact = 2 * float((x[:, None] - y).norm(dim=2).mean()) - sum(
        float((z[:, None] - z).norm(dim=2).sum()) / (len(z) * (len(z) - 1)) for z in (x, y)
    )
    assert energy_distance(x, y) == pytest.approx(exact, abs=1e-13 * apart * dim)
    assert mode_weights(near, train[:50]).tolist() == [0.02] * 50


def test_nearest_index_is_the_first_of_equals() -> None:
    train = normal(5, 40).repeat(3, 1) + 1e6
    assert _distances.nearest_index(train, train).tolist() == [0, 1, 2, 3, 4] * 3


# sliced Wasserstein distance


def test_sliced_wasserstein_in_one_dimension_is_exact() -> None:
    x, y = normal(6, 1), normal(4, 1, seed=1) + 0.5
    # with every point repeated to 12 points on both sides the optimal plan pairs the sorted points
    a, b = (np.sort(np.repeat(z.numpy()[:, 0], 12 // len(z))) for z in (x, y))
    assert sliced_wasserstein(x, y, 3) == pytest.approx(math.sqrt(np.mean((a - b) ** 2)), rel=1e-12)
    assert sliced_wasserstein(x, x.repeat(3, 1)) == 0.0


def test_sliced_wasserstein_of_a_shift_in_the_plane() -> None:
    x, shift = normal(50, 2), torch.tensor([3.0, 4.0], dtype=torch.float64)
    # a projection shifts by 5 cos(angle): the mean of 25 cos^2 is 12.5, with deviation 25 / 8^(1/2) each
    n = 4000
    squared = sliced_wasserstein(x, x[torch.randperm(50)] + shift, n) ** 2
    assert abs(squared - 12.5) < 4 * 25 / math.sqrt(8 * n)
    assert sliced_wasserstein(x, x + shift, 8, seed=1) == sliced_wasserstein(x, x + shift, 8, seed=1)
    assert sliced_wasserstein(x, x + shift, 8, seed=1) != sliced_wasserstein(x, x + shift, 8, seed=2)


# Frechet distance


def with_moments(mean: Tensor, covariance: Tensor, n: int, seed: int) -> Tensor:
    """Draw n samples with exactly this mean and (unbiased) covariance."""
    z = normal(n, len(mean), seed=seed)
    z = z - z.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(z.T)), z.T, upper=False)
    return mean + (torch.linalg.cholesky(covariance) @ white).T


def test_frechet_distance_of_known_moments() -> None:
    mean_x, mean_y = normal(4, seed=1), normal(4, seed=2)
    a, b = normal(4, 4, seed=3), normal(4, 4, seed=4)
    sx, sy = a @ a.T + 0.1 * torch.eye(4), b @ b.T + 0.1 * torch.eye(4)
    fx, fy = with_moments(mean_x, sx, 50, 5), with_moments(mean_y, sy, 80, 6)
    root = np.real(scipy.linalg.sqrtm((sx @ sy).numpy()))
    exact = float((mean_x - mean_y).square().sum() + sx.trace() + sy.trace()) - 2 * np.trace(root)
    assert frechet_distance(fx, fy) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(fy, fx) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(fx, fx + 3.0) == pytest.approx(4 * 9.0, rel=1e-9)


def test_frechet_distance_of_commuting_covariances() -> None:
    sx, sy = torch.diag(normal(3).square() + 0.1), torch.diag(normal(3, seed=1).square() + 0.1)
    zero = torch.zeros(3, dtype=torch.float64)
    exact = float((sx.diagonal().sqrt() - sy.diagonal().sqrt()).square().sum())
    found = frechet_distance(with_moments(zero, sx, 20, 2), with_moments(zero, sy, 30, 3))
    assert found == pytest.approx(exact, rel=1e-9)


def test_frechet_distance_with_a_dead_feature() -> None:
    fx = normal(20, 3)
    fx[:, 1] = 0.0
    assert frechet_distance(fx, fx) == pytest.approx(0.0, abs=1e-6)
    assert frechet_distance(normal(20, 1), normal(30, 1) * 0 + 2.0) > 1


# weights and probabilities


def test_mode_weights_count_the_nearest_center() -> None:
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    samples = torch.tensor([[1.0, 1.0], [4.9, 0.0], [5.1, 0.0], [9.0, 9.1]])
    assert mode_weights(samples, centers).tolist() == [0.5, 0.25, 0.25]


def test_total_variation_of_known_vectors() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    assert total_variation(p, q) == pytest.approx(0.3)
    assert total_variation(p, p) == 0.0
    assert total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1.0


def test_class_balance_and_confidence_of_known_probabilities() -> None:
    probs = torch.tensor([[0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0]])
    assert class_balance(probs).tolist() == [0.25, 0.75, 0.0]
    assert confidence(probs) == pytest.approx(0.75)


# nearest distance


@pytest.mark.parametrize("event", [(1,), (2, 3), (1, 8, 8)], ids=str)
def test_nearest_distance_finds_copies_and_neighbours(event: tuple[int, ...]) -> None:
    train = normal(200, *event)
    samples = torch.cat([train[:5], train[:5] + 1e-3, normal(20, *event, seed=1)])
    found = nearest_distance(samples, train)
    brute = (samples.flatten(1)[:, None] - train.flatten(1)[None]).norm(dim=2).amin(1)
    torch.testing.assert_close(found, brute, rtol=1e-6, atol=1e-6)
    assert found[:5].max() < 1e-6
    assert found[5:10].numpy() == pytest.approx(1e-3 * math.sqrt(math.prod(event)), rel=1e-4)


# balls about nearest neighbours


def all_four(samples: Tensor, data: Tensor, k: int = 3) -> tuple[float, ...]:
    return (*precision_recall(samples, data, k), *density_coverage(samples, data, k))


def counted(samples: Tensor, data: Tensor, k: int) -> tuple[float, ...]:
    """Return the four by the papers' formulas, a pair at a time."""
    x, y = samples.double().flatten(1).numpy(), data.double().flatten(1).numpy()

    def radius(z: Any, i: int) -> Any:
        return sorted(np.linalg.norm(z[i] - z[j]) for j in range(len(z)) if j != i)[k - 1]

    rx, ry = ([radius(z, i) for i in range(len(z))] for z in (x, y))
    n, m = len(x), len(y)
    in_data = [[np.linalg.norm(x[i] - y[j]) <= ry[j] for j in range(m)] for i in range(n)]
    in_samples = [[np.linalg.norm(x[i] - y[j]) <= rx[i] for i in range(n)] for j in range(m)]
    return (
        sum(any(row) for row in in_data) / n,
        sum(any(row) for row in in_samples) / m,
        sum(sum(row) for row in in_data) / (k * n),
        sum(any(in_data[i][j] for i in range(n)) for j in range(m)) / m,
    )


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("event", [(1,), (2,), (3, 4), (50,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_balls_are_counted_as_in_the_papers(k: int, event: tuple[int, ...], dtype: torch.dtype) -> None:
    x, y = (0.8 * normal(37, *event) + 0.3).to(dtype), normal(41, *event, seed=1).to(dtype)
    found = all_four(x, y, k)
    assert found == pytest.approx(counted(x, y, k), rel=1e-15)
    assert all(type(v) is float for v in found)
    assert len(set(found)) > 1 and 0 < found[0] <= 1


def test_balls_have_their_spheres_and_equal_distances_are_told_exactly() -> None:
    grid = torch.cartesian_prod(*[torch.arange(5.0)] * 3)
    shifted = grid[::2] + torch.tensor([1.0, 0.0, 0.0])
    for k in (1, 4, 7):
        expected = counted(shifted, grid, k)
        for origin in (0.0, 2.0**20 + 0.1):  # about which the grid's mean is no multiple of its step
            assert all_four(shifted.double() + origin, grid.double() + origin, k) == expected
    # the sample lies on the sphere of 0 alone
    line = torch.tensor([[0.0], [1.0], [10.0]])
    assert density_coverage(torch.tensor([[-1.0]]), line, 1) == (1.0, 1 / 3)
    assert density_coverage(torch.tensor([[-1.0 - 1e-6]]), line, 1) == (0.0, 0.0)


def test_balls_of_equal_sets_hold_all_and_of_sets_apart_nothing() -> None:
    x = normal(200, 3)
    for far in (1.0, 1e8):
        x[::2] += far
        precision, recall, density, coverage = all_four(x[torch.randperm(200)], x)
        assert (precision, recall, coverage) == (1.0, 1.0, 1.0)
        assert density == 4 / 3  # every ball holds its center and k others
        assert all_four(x, x + 100 * far) == (0.0, 0.0, 0.0, 0.0)
    assert all_four(torch.zeros(5, 2), torch.zeros(6, 2)) == (1.0, 1.0, 2.0, 1.0)  # radius 0


def test_a_dropped_mode_lowers_recall_and_coverage_and_noise_precision_and_density() -> None:
    centers = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]], dtype=torch.float64)
    real = centers[torch.arange(800) % 4] + normal(800, 2)
    good = all_four(centers[torch.arange(800) % 4] + normal(800, 2, seed=1), real)
    dropped = all_four(centers[torch.arange(800) % 3] + normal(800, 2, seed=1), real)
    noisy = all_four(centers[torch.arange(800) % 4] + 5 * normal(800, 2, seed=1), real)
    assert min(good[:2]) > 0.9 and good[2] == pytest.approx(1, abs=0.1) and good[3] == pytest.approx(7 / 8, abs=0.05)
    assert abs(dropped[0] - good[0]) < 0.03 and dropped[2] > 0.95
    assert dropped[1] == pytest.approx(0.75 * good[1], abs=0.03) and dropped[3] < 0.8 * good[3]
    assert noisy[0] < 0.5 and noisy[2] < 0.3 and noisy[1] > 0.9


def test_copies_of_few_points_are_precise_and_cover_little() -> None:
    real = normal(400, 5)
    precision, recall, density, coverage = all_four(real[:8].repeat(50, 1), real, 5)
    assert precision == 1.0 and density >= 1.0
    assert recall == 8 / 400  # a ball about copies has radius 0
    assert coverage == counted(real[:8], real, 5)[3] < 0.2


def test_density_and_coverage_of_one_distribution_are_as_the_paper_derives() -> None:
    n, m, k = 6, 9, 2
    found = torch.tensor(
        [density_coverage(normal(n, 2, seed=2 * i), normal(m, 2, seed=2 * i + 1), k) for i in range(1500)]
    )
    error = found.std(0) / math.sqrt(len(found))
    expected = torch.tensor([1.0, 1 - math.prod((m - i) / (n + m - i) for i in range(1, k + 1))])
    assert ((found.mean(0) - expected).abs() < 4 * error).all()
    assert (error < 0.02).all()


def test_balls_do_not_see_where_the_data_are_or_how_they_lie() -> None:
    x, y = ((normal(90, 6, seed=i) * 2**16).round() / 2**16 for i in range(2))
    expected = all_four(x, y)
    for shift in (2.0**20, 2.0**34):
        assert all_four(x + shift, y + shift) == expected
    turn = torch.linalg.qr(normal(6, 6, seed=2)).Q
    assert all_four(x @ turn, y @ turn) == expected
    assert all_four(1e-9 * x, 1e-9 * y) == expected


@pytest.mark.parametrize("clusters", [0.0, 1e7])
def test_blocks_of_any_size_hold_the_same(monkeypatch: Any, clusters: float) -> None:
    x, y = normal(53, 3), normal(41, 3, seed=1)
    x[::3], y[::3] = x[::3] + clusters, y[::3] + clusters
    y[:7] = x[:7]
    whole = all_four(x, y), kernel_log_likelihood(x, y), kernel_log_likelihood(x, y, 0.7)
    assert whole[0] == counted(x, y, 3)
    for size in (1, 100, 371):
        monkeypatch.setattr(_distances, "_BLOCK", size)
        monkeypatch.setattr(_neighbours, "_BLOCK", size)
        assert all_four(x, y) == whole[0]
        assert (kernel_log_likelihood(x, y), kernel_log_likelihood(x, y, 0.7)) == pytest.approx(whole[1:], rel=1e-12)


def test_pairs_have_the_same_length_in_any_company() -> None:
    for dim in (1, 5, 64, 333):
        x, y = normal(40, dim), normal(30, dim, seed=1)
        i, j = torch.ones(40, 30).nonzero(as_tuple=True)
        whole = _neighbours._lengths(x, y, i, j)
        for few in (1, 7, 70):
            assert torch.equal(_neighbours._lengths(x, y, i[:few], j[:few]), whole[:few])
            assert torch.equal(_neighbours._lengths(y, x, j[-few:], i[-few:]), whole[-few:])


# kernel likelihood


@pytest.mark.parametrize("h", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernel_likelihood_is_scikit_learns(h: float, dtype: torch.dtype) -> None:
    x, y = normal(60, 2, 3).to(dtype), normal(45, 2, 3, seed=1).to(dtype)
    exact = KernelDensity(bandwidth=h).fit(x.flatten(1).double()).score_samples(y.flatten(1).double()).mean()
    assert kernel_log_likelihood(x, y, h) == pytest.approx(exact, rel=1e-9)
    assert kernel_log_likelihood(x.double() + 2**20, y.double() + 2**20, h) == pytest.approx(exact, rel=1e-5)
    assert kernel_log_likelihood(x[:1], x[:1], h) == pytest.approx(-3 * math.log(2 * math.pi * h**2))


def left_out(x: Tensor, h: float) -> float:
    """Return the mean over i of the log of the mean over j != i of N(x_i; x_j, h^2 I)."""
    exponents = -(x[:, None] - x).square().sum(2).numpy() / (2 * h**2)
    np.fill_diagonal(exponents, -np.inf)
    means = scipy.special.logsumexp(exponents, axis=1) - math.log(len(x) - 1)
    return float(means.mean()) - x.shape[1] / 2 * math.log(2 * math.pi * h**2)


def test_leaving_out_is_a_kernel_estimate_on_the_rest() -> None:
    x = normal(9, 2)
    rest = [torch.cat([x[:i], x[i + 1 :]]) for i in range(9)]
    exact = np.mean([KernelDensity(bandwidth=0.4).fit(r).score(x[i : i + 1]) for i, r in enumerate(rest)])
    assert left_out(x, 0.4) == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("clusters", [0.0, 1e3])
@pytest.mark.parametrize("dim", [1, 4])
def test_the_bandwidth_is_the_best_for_samples_left_out(dim: int, clusters: float) -> None:
    x, y = normal(40, dim), normal(30, dim, seed=1)
    x[::2] += clusters
    y[::2] += clusters
    best = max(np.geomspace(0.02, 5e3, 600), key=lambda h: left_out(x, h))
    best = max(best * np.linspace(0.97, 1.03, 121), key=lambda h: left_out(x, h))
    assert kernel_log_likelihood(x, y) == pytest.approx(kernel_log_likelihood(x, y, best), abs=5e-3)
    for other in (0.5, 2.0):
        assert left_out(x, best) > left_out(x, other * best)


def test_the_bandwidth_is_the_higher_one_of_two_maxima() -> None:
    pairs = torch.cartesian_prod(*[torch.arange(4.0, dtype=torch.float64)] * 3)
    pairs = torch.cat([pairs, pairs + torch.tensor([0.35, 0.0, 0.0])])
    x = torch.cat([pairs, pairs + 100])  # Brent's search over the whole range finds 0.56
    found = [left_out(x, h) for h in (0.1, 0.207, 0.45, 0.56, 2.0)]
    assert found[1] > found[3] > max(found[2], found[4]) and found[1] > found[0]
    assert kernel_log_likelihood(x, x) == pytest.approx(kernel_log_likelihood(x, x, 0.207), abs=0.02)
    assert abs(kernel_log_likelihood(x, x) - kernel_log_likelihood(x, x, 0.56)) > 0.5


def test_the_bandwidth_scales_with_the_data_and_of_two_points_is_their_distance() -> None:
    x, y = normal(50, 3), normal(50, 3, seed=1)
    one = kernel_log_likelihood(x, y)
    assert kernel_log_likelihood(1e6 * x + 1e9, 1e6 * y + 1e9) == pytest.approx(one - 3 * math.log(1e6), rel=1e-4)
    pair = torch.tensor([[0.0, 0.0], [3.0, 4.0]])  # N(5; 0, h^2 I) is greatest at h^2 = 25 / 2
    assert kernel_log_likelihood(pair, pair) == pytest.approx(
        kernel_log_likelihood(pair, pair, math.sqrt(12.5)), rel=1e-12
    )


def test_kernel_likelihood_falls_where_modes_are_missing_or_few_points_are_copied() -> None:
    d = data.four_modes(1200, n_test=400)
    assert d.labels is not None
    fresh = kernel_log_likelihood(data.four_modes(600, seed=9).train, d.test)
    dropped = kernel_log_likelihood(d.train[d.labels != 1][:600], d.test)
    near_copies = d.train[:20].repeat(30, 1) + 1e-4 * normal(600, 2).float()
    assert fresh > dropped + 1
    assert fresh > kernel_log_likelihood(near_copies, d.test) + 1


# the classifier


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return data.digits()


@pytest.fixture(scope="module")
def classifier(digits: Dataset) -> FeatureClassifier:
    assert digits.labels is not None
    return FeatureClassifier.fit(digits.train, digits.labels, steps=500)


def test_classifier_tells_held_out_digits(digits: Dataset, classifier: FeatureClassifier) -> None:
    assert digits.test_labels is not None
    assert classifier.accuracy(digits.test, digits.test_labels) > 0.95
    shuffled = digits.test_labels[torch.randperm(360, generator=torch.Generator().manual_seed(0))]
    assert classifier.accuracy(digits.test, shuffled) < 0.2
    features, probs = classifier.features(digits.test), classifier.probabilities(digits.test)
    assert features.shape == (360, 64) and probs.shape == (360, 10)
    torch.testing.assert_close(classifier.head(features).softmax(1), probs)
    torch.testing.assert_close(classifier.features(digits.test.flatten(1)), features)
    assert not features.requires_grad


def test_classifier_is_set_by_its_seed_and_leaves_the_generator_alone(digits: Dataset) -> None:
    assert digits.labels is not None
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    nets = [FeatureClassifier.fit(digits.train[:200], digits.labels[:200], seed=s, steps=5) for s in (0, 0, 1)]
    assert torch.equal(torch.rand(3), expected)
    a, b, c = (net.features(digits.test) for net in nets)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_convolutional_classifier_for_larger_images() -> None:
    torch.manual_seed(0)
    labels = torch.arange(200) % 3
    x = 0.5 * torch.randn(200, 1, 17, 18)  # noise, and a bright bar at a place that tells the class
    for i, label in enumerate(labels.tolist()):
        x[i, 0, :, 6 * label : 6 * label + 3] += 1.0
    net = FeatureClassifier.fit(x[:150], labels[:150], steps=60, feature_dim=16, n_classes=5)
    assert isinstance(net.body[0], torch.nn.Conv2d)
    assert net.probabilities(x).shape == (200, 5) and net.features(x).shape == (200, 16)
    assert net.accuracy(x[150:], labels[150:]) > 0.95


# evaluate


def test_evaluate_ranks_real_points_before_a_gaussian_at_each_mode() -> None:
    d = data.four_modes(1500, n_test=1200)
    assert d.labels is not None and d.centers is not None
    pick = d.labels[torch.randperm(1500, generator=torch.Generator().manual_seed(0))]
    blurred = d.centers[pick] + 0.5 * normal(1500, 2).float()
    rows = {"blurred": evaluate(blurred, d), "fresh": evaluate(data.four_modes(1500, seed=9).train, d)}
    rows["held out"] = evaluate(d.test, d)
    for name, row in rows.items():
        assert set(row) == {"energy_distance", "sliced_wasserstein", "nearest_distance", "mode_tv"}, name
        assert all(math.isfinite(v) for v in row.values())
    for name in ("fresh", "held out"):
        assert abs(rows[name]["energy_distance"]) < 0.2 * rows["blurred"]["energy_distance"]
        assert rows[name]["nearest_distance"] < 0.5 * rows["blurred"]["nearest_distance"]
        assert rows[name]["mode_tv"] < 0.05
    swapped = evaluate(d.centers.flip(0)[pick] + 0.01 * normal(1500, 2).float(), d)
    assert swapped["mode_tv"] == pytest.approx(abs(0.6 - 0.05) + abs(0.25 - 0.1), abs=0.05)


def test_evaluate_compares_held_out_data_with_the_training_data() -> None:
    d = data.ring(300, n_test=200)
    row = evaluate(d.test.clone(), d)
    assert set(row) == {"energy_distance", "sliced_wasserstein", "nearest_distance"}
    assert row["energy_distance"] == pytest.approx(energy_distance(d.test, d.train))
    copies = evaluate(d.train, d)
    assert copies["nearest_distance"] < 1e-6  # memorised
    assert copies["energy_distance"] == pytest.approx(energy_distance(d.train, d.test))


def test_evaluate_subsets_by_its_seed() -> None:
    d, samples = data.ring(300, n_test=200), data.ring(400, seed=1).train
    rows = [evaluate(samples, d, seed=s, max_points=100) for s in (0, 0, 1)]
    assert rows[0] == rows[1]
    assert rows[0]["energy_distance"] != rows[2]["energy_distance"]


def test_evaluate_labels_moons_by_their_neighbours() -> None:
    d = data.moons(2000)
    upper = data.moons(800, seed=4, noise=0.02)
    assert upper.labels is not None
    weights = label_weights(upper.train[upper.labels == 0], d)
    assert weights is not None and weights.tolist() == [1.0, 0.0]
    assert evaluate(upper.train[upper.labels == 0], d)["mode_tv"] == pytest.approx(0.5, abs=0.05)
    assert label_weights(data.ring(10).train, data.ring(10)) is None


def test_evaluate_of_digits_by_the_classifier(digits: Dataset, classifier: FeatureClassifier) -> None:
    held_out = evaluate(digits.test, digits, classifier=classifier)
    expected = {
        "energy_distance",
        "sliced_wasserstein",
        "nearest_distance",
        "class_tv",
        "confidence",
        "frechet_distance",
    }
    assert set(held_out) == expected
    assert evaluate(digits.test.flatten(1), digits, classifier=classifier) == held_out
    noise = 0.5 * normal(360, 64).float()
    noisy = evaluate(digits.test.flatten(1) + noise, digits, classifier=classifier)
    assert held_out["frechet_distance"] < 0.5 * noisy["frechet_distance"]
    assert held_out["nearest_distance"] < noisy["nearest_distance"]
    assert held_out["confidence"] > noisy["confidence"]
    assert held_out["class_tv"] < 0.05
    assert digits.labels is not None
    threes = evaluate(digits.train[digits.labels == 3], digits, classifier=classifier)
    assert threes["class_tv"] > 0.85
    features = classifier.features(digits.test), classifier.features(digits.train)
    assert held_out["frechet_distance"] == pytest.approx(frechet_distance(*features))


def test_evaluate_leaves_out_what_too_few_samples_cannot_tell(digits: Dataset, classifier: FeatureClassifier) -> None:
    with pytest.warns(UserWarning, match="frechet_distance left out: it takes 65 or more, found 64 samples"):
        assert "frechet_distance" not in evaluate(digits.test[:64], digits, classifier=classifier)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "frechet_distance" in evaluate(digits.test[:65], digits, classifier=classifier)


X = torch.zeros(5, 2)
P = torch.tensor([0.5, 0.5])
RING = data.ring(10, n_test=10)
BAD = {
    "nan": (
        lambda: energy_distance(X, torch.full((3, 2), NAN)),
        ValueError,
        "y: expected finite values, found 6",
    ),
    "ints": (
        lambda: energy_distance(X.long(), X),
        TypeError,
        "x: expected a floating-point .* found torch.int64",
    ),
    "array": (lambda: sliced_wasserstein(X.numpy(), X), TypeError, "x: .* found ndarray"),
    "dims": (lambda: sliced_wasserstein(X, torch.zeros(5, 3)), ValueError, "y: expected 2 values .* found 3"),
    "one": (lambda: energy_distance(X[:1], X), ValueError, r"x: .* n >= 2, found shape \(1, 2\)"),
    "empty": (lambda: nearest_distance(X, X[:0]), ValueError, r"train: .* found shape \(0, 2\)"),
    "device": (lambda: nearest_distance(X, X.to("meta")), ValueError, "train: expected .* cpu .* found meta"),
    "projections": (lambda: sliced_wasserstein(X, X, 0), ValueError, "n_projections: .* found 0"),
    "frechet": (
        lambda: frechet_distance(normal(3, 3), normal(9, 3)),
        ValueError,
        "fx: .* 3 features, found 3",
    ),
    "k": (lambda: precision_recall(X, X, 0), ValueError, "k: expected a positive int, found 0"),
    "k of a float": (lambda: density_coverage(X, X, 2.0), ValueError, "k: expected a positive int, found 2.0"),  # type: ignore[arg-type]
    "few samples": (
        lambda: precision_recall(X[:3], X),
        ValueError,
        "k: expected less than the number of samples, 3, found 3",
    ),
    "few data": (lambda: density_coverage(X, X[:4]), ValueError, "k: expected less than the number of data, 4, found"),
    "features": (lambda: density_coverage(X, torch.zeros(5, 3)), ValueError, "data: expected 2 values .* found 3"),
    "infinite": (lambda: precision_recall(X / 0, X), ValueError, "samples: expected finite values, found"),
    "bandwidth": (
        lambda: kernel_log_likelihood(X, X, 0.0),
        ValueError,
        "bandwidth: expected a finite positive number, found 0.0",
    ),
    "one for a bandwidth": (
        lambda: kernel_log_likelihood(X[:1], X),
        ValueError,
        "samples: expected two or more, .* found 1; give a bandwidth",
    ),
    "copies of all": (
        lambda: kernel_log_likelihood(X.repeat(2, 1), X),
        ValueError,
        "samples: expected one without a copy .* found copies of all",
    ),
    "held out": (lambda: kernel_log_likelihood(X, X[:0]), ValueError, r"held_out: .* found shape \(0, 2\)"),
    "sum": (lambda: total_variation(P, torch.tensor([0.5, 0.6])), ValueError, "q: .* sum to one, found"),
    "negative": (
        lambda: total_variation(torch.tensor([1.5, -0.5]), P),
        ValueError,
        "p: .* least value of -0.5",
    ),
    "lengths": (
        lambda: total_variation(P, torch.ones(1)),
        ValueError,
        r"q: expected \(2,\) as p has, found \(1,\)",
    ),
    "probs": (lambda: class_balance(P), ValueError, r"probs: expected \[n, C\], found shape \(2,\)"),
    "probs-nan": (lambda: confidence(torch.tensor([[NAN, 1.0]])), ValueError, "probs: expected values >= 0"),
    "labels": (
        lambda: FeatureClassifier.fit(X, torch.zeros(4).long()),
        ValueError,
        r"labels: expected \[5\], .* found \(4,\)",
    ),
    "labels-dtype": (
        lambda: FeatureClassifier.fit(X, torch.zeros(5)),
        TypeError,
        "labels: .* found torch.float32",
    ),
    "one-class": (
        lambda: FeatureClassifier.fit(X, torch.zeros(5).long()),
        ValueError,
        "n_classes: .* >= 2, found 1",
    ),
    "classes": (
        lambda: FeatureClassifier.fit(X, torch.arange(5), n_classes=3),
        ValueError,
        "n_classes: expected 5 or more for labels to 4, found 3",
    ),
    "steps": (lambda: FeatureClassifier.fit(X, torch.arange(5), steps=0), ValueError, "steps: .* found 0"),
    "event": (
        lambda: FeatureClassifier((1, 8, 8), 10).features(torch.zeros(2, 63)),
        ValueError,
        r"x: expected events of shape \(1, 8, 8\), found \(2, 63\)",
    ),
    "samples": (lambda: evaluate(torch.zeros(5, 3), RING), ValueError, r"samples: .*\(2,\), found \(5, 3\)"),
    "samples-nan": (lambda: evaluate(X * NAN, RING), ValueError, "samples: expected finite values, found 10"),
    "points": (lambda: evaluate(X, RING, max_points=1), ValueError, "max_points: .* found 1"),
    "classifier": (
        lambda: evaluate(torch.zeros(5, 64), data.digits(), classifier=FeatureClassifier((64,), 10)),
        ValueError,
        r"classifier: expected one of 10 classes of events \(1, 8, 8\), found 10 classes of \(64,\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
