"""The command line, from data to report, and what it says to bad input."""

from __future__ import annotations

import base64
import dataclasses
import functools
import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastndsm
from fastndsm import reference
from fastndsm.backends import registry
from fastndsm.cli import COMMANDS, _common, _options, comparison, main, parser, report
from fastndsm.cli._settings import Settings
from fastndsm.cli.comparison import CASES
from fastndsm.data import Dataset, Standardizer, load
from fastndsm.jit import cuda
from fastndsm.jit.cache import make_private
from fastndsm.jit.toolchain import find_compiler
from fastndsm.latent import PCA, Autoencoder, LatentModel
from fastndsm.networks import UNet
from fastndsm.training import checkpoint
from fastndsm.training.checkpoint import load_model
from fastndsm.training.trainer import TrainConfig, Trainer

TINY = [
    "--steps",
    "12",
    "--batch-size",
    "16",
    "--n-steps",
    "40",
    "--samples",
    "80",
    "--hidden",
    "16,16",
    "--no-progress",
]


class OneLayer(nn.Module):
    """A network of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x)


class Result(SimpleNamespace):
    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: object) -> Result:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(status=status, out=captured.out, err=captured.err)

    return call


def refused(result: Result, message: str) -> None:
    """Require status 2 and one line."""
    assert result.status == 2
    lines = [line for line in result.err.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("fastndsm ") and "error: " in lines[0]
    assert message in lines[0]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert main(["train", "--out", str(out), *TINY]) == 0
    return out


@pytest.fixture(scope="module")
def moons_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "moons"
    assert main(["train", "--data", "moons", "--n-train", "300", "--labels", "auto", "--out", str(out), *TINY]) == 0
    return out


class TestTrain:
    def test_digits_by_default(self, digits_run: Path) -> None:
        assert sorted(path.name for path in digits_run.iterdir()) == [
            "checkpoints",
            "model",
            "report",
            "setup",
        ]
        files = {path.name for path in (digits_run / "report").iterdir()}
        pictures = ("samples.png", "paths.png", "curve.png")
        assert files == {"report.html", "report.md", "report.json", *pictures}
        page = (digits_run / "report" / "report.html").read_text()
        inside = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]*)"', page)]
        assert inside == [(digits_run / "report" / name).read_bytes() for name in pictures]
        assert page.count("src=") == len(pictures) and "href=" not in page and "http" not in page  # needs nothing else
        for name in pictures:
            assert (digits_run / "report" / name).read_bytes().startswith(b"\x89PNG")
        found = json.loads((digits_run / "report" / "report.json").read_text())
        assert set(found["metrics"]) == {"samples", "reference", "held_out"}
        for row in found["metrics"].values():
            assert {
                "energy_distance",
                "nearest_distance",
                "frechet_distance",
                "class_tv",
                "confidence",
            } <= set(row)
        assert found["counts"] == {"samples": 80, "reference": 80, "held_out": 360}
        for weights in found["label_weights"].values():
            assert len(weights) == 10 and sum(weights) == pytest.approx(1.0)
        tried = [row["n_components"] for row in found["selection"]]
        assert tried == [1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100]
        assert found["config"]["components"] in tried[7:]
        text = (digits_run / "report" / "report.md").read_text()
        assert "## Choice of the reference" in text and f"| {found['config']['components']} (chosen) " in text
        assert found["config"]["grid"] == "uniform"
        assert found["config"]["features"] is False
        assert found["history"][-1]["step"] == 12
        assert found["versions"]["torch"] == torch.__version__
        assert set(found["seconds"]) == {"fit the mixture", "train", "sample"}
        # the held-out row is that of the metrics themselves, and needs no samples
        dataset = load("digits")
        held_out = report.evaluate_samples(dataset.test, dataset).metrics["held_out"]
        assert found["metrics"]["held_out"] == pytest.approx(held_out, rel=1e-3)

    def test_2d_ends_with_headline_numbers_and_the_reports_path(self, tmp_path: Path, run: Any) -> None:
        result = run("train", "--data", "four_modes", "--n-train", 300, "--out", tmp_path / "r", *TINY)
        assert result.status == 0, result.err
        lines = result.out.splitlines()
        assert lines[-1] == f"report: {tmp_path / 'r' / 'report' / 'report.html'}"
        assert any(line.startswith("| energy_distance") for line in lines)
        assert any(line.startswith("| mode_tv") for line in lines)
        text = (tmp_path / "r" / "report" / "report.md").read_text()
        assert "| energy_distance" in text and "samples.png" in text
        net, process, meta = load_model(tmp_path / "r" / "model")
        assert isinstance(net, fastndsm.ResidualScore) and net.features
        assert f"| {process.reference.n_components} (chosen) " in result.out and process.reference.n_components >= 4
        torch.testing.assert_close(process.times, process.T * (torch.arange(41).double() / 40) ** 2)
        assert (meta["data"], meta["n_train"]) == ("four_modes", 300)

    def test_linear_baseline_on_the_users_file(self, tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32))
        result = run(
            "train",
            "--data",
            tmp_path / "mine.npy",
            "--process",
            "ou",
            "--out",
            tmp_path / "r",
            "--no-residual",
            *TINY,
        )
        assert result.status == 0, result.err
        net, process, _ = load_model(tmp_path / "r" / "model")
        assert isinstance(process, fastndsm.OUProcess) and process.T == pytest.approx(10.0)
        assert not isinstance(net, fastndsm.ResidualScore)
        assert "label weights" not in result.out.lower()

    @pytest.mark.parametrize("name", ["ou-mixture", "edm", "flow"])
    def test_other_noisings_with_the_mixture(self, name: str, tmp_path: Path, run: Any) -> None:
        options = ["--data", "four_modes", "--n-train", 120, "--components", 4, "--process", name, *TINY]
        result = run("train", "--out", tmp_path / "r", *options)
        assert result.status == 0, result.err
        net, process, _ = load_model(tmp_path / "r" / "model")
        kinds = {"ou-mixture": fastndsm.OUProcess, "edm": fastndsm.EDMProcess, "flow": fastndsm.FlowProcess}
        assert type(process) is kinds[name] and isinstance(net, fastndsm.ResidualScore)
        assert process.reference.n_components == 4
        again = run("train", "--out", tmp_path / "r", *options, "--resume")
        assert again.status == 0, again.err
        assert run("sample", tmp_path / "r", "--n", 5, "--out", tmp_path / "s.npy").status == 0
        assert np.isfinite(np.load(tmp_path / "s.npy")).all()

    def test_images_get_a_unet(self, tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(40, 1, 16, 16)))
        options = ["--data", tmp_path / "mine.npy", "--components", 1, "--base", 8, "--features", "--no-progress"]
        options += ["--latent", "none"]
        sizes = ["--steps", 2, "--batch-size", 4, "--samples", 4, "--n-steps", 20]
        result = run("train", "--out", tmp_path / "r", *options, *sizes)
        assert result.status == 0, result.err
        net, process, _ = load_model(tmp_path / "r" / "model")
        assert isinstance(net, fastndsm.ResidualScore) and isinstance(net.net, UNet)
        assert net.net.in_channels == 2
        assert process.event_shape == (1, 16, 16)
        refused(
            run("train", "--out", tmp_path / "s", *options, "--hidden", "8"),
            "--hidden: expected with --network mlp, found unet",
        )

    @pytest.mark.parametrize("latent", [None, "pca"])
    def test_large_images_are_trained_on_in_a_latent_space(
        self, latent: str | None, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        generator = np.random.default_rng(0)
        bars = np.zeros((80, 16, 16), np.uint8)  # one bar each, at a height of its own, lit from below
        for image, place in zip(bars, generator.integers(0, 14, 80), strict=True):
            image[place : place + 2] = 200
        np.save(tmp_path / "mine.npy", bars)
        fit = functools.partial(Autoencoder.fit, steps=200, batch_size=32)
        monkeypatch.setattr(Autoencoder, "fit", fit)
        options = [] if latent is None else ["--latent", latent, "--latent-dim", 3]
        train = ["train", "--data", tmp_path / "mine.npy", "--out", tmp_path / "r", *options, "--components", 2, *TINY]
        result = run(*train, "--checkpoint-every", 5, "--n-steps", 600)
        assert result.status == 0, result.err
        dim = 16 if latent is None else 3
        model = LatentModel.load(tmp_path / "r" / "model")
        assert model.process.event_shape == (dim,) and isinstance(model.encoder, Autoencoder if latent is None else PCA)
        images = model.sample(5, seed=3)
        assert images.shape == (5, 1, 16, 16)
        held_out = load(tmp_path / "mine.npy").test.double()
        lost = model.encoder.decode(model.encoder.encode(held_out.float())) - held_out
        kept = 1.0 - float(lost.square().mean() / (held_out - held_out.mean(0)).square().mean())
        assert f"the encoder keeps {kept:.0%} of the variance" in result.out
        assert ("warning: --latent: expected a space that keeps 50%" in result.err) == (kept < 0.5)
        sample = ["sample", tmp_path / "r", "--n", 5, "--seed", 3, "--no-progress"]
        assert run(*sample, "--out", tmp_path / "a.npy", "--png", tmp_path / "a.png").status == 0
        np.testing.assert_allclose(np.load(tmp_path / "a.npy"), images.numpy(), atol=1e-3)
        found = run("evaluate", tmp_path / "r", "--n", 40, "--no-progress")
        assert found.status == 0, found.err
        document = json.loads((tmp_path / "r" / "report" / "report.json").read_text())
        assert "fit the encoder" in document["seconds"]
        monkeypatch.setattr(Autoencoder, "fit", lambda *_, **__: pytest.fail("trained again"))
        for folder in ("model", "report", "checkpoints/step-000012"):  # as if killed between steps 10 and 12
            shutil.rmtree(tmp_path / "r" / folder)
        result = run("train", "--out", tmp_path / "r", "--resume", "--no-progress")
        assert result.status == 0 and "resumed at step 10 of 12" in result.out, result.err
        assert run(*sample, "--out", tmp_path / "b.npy").status == 0
        assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))

    def test_resume_takes_up_the_run_and_ends_like_it(self, tmp_path: Path, run: Any) -> None:
        options = ["--data", "ring", "--n-train", 100, "--estimator", "plain", "--antithetic", *TINY]
        assert run("train", "--out", tmp_path / "a", *options, "--checkpoint-every", 5).status == 0
        assert run("train", "--out", tmp_path / "b", *options, "--checkpoint-every", 5).status == 0
        for folder in ("model", "report", "checkpoints/step-000012"):  # as if killed between steps 10 and 12
            for path in (tmp_path / "b" / folder).iterdir():
                path.unlink()
            (tmp_path / "b" / folder).rmdir()
        result = run("train", "--out", tmp_path / "b", "--resume", "--no-progress")
        assert result.status == 0, result.err
        assert "resumed at step 10 of 12" in result.out
        weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
        assert weights[0] == weights[1]
        refused(
            run("train", "--out", tmp_path / "b", "--resume", "--lr", 0.1, "--data", "moons"),
            "expected the settings of the run, found --data moons (run: ring), --lr 0.1 (run: 0.002)",
        )

    def test_held_out_data_stop_a_run_and_choose_its_weights(
        self, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logged: list[tuple[int, Any]] = []
        logger = SimpleNamespace(
            log=lambda metrics, step: logged.append((step, metrics.get("validation"))), close=lambda: None
        )
        monkeypatch.setattr("fastndsm.cli._train.TensorBoard", lambda folder: logger)
        seen: list[Trainer] = []
        fit = Trainer.fit
        monkeypatch.setattr(Trainer, "fit", lambda self, **options: seen.append(self) or fit(self, **options))
        options = [
            "--data",
            "moons",
            "--n-train",
            100,
            "--labels",
            "auto",
            *TINY,
            "--components",
            2,
            "--validation",
            0.2,
        ]
        options += ["--validate-every", 1, "--patience", 2, "--lr", 0.3, "--steps", 40, "--checkpoint-every", 3]
        options += ["--precision", "bfloat16", "--accumulate", 4, "--logger", "tensorboard", "--ema", 0]
        result = run("train", "--out", tmp_path / "a", *options)
        assert result.status == 0, result.err
        (trainer,) = seen
        assert trainer.stopped_early and trainer.step < 40
        best, last = trainer.best.step, trainer.step
        assert f"at step {best}; training ended at step {last}" in result.out
        assert logged == [(row.step, row.validation) for row in trainer.history]
        known = load("moons", n=100)
        rows = {tuple(row) for row in torch.cat([trainer.data, trainer._validation.x]).tolist()}
        assert (len(trainer.data), len(trainer._validation.x), len(rows)) == (80, 20, len(known.train.unique(dim=0)))
        stored, _, _ = load_model(tmp_path / "a" / "model")
        torch.testing.assert_close(stored.net.last.weight, trainer.best_net.net.last.weight, rtol=0, atol=0)
        assert not torch.equal(stored.net.last.weight, trainer.ema_net.net.last.weight)
        assert (tmp_path / "a" / "report" / "curve.png").exists()

        weights = (tmp_path / "a" / "model" / "model.safetensors").read_bytes()
        shutil.rmtree(tmp_path / "a" / "model")
        again = run("train", "--out", tmp_path / "a", "--resume", "--no-progress")
        assert again.status == 0, again.err
        assert (tmp_path / "a" / "model" / "model.safetensors").read_bytes() == weights
        assert run("train", "--out", tmp_path / "a", "--resume", "--patience", 3, "--no-progress").status == 0
        assert seen[-1].step > last

    def test_options_for_held_out_data_and_figures_that_do_not_go_together(self, tmp_path: Path, run: Any) -> None:
        options = ["train", "--data", "moons", "--n-train", 100, "--out", tmp_path / "r", *TINY]
        refused(run(*options, "--patience", 3), "--patience: expected with --validation, found without")
        refused(
            run(*options, "--validation", 0.001), "--validation: expected a share that holds out some of 100 samples"
        )
        refused(run(*options, "--validation", 1), "--validation: expected a number in (0, 1), found 1.0")
        if importlib.util.find_spec("wandb") is None:
            refused(run(*options, "--logger", "wandb"), "--logger: expected the package wandb, found none")

    def test_a_bad_reference_is_told_and_a_resumed_run_still_shows_the_choice(self, tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(80, 5)))
        options = ["--data", tmp_path / "mine.npy", "--out", tmp_path / "r", *TINY]
        result = run("train", *options, "--components", "auto", "--covariance", "auto")
        assert result.status == 0, result.err
        assert "warning: a single Gaussian describes held-out rows as well as any mixture tried" in result.err
        assert "| 1 (chosen) " in result.out and "| tied " in result.out
        shutil.rmtree(tmp_path / "r" / "report")
        assert run("train", "--out", tmp_path / "r", "--resume", "--no-progress").status == 0
        text = (tmp_path / "r" / "report" / "report.md").read_text()
        assert (
            "| 1 (chosen) " in text
            and "**a single Gaussian describes" in text
            and "| components | 1 " in " ".join(text.split())
        )
        given = run("train", *options, "--overwrite", "--components", 2)
        assert "(chosen)" not in given.out and "single Gaussian" not in given.err

    def test_a_chosen_reference_has_the_steps_that_it_asks_for(self, tmp_path: Path, run: Any) -> None:
        rng = np.random.default_rng(0)
        x = np.concatenate([rng.standard_normal((150, 2)), 8.0 + 0.15 * rng.standard_normal((150, 2))])
        np.save(tmp_path / "mine.npy", x)
        free = [option for option in TINY if option not in ("--n-steps", "40")]
        options = ["train", "--data", tmp_path / "mine.npy", "--reg-covar", 1e-4, "--out"]
        result = run(*options, tmp_path / "r", *free)
        assert result.status == 0 and "stiff grid" in result.out, result.err
        assert "q = a_n lambda_max" not in result.err and load_model(tmp_path / "r" / "model")[1].n_steps > 100
        narrow = run(*options, tmp_path / "s", *TINY)  # forty steps: what takes more is not chosen
        assert narrow.status == 0 and "| 1 (chosen)" in narrow.out, narrow.err

    def test_settings_are_stored_flat_and_a_run_from_before_a_field_of_the_training_takes_its_default(self) -> None:
        settings = Settings(data="ring", training=TrainConfig(steps=7, pool_passes=3), samples=9)
        stored = settings.flat()
        assert (stored["data"], stored["steps"], stored["samples"]) == ("ring", 7, 9)
        assert set(stored) >= {field.name for field in dataclasses.fields(TrainConfig)}
        assert Settings.from_flat(json.loads(json.dumps(stored))) == settings
        del stored["pool_passes"]
        assert Settings.from_flat(stored).training == TrainConfig(steps=7)

    def test_an_old_run_is_kept_unless_told_otherwise(self, tmp_path: Path, run: Any) -> None:
        first = ["train", "--data", "ring", "--n-train", 100, "--out", tmp_path / "r", *TINY]
        assert run(*first).status == 0
        before = (tmp_path / "r" / "model" / "model.safetensors").read_bytes()
        refused(run(*first), "expected a new folder, found a run in")
        assert (tmp_path / "r" / "model" / "model.safetensors").read_bytes() == before
        assert run(*first, "--seed", 5, "--overwrite").status == 0
        assert (tmp_path / "r" / "model" / "model.safetensors").read_bytes() != before
        refused(run(*first, "--overwrite", "--resume"), "expected one of them, found both")

    def test_a_run_that_failed_before_its_first_step_does_not_block_the_folder(self, tmp_path: Path, run: Any) -> None:
        options = ["--data", "ring", "--n-train", 100, "--out", tmp_path / "r", *TINY]
        refused(run("train", *options, "--backend", "cuda"), "backend 'cuda' cannot serve")
        assert run("train", *options).status == 0

    def test_other_files_are_left_alone(self, tmp_path: Path, run: Any) -> None:
        (tmp_path / "thesis.txt").write_text("x")
        for extra in ([], ["--overwrite"], ["--resume"]):
            refused(run("train", "--out", tmp_path, *TINY, *extra), "expected a run or a new folder")
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_loss_that_goes_non_finite_ends_with_one_line(self, tmp_path: Path, run: Any) -> None:
        options = [
            "--data",
            "ring",
            "--n-train",
            100,
            *TINY,
            "--steps",
            60,
            "--checkpoint-every",
            1,
            "--lr",
            "1e30",
        ]
        result = run("train", "--out", tmp_path / "r", *options)
        assert result.status == 1
        assert "last good checkpoint" in result.err and "Traceback" not in result.err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--data", "nothing"], "expected one of four_modes, ring"),
            (["--data", "missing.npy"], "--data: expected a file, found none"),
            (["--n-train", "5"], "--n-train: expected with four_modes"),
            (["--steps", "0"], "steps: expected an integer of at least 1, found 0"),
            (
                ["--components", "5000"],
                "--components: expected at most the number of samples, 1437, found 5000",
            ),
            (
                ["--components", "4", "--paths", "100"],
                "paths: expected 'fresh' or a pool of at least max(n, 1000) = 1437",
            ),
            (["--sigma", "-1"], "sigma: expected a finite positive number, found -1.0"),
            (["--components", "4", "--T", "300"], "q = a_n lambda_max(P_k)"),
            (["--network", "unet", "--data", "ring"], "--network: expected mlp"),
            (["--network", "unet", "--latent", "pca"], "--network: expected mlp with --latent pca, found unet"),
            (["--latent", "none", "--latent-dim", "4"], "--latent-dim: expected with --latent autoencoder or pca"),
            (["--latent", "pca", "--no-standardize"], "--no-standardize: expected with --latent none, found pca"),
            (["--latent-dim", "0"], "--latent-dim: expected"),
            (["--latent", "pca", "--latent-dim", "65"], "--latent-dim: expected at most"),
            (["--features"], "--features: expected --network unet"),
            (["--no-residual", "--features", "--data", "ring"], "--features: expected with --residual"),
            (
                ["--process", "ou", "--antithetic"],
                "--estimator, --antithetic: expected with --process langevin",
            ),
            (["--process", "flow", "--T", "2"], "--T, --sigma, --grid: expected without --process flow"),
            (["--components", "4", "--estimator", "control_variate", "--antithetic"], "antithetic: expected False"),
            (["--samples", "1"], "--samples: expected at least 2, found 1"),
            (["--threads", "0"], "--threads: expected a positive number, found 0"),
            (["--device", "abacus"], "--device: expected a device that torch can use, found 'abacus'"),
        ],
    )
    def test_bad_input(self, tmp_path: Path, run: Any, options: Sequence[str], message: str) -> None:
        refused(run("train", "--out", tmp_path / "r", "--no-progress", *options), message)

    @pytest.mark.parametrize("option", ["--hidden=a", "--paths=many", "--process=linear", "--lr=fast", "--nonsense"])
    def test_options_the_parser_refuses(self, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main(["train", "--out", str(tmp_path / "r"), option])
        assert caught.value.code == 2
        assert "error:" in capsys.readouterr().err


class TestLock:
    """A run's folder belongs to one process at a time."""

    def test_a_second_run_is_refused_and_a_killed_one_leaves_the_folder_free(
        self, tmp_path: Path, run: Any, start_python: Callable[..., subprocess.Popen[str]]
    ) -> None:
        out = tmp_path / "r"
        options = ["train", "--data", "four_modes", "--n-train", "200", "--out", str(out), *TINY]
        code = (
            "import sys, torch; torch.set_num_threads(1); from fastndsm.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        first = start_python(code, *options, "--steps", "1000000", "--checkpoint-every", "5")
        while not (kept := checkpoint.latest(out / "checkpoints")):
            assert first.poll() is None, first.communicate()
            time.sleep(0.02)
        for more in ([], ["--resume"], ["--overwrite"]):
            result = run(*options, *more)
            refused(
                result, f"--out: expected a folder that no run is writing to, found {out} in use by process {first.pid}"
            )
            assert f"on {socket.gethostname()}, since 20" in result.err
        assert first.poll() is None and checkpoint.latest(out / "checkpoints") >= kept
        first.kill()
        first.wait()
        assert (out / "lock").is_file()  # it says nothing: the system knows that nobody holds it
        refused(run(*options), "found a run in")
        refused(run(*options, "--resume"), "--resume: expected the settings of the run, found --steps 12")
        result = run(*options, "--overwrite")
        assert result.status == 0, result.err
        assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "model", "report", "setup"]

    def test_a_run_that_fails_at_once_leaves_nothing(self, tmp_path: Path, run: Any) -> None:
        assert run("train", "--data", "nowhere.npy", "--out", tmp_path / "a" / "r", *TINY).status == 2
        assert not (tmp_path / "a" / "r").exists()


