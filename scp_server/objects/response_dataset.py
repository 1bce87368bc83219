"""The data sets that answer a query: values of columns and of stored headers, encoded for who asked."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from scp_server.objects.element_headers import ITEM, PIXEL_GROUP
from scp_server.objects.identifier import ITEM_BYTES, SPECIFIC_CHARACTER_SET, Key, located
from scp_server.objects.matching import read_number
from scp_server.objects.raw_header import AttributeSource, RawElement, decode_value
from scp_server.objects.text import decode_text, encode_text
from scp_server.objects.uids import transfer_syntax
from scp_server.objects.vr import (
    CHARACTER_SET_VRS,
    NUMBER_BYTES,
    SHORT_FORM_VRS,
    TEXT_VRS,
    encoded_numbers,
    little_endian_words,
)

AnswerValue = str | int | tuple[str | int, ...] | AttributeSource | None
"""A column's value, or the header (or item) that has the attribute. None is no value."""

_UTF_8: Final = b"ISO_IR 192"
_SHORT_VRS: Final = frozenset(vr.decode("ascii") for vr in SHORT_FORM_VRS)
_LONGEST_SHORT_BYTES: Final = 0xFFFE
_DECIMAL_CHARACTERS: Final = 16


class Response(NamedTuple):
    """One answer."""

    dataset: bytes
    complete: bool
    """False: something was left out, since the header was not given it to keep or its VR cannot have it."""


class _CannotSay(Exception):
    """The character set lacks a character."""


class ResponseDataset:
    """Encodes the answers to one query. Its keys, in ascending order of their tags, are what they consist of.

    Text is in the request's character set where that can say all of it, and in UTF-8 otherwise; where all is
    ASCII none is named.
    """

    def __init__(self, keys: Sequence[Key], transfer_syntax_uid: str, character_set: bytes | None) -> None:
        """Raises ValueError when the keys are out of order."""
        if any(before.tag >= after.tag for before, after in pairwise(keys)):
            raise ValueError("the keys of a response in another order than their tags")
        syntax = transfer_syntax(transfer_syntax_uid)
        self._keys = tuple(keys)
        self._charset_place = sum(key.tag < SPECIFIC_CHARACTER_SET for key in keys)
        charsets = [None, character_set, _UTF_8] if character_set else [None, _UTF_8]
        self._encoders = [_Encoder(syntax.implicit_vr, syntax.little_endian, charset) for charset in charsets]
        self._empty = [self._encoders[0].element(key.tag, key.vr, b"") for key in keys]

    def encode(self, values: Sequence[AnswerValue]) -> Response:
        """One answer; the values are those of the keys, in the same order."""
        for encoder in self._encoders:
            try:
                return self._encode(encoder, values)
            except _CannotSay:
                continue
        raise AssertionError("UTF-8 can say everything")

    def _encode(self, encoder: _Encoder, values: Sequence[AnswerValue]) -> Response:
        parts: list[bytes] = []
        complete = True
        for key, value, empty in zip(self._keys, values, self._empty, strict=True):
            if value is None and not key.private_creator:
                parts.append(empty)
                continue
            part = encoder.answer(key, value)
            parts.append(part or b"")
            complete = complete and part is not None
        if encoder.charset is not None:
            charset = encoder.element(SPECIFIC_CHARACTER_SET, "CS", encoder.charset.rstrip(b" \0"))
            parts.insert(self._charset_place, charset)
        return Response(b"".join(parts), complete)


