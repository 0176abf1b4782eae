"""The GPU benchmark on a CPU at tiny sizes: every section runs, failures are told, and the results are written.

The figures mean nothing there. What runs on a GPU alone, the kernels of the ceilings, is interpreted and compiled ahead
of time.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest
import torch
from _kernels import ROOT, TARGETS, Row, check_resources, compile_ahead, compiled_by, interpreted_by, main

from benchmarks import rows
from benchmarks.gpu import device, sanitizer, suite
from benchmarks.gpu.report import Report
from fastndsm import functional
from fastndsm.jit import core

OPS = ["philox_normal", "mixture_score", "mixture_log_prob", "mixture_hvp", "simulate", "simulate_transition"]
OPS += ["simulate_target", "reverse_steps", "ndsm_loss", "dsm_loss", "sample_mlp"]
OPS += ["drift_simulate", "drift_transition", "drift_target", "drift_reverse_steps"]
CASES = {"simulate": 3, "simulate_target": 2, "philox_normal": 1, "ndsm_loss": 3, "dsm_loss": 3, "mixture_score": 1}
CASES |= {"reverse_steps": 4, "sample": 2}
OF_PATHS = {"simulate", "simulate_transition", "simulate_target", "reverse_steps", "sample_mlp"}
BACKENDS = ["reference", "cpp"]  # what stands for triton and cuda where there is no GPU


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Build the kernels before a section with a limit of its own has to do it."""
    core.load()


def settings(**environment: str) -> dict[str, str]:
    """Return the environment of a tiny run."""
    tiny = {"FASTNDSM_BENCH_SIZE": "tiny", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | tiny | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)} | environment


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = settings(**environment)
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def killed_and_resumed(part: str, sections: int, place: Path) -> subprocess.CompletedProcess[str]:
    """Kill a call once so many sections of a part have ended; return what the next one says, which ends by itself."""
    before = set(place.rglob("*.json"))
    with subprocess.Popen(
        ["benchmarks/gpu/run.sh", part], cwd=ROOT, env=settings(FASTNDSM_BENCH_RESULTS=str(place)), stdout=DEVNULL
    ) as process:
        while len(set(place.rglob("*.json")) - before) < sections:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        process.kill()
    assert not list(place.glob("gpu-*.md")) or part != "check"
    deadline = time.monotonic() + 10.0
    while alive(place):
        assert time.monotonic() < deadline, "sections outlive their call"
        time.sleep(0.02)
    return run("benchmarks/gpu/run.sh", part, FASTNDSM_BENCH_RESULTS=str(place))


