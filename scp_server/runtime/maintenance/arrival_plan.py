"""Every object of a storage in the order of arrival, on disk: a million of them take no memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from scp_server.runtime.maintenance.adoption import arrival_id_of
from scp_server.storage.base import StoredObject

_SCHEMA = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE objects (location TEXT PRIMARY KEY, arrival_id TEXT NOT NULL, size_bytes INTEGER NOT NULL)
WITHOUT ROWID;
"""
_LOCATIONS_PER_STATEMENT = 500


class ArrivalPlan:
    """A throw-away table in a file of its own. Blocks; one thread at a time.

    Raises sqlite3.Error. Filled with `add`, then `sort`ed once, then read by pages.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.unlink(missing_ok=True)
        self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._database.executescript(_SCHEMA)

    def close(self) -> None:
        """Remove it."""
        self._database.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def add(self, batch: Sequence[StoredObject]) -> None:
        """Note objects; one named twice counts once."""
        self._database.execute("BEGIN")
        self._database.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?)",
            [(each.location, arrival_id_of(each.location), each.size_bytes) for each in batch],
        )
        self._database.execute("COMMIT")

    def sort(self) -> int:
        """Order them by arrival; returns how many there are."""
        self._database.execute("CREATE INDEX by_arrival ON objects (arrival_id, location)")
        count: int = self._database.execute("SELECT count(*) FROM objects").fetchone()[0]
        return count

    def page(self, after: StoredObject | None, limit: int) -> list[StoredObject]:
        """The next objects in order of arrival, those that follow `after`."""
        key = ("", "") if after is None else (arrival_id_of(after.location), after.location)
        rows = self._database.execute(
            "SELECT location, size_bytes FROM objects WHERE (arrival_id, location) > (?, ?) "
            "ORDER BY arrival_id, location LIMIT ?",
            (*key, limit),
        )
        return [StoredObject(location, size_bytes) for location, size_bytes in rows]

    def has_all(self, locations: Sequence[str]) -> bool:
        """Whether every one of `locations`, each another, is among them."""
        for start in range(0, len(locations), _LOCATIONS_PER_STATEMENT):
            chunk = locations[start : start + _LOCATIONS_PER_STATEMENT]
            marks = ", ".join("?" * len(chunk))
            statement = f"SELECT count(*) FROM objects WHERE location IN ({marks})"
            if self._database.execute(statement, chunk).fetchone()[0] != len(chunk):
                return False
        return True
