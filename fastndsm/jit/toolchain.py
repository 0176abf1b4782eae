"""The programs that build compiled code: the C++ compiler, the OpenMP runtime it links to, and ninja."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch

from .cache import BuildError

COMPILERS = ("g++", "c++", "clang++")
ISA = "FASTNDSM_ISA"


@dataclass(frozen=True)
class InstructionSet:
    """An instruction set as the compiler names it, and the words of /proc/cpuinfo that a processor with it has."""

    march: str
    features: frozenset[str]


INSTRUCTION_SETS = {  # named as csrc/include/vec_types.h does
    "avx512": InstructionSet("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})),
    "avx2": InstructionSet("x86-64-v3", frozenset({"avx2", "fma", "bmi2"})),
    "sse2": InstructionSet("x86-64", frozenset({"sse2"})),
    "neon": InstructionSet("armv8-a", frozenset({"asimd"})),
}


@functools.lru_cache
def instruction_sets() -> tuple[str, ...]:
    """Return the names of the instruction sets that this machine has, widest first."""
    cpuinfo = Path("/proc/cpuinfo")
    features = set(cpuinfo.read_text(errors="replace").split()) if cpuinfo.is_file() else set()
    return tuple(name for name, isa in INSTRUCTION_SETS.items() if isa.features <= features)


def machine_flags() -> tuple[str, ...]:
    """Return the flags that choose instructions: all that this machine has, or the set that FASTNDSM_ISA names.

    Raises:
        ValueError: FASTNDSM_ISA names an instruction set that there is not, or that this machine has not.
    """
    named = os.environ.get(ISA)
    if not named:
        return ("-march=native",)
    if named not in instruction_sets():
        here = ", ".join(instruction_sets()) or f"none on {platform.machine()}"
        raise ValueError(f"{ISA}: expected an instruction set of this machine ({here}), found {named!r}")
    return (f"-march={INSTRUCTION_SETS[named].march}", "-mtune=native")


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler and what its flags for this machine mean to it."""

    command: tuple[str, ...]
    version: str
    target: str
    is_clang: bool


def find_compiler(flags: tuple[str, ...]) -> Compiler:
    """Return the compiler that CXX names, or the first of `COMPILERS` on PATH; raise BuildError if there is none."""
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [[name] for name in COMPILERS]:
        if executable := shutil.which(command[0]):
            return _probe((executable, *command[1:]), flags)
    looked_for = (
        f"CXX is {shlex.join(named)!r}" if named else f"none of {', '.join(COMPILERS)} is on PATH, and CXX is not set"
    )
    raise BuildError(f"no C++ compiler found: {looked_for}")


@functools.lru_cache
def _probe(command: tuple[str, ...], flags: tuple[str, ...]) -> Compiler:
    macros = _output([*command, *flags, "-dM", "-E", "-x", "c++", os.devnull])
    version = _output([*command, "--version"]).splitlines()[0]
    return Compiler(command, version, hashlib.sha256(macros.encode()).hexdigest(), "__clang__" in macros)


def _output(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=120).stdout
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        raise BuildError(f"the C++ compiler does not work: {shlex.join(argv)}: {detail}") from error


@functools.lru_cache
def bundled_openmp() -> tuple[Path, ...]:
    """Return the OpenMP runtime that comes with torch: another one would not hear of torch.set_num_threads."""
    torch_dir = Path(torch.__file__).resolve().parent
    found = [*torch_dir.glob("lib/libgomp*.so*"), *torch_dir.parent.glob("torch.libs/libgomp*.so*")]
    return tuple(sorted(found)[:1])


def _find_ninja() -> str:
    if spec := importlib.util.find_spec("ninja"):  # the package's own binary need not be on PATH
        import ninja

        for directory in (ninja.BIN_DIR, *(spec.submodule_search_locations or ())):
            if found := shutil.which("ninja", path=str(directory)):
                return found
    if found := shutil.which("ninja"):
        return found
    raise BuildError("ninja is not installed: pip install ninja")


def run_ninja(directory: Path, verbose: bool) -> tuple[str, int]:
    argv = [_find_ninja(), "-C", str(directory)]
    if jobs := os.environ.get("MAX_JOBS"):
        argv += ["-j", jobs]
    environment = os.environ | {"LC_ALL": "C"}
    with subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if verbose:
                print(line, end="", flush=True)
    return "".join(lines), process.returncode


def escape(word: str) -> str:
    return word.replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def command_line(words: list[str] | tuple[str, ...]) -> str:
    return shlex.join(words).replace("$", "$$")
