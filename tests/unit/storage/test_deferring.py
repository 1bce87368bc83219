"""Small objects that are written in the thread of whoever indexes them, and when they are not."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import StorageError, StorageFull
from scp_server.storage.base import DeferredObject
from scp_server.storage.filesystem import Durability, FilesystemStorage
from scp_server.storage.writer import DEFERRED_BYTES, Pace
from scp_server.testing.stored_objects import arrival_id, content, listed, object_key, pattern, store
from scp_server.testing.system_calls import SystemCalls

Opened = Callable[..., AbstractAsyncContextManager[FilesystemStorage]]
FULL, PROCESS = Durability.FULL, Durability.PROCESS


async def _deferred(storage: FilesystemStorage, size: int = 100, **steps: bool) -> DeferredObject | None:
    key = object_key(arrival_id())
    writer = await storage.begin(key.arrival_id, b"P")
    await writer.write([pattern(size - 1)])
    if steps.get("flush"):
        await writer.flush()
    if steps.get("patch"):
        await writer.patch(0, b"Q")
    deferred = writer.defer(key, may_leave_unsynced=steps.get("may_leave_unsynced", False))
    if deferred is None:
        await writer.abort()
    return deferred


async def test_an_object_is_deferred_up_to_the_largest_that_is_hashed_in_the_loop(
    opened: Opened, root: Path, visits: list[Any]
) -> None:
    async with opened(root, PROCESS) as storage:
        await storage.begin(arrival_id(), b"")  # Which takes the first reading of the free space.
        visits.clear()
        assert await _deferred(storage, DEFERRED_BYTES) is not None
        assert await _deferred(storage, DEFERRED_BYTES + 1) is None
        assert visits == [], "nobody went to a thread of the storage"


@pytest.mark.parametrize("step", ["flush", "patch"])
async def test_what_is_on_disk_already_or_still_changes_is_not_deferred(
    opened: Opened, root: Path, step: str
) -> None:
    async with opened(root, PROCESS) as storage:
        assert await _deferred(storage, **{step: True}) is None


async def test_what_may_be_left_unsynced_is_deferred_where_no_directory_is_to_be_synced(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root, FULL) as storage:
        assert await _deferred(storage, may_leave_unsynced=True) is None, "its directory is to be made"
        await store(storage, b"x")
        calls.log.clear()
        deferred = await _deferred(storage, may_leave_unsynced=True)
        assert deferred is not None
        assert deferred.stored.unsynced == b"P" + pattern(99)
        assert calls.log == []
        deferred.place()
        assert calls.names() == ["open", "writev", "close", "rename"]
        assert await content(storage, deferred.stored.location) == deferred.stored.unsynced


async def test_what_is_to_be_synced_is_not_deferred(opened: Opened, root: Path) -> None:
    async with opened(root, FULL) as storage:
        assert await _deferred(storage) is None


@pytest.mark.parametrize(("error", "raised"), [(errno.ENOSPC, StorageFull), (errno.EIO, StorageError)])
async def test_an_error_at_any_step_of_placing_leaves_nothing(
    opened: Opened,
    root: Path,
    calls: SystemCalls,
    monkeypatch: pytest.MonkeyPatch,
    error: int,
    raised: type[Exception],
) -> None:
    async with opened(root, PROCESS) as storage:
        workshop = storage._workshop
        assert workshop is not None
        monkeypatch.setattr(workshop.pace, "took", lambda _seconds: None)
        step = 0
        while True:
            deferred = await _deferred(storage)
            assert deferred is not None
            calls.fail(step, error)
            failure = _failure_of(deferred)
            calls.before = None
            if failure is None:
                break
            assert type(failure) is raised
            assert await listed(storage) == {}
            assert not list((root / "incoming").glob("*.part"))
            step += 1
        assert step >= 5
        assert await listed(storage) == {deferred.stored.location: deferred.stored.size_bytes}


def _failure_of(deferred: DeferredObject) -> StorageError | None:
    try:
        deferred.place()
    except StorageError as failure:
        return failure
    return None


async def test_a_disk_that_was_slow_just_now_is_left_to_the_storages_threads(
    opened: Opened, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(root, PROCESS) as storage:
        now = [10.0]
        workshop = storage._workshop
        assert workshop is not None
        monkeypatch.setattr(workshop.pace, "_clock", lambda: now[0])
        workshop.pace.took(0.004)
        assert await _deferred(storage) is not None
        workshop.pace.took(0.006)
        assert await _deferred(storage) is None
        now[0] += 0.99
        assert await _deferred(storage) is None
        now[0] += 0.02
        assert await _deferred(storage) is not None


def test_the_disk_is_taken_for_quick_until_it_is_seen_to_be_slow() -> None:
    assert Pace().is_quick
