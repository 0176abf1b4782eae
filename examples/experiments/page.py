"""Writes figures, and the tables of the page between its marks; the prose around them is left as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from fastndsm.cli.tables import markdown

from . import (
    EXPERIMENTS,
    best,
    claims,
    classes,
    evaluations,
    figures,
    imbalance,
    latent_space,
    methods,
    planar,
    records,
    reference,
    small,
    stiff,
    sweeps,
    symmetry,
    tuning,
)
from .store import Row, Store
from .tables import NOT_RUN, Results, shown, table

TEMPLATE = Path(__file__).resolve().parent / "README.md"
MARK = re.compile(r"(<!-- table: (?P<name>[^>]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
IMAGE_COLUMNS = {
    "Frechet": "frechet",
    "to raw images": "frechet_raw",
    "class TV": "class_tv",
    "confidence": "confidence",
    "nearest, relative": "nearest_ratio",
}


def write(folder: Path, store: Store, seeds: int, quick: bool = False) -> list[tuple[str, Row]]:
    """Redraw the figures in folder/figures and rewrite folder/README.md; return what `figures.write` does."""
    results = {name: Results(name, store, seeds, quick) for name in EXPERIMENTS}
    found = results[evaluations.NAME]
    few = {"evaluations-frechet": lambda: best.curves(found), "evaluations-samples": lambda: best.few(found)}
    missing = figures.write(folder / "figures", results, few)
    made = tables(results)

    def fill(match: re.Match[str]) -> str:
        if match["name"] not in made:
            raise ValueError(f"{TEMPLATE.name}: expected a table among {sorted(made)}, found {match['name']!r}")
        return f"{match[1]}{made[match['name']]()}\n{match[3]}"

    page = folder / TEMPLATE.name
    text = MARK.sub(fill, TEMPLATE.read_text())
    part = page.with_suffix(".part")
    part.write_text(text)
    part.replace(page)
    return missing


def tables(results: dict[str, Results]) -> dict[str, Callable[[], str]]:
    """Return each table of the page by name."""
    unequal, mirrored, few = results[imbalance.NAME], results[symmetry.NAME], results[small.NAME]
    rare = {"Frechet": "frechet", "class TV": "class_tv", "rare class": "rare_weight", "covered": "rare_coverage"}
    sides = {"upright": "frechet_upright", "mirrored": "frechet_mirrored"}
    balance = {"share mirrored": "mirrored", "TV": "orientation_tv", "Frechet": "frechet", **sides}
    made: dict[str, Callable[[], str]] = {
        "progress": lambda: progress(results),
        "claims": lambda: claims.table(results),
        "tuning": lambda: tries(results[tuning.NAME]),
        "latent": lambda: spaces(results[latent_space.NAME]),
        "latent-all": lambda: every_row(results[latent_space.NAME]),
        "stiff": lambda: references(results[stiff.NAME]),
        "sweeps": lambda: swept(results[sweeps.NAME]),
        "reference": lambda: borne(results[reference.NAME]),
        "records": lambda: shared(results[records.NAME]),
    }
    for data in planar.COMPONENTS:
        made[f"planar {data}"] = lambda data=data: by_size(results[planar.NAME], data)  # type: ignore[misc]
    calls = results[evaluations.NAME]
    made["evaluations tries"] = lambda: best.tries(calls)
    for space in evaluations.SPACES:
        made[f"evaluations {space}"] = lambda space=space: best.by_calls(calls, space)  # type: ignore[misc]
        made[f"evaluations {space}, second"] = lambda space=space: best.second(calls, space)  # type: ignore[misc]
    for case in imbalance.CASES:
        made[f"imbalance {case}"] = lambda case=case: table(unequal, rare, case=case)  # type: ignore[misc]
    for case in symmetry.CASES:
        made[f"symmetry {case}"] = lambda case=case: table(mirrored, balance, case=case)  # type: ignore[misc]
    by_class = {"Frechet": "frechet", "class TV": "class_tv", "class accuracy": "accuracy"}
    by_class |= {"rare: accuracy": "rare_accuracy", "Frechet of it": "rare_frechet", "covered": "rare_covered"}
    by_class |= {"covered by its share": "rare_coverage", "train s": "train_seconds"}
    for k in (classes.SETTINGS["components"], classes.MANY):
        made[f"classes {k}"] = lambda k=k: table(results[classes.NAME], by_class, components=k)  # type: ignore[misc]
    columns = {"Frechet to raw images": "frechet_raw", "nearest, relative": "nearest_ratio", "copies": "copies"}
    for n in small.SIZES:
        made[f"small {n}"] = lambda n=n: table(few, columns | {"class TV": "class_tv"}, n=n)  # type: ignore[misc]
    return made


def every_row(results: Results) -> str:
    """Tabulate all rows in the first space: the trained ones at the greater length."""
    columns = IMAGE_COLUMNS | {"train s": "train_seconds"}
    still, trained = (
        table(results, columns, names=names, encoder="AE 16", steps=steps)
        for names, steps in ((methods.UNTRAINED, 0), (methods.TRAINED, latent_space.LENGTHS[-1]))
    )
    return still if trained.startswith("*") else "\n".join([still, *trained.splitlines()[2:]])


def progress(results: dict[str, Results]) -> str:
    """Tabulate what has been run and what has not, and what it cost."""
    body = []
    for name, found in results.items():
        minutes = sum(row["result"]["cpu_seconds"] for row in found.rows) / 60
        body.append([name, str(len(found.rows)), str(found.planned), f"{minutes:.0f}"])
    return markdown(["experiment", "runs done", "of", "processor minutes"], body)


def by_size(results: Results, data: str) -> str:
    """Tabulate a row's figures at each number of training points."""
    parts = []
    for n in planar.SIZES:
        columns = {"energy distance": "energy", "nearest, relative": "nearest_ratio", "copies": "copies"}
        if data == "four_modes":
            columns |= {"TV to the data's weights": "mode_tv", "TV to the law's": "mode_tv_true"}
        parts.append(f"n = {n}\n\n{table(results, columns, data=data, n=n)}")
    return "\n\n".join(parts)