def alive(place: Path) -> list[str]:
    """Return the processes that write results there."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if f"FASTNDSM_BENCH_RESULTS={place}".encode() in environment.read_bytes().split(b"\0"):
                found.append(environment.parent.name)
    return found


def test_three_calls_that_are_killed_and_resumed_end_in_one_table(tmp_path: Path) -> None:
    for part, sections in (("check", 12), ("time", 4), ("peers", 1)):
        done = killed_and_resumed(part, sections, tmp_path)
        assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
        assert done.stdout.count("in a call before") >= sections - 3  # build and compile may be among them
    (path,) = tmp_path.glob("gpu-*.json")
    resumed = path.read_text()
    done = run("benchmarks/gpu/run.sh", "merge", FASTNDSM_BENCH_RESULTS=str(tmp_path))
    stored = json.loads(path.read_text())
    assert done.returncode == 0 and json.loads(resumed)["sections"][1:] == stored["sections"][1:]
    assert stored["failures"] == stored["peers_failures"] == []
    expected = [suite.FIRST, *suite.BUILD, *(s for part in suite.PARTS for s in suite.sections_of(part, BACKENDS))]
    assert [section["name"] for section in stored["sections"]] == [section.name for section in expected]
    assert {section["status"] for section in stored["sections"]} == {"ok"}
    assert stored["backends"] == BACKENDS and stored["environment"]["date"]

    for backend in BACKENDS:
        checks = [check for check in stored["checks"] if check["backend"] == backend]
        assert {check["op"] for check in checks} == set(OPS)
        served = [check["op"] for check in checks if check["case"] == "served"]
        assert served == (["sample_mlp"] if backend == "reference" else [])
        assert [op for op in OPS if sum(check["op"] == op for check in checks) < 2] == served
        assert {c["op"] for c in checks if c["case"].endswith("split in two")} == OF_PATHS - set(served)
    assert {check["op"] for check in stored["checks"] if not check["backend"]} == {"sample"}
    assert all(check["passed"] for check in stored["checks"]) and stored["refused"] == []
    assert "compute-sanitizer did not run: there is no GPU" in stored["notes"]
    assert any("variants of kernels listed" in note for note in stored["notes"])

    assert all(stored["rates"][name] > 0 for name in ("bandwidth", "fma", "normals"))
    ours = [row for row in stored["rows"] if row["contender"] in BACKENDS]
    for backend in BACKENDS:
        assert {op: sum((row["op"], row["contender"]) == (op, backend) for row in ours) for op in CASES} == CASES
    assert [row["contender"] for row in ours if row["op"] == "training step"] == ["reference"] * 2
    assert {r["configuration"] for r in ours if (r["op"], r["contender"]) == ("sample", "cpp")} == {"one call"}
    assert all(row["median"] > 0 and len(row["seconds"]) >= 2 for row in stored["rows"])
    assert all(row["roofline"] > 0 for row in ours if row["op"] not in ("sample", "training step"))
    peers = {row["contender"].split()[0] for row in stored["rows"]}
    assert {"eager", "compiled", "dsm", "plain"} <= peers
    assert ("jax" in peers) == (find_spec("jax") is not None)
    assert ("torchsde" in peers) == (find_spec("torchsde") is not None)

    table = path.with_suffix(".md").read_text()
    assert all(f"| {row['op']} | {row['case']} | {row['contender']}" in table for row in ours)
    assert stored["environment"]["device"] in table and stored["environment"]["date"] in table


WRONG = """
import sys, types
from fastndsm import reference
from fastndsm.backends import registry
from benchmarks.gpu.__main__ import main

made_up = types.ModuleType("made_up")
made_up.__spec__ = types.SimpleNamespace()  # it can be found
made_up.ndsm_loss = lambda *arguments: 1.001 * reference.ndsm_loss(*arguments)
made_up.ndsm_loss_backward, made_up.philox_normal = reference.ndsm_loss_backward, reference.philox_normal

def simulate(x0, steps, process, *rest):
    if process.mixture.covariance_type in ("tied", "full"):
        raise NotImplementedError("no matrices")
    return reference.simulate(x0, steps, process, *rest)

def simulate_target(*arguments):
    raise NotImplementedError("never")

made_up.simulate, made_up.simulate_transition, made_up.simulate_target = simulate, simulate, simulate_target
made_up.reverse_steps = lambda y, *rest: reference.reverse_steps(y, *rest) + len(y)
borrows = types.ModuleType("borrows")
borrows.__spec__ = types.SimpleNamespace()
borrows.ndsm_loss, borrows.philox_normal = made_up.ndsm_loss, lambda *arguments: reference.philox_normal(*arguments)
borrows.ndsm_loss_backward, borrows.dsm_loss = made_up.ndsm_loss_backward, lambda *arguments: 1 / 0
sys.modules["made_up"], sys.modules["borrows"] = made_up, borrows
registry.BACKENDS["triton"] = registry.Backend("triton", "made_up", devices=("cpu",))
registry.BACKENDS["cpp"] = registry.Backend("cpp", "borrows", devices=("cpu",))
sys.exit(main("check", "check loss", "check philox", "check simulate", "check determinism"))
"""


def test_an_op_that_is_wrong_missing_refused_or_borrowed_is_told(tmp_path: Path) -> None:
    done = run(sys.executable, "-c", WRONG, FASTNDSM_BACKEND="triton", FASTNDSM_BENCH_RESULTS=str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "check loss, triton: ndsm_loss plain B=5 d=3: error 0.001, at most 1." in done.stdout
    assert "| ndsm_loss | triton | 0 of 6 |  | " in done.stdout
    assert "| dsm_loss | triton | it has no dsm_loss |" in done.stdout
    assert "| philox_normal | triton | 6 of 6 |  |  |" in done.stdout
    # of the second backend only what is not the first's; its own errors are its own
    assert "| ndsm_loss | cpp | triton's |  |  |" in done.stdout
    assert "| philox_normal | cpp | 6 of 6 |  |  |" in done.stdout
    assert "check loss, cpp: dsm_loss B=5 d=3: ZeroDivisionError" in done.stdout
    # shapes may be refused, an op may not
    assert "| simulate | triton | 10 of 10 | 4: no matrices |  |" in done.stdout
    assert "| simulate_target | triton | it refuses every case | 10: never |" in done.stdout
    assert "- simulate_target, triton: it refuses every case" in done.stdout
    assert "check simulate spherical, triton: simulate_transition spherical B=1 d=1 K=1: " in done.stdout
    # the bits of a path are its own
    assert "check determinism, triton: reverse_steps d=67, split in two: bit for bit" in done.stdout
    assert "reverse_steps d=67, twice" not in done.stdout
    assert "check determinism, triton: simulate d=67, split" not in done.stdout


NOT_BUILT = """
import sys, types
from fastndsm.backends import registry
from fastndsm.jit.cache import BuildError, CompilationError
from benchmarks.gpu.__main__ import main

