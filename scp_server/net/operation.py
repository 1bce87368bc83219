"""One DIMSE request while it is performed: what a service sees of it, and the ladder under the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from scp_server.errors import AssociationError, OperationRefused
from scp_server.interfaces import AcceptedContext, AssociationInfo, FinalResponse, Sender, Service
from scp_server.net.association_transport import MOST_FLUSHES_PUT_OFF
from scp_server.net.dataset_stream import DatasetStream
from scp_server.observability.logs import get_logger, peer_text
from scp_server.protocol.events import Buffer
from scp_server.protocol.message import (
    CEchoRQ,
    CStoreRQ,
    Message,
    Request,
    Response,
    SubOperationsResponse,
    response_to,
)
from scp_server.protocol.status import Status, StatusClass, status_class

log = get_logger(__name__)

SendResponse = Callable[["PerformedOperation", Message, Buffer | None], Awaitable[None]]


class PerformedOperation:
    """An `Operation` of one association."""

    __slots__ = (
        "_cancel_callbacks",
        "_end",
        "_send",
        "_service",
        "association",
        "cancel_requested",
        "context",
        "dataset",
        "request",
        "responses",
        "sender",
        "started_at",
        "status",
        "task",
    )

    def __init__(
        self,
        association: AssociationInfo,
        context: AcceptedContext,
        request: Request,
        dataset: DatasetStream,
        service: Service,
        send: SendResponse,
        sender: Sender,
    ) -> None:
        self.association = association
        self.context = context
        self.request = request
        self.dataset = dataset
        self.sender = sender
        self.cancel_requested = False
        self.started_at = time.monotonic()
        self.responses = 0
        """Pending ones that were sent."""
        self.status: int | None = None
        """What the peer was told; None while it was told nothing."""
        self.task: asyncio.Task[None] | None = None
        self._service = service
        self._send = send
        self._end: AssociationError | None = None
        self._cancel_callbacks: list[Callable[[], None]] = []

    def when_cancelled(self, callback: Callable[[], None]) -> None:
        """See `Operation.when_cancelled`."""
        if self.cancel_requested:
            callback()
        else:
            self._cancel_callbacks.append(callback)

    def cancel(self) -> None:
        """A C-CANCEL-RQ names this operation: tell the service, which answers in its own time."""
        self.cancel_requested = True
        callbacks, self._cancel_callbacks = self._cancel_callbacks, []
        for callback in callbacks:
            callback()

    async def send(self, response: Message, dataset: Buffer | None = None) -> None:
        """See `Operation.send`."""
        await self._send(self, response, dataset)
        self.responses += 1
        if self.responses % MOST_FLUSHES_PUT_OFF == 0:
            # Where the peer reads fast enough nothing above waits; a C-CANCEL-RQ must still be seen.
            await asyncio.sleep(0)

    def association_ended(self, error: AssociationError) -> None:
        """No answer is of use any more; whoever waits for the rest of the data set gets `error`."""
        self._end = error
        self.cancel()
        self.dataset.fail(error)

    async def perform(self) -> None:
        """Run the service, read the data set to its end, answer, and log one line.

        The one ladder between a service and its peer: a refusal becomes its status, anything unexpected a
        failure status; only the end of the association goes through.
        """
        response, dataset, error = await self._result()
        await self.dataset.drain()
        if self._is_a_warning_to_dicos(response):
            response = response_to(self.request, Status.SUCCESS)
        await self._send(self, response, dataset)
        self.status = response.status
        self._log(response, error)

    def _is_a_warning_to_dicos(self, response: Response) -> bool:
        """Whether an object was kept, and its sender would take the answer for a failure.

        The DICOS toolkit's client takes every status but 0x0000 for a failure, and does not send again.
        """
        return (
            self.association.is_dicos
            and isinstance(self.request, CStoreRQ)
            and status_class(response.status) is StatusClass.WARNING
        )

    async def _result(self) -> tuple[Response, bytes | None, str]:
        """The final response, its data set, and what went wrong."""
        try:
            answer = await self._service(self)
            if isinstance(answer, FinalResponse):
                response, dataset = answer.response, answer.dataset
            else:
                response, dataset = answer, None
            if not isinstance(response, Response):
                raise TypeError(f"a service answered {type(response).__name__}, which is no response")
            return response, dataset, response.error_comment or ""
        except OperationRefused as refusal:
            return (
                response_to(
                    self.request,
                    refusal.status,
                    comment=refusal.comment,
                    offending_elements=refusal.offending_elements,
                ),
                None,
                refusal.comment,
            )
        except Exception as failure:
            # Another association's end, one that the service asked for itself, is a failure like any other.
            if self._end is not None and isinstance(failure, AssociationError):
                raise
            log.exception("operation.failed", operation=type(self.request).__name__)
            # 0x0110 is not among the statuses of services with data sets (PS3.7 9.1.1.1.9, 9.1.2.1.6).
            status = (
                Status.PROCESSING_FAILURE if isinstance(self.request, CEchoRQ) else Status.CANNOT_UNDERSTAND
            )
            return response_to(self.request, status, comment="internal error"), None, type(failure).__name__

    def _log(self, response: Response, error: str) -> None:
        as_wanted = response.status in (Status.SUCCESS, Status.CANCEL)
        emit = log.info if as_wanted else log.warning
        fields: dict[str, object] = {}
        if isinstance(self.request, CStoreRQ):
            fields["sop_class_uid"] = peer_text(self.request.affected_sop_class_uid)
            fields["sop_instance_uid"] = peer_text(self.request.affected_sop_instance_uid)
            fields["transfer_syntax_uid"] = self.context.transfer_syntax
        if (
            isinstance(response, SubOperationsResponse)
            and response.number_of_completed_suboperations is not None
        ):
            fields["completed"] = response.number_of_completed_suboperations
            fields["failed"] = response.number_of_failed_suboperations
            fields["warning"] = response.number_of_warning_suboperations
        if self.responses:
            fields["responses"] = self.responses
        if error:
            fields["error"] = peer_text(error)
        emit(
            "operation.performed",
            association_id=self.association.association_id,
            operation=type(self.request).__name__.removesuffix("RQ"),
            message_id=self.request.message_id,
            context_id=self.context.context_id,
            calling_ae_title=peer_text(self.association.calling_ae_title),
            status=f"0x{response.status:04X}",
            dataset_bytes=self.dataset.received_bytes,
            duration_seconds=round(time.monotonic() - self.started_at, 6),
            **fields,
        )

    def log_unanswered(self, end: AssociationError) -> None:
        """The association ended before the answer: what came of the operation is the association's line."""
        log.debug(
            "operation.unanswered",
            association_id=self.association.association_id,
            operation=type(self.request).__name__.removesuffix("RQ"),
            message_id=self.request.message_id,
            dataset_bytes=self.dataset.received_bytes,
            error=peer_text(str(end)),
        )


def refusing(status: int, comment: str) -> Service:
    """A service that refuses whatever it is asked."""

    async def refuse(_operation: object) -> Message:
        raise OperationRefused(status, comment)

    return refuse
