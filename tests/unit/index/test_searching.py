"""How searches of the SQLite index end, what they hold, and whom they disturb."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest

from scp_server.errors import IndexUnavailable, SearchInterrupted
from scp_server.index import searching
from scp_server.index.base import DuplicatePolicy
from scp_server.index.search import Condition, Entity, EntityLevel, Search
from scp_server.index.search_shape import take_apart
from scp_server.index.search_sql import Prepared, Statements, statements
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.objects.matching_hints import AnyOf, Between
from scp_server.testing.index_contract import index_entry
from scp_server.testing.search_contract import found

KEEP_FIRST = DuplicatePolicy.KEEP_FIRST
ALL = Search(EntityLevel.INSTANCE)
_FOR_EVER = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i), 1 FROM n"


def _key(entity: Entity) -> int:
    return entity.key


async def _add(index: SqlIndex, count: int, header: bytes = b"header") -> None:
    entries = [index_entry(str(number), header=header) for number in range(count)]
    await asyncio.gather(*(index.add(entry, KEEP_FIRST) for entry in entries))


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Every search's statement runs for ever; released when one is about to start."""
    started = threading.Semaphore(0)

    class Endless(Prepared):
        def values(self, parameters: object) -> tuple[str | int, ...]:
            started.release()
            return ()

    forever = Endless(_FOR_EVER, (), {})
    monkeypatch.setattr(searching, "statements", lambda *_: Statements(forever, forever, (), 0))
    return started


async def _wait(started: threading.Semaphore) -> None:
    await asyncio.get_running_loop().run_in_executor(None, started.acquire)


async def test_interrupting_ends_a_statement_that_runs(
    index: SqlIndex, endless: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = index.search(ALL, _key)
    page = asyncio.ensure_future(anext(search))
    await _wait(endless)
    search.interrupt()
    with pytest.raises(SearchInterrupted):
        await page
    monkeypatch.undo()
    await _add(index, 3)
    assert len(await found(index, ALL, _key)) == 3, "the connection is fit for the next search"


async def test_cancelling_whoever_waits_ends_the_statement(path: Path, endless: threading.Semaphore) -> None:
    index = SqlIndex(IndexConfig(path, readers=1))
    await index.open()
    for _ in range(2):
        page = asyncio.ensure_future(anext(index.search(ALL, _key)))
        await _wait(endless)
        page.cancel()
        with pytest.raises(asyncio.CancelledError):
            await page
    await index.close()


async def test_closing_the_index_ends_statements_that_run_and_those_that_wait(
    path: Path, endless: threading.Semaphore
) -> None:
    index = SqlIndex(IndexConfig(path, readers=2))
    await index.open()
    pages = [asyncio.ensure_future(anext(index.search(ALL, _key))) for _ in range(5)]
    await _wait(endless)
    await index.close()
    results = await asyncio.gather(*pages, return_exceptions=True)
    assert [type(result) for result in results] == [IndexUnavailable] * 5
    assert not path.with_name("index.sqlite-wal").exists()


async def test_searches_hold_up_no_other_reading(path: Path, endless: threading.Semaphore) -> None:
    index = SqlIndex(IndexConfig(path, readers=1))
    await index.open()
    await index.add(index_entry(), KEEP_FIRST)
    searches = [index.search(ALL, _key) for _ in range(3)]
    pages = [asyncio.ensure_future(anext(search)) for search in searches]
    await _wait(endless)
    assert (await index.totals()).parts == 1
    for search in searches:
        search.interrupt()
    results = await asyncio.gather(*pages, return_exceptions=True)
    assert [type(result) for result in results] == [SearchInterrupted] * 3
    await index.close()


async def test_a_search_that_stands_still_does_not_hold_the_log_back(index: SqlIndex, path: Path) -> None:
    await _add(index, 100)
    search = index.search(Search(EntityLevel.INSTANCE, with_header=True), _key)
    assert len(await anext(search)) == searching.FIRST_PAGE_ROWS
    for start in range(1_000, 4_200, 64):
        entries = [index_entry(str(n), header=bytes(30_000)) for n in range(start, start + 64)]
        await asyncio.gather(*(index.add(entry, KEEP_FIRST) for entry in entries))
    assert path.with_name("index.sqlite-wal").stat().st_size < 40_000_000 < path.stat().st_size
    assert len([key async for page in search for key in page]) == 100 - searching.FIRST_PAGE_ROWS


async def test_keys_are_found_in_blocks(index: SqlIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "BLOCK_KEYS", 50)
    await _add(index, 333)
    keys = await found(index, ALL, _key)
    assert keys == sorted(set(keys))
    assert len(keys) == 333


@pytest.mark.parametrize("count", [0, 1, searching.FIRST_PAGE_ROWS, searching.FIRST_PAGE_ROWS + 1])
async def test_a_search_of_one_page_reads_no_other(index: SqlIndex, count: int) -> None:
    await _add(index, count)
    pages = [page async for page in index.search(ALL, _key)]
    assert len(pages) == 1 + (count >= searching.FIRST_PAGE_ROWS)
    assert sum(map(len, pages)) == count


async def test_headers_bound_a_page(index: SqlIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "MAX_PAGE_HEADER_BYTES", 10_000)
    await _add(index, 100, header=bytes(3_000))
    pages = [page async for page in index.search(Search(EntityLevel.INSTANCE, with_header=True), _key)]
    keys = [key for page in pages for key in page]
    assert {len(page) for page in pages} == {4}
    assert keys == sorted(set(keys))
    assert len(keys) == 100


async def test_what_the_judge_gave_bounds_a_page(index: SqlIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "MAX_PAGE_ANSWER_BYTES", 10_000)
    await _add(index, 100)
    sizes = [
        len(page) async for page in index.search(ALL, lambda entity: entity.key, size_of=lambda _: 3_000)
    ]
    assert set(sizes) == {4}
    assert sum(sizes) == 100


async def test_a_database_that_fails_is_unavailable(index: SqlIndex, path: Path) -> None:
    await _add(index, 50)
    search = index.search(ALL, _key)
    await anext(search)
    other = sqlite3.connect(path)
    other.execute("ALTER TABLE patients RENAME TO strangers")
    other.close()
    with pytest.raises(IndexUnavailable, match="patients"):
        await anext(search)


async def test_searches_of_one_shape_share_their_statements(index: SqlIndex) -> None:
    def shape(*values: str) -> object:
        search = Search(EntityLevel.STUDY, (Condition("patient_id", AnyOf(values)),))
        return take_apart(search)[0]

    assert shape("A") == shape("B")
    assert shape("A", "B") == shape(*map(str, range(1_000)))
    before = statements.cache_info().misses
    for number in range(20):
        search = Search(EntityLevel.STUDY, (Condition("study_date", Between(str(number), None)),))
        assert await found(index, search, _key) == []
    assert statements.cache_info().misses == before + 1
