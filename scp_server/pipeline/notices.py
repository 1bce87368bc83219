"""Tells callbacks what has happened, without anybody waiting for them; what does not fit in is dropped."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from scp_server.observability.logs import get_logger
from scp_server.observability.measures import CallbackCounts, CallbackOutcome
from scp_server.pipeline.running import CallbackFailed, CallbackRunner, Logged

log = get_logger(__name__)


class Notices:
    """What one callback is still to be told, in order, as many at once as its concurrency allows."""

    def __init__(self, runner: CallbackRunner, counts: CallbackCounts, max_waiting: int) -> None:
        self.runner = runner
        self._counts = counts
        self._max_waiting = max_waiting
        self._waiting: deque[Logged] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_dropping = False

    def tell(self, subject: Logged) -> None:
        """Have the callback called with `subject`, unless too many wait already. Never raises."""
        if len(self._waiting) >= self._max_waiting:
            self._counts.outcomes[CallbackOutcome.DROPPED] += 1
            if not self._is_dropping:
                # One line for as long as it goes on; the metric has the number.
                self._is_dropping = True
                log.warning(
                    "callback.notices_dropped",
                    callback=self.runner.callback.name,
                    waiting=len(self._waiting),
                )
            return
        self._is_dropping = False
        self._waiting.append(subject)
        self._counts.waiting = len(self._waiting)
        if len(self._tasks) < self.runner.concurrency:
            name = f"callback {self.runner.callback.name}"
            task = asyncio.get_running_loop().create_task(self._work(), name=name)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def drain(self, seconds: float) -> None:
        """Let what waits be told, for `seconds` at most; what is left then is dropped."""
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=seconds)
        if self._tasks:
            self._counts.outcomes[CallbackOutcome.DROPPED] += len(self._waiting)
            self._waiting.clear()
            tasks = tuple(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _work(self) -> None:
        while self._waiting:
            subject = self._waiting.popleft()
            self._counts.waiting = len(self._waiting)
            with suppress(CallbackFailed):
                await self.runner.run(subject)
