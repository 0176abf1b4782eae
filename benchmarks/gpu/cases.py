"""Every op on small and odd shapes: what is compared with the reference, and what compute-sanitizer watches.

A case is a function of (backend, dtype) that calls an op, gradients included; noise and data are the same for all.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from fastndsm import (
    DriftProcess,
    GaussianMixture,
    LangevinProcess,
    ResidualScore,
    drifts,
    functional,
    networks,
    sample,
    use_backend,
)
from fastndsm.testing import CALLS, COVARIANCE_TYPES, FIRST_PATH, LOSSES, SEED, Arguments, random_arguments, strided
from fastndsm.testing import Call as OpCall

from ..problems import TINY
from .device import device, normals

Sizes = dict[str, list[tuple[int, int, int]]]  # rows, d and K by kind of covariances

SIZES = [(1, 1, 1), (33, 1, 3), (1031, 2, 8), (31, 3, 5), (257, 4, 300), (33, 5, 30), (65, 16, 10), (33, 67, 3)]
WIDE = [(65, 784, 10)]  # not for full and tied covariances, whose matrices take long to set up
SIZES, WIDE = ([(1, 1, 1), (5, 2, 3)], [(3, 67, 2)]) if TINY else (SIZES, WIDE)
# rows, d, K, hidden layers, and what the network is in
SAMPLED: list[tuple[int, int, int, tuple[int, ...], str]]
SAMPLED = [(1, 1, 1, (64,), "alone"), (5, 2, 3, (128, 128), "features")]
if not TINY:
    SAMPLED += [(1031, 2, 8, (128, 128, 128), "residual"), (67, 5, 30, (64, 64), "features")]
    SAMPLED += [(33, 16, 5, (128, 128), "residual"), (257, 3, 70, (64,) * 4, "alone")]
# Sizes that take configurations which those above do not, for the kinds of covariances that have them: scores with
# components shared out among programs, trajectories and reverse steps in between.
SHARED_OUT: Sizes = {
    "spherical": [(9, 2, 600), (33, 32, 12), (33, 67, 20), (9, 20, 1100)],
    "diag": [(9, 2, 600), (33, 32, 12), (9, 20, 1100)],
    "tied": [(9, 2, 600), (33, 32, 12), (33, 67, 20), (9, 20, 1100)],
    "full": [(9, 2, 600)],
}
BETWEEN: Sizes = {
    "spherical": [(33, 32, 3), (33, 64, 3), (33, 16, 12), (33, 32, 12), (33, 67, 20)],
    "diag": [(33, 64, 3), (33, 16, 12), (33, 67, 20)],
    "full": [(31, 3, 3), (5, 2, 12), (33, 8, 3), (33, 32, 3)],
}
LOSS_SIZES = [(1, 1), (1031, 2), (33, 3), (33, 7), (257, 16), (31, 29), (31, 33), (9, 100), (65, 784), (3, 5000)]
LOSS_SIZES = [(5, 3), (9, 67)] if TINY else LOSS_SIZES
NOISE_SIZES = [(1, 1), (33, 3), (1031, 2), (65, 7), (257, 16), (33, 67)]
DRIFT_SIZES = [(5, 3), (33, 3)] if TINY else [(1031, 2), (33, 3), (257, 16)]
DRIFT_OPS = ("drift_simulate", "drift_transition", "drift_target", "drift_reverse_steps")
NOT_CONTIGUOUS = {"mixture_score": "x", "mixture_hvp": "v"}  # op -> the argument that is not

Call = Callable[[str, torch.dtype], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """An op at a size; the arguments of `call` are the backend and the dtype of the data."""

    op: str
    label: str
    call: Call


@cache
def arguments(kind: str, rows: int, dim: int, components: int) -> Arguments:
    """Draw arguments on the device, in float32."""
    return random_arguments(kind, rows, dim, components, dtype=torch.float32, device=device())


def of(family: str, kind: str = "") -> Iterator[Case]:
    """Return all cases of a family of ops, or of those that have a kind of covariances, those of one."""
    if family not in BY_KIND:
        return ALONE[family]()
    return (case for each in ([kind] if kind else COVARIANCE_TYPES) for case in BY_KIND[family](each))


def case(op: str, label: str, inputs: Arguments, ways: Sequence[str] | None = None) -> Case:
    """Build the case of the op called in these ways, by default in all, with gradients, on the same inputs."""
    calls = [call for call in CALLS if call.op == op and (ways is None or call.way in ways)]
    if field := NOT_CONTIGUOUS.get(op):
        inputs = replace(inputs, **{field: strided(getattr(inputs, field))})
    return Case(op, label, partial(_called, calls, inputs))


def _called(calls: list[OpCall], inputs: Arguments, backend: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    cast = inputs.to(dtype)
    return tuple(found for call in calls for found in call.with_gradients(cast, backend))


def mixture_cases(ops: Sequence[str], more: Sizes, kind: str) -> Iterator[Case]:
    """Yield cases of ops of a mixture or its process, with this kind of covariances."""
    wide = WIDE if kind in ("spherical", "diag") else []
    for rows, dim, components in SIZES + wide + ([] if TINY else more.get(kind, [])):
        inputs, label = arguments(kind, rows, dim, components), f"{kind} B={rows} d={dim} K={components}"
        yield from (case(op, label, inputs) for op in ops)


def philox_cases() -> Iterator[Case]:
    for rows, dim in NOISE_SIZES:
        yield case("philox_normal", f"{rows}x{dim}", arguments("spherical", rows, dim, 1))


def loss_cases() -> Iterator[Case]:
    for rows, dim in LOSS_SIZES:
        inputs, label = arguments("spherical", rows, dim, 1), f"B={rows} d={dim}"
        yield from (case("ndsm_loss", f"{name} {label}", inputs, [name]) for name in LOSSES)
        yield case("dsm_loss", label, inputs)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype to that of the samples."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def score_network(p: LangevinProcess, hidden: tuple[int, ...], kind: str) -> nn.Module:
    """Build a network with random weights in the last layer too, which starts at zero."""
    torch.manual_seed(0)
    features = kind == "features"
    net = networks.MLP(p.dim, hidden, in_dim=p.dim * (2 if features else 1), horizon=p.T)
    nn.init.normal_(net.last.weight, std=0.1)
    nn.init.normal_(net.film.out.weight, std=0.1)
    return net.to(device()) if kind == "alone" else ResidualScore(net.to(device()), p, features=features)


def sampled(net: nn.Module, p: LangevinProcess, n: int, backend: str, dtype: torch.dtype, **options: Any) -> Tensor:
    """Sample by the backend's evaluation of the whole trajectory; the reference has the loop that calls the network."""
    fused = backend != "reference"
    with use_backend(backend), default_dtype(dtype):
        return sample(copy.deepcopy(net).to(dtype), p, n, fused=fused, cuda_graph=False, **options)


