"""Versions that stand in more than one file are the same in all of them, and the files name what there is."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import fastndsm

PROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
HOOKS = (ROOT / ".pre-commit-config.yaml").read_text()


def pinned(file: str) -> dict[str, Version]:
    """Return the versions that a constraints file gives, by package."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    found = {}
    for requirement in map(Requirement, filter(None, lines)):
        (only,) = requirement.specifier
        assert only.operator == "==", requirement
        found[requirement.name] = Version(only.version)
    return found


def lower_bound(package: str) -> Version:
    """Return what pyproject.toml demands of it."""
    (found,) = re.findall(rf'"{package}>=([\d.]+)[";]', PROJECT)
    return Version(found)


def test_the_oldest_of_the_matrix_are_the_lower_bounds() -> None:
    oldest = pinned(".github/oldest.txt")
    for name in ("torch", "triton"):
        assert oldest[name] == lower_bound(name), name


def test_the_newest_of_the_matrix_are_held_back_by_nothing() -> None:
    assert pinned(".github/newest.txt") == {}


def test_the_matrix_has_a_file_for_every_set_of_versions() -> None:
    (names,) = re.findall(r"^ +versions: \[(.*)\]$", WORKFLOW, re.MULTILINE)
    assert sorted(f"{name}.txt" for name in names.split(", ")) == sorted(p.name for p in ROOT.glob(".github/*.txt"))


def test_the_matrix_starts_at_the_oldest_python() -> None:
    (versions,) = re.findall(r"^ +python: \[(.*)\]$", WORKFLOW, re.MULTILINE)
    pythons = [Version(version) for version in re.findall(r'"([\d.]+)"', versions)]
    (allowed,) = re.findall(r'^requires-python = "(.*)"$', PROJECT, re.MULTILINE)
    assert pythons == [Version(f"3.{minor}") for minor in range(10, 14)]
    assert pythons[0] in SpecifierSet(allowed) and Version("3.9") not in SpecifierSet(allowed)


@pytest.mark.parametrize("tool", ["ruff", "clang-format"])
def test_a_hooks_version_stands_in_constraints_alone(tool: str) -> None:
    """Hooks run what .venv holds, which is what constraints.txt names."""
    assert f"entry: .venv/bin/{tool} " in HOOKS and "rev:" not in HOOKS
    assert tool in pinned("constraints.txt")


def test_the_changelog_has_this_version() -> None:
    version = fastndsm.__version__
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" and headings[1].startswith(f"{version} - ")


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [fastndsm.__version__]
    assert all(f"\n{field}:" in f"\n{citation}" for field in ("cff-version", "message", "title", "authors", "license"))
    assert "arXiv:2405.15625" in citation
