"""Restoring the index from the objects alone.

A new database grows beside the old one, as `index.sqlite.rebuild`, in the order of arrival of all objects:
so parts get their numbers, and studies and patients the attributes of whoever came first, as they had them.
Killed, it is taken up where it was: what it has already is passed over. When it is whole it takes the old
one's place in one rename, and the old one stays as `index.sqlite.<time>.before-rebuild`.

The event log, with what the outbox has still to deliver, goes over from the old index where that can be read.

No object is ever changed or removed. Each is adopted as under the policy `parts` (see `adoption`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scp_server.errors import IndexFailure, IndexUnavailable, StorageError
from scp_server.index.base import AddOutcome, Index, IndexTotals
from scp_server.index.log_transfer import carry_over
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.objects.header_tap import TapLimits
from scp_server.observability.logs import get_logger
from scp_server.runtime.build import (
    build_index,
    build_storage_service_config,
    build_validator,
    index_path,
)
from scp_server.runtime.maintenance.adoption import Adoption, adopt
from scp_server.runtime.maintenance.arrival_plan import ArrivalPlan
from scp_server.runtime.maintenance.carrying_out import finish_deletions
from scp_server.runtime.maintenance.deletion_record import named, pending_deletions
from scp_server.runtime.maintenance.findings import Findings, Kind, Report
from scp_server.runtime.maintenance.folder import offline_storage
from scp_server.runtime.maintenance.progress import Progress
from scp_server.runtime.recovery import delete_discarded
from scp_server.runtime.settling import settle_left_over
from scp_server.services.validation import StoredValidation
from scp_server.settings import Settings
from scp_server.storage.base import Storage, StoredObject
from scp_server.storage.sync import make_folder, storage_failure, sync_directory

log = get_logger(__name__)

PAGE = 500
"""Objects looked at together."""
_COMPANIONS = ("-wal", "-shm")


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """How a rebuild ended. `resumed` of the parts were there from one that was killed."""

    objects: int
    resumed: int
    totals: IndexTotals
    duplicates: int
    unreadable: int
    kept_copy: Path | None
    """What the index was before; None where there was none."""


async def rebuild(settings: Settings, report: Report, progress: Progress) -> RebuildReport:
    """Rebuild the index of a data folder. What cannot be read is reported, counted, and left where it is.

    Raises ConfigurationError while a server runs, StorageError and IndexFailure; the old index is then still
    in its place, and the next rebuild goes on where this one ended.
    """
    async with offline_storage(settings) as storage:
        await finish_deletions(settings.data_dir, storage, None, progress, keep_records=True)
        records = await asyncio.to_thread(pending_deletions, settings.data_dir)
        path = index_path(settings)
        if path.is_file():
            await _settle_old(storage, build_index(settings))
        with _failures():
            make_folder(str(path.parent), durable=True)
        unfinished = path.with_name(path.name + ".rebuild")
        findings = Findings(report)
        async with (
            _plan(storage, unfinished.with_name(unfinished.name + ".plan"), progress) as (plan, count),
            _opened(unfinished, settings, plan) as index,
        ):
            resumed = (await index.totals()).parts
            progress.begin("indexing", count)
            config = build_storage_service_config(settings)
            with closing(build_validator(settings)) as validator:
                validation = StoredValidation(validator, config.validation)
                await _Rebuild(
                    storage, index, plan, config.tap_limits, records, findings, progress, validation
                ).run()
            totals = await index.totals()
        if path.is_file() and not await asyncio.to_thread(carry_over, path, unfinished):
            log.warning("events.begun_anew")
        copy = await asyncio.to_thread(put_in_place, unfinished, path)
        # The new index never had them, so now the records may go.
        await finish_deletions(settings.data_dir, storage, None, progress)
        await storage.settled()
    return RebuildReport(
        count, resumed, totals, findings.found[Kind.DUPLICATE], findings.found[Kind.UNREADABLE], copy
    )


async def _settle_old(storage: Storage, old: SqlIndex) -> None:
    """Files whose bytes only the old index has for sure are put into their places; what a newcomer has
    replaced must not come back. An old index that cannot be read tells of nothing.

    Raises StorageError where a file could not be put there: the old index is still needed.
    """
    try:
        await old.open()
        left_over = await settle_left_over(storage, old)
        if left_over.failed:
            raise StorageError(f"{len(left_over.failed)} files that only the old index has cannot be written")
        await delete_discarded(storage, old)
    except IndexFailure as failure:
        log.warning("index.not_readable", error=str(failure))
    finally:
        await old.close()


class _Rebuild:
    def __init__(
        self,
        storage: Storage,
        index: Index,
        plan: ArrivalPlan,
        limits: TapLimits,
        records: Sequence[Path],
        findings: Findings,
        progress: Progress,
        validation: StoredValidation,
    ) -> None:
        self._validation = validation
        self._records = records
        self._storage = storage
        self._index = index
        self._plan = plan
        self._limits = limits
        self._findings = findings
        self._progress = progress

    async def run(self) -> None:
        last: StoredObject | None = None
        while page := await asyncio.to_thread(self._plan.page, last, PAGE):
            last = page[-1]
            unknown = set(await self._index.unknown_locations([each.location for each in page]))
            # Files that could not be removed stay to be deleted, and are not taken back.
            unknown -= await asyncio.to_thread(named, self._records, unknown)
            wanted = [each for each in page if each.location in unknown]
            self._progress.advance(len(page) - len(wanted))
            async for adoption in adopt(
                self._storage, self._index, wanted, self._limits, self._progress, self._validation
            ):
                self._note(adoption)
                self._progress.advance()

    def _note(self, adoption: Adoption) -> None:
        location = adoption.stored.location
        if adoption.result is None:
            self._findings.add(Kind.UNREADABLE, location, adoption.error)
        elif adoption.result.outcome is AddOutcome.SAME:
            self._findings.add(Kind.DUPLICATE, location, f"the same bytes are in {adoption.result.location}")


@asynccontextmanager
async def _plan(storage: Storage, path: Path, progress: Progress) -> AsyncIterator[tuple[ArrivalPlan, int]]:
    """The objects in order of arrival, and how many there are."""
    with _failures():
        plan = await asyncio.to_thread(ArrivalPlan, path)
    try:
        with _failures():
            progress.begin("listing", None)
            batch: list[StoredObject] = []
            async for stored in storage.list():
                batch.append(stored)
                if len(batch) == PAGE:
                    await asyncio.to_thread(plan.add, batch)
                    progress.advance(len(batch))
                    batch = []
            await asyncio.to_thread(plan.add, batch)
            count = await asyncio.to_thread(plan.sort)
        with _failures():
            yield plan, count
    finally:
        await asyncio.to_thread(plan.close)


@asynccontextmanager
async def _opened(path: Path, settings: Settings, plan: ArrivalPlan) -> AsyncIterator[SqlIndex]:
    """The unfinished index of a killed rebuild, if it is of use, or a new one."""
    config = IndexConfig(
        path=path,
        # A loss of power may cost the last transactions, never the order of those before.
        synchronous_full=False,
        max_batch=settings.index.max_batch,
        busy_timeout_seconds=settings.index.busy_timeout_seconds,
    )
    index = SqlIndex(config)
    try:
        await index.open()
        useful = await _is_beginning_of(index, plan)
    except IndexFailure:
        useful = False
    if not useful:
        await index.close()
        with _failures():
            for name in (path.name, *(path.name + companion for companion in _COMPANIONS)):
                path.with_name(name).unlink(missing_ok=True)
        index = SqlIndex(config)
        await index.open()
    # What is found again was told of when it came.
    index.event_log.keep(False)
    try:
        yield index
    finally:
        await index.close()


async def _is_beginning_of(index: Index, plan: ArrivalPlan) -> bool:
    """Whether every part lies in the storage still: what was deleted since may have numbered others."""
    after = ""
    while page := await index.list_parts(after=after, limit=PAGE):
        if not await asyncio.to_thread(plan.has_all, [part.location for part in page]):
            return False
        after = page[-1].location
    return True


def put_in_place(new: Path, path: Path) -> Path | None:
    """Give `path` to the database `new`, which nobody has open; returns where the old one is kept. Blocks.

    At any moment `path` is the old database whole or the new one whole. Raises StorageError.
    """
    with _failures():
        if new.with_name(new.name + "-wal").exists():
            raise IndexUnavailable(f"{new} was not closed")
        _sync(new)
        copy = _keep_old(path) if path.exists() else None
        for companion in _COMPANIONS:
            # Those of a database that could not be opened; beside the new one they would be replayed into it.
            left = path.with_name(path.name + companion)
            if left.exists():
                if copy is None:
                    left.unlink()
                else:
                    left.replace(copy.with_name(copy.name + companion))
        new.replace(path)
        sync_directory(str(path.parent))
    return copy


def _keep_old(path: Path) -> Path:
    """Another name for the old database, its log folded in where that is possible."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    copy = path.with_name(f"{path.name}.{stamp}.before-rebuild")
    number = 1
    while copy.exists():
        number += 1
        copy = path.with_name(f"{path.name}.{stamp}-{number}.before-rebuild")
    with suppress(sqlite3.Error):
        database = sqlite3.connect(path)
        try:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            database.close()
    try:
        os.link(path, copy)
    except OSError:
        # A filesystem without hard links.
        shutil.copyfile(path, copy)
        _sync(copy)
    return copy


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _failures() -> Iterator[None]:
    """What the file system or the plan's database raises becomes ours."""
    try:
        yield
    except OSError as error:
        raise storage_failure(error, "rebuild the index") from error
    except sqlite3.Error as error:
        raise StorageError(f"cannot rebuild the index: {error}") from error
