"""Deleting what the archive keeps, so that a crash at any moment leaves all of it or, in the end, nothing.

1. A *record* that names every location is written to `<data-dir>/deletions/`, synced and renamed: from here
   on the deletion is decided.
2. The index forgets the parts, a transaction for each ROWS_TOGETHER of them, so that objects that arrive
   meanwhile are served in between.
3. The files go, then the record.

Whoever finds a record carries it out: the next start, before anything is adopted, and the maintenance
commands. Twice does no harm, for a location is never used again: what is sent anew lies somewhere else.

A part is *doomed* while a record names it. Its row may still be there, but nothing may rely on it any more:
whoever sends the same bytes again is not told that they are kept (`services/storage.py`), and a doomed file
without a row is nobody's orphan (`adoption.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from scp_server.errors import SCPServerError, StorageError
from scp_server.index.base import Index, Scope
from scp_server.observability.logs import get_logger
from scp_server.runtime.maintenance.deletion_record import (
    Draft,
    Extent,
    batches,
    discard_drafts,
    drop_record,
    locations,
    named,
    pending_deletions,
)
from scp_server.runtime.maintenance.progress import NoProgress, Progress
from scp_server.storage.base import Storage

log = get_logger(__name__)

ROWS_TOGETHER = 256
"""Parts forgotten in one transaction: bounds how long those that wait to be indexed wait for it."""
FILES_TOGETHER = 1_000
"""Locations that are read from a record in one visit to a thread."""
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


@dataclass(slots=True)
class _Order:
    """A deletion that somebody asked for. `abandoned` before it is `decided`, it ends with nothing done."""

    scope: Scope
    draft: Draft
    progress: Progress
    abandoned: bool = False
    decided: bool = False


class Deletions:
    """The deletions of a data folder that this process holds. They are carried out one after the other."""

    def __init__(self, data_dir: Path, storage: Storage, index: Index) -> None:
        self._data_dir = data_dir
        self._storage = storage
        self._index = index
        self._turn = asyncio.Lock()
        self._records: list[Path] = []
        self._running: dict[asyncio.Task[Removed], _Order] = {}

    async def finish(self) -> int:
        """Carry out what was decided and not finished, once whatever runs has ended; returns how many.

        Raises IndexFailure or StorageError.
        """
        async with self._turn:
            return await self._finish()

    async def unfinished(self) -> list[Path]:
        """The records that are left of deletions that nobody is carrying out. Raises StorageError."""
        began_before = {order.draft.path for order in self._running.values()}
        found = await asyncio.to_thread(pending_deletions, self._data_dir)
        carried_out = began_before | {order.draft.path for order in self._running.values()}
        return [record for record in found if record not in carried_out]

    async def delete(self, scope: Scope, progress: Progress | None = None) -> Removed:
        """Delete everything of `scope` that the index knows when its record is written.

        Cancelled before that is decided, nothing happens; later it goes on by itself. Raises StorageError or
        IndexFailure; then either nothing has happened or a record is left, and the next start finishes.
        """
        order = _Order(scope, Draft(self._data_dir), progress or NoProgress())
        task = asyncio.create_task(self._delete(order), name="maintenance.delete")
        self._running[task] = order
        task.add_done_callback(self._running.pop)
        try:
            return await asyncio.shield(task)
        finally:
            order.abandoned = True

    async def doomed(self, wanted: Iterable[str]) -> set[str]:
        """Those locations whose deletion is decided and not finished: their rows may be there or not, their
        files too. Costs nothing while nothing is being deleted. Raises StorageError.
        """
        records = tuple(self._records)
        return await asyncio.to_thread(named, records, wanted) if records else set()

    async def stop(self) -> None:
        """Give up what is not decided, and leave what is to the next start."""
        running = tuple(self._running)
        for task in running:
            order = self._running[task]
            order.abandoned = True
            if order.decided:
                task.cancel("the server stops")
        if running:
            await asyncio.wait(running)

    async def _delete(self, order: _Order) -> Removed:
        if self._turn.locked():
            order.progress.begin("waiting for another deletion", None)
        async with self._turn:
            await self._finish()
            extent = await self._decide(order)
            if not order.decided:
                return Removed()
            try:
                removed = await _carry_out(order.draft.path, self._storage, self._index, order.progress)
            except (SCPServerError, OSError, ValueError) as error:
                # Perhaps nobody waits for it any more.
                log.error("deletion.failed", record=order.draft.path.name, error=str(error))
                raise
            await self._look_again()
        removed.extent = extent
        # A UID is not a person's identity; what is deleted must be found in the log.
        log.warning(
            "archive.deleted",
            scope=order.scope.level.value,
            uid=order.scope.uid,
            parts=removed.parts,
            files=removed.files,
            failed=removed.failures,
        )
        return removed

    async def _decide(self, order: _Order) -> Extent:
        """Write the record, unless there is nothing to delete or nobody wants it any more."""
        draft = order.draft
        order.progress.begin("listing what is to go", None)
        try:
            extent = await draft.list(self._index, order.scope, lambda: order.abandoned)
            if extent.parts and not order.abandoned:
                order.decided = True
                # Looked up by its name, it names nothing before it has that.
                self._records.append(draft.path)
                await asyncio.to_thread(draft.decide)
        finally:
            await asyncio.to_thread(draft.discard)
        return extent

    async def _finish(self) -> int:
        await self._look_again()
        finished = await finish_deletions(self._data_dir, self._storage, self._index)
        await self._look_again()
        return finished

    async def _look_again(self) -> None:
        self._records = await asyncio.to_thread(pending_deletions, self._data_dir)


async def finish_deletions(
    data_dir: Path, storage: Storage, index: Index | None, *, keep_records: bool = False
) -> int:
    """Carry out every record that is left, with the files alone where `index` is None; returns how many.

    `keep_records` leaves the records for another time, when there is an index again. A record that cannot be
    read is logged and stays, and so does one whose files cannot be removed. Raises IndexFailure.
    """
    records = await asyncio.to_thread(pending_deletions, data_dir)
    await asyncio.to_thread(discard_drafts, data_dir)
    for record in records:
        try:
            removed = await _carry_out(record, storage, index, NoProgress(), keep_record=keep_records)
        except (OSError, ValueError, StorageError) as error:
            log.error("deletion.failed", record=record.name, error=str(error))
            continue
        log.warning("deletion.finished", parts=removed.parts, files=removed.files, failed=removed.failures)
    return len(records)


async def _carry_out(
    record: Path, storage: Storage, index: Index | None, progress: Progress, *, keep_record: bool = False
) -> Removed:
    removed = Removed()
    # Read to its end before anything goes: what is no record is not carried out by halves.
    total = await asyncio.to_thread(lambda: sum(1 for _ in locations(record)))
    if index is not None:
        progress.begin("forgetting parts", total)
        rows = batches(locations(record), ROWS_TOGETHER)
        while batch := await asyncio.to_thread(next, rows, None):
            removed.parts += await index.remove(batch)
            progress.advance(len(batch))
    progress.begin("deleting files", total)
    files = batches(locations(record), FILES_TOGETHER)
    while batch := await asyncio.to_thread(next, files, None):
        for location in batch:
            await _delete_file(storage, location, removed)
            progress.advance()
    if not removed.failures and not keep_record:
        await asyncio.to_thread(drop_record, record)
    return removed


async def _delete_file(storage: Storage, location: str, removed: Removed) -> None:
    try:
        await storage.delete(location)
    except StorageError as error:
        removed.failures += 1
        if removed.failures <= MAX_FAILURES:
            removed.failed[location] = str(error)
    else:
        removed.files += 1
