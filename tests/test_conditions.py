"""Conditions: rows follow their samples, what is dropped, what guidance 0 and 1 are, and what the start must know."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import generator, normals, quietly, random_mixture
from torch import Tensor, nn

import fastndsm
from fastndsm import DSMLoss, LangevinProcess, NDSMLoss, OUProcess, ResidualScore, log_likelihood, networks, sample
from fastndsm.networks import MLP, UNet
from fastndsm.training import CheckpointError, TrainConfig, Trainer, load_model, save_model
from fastndsm.training.batches import Batches

CPU = torch.device("cpu")
LABELS = torch.tensor([2, 0, 1, 2, 1])


def process(n_steps: int = 12, kind: str = "diag") -> LangevinProcess:
    return quietly(random_mixture(kind, 3, 2, ratio=3.0), T=0.5, n_steps=n_steps)


def woken(net: Any, seed: int = 0) -> Any:
    """Return the network with weights of every layer drawn anew: one that starts at zero tells nothing."""
    g = generator(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return net


def classifying(classes: int = 3, **options: Any) -> MLP:
    return woken(MLP(2, (8,), embedding_dim=8, classes=classes, **options))


def vectorial(width: int = 4) -> MLP:
    return woken(MLP(2, (8,), embedding_dim=8, condition_dim=width))


class OfBoth(nn.Module):
    """A network of the user's own, under a dict of a class and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.of_class, self.of_vector = woken(nn.Embedding(4, 2)), woken(nn.Linear(3, 2))

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        if condition is None:
            condition = self.null_condition(both(len(x)))
        return self.of_class(condition["class"]) + self.of_vector(condition["vector"]) - x

    def null_condition(self, condition: Any) -> Any:
        return {"class": torch.full_like(condition["class"], 3), "vector": torch.zeros_like(condition["vector"])}


def both(rows: int) -> dict[str, Tensor]:
    return {"class": torch.arange(rows) % 3, "vector": normals(rows, 3, seed=5, dtype=torch.float32)}


