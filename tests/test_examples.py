"""The recipes of examples/, shortened: that they run, and that what they show is so."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from patience import PATIENCE

from fastndsm.training import load_model

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
    assert found["error of draws from the reference"] < 0.1  # before any training
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


def test_trainer_options(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("trainer_options", monkeypatch, "--steps", "500")
    assert found["best step"] < found["steps taken"] < 500  # it ended early
    assert found["its loss on held-out data"] < found["the last"]


def killed(name: str, start_python: Any, *arguments: object) -> None:
    """Run a recipe by torchrun on two processes, the second of which is killed."""
    launch = ["--standalone", "--nproc-per-node", 2, FOLDER / f"{name}.py", *arguments]
    torchrun = start_python("import torch.distributed.run as r; r.main()", *launch)
    _, err = torchrun.communicate(timeout=PATIENCE)
    assert torchrun.returncode != 0 and "rank      : 1" in err, err


def test_distributed_training(monkeypatch: pytest.MonkeyPatch, start_python: Any, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--steps", "100", "--samples", "1200"]
    killed("distributed_training", start_python, *options, "--kill-at", 57)
    found = run("distributed_training", monkeypatch, *options)
    assert found["resumed at step"] == 50 and found["processes"] == 1
    assert found["files and gathered samples differ by"] == 0.0
    assert found["energy distance to the data"] < 0.01
    assert len(list((tmp_path / "samples").iterdir())) == 3


def test_sharded_training(monkeypatch: pytest.MonkeyPatch, start_python: Any, tmp_path: Path) -> None:
    options = ["--steps", "30", "--every", "10", "--width", "32", "--out"]
    killed("sharded_training", start_python, *options, tmp_path / "a", "--kill-at", 25)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    resumed, whole = (run("sharded_training", monkeypatch, *options, str(tmp_path / name)) for name in "ab")
    assert resumed["resumed at step"] == 20 and whole["resumed at step"] == 0
    one, other = (load_model(tmp_path / name / "model")[0].state_dict() for name in "ab")
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_noisings(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("noisings", monkeypatch, "--steps", "500")
    mixture = found.pop("draws from the mixture")["energy distance"]
    assert len(found) == 5
    for name, figures in found.items():
        assert figures["energy distance"] < 0.6 * mixture, name
        assert figures["log-likelihood"] > -1.6, name


def test_target_energy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("target_energy", monkeypatch, "--steps", "300")
    assert found["energy distance of samples"] < 0.2 * found["energy distance of the noised data"]
    assert 0.55 < found["share of samples on the right (0.7)"] < 0.85


def test_every_recipe_is_run_here() -> None:
    tested = {name.removeprefix("test_") for name in globals()} | {"own_training_loop"}
    assert set(NAMES) <= tested
