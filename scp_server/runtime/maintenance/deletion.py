"""Deleting what the archive keeps, so that a crash at any moment leaves all of it or, in the end, nothing.

1. A *record* that names every location is written to `<data-dir>/deletions/`, synced and renamed: from here
   on the deletion is decided.
2. The index forgets the parts, a transaction for each ROWS_TOGETHER of them, so that objects that arrive
   meanwhile are served in between.
3. The files go, then the record.

Whoever finds a record carries it out: the next start and the maintenance commands. Twice does no harm, for a
location is never used again: what is sent anew lies somewhere else. A start does the second step before it is
ready, so that nobody who asks is shown what is left of a study, and the third one in a task of its own. How
far it is stands in the record: rows that have gone are not looked for again.

A part is *doomed* while a record names it. Its row may still be there, but nothing may rely on it any more:
whoever sends the same bytes again is not told that they are kept (`services/storage.py`), and a doomed file
without a row is nobody's orphan (`adoption.py`, `recovery.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scp_server.errors import SCPServerError, StorageError
from scp_server.index.base import Index, Scope
from scp_server.observability.logs import get_logger
from scp_server.runtime.maintenance.carrying_out import Removed, carry_out, finish_deletions, forget_rows
from scp_server.runtime.maintenance.deletion_record import (
    FOLDER,
    Draft,
    Extent,
    discard_drafts,
    named,
    pending_deletions,
)
from scp_server.runtime.maintenance.progress import NoProgress, Progress
from scp_server.storage.base import Storage

log = get_logger(__name__)

ROWS_BEFORE_READY = 20_000
"""Parts forgotten in one transaction at the start, while nobody waits: three times as fast as few."""


@dataclass(slots=True)
class _Order:
    """A deletion that somebody asked for. `abandoned` before it is `decided`, it ends with nothing done."""

    scope: Scope
    draft: Draft
    progress: Progress
    abandoned: bool = False
    decided: bool = False


class _Shown:
    """The progress of what is carried out; those that wait for their turn see that it moves."""

    def __init__(self, own: Progress, waiting: Collection[Progress]) -> None:
        self._own = own
        self._waiting = waiting

    def begin(self, stage: str, total: int | None) -> None:
        """See `Progress.begin`."""
        self._own.begin(stage, total)
        self._tell()

    def advance(self, count: int = 1) -> None:
        """See `Progress.advance`."""
        self._own.advance(count)
        self._tell()

    def _tell(self) -> None:
        for each in self._waiting:
            each.advance(0)


class Deletions:
    """The deletions of a data folder that this process holds. They are carried out one after the other."""

    def __init__(self, data_dir: Path, storage: Storage, index: Index) -> None:
        self._data_dir = data_dir
        self._storage = storage
        self._index = index
        self._turn = asyncio.Lock()
        self._records: list[Path] = []
        self._running: dict[asyncio.Task[Removed], _Order] = {}
        self._resuming: asyncio.Task[None] | None = None
        self._resumed: set[Path] = set()
        self._waiting: list[Progress] = []

    async def look(self) -> None:
        """Know what is doomed, before anything is decided here. Raises StorageError."""
        async with self._turn:
            await self._look_again()

    async def open(self) -> None:
        """Take out of the index what was decided and not finished; the files are left to `resume`.

        Before anything is adopted, and before anybody asks. Raises IndexFailure or StorageError.
        """
        async with self._turn:
            await self._look_again()
            await asyncio.to_thread(discard_drafts, self._data_dir)
            for record in self._records:
                try:
                    parts = await forget_rows(record, self._index, NoProgress(), together=ROWS_BEFORE_READY)
                except (OSError, ValueError, StorageError) as error:
                    log.error("deletion.failed", record=record.name, error=str(error))
                else:
                    log.info("deletion.resumed", record=record.name, parts=parts)

    def resume(self) -> None:
        """Carry out what `open` found, in a task of its own, which `stop` ends."""
        if self._records:
            self._resumed = set(self._records)
            self._resuming = asyncio.create_task(self._resume(), name="maintenance.resume_deletions")

    async def _resume(self) -> None:
        try:
            await self.finish()
        except (SCPServerError, OSError) as error:
            log.error("deletion.failed", record=FOLDER, error=str(error))
        finally:
            self._resumed = set()

    async def finish(self, progress: Progress | None = None) -> int:
        """Carry out what was decided and not finished, once whatever runs has ended; returns how many.

        Raises IndexFailure or StorageError.
        """
        async with self._in_turn(progress or NoProgress()) as shown:
            return await self._finish(shown)

    @asynccontextmanager
    async def _in_turn(self, progress: Progress) -> AsyncIterator[Progress]:
        """Wait for it; gives the progress that whoever waits then sees move."""
        if self._turn.locked():
            progress.begin("waiting for another deletion", None)
        self._waiting.append(progress)
        try:
            await self._turn.acquire()
        finally:
            self._waiting.remove(progress)
        try:
            yield _Shown(progress, self._waiting)
        finally:
            self._turn.release()

    async def unfinished(self) -> list[Path]:
        """The records that are left of deletions that nobody is carrying out. Raises StorageError."""
        began_before = self._in_hand()
        found = await asyncio.to_thread(pending_deletions, self._data_dir)
        in_hand = began_before | self._in_hand()
        return [record for record in found if record not in in_hand]

    def _in_hand(self) -> set[Path]:
        return self._resumed | {order.draft.path for order in self._running.values()}

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
        ending: set[asyncio.Task[Any]] = set(self._running)
        for task, order in self._running.items():
            order.abandoned = True
            if order.decided:
                task.cancel("the server stops")
        if self._resuming is not None:
            self._resuming.cancel("the server stops")
            ending.add(self._resuming)
        if ending:
            await asyncio.wait(ending)

    async def _delete(self, order: _Order) -> Removed:
        async with self._in_turn(order.progress) as shown:
            await self._finish(shown)
            extent = await self._decide(order)
            if not order.decided:
                return Removed()
            try:
                removed = await carry_out(order.draft.path, self._storage, self._index, shown)
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

    async def _finish(self, progress: Progress) -> int:
        await self._look_again()
        finished = await finish_deletions(self._data_dir, self._storage, self._index, progress)
        await self._look_again()
        return finished

    async def _look_again(self) -> None:
        self._records = await asyncio.to_thread(pending_deletions, self._data_dir)
