"""Every kernel compiles with the oldest Triton that pyproject.toml allows, too; `make test` puts it in .venv."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest
from _kernels import ROOT, Row, compiled_by

OLDEST = Path(sys.prefix) / "triton-oldest"
FILES = ("loss", "mixture_score", "philox", "reverse_step", "simulate_compiled")

pytestmark = pytest.mark.skipif(not OLDEST.is_dir(), reason=f"{OLDEST} is not there: make test sets it up")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    """What the tests of the kernels compile, for one target."""
    path = os.pathsep.join((str(OLDEST), str(ROOT)))
    files = {name: str(Path(__file__).with_name(f"test_kernels_{name}.py")) for name in FILES}
    place = tmp_path_factory.mktemp
    return {name: compiled_by(file, place(name), ["sm_90"], PYTHONPATH=path) for name, file in files.items()}


@pytest.mark.parametrize("name", FILES)
def test_kernels_compile(name: str, compiled: dict[str, list[Row]]) -> None:
    assert compiled[name] and not [row for row in compiled[name] if "error" in row]


def test_every_kernel_is_among_them(compiled: dict[str, list[Row]]) -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "kernels").glob("*.py")]
    functions = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    kernels = {name for name in functions if name.endswith("_kernel")}
    assert kernels and {row["kernel"] for rows in compiled.values() for row in rows} == kernels
