"""Reading attributes into plain values, and the small things that many objects have: references and codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from scp_server.objects.raw_header import AttributeSource
from scp_server.objects.uids import clean_uid

Point = tuple[float, float, float]
"""x, y, z."""

_REFERENCED_SOP_CLASS_UID: Final = 0x00081150
_REFERENCED_SOP_INSTANCE_UID: Final = 0x00081155
_CODE_VALUE, _CODING_SCHEME_DESIGNATOR, _CODE_MEANING = 0x00080100, 0x00080102, 0x00080104
_MAX_DEPTH: Final = 8
"""Sequences within sequences that are searched for references."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Another instance that is referred to (PS3.3 10.8)."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True, slots=True)
class Code:
    """A coded entry (PS3.3 8.8); what it lacks is empty."""

    value: str
    scheme: str
    meaning: str


def text(source: AttributeSource, tag: int) -> str:
    """The value as text; empty where there is none."""
    return source.text(tag) or ""


def uid(source: AttributeSource, tag: int) -> str:
    """A UID without padding; empty where there is none."""
    return clean_uid(source.raw(tag) or b"")


def numbers(source: AttributeSource, tag: int) -> tuple[float, ...]:
    """The values that are numbers, in order; nothing where one of them is none."""
    values = source.value(tag)
    if any(isinstance(value, str) for value in values):
        return ()
    return tuple(float(value) for value in values)


def number(source: AttributeSource, tag: int) -> float | None:
    """The first value as a number; None where there is none."""
    return next(iter(numbers(source, tag)), None)


def integer(source: AttributeSource, tag: int) -> int | None:
    """The first value as a whole number; None where there is none."""
    found = next(iter(source.value(tag)), None)
    return found if isinstance(found, int) else None


def point(source: AttributeSource, tag: int) -> Point | None:
    """Three numbers; None where there are not three."""
    values = numbers(source, tag)
    return (values[0], values[1], values[2]) if len(values) == 3 else None


def points(values: Sequence[float]) -> tuple[Point, ...]:
    """Numbers by threes; a rest is left out."""
    return tuple(
        (values[start], values[start + 1], values[start + 2]) for start in range(0, len(values) - 2, 3)
    )


def codes(source: AttributeSource, tag: int) -> tuple[Code, ...]:
    """The items of a code sequence."""
    return tuple(
        Code(text(item, _CODE_VALUE), text(item, _CODING_SCHEME_DESIGNATOR), text(item, _CODE_MEANING))
        for item in source.items(tag)
    )


def references(source: AttributeSource, tag: int) -> tuple[Reference, ...]:
    """The instances that the items of a sequence refer to, at any depth, each once, in order."""
    found = (one for item in source.items(tag) for one in _references_in(item, 0))
    return tuple(dict.fromkeys(found))


def _references_in(source: AttributeSource, depth: int) -> Iterator[Reference]:
    instance = uid(source, _REFERENCED_SOP_INSTANCE_UID)
    if instance:
        yield Reference(uid(source, _REFERENCED_SOP_CLASS_UID), instance)
    if depth < _MAX_DEPTH:
        for tag in source.tags():
            for item in source.items(tag):
                yield from _references_in(item, depth + 1)
