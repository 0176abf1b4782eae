"""The Gaussian mixture: densities and derivatives against torch.distributions, construction, exact draws."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from helpers import (
    COVARIANCE_TYPES,
    full_covariances,
    generator,
    on_one_backend,  # noqa: F401
    random_mixture,
    torch_mixture,
)
from torch import Tensor

from fastndsm import GaussianMixture
from fastndsm.reference import mixture as reference_mixture

all_types = pytest.mark.parametrize("covariance_type", COVARIANCE_TYPES)
SHAPES = [(1, 1, 1), (31, 1, 5), (33, 2, 1), (33, 3, 8), (1, 5, 3), (31, 4, 33)]  # B, d, K
shapes = pytest.mark.parametrize(("rows", "dim", "n_components"), SHAPES)


def points(rows: int, dim: int, seed: int = 0) -> Tensor:
    return 2.5 * torch.randn(rows, dim, generator=generator(seed), dtype=torch.float64)


def expected_derivatives(m: GaussianMixture, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return log pi, its gradient, hessian times v, and the gradient of sum v . hvp(x, v), by autograd."""
    x = x.clone().requires_grad_()
    log_prob = torch_mixture(m).log_prob(x)
    (score,) = torch.autograd.grad(log_prob.sum(), x, create_graph=True)
    (hvp,) = torch.autograd.grad((score * v).sum(), x, create_graph=True)
    third = torch.autograd.grad((hvp * v).sum(), x, allow_unused=True)[0] if hvp.requires_grad else None
    third = torch.zeros_like(x) if third is None else third
    return log_prob.detach(), score.detach(), hvp.detach(), third


def assert_exact(found: Tensor, expected: Tensor) -> None:
    scale = max(1.0, float(expected.abs().amax()))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 * scale)


@all_types
@shapes
def test_densities_and_derivatives(covariance_type: str, rows: int, dim: int, n_components: int) -> None:
    m = random_mixture(covariance_type, n_components, dim)
    x, v = points(rows, dim), points(rows, dim, seed=1)
    log_prob, score, hvp, third = expected_derivatives(m, x, v)
    assert_exact(m.log_prob(x), log_prob)
    assert_exact(m.score(x), score)
    assert_exact(m.hvp(x, v), hvp)
    # gradients: of log_prob the score, of v . score the HVP, of v . hvp(x, v) the third derivative
    leaf, direction = x.clone().requires_grad_(), v.clone().requires_grad_()
    assert_exact(torch.autograd.grad(m.log_prob(leaf).sum(), leaf)[0], score)
    assert_exact(torch.autograd.grad((m.score(leaf) * v).sum(), leaf)[0], hvp)
    by_x, by_v = torch.autograd.grad((m.hvp(leaf, direction) * v).sum(), (leaf, direction))
    torch.testing.assert_close(by_x, third, rtol=1e-7, atol=1e-8)  # differences of large terms
    assert_exact(by_v, hvp)  # the hessian is symmetric


@all_types
def test_responsibilities(covariance_type: str) -> None:
    m = random_mixture(covariance_type, 6, 3)
    x = points(33, 3)
    law = torch_mixture(m)
    joint = law.component_distribution.log_prob(x[:, None]) + m.weights.log()
    torch.testing.assert_close(m.responsibilities(x), joint.softmax(1), rtol=1e-10, atol=1e-12)


