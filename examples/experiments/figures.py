"""The figures, drawn from rows and kept samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from . import images, imbalance, latent_space, methods, planar, small, symmetry
from .store import Row
from .tables import Results

SHOWN = (methods.LINEAR, methods.LINEAR_MIXTURE, methods.ONE, methods.PATH)
COLOURS = {
    methods.PI: "0.6",
    methods.FULL: "0.3",
    methods.HELD_OUT: "black",
    methods.LINEAR: "tab:orange",
    methods.LINEAR_MIXTURE: "tab:green",
    methods.ONE: "tab:brown",
    methods.PATH: "tab:blue",
    "path antithetic": "tab:cyan",
    "control_variate": "tab:red",
    "plain antithetic": "tab:pink",
    methods.LINEAR_FULL: "tab:olive",
    methods.LINEAR + imbalance.FOUR: "gold",
    methods.PI + imbalance.FIFTY: "0.8",
    methods.LINEAR_MIXTURE + imbalance.FIFTY: "lightgreen",
    methods.PATH + imbalance.FIFTY: "navy",
}


def write(
    folder: Path, results: Mapping[str, Results], others: Mapping[str, Callable[[], Figure | None]]
) -> list[tuple[str, Row]]:
    """Draw every figure that has its rows and samples, `others` by name; return what lacks samples, by experiment.

    A figure that lacks samples stays as it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "planar-samples": lambda: plane_samples(results[planar.NAME]),
        "planar-energy": lambda: plane_energy(results[planar.NAME]),
        "imbalance-weights": lambda: bars(results[imbalance.NAME], "class_tv", "TV of class weights", imbalance.CASES),
        "imbalance-samples": lambda: sheets(
            results[imbalance.NAME], {"case": "one at 2%"}, (*_all_rows(), methods.PATH + imbalance.FIFTY)
        ),
        "symmetry-balance": lambda: orientation(results[symmetry.NAME]),
        "symmetry-samples": lambda: sheets(results[symmetry.NAME], {"case": "60/40"}, _mirrored_rows()),
        "small-quality": lambda: few_images(results[small.NAME]),
        "small-samples": lambda: sheets(results[small.NAME], {"n": 200}, _all_rows()),
        "latent-cost": lambda: cost(results[latent_space.NAME]),
        "latent-samples": lambda: spaces(results[latent_space.NAME]),
        **others,
    }
    missing: dict[str, tuple[str, Row]] = {}
    for name, draw in found.items():
        figure = draw()
        lacking = {row["key"]: (part.name, row) for part in results.values() for row in part.missing}
        for part in results.values():
            part.missing.clear()
        if figure is not None and not lacking:
            figure.savefig(folder / f"{name}.png", dpi=100)
        missing |= lacking
    return list(missing.values())


def _all_rows() -> tuple[str, ...]:
    return (methods.HELD_OUT, methods.PI, methods.FULL, *SHOWN)


def _mirrored_rows() -> tuple[str, ...]:
    return (methods.HELD_OUT, symmetry.PI_SYMMETRIC, methods.LINEAR, methods.PATH, symmetry.SYMMETRIC, symmetry.EXACT)


