"""Every op of the backends under test against the float64 reference on the same device and the same noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from fastndsm import functional, sample
from fastndsm.sampling.sampler import FEWEST_EVALUATIONS_FOR_A_GRAPH
from fastndsm.testing import deviation, differentiated

from . import cases, paths
from .device import device, lender, normals, refusal
from .log import Check, Log

FLOAT32 = 1e-5  # plus ten times the reference's own error in float32
NOT_ASKED_FOR = [("triton", "sample_mlp"), ("reference", "sample_mlp")]  # they call the network at every step
NOT_ASKED_FOR += [("cuda", op) for op in cases.DRIFT_OPS]  # Triton alone takes in a drift


def check_family(log: Log, backend: str, family: str, kind: str = "") -> None:
    """Check all cases of a family, or those of a kind of covariances; an op that is not there at all is one failure."""
    reasons: dict[str, str | None] = {}
    for case in cases.of(family, kind):
        if case.op not in reasons:
            reasons[case.op] = reason = refusal(backend, case.op)
            if reason is not None:
                log.check(Check(case.op, "served", reason, (backend, case.op) in NOT_ASKED_FOR))
            elif other := lender(backend, case.op):
                reasons[case.op] = f"{other}'s"
                log.check(Check(case.op, "served", f"{other}'s", True))
        if reasons[case.op] is None:
            log.attempt(f"{case.op} {case.label}", partial(check_case, backend, case, log))


def check_case(backend: str, case: cases.Case, log: Log) -> None:
    """Check a case; a backend need not serve every shape, only some of an op."""
    try:
        found = case.call(backend, torch.float32)
    except NotImplementedError as error:
        log.write("refused", {"op": case.op, "case": case.label, "reason": str(error)})
        return
    exact = case.call("reference", torch.float64)
    own = deviation(case.call("reference", torch.float32), exact)
    compare(case.op, case.label, found, exact, FLOAT32 + 10.0 * own, log)


def compare(op: str, label: str, found: tuple[Tensor, ...], exact: tuple[Tensor, ...], bound: float, log: Log) -> None:
    """Return the largest error over the largest value, of each result."""
    shapes = [tuple(t.shape) for t in found], [tuple(t.shape) for t in exact]
    if shapes[0] != shapes[1]:
        log.check(Check(op, label, f"shapes {shapes[0]}, expected {shapes[1]}", False))
        return
    error = max(deviation((f,), (e,)) for f, e in zip(found, exact, strict=True))
    nan = any(bool(t.isnan().any()) for t in found)  # max() may pass over one
    passed = error <= bound and not nan
    log.check(Check(op, label, f"error {'NaN' if nan else f'{error:.2g}'}, at most {bound:.2g}", passed))


def check_low_precision(log: Log, backend: str) -> None:
    """Check losses of bfloat16 and float16: error against float64 at most twice that of PyTorch in the same dtype."""
    if lender(backend, "ndsm_loss"):
        return
    rows, dim = (5, 33) if device().type == "cpu" else (257, 784)
    std = 0.2 + normals(rows, seed=2).abs()
    for dtype in (torch.bfloat16, torch.float16):
        score, noise = normals(rows, dim).to(dtype), normals(rows, dim, seed=1).to(dtype)

        def ours(s: Tensor, z: Tensor) -> Tensor:
            return functional.ndsm_loss(s, z, std, estimator="plain", reduction="none", backend=backend)

        def eager(s: Tensor, z: Tensor) -> Tensor:
            return 0.5 * s.square().sum(1) + (z * s).sum(1) / std.to(s.dtype)

        def both(function: Callable[..., Tensor], s: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            return differentiated(lambda s: function(s, z), s)

        exact = both(eager, score.double(), noise.double())
        for name, found, peer, truth in zip(
            ("loss", "gradient"), both(ours, score, noise), both(eager, score, noise), exact, strict=True
        ):
            error, allowed = deviation((found,), (truth,)), 2.0 * deviation((peer,), (truth,))
            said = f"error {error:.2g}, twice PyTorch's {allowed:.2g}"
            log.check(Check("ndsm_loss", f"{dtype} {name}", said, error <= allowed))


def check_determinism(log: Log, backend: str) -> None:
    """Check that the same call twice, and the same paths in other batches, give the same bits."""
    for op, label, run in paths.calls(backend):
        if refusal(backend, op) is None and not lender(backend, op):
            log.attempt(f"{op} {label}", partial(_check_bits, log, op, label, run))


def _check_bits(log: Log, op: str, label: str, run: paths.Call) -> None:
    whole = run(0, paths.PATHS)
    same = all(torch.equal(a, b) for a, b in zip(run(0, paths.PATHS), whole, strict=True))
    log.check(Check(op, f"{label}, twice", "bit for bit", same))
    parts = zip(run(0, 13), run(13, paths.PATHS), strict=True)
    same = all(torch.equal(torch.cat(pair), w) for pair, w in zip(parts, whole, strict=True))
    log.check(Check(op, f"{label}, split in two", "bit for bit", same))


def check_sampler(log: Log) -> None:
    """Check that replays of a CUDA graph give the plain loop's bits and leave PyTorch's generator where it does."""
    p = cases.arguments("diag", 5, 2, 3).process
    if device().type != "cuda":
        plain, auto = (sample(lambda x, t: -x, p, 8, seed=1, cuda_graph=how) for how in (False, "auto"))
        log.check(Check("sample", "auto on a CPU", "bit for bit", torch.equal(plain, auto)))
        return
    assert p.n_steps >= FEWEST_EVALUATIONS_FOR_A_GRAPH
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
