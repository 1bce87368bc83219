"""C-MOVE and C-GET that we ask for: progress as the peer counts it, and how it ended (PS3.4 C.4.2, C.4.3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from scp_server.errors import QueryError, RetrieveFailed, UnreadableDataset
from scp_server.net.cancellable import Call, CancellableOperation, identifier_context
from scp_server.net.receiving import ObjectReceiver, ObjectSink, ReceivedObject, ReceiverConfig
from scp_server.net.responses import Answer, ResponseStream
from scp_server.objects.match import Match
from scp_server.objects.retrieve import asked_instances
from scp_server.objects.uids import transfer_syntax
from scp_server.protocol.message import CGetRQ, CMoveRQ, SubOperationsResponse
from scp_server.protocol.negotiation import ae_title_error
from scp_server.protocol.status import StatusClass, status_class

if TYPE_CHECKING:
    from scp_server.net.requestor_connection import RequestorConfig, RequestorConnection
    from scp_server.objects.query import Query

_FAILED_SOP_INSTANCE_UID_LIST: Final = 0x00080058
TakeTurn = Callable[[CancellableOperation[Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RetrieveProgress:
    """The peer's counters of sub-operations; None where it did not say."""

    remaining: int | None = None
    completed: int | None = None
    failed: int | None = None
    warning: int | None = None

    @property
    def total(self) -> int | None:
        """All sub-operations, where the peer says how many remain."""
        if self.remaining is None:
            return None
        return self.remaining + (self.completed or 0) + (self.failed or 0) + (self.warning or 0)


@dataclass(frozen=True, slots=True)
class RetrieveResult:
    """How a retrieval ended. `status` is None where the association ended before the peer said it."""

    status: int | None
    counters: RetrieveProgress
    """The peer's last."""
    failed_sop_instance_uids: tuple[str, ...]
    """As the peer lists them; one that lists none may still have failed some."""
    error_comment: str
    cancelled: bool
    """We stopped it: because a limit was reached, or the caller wanted no more."""


class Retrieval(CancellableOperation[RetrieveProgress]):
    """A C-MOVE or C-GET. It is sent when its progress is first asked for, and that can be asked for once.

    The loop ends when the peer says success or a warning (0xB000: some sub-operations failed), which `result`
    tells apart; it raises RetrieveFailed for any other status, and AssociationError.
    """

    def __init__(self, call: Call, take_turn: TakeTurn) -> None:
        """See `CancellableOperation`."""
        super().__init__(call, take_turn)
        self._counters = RetrieveProgress()
        self._result: RetrieveResult | None = None

    @property
    def result(self) -> RetrieveResult | None:
        """How it ended; None until the loop over its progress has."""
        return self._result

    def _pending(self, answer: Answer) -> RetrieveProgress:
        self._counters = _counters(answer)
        return self._counters

    def _ended(self, final: Answer | None) -> None:
        if final is None:
            self._result = RetrieveResult(None, self._counters, (), "", self._cancelled)
            return
        counters = _counters(final)
        self._result = RetrieveResult(
            final.response.status,
            counters if counters != RetrieveProgress() else self._counters,
            _failed_instances(final.dataset, self._call.context.transfer_syntax),
            final.response.error_comment or "",
            self._cancelled,
        )

    def _raise_for(self, final: Answer) -> None:
        response = final.response
        if status_class(response.status) not in (StatusClass.SUCCESS, StatusClass.WARNING):
            raise RetrieveFailed(response.status, response.error_comment or "", response.offending_elements)


