"""A query as its user writes it, and the identifier that it becomes (PS3.4 C.4.1.1.3.1).

Keys are described in `query_keys`. A value is None or `""` (a return key), a text, a number, a list of these
(several values, or a list of UIDs), or for a sequence a mapping or a list of mappings. What DICOM JSON says
of an element (PS3.18 F.2: `{"vr": "LO", "Value": ["x"]}`) is a value, too.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from scp_server.errors import QueryError
from scp_server.objects.query_keys import KeyName, parse_key
from scp_server.objects.query_model import QueryLevel, QueryModel, default_keys
from scp_server.objects.vr import NUMBER_CODES, SINGLE_VALUED_TEXT_VRS, TEXT_VRS

_CHARACTER_SET: Final = 0x00080005
_LEVEL: Final = 0x00080052
_MAX_DEPTH: Final = 64
_JSON_MODEL: Final = frozenset(["vr", "Value", "InlineBinary"])
_Kind = TypeVar("_Kind", QueryModel, QueryLevel)
_PERSON_NAME_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")


@dataclass(frozen=True, slots=True)
class QueryKey:
    """One key with its value: text, bytes as they are sent (little endian), or the items of a sequence."""

    key: KeyName
    value: str | bytes | tuple[QueryItem, ...]

    @property
    def is_return_key(self) -> bool:
        """Whether it has no value: it matches anything and is to be returned."""
        return not self.value


QueryItem = tuple[QueryKey, ...]
"""The keys of the query, or of an item in it, in the order in which they were written."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked, of which model and at which level; `level` is None for a worklist."""

    model: QueryModel
    level: QueryLevel | None
    keys: QueryItem


def make_query(
    keys: Mapping[str, object],
    *,
    level: str | None = None,
    model: str = QueryModel.STUDY,
    complete: bool = True,
) -> Query:
    """Read a query. Without any return key it gets those of its level (`default_keys`), if `complete`.

    `level` is STUDY unless it is given here or as Query/Retrieve Level in `keys`. Raises QueryError.
    """
    chosen = _choice(QueryModel, model, "model")
    found = read_item(keys, 0)
    level = level.upper() if level is not None else None
    levels = [one for one in found if one.key.tag == _LEVEL]
    found = tuple(one for one in found if one.key.tag not in (_LEVEL, _CHARACTER_SET))
    if levels and isinstance(levels[0].value, str) and levels[0].value:
        if level is not None and level != levels[0].value:
            raise QueryError(f"the query is for level {levels[0].value}, not for {level}")
        level = levels[0].value
    query_level = None
    if chosen.levels:
        query_level = _choice(QueryLevel, level or QueryLevel.STUDY, "level")
        if query_level not in chosen.levels:
            raise QueryError(f"the model {chosen} has no level {query_level}")
    elif level is not None:
        raise QueryError("a worklist has no level")
    if complete and not _has_return_key(found):
        found = _with_defaults(found, read_item(default_keys(query_level), 0))
    return Query(chosen, query_level, found)


def read_item(keys: Mapping[str, object], depth: int) -> QueryItem:
    """Read the keys of one item. Raises QueryError for what no identifier can hold."""
    if depth > _MAX_DEPTH:
        raise QueryError(f"sequences lie deeper than {_MAX_DEPTH}")
    item: dict[tuple[int, str | None], QueryKey] = {}
    for text, value in keys.items():
        name = parse_key(str(text))
        if (name.tag, name.creator) in item:
            raise QueryError(f"{text!r} is asked for twice")
        if name.tag == _CHARACTER_SET and value not in (None, "", []):
            raise QueryError(f"{text!r}: the character set follows from the values")
        item[name.tag, name.creator] = _read_key(name, value, depth)
    return tuple(item.values())


