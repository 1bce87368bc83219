"""Which bytes of a streaming data set are kept as its header, and within which bounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scp_server.objects.raw_elements import Gap, IndexedElement
from scp_server.objects.vr import NEVER

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer

GAP_COST_BYTES: Final = 128
"""What remembering a value that is not kept counts against the header's bound."""


class HeaderKeeper:
    """Collects the header's bytes as `ElementWalk` passes them.

    Everything is kept up to three marks of `max_header_bytes`: from 3/4 on, the rest of the level-0 element
    at hand is left out when it is a sequence (its end is a gap), so that one huge sequence does not cost the
    attributes behind it; from 15/16 on, values of level-0 elements are left out; at the bound itself the
    header is `truncated`. Offsets count from the data set's first byte. The decision about an element depends
    on its offset and length alone, never on how the stream was cut.
    """

    __slots__ = (
        "_gap_bytes",
        "_header_mark",
        "_keep_from",
        "_max_indexed_elements",
        "_nested_mark",
        "_tail_start",
        "_value_mark",
        "gaps",
        "index",
        "kept",
        "max_value_bytes",
        "truncated",
        "truncated_at",
    )

    def __init__(self, max_value_bytes: int, max_header_bytes: int, max_indexed_elements: int) -> None:
        self._max_indexed_elements = max_indexed_elements
        self.kept = bytearray()
        self.gaps: list[Gap] = []
        self.index: dict[int, IndexedElement] = {}
        self.truncated = False
        self.truncated_at = 0
        self.max_value_bytes = max_value_bytes
        self._header_mark = max_header_bytes
        self._value_mark = max_header_bytes - max_header_bytes // 16
        self._nested_mark = max_header_bytes - max_header_bytes // 4
        self._gap_bytes = 0
        self._keep_from = 0
        self._tail_start: int | None = None

    @property
    def leaving_out(self) -> bool:
        """The rest of the level-0 element at hand, or of the whole header, is not kept."""
        return self._keep_from == NEVER

    @property
    def index_room(self) -> int:
        """How many more level-0 elements are remembered."""
        return self._max_indexed_elements - len(self.index)

    def room(self, nested: bool) -> int:
        """The offset up to which an element may reach and be kept without a second look."""
        if self.leaving_out:
            return NEVER
        mark = self._nested_mark if nested else self._value_mark
        return mark + self._gap_bytes - GAP_COST_BYTES * len(self.gaps)

    def take(self, data: Buffer, base: int, until: int) -> None:
        """Keep what is wanted of `data`, whose first byte has offset `base`, up to offset `until`."""
        if until > self._keep_from:
            self.kept += data[self._keep_from - base : until - base]
            self._keep_from = until

    def leave_out(self, data: Buffer, base: int, start: int, length: int) -> None:
        """Do not keep the value that begins at `start`."""
        self.take(data, base, start)
        self._gap(start, length)

    def make_room(self, data: Buffer, base: int, at: int, value: int, stop: int, nested: bool) -> None:
        """Decide about an element from `at` to `stop` that is too large or reaches beyond `room`."""
        if self.leaving_out:
            return
        if nested and value > self.room(nested=True):
            self.take(data, base, at)
            self._tail_start = at
            self._keep_from = NEVER
        elif not nested and value + GAP_COST_BYTES > self._header_room():
            self.truncate(data, base, at)
        elif stop > value:
            self.leave_out(data, base, value, stop - value)

    def truncate(self, data: Buffer, base: int, at: int) -> None:
        """Keep nothing more: the header has outgrown its bound."""
        self.take(data, base, at)
        self._keep_from = NEVER
        self.truncated = True
        self.truncated_at = at

    def element_ended(self, at: int) -> None:
        """A level-0 sequence has ended before `at`."""
        if self._tail_start is not None:
            start, self._tail_start = self._tail_start, None
            self._gap(start, at - start)

    def settle_length(self, tag: int, start: int, length: int) -> None:
        """A level-0 element of undefined length turned out to have `length` bytes before its delimiter."""
        entry = self.index.get(tag)
        if entry is not None and entry[1] == start:
            self.index[tag] = (entry[0], start, length)

    def peek(self, tag: int, data: Buffer, base: int, until: int) -> bytes | None:
        """The value of a level-0 element that ended before `until`; None where it is absent or not kept."""
        entry = self.index.get(tag)
        if entry is None:
            return None
        self.take(data, base, until)
        _, start, length = entry
        before = sum(gap.length_bytes for gap in self.gaps if gap.offset_bytes < start)
        if any(gap.offset_bytes == start for gap in self.gaps):
            return None
        return bytes(self.kept[start - before : start - before + length])

    def _header_room(self) -> int:
        return self._header_mark + self._gap_bytes - GAP_COST_BYTES * len(self.gaps)

    def _gap(self, start: int, length: int) -> None:
        self.gaps.append(Gap(start, length))
        self._gap_bytes += length
        self._keep_from = start + length
