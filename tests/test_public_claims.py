"""Claims about mixtures: how rows become cells, what is counted, and that public pages say what their rows say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.public import claims, few, plane, posteriors, tables
from benchmarks.public.rows import read


def image(method: str, calls: int, seed: int, value: float, **config: Any) -> dict[str, Any]:
    config = {"space": "digits", "row": method, "calls": calls, "steps": 4000, "seed": seed} | config
    return {"config": config, "result": {"draws": [value - 0.1, value + 0.1]}}


def test_a_cell_is_the_nearest_setting_of_those_with_the_most_seeds() -> None:
    rows = [image("I-CFM", 10, seed, 3.0 + seed, solver="AB2") for seed in range(2)]
    rows += [image("I-CFM", 10, seed, 2.0 + seed, solver="Euler") for seed in range(2)]
    rows += [image("I-CFM", 10, 0, 1.0, solver="tried on one seed")]
    cell = claims.of_images(rows, "digits", "I-CFM")[10]
    assert cell.values == {0: pytest.approx(2.0), 1: pytest.approx(3.0)}
    fewer = claims.Cell({0: 2.2})
    assert claims.compared([("digits", fewer, cell)]) == "1 of 1"  # of the seed that both have
    assert claims.compared([("digits", cell, claims.Cell({7: 1.0}))]) == "0 of 0"


def test_verdicts_count_nearer_sources_and_name_the_others(tmp_path: Path) -> None:
    rows = [image("I-CFM", 10, 0, 3.0), image("draws from pi", 0, 0, 9.0, components=50)]
    rows += [image("draws from pi", 0, 0, 5.0, components=1000)]
    rows += [image("flow from the mixture", 10, 0, value, components=k) for k, value in ((50, 2.0), (1000, 4.0))]
    said = claims.verdicts(claims.sources(rows, [], []))
    normal, finer = "from a mixture nearer than from N(0, I)", "from the nearer of two mixtures nearer"
    assert said == [
        f"- 10 evaluations: {normal}: 1 of 2; not: digits, 1,000 components (4.00 against 3.00).",
        f"- 10 evaluations: {finer}: 0 of 1; not: digits (4.00 against 2.00).",
    ]


def test_posteriors_and_the_plane_are_read(tmp_path: Path) -> None:
    row = {"part": posteriors.POSTERIOR, "task": "slcp", "n": 500, "observation": 1, "seed": 0}
    c2st = [row | {"method": "linear, full mixture", "c2st": {"": 0.6}}]
    c2st += [row | {"method": "path, full mixture", "c2st": {"": 0.7}}]
    w2 = [{"set": "moons", "method": "path", "seed": 42, "w2": {"10": {"": 0.2}}}]
    w2 += [{"set": "moons", "method": "EDM, mixture skip", "seed": 42, "w2": {"10": {"": 0.3}}}]
    found = {line[0]: [cell and cell.mean for cell in line[2]] for line in claims.noisings([], w2, c2st)}
    assert found == {"moons": [None, 0.3, 0.2], "slcp, n = 500": [None, 0.6, 0.7]}
    for name, rows in ((plane.ROWS, w2), (posteriors.ROWS, c2st)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert claims.main(["--rows", str(tmp_path), "--images", str(tmp_path / "none"), "--out", str(tmp_path)]) == 0
    text = (tmp_path / claims.PAGE).read_text()
    assert "nonlinear nearer than linear with the mixture: 0 of 1; not: slcp, n = 500 (0.700 against 0.600)" in text


@pytest.mark.parametrize("module", [tables, plane, posteriors, few], ids=lambda module: module.__name__[18:])
def test_a_page_says_what_its_rows_say(module: Any) -> None:
    assert (module.RESULTS / module.PAGE).read_text() == module.page(read(module.RESULTS / module.ROWS))


def test_the_claims_page_says_what_the_rows_say() -> None:
    given = read(claims.IMAGES), read(claims.RESULTS / plane.ROWS), read(claims.RESULTS / posteriors.ROWS)
    assert (claims.RESULTS / claims.PAGE).read_text() == claims.page(*given)
