"""Settings as text: TOML for people and files, plain data for machines; secrets are masked in both."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
MASK = "**********"


def to_mapping(settings: BaseModel) -> dict[str, Any]:
    """The effective settings as tables of plain values (paths as text, lists as lists), secrets masked."""
    fields = type(settings).model_fields.items()
    return {field.alias or name: _plain(getattr(settings, name)) for name, field in fields}


def to_toml(settings: BaseModel) -> str:
    """The effective settings as a TOML document. Keys that are not set stand there as comments."""
    top = []
    sections = []
    for name, value in to_mapping(settings).items():
        if isinstance(value, dict):
            sections.append("\n".join([f"[{name}]", *(_line(key, item) for key, item in value.items())]))
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            sections += [
                "\n".join([f"[[{name}]]", *(_line(key, item) for key, item in table.items())])
                for table in value
            ]
        else:
            top.append(_line(name, value))
    return "\n\n".join(["\n".join(top), *sections]) + "\n"


def toml_value(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        items = ", ".join(f"{_key(str(key))} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else toml_value(name)


def _line(key: str, value: object) -> str:
    return f"# {key} is not set" if value is None else f"{key} = {toml_value(value)}"


def flat(settings: BaseModel) -> dict[str, Any]:
    """Every setting by its dotted key, as it is: secrets too. Lists are values, tables are not."""
    values: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            values |= {f"{name}.{key}": inner for key, inner in flat(value).items()}
        else:
            values[name] = value
    return values


def shown(value: object) -> Any:
    """A value of a setting as plain data, secrets masked."""
    return _plain(value)


def _plain(value: object) -> Any:
    if isinstance(value, BaseModel):
        return to_mapping(value)
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
