"""Calls callbacks: within their limits, counted, and with one log line for each call that goes wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from scp_server.errors import SCPServerError
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import CallbackCounts, CallbackOutcome
from scp_server.observability.text import safe_text
from scp_server.pipeline.callback import Callback, RunIn
from scp_server.pipeline.callback_processes import CallbackProcesses, ProcessLost, RaisedThere
from scp_server.pipeline.forking import watch_forks
from scp_server.pipeline.raised import type_and_place
from scp_server.pipeline.stages import DURABLE_STAGES, INLINE_STAGES, Stage
from scp_server.pipeline.stepping import DeadlinePassed, EndedItself, Stepper
from scp_server.pipeline.stuck import LoopOccupant
from scp_server.pipeline.threads import CallbackThreads, NoThreadLeft
from scp_server.pipeline.verdicts import NotDelivered, Reject, Undeliverable

log = get_logger(__name__)

_MAX_TEXT_CHARACTERS = 1_000
"""Of what a callback raised, in a log line."""

Verdicts = tuple[type[SCPServerError], ...]
_INLINE_VERDICTS: Verdicts = (Reject,)
_DURABLE_VERDICTS: Verdicts = (Reject, NotDelivered, Undeliverable)


@dataclass(frozen=True, slots=True)
class CallbackLimits:
    """What holds for callbacks that do not say it themselves; each is a setting of `[callbacks]`."""

    timeout_seconds: float = 30.0
    concurrency: int = 8
    processes: int = 1
    """In place of `concurrency` for those that run in processes."""
    process_memory_bytes: int = 1 << 30
    blocking_seconds: float = 0.1
    """Longest step of an async callback that is not held against it."""
    max_abandoned_threads: int = 8
    """Of each callback."""
    max_waiting: int = 1_000
    """Notices that wait for a callback; further ones are dropped."""

    def timeout_of(self, callback: Callback) -> float:
        """How long a call of it may take."""
        return callback.timeout_seconds or self.timeout_seconds

    def concurrency_of(self, callback: Callback) -> int:
        """How many calls of it there may be at once."""
        default = self.processes if callback.run_in is RunIn.PROCESS else self.concurrency
        return callback.concurrency or default

    def memory_of(self, callback: Callback) -> int:
        """What its process may use."""
        return callback.memory_bytes or self.process_memory_bytes


class CallbackFailed(SCPServerError):
    """A call went wrong, in whichever way; it has been counted and logged.

    Its text has none of the callback's own words; `detail` has them, for the operator alone.
    """

    def __init__(self, callback_name: str, outcome: CallbackOutcome, text: str, detail: str = "") -> None:
        super().__init__(f"callback {callback_name}: {text}")
        self.detail = f"callback {callback_name}: {detail or text}"
        self.callback_name = callback_name
        self.outcome = outcome


class Logged(Protocol):
    """What a callback is given says what of it belongs into a log line: no identity of a patient."""

    @property
    def log_fields(self) -> dict[str, object]: ...


class CallbackRunner:
    """One callback, ready to be called."""

    def __init__(
        self,
        callback: Callback,
        limits: CallbackLimits,
        counts: CallbackCounts,
        occupant: LoopOccupant | None = None,
    ) -> None:
        watch_forks()
        self.callback = callback
        self.timeout_seconds = limits.timeout_of(callback)
        self.concurrency = limits.concurrency_of(callback)
        self._stepper = Stepper(
            callback.name, occupant or LoopOccupant(), limits.blocking_seconds, self._blocked
        )
        self.counts = counts
        self._verdicts = _verdicts_at(callback.stage)
        self._room = asyncio.Semaphore(self.concurrency)
        self._threads = CallbackThreads(callback.name, counts, limits.max_abandoned_threads)
        self._processes = CallbackProcesses(
            callback.name,
            callback.import_name,
            self.concurrency,
            self.timeout_seconds,
            limits.memory_of(callback),
        )
        self._call: Callable[[tuple[Any, ...], float], Awaitable[object]]
        """Calls the function, and gives what it returned."""
        match callback.run_in:
            case RunIn.LOOP:
                self._call = self._in_loop
            case RunIn.THREAD:
                self._call = self._in_thread
            case RunIn.PROCESS:
                self._call = self._in_process
            case RunIn.AUTO:
                raise ValueError("where a callback runs has been decided when it was made")
            case _:
                assert_never(callback.run_in)

    async def in_turn(self, subject: Logged) -> None:
        """`run` when fewer than `concurrency` calls are under way; the wait counts against the time limit."""
        if not self._room.locked():
            await self._room.acquire()
            try:
                await self.run(subject)
            finally:
                self._room.release()
            return
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.timeout_seconds):
                await self._room.acquire()
        except TimeoutError:
            raise self._failed(CallbackOutcome.TIMED_OUT, subject, self._too_long("waited")) from None
        try:
            await self.run(subject, waited_seconds=time.monotonic() - began)
        finally:
            self._room.release()

    async def run(self, subject: Logged, *further: object, waited_seconds: float = 0.0) -> None:
        """Call it. Raises a verdict that its stage knows where the callback does, and CallbackFailed for
        anything else that is no plain return."""
        counts = self.counts
        counts.running += 1
        began = time.perf_counter()
        seconds = self.timeout_seconds
        if waited_seconds:
            seconds = max(seconds - waited_seconds, 0.001)
        try:
            returned = await self._call((subject, *further), seconds)
        except self._verdicts:
            counts.outcomes[CallbackOutcome.REJECTED] += 1
            raise
        except DeadlinePassed:
            raise self._failed(CallbackOutcome.TIMED_OUT, subject, self._too_long("took")) from None
        except (ProcessLost, NoThreadLeft) as lost:
            raise self._failed(CallbackOutcome.LOST, subject, str(lost)) from None
        except Exception as error:
            raise self._raised(subject, error) from error
        finally:
            counts.running -= 1
            counts.seconds.observe(time.perf_counter() - began)
        if returned is not None:
            text = f"it returned {_type_of(returned)}, and must return None"
            raise self._failed(CallbackOutcome.NONSENSE, subject, text)
        counts.outcomes[CallbackOutcome.RETURNED] += 1

    async def close(self) -> None:
        """End its threads and processes. No call may be under way."""
        self._threads.close()
        await self._processes.close()

    def _in_loop(self, arguments: tuple[Any, ...], seconds: float) -> Awaitable[object]:
        return self._stepper.run(self.callback.function(*arguments), seconds)

    def _in_thread(self, arguments: tuple[Any, ...], seconds: float) -> Awaitable[object]:
        return self._threads.call(self.callback.function, arguments, seconds)

    async def _in_process(self, arguments: tuple[Any, ...], seconds: float) -> object:
        try:
            # Sooner than the process's own limit where it had to wait for its turn; cancelled, it is killed.
            async with asyncio.timeout(seconds):
                answer = await self._processes.call(arguments)
        except TimeoutError:
            raise DeadlinePassed from None
        if answer.verdict is not None:
            raise answer.verdict
        if answer.changes is not None:
            arguments[0].changes = answer.changes
        if answer.report is not None:
            arguments[0].report = answer.report
        return None if answer.returned is None else _ReturnedThere(answer.returned)

    def _blocked(self, seconds: float) -> None:
        self.counts.blocked += 1
        log.warning("callback.blocked_loop", callback=self.callback.name, seconds=round(seconds, 3))

    def _too_long(self, what: str) -> str:
        return f"it {what} longer than {self.timeout_seconds:g} s"

    def _raised(self, subject: Logged, error: Exception) -> CallbackFailed:
        is_told = isinstance(error, RaisedThere | EndedItself)
        words = str(error) if is_told else f"{type(error).__name__}: {error}"
        if isinstance(error, RaisedThere):
            text = error.place
        else:
            cause = error.__cause__ if isinstance(error, EndedItself) else None
            text = type_and_place(cause or error, self.callback.function)
        log.debug(
            "callback.raised",
            callback=self.callback.name,
            error=safe_text(words, _MAX_TEXT_CHARACTERS),
            exc_info=error,
            **subject.log_fields,
        )
        return self._failed(CallbackOutcome.RAISED, subject, text, words)

    def _failed(
        self, outcome: CallbackOutcome, subject: Logged, text: str, detail: str = ""
    ) -> CallbackFailed:
        """Count and log it, once."""
        self.counts.outcomes[outcome] += 1
        log.error(
            "callback.failed",
            callback=self.callback.name,
            stage=self.callback.stage.value,
            outcome=outcome.value,
            error=safe_text(text, _MAX_TEXT_CHARACTERS),
            **subject.log_fields,
        )
        return CallbackFailed(self.callback.name, outcome, text, detail)


def _verdicts_at(stage: Stage) -> Verdicts:
    """What a callback of a stage may raise to say what is to happen: no failure of its own."""
    if stage in INLINE_STAGES:
        return _INLINE_VERDICTS
    return _DURABLE_VERDICTS if stage in DURABLE_STAGES else ()


@dataclass(frozen=True, slots=True)
class _ReturnedThere:
    """What a process says of what was returned in it."""

    type_name: str


def _type_of(result: object) -> str:
    return result.type_name if isinstance(result, _ReturnedThere) else type(result).__name__