class TestSampleAndEvaluate:
    def test_samples_do_not_depend_on_the_batch(self, digits_run: Path, tmp_path: Path, run: Any) -> None:
        arguments = ["sample", digits_run, "--n", 7, "--no-progress"]
        png = tmp_path / "s.png"
        assert run(*arguments, "--out", tmp_path / "a.npy", "--png", png).status == 0
        assert run(*arguments, "--out", tmp_path / "b.npy", "--batch-size", 3).status == 0
        assert run(*arguments, "--out", tmp_path / "c.npy", "--seed", 1).status == 0
        assert run(*arguments, "--out", tmp_path / "d.npy", "--method", "ode").status == 0
        a, b, c, d = (np.load(tmp_path / f"{name}.npy") for name in "abcd")
        assert a.shape == (7, 1, 8, 8) and a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert not np.allclose(a, c) and not np.allclose(a, d)
        assert png.read_bytes().startswith(b"\x89PNG")

    def test_evaluate_prints_a_table_and_json(self, digits_run: Path, run: Any) -> None:
        result = run("evaluate", digits_run / "model", "--n", 80, "--seed", 0, "--no-progress")
        assert result.status == 0, result.err
        lines = result.out.splitlines()
        assert lines[0].startswith("|") and "samples (n = 80)" in lines[0]
        found = json.loads(lines[-1])["metrics"]
        # the same seed, model and data as the run's own report
        stored = json.loads((digits_run / "report" / "report.json").read_text())["metrics"]
        assert found["samples"] == pytest.approx(stored["samples"], rel=1e-3, abs=1e-4)

    def test_a_network_of_ones_own_is_imported_if_allowed(self, tmp_path: Path, run: Any) -> None:
        checkpoint.save_model(tmp_path / "m", OneLayer(), fastndsm.OUProcess(2), meta={"data": "ring"})
        out, allowed = tmp_path / "s.npy", ("--allow-import", OneLayer.__module__)
        for command in (("sample", tmp_path / "m", "--out", out), ("evaluate", tmp_path / "m")):
            few = (*command, "--n", 20, "--no-progress")
            refused(run(*few), f"or --allow-import='{OneLayer.__module__}.OneLayer' to have it imported")
            result = run(*few, *allowed)
            assert result.status == 0, result.err
        assert np.load(out).shape == (20, 2)

    def test_bad_input(self, digits_run: Path, tmp_path: Path, run: Any) -> None:
        refused(run("sample", tmp_path), "expected a fastndsm model, found no such file")
        refused(run("sample", digits_run, "--n", 0), "n: expected an integer of at least 1, found 0")
        refused(run("sample", digits_run, "--out", "a.txt"), "--out: expected a name ending in .npy")
        refused(
            run("sample", digits_run, "--out", tmp_path / "no" / "a.npy"),
            "--out: expected an existing folder",
        )
        refused(run("evaluate", digits_run, "--data", "ring"), "--data: expected 64 values a sample")


