"""PDUs from bytes cut anywhere: six bytes of header, then as many of body as it says (PS3.8 9.3.1).

What a header's length field claims is judged before a byte of the body is taken, and nothing is allocated
by it: a buffered body grows with what has arrived.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Protocol

PDU_HEADER = struct.Struct(">BxI")
"""PDU type, and the length of what follows the six bytes of the header."""


class Body(Enum):
    """What is to be done with the body of the PDU whose header has been read."""

    HOLD = "hold"
    """Keep it and hand it over whole."""
    STREAM = "stream"
    """Hand it over as it comes."""
    SKIP = "skip"
    """Drop it, but say when it is over."""
    LOST = "lost"
    """The stream makes no sense any more, or nobody listens: drop everything from here on."""


class PDUHandler(Protocol):
    """Who is told what the bytes say."""

    def handle_header(self, pdu_type: int, length: int) -> Body:
        """A PDU begins."""
        ...

    def handle_body(self, pdu_type: int, body: bytes | None) -> None:
        """A held or skipped PDU is over; `body` is None when it was skipped."""
        ...

    def handle_stream(self, view: memoryview, offset: int, stop: int) -> int:
        """The next bytes of a streamed body are `view[offset:stop]`; returns up to where it took them."""
        ...


class PDUFraming:
    """Cuts a stream of bytes into PDUs and tells `handler` about them."""

    __slots__ = ("_body", "_body_left", "_handler", "_header", "_held", "_pdu_type")

    def __init__(self, handler: PDUHandler) -> None:
        self._handler = handler
        self._header = bytearray()
        self._pdu_type = 0
        self._body = Body.SKIP
        self._body_left = 0
        self._held = bytearray()

    @property
    def in_pdu(self) -> bool:
        """A PDU has begun and is not over yet."""
        return self._body is not Body.LOST and (self._body_left > 0 or bool(self._header))

    def lose(self) -> None:
        """Drop everything from here on."""
        self._body = Body.LOST
        self._body_left = 0
        self._header.clear()
        self._held = bytearray()

    def feed(self, view: memoryview) -> int:
        """Take the next bytes of the stream. Raises what the handler raises.

        Returns how many it took: all of them, unless the handler took less of a streamed body.
        """
        offset, stop = 0, len(view)
        while offset < stop and self._body is not Body.LOST:
            if self._body_left == 0:
                offset = self._read_header(view, offset, stop)
            else:
                end = offset + self._body_left
                end = min(end, stop)
                self._body_left -= end - offset
                if self._body is Body.STREAM:
                    taken = self._handler.handle_stream(view, offset, end)
                    if taken < end:
                        self._body_left += end - taken
                        return taken
                else:
                    self._read_body(view, offset, end)
                offset = end
        return stop

    def _read_header(self, view: memoryview, offset: int, stop: int) -> int:
        header = self._header
        if not header and stop - offset >= PDU_HEADER.size:
            self._pdu_type, length = PDU_HEADER.unpack_from(view, offset)
            end = offset + PDU_HEADER.size
        else:
            end = min(offset + PDU_HEADER.size - len(header), stop)
            header += view[offset:end]
            if len(header) < PDU_HEADER.size:
                return end
            self._pdu_type, length = PDU_HEADER.unpack(header)
            header.clear()
        body = self._handler.handle_header(self._pdu_type, length)
        if body is Body.LOST:
            self.lose()
        else:
            self._body = body
            self._body_left = length
            if length == 0:
                self._end_body(b"")
        return end

    def _read_body(self, view: memoryview, offset: int, end: int) -> None:
        if self._body is Body.HOLD:
            if self._body_left == 0 and not self._held:
                self._end_body(bytes(view[offset:end]))
                return
            self._held += view[offset:end]
        if self._body_left == 0:
            held, self._held = bytes(self._held), bytearray()
            self._end_body(held)

    def _end_body(self, held: bytes) -> None:
        if self._body is Body.HOLD:
            self._handler.handle_body(self._pdu_type, held)
        elif self._body is Body.SKIP:
            self._handler.handle_body(self._pdu_type, None)
