"""Small tables: `fastndsm.tabular` by the protocol, and beside the published rows, of ForestDiffusion.

    python -m benchmarks.public.tables --data FOLDER      every run that has no row yet, then the page
    python -m benchmarks.public.tables --page             the page alone, from the rows there are

Iris, wine and breast cancer (diagnostic) come with scikit-learn. FOLDER holds sonar.csv and ionosphere.csv, a header
and the class last (UCI; from R's mlbench); without it these two are left out.

Protocol (Jolicoeur-Martineau, Fatras and Kachman, AISTATS 2024, arXiv 2309.09968, "generation"): three stratified
splits 80/20; fitted to the training part, five sets of as many rows drawn; W is the exact optimal transport cost of
generated and test (or training) rows, absolute differences of features in units of the training part's range, the class
one-hot divided by two, or 0/1. published_tables.csv has their means, from "Results_tabular - generation.csv" of
SamsungSAILMontreal/ForestDiffusion. We add three training seeds. Every setting is `TabularModel.fit`'s default.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import eye_array, kron, vstack
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.model_selection import train_test_split

from fastndsm.cli.tables import markdown
from fastndsm.tabular import TabularModel

from .rows import complete, publish, read

HERE = Path(__file__).resolve().parent
ROWS, PAGE, PUBLISHED = "public-tables.jsonl", "public-tables.md", HERE / "published_tables.csv"
PACKAGES = ("torch", "scikit-learn", "pot")
RESULTS = HERE.parent / "results"
SETS = {
    "iris": "iris",
    "wine": "wine",
    "breast cancer": "breast_cancer_diagnostic",
    "sonar": "connectionist_bench_sonar",
    "ionosphere": "ionosphere",
}
OTHER_ORDER = ("sonar", "ionosphere")  # of rows than the published ones', so that splits differ
CONSTANT = {"ionosphere": ("V2",)}
SPLITS, GENERATIONS, SEEDS, NEIGHBOURS = 3, 5, 3, 5
ORACLE = "training rows (oracle)"
METHODS = {"fastndsm.tabular": "auto", "fastndsm.tabular, network": "network"}

Floats = NDArray[np.float64]


class Rows(NamedTuple):
    """Features [n, d] and classes [n], integers from 0."""

    x: Floats
    y: NDArray[np.int64]


def load(name: str, folder: Path | None) -> Rows | None:
    """Return a data set, None if it is in a folder that is not given."""
    bundled = {"iris": load_iris, "wine": load_wine, "breast cancer": load_breast_cancer}
    if name in bundled:
        return Rows(*bundled[name](return_X_y=True))
    if folder is None:
        return None
    with open(folder / f"{name}.csv", newline="") as file:
        head, *cells = csv.reader(file)
    kept = [i for i, column in enumerate(head[:-1]) if column not in CONSTANT.get(name, ())]
    classes = sorted({row[-1] for row in cells})
    return Rows(
        np.array([[float(row[i]) for i in kept] for row in cells]), np.array([classes.index(row[-1]) for row in cells])
    )


class Judge:
    """The distances of the protocol, in units of a training part."""

    def __init__(self, train: Rows) -> None:
        self.low, span = train.x.min(0), np.ptp(train.x, axis=0)
        self.span, self.classes = np.where(span > 0, span, 1.0), int(train.y.max()) + 1
        between = self.costs(train, train)
        np.fill_diagonal(between, np.inf)
        self.own = between.min(1)  # distances of training rows to their neighbours

    def points(self, rows: Rows) -> Floats:
        """Return rows as the points that costs are between."""
        label = rows.y[:, None].astype(float) if self.classes == 2 else np.eye(self.classes)[rows.y] / 2
        return np.concatenate([(rows.x - self.low) / self.span, label], axis=1)

    def costs(self, a: Rows, b: Rows) -> Floats:
        """Return sums of absolute differences [n, m]."""
        x, y = self.points(a), self.points(b)
        return np.abs(x[:, None] - y[None]).sum(2)

    def transport(self, a: Rows, b: Rows) -> float:
        """Return the exact optimal transport cost, all rows of equal weight: by POT, where it is installed.

        Both are exact, to the tolerance of the linear program; POT takes a small part of its time.
        """
        n, m = len(a.y), len(b.y)
        if importlib.util.find_spec("ot") is not None:
            import ot

            return float(ot.emd2([], [], self.costs(a, b), numItermax=100_000_000))
        sums = vstack([kron(eye_array(n), np.ones((1, m))), kron(np.ones((1, n)), eye_array(m))]).tocsr()
        masses = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
        found = linprog(self.costs(a, b).ravel(), A_eq=sums, b_eq=masses, method="highs")
        if not found.success:
            raise RuntimeError(f"optimal transport: {found.message}")
        return float(found.fun)

    def coverage(self, real: Rows, made: Rows) -> float:
        """Return the share of real rows with a generated one nearer than their fifth real neighbour (Naeem 2020)."""
        own = np.sort(self.costs(real, real), axis=1)[:, min(NEIGHBOURS, len(real.y) - 1)]
        return float((self.costs(real, made).min(1) <= own).mean())


def measure(train: Rows, test: Rows, made: Rows, judge: Judge) -> dict[str, float]:
    """Return the figures of one generated set."""
    to_train, ordinary = judge.costs(made, train), judge.costs(test, train).min(1)
    nearest, closest = to_train.min(1), judge.own[to_train.argmin(1)]
    spread = np.square(judge.points(made) - judge.points(made).mean(0)).sum()
    return {
        "W_test": judge.transport(made, test),
        "coverage_test": judge.coverage(test, made),
        "coverage_train": judge.coverage(train, made),
        "nearest": float(nearest.mean() / ordinary.mean()),
        "copies": float((nearest < 0.1 * closest).mean()),
        "variance": float(spread / np.square(judge.points(train) - judge.points(train).mean(0)).sum()),
    }


def perform(
    name: str, method: str, split: int, seed: int, rows: Rows, generations: int, steps: int | None = None
) -> dict[str, Any]:
    """Fit to one training part, and measure what is drawn."""
    parts = train_test_split(rows.x, rows.y, test_size=0.2, random_state=split, stratify=rows.y)
    train, test = Rows(parts[0], parts[2]), Rows(parts[1], parts[3])
    judge, found = Judge(train), {"set": name, "method": method, "split": split, "seed": seed}
    if method == ORACLE:
        return found | {"random": [measure(train, test, train, judge)], "exact": [], "seconds": 0.0}
    table: dict[str, Any] = {str(i): column for i, column in enumerate(train.x.T)} | {"class": train.y}
    started = time.process_time()
    model = TabularModel.fit(table, "class", generator=METHODS[method], steps=steps, seed=seed)
    found |= {"seconds": round(time.process_time() - started, 2), "choice": model.choice._asdict()}
    for counts in ("random", "exact"):
        figures = []
        for generation in range(generations):
            drawn = model.sample(len(train.y), seed=1000 * seed + generation, counts=counts)
            x = np.stack([np.asarray(drawn[str(i)], dtype=float) for i in range(rows.x.shape[1])], axis=1)
            made = Rows(x, drawn["class"].astype(np.int64))
            figures.append(measure(train, test, made, judge))
            if generation == 0 and counts == "random":
                figures[0]["W_train"] = judge.transport(made, train)
        found[counts] = figures
    return found


def plan(
    folder: Path | None, splits: int = SPLITS, seeds: int = SEEDS, methods: Sequence[str] = tuple(METHODS)
) -> list[tuple[str, str, int, int]]:
    """Return all runs, seed 0 of every set first."""
    names = [name for name in SETS if name not in OTHER_ORDER or folder is not None]
    runs = [(name, ORACLE, split, 0) for name in names for split in range(splits)]
    for seed in range(seeds):
        for method in methods:
            runs += [(name, method, split, seed) for name in names for split in range(splits)]
    return runs


def mean(rows: Sequence[dict[str, Any]], key: str, counts: str = "random") -> float | None:
    """Return a figure's mean over runs and generations."""
    values = [figures[key] for row in rows for figures in row[counts] if key in figures]
    return float(np.mean(values)) if values else None


