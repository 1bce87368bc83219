"""Which databases are opened, migrated or refused."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from unicodedata import normalize

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine

from scp_server.errors import IndexSchemaUnknown, IndexUnavailable
from scp_server.index import migrations
from scp_server.index.base import DuplicatePolicy
from scp_server.index.schema import metadata
from scp_server.index.sqlite import writer_engine
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.objects.header_tap import HeaderTap
from scp_server.testing.dataset_encoder import DatasetEncoder, Element, TransferSyntax
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
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


_STUDY = "INSERT INTO studies (study_key, patient_key, study_instance_uid, study_date, study_description)"
_PATIENT = (
    "INSERT INTO patients (patient_key, patient_id, issuer_of_patient_id, unidentified_study_instance_uid,"
    " patient_name, patient_birth_date)"
)


def _second_schema(path: Path) -> None:
    """A database as the version before searches left it: with a report, decomposed text and an old date."""
    engine = writer_engine(path, synchronous_full=False, busy_timeout_seconds=1.0)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0002")
    engine.dispose()
    category, flag = Element(0x40101012, "CS", "EXPLOSIVE"), Element(0x40101015, "CS", "THREAT")
    threat = [Element(0x40101038, "SQ", [[category, flag]])]
    tap = HeaderTap(TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN)
    tap.feed(
        DatasetEncoder(TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN).encode([Element(0x40101011, "SQ", [threat])])
    )
    tap.finish()
    database = sqlite3.connect(path)
    decomposed = normalize("NFD", "Åsa")
    with database:
        database.execute(f"{_PATIENT} VALUES (1, ?, '', '', 'ÅSA^X', NULL)", (decomposed,))
        database.execute(f"{_PATIENT} VALUES (2, 'Åsa', '', '', 'Doe^Jane', '1970.01.31')")
        database.execute(f"{_PATIENT} VALUES (3, '', '', '1.3', ?, '1970')", (normalize("NFD", "É^^"),))
        database.execute(f"{_STUDY} VALUES (4, 1, '1.1', '2024.05.06', ?)", (normalize("NFD", "Schädel"),))
        database.execute(f"{_STUDY} VALUES (5, 2, '1.2', '20240506', NULL)")
        database.execute(f"{_STUDY} VALUES (6, 3, '1.3', NULL, NULL)")
        database.execute(
            "INSERT INTO series (series_key, study_key, series_instance_uid) VALUES (7, 4, '2.1')"
        )
        for key in range(10, 3_010):
            report = ("MACHINE", "ALARM") if key % 1_000 == 10 else (None, None)
            database.execute(
                "INSERT INTO instances (instance_key, series_key, sop_class_uid, sop_instance_uid,"
                " content_date, tdr_type, alarm_decision) VALUES (?, 7, '1.5', ?, '2024.05.06', ?, ?)",
                (key, f"3.{key}", *report),
            )
            database.execute(
                "INSERT INTO parts VALUES (?, ?, 1, 'sha256', x'00', '1.2', ?, 1, 1, 'a', 1, 'A', 'B')",
                (key, key, f"{key}"),
            )
            header = tap.header.pack() if key == 10 else b"damaged"
            database.execute("INSERT INTO headers VALUES (?, ?)", (key, header))
        database.execute("INSERT INTO instance_references VALUES (10, '3.11')")
    database.close()


async def test_what_is_kept_already_is_brought_into_the_form_that_searches_need(path: Path) -> None:
    _second_schema(path)
    await _opens(path)
    database = sqlite3.connect(path)
    patients = (
        "SELECT patient_key, patient_id, patient_name, patient_name_folded, patient_birth_date FROM patients"
    )
    assert database.execute(patients).fetchall() == [
        (2, "Åsa", "Doe^Jane", "=doe^jane=", "19700131"),
        (3, "", "É^^", "=é=", "1970"),
    ]
    studies = "SELECT study_key, patient_key, study_date, study_description FROM studies"
    assert database.execute(studies).fetchall() == [
        (4, 2, "20240506", "Schädel"),
        (5, 2, "20240506", None),
        (6, 3, None, None),
    ]
    assert database.execute("SELECT DISTINCT content_date FROM instances").fetchall() == [("20240506",)]
    assert database.execute(
        "SELECT instance_key, threat_categories, assessment_flags FROM instances"
        " WHERE threat_categories IS NOT NULL OR assessment_flags IS NOT NULL"
    ).fetchall() == [(10, "\\EXPLOSIVE\\", "\\THREAT\\")]
    assert database.execute("SELECT * FROM instance_references").fetchall() == [(10, "3.11")]
    assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()
    assert path.with_name("index.sqlite.0002.backup").is_file()


async def test_an_index_that_counted_when_asked_is_counted_once_and_then_kept_up(path: Path) -> None:
    _second_schema(path)
    index = SqlIndex(IndexConfig(path))
    await index.open()
    with closing(sqlite3.connect(path)) as database:
        counted = {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("patients", "studies", "series", "instances", "parts")
        }
        size_bytes = database.execute("SELECT sum(size_bytes) FROM parts").fetchone()[0]
    assert asdict(await index.totals()) == {**counted, "bytes": size_bytes}
    await index.add(index_entry("4"), DuplicatePolicy.KEEP_FIRST)
    assert (await index.totals()).parts == counted["parts"] + 1
    await index.close()


async def test_an_index_that_kept_no_files_keeps_them_after_its_migration(path: Path) -> None:
    _second_schema(path)
    engine = writer_engine(path, synchronous_full=False, busy_timeout_seconds=1.0)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0006")
    engine.dispose()
    index = SqlIndex(IndexConfig(path))
    await index.open()
    assert path.with_name("index.sqlite.0006.backup").is_file()
    assert await index.unsynced() == []
    entry = index_entry("4", unsynced=b"whole file")
    await index.add(entry, DuplicatePolicy.KEEP_FIRST)
    assert await index.unsynced_contents([entry.location]) == {entry.location: b"whole file"}
    await index.close()


async def test_reports_that_are_kept_already_decide_after_the_migration(path: Path) -> None:
    """Also with the references that are new, which come from their headers; a damaged one has none."""
    engine = writer_engine(path, synchronous_full=False, busy_timeout_seconds=1.0)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0007")
    engine.dispose()
    report = dicos_tdr(decision="CLEAR")
    tap = HeaderTap(report.transfer_syntax_uid)
    tap.feed(report.dataset)
    tap.finish()
    image = dicos_ct()
    with closing(sqlite3.connect(path)) as database:
        database.execute("INSERT INTO patients VALUES (1, 'BAG', '', '', NULL, NULL, NULL, NULL, NULL, NULL)")
        for key in (2, 3):
            database.execute(
                "INSERT INTO studies (study_key, patient_key, study_instance_uid) VALUES (?, 1, ?)",
                (key, f"1.{key}"),
            )
            database.execute(
                "INSERT INTO series (series_key, study_key, series_instance_uid) VALUES (?, ?, '2')",
                (key, key),
            )
        for key, series, class_uid, uid, values in (
            (10, 2, image.sop_class_uid, image.sop_instance_uid, (None, None, None)),
            (11, 3, report.sop_class_uid, "3.11", ("OPERATOR", "CLEAR", "20261120101114+0000")),
            (12, 3, report.sop_class_uid, "3.12", ("MACHINE", "ALARM", "20261120101115+0000")),
            (13, 3, report.sop_class_uid, "3.13", ("MACHINE", "ALARM", "20261120101114+0000")),
        ):
            database.execute(
                "INSERT INTO instances (instance_key, series_key, sop_class_uid, sop_instance_uid, tdr_type,"
                " alarm_decision, alarm_decision_time) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, series, class_uid, uid, *values),
            )
            database.execute(
                "INSERT INTO parts VALUES (?, ?, 1, 'sha256', x'00', '1.2', ?, 1, 1, 'a', 1, 'A', 'B', NULL)",
                (key, key, f"{key}"),
            )
            header = tap.header.pack() if key == 11 else b"damaged"
            database.execute("INSERT INTO headers VALUES (?, ?)", (key, header))
        database.execute("INSERT INTO instance_references VALUES (12, ?)", (image.sop_instance_uid,))
        database.commit()
    await _opens(path)
    with closing(sqlite3.connect(path)) as database:
        decided = (
            "SELECT study_key, current_alarm_decision, current_alarm_decision_time, current_tdr_type,"
            " deciding_sop_instance_uid FROM studies"
        )
        assert database.execute(decided).fetchall() == [
            (2, "CLEAR", "20261120101114+0000", "OPERATOR", "3.11"),
            (3, "ALARM", "20261120101114+0000", "MACHINE", "3.13"),
        ]
        linked = "SELECT study_key, report_key FROM scan_reports ORDER BY study_key, report_key"
        assert database.execute(linked).fetchall() == [(2, 11), (2, 12), (3, 13)]
        assert database.execute("SELECT * FROM scans").fetchall() == []
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
