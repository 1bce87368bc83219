"""A push parser that reads a data set's header as it streams by, and walks the rest by its lengths."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scp_server.errors import LocalProtocolError, UnreadableDataset
from scp_server.objects.element_walk import ElementWalk
from scp_server.objects.header_keeper import HeaderKeeper
from scp_server.objects.inflate import BoundedInflate
from scp_server.objects.raw_header import RawHeader
from scp_server.objects.uids import transfer_syntax

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer


STEP_BYTES: Final = 4_096
"""Looked at in one step, beyond the rest of a value: the smallest elements cost a microsecond or two each."""


@dataclass(frozen=True, slots=True)
class TapLimits:
    """Bounds of one data set, each a setting. Sizes in bytes."""

    max_sequence_depth: int = 64
    """Sequences within sequences; a deeper data set is refused."""
    max_value_bytes: int = 65_536
    """Longer values before pixel data are not kept in the header: only their offset and length."""
    max_header_bytes: int = 4_194_304
    """Most that is kept of a header; see `HeaderKeeper` for what is left out beyond."""
    max_elements: int = 1_000_000
    """Elements, items and delimiters before pixel data, at all levels; more are refused."""
    max_indexed_elements: int = 8_192
    """Elements of level 0 that are remembered, at some 200 bytes each; real headers have hundreds."""
    max_references: int = 1_000
    """Referenced instances that are indexed for one object."""
    max_reference_items: int = 5_000
    """Sequence items that are looked at to find them."""
    max_inflate_ratio: int = 200
    """Inflated bytes per received one of a deflated data set; more are refused."""
    inflate_grace_bytes: int = 1_048_576
    """The ratio is not looked at before this: short runs of zeros deflate a thousandfold."""
    max_inflated_bytes: int = 0
    """Inflated size of a deflated data set; 0 is no bound."""


DEFAULT_LIMITS = TapLimits()


class HeaderTap:
    """Reads one data set that arrives in pieces, cut anywhere.

    Give it every piece with `feed`, then `finish`. Both raise UnreadableDataset, which says what is wrong and
    where, when this cannot be a data set of its transfer syntax: cut, overrunning, too deep, not a data set.
    After that the tap is of no more use. Pieces are looked at while `feed` runs and not kept; memory is
    bounded by `limits` whatever arrives.

    An element that ends where the data set does cannot be told from one whose successors were cut off: a cut
    exactly between two elements of level 0 is the one that goes unnoticed.
    """

    def __init__(self, transfer_syntax_uid: str, limits: TapLimits = DEFAULT_LIMITS) -> None:
        self.transfer_syntax = transfer_syntax(transfer_syntax_uid)
        self.dataset_bytes = 0
        """Bytes received so far, as they came (deflated, where the transfer syntax says so)."""
        self._keeper = HeaderKeeper(
            limits.max_value_bytes, limits.max_header_bytes, limits.max_indexed_elements
        )
        self._walks = [
            ElementWalk(self.transfer_syntax, self._keeper, limits.max_sequence_depth, limits.max_elements)
        ]
        self._inflate = (
            BoundedInflate(limits.max_inflate_ratio, limits.max_inflated_bytes, limits.inflate_grace_bytes)
            if self.transfer_syntax.deflated
            else None
        )
        self._header: RawHeader | None = None

    @property
    def header_complete(self) -> bool:
        """The header has ended: group 7FE0 was reached, or `finish` has succeeded."""
        return self._walks[0].keeper is None

    @property
    def header(self) -> RawHeader:
        """The header, once `header_complete`; LocalProtocolError before."""
        if self._header is None:
            if not self.header_complete:
                raise LocalProtocolError("the header has not ended yet")
            keeper = self._keeper
            self._header = RawHeader(
                self.transfer_syntax, bytes(keeper.kept), tuple(keeper.gaps), keeper.index, keeper.truncated
            )
            keeper.kept = bytearray()
        return self._header

    @property
    def offset_bytes(self) -> int:
        """Where the next element begins, in the (inflated) data set; it may not have arrived yet."""
        return self._walks[0].offset_bytes

    def feed(self, data: Buffer) -> None:
        """Take the data set's next bytes. Raises UnreadableDataset."""
        for _ in self.steps(data):
            pass

    def steps(self, data: Buffer) -> Generator[None, None, None]:
        """The same in steps of a millisecond or so, between which others may work; to be iterated to its end.

        Raises UnreadableDataset, and is not to be gone on with then.
        """
        self.dataset_bytes += len(data)
        for piece in (data,) if self._inflate is None else self._inflate.feed(data):
            view = memoryview(piece)
            start = 0
            while start < len(view):
                stop = start + STEP_BYTES + min(walk.skipped_bytes for walk in self._walks)
                self._take(view[start:stop])
                start = stop
                yield

    def finish(self) -> None:
        """The data set has ended. Raises UnreadableDataset when it is cut."""
        if self._inflate is not None:
            self._inflate.finish()
        failure: UnreadableDataset | None = None
        for walk in self._walks:
            try:
                walk.finish()
            except UnreadableDataset as error:
                failure = failure or error
            else:
                self._walks = [walk]
                return
        if failure is not None:
            raise failure

    def _take(self, data: Buffer) -> None:
        """Each reading that is possible takes the bytes; one that fails is dropped while others are left."""
        if len(self._walks) == 1:
            # Nearly always there is one; a second look is needed only where it has just found others.
            walk = self._walks[0]
            try:
                walk.feed(data)
            except UnreadableDataset:
                if not walk.alternatives:
                    raise
                self._walks = walk.alternatives
                return
            if walk.alternatives:
                self._walks = [walk, *walk.alternatives]
                walk.alternatives = []
            return
        left, failure = [], None
        for walk in self._walks:
            try:
                walk.feed(data)
            except UnreadableDataset as error:
                failure = failure or error
            else:
                left.append(walk)
        if failure is not None and not left:
            raise failure
        self._walks = left
