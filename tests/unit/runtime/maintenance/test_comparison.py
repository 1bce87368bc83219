"""After ready: what storage and index disagree on is found in the background, and nobody waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server
from scp_server.errors import IndexUnavailable
from scp_server.index.base import AddResult, DuplicatePolicy, IndexEntry
from scp_server.observability.logs import captured_logs
from scp_server.runtime.maintenance import comparison as module
from scp_server.runtime.maintenance.comparison import Comparison, ComparisonReport
from scp_server.services.storage import StorageService
from scp_server.testing.archive import Archive
from scp_server.testing.dicos_objects import two_section_ct
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.storage_bench import StorageBench
from scp_server.testing.watched_backends import WatchedIndex
from tests.unit.runtime.maintenance.conftest import adopter_of, varied_objects


async def _compare(archive: Archive, started_at_ns: int | None = None) -> ComparisonReport:
    async with archive.opened() as (storage, index):
        comparison = Comparison(
            storage,
            index,
            adopter_of(archive, storage, index),
            objects_per_second=1_000_000,
            started_at_ns=time.time_ns() if started_at_ns is None else started_at_ns,
        )
        await comparison.run()
        return comparison.report


async def _forget(archive: Archive, *locations: str) -> None:
    async with archive.opened() as (_, index):
        await index.remove(locations or list(archive.files()))


async def test_an_archive_in_order_is_left_alone(archive: Archive) -> None:
    await archive.store(varied_objects())
    rows = archive.rows()
    assert await _compare(archive) == ComparisonReport(objects=11, parts=11)
    assert archive.rows() == rows


async def test_an_index_that_was_lost_comes_back(archive: Archive) -> None:
    await archive.store(varied_objects())
    rows = archive.rows()
    await _forget(archive)
    with captured_logs() as logs:
        assert await _compare(archive) == ComparisonReport(objects=11, parts=11, adopted=11)
    assert archive.rows() == rows
    assert {record["location"] for record in logs if record["event"] == "object.adopted"} == set(
        archive.files()
    )


async def test_danglers_duplicates_and_unreadable_files_are_logged_and_stay(archive: Archive) -> None:
    objects = [ct_image(seed=number) for number in range(3)]
    await archive.store(objects)
    missing, cut, twice = [archive.location_of(each) for each in objects]
    twin = f"{twice[:-5]}{'1' if twice[-5] == '0' else '0'}.dcm"
    (archive.data_dir / twin).write_bytes(archive.files()[twice])
    (archive.data_dir / missing).unlink()
    await _forget(archive, cut)
    (archive.data_dir / cut).write_bytes(archive.files()[cut][:-1])
    rows, files = archive.rows(), archive.files()
    with captured_logs() as logs:
        report = await _compare(archive, 2**63)
    assert report == ComparisonReport(objects=3, parts=2, duplicates=1, unreadable=1, danglers=1)
    said = {record["event"]: record.get("location") for record in logs}
    assert said["object.missing"] == missing
    assert said["object.unreadable"] == cut
    assert said["object.duplicate"] == twin
    assert said["archive.compared"] is None
    assert (archive.rows(), archive.files()) == (rows, files)


async def test_what_arrived_since_the_start_is_passed_over(archive: Archive) -> None:
    before = time.time_ns()
    await archive.store([ct_image()])
    await _forget(archive)
    assert await _compare(archive, before) == ComparisonReport()
    assert archive.rows()["parts"] == []


async def test_it_goes_no_faster_than_it_may(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    await archive.store([ct_image(seed=number) for number in range(5)])
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    async with archive.opened() as (storage, index):
        adopter = adopter_of(archive, storage, index)
        comparison = Comparison(storage, index, adopter, objects_per_second=10, started_at_ns=time.time_ns())
        with monkeypatch.context() as patch:
            patch.setattr("scp_server.runtime.maintenance.comparison.asyncio.sleep", sleep)
            await comparison.run()
    assert rests == [0.2, 0.2, 0.1] * 2


async def test_a_failure_is_logged_and_ends_it(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    await archive.store([ct_image()])

    async def fail(*_arguments: object, **_options: object) -> Any:
        raise IndexUnavailable("locked")

    async with archive.opened() as (storage, index):
        adopter = adopter_of(archive, storage, index)
        comparison = Comparison(
            storage, index, adopter, objects_per_second=10_000, started_at_ns=time.time_ns()
        )
        monkeypatch.setattr(index, "list_parts", fail)
        with captured_logs() as logs:
            await comparison.run()
    assert [record["event"] for record in logs] == ["archive.not_compared"]


def _server(archive: Archive, **index: object) -> Server:
    sections: dict[str, Any] = {"listen": {"port": 0}, "http": {"port": 0}, "index": index}
    return Server(Archive.at(archive.data_dir, **sections).settings)


async def test_the_server_compares_after_it_is_ready(archive: Archive) -> None:
    await archive.store(two_section_ct())
    await _forget(archive)
    with captured_logs() as logs:
        async with _server(archive) as server:
            assert [record["event"] for record in logs].count("archive.compared") == 0
            (task,) = [each for each in asyncio.all_tasks() if each.get_name() == "runtime.compare"]
            await task
            assert (await server.index.totals()).parts == 2
    events = [record["event"] for record in logs]
    assert events.index("server.ready") < events.index("archive.compared")


async def test_a_server_that_stops_ends_its_comparison(archive: Archive) -> None:
    await archive.store([ct_image(seed=number) for number in range(3)])
    with captured_logs() as logs:
        async with _server(archive, compare_objects_per_second=1):
            (task,) = [each for each in asyncio.all_tasks() if each.get_name() == "runtime.compare"]
            assert not task.done()
        assert task.cancelled()
    assert "archive.compared" not in [record["event"] for record in logs]


async def test_it_can_be_switched_off(archive: Archive) -> None:
    async with _server(archive, compare_at_start=False):
        assert not [each for each in asyncio.all_tasks() if each.get_name() == "runtime.compare"]


async def test_an_object_adopted_while_it_is_being_stored_is_not_taken_back(tmp_path: Path) -> None:
    class Adopting(WatchedIndex):
        async def add(
            self, entry: IndexEntry, policy: DuplicatePolicy, first: Callable[[], None] | None = None
        ) -> AddResult:
            await super().add(entry, DuplicatePolicy.PARTS, first)
            return await super().add(entry, policy)

    async with StorageBench(tmp_path) as bench:
        service = StorageService(bench.storage, Adopting(bench.index, bench.steps), bench.config)
        await service.store(store_operation(ct_image()))
        (part,) = await bench.index.parts(ct_image().sop_instance_uid)
        assert list(bench.place.objects) == [part.location]
        assert await bench.left_in_flight() == set()