made_up = types.ModuleType("made_up")
made_up.__spec__ = types.SimpleNamespace()

def prepare():
    with open(sys.argv[2], "a") as file:
        file.write("once ")
    raise {"nvcc": BuildError, "sources": CompilationError}[sys.argv[1]](f"{sys.argv[1]} are not right")

made_up.prepare = prepare
sys.modules["made_up"] = made_up
registry.BACKENDS["cpp"] = registry.Backend("cpp", "made_up", devices=("cpu",))
sys.exit(main("check philox", "time simulate", "peer eager"))
"""


@pytest.mark.parametrize("wrong", ["nvcc", "sources"])
def test_a_backend_that_is_not_built_is_told_and_tried_once(wrong: str, tmp_path: Path) -> None:
    """A failure only where there was all that it takes to build it; the other backend's sections run."""
    place = {"FASTNDSM_BENCH_RESULTS": str(tmp_path / "results")}
    done = run(sys.executable, "-c", NOT_BUILT, wrong, str(tmp_path / "tries"), **place)
    failed = wrong == "sources"
    assert done.returncode == failed, done.stderr
    assert ("build: cpp: CompilationError: sources are not right" in done.stdout) == failed
    assert ("- backend cpp cannot be built here: nvcc are not right" in done.stdout) != failed
    assert "check philox, reference: ok" in done.stdout and "time simulate, reference: ok" in done.stdout
    assert "peer eager: ok" in done.stdout and ", cpp:" not in done.stdout
    assert (tmp_path / "tries").read_text() == "once "


def test_what_is_to_be_reached_against_another_backend() -> None:
    """A row is compared with those on its own case alone, and no backend with itself."""
    times = {("simulate", "small", "triton"): 1.2, ("simulate", "small", "cuda"): 1.0}
    times |= {("simulate", "large", "triton"): 2.1, ("simulate", "large", "cuda"): 1.0}
    found = []
    for (op, case, contender), seconds in times.items():
        row = rows.Row(op, case, contender, "a step", 1, "", [seconds] * 3)
        row.targets = {"triton": {"small": 1.3, "large": 2.0}[case]} if contender == "cuda" else {}
        found.append(asdict(row))
    section = suite.Section("time", "nothing:nothing", 1.0)
    report = Report([suite.Outcome(section, "ok", 1.0, {"row": found})], 1.0)
    assert report.rows.missed() == ["simulate small, cuda: 1.2 of triton's time, to reach 1.3"]
    lines = [line.split(" | ") for line in report._speeds().splitlines()[2:]]
    assert [(line[2], line[8].rstrip(" |")) for line in lines if "triton" not in line[2]] == [
        ("cuda", "1.2e+06, **1.2x** (to reach 1.3x)"),
        ("cuda", "2.1e+06, **2.1x** (to reach 2x)"),
    ]