def _read_key(name: KeyName, value: object, depth: int) -> QueryKey:
    if isinstance(value, Mapping) and "vr" in value:
        if not value.keys() <= _JSON_MODEL:
            raise QueryError(f"{name.name}: DICOM JSON has vr and Value or InlineBinary")
        name = parse_key(f"{name.name}:{value['vr']}")
        if "InlineBinary" in value:
            return QueryKey(name, _inline_binary(name, value["InlineBinary"]))
        value = value.get("Value")
    if name.vr == "SQ":
        return QueryKey(name, _items(name, value, depth))
    values = list(value) if isinstance(value, list | tuple) else [value]
    values = [] if values in ([None], [""]) else values
    if not values:
        return QueryKey(name, "" if name.vr in TEXT_VRS else b"")
    if name.vr in TEXT_VRS:
        texts = [_text(name, one) for one in values]
        if len(texts) > 1 and name.vr in SINGLE_VALUED_TEXT_VRS:
            raise QueryError(f"{name.name}: VR {name.vr} has a single value")
        return QueryKey(name, "\\".join(texts))
    if name.vr == "AT":
        return QueryKey(name, b"".join(_tag_value(name, one) for one in values))
    code = NUMBER_CODES.get(name.vr)
    if code is not None:
        return QueryKey(name, b"".join(_number(name, code, one) for one in values))
    if name.vr == "UN":
        raise QueryError(f"{name.name}: no dictionary has its VR; say it, as in {name.name + ':LO'!r}")
    raise QueryError(f"{name.name}: a value of VR {name.vr} has to be InlineBinary of DICOM JSON")


def _items(name: KeyName, value: object, depth: int) -> tuple[QueryItem, ...]:
    if value is None or value in ("", []):
        return ()
    items = value if isinstance(value, list | tuple) else [value]
    read = []
    for item in items:
        if not isinstance(item, Mapping):
            raise QueryError(f"{name.name} is a sequence: its value is an object of keys, or a list of them")
        read.append(read_item(item, depth + 1))
    return tuple(read)


def _text(name: KeyName, value: object) -> str:
    if isinstance(value, Mapping) and name.vr == "PN" and value.keys() <= set(_PERSON_NAME_GROUPS):
        return "=".join(str(value.get(group, "")) for group in _PERSON_NAME_GROUPS).rstrip("=")
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise QueryError(f"{name.name}: {value!r} is no value of VR {name.vr}")
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError:
        raise QueryError(f"{name.name}: the value has half of a surrogate pair") from None
    return str(value)


def _number(name: KeyName, code: str, value: object) -> bytes:
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value) if code in "fd" else int(value)
        if number != (float(value) if isinstance(value, str) else value):
            raise ValueError
        return struct.pack("<" + code, number)
    except (ValueError, OverflowError, struct.error):
        raise QueryError(f"{name.name}: {value!r} is no number that VR {name.vr} can have") from None


def _tag_value(name: KeyName, value: object) -> bytes:
    if not isinstance(value, str):
        raise QueryError(f"{name.name}: {value!r} is no tag")
    tag = parse_key(value).tag
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF)


def _inline_binary(name: KeyName, value: object) -> bytes:
    try:
        data = base64.b64decode(str(value), validate=True)
    except (binascii.Error, ValueError):
        raise QueryError(f"{name.name}: InlineBinary is not Base64") from None
    if name.vr in TEXT_VRS or name.vr == "SQ":
        raise QueryError(f"{name.name}: VR {name.vr} has no InlineBinary")
    return data


def _has_return_key(keys: QueryItem) -> bool:
    return any(
        key.is_return_key or (isinstance(key.value, tuple) and any(map(_has_return_key, key.value)))
        for key in keys
    )


def _with_defaults(keys: QueryItem, defaults: QueryItem) -> QueryItem:
    """The keys, then the defaults that are not among them; inside a sequence's first item, too."""
    by_tag = {default.key.tag: default for default in defaults}
    merged = []
    for key in keys:
        default = by_tag.pop(key.key.tag, None)
        if default is not None and isinstance(key.value, tuple) and isinstance(default.value, tuple):
            first, *others = key.value
            key = QueryKey(key.key, (_with_defaults(first, default.value[0]), *others))  # noqa: PLW2901
        merged.append(key)
    return (*merged, *by_tag.values())


def _choice(kind: type[_Kind], value: str, what: str) -> _Kind:
    try:
        return kind(value)
    except ValueError:
        raise QueryError(f"{what} {value!r} is none of {', '.join(kind)}") from None