def blank(width: float, height: float) -> Figure:
    """Return an empty figure of that size in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def plane_samples(results: Results, n: int = 500) -> Figure | None:
    """Plot points of each row beside held-out ones."""
    rows = (methods.HELD_OUT, methods.PI, methods.FULL, *SHOWN)
    names = results.values("data", n=n)
    if not names:
        return None
    figure = blank(2.0 * len(rows), 2.1 * len(names))
    axes = figure.subplots(len(names), len(rows), squeeze=False)
    for i, name in enumerate(names):
        for j, row in enumerate(rows):
            points = results.samples(data=name, n=n, row=row)
            axis = axes[i][j]
            axis.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xticks=[], yticks=[], aspect="equal")
            if points is not None:
                axis.plot(*points.T.numpy(), ".", markersize=1.5, alpha=0.6, color=COLOURS[row])
            if i == 0:
                axis.set_title(row.replace(", ", ",\n").replace("draws from ", "draws from\n"), fontsize=9)
            if j == 0:
                axis.set_ylabel(f"{name}, n = {n}", fontsize=9)
    return figure


def plane_energy(results: Results) -> Figure | None:
    """Plot energy distance against n, with the range over seeds."""
    names = results.values("data")
    if not names:
        return None
    figure = blank(4.2 * len(names), 3.6)
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        _lines(axis, results, "energy", "n", sorted(planar.SIZES), floor=1e-5, data=name)
        axis.set(title=name, xlabel="training points", ylabel="energy distance")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def _lines(
    axis: Any,
    results: Results,
    metric: str,
    field: str,
    values: Sequence[Any],
    floor: float | None = None,
    **wanted: Any,
) -> None:
    """Plot a line a row, log scales, bars from the least to the largest seed."""
    for row, colour in COLOURS.items():
        found = [(v, results.spread(metric, row=row, **{field: v}, **wanted)) for v in values]
        known = [(v, s) for v, s in found if s is not None]
        if not known:
            continue
        least = 0.0 if floor is None else floor
        mean = [max(least, s.mean) for _, s in known]
        pairs = list(zip(mean, (s for _, s in known), strict=True))
        reach = [[m - max(least, s.low) for m, s in pairs], [max(least, s.high) - m for m, s in pairs]]
        style = "--" if row in methods.UNTRAINED else "-"
        x = [v for v, _ in known]
        axis.errorbar(x, mean, reach, label=row, color=colour, linestyle=style, marker=".", capsize=2)
    axis.set_xscale("log")
    if floor is not None:
        axis.set_yscale("log")


def bars(results: Results, metric: str, label: str, cases: Sequence[Any]) -> Figure | None:
    """Plot a bar a row and a group of bars a case, with the range over seeds and a line at 0.05."""
    rows = [row for row in COLOURS if results.select(row=row)]
    if not rows:
        return None
    figure = blank(4.6 * len(cases), 3.8)
    for axis, case in zip(figure.subplots(1, len(cases), squeeze=False, sharey=True)[0], cases, strict=True):
        _bars(axis, results, metric, rows, case)
        axis.set(title=case, xlabel=label)
        axis.axvline(0.05, color="black", linewidth=0.8, linestyle=":")
    return figure


def _bars(axis: Any, results: Results, metric: str, rows: Sequence[str], case: str) -> None:
    for i, row in enumerate(rows):
        found = results.spread(metric, case=case, row=row)
        if found is not None:
            reach = [[found.mean - found.low], [found.high - found.mean]]
            axis.barh(i, found.mean, xerr=reach, color=COLOURS.get(row, "tab:blue"), capsize=2)
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)


def orientation(results: Results) -> Figure | None:
    """Plot the share of mirrored digits in each row, and the data's."""
    if not results.rows:
        return None
    figure = blank(9.5, 4.2)
    rows = [row for row in symmetry.ROWS if results.select(row=row)]
    for axis, case in zip(figure.subplots(1, 2, sharey=True), symmetry.CASES, strict=True):
        _bars(axis, results, "mirrored", rows, case)
        axis.axvline(symmetry.CASES[case], color="black", linewidth=1)
        axis.axvspan(symmetry.CASES[case] - 0.05, symmetry.CASES[case] + 0.05, color="0.85", zorder=0)
        axis.set(xlabel="share mirrored", xlim=(0.2, 0.7))
        axis.set_title(f"{case}: line, the data's share; band, 0.05 around it", fontsize=9)
    return figure


