"""TorchCFM's plane: the laws of its sets, the distance, the solvers of flows, and a reduced run of ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.public import plane


def test_sets_have_the_moments_of_their_sources() -> None:
    x = plane.eight_gaussians(40_000, 0)
    assert x.mean(0).abs().max() < 0.1
    spread = (x.norm(dim=1).square().mean() - 25.0) / 2.0  # E |x|^2 = 5^2 + 2 var
    assert float(spread) == pytest.approx(math.sqrt(0.1), abs=0.05)
    x = plane.moons(20_000, 0)
    assert x.mean(0).tolist() == pytest.approx([0.5, -0.25], abs=0.05)  # 3 (1/2, 1/4) - 1
    x = plane.s_curve(20_000, 1)
    assert float(x.std()) == pytest.approx(7.0, abs=0.1) and abs(float(x.mean())) < 0.1
    assert not torch.equal(x, plane.s_curve(20_000, 2))


def test_wasserstein_of_shifted_points() -> None:
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert plane.wasserstein(x[order] + torch.tensor([3.0, 4.0]), x) == pytest.approx(5.0, rel=1e-6)


def test_flows_are_carried_with_the_order_of_their_method() -> None:
    class Decay(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return -x * (1.0 + t[:, None])  # x(1) = x(0) exp(-3/2)

    x = torch.ones(1, 2)
    errors = {
        method: [abs(float(plane.flowed(Decay(), x, n, method)[0, 0]) - math.exp(-1.5)) for n in (20, 40)]
        for method in ("Euler", "midpoint")
    }
    assert errors["Euler"][0] / errors["Euler"][1] == pytest.approx(2.0, abs=0.2)
    assert errors["midpoint"][0] / errors["midpoint"][1] == pytest.approx(4.0, abs=0.6)


def test_the_page_takes_the_better_solver() -> None:
    rows = [{"w2": {"10": {"Euler": 2.0, "midpoint": m}}} for m in (1.0, 1.5)]
    assert plane.nearest(rows, "10") == (1.25, 0.25)
    assert plane.nearest(rows, "5") is None


def test_the_page_says_which_is_ahead_by_how_much_and_what_is_missing() -> None:
    def row(method: str, seed: int, **w2: dict[str, float]) -> dict[str, Any]:
        return {"set": "moons", "method": method, "seed": seed, "w2": {calls[1:]: cell for calls, cell in w2.items()}}

    rows = [row("path", 42, _5={"": 0.4}), row("path", 43, _5={"": 9.0})]
    rows += [row("I-CFM", 42, _10={"Euler": 0.5, "midpoint": 0.6}), row("OT-CFM", 42, _10={"Euler": 0.3})]
    assert plane.margin(rows, "5", "10") == "above by 0.100 (0.400, OT-CFM 0.300)"  # of the seed that both have
    assert plane.margin(rows[:3], "5", "10") == "below by 0.100 (0.400, I-CFM 0.500)"
    assert plane.margin(rows, "100", "100") == ""
    said = plane.missing(rows)
    assert said.startswith("seed 42: fresh points; draws from the mixture; flow") and said.endswith("44, 45, 46: all")


def test_a_reduced_run(tmp_path: Path) -> None:
    methods = [plane.FRESH, plane.PRIOR, *plane.OURS]
    arguments = ["--sets", "moons", "--seeds", "42", "--steps", "30", "--points", "600", "--out", str(tmp_path)]
    assert plane.main([*arguments, "--methods", *methods]) == 0
    rows = [json.loads(line) for line in (tmp_path / plane.ROWS).read_text().splitlines()]
    assert [row["method"] for row in rows] == methods
    at_ten = {row["method"]: row["w2"]["10"][""] for row in rows[2:]}
    floor = rows[0]["w2"][""][""]
    assert floor < at_ten["path"] < 1.0 and floor < at_ten["flow from the mixture"] < 1.0
    assert plane.main([*arguments, "--methods", *methods]) == 0  # nothing is left to run
    assert len((tmp_path / plane.ROWS).read_text().splitlines()) == len(methods)
    assert "## moons" in (tmp_path / plane.PAGE).read_text()


def test_a_peer_runs(tmp_path: Path) -> None:
    pytest.importorskip("torchcfm")
    arguments = ["--sets", "moons", "--seeds", "42", "--steps", "30", "--points", "600", "--out", str(tmp_path)]
    assert plane.main([*arguments, "--methods", "OT-CFM"]) == 0
