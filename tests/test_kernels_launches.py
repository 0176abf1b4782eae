"""Launches of the Triton backend for every case of the GPU suite, up to the compiler, and the record of what compiles.

The launches are the real ones with a stub for the driver, so that arguments, constants and keys are those of a GPU.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from _kernels import ROOT, TARGETS, Row, check_resources, compiled_by, in_own_process, main
from test_kernels_oldest_triton import OLDEST

from benchmarks.gpu import ahead, cases, launches

REGISTERS = dict.fromkeys(TARGETS, 255) | {"gfx942": 512}  # a thread
FULL = {"FASTNDSM_BENCH_SIZE": "full", "FASTNDSM_BENCH_DEVICE": "cpu", "FASTNDSM_DISABLE_JIT": "1"}
VARIANTS = {"philox": 12, "mixture": 130, "simulate": 190, "reverse steps": 190, "loss": 80, "drift": 12}  # at most


@pytest.mark.parametrize("target", TARGETS)
def test_every_case_is_launched(target: str, launched: dict[str, Any]) -> None:
    """With the variants that a section of the suite compiles first; the sampler's kernel is CUDA's alone."""
    variants = launched["variants"][target]
    assert variants.keys() == set(cases.FAMILIES) - {"mlp sampler"}
    for family, count in variants.items():
        assert 0 < count <= VARIANTS[family], family


@pytest.mark.parametrize("target", TARGETS)
def test_every_configuration_is_launched(target: str, launched: dict[str, Any]) -> None:
    assert launched["untaken"][target] == []


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
    from fastndsm.kernels.configurations import TABLE, configurations

    families = [family for family in cases.FAMILIES if family != "mlp sampler"]
    variants, identities, untaken = {}, {}, {}
    for target in TARGETS:
        with _noting_configurations() as taken:
            made = {f: launches.of_family(target, f).variants.values() for f in families}
        variants[target] = {f: len(found) for f, found in made.items()}
        identities[target] = sorted({ahead.identity(v) for found in made.values() for v in found})
        every = [(op, str(c)) for op in TABLE for c in configurations(op, target)]
        untaken[target] = [c for c in every if c not in taken]
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
        "identities": identities,
        "untaken": untaken,
        "codes": _codes(),
        **_grown(),
        "drawn": drawn,
        "pads": pads,
        "sorted": ordered,
        "compiled": [asdict(found) for found in launches.compile_variants(two, 2)],
        "no time": launches.compile_variants(two, 2, seconds=0.0),
    }


@contextlib.contextmanager
def _noting_configurations() -> Iterator[set[tuple[str, str]]]:
    """Have what kernels ask the table for noted: op and configuration."""
    importlib.import_module("fastndsm.kernels.ops")  # with the modules that it calls
    from fastndsm.kernels.configurations import configuration

    taken: set[tuple[str, str]] = set()

    def noted(op: str, *arguments: Any, **options: Any) -> Any:
        found = configuration(op, *arguments, **options)
        taken.add((op, str(found)))
        return found

    with contextlib.ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("fastndsm.kernels.") and "configuration" in vars(module):
                stack.enter_context(mock.patch.object(module, "configuration", noted))
        yield taken


def _pads(kind: str) -> tuple[int, int, int]:
    """Return how often arrays are padded in a first call of both ways, in a second, and after the means changed."""
    from fastndsm.testing import random_arguments

    a = random_arguments(kind, 3, 68, 13, dtype=torch.float32)  # rows of whole vectors: a mixture alone is padded
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


# --- compiled ahead of time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("version", ahead.recorded())
def test_no_variant_spills_of_those_recorded(version: str, target: str, launched: dict[str, Any]) -> None:
    """Warn of what has changed since: compiling it all takes an hour, and the slow test below does."""
    names, record = set(launched["identities"][target]), ahead.Record(version)
    known = names & record.rows.get(target, {}).keys()
    for name in known:
        check_resources(record.row(target, name), REGISTERS[target])
    if missing := len(names - known):
        warnings.warn(f"{missing} of {len(names)} variants for {target} are not in {record.path.name}", stacklevel=1)


def test_a_record_grows_and_knows_what_it_lacks(launched: dict[str, Any]) -> None:
    """A first call had no time, a second had one variant, a third one more, a fourth the first alone."""
    assert launched["left"] == [2, 0, 0, 0]
    first, second, third = launched["rows"]
    assert len(first) == 1 and len(second) == 2 and first.items() <= second.items()
    assert third == first  # the other is launched no more
    for row in second.values():
        assert len(row) == len(ahead.FIELDS) and row[0] > 0


def test_errors_and_spills_are_told_and_errors_tried_again(tmp_path: Path) -> None:
    record = ahead.Record("0.0", tmp_path)
    fine, spilled = (launches.Compiled("f", "", "", 0.0, registers=9, spilled=bytes) for bytes in (0, 8))
    broken = launches.Compiled("f", "", "", 0.0, error="CompilationError()")
    record.add("sm_90", {"f 1": fine, "f 2": spilled, "f 3": broken})
    again = ahead.Record("0.0", tmp_path)
    assert again.rows == record.rows and not list(tmp_path.glob("*.new"))
    assert again.faults("sm_90") == {"f 2": "8 bytes spilled", "f 3": "CompilationError()"}
    assert again.faults("sm_80") == {}
    assert set(again.lacks("sm_90", dict.fromkeys(["f 1", "f 2", "f 3", "f 4"]))) == {"f 3", "f 4"}
    for name in ("f 2", "f 3"):
        with pytest.raises(AssertionError):
            check_resources(again.row("sm_90", name), 255)


@pytest.mark.parametrize(("change", "same"), [("comment", True), ("place", True), ("callee", False), ("global", False)])
def test_a_variant_is_known_by_its_code(change: str, same: bool, launched: dict[str, Any]) -> None:
    assert (launched["codes"]["kernel"] == launched["codes"][change]) == same


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("version", ["oldest", "newest"])
def test_every_variant_compiles_without_spills(version: str, target: str, tmp_path: Path) -> None:
    """Those that the record of this version has not are compiled now."""
    if version == "oldest" and not OLDEST.is_dir():
        pytest.skip(f"{OLDEST} is not there: make test sets it up")
    path = os.pathsep.join(map(str, ((OLDEST, ROOT) if version == "oldest" else (ROOT,))))
    rows = compiled_by(__file__, tmp_path, [target], None, PYTHONPATH=path, **FULL)
    assert len(rows) > 300
    for row in rows:
        check_resources(row, REGISTERS[target])


def compile_all() -> Iterator[Row]:
    import triton

    for target in TARGETS:
        with tempfile.TemporaryDirectory() as place:
            record = ahead.Record(triton.__version__, Path(place))
            record.rows = ahead.Record(triton.__version__).rows
            assert ahead.compile_missing(record, target, ahead.variants(target), os.cpu_count() or 1) == 0
            yield from (record.row(target, name) for name in record.rows[target])


SOURCE = """
import triton
import triton.language as tl

