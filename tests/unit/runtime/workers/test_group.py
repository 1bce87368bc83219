"""Satellites are watched, replaced once what they left is dealt with, and what they wrote is in flight till
then. The satellites here are made up, and so is time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest

from scp_server.errors import ConfigurationError, StorageError
from scp_server.observability.logs import captured_logs
from scp_server.observability.measures import WorkerMeasures
from scp_server.observability.samples import Samples
from scp_server.runtime.workers.channel import ChannelEnded, Question
from scp_server.runtime.workers.group import Workers
from scp_server.runtime.workers.messages import Accept, Drain, Holding, Prepare, Pulse, TakeOver
from scp_server.runtime.workers.patience import FIRST_SECONDS, STEADY_SECONDS
from scp_server.settings import Settings
from scp_server.testing.clock import ManualClock

A = TypeVar("A")
MakeSettings = Callable[..., Settings]


class MadeUp:
    """A satellite that does as it is told."""

    def __init__(self, scene: Scene, number: int, writer: str) -> None:
        self.number = number
        self.writer = writer
        self.samples: Samples = {}
        self.pid = 1_000 + len(scene.started)
        self.exit_code: int | None = None
        self.asked: list[Question[Any]] = []
        self.held: set[str] = set()
        self.answers = True
        self._scene = scene
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ask(self, question: Question[A], seconds: float) -> A:
        self.asked.append(question)
        if self._gone.done() or type(question) in self._scene.refused:
            raise ChannelEnded("gone")
        if not self.answers:
            raise TimeoutError
        answer: Any = {Holding: self.held, Drain: True, Pulse: self.samples}.get(type(question))
        return answer  # type: ignore[no-any-return]

    async def watch(self, silence_seconds: float) -> str:
        return await asyncio.shield(self._gone)

    def die(self, reason: str = "ended") -> None:
        if not self._gone.done():
            self.exit_code = -9
            self._gone.set_result(reason)

    def let_go(self) -> None:
        self.die()

    def kill(self) -> None:
        self.die()

    async def ended(self) -> None:
        await asyncio.shield(self._gone)


@dataclass
class Scene:
    """Everything around a `Workers`."""

    workers: Workers = field(init=False)
    clock: ManualClock = field(default_factory=ManualClock)
    started: list[MadeUp] = field(default_factory=list)
    refused: set[type] = field(default_factory=set)
    recovered: list[str] = field(default_factory=list)
    recovery_fails: int = 0
    pauses: list[float] = field(default_factory=list)
    measures: WorkerMeasures = field(default_factory=WorkerMeasures)

    async def start(self, number: int, writer: str) -> MadeUp:
        self.started.append(MadeUp(self, number, writer))
        return self.started[-1]

    async def recover(self, writer: str) -> None:
        assert await self.workers.not_yet_indexed([_location(writer)]) == set(), "it is to be looked at"
        if self.recovery_fails:
            self.recovery_fails -= 1
            raise StorageError("the disk is away")
        self.recovered.append(writer)

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)

    async def until(self, number: int) -> MadeUp:
        """Once so many were started and the last one works, it."""
        async with asyncio.timeout(5):
            while len(self.started) < number or self.workers.running < 2:
                await asyncio.sleep(0)
        return self.started[-1]


def _location(writer: str) -> str:
    return f"objects/a/b/c-{'0' * 15}1{writer}.dcm"


@pytest.fixture
async def scene(make_settings: MakeSettings) -> AsyncIterator[Scene]:
    scene = Scene()
    settings = make_settings(workers=3)
    scene.workers = Workers(settings, scene.start, scene.recover, scene.measures, scene.clock, scene.pause)
    await scene.workers.start()
    await scene.workers.prepare(())
    await scene.workers.accept()
    yield scene
    await scene.workers.stop()


async def test_each_is_prepared_with_its_share_before_any_accepts(scene: Scene) -> None:
    orders = [worker.asked[0] for worker in scene.started]
    assert [(each.number, each.workers) for each in orders if isinstance(each, Prepare)] == [(1, 3), (2, 3)]
    assert [type(worker.asked[1]) for worker in scene.started] == [Accept, Accept]
    assert len({worker.writer for worker in scene.started}) == 2


async def test_one_that_dies_is_replaced_once_what_it_left_is_dealt_with(scene: Scene) -> None:
    first = scene.started[0]
    with captured_logs() as logs:
        first.die("silent")
        second = await scene.until(3)
    assert (second.number, scene.recovered) == (first.number, [first.writer])
    assert second.writer != first.writer
    assert scene.measures.lost == 1
    assert [(line["event"], line["number"]) for line in logs] == [
        ("worker.ended", 1),
        ("worker.restarted", 1),
    ]
    assert logs[0]["reason"] == "silent"


async def test_its_recovery_is_tried_again_and_what_it_wrote_is_in_flight_meanwhile(scene: Scene) -> None:
    first = scene.started[0]
    scene.recovery_fails = 2
    with captured_logs() as logs:
        first.die()
        while not logs or logs[-1]["event"] != "worker.not_recovered":
            await asyncio.sleep(0)
        assert await scene.workers.not_yet_indexed([_location(first.writer)]) == {_location(first.writer)}
        assert len(scene.started) == 2, "nobody takes its place before"
        await scene.until(3)
    assert scene.recovered == [first.writer]
    assert await scene.workers.not_yet_indexed([_location(first.writer)]) == set()


async def test_one_that_dies_at_once_again_and_again_is_left_longer_and_longer(scene: Scene) -> None:
    for count in range(3, 7):
        worker = scene.started[-1] if count > 3 else scene.started[0]
        worker.die()
        await scene.until(count)
    assert scene.pauses == [0.0, FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    scene.clock.advance(STEADY_SECONDS)
    scene.started[-1].die()
    await scene.until(7)
    assert scene.pauses[-1] == 0.0


async def test_one_that_cannot_be_prepared_again_is_tried_later(scene: Scene) -> None:
    scene.refused = {Prepare}
    with captured_logs() as logs:
        scene.started[0].die()
        while [line["event"] for line in logs].count("worker.not_started") < 2:
            await asyncio.sleep(0)
        scene.refused = set()
        await scene.until(len(scene.started) + 1)
    assert scene.measures.lost == 1
    assert set(scene.recovered) == {worker.writer for worker in scene.started if worker.exit_code}


async def test_a_location_is_asked_of_whoever_wrote_it_and_of_nobody_else(scene: Scene) -> None:
    first, second = scene.started
    mine, other, old = _location(first.writer), _location(second.writer), _location("0" * 6)
    first.held = {mine}
    assert await scene.workers.not_yet_indexed([mine, other, old]) == {mine}
    assert [each for each in second.asked if isinstance(each, Holding)] == [Holding((other,))]
    second.answers = False
    assert await scene.workers.not_yet_indexed([mine, other, old]) == {mine, other}, "nobody can know"


async def test_what_the_dead_had_counted_still_counts_but_not_what_they_held(scene: Scene) -> None:
    first, second = scene.started
    first.samples = {("scp_objects_received_total", ()): 5.0, ("scp_associations_active", ()): 3.0}
    second.samples = {("scp_objects_received_total", ()): 1.0}
    first.die()
    await scene.until(3)
    await scene.workers.look()
    assert scene.workers.samples() == {("scp_objects_received_total", ()): 6.0}


async def test_one_that_cannot_take_other_settings_is_replaced_and_gets_them_then(
    scene: Scene, make_settings: MakeSettings
) -> None:
    settings = make_settings(workers=3, drain_timeout_seconds=1.5)
    scene.refused = {TakeOver}
    await scene.workers.reload(settings)
    scene.refused = set()
    await scene.until(4)
    for worker in scene.started[2:]:
        order = worker.asked[0]
        assert isinstance(order, Prepare)
        assert order.settings.drain_timeout_seconds == 1.5


async def test_after_the_drain_nobody_is_replaced_and_none_is_left(scene: Scene) -> None:
    assert await scene.workers.drain(1.0, 1.0) is True
    await scene.workers.stop()
    assert len(scene.started) == 2
    assert all(worker.exit_code is not None for worker in scene.started)


async def test_one_that_does_not_drain_makes_the_end_unclean_and_is_killed(scene: Scene) -> None:
    scene.started[0].answers = False
    assert await scene.workers.drain(1.0, 1.0) is False
    assert scene.started[0].exit_code is None
    await scene.workers.stop()
    assert scene.started[0].exit_code == -9


async def test_a_start_without_all_workers_fails(make_settings: MakeSettings) -> None:
    scene = Scene(refused={Prepare})
    scene.workers = Workers(make_settings(workers=2), scene.start, scene.recover, scene.measures)
    await scene.workers.start()
    with pytest.raises(ConfigurationError, match="workers"):
        await scene.workers.prepare(())
    await scene.workers.stop()
