"""Carrying out the deletion that a record names: first the rows, then the files, then the record goes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from scp_server.errors import StorageError
from scp_server.index.base import Index
from scp_server.observability.logs import get_logger
from scp_server.runtime.maintenance.deletion_record import (
    Extent,
    batches,
    discard_drafts,
    drop_record,
    locations,
    note_rows_gone,
    pending_deletions,
    rows_are_gone,
)
from scp_server.runtime.maintenance.progress import NoProgress, Progress
from scp_server.storage.base import Storage

log = get_logger(__name__)

ROWS_TOGETHER = 256
"""Parts forgotten in one transaction: bounds how long those that wait to be indexed wait for it."""
FILES_TOGETHER = 256
"""Files deleted in one visit to a thread of the storage, which syncs each of their directories once; others
want the thread too."""
MAX_FAILURES = 1_000
"""Files that could not be removed and are named; all are counted."""


@dataclass(slots=True)
class Removed:
    """What a deletion took. Files that could not be removed are left to the next start."""

    extent: Extent = field(default_factory=Extent)
    """What it was to take: all that the index knew when it was decided."""
    parts: int = 0
    files: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Location and reason, of the first MAX_FAILURES."""
    failures: int = 0


async def carry_out(
    record: Path, storage: Storage, index: Index | None, progress: Progress, *, keep_record: bool = False
) -> Removed:
    """Delete what `record` names, with the files alone where `index` is None, and then the record, unless it
    is to be kept or a file could not be removed.

    Raises IndexFailure, StorageError, OSError, or ValueError for what is no record; then the record is left.
    """
    removed = Removed()
    if index is not None:
        removed.parts = await forget_rows(record, index, progress, together=ROWS_TOGETHER)
    await _delete_files(record, storage, progress, removed)
    if not removed.failures and not keep_record:
        await asyncio.to_thread(drop_record, record)
    return removed


async def forget_rows(record: Path, index: Index, progress: Progress, *, together: int) -> int:
    """Take what `record` names out of the index, so many parts in one transaction; returns how many there
    were. Costs nothing where that has been done. Raises as `carry_out` does.
    """
    if await asyncio.to_thread(rows_are_gone, record):
        return 0
    progress.begin("forgetting parts", await _length(record))
    parts = 0
    rows = batches(locations(record), together)
    while batch := await asyncio.to_thread(next, rows, None):
        parts += await index.remove(batch)
        progress.advance(len(batch))
    await asyncio.to_thread(note_rows_gone, record)
    return parts


async def _delete_files(record: Path, storage: Storage, progress: Progress, removed: Removed) -> None:
    progress.begin("deleting files", await _length(record))
    files = batches(locations(record), FILES_TOGETHER)
    while batch := await asyncio.to_thread(next, files, None):
        try:
            failed = await storage.delete_many(batch)
        except StorageError as error:
            failed = dict.fromkeys(batch, str(error))
        removed.files += len(batch) - len(failed)
        removed.failures += len(failed)
        removed.failed.update(islice(failed.items(), MAX_FAILURES - len(removed.failed)))
        progress.advance(len(batch))


async def _length(record: Path) -> int:
    """How many parts it names. Read to its end before anything goes: what is no record is not carried out by
    halves."""
    return await asyncio.to_thread(lambda: sum(1 for _ in locations(record)))


async def finish_deletions(
    data_dir: Path,
    storage: Storage,
    index: Index | None,
    progress: Progress | None = None,
    *,
    keep_records: bool = False,
) -> int:
    """Carry out every record that is left, with the files alone where `index` is None; returns how many.

    `keep_records` leaves the records for another time, when there is an index again. A record that cannot be
    read is logged and stays, and so does one whose files cannot be removed. Raises IndexFailure.
    """
    progress = progress or NoProgress()
    records = await asyncio.to_thread(pending_deletions, data_dir)
    await asyncio.to_thread(discard_drafts, data_dir)
    for record in records:
        try:
            removed = await carry_out(record, storage, index, progress, keep_record=keep_records)
        except (OSError, ValueError, StorageError) as error:
            log.error("deletion.failed", record=record.name, error=str(error))
            continue
        log.warning("deletion.finished", parts=removed.parts, files=removed.files, failed=removed.failures)
    return len(records)
