"""The CUDA kernels on the host, one lane or one warp at a time, against the reference. Nothing runs on a GPU."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from gpu_host import COMPILER, packed_mixture, run, sample_mlp, words
from helpers import normals, quietly, random_mixture
from torch import Tensor

from fastndsm import LangevinProcess, ResidualScore, reference, sample, use_backend
from fastndsm._scheme import Schedule
from fastndsm.backends.cuda import packed_network
from fastndsm.networks import MLP
from fastndsm.reference.philox import philox4x32_10
from fastndsm.sampling.fused_mlp import FusedNetwork, fused_network

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not on PATH")

SEED, FIRST_PATH = -0x123456789ABCDEF, 2**32 - 9
ROWS = 7  # warps of one and of four samples, a part of one among them
# kernel (samples a warp, 0: registers), covariance type, dimension, components
REGISTERS = [(0, "spherical", d, k) for d, k in [(1, 1), (2, 8), (3, 5), (6, 3), (16, 7), (27, 4), (32, 2)]]
REGISTERS += [(0, "diag", d, k) for d, k in [(1, 3), (2, 8), (4, 5), (7, 1), (13, 6)]]
REGISTERS += [(0, kind, d, k) for kind in ("tied", "full") for d, k in [(1, 1), (2, 5), (3, 4), (8, 3)]]
WARPS = [(n, kind, d, k) for n in (1, 4) for kind in ("spherical", "diag") for d, k in [(1, 1), (33, 3), (131, 10)]]
WARPS += [(1, "spherical", 5, 70), (4, "diag", 5, 70), (4, "spherical", 300, 2)]
cases = pytest.mark.parametrize("case", REGISTERS + WARPS, ids=lambda c: "-".join(map(str, c)))
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
Case = tuple[int, str, int, int]


@functools.cache
def problem(kind: str, dim: int, components: int) -> tuple[LangevinProcess, Tensor, Tensor, Tensor]:
    """Return a process, x0, a score and the steps of each row, from 0 to N; exact in float32."""
    p = quietly(random_mixture(kind, components, dim, ratio=8.0), T=0.3, n_steps=6)
    p.drift_scale, p.noise_std = p.drift_scale.float().double(), p.noise_std.float().double()
    x, score = (2.0 * normals(ROWS, dim, seed=i, dtype=torch.float32).double() for i in range(2))
    return p, x, score, torch.tensor([6, 0, 3, 6, 1, 5, 2])


def assert_agree(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Require 1e-10 of the largest value in float64, in float32 a few hundred ulp of it; nothing is left unwritten."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        share = 1e-10 if one.dtype == torch.float64 else 5e-5
        torch.testing.assert_close(one.double(), other, rtol=0.0, atol=share * max(1.0, float(other.abs().amax())))


@pytest.mark.parametrize("block", [0, 1, 767])
@pytest.mark.parametrize("path", [0, 5, 2**32 - 1, 2**40 + 3])
def test_words_bit_for_bit(path: int, block: int) -> None:
    """Compare both kernels, which share parts of the first two rounds in different ways."""
    c0, c1, step = path & 0xFFFFFFFF, path >> 32 | 2 << 24, 4321
    counter = tuple(torch.tensor(value) for value in (c0, c1, step, block))
    expected = [int(w) for w in philox4x32_10(counter, (SEED & 0xFFFFFFFF, SEED >> 32 & 0xFFFFFFFF))]
    assert words(c0, c1, step, block, SEED) == (expected, expected)


@cases
@dtypes
def test_simulate(case: Case, dtype: torch.dtype) -> None:
    samples, *shape = case
    p, x, _, steps = problem(*shape)
    process = p.dynamics.operands(dtype)
    exact = p.dynamics.operands(torch.float64)
    seed = torch.tensor(SEED)
    found = run("state", samples, x.to(dtype), steps, process, SEED, FIRST_PATH)
    assert_agree(found, (reference.simulate(x, steps, exact, seed, FIRST_PATH),))
    taken = steps.clamp(min=1)
    found = run("state", samples, x.to(dtype), taken, process, SEED, FIRST_PATH, transition=True)
    assert_agree(found, reference.simulate_transition(x, taken, exact, seed, FIRST_PATH))


@cases
@dtypes
@pytest.mark.parametrize("antithetic", [False, True], ids=["path", "antithetic"])
def test_simulate_target(case: Case, dtype: torch.dtype, antithetic: bool) -> None:
    samples, *shape = case
    p, x, _, steps = problem(*shape)
    process = p.dynamics.operands(dtype)
    exact = p.dynamics.operands(torch.float64)
    axes, exact_axes = (p.reference.principal_axes(d) for d in (dtype, torch.float64))
    options = {"axes": axes, "antithetic": antithetic}
    found = run("target", samples, x.to(dtype), steps, process, SEED, FIRST_PATH, **options)
    seed = torch.tensor(SEED)
    assert_agree(found, reference.simulate_target(x, steps, exact, exact_axes, seed, FIRST_PATH, antithetic))
    several = torch.stack([steps.flip(0), steps, steps], dim=1)
    records = run("target", samples, x.to(dtype), several, process, SEED, FIRST_PATH, **options)
    for out, one in zip(records, found, strict=True):
        assert torch.equal(out[:, 1], one) and torch.equal(out[:, 2], one)
    assert_agree(records, reference.simulate_target(x, several, exact, exact_axes, seed, FIRST_PATH, antithetic))


BACK = [
    ("sde", "data", 5, 2),
    ("sde", "data", 3, 0),
    ("sde", "score", 6, 5),
    ("ode", "data", 6, 1),
    ("sde", "data", 2, 2),
    ("sde", "linear", 5, 2),
    ("ode", "linear", 4, 0),
]


@cases
@dtypes
@pytest.mark.parametrize(("method", "prediction", "first", "last"), BACK)
@pytest.mark.parametrize("sloped", [True, False], ids=["slope", "held"])
def test_reverse_steps(
    case: Case, dtype: torch.dtype, method: str, prediction: str, first: int, last: int, sloped: bool
) -> None:
    """Also where the mixture is not evaluated (ode), where nothing is drawn (step 0), and of no step."""
    samples, *shape = case
    p, y, held, _ = problem(*shape)
    slope = 0.25 * held.flip(1) if sloped else None
    rate = held.square().mean(1) if sloped and prediction == "linear" else None
    bounds = torch.tensor([first, last])
    coefficients = p.reverse_scheme(method, prediction).coefficients(first, last).float().double()
    network = {"held": held.to(dtype), "slope": None if slope is None else slope.to(dtype)}
    network["rate"] = None if rate is None else rate.to(dtype)
    process = p.dynamics.operands(dtype), SEED, FIRST_PATH
    table = coefficients.to(dtype)
    found = run("reverse", samples, y.to(dtype), bounds, *process, coefficients=table, **network)
    mixture = p.dynamics.operands(torch.float64).mixture
    seed = torch.tensor(SEED)
    expected = reference.reverse_steps(y, held, slope, rate, bounds, coefficients, mixture, seed, FIRST_PATH)
    assert_agree(found, (expected,))


@pytest.mark.parametrize("samples", [1, 4])
@pytest.mark.parametrize("kind", ["spherical", "diag"])
def test_a_sample_does_not_depend_on_its_warp(kind: str, samples: int) -> None:
    p, x, _, steps = problem(kind, 33, 3)
    process = p.dynamics.operands(torch.float32)
    whole = run("target", samples, x.float(), steps, process, SEED, FIRST_PATH)
    for i in range(ROWS):
        one = run("target", samples, x[i : i + 1].float(), steps[i : i + 1], process, SEED, FIRST_PATH + i)
        assert all(torch.equal(a[0], b[i]) for a, b in zip(one, whole, strict=True))


def test_far_points_and_many_components_stay_finite() -> None:
    """Put every logit far below the running maximum's start, and let one component take all."""
    p = quietly(random_mixture("spherical", 9, 2, ratio=8.0), T=0.3, n_steps=6)
    x = torch.tensor([[1e4, -1e4], [3e3, 0.0], [0.0, 0.0]])
    process = p.dynamics.operands(torch.float32)
    exact = p.dynamics.operands(torch.float64)
    steps = torch.tensor([2, 2, 2])
    expected = reference.simulate(x.double(), steps, exact, torch.tensor(SEED), 0)
    for samples in (0, 1, 4):
        (found,) = run("state", samples, x, steps, process, SEED, 0)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)


