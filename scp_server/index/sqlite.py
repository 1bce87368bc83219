"""What is SQLite's own: its files, its pragmas, and how its transactions begin."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event

from scp_server.errors import IndexSchemaUnknown, IndexUnavailable

_MAGIC = b"SQLite format 3\x00"

WRITER_CACHE_KIB = 16_384
"""Pages the writer keeps: the upper levels of every index of a million instances."""

READER_CACHE_KIB = 4_096

AUTOCHECKPOINT_PAGES = 4_096
"""Pages (4 KiB) in the write-ahead log before they go to the database: 16 MiB, some tens of batches, so that
a page written by many batches goes there once."""

JOURNAL_SIZE_LIMIT_BYTES = 64 * 1024 * 1024
"""A log that grew beyond this while a reader held it back is cut when it is reused."""

PREPARED_STATEMENTS = 256

STEPS_BETWEEN_QUESTIONS = 500_000
"""Of SQLite's virtual machine, some milliseconds: the interpreter lock has to be won for every question."""


def writer_engine(path: Path, *, synchronous_full: bool, busy_timeout_seconds: float) -> Engine:
    """An engine for one connection that writes; it creates the file where there is none."""
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        connect_args=_connect_arguments(busy_timeout_seconds),
        pool_size=1,
        max_overflow=0,
    )
    pragmas = (
        "journal_mode = WAL",
        f"synchronous = {'FULL' if synchronous_full else 'NORMAL'}",
        "foreign_keys = ON",
        "temp_store = MEMORY",
        f"cache_size = -{WRITER_CACHE_KIB}",
        f"wal_autocheckpoint = {AUTOCHECKPOINT_PAGES}",
        f"journal_size_limit = {JOURNAL_SIZE_LIMIT_BYTES}",
    )
    _on_connect(engine, pragmas)
    # The lock is taken before anything is read: what a batch has seen stays true until it commits.
    event.listen(engine, "begin", _begin_immediate)
    return engine


def reader_engine(path: Path, *, connections: int, busy_timeout_seconds: float) -> Engine:
    """An engine for `connections` threads that only read; each statement sees one state of the database."""
    engine = create_engine(
        URL.create(
            "sqlite", database=f"file:{quote(str(path.absolute()))}", query={"mode": "ro", "uri": "true"}
        ),
        connect_args=_connect_arguments(busy_timeout_seconds),
        pool_size=connections,
        max_overflow=0,
    )
    _on_connect(engine, ("query_only = ON", "temp_store = MEMORY", f"cache_size = -{READER_CACHE_KIB}"))
    return engine


def driver_of(connection: Connection) -> sqlite3.Connection:
    """What a connection to SQLite has behind it."""
    return cast(sqlite3.Connection, connection.connection.driver_connection)


@contextmanager
def stoppable(connection: Connection, stopped: Callable[[], bool]) -> Iterator[None]:
    """Within, a statement that runs fails (SQLITE_INTERRUPT) soon after `stopped` answers True.

    SQLite asks, rather than being told by `sqlite3.Connection.interrupt`: that has no effect on a statement
    which is just about to start, and one that comes late hits whoever uses the connection next.
    """
    driver = driver_of(connection)
    driver.set_progress_handler(stopped, STEPS_BETWEEN_QUESTIONS)
    try:
        yield
    finally:
        driver.set_progress_handler(None, 0)


def check_file(path: Path) -> None:
    """Look at a file's first bytes, where there is one.

    Raises IndexSchemaUnknown when they are not a database's, IndexUnavailable when they cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_MAGIC))
    except FileNotFoundError:
        return
    except OSError as error:
        raise IndexUnavailable(f"the index {path} cannot be read: {error.strerror or error}") from error
    if start and start != _MAGIC:
        raise IndexSchemaUnknown(f"{path} is not a database, so it cannot be the index")


def keep_copy(path: Path, copy: Path, busy_timeout_seconds: float) -> None:
    """Copy a whole database, log included, to `copy`, which is complete and durable or not there at all.

    Raises sqlite3.Error or OSError.
    """
    unfinished = copy.with_name(copy.name + ".tmp")
    unfinished.unlink(missing_ok=True)
    try:
        with (
            closing(sqlite3.connect(path, timeout=busy_timeout_seconds)) as source,
            closing(sqlite3.connect(unfinished)) as target,
        ):
            source.backup(target)
        _sync(unfinished)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(copy)
    _sync(copy.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each durable in the one above it. Raises OSError."""
    if folder.is_dir():
        # Whoever made it may have been killed before its sync; not where we may not even read.
        with suppress(PermissionError):
            _sync(folder.parent)
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync(folder.parent)


class NamedFile:
    """A file as it is found under its name now, to be told from any other that has the name later."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        self._identity = self._look()

    @property
    def is_in_place(self) -> bool:
        """Whether the name still leads to that file. Blocks as long as stat does."""
        return self._look() == self._identity

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _connect_arguments(busy_timeout_seconds: float) -> dict[str, object]:
    return {
        "timeout": busy_timeout_seconds,
        "isolation_level": None,  # transactions begin where we say so, also around changes of the schema
        "cached_statements": PREPARED_STATEMENTS,
        "check_same_thread": False,
    }


def _on_connect(engine: Engine, pragmas: tuple[str, ...]) -> None:
    def set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        try:
            for pragma in pragmas:
                cursor.execute(f"PRAGMA {pragma}")
        finally:
            cursor.close()

    event.listen(engine, "connect", set_pragmas)


def _begin_immediate(connection: Connection) -> None:
    driver_of(connection).execute("BEGIN IMMEDIATE")
