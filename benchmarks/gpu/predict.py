"""Seconds that kernels take on an H100, predicted from the instructions that are compiled for it, and their floors.

    python -m benchmarks.gpu.predict [WORD ...]     the rows whose names contain a word; default all

No GPU takes part: launches are recorded (`launches`), compiled for sm_90 with the Triton that is installed, or by nvcc,
and the instructions of a warp are counted, those of loops as often as they run (`sass`). The prediction is what the
busiest pipe, or the memory, takes with nothing waiting for anything: what a design cannot beat, not what it will reach.
A floor is the arithmetic that cannot be avoided at the GPU's full rate, or the bytes where those take longer.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastndsm import LangevinProcess, functional
from fastndsm.cli.tables import markdown
from fastndsm.jit import cuda
from fastndsm.jit.core import csrc_directory
from fastndsm.testing import random_mixture

from .. import memory, roofline
from . import launches, sass, simulations, timings

ARCHITECTURE = "sm_90"
MULTIPROCESSORS, QUARTERS, CLOCK = 132, 4, 1.755e9
ISSUED = MULTIPROCESSORS * QUARTERS * CLOCK  # warp instructions a second
MULTIPLY_ADDS = 32 * ISSUED
TF32X3 = 494.7e12 / 2 / 3  # multiply-adds a second on tensor cores, of float32's precision
BANDWIDTH = 3.35e12
NORMAL = 25.0  # instructions of ours for a normal
# Operations that launch nothing, and those by which a recording clears what kernels would have written.
VIEWS = {
    f"aten::{name}"
    for name in (
        *("empty", "empty_like", "empty_strided", "new_empty", "resize_", "set_", "zero_", "fill_", "item", "detach"),
        *("_local_scalar_dense", "alias", "lift_fresh", "result_type", "is_nonzero", "view", "_unsafe_view", "expand"),
        *(
            "as_strided",
            "reshape",
            "_reshape_alias",
            "flatten",
            "select",
            "slice",
            "narrow",
            "split",
            "chunk",
            "unbind",
        ),
        *(
            "squeeze",
            "unsqueeze",
            "permute",
            "transpose",
            "t",
            "mT",
            "expand_as",
            "broadcast_tensors",
            "to",
            "contiguous",
        ),
        *("numpy_T", "matrix_H", "movedim", "view_as", "unfold", "diagonal", "real", "size", "stride", "numel"),
    )
}
LAUNCH = 1e-6  # seconds that a launch in a CUDA graph takes beyond its work


@dataclass
class Case:
    """A call and its floor.

    turns(loop, constants) tells how often a loop runs; bytes are moved by this design.
    """

    name: str
    floor: float
    run: Callable[[], Any]
    turns: Callable[[sass.Loop, dict[str, Any]], float]
    units: float  # what instructions are told for: steps of rows, or rows
    bytes: float = 0.0


@dataclass
class Prediction:
    """Counts of a case, and its time by them."""

    name: str
    floor: float
    seconds: float = 0.0
    limits: list[str] = field(default_factory=list)
    launches: int = 0
    instructions: float = 0.0  # of warps, a unit
    registers: int = 0
    spilled: int = 0

    @property
    def ratio(self) -> float:
        return self.seconds / self.floor

    def add(self, grid: int, warps: int, found: sass.Count, units: float) -> None:
        """Add a launch of so many blocks: the multiprocessor with the most of them takes longest."""
        blocks = math.ceil(grid / MULTIPROCESSORS)
        pipe, cycles = found.most
        busy = min(QUARTERS, blocks * warps)
        if pipe.endswith("memory"):
            busy = QUARTERS
        self.seconds += blocks * warps * cycles / busy / CLOCK
        self.limits.append(pipe)
        self.instructions += grid * warps * found.instructions / units


def predict(case: Case) -> Prediction:
    """Record, compile and count the launches of a call, after one that has packed what is kept."""
    import triton

    with launches.recording(ARCHITECTURE) as made:
        case.run()
        made.launches.clear()
        beside = eager_launches(case.run)
    out, known = Prediction(case.name, case.floor), {}
    for key, grid in made.launches:
        if key not in known:
            variant = made.variants[key]
            kernel = triton.compile(variant.source, target=variant.target, options=variant.options)
            names = variant.source.fn.arg_names
            constants = {names[path[0]]: value for path, value in variant.source.constants.items()}
            whole = sass.program(launches.dump(kernel.asm["cubin"], "--dump-sass"))
            turns = partial(case.turns, constants=constants)
            known[key] = sass.count(whole, turns), variant.options["num_warps"], launches.resources(kernel)
        found, warps, taken = known[key]
        out.add(math.prod(grid), warps, found, case.units)
        out.registers, out.spilled = max(out.registers, taken["registers"]), max(out.spilled, taken["spilled"])
    if case.bytes / BANDWIDTH > out.seconds:
        out.seconds, out.limits = case.bytes / BANDWIDTH, ["memory"]
    out.launches = len(made.launches) + beside
    out.seconds += (out.launches - 1) * LAUNCH
    return out


def eager_launches(run: Callable[[], Any]) -> int:
    """Count PyTorch's own operations that would launch a kernel; what they do is not counted, only that they are there.

    An operation that is made of others is not counted beside them.
    """
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()

    def launches_one(name: str) -> bool:
        return name.startswith("aten::") and name not in VIEWS

    return sum(
        launches_one(event.name) and not any(launches_one(child.name) for child in event.cpu_children)
        for event in profile.events()
    )


# --- the cases ---------------------------------------------------------------------------------------------------


def trajectory(loop: sass.Loop, constants: dict[str, Any], steps: int, blocks: int = 1) -> float:
    """Return how often a loop of a trajectory's kernel runs: over steps, over blocks of components, over tiles of d."""
    tiles = math.ceil(constants["D"] / constants["COLUMNS"]) if "COLUMNS" in constants else 1
    if tiles == 1:
        return steps if loop.depth == 1 else blocks
    if loop.leaf:
        return tiles / loop.stride(constants["COLUMNS"])  # several where it is unrolled
    return steps if loop.depth == 1 else 2 if constants.get("ANTITHETIC") and loop.depth == 2 else blocks


