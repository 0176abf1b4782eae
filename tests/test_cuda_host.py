"""The CUDA kernels on the host, where their threads take turns, against the reference. Nothing runs on a GPU."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gpu_host import COMPILER, packed_mixture, sample_mlp, words
from helpers import quietly, random_mixture

from fastndsm import LangevinProcess, ResidualScore, sample, use_backend
from fastndsm._scheme import Schedule
from fastndsm.backends.cuda import packed_network
from fastndsm.networks import MLP
from fastndsm.reference.philox import philox4x32_10
from fastndsm.sampling.fused_mlp import FusedNetwork, fused_network

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not on PATH")

SEED, FIRST_PATH = -0x123456789ABCDEF, 2**32 - 9


@pytest.mark.parametrize("block", [0, 1, 767])
@pytest.mark.parametrize("path", [0, 5, 2**32 - 1, 2**40 + 3])
def test_words_bit_for_bit(path: int, block: int) -> None:
    """Of both ways, which share parts of the first two rounds differently."""
    c0, c1, step = path & 0xFFFFFFFF, path >> 32 | 2 << 24, 4321
    counter = tuple(torch.tensor(value) for value in (c0, c1, step, block))
    expected = [int(w) for w in philox4x32_10(counter, (SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF))]
    assert words(c0, c1, step, block, SEED) == (expected, expected)


@pytest.mark.parametrize("kind", ["spherical", "diag", "tied", "full"])
def test_packed_parameters(kind: str) -> None:
    """In the order that parameters.h gives, in more blocks of threads than one."""
    m = random_mixture(kind, 9, 7).operands(torch.float32)
    block = packed_mixture(m)
    if kind == "diag":
        roots = (m.precisions / (2.0 * math.log(2.0))).sqrt()
        parts = [roots, -roots * m.means, m.precisions * m.means, m.precisions]
    else:
        parts = [m.means, m.precisions]
    torch.testing.assert_close(block[:-9], torch.cat([part.flatten() for part in parts]))
    torch.testing.assert_close(block[-9:].exp2(), m.log_scale.exp())


def test_packed_network() -> None:
    """Blocks of 8 outputs by 16 inputs, in which a thread of the kernel has four inputs side by side."""
    weights, biases = [torch.randn(10, 2), torch.randn(3, 33)], [torch.randn(10), torch.randn(3)]
    network = packed_network(weights, biases)
    assert network.numel() == 16 * 16 + 16 + 8 * 48 + 8
    for weight, bias, at in zip(weights, biases, (0, 16 * 16 + 16), strict=True):
        (outputs, inputs), blocks = weight.shape, -(-weight.shape[1] // 16)
        padded = torch.zeros(-(-outputs // 8) * 8, 16 * blocks)
        padded[:outputs, :inputs] = weight
        for (i, j), value in zip(torch.cartesian_prod(*map(torch.arange, padded.shape)), padded.flatten(), strict=True):
            half, pair, one = int(j) % 16 // 8, int(j) % 8 // 2, int(j) % 2
            place = (int(i) // 8 * blocks + int(j) // 16) * 128 + int(i) % 8 * 16 + pair * 4 + half * 2 + one
            assert network[at + place] == value
        end = at + padded.numel()
        assert torch.equal(network[end : end + outputs], bias)
        assert not bool(network[end + outputs : end + len(padded)].any())


# --- the sampler --------------------------------------------------------------------------------------------------

# Of one, two, four and eight threads with dimensions of a sample's own; components fewer and more than the others.
SAMPLERS = [("spherical", 2, 3, (64, 64), False, True), ("diag", 3, 11, (64,), True, False)]
SAMPLERS += [("full", 9, 3, (128, 128), False, True), ("tied", 2, 9, (64, 64, 64), True, True)]
SAMPLERS += [("diag", 7, 5, (128,), False, False), ("full", 19, 2, (64,), True, True)]
SAMPLERS += [("spherical", 32, 3, (64, 64), True, False)]  # whose first layer is as wide as its input


@pytest.mark.parametrize(("method", "order"), [("sde", 2), ("sde", 1), ("ode", 2)])
@pytest.mark.parametrize(("kind", "dim", "components", "hidden", "features", "resident"), SAMPLERS)
def test_the_emulated_sampler_gives_the_samples_of_the_module(
    kind: str,
    dim: int,
    components: int,
    hidden: tuple[int, ...],
    features: bool,
    resident: bool,
    method: str,
    order: int,
) -> None:
    """Two blocks, the second of which has rows to spare; weights in shared memory and not."""
    p = quietly(random_mixture(kind, components, dim, ratio=4.0), T=0.3, n_steps=4)
    torch.manual_seed(0)
    net = MLP(dim, hidden, in_dim=2 * dim if features else dim, horizon=p.T)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    torch.nn.init.normal_(net.film.out.weight, std=0.1)
    score_net = ResidualScore(net, p, features=features)
    schedule, network = scheduled(score_net, p, method, order, [4, 2, 1])
    n = 37
    y = p.prior.sample(n, seed=3, first_path=FIRST_PATH).float()
    mixture = p.reference.operands(torch.float32)
    found, failed = sample_mlp(y, network, schedule, mixture, 3, FIRST_PATH, resident=resident)
    options: dict[str, Any] = {"order": order, "prediction": "linear", "grid": p.times[[1, 2, 4]], "fused": False}
    with use_backend("reference"):
        expected = sample(score_net, p, n, method=method, seed=3, first_path=FIRST_PATH, **options)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)
    assert failed == 3
    one, _ = sample_mlp(y[34:35], network, schedule, mixture, 3, FIRST_PATH + 34, resident=not resident)
    assert torch.equal(one[0], found[34])  # wherever it is in a tile, and whatever is beside it


def scheduled(
    score_net: ResidualScore, p: LangevinProcess, method: str, order: int, indices: list[int]
) -> tuple[Schedule, FusedNetwork]:
    schedule = p.reverse_scheme(method, "linear").schedule(indices, order)
    network = fused_network(score_net, p, schedule, torch.float32)
    assert isinstance(network, FusedNetwork)
    return schedule, network


def test_the_emulated_sampler_tells_the_evaluation_that_failed() -> None:
    """The third, at t_2, where v is made 0."""
    p = quietly(random_mixture("spherical", 3, 2, ratio=4.0), T=0.3, n_steps=4)
    p.noise_variance[1] = 0.0
    net = MLP(2, (64,), horizon=p.T)
    torch.nn.init.normal_(net.last.weight, std=0.1)
    schedule, network = scheduled(ResidualScore(net, p), p, "sde", 2, [4, 3, 2, 1])
    y = p.prior.sample(40, seed=3).float()
    mixture = p.reference.operands(torch.float32)
    assert sample_mlp(y, network, schedule, mixture, 3, 0, resident=True)[1] == 2
