"""Options of a Trainer: each does what it says, and a resumed run is as without a stop."""

from __future__ import annotations

import importlib
import json
import math
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import fastndsm
from fastndsm.networks import MLP
from fastndsm.training import CheckpointError, TensorBoard, TrainConfig, Trainer, WandB, checkpoint
from fastndsm.training.validation import Validation


def mixture() -> fastndsm.GaussianMixture:
    return fastndsm.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.4, 0.6], "spherical")


def process() -> fastndsm.LangevinProcess:
    return fastndsm.LangevinProcess(mixture(), n_steps=20)


def data(n: int = 60, seed: int = 1) -> Tensor:
    return mixture().sample(n, seed=seed).float()


def network(**options: Any) -> MLP:
    torch.manual_seed(0)
    net = MLP(2, (16,), embedding_dim=8, horizon=2.0, **options)
    nn.init.normal_(net.last.weight, std=0.1)
    return net


def make(directory: Path | None = None, x: Any = None, net: nn.Module | None = None, **options: Any) -> Trainer:
    names = ("scheduler", "validation", "callbacks", "loggers", "optimizer", "conditions", "validation_conditions")
    hooks = {name: options.pop(name) for name in names if name in options}
    reduction, antithetic = options.pop("reduction", "mean"), options.pop("antithetic", False)
    config = TrainConfig(**{"steps": 22, "batch_size": 12, "checkpoint_every": 5, "noised_ahead": 3, **options})
    loss = fastndsm.NDSMLoss(process(), reduction=reduction, antithetic=antithetic)
    x = data() if x is None else x
    return Trainer(network() if net is None else net, loss, x, config, directory=directory, **hooks)


def everything(trainer: Trainer) -> list[Tensor]:
    nets = (trainer.score_net, trainer.ema_net, trainer.best_net)
    return [t.detach().clone() for net in nets for t in net.state_dict().values()]


def assert_equal(one: Trainer, other: Trainer) -> None:
    torch.testing.assert_close(everything(one), everything(other), rtol=0, atol=0)


class StopError(Exception):
    pass


def stop(trainer: Trainer) -> None:
    """Break off in the middle of things."""
    if trainer.step == 13:
        raise StopError


def assert_resumes(folder: Path, **options: Any) -> Trainer:
    """Train with a stop and without, to the same end; return what has had the stop."""
    whole = make(None, **options)
    whole.fit(progress=False)
    with pytest.raises(StopError):
        make(folder, **{**options, "callbacks": [stop]}).fit(progress=False)
    torch.manual_seed(99)
    again = make(folder, **options)
    assert again.resume() == 10
    again.fit(progress=False)
    assert_equal(again, whole)
    assert [row[:3] + row[4:] for row in again.history][-1] == [row[:3] + row[4:] for row in whole.history][-1]
    return again


# --- validation and early stop ---


