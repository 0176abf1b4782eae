"""The trainer: what a step does, what it draws, what it refuses."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastndsm
from fastndsm.networks import MLP
from fastndsm.process import Noised
from fastndsm.training import checkpoint, storage
from fastndsm.training.batches import Batches
from fastndsm.training.storage import CheckpointError
from fastndsm.training.trainer import NonFiniteLoss, TrainConfig, Trainer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the networks are tiny


def mixture() -> fastndsm.GaussianMixture:
    return fastndsm.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.4, 0.6], "spherical")


def process() -> fastndsm.LangevinProcess:
    return fastndsm.LangevinProcess(mixture(), n_steps=20)


def data(n: int = 64) -> Tensor:
    return mixture().sample(n, seed=1).float()


def network(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    net = MLP(2, (16, 16), embedding_dim=8, horizon=2.0)
    with torch.no_grad():  # a last layer of zeros would hide the first gradients of the others
        net.last.weight.normal_(std=0.1)
    return net


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**{"steps": 12, "batch_size": 16, "checkpoint_every": 4, **options})


class TestLearning:
    def test_trains_towards_the_exact_score(self) -> None:
        ou = fastndsm.OUProcess(2, T=3.0, n_steps=30)
        x0 = 0.5 * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(0)
        net = fastndsm.ResidualScore(MLP(2, (32, 32), embedding_dim=16, horizon=3.0), ou)
        trainer = Trainer(net, fastndsm.NDSMLoss(ou), x0, TrainConfig(steps=200, batch_size=128, lr=5e-3))

        m, v = ou.marginal()
        n = torch.arange(30).repeat_interleave(100)
        variance = (m**2 * 0.25 + v)[n][:, None].float()
        x = variance.sqrt() * torch.randn(len(n), 2, generator=torch.Generator().manual_seed(1))
        t = ou.times[n + 1].float()

        def error(score_net: nn.Module) -> float:
            with torch.no_grad():
                return float((score_net(x, t) + x / variance).square().mean())

        before = error(net)
        trainer.fit(progress=False)
        assert error(trainer.ema_net) < 0.1 * before

    def test_a_separate_control_variate_is_trained_along(self) -> None:
        h = network(1)
        loss = fastndsm.NDSMLoss(process(), "control_variate", control_variate=h)
        before = h.last.weight.detach().clone()
        trainer = Trainer(network(), loss, data(), config())
        trainer.fit(progress=False)
        assert not torch.equal(h.last.weight, before)

    def test_batch_larger_than_the_data(self) -> None:
        history = Trainer(network(), fastndsm.NDSMLoss(process()), data(5), config()).fit(progress=False)
        assert math.isfinite(history[-1].loss)

    def test_history_has_a_row_for_each_window_and_the_mean_of_its_losses(self) -> None:
        net, loss, x0 = network(), fastndsm.NDSMLoss(process()), data()
        trainer = Trainer(net, loss, x0, config(steps=45, lr=1e-12))
        history = trainer.fit(progress=False)
        assert [row.step for row in history] == [20, 40, 45]
        batches = trainer._batches  # the rate is so small that the network stays as it is
        losses = [loss.evaluate(net, batches(step)).item() for step in range(40, 45)]
        assert history[-1].loss == pytest.approx(sum(losses) / 5, rel=1e-4)


class Recording(torch.optim.SGD):
    """SGD that remembers the rate and the weights of every step."""

    def __init__(self, parameters: Any, **options: Any) -> None:
        super().__init__(parameters, **options)
        self.rates: list[float] = []
        self.weights: list[list[Tensor]] = []
        self.norms: list[float] = []

    def step(self, closure: Any = None) -> Any:
        parameters = self.param_groups[0]["params"]
        self.rates.append(self.param_groups[0]["lr"])
        self.norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters])))
        super().step(closure)
        self.weights.append([p.detach().clone() for p in parameters])


class TestStep:
    def run(self, **options: Any) -> tuple[Trainer, Recording]:
        trainer = Trainer(
            network(),
            fastndsm.NDSMLoss(process()),
            data(),
            config(**options),
            optimizer=lambda p: Recording(p, lr=0.1),
        )
        trainer.fit(progress=False)
        assert isinstance(trainer.optimizer, Recording)
        return trainer, trainer.optimizer

    def test_rate_follows_a_cosine_from_the_optimizers_own_rate_towards_zero(self) -> None:
        _, recording = self.run()
        expected = [0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
        assert recording.rates == pytest.approx(expected)

    def test_an_optimizer_that_another_run_has_used_starts_from_its_own_rate(self) -> None:
        first, _ = self.run()
        again = Trainer(first.score_net, first.loss, data(), config(), optimizer=lambda p: first.optimizer)
        again.fit(progress=False)
        assert isinstance(first.optimizer, Recording)
        assert first.optimizer.rates[12:] == pytest.approx(first.optimizer.rates[:12])

    def test_average_of_the_weights(self) -> None:
        trainer, recording = self.run(ema=0.5)
        average = [p.detach().clone() for p in network().parameters()]
        for step, weights in enumerate(recording.weights):
            decay = min(0.5, (1 + step) / (10 + step))
            average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
        for expected, found in zip(average, trainer.ema_net.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
            assert not found.requires_grad

    def test_gradient_clipping(self) -> None:
        _, free = self.run()
        _, clipped = self.run(grad_clip=1e-3)
        assert max(free.norms) > 2e-3
        assert max(clipped.norms) <= 1e-3 * (1 + 1e-5)

    def test_the_average_has_the_networks_buffers(self) -> None:
        class Normalised(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm, self.last = nn.BatchNorm1d(2), nn.Linear(2, 2)

            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return self.last(self.norm(x))

        net = Normalised()
        trainer = Trainer(net, fastndsm.NDSMLoss(process()), data(), config())
        trainer.fit(progress=False)
        average = trainer.ema_net
        assert isinstance(average, Normalised)
        assert not average.training
        assert not torch.equal(net.norm.running_mean, torch.zeros(2))
        torch.testing.assert_close(average.norm.running_mean, net.norm.running_mean, rtol=0, atol=0)

    def test_the_process_is_shared_with_the_average(self) -> None:
        noising = process()
        net = fastndsm.ResidualScore(network(), noising)
        trainer = Trainer(net, fastndsm.NDSMLoss(noising), data(), config())
        assert trainer.ema_net.process is noising
        assert trainer.ema_net.net is not net.net


HALF = [torch.bfloat16, torch.float16]


class TestHalfPrecision:
    """Sums over steps are kept in float32."""

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_the_average_follows_the_weights(self, dtype: torch.dtype) -> None:
        net = network().to(dtype)
        seen: list[list[Tensor]] = []
        trainer = Trainer(net, fastndsm.NDSMLoss(process()), data().to(dtype), config(steps=200, lr=1e-3, ema=0.999))
        trained = trainer._train_step

        def step() -> None:
            trained()
            seen.append([p.detach().double() for p in net.parameters()])

        trainer._train_step = step  # type: ignore[method-assign]
        start = [p.detach().double() for p in net.parameters()]
        trainer.fit(progress=False)
        average = start
        for n, weights in enumerate(seen):
            decay = min(0.999, (1 + n) / (10 + n))
            average = [decay * a + (1 - decay) * w for a, w in zip(average, weights, strict=True)]
        given_out = list(trainer.ema_net.parameters())
        assert {p.dtype for p in given_out} == {dtype}
        for kept, expected, rounded in zip(trainer._average, average, given_out, strict=True):
            assert kept.dtype == torch.float32
            torch.testing.assert_close(kept.double(), expected, rtol=1e-5, atol=1e-6)
            assert torch.equal(rounded, kept.to(dtype))
        moved = max(float((a - b).abs().max()) for a, b in zip(average, start, strict=True))
        assert moved > 0.02

    @pytest.mark.parametrize("dtype", HALF, ids=str)
    def test_steps_below_the_weights_own_rounding_add_up(self, dtype: torch.dtype) -> None:
        net = network().to(dtype)
        with torch.no_grad():
            net.last.bias.fill_(1.0)  # neighbours: 1 +- 2^-7, or 2^-10
        rate = torch.finfo(dtype).eps / 50
        loss = fastndsm.NDSMLoss(process(), weighting=None)
        x0 = torch.full((64, 2), 50.0, dtype=dtype)  # far out: the gradient of the bias keeps its sign
        trainer = Trainer(net, loss, x0, config(steps=200, lr=rate))
        trainer.fit(progress=False)
        moved = (net.last.bias.detach().float() - 1.0).abs()
        expected = rate * sum(
            0.5 * (1 + math.cos(math.pi * n / 200)) for n in range(200)
        )  # Adam's steps are of size lr
        assert bool(((moved - expected).abs() < 0.7 * torch.finfo(dtype).eps).all())

    def test_other_weights_put_into_the_network_are_taken_over(self) -> None:
        net = network().bfloat16()
        trainer = Trainer(net, fastndsm.NDSMLoss(process()), data().bfloat16(), config(steps=1, lr=1e-9))
        other = network(5).bfloat16()
        net.load_state_dict(other.state_dict())
        trainer.fit(progress=False)
        assert torch.equal(net.last.weight, other.last.weight)

    def test_an_optimizer_of_the_networks_own_weights_steps_those(self) -> None:
        net = network().bfloat16()
        before = net.last.weight.detach().clone()
        own = torch.optim.SGD(net.parameters(), lr=0.5)
        Trainer(net, fastndsm.NDSMLoss(process()), data().bfloat16(), config(), optimizer=lambda _: own).fit(
            progress=False
        )
        assert not torch.equal(net.last.weight, before)

    def test_the_norm_of_large_gradients_is_finite(self) -> None:
        loss = fastndsm.NDSMLoss(process(), weighting=lambda t: torch.full_like(t, 1.5e5))
        net = network().half()
        trainer = Trainer(net, loss, 2 * data().half(), config(steps=1, grad_clip=1.0))
        assert 65504 < trainer.fit(progress=False)[-1].gradient_norm < math.inf


class WithParameters(nn.Module):
    """An MLP behind a parameter of another dtype, which comes first."""

    def __init__(self, first: torch.dtype, dtype: torch.dtype) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.ones(2, dtype=first))
        self.net = network().to(dtype)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scaled = x * self.first
        return self.net((scaled.real if scaled.is_complex() else scaled).to(x.dtype), t)


FLOATS = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("first", [*FLOATS, torch.complex64, torch.complex128], ids=str)
def test_networks_of_every_dtype_train_and_sample(first: torch.dtype, dtype: torch.dtype) -> None:
    noising = process()
    net = fastndsm.ResidualScore(WithParameters(first, dtype), noising)
    trainer = Trainer(net, fastndsm.NDSMLoss(noising), data().to(dtype), config(grad_clip=0.5))
    before = [p.detach().clone() for p in net.parameters()]
    trainer.fit(progress=False)
    assert all(not torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True) if p.dtype != first)
    assert [p.dtype for p in trainer.ema_net.parameters()] == [p.dtype for p in before]
    assert fastndsm.sample(trainer.ema_net, noising, 3, seed=0).dtype == dtype


class TestRandomness:
    def test_a_run_depends_on_its_seed_alone_and_leaves_the_global_generator_alone(self) -> None:
        class Dropping(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net, self.drop = network(), nn.Dropout(0.5)

            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return self.net(self.drop(x), t)

        def run(global_seed: int, seed: int) -> Tensor:
            net = Dropping()
            torch.manual_seed(global_seed)
            state = torch.get_rng_state()
            Trainer(net, fastndsm.NDSMLoss(process()), data(), config(seed=seed)).fit(progress=False)
            assert torch.equal(torch.get_rng_state(), state)
            return net.net.last.weight.detach()

        assert torch.equal(run(1, 0), run(2, 0))
        assert not torch.equal(run(1, 0), run(1, 1))

    @pytest.mark.parametrize("estimator", ["path", "plain"])
    @pytest.mark.parametrize("antithetic", [False, True])
    @pytest.mark.parametrize("ahead", [1, 4])
    def test_a_batch_is_the_draw_of_its_own_paths(self, estimator: str, antithetic: bool, ahead: int) -> None:
        loss = fastndsm.NDSMLoss(process(), estimator, antithetic)
        x0 = data(24)
        batches = Batches(x0, loss, steps=7, batch_size=16, seed=3, noised_ahead=ahead, device=CPU)
        for step in (5, 0, 6):
            rows = batches._indices(step * 16, 16)
            expected = loss.draw(x0[rows], seed=3, first_path=step * 16)
            for found, field in zip(batches(step), expected, strict=True):
                torch.testing.assert_close(found, field, rtol=1e-4, atol=1e-5)


class Echo:
    """A loss that hands back the rows it was given and the numbers of their paths."""

    def draw(self, x0: Tensor, seed: int, first_path: int, records: int | None = None) -> Noised:
        paths = torch.arange(first_path, first_path + len(x0))
        if records is None:
            return Noised(x0, paths, paths, paths, paths)
        x0, paths = x0[:, None].expand(-1, records, -1), paths[:, None].expand(-1, records)
        return Noised(x0, paths, paths, paths, torch.arange(records).expand(paths.shape))


def batches_of(n: int, **options: Any) -> Batches:
    rows = torch.arange(n, dtype=torch.float32)[:, None]
    return Batches(rows, Echo(), seed=0, device=CPU, **options)  # type: ignore[arg-type]


def test_records_are_of_the_path_estimator() -> None:
    for loss, name in (
        (fastndsm.NDSMLoss(process(), "plain"), "estimator 'plain'"),
        (fastndsm.DSMLoss(fastndsm.OUProcess(2)), "DSMLoss"),
    ):
        with pytest.raises(ValueError, match=f"records_per_path: expected 1 with {name}, found 2"):
            Trainer(network(), loss, data(), config(records_per_path=2))


class TestBatches:
    def test_every_epoch_takes_every_row_once_in_an_order_of_its_own(self) -> None:
        batches = batches_of(12, steps=9, batch_size=4, noised_ahead=2)
        rows = torch.cat([batches(step).x[:, 0] for step in range(9)]).reshape(3, 12)
        assert torch.equal(rows.sort(1).values, torch.arange(12.0).expand(3, 12))
        assert not torch.equal(rows[0], rows[1])

    def test_paths_are_never_repeated_and_ranks_share_neither_rows_nor_paths(self) -> None:
        rows, paths = [], []
        for rank in range(3):
            batches = batches_of(24, steps=2, batch_size=12, rank=rank, world=3)
            rows += [batches(step).x for step in range(2)]
            paths += [batches(step).target for step in range(2)]
        assert torch.equal(torch.cat(rows)[:, 0].sort().values, torch.arange(24.0))
        assert len(torch.cat(paths).unique()) == 24

    def test_a_pool_is_used_passes_times_and_then_drawn_afresh(self) -> None:
        batches = batches_of(10, steps=100, batch_size=4, pool=12, passes=3, noised_ahead=2)
        paths = torch.cat([batches(step).target for step in range(18)]).reshape(2, 36)
        for number, pool in enumerate(paths):
            values, counts = pool.unique(return_counts=True)
            assert torch.equal(values, torch.arange(12) + 12 * number)
            assert bool((counts == 3).all())
        passes = paths[0].reshape(3, 12)
        assert torch.equal(passes.sort(1).values, torch.arange(12).expand(3, 12))
        assert not torch.equal(passes[0], passes[1])

    def test_a_pool_may_be_entered_at_any_step(self) -> None:
        options: dict[str, Any] = {"steps": 100, "batch_size": 5, "pool": 12, "passes": 2}
        once = batches_of(10, **options)
        inorder = [once(step).target for step in range(12)]
        for step in (11, 3, 7):
            assert torch.equal(batches_of(10, **options)(step).target, inorder[step])

    @pytest.mark.parametrize("pool", [None, 12])
    def test_every_record_is_used_once_and_no_batch_has_two_of_one_path(self, pool: int | None) -> None:
        options: dict[str, Any] = {"steps": 30, "batch_size": 4, "noised_ahead": 3, "records": 5, "pool": pool}
        once = batches_of(24, **options)
        inorder = [once(step) for step in range(30)]
        for number in range(2):  # groups, or pools, of 12 paths, each for 15 steps
            batches = inorder[15 * number : 15 * (number + 1)]
            assert all(len(batch.target.unique()) == 4 for batch in batches)
            pairs = {(int(p), int(r)) for batch in batches for p, r in zip(batch.target, batch.step, strict=True)}
            assert pairs == {(12 * number + p, r) for p in range(12) for r in range(5)}
        orders = torch.cat([batch.target for batch in inorder[:15]]).reshape(5, 12)
        assert len({tuple(order.tolist()) for order in orders}) == 5
        rows = torch.cat([batch.x[:, 0] for batch in inorder])  # an epoch of 24 rows: each for every record
        assert torch.equal(rows.unique(return_counts=True)[1], torch.full((24,), 5))
        for step in (29, 3, 16):
            for found, expected in zip(batches_of(24, **options)(step), inorder[step], strict=True):
                assert torch.equal(found, expected)

    def test_the_last_group_of_records_is_as_large_as_the_steps_left_can_use(self) -> None:
        batches = batches_of(24, steps=17, batch_size=4, noised_ahead=3, records=5)
        paths = torch.cat([batches(step).target for step in (15, 16)])
        assert torch.equal(paths.sort().values, torch.arange(12, 20))

    def test_records_of_antithetic_pairs_stay_together(self) -> None:
        loss = fastndsm.NDSMLoss(process(), antithetic=True)
        x0 = data(24)
        batches = Batches(x0, loss, steps=8, batch_size=8, seed=3, noised_ahead=2, records=4, device=CPU)
        drawn = loss.draw(x0[batches._indices(0, 16)], seed=3, first_path=0, records=4)
        for step in range(8):
            batch = batches(step)
            assert len(batch.x) == 16 and torch.equal(batch.step[:8], batch.step[8:])
            for plus, minus in zip(batch.x[:8], batch.x[8:], strict=True):
                path, record = (drawn.x[:16] == plus).all(dim=-1).nonzero()[0].tolist()
                assert torch.equal(drawn.x[16 + path, record], minus)


class FailsAt(nn.Module):
    """A network whose output, or gradient, is infinite in one step."""

    def __init__(self, step: int, gradient: bool) -> None:
        super().__init__()
        self.net, self.calls, self.at, self.gradient = network(), 0, step, gradient

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.net(x, t)
        if self.calls != self.at:
            return out
        if self.gradient:
            out.register_hook(lambda g: g * math.inf)
            return out
        return out * math.nan


class TestNonFinite:
    @pytest.mark.parametrize("gradient", [False, True])
    def test_stops_with_the_step_and_the_last_good_checkpoint(self, tmp_path: Path, gradient: bool) -> None:
        loss = fastndsm.NDSMLoss(process())
        trainer = Trainer(FailsAt(11, gradient), loss, data(), config(steps=40, checkpoint_every=8), directory=tmp_path)
        what = "gradient" if gradient else "loss"
        with pytest.raises(NonFiniteLoss, match=rf"{what}: expected a finite value, found .* at step 11;") as caught:
            trainer.fit(progress=False)
        assert caught.value.step == 11
        assert caught.value.checkpoint == tmp_path / "step-000008"
        assert str(tmp_path / "step-000008") in str(caught.value)

    def test_without_checkpoints_it_says_so(self) -> None:
        with pytest.raises(FloatingPointError, match="step 3; no checkpoint was written"):
            Trainer(FailsAt(3, False), fastndsm.NDSMLoss(process()), data(), config()).fit(progress=False)

    def test_infinite_weights_are_never_saved(self, tmp_path: Path) -> None:
        trainer = Trainer(network(), fastndsm.NDSMLoss(process()), data(), config(), directory=tmp_path)
        trainer.fit(progress=False)
        with torch.no_grad():
            trainer.score_net.last.bias[0] = math.inf
        with pytest.raises(NonFiniteLoss, match=r"last.bias: expected finite weights"):
            trainer.save()


class Shared(nn.Module):
    """A buffer in the memory of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.register_buffer("view", self.net.last.weight.detach().T[1:])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(x, t)