@all_types
@pytest.mark.parametrize("deviations", [1e3, 1e5])
def test_far_away_nothing_overflows(covariance_type: str, deviations: float) -> None:
    """x up to 1e5 of the largest standard deviations from every mean, float32."""
    m = random_mixture(covariance_type, 5, 3, ratio=1.0)
    x = (deviations * torch.nn.functional.normalize(points(31, 3), dim=1)).float()
    v = points(31, 3, seed=1).float()
    log_prob, score, _, _ = expected_derivatives(m, x.double(), v.double())
    torch.testing.assert_close(m.log_prob(x).double(), log_prob, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(m.score(x).double(), score, rtol=1e-4, atol=1e-4 * deviations)
    assert bool(torch.isfinite(m.hvp(x, v)).all())
    leaf = x.clone().requires_grad_()
    assert bool(torch.isfinite(torch.autograd.grad(m.score(leaf).sum(), leaf)[0]).all())
    torch.testing.assert_close(m.responsibilities(x).sum(1), torch.ones(31))


@all_types
def test_non_contiguous_input_and_event_shapes(covariance_type: str) -> None:
    m = random_mixture(covariance_type, 4, 6, event_shape=(1, 2, 3))
    x, v = points(7, 6), points(7, 6, seed=1)
    log_prob, score, hvp, _ = expected_derivatives(m, x, v)
    strided, across = x.T.contiguous().T, torch.stack([v, v], dim=2)[..., 0]
    assert not strided.is_contiguous() and not across.is_contiguous()
    before = strided.clone()
    assert_exact(m.log_prob(strided), log_prob)
    assert_exact(m.score(strided), score)
    assert_exact(m.hvp(strided, across), hvp)
    assert torch.equal(strided, before)
    images, directions = x.reshape(7, 1, 2, 3), v.reshape(7, 1, 2, 3)
    assert m.log_prob(images).shape == (7,)
    assert_exact(m.score(images), score.reshape(images.shape))
    assert_exact(m.hvp(images, directions), hvp.reshape(images.shape))
    assert_exact(m.score(x[:1].expand(7, 6)), score[:1].expand(7, 6))
    assert m.sample(5, seed=0).shape == (5, 1, 2, 3)


@all_types
def test_blocks_of_components_give_the_same(covariance_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    m = random_mixture(covariance_type, 37, 3)
    x, v = points(10, 3), points(10, 3, seed=1)
    whole = m.log_prob(x), m.score(x), m.hvp(x, v)
    for block in (1, 2, 10, 36):
        monkeypatch.setattr(reference_mixture, "BLOCK_ELEMENTS", block * x.numel())
        for found, expected in zip((m.log_prob(x), m.score(x), m.hvp(x, v)), whole, strict=True):
            assert_exact(found, expected)


def test_responsibilities_in_blocks_of_components() -> None:
    m = random_mixture("spherical", 3, 1000)
    x = torch.zeros(2100, 1000)  # one component at a time
    torch.testing.assert_close(m.responsibilities(x)[:1], m.responsibilities(x[:1]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_computes_in_float32(dtype: torch.dtype) -> None:
    m = random_mixture("diag", 4, 3)
    x = points(33, 3).to(dtype)
    for found, expected in ((m.score(x), m.score(x.float())), (m.log_prob(x), m.log_prob(x.float()))):
        assert found.dtype == dtype
        assert torch.equal(found, expected.to(dtype))


def test_a_component_of_weight_zero_has_no_effect() -> None:
    means = [[0.0, 0.0], [1.0, 1.0]]
    with_it = GaussianMixture([1.0, 0.0], means, [1.0, 2.0], "spherical")
    without = GaussianMixture([1.0], means[:1], [1.0], "spherical")
    x, v = points(5, 2), points(5, 2, seed=1)
    for name in ("log_prob", "score"):
        assert_exact(getattr(with_it, name)(x), getattr(without, name)(x))
    assert_exact(with_it.hvp(x, v), without.hvp(x, v))


# --- construction -----------------------------------------


def clusters(n: int = 400, dim: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = 3.0 * rng.standard_normal((4, dim))
    return centres[rng.integers(4, size=n)] + rng.standard_normal((n, dim)) * rng.uniform(0.2, 1.0, dim)


@all_types
def test_round_trip_through_scikit_learn(covariance_type: str) -> None:
    from sklearn.mixture import GaussianMixture as Estimator

    X = clusters()
    theirs = Estimator(4, covariance_type=covariance_type, reg_covar=1e-2, random_state=0).fit(X)
    ours = GaussianMixture.from_sklearn(theirs)
    x = torch.from_numpy(X)
    np.testing.assert_allclose(ours.log_prob(x).numpy(), theirs.score_samples(X), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(ours.responsibilities(x).numpy(), theirs.predict_proba(X), rtol=1e-8, atol=1e-12)
    back = ours.to_sklearn()
    np.testing.assert_allclose(back.score_samples(X), theirs.score_samples(X), rtol=1e-10, atol=1e-10)
    assert (back.predict(X) == theirs.predict(X)).all()
    for name in ("weights_", "means_", "covariances_", "precisions_"):
        np.testing.assert_allclose(getattr(back, name), getattr(theirs, name), rtol=1e-10, atol=1e-12)
    for name in ("precisions_cholesky_",):
        a, b = getattr(back, name), getattr(theirs, name)
        assert a.shape == b.shape
        np.testing.assert_allclose(np.abs(a), np.abs(b), rtol=1e-8, atol=1e-10)
    assert back.sample(3)[0].shape == (3, 3)


@all_types
def test_fit_is_scikit_learn_s_in_float64(covariance_type: str) -> None:
    from sklearn.mixture import GaussianMixture as Estimator

    X = clusters().astype(np.float32)
    ours = GaussianMixture.fit(X, 4, covariance_type, reg_covar=1e-3, random_state=1, n_init=2)
    estimator = Estimator(4, covariance_type=covariance_type, reg_covar=1e-3, random_state=1, n_init=2)
    theirs = estimator.fit(X.astype(np.float64))
    assert ours.means.dtype == torch.float64
    np.testing.assert_allclose(ours.means.numpy(), theirs.means_, rtol=1e-10)
    np.testing.assert_allclose(ours.covariances.numpy(), theirs.covariances_, rtol=1e-10)


def test_fit_keeps_the_shape_of_images_and_takes_tensors() -> None:
    images = torch.from_numpy(clusters(60, 6)).reshape(60, 1, 2, 3)
    m = GaussianMixture.fit(images, 3, random_state=0)
    assert m.event_shape == (1, 2, 3)
    assert m.covariance_type == "spherical" and m.covariances.shape == (3,)
    assert m.score(images).shape == images.shape


def test_standard_normal() -> None:
    m = GaussianMixture.standard_normal(5)
    x = points(7, 5)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    assert_exact(m.log_prob(x), expected)
    assert_exact(m.score(x), -x)


def test_from_points_is_a_kernel_density_estimate() -> None:
    X = clusters(200)
    m = GaussianMixture.from_points(X, 0.3)
    assert m.n_components == 200
    grid = points(33, 3)
    distances = torch.cdist(grid, torch.from_numpy(X), compute_mode="donot_use_mm_for_euclid_dist") / 0.3
    kernels = -0.5 * distances.square() - 1.5 * math.log(2.0 * math.pi * 0.3**2)
    assert_exact(m.log_prob(grid), kernels.logsumexp(1) - math.log(200))
    assert GaussianMixture.from_points(X.reshape(200, 3, 1), 0.3).event_shape == (3, 1)


# Weighted mean over components of trace(Sigma_k) / d, and eigenvalues after a floor of 0.1 of it.
NARROW = {
    "spherical": ([0.05, 2.05], 0.25 * 0.05 + 0.75 * 2.05),
    "diag": ([[0.01, 1.0], [4.0, 0.02]], 0.25 * 0.505 + 0.75 * 2.01),
    "tied": ([[2.0, 1.9], [1.9, 2.0]], 2.0),
    "full": ([[[2.0, 1.9], [1.9, 2.0]], [[1.0, 0.0], [0.0, 0.5]]], 0.25 * 2.0 + 0.75 * 0.75),
}


@all_types
def test_conditioned_raises_narrow_eigenvalues_alone(covariance_type: str) -> None:
    covariances, mean = NARROW[covariance_type]
    m = GaussianMixture([0.25, 0.75], [[0.0, 1.0], [3.0, 0.0]], covariances, covariance_type)
    assert m.mean_variance == pytest.approx(mean, rel=1e-14)
    raised = m.conditioned(0.1)
    assert torch.equal(raised.weights, m.weights) and torch.equal(raised.means, m.means)
    before, axes = torch.linalg.eigh(full_covariances(m))
    expected = (axes * before.clamp(min=0.1 * mean)[:, None, :]) @ axes.mT
    assert_exact(full_covariances(raised), expected)
    assert float(raised.covariance_eigenvalues()[0].min()) == pytest.approx(0.1 * mean, rel=1e-12)
    # what is wide enough stays, bit for bit
    same = m.conditioned(1e-3)
    assert torch.equal(same.covariances, m.covariances) and same.digest == m.digest


def test_conditioned_keeps_dtype_and_shape_and_is_made_by_fit() -> None:
    X = clusters(300).reshape(300, 3, 1)
    m = GaussianMixture.fit(X, 3, "full", 1e-6, random_state=0)
    floored = GaussianMixture.fit(X, 3, "full", 1e-6, random_state=0, eigenvalue_floor=0.5)
    assert torch.equal(floored.covariances, m.conditioned(0.5).covariances)
    assert not torch.equal(floored.covariances, m.covariances)
    half = m.float().conditioned(0.5)
    assert half.covariances.dtype == torch.float32 and half.event_shape == (3, 1)
    assert float(m.conditioned(1.0).covariance_eigenvalues()[0].min()) == pytest.approx(m.mean_variance, rel=1e-5)


def rotation(angle: float) -> Tensor:
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


def expected_symmetrized_log_prob(m: GaussianMixture, maps: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Return log of the mean of pi and its images under x -> A x + b: p(A^-1 (x - b)) / |det A|."""
    terms = [torch_mixture(m).log_prob(x)]
    for matrix, offset in maps:
        back = torch.linalg.solve(matrix, (x - offset).T).T
        terms.append(torch_mixture(m).log_prob(back) - torch.linalg.det(matrix).abs().log())
    return torch.stack(terms).logsumexp(0) - math.log(len(terms))


@pytest.mark.parametrize(
    ("covariance_type", "matrices"),
    [
        pytest.param("spherical", [rotation(0.7), 1.5 * rotation(2.0)], id="spherical, rotations and a dilation"),
        pytest.param("diag", [torch.diag(torch.tensor([-2.0, 0.5]).double())], id="diag, axes scaled"),
        pytest.param("diag", [rotation(math.pi / 2)], id="diag, a quarter turn"),
        pytest.param("tied", [-torch.eye(2).double()], id="tied, point reflection"),
        pytest.param("full", [rotation(0.3), torch.tensor([[1.0, 2.0], [0.0, 1.0]]).double()], id="full, a shear"),
    ],
)
def test_symmetrized_is_the_average_of_the_images(covariance_type: str, matrices: list[Tensor]) -> None:
    m = random_mixture(covariance_type, 3, 2)
    x = points(33, 2)
    offset = torch.tensor([0.5, -1.0], dtype=torch.float64)
    zero = torch.zeros_like(offset)
    for maps, given in (
        ([(matrix, zero) for matrix in matrices], matrices),
        ([(matrix, offset) for matrix in matrices], [lambda p, a=a: p @ a.T + offset for a in matrices]),
    ):
        symmetric = m.symmetrized(given)
        assert symmetric.n_components == 3 * (1 + len(matrices))
        assert symmetric.covariance_type == covariance_type
        assert_exact(symmetric.log_prob(x), expected_symmetrized_log_prob(m, maps, x))


def test_symmetrized_by_flips_of_images() -> None:
    m = random_mixture("diag", 3, 12, event_shape=(1, 3, 4))
    flips = [lambda x: x.flip(-1), lambda x: x.flip(-2), lambda x: x.flip(-1, -2)]
    symmetric = m.symmetrized(flips)
    assert symmetric.event_shape == (1, 3, 4) and symmetric.n_components == 12
    x = points(9, 12).reshape(9, 1, 3, 4)
    for flip in flips:  # a group: the average is invariant
        assert_exact(symmetric.log_prob(flip(x)), symmetric.log_prob(x))
    expected = torch.stack([m.log_prob(x), *(m.log_prob(flip(x)) for flip in flips)]).logsumexp(0) - math.log(4)
    assert_exact(symmetric.log_prob(x), expected)


def test_symmetrized_counts_the_identity_once() -> None:
    m = random_mixture("full", 3, 2)
    eye = torch.eye(2, dtype=torch.float64)
    same = m.symmetrized([eye, lambda x: x.clone()])
    assert same.n_components == 3
    assert_exact(same.log_prob(points(5, 2)), m.log_prob(points(5, 2)))
    assert m.symmetrized([eye, -eye]).n_components == 6


# --- exact draws -----------------------------------------


@all_types
def test_draws_have_the_law(covariance_type: str) -> None:
    """Component frequencies, mean and covariance, and Kolmogorov-Smirnov in every dimension."""
    from scipy.stats import chi2, norm

    n = 200_000
    m = random_mixture(covariance_type, 4, 3)
    x = m.sample(n, seed=5)
    assert x.shape == (n, 3) and x.dtype == torch.float64

    # The mean responsibility of component k under pi is w_k.
    r = m.responsibilities(x)
    z = (r.mean(0) - m.weights) / (r.std(0) / math.sqrt(n))
    assert float(z.abs().amax()) < 4.0

    mean = m.weights @ m.means
    centred = m.means - mean
    covariance = torch.einsum("k,kij->ij", m.weights, full_covariances(m) + centred[:, :, None] * centred[:, None])
    deviations = x - mean
    z = deviations.mean(0) / (x.std(0) / math.sqrt(n))
    assert float(z.square().sum()) < chi2.isf(1e-4, 3) * 3  # correlated, so generous
    products = deviations[:, :, None] * deviations[:, None]
    z = (products.mean(0) - covariance) / (products.std(0) / math.sqrt(n))
    assert float(z.abs().amax()) < 4.5

    sigma = full_covariances(m).diagonal(dim1=1, dim2=2).sqrt().numpy()
    for j in range(3):
        values = np.sort(x[:, j].numpy())
        cdf = (norm.cdf((values[:, None] - m.means[:, j].numpy()) / sigma[:, j]) * m.weights.numpy()).sum(1)
        steps = np.arange(n + 1) / n
        ks = max(np.abs(cdf - steps[1:]).max(), np.abs(cdf - steps[:-1]).max()) * math.sqrt(n)
        assert ks < 1.95, f"dimension {j}"


def test_component_frequencies() -> None:
    """Components far apart, one of weight zero: counts by nearest mean against the weights."""
    from scipy.stats import chisquare

    weights = np.array([0.5, 0.0, 0.3, 0.15, 0.05])
    m = GaussianMixture(weights, 100.0 * np.arange(5)[:, None], np.ones(5), "spherical")
    nearest = (m.sample(100_000, seed=1) / 100.0).round().long().flatten()
    counts = torch.bincount(nearest, minlength=5).numpy()
    assert counts[1] == 0
    kept = weights > 0
    assert chisquare(counts[kept], 100_000 * weights[kept]).pvalue > 1e-3


@all_types
def test_a_draw_depends_on_its_number_alone(covariance_type: str) -> None:
    m = random_mixture(covariance_type, 5, 3)
    whole = m.sample(33, seed=9)
    parts = torch.cat([m.sample(20, seed=9), m.sample(13, seed=9, first_path=20)])
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=1e-14)
    assert not torch.equal(m.sample(33, seed=10), whole)
    torch.manual_seed(3)
    drawn = m.sample(4)
    torch.manual_seed(3)
    assert torch.equal(m.sample(4), drawn)


# --- as a module -----------------------------------------


@all_types
def test_state_dict_round_trip(covariance_type: str) -> None:
    m, other = random_mixture(covariance_type, 4, 3, seed=1), random_mixture(covariance_type, 4, 3, seed=2)
    x, v = points(5, 3), points(5, 3, seed=1)
    assert not torch.allclose(other.log_prob(x), m.log_prob(x))
    assert set(m.state_dict()) == {"weights", "means", "covariances"}
    other.load_state_dict(m.state_dict())
    assert torch.equal(other.log_prob(x), m.log_prob(x))
    assert torch.equal(other.hvp(x, v), m.hvp(x, v))
    assert torch.equal(other.sample(5, seed=0), m.sample(5, seed=0))
    assert torch.equal(copy.deepcopy(m).score(x), m.score(x))


@all_types
def test_to_another_dtype(covariance_type: str) -> None:
    m = random_mixture(covariance_type, 4, 3)
    x = points(5, 3)
    expected = m.score(x)
    m.score(x.float())
    single = copy.deepcopy(m).to(torch.float32)
    assert single.means.dtype == torch.float32 and single.sample(2, seed=0).dtype == torch.float32
    found = single.score(x)
    assert found.dtype == torch.float64  # ops compute in the dtype of x
    assert not torch.equal(found, expected)  # from the rounded parameters
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(single.score(x.float()).double(), expected, rtol=1e-4, atol=1e-4)


def test_parameters_keep_their_dtype_and_take_lists_and_arrays() -> None:
    m = GaussianMixture([1], [[0, 1]], [1], "spherical")
    assert m.means.dtype == torch.float64
    m = GaussianMixture(torch.ones(1), np.zeros((1, 2)), np.ones(1), "spherical")
    assert m.means.dtype == torch.float64
    m = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.ones(1), "spherical")
    assert m.means.dtype == m.weights.dtype == m.covariances.dtype == torch.float32