def test_packed_parameters() -> None:
    """Padding adds zeros and components that are never chosen, in the order that parameters.h gives."""
    m = random_mixture("diag", 5, 3).operands(torch.float64)
    block = packed_mixture(m, 4)
    roots, shifts, pulls, precisions = block[:-8].reshape(4, 8, 4)
    torch.testing.assert_close(precisions[:5, :3], m.precisions)
    torch.testing.assert_close(pulls[:5, :3], m.precisions * m.means)
    expected = (m.precisions / (2.0 * math.log(2.0))).sqrt()
    torch.testing.assert_close(roots[:5, :3], expected)
    torch.testing.assert_close(shifts[:5, :3], -expected * m.means)
    for part in (roots, shifts, pulls, precisions):
        assert not bool(part[5:].any()) and not bool(part[:, 3].any())
    torch.testing.assert_close(block[-8:-3].exp2(), m.log_scale.exp())
    assert bool((block[-3:] == -1e38).all())


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


# --- the kernels themselves, a thread of this machine for each of theirs -----------------------------------------

EMULATED = [(0, "spherical", 3, 5), (0, "spherical", 27, 4), (0, "diag", 2, 8), (0, "tied", 3, 4), (0, "full", 4, 3)]
EMULATED += [(n, kind, 131, 5) for n in (1, 4) for kind in ("spherical", "diag")]
emulated_cases = pytest.mark.parametrize("case", EMULATED, ids=lambda c: "-".join(map(str, c)))


@emulated_cases
def test_emulated_kernels_give_what_their_headers_give(case: Case) -> None:
    """Rows found and stored in their places, several blocks, shared memory that held NaN: bit for bit in registers. In
    warps GCC fuses multiplications and additions of one lane, but not those of a vector of 32.
    """
    samples, *shape = case
    p, x, score, steps = problem(*shape)
    x, score = x.float(), score.float()
    process, axes = (p.dynamics.operands(torch.float32), SEED, FIRST_PATH), p.reference.principal_axes(x.dtype)
    bounds, taken = torch.tensor([5, 1]), steps.clamp(min=1)
    back: dict[str, Tensor] = {
        "held": score,
        "coefficients": p.reverse_scheme("sde", "linear").coefficients(5, 1).float(),
    }
    for call in (
        lambda emulated: run("state", samples, x, steps, *process, emulated=emulated),
        lambda emulated: run("state", samples, x, taken, *process, transition=True, emulated=emulated),
        lambda emulated: run("target", samples, x, steps, *process, axes=axes, antithetic=True, emulated=emulated),
        lambda emulated: run("reverse", samples, x, bounds, *process, **back, emulated=emulated),
        lambda emulated: run(
            "reverse", samples, x, bounds, *process, **back, slope=0.1 * x, rate=x[:, 0].abs(), emulated=emulated
        ),
    ):
        for found, expected in zip(call(True), call(False), strict=True):
            if samples == 0:
                assert torch.equal(found, expected)
            torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-5 * max(1.0, float(expected.abs().amax())))


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