class TestValidation:
    def test_it_is_the_loss_of_the_averaged_weights_on_the_same_noise(self) -> None:
        held_out = data(30, seed=2)
        trainer = make(validation=held_out, validate_every=10, batch_size=8)
        history = trainer.fit(progress=False)
        assert [row.step for row in history if row.validation is not None] == [10, 20, 22]
        loss = fastndsm.NDSMLoss(process(), reduction="sum")
        seed = Validation(held_out, None, loss, rows=8, seed=0, device=torch.device("cpu")).seed
        with torch.no_grad():
            expected = float(loss(trainer.ema_net, held_out, seed=seed)) / 30
        assert history[-1].validation == pytest.approx(expected, rel=1e-5)

    def test_it_changes_nothing_else(self) -> None:
        plain, validated = make(), make(validation=data(30, seed=2), validate_every=3)
        plain.fit(progress=False)
        validated.fit(progress=False)
        assert all(
            torch.equal(a, b) for a, b in zip(plain.ema_net.parameters(), validated.ema_net.parameters(), strict=True)
        )

    def test_of_a_mean_and_of_a_sum_it_is_the_same(self) -> None:
        net = network()
        values = []
        for reduction in ("mean", "sum"):
            loss = fastndsm.NDSMLoss(process(), antithetic=True, reduction=reduction)
            for rows in (7, 30):
                values.append(Validation(data(30), None, loss, rows=rows, seed=0, device=torch.device("cpu"))(net))
        assert values == pytest.approx([values[0]] * 4, rel=1e-5)

    def test_the_best_weights_are_kept_and_training_ends_after_patience(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {"validation": data(30, seed=2), "validate_every": 2, "patience": 3, "steps": 60}
        options["scheduler"] = lambda o: lr_scheduler.LambdaLR(o, lambda n: 1.0 if n < 8 else -3.0)  # learn, unlearn
        kept: dict[int, list[Tensor]] = {}

        def keep(trainer: Trainer) -> None:
            kept[trainer.step] = [p.clone() for p in trainer.ema_net.parameters()]

        trainer = make(tmp_path, callbacks=[keep], **options)
        history = trainer.fit(progress=False)
        values = {row.step: row.validation for row in history if row.validation is not None}
        assert trainer.best is not None and trainer.best.validation == min(values.values())
        assert trainer.stopped_early and trainer.step == trainer.best.step + 6 < 60
        for p, q in zip(trainer.best_net.parameters(), kept[trainer.best.step], strict=True):
            assert torch.equal(p, q)
        assert not torch.equal(next(trainer.ema_net.parameters()), next(trainer.best_net.parameters()))

        again = make(tmp_path, **options)
        assert again.resume() == trainer.step
        again.fit(progress=False)
        assert again.step == trainer.step and again.stopped_early
        assert_equal(again, trainer)
        further = make(tmp_path, **{**options, "patience": 5})  # which a continuation may change
        further.resume()
        further.fit(progress=False)
        assert further.step > trainer.step

    def test_a_run_with_validation_resumes(self, tmp_path: Path) -> None:
        assert_resumes(tmp_path, validation=data(30, seed=2), validate_every=3, lr=0.05)
        assert any(name.startswith("best/") for name in checkpoint.load_checkpoint(tmp_path / "step-000022").ema)

    def test_conditions_of_held_out_data(self) -> None:
        options: dict[str, Any] = {"conditions": torch.arange(60) % 3, "validation": data(30)}
        with pytest.raises(ValueError, match=r"^validation_conditions: expected those of validation, .* found None"):
            make(net=network(classes=3), **options)
        trainer = make(net=network(classes=3), validation_conditions=torch.arange(30) % 3, **options)
        assert trainer.fit(progress=False)[-1].validation is not None

    def test_a_loss_that_is_not_finite_stops(self) -> None:
        trainer = make(validation=data(30), validate_every=2)
        trainer.loss.weighting = lambda t: torch.full_like(t, 1.0 if torch.is_grad_enabled() else 3e38)
        with pytest.raises(FloatingPointError, match="validation: expected a finite loss, found inf at step 2"):
            trainer.fit(progress=False)

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"patience": 3}, "patience: expected None without validation data"),
            ({"validation_conditions": torch.zeros(3)}, "validation_conditions: expected None without validation data"),
            ({"validation": torch.zeros(3, 5)}, "validation: expected shape .* with 2 values a sample"),
            ({"validation": data().double()}, "validation: expected torch.float32, the network's dtype"),
            ({"patience": 0}, "patience: expected an integer of at least 1, found 0"),
            ({"scheduler": lr_scheduler.ReduceLROnPlateau}, "scheduler: expected validation data with ReduceLROnPl"),
        ],
        ids=str,
    )
    def test_bad_input(self, options: dict[str, Any], error: str) -> None:
        with pytest.raises((ValueError, TypeError), match=f"^{error}"):
            make(**options)


# --- schedules ---

SCHEDULERS: dict[str, Any] = {
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=6),
    "linear": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=15),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda n: 0.9**n),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda n: 0.9),
    "step": lambda o: lr_scheduler.StepLR(o, 3),
    "milestones": lambda o: lr_scheduler.MultiStepLR(o, [4, 12, 14]),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 20, 2.0),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=23),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, 4, cycle_momentum=False),
    "warm-up": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=11), lr_scheduler.CosineAnnealingLR(o, 11)], [11]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, total_iters=12), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


