"""Start-up after a crash: what became visible and is not indexed is adopted, or taken back."""

from __future__ import annotations

import dataclasses
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from scp_server.errors import IndexFailure, IndexUnavailable, StorageError
from scp_server.index.base import AddResult, DuplicatePolicy, IndexEntry
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.objects.part10 import file_meta
from scp_server.observability.logs import captured_logs
from scp_server.runtime.recovery import RecoveryReport, recover
from scp_server.services.storage import StorageServiceConfig
from scp_server.storage.base import StoredObject
from scp_server.storage.memory import MemoryPlace, MemoryStorage
from scp_server.testing.dicos_objects import dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image, encapsulated_pdf
from scp_server.testing.storage_bench import StorageBench
from scp_server.testing.watched_backends import Steps, WatchedIndex, WatchedStorage

CONFIG = StorageServiceConfig()


class Restarted:
    """A second process over the place and the index of a first one."""

    def __init__(self, place: MemoryPlace, folder: Path) -> None:
        self.steps = Steps()
        self.storage = WatchedStorage(MemoryStorage(place), self.steps)
        self.index = WatchedIndex(SqlIndex(IndexConfig(folder / "index.sqlite", False)), self.steps)

    async def __aenter__(self) -> Self:
        await self.storage.open()
        await self.index.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.index.close()
        await self.storage.close()

    async def recover(self, config: StorageServiceConfig = CONFIG) -> RecoveryReport:
        return await recover(self.storage, self.index, config)


async def _crashed(folder: Path, *objects: EncodedObject) -> MemoryPlace:
    """A process that committed `objects`, in this order, and ended before it indexed them."""
    async with StorageBench(folder) as bench:
        bench.steps.fail_at("add", RuntimeError("killed here"))
        for stored in objects:
            with pytest.raises(RuntimeError):
                await bench.service.store(store_operation(stored))
        assert len(bench.place.objects) == len(objects)
        return bench.place


def _shuffled(place: MemoryPlace, seed: int) -> None:
    """A folder lists its files in any order."""
    locations = list(place.in_flight)
    random.Random(seed).shuffle(locations)
    place.in_flight = dict.fromkeys(locations)


async def test_what_was_committed_but_not_indexed_is_adopted(tmp_path: Path) -> None:
    objects = [ct_image(seed=1), ct_image(seed=2), dicos_tdr()]
    place = await _crashed(tmp_path, *objects)
    async with Restarted(place, tmp_path) as process:
        assert await process.recover() == RecoveryReport(examined=3, adopted=3)
        for stored in objects:
            (part,) = await process.index.parts(stored.sop_instance_uid)
            assert place.objects[part.location][part.dataset_offset_bytes :] == stored.dataset
    assert place.in_flight == {}


@pytest.mark.parametrize("stored", [ct_image(), dicos_tdr(), encapsulated_pdf(document_bytes=600_000)])
async def test_what_is_adopted_is_recorded_as_if_nothing_had_happened(
    tmp_path: Path, stored: EncodedObject
) -> None:
    place = await _crashed(tmp_path, stored)
    async with Restarted(place, tmp_path) as process:
        await process.recover()
        (adopted,) = await process.index.parts(stored.sop_instance_uid)
        adopted_header = await process.index.header(adopted.location)
    (tmp_path / "calm").mkdir()
    async with StorageBench(tmp_path / "calm") as bench:
        assert await bench.status(store_operation(stored)) == 0x0000
        (recorded,) = await bench.index.parts(stored.sop_instance_uid)
        assert await bench.index.header(recorded.location) == adopted_header
    assert (
        dataclasses.replace(
            adopted,
            location=recorded.location,
            arrival_id=recorded.arrival_id,
            received_at_ns=recorded.received_at_ns,
        )
        == recorded
    )


async def test_what_is_indexed_already_stays_and_is_not_read(tmp_path: Path) -> None:
    async with StorageBench(tmp_path) as bench:
        bench.steps.fail_at("indexed", RuntimeError("killed here"))
        with pytest.raises(RuntimeError):
            await bench.service.store(store_operation(ct_image()))
        place = bench.place
    async with Restarted(place, tmp_path) as process:
        assert await process.recover() == RecoveryReport(examined=1)
        assert process.steps.log == []
    assert len(place.objects) == 1
    assert place.in_flight == {}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("others", [0, 700])
