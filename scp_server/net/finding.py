"""A C-FIND that we ask for: its matches as they come, its cancelling, and how it ended (PS3.4 C.4.1)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from scp_server.errors import AssociationError, FindFailed, LocalProtocolError, QueryError
from scp_server.interfaces import AcceptedContext
from scp_server.net.responses import Answer, ResponseStream
from scp_server.objects.match import Match
from scp_server.objects.query_model import QueryModel, QueryOptions
from scp_server.objects.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, transfer_syntax
from scp_server.protocol.items import SOPClassExtendedNegotiation
from scp_server.protocol.message import CCancelRQ, CFindRQ
from scp_server.protocol.status import Status, StatusClass, status_class

if TYPE_CHECKING:
    from scp_server.net.requestor_connection import RequestorConfig, RequestorConnection
    from scp_server.objects.query import Query

IDENTIFIER_TRANSFER_SYNTAXES: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
"""Those that identifiers are written in."""


@dataclass(frozen=True, slots=True)
class FindResult:
    """How a C-FIND ended. `status` is None where the association ended before the peer said it."""

    status: int | None
    matches: int
    """How many were handed out."""
    all_keys_supported: bool
    """False when at least one of them came with 0xFF01: an optional key was not supported or not matched."""
    cancelled: bool
    """We stopped it: by a limit, or because the caller wanted no more."""


@dataclass(frozen=True, slots=True)
class FindCall:
    """What a C-FIND is sent with."""

    connection: RequestorConnection
    config: RequestorConfig
    context: AcceptedContext
    request: CFindRQ
    identifier: bytes
    limit: int | None
    is_dicos: bool


def query_offers(
    contexts: Sequence[tuple[str, Sequence[str]]], options: QueryOptions
) -> tuple[SOPClassExtendedNegotiation, ...]:
    """What extended negotiation offers for the models among the proposed contexts (PS3.7 D.3.3.5)."""
    if not options.names():
        return ()
    models = {model.sop_class_uid for model in QueryModel}
    proposed = dict.fromkeys(abstract_syntax for abstract_syntax, _ in contexts if abstract_syntax in models)
    return tuple(SOPClassExtendedNegotiation(uid, options.encode()) for uid in proposed)


def make_find_call(
    connection: RequestorConnection,
    config: RequestorConfig,
    query: Query,
    *,
    message_id: int,
    limit: int | None,
    is_dicos: bool,
) -> FindCall:
    """Encode a query for the context that was accepted for its model.

    Raises LocalProtocolError where there is none in a transfer syntax that we write; QueryError.
    """
    from scp_server.objects.query_encoding import encode_identifier

    if limit is not None and limit < 1:
        raise QueryError("the limit of matches is at least 1")
    sop_class_uid = query.model.sop_class_uid
    for context in connection.contexts.values():
        if (
            context.abstract_syntax == sop_class_uid
            and context.transfer_syntax in IDENTIFIER_TRANSFER_SYNTAXES
        ):
            break
    else:
        raise LocalProtocolError(f"no presentation context was accepted for {sop_class_uid}")
    return FindCall(
        connection=connection,
        config=config,
        context=context,
        request=CFindRQ(message_id=message_id, has_dataset=True, affected_sop_class_uid=sop_class_uid),
        identifier=encode_identifier(query, transfer_syntax(context.transfer_syntax)),
        limit=limit,
        is_dicos=is_dicos,
    )


class Finding:
    """A C-FIND. It is sent when its matches are first asked for, and they can be asked for once.

    Leaving the loop early, by `break`, an exception, cancellation or `limit`, sends C-CANCEL and lets the
    peer finish for at most `cancel_seconds`; then the association is aborted. `aclose` does it explicitly.
    """

    def __init__(self, call: FindCall, take_turn: Callable[[Finding], Awaitable[None]]) -> None:
        """`take_turn` waits until the association is free."""
        self._call = call
        self._take_turn = take_turn
        self._loop = asyncio.get_running_loop()
        self._stream: ResponseStream | None = None
        self._iterated = False
        self._cancelled = False
        self.left = False
        """The loop over the matches is gone; `give_up` is about to be called."""
        self._deadline: asyncio.TimerHandle | None = None
        self._matches = 0
        self._all_keys_supported = True
        self._result: FindResult | None = None

    @property
    def result(self) -> FindResult | None:
        """How it ended; None until the loop over its matches has."""
        return self._result

    @property
    def running(self) -> bool:
        """The final response has not arrived."""
        return self._stream is not None and not self._stream.ended.done()

    @property
    def given_up(self) -> bool:
        """Nobody takes matches any more."""
        return self._cancelled or self.left

    def __aiter__(self) -> Matches:
        if self._iterated:
            raise LocalProtocolError("the matches of a C-FIND can be asked for once")
        self._iterated = True
        return Matches(self)

    async def aclose(self) -> None:
        """Stop it, and wait until the association is free again. Once more, or after its end, does nothing.

        Cancelled while it waits, it aborts the association.
        """
        self._iterated = True
        self.give_up()
        if self._stream is None or self._result is not None:
            return
        try:
            await asyncio.wait((self._stream.ended,))
        except asyncio.CancelledError:
            self._abort("given up while a query was being cancelled")
            raise
        self._drained(self._stream.ended)

    def give_up(self) -> None:
        """Send C-CANCEL if it runs, and pass over what still comes."""
        if self._cancelled or self._result is not None or self._stream is None:
            return
        self._cancelled = True
        self._stream.drop()
        if self.running:
            self._send_cancel()
        self._stream.ended.add_done_callback(self._drained)

    async def next_match(self) -> Match | None:
        """The next match; None at the end. Raises FindFailed and AssociationError."""
        if self._result is not None:
            return None
        if self._call.limit is not None and self._matches >= self._call.limit:
            await self.aclose()
            return None
        try:
            stream = self._stream or await self._send()
            answer = await stream.next()
        except AssociationError:
            self._finish(None)
            raise
        except BaseException:
            # Cancelled, most of all: whoever asked is gone, the peer is to hear of it.
            await self.aclose()
            raise
        return self._take(answer)

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

    def _send_cancel(self) -> None:
        call, seconds = self._call, self._call.config.cancel_seconds
        cancel = CCancelRQ(message_id_being_responded_to=call.request.message_id)
        call.connection.association.send_command(call.context.context_id, cancel, self._loop.time())
        call.connection.flush()
        self._deadline = self._loop.call_later(
            seconds, self._abort, f"no final response within {seconds:g} s after C-CANCEL"
        )

    def _take(self, answer: Answer) -> Match | None:
        """Turn a response into what it means."""
        status, dataset = answer.response.status, answer.dataset
        if status_class(status) is StatusClass.PENDING:
            if not dataset:
                self._abort("the peer sent a pending C-FIND-RSP without an identifier")
                self._finish(None)
                raise self._call.connection.error or AssociationError("the association ended")
            supported = status != Status.PENDING_OPTIONAL_KEYS_NOT_SUPPORTED
            self._matches += 1
            self._all_keys_supported = self._all_keys_supported and supported
            return Match(dataset, self._call.context.transfer_syntax, supported, self._call.is_dicos)
        self._call.connection.forget_responses(self._call.request.message_id)
        self._finish(status)
        if status != Status.SUCCESS:
            response = answer.response
            raise FindFailed(status, response.error_comment or "", response.offending_elements)
        return None

    def _drained(self, _ended: asyncio.Future[None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._call.connection.forget_responses(self._call.request.message_id)
        if self._stream is not None and self._result is None:
            self._finish(self._stream.final_status)

    def _abort(self, text: str) -> None:
        if self._call.connection.error is None:
            self._call.connection.abort_association(text)

    def _finish(self, status: int | None) -> None:
        self._result = FindResult(status, self._matches, self._all_keys_supported, self._cancelled)


class Matches:
    """The loop over the matches of a `Finding`; dropped before its end, it cancels the C-FIND."""

    def __init__(self, finding: Finding) -> None:
        self._finding = finding
        self._loop = asyncio.get_running_loop()
        self._asked = False

    def __aiter__(self) -> Matches:
        return self

    async def __anext__(self) -> Match:
        if self._asked:
            raise LocalProtocolError("the next match is being waited for already")
        self._asked = True
        try:
            match = await self._finding.next_match()
        finally:
            self._asked = False
        if match is None:
            raise StopAsyncIteration
        return match

    async def aclose(self) -> None:
        """See `Finding.aclose`."""
        await self._finding.aclose()

    def __del__(self) -> None:
        """The loop was left, by `break` or an exception. This may run anywhere: only a word to the loop."""
        if self._finding.running and not self._finding.given_up and not self._loop.is_closed():
            self._finding.left = True
            self._loop.call_soon_threadsafe(self._finding.give_up)