def rates_of(made: Any, steps: int) -> list[float]:
    """Return the rates of a loop of one's own."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(2))], lr=2e-3)
    scheduler = made(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


class TestSchedules:
    @pytest.mark.parametrize("name", SCHEDULERS)
    @pytest.mark.filterwarnings("ignore:.*epoch parameter.*")
    def test_any_scheduler_as_in_a_loop_of_ones_own_and_resumed(self, tmp_path: Path, name: str) -> None:
        rates: list[float] = []

        def look(trainer: Trainer) -> None:
            rates.append(trainer.optimizer.param_groups[0]["lr"])

        make(scheduler=SCHEDULERS[name], callbacks=[look]).fit(progress=False)
        assert rates == pytest.approx(rates_of(SCHEDULERS[name], 22), rel=1e-12)
        assert_resumes(tmp_path, scheduler=SCHEDULERS[name])

    def test_a_scheduler_that_waits_for_the_validation_loss(self, tmp_path: Path) -> None:
        options: dict[str, Any] = {
            "scheduler": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.5, factor=0.5),
            "validation": data(30, seed=2),
            "validate_every": 3,
        }
        resumed = assert_resumes(tmp_path, **options)
        halvings = math.log2(2e-3 / resumed.history[-1].lr)
        assert halvings == pytest.approx(round(halvings)) and halvings >= 3

    def test_another_scheduler_is_refused_when_resumed(self, tmp_path: Path) -> None:
        make(tmp_path, scheduler=SCHEDULERS["step"]).fit(progress=False)
        for scheduler, found in ((SCHEDULERS["linear"], "LinearLR"), (None, "nothing")):
            with pytest.raises(CheckpointError, match=rf"scheduler \(checkpoint StepLR, now {found}\)"):
                make(tmp_path, scheduler=scheduler).resume()

    @pytest.mark.parametrize(
        ("scheduler", "error"),
        [
            (
                lr_scheduler.StepLR(torch.optim.Adam([nn.Parameter(torch.zeros(2))]), 3),
                "expected a function .* StepLR its",
            ),
            ("cosine", "expected a function that makes one of the optimizer, .* found 'cosine'"),
            (lambda o: o, "expected it to make a torch scheduler, found Adam"),
            (
                lambda o: lr_scheduler.StepLR(torch.optim.Adam([nn.Parameter(torch.zeros(2))]), 3),
                "expected one of the optimizer that the function is given, found another's",
            ),
        ],
    )
    def test_bad_input(self, scheduler: Any, error: str) -> None:
        with pytest.raises((ValueError, TypeError), match=f"^scheduler: {error}"):
            make(scheduler=scheduler)


# --- callbacks and loggers ---


class Kept:
    """A logger that keeps all."""

    def __repr__(self) -> str:  # names of tests do not depend on where it lies
        return "Kept()"

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.closed = 0

    def log(self, metrics: Any, step: int) -> None:
        self.rows.append((step, dict(metrics)))

    def close(self) -> None:
        self.closed += 1


class TestCallbacksAndLoggers:
    def test_a_callback_sees_every_step_and_may_sample(self) -> None:
        seen = []

        def look(trainer: Trainer) -> None:
            torch.manual_seed(trainer.step)
            drawn = fastndsm.sample(trainer.ema_net, trainer.loss.process, 3)
            seen.append((trainer.step, len(trainer.history), bool(drawn.isfinite().all())))

        trainer, plain = make(callbacks=[look]), make()
        trainer.fit(progress=False)
        plain.fit(progress=False)
        assert seen == [(n, (n >= 20) + (n >= 22), True) for n in range(1, 23)]
        assert_equal(trainer, plain)

    def test_true_ends_the_training_there_with_a_checkpoint(self, tmp_path: Path) -> None:
        called = []
        trainer = make(tmp_path, callbacks=[lambda t: t.step == 7, lambda t: called.append(t.step)])
        history = trainer.fit(progress=False)
        assert trainer.step == 7 == called[-1] == history[-1].step and not trainer.stopped_early
        assert checkpoint.latest(tmp_path) == tmp_path / "step-000007"

    def test_loggers_get_the_history_and_are_closed(self) -> None:
        logger = Kept()
        trainer = make(loggers=[logger], validation=data(30), validate_every=10)
        for row, (step, metrics) in zip(trainer.fit(progress=False), logger.rows, strict=True):
            assert step == row.step
            assert metrics == {k: v for k, v in row._asdict().items() if k != "step"}
        assert logger.closed == 1
        logger = Kept()
        with pytest.raises(StopError):
            make(loggers=[logger], callbacks=[stop]).fit(progress=False)
        assert logger.closed == 1

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"callbacks": print}, "callbacks: expected a list of them, found builtin_function_or_method"),
            ({"callbacks": [3]}, "callbacks: expected callables of the Trainer, found int"),
            ({"loggers": Kept()}, "loggers: expected a list of them, found Kept"),
            (
                {"loggers": [Kept]},
                r"loggers: expected objects with log\(metrics, step\) and close\(\), found the class",
            ),
            ({"loggers": [print]}, r"loggers: expected objects with log\(metrics, step\) and close\(\), found builtin"),
        ],
        ids=str,
    )
    def test_bad_input(self, options: dict[str, Any], error: str) -> None:
        with pytest.raises(TypeError, match=f"^{error}"):
            make(**options)

    def test_tensorboard(self, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        history = make(loggers=[TensorBoard(tmp_path)]).fit(progress=False)
        events = EventAccumulator(str(tmp_path)).Reload()
        assert set(events.Tags()["scalars"]) == {"loss", "lr", "gradient_norm", "seconds"}
        found = [(e.step, e.value) for e in events.Scalars("loss")]
        assert found == [(row.step, pytest.approx(row.loss)) for row in history]

    def test_wandb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        monkeypatch.setenv("WANDB_SILENT", "true")
        make(loggers=[WandB(project="tests", mode="offline", dir=str(tmp_path))]).fit(progress=False)
        assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))

    @pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
    def test_calls_of_the_packages(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Follow what is called of each, where it is not installed."""
        calls: list[Any] = []

        class Fake:
            def __init__(self, **options: Any) -> None:
                calls.append(options)

            def add_scalar(self, name: str, value: float, step: int) -> None:
                calls.append((name, step))

            def log(self, metrics: dict[str, float], step: int) -> None:
                calls.extend((name, step) for name in metrics)

            def close(self) -> None:
                calls.append("closed")

            finish = close

        fake: Any = types.ModuleType("fake")
        fake.SummaryWriter = fake.init = Fake
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if kind == "tensorboard" else "wandb", fake)
        logger: Any = TensorBoard(tmp_path, flush_secs=3) if kind == "tensorboard" else WandB(project="p")
        assert calls == []  # nothing is opened before there is something to log
        options = {"log_dir": str(tmp_path), "flush_secs": 3} if kind == "tensorboard" else {"project": "p"}
        once = [options, *((name, 2) for name in ("loss", "lr", "seconds", "gradient_norm")), "closed"]
        trainer = make(loggers=[logger], steps=2)
        trainer.fit(progress=False)
        assert calls == once
        logger.close()
        logger.log({"loss": 1.0}, 3)
        assert calls == [*once, options, ("loss", 3)]

    @pytest.mark.parametrize(("make_logger", "package"), [(lambda: TensorBoard("x"), "tensorboard"), (WandB, "wandb")])
    def test_a_package_that_is_not_there(self, make_logger: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> Any:
            raise ImportError(name)

        monkeypatch.setattr(importlib, "import_module", missing)
        with pytest.raises(ImportError, match=f"loggers: expected the package {package}, found none: pip install"):
            make_logger()


# --- batches of an iterable ---


def loader(x: Tensor | None = None, **options: Any) -> DataLoader[Any]:
    x = data() if x is None else x
    return DataLoader(TensorDataset(x), **{"batch_size": 12, "shuffle": True, **options})


class Shifting:
    """An iterable whose batches differ from one pass over it to the next, and from one object to another."""

    made = 0

    def __init__(self) -> None:
        Shifting.made += 1

    def __iter__(self) -> Iterator[Tensor]:
        return iter(data(48, seed=Shifting.made).split(16))


class Rows(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(data())


class TestIterables:
    @pytest.mark.parametrize(
        "x",
        [
            loader,
            lambda: loader(batch_size=7),  # whose last batch of an epoch is smaller
            lambda: loader(num_workers=1),
            lambda: DataLoader(Rows(), batch_size=10),
            lambda: Batched(),
        ],
        ids=["shuffled", "uneven", "worker", "iterable data set", "any iterable"],
    )
    @pytest.mark.filterwarnings("error")
    def test_a_run_resumes_bit_for_bit(self, tmp_path: Path, x: Any) -> None:
        assert_resumes(tmp_path, x=x())

    def test_epochs_have_orders_of_their_own_and_every_row_once(self) -> None:
        rows: list[Tensor] = []
        loss = fastndsm.NDSMLoss(process())
        from fastndsm.training.stream import Stream

        stream = Stream(loader(), loss, seed=0, rank=0, device=torch.device("cpu"))
        for step in range(10):
            stream(step)
            rows.append(stream._x)
        epochs = torch.cat(rows).reshape(2, 60, 2)
        assert not torch.equal(epochs[0], epochs[1])
        for epoch in epochs:
            torch.testing.assert_close(epoch[:, 0].sort().values, data()[:, 0].sort().values, rtol=0, atol=0)
        assert torch.equal(stream(3).x, Stream(loader(), loss, seed=0, rank=0, device=torch.device("cpu"))(3).x)

    def test_paths_are_never_repeated(self) -> None:
        from test_trainer import Echo

        from fastndsm.training.stream import Stream

        class Paths(Echo):
            process = process()

            def draw(self, x0: Tensor, seed: int, first_path: int, **_: Any) -> Any:
                return super().draw(x0, seed, first_path)

        echo: Any = Paths()
        drawn = []
        for rank in range(2):
            stream = Stream(loader(batch_size=7), echo, seed=0, rank=rank, device=torch.device("cpu"))
            drawn += [stream(step).target for step in range(12)]
        paths = torch.cat(drawn)
        assert len(paths.unique()) == len(paths)

    def test_other_batches_than_before_the_stop_are_warned_of(self, tmp_path: Path) -> None:
        with pytest.raises(StopError):
            make(tmp_path, x=Shifting(), callbacks=[stop]).fit(progress=False)
        again = make(tmp_path, x=Shifting())
        again.resume()
        with pytest.warns(UserWarning, match="^data: batch 9 is another than in the run that is resumed"):
            again.fit(progress=False)
        assert again.step == 22

    def test_batches_smaller_than_the_parts_asked_for(self) -> None:
        assert make(x=loader(batch_size=7), accumulate=6).fit(progress=False)[-1].step == 22

    def test_samplers_are_told_the_epoch(self) -> None:
        class Sampler(torch.utils.data.Sampler[int]):
            epochs: list[int] = []  # noqa: RUF012

            def __iter__(self) -> Iterator[int]:
                return iter(range(24))

            def __len__(self) -> int:
                return 24

            def set_epoch(self, epoch: int) -> None:
                self.epochs.append(epoch)

        make(x=loader(shuffle=False, sampler=Sampler()), steps=5).fit(progress=False)
        assert Sampler.epochs == [0, 1, 2]

    def test_conditions_come_with_the_batches_or_are_left_aside(self) -> None:
        labelled = DataLoader(TensorDataset(data(), torch.arange(60) % 3), batch_size=12)
        assert make(x=labelled).fit(progress=False)[-1].step == 22
        net = network(classes=3)
        before = net.state_dict()
        before = {name: t.clone() for name, t in before.items() if isinstance(t, Tensor)}
        make(x=labelled, net=net).fit(progress=False)
        moved = [name for name, t in net.state_dict().items() if name in before and not torch.equal(t, before[name])]
        assert any("condition" in name or "class" in name for name in moved), moved

    @pytest.mark.parametrize(
        ("x", "options", "error"),
        [
            (iter([data(12)] * 3), {}, "data: expected batches whenever it is iterated, found none left after 3"),
            (loader(data().double()), {}, "data, batch 0: expected torch.float32, the network's dtype, found torch.fl"),
            (loader(torch.zeros(24, 3)), {}, "data, batch 0: expected shape .* with 2 values a sample"),
            (loader(torch.full((24, 2), math.nan)), {}, "data, batch 0: expected finite values, found 24 NaN"),
            (
                iter([{"x": data()}]),
                {},
                r"data, batch 0: expected x \[B, ...\], or x and a condition, found \['dict'\]",
            ),
            (iter([(data(),) * 3]), {}, r"data, batch 0: expected x \[B, ...\], or x and a condition, found \['Tens"),
            (loader(), {"paths": 1000}, "paths: expected the default with an iterable, found 1000; give a tensor"),
            (loader(), {"records_per_path": 2}, "records_per_path: expected the default with an iterable, found 2"),
            (loader(), {"conditions": torch.zeros(60)}, r"conditions: expected None, as an iterable gives \(x, cond"),
            (TensorDataset(data()), {}, "data: expected a torch.Tensor, found TensorDataset"),
        ],
        ids=range(10),
    )
    def test_bad_input(self, x: Any, options: dict[str, Any], error: str) -> None:
        with pytest.raises((ValueError, TypeError), match=f"^{error}"):
            make(x=x, **options).fit(progress=False)


class Batched:
    """An iterable that starts anew each time."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(data().split(20))


# --- parts of a batch, and precision ---


class TestAccumulation:
    @pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"antithetic": True}], ids=str)
    def test_parts_of_a_batch_give_its_gradient(self, options: dict[str, Any]) -> None:
        sgd = {"optimizer": lambda p: torch.optim.SGD(p, lr=1e-3), "steps": 4}
        whole, parts = make(**options, **sgd), make(accumulate=5, **options, **sgd)  # 12 paths: 2, 2, 3, 2, 3
        sizes = []
        parts.score_net.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
        one, other = whole.fit(progress=False)[-1], parts.fit(progress=False)[-1]
        assert len(sizes) == 20 and max(sizes) == (6 if options.get("antithetic") else 3)
        assert other.loss == pytest.approx(one.loss, rel=1e-5)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
        torch.testing.assert_close(everything(parts), everything(whole), rtol=1e-5, atol=1e-6)

    def test_conditions_go_with_their_parts(self) -> None:
        options: dict[str, Any] = {"conditions": torch.arange(60) % 3, "steps": 4}
        options["optimizer"] = lambda p: torch.optim.SGD(p, lr=1e-3)
        whole, parts = (make(net=network(classes=3), accumulate=n, **options) for n in (1, 4))
        whole.fit(progress=False)
        parts.fit(progress=False)
        torch.testing.assert_close(everything(parts), everything(whole), rtol=1e-5, atol=1e-6)

    def test_it_resumes(self, tmp_path: Path) -> None:
        assert_resumes(tmp_path, accumulate=3)

    def test_more_parts_than_paths(self) -> None:
        with pytest.raises(ValueError, match=r"^accumulate: expected at most the 12 paths of a batch, found 13"):
            make(accumulate=13)


class TestPrecision:
    def test_the_network_is_evaluated_in_bfloat16_and_its_weights_stay(self, tmp_path: Path) -> None:
        seen = set()
        trainer = make(precision="bfloat16", validation=data(30))
        trainer.score_net.layers[0].register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        trainer.ema_net.layers[0].register_forward_hook(lambda _, __, out: seen.add(out.dtype))
        full = make(validation=data(30))
        one, other = full.fit(progress=False)[-1], trainer.fit(progress=False)[-1]
        assert seen == {torch.bfloat16}
        assert {p.dtype for p in trainer.ema_net.parameters()} == {torch.float32}
        assert other.loss != one.loss
        assert other.loss == pytest.approx(one.loss, rel=0.05)
        assert other.validation == pytest.approx(one.validation, rel=0.05)
        assert_resumes(tmp_path, precision="bfloat16")

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"^precision: expected one of 'full', 'bfloat16', found 'float16'"):
            TrainConfig(precision="float16")


# --- checkpoints of before ---


def test_checkpoints_from_before_the_options_resume(tmp_path: Path) -> None:
    with pytest.raises(StopError):
        make(tmp_path, callbacks=[stop]).fit(progress=False)
    file = tmp_path / "step-000010" / "state.json"
    state = json.loads(file.read_text())
    for name in ("accumulate", "precision", "validate_every", "patience"):
        state["fingerprint"]["config"].pop(name, None)
    state["fingerprint"]["ranks"] = 1
    state["history"] = [row[:5] for row in state["history"]]
    file.write_text(json.dumps(state))
    whole = make()
    whole.fit(progress=False)
    again = make(tmp_path)
    assert again.resume() == 10
    again.fit(progress=False)
    assert_equal(again, whole)


def test_a_checkpoint_of_several_ranks_from_before_is_refused(tmp_path: Path) -> None:
    make(tmp_path).fit(progress=False)
    file = tmp_path / "step-000022" / "state.json"
    state = json.loads(file.read_text())
    state["fingerprint"]["ranks"] = 2
    file.write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=r"found another's: ranks \(checkpoint 2, now nothing\)"):
        make(tmp_path).resume()
