"""One object on its way in: the header is read while the bytes go on into the storage."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from scp_server.errors import OperationRefused, StorageFull
from scp_server.index.base import IndexEntry
from scp_server.interfaces import Operation
from scp_server.objects.changes import Changes
from scp_server.objects.coercion import Modification, planning
from scp_server.objects.header_tap import HeaderTap
from scp_server.objects.part10 import FileMetaBytes, ReceivedDigest, dicos_version_value, file_meta
from scp_server.objects.summary import InstanceSummary, summarizing
from scp_server.objects.uids import clean_uid, is_dicos_sop_class, is_valid_uid
from scp_server.objects.validation.finding import Report
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.measures import StageClock
from scp_server.pipeline.instances import ReceivedInstance
from scp_server.pipeline.subjects import AssociationFacts, InvalidInstance, Times
from scp_server.protocol.message import CStoreRQ
from scp_server.protocol.status import Status
from scp_server.services.loop_share import LoopShare
from scp_server.services.rewriting import ChangedObject, Rewriting
from scp_server.services.unsettled import UnsettledObjects
from scp_server.services.validation import PixelEvidence, ValidationConfig, Validator
from scp_server.storage.base import DeferredObject, ObjectKey, ObjectWriter, Storage, StoredObject
from scp_server.storage.quarantine_record import QuarantineRecord, cut_text

if TYPE_CHECKING:
    from scp_server.services.storage import StorageServiceConfig

log = get_logger(__name__)

DIGEST_ALGORITHM = "blake3"
_SOP_CLASS_UID = 0x00080016
_SOP_INSTANCE_UID = 0x00080018


class Arrival(NamedTuple):
    """When an object came, as its unique id and as nanoseconds since the epoch."""

    arrival_id: str
    received_at_ns: int


class Reception:
    """Feeds one data set through the header tap into a writer, and holds no more of it than its limits.

    Bytes wait until the header has ended, because File Meta needs it; a header larger than
    `header_buffer_bytes` goes on without, with room in File Meta for what is still to be learnt.
    """

    def __init__(
        self,
        storage: Storage,
        config: StorageServiceConfig,
        operation: Operation,
        arrival: Arrival,
        share: LoopShare,
        unsettled: UnsettledObjects | None = None,
        *,
        will_be_judged: bool = False,
    ) -> None:
        self._storage = storage
        self._unsettled = unsettled
        self._share = share
        self._config = config
        self._operation = operation
        self._chunks = operation.dataset.chunks()
        self._arrival = arrival
        self._tap = HeaderTap(operation.context.transfer_syntax, config.tap_limits)
        self._pixels = (
            PixelEvidence(operation.context.transfer_syntax, config.tap_limits) if will_be_judged else None
        )
        self._report: Report | None = None
        self._digest = blake3()
        self._waiting: list[memoryview] = []
        self._waiting_bytes = 0
        self._received_bytes = 0
        self._released_bytes = 0
        self._writer: ObjectWriter | None = None
        self._file_meta: FileMetaBytes | None = None
        self._summary: InstanceSummary | None = None
        self._begun_without_header = False
        self._changed: ChangedObject | None = None
        self._committed = False
        self.deferred: DeferredObject | None = None
        """What is still to be done to make the object visible, once `commit` has returned."""
        self._receive_ended_at_ns: int | None = None
        self.stages = StageClock()
        """Where the time went."""

    @property
    def summary(self) -> InstanceSummary:
        """What the index is told, of the object as it is stored; known once the header has ended."""
        if self._summary is None:
            raise RuntimeError("the header has not ended")
        return self._summary

    @property
    def times(self) -> Times:
        """When its bytes began to come, and had come."""
        return Times(self._arrival.received_at_ns, self._receive_ended_at_ns)

    @property
    def arrival_id(self) -> str:
        """Ours, unique and in the order of arrival."""
        return self._arrival.arrival_id

    @property
    def association_id(self) -> str:
        """Whose it is, for logs."""
        return self._operation.association.association_id

    @property
    def received_bytes(self) -> int:
        """How much of the data set was taken."""
        return self._received_bytes

    @property
    def has_dataset(self) -> bool:
        """Whether the command announced a data set."""
        return self._operation.request.has_dataset

    async def receive(self) -> None:
        """Take the whole data set. Raises OperationRefused, StorageError or AssociationError."""
        async for chunks in self._chunks:
            self.stages.received()
            await self._take(chunks)
        self.stages.received()
        self._receive_ended_at_ns = time.time_ns()
        self._tap.finish()
        await self._look_at_header()
        self.stages.parsed()
        await self._write_waiting()

    async def let_go(self) -> None:
        """Hold nothing more of the data set in memory. Raises StorageError."""
        if self._writer is not None:
            await self._writer.flush()
        self._release()

    @property
    def is_changed(self) -> bool:
        """What is stored is not what was received."""
        return self._changed is not None

    async def change(self, changes: Changes, modification: Modification, arrival_id: str) -> tuple[int, ...]:
        """Have the object, which has been received, stored with changes and under another arrival id; returns
        the tags of what changes, none where it is as it should be already.

        What was received stays until `end`, for it may still be refused. Raises OperationRefused or
        StorageError.
        """
        if self._writer is None:
            raise RuntimeError("nothing was received")
        plan = await self._share.run(planning(self._tap.header, changes, modification))
        if plan is None:
            return ()
        # Then the digest is that of everything that was received.
        await self.let_go()
        received = ReceivedDigest(DIGEST_ALGORITHM, self._digest.digest())
        rewriting = Rewriting(
            self._storage, self._share, self._config.tap_limits, self._operation.context.transfer_syntax
        )
        changed = await rewriting.run(
            self._writer,
            self._file_meta_bytes,
            plan.splices,
            arrival_id,
            self._file_meta_of(arrival_id, received),
        )
        # From now on nobody needs the header that was received.
        self._changed, self._tap, self._summary = changed, changed.tap, changed.summary
        return plan.tags

    async def judge(self, validator: Validator, config: ValidationConfig) -> Report:
        """Have the object judged as it will be stored, and the index told what was found. Raises nothing."""
        self._report = await validator.judge(
            self._tap.header,
            None if self._pixels is None else self._pixels.finish(),
            config,
            {
                "association_id": self.association_id,
                "sop_instance_uid": peer_text(self.summary.sop_instance_uid),
            },
        )
        self.stages.parsed()
        return self._report

    def tell_findings(self) -> None:
        """Log what is wrong with the object, now that it is stored."""
        report = self._report
        if report is not None and report.errors:
            log.info(
                "object.invalid",
                association_id=self.association_id,
                sop_instance_uid=peer_text(self.summary.sop_instance_uid),
                errors=report.errors,
                warnings=report.warnings,
                codes=report.error_codes,
            )

    def received_instance(self) -> ReceivedInstance:
        """The object for whoever looks at it before `commit`; known once it has been received."""
        return ReceivedInstance(
            AssociationFacts.of(self._operation.association),
            self.times,
            self.summary,
            self._tap.header,
            self._operation.context.transfer_syntax,
            self._received_bytes,
        )

    def refused_instance(self, refusal: OperationRefused) -> InvalidInstance:
        """The object for whoever is told that it was refused."""
        request = self._store_request
        return InvalidInstance(
            association=AssociationFacts.of(self._operation.association),
            times=self.times,
            sop_class_uid=request.affected_sop_class_uid,
            sop_instance_uid=request.affected_sop_instance_uid,
            transfer_syntax_uid=self._operation.context.transfer_syntax,
            status=refusal.status,
            comment=refusal.comment,
            dataset_bytes=self._received_bytes,
            arrival_id=self._arrival.arrival_id,
        )

    async def commit(self) -> StoredObject:
        """Make the object durable and visible under its location, unless that is `deferred`. Raises
        StorageError."""
        if self._writer is None or self._file_meta is None:
            raise RuntimeError("nothing was received")
        writer, arrival_id = self._writer, self._arrival.arrival_id
        size_bytes = self._file_meta_bytes + self._received_bytes
        if self._changed is not None:
            writer, arrival_id = self._changed.writer, self._changed.arrival_id
            size_bytes = self._changed.size_bytes
        elif self._begun_without_header and self._file_meta.dicos_version_offset_bytes is not None:
            version = dicos_version_value(self.summary.dicos_version)
            await writer.patch(self._file_meta.dicos_version_offset_bytes, version)
        stored = await self._persist(writer, self._key(arrival_id), size_bytes)
        if self.deferred is not None:
            # What it holds of the peer's bytes is released when the operation ends.
            self._committed = True
            return stored
        self._committed = True
        self.stages.persisted()
        self._release()
        return stored

    async def _persist(self, writer: ObjectWriter, key: ObjectKey, size_bytes: int) -> StoredObject:
        """Commit or defer; unsynced only while that is counted as unsettled."""
        unsettled = self._unsettled
        admitted = unsettled is not None and unsettled.admit(self.arrival_id, size_bytes)
        stored: StoredObject | None = None
        try:
            self.deferred = writer.defer(key, may_leave_unsynced=admitted)
            if self.deferred is not None:
                stored = self.deferred.stored
            else:
                stored = await writer.commit(key, may_leave_unsynced=admitted)
            return stored
        finally:
            if unsettled is not None and (stored is None or stored.unsynced is None):
                unsettled.withdraw(self.arrival_id)

    def _key(self, arrival_id: str) -> ObjectKey:
        summary = self.summary
        return ObjectKey(
            study_instance_uid=summary.study_instance_uid,
            series_instance_uid=summary.series_instance_uid,
            sop_instance_uid=summary.sop_instance_uid,
            arrival_id=arrival_id,
            sop_class_uid=summary.sop_class_uid,
            patient_id=summary.patient_id,
            modality=summary.modality,
            study_date=summary.study_date,
            calling_ae_title=self._operation.association.calling_ae_title,
        )

    async def take_rest(self, admit: Callable[[int], Awaitable[None]]) -> ObjectWriter:
        """After a refusal: take what is left of the data set without looking at it; returns its writer.

        `admit(size_bytes)` is asked before anything more is written, and raises StorageFull. Raises
        StorageError or AssociationError; `end` then leaves nothing.
        """
        if self._file_meta is None:
            self._make_file_meta()
        await admit(self._file_meta_bytes + self._received_bytes)
        await self._write_waiting()
        self._release()
        async for chunks in self._chunks:
            size_bytes = self._receive(chunks)
            await admit(size_bytes)
            limit = self._config.max_object_bytes
            if limit and self._received_bytes > limit:
                raise StorageFull(f"the data set is larger than {limit} bytes")
            await self._write_waiting()
            if not chunks and self._writer is not None:
                await self._writer.flush()
            self._release()
        if self._writer is None:
            raise RuntimeError("nothing was received")
        return self._writer

    def quarantine_record(self, status: int, reason: str) -> QuarantineRecord:
        """Who sent it, and why it was refused. True once the whole data set has been written."""
        association, request = self._operation.association, self._store_request
        return QuarantineRecord(
            id=self._arrival.arrival_id,
            reason=reason,
            status=status,
            received_at_ns=self._arrival.received_at_ns,
            calling_ae_title=cut_text(association.calling_ae_title),
            called_ae_title=cut_text(association.called_ae_title),
            peer_host=cut_text(association.peer_host),
            peer_port=association.peer_port,
            application_context_name=cut_text(association.application_context_name),
            sop_class_uid=cut_text(clean_uid(request.affected_sop_class_uid)),
            sop_instance_uid=cut_text(clean_uid(request.affected_sop_instance_uid)),
            abstract_syntax_uid=cut_text(self._operation.context.abstract_syntax),
            transfer_syntax_uid=cut_text(self._operation.context.transfer_syntax),
            dataset_offset_bytes=self._file_meta_bytes,
            dataset_bytes=self._received_bytes,
            digest_algorithm=DIGEST_ALGORITHM,
            digest=self._digest.hexdigest(),
        )

    async def end(self) -> None:
        """Leave nothing behind but what was committed. To be called once it is indexed, or refused."""
        if self._changed is not None:
            await self._changed.writer.abort()
        if self._writer is not None and (self.is_changed or not self._committed):
            await self._writer.abort()

    def index_entry(self, stored: StoredObject) -> IndexEntry:
        """What the index is to know of the committed object."""
        if self._file_meta is None or not self._committed:
            raise RuntimeError("nothing was committed")
        association, changed = self._operation.association, self._changed
        file_meta = self._file_meta if changed is None else changed.file_meta
        return IndexEntry(
            summary=self.summary,
            transfer_syntax_uid=self._operation.context.transfer_syntax,
            digest_algorithm=DIGEST_ALGORITHM,
            digest=self._digest.digest(),
            location=stored.location,
            size_bytes=stored.size_bytes,
            dataset_offset_bytes=len(file_meta.data),
            arrival_id=self._arrival.arrival_id if changed is None else changed.arrival_id,
            received_at_ns=self._arrival.received_at_ns,
            calling_ae_title=association.calling_ae_title,
            called_ae_title=association.called_ae_title,
            header=self._tap.header,
            stored_digest=None if changed is None else changed.digest.digest(),
            receive_ended_at_ns=self._receive_ended_at_ns,
            association_id=association.association_id,
            peer_host=association.peer_host,
            peer_port=association.peer_port,
            peer_name=None if association.peer is None else association.peer.name,
            is_dicos=association.is_dicos,
            unsynced=stored.unsynced,
            report=self._report,
        )

    async def _take(self, chunks: list[memoryview]) -> None:
        """Take what arrived; an empty list asks to hold nothing back."""
        pressed = not chunks
        # Before they are looked at: what is refused has been received all the same.
        self._receive(chunks)
        limit = self._config.max_object_bytes
        if limit and self._received_bytes > limit:
            raise OperationRefused(Status.OUT_OF_RESOURCES, f"the data set is larger than {limit} bytes")
        for chunk in chunks:
            await self._share.run(self._tap.steps(chunk))
            if self._pixels is not None:
                await self._share.run(self._pixels.steps(chunk))
        if self._tap.header_complete:
            await self._look_at_header()
            may_wait = False
        else:
            may_wait = not pressed and self._writer is None
        self.stages.parsed()
        if may_wait and self._waiting_bytes < self._config.header_buffer_bytes:
            return
        await self._write_waiting()
        if pressed and self._writer is not None:
            await self._writer.flush()
        self.stages.persisted()
        self._release()

    def _receive(self, chunks: list[memoryview]) -> int:
        size_bytes = sum(map(len, chunks))
        self._waiting += chunks
        self._waiting_bytes += size_bytes
        self._received_bytes += size_bytes
        return size_bytes

    async def _look_at_header(self) -> None:
        """Once: learn the UIDs, and refuse an object that is not the one the command speaks of."""
        if self._summary is not None:
            return
        summary = await self._share.run(summarizing(self._tap.header, self._config.tap_limits))
        request = self._store_request
        for tag, said, found in (
            (_SOP_CLASS_UID, request.affected_sop_class_uid, summary.sop_class_uid),
            (_SOP_INSTANCE_UID, request.affected_sop_instance_uid, summary.sop_instance_uid),
        ):
            if clean_uid(said) != clean_uid(found):
                name = "SOP Class" if tag == _SOP_CLASS_UID else "SOP Instance"
                raise OperationRefused(
                    Status.DATASET_DOES_NOT_MATCH_SOP_CLASS,
                    f"{name} UID of data set and command differ",
                    (tag,),
                )
        self._summary = summary

    async def _write_waiting(self) -> None:
        if self._writer is None:
            # A refused object has its File Meta before it has a writer, for its size to be admitted.
            prefix = self._file_meta or self._make_file_meta()
            self._writer = await self._storage.begin(self._arrival.arrival_id, prefix.data, self._digest)
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._waiting_bytes = 0
            await self._writer.write(waiting)

    @property
    def _store_request(self) -> CStoreRQ:
        request = self._operation.request
        if not isinstance(request, CStoreRQ):
            raise TypeError("only a C-STORE is received")
        return request

    @property
    def _file_meta_bytes(self) -> int:
        return len(self._file_meta.data) if self._file_meta is not None else 0

    def _make_file_meta(self) -> FileMetaBytes:
        self._begun_without_header = self._summary is None
        self._file_meta = self._file_meta_of(self._arrival.arrival_id)
        return self._file_meta

    def _file_meta_of(self, arrival_id: str, received_digest: ReceivedDigest | None = None) -> FileMetaBytes:
        request = self._store_request
        association = self._operation.association
        summary = self._summary
        return file_meta(
            sop_class_uid=_writable(request.affected_sop_class_uid),
            sop_instance_uid=_writable(request.affected_sop_instance_uid),
            transfer_syntax_uid=self._operation.context.transfer_syntax,
            dicos_version=summary.dicos_version if summary else None,
            reserve_dicos_version=summary is None and is_dicos_sop_class(request.affected_sop_class_uid),
            source_ae_title=association.calling_ae_title,
            sending_ae_title=association.calling_ae_title,
            receiving_ae_title=association.called_ae_title,
            received_at_ns=self._arrival.received_at_ns,
            arrival_id=arrival_id,
            received_digest=received_digest,
        )

    def _release(self) -> None:
        """Everything received that neither waits here nor in the writer is held no longer."""
        held = self._waiting_bytes + (self._writer.held_bytes if self._writer is not None else 0)
        size_bytes = self._received_bytes - held - self._released_bytes
        if size_bytes > 0:
            self._released_bytes += size_bytes
            self._operation.dataset.release(size_bytes)


def _writable(uid: str) -> str:
    """A UID for the File Meta; none where the command's is none, and only the quarantine keeps the object."""
    cleaned = clean_uid(uid)
    return cleaned if is_valid_uid(cleaned) else ""
