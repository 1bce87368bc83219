from __future__ import annotations

import asyncio
import os
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scp_server.errors import StorageError, StorageFull
from scp_server.storage import layout
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.storage.sync import FreeSpace, SpaceReading
from scp_server.storage.template import LayoutTemplate
from scp_server.testing.stored_objects import (
    PREFIX,
    arrival_id,
    content,
    in_flight,
    listed,
    object_key,
    pattern,
    store,
)
from scp_server.testing.system_calls import SystemCalls

Opened = Callable[..., AbstractAsyncContextManager[FilesystemStorage]]
Files = Callable[[Path], list[str]]
FULL, PROCESS = Durability.FULL, Durability.PROCESS
EMPTY = ["incoming/", "objects/"]


# --- the order of steps


async def test_full_syncs_the_object_before_the_rename_and_the_directories_after(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        calls.log.clear()
        stored = await store(storage, b"x" * 5000)
        series = layout.directory_of(stored.location)
        study, shard = layout.directory_of(series), layout.directory_of(layout.directory_of(series))
        part = next(path for name, path in calls.log if path.endswith(".part"))
        steps = [step for step in calls.log if step[0] not in {"open", "close"}]
    assert steps == [
        ("writev", part),
        ("fdatasync", part),
        ("fsync", "incoming"),
        ("pwrite", "incoming/directories.1"),
        ("fdatasync", "incoming/directories.1"),
        ("mkdir", shard),
        ("fsync", "objects"),
        ("mkdir", study),
        ("fsync", shard),
        ("mkdir", series),
        ("fsync", study),
        ("rename", stored.location),
        ("fsync", series),
    ]


async def test_full_syncs_the_parent_of_every_folder_that_a_deeper_template_has(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    template = LayoutTemplate("{patient}/{modality}/{study_date}/{study_uid}/{series_uid}/{instance_uid}")
    async with opened(root, layout=template) as storage:
        calls.log.clear()
        stored = await store(storage, b"x")
        made = [step for step in calls.log if step[0] in {"mkdir", "fsync", "rename"}]
        calls.log.clear()
        await store(storage, b"y", key=object_key(arrival_id(), series="1.2.77"))
        again = [step for step in calls.log if step[0] in {"mkdir", "fsync", "rename"}]
    names = stored.location.split("/")
    levels = ["/".join(names[:depth]) for depth in range(1, 7)]
    assert made == [
        ("fsync", "incoming"),
        *[step for above, level in pairwise(levels) for step in (("mkdir", level), ("fsync", above))],
        ("rename", stored.location),
        ("fsync", levels[-1]),
    ]
    study = levels[-2]
    assert [step for step in again if step[0] != "rename"] == [
        ("mkdir", f"{study}/1.2.77"),
        ("fsync", study),
        ("fsync", f"{study}/1.2.77"),
    ]


async def test_an_object_in_a_known_series_costs_two_syncs_and_one_rename(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        await store(storage, b"first")
        calls.log.clear()
        await store(storage, b"x" * 500_000)
        assert calls.names() == ["open", "writev", "fdatasync", "close", "rename", "open", "fsync", "close"]


async def test_an_object_left_unsynced_costs_a_rename_and_no_sync(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        await store(storage, b"first")
        calls.log.clear()
        stored = await store(storage, b"x" * 5_000, may_leave_unsynced=True)
        assert calls.names() == ["open", "writev", "close", "rename"]
        assert stored.unsynced == PREFIX + b"x" * 5_000


@pytest.mark.parametrize("reason", ["flushed", "patched", "durability process"])
async def test_an_object_that_cannot_be_left_unsynced_is_synced_as_configured(
    opened: Opened, root: Path, calls: SystemCalls, reason: str
) -> None:
    durability = PROCESS if reason == "durability process" else FULL
    async with opened(root, durability) as storage:
        await store(storage, b"first")
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, PREFIX)
        await writer.write([b"x" * 5_000])
        if reason == "flushed":
            await writer.flush()
        if reason == "patched":
            await writer.patch(0, b"y")
        calls.log.clear()
        stored = await writer.commit(key, may_leave_unsynced=True)
        assert stored.unsynced is None
        assert ("fdatasync" in calls.names()) is (durability is FULL)


async def test_the_bytes_of_an_unsynced_object_are_synced_before_it_is_set_aside(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        for unsynced in (True, False):
            stored = await store(storage, b"x" * 5_000, may_leave_unsynced=unsynced)
            calls.log.clear()

            def take_away(path: str, _size_bytes: int) -> None:
                os.rename(path, root / "elsewhere")

            await storage.set_aside_stored(stored, take_away)
            assert (("fdatasync", stored.location) in calls.log) is unsynced
            names = calls.names()
            assert not unsynced or names.index("fdatasync") < names.index("rename")


async def test_process_syncs_nothing(opened: Opened, root: Path, calls: SystemCalls) -> None:
    async with opened(root, PROCESS) as storage:
        await store(storage, b"first")
        await store(storage, pattern(3_000_000))
        assert not {"fsync", "fdatasync"} & set(calls.names())


async def test_full_syncs_the_parents_of_directories_that_an_earlier_process_made(
    opened: Opened, root: Path, calls: SystemCalls
) -> None:
    async with opened(root, PROCESS) as storage:
        stored = await store(storage, b"x")
    async with opened(root) as storage:
        calls.log.clear()
        await store(storage, b"y")
        series = layout.directory_of(stored.location)
        synced = [path for name, path in calls.log if name == "fsync"]
        study = layout.directory_of(series)
        assert synced == ["incoming", "objects", layout.directory_of(study), study, series]


async def test_full_syncs_the_folders_that_open_makes(
    opened: Opened, tmp_path: Path, calls: SystemCalls
) -> None:
    calls.root = str(tmp_path)
    async with opened(tmp_path / "data" / "below"):
        steps = [step for step in calls.log if step[0] in {"mkdir", "fsync"}]
    assert steps == [
        ("mkdir", "data"),
        ("fsync", "."),
        ("mkdir", "data/below"),
        ("fsync", "data"),
        ("mkdir", "data/below/objects"),
        ("fsync", "data/below"),
        # What is there may have been made by a process that was killed before this.
        ("fsync", "data"),
        ("mkdir", "data/below/incoming"),
        ("fsync", "data/below"),
    ]


async def test_full_syncs_what_a_deletion_leaves(
    opened: Opened, files: Files, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        first, second = await store(storage, b"1"), await store(storage, b"2")
        calls.log.clear()
        await storage.delete(first.location)
        assert [step for step in calls.log if step[0] == "fsync"] == [
            ("fsync", layout.directory_of(first.location))
        ]
        calls.log.clear()
        await storage.delete(second.location)
        assert [step for step in calls.log if step[0] == "fsync"] == [("fsync", "objects")]
    assert files(root) == EMPTY


async def test_full_syncs_each_directory_once_for_all_that_are_deleted_together(
    opened: Opened, files: Files, root: Path, calls: SystemCalls
) -> None:
    async with opened(root) as storage:
        keys = [object_key(arrival_id(), series=f"1.{number % 3}") for number in range(12)]
        stored = [(await store(storage, b"1", key=key)).location for key in keys]
        directories = {layout.directory_of(location) for location in stored}
        calls.log.clear()
        # One is left in each series; then all are gone, and their study with them.
        assert await storage.delete_many(stored[3:]) == {}
        steps = [step for step in calls.log if step[0] in ("unlink", "fsync") and "objects" in step[1]]
        assert steps[:9] == [("unlink", location) for location in stored[3:]]
        assert sorted(steps[9:]) == sorted(("fsync", directory) for directory in directories)
        calls.log.clear()
        assert await storage.delete_many(stored) == {}
        assert [step for step in calls.log if step[0] == "fsync"] == [("fsync", "objects")]
    assert files(root) == EMPTY


async def test_a_small_object_costs_one_visit_to_a_thread(
    opened: Opened, root: Path, visits: list[Any]
) -> None:
    async with opened(root) as storage:
        await store(storage, b"the first reading of the free space")
        visits.clear()
        stored = await store(storage, *[pattern(65_536)] * 8)
        await storage.indexed(stored)
        assert len(visits) == 1


@pytest.mark.parametrize("size_bytes", [10, 5 << 20])
async def test_the_digest_is_computed_off_the_event_loop(opened: Opened, root: Path, size_bytes: int) -> None:
    threads: set[int] = set()

    class Watched:
        def update(self, data: Any) -> None:
            del data
            threads.add(threading.get_ident())

    async with opened(root) as storage:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, b"", Watched())
        await writer.write([bytes(size_bytes)])
        await writer.commit(key)
    assert threads
    assert threading.get_ident() not in threads


async def test_buffers_are_written_without_being_copied(
    opened: Opened, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    real = os.writev

    def writev(descriptor: int, buffers: Any) -> int:
        written.extend(buffers)
        return real(descriptor, buffers)

    monkeypatch.setattr(os, "writev", writev)
    views = [memoryview(pattern(65_536, number)) for number in range(4)]
    async with opened(root, PROCESS) as storage:
        await store(storage, *views)
    assert [any(view is buffer for buffer in written) for view in views] == [True] * 4


# --- opening


async def test_open_removes_part_files_and_nothing_else(opened: Opened, files: Files, root: Path) -> None:
    async with opened(root) as storage:
        stored = await store(storage, b"x")
        (root / "incoming" / "00ff.part").write_bytes(b"half")
        (root / "incoming" / "note.txt").write_bytes(b"mine")
        (root / "other").mkdir()
    async with opened(root) as storage:
        assert [name for name in files(root) if not name.startswith("objects")] == [
            "incoming/",
            "incoming/note.txt",
            "other/",
        ]
        assert set(await listed(storage)) == {stored.location}


async def test_open_raises_storage_error_where_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    storage = FilesystemStorage(FilesystemStorageConfig(tmp_path / "file" / "data"))
    with pytest.raises(StorageError):
        await storage.open()
    await storage.close()


async def test_a_storage_opens_once(opened: Opened, root: Path) -> None:
    async with opened(root) as storage:
        with pytest.raises(StorageError):
            await storage.open()


async def test_a_rename_across_filesystems_is_refused_at_open(
    opened: Opened, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stat(path: Any, *args: Any, **kwargs: Any) -> Any:
        result = real(path, *args, **kwargs)
        if str(path) == f"{root}/objects":
            return SimpleNamespace(st_dev=result.st_dev + 1, st_mode=result.st_mode)
        return result

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(StorageError, match="different filesystems"):
        async with opened(root):
            pass


async def test_a_relative_root_survives_a_change_of_folder(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with opened(Path("data")) as storage:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        stored = await store(storage, b"x")
        assert (tmp_path / "data" / stored.location).is_file()


# --- free space


class _Disk:
    """A statvfs that says what the test wants, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
        self.total, self.free, self.readings = total, free, 0
        monkeypatch.setattr(os, "statvfs", self._read)

    def _read(self, path: object) -> Any:
        self.readings += 1
        return SimpleNamespace(f_frsize=4096, f_blocks=self.total // 4096, f_bavail=self.free // 4096)


GIB = 1 << 30


@pytest.mark.parametrize(
    ("reserve", "total", "least"),
    [(None, 1000 * GIB, GIB), (None, 10 * GIB, 10 * GIB // 50), (8192, 10 * GIB, 8192), (0, 10 * GIB, 0)],
)
async def test_begin_refuses_below_the_reserve(
    opened: Opened, root: Path, monkeypatch: pytest.MonkeyPatch, reserve: int | None, total: int, least: int
) -> None:
    disk = _Disk(monkeypatch, total, least + 4096)
    async with opened(root, reserve_bytes=reserve) as storage:
        await store(storage, b"x")
    async with opened(root, reserve_bytes=reserve) as storage:
        disk.free = max(0, least // 4096 * 4096 - 4096)
        if least:
            with pytest.raises(StorageFull):
                await storage.begin(arrival_id(), b"")
        else:
            await (await storage.begin(arrival_id(), b"")).abort()


async def test_every_object_is_measured_against_a_new_reading(
    opened: Opened, files: Files, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = _Disk(monkeypatch, 100 * GIB, 50 * GIB)
    async with opened(root, reserve_bytes=None) as storage:
        first = await storage.begin(arrival_id(), b"")
        second_id = arrival_id()
        second = await storage.begin(second_id, b"")
        disk.free = 0
        with pytest.raises(StorageFull):
            await first.write([bytes(2 << 20)])
        with pytest.raises(StorageFull):
            await second.commit(object_key(second_id))
        with pytest.raises(StorageFull):
            await storage.begin(arrival_id(), b"")
        assert files(root) == EMPTY
        disk.free = 50 * GIB
        await store(storage, b"goes on")


async def test_a_large_object_does_not_eat_the_reserve(
    opened: Opened, files: Files, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = _Disk(monkeypatch, 100 * GIB, 50 * GIB)
    async with opened(root, reserve_bytes=None) as storage:
        writer = await storage.begin(arrival_id(), b"")
        await writer.write([bytes(2 << 20)])
        disk.free = GIB - 4096
        with pytest.raises(StorageFull):
            await writer.write([bytes(2 << 20)])
        assert files(root) == EMPTY


async def test_no_more_calls_block_at_once_than_the_threads(
    opened: Opened, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked, go_on, threads = threading.Semaphore(0), threading.Event(), list[int]()

    def block(_space: FreeSpace) -> SpaceReading:
        threads.append(threading.get_ident())
        blocked.release()
        go_on.wait(10)
        return SpaceReading(1, 1, 0)

    async with opened(root, threads=2) as storage:
        monkeypatch.setattr(FreeSpace, "read", block)
        calls = asyncio.gather(*(storage.space() for _ in range(3)))
        for _ in range(2):
            assert await asyncio.to_thread(blocked.acquire, True, 10)
        go_on.set()
        await calls
    assert len(threads) == 3
    assert len(set(threads)) == 2


async def test_a_busy_storage_begins_on_a_reading_of_the_last_second(
    opened: Opened, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = _Disk(monkeypatch, 100 * GIB, 50 * GIB)
    now = [1000.0]
    monkeypatch.setattr("scp_server.storage.sync.time", SimpleNamespace(monotonic=lambda: now[0]))
    async with opened(root, reserve_bytes=None) as storage:
        await store(storage, b"x")
        readings = disk.readings
        now[0] += 0.9
        await (await storage.begin(arrival_id(), b"")).abort()
        assert disk.readings == readings
        now[0] += 0.2
        await (await storage.begin(arrival_id(), b"")).abort()
        assert disk.readings == readings + 1


# --- layout and directories on the disk


async def test_two_uids_with_one_hash_are_both_kept(
    opened: Opened, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scp_server.storage.template._hashed", lambda uid: "ab" * 10)
    async with opened(root) as storage:
        first = await store(storage, b"1", key=object_key(arrival_id(), instance="1.1", study="1"))
        second = await store(storage, b"2", key=object_key(arrival_id(), instance="1.2", study="2"))
        assert (await content(storage, first.location))[-1:] == b"1"
        assert (await content(storage, second.location))[-1:] == b"2"


_TEMPLATES = (
    "{study}/{series}/{instance}",
    "{patient}/{modality}/{study_date}/{study}/{series}/{instance}",
    "{series_uid}/{instance_uid}",
)


async def test_a_change_of_template_leaves_old_objects_found(
    opened: Opened, files: Files, root: Path
) -> None:
    stored: list[str] = []
    for number, template in enumerate(_TEMPLATES):
        async with opened(root, layout=LayoutTemplate(template)) as storage:
            stored.append((await store(storage, b"%d" % number)).location)
            assert set(await listed(storage)) == set(stored)
            # Nobody said that these are indexed.
            assert await in_flight(storage) == set(stored[:-1])
    async with opened(root) as storage:
        assert list(await storage.sizes(stored)) == [len(PREFIX) + 1] * 3
        for number, location in enumerate(stored):
            assert await content(storage, location) == PREFIX + b"%d" % number
            await storage.delete(location)
        await storage.settled()
    assert files(root) == EMPTY


async def test_another_template_holds_for_objects_that_are_begun_after_it(opened: Opened, root: Path) -> None:
    async with opened(root) as storage:
        key = object_key(arrival_id(), series="1.2.3")
        before = await storage.begin(key.arrival_id, PREFIX)
        storage.layout = LayoutTemplate("{series_uid}/{instance}")
        after = await store(storage, b"x", key=object_key(arrival_id(), series="1.2.3"))
        assert not (await before.commit(key)).location.startswith("objects/1.2.3/")
        assert after.location.startswith("objects/1.2.3/")


async def test_symbolic_links_are_no_objects(opened: Opened, root: Path, tmp_path: Path) -> None:
    async with opened(root) as storage:
        stored = await store(storage, b"x")
        secret = tmp_path / "outside" / "A-0f.dcm"
        secret.parent.mkdir()
        secret.write_bytes(b"secret")
        series = (root / stored.location).parent
        (series / "A-0f.dcm").symlink_to(secret)
        (root / "objects" / "LINK").symlink_to(secret.parent)
        assert set(await listed(storage)) == {stored.location}
        linked = str((series / "A-0f.dcm").relative_to(root))
        assert list(await storage.sizes([linked])) == [None]
        with pytest.raises(StorageError):
            await content(storage, linked)


async def test_a_series_folder_that_was_removed_by_hand_is_made_again(opened: Opened, root: Path) -> None:
    async with opened(root) as storage:
        first = await store(storage, b"1")
        (root / first.location).unlink()
        for folder in list((root / first.location).parents)[:3]:
            folder.rmdir()
        second = await store(storage, b"2")
        assert set(await listed(storage)) == {second.location}


async def test_foreign_files_among_the_objects_are_neither_listed_nor_read(
    opened: Opened, root: Path
) -> None:
    async with opened(root) as storage:
        stored = await store(storage, b"x")
        series = (root / stored.location).parent
        (series / "notes.txt").write_bytes(b"1")
        (root / "objects" / "readme").write_bytes(b"2")
        (root / "objects" / "zz").mkdir()
        (root / "objects" / "zz" / "file").write_bytes(b"3")
        assert set(await listed(storage)) == {stored.location}
        with pytest.raises(StorageError):
            await content(storage, f"{layout.directory_of(stored.location)}/notes.txt")
        await storage.delete(stored.location)
        assert (series / "notes.txt").exists()


# --- memory


@pytest.mark.parametrize("chunk", [65_536, 1 << 20])
async def test_a_large_object_holds_a_few_mebibytes(opened: Opened, root: Path, chunk: int) -> None:
    size, digest = 256 << 20, sha256()
    async with opened(root, PROCESS) as storage:
        key = object_key(arrival_id())
        writer = await storage.begin(key.arrival_id, b"", digest)
        tracemalloc.start()
        try:
            for number in range(size // chunk):
                await writer.write([memoryview(number.to_bytes(8, "big") * (chunk // 8))])
                assert writer.held_bytes <= (1 << 20) + chunk
            stored = await writer.commit(key)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert stored.size_bytes == size
        assert peak < 6 << 20
        last = (size // chunk - 1).to_bytes(8, "big")
        assert await content(storage, stored.location, size - 8) == last
        await storage.delete(stored.location)


@pytest.mark.parametrize("first", [1, 2048])
async def test_tiny_fragments_cost_no_more_than_the_buffer(opened: Opened, root: Path, first: int) -> None:
    """One byte in each PDV, but one PDV in each 64 KiB that keeps alive all that was read with it."""
    async with opened(root, PROCESS, write_buffer_bytes=1 << 18) as storage:
        writer = await storage.begin(arrival_id(), b"")
        tracemalloc.start()
        try:
            for _ in range(40):
                received = memoryview(bytes(65_536))
                rest = [received[place : place + 1] for place in range(first, 65_536, 13)]
                await writer.write([received[:first], *rest])
                del received, rest
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        await writer.abort()
        # The fragments of one read in the test itself are most of it.
        assert peak < 1_800_000
