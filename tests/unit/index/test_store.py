"""What the SQLite index does when entries, the disk, locks or the process fail it."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
import textwrap
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from scp_server.errors import IndexFailure, IndexUnavailable
from scp_server.index.base import AddOutcome, AddResult, DuplicatePolicy
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.index.transactions import IndexWriter
from scp_server.index.writer import EntryWriter
from scp_server.objects.summary import InstanceSummary
from scp_server.testing.index_contract import index_entry

KEEP_FIRST = DuplicatePolicy.KEEP_FIRST


def _rows(path: Path, statement: str) -> list[Any]:
    database = sqlite3.connect(path)
    try:
        return database.execute(statement).fetchall()
    finally:
        database.close()


@pytest.mark.parametrize(
    "bad",
    [
        {"instance_number": 2**70},
        {"patient_name": "\ud800"},
        {"patient_name": object()},
    ],
    ids=["integer too large", "text without encoding", "no text"],
)
async def test_only_the_entry_that_cannot_be_recorded_fails(index: SqlIndex, bad: dict[str, Any]) -> None:
    entries = [index_entry(str(number), study=str(number)) for number in range(20)]
    entries[7] = index_entry("7", study="7", patient_id="other", **bad)
    results = await asyncio.gather(*(index.add(e, KEEP_FIRST) for e in entries), return_exceptions=True)
    failure = results.pop(7)
    assert type(failure) is IndexFailure
    assert all(isinstance(result, AddResult) and result.outcome is AddOutcome.ADDED for result in results)
    totals = await index.totals()
    assert (totals.patients, totals.studies, totals.instances, totals.parts) == (1, 19, 19, 19)
    assert (
        await index.add(replace(entries[8], summary=index_entry("77").summary, location="n"), KEEP_FIRST)
    ) == (AddResult(AddOutcome.ADDED, "n", 1))


async def test_a_location_that_is_taken_fails_its_entry_alone(index: SqlIndex) -> None:
    await index.add(index_entry("1", location="taken"), KEEP_FIRST)
    results = await asyncio.gather(
        index.add(index_entry("2", location="taken"), KEEP_FIRST),
        index.add(index_entry("3"), KEEP_FIRST),
        return_exceptions=True,
    )
    assert type(results[0]) is IndexFailure
    assert isinstance(results[1], AddResult)
    assert (await index.totals()).instances == 2


async def test_an_error_s_text_holds_no_patient(index: SqlIndex) -> None:
    entry = index_entry(patient_name="SECRET^NAME", instance_number=2**70)
    with pytest.raises(IndexFailure) as failure:
        await index.add(entry, KEEP_FIRST)
    assert "SECRET" not in str(failure.value)


async def test_a_full_database_is_unavailable_and_keeps_nothing_of_the_batch(
    index: SqlIndex, path: Path
) -> None:
    await index.add(index_entry("0"), KEEP_FIRST)
    writing = cast(IndexWriter, index._writer)._connection
    assert writing is not None
    pages = writing.exec_driver_sql("PRAGMA page_count").scalar_one()
    writing.exec_driver_sql(f"PRAGMA max_page_count = {pages + 2}")
    entries = [index_entry(str(n), study=str(n), header=bytes(20_000)) for n in range(1, 9)]
    results = await asyncio.gather(*(index.add(e, KEEP_FIRST) for e in entries), return_exceptions=True)
    # The limit belongs to the connection: the writer takes another one after a failure, which has none.
    failed = [e for e, result in zip(entries, results, strict=True) if isinstance(result, IndexUnavailable)]
    assert failed
    assert "full" in str(next(result for result in results if isinstance(result, IndexUnavailable)))
    totals = await index.totals()
    assert totals.parts == totals.studies == 9 - len(failed)
    for entry in failed:
        assert (await index.add(entry, KEEP_FIRST)).outcome is AddOutcome.ADDED
    assert (await index.totals()).parts == 9
    assert _rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert _rows(path, "PRAGMA foreign_key_check") == []


async def test_a_disk_error_half_way_through_a_batch_leaves_nothing_of_it(
    index: SqlIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EntryWriter.write_batch

    def written_then_failing(self: EntryWriter, connection: Connection, requests: Any) -> Any:
        real(self, connection, requests)
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(EntryWriter, "write_batch", written_then_failing)
    with pytest.raises(IndexUnavailable, match="disk I/O error"):
        await index.add(index_entry("1"), KEEP_FIRST)
    monkeypatch.undo()
    assert (await index.totals()).parts == 0
    # A series remembered from the transaction that was rolled back would now violate its foreign key.
    assert (await index.add(index_entry("1"), KEEP_FIRST)).outcome is AddOutcome.ADDED


async def test_a_locked_database_is_unavailable_after_the_busy_timeout(path: Path) -> None:
    index = SqlIndex(IndexConfig(path, busy_timeout_seconds=0.2))
    await index.open()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    started = asyncio.get_running_loop().time()
    with pytest.raises(IndexUnavailable, match="locked"):
        await index.add(index_entry(), KEEP_FIRST)
    assert 0.15 < asyncio.get_running_loop().time() - started < 5
    other.execute("ROLLBACK")
    other.close()
    assert (await index.add(index_entry(), KEEP_FIRST)).outcome is AddOutcome.ADDED
    await index.close()


async def test_another_writer_s_rows_are_found_and_not_made_twice(index: SqlIndex, path: Path) -> None:
    other = SqlIndex(IndexConfig(path))
    await other.open()
    entries = [index_entry(str(n % 50), b"%d" % (n % 50), study=str(n % 5)) for n in range(200)]
    results = await asyncio.gather(
        *((index if n % 2 else other).add(entry, KEEP_FIRST) for n, entry in enumerate(entries))
    )
    assert [result.outcome for result in results].count(AddOutcome.ADDED) == 50
    assert [result.outcome for result in results].count(AddOutcome.SAME) == 150
    totals = await index.totals()
    assert (totals.patients, totals.studies, totals.series, totals.instances) == (1, 5, 5, 50)
    await other.close()


async def test_rows_deleted_behind_the_index_are_made_again(index: SqlIndex, path: Path) -> None:
    await index.add(index_entry("1"), KEEP_FIRST)
    database = sqlite3.connect(path)
    database.execute("PRAGMA foreign_keys = ON")
    with database:
        database.execute("DELETE FROM patients")
    database.close()
    assert (await index.totals()).parts == 0
    assert (await index.add(index_entry("2"), KEEP_FIRST)).outcome is AddOutcome.ADDED
    totals = await index.totals()
    assert (totals.patients, totals.studies, totals.series, totals.instances) == (1, 1, 1, 1)


async def test_an_instance_whose_parts_are_gone_is_added_again(index: SqlIndex, path: Path) -> None:
    await index.add(index_entry("1"), KEEP_FIRST)
    database = sqlite3.connect(path)
    database.execute("PRAGMA foreign_keys = ON")
    with database:
        database.execute("DELETE FROM parts")
    database.close()
    result = await index.add(index_entry("1", b"other"), KEEP_FIRST)
    assert (result.outcome, result.part_number) == (AddOutcome.ADDED, 1)


@pytest.mark.parametrize(("full", "expected"), [(True, 2), (False, 1)])
async def test_durability_sets_how_the_log_is_synced(path: Path, full: bool, expected: int) -> None:
    index = SqlIndex(IndexConfig(path, synchronous_full=full))
    await index.open()
    await index.add(index_entry(), KEEP_FIRST)
    writing = cast(IndexWriter, index._writer)._connection
    assert writing is not None
    assert writing.exec_driver_sql("PRAGMA synchronous").scalar() == expected
    assert writing.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
    assert writing.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    await index.close()


async def test_closing_folds_the_log_into_the_database(path: Path) -> None:
    index = SqlIndex(IndexConfig(path))
    await index.open()
    await index.add(index_entry(), KEEP_FIRST)
    await index.totals()
    await index.close()
    assert not path.with_name("index.sqlite-wal").exists()


async def test_the_log_does_not_grow_with_what_is_written(index: SqlIndex, path: Path) -> None:
    for start in range(0, 3_200, 64):
        entries = [index_entry(str(n), header=bytes(30_000)) for n in range(start, start + 64)]
        await asyncio.gather(*(index.add(entry, KEEP_FIRST) for entry in entries))
    assert path.with_name("index.sqlite-wal").stat().st_size < 40_000_000 < path.stat().st_size


@pytest.mark.parametrize("values", [{"max_batch": 0}, {"max_batch": 257}, {"max_queue": 0}])
def test_impossible_limits_are_refused(path: Path, values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        IndexConfig(path, **values)


async def test_a_second_open_is_refused(index: SqlIndex) -> None:
    with pytest.raises(IndexFailure, match="open already"):
        await index.open()


_CHILD = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from scp_server.index.base import DuplicatePolicy
    from scp_server.index.store import IndexConfig, SqlIndex
    from scp_server.testing.index_contract import index_entry

    async def adder(index, name):
        number = 0
        while True:
            entry = index_entry(f"{name}.{number}", study=str(number % 9), location=f"{name}/{number}")
            await index.add(entry, DuplicatePolicy.KEEP_FIRST)
            print(entry.location, flush=True)
            number += 1

    async def main():
        index = SqlIndex(IndexConfig(Path(sys.argv[1]), synchronous_full=False))
        await index.open()
        await asyncio.gather(*(adder(index, name) for name in range(1, 9)))

    asyncio.run(main())
    """
)