def with_part(name: str, value: Any) -> nn.Module:
    net = network()
    net.register_buffer(name, value) if isinstance(value, Tensor) else net.add_module(name, value)
    return net


class Telling(nn.Module):
    """A module with a state that is no tensor."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


class Unsavable(torch.optim.SGD):
    """Its state, which the first step makes, holds an object."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["history"] = object()


def tied_data() -> nn.Module:
    net = MLP(2, (16, 16), embedding_dim=8)
    net.layers[1].bias.data = net.layers[0].bias.data
    return net


class TestSaving:
    @pytest.mark.parametrize(
        ("make", "options", "message"),
        [
            (
                Shared,
                {},
                "score_net: expected parameters and buffers in memory of their own, found net.last.weight and",
            ),
            (
                tied_data,
                {},
                "score_net: expected parameters and buffers in memory of their own, found layers.[01].bias",
            ),
            (
                lambda: with_part("table", torch.eye(2).to_sparse()),
                {},
                "table: expected a dense tensor, which can be st",
            ),
            (
                lambda: with_part("table", torch.zeros(2, device="meta")),
                {},
                "table: expected a dense tensor, which can",
            ),
            (
                lambda: with_part("table", torch.zeros(2, dtype=torch.complex32)),
                {},
                None,
            ),
            (lambda: with_part("part", Telling(object())), {}, "score_net: expected tensors, .* object at extra.part"),
            (network, {"optimizer": lambda p: Unsavable(p, lr=0.1)}, "optimizer: expected tensors, .* object at state"),
            (
                network,
                {"optimizer": lambda p: torch.optim.SGD([{"params": p, "tag": {1}}], lr=0.1)},
                "optimizer: expected tensors, numbers and containers, found set at state",
            ),
        ],
    )
    @pytest.mark.filterwarnings("ignore:ComplexHalf")
    def test_what_cannot_be_saved_fails_before_the_second_step(
        self, tmp_path: Path, make: Any, options: dict[str, Any], message: str | None
    ) -> None:
        folder = tmp_path / "checkpoints"
        trainer = Trainer(make(), fastndsm.NDSMLoss(process()), data(), config(), directory=folder, **options)
        if message is None:  # stored all the same: as pairs of reals
            trainer.fit(progress=False)
            return
        with pytest.raises((ValueError, TypeError), match=f"^{message}"):
            trainer.fit(progress=False)
        assert trainer.step == 0
        assert not folder.exists()

    @pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
    def test_a_folder_that_cannot_be_written_to(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        trainer = Trainer(network(), fastndsm.NDSMLoss(process()), data(), config(), directory=tmp_path / "c")
        with pytest.raises(CheckpointError, match=r"^directory: expected a folder that can be written to"):
            trainer.fit(progress=False)

    def test_a_full_disk_is_met_before_the_first_step(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(path: Path) -> None:
            raise OSError("No space left on device")

        trainer = Trainer(network(), fastndsm.NDSMLoss(process()), data(), config(), directory=tmp_path / "c")
        trainer._train_step = lambda: pytest.fail("it took a step")  # type: ignore[method-assign]
        monkeypatch.setattr(storage, "_synchronise", full)
        with pytest.raises(OSError, match="No space left"):
            trainer.fit(progress=False)

    def test_shared_memory_is_refused_without_checkpoints_too(self) -> None:
        with pytest.raises(ValueError, match=r"neither an average nor a checkpoint could have both"):
            Trainer(Shared(), fastndsm.NDSMLoss(process()), data(), config()).fit(progress=False)

    def test_a_control_variate_may_share_parts_with_the_network(self, tmp_path: Path) -> None:
        net = network()
        h = network(1)
        h.film = net.film
        loss = fastndsm.NDSMLoss(process(), "control_variate", control_variate=h)
        Trainer(net, loss, data(), config(), directory=tmp_path).fit(progress=False)
        stored = checkpoint.load_checkpoint(tmp_path / "step-000012").model
        assert "control_variate/last.weight" in stored and "control_variate/film.out.weight" not in stored


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "steps: expected an integer of at least 1, found 0"),
            ({"batch_size": 2.5}, "batch_size: expected an integer, found 2.5"),
            ({"lr": -1.0}, "lr: expected a finite positive number, found -1.0"),
            ({"lr": math.nan}, "lr: expected a finite positive number, found nan"),
            ({"ema": 1.0}, r"ema: expected a number in \[0, 1\), found 1.0"),
            ({"seed": 2**70}, "seed: expected an integer of at most 64 bits"),
            ({"paths": "reuse"}, "paths: expected one of 'fresh', found 'reuse'"),
            ({"noised_ahead": 0}, "noised_ahead: expected an integer of at least 1, found 0"),
            ({"grad_clip": 0.0}, "grad_clip: expected a finite positive number, found 0.0"),
        ],
    )
    def test_config(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises((ValueError, TypeError), match=message):
            TrainConfig(**options)

    @pytest.mark.parametrize(("n", "pool"), [(64, 999), (2000, 1999)])
    def test_a_pool_below_the_data_or_a_thousand_is_refused(self, n: int, pool: int) -> None:
        with pytest.raises(ValueError, match=rf"paths: .* at least max\(n, 1000\) = {pool + 1} paths, found {pool}"):
            Trainer(network(), fastndsm.NDSMLoss(process()), data(n), config(paths=pool))
        Trainer(network(), fastndsm.NDSMLoss(process()), data(n), config(paths=pool + 1))

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            (
                {"data": data().fill_diagonal_(math.nan)},
                "data: expected finite values, found 2 NaN or infinite",
            ),
            (
                {"data": data().double()},
                "data: expected torch.float32, the network's dtype, found torch.float64",
            ),
            ({"data": data()[:0]}, "data: expected at least one sample"),
            ({"data": torch.zeros(5, 3)}, "data: expected shape .* with 2 values a sample"),
            ({"data": [1.0]}, "data: expected a torch.Tensor, found list"),
            ({"score_net": lambda x, t: x}, "score_net: expected a torch.nn.Module, found function"),
            (
                {"score_net": nn.Identity()},
                "score_net: expected parameters that require a gradient, found none",
            ),
            ({"loss": nn.MSELoss()}, "loss: expected an NDSMLoss or DSMLoss, found MSELoss"),
            (
                {"loss": fastndsm.NDSMLoss(process(), reduction="none")},
                "loss: expected reduction 'mean' or 'sum', found 'none'",
            ),
            ({"config": {"steps": 3}}, "config: expected a TrainConfig, found dict"),
            ({"score_net": nn.LazyLinear(2)}, "score_net: expected initialised parameters, found weight is not; call"),
            ({"meta": "notes"}, "meta: expected a JSON-able dict, found str"),
            ({"meta": {"x": torch.zeros(1)}}, "meta: expected a JSON-able dict, found: Object of type Tensor"),
            ({"directory": 3}, "directory: expected a path, found int"),
            ({"directory": __file__}, "directory: expected a folder, found the file"),
        ],
    )
    def test_trainer(self, changed: dict[str, Any], message: str) -> None:
        given = {
            "score_net": network(),
            "loss": fastndsm.NDSMLoss(process()),
            "data": data(),
            "config": config(),
        }
        with pytest.raises((ValueError, TypeError), match=message):
            Trainer(**{**given, **changed})

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (
                lambda net: torch.optim.AdamW(net.parameters()),
                TypeError,
                r"expected a function that makes one of the parameters, such as lambda p: AdamW\(p, lr=1e-3\), "
                r"found the AdamW itself",
            ),
            (lambda net: "adam", TypeError, "expected a function that makes one of the parameters, found 'adam'"),
            (lambda net: 1e-3, TypeError, "expected a function that makes one of the parameters, found 0.001"),
            (
                lambda net: lambda p: [torch.optim.Adam(p)],
                TypeError,
                "expected it to make a torch.optim.Optimizer, found list",
            ),
            (
                lambda net: lambda p: torch.optim.lr_scheduler.ConstantLR(torch.optim.Adam(p)),
                TypeError,
                "expected it to make a torch.optim.Optimizer, found ConstantLR",
            ),
            (lambda net: torch.optim.LBFGS, TypeError, "expected one that steps once .*, found LBFGS, which evaluates"),
            (
                lambda net: lambda p: torch.optim.SGD(network(1).parameters(), lr=0.1),
                ValueError,
                "expected it to step the parameters that the function is given, found a SGD of others",
            ),
        ],
    )
    def test_optimizers(self, make: Any, error: type[Exception], message: str) -> None:
        net = network()
        with pytest.raises(error, match=f"^optimizer: {message}"):
            Trainer(net, fastndsm.NDSMLoss(process()), data(), config(), optimizer=make(net))

    def test_a_network_of_the_wrong_shape(self) -> None:
        class Wrong(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.last = nn.Linear(2, 3)

            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return self.last(x)

        with pytest.raises(
            ValueError, match=r"score_net: expected output of the shape of x, \(16, 2\), found \(16, 3\)"
        ):
            Trainer(Wrong(), fastndsm.NDSMLoss(process()), data(), config()).fit(progress=False)
