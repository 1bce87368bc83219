"""Walking through the elements of a data set that arrives in pieces (PS3.5 7).

The walk has an explicit stack of frames and never recurses::

    data set ── ELEMENTS ──(sequence)──> ITEMS ──(item)──> ELEMENTS ──(sequence)──> ...
                         └─(other undefined length)──> FRAGMENTS

A frame of defined length ends at its end, one of undefined length at its delimiter. Nothing may reach beyond
`limit`, the nearest end of defined length around it. All that is remembered between two pieces is the stack,
the offset at which the next element begins, and the first bytes of an element header that was cut.
"""

from __future__ import annotations

import copy
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

from scp_server.errors import UnreadableDataset
from scp_server.objects.dictionary import sequence_tags
from scp_server.objects.element_headers import (
    DICOS_VERSION,
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    FORBIDDEN_GROUPS,
    IMPLICIT_BIG,
    IMPLICIT_LITTLE,
    ITEM,
    ITEM_DELIMITER,
    ITEM_GROUP,
    LAST_FORBIDDEN_GROUP,
    LENGTH_64,
    LENGTH_BIG,
    LENGTH_LITTLE,
    PIXEL_DATA_64_BIT,
    PIXEL_GROUP,
    SEQUENCE_DELIMITER,
    SOP_CLASS_UID,
    long_length,
)
from scp_server.objects.header_keeper import HeaderKeeper
from scp_server.objects.raw_elements import IndexedElement
from scp_server.objects.uids import TransferSyntax, clean_uid, is_dicos_sop_class
from scp_server.objects.vr import (
    IMPLICIT_64_HEADER_BYTES,
    LONG_64_HEADER_BYTES,
    LONG_HEADER_BYTES,
    NEVER,
    PACKED_64_HEADER_BYTES,
    SHORT_HEADER_BYTES,
    UNDEFINED_LENGTH,
    header_bytes_by_vr,
    is_possible_vr,
    tag_text,
)

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer


class FrameKind(IntEnum):
    """What a frame of the walk consists of."""

    ELEMENTS = 0
    """Data elements: the data set itself, or an item of a sequence."""
    ITEMS = 1
    """The items of a sequence (PS3.5 7.5)."""
    FRAGMENTS = 2
    """Items of bytes: an encapsulated value (PS3.5 A.4)."""


class _Frame(NamedTuple):
    kind: FrameKind
    end: int
    """Where it ends; NEVER when only its delimiter or the data set's end tells."""
    limit: int
    """What it must not reach beyond."""
    implicit: bool
    """Elements have no VR; inside UN they are little endian, too, whatever is around it (PS3.5 6.2.2)."""
    tag: int
    start: int
    """Where its content begins."""


def _unreadable(tag: int, at: int, what: str) -> UnreadableDataset:
    return UnreadableDataset(
        f"{tag_text(tag)} at byte {at}: {what}", offset_bytes=at, offending_elements=(tag,)
    )


