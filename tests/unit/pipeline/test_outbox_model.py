"""Whatever fails, in whatever order, with kills in between: the outbox's promises, by a random machine."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scp_server.index import outbox as rows
from scp_server.pipeline.outbox import OutboxConfig
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from tests.unit.pipeline.outbox_scene import Scene, ScriptedSubscriber

CONFIG = OutboxConfig(first_retry_seconds=10, max_retry_seconds=40, max_attempts=3, max_parked=6)
FAILURES = st.sampled_from(["not delivered", "down", "undeliverable", "a bug"])


def _error(name: str) -> BaseException:
    if name == "down":
        return DestinationDown("down")
    if name == "undeliverable":
        return Undeliverable("never")
    return NotDelivered("no") if name == "not delivered" else ValueError("a bug")


class OutboxMachine(RuleBasedStateMachine):
    """Stores, fails, waits, stops and kills; the order of one series and every event are watched."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.scene = Scene(self.folder / "index.sqlite", CONFIG)
        self.series: list[str] = []
        self.delivered: dict[int, int] = defaultdict(int)
        self.one = ScriptedSubscriber()
        self.seen = 0
        self.is_doubtful: set[int] = set()
        """Events that were tried in a life that was killed."""

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        self.runner.run(work)

    @initialize(concurrency=st.integers(1, 3))
    def begin(self, concurrency: int) -> None:
        self.concurrency = concurrency
        self.run(self._start())

    async def _start(self) -> None:
        self.one = ScriptedSubscriber(concurrency=self.concurrency)
        self.seen = 0
        await self.scene.start(self.one)
        await self.scene.at_rest()

    @rule(series=st.lists(st.sampled_from("123"), min_size=1, max_size=4))
    def store(self, series: list[str]) -> None:
        self.series += series
        self.run(self._store(series))

    async def _store(self, series: list[str]) -> None:
        await self.scene.store(*series)
        await self.scene.at_rest()

    @rule(back=st.integers(0, 6), failures=st.lists(FAILURES, min_size=1, max_size=3))
    def fail(self, back: int, failures: list[str]) -> None:
        """Of an event to come, or of one that is there."""
        event_id = len(self.series) + 3 - back
        self.one.errors[event_id] = [_error(name) for name in failures]

    @rule(down=st.booleans())
    def whole_destination(self, down: bool) -> None:
        self.one.always = DestinationDown("down") if down else None

    @rule(seconds=st.sampled_from([1, 10, 40, 100]))
    def wait(self, seconds: int) -> None:
        self.run(self._wait(seconds))

    async def _wait(self, seconds: int) -> None:
        self.scene.later(seconds)
        await self.scene.at_rest()

    @rule()
    def restart(self) -> None:
        self.run(self._restart())

    async def _restart(self) -> None:
        await self.scene.stop()
        self._look()
        await self._start()

    @precondition(lambda self: self.series)
    @rule(series=st.sampled_from("123"), after=st.booleans())
    def kill(self, series: str, after: bool) -> None:
        """In the next write, or when it was made."""
        self.series.append(series)
        self.run(self._kill(series, after))

    async def _kill(self, series: str, after: bool) -> None:
        log = self.scene.log
        if after:
            log.die_after = log.performed
        else:
            log.die_before = log.performed
        await self.scene.store(series)
        for _ in range(20):
            await asyncio.sleep(0)
        await self.scene.kill()
        self.is_doubtful |= {each.event.event_id for each in self.one.tried}
        self._look()
        await self._start()

    @invariant()
    def every_delivery_is_in_order_and_said_to_be_repeated_when_it_is(self) -> None:
        self._look()

    def _look(self) -> None:
        for delivery in self.one.delivered[self.seen :]:
            event_id = delivery.event.event_id
            if self.delivered[event_id]:
                assert delivery.may_be_repeated, f"{event_id} was delivered before"
                assert event_id in self.is_doubtful
            self.delivered[event_id] += 1
        self.seen = len(self.one.delivered)
        last: dict[str, int] = {}
        for event_id in self.one.ids:
            series = self.series[event_id - 1]
            assert last.get(series, 0) < event_id, f"series {series} is out of order"
            last[series] = event_id

    @invariant()
    def the_position_never_passes_what_is_neither_delivered_nor_parked(self) -> None:
        if hasattr(self, "concurrency"):
            self.run(self._look_at_position())

    async def _look_at_position(self) -> None:
        log = self.scene.log
        (row,) = await log.read(rows.all_subscriptions)
        kept = {
            each.event_id
            for dead in (False, True)
            for each in await log.read(partial(rows.parked_of, name="one", dead=dead))
        }
        for event_id in range(1, row.position + 1):
            assert self.delivered[event_id] or event_id in kept, f"{event_id} is lost"

    def teardown(self) -> None:
        try:
            if hasattr(self, "concurrency"):
                self.run(self._end())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _end(self) -> None:
        """Once nothing fails any more, everything is delivered or dead."""
        self.one.always = None
        self.one.errors.clear()
        for _ in range(12):
            await self._wait(100)
        self._look()
        dead = await self.scene.log.read(lambda connection: rows.parked_of(connection, "one", dead=True))
        missing = {number for number in range(1, len(self.series) + 1) if not self.delivered[number]}
        assert missing <= {row.event_id for row in dead}
        assert self.scene.outbox.line("one").position == len(self.series)
        await self.scene.stop()


def test_whatever_fails_every_event_is_delivered_in_order_or_dead() -> None:
    bounds = settings(
        max_examples=25,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(OutboxMachine, settings=bounds)
