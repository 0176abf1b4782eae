"""Images in pixels: the cases' weights, EDM's Heun sampler, and a reduced run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.public import pixels
from fastndsm import EDMProcess


def generator() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def test_cases_have_the_weights_they_are_named_for() -> None:
    labels = torch.arange(10).repeat(200)
    x = torch.arange(2000.0)[:, None, None, None].expand(-1, 1, 2, 2).clone()
    made, kept = pixels.chosen_of(x, labels, case=pixels.UNEQUAL, generator=generator(), n=1000)
    counts = torch.bincount(kept, minlength=10)
    assert int(counts[pixels.RARE]) == 20 and int(counts.max()) - int(counts[counts > 20].min()) <= 1
    assert len(made[:, 0, 0, 0].unique()) == 1000
    with pytest.raises(ValueError, match="n: expected as many images"):
        pixels.chosen_of(x, labels, case=pixels.UNEQUAL, generator=generator(), n=2000)
    x[..., 0] += 0.5  # a left side that tells
    made, kept = pixels.chosen_of(x, labels, case=pixels.MIRRORED, generator=generator(), n=1400)
    turned = kept >= len(pixels.CHIRAL)
    assert torch.equal(made[:, 0, 0, 0] < made[:, 0, 0, 1], turned)
    assert float(turned.double().mean()) == pytest.approx(pixels.TURNED, abs=0.04)
    assert {pixels.CHIRAL[int(k) % 7] for k in kept} == set(pixels.CHIRAL)


def test_heun_is_of_second_order_and_counts_its_evaluations() -> None:
    process = EDMProcess(1, sigma_data=0.5, sigma_max=4.0, sigma_min=0.002)
    calls = []

    class Exact(torch.nn.Module):
        """The score of N(0, 1/4) noised: its flow ends at x / sqrt(1 + 4 sigma_max^2) of where it starts."""

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            calls.append(float(t[0]))
            return -x / (0.25 + t[:, None].square())

    start = 4.0 * torch.randn(50, 1, generator=generator())
    truth, errors = start / (1.0 + 4.0 * 16.0) ** 0.5, []
    for evaluations in (20, 40, 80):
        calls.clear()
        found = pixels.heun(Exact(), process, 50, evaluations, 0)
        assert len(calls) == evaluations - 1
        errors.append(float((found - truth).abs().max()))
    assert errors[0] / errors[1] > 3.0 and errors[1] / errors[2] > 3.0


def test_a_reduced_run(tmp_path: Path) -> None:
    methods = [pixels.HELD_OUT, pixels.TRAINING, "mixture alone, K = 10", "path, K = 10", "linear VP DSM", "EDM"]
    arguments = ["--quick", "--sizes", "150", "--out", str(tmp_path), "--methods", *methods]
    assert pixels.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / pixels.ROWS).read_text().splitlines()]
    assert [(row["case"], row["method"]) for row in rows] == [(case, m) for case in pixels.SIZES for m in methods]
    found = {row["method"]: row["found"] for row in rows if row["case"] == pixels.UNEQUAL}
    assert found[pixels.TRAINING][""][""]["copies"] == 1.0 and found[pixels.HELD_OUT][""][""]["copies"] < 0.1
    assert found["path, K = 10"]["10"][""]["frechet"] < found["linear VP DSM"]["10"][""]["frechet"]
    assert set(found["EDM"]["50"]) == {"Heun", "SDE-DPM-Solver++"}
    assert pixels.main(arguments) == 0  # nothing is left to run
    assert len((tmp_path / pixels.ROWS).read_text().splitlines()) == len(rows)


def test_quick_runs_keep_out_of_the_results() -> None:
    with pytest.raises(SystemExit, match="--quick: expected a folder of its own"):
        pixels.main(["--quick"])
