"""One system call for many objects, where it is to be relied on; else a sync of each file and directory."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace

import pytest

from scp_server.errors import StorageError, StorageFull
from scp_server.storage import late_sync
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.storage.late_sync import syncfs_for
from scp_server.storage.layout import directory_of
from scp_server.testing.stored_objects import PREFIX, arrival_id, content, object_key, store
from scp_server.testing.system_calls import SystemCalls

Opened = Callable[..., AbstractAsyncContextManager[FilesystemStorage]]


def _mounted(monkeypatch: pytest.MonkeyPatch, path: Path, *mounts: tuple[str, str]) -> None:
    """Mount points with the types of their filesystems, as proc(5) tells them."""
    lines = [f"1 1 0:1 / {point} rw,relatime shared:1 - {kind} /dev/x rw\n" for point, kind in mounts]
    path.write_text("".join(lines))
    monkeypatch.setattr(late_sync, "_MOUNTS", str(path))


def _runs_on(monkeypatch: pytest.MonkeyPatch, release: str, sysname: str = "Linux") -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release, sysname=sysname))


@pytest.mark.parametrize(
    ("mounts", "relied_on"),
    [
        ([("/", "ext4")], True),
        ([("/", "overlay"), ("/srv", "xfs")], True),
        ([("/", "ext4"), ("/srv", "fuse.mergerfs")], False),
        ([("/", "ext4"), ("/srv/data", "nfs4"), ("/srv/data\\040of\\040us/deeper", "tmpfs")], True),
        ([("/", "ext4"), ("/srv/data\\040of\\040us", "nfs4")], False),
        ([("/", "nfs4"), ("/srv/data\\040of\\040us", "overlay"), ("/srv/data\\040of\\040us", "btrfs")], True),
        ([("/", "ext4"), ("/srv/dat", "nfs4")], True),
        ([], False),
    ],
)
def test_syncfs_is_relied_on_where_the_filesystem_is_one_that_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mounts: list[tuple[str, str]], relied_on: bool
) -> None:
    _runs_on(monkeypatch, "6.1.0-13-amd64")
    _mounted(monkeypatch, tmp_path / "mounts", *mounts)
    assert (syncfs_for("/srv/data of us/objects") is not None) is relied_on


@pytest.mark.parametrize(
    ("release", "sysname", "relied_on"),
    [
        ("5.8.0", "Linux", True),
        ("5.7.19-generic", "Linux", False),
        ("4.19", "Linux", False),
        ("23.1.0", "Darwin", False),
        ("strange", "Linux", False),
    ],
)
def test_syncfs_is_relied_on_where_it_tells_of_failures(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, release: str, sysname: str, relied_on: bool
) -> None:
    _runs_on(monkeypatch, release, sysname)
    _mounted(monkeypatch, tmp_path / "mounts", ("/", "ext4"))
    assert (syncfs_for("/srv") is not None) is relied_on


def test_without_the_list_of_mounts_or_the_function_syncfs_is_not_relied_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _runs_on(monkeypatch, "6.1.0")
    monkeypatch.setattr(late_sync, "_MOUNTS", str(tmp_path / "none"))
    assert syncfs_for("/srv") is None
    _mounted(monkeypatch, tmp_path / "mounts", ("/", "ext4"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *_args, **_options: object())
    assert syncfs_for("/srv") is None


def test_what_the_system_says_is_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _runs_on(monkeypatch, "6.1.0")
    _mounted(monkeypatch, tmp_path / "mounts", ("/", "ext4"))
    sync = syncfs_for("/srv")
    assert sync is not None
    descriptor = os.open(tmp_path, os.O_RDONLY)
    sync(descriptor)
    os.close(descriptor)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync(descriptor)


async def test_with_syncfs_no_file_is_touched_and_the_folder_was_open_before_them(
    opened: Opened, root: Path, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        late_sync, "syncfs_for", lambda _: lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    async with opened(root) as storage:
        stored = await store(storage, b"x", may_leave_unsynced=True)
        calls.log.clear()
        await storage.make_durable([stored.location])
    assert synced == [str(root / "objects")]
    assert {name for name, _ in calls.log} <= {"close"}


async def test_without_syncfs_each_file_and_then_each_directory_is_synced(
    opened: Opened, root: Path, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_sync, "syncfs_for", lambda _: None)
    async with opened(root) as storage:
        keys = [object_key(arrival_id(), series=f"1.{number % 2}") for number in range(4)]
        stored = [(await store(storage, b"x", key=key, may_leave_unsynced=True)).location for key in keys]
        await storage.delete(stored[0])
        calls.log.clear()
        await storage.make_durable(stored)
        syncs = [step for step in calls.log if "sync" in step[0]]
    assert syncs[:3] == [("fdatasync", location) for location in stored[1:]]
    assert sorted(syncs[3:]) == sorted({("fsync", directory_of(location)) for location in stored[1:]})


@pytest.mark.parametrize("call", ["fdatasync", "fsync", "syncfs"])
async def test_a_sync_that_fails_is_a_storage_error(
    opened: Opened, root: Path, calls: SystemCalls, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(late_sync, "syncfs_for", lambda _: fail if call == "syncfs" else None)
    async with opened(root) as storage:
        stored = await store(storage, b"x", may_leave_unsynced=True)
        calls.before = lambda _number, name, _path: fail() if name == call else None
        with pytest.raises(StorageError):
            await storage.make_durable([stored.location])
        calls.before = None


async def test_a_file_that_cannot_be_restored_leaves_nothing_half_done(
    opened: Opened, root: Path, calls: SystemCalls, files: Callable[[Path], list[str]]
) -> None:
    async with opened(root) as storage:
        stored = await store(storage, b"x")
        before = files(root)

        def full(_number: int, name: str, path: str) -> None:
            if name == "writev" and path.endswith(".part"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        calls.before = full
        with pytest.raises(StorageFull):
            await storage.restore(stored.location, PREFIX + b"other")
        calls.before = None
        assert files(root) == before
        assert await content(storage, stored.location) == PREFIX + b"x"
