"""NDSMLoss and DSMLoss as a training loop uses them: weights, reductions, seeds, a separate control variate."""

from __future__ import annotations

import pytest
import torch
from helpers import generator, on_one_backend, random_mixture  # noqa: F401
from torch import Tensor, nn

from fastndsm import DSMLoss, GaussianMixture, LangevinProcess, NDSMLoss, OUProcess, ResidualScore
from fastndsm.process import Noised

ESTIMATORS = {
    "plain": {"estimator": "plain"},
    "plain antithetic": {"estimator": "plain", "antithetic": True},
    "control variate": {"estimator": "control_variate"},
    "path": {"estimator": "path"},
    "path antithetic": {"estimator": "path", "antithetic": True},
}
all_estimators = pytest.mark.parametrize("options", ESTIMATORS.values(), ids=ESTIMATORS.keys())


def process() -> LangevinProcess:
    return LangevinProcess(random_mixture("diag", 3, 2, ratio=4.0), T=0.5, n_steps=10)


def data(rows: int = 9) -> Tensor:
    return torch.randn(rows, 2, generator=generator(0), dtype=torch.float64)


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5).double(), nn.Linear(5, 2).double()
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator(seed))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.last(self.first(torch.cat([x, t[:, None]], dim=1)).tanh())


def formula(loss: NDSMLoss, net: Net, x0: Tensor, seed: int) -> Tensor:
    """Return the per-sample losses [B] from the draws, by the formulas, weight v_{n+1}."""
    p, rows = loss.process, len(x0)
    if loss.estimator == "path":
        drawn = p.noised(x0, seed=seed, antithetic=loss.antithetic)
        losses = 0.5 * (net(drawn.x, drawn.t) - drawn.target).square().sum(1) * p.noise_variance[drawn.step]
        return losses.reshape(-1, rows).mean(0)
    drawn = p.transition(x0, seed=seed, antithetic=loss.antithetic)
    s = net(drawn.x, drawn.t)
    along = s - net(drawn.mean, drawn.t) if loss.estimator == "control_variate" else s
    losses = 0.5 * s.square().sum(1) + (drawn.noise * along).sum(1) / drawn.std
    return (losses * p.noise_variance[drawn.step]).reshape(-1, rows).mean(0)


