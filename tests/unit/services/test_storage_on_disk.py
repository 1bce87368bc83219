"""The storage service over the real filesystem storage, stopped at each of its system calls."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from scp_server.objects.changes import Changes
from scp_server.pipeline.filters import ObjectFilter
from scp_server.pipeline.rules import CoerceRule, ObjectRules
from scp_server.runtime.recovery import recover
from scp_server.services.storage import StorageService
from scp_server.services.unsettled import UnsettledLimits, UnsettledObjects
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.testing.dicos_objects import dicos_tdr
from scp_server.testing.fake_operation import PRESSURE, FakeOperation, store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.storage_bench import StorageBench
from scp_server.testing.stored_objects import in_flight, listed
from scp_server.testing.system_calls import SystemCalls

MOST_CALLS = 40


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SystemCalls:
    """The system calls on the data folder."""
    return SystemCalls(tmp_path / "data", monkeypatch)


def _storage(tmp_path: Path) -> FilesystemStorage:
    return FilesystemStorage(FilesystemStorageConfig(tmp_path / "data", Durability.FULL, reserve_bytes=0))


def _bench(tmp_path: Path) -> StorageBench:
    return StorageBench(tmp_path, _storage(tmp_path))


def _staged() -> FakeOperation:
    stored = dicos_tdr()
    return store_operation(stored, [[stored.dataset[:300]], PRESSURE, [stored.dataset[300:]]])


async def _calls_of_a_store(tmp_path: Path, calls: SystemCalls) -> list[str]:
    async with _bench(tmp_path) as bench:
        calls.log.clear()
        assert await bench.status(_staged()) == 0x0000
        return calls.names()


async def _after_a_restart(tmp_path: Path) -> tuple[int, int]:
    """How many objects are visible, and how many indexed, once start-up has healed."""
    async with _bench(tmp_path) as bench:
        await recover(bench.storage, bench.index, bench.config)
        assert not list((tmp_path / "data" / "incoming").glob("*.part"))
        return len(await listed(bench.storage)), (await bench.index.totals()).parts


async def test_a_store_makes_the_calls_that_its_durability_needs(tmp_path: Path, calls: SystemCalls) -> None:
    names = await _calls_of_a_store(tmp_path, calls)
    assert names.index("fdatasync") < names.index("rename") < len(names) - 1 - names[::-1].index("fsync")
    assert len(names) < MOST_CALLS


@pytest.mark.parametrize("number", range(MOST_CALLS))
async def test_cancelled_at_any_system_call_the_object_is_gone_or_adopted_never_half(
    tmp_path: Path, calls: SystemCalls, number: int
) -> None:
    loop = asyncio.get_running_loop()
    async with _bench(tmp_path) as bench:
        reached, go_on = asyncio.Event(), threading.Event()

        def before(at: int, _name: str, _path: str) -> None:
            if at == number:
                loop.call_soon_threadsafe(reached.set)
                go_on.wait(10)

        calls.log.clear()
        calls.before = before
        task = asyncio.create_task(bench.service.store(_staged()))
        waiting = asyncio.create_task(reached.wait())
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        was_reached = reached.is_set()
        task.cancel()
        go_on.set()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        calls.before = None
        if was_reached:
            assert isinstance(outcome, asyncio.CancelledError)
            assert await listed(bench.storage) == {}
        assert await bench.index.unknown_locations(list(await listed(bench.storage))) == []
    assert await _after_a_restart(tmp_path) == ((0, 0) if was_reached else (1, 1))


@pytest.mark.parametrize("number", range(MOST_CALLS))
async def test_failing_at_any_system_call_is_a700_or_a_success_and_nothing_between(
    tmp_path: Path, calls: SystemCalls, number: int
) -> None:
    async with _bench(tmp_path) as bench:
        calls.fail(number, errno.ENOSPC)
        status = await bench.status(_staged())
        assert status in (0x0000, 0xA700)
        kept = status == 0x0000
        calls.before = None
        assert len(await listed(bench.storage)) == kept
        assert (await bench.index.totals()).parts == kept
        assert await bench.status(_staged()) == 0x0000
    assert await _after_a_restart(tmp_path) == (1, 1)


def _small_bench(
    tmp_path: Path, durability: Durability = Durability.PROCESS, rules: ObjectRules | None = None
) -> StorageBench:
    """Small objects are deferred here, and with `full` left unsynced."""
    config = FilesystemStorageConfig(tmp_path / "data", durability, reserve_bytes=0)
    storage = FilesystemStorage(config)
    bench = StorageBench(tmp_path, storage)
    # Watched writers defer nothing.
    unsettled = UnsettledObjects(UnsettledLimits())
    bench.service = StorageService(storage, bench.index, bench.config, unsettled=unsettled, rules=rules)
    return bench


@pytest.mark.parametrize("durability", Durability)
@pytest.mark.parametrize("number", range(12))
async def test_a_small_object_failing_at_any_system_call_is_a700_or_a_success_and_nothing_between(
    tmp_path: Path, calls: SystemCalls, number: int, durability: Durability
) -> None:
    async with _small_bench(tmp_path, durability) as bench:
        calls.fail(number, errno.ENOSPC)
        status = await bench.status(store_operation(dicos_tdr()))
        calls.before = None
        kept = status == 0x0000
        assert status in (0x0000, 0xA700)
        assert len(await listed(bench.storage)) == kept
        assert (await bench.index.totals()).parts == kept
        assert await bench.status(store_operation(dicos_tdr())) == 0x0000
    assert await _after_a_restart(tmp_path) == (1, 1)


async def test_small_objects_that_are_changed_are_left_unsynced_whole_and_known_by_what_they_are(
    tmp_path: Path,
) -> None:
    """The first in a directory that is made for it, the second deferred."""
    changes = Changes.of(set={"PatientComments": "a comment"})
    rules = ObjectRules(coerce=(CoerceRule("rule", ObjectFilter(), changes),))
    async with _small_bench(tmp_path, Durability.FULL, rules) as bench:
        for stored in (ct_image(seed=1), ct_image(seed=2)):
            assert await bench.status(store_operation(stored)) == 0x0000
            (part,) = await bench.index.parts(stored.sop_instance_uid)
            content = (tmp_path / "data" / part.location).read_bytes()
            assert await bench.index.unsynced_contents([part.location]) == {part.location: content}
            assert part.stored_digest == blake3(content[part.dataset_offset_bytes :]).digest()
            assert part.digest == blake3(stored.dataset).digest()
        assert not list((tmp_path / "data" / "incoming").glob("*.part"))


async def test_cancelled_while_the_index_is_asked_the_object_is_found_at_the_next_start(
    tmp_path: Path,
) -> None:
    async with _bench(tmp_path) as bench:
        reached = bench.steps.stop_at("add")
        task = asyncio.create_task(bench.service.store(_staged()))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        visible = set(await listed(bench.storage))
        assert len(visible) == 1
    successor = _storage(tmp_path)
    await successor.open()
    assert await in_flight(successor) == visible
    await successor.close()
    assert await _after_a_restart(tmp_path) == (1, 1)