class ElementWalk:
    """Walks one data set (inflated, where it was deflated), as explained above.

    While a `keeper` is there it collects the header; it is let go at the first level-0 element of group 7FE0
    or above, from where on only lengths are followed.

    `alternatives` gets further walks where a DICOS object leaves two readings of a length open: they have
    taken what this one has, and must be fed what follows, too.
    """

    def __init__(
        self, syntax: TransferSyntax, keeper: HeaderKeeper, max_depth: int, max_elements: int
    ) -> None:
        self.keeper: HeaderKeeper | None = keeper
        self.header_end = 0
        """Offset of the first element after the header, once `keeper` is None."""
        self.alternatives: list[ElementWalk] = []
        self._syntax = syntax
        self._max_depth = max_depth
        self._max_elements = max_elements
        self._elements = 0
        self._header_bytes = header_bytes_by_vr(syntax)
        self._od_header_bytes = 0
        self._od_is_settled = False
        self._is_dicos: bool | None = None
        self._sop_class_end = 0
        self._next = 0
        self._seen = 0
        self._carry = b""
        self._starved = False
        self._frame = _Frame(FrameKind.ELEMENTS, NEVER, NEVER, syntax.implicit_vr, 0, 0)
        self._stack: list[_Frame] = []

    @property
    def offset_bytes(self) -> int:
        """Where the next element begins; it may not have arrived yet."""
        return self._next

    @property
    def skipped_bytes(self) -> int:
        """How many of the next bytes lie inside a value and need not be looked at."""
        return max(0, self._next - self._seen)

    @property
    def is_dicos(self) -> bool:
        """The header (as far as it is known) names a DICOS SOP class or a DICOS version."""
        return bool(self._is_dicos)

    def feed(self, data: Buffer) -> None:
        """Take the next bytes. Inside a value this costs nothing. Raises UnreadableDataset."""
        carried = len(self._carry)
        base = self._seen - carried
        self._seen += len(data)
        keeper = self.keeper
        if self._next < self._seen:
            if carried:
                data = self._carry + bytes(data)
            position = self._walk(data, self._next - base, base)
            self._next = base + position
            self._carry = bytes(data[position:])
            keeper = self.keeper
        if keeper is not None:
            keeper.take(data, base, min(self._next, self._seen))

    def finish(self) -> None:
        """The data set has ended: raise UnreadableDataset unless it ends with an element of level 0."""
        if self._carry:
            raise UnreadableDataset(
                f"data set cut inside an element header at byte {self._next}", offset_bytes=self._next
            )
        if self._next > self._seen:
            missing = self._next - self._seen
            raise UnreadableDataset(
                f"data set cut at byte {self._seen}: {missing} bytes are missing", offset_bytes=self._seen
            )
        while self._stack and self._next >= self._frame.end:
            self._close(self._next, self._next)
        if self._stack:
            raise UnreadableDataset(
                f"data set cut inside {tag_text(self._frame.tag)} at byte {self._seen}",
                offset_bytes=self._seen,
                offending_elements=(self._frame.tag,),
            )
        if self.keeper is not None:
            self._end_header(b"", self._seen, self._seen)

    # The steps: each walks within one frame and returns the position it has reached in `data`, which may lie
    # beyond its end. A step that needs bytes which are not there yet sets `_starved`.

    def _walk(self, data: Buffer, position: int, base: int) -> int:
        self._starved = False
        while not self._starved:
            frame = self._frame
            if base + position >= frame.end:
                self._close(base + position, base + position)
            elif len(data) - position < SHORT_HEADER_BYTES:
                break
            elif frame.kind is FrameKind.ITEMS:
                position = self._items(data, position, base)
            elif frame.kind is FrameKind.FRAGMENTS:
                position = self._fragments(data, position, base)
            elif frame.implicit:
                position = self._implicit_elements(data, position, base)
            else:
                position = self._explicit_elements(data, position, base)
        return position

    def _explicit_elements(self, data: Buffer, position: int, base: int) -> int:
        """The hot loop: everything it needs is local, everything rare is elsewhere."""
        available = len(data)
        nested = bool(self._stack)
        last = min(available - SHORT_HEADER_BYTES, self._frame.end - base - 1)
        limit = self._frame.limit - base
        little = self._syntax.little_endian
        unpack = EXPLICIT_LITTLE if little else EXPLICIT_BIG
        unpack_length = LENGTH_LITTLE if little else LENGTH_BIG
        header_bytes = self._header_bytes.get
        index, room, longest, most = self._bounds(nested, base)
        elements = self._elements
        while position <= last:
            group, element, vr, length = unpack(data, position)
            tag = group << 16 | element
            if group >= PIXEL_GROUP or group <= LAST_FORBIDDEN_GROUP:
                if group == ITEM_GROUP:
                    self._elements = elements
                    return self._delimiter(tag, data, position, base)
                if self._special_group(tag, vr == b"OD", data, position, base):
                    index, room, longest, most = self._bounds(nested, base)
                    header_bytes = self._header_bytes.get
            if elements >= most:
                self._elements = elements
                self._many_elements(data, base, base + position, nested)
                index, room, longest, most = self._bounds(nested, base)
            elements += 1
            size = header_bytes(vr) or self._unknown_vr(vr, tag, base + position)
            value = position + size
            if size != SHORT_HEADER_BYTES:
                if value > available:
                    self._starved = True
                    elements -= 1
                    break
                if size == LONG_HEADER_BYTES:
                    (length,) = unpack_length(data, position + 8)
                else:
                    in_pixel_data = not nested and self.keeper is None
                    length, size = long_length(data, position, size, in_pixel_data)
                    value = position + size
                if length == UNDEFINED_LENGTH or vr == b"SQ":
                    self._elements = elements
                    self._open(tag, vr, length, data, base, base + position, base + value)
                    return value
            stop = value + length
            if stop > limit:
                raise self._overrun(tag, base + position)
            if length > longest or stop > room:
                self._make_room(data, base, base + position, base + value, base + stop)
                index, room, longest, most = self._bounds(nested, base)
            if index is not None:
                index.setdefault(tag, (vr, base + value, length))
            position = stop
        self._elements = elements
        return position

    def _implicit_elements(self, data: Buffer, position: int, base: int) -> int:
        """The same where elements have no VR: a tag and a 32-bit length, always little endian."""
        nested = bool(self._stack)
        last = min(len(data) - SHORT_HEADER_BYTES, self._frame.end - base - 1)
        limit = self._frame.limit - base
        sequences = self._known_sequences(data, base, base + position)
        index, room, longest, most = self._bounds(nested, base)
        elements = self._elements
        while position <= last:
            group, element, length = IMPLICIT_LITTLE(data, position)
            tag = group << 16 | element
            value = position + SHORT_HEADER_BYTES
            if group >= PIXEL_GROUP or group <= LAST_FORBIDDEN_GROUP:
                if group == ITEM_GROUP:
                    self._elements = elements
                    return self._delimiter(tag, data, position, base)
                if self._special_group(tag, True, data, position, base):
                    sequences = self._known_sequences(data, base, base + position)
                    index, room, longest, most = self._bounds(nested, base)
                if tag == PIXEL_DATA_64_BIT and self._od_header_bytes == IMPLICIT_64_HEADER_BYTES:
                    value = position + IMPLICIT_64_HEADER_BYTES
                    if value > len(data):
                        self._starved = True
                        break
                    (length,) = LENGTH_64(data, position + 4)
            if elements >= most:
                self._elements = elements
                self._many_elements(data, base, base + position, nested)
                index, room, longest, most = self._bounds(nested, base)
            elements += 1
            if length == UNDEFINED_LENGTH or tag in sequences:
                self._elements = elements
                self._open(tag, b"", length, data, base, base + position, base + value)
                return value
            stop = value + length
            if stop > limit:
                raise self._overrun(tag, base + position)
            if length > longest or stop > room:
                self._make_room(data, base, base + position, base + value, base + stop)
                index, room, longest, most = self._bounds(nested, base)
            if index is not None:
                index.setdefault(tag, (b"", base + value, length))
            position = stop
            if tag == SOP_CLASS_UID and index is not None and not self._sop_class_end:
                # From here on it is known whose dictionary tells which elements are sequences.
                self._sop_class_end = base + stop
                break
        self._elements = elements
        return position

    def _items(self, data: Buffer, position: int, base: int) -> int:
        """At an item of a sequence, or at its delimiter (PS3.5 7.5.1, 7.5.2)."""
        frame = self._frame
        little = frame.implicit or self._syntax.little_endian
        group, element, length = (IMPLICIT_LITTLE if little else IMPLICIT_BIG)(data, position)
        tag = group << 16 | element
        at = base + position
        content = at + SHORT_HEADER_BYTES
        if content > frame.limit:
            raise self._overrun(tag, at)
        self._count_item(data, base, at, content)
        if tag == ITEM:
            end = NEVER if length == UNDEFINED_LENGTH else content + length
            if end != NEVER and end > frame.limit:
                raise self._overrun(tag, at)
            self._push(FrameKind.ELEMENTS, end, frame.implicit, frame.tag, content)
        elif tag == SEQUENCE_DELIMITER and frame.end in (NEVER, content):
            # Some devices delimit a sequence that has a length, too: no harm where the two agree.
            self._close(at, content)
        else:
            raise _unreadable(tag, at, "where an item should be")
        return content - base

    def _fragments(self, data: Buffer, position: int, base: int) -> int:
        """The fragments of an encapsulated value, up to its delimiter (PS3.5 A.4)."""
        frame = self._frame
        keeper = self.keeper
        unpack = IMPLICIT_LITTLE if self._syntax.little_endian else IMPLICIT_BIG
        last = len(data) - SHORT_HEADER_BYTES
        while position <= last:
            group, element, length = unpack(data, position)
            tag = group << 16 | element
            at = base + position
            content = at + SHORT_HEADER_BYTES
            if content > frame.limit:
                raise self._overrun(tag, at)
            if keeper is not None:
                self._count_item(data, base, at, content)
            if tag == SEQUENCE_DELIMITER:
                self._close(at, content)
                return content - base
            if tag != ITEM or length == UNDEFINED_LENGTH:
                raise _unreadable(tag, at, "where a fragment should be")
            stop = content + length
            if stop > frame.limit:
                raise self._overrun(tag, at)
            if keeper is not None and (length > keeper.max_value_bytes or stop > keeper.room(nested=True)):
                keeper.make_room(data, base, at, content, stop, nested=True)
            position = stop - base
        return position

    def _delimiter(self, tag: int, data: Buffer, position: int, base: int) -> int:
        """At an element of group FFFE among elements: only an item of undefined length may end here."""
        frame, at = self._frame, base + position
        content = at + SHORT_HEADER_BYTES
        if not self._stack:
            raise _unreadable(tag, at, "outside any sequence")
        if tag != ITEM_DELIMITER or frame.end != NEVER:
            raise _unreadable(tag, at, "inside an item")
        if content > frame.limit:
            raise self._overrun(tag, at)
        self._count_item(data, base, at, content)
        self._close(at, content)
        return content - base

    # What the steps share. Offsets are the data set's.

    def _push(self, kind: FrameKind, end: int, implicit: bool, tag: int, start: int) -> None:
        limit = self._frame.limit
        self._stack.append(self._frame)
        self._frame = _Frame(kind, end, end if end < limit else limit, implicit, tag, start)

    def _close(self, content_end: int, at: int) -> None:
        """The frame ends; the element after it begins at `at`."""
        frame = self._frame
        self._frame = self._stack.pop()
        keeper = self.keeper
        if keeper is not None and not self._stack:
            if frame.end == NEVER:
                keeper.settle_length(frame.tag, frame.start, content_end - frame.start)
            keeper.element_ended(at)

    def _open(self, tag: int, vr: bytes, length: int, data: Buffer, base: int, at: int, start: int) -> None:
        """A sequence or an encapsulated value begins (PS3.5 7.5, A.4, and 6.2.2 for UN)."""
        frame = self._frame
        end = NEVER if length == UNDEFINED_LENGTH else start + length
        if start > frame.limit or (end != NEVER and end > frame.limit):
            raise self._overrun(tag, at)
        if len(self._stack) // 2 >= self._max_depth:
            raise _unreadable(tag, at, f"more than {self._max_depth} sequences deep")
        keeper = self.keeper
        if keeper is not None:
            nested = bool(self._stack)
            if start > keeper.room(nested):
                keeper.make_room(data, base, at, start, start, nested)
            if not nested and not keeper.truncated:
                keeper.index.setdefault(tag, (vr, start, length))
        if vr == b"SQ":
            self._push(FrameKind.ITEMS, end, False, tag, start)
        elif vr == b"UN" or (vr == b"" and not (tag >> 16 == PIXEL_GROUP and not self._stack)):
            self._push(FrameKind.ITEMS, end, True, tag, start)
        else:
            self._push(FrameKind.FRAGMENTS, end, False, tag, start)

    def _special_group(self, tag: int, may_be_od: bool, data: Buffer, position: int, base: int) -> bool:
        """At a group below 0003 or from 7FE0 on. True where the header may have ended here."""
        if tag >> 16 in FORBIDDEN_GROUPS:
            raise _unreadable(tag, base + position, "not allowed in a data set")
        if tag >> 16 < PIXEL_GROUP or self._stack:
            return False
        if self.keeper is not None:
            self._end_header(data, base, base + position)
        if tag == PIXEL_DATA_64_BIT and may_be_od and self.is_dicos and not self._od_is_settled:
            self._try_other_lengths(data[position:], base + position)
        return True

    def _try_other_lengths(self, data: Buffer, at: int) -> None:
        """Let further walks read the DICOS toolkit's (7FE0,0012) OD, whose length has 64 bits.

        Files were seen with the length right behind the VR (or, in implicit VR, behind the tag); two reserved
        bytes before it are tried, too, and this walk reads what PS3.5 7.1.2 says. No byte tells which is
        meant: the reading by which the data set ends cleanly is the right one.
        """
        self._od_is_settled = True
        if self._syntax.implicit_vr:
            others: tuple[int, ...] = (IMPLICIT_64_HEADER_BYTES,)
        else:
            others = (PACKED_64_HEADER_BYTES, LONG_64_HEADER_BYTES)
        for header_bytes in others:
            other = copy.copy(self)
            other.alternatives = []
            other._stack = []
            other._header_bytes = {**self._header_bytes, b"OD": header_bytes}
            other._od_header_bytes = header_bytes
            other._next = other._seen = at
            other._carry = b""
            try:
                other.feed(data)
            except UnreadableDataset:
                continue
            self.alternatives.append(other)

    def _end_header(self, data: Buffer, base: int, at: int) -> None:
        keeper = self.keeper
        if keeper is not None:
            keeper.take(data, base, at)
            if not self._is_dicos:
                sop_class = clean_uid(keeper.peek(SOP_CLASS_UID, data, base, at) or b"")
                self._is_dicos = is_dicos_sop_class(sop_class) or DICOS_VERSION in keeper.index
        self.header_end = at
        self.keeper = None

    def _known_sequences(self, data: Buffer, base: int, at: int) -> frozenset[int]:
        """The tags whose elements of defined length are sequences, where the VR does not say so.

        None below UN, where any element may be anything, and none after the header.
        """
        keeper = self.keeper
        if keeper is None or not self._syntax.implicit_vr:
            return frozenset()
        if self._is_dicos is None and 0 < self._sop_class_end <= at:
            self._is_dicos = is_dicos_sop_class(clean_uid(keeper.peek(SOP_CLASS_UID, data, base, at) or b""))
        return sequence_tags(bool(self._is_dicos))

    def _bounds(self, nested: bool, base: int) -> tuple[dict[int, IndexedElement] | None, int, int, int]:
        """For a step: the index to fill (or None), the kept header's room as a position, the longest value
        that is kept, and the number of elements at which to look again."""
        keeper = self.keeper
        if keeper is None:
            return None, NEVER, NEVER, NEVER
        longest = NEVER if keeper.leaving_out else keeper.max_value_bytes
        room = keeper.room(nested) - base
        if nested or keeper.truncated:
            return None, room, longest, self._max_elements
        return keeper.index, room, longest, min(self._max_elements, self._elements + keeper.index_room)

    def _make_room(self, data: Buffer, base: int, at: int, value: int, stop: int) -> None:
        if self.keeper is not None:
            self.keeper.make_room(data, base, at, value, stop, bool(self._stack))

    def _many_elements(self, data: Buffer, base: int, at: int, nested: bool) -> None:
        """So many elements that one more has to be thought about."""
        if self._elements >= self._max_elements:
            raise UnreadableDataset(f"more than {self._max_elements} elements at byte {at}", offset_bytes=at)
        keeper = self.keeper
        if keeper is not None and not nested and not keeper.truncated and keeper.index_room <= 0:
            keeper.truncate(data, base, at)

    def _count_item(self, data: Buffer, base: int, at: int, content: int) -> None:
        """Count an item or delimiter of the header, and see whether its eight bytes are still kept."""
        keeper = self.keeper
        if keeper is None:
            return
        if self._elements >= self._max_elements:
            raise UnreadableDataset(f"more than {self._max_elements} elements at byte {at}", offset_bytes=at)
        self._elements += 1
        if content > keeper.room(nested=True):
            keeper.make_room(data, base, at, content, content, nested=True)

    def _unknown_vr(self, vr: bytes, tag: int, at: int) -> int:
        """Header length for a VR this edition does not know (PS3.5 7.1.2), if it can be one."""
        if not is_possible_vr(vr):
            raise _unreadable(tag, at, "has no value representation")
        return LONG_HEADER_BYTES

    def _overrun(self, tag: int, at: int) -> UnreadableDataset:
        return _unreadable(tag, at, f"overruns {tag_text(self._frame.tag)}")
