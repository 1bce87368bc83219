"""A request's data set on its way from the socket to the service that reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from scp_server.errors import AssociationError

COPIED_FRAGMENT_BYTES = 2048
KEPT_ALIVE_AT_MOST = 16
"""So many times its own size may a view keep alive of what was read with it; a smaller one is copied. Else a
peer could have a few counted bytes cost all the uncounted ones around them."""


class DatasetStream:
    """Fragments go in as they arrive, and come out together (`DatasetSource`).

    A fragment that is much of what was read at once is not copied. Those below `COPIED_FRAGMENT_BYTES` wait
    for company, since a view costs more than they do.

    `on_release(size_bytes)` hears of every byte once it is held no longer.
    """

    __slots__ = (
        "_chunks",
        "_discarding",
        "_ended",
        "_error",
        "_joined",
        "_on_release",
        "_pressure",
        "_unreleased_bytes",
        "_waiter",
        "received_bytes",
    )

    def __init__(self, on_release: Callable[[int], None], *, ended: bool) -> None:
        self._chunks: list[memoryview] = []
        self._joined = bytearray()
        self._ended = ended
        self._error: AssociationError | None = None
        self._discarding = False
        self._pressure = False
        self._on_release = on_release
        self._unreleased_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self.received_bytes = 0

    @property
    def ended(self) -> bool:
        """The whole data set has arrived (or there is none)."""
        return self._ended

    @property
    def held_bytes(self) -> int:
        """Received and not yet released."""
        return self._unreleased_bytes

    def push(self, data: memoryview, *, last: bool) -> None:
        """Take a fragment; `last` ends the data set."""
        size_bytes = len(data)
        self.received_bytes += size_bytes
        self._unreleased_bytes += size_bytes
        if last:
            self._ended = True
        if self._discarding:
            self.release(size_bytes)
        elif size_bytes >= COPIED_FRAGMENT_BYTES:
            self._end_joined()
            alive_bytes = len(data.obj) if isinstance(data.obj, bytes | bytearray) else size_bytes
            is_much = size_bytes * KEPT_ALIVE_AT_MOST >= alive_bytes
            self._chunks.append(data if is_much else memoryview(bytes(data)))
        else:
            self._joined += data
            if last or len(self._joined) >= COPIED_FRAGMENT_BYTES:
                self._end_joined()
        if self._chunks or last:
            self._wake()

    def fail(self, error: AssociationError) -> None:
        """The association ended; whoever reads gets `error` once what arrived is read, if it was not all."""
        if not self._ended:
            self._error = error
        self._wake()

    def press(self) -> None:
        """The budget is used up: the reader is asked, by an empty list, to let go of what it holds."""
        if self._unreleased_bytes and not self._discarding:
            self._pressure = True
            self._wake()

    async def chunks(self) -> AsyncIterator[list[memoryview]]:
        """See `DatasetSource.chunks`."""
        while True:
            if self._error is not None or self._pressure:
                self._end_joined()
            if self._chunks:
                chunks, self._chunks = self._chunks, []
                yield chunks
            elif self._ended:
                return
            elif self._error is not None:
                raise self._error
            elif self._pressure:
                self._pressure = False
                yield []
            else:
                await self._wait()

    def release(self, size_bytes: int) -> None:
        """See `DatasetSource.release`."""
        size_bytes = min(size_bytes, self._unreleased_bytes)
        if size_bytes > 0:
            self._unreleased_bytes -= size_bytes
            self._on_release(size_bytes)

    def discard(self) -> None:
        """Nobody reads on: what is held is released, and what still arrives is dropped as it comes."""
        self._discarding = True
        self._chunks.clear()
        self._joined.clear()
        self.release(self._unreleased_bytes)

    async def drain(self) -> None:
        """Discard, and wait for the data set's end. Raises AssociationError when it does not come."""
        self.discard()
        while not self._ended:
            if self._error is not None:
                raise self._error
            await self._wait()

    def _end_joined(self) -> None:
        if self._joined:
            self._chunks.append(memoryview(bytes(self._joined)))
            self._joined.clear()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
