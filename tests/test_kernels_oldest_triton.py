"""Every kernel compiles with the oldest Triton that pyproject.toml allows, too; `make test` puts it in .venv."""

from __future__ import annotations

import ast
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from _kernels import ROOT, Row, compiled_by

OLDEST = Path(sys.prefix) / "triton-oldest"
FILES = ("simulate_compiled", "drift", "loss", "mixture_score", "philox", "reverse_steps")

pytestmark = pytest.mark.skipif(not OLDEST.is_dir(), reason=f"{OLDEST} is not there: make test sets it up")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Row]]:
    """Return what the tests of the kernels compile, for one target."""
    path = os.pathsep.join((str(OLDEST), str(ROOT)))
    places = [tmp_path_factory.mktemp(name) for name in FILES]

    def rows(name: str, place: Path) -> list[Row]:
        file = Path(__file__).with_name(f"test_kernels_{name}.py")
        return compiled_by(str(file), place, ["sm_90"], PYTHONPATH=path)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(FILES, pool.map(rows, FILES, places), strict=True))


@pytest.mark.parametrize("name", FILES)
def test_kernels_compile(name: str, compiled: dict[str, list[Row]]) -> None:
    assert compiled[name] and not [row for row in compiled[name] if "error" in row]


def test_every_kernel_is_among_them(compiled: dict[str, list[Row]]) -> None:
    trees = [ast.parse(path.read_text()) for path in (ROOT / "kernels").glob("*.py")]
    functions = {node.name for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    kernels = {name for name in functions if name.endswith("_kernel")}
    assert kernels and {row["kernel"] for rows in compiled.values() for row in rows} == kernels
