"""A resumed run ends with the weights of an uninterrupted one, whatever stopped it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastndsm
from fastndsm.networks import MLP
from fastndsm.training import checkpoint
from fastndsm.training.checkpoint import CheckpointError
from fastndsm.training.trainer import TrainConfig, Trainer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the networks are tiny


class Dropping(nn.Module):
    """An MLP with everything that has a state: dropout's generator, a normalisation's running means."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.net = MLP(2, (width,), embedding_dim=8, horizon=2.0)
        self.drop, self.norm = nn.Dropout(0.3), nn.BatchNorm1d(2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.drop(self.net(self.norm(x), t))


def mixture(shift: float = 0.0) -> fastndsm.GaussianMixture:
    return fastndsm.GaussianMixture([0.5, 0.5], [[-1.0, shift], [1.0, 0.5]], [0.4, 0.6], "spherical")


def make(directory: Path | None, **changed: Any) -> Trainer:
    """Build a small run; `changed` are options of TrainConfig, or estimator, optimizer, shift, width, data, dtype."""
    torch.manual_seed(0)
    estimator = changed.pop("estimator", "path")
    process = fastndsm.LangevinProcess(mixture(changed.pop("shift", 0.0)), n_steps=12)
    h = MLP(2, (8,), embedding_dim=8) if estimator == "separate" else None
    name = "control_variate" if h is not None else estimator
    loss = fastndsm.NDSMLoss(process, name, changed.pop("antithetic", False), control_variate=h)
    dtype = changed.pop("dtype", torch.float32)
    net = fastndsm.ResidualScore(Dropping(changed.pop("width", 12)), process).to(dtype)
    data = changed.pop("data", mixture().sample(50, seed=1).to(dtype))
    optimizer = changed.pop("optimizer", None)
    config = TrainConfig(**{"steps": 22, "batch_size": 8, "checkpoint_every": 5, "noised_ahead": 3, **changed})
    return Trainer(net, loss, data, config, optimizer=optimizer, directory=directory)


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """Return all that a run has learnt."""
    state = {f"net.{k}": v for k, v in trainer.score_net.state_dict().items()}
    state |= {f"ema.{k}": v for k, v in trainer.ema_net.state_dict().items()}
    if isinstance(trainer.loss.control_variate, nn.Module):
        state |= {f"h.{k}": v for k, v in trainer.loss.control_variate.state_dict().items()}
    return {k: v.clone() for k, v in state.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def stopped_at(step: int, trainer: Trainer) -> None:
    """Train, and break off in the middle of a step."""

    class StopError(Exception):
        pass

    def stop(*_: object) -> None:
        if trainer.step == step:
            raise StopError

    handle = trainer.score_net.register_forward_hook(stop)
    with pytest.raises(StopError):
        trainer.fit(progress=False)
    handle.remove()


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "plain-sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, centered=True),
    "two-groups": lambda p: torch.optim.AdamW([{"params": p[:3], "lr": 5e-3}, {"params": p[3:]}], lr=1e-3),
}
RUNS: dict[str, dict[str, Any]] = {
    "path": {},
    "path-antithetic": {"antithetic": True},
    "control-variate": {"estimator": "control_variate", "grad_clip": 0.5},
    "separate-control-variate": {"estimator": "separate"},
    "plain-antithetic": {"estimator": "plain", "antithetic": True},
    "pool": {"paths": 1000, "pool_passes": 1, "batch_size": 300},
    "records": {"records_per_path": 3, "antithetic": True},
    "records-of-a-pool": {"records_per_path": 2, "paths": 1000, "pool_passes": 1, "batch_size": 300},
    **{name: {"optimizer": make} for name, make in OPTIMIZERS.items()},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    whole = make(None, **RUNS[name])
    whole.fit(progress=False)
    start = everything(make(None, **RUNS[name]))
    assert not torch.equal(everything(whole)["net.net.net.last.weight"], start["net.net.net.last.weight"])

    stopped_at(13, make(tmp_path, **RUNS[name]))
    torch.manual_seed(99)  # the global generator has no say
    resumed = make(tmp_path, **RUNS[name])
    assert resumed.resume() == 10
    history = resumed.fit(progress=False)
    assert_same(everything(resumed), everything(whole))
    assert [row.step for row in history] == [5, 10, 15, 20, 22]
    assert [row.seconds for row in history] == sorted(row.seconds for row in history)


STEPPERS = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
)
REFUSED = {  # and where: LBFGS and SparseAdam before the first step, Muon by itself (matrices alone)
    "LBFGS": (TypeError, "optimizer: expected one that steps once for each gradient, found LBFGS"),
    "SparseAdam": (RuntimeError, "SparseAdam does not support dense gradients"),
    "Muon": (ValueError, "Muon only supports 2D parameters"),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", STEPPERS)
def test_every_optimizer_in_every_dtype(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {
        "optimizer": lambda p: getattr(torch.optim, name)(p, lr=1e-3),
        "dtype": dtype,
        "steps": 8,
        "checkpoint_every": 3,
    }
    if name in REFUSED:
        error, message = REFUSED[name]
        with pytest.raises(error, match=message):
            make(tmp_path, **options).fit(progress=False)
        assert list(tmp_path.iterdir()) == []
        return
    whole = make(None, **options)
    whole.fit(progress=False)
    stopped_at(7, make(tmp_path, **options))
    resumed = make(tmp_path, **options)
    assert resumed.resume() == 6
    assert_same(everything(resumed), everything(make_resumed(tmp_path, **options)))
    resumed.fit(progress=False)
    assert_same(everything(resumed), everything(whole))
    for (_, one), (_, other) in zip(resumed._masters, whole._masters, strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other)
    for one, other in zip(resumed._average, whole._average, strict=True):
        assert one.dtype == torch.promote_types(dtype, torch.float32) and torch.equal(one, other)


def make_resumed(directory: Path, **options: Any) -> Trainer:
    made = make(directory, **options)
    made.resume()
    return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_checkpoint_with_weights_and_average_in_half_precision_resumes(tmp_path: Path, dtype: torch.dtype) -> None:
    """As they were written before both were kept in float32."""
    stopped_at(13, make(tmp_path, dtype=dtype))
    new = checkpoint.load_checkpoint(tmp_path / "step-000010")
    weights = make(None, dtype=dtype).score_net.state_dict()

    def narrow(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: t.to(weights[name].dtype) for name, t in tensors.items()}

    for moments in new.optimizer["state"].values():
        moments.update({name: t.to(dtype) for name, t in moments.items() if name != "step"})
    state = {name: value for name, value in new.state.items() if name not in ("step", "optimizer", "files")}
    checkpoint.save_checkpoint(tmp_path, 10, narrow(new.model), narrow(new.ema), new.optimizer, state)
    assert {t.dtype for t in checkpoint.load_checkpoint(tmp_path / "step-000010").ema.values()} >= {dtype}
    resumed = make(tmp_path, dtype=dtype)
    assert resumed.resume() == 10
    for name, value in narrow(new.ema).items():
        assert torch.equal(resumed.ema_net.state_dict()[name], value), name
    assert resumed.fit(progress=False)[-1].step == 22


class Counting(nn.Module):
    """A network with a state beside tensors: how often it has been called, which changes what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = MLP(2, (8,), embedding_dim=8), 0

    def get_extra_state(self) -> Any:
        return {"calls": self.calls, "sizes": (1, torch.ones(2)), "limit": float("inf")}

    def set_extra_state(self, state: Any) -> None:
        self.calls = state["calls"]
        assert torch.equal(state["sizes"][1], torch.ones(2)) and state["limit"] == float("inf")

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += self.training
        return self.net(x, t) / self.calls


def test_a_state_beside_tensors_is_stored_as_well(tmp_path: Path) -> None:
    def counting(directory: Path | None) -> Trainer:
        torch.manual_seed(0)
        process = fastndsm.LangevinProcess(mixture(), n_steps=12)
        config = TrainConfig(steps=9, batch_size=8, checkpoint_every=3)
        x0 = mixture().sample(50, seed=1).float()
        return Trainer(Counting(), fastndsm.NDSMLoss(process), x0, config, directory=directory)

    whole = counting(None)
    whole.fit(progress=False)
    stopped_at(7, counting(tmp_path))
    resumed = counting(tmp_path)
    assert resumed.resume() == 6 and resumed.score_net.calls == 6
    resumed.fit(progress=False)
    assert resumed.ema_net.calls == resumed.score_net.calls == 9
    assert torch.equal(resumed.score_net.net.last.weight, whole.score_net.net.last.weight)


def test_two_trainings_in_one_folder(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    found = []

    def meanwhile(*_: object) -> None:
        if not found:
            for call in (lambda: second.fit(progress=False), second.save):
                with pytest.raises(CheckpointError) as caught:
                    call()
                found.append(str(caught.value))

    first.score_net.register_forward_hook(meanwhile)
    first.fit(progress=False)
    me = f"process {os.getpid()} on {socket.gethostname()}, since "
    assert len(found) == 2
    for message in found:
        assert message.startswith(
            f"directory: expected a folder that no run is writing to, found {tmp_path} in use by {me}"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000020", "step-000022"]
    assert second.resume() == 22


def test_resume_after_the_end_changes_nothing(tmp_path: Path) -> None:
    whole = make(tmp_path)
    whole.fit(progress=False)
    again = make(tmp_path)
    assert again.resume() == 22
    again.fit(progress=False)
    assert_same(everything(again), everything(whole))


def test_resume_without_a_checkpoint_starts_at_zero(tmp_path: Path) -> None:
    assert make(tmp_path).resume() == 0
    assert make(None).resume() == 0


def test_a_new_run_does_not_overwrite_an_old_one(tmp_path: Path) -> None:
    make(tmp_path).fit(progress=False)
    with pytest.raises(CheckpointError, match=r"expected none beyond step 0, found checkpoint .*step-000022"):
        make(tmp_path).fit(progress=False)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": 1e-3}, r"config.lr \(checkpoint 0.002, now 0.001\)"),
        ({"seed": 1, "batch_size": 9}, r"config.batch_size \(checkpoint 8, now 9\); config.seed"),
        ({"steps": 30}, r"config.steps \(checkpoint 22, now 30\)"),
        ({"data": torch.zeros(50, 2)}, r"data.sha256"),
        ({"data": torch.zeros(49, 2)}, r"data.shape \(checkpoint \[50, 2\], now \[49, 2\]\)"),
        ({"shift": 0.1}, r"process.sha256"),
        ({"estimator": "plain"}, r"loss.estimator \(checkpoint path, now plain\)"),
        ({"antithetic": True}, r"loss.antithetic \(checkpoint False, now True\)"),
        ({"optimizer": OPTIMIZERS["momentum"]}, r"optimizer.type \(checkpoint Adam, now SGD\)"),
        ({"width": 13}, r"network.net.net.film.out.bias \(checkpoint \[24\] float32, now \[26\] float32\)"),
    ],
)
def test_another_run_is_refused_and_what_differs_is_named(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    make(tmp_path).fit(progress=False)
    other = make(tmp_path, **changed)
    before = everything(other)
    with pytest.raises(CheckpointError, match=f"expected a checkpoint of this run.*{message}"):
        other.resume()
    assert_same(everything(other), before)


def test_how_often_checkpoints_are_written_may_change(tmp_path: Path) -> None:
    stopped_at(13, make(tmp_path))
    resumed = make(tmp_path, checkpoint_every=4)
    assert resumed.resume() == 10
    resumed.fit(progress=False)
    whole = make(None)
    whole.fit(progress=False)
    assert_same(everything(resumed), everything(whole))


def test_a_damaged_last_checkpoint_is_refused_not_passed_over(tmp_path: Path) -> None:
    make(tmp_path).fit(progress=False)
    file = tmp_path / "step-000022" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"step-000022.optimizer.safetensors: expected \d+ bytes, found \d+"):
        make(tmp_path).resume()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["step-000020", "step-000022"]


# A parent imports torch once and forks the trainings, so that a kill comes within the training, often within
# the writing of a checkpoint, and not within the import.
TRAININGS = """
import json, os, random, signal, sys, time, warnings
from pathlib import Path
import torch
import fastndsm
from fastndsm import checkpoint
from fastndsm.networks import MLP
from fastndsm.trainer import TrainConfig, Trainer

torch.set_num_threads(1)
warnings.simplefilter("ignore")
directory, whole_directory, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def train(directory, steps=240):
    torch.manual_seed(0)
    mixture = fastndsm.GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.5]], [0.4, 0.6], "spherical")
    process = fastndsm.LangevinProcess(mixture, n_steps=6)
    net = fastndsm.ResidualScore(MLP(2, (16,), embedding_dim=8), process)
    data = torch.randn(40, 2, generator=torch.Generator().manual_seed(1))
    config = TrainConfig(steps=steps, batch_size=8, checkpoint_every=3, noised_ahead=4)
    trainer = Trainer(net, fastndsm.NDSMLoss(process), data, config, directory=directory)
    trainer.resume()
    trainer.fit(progress=False)

