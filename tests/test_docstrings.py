"""Docstrings say what a function does or a class is: a function's begins with a verb, and none is a question."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("fastndsm", "kernels", "benchmarks", "docs", "examples", "tests")
QUESTIONS = {"what", "whether", "where", "which", "who", "whose", "how", "why", "when"}
NO_VERBS = set(
    "a an the that this these those its their all each every one two as by for from in of on to with".split()
)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def files() -> Iterator[Path]:
    """Yield every Python file whose docstrings are read."""
    for folder in FOLDERS:
        yield from sorted((ROOT / folder).rglob("*.py"))


def acts(node: Documented) -> bool:
    """Return whether it is a function; a property is read as a noun, and a test has its sentence in its name."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("test_"):
        return False
    return not any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list)


def faults(source: str) -> list[str]:
    """Return line and summary of each docstring that begins as a question, or a function's that begins with no verb."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            summary = text.partition("\n")[0]
            first = re.split(r"[\s,.:;?]", summary)[0]
            question = first.lower() in QUESTIONS
            no_verb = not re.fullmatch("[A-Z][a-z]+", first) or first.lower() in NO_VERBS
            if question or (acts(node) and no_verb):
                found.append(f"{node.body[0].lineno}: {summary}")
    return found


def test_summaries_begin_as_they_should() -> None:
    read = list(files())
    assert {path.relative_to(ROOT).parts[0] for path in read} == set(FOLDERS)
    found = [f"{path.relative_to(ROOT)}:{line}" for path in read for line in faults(path.read_text())]
    assert not found, "\n".join(found)


def in_place(text: str, place: str) -> str:
    """Return a source with the docstring in that place."""
    return {
        "module": text,
        "class": f"class A:\n    {text}",
        "property": f"class A:\n    @property\n    def f(self):\n        {text}",
        "method": f"class A:\n    @classmethod\n    def f(cls):\n        {text}",
        "function": f"async def f():\n    {text}",
    }[place]


@pytest.mark.parametrize("place", ["module", "class", "property", "method", "function"])
def test_a_question_is_found_wherever_it_stands(place: str) -> None:
    for text, n_found in (('"""Whether it holds."""', 1), ('"""whether, if at all."""', 1), ('"""Return it."""', 0)):
        assert len(faults(in_place(text, place))) == n_found


@pytest.mark.parametrize("place", ["method", "function"])
@pytest.mark.parametrize(
    "summary", ["The value.", "value as a float.", "x [B] -> y [B].", "|x - y|.", "2 E|X|.", "Of a set."]
)
def test_a_function_that_does_nothing_is_found(summary: str, place: str) -> None:
    assert len(faults(in_place(f'"""{summary}"""', place))) == 1
    assert not faults(in_place(f'"""{summary}"""', "property"))
