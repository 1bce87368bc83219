"""Listing a million parts costs each page the same: which indexes SQLite takes, and how much it does."""

from __future__ import annotations

import asyncio
import sqlite3

import pytest
from sqlalchemy import Connection, Engine, Select, event
from sqlalchemy.dialects import sqlite

from scp_server.index.base import DuplicatePolicy, Level, Scope
from scp_server.index.listing import keys_below, page_of_parts, parts_with_keys
from scp_server.index.store import SqlIndex
from scp_server.testing.index_contract import index_entry

ROOT = "1.2.840.99"


def _plan(connection: Connection, statement: Select[tuple[object, ...]]) -> list[str]:
    text = statement.compile(
        dialect=sqlite.dialect(),
        compile_kwargs={"literal_binds": True, "render_postcompile": True},
    )
    return [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]


def test_a_page_of_everything_is_read_in_the_order_of_the_index_of_locations(connection: Connection) -> None:
    plan = _plan(connection, page_of_parts("x", 5))
    assert plan[0].startswith("SEARCH parts USING INDEX sqlite_autoindex_parts_3 (location>?")
    assert all("USING INTEGER PRIMARY KEY" in step for step in plan[1:])


@pytest.mark.parametrize(
    ("level", "first"),
    [
        (Level.STUDY, "SEARCH studies USING COVERING INDEX sqlite_autoindex_studies_1"),
        (Level.SERIES, "SEARCH series USING INDEX ix_series_series_instance_uid"),
        (Level.INSTANCE, "SEARCH instances USING INDEX sqlite_autoindex_instances_1"),
    ],
)
def test_the_keys_of_a_scope_are_found_from_its_uid_downwards_and_sorted_once(
    connection: Connection, level: Level, first: str
) -> None:
    plan = _plan(connection, keys_below(Scope(level, "1.2")))
    assert plan[0].startswith(first)
    assert all(step.startswith("SEARCH ") for step in plan[:-1]), "nothing is walked whole"
    assert plan[-1] == "USE TEMP B-TREE FOR ORDER BY"


def test_a_page_of_a_scope_is_found_by_keys_and_not_sorted(connection: Connection) -> None:
    plan = _plan(connection, parts_with_keys.params(keys=[1, 2, 3]))
    assert len(plan) == 4
    assert all("SEARCH " in step and "USING INTEGER PRIMARY KEY (rowid=?)" in step for step in plan)


async def _steps_of_listing(index: SqlIndex, study: str, parts: int) -> int:
    """What SQLite's machine does, in hundreds of instructions, to list a study of so many parts."""
    entries = [index_entry(f"{study}.{number}", study=study) for number in range(parts)]
    await asyncio.gather(*(index.add(entry, DuplicatePolicy.PARTS) for entry in entries))
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    def watch(connection: sqlite3.Connection, *_: object) -> None:
        connection.set_progress_handler(count, 100)

    event.listen(Engine, "checkout", watch)
    try:
        pages = [page async for page in index.parts_below(Scope(Level.STUDY, f"{ROOT}.1.{study}"), limit=10)]
    finally:
        event.remove(Engine, "checkout", watch)
    assert sum(map(len, pages)) == parts
    return steps


async def test_listing_twice_as_many_parts_is_twice_the_work(index: SqlIndex) -> None:
    once = await _steps_of_listing(index, "1", 400)
    twice = await _steps_of_listing(index, "2", 800)
    assert once > 20
    # The sort has a logarithm in it. Sorting for every page made it four times the work.
    assert twice < 2.5 * once
