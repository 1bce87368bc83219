"""Storage: C-STORE (PS3.4 Annex B, PS3.7 9.1.1), from the first byte to a Success that is true.

The order is the promise: the object is durable, then indexed, and only then does the peer hear 0x0000.
Whatever fails before that leaves nothing behind.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import cast

from scp_server.errors import (
    IndexFailure,
    OperationRefused,
    StorageError,
    StorageFull,
)
from scp_server.index.base import AddOutcome, DuplicatePolicy, Index
from scp_server.interfaces import Operation
from scp_server.objects.header_tap import TapLimits
from scp_server.objects.uids import clean_uid, is_dicos_sop_class, is_valid_uid
from scp_server.observability.logs import get_logger, peer_text
from scp_server.protocol.message import CStoreRQ, Message, response_to
from scp_server.protocol.status import Status
from scp_server.services.reception import Arrival, Reception
from scp_server.services.registry import handles
from scp_server.storage.base import Storage, StoredObject

log = get_logger(__name__)

_AFFECTED_SOP_INSTANCE_UID = 0x00001000


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


class ArrivalClock:
    """Gives each object its arrival id: unique, hexadecimal, and in the order of arrival."""

    def __init__(self) -> None:
        self._last_ns = 0
        self._process = secrets.token_hex(3)

    def next(self) -> Arrival:
        """Nanoseconds since the epoch, never twice the same, and the id made from them."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        return Arrival(f"{self._last_ns:016x}{self._process}", self._last_ns)


class StorageService:
    """Receives composite objects into a storage and an index."""

    def __init__(self, storage: Storage, index: Index, config: StorageServiceConfig) -> None:
        self._storage = storage
        self._index = index
        self._config = config
        self._arrivals = ArrivalClock()

    @handles(CStoreRQ)
    async def store(self, operation: Operation) -> Message:
        """C-STORE. Refuses with the statuses of PS3.4 B.2.3; see `docs/design.md` for the whole path."""
        request = cast(CStoreRQ, operation.request)
        _check_command(request, operation)
        reception = Reception(self._storage, self._config, operation, self._arrivals.next())
        try:
            await reception.receive()
            stored = await reception.commit()
        except StorageError as failure:
            log.error(
                "storage.failed", error=str(failure), association_id=operation.association.association_id
            )
            # What went wrong in detail is the operator's business: it may name paths and machines.
            comment = "out of space" if isinstance(failure, StorageFull) else "the object cannot be written"
            raise OperationRefused(Status.OUT_OF_RESOURCES, comment) from failure
        finally:
            await reception.end()
        await self._record(reception, stored, operation.association.association_id)
        return response_to(request, Status.SUCCESS)

    async def _record(self, reception: Reception, stored: StoredObject, association_id: str) -> None:
        """Bring the durable object into the index, or take it back.

        Cancelled, or failing in another way than an index may, it leaves the object in flight: start-up
        finds it, and either the index has it or adopts it.
        """
        dicos = is_dicos_sop_class(reception.summary.sop_class_uid)
        policy = self._config.dicos_duplicates if dicos else self._config.duplicates
        try:
            result = await self._index.add(reception.index_entry(stored), policy)
        except IndexFailure as failure:
            log.error("index.failed", error=str(failure), association_id=association_id)
            await self._take_back(stored)
            raise OperationRefused(Status.OUT_OF_RESOURCES, "the object cannot be indexed") from failure
        if result.patient_conflict:
            log.warning(
                "patient.conflict",
                association_id=association_id,
                study_instance_uid=peer_text(reception.summary.study_instance_uid),
                sop_instance_uid=peer_text(reception.summary.sop_instance_uid),
            )
        if result.outcome in (AddOutcome.SAME, AddOutcome.CONFLICT) and result.location != stored.location:
            await self._take_back(stored)
        else:
            await self._storage.indexed(stored)
        if result.outcome is AddOutcome.CONFLICT:
            raise OperationRefused(
                Status.DUPLICATE_SOP_INSTANCE_KEPT,
                "other data is kept under this SOP Instance UID",
                (_AFFECTED_SOP_INSTANCE_UID,),
            )

    async def _take_back(self, stored: StoredObject) -> None:
        """Delete what the index does not know. If that fails, start-up finds it among what was in flight."""
        try:
            await self._storage.delete(stored.location)
        except StorageError as failure:
            log.error("object.left_over", location=stored.location, error=str(failure))
            return
        await self._storage.indexed(stored)


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
