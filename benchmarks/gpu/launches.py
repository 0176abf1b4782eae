"""Launches of Triton's kernels without their GPU: which variants there are, and each compiled as a launch would.

A launch goes the way it goes on a GPU, through Triton's own just-in-time path, up to the call of the compiler; the
driver is a stub. What is compiled here is found in Triton's cache by the process that launches it: the GPU suite runs
this file as a program for that. `ahead` keeps a record of what was compiled.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import itertools
import json
import math
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import torch

from fastndsm.backends import registry

from . import cases
from .device import DEVICE
from .processes import end_with

TARGETS = {  # by the name of an architecture: backend, architecture and lanes of a warp, as Triton has them
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
_devices = itertools.count(1)  # one number a recording: Triton keeps what it compiled by device


@dataclass
class Variant:
    """A kernel with the constants, types and options of a launch, and the case that was the first to need it."""

    kernel: str
    said: str  # constants and options, to be read
    case: str
    source: Any
    target: Any
    options: dict[str, Any]


@dataclass
class Compiled:
    """The outcome of a variant: what it takes, or the error."""

    kernel: str
    said: str
    case: str
    seconds: float
    registers: int = 0  # a thread
    shared: int = 0  # bytes a block
    spilled: int = 0  # bytes a thread
    instructions: int = 0  # of the program, each once
    error: str = ""


class _Unlaunched:
    """Stands for a compiled kernel; a launch is noted, and does nothing."""

    function = packed_metadata = None

    def __init__(self, launched: Callable[[tuple[int, ...]], None]) -> None:
        self.launched = launched

    def launch_metadata(self, *_: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        self.launched(arguments[:3])


class Recording:
    """The variants that were launched, each once, and the launches: the variant's key and the grid."""

    def __init__(self) -> None:
        self.case = ""
        self.variants: dict[str, Variant] = {}
        self.launches: list[tuple[str, tuple[int, ...]]] = []

    def compile(self, source: Any, target: Any = None, options: Any = None, **_: Any) -> _Unlaunched:
        """Stand in for triton.compile."""
        names = source.fn.arg_names
        constants = {names[path[0]]: getattr(value, "__name__", value) for path, value in source.constants.items()}
        shown = [f"{name}={value}" for name, value in constants.items()]
        shown += [f"{name}={options[name]}" for name in ("num_warps", "num_stages")]
        key = f"{source.hash()} {sorted((name, str(value)) for name, value in options.items())}"
        made = Variant(source.fn.__name__, " ".join(shown), self.case, source, target, dict(options))
        self.variants.setdefault(key, made)
        return _Unlaunched(lambda grid: self.launches.append((key, grid)))


def _kernels() -> list[ModuleType]:
    package = importlib.import_module("fastndsm.kernels.configurations").__package__
    assert package is not None
    paths = importlib.import_module(package).__path__
    return [importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(paths)]


