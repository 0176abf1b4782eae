"""Builds csrc/cuda on first use, for the GPUs at hand, and loads it: the op ``torch.ops.fastndsm_cuda.sample_mlp``.

As `core` does for the C++ library, in the same cache and under the same lock; the key hashes nvcc, its flags and the
architecture besides. Environment: ``CUDA_HOME`` or ``CUDA_PATH``, else the nvcc on ``PATH``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .cache import BuildError, CompilationError, is_built, require_private
from .core import COMPILE_FLAGS, Builder, csrc_directory, require_enabled
from .toolchain import Compiler, command_line, escape, find_compiler

NVCC_FLAGS = (
    "-std=c++20",
    "-O3",
    "--expt-relaxed-constexpr",
    "-diag-suppress=1675,20012",  # GCC's pragmas; host and device on a defaulted constructor
)
OLDEST = 80  # compute capability 8.0


@dataclass(frozen=True)
class Nvcc:
    """CUDA's compiler."""

    command: str
    version: str  # as "13.0"

    @property
    def root(self) -> Path:
        """The toolkit's directory, where include/ and lib64/ lie; nvcc on PATH may be a script that only calls it."""
        named = Path(self.command).resolve().parent.parent
        for root in (named, Path(f"/usr/local/cuda-{self.version}"), Path("/usr/local/cuda")):
            if (root / "include" / "cuda_runtime.h").is_file():
                return root
        raise BuildError(f"{self.command} is there, but include/cuda_runtime.h is not: set CUDA_HOME")


def find_nvcc() -> Nvcc:
    """Return the compiler of CUDA_HOME or CUDA_PATH, else that on PATH; raise BuildError if there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    command = shutil.which("nvcc", path=os.path.join(home, "bin") if home else None)
    if command is None:
        raise BuildError(f"nvcc is not {f'in {home}/bin' if home else 'on PATH, and CUDA_HOME is not set'}")
    return Nvcc(command, _version(command))


@functools.lru_cache
def _version(command: str) -> str:
    try:
        said = subprocess.run([command, "--version"], check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"nvcc does not work: {error}") from error
    found = re.search(r"release (\d+\.\d+)", said)
    if found is None:
        raise BuildError(f"nvcc --version: expected a release, found {said!r}")
    return found.group(1)


def architecture_flags(architectures: tuple[int, ...]) -> tuple[str, ...]:
    """Return nvcc's flags for compute capabilities such as 90."""
    return tuple(f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures)


def _require_cuda() -> None:
    if torch.version.cuda is None:
        raise BuildError(f"PyTorch {torch.__version__} is built without CUDA")


def device_architectures() -> tuple[int, ...]:
    """Return the compute capabilities of the GPUs at hand; BuildError if there is none, or one too old."""
    _require_cuda()
    if not torch.cuda.is_available():
        raise BuildError("it needs a GPU, and PyTorch finds none")
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    architectures = tuple(sorted(10 * major + minor for major, minor in found))
    if architectures[0] < OLDEST:
        raise BuildError(f"it needs compute capability {OLDEST / 10:.1f} or later, found {architectures[0] / 10:.1f}")
    return architectures


@dataclass(frozen=True)
class CudaBuilder(Builder):
    """A library of C++ and CUDA files.

    Args:
        architectures: compute capabilities to compile for, as 90.
    """

    architectures: tuple[int, ...] = ()

    def key(self, compiler: Compiler) -> str:
        nvcc = find_nvcc()
        cuda = nvcc.command, nvcc.version, str(torch.version.cuda), NVCC_FLAGS, self.architectures
        return hashlib.sha256(repr((super().key(compiler), *cuda)).encode()).hexdigest()[:32]

    def _ninja_file(self, compiler: Compiler) -> str:
        from torch.utils import cpp_extension

        nvcc = find_nvcc()
        if torch.version.cuda is not None and nvcc.version.split(".")[0] != torch.version.cuda.split(".")[0]:
            raise BuildError(f"nvcc is of CUDA {nvcc.version}, PyTorch was built with {torch.version.cuda}")
        abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
        includes = [*cpp_extension.include_paths(), str(nvcc.root / "include")]
        cpp = [*self.compile_flags, abi, *(f"-isystem{path}" for path in includes)]
        cuda = [*NVCC_FLAGS, *architecture_flags(self.architectures), "-Xcompiler=-fPIC,-fvisibility=hidden"]
        host = ["-ccbin", compiler.command[0]]
        link = ["-shared", *self.link_flags, *(f"-L{path}" for path in cpp_extension.library_paths())]
        link += ["-ltorch", "-ltorch_cpu", "-lc10", "-lc10_cuda", f"-L{nvcc.root / 'lib64'}", "-lcudart"]
        objects = [f"{i}_{path.stem}.o" for i, path in enumerate(self.sources)]
        lines = [
            "ninja_required_version = 1.5",
            "rule cpp",
            f"  command = {command_line([*compiler.command, *cpp])} -c $in -o $out",
            "rule cuda",
            f"  command = {command_line([nvcc.command, *host, *cuda])} -c $in -o $out",
            "rule link",
            f"  command = {command_line(compiler.command)} $in -o $out {command_line(link)}",
        ]
        for made, source in zip(objects, self.sources, strict=True):
            lines.append(f"build {escape(made)}: {'cuda' if source.suffix == '.cu' else 'cpp'} {escape(str(source))}")
        lines.append(f"build {escape(f'lib{self.name}.so')}: link {' '.join(map(escape, objects))}")
        return "\n".join(lines) + "\n"


def cuda_builder(architectures: tuple[int, ...]) -> CudaBuilder:
    """Return the builder of the library's CUDA kernels."""
    csrc = csrc_directory()
    sources = sorted([*csrc.glob("cuda/*.cu"), *csrc.glob("cuda/*.cpp")])
    headers = sorted([*csrc.glob("include/*.h"), *csrc.glob("cuda/*.h"), *csrc.glob("cuda/*.cuh")])
    # Launches alone: for any machine.
    return CudaBuilder("fastndsm_cuda", tuple(sources), tuple(headers), COMPILE_FLAGS, architectures=architectures)


def build(architectures: tuple[int, ...] | None = None, verbose: bool = False) -> Path:
    """Build the kernels if the cache does not have them, by default for the GPUs at hand. Raises BuildError."""
    require_enabled()
    _require_cuda()
    return cuda_builder(device_architectures() if architectures is None else architectures).build(verbose)


_load_lock = threading.Lock()
_loaded: Path | None = None


def load() -> None:
    """Make the op `torch.ops.fastndsm_cuda.sample_mlp` available, built first if need be; BuildError if that fails."""
    global _loaded
    with _load_lock:
        if _loaded is not None:
            return
        library = build()
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError as error:
            raise CompilationError(f"{library} cannot be loaded: {error.__cause__ or error}") from error
        _loaded = library


def status() -> dict[str, Any]:
    """Tell `fastndsm doctor`, building nothing: reason (why there can be no such library, or None), nvcc, built."""
    report: dict[str, Any] = {"reason": None, "nvcc": None, "built": _loaded is not None}
    with contextlib.suppress(BuildError):
        nvcc = find_nvcc()
        report["nvcc"] = f"{nvcc.command} {nvcc.version}"
    try:
        require_enabled()
        builder = cuda_builder(device_architectures())
        library = builder.library(find_compiler(builder.compile_flags))
        if builder.root.is_dir():
            require_private(builder.root)
            report["built"] = is_built(library)
    except (BuildError, OSError) as error:
        report["reason"] = str(error)
    return report
