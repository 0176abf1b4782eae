"""The work of the GPU's threads and warps, compiled for the host: csrc/gpu_host.cpp as a library, and the ops on it."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastndsm._scheme import Schedule
from fastndsm.backends.cuda import packed_network
from fastndsm.reference import MixtureOperands, PrincipalAxes, ProcessOperands
from fastndsm.sampling.fused_mlp import FusedNetwork

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("g++")
FLAGS = ("-std=c++20", "-O0", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror")
FLAGS += ("-Wno-attributes", "-Wno-unknown-pragmas", "-Wno-psabi", "-DFASTNDSM_SCALAR", "-Dalways_inline=unused")
KINDS = ("spherical", "diag", "tied", "full")
MODES = ("state", "target", "reverse")
POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


NUMBERS = ("n_components", "dim", "padded", "tied", "seed", "first_path", "rows", "antithetic", "n_steps", "n_records")


class Arguments(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("parameters", "drift_scale", "noise_std", "coefficients")),
        *((name, INTEGER) for name in NUMBERS),
        *((name, POINTER) for name in ("start", "steps", "records", "held", "slope", "own", "x", "second", "third")),
        *((name, POINTER) for name in ("rotations", "rates")),
    )


@functools.cache
def library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "gpu_host.so"
        command = [str(COMPILER), *FLAGS, str(HERE / "csrc" / "gpu_host.cpp"), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(path))


def words(c0: int, c1: int, step: int, block: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the four words of a counter, as the register and as the tiled kernels draw them."""
    out = (ctypes.c_uint32 * 8)()
    unsigned = [ctypes.c_uint32(value) for value in (c0, c1, step, block)]
    library().words(*unsigned, ctypes.c_int64(seed), out)
    return list(out[:4]), list(out[4:])


class Packing(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("means", "precisions", "log_scale", "parameters")),
        *((name, INTEGER) for name in ("kind", "n_components", "dim", "padded")),
    )


def packed_mixture(mixture: MixtureOperands, padded: int, *, emulated: bool = False) -> Tensor:
    """Return the block of parameters that csrc/include/parameters.h describes; emulated: by the CUDA kernel."""
    (n, dim), kind = mixture.means.shape, mixture.covariance_type
    tensors = [t.contiguous() for t in (mixture.means, mixture.precisions, mixture.log_scale)]
    arguments = Packing(*(t.data_ptr() for t in tensors), None, KINDS.index(kind), n, dim, padded)
    pack = library().pack_double if mixture.means.dtype == torch.float64 else library().pack_float
    pack.restype = INTEGER
    size = pack(ctypes.byref(arguments))
    block = torch.full((size,), torch.nan, dtype=mixture.means.dtype)
    arguments.parameters = block.data_ptr()
    if emulated:
        library().pack_kernel(ctypes.byref(arguments), INTEGER(size))
    else:
        pack(ctypes.byref(arguments))
    return block


def padded_dimension(dim: int, samples_a_warp: int) -> int:
    """Return the backend's padded dimension: a power of two in registers, a multiple of four in warps."""
    return dim + -dim % 4 if samples_a_warp else max(2, 1 << (dim - 1).bit_length())