@all_estimators
def test_losses_follow_the_formulas(options: dict[str, object]) -> None:
    net, x0 = Net(), data()
    loss = NDSMLoss(process(), reduction="none", **options)  # type: ignore[arg-type]
    found, expected = loss(net, x0, seed=4), formula(loss, net, x0, seed=4)
    assert found.shape == (9,)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters = list(net.parameters())
    ours, theirs = (torch.autograd.grad(losses.sum(), parameters) for losses in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@all_estimators
def test_weights_and_reductions(options: dict[str, object]) -> None:
    net, x0, p = Net(), data(), process()

    def value(**more: object) -> Tensor:
        return NDSMLoss(p, **options, **more)(net, x0, seed=4).detach()  # type: ignore[arg-type]

    each = value(weighting=None, reduction="none")
    drawn = NDSMLoss(p, **options).draw(x0, seed=4)  # type: ignore[arg-type]
    step, t = drawn.step[:9], drawn.t[:9]
    torch.testing.assert_close(value(reduction="none"), each * p.noise_variance[step])
    torch.testing.assert_close(value(weighting=lambda t: 1 + t**2, reduction="none"), each * (1 + t**2))
    torch.testing.assert_close(value(weighting=None), each.mean())
    torch.testing.assert_close(value(weighting=None, reduction="sum"), each.sum())


@all_estimators
def test_number_of_network_calls(options: dict[str, object]) -> None:
    """One batched call, of B rows for path and plain and 2B for the others."""
    rows = []

    def net(x: Tensor, t: Tensor) -> Tensor:
        rows.append(len(x))
        assert t.shape == (len(x),)
        return -x

    loss = NDSMLoss(process(), **options)  # type: ignore[arg-type]
    loss(net, data(), seed=0)
    assert rows == [18 if loss.antithetic or loss.estimator == "control_variate" else 9]


@all_estimators
def test_seeds(options: dict[str, object]) -> None:
    net, x0 = Net(), data()
    loss = NDSMLoss(process(), **options)  # type: ignore[arg-type]
    first = loss(net, x0, seed=1)
    assert torch.equal(loss(net, x0, seed=1), first)
    assert torch.equal(loss(net, x0, seed=torch.tensor(1)), first)
    assert not torch.equal(loss(net, x0, seed=2), first)
    assert not torch.equal(loss(net, x0, seed=1, first_path=9), first)
    torch.manual_seed(0)
    fresh, again = loss(net, x0), loss(net, x0)
    torch.manual_seed(0)
    assert torch.equal(loss(net, x0), fresh) and not torch.equal(fresh, again)
    assert torch.equal(loss(net, x0, seed=1, step=3), loss(net, x0, seed=1, step=torch.full((9,), 3)))


@all_estimators
def test_images(options: dict[str, object]) -> None:
    m = random_mixture("spherical", 3, 6, event_shape=(1, 2, 3))
    p = LangevinProcess(m, T=0.02, n_steps=5)
    x0 = torch.randn(7, 1, 2, 3, generator=generator(0), dtype=torch.float64)
    loss = NDSMLoss(p, **options)  # type: ignore[arg-type]
    images = loss(lambda x, t: torch.sin(x), x0, seed=1)
    flat = loss(lambda x, t: torch.sin(x), x0.reshape(7, 6), seed=1)
    assert torch.equal(images, flat)


# --- a separate control variate -----------------------------------------


def test_separate_control_variate_gets_the_gradient_of_the_second_moment() -> None:
    """Compute by hand: the score's parameters get the gradient of the mean loss, h's that of the mean squared loss."""
    net, h, x0, p = Net(0), Net(1), data(), process()
    loss = NDSMLoss(p, "control_variate", control_variate=h)
    found = loss(net, x0, seed=4)
    found.backward()

    drawn = p.transition(x0, seed=4)
    s = net(drawn.x, drawn.t)
    terms = 0.5 * s.square().sum(1) + (drawn.noise * (s - h(drawn.mean, drawn.t))).sum(1) / drawn.std
    terms = terms * p.noise_variance[drawn.step]
    torch.testing.assert_close(found.detach(), terms.mean().detach())
    ours = torch.autograd.grad(terms.mean(), list(net.parameters()), retain_graph=True)
    theirs = torch.autograd.grad(terms.square().mean(), list(h.parameters()))
    for parameter, expected in zip((*net.parameters(), *h.parameters()), (*ours, *theirs), strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-10)
    # h is found among the parameters of the loss, for the optimizer
    assert {id(q) for q in loss.parameters()} == {id(q) for q in h.parameters()}


def test_training_h_alone_lowers_the_second_moment() -> None:
    net, h, p = Net(0), Net(1), process()
    x0 = data(2000)
    loss = NDSMLoss(p, "control_variate", control_variate=h, weighting=None, reduction="none")
    optimizer = torch.optim.Adam(h.parameters(), lr=0.05)
    before = float(loss(net, x0, seed=0, step=9).detach().var())
    for seed in range(1, 60):
        optimizer.zero_grad()
        loss(net, x0, seed=seed, step=9).mean().backward()
        optimizer.step()
    assert float(loss(net, x0, seed=0, step=9).detach().var()) < 0.7 * before


def test_the_score_network_given_as_control_variate_is_the_neural_control_variate() -> None:
    net, x0, p = Net(), data(), process()
    parameters = list(net.parameters())
    gradients = [
        torch.autograd.grad(NDSMLoss(p, "control_variate", control_variate=h)(net, x0, seed=1), parameters)
        for h in (net, None)
    ]
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


# --- the baseline and the residual parametrisation -----------------------------------------


def test_dsm_loss_follows_the_formula() -> None:
    p, net, x0 = OUProcess(2, T=3.0, n_steps=30), Net(), data()
    drawn = p.exact_noised(x0, seed=2)
    assert isinstance(drawn, Noised)
    scale, v = (table[drawn.step][:, None] for table in p.marginal())
    residual = net(drawn.x, drawn.t) + (drawn.x - scale * x0) / v
    expected = 0.5 * v[:, 0] * residual.square().sum(1)
    torch.testing.assert_close(DSMLoss(p, reduction="none")(net, x0, seed=2), expected)
    unweighted = DSMLoss(p, weighting=None, reduction="none")(net, x0, seed=2)
    torch.testing.assert_close(unweighted, expected / v[:, 0])
    weighted = DSMLoss(p, weighting=lambda t: t, reduction="sum")(net, x0, seed=2)
    torch.testing.assert_close(weighted, (expected / v[:, 0] * drawn.t).sum())


@pytest.mark.parametrize("features", [False, True])
def test_residual_score(features: bool) -> None:
    p, x = process(), data()
    seen: list[Tensor] = []

    class Inner(nn.Module):
        def forward(self, inputs: Tensor, t: Tensor) -> Tensor:
            seen.append(inputs)
            return inputs[:, :2] * t[:, None]

    t = torch.linspace(0.05, 0.5, 9, dtype=torch.float64)
    found = ResidualScore(Inner(), p, features=features)(x, t)
    reference = p.reference.score(x)
    expected = reference + x * (t / p.variance_at(t).sqrt())[:, None]
    torch.testing.assert_close(found, expected)
    largest = float(p.reference.covariances.max())
    inputs = torch.cat([x, reference * largest**0.5], dim=1) if features else x
    torch.testing.assert_close(seen[0], inputs)


def test_residual_score_of_images_with_features_doubles_the_channels() -> None:
    m = GaussianMixture.fit(torch.randn(50, 2, 3, 3, generator=generator(0)), 2, random_state=0)
    p = LangevinProcess(m, T=0.1, n_steps=5)
    net = nn.Conv2d(4, 2, 3, padding=1)

    class Inner(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return net(x)

    x = torch.randn(7, 2, 3, 3)
    assert ResidualScore(Inner(), p, features=True)(x, torch.full((7,), 0.1)).shape == x.shape
