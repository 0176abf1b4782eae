"""Sampling with a small network evaluated by compiled code: the same samples as where the network is called."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cpp_cases import kernels  # noqa: F401
from helpers import COVARIANCE_TYPES, quietly, random_mixture
from torch import Tensor, nn

from fastndsm import GaussianMixture, LangevinProcess, OUProcess, ResidualScore, sample, use_backend
from fastndsm.backends import registry
from fastndsm.networks import MLP, UNet

ROWS = 67  # of tiles of 1 to 32 samples


def network(dim: int, hidden: tuple[int, ...] = (24, 24), *, features: bool = False, **options: Any) -> MLP:
    """Build a network with random weights everywhere, also in the last layer."""
    torch.manual_seed(0)
    net = MLP(dim, hidden, in_dim=2 * dim if features else dim, **options)
    for parameter in net.last.parameters():
        nn.init.normal_(parameter, std=0.1)
    nn.init.normal_(net.film.out.weight, std=0.1)
    return net


def process(kind: str = "spherical", dim: int = 2, components: int = 5, **options: Any) -> LangevinProcess:
    return quietly(random_mixture(kind, components, dim, ratio=4.0, **options), T=0.8, n_steps=10)


def both(score_net: Any, p: LangevinProcess, n: int = ROWS, **options: Any) -> tuple[Tensor, Tensor]:
    """Sample by the op, and by calling the network at every step, in float64: some rows amplify its rounding."""
    exact = copy.deepcopy(score_net, {id(p): p}).double()
    found = sample(score_net, p, n, seed=3, fused=True, **options)
    return found, sample(exact, p, n, seed=3, fused=False, dtype=torch.float64, **options)


def assert_same_samples(found: Tensor, expected: Tensor) -> None:
    """Require equality to the rounding of some dozen steps in float32."""
    assert found.shape == expected.shape and found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), rtol=2e-5, atol=2e-5)


# --- the same samples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sde", "ode"])
@pytest.mark.parametrize("score", ["plain", "residual", "features"])
@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_samples_are_those_of_the_module(kind: str, score: str, method: str) -> None:
    p = process(kind)
    net: nn.Module = network(2, features=score == "features", horizon=p.T)
    if score != "plain":
        net = ResidualScore(net, p, features=score == "features")
    found, expected = both(net, p, method=method)
    assert_same_samples(found, expected)
    without = sample(lambda x, t: p.reference.score(x), p, ROWS, seed=3, method=method)
    assert float((found - without).abs().amax()) > 0.01  # the network does matter


@pytest.mark.parametrize("method", ["sde", "ode"])
@pytest.mark.parametrize("prediction", ["data", "score", "linear"])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("kind", COVARIANCE_TYPES)
def test_several_steps_between_evaluations(kind: str, order: int, prediction: str, method: str) -> None:
    """In registers and not, evaluations at equal and at unequal distances."""
    for dim, grid in ((2, "uniform"), (4, "cubic")):
        p = process(kind, dim)
        net = ResidualScore(network(dim, horizon=p.T), p)
        options: dict[str, Any] = {"n_evaluations": 4, "order": order, "prediction": prediction, "grid": grid}
        assert_same_samples(*both(net, p, method=method, **options))


HIDDEN = [(1,), (4,), (7, 7, 9), (128, 128, 128), (64, 128, 128, 64), (16,) * 8]


@pytest.mark.parametrize("hidden", HIDDEN, ids=lambda h: "x".join(map(str, h)))
def test_widths_and_depths(hidden: tuple[int, ...]) -> None:
    """Residual layers and others, whole groups of outputs and parts of one."""
    p = process()
    assert_same_samples(*both(ResidualScore(network(2, hidden, horizon=p.T), p), p))


@pytest.mark.parametrize(("dim", "hidden"), [(1, (1, 8)), (3, (3, 16)), (5, (10,)), (8, (8, 8)), (32, (64, 64))])
@pytest.mark.parametrize("features", [False, True], ids=["plain", "features"])
def test_dimensions(dim: int, hidden: tuple[int, ...], features: bool) -> None:
    """Also where the first layer is as wide as its input."""
    p = process(dim=dim)
    net = ResidualScore(network(dim, hidden, features=features, horizon=p.T, embedding_dim=8), p, features=features)
    assert_same_samples(*both(net, p))


@pytest.mark.parametrize("components", [1, 300])
@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("method", ["sde", "ode"])
def test_few_steps_and_few_or_many_components(method: str, n_steps: int, components: int) -> None:
    p = quietly(random_mixture("spherical", components, 2, ratio=4.0), T=0.05 * n_steps, n_steps=n_steps)
    assert_same_samples(*both(ResidualScore(network(2, horizon=p.T), p), p, method=method))


def test_events_of_any_shape_and_other_processes() -> None:
    images = process(dim=6, event_shape=(1, 2, 3))
    for features in (False, True):
        net = ResidualScore(network(6, features=features, horizon=images.T), images, features=features)
        found, expected = both(net, images)
        assert found.shape == (ROWS, 1, 2, 3)
        assert_same_samples(found, expected)
    ou = OUProcess(2, T=2.0, n_steps=20, grid="quadratic", sigma=lambda t: 1.0 + 0.1 * t)
    assert_same_samples(*both(network(2, horizon=2.0), ou))


def test_a_copy_of_the_network_has_a_process_of_its_own() -> None:
    """Copy it as an exponential moving average does."""
    p = process()
    net = ResidualScore(network(2, horizon=p.T), p)
    copied = sample(copy.deepcopy(net), p, ROWS, seed=3, fused=True)
    assert torch.equal(copied, sample(net, p, ROWS, seed=3, fused=True))


# --- the same bits however it is run -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_samples_do_not_depend_on_batches_paths_or_threads(method: str) -> None:
    p = process("diag", dim=3)
    net = ResidualScore(network(3, features=True, horizon=p.T), p, features=True)

    def draw(n: int = ROWS, **options: Any) -> Tensor:
        return sample(net, p, n, method=method, seed=-5, fused=True, **options)

    whole = draw()
    for batch_size in (1, 16, 31, 100):
        assert torch.equal(draw(batch_size=batch_size), whole)
    for first in (1, 20, 66):
        assert torch.equal(draw(ROWS - first, first_path=first), whole[first:])
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(draw(), whole)
    assert not torch.equal(sample(net, p, ROWS, method=method, seed=-4, fused=True), whole)


# --- who serves --------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gains an item at every call of an MLP."""
    made: list[int] = []
    plain = MLP.forward

    def forward(self: MLP, x: Tensor, t: Tensor) -> Tensor:
        made.append(1)
        return plain(self, x, t)

    monkeypatch.setattr(MLP, "forward", forward)
    return made


