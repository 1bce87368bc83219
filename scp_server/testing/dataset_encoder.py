"""A small encoder of data sets, made for tests: it writes exactly the elements it is told, odd ones included.

It knows nothing of `scp_server.objects` or pydicom, so that what those read was written by somebody else.
"""

from __future__ import annotations

import struct
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum


class TransferSyntax(StrEnum):
    """The transfer syntaxes the factories can write (PS3.5 Annex A, and DICOS's own)."""

    IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
    EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
    EXPLICIT_VR_LITTLE_ENDIAN_64 = "1.2.840.10008.1.2.1.64"
    """DICOS: explicit little endian where pixel data of VR OW has an 8-byte length."""
    DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
    EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"
    RLE_LOSSLESS = "1.2.840.10008.1.2.5"
    JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
    JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"
    JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
    JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"

    @property
    def is_encapsulated(self) -> bool:
        """Pixel data lies in fragments (PS3.5 A.4)."""
        return self is TransferSyntax.RLE_LOSSLESS or self.startswith("1.2.840.10008.1.2.4.")

    @property
    def is_implicit(self) -> bool:
        """Elements carry no VR (PS3.5 7.1.3)."""
        return self is TransferSyntax.IMPLICIT_VR_LITTLE_ENDIAN

    @property
    def byte_order(self) -> str:
        """`<` or `>`, as struct wants it."""
        return ">" if self is TransferSyntax.EXPLICIT_VR_BIG_ENDIAN else "<"


Scalar = int | float
Value = str | bytes | Scalar | Sequence[Scalar] | Sequence["Item"]


@dataclass(frozen=True, slots=True)
class Element:
    """One data element: text is encoded with the data set's codec, numbers by the VR, bytes taken as is."""

    tag: int
    vr: str
    value: Value = b""
    undefined_length: bool = False
    """Sequences only: write the sequence and its items with undefined length and delimiters (PS3.5 7.5.2)."""


Item = list[Element]