def cases() -> list[Case]:
    made = []
    for race in (simulations.RACES[1], simulations.RACES[3]):
        problem = race.problem
        count = roofline.simulate_target_multiply_adds if race.target else roofline.simulate_multiply_adds
        floor = count(problem.dim, problem.components) / MULTIPLY_ADDS + problem.dim * NORMAL / MULTIPLY_ADDS
        units = problem.sample_steps
        turns = partial(trajectory, steps=problem.steps)
        name = f"{race.op} diag {problem.label}"
        made.append(Case(name, units * floor, partial(race.run, problem.x0, "triton"), turns, units))
    made.append(_score())
    made += [_reverse_step(dim, rows) for dim, rows in ((2, 1 << 20), (784, 4096))]
    made += [_full(dim) for dim in (5, 8, 16, 32)]
    return made


def _score() -> Case:
    from fastndsm.kernels.configurations import configuration
    from fastndsm.kernels.mixture_split import shares

    dim, components, rows = timings.PIXELS, timings.COMPONENTS, timings.POINTS
    mixture, x = memory.kernel_density(components, dim, rows)
    floor = rows * roofline.spherical_score_multiply_adds(dim, components) / TF32X3
    tile = configuration("mixture_score_many", dim, components, ARCHITECTURE)
    splits, share = shares(rows, components, tile)
    sums = 2 * 4 * rows * dim * splits * math.ceil(share / tile["COMPONENTS"])  # read and written for each block

    def turns(loop: sass.Loop, constants: dict[str, Any]) -> float:
        if "COMPONENTS" not in constants:  # the parts are merged
            return splits
        return math.ceil(dim / constants["DIMS"]) if loop.leaf else share / constants["COMPONENTS"]

    run = partial(functional.mixture_score, x, mixture, backend="triton")
    return Case(f"mixture_score spherical d={dim} K={components:,} B={rows:,}", floor, run, turns, rows, sums)


def _reverse_step(dim: int, rows: int) -> Case:
    """Build the case of a step without a slope, as the sampler takes it where it evaluates the network at each."""
    reversed_ = timings.Reversed("spherical", dim, 8 if dim <= 4 else 10, rows, steps=1)
    y, held = reversed_.tensors[:2]
    run = partial(reversed_.ours, "triton", (y, held, None, None))
    arithmetic, moved = reversed_.multiply_adds + NORMAL * rows * dim, 3 * y.nbytes
    floor = max(arithmetic / MULTIPLY_ADDS, moved / BANDWIDTH)
    name = f"reverse_steps spherical d={dim} B={rows:,}, one step"
    return Case(name, floor, run, partial(trajectory, steps=1), rows, moved)


