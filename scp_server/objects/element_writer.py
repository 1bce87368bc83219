"""Data sets that are made here, element by element, in explicit VR little endian (PS3.5 7.1.2)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from scp_server.objects.element_headers import ITEM
from scp_server.objects.vr import CHARACTER_SET_VRS, SHORT_FORM_VRS, encoded_numbers, tag_text

_SPECIFIC_CHARACTER_SET: Final = 0x00080005
_UTF_8: Final = "ISO_IR 192"
_MAX_SHORT_BYTES: Final = 0xFFFE
_SHORT: Final = struct.Struct("<HH2sH")
_LONG: Final = struct.Struct("<HH2sHI")
_ITEM: Final = struct.Struct("<HHI")

Value = str | bytes | Sequence[int | float] | Sequence[Sequence["Element"]]
"""Text (values separated by a backslash), bytes, numbers, or the items of a sequence."""


class Element(NamedTuple):
    """One attribute of a data set or an item."""

    tag: int
    vr: str
    value: Value


def encoded_dataset(elements: Sequence[Element]) -> bytes:
    """The data set of these elements, whatever their order.

    Its text is in UTF-8, and it says so where not all of it is ASCII. Raises ValueError, naming the
    attribute, for a value that its VR cannot have.
    """
    if not all(map(_is_ascii, elements)):
        elements = [*elements, Element(_SPECIFIC_CHARACTER_SET, "CS", _UTF_8)]
    return _encoded(elements)


def _encoded(elements: Iterable[Element]) -> bytes:
    return b"".join(_element(one) for one in sorted(elements, key=lambda one: one.tag))


def _element(element: Element) -> bytes:
    tag, vr = element.tag, element.vr.encode("ascii")
    value = _value(element)
    if vr not in SHORT_FORM_VRS:
        return _LONG.pack(tag >> 16, tag & 0xFFFF, vr, 0, len(value)) + value
    if len(value) > _MAX_SHORT_BYTES:
        raise ValueError(f"{tag_text(tag)} has {len(value)} bytes, and {_MAX_SHORT_BYTES} at most may be")
    return _SHORT.pack(tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def _value(element: Element) -> bytes:
    """Of even length (PS3.5 7.1.1)."""
    value, vr = element.value, element.vr
    if vr == "SQ":
        items = [_encoded(_elements(element.tag, one)) for one in value]
        return b"".join(_ITEM.pack(ITEM >> 16, ITEM & 0xFFFF, len(item)) + item for item in items)
    if isinstance(value, str):
        try:
            encoded = value.encode("utf-8" if vr in CHARACTER_SET_VRS else "ascii")
        except UnicodeEncodeError:
            raise ValueError(f"{tag_text(element.tag)}: a value of VR {vr} is ASCII") from None
        return encoded + (b"\0" if vr == "UI" else b" ") * (len(encoded) % 2)
    if isinstance(value, bytes):
        return value + b"\0" * (len(value) % 2)
    numbers = encoded_numbers(vr, [one for one in value if isinstance(one, int | float)])
    if numbers is None:
        raise ValueError(f"{tag_text(element.tag)}: VR {vr} cannot have {value!r}")
    return numbers


def _elements(tag: int, item: object) -> list[Element]:
    if not isinstance(item, Sequence) or not all(isinstance(one, Element) for one in item):
        raise ValueError(f"{tag_text(tag)}: a sequence has items")
    return list(item)


def _is_ascii(element: Element) -> bool:
    value = element.value
    if isinstance(value, str):
        return value.isascii()
    if element.vr == "SQ" and not isinstance(value, bytes):
        return all(_is_ascii(inner) for item in value for inner in _elements(element.tag, item))
    return True
