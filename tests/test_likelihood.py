"""Likelihood as it is reported: its error, its gradients, bits per dimension of integers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import normals, on_one_backend, quietly, random_mixture  # noqa: F401
from torch import Tensor, nn

from fastndsm import OUProcess, ResidualScore, log_likelihood, networks
from fastndsm.data import Standardizer, dequantize
from fastndsm.metrics import bits_per_dimension

pytestmark = pytest.mark.filterwarnings("ignore:condition. expected a prior")
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)


def gaussian(std: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the exact score of N(MEAN, diag(std^2)) noised by the Ornstein-Uhlenbeck process."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        m = (-0.5 * t.double()[:, None]).exp()
        return (-(x.double() - m * MEAN) / (m**2 * std**2 + 1.0 - m**2)).to(x.dtype)

    return score


def under_the_flow(x: Tensor, std: Tensor, T: float) -> Tensor:
    """Return log p(x) of the flow that ends in N(0, I) at T: it is linear."""
    m = math.exp(-0.5 * T)
    scale = (m**2 * std**2 + 1.0 - m**2).sqrt() / std
    end = m * MEAN + scale * (x - MEAN)
    return (torch.distributions.Normal(0.0, 1.0).log_prob(end) + scale.log()).sum(1)


class TestError:
    @pytest.mark.parametrize(("T", "std"), [(10.0, (0.5, 1.5)), (10.0, (0.1, 0.3)), (3.0, (0.1, 0.3))], ids=str)
    @pytest.mark.parametrize("n_steps", [100, 1000])
    def test_it_bounds_the_true_one_on_gaussian_data(self, n_steps: int, T: float, std: tuple[float, ...]) -> None:
        process, deviation = OUProcess(2, T, n_steps, grid="quadratic"), torch.tensor(std, dtype=torch.float64)
        x = MEAN + deviation * normals(1000, 2, dtype=torch.float64)
        exact, means = under_the_flow(x, deviation, T), []
        for M in (5, 10, 20, 50, 100):
            found, error = log_likelihood(gaussian(deviation), process, x, n_evaluations=M, return_error=True)
            off = (found - exact).abs()
            assert off.mean() < error.mean()
            assert (off <= error).double().mean() > 0.8  # where both differences are small by chance, it may be less
            means.append(float(error.mean()))
        assert means[-1] < 0.2 * means[0]  # no bound by being vast

    def test_the_value_is_that_without_it(self) -> None:
        process, x = OUProcess(2, 3.0, 50), normals(5, 2)
        score = gaussian(torch.ones(2, dtype=torch.float64))
        found, error = log_likelihood(score, process, x, return_error=True)
        assert torch.equal(found, log_likelihood(score, process, x)) and error.shape == (5,)

    def test_one_evaluation_has_none(self) -> None:
        with pytest.raises(ValueError, match="return_error: expected it with n_evaluations of at least 2, found 1"):
            log_likelihood(lambda x, t: -x, OUProcess(2), normals(5, 2), n_evaluations=1, return_error=True)
        with pytest.raises(TypeError, match="return_error: expected True or False, found 'yes'"):
            log_likelihood(lambda x, t: -x, OUProcess(2), normals(5, 2), return_error="yes")


def conditional(dim: int) -> tuple[nn.Module, Any]:
    process = quietly(random_mixture("full", 3, dim, seed=1, ratio=3.0), T=0.5, n_steps=8)
    net = networks.MLP(dim, (8,), horizon=process.T, embedding_dim=8, condition_dim=2).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.3 * normals(1, p.numel(), seed=i, dtype=torch.float64).reshape(p.shape))
    return ResidualScore(net, process), process


class TestGradient:
    @pytest.mark.parametrize("dim", [2, 18], ids=["exact divergence", "probes"])
    def test_in_x_against_finite_differences(self, dim: int) -> None:
        net, process = conditional(dim)
        x, y = normals(3, dim, dtype=torch.float64).requires_grad_(), normals(3, 2, seed=5, dtype=torch.float64)

        def value(x: Tensor) -> Tensor:
            return log_likelihood(net, process, x, condition=y, seed=2)

        found = value(x)
        assert torch.equal(found, value(x.detach()))  # the graph changes nothing
        (gradient,) = torch.autograd.grad(found.sum(), x)
        h = 1e-5
        for j in range(min(dim, 3)):
            step = torch.zeros(dim, dtype=torch.float64)
            step[j] = h
            difference = (value(x.detach() + step) - value(x.detach() - step)) / (2 * h)
            torch.testing.assert_close(gradient[:, j], difference, rtol=1e-6, atol=1e-7)

    def test_of_an_exact_score_it_is_the_score(self) -> None:
        std = torch.tensor([0.5, 1.5], dtype=torch.float64)
        process = OUProcess(2, 10.0, 400, grid="quadratic")
        x = (MEAN + std * normals(20, 2, dtype=torch.float64)).requires_grad_()
        (gradient,) = torch.autograd.grad(log_likelihood(gaussian(std), process, x).sum(), x)
        (exact,) = torch.autograd.grad(under_the_flow(x, std, 10.0).sum(), x)
        torch.testing.assert_close(gradient, exact, rtol=2e-3, atol=2e-3)

    def test_in_the_networks_parameters(self) -> None:
        net, process = conditional(2)
        x, y = normals(4, 2, dtype=torch.float64).requires_grad_(), normals(4, 2, seed=5, dtype=torch.float64)
        weight = net.net.last.bias
        (gradient,) = torch.autograd.grad(log_likelihood(net, process, x, condition=y).sum(), weight)
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                weight[1] += h
                values.append(float(log_likelihood(net, process, x, condition=y).sum()))
                weight[1] -= h
        assert float(gradient[1]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)

    def test_where_none_is_asked_for_there_is_none(self) -> None:
        net, process = conditional(2)
        x, y = normals(3, 2, dtype=torch.float64), normals(3, 2, seed=5, dtype=torch.float64)
        assert not log_likelihood(net, process, x, condition=y).requires_grad
        with torch.no_grad():
            assert not log_likelihood(net, process, x.requires_grad_(), condition=y).requires_grad


class TestDequantization:
    def test_values_are_uniform_in_their_cells(self) -> None:
        x = torch.arange(4000).reshape(-1, 4) % 5
        z = dequantize(x, 5, -2.0, 3.0, seed=1, dtype=torch.float64)
        assert torch.equal((z + 2.0).floor().long(), x) and z.shape == x.shape
        noise = (z + 2.0 - x).flatten()
        gap = (noise.sort().values - (torch.arange(len(noise)) + 0.5) / len(noise)).abs().max()
        assert gap < 1.95 / len(noise) ** 0.5  # Kolmogorov and Smirnov, level 0.001

    def test_a_rows_noise_depends_on_its_number_alone(self) -> None:
        x = torch.zeros(6, 3, 2, dtype=torch.uint8)
        z = dequantize(x, seed=3)
        assert z.dtype == torch.float32
        assert torch.equal(dequantize(x[2:4], seed=3, first_path=2), z[2:4])
        assert torch.equal(dequantize(x.double(), seed=3), z)
        for other in (dequantize(x, seed=4), dequantize(x, seed=3, step=1)):
            assert (other != z).all()

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"x": torch.tensor([[0.5]])}, ValueError, "x: expected integers, 0..levels-1, found numbers between them"),
            ({"x": torch.tensor([[0, 256]])}, ValueError, "x: expected integers in 0..255, found 0 to 256"),
            ({"x": torch.tensor([[-1, 3]])}, ValueError, "x: expected integers in 0..255, found -1 to 3"),
            ({"x": torch.tensor([1, 3])}, ValueError, r"x: expected a non-empty \[n, \*event\], found shape \(2,\)"),
            ({"x": torch.tensor([[True]])}, TypeError, "x: expected a Tensor of integers, found torch.bool"),
            ({"x": [[1]]}, TypeError, "x: expected a Tensor of integers, found list"),
            ({"levels": 1}, ValueError, "levels: expected an integer of at least 2, found 1"),
            ({"low": 1.0}, ValueError, "high: expected a number above low, 1, found 1"),
            ({"dtype": torch.int64}, TypeError, "dtype: expected a floating point dtype, found torch.int64"),
        ],
    )
    def test_bad_input(self, options: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=f"^{message}"):
            dequantize(**{"x": torch.tensor([[0, 1]]), **options})


def noised_cells(p: Tensor, low: float, width: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the exact score of independent values with probabilities p, each spread over its cell, when noised."""
    edges = low + width * torch.arange(len(p) + 1, dtype=torch.float64)

    def score(x: Tensor, t: Tensor) -> Tensor:
        m = (-0.5 * t.double())[:, None, None].exp()
        std = (1.0 - m**2).sqrt()
        z = (m * edges - x[..., None]) / std
        density = (p * torch.special.ndtr(z).diff()).sum(-1)
        slope = -(p * (-0.5 * z**2).exp().diff()).sum(-1) / (math.sqrt(2.0 * math.pi) * std[..., 0])
        return slope / density

    return score


