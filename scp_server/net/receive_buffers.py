"""Memory that sockets are read into, used again once nobody looks at it any more.

A transport that makes bytes of each read copies them once more, into memory that the C library may have to
ask the kernel for each time. What is read here stays where the kernel put it, until the storage has it.
"""

from __future__ import annotations

from typing import Final

BUFFER_BYTES: Final = 15 * 16_384
"""Of one buffer. A view of it may be a sixteenth (`KEPT_ALIVE_AT_MOST`): so fragments of PDUs of 16 KiB are
kept as views."""
LEAST_ROOM_BYTES: Final = 65_536
"""A read is offered at least so much, so that data that comes fast takes few reads."""
COPIED_READ_BYTES: Final = 8_192
"""A smaller read is copied: it would hold a buffer for long that others could use."""
MOST_BUFFERS: Final = 32
"""Buffers kept, 7.5 MiB; while all are looked at, further ones are made and not kept."""


class ReceiveBuffers:
    """Lends room for one read at a time: `room`, then `take` of what was read, with nothing in between.

    One after the other fills a buffer: so what is held of it is what was received, but for its rest. For one
    event loop.
    """

    def __init__(self) -> None:
        self._kept: list[bytearray] = []
        self._current = bytearray()
        self._view = memoryview(self._current)
        self._used_bytes = 0

    def room(self) -> memoryview:
        """Where the next read may put its bytes; `LEAST_ROOM_BYTES` or more."""
        if len(self._current) - self._used_bytes < LEAST_ROOM_BYTES:
            self._next()
        return self._view[self._used_bytes :]

    def take(self, size_bytes: int) -> memoryview:
        """What was read into the room: it does not change for as long as the view, or one of it, is held."""
        start = self._used_bytes
        read = self._view[start : start + size_bytes]
        if size_bytes < COPIED_READ_BYTES:
            return memoryview(bytes(read))
        self._used_bytes = start + size_bytes
        return read

    def _next(self) -> None:
        """Go on in the first buffer that nobody looks at: it was used lately, and is in the caches."""
        self._view.release()
        self._used_bytes = 0
        for buffer in self._kept:
            if not _is_looked_at(buffer):
                self._current = buffer
                break
        else:
            self._current = bytearray(BUFFER_BYTES)
            if len(self._kept) < MOST_BUFFERS:
                self._kept.append(self._current)
        self._view = memoryview(self._current)


def _is_looked_at(buffer: bytearray) -> bool:
    """Whether there is a view of it: then its size cannot be changed (bytearray, BufferError)."""
    try:
        last = buffer.pop()
    except BufferError:
        return True
    buffer.append(last)
    return False
