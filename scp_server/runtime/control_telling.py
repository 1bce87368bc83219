"""What a long command says before its answer: how far it is, and what it finds."""

from __future__ import annotations

import asyncio
from typing import Any

from scp_server.runtime.control_protocol import ITEMS_IN_LINE, encode_line


class NobodyListens(Exception):
    """Whoever asked has gone away, or does not read what is said."""


class Telling:
    """A `Progress` that is told over a control connection. It is sent from time to time, not with each step.

    Items are held until then: a command that may have many calls `settle` wherever it can wait.
    """

    def __init__(self, writer: asyncio.StreamWriter, request_seconds: float) -> None:
        self._writer = writer
        self._request_seconds = request_seconds
        self._stage = ""
        self._done = 0
        self._total: int | None = None
        self._items: list[dict[str, Any]] = []
        self._clock = asyncio.get_running_loop().time
        self._moved = self._clock()

    @property
    def still_seconds(self) -> float:
        """How long nothing has moved."""
        return self._clock() - self._moved

    def begin(self, stage: str, total: int | None) -> None:
        """See `Progress.begin`."""
        self._stage, self._done, self._total = stage, 0, total
        self._moved = self._clock()

    def advance(self, count: int = 1) -> None:
        """See `Progress.advance`."""
        self._done += count
        self._moved = self._clock()

    def add(self, item: dict[str, Any]) -> None:
        """One more finding, to be sent with the next line of them."""
        self._items.append(item)

    async def settle(self) -> None:
        """Wait until not even a line of findings is held. Raises NobodyListens."""
        if len(self._items) >= ITEMS_IN_LINE:
            await self.send()

    async def send(self) -> None:
        """Say all there is to be said. Raises NobodyListens."""
        try:
            while self._items:
                items, self._items = self._items[:ITEMS_IN_LINE], self._items[ITEMS_IN_LINE:]
                await self._write({"items": items})
            progress = {"stage": self._stage, "done": self._done, "total": self._total}
            await self._write({"progress": progress})
        except (TimeoutError, OSError) as error:
            raise NobodyListens from error

    async def _write(self, document: dict[str, Any]) -> None:
        self._writer.write(encode_line(document))
        async with asyncio.timeout(self._request_seconds):
            await self._writer.drain()
