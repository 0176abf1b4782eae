"""The method's quality on trained networks, with the bounds it is held to. Slow: `make test-slow`.

The figures are those of benchmarks/quality.py, which prints them too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import quality

pytestmark = pytest.mark.slow
TWO_SIDED = ["path", "plain antithetic", "control_variate"]


@pytest.mark.parametrize("estimator", TWO_SIDED)
def test_known_score_is_learnt(estimator: str) -> None:
    assert quality.known_score(estimator)["relative_error"] <= 0.01


@pytest.mark.parametrize("estimator", TWO_SIDED)
@pytest.mark.parametrize(("name", "share"), [("four_modes", 0.5), ("ring", 0.5), ("moons", 0.25)])
def test_planar_samples_beat_draws_from_the_reference(name: str, share: float, estimator: str) -> None:
    for seed in range(3):
        rows = {row["row"]: row for row in quality.planar(name, estimator, seed)}
        ours, reference = rows[estimator], rows["pi"]
        assert ours["energy_distance"] <= share * reference["energy_distance"], (seed, ours, reference)
        assert ours.get("mode_tv", 0.0) <= 0.04, (seed, ours)


def test_digits() -> None:
    rows = {row["row"]: row for row in quality.digits(["path", "control_variate"])}
    path, control, pi = rows["path"], rows["control_variate"], rows["pi"]
    assert path["frechet_distance"] <= 0.35 * pi["frechet_distance"]
    assert path["nearest_distance"] <= 2.4
    assert path["confidence"] >= 0.95
    assert path["class_tv"] <= 0.08
    assert control["frechet_distance"] <= 0.45 * pi["frechet_distance"]
    assert control["nearest_distance"] <= 2.95


def test_gradient_traces_on_trained_networks() -> None:
    rows = quality.variance()

    def trace(data: str, who: str, key: str, value: float) -> float:
        (row,) = [r for r in rows if (r["data"], r["row"], r.get(key)) == (data, who, value)]
        return float(row["trace"])

    assert trace("four_modes", "plain", "dt", 1e-3) >= 25 * trace("four_modes", "control_variate", "dt", 1e-3)
    assert trace("four_modes", "control_variate", "dt", 0.1) >= 1.5 * trace("four_modes", "plain antithetic", "dt", 0.1)
    # two draws of path for the two evaluations of an antithetic pair
    assert trace("digits", "plain antithetic", "t/T", 1.0) >= 8 * trace("digits", "path", "t/T", 1.0) / 2


def test_gradient_trace_of_a_linear_score_is_its_closed_form() -> None:
    """The instrument itself: s = w (constant), x0 = 0, plain: gradient w + z / s_n has trace d / s_n^2."""

    class Constant(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.zeros(2))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.w.expand_as(x)

    process = quality.OUProcess(2, n_steps=50)
    trace = quality.gradient_trace(Constant(), process, torch.zeros(4, 2), "plain", 10, n=4000)
    expected = 2.0 / float(process.noise_std[10]) ** 2
    assert abs(trace / expected - 1.0) < 0.1
