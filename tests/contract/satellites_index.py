"""The index as a satellite has it, together with the primary's, which writes it, in one process."""

from __future__ import annotations

import asyncio
import socket

from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.runtime.workers.remote_writer import RemoteWriter, serve_writer


class SatellitesIndex(SqlIndex):
    """Everything but `open` and `close` is what a satellite does."""

    def __init__(self, config: IndexConfig) -> None:
        super().__init__(config)
        self._primary = SqlIndex(config)
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """First the primary's, which makes the database."""
        await self._primary.open()
        here, there = socket.socketpair()
        self._writer = RemoteWriter(there)
        self._serving = asyncio.create_task(serve_writer(here, self._primary))
        await super().open()

    async def close(self) -> None:
        """First the satellite's."""
        await super().close()
        if self._serving is not None:
            await self._serving
            self._serving = None
        await self._primary.close()