def points(name: str) -> np.ndarray:
    """Data of a scale that no default is made for."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(-1, 0.3, (150, 2)), rng.normal(1, 0.3, (150, 2))])
    images = (rng.random((90, 6, 6)) < np.linspace(0.1, 0.9, 6)) * 200.0 + rng.random((90, 6, 6)) * 40
    return {
        "wide and far away": 5e4 + 1e3 * x,
        "narrow": 1e-3 * x,
        "beyond float32": 1e7 + x,
        "columns of different scale": x * [1e4, 1e-1] + [0, 1e3],
        "a constant column": np.concatenate([x, np.full((300, 1), 7.7)], 1),
        "pixels to 240": images,
        "uint8 images": images.astype(np.uint8),
        "uint8 colour": images.astype(np.uint8)[..., None].repeat(3, -1),
    }[name]


SCALES = [
    "wide and far away",
    "narrow",
    "beyond float32",
    "columns of different scale",
    "a constant column",
    "pixels to 240",
    "uint8 images",
    "uint8 colour",
]


class TestLabels:
    def test_a_model_of_the_data_s_classes(self, moons_run: Path, tmp_path: Path, run: Any) -> None:
        net, process, meta = load_model(moons_run / "model")
        assert net.takes_condition and net.null_trained
        assert process.reference.n_classes == 2 and process.class_weights is None
        shares = torch.tensor(meta["classes"]["weights"], dtype=torch.float64)
        torch.testing.assert_close(process.reference.class_weights, shares)
        assert meta["classes"]["names"] == ["0", "1"] and sum(meta["classes"]["weights"]) == pytest.approx(1.0)
        assert (meta["settings"]["labels"], meta["settings"]["condition_dropout"]) == ("auto", 0.1)

        def drawn(*options: object) -> Any:
            result = run("sample", moons_run, "--n", 7, "--no-progress", "--out", tmp_path / "s.npy", *options)
            assert result.status == 0, result.err
            return np.load(tmp_path / "s.npy")

        def expected(**options: Any) -> Any:
            z = fastndsm.sample(net, process, 7, seed=0, **options)
            return Standardizer.from_dict(meta["units"]).decode(z).numpy()

        ones, turns = torch.ones(7, dtype=torch.int64), torch.arange(7) % 2
        np.testing.assert_array_equal(drawn("--label", 1), expected(condition=ones))
        np.testing.assert_array_equal(drawn("--label", 1, "--guidance", 1), expected(condition=ones))
        np.testing.assert_array_equal(drawn("--label", 0, 1), expected(condition=turns))
        np.testing.assert_array_equal(drawn("--label", 1, "--guidance", 3), expected(condition=ones, guidance=3.0))
        np.testing.assert_array_equal(drawn("--guidance", 0), expected())
        assert not np.allclose(drawn(), drawn("--label", 1))
        result = run("evaluate", moons_run, "--n", 80, "--guidance", 2, "--no-progress")
        assert result.status == 0, result.err

    @pytest.mark.parametrize("n", [1, 7, 100])
    def test_without_names_classes_are_drawn_in_their_shares(self, n: int) -> None:
        shares = {"names": ["a", "b", "c"], "weights": [0.02, 0.68, 0.3]}
        labels = _common.conditions(shares, n, 3)["condition"]
        counts = torch.bincount(labels, minlength=3)
        assert bool(((counts - n * torch.tensor(shares["weights"])).abs() < 1.0).all())
        assert torch.equal(labels, _common.conditions(shares, n, 3)["condition"])

    @pytest.mark.parametrize("suffix", [".npy", ".txt"])
    def test_labels_from_a_file(self, suffix: str, tmp_path: Path, run: Any) -> None:
        x = np.random.default_rng(0).normal(size=(60, 2))
        names = np.where(x[:, 0] > 0, "right side", "left")
        np.save(tmp_path / "x.npy", x)
        labels = tmp_path / f"labels{suffix}"
        if suffix == ".npy":
            np.save(labels, names)
        else:
            labels.write_text("\n".join(names) + "\n")
        options = ("train", "--data", tmp_path / "x.npy", "--labels", labels, "--out", tmp_path / "r", *TINY)
        options += ("--components", 2)
        of_classes = suffix == ".txt"  # else one for all, with a start fitted to each
        options += () if of_classes else ("--no-class-reference",)
        assert run(*options).status == 0
        _, process, meta = load_model(tmp_path / "r" / "model")
        assert meta["classes"]["names"] == ["left", "right side"] and process.reference.n_classes == 2 * of_classes
        assert of_classes == (process.class_weights is None)
        out = tmp_path / "s.npy"
        assert run("sample", tmp_path / "r", "--label", "right side", "--out", out, "--no-progress").status == 0
        assert run("evaluate", tmp_path / "r", "--n", 80, "--no-progress").status == 0
        assert run(*options, "--resume").status == 0
        refused(
            run(*options[:4], "auto", *options[5:], "--resume"), "--resume: expected the settings of the run, found"
        )
        refused(
            run("sample", tmp_path / "r", "--label", "left", "up", "--out", out),
            "--label: expected among left, right side, found up",
        )

    def test_what_is_refused(self, digits_run: Path, tmp_path: Path, run: Any) -> None:
        x = np.random.default_rng(0).normal(size=(60, 2))
        np.save(tmp_path / "x.npy", x)
        train = ("train", "--out", tmp_path / "r", "--data")
        mine = (*train, tmp_path / "x.npy", "--labels")
        refused(run(*mine, "auto"), "--labels: expected data with labels, or a file of them, found x without")
        refused(run(*mine, tmp_path / "none.npy"), "--labels: expected auto or a file, found none at")
        (tmp_path / "few.txt").write_text("a\nb\n")
        refused(run(*mine, tmp_path / "few.txt"), "--labels: expected [60], one for each sample, found shape (2,)")
        refused(run(*mine, tmp_path / "x.npy"), "--labels: expected integer labels, found dtype float64")
        (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
        refused(run(*mine, tmp_path / "cut.npy"), "--labels: expected a plain array in")
        refused(run(*train, "moons", "--labels", tmp_path / "few.txt"), "--labels: expected with a file, found 'moons'")
        without = "--class-reference: expected with --labels and --process langevin, found "
        refused(run(*train, "moons", "--class-reference"), without + "none")
        linear = ("--labels", "auto", "--process", "ou", "--class-reference")
        refused(run(*train, "moons", *linear), without + "--process ou")
        few = ("--labels", "auto", "--class-reference", "--components", 1)
        refused(run(*train, "moons", *few), "--components: expected 2, one for each class, to ")
        for option in (("--label", 3), ("--guidance", 2)):
            message = f"{option[0]}: expected a model trained with --labels, found one without"
            refused(run("sample", digits_run, "--out", tmp_path / "s.npy", *option), message)


class TestScale:
    """Data are standardised, and everything that is shown of a model is in their own units."""

    @pytest.mark.parametrize("name", SCALES)
    def test_samples_of_any_scale(self, name: str, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        x = points(name)
        np.save(tmp_path / "mine.npy", x)
        monkeypatch.chdir(tmp_path)
        options = ["--components", 2, *TINY, "--steps", 60, "--samples", 300]
        result = run("train", "--data", "mine.npy", "--out", "r", *options)
        assert result.status == 0 and "warning" not in result.err, result.err
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        assert run("sample", "../r", "--n", 300, "--out", "s.npy", "--png", "s.png", "--no-progress").status == 0
        samples = np.load("s.npy")
        shape = {2: x.shape[1:], 3: (1, *x.shape[1:]), 4: (x.shape[-1], *x.shape[1:-1])}[x.ndim]
        assert samples.shape == (300, *shape)
        assert samples.dtype == (np.float64 if name == "beyond float32" else np.float32)
        axis = 0 if x.ndim == 2 else None
        mean, spread = x.mean(axis, dtype=float), x.std(axis, dtype=float)
        unit = np.where(spread > 1e-9, spread, 1e-5)  # of a constant nothing but float32 is lost
        assert np.all(np.abs(samples.mean(axis, dtype=float) - mean) <= 0.25 * unit)
        np.testing.assert_allclose(samples.std(axis, dtype=float) / unit, spread / unit, atol=0.25)
        found = run("evaluate", "../r", "--n", 300, "--no-progress")
        assert found.status == 0, found.err
        figures = json.loads(found.out.splitlines()[-1])["metrics"]
        for row in ("samples", "reference", "held_out"):  # in the data's units as well
            assert figures[row]["sliced_wasserstein"] < 0.5 * np.sqrt((spread**2).mean())
        _, process, meta = load_model(tmp_path / "r" / "model")
        z = Standardizer.from_dict(meta["units"]).encode(torch.from_numpy(samples))
        assert float(z.mean().abs()) < 0.3 and float(process.reference.means.abs().max()) < 5
        assert meta["data"] == str(tmp_path / "mine.npy")

    def test_a_run_of_before_keeps_its_scale(self, tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "mine.npy", 3 + np.random.default_rng(0).normal(size=(60, 2)))
        train = ["train", "--data", tmp_path / "mine.npy", "--out", tmp_path / "r", *TINY, "--components", 2]
        assert run(*train, "--no-standardize").status == 0
        sample = ["sample", tmp_path / "r", "--n", 50, "--no-progress"]
        assert run(*sample, "--out", tmp_path / "a.npy").status == 0
        for file in ("model/model.json", "setup/setup.json"):  # as they were written
            document = json.loads((tmp_path / "r" / file).read_text())
            place = document["meta"] if "meta" in document else document
            del place["units"]
            for key in ("standardize", "layout", "label_column"):
                del place["settings"][key]
            (tmp_path / "r" / file).write_text(json.dumps(document))
        assert run(*sample, "--out", tmp_path / "b.npy").status == 0
        a, b = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
        assert np.array_equal(a, b) and abs(a.mean() - 3) < 1
        assert run("evaluate", tmp_path / "r", "--n", 50, "--no-progress").status == 0
        assert run("train", "--out", tmp_path / "r", "--resume", "--no-progress").status == 0
        refused(
            run("train", "--out", tmp_path / "r", "--resume", "--standardize", "--no-progress"),
            "--resume: expected the settings of the run, found --standardize True (run: False)",
        )

    @pytest.mark.parametrize("standardize", ["--standardize", "--no-standardize"])
    def test_a_run_is_taken_up_from_another_folder(
        self, standardize: str, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        rows = np.random.default_rng(0).normal(size=(60, 2)) * 5
        lines = [f"{a},{b},{'yes' if a > 0 else 'no'}" for a, b in rows]
        (tmp_path / "mine.csv").write_text("\n".join(["a,b,kind", *lines]))
        monkeypatch.chdir(tmp_path)
        train = ["train", "--data", "mine.csv", "--label-column", "kind", standardize, *TINY, "--n-steps", 400]
        assert run(*train, "--out", "r").status == 0
        before = (tmp_path / "r" / "model" / "model.safetensors").read_bytes()
        assert "| yes " in (tmp_path / "r" / "report" / "report.md").read_text()
        shutil.rmtree(tmp_path / "r" / "model")
        monkeypatch.chdir(tmp_path / "elsewhere")
        result = run("train", "--out", "../r", "--resume", "--no-progress", "--data", "../mine.csv")
        assert result.status == 0, result.err
        assert (tmp_path / "r" / "model" / "model.safetensors").read_bytes() == before
        found = run("evaluate", "../r", "--n", 40, "--no-progress")
        assert found.status == 0, found.err
        assert json.loads(found.out.splitlines()[-1])["label_names"] == ["no", "yes"]


class TestWorseThanTheReference:
    def drawn(self, seed: int, scale: float = 1.0) -> torch.Tensor:
        return scale * torch.randn(400, 2, generator=torch.Generator().manual_seed(seed))

    def evaluated(self, samples: torch.Tensor, reference: torch.Tensor) -> str | None:
        dataset = Dataset("normal", self.drawn(0), self.drawn(1))
        return report.evaluate_samples(samples, dataset, reference).worse

    @pytest.mark.parametrize("scale", [0.5, 1.6, 1e3, 1e15])
    def test_it_is_said_of_those_that_are(self, scale: float) -> None:
        message = self.evaluated(self.drawn(2, scale), self.drawn(3))
        assert message is not None and message.startswith("The samples are worse than draws from the reference")
        assert self.evaluated(self.drawn(3), self.drawn(2, scale)) is None

    def test_chance_is_no_reason(self) -> None:
        said = sum(self.evaluated(self.drawn(seed), self.drawn(seed + 1)) is not None for seed in range(2, 52, 2))
        assert said <= 3  # of 25 at 1% a test: more have probability 1e-4

    def test_few_samples_are_not_judged(self) -> None:
        assert self.evaluated(self.drawn(2, 9.0)[:3], self.drawn(3)) is None

    @pytest.mark.parametrize("strict", [[], ["--strict"]], ids=["", "strict"])
    def test_train_and_evaluate_fail_if_told_to(self, strict: list[str], tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "mine.npy", points("wide and far away"))
        options = ["--data", tmp_path / "mine.npy", *TINY, "--samples", 200]
        out = tmp_path / "r"
        result = run("train", "--out", out, *options, "--no-standardize", "--components", 2, *strict)
        assert result.status == len(strict) and "warning: The samples are worse than draws" in result.err
        stored = json.loads((out / "report" / "report.json").read_text())["worse_than_reference"]
        assert stored.startswith("The samples are worse") and stored in (out / "report" / "report.md").read_text()
        found = run("evaluate", out, "--n", 200, "--no-progress", *strict)
        assert found.status == len(strict) and "warning: The samples are worse than draws" in found.err


class TestReport:
    def test_without_matplotlib_everything_but_the_pictures_is_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        dataset = load("ring", n=50, n_test=50)
        made = report.write_report(tmp_path / "r", dataset.train[:40], dataset)
        assert "pip install 'fastndsm[images]'" in made.pictures["missing"]
        assert {path.name for path in (tmp_path / "r").iterdir()} == {"report.json", "report.md", "report.html"}
        assert "fastndsm[images]" in (tmp_path / "r" / "report.md").read_text()

    @pytest.mark.parametrize("event", [(1,), (2,), (7,), (1, 5, 6), (3, 4, 4), (2, 3)])
    def test_pictures_of_every_kind_of_event(self, tmp_path: Path, event: tuple[int, ...]) -> None:
        report.draw_samples(tmp_path / "s.png", {"a": torch.randn(70, *event), "b": torch.randn(3, *event)})
        assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def other_backend(monkeypatch: pytest.MonkeyPatch, **changed: Any) -> None:
    """Put a copy of the reference, with some functions changed, in the place of cpp."""
    module = SimpleNamespace(**{name: getattr(reference, name) for name in reference.__all__}, **{})
    for name, value in changed.items():
        setattr(module, name, value)

    class Standing(registry.Backend):
        def load(self) -> Any:
            return module

        def unavailable(self) -> str | None:
            return None

    monkeypatch.setitem(registry.BACKENDS, "cpp", Standing("cpp", "nowhere", ("cpu",)))

    def test_axes_of_very_different_units_fill_the_picture(self, tmp_path: Path) -> None:
        image = pytest.importorskip("matplotlib.image")
        points = torch.rand(4000, 2)
        report.draw_samples(tmp_path / "s.png", {"a": points * torch.tensor([1.0, 1e-4])})
        inked = (image.imread(tmp_path / "s.png")[..., :3] < 0.9).any(2)
        assert inked.any(0).mean() > 0.7 and inked.any(1).mean() > 0.7


class TestCompare:
    def test_every_op_is_compared(self) -> None:
        assert {case.op for case in CASES} == set(fastndsm.functional.__all__)

    def test_a_backend_that_agrees_and_one_that_does_not(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(comparison, "BUDGET", 0.0)
        arguments = ["compare", "--ops", "reverse_step", "simulate", "--json"]
        other_backend(monkeypatch)
        result = run(*arguments)
        rows = json.loads(result.out)["rows"]
        assert result.status == 0
        assert {row["backend"] for row in rows} == {"reference", "cpp"}
        for row in rows:
            assert row["agrees"] and row["speed_up"] > 0
            assert row["deviation"] == row["reference_deviation"] < 1e-4

        def biased(*arguments: Any) -> torch.Tensor:
            return reference.simulate(*arguments) * 1.001

        other_backend(monkeypatch, simulate=biased)
        result = run(*arguments)
        assert result.status == 1
        for row in json.loads(result.out)["rows"]:
            wrong = row["op"] == "simulate" and row["backend"] == "cpp"
            assert row["agrees"] is not wrong
            assert (row["speed_up"] is None) is wrong
        table = run("compare", "--ops", "simulate").out
        assert "does not agree" in table

    def test_nan_agrees_with_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def undefined(*arguments: Any) -> torch.Tensor:
            out = reference.reverse_steps(*arguments)
            out[-1, -1] = torch.nan
            return out

        monkeypatch.setattr(comparison, "BUDGET", 0.0)
        other_backend(monkeypatch, reverse_steps=undefined)
        rows = comparison.compare(ops=["reverse_steps"], backends=["cpp"])
        agreed = [row.agrees for row in rows if row.backend == "cpp"]
        assert agreed and not any(agreed)

    def test_a_backend_that_cannot_run_is_refused(self, run: Any) -> None:
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        refused(run("compare", "--backends", "cuda", "--ops", "dsm_loss"), "backend 'cuda' cannot be compared")


class TestDoctorAndBuild:
    def test_doctor(self, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("FASTNDSM_CACHE_DIR", str(tmp_path / "cache"))
        text = run("doctor")
        assert text.status == 0
        for name in ("cuda", "triton", "cpp", "reference"):
            assert f"  {name} " in text.out
        assert torch.__version__ in text.out
        found = json.loads(run("doctor", "--json").out)
        assert found["backends"]["reference"]["available"] is True
        for name in ("triton", "cuda"):
            assert "not yet run on a GPU" in found["backends"][name]["note"]
        assert found["jit"]["cache_dir"] == str(tmp_path / "cache")
        assert not list(tmp_path.glob("cache/*/*.so"))  # it builds nothing

    def test_doctor_tells_why_compiled_code_is_off(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FASTNDSM_DISABLE_JIT", "1")
        found = json.loads(run("doctor", "--json").out)
        assert found["backends"]["cpp"] == {
            "available": False,
            "note": "compiled code is turned off by FASTNDSM_DISABLE_JIT",
        }

    def test_build_tells_why_it_cannot(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FASTNDSM_DISABLE_JIT", "1")
        refused(run("build"), "compiled code is turned off by FASTNDSM_DISABLE_JIT")

    def test_build_prints_the_librarys_path(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fastndsm.jit.core.build", lambda verbose: Path("/cache/lib.so") if verbose else None)
        monkeypatch.setattr(torch.version, "cuda", None)
        result = run("build", "--verbose")
        assert (result.status, result.out) == (0, "/cache/lib.so\n")
        (line,) = result.err.splitlines()
        assert line == f"the CUDA kernels are not built: PyTorch {torch.__version__} is built without CUDA"

    @pytest.mark.parametrize("cuda", [["--cuda"], ["--cuda", "90"]])
    def test_build_fails_where_cuda_was_asked_for_by_name(
        self, cuda: list[str], run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("fastndsm.jit.core.build", lambda verbose: Path("/cache/lib.so"))
        monkeypatch.setenv("FASTNDSM_CACHE_DIR", str(tmp_path))
        monkeypatch.setattr(torch.version, "cuda", None)
        refused(run("build", *cuda), "the CUDA kernels cannot be built: PyTorch ")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, 0))
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        refused(run("build", *cuda), f"the CUDA kernels cannot be built: nvcc is not in {tmp_path}/bin")
        assert run("build").status == 0

    def test_build_takes_the_gpus_here_or_those_named(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[Any] = []
        monkeypatch.setattr("fastndsm.jit.core.build", lambda verbose: Path("/cache/lib.so"))
        monkeypatch.setattr("fastndsm.jit.cuda.build", lambda *given: asked.append(given) or Path("/cache/cuda.so"))
        for arguments in (["build"], ["build", "--cuda"]):
            result = run(*arguments)
            assert (result.status, result.out, result.err) == (0, "/cache/lib.so\n/cache/cuda.so\n", "")
        assert run("build", "--cuda", "80,90", "--verbose").status == 0
        assert asked == [(None, False), (None, False), ((80,), True), ((90,), True)]
        for wrong in ("75", "90,", "sm_90", "9.0"):
            expected = f"--cuda: expected compute capabilities from 80 on, as 80,90, found '{wrong}'"
            refused(run("build", "--cuda", wrong), expected)
        assert len(asked) == 4

    def test_doctor_tells_of_the_cuda_kernels(
        self, run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fake_nvcc: Callable[[str], Path]
    ) -> None:
        nvcc = fake_nvcc("13.0")
        monkeypatch.setenv("FASTNDSM_CACHE_DIR", str(tmp_path / "cache"))

        def told() -> tuple[bool, str]:
            state = json.loads(run("doctor", "--json").out)["backends"]["cuda"]
            return state["available"], state["note"]

        never = "not yet run on a GPU"
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert told() == (False, f"it needs a GPU, and PyTorch finds none; {nvcc} 13.0; {never}")
        monkeypatch.setattr(cuda, "device_architectures", lambda: (90,))
        first_use = "built on first use, or now by `fastndsm build`; auto does not take it"
        assert told() == (True, f"{first_use}; {nvcc} 13.0; {never}")
        builder = cuda.cuda_builder((90,))
        library = builder.library(find_compiler(builder.compile_flags))
        make_private(builder.root)
        make_private(library.parent)
        library.touch()
        assert told() == (True, f"built; auto does not take it; {nvcc} 13.0; {never}")
        monkeypatch.setenv("CUDA_HOME", str(tmp_path))
        assert told() == (False, f"nvcc is not in {tmp_path}/bin; {never}")


class TestOptions:
    """Messages of the library name the option that gives an argument."""

    COMMANDS = ("train", "sample", "evaluate", "compare", "build")
    # An impossible value where it is not that of a kind: numbers below all bounds, paths to nothing.
    IMPOSSIBLE: ClassVar[dict[str, str]] = {
        "--data": "absent.npz",
        "--out": "file.txt",
        "--png": "picture.txt",
        "--seed": str(2**70),
        "--device": "abacus",
        "--hidden": "8,0",
        "--label-column": "kind",
        "--cuda": "75",
    }

    @staticmethod
    def options(command: str) -> list[str]:
        made = cast(Any, parser()._subparsers)._group_actions[0].choices[command]
        # flags have no value that could be wrong
        return [action.option_strings[0] for action in made._actions if action.option_strings and action.nargs != 0]

    @pytest.mark.parametrize("command", COMMANDS)
    def test_a_wrong_value_of_every_option_is_refused_by_the_option_s_name(
        self, command: str, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "file.txt").touch()
        given = {
            "train": ["--data", "ring", "--out", "r", *TINY],
            "sample": [str(digits_run)],
            "evaluate": [str(digits_run), "--n", "20"],
            "compare": ["--backends", "reference", "--ops", "dsm_loss"],
            "build": [],
        }[command]
        wrong = {}
        for option in self.options(command):
            try:
                status = main([command, *given, option, self.IMPOSSIBLE.get(option, "-7")])
            except SystemExit as error:
                status = error.code
            message = capsys.readouterr().err.strip().splitlines()[-1:]
            if status != 2 or not re.search(rf"error: (argument )?{option}(: | )", "".join(message)):
                wrong[option] = (status, message)
        assert not wrong

    def test_names_in_a_sentence_and_in_warnings(self) -> None:
        options = {"reg_covar": "--reg-covar", "T": "--T", "sigma": "--sigma", "lr": "--lr", "steps": "--steps"}
        options |= {"n_steps": "--n-steps", "n_components": "--components", "eigenvalue_floor": "--eigenvalue-floor"}
        for before, after in {
            "n_components: expected at most 5": "--components: expected at most 5",
            "T, sigma: expected numbers": "--T, --sigma: expected numbers",
            "use n_steps=377, a smaller T or sigma": "use --n-steps 377, a smaller --T or --sigma",
            "or a fit with eigenvalue_floor=0.02, n_steps": "or a fit with --eigenvalue-floor 0.02, --n-steps",
            "take a larger reg_covar.": "take a larger --reg-covar.",
            "Try a smaller lr or grad_clip": "Try a smaller --lr or grad_clip",
            "after 5 steps: stopped": "after 5 steps: stopped",
            "steps: expected 3 steps": "--steps: expected 3 steps",
            "a.csv: column 'reg_covar': text": "a.csv: column 'reg_covar': text",
            "/runs/n_steps/lr: expected a file": "/runs/n_steps/lr: expected a file",
            "sigma(0.5): 1/2 sigma^2, T = 3": "sigma(0.5): 1/2 sigma^2, T = 3",
        }.items():
            assert _options.spoken(before, options) == after

    def test_a_stiff_grid_and_a_floor_make_full_covariances_serve(self, tmp_path: Path, run: Any) -> None:
        tiny = [option for option in TINY if option not in ("--n-steps", "40")]
        options = ["--data", "moons", "--n-train", 200, *tiny, "--covariance", "full", "--components", 4]
        floored = [*options, "--eigenvalue-floor", 0.05, "--grid", "stiff"]
        assert (result := run("train", *floored, "--out", tmp_path / "r")).status == 0, result.err
        _, process, meta = load_model(tmp_path / "r" / "model")
        assert meta["settings"]["eigenvalue_floor"] == 0.05 and meta["settings"]["grid"] == "stiff"
        smallest = float(process.reference.covariance_eigenvalues()[0].min())
        assert smallest >= 0.04 * process.reference.mean_variance
        assert float(process.drift_scale.amax() / smallest) <= 0.2 * (1 + 1e-6) and process.n_steps > 50
        assert f"{process.n_steps} steps, stiff grid" in result.out
        refused(run("train", *floored, "--n-steps", 3, "--out", tmp_path / "s"), "--n-steps: expected at least")

    def test_warnings_name_options_too(self, tmp_path: Path, run: Any) -> None:
        np.save(tmp_path / "mine.npy", points("narrow"))
        options = ["--data", tmp_path / "mine.npy", "--out", tmp_path / "r", *TINY, "--components", 2]
        result = run("train", *options, "--no-standardize")
        assert "warning: --reg-covar: expected at most a tenth of the data's mean variance" in result.err

    @pytest.mark.parametrize("seed", [-3, 2**32, 2**64 - 1])
    def test_every_seed_serves(self, seed: int, tmp_path: Path, run: Any) -> None:
        result = run("train", "--data", "ring", "--n-train", 60, "--out", tmp_path / "r", *TINY, "--seed", seed)
        assert result.status == 0, result.err

    def test_zero_is_a_value(self, tmp_path: Path, run: Any) -> None:
        for extra in ([], ["--process", "ou"]):
            message = "--components: expected an integer of at least 1, found 0"
            refused(run("train", "--out", tmp_path / "r", "--components", 0, *extra), message)


class TestHelp:
    @pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.NAME)
    def test_every_command_has_a_purpose_and_an_example(self, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as caught:
            main([command.NAME, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert command.PURPOSE in " ".join(text.split())
        assert f"example:\n  fastndsm {command.NAME}" in text
        parser().parse_args(command.EXAMPLE.split()[1:])  # the example is valid

    def test_as_a_program(self) -> None:
        root = Path(fastndsm.__file__).parent.parent
        found = subprocess.run(
            [sys.executable, "-m", "fastndsm.cli", "--help"],
            capture_output=True,
            text=True,
            cwd=root,
            check=True,
        )
        for command in COMMANDS:
            assert command.NAME in found.stdout
        first = [line.split()[1:] for line in found.stdout.splitlines() if line.startswith("  fastndsm ")]
        assert [parser().parse_args(words).command for words in first] == ["train", "sample"]

    def test_traceback_on_request(self, tmp_path: Path) -> None:
        with pytest.raises(checkpoint.CheckpointError):
            main(["--traceback", "sample", str(tmp_path)])
