"""Several processes in one data folder: each leaves the others' files alone, and the owner takes over from
one that died. Here they are several storages in one process, which comes to the same."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from scp_server.storage import directories as directories_module
from scp_server.storage.base import ObjectKey, StoredObject
from scp_server.storage.directories import DirectoryTree
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.storage.pruning import PruneCounts, is_removing
from scp_server.storage.quarantine import Quarantine, QuarantineConfig

SERIES = "objects/ab/study/series"
KEY = ObjectKey("1.2", "1.2.3", "1.2.3.4", "")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def _opened(stack: AsyncExitStack, root: Path, writer: str = "") -> FilesystemStorage:
    storage = FilesystemStorage(
        FilesystemStorageConfig(root, Durability.PROCESS, reserve_bytes=0, writer=writer)
    )
    await storage.open()
    stack.push_async_callback(storage.close)
    return storage


async def _stored(storage: FilesystemStorage, arrival_id: str) -> StoredObject:
    writer = await storage.begin(arrival_id, b"prefix")
    await writer.write([b"data"])
    return await writer.commit(replace(KEY, arrival_id=arrival_id))


async def _begun(storage: FilesystemStorage, arrival_id: str) -> None:
    writer = await storage.begin(arrival_id, b"prefix")
    await writer.write([b"data"])
    await writer.flush()


def _incoming(root: Path) -> set[str]:
    return {path.name for path in (root / "incoming").iterdir()}


async def test_a_writer_leaves_everything_alone_that_it_finds(tmp_path: Path, stack: AsyncExitStack) -> None:
    owner = await _opened(stack, tmp_path)
    await _begun(owner, "1aaaaaa")
    await _stored(owner, "2aaaaaa")
    other = await _opened(stack, tmp_path, "bbbbbb")
    await _begun(other, "1bbbbbb")
    stored = await _stored(other, "2bbbbbb")
    third = await _opened(stack, tmp_path, "cccccc")
    assert [each async for each in other.in_flight()] == [each async for each in third.in_flight()] == []
    assert _incoming(tmp_path) == {"1aaaaaa.part", "1bbbbbb.part", "directories.1", "directories.bbbbbb-1"}
    assert await owner.not_yet_indexed([stored.location]) == set(), "it is the other's business"
    assert await other.not_yet_indexed([stored.location]) == {stored.location}


async def test_the_owner_takes_over_from_one_that_died_and_from_no_other(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    owner = await _opened(stack, tmp_path)
    living, dead = await _opened(stack, tmp_path, "aaaaaa"), await _opened(stack, tmp_path, "bbbbbb")
    for storage, name in ((owner, "000000"), (living, "aaaaaa"), (dead, "bbbbbb")):
        await _begun(storage, f"1{name}")
        await _stored(storage, f"2{name}")
    assert [each async for each in owner.in_flight()] == []
    await owner.take_over("bbbbbb")
    await owner.take_over("bbbbbb")
    assert {"1000000.part", "1aaaaaa.part"} <= _incoming(tmp_path)
    assert "1bbbbbb.part" not in _incoming(tmp_path)
    found = [each.location async for each in owner.in_flight()]
    assert [location for location in found if location.endswith("2bbbbbb.dcm")] != []
    await owner.settled()
    assert {name for name in _incoming(tmp_path) if name.startswith("dir")} == {
        "directories.1",
        "directories.aaaaaa-1",
    }


async def test_the_next_start_takes_over_from_all(tmp_path: Path, stack: AsyncExitStack) -> None:
    for name in ("aaaaaa", "bbbbbb"):
        storage = await _opened(stack, tmp_path, name)
        await _begun(storage, f"1{name}")
        await _stored(storage, f"2{name}")
    owner = await _opened(stack, tmp_path)
    assert [name for name in _incoming(tmp_path) if name.endswith(".part")] == []
    found = {each.location[-11:] async for each in owner.in_flight()}
    assert found == {"2aaaaaa.dcm", "2bbbbbb.dcm"}
    await owner.settled()
    assert _incoming(tmp_path) == set()


# -- directories


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    paths: list[str] = []
    monkeypatch.setattr(directories_module, "sync_directory", paths.append)
    return paths


@pytest.fixture
def trees(tmp_path: Path) -> Iterator[list[DirectoryTree]]:
    """Of two processes."""
    (tmp_path / "objects").mkdir()
    first = PruneCounts(2, 0)
    first.open()
    second = PruneCounts(2, 1, os.dup(first.descriptor))
    second.open()
    yield [DirectoryTree(str(tmp_path), durable=True, prunes=prunes) for prunes in (first, second)]
    second.close()
    first.close()


def test_a_directory_that_another_process_removed_and_a_third_made_again_is_synced_anew(
    tmp_path: Path, trees: list[DirectoryTree], synced: list[str]
) -> None:
    """After the rename, as `writer` asks: else a power cut could take the directory with the file in it."""
    mine, others = trees
    mine.ensure(SERIES)
    others.prune(SERIES)
    assert not (tmp_path / "objects/ab").exists()
    (tmp_path / SERIES).mkdir(parents=True)
    (tmp_path / SERIES / "file").touch()
    synced.clear()
    mine.ensure(SERIES)
    assert synced == [str(tmp_path / each) for each in ("objects", "objects/ab", "objects/ab/study")]
    mine.ensure(SERIES)
    assert len(synced) == 3


def test_what_others_do_not_remove_stays_known(
    tmp_path: Path, trees: list[DirectoryTree], synced: list[str]
) -> None:
    mine, others = trees
    mine.ensure(SERIES)
    (tmp_path / SERIES / "file").touch()
    synced.clear()
    others.prune(SERIES)
    mine.ensure(SERIES)
    assert synced == []


def test_what_was_being_made_when_another_removed_it_is_not_known(
    tmp_path: Path, trees: list[DirectoryTree], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, others = trees
    synced: list[str] = []
    elsewhere = (f"objects/{number}" for number in range(1_000))
    # One whose lock is another: this thread has that of SERIES when it is interrupted.
    other = next(each for each in elsewhere if mine._lock_of(each) is not mine._lock_of(SERIES))

    def interrupted(path: str) -> None:
        synced.append(path)
        if len(synced) == 3:
            others.prune(SERIES)
            (tmp_path / other).mkdir()
            mine.ensure(other)

    monkeypatch.setattr(directories_module, "sync_directory", interrupted)
    mine.ensure(SERIES)
    (tmp_path / SERIES).mkdir(parents=True)
    before = len(synced)
    mine.ensure(SERIES)
    assert len(synced) == before + 3


def test_what_is_made_while_another_removes_it_is_not_known(
    tmp_path: Path, trees: list[DirectoryTree], synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other has said that it will remove something, then we come, then it does."""
    mine, others = trees
    (tmp_path / "objects/ab/study/other").mkdir(parents=True)
    mine.ensure(SERIES)
    remove = os.rmdir

    def late(path: str) -> None:
        mine.ensure(SERIES)
        remove(path)

    with monkeypatch.context() as during:
        during.setattr(os, "rmdir", late)
        others.prune(SERIES)
    (tmp_path / SERIES).mkdir()
    synced.clear()
    mine.ensure(SERIES)
    assert len(synced) == 3


