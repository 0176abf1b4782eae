"""The benchmark suite at its tiny size: every comparison behind a figure is made, and the results are written.

The figures themselves mean nothing at this size. Peers that are not installed are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

from cpp_cases import kernels  # noqa: F401
from patience import PATIENCE

from benchmarks import costs
from benchmarks.rows import Row, Rows

ROOT = Path(__file__).resolve().parent.parent
CASES = {
    "philox_normal": 1,
    "ndsm_loss": 1,
    "dsm_loss": 1,
    "mixture_score": 1,
    "noised_score": 4,
    "simulate": 3,
    "simulate_target": 7,
    "simulate_target records": 4,
    "simulate drift": 4,
    "reverse_steps": 4,
    "sample": 1,
    "network": 2,
    "training step": 3,
    "fit": 1,
}
LEFT_OUT = "d16 and jax or rbg or compiled and target"  # minutes of compilation, and nothing that the others have not


def test_tiny_run_agrees_and_is_written_down(tmp_path: Path) -> None:
    results = tmp_path / "results"
    here = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment = here | {  # pytest-benchmark times nothing in a worker of pytest-xdist
        "FASTNDSM_BENCH_SIZE": "tiny",
        "FASTNDSM_BENCH_RESULTS": str(results),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "--benchmark-quiet"]
    done = subprocess.run(
        [*command, "-k", f"not ({LEFT_OUT})"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]

    (found,) = results.glob("cpu-*.json")
    stored = json.loads(found.read_text())
    assert found.stem == f"cpu-{stored['machine']['instructions']}"
    assert stored["failed"] == []
    ours = [row for row in stored["rows"] if row["contender"] == "ours"]
    assert {op: sum(row["op"] == op for row in ours) for op in CASES} == CASES
    assert all(row["median_ns_per_unit"] > 0 and row["rounds"] >= 2 for row in stored["rows"])
    no_roofline = ("philox_normal", "training step", "fit", "simulate_target records", "simulate drift")
    no_roofline += ("simulate classes", "simulate_target classes")  # beside those of one class
    assert all(row["roofline_seconds"] > 0 for row in ours if row["op"] not in no_roofline)
    assert all(stored["rates"][name] > 0 for name in ("fma", "sgemm", "normals"))

    peers = {row["contender"] for row in stored["rows"]}
    assert {"eager", "compiled", "dsm"} <= peers
    assert ("jax threefry" in peers) == (find_spec("jax") is not None)
    assert ("torchsde" in peers) == (find_spec("torchsde") is not None)

    table = found.with_suffix(".md").read_text()
    assert all(f"| {row['op']} | {row['case']} | " in table for row in ours if row["op"] != "training step")
    assert stored["machine"]["cpu"] in table


def test_turns_are_compared_with_each_other() -> None:
    """A machine that slows down slows both, whatever it does to the medians of all rounds."""

    def contender(name: str, *turns: list[float]) -> Row:
        return Row(
            "op", "case", name, "a step", 1, "", [s for turn in turns for s in turn], [len(turn) for turn in turns]
        )

    ours = contender("ours", [2.0, 2.0, 9.0], [4.0, 4.0], [20.0])
    peer = contender("peer", [1.0], [2.0, 1.0, 3.0], [10.0, 10.0])
    assert ours.over(peer) == 2.0 and peer.over(ours) == 0.5
    assert ours.median / peer.median != 2.0
    assert ours.over(contender("fewer turns", [2.0, 4.0])) == ours.median / 3.0
    ours.targets = {"peer": 0.6}
    assert Rows({"ours"}, [ours, peer]).missed() == ["op case: 0.5 of peer's time, to reach 0.6"]


def test_costs_are_compared_with_those_recorded(kernels: None) -> None:  # noqa: F811
    """A case that has become dearer is a warning and no failure: others may take the machine's time meanwhile."""
    found = costs.measure(seconds=0.1)
    assert found.keys() == costs.cases().keys() and min(found.values()) > 1.0
    for line in costs.dearer(found, costs.recorded()):
        warnings.warn(line, stacklevel=1)
    name = next(iter(found))
    assert costs.dearer(found, found) == [] == costs.dearer({}, found)
    (line,) = costs.dearer(found, found | {name: found[name] / 2})
    assert line.startswith(f"{name}: ") and " 2 times " in line


def test_costs_are_recorded_by_instruction_set() -> None:
    for isa in ("avx2", "avx512"):
        stored = json.loads((costs.RESULTS / f"costs-{isa}.json").read_text())
        assert stored["machine"]["instructions"] == isa and stored["costs"].keys() == costs.cases().keys()
