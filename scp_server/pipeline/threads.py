"""Threads for plain callbacks. A thread cannot be ended: one that does not come back is left alone.

They are daemon threads of our own, since those of an executor would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from scp_server.observability.measures import CallbackCounts
from scp_server.pipeline.forking import end_copy, process
from scp_server.pipeline.stepping import DeadlinePassed, EndedItself

_Job = tuple[Callable[..., Any], tuple[object, ...], asyncio.Future[object]]


class NoThreadLeft(Exception):
    """As many calls as there may be were abandoned in threads that have not come back since."""


class CallbackThreads:
    """The threads of one callback: started when they are needed, kept for the next call.

    `counts.abandoned` says how many did not come back; with `max_abandoned` of them there are no more calls.
    """

    def __init__(self, name: str, counts: CallbackCounts, max_abandoned: int) -> None:
        self._name = name
        self._counts = counts
        self._max_abandoned = max_abandoned
        self._idle: list[SimpleQueue[_Job | None]] = []
        self._closed = False

    async def call(
        self, function: Callable[..., Any], arguments: tuple[object, ...], seconds: float
    ) -> object:
        """What `function` returns. Raises what it raises, DeadlinePassed, and NoThreadLeft."""
        if self._counts.abandoned >= self._max_abandoned:
            raise NoThreadLeft(f"{self._counts.abandoned} calls of it have not come back")
        answer = asyncio.get_running_loop().create_future()
        jobs = self._idle.pop() if self._idle else self._start()
        jobs.put((function, arguments, answer))
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await asyncio.shield(answer)
        except TimeoutError:
            if not deadline.expired():
                raise
            self._abandon(answer)
            raise DeadlinePassed from None
        except asyncio.CancelledError:
            self._abandon(answer)
            raise

    def close(self) -> None:
        """Let idle threads end, and those that are busy once they come back."""
        self._closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _abandon(self, answer: asyncio.Future[object]) -> None:
        if answer.done():
            answer.exception()
            return
        self._counts.abandoned += 1
        answer.add_done_callback(self._came_back)

    def _came_back(self, answer: asyncio.Future[object]) -> None:
        self._counts.abandoned -= 1
        answer.exception()  # Looked at, so that nobody complains that it was not.

    def _start(self) -> SimpleQueue[_Job | None]:
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        loop = asyncio.get_running_loop()
        threading.Thread(
            target=self._work, args=(jobs, loop), name=f"callback {self._name}", daemon=True
        ).start()
        return jobs

    def _work(self, jobs: SimpleQueue[_Job | None], loop: asyncio.AbstractEventLoop) -> None:
        while (job := jobs.get()) is not None:
            function, arguments, answer = job
            del job
            result: object = None
            error: BaseException | None = None
            try:
                result = function(*arguments)
            except BaseException as raised:
                error = raised
            if process.is_copy:
                end_copy(self._name)
            del function, arguments
            # The loop is closed where the server ended without this thread.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._done, jobs, answer, result, error)
            del answer, result, error

    def _done(
        self,
        jobs: SimpleQueue[_Job | None],
        answer: asyncio.Future[object],
        result: object,
        error: BaseException | None,
    ) -> None:
        if self._closed:
            jobs.put(None)
        else:
            self._idle.append(jobs)
        if answer.cancelled():
            return
        if error is None:
            answer.set_result(result)
        elif isinstance(error, StopIteration | asyncio.CancelledError | SystemExit | KeyboardInterrupt):
            # What a future cannot hold, or what would end the server, is an error of the callback's.
            ended = EndedItself(f"{type(error).__name__}: {error}")
            ended.__cause__ = error
            answer.set_exception(ended)
        else:
            answer.set_exception(error)
