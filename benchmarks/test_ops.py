"""philox_normal, the losses and the score of a large mixture, against PyTorch and JAX, and the memory they take."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastndsm import functional
from fastndsm.testing import deviation, random_mixture

from . import memory, peers_jax, roofline
from .problems import CHECKED_ROWS, TINY
from .record import Memory, Record
from .rows import Row

FLOAT32 = 1e-5
MATMUL_FORM = 1e-3

# --- philox_normal -----------------------------------------------------------------------------------------------

PATHS, DIM = (64, 16) if TINY else (262_144, 16)
VALUES = PATHS * DIM
NORMALS = ("ours", "eager", *peers_jax.GENERATORS)
LARGEST_Z = 5.0


def philox(backend: str, paths: int = PATHS) -> Tensor:
    return functional.philox_normal(paths, DIM, seed=1, backend=backend)


def normals(contender: str) -> Callable[[], Tensor]:
    if contender == "eager":
        return partial(torch.empty(VALUES, device="cpu").normal_)
    return peers_jax.normals(peers_jax.GENERATORS[contender], VALUES)


def standard(values: Tensor) -> float:
    """Return the largest |z| of the first four moments of standard normals."""
    powers = torch.stack([values.double().flatten() ** k for k in (1, 2, 3, 4)])
    expected, variance = (
        torch.tensor([0.0, 1.0, 0.0, 3.0], device="cpu"),
        torch.tensor([1.0, 2.0, 15.0, 96.0], device="cpu"),
    )
    return float(((powers.mean(1) - expected) / (variance / values.numel()).sqrt()).abs().max())


@pytest.mark.parametrize("contender", NORMALS)
def test_philox_normal(contender: str, race: Any) -> None:
    case = f"{VALUES:,} values"
    if contender == "ours":
        error = deviation((philox("cpp")[:1024],), (philox("reference", min(PATHS, 1024)),))
        assert error <= FLOAT32
        ours = Row("philox_normal", case, contender, "a value", VALUES, "reference, same counters", deviation=error)
        ours.targets = {"eager": 6.0}
        race(ours, partial(philox, "cpp"))
        return
    if contender.startswith("jax") and not peers_jax.available():
        pytest.skip("jax is not installed")
    run = normals(contender)
    z = standard(run())
    assert z <= LARGEST_Z
    race(Row("philox_normal", case, contender, "a value", VALUES, f"moments, largest z {z:.2g}", deviation=0.0), run)


# --- the losses --------------------------------------------------------------------------------------------------

ROWS, WIDTH = (64, 64) if TINY else (4_096, 784)
Loss = Callable[[], tuple[Tensor, Tensor]]  # the loss and its gradient in the scores


class Losses:
    """ndsm_loss (control_variate) and dsm_loss, forward and backward, fused and as PyTorch users write them."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.scores = torch.randn(2 * ROWS, WIDTH, generator=generator, requires_grad=True, device="cpu")
        self.score = torch.randn(ROWS, WIDTH, generator=generator, requires_grad=True, device="cpu")
        self.noise = torch.randn(ROWS, WIDTH, generator=generator, device="cpu")
        self.std = 0.1 + torch.rand(ROWS, generator=generator, device="cpu")
        self.weight = torch.rand(ROWS, generator=generator, device="cpu")

    def ndsm_loss(self, backend: str) -> tuple[Tensor, Tensor]:
        loss = functional.ndsm_loss(
            self.scores, self.noise, self.std, estimator="control_variate", weight=self.weight, backend=backend
        )
        return loss.detach(), torch.autograd.grad(loss, self.scores)[0]

    def dsm_loss(self, backend: str) -> tuple[Tensor, Tensor]:
        loss = functional.dsm_loss(self.score, self.noise, self.weight, backend=backend)
        return loss.detach(), torch.autograd.grad(loss, self.score)[0]

    def eager_ndsm_loss(self) -> tuple[Tensor, Tensor]:
        s, h = self.scores.chunk(2)
        losses = 0.5 * s.square().sum(1) + (self.noise * (s - h)).sum(1) / self.std
        loss = (self.weight * losses).mean()
        return loss.detach(), torch.autograd.grad(loss, self.scores)[0]

    def eager_dsm_loss(self) -> tuple[Tensor, Tensor]:
        loss = (self.weight * 0.5 * (self.score - self.noise).square().sum(1)).mean()
        return loss.detach(), torch.autograd.grad(loss, self.score)[0]

    def run(self, op: str, contender: str) -> Loss:
        return partial(getattr(self, op), "cpp") if contender == "ours" else getattr(self, f"eager_{op}")

    def inputs(self, op: str) -> int:
        """Return the bytes of the large inputs."""
        return (self.scores if op == "ndsm_loss" else self.score).nbytes + self.noise.nbytes

    def footprint(self, op: str) -> int:
        """Return the bytes of inputs and gradient."""
        return self.inputs(op) + (self.scores if op == "ndsm_loss" else self.score).nbytes


@lru_cache
def losses() -> Losses:
    return Losses()


def loss_traffic(op: str) -> int:
    """Return the bytes that forward (inputs read) and backward (inputs read, gradient written) cannot do without.

    The second half of control_variate's scores is not needed for its gradient: it is read forward alone.
    """
    array = 4 * ROWS * WIDTH
    return (3 + 2 + 2) * array if op == "ndsm_loss" else (2 + 2 + 1) * array


