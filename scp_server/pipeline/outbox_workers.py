"""The tasks that deliver for one subscription: no more than it takes at once, and no more than are of use."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from scp_server.observability.logs import get_logger

log = get_logger(__name__)

_TURN_SECONDS: Final = 0.005
"""How long deliveries that never wait may keep the event loop."""


class OutboxWorkers:
    """Each task awaits `deliver_next` for as long as `has_work`, which also says whether it may. `wake` is
    called when one of them has ended and something `waits` or did, or lets others go first."""

    def __init__(
        self,
        name: str,
        concurrency: int,
        has_work: Callable[[], bool],
        waits: Callable[[], bool],
        deliver_next: Callable[[], Awaitable[None]],
        wake: Callable[[], None],
    ) -> None:
        self._name = name
        self._concurrency = concurrency
        self._has_work = has_work
        self._waits = waits
        self._deliver_next = deliver_next
        self._wake = wake
        self._tasks: set[asyncio.Task[None]] = set()
        self._more_later: asyncio.Handle | None = None

    @property
    def are_all_busy(self) -> bool:
        """Whether the subscriber takes no more at once."""
        return len(self._tasks) >= self._concurrency

    def begin(self) -> None:
        """Deliver what there is."""
        if self.are_all_busy or not self._has_work():
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._work(), name=f"outbox {self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if self._more_later is None and self._concurrency > 1:
            # Most deliveries end without waiting: another task is worth it only once one does.
            self._more_later = loop.call_soon(self._more)

    def _more(self) -> None:
        self._more_later = None
        self.begin()

    def _ended(self, task: asyncio.Task[None]) -> None:
        was_full = self.are_all_busy
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("outbox.failed", subscription=self._name, error=type(error).__name__)
        # Elsewise what had to be told has been, when the last of its deliveries was done.
        if was_full or self._waits():
            self._wake()

    async def _work(self) -> None:
        turn_ends = time.perf_counter() + _TURN_SECONDS
        while self._has_work():
            await self._deliver_next()
            if time.perf_counter() > turn_ends:
                self._wake()
                await asyncio.sleep(0)
                turn_ends = time.perf_counter() + _TURN_SECONDS

    def stop(self) -> None:
        """Begin nothing more; there is no work either."""
        if self._more_later is not None:
            self._more_later.cancel()

    async def end(self, seconds: float) -> None:
        """Wait for what is under way; after `seconds` it is broken off."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
