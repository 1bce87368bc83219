"""Out of quarantine and through the front door again: the same storage service, reading from a file."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from scp_server.errors import LocalProtocolError, OperationRefused, StorageError
from scp_server.interfaces import AcceptedContext, AssociationInfo, DatasetSource, Sender
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.measures import QuarantineEvent
from scp_server.protocol.events import Buffer
from scp_server.protocol.message import CStoreRQ, Message
from scp_server.protocol.status import Status
from scp_server.services.storage import StorageService
from scp_server.storage.quarantine import Quarantine
from scp_server.storage.quarantine_record import QuarantineRecord

log = get_logger(__name__)

_MESSAGE_ID = 1
_CONTEXT_ID = 1


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    """What became of a release: `status` 0x0000 and gone from quarantine, or the new reason it stays for."""

    id: str
    released: bool
    status: int
    reason: str


class _FileDataset:
    """A `DatasetSource` over a file in quarantine. Each piece is read when the last one has been taken."""

    def __init__(self, quarantine: Quarantine, record: QuarantineRecord) -> None:
        self._quarantine = quarantine
        self._record = record
        self._received_bytes = 0

    async def chunks(self) -> AsyncIterator[list[memoryview]]:
        """See `DatasetSource.chunks`. Raises StorageError."""
        record = self._record
        async for data in self._quarantine.read(record.id, record.dataset_offset_bytes):
            self._received_bytes += len(data)
            yield [memoryview(data)]
        if self._received_bytes != record.dataset_bytes:
            raise StorageError("the object in quarantine is not as long as its record says")

    def release(self, size_bytes: int) -> None:
        """See `DatasetSource.release`: nothing of it counted against the budget of what peers send."""

    @property
    def received_bytes(self) -> int:
        """See `DatasetSource.received_bytes`."""
        return self._received_bytes


class _ReleasedOperation:
    """An `Operation` that brings an object back with its original sender."""

    def __init__(self, quarantine: Quarantine, record: QuarantineRecord) -> None:
        self._dataset = _FileDataset(quarantine, record)
        self.context = AcceptedContext(_CONTEXT_ID, record.abstract_syntax_uid, record.transfer_syntax_uid)
        self.request: Message = CStoreRQ(
            message_id=_MESSAGE_ID,
            affected_sop_class_uid=record.sop_class_uid,
            affected_sop_instance_uid=record.sop_instance_uid,
            has_dataset=True,
        )
        self.association = AssociationInfo(
            association_id=f"release-{record.id}",
            calling_ae_title=record.calling_ae_title,
            called_ae_title=record.called_ae_title,
            peer_host=record.peer_host,
            peer_port=record.peer_port,
            application_context_name=record.application_context_name,
        )
        self.cancel_requested = False

    @property
    def dataset(self) -> DatasetSource:
        """See `Operation.dataset`."""
        return self._dataset

    @property
    def sender(self) -> Sender:
        """See `Operation.sender`: there is no association. Raises LocalProtocolError."""
        raise LocalProtocolError("an object that is released has no association to send on")

    def when_cancelled(self, callback: Callable[[], None]) -> None:
        """See `Operation.when_cancelled`: nobody can."""
        del callback

    async def send(self, response: Message, dataset: Buffer | None = None) -> None:
        """See `Operation.send`: a C-STORE has no pending responses (PS3.7 9.1.1)."""
        del response, dataset


class QuarantineRelease:
    """Releases objects, each with a new arrival and its original sender."""

    def __init__(self, quarantine: Quarantine, service: StorageService) -> None:
        self._quarantine = quarantine
        self.service = service
        """What stores; another one after the settings were reloaded."""

    async def release(self, object_id: str) -> ReleaseResult:
        """Store an object again. It leaves the quarantine only when that was a success.

        Killed in between it is in both places, and the next release finds the same bytes kept already.
        Raises ObjectNotFound, or StorageError when it cannot be read, is being released, or, once stored,
        cannot be dropped.
        """
        quarantine = self._quarantine
        quarantine.hold(object_id)
        try:
            record = await quarantine.record(object_id)
            try:
                await self.service.store_again(_ReleasedOperation(quarantine, record))
            except OperationRefused as refusal:
                return await self._refused_again(record, refusal)
            await quarantine.drop(object_id)
        finally:
            quarantine.let_go(object_id)
        quarantine.note(QuarantineEvent.RELEASED)
        log.info(
            "quarantine.released",
            id=object_id,
            calling_ae_title=peer_text(record.calling_ae_title),
            sop_instance_uid=peer_text(record.sop_instance_uid),
        )
        return ReleaseResult(object_id, True, Status.SUCCESS, "")

    async def _refused_again(self, record: QuarantineRecord, refusal: OperationRefused) -> ReleaseResult:
        self._quarantine.note(QuarantineEvent.RELEASE_REFUSED)
        log.warning(
            "quarantine.release_refused",
            id=record.id,
            status=f"0x{refusal.status:04X}",
            error=refusal.comment,
        )
        try:
            await self._quarantine.note_failed_release(record, refusal.status, refusal.comment)
        except StorageError as failure:
            # The reason it had before stands there still.
            log.error("quarantine.not_noted", id=record.id, error=str(failure))
        return ReleaseResult(record.id, False, refusal.status, refusal.comment)
