"""Reading an index's database beside whoever has it open: a copy of one moment, and what it knows now."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from scp_server.errors import IndexUnavailable
from scp_server.index.sqlite import check_file, keep_copy


def take_snapshot(path: Path, target: Path, busy_timeout_seconds: float) -> None:
    """Copy the database as it is at one moment; it may be written to meanwhile. Blocks.

    `target` is whole and durable or not there. Raises IndexUnavailable or IndexSchemaUnknown.
    """
    check_file(path)
    if not path.is_file():
        raise IndexUnavailable(f"there is no index {path}")
    try:
        keep_copy(path, target, busy_timeout_seconds)
    except (sqlite3.Error, OSError) as error:
        raise IndexUnavailable(f"the index {path} cannot be copied: {error}") from error


def still_known(path: Path, locations: Sequence[str], busy_timeout_seconds: float) -> set[str]:
    """Those of `locations` that a part of the database has now. Blocks. Raises IndexUnavailable."""
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with closing(sqlite3.connect(address, uri=True, timeout=busy_timeout_seconds)) as database:
            statement = "SELECT 1 FROM parts WHERE location = ?"
            return {each for each in locations if database.execute(statement, (each,)).fetchone()}
    except sqlite3.Error as error:
        raise IndexUnavailable(f"the index {path} cannot be read: {error}") from error
