"""Every block of code of README.md and docs/, run as users would, shortened, page by page.

Blocks of a page share an empty folder and, if they are Python, their names; `pycon` is compared with what it shows. Of
shell commands fastndsm's are run, and of others the script, the target or the extra that they name is looked up.
"""

from __future__ import annotations

import contextvars
import doctest
import re
import shlex
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from conftest import ROOT
from pages import Block, blocks, name_of, pages

from fastndsm import cli, latent

STEPS = 30  # of any training
PICTURES = "agg"
# Blocks that are shown and not typed, or tested elsewhere: the recipe for an op by test_contributing.py.
SHOWN = ("text", "", "{toctree}", "{include}", "{eval-rst}", "{code-cell}")  # cells run when the site is built
ELSEWHERE = ("CONTRIBUTING.md", "examples/experiments/README.md", "CHANGELOG.md")
PAGES = {name_of(page): list(blocks(page.read_text())) for page in pages() if name_of(page) not in ELSEWHERE}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use(PICTURES)
    fit = latent.Autoencoder.fit.__func__  # type: ignore[attr-defined]

    def short_fit(cls: Any, *arguments: Any, **options: Any) -> latent.Autoencoder:
        return fit(cls, *arguments, **{**options, "steps": STEPS})

    monkeypatch.setattr(latent.Autoencoder, "fit", classmethod(short_fit))


def shortened(code: str) -> str:
    """Return code whose trainings take few steps."""
    return re.sub(r"\bsteps=\d[\d_]*", f"steps={STEPS}", code)


def run_python(block: Block, name: str, names: dict[str, Any]) -> None:
    exec(compile("\n" * block.line + shortened(block.text), name, "exec"), names)


def run_session(block: Block, name: str, names: dict[str, Any]) -> None:
    test = doctest.DocTestParser().get_doctest(block.text, names, name, name, block.line)
    assert test.examples, f"{name}:{block.line}: expected a session with >>>"
    runner, said = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS), []
    runner.run(test, out=said.append, clear_globs=False)
    names.update(test.globs)
    assert not runner.failures, "".join(said)


def run_shell(block: Block, name: str, names: dict[str, Any]) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        for command in line.partition(" #")[0].split("&&"):
            words = shlex.split(command)
            if words:
                run_command(words, f"{name}: {line}")


def run_command(words: list[str], where: str) -> None:
    program, *arguments = words
    if program == "fastndsm":
        command = arguments[0]
        if command == "train":
            arguments += ["--steps", str(STEPS), "--samples", "100", "--no-progress", "--threads", "1"]
        if command in ("evaluate", "sample"):
            arguments += ["--no-progress", *(["--n", "100"] if "--n" not in arguments else [])]
        assert cli.main(arguments) == 0, where
    elif program == "make":
        assert all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE) for target in arguments), (
            where
        )
    elif program in ("python", "torchrun"):
        scripts = [word for word in arguments if word.endswith(".py")]
        assert scripts and all((ROOT / script).is_file() for script in scripts), where
    elif program == "pip":
        extras = [extra for found in re.findall(r"\[([\w,]+)\]", " ".join(arguments)) for extra in found.split(",")]
        project = (ROOT / "pyproject.toml").read_text()
        assert all(re.search(rf"^{extra} = \[", project, re.MULTILINE) for extra in extras), where
    elif program == "cd":
        assert not Path(arguments[0]).is_absolute(), where
    else:
        raise AssertionError(f"{where}: expected a command that this test knows")


def run_page(name: str) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in RUN[name]:
        if block.language in RUNNERS:
            RUNNERS[block.language](block, name, names)


RUNNERS = {"python": run_python, "pycon": run_session, "sh": run_shell}
RUN = {name: found for name, found in PAGES.items() if any(block.language in RUNNERS for block in found)}


def test_every_block_is_run_or_shown_on_purpose() -> None:
    found = {block.language.split(" ")[0] for page in PAGES.values() for block in page}
    assert {language for language in found if language not in SHOWN} == set(RUNNERS)


@pytest.mark.parametrize("name", RUN)
def test_the_blocks_of_a_page_work(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    contextvars.copy_context().run(run_page, name)  # a backend that a page chooses is chosen there alone


def test_a_wrong_block_is_found() -> None:
    with pytest.raises(AssertionError, match="Expected"):
        run_session(Block("pycon", ">>> 1 + 1\n3\n", 1), "page", {})
    with pytest.raises(AssertionError, match="a command that this test knows"):
        run_shell(Block("sh", "rm -rf there\n", 1), "page", {})
    with pytest.raises(ZeroDivisionError):
        run_python(Block("python", "1 / 0\n", 1), "page", {})
