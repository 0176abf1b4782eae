"""Every op of the backend under test against the float64 reference on the same device and the same noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastndsm import functional, sample
from fastndsm.sampler import FEWEST_STEPS_FOR_A_GRAPH

from ..problems import deviation
from . import cases
from .device import backend, device, normals, refusal
from .log import Check, Log

FLOAT32 = 1e-5  # plus ten times the reference's own error in float32
NOT_ASKED_FOR = ("mixture_sample", "simulate_transition")  # of a GPU backend; the reference serves them


def check_family(log: Log, family: str) -> None:
    """All cases of a family; an op that the backend has not is one failure."""
    refused: set[str] = set()
    for case in cases.of(family):
        if case.op in refused:
            continue
        reason = refusal(case.op)
        if reason is not None:
            refused.add(case.op)
            log.check(Check(case.op, "served", reason, case.op in NOT_ASKED_FOR))
            continue
        log.attempt(f"{case.op} {case.label}", partial(check_case, case, log))


def check_case(case: cases.Case, log: Log) -> None:
    exact = case.call("reference", torch.float64)
    own = deviation(case.call("reference", torch.float32), exact)
    found = case.call(backend(), torch.float32)
    compare(case.op, case.label, found, exact, FLOAT32 + 10.0 * own, log)


def compare(
    op: str, label: str, found: tuple[Tensor, ...], exact: tuple[Tensor, ...], bound: float, log: Log
) -> None:
    """Largest error over the largest value, of each result."""
    shapes = [tuple(t.shape) for t in found], [tuple(t.shape) for t in exact]
    if shapes[0] != shapes[1]:
        log.check(Check(op, label, f"shapes {shapes[0]}, expected {shapes[1]}", False))
        return
    error = max(deviation((f,), (e,)) for f, e in zip(found, exact, strict=True))
    nan = any(bool(t.isnan().any()) for t in found)  # max() may pass over one
    passed = error <= bound and not nan
    log.check(Check(op, label, f"error {'NaN' if nan else f'{error:.2g}'}, at most {bound:.2g}", passed))


def check_low_precision(log: Log) -> None:
    """Losses of bfloat16 and float16: error against float64 at most twice that of PyTorch in the same dtype."""
    rows, dim = (5, 33) if device().type == "cpu" else (257, 784)
    std = 0.2 + normals(rows, seed=2).abs()
    for dtype in (torch.bfloat16, torch.float16):
        score, noise = normals(rows, dim).to(dtype), normals(rows, dim, seed=1).to(dtype)

        def ours(s: Tensor, z: Tensor) -> Tensor:
            return functional.ndsm_loss(s, z, std, estimator="plain", reduction="none", backend=backend())

        def eager(s: Tensor, z: Tensor) -> Tensor:
            return 0.5 * s.square().sum(1) + (z * s).sum(1) / std.to(s.dtype)

        def both(function: Callable[..., Tensor], s: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            return cases.differentiated(lambda s: function(s, z), s)

        exact = both(eager, score.double(), noise.double())
        for name, found, peer, truth in zip(
            ("loss", "gradient"), both(ours, score, noise), both(eager, score, noise), exact, strict=True
        ):
            error, allowed = deviation((found,), (truth,)), 2.0 * deviation((peer,), (truth,))
            said = f"error {error:.2g}, twice PyTorch's {allowed:.2g}"
            log.check(Check("ndsm_loss", f"{dtype} {name}", said, error <= allowed))


def check_determinism(log: Log) -> None:
    """The same call twice, and the same paths in another batch: the same bits."""
    p = cases.process("diag", 2, 3)
    x0 = normals(67, 2)

    def run(x: Tensor, first_path: int) -> Tensor:
        return functional.simulate(x, p, seed=1, first_path=first_path, backend=backend())

    whole = run(x0, 0)
    log.check(Check("simulate", "twice", "bit for bit", torch.equal(run(x0, 0), whole)))
    parts = torch.cat([run(x0[:13], 0), run(x0[13:], 13)])
    log.check(Check("simulate", "split in two", "bit for bit", torch.equal(parts, whole)))


def check_sampler(log: Log) -> None:
    """Replays of a CUDA graph give the bits of the plain loop and leave PyTorch's random numbers where it does."""
    p = cases.process("diag", 2, 3)
    if device().type != "cuda":
        plain, auto = (sample(lambda x, t: -x, p, 8, seed=1, cuda_graph=how) for how in (False, "auto"))
        log.check(Check("sample", "auto on a CPU", "bit for bit", torch.equal(plain, auto)))
        return
    assert p.n_steps >= FEWEST_STEPS_FOR_A_GRAPH
    weight = normals(2, 2)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return -torch.tanh(x @ weight) * torch.rand_like(x) / (1.0 + t[:, None])

    for method in ("sde", "ode"):
        outcomes = []
        for how in (False, True):
            torch.manual_seed(0)
            y = sample(network, p, 1000, method=method, seed=1, batch_size=700, cuda_graph=how)
            outcomes.append((y, torch.cuda.get_rng_state().clone()))
        (plain, state), (replayed, state_after) = outcomes
        log.check(Check("sample", f"{method}, graph", "bit for bit", torch.equal(replayed, plain)))
        log.check(Check("sample", f"{method}, random numbers", "as the plain loop", torch.equal(state_after, state)))

    def waits(x: Tensor, t: Tensor) -> Tensor:
        return -x * float(t[0])

    plain, fallen_back = (sample(waits, p, 100, seed=1, cuda_graph=how) for how in (False, "auto"))
    log.check(Check("sample", "a network that waits", "the plain loop", torch.equal(plain, fallen_back)))
    again = sample(network, p, 100, seed=1, cuda_graph=True)
    log.check(Check("sample", "recorded after that", "finite", bool(again.isfinite().all())))