@contextlib.contextmanager
def recording(architecture: str) -> Iterator[Recording]:
    """Have the Triton backend take CPU tensors, as if they were on a GPU of that architecture, and launch nothing.

    Outputs are 0. Not for a process that has a GPU, or that interprets.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    made, number, kernels = Recording(), next(_devices), _kernels()
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: number,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget(*TARGETS[architecture]),
        )
    )
    backend = replace(registry.BACKENDS["triton"], devices=("cpu",))
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(triton.compiler, "compile", made.compile))
        for module in kernels:
            if hasattr(module, "architecture_of"):
                enter(mock.patch.object(module, "architecture_of", lambda device: architecture))
        enter(mock.patch.object(importlib.import_module("fastndsm.kernels.ops"), "prepare", lambda: None))
        enter(mock.patch.dict(registry.BACKENDS, {"triton": backend}))
        for name in ("empty", "empty_like"):
            enter(mock.patch.object(torch, name, _zeroed(getattr(torch, name))))
        yield made


def _zeroed(empty: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(empty)(lambda *arguments, **options: empty(*arguments, **options).zero_())


# --- the check suites --------------------------------------------------------------------------------------------


def of_family(architecture: str, family: str, kind: str = "") -> Recording:
    """Return what the checks of a family of ops launch; cases that the backend refuses launch nothing."""
    with recording(architecture) as made:
        for case in cases.of(family, kind):
            made.case = f"{case.op} {case.label}"
            if registry.BACKENDS["triton"].refuses(case.op, torch.device("cpu"), torch.float32) is None:
                with contextlib.suppress(NotImplementedError):
                    case.call("triton", torch.float32)
    return made


def of_families(architecture: str, families: Iterable[str] = cases.FAMILIES) -> list[Variant]:
    """Return the variants that the checks of families of ops launch; some are those of several families."""
    return [variant for family in families for variant in of_family(architecture, family).variants.values()]


# --- compiled ----------------------------------------------------------------------------------------------------


def compile_variants(variants: Sequence[Variant], processes: int, seconds: float = math.inf) -> list[Compiled]:
    """Compile them in processes forked from this one, each taking the next that is left until the time is over.

    Return, in the order given, what came of those that were reached.
    """
    context = multiprocessing.get_context("fork")
    following, parent, end = context.Value("q", 0), os.getpid(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / str(i) for i in range(min(processes, len(variants)))]
        workers = [context.Process(target=_work, args=(variants, following, path, parent, end)) for path in paths]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        lines = [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]
    found = {index: Compiled(**row) for index, row in lines}
    lost = "its process ended"  # the compiler took it down
    reached = enumerate(variants[: following.value])
    return [found.get(i) or Compiled(v.kernel, v.said, v.case, 0.0, error=lost) for i, v in reached]


def _work(variants: Sequence[Variant], following: Any, path: Path, parent: int, end: float) -> None:
    end_with(parent)
    with path.open("w") as file:
        while time.monotonic() < end:
            with following.get_lock():
                index = following.value
                if index >= len(variants):
                    return
                following.value += 1
            file.write(json.dumps([index, asdict(compiled(variants[index]))]) + "\n")
            file.flush()


def compiled(variant: Variant) -> Compiled:
    """Compile a variant, or find it in Triton's cache, and say what it takes."""
    import triton

    made, begun = Compiled(variant.kernel, variant.said, variant.case, 0.0), time.perf_counter()
    try:
        kernel = triton.compile(variant.source, target=variant.target, options=variant.options)
        made.shared = kernel.metadata.shared
        found = resources(kernel)
        made.registers, made.spilled, made.instructions = (
            found[name] for name in ("registers", "spilled", "instructions")
        )
    except Exception as error:
        made.error = repr(error)
    made.seconds = time.perf_counter() - begun
    return made


def resources(kernel: Any) -> dict[str, Any]:
    """Return registers a thread, bytes spilled, instructions, and whether whole vectors are stored (vector_stores)."""
    if "amdgcn" in kernel.asm:
        assembly = kernel.asm["amdgcn"]

        def field(name: str) -> int:
            return int(re.search(rf"\.{name}:\s*(\d+)", assembly)[1])  # type: ignore[index]

        # scalar registers spill into lanes of vector registers; what goes to memory is in the private segment
        return {
            "registers": field("vgpr_count"),
            "spilled": field("vgpr_spill_count") + field("private_segment_fixed_size"),
            "instructions": len(re.findall(r"^\t(?:[vs]_|ds_|global_|buffer_|scratch_)", assembly, re.MULTILINE)),
            "vector_stores": "global_store_dwordx" in assembly,
        }
    usage, sass = (dump(kernel.asm["cubin"], f"--dump-{what}") for what in ("resource-usage", "sass"))
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return {
        "registers": registers,
        "spilled": stack + local,
        "instructions": len(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/", sass, re.MULTILINE)),
        "vector_stores": re.search(r"st\.global\.v[24]\.", kernel.asm["ptx"]) is not None,
    }


def dump(cubin: bytes, what: str) -> str:
    """Return what cuobjdump, which comes with Triton, says of a program."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def without_gpu() -> None:
    """Prepare a program in which no GPU takes part, or end it where one may."""
    if os.environ.get(DEVICE) != "cpu":
        sys.exit(f"expected {DEVICE}=cpu in the environment: no GPU takes part")
    torch.set_num_threads(1)


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compile_variants`."""
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=math.inf, help="none is begun after so many")


def main() -> None:
    """Compile, or list, and print JSON: how many `variants` there are, and those `compiled`."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("architecture", choices=TARGETS)
    parser.add_argument("--list", action="store_true", help="compile nothing")
    add_limits(parser)
    options = parser.parse_args()
    without_gpu()
    variants = of_families(options.architecture)
    if options.list:
        found = [Compiled(v.kernel, v.said, v.case, 0.0) for v in variants]
    else:
        found = compile_variants(variants, options.processes, options.seconds)
    print(json.dumps({"variants": len(variants), "compiled": [asdict(one) for one in found]}))


if __name__ == "__main__":
    main()
