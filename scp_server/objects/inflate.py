"""Inflating a deflated data set as it streams by, within bounds (PS3.5 A.5)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from scp_server.errors import UnreadableDataset

if TYPE_CHECKING:
    from scp_server.protocol.events import Buffer

STEP_BYTES: Final = 65_536
"""Most that is inflated, and looked at, in one step."""
INPUT_STEP_BYTES: Final = 16_384
"""Most that is given to zlib at once: what it has not used yet is copied at every step."""

_GZIP_TRAILER = struct.Struct("<II")


class BoundedInflate:
    """One deflate stream. At most `STEP_BYTES` of inflated data exist at a time.

    More than `max_ratio` inflated bytes per received one, once there are `grace_bytes`, or more than
    `max_bytes` in all (0: no bound), raise UnreadableDataset, as does anything that is no deflate stream.
    """

    __slots__ = (
        "_checksum",
        "_decompressor",
        "_grace_bytes",
        "_max_bytes",
        "_max_ratio",
        "_trailer",
        "inflated_bytes",
        "received_bytes",
    )

    def __init__(self, max_ratio: int, max_bytes: int, grace_bytes: int) -> None:
        self._decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
        self._max_ratio = max_ratio
        self._max_bytes = max_bytes
        self._grace_bytes = grace_bytes
        self._checksum = 0
        self._trailer = b""
        self.received_bytes = 0
        self.inflated_bytes = 0

    def feed(self, data: Buffer) -> Iterator[bytes]:
        """Yield what the next received bytes inflate to, in steps. To be iterated to its end."""
        view = memoryview(data)
        for start in range(0, len(view), INPUT_STEP_BYTES):
            pending: Buffer = view[start : start + INPUT_STEP_BYTES]
            self.received_bytes += len(pending)
            more = not self._decompressor.eof
            while more:
                step = self._inflate(pending)
                if step:
                    yield step
                pending = self._decompressor.unconsumed_tail
                # A full step may leave output inside zlib although all input is used.
                more = len(pending) > 0 or len(step) == STEP_BYTES
                if self._decompressor.eof:
                    more, pending = False, self._decompressor.unused_data
            if self._decompressor.eof:
                self._take_trailer(bytes(pending))

    def finish(self) -> None:
        """The data set has ended. Raises UnreadableDataset when the stream has not, or has more behind it.

        One NUL may follow, to make the length even (PS3.5 A.5); and some archives hold data sets that end
        like a gzip member, with checksum and size, which is tolerated where both are right.
        """
        if not self._decompressor.eof:
            raise UnreadableDataset("deflated data set is cut", offset_bytes=self.inflated_bytes)
        gzip_trailer = _GZIP_TRAILER.pack(self._checksum, self.inflated_bytes & 0xFFFFFFFF)
        if self._trailer not in (b"", b"\0", gzip_trailer, gzip_trailer + b"\0"):
            raise self._trailing()

    def _inflate(self, pending: Buffer) -> bytes:
        try:
            step = self._decompressor.decompress(pending, STEP_BYTES)
        except zlib.error:
            raise UnreadableDataset("not a deflate stream", offset_bytes=self.inflated_bytes) from None
        self.inflated_bytes += len(step)
        self._checksum = zlib.crc32(step, self._checksum)
        used = self.received_bytes - len(self._decompressor.unconsumed_tail)
        if self._max_bytes and self.inflated_bytes > self._max_bytes:
            raise UnreadableDataset(
                f"data set inflates to more than {self._max_bytes} bytes", offset_bytes=self.inflated_bytes
            )
        if self.inflated_bytes > self._grace_bytes and self.inflated_bytes > self._max_ratio * used:
            raise UnreadableDataset(
                f"data set inflates more than {self._max_ratio} to 1", offset_bytes=self.inflated_bytes
            )
        return step

    def _take_trailer(self, data: bytes) -> None:
        """Keep what follows the stream for `finish`, unless it is too long to be any of what may follow."""
        self._trailer += data[: _GZIP_TRAILER.size + 2]
        if len(self._trailer) > _GZIP_TRAILER.size + 1:
            raise self._trailing()

    def _trailing(self) -> UnreadableDataset:
        return UnreadableDataset("bytes after the deflated data set", offset_bytes=self.inflated_bytes)