async def test_parts_are_adopted_in_order_of_arrival_however_they_are_listed(
    tmp_path: Path, seed: int, others: int
) -> None:
    """More files than the index is asked about at once, so that no batch holds all parts."""
    sections = [*two_section_ct(), *(_section(number) for number in range(6))]
    place = await _crashed(tmp_path, *sections)
    for _ in range(others):
        place.objects[location := f"objects/other/{len(place.objects)}"] = b"unreadable"
        place.in_flight[location] = None
    locations = list(place.in_flight)
    random.Random(seed).shuffle(locations)
    place.in_flight = dict.fromkeys(locations)
    async with Restarted(place, tmp_path) as process:
        await process.recover()
        parts = await process.index.parts(sections[0].sop_instance_uid)
    assert [place.objects[part.location][part.dataset_offset_bytes :] for part in parts] == [
        section.dataset for section in sections
    ]


def _section(number: int) -> EncodedObject:
    first = two_section_ct()[0]
    at = first.dataset.index(b"\xe0\x7f\x10\x00") + 12
    return dataclasses.replace(
        first, dataset=first.dataset[:at] + bytes([number]) * 8 + first.dataset[at + 8 :]
    )


async def test_of_two_that_arrived_under_one_uid_the_first_is_kept(tmp_path: Path) -> None:
    first = ct_image(seed=1)
    second = ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)
    place = await _crashed(tmp_path, first, second)
    place.in_flight = dict.fromkeys(reversed(place.in_flight))
    async with Restarted(place, tmp_path) as process:
        assert await process.recover() == RecoveryReport(examined=2, adopted=1, removed=1)
    (kept,) = place.objects.values()
    assert kept.endswith(first.dataset)


async def test_the_policy_for_duplicates_holds_in_recovery_too(tmp_path: Path) -> None:
    first = ct_image(seed=1)
    second = ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)
    place = await _crashed(tmp_path, first, second)
    async with Restarted(place, tmp_path) as process:
        config = StorageServiceConfig(duplicates=DuplicatePolicy.PARTS)
        assert await process.recover(config) == RecoveryReport(examined=2, adopted=2)
    assert len(place.objects) == 2


REPLACING = StorageServiceConfig(duplicates=DuplicatePolicy.REPLACE)


@pytest.mark.parametrize("config", [REPLACING, StorageServiceConfig(duplicates=DuplicatePolicy.PARTS)])
async def test_what_was_replaced_and_not_yet_deleted_is_deleted_and_does_not_come_back(
    tmp_path: Path, config: StorageServiceConfig
) -> None:
    """Whatever the policy is now, and in whichever directory the old file lies."""
    first = ct_image(seed=1)
    second = ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)
    async with StorageBench(tmp_path, duplicates=DuplicatePolicy.REPLACE) as bench:
        assert await bench.status(store_operation(first)) == 0x0000
        bench.place.in_flight = dict.fromkeys(bench.place.objects)
        bench.steps.fail_at("delete", RuntimeError("killed here"))
        with pytest.raises(RuntimeError):
            await bench.service.store(store_operation(second))
        place = bench.place
    async with Restarted(place, tmp_path) as process:
        assert await process.recover(config) == RecoveryReport(examined=1, discarded=1)
        (part,) = await process.index.parts(first.sop_instance_uid)
    assert list(place.objects) == [part.location]
    assert place.objects[part.location].endswith(second.dataset)


async def test_a_newcomer_that_was_never_acknowledged_replaces_nothing(tmp_path: Path) -> None:
    first = ct_image(seed=1)
    second = ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)
    async with StorageBench(tmp_path, duplicates=DuplicatePolicy.REPLACE) as bench:
        assert await bench.status(store_operation(first)) == 0x0000
        bench.steps.fail_at("add", RuntimeError("killed here"))
        with pytest.raises(RuntimeError):
            await bench.service.store(store_operation(second))
        place = bench.place
    async with Restarted(place, tmp_path) as process:
        assert await process.recover(REPLACING) == RecoveryReport(examined=1, removed=1)
    (kept,) = place.objects.values()
    assert kept.endswith(first.dataset)


@pytest.mark.parametrize("policy", [*DuplicatePolicy])
async def test_nothing_is_deleted_for_the_sake_of_a_file_that_is_gone(
    tmp_path: Path, policy: DuplicatePolicy
) -> None:
    """A power cut may undo what the index recorded last, and not the deletion that followed it."""
    first = ct_image(seed=1)
    second = ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)
    async with StorageBench(tmp_path) as bench:
        assert await bench.status(store_operation(first)) == 0x0000
        bench.place.objects.clear()
        bench.steps.fail_at("add", RuntimeError("killed here"))
        for newcomer in (second, first):
            with pytest.raises(RuntimeError):
                await bench.service.store(store_operation(newcomer))
        place = bench.place
        before = dict(place.objects)
    async with Restarted(place, tmp_path) as process:
        await process.recover(StorageServiceConfig(duplicates=policy))
        parts = await process.index.parts(first.sop_instance_uid)
        assert {part.location for part in parts} & set(before)
    assert any(kept.endswith(second.dataset) for kept in place.objects.values())


