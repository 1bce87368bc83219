"""Which databases are opened, migrated or refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from scp_server.errors import IndexSchemaUnknown, IndexUnavailable
from scp_server.index import migrations
from scp_server.index.base import DuplicatePolicy
from scp_server.index.schema import metadata
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.testing.index_contract import index_entry


def _definitions(database: sqlite3.Connection) -> dict[str, list[str]]:
    """The clauses of every CREATE statement, in no order."""
    rows = database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {
        name: sorted(clause.strip(" )") for clause in " ".join(sql.split()).split(", "))
        for name, sql in rows
        if name != "alembic_version"
    }


def test_migrating_gives_the_schema_s_tables(connection: Connection) -> None:
    assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_migrating_gives_the_schema_s_very_definitions(
    connection: Connection, path: Path, tmp_path: Path
) -> None:
    """Partial indexes and foreign keys too, which a comparison by reflection does not see."""
    made = create_engine(f"sqlite:///{tmp_path / 'made.sqlite'}")
    metadata.create_all(made)
    made.dispose()
    expected, migrated = sqlite3.connect(tmp_path / "made.sqlite"), sqlite3.connect(path)
    assert _definitions(migrated) == _definitions(expected)
    expected.close()
    migrated.close()


def test_head_is_the_newest_revision() -> None:
    scripts = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert scripts.get_heads() == [migrations.HEAD]


async def _opens(path: Path) -> None:
    index = SqlIndex(IndexConfig(path, busy_timeout_seconds=0.05))
    try:
        await index.open()
    finally:
        await index.close()


async def test_a_new_index_is_made_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "index 100%?.sqlite"
    index = SqlIndex(IndexConfig(path))
    await index.open()
    await index.add(index_entry(), DuplicatePolicy.KEEP_FIRST)
    assert (await index.totals()).parts == 1
    await index.close()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


async def test_an_empty_file_becomes_an_index(path: Path) -> None:
    path.touch()
    await _opens(path)
    await _opens(path)


async def test_a_newer_schema_is_refused_naming_both_revisions_and_the_file(path: Path) -> None:
    await _opens(path)
    database = sqlite3.connect(path)
    with database:
        database.execute("UPDATE alembic_version SET version_num = 'f00d'")
    database.close()
    before = path.read_bytes()
    with pytest.raises(IndexSchemaUnknown) as refused:
        await _opens(path)
    assert all(text in str(refused.value) for text in ("f00d", migrations.HEAD, str(path)))
    assert path.read_bytes() == before


async def test_an_older_schema_is_copied_before_it_is_migrated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = SqlIndex(IndexConfig(path))
    await index.open()
    entry = index_entry()
    await index.add(entry, DuplicatePolicy.KEEP_FIRST)
    await index.close()
    copy = path.with_name(f"index.sqlite.{migrations.HEAD}.backup")
    seen: list[bool] = []

    def upgrade(connection: Connection) -> None:
        seen.append(copy.exists())
        connection.exec_driver_sql("CREATE TABLE later (n INTEGER)")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    monkeypatch.setattr(migrations, "HEAD", "9999")
    monkeypatch.setattr(migrations, "upgrade", upgrade)
    await _opens(path)
    await _opens(path)
    assert seen == [True]
    monkeypatch.undo()
    kept = SqlIndex(IndexConfig(copy))
    await kept.open()
    assert [part.location for part in await kept.parts(entry.summary.sop_instance_uid)] == [entry.location]
    await kept.close()


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = migrations.upgrade

    def failing(connection: Connection) -> None:
        real(connection)
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(migrations, "upgrade", failing)
    with pytest.raises(IndexUnavailable, match="full"):
        await _opens(path)
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    database.close()
    monkeypatch.undo()
    await _opens(path)


@pytest.mark.parametrize(
    "content", [b"this is no database at all, but a letter", b"SQLite format 3\x00 and then nothing of it"]
)
async def test_a_file_that_is_no_database_is_refused_and_kept(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(IndexSchemaUnknown, match="not a database"):
        await _opens(path)
    assert path.read_bytes() == content


async def test_a_database_of_something_else_is_refused(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE recipes (n INTEGER)")
    database.close()
    with pytest.raises(IndexSchemaUnknown, match="recipes"):
        await _opens(path)


async def test_a_database_without_one_revision_is_refused(path: Path) -> None:
    await _opens(path)
    database = sqlite3.connect(path)
    with database:
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    database.close()
    with pytest.raises(IndexSchemaUnknown, match="2 schema revisions"):
        await _opens(path)


async def test_a_path_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(IndexUnavailable):
        await _opens(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(IndexUnavailable):
        await _opens(tmp_path / "file" / "index.sqlite")


async def test_a_database_locked_at_start_is_unavailable(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE t (n)")
    other.execute("DROP TABLE t")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(IndexUnavailable, match="locked"):
        await _opens(path)
    other.execute("ROLLBACK")
    other.close()
    await _opens(path)


async def test_a_start_at_the_newest_revision_does_not_import_alembic(path: Path) -> None:
    await _opens(path)
    code = (
        "import asyncio, sys; from pathlib import Path;"
        "from scp_server.index.store import IndexConfig, SqlIndex;"
        f"index = SqlIndex(IndexConfig(Path({str(path)!r})));"
        "asyncio.run(index.open());"
        "sys.exit('alembic' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False, timeout=60
    )
    assert done.returncode == 0


async def test_a_database_whose_first_migration_never_began_is_migrated(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    database.close()
    await _opens(path)
    await _opens(path)


async def test_an_index_that_counted_when_asked_is_counted_once_and_then_kept_up(path: Path) -> None:
    index = SqlIndex(IndexConfig(path))
    await index.open()
    for number in range(3):
        await index.add(index_entry(f"{number}", study=f"{number // 2}"), DuplicatePolicy.KEEP_FIRST)
    before = await index.totals()
    await index.close()
    with closing(sqlite3.connect(path)) as database, database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute("DROP TABLE totals")
        database.execute("UPDATE alembic_version SET version_num = '0002'")
    await index.open()
    assert await index.totals() == before
    await index.add(index_entry("4"), DuplicatePolicy.KEEP_FIRST)
    assert (await index.totals()).parts == 4
    await index.close()
