"""Where callbacks look at objects: before anything of them is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.pipeline.instances import ReceivedInstance
from scp_server.services.reception import Reception

_HELD_SECONDS: Final = 0.1
"""How long a received object may stay in memory while callbacks look at it. Most need less, and the object is
written in one visit to a thread; what waits for longer must not use up what other associations need."""


async def inspect(callbacks: ActiveCallbacks, reception: Reception) -> ReceivedInstance:
    """Have callbacks look at an object that has been received whole; returns what they saw. Raises Reject or
    StorageError."""
    instance = reception.received_instance()
    async with _let_go_in_time(reception):
        await callbacks.inspect(instance)
    return instance


@asynccontextmanager
async def _let_go_in_time(reception: Reception) -> AsyncIterator[None]:
    writing: asyncio.Task[None] | None = None

    def begin() -> None:
        nonlocal writing
        writing = asyncio.get_running_loop().create_task(reception.let_go(), name="object out of memory")

    timer = asyncio.get_running_loop().call_later(_HELD_SECONDS, begin)
    try:
        yield
    finally:
        timer.cancel()
        if writing is not None:
            await writing
