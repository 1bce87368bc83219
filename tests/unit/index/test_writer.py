"""The pieces that a batch is written with."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Literal

import pytest
from sqlalchemy import Connection, Constraint, Dialect, Index, Table, create_engine, func, insert, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateTable

from scp_server.index.base import AddOutcome, DuplicatePolicy
from scp_server.index.bulk import MAX_ROWS, BulkInsert
from scp_server.index.hierarchy import RecentlyUsed, padded
from scp_server.index.keys import BLOCK_KEYS, KeyAllocator
from scp_server.index.replacing import forget_discarded
from scp_server.index.schema import (
    discarded_objects,
    headers,
    instance_references,
    instances,
    metadata,
    parts,
    patients,
    series,
    studies,
)
from scp_server.index.writer import AddRequest, EntryWriter
from scp_server.testing.index_contract import index_entry


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_a_bulk_insert_names_its_columns_in_the_order_of_its_rows(
    connection: Connection, table: Table
) -> None:
    bulk = BulkInsert(table)
    compiled = insert(table).compile(dialect=connection.dialect, column_keys=list(bulk.columns))
    assert compiled.positiontup == list(bulk.columns)
    text = bulk._text(connection, 3)
    assert text.count("?") == 3 * len(bulk.columns)
    assert len(bulk.columns) * MAX_ROWS < 999


@pytest.mark.parametrize("count", [0, 1, MAX_ROWS, MAX_ROWS + 1, 2 * MAX_ROWS + 5])
@pytest.mark.parametrize("paramstyle", ["qmark", "named"])
def test_a_bulk_insert_inserts_any_number_of_rows(
    connection: Connection, path: Path, count: int, paramstyle: Literal["qmark", "named"]
) -> None:
    """By any other parameter style Core inserts them itself, as it will for other databases."""
    rows = [(n + 1, f"P{n}", "", "", None, f"N{n}", None, None, None, f"=n{n}=") for n in range(count)]
    engine = create_engine(f"sqlite:///{path}", paramstyle=paramstyle)
    with engine.begin() as styled:
        BulkInsert(patients).execute(styled, rows)
    engine.dispose()
    found = connection.execute(select(patients).order_by(patients.c.patient_key)).all()
    assert [tuple(row) for row in found] == rows


def test_keys_are_ascending_and_given_out_once_also_by_two(connection: Connection) -> None:
    one, two = KeyAllocator(), KeyAllocator()
    given: list[int] = []
    with connection.begin():
        for count in (1, 5, BLOCK_KEYS, 3 * BLOCK_KEYS, 1):
            for allocator in (one, two):
                taken = allocator.take(connection, count)
                assert len(taken) == count
                given += taken
    assert len(set(given)) == len(given)
    assert min(given) == 1


def test_keys_of_a_block_that_was_rolled_back_are_not_given_out(connection: Connection) -> None:
    keys = KeyAllocator()
    with connection.begin() as transaction:
        first = keys.take(connection, 10)
        transaction.rollback()
    keys.forget()
    with connection.begin():
        assert keys.take(connection, 10) == first
        assert KeyAllocator().take(connection, 1)[0] >= first[0] + BLOCK_KEYS


@pytest.mark.parametrize(
    ("values", "expected"), [("a", "a"), ("ab", "ab"), ("abc", "abcc"), ("abcde", "abcdeeee"), ("", "")]
)
def test_padding_repeats_the_last_value_up_to_a_power_of_two(values: str, expected: str) -> None:
    assert "".join(padded(values)) == expected


def test_recently_used_drops_what_was_unused_for_longest() -> None:
    recent: RecentlyUsed[str, int] = RecentlyUsed(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)
    assert len(recent) == 2
    recent.clear()
    assert recent.get("a") is None


def test_entries_of_one_batch_are_recorded_one_after_the_other(connection: Connection) -> None:
    requests = [
        AddRequest(index_entry("1", b"a"), DuplicatePolicy.PARTS),
        AddRequest(index_entry("1", b"a"), DuplicatePolicy.KEEP_FIRST),
        AddRequest(index_entry("1", b"b"), DuplicatePolicy.KEEP_FIRST),
        AddRequest(index_entry("1", b"b"), DuplicatePolicy.PARTS),
        AddRequest(index_entry("1", b"b"), DuplicatePolicy.KEEP_FIRST),
        AddRequest(index_entry("2", b"b", patient_id="other"), DuplicatePolicy.KEEP_FIRST),
    ]
    expected = [
        (AddOutcome.ADDED, 0, 1, False),
        (AddOutcome.SAME, 0, 1, False),
        (AddOutcome.CONFLICT, 0, 1, False),
        (AddOutcome.ADDED_PART, 3, 2, False),
        (AddOutcome.SAME, 3, 2, False),
        (AddOutcome.ADDED, 5, 1, True),
    ]
    with connection.begin():
        results = EntryWriter().write_batch(connection, requests)
    locations = [request.entry.location for request in requests]
    assert [
        (r.outcome, locations.index(r.location), r.part_number, r.patient_conflict) for r in results
    ] == expected


def test_what_one_batch_replaces_may_be_of_the_same_batch(connection: Connection) -> None:
    """Rows that are not written yet are replaced like those of the database."""
    writer = EntryWriter()
    replace, keep, both = DuplicatePolicy.REPLACE, DuplicatePolicy.KEEP_FIRST, DuplicatePolicy.PARTS
    requests = [
        AddRequest(index_entry("1", content), policy)
        for content, policy in [
            (b"a", replace),
            (b"b", replace),
            (b"c", both),
            (b"a", replace),
            (b"d", keep),
        ]
    ]
    with connection.begin():
        first = writer.write_batch(connection, requests)
    with connection.begin():
        second = writer.write_batch(connection, [AddRequest(index_entry("1", b"e"), replace), *requests[3:4]])
    locations = [request.entry.location for request in requests]
    assert [result.outcome.value for result in first] == [
        "added", "replaced", "added_part", "replaced", "conflict",
    ]  # fmt: skip
    assert [result.discarded for result in first] == [
        (), (locations[0],), (), (locations[1], locations[2]), (),
    ]  # fmt: skip
    assert [result.discarded for result in second] == [(locations[3],), (second[0].location,)]


def test_a_series_study_or_patient_without_its_last_instance_is_gone(connection: Connection) -> None:
    """And what takes its place has the newcomer's attributes."""
    writer = EntryWriter()
    for wrong in (
        index_entry("1", b"wrong", patient_id="WRONG"),
        index_entry("2", b"stays", study="2", series="2", patient_id="P2"),
        index_entry("3", b"leaves", study="2", series="3", patient_id="P2"),
    ):
        with connection.begin():
            writer.write_batch(connection, [AddRequest(wrong, DuplicatePolicy.REPLACE)])
    for right in (
        index_entry("1", b"right", patient_id="RIGHT", referenced_sop_instance_uids=("1.2",)),
        index_entry("3", b"moved", study="1", series="4", patient_id="RIGHT"),
    ):
        with connection.begin():
            (result,) = writer.write_batch(connection, [AddRequest(right, DuplicatePolicy.REPLACE)])
        assert (result.outcome, result.part_number) == (AddOutcome.REPLACED, 1)
        assert not result.patient_conflict
    assert set(connection.execute(select(patients.c.patient_id)).scalars()) == {"RIGHT", "P2"}
    assert len(set(connection.execute(select(studies.c.study_instance_uid)).scalars())) == 2
    found = set(connection.execute(select(series.c.series_instance_uid)).scalars())
    assert {uid.rpartition(".")[2] for uid in found} == {"1", "2", "4"}
    counted = [
        connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in (instances, parts, headers, instance_references, discarded_objects)
    ]
    assert counted == [3, 3, 3, 1, 2]


