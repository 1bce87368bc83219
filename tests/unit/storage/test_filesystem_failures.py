"""What fails, what dies and what is cancelled, at every step."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import StorageError, StorageFull
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.testing.stored_objects import (
    arrival_id,
    content,
    in_flight,
    listed,
    object_key,
    pattern,
    store,
)
from scp_server.testing.system_calls import Killed, SystemCalls

Opened = Callable[..., AbstractAsyncContextManager[FilesystemStorage]]
Files = Callable[[Path], list[str]]
FULL, PROCESS = Durability.FULL, Durability.PROCESS
EMPTY = ["incoming/", "objects/"]


@contextmanager
def no_descriptor_kept() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


# --- what fails, and what dies


def _count_of_steps(durability: Durability) -> int:
    return 25 if durability is FULL else 10


@pytest.mark.parametrize("durability", [FULL, PROCESS])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("size", [100, 3000])
async def test_an_error_at_any_step_leaves_nothing_and_the_next_object_is_stored(
    opened: Opened,
    files: Files,
    tmp_path: Path,
    root: Path,
    calls: SystemCalls,
    durability: Durability,
    error: int,
    size: int,
) -> None:
    step, failures = 0, 0
    while True:
        root = Path(calls.root) / f"{step}"
        with no_descriptor_kept():
            async with opened(root, durability, write_buffer_bytes=1000) as storage:
                calls.fail(step, error)
                failure = await _failure_of(_store_patched(storage, size))
                if failure is None:
                    assert len(calls.log) <= step
                    break
                assert isinstance(failure, StorageFull) == (error != errno.EIO)
                assert str(root) not in str(failure)
                assert files(root) == EMPTY
                failures += 1
                calls.before = None
                stored = await _store_patched(storage, size)
                assert (await content(storage, stored.location))[1:] == b"P" + pattern(size)
            async with opened(root, durability) as again:
                assert await in_flight(again) == {stored.location}
                await again.settled()
                assert os.listdir(root / "incoming") == []
        step += 1
    assert failures == step >= _count_of_steps(durability)


async def _failure_of(storing: Awaitable[object]) -> StorageError | None:
    try:
        await storing
    except StorageError as failure:
        return failure
    return None


async def _store_patched(storage: FilesystemStorage, size: int) -> Any:
    key = object_key(arrival_id())
    writer = await storage.begin(key.arrival_id, b"pp")
    try:
        data = pattern(size)
        for start in range(0, size, 600):
            await writer.write([data[start : start + 600]])
        await writer.patch(1, b"P")
        return await writer.commit(key)
    finally:
        await writer.abort()


@pytest.mark.parametrize("durability", [FULL, PROCESS])
@pytest.mark.parametrize("size", [100, 3000])
async def test_a_process_killed_at_any_step_leaves_a_whole_object_in_flight_or_none(
    opened: Opened,
    files: Files,
    root: Path,
    calls: SystemCalls,
    durability: Durability,
    size: int,
) -> None:
    step, seen = 0, set()
    while True:
        root = Path(calls.root) / f"{step}"
        storage = FilesystemStorage(
            FilesystemStorageConfig(root, durability, reserve_bytes=0, write_buffer_bytes=1000)
        )
        await storage.open()
        calls.kill(step)
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, b"pp")
        dead = False
        try:
            data = pattern(size)
            for start in range(0, size, 600):
                await writer.write([data[start : start + 600]])
            await writer.commit(key)
        except Killed:
            dead = True
        calls.before = None
        # The heir opens while the dead one still holds its descriptors, as the kernel does not care.
        async with opened(root, durability) as heir:
            visible = await listed(heir)
            assert await in_flight(heir) == set(visible)
            assert not [name for name in files(root) if name.endswith(".part")]
            for location in visible:
                assert await content(heir, location) == b"pp" + pattern(size)
            seen.add(len(visible))
            await heir.settled()
            await store(heir, b"next")
        await storage.close()
        if not dead:
            break
        step += 1
    assert step >= _count_of_steps(durability) - 3
    assert seen == {0, 1}


async def test_a_visible_object_that_cannot_be_removed_stays_in_flight(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        await storage.indexed(await store(storage, b"first"))

        def before(number: int, name: str, path: str) -> None:
            if (name == "fsync" and path.startswith("objects/")) or name == "unlink":
                raise OSError(errno.EIO, "broken")

        calls.before = before
        with pytest.raises(StorageError):
            await store(storage, b"second")
        assert len(await listed(storage)) == 2
    calls.before = None
    async with opened(root) as again:
        assert await in_flight(again) == set(await listed(again))


def _read_only(number: int, name: str, path: str) -> None:
    """What the kernel says once it has turned a disk read-only, to open files as well."""
    if name not in ("close", "fdatasync"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize("by", ["the next object", "the close"])
@pytest.mark.parametrize("at", [("writev", ".part"), ("fsync", "objects/")], ids=["a part", "an object"])
async def test_what_could_not_be_removed_goes_once_the_disk_works_again(
    opened: Opened, files: Files, root: Path, calls: SystemCalls, at: tuple[str, str], by: str
) -> None:
    async with opened(root) as storage:
        reached = False

        def before(number: int, name: str, path: str) -> None:
            nonlocal reached
            reached = reached or (name == at[0] and at[1] in path)
            if reached:
                _read_only(number, name, path)

        calls.before = before
        with pytest.raises(StorageError):
            await store(storage, b"refused")
        calls.before = None
        assert any(name.endswith((".part", ".dcm")) for name in files(root)), "the disk let it go"
        kept = {(await store(storage, b"kept")).location} if by == "the next object" else set()
        if kept:
            assert set(await listed(storage)) == kept
    assert [name for name in files(root) if name.endswith((".part", ".dcm"))] == sorted(kept)
    async with opened(root) as again:
        assert await in_flight(again) == kept


async def test_a_deletion_that_failed_is_made_up_for_after_the_next_object(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        stored = await store(storage, b"unwanted")
        calls.before = _read_only
        for _ in range(2):
            with pytest.raises(StorageError, match="Read-only"):
                await storage.delete(stored.location)
        calls.before = None
        kept = await store(storage, b"kept")
        assert set(await listed(storage)) == {kept.location}


async def test_of_many_those_that_cannot_be_removed_are_named_and_made_up_for(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        stored = [(await store(storage, b"%d" % number)).location for number in range(4)]
        stuck = stored[1]

        def before(number: int, name: str, path: str) -> None:
            if name == "unlink" and path == stuck:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        calls.before = before
        assert await storage.delete_many([*stored[:3], stored[0]]) == {
            stuck: "cannot delete: Read-only file system"
        }
        assert set(await listed(storage)) == {stuck, stored[3]}
        assert await storage.not_yet_indexed(stored) == {stuck, stored[3]}
        calls.before = None
        kept = (await store(storage, b"kept")).location
        assert set(await listed(storage)) == {stored[3], kept}


async def test_where_a_directory_cannot_be_synced_none_of_many_counts_as_gone(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        stored = [(await store(storage, b"%d" % number)).location for number in range(3)]

        def before(number: int, name: str, path: str) -> None:
            if name == "fsync":
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        calls.before = before
        assert set(await storage.delete_many(stored[:2])) == set(stored[:2])
        calls.before = None
        calls.log.clear()
        assert await storage.delete_many(stored[:2]) == {}
        assert ("fsync", str(Path(stored[0]).parent)) in calls.log
        assert set(await listed(storage)) == {stored[2]}


async def test_one_file_that_can_never_be_removed_hinders_nothing(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        stuck = await store(storage, b"stuck")
        free = await store(storage, b"free")

        def before(number: int, name: str, path: str) -> None:
            if name == "unlink" and path == stuck.location:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        calls.before = before
        with pytest.raises(StorageError):
            await storage.delete(stuck.location)
        calls.before = _read_only
        with pytest.raises(StorageError):
            await storage.delete(free.location)
        calls.before = before
        kept = {(await store(storage, b"%d" % number)).location for number in range(3)}
        assert set(await listed(storage)) == kept | {stuck.location}


async def test_a_failing_digest_leaves_nothing(opened: Opened, files: Files, root: Path) -> None:
    class Broken:
        def update(self, data: object, /) -> None:
            raise MemoryError("no digest")

    async with opened(root) as storage:
        writer = await storage.begin(arrival_id(), b"", Broken())
        with pytest.raises(MemoryError):
            await writer.write([bytes(2 << 20)])
        assert files(root) == EMPTY
        with pytest.raises(StorageError):
            await writer.write([b"more"])
        await writer.abort()


async def test_a_part_file_of_another_writer_is_not_touched(opened: Opened, root: Path) -> None:
    async with opened(root) as storage:
        key = object_key(arrival_id())
        first = await storage.begin(key.arrival_id, b"first")
        await first.write([pattern(2_000_000)])
        with pytest.raises(StorageError):
            await store(storage, key=key, prefix=b"second")
        stored = await first.commit(key)
        assert await content(storage, stored.location) == b"first" + pattern(2_000_000)


# --- cancellation


class _Gate:
    """Holds a thread before a chosen system call until it is let through."""

    def __init__(self, calls: SystemCalls, name: str, path: str) -> None:
        self.reached = threading.Event()
        self.let_through = threading.Event()

        def before(number: int, called: str, of: str) -> None:
            if called == name and path in of and not self.reached.is_set():
                self.reached.set()
                assert self.let_through.wait(10)

        calls.before = before

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 10)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("open", ".part"),
        ("writev", ".part"),
        ("fdatasync", ".part"),
        ("rename", "objects/"),
        ("fsync", "objects/"),
    ],
)
async def test_abort_undoes_a_commit_whose_caller_was_cancelled(
    opened: Opened, files: Files, root: Path, calls: SystemCalls, name: str, path: str
) -> None:
    async with opened(root) as storage:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, b"prefix")
        gate = _Gate(calls, name, path)
        commit = asyncio.create_task(writer.commit(key))
        await gate.wait()
        commit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await commit
        abort = asyncio.create_task(writer.abort())
        await asyncio.sleep(0)
        gate.let_through.set()
        await abort
        assert files(root) == EMPTY
    async with opened(root) as again:
        assert await in_flight(again) == set()


async def test_abort_waits_for_a_write_in_hand_and_survives_its_own_cancellation(
    opened: Opened, files: Files, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        writer = await storage.begin(arrival_id(), b"prefix")
        gate = _Gate(calls, "writev", ".part")
        write = asyncio.create_task(writer.write([bytes(2 << 20)]))
        await gate.wait()
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        with pytest.raises(StorageError):
            await writer.write([b"more"])
        abort = asyncio.create_task(writer.abort())
        await asyncio.sleep(0)
        abort.cancel()
        with pytest.raises(asyncio.CancelledError):
            await abort
        gate.let_through.set()
        await writer.abort()
        assert files(root) == EMPTY


async def test_close_waits_for_a_cancelled_abort(
    opened: Opened, files: Files, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        writer = await storage.begin(arrival_id(), b"prefix")
        gate = _Gate(calls, "writev", ".part")
        write = asyncio.create_task(writer.write([bytes(2 << 20)]))
        await gate.wait()
        write.cancel()
        await asyncio.wait([write])
        abort = asyncio.create_task(writer.abort())
        await asyncio.sleep(0)
        abort.cancel()
        await asyncio.wait([abort])
        close = asyncio.create_task(storage.close())
        await asyncio.sleep(0)
        assert not close.done()
        gate.let_through.set()
        await close
        assert files(root) == EMPTY


async def test_close_waits_for_a_commit_in_hand_before_it_closes_the_ledger(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    with no_descriptor_kept():
        async with opened(root) as storage:
            gate = _Gate(calls, "fdatasync", ".part")
            commit = asyncio.create_task(store(storage, b"x"))
            await gate.wait()
            close = asyncio.create_task(storage.close())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(close), 0.05)
            gate.let_through.set()
            await close
            stored = await commit
    async with opened(root) as again:
        assert await in_flight(again) == {stored.location}


async def test_failed_commits_leave_no_ledger(opened: Opened, root: Path, calls: SystemCalls) -> None:
    async with opened(root) as storage:

        def before(number: int, name: str, path: str) -> None:
            if name == "rename":
                raise OSError(errno.EIO, "broken")

        calls.before = before
        for _ in range(3):
            with pytest.raises(StorageError):
                await store(storage, b"x")
        calls.before = None
    assert os.listdir(root / "incoming") == []


async def test_the_event_loop_runs_while_the_disk_hangs(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root, threads=1) as storage:
        gate = _Gate(calls, "fdatasync", ".part")
        slow = asyncio.create_task(store(storage, b"slow"))
        await gate.wait()
        writer = await asyncio.wait_for(storage.begin(arrival_id(), b""), 5)
        await asyncio.wait_for(writer.write([bytes(1000)]), 5)
        await asyncio.wait_for(writer.abort(), 5)
        gate.let_through.set()
        assert (await slow).size_bytes > 0


# --- directories that come and go under a commit


async def test_a_series_directory_removed_before_the_rename_is_made_again(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        first = await store(storage, b"first")
        gate = _Gate(calls, "rename", "objects/")
        storing = asyncio.create_task(store(storage, b"second"))
        await gate.wait()
        await storage.delete(first.location)
        assert not (root / first.location).parent.exists()
        gate.let_through.set()
        second = await storing
        assert set(await listed(storage)) == {second.location}
        assert calls.names().count("rename") == 3


async def test_a_commit_waits_until_the_directory_it_renamed_into_is_durable(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    """One commit has looked at the directory; it is removed, and another commit is just making it again."""
    async with opened(root) as storage:
        first = await store(storage, b"first")
        study = str(Path(first.location).parents[1])
        renaming, making = threading.Event(), threading.Event()
        rename, make = threading.Event(), threading.Event()

        def before(number: int, name: str, path: str) -> None:
            if name == "rename" and not renaming.is_set():
                renaming.set()
                assert rename.wait(10)
            elif name == "fsync" and path == study and not making.is_set():
                making.set()
                assert make.wait(10)

        calls.before = before
        quick = asyncio.create_task(store(storage, b"quick"))
        assert await asyncio.to_thread(renaming.wait, 10)
        await storage.delete(first.location)
        maker = asyncio.create_task(store(storage, b"maker"))
        assert await asyncio.to_thread(making.wait, 10)
        rename.set()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(quick), 0.1)
        make.set()
        stored = [await quick, await maker]
        assert set(await listed(storage)) == {each.location for each in stored}
