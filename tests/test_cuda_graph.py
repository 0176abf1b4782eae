"""Sampling by replays of a recorded step, on a CPU: a traced program stands in for the CUDA graph.

Like a graph it is recorded once, from one call in Python, and repeats the same operations on the same tensors; what
asks a tensor for its value breaks the recording off.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from helpers import normals, on_one_backend, random_mixture  # noqa: F401
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fastndsm import DriftProcess, GaussianMixture, LangevinProcess, _checks, sample
from fastndsm.backends import registry
from fastndsm.networks import MLP, ConditionEmbedding
from fastndsm.sampling import cuda_graph

WEIGHT = normals(6, 6, dtype=torch.float32) / 4


class Program:
    """A stand-in on the CPU for a GPU's `torch.cuda.CUDAGraph`."""

    made = 0

    def __init__(self, device: torch.device) -> None:
        Program.made += 1

    def warm_up(self, run: Callable[..., Any], state: cuda_graph.State) -> None:
        run(*state)

    def rehearse(self, run: Callable[..., Any], state: cuda_graph.State) -> None:
        run(*state)

    def record(self, run: Callable[..., Any], state: cuda_graph.State) -> None:
        self.state = state
        self.program = make_fx(run)(*(t.clone() for t in state))  # tracing runs it

    def replay(self) -> None:
        self.program(*self.state)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "CUDAGraph", Program)
    monkeypatch.setattr(cuda_graph, "supports", lambda device: True)
    monkeypatch.setattr(registry, "_logged", set())
    monkeypatch.setattr(Program, "made", 0)
    # whether a step is in range is asked on a CPU alone: elsewhere the answer would have to be waited for
    checked = _checks.steps
    monkeypatch.setattr(
        _checks,
        "steps",
        lambda name, step, *rest, **known: step if isinstance(step, Tensor) else checked(name, step, *rest, **known),
    )


def process(n_steps: int = 12, **options: Any) -> LangevinProcess:
    return LangevinProcess(random_mixture("diag", 3, 6, ratio=4.0, **options), T=0.05 * n_steps, n_steps=n_steps)


class Network:
    """A score that depends on x and on t, and how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return -torch.tanh(x.flatten(1) @ WEIGHT * (1.0 + t[:, None])).view_as(x)


CASES: dict[str, dict[str, Any]] = {
    "one batch": {"n": 5},
    "batches": {"n": 5, "batch_size": 2},
    "later paths": {"n": 3, "first_path": 2**33},
    "one step": {"n": 3, "process": {"n_steps": 1}},
    "images": {"n": 3, "process": {"event_shape": (1, 2, 3)}},
    "trajectory": {"n": 5, "batch_size": 2, "trajectory": 3, "n_evaluations": 7},
    "guide": {"n": 5, "guide": lambda x, t: 0.5 - x * t[0]},
}


@pytest.mark.parametrize("method", ["sde", "ode"])
@pytest.mark.parametrize("case", CASES)
def test_replays_give_what_the_plain_loop_gives(case: str, method: str, graphs: None) -> None:
    options = dict(CASES[case])
    p = process(**options.pop("process", {}))
    plain = sample(Network(), p, method=method, seed=1, cuda_graph=False, **options)
    assert Program.made == 0
    network = Network()
    replayed = sample(network, p, method=method, seed=1, cuda_graph=True, **options)
    assert torch.equal(replayed, plain)
    batches = math.ceil(options["n"] / options.get("batch_size", options["n"]))
    assert Program.made == batches
    assert network.calls == batches * 3  # to warm up, to rehearse, to record


@pytest.mark.parametrize("guidance", [None, 0.0, 3.0])
def test_conditions_and_guidance_are_replayed(
    guidance: float | None, graphs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # labels are looked at on a CPU alone, too
    monkeypatch.setattr(ConditionEmbedding, "checked", lambda self, condition, rows: condition)
    torch.manual_seed(0)
    net = MLP(6, (8,), embedding_dim=8, classes=3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    y, p = torch.tensor([2, 0, 1, 1, 0]), process()
    p.fit_prior(p.prior.sample(9, seed=1), torch.arange(9) % 3)
    options: dict[str, Any] = {"condition": y, "guidance": guidance, "batch_size": 3, "seed": 1}
    plain = sample(net, p, 5, cuda_graph=False, **options)
    assert torch.equal(sample(net, p, 5, cuda_graph=True, **options), plain)
    assert Program.made == 2


def test_a_callback_keeps_to_the_plain_loop(graphs: None) -> None:
    seen: list[Any] = []
    sample(Network(), process(), 3, seed=1, callback=seen.append)
    assert Program.made == 0 and len(seen) == 10


def test_auto_records_from_ten_steps_on(graphs: None) -> None:
    for n_steps, made in ((9, 0), (10, 1)):
        plain = sample(Network(), process(n_steps), 3, seed=1, cuda_graph=False)
        assert torch.equal(sample(Network(), process(n_steps), 3, seed=1), plain)
        assert Program.made == made


@pytest.mark.parametrize("cuda_graph", [True, "auto"])
def test_random_numbers_of_the_network(cuda_graph: bool | str, graphs: None) -> None:
    """It draws the same ones, and leaves PyTorch's generator where the plain loop leaves it."""

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.nn.functional.dropout(-x, 0.5, training=True)

    outcomes = []
    for option in (False, cuda_graph):
        torch.manual_seed(3)
        outcomes.append((sample(network, process(), 4, seed=1, cuda_graph=option), torch.get_rng_state()))
    assert Program.made == 1
    for found, expected in zip(outcomes[1], outcomes[0], strict=True):
        assert torch.equal(found, expected)


