"""Packing a kept header into one piece of bytes, and reading it back with bounds.

::

    "SRH" version | zlib( flags, UID length, transfer syntax UID, number of gaps, gaps..., raw bytes )
"""

from __future__ import annotations

import struct
import zlib
from typing import Final

from scp_server.objects.raw_elements import Gap
from scp_server.objects.uids import TransferSyntax, transfer_syntax

MAX_UNPACKED_BYTES: Final = 16 * 1_048_576
"""Largest header that is unpacked; the tap keeps at most `TapLimits.max_header_bytes` (4 MiB) of one."""

_MAGIC: Final = b"SRH\x01"
_PROLOGUE = struct.Struct("<BHI")
_GAP = struct.Struct("<QQ")
_TRUNCATED: Final = 0x01
_LARGEST_OFFSET: Final = 1 << 62
_LEVEL: Final = 1
_WINDOW_BITS: Final = 13
_MEMORY_LEVEL: Final = 6
"""Small windows: most headers have a few KiB, and setting up large tables costs more than it gains."""


def pack(transfer_syntax_uid: str, raw: bytes, gaps: tuple[Gap, ...], truncated: bool) -> bytes:
    """Compress a header."""
    uid = transfer_syntax_uid.encode("utf-8")
    prologue = _PROLOGUE.pack(_TRUNCATED if truncated else 0, len(uid), len(gaps))
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL)
    body = b"".join((prologue, uid, *(_GAP.pack(*gap) for gap in gaps), raw))
    return b"".join((_MAGIC, compressor.compress(body), compressor.flush()))


def unpack(packed: bytes, max_bytes: int) -> tuple[TransferSyntax, bytes, tuple[Gap, ...], bool]:
    """Read a packed header: transfer syntax, raw bytes, gaps, truncated. Raises ValueError on any damage."""
    if packed[:4] != _MAGIC:
        raise ValueError("not a packed header, or one of another version")
    decompressor = zlib.decompressobj()
    try:
        body = decompressor.decompress(packed[4:], max_bytes + 1)
    except zlib.error as error:
        raise ValueError(f"packed header is damaged: {error}") from None
    if len(body) > max_bytes:
        raise ValueError(f"packed header has more than {max_bytes} bytes")
    if not decompressor.eof or decompressor.unused_data or len(body) < _PROLOGUE.size:
        raise ValueError("packed header is cut or has something behind it")
    flags, uid_length, count = _PROLOGUE.unpack_from(body)
    start = _PROLOGUE.size + uid_length
    if start + count * _GAP.size > len(body):
        raise ValueError("packed header is damaged: lengths do not fit")
    gaps = tuple(Gap(*_GAP.unpack_from(body, start + number * _GAP.size)) for number in range(count))
    raw = body[start + count * _GAP.size :]
    _check_gaps(gaps, len(raw))
    uid = body[_PROLOGUE.size : start].decode("utf-8", "replace")
    return transfer_syntax(uid), raw, gaps, bool(flags & _TRUNCATED)


def _check_gaps(gaps: tuple[Gap, ...], raw_bytes: int) -> None:
    """Gaps are in ascending order, not empty, and lie within the header."""
    before = missing = 0
    for gap in gaps:
        if gap.length_bytes == 0 or gap.offset_bytes < before or gap.offset_bytes - missing > raw_bytes:
            raise ValueError("packed header is damaged: gaps out of order")
        before = gap.offset_bytes + gap.length_bytes
        missing += gap.length_bytes
        if before > _LARGEST_OFFSET:
            raise ValueError("packed header is damaged: gap beyond reach")