def test_auto_uses_it_and_can_be_told_not_to(calls: list[int]) -> None:
    p = process()
    net = ResidualScore(network(2, horizon=p.T), p)
    sample(net, p, 3, seed=0)
    assert calls == []
    sample(net, p, 3, seed=0, fused=False)
    assert len(calls) == p.n_steps
    with use_backend("reference"):
        sample(net, p, 3, seed=0)
    assert len(calls) == 2 * p.n_steps
    with use_backend("cpp"):
        sample(net, p, 3, seed=0)
    assert len(calls) == 2 * p.n_steps


class Wider(MLP):
    pass


def hooked(p: LangevinProcess) -> nn.Module:
    net = network(2, horizon=p.T)
    net.layers[1].register_forward_hook(lambda module, inputs, output: output)
    return net


def own_forward(p: LangevinProcess) -> nn.Module:
    net = network(2, horizon=p.T)
    net.last.forward = lambda x: torch.zeros_like(x[:, :2])  # type: ignore[method-assign]
    return net


def replaced(p: LangevinProcess) -> nn.Module:
    net = network(2, horizon=p.T)
    net.layers[1] = nn.Sequential(net.layers[1])
    return net


def foreign(p: LangevinProcess) -> nn.Module:
    return ResidualScore(network(2, horizon=p.T), process(components=3))


