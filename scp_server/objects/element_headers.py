"""The headers of elements and items: tags, how they are unpacked, lengths of 64 bits (PS3.5 7.1, 7.5)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from scp_server.objects.vr import (
    LONG_64_HEADER_BYTES,
    LONG_HEADER_BYTES,
    UNDEFINED_LENGTH,
    UNDEFINED_LONG_LENGTH,
)

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer

PIXEL_GROUP: Final = 0x7FE0
ITEM_GROUP: Final = 0xFFFE
ITEM: Final = 0xFFFEE000
ITEM_DELIMITER: Final = 0xFFFEE00D
SEQUENCE_DELIMITER: Final = 0xFFFEE0DD
SOP_CLASS_UID: Final = 0x00080016
DICOS_VERSION: Final = 0x4010103A
PIXEL_DATA_64_BIT: Final = 0x7FE00012
FORBIDDEN_GROUPS: Final = frozenset((0x0000, 0x0002))
"""Command and File Meta elements, which no data set has (PS3.7 6.3, PS3.10 7.1)."""
LAST_FORBIDDEN_GROUP: Final = 0x0002

EXPLICIT_LITTLE = struct.Struct("<HH2sH").unpack_from
EXPLICIT_BIG = struct.Struct(">HH2sH").unpack_from
IMPLICIT_LITTLE = struct.Struct("<HHI").unpack_from
"""Elements without a VR; items and delimiters, too."""
IMPLICIT_BIG = struct.Struct(">HHI").unpack_from
LENGTH_LITTLE = struct.Struct("<I").unpack_from
LENGTH_BIG = struct.Struct(">I").unpack_from
LENGTH_64 = struct.Struct("<Q").unpack_from


def long_length(data: Buffer, position: int, header_bytes: int, is_pixel_data: bool) -> tuple[int, int]:
    """The 64-bit length (DICOS) of the element at `position`, and how long its header is.

    Under the transfer syntax with such lengths some write the usual 32-bit one all the same: it is taken for
    that where it is 'undefined', and anywhere but in pixel data where 64 bits would mean 4 GiB or more.
    """
    (length,) = LENGTH_64(data, position + header_bytes - 8)
    if length == UNDEFINED_LONG_LENGTH:
        return UNDEFINED_LENGTH, header_bytes
    if header_bytes == LONG_64_HEADER_BYTES:
        short = length & UNDEFINED_LENGTH
        if short == UNDEFINED_LENGTH or (length != short and not is_pixel_data):
            return short, LONG_HEADER_BYTES
    return length, header_bytes
