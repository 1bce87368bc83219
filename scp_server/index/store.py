"""The index in SQLite: one thread writes in batches, a few others read.

The order of things that makes `add` safe: a batch is committed (with `synchronous_full` the log is synced),
then its callers hear of it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, Engine, bindparam, func, select
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)

from scp_server.errors import IndexFailure, IndexSchemaUnknown, IndexUnavailable
from scp_server.index import migrations
from scp_server.index.base import AddResult, DuplicatePolicy, IndexEntry, IndexTotals, PartRecord, Scope
from scp_server.index.batching import BatchQueue
from scp_server.index.hierarchy import padded
from scp_server.index.listing import columns_of_parts, page_of_parts
from scp_server.index.removal import RemoveRequest, remove_parts
from scp_server.index.replacing import forget_discarded
from scp_server.index.schema import discarded_objects, headers, instances, parts, patients, series, studies
from scp_server.index.sqlite import check_file, keep_copy, reader_engine, writer_engine
from scp_server.index.writer import AddRequest, EntryWriter
from scp_server.observability.measures import IndexMeasures

READERS = 2
"""Threads, and connections, for reading."""

MAX_LOCATIONS_PER_STATEMENT = 512

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class IndexConfig:
    """Where the index lies and how it is written. Raises ValueError for what cannot work."""

    path: Path
    synchronous_full: bool = True
    """True: what `add` returned survives a loss of power. False: it survives the end of the process."""
    max_batch: int = 256
    """Entries of one transaction, 1 to 256: it bounds how long the first of them waits for the last."""
    max_queue: int = 4096
    """Entries that wait or are being written, each with its packed header; further callers of `add` wait."""
    busy_timeout_seconds: float = 5.0
    """How long another process may hold the database before the index is unavailable."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 256:
            raise ValueError(f"max_batch must be from 1 to 256, not {self.max_batch}")
        if self.max_queue < 1:
            raise ValueError(f"max_queue must be at least 1, not {self.max_queue}")


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
_totals = select(
    *[
        select(func.count()).select_from(table).scalar_subquery().label(table.name)
        for table in (patients, studies, series, instances, parts)
    ],
    select(func.coalesce(func.sum(parts.c.size_bytes), 0)).scalar_subquery().label("bytes"),
)


class SqlIndex:
    """An `Index` in an SQLite file."""

    def __init__(self, config: IndexConfig, measures: IndexMeasures | None = None) -> None:
        self._config = config
        self._measures = measures or IndexMeasures()
        self._writer = _Writer(config)
        self._queue: BatchQueue[AddRequest | RemoveRequest, AddResult | int] | None = None
        self._reader: Engine | None = None
        self._threads: ThreadPoolExecutor | None = None

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
        self._queue = BatchQueue(
            self._writer.perform,
            self._writer.close,
            max_batch=self._config.max_batch,
            max_queue=self._config.max_queue,
            name="index-write",
            measures=self._measures,
        )
        self._queue.start()

    async def close(self) -> None:
        """Write what was accepted, then close. May be called twice, and after `open` failed."""
        queue, threads, reader = self._queue, self._threads, self._reader
        self._threads = self._reader = None
        if threads is not None and reader is not None:
            # Readers go first: the last connection to close folds the log into the database.
            await asyncio.get_running_loop().run_in_executor(None, _shut, threads, reader)
        if queue is not None:
            await queue.close()
            self._queue = None

    async def add(self, entry: IndexEntry, policy: DuplicatePolicy) -> AddResult:
        """Record an entry; returns when it is committed (see `Index.add`)."""
        if self._queue is None:
            raise IndexUnavailable("the index is not open")
        result = await self._queue.submit(AddRequest(entry, policy))
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

    async def list_parts(
        self, *, after: str = "", limit: int = 500, scope: Scope | None = None
    ) -> list[PartRecord]:
        """A page of parts in the order of their locations (see `Index.list_parts`)."""

        def read(connection: Connection) -> list[PartRecord]:
            rows = connection.execute(page_of_parts(after, limit, scope))
            return [PartRecord(**row._mapping) for row in rows]

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
            for start in range(0, len(wanted), MAX_LOCATIONS_PER_STATEMENT):
                chunk = padded(wanted[start : start + MAX_LOCATIONS_PER_STATEMENT])
                known.update(connection.execute(_known_locations, {"locations": chunk}).scalars())
            return [location for location in wanted if location not in known]

        return await self._read(read)

    async def totals(self) -> IndexTotals:
        """Count what is kept, at one moment."""

        def read(connection: Connection) -> IndexTotals:
            return IndexTotals(**connection.execute(_totals).one()._mapping)

        return await self._read(read)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        threads, reader = self._threads, self._reader
        if threads is None or reader is None:
            raise IndexUnavailable("the index is not open")

        def run() -> T:
            with _unavailable(self._config.path), reader.connect() as connection:
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(threads, run)