REFUSED: dict[str, tuple[Callable[[LangevinProcess], Any], str]] = {
    "function": (lambda p: lambda x, t: -x, "no fastndsm.networks.MLP but function"),
    "subclass": (lambda p: Wider(2, (8,)), "no fastndsm.networks.MLP but Wider"),
    "unet in residual": (lambda p: ResidualScore(UNet(1, 4), p), "no fastndsm.networks.MLP but UNet"),
    "hook": (hooked, "the network has hooks"),
    "forward": (own_forward, "a Linear of the network has a forward of its own"),
    "layer": (replaced, "a Linear of the network has been replaced by Sequential"),
    "wide": (lambda p: MLP(2, (513,)), r"up to 8 hidden layers of 512 units, found \[513\]"),
    "deep": (lambda p: MLP(2, (4,) * 9), "up to 8 hidden layers of 512 units"),
    "reference": (foreign, "the network's reference is not that of the process"),
    "double": (lambda p: network(2).double(), "not float32"),
    "dimension": (lambda p: network(3), "the network maps 3 values to 3, the process has 2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_networks_are_refused_with_the_reason(name: str) -> None:
    p = process()
    make, reason = REFUSED[name]
    score_net = make(p)
    expected = "^fused: expected a network, a process and a backend for it, found: .*"
    with pytest.raises(ValueError, match=expected + reason):
        sample(score_net, p, 3, seed=0, fused=True)


def test_other_settings_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    p = process()
    net = network(2, horizon=p.T)
    with use_backend("reference"), pytest.raises(ValueError, match="reference: it has no sample_mlp"):
        sample(net, p, 3, fused=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="autocast is on"):
        sample(net, p, 3, fused=True)
    with pytest.raises(ValueError, match="up to 32 dimensions, found 33"):
        sample(network(33), process(dim=33), 3, fused=True)
    with pytest.raises(ValueError, match=r"^fused: expected 'auto', True or False, found 'on'"):
        sample(net, p, 3, fused="on")
    handle = nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        with pytest.raises(ValueError, match="the network has hooks"):
            sample(net, p, 3, fused=True)
    finally:
        handle.remove()

    class Own(LangevinProcess):
        @property
        def dynamics(self) -> Any:
            return super().dynamics

    with pytest.raises(ValueError, match="the process is no LangevinProcess but Own"):
        sample(net, Own(p.reference, T=0.8, n_steps=10), 3, fused=True)


def test_auto_calls_the_network_instead_and_says_once_why(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_logged", set())
    p = process()
    with caplog.at_level(logging.INFO, logger="fastndsm"):
        for _ in range(2):
            assert sample(lambda x, t: -x, p, 3, seed=0).shape == (3, 2)
    assert [record.getMessage() for record in caplog.records] == [
        "sample: the network is called at every evaluation: the network is no fastndsm.networks.MLP but function"
    ]


def test_a_gaussian_mixture_subclass_is_left_to_the_loop() -> None:
    class Own(GaussianMixture):
        pass

    m = random_mixture("spherical", 3, 2, ratio=4.0)
    p = quietly(Own(m.weights, m.means, m.covariances, "spherical"), T=0.8, n_steps=10)
    with pytest.raises(ValueError, match="the reference is no GaussianMixture but Own"):
        sample(network(2), p, 3, fused=True)


# --- what it says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sde", "ode"])
def test_non_finite_samples_stop_with_the_evaluation(method: str) -> None:
    """The one at t_5, where v is made 0: the sixth of ten."""
    p = process()
    p.noise_variance[4] = 0.0
    net = ResidualScore(network(2, (8,), horizon=p.T), p)
    messages, expected = [], "^score_net: expected finite samples, .* after evaluation 6 of 10, t = 0.4;"
    for fused in (True, False):
        with pytest.raises(FloatingPointError, match=expected) as error:
            sample(net, p, ROWS, method=method, seed=0, fused=fused)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_nan_in_the_weights_is_found_in_every_tile() -> None:
    p = process()
    net = network(2, (8,), horizon=p.T)
    nn.init.constant_(net.layers[0].bias, math.nan)
    with pytest.raises(FloatingPointError, match=r"after evaluation 1 of 10, t = 0.8;"):
        sample(net, p, ROWS, seed=0, fused=True)


def test_the_bar_goes_to_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    p = process()
    sample(network(2, horizon=p.T), p, 4, seed=0, batch_size=2, progress=True, fused=True)
    assert f"{2 * p.n_steps}/{2 * p.n_steps}" in capsys.readouterr().err
