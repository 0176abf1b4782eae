"""The CUDA kernels, compiled for the host: csrc/gpu_host.cpp as a library, and what they do."""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from fastndsm._scheme import Schedule
from fastndsm.backends.cuda import packed_network
from fastndsm.reference import MixtureOperands
from fastndsm.sampling.fused_mlp import FusedNetwork

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which("g++")
FLAGS = ("-std=c++20", "-O0", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread", "-Wall", "-Werror")
FLAGS += ("-Wno-attributes", "-Wno-unknown-pragmas", "-Wno-psabi", "-DFASTNDSM_SCALAR", "-Dalways_inline=unused")
KINDS = ("spherical", "diag", "tied", "full")
POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


@functools.cache
def library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "gpu_host.so"
        command = [str(COMPILER), *FLAGS, str(HERE / "csrc" / "gpu_host.cpp"), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return ctypes.CDLL(str(path))


def words(c0: int, c1: int, step: int, block: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the four words of a counter, as a row and as a tile of rows draw them."""
    out = (ctypes.c_uint32 * 8)()
    unsigned = [ctypes.c_uint32(value) for value in (c0, c1, step, block)]
    library().words(*unsigned, ctypes.c_int64(seed), out)
    return list(out[:4]), list(out[4:])


class Packing(ctypes.Structure):
    _fields_ = (
        *((name, POINTER) for name in ("means", "precisions", "log_scale", "parameters")),
        *((name, INTEGER) for name in ("kind", "n_components", "dim")),
    )


def packed_mixture(mixture: MixtureOperands) -> Tensor:
    """Return the block of parameters that csrc/include/parameters.h describes, by the CUDA kernel; held NaN before."""
    (n, dim), kind = mixture.means.shape, mixture.covariance_type
    tensors = [t.contiguous() for t in (mixture.means, mixture.precisions, mixture.log_scale)]
    arguments = Packing(*(t.data_ptr() for t in tensors), None, KINDS.index(kind), n, dim)
    pack = library().pack_kernel
    pack.restype = INTEGER
    block = torch.full((pack(ctypes.byref(arguments)),), torch.nan)
    arguments.parameters = block.data_ptr()
    pack(ctypes.byref(arguments))
    return block


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
        "parameters": packed_mixture(mixture),
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
