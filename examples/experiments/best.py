"""Quality against network evaluations: the best setting of each row, its tables and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import Tensor

from fastndsm.cli.tables import markdown

from . import evaluations, figures, methods, trained
from .store import Config, Row
from .tables import NOT_RUN, Results, Spread, short, shown, spread

ROWS = (trained.PATH, trained.EDM, trained.SKIP, trained.FLOW, trained.I_CFM, trained.OT_CFM, trained.VP)
PICTURED, PICTURED_CALLS = (trained.PATH, trained.EDM, trained.SKIP, trained.I_CFM), (1, 2, 3, 5, 10)
WITHOUT_TRAINING = ((methods.PI, False), (methods.PI, True), (methods.HELD_OUT, False))
_HUES = ("tab:blue", "tab:red", "tab:purple", "tab:green", "tab:olive", "tab:brown", "tab:orange")
COLOURS = dict(zip(ROWS, _HUES, strict=True))
SECOND = {
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "variances": "variance_ratio",
    "energy": "energy",
    "class TV": "class_tv",
    "nearest, relative": "nearest_ratio",
    "copies": "copies",
}
SECOND_OF_POINTS = {
    "sliced Wasserstein": "sliced",
    "mode TV": "mode_tv",
    "variances": "variance_ratio",
    "nearest, relative": "nearest_ratio",
    "copies": "copies",
}


class Best(NamedTuple):
    """The setting of the least mean over training seeds and the draws that all have; the range over seeds and draws."""

    mean: float
    low: float
    high: float
    rows: list[Row]

    def __str__(self) -> str:
        return f"{short(self.mean)} ({short(self.low)} to {short(self.high)})"

    @property
    def setting(self) -> str:
        """The solver, its noise levels and the estimator."""
        return setting(self.rows[0]["config"])

    def spread(self, metric: str) -> Spread | None:
        """Return a figure over training seeds, if it was measured."""
        return spread(self.rows, metric)

    def figure(self, metric: str) -> str:
        """Return the mean of another figure, empty where it was not measured."""
        found = self.spread(metric)
        return "" if found is None else short(found.mean)


def setting(config: Config) -> str:
    """Return the name of a solver, its noise levels, and whether training took antithetic pairs."""
    levels, pairs = config.get("levels"), ", antithetic" if "antithetic" in config else ""
    return config.get("solver", "") + (f", sigma {levels[0]:.3g} to {levels[1]:g}" if levels else "") + pairs


def best(
    results: Results,
    space: str,
    row: str,
    calls: int,
    control: bool = False,
    solver: str | None = None,
    many: bool = False,
) -> Best | None:
    """Return the best of a row's kept settings, or of a solver's; of those alone that have most seeds.

    many: of the row with evaluations.MANY components.
    """
    groups: dict[str, list[Row]] = {}
    for found in results.select(space=space, row=row, calls=calls):
        config = found["config"]
        if solver not in (None, config.get("solver")) or many != (config.get("components") == evaluations.MANY):
            continue
        if config["draws"] > 1 and (row not in ROWS or (config["steps"] == 0) == control):
            groups.setdefault(setting(config), []).append(found)
    if not groups:
        return None
    most = max(map(len, groups.values()))
    return min((_over(rows) for rows in groups.values() if len(rows) == most), key=lambda made: made.mean)


def _over(rows: list[Row]) -> Best:
    # A draw starts at the same points at every number of evaluations: a third one would tell them apart by its luck.
    common = [row["result"]["draws"][: evaluations.COMMON] for row in rows]
    means = [sum(values) / len(values) for values in common]
    draws = [value for row in rows for value in row["result"]["draws"]]
    return Best(sum(means) / len(means), min(draws), max(draws), rows)


def by_calls(results: Results, space: str) -> str:
    """Tabulate the best setting of each row at each number of evaluations."""
    body = []
    for row, control, many in lines():
        cells = [best(results, space, row, calls, control, many=many) for calls in evaluations.CALLS]
        found = [cell for cell in cells if cell is not None]
        if found:
            seconds = "" if control else max(found, key=lambda cell: len(cell.rows)).figure("train_seconds")
            texts = ["" if cell is None else f"{cell}<br>{cell.setting}" for cell in cells]
            body.append([_name(row, control, many), *texts, seconds, str(max(len(cell.rows) for cell in found))])
    for row, many in WITHOUT_TRAINING:
        cell = best(results, space, row, 0, many=many)
        if cell is not None:
            body.append([_name(row, False, many), shown(cell), *[""] * len(evaluations.CALLS), str(len(cell.rows))])
    head = ["", *map(str, evaluations.CALLS), "train s", "seeds"]
    return markdown(head, body) if body else NOT_RUN


def second(results: Results, space: str) -> str:
    """Tabulate what sees diversity, at the best setting of each row."""
    points = space in trained.PLANE
    columns = SECOND_OF_POINTS if points else SECOND
    body = []
    for row, control, many in [*lines(), *((row, False, many) for row, many in WITHOUT_TRAINING)]:
        for calls in evaluations.FEW if row in ROWS else (0,):
            cell = best(results, space, row, calls, control, many=many)
            if cell is not None:
                figures_ = [cell.figure(metric) for metric in columns.values()]
                body.append([_name(row, control, many), str(calls or ""), short(cell.mean), *figures_])
    head = ["", "evaluations", "energy distance" if points else "Frechet", *columns]
    return markdown(head, body) if body else NOT_RUN


def tries(results: Results) -> str:
    """Tabulate all settings of the first space and seed, by the mean of their draws."""
    found: dict[tuple[str, ...], dict[int, float]] = {}
    for row in results.select(space=evaluations.SPACES[0], seed=0):
        config = row["config"]
        if config["row"] in ROWS and config["steps"]:
            many = [f"K = {evaluations.MANY:,}"] if config.get("components") == evaluations.MANY else []
            named = [f"{k} = {config[k]:g}" for k in ("p_mean", "T") if k in config]
            named += [f"{config['steps']:,} steps"] * (config["steps"] != evaluations.IMAGES["steps"])
            knobs = ", ".join([*many, *named])
            draws = row["result"]["draws"]
            found.setdefault((config["row"], knobs, setting(config)), {})[config["calls"]] = sum(draws) / len(draws)
    order = sorted(found, key=lambda names: (ROWS.index(names[0]), *names[1:]))
    body = [
        [*names, *(short(found[names][m]) if m in found[names] else "" for m in evaluations.TABLED)] for names in order
    ]
    return markdown(["", "training", "solver", *map(str, evaluations.TABLED)], body) if body else NOT_RUN


def lines() -> list[tuple[str, bool, bool]]:
    """Return the rows, those with many components among them, then those with an untrained network."""
    mixed = trained.WITH_MIXTURE
    of_row = [(row, False, many) for row in ROWS for many in (False, True) if row in mixed or not many]
    return [*of_row, *((row, True, many) for row in ROWS if row in mixed for many in (False, True))]


def _name(row: str, control: bool, many: bool) -> str:
    components = f", K = {evaluations.MANY:,}" if many else ""
    return row + components + (evaluations.CONTROL if control else "")


def curves(results: Results) -> Figure | None:
    """Plot Frechet distance against evaluations, with the range over training seeds and draws, each row labelled."""
    if not results.rows:
        return None
    figure = figures.blank(12.0, 5.0)
    for axis, space in zip(figure.subplots(1, len(evaluations.MAIN), sharey=True), evaluations.MAIN, strict=True):
        ends: dict[str, tuple[float, str]] = {}
        for row, _, many in (line for line in lines() if not line[1]):
            cells = [(m, best(results, space, row, m, many=many)) for m in evaluations.CALLS]
            known = [(m, cell) for m, cell in cells if cell is not None]
            if not known:
                continue
            mean = [cell.mean for _, cell in known]
            reach = [[c.mean - c.low for _, c in known], [c.high - c.mean for _, c in known]]
            style = {"linestyle": "--", "marker": "s", "markersize": 3} if many else {"marker": "."}
            axis.errorbar([m for m, _ in known], mean, reach, color=COLOURS[row], capsize=2, **style)
            ends[_name(row, False, many)] = mean[-1], COLOURS[row]
        for row, many in WITHOUT_TRAINING:
            cell = best(results, space, row, 0, many=many)
            if cell is not None:
                axis.plot([evaluations.CALLS[0], evaluations.CALLS[-1]], 2 * [cell.mean], color="0.5", linestyle=":")
                ends[_name(row, False, many)] = cell.mean, "0.4"
        axis.set(xscale="log", yscale="log", title=space, xlabel="network evaluations", ylabel="Frechet distance")
        axis.set(xlim=(0.9, 600.0), ylim=(1.0, 200.0), xticks=evaluations.CALLS)
        axis.set_xticks(evaluations.CALLS, [str(m) for m in evaluations.CALLS])
        axis.minorticks_off()
        label(axis, ends)
    return figure


def label(axis: Any, ends: Mapping[str, tuple[float, str]], apart: float = 1.19) -> None:
    """Write each name at the right of its curve, at least a factor `apart` above the one below."""
    height = 0.0
    for name, (value, colour) in sorted(ends.items(), key=lambda item: item[1][0]):
        height = max(value, height * apart)
        axis.text(112.0, height, name, color=colour, fontsize=8, va="center")


def few(results: Results) -> Figure | None:
    """Show samples at few evaluations, a line a row."""
    panels: dict[str, Tensor] = {}
    for row in PICTURED:
        for calls in PICTURED_CALLS:
            cell = best(results, "AE 16", row, calls)
            if cell is None:
                return None
            config = cell.rows[0]["config"]
            fields = ("space", "row", "calls", "solver", "levels", "antithetic", "steps", "draws")
            wanted = {k: config.get(k) for k in fields}
            found = results.samples(**wanted)
            if found is not None:
                panels[f"{row}, {calls} evaluation{'s' * (calls > 1)}"] = found
    return figures.sheets_of(panels, across=len(PICTURED_CALLS))