class Doubled(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


NETWORKS = {
    "classes": (classifying, lambda n: torch.arange(n) % 3),
    "vectors": (vectorial, lambda n: normals(n, 4, seed=5, dtype=torch.float32)),
    "images": (vectorial, lambda n: normals(n, 4, seed=5, dtype=torch.float32).reshape(n, 1, 2, 2)),
    "dict": (OfBoth, both),
    "residual": (lambda: ResidualScore(classifying(), process()), lambda n: torch.arange(n) % 3),
    "features": (lambda: ResidualScore(classifying(in_dim=4), process(), True), lambda n: torch.arange(n) % 3),
}
each_network = pytest.mark.parametrize(("make", "condition"), NETWORKS.values(), ids=NETWORKS)


def rows(condition: Any, which: Any) -> Any:
    return {k: v[which] for k, v in condition.items()} if isinstance(condition, dict) else condition[which]


# --- networks ----------------------------------------------------------------------------------------------------


def unet(**options: Any) -> UNet:
    return woken(UNet(1, 8, base=4, multipliers=(1,), embedding_dim=8, **options))


@pytest.mark.parametrize("make", [lambda **o: MLP(64, (8,), embedding_dim=8, **o), unet], ids=["mlp", "unet"])
def test_a_network_sees_its_own_rows_condition_alone(make: Any) -> None:
    x, t = normals(5, 64, dtype=torch.float32), torch.full((5,), 0.3)
    for net, y in ((make(classes=3), LABELS), (make(condition_dim=4), normals(5, 4, seed=1, dtype=torch.float32))):
        woken(net)
        whole = net(x, t, y)
        for i in range(5):
            torch.testing.assert_close(net(x[i : i + 1], t[:1], y[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(net(x, t, y.roll(1, 0)), whole)
        assert torch.equal(net(x, t), net(x, t, net.null_condition(y)))
        assert networks.build(net.architecture, **net.config).config == net.config


@pytest.mark.parametrize("make", [classifying, vectorial])
def test_gradients_reach_the_embedding_and_the_null_condition(make: Any) -> None:
    net = make()
    x, t = normals(5, 2, dtype=torch.float32), torch.full((5,), 0.3)
    y = LABELS if make is classifying else normals(5, 4, seed=1, dtype=torch.float32)
    dropped = torch.tensor([True, False, False, True, False]).reshape(-1, *[1] * (y.ndim - 1))
    net(x, t, torch.where(dropped, net.null_condition(y), y)).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and bool(p.grad.isfinite().all()) and float(p.grad.abs().amax()) > 0, name


@pytest.mark.parametrize("make", [classifying, vectorial])
def test_every_parameter_is_used_where_nothing_is_dropped(make: Any) -> None:
    """As data-parallel training demands; the null condition then stays as it is."""
    net = make()
    y = LABELS if make is classifying else normals(5, 4, seed=1, dtype=torch.float32)
    net(normals(5, 2, dtype=torch.float32), torch.full((5,), 0.3), y).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    null = net.film.condition.null if make is vectorial else net.film.condition.table.weight
    assert not bool(null.grad[-1].any())


@pytest.mark.parametrize("options", [{"classes": 3}, {"condition_dim": 4}], ids=str)
def test_the_null_condition_starts_at_zero_and_tells_whether_it_was_trained(options: Any) -> None:
    net = MLP(2, (8,), embedding_dim=8, **options)
    assert net.takes_condition and not net.null_trained
    assert woken(net).null_trained
    assert not MLP(2, (8,), embedding_dim=8).takes_condition


def test_a_network_without_a_condition_is_as_it_was() -> None:
    """Its weights are drawn alike, and it has no more of them."""
    torch.manual_seed(0)
    plain = MLP(2, (8,), embedding_dim=8).state_dict()
    torch.manual_seed(0)
    conditional = MLP(2, (8,), embedding_dim=8, classes=3).state_dict()
    assert set(conditional) - set(plain) == {"film.condition.table.weight"} and set(plain) <= set(conditional)


# --- losses ------------------------------------------------------------------------------------------------------


LOSSES = {
    "path": lambda p: NDSMLoss(p, reduction="none"),
    "path antithetic": lambda p: NDSMLoss(p, antithetic=True, reduction="none"),
    "plain": lambda p: NDSMLoss(p, "plain", reduction="none"),
    "plain antithetic": lambda p: NDSMLoss(p, "plain", antithetic=True, reduction="none"),
    "control variate": lambda p: NDSMLoss(p, "control_variate", reduction="none"),
    "dsm": lambda p: DSMLoss(OUProcess(2, 1.0, 10), reduction="none"),
}


@pytest.mark.parametrize("name", LOSSES)
@each_network
def test_rows_of_a_condition_follow_their_samples(make: Any, condition: Any, name: str) -> None:
    """Through mirrored pairs and the doubled batch: the loss of a sample is what it is alone, under its condition."""
    net = make()
    loss, x0, y = LOSSES[name](getattr(net, "process", process())), normals(6, 2, dtype=torch.float32), condition(6)
    if isinstance(net, ResidualScore) and name == "dsm":
        pytest.skip("a residual score is of the process of its loss")
    whole = loss(net, x0, seed=3, condition=y)
    alone = [loss(net, x0[i : i + 1], seed=3, first_path=i, condition=rows(y, slice(i, i + 1))) for i in range(6)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=2e-4, atol=1e-5)
    assert not torch.allclose(loss(net, x0, seed=3, condition=rows(y, torch.arange(6).roll(1))), whole, rtol=1e-3)


@pytest.mark.parametrize("antithetic", [False, True])
@each_network
def test_records_of_a_path_have_its_condition(make: Any, condition: Any, antithetic: bool) -> None:
    net = make()
    loss = NDSMLoss(getattr(net, "process", process()), antithetic=antithetic, reduction="none")
    x0, y, steps = normals(4, 2, dtype=torch.float32), condition(4), torch.tensor([[1, 5, 9]] * 4)
    whole = loss(net, x0, seed=3, step=steps, condition=y)
    assert whole.shape == (4, 3)
    for r in range(3):
        alone = loss(net, x0, seed=3, step=steps[:, r], condition=y)
        torch.testing.assert_close(whole[:, r], alone, rtol=2e-4, atol=1e-5)


def test_a_separate_control_variate_sees_the_condition() -> None:
    seen: list[Any] = []

    def h(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        seen.append(condition)
        return -x

    loss = NDSMLoss(process(), "control_variate", control_variate=h)
    loss(classifying(), normals(5, 2, dtype=torch.float32), condition=LABELS)
    assert torch.equal(seen[0], LABELS)
    blind = NDSMLoss(process(), "control_variate", control_variate=lambda x, t: -x)
    with pytest.raises(ValueError, match=r"^condition: expected None, as control_variate takes none"):
        blind(classifying(), normals(5, 2, dtype=torch.float32), condition=LABELS)


def test_a_loss_under_a_condition_compiles() -> None:
    net, loss, x0 = classifying(), NDSMLoss(process()), normals(5, 2, dtype=torch.float32)
    compiled = torch.compile(loss, backend="aot_eager")
    torch.testing.assert_close(
        compiled(net, x0, torch.tensor(1), torch.tensor(3), condition=LABELS),
        loss(net, x0, torch.tensor(1), torch.tensor(3), condition=LABELS),
    )


# --- training ----------------------------------------------------------------------------------------------------


class Echo:
    """A loss that hands back the rows it was given, each as often as there are records."""

    def draw(self, x0: Tensor, seed: int, first_path: int, records: int | None = None) -> Any:
        x0 = x0 if records is None else x0[:, None].expand(-1, records, -1)
        return fastndsm.Noised(x0, x0, x0, x0, x0)


def batches_of(n: int, **options: Any) -> Batches:
    numbers = torch.arange(n)
    conditions = {"row": numbers, "vector": numbers[:, None].float() + 0.5}
    made = {"steps": 24, "batch_size": 5, "seed": 1, "noised_ahead": 3, "conditions": conditions, **options}
    return Batches(numbers[:, None].float(), Echo(), device=CPU, **made)  # type: ignore[arg-type]


class Null:
    def null_condition(self, condition: Any) -> Any:
        return {"row": torch.full_like(condition["row"], -1), "vector": torch.zeros_like(condition["vector"])}


@pytest.mark.parametrize("records", [1, 3])
@pytest.mark.parametrize("pool", [None, 14])
def test_a_batch_has_the_conditions_of_its_rows(pool: int | None, records: int) -> None:
    batches = batches_of(13, pool=pool, passes=2, records=records)
    for step in (4, 0, 17, 16, 23):
        y = batches.condition(step, Null())
        x = batches(step).x[:, 0]
        assert torch.equal(y["row"].float(), x) and torch.equal(y["vector"][:, 0], x + 0.5)


@pytest.mark.parametrize("pool", [None, 1000])
def test_the_share_that_is_dropped_depends_on_the_path_alone(pool: int | None) -> None:
    options: dict[str, Any] = {"pool": pool, "batch_size": 100, "dropout": 0.25}
    together, ahead = batches_of(1000, **options), batches_of(1000, **options, noised_ahead=7)
    dropped = torch.stack([together.condition(step, Null())["row"] == -1 for step in range(20)])
    again = torch.stack([ahead.condition(step, Null())["row"] == -1 for step in reversed(range(20))]).flip(0)
    assert torch.equal(dropped, again)
    assert torch.equal(dropped[3], together.condition(3, Null())["vector"][:, 0] == 0)
    n = 2000 if pool is None else 1000
    assert abs(float(dropped.float().mean()) - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)
    other = batches_of(1000, **options, seed=2)
    assert not torch.equal(other.condition(0, Null())["row"] == -1, dropped[0])
    assert not bool((batches_of(1000, batch_size=100).condition(0, Null())["row"] == -1).any())


def data(n: int = 60) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % 3
    return normals(n, 2, dtype=torch.float32) + labels[:, None], labels


def trainer(net: Any = None, directory: Path | None = None, y: Any = None, **options: Any) -> Trainer:
    x, labels = data()
    config = TrainConfig(**{"steps": 8, "batch_size": 16, "checkpoint_every": 4, "noised_ahead": 2, **options})
    net = ResidualScore(classifying(), process()) if net is None else net
    loss = NDSMLoss(getattr(net, "process", process()), antithetic=True)
    return Trainer(net, loss, x, config, directory=directory, conditions=labels if y is None else y)


def test_training_resumes_with_its_conditions(tmp_path: Path) -> None:
    whole = trainer(paths=1000)
    whole.fit(progress=False)
    part = trainer(directory=tmp_path, paths=1000)
    part._train_step = lambda step=part._train_step: step() if part.step < 4 else 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        part.fit(progress=False)
    rest = trainer(directory=tmp_path, paths=1000)
    assert rest.resume() == 4
    rest.fit(progress=False)
    for found, expected in zip(rest.ema_net.parameters(), whole.ema_net.parameters(), strict=True):
        assert torch.equal(found, expected)
    other = trainer(directory=tmp_path, paths=1000, y=data()[1].flip(0))
    with pytest.raises(CheckpointError, match="conditions"):
        other.resume()
    with pytest.raises(CheckpointError, match=r"condition_dropout \(checkpoint 0\.1, now 0\.2\)"):
        trainer(directory=tmp_path, paths=1000, condition_dropout=0.2).resume()


def test_dropout_trains_the_null_condition_and_nothing_else_does() -> None:
    for dropout in (0.0, 0.5):
        net = MLP(2, (8,), embedding_dim=8, classes=3)
        run = trainer(net, condition_dropout=dropout)
        run.fit(progress=False)
        assert net.null_trained == (dropout > 0) and run.ema_net.null_trained == (dropout > 0)


def test_a_network_of_ones_own_trains_under_a_dict() -> None:
    y = both(60)
    trainer(OfBoth(), y=y).fit(progress=False)

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
            return self.w * x

    trainer(Bare(), y=y, condition_dropout=0.0).fit(progress=False)
    with pytest.raises(ValueError, match=r"^condition_dropout: expected 0 for Bare, which has no null_condition"):
        trainer(Bare(), y=y)
    with pytest.raises(ValueError, match=r"^condition_dropout: expected 0 for ResidualScore, which has no null_condit"):
        trainer(ResidualScore(Bare(), process()), y=y)


# --- sampling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sde", "ode"])
@each_network
def test_guidance_0_and_1_are_the_unguided_samples_bit_for_bit(make: Any, condition: Any, method: str) -> None:
    net, y = make(), condition(7)

    def draw(**options: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sample(net, getattr(net, "process", process()), 7, method, seed=2, **options)

    under, without = draw(condition=y), draw()
    assert not torch.allclose(under, without)
    assert torch.equal(draw(condition=y, guidance=1), under)
    assert torch.equal(draw(condition=y, guidance=0.0), without)
    guided = draw(condition=y, guidance=2.5)
    assert not torch.allclose(guided, under)
    # linear in w at the first evaluation
    scores: dict[float, Tensor] = {}

    def look(w: float) -> Any:
        def keep(seen: dict[str, Any]) -> None:
            scores.setdefault(w, seen["score"])

        return keep

    x_T = normals(7, 2, dtype=torch.float32)
    for w in (0.0, 1.0, 2.5):
        draw(condition=y, guidance=w, x_T=x_T, callback=look(w))
    torch.testing.assert_close(scores[2.5], scores[0.0] + 2.5 * (scores[1.0] - scores[0.0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [None, 2.0])
@each_network
def test_samples_under_a_condition_do_not_depend_on_the_batch(make: Any, condition: Any, guidance: Any) -> None:
    net, y = make(), condition(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noised = getattr(net, "process", process())
        whole = sample(net, noised, 7, seed=2, condition=y, guidance=guidance)
        parts = sample(net, noised, 7, seed=2, condition=y, guidance=guidance, batch_size=3)
        later = sample(net, noised, 3, seed=2, condition=rows(y, slice(4, 7)), guidance=guidance, first_path=4)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(later, whole[4:], rtol=1e-4, atol=1e-5)


def test_one_call_of_the_network_serves_guidance() -> None:
    seen = []

    class Counting(OfBoth):
        def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
            seen.append((len(x), condition["class"].tolist()))
            return super().forward(x, t, condition)

    y = both(2)
    sample(Counting(), quietly(fastndsm.GaussianMixture.standard_normal(2), T=6.0, n_steps=60), 2, n_evaluations=3,
           condition=y, guidance=3.0)  # fmt: skip
    assert seen == [(4, [3, 3, 0, 1])] * 3


def test_guidance_without_dropout_training_is_warned_of() -> None:
    net, y = MLP(2, (8,), embedding_dim=8, classes=3), LABELS
    p = quietly(fastndsm.GaussianMixture.standard_normal(2), T=6.0, n_steps=60)
    untrained = r"^score_net: expected a network whose null condition is trained, by condition_dropout"
    for options in ({"condition": y, "guidance": 2.0}, {"condition": y, "guidance": 0.0}, {}):
        with pytest.warns(UserWarning, match=untrained) as found:
            sample(net, p, 5, **options)
        assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(net, p, 5, condition=y)
        sample(net, p, 5, condition=y, guidance=1.0)
        sample(woken(net), p, 5, condition=y, guidance=2.0)


@pytest.mark.parametrize("guidance", [None, 0.0, 1.0])
@pytest.mark.parametrize("make", [classifying, vectorial, lambda: ResidualScore(classifying(), process())])
def test_the_fused_sampler_serves_samples_of_one_condition(make: Any, guidance: float | None) -> None:
    net = make()
    p = getattr(net, "process", process())
    y = torch.ones(9, dtype=torch.int64) if make is not vectorial else torch.full((9, 4), 0.7)

    def draw(**options: Any) -> Tensor:
        with fastndsm.use_backend("cpp"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return sample(net, p, 9, seed=1, batch_size=5, **options)

    found = draw(condition=y, guidance=guidance, fused=True)
    torch.testing.assert_close(found, draw(condition=y, guidance=guidance, fused=False), rtol=2e-4, atol=2e-5)
    assert torch.equal(found, draw(fused=True) if guidance == 0.0 else draw(condition=y, fused=True))
    torch.testing.assert_close(draw(fused=True), draw(fused=False), rtol=2e-4, atol=2e-5)
    assert not torch.allclose(draw(fused=True), draw(condition=y, fused=True))


def test_the_fused_sampler_steps_back_where_conditions_differ() -> None:
    p, net = quietly(fastndsm.GaussianMixture.standard_normal(2), T=6.0, n_steps=60), classifying()
    differ = r"^fused: .* found: samples have conditions that differ, or are guided"
    for options in (
        {"condition": LABELS},
        {"condition": torch.ones_like(LABELS), "guidance": 2.0},
        {"guide": lambda x, t: -x},
    ):
        with pytest.raises(ValueError, match=differ):
            sample(net, p, 5, fused=True, **options)
    net.film.condition.table = Doubled(4, 8)
    with pytest.raises(ValueError, match=r"^fused: .* found: a Embedding of the network has been replaced by Doubled"):
        sample(net, p, 5, fused=True)


# --- a guide of the user's own -----------------------------------------------------------------------------------


def test_a_guide_is_added_to_the_score() -> None:
    """A Gaussian likelihood makes another Gaussian of N(0, 1): that of data noised by OU, and the exact guide."""
    p, noise, seen = OUProcess(1, T=8.0, n_steps=200, grid="quadratic"), 0.5, torch.tensor(1.2)

    def guide(x: Tensor, t: Tensor) -> Tensor:
        assert torch.is_grad_enabled()
        x = x.requires_grad_()
        decay = (-t).exp()[:, None]
        # x_0 given x_t is N(sqrt(decay) x_t, 1 - decay), for data N(0, 1)
        log = -0.5 * (seen - decay.sqrt() * x).square() / (noise**2 + 1.0 - decay)
        return torch.autograd.grad(log.sum(), x)[0]

    n = 20_000
    with torch.inference_mode():
        x = sample(lambda x, t: -x, p, n, n_evaluations=100, seed=1, guide=guide)
    mean, deviation = float(seen) / (1 + noise**2), math.sqrt(noise**2 / (1 + noise**2))
    assert abs(float(x.mean()) - mean) < 4 * deviation / math.sqrt(n) + 0.01
    assert abs(float(x.std()) / deviation - 1) < 4 / math.sqrt(2 * n) + 0.02


# --- the start ---------------------------------------------------------------------------------------------------


def test_the_prior_of_a_class_is_the_law_of_its_samples_at_T() -> None:
    """Mean, deviation and likelihood of draws under a class beside its noised data, which T does not mix."""
    m = fastndsm.GaussianMixture([0.5, 0.3, 0.2], [[-4.0, 0.0], [0.0, 0.0], [4.0, 0.0]], [0.5, 0.5, 0.5], "spherical")
    p = quietly(m, T=1.5, n_steps=60)
    n = 4000
    x, labels = m.sample(n, seed=1), torch.zeros(n, dtype=torch.int64)
    labels[x[:, 0] > -2.0] = torch.where(normals(n, seed=3) > 0.5, 1, 2)[x[:, 0] > -2.0]
    p.fit_prior(x, labels, 4)
    assert p.class_weights is not None and p.class_weights.shape == (4, 3)
    assert float((p.class_weights[0] - torch.tensor([1.0, 0.0, 0.0])).abs().amax()) < 0.02
    assert float((p.class_weights[1] - torch.tensor([0.0, 0.6, 0.4])).abs().amax()) < 0.06
    torch.testing.assert_close(p.class_weights[3], m.weights)  # no samples
    at_T = p.simulate(x, seed=9)
    for c in (0, 1, 2):
        own, y = at_T[labels == c], torch.full((n,), c)
        drawn = p.draw_prior(n, 5, 0, y)
        for truth, found in zip(own.T, drawn.T, strict=True):
            error = 4 * math.sqrt(float(truth.var()) * (1 / len(own) + 1 / n))
            assert abs(float(truth.mean() - found.mean())) < error + 0.15
            assert abs(float(found.std() / truth.std()) - 1) < 0.15
        better = p.prior_log_prob(own, torch.full((len(own),), c)) - m.log_prob(own)
        assert float(better.mean()) > 0.2
    mixed = torch.arange(8) % 4
    drawn = p.draw_prior(8, 5, 2, mixed)
    for i, c in enumerate(mixed.tolist()):
        assert torch.equal(p.draw_prior(1, 5, 2 + i, torch.tensor([c]))[0], drawn[i])
    assert torch.equal(p.draw_prior(8, 5, 2), m.sample(8, 5, first_path=2))
    assert torch.equal(p.draw_prior(8, 5, 2, torch.full((8,), 4)), m.sample(8, 5, first_path=2))  # the null class


def test_the_weights_of_classes_are_part_of_the_state() -> None:
    p, other = process(), process()
    p.fit_prior(*data())
    other.load_state_dict(p.state_dict())
    assert torch.equal(other.class_weights, p.class_weights)  # type: ignore[arg-type]
    other.load_state_dict(process().state_dict())
    assert other.class_weights is None
    cast = ResidualScore(classifying(), p).half()
    assert cast.process.class_weights.dtype == torch.float64


def test_a_start_that_does_not_know_the_condition_is_warned_of() -> None:
    net, p, y = classifying(), process(), LABELS
    x = normals(5, 2, dtype=torch.float32)
    lost = r"^condition: expected a prior that knows it"
    for call in (lambda: sample(net, p, 5, condition=y), lambda: log_likelihood(net, p, x, condition=y)):
        with pytest.warns(UserWarning, match=lost):
            call()
    with pytest.warns(UserWarning, match=lost):
        sample(vectorial(), p, 5, condition=normals(5, 4, dtype=torch.float32))
    with pytest.warns(UserWarning, match=lost):  # one component, but T is short
        sample(net, quietly(fastndsm.GaussianMixture.standard_normal(2), T=1.0, n_steps=20), 5, condition=y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(net, p, 5, condition=y, x_T=x)
        sample(net, p, 5, condition=y, start=(x, 0.2))
        sample(net, p, 5)
        p.fit_prior(*data())
        sample(net, p, 5, condition=y)
        log_likelihood(net, p, x, condition=y)


# --- laws --------------------------------------------------------------------------------------------------------


CENTRES = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [2.0, -1.0]], dtype=torch.float64)
SPREAD = torch.tensor([0.5, 0.8, 0.3], dtype=torch.float64)


def exact(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return the score of class N(CENTRES[y], SPREAD[y]^2 I) noised by the Ornstein-Uhlenbeck process."""
    decay = (-t).exp()[:, None].to(x)
    variance = SPREAD[y, None].to(x) ** 2 * decay + 1.0 - decay
    return -(x - CENTRES[y].to(x) * decay.sqrt()) / variance


def test_conditional_log_likelihood_of_gaussian_classes_to_one_percent() -> None:
    p = OUProcess(2, T=16.0, n_steps=300, grid="quadratic")  # exp(-8) of the means is left at T
    y = torch.arange(30) % 3
    x = CENTRES[y] + SPREAD[y, None] * normals(30, 2, seed=1)
    found = log_likelihood(exact, p, x, condition=y)
    law = torch.distributions.Independent(torch.distributions.Normal(CENTRES[y], SPREAD[y, None].expand(-1, 2)), 1)
    expected = law.log_prob(x)
    assert float((found - expected).abs().amax()) < 0.01 * float(expected.abs().mean())
    assert abs(float(found.mean() / expected.mean()) - 1) < 0.01


def test_samples_under_a_class_have_its_law() -> None:
    p = OUProcess(2, T=10.0, n_steps=120, grid="quadratic")
    n = 6000
    y = torch.arange(n) % 3
    x = sample(exact, p, n, n_evaluations=40, condition=y, seed=1, dtype=torch.float64)
    for c in range(3):
        own = x[y == c]
        assert float((own.mean(0) - CENTRES[c]).abs().amax()) < 4 * float(SPREAD[c]) / math.sqrt(len(own)) + 0.01
        assert float((own.std(0) / SPREAD[c] - 1).abs().amax()) < 4 / math.sqrt(2 * len(own)) + 0.02


def test_a_conditional_model_on_moons_separates_the_classes() -> None:
    """A nearest neighbour of the data gives samples the class they were drawn under, and each class has its law."""
    dataset = fastndsm.data.moons(2000)
    x, y = dataset.train, dataset.labels
    assert y is not None and dataset.test_labels is not None
    p = LangevinProcess(fastndsm.GaussianMixture.fit(x, 8, random_state=0), grid="quadratic")
    p.fit_prior(x, y)
    torch.manual_seed(0)
    net = ResidualScore(MLP(2, (48, 48), in_dim=4, horizon=p.T, classes=2), p, features=True)
    run = Trainer(net, NDSMLoss(p), x, TrainConfig(steps=700, batch_size=256), conditions=y)
    run.fit(progress=False)
    labels = torch.arange(1000) % 2

    def error(points: Tensor, of: Tensor) -> float:
        return float((y[torch.cdist(points, x).argmin(1)] != of).float().mean())

    real = error(dataset.test, dataset.test_labels)
    for guidance in (None, 2.0):
        drawn = sample(run.ema_net, p, 1000, condition=labels, guidance=guidance, seed=1)
        assert error(drawn, labels) <= real + 0.02
    drawn = sample(run.ema_net, p, 1000, condition=labels, seed=1)
    for c in (0, 1):
        own = dataset.test[dataset.test_labels == c]
        # to the other class it is 0.9; to another thousand of its own 0.001
        assert fastndsm.metrics.energy_distance(drawn[labels == c], own) < 0.02


# --- storage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("make", [classifying, vectorial])
def test_a_saved_model_knows_its_conditions(make: Any, residual: bool, tmp_path: Path) -> None:
    p = process()
    p.fit_prior(*data())
    net = ResidualScore(make(), p) if residual else make()
    save_model(tmp_path / "model", net, p)
    loaded, own, _ = load_model(tmp_path / "model")
    y = LABELS if make is classifying else normals(5, 4, seed=1, dtype=torch.float32)
    x, t = normals(5, 2, dtype=torch.float32), torch.full((5,), 0.2)
    assert torch.equal(loaded(x, t, y), net(x, t, y)) and loaded.null_trained
    assert own.class_weights is not None and torch.equal(own.class_weights, p.class_weights)


# --- bad input ---------------------------------------------------------------------------------------------------

X = normals(5, 2, dtype=torch.float32)
ONE = quietly(fastndsm.GaussianMixture.standard_normal(2), T=6.0, n_steps=60)
BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "loss of a network without": (lambda: NDSMLoss(ONE)(MLP(2, (4,)), X, condition=LABELS), ValueError,
        "condition: expected None, as score_net takes none; found one for MLP (x, t)"),
    "loss of a function without": (lambda: NDSMLoss(ONE)(lambda x, t: -x, X, condition=LABELS), ValueError,
        "condition: expected None, as score_net takes none; found one for function (x, t)"),
    "residual of a network without": (
        lambda: NDSMLoss(ONE)(ResidualScore(MLP(2, (4,)), ONE), X, condition=LABELS), ValueError,
        "condition: expected None, as score_net takes none; found one for ResidualScore (x, t)"),
    "sample of a network without": (lambda: sample(MLP(2, (4,)), ONE, 5, condition=LABELS), ValueError,
        "condition: expected None, as score_net takes none; found one for MLP (x, t)"),
    "likelihood of a network without": (lambda: log_likelihood(lambda x, t: -x, ONE, X, condition=LABELS), ValueError,
        "condition: expected None, as score_net takes none; found one for function (x, t)"),
    "trainer of a network without": (lambda: trainer(MLP(2, (4,))), ValueError,
        "condition: expected None, as score_net takes none; found one for MLP (x, t)"),
    "called without": (lambda: MLP(2, (4,))(X, X[:, 0], LABELS), ValueError,
        "condition: expected None for a network without classes and condition_dim, found one"),
    "sample of a network with": (lambda: sample(exact, ONE, 5), ValueError,
        "condition: expected one, as score_net, function, takes three arguments; found None"),
    "guidance 0 of a network with": (lambda: sample(exact, ONE, 5, condition=LABELS, guidance=0), ValueError,
        "condition: expected one, as score_net, function, takes three arguments; found None"),
    "loss rows": (lambda: NDSMLoss(ONE)(classifying(), X, condition=LABELS[:4]), ValueError,
        "condition: expected 5 rows, one for each sample, found shape (4,)"),
    "sample rows": (lambda: sample(classifying(), ONE, 6, condition=LABELS), ValueError,
        "condition: expected 6 rows, one for each sample, found shape (5,)"),
    "likelihood rows": (lambda: log_likelihood(classifying(), ONE, X[:3], condition=LABELS), ValueError,
        "condition: expected 3 rows, one for each sample, found shape (5,)"),
    "dict rows": (lambda: sample(OfBoth(), ONE, 3, condition={**both(3), "vector": torch.zeros(2, 3)}), ValueError,
        "condition['vector']: expected 3 rows, one for each sample, found shape (2, 3)"),
    "trainer rows": (lambda: trainer(y=LABELS), ValueError,
        "conditions: expected 60 rows, one for each sample, found shape (5,)"),
    "a list": (lambda: sample(classifying(), ONE, 5, condition=[0, 1, 2, 0, 1]), TypeError,
        "condition: expected a Tensor [B, ...] or a dict of them, found list"),
    "an empty dict": (lambda: sample(OfBoth(), ONE, 5, condition={}), TypeError,
        "condition: expected a Tensor [B, ...] or a dict of them, by name, found []"),
    "NaN": (lambda: sample(vectorial(), ONE, 5, condition=torch.full((5, 4), torch.nan)), ValueError,
        "condition: expected finite values, found 20 NaN or infinite, first at (0, 0)"),
    "another device": (lambda: sample(vectorial(), ONE, 5, condition=torch.zeros(5, 4, device="meta")), ValueError,
        "condition: expected the device of process, cpu, found meta"),
    "a label too large": (lambda: sample(classifying(), ONE, 5, condition=LABELS + 2), ValueError,
        "condition: expected labels in 0..2, or 3 for none, found 2..4"),
    "labels of floats": (lambda: sample(classifying(), ONE, 5, condition=LABELS.float()), TypeError,
        "condition: expected integer labels, found torch.float32"),
    "vectors of integers": (lambda: sample(vectorial(), ONE, 5, condition=torch.zeros(5, 4).long()), TypeError,
        "condition: expected floating point values, found torch.int64"),
    "narrow vectors": (lambda: sample(vectorial(), ONE, 5, condition=torch.zeros(5, 3)), ValueError,
        "condition: expected 4 values a row, found rows of shape (3,)"),
    "fewer rows than x": (lambda: classifying()(X, X[:, 0], LABELS[:4]), ValueError,
        "condition: expected 5 rows, as x has, found shape (4,)"),
    "labels of two dimensions": (lambda: classifying()(X, X[:, 0], LABELS[:, None]), ValueError,
        "condition: expected shape (5,), found (5, 1)"),
    "classes and width": (lambda: MLP(2, (4,), classes=3, condition_dim=2), ValueError,
        "classes, condition_dim: expected one of them, found 3 and 2"),
    "no class": (lambda: MLP(2, (4,), classes=0), ValueError, "classes: expected a positive int, found 0"),
    "no width": (lambda: UNet(size=8, condition_dim=0), ValueError, "condition_dim: expected a positive int, found 0"),
    "guidance without": (lambda: sample(classifying(), ONE, 5, guidance=2.0), ValueError,
        "condition: expected one with guidance, found None"),
    "guidance of a word": (lambda: sample(classifying(), ONE, 5, condition=LABELS, guidance="much"), ValueError,
        "guidance: expected a finite number, found 'much'"),
    "guidance of a network without null": (lambda: sample(exact, ONE, 5, condition=LABELS, guidance=2), ValueError,
        "guidance: expected 0 or 1 for a network without null_condition(condition), found 2 for function"),
    "guide": (lambda: sample(classifying(), ONE, 5, condition=LABELS, guide=3), TypeError,
        "guide: expected a callable (x, t) -> like x, found int"),
    "guide's shape": (lambda: sample(lambda x, t: -x, ONE, 5, guide=lambda x, t: t), ValueError,
        "guide: expected the shape of x, (5, 2), found (5,)"),
    "dropout": (lambda: TrainConfig(condition_dropout=1.5), ValueError,
        "condition_dropout: expected a number in [0, 1], found 1.5"),
    "prior's labels": (lambda: process().fit_prior(X, LABELS[:3]), ValueError,
        "labels: expected [5], one for each sample, found (3,)"),
    "prior's classes": (lambda: process().fit_prior(X, LABELS, 2), ValueError,
        "n_classes: expected an integer of at least 3, found 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error) as found:
        call()
    assert str(found.value).startswith(message), found.value
