"""CONTRIBUTING.md, followed to the letter: the op that it adds works in a copy of the checkout, and passes its tests.

A block of code goes where the line above it says. Of the C++ sources only those that the page touches are built.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ROOT
from patience import PATIENCE

PLACE = re.compile(r"`(?P<file>[\w./]+)`, (?P<where>at the end|after|before|in place of)(?: `(?P<line>[^`]+)`)?:")
LEFT_BEHIND = (".*", "__pycache__", "build", "dist", "runs", "results", "examples", "*.egg-info")


class Block(NamedTuple):
    """Lines of code and their place: a file and, unless they go to its end, the one line they stand beside."""

    file: str
    where: str
    line: str | None
    code: list[str]


def blocks(page: str) -> list[Block]:
    """Return the blocks of the section "Add an op"; each has its place on the last line of text before it."""
    section = page.split("\n## Add an op\n")[1].split("\n## ")[0]
    found = []
    for text, code in re.findall(r"(.*?)\n```\w+\n(.*?\n)```\n", section, re.DOTALL):
        last = text.rstrip().splitlines()[-1]
        place = PLACE.fullmatch(last)
        assert place is not None, f"expected a line such as `file`, after `line`: before a block, found {last!r}"
        assert (place["line"] is None) == (place["where"] == "at the end"), last
        found.append(Block(place["file"], place["where"], place["line"], code.splitlines()))
    return found


def put(block: Block, root: Path) -> None:
    path = root / block.file
    lines = path.read_text().splitlines() if path.exists() else []
    if block.line is None:
        lines += block.code
    else:
        stripped = [line.strip() for line in lines]
        at = [i for i, line in enumerate(stripped) if line == block.line]
        at = at or [i for i, line in enumerate(stripped) if line.startswith(block.line)]
        assert len(at) == 1, f"{block.file}: expected one line {block.line!r}, found {len(at)}"
        first, last = at[0] + (block.where == "after"), at[0] + (block.where != "before")
        lines[first:last] = block.code
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a copy of the checkout with the op."""
    root = tmp_path_factory.mktemp("contributing") / "checkout"
    shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    page = blocks((ROOT / "CONTRIBUTING.md").read_text())
    for block in page:
        put(block, root)
    for source in (root / "csrc" / "cpu").glob("*.cpp"):
        if source.relative_to(root).as_posix() not in {block.file for block in page}:
            source.unlink()
    return root


def test_the_page_leads_through_every_layer() -> None:
    """Code for each of them, and no block without a place (which `blocks` refuses)."""
    folders = {str(Path(block.file).parent) for block in blocks((ROOT / "CONTRIBUTING.md").read_text())}
    layers = {"fastndsm/reference", "csrc/include", "csrc/cpu", "kernels", "fastndsm/backends", "fastndsm", "tests"}
    assert layers <= folders


def test_what_was_added_passes_the_linters(copy: Path) -> None:
    files = sorted({block.file for block in blocks((ROOT / "CONTRIBUTING.md").read_text())})
    python = [file for file in files if file.endswith(".py")]
    others = [file for file in files if file not in python]
    tools = Path(sys.executable).parent
    for command in (
        [tools / "ruff", "check", "--no-cache", *python],
        [tools / "ruff", "format", "--no-cache", "--check", *python],
        [tools / "clang-format", f"--style=file:{ROOT / '.clang-format'}", "--dry-run", "--Werror", *others],
    ):
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


TRY = """
import sys
import pytest, torch
import fastndsm
from fastndsm import functional
assert fastndsm.__file__ == sys.argv[1] + "/fastndsm/__init__.py", fastndsm.__file__

def formula(score, target, delta):
    return torch.nn.functional.huber_loss(score, target, delta=delta, reduction="none").flatten(1).sum(1)

score, target = (torch.randn(9, 5, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
weight = torch.rand(9, dtype=torch.float64)
expected = (weight * formula(score, target, 0.5)).mean()
expected = expected, *torch.autograd.grad(expected, (score, target))
for backend in ("reference", "cpp", "auto"):
    found = functional.huber_loss(score, target, weight, delta=0.5, backend=backend)
    torch.testing.assert_close((found, *torch.autograd.grad(found, (score, target))), expected)

whole = torch.compile(functional.huber_loss, backend="aot_eager", fullgraph=True)
torch.testing.assert_close(whole(score, target, weight, delta=0.5), expected[0])
with torch.device("meta"):
    assert functional.huber_loss(torch.empty(4, 3), torch.empty(4, 3), reduction="none").shape == (4,)
for backend in ("reference", "cpp"):
    torch.library.opcheck(torch.ops.fastndsm.huber_loss.default, (score.flatten(1), target.flatten(1), 0.5, backend))
try:
    functional.huber_loss(score, target, delta=-1.0)
except ValueError as error:
    assert str(error) == "delta: expected a finite positive number, found -1.0", error
else:
    raise AssertionError("accepted")
from fastndsm.backends import registry
assert registry.serving("huber_loss", torch.device("cpu"), torch.float32) == ["cpp", "reference"]
files = ["tests/test_huber_loss.py", "tests/test_ops.py"]
raise SystemExit(pytest.main([*files, "-q", "-p", "no:cacheprovider", "-k", sys.argv[2]]))
"""


@pytest.mark.parametrize(
    "tests",
    [
        pytest.param("huber and not compile_for", id="all but compilation for GPUs"),
        pytest.param("huber and compile_for", id="compilation for GPUs", marks=pytest.mark.slow),
    ],
)
def test_the_op_works(
    tests: str, copy: Path, start_python: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run it on the reference and in C++, by a formula of its own and by the tests that the page adds."""
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("no C++ compiler")
    monkeypatch.chdir(copy)
    process = start_python(TRY, copy, tests, PYTHONPATH=str(copy), FASTNDSM_CACHE_DIR=str(copy.parent / "cache"))
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, out + err
    assert re.search(r"^\d+ passed", out, re.MULTILINE), out