PIXEL_DATA = 0x7FE00010
ITEM = 0xFFFEE000
ITEM_DELIMITATION = 0xFFFEE00D
SEQUENCE_DELIMITATION = 0xFFFEE0DD
UNDEFINED_LENGTH = 0xFFFFFFFF
LONG_VRS = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"})
"""VRs whose explicit header has two reserved bytes and a 32-bit length (PS3.5 7.1.2)."""
LONG_64_VRS = frozenset({"OB", "OF", "OL", "OW"})
"""VRs whose length has 64 bits in DICOS's own transfer syntax."""
NUMBER_CODES = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
WORD_SIZES = {"OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}
"""Bytes a word of these VRs is swapped by in big endian (PS3.5 7.3)."""
_ARRAY_CODES = {2: "H", 4: "I", 8: "Q"}


@dataclass(frozen=True, slots=True)
class DatasetEncoder:
    """Writes elements in one transfer syntax and one character set (a Python codec's name)."""

    transfer_syntax: TransferSyntax = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN
    codec: str = "ascii"

    @property
    def _order(self) -> str:
        return self.transfer_syntax.byte_order

    def encode(self, elements: Iterable[Element]) -> bytes:
        """The elements in the order of their tags, not deflated."""
        return b"".join(self.element(element) for element in sorted(elements, key=lambda e: e.tag))

    def element(self, element: Element) -> bytes:
        """One element, its value padded to even length (PS3.5 7.1)."""
        if element.vr == "SQ":
            return self._sequence(element)
        value = self._value(element)
        return self.header(element.tag, element.vr, len(value)) + value

    def header(self, tag: int, vr: str, length_bytes: int) -> bytes:
        """The bytes before a value: tag, VR where the transfer syntax has one, and length."""
        where = struct.pack(self._order + "HH", tag >> 16, tag & 0xFFFF)
        if self.transfer_syntax.is_implicit or tag >> 16 == ITEM >> 16:
            return where + struct.pack(self._order + "I", length_bytes)
        if vr in LONG_64_VRS and self.transfer_syntax is TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN_64:
            return where + vr.encode("ascii") + struct.pack("<HQ", 0, length_bytes)
        if vr in LONG_VRS:
            return where + vr.encode("ascii") + struct.pack(self._order + "HI", 0, length_bytes)
        return where + vr.encode("ascii") + struct.pack(self._order + "H", length_bytes)

    def fragments(self, fragments: Iterable[bytes], *, vr: str = "OB", offset_table: bytes = b"") -> bytes:
        """Encapsulated pixel data: basic offset table, one item for each fragment, delimiter (PS3.5 A.4)."""
        parts = [
            self.header(PIXEL_DATA, vr, UNDEFINED_LENGTH),
            self.header(ITEM, "", len(offset_table)),
            offset_table,
        ]
        for fragment in fragments:
            parts += (self.header(ITEM, "", len(fragment)), fragment)
        parts.append(self.header(SEQUENCE_DELIMITATION, "", 0))
        return b"".join(parts)

    def _sequence(self, element: Element) -> bytes:
        items = [self.encode(item) for item in _items(element)]
        if element.undefined_length:
            delimiter = self.header(ITEM_DELIMITATION, "", 0)
            body = b"".join(self.header(ITEM, "", UNDEFINED_LENGTH) + item + delimiter for item in items)
            end = self.header(SEQUENCE_DELIMITATION, "", 0)
            return self.header(element.tag, "SQ", UNDEFINED_LENGTH) + body + end
        body = b"".join(self.header(ITEM, "", len(item)) + item for item in items)
        return self.header(element.tag, "SQ", len(body)) + body

    def _value(self, element: Element) -> bytes:
        value, vr = element.value, element.vr
        if isinstance(value, str):
            encoded = value.encode(self.codec)
            return encoded + (b"\0" if vr == "UI" else b" ") * (len(encoded) % 2)
        if isinstance(value, bytes):
            if self._order == ">" and vr in WORD_SIZES:
                value = _swap_words(value, WORD_SIZES[vr])
            return value + b"\0" * (len(value) % 2)
        numbers = [value] if isinstance(value, int | float) else list(value)
        if vr == "AT":
            halves = [half for tag in numbers if isinstance(tag, int) for half in (tag >> 16, tag & 0xFFFF)]
            return struct.pack(f"{self._order}{len(halves)}H", *halves)
        if vr in {"DS", "IS"}:
            return self._value(Element(element.tag, vr, "\\".join(str(number) for number in numbers)))
        return struct.pack(f"{self._order}{len(numbers)}{NUMBER_CODES[vr]}", *numbers)


def deflate(dataset: bytes) -> bytes:
    """A data set as raw deflate, padded to even length (PS3.5 A.5)."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    deflated = compressor.compress(dataset) + compressor.flush()
    return deflated + b"\0" * (len(deflated) % 2)


def rle_frame(pixels: bytes, bytes_per_pixel: int) -> bytes:
    """One grayscale frame of little endian pixels as DICOM RLE, in literal runs only (PS3.5 Annex G)."""
    segments = []
    for plane in reversed(range(bytes_per_pixel)):
        plane_bytes = pixels[plane::bytes_per_pixel]
        runs = [plane_bytes[start : start + 128] for start in range(0, len(plane_bytes), 128)]
        segment = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(segment + b"\0" * (len(segment) % 2))
    offsets, position = [], 64
    for segment in segments:
        offsets.append(position)
        position += len(segment)
    offsets += [0] * (15 - len(offsets))
    return struct.pack("<16I", len(segments), *offsets) + b"".join(segments)


def _items(element: Element) -> list[Item]:
    value = element.value
    if isinstance(value, str | bytes | int | float):
        if value == b"":
            return []
        raise TypeError(f"the value of sequence {element.tag:08X} is no list of items")
    return [item for item in value if isinstance(item, list)]


def _swap_words(value: bytes, word_bytes: int) -> bytes:
    words = array(_ARRAY_CODES[word_bytes], value)
    words.byteswap()
    return words.tobytes()
