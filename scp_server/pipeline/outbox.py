"""The outbox: delivers the events of the log to its subscribers, at least once each, over restarts.

One task, the pump, goes round: it reads a page of the log for all subscriptions that are near each other, so
that an event is read and decoded once for all of them, writes what they have changed in one transaction, most
often that of an object which is just being stored, and then has them deliver (`outbox_line`). It sleeps until
there is news, or something is due.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from sqlalchemy import Connection

from scp_server.errors import IndexFailure
from scp_server.index import outbox as rows
from scp_server.index.events import EventLog
from scp_server.index.outbox import OutboxChanges, ParkedRow, SubscriptionRow
from scp_server.observability.logs import get_logger
from scp_server.observability.measures import OutboxMeasures
from scp_server.pipeline.backoff import NANOSECONDS, Backoff
from scp_server.pipeline.deliveries import Subscriber
from scp_server.pipeline.log_reader import PAGE, LogReader
from scp_server.pipeline.outbox_line import OutboxConfig, OutboxLine

__all__ = ["Outbox", "OutboxConfig"]

log = get_logger(__name__)

OUTAGE_SECONDS: Final = 1.0
"""How long the outbox waits after the index failed."""
LAZY_SECONDS: Final = 0.2
"""How much later than it happened the database may learn that a subscription is further, where nothing else
has to be written. What was delivered meanwhile is repeated after a crash, and known to be."""
_LONGEST_SLEEP_SECONDS: Final = 60.0
"""The clock of the day may be set meanwhile."""


class Outbox:
    """All subscriptions of one archive, in one event loop of one process."""

    def __init__(
        self,
        log: EventLog,
        config: OutboxConfig | None = None,
        measures: OutboxMeasures | None = None,
        *,
        now_ns: Callable[[], int] = time.time_ns,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._log = log
        self._reader = LogReader(log)
        self._config = config or OutboxConfig()
        self._measures = measures or OutboxMeasures()
        self.now_ns = now_ns
        self._backoff = Backoff(self._config.first_retry_seconds, self._config.max_retry_seconds, jitter)
        self._lines: dict[str, OutboxLine] = {}
        self._known: dict[str, SubscriptionRow] = {}
        self._wakened = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._end_news: Callable[[], None] = lambda: None
        self._last_write = 0.0
        self._last_read = 0.0
        self._is_behind = False
        """The last page was full: there is more."""
        self._gathering: asyncio.TimerHandle | None = None
        self._lazy: asyncio.TimerHandle | None = None
        self._is_due_lazily = False
        self._is_out = False
        self.turn = asyncio.Lock()
        """Held by a round, and by whoever adds or takes away a subscription."""

    # -- who is delivered to ------------------------------------------------------------------------------

    async def start(self, subscribers: Sequence[Subscriber] = ()) -> None:
        """Begin to deliver. Raises IndexUnavailable, and ValueError for a name that two have."""
        self._known = {each.name: each for each in await self._log.read(rows.all_subscriptions)}
        for subscriber in subscribers:
            await self.subscribe(subscriber)
        for name in sorted(self._known.keys() - self._lines.keys()):
            log.warning("outbox.subscription_inactive", subscription=name)
        self._end_news = self._log.on_news(self._read_soon)
        self._pump = asyncio.create_task(self._run(), name="outbox")
        self.wake()

    async def subscribe(self, subscriber: Subscriber) -> None:
        """Deliver to one more, from where it was before, or from now on. Raises IndexUnavailable, and
        ValueError for a name that another has."""
        name = subscriber.name
        async with self.turn:
            if name in self._lines:
                raise ValueError(f"two subscribers are called {name}")
            counts = self._measures.of(name)
            line = OutboxLine(
                subscriber,
                self._config,
                self._backoff,
                counts,
                self._log.archive_id,
                self.now_ns,
                self.wake,
            )
            known = self._known.get(name)
            line.begin_at(known, self._log.newest_id)
            if known is None:
                # Known before anything that comes is acknowledged.
                changes = line.changes()
                await self._log.perform(partial(rows.apply, changes=changes), at_once=True)
                line.written(changes)
                known = changes.subscriptions[0]
            else:
                parked, dead, trimmed_to = await self._log.read(partial(_parked_of, name=name))
                if trimmed_to > known.position:
                    log.error("outbox.events_missed", subscription=name, position=known.position)
                line.remember(parked, dead)
            self._known[name] = known
            self._lines[name] = line
        self.wake()

    async def unsubscribe(self, name: str, seconds: float) -> None:
        """Deliver to one less; what is under way may take `seconds`. Its place is remembered. Raises
        IndexUnavailable; then the place is that of before."""
        line = self._lines[name]
        line.stop()
        await line.ended(seconds)
        async with self.turn:
            del self._lines[name]
            line.leave_nothing_open()
            changes = line.changes()
            del self._measures.by_name[name]
            await self._log.perform(partial(rows.apply, changes=changes), at_once=True)
            for row in changes.subscriptions:
                self._known[name] = row

    async def reconfigure(self, subscribers: Sequence[Subscriber], seconds: float) -> None:
        """Deliver to these, and to no others; what is under way to those may take `seconds`. Raises as
        `subscribe` and `unsubscribe`."""
        wanted = {each.name: each for each in subscribers}
        for name, line in tuple(self._lines.items()):
            if wanted.get(name) is not line.subscriber:
                await self.unsubscribe(name, seconds)
        for name, subscriber in wanted.items():
            if name not in self._lines:
                await self.subscribe(subscriber)

    @property
    def names(self) -> frozenset[str]:
        """Who is delivered to."""
        return frozenset(self._lines)

    def line(self, name: str) -> OutboxLine:
        """One of those."""
        return self._lines[name]

    def forget(self, name: str) -> None:
        """There is no such subscription any more, and none is active."""
        self._known.pop(name, None)

    @property
    def position(self) -> int:
        """Nobody needs an event up to here, unless it is parked."""
        return min((line.written_position for line in self._lines.values()), default=self._log.newest_id)

    async def stop(self, seconds: float) -> None:
        """Deliver no more. What is under way may take `seconds`; then it is broken off. Never raises."""
        self._end_news()
        lines = list(self._lines.values())
        for line in lines:
            line.stop()
        await asyncio.gather(*(line.ended(seconds) for line in lines))
        pump, self._pump = self._pump, None
        if pump is None:
            return
        pump.cancel()
        await asyncio.wait({pump})
        for timer in (self._lazy, self._gathering):
            if timer is not None:
                timer.cancel()
        for line in lines:
            line.leave_nothing_open()
        try:
            await self._write(lines, at_once=True)
        except IndexFailure as error:
            log.error("outbox.not_saved", error=str(error))

    def wake(self) -> None:
        """Look whether there is something to do."""
        self._wakened.set()

    @property
    def is_awake(self) -> bool:
        """Whether it looks for something to do, or is about to."""
        return self._wakened.is_set() or self.turn.locked()

    # -- going round --------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._wakened.clear()
            try:
                async with self.turn:
                    await self._round()
                self._is_out = False
                seconds = self._seconds_to_sleep()
            except IndexFailure as error:
                if not self._is_out:
                    log.error("outbox.index_failed", error=str(error))
                self._is_out = True
                seconds = OUTAGE_SECONDS
                self._wakened.clear()
            except Exception:
                log.exception("outbox.failed")
                seconds = OUTAGE_SECONDS
                self._wakened.clear()
            if not self._wakened.is_set():
                try:
                    async with asyncio.timeout(seconds):
                        await self._wakened.wait()
                except TimeoutError:
                    pass

    async def _round(self) -> None:
        """Read, write, deliver. Raises IndexUnavailable; then it is as if it had not been."""
        lines = list(self._lines.values())
        newest = self._log.newest_id
        if self._seconds_to_gather() <= 0:
            await self._read(lines, newest)
        await self._load(lines)
        if any(line.has_to_write for line in lines) or self._is_due_lazily:
            loop = asyncio.get_running_loop()
            await self._write(lines, at_once=loop.time() - self._last_write > LAZY_SECONDS)
            self._last_write = loop.time()
            self._is_due_lazily = False
        elif self._lazy is None and any(line.has_moved for line in lines):
            self._lazy = asyncio.get_running_loop().call_later(LAZY_SECONDS, self._write_lazily)
        for line in lines:
            line.begin()
            line.look(newest)
            if line.wants_more and line.read_to < newest:
                self._read_soon()
        self._measures.newest_id = newest

    async def _read(self, lines: Sequence[OutboxLine], newest: int) -> None:
        """A page for each group of subscriptions that can share one."""
        self._is_behind = False
        wanting = sorted((line for line in lines if line.wants_more), key=lambda line: line.read_to)
        while wanting and wanting[0].read_to < newest:
            self._last_read = asyncio.get_running_loop().time()
            page = await self._reader.page(wanting[0].read_to)
            read_to = page[-1].event_id if page else newest
            if len(page) < PAGE:
                read_to = max(read_to, newest)
            else:
                self._is_behind = True
            sharing = [line for line in wanting if line.read_to < read_to]
            for line in sharing:
                line.take(page, read_to)
            wanting = [line for line in wanting if line.read_to >= read_to and line not in sharing]

    def _seconds_to_gather(self) -> float:
        """How long the log is not read yet; not above 0 where it may be."""
        if self._is_behind:
            return 0.0
        return self._last_read + self._config.gather_seconds - asyncio.get_running_loop().time()

    def _read_soon(self) -> None:
        """There is something to read: look at once, or when more has gathered."""
        if not self._lines:
            # The pump going round for nobody would be a tenth of what an object costs the loop.
            self._measures.newest_id = self._log.newest_id
            return
        if self._gathering is not None and not self._is_behind:
            return
        seconds = self._seconds_to_gather()
        if seconds <= 0:
            self.wake()
        elif self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(seconds, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self.wake()

    async def _load(self, lines: Sequence[OutboxLine]) -> None:
        """Read again what is parked and due."""
        due = [(line, ids) for line in lines if (ids := line.due_events())]
        if not due:
            return
        events = await self._reader.by_id({event_id for _, ids in due for event_id in ids})
        for line, ids in due:
            line.load(ids, events)

    async def _write(self, lines: Sequence[OutboxLine], *, at_once: bool) -> None:
        """Have the database know what has changed. Raises IndexUnavailable."""
        changes = [(line, line.changes()) for line in lines]
        together = OutboxChanges()
        for _, each in changes:
            together.subscriptions += each.subscriptions
            together.put += each.put
            together.take_away += each.take_away
        too_many = [line for line in lines if line.counts.dead > self._config.max_dead]

        def run(connection: Connection) -> dict[str, int]:
            rows.apply(connection, together)
            keep = self._config.max_dead
            return {line.name: rows.take_away_dead(connection, line.name, keep=keep) for line in too_many}

        if together or too_many:
            dropped = await self._log.perform(run, at_once=at_once)
            for name, count in dropped.items():
                self._lines[name].counts.dead -= count
                log.error("outbox.dead_letters_dropped", subscription=name, events=count)
        for line, each in changes:
            line.written(each)

    def _write_lazily(self) -> None:
        self._lazy = None
        self._is_due_lazily = True
        self.wake()

    def _seconds_to_sleep(self) -> float:
        due = min((at for line in self._lines.values() if (at := line.due_at_ns) is not None), default=None)
        if due is None:
            return _LONGEST_SLEEP_SECONDS
        return min(max(0.0, (due - self.now_ns()) / NANOSECONDS), _LONGEST_SLEEP_SECONDS)


def _parked_of(connection: Connection, name: str) -> tuple[list[ParkedRow], list[ParkedRow], int]:
    return (
        rows.parked_of(connection, name, dead=False),
        rows.parked_of(connection, name, dead=True),
        rows.trimmed_to(connection),
    )