class Getting(Retrieval):
    """A C-GET: while the peer performs it, its objects go to a sink.

    After C-CANCEL the object in hand is still taken, and further ones are refused (0xA700).
    """

    def __init__(
        self,
        call: Call,
        take_turn: TakeTurn,
        sink: ObjectSink,
        config: ReceiverConfig,
        received: Callable[[ReceivedObject], None] | None,
    ) -> None:
        """`received` hears of each object when it has been answered."""
        super().__init__(call, take_turn)
        self._limit = ""
        self._in_hand_at_cancel = False
        self._receiver = ObjectReceiver(
            call.connection,
            config,
            sink,
            expected=lambda: self.running,
            performing=self._performing,
            received=received or _nobody_listens,
            limit_reached=self._limit_reached,
        )

    async def _send(self) -> ResponseStream:
        stream = await super()._send()
        self._call.connection.request_receiver = self._receiver
        return stream

    async def settled(self) -> None:
        await self._receiver.settled()

    def _performing(self, busy: bool) -> None:
        if not busy:
            self._in_hand_at_cancel = False
        if self._stream is not None:
            self._stream.busy(busy)

    def _limit_reached(self, why: str) -> None:
        self._limit = why
        self._cancel()

    def _cancel(self) -> None:
        if not self._cancelled:
            self._in_hand_at_cancel = self._receiver.busy
            self._receiver.refuse("cancelled")
        super()._cancel()

    def _deadline_reached(self) -> None:
        if self._in_hand_at_cancel and not self._limit:
            # Only the silence inside a message bounds an object that is on its way.
            self._set_deadline()
        else:
            super()._deadline_reached()

    def _finish(self, final: Answer | None) -> None:
        if self._call.connection.request_receiver is self._receiver:
            self._call.connection.request_receiver = None
        super()._finish(final)

    def _raise_for(self, final: Answer) -> None:
        if self._limit:
            raise RetrieveFailed(final.response.status, f"cancelled: {self._limit}")
        super()._raise_for(final)


def make_move_call(
    connection: RequestorConnection,
    config: RequestorConfig,
    query: Query,
    *,
    destination: str,
    message_id: int,
) -> Call:
    """Encode a C-MOVE to an AE title. Raises QueryError; LocalProtocolError without a context."""
    problem = ae_title_error(destination)
    if problem is not None:
        raise QueryError(f"the destination {problem}")
    sop_class_uid = query.model.move_sop_class_uid
    request = CMoveRQ(
        message_id=message_id,
        has_dataset=True,
        affected_sop_class_uid=sop_class_uid,
        move_destination=destination,
    )
    return _call(connection, config, query, request)


def make_get_call(
    connection: RequestorConnection, config: RequestorConfig, query: Query, *, message_id: int
) -> Call:
    """Encode a C-GET. Raises QueryError; LocalProtocolError without a context."""
    sop_class_uid = query.model.get_sop_class_uid
    request = CGetRQ(message_id=message_id, has_dataset=True, affected_sop_class_uid=sop_class_uid)
    return _call(connection, config, query, request)


def receiver_config(config: RequestorConfig, query: Query, contexts: frozenset[int]) -> ReceiverConfig:
    """What a C-GET takes: on `contexts`, within the limits of `config`."""
    return ReceiverConfig(
        contexts=contexts,
        sop_instance_uids=asked_instances(query),
        max_objects=config.max_retrieved_objects,
        max_bytes=config.max_retrieved_bytes,
        waiting_bytes=config.waiting_object_bytes,
    )


def _call(
    connection: RequestorConnection, config: RequestorConfig, query: Query, request: CMoveRQ | CGetRQ
) -> Call:
    from scp_server.objects.query_encoding import encode_identifier

    context = identifier_context(connection, request.affected_sop_class_uid)
    identifier = encode_identifier(query, transfer_syntax(context.transfer_syntax))
    return Call(connection, config, context, request, identifier)


def _counters(answer: Answer) -> RetrieveProgress:
    response = answer.response
    if not isinstance(response, SubOperationsResponse):
        return RetrieveProgress()
    return RetrieveProgress(
        response.number_of_remaining_suboperations,
        response.number_of_completed_suboperations,
        response.number_of_failed_suboperations,
        response.number_of_warning_suboperations,
    )


def _failed_instances(dataset: bytes | None, transfer_syntax_uid: str) -> tuple[str, ...]:
    """Failed SOP Instance UID List (0008,0058); empty where it cannot be read."""
    if not dataset:
        return ()
    try:
        values = Match(dataset, transfer_syntax_uid).attributes().value(_FAILED_SOP_INSTANCE_UID_LIST)
    except (UnreadableDataset, ValueError):
        return ()
    return tuple(str(value) for value in values if value)


def _nobody_listens(_received: ReceivedObject) -> None:
    """Nobody asked to hear of objects."""
