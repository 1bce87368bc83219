"""What a database's or file system's error means to whoever asked the index."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from scp_server.errors import IndexSchemaUnknown, IndexUnavailable


@contextmanager
def unavailable(path: Path) -> Iterator[None]:
    """Turn what a database or file system raises into an IndexFailure."""
    try:
        yield
    except (SQLAlchemyError, sqlite3.Error, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
            raise IndexSchemaUnknown(f"{path} is not a database, so it cannot be the index") from error
        raise IndexUnavailable(f"the index {path} failed: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What went wrong, without the statement and its values, which may identify a patient."""
    cause = error.orig if isinstance(error, StatementError) and error.orig is not None else error
    return f"{cause}" if isinstance(cause, (sqlite3.Error, OSError)) else type(cause).__name__