def tries(results: Results) -> str:
    """Tabulate energy or Frechet distance of each try; the best of a family in each column is what is used."""
    body = []
    for name in tuning.TRIES:
        cells = [
            results.spread("energy", **{"try": name}, data="four_modes"),
            results.spread("energy", **{"try": name}, data="moons"),
            results.spread("frechet", **{"try": name}, kind="imbalance"),
        ]
        body.append([name, *map(shown, cells)])
    return markdown(["try", "four modes, energy", "moons, energy", "MNIST, Frechet"], body)


def spaces(results: Results) -> str:
    """Tabulate quality against cost in every space."""
    head = ["space", "row", "steps", "Frechet to raw images", "confidence", "class TV", "encoder s", "train s", "seeds"]
    body = []
    metrics = ("frechet_raw", "confidence", "class_tv", "encoder_seconds", "train_seconds")
    for encoder in latent_space.ENCODERS:
        for row in (methods.HELD_OUT, methods.PI, methods.FULL, methods.LINEAR, methods.PATH):
            for steps in (0, *latent_space.LENGTHS, latent_space.LONG):
                cells = [results.spread(m, encoder=encoder, row=row, steps=steps) for m in metrics]
                if cells[0] is not None:
                    body.append([encoder, row, str(steps or ""), *map(shown, cells), str(cells[0].seeds)])
    return markdown(head, body) if body else NOT_RUN


