"""The event log for the tasks of the event loop: reads of its own, writes through the one writer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol, TypeVar, cast

from sqlalchemy import Connection, bindparam, select

from scp_server.errors import IndexUnavailable
from scp_server.index.batching import BatchQueue
from scp_server.index.deciding import DecisionWriter
from scp_server.index.event_writing import EventWriter
from scp_server.index.events import EventRow, LogPage, LogRequest, Work
from scp_server.index.outbox import trimmed_to
from scp_server.index.schema import event_log, events
from scp_server.index.transactions import IndexRequest

HOLD_SECONDS: Final = 0.05
"""How long what nobody waits for may wait for another one's transaction: twenty of its own a second at most,
each of which may be a sync of the disk."""

T = TypeVar("T")

_rows = (
    select(*(events.c[name] for name in EventRow._fields))
    .where(events.c.event_id > bindparam("after"))
    .order_by(events.c.event_id)
    .limit(bindparam("limit"))
)
_page = _rows.add_columns(select(event_log.c.trimmed_to).scalar_subquery())


class _Read(Protocol):
    def __call__(self, query: Callable[[Connection], T]) -> Awaitable[T]: ...


class SqlEventLog:
    """The `EventLog` of a `SqlIndex`."""

    def __init__(self, writer: EventWriter, decisions: DecisionWriter, read: _Read) -> None:
        self._writer = writer
        self._decisions = decisions
        self._read = read
        self._queue: BatchQueue[IndexRequest, object] | None = None
        self._seen_id = 0
        self._callbacks: dict[object, Callable[[], None]] = {}

    def start(self, queue: BatchQueue[IndexRequest, object]) -> None:
        """The index is open, and written through `queue`."""
        self._queue = queue
        self._seen_id = self._writer.newest_id

    def look(self) -> None:
        """The writer has performed something: tell who wants to know if there are events among that."""
        newest = self._writer.newest_id
        if newest != self._seen_id:
            self._seen_id = newest
            for callback in tuple(self._callbacks.values()):
                callback()

    @property
    def keeps(self) -> bool:
        """See `EventLog.keeps`."""
        return self._writer.keeps

    def keep(self, keeps: bool) -> None:
        """See `EventLog.keep`."""
        self._writer.keeps = keeps

    @property
    def archive_id(self) -> str:
        """See `EventLog.archive_id`."""
        return self._writer.archive_id

    @property
    def newest_id(self) -> int:
        """See `EventSource.newest_id`."""
        return self._seen_id

    @property
    def oldest_unsettled_ns(self) -> int:
        """See `EventLog.oldest_unsettled_ns`."""
        return self._writer.oldest_unsettled_ns

    def on_news(self, callback: Callable[[], None]) -> Callable[[], None]:
        """See `EventSource.on_news`."""
        key = object()
        self._callbacks[key] = callback

        def end() -> None:
            self._callbacks.pop(key, None)

        return end

    async def rows(self, after: int, limit: int) -> Sequence[EventRow]:
        """See `EventSource.rows`."""

        def query(connection: Connection) -> list[EventRow]:
            found = connection.execute(_rows, {"after": after, "limit": limit})
            return [EventRow(*row) for row in found]

        return await self._read(query)

    async def page(self, after: int, limit: int) -> LogPage:
        """See `EventSource.page`."""

        def query(connection: Connection) -> LogPage:
            # In one statement, since what is trimmed between two would be missed by nobody.
            found = connection.execute(_page, {"after": after, "limit": limit}).all()
            if not found:
                return LogPage((), trimmed_to(connection))
            return LogPage([EventRow(*row[:-1]) for row in found], found[0][-1])

        return await self._read(query)

    def recent(self, after: int, limit: int) -> Sequence[EventRow] | None:
        """See `EventLog.recent`."""
        rows = self._writer.recent(after, limit)
        return None if rows is None else [EventRow._make(row) for row in rows]

    async def read(self, query: Callable[[Connection], T]) -> T:
        """See `EventLog.read`."""
        return await self._read(query)

    def note(self, request: LogRequest) -> None:
        """See `EventLog.note`."""
        if self._queue is not None and self._writer.keeps:
            self._queue.put(request, HOLD_SECONDS).add_done_callback(_nobody_waits)

    async def perform(self, run: Callable[[Connection], T], *, at_once: bool = False) -> T:
        """See `EventLog.perform`."""
        if self._queue is None:
            raise IndexUnavailable("the index is not open")
        return cast(T, await self._queue.put(Work(run), 0.0 if at_once else HOLD_SECONDS))

    async def settle_studies(self, stored_until_ns: int) -> None:
        """See `EventLog.settle_studies`."""
        await self.perform(lambda connection: self._writer.settle(connection, stored_until_ns))

    async def tell_overdue(self, scans_until_ns: int, reports_until_ns: int) -> None:
        """See `EventLog.tell_overdue`."""
        await self.perform(
            lambda connection: self._decisions.tell_overdue(connection, scans_until_ns, reports_until_ns)
        )

    @property
    def oldest_awaiting_ns(self) -> tuple[int, int]:
        """See `EventLog.oldest_awaiting_ns`."""
        return self._decisions.awaiting.oldest_ns

    async def end_open_associations(self, id_prefix: str = "") -> int:
        """See `EventLog.end_open_associations`."""
        return await self.perform(
            lambda connection: self._writer.end_open_associations(connection, id_prefix), at_once=True
        )


def _nobody_waits(answer: asyncio.Future[object]) -> None:
    """What went wrong is logged by the writer, or tried again."""
    if not answer.cancelled():
        answer.exception()
