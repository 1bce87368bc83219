"""Data sets in the DICOM JSON Model (PS3.18 F), from their own bytes."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any, Final

from scp_server.objects.text import decode_text
from scp_server.objects.vr import NUMBER_CODES, TEXT_VRS

if TYPE_CHECKING:
    from scp_server.objects.raw_header import AttributeSource, RawElement, Scalar

_CHARACTER_SET: Final = 0x00080005
_MAX_DEPTH: Final = 64
_GROUPS: Final = ("Alphabetic", "Ideographic", "Phonetic")
_NOT_FINITE: Final = {math.inf: "Infinity", -math.inf: "-Infinity"}


def to_json(source: AttributeSource, depth: int = 0) -> dict[str, Any]:
    """The elements of a data set or item by tag, sequences deeper than 64 left out (PS3.18 F.2).

    An element that is empty has no Value (F.2.5). A number that cannot be read stays a text. JSON is
    Unicode, so Specific Character Set, where it is present, says UTF-8.
    """
    document: dict[str, Any] = {}
    for element in source:
        if element.value is None:
            continue
        entry: dict[str, Any] = {"vr": element.vr}
        values = _values(source, element, depth)
        if element.tag == _CHARACTER_SET and values:
            values = ["ISO_IR 192"]
        if values:
            entry["Value"] = values
        elif element.value and element.vr not in TEXT_VRS and element.vr not in (*NUMBER_CODES, "AT", "SQ"):
            entry["InlineBinary"] = base64.b64encode(element.value).decode("ascii")
        document[f"{element.tag:08X}"] = entry
    return document


def person_name_groups(value: str) -> list[str]:
    """The component groups of a person name, without empty ones at its end: at most three (PS3.5 6.2.1)."""
    groups = [group.rstrip(" ^") for group in value.split("=", 2)]
    while groups and not groups[-1]:
        groups.pop()
    return groups


def _values(source: AttributeSource, element: RawElement, depth: int) -> list[Any]:
    match element.vr:
        case "SQ":
            if depth >= _MAX_DEPTH:
                return []
            return [to_json(item, depth + 1) for item in source.items(element.tag)]
        case "PN":
            names = decode_text(element.value or b"", source.specific_character_set).rstrip(" \0")
            return _trimmed([_person_name(name) or None for name in names.split("\\")])
        case "AT":
            return [f"{value:08X}" for value in source.value(element.tag)]
        case _:
            return _trimmed([_scalar(value) for value in source.value(element.tag)])


def _trimmed(values: list[Any]) -> list[Any]:
    """No values at all where each of them is empty."""
    return [] if all(value is None for value in values) else values


def _person_name(value: str) -> dict[str, str]:
    return {name: group for name, group in zip(_GROUPS, person_name_groups(value), strict=False) if group}


def _scalar(value: Scalar) -> Scalar | None:
    if isinstance(value, float) and not math.isfinite(value):
        return _NOT_FINITE.get(value, "NaN")
    return None if value == "" else value