class TestBitsPerDimension:
    @pytest.mark.parametrize("p", [(0.5, 0.2, 0.3), (0.9, 0.1), (0.25,) * 4], ids=str)
    @pytest.mark.parametrize(("low", "high"), [(-1.5, 1.5), (0.0, 2.0)])
    def test_of_a_known_law_they_are_its_entropy(self, p: tuple[float, ...], low: float, high: float) -> None:
        law, levels = torch.tensor(p, dtype=torch.float64), len(p)
        process = OUProcess(2, grid=20.0 * torch.linspace(0.0, 1.0, 301, dtype=torch.float64) ** 3)
        x = torch.multinomial(law, 2000, replacement=True, generator=torch.Generator().manual_seed(0)).reshape(-1, 2)
        score = noised_cells(law, low, (high - low) / levels)
        options: dict[str, Any] = {"levels": levels, "low": low, "high": high, "dtype": torch.float64}
        found, error = bits_per_dimension(score, process, x, **options, return_error=True)
        tolerance = 4.0 * float(found.std() / len(found) ** 0.5) + float(error.mean())
        assert tolerance < 0.1
        assert float(found.mean()) == pytest.approx(-float((law * law.log2()).sum()), abs=tolerance)
        assert float((found + law.log2()[x].mean(1)).abs().mean()) < float(error.mean()) + 1e-3  # row by row, too

    @pytest.mark.parametrize("n_draws", [1, 3])
    def test_of_a_rounded_gaussian_they_are_what_its_density_says(self, n_draws: int) -> None:
        """Sum over k of P(k) times the mean over the cell of k of -log2 density, by quadrature, in 100 levels."""
        normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
        standardizer = Standardizer([3.0], [2.0], (2,))  # z = (y - 3) / 2 ~ N(0, 1), y in -9..15
        low, high, levels = -9.0, 15.0, 48
        nodes = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
        y = low + 0.5 * (torch.arange(levels, dtype=torch.float64)[:, None] + nodes)
        z = (y - 3.0) / 2.0
        edges = (low + 0.5 * torch.arange(levels + 1, dtype=torch.float64) - 3.0) / 2.0
        expected = (normal.cdf(edges).diff() * (math.log(0.25) + normal.log_prob(z)).mean(1)).sum() / -math.log(2.0)
        drawn = (3.0 + 2.0 * normals(2000, 2, seed=1, dtype=torch.float64) - low) / 0.5
        x = drawn.floor().long().clamp(0, levels - 1).to(torch.uint8)
        found = bits_per_dimension(
            lambda x, t: -x,
            OUProcess(2, 1.0, 10),
            x,
            levels=levels,
            low=low,
            high=high,
            standardizer=standardizer,
            n_draws=n_draws,
            dtype=torch.float64,
        )
        assert found.dtype == torch.float64 and found.shape == (2000,)
        assert float(found.mean()) == pytest.approx(float(expected), abs=4.0 * float(found.std()) / 2000**0.5)

    def test_more_draws_scatter_less_about_one_mean(self) -> None:
        x = torch.full((500, 2), 1)
        options: dict[str, Any] = {"levels": 3, "low": -3.0, "high": 3.0, "n_evaluations": 4}
        one, many = (
            bits_per_dimension(lambda x, t: -x, OUProcess(2, 1.0, 10), x, n_draws=n, **options) for n in (1, 16)
        )
        assert float(many.std()) == pytest.approx(float(one.std()) / 4.0, rel=0.15)
        assert float(many.mean()) == pytest.approx(float(one.mean()), abs=4.0 * float(one.std()) / 500**0.5)

    def test_a_condition_goes_to_the_network(self) -> None:
        net, process = conditional(2)
        x, y = torch.tensor([[3, 4], [3, 4]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
        found = bits_per_dimension(net, process, x, levels=8, condition=y)
        assert found[0] != found[1]
        z = dequantize(x, 8, seed=0, dtype=torch.float64)
        nats = log_likelihood(net, process, z, condition=y) + 2.0 * math.log(0.25)
        torch.testing.assert_close(found, nats / (-2.0 * math.log(2.0)))

    def test_a_constant_feature_has_no_density(self) -> None:
        flat = Standardizer([0.0, 0.0], [1.0, 0.0], (2,))
        with pytest.raises(ValueError, match="standardizer: expected scales above 0, of dequantized data, found a"):
            bits_per_dimension(lambda x, t: -x, OUProcess(2), torch.zeros(3, 2), standardizer=flat)
