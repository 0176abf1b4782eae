"""The op that evaluates a whole MLP on the CPU, against its layers: values, gradients, who looks inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from helpers import normals
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.utils.flop_counter import FlopCounterMode

import fastndsm
from fastndsm import networks, reference
from fastndsm.backends import cpp

SHAPES: dict[str, dict[str, Any]] = {
    "plane": {"dim": 2, "hidden": (128, 128, 128)},
    "odd": {"dim": 3, "hidden": (7, 33, 33, 5)},
    "one layer": {"dim": 5, "hidden": (17,)},
    "first layer residual": {"dim": 16, "hidden": (16, 16)},
    "features": {"dim": 3, "hidden": (20, 20), "in_dim": 6},
    "wide": {"dim": 1, "hidden": (300, 300), "embedding_dim": 8},
    "classes": {"dim": 2, "hidden": (24, 24), "classes": 4},
    "vectors": {"dim": 2, "hidden": (24, 24), "condition_dim": 3},
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def made(shape: dict[str, Any], dtype: torch.dtype = torch.float64) -> networks.MLP:
    """Make a network whose weights are all drawn, the last layer's too."""
    net = networks.MLP(**shape).to(dtype)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normals(*p.shape, seed=i) / p.shape[-1] ** 0.5)
    return net


