"""The keys of a settings model, as data: for the environment, for messages and for the reference."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo


class Kind(Enum):
    """What a value looks like, in words for people."""

    BOOLEAN = "true or false"
    INTEGER = "whole number"
    NUMBER = "number"
    TEXT = "text"
    SECRET = "secret"
    LIST = "list of texts"
    CHOICE = "one of"
    TABLE = "table"
    TABLES = "list of tables"


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its dotted name, its kind, and how its model declares it."""

    name: str
    kind: Kind
    choices: tuple[str, ...]
    default: object
    description: str

    @property
    def section(self) -> str:
        """The table it stands in; empty at the top level."""
        return self.name.rpartition(".")[0]

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return "SCP_SERVER_" + self.name.upper().replace(".", "__")


@cache
def keys_of(model: type[BaseModel]) -> dict[str, Key]:
    """Every setting of `model` by its dotted name, in the order of declaration."""
    return {key.name: key for key in _walk(model, "")}


@cache
def sections_of(model: type[BaseModel]) -> dict[str, str]:
    """Every table of `model` by its dotted name, with the first line of its docstring."""
    return {
        name: (section.__doc__ or "").strip().splitlines()[0]
        for name, field in model.model_fields.items()
        if (section := _section_model(field)) is not None
    }


@cache
def tables_of(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The model of one table, by the name of each array of tables (`[[peers]]`)."""
    found = {name: _table_model(field.annotation) for name, field in model.model_fields.items()}
    return {name: table for name, table in found.items() if table is not None}


@cache
def all_keys_of(model: type[BaseModel]) -> dict[str, Key]:
    """`keys_of`, and after them the keys of arrays of tables, such as `peers.address`, without positions."""
    keys = dict(keys_of(model))
    for name, table in tables_of(model).items():
        keys |= {
            f"{name}.{key}": replace(known, name=f"{name}.{key}") for key, known in keys_of(table).items()
        }
    return keys


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        section = _section_model(field)
        if section is not None:
            yield from _walk(section, f"{prefix}{name}.")
            continue
        kind, choices = _kind_of(field.annotation)
        default = None if field.is_required() else field.get_default(call_default_factory=False)
        yield Key(prefix + (field.alias or name), kind, choices, default, field.description or "")


def _section_model(field: FieldInfo) -> type[BaseModel] | None:
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _table_model(annotation: Any) -> type[BaseModel] | None:
    """The model of the tables, where the annotation is a tuple of such."""
    if get_origin(annotation) is not tuple:
        return None
    item = get_args(annotation)[0]
    return item if isinstance(item, type) and issubclass(item, BaseModel) else None


_KINDS: dict[object, Kind] = {
    bool: Kind.BOOLEAN,
    int: Kind.INTEGER,
    float: Kind.NUMBER,
    str: Kind.TEXT,
    Path: Kind.TEXT,
    SecretStr: Kind.SECRET,
    tuple: Kind.LIST,
    dict: Kind.TABLE,
}


def _kind_of(annotation: Any) -> tuple[Kind, tuple[str, ...]]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kind_of(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        inner = [argument for argument in get_args(annotation) if argument is not types.NoneType]
        return _kind_of(inner[0])
    if _table_model(annotation) is not None:
        return Kind.TABLES, ()
    if origin is Literal:
        return Kind.CHOICE, tuple(str(choice) for choice in get_args(annotation))
    return _KINDS[origin or annotation], ()
