"""An index that is only read, beside whoever has it open."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from scp_server.errors import IndexSchemaUnknown, IndexUnavailable
from scp_server.index.base import DuplicatePolicy
from scp_server.index.migrations import HEAD
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.testing.index_contract import index_entry


@pytest.fixture
async def reading(path: Path) -> AsyncIterator[SqlIndex]:
    """The same file once more, to be opened to read."""
    reading = SqlIndex(IndexConfig(path))
    yield reading
    await reading.close()


async def test_it_sees_what_is_added_and_adds_nothing(index: SqlIndex, reading: SqlIndex) -> None:
    await reading.open_to_read()
    for number in ("1", "2"):
        await index.add(index_entry(number), DuplicatePolicy.KEEP_FIRST)
        assert len(await reading.list_parts()) == int(number)
    with pytest.raises(IndexUnavailable):
        await reading.add(index_entry("3"), DuplicatePolicy.KEEP_FIRST)
    with pytest.raises(IndexUnavailable):
        await reading.remove(["objects/1"])
    await reading.close()
    await index.add(index_entry("3"), DuplicatePolicy.KEEP_FIRST)


async def test_where_there_is_none_none_is_made(tmp_path: Path) -> None:
    index = SqlIndex(IndexConfig(tmp_path / "index" / "index.sqlite"))
    with pytest.raises(IndexUnavailable, match="there is no index"):
        await index.open_to_read()
    assert not (tmp_path / "index").exists()


async def test_another_schema_than_ours_is_neither_read_nor_migrated(
    index: SqlIndex, reading: SqlIndex, path: Path
) -> None:
    await index.close()
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = '0001'")
        database.commit()
    with pytest.raises(IndexSchemaUnknown, match=f"schema revision 0001 and not {HEAD}"):
        await reading.open_to_read()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)


async def test_what_is_no_database_is_said(reading: SqlIndex, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"something else entirely")
    with pytest.raises(IndexSchemaUnknown, match="is not a database"):
        await reading.open_to_read()
