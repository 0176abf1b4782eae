"""Networks: shapes, the zero start, the flow of gradients, reconstruction, learning a function of time."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import Tensor, nn

from fastndsm.networks import MLP, TimeEmbedding, UNet, build


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def again(net: nn.Module) -> nn.Module:
    """Return a fresh network like this one, drawn from the test's seed."""
    return build(net.architecture, **net.config)


def woken(net: nn.Module) -> nn.Module:
    """Return a fresh network whose last layer is not zero, so that its output depends on everything before it."""
    net = again(net)
    nn.init.normal_(net.last.weight, std=0.1)
    nn.init.normal_(net.last.bias, std=0.1)
    return net


CASES = {
    "mlp-flat": (MLP(5, (16, 16), horizon=3.0, embedding_dim=32), (5,), (5,)),
    "mlp-event": (MLP(12, (16, 8, 8)), (3, 2, 2), (3, 2, 2)),
    "mlp-features": (MLP(2, (16,), in_dim=4), (4,), (2,)),
    "mlp-event-features": (MLP(8, (16,), in_dim=16), (2, 2, 4), (1, 2, 4)),
    "mlp-narrower": (MLP(4, (16,), in_dim=6), (2, 3), (4,)),
    "mlp-wider": (MLP(6, (16,), in_dim=4), (2, 2), (6,)),
    "mlp-d1": (MLP(1, (8, 8)), (1,), (1,)),
    "unet-8": (UNet(size=8, base=8, horizon=3.0, embedding_dim=32), (1, 8, 8), (1, 8, 8)),
    "unet-28": (UNet(size=28, base=8), (1, 28, 28), (1, 28, 28)),
    "unet-flat": (UNet(size=8, base=8), (64,), (64,)),
    "unet-odd": (UNet(3, (9, 7), base=12, multipliers=(1, 2, 2)), (3, 9, 7), (3, 9, 7)),
    "unet-tiny": (UNet(size=3, base=8, multipliers=(1,)), (1, 3, 3), (1, 3, 3)),
    "unet-features": (UNet(2, 8, base=8, in_channels=4), (4, 8, 8), (2, 8, 8)),
    "unet-flat-features": (UNet(2, 8, base=8, in_channels=4), (256,), (128,)),
}
each = pytest.mark.parametrize(("net", "event", "expected"), CASES.values(), ids=CASES)


@each
@pytest.mark.parametrize("batch", [1, 3])
def test_starts_at_zero_with_the_shape_of_the_score(
    net: nn.Module, event: tuple[int, ...], expected: tuple[int, ...], batch: int
) -> None:
    out = again(net)(torch.randn(batch, *event), torch.rand(batch))
    assert out.shape == (batch, *expected)
    assert out.dtype == torch.float32
    assert (out == 0).all()


