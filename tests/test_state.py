"""State that a cast, a load or a mode must not touch, and the dtypes and modes in which a network is evaluated."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import quietly, random_mixture
from torch import Tensor, nn

import fastndsm
from fastndsm import DSMLoss, GaussianMixture, LangevinProcess, NDSMLoss, OUProcess, ResidualScore, networks, sample
from fastndsm.backends import registry

CASTS: dict[str, Callable[[nn.Module], Any]] = {
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "to": lambda m: m.to(torch.bfloat16),
    "to like": lambda m: m.to(torch.zeros((), dtype=torch.float16)),
    "type": lambda m: m.type(torch.float16),
    "there and back": lambda m: m.bfloat16().float(),
}
casts = pytest.mark.parametrize("cast", CASTS)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def process(n_steps: int = 1000, variance: float = 1.0, **options: Any) -> LangevinProcess:
    mixture = GaussianMixture([0.4, 0.6], [[-1.0, 0.5], [1.0, 0.0]], [variance, 0.5 * variance], "spherical")
    return LangevinProcess(mixture, n_steps=n_steps, **options)


def woken(p: LangevinProcess, features: bool = False, **options: Any) -> ResidualScore:
    """Return a network whose last layer is not zero."""
    torch.manual_seed(0)
    net = networks.MLP(2, (8,), in_dim=4 if features else 2, horizon=p.T, **options)
    nn.init.normal_(net.last.weight, std=0.1)
    return ResidualScore(net, p, features)


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.named_buffers()}


# --- casts -------------------------------------------------------------------------------------------------------


@casts
def test_a_cast_around_a_process_leaves_its_tables_and_mixture(cast: str) -> None:
    p = process()
    net, loss, before = woken(p), NDSMLoss(p), buffers(p)
    x0 = torch.randn(50, 2)
    expected = p.noised(x0, seed=3)
    CASTS[cast](net)
    CASTS[cast](loss)
    for name, tensor in p.named_buffers():
        assert tensor.dtype == torch.float64 and torch.equal(tensor, before[name]), name
    assert len(p.times.unique()) == 1001
    for one, other in zip(p.noised(x0, seed=3), expected, strict=True):
        assert torch.equal(one, other)


@casts
def test_a_cast_leaves_a_mixture_in_a_module_of_the_users(cast: str) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.prior = nn.Linear(2, 2), random_mixture("full", 3, 2)

    own = Own()
    before = buffers(own.prior)
    CASTS[cast](own)
    assert all(torch.equal(t, before[name]) for name, t in own.prior.named_buffers())


def test_the_horizon_of_large_data_is_finite_in_half_precision() -> None:
    p = process(variance=1e6)
    woken(p).half()
    assert p.T == 3e6 and p.times[-1] == 3e6


@casts
def test_an_embedding_of_times_is_not_rounded(cast: str) -> None:
    embedding = networks.TimeEmbedding(16, 3.0)
    t = torch.linspace(0.0, 3.0, 7)
    expected = embedding(t)
    assert torch.equal(CASTS[cast](embedding)(t), expected)


@dtypes
def test_times_of_noised_data_are_all_told_apart(dtype: torch.dtype) -> None:
    p = process()
    steps = torch.arange(1000)
    for drawn in (
        p.noised(torch.randn(1000, 2, dtype=dtype), steps),
        p.transition(torch.randn(1000, 2, dtype=dtype), steps),
    ):
        assert drawn.x.dtype == dtype and len(drawn.t.unique()) == 1000
    assert OUProcess(2).exact_noised(torch.randn(100, 2, dtype=dtype), torch.arange(100)).t.unique().numel() == 100


def test_a_grid_in_float32_is_taken() -> None:
    grid = torch.linspace(0.0, 3.3, 101)
    assert process(grid=grid, T=3.3).n_steps == 100
    with pytest.raises(ValueError, match=r"^T: expected the last time of grid"):
        process(grid=grid, T=3.31)


# --- loads -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [False, True])
def test_a_state_dict_holds_all_that_defines_the_score(features: bool) -> None:
    """Mixture, scale of the features, horizon, sigma: another network has them after the load."""
    net = woken(process(50), features)
    other = woken(process(50, variance=4.0, sigma=0.5), features)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert all(isinstance(tensor, Tensor) for tensor in state.values())
    other.load_state_dict(state)
    x, t = torch.randn(9, 2), torch.rand(9)
    assert torch.equal(other(x, t), net(x, t))
    assert other.process.T == net.process.T and other.process.sigma == net.process.sigma
    assert torch.equal(other.process.drift(x, 0.5), net.process.drift(x, 0.5))
    assert torch.equal(sample(other, other.process, 5, seed=1), sample(net, net.process, 5, seed=1))


def test_a_state_dict_of_before_horizons_were_stored_loads() -> None:
    net = woken(process(50))
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("_extra_state")}
    woken(process(50)).load_state_dict(state)


def test_a_mixture_of_another_covariance_type_is_refused() -> None:
    """Tied [d, d] and diag [K, d] have one shape where K = d."""
    tied = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]], "tied")
    diag = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [1.0, 1.0]], [[1.0, 2.0], [3.0, 1.0]], "diag")
    with pytest.raises(ValueError, match=r"^state_dict: expected 'tied' covariances, found 'diag'"):
        tied.load_state_dict(diag.state_dict())


def test_a_network_of_another_process_is_refused() -> None:
    p = process(100)
    net, x = woken(p), torch.randn(5, 2)
    others = {
        "mixture": process(100, variance=2.0),
        "sigma": process(100, sigma=0.7, T=p.T),
        "T": process(100, T=2.0 * p.T),
        "linear": OUProcess(2, n_steps=100),
    }
    for other in others.values():
        refused = pytest.raises(
            ValueError, match=r"^score_net: expected a ResidualScore on the mixture, sigma and T of"
        )
        with refused:
            NDSMLoss(other)(net, x)
        with refused:
            sample(net, other, 3)
        with refused:
            fastndsm.log_likelihood(net, other, x)
    with pytest.raises(ValueError, match=r"^score_net"):
        DSMLoss(OUProcess(2, n_steps=100))(net, x)


def test_a_process_that_differs_in_its_grid_alone_is_taken() -> None:
    p = process(100)
    net, x = woken(p), torch.randn(5, 2)
    for other in (process(300), process(100, grid="quadratic"), copy.deepcopy(p)):
        assert sample(net, other, 3, seed=0).isfinite().all()
        assert NDSMLoss(other)(net, x, seed=0).isfinite()


# --- dtypes ------------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("method", ["sde", "ode"])
def test_a_network_of_any_dtype_is_sampled_in_it(dtype: torch.dtype, method: str) -> None:
    p = process(50)
    net = woken(p).to(dtype)
    made = sample(net, p, 200, method, seed=1)
    assert made.dtype == dtype
    exact = sample(woken(p).double(), p, 200, method, seed=1)
    torch.testing.assert_close(made.double(), exact, rtol=0.0, atol=40 * torch.finfo(dtype).eps)


@dtypes
def test_samples_are_of_the_dtype_that_is_named(dtype: torch.dtype) -> None:
    p = process(50)
    made = sample(woken(p), p, 20, seed=1, dtype=dtype)
    assert made.dtype == dtype
    torch.testing.assert_close(made.float(), sample(woken(p), p, 20, seed=1), rtol=0.02, atol=0.02)
    assert sample(lambda x, t: -x, p, 3, dtype=dtype).dtype == dtype
    with pytest.raises(TypeError, match=r"^dtype: expected a floating point dtype, found torch.int64"):
        sample(woken(p), p, 3, dtype=torch.int64)


@dtypes
def test_a_likelihood_of_any_dtype(dtype: torch.dtype) -> None:
    p = process(50)
    x = torch.randn(20, 2)
    found = fastndsm.log_likelihood(woken(p).to(dtype), p, x)
    exact = fastndsm.log_likelihood(woken(p).double(), p, x.double())
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), exact, rtol=0.0, atol=100 * torch.finfo(dtype).eps)
    assert fastndsm.log_likelihood(woken(p), p, x.to(dtype)).isfinite().all()


def test_a_first_parameter_of_another_dtype_is_no_obstacle() -> None:
    class Own(nn.Module):
        def __init__(self, first: Tensor) -> None:
            super().__init__()
            self.first = nn.Parameter(first, requires_grad=False)
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return -self.linear(x)

    p = process(20)
    for first in (
        torch.zeros(1, dtype=torch.complex64),
        torch.zeros(1, dtype=torch.float64),
        torch.zeros(1, dtype=torch.int8),
    ):
        assert sample(Own(first), p, 3).dtype == torch.float32
        assert fastndsm.log_likelihood(Own(first), p, torch.randn(3, 2)).dtype == torch.float32


@dtypes
def test_a_residual_score_is_like_x(dtype: torch.dtype) -> None:
    p = process(50)
    x, t = torch.randn(5, 2, dtype=dtype), p.times[torch.arange(1, 6)].float()
    for features in (False, True):
        assert woken(p, features).to(dtype)(x, t).dtype == dtype


# --- modes -------------------------------------------------------------------------------------------------------


class Moody(nn.Module):
    """Dropout and batch normalisation, a part of it in eval mode for good."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 2))
        self.frozen = nn.Dropout(0.5)
        self.frozen.eval()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.frozen(self.layers(x)) - x


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "residual"])
def test_networks_are_evaluated_in_eval_mode_and_left_as_they_were(wrapped: bool) -> None:
    p = process(20)
    net = ResidualScore(Moody(), p) if wrapped else Moody()
    modes = {name: module.training for name, module in net.named_modules()}
    statistics, x = buffers(net), torch.randn(6, 2)

    def results() -> tuple[Tensor, Tensor, Tensor]:
        return sample(net, p, 5, seed=1), sample(net, p, 5, "ode", seed=1), fastndsm.log_likelihood(net, p, x)

    found = results()
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert all(torch.equal(t, statistics[name]) for name, t in net.named_buffers())
    net.eval()
    assert all(torch.equal(a, b) for a, b in zip(found, results(), strict=True))

    net.train()

    def failing(x: Tensor, t: Tensor) -> Tensor:
        raise KeyError("on purpose")

    net.forward = failing  # type: ignore[method-assign]
    with pytest.raises(KeyError):
        sample(net, p, 5)
    assert net.training


