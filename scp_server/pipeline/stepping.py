"""Runs a coroutine step by step in the task that is here: what ends at once costs no task and no timer.

Because every step passes here, a step that blocks the event loop is measured, and a coroutine that swallows
its cancellation is closed rather than waited for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

from scp_server.pipeline.forking import end_copy, process
from scp_server.pipeline.stuck import LoopOccupant

GRACE_SECONDS: Final = 1.0
"""After its deadline: what a coroutine may take to end, once it has been cancelled."""


class DeadlinePassed(Exception):
    """The time limit is over, and what ran has been cancelled, closed or abandoned."""


class EndedItself(Exception):
    """What ran raised SystemExit, or CancelledError though nobody has cancelled it; nobody else ends."""


class Deadline:
    """Cancels the running task after some seconds, and again after GRACE_SECONDS more."""

    def __init__(self, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer = self._loop.call_later(seconds, self._reached)
        self.times = 0
        """How often it has cancelled."""

    def _reached(self) -> None:
        self.times += 1
        if self._task is not None:
            self._task.cancel()
        self._timer = self._loop.call_later(GRACE_SECONDS, self._reached)

    def end(self) -> bool:
        """No more of it; whether somebody else has cancelled the task, too."""
        self._timer.cancel()
        if self._task is None:
            return False
        for _ in range(self.times):
            self._task.uncancel()
        return self._task.cancelling() > 0


class Stepper:
    """Runs coroutines of the callback `name`. `blocked(seconds)` is told of each step longer than
    `blocking_seconds`."""

    def __init__(
        self,
        name: str,
        occupant: LoopOccupant,
        blocking_seconds: float,
        blocked: Callable[[float], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._name = name
        self._occupant = occupant
        self._blocking_seconds = blocking_seconds
        self._blocked = blocked
        self._clock = clock

    async def run(self, coroutine: Coroutine[Any, Any, object], seconds: float) -> object:
        """What the coroutine returns. Raises what it raises, with EndedItself in place of what would end more
        than the coroutine, and DeadlinePassed after `seconds`."""
        try:
            try:
                waits_for = self.step(coroutine.send, None)
            except StopIteration as end:
                return end.value
            return await _Rest(self, coroutine, waits_for).run(seconds)
        except SystemExit as error:
            raise EndedItself(f"SystemExit: {error}") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise EndedItself("CancelledError: what it waited for was cancelled") from error

    def step(self, step: Callable[[Any], object], argument: object) -> object:
        """One step: what the coroutine waits for now. Raises StopIteration at its end."""
        occupant, clock = self._occupant, self._clock
        occupant.since = began = clock()
        occupant.name = self._name
        try:
            return step(argument)
        finally:
            occupant.name = ""
            seconds = clock() - began
            if seconds > self._blocking_seconds:
                self._blocked(seconds)
            if process.is_copy:
                end_copy(self._name)


class _Rest:
    """A coroutine that did not end with its first step, and waits for `waits_for`."""

    def __init__(self, stepper: Stepper, coroutine: Coroutine[Any, Any, object], waits_for: object) -> None:
        self._step = stepper.step
        self._coroutine = coroutine
        self._waits_for = waits_for
        self._deadline: Deadline | None = None

    async def run(self, seconds: float) -> object:
        """See `Stepper.run`."""
        self._deadline = deadline = Deadline(seconds)
        try:
            result = await self
        except asyncio.CancelledError as cancelled:
            if deadline.end() or not deadline.times:
                raise
            raise DeadlinePassed from cancelled
        except BaseException:
            if deadline.end():
                raise asyncio.CancelledError from None
            raise
        if deadline.end():
            raise asyncio.CancelledError
        if deadline.times:
            raise DeadlinePassed
        return result

    def __await__(self) -> Generator[Any, Any, object]:
        """The steps behind the first, each when what the one before waits for is there."""
        waits_for = self._waits_for
        while True:
            try:
                sent = yield waits_for
            except GeneratorExit:
                self._close()
                raise
            except BaseException as error:
                if self._deadline is not None and self._deadline.times > 1:
                    self._close()
                    raise
                step: Callable[[Any], object] = self._coroutine.throw
                argument: object = error
            else:
                step, argument = self._coroutine.send, sent
            try:
                waits_for = self._step(step, argument)
            except StopIteration as end:
                return end.value

    def _close(self) -> None:
        """End a coroutine that does not end by itself; one that swallows even this is let go of."""
        try:
            self._coroutine.close()
        except RuntimeError:
            pass
