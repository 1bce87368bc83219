"""Settings from a file, the environment and the command line, with every problem named where it stands."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from scp_server.errors import ConfigurationError
from scp_server.observability.text import safe_text
from scp_server.settings.environment import Layer, read_environment
from scp_server.settings.locate import key_lines, line_of
from scp_server.settings.models import Settings, SettingsTree
from scp_server.settings.schema import Kind, all_keys_of, keys_of, sections_of, tables_of

MAX_CONFIG_BYTES = 1 << 20
"""Longest settings file."""
_MAX_SHOWN_VALUE = 60


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `source` is a file, a variable or the command line; `line` is from 1 on."""

    source: str
    line: int | None
    key: str
    text: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}:{self.line}"
        return ": ".join(part for part in (where, self.key, self.text) if part)


class SettingsError(ConfigurationError):
    """The settings are wrong; the text has one line for each problem."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a server: the file `config`, over it the environment, over it `overrides`.

    `overrides` are tables in tables, as `{"listen": {"port": 0}}`, and come from the command line.
    Raises SettingsError with every problem.
    """
    problems: list[Problem] = []
    file = _File.read(config, problems) if config is not None else _File("", {}, {})
    environment = read_environment(Settings, os.environ)
    problems += [Problem(source, None, key, text) for source, key, text in environment.problems]
    merged = _merge(_merge(file.values, environment.nested()), dict(overrides or {}))
    problems += _validate(merged, file, environment, overrides or {})
    if problems:
        raise SettingsError(_in_order(problems))
    return Settings(**merged)


def check_file(config: Path) -> list[Problem]:
    """What is wrong with a settings file by itself, whatever the environment says; empty when nothing is."""
    problems: list[Problem] = []
    file = _File.read(config, problems)
    return _in_order(problems or _validate(file.values, file, Layer(), {}))


def _in_order(problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: (problem.line is None, problem.line or 0))


@dataclass(frozen=True, slots=True)
class _File:
    """A settings file that was read: its name, its tables, and the lines of its keys."""

    name: str
    values: dict[str, Any]
    lines: dict[tuple[str | int, ...], int]

    @classmethod
    def read(cls, path: Path, problems: list[Problem]) -> _File:
        name = safe_text(str(path), 1_024)
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_CONFIG_BYTES + 1)
            if len(data) > MAX_CONFIG_BYTES:
                raise ValueError(f"is longer than {MAX_CONFIG_BYTES} bytes")
            document = data.decode("utf-8")
            return cls(name, tomllib.loads(document), key_lines(document.replace("\r\n", "\n")))
        except OSError as error:
            problem = Problem(name, None, "", f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            problem = Problem(name, line, "", "is not UTF-8 text")
        except tomllib.TOMLDecodeError as error:
            problem = _syntax_problem(name, str(error), document)
        except RecursionError:
            problem = Problem(name, None, "", "is nested too deep")
        except ValueError as error:
            problem = Problem(name, None, "", str(error))
        problems.append(problem)
        return cls(name, {}, {})


def _syntax_problem(name: str, message: str, document: str) -> Problem:
    match = re.fullmatch(
        r"(?P<text>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)", message, re.DOTALL
    )
    if match is None:
        return Problem(name, None, "", f"is not TOML: {safe_text(message, 200)}")
    line = int(match["line"] or document.rstrip("\n").count("\n") + 1)
    return Problem(name, line, "", f"is not TOML: {safe_text(match['text'], 200)}")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Tables are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in above.items():
        known = merged.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(known, value) if both else value  # type: ignore[arg-type]
    return merged


def _validate(
    values: Mapping[str, Any], file: _File, environment: Layer, overrides: Mapping[str, Any]
) -> list[Problem]:
    try:
        SettingsTree.model_validate(values)
    except ValidationError as error:
        return [
            _problem(details, file, environment, overrides) for details in error.errors(include_url=False)
        ]
    return []


def _problem(details: ErrorDetails, file: _File, environment: Layer, overrides: Mapping[str, Any]) -> Problem:
    path = details["loc"]
    text = _words(details)
    # A complaint about a whole section begins with the name of the key that it is about.
    first = text.partition(" ")[0]
    for candidate in ((*path, first), tuple(first.split("."))):
        if ".".join(map(str, candidate)) in keys_of(Settings) and details["type"] == "value_error":
            path = candidate
            text = text.removeprefix(f"{first} ")
            break
    named_table = _NAMED_TABLE.fullmatch(first)
    if named_table is not None and details["type"] == "value_error":
        path = (named_table["table"], int(named_table["position"]), *filter(None, [named_table["key"]]))
        text = text.removeprefix(f"{first} ")
    path = next((at for at in file.lines if at[:-1] == path and text.startswith(f"{at[-1]} ")), path)
    key = ".".join(str(part) for part in path if not isinstance(part, int))
    if path and path[0] in tables_of(Settings):
        key = str(path[0])
    shown_key = safe_text(".".join(map(str, path)), 200)
    if _contains(overrides, path):
        return Problem("command line", None, shown_key, text)
    if key in environment.sources:
        return Problem(environment.sources[key], None, shown_key, text)
    return Problem(file.name or "settings", line_of(file.lines, path), shown_key, text)


_NAMED_TABLE = re.compile(r"(?P<table>[a-z_]+)\.(?P<position>[0-9]+)(?:\.(?P<key>[a-z_]+))?")
"""One table of an array of them, in a complaint about all: `peers.3` or `peers.3.dicos`."""


def _contains(tables: Mapping[str, Any], path: tuple[str | int, ...]) -> bool:
    value: Any = tables
    for part in path:
        if isinstance(value, Mapping):
            if part not in value:
                return False
            value = value[part]
        else:
            # Below the value of a key, such as an item of a list.
            return True
    return bool(path)


def _words(details: ErrorDetails) -> str:
    """What is wrong, in plain words; the value is named unless it is a secret."""
    kind, context = details["type"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(details["loc"])
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", details["msg"]))
    template = _WORDS.get(kind)
    if template is None:
        return details["msg"][:1].lower() + details["msg"][1:]
    values = {name: _number(value) for name, value in context.items()}
    return f"must be {template.format(**values)}{_but_not(details)}"


_WORDS = {
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "missing": "given",
    "model_type": "a table",
    "path_type": "a path",
    "string_type": "text",
    "tuple_type": "a list",
}


def _number(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _but_not(details: ErrorDetails) -> str:
    names = [str(part) for part in details["loc"] if not isinstance(part, int)]
    key = all_keys_of(Settings).get(".".join(names))
    value = details.get("input")
    if key is None or key.kind is Kind.SECRET or not isinstance(value, str | int | float):
        return ""
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f", not {safe_text(shown, _MAX_SHOWN_VALUE)}"


def _unknown_key(path: tuple[str | int, ...]) -> str:
    known = [*keys_of(Settings), *sections_of(Settings)]
    if path[0] in tables_of(Settings):
        known = [name for name in all_keys_of(Settings) if name.startswith(f"{path[0]}.")]
    close = [name for name in known if name.rpartition(".")[2] == str(path[-1])]
    close = close or difflib.get_close_matches(".".join(map(str, path)), known, n=1, cutoff=0.6)
    return f"is no setting; did you mean {close[0]}?" if close else "is no setting"


def plain_problems(problems: Iterable[Problem]) -> list[dict[str, object]]:
    """Problems as plain data, for machines."""
    return [
        {"source": problem.source, "line": problem.line, "key": problem.key, "problem": problem.text}
        for problem in problems
    ]
