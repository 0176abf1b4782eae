"""Few images: the closed-form score, the kernel's width, and a reduced run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.public import few
from fastndsm import EDMProcess, GaussianMixture


def points(n: int, dim: int = 3) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(0))


def test_without_smoothing_the_score_is_that_of_the_noised_points() -> None:
    z, x, t = points(30), points(5) * 2.0, torch.tensor([0.2, 0.5, 1.0, 2.0, 4.0])
    process = EDMProcess(3, GaussianMixture.from_points(z, few.NARROW))
    found = few.SmoothedScore(process, 0.0)(x, t)
    weights = torch.softmax(-0.5 * torch.cdist(x, z).square() / t[:, None].square(), dim=1)
    torch.testing.assert_close(found, (weights @ z - x) / t[:, None].square(), rtol=1e-3, atol=1e-3)


def test_smoothed_samples_are_means_of_points_and_no_longer_copies() -> None:
    z = points(40)
    copies, smooth = (few.closed_form(z, sigma, 200, 0, 20) for sigma in (0.0, 0.6))
    nearest = [float(torch.cdist(x, z).min(1).values.mean()) for x in (copies, smooth)]
    assert nearest[0] < 0.05 < 0.2 < nearest[1]
    assert bool((smooth.amax(0) <= z.amax(0) + 0.05).all()) and bool((smooth.amin(0) >= z.amin(0) - 0.05).all())


def test_the_kernel_narrows_with_more_points() -> None:
    assert few.kernel(points(50))[1] > few.kernel(points(2000))[1]


def test_folds_leave_every_row_out_once() -> None:
    z = points(23)
    parts = few.folds(z)
    assert sorted(torch.cat([left for _, left in parts]).flatten().tolist()) == sorted(z.flatten().tolist())
    assert all(len(fitted) + len(left) == 23 for fitted, left in parts)


def test_a_reduced_run(tmp_path: Path) -> None:
    arguments = ["--quick", "--sizes", "200", "--seeds", "1", "--out", str(tmp_path)]
    assert few.main(arguments) == 0
    rows = {row["method"]: row for row in map(json.loads, (tmp_path / few.ROWS).read_text().splitlines())}
    assert tuple(rows) == few.EVERY
    assert rows[few.TRAINING]["copies"] == 1.0 and rows[few.HELD_OUT]["copies"] < 0.1
    assert rows[few.HELD_OUT]["nearest"] == pytest.approx(1.0, abs=0.1)
    assert few.main(arguments) == 0  # nothing is left to run
    assert len((tmp_path / few.ROWS).read_text().splitlines()) == len(rows)
    assert "## 200 images" in (tmp_path / few.PAGE).read_text()


def test_the_page_says_what_is_missing() -> None:
    rows = [{"n": 200, "method": method, "seed": 0} for method in few.EVERY[1:]]
    assert few.missing(rows) == f"seed 0: {few.EVERY[0]}. seed 1: all. seed 2: all"


def test_quick_runs_keep_out_of_the_results() -> None:
    with pytest.raises(SystemExit, match="--quick: expected a folder of its own"):
        few.main(["--quick"])