@each
def test_gradient_reaches_every_parameter_input_and_the_time(
    net: nn.Module, event: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    net = woken(net)
    x, t = torch.randn(4, *event, requires_grad=True), torch.tensor([0.0, 1e-3, 0.5, 1.0])
    out = net(x, t)
    assert out.isfinite().all()
    out.square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    assert x.grad is not None and (x.grad.flatten(1).abs().amax(1) > 0).all()
    assert (net(x[:1], torch.tensor([0.3])) - net(x[:1], torch.tensor([0.31]))).abs().max() > 0


@each
def test_samples_do_not_see_each_other(net: nn.Module, event: tuple[int, ...], expected: tuple[int, ...]) -> None:
    net = woken(net).double()
    x, t = torch.randn(5, *event, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(net(x, t), alone, rtol=1e-10, atol=1e-12)


@each
def test_config_round_trips_through_json(net: nn.Module, event: tuple[int, ...], expected: tuple[int, ...]) -> None:
    net = copy.deepcopy(net)  # as constructed, not from its config
    nn.init.normal_(net.last.weight)
    twin = build(net.architecture, **json.loads(json.dumps(net.config)))
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())
    x, t = torch.randn(3, *event), torch.rand(3)
    assert torch.equal(net(x, t), twin(x, t))


@pytest.mark.parametrize("channels", [1, 2])
def test_unet_takes_flat_images_and_gives_them_back(channels: int) -> None:
    net = woken(UNet(channels, (5, 8), base=8, in_channels=2 * channels))
    x, t = torch.randn(3, 2 * channels, 5, 8), torch.rand(3)
    torch.testing.assert_close(net(x.flatten(1), t), net(x, t).flatten(1))


def test_a_deep_mlp_still_feels_its_input() -> None:
    net = woken(MLP(2, (16,) * 30))  # each layer without its residual connection damps the gradient about threefold
    x = torch.randn(8, 2, requires_grad=True)
    net(x, torch.rand(8)).square().sum().backward()
    assert x.grad is not None and (x.grad.norm(dim=1) > 1e-4).all()


def test_unet_halves_down_to_four_pixels_and_no_further() -> None:
    assert UNet(size=28).halved == [True, True]
    assert UNet(size=8).halved == [True, False]
    assert UNet(size=(7, 28), multipliers=(1, 1)).halved == [True, False]


@pytest.mark.parametrize("power", [1, 2], ids=["uniform", "quadratic"])
def test_embedding_separates_neighbouring_steps_of_a_grid(power: int) -> None:
    horizon = 7.5
    times = horizon * torch.linspace(0, 1, 101, dtype=torch.float64) ** power
    embedded = TimeEmbedding(64, horizon).double()(times)
    assert embedded.isfinite().all()
    assert (embedded[1:] - embedded[:-1]).norm(dim=1).min() > 0.1  # of vectors of norm sqrt(32)
    relative = TimeEmbedding(64, 1.0).double()(times / horizon)
    torch.testing.assert_close(embedded, relative)  # only t / horizon matters


def test_embedding_of_low_precision_times_is_computed_in_float32() -> None:
    times = torch.tensor([0.5, 0.25, 0.0], dtype=torch.bfloat16)  # exact in bfloat16
    assert torch.equal(TimeEmbedding(16)(times), TimeEmbedding(16)(times.float()))


@pytest.mark.parametrize(
    ("net", "steps", "tolerance"),
    [
        (MLP(4, (64, 64), horizon=2.0), 400, 0.03),
        (UNet(1, 2, base=8, multipliers=(1,), horizon=2.0, embedding_dim=32), 200, 0.1),
    ],
    ids=["mlp", "unet"],
)
def test_learns_a_function_of_place_and_time(net: nn.Module, steps: int, tolerance: float) -> None:
    def target(x: Tensor, t: Tensor) -> Tensor:  # a Gaussian's score under noising: steep at small t
        return -x / (0.05 + t[:, None])

    net = again(net)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        t = 2.0 * torch.rand(128) ** 2
        x = torch.randn(128, 4) * (0.05 + t[:, None]).sqrt()
        loss = ((net(x.reshape(-1, 1, 2, 2), t).flatten(1) - target(x, t)).square() * (0.05 + t[:, None])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    t = 2.0 * torch.rand(2000) ** 2
    x = torch.randn(2000, 4) * (0.05 + t[:, None]).sqrt()
    with torch.no_grad():
        error = (net(x.reshape(-1, 1, 2, 2), t).flatten(1) - target(x, t)).square() * (0.05 + t[:, None])
    assert error.mean() < tolerance  # of a target whose weighted mean square is one


@pytest.mark.parametrize("name", ["mlp-features", "unet-tiny"])
def test_compiles_without_a_break_and_under_vmap(name: str) -> None:
    net, event, _ = CASES[name]
    net = woken(net)
    x, t = torch.randn(3, *event), torch.rand(3)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), net(x, t))

    def one(x: Tensor, t: Tensor) -> Tensor:
        return net(x[None], t[None])[0]

    jacobian = torch.func.vmap(torch.func.jacrev(one))(x, t)
    direct = torch.stack([torch.autograd.functional.jacobian(lambda z, i=i: one(z, t[i]), x[i]) for i in range(3)])
    torch.testing.assert_close(jacobian, direct, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [MLP(64, (32, 32)), UNet(size=8, base=8)], ids=["mlp", "unet"])
