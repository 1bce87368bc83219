"""`docs/promises.md` names a test for each promise, and every test that it names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"
_TEST = re.compile(r"`([\w/]+\.py)::(test_\w+)`")
_HEADER = ("the server promises", "held by")


def _rows() -> Iterator[tuple[int, str, str]]:
    """Line number, promise and tests of each row of the page's tables."""
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), 1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and not set(line) <= set("|- ") and tuple(cells) != _HEADER:
            assert len(cells) == len(_HEADER), f"line {number} has {len(cells)} cells"
            yield number, cells[0], cells[1]


@cache
def _tests_in(path: str) -> frozenset[str]:
    """Names of the functions of a test file, those in classes too."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, functions))


def test_there_are_promises() -> None:
    assert len(list(_rows())) > 100


@pytest.mark.parametrize(
    ("number", "promise", "tests"), [pytest.param(*row, id=f"{row[0]}") for row in _rows()]
)
def test_every_promise_is_held_by_tests_that_are_there(number: int, promise: str, tests: str) -> None:
    named = _TEST.findall(tests)
    assert promise
    assert named, f"line {number} names no test"
    assert _TEST.sub("", tests).strip(" ,") == "", f"line {number} names something that is no test"
    missing = [f"{path}::{name}" for path, name in named if name not in _tests_in(path)]
    assert missing == [], f"line {number}"


def test_no_promise_is_made_twice() -> None:
    promises = [promise for _, promise, _ in _rows()]
    assert sorted(set(promises)) == sorted(promises)


_CLAUSE = re.compile(r"PS3\.\d [A-Z0-9]+(?:\.\d+)*")


def _clause_rows() -> Iterator[tuple[int, str, str]]:
    """The rows of the tables that go clause by clause."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    headings = [(number, line) for number, line in enumerate(lines, 1) if line.startswith("## ")]
    for number, promise, tests in _rows():
        heading = [line for start, line in headings if start < number][-1]
        if heading.endswith("clause by clause"):
            yield number, promise, tests


@cache
def _says(path: str) -> dict[str, str]:
    """Name and docstring of each function of a test file."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name: f"{node.name} {ast.get_docstring(node) or ''}"
        for node in ast.walk(tree)
        if isinstance(node, functions)
    }


@pytest.mark.parametrize(
    ("number", "promise", "tests"), [pytest.param(*row, id=f"{row[0]}") for row in _clause_rows()]
)
def test_a_promise_of_a_clause_is_held_by_a_test_that_names_it(number: int, promise: str, tests: str) -> None:
    """As it is written, or in its name: `c_4_1_2_1` of PS3.4, `ps3_8_9_3_2` of the others."""
    clauses = _CLAUSE.findall(promise)
    assert clauses, f"line {number} names no clause"
    said = [_says(path)[name] for path, name in _TEST.findall(tests)]
    for clause in clauses:
        form = clause.lower().replace(" ", "_").replace(".", "_").removeprefix("ps3_4_")
        assert any(clause in text or form in text for text in said), f"line {number}: {clause}"
