"""An outbox of which every step is chosen: when its index answers, how each try ends, and when it is killed.

The index is in memory and does what it is asked at once; what is chosen is the order in which things happen.
So a run is a list of choices, and can be made again.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection, Engine, StaticPool, create_engine, insert

from scp_server.errors import IndexUnavailable
from scp_server.index import outbox as rows
from scp_server.index.deciding import DecisionWriter
from scp_server.index.event_log import SqlEventLog
from scp_server.index.event_writing import EventWriter
from scp_server.index.events import OBJECT_STORED
from scp_server.index.schema import event_log, events, parked, subscriptions, unsettled_studies
from scp_server.pipeline.deliveries import Delivery, LoggedEvent
from scp_server.pipeline.outbox import Outbox, OutboxConfig
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from scp_server.testing.clock import ManualClock

T = TypeVar("T")

CONFIG = OutboxConfig(first_retry_seconds=10, max_retry_seconds=10, max_attempts=50, gather_seconds=0)
TURNS_OF_THE_LOOP = 6
"""After a choice, until all that follows of it has happened."""
MOST_STEPS_TO_END = 2_000


class Asked:
    """Something that the outbox has asked its index."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class SteppedLog(SqlEventLog):
    """An event log in memory that answers when it is told to."""

    def __init__(self, engine: Engine) -> None:
        self._events = EventWriter()
        super().__init__(self._events, DecisionWriter(self._events), self._read_when_told)
        self._engine = engine
        self.asked: Asked | None = None
        self.is_dead = False
        with engine.begin() as connection:
            self._events.open(connection)
        self._seen_id = self._events.newest_id

    def store(self, series: str) -> None:
        """An object of that series is stored."""
        number = self.newest_id + 1
        data = {"study_instance_uid": "1", "series_instance_uid": series}
        row = {"event_id": number, "kind": OBJECT_STORED, "at_ns": 0, "association_id": "", "location": ""}
        with self._engine.begin() as connection:
            connection.execute(insert(events), {**row, "data": json.dumps(data)})
        self._events.newest_id = number
        self.look()

    def answer(self) -> None:
        """What was asked is done, and the outbox hears of it."""
        asked, self.asked = self.asked, None
        assert asked is not None
        asked.work()
        asked.answer.set_result(None)

    def fail(self) -> None:
        """What was asked is not done."""
        asked, self.asked = self.asked, None
        assert asked is not None
        asked.answer.set_exception(IndexUnavailable("no disk"))

    async def _read_when_told(self, query: Callable[[Connection], T]) -> T:
        return await self._when_told(query)

    async def perform(self, run: Callable[[Connection], T], *, at_once: bool = False) -> T:
        return await self._when_told(run)

    async def _when_told(self, run: Callable[[Connection], T]) -> T:
        found: list[T] = []

        def work() -> None:
            with self._engine.begin() as connection:
                found.append(run(connection))

        assert self.asked is None, "two questions at once"
        self.asked = asked = Asked(work)
        try:
            await asked.answer
        except asyncio.CancelledError:
            if self.asked is asked:
                # It was handed over: that nobody waits any more does not stop it.
                self.asked = None
                if not self.is_dead:
                    work()
            raise
        return found[0]


