"""The report's page: what it says of its figures, and its two forms."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from fastndsm import metrics
from fastndsm.cli import page, pictures, report
from fastndsm.data import load
from fastndsm.training.config import Row

VOID = {"meta", "img"}


class Checker(HTMLParser):
    """Collects text and refuses tags that do not close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append(("", ("class", "number") in attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] = (self.cells[-1][0] + data, self.cells[-1][1])


def test_html_escapes_closes_and_aligns(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    table = page.Table(
        ["<name>", "n", "range", "text"], [["a&b", "-1.2e-05", "1 to 2,000", "1 < 2"], ["c", "-", "3", ""]]
    )
    blocks = [page.Heading('A "title" <b>', 1), page.Text("x < y", warning=True), table, page.Picture("a.png", "<&>")]
    found = page.as_html(blocks, tmp_path)
    checker = Checker()
    checker.feed(found)
    assert checker.open == []
    assert checker.cells[:4] == [("<name>", False), ("n", True), ("range", True), ("text", False)]
    assert checker.cells[4:8] == [("a&b", False), ("-1.2e-05", True), ("1 to 2,000", True), ("1 < 2", False)]
    assert "<b>" not in found
    assert 'src="data:image/png;base64,iVBO' in found and "&lt;&amp;&gt;</figcaption>" in found


def test_markdown_has_the_same_parts() -> None:
    blocks = [page.Heading("T", 1), page.Text("said", warning=True), page.Table(["", "n"], [["a", "1"]])]
    assert page.as_markdown([*blocks, page.Picture("a.png", "shown")]) == (
        "# T\n\n**said**\n\n|   | n |\n| - | - |\n| a | 1 |\n\n![a](a.png)\n\nshown\n"
    )


def test_every_metric_is_explained() -> None:
    for name in ("digits", "moons", "four_modes"):
        dataset = load(name, n=300) if name != "digits" else load(name)
        assert set(metrics.evaluate(dataset.train[:300], dataset)) <= set(report.READING)


def test_samples_stand_beside_as_many_held_out_data(tmp_path: Path) -> None:
    dataset = load("moons", n=200, n_test=50)
    made = report.write_report(tmp_path / "r", dataset.train[:120], dataset)
    assert made.evaluation.counts == {"samples": 120, "fewer": 50, "held_out": 50}
    assert made.evaluation.metrics["fewer"] == metrics.evaluate(dataset.train[:50], dataset)
    assert "The first 50 samples are as many" in (made.folder / "report.md").read_text()
    assert "fewer" not in report.evaluate_samples(dataset.train[:50], dataset).metrics


@pytest.mark.parametrize("steps, panels", [(60, 1), (400, 1), (420, 2)])
def test_the_first_steps_of_a_long_run_are_drawn_apart(
    steps: int, panels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []

    def figure(width: float, height: float, make: object = pictures._figure) -> object:
        figures.append(make(width, height))  # type: ignore[operator]
        return figures[-1]

    monkeypatch.setattr(pictures, "_figure", figure)
    history = [Row(step, 1.0 + 100.0 / step, 1e-3, 0.0, 1.0, None) for step in range(20, steps + 1, 20)]
    pictures.draw_curve(tmp_path / "c.png", history)
    axes = figures[0].axes
    assert len(axes) == panels
    if panels == 2:
        shown = axes[1].lines[0].get_xydata()
        torch.testing.assert_close(torch.from_numpy(shown)[:, 0], torch.arange(20.0, 201.0, 20.0).double())
        assert axes[1].get_ylim()[1] > 6.0