def points(net: networks.MLP, rows: int, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """Draw x, times of which many are equal, and a condition if the network takes one."""
    x = normals(rows, net.in_dim, seed=100).to(dtype)
    t = torch.randint(1, 8, (rows,), generator=torch.Generator().manual_seed(1)).to(dtype) / 8
    if net.config["classes"]:
        return x, t, torch.arange(rows) % 5
    return (x, t, normals(rows, 3, seed=101).to(dtype)) if net.config["condition_dim"] else (x, t)


def results(net: networks.MLP, x: Tensor, t: Tensor, *condition: Tensor) -> list[Tensor]:
    """Return the output, and the gradients in x and all parameters of a sum of it that weighs them differently."""
    x = x.clone().requires_grad_()
    out = net(x, t, *condition)
    weighed = (out * normals(*out.shape, seed=200).to(out.dtype)).sum()
    return [out.detach(), *torch.autograd.grad(weighed, [x, *net.parameters()], materialize_grads=True)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the calls of the op by their rows."""
    counted: list[int] = []
    op = cpp.film_mlp
    monkeypatch.setattr(cpp, "film_mlp", lambda x, *rest: (counted.append(len(x)), op(x, *rest))[1])
    yield counted


@pytest.mark.parametrize("rows", [1, 2, 37, 256])
@shapes
def test_values_and_gradients_are_those_of_the_layers(shape: dict[str, Any], rows: int, calls: list[int]) -> None:
    net = made(shape)
    given = points(net, rows)
    found = results(net, *given)
    assert calls == [rows]
    with fastndsm.use_backend("reference"):
        expected = results(net, *given)
    assert calls == [rows]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@shapes
def test_float32_is_as_near_as_the_layers_are(shape: dict[str, Any]) -> None:
    exact = results(made(shape), *points(made(shape), 200))
    net = made(shape, torch.float32)
    found = results(net, *points(net, 200, torch.float32))
    with fastndsm.use_backend("reference"):
        layers = results(net, *points(net, 200, torch.float32))
    for a, b, c in zip(found, layers, exact, strict=True):
        scale = float(c.abs().amax()) + 1e-30
        assert float((a - c).abs().amax()) <= 3.0 * float((b - c).abs().amax()) + 1e-6 * scale


def test_the_reference_is_the_network() -> None:
    """The specification that the backend is compared with, where a gradient of the gradient is asked for too."""
    net = made(SHAPES["odd"])
    x, t = points(net, 9)
    layers = [net.film.hidden, net.film.out, *net.layers, net.last]
    times, rows = t.unique(return_inverse=True)
    weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
    out = reference.film_mlp(x, net.film.embedding(times), rows, weights, biases)
    with fastndsm.use_backend("reference"):
        torch.testing.assert_close(out, net(x, t), rtol=1e-12, atol=1e-12)


def test_gradients_of_first_and_second_order() -> None:
    net = made({"dim": 2, "hidden": (4, 4), "embedding_dim": 4})
    x, t = points(net, 3)

    def function(x: Tensor, t: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in net.named_parameters()]
        out: Tensor = torch.func.functional_call(net, dict(zip(names, weights, strict=True)), (x, t))
        return out

    inputs = (x.requires_grad_(), t.requires_grad_(), *net.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bits_depend_on_no_thread_and_on_no_other_row(dtype: torch.dtype) -> None:
    net = made(SHAPES["plane"], dtype)
    x, t = points(net, 301, dtype)
    threads = torch.get_num_threads()
    found = results(net, x, t)
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert all(torch.equal(a, b) for a, b in zip(results(net, x, t), found, strict=True))
    finally:
        torch.set_num_threads(threads)
    with torch.no_grad():
        assert torch.equal(net(x, t), found[0])  # nothing kept
        for rows in (slice(0, 1), slice(5, 18), slice(290, 301)):
            assert torch.equal(net(x[rows], t[rows]), found[0][rows])
        large = net(x.repeat(30, 1), t.repeat(30))
    assert torch.equal(large, found[0].repeat(30, 1))


def test_nothing_is_kept_where_no_gradient_will_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    op = cpp.film_mlp
    monkeypatch.setattr(cpp, "film_mlp", lambda *call: (kept.append(call[-1]), op(*call))[1])
    net = made(SHAPES["plane"])
    x, t = points(net, 4)
    net(x, t)
    with torch.no_grad():
        net(x, t)
    net.requires_grad_(False)
    net(x, t)
    net(x.requires_grad_(), t)
    assert kept == [True, False, False, True]


def test_one_time_for_all_rows() -> None:
    """As sampling has it: expanded, or equal values."""
    net = made(SHAPES["plane"])
    x, t = points(net, 20)
    one = t[:1].expand(20)
    assert torch.equal(net(x, one), net(x, one.clone()))


def test_nan_and_infinity_stay_in_their_rows() -> None:
    net = made(SHAPES["plane"])
    x, t = points(net, 6)
    x[2, 0], x[4, 1], t[5] = float("nan"), float("inf"), float("nan")
    finite = net(x, t).isfinite().all(1)
    assert finite.tolist() == [True, True, False, True, False, False]


def test_only_some_parameters_are_trained() -> None:
    net = made(SHAPES["plane"])
    x, t = points(net, 8)
    net.requires_grad_(False)
    assert not net(x, t).requires_grad
    net.layers[1].weight.requires_grad_()
    net(x, t).square().sum().backward()
    found = net.layers[1].weight.grad
    assert found is not None and found.any() and net.layers[0].weight.grad is None
    with fastndsm.use_backend("reference"):
        (expected,) = torch.autograd.grad(net(x, t).square().sum(), [net.layers[1].weight])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


class Doubled(nn.Linear):
    """A layer of a user's own."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


def replaced(net: networks.MLP) -> None:
    layer = Doubled(128, 128).double()
    layer.load_state_dict(net.layers[1].state_dict())
    net.layers[1] = layer


def given_a_forward(net: networks.MLP) -> None:
    layer: Any = net.last
    forward = layer.forward
    layer.forward = lambda x: 2.0 * forward(x)


def parametrised(net: networks.MLP) -> None:
    parametrize.register_parametrization(net.layers[1], "weight", nn.Sigmoid())


def hooked(net: networks.MLP) -> None:
    net.layers[2].register_forward_hook(lambda module, given, out: 2.0 * out)


def pruned(net: networks.MLP) -> None:
    prune.random_unstructured(net.layers[1], "weight", amount=0.5)


@pytest.mark.parametrize("change", [replaced, given_a_forward, parametrised, hooked, pruned])
def test_parts_of_the_users_own_are_called(change: Callable[[Any], None], calls: list[int]) -> None:
    net = made(SHAPES["plane"])
    x, t = points(net, 5)
    before = net(x, t)
    change(net)
    calls.clear()
    assert not torch.allclose(net(x, t), before)
    assert not calls


def test_a_backward_hook_sees_its_layer(calls: list[int]) -> None:
    net = made(SHAPES["plane"])
    seen: list[Any] = []
    net.layers[0].register_full_backward_hook(lambda module, grads, outs: seen.append(outs[0].shape))
    net(*points(net, 5)).sum().backward()
    assert seen == [(5, 128)] and not calls


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_who_looks_at_every_operation_sees_the_layers(calls: list[int]) -> None:
    """Transforms, tracers, autocast and dispatch modes."""
    net = made(SHAPES["plane"], torch.float32)
    x, t = points(net, 5, torch.float32)
    expected = net(x, t)
    calls.clear()
    each = torch.func.vmap(lambda x, t: net(x[None], t[None])[0])(x, t)
    torch.testing.assert_close(each, expected)
    jacobian = torch.func.jacrev(lambda x: net(x, t))(x)
    along = torch.func.jvp(lambda x: net(x, t), (x,), (torch.ones_like(x),))[1]
    torch.testing.assert_close(along, jacobian.sum((2, 3)))
    torch.testing.assert_close(torch.jit.trace(net, (x, t), check_trace=False)(x, t), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x, t).dtype == torch.float32
    with FlopCounterMode(display=False) as counter:
        net(x, t)
    assert counter.get_total_flops() > 5 * 2 * 128 * 128
    compiled: Any = torch.compile(net, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), expected)
    assert not calls


def test_training_is_that_of_the_layers(calls: list[int]) -> None:
    """Losses of a hundred steps, to 1e-5."""
    data = fastndsm.data.load("four_modes", n=400, seed=0).train
    reference = fastndsm.GaussianMixture.fit(data, 4, random_state=0)
    process = fastndsm.LangevinProcess(reference, n_steps=20)
    losses = []
    for backend in ("auto", "reference"):
        torch.manual_seed(0)
        net = fastndsm.ResidualScore(networks.MLP(2, (32, 32), horizon=process.T), process)
        loss, steps = fastndsm.NDSMLoss(process), []
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for i in range(100):
            drawn = loss.draw(data[:64], seed=i)
            with fastndsm.use_backend(backend):
                value = loss.evaluate(net, drawn)
                optimizer.zero_grad()
                value.backward()
            optimizer.step()
            steps.append(value.detach())
        losses.append(torch.stack(steps))
    assert len(calls) == 100
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)
