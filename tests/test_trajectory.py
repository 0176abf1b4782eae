"""Samples on their way, and where they may start: callback, trajectory, start, x_T."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import normals, on_one_backend, quietly, random_mixture  # noqa: F401
from torch import Tensor

import fastndsm
from fastndsm import LangevinProcess, OUProcess, sample
from fastndsm._scheme import METHODS

ROUTES = pytest.mark.parametrize(
    ("prediction", "order"), [("linear", 1), ("linear", 2), ("data", 2), ("score", 1), ("score", 2)]
)


def score(x: Tensor, t: Tensor) -> Tensor:
    return -torch.tanh(x) * (1.0 + t.reshape(-1, *[1] * (x.ndim - 1)))


def process(n_steps: int = 20, **options: Any) -> LangevinProcess:
    return quietly(random_mixture("diag", 3, 6, ratio=4.0, **options), T=0.8, n_steps=n_steps)


@pytest.mark.parametrize("method", METHODS)
@ROUTES
def test_a_callback_sees_every_evaluation_and_changes_nothing(prediction: str, order: int, method: str) -> None:
    p, seen = process(event_shape=(1, 2, 3)), []
    options: dict[str, Any] = {"prediction": prediction, "order": order, "n_evaluations": 7, "seed": 1}
    times: list[float] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        times.append(float(t[0]))
        return score(x, t)

    watched = sample(network, p, 5, method, callback=seen.append, **options)
    assert torch.equal(watched, sample(score, p, 5, method, **options))
    assert [one["step"] for one in seen] == list(range(7)) and [one["t"] for one in seen] == pytest.approx(times)
    for one in seen:
        assert one.keys() == {"step", "t", "x", "score"} and one["x"].shape == (5, 1, 2, 3)
        torch.testing.assert_close(one["score"], score(one["x"], torch.full((5,), one["t"])))
    torch.testing.assert_close(seen[0]["x"], p.prior.sample(5, seed=1).float())


@pytest.mark.parametrize("k", [1, 2, 3, 7])
@pytest.mark.parametrize("method", METHODS)
def test_a_trajectory_goes_from_the_prior_to_the_samples(method: str, k: int) -> None:
    p, seen = process(event_shape=(2, 3)), []
    options: dict[str, Any] = {"n_evaluations": 7, "seed": 1, "dtype": torch.float64}
    states = sample(score, p, 5, method, trajectory=k, callback=seen.append, **options)
    assert states.shape == (k + 1, 5, 2, 3) and states.dtype == torch.float64
    assert torch.equal(states[-1], sample(score, p, 5, method, **options))
    for j in range(k):
        assert torch.equal(states[j], seen[round(7 * j / k)]["x"])
    assert torch.equal(states[0], p.prior.sample(5, seed=1))
    parts = sample(score, p, 5, method, trajectory=k, batch_size=2, **options)
    torch.testing.assert_close(parts, states)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("prediction", ["linear", "data", "score"])
def test_a_run_broken_off_and_started_again_ends_alike(prediction: str, method: str) -> None:
    """With the same seed, bit for bit, where nothing is extrapolated from before the break."""
    p, seen = process(), []
    options: dict[str, Any] = {"prediction": prediction, "order": 1, "seed": 1, "dtype": torch.float64}
    times = p.times[torch.tensor([20, 14, 9, 4, 1])]
    whole = sample(score, p, 5, method, grid=times, callback=seen.append, **options)
    for k in (1, 2, 4):
        rest = sample(score, p, 5, method, grid=times[k:], start=(seen[k]["x"], float(times[k])), **options)
        assert torch.equal(rest, whole)
    again = sample(score, p, 5, method, grid=times, x_T=seen[0]["x"], **options)
    assert torch.equal(again, whole)
    given = sample(score, p, 5, method, grid=times, start=(seen[0]["x"], p.times[-1]), batch_size=2, **options)
    torch.testing.assert_close(given, whole)


@pytest.mark.parametrize("method", METHODS)
def test_noised_data_come_back_from_any_time(method: str) -> None:
    """Data N(1, 0.5^2) noised to t and sampled from there: their law again, near where each began for small t."""
    p, n = OUProcess(1, T=8.0, n_steps=200, grid="quadratic"), 20_000
    mean, deviation = 1.0, 0.5
    x0 = mean + deviation * normals(n, 1, seed=2)

    def exact(x: Tensor, t: Tensor) -> Tensor:
        decay = (-t).exp()[:, None]
        return -(x - mean * decay.sqrt()) / (deviation**2 * decay + 1.0 - decay)

    correlations = []
    for index in (30, 100, 200):
        decay = float((-p.times[index]).exp())
        x = math.sqrt(decay) * x0 + math.sqrt(1.0 - decay) * normals(n, 1, seed=3)
        seen: list[Any] = []
        t, M = float(p.times[index]) * 0.9999, min(index, 100)  # the nearest is taken
        options: dict[str, Any] = {"n_evaluations": M, "seed": 1, "dtype": torch.float64, "callback": seen.append}
        y = sample(exact, p, n, method, start=(x, t), **options)
        assert len(seen) == M and seen[0]["t"] == pytest.approx(float(p.times[index]))
        # 4 standard errors, and what the steps cost
        assert abs(float(y.mean()) - mean) < 4 * deviation / math.sqrt(n) + 0.01
        assert abs(float(y.std()) / deviation - 1) < 4 / math.sqrt(2 * n) + 0.02
        correlations.append(float(torch.corrcoef(torch.cat([x0, y], 1).T)[0, 1]))
    assert correlations[0] > 0.5 > correlations[1] > correlations[2]
    assert len(sample(exact, p, 3, method, start=(x0[:3], p.times[4]))) == 3  # 4 steps, fewer than 10 evaluations


def test_the_fused_sampler_starts_there_too_and_leaves_the_rest_to_the_loop() -> None:
    torch.manual_seed(0)
    net = fastndsm.networks.MLP(6, (8,), embedding_dim=8)
    torch.nn.init.normal_(net.last.weight, std=0.3)
    p = process()
    x = normals(9, 6, dtype=torch.float32)
    with fastndsm.use_backend("cpp"):
        for start in ({"x_T": x}, {"start": (x, float(p.times[7]))}):
            found = sample(net, p, 9, seed=1, fused=True, **start)  # type: ignore[arg-type]
            expected = sample(net, p, 9, seed=1, fused=False, **start)  # type: ignore[arg-type]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for option in ({"trajectory": 2}, {"callback": print}):
            with pytest.raises(ValueError, match=r"^fused: .* found: there are no states on the way"):
                sample(net, p, 9, fused=True, **option)  # type: ignore[arg-type]


X = normals(5, 6, dtype=torch.float32)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "both": ({"start": (X, 0.2), "x_T": X}, ValueError, "start, x_T: expected one of them, found both"),
    "no pair": ({"start": X}, TypeError, "start: expected (x, t), found a float32 Tensor of shape (5, 6)"),
    "no time": ({"start": (X, "T")}, ValueError, "start: expected a finite positive number, found 'T'"),
    "time 0": ({"start": (X, 0.0)}, ValueError, "start: expected a finite positive number, found 0.0"),
    "beyond T": ({"start": (X, 0.9)}, ValueError, "start: expected a time of at most T = 0.8, found 0.9"),
    "rows": ({"start": (X[:4], 0.2)}, ValueError, "start: expected 5 rows, one for each sample, found shape (4, 6)"),
    "x_T rows": ({"x_T": X[:4]}, ValueError, "x_T: expected 5 rows, one for each sample, found shape (4, 6)"),
    "x_T values": ({"x_T": X[:, :5]}, ValueError, "x_T: expected shape [B, ...] with 6 values a sample, found (5, 5)"),
    "x_T NaN": ({"x_T": X * math.nan}, ValueError, "x_T: expected finite values, found 30 NaN or infinite"),
    "x_T device": ({"x_T": X.to("meta")}, ValueError, "x_T: expected the device of process, cpu, found meta"),
    "x_T list": ({"x_T": [1.0]}, TypeError, "x_T: expected a torch.Tensor, found list"),
    "too many": ({"start": (X, 0.1), "n_evaluations": 10}, ValueError, "n_evaluations: expected at most "),
    "trajectory 0": ({"trajectory": 0}, ValueError, "trajectory: expected an integer of at least 1, found 0"),
    "trajectory": ({"trajectory": 11}, ValueError, "trajectory: expected at most n_evaluations = 10, found 11"),
    "callback": ({"callback": 3}, TypeError, "callback: expected a callable of a dict, found int"),
    "graph": ({"callback": print, "cuda_graph": True}, ValueError,
        "cuda_graph: expected 'auto' or False with a callback, found True"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name: str) -> None:
    options, error, message = BAD[name]
    with pytest.raises(error) as found:
        sample(score, process(), 5, **options)
    assert str(found.value).startswith(message), found.value
