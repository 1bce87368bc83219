"""Bringing the index's database to the schema of this version.

Alembic is imported only when there is something to do: at the newest revision a start costs one SELECT.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, Table, Text, inspect, select
from sqlalchemy.exc import OperationalError, ProgrammingError

from scp_server.errors import IndexSchemaUnknown

HEAD = "0009"
"""The newest revision, that of `schema.metadata`."""

_version = Table("alembic_version", MetaData(), Column("version_num", Text))


def current_revision(connection: Connection, name: str) -> str | None:
    """The revision of a database; None for an empty one.

    `name` is what an error calls it. Raises IndexSchemaUnknown for a database of something else, and
    SQLAlchemy's DBAPIError when it cannot be read.
    """
    try:
        revisions = list(connection.execute(select(_version.c.version_num)).scalars())
    except (OperationalError, ProgrammingError):
        tables = inspect(connection).get_table_names()
        if "alembic_version" in tables:
            raise
        if tables:
            raise IndexSchemaUnknown(
                f"{name} is a database of something else, not an index: it has the table {min(tables)}"
            ) from None
        return None
    if not revisions and inspect(connection).get_table_names() == ["alembic_version"]:
        return None
    if len(revisions) != 1:
        raise IndexSchemaUnknown(f"{name} has {len(revisions)} schema revisions instead of one")
    return str(revisions[0])


def check_known(revision: str, name: str) -> None:
    """Raises IndexSchemaUnknown unless `revision` is one that this version can start from."""
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory(str(Path(__file__).parent)).walk_revisions()}
    if revision not in known:
        raise IndexSchemaUnknown(
            f"the index {name} has schema revision {revision}, but the newest that this scp-server knows "
            f"is {HEAD}: start the version that wrote it, or give this one another index"
        )


def upgrade(connection: Connection, revision: str = HEAD) -> None:
    """Bring a database to `revision`, in the caller's transaction. Raises SQLAlchemy's DBAPIError."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
