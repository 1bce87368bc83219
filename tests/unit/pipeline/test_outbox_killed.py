"""kill -9 at every step of the outbox: nothing is lost, and what is repeated is known to be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from scp_server.index import outbox as rows
from scp_server.pipeline.verdicts import DestinationDown, NotDelivered, Undeliverable
from tests.unit.pipeline.outbox_scene import PATIENCE_SECONDS, Scene, ScriptedSubscriber

SERIES = ("1", "2", "1", "3", "2", "1", "4", "4")
LEAST_STEPS = 3
"""Writes of a life at which it is killed, one after the other, where the destination is down; else more."""


def _scripted(errors: dict[int, BaseException]) -> ScriptedSubscriber:
    one = ScriptedSubscriber(concurrency=2)
    for event_id, error in errors.items():
        one.errors[event_id] = [error]
    return one


async def _killed_at(scene: Scene, one: ScriptedSubscriber, arm: Callable[[], None]) -> bool:
    """Live until the log is dead; False where it never was."""
    living = asyncio.create_task(_live(scene, one, arm))
    died = asyncio.create_task(_died(scene))
    done, _ = await asyncio.wait(
        {living, died}, timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    for task in (living, died):
        task.cancel()
    await asyncio.gather(living, died, return_exceptions=True)
    assert done, "it stands still"
    was_killed = scene.log.died.is_set()
    await scene.kill()
    return was_killed


async def _live(scene: Scene, one: ScriptedSubscriber, arm: Callable[[], None]) -> None:
    await scene.start(one)
    arm()
    for series in SERIES:
        await scene.store(series)
        await scene.at_rest()
    for _ in range(3):
        scene.later(20)
        await scene.at_rest()


async def _died(scene: Scene) -> None:
    while not hasattr(scene, "log"):
        await asyncio.sleep(0)
    await scene.log.died.wait()


async def _second_life(scene: Scene, first: ScriptedSubscriber, dead: set[int]) -> None:
    """What was not delivered is, in the order of its series, and what is repeated says so."""
    already_stored = scene.stored
    second = ScriptedSubscriber(concurrency=2)
    await scene.start(second)
    await scene.store(*SERIES[already_stored:])
    for _ in range(4):
        await scene.at_rest()
        scene.later(1_000)
    await scene.at_rest()
    everything = set(range(1, len(SERIES) + 1))
    given_up = {row.event_id for row in await scene.log.read(lambda c: rows.parked_of(c, "one", dead=True))}
    assert given_up <= dead
    assert set(first.ids) | set(second.ids) | given_up == everything
    repeated = set(first.ids) & set(second.ids)
    assert repeated <= {each.event.event_id for each in second.delivered if each.may_be_repeated}
    assert len(set(second.ids)) == len(second.ids)
    for life in (first, second):
        for series in set(SERIES):
            of_series = [number for number in life.ids if SERIES[number - 1] == series]
            assert of_series == sorted(of_series)
    keys = [each.idempotency_key for each in (*first.delivered, *second.delivered)]
    assert len(set(keys)) == len(set(first.ids) | set(second.ids))
    assert scene.outbox.line("one").position == len(SERIES)
    assert scene.measures.of("one").parked == 0
    await scene.stop()


ERRORS: dict[str, Callable[[], dict[int, BaseException]]] = {
    "all goes well": dict,
    "one fails": lambda: {3: NotDelivered("no")},
    "down": lambda: {2: DestinationDown("down")},
    "one is dead": lambda: {4: Undeliverable("never")},
    "all of it": lambda: {1: NotDelivered("no"), 4: Undeliverable("never"), 5: DestinationDown("down")},
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", list(ERRORS))
async def test_killed_at_any_write_nothing_is_lost_and_nothing_repeated_unsaid(
    tmp_path: Path, what: str, when: str
) -> None:
    errors = ERRORS[what]()
    dead = {number for number, error in errors.items() if isinstance(error, Undeliverable)}
    step, was_killed = 0, True
    while was_killed:
        scene = Scene(tmp_path / str(step) / "index.sqlite")
        first = _scripted(ERRORS[what]())

        def arm(scene: Scene = scene, step: int = step) -> None:
            number = scene.log.performed + step
            if when == "before":
                scene.log.die_before = number
            else:
                scene.log.die_after = number

        was_killed = await _killed_at(scene, first, arm)
        await _second_life(scene, first, dead)
        step += 1
    assert step > LEAST_STEPS


@pytest.mark.parametrize("number", range(1, len(SERIES) + 1))
@pytest.mark.parametrize("has_arrived", [False, True])
async def test_killed_in_any_delivery_it_is_made_again_and_marked(
    tmp_path: Path, number: int, has_arrived: bool
) -> None:
    scene = Scene(tmp_path / "index.sqlite")
    first = ScriptedSubscriber(concurrency=2)
    if not has_arrived:
        first.gates[number] = asyncio.Event()
    await scene.start(first)
    for series in SERIES[:number]:
        await scene.store(series)
    await first.has(tried=number, delivered=number if has_arrived else 0)
    await scene.kill()
    second = ScriptedSubscriber()
    await scene.start(second)
    await scene.store(*SERIES[number:])
    await scene.at_rest()
    assert set(first.ids) | set(second.ids) == set(range(1, len(SERIES) + 1))
    again = [each for each in second.delivered if each.event.event_id <= number]
    assert all(each.may_be_repeated for each in again)
    assert has_arrived or number in {each.event.event_id for each in again}
    assert not any(each.may_be_repeated for each in second.delivered if each.event.event_id > number)
    await scene.stop()


async def test_what_is_dead_before_something_slower_stays_dead_when_that_is_killed(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "index.sqlite")
    first = ScriptedSubscriber()
    first.gates[1] = asyncio.Event()
    first.errors[2] = [Undeliverable("never")]
    await scene.start(first)
    await scene.store("1", "2", "3")
    await first.has(tried=3, delivered=1)
    await scene.at_rest()
    await scene.kill()
    second = await scene.start()
    await second.has(delivered=2)
    await scene.at_rest()
    assert second.ids == [1, 3]
    assert scene.measures.of("one").dead == 1
    await scene.stop()
