"""Roofline of an op on this machine: its arithmetic at rates that are measured in the same run.

    roofline = multiply-adds / FMA rate + normals / Philox rate     trajectories there and back, mixture_score, sample
    roofline = bytes read and written / memory bandwidth            the losses

FMA rate       independent chains of multiply-adds in registers (fma.c), on every thread; without a compiler, sgemm's
Philox rate    fastndsm's own philox_normal, at the size where it is fastest
bandwidth      torch.add of arrays as large, together, as a loss's inputs and gradient: as much of them stays in caches

Counted are the multiply-adds of the cheapest form of each formula; a lone addition or product is one too, for it takes
the same slot. An exponential is seven: a polynomial of degree 6 and its reduced argument. Divisions, roots, maxima,
loads and stores are not counted. On a CPU a trajectory's components are those whose responsibilities are not 0 in
floating point, which others need not be visited to know.
"""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastndsm.functional import philox_normal
from fastndsm.jit.cache import BuildError
from fastndsm.jit.core import compile_flags
from fastndsm.jit.toolchain import find_compiler

from .problems import TINY

EXPONENTIAL = 7


@dataclass(frozen=True)
class Rates:
    """Per second, on the threads that torch uses."""

    fma: float
    fma_source: str
    sgemm: float  # multiply-adds of a large matrix product, as a check on fma
    normals: float

    def roofline(self, multiply_adds: float, normals: float = 0.0) -> float:
        """Return the seconds that so many multiply-adds and normals take at these rates."""
        return multiply_adds / self.fma + normals / self.normals

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def simulate_multiply_adds(dim: int, components: float) -> float:
    """Count the multiply-adds of one sample-step of simulate, diag covariances.

    logits         2 K d + K      x^2 P, x b; the offset
    softmax        K (7 + 2)      subtract the maximum, exponential, sum
    means          2 K d          r b, r P
    score, update  2 d + 2 d      (r b) / total - x (r P) / total;  x + a score + s z
    """
    return 4 * components * dim + components * (1 + EXPONENTIAL + 2) + 4 * dim


def simulate_target_multiply_adds(dim: int, components: float) -> float:
    """Count the multiply-adds of one sample-step of simulate_target, diag covariances: those of simulate, and

    g_k . z        2 K d
    products       2 K            c_k = r_k (g_k . z) and their sum
    means          2 K d          c b, c P
    Hess z         4 d            c b - x (c P) - z (r P) - g (g . z)
    target         6 d            1 - a p;  v s^2 + c^2 v;  c h, the terms in z and in Hess z
    """
    return simulate_multiply_adds(dim, components) + 4 * components * dim + 2 * components + 10 * dim


def spherical_score_multiply_adds(dim: int, components: float) -> float:
    """Count those of one sample of mixture_score, spherical covariances: x m and r m, K d each, 12 a component, 2 d.

    12: P |x|^2 and the offset to the logit (2), softmax (9), r P (1).
    """
    return 2 * components * dim + 12 * components + 2 * dim


def noised_score_multiply_adds(dim: int, components: float, covariance_type: str = "spherical") -> float:
    """Count those of one sample of noised_score, spherical, diag or full covariances. A component has

    softmax                    9   and its weight and offset, 3
    1 / (lambda + s)           8   a division, by its throughput; of four dimensions one, and 9 products
    log (lambda + s)          13   of degree 8, and the exponent; of four dimensions a product and an exponent, 2
    p u^2, r p u or r m        3   a dimension
    U^T u, U (p u)         2 d^2   full
    """
    if covariance_type == "spherical":
        return spherical_score_multiply_adds(dim, components) + 21 * components
    turns = 2 * dim * dim if covariance_type == "full" else 0
    return components * (12 + 13 + dim * (3 + (8 + 9 + 2) / 4) + turns)


def spherical_target_multiply_adds(dim: int, components: float) -> float:
    """Count those of one sample-step of simulate_target, spherical covariances: those of the score, and

    g_k . z, products, means   2 K d + 3 K
    Hess z, target, update     4 d + 6 d + 2 d
    """
    return spherical_score_multiply_adds(dim, components) + (2 * dim + 3) * components + 12 * dim


