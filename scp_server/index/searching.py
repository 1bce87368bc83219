"""Carrying out searches: in threads of their own, page by page, with nothing held in between.

A search first finds keys, a block of them at a time, and then reads and judges a page of them at a time. Both
are statements that are over when the page is, so a caller that takes its time holds back neither the log of
the database nor anybody else. What is left between pages is a block of keys, 128 KiB at most.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Engine

from scp_server.errors import IndexUnavailable, SearchInterrupted
from scp_server.index.failures import unavailable
from scp_server.index.search import Entity, Judge, Search, SizeOf, of_no_size
from scp_server.index.search_shape import Parameters, take_apart
from scp_server.index.search_sql import Statements, statements
from scp_server.index.sqlite import reader_engine, stoppable

FIRST_PAGE_ROWS: Final = 32
"""Few, so that the first answers come quickly; every further page has more."""
PAGE_GROWTH: Final = 4
MAX_PAGE_ROWS: Final = 1_024
MAX_PAGE_HEADER_BYTES: Final = 1 << 20
"""Packed headers of one page, beside the one that exceeds it."""
MAX_PAGE_ANSWER_BYTES: Final = 1 << 20
"""What the judge gave for one page, beside the one that exceeds it: a header unpacks to a thousand times what
it is packed."""
BLOCK_KEYS: Final = 16_384
"""Keys found at once. Each block costs the conditions once more."""

_ALL_KEYS: Final = (1 << 63) - 1
_ROWS_FETCHED_AT_ONCE: Final = 16

T = TypeVar("T")


class SearchThreads:
    """Threads for searches, each with a connection: no search holds up the index's other reads."""

    def __init__(self, path: Path, *, readers: int, busy_timeout_seconds: float) -> None:
        self._path = path
        self._readers = readers
        self._busy_timeout_seconds = busy_timeout_seconds
        self._threads: ThreadPoolExecutor | None = None
        self._engine: Engine | None = None
        self._closing = False

    def open(self) -> None:
        """Make ready; the database exists."""
        self._closing = False
        self._threads = ThreadPoolExecutor(self._readers, thread_name_prefix="index-search")
        self._engine = reader_engine(
            self._path, connections=self._readers, busy_timeout_seconds=self._busy_timeout_seconds
        )

    def stop(self) -> None:
        """From now on all searches raise IndexUnavailable, those that run too. To be called in the loop."""
        self._closing = True

    def close(self) -> None:
        """Wait until what ran has ended, once stopped. Blocks; may be called twice."""
        threads, engine = self._threads, self._engine
        self._threads = self._engine = None
        if threads is not None and engine is not None:
            threads.shutdown(wait=True)
            engine.dispose()

    async def run(self, work: Callable[[Connection], T], stopped: Callable[[], bool]) -> T:
        """Do some work in a thread; `stopped`, asked now and then, ends its statement.

        Raises IndexUnavailable, and whatever else `work` raises.
        """
        threads, engine = self._threads, self._engine
        if self._closing or threads is None or engine is None:
            raise IndexUnavailable("the index is not open")

        def in_thread() -> T:
            with self.failing():
                connection = engine.connect()
            with connection, stoppable(connection, lambda: self._closing or stopped()):
                return work(connection)

        return await asyncio.get_running_loop().run_in_executor(threads, in_thread)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Turn what the database raises into IndexUnavailable."""
        if self._closing:
            raise IndexUnavailable("the index is not open")
        with unavailable(self._path):
            yield


class SqlSearch(Generic[T]):
    """A `RunningSearch`. Its pages are made one at a time, each in some thread of `threads`."""

    def __init__(
        self, threads: SearchThreads, search: Search, judge: Judge[T], size_of: SizeOf[T] = of_no_size
    ) -> None:
        self._threads = threads
        self._search = search
        self._judge = judge
        self._size_of = size_of
        self._interrupted = False
        self._ended = False
        self._statements: Statements | None = None
        self._parameters: Parameters = {}
        self._page_rows = FIRST_PAGE_ROWS
        self._keys = array("q")
        """Found and not yet read, ascending."""
        self._after = 0
        """The greatest key found."""
        self._until = _ALL_KEYS
        """The greatest key there was at the start: what replaces an entity meanwhile has a greater one."""
        self._all_found = False

    def __aiter__(self) -> SqlSearch[T]:
        return self

    async def __anext__(self) -> list[T]:
        """The next page (see `RunningSearch`). Cancelled, the search is interrupted."""
        self._check()
        if self._ended:
            raise StopAsyncIteration
        self._ended = True
        try:
            page = await self._threads.run(self._next_page, lambda: self._interrupted)
        except asyncio.CancelledError:
            self._interrupted = True
            raise
        except IndexUnavailable:
            self._check()
            raise
        self._ended = self._all_found and not self._keys
        return page

    def interrupt(self) -> None:
        """Stop as soon as possible; from any thread. Never raises."""
        self._interrupted = True

    def _check(self) -> None:
        if self._interrupted:
            raise SearchInterrupted("the search was stopped")

    def _next_page(self, connection: Connection) -> list[T]:
        if self._statements is None:
            shape, self._parameters = take_apart(self._search)
            self._statements = statements(shape, connection.dialect)
        self._check()
        if not self._keys:
            self._find(connection, self._statements)
        if not self._keys:
            return []
        keys = self._keys[: self._page_rows]
        page, seen = self._read(connection, self._statements, keys)
        # What is gone meanwhile is not seen, and nothing is sought again.
        rest = () if seen is None else (key for key in keys if key not in seen)
        self._keys = array("q", rest) + self._keys[len(keys) :]
        self._page_rows = min(self._page_rows * PAGE_GROWTH, MAX_PAGE_ROWS)
        return page

    def _find(self, connection: Connection, prepared: Statements) -> None:
        """Find the next block; the first is one page."""
        limit = FIRST_PAGE_ROWS if self._after == 0 else BLOCK_KEYS
        values = prepared.find.values(
            {**self._parameters, "after": self._after, "until": self._until, "limit": limit}
        )
        with self._threads.failing():
            rows = connection.exec_driver_sql(prepared.find.text, values).all()
        self._all_found = len(rows) < limit
        if rows:
            self._keys = array("q", (row[0] for row in rows))
            self._after = self._keys[-1]
            self._until = min(self._until, rows[0][1])

    def _read(
        self, connection: Connection, prepared: Statements, keys: Sequence[int]
    ) -> tuple[list[T], set[int] | None]:
        """What the judge gave for `keys`; and which were read, where that was not all of them."""
        page: list[T] = []
        seen: set[int] = set()
        header_bytes = answer_bytes = 0
        for row in self._rows(connection, prepared, keys):
            self._check()
            key, header = row[0], row[1]
            given = self._judge(Entity(key, prepared.named(row), header))
            if given is not None:
                page.append(given)
                answer_bytes += self._size_of(given)
            seen.add(key)
            header_bytes += len(header or b"")
            if header_bytes > MAX_PAGE_HEADER_BYTES or answer_bytes > MAX_PAGE_ANSWER_BYTES:
                return page, seen
        return page, None

    def _rows(
        self, connection: Connection, prepared: Statements, keys: Sequence[int]
    ) -> Iterator[Sequence[Any]]:
        """Rows of `read`, a few at a time, so that few headers are in memory; errors of others pass."""
        with self._threads.failing():
            values = prepared.read.values({"keys": json.dumps(list(keys))})
            result = connection.exec_driver_sql(prepared.read.text, values)
        try:
            while True:
                with self._threads.failing():
                    rows = result.fetchmany(_ROWS_FETCHED_AT_ONCE)
                if not rows:
                    return
                yield from rows
        finally:
            result.close()
