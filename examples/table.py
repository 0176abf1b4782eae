"""Rows of a table: fit, draw, fill gaps. Wine: thirteen measurements of 178 wines of three cultivars.

    python examples/table.py [--csv rows.csv]

Prints the setting that folds chose, how near the generated rows are to wines that were held out, and how well a
classifier that has seen generated rows alone knows held-out ones; then fills cells that were hidden.
"""

from __future__ import annotations

import argparse
import csv

import numpy as np
from sklearn.datasets import load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import train_test_split

from fastndsm.tabular import TabularModel


def main() -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", help="file to write generated rows to")
    options = parser.parse_args()
    wine = load_wine()
    names = [str(name) for name in wine.feature_names]
    x, held_x, y, held_y = train_test_split(wine.data, wine.target, test_size=0.2, random_state=0, stratify=wine.target)
    table = dict(zip(names, x.T, strict=True)) | {"cultivar": np.array(wine.target_names, dtype=object)[y]}

    model = TabularModel.fit(table, "cultivar", generator="smoothed")
    made = model.sample(len(y), seed=0, counts="exact")
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([list(made), *zip(*made.values(), strict=True)])

    of_name = {name: i for i, name in enumerate(wine.target_names)}
    rows = np.stack([made[name] for name in names], axis=1)
    generated = RandomForestClassifier(random_state=0).fit(rows, [of_name[name] for name in made["cultivar"]])
    real = RandomForestClassifier(random_state=0).fit(x, y)
    hidden = dict(zip(names, held_x.T.copy(), strict=True))
    hidden["alcohol"] = np.full(len(held_y), np.nan)
    filled = model.impute(hidden, seed=0)
    error = np.abs(filled["alcohol"] - held_x[:, names.index("alcohol")]).mean()
    found = {
        "share of copies": model.choice.copies,
        "accuracy, trained on real rows": float(real.score(held_x, held_y)),
        "accuracy, trained on generated rows": float(generated.score(held_x, held_y)),
        "cultivars recognised by filling": float((np.array([of_name[c] for c in filled["cultivar"]]) == held_y).mean()),
        "error of filled alcohol": float(error),
        "error of any wine's alcohol": float(np.abs(x[:, 0][:, None] - held_x[:, 0]).mean()),
    }
    print(model.choice)
    for name, value in found.items():
        print(f"{name:40} {value:.3f}")
    return found


if __name__ == "__main__":
    main()
