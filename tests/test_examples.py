"""The recipes of examples/, shortened: that they run, and that what they show is so."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def run(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    return importlib.import_module(name).main()


def test_the_loop_of_ones_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run("own_training_loop", monkeypatch, "--steps", "60")
    assert "mean distance from the arcs" in capsys.readouterr().out


def test_class_conditional(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("class_conditional", monkeypatch, "--steps", "600")
    assert found["error at guidance 0"] > 0.4  # which asks for no class
    for guidance in (1, 2):
        assert found[f"error at guidance {guidance}"] <= found["error of held-out data"] + 0.02
    assert found["energy distance to class 0"] < 0.03 and found["energy distance to class 1"] < 0.03
    assert found["mean log-likelihood under the right class"] > found["under the other"] + 3.0


def test_inpainting(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("inpainting", monkeypatch, "--steps", "300")
    for name in ("guide", "guide and start"):
        assert found[f"{name}: known"] < 0.1 < found["unguided: known"]
    best = found["guide and start: filled in"]
    assert best < found["guide: filled in"] - 0.1 and best < found["unguided: filled in"] - 0.1


def test_paths_and_edits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = run("paths_and_edits", monkeypatch, "--steps", "300", "--png", str(tmp_path / "p.png"))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    at = [value for name, value in found.items() if name.startswith("distance from the data at")]
    assert len(at) == 11 and at[-1] < 0.5 * at[0]
    from_data, from_sketch = (
        [found[f"distance from the {what}: after {share}%"] for share in (25, 50, 100)] for what in ("data", "sketch")
    )
    assert found["distance from the data: sketch"] > 2.0 * from_data[0]
    assert from_sketch == sorted(from_sketch)


def test_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = run("table", monkeypatch, "--csv", str(tmp_path / "rows.csv"))
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 143
    assert found["share of copies"] < 0.05
    real, made = (found[f"accuracy, trained on {rows} rows"] for rows in ("real", "generated"))
    assert made > real - 0.1
    assert found["cultivars recognised by filling"] > 0.85
    assert found["error of filled alcohol"] < 0.8 * found["error of any wine's alcohol"]


def test_own_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("own_network", monkeypatch, "--steps", "300", "--folder", str(tmp_path / "own"))
    assert "without the class: network: expected the class own_network.Fourier" in capsys.readouterr().out
    assert found["largest difference of samples"] == 0.0 and found["energy distance to held-out data"] < 0.02


def test_bits_per_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("bits_per_dimension", monkeypatch, "--steps", "300")
    assert found["network"] + 10.0 * found["its standard error"] < found["mixture alone"] < found["no model"]
    assert found["its error of integration"] < 0.05


def test_score_sde_sampler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("score_sde_sampler", monkeypatch, "--steps", "300")
    assert "marginal_prob: expected a process with Gaussian transitions" in capsys.readouterr().out
    for name in ("their predictor, reverse SDE", "their predictor, probability flow", "fastndsm.sample"):
        assert found[name] < 0.3 * found["prior"]


def test_with_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning")
    pytest.importorskip("torchmetrics")
    found = run("with_lightning", monkeypatch, "--steps", "200")
    assert found["FID, samples"] < 0.8 * found["FID, mixture"]


def test_hub_and_pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    found = run("hub_and_pipeline", monkeypatch, "--steps", "100", "--folder", str(tmp_path))
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert found["largest difference after two loads"] == 0.0
    assert found["share of samples of their class"] > 0.7


def test_every_recipe_is_run_here() -> None:
    tested = {name.removeprefix("test_") for name in globals()} | {"own_training_loop"}
    assert set(NAMES) <= tested
