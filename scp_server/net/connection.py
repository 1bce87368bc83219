"""The acceptor's side of one connection: negotiates, turns requests into operations, and answers."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, assert_never

from scp_server.errors import (
    AssociationAborted,
    AssociationError,
    AssociationLost,
    AssociationReleased,
    LocalProtocolError,
)
from scp_server.interfaces import AssociationInfo
from scp_server.net.admission import Admission, learn_is_dicos, log_aborted, log_ended, log_rejected
from scp_server.net.association_transport import AssociationTransport
from scp_server.net.entrance import Entrance
from scp_server.net.operation import PerformedOperation
from scp_server.net.operations import Operations
from scp_server.net.responses import ExpectedResponses, ResponseReceiver
from scp_server.net.sub_operations import LARGEST_MESSAGE_ID, AcceptorSender
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import Outcome, ReadingStop
from scp_server.protocol.association import Role, State
from scp_server.protocol.events import (
    Aborted,
    AssociateAccepted,
    AssociateRejected,
    AssociateRequested,
    Buffer,
    CommandReceived,
    DatasetFragment,
    Event,
    ReleaseConfirmed,
    ReleaseRequested,
    TransportClosed,
)
from scp_server.protocol.message import CCancelRQ, Message, Request, Response
from scp_server.protocol.pdu import AbortReason, AbortSource, AssociateRQ, RejectReason
from scp_server.protocol.upper_layer import is_final_response

if TYPE_CHECKING:
    from scp_server.net.association_manager import AssociationManager

log = get_logger(__name__)

_CAN_ANSWER = frozenset({State.STA6, State.STA8})


class Connection(AssociationTransport, asyncio.BufferedProtocol):
    """One accepted socket: the events of its association, and what is sent on it.

    Its requests are performed by `Operations`; while one runs, `AcceptorSender` may send requests of ours.
    """

    def __init__(self, manager: AssociationManager) -> None:
        self.config = config = manager.config
        self.services = manager.services
        """Both as they were when the association was asked for: it keeps them to its end."""
        super().__init__(Role.ACCEPTOR, config.limits, config.transport)
        self._manager = manager
        self._budget = manager.budget
        self._measures = manager.measures
        self._buffers = manager.receive_buffers
        self._operations = Operations(self, manager, AcceptorSender(self))
        self._expected = ExpectedResponses()
        self._last_message_id = 0
        self._asks_still = True
        self._release_requested = False
        self._release_wanted = False
        self._release_sent = False
        self._entrance = Entrance(self, manager)
        self.error: AssociationError | None = None
        """What ended the association."""
        self._outcome = ""
        self._is_end_told = False
        self.opened_at = time.monotonic()
        self.info: AssociationInfo | None = None
        self.peer = ("", 0)
        """Host and port of the other end, known from the first moment to the last."""

    # -- the socket ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place among the sockets; the association counts only once it is accepted."""
        super().connection_made(transport)
        self.peer = self.peer_address
        self._budget.join(self)
        self._manager.connection_opened(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`: room that all connections share."""
        del sizehint
        return self._buffers.room()

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        self.data_received(self._buffers.take(nbytes))

    def data_received(self, data: bytes | memoryview) -> None:
        """Until an association is asked for, what arrives counts against the bound for all half-open ones."""
        self._measures.associations.received_bytes += len(data)
        super().data_received(data)
        self._count_request()

    def _count_request(self) -> None:
        if self._asks_still:
            self._asks_still = self.is_half_open
            self._manager.request_bytes_held(self, self.bytes_received if self._asks_still else 0)

    def transport_ended(self) -> None:
        """Give everything back."""
        self._entrance.close()
        self._budget.leave(self)
        self._manager.connection_closed(self)
        if self.info is None and self._outcome == "lost":
            log.debug("connection.closed", peer_host=self.host, bytes_received=self.bytes_received)

    def reading_stopped(self, why: str) -> None:
        """See `AssociationTransport`."""
        self._measures.associations.stops[why].stopped()

    def reading_went_on(self, why: str) -> None:
        """See `AssociationTransport`."""
        self._measures.associations.stops[why].went_on()

    @property
    def host(self) -> str:
        """Of the peer."""
        return self.peer[0]

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where its operations run."""
        return self._loop

    @property
    def is_half_open(self) -> bool:
        """Connected, but no association was asked for yet."""
        return self.info is None and not self._outcome

    @property
    def is_draining(self) -> bool:
        """The association is over; only the peer's end of the socket is waited for."""
        return bool(self._outcome)

    @property
    def peer_name(self) -> str | None:
        """What the settings call the peer; None for who matched none of them, or asked for nothing yet."""
        return None if self.info is None or self.info.peer is None else self.info.peer.name

    @property
    def requests_received(self) -> int:
        """Requests received since the association began."""
        return self._operations.count

    @property
    def dataset_bytes(self) -> int:
        """Bytes of data sets received since the association began."""
        return self._operations.dataset_bytes

    @property
    def operations(self) -> tuple[PerformedOperation, ...]:
        """The operation that runs, and those that wait."""
        return self._operations.queued

    @property
    def operation_count(self) -> int:
        """How many operations run or wait."""
        return len(self._operations.queued)

    # -- events of the association ------------------------------------------------------------------------

    def handle_event(self, event: Event) -> None:
        """See `AssociationTransport`."""
        match event:
            case DatasetFragment():
                if not self._expected.fragment_received(event.data, last=event.last):
                    self._operations.fragment_received(event)
            case CommandReceived():
                self._command_received(event)
            case AssociateRequested():
                self._entrance.requested(event.request)
            case ReleaseRequested():
                # On a collision the requestor's response comes first (PS3.8 7.2.2.7).
                self._release_requested = True
                self._expected.fail(AssociationReleased("the peer has asked to release the association"))
                if self._operations.is_receiving or self.association.message_in_progress:
                    self._abort_peer(AbortReason.UNEXPECTED_PDU, "a release inside a message")
                elif not event.collision:
                    self._release_if_idle()
            case ReleaseConfirmed():
                if self._release_requested and self.association.state is State.STA12:
                    self.association.release_response(self._loop.time())
                self._association_over(Outcome.RELEASED)
            case Aborted():
                who = "by peer" if event.by_peer else event.text
                error = AssociationAborted(event.source, event.reason, f"aborted {who}")
                self._association_over(
                    Outcome.ABORTED, error, source=event.source, reason=event.reason, text=who
                )
            case TransportClosed():
                self._association_over(Outcome.LOST)
            case AssociateAccepted() | AssociateRejected():
                raise LocalProtocolError("an acceptor was answered as if it had asked")
            case _:
                assert_never(event)

    # -- how it begins ------------------------------------------------------------------------------------

    def reject(self, request: AssociateRQ, reason: RejectReason) -> None:
        """Answer A-ASSOCIATE-RJ."""
        self._outcome = "rejected"
        log_rejected(request, self.host, reason)
        self.association.reject(reason, self._loop.time())

    def take_place(self, admission: Admission, info: AssociationInfo) -> None:
        """There is an association from here on."""
        self.info = info
        # What was changed since the socket came holds for this association, whole, and later changes do not.
        self.config, self.services = self._manager.config, self._manager.services
        limits, peer = self.config.limits, admission.peer
        if peer is not None:
            idle_seconds = peer.idle_override(limits.idle_seconds, limits.dicos_idle_seconds)
            if idle_seconds is not None:
                self.association.set_idle_seconds(idle_seconds)
        self._manager.association_began(self)

    def accept(self, request: AssociateRQ, admission: Admission, info: AssociationInfo) -> None:
        """Answer A-ASSOCIATE-AC."""
        self.association.accept(admission.answer, self._loop.time())
        admission.log_accepted(request, info)
        if self._manager.listener is not None:
            self._manager.listener.accepted(info)

    def answered_request(self) -> None:
        """Send the answer that somebody else had to be asked for."""
        self.flush()
        self._count_request()

    # -- its messages -------------------------------------------------------------------------------------

    def _command_received(self, event: CommandReceived) -> None:
        message, info = event.message, self.info
        if info is None:
            raise LocalProtocolError("a command arrived before the association was accepted")
        if event.glued:
            learn_is_dicos(info, True)
        if isinstance(message, CCancelRQ):
            self._cancel_received(message)
            return
        if isinstance(message, Request):
            self._operations.request_received(info, event.context_id, message)
        elif not (
            isinstance(message, Response) and self._expected.response_received(event.context_id, message)
        ):
            self._abort_peer(AbortReason.UNEXPECTED_PDU_PARAMETER, "a response to nothing that was asked")

    def _cancel_received(self, message: CCancelRQ) -> None:
        if message.has_dataset:
            self._abort_peer(AbortReason.UNEXPECTED_PDU_PARAMETER, "a C-CANCEL-RQ with a data set")
        else:
            self._operations.cancel_received(message)

    # -- what is sent -------------------------------------------------------------------------------------

    async def send_response(
        self, operation: PerformedOperation, response: Message, dataset: Buffer | None
    ) -> None:
        """Send a response of `operation`, behind a message that is being sent in pieces. Raises
        AssociationError, and LocalProtocolError for a response that cannot be sent."""
        async with self.sending:
            self._queue_response(operation, response, dataset)
        if is_final_response(response):
            self._operations.answered(operation)
            self.flush()
        else:
            self.flush_soon()
        await self.writable()

    def _queue_response(
        self, operation: PerformedOperation, response: Message, dataset: Buffer | None
    ) -> None:
        if self.error is not None:
            raise self.error
        if response.has_dataset is (dataset is None):
            raise LocalProtocolError("a response must have the data set that it announces, and no other")
        now = self._loop.time()
        try:
            self.association.send_command(operation.context.context_id, response, now)
            if dataset is not None:
                self.association.send_dataset(operation.context.context_id, dataset, now, last=True)
        except LocalProtocolError as error:
            if self.association.state in _CAN_ANSWER:
                raise  # It is the response that cannot be sent.
            raise AssociationLost(f"no answer can be sent any more: {error}") from error

    def next_message_id(self) -> int:
        """One for a request of ours, which the peer does not use for a request of its own either."""
        while True:
            self._last_message_id = self._last_message_id % LARGEST_MESSAGE_ID + 1
            if not self._operations.is_unanswered(self._last_message_id):
                return self._last_message_id

    def expect_responses(self, request: Request, receiver: ResponseReceiver) -> None:
        """Hand the responses to `request` to `receiver`, until `forget_responses`.

        Raises AssociationError when there will be none: also once the peer has asked to release, for then it
        may send nothing more (PS3.8 9.2, Sta8).
        """
        if self.error is not None:
            raise self.error
        if self._release_requested:
            raise AssociationReleased("the peer has asked to release the association")
        self._expected.expect(request, receiver)

    def forget_responses(self, message_id: int) -> None:
        """Nobody waits for them any more."""
        self._expected.forget(message_id)

    def _abort_peer(self, reason: AbortReason, text: str) -> None:
        """The peer broke the rules of DIMSE; nothing when the association is over already."""
        if self.association.state not in (State.STA1, State.STA13):
            self.association.abort(
                self._loop.time(), source=AbortSource.SERVICE_PROVIDER, reason=reason, text=text
            )

    # -- the end ------------------------------------------------------------------------------------------

    def release_when_idle(self) -> None:
        """The server drains: release as soon as no operation runs (PS3.8 7.2; either side may ask)."""
        self._release_wanted = True
        self._release_if_idle()
        self.flush()

    def operations_ended(self) -> None:
        """None runs or waits any more."""
        self._manager.operations_ended(self)
        self._tell_of_end()
        if self._release_requested or self._release_wanted:
            self._release_if_idle()
            self.flush()

    def _release_if_idle(self) -> None:
        if self._operations.queued or self._outcome or self.info is None:
            return
        now = self._loop.time()
        if self._release_requested:
            if self.association.state is State.STA8:
                self.association.release_response(now)
                self._association_over(Outcome.RELEASED)
        elif self._release_wanted and not self._release_sent and self.association.state is State.STA6:
            self._release_sent = True
            self.association.release(now)

    def _association_over(
        self, outcome: Outcome, error: AssociationError | None = None, **details: object
    ) -> None:
        if self._outcome:
            return
        self._entrance.close()
        self._outcome = outcome
        self.error = error or AssociationLost(f"the association has ended: {outcome}")
        self._operations.association_ended(self.error)
        self._expected.fail(self.error)
        if self.info is None:
            if outcome == "aborted":
                log_aborted(self.host, details)
            return
        self._manager.association_ended(self)
        self._measures.associations.ended[outcome] += 1
        seconds = time.monotonic() - self.opened_at
        operations = self._operations
        log_ended(self.info, outcome, operations.count, operations.dataset_bytes, seconds, details)
        self._tell_of_end()

    def _tell_of_end(self) -> None:
        """Once nothing of it is performed any more: an object may still become safe when its peer is gone."""
        if self._is_end_told or self.info is None or not self._outcome or self._operations.queued:
            return
        self._is_end_told = True
        if self._manager.listener is not None:
            self._manager.listener.ended(
                self.info, self._outcome, self._operations.count, self._operations.dataset_bytes
            )

    # -- the budget ---------------------------------------------------------------------------------------

    def budget_exhausted(self) -> None:
        """See `BudgetHolder`."""
        self._operations.press()

    def stop_for_budget(self) -> None:
        """See `BudgetHolder`."""
        self.stop_reading(ReadingStop.PROCESS_BUDGET)

    def go_on_with_budget(self) -> None:
        """See `BudgetHolder`."""
        self.go_on_reading(ReadingStop.PROCESS_BUDGET)