def test_a_batch_of_known_series_is_five_statements_whatever_its_size(connection: Connection) -> None:
    writer = EntryWriter()
    with connection.begin():
        writer.write_batch(connection, [AddRequest(index_entry("0"), DuplicatePolicy.PARTS)])
    statements: list[str] = []
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.set_trace_callback(statements.append)
    with connection.begin():
        requests = [AddRequest(index_entry(str(n)), DuplicatePolicy.PARTS) for n in range(1, MAX_ROWS + 1)]
        writer.write_batch(connection, requests)
    raw.set_trace_callback(None)
    # A statement is told again for each row that a trigger counts inside it.
    assert [statement.split()[0] for statement, _ in groupby(statements)] == [
        "BEGIN", "SELECT", "INSERT", "INSERT", "INSERT", "COMMIT",
    ]  # fmt: skip


def test_every_lookup_uses_an_index(connection: Connection) -> None:
    """So that an entry costs the same with a million instances as with none."""
    statements: list[str] = []
    raw = connection.connection.dbapi_connection
    assert raw is not None
    raw.set_trace_callback(statements.append)
    with connection.begin():
        writer = EntryWriter()
        for study in ("1", "2"):
            entries = [
                index_entry("1", study.encode(), study=study, referenced_sop_instance_uids=("1.2",)),
                index_entry("2", study.encode(), study=study),
                index_entry(f"9{study}", study.encode(), study=study),
            ]
            writer.write_batch(connection, [AddRequest(entry, DuplicatePolicy.PARTS) for entry in entries])
        replacing = AddRequest(index_entry("91", b"other", study="3"), DuplicatePolicy.REPLACE)
        (result,) = writer.write_batch(connection, [replacing])
        forget_discarded(connection, result.discarded)
    raw.set_trace_callback(None)
    lookups = [statement for statement in statements if statement.startswith(("SELECT", "DELETE"))]
    looked_in = {table for text in lookups for table in re.findall(r"\s(?:FROM|JOIN) (\w+)", text)}
    assert looked_in >= {"patients", "studies", "series", "instances", "parts", "instance_references"}
    for statement in lookups:
        for *_, detail in connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statement.replace("%", "%%")):
            assert not detail.startswith("SCAN ") or "CONSTANT" in detail or "LIST" in detail, (
                detail,
                statement,
            )


def test_statements_compile_for_postgresql() -> None:
    dialect: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    for table in metadata.sorted_tables:
        assert "INSERT INTO" in str(insert(table).compile(dialect=dialect))
    assert "instance_key BIGINT NOT NULL" in str(CreateTable(instances).compile(dialect=dialect))
    named: list[Constraint | Index] = []
    for table in metadata.sorted_tables:
        named += [*table.constraints, *table.indexes]
    assert max(len(str(item.name)) for item in named) <= 63