async def test_a_duplicate_that_was_about_to_be_taken_back_is(tmp_path: Path) -> None:
    async with StorageBench(tmp_path) as bench:
        assert await bench.status(store_operation(ct_image())) == 0x0000
        bench.steps.fail_at("delete", RuntimeError("killed here"))
        with pytest.raises(RuntimeError):
            await bench.service.store(store_operation(ct_image()))
        place = bench.place
    async with Restarted(place, tmp_path) as process:
        assert await process.recover() == RecoveryReport(examined=1, removed=1)
        (part,) = await process.index.parts(ct_image().sop_instance_uid)
    assert list(place.objects) == [part.location]


async def test_recovering_again_finds_nothing_to_do(tmp_path: Path) -> None:
    place = await _crashed(tmp_path, ct_image(), *two_section_ct())
    async with Restarted(place, tmp_path) as process:
        assert (await process.recover()).adopted == 3
        kept = dict(place.objects)
        assert await process.recover() == RecoveryReport()
    async with Restarted(place, tmp_path) as process:
        assert await process.recover() == RecoveryReport()
    assert place.objects == kept


@pytest.mark.parametrize("step", ["add", "delete"])
async def test_a_recovery_that_was_killed_is_taken_up_again(tmp_path: Path, step: str) -> None:
    first = ct_image(seed=1)
    second = ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)
    place = await _crashed(tmp_path, first, second, ct_image(seed=3))
    async with Restarted(place, tmp_path) as process:
        process.steps.fail_at(step, RuntimeError("killed here"))
        with pytest.raises(RuntimeError):
            await process.recover()
    async with Restarted(place, tmp_path) as process:
        await process.recover()
        assert (await process.index.totals()).parts == 2
    assert len(place.objects) == 2
    assert place.in_flight == {}


async def test_an_index_that_is_unavailable_stops_the_start_and_nothing_is_forgotten(tmp_path: Path) -> None:
    place = await _crashed(tmp_path, ct_image())
    async with Restarted(place, tmp_path) as process:
        process.steps.fail_at("add", IndexUnavailable("locked"))
        with pytest.raises(IndexUnavailable):
            await process.recover()
    assert place.in_flight == dict.fromkeys(place.objects)


async def test_an_object_that_the_index_refuses_for_ever_does_not_stop_the_start(tmp_path: Path) -> None:
    place = await _crashed(tmp_path, ct_image(seed=1), ct_image(seed=2))
    refused = ct_image(seed=1).sop_instance_uid

    class Picky(WatchedIndex):
        async def add(
            self, entry: IndexEntry, policy: DuplicatePolicy, first: Callable[[], None] | None = None
        ) -> AddResult:
            if entry.summary.sop_instance_uid == refused:
                raise IndexFailure("cannot be recorded")
            return await super().add(entry, policy, first)

    async with Restarted(place, tmp_path) as process:
        process.index = Picky(process.index, process.steps)
        with captured_logs() as logs:
            assert await process.recover() == RecoveryReport(examined=2, adopted=1, unreadable=1)
    assert [record["event"] for record in logs].count("object.unreadable") == 1
    assert len(place.objects) == 2


async def test_a_duplicate_that_cannot_be_deleted_does_not_stop_the_start(tmp_path: Path) -> None:
    first = ct_image(seed=1)
    place = await _crashed(tmp_path, first, ct_image(seed=2, sop_instance_uid=first.sop_instance_uid))
    async with Restarted(place, tmp_path) as process:
        process.steps.fail_at("delete", StorageError("busy"))
        with captured_logs() as logs:
            assert await process.recover() == RecoveryReport(examined=2, adopted=1)
    assert [record["event"] for record in logs].count("object.left_over") == 1


@pytest.mark.parametrize("between", [0, 600])
async def test_a_storage_that_names_an_object_twice_loses_nothing(tmp_path: Path, between: int) -> None:
    place = await _crashed(tmp_path, ct_image())
    (location,) = place.objects

    class Stuttering(MemoryStorage):
        async def in_flight(self) -> AsyncIterator[StoredObject]:
            stored = StoredObject(location, len(place.objects[location]))
            yield stored
            for number in range(between):
                yield StoredObject(f"objects/gone/{number}", 1)
            yield stored

    async with Restarted(place, tmp_path) as process:
        process.storage = WatchedStorage(Stuttering(place), process.steps)
        await process.storage.open()
        report = await process.recover()
        assert (report.adopted, report.removed, report.unreadable) == (1, 0, between)
    assert list(place.objects) == [location]


