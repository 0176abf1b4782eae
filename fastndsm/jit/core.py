"""Builds csrc/ on first use, never at import, and loads it: the ops ``torch.ops.fastndsm_cpp``.

The library lies in a private directory of the user's cache, under a key that hashes all it was made from:
sources, flags, compiler, instruction set of the machine, torch and ABI. One process builds, under a lock that
the operating system drops when its holder dies; it builds in a directory of its own and renames that at the
end, so that what bears a key is whole.

Environment: ``FASTNDSM_CACHE_DIR`` (default ``$XDG_CACHE_HOME/fastndsm`` or ``~/.cache/fastndsm``), ``CXX``,
``MAX_JOBS``, ``FASTNDSM_ISA`` (avx512, avx2, sse2 or neon: an instruction set in place of the machine's best) and
``FASTNDSM_DISABLE_JIT=1``, which turns compiled code off.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shlex
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .cache import BuildError, CompilationError, default_cache_dir, is_built, kept, make_private
from .toolchain import (
    ISA,
    Compiler,
    bundled_openmp,
    command_line,
    escape,
    find_compiler,
    machine_flags,
    run_ninja,
)

logger = logging.getLogger("fastndsm")

COMPILE_FLAGS = (
    "-std=c++20",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-fvisibility=hidden",
)
LINK_FLAGS = ("-Wl,--no-undefined",)
LOG_TAIL_LINES = 30


def compile_flags() -> tuple[str, ...]:
    """Return the flags of code for this machine; raise ValueError where FASTNDSM_ISA is no instruction set of it."""
    return (*COMPILE_FLAGS, *machine_flags())


@dataclass(frozen=True)
class Builder:
    """A shared library to be built once for each user, machine and content.

    Args:
        name: the library's file is `lib<name>.so`.
        sources: C++ files to compile.
        headers: files they include, hashed with them.
        generated: names and texts of further files, sources and headers, which are kept beside the library.
        include: directories in which files are looked for.
        compile_flags, link_flags: added to what torch needs, or, without links_torch, to nothing.
        cache_dir: the cache; by default that of the environment.
    """

    name: str
    sources: tuple[Path, ...]
    headers: tuple[Path, ...] = ()
    compile_flags: tuple[str, ...] = field(default_factory=compile_flags)
    link_flags: tuple[str, ...] = LINK_FLAGS
    generated: tuple[tuple[str, str], ...] = ()
    include: tuple[Path, ...] = ()
    links_torch: bool = True
    cache_dir: Path | None = None

    @property
    def root(self) -> Path:
        return self.cache_dir if self.cache_dir is not None else default_cache_dir()

    def key(self, compiler: Compiler) -> str:
        """Return a hash of everything the library depends on; it names the library's directory in the cache."""
        digest = hashlib.sha256()
        identity = {
            "name": self.name,
            "fastndsm": _version(),
            "flags": [self.compile_flags, self.link_flags],
            "compiler": [compiler.command, compiler.version, compiler.target],
            "torch": [torch.__version__, torch.version.git_version, torch.compiled_with_cxx11_abi()],
            "openmp": [path.name for path in bundled_openmp()],
            "platform": [platform.system(), platform.machine(), platform.libc_ver()],
        }
        digest.update(json.dumps(identity, sort_keys=True).encode())
        for path in (*self.sources, *self.headers):
            digest.update(f"\0{path.parent.name}/{path.name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        for name, text in self.generated:
            digest.update(f"\0{name}\0{text}".encode())
        return digest.hexdigest()[:32]

    def library(self, compiler: Compiler) -> Path:
        return self.root / self.key(compiler) / f"lib{self.name}.so"

    def build(self, verbose: bool = False) -> Path:
        """Return the path of the library, which is built first where the cache does not have it.

        Raises:
            BuildError: compiled code is turned off, there is no compiler, the cache cannot be used or is not
                safe, or compilation failed.
        """
        require_enabled()
        compiler = find_compiler(self.compile_flags)
        library = self.library(compiler)
        return kept(self.root, library, self.name, lambda work: self._build_in(work, library, compiler, verbose))

    def _build_in(self, work: Path, library: Path, compiler: Compiler, verbose: bool) -> None:
        level = logging.INFO if self.generated else logging.WARNING  # seconds, and a minute
        logger.log(level, "building %s (once; it may take a minute) into %s", self.name, library.parent)
        for name, text in self.generated:
            (work / name).write_text(text)
        (work / "build.ninja").write_text(self._ninja_file(compiler))
        output, returncode = run_ninja(work, verbose)
        if returncode != 0 or not (work / library.name).is_file():
            log = library.parent.with_suffix(".log")
            log.write_text(output)
            tail = "\n".join(output.splitlines()[-LOG_TAIL_LINES:])
            command = shlex.join(compiler.command)
            raise CompilationError(f"{command} could not build {self.name}; full output in {log}:\n{tail}")
        (work / "build.log").write_text(output)
        for unneeded in work.glob("*.o"):
            unneeded.unlink()

    def _ninja_file(self, compiler: Compiler) -> str:
        openmp = bundled_openmp()
        compile_flags = [
            *self.compile_flags,
            # clang's OpenMP would be a second runtime beside torch's; without, loops run on one thread
            *([] if compiler.is_clang else ["-fopenmp"]),
            *(f"-I{path}" for path in self.include),
        ]
        link_flags = ["-shared", *self.link_flags]
        if self.links_torch:
            from torch.utils import cpp_extension

            compile_flags += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
            compile_flags += [f"-isystem{path}" for path in cpp_extension.include_paths()]
            link_flags += [*(f"-L{path}" for path in cpp_extension.library_paths()), "-ltorch", "-ltorch_cpu", "-lc10"]
        link_flags += [] if compiler.is_clang else [str(path) for path in openmp] or ["-fopenmp"]
        sources = [*self.sources, *(Path(name) for name, _ in self.generated if name.endswith(".cpp"))]
        objects = [f"{i}_{path.stem}.o" for i, path in enumerate(sources)]
        rules = [
            "ninja_required_version = 1.5",
            "rule compile",
            f"  command = {command_line([*compiler.command, *compile_flags])} -c $in -o $out",
            "rule link",
            f"  command = {command_line(compiler.command)} $in -o $out {command_line(link_flags)}",
            *(f"build {escape(o)}: compile {escape(str(s))}" for o, s in zip(objects, sources, strict=True)),
            f"build {escape(f'lib{self.name}.so')}: link {' '.join(map(escape, objects))}",
        ]
        return "\n".join(rules) + "\n"


def csrc_builder() -> Builder:
    """Return the builder of the library's own kernels."""
    csrc = csrc_directory()
    headers = sorted([*csrc.glob("include/*.h"), *csrc.glob("cpu/*.h")])
    return Builder("fastndsm_cpp", tuple(sorted(csrc.glob("cpu/*.cpp"))), tuple(headers))


def csrc_directory() -> Path:
    """Return the directory of the sources; raise BuildError if they are nowhere."""
    here = Path(__file__).resolve().parent.parent
    for csrc in (here / "csrc", here.parent / "csrc"):  # installed; in a source checkout
        if (csrc / "cpu").is_dir():
            return csrc
    raise BuildError(f"the C++ sources are missing: neither {here / 'csrc'} nor {here.parent / 'csrc'} holds them")


_load_lock = threading.Lock()
_loaded: Path | None = None
_failure: tuple[object, BuildError] | None = None


def load() -> None:
    """Make the ops `torch.ops.fastndsm_cpp` available, building them first if need be.

    A failure is kept, and raised again without another attempt until the environment changes.

    Raises:
        BuildError: as `Builder.build`, or the library cannot be loaded.
    """
    global _loaded, _failure
    require_enabled()
    with _load_lock:
        if _loaded is not None:
            return
        circumstances = (default_cache_dir(), *map(os.environ.get, ("CXX", "PATH", ISA)))
        if _failure is not None and _failure[0] == circumstances:
            raise BuildError(str(_failure[1])) from _failure[1]
        try:
            library = build()
            try:
                torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
            except OSError as error:
                raise CompilationError(f"{library} cannot be loaded: {error.__cause__ or error}") from error
        except BuildError as error:
            _failure = (circumstances, error)
            raise
        _loaded = library


def build(verbose: bool = False) -> Path:
    """Build the kernels if the cache does not have them; return the library's path. Raises BuildError."""
    return csrc_builder().build(verbose)


def status() -> dict[str, Any]:
    """Return what `fastndsm doctor` tells, building nothing and raising nothing.

    Keys: available, reason (why not, or None), loaded, built, library, cache_dir, key, compiler,
    compiler_version, requested_isa (by FASTNDSM_ISA), flags and, once the library is loaded, vector_isa; what cannot
    be known is None.
    """
    unknown = "reason", "library", "key", "compiler", "compiler_version", "flags", "vector_isa"
    report: dict[str, Any] = dict.fromkeys(unknown)
    report |= {"loaded": _loaded is not None, "built": False, "cache_dir": str(default_cache_dir())}
    report["requested_isa"] = os.environ.get(ISA) or None
    if _loaded is not None:
        report["vector_isa"] = torch.ops.fastndsm_cpp.vector_isa()
    try:
        report["flags"] = list(compile_flags())
        builder = csrc_builder()
        compiler = find_compiler(builder.compile_flags)
        library = builder.library(compiler)
        report |= {"compiler": shlex.join(compiler.command), "compiler_version": compiler.version}
        report |= {"key": library.parent.name, "library": str(library)}
        require_enabled()
        make_private(builder.root)
        report["built"] = is_built(library)
        if not report["built"] and not os.access(builder.root, os.W_OK):
            raise BuildError(f"the cache directory {builder.root} cannot be written to")
        if _failure is not None and not report["built"]:
            raise _failure[1]
    except (BuildError, OSError, ValueError) as error:
        report["reason"] = str(error)
    report["available"] = report["reason"] is None
    return report


def require_enabled() -> None:
    if os.environ.get("FASTNDSM_DISABLE_JIT", "0") not in ("", "0"):
        raise BuildError("compiled code is turned off by FASTNDSM_DISABLE_JIT")
    if platform.system() != "Linux":
        raise BuildError(f"the C++ kernels are built on Linux only, found {platform.system()}")


def _version() -> str:
    try:
        return importlib.metadata.version("fastndsm")
    except importlib.metadata.PackageNotFoundError:
        return "source"
