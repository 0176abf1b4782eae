"""The experiments of examples/experiments: a quick version of each, and the parts that their numbers rest on."""

from __future__ import annotations

import math
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastndsm
from fastndsm import GaussianMixture, LangevinProcess, data, latent

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from experiments import EXPERIMENTS, claims, images, imbalance, methods, page, planar, run, small, symmetry, tables
from experiments.store import Store, key


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_version_of_every_experiment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTNDSM_DATA", raising=False)  # quick runs need no MNIST
    command = [name, "--quick", "--seeds", "1", "--out", str(tmp_path)]
    assert run.main(command) == 0
    rows = Store(tmp_path / "rows").read(name)
    experiment = EXPERIMENTS[name]
    assert list(rows) and set(rows) == {key(c, experiment.VERSION) for c in experiment.configs(0, quick=True)}
    for row in rows.values():
        result = row["result"]
        if result.get("trained", True):
            assert math.isfinite(result["energy" if "energy" in result else "frechet"]), row
        assert all(math.isfinite(v) for v in result.values() if isinstance(v, float)), row
        drawn = (*methods.UNTRAINED, symmetry.PI_SYMMETRIC, methods.PI + imbalance.FIFTY)
        trained = row["config"]["row"] not in drawn and result.get("trained", True)
        assert ("train_seconds" in result) == trained, row
        if trained:  # the same budget, whatever the estimator
            assert result["train_evaluations"] == row["config"]["steps"] * row["config"]["evaluations"], row
    text = (tmp_path / "README.md").read_text()
    assert f"| {name} | {len(rows)} | {len(rows)} |" in text
    pictures = {"imbalance": 2, "symmetry": 2, "small": 2, "latent": 1}  # the others need longer runs, or have none
    assert len(list((tmp_path / "figures").glob("*.png"))) >= pictures.get(name, 0)

    monkeypatch.setattr(experiment, "perform", lambda config: pytest.fail("ran again"))
    assert run.main(command) == 0  # finished runs are not repeated


def test_an_interrupted_run_continues_and_gives_the_same_row(tmp_path: Path) -> None:
    runs = [("planar", c) for c in planar.configs(0, quick=True) if c["data"] == "ring"][:4]
    store = Store(tmp_path)
    run.perform(tmp_path, runs)
    whole = store.read("planar")
    lines = (tmp_path / "planar.jsonl").read_text().splitlines()
    (tmp_path / "planar.jsonl").write_text("\n".join(lines[:3]) + "\n")
    left = [r for r in run.pending(store, ["planar"], 1, quick=True) if r in runs]
    assert left == runs[3:]
    run.perform(tmp_path, left)
    for identity, row in store.read("planar").items():
        for metric in ("energy", "nearest_ratio", "copies"):
            assert row["result"][metric] == whole[identity]["result"][metric]


def test_seeds_come_one_after_the_other_and_by_priority(tmp_path: Path) -> None:
    runs = run.pending(Store(tmp_path), list(EXPERIMENTS), 3, quick=False)
    order = [(c["seed"] % 100, EXPERIMENTS[name].priority(c)) for name, c in runs]  # tuning has seed 100
    assert order == sorted(order)
    keys = [key(c, EXPERIMENTS[name].VERSION) for name, c in runs]
    assert len(set(keys)) == len(keys)


def test_rows_of_many_writers_are_all_kept_and_replaced_by_key(tmp_path: Path) -> None:
    def add(i: int) -> None:
        Store(tmp_path).add("x", {"row": i % 20}, 1, {"value": float(i)}, torch.ones(2, 2))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))
    store = Store(tmp_path)
    assert sorted(row["config"]["row"] for row in store.read("x").values()) == list(range(20))
    store.add("x", {"row": 3}, 1, {"value": -1.0}, None)
    found = store.read("x")[key({"row": 3}, 1)]
    assert len(store.read("x")) == 20 and found["result"] == {"value": -1.0} and found["torch"] == torch.__version__
    assert key({"row": 3}, 2) != found["key"] and torch.equal(store.samples(found["key"]), torch.ones(2, 2))
    assert not list(tmp_path.glob("*.part"))


@pytest.fixture
def mixture() -> GaussianMixture:
    points = torch.randn(3, 4, 4, dtype=torch.float64)
    covariances = points @ points.mT + 0.1 * torch.eye(4, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.5, 0.3, 0.2]), 2 * torch.randn(3, 4, dtype=torch.float64), covariances)


