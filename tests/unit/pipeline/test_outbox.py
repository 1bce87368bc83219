"""What the outbox promises to subscribers, over a real index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from scp_server.errors import IndexUnavailable, ObjectNotFound, SCPServerError
from scp_server.pipeline.backoff import Backoff
from scp_server.pipeline.deliveries import EventKind, LoggedEvent
from scp_server.pipeline.log_reader import LogReader
from scp_server.pipeline.outbox import OutboxConfig
from scp_server.pipeline.outbox_desk import OutboxDesk
from scp_server.pipeline.parking import CHAIN
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from tests.unit.pipeline.outbox_scene import CONFIG, Scene, ScriptedSubscriber


@pytest_asyncio.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path / "index.sqlite")
    yield scene
    if not scene.log.died.is_set():
        await scene.stop()


async def test_what_is_stored_is_delivered_once_with_its_facts(scene: Scene) -> None:
    one = await scene.start()
    (event_id,) = await scene.store("1")
    await one.has(delivered=1)
    await scene.at_rest()
    (delivery,) = one.delivered
    assert delivery.idempotency_key == f"{scene.log.archive_id}:{event_id}:one"
    assert (delivery.attempt, delivery.may_be_repeated) == (1, False)
    assert delivery.event.kind is EventKind.OBJECT_STORED
    assert delivery.event.data["sop_instance_uid"] == "1.2.840.99.3.1"
    assert delivery.event.order_key == "1.2.840.99.1.1/1.2.840.99.2.1"


async def test_a_new_subscription_begins_at_the_end_of_the_log(scene: Scene) -> None:
    await scene.start()
    await scene.store("1", "1")
    late = ScriptedSubscriber("late")
    await scene.outbox.subscribe(late)
    ids = await scene.store("1")
    await late.has(delivered=1)
    assert late.ids == ids


async def test_only_what_is_wanted_is_delivered_and_the_rest_is_got_past(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.wanted = lambda event: event.event_id % 2 == 0
    await scene.start(one)
    await scene.store(*"111111")
    await one.has(delivered=3)
    await scene.at_rest()
    assert one.ids == [2, 4, 6]
    assert scene.outbox.line("one").position == 6


async def test_one_series_goes_one_after_another_and_others_beside_it(scene: Scene) -> None:
    one = ScriptedSubscriber(concurrency=2)
    one.gates = {1: asyncio.Event(), 2: asyncio.Event()}
    await scene.start(one)
    await scene.store("1", "2", "1", "3", "2")
    await one.has(tried=2)
    await scene.at_rest()
    assert [delivery.event.event_id for delivery in one.tried] == [1, 2]
    one.gates[2].set()
    await one.has(delivered=3)
    await scene.at_rest()
    assert one.ids == [2, 4, 5]
    assert scene.outbox.line("one").position == 0
    one.gates[1].set()
    await one.has(delivered=5)
    assert one.ids == [2, 4, 5, 1, 3]
    assert one.most_running == 2


async def test_what_failed_waits_twice_as_long_each_time_with_its_series_behind_it(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.errors[1] = [NotDelivered("no"), ValueError("a bug")]
    await scene.start(one)
    await scene.store("1", "1", "2")
    await one.has(delivered=1)
    await scene.at_rest()
    assert one.ids == [3]
    scene.later(9)
    await scene.at_rest()
    assert len(one.tried) == 2
    scene.later(1)
    await one.has(tried=3)
    await scene.at_rest()
    scene.later(19)
    await scene.at_rest()
    assert len(one.tried) == 3
    scene.later(1)
    await one.has(delivered=3)
    assert one.ids == [3, 1, 2]
    assert [delivery.attempt for delivery in one.delivered] == [1, 3, 1]
    assert not any(delivery.may_be_repeated for delivery in one.tried)


async def test_what_is_read_while_its_series_fails_waits_behind_it(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.gates[1] = asyncio.Event()
    one.errors[1] = [NotDelivered("no")]
    await scene.start(one)
    await scene.store("1")
    await one.has(tried=1)
    await scene.at_rest()
    scene.log.held = asyncio.Event()
    await scene.store("1")
    await scene.log.is_held.wait()
    one.gates[1].set()
    while one.running:
        await asyncio.sleep(0)
    scene.log.held.set()
    await scene.at_rest()
    assert len(one.tried) == 1
    scene.later(10)
    await one.has(delivered=2)
    assert one.ids == [1, 2]


async def test_what_is_parked_while_those_before_it_are_tried_does_not_overtake_them(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.errors[1] = [NotDelivered("no"), NotDelivered("no")]
    await scene.start(one)
    await scene.store(*["1"] * (CHAIN - 1))
    await scene.at_rest()
    one.gates[1] = asyncio.Event()
    first, second = asyncio.Event(), asyncio.Event()
    scene.log.held = first
    scene.later(10)
    await scene.log.is_held.wait()
    await scene.store("1")
    scene.log.held = second
    scene.log.is_held.clear()
    first.set()
    await one.has(tried=2)
    await scene.log.is_held.wait()
    one.gates[1].set()
    while one.running:
        await asyncio.sleep(0)
    second.set()
    await scene.at_rest()
    assert one.ids == []
    scene.later(20)
    await one.has(delivered=CHAIN)
    assert one.ids == list(range(1, CHAIN + 1))


def test_no_wait_is_longer_than_the_longest() -> None:
    backoff = Backoff(10, 60, jitter=lambda: 1.0)
    assert [backoff.after(failures) / 1e9 for failures in (1, 2, 3, 4, 5, 1_000)] == [10, 20, 40, 60, 60, 60]
    assert Backoff(10, 60, jitter=lambda: 0.0).after(1) == 5e9


async def test_a_destination_may_ask_for_more_time(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.errors[1] = [NotDelivered("busy", retry_after_seconds=100)]
    await scene.start(one)
    await scene.store("1")
    await one.has(tried=1)
    await scene.at_rest()
    scene.later(99)
    await scene.at_rest()
    assert len(one.tried) == 1
    scene.later(1)
    await one.has(delivered=1)


@pytest.mark.parametrize(
    ("errors", "attempts"),
    [([Undeliverable("never")], 1), ([NotDelivered("no"), NotDelivered("no"), NotDelivered("no")], 3)],
)
async def test_a_dead_letter_lets_its_series_go_on(
    scene: Scene, errors: list[BaseException], attempts: int
) -> None:
    one = ScriptedSubscriber()
    one.errors[1] = list(errors)
    await scene.start(one)
    await scene.store("1", "1")
    for _ in range(attempts):
        await scene.at_rest()
        scene.later(100)
    await one.has(delivered=1)
    assert one.ids == [2]
    assert len(one.tried) == attempts + 1
    assert scene.measures.of("one").dead == 1
    (state,) = await OutboxDesk(scene.outbox, scene.log).states()
    assert (state.dead, state.parked, state.last_error) == (1, 0, str(errors[0]))


async def test_a_destination_that_is_down_costs_no_try_and_gets_one_at_a_time(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.always = DestinationDown("down")
    await scene.start(one)
    await scene.store(*"12345")
    await scene.at_rest()
    tried = len(one.tried)
    assert tried <= one.concurrency
    for number, seconds in enumerate((10, 20, 40), start=1):
        scene.later(seconds - 1)
        await scene.at_rest()
        assert len(one.tried) == tried + number - 1
        scene.later(1)
        await one.has(tried=tried + number)
        await scene.at_rest()
    assert scene.measures.of("one").is_open
    assert scene.measures.of("one").parked == 0
    one.always = None
    scene.later(80)
    await one.has(delivered=5)
    assert {delivery.attempt for delivery in one.delivered} == {1}
    await scene.at_rest()
    assert not scene.measures.of("one").is_open


async def test_a_destination_that_is_down_does_not_concern_others(scene: Scene) -> None:
    down, up = ScriptedSubscriber("down"), ScriptedSubscriber("up")
    down.always = DestinationDown("down")
    await scene.start(down, up)
    await scene.store(*"1" * 20)
    await up.has(delivered=20)
    assert up.ids == list(range(1, 21))


async def test_above_max_parked_the_log_is_read_no_further(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "index.sqlite", OutboxConfig(first_retry_seconds=10, max_parked=5))
    one = ScriptedSubscriber()
    one.errors[1] = [NotDelivered("no")]
    await scene.start(one)
    await scene.store("1")
    await scene.at_rest()
    for _ in range(10):
        await scene.store("1")
        await scene.at_rest()
    assert scene.measures.of("one").parked == 5
    assert scene.outbox.line("one").read_to == 5
    scene.later(10)
    await one.has(delivered=11)
    assert one.ids == list(range(1, 12))
    await scene.stop()


async def test_of_too_many_dead_letters_the_oldest_go(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "index.sqlite", OutboxConfig(max_dead=3))
    one = ScriptedSubscriber()
    one.always = Undeliverable("never")
    await scene.start(one)
    await scene.store(*"1" * 8)
    await one.has(tried=8)
    await scene.at_rest()
    scene.outbox.wake()
    await scene.at_rest()
    desk = OutboxDesk(scene.outbox, scene.log)
    assert (await desk.states())[0].dead == 3
    one.always = None
    assert await desk.retry("one", None) == 3
    await one.has(delivered=3)
    assert one.ids == [6, 7, 8]
    await scene.stop()


async def test_the_next_start_goes_on_where_a_stop_has_ended_and_repeats_nothing(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.gates[2] = asyncio.Event()
    one.errors[4] = [NotDelivered("no")]
    await scene.start(one)
    await scene.store("1", "2", "1", "4", "2", "4")
    await one.has(delivered=2, tried=4)
    await scene.at_rest()
    await scene.stop()
    two = await scene.start()
    await two.has(delivered=2)
    scene.later(10)
    await two.has(delivered=4)
    assert one.ids == [1, 3]
    assert sorted(two.ids) == [2, 4, 5, 6]
    assert [delivery.event.event_id for delivery in two.delivered if delivery.may_be_repeated] == [2]


async def test_what_is_down_over_a_restart_is_not_parked(scene: Scene) -> None:
    for _ in range(3):
        one = ScriptedSubscriber()
        one.always = DestinationDown("down")
        await scene.start(one)
        await scene.store(*"12")
        await one.has(tried=1)
        await scene.at_rest()
        assert scene.measures.of("one").parked == 0
        await scene.stop()
    two = await scene.start()
    await two.has(delivered=6)
    assert sorted(two.ids) == list(range(1, 7))


async def test_what_is_due_while_the_index_fails_is_tried_once_it_does_not(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp_server.pipeline.outbox.OUTAGE_SECONDS", 0.0)
    one = ScriptedSubscriber()
    one.errors[1] = [NotDelivered("no")]
    await scene.start(one)
    await scene.store("1", "1")
    await one.has(tried=1)
    await scene.at_rest()
    scene.log.fails = IndexUnavailable("locked")
    scene.later(10)
    await scene.log.has_failed(times=2)
    scene.log.fails = None
    await one.has(delivered=2)
    assert one.ids == [1, 2]


async def test_an_index_that_fails_is_asked_again_and_nothing_is_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp_server.pipeline.outbox.OUTAGE_SECONDS", 0.01)
    one = await scene.start()
    scene.log.fails = IndexUnavailable("locked")
    with capture_logs() as logs:
        await scene.store("1", "1")
        await scene.log.has_failed(times=3)
        assert one.tried == []
    assert [entry["event"] for entry in logs] == ["outbox.index_failed"]
    scene.log.fails = None
    await one.has(delivered=2)
    assert one.ids == [1, 2]


async def test_a_subscriber_that_is_cancelled_from_within_is_tried_again(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.errors[1] = [asyncio.CancelledError()]
    await scene.start(one)
    await scene.store("1")
    await one.has(tried=1)
    await scene.at_rest()
    scene.later(10)
    await one.has(delivered=1)


async def test_other_subscribers_of_the_same_name_go_on_where_the_former_were(scene: Scene) -> None:
    one = await scene.start()
    await scene.store("1")
    await one.has(delivered=1)
    two, other = ScriptedSubscriber(), ScriptedSubscriber("other")
    await scene.outbox.reconfigure([two, other], 1)
    await scene.store("1")
    await two.has(delivered=1)
    await other.has(delivered=1)
    assert (one.ids, two.ids, other.ids) == ([1], [2], [2])
    await scene.outbox.reconfigure([other], 1)
    await scene.store("1")
    await other.has(delivered=2)
    assert two.ids == [2]
    assert scene.outbox.names == {"other"}


# -- what an administrator asks for


async def test_what_is_parked_is_tried_at_once_when_asked_for(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.errors[1], one.errors[2] = [NotDelivered("no")], [NotDelivered("no")]
    await scene.start(one)
    await scene.store("1", "2")
    await one.has(tried=2)
    await scene.at_rest()
    desk = OutboxDesk(scene.outbox, scene.log)
    assert await desk.retry("one", 2) == 1
    await one.has(delivered=1)
    assert one.ids == [2]
    assert await desk.retry("one", None) == 1
    await one.has(delivered=2)


async def test_a_dead_letter_is_revived_while_others_of_its_series_are_tried(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.errors[1], one.errors[2] = [Undeliverable("never")], [NotDelivered("no"), NotDelivered("no")]
    await scene.start(one)
    await scene.store("1", "1", "1")
    await one.has(tried=2)
    await scene.at_rest()
    one.gates[2] = asyncio.Event()
    scene.later(10)
    await one.has(tried=3)
    assert await OutboxDesk(scene.outbox, scene.log).retry("one", None) == 1
    one.gates[2].set()
    await one.has(delivered=1)
    for _ in range(3):
        await scene.at_rest()
        scene.later(100)
    await one.has(delivered=3)
    assert one.ids == [1, 2, 3]


async def test_a_retry_closes_the_circuit(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.errors[1] = [DestinationDown("down")]
    await scene.start(one)
    await scene.store("1")
    await one.has(tried=1)
    await scene.at_rest()
    await OutboxDesk(scene.outbox, scene.log).retry("one", None)
    await one.has(delivered=1)


async def test_what_is_dropped_is_never_delivered_and_frees_its_series(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.errors[1], one.errors[3] = [NotDelivered("no")], [Undeliverable("never")]
    await scene.start(one)
    await scene.store("1", "1", "3")
    await one.has(tried=2)
    await scene.at_rest()
    desk = OutboxDesk(scene.outbox, scene.log)
    await desk.drop("one", 1)
    await one.has(delivered=1)
    await desk.drop("one", 3)
    await scene.at_rest()
    assert one.ids == [2]
    (state,) = await desk.states()
    assert (state.parked, state.dead) == (0, 0)
    for event_id in (1, 3, 99):
        with pytest.raises(ObjectNotFound):
            await desk.drop("one", event_id)
        with pytest.raises(ObjectNotFound):
            await desk.retry("one", event_id)


async def test_dead_letters_are_dropped_together(scene: Scene) -> None:
    one = ScriptedSubscriber()
    one.always = Undeliverable("never")
    await scene.start(one)
    await scene.store("1", "2")
    await one.has(tried=2)
    await scene.at_rest()
    desk = OutboxDesk(scene.outbox, scene.log)
    assert await desk.drop_dead("one") == 2
    assert (await desk.states())[0].dead == 0


async def test_a_subscription_that_nobody_has_is_named_at_the_start_and_forgotten_when_asked_for(
    scene: Scene,
) -> None:
    one = ScriptedSubscriber()
    one.always = NotDelivered("no")
    await scene.start(one)
    await scene.store("1")
    await one.has(tried=1)
    await scene.at_rest()
    desk = OutboxDesk(scene.outbox, scene.log)
    with pytest.raises(SCPServerError, match="in use"):
        await desk.drop_subscription("one")
    await scene.stop()
    with capture_logs() as logs:
        await scene.start(ScriptedSubscriber("two"))
    assert [each["subscription"] for each in logs if each["event"] == "outbox.subscription_inactive"] == [
        "one"
    ]
    desk = OutboxDesk(scene.outbox, scene.log)
    inactive, active = await desk.states()
    assert (inactive.name, inactive.is_active, inactive.parked) == ("one", False, 1)
    assert (active.name, active.is_active) == ("two", True)
    with pytest.raises(ObjectNotFound):
        await desk.retry("one", None)
    assert await desk.drop_subscription("one") == 1
    assert [state.name for state in await desk.states()] == ["two"]
    with pytest.raises(ObjectNotFound):
        await desk.drop_subscription("one")


async def test_two_of_one_name_are_refused(scene: Scene) -> None:
    await scene.start()
    with pytest.raises(ValueError, match="one"):
        await scene.outbox.subscribe(ScriptedSubscriber())


def test_the_defaults_give_up_after_a_day() -> None:
    assert CONFIG.max_attempts == 3
    config = OutboxConfig()
    waits = [
        min(config.max_retry_seconds, config.first_retry_seconds * 2**n)
        for n in range(config.max_attempts - 1)
    ]
    assert 0.7 < sum(waits) * 0.75 / 86_400 < 1.1


async def test_while_much_happens_the_log_is_read_seldom_and_after_a_silence_at_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading costs as much as many deliveries."""
    pages: list[int] = []
    page = LogReader.page

    async def counted(self: LogReader, after: int) -> list[LoggedEvent]:
        found = await page(self, after)
        pages.append(len(found))
        return found

    monkeypatch.setattr(LogReader, "page", counted)
    scene.config = replace(scene.config, gather_seconds=1_000.0)
    one = await scene.start()
    await scene.store("1")
    await one.has(delivered=1)
    for _ in range(20):
        await scene.store("1")
    await scene.at_rest()
    assert (pages, len(one.delivered)) == ([1], 1)
    await scene.stop()
    scene.config = replace(scene.config, gather_seconds=0.05)
    one = await scene.start()
    await one.has(delivered=20)
    assert pages[1] == 20


async def test_without_subscribers_nothing_goes_round(scene: Scene) -> None:
    one = await scene.start()
    await scene.at_rest()
    await scene.outbox.unsubscribe(one.name, 1.0)
    await scene.at_rest()
    (stored,) = await scene.store("1")
    assert not scene.outbox.is_awake
    assert scene.measures.newest_id == stored
    await scene.outbox.subscribe(one)
    await one.has(delivered=1)
    assert one.delivered[0].event.event_id == stored
