"""Every op on small and odd shapes: what is compared with the reference, and what compute-sanitizer watches.

A case is a function of (backend, dtype) that calls an op, gradients included; noise and data are the same for all.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fastndsm import GaussianMixture, LangevinProcess, ResidualScore, functional, networks, sample, use_backend

from ..problems import TINY
from .device import device, normals

KINDS = ("spherical", "diag", "tied", "full")
SIZES = [(1, 1, 1), (33, 1, 3), (1031, 2, 8), (31, 3, 5), (257, 4, 300), (33, 5, 30), (65, 16, 10), (33, 67, 3)]
WIDE = [(65, 784, 10)]  # not for full and tied covariances, whose matrices take long to set up
SIZES, WIDE = ([(1, 1, 1), (5, 2, 3)], [(3, 67, 2)]) if TINY else (SIZES, WIDE)
# rows, d, K, hidden layers, and what the network is in
SAMPLED: list[tuple[int, int, int, tuple[int, ...], str]]
SAMPLED = [(1, 1, 1, (64,), "alone"), (5, 2, 3, (128, 128), "features")]
if not TINY:
    SAMPLED += [(1031, 2, 8, (128, 128, 128), "residual"), (67, 5, 30, (64, 64), "features")]
    SAMPLED += [(33, 16, 5, (128, 128), "residual"), (257, 3, 70, (64,) * 4, "alone")]
STEPS = 12
SEED, FIRST_PATH = -0x123456789ABCDEF, 2**32 - 9

Call = Callable[[str, torch.dtype], tuple[Tensor, ...]]
Options = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """An op at a size; the arguments of `call` are the backend and the dtype of the data."""

    op: str
    label: str
    call: Call


@cache
def process(kind: str, dim: int, components: int) -> LangevinProcess:
    """Means spread over about [-2, 2], standard deviations between 0.2 and 1, unequal weights."""
    generator = torch.Generator().manual_seed(10 * components + dim)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    def matrices(count: int) -> Tensor:
        basis = torch.linalg.qr(torch.randn(count, dim, dim, generator=generator, dtype=torch.float64))[0]
        return basis @ torch.diag_embed(30.0 ** -uniform(count, dim)) @ basis.mT

    weights, means = 0.2 + uniform(components), 4.0 * uniform(components, dim) - 2.0
    covariances = {
        "spherical": lambda: 30.0 ** -uniform(components),
        "diag": lambda: 30.0 ** -uniform(components, dim),
        "tied": lambda: matrices(1)[0],
        "full": lambda: matrices(components),
    }[kind]()
    mixture = GaussianMixture(weights / weights.sum(), means, covariances, kind).to(device())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the steps are large
        return LangevinProcess(mixture, T=0.4, n_steps=STEPS)


def sizes(kind: str) -> list[tuple[int, int, int]]:
    """Rows, d and K."""
    return SIZES + (WIDE if kind in ("spherical", "diag") else [])


def of(family: str) -> Iterator[Case]:
    """All cases of a family of ops."""
    return FAMILIES[family]()


def philox_cases() -> Iterator[Case]:
    steps = torch.arange(1031, device=device()) * 7
    for rows, dim in ((1, 1), (33, 3), (1031, 2), (257, 16), (33, 67)):

        def call(backend: str, dtype: torch.dtype, rows: int = rows, dim: int = dim) -> tuple[Tensor, ...]:
            options: Options = {"seed": SEED, "stream": 3, "dtype": dtype, "device": device(), "backend": backend}
            one = functional.philox_normal(rows, dim, step=5, first_path=FIRST_PATH, **options)
            each = functional.philox_normal(rows, dim, step=steps[:rows], first_path=2**56 - rows, **options)
            return one, each

        yield Case("philox_normal", f"{rows}x{dim}", call)


def differentiated(function: Callable[..., Tensor], *inputs: Tensor, seed: int = 9) -> tuple[Tensor, ...]:
    """The result, and its gradients along a fixed direction."""
    points = [x.detach().requires_grad_() for x in inputs]
    out = function(*points)
    direction = normals(*out.shape, seed=seed, dtype=out.dtype)
    return out.detach(), *torch.autograd.grad(out, points, direction)


def mixture_cases() -> Iterator[Case]:
    for kind in KINDS:
        for rows, dim, components in sizes(kind):
            mixture = process(kind, dim, components).reference
            x, v = (2.0 * normals(rows, dim, seed=i) for i in range(2))
            strided = torch.stack([x, v], dim=2)[..., 0]  # values 2 apart
            label = f"{kind} B={rows} d={dim} K={components}"

            def score(
                backend: str, dtype: torch.dtype, m: GaussianMixture = mixture, x: Tensor = strided
            ) -> tuple[Tensor, ...]:
                return differentiated(lambda x: functional.mixture_score(x, m, backend=backend), x.to(dtype))

            def log_prob(
                backend: str, dtype: torch.dtype, m: GaussianMixture = mixture, x: Tensor = x
            ) -> tuple[Tensor, ...]:
                return differentiated(lambda x: functional.mixture_log_prob(x, m, backend=backend), x.to(dtype))

            def hvp(
                backend: str, dtype: torch.dtype, m: GaussianMixture = mixture, x: Tensor = x, v: Tensor = strided
            ) -> tuple[Tensor, ...]:
                return (functional.mixture_hvp(x.to(dtype), v.to(dtype), m, backend=backend),)

            yield Case("mixture_score", label, score)
            yield Case("mixture_log_prob", label, log_prob)
            yield Case("mixture_hvp", label, hvp)


def simulate_cases() -> Iterator[Case]:
    """Each sample with a last step of its own, 0 and N among them."""
    for kind in KINDS:
        for rows, dim, components in sizes(kind):
            p = process(kind, dim, components)
            x0 = normals(rows, dim)
            steps = (torch.arange(rows, device=device()) * 5 + STEPS) % (STEPS + 1)
            label = f"{kind} B={rows} d={dim} K={components}"

            def simulate(
                backend: str, dtype: torch.dtype, p: LangevinProcess = p, x: Tensor = x0, n: Tensor = steps
            ) -> tuple[Tensor, ...]:
                options: Options = {"seed": SEED, "first_path": FIRST_PATH, "backend": backend}
                return (functional.simulate(x.to(dtype), p, n, **options),)

            def transition(
                backend: str, dtype: torch.dtype, p: LangevinProcess = p, x: Tensor = x0, n: Tensor = steps
            ) -> tuple[Tensor, ...]:
                options: Options = {"seed": SEED, "first_path": FIRST_PATH, "backend": backend}
                return functional.simulate_transition(x.to(dtype), p, n.clamp(min=1), **options)

            def target(
                backend: str, dtype: torch.dtype, p: LangevinProcess = p, x: Tensor = x0, n: Tensor = steps
            ) -> tuple[Tensor, ...]:
                options: Options = {"seed": SEED, "first_path": FIRST_PATH, "backend": backend}
                one = functional.simulate_target(x.to(dtype), p, n, **options)
                return *one, *functional.simulate_target(x.to(dtype), p, n, antithetic=True, **options)

            yield Case("simulate", label, simulate)
            yield Case("simulate_transition", label, transition)
            yield Case("simulate_target", label, target)


def reverse_step_cases() -> Iterator[Case]:
    for kind in KINDS:
        for rows, dim, components in sizes(kind):
            p = process(kind, dim, components)
            y, score = (normals(rows, dim, seed=i) for i in range(2))

            def call(
                backend: str, dtype: torch.dtype, p: LangevinProcess = p, y: Tensor = y, score: Tensor = score
            ) -> tuple[Tensor, ...]:
                made: list[Tensor] = []
                for n, method in ((3, "sde"), (0, "sde"), (3, "ode")):
                    options: Options = {"seed": SEED, "first_path": FIRST_PATH, "method": method, "backend": backend}
                    step = torch.full((), n, device=device())
                    run = partial(functional.reverse_step, process=p, step=step, **options)
                    made += differentiated(run, y.to(dtype), score.to(dtype))
                return tuple(made)

            yield Case("reverse_step", f"{kind} B={rows} d={dim} K={components}", call)


def loss_cases() -> Iterator[Case]:
    kinds = {"plain": ("plain", False), "antithetic": ("plain", True), "control_variate": ("control_variate", False)}
    for rows, dim in [(5, 3), (9, 67)] if TINY else [(1, 1), (1031, 2), (31, 33), (257, 16), (65, 784), (3, 5000)]:
        noise, std = normals(rows, dim, seed=1), 0.1 + normals(rows, seed=2).abs()
        for name, (estimator, antithetic) in kinds.items():
            scores = normals(rows * (1 if name == "plain" else 2), dim)

            fixed: Options = {"estimator": estimator, "antithetic": antithetic, "reduction": "none"}

            def ndsm(
                backend: str,
                dtype: torch.dtype,
                s: Tensor = scores,
                z: Tensor = noise,
                std: Tensor = std,
                fixed: Options = fixed,
            ) -> tuple[Tensor, ...]:
                z, std = z.to(dtype), std.to(dtype)
                return differentiated(lambda s: functional.ndsm_loss(s, z, std, **fixed, backend=backend), s.to(dtype))

            yield Case("ndsm_loss", f"{name} B={rows} d={dim}", ndsm)

        score = normals(rows, dim)

        def dsm(backend: str, dtype: torch.dtype, s: Tensor = score, target: Tensor = noise) -> tuple[Tensor, ...]:
            run = partial(functional.dsm_loss, reduction="none", backend=backend)
            return differentiated(run, s.to(dtype), target.to(dtype))

        yield Case("dsm_loss", f"B={rows} d={dim}", dsm)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """That of the samples."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def score_network(p: LangevinProcess, hidden: tuple[int, ...], kind: str) -> nn.Module:
    """With random weights in the last layer too, which starts at zero."""
    torch.manual_seed(0)
    features = kind == "features"
    net = networks.MLP(p.dim, hidden, in_dim=p.dim * (2 if features else 1), horizon=p.T)
    nn.init.normal_(net.last.weight, std=0.1)
    nn.init.normal_(net.film.out.weight, std=0.1)
    return net.to(device()) if kind == "alone" else ResidualScore(net.to(device()), p, features=features)


