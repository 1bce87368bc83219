"""An outbox over a real index, whose subscribers do what they are told, and which can be killed anywhere."""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection

from scp_server.index.base import DuplicatePolicy
from scp_server.index.event_log import SqlEventLog
from scp_server.index.events import EventRow, LogPage, LogRequest
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.observability.measures import OutboxMeasures
from scp_server.pipeline.deliveries import Delivery, LoggedEvent
from scp_server.pipeline.outbox import Outbox, OutboxConfig
from scp_server.testing.clock import ManualClock
from scp_server.testing.index_contract import index_entry

T = TypeVar("T")

PATIENCE_SECONDS = 10
CONFIG = OutboxConfig(first_retry_seconds=10, max_retry_seconds=1_000, max_attempts=3)


class ScriptedSubscriber:
    """Raises what it is told to, waits where it is told to, and notes what it was given."""

    def __init__(self, name: str = "one", concurrency: int = 4) -> None:
        self.name = name
        self.concurrency = concurrency
        self.errors: dict[int, list[BaseException]] = defaultdict(list)
        """By the ids of events: what each of the next tries raises."""
        self.always: BaseException | None = None
        """What every other one raises."""
        self.gates: dict[int, asyncio.Event] = {}
        """By the ids of events: until when their delivery takes."""
        self.tried: list[Delivery] = []
        self.delivered: list[Delivery] = []
        self.running = 0
        self.most_running = 0
        self.is_dead = False
        self.wanted: Callable[[LoggedEvent], bool] = lambda event: True
        self._changed = asyncio.Condition()

    def wants(self, event: LoggedEvent) -> bool:
        return self.wanted(event)

    async def deliver(self, delivery: Delivery) -> None:
        event_id = delivery.event.event_id
        if self.is_dead:
            await asyncio.get_running_loop().create_future()
        self.tried.append(delivery)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            async with self._changed:
                self._changed.notify_all()
            if event_id in self.gates:
                await self.gates[event_id].wait()
            errors = self.errors.get(event_id)
            error = errors.pop(0) if errors else self.always
            if error is not None:
                raise error
            self.delivered.append(delivery)
            async with self._changed:
                self._changed.notify_all()
        finally:
            self.running -= 1

    @property
    def ids(self) -> list[int]:
        """What was delivered, in that order."""
        return [delivery.event.event_id for delivery in self.delivered]

    async def has(self, delivered: int = 0, tried: int = 0) -> None:
        """Wait until so many were."""
        async with asyncio.timeout(PATIENCE_SECONDS), self._changed:
            await self._changed.wait_for(
                lambda: len(self.delivered) >= delivered and len(self.tried) >= tried
            )