def _no_part_10(_data: bytes) -> bytes:
    return b"no Part 10 file" * 100


def _empty(_data: bytes) -> bytes:
    return b""


def _cut_in_the_file_meta(data: bytes) -> bytes:
    return data[:200]


def _cut_in_the_header(data: bytes) -> bytes:
    return data[:900]


def _cut_in_the_pixels(data: bytes) -> bytes:
    return data[:-1]


def _without_study(data: bytes) -> bytes:
    return data.replace(b"\x20\x00\x0d\x00UI", b"\x20\x00\x0c\x00UI")


def _foreign(data: bytes) -> bytes:
    stored = ct_image()
    meta = file_meta(
        sop_class_uid=stored.sop_class_uid,
        sop_instance_uid=stored.sop_instance_uid,
        transfer_syntax_uid=stored.transfer_syntax_uid,
    )
    return meta.data + stored.dataset


@pytest.mark.parametrize(
    "spoil",
    [
        _no_part_10,
        _empty,
        _cut_in_the_file_meta,
        _cut_in_the_header,
        _cut_in_the_pixels,
        _without_study,
        _foreign,
    ],
)
async def test_what_cannot_be_read_is_reported_and_left_and_the_others_are_adopted(
    tmp_path: Path, spoil: Callable[[bytes], bytes]
) -> None:
    place = await _crashed(tmp_path, ct_image(seed=1), ct_image(seed=2), ct_image(seed=3))
    spoilt = list(place.objects)[1]
    place.objects[spoilt] = spoil(place.objects[spoilt])
    before = dict(place.objects)
    async with Restarted(place, tmp_path) as process:
        with captured_logs() as logs:
            assert await process.recover() == RecoveryReport(examined=3, adopted=2, unreadable=1)
    (record,) = [record for record in logs if record["event"] == "object.unreadable"]
    assert record["location"] == spoilt
    assert record["error"]
    assert place.objects == before


@pytest.mark.parametrize("whose", ["its own", "its rival's"])
async def test_what_the_disk_does_not_give_is_left_and_looked_at_again_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    rival = ct_image(seed=7)
    place = await _crashed(tmp_path, rival, ct_image(seed=8, sop_instance_uid=rival.sop_instance_uid))
    before, in_flight = dict(place.objects), dict(place.in_flight)
    first, second = place.objects
    lost = second if whose == "its own" else first
    if whose == "its rival's":
        # Known to the index, and readable then.
        place.in_flight = {first: None}
        async with Restarted(place, tmp_path) as process:
            assert (await process.recover()).adopted == 1
        place.in_flight = dict(in_flight)
    real = MemoryStorage.read

    def read(self: MemoryStorage, location: str, offset: int = 0, length: int | None = None) -> Any:
        if location == lost:
            raise StorageError("cannot read: Input/output error")
        return real(self, location, offset, length)

    monkeypatch.setattr(MemoryStorage, "read", read)
    async with Restarted(place, tmp_path) as process:
        with captured_logs() as logs:
            assert (await process.recover()).unreadable == 1
    (record,) = [record for record in logs if record["event"] == "object.unreadable"]
    assert (record["location"], record["error"]) == (second, "cannot read: Input/output error")
    assert place.objects == before
    assert place.in_flight == in_flight
    monkeypatch.undo()
    async with Restarted(place, tmp_path) as process:
        assert (await process.recover()).removed == 1
    assert list(place.objects) == [first]
    assert place.in_flight == {}


async def test_a_large_object_is_read_in_pieces_and_never_held_whole(tmp_path: Path) -> None:
    large = ct_image(rows=4096, columns=2048)
    place = await _crashed(tmp_path, large)
    async with Restarted(place, tmp_path) as process:
        tracemalloc.start()
        try:
            assert (await process.recover()).adopted == 1
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert len(large.dataset) > 16 << 20
    assert peak < 8 << 20


async def test_an_index_that_was_deleted_does_not_stop_the_start(tmp_path: Path) -> None:
    async with StorageBench(tmp_path) as bench:
        assert await bench.status(store_operation(ct_image(seed=1))) == 0x0000
        place = bench.place
    for file in tmp_path.glob("index.sqlite*"):
        file.unlink()
    async with Restarted(place, tmp_path) as process:
        assert await process.recover() == RecoveryReport()
        assert (await process.index.totals()).parts == 0
    assert len(place.objects) == 1
