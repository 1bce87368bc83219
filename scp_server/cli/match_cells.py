"""The columns of a query, and what a match has in them, as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scp_server.objects.dicom_json import person_name_groups
from scp_server.objects.query_keys import KeyName, keyword_of
from scp_server.objects.vr import SINGLE_VALUED_TEXT_VRS, TEXT_VRS
from scp_server.observability.text import printable

if TYPE_CHECKING:
    from scp_server.objects.query import QueryItem
    from scp_server.objects.raw_header import AttributeSource, RawElement

ValueText = Callable[["AttributeSource", "RawElement"], str]
"""Writes the value of an element that is no sequence."""

_FIRST_BLOCK: Final = 0x10
_LAST_BLOCK: Final = 0xFF
_MAX_DEPTH: Final = 8
_BETWEEN_ITEMS: Final = " | "
_WORDS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
"""Where the words of a keyword meet."""


@dataclass(frozen=True, slots=True)
class Column:
    """An attribute that was asked for: the way to it, through sequences."""

    path: tuple[KeyName, ...]

    @property
    def title(self) -> str:
        """The last name in words: for people."""
        return printable(_WORDS.sub(" ", self.path[-1].name))

    @property
    def full_name(self) -> str:
        """The whole way, joined by dots: for scripts."""
        return printable(".".join(name.name for name in self.path))

    def cell(self, source: AttributeSource, value_text: ValueText) -> str:
        """What a match has there, on one line; the values of several items one after another."""
        return printable(_BETWEEN_ITEMS.join(_cells(source, self.path, value_text)))


def columns_of(keys: QueryItem, path: tuple[KeyName, ...] = ()) -> Iterator[Column]:
    """One column for each key; a sequence with keys has theirs."""
    for key in keys:
        inner = key.value[0] if isinstance(key.value, tuple) and key.value else ()
        if inner:
            yield from columns_of(inner, (*path, key.key))
        else:
            yield Column((*path, key.key))


def plain_text(source: AttributeSource, element: RawElement) -> str:
    """The value as DICOM writes it, several of them with backslashes."""
    if element.vr in TEXT_VRS:
        return source.text(element.tag) or ""
    values = source.value(element.tag)
    if element.vr == "AT":
        return "\\".join(f"{value:08X}" for value in values)
    if not values and element.value:
        return f"{len(element.value)} bytes"
    return "\\".join(map(str, values))


def readable_text(source: AttributeSource, element: RawElement) -> str:
    """The value as people write it: dates, times and person names, several values with commas."""
    text = plain_text(source, element)
    if element.vr in SINGLE_VALUED_TEXT_VRS:
        return text
    write = _READABLE.get(element.vr, str.strip)
    return ", ".join(write(value) for value in text.split("\\"))


def _cells(source: AttributeSource, path: Sequence[KeyName], value_text: ValueText) -> list[str]:
    element = source.get(_tag_in(source, path[0]))
    if element is None:
        return []
    if len(path) > 1:
        found = [_cells(item, path[1:], value_text) for item in source.items(element.tag)]
        return [cell for cells in found for cell in cells]
    if element.vr == "SQ":
        return [_item_text(item, value_text, 0) for item in source.items(element.tag)]
    return [value_text(source, element)]


def _item_text(item: AttributeSource, value_text: ValueText, depth: int) -> str:
    parts = []
    for element in item:
        if element.vr != "SQ":
            text = value_text(item, element)
        elif depth < _MAX_DEPTH:
            text = "; ".join(_item_text(inner, value_text, depth + 1) for inner in item.items(element.tag))
        else:
            text = "..."
        if text:
            parts.append(f"{keyword_of(element.tag)}={text}")
    return "{" + " ".join(parts) + "}"


def _tag_in(source: AttributeSource, name: KeyName) -> int:
    """The tag that the key has there: a private one depends on the block of its creator (PS3.5 7.8.1)."""
    if name.creator is None:
        return name.tag
    group = name.tag >> 16 << 16
    for block in range(_FIRST_BLOCK, _LAST_BLOCK + 1):
        if group | block in source and source.text(group | block) == name.creator:
            return name.tag | block << 8
    return 0


def _person(value: str) -> str:
    """`Yamada, Tarou (山田 太郎, やまだ たろう)`."""
    alphabetic, *others = person_name_groups(value) or [""]
    family, given, middle, prefix, suffix = (*(part.strip() for part in alphabetic.split("^")), *[""] * 5)[:5]
    names = " ".join(part for part in (prefix, given, middle) if part)
    first = ", ".join(part for part in (family, names, suffix) if part)
    rest = ", ".join(" ".join(group.split("^")) for group in others if group)
    return f"{first} ({rest})" if first and rest else first or rest


def _date(value: str) -> str:
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if len(value) == 8 and value.isdigit() else value


def _time(value: str) -> str:
    whole, dot, fraction = value.strip().partition(".")
    if not whole.isdigit() or len(whole) not in (4, 6):
        return value
    digits = [whole[at : at + 2] for at in range(0, len(whole), 2)]
    return ":".join(digits) + (dot + fraction.rstrip("0") if fraction.strip("0") else "")


_READABLE: Final[dict[str, Callable[[str], str]]] = {"PN": _person, "DA": _date, "TM": _time}
