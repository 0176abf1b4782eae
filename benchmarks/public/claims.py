"""Two claims about mixtures, held against the rows that other commands wrote; nothing is trained here.

    python -m benchmarks.public.claims      the page, from the rows there are

The rows are those of `benchmarks.public.plane`, `benchmarks.public.posteriors` and, for images, of the experiments'
sections on evaluations (`examples/experiments/rows/evaluations.jsonl`): one network and number of optimizer steps in
each set, each cell the solver and noise levels with the lowest mean, of those that have the most seeds. Two rows are
compared over the seeds that both have; the last column has each row's number. Lower is nearer: W2 of the plane, C2ST of
posteriors (50 evaluations), Frechet distance of images. On digits 1,000 components are nearly one an image (of 1,100):
every row with them copies.

**A source nearer to the data.** Lee, Kim and Lee (SourceFM, arXiv 2512.18184) conclude, from a simulation in the plane
and images, that a source which approximates the data's density can make flow matching worse, as modes that it misses
are hard to reach. Here straight lines from N(0, I) stand beside straight lines from mixtures; "the source alone" is the
distance of draws of the source.

**Linear noising with a mixture.** A mixture of Gaussians can be the prior of a linear noising (arXiv 2410.19149), or
its skip connection, in closed form. Here EDM's linear noising stands beside the same with the mixture as skip, and
beside nonlinear noising towards that mixture (path). On posteriors the linear rows are VP's, without and with a full
mixture, beside path with the same full mixture.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastndsm.cli.tables import markdown

from . import plane, posteriors
from .rows import publish, read

RESULTS = Path(__file__).resolve().parent.parent / "results"
IMAGES = Path(__file__).resolve().parents[2] / "examples" / "experiments" / "rows" / "evaluations.jsonl"
PAGE = "public-claims.md"
STEPS = {"PCA 32": 8000, "AE 16": 8000, "digits": 4000}  # optimizer steps of the spaces' rows
CALLS = (5, 10, 100)
NORMAL, NORMAL_OT = "N(0, I)", "N(0, I), paired by transport"


class Cell(NamedTuple):
    """Distances by training seed (of posteriors, by observation and seed)."""

    values: dict[Any, float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return float(np.mean(list(self.values.values())))

    def over(self, seeds: set[Any]) -> Cell:
        """Return the values of some seeds."""
        return Cell({seed: value for seed, value in self.values.items() if seed in seeds})

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.mean < 1.0 else f"{self.mean:.2f}"


class Line(NamedTuple):
    """A method on a set: its distance at each number of evaluations, and that of what it starts from."""

    of: str
    method: str
    cells: dict[int, Cell]
    start: float | None = None


def nearer(cells: Sequence[Cell]) -> Cell:
    """Return the cell of the lowest mean."""
    return min(cells, key=lambda cell: cell.mean)


def best(rows: Sequence[dict[str, Any]]) -> Cell | None:
    """Return the setting of the lowest mean, of those that have the most seeds; rows are of one method and set."""
    settings: dict[str, dict[Any, float]] = defaultdict(dict)
    for row in rows:
        config = {key: value for key, value in row["config"].items() if key not in ("seed", "draws")}
        settings[json.dumps(config, sort_keys=True)][row["config"]["seed"]] = float(np.mean(row["result"]["draws"]))
    if not settings:
        return None
    most = max(map(len, settings.values()))
    return nearer([Cell(values) for values in settings.values() if len(values) == most])


def of_images(
    rows: Sequence[dict[str, Any]], space: str, method: str, components: int | None = None
) -> dict[int, Cell]:
    """Return a trained method's cells by evaluations."""
    cells = {}
    for calls in CALLS:
        wanted = {"space": space, "row": method, "calls": calls, "steps": STEPS[space], "components": components}
        found = best([row for row in rows if all(row["config"].get(key) == value for key, value in wanted.items())])
        if found is not None:
            cells[calls] = found
    return cells


def alone(rows: Sequence[dict[str, Any]], space: str, components: int) -> float | None:
    """Return the distance of a mixture's own draws."""
    wanted = {"space": space, "row": "draws from pi", "components": components}
    found = best([row for row in rows if all(row["config"].get(key) == value for key, value in wanted.items())])
    return None if found is None else found.mean