def test_what_is_made_by_another_as_soon_as_it_is_removed_is_not_known(
    tmp_path: Path, trees: list[DirectoryTree], synced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own thread has removed it and comes to say so only later."""
    mine, _others = trees
    mine.ensure(SERIES)
    remove, seen = os.rmdir, []

    def made_again(path: str) -> None:
        remove(path)
        os.mkdir(path)
        seen.append(mine.is_known(os.path.relpath(path, tmp_path)))

    with monkeypatch.context() as during:
        during.setattr(os, "rmdir", made_again)
        mine.prune(SERIES)
    assert seen == [False]


def test_who_takes_the_place_of_one_that_was_killed_while_it_removed_is_not_removing() -> None:
    mine = PruneCounts(2, 0)
    mine.open()
    killed = PruneCounts(2, 1, os.dup(mine.descriptor))
    killed.open()
    killed._count()
    killed.close()
    assert is_removing(before := mine.of_others())
    successor = PruneCounts(2, 1, os.dup(mine.descriptor))
    successor.open()
    assert not is_removing(mine.of_others())
    assert mine.of_others() != before
    for each in (successor, mine):
        each.close()


# -- quarantine


async def test_what_one_that_died_left_in_quarantine_is_counted_or_swept(
    tmp_path: Path, stack: AsyncExitStack
) -> None:
    owner = Quarantine(QuarantineConfig(tmp_path, durable=False), None)
    await owner.open()
    stack.push_async_callback(owner.close)
    folder = tmp_path / "quarantine"
    (folder / "1bbbbbb.quarantine").write_bytes(b"12345")
    for name in ("1bbbbbb.json", "2bbbbbb.json", "3bbbbbb.json.part", "4aaaaaa.json", "5aaaaaa.json.part"):
        (folder / name).write_bytes(b"{}")
    await owner.take_over("bbbbbb")
    await owner.take_over("bbbbbb")
    assert (owner.totals.objects, owner.totals.bytes) == (1, 5)
    left = {path.name for path in folder.iterdir()}
    assert left == {"1bbbbbb.quarantine", "1bbbbbb.json", "4aaaaaa.json", "5aaaaaa.json.part"}


async def test_one_whose_room_is_elsewhere_sweeps_nothing(tmp_path: Path, stack: AsyncExitStack) -> None:
    owner = Quarantine(QuarantineConfig(tmp_path, durable=False), None)
    other = Quarantine(QuarantineConfig(tmp_path, durable=False), None, room=owner.book)
    for quarantine in (owner, other):
        stack.push_async_callback(quarantine.close)
    await owner.open()
    (tmp_path / "quarantine" / "1.json.part").touch()
    await other.open()
    assert (tmp_path / "quarantine" / "1.json.part").exists()