def references(results: Results) -> str:
    """Tabulate stiffness, and what pi alone and path with it give."""
    head = ["coordinates", "covariances", "reg_covar", "eigenvalue ratio", "steps needed", "pi", "path", "train s"]
    body = []
    for case in results.values("case"):
        for kind, reg in stiff.REFERENCES:
            wanted = {"case": case, "covariance": kind, "reg_covar": reg}
            ratio, needed, pi = (
                results.spread(m, row=methods.PI, **wanted) for m in ("eigenvalue_ratio", "steps_needed", "frechet")
            )
            path, seconds = (results.spread(m, row=methods.PATH, **wanted) for m in ("frechet", "train_seconds"))
            if ratio is not None:
                tried = "too stiff" if results.select(row=methods.PATH, **wanted) else ""
                cells = (ratio, needed, pi, tried if path is None else path, seconds)
                body.append([case, kind, str(reg), *map(shown, cells), str(ratio.seeds)])
        held = results.spread("frechet", case=case, row=methods.HELD_OUT)
        if held is not None:
            body.append([case, "held-out data", "", "", "", str(held), "", "", str(held.seeds)])
    return markdown([*head, "seeds"], body) if body else NOT_RUN


def swept(results: Results) -> str:
    """Tabulate every variation: what was changed, and what pi alone and path with it give."""
    head = ["sweep", "setting", "eigenvalue ratio", "steps needed", "pi", "path", "TV", "train s", "sample s"]
    body = []

    def line(name: str, setting: str, metric: str, wanted: dict[str, object]) -> None:
        pi = results.spread(metric, row=methods.PI, **wanted)
        path = results.spread(metric, row=methods.PATH, **wanted)
        rest = [results.spread(m, row=methods.PATH, **wanted) for m in ("eigenvalue_ratio", "steps_needed")]
        tv = results.spread("class_tv" if metric == "frechet" else "mode_tv", row=methods.PATH, **wanted)
        times = [results.spread(m, row=methods.PATH, **wanted) for m in ("train_seconds", "sample_seconds")]
        if results.select(row=methods.PATH, **wanted):
            seen = max(c.seeds for c in (path, *rest) if c is not None)
            cells = [*rest, pi, "too stiff" if path is None else path, tv, *times]
            body.append([name, setting, *map(shown, cells), str(seen)])

    for name, variations in sweeps.VARIATIONS.items():
        for varied in variations:
            setting = ", ".join(_setting(k, v) for k, v in varied.items() if v != "needed")
            line(name, setting, "frechet", {"sweep": name, **varied})
    for name in sweeps.PLANE:
        for data in ("four_modes", "ring"):
            line(f"plane, {data}", name, "energy", {"sweep": f"plane: {name}", "data": data})
    held = results.spread("frechet", sweep="held-out")
    if held is not None:
        body.append(["held-out data", "", "", "", str(held), "", "", "", "", str(held.seeds)])
    return markdown([*head, "seeds"], body) if body else NOT_RUN


def borne(results: Results) -> str:
    """Tabulate likelihood and copies by rows and components."""
    names = {
        "training": "train",
        "held-out": "held_out",
        "nearest, relative": "nearest_ratio",
        "copies": "copies",
        "fit, processor s": "fit_seconds",
    }
    body = []
    for n in results.values("n"):
        for k in results.values("components"):
            found = [results.spread(metric, n=n, components=k) for metric in names.values()]
            if found[0] is not None:
                body.append([f"{n:,}", f"{k:,}", f"{n / k:,.1f}", *map(shown, found), str(found[0].seeds)])
    head = ["rows", "components", "rows a component", *names, "seeds"]
    return markdown(head, body) if body else NOT_RUN


def shared(results: Results) -> str:
    """Tabulate Frechet distance by records a path and evaluations, what sees diversity at ten, and the cost."""
    names = ("recall", "coverage", "energy")
    body = []
    for space in records.SPACES:
        for count in results.values("records_per_path", space=space):
            wanted = {"space": space, "records_per_path": count}
            cells = [results.spread("frechet", **wanted, calls=calls) for calls in evaluations.TABLED]
            cells += [results.spread(metric, **wanted, calls=10) for metric in (*names, "train_seconds")]
            seeds = max(cell.seeds for cell in cells if cell is not None)
            body.append([space, str(count), *map(shown, cells), str(seeds)])
    head = ["space", "records", *map(str, evaluations.TABLED), *names, "train s", "seeds"]
    return markdown(head, body) if body else NOT_RUN


def _setting(name: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} = {v}" for k, v in value.items())
    return f"{name} = {value}"