class SteppedSubscriber:
    """Its tries end when and how they are told to."""

    name = "one"

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.begun: list[Delivery] = []
        self.delivered: list[Delivery] = []
        self.given_up: set[int] = set()
        self._under_way: dict[int, asyncio.Future[None]] = {}

    def wants(self, event: LoggedEvent) -> bool:
        return True

    async def deliver(self, delivery: Delivery) -> None:
        number = delivery.event.event_id
        assert number not in self._under_way, f"{number} is delivered twice at once"
        keys = {each.event.order_key for each in self.begun if each.event.event_id in self._under_way}
        assert delivery.event.order_key not in keys, "two of one series at once"
        self.begun.append(delivery)
        ends = self._under_way[number] = asyncio.get_running_loop().create_future()
        try:
            await ends
        finally:
            del self._under_way[number]
        self.delivered.append(delivery)

    @property
    def under_way(self) -> list[int]:
        return list(self._under_way)

    def end(self, event_id: int, error: BaseException | None) -> None:
        if isinstance(error, Undeliverable):
            self.given_up.add(event_id)
        ends = self._under_way[event_id]
        if error is None:
            ends.set_result(None)
        else:
            ends.set_exception(error)


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that can happen next."""

    name: str
    happens: Callable[[], None]
    end: Callable[[], Awaitable[None]] | None = None
    """How the life ends with it, and the next begins."""


class SteppedOutbox:
    """One index, and one life of an outbox after another; every life is watched."""

    def __init__(self, series: str, concurrency: int, config: OutboxConfig = CONFIG) -> None:
        self.series = series
        self._to_store = list(series)
        self._concurrency = concurrency
        self._config = config
        self._clock = ManualClock()
        self._engine = create_engine("sqlite://", poolclass=StaticPool)
        for table in (event_log, events, subscriptions, parked, unsettled_studies):
            table.create(self._engine)
        with self._engine.begin() as connection:
            rows.apply(connection, rows.OutboxChanges([rows.SubscriptionRow("one", 0, 0)]))
        self._doubtful: set[int] = set()
        self._given_up: set[int] = set()
        self._delivered: Counter[int] = Counter()
        self.log: SteppedLog
        self.one: SteppedSubscriber
        self._outbox: Outbox
        self._seen = 0
        self.history: list[str] = []
        """What was chosen."""

    # -- lives ----------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """A life begins."""
        self.log, self.one = SteppedLog(self._engine), SteppedSubscriber(self._concurrency)
        self._seen = 0
        self._outbox = Outbox(self.log, self._config, now_ns=self._clock.time_ns, jitter=lambda: 1.0)
        starting = asyncio.create_task(self._outbox.start([self.one]))
        while not starting.done():
            if self.log.asked is not None:
                self.log.answer()
            await asyncio.sleep(0)
        await starting
        await self._settle()

    async def kill(self) -> None:
        """Nothing more is written, and nobody is told. Whatever was begun may have arrived."""
        self._doubtful |= set(self.one.under_way) | {each.event.event_id for each in self.one.delivered}
        await self._break_off()
        self._look()

    async def stop(self) -> None:
        """It ends as a server does that is told to: only what is broken off may have arrived."""
        self._doubtful |= set(self.one.under_way)
        stopping = asyncio.create_task(self._outbox.stop(0))
        while not stopping.done():
            await self._settle()
            if self.log.asked is not None:
                self.log.answer()
        await stopping
        self._look()

    async def close(self) -> None:
        """However it has ended, nothing of it is left."""
        await self._break_off()
        self._engine.dispose()

    async def _break_off(self) -> None:
        self.log.is_dead = True
        tasks = [task for task in asyncio.all_tasks() if task.get_name().startswith("outbox")]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- what can happen ------------------------------------------------------------------------------------

    def choices(self) -> list[Choice]:
        """What can happen now; first what would, were all well."""
        found = []
        if self.log.asked is not None:
            found.append(Choice("answered", self.log.answer))
        for number in self.one.under_way:
            found.append(Choice(f"{number} delivered", partial(self.one.end, number, None)))
        if self._to_store:
            found.append(Choice("stored", lambda: self.log.store(self._to_store.pop(0))))
        found.append(Choice("later", self._later))
        for number in self.one.under_way:
            for error in (NotDelivered("no"), DestinationDown("down"), Undeliverable("never")):
                name = f"{number} {error}"
                found.append(Choice(name, partial(self.one.end, number, error)))
        found.append(Choice("killed", _nothing, self.kill))
        found.append(Choice("stopped", _nothing, self.stop))
        if self.log.asked is not None:
            # Done, and killed before the answer was heard.
            found.append(Choice("done and killed", self.log.asked.work, self.kill))
            found.append(Choice("failed", self.log.fail))
        return found

    def _later(self) -> None:
        self._clock.advance(2 * self._config.max_retry_seconds)
        self._outbox.wake()

    async def choose(self, choice: Choice) -> None:
        """It happens, with all that follows at once."""
        self.history.append(choice.name)
        choice.happens()
        if choice.end is not None:
            await choice.end()
            await self.start()
        await self._settle()
        self._look()

    async def do(self, *names: str) -> None:
        """These happen, one after another; `answers` are as many as there are questions."""
        for name in names:
            if name == "answers":
                while self.log.asked is not None:
                    await self.do("answered")
            else:
                await self.choose(next(each for each in self.choices() if each.name == name))

    async def end(self, *, deliveries_first: bool = False) -> None:
        """From now on all goes well: everything comes to its end. `deliveries_first`, and of those the last
        that was begun: before any question is answered."""
        quiet = steps = 0
        while quiet < 4:
            choices = self.choices()
            delivered = [each for each in choices if each.name.endswith("delivered")]
            choice = delivered[-1] if deliveries_first and delivered else choices[0]
            quiet = quiet + 1 if choice.name == "later" else 0
            await self.choose(choice)
            steps += 1
            assert steps < MOST_STEPS_TO_END, "it never ends"
        with self._engine.begin() as connection:
            dead = {row.event_id for row in rows.parked_of(connection, "one", dead=True)}
            waiting = rows.parked_of(connection, "one", dead=False)
        everything = set(range(1, len(self.series) + 1))
        assert {*self._delivered} | dead == everything, "something is lost"
        assert not waiting
        assert self._outbox.line("one").position == len(self.series)
        await self.kill()

    @staticmethod
    async def _settle() -> None:
        for _ in range(TURNS_OF_THE_LOOP):
            await asyncio.sleep(0)

    # -- what is promised ------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Each life is in order, series by series; what an earlier one may have delivered is marked."""
        self._given_up |= self.one.given_up
        for delivery in self.one.delivered[self._seen :]:
            number, key = delivery.event.event_id, delivery.event.order_key
            until_now = self.one.delivered[: self._seen]
            before = [each.event.event_id for each in until_now if each.event.order_key == key]
            assert all(each < number for each in before), f"{number} behind {before}"
            assert delivery.may_be_repeated or number not in self._doubtful, f"{number} is repeated unsaid"
            assert not self._delivered[number] or number in self._doubtful, f"{number} is repeated"
            self._delivered[number] += 1
            self._seen += 1
        # Whatever is left out of its series comes later than what is behind it.
        for number in self._delivered:
            earlier = [n for n in range(1, number) if self.series[n - 1] == self.series[number - 1]]
            missing = [n for n in earlier if n not in self._delivered and n not in self._given_up]
            assert not missing, f"{number} was delivered before {missing}"


def _nothing() -> None:
    """Nothing happens before."""