@pytest.mark.parametrize("kind", ["full", "spherical"])
def test_linear_noising_of_a_mixture_is_exact(mixture: GaussianMixture, kind: str) -> None:
    if kind == "spherical":
        mixture = GaussianMixture(mixture.weights, mixture.means, torch.tensor([0.1, 0.5, 2.0]), "spherical")
    settings = methods.DEFAULTS | {"n_steps": 20, "linear_mixture": {"T": 1.5, "grid": "quadratic"}}
    process = methods.build(methods.LINEAR_MIXTURE, mixture.means, settings, 0, mixture)
    assert isinstance(process, fastndsm.OUProcess)
    x = torch.randn(7, 4, dtype=torch.float64)
    last = torch.full((7,), process.T, dtype=torch.float64)
    torch.testing.assert_close(process.reference_score(x, last), process.prior.score(x))
    torch.testing.assert_close(process.reference_score(x, 0 * last), mixture.score(x))
    start = mixture.sample(40_000, seed=0).double()
    noised = process.exact_noised(start, step=19, seed=1).x
    there = process.prior.sample(40_000, seed=2).double()
    torch.testing.assert_close(noised.mean(0), there.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(noised.T), torch.cov(there.T), atol=0.15, rtol=0.05)
    untrained = fastndsm.ResidualScore(fastndsm.networks.MLP(4, (8,), horizon=1.5), process)
    torch.testing.assert_close(untrained(x.float(), last.float()), process.prior.score(x.float()))
    samples = fastndsm.sample(untrained, process, 4000, seed=3)  # the exact score of the mixture gives it back
    assert fastndsm.metrics.energy_distance(samples, start[:4000]) < 0.02


def test_the_best_full_mixture_finds_the_components(mixture: GaussianMixture) -> None:
    x = mixture.sample(3000, seed=0).float()
    best = methods.best_full_mixture(x, seed=0)
    fresh = mixture.sample(3000, seed=1).double()
    assert float((mixture.log_prob(fresh) - best.log_prob(fresh)).mean()) < 0.05
    assert methods.best_full_mixture(x, seed=0) is best and methods.best_full_mixture(x + 1, seed=0) is not best


def test_parts_are_disjoint_and_weighted() -> None:
    labels = torch.arange(1000) % 10
    weights = torch.tensor([0.1, 0.3, 0.6] + 7 * [0.0])
    found = images.parts(labels, weights, (100, 50), seed=3)
    assert len(torch.cat(found).unique()) == 150
    assert torch.bincount(labels[found[0]], minlength=10).tolist() == [10, 30, 60] + 7 * [0]
    assert not torch.equal(found[0], images.parts(labels, weights, (100, 50), seed=4)[0])
    with pytest.raises(ValueError, match="at most 100 images of class 2"):
        images.parts(labels, weights, (100, 100), seed=3)


def test_copies_and_coverage() -> None:
    train = torch.randn(500, 3)
    assert planar.copies(train + 1e-6, train) == 1.0
    assert 0.0 < planar.copies(torch.randn(2000, 3), train) < 0.2
    assert imbalance.coverage(train, train) == 1.0
    assert imbalance.coverage(train + 100, train) == 0.0
    assert imbalance.coverage(torch.randn(500, 3), train) > 0.8


def test_mirroring_is_the_map_of_the_latent_space() -> None:
    given = symmetry.scene(0.4, "digits", 16, 200, 160, 0)
    assert given.share == 0.4
    torch.testing.assert_close(given.map @ given.map.T, torch.eye(16, dtype=torch.float64))
    turned = given.encoder.decode(given.z @ given.map.T.float())
    torch.testing.assert_close(turned, given.encoder.decode(given.z).flip(-1), atol=1e-3, rtol=0)
    score = symmetry.Symmetric(lambda x, t: x.cumsum(1) * t[:, None], given.map.float())  # type: ignore[arg-type]
    x, t, mirror = torch.randn(5, 16), torch.rand(5), given.map.float()
    torch.testing.assert_close(score(x @ mirror.T, t), score(x, t) @ mirror.T, atol=1e-4, rtol=1e-4)


def test_refitted_weights_find_an_uneven_share() -> None:
    half = GaussianMixture([1.0], [[2.0, 0.0]], [0.5], "spherical")
    both = half.symmetrized([torch.diag(torch.tensor([-1.0, 1.0], dtype=torch.float64))])
    sign = torch.where(torch.arange(5000) % 5 < 3, 1.0, -1.0)[:, None]
    x = torch.randn(5000, 2) * 0.7 + sign * torch.tensor([2.0, 0.0])
    assert symmetry.refitted_weights(both, x).weights.tolist() == pytest.approx([0.6, 0.4], abs=0.01)


def test_steps_needed_are_those_at_which_the_process_does_not_warn(mixture: GaussianMixture) -> None:
    for grid in ("uniform", "quadratic"):
        needed = methods.steps_needed(mixture, 3.0, grid)
        horizon = 3.0 * float(mixture.covariance_eigenvalues()[1].max())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            LangevinProcess(mixture, T=horizon, n_steps=needed, grid=grid)
        with pytest.warns(UserWarning, match="q = a_n"):
            LangevinProcess(mixture, T=horizon, n_steps=int(0.9 * needed), grid=grid)


def test_a_prior_of_one_gaussian_gets_the_horizon_of_linear_noising() -> None:
    z = 2.0 * torch.randn(2000, 3)
    settings = methods.DEFAULTS | {"linear": {"T": 6.0, "grid": "uniform"}}
    one = methods.build(methods.ONE, z, settings, 0, None)
    assert one.T == pytest.approx(6.0 * 4.0, rel=0.05)
    assert methods.build(methods.LINEAR, z, settings, 0, None).T == 6.0