class _Writer:
    """The writing side, always in one thread at a time: its connection, and what a failure means."""

    def __init__(self, config: IndexConfig) -> None:
        self._config = config
        self._entries = EntryWriter()
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self.gone: deque[str] = deque()
        """Discarded files that were deleted since the last transaction; other threads append to it."""

    def open(self) -> None:
        """Create or migrate the database. Raises IndexSchemaUnknown or IndexUnavailable."""
        path = self._config.path
        check_file(path)
        with _unavailable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = writer_engine(
            path,
            synchronous_full=self._config.synchronous_full,
            busy_timeout_seconds=self._config.busy_timeout_seconds,
        )
        try:
            with _unavailable(path):
                self._migrate(self._engine, path)
        except BaseException:
            self.close()
            raise

    def _migrate(self, engine: Engine, path: Path) -> None:
        with engine.connect() as connection:
            revision = migrations.current_revision(connection, str(path))
        if revision == migrations.HEAD:
            return
        if revision is not None:
            migrations.check_known(revision, str(path))
            copy = path.with_name(f"{path.name}.{revision}.backup")
            keep_copy(path, copy, self._config.busy_timeout_seconds)
        with engine.begin() as connection:
            migrations.upgrade(connection)

    def close(self) -> None:
        """Give the connection back; the next batch would open another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                connection.close()
            except (SQLAlchemyError, sqlite3.Error):
                connection.invalidate()
        if self._engine is not None:
            self._engine.dispose()

    def perform(self, batch: Sequence[AddRequest | RemoveRequest]) -> list[AddResult | int | Exception]:
        """Perform what was asked for in its order: entries that follow each other share a transaction."""
        outcomes: list[AddResult | int | Exception] = []
        additions: list[AddRequest] = []
        for request in batch:
            if isinstance(request, AddRequest):
                additions.append(request)
                continue
            outcomes += self._add(additions)
            additions = []
            outcomes.append(self._remove(request))
        outcomes += self._add(additions)
        return outcomes

    def _remove(self, request: RemoveRequest) -> int | Exception:
        try:
            connection = self._connect()
            with connection.begin():
                return remove_parts(connection, request.locations)
        except (SQLAlchemyError, sqlite3.Error) as error:
            self.close()
            failure = IndexUnavailable(f"the index {self._config.path} failed: {_reason(error)}")
            failure.__cause__ = error
            return failure
        except IndexUnavailable as error:
            return error
        finally:
            self._entries.forget_places()

    def _add(self, batch: Sequence[AddRequest]) -> Iterable[AddResult | Exception]:
        """Record a batch in one transaction; when an entry spoils it, each in one of its own."""
        if not batch:
            return []
        try:
            return self._commit(batch)
        except IndexUnavailable as error:
            return [_same_failure(error) for _ in batch]
        except Exception:  # whatever it is, only its own entry may suffer from it
            return [self._perform_alone(request) for request in batch]

    def _perform_alone(self, request: AddRequest) -> AddResult | Exception:
        try:
            try:
                return self._commit([request])[0]
            except IntegrityError:
                # Another process may have written the same at that moment: now it is there to be found.
                return self._commit([request])[0]
        except IndexUnavailable as error:
            return error
        except Exception as error:
            failure = IndexFailure(f"the index cannot record this instance: {_reason(error)}")
            failure.__cause__ = error
            return failure

    def _commit(self, batch: Sequence[AddRequest]) -> list[AddResult]:
        """Raises IndexUnavailable where trying again may help, anything else where an entry is to blame."""
        try:
            connection = self._connect()
            gone = list(self.gone)
            with connection.begin():
                forget_discarded(connection, gone)
                results = self._entries.write_batch(connection, batch)
            for _ in gone:
                self.gone.popleft()
            return results
        except BaseException as error:
            self._entries.forget()
            if isinstance(error, (SQLAlchemyError, sqlite3.Error)) and not _is_entrys_fault(error):
                self.close()
                raise IndexUnavailable(f"the index {self._config.path} failed: {_reason(error)}") from error
            raise

    def _connect(self) -> Connection:
        if self._engine is None:
            raise IndexUnavailable("the index is not open")
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection


def _is_entrys_fault(error: SQLAlchemyError | sqlite3.Error) -> bool:
    """Whether the database refused what an entry says, rather than failed."""
    if isinstance(error, (IntegrityError, DataError, ProgrammingError, InterfaceError)):
        return True
    return isinstance(error, StatementError) and not isinstance(error, DBAPIError)


def _same_failure(error: IndexUnavailable) -> IndexUnavailable:
    """Another exception that says the same: each caller raises its own."""
    copy = IndexUnavailable(str(error))
    copy.__cause__ = error.__cause__
    return copy


def _reason(error: BaseException) -> str:
    """What went wrong, without the statement and its values, which may identify a patient."""
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    return f"{cause}" if isinstance(cause, (sqlite3.Error, OSError)) else type(cause).__name__


@contextmanager
def _unavailable(path: Path) -> Iterator[None]:
    """Turn what a database or file system raises into an IndexFailure."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise IndexSchemaUnknown(f"{path} is not a database, so it cannot be the index") from error
        raise IndexUnavailable(f"the index {path} failed: {_reason(error)}") from error


def _shut(threads: ThreadPoolExecutor, reader: Engine) -> None:
    threads.shutdown(wait=True)
    reader.dispose()