def of_plane(rows: Sequence[dict[str, Any]], name: str, methods: Sequence[str]) -> dict[int, Cell]:
    """Return the cells of the nearest of some methods of the plane, at each number of evaluations."""
    cells = {}
    for calls in map(str, CALLS):
        found = []
        for method in methods:
            mine = [r for r in rows if r["set"] == name and r["method"] == method and calls in r["w2"]]
            for solver in mine[0]["w2"][calls] if mine else ():
                found.append(Cell({row["seed"]: row["w2"][calls][solver] for row in mine}))
        if found:
            cells[int(calls)] = nearer(found)
    return cells


def of_posterior(rows: Sequence[dict[str, Any]], task: str, n: int, method: str) -> Cell | None:
    """Return the C2ST of a method trained on n samples of one posterior."""
    wanted = {"part": posteriors.POSTERIOR, "task": task, "n": n, "method": method}
    mine = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    runs = [(row["observation"], row["seed"]) for row in mine]
    return Cell(dict(zip(runs, posteriors.nearest(mine), strict=True))) if mine else None


def sources(
    images: Sequence[dict[str, Any]], of_w2: Sequence[dict[str, Any]], of_c2st: Sequence[dict[str, Any]]
) -> list[Line]:
    """Return flows by source, of every set."""
    lines = []
    for space in STEPS:
        lines += [Line(space, NORMAL, of_images(images, space, "I-CFM"))]
        lines += [Line(space, NORMAL_OT, of_images(images, space, "OT-CFM"))]
        for k in (50, 1000):
            cells = of_images(images, space, "flow from the mixture", k)
            lines.append(Line(space, f"{k:,} components", cells, alone(images, space, k)))
    for name in plane.SETS:
        lines.append(Line(name, NORMAL, of_plane(of_w2, name, ("I-CFM", "I-CFM, sigma 0"))))
        lines.append(Line(name, NORMAL_OT, of_plane(of_w2, name, ("OT-CFM", "OT-CFM, sigma 0"))))
        mixed = [row for row in of_w2 if row["set"] == name and row["method"] == plane.PRIOR]
        start = plane.nearest(mixed, "")
        components = " / ".join(sorted({str(row["components"]) for row in mixed}))
        cells = of_plane(of_w2, name, ("flow from the mixture",))
        lines.append(Line(name, f"{components} components", cells, None if start is None else start[0]))
    for task in posteriors.TASKS:
        for n in posteriors.SIZES:
            named = {"OT-CFM": NORMAL_OT, "flow from the spherical mixture": "mixture"}
            of = f"{task.replace('_', ' ')}, n = {n:,}"
            for method, source in named.items():
                cell, start_cell = (of_posterior(of_c2st, task, n, m) for m in (method, posteriors.SPHERICAL))
                start_of = start_cell.mean if start_cell is not None and source == "mixture" else None
                lines.append(Line(of, source, {} if cell is None else {50: cell}, start_of))
    return [line for line in lines if line.cells]


def noisings(
    images: Sequence[dict[str, Any]], of_w2: Sequence[dict[str, Any]], of_c2st: Sequence[dict[str, Any]]
) -> list[tuple[str, int, list[Cell | None]]]:
    """Return (set, evaluations, linear noising, linear with the mixture, path) of every set."""
    found: list[tuple[str, int, list[Cell | None]]] = []
    for space in STEPS:
        plain = of_images(images, space, "EDM")
        for k in (50, 1000):
            rows = plain, *(of_images(images, space, method, k) for method in ("EDM, mixture skip", "path"))
            found += [(f"{space}, K = {k:,}", calls, [cells.get(calls) for cells in rows]) for calls in CALLS]
    for name in plane.SETS:
        rows = {}, *(of_plane(of_w2, name, (method,)) for method in ("EDM, mixture skip", "path"))
        found += [(name, calls, [cells.get(calls) for cells in rows]) for calls in CALLS]
    for task in posteriors.TASKS:
        for n in posteriors.SIZES:
            methods = ("linear VP DSM", "linear, full mixture", "path, full mixture")
            cells = [of_posterior(of_c2st, task, n, method) for method in methods]
            found.append((f"{task.replace('_', ' ')}, n = {n:,}", 50, cells))
    return [line for line in found if line[2][1] is not None and line[2][2] is not None]