{above}N = tl.constexpr({n})


@triton.jit
def called(x):
    return x {operator} N


@triton.jit
def kernel(p):
    {comment}
    tl.store(p, called(tl.load(p)))
"""
PLAIN = {"above": "", "n": 2, "operator": "+", "comment": '"""Add."""'}
CHANGES = {
    "kernel": {},
    "comment": {"comment": "# Add two."},
    "place": {"above": "M = 1\n\n"},
    "callee": {"operator": "*"},
    "global": {"n": 3},
}


def _codes() -> dict[str, str]:
    """Return what a record takes a kernel for, as it is and after each change."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for name, change in CHANGES.items():
            file = Path(place) / f"{name}.py"
            file.write_text(SOURCE.format(**PLAIN | change))
            spec = importlib.util.spec_from_file_location(name, file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            found[name] = ahead.code(module.kernel)
    return found


def _grown() -> dict[str, Any]:
    """Return how many variants were left after each of four calls, and what the record had after the last three."""
    two = dict(list(ahead.variants("sm_90", ["philox"]).items())[:2])
    one = dict(list(two.items())[:1])
    with tempfile.TemporaryDirectory() as place:
        left, rows = [], []
        for launched, seconds in ((two, 0.0), (one, math.inf), (two, math.inf), (one, math.inf)):
            record = ahead.Record("0.0", Path(place))
            left.append(ahead.compile_missing(record, "sm_90", launched, 2, seconds))
            rows.append(ahead.Record("0.0", Path(place)).rows.get("sm_90", {}))
    return {"left": left, "rows": rows[1:]}


if __name__ == "__main__":
    main(launch_all, compile_all)