async def test_kill_9_loses_nothing_acknowledged_and_leaves_nothing_half_done(path: Path) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, str(path), stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    assert child.stdout is not None
    acknowledged = []
    async with asyncio.timeout(60):
        async for line in child.stdout:
            acknowledged.append(line.decode().strip())
            if len(acknowledged) == 500:
                child.send_signal(signal.SIGKILL)
        await child.wait()
    assert len(acknowledged) >= 500
    index = SqlIndex(IndexConfig(path))
    await index.open()
    assert await index.unknown_locations(acknowledged[:-1]) == []
    totals = await index.totals()
    assert totals.instances == totals.parts >= len(acknowledged) - 1
    await index.close()
    assert _rows(path, "PRAGMA integrity_check") == [("ok",)]
    assert _rows(path, "PRAGMA foreign_key_check") == []
    assert _rows(path, "SELECT count(*) FROM parts") == _rows(path, "SELECT count(*) FROM headers")


async def test_an_entry_that_another_process_wrote_at_that_moment_is_tried_again(
    index: SqlIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EntryWriter.write_batch
    calls = 0

    def overtaken(self: EntryWriter, connection: Connection, requests: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= 2:
            raise IntegrityError("INSERT", (), sqlite3.IntegrityError("UNIQUE constraint failed"))
        return real(self, connection, requests)

    monkeypatch.setattr(EntryWriter, "write_batch", overtaken)
    assert (await index.add(index_entry(), KEEP_FIRST)).outcome is AddOutcome.ADDED
    assert calls == 3


async def test_the_summary_s_attributes_lie_at_their_level(index: SqlIndex, path: Path) -> None:
    texts: dict[str, Any] = {
        field.name: f"text of {field.name}" for field in fields(InstanceSummary) if field.type == "str | None"
    }
    numbers: dict[str, Any] = {
        field.name: number
        for number, field in enumerate(fields(InstanceSummary))
        if field.type == "int | None"
    }
    assert len(texts) > 30
    assert len(numbers) > 5
    await index.add(index_entry(**texts, **numbers), KEEP_FIRST)
    database = sqlite3.connect(path)
    database.row_factory = sqlite3.Row
    found: dict[str, Any] = {}
    for table in ("patients", "studies", "series", "instances"):
        (row,) = database.execute(f"SELECT * FROM {table}")
        found |= dict(row)
    database.close()
    summary = index_entry().summary
    required = {
        name: getattr(summary, name)
        for name in ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "sop_class_uid")
    }
    for name, value in {**texts, **numbers, **required}.items():
        assert found[name] == value, name


async def test_the_first_object_s_attributes_stay(index: SqlIndex, path: Path) -> None:
    entries = [
        index_entry(str(n), study=str(n // 2), patient_name=f"N{n}", study_date=f"D{n}", modality=f"M{n}")
        for n in range(4)
    ]
    await asyncio.gather(*(index.add(entry, KEEP_FIRST) for entry in entries))
    late = index_entry("9", study="0", patient_name="N9", study_date="D9", modality="M9")
    await index.add(late, KEEP_FIRST)
    assert _rows(path, "SELECT patient_name FROM patients") == [("N0",)]
    assert sorted(_rows(path, "SELECT study_date FROM studies")) == [("D0",), ("D2",)]
    assert sorted(_rows(path, "SELECT modality FROM series")) == [("M0",), ("M2",)]


async def test_references_of_all_parts_are_recorded_once(index: SqlIndex, path: Path) -> None:
    first = index_entry("1", b"first", referenced_sop_instance_uids=("1.1", "1.2"))
    later = [index_entry("1", b"%d" % n, referenced_sop_instance_uids=("1.2", f"1.3.{n}")) for n in range(2)]
    other = index_entry("2", referenced_sop_instance_uids=("1.1",))
    await index.add(first, DuplicatePolicy.PARTS)
    await asyncio.gather(*(index.add(entry, DuplicatePolicy.PARTS) for entry in [*later, other]))
    found = _rows(
        path,
        "SELECT sop_instance_uid, referenced_sop_instance_uid FROM instance_references"
        " JOIN instances USING (instance_key) ORDER BY 1, 2",
    )
    one, two = first.summary.sop_instance_uid, other.summary.sop_instance_uid
    assert found == [(one, "1.1"), (one, "1.2"), (one, "1.3.0"), (one, "1.3.1"), (two, "1.1")]


async def test_a_disk_that_fails_while_a_spoilt_batch_is_retried_fails_only_what_it_met(
    index: SqlIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = EntryWriter.write_batch
    entries = [index_entry(str(number)) for number in range(40)]
    alone = 0

    def spoilt_then_failing(self: EntryWriter, connection: Connection, requests: Any) -> Any:
        nonlocal alone
        if len(requests) > 1:
            raise ValueError("one of them")
        alone += 1
        if alone == 20:
            raise sqlite3.OperationalError("disk I/O error")
        return real(self, connection, requests)

    monkeypatch.setattr(EntryWriter, "write_batch", spoilt_then_failing)
    results = await asyncio.gather(*(index.add(e, KEEP_FIRST) for e in entries), return_exceptions=True)
    assert [type(result) for result in results].count(IndexUnavailable) == 1
    (lost,) = (e.location for e, r in zip(entries, results, strict=True) if isinstance(r, Exception))
    assert await index.unknown_locations([entry.location for entry in entries]) == [lost]


async def test_the_totals_are_what_counting_finds_whatever_was_added_replaced_and_removed(
    index: SqlIndex, path: Path
) -> None:
    policies = (KEEP_FIRST, DuplicatePolicy.PARTS, DuplicatePolicy.REPLACE)
    for number in range(24):
        study = str(number % 4)
        entry = index_entry(
            f"{number % 12}", b"%d" % number, study=study, series=study, patient_id=f"P{number % 3}"
        )
        await index.add(entry, policies[number % 3])
    kept = [part.location for part in await index.list_parts()]
    assert await index.remove(kept[::3]) > 0
    tables = ("patients", "studies", "series", "instances", "parts")
    counted = [_rows(path, f"SELECT count(*) FROM {table}")[0][0] for table in tables]
    assert all(counted)
    ((size_bytes,),) = _rows(path, "SELECT sum(size_bytes) FROM parts")
    assert list(asdict(await index.totals()).values()) == [*counted, size_bytes]


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE parts; --", '" OR 1=1 --', "100%_*?", ":name", "\\'", "a\nb"]
)
async def test_text_of_a_peer_is_a_value_and_never_a_statement(
    index: SqlIndex, path: Path, text: str
) -> None:
    """Also where it is looked up: the second study of the same patient finds the first one's row."""
    attributes: dict[str, Any] = {"patient_id": text, "issuer_of_patient_id": text, "patient_name": text}
    for study in ("1", "2"):
        entry = index_entry(study, study=study, study_description=text, **attributes)
        entry = replace(entry, calling_ae_title=text, location=f"{text}{study}")
        assert (await index.add(entry, KEEP_FIRST)).outcome is AddOutcome.ADDED
    totals = await index.totals()
    assert (totals.patients, totals.studies, totals.parts) == (1, 2, 2)
    assert _rows(path, "SELECT patient_id, patient_name FROM patients") == [(text, text)]
    (part,) = await index.parts(entry.summary.sop_instance_uid)
    assert (part.calling_ae_title, part.location) == (text, f"{text}2")
    await index.remove([f"{text}1"])
    assert (await index.totals()).parts == 1


async def test_a_removal_forgets_studies_and_series_but_no_keys_in_hand(index: SqlIndex, path: Path) -> None:
    claimed = "SELECT next_key FROM key_allocation"
    first = index_entry("1", location="first")
    await index.add(first, KEEP_FIRST)
    before = _rows(path, claimed)
    for _ in range(3):
        assert await index.remove(["first"]) == 1
        assert _rows(path, "SELECT * FROM studies") == []
        assert (await index.add(first, KEEP_FIRST)).outcome is AddOutcome.ADDED
    assert _rows(path, claimed) == before
    assert len(_rows(path, "SELECT * FROM studies JOIN series USING (study_key)")) == 1
