"""The requests of one association, performed one after another in the order in which they came."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from scp_server.errors import AssociationError, LocalProtocolError
from scp_server.interfaces import AcceptedContext, AssociationInfo, Sender, Service
from scp_server.net.dataset_stream import DatasetStream
from scp_server.net.operation import PerformedOperation, refusing
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import ReadingStop
from scp_server.protocol.events import DatasetFragment
from scp_server.protocol.message import CCancelRQ, CStoreRQ, Request, UnrecognizedCommand
from scp_server.protocol.pdu import AbortSource
from scp_server.protocol.status import Status

if TYPE_CHECKING:
    from scp_server.net.association_manager import AssociationManager
    from scp_server.net.connection import Connection

log = get_logger(__name__)


class Operations:
    """The operation that runs and those that wait, with what they hold in memory.

    While one runs the connection goes on reading, so that a C-CANCEL or an A-ABORT is seen at once.
    """

    def __init__(self, connection: Connection, manager: AssociationManager, sender: Sender) -> None:
        self._connection = connection
        self._manager = manager
        self._sender = sender
        self._queue: deque[PerformedOperation] = deque()
        self._unanswered: dict[int, PerformedOperation] = {}
        self._receiving: PerformedOperation | None = None
        self._held_bytes = 0
        self._error: AssociationError | None = None
        self.count = 0
        """Requests received since the association began."""
        self.dataset_bytes = 0
        """Bytes of data sets received since then."""

    @property
    def queued(self) -> tuple[PerformedOperation, ...]:
        """The operation that runs, and those that wait."""
        return tuple(self._queue)

    @property
    def is_receiving(self) -> bool:
        """The data set of one is not whole yet."""
        return self._receiving is not None

    def is_unanswered(self, message_id: int) -> bool:
        """Whether the peer uses this message id for a request that has no final response yet."""
        return message_id in self._unanswered

    # -- what arrives -------------------------------------------------------------------------------------

    def request_received(self, info: AssociationInfo, context_id: int, message: Request) -> None:
        """Another operation; it starts at once when it is the only one."""
        context = info.contexts[context_id]
        operation = PerformedOperation(
            info,
            context,
            message,
            DatasetStream(self._released, ended=not message.has_dataset),
            self._service_for(message, context, info),
            self._connection.send_response,
            self._sender,
        )
        self.count += 1
        self._queue.append(operation)
        self._unanswered.setdefault(message.message_id, operation)
        if message.has_dataset:
            self._receiving = operation
        if len(self._queue) == 1:
            self._start(operation)
        elif len(self._queue) > self._connection.config.max_pending_operations:
            self._connection.stop_reading(ReadingStop.OPERATIONS)

    def _service_for(self, message: Request, context: AcceptedContext, info: AssociationInfo) -> Service:
        if isinstance(message, UnrecognizedCommand):
            return refusing(
                Status.UNRECOGNIZED_OPERATION, f"command field 0x{message.command_field:04X} is unknown"
            )
        if message.message_id in self._unanswered:
            return refusing(Status.DUPLICATE_INVOCATION, f"message id {message.message_id} is in use")
        roles = info.roles.get(context.abstract_syntax)
        if isinstance(message, CStoreRQ) and roles is not None and not roles.scu_role:
            return refusing(Status.NOT_AUTHORIZED, "the SCU role was not agreed on for this SOP class")
        return self._connection.services.find(message, context)

    def cancel_received(self, message: CCancelRQ) -> None:
        """A C-CANCEL of what is not performed, or no longer, is ignored (PS3.7 9.3.2.3)."""
        operation = self._unanswered.get(message.message_id_being_responded_to)
        if operation is not None:
            operation.cancel()

    def fragment_received(self, event: DatasetFragment) -> None:
        """Some of the data set of the last request."""
        operation = self._receiving
        if operation is None:
            raise LocalProtocolError("a data set fragment arrived without a command")
        size_bytes = len(event.data)
        self.dataset_bytes += size_bytes
        measures = self._manager.measures
        measures.operations.received(measures.peers.of(self._connection.peer_name), size_bytes)
        self._held_bytes += size_bytes
        operation.dataset.push(event.data, last=event.last)
        # After the push: who is asked to let go must already hold it.
        self._manager.budget.take(self._connection, size_bytes)
        if event.last:
            self._receiving = None
        if self._held_bytes > self._connection.config.association_buffer_bytes:
            self._connection.stop_reading(ReadingStop.ASSOCIATION_BUFFER)
            self.press()

    # -- one after another --------------------------------------------------------------------------------

    def _start(self, operation: PerformedOperation) -> None:
        operation.task = self._connection.loop.create_task(self._run(operation), name="operation")

    async def _run(self, operation: PerformedOperation) -> None:
        connection = self._connection
        try:
            await operation.perform()
        except AssociationError as end:
            operation.log_unanswered(end)
        except asyncio.CancelledError:
            # By the server's stop, or by something the service waited for: there will be no answer.
            connection.abort_association("the operation was cancelled", source=AbortSource.SERVICE_PROVIDER)
            raise
        except Exception:
            log.exception("operation.failed", association_id=operation.association.association_id)
            connection.abort_association("internal error", source=AbortSource.SERVICE_PROVIDER)
        finally:
            measures = self._manager.measures
            measures.operations.ended(
                measures.peers.of(connection.peer_name),
                operation.request,
                operation.status,
                time.monotonic() - operation.started_at,
                operation.dataset.received_bytes,
            )
            self._operation_ended()

    def _operation_ended(self) -> None:
        """The first operation is over, answered or not; the next one begins, unless the association ended."""
        self._forget(self._queue.popleft())
        while self._queue and self._error is not None:
            self._forget(self._queue.popleft())
        if self._queue:
            self._start(self._queue[0])
        if len(self._queue) <= self._connection.config.max_pending_operations:
            self._connection.go_on_reading(ReadingStop.OPERATIONS)
        if not self._queue:
            self._connection.operations_ended()

    def _forget(self, operation: PerformedOperation) -> None:
        operation.dataset.discard()
        self.answered(operation)
        if self._error is not None:
            # Raised in the service, it holds the service's frames and whatever lies in them: a cycle with
            # the operation, of a size that the peer chose, which only a full garbage collection would find.
            self._error.__traceback__ = None

    def answered(self, operation: PerformedOperation) -> None:
        """Its final response is sent, or never will be: its message id may be used again."""
        if self._unanswered.get(operation.request.message_id) is operation:
            del self._unanswered[operation.request.message_id]

    def association_ended(self, error: AssociationError) -> None:
        """Whoever still performs one hears of it; those that wait are forgotten when that one is over."""
        self._error = error
        for operation in self._queue:
            operation.association_ended(error)

    # -- the budget ---------------------------------------------------------------------------------------

    def press(self) -> None:
        """Have every operation let go of what it holds of its data set."""
        for operation in self._queue:
            operation.dataset.press()

    def _released(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes
        self._manager.budget.give(size_bytes)
        if self._held_bytes <= self._connection.config.association_buffer_bytes // 2:
            self._connection.go_on_reading(ReadingStop.ASSOCIATION_BUFFER)