def run(
    mode: str,
    samples_a_warp: int,
    start: Tensor,
    steps: Tensor,
    process: ProcessOperands,
    seed: int,
    first_path: int,
    *,
    axes: PrincipalAxes | None = None,
    held: Tensor | None = None,
    slope: Tensor | None = None,
    rate: Tensor | None = None,
    coefficients: Tensor | None = None,
    antithetic: bool = False,
    transition: bool = False,
    emulated: bool = False,
) -> tuple[Tensor, ...]:
    """Return x, and mean and noise or target and variance; all held NaN before. samples_a_warp 0: in registers.

    emulated: by the CUDA kernel itself. mode "reverse": steps are the bounds, coefficients [6, N].
    """
    mixture = process.mixture
    (rows, dim), kind = start.shape, mixture.covariance_type
    padded = padded_dimension(dim, samples_a_warp)
    block = packed_mixture(mixture, padded, emulated=emulated)
    records, shape = None, (rows * (2 if antithetic and mode == "target" else 1), *steps.shape[1:])
    if steps.ndim == 2:
        steps, records = steps.sort(dim=1)
    last = steps if steps.ndim == 1 else steps[:, -1]
    outputs = [torch.full((*shape, dim), torch.nan, dtype=start.dtype)]
    if mode == "target" or transition:
        width = 1 if mode == "target" and kind == "spherical" else dim
        outputs += [torch.full_like(outputs[0], torch.nan), torch.full((*shape, width), torch.nan, dtype=start.dtype)]
    kept: dict[str, Any] = {
        "parameters": block,
        "drift_scale": process.drift_scale.contiguous(),
        "noise_std": process.noise_std.contiguous(),
        "start": start.contiguous(),
        "steps": steps.contiguous(),
        "records": records,
        "held": None if held is None else held.contiguous(),
        "slope": None if slope is None else slope.contiguous(),
        "own": None if rate is None else rate.contiguous(),
        "coefficients": None if coefficients is None else coefficients.contiguous(),
        **dict(zip(("x", "second", "third"), outputs, strict=False)),
        **(axes._asdict() if axes else {}),
    }
    numbers = {
        "n_components": len(mixture.means),
        "dim": dim,
        "padded": padded,
        "tied": kind == "tied",
        "seed": seed,
        "first_path": first_path,
        "rows": rows,
        "antithetic": antithetic,
        "n_steps": process.drift_scale.numel(),
        "n_records": 1 if records is None else records.shape[1],
    }
    pointers = {name: None if t is None else t.data_ptr() for name, t in kept.items()}
    arguments = Arguments(**pointers, **{name: int(value) for name, value in numbers.items()})
    if emulated:
        order = torch.arange(rows) if mode == "reverse" else last.argsort(descending=True, stable=True)
        common = KINDS.index("full" if kind == "tied" else kind), MODES.index(mode), samples_a_warp
        sizes = ctypes.c_void_p(order.data_ptr()), ctypes.c_int64(block.numel())
        library().run_kernel(*common, ctypes.byref(arguments), *sizes)
        return tuple(outputs)
    function = library().run_double if start.dtype == torch.float64 else library().run_float
    kernel = "full" if kind == "tied" else kind
    function(KINDS.index(kernel), MODES.index(mode), samples_a_warp, ctypes.byref(arguments))
    return tuple(outputs)


SAMPLING_POINTERS = ("parameters", "coefficients", "evaluations", "network", "scales", "shifts")
SAMPLING_POINTERS += ("y", "bounds", "out", "failed")
SAMPLING_NUMBERS = ("kind", "n_components", "dim", "n_steps", "n_evaluations", "seed", "first_path", "rows")
SAMPLING_NUMBERS += ("network_floats", "n_hidden", "width", "inputs", "resident")


class Sampling(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in SAMPLING_POINTERS),
        *((name, INTEGER) for name in SAMPLING_NUMBERS),
        ("feature_scale", ctypes.c_double),
    )


def sample_mlp(
    y: Tensor,
    network: FusedNetwork,
    schedule: Schedule,
    mixture: MixtureOperands,
    seed: int,
    first_path: int,
    *,
    resident: bool,
) -> tuple[Tensor, int]:
    """Return y_0 and the evaluation that failed, or their number, by the CUDA kernel, emulated."""
    kind = mixture.covariance_type
    out, failed = torch.full_like(y, torch.nan), torch.full((), len(schedule.evaluations))
    tensors = {
        "parameters": packed_mixture(mixture, y.shape[1], emulated=True),
        "coefficients": schedule.coefficients.to(y.dtype).contiguous(),
        "evaluations": network.evaluations.contiguous(),
        "network": packed_network(network.weights, network.biases),
        "scales": network.scales.contiguous(),
        "shifts": network.shifts.contiguous(),
        "y": y.contiguous(),
        "bounds": schedule.bounds,
        "out": out,
        "failed": failed,
    }
    numbers = {
        "kind": KINDS.index(kind),
        "n_components": len(mixture.means),
        "dim": y.shape[1],
        "n_steps": schedule.coefficients.shape[1],
        "n_evaluations": len(schedule.evaluations),
        "seed": seed,
        "first_path": first_path,
        "rows": len(y),
        "network_floats": tensors["network"].numel(),
        "n_hidden": len(network.weights) - 1,
        "width": len(network.weights[0]),
        "inputs": network.weights[0].shape[1],
        "resident": resident,
    }
    pointers = {name: t.data_ptr() for name, t in tensors.items()}
    values = {name: int(value) for name, value in numbers.items()}
    library().sample_mlp_kernel(ctypes.byref(Sampling(**pointers, **values, feature_scale=network.feature_scale)))
    return out, int(failed)
