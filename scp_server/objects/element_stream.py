"""A data set that arrives in pieces, told to a listener as elements, items and fragments, values streaming.

`ElementWalk` jumps over values and keeps a header, as fast as objects arrive. This reader tells everything
and keeps nothing: what re-encoding and decoding need of objects that were received and judged before. It
believes nothing all the same: damage raises UnreadableDataset, and memory is bounded whatever comes.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from scp_server.errors import CannotTranscode, UnreadableDataset
from scp_server.objects.dictionary import implied_vr
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
    LENGTH_64,
    LENGTH_BIG,
    LENGTH_LITTLE,
    PIXEL_DATA_64_BIT,
    PIXEL_GROUP,
    SEQUENCE_DELIMITER,
    SOP_CLASS_UID,
    long_length,
)
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

STEP_BYTES: Final = 2_048
"""Most that is looked at in one step outside values: 256 empty elements, at some three microseconds each."""
VALUE_STEP_BYTES: Final = 1 << 20
"""The same inside a value, whose bytes may have to be swapped."""
MAX_DEPTH: Final = 64
"""Sequences within sequences; the default of what is received (`limits.max_sequence_depth`) is the same."""
_PIXEL_REPRESENTATION: Final = 0x00280103
_REMEMBERED: Final = frozenset((SOP_CLASS_UID, _PIXEL_REPRESENTATION))
"""Elements whose values decide how others are read."""
_MAX_REMEMBERED_BYTES: Final = 66


class ElementListener(Protocol):
    """Is told what a data set consists of, in order.

    A VR is the stream's, in implicit VR the dictionary's, and empty inside a sequence of VR UN, whose content
    is implicit VR little endian whatever is around it (PS3.5 6.2.2). Lengths are those of the stream;
    UNDEFINED_LENGTH where it has none.
    """

    def element(self, tag: int, vr: bytes, length: int) -> None:
        """An element whose value, of `length` bytes, follows through `value`."""

    def value(self, piece: memoryview) -> None:
        """The next bytes of the last element's or fragment's value; never empty, valid during the call."""

    def sequence(self, tag: int, vr: bytes, length: int) -> None:
        """A sequence begins; VR is SQ, or UN or empty for one of undefined length that is not known."""

    def end_sequence(self, delimited: bool) -> None:
        """It has ended, by a delimiter or by its length."""

    def item(self, length: int) -> None:
        """An item of the innermost sequence begins."""

    def end_item(self) -> None: ...

    def fragments(self, tag: int, vr: bytes) -> None:
        """An encapsulated value begins (PS3.5 A.4)."""

    def fragment(self, length: int) -> None:
        """The next fragment, whose bytes follow through `value`; the first is the offset table."""

    def end_fragments(self) -> None: ...


class _Frame(NamedTuple):
    kind: int
    tag: int
    end: int
    """Where it ends; NEVER when only its delimiter tells."""
    limit: int
    """What it must not reach beyond."""
    implicit: bool
    unknown: bool
    """Inside UN: nothing is known of any element."""


_ELEMENTS, _ITEMS, _FRAGMENTS = range(3)


class ElementReader:
    """Reads one data set, inflated where it was deflated. `dataset_bytes` is its length, where it is known:
    a DICOS object with 64-bit pixels cannot be read without (see `ElementWalk`)."""

    def __init__(
        self, syntax: TransferSyntax, listener: ElementListener, dataset_bytes: int | None = None
    ) -> None:
        self._syntax = syntax
        self._listener = listener
        self._dataset_bytes = dataset_bytes
        self._header_bytes = header_bytes_by_vr(syntax)
        self._frame = _Frame(_ELEMENTS, 0, NEVER, NEVER, syntax.implicit_vr, False)
        self._stack: list[_Frame] = []
        self._signed = [False]
        """Of the data set and of each item around, whether (0028,0103) says that pixels are signed."""
        self._at = 0
        """Offset of the next byte to be read."""
        self._left = 0
        """Bytes of the value at hand that have not come yet."""
        self._carry = b""
        self._remembering = 0
        self._remembered = b""
        self._is_dicos = False

    @property
    def offset_bytes(self) -> int:
        """Where the next byte to be read lies in the data set. While a listener is told of an element or a
        fragment, that is where its value begins."""
        return self._at

    @property
    def depth(self) -> int:
        """How many sequences and items are open: 0 between and in elements of the data set itself."""
        return len(self._stack)

    def feed(self, data: Buffer) -> None:
        """Take the next bytes. Raises UnreadableDataset, CannotTranscode."""
        view = memoryview(self._carry + bytes(data) if self._carry else data)
        position, available = 0, len(view)
        while True:
            if self._left:
                piece = view[position : position + self._left]
                if not piece:
                    break
                self._value(piece)
                position += len(piece)
                if self._left:
                    break
            while self._at >= self._frame.end:
                self._close(delimited=False)
            used = self._header(view, position) if available - position >= SHORT_HEADER_BYTES else 0
            if not used:
                break
            position += used
        self._carry = bytes(view[position:])

    def feeding(self, data: Buffer) -> Generator[None, None, None]:
        """`feed` in steps of about a millisecond at most, between two of which others may have their turn."""
        view = memoryview(data)
        while view:
            size = max(STEP_BYTES, min(self._left, VALUE_STEP_BYTES))
            self.feed(view[:size])
            view = view[size:]
            yield

    def finish(self) -> None:
        """The data set has ended: raises UnreadableDataset unless it is whole."""
        while self._stack and not self._left and self._at >= self._frame.end:
            self._close(delimited=False)
        if self._carry or self._left or self._stack:
            raise UnreadableDataset(f"data set cut at byte {self._at}", offset_bytes=self._at)

    def _value(self, piece: memoryview) -> None:
        self._at += len(piece)
        self._left -= len(piece)
        if self._remembering:
            self._remembered += piece
            if not self._left:
                self._remember()
        self._listener.value(piece)

    def _remember(self) -> None:
        if self._remembering == SOP_CLASS_UID:
            self._is_dicos = self._is_dicos or is_dicos_sop_class(clean_uid(self._remembered))
        else:
            self._signed[-1] = any(self._remembered)
        self._remembering, self._remembered = 0, b""

    # Each reads one header, tells the listener, and returns how many bytes it was: 0 where more are needed.

    def _header(self, data: memoryview, position: int) -> int:
        frame = self._frame
        if frame.kind != _ELEMENTS:
            return self._item(data, position)
        little = frame.implicit or self._syntax.little_endian
        if frame.implicit:
            group, element, length = IMPLICIT_LITTLE(data, position)
            tag, vr, size = group << 16 | element, b"", SHORT_HEADER_BYTES
        else:
            group, element, vr, length = (EXPLICIT_LITTLE if little else EXPLICIT_BIG)(data, position)
            tag, size = group << 16 | element, 0
        if group == ITEM_GROUP:
            return self._delimiter(tag)
        if group in FORBIDDEN_GROUPS:
            raise self._unreadable(tag, "not allowed in a data set")
        if frame.implicit:
            if not frame.unknown:
                vr = implied_vr(tag, self._is_dicos, self._signed[-1]).encode()
        else:
            size = self._header_bytes.get(vr, LONG_HEADER_BYTES)
            if size == LONG_HEADER_BYTES and not is_possible_vr(vr):
                raise self._unreadable(tag, "has no value representation")
            if len(data) - position < size:
                return 0
            if size == LONG_HEADER_BYTES:
                (length,) = (LENGTH_LITTLE if little else LENGTH_BIG)(data, position + 8)
            elif size == LONG_64_HEADER_BYTES:
                in_pixel_data = not self._stack and group >= PIXEL_GROUP
                length, size = long_length(data, position, size, in_pixel_data)
        if tag == PIXEL_DATA_64_BIT and vr == b"OD" and not self._stack and self._is_dicos:
            length, size = self._od_length(data, position, length, size)
            if not size:
                return 0
        self._begin(tag, vr, length, size)
        return size

    def _begin(self, tag: int, vr: bytes, length: int, header_bytes: int) -> None:
        """Tell of an element whose header has been read."""
        frame = self._frame
        start = self._at + header_bytes
        if start > frame.limit or (length != UNDEFINED_LENGTH and start + length > frame.limit):
            raise self._unreadable(tag, f"overruns {tag_text(frame.tag)}")
        if vr == b"SQ" or length == UNDEFINED_LENGTH:
            self._open(tag, vr, length, start)
            return
        if not self._stack and tag == DICOS_VERSION:
            self._is_dicos = True
        if tag in _REMEMBERED and 0 < length <= _MAX_REMEMBERED_BYTES and not frame.unknown:
            self._remembering = tag if tag != SOP_CLASS_UID or not self._stack else 0
        self._at = start
        self._left = length
        self._listener.element(tag, vr, length)

    def _open(self, tag: int, vr: bytes, length: int, start: int) -> None:
        if len(self._stack) // 2 >= MAX_DEPTH:
            raise self._unreadable(tag, f"more than {MAX_DEPTH} sequences deep")
        frame = self._frame
        self._at = start
        end = NEVER if length == UNDEFINED_LENGTH else start + length
        if vr == b"SQ":
            self._push(_ITEMS, tag, end, frame.implicit, False)
            self._listener.sequence(tag, vr, length)
        elif vr == b"UN" or (frame.implicit and (self._stack or tag >> 16 != PIXEL_GROUP)):
            self._push(_ITEMS, tag, end, True, True)
            self._listener.sequence(tag, b"" if frame.unknown else b"UN", length)
        else:
            self._push(_FRAGMENTS, tag, end, False, False)
            self._listener.fragments(tag, vr)

    def _item(self, data: memoryview, position: int) -> int:
        """At an item or fragment, or at the delimiter behind the last (PS3.5 7.5.1, 7.5.2, A.4)."""
        frame = self._frame
        little = frame.implicit or self._syntax.little_endian
        group, element, length = (IMPLICIT_LITTLE if little else IMPLICIT_BIG)(data, position)
        tag = group << 16 | element
        content = self._at + SHORT_HEADER_BYTES
        end = NEVER if length == UNDEFINED_LENGTH else content + length
        if tag == SEQUENCE_DELIMITER and frame.end in (NEVER, content):
            self._at = content
            self._close(delimited=True)
        elif tag != ITEM or (frame.kind == _FRAGMENTS and length == UNDEFINED_LENGTH):
            raise self._unreadable(tag, "where an item should be")
        elif content > frame.limit or (end != NEVER and end > frame.limit):
            raise self._unreadable(tag, f"overruns {tag_text(frame.tag)}")
        elif frame.kind == _FRAGMENTS:
            self._at, self._left = content, length
            self._listener.fragment(length)
        else:
            self._at = content
            self._push(_ELEMENTS, frame.tag, end, frame.implicit, frame.unknown)
            self._signed.append(self._signed[-1])
            self._listener.item(length)
        return SHORT_HEADER_BYTES

    def _delimiter(self, tag: int) -> int:
        """At an element of group FFFE among elements: only an item of undefined length may end here."""
        if not self._stack or tag != ITEM_DELIMITER or self._frame.end != NEVER:
            raise self._unreadable(tag, "inside an item" if self._stack else "outside any sequence")
        if self._at + SHORT_HEADER_BYTES > self._frame.limit:
            raise self._unreadable(tag, f"overruns {tag_text(self._frame.tag)}")
        self._at += SHORT_HEADER_BYTES
        self._close(delimited=True)
        return SHORT_HEADER_BYTES

    def _push(self, kind: int, tag: int, end: int, implicit: bool, unknown: bool) -> None:
        self._stack.append(self._frame)
        self._frame = _Frame(kind, tag, end, min(end, self._frame.limit), implicit, unknown)

    def _close(self, delimited: bool) -> None:
        kind = self._frame.kind
        self._frame = self._stack.pop()
        if kind == _ELEMENTS:
            self._signed.pop()
            self._listener.end_item()
        elif kind == _ITEMS:
            self._listener.end_sequence(delimited)
        else:
            self._listener.end_fragments()

    def _od_length(self, data: memoryview, position: int, length: int, size: int) -> tuple[int, int]:
        """Length and header length of the DICOS toolkit's OD, which may have 64 bits and nothing reserved.

        The reading by which the element ends where the data set does is right, otherwise PS3.5's. A header
        length of 0 asks for more bytes. Raises CannotTranscode where the data set's length is not known.
        """
        if self._dataset_bytes is None:
            raise CannotTranscode("64-bit pixel data in a data set whose length is not known")
        left = self._dataset_bytes - self._at
        if len(data) - position < min(left, LONG_64_HEADER_BYTES):
            return 0, 0
        others = (
            (IMPLICIT_64_HEADER_BYTES,)
            if self._frame.implicit
            else (PACKED_64_HEADER_BYTES, LONG_64_HEADER_BYTES)
        )
        if size + length != left:
            for other in others:
                if other <= left:
                    (found,) = LENGTH_64(data, position + other - 8)
                    if other + found == left:
                        return found, other
        return length, size

    def _unreadable(self, tag: int, what: str) -> UnreadableDataset:
        return UnreadableDataset(
            f"{tag_text(tag)} at byte {self._at}: {what}", offset_bytes=self._at, offending_elements=(tag,)
        )