def start(directory):
    pid = os.fork()
    if pid == 0:
        try:
            train(directory)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid

random.seed(int(sys.argv[4]))
train(whole_directory.with_name("warm"), steps=6)  # the forks inherit what first use imports and builds
began = time.monotonic()
_, status = os.waitpid(start(whole_directory), 0)
assert status == 0, status
whole = time.monotonic() - began
def reached():
    newest = checkpoint.latest(directory)
    return int(newest.name[5:]) if newest else 0

steps = []
for target in sorted(random.sample(range(210), kills)):
    pid = start(directory)
    while reached() < target:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(1e-3)
    time.sleep(random.uniform(0, 3) * whole / 80)  # up to three checkpoints later
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    steps.append(reached())
_, status = os.waitpid(start(directory), 0)
assert status == 0, status
print(json.dumps(steps))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_kill_9_ten_times_at_random_moments(tmp_path: Path, run_python: Callable[..., str]) -> None:
    steps = json.loads(run_python(TRAININGS, tmp_path / "killed", tmp_path / "whole", 10, 20250101))
    assert len(steps) == 10
    assert len(set(steps)) > 5
    assert max(steps) < 240
    ends = [checkpoint.load_checkpoint(tmp_path / name / "step-000240") for name in ("killed", "whole")]
    assert_same(ends[0].model, ends[1].model)
    assert_same(ends[0].ema, ends[1].ema)
    state, other = (end.optimizer["state"] for end in ends)
    assert state.keys() == other.keys()
    for key in state:
        assert_same(state[key], other[key])
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["step-000237", "step-000240"]


def test_a_checkpoint_from_before_records_had_one_a_path(tmp_path: Path) -> None:
    old = make(tmp_path)
    known = old._fingerprint()
    del known["config"]["records_per_path"]
    old._fingerprint = lambda: known  # type: ignore[method-assign]
    stopped_at(13, old)
    with pytest.raises(CheckpointError, match=r"config\.records_per_path \(checkpoint 1, now 4\)"):
        make(tmp_path, records_per_path=4).resume()
    assert make(tmp_path).resume() == 10
