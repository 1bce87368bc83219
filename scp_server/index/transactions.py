"""The index's writing side: one connection, its transactions, and what a failure of them means.

SQLite goes on with files that were deleted, moved or replaced while they were open: a transaction is then
committed into a file without a name, and no start will find it. So a transaction is good only when both files
of the database, found by their names, were those that are open, when it began and after it was committed.
"""

from __future__ import annotations

import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from scp_server.index.base import AddResult, IndexEntry
from scp_server.index.deciding import DecisionWriter
from scp_server.index.event_writing import EventWriter
from scp_server.index.events import LogRequest, Work
from scp_server.index.failures import reason, unavailable
from scp_server.index.removal import RemoveRequest, remove_parts
from scp_server.index.replacing import forget_discarded
from scp_server.index.spare import SpareFile
from scp_server.index.sqlite import NamedFile, check_file, keep_copy, make_folder, writer_engine
from scp_server.index.writer import AddRequest, EntryWriter
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import DecisionMeasures

log = get_logger(__name__)

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


IndexRequest = AddRequest | RemoveRequest | LogRequest | Work
"""What the writer is asked for. All but a removal share a transaction with what was asked for before."""
_Shared = AddRequest | LogRequest | Work
MAX_OWED = 10_000
"""Notes of associations, of some hundred bytes, that wait for an index that fails."""


class IndexWriter:
    """The writing side, always in one thread at a time."""

    def __init__(
        self,
        config: IndexConfig,
        clock_ns: Callable[[], int] = time.time_ns,
        measures: DecisionMeasures | None = None,
    ) -> None:
        self._config = config
        self._entries = EntryWriter()
        self.events = EventWriter(clock_ns)
        self.decisions = DecisionWriter(self.events, measures, clock_ns)
        self._owed: list[LogRequest] = []
        """What is to be logged before anything else: the transaction that it came with has failed."""
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
                with self._engine.begin() as connection:
                    self.events.open(connection)
                    self.decisions.open(connection)
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

    def perform(self, batch: Sequence[IndexRequest]) -> list[object]:
        """Perform what was asked for in its order; tells of each what became of it, or what went wrong."""
        outcomes: list[object] = []
        shared: list[_Shared] = []
        for request in batch:
            if not isinstance(request, RemoveRequest):
                shared.append(request)
                continue
            outcomes += self._share(shared)
            shared = []
            outcomes.append(self._remove(request))
        outcomes += self._share(shared)
        return outcomes

    def _remove(self, request: RemoveRequest) -> int | Exception:
        try:
            with self._transaction() as connection:
                removed, left = remove_parts(connection, request.locations)
                self.decisions.removed(connection, left)
            self._committed()
        except (SQLAlchemyError, sqlite3.Error, IndexUnavailable) as error:
            self._forget()
            if isinstance(error, IndexUnavailable):
                return error
            self.close()
            failure = IndexUnavailable(f"the index {self._config.path} failed: {reason(error)}")
            failure.__cause__ = error
            return failure
        self._entries.forget_places()
        return removed

    def _share(self, batch: Sequence[_Shared]) -> Iterable[object]:
        """Record a batch in one transaction; when a request spoils it, each in one of its own."""
        if not batch:
            return []
        if self._owed:
            owed, self._owed = self._owed, []
            self._share(owed)
        try:
            return self._commit(batch)
        except IndexUnavailable as error:
            self._owe(batch)
            return [_same_failure(error) for _ in batch]
        except Exception:  # whatever it is, only its own request may suffer from it
            return [self._perform_alone(request) for request in batch]

    def _perform_alone(self, request: _Shared) -> object:
        try:
            try:
                return self._commit([request])[0]
            except (IntegrityError, sqlite3.IntegrityError):
                # Another process may have written the same at that moment: now it is there to be found.
                return self._commit([request])[0]
        except IndexUnavailable as error:
            self._owe([request])
            return error
        except Exception as error:
            if isinstance(request, LogRequest):
                log.error("events.lost", events=1, error=reason(error))
            failure = IndexFailure(f"the index cannot record this: {reason(error)}")
            failure.__cause__ = error
            return failure

    def _owe(self, batch: Sequence[_Shared]) -> None:
        owed = [each for each in batch if isinstance(each, LogRequest)]
        room = MAX_OWED - len(self._owed)
        self._owed += owed[:room]
        if len(owed) > room:
            log.error("events.lost", events=len(owed) - room)

    def _commit(self, batch: Sequence[_Shared]) -> list[object]:
        """Raises IndexUnavailable where trying again may help, anything else where a request is to blame."""
        try:
            gone = list(self.gone)
            with self._transaction() as connection:
                forget_discarded(connection, gone)
                results = self._write(connection, batch)
            self._committed()
            for _ in gone:
                self.gone.popleft()
            return results
        except BaseException as error:
            self._forget()
            if isinstance(error, (SQLAlchemyError, sqlite3.Error)) and not _is_entrys_fault(error):
                self.close()
                raise IndexUnavailable(f"the index {self._config.path} failed: {reason(error)}") from error
            raise

    def _committed(self) -> None:
        self.events.committed()
        self.decisions.committed()

    def _forget(self) -> None:
        """What was worked out is not in the database, or nobody knows whether it is."""
        self._entries.forget()
        self.events.forget()
        self.decisions.forget()

    def _write(self, connection: Connection, batch: Sequence[_Shared]) -> list[object]:
        """Record the entries, then log what happened, in its order, and do other work where it comes."""
        additions = [request for request in batch if isinstance(request, AddRequest)]
        added = iter(self._entries.write_batch(connection, additions) if additions else ())
        results: list[object] = []
        happened: list[LogRequest | tuple[IndexEntry, AddResult]] = []
        recorded: list[tuple[IndexEntry, AddResult]] = []
        for request in batch:
            if isinstance(request, AddRequest):
                result = next(added)
                recorded.append((request.entry, result))
                happened.append(recorded[-1])
                results.append(result)
            elif isinstance(request, LogRequest):
                happened.append(request)
                results.append(None)
            else:
                self.events.write(connection, happened)
                happened = []
                results.append(request.run(connection))
        self.events.write(connection, happened)
        if recorded:
            self.decisions.added(connection, recorded, self._entries.take_replaced())
        return results

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
