"""The event log when its index is made anew, or comes back from a backup.

A log that goes on gives no id a second time: who follows it, or was delivered to, knows the others. Where it
is not known which ids there were, the next ones are greater than any of those can have been.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from scp_server.errors import IndexUnavailable
from scp_server.index.schema import (
    event_log,
    events,
    open_associations,
    orphaned_reports,
    parked,
    scans,
    subscriptions,
    unsettled_studies,
)

_TABLES = (
    *(event_log, events, open_associations, unsettled_studies, subscriptions, parked),
    *(scans, orphaned_reports),
)
_MILLISECOND_NS = 1_000_000


def carry_over(old: Path, new: Path) -> bool:
    """Give the database `new`, which nobody has open, the event log of `old`; False where that has none that
    can be read, and the log begins anew. Blocks. Raises IndexUnavailable where `new` fails."""
    try:
        with closing(sqlite3.connect(new, isolation_level=None, uri=True)) as database:
            try:
                # Not read-only: what is in the other's write-ahead log belongs to it too.
                database.execute("ATTACH ? AS old", (f"file:{quote(str(old.absolute()))}?mode=rw",))
                database.execute("BEGIN IMMEDIATE")
                for table in _TABLES:
                    columns = ", ".join(table.columns.keys())
                    database.execute(f"DELETE FROM main.{table.name}")
                    database.execute(
                        f"INSERT INTO main.{table.name} ({columns}) SELECT {columns} FROM old.{table.name}"
                    )
                database.execute("COMMIT")
            except sqlite3.Error:
                if database.in_transaction:
                    database.execute("ROLLBACK")
                _jump(database, time.time_ns)
                return False
            return True
    except sqlite3.Error as error:
        raise IndexUnavailable(f"the index {new} failed: {error}") from error


def after_restore(path: Path) -> None:
    """What happened behind the backup is not known here, and what was delivered is not either: from now on
    ids are others, and everything that is delivered may be repeated. Blocks. Raises IndexUnavailable."""
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "UPDATE subscriptions SET started_to = "
                "max(started_to, coalesce((SELECT max(event_id) FROM events), 0))"
            )
            database.execute("UPDATE parked SET may_be_repeated = 1")
            _jump(database, time.time_ns)
            database.execute("COMMIT")
    except sqlite3.Error as error:
        raise IndexUnavailable(f"the index {path} failed: {error}") from error


def _jump(database: sqlite3.Connection, clock_ns: Callable[[], int]) -> None:
    """Ids go on with the milliseconds since the epoch: a log cannot have given as many as that."""
    database.execute("UPDATE event_log SET trimmed_to = max(trimmed_to, ?)", (clock_ns() // _MILLISECOND_NS,))