class _Encoder:
    """Writes elements in one transfer syntax and one character set; None is the default repertoire.

    Values are little endian up to the last moment. What cannot be encoded is None and left out.
    """

    def __init__(self, implicit: bool, little_endian: bool, charset: bytes | None) -> None:
        order = "<" if little_endian else ">"
        self.charset = charset
        self._implicit = implicit
        self._little_endian = little_endian
        self._short = struct.Struct(f"{order}HH2sH").pack
        self._long = struct.Struct(f"{order}HH2sHI").pack
        self._no_vr = struct.Struct(f"{order}HHI").pack

    def element(self, tag: int, vr: str, value: bytes) -> bytes:
        """An element, its value padded to even length (PS3.5 6.2).

        One that is too long for its VR has the VR UN (PS3.5 6.2.2).
        """
        if len(value) & 1:
            value += b" " if vr in TEXT_VRS and vr != "UI" else b"\0"
        if not self._implicit and len(value) > _LONGEST_SHORT_BYTES and vr in _SHORT_VRS:
            vr = "UN"
        if not self._little_endian:
            value = little_endian_words(vr, value, False)
        group, element, length = tag >> 16, tag & 0xFFFF, len(value)
        if self._implicit:
            return self._no_vr(group, element, length) + value
        if vr in _SHORT_VRS:
            return self._short(group, element, vr.encode("latin-1"), length) + value
        return self._long(group, element, vr.encode("latin-1"), 0, length) + value

    def answer(self, key: Key, value: AnswerValue) -> bytes | None:
        """The element that answers a key."""
        if key.is_private_creator:
            return self.element(key.tag, "LO", self._text(key.private_creator or ""))
        if isinstance(value, AttributeSource):
            return self._from_source(key, value)
        encoded = self._column(key.vr, value)
        return None if encoded is None else self.element(key.tag, key.vr, encoded)

    def _column(self, vr: str, value: str | int | tuple[str | int, ...] | None) -> bytes | None:
        if value is None:
            return b""
        if vr in NUMBER_BYTES:
            numbers = [
                read_number(part) if isinstance(part, str) else part
                for part in (value if isinstance(value, tuple) else (value,))
            ]
            return encoded_numbers(vr, [number for number in numbers if number is not None])
        if isinstance(value, tuple):
            value = "\\".join(map(str, value))
        return self._text(value if isinstance(value, str) else str(value))

    def _text(self, text: str) -> bytes:
        if self.charset == _UTF_8:
            return text.encode("utf-8", "replace")
        encoded = encode_text(text, self.charset)
        if encoded is None:
            raise _CannotSay
        return encoded

    def _from_source(self, key: Key, source: AttributeSource) -> bytes | None:
        tag = located(source, key)
        element = None if tag is None else source.get(tag)
        if tag is None or element is None:
            return self.element(key.tag, key.vr, b"")
        if element.value is None or len(element.value) < element.length_bytes:
            return None
        if key.items is not None or _is_sequence(element):
            return self._sequence(key.tag, source.items(tag), key.items or ())
        vr = element.vr if key.vr == "UN" else key.vr
        value = self._converted(element, vr, source)
        return None if value is None else self.element(key.tag, vr, value)

    def _sequence(self, tag: int, items: Iterable[AttributeSource], keys: Sequence[Key]) -> bytes:
        """All items, each with what is asked for, or whole (PS3.4 C.2.2.2.6)."""
        parts: list[bytes] = []
        for item in items:
            answers = (self.answer(key, item) or b"" for key in keys) if keys else self._whole(item)
            content = b"".join(answers)
            parts += (self._no_vr(ITEM >> 16, ITEM & 0xFFFF, len(content)), content)
        return self.element(tag, "SQ", b"".join(parts))

    def _whole(self, source: AttributeSource) -> Iterator[bytes]:
        """All elements of an item that were kept, but for pixel data, in our character set."""
        for element in sorted(source):
            tag, group = element.tag, element.tag >> 16
            if element.value is None or group == PIXEL_GROUP or tag & 0xFFFF == 0:
                continue
            if _is_sequence(element):
                yield self._sequence(tag, source.items(tag), ())
            elif tag != SPECIFIC_CHARACTER_SET:
                yield self.element(tag, element.vr, self._converted(element, element.vr, source) or b"")

    def _converted(self, element: RawElement, vr: str, source: AttributeSource) -> bytes | None:
        """A stored value as a little endian value of a VR; None where that VR cannot have it."""
        stored_vr, raw, little_endian = element.vr, element.value or b"", source.little_endian
        if stored_vr == "UN":
            stored_vr, little_endian = vr, True
        if stored_vr in TEXT_VRS and vr in TEXT_VRS:
            if raw.isascii() and b"\x1b" not in raw:
                return raw.rstrip(b" \0")
            charset = source.specific_character_set if stored_vr in CHARACTER_SET_VRS else None
            return self._text(decode_text(raw, charset).rstrip(" \0"))
        if stored_vr == vr or not (_has_values(stored_vr) or _has_values(vr)):
            return little_endian_words(stored_vr, raw, little_endian)
        values = decode_value(stored_vr, raw, None, little_endian)
        numbers = [read_number(value) if isinstance(value, str) else value for value in values]
        known = [number for number in numbers if number is not None and math.isfinite(number)]
        if len(known) < len(numbers) or (raw and not known):
            return None
        if vr in TEXT_VRS:
            return "\\".join(map(_number_text, known)).encode("ascii")
        return encoded_numbers(
            vr, [int(number) if float(number).is_integer() else number for number in known]
        )


def _has_values(vr: str) -> bool:
    return vr in TEXT_VRS or vr in NUMBER_BYTES or vr == "AT"


def _is_sequence(element: RawElement) -> bool:
    """A sequence, also where its VR is not known (PS3.5 6.2.2)."""
    value = element.value or b""
    return element.vr == "SQ" or (element.vr == "UN" and value.startswith(ITEM_BYTES))


def _number_text(number: int | float) -> str:
    text = str(number)
    return text if len(text) <= _DECIMAL_CHARACTERS or isinstance(number, int) else f"{number:.10g}"