def told(won: Sequence[str], lost: Sequence[str]) -> str:
    """Return how many of the comparisons were won, and which were not."""
    return f"{len(won)} of {len(won) + len(lost)}" + (f"; not: {', '.join(lost)}" if lost else "")


def compared(of: Sequence[tuple[str, Cell | None, Cell | None]]) -> str:
    """Return in how many sets the second is nearer than the first, over the seeds of both, and where it is not."""
    pairs = []
    for name, a, b in of:
        seeds = set() if a is None or b is None else a.values.keys() & b.values.keys()
        if a is not None and b is not None and seeds:
            pairs.append((name, a.over(seeds), b.over(seeds)))
    won = [name for name, a, b in pairs if b.mean < a.mean]
    return told(won, [f"{name} ({b} against {a})" for name, a, b in pairs if b.mean >= a.mean])


def verdicts(lines: Sequence[Line]) -> list[str]:
    """Return, for each number of evaluations, where a mixture is the better source than N(0, I), and the finer one."""
    said = []
    for calls in (*CALLS, 50):
        normal, finer = [], []
        for of in dict.fromkeys(line.of for line in lines):
            mine = [line for line in lines if line.of == of and calls in line.cells]
            gaussian = [line.cells[calls] for line in mine if line.start is None]
            mixed = sorted((line for line in mine if line.start is not None), key=lambda line: -(line.start or 0.0))
            if gaussian:
                normal += [(f"{of}, {line.method}", nearer(gaussian), line.cells[calls]) for line in mixed]
            finer += [(of, a.cells[calls], b.cells[calls]) for a, b in pairwise(mixed)]
        if normal:
            said.append(f"- {calls} evaluations: from a mixture nearer than from N(0, I): {compared(normal)}.")
        if finer:
            said.append(f"- {calls} evaluations: from the nearer of two mixtures nearer: {compared(finer)}.")
    return said


def page(images: Sequence[dict[str, Any]], of_w2: Sequence[dict[str, Any]], of_c2st: Sequence[dict[str, Any]]) -> str:
    """Return the page: both claims, counted and in full."""
    assert __doc__ is not None
    parts = ["# Two claims about mixtures", "", *__doc__.split("\n\n", 2)[2].strip().splitlines()]
    lines = sources(images, of_w2, of_c2st)
    parts += ["", "## A source nearer to the data", "", *verdicts(lines), ""]
    body = []
    for line in lines:
        seeds = "/".join(dict.fromkeys(str(len(cell.values)) for cell in line.cells.values()))
        shown = [str(line.cells[calls]) if calls in line.cells else "" for calls in (*CALLS, 50)]
        body.append([line.of, line.method, "" if line.start is None else str(Cell({0: line.start})), *shown, seeds])
    parts.append(markdown(["set", "source", "the source alone", *map(str, CALLS), "50", "seeds"], body))
    rows = noisings(images, of_w2, of_c2st)
    parts += ["", "## Linear noising with a mixture", ""]
    for calls in (*CALLS, 50):
        few = [(of, cells) for of, at, cells in rows if at == calls]
        if few:
            mixture, path = ([(of, cells[i], cells[i + 1]) for of, cells in few] for i in (0, 1))
            if any(a is not None for _, a, _ in mixture):
                parts.append(f"- {calls} evaluations: the mixture nearer than no mixture: {compared(mixture)}.")
            parts.append(f"- {calls} evaluations: nonlinear nearer than linear with the mixture: {compared(path)}.")
    body = []
    for of, calls, cells in rows:
        seeds = "/".join(dict.fromkeys(str(len(cell.values)) for cell in cells if cell is not None))
        body.append([of, str(calls), *("" if cell is None else str(cell) for cell in cells), seeds])
    head = ["set", "evaluations", "linear", "linear with the mixture", "nonlinear (path)", "seeds"]
    return "\n".join([*parts, "", markdown(head, body)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS, help="folder of the rows; default benchmarks/results")
    parser.add_argument("--images", type=Path, default=IMAGES, help="the experiments' rows; default examples/...")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the page; default benchmarks/results")
    options = parser.parse_args(arguments)
    given = read(options.images), read(options.rows / plane.ROWS), read(options.rows / posteriors.ROWS)
    publish(options.out / PAGE, page(*given))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
