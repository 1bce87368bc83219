"""Out of quarantine and through the front door again: the same storage service, reading from a file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from scp_server.errors import OperationRefused, StorageError
from scp_server.interfaces import AssociationInfo
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.measures import QuarantineEvent
from scp_server.protocol.status import Status
from scp_server.services.own_operation import OwnObject, OwnOperation
from scp_server.services.storage import StorageService
from scp_server.storage.quarantine import Quarantine
from scp_server.storage.quarantine_record import QuarantineRecord

log = get_logger(__name__)


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


def _operation(quarantine: Quarantine, record: QuarantineRecord) -> OwnOperation:
    """What brings an object back with its original sender."""
    stored = OwnObject(
        record.sop_class_uid, record.sop_instance_uid, record.transfer_syntax_uid, record.abstract_syntax_uid
    )
    association = AssociationInfo(
        association_id=f"release-{record.id}",
        calling_ae_title=record.calling_ae_title,
        called_ae_title=record.called_ae_title,
        peer_host=record.peer_host,
        peer_port=record.peer_port,
        application_context_name=record.application_context_name,
    )
    return OwnOperation(stored, _FileDataset(quarantine, record), association)


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
                await self.service.store_again(_operation(quarantine, record))
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