def test_autocast_gives_the_dtype_of_x(net: nn.Module) -> None:
    net = woken(net)
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, t)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, net(x, t), rtol=0.1, atol=0.1)


BAD_INPUT = {
    "too-wide": (
        MLP(3, (8,)),
        torch.zeros(2, 4),
        torch.zeros(2),
        ValueError,
        r"x: .* 3 values .* found \(2, 4\)",
    ),
    "image": (
        UNet(1, 8, base=8),
        torch.zeros(2, 1, 8, 7),
        torch.zeros(2),
        ValueError,
        r"x: .*1, 8, 8.*\(2, 1, 8, 7\)",
    ),
    "no-batch": (
        MLP(3, (8,)),
        torch.zeros(3),
        torch.zeros(3),
        ValueError,
        r"x: .*\[B, \*event\].*found \(3,\)",
    ),
    "empty": (MLP(3, (8,)), torch.zeros(0, 3), torch.zeros(0), ValueError, r"x: .*B >= 1.*found \(0, 3\)"),
    "scalar-t": (MLP(3, (8,)), torch.zeros(2, 3), torch.tensor(0.5), ValueError, r"t: .*\[2\].*found \(\)"),
    "long-t": (
        UNet(1, 8, base=8),
        torch.zeros(2, 64),
        torch.zeros(3),
        ValueError,
        r"t: .*\[2\].*found \(3,\)",
    ),
    "int-t": (
        MLP(3, (8,)),
        torch.zeros(2, 3),
        torch.zeros(2).long(),
        TypeError,
        r"t: .*floating.*found torch.int64",
    ),
    "float-t": (MLP(3, (8,)), torch.zeros(2, 3), 0.5, TypeError, r"t: expected a Tensor, found float"),
    "dtype": (
        MLP(3, (8,)),
        torch.zeros(2, 3).double(),
        torch.zeros(2),
        TypeError,
        r"x: .*float32.*found torch.float64",
    ),
    "device": (
        MLP(3, (8,)),
        torch.zeros(2, 3, device="meta"),
        torch.zeros(2),
        ValueError,
        r"x: .*cpu, found meta",
    ),
}


@pytest.mark.parametrize(("net", "x", "t", "error", "message"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_named(net: nn.Module, x: Tensor, t: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        net(x, t)


BAD_CONFIG = {
    "dim": (lambda: MLP(0), r"dim: expected a positive int, found 0"),
    "hidden": (lambda: MLP(2, ()), r"hidden: expected one or more positive ints, found \(\)"),
    "hidden-width": (lambda: MLP(2, (8, -1)), r"hidden: expected a positive int, found -1"),
    "in_dim": (lambda: MLP(2, in_dim=2.0), r"in_dim: expected a positive int, found 2.0"),
    "horizon": (lambda: MLP(2, horizon=0.0), r"horizon: .* found 0.0"),
    "horizon-nan": (lambda: UNet(horizon=float("nan")), r"horizon: .* found nan"),
    "embedding_dim": (lambda: MLP(2, embedding_dim=30), r"embedding_dim: .* found 30"),
    "size": (lambda: UNet(size=(8, 8, 8)), r"size: .* found \(8, 8, 8\)"),
    "multipliers": (lambda: UNet(multipliers=(1, 0)), r"multipliers: .* found 0"),
    "name": (lambda: build("transformer"), r"name: expected one of \['mlp', 'unet'\], found 'transformer'"),
}


@pytest.mark.parametrize(("make", "message"), BAD_CONFIG.values(), ids=BAD_CONFIG)
def test_bad_configuration_is_named(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