def sampled(net: nn.Module, p: LangevinProcess, n: int, backend: str, dtype: torch.dtype, **options: Any) -> Tensor:
    """By the backend's evaluation of the whole trajectory; of the reference, by the loop that calls the network."""
    fused = backend != "reference"
    with use_backend(backend), default_dtype(dtype):
        return sample(copy.deepcopy(net).to(dtype), p, n, fused=fused, cuda_graph=False, **options)


def sampler_cases() -> Iterator[Case]:
    for kind in KINDS:
        for rows, dim, components, hidden, what in SAMPLED:
            p = process(kind, dim, components)
            net = score_network(p, hidden, what)

            def call(
                backend: str, dtype: torch.dtype, n: int = rows, p: LangevinProcess = p, net: nn.Module = net
            ) -> tuple[Tensor, ...]:
                run = partial(sampled, net, p, n, backend, dtype, seed=SEED, first_path=FIRST_PATH)
                return run(method="sde"), run(method="ode")

            label = f"{kind} B={rows} d={dim} K={components} {what} {'x'.join(map(str, hidden))}"
            yield Case("sample_mlp", label, call)


FAMILIES: dict[str, Callable[[], Iterator[Case]]] = {
    "philox": philox_cases,
    "mixture": mixture_cases,
    "simulate": simulate_cases,
    "reverse step": reverse_step_cases,
    "loss": loss_cases,
    "mlp sampler": sampler_cases,
}