def full_score_multiply_adds(dim: int, components: float) -> float:
    """Count those of one sample of mixture_score, full covariances.

    a component   d^2 + 3 d      P (m - x), of differences; their product with it; r P (m - x)
                  1 + 7 + 2      the offset and softmax
    together      d              the sum over its total
    """
    return components * (dim**2 + 3 * dim + 1 + EXPONENTIAL + 2) + dim


def reverse_steps_multiply_adds(covariance_type: str, dim: int, components: float) -> float:
    """Count the multiply-adds of one sample-step of reverse_steps: the score of the mixture, and

    rate          1 + 7 + 1 + 2   omega R; its exponential; 1 - e^-x; f (1 + e^-x) / 2
                  4               what they multiply
    update        5 d             held + X slope;  A y + B score + C network + S xi
    """
    score = {
        "spherical": spherical_score_multiply_adds,
        "diag": lambda d, k: simulate_multiply_adds(d, k) - 2 * d,
        "full": full_score_multiply_adds,
    }[covariance_type]
    return score(dim, components) + 8 + EXPONENTIAL + 5 * dim


def mlp_multiply_adds(widths: Sequence[int]) -> int:
    """Count the multiply-adds of one sample through a network of these widths, from inputs to outputs.

    layers    the products of neighbouring widths
    hidden    1 + 7 + 2 a unit      what the time gives it; SiLU: exponential, 1 + it, the product
    """
    layers = sum(a * b for a, b in itertools.pairwise(widths))
    return layers + sum(widths[1:-1]) * (1 + EXPONENTIAL + 2)


def measure() -> Rates:
    fma, source, sgemm = fma_rate()
    return Rates(fma, source, sgemm, _normal_rate())


def fma_rate() -> tuple[float, str, float]:
    """Return the multiply-adds a second on torch's threads and what reached them, and those of a matrix product."""
    sgemm = _sgemm_rate()
    chains = _chain_rate()
    return (sgemm, "sgemm", sgemm) if chains is None or sgemm > chains else (chains, "fma.c", sgemm)


def best_seconds(run: Callable[[], Any], least: float = 0.0 if TINY else 0.2) -> float:
    """Return the fastest of at least three runs, and of `least` seconds of them."""
    run()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def _chain_rate() -> float | None:
    try:
        compiler = find_compiler(compile_flags())
    except BuildError:
        return None
    flags = [flag for flag in compile_flags() if not flag.startswith(("-std", "-fvisibility"))]
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory, "fma.so")
        source = Path(__file__).with_name("fma.c")
        command = [*compiler.command, *flags, "-shared", "-x", "c", str(source), "-o", str(library)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        chains = ctypes.CDLL(str(library))
    chains.run_chains.argtypes = (ctypes.c_long, ctypes.c_float, ctypes.c_float)
    iterations, threads = 1_000 if TINY else 20_000_000, torch.get_num_threads()

    def run() -> None:  # ctypes lets go of the interpreter's lock
        workers = [threading.Thread(target=chains.run_chains, args=(iterations, 0.5, 1.0)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    per_iteration = int(chains.multiply_adds_per_iteration())
    return threads * iterations * per_iteration / best_seconds(run)


def _sgemm_rate() -> float:
    n = 64 if TINY else 2048
    a, b, out = torch.ones(n, n, device="cpu"), torch.ones(n, n, device="cpu"), torch.empty(n, n, device="cpu")
    return n**3 / best_seconds(lambda: torch.mm(a, b, out=out))


def _normal_rate() -> float:
    rows = (64,) if TINY else (2**14, 2**16, 2**18)
    return max(n * 16 / best_seconds(partial(philox_normal, n, 16, seed=1, backend="cpp")) for n in rows)


def bandwidth(footprint: int) -> float:
    """Measure the bytes a second, where `footprint` bytes are read and written again and again."""
    a, b, out = (torch.ones(footprint // 12, device="cpu") for _ in range(3))
    return footprint / best_seconds(lambda: torch.add(a, b, out=out))
