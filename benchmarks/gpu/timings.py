"""The ceilings, and every op that is not a simulation: the backends', and then eager PyTorch's and torch.compile's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from fastndsm import GaussianMixture, LangevinProcess, functional, sample, use_backend
from fastndsm.testing import deviation, generator, random_mixture

from .. import memory, peers, roofline
from ..problems import TINY, MatmulForm
from ..rows import Row
from . import cases, ceilings
from .device import Run, device, gpu_sets, lender, normals, refusal, timed, wall_clock
from .log import Log
from .simulations import FLOAT32, MATMUL_FORM, PLANAR

LOSS_SHARE = 0.8  # of copy bandwidth, to reach
LOSS_ROWS, LOSS_DIM = (64, 64) if TINY else (4096, 784)
COMPONENTS, PIXELS, POINTS = (600, 64, 16) if TINY else (60_000, 784, 1024)
PATHS = 64 if TINY else 1 << 22
SAMPLES, SAMPLE_STEPS = (16, 12) if TINY else (4096, 100)
WIDTHS = (64, 128)
FUSED = 5.0  # times ahead of the loop, to reach
REVERSE_STEPS = 3 if TINY else 20
FEW = 1024  # rows compared with the reference
REVERSE_SHARE, AHEAD_OF_EAGER = 0.5, 5.0  # of the roofline, and times ahead of the loop of eager steps, to reach
REVERSED = [  # covariances, d, K, rows
    (kind, dim, components, 64 if TINY else rows)
    for kind, dim, components, rows in (
        ("spherical", 2, 8, 1 << 20),
        ("spherical", 16, 10, 1 << 17),
        ("spherical", 784, 10, 4096),
        ("full", 16, 10, 1 << 16),
    )
]
COMPILE: dict[str, Any] = {"backend": "eager"} if TINY else {}


def time_ceilings(log: Log) -> None:
    log.write("rates", ceilings.measure())


def time_ops(log: Log, backend: str, group: str) -> None:
    """Time the ops of a group that the backend has of its own."""
    for op, label, ours, _ in groups()[group]:
        if lender(backend, op) is None:
            log.attempt(f"{op} {label}".strip(), partial(_if_served, op, ours, backend, log))


def time_peers(log: Log, group: str) -> None:
    """Time what else does the same, on the same cases."""
    for op, label, _, peers_of in groups()[group]:
        log.attempt(f"{op} {label}".strip(), partial(peers_of, log))


def time_samplers(log: Log, backend: str) -> None:
    for width in WIDTHS:
        log.attempt(f"sample {width}", partial(time_sampler, width, backend, log))


Ours, Peers = Callable[[str, Log], None], Callable[[Log], None]


def groups() -> dict[str, list[tuple[str, str, Ours, Peers]]]:
    """Return op, label, what times ours and what times the peers, by the name of a section."""
    losses: list[tuple[str, str, Ours, Peers]] = []
    for dtype, mean in ((torch.float32, False), (torch.bfloat16, False), (torch.float32, True)):
        for op in (NdsmLoss, DsmLoss):
            raced = LossRace(op, dtype, mean)
            losses.append((op.name, raced.case, raced.time_ours, raced.time_peers))
    reverse: list[tuple[str, str, Ours, Peers]] = [
        ("reverse_steps", f"{kind} d={dim}", partial(time_reverse_steps, shape), partial(time_eager_steps, shape))
        for shape in REVERSED
        for kind, dim, *_ in [shape]
    ]
    return {
        "noise": [("philox_normal", "", time_philox, time_eager_normals)],
        "losses": losses,
        "mixture score": [("mixture_score", "", time_mixture_score, time_eager_score)],
        "reverse steps": reverse,
    }


def _if_served(op: str, run: Callable[[str, Log], None], backend: str, log: Log) -> None:
    reason = refusal(backend, op)
    if reason is not None:
        raise NotImplementedError(f"backend {backend}: {reason}")
    run(backend, log)


def agree(found: tuple[Tensor, ...], exact: tuple[Tensor, ...], bound: float) -> str:
    error = deviation(found, exact)
    if not error <= bound:
        raise AssertionError(f"error {error:.2g}, at most {bound:.2g}")
    return f"float64 reference, error {error:.2g}"


def time_philox(backend: str, log: Log) -> None:
    def draw(n: int, dtype: torch.dtype, how: str) -> Tensor:
        return functional.philox_normal(n, 16, seed=1, dtype=dtype, device=device(), backend=how)

    rows = min(PATHS, 1024)
    check = agree((draw(rows, torch.float32, backend),), (draw(rows, torch.float64, "reference"),), FLOAT32)
    row = Row("philox_normal", f"{PATHS:,}x16", backend, "a value", PATHS * 16, check)
    row.normals, row.bytes = PATHS * 16, 4 * PATHS * 16
    _log(log, row, partial(draw, PATHS, torch.float32, backend))


def time_eager_normals(log: Log) -> None:
    out = torch.empty(PATHS, 16, device=device())
    peer = Row("philox_normal", f"{PATHS:,}x16", "eager", "a value", PATHS * 16, "")
    _log(log, peer, out.normal_)


def _log(log: Log, row: Row, runs: Run | list[Run], graph: bool = True) -> None:
    timing = timed(runs, graph=graph)
    row.seconds, row.how = timing.seconds, timing.how
    log.row(row)


# --- losses ------------------------------------------------------------------------------------------------------


class Loss:
    """A loss of LOSS_ROWS samples, forward and backward: from a gradient for each, or from their weighted mean."""

    name: str
    arrays: int  # of LOSS_ROWS x LOSS_DIM that are read and written
    pairs: int  # scores a sample

    def __init__(self, dtype: torch.dtype, mean: bool, seed: int) -> None:
        self.mean = mean
        self.scores = normals(self.pairs * LOSS_ROWS, LOSS_DIM, seed=seed, dtype=dtype).requires_grad_()
        self.noise = normals(LOSS_ROWS, LOSS_DIM, seed=seed + 1, dtype=dtype)
        self.std, self.weight = (0.1 + normals(LOSS_ROWS, seed=i).abs() for i in (2, 3))
        self.grad = normals(LOSS_ROWS, seed=4)

    def double(self) -> Loss:
        """Return the same in float64."""
        other = copy.copy(self)
        other.scores = self.scores.detach().double().requires_grad_()
        for name in ("noise", "std", "weight", "grad"):
            setattr(other, name, getattr(self, name).double())
        return other

    def losses(self, how: str) -> Tensor:
        """Return the library's losses: [B], or the weighted mean."""
        raise NotImplementedError

    def formula(self, scores: Tensor, noise: Tensor, std: Tensor, weight: Tensor) -> Tensor:
        """Return the losses as one writes them in PyTorch, [B], or the weighted mean."""
        raise NotImplementedError

    def ours(self, how: str) -> tuple[Tensor, Tensor]:
        return self._backward(self.losses(how))

    def peer(self, formula: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        return self._backward(formula(self.scores, self.noise, self.std, self.weight))

    def _backward(self, losses: Tensor) -> tuple[Tensor, Tensor]:
        grad = None if self.mean else self.grad
        return losses.detach(), torch.autograd.grad(losses, self.scores, grad)[0]


class NdsmLoss(Loss):
    """ndsm_loss, control_variate."""

    name, pairs = "ndsm_loss", 2
    # forward two of scores and the noise; backward the first of scores and the noise, and two written
    arrays = 3 + 2 + 2

    def losses(self, how: str) -> Tensor:
        return functional.ndsm_loss(
            self.scores,
            self.noise,
            self.std,
            estimator="control_variate",
            weight=self.weight if self.mean else None,
            reduction="mean" if self.mean else "none",
            backend=how,
        )

    def formula(self, scores: Tensor, noise: Tensor, std: Tensor, weight: Tensor) -> Tensor:
        s, h = scores.float().chunk(2)
        losses = 0.5 * s.square().sum(1) + (noise.float() * (s - h)).sum(1) / std
        return (weight * losses).mean() if self.mean else losses


class DsmLoss(Loss):
    """dsm_loss, the path estimator's."""

    name, pairs = "dsm_loss", 1
    arrays = 2 + 2 + 1

    def losses(self, how: str) -> Tensor:
        weight, reduction = (self.weight, "mean") if self.mean else (None, "none")
        return functional.dsm_loss(self.scores, self.noise, weight, reduction, backend=how)

    def formula(self, scores: Tensor, noise: Tensor, std: Tensor, weight: Tensor) -> Tensor:
        losses = 0.5 * (scores.float() - noise.float()).square().sum(1)
        return (weight * losses).mean() if self.mean else losses


class LossRace:
    """A loss in a dtype, of each sample or their weighted mean."""

    def __init__(self, kind: type[Loss], dtype: torch.dtype, mean: bool) -> None:
        self.kind, self.dtype, self.mean = kind, dtype, mean
        of = "weighted mean" if mean else "each sample"
        said = str(dtype).removeprefix("torch.")
        self.case = f"{of}, forward + backward B={LOSS_ROWS:,} d={LOSS_DIM} {said}"

    @cached_property
    def sets(self) -> list[Loss]:
        """Inputs that a cache does not hold all of."""
        one = self.kind(self.dtype, self.mean, 0)
        count = gpu_sets(one.scores.nbytes + one.noise.nbytes)
        return [one, *(self.kind(self.dtype, self.mean, 10 * i) for i in range(1, count))]

    @cached_property
    def exact(self) -> tuple[Tensor, ...]:
        return self.sets[0].double().ours("reference")

    def row(self, contender: str, found: tuple[Tensor, ...], configuration: str = "") -> Row:
        bound = FLOAT32 if self.dtype == torch.float32 else 2.0 * torch.finfo(self.dtype).eps
        check, count = agree(found, self.exact, bound), LOSS_ROWS * LOSS_DIM
        made = Row(self.kind.name, self.case, contender, "a value", count, check, configuration=configuration)
        made.bytes = self.kind.arrays * count * self.sets[0].noise.element_size()
        return made

    def time_ours(self, backend: str, log: Log) -> None:
        ours = self.row(backend, self.sets[0].ours(backend))
        ours.share, ours.targets = None if self.mean else LOSS_SHARE, {"eager": 1.0}
        _log(log, ours, [partial(s.ours, backend) for s in self.sets])

    def time_peers(self, log: Log) -> None:
        one = self.sets[0]
        _log(log, self.row("eager", one.peer(one.formula)), [partial(s.peer, s.formula) for s in self.sets])
        compiled = torch.compile(one.formula, fullgraph=True, dynamic=False, **COMPILE)
        row = self.row("compiled", one.peer(compiled), "in one graph")
        _log(log, row, [partial(s.peer, compiled) for s in self.sets])


# --- the score and the reverse process ---------------------------------------------------------------------------


class Density:
    """A kernel density of so many points: two products with softmax between, at float32's precision."""

    def __init__(self) -> None:
        mixture, x = memory.kernel_density(COMPONENTS, PIXELS, POINTS)
        self.mixture, self.x = mixture.to(device()), x.to(device())
        self.few = self.x[:8]
        self.exact = self.score(self.few.double(), "reference")

    def score(self, x: Tensor, how: str) -> Tensor:
        return functional.mixture_score(x, self.mixture, backend=how)

    def row(self, name: str, run: Callable[[Tensor], Tensor], bound: float) -> Row:
        case = f"d={PIXELS} K={COMPONENTS:,} B={POINTS:,} spherical"
        check = agree((run(self.x)[: len(self.few)],), (self.exact,), bound)
        return Row("mixture_score", case, name, "a sample", POINTS, check)


def time_mixture_score(backend: str, log: Log) -> None:
    density = Density()
    run = partial(density.score, how=backend)
    own = deviation((density.score(density.few, "reference"),), (density.exact,))
    row = density.row(backend, run, FLOAT32 + 10.0 * own)
    row.multiply_adds = POINTS * roofline.spherical_score_multiply_adds(PIXELS, COMPONENTS)
    _log(log, row, partial(run, density.x))


def time_eager_score(log: Log) -> None:
    density = Density()
    run = memory.matmul_score(density.mixture)
    _log(log, density.row("eager", run, 1e-3), partial(run, density.x))


class Reversed:
    """Steps of the reverse process from T to 0 with a linearised residual; y, held, slope and rate are random."""

    def __init__(self, kind: str, dim: int, components: int, rows: int, steps: int = REVERSE_STEPS) -> None:
        mixture = random_mixture(kind, components, dim, seed=generator(dim), overlapping=True).to(device())
        self.steps, self.process = steps, LangevinProcess(mixture, T=0.02 * steps, n_steps=steps)
        self.tensors = *(normals(rows, dim, seed=i) for i in range(3)), normals(rows, seed=3).square()
        self.coefficients = self.process.reverse_scheme("sde", "linear").coefficients(steps, 0)
        self.silent = self.coefficients.clone()
        self.silent[4] = 0.0
        self.bounds = torch.tensor([steps, 0], device=device())
        self.seed = torch.ones((), dtype=torch.int64, device=device())
        self.case = f"{kind} d={dim} K={components} B={rows:,} steps={steps}"
        self.score = _eager_score(mixture.float())
        # A y, X slope, C times their sum, B grad log pi, S xi; x, e^-x, 1 - e^-x, f(2 x), and A, B, C and S by them
        each = _score_multiply_adds(kind, dim, components) + 5 * dim + (1 + roofline.EXPONENTIAL + 1 + 2 + 4)
        self.multiply_adds, self.normals = rows * steps * each, rows * (steps - 1) * dim
        self.count = rows * steps

    def ours(self, how: str, tensors: tuple[Tensor | None, ...] | None = None, noise: bool = True) -> tuple[Tensor]:
        y, held, slope, rate = tensors or self.tensors
        table = self.coefficients if noise else self.silent
        return (self.process.dynamics.reverse_steps(y, held, slope, rate, self.bounds, table, self.seed, 0, how),)

    def eager(self, noise: bool = True) -> tuple[Tensor]:
        y, held, slope, rate = self.tensors
        for n in reversed(range(self.steps)):
            decay, drift, weight, position, std, rate_scale = self.numbers[n]
            x = (rate_scale * rate)[:, None].clamp(min=1e-30)
            mean = -torch.expm1(-x) / x
            y = decay * (-x).exp() * y + mean * (weight * (held + position * slope) + drift * self.score(y))
            if noise and n > 0:
                y = y + std * (-torch.expm1(-2.0 * x) / (2.0 * x)).sqrt() * torch.randn_like(y)
        return (y,)

    @cached_property
    def numbers(self) -> list[list[float]]:
        return self.coefficients.T.tolist()


def _eager_score(m: GaussianMixture) -> Callable[[Tensor], Tensor]:
    """Return grad log pi as one writes it in matrix products: one each way for axes, one for all full covariances."""
    log_weights = m.weights.log()
    if m.covariance_type == "spherical":
        precisions = (1.0 / m.covariances)[:, None].expand_as(m.means)
        offsets = log_weights + 0.5 * precisions.log().sum(1) - 0.5 * (precisions * m.means**2).sum(1)
        return partial(
            peers.score, peers.OneProduct(MatmulForm(precisions * m.means, precisions.contiguous(), offsets))
        )
    n_components, dim = m.means.shape
    precision = torch.linalg.inv(m.covariances.double())
    pulls = torch.einsum("kij,kj->ki", precision, m.means.double())
    offsets = log_weights + (0.5 * (torch.logdet(precision) - (pulls * m.means).sum(1))).float()
    side_by_side = precision.permute(1, 0, 2).reshape(dim, n_components * dim).float()
    pulls = pulls.float()

    def score(x: Tensor) -> Tensor:
        px = (x @ side_by_side).view(len(x), n_components, dim)
        r = (offsets + (x[:, None] * (pulls - 0.5 * px)).sum(2)).softmax(1)
        return (r[:, :, None] * (pulls - px)).sum(1)

    return score


def _score_multiply_adds(kind: str, dim: int, components: int) -> int:
    """Count those of one sample; full: P_k x, the logit's product and the mean, d^2 + 2 d, and 10 a component, d."""
    if kind == "spherical":
        return roofline.spherical_score_multiply_adds(dim, components)
    return components * (dim * dim + 2 * dim + 10) + dim


def _agree_on_few(problem: Reversed, found: tuple[Tensor, ...], noise: bool, bound: float) -> str:
    few = tuple(t[:FEW].double() for t in problem.tensors)
    return agree(tuple(t[:FEW] for t in found), problem.ours("reference", few, noise), bound)


def time_reverse_steps(shape: tuple[str, int, int, int], backend: str, log: Log) -> None:
    problem = Reversed(*shape)
    few = tuple(t[:FEW] for t in problem.tensors)
    own = deviation(problem.ours("reference", few), problem.ours("reference", tuple(t.double() for t in few)))
    check = _agree_on_few(problem, problem.ours(backend), True, FLOAT32 + 10.0 * own)
    row = Row("reverse_steps", problem.case, backend, "a sample-step", problem.count, check)
    row.multiply_adds, row.normals = problem.multiply_adds, problem.normals
    row.bytes = problem.tensors[0].nbytes + sum(t.nbytes for t in problem.tensors)
    row.share, row.targets = REVERSE_SHARE, {"eager": AHEAD_OF_EAGER}
    _log(log, row, partial(problem.ours, backend))


def time_eager_steps(shape: tuple[str, int, int, int], log: Log) -> None:
    problem = Reversed(*shape)
    check = _agree_on_few(problem, problem.eager(False), False, MATMUL_FORM)
    peer = Row("reverse_steps", problem.case, "eager", "a sample-step", problem.count, f"without noise: {check}")
    _log(log, peer, problem.eager)


def time_sampler(width: int, backend: str, log: Log) -> None:
    """Time whole calls of sample: the backend evaluates the MLP by itself, or the loop does, also as a CUDA graph."""
    process = LangevinProcess(copy.deepcopy(PLANAR.mixture).float(), T=2.0, n_steps=SAMPLE_STEPS)
    network = cases.score_network(process, (width,) * 3, "residual")
    case = f"MLP 3x{width} B={SAMPLES:,} N={SAMPLE_STEPS}"

    def row(contender: str, check: str, configuration: str, run: Run) -> None:
        made = Row("sample", case, contender, "a step", SAMPLE_STEPS, check, configuration=configuration)
        made.targets = {"triton": FUSED} if contender == backend == "cuda" else {}
        timing = wall_clock(run)
        made.seconds, made.how = timing.seconds, timing.how
        log.row(made)

    if refusal(backend, "sample_mlp") is None:
        few = min(SAMPLES, 1024)
        draw = partial(cases.sampled, network, process, few, seed=1)
        exact = draw("reference", torch.float64)
        own = deviation((draw("reference", torch.float32),), (exact,))
        check = agree((draw(backend, torch.float32),), (exact,), FLOAT32 + 10.0 * own)
        with use_backend(backend):
            row(backend, check, "one call", partial(sample, network, process, SAMPLES, seed=1, fused=True))
        return
    loop = partial(sample, network, process, SAMPLES, seed=1, fused=False)
    graph, plain = partial(loop, cuda_graph=device().type == "cuda"), partial(loop, cuda_graph=False)
    if not torch.equal(graph(), plain()):
        raise AssertionError("a CUDA graph does not give the bits of the plain loop")
    row(backend, "bit for bit as the plain loop", "a CUDA graph" if device().type == "cuda" else "", graph)
    row("plain", "", "", plain)
