"""Finding elements and items in the kept bytes of a header, without recursion.

Offsets count from the data set's first byte. What was not kept is a `Gap`; a gap covers either exactly one
value, or the end of a level-0 sequence from some element or item on. The bytes went through `ElementWalk`
before, so that only damage done later (to a packed header) can be found here: it raises ValueError.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections.abc import Iterator
from typing import Final, NamedTuple

from scp_server.objects.element_headers import (
    ITEM,
    ITEM_DELIMITER,
    ITEM_GROUP,
    SEQUENCE_DELIMITER,
    long_length,
)
from scp_server.objects.uids import TransferSyntax
from scp_server.objects.vr import (
    LONG_64_HEADER_BYTES,
    LONG_HEADER_BYTES,
    SHORT_HEADER_BYTES,
    UNDEFINED_LENGTH,
    header_bytes_by_vr,
    is_possible_vr,
)

_MAX_OPEN: Final = 512
"""Frames that may be open at once; a header that came through `HeaderTap` stays far below."""

IndexedElement = tuple[bytes, int, int]
"""VR (empty in implicit VR), offset of the value, and its length without a delimiter."""


class Gap(NamedTuple):
    """Bytes of the header that were not kept."""

    offset_bytes: int
    length_bytes: int


class FoundElement(NamedTuple):
    """An element: its tag, VR as in the stream, where its value lies, and where the next element begins."""

    tag: int
    vr: bytes
    start: int
    length: int
    next: int


class KeptBytes:
    """The kept bytes of a header, addressed by their offsets in the data set."""

    __slots__ = ("_before", "_starts", "gaps", "raw")

    def __init__(self, raw: bytes, gaps: tuple[Gap, ...]) -> None:
        self.raw = raw
        self.gaps = gaps
        self._starts = [gap.offset_bytes for gap in gaps]
        self._before = [0]
        for gap in gaps:
            self._before.append(self._before[-1] + gap.length_bytes)

    @property
    def end(self) -> int:
        """The offset behind everything that was kept or is known to be missing."""
        return len(self.raw) + self._before[-1]

    def position(self, offset: int) -> int:
        """Where in `raw` the byte at `offset` lies; what follows the gap, when it was not kept itself."""
        if not self._starts:
            return offset
        number = bisect_left(self._starts, offset)
        if number and offset < self._starts[number - 1] + self.gaps[number - 1].length_bytes:
            return self._starts[number - 1] - self._before[number - 1]
        return offset - self._before[number]

    def header_position(self, offset: int) -> int:
        """The same for the header of an element or item: ValueError if it lies inside a gap."""
        position = self.position(offset)
        if self._starts and position + self._before[bisect_left(self._starts, offset)] != offset:
            raise ValueError(f"byte {offset} was not kept")
        return position

    def gap_at(self, offset: int) -> Gap | None:
        """The gap that begins at `offset`."""
        if not self._starts:
            return None
        number = bisect_left(self._starts, offset)
        return self.gaps[number] if number < len(self._starts) and self._starts[number] == offset else None

    def value(self, start: int, length: int) -> bytes | None:
        """The bytes of a value; None where they were not kept. A sequence lacks what is not kept inside."""
        if not self._starts:
            return self.raw[start : start + length]
        if length and self.gap_at(start) is not None:
            return None
        return self.raw[self.position(start) : self.position(start + length)]

    def whole(self, start: int, end: int) -> bytes | None:
        """The bytes between two offsets; None where some of them were not kept."""
        found = self.raw[self.position(start) : self.position(end)]
        return found if len(found) == end - start else None


class _Reader:
    """Reads headers of one encoding: that of the transfer syntax, or implicit VR little endian below UN."""

    __slots__ = ("_header_bytes", "_item", "_kept", "_length", "_short", "implicit")

    def __init__(self, kept: KeptBytes, syntax: TransferSyntax, implicit: bool) -> None:
        order = "<" if implicit or syntax.little_endian else ">"
        self.implicit = implicit
        self._kept = kept
        self._header_bytes = header_bytes_by_vr(syntax)
        self._short = struct.Struct(order + "HH2sH").unpack_from
        self._item = struct.Struct(order + "HHI").unpack_from
        self._length = struct.Struct(order + "I").unpack_from

    def item(self, offset: int) -> tuple[int, int]:
        """Tag and length of an item or delimiter."""
        group, element, length = self._item(self._kept.raw, self._kept.header_position(offset))
        return group << 16 | element, length

    def element(self, offset: int) -> tuple[int, bytes, int, int]:
        """Tag, VR, length and offset of the value; `UNDEFINED_LENGTH` where it is undefined."""
        raw, position = self._kept.raw, self._kept.header_position(offset)
        if self.implicit:
            group, element, length = self._item(raw, position)
            return group << 16 | element, b"", length, offset + SHORT_HEADER_BYTES
        group, element, vr, length = self._short(raw, position)
        tag = group << 16 | element
        size = self._header_bytes.get(vr)
        if size == SHORT_HEADER_BYTES:
            return tag, vr, length, offset + SHORT_HEADER_BYTES
        if group == ITEM_GROUP:
            return tag, b"", 0, offset + SHORT_HEADER_BYTES
        if size == LONG_64_HEADER_BYTES:
            length, size = long_length(raw, position, size, is_pixel_data=False)
            return tag, vr, length, offset + size
        if size is None and not is_possible_vr(vr):
            raise ValueError("an element without a VR")
        (length,) = self._length(raw, position + 8)
        return tag, vr, length, offset + LONG_HEADER_BYTES


def elements(
    kept: KeptBytes, syntax: TransferSyntax, implicit: bool, start: int, end: int
) -> Iterator[FoundElement]:
    """The elements between two offsets, in order. Raises ValueError where the bytes make no sense."""
    reader = _Reader(kept, syntax, implicit)
    offset = start
    while offset < end and kept.gap_at(offset) is None:
        try:
            tag, vr, length, value = reader.element(offset)
        except struct.error:
            raise ValueError(f"header cut at byte {offset}") from None
        if tag == ITEM_DELIMITER:
            return
        if length == UNDEFINED_LENGTH:
            length, following = _undefined_length(kept, syntax, implicit, vr, value, end)
        else:
            following = value + length
        if following > end:
            raise ValueError(f"an element overruns at byte {offset}")
        yield FoundElement(tag, vr, value, length, following)
        offset = following


def items(
    kept: KeptBytes, syntax: TransferSyntax, implicit: bool, start: int, end: int
) -> Iterator[tuple[int, int]]:
    """Start and end of the content of each item in a sequence's value. Raises as `elements` does."""
    reader = _Reader(kept, syntax, implicit)
    offset = start
    while offset < end and kept.gap_at(offset) is None:
        try:
            tag, length = reader.item(offset)
        except struct.error:
            raise ValueError(f"header cut at byte {offset}") from None
        content = offset + SHORT_HEADER_BYTES
        if tag == SEQUENCE_DELIMITER:
            return
        if tag != ITEM:
            raise ValueError(f"no item at byte {offset}")
        if length == UNDEFINED_LENGTH:
            length, following = _undefined_item(kept, syntax, implicit, content, end)
        else:
            following = content + length
        if following > end:
            raise ValueError(f"an item overruns at byte {offset}")
        yield content, content + length
        offset = following


