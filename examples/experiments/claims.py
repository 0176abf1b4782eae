"""The claims, each with the rule that decides it, judged on the rows there are.

"Holds" if every seed of the better row is ahead of every seed of the other (or within the bound), "does not" if its
mean is not ahead (or every seed is beyond the bound), else "undecided". Of fewer than three seeds the same, marked.
Of section 7 each side is the best of its row's settings at its number of evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastndsm.cli.tables import markdown

from . import best, classes, evaluations, imbalance, latent_space, methods, planar, small, stiff, symmetry, trained
from .tables import Results, Spread

SEEDS = 3
Where = dict[str, Any]


class Claim(NamedTuple):
    """`first` is ahead of `second` (a row or a bound) in a figure, in each of the cases."""

    text: str
    experiment: str
    metric: str
    first: str | Where
    second: str | Where | float
    cases: dict[str, Where]
    higher: bool = False


def ahead(first: Spread, second: Spread, higher: bool = False) -> str:
    """Return whether the first is smaller (or higher) than the second."""
    a, b = (Spread(-x.mean, -x.high, -x.low, x.seeds) if higher else x for x in (first, second))
    if a.high < b.low:
        return "holds"
    return "does not" if a.mean >= b.mean else "undecided"


def within(found: Spread, bound: float) -> str:
    """Return whether every seed is at most the bound."""
    return "holds" if found.high <= bound else "does not" if found.low > bound else "undecided"


def all_claims() -> list[Claim]:
    """Return the claims of the page."""
    plane = {d: {f"n = {n}": {"data": d, "n": n} for n in planar.SIZES} for d in planar.COMPONENTS}
    unequal = {case: {"case": case} for case in imbalance.CASES}
    few = {f"n = {n}": {"n": n} for n in small.SIZES}
    steps = {"steps": latent_space.LENGTHS[-1]}
    spaces = {name: {"encoder": name, **steps} for name in latent_space.ENCODERS}
    first = {"AE 16": spaces["AE 16"]}
    path, linear, mixture = methods.PATH, methods.LINEAR, methods.LINEAR_MIXTURE
    tv = "to a TV of 0.05"
    # equal share of mirrored images: the symmetrised reference; unequal: a plain fit
    half, less = {"50/50": {"case": "50/50"}}, {"60/40": {"case": "60/40"}}
    made = [
        Claim(f"Modes: path keeps their weights {tv}", "planar", "mode_tv", path, 0.05, plane["four_modes"]),
        Claim("Modes: nearer than linear VP DSM", "planar", "mode_tv", path, linear, plane["four_modes"]),
        Claim("Modes: nearer than linear, mixture prior", "planar", "mode_tv", path, mixture, plane["four_modes"]),
    ]
    for other in (linear, mixture, methods.ONE, methods.PI, methods.FULL):
        for data, cases in plane.items():
            made.append(Claim(f"{data}, energy distance: path below {other}", "planar", "energy", path, other, cases))
    made += [
        Claim(f"Classes: path keeps their weights {tv}", "imbalance", "class_tv", path, 0.05, unequal),
        *(Claim(f"Classes: nearer than {o}", "imbalance", "class_tv", path, o, unequal) for o in (linear, mixture)),
        *(
            Claim(f"Rare class: path covers more than {o}", "imbalance", "rare_coverage", path, o, unequal, True)
            for o in (linear, mixture)
        ),
    ]
    fifty, rare = path + imbalance.FIFTY, ("imbalance", "rare_coverage")
    made += [
        Claim(f"... with 50 components {tv}", "imbalance", "class_tv", fifty, 0.05, unequal),
        Claim("... with 50 components nearer than linear VP DSM", "imbalance", "class_tv", fifty, linear, unequal),
        *(
            Claim(f"Classes, Frechet: path with 50 components below {o}", "imbalance", "frechet", fifty, o, unequal)
            for o in (linear, linear + imbalance.FOUR, mixture + imbalance.FIFTY, methods.FULL, methods.LINEAR_FULL)
        ),
        Claim("Rare class: path, K = 50, covers more than linear VP DSM", *rare, fifty, linear, unequal, True),
    ]
    for other in (linear, mixture, methods.ONE, methods.PI, methods.FULL):
        made.append(Claim(f"Classes, Frechet: path below {other}", "imbalance", "frechet", path, other, unequal))
    made += [
        Claim(f"Symmetry: balanced {tv}, symmetrized", "symmetry", "orientation_tv", symmetry.SYMMETRIC, 0.05, half),
        Claim("... nearer than linear VP DSM", "symmetry", "orientation_tv", symmetry.SYMMETRIC, linear, half),
        Claim("... in Frechet too", "symmetry", "frechet", symmetry.SYMMETRIC, linear, half),
        Claim("... in Frechet, nearer than a plain fit", "symmetry", "frechet", symmetry.SYMMETRIC, path, half),
        Claim(f"Broken symmetry: orientations {tv}, plain fit", "symmetry", "orientation_tv", path, 0.05, less),
        Claim("... nearer than linear VP DSM", "symmetry", "orientation_tv", path, linear, less),
        Claim("... in Frechet too", "symmetry", "frechet", path, linear, less),
        Claim("... nearer than an exactly symmetric model", "symmetry", "orientation_tv", path, symmetry.EXACT, less),
        Claim(f"... {tv}, symmetrized", "symmetry", "orientation_tv", symmetry.SYMMETRIC, 0.05, less),
        Claim(
            f"... {tv}, symmetrized, weights refitted", "symmetry", "orientation_tv", symmetry.REWEIGHTED, 0.05, less
        ),
    ]
    for other in (linear, mixture, methods.PI, methods.FULL):
        made.append(Claim(f"Few images, Frechet: path below {other}", "small", "frechet_raw", path, other, few))
    made += [
        Claim("Few images: path is further from training images", "small", "nearest_ratio", path, linear, few, True),
        *(
            Claim(f"Latent, Frechet: path below {o}", "latent", "frechet_raw", path, o, cases)
            for o, cases in ((linear, spaces), (mixture, first), (methods.ONE, first))
        ),
        Claim(
            "Latent, Frechet: path below draws from a full mixture",
            *("latent", "frechet_raw", {"row": path} | steps, {"row": methods.FULL, "steps": 0}),
            {name: {"encoder": name} for name in latent_space.ENCODERS if name != "pixels"},
        ),
        Claim(
            "Latent space: path below path in pixels, same evaluations",
            *("latent", "frechet_raw", {"row": path}, {"row": path, "encoder": "pixels"}),
            {name: {"encoder": name, **steps} for name in latent_space.ENCODERS if name != "pixels"},
        ),
        *(
            Claim(f"Estimators, Frechet: path below {other}", name, metric, path, other, cases)
            for other in ("control_variate", "plain antithetic", "path antithetic")
            for name, metric, cases in (("imbalance", "frechet", unequal), ("latent", "frechet_raw", first))
        ),
        *(
            Claim(
                f"Stiff references, whitened: path with {kind} covariances below spherical",
                *("stiff", "frechet", {"covariance": kind, "reg_covar": reg}, {"covariance": "spherical"}),
                {name: {"case": f"{name}, whitened", "row": path} for name in stiff.DATA},
            )
            for kind, reg in stiff.REFERENCES[1:4]
        ),
    ]
    at = {
        f"{space}, {m} evaluations": {"space": space, "calls": m}
        for space in evaluations.MAIN
        for m in evaluations.TABLED
    }
    for metric, word in (("frechet", "below"), ("recall", "above"), ("coverage", "above")):
        made += [
            Claim(f"Best settings, {metric}: path {word} {o}", evaluations.NAME, metric, path, o, at, word == "above")
            for o in best.ROWS[1:]
        ]
    with_many = {
        f"{space}, {m} evaluations": {"space": space, "calls": m}
        for space in (*evaluations.MAIN, *evaluations.WIDER)
        for m in evaluations.FEW
    }
    for metric, word in (("frechet", "below"), ("coverage", "above"), ("energy", "below")):
        for o in best.ROWS[1:]:
            many = {"components": evaluations.MANY}
            mine, other = {"row": path} | many, {"row": o} | (many if o in trained.WITH_MIXTURE else {})
            text = f"Best settings, K = {evaluations.MANY:,}, {metric}: path {word} {o}"
            made.append(Claim(text, evaluations.NAME, metric, mine, other, with_many, word == "above"))
    sizes = {f"{k:,} components": {"components": k} for k in (classes.SETTINGS["components"], classes.MANY)}
    own, rivals = classes.OF_CLASSES, (classes.FITTED, classes.NO_LABELS)
    made += [
        *(
            Claim(f"References of classes, weights: nearer than {o}", classes.NAME, "class_tv", own, o, sizes)
            for o in rivals
        ),
        *(Claim(f"... Frechet below {o}", classes.NAME, "frechet", own, o, sizes) for o in rivals),
        *(
            Claim(f"... {text} than {classes.FITTED}", classes.NAME, metric, own, classes.FITTED, sizes, higher)
            for text, metric, higher in (
                ("more samples of the class asked for", "accuracy", True),
                ("rare class: smaller Frechet distance", "rare_frechet", False),
                ("rare class: more covered", "rare_covered", True),
            )
        ),
    ]
    made.append(
        Claim(
            "Path at 10 evaluations below one step an evaluation at 100",
            *(evaluations.NAME, "frechet", {"row": path, "calls": 10}),
            {"row": path, "calls": 100, "solver": evaluations.PLAIN},
            {space: {"space": space} for space in evaluations.MAIN},
        )
    )
    return made


def judge(claim: Claim, results: Mapping[str, Results]) -> dict[str, tuple[str, str]]:
    """Return the verdict and the numbers of each case that has rows."""
    found = {}
    for name, where in claim.cases.items():
        of = results[claim.experiment]
        a = _spread(of, claim.metric, where | _row(claim.first))
        if isinstance(claim.second, float):
            if a is not None:
                found[name] = (_marked(within(a, claim.second), a.seeds), str(a))
            continue
        b = _spread(of, claim.metric, where | _row(claim.second))
        if a is not None and b is not None:
            found[name] = (_marked(ahead(a, b, claim.higher), min(a.seeds, b.seeds)), f"{a} against {b}")
    return found


def _spread(of: Results, metric: str, where: Where) -> Spread | None:
    """Return a figure over seeds; where rows have settings to choose from, that of the best."""
    if of.name != evaluations.NAME:
        return of.spread(metric, **where)
    of_row = {key: value for key, value in where.items() if key != "components"}
    chosen = best.best(of, **of_row, many=where.get("components") == evaluations.MANY)
    return None if chosen is None else chosen.spread(metric)


def _row(which: str | Where) -> Where:
    return {"row": which} if isinstance(which, str) else which


def _marked(verdict: str, seeds: int) -> str:
    return verdict if seeds >= SEEDS else f"{verdict} so far ({seeds} of {SEEDS} seeds)"


def table(results: Mapping[str, Results]) -> str:
    """Return all verdicts as Markdown."""
    body = []
    for claim in all_claims():
        found = judge(claim, results)
        if found:
            cells = (f"{name}: **{verdict}**, {numbers}" for name, (verdict, numbers) in found.items())
            body.append([claim.text, "<br>".join(cells)])
    return markdown(["claim", "verdict, case by case"], body) if body else "*Nothing run yet.*"
