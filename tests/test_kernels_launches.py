"""Launches of the Triton backend for every case of the GPU suite, up to the compiler; slowly, compiled too.

The launches are the real ones with a stub for the driver, so that arguments, constants and keys are those of a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from _kernels import ROOT, TARGETS, Row, check_resources, compiled_by, in_own_process, main
from test_kernels_oldest_triton import OLDEST

from benchmarks.gpu import cases, launches

REGISTERS = dict.fromkeys(TARGETS, 255) | {"gfx942": 512}  # a thread
FULL = {"FASTNDSM_BENCH_SIZE": "full", "FASTNDSM_BENCH_DEVICE": "cpu", "FASTNDSM_DISABLE_JIT": "1"}
VARIANTS = {"philox": 10, "mixture": 90, "simulate": 140, "reverse steps": 140, "loss": 48, "drift": 12}  # at most


@pytest.mark.parametrize("target", TARGETS)
def test_every_case_is_launched(target: str, launched: dict[str, Any]) -> None:
    """With the variants that a section of the suite compiles first; the sampler's kernel is CUDA's alone."""
    variants = launched["variants"][target]
    assert variants.keys() == set(cases.FAMILIES) - {"mlp sampler"}
    for family, count in variants.items():
        assert 0 < count <= VARIANTS[family], family


def test_a_mixture_is_packed_once(launched: dict[str, Any]) -> None:
    """In the first call of each way, and anew when values change in place; axes are not the means."""
    for name, (first, again, changed) in launched["pads"].items():
        assert again == 0 < changed <= first, name


def test_equal_steps_are_not_sorted(launched: dict[str, Any]) -> None:
    assert launched["sorted"] == {"all": 0, "each": 1}


def test_steps_are_drawn_by_one_kernel(launched: dict[str, Any]) -> None:
    assert launched["drawn"] == ["uniform_steps_kernel"]


def test_variants_are_compiled_in_processes_for_as_long_as_there_is_time(launched: dict[str, Any]) -> None:
    first, second = launched["compiled"]
    assert first["said"] != second["said"] and launched["no time"] == []
    for row in (first, second):
        assert row["kernel"] == "philox_normal_kernel" and not row["error"]
        assert row["registers"] > 0 and row["instructions"] > 100 and row["spilled"] == 0


@pytest.mark.parametrize(("architecture", "there"), [("sm_90", True), ("gfx942", False), (None, False)], ids=str)
def test_nvidia_alone_is_told_how_many_registers(architecture: str | None, there: bool) -> None:
    from fastndsm.kernels.configurations import configuration

    assert ("maxnreg" in configuration("simulate_diag", 784, 10, architecture).launch) == there


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("launched")
    return torch.load(in_own_process(__file__, "interpret", place, **FULL))


def launch_all() -> dict[str, Any]:
    """Return counts of what is launched, to be judged by the tests above."""
    families = [family for family in cases.FAMILIES if family != "mlp sampler"]
    variants = {t: {f: len(launches.of_family(t, f).variants) for f in families} for t in TARGETS}
    with launches.recording("sm_90") as made:
        p = cases.arguments("diag", 5, 2, 3).process
        from fastndsm import use_backend
        from fastndsm._ops import ops

        with use_backend("triton"):
            ops.uniform_steps(1000, p.n_steps, torch.tensor(1), 0, p.times.device, 2, "auto")
        drawn = [v.kernel for v in made.variants.values()]
        pads = {kind: _pads(kind) for kind in ("spherical", "diag", "tied")}
        ordered = {name: _sorts(each) for name, each in (("all", False), ("each", True))}
    two = list(launches.of_family("sm_90", "philox").variants.values())[:2]
    return {
        "variants": variants,
        "drawn": drawn,
        "pads": pads,
        "sorted": ordered,
        "compiled": [asdict(found) for found in launches.compile_variants(two, 2)],
        "no time": launches.compile_variants(two, 2, seconds=0.0),
    }


def _pads(kind: str) -> tuple[int, int, int]:
    """Return how often arrays are padded in a first call of both ways, in a second, and after the means changed."""
    from fastndsm.testing import random_arguments

    a = random_arguments(kind, 3, 67, 13, dtype=torch.float32)
    means = a.mixture.operands(torch.float32).means

    def counted() -> int:
        with mock.patch("fastndsm.kernels.packing.F.pad", wraps=torch.nn.functional.pad) as pad:
            for op in ("simulate_target", "reverse_steps"):
                for call in cases.CALLS:
                    if call.op == op and "records" not in call.way:
                        call(a, "triton")
            return pad.call_count

    first, again = counted(), counted()
    means.add_(0.0)
    return first, again, counted()


def _sorts(each: bool) -> int:
    x = torch.zeros(1 << 9, 67)
    p = cases.arguments("diag", 5, 67, 3).process
    from fastndsm import functional

    with mock.patch.object(torch, "sort", wraps=torch.sort) as sort:
        functional.simulate(x, p, torch.arange(len(x)) % 2 if each else 2, seed=1, backend="triton")
        return sort.call_count


# --- compiled ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_every_variant_compiles_without_spills(version: str, target: str, tmp_path: Path) -> None:
    if version == "oldest" and not OLDEST.is_dir():
        pytest.skip(f"{OLDEST} is not there: make test sets it up")
    path = os.pathsep.join(map(str, ((OLDEST, ROOT) if version == "oldest" else (ROOT,))))
    rows = compiled_by(__file__, tmp_path, [target], None, PYTHONPATH=path, **FULL)
    assert len(rows) > 300
    for row in rows:
        check_resources(row, REGISTERS[target])


def compile_all() -> Iterator[Row]:
    for target in TARGETS:
        for family in cases.FAMILIES:
            variants = list(launches.of_family(target, family).variants.values())
            for found in launches.compile_variants(variants, os.cpu_count() or 1):
                row = asdict(found) | {"target": target}
                yield row if found.error else {name: value for name, value in row.items() if name != "error"}


if __name__ == "__main__":
    main(launch_all, compile_all)
