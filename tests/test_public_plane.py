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


class Straight:
    """A matcher of lines between pairs from its sampler; keeps them."""

    def __init__(self, sampler: Any, weight: float) -> None:
        self.ot_sampler, self.weight, self.kept = sampler, weight, list[torch.Tensor]()

    def sample_location_and_conditional_flow(
        self, noise: torch.Tensor, batch: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        a, b = self.ot_sampler.sample_plan(noise, batch)
        self.kept.append(b)
        t = torch.full((len(a),), 0.5)
        return t, (a + b) / 2, self.weight * (b - a)


class Reversed:
    """Pairs the rows of a batch in reverse; counts how often."""

    calls = 0

    def sample_plan(self, noise: torch.Tensor, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        return noise, batch.flip(0)


def test_flows_that_couple_are_trained_on_the_same_pairs_as_alone() -> None:
    x = plane.moons(1200, 0)

    def trained(*weights: float) -> tuple[list[torch.nn.Module], Reversed, list[Straight]]:
        sampler = Reversed()
        matchers = {str(weight): Straight(sampler, weight) for weight in weights}
        nets = plane.train_flows(matchers, x, steps=5, seed=3)
        return [net for net, _ in nets.values()], sampler, list(matchers.values())

    (first, second), sampler, matchers = trained(1.0, -2.0)
    assert sampler.calls == 5
    assert all(torch.equal(a, b) for a, b in zip(matchers[0].kept, matchers[1].kept, strict=True))
    (alone,), _, _ = trained(1.0)
    assert torch.equal(alone(x, x[:, 0]), first(x, x[:, 0]))
    assert not torch.equal(second(x, x[:, 0]), first(x, x[:, 0]))


def test_peers_run(tmp_path: Path) -> None:
    pytest.importorskip("torchcfm")
    arguments = ["--sets", "moons", "--seeds", "42", "--steps", "30", "--points", "600", "--out", str(tmp_path)]
    assert plane.main([*arguments, "--methods", *plane.PEERS]) == 0
    rows = plane.read(tmp_path / plane.ROWS)
    assert all(0.0 < row["w2"]["10"]["midpoint"] < 5.0 for row in rows)
