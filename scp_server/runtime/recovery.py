"""Start-up after a crash: objects that became visible, but perhaps not known to the index, are adopted.

Only what may have been in flight is looked at, so it takes as long with a million objects as with none.
What is adopted was never acknowledged, or was acknowledged and is in the index already: adopting it does no
harm, and forgetting it would leave a file that nobody finds.
"""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3

from scp_server.errors import OperationRefused, StorageError
from scp_server.index.base import AddOutcome, DuplicatePolicy, Index, IndexEntry
from scp_server.objects.header_tap import HeaderTap, TapLimits
from scp_server.objects.part10 import FileMeta, read_file_meta
from scp_server.objects.summary import summarize
from scp_server.objects.uids import is_dicos_sop_class
from scp_server.observability.logs import get_logger
from scp_server.services.reception import DIGEST_ALGORITHM
from scp_server.services.storage import StorageServiceConfig
from scp_server.storage.base import Storage, StoredObject

log = get_logger(__name__)

_FILE_META_BYTES = 1024 * 1024
_BATCH = 500


@dataclass(slots=True)
class RecoveryReport:
    """What start-up found among the objects that may have been in flight."""

    examined: int = 0
    adopted: int = 0
    removed: int = 0
    unreadable: int = 0


async def recover(storage: Storage, index: Index, config: StorageServiceConfig) -> RecoveryReport:
    """Bring index and storage together again. Raises StorageError or IndexFailure when that is impossible."""
    report = RecoveryReport()
    batch: list[StoredObject] = []
    async for stored in storage.in_flight():
        batch.append(stored)
        if len(batch) >= _BATCH:
            await _examine(batch, storage, index, config, report)
            batch.clear()
    await _examine(batch, storage, index, config, report)
    await storage.settled()
    if report.examined:
        log.info(
            "recovery.ended",
            examined=report.examined,
            adopted=report.adopted,
            removed=report.removed,
            unreadable=report.unreadable,
        )
    return report


async def _examine(
    batch: list[StoredObject],
    storage: Storage,
    index: Index,
    config: StorageServiceConfig,
    report: RecoveryReport,
) -> None:
    report.examined += len(batch)
    unknown = set(await index.unknown_locations([stored.location for stored in batch]))
    entries = []
    for stored in batch:
        if stored.location in unknown:
            try:
                entries.append(await read_entry(storage, stored, config.tap_limits))
            except (OperationRefused, StorageError, ValueError) as error:
                report.unreadable += 1
                log.error("object.unreadable", location=stored.location, error=str(error))
    for entry in sorted(entries, key=lambda each: each.arrival_id):
        dicos = is_dicos_sop_class(entry.summary.sop_class_uid)
        policy: DuplicatePolicy = config.dicos_duplicates if dicos else config.duplicates
        result = await index.add(entry, policy)
        if result.outcome in (AddOutcome.SAME, AddOutcome.CONFLICT):
            # It lost against a kept object and was about to be taken back when the process ended.
            await storage.delete(entry.location)
            report.removed += 1
        else:
            report.adopted += 1
        log.info("object.recovered", location=entry.location, outcome=result.outcome.value)


async def read_entry(storage: Storage, stored: StoredObject, limits: TapLimits) -> IndexEntry:
    """Read a stored object as the index wants it, checking its data set to the last byte.

    Raises UnreadableDataset, OperationRefused, StorageError, or ValueError for what is no Part 10 file.
    """
    meta: FileMeta | None = None
    tap: HeaderTap | None = None
    digest = blake3()
    beginning = b""
    async for chunk in storage.read(stored.location):
        if tap is None:
            beginning += chunk
            if len(beginning) < min(_FILE_META_BYTES, stored.size_bytes):
                continue
            meta = read_file_meta(beginning)
            tap = HeaderTap(meta.transfer_syntax_uid, limits)
            tap.feed(beginning[meta.dataset_offset_bytes :])
            digest.update(beginning[meta.dataset_offset_bytes :])
            beginning = b""
        else:
            tap.feed(chunk)
            digest.update(chunk)
    if tap is None or meta is None:
        raise ValueError("the file is empty")
    tap.finish()
    if tap.header is None:
        raise ValueError("the data set has no header")
    if meta.arrival_id is None or meta.received_at_ns is None:
        raise ValueError("the file was not written by this server")
    return IndexEntry(
        summary=summarize(tap.header),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        digest_algorithm=DIGEST_ALGORITHM,
        digest=digest.digest(),
        location=stored.location,
        size_bytes=stored.size_bytes,
        dataset_offset_bytes=meta.dataset_offset_bytes,
        arrival_id=meta.arrival_id,
        received_at_ns=meta.received_at_ns,
        calling_ae_title=meta.sending_ae_title or "",
        called_ae_title=meta.receiving_ae_title or "",
        header=tap.header.pack(),
    )
