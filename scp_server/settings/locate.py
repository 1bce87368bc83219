"""Finds the line of a key in a TOML file, for messages about its value."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field

Path = tuple[str | int, ...]

_TOKEN = re.compile(
    r"""
      (?P<comment>\#[^\n]*)
    | (?P<text>\"\"\"(?:\\.|[^\\])*?\"{3,5} | '{3}.*?'{3,5} | \"(?:\\.|[^\"\\\n])*\" | '[^'\n]*')
    | (?P<newline>\n)
    | (?P<blank>[^\S\n]+)
    | (?P<mark>\[\[ | \]\] | [\[\]{}=.,])
    | (?P<bare>[^\s\[\]{}=.,"'\#]+)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    line: int


@dataclass(slots=True)
class _Scan:
    """Where the scan of one document is. `lines` is its result."""

    lines: dict[Path, int] = field(default_factory=dict)
    table: Path = ()
    arrays: dict[Path, int] = field(default_factory=dict)


def key_lines(document: str) -> dict[Path, int]:
    """The line, from 1 on, of each table and key of a TOML document that tomllib accepts.

    A path consists of names, and of positions where an array of tables is passed through; the keys of inline
    tables have the line where they stand.
    """
    scan = _Scan()
    for statement in _statements(document):
        if statement[0].text in ("[", "[["):
            _header(scan, statement)
        else:
            _assignment(scan, scan.table, statement)
    return scan.lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of `path`, or else of the nearest table around it."""
    while path:
        if path in lines:
            return lines[path]
        path = path[:-1]
    return None


def _tokens(document: str) -> Iterator[_Token]:
    line, position = 1, 0
    while position < len(document):
        match = _TOKEN.match(document, position)
        if match is None:
            return
        text = match.group()
        if match.lastgroup is not None and match.lastgroup not in ("comment", "blank"):
            yield _Token(match.lastgroup, text, line)
        line += text.count("\n")
        position = match.end()


def _statements(document: str) -> Iterator[list[_Token]]:
    """Headers and assignments, each with all its tokens; an array or inline table may span lines."""
    statement: list[_Token] = []
    depth = 0
    for token in _tokens(document):
        if token.kind == "newline":
            if statement and depth == 0:
                yield statement
                statement = []
            continue
        if token.kind == "mark":
            depth += _DEPTH.get(token.text, 0)
        statement.append(token)
    if statement:
        yield statement


_DEPTH = {"[": 1, "[[": 2, "{": 1, "]": -1, "]]": -2, "}": -1}


def _names(tokens: list[_Token]) -> tuple[str, ...]:
    """A dotted key. A name in quotes is read by tomllib, so that escapes mean the same."""
    names = []
    for token in tokens:
        if token.kind == "text":
            names.append(next(iter(tomllib.loads(f"{token.text} = 0"))))
        elif token.kind == "bare":
            names.append(token.text)
    return tuple(names)


def _header(scan: _Scan, statement: list[_Token]) -> None:
    path: Path = ()
    names = _names(statement)
    for position, name in enumerate(names):
        path += (name,)
        is_last = position == len(names) - 1
        if is_last and statement[0].text == "[[":
            scan.arrays[path] = scan.arrays.get(path, -1) + 1
        if path in scan.arrays:
            scan.lines.setdefault(path, statement[0].line)
            path += (scan.arrays[path],)
    scan.table = path
    scan.lines.setdefault(path, statement[0].line)


def _assignment(scan: _Scan, table: Path, tokens: list[_Token]) -> None:
    equals = next((at for at, token in enumerate(tokens) if token.text == "=" and token.kind == "mark"), None)
    if equals is None:
        return
    path = table
    for name in _names(tokens[:equals]):
        path += (name,)
        scan.lines.setdefault(path, tokens[0].line)
    value = tokens[equals + 1 :]
    if value and value[0].text == "{" and value[0].kind == "mark":
        for part in _split(value[1:-1]):
            _assignment(scan, path, part)


def _split(tokens: list[_Token]) -> Iterator[list[_Token]]:
    """The parts of an inline table between its own commas."""
    part: list[_Token] = []
    depth = 0
    for token in tokens:
        if token.kind == "mark":
            depth += _DEPTH.get(token.text, 0)
            if token.text == "," and depth == 0:
                yield part
                part = []
                continue
        part.append(token)
    if part:
        yield part