def test_verdicts() -> None:
    def spread(*values: float) -> tables.Spread:
        return tables.Spread(sum(values) / len(values), min(values), max(values), len(values))

    assert claims.ahead(spread(1, 2, 3), spread(4, 5, 6)) == "holds"
    assert claims.ahead(spread(4, 5, 6), spread(1, 2, 3)) == "does not"
    assert claims.ahead(spread(1, 2, 5), spread(4, 5, 6)) == "undecided"
    assert claims.ahead(spread(4, 5, 6), spread(1, 2, 3), higher=True) == "holds"
    assert [claims.within(spread(*v), 0.05) for v in ((0.01, 0.04), (0.04, 0.06), (0.06, 0.07))] == [
        "holds",
        "undecided",
        "does not",
    ]


def test_verdicts_tell_of_missing_seeds_and_numbers(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed in range(3):
        for config in planar.configs(seed):
            row = config["row"]
            if config["data"] == "four_modes" and config["n"] == 500 and row in (methods.PATH, methods.LINEAR):
                result = {"mode_tv": 0.01 * (seed + 1 + 5 * (row == methods.LINEAR)), "cpu_seconds": 60.0}
                store.add("planar", config, planar.VERSION, result, None)
        results = {name: tables.Results(name, store, 3) for name in EXPERIMENTS}
        line = next(x for x in claims.table(results).splitlines() if "nearer than linear VP DSM" in x)
        if seed == 0:
            assert "n = 500: **holds so far (1 of 3 seeds)**, 0.01 against 0.06" in line
    assert "n = 500: **holds**, 0.02 (0.01 to 0.03) against 0.07 (0.06 to 0.08)" in line
    assert "| planar | 6 | 270 | 6 |" in page.progress(results)


def test_page_keeps_the_prose_and_refuses_unknown_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = tmp_path / "README.md"
    monkeypatch.setattr(page, "TEMPLATE", template)
    template.write_text("Before.\n<!-- table: claims -->\nold\n<!-- end -->\nAfter.\n")
    page.write(tmp_path, Store(tmp_path / "rows"), 1)
    assert template.read_text() == "Before.\n<!-- table: claims -->\n*Nothing run yet.*\n<!-- end -->\nAfter.\n"
    template.write_text("<!-- table: nonsense -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="found 'nonsense'"):
        page.write(tmp_path, Store(tmp_path / "rows"), 1)


def test_figures_of_missing_samples_stay_until_samples_makes_them_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are not measured again, and the tables are written meanwhile."""
    store, rows = Store(tmp_path / "rows"), tmp_path / "rows" / "small.jsonl"
    shown = [c for c in small.configs(0) if c["n"] == 200][:3]
    for config in shown:
        result = {"frechet_raw": 5.0, "nearest_ratio": 1.0, "copies": 0.5, "class_tv": 0.25, "cpu_seconds": 60.0}
        store.add("small", config, small.VERSION, result, torch.zeros(40, 1, 4, 4))
    page_alone, again = ["page", "--out", str(tmp_path)], ["samples", "--out", str(tmp_path)]
    assert run.main(page_alone) == 0 and capsys.readouterr().out == ""
    figure, measured = tmp_path / "figures" / "small-samples.png", rows.read_text()
    drawn = figure.read_bytes()

    for kept in list((tmp_path / "rows" / "samples").iterdir())[:2]:
        kept.unlink()
    (tmp_path / "README.md").unlink()
    assert run.main(page_alone) == 0
    assert "of 2 runs are missing; `python examples/experiments/run.py samples` makes" in capsys.readouterr().out
    assert figure.read_bytes() == drawn and "| 5 | 1 | 0.5 | 0.25 | 1 |" in (tmp_path / "README.md").read_text()

    monkeypatch.setattr(small, "perform", lambda config: ({"frechet_raw": 7.0}, torch.ones(40, 1, 4, 4)))
    assert run.main(again) == 0
    assert "missing" not in capsys.readouterr().out
    assert figure.read_bytes() != drawn and rows.read_text() == measured


def test_every_claim_names_rows_that_are_planned() -> None:
    planned = {name: [c for c in e.configs(0)] for name, e in EXPERIMENTS.items()}
    for claim in claims.all_claims():
        for which in (claim.first, claim.second):
            if isinstance(which, float):
                continue
            for where in claim.cases.values():
                wanted: dict[str, Any] = where | ({"row": which} if isinstance(which, str) else which)
                assert any(all(c.get(k) == v for k, v in wanted.items()) for c in planned[claim.experiment]), claim


def test_quick_runs_want_a_folder_of_their_own() -> None:
    with pytest.raises(SystemExit, match="--out"):
        run.main(["planar", "--quick"])


def test_pixels_are_an_encoder_too() -> None:
    from experiments import latent_space

    x: Tensor = data.load("digits").train
    encoder, _ = latent_space.make_encoder("pixels", x, 0, 0)
    assert isinstance(encoder, latent.Encoder)
    z = encoder.encode(x)
    assert float(z.mean(0).abs().max()) < 1e-4 and float(z.var(0).mean()) == pytest.approx(1.0, abs=1e-3)
    torch.testing.assert_close(encoder.decode(z), x, atol=1e-5, rtol=0)
