"""The acceptor's side of one connection: negotiates, turns requests into operations, and answers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, assert_never

from scp_server.errors import AssociationAborted, AssociationError, AssociationLost, LocalProtocolError
from scp_server.interfaces import AssociationInfo
from scp_server.net.admission import learn_is_dicos
from scp_server.net.association_transport import AssociationTransport
from scp_server.net.dataset_stream import DatasetStream
from scp_server.net.operation import PerformedOperation, refusing
from scp_server.observability.logs import get_logger, peer_text
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
from scp_server.protocol.message import CCancelRQ, Message, Request, UnrecognizedCommand
from scp_server.protocol.pdu import AbortReason, AbortSource, AssociateRQ, RejectReason
from scp_server.protocol.status import Status
from scp_server.protocol.upper_layer import is_final_response

if TYPE_CHECKING:
    from scp_server.net.association_manager import AssociationManager

log = get_logger(__name__)

_CAN_ANSWER = frozenset({State.STA6, State.STA8})


class Connection(AssociationTransport):
    """One accepted socket. Operations are performed one after another, in the order of their requests;
    while one runs the connection goes on reading, so that a C-CANCEL or an A-ABORT is seen at once."""

    def __init__(self, manager: AssociationManager) -> None:
        config = manager.config
        super().__init__(Role.ACCEPTOR, config.limits, config.transport)
        self._manager = manager
        self._config = config
        self._services = manager.services
        self._budget = manager.budget
        self._measures = manager.measures
        self._held_bytes = 0
        self._operations: deque[PerformedOperation] = deque()
        self._unanswered: dict[int, PerformedOperation] = {}
        self._receiving: PerformedOperation | None = None
        self._asks_still = True
        self._release_requested = False
        self._release_wanted = False
        self._release_sent = False
        self._error: AssociationError | None = None
        self._outcome = ""
        self._operation_count = 0
        self._dataset_bytes = 0
        self.opened_at = time.monotonic()
        self.info: AssociationInfo | None = None
        self.host = ""

    # -- the socket ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a place among the sockets; the association counts only once it is accepted."""
        super().connection_made(transport)
        self.host = self.peer_address[0]
        self._budget.join(self)
        self._manager.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        """Until an association is asked for, what arrives counts against the bound for all half-open ones."""
        self._measures.associations.received_bytes += len(data)
        super().data_received(data)
        if self._asks_still:
            self._asks_still = self.is_half_open
            self._manager.request_bytes_held(self, self.bytes_received if self._asks_still else 0)

    def transport_ended(self) -> None:
        """Give everything back."""
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
        return self._operation_count

    @property
    def dataset_bytes(self) -> int:
        """Bytes of data sets received since the association began."""
        return self._dataset_bytes

    @property
    def operations(self) -> tuple[PerformedOperation, ...]:
        """The operation that runs, and those that wait."""
        return tuple(self._operations)

    @property
    def operation_count(self) -> int:
        """How many operations run or wait."""
        return len(self._operations)

    # -- events of the association ------------------------------------------------------------------------

    def handle_event(self, event: Event) -> None:
        """See `AssociationTransport`."""
        match event:
            case DatasetFragment():
                self._dataset_fragment(event)
            case CommandReceived():
                self._command_received(event)
            case AssociateRequested():
                self._associate_requested(event.request)
            case ReleaseRequested():
                # On a collision the requestor's response comes first (PS3.8 7.2.2.7).
                self._release_requested = True
                if self._receiving is not None or self.association.message_in_progress:
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

    def _associate_requested(self, request: AssociateRQ) -> None:
        if self.association.state is not State.STA3:
            return  # What came right behind the request has ended it; the events that say so follow.
        now = self._loop.time()
        admission = self._manager.admit(request, self.host)
        if isinstance(admission, RejectReason):
            self._outcome = "rejected"
            log.warning(
                "association.rejected",
                peer_host=self.host,
                calling_ae_title=peer_text(request.calling_ae_title),
                called_ae_title=peer_text(request.called_ae_title),
                application_context_name=peer_text(request.application_context_name),
                reason=admission.name,
            )
            self.association.reject(admission, now)
            return
        self.info = info = admission.association_info(
            request, self._manager.next_association_id(), self.peer_address
        )
        # What was changed since the socket came holds for this association, whole, and later changes do not.
        self._config, self._services = self._manager.config, self._manager.services
        limits, peer = self._config.limits, admission.peer
        if peer is not None:
            idle_seconds = peer.idle_override(limits.idle_seconds, limits.dicos_idle_seconds)
            if idle_seconds is not None:
                self.association.set_idle_seconds(idle_seconds)
        self._manager.association_began(self)
        self.association.accept(admission.answer, now)
        learn_is_dicos(info, self.association.is_dicos)
        admission.log_refused_contexts(info)
        log.debug(
            "association.accepted",
            association_id=info.association_id,
            peer_host=self.host,
            calling_ae_title=peer_text(request.calling_ae_title),
            contexts_proposed=len(request.presentation_contexts),
            contexts_accepted=len(info.contexts),
        )

    def _command_received(self, event: CommandReceived) -> None:
        message, info = event.message, self.info
        if info is None:
            raise LocalProtocolError("a command arrived before the association was accepted")
        if event.glued:
            learn_is_dicos(info, True)
        if isinstance(message, CCancelRQ):
            self._cancel_requested(message)
            return
        if isinstance(message, UnrecognizedCommand):
            service = refusing(
                Status.UNRECOGNIZED_OPERATION, f"command field 0x{message.command_field:04X} is unknown"
            )
        elif not isinstance(message, Request):
            self._abort_peer(AbortReason.UNEXPECTED_PDU_PARAMETER, "a response to nothing that was asked")
            return
        elif message.message_id in self._unanswered:
            service = refusing(Status.DUPLICATE_INVOCATION, f"message id {message.message_id} is in use")
        else:
            service = self._services.find(message, info.contexts[event.context_id])
        operation = PerformedOperation(
            info,
            info.contexts[event.context_id],
            message,
            DatasetStream(self._released, ended=not message.has_dataset),
            service,
            self._send,
        )
        self._operation_count += 1
        self._operations.append(operation)
        self._unanswered.setdefault(message.message_id, operation)
        if message.has_dataset:
            self._receiving = operation
        if len(self._operations) == 1:
            self._start(operation)
        elif len(self._operations) > self._config.max_pending_operations:
            self.stop_reading(ReadingStop.OPERATIONS)

    def _cancel_requested(self, message: CCancelRQ) -> None:
        """A C-CANCEL of what is not performed, or no longer, is ignored (PS3.7 9.3.2.3)."""
        if message.has_dataset:
            self._abort_peer(AbortReason.UNEXPECTED_PDU_PARAMETER, "a C-CANCEL-RQ with a data set")
            return
        operation = self._unanswered.get(message.message_id_being_responded_to)
        if operation is not None:
            operation.cancel()

    def _dataset_fragment(self, event: DatasetFragment) -> None:
        operation = self._receiving
        if operation is None:
            raise LocalProtocolError("a data set fragment arrived without a command")
        size_bytes = len(event.data)
        self._dataset_bytes += size_bytes
        self._measures.operations.received(self._measures.peers.of(self.peer_name), size_bytes)
        self._held_bytes += size_bytes
        operation.dataset.push(event.data, last=event.last)
        # After the push: who is asked to let go must already hold it.
        self._budget.take(self, size_bytes)
        if event.last:
            self._receiving = None
        if self._held_bytes > self._config.association_buffer_bytes:
            self.stop_reading(ReadingStop.ASSOCIATION_BUFFER)
            self.budget_exhausted()

    # -- operations ---------------------------------------------------------------------------------------

    def _start(self, operation: PerformedOperation) -> None:
        operation.task = self._loop.create_task(self._run(operation), name="operation")

    async def _run(self, operation: PerformedOperation) -> None:
        try:
            await operation.perform()
        except AssociationError as end:
            operation.log_unanswered(end)
        except asyncio.CancelledError:
            # By the server's stop, or by something the service waited for: there will be no answer.
            self.abort_association("the operation was cancelled", source=AbortSource.SERVICE_PROVIDER)
            raise
        except Exception:
            log.exception("operation.failed", association_id=operation.association.association_id)
            self.abort_association("internal error", source=AbortSource.SERVICE_PROVIDER)
        finally:
            self._measures.operations.ended(
                self._measures.peers.of(self.peer_name),
                operation.request,
                operation.status,
                time.monotonic() - operation.started_at,
                operation.dataset.received_bytes,
            )
            self._operation_ended()

    def _operation_ended(self) -> None:
        """The first operation is over, answered or not; the next one begins, unless the association ended."""
        self._forget(self._operations.popleft())
        while self._operations and self._outcome:
            self._forget(self._operations.popleft())
        if self._operations:
            self._start(self._operations[0])
        if len(self._operations) <= self._config.max_pending_operations:
            self.go_on_reading(ReadingStop.OPERATIONS)
        if not self._operations:
            self._manager.operations_ended(self)
            self._release_if_idle()
            self.flush()

    def _forget(self, operation: PerformedOperation) -> None:
        operation.dataset.discard()
        self._answered(operation)
        if self._error is not None:
            # Raised in the service, it holds the service's frames and whatever lies in them: a cycle with
            # the operation, of a size that the peer chose, which only a full garbage collection would find.
            self._error.__traceback__ = None

    def _answered(self, operation: PerformedOperation) -> None:
        """Its message id may be used again."""
        if self._unanswered.get(operation.request.message_id) is operation:
            del self._unanswered[operation.request.message_id]

    async def _send(self, operation: PerformedOperation, response: Message, dataset: Buffer | None) -> None:
        if self._error is not None:
            raise self._error
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
        if is_final_response(response):
            self._answered(operation)
            self.flush()
        else:
            self.flush_soon()
        await self.writable()

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

    def _release_if_idle(self) -> None:
        if self._operations or self._outcome or self.info is None:
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
        self._outcome = outcome
        self._error = error or AssociationLost(f"the association has ended: {outcome}")
        for operation in self._operations:
            operation.association_ended(self._error)
        if self.info is None:
            if outcome == "aborted":
                log.info("connection.aborted", peer_host=self.host, **_safe(details))
            return
        self._manager.association_ended(self)
        self._measures.associations.ended[outcome] += 1
        emit = log.info if outcome == "released" else log.warning
        emit(
            "association.ended",
            association_id=self.info.association_id,
            outcome=outcome.value,
            peer_host=self.info.peer_host,
            calling_ae_title=peer_text(self.info.calling_ae_title),
            called_ae_title=peer_text(self.info.called_ae_title),
            dicos=self.info.is_dicos,
            contexts=len(self.info.contexts),
            operations=self._operation_count,
            dataset_bytes=self._dataset_bytes,
            duration_seconds=round(time.monotonic() - self.opened_at, 6),
            **_safe(details),
        )

    # -- the budget ---------------------------------------------------------------------------------------

    def budget_exhausted(self) -> None:
        """See `BudgetHolder`."""
        for operation in self._operations:
            operation.dataset.press()

    def stop_for_budget(self) -> None:
        """See `BudgetHolder`."""
        self.stop_reading(ReadingStop.PROCESS_BUDGET)

    def go_on_with_budget(self) -> None:
        """See `BudgetHolder`."""
        self.go_on_reading(ReadingStop.PROCESS_BUDGET)

    def _released(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        self._budget.give(size_bytes)
        if self._held_bytes <= self._config.association_buffer_bytes // 2:
            self.go_on_reading(ReadingStop.ASSOCIATION_BUFFER)


def _safe(details: dict[str, object]) -> dict[str, object]:
    return {key: peer_text(value) if isinstance(value, str) else value for key, value in details.items()}
