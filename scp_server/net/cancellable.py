"""A request with many responses, C-FIND, C-MOVE or C-GET: sent when asked, ended early by C-CANCEL."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from scp_server.errors import AssociationError, LocalProtocolError, ProtocolError
from scp_server.interfaces import AcceptedContext
from scp_server.net.responses import Answer, ResponseStream
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from scp_server.protocol.message import CCancelRQ, CFindRQ, CGetRQ, CMoveRQ
from scp_server.protocol.upper_layer import is_final_response

if TYPE_CHECKING:
    from scp_server.net.requestor_connection import RequestorConfig, RequestorConnection

Item = TypeVar("Item")
IDENTIFIER_TRANSFER_SYNTAXES: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
"""Those that identifiers are written in."""


@dataclass(frozen=True, slots=True)
class Call:
    """What a request is sent with."""

    connection: RequestorConnection
    config: RequestorConfig
    context: AcceptedContext
    request: CFindRQ | CMoveRQ | CGetRQ
    identifier: bytes


def identifier_context(connection: RequestorConnection, sop_class_uid: str) -> AcceptedContext:
    """The accepted context of a SOP class in a transfer syntax that we write identifiers in.

    Raises LocalProtocolError where there is none.
    """
    for context in connection.contexts.values():
        if (
            context.abstract_syntax == sop_class_uid
            and context.transfer_syntax in IDENTIFIER_TRANSFER_SYNTAXES
        ):
            return context
    raise LocalProtocolError(f"no presentation context was accepted for {sop_class_uid}")


class CancellableOperation(ABC, Generic[Item]):
    """It is sent when its items are first asked for, and they can be asked for once.

    Leaving the loop early, by `break`, an exception or cancellation, sends C-CANCEL and lets the peer finish
    for at most `cancel_seconds`; then the association is aborted. `aclose` does it explicitly.
    """

    def __init__(self, call: Call, take_turn: Callable[[CancellableOperation[Any]], Awaitable[None]]) -> None:
        """`take_turn` waits until the association is free."""
        self._call = call
        self._take_turn = take_turn
        self._loop = asyncio.get_running_loop()
        self._stream: ResponseStream | None = None
        self._iterated = False
        self._cancelled = False
        self._dropped = False
        self.left = False
        """The loop over the items is gone; `give_up` is about to be called."""
        self._deadline: asyncio.TimerHandle | None = None
        self._over = False

    @abstractmethod
    def _pending(self, answer: Answer) -> Item | None:
        """What a pending response means; None for one that is of no interest. A ProtocolError aborts."""

    @abstractmethod
    def _ended(self, final: Answer | None) -> None:
        """Keep the result; `final` is None where the association ended first."""

    @abstractmethod
    def _raise_for(self, final: Answer) -> None:
        """Raise what a final response other than success means to whoever asks for items."""

    def _has_enough(self) -> bool:
        """Whether it is to be cancelled before another item is asked for."""
        return False

    async def settled(self) -> None:
        """Wait for whatever the operation has running beside its responses."""

    @property
    def running(self) -> bool:
        """The final response has not arrived."""
        return self._stream is not None and not self._stream.ended.done()

    @property
    def given_up(self) -> bool:
        """Nobody takes items any more."""
        return self._dropped or self.left

    def __aiter__(self) -> ItemLoop[Item]:
        if self._iterated:
            raise LocalProtocolError("the answers to one request can be asked for once")
        self._iterated = True
        return ItemLoop(self)

    async def aclose(self) -> None:
        """Stop it, and wait until the association is free again. Once more, or after its end, does nothing.

        Cancelled while it waits, it aborts the association.
        """
        self._iterated = True
        self.give_up()
        if self._stream is None:
            return
        try:
            if not self._over:
                await asyncio.wait((self._stream.ended,))
            await self.settled()
        except asyncio.CancelledError:
            self._abort("given up while a request was being cancelled")
            raise
        self._drained(self._stream.ended)

    def give_up(self) -> None:
        """Send C-CANCEL if it runs, and pass over what still comes."""
        if self._dropped or self._over or self._stream is None:
            return
        self._dropped = True
        self._cancel()
        self._stream.drop()
        self._stream.ended.add_done_callback(self._drained)

    async def next_item(self) -> Item | None:
        """The next item; None at the end. Raises what a failure of the peer means, and AssociationError."""
        item: Item | None = None
        while item is None and not self._over:
            if self._has_enough():
                await self.aclose()
                return None
            try:
                stream = self._stream or await self._send()
                answer = await stream.next()
                if is_final_response(answer.response):
                    await self.settled()
            except AssociationError:
                self._finish(None)
                raise
            except BaseException:
                # Cancelled, most of all: whoever asked is gone, the peer is to hear of it.
                await self.aclose()
                raise
            item = self._take(answer)
        return item

    async def _send(self) -> ResponseStream:
        call = self._call
        await self._take_turn(self)
        stream = ResponseStream(call.connection, call.context.context_id, call.config)
        call.connection.expect_responses(call.request, stream)
        self._stream = stream
        association, now = call.connection.association, self._loop.time()
        association.send_command(call.context.context_id, call.request, now)
        association.send_dataset(call.context.context_id, call.identifier, now, last=True)
        call.connection.flush()
        return stream

    def _take(self, answer: Answer) -> Item | None:
        if not is_final_response(answer.response):
            try:
                return self._pending(answer)
            except ProtocolError as error:
                self._abort(str(error))
                self._finish(None)
                raise self._call.connection.error or AssociationError("the association ended") from error
        self._finish(answer)
        self._raise_for(answer)
        return None

    def _cancel(self) -> None:
        """Send C-CANCEL, unless the final response is there, and give the peer `cancel_seconds` for it."""
        if self._cancelled:
            return
        self._cancelled = True
        if not self.running:
            return
        call = self._call
        cancel = CCancelRQ(message_id_being_responded_to=call.request.message_id)
        call.connection.association.send_command(call.context.context_id, cancel, self._loop.time())
        call.connection.flush()
        self._set_deadline()

    def _set_deadline(self) -> None:
        self._deadline = self._loop.call_later(self._call.config.cancel_seconds, self._deadline_reached)

    def _deadline_reached(self) -> None:
        self._abort(f"no final response within {self._call.config.cancel_seconds:g} s after C-CANCEL")

    def _drained(self, _ended: asyncio.Future[None]) -> None:
        if self._stream is not None and not self._over:
            self._finish(self._stream.final)

    def _abort(self, text: str) -> None:
        if self._call.connection.error is None:
            self._call.connection.abort_association(text)

    def _finish(self, final: Answer | None) -> None:
        self._over = True
        if self._deadline is not None:
            self._deadline.cancel()
        self._call.connection.forget_responses(self._call.request.message_id)
        self._ended(final)


class ItemLoop(Generic[Item]):
    """The loop over the items of an operation; dropped before its end, it cancels the request."""

    def __init__(self, operation: CancellableOperation[Item]) -> None:
        self._operation = operation
        self._loop = asyncio.get_running_loop()
        self._asked = False

    def __aiter__(self) -> ItemLoop[Item]:
        return self

    async def __anext__(self) -> Item:
        if self._asked:
            raise LocalProtocolError("the next answer is being waited for already")
        self._asked = True
        try:
            item = await self._operation.next_item()
        finally:
            self._asked = False
        if item is None:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """See `CancellableOperation.aclose`."""
        await self._operation.aclose()

    def __del__(self) -> None:
        """The loop was left, by `break` or an exception. This may run anywhere: only a word to the loop."""
        if self._operation.running and not self._operation.given_up and not self._loop.is_closed():
            self._operation.left = True
            self._loop.call_soon_threadsafe(self._operation.give_up)
