"""README.md and docs/: their form, their links and pictures, and the site that is built of them without a warning."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import public
import pytest
from conftest import ROOT
from pages import DOCS, LINK, anchors, name_of, pages, prose
from test_project_files import pinned

PAGES = {name_of(page): page for page in pages()}
named = pytest.mark.parametrize("name", PAGES)
INCLUDED = {  # pages of the site that hold a file from elsewhere
    "CONTRIBUTING.md": "docs/contributing.md",
    "CHANGELOG.md": "docs/changelog.md",
    "examples/experiments/README.md": "docs/experiments.md",
}


# --- form ----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120 and [line for line in lines if len(line) > 120] == []


def test_the_readme_names_prior_art_and_what_has_not_run() -> None:
    """DESIGN.md asks for these sources wherever the path estimator is called ours."""
    for page in (ROOT / "README.md", DOCS / "method.md"):
        text = page.read_text()
        for source in ("2405.15625", "2504.03461", "2312.02027", "2503.16917", "2507.05550", "2111.07243"):
            assert source in text, f"{page}: {source}"
    for name in ("README.md", "docs/index.md", "docs/speed.md", "docs/backends.md"):
        assert "not yet run on a GPU" in " ".join(PAGES[name].read_text().split()), name


@named
def test_pictures_are_small_and_have_their_command_beside_them(name: str) -> None:
    page = PAGES[name]
    lines = page.read_text().splitlines()
    for i, line in enumerate(lines):
        for found in LINK.finditer(line):
            if not found["picture"]:
                continue
            picture = page.parent / found["target"]
            near = " ".join(lines[max(i - 6, 0) : i + 6])
            if DOCS in picture.resolve().parents:
                assert picture.stat().st_size < 200_000, picture
                assert f"docs/pictures.py {picture.stem}" in near, f"{name}: no command beside {picture.name}"
            else:
                assert "experiments/run.py" in page.read_text(), f"{name}: no command on the page of {picture.name}"


# --- links ---------------------------------------------------------------------------------------------------------


@named
def test_local_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    for found in LINK.finditer(prose(page.read_text())):
        target = urlsplit(found["target"])
        if target.scheme:
            assert target.scheme == "https" and "." in target.netloc, f"{name}: {found['target']}"
            continue
        file = (page.parent / target.path).resolve() if target.path else page
        assert file.exists(), f"{name}: {found['target']}"
        included = [source for source, shown in INCLUDED.items() if file == ROOT / shown]
        assert not target.fragment or target.fragment in anchors(ROOT / included[0] if included else file), (
            f"{name}: {found['target']}"
        )


def test_every_page_is_linked_from_the_start() -> None:
    text = (DOCS / "index.md").read_text()
    assert [name for name in PAGES if name.startswith("docs/") and "/api/" not in name and name != "docs/index.md"] == [
        name
        for name in PAGES
        if name.startswith("docs/") and "/api/" not in name and f"({name.removeprefix('docs/')})" in text
    ]


# --- errors --------------------------------------------------------------------------------------------------------


def test_errors_point_to_headings_that_exist_and_each_is_pointed_to() -> None:
    """A message that users meet ends in the place of its cure, which `_checks.cure` writes."""
    sources = "\n".join(path.read_text() for path in sorted((ROOT / "fastndsm").rglob("*.py")))
    named_in_code = set(re.findall(r"cure\([\"']([\w-]+)[\"']\)", sources))
    labels = set(re.findall(r"^\(([\w-]+)\)=$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE))
    assert named_in_code <= labels and len(named_in_code) >= 10


# --- the site ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does: warnings are errors, and notebooks are executed.

    `make test` installs what it takes, so that this is left out elsewhere alone: without the extra `docs`, or where
    Sphinx is of a version that gives other warnings.
    """
    try:
        found = importlib.metadata.version("sphinx")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the extra docs is not installed")
    if found != str(pinned("constraints.txt")["sphinx"]):
        pytest.skip(f"Sphinx {found} is not that of constraints.txt")
    (command,) = re.findall(r"^\t\$\(BIN\)/python -m (sphinx .*) docs docs/_build/html$", _makefile(), re.MULTILINE)
    out = tmp_path_factory.mktemp("site")
    folders = ["--doctree-dir", str(out / "doctrees"), "docs", str(out / "html")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(out / "ipython"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command), *folders],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return out / "html"


def _makefile() -> str:
    return (ROOT / "Makefile").read_text()


def test_make_test_installs_what_the_site_takes() -> None:
    """So that the site is built there, and never left out."""
    assert "--editable '.[test,integrations,docs]'" in _makefile()
    assert re.search(r"^test: lint ", _makefile(), re.MULTILINE) and "lint: $(INSTALLED)" in _makefile()


def test_the_site_has_every_page_and_shows_formulas(site: Path) -> None:
    for name in PAGES:
        if name.startswith("docs/"):
            assert (site / name.removeprefix("docs/")).with_suffix(".html").is_file(), name
    method = (site / "method.html").read_text()
    assert method.count("<math") > 40 and "<mi>π</mi>" in method and "\\nabla" not in method  # drawn without a script
    assert "cell_output" in (site / "tutorials" / "points.html").read_text()


def test_the_reference_has_every_public_name(site: Path) -> None:
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    documented = {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}
    shown = {id(_value(name)) for name in documented if _value(name) is not None}
    missing = [
        f"{module.__name__}.{name}"
        for module in public.modules()
        for name in module.__all__
        if f"{module.__name__}.{name}" not in documented and id(getattr(module, name)) not in shown
    ]
    assert missing == []


def _value(name: str) -> object:
    """Return what a dotted name stands for, None if it cannot be imported here."""
    head, *rest = name.split(".")
    value: object = __import__(head)
    for part in rest:
        value = getattr(value, part, None)
    return value