def test_non_finite_samples_stop_with_the_step(graphs: None) -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.where((t < 0.2)[:, None], torch.full_like(x, math.nan), -x)

    # t_3 = 0.15 is the first time below 0.2
    with pytest.raises(FloatingPointError, match=r"^score_net: .* after evaluation 10 of 12, t = 0\.15;"):
        sample(network, process(), 3, n_evaluations=12, seed=0, cuda_graph=True)


# --- what cannot be recorded -------------------------------------------------------------------------------------


def asks_for_a_value(x: Tensor, t: Tensor) -> Tensor:
    return -x * (1.0 + float(t[0]))


def test_the_plain_loop_serves_what_cannot_be_recorded(graphs: None, caplog: pytest.LogCaptureFixture) -> None:
    """And says why, once."""
    plain = sample(asks_for_a_value, process(), 3, seed=1, cuda_graph=False)
    with caplog.at_level(logging.WARNING, "fastndsm"):
        for _ in range(2):
            assert torch.equal(sample(asks_for_a_value, process(), 3, seed=1), plain)
    (said,) = caplog.messages
    assert said.startswith("sample: the plain loop instead of a CUDA graph: ") and "value" in said


def test_true_raises_where_it_cannot_be_recorded(graphs: None) -> None:
    with pytest.raises(RuntimeError, match=r"^cuda_graph: expected a network .* that can be recorded, found: .*value"):
        sample(asks_for_a_value, process(), 3, seed=1, cuda_graph=True)


def test_a_drift_in_python_is_served_by_the_plain_loop(graphs: None) -> None:
    """It is called with numbers, and so at every step."""
    p = DriftProcess(lambda x, t: -0.5 * x, GaussianMixture.standard_normal(6), T=1.0, n_steps=12)
    plain = sample(Network(), p, 3, seed=1, cuda_graph=False)
    assert torch.equal(sample(Network(), p, 3, seed=1), plain)
    with pytest.raises(RuntimeError, match=r"^cuda_graph: expected a network and a process that can be recorded"):
        sample(Network(), p, 3, seed=1, cuda_graph=True)


@pytest.mark.parametrize("cuda_graph", [True, "auto"])
def test_errors_of_the_network_are_its_own(cuda_graph: bool | str, graphs: None) -> None:
    def fails(x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError, match=r"^out of ideas$"):
        sample(fails, process(), 3, cuda_graph=cuda_graph)
    with pytest.raises(ValueError, match=r"^score_net: expected output of the shape of x"):
        sample(lambda x, t: x[:, :1], process(), 3, cuda_graph=cuda_graph)


def test_on_a_cpu() -> None:
    network = Network()
    found = sample(network, process(), 3, seed=1)
    assert network.calls == 10
    assert torch.equal(sample(Network(), process(), 3, seed=1, cuda_graph=False), found)
    with pytest.raises(ValueError, match=r"^cuda_graph: expected 'auto' or False for a process on cpu, found True"):
        sample(network, process(), 3, cuda_graph=True)
    with pytest.raises(ValueError, match=r"^cuda_graph: expected 'auto', True or False, found 'on'"):
        sample(network, process(), 3, cuda_graph="on")


# --- recording ---------------------------------------------------------------------------------------------------


class Watched(Program):
    """Notes whether autocast keeps its casts while it is recorded."""

    cached: bool | None = None

    def record(self, run: Callable[..., Any], state: cuda_graph.State) -> None:
        self.cached = torch.is_autocast_cache_enabled()
        super().record(run, state)


def test_recording_changes_nothing_but_the_replays_do() -> None:
    graph, state = Watched(torch.device("cpu")), (torch.tensor([1.0, 2.0]), torch.tensor(3))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    replay = cuda_graph.replayed(lambda x, n: (x * n + 0.0 * torch.rand(2), n - 1), state, graph)
    assert torch.equal(torch.get_rng_state(), before)
    assert state[0].tolist() == [1.0, 2.0] and int(state[1]) == 3
    for x, n in (([3.0, 6.0], 2), ([6.0, 12.0], 1)):
        replay()
        assert state[0].tolist() == x and int(state[1]) == n
    assert graph.cached is False and torch.is_autocast_cache_enabled()


def test_what_torch_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal forbids waiting, on a stream of its own, and allows it again whatever comes."""
    asked: list[str] = []
    modes = [0]

    @contextlib.contextmanager
    def noted(name: str, *_: Any, **__: Any) -> Iterator[None]:
        asked.append(name)
        yield
        asked.append(f"end {name}")

    stream = mock.Mock(device=torch.device("cuda:1"))
    for name, value in {
        "CUDAGraph": mock.Mock(),
        "Stream": mock.Mock(return_value=stream),
        "current_stream": mock.Mock(),
        "stream": lambda s: noted("stream"),
        "device": lambda d: noted("device"),
        "graph": lambda *a, **k: noted("graph"),
        "get_sync_debug_mode": lambda: modes[-1],
        "set_sync_debug_mode": modes.append,
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)

    graph = cuda_graph.CUDAGraph(torch.device("cuda:1"))
    graph.warm_up(lambda: asked.append("run"), ())
    assert asked == ["stream", "run", "end stream"] and modes == [0]
    stream.wait_stream.assert_called_once_with(torch.cuda.current_stream())

    def waits() -> None:
        assert modes[-1] == "error"
        raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match=r"^called a synchronizing"):
        graph.rehearse(waits, ())
    assert modes == [0, "error", 0]
    asked.clear()
    graph.record(lambda: asked.append("run"), ())
    assert asked == ["device", "graph", "run", "end graph", "end device"]
    graph.replay()
    torch.cuda.CUDAGraph.return_value.replay.assert_called_once_with()
