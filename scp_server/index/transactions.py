"""The index's writing side: one connection, its transactions, and what a failure of them means.

SQLite goes on with files that were deleted, moved or replaced while they were open: a transaction is then
committed into a file without a name, and no start will find it. So a transaction is good only when both files
of the database, found by their names, were those that are open, when it began and after it was committed.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)

from scp_server.errors import IndexFailure, IndexUnavailable
from scp_server.index import migrations
from scp_server.index.base import AddResult
from scp_server.index.failures import reason, unavailable
from scp_server.index.removal import RemoveRequest, remove_parts
from scp_server.index.replacing import forget_discarded
from scp_server.index.spare import SpareFile
from scp_server.index.sqlite import NamedFile, check_file, keep_copy, make_folder, writer_engine
from scp_server.index.unsynced import ForgetRequest, forget_unsynced
from scp_server.index.writer import AddRequest, EntryWriter

_ENTRYS_FAULTS = (
    *(IntegrityError, DataError, ProgrammingError, InterfaceError),
    *(sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError, sqlite3.InterfaceError),
)
"""What the database refuses rather than fails at; SQLite's own where its driver is asked itself (`bulk`)."""


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
    spare_bytes: int = 0
    """Kept in a file beside the database, for opening it on a full disk; 0 keeps none."""
    readers: int = 2
    """Threads for searches, each with a connection. What else is read has threads of its own."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_batch <= 256:
            raise ValueError(f"max_batch must be from 1 to 256, not {self.max_batch}")
        if self.max_queue < 1:
            raise ValueError(f"max_queue must be at least 1, not {self.max_queue}")
        if self.readers < 1:
            raise ValueError(f"readers must be at least 1, not {self.readers}")


class IndexWriter:
    """The writing side, always in one thread at a time."""

    def __init__(self, config: IndexConfig) -> None:
        self._config = config
        self._entries = EntryWriter()
        self._spare = SpareFile(config.path.with_name("spare"), config.spare_bytes)
        self._engine: Engine | None = None
        self._connection: Connection | None = None
        self._database: NamedFile | None = None
        self._log: NamedFile | None = None
        self.gone: deque[str] = deque()
        """Discarded files that were deleted since the last transaction; other threads append to it."""

    def open(self) -> None:
        """Create or migrate the database. Raises IndexSchemaUnknown or IndexUnavailable."""
        path = self._config.path
        check_file(path)
        with unavailable(path):
            make_folder(path.parent)
        try:
            self._open()
        except IndexUnavailable as error:
            if not self._spare.is_short_of_space:
                raise
            if not self._spare.give_up():
                raise IndexUnavailable(f"{error}: its disk is full; make room and start again") from error
            self._open()
        self._spare.lay_up()

    def _open(self) -> None:
        path = self._config.path
        self._engine = writer_engine(
            path,
            synchronous_full=self._config.synchronous_full,
            busy_timeout_seconds=self._config.busy_timeout_seconds,
        )
        try:
            with unavailable(path):
                self._migrate(self._engine, path)
                self._database = NamedFile(path)
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

    def finish(self) -> None:
        """Close, for good."""
        self.close()
        self._spare.lay_up()

    def perform(
        self, batch: Sequence[AddRequest | RemoveRequest | ForgetRequest]
    ) -> list[AddResult | int | Exception]:
        """Perform what was asked for in its order: entries that follow each other share a transaction."""
        outcomes: list[AddResult | int | Exception] = []
        additions: list[AddRequest] = []
        for request in batch:
            if isinstance(request, AddRequest):
                additions.append(request)
                continue
            outcomes += self._add(additions)
            additions = []
            outcomes.append(self._take_away(request))
        outcomes += self._add(additions)
        return outcomes

    def _take_away(self, request: RemoveRequest | ForgetRequest) -> int | Exception:
        removed = 0
        try:
            with self._transaction() as connection:
                if isinstance(request, RemoveRequest):
                    removed = remove_parts(connection, request.locations)
                else:
                    forget_unsynced(connection, request.locations)
        except (SQLAlchemyError, sqlite3.Error, IndexUnavailable) as error:
            self._entries.forget()
            if isinstance(error, IndexUnavailable):
                return error
            self.close()
            failure = IndexUnavailable(f"the index {self._config.path} failed: {reason(error)}")
            failure.__cause__ = error
            return failure
        if isinstance(request, RemoveRequest):
            self._entries.forget_places()
        return removed

    def _add(self, batch: Sequence[AddRequest]) -> Iterable[AddResult | Exception]:
        """Do what comes first of each, then record a batch in one transaction; when an entry spoils it, each
        in one of its own."""
        outcomes: list[AddResult | Exception | None] = [_done(request) for request in batch]
        left = [request for request, failed in zip(batch, outcomes, strict=True) if failed is None]
        recorded = iter(self._record(left))
        return [next(recorded) if failed is None else failed for failed in outcomes]

    def _record(self, batch: Sequence[AddRequest]) -> Iterable[AddResult | Exception]:
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
            except (IntegrityError, sqlite3.IntegrityError):
                # Another process may have written the same at that moment: now it is there to be found.
                return self._commit([request])[0]
        except IndexUnavailable as error:
            return error
        except Exception as error:
            failure = IndexFailure(f"the index cannot record this instance: {reason(error)}")
            failure.__cause__ = error
            return failure

    def _commit(self, batch: Sequence[AddRequest]) -> list[AddResult]:
        """Raises IndexUnavailable where trying again may help, anything else where an entry is to blame."""
        try:
            gone = list(self.gone)
            with self._transaction() as connection:
                forget_discarded(connection, gone)
                results = self._entries.write_batch(connection, batch)
            for _ in gone:
                self.gone.popleft()
            return results
        except BaseException as error:
            self._entries.forget()
            if isinstance(error, (SQLAlchemyError, sqlite3.Error)) and not _is_entrys_fault(error):
                self.close()
                raise IndexUnavailable(f"the index {self._config.path} failed: {reason(error)}") from error
            raise

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """Raises IndexUnavailable when what was committed, or would be, no start would find."""
        connection = self._connect()
        with connection.begin():
            if self._log is None:
                # It is there from the connection's first transaction on.
                self._log = NamedFile(self._config.path.with_name(f"{self._config.path.name}-wal"))
            self._check_names()
            yield connection
        self._check_names()

    def _check_names(self) -> None:
        for file in (self._database, self._log):
            if file is not None and not file.is_in_place:
                raise IndexUnavailable(
                    f"the index {self._config.path} was deleted, moved or replaced while it was open: put "
                    "the same files back, or stop the server and run scp-server index rebuild"
                )

    def _connect(self) -> Connection:
        if self._engine is None:
            raise IndexUnavailable("the index is not open")
        if self._connection is None:
            self._log = None
            # SQLite would make a new database, an empty one, in the place of one that is gone.
            self._check_names()
            self._connection = self._engine.connect()
        return self._connection


def _done(request: AddRequest) -> Exception | None:
    """What comes first of a request, and what went wrong with it."""
    if request.first is not None:
        try:
            request.first()
        except Exception as error:
            return error
    return None


def _is_entrys_fault(error: SQLAlchemyError | sqlite3.Error) -> bool:
    """Whether the database refused what an entry says, rather than failed."""
    if isinstance(error, _ENTRYS_FAULTS):
        return True
    return isinstance(error, StatementError) and not isinstance(error, DBAPIError)


def _same_failure(error: IndexUnavailable) -> IndexUnavailable:
    """Another exception that says the same: each caller raises its own."""
    copy = IndexUnavailable(str(error))
    copy.__cause__ = error.__cause__
    return copy