@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("op", ["ndsm_loss", "dsm_loss"])
def test_loss(op: str, contender: str, race: Any) -> None:
    run = losses().run(op, contender)
    error = deviation(run(), getattr(losses(), op)("reference"))
    assert error <= FLOAT32
    case = f"forward + backward B={ROWS:,} d={WIDTH}"
    row = Row(op, case, contender, "a value", ROWS * WIDTH, "reference", deviation=error)
    if contender == "ours":
        bandwidth = roofline.bandwidth(losses().footprint(op))
        row.roofline_seconds = loss_traffic(op) / bandwidth
        row.roofline, row.targets = f"{bandwidth / 1e9:.3g} GB/s", {"eager": 3.0}
    race(row, run)


@pytest.mark.parametrize("contender", ["ours", "eager"])
@pytest.mark.parametrize("op", ["ndsm_loss", "dsm_loss"])
def test_loss_memory(op: str, contender: str, record: Record) -> None:
    """Ours allocates the gradient and a few numbers a row; the formula in PyTorch, which does not, is caught."""
    run = losses().run(op, contender)
    gradient, a_few = run()[1].nbytes, 16 * 4 * ROWS
    extra = memory.peak_allocated(run) - gradient
    inputs = losses().inputs(op)
    record.memory.append(Memory(op, f"B={ROWS:,} d={WIDTH}", contender, inputs, extra, "allocations"))
    if contender == "ours":
        assert 0 <= extra <= a_few
    else:
        assert extra >= losses().noise.nbytes


# --- mixture_score -----------------------------------------------------------------------------------------------

COMPONENTS, PIXELS, POINTS = (60_000, 64, 128) if TINY else (60_000, 784, 256)
MOST_MEMORY = 1.2  # times the inputs


@lru_cache
def density() -> tuple[Any, Tensor]:
    return memory.kernel_density(COMPONENTS, PIXELS, POINTS)


@pytest.mark.parametrize("contender", ["ours", "eager"])
def test_mixture_score(contender: str, rates: roofline.Rates, race: Any) -> None:
    mixture, x = density()
    few = x[: min(8, CHECKED_ROWS)]
    run = memory.CONTENDERS[contender](mixture)
    exact = functional.mixture_score(few.double(), mixture, backend="reference")
    own = deviation((functional.mixture_score(few, mixture, backend="reference"),), (exact,))
    error = deviation((run(x)[: len(few)],), (exact,))
    assert error <= (FLOAT32 + 10.0 * own if contender == "ours" else MATMUL_FORM)
    case = f"d={PIXELS} K={COMPONENTS:,} B={POINTS} spherical"
    row = Row("mixture_score", case, contender, "a sample", POINTS, "float64 reference", deviation=error)
    if contender == "ours":
        row.roofline_seconds = POINTS * rates.roofline(roofline.spherical_score_multiply_adds(PIXELS, COMPONENTS))
        row.roofline, row.targets = "arithmetic", {"eager": 1.0}
    race(row, partial(run, x))


@pytest.mark.parametrize("contender", ["ours", "eager"])
def test_mixture_score_memory(contender: str, record: Record) -> None:
    """Peak of a process of its own: the inputs and at most a fifth more; B x K weights, as in PyTorch, are caught."""
    found = memory.score_memory(contender, COMPONENTS, PIXELS, POINTS)
    case = f"d={PIXELS} K={COMPONENTS:,} B={POINTS} spherical"
    record.memory.append(
        Memory("mixture_score", case, contender, found["inputs"], found["extra"], "peak resident memory")
    )
    beyond = (found["inputs"] + found["extra"]) / found["inputs"]
    if contender == "ours":
        assert beyond <= MOST_MEMORY
    else:
        assert beyond > MOST_MEMORY


# --- noised_score ------------------------------------------------------------------------------------------------

NOISED_DIM, NOISED_ROWS = (8, 64) if TINY else (32, 4096)
AS_DEAR = 1.5  # at most, as the same mixture without noise of each row's own


@pytest.mark.parametrize("kind, components", [("spherical", 50), ("spherical", 1000), ("diag", 50), ("full", 50)])
@pytest.mark.parametrize("contender", ["ours", "mixture_score"])
def test_noised_score(contender: str, kind: str, components: int, rates: roofline.Rates, race: Any) -> None:
    mixture = random_mixture(kind, components, NOISED_DIM)
    x = mixture.sample(NOISED_ROWS, seed=1).float()
    variance = x[:, :1].abs().sqrt()[:, 0]
    if contender == "ours":
        run, reference = (
            partial(functional.noised_score, variance=variance, mixture=mixture, backend=b)
            for b in ("cpp", "reference")
        )
    else:
        run, reference = (partial(functional.mixture_score, mixture=mixture, backend=b) for b in ("cpp", "reference"))
    error = deviation((run(x)[:64],), (reference(x)[:64],))
    assert error <= FLOAT32 * 10.0
    case = f"d={NOISED_DIM} K={components:,} B={NOISED_ROWS:,} {kind}"
    row = Row("noised_score", case, contender, "a sample", NOISED_ROWS, "reference", deviation=error)
    if contender == "ours":
        count = roofline.noised_score_multiply_adds(NOISED_DIM, components, kind)
        row.roofline_seconds = NOISED_ROWS * rates.roofline(count)
        row.roofline, row.targets = "arithmetic", {"mixture_score": 1.0 / AS_DEAR}
    race(row, partial(run, x))