def few_images(results: Results) -> Figure | None:
    """Plot Frechet distance, distance to the nearest training image and copies against n."""
    if not results.rows:
        return None
    figure = blank(13.5, 3.8)
    titles = {
        "frechet_raw": "Frechet distance to held-out images",
        "nearest_ratio": "distance to nearest training image,\nrelative to held-out images",
        "copies": "share of copies",
    }
    for axis, (metric, title) in zip(figure.subplots(1, 3), titles.items(), strict=True):
        floor = 1.0 if metric == "frechet_raw" else None
        _lines(axis, results, metric, "n", small.SIZES, floor)
        axis.set(title=title, xlabel="training images")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def cost(results: Results) -> Figure | None:
    """Plot Frechet distance against processor seconds of encoder and training, for every space."""
    if not results.rows:
        return None
    figure = blank(7.5, 4.4)
    axis = figure.subplots()
    palette = [f"C{i}" for i in range(10)]
    for colour, encoder in zip(palette, latent_space.ENCODERS, strict=False):
        for row, style, marker in ((methods.PATH, "-", "o"), (methods.LINEAR, ":", "s")):
            points = []
            for steps in (*latent_space.LENGTHS, latent_space.LONG):
                wanted = {"encoder": encoder, "row": row, "steps": steps}
                quality, train = (results.spread(m, **wanted) for m in ("frechet_raw", "train_seconds"))
                before = results.spread("encoder_seconds", **wanted)
                if quality is not None and train is not None and before is not None:
                    points.append((train.mean + before.mean, quality.mean))
            if points:
                name = f"{encoder}, {row}"
                axis.plot(*zip(*points, strict=True), style, marker=marker, color=colour, label=name)
    if not axis.lines:
        return None
    axis.set(xlabel="processor seconds: encoder and training", ylabel="Frechet distance", yscale="log")
    figure.legend(loc="outside right center", fontsize=7)
    return figure


def sheets(results: Results, wanted: dict[str, Any], rows: Sequence[str]) -> Figure | None:
    """Show the kept images of each row."""
    found = {row: results.samples(row=row, **wanted) for row in rows}
    return sheets_of({row: x for row, x in found.items() if x is not None})


def spaces(results: Results) -> Figure | None:
    """Show samples of path in each space beside real images as the encoder passes them."""
    panels: dict[str, Tensor] = {}  # the untrained rows have no steps
    for title, encoder in (("real images", "pixels"), ("real images, as AE 16 passes them", "AE 16")):
        real = results.samples(encoder=encoder, row=methods.HELD_OUT)
        if real is not None:
            panels[title] = real
    for row in (methods.PATH, methods.LINEAR):
        found = results.samples(encoder="AE 16", row=row, steps=latent_space.LONG)
        if found is not None:
            panels[f"{row}, AE 16, {latent_space.LONG} steps"] = found
    for encoder in latent_space.ENCODERS:
        found = results.samples(encoder=encoder, row=methods.PATH, steps=latent_space.LENGTHS[-1])
        if found is not None:
            panels[f"path, {encoder}"] = found
    return sheets_of(panels)


def sheets_of(panels: Mapping[str, Tensor], columns: int = 8, across: int = 4) -> Figure | None:
    """Show panels of 40 images, 8 a line."""
    if not panels:
        return None
    across = min(across, len(panels))
    down = -(-len(panels) // across)
    figure = blank(3.0 * across, 2.15 * down)
    axes = figure.subplots(down, across, squeeze=False).reshape(-1)
    for axis in axes:
        axis.axis("off")
    for axis, (name, x) in zip(axes, panels.items(), strict=False):
        _, _, height, width = x.shape
        x = x[: images.KEPT]
        lines = -(-len(x) // columns)
        sheet = torch.ones(lines * (height + 1) - 1, columns * (width + 1) - 1)
        for i, image in enumerate(x[:, 0]):
            y, z = i // columns * (height + 1), i % columns * (width + 1)
            sheet[y : y + height, z : z + width] = image
        axis.imshow(sheet.numpy(), cmap="gray", vmin=-1.0, vmax=1.0, interpolation="nearest")
        axis.set_title(name, fontsize=8)
    return figure
