"""Storage: C-STORE (PS3.4 Annex B, PS3.7 9.1.1), from the first byte to a Success that is true.

The order is the promise: the object is durable, then indexed, and only then does the peer hear 0x0000. A
small object may become durable by being indexed: its bytes are in the index's transaction (`unsettled`).
Whatever fails before that leaves nothing behind, but for what the quarantine keeps (`refusals`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn, Protocol, cast

from scp_server.errors import (
    IndexFailure,
    OperationRefused,
    StorageError,
    StorageFull,
)
from scp_server.index.base import AddOutcome, AddResult, DuplicatePolicy, Index, IndexEntry
from scp_server.interfaces import AssociationInfo, DicosMode, Operation, PeerRules, ValidationPolicy
from scp_server.objects.header_tap import TapLimits
from scp_server.objects.uids import clean_uid, is_dicos_sop_class, is_valid_uid
from scp_server.observability.logs import get_logger, peer_text
from scp_server.observability.measures import ReceptionMeasures
from scp_server.pipeline.callbacks import ActiveCallbacks
from scp_server.pipeline.rules import ObjectRules
from scp_server.pipeline.verdicts import Reject
from scp_server.protocol.message import CStoreRQ, Message, response_to
from scp_server.protocol.status import Status
from scp_server.services.inspection import Coercion, Inspection, LetGoInTime
from scp_server.services.loop_share import LoopShare
from scp_server.services.reception import Arrival, Reception
from scp_server.services.refusals import RefusedObjects
from scp_server.services.registry import handles
from scp_server.services.unsettled import UnsettledObjects
from scp_server.services.validation import (
    RefusedByFindings,
    ValidationConfig,
    Validator,
    refusal_for,
)
from scp_server.storage.base import DeferredObject, Storage, StoredObject
from scp_server.storage.layout import location_for_log
from scp_server.storage.quarantine import Quarantine

log = get_logger(__name__)

_AFFECTED_SOP_INSTANCE_UID = 0x00001000
_MAX_NAMED_ELEMENTS = 64
"""Of what was changed, in the answer's Offending Element (0000,0901)."""
_MET_ANOTHER = frozenset({AddOutcome.SAME, AddOutcome.CONFLICT})
"""The newcomer is not in the index, because of what is."""


@dataclass(frozen=True, slots=True)
class StorageServiceConfig:
    """How objects are received and kept. Sizes in bytes."""

    tap_limits: TapLimits = field(default_factory=TapLimits)
    header_buffer_bytes: int = 1024 * 1024
    """What waits in memory for the header's end, before a staging file is begun without it."""
    max_object_bytes: int = 0
    """Largest data set; 0 is no bound."""
    duplicates: DuplicatePolicy = DuplicatePolicy.KEEP_FIRST
    """Other bytes under a SOP Instance UID already kept, for all but DICOS objects."""
    dicos_duplicates: DuplicatePolicy = DuplicatePolicy.PARTS
    """The same for DICOS objects: every section of a CT arrives under one SOP Instance UID."""
    max_changed_objects: int = 8
    """Written anew at once, because they are changed on arrival."""
    modifying_system: str = ""
    """What an Original Attributes Sequence calls us."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Which objects are judged, and what follows."""

    def duplicate_policy(self, sop_class_uid: str, peer: PeerRules | None = None) -> DuplicatePolicy:
        """What holds for an object of this class from this peer."""
        if peer is not None and peer.duplicates is not None:
            return peer.duplicates
        always = peer is not None and peer.dicos is DicosMode.ALWAYS
        return self.dicos_duplicates if always or is_dicos_sop_class(sop_class_uid) else self.duplicates


class Deletions(Protocol):
    """What an administrator has decided to delete; `runtime/maintenance/deletion.py` fulfils it."""

    async def doomed(self, wanted: Iterable[str]) -> set[str]:
        """Those locations that are to go, though the index may still have them. Raises StorageError."""
        ...


