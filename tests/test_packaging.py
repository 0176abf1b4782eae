"""The wheel and the sdist hold what they should; the wheel works with nothing of the checkout in sight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from patience import PATIENCE

import fastndsm

ROOT = Path(__file__).resolve().parent.parent
SOURCES = {"fastndsm": ("py", "typed"), "kernels": ("py",), "csrc": ("h", "cpp", "cu", "cuh")}


def expected_sources() -> set[str]:
    """Return the files of the checkout that both archives must hold, relative to its root."""
    return {
        path.relative_to(ROOT).as_posix()
        for folder, endings in SOURCES.items()
        for ending in endings
        for path in (ROOT / folder).rglob(f"*.{ending}")
    }


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Build the sdist, from a copy of the checkout, and the wheel, from the sdist."""
    place = tmp_path_factory.mktemp("packaging")
    copy = place / "checkout"
    copy.mkdir()
    for name in (*SOURCES, "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", copy], place)
    (sdist,) = (place / "dist").glob("*.tar.gz")
    (wheel,) = (place / "dist").glob("*.whl")
    return sdist, wheel


def run(argv: list[str | Path], cwd: Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(argv, cwd=cwd, env=kept | environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_sdist_holds_the_sources(archives: tuple[Path, Path]) -> None:
    with tarfile.open(archives[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert expected_sources() <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_wheel_holds_the_sources_inside_the_package(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        names = set(wheel.namelist())
    inside = {name if name.startswith("fastndsm/") else f"fastndsm/{name}" for name in expected_sources()}
    assert inside <= names
    assert {"fastndsm/py.typed", "fastndsm/csrc/include/philox.h", "fastndsm/csrc/cpu/philox.cpp"} <= names
    assert {name.partition("/")[0] for name in names} == {
        "fastndsm",
        f"fastndsm-{fastndsm.__version__}.dist-info",
    }
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


IN_AN_EMPTY_ENVIRONMENT = """
import importlib.util, sys
from pathlib import Path
import torch
import fastndsm
from fastndsm import functional as F
from fastndsm.jit import core
home = Path(sys.prefix).resolve()
builder = core.csrc_builder()
for path in (Path(fastndsm.__file__), *builder.sources, *builder.headers):
    assert path.resolve().is_relative_to(home), path
assert importlib.util.find_spec("kernels") is None and importlib.util.find_spec("csrc") is None
fused = F.philox_normal(5, 7, seed=3, step=2, backend="cpp")
torch.testing.assert_close(fused, F.philox_normal(5, 7, seed=3, step=2, backend="reference"))
print(torch.ops.fastndsm_cpp.vector_isa())
"""


def test_wheel_runs_in_an_empty_environment(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """Its dependencies are those of this environment; of the checkout, nothing can be seen."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", archives[1]],
        tmp_path,
    )
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(paths)) + "\n")

    assert run([python, "-c", IN_AN_EMPTY_ENVIRONMENT], tmp_path).strip() != ""
    assert "train" in run([tmp_path / "env" / "bin" / "fastndsm", "--help"], tmp_path)


def test_an_index_would_take_the_archives(archives: tuple[Path, Path], tmp_path: Path) -> None:
    """Their metadata are valid, and the README, their description, renders."""
    assert run([sys.executable, "-m", "twine", "check", "--strict", *archives], tmp_path).count("PASSED") == 2


def test_the_version_stands_in_one_place(archives: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(archives[1]) as wheel:
        (metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        assert f"\nVersion: {fastndsm.__version__}\n" in wheel.read(metadata).decode()
    assert fastndsm.__version__ not in (ROOT / "pyproject.toml").read_text()