def _undefined_length(
    kept: KeptBytes, syntax: TransferSyntax, implicit: bool, vr: bytes, start: int, end: int
) -> tuple[int, int]:
    """Length of a value up to its delimiter, and where the next element begins."""
    return _skip(kept, syntax, [(False, implicit or vr == b"UN")], start, end)


def _undefined_item(
    kept: KeptBytes, syntax: TransferSyntax, implicit: bool, start: int, end: int
) -> tuple[int, int]:
    return _skip(kept, syntax, [(True, implicit)], start, end)


def _skip(
    kept: KeptBytes, syntax: TransferSyntax, frames: list[tuple[bool, bool]], start: int, end: int
) -> tuple[int, int]:
    """Find the delimiter of the outermost frame; a frame is (made of elements?, implicit VR?)."""
    readers = {False: _Reader(kept, syntax, False), True: _Reader(kept, syntax, True)}
    offset = start
    while frames:
        gap = kept.gap_at(offset)
        if gap is not None:
            # The rest of the level-0 sequence was not kept; its own delimiter are the gap's last bytes.
            missing_end = gap.offset_bytes + gap.length_bytes
            return missing_end - SHORT_HEADER_BYTES - start, min(missing_end, end)
        if offset >= end or len(frames) > _MAX_OPEN:
            raise ValueError(f"no delimiter before byte {offset}")
        of_elements, implicit = frames[-1]
        try:
            if of_elements:
                tag, vr, length, value = readers[implicit].element(offset)
                if tag == ITEM_DELIMITER:
                    frames.pop()
                    value, length = offset + SHORT_HEADER_BYTES, 0
                elif length == UNDEFINED_LENGTH:
                    frames.append((False, implicit or vr == b"UN"))
            else:
                tag, length = readers[implicit].item(offset)
                value = offset + SHORT_HEADER_BYTES
                if tag == SEQUENCE_DELIMITER:
                    frames.pop()
                    length = 0
                elif tag != ITEM:
                    raise ValueError(f"no item at byte {offset}")
                elif length == UNDEFINED_LENGTH:
                    frames.append((True, implicit))
        except struct.error:
            raise ValueError(f"header cut at byte {offset}") from None
        if not frames:
            return offset - start, value
        offset = value if length == UNDEFINED_LENGTH else value + length
    raise ValueError("nothing to look for")