def _full(dim: int) -> Case:
    components, rows, steps = 10, 1 << 16, 100
    mixture = random_mixture("full", components, dim, overlapping=True)
    process = LangevinProcess(mixture, T=0.2, n_steps=steps)
    each = components * (dim * dim + 2 * dim + 10) + dim + NORMAL * dim
    run = partial(functional.simulate, torch.zeros(rows, dim, device="cpu"), process, seed=1, backend="triton")
    name = f"simulate full d={dim} K={components} B={rows:,} N={steps}"

    def turns(loop: sass.Loop, constants: dict[str, Any]) -> float:
        return (steps if loop.inner else 1) if loop.depth == 1 else components / constants.get("COMPONENTS", 1)

    return Case(name, rows * steps * each / MULTIPLY_ADDS, run, turns, rows * steps)


# --- the sampler of networks, which is CUDA's ----------------------------------------------------------------------


def sampler() -> Prediction:
    """Count the fused sampler: 3 x 128, 4,096 samples, 100 evaluations of the network with a step after each."""
    width, hidden, dim, rows, evaluations, components = 128, 3, 2, 4096, 100, 8
    tile, warps = 32, 8  # samples and warps of a block, eight threads a sample, as sample_mlp.cuh has them
    floor = rows * evaluations * (dim * width + (hidden - 1) * width**2 + width * dim) / TF32X3
    network = (16 + (hidden - 1) * width + 8 + hidden) * width + 8  # numbers, padded
    name = f"sample MLP {hidden}x{width} B={rows:,} N={evaluations}"
    text = _nvcc("sample_mlp.cu")
    symbol = f"sample_kernelILi{width}ELb1ELNS_10CovarianceE0E"
    (taken,) = [part for part in re.split(r"(?=\bFunction )", text["resource-usage"]) if symbol in part]
    (own,) = [part for part in re.split(r"(?=\bFunction : )", text["sass"]) if symbol in part.partition("\n")[0]]

    def turns(loop: sass.Loop) -> float:
        """Tell how often a warp runs a loop, on average: two blocks of samples by eight outputs are two warps' work."""
        count = Counter(op.partition(".")[0] for op, _ in loop.instructions)
        if loop.depth == 1:
            return evaluations if loop.inner else network / (32 * warps * count["STS"])
        if count["HMMA"]:  # over blocks of 16 inputs, in the loop over hidden layers or of the output
            return (1 + (hidden - 1) * width / 16) / hidden if loop.depth == 3 else width / 16 * tile / 16 / warps
        if any(op.startswith("HMMA") for one in loop.inner for op, _ in one.instructions):
            return hidden
        if count["SHFL"]:  # over threads with other dimensions, of which there are none, or with other components
            return 0 if count["SHFL"] == count["FADD"] == 1 else math.log2(8)
        return math.ceil(components / 8)

    out = Prediction(name, floor)
    out.registers, stack, local = (int(re.search(rf"{what}:(\d+)", taken)[1]) for what in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    out.spilled = stack + local
    found = sass.count(sass.program(own), turns)
    out.add(rows // tile, warps, found, rows * evaluations)
    out.launches = 1
    return out


def _nvcc(source: str) -> dict[str, str]:
    """Return what cuobjdump says of a source of csrc/cuda, compiled as the library compiles it."""
    nvcc = cuda.find_nvcc()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "out.cubin"
        flags = [*cuda.NVCC_FLAGS, f"-arch={ARCHITECTURE}", "-cubin"]
        command = [nvcc.command, *flags, str(csrc_directory() / "cuda" / source), "-o", str(path)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        return {what: launches.dump(path.read_bytes(), f"--dump-{what}") for what in ("sass", "resource-usage")}


# --- the table ---------------------------------------------------------------------------------------------------


def table(found: list[Prediction]) -> str:
    head = ("case", "floor, us", "predicted, us", "of the floor", "limited by", "launches")
    head += ("warp instructions a row and step", "registers", "stack, bytes")
    body = [
        [
            p.name,
            f"{1e6 * p.floor:.4g}",
            f"{1e6 * p.seconds:.4g}",
            f"{p.ratio:.3g}x",
            ", ".join(dict.fromkeys(p.limits)),
            str(p.launches),
            f"{p.instructions:.4g}",
            str(p.registers),
            str(p.spilled),
        ]
        for p in found
    ]
    return markdown(head, body)


def main(*words: str) -> None:
    launches.without_gpu()
    found = [predict(case) for case in cases() if not words or any(word in case.name for word in words)]
    if not words or any(word in "sample MLP" for word in words):
        found.append(sampler())
    print(table(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