class KillableLog:
    """An `EventLog` over another. Once it is dead nothing of what it is asked ever ends."""

    def __init__(self, log: SqlEventLog) -> None:
        self._log = log
        self.performed = 0
        self.die_before = self.die_after = -1
        """The write before, or after, which it is dead."""
        self.died = asyncio.Event()
        self.held: asyncio.Event | None = None
        """Until when writes take."""
        self.is_held = asyncio.Event()
        self.fails: Exception | None = None
        """What every write and read raises."""
        self._failures = asyncio.Semaphore(0)
        self._busy = 0

    @property
    def is_busy(self) -> bool:
        return self._busy > 0

    @property
    def archive_id(self) -> str:
        return self._log.archive_id

    @property
    def keeps(self) -> bool:
        return self._log.keeps

    def keep(self, keeps: bool) -> None:
        self._log.keep(keeps)

    @property
    def newest_id(self) -> int:
        return self._log.newest_id

    @property
    def oldest_unsettled_ns(self) -> int:
        return self._log.oldest_unsettled_ns

    @property
    def oldest_awaiting_ns(self) -> tuple[int, int]:
        return self._log.oldest_awaiting_ns

    def on_news(self, callback: Callable[[], None]) -> Callable[[], None]:
        return self._log.on_news(callback)

    def note(self, request: LogRequest) -> None:
        self._log.note(request)

    async def rows(self, after: int, limit: int) -> Sequence[EventRow]:
        async with self._asked():
            return await self._log.rows(after, limit)

    def recent(self, after: int, limit: int) -> Sequence[EventRow] | None:
        if self.fails is not None or self.died.is_set():
            return None
        return self._log.recent(after, limit)

    async def page(self, after: int, limit: int) -> LogPage:
        async with self._asked():
            return await self._log.page(after, limit)

    async def read(self, query: Callable[[Connection], T]) -> T:
        async with self._asked():
            return await self._log.read(query)

    async def perform(self, run: Callable[[Connection], T], *, at_once: bool = False) -> T:
        async with self._asked():
            number, self.performed = self.performed, self.performed + 1
            if number == self.die_before:
                await self.die()
            if self.held is not None:
                self.is_held.set()
                await self.held.wait()
            result = await self._log.perform(run, at_once=True)
            if number == self.die_after:
                await self.die()
            return result

    async def settle_studies(self, stored_until_ns: int) -> None:
        await self._log.settle_studies(stored_until_ns)

    async def tell_overdue(self, scans_until_ns: int, reports_until_ns: int) -> None:
        await self._log.tell_overdue(scans_until_ns, reports_until_ns)

    async def end_open_associations(self, id_prefix: str = "") -> int:
        return await self._log.end_open_associations(id_prefix)

    async def has_failed(self, times: int) -> None:
        """Wait until it has raised what it is to raise so often."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            for _ in range(times):
                await self._failures.acquire()

    async def die(self) -> None:
        """From now on, and for ever."""
        self.died.set()
        await asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def _asked(self) -> AsyncIterator[None]:
        if self.died.is_set():
            await self.die()
        if self.fails is not None:
            self._failures.release()
            raise self.fails
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1


class Scene:
    """One index, and one life of an outbox after another."""

    def __init__(self, path: Path, config: OutboxConfig = CONFIG) -> None:
        self.path = path
        # The clock of the test does not move while it waits.
        self.config = replace(config, gather_seconds=0.0)
        self.clock = ManualClock()
        self.stored = 0
        self.measures = OutboxMeasures()
        self.subscribers: list[ScriptedSubscriber] = []
        self.index: SqlIndex
        self.log: KillableLog
        self.outbox: Outbox

    async def start(self, *subscribers: ScriptedSubscriber) -> ScriptedSubscriber:
        """Open the index, and begin to deliver; returns the first subscriber."""
        if not self.path.exists():
            self.path.parent.mkdir(exist_ok=True)
            self.path.write_bytes(await _empty_index())
        self.index = SqlIndex(IndexConfig(self.path, synchronous_full=False))
        await self.index.open()
        self.log = KillableLog(self.index.event_log)
        self.measures = OutboxMeasures()
        self.outbox = Outbox(
            self.log, self.config, self.measures, now_ns=self.clock.time_ns, jitter=lambda: 1.0
        )
        self.subscribers = list(subscribers) or [ScriptedSubscriber()]
        await self.outbox.start(self.subscribers)
        return self.subscribers[0]

    async def store(self, *series: str) -> list[int]:
        """Store an object of each series, all in one transaction; returns the ids of their events."""
        entries = [index_entry(str(self.stored + n), series=each) for n, each in enumerate(series, start=1)]
        self.stored += len(series)
        await asyncio.gather(*(self.index.add(entry, DuplicatePolicy.KEEP_FIRST) for entry in entries))
        newest = self.index.event_log.newest_id
        return list(range(newest - len(series) + 1, newest + 1))

    def later(self, seconds: float) -> None:
        """It is later now."""
        self.clock.advance(seconds)
        self.outbox.wake()

    async def at_rest(self) -> None:
        """Wait until the outbox has nothing to do now."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            quiet = 0
            while quiet < 5:
                await asyncio.sleep(0 if quiet else 0.0005)
                is_busy = self.log.is_busy or self.outbox.is_awake or len(_tasks("outbox ")) > self._held
                quiet = 0 if is_busy else quiet + 1

    @property
    def _held(self) -> int:
        """Workers that wait at a gate."""
        return sum(each.running for each in self.subscribers)

    async def stop(self) -> None:
        """End it as a server that stops does."""
        await self.outbox.stop(0.01)
        await self.index.close()

    async def kill(self) -> None:
        """End it as kill -9 does: nothing more is written, nobody is told."""
        self.log.died.set()
        for subscriber in self.subscribers:
            subscriber.is_dead = True
        tasks = _tasks("outbox")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.index.close()


_made: list[bytes] = []


async def _empty_index() -> bytes:
    """The file of an index in which nothing is: to make one takes a tenth of a second."""
    if not _made:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "index.sqlite"
            index = SqlIndex(IndexConfig(path))
            await index.open()
            await index.close()
            _made.append(path.read_bytes())
    return _made[0]


def _tasks(prefix: str) -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name().startswith(prefix)]
