"""Start-up after a crash: objects that became visible, but perhaps not known to the index, are adopted.

Only what may have been in flight is looked at, so it takes as long with a million objects as with none.
What is adopted was never acknowledged, or was acknowledged and is in the index already: adopting it does no
harm, and forgetting it would leave a file that nobody finds.

What cannot be read goes into the quarantine, where there is one: it is what a power cut leaves of an object
that was not synced yet, and nobody was told of it. Where the disk is to blame, or the file is none of ours,
it stays.

First go the files that the index has discarded, because a newcomer replaced them and the process ended
before they were deleted. Nothing is replaced here, whatever the policy says: the newcomer was never
acknowledged, and what is kept may have been. And nothing is deleted for the sake of a file that is gone.

Objects are adopted in order of arrival, since it numbers an instance's parts and decides whose bytes are
kept. They are found in any order, so all that are unknown are listed before the first is read whole; of each
the list holds a location and an arrival id, and the entries of a few at a time wait to share a transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from blake3 import blake3

from scp_server.errors import IndexFailure, IndexUnavailable, ObjectNotFound, OperationRefused, StorageError
from scp_server.index.base import AddOutcome, AddResult, DuplicatePolicy, Index, IndexEntry
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.part10 import MAX_FILE_META_BYTES, FileMeta, read_file_meta
from scp_server.objects.summary import summarizing
from scp_server.objects.validation.finding import Report
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import QuarantineEvent
from scp_server.protocol.status import Status
from scp_server.services.loop_share import LoopShare
from scp_server.services.reception import DIGEST_ALGORITHM
from scp_server.services.storage import Deletions, StorageServiceConfig
from scp_server.services.validation import PixelEvidence, StoredValidation, Validator
from scp_server.storage.base import Storage, StoredObject
from scp_server.storage.layout import checked_arrival_id, location_for_log
from scp_server.storage.quarantine import Quarantine
from scp_server.storage.quarantine_record import QuarantineRecord, cut_text

log = get_logger(__name__)

_OWN_FILE_META_BYTES = 65_536
"""Preamble and File Meta of a file that we wrote end before; they have a few hundred bytes."""
_ASKED_TOGETHER = 500
"""Locations that the index is asked about at once."""
_ADDED_TOGETHER = 16
"""Entries, each with its header, that may share a transaction."""


class NotOurs(ValueError):
    """A Part 10 file that this server did not write."""


@dataclass(slots=True)
class RecoveryReport:
    """What start-up found among the objects that may have been in flight.

    `unreadable` ones, and those that the index refuses, stay where they are and are logged, but for the
    `quarantined` among them. `discarded` are replaced files that were still to be deleted.
    """

    examined: int = 0
    adopted: int = 0
    removed: int = 0
    unreadable: int = 0
    quarantined: int = 0
    discarded: int = 0


Orphans = Callable[[Sequence[StoredObject]], Awaitable[list[StoredObject]]]
"""Those of some objects that the index does not know and that nobody is about to index or to delete."""


async def recover(
    storage: Storage,
    index: Index,
    config: StorageServiceConfig,
    deletions: Deletions | None = None,
    quarantine: Quarantine | None = None,
    orphans_among: Orphans | None = None,
    validator: Validator | None = None,
) -> RecoveryReport:
    """Bring index and storage together again, before anything is written. Doing it twice does no harm.
    What `deletions` say is doomed is left to them; what is not whole is kept by `quarantine`. While others
    write, `orphans_among` says what is theirs. A `validator` judges what is adopted, as `config` says.

    Raises StorageError or IndexUnavailable when that is impossible; the next start tries again.
    """
    recovery = _Recovery(storage, index, config, deletions, quarantine, orphans_among, validator)
    await recovery.run()
    report = recovery.report
    if report.examined or report.discarded:
        log.info(
            "recovery.ended",
            examined=report.examined,
            adopted=report.adopted,
            removed=report.removed,
            unreadable=report.unreadable,
            quarantined=report.quarantined,
            discarded=report.discarded,
        )
    return report


async def delete_discarded(storage: Storage, index: Index) -> int:
    """Delete the replaced files that were still to be deleted; returns their number."""
    deleted = [location for location in await index.discarded() if await _delete(storage, location)]
    if deleted:
        index.forget_discarded(deleted)
    return len(deleted)


async def _delete(storage: Storage, location: str) -> bool:
    try:
        await storage.delete(location)
    except StorageError as failure:
        log.error("object.left_over", location=location_for_log(location), error=str(failure))
        return False
    return True


class _Recovery:
    def __init__(
        self,
        storage: Storage,
        index: Index,
        config: StorageServiceConfig,
        deletions: Deletions | None,
        quarantine: Quarantine | None,
        orphans_among: Orphans | None,
        validator: Validator | None,
    ) -> None:
        self._validation = None if validator is None else StoredValidation(validator, config.validation)
        self._deletions = deletions
        self._quarantine = quarantine
        self._orphans_among = orphans_among
        self._storage = storage
        self._index = index
        self._config = config
        self._waiting: dict[str, IndexEntry] = {}
        """By SOP Instance UID, so that no two parts of one instance are added at once."""
        self._disk_failed = False
        self.report = RecoveryReport()

    async def run(self) -> None:
        self.report.discarded = await delete_discarded(self._storage, self._index)
        for stored in await self._in_order_of_arrival(await self._unknown()):
            try:
                entry = await read_entry(self._storage, stored, self._config.tap_limits, self._validation)
            except (OperationRefused, StorageError, ValueError) as error:
                await self._set_aside(stored, error)
                continue
            uid = entry.summary.sop_instance_uid
            if uid in self._waiting or len(self._waiting) == _ADDED_TOGETHER:
                await self._add_waiting()
            self._waiting[uid] = entry
        await self._add_waiting()
        if not self._disk_failed:
            await self._storage.settled()

    async def _unknown(self) -> list[StoredObject]:
        """The objects that may have been in flight and are not in the index, in any order."""
        unknown: list[StoredObject] = []
        batch: dict[str, StoredObject] = {}
        async for stored in self._storage.in_flight():
            batch[stored.location] = stored
            if len(batch) == _ASKED_TOGETHER:
                unknown += await self._unknown_of(batch)
                batch = {}
        return unknown + await self._unknown_of(batch)

    async def _unknown_of(self, batch: dict[str, StoredObject]) -> list[StoredObject]:
        self.report.examined += len(batch)
        if not batch:
            return []
        if self._orphans_among is not None:
            return await self._orphans_among(list(batch.values()))
        unknown = await self._index.unknown_locations(list(batch))
        doomed = await self._deletions.doomed(unknown) if self._deletions is not None else set()
        return [batch[location] for location in unknown if location not in doomed]

    async def _in_order_of_arrival(self, unknown: Iterable[StoredObject]) -> list[StoredObject]:
        arrivals: list[tuple[str, str, StoredObject]] = []
        for stored in unknown:
            try:
                arrivals.append((await self._arrival_id(stored), stored.location, stored))
            except (StorageError, ValueError) as error:
                await self._set_aside(stored, error)
        return [stored for _, _, stored in sorted(arrivals, key=lambda arrival: arrival[:2])]

    async def _arrival_id(self, stored: StoredObject) -> str:
        pieces = self._storage.read(stored.location, 0, _OWN_FILE_META_BYTES)
        meta = read_file_meta(b"".join([piece async for piece in pieces]))
        if meta.arrival_id is None or meta.received_at_ns is None:
            raise NotOurs("the file was not written by this server")
        return meta.arrival_id

    async def _add_waiting(self) -> None:
        entries, self._waiting = list(self._waiting.values()), {}
        results = await asyncio.gather(*map(self._add, entries), return_exceptions=True)
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, IndexUnavailable):
                raise result
            if isinstance(result, (IndexFailure, StorageError)):
                # It must not keep the server from starting for ever.
                self._leave(entry.location, result)
            elif isinstance(result, BaseException):
                raise result
            else:
                await self._settle(entry, result)

    async def _add(self, entry: IndexEntry) -> AddResult:
        policy = self._config.duplicate_policy(entry.summary.sop_class_uid)
        if policy is DuplicatePolicy.REPLACE:
            policy = DuplicatePolicy.KEEP_FIRST
        result = await self._index.add(entry, policy)
        if result.outcome is AddOutcome.CONFLICT and not await self._is_there(result.location):
            # With durability `process` a power cut may undo the index's replacement, but not the deletion.
            result = await self._index.add(entry, DuplicatePolicy.REPLACE)
            self.report.discarded = await delete_discarded(self._storage, self._index)
        return result

    async def _is_there(self, location: str) -> bool:
        try:
            return bool([piece async for piece in self._storage.read(location, 0, 1)])
        except ObjectNotFound:
            return False

    async def _settle(self, entry: IndexEntry, result: AddResult) -> None:
        if result.location == entry.location and result.outcome is AddOutcome.SAME:
            # The storage named it twice: this is the one that was just adopted.
            return
        if result.outcome in (AddOutcome.SAME, AddOutcome.CONFLICT):
            # It lost against a kept object and was about to be taken back when the process ended.
            try:
                kept = await self._is_there(result.location)
            except StorageError as failure:
                self._leave(entry.location, failure)
                return
            if not kept:
                self._leave(entry.location, ObjectNotFound("the file that the index has is gone"))
                return
            self.report.removed += await _delete(self._storage, entry.location)
        else:
            self.report.adopted += 1
        log.info("object.recovered", location=location_for_log(entry.location), outcome=result.outcome.value)

    async def _set_aside(self, stored: StoredObject, error: Exception) -> None:
        """Have the quarantine keep what cannot be read, where that is its own fault and there is room."""
        self._leave(stored.location, error)
        quarantine = self._quarantine
        if quarantine is None or not quarantine.enabled or isinstance(error, StorageError | NotOurs):
            return
        try:
            admission = await quarantine.admit()
            try:
                await admission.grow(stored.size_bytes)
                record = await unreadable_record(self._storage, stored, str(error))
                await quarantine.keep_stored(stored, record)
            finally:
                admission.close()
        except StorageError as failure:
            log.warning(
                "object.not_quarantined", location=location_for_log(stored.location), error=str(failure)
            )
            return
        quarantine.note(QuarantineEvent.KEPT)
        self.report.quarantined += 1
        log.warning("object.quarantined", location=location_for_log(stored.location), id=record.id)

    def _leave(self, location: str, error: Exception) -> None:
        if isinstance(error, StorageError) and not isinstance(error, ObjectNotFound):
            # Not the object's fault: it stays named as in flight, and the next start tries again.
            self._disk_failed = True
        self.report.unreadable += 1
        log.error("object.unreadable", location=location_for_log(location), error=str(error))


async def unreadable_record(storage: Storage, stored: StoredObject, reason: str) -> QuarantineRecord:
    """What can be told of a file that is not whole. Raises StorageError."""
    content = b"".join([piece async for piece in storage.read(stored.location, 0, _OWN_FILE_META_BYTES)])
    try:
        meta: FileMeta | None = read_file_meta(content)
    except ValueError:
        meta = None
    offset_bytes = meta.dataset_offset_bytes if meta else 0
    digest = blake3()
    async for piece in storage.read(stored.location, offset_bytes):
        digest.update(piece)
    return QuarantineRecord(
        id=checked_arrival_id(stored.location.rpartition("-")[2].removesuffix(".dcm")),
        reason=cut_text(f"found when the server started: {reason}"),
        status=Status.CANNOT_UNDERSTAND,
        received_at_ns=(meta.received_at_ns if meta else None) or 0,
        calling_ae_title=cut_text(meta.sending_ae_title if meta else ""),
        called_ae_title=cut_text(meta.receiving_ae_title if meta else ""),
        peer_host="",
        peer_port=0,
        application_context_name="",
        sop_class_uid=cut_text(meta.sop_class_uid if meta else ""),
        sop_instance_uid=cut_text(meta.sop_instance_uid if meta else ""),
        abstract_syntax_uid=cut_text(meta.sop_class_uid if meta else ""),
        transfer_syntax_uid=cut_text(meta.transfer_syntax_uid if meta else ""),
        dataset_offset_bytes=offset_bytes,
        dataset_bytes=max(0, stored.size_bytes - offset_bytes),
        digest_algorithm=DIGEST_ALGORITHM,
        digest=digest.hexdigest(),
    )


async def read_entry(
    storage: Storage, stored: StoredObject, limits: TapLimits, validation: StoredValidation | None = None
) -> IndexEntry:
    """Read a stored object as the index wants it, checking its data set to the last byte, and judge it.

    Raises UnreadableDataset, OperationRefused, StorageError, or ValueError for what is no Part 10 file.
    """
    meta: FileMeta | None = None
    tap: HeaderTap | None = None
    pixels: PixelEvidence | None = None
    digest, share = blake3(), LoopShare()
    beginning = b""
    async for chunk in storage.read(stored.location):
        if tap is None:
            beginning += chunk
            if len(beginning) < min(MAX_FILE_META_BYTES, stored.size_bytes):
                continue
            meta = read_file_meta(beginning)
            tap = HeaderTap(meta.transfer_syntax_uid, limits)
            if validation is not None and validation.config.is_judged_again(
                meta.sop_class_uid, meta.sending_ae_title or ""
            ):
                pixels = PixelEvidence(meta.transfer_syntax_uid, limits)
            data, beginning = beginning[meta.dataset_offset_bytes :], b""
        else:
            data = chunk
        await share.run(tap.steps(data))
        if pixels is not None:
            await share.run(pixels.steps(data))
        digest.update(data)
    if tap is None or meta is None:
        raise ValueError("the file is empty")
    tap.finish()
    if meta.arrival_id is None or meta.received_at_ns is None:
        raise NotOurs("the file was not written by this server")
    report: Report | None = None
    if validation is not None and pixels is not None:
        fields: dict[str, object] = {"location": location_for_log(stored.location)}
        report = await validation.validator.judge(tap.header, pixels.finish(), validation.config, fields)
    received = meta.received_digest
    return IndexEntry(
        summary=await share.run(summarizing(tap.header, limits)),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        digest_algorithm=DIGEST_ALGORITHM if received is None else received.algorithm,
        digest=digest.digest() if received is None else received.digest,
        location=stored.location,
        size_bytes=stored.size_bytes,
        dataset_offset_bytes=meta.dataset_offset_bytes,
        arrival_id=meta.arrival_id,
        received_at_ns=meta.received_at_ns,
        calling_ae_title=meta.sending_ae_title or "",
        called_ae_title=meta.receiving_ae_title or "",
        header=tap.header,
        stored_digest=None if received is None else digest.digest(),
        report=report,
    )
