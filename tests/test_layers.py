"""Imports between modules: downward alone, in no circle, and nothing private of another package.

Read from the source, so that imports inside functions and under TYPE_CHECKING count as well.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the bottom up; a module may import from its own layer (in no circle) and from those before it.
LAYERS = (
    ("fastndsm.reference", "fastndsm._version", "fastndsm._state"),
    ("fastndsm.kernels", "fastndsm.compiler"),
    ("fastndsm.jit",),
    ("fastndsm.backends", "fastndsm._checks", "fastndsm._condition", "fastndsm._ranks"),
    ("fastndsm._ops", "fastndsm._grid", "fastndsm._scheme"),
    ("fastndsm._compiled", "fastndsm._film_mlp"),
    ("fastndsm.dynamics",),
    ("fastndsm.functional",),
    (
        "fastndsm.mixture",
        "fastndsm._classes",
        "fastndsm._em",
        "fastndsm.selection",
        "fastndsm.drifts",
        "fastndsm._prior",
        "fastndsm._linear",
        "fastndsm.process",
        "fastndsm.linear",
        "fastndsm.flow",
        "fastndsm.objective",
        "fastndsm.networks",
        "fastndsm.score",
    ),
    ("fastndsm.sampling", "fastndsm.training", "fastndsm.data", "fastndsm.metrics", "fastndsm.testing"),
    ("fastndsm.latent", "fastndsm.tabular", "fastndsm.trainer", "fastndsm.checkpoint", "fastndsm.integrations"),
    ("fastndsm.cli",),
    ("fastndsm._checkout", "fastndsm"),
    ("benchmarks", "examples"),
)
ALLOWED = {"fastndsm.reference": {"torch"}, "fastndsm.kernels": {"torch", "triton"}}  # packages from outside
STANDARD = "__future__ collections contextlib contextvars dataclasses functools importlib math re typing types weakref"
# Triton's kernels live in a folder of the root.
FOLDERS = {"fastndsm": "fastndsm", "kernels": "fastndsm.kernels", "benchmarks": "benchmarks", "examples": "examples"}


@cache
def modules() -> dict[str, Path]:
    """Return every module of the project but its tests, by name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def package_of(module: str) -> str:
    """Return the package whose relative imports `from . import` mean."""
    return module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]


@cache
def imports(module: str) -> tuple[tuple[str, str | None], ...]:
    """Return what a module imports: (module, name in it), or (module, None) for a module as a whole."""

    def read() -> Iterator[tuple[str, str | None]]:
        for node in ast.walk(ast.parse(modules()[module].read_text())):
            if isinstance(node, ast.Import):
                yield from ((alias.name, None) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package_of(module).split(".")
                above = ".".join(base[: len(base) - node.level + 1]) if node.level else ""
                source = ".".join(part for part in (above, node.module) if part)
                for alias in node.names:
                    whole = f"{source}.{alias.name}"
                    yield (whole, None) if whole in modules() else (source, alias.name)

    return tuple(read())


def layer(module: str) -> int:
    """Return the number of a module's layer, by the longest name in LAYERS that it lies under."""
    names = [
        (len(name), number)
        for number, group in enumerate(LAYERS)
        for name in group
        if module == name or (module.startswith(f"{name}.") and name != "fastndsm")
    ]
    assert names, f"{module} is in no layer"
    return max(names)[1]


def test_imports_run_downward() -> None:
    above = [
        (m, source) for m in modules() for source, _ in imports(m) if source in modules() and layer(source) > layer(m)
    ]
    assert not above


@pytest.mark.parametrize("package", ALLOWED)
def test_the_lowest_layers_need_little(package: str) -> None:
    for module in modules():
        if module == package or module.startswith(f"{package}."):
            for source, _ in imports(module):
                top = source.partition(".")[0]
                own = source == package or source.startswith(f"{package}.")
                assert own or top in ALLOWED[package] or top in STANDARD.split(), f"{module} imports {source}"


def test_there_is_no_circle() -> None:
    """Neither at run time nor for a type checker."""
    graph = {module: {s for s, _ in imports(module) if s in modules() and s != module} for module in modules()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def owner(path: str) -> str | None:
    """Return the package that the first private part of a dotted name belongs to; None where there is none."""
    parts = path.split(".")
    private = [i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")]
    return ".".join(parts[: private[0]]) if private else None


def test_nothing_private_of_another_package_is_imported() -> None:
    """A private module belongs to the package it lies in, a private name to its module alone."""
    wrong = []
    for module in modules():
        for source, name in imports(module):
            home = owner(source if name is None else f"{source}.{name}")
            if home is not None and not f"{module}.".startswith(f"{home}."):
                wrong.append((module, source, name))
    assert not wrong


PROTOCOL = {
    "_asdict",
    "_replace",
    "_metadata",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_schema",
    "_cdata",
    "_version",
}  # of named tuples and torch's modules


def test_no_object_is_asked_for_what_is_private() -> None:
    """obj._name is for the class and the module that define _name; what is PyTorch's is not ours to judge."""
    wrong = []
    for module, path in modules().items():
        tree = ast.parse(path.read_text())
        nodes = list(ast.walk(tree))
        own = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)} | PROTOCOL
        for node in nodes:
            if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr) and node.attr not in own:
                root = ast.unparse(node).partition(".")[0]
                if root not in ("self", "cls", "torch"):
                    wrong.append((module, node.lineno, ast.unparse(node)))
    assert not wrong


REACHABLE = """
import importlib.util, sys
import fastndsm
assert not {"fastndsm.latent", "fastndsm.training", "sklearn"} & set(sys.modules), "imported before it is asked for"
for name in (
    "latent", "data", "networks", "metrics", "training", "testing", "cli", "trainer", "checkpoint", "integrations",
    "tabular", "drifts",
):
    assert getattr(fastndsm, name).__name__ == f"fastndsm.{name}" and name in dir(fastndsm)
for name in ("kernels.ops", "csrc"):
    assert importlib.util.find_spec(f"fastndsm.{name}") is not None, name
for name in sys.argv[1:]:
    assert importlib.util.find_spec(f"fastndsm.{name}") is None, name
"""


def test_submodules_come_when_asked_for_and_the_checkout_stays_outside(run_python: Callable[..., str]) -> None:
    beside = {path.stem for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()}
    run_python(REACHABLE, *sorted(beside - {"kernels", "csrc"}))