SECTIONS = """
import os, signal, sys, time, types
from pathlib import Path
from benchmarks.gpu import suite
from benchmarks.gpu.log import Check
from benchmarks.gpu.report import Report

def hangs(log):
    log.check(Check("op", "before", "held", True))
    time.sleep(60)

def raises(log):
    log.attempt("this", lambda: 1 / 0)
    raise MemoryError("no more")

module = types.ModuleType("benchmarks.gpu.made_up")
module.passes = lambda log, word: log.write("note", word)
module.crashes = lambda log: os.kill(os.getpid(), signal.SIGSEGV)
module.hangs, module.raises = hangs, raises
sys.modules[module.__name__] = module
made_up = [suite.Section("first", "made_up:passes", 20, ("one",))]
made_up += [suite.Section(name, f"made_up:{name}", seconds, together=together) for name, seconds, together in
            (("crashes", 20, True), ("hangs", 1, True), ("raises", 20, True), ("unknown", 20, False))]
made_up += [suite.Section("peer", "made_up:raises", 20, ours=False)]
made_up += [suite.Section("last", "made_up:passes", 20, ("end",)), suite.Section("long", "made_up:passes", 900, ("",))]
store = suite.Store(Path(sys.argv[1]), "stamp")
suite.Run(entire=100.0).all(made_up, store.put)
other = suite.Store(Path(sys.argv[1]), "other sources")
print([other.get(section) for section in made_up] == [None] * len(made_up))
report = Report([store.get(section) or suite.Outcome(section, suite.LEFT) for section in made_up], 1.0)
print([o.status for o in report.outcomes], report.notes, len(report.checks), sep="\\n")
print(*report.failures, *report.peers_failures, sep="\\n")
"""