def shown(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Return the page: our rows beside the published ones."""
    with open(PUBLISHED, newline="") as file:
        published = list(csv.DictReader(file))
    parts = [(HERE / "tables_head.md").read_text().rstrip()]
    body = []
    for name, theirs in SETS.items():
        mine = [row for row in rows if row["set"] == name]
        if not mine:
            continue
        others = [row for row in published if row["dataset"] == theirs]
        best = min((row for row in others if row["method"] != "oracle"), key=lambda row: float(row["W_test"]))
        oracle = next(float(row["W_test"]) for row in others if row["method"] == "oracle")
        own_oracle = mean([row for row in mine if row["method"] == ORACLE], "W_test") or float("nan")
        ours = [row for row in mine if row["method"] == next(iter(METHODS))]
        found = mean(ours, "W_test")
        bound = float(best["W_test"]) * (own_oracle / oracle if name in OTHER_ORDER else 1.0)
        verdict = "" if found is None else ("below" if found <= bound else f"above by {found - bound:.3f}")
        cells = [name, shown(found, 4), f"{best['method']}: {float(best['W_test']):.4f}", f"{bound:.4f}", verdict]
        seconds = shown(float(np.mean([row["seconds"] for row in ours])), 1) if ours else ""
        cells += [f"{len(ours)} of {SPLITS * SEEDS}", f"{seconds} / {float(best['time']):.1f}"]
        body.append([*cells, shown(own_oracle, 4), f"{oracle:.4f}"])
    head = ["", "ours", "best published", "to reach", "verdict", "fits", "seconds a fit, ours / theirs"]
    head += ["training rows, here", "training rows, published"]
    parts += ["\n## W_test, classes drawn at random\n", markdown(head, body)]
    for name, theirs in SETS.items():
        lines = []
        for method in (ORACLE, *METHODS):
            mine = [row for row in rows if row["set"] == name and row["method"] == method]
            if mine:
                figures = [mean(mine, "W_test"), mean(mine, "W_test", "exact"), mean(mine, "W_train")]
                figures += [mean(mine, key) for key in ("coverage_test", "nearest", "copies", "variance")]
                seconds = shown(float(np.mean([row["seconds"] for row in mine])), 1)
                lines.append([method, *map(shown, figures), seconds, str(len(mine))])
        if not lines:
            continue
        for row in sorted((r for r in published if r["dataset"] == theirs), key=lambda r: float(r["W_test"])):
            cells = [shown(float(row["W_test"])), "", shown(float(row["W_train"]))]
            lines.append([f"*{row['method']}*", *cells, "", "", "", "", f"{float(row['time']):.1f}", ""])
        head = ["", "W_test", "exact counts", "W_train", "coverage", "nearest", "copies", "variance", "fit s", "fits"]
        parts += [f"\n## {name.capitalize()}\n", markdown(head, lines)]
    return "\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of sonar.csv and ionosphere.csv")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of rows and page; default benchmarks/results")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--generations", type=int, default=GENERATIONS)
    parser.add_argument("--steps", type=int, help="of networks, to try the code; default as `fit` has it")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    options = parser.parse_args(arguments)
    path = options.out / ROWS

    def performed(name: str, method: str, split: int, seed: int) -> dict[str, Any]:
        rows = load(name, options.data)
        assert rows is not None
        return perform(name, method, split, seed, rows, options.generations, options.steps)

    if not options.page:
        runs = plan(options.data, options.splits, options.seeds, options.methods)
        runs = [run for run in runs if run[0] in options.sets]
        told = lambda row: [shown(mean([row], "W_test"), 4), row.get("choice", "")]  # noqa: E731
        complete(path, ("set", "method", "split", "seed"), runs, performed, PACKAGES, told)
    publish(options.out / PAGE, page(read(path)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