class ArrivalClock:
    """Gives each object its arrival id: unique, hexadecimal, and in the order of arrival.

    All end in `writer`, the name of this process among those that write to one storage; None makes one up.
    """

    def __init__(self, writer: str | None = None) -> None:
        self._last_ns = 0
        self.writer = writer or secrets.token_hex(3)

    def next(self) -> Arrival:
        """Nanoseconds since the epoch, never twice the same, and the id made from them."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        return Arrival(f"{self._last_ns:016x}{self.writer}", self._last_ns)


class StorageService:
    """Receives composite objects into a storage and an index."""

    def __init__(
        self,
        storage: Storage,
        index: Index,
        config: StorageServiceConfig,
        measures: ReceptionMeasures | None = None,
        quarantine: Quarantine | None = None,
        share: LoopShare | None = None,
        deletions: Deletions | None = None,
        arrivals: ArrivalClock | None = None,
        callbacks: ActiveCallbacks | None = None,
        rules: ObjectRules | None = None,
        unsettled: UnsettledObjects | None = None,
        validator: Validator | None = None,
    ) -> None:
        """Without `unsettled` every object is synced by itself, as its storage does it."""
        self._storage = storage
        self._share = share or LoopShare()
        self._index = index
        self._config = config
        self._measures = measures or ReceptionMeasures()
        self._arrivals = arrivals or ArrivalClock()
        self._refused = RefusedObjects(quarantine)
        self._deletions = deletions
        self._callbacks = callbacks
        self._changing = asyncio.Semaphore(config.max_changed_objects)
        self._inspection = Inspection(rules or ObjectRules(), callbacks, config.modifying_system)
        self._unsettled = unsettled
        self._nothing_refused = RefusedObjects(None)
        self._validator = validator or Validator(measures=self._measures)

    @handles(CStoreRQ)
    async def store(self, operation: Operation) -> Message:
        """C-STORE. Refuses with the statuses of PS3.4 B.2.3; see `docs/design.md` for the whole path."""
        return await self._store(operation, self._refused)

    async def store_again(self, operation: Operation) -> Message:
        """The same for what lies in quarantine: refused once more, it is not put there a second time. What
        its validation finds is recorded, and refuses nothing: somebody has decided to have it released."""
        return await self._store(operation, self._nothing_refused)

    async def _store(self, operation: Operation, refused: RefusedObjects) -> Message:
        request = cast(CStoreRQ, operation.request)
        policy = self._config.validation.policy(operation.context.abstract_syntax, operation.association.peer)
        reception = Reception(
            self._storage,
            self._config,
            operation,
            self._arrivals.next(),
            self._share,
            self._unsettled,
            will_be_judged=policy is not ValidationPolicy.OFF,
        )
        try:
            stored, coercion = await self._receive(reception, operation, refused, policy)
            await self._record(reception, stored, operation.association, refused)
        finally:
            await reception.end()
        if coercion.tags:
            self._measures.coerced += 1
        if coercion.tags and coercion.warning:
            return response_to(
                request,
                Status.COERCION_OF_DATA_ELEMENTS,
                comment="attributes were changed",
                offending_elements=coercion.tags[:_MAX_NAMED_ELEMENTS],
            )
        return response_to(request, Status.SUCCESS)

    async def _receive(
        self, reception: Reception, operation: Operation, refused: RefusedObjects, policy: ValidationPolicy
    ) -> tuple[StoredObject, Coercion]:
        """From the first byte to a durable object, and what was changed of it."""
        try:
            _check_command(cast(CStoreRQ, operation.request), operation)
            await reception.receive()
            wanted = await self._inspection.inspect(reception) if self._inspection.is_needed else None
            if wanted is None:
                await self._judge(reception, refused, policy)
                return await reception.commit(), Coercion()
            if self._changing.locked():
                # Its turn may take long to come, and what it holds is what others need.
                await reception.let_go()
            async with self._changing:
                arrival_id = self._arrivals.next().arrival_id
                coercion = await self._inspection.coerce(reception, wanted, arrival_id)
                await self._judge(reception, refused, policy)
                return await reception.commit(), coercion
        except OperationRefused as refusal:
            is_wanted = refusal.quarantine if isinstance(refusal, RefusedByFindings) else None
            await refused.keep_received(reception, refusal, is_wanted)
            self._tell_refused(reception, refusal)
            raise
        except Reject as verdict:
            rejection = OperationRefused(verdict.status, verdict.comment)
            await refused.keep_received(reception, rejection, verdict.quarantine)
            self._tell_refused(reception, rejection)
            raise rejection from verdict
        except StorageError as failure:
            raise _not_kept(failure, operation.association) from failure

    async def _judge(self, reception: Reception, refused: RefusedObjects, policy: ValidationPolicy) -> None:
        """Have an object judged, where it is to be. Raises RefusedByFindings where its policy says so."""
        if policy is ValidationPolicy.OFF:
            return
        config = self._config.validation
        async with LetGoInTime(reception):
            report = await reception.judge(self._validator, config)
        if refused is not self._nothing_refused:
            refusal = refusal_for(report, policy, config.refuse_from)
            if refusal is not None:
                raise refusal

    async def _record(
        self,
        reception: Reception,
        stored: StoredObject,
        association: AssociationInfo,
        refused: RefusedObjects,
    ) -> None:
        """Bring the durable object into the index, or take it back.

        Cancelled, or failing in another way than an index may, it leaves the object in flight: start-up
        finds it, and either the index has it or adopts it.
        """
        association_id = association.association_id
        policy = self._config.duplicate_policy(reception.summary.sop_class_uid, association.peer)
        deferred = reception.deferred
        try:
            result = await self._add(reception.index_entry(stored), policy, deferred)
        except (IndexFailure, StorageError) as failure:
            refusal = _not_kept(failure, association)
            await self._take_back(stored)
            raise refusal from failure
        finally:
            if self._unsettled is not None:
                self._unsettled.record(reception.arrival_id)
        reception.stages.indexed(persist_seconds=deferred.placing_seconds if deferred is not None else 0.0)
        self._measures.recorded(reception.stages)
        if result.patient_conflict:
            self._measures.patient_conflicts += 1
            log.warning(
                "patient.conflict",
                association_id=association_id,
                study_instance_uid=peer_text(reception.summary.study_instance_uid),
                sop_instance_uid=peer_text(reception.summary.sop_instance_uid),
            )
        if result.outcome is AddOutcome.CONFLICT:
            await self._refuse_newcomer(reception, stored, policy, refused)
        if result.outcome is AddOutcome.SAME and result.location != stored.location:
            await self._take_back(stored)
            return
        reception.tell_findings()
        await self._discard(result.discarded)
        await self._storage.indexed(stored)

    async def _add(
        self, entry: IndexEntry, policy: DuplicatePolicy, deferred: DeferredObject | None
    ) -> AddResult:
        """Bring an entry into the index, its object into its place before that where it is not there yet.

        What it meets there counts only while nobody has decided to delete it: otherwise that row goes now
        rather than in a moment, and the newcomer is kept in its own right.
        """
        first = None if deferred is None else deferred.place
        while True:
            result = await self._index.add(entry, policy, first)
            first = None
            if result.outcome not in _MET_ANOTHER or result.location == entry.location:
                return result
            met = [result.location]
            if self._deletions is None or not await self._deletions.doomed(met):
                return result
            await self._index.remove(met)

    async def _refuse_newcomer(
        self,
        reception: Reception,
        stored: StoredObject,
        policy: DuplicatePolicy,
        refused: RefusedObjects,
    ) -> NoReturn:
        """Other bytes are kept: the newcomer, whole and durable, goes into quarantine or is taken back."""
        rejects = policy is DuplicatePolicy.REJECT
        refusal = OperationRefused(
            Status.DUPLICATE_SOP_INSTANCE_REJECTED if rejects else Status.DUPLICATE_SOP_INSTANCE_KEPT,
            "other data is kept under this SOP Instance UID",
            (_AFFECTED_SOP_INSTANCE_UID,),
        )
        if not await refused.keep_stored(reception, stored, refusal):
            await self._take_back(stored)
        self._tell_refused(reception, refusal)
        raise refusal

    def _tell_refused(self, reception: Reception, refusal: OperationRefused) -> None:
        if self._callbacks is not None and self._callbacks.wants_invalid:
            self._callbacks.refused(reception.refused_instance(refusal))

    async def _discard(self, locations: Sequence[str]) -> None:
        """Delete what was replaced. The index remembers until it is gone; start-up does what fails here."""
        deleted = []
        for location in locations:
            try:
                await self._storage.delete(location)
            except StorageError as failure:
                log.error("object.left_over", location=location_for_log(location), error=str(failure))
            else:
                deleted.append(location)
        if deleted:
            self._index.forget_discarded(deleted)

    async def _take_back(self, stored: StoredObject) -> None:
        """Delete what the index does not know. If that fails, start-up finds it among what was in flight."""
        try:
            await self._storage.delete(stored.location)
        except StorageError as failure:
            log.error("object.left_over", location=location_for_log(stored.location), error=str(failure))
            return
        await self._storage.indexed(stored)


def _not_kept(failure: IndexFailure | StorageError, association: AssociationInfo) -> OperationRefused:
    """Log what went wrong in detail, which may name paths and machines, and say the rest to the peer."""
    if isinstance(failure, IndexFailure):
        log.error("index.failed", error=str(failure), association_id=association.association_id)
        return OperationRefused(Status.OUT_OF_RESOURCES, "the object cannot be indexed")
    log.error("storage.failed", error=str(failure), association_id=association.association_id)
    comment = "out of space" if isinstance(failure, StorageFull) else "the object cannot be written"
    return OperationRefused(Status.OUT_OF_RESOURCES, comment)


def _check_command(request: CStoreRQ, operation: Operation) -> None:
    if clean_uid(request.affected_sop_class_uid) != operation.context.abstract_syntax:
        raise OperationRefused(Status.SOP_CLASS_NOT_SUPPORTED, "the SOP class is not the one of this context")
    if not is_valid_uid(clean_uid(request.affected_sop_instance_uid)):
        raise OperationRefused(
            Status.INVALID_SOP_INSTANCE,
            "the SOP Instance UID breaks the rules of UIDs",
            (_AFFECTED_SOP_INSTANCE_UID,),
        )
    if not request.has_dataset:
        raise OperationRefused(Status.CANNOT_UNDERSTAND, "a C-STORE without a data set")
