"""A requestor's side of a connection: the association's events become results of whoever waits for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import assert_never

from scp_server.errors import (
    AssociationAborted,
    AssociationError,
    AssociationLost,
    AssociationRejected,
    AssociationReleased,
    ConnectFailed,
    LocalProtocolError,
    ProtocolError,
)
from scp_server.interfaces import AcceptedContext
from scp_server.net.association_transport import AssociationTransport, TransportConfig
from scp_server.net.responses import ExpectedResponses, RequestReceiver, ResponseReceiver
from scp_server.protocol.association import Role, State
from scp_server.protocol.events import (
    Aborted,
    AssociateAccepted,
    AssociateRejected,
    AssociateRequested,
    CommandReceived,
    DatasetFragment,
    Event,
    ReleaseConfirmed,
    ReleaseRequested,
    TransportClosed,
)
from scp_server.protocol.items import ContextResult
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import CStoreRQ, Message, Request, Response
from scp_server.protocol.pdu import AssociateRQ


@dataclass(frozen=True, slots=True)
class RequestorConfig:
    """How we ask. Times in seconds."""

    limits: Limits = field(default_factory=lambda: Limits(idle_seconds=0.0))
    transport: TransportConfig = field(default_factory=TransportConfig)
    connect_seconds: float = 10.0
    response_seconds: float = 300.0
    """How long a response may take once its request is sent whole, and each further one of many."""
    max_response_dataset_bytes: int = 16_777_216
    """Longest data set of a response (a match of a query); a longer one aborts the association."""
    waiting_response_bytes: int = 1_048_576
    """What may wait for the caller to take it, before nothing more is read from the peer."""
    cancel_seconds: float = 10.0
    """After a C-CANCEL-RQ: how long the final response may take, before the association is aborted."""
    waiting_object_bytes: int = 4_194_304
    """What of a C-GET's objects may wait for the sink, before nothing more is read from the peer."""
    max_retrieved_objects: int = 65_535
    """Objects that one C-GET may bring, the most its counters can say; then it is cancelled."""
    max_retrieved_bytes: int = 1 << 40
    """Data set bytes that one C-GET may bring; then it is cancelled. 0 is no bound."""


class RequestorConnection(AssociationTransport, asyncio.Protocol):
    """Turns the association's events into results of whoever waits for them."""

    def __init__(self, config: RequestorConfig) -> None:
        super().__init__(Role.REQUESTOR, config.limits, config.transport)
        self.established: asyncio.Future[None] = self._loop.create_future()
        self.finished: asyncio.Future[None] = self._loop.create_future()
        """The association is over; `error` says how."""
        self.over: asyncio.Future[None] = self._loop.create_future()
        """The socket is gone too."""
        self.contexts: dict[int, AcceptedContext] = {}
        self.error: AssociationError | None = None
        self.request_pdu: AssociateRQ | None = None
        self.extended_negotiations: dict[str, bytes] = {}
        """As the peer answered, by SOP class (PS3.7 D.3.3.5)."""
        self._expected = ExpectedResponses()
        self._receiving: RequestReceiver | None = None
        self.request_receiver: RequestReceiver | None = None
        """Takes the C-STORE requests of the peer, while a C-GET of ours runs."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the association as soon as the socket is there."""
        super().connection_made(transport)
        if self.request_pdu is None:
            raise LocalProtocolError("nothing to request")
        now = self._loop.time()
        self.association.request(self.request_pdu, now)
        self.association.transport_connected(now)
        self.flush()

    def handle_event(self, event: Event) -> None:
        """See `AssociationTransport`."""
        match event:
            case AssociateAccepted():
                self._accepted(event)
            case AssociateRejected():
                answer = event.answer
                self._fail(AssociationRejected(answer.result, answer.source, answer.reason))
            case CommandReceived():
                self._command_received(event)
            case DatasetFragment():
                self._fragment_received(event)
            case ReleaseRequested():
                if self.association.state in (State.STA8, State.STA9):
                    self.association.release_response(self._loop.time())
                self._fail(AssociationReleased("the peer released the association"))
            case ReleaseConfirmed():
                self._fail(AssociationReleased("released"))
            case Aborted():
                whose = "the peer" if event.by_peer else f"us ({event.text})"
                self._fail(
                    AssociationAborted(
                        event.source,
                        event.reason,
                        f"aborted by {whose}: source {event.source}, reason {event.reason}",
                    )
                )
            case TransportClosed():
                if self.established.done():
                    self._fail(AssociationLost("the connection ended"))
                else:
                    self._fail(ConnectFailed("the connection ended before the association was answered"))
            case AssociateRequested():
                raise LocalProtocolError("a requestor was asked for an association")
            case _:
                assert_never(event)

    def transport_ended(self) -> None:
        """Nobody waits any longer."""
        self._fail(AssociationLost("the connection ended"))
        if not self.over.done():
            self.over.set_result(None)

    def expect_responses(self, request: Request, receiver: ResponseReceiver) -> None:
        """Hand the responses to `request` to `receiver`, until `forget_responses`.

        Raises the error that ended the association.
        """
        if self.error is not None:
            raise self.error
        self._expected.expect(request, receiver)

    def forget_responses(self, message_id: int) -> None:
        """Nobody waits for them any more."""
        self._expected.forget(message_id)

    def _accepted(self, event: AssociateAccepted) -> None:
        proposed = self.request_pdu.presentation_contexts if self.request_pdu is not None else ()
        abstract_syntaxes = {context.context_id: context.abstract_syntax for context in proposed}
        self.contexts = {
            context.context_id: AcceptedContext(
                context.context_id, abstract_syntaxes[context.context_id], context.transfer_syntax
            )
            for context in event.answer.presentation_contexts
            if context.result == ContextResult.ACCEPTANCE and context.context_id in abstract_syntaxes
        }
        self.extended_negotiations = {
            item.sop_class_uid: item.application_information
            for item in event.answer.user_information.extended_negotiations
        }
        if not self.established.done():
            self.established.set_result(None)

    def _command_received(self, event: CommandReceived) -> None:
        try:
            wanted = self._message_received(event.context_id, event.message)
        except ProtocolError as error:
            self.abort_association(str(error))
        else:
            if not wanted:
                self.abort_association("the peer sent what nobody asked for")

    def _message_received(self, context_id: int, message: Message) -> bool:
        if isinstance(message, Response):
            return self._expected.response_received(context_id, message)
        if isinstance(message, CStoreRQ) and self.request_receiver is not None:
            self._receiving = self.request_receiver
            self._receiving.request_received(context_id, message)
            return True
        return False

    def _fragment_received(self, event: DatasetFragment) -> None:
        if self.error is not None:
            return
        try:
            if not self._expected.fragment_received(event.data, last=event.last) and self._receiving:
                self._receiving.fragment_received(event.data, last=event.last)
        except ProtocolError as error:
            self.abort_association(str(error))

    def _fail(self, error: AssociationError) -> None:
        if self.error is None:
            self.error = error
            self.finished.set_result(None)
        if not self.established.done():
            self.established.set_exception(self.error)
            self.established.exception()  # seen: nobody may be waiting
        self._expected.fail(self.error)
        if self.request_receiver is not None:
            self.request_receiver.fail(self.error)
