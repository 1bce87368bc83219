"""A bounded queue between the tasks of an event loop and the one thread that writes.

Nobody waits for a batch to fill: the thread takes whatever lies there when it comes back, so a lone request
is performed at once, and under load batches form by themselves.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, NamedTuple, TypeVar

from scp_server.errors import IndexFailure, IndexUnavailable
from scp_server.observability.measures import IndexMeasures

Request = TypeVar("Request")
Result = TypeVar("Result")


class OutcomeUnknown(Exception):
    """In the place of an answer: nobody will ever know whether the request was performed.

    Its caller is cancelled rather than told of a failure, for then it would undo what may have been done.
    """


class _Item(NamedTuple, Generic[Request, Result]):
    request: Request
    answer: asyncio.Future[Result]
    has_place: bool
    """It takes one of the places of the queue."""


class BatchQueue(Generic[Request, Result]):
    """Hands requests to `perform` in its own thread, in order, up to `max_batch` at once.

    `perform` answers every request with a result or with the exception to be raised for it; `finish` is
    called last, in the same thread; `performed` is called in the event loop after each batch. At most
    `max_queue` requests wait or are being performed, beside those that were `put`.
    """

    def __init__(
        self,
        perform: Callable[[Sequence[Request]], Sequence[Result | Exception]],
        finish: Callable[[], None],
        *,
        max_batch: int,
        max_queue: int,
        name: str,
        measures: IndexMeasures | None = None,
        performed: Callable[[], None] = lambda: None,
    ) -> None:
        self._perform = perform
        self._finish = finish
        self._max_batch = max_batch
        self._places = asyncio.Semaphore(max_queue)
        self._waiting: SimpleQueue[_Item[Request, Result] | None] = SimpleQueue()
        self._name = name
        self._measures = measures or IndexMeasures()
        self._performed = performed
        self._held: list[_Item[Request, Result]] = []
        self._release_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._finished: asyncio.Future[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Start the thread. To be called once, in the event loop whose tasks will submit."""
        self._loop = asyncio.get_running_loop()
        self._finished = self._loop.create_future()
        threading.Thread(target=self._run, name=self._name, args=(self._loop,), daemon=True).start()

    async def submit(self, request: Request) -> Result:
        """Hand over a request and wait for its result.

        Waits for a place first. Cancelled before it has one, nothing happens; cancelled later, the request is
        performed all the same. Raises what `perform` answered, or IndexUnavailable once `close` was called.
        """
        self._measures.waiting += 1
        try:
            return await (await self._hand_over(request))
        except IndexFailure:
            self._measures.failures += 1
            raise
        finally:
            self._measures.waiting -= 1

    async def submit_all(self, requests: Sequence[Request]) -> list[Result | Exception]:
        """Hand over requests in their order, and wait for what becomes of each of them.

        As `submit`, but for what it raises, which is among the answers.
        """
        self._measures.waiting += len(requests)
        answers: list[asyncio.Future[Result]] = []
        try:
            for request in requests:
                answers.append(await self._hand_over(request))
        except IndexUnavailable as closed:
            refused: list[Result | Exception] = [closed] * (len(requests) - len(answers))
        else:
            refused = []
        try:
            outcomes = [*await asyncio.gather(*answers, return_exceptions=True), *refused]
        finally:
            self._measures.waiting -= len(requests)
        results: list[Result | Exception] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome
            self._measures.failures += isinstance(outcome, IndexFailure)
            results.append(outcome)
        return results

    async def _hand_over(self, request: Request) -> asyncio.Future[Result]:
        """Wait for a place; returns the answer to be. Raises IndexUnavailable once closed."""
        await self._places.acquire()
        if self._closing or self._loop is None:
            self._places.release()
            raise IndexUnavailable("the index is not open")
        answer: asyncio.Future[Result] = self._loop.create_future()
        self._release()
        self._waiting.put(_Item(request, answer, has_place=True))
        return answer

    def put(self, request: Request, hold_seconds: float) -> asyncio.Future[Result]:
        """Hand over a request that goes along with the next one, and by itself after `hold_seconds`.

        It keeps its place in the order, and takes none of the `max_queue`: few may be put. The result is
        what `perform` answered, or IndexUnavailable once `close` was called.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        if self._closing or self._loop is None:
            answer.set_exception(IndexUnavailable("the index is not open"))
            return answer
        self._held.append(_Item(request, answer, has_place=False))
        if hold_seconds <= 0:
            self._release()
        elif self._release_timer is None:
            self._release_timer = loop.call_later(hold_seconds, self._release)
        return answer

    def _release(self) -> None:
        if self._release_timer is not None:
            self._release_timer.cancel()
            self._release_timer = None
        if self._held:
            for held in self._held:
                self._waiting.put(held)
            self._held.clear()

    async def close(self) -> None:
        """Let what was handed over be performed, then end the thread. May be called twice."""
        if self._finished is None:
            self._closing = True
            return
        if not self._closing:
            self._closing = True
            self._release()
            self._waiting.put(None)
        await asyncio.shield(self._finished)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        open_ = True
        while open_:
            batch, open_ = self._take()
            if batch and not _tell(loop, self._resolve, batch, self._outcomes(batch)):
                break
        try:
            self._finish()
        finally:
            _tell(loop, self._set_finished)

    def _take(self) -> tuple[list[_Item[Request, Result]], bool]:
        """Everything that waits, at least one; and whether more may come."""
        batch: list[_Item[Request, Result]] = []
        item = self._waiting.get()
        while item is not None:
            batch.append(item)
            if len(batch) == self._max_batch:
                return batch, True
            try:
                item = self._waiting.get_nowait()
            except Empty:
                return batch, True
        return batch, False

    def _outcomes(self, batch: Sequence[_Item[Request, Result]]) -> Sequence[Result | Exception]:
        started = time.perf_counter()
        try:
            return self._perform([request for request, _, _ in batch])
        except Exception as error:  # a bug in `perform` must not leave its callers waiting for ever
            failure = IndexFailure(f"the index's writer failed: {error}")
            failure.__cause__ = error
            return [failure] * len(batch)
        finally:
            if entries := sum(has_place for _, _, has_place in batch):
                self._measures.batch_entries.observe(entries)
                self._measures.batch_seconds.observe(time.perf_counter() - started)

    def _resolve(
        self, batch: Sequence[_Item[Request, Result]], outcomes: Sequence[Result | Exception]
    ) -> None:
        for (_, answer, has_place), outcome in zip(batch, outcomes, strict=True):
            if has_place:
                self._places.release()
            if answer.done():
                continue
            if isinstance(outcome, OutcomeUnknown):
                answer.cancel(str(outcome))
            elif isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
        self._performed()

    def _set_finished(self) -> None:
        if self._finished is not None and not self._finished.done():
            self._finished.set_result(None)


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: object) -> bool:
    """Call back in the loop; False when the loop was closed without `close`, and nobody listens any more."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        return False
    return True
