"""Objects that the index keeps until their files are durable: when it forgets them, and what a start does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import IndexFailure, IndexUnavailable, StorageError
from scp_server.index.base import DuplicatePolicy
from scp_server.objects.changes import Changes
from scp_server.observability.logs import captured_logs
from scp_server.observability.measures import SettlingMeasures
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.rules import CoerceRule, ObjectRules
from scp_server.runtime.recovery import recover
from scp_server.runtime.settling import LeftOver, Settler, not_in_place, settle_left_over
from scp_server.services.unsettled import UnsettledLimits, UnsettledObjects
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.storage_bench import StorageBench

NEVER = 3_600.0


class Scene:
    """A storage service that leaves small objects unsynced, and the settler behind it."""

    def __init__(
        self,
        folder: Path,
        limits: UnsettledLimits | None = None,
        settle_seconds: float = NEVER,
        **config: Any,
    ) -> None:
        self.measures = SettlingMeasures()
        self.unsettled = UnsettledObjects(limits or UnsettledLimits(), self.measures)
        self.bench = StorageBench(folder, unsettled=self.unsettled, **config)
        self.place, self.steps = self.bench.place, self.bench.steps
        self.storage, self.index = self.bench.storage, self.bench.index
        self.settler = self.another_settler(settle_seconds)

    def another_settler(self, settle_seconds: float = NEVER) -> Settler:
        """As a second process would have it."""
        return Settler(
            self.storage,
            self.index,
            self.unsettled,
            settle_seconds=settle_seconds,
            retry_seconds=0.001,
            measures=self.measures,
        )

    async def store(self, *objects: EncodedObject) -> list[str]:
        """Have them acknowledged; returns where they lie."""
        locations = []
        for stored in objects:
            assert await self.bench.status(store_operation(stored)) == 0x0000
            locations.append((await self.index.parts(stored.sop_instance_uid))[-1].location)
        return locations

    async def nothing_is_kept(self) -> None:
        """No object is unsettled, and none unsynced."""
        assert await self.index.unsynced() == []
        assert (self.place.unsynced, self.measures.objects, self.measures.bytes) == (set(), 0, 0)


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path)
    async with scene.bench:
        yield scene


# --- while the server runs


async def test_an_acknowledged_object_is_in_the_index_until_its_file_is_durable(scene: Scene) -> None:
    (location,) = await scene.store(ct_image())
    content = scene.place.objects[location]
    assert scene.place.unsynced == {location}
    assert await scene.index.unsynced() == [location]
    assert await scene.index.unsynced_contents([location]) == {location: content}
    assert (scene.measures.objects, scene.measures.bytes) == (1, len(content))
    scene.steps.log.clear()
    assert await scene.settler.settle()
    assert scene.steps.log == ["make_durable", "make_durable.done", "forget_unsynced", "forget_unsynced.done"]
    await scene.nothing_is_kept()


async def test_an_object_that_was_changed_on_arrival_is_kept_as_it_is_stored(tmp_path: Path) -> None:
    changes = Changes.of(set={"PatientComments": "a comment " * 50})
    rules = ObjectRules(coerce=(CoerceRule("rule", ObjectFilter(), changes),))
    scene = Scene(tmp_path, rules=rules)
    async with scene.bench:
        (location,) = await scene.store(ct_image())
        content = scene.place.objects[location]
        assert scene.bench.measures.coerced == 1
        assert scene.place.unsynced == {location}
        assert await scene.index.unsynced_contents([location]) == {location: content}
        assert (scene.measures.objects, scene.measures.bytes) == (1, len(content))
        await scene.settler.settle()
        await scene.nothing_is_kept()


async def test_with_nothing_to_settle_nothing_is_synced(scene: Scene) -> None:
    assert await scene.settler.settle()
    assert scene.steps.log == []


async def test_an_object_above_shared_sync_bytes_is_synced_by_itself(tmp_path: Path) -> None:
    (size,) = await _sizes(tmp_path / "measure", ct_image())
    for bound, is_left in ((size, True), (size - 1, False), (0, False)):
        folder = tmp_path / str(bound)
        folder.mkdir()
        scene = Scene(folder, UnsettledLimits(object_bytes=bound))
        async with scene.bench:
            await scene.store(ct_image())
            assert bool(scene.place.unsynced) is is_left
            assert bool(await scene.index.unsynced()) is is_left


async def _sizes(folder: Path, *objects: EncodedObject) -> list[int]:
    folder.mkdir()
    scene = Scene(folder)
    async with scene.bench:
        return [len(scene.place.objects[location]) for location in await scene.store(*objects)]


@pytest.mark.parametrize("bound", ["objects", "bytes"])
async def test_when_as_much_is_unsettled_as_may_be_newcomers_sync_themselves(
    tmp_path: Path, bound: str
) -> None:
    objects = [ct_image(seed=seed) for seed in range(4)]
    sizes = await _sizes(tmp_path / "measure", *objects)
    limits = UnsettledLimits(objects=2) if bound == "objects" else UnsettledLimits(bytes=sum(sizes[:2]))
    scene = Scene(tmp_path, limits)
    async with scene.bench:
        first = await scene.store(*objects[:3])
        assert scene.place.unsynced == set(first[:2])
        await scene.settler.settle()
        (last,) = await scene.store(objects[3])
        assert scene.place.unsynced == {last}


async def test_what_could_not_be_made_durable_stays_and_is_written_again_before_it_counts(
    scene: Scene,
) -> None:
    locations = await scene.store(ct_image(seed=1), ct_image(seed=2))
    scene.steps.fail_at("make_durable", StorageError("the disk is gone"))
    with captured_logs() as logs:
        assert not await scene.settler.settle()
    (line,) = [line for line in logs if line["event"] == "storage.not_settled"]
    assert (line["error"], line["objects"]) == ("the disk is gone", 2)
    assert sorted(await scene.index.unsynced()) == sorted(locations)
    assert scene.measures.failures == 1
    (third,) = await scene.store(ct_image(seed=3))
    assert third not in scene.place.unsynced, "nothing more is left unsynced meanwhile"
    scene.steps.heal()
    scene.steps.log.clear()
    assert await scene.settler.settle()
    assert scene.steps.log[:4] == ["rewrite", "rewrite", "make_durable", "make_durable.done"]
    await scene.nothing_is_kept()
    (fourth,) = await scene.store(ct_image(seed=4))
    assert scene.place.unsynced == {fourth}
    scene.steps.log.clear()
    assert await scene.settler.settle()
    assert "rewrite" not in scene.steps.log


async def test_an_index_that_cannot_forget_is_asked_again(scene: Scene) -> None:
    await scene.store(ct_image())
    scene.steps.fail_at("forget_unsynced", IndexUnavailable("locked"))
    assert not await scene.settler.settle()
    assert len(await scene.index.unsynced()) == 1
    scene.steps.heal()
    assert await scene.settler.settle()
    await scene.nothing_is_kept()


async def test_what_is_deleted_while_it_is_made_durable_stays_deleted(scene: Scene) -> None:
    kept, deleted = await scene.store(ct_image(seed=1), ct_image(seed=2))
    reached = scene.steps.stop_at("make_durable")
    cycle = asyncio.create_task(scene.settler.settle())
    await reached.wait()
    await scene.index.remove([deleted])
    await scene.storage.delete(deleted)
    assert await scene.index.unsynced() == [kept]
    cycle.cancel()
    await asyncio.wait({cycle})
    scene.steps.heal()
    # The sync was not heard of, so what is left of it is written again: this one must not be.
    assert await scene.settler.settle()
    assert set(scene.place.objects) == {kept}
    await scene.nothing_is_kept()


async def test_a_doubtful_file_that_disappears_is_not_made_and_its_row_is_left_to_the_start(
    scene: Scene,
) -> None:
    (location,) = await scene.store(ct_image())
    content = scene.place.objects[location]
    scene.steps.fail_at("make_durable", StorageError("the disk is gone"))
    await scene.settler.settle()
    scene.steps.heal()
    del scene.place.objects[location]
    assert await scene.settler.settle()
    assert scene.place.objects == {}
    assert await scene.index.unsynced() == [location]
    assert await settle_left_over(scene.storage, scene.index) == LeftOver(examined=1, restored=1)
    assert scene.place.objects == {location: content}


async def test_what_is_replaced_goes_with_its_bytes_and_never_comes_back(tmp_path: Path) -> None:
    scene = Scene(tmp_path, duplicates=DuplicatePolicy.REPLACE)
    async with scene.bench:
        (old,) = await scene.store(ct_image(seed=1, sop_instance_uid="1.2.3"))
        (new,) = await scene.store(ct_image(seed=2, sop_instance_uid="1.2.3"))
        assert old != new
        assert await scene.index.unsynced() == [new]
        scene.place.lose_power(names=True)
        assert await settle_left_over(scene.storage, scene.index) == LeftOver(examined=1, restored=1)
        assert set(scene.place.objects) == {new}


@pytest.mark.parametrize("policy", [DuplicatePolicy.KEEP_FIRST, DuplicatePolicy.PARTS])
async def test_what_the_index_does_not_take_is_not_kept_by_it(
    tmp_path: Path, policy: DuplicatePolicy
) -> None:
    """The same bytes again, and other bytes that are refused or are another part."""
    scene = Scene(tmp_path, duplicates=policy)
    async with scene.bench:
        (first,) = await scene.store(ct_image(seed=1, sop_instance_uid="1.2.3"))
        await scene.store(ct_image(seed=1, sop_instance_uid="1.2.3"))
        assert await scene.index.unsynced() == [first]
        await scene.bench.status(store_operation(ct_image(seed=2, sop_instance_uid="1.2.3")))
        parts = await scene.index.parts("1.2.3")
        assert sorted(await scene.index.unsynced()) == sorted(part.location for part in parts)
        assert set(scene.place.objects) == {part.location for part in parts}
        await scene.settler.settle()
        await scene.nothing_is_kept()


@pytest.mark.parametrize("step", ["commit", "add"])
async def test_what_fails_is_not_counted_for_longer_than_a_cycle(scene: Scene, step: str) -> None:
    scene.steps.fail_at(step, StorageError("full") if step == "commit" else IndexFailure("full"))
    assert await scene.bench.status(store_operation(ct_image())) == 0xA700
    await scene.bench.nothing_is_left()
    assert await scene.settler.settle()
    await scene.nothing_is_kept()


# --- when


def _told(method: Callable[[Sequence[str]], Awaitable[None]], done: asyncio.Event) -> Any:
    async def call(locations: Sequence[str]) -> None:
        try:
            await method(locations)
        finally:
            done.set()

    return call


async def _cycle(scene: Scene, *objects: EncodedObject) -> None:
    """Store, and wait until the task has had the index forget something."""
    forgotten = asyncio.Event()
    scene.index.forget_unsynced = _told(scene.index.forget_unsynced, forgotten)  # type: ignore[method-assign]
    scene.settler.start()
    await scene.store(*objects)
    async with asyncio.timeout(10):
        await forgotten.wait()
    await scene.settler.stop()


async def test_an_object_waits_for_settle_seconds(tmp_path: Path) -> None:
    scene = Scene(tmp_path, settle_seconds=0.01)
    async with scene.bench:
        await _cycle(scene, ct_image())
        await scene.nothing_is_kept()


@pytest.mark.parametrize("limits", [UnsettledLimits(objects=2), UnsettledLimits(bytes=1_500)])
async def test_at_half_of_what_may_be_nobody_waits_for_the_time(
    tmp_path: Path, limits: UnsettledLimits
) -> None:
    scene = Scene(tmp_path, limits)
    async with scene.bench:
        await _cycle(scene, ct_image(rows=8, columns=8))
        await scene.nothing_is_kept()


async def test_the_end_settles_what_is_left(scene: Scene) -> None:
    scene.settler.start()
    await scene.store(ct_image())
    await scene.settler.stop()
    await scene.nothing_is_kept()


async def test_after_a_failure_it_tries_again_by_itself(scene: Scene) -> None:
    await scene.store(ct_image())
    scene.steps.fail_at("make_durable", StorageError("the disk is gone"))
    await scene.settler.settle()
    tried, forgotten = asyncio.Event(), asyncio.Event()
    scene.storage.make_durable = _told(scene.storage.make_durable, tried)  # type: ignore[method-assign]
    scene.index.forget_unsynced = _told(scene.index.forget_unsynced, forgotten)  # type: ignore[method-assign]
    scene.settler.start()
    async with asyncio.timeout(10):
        await tried.wait()
        assert not forgotten.is_set()
        scene.steps.heal()
        await forgotten.wait()
    await scene.settler.stop()
    await scene.nothing_is_kept()


async def test_a_sync_in_hand_is_waited_for_at_the_end(tmp_path: Path) -> None:
    """What it has to say would be lost else, and a second one says yes."""
    scene = Scene(tmp_path, UnsettledLimits(objects=1))
    reached, go_on = asyncio.Event(), asyncio.Event()
    make_durable = scene.storage.make_durable

    async def slow(locations: Sequence[str]) -> None:
        reached.set()
        await go_on.wait()
        await make_durable(locations)

    scene.storage.make_durable = slow  # type: ignore[method-assign]
    async with scene.bench:
        scene.settler.start()
        await scene.store(ct_image())
        await reached.wait()
        stopping = asyncio.create_task(scene.settler.stop())
        done, _ = await asyncio.wait({stopping}, timeout=0)
        assert not done
        go_on.set()
        await stopping
        assert "rewrite" not in scene.steps.log
        await scene.nothing_is_kept()


# --- the start


@pytest.mark.parametrize("names", [True, False])
async def test_a_start_after_a_power_cut_has_every_acknowledged_object(scene: Scene, names: bool) -> None:
    locations = await scene.store(*(ct_image(seed=seed) for seed in range(70)))
    before = dict(scene.place.objects)
    await scene.storage.make_durable(locations[:10])
    scene.place.lose_power(names=names)
    assert scene.place.objects != before
    with captured_logs() as logs:
        left_over = await settle_left_over(scene.storage, scene.index)
    assert left_over == LeftOver(examined=70, restored=60)
    (line,) = [line for line in logs if line["event"] == "recovery.settled"]
    assert (line["examined"], line["restored"], line["failed"]) == (70, 60, 0)
    await recover(scene.storage, scene.index, scene.bench.config)
    assert scene.place.objects == before
    assert scene.place.unsynced == set()
    assert await scene.index.unsynced() == []


async def test_a_file_with_other_bytes_of_the_same_length_is_written_anew(scene: Scene) -> None:
    short, other, longer, sound = await scene.store(*(ct_image(seed=seed) for seed in range(4)))
    before = dict(scene.place.objects)
    objects = scene.place.objects
    objects[short] = objects[short][:-1]
    objects[other] = bytes(len(objects[other]))
    objects[longer] += b"\0"
    assert sorted(await not_in_place(scene.storage, scene.index)) == sorted([short, other, longer])
    assert objects[sound] == before[sound]
    assert await settle_left_over(scene.storage, scene.index) == LeftOver(examined=4, restored=3)
    assert objects == before


async def test_a_start_with_nothing_left_asks_the_index_only(scene: Scene) -> None:
    with captured_logs() as logs:
        assert await settle_left_over(scene.storage, scene.index) == LeftOver()
    assert (scene.steps.log, [line for line in logs if line["event"] == "recovery.settled"]) == ([], [])


@pytest.mark.parametrize("step", ["restore", "make_durable"])
async def test_what_a_start_cannot_restore_stays_in_the_index_and_is_tried_again(
    scene: Scene, step: str
) -> None:
    (location,) = await scene.store(ct_image())
    content = scene.place.objects[location]
    scene.place.lose_power(names=False)
    scene.steps.fail_at(step, StorageError("the disk is gone"))
    left_over = await settle_left_over(scene.storage, scene.index)
    assert left_over.failed == (location,)
    assert await scene.index.unsynced() == [location]
    scene.steps.heal()
    settler = scene.another_settler()
    settler.doubt(left_over.failed)
    assert not scene.unsettled.accepting
    assert await settler.settle()
    assert scene.place.objects == {location: content}
    await scene.nothing_is_kept()