def sampler_cases(kind: str) -> Iterator[Case]:
    for rows, dim, components, hidden, what in SAMPLED:
        p = arguments(kind, rows, dim, components).process
        net = score_network(p, hidden, what)

        def call(
            backend: str, dtype: torch.dtype, n: int = rows, p: LangevinProcess = p, net: nn.Module = net
        ) -> tuple[Tensor, ...]:
            run = partial(sampled, net, p, n, backend, dtype, seed=SEED, first_path=FIRST_PATH)
            return run(method="sde"), run(method="ode")

        label = f"{kind} B={rows} d={dim} K={components} {what} {'x'.join(map(str, hidden))}"
        yield Case("sample_mlp", label, call)


@cache
def drift_process(dim: int) -> DriftProcess:
    """Build the process of a drift with a parameter and a time, which is compiled where a backend can do it."""
    pull = torch.tensor(1.5, device=device())
    well = drifts.Sum(drifts.DoubleWell(), lambda x, t: pull.to(x.dtype) * torch.tanh(x.roll(1, 1)) * t[:, None])
    return DriftProcess(well, GaussianMixture.standard_normal(dim), T=0.5, n_steps=8, rate=1.0).to(device())


def drift_calls(p: DriftProcess, x: Tensor, steps: Tensor) -> dict[str, Callable[[], Any]]:
    """Return the calls of the process of a drift that run its program, by their ops."""
    paths, back = {"seed": SEED, "first_path": FIRST_PATH}, {"prediction": "linear", "rate": x[:, 0].abs()}
    return {
        "drift_simulate": lambda: (functional.simulate(x, p, steps, **paths),),
        "drift_transition": lambda: functional.simulate_transition(x, p, steps.clamp(min=1), **paths),
        "drift_target": lambda: functional.simulate_target(x, p, steps, antithetic=True, **paths),
        "drift_reverse_steps": lambda: (functional.reverse_steps(x, x.sin(), x.cos(), p, 8, 1, **back, **paths),),
    }


def drift_cases() -> Iterator[Case]:
    for rows, dim in DRIFT_SIZES:
        x0, steps = normals(rows, dim), torch.arange(rows, device=device()) % 9
        for op in DRIFT_OPS:

            def call(
                backend: str, dtype: torch.dtype, op: str = op, dim: int = dim, x0: Tensor = x0, steps: Tensor = steps
            ) -> tuple[Tensor, ...]:
                with use_backend(backend):
                    return tuple(drift_calls(drift_process(dim), x0.to(dtype), steps)[op]())

            yield Case(op, f"B={rows} d={dim}", call)


BY_KIND: dict[str, Callable[[str], Iterator[Case]]] = {
    "mixture": partial(mixture_cases, ("mixture_score", "mixture_log_prob", "mixture_hvp"), SHARED_OUT),
    "simulate": partial(mixture_cases, ("simulate", "simulate_transition", "simulate_target"), BETWEEN),
    "reverse steps": partial(mixture_cases, ("reverse_steps",), BETWEEN),
    "mlp sampler": sampler_cases,
}
ALONE: dict[str, Callable[[], Iterator[Case]]] = {"loss": loss_cases, "philox": philox_cases, "drift": drift_cases}
FAMILIES = (*BY_KIND, *ALONE)
