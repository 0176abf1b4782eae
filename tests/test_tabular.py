"""Tables: what comes back is like what went in, denoising is what it says, settings are judged by an exact distance."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from sklearn.datasets import load_iris

from benchmarks.public import tables
from fastndsm import GaussianMixture
from fastndsm.checkpoint import CheckpointError
from fastndsm.tabular import Candidate, TabularModel
from fastndsm.tabular._columns import Encoded, Schema
from fastndsm.tabular._generators import Coordinates, SmoothedRows, drawn
from fastndsm.tabular._model import _exact, _Scale


def frame(n: int = 120, seed: int = 0) -> pandas.DataFrame:
    """Return a table of every kind of column; size and colour depend on the kind, gaps on the price."""
    g = np.random.default_rng(seed)
    kind = np.where(g.random(n) < 0.3, "small", "large")
    price = np.exp(g.normal(size=n)) + 2.0 * (kind == "large")
    weight = np.where(g.random(n) < 0.2, np.nan, price + g.normal(size=n))
    return pandas.DataFrame(
        {
            "kind": kind,
            "price": price.astype(np.float32),
            "doors": g.integers(2, 6, size=n).astype(np.int16),
            "weight": weight,
            "colour": pandas.Categorical(np.where(kind == "small", "red", g.choice(["red", "blue"], size=n))),
            "used": g.random(n) < 0.5,
            "owner": [None if g.random() < 0.1 else str(g.choice(["a", "b"])) for _ in range(n)],
        }
    )


def numbers(x: Any) -> Encoded:
    x = np.asarray(x, dtype=float)
    return Encoded.of_numbers(x, np.empty((len(x), 0), dtype=np.int64))


def smoothed_rows(rows: Encoded) -> SmoothedRows:
    return SmoothedRows(rows, Coordinates.of(rows, (), rows.numbers.std(0)))


def test_a_frame_comes_back_as_it_was() -> None:
    given = frame()
    model = TabularModel.fit(given, "kind", generator="smoothed", categorical=["doors"])
    made = model.sample(500, seed=1)
    assert list(made.columns) == list(given.columns) and len(made) == 500
    assert set(made["kind"]) == {"small", "large"} and set(made["doors"]) <= set(given["doors"])
    assert made["price"].between(given["price"].min(), given["price"].max()).all()
    assert made["colour"].dtype == given["colour"].dtype and made["used"].dtype == bool
    assert made["doors"].dtype == np.int16
    assert 0.1 < made["weight"].isna().mean() < 0.3
    assert set(made["owner"].dropna()) == {"a", "b"} and 0.03 < made["owner"].isna().mean() < 0.2
    assert set(made.loc[made["kind"] == "small", "colour"]) == {"red"}
    assert {"red", "blue"} == set(made.loc[made["kind"] == "large", "colour"])


def test_whole_numbers_stay_whole() -> None:
    g = np.random.default_rng(0)
    table = {"rooms": g.integers(1, 9, size=60), "area": g.normal(size=60)}
    for statistic in ("mean", "median"):
        model = TabularModel.fit(table, generator="smoothed")
        model.choice = Candidate("smoothed", statistic, 1.0, 0.0, 0.0)
        made = model.sample(200, seed=0)
        assert isinstance(made, dict) and made["rooms"].dtype == table["rooms"].dtype
        assert 1 <= made["rooms"].min() and made["rooms"].max() <= 8 and len(np.unique(made["rooms"])) > 3


def test_an_array_gives_an_array() -> None:
    x, y = load_iris(return_X_y=True)
    made = TabularModel.fit(np.column_stack([x, y]), "4", generator="smoothed").sample(30, seed=0, counts="exact")
    assert made.shape == (30, 5) and np.bincount(made[:, 4].astype(int)).tolist() == [10, 10, 10]


def test_draws_depend_on_the_seed_alone() -> None:
    model = TabularModel.fit(frame(60), "kind", generator="smoothed")
    torch.manual_seed(3)
    first = model.sample(40)
    torch.manual_seed(3)
    pandas.testing.assert_frame_equal(first, model.sample(40))
    pandas.testing.assert_frame_equal(model.sample(40, seed=9), model.sample(40, seed=9))
    assert not model.sample(40, seed=9).equals(model.sample(40, seed=10))
    other = TabularModel.fit(frame(60), "kind", generator="smoothed")
    assert other.candidates == model.candidates
    pandas.testing.assert_frame_equal(model.sample(40, seed=9), other.sample(40, seed=9))


def test_one_class_alone_and_exact_shares() -> None:
    model = TabularModel.fit(frame(), "kind", generator="smoothed")
    assert set(model.sample(25, seed=0, target="small")["kind"]) == {"small"}
    share = (frame()["kind"] == "small").mean()
    assert abs((model.sample(1000, seed=0, counts="exact")["kind"] == "small").sum() - 1000 * share) < 1.0
    spread = [(model.sample(100, seed=s)["kind"] == "small").sum() for s in range(30)]
    assert 2.0 < np.std(spread) < 8.0  # multinomial: 4.6


def test_counts_are_nearest_to_the_shares() -> None:
    assert _exact(10, np.array([0.26, 0.26, 0.48])).tolist() == [3, 2, 5]
    assert _exact(1, np.array([0.2, 0.8])).tolist() == [0, 1]


def test_the_mean_is_tweedies() -> None:
    """Evenly spaced rows have equal widths, so that the denoised row is x + s^2 grad log p(x)."""
    g = np.random.default_rng(0)
    smoothed = smoothed_rows(numbers(np.stack([np.arange(8.0), np.zeros(8)], axis=1)))
    points = torch.from_numpy(smoothed.points)

    class Recorder:
        """Numbers whose normals are kept."""

        def integers(self, *args: Any, **options: Any) -> Any:
            self.source = g.integers(*args, **options)
            return self.source

        def standard_normal(self, shape: Any) -> Any:
            self.normals = g.standard_normal(shape)
            return self.normals

        def random(self, shape: Any) -> Any:
            return g.random(shape)

    recorder, level = Recorder(), 0.7
    made = smoothed.draw(50, level, "mean", recorder)  # type: ignore[arg-type]
    x = points[recorder.source] + level * torch.from_numpy(recorder.normals)
    expected = x + level**2 * GaussianMixture.from_points(smoothed.points, level).score(x)
    found = (made.numbers - smoothed.coordinates.mean) / smoothed.coordinates.deviation
    assert np.abs(found - expected.numpy()).max() < 1e-9


def test_the_median_is_the_weighted_one() -> None:
    g = np.random.default_rng(1)
    x = g.normal(size=(9, 2))
    smoothed = smoothed_rows(numbers(x))
    weights = g.random((4, 9)) ** 3
    weights /= weights.sum(1, keepdims=True)
    found = smoothed._denoised(weights, "median", g).numbers
    for row, w in zip(found, weights, strict=True):
        for j in range(2):
            costs = [float((w * np.abs(x[:, j] - value)).sum()) for value in x[:, j]]
            assert row[j] == x[int(np.argmin(costs)), j]


def test_indices_are_drawn_by_the_weights() -> None:
    weights = np.array([[0.0, 0.7, 0.3, 0.0]]).repeat(20_000, axis=0)
    counts = np.bincount(drawn(weights, np.random.default_rng(0)), minlength=4) / 20_000
    assert counts[0] == counts[3] == 0.0 and abs(counts[1] - 0.7) < 0.015


def test_a_larger_level_narrows_and_copies_less() -> None:
    rows = numbers(np.random.default_rng(0).normal(size=(80, 5)))
    smoothed, scale = smoothed_rows(rows), _Scale(rows)
    variances, copies = [], []
    for level in (0.1, 1.0, 4.0):
        made = smoothed.draw(400, level, "mean", np.random.default_rng(0))
        variances.append(made.numbers.var(0).sum() / rows.numbers.var(0).sum())
        copies.append(scale.copies(made, rows, scale.neighbours(rows)))
    assert variances == sorted(variances, reverse=True) and copies == sorted(copies, reverse=True)
    assert copies[0] > 0.9 and copies[2] < 0.05


def test_the_distance_is_the_best_assignment() -> None:
    g = np.random.default_rng(0)
    a = Encoded.of_numbers(g.normal(size=(4, 2)), g.integers(3, size=(4, 1)))
    b = Encoded.of_numbers(g.normal(size=(2, 2)), g.integers(3, size=(2, 1)))
    scale = _Scale(b)
    costs = scale.costs(a, b)
    assert costs[1, 0] == pytest.approx(
        (np.abs(a.numbers[1] - b.numbers[0]) / np.ptp(b.numbers, axis=0)).sum() + float(a.codes[1, 0] != b.codes[0, 0])
    )
    best = min(sum(costs[i, p[i] % 2] for i in range(4)) / 4 for p in itertools.permutations(range(4)))
    assert scale.distance(a, b) == pytest.approx(best)


def test_copies_are_passed_over() -> None:
    model = TabularModel.fit(frame(100), "kind", generator="smoothed")
    least = min(candidate.copies for candidate in model.candidates)
    assert model.choice == model.candidates[0] and model.choice.copies <= max(0.2, least)
    assert {c.statistic for c in model.candidates} == {"mean", "median"}


def test_gaps_are_filled_from_what_is_known() -> None:
    g = np.random.default_rng(0)
    right = g.random(200) < 0.5
    x = np.where(right, 5.0, -5.0) + g.normal(size=200)
    table = {"side": np.where(right, "r", "l"), "x": x, "y": x + 0.1 * g.normal(size=200), "n": right.astype(int)}
    model = TabularModel.fit(table, "side", generator="smoothed")
    gaps = {"x": np.array([5.0, -5.0, np.nan, 4.0]), "y": np.array([np.nan] * 3 + [4.1]), "n": np.array([1, 0, 1, 1])}
    made = model.impute(gaps, seed=0)
    assert made["side"].tolist() == ["r", "l", "r", "r"] and list(made) == list(table)
    assert made["x"][0] == 5.0 and made["y"][3] == 4.1 and made["n"].tolist() == [1, 0, 1, 1]
    assert made["y"][0] > 2.0 and made["y"][1] < -2.0 and made["x"][2] > 2.0
    draws = {float(model.impute(gaps, seed=s)["y"][2]) for s in range(8)}
    assert len(draws) > 3


def test_filled_rows_have_no_gaps() -> None:
    given = frame()
    model = TabularModel.fit(given, "kind", generator="smoothed")
    gaps = given.drop(columns=["doors"]).astype({"colour": object})
    gaps.loc[::3, "colour"] = None
    made = model.impute(gaps, seed=0)
    assert not made["weight"].isna().any() and made["doors"].between(2, 5).all()
    known = given["weight"].notna()
    assert (made.loc[known, "weight"] == given.loc[known, "weight"]).all()


def test_a_model_is_stored(tmp_path: Path) -> None:
    for name, options in {"rows": {"generator": "smoothed"}, "network": {"generator": "network"}}.items():
        model = TabularModel.fit(frame(40), "kind", n_folds=2, levels=(1.0, 2.0), steps=30, **options)  # type: ignore[arg-type]
        assert model.choice.generator == ("smoothed" if name == "rows" else "network")
        model.save(tmp_path / name)
        again = TabularModel.load(tmp_path / name)
        assert again.candidates == model.candidates and again.choice == model.choice
        pandas.testing.assert_frame_equal(again.sample(30, seed=2), model.sample(30, seed=2))
        gaps = frame(40, 1).drop(columns=["price"])
        pandas.testing.assert_frame_equal(again.impute(gaps, seed=2), model.impute(gaps, seed=2))
    (tmp_path / "rows" / "rows.safetensors").write_bytes(b"0")
    with pytest.raises(CheckpointError, match=r"rows\.safetensors"):
        TabularModel.load(tmp_path / "rows")


def test_a_network_makes_rows_of_their_class() -> None:
    x, y = load_iris(return_X_y=True)
    table = {f"{i}": column for i, column in enumerate(x.T)} | {"species": y}
    model = TabularModel.fit(table, "species", generator="network", n_folds=2, levels=(0.5, 1.0), steps=200)
    made = model.sample(150, seed=0, counts="exact")
    points = np.stack([made[f"{i}"] for i in range(4)], axis=1)
    nearest = np.square(points[:, None] - x[None]).sum(2).argmin(1)
    assert (y[nearest] == made["species"]).mean() > 0.9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"table": 3}, "table: expected a DataFrame, a dict of columns or an array"),
        (lambda t: {"table": {"a": [1.0, 2.0], "b": [1.0]}}, r"table: expected columns of one length.*\[1, 2\]"),
        (lambda t: {"table": t | {"a": [np.inf] * 40}}, "table: column 'a': expected finite numbers, found inf"),
        (lambda t: {"table": t | {"a": [None] * 40}}, "table: column 'a': expected values, found only missing cells"),
        (
            lambda t: {"table": {k: v[:6] for k, v in t.items()}},
            "table: expected at least 2 n_folds = 10 rows, found 6",
        ),
        (lambda t: {"target": "c"}, "expected names of columns.*found 'c'"),
        (lambda t: {"table": t | {"y": [None] + ["u"] * 39}}, "target: expected a class in every row"),
        (lambda t: {"categorical": ["q"]}, "categorical: expected names of columns, 'a', 'y', found 'q'"),
        (lambda t: {"generator": "gan"}, "generator: expected"),
        (lambda t: {"levels": ()}, "levels: expected at least one number"),
        (lambda t: {"levels": (0.0,)}, "levels: expected a finite positive number"),
        (lambda t: {"n_folds": 1}, "n_folds: expected"),
    ],
)
def test_bad_tables(change: Any, message: str) -> None:
    table = {"a": np.random.default_rng(0).normal(size=40), "y": ["u", "v"] * 20}
    options: dict[str, Any] = {"table": table, "target": "y"} | change(table)
    with pytest.raises((ValueError, TypeError), match=message):
        TabularModel.fit(**options)


def test_bad_rows_and_draws() -> None:
    model = TabularModel.fit({"a": np.arange(40.0), "y": ["u", "v"] * 20}, "y", generator="smoothed", levels=(1.0,))
    with pytest.raises(ValueError, match=r"target: expected one of \['u', 'v'\], found 'w'"):
        model.sample(3, target="w")
    with pytest.raises(ValueError, match="counts: expected"):
        model.sample(3, counts="some")
    with pytest.raises(ValueError, match=r"table: column 'y': expected one of 'u', 'v' \.\.\., found 'w'"):
        model.impute({"a": [1.0], "y": ["w"]})
    with pytest.raises(ValueError, match="table: expected the columns 'a', 'y', found 'b'"):
        model.impute({"b": [1.0]})
    with pytest.raises(TypeError, match="table: column 'a': expected numbers, found 'x' in row 1"):
        model.impute({"a": ["x"]})
    dates = pandas.DataFrame({"d": pandas.date_range("2020-01-01", periods=12)})
    with pytest.raises(TypeError, match="table: column 'd': expected numbers or categories, found datetime64"):
        Schema.of(dates)


def test_both_solvers_of_transport_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ot")
    rng = np.random.default_rng(0)
    a, b = (tables.Rows(rng.normal(size=(n, 3)), rng.integers(0, 3, n)) for n in (40, 23))
    found = [tables.Judge(a).transport(a, b)]
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    assert found == pytest.approx([tables.Judge(a).transport(a, b)], rel=1e-9)


def test_the_public_comparison_runs(tmp_path: Path) -> None:
    arguments = ["--sets", "iris", "--splits", "1", "--seeds", "1", "--generations", "1", "--out", str(tmp_path)]
    arguments += ["--steps", "50"]
    assert tables.main(arguments) == 0
    rows = [json.loads(line) for line in (tmp_path / tables.ROWS).read_text().splitlines()]
    assert [row["method"] for row in rows] == [tables.ORACLE, *tables.METHODS]
    oracle, ours = rows[0]["random"][0]["W_test"], rows[1]["random"][0]["W_test"]
    assert oracle == pytest.approx(0.2269, abs=0.03) and 0.5 * oracle < ours < 0.45
    assert tables.main(arguments) == 0  # nothing is left to run
    assert len((tmp_path / tables.ROWS).read_text().splitlines()) == 3
    page = (tmp_path / "public-tables.md").read_text()
    assert "## Iris" in page and "forest_diffusion_flow_nt51_ycond" in page and "fastndsm.tabular, network" in page
