"""Questions and answers between two processes, both ways over one pair of sockets."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, Generic, Self, TypeVar, cast

from scp_server.errors import SCPServerError
from scp_server.observability.logs import get_logger
from scp_server.runtime.workers.framing import FrameReader, FrameTooLong, encoded

log = get_logger(__name__)

A = TypeVar("A")


class Question(Generic[A]):
    """What may be asked; `A` is what the answer is. Subclasses are small, and can be pickled."""

    __slots__ = ()


class Notice:
    """What may be told, without an answer. Handled in the order of telling, and before later questions."""

    __slots__ = ()


class ChannelEnded(ConnectionError):
    """The other process is gone, or does not understand."""


class _Kind(IntEnum):
    QUESTION = 0
    ANSWER = 1
    REFUSAL = 2
    NOTICE = 3


Answering = Callable[[Question[Any]], Awaitable[object]]
"""Answers a question. An SCPServerError that it raises is raised to who asked."""
Hearing = Callable[[Notice], None]


class Channel(asyncio.Protocol):
    """One end. What is sent in one turn of the loop goes out in one write.

    How much can wait to be sent is bounded by what is asked: an association asks one thing at a time.
    """

    def __init__(self, answer: Answering, hear: Hearing) -> None:
        self._answer = answer
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameReader()
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[object]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._sending: list[bytes] = []
        self.ended = asyncio.Event()
        """Set once nothing can be asked or told any more."""

    @classmethod
    async def over(cls, connection: socket.socket, answer: Answering, hear: Hearing) -> Self:
        """The end that `connection` leads to, which belongs to it from now on."""
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(answer, hear), sock=connection)
        return channel

    async def ask(self, question: Question[A]) -> A:
        """Ask, and wait for the answer. Raises what the other end raises, and ChannelEnded."""
        return cast(A, await self.asked(question))

    def asked(self, question: Question[A]) -> asyncio.Future[A]:
        """The answer to be; it may be dropped."""
        answer: asyncio.Future[object] = self._loop.create_future()
        if self.ended.is_set():
            answer.set_exception(ChannelEnded("the other process has ended"))
            answer.exception()  # Whoever drops it is not to be complained about.
            return cast("asyncio.Future[A]", answer)
        number = next(self._numbers)
        self._asked[number] = answer
        self._send(_Kind.QUESTION, number, question)
        return cast("asyncio.Future[A]", answer)

    def tell(self, notice: Notice) -> None:
        """Tell; nothing when the other end is gone."""
        self._send(_Kind.NOTICE, 0, notice)

    def tell_from_thread(self, notice: Notice) -> None:
        """The same, from any thread."""
        self._loop.call_soon_threadsafe(self.tell, notice)

    def close(self) -> None:
        """Say no more; what was said still goes out. A second time does nothing."""
        if self._transport is not None:
            self._write()
            self._transport.close()

    def close_from_thread(self) -> None:
        """The same, from any thread."""
        self._loop.call_soon_threadsafe(self.close)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pair is open from the beginning."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take what came; what cannot be understood ends the channel."""
        try:
            for message in self._frames.feed(data):
                self._take(*cast("tuple[int, int, object]", message))
        except Exception:
            log.exception("worker.not_understood")
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other process has ended, or this end was closed."""
        self._transport = None
        self.ended.set()
        for task in self._answering:
            task.cancel()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ChannelEnded("the other process has ended"))
                answer.exception()
        self._asked.clear()

    # -- inside

    def _take(self, kind: int, number: int, content: object) -> None:
        if kind == _Kind.NOTICE and isinstance(content, Notice):
            self._hear(content)
        elif kind == _Kind.QUESTION and isinstance(content, Question):
            task = asyncio.create_task(self._answer_to(number, content), name="worker.answer")
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif (answer := self._asked.pop(number, None)) is not None and not answer.done():
            if kind == _Kind.REFUSAL and isinstance(content, Exception):
                answer.set_exception(content)
            else:
                answer.set_result(content)

    async def _answer_to(self, number: int, question: Question[Any]) -> None:
        try:
            answer = await self._answer(question)
        except SCPServerError as error:
            self._send(_Kind.REFUSAL, number, error)
        except Exception:  # whoever asked must not wait for ever
            log.exception("worker.not_understood")
            self._send(_Kind.REFUSAL, number, SCPServerError("the other process failed; its log says why"))
        else:
            self._send(_Kind.ANSWER, number, answer)

    def _send(self, kind: _Kind, number: int, content: object) -> None:
        if self._transport is None:
            return
        try:
            data = encoded((int(kind), number, content))
        except FrameTooLong as error:
            if (answer := self._asked.pop(number, None)) is not None and kind is _Kind.QUESTION:
                answer.set_exception(SCPServerError(str(error)))
                return
            data = encoded((int(_Kind.REFUSAL), number, SCPServerError(str(error))))
        if not self._sending:
            self._loop.call_soon(self._write)
        self._sending.append(data)

    def _write(self) -> None:
        data, self._sending = b"".join(self._sending), []
        if data and self._transport is not None:
            self._transport.write(data)
