"""Who waits for the responses to a request of ours: for a single one, or for many that carry data sets."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, Protocol

from scp_server.errors import AssociationError, AssociationLost, ProtocolError
from scp_server.protocol.message import RESPONSE_BIT, CStoreRQ, Request, Response
from scp_server.protocol.upper_layer import is_final_response

if TYPE_CHECKING:
    from scp_server.net.requestor_connection import RequestorConfig, RequestorConnection

_RESPONSES_WAIT = "responses_wait"
"""Why reading stops (`AssociationTransport.stop_reading`)."""
_RESPONSE_BYTES = 512
"""What a waiting response counts beside its data set, so that responses without one are bounded too."""


class DatasetReceiver(Protocol):
    """Takes data sets as they arrive. A ProtocolError from it, and what it is, aborts the association."""

    def fragment_received(self, data: memoryview, *, last: bool) -> None:
        """Some of the data set of the last message."""
        ...

    def fail(self, error: AssociationError) -> None:
        """The association is over."""
        ...


class ResponseReceiver(DatasetReceiver, Protocol):
    """Takes the responses to one request."""

    def response_received(self, context_id: int, response: Response) -> None:
        """A command set; fragments follow when it announces a data set."""
        ...


class RequestReceiver(DatasetReceiver, Protocol):
    """Takes C-STORE requests, which a peer sends while it performs our C-GET."""

    def request_received(self, context_id: int, request: CStoreRQ) -> None:
        """A command set; fragments follow when it announces a data set."""
        ...


class ExpectedResponses:
    """The requests of ours on one association that are not answered yet, and who waits for the answers."""

    def __init__(self) -> None:
        self._receivers: dict[int, tuple[int, ResponseReceiver]] = {}
        self._dataset_for: ResponseReceiver | None = None

    def expect(self, request: Request, receiver: ResponseReceiver) -> None:
        """Hand the responses to `request` to `receiver`, until `forget`."""
        self._receivers[request.message_id] = request.command_field | RESPONSE_BIT, receiver

    def forget(self, message_id: int) -> None:
        """Nobody waits for them any more."""
        self._receivers.pop(message_id, None)

    def response_received(self, context_id: int, response: Response) -> bool:
        """Hand it to who waits for it; False when nobody does. Raises ProtocolError."""
        command_field, receiver = self._receivers.get(response.message_id_being_responded_to, (0, None))
        if receiver is None or command_field != response.command_field:
            return False
        self._dataset_for = receiver if response.has_dataset else None
        receiver.response_received(context_id, response)
        return True

    def fragment_received(self, data: memoryview, *, last: bool) -> bool:
        """The same with some of the data set of that response."""
        receiver = self._dataset_for
        if receiver is None:
            return False
        if last:
            self._dataset_for = None
        receiver.fragment_received(data, last=last)
        return True

    def fail(self, error: AssociationError) -> None:
        """There will be no more responses."""
        for _, receiver in self._receivers.values():
            receiver.fail(error)


class SingleResponse:
    """The one response to C-ECHO or C-STORE; a data set with it is passed over."""

    def __init__(self) -> None:
        self.future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def response_received(self, context_id: int, response: Response) -> None:
        """See `ResponseReceiver`."""
        del context_id
        if not self.future.done():
            self.future.set_result(response)

    def fragment_received(self, data: memoryview, *, last: bool) -> None:
        """See `ResponseReceiver`."""

    def fail(self, error: AssociationError) -> None:
        """See `ResponseReceiver`."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # seen: nobody may be waiting


class Answer(NamedTuple):
    """A response with its data set, None where it has none."""

    response: Response
    dataset: bytes | None


class ResponseStream:
    """The responses to one request up to the final one, in order.

    While more than `waiting_response_bytes` wait to be taken, nothing is read from the peer. A data set above
    `max_response_dataset_bytes`, a response on another presentation context, and one after the final one
    abort the association.
    """

    def __init__(self, connection: RequestorConnection, context_id: int, config: RequestorConfig) -> None:
        self._connection = connection
        self._context_id = context_id
        self._config = config
        self._waiting: deque[Answer] = deque()
        self._waiting_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._response: Response | None = None
        self._dataset = bytearray()
        self._dropping = False
        self._error: AssociationError | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """The final response has arrived, or the association is over."""
        self.final: Answer | None = None
        self._silence: asyncio.Timeout | None = None
        self._busy = False

    # -- ResponseReceiver ---------------------------------------------------------------------------------

    def response_received(self, context_id: int, response: Response) -> None:
        """See `ResponseReceiver`."""
        if self.ended.done():
            raise ProtocolError("the peer sent a response after the final one")
        if context_id != self._context_id:
            raise ProtocolError(f"the peer answered on presentation context {context_id}")
        if response.has_dataset:
            self._response = response
        else:
            self._answered(Answer(response, None))

    def fragment_received(self, data: memoryview, *, last: bool) -> None:
        """See `ResponseReceiver`."""
        if self._response is None:
            return
        limit_bytes = self._config.max_response_dataset_bytes
        if len(self._dataset) + len(data) > limit_bytes:
            raise ProtocolError(f"the peer sent a response with a data set above {limit_bytes} bytes")
        if not self._dropping or is_final_response(self._response):
            self._dataset += data
        if last:
            answer = Answer(self._response, bytes(self._dataset))
            self._response = None
            self._dataset.clear()
            self._answered(answer)

    def fail(self, error: AssociationError) -> None:
        """See `ResponseReceiver`."""
        self._error = error
        self._end()
        self._wake()

    # -- for who asked ------------------------------------------------------------------------------------

    async def next(self) -> Answer:
        """The next response, once it is whole. Not to be called after the final one was returned.

        Raises the AssociationError that ended the association, after what had arrived before it. A response
        that does not come within `response_seconds` aborts the association.
        """
        while not self._waiting:
            if self._error is not None:
                raise self._error
            await self._wait()
        answer = self._waiting.popleft()
        self._waiting_bytes -= _cost_bytes(answer)
        if self._waiting_bytes <= self._config.waiting_response_bytes // 2:
            self._connection.go_on_reading(_RESPONSES_WAIT)
        return answer

    def busy(self, busy: bool) -> None:
        """While the peer's own request is being performed, no response is waited for: time stands still."""
        self._busy = busy
        if self._silence is not None:
            self._silence.reschedule(self._silence_ends())

    def drop(self) -> None:
        """Nobody takes any more: what waits and what still comes is passed over, up to the final response."""
        self._dropping = True
        self._waiting.clear()
        self._waiting_bytes = 0
        self._connection.go_on_reading(_RESPONSES_WAIT)

    def _answered(self, answer: Answer) -> None:
        if is_final_response(answer.response):
            self.final = answer
            self._end()
        if self._dropping:
            return
        self._waiting.append(answer)
        self._waiting_bytes += _cost_bytes(answer)
        if self._waiting_bytes > self._config.waiting_response_bytes and not self.ended.done():
            self._connection.stop_reading(_RESPONSES_WAIT)
        self._wake()

    async def _wait(self) -> None:
        seconds = self._config.response_seconds
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout_at(self._silence_ends()) as self._silence:
                await self._waiter
        except TimeoutError as error:
            self._connection.abort_association(f"no response within {seconds:g} s")
            raise AssociationLost(f"no response within {seconds:g} s") from error
        finally:
            self._waiter = self._silence = None

    def _silence_ends(self) -> float | None:
        if self._busy:
            return None
        return asyncio.get_running_loop().time() + self._config.response_seconds

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


def _cost_bytes(answer: Answer) -> int:
    return _RESPONSE_BYTES + len(answer.dataset or b"")
