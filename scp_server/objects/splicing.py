"""Replacing places of a data set as it streams by; everything else is handed on as the bytes it was."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from scp_server.errors import UnreadableDataset
from scp_server.objects.reencoding import Reencoder
from scp_server.objects.uids import TransferSyntax

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer

_CHUNK_BYTES: Final = 4 << 20


class Splice(NamedTuple):
    """The bytes from `start` to `end` of a data set (inflated, where it is deflated) become `data`."""

    start: int
    end: int
    data: bytes


class Splicer:
    """Carries out splices, which ascend and do not overlap, on a data set that comes in pieces cut anywhere.

    What it returns are views of what it was given, and the splices' data. Its memory is constant. Raises
    UnreadableDataset where the data set ends before the last splice, or, deflated, is damaged.
    """

    def __init__(self, syntax: TransferSyntax, splices: Sequence[Splice]) -> None:
        self._splices = splices
        self._number = 0
        self._at = 0
        self._skip_to = 0
        plain = replace(syntax, deflated=False)
        self._inflate = Reencoder(syntax, plain, None) if syntax.deflated else None
        self._deflate = Reencoder(plain, syntax, None) if syntax.deflated else None

    @property
    def chunk_bytes(self) -> int:
        """Most to feed at once, so that what it inflates to stays a few MiB."""
        return _CHUNK_BYTES if self._inflate is None else self._inflate.chunk_bytes

    def feeding(self, data: Buffer) -> Generator[None, None, list[Buffer]]:
        """Take the next bytes, in steps of about a millisecond, between two of which others may have their
        turn; returns what comes in their place."""
        if self._inflate is None:
            yield
            return self._spliced(memoryview(data))
        pieces: list[Buffer] = []
        for inflated in (yield from self._inflate.feeding(data)):
            pieces += yield from self._deflated(self._spliced(memoryview(inflated)))
        return pieces

    def finishing(self) -> Generator[None, None, list[Buffer]]:
        """The data set has ended: returns the rest, in such steps."""
        if self._inflate is not None:
            self._inflate.finish()
        last = self._splices[self._number :]
        if self._at < self._skip_to or any(splice.start > self._at for splice in last):
            raise UnreadableDataset(f"data set cut at byte {self._at}", offset_bytes=self._at)
        pieces = yield from self._deflated([splice.data for splice in last])
        if self._deflate is not None:
            pieces += self._deflate.finish()
        return pieces

    def _spliced(self, data: memoryview) -> list[Buffer]:
        begin, end = self._at, self._at + len(data)
        position = min(max(begin, self._skip_to), end)
        pieces: list[Buffer] = []
        while self._number < len(self._splices) and self._splices[self._number].start < end:
            splice = self._splices[self._number]
            self._number += 1
            pieces += [data[position - begin : splice.start - begin], splice.data]
            self._skip_to = splice.end
            position = min(splice.end, end)
        pieces.append(data[position - begin :])
        self._at = end
        return [piece for piece in pieces if piece]

    def _deflated(self, pieces: list[Buffer]) -> Generator[None, None, list[Buffer]]:
        if self._deflate is None:
            yield
            return pieces
        deflated: list[Buffer] = []
        for piece in pieces:
            deflated += yield from self._deflate.feeding(piece)
        return deflated
