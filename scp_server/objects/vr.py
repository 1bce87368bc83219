"""Value representations: the layout of an element's header, and binary values (PS3.5 6.2, 7.1)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final

from scp_server.objects.uids import TransferSyntax

UNDEFINED_LENGTH: Final = 0xFFFFFFFF
UNDEFINED_LONG_LENGTH: Final = 0xFFFFFFFFFFFFFFFF
NEVER: Final = 1 << 80
"""An offset no data set reaches: where something of undefined length would end."""

SHORT_HEADER_BYTES: Final = 8
"""Tag, VR and a 16-bit length; or, without a VR, tag and a 32-bit length."""
LONG_HEADER_BYTES: Final = 12
"""Tag, VR, two reserved bytes and a 32-bit length."""
LONG_64_HEADER_BYTES: Final = 16
"""Tag, VR, two reserved bytes and a 64-bit length (DICOS)."""
PACKED_64_HEADER_BYTES: Final = 14
"""Tag, VR and a 64-bit length, nothing reserved: OD as the DICOS toolkit writes it."""
IMPLICIT_64_HEADER_BYTES: Final = 12
"""Tag and a 64-bit length: the same toolkit's OD in implicit VR."""

SHORT_FORM_VRS: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
"""VRs with a 16-bit length; every other one, known or not, has the long form (PS3.5 7.1.2)."""
LONG_FORM_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

TEXT_VRS: Final = frozenset(
    ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
)
CHARACTER_SET_VRS: Final = frozenset(["LO", "LT", "PN", "SH", "ST", "UC", "UT"])
"""Text that Specific Character Set (0008,0005) applies to (PS3.5 6.1.2.2)."""
SINGLE_VALUED_TEXT_VRS: Final = frozenset(["LT", "ST", "UR", "UT"])
"""Text in which a backslash is a character and not a delimiter."""

NUMBER_CODES = {
    "US": "H",
    "SS": "h",
    "UL": "I",
    "SL": "i",
    "UV": "Q",
    "SV": "q",
    "FL": "f",
    "FD": "d",
}
NUMBER_BYTES: Final = {vr: struct.calcsize(f"<{code}") for vr, code in NUMBER_CODES.items()}
"""Bytes of one number, by the VRs that have binary ones."""
WORD_BYTES: Final = {**NUMBER_BYTES, "AT": 2, "OW": 2, "OL": 4, "OF": 4, "OD": 8, "OV": 8}
"""Bytes of what changes places with the byte order, by VR (PS3.5 7.3)."""

_HEADER_BYTES = dict.fromkeys(SHORT_FORM_VRS, SHORT_HEADER_BYTES) | dict.fromkeys(
    LONG_FORM_VRS, LONG_HEADER_BYTES
)
_HEADER_BYTES_64 = _HEADER_BYTES | dict.fromkeys((b"OB", b"OF", b"OL", b"OW"), LONG_64_HEADER_BYTES)


def header_bytes_by_vr(syntax: TransferSyntax) -> Mapping[bytes, int]:
    """Length of an explicit VR element's header by its VR, for the VRs that are known."""
    return _HEADER_BYTES_64 if syntax.long_lengths else _HEADER_BYTES


def is_possible_vr(vr: bytes) -> bool:
    """Whether two bytes can be the VR of some edition of the standard: two capital letters (PS3.5 7.1.2)."""
    return vr.isalpha() and vr.isupper()


def numbers(vr: str, value: bytes, little_endian: bool) -> list[int | float]:
    """The numbers of a binary value, a rest at its end ignored; none for a VR without numbers."""
    code = NUMBER_CODES.get(vr)
    if code is None:
        return []
    size = struct.calcsize("<" + code)
    count = len(value) // size
    return list(struct.unpack_from(f"{'<' if little_endian else '>'}{count}{code}", value))


def tags_of(value: bytes, little_endian: bool) -> list[int | float]:
    """The tags of a value of VR AT, as 32-bit integers."""
    words = [int(number) for number in numbers("US", value, little_endian)]
    return [high << 16 | low for high, low in zip(words[::2], words[1::2], strict=False)]


def little_endian_words(vr: str, value: bytes, little_endian: bool) -> bytes:
    """A value with the bytes of its words in ascending order; the other way round it is the same."""
    size = WORD_BYTES.get(vr, 1)
    if little_endian or size == 1:
        return value
    whole = len(value) - len(value) % size
    swapped = bytearray(value)
    for byte in range(size):
        swapped[byte:whole:size] = value[size - 1 - byte : whole : size]
    return bytes(swapped)


def encoded_numbers(vr: str, values: Sequence[int | float]) -> bytes | None:
    """Numbers as a little endian value of a VR; None where the VR has none, or not these."""
    code = NUMBER_CODES.get(vr)
    if code is None:
        return None
    try:
        return struct.pack(f"<{len(values)}{code}", *values)
    except (struct.error, OverflowError):
        return None


def tag_text(tag: int) -> str:
    """A tag as the standard writes it: `(0010,0020)`."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"
