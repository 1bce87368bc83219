"""The index in SQLite: one thread writes in batches, a few others read.

The order of things that makes `add` safe: a batch is committed (with `synchronous_full` the log is synced),
then its callers hear of it.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Engine, bindparam, select

from scp_server.errors import IndexFailure, IndexSchemaUnknown, IndexUnavailable
from scp_server.index.base import (
    AddResult,
    DuplicatePolicy,
    FindingFilter,
    FindingRecord,
    IndexEntry,
    IndexTotals,
    PartRecord,
    RetrievablePart,
    Scope,
    UniqueKey,
)
from scp_server.index.batching import BatchQueue
from scp_server.index.deciding import DecisionWriter
from scp_server.index.event_log import SqlEventLog
from scp_server.index.event_writing import EventWriter
from scp_server.index.events import Work
from scp_server.index.failures import unavailable
from scp_server.index.findings import page_of_findings
from scp_server.index.hierarchy import padded
from scp_server.index.listing import columns_of_parts, keys_below, page_of_parts, parts_with_keys
from scp_server.index.migrations import HEAD, current_revision
from scp_server.index.removal import RemoveRequest
from scp_server.index.retrieving import part_at, retrievable_parts
from scp_server.index.schema import discarded_objects, headers, instances, parts, totals
from scp_server.index.search import Judge, Search, SizeOf, of_no_size
from scp_server.index.searching import SearchThreads, SqlSearch
from scp_server.index.sqlite import check_file, reader_engine
from scp_server.index.transactions import IndexConfig, IndexRequest, IndexWriter
from scp_server.index.unsynced import forget_unsynced, unsynced_contents, unsynced_locations
from scp_server.index.writer import AddRequest
from scp_server.observability.measures import IndexMeasures

__all__ = ["IndexConfig", "SqlIndex"]

READERS = 2
"""Threads, and connections, for reading anything but searches."""

MAX_VALUES_PER_STATEMENT = 512

T = TypeVar("T")


_parts_of_instance = columns_of_parts.where(instances.c.sop_instance_uid == bindparam("uid")).order_by(
    parts.c.part_number
)
_header_at = (
    select(headers.c.header)
    .join(parts, parts.c.part_key == headers.c.part_key)
    .where(parts.c.location == bindparam("location"))
)
_known_locations = select(parts.c.location).where(
    parts.c.location.in_(bindparam("locations", expanding=True))
)
_discarded = select(discarded_objects.c.location).where(
    ~select(parts.c.location).where(parts.c.location == discarded_objects.c.location).exists()
)
_totals = select(*(column for column in totals.columns if not column.primary_key))


class Writer(Protocol):
    """The writing side of an index. Its methods block and are called in one thread at a time."""

    gone: deque[str]
    """Discarded files that were deleted; other threads append to it."""
    events: EventWriter
    """What is remembered of the event log."""
    decisions: DecisionWriter
    """What is remembered of the reports of scans."""

    def open(self) -> None:
        """Make ready; then the database exists. Raises IndexSchemaUnknown or IndexUnavailable."""
        ...

    def perform(self, batch: Sequence[IndexRequest]) -> Sequence[object]:
        """Perform what is asked for in its order, and tell what became of each."""
        ...

    def finish(self) -> None:
        """Close, for good."""
        ...


class SqlIndex:
    """An `Index` in an SQLite file. It may be written by a `writer` that is not this process's own."""

    def __init__(
        self,
        config: IndexConfig,
        measures: IndexMeasures | None = None,
        writer: Writer | None = None,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._measures = measures or IndexMeasures()
        self._writer: Writer = writer or IndexWriter(config, clock_ns, self._measures.decisions)
        self._queue: BatchQueue[IndexRequest, object] | None = None
        self._event_log = SqlEventLog(self._writer.events, self._writer.decisions, self._read)
        self._reader: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._searches = SearchThreads(
            config.path, readers=config.readers, busy_timeout_seconds=config.busy_timeout_seconds
        )

    @property
    def event_log(self) -> SqlEventLog:
        """See `Index.event_log`."""
        return self._event_log

    async def open(self) -> None:
        """Create or migrate, and make ready. Raises IndexSchemaUnknown or IndexUnavailable.

        An older index is copied to `<file>.<revision>.backup` before it is migrated.
        """
        if self._queue is not None:
            raise IndexFailure("the index is open already")
        threads = ThreadPoolExecutor(READERS, thread_name_prefix="index-read")
        try:
            await asyncio.get_running_loop().run_in_executor(threads, self._writer.open)
        except BaseException:
            threads.shutdown(wait=False)
            raise
        self._threads = threads
        self._reader = reader_engine(
            self._config.path, connections=READERS, busy_timeout_seconds=self._config.busy_timeout_seconds
        )
        self._searches.open()
        self._queue = BatchQueue(
            self._perform,
            self._writer.finish,
            max_batch=self._config.max_batch,
            max_queue=self._config.max_queue,
            name="index-write",
            measures=self._measures,
            performed=self._event_log.look,
        )
        self._queue.start()
        self._event_log.start(self._queue)

    async def open_to_read(self) -> None:
        """Make ready to be read, also while a server has it open: nothing is made, migrated or written, and
        `add` and `remove` raise IndexUnavailable.

        Raises IndexUnavailable where there is none or it cannot be read, IndexSchemaUnknown for a schema that
        is not this version's.
        """
        path = self._config.path
        if not path.is_file():
            raise IndexUnavailable(f"there is no index {path}")
        check_file(path)
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="index-read")
        self._reader = reader_engine(
            path, connections=READERS, busy_timeout_seconds=self._config.busy_timeout_seconds
        )
        try:
            revision = await self._read(lambda connection: current_revision(connection, str(path)))
            if revision != HEAD:
                raise IndexSchemaUnknown(
                    f"the index {path} has schema revision {revision} and not {HEAD}; "
                    "the start of a server brings an older one to it"
                )
        except BaseException:
            await self.close()
            raise
        self._searches.open()

    def _perform(self, batch: Sequence[IndexRequest]) -> Sequence[object]:
        """What comes first of each, then the transactions of those for which it did not fail."""
        failures = [_failure_of_first(request) for request in batch]
        left = [request for request, failure in zip(batch, failures, strict=True) if failure is None]
        answers = iter(self._writer.perform(left) if left else ())
        return [next(answers) if failure is None else failure for failure in failures]

    async def close(self) -> None:
        """Write what was accepted, then close. May be called twice, and after `open` failed."""
        queue, threads, reader = self._queue, self._threads, self._reader
        self._threads = self._reader = None
        self._searches.stop()
        if threads is not None and reader is not None:
            # Readers go first: the last connection to close folds the log into the database.
            await asyncio.get_running_loop().run_in_executor(None, _shut, self._searches, threads, reader)
        if queue is not None:
            await queue.close()
            self._queue = None

    async def add(
        self, entry: IndexEntry, policy: DuplicatePolicy, first: Callable[[], None] | None = None
    ) -> AddResult:
        """Record an entry; returns when it is committed (see `Index.add`)."""
        if self._queue is None:
            raise IndexUnavailable("the index is not open")
        result = await self._queue.submit(AddRequest(entry, policy, first))
        if not isinstance(result, AddResult):
            raise TypeError("the index's writer answered another request")
        return result

    async def remove(self, locations: Sequence[str]) -> int:
        """Forget the parts at `locations` in one transaction (see `Index.remove`)."""
        if self._queue is None:
            raise IndexUnavailable("the index is not open")
        result = await self._queue.submit(RemoveRequest(tuple(locations)))
        if not isinstance(result, int):
            raise TypeError("the index's writer answered another request")
        return result

    async def perform(self, requests: Sequence[IndexRequest]) -> Sequence[object]:
        """Perform what another process asks for, beside what this one does (see `Writer.perform`)."""
        if self._queue is None:
            return [IndexUnavailable("the index is not open")] * len(requests)
        return await self._queue.submit_all(requests)

    async def unsynced(self) -> list[str]:
        """See `Index.unsynced`."""
        return await self._read(unsynced_locations)

    async def unsynced_contents(self, locations: Sequence[str]) -> dict[str, bytes]:
        """See `Index.unsynced_contents`."""
        wanted = list(locations)
        return await self._read(lambda connection: unsynced_contents(connection, wanted))

    async def forget_unsynced(self, locations: Sequence[str]) -> None:
        """See `Index.forget_unsynced`."""
        if self._queue is None:
            raise IndexUnavailable("the index is not open")
        durable = tuple(locations)
        await self._queue.submit(Work(lambda connection: forget_unsynced(connection, durable)))

    async def discarded(self) -> list[str]:
        """See `Index.discarded`."""

        def read(connection: Connection) -> list[str]:
            return list(connection.execute(_discarded).scalars())

        return await self._read(read)

    def forget_discarded(self, locations: Sequence[str]) -> None:
        """See `Index.forget_discarded`."""
        self._writer.gone.extend(locations)

    async def parts(self, sop_instance_uid: str) -> list[PartRecord]:
        """Every part of an instance, in order of arrival; empty when it is unknown."""

        def read(connection: Connection) -> list[PartRecord]:
            rows = connection.execute(_parts_of_instance, {"uid": sop_instance_uid})
            return [PartRecord(**row._mapping) for row in rows]

        return await self._read(read)

    async def list_parts(self, *, after: str = "", limit: int = 500) -> list[PartRecord]:
        """A page of parts in the order of their locations (see `Index.list_parts`)."""

        def read(connection: Connection) -> list[PartRecord]:
            rows = connection.execute(page_of_parts(after, limit))
            return [PartRecord(**row._mapping) for row in rows]

        return await self._read(read)

    async def parts_below(self, scope: Scope, *, limit: int = 500) -> AsyncIterator[list[PartRecord]]:
        """The parts of `scope` in the order of their locations, in pages (see `Index.parts_below`)."""

        def read_keys(connection: Connection) -> array[int]:
            return array("q", connection.execute(keys_below(scope)).scalars())

        def read(connection: Connection) -> list[PartRecord]:
            found: list[PartRecord] = []
            for start in range(0, len(page), MAX_VALUES_PER_STATEMENT):
                chunk = padded(page[start : start + MAX_VALUES_PER_STATEMENT])
                rows = connection.execute(parts_with_keys, {"keys": chunk})
                found += (PartRecord(**row._mapping) for row in rows)
            return sorted(found, key=attrgetter("location"))

        keys = await self._read(read_keys)
        for start in range(0, len(keys), limit):
            page = keys[start : start + limit]
            if found := await self._read(read):
                yield found

    async def part(self, location: str) -> RetrievablePart | None:
        """What sending the part at `location` needs (see `Index.part`)."""

        def read(connection: Connection) -> RetrievablePart | None:
            return part_at(connection, location)

        return await self._read(read)

    async def header(self, location: str) -> bytes | None:
        """The packed raw header of the part at `location`; None where there is no such part."""

        def read(connection: Connection) -> bytes | None:
            header: bytes | None = connection.execute(_header_at, {"location": location}).scalar()
            return header

        return await self._read(read)

    async def unknown_locations(self, locations: Sequence[str]) -> list[str]:
        """Those of `locations` that no part has, in their order."""
        wanted = list(locations)

        def read(connection: Connection) -> list[str]:
            known: set[str] = set()
            for start in range(0, len(wanted), MAX_VALUES_PER_STATEMENT):
                chunk = padded(wanted[start : start + MAX_VALUES_PER_STATEMENT])
                known.update(connection.execute(_known_locations, {"locations": chunk}).scalars())
            return [location for location in wanted if location not in known]

        return await self._read(read)

    def search(self, search: Search, judge: Judge[T], size_of: SizeOf[T] = of_no_size) -> SqlSearch[T]:
        """Look for entities, in a thread of its own (see `Index.search`)."""
        return SqlSearch(self._searches, search, judge, size_of)

    async def findings(
        self, wanted: FindingFilter, *, after: str = "", limit: int = 200
    ) -> list[FindingRecord]:
        """A page of what the validation found (see `Index.findings`)."""

        def read(connection: Connection) -> list[FindingRecord]:
            return page_of_findings(connection, wanted, after, limit)

        return await self._read(read)

    async def retrievable(self, keys: Sequence[UniqueKey], limit: int) -> list[RetrievablePart]:
        """The parts that a retrieve sends, read in a thread for searches (see `Index.retrievable`)."""

        def read(connection: Connection) -> list[RetrievablePart]:
            with self._searches.failing():
                return retrievable_parts(connection, keys, limit)

        return await self._searches.run(read, stopped=lambda: False)

    async def totals(self) -> IndexTotals:
        """How much is kept, at one moment: read, not counted, however much it is."""

        def read(connection: Connection) -> IndexTotals:
            return IndexTotals(**connection.execute(_totals).one()._mapping)

        return await self._read(read)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        threads, reader = self._threads, self._reader
        if threads is None or reader is None:
            raise IndexUnavailable("the index is not open")

        def run() -> T:
            with unavailable(self._config.path), reader.connect() as connection:
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(threads, run)


def _failure_of_first(request: IndexRequest) -> Exception | None:
    """Do what comes first of a request; returns what went wrong."""
    if isinstance(request, AddRequest) and request.first is not None:
        try:
            request.first()
        except Exception as error:  # only its own entry may suffer from it
            return error
    return None


def _shut(searches: SearchThreads, threads: ThreadPoolExecutor, reader: Engine) -> None:
    searches.close()
    threads.shutdown(wait=True)
    reader.dispose()