def test_sections_do_not_touch_each_other(tmp_path: Path) -> None:
    """Outcomes are found again by another process, as far as the sources are the same."""
    done = run(sys.executable, "-c", SECTIONS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    statuses = "['ok', 'killed by SIGSEGV', 'killed: still running after 1 s', 'failed', 'failed', 'failed', 'ok', "
    said = done.stdout[done.stdout.index(f"True\n{statuses}'left: not run yet']") :].splitlines()[1:]
    assert said[1:3] == ["['one', 'end']", "1"]
    assert said[3:] == [
        "crashes: killed by SIGSEGV",
        "hangs: killed: still running after 1 s",
        "raises: this: ZeroDivisionError: division by zero",
        "raises: MemoryError: no more",
        "unknown: AttributeError: module 'benchmarks.gpu.made_up' has no attribute 'unknown'",
        "peer: this: ZeroDivisionError: division by zero",
        "peer: MemoryError: no more",
    ]


@pytest.mark.parametrize("part", suite.PARTS)
def test_limits_add_up_to_less_than_a_call(part: str) -> None:
    """With both backends, and eight sections at a time where nothing is timed: nine minutes, imports included."""
    sections = [suite.FIRST, *suite.BUILD, *suite.sections_of(part, ("triton", "cuda"))]
    assert suite.longest(sections, 8) <= suite.ENTIRE <= 530.0


def test_ours_come_before_peers() -> None:
    assert list(suite.PARTS) == ["check", "time", "peers"]
    assert {part: {s.ours for s in sections} for part, sections in suite.PARTS.items()} == {
        "check": {True},
        "time": {True},
        "peers": {False},
    }


def test_the_sanitizer_watches_every_family_twice() -> None:
    names = {section.name for section in suite.PARTS["check"] if section.function == "sanitizer:run"}
    families = ("mixture", "simulate", "loss", "reverse steps", "mlp sampler")  # the last is CUDA's
    assert names == {f"{tool} {family}" for tool in ("memcheck", "racecheck") for family in families}


@pytest.mark.parametrize(
    ("status", "said", "found"),
    [
        (0, "launched 1\nlaunched 2\nlaunched all\n", "no errors, 2 cases"),
        (0, "launched all\n", "0 errors, 0 cases, exit status 0"),
        (0, "launched 2\n", "0 errors, 2 cases, exit status 0: launched 2"),
        (9, "launched 2\n========= Invalid __global__ read\nlaunched all\n", "1 errors, 2 cases, exit status 9"),
        (9, "launched 2\n========= Error: Race reported\nlaunched all\n", "1 errors, 2 cases, exit status 9"),
        (None, "launched 2\n", "0 errors, 2 cases, stopped at its limit: launched 2"),
        (-9, "launched 2\nlaunched all\n", "0 errors, 2 cases, exit status -9"),
        (1, "no permission", "0 errors, 0 cases, exit status 1: no permission"),
    ],
    ids=["passed", "nothing launched", "not all", "invalid", "race", "stopped", "killed", "did not run"],
)
def test_what_the_sanitizer_did_not_see_to_the_end_has_failed(status: int | None, said: str, found: str) -> None:
    assert sanitizer.verdict(status, said) == (found, found == "no errors, 2 cases")


def test_what_hangs_under_the_sanitizer_is_stopped() -> None:
    status, said = sanitizer.output_of([sys.executable, "-uc", "print(1)\nwhile True: pass"], 2.0)
    assert (status, said) == (None, "1\n")


def test_without_a_gpu_full_sizes_are_refused() -> None:
    done = run("benchmarks/gpu/run.sh", FASTNDSM_BENCH_SIZE="full")
    assert done.returncode == 1
    assert "PyTorch finds no GPU; FASTNDSM_BENCH_SIZE=tiny runs the code path on a CPU" in done.stdout


@pytest.mark.parametrize("recorded", [True, False])
def test_times_of_calls_on_a_gpu(recorded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of one call of three, by events around as many replays as take 2 ms, on a device made up for it."""
    called: list[str] = []

    class Graph:
        def __init__(self, device: torch.device) -> None: ...

        def rehearse(self, run: Callable[..., Any], state: Any) -> None:
            run(*state)
            if not recorded:
                raise RuntimeError("it waits")

        def record(self, run: Callable[..., Any], state: Any) -> None:
            run(*state)

        def replay(self) -> None:
            called.append("replay")

    def events(run: Callable[[], Any], inner: int) -> float:
        run()
        return 300e-6 * inner

    monkeypatch.setattr(device, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(device, "CUDAGraph", Graph)
    monkeypatch.setattr(device, "_events", events)
    timing = device.timed([lambda: called.append("run")] * 3, seconds=0.01)
    assert timing.how == ("graph" if recorded else "events")
    assert timing.seconds == pytest.approx([100e-6] * 5)  # 7 replays each
    assert called == ["run"] * 6 + ["replay"] * 7 if recorded else ["run"] * (3 + 3 * 7)


# --- the kernels of the ceilings ---------------------------------------------------------------------------------


def test_what_the_ceilings_compute(tmp_path: Path) -> None:
    """Require that nothing of it was left out."""
    found = interpreted_by(__file__, tmp_path)
    chain = torch.arange(16.0)
    for _ in range(3 * 2):
        chain = 0.5 * chain + 0.5
    torch.testing.assert_close(found["multiply-adds"], chain.sum().expand(2))
    normals = sum(functional.philox_normal(16, 4, seed=1, step=n, backend="reference") for n in range(3))
    torch.testing.assert_close(found["normals"], torch.stack([part.sum() for part in normals.split(8)]))


@pytest.mark.parametrize("target", TARGETS)
def test_ceilings_compile_for(target: str, compiled: list[Row]) -> None:
    rows = [row for row in compiled if row["target"] == target]
    assert len(rows) == 2
    for row in rows:
        check_resources(row, 64)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return compiled_by(__file__, tmp_path_factory.mktemp("compile"))


def interpret() -> dict[str, Any]:
    from benchmarks.gpu import ceiling_kernels as kernels

    found = {"multiply-adds": torch.empty(2), "normals": torch.empty(2)}
    kernels.multiply_add_kernel[(2,)](found["multiply-adds"], 0.5, 3, SIZE=16, UNROLLED=2)
    kernels.normal_kernel[(2,)](found["normals"], torch.tensor(1), 3, SIZE=8)
    return found


def compile_all() -> Iterator[Row]:
    from benchmarks.gpu import ceiling_kernels as kernels

    fma = {"out_ptr": "*fp32", "factor": "fp32", "iterations": "i32"}
    normal = {"out_ptr": "*fp32", "seed_ptr": "*i64", "iterations": "i32"}
    for target in TARGETS:
        constants = {"SIZE": kernels.SIZE, "UNROLLED": kernels.UNROLLED}
        yield compile_ahead(kernels.multiply_add_kernel, fma, constants, target, num_warps=kernels.WARPS)
        constants = {"SIZE": kernels.COUNTERS}
        options = {"num_warps": kernels.WARPS, "enable_fp_fusion": False}
        yield compile_ahead(kernels.normal_kernel, normal, constants, target, **options)


if __name__ == "__main__":
    main(interpret, compile_all)