def test_use_backend_acts_when_called_and_restores_as_a_context() -> None:
    outer = registry.requested()

    @fastndsm.use_backend("reference")
    def inside() -> str:
        return registry.requested()

    assert registry.requested() == outer and inside() == "reference" and registry.requested() == outer
    with fastndsm.use_backend("reference") as nothing:
        assert nothing is None and registry.requested() == "reference"
        with fastndsm.use_backend("auto"):
            assert registry.requested() == "auto"
        assert registry.requested() == "reference"
    assert registry.requested() == outer
    with pytest.raises(ValueError, match=r"^name: expected one of auto, cuda, triton, cpp, reference, found 'foo'"):
        fastndsm.use_backend("foo")
    again = fastndsm.use_backend("reference")
    assert registry.requested() == "reference"
    with again, again:
        assert registry.requested() == "reference"
    assert registry.requested() == outer
    try:
        fastndsm.use_backend("reference")
        seen: list[str] = []
        thread = threading.Thread(target=lambda: seen.append(registry.requested()))
        thread.start()
        thread.join()
        assert seen == ["auto"] and registry.requested() == "reference"  # a thread of its own, as for grad mode
    finally:
        fastndsm.use_backend(outer)


def test_weights_that_are_negative_or_nan_are_refused() -> None:
    p = process(20)
    for value, found in ((-1.0, "-1"), (float("nan"), "nan"), (float("inf"), "inf")):
        with pytest.raises(ValueError, match=f"^weighting: expected finite weights of at least 0, found {found}"):
            NDSMLoss(p, weighting=lambda t, v=value: torch.full_like(t, v))(woken(p), torch.randn(3, 2))


def test_a_fit_far_from_zero_is_that_of_centred_data() -> None:
    points = torch.randn(400, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for kind in ("spherical", "diag", "tied", "full"):
        near = GaussianMixture.fit(points, 2, kind, random_state=0)
        for offset in (1e7, -3e8):
            far = GaussianMixture.fit(points + offset, 2, kind, random_state=0)
            torch.testing.assert_close(far.covariances, near.covariances, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(far.means - offset, near.means, rtol=1e-5, atol=1e-5)


def test_a_large_reg_covar_is_told() -> None:
    points = 1e-3 * torch.randn(100, 2)
    with pytest.warns(UserWarning, match=r"^reg_covar: expected at most a tenth of the data's mean variance"):
        GaussianMixture.fit(points, 2)
    GaussianMixture.fit(points, 2, reg_covar=1e-8)


def test_a_large_step_is_still_warned_of_from_inside_inference_mode() -> None:
    with torch.inference_mode():
        p = quietly(random_mixture("full", 3, 2), T=0.4, n_steps=12)
        assert not p.times.is_inference() and not p.reference.means.is_inference()
