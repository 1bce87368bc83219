"""The quarantine over the filesystem storage: whole or not at all, bounded, in order."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from scp_server.errors import ObjectNotFound, StorageError, StorageFull
from scp_server.storage.base import ObjectKey
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.storage.quarantine import Quarantine, QuarantineConfig
from scp_server.storage.quarantine_record import QuarantineRecord, record_from_json
from scp_server.testing.system_calls import SystemCalls

MOST_CALLS = 60


def _record(object_id: str) -> QuarantineRecord:
    return QuarantineRecord(
        object_id,
        "why",
        0xC000,
        5,
        "A\udce9\n",
        "B",
        "::1",
        104,
        "1.2",
        "1.3",
        "1.4",
        "1.5",
        "1.6",
        4,
        6,
        "x",
        "ff",
    )


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[FilesystemStorage]:
    storage = FilesystemStorage(FilesystemStorageConfig(tmp_path, Durability.FULL, reserve_bytes=0))
    await storage.open()
    yield storage
    await storage.close()


@pytest.fixture
async def quarantine(tmp_path: Path, storage: FilesystemStorage) -> AsyncIterator[Quarantine]:
    quarantine = Quarantine(QuarantineConfig(tmp_path, max_bytes=100, max_objects=3), storage)
    await quarantine.open()
    yield quarantine
    await quarantine.close()


async def _keep(storage: FilesystemStorage, quarantine: Quarantine, object_id: str) -> None:
    writer = await storage.begin(object_id, b"meta")
    try:
        await writer.write([b"abcdef"])
        await quarantine.keep_written(writer, lambda: _record(object_id))
    finally:
        await writer.abort()


async def _keep_stored(storage: FilesystemStorage, quarantine: Quarantine, object_id: str) -> None:
    writer = await storage.begin(object_id, b"meta")
    await writer.write([b"abcdef"])
    stored = await writer.commit(ObjectKey("1", "2", "3", object_id))
    await quarantine.keep_stored(stored, _record(object_id))


def _files(tmp_path: Path) -> list[str]:
    return sorted(
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if path.is_file() and not path.name.startswith("directories.")
    )


@pytest.mark.parametrize("keep", [_keep, _keep_stored])
async def test_what_is_kept_is_there_whole_also_for_the_next_process(
    tmp_path: Path, storage: FilesystemStorage, quarantine: Quarantine, keep: object
) -> None:
    assert callable(keep)
    await keep(storage, quarantine, "a1")
    assert _files(tmp_path) == ["quarantine/a1.json", "quarantine/a1.quarantine"]
    await quarantine.close()
    again = Quarantine(QuarantineConfig(tmp_path), None)
    await again.open()
    try:
        assert again.ids() == ["a1"]
        assert await again.record("a1") == _record("a1")
        assert b"".join([piece async for piece in again.read("a1", 4)]) == b"abcdef"
        assert (again.totals.objects, again.totals.bytes, again.enabled) == (1, 10, False)
        await again.drop("a1")
        assert (again.totals.objects, again.totals.bytes, _files(tmp_path)) == (0, 0, [])
    finally:
        await again.close()


@pytest.mark.parametrize("keep", [_keep, _keep_stored])
@pytest.mark.parametrize("number", range(MOST_CALLS))
async def test_a_failing_system_call_leaves_the_object_in_one_place_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: object, number: int
) -> None:
    assert callable(keep)
    calls = SystemCalls(tmp_path, monkeypatch)
    storage = FilesystemStorage(FilesystemStorageConfig(tmp_path, Durability.FULL, reserve_bytes=0))
    await storage.open()
    quarantine = Quarantine(QuarantineConfig(tmp_path), storage)
    await quarantine.open()
    calls.log.clear()

    def fail(at: int, _name: str, _path: str) -> None:
        if at == number:
            raise OSError(errno.EIO, "Input/output error")

    calls.before = fail
    failed = False
    try:
        await keep(storage, quarantine, "a1")
    except StorageError:
        failed = True
    calls.before = None
    made = len(calls.log)
    totals = quarantine.totals
    await quarantine.close()
    await storage.close()
    kept = _files(tmp_path)
    if failed:
        assert (totals.objects, totals.bytes) == (0, 0)
        # What was committed stays for the caller to take back, or for start-up.
        assert [name for name in kept if not name.startswith("objects/")] == []
    else:
        assert (totals.objects, totals.bytes) == (1, 10)
        assert kept == ["quarantine/a1.json", "quarantine/a1.quarantine"]
    if number == 0:
        assert failed, "the first call failed"
    if number == MOST_CALLS - 1:
        assert not failed
        assert made < MOST_CALLS, "every call was failed once"


async def test_the_record_is_durable_before_the_object_is_renamed_and_its_bytes_are_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = SystemCalls(tmp_path, monkeypatch)
    storage = FilesystemStorage(FilesystemStorageConfig(tmp_path, Durability.FULL, reserve_bytes=0))
    await storage.open()
    quarantine = Quarantine(QuarantineConfig(tmp_path), storage)
    await quarantine.open()
    calls.log.clear()
    await _keep(storage, quarantine, "a1")
    steps = [step for step in calls.log if step[0] in ("fdatasync", "rename", "fsync")]
    assert steps == [
        ("fdatasync", "incoming/a1.part"),
        ("fdatasync", "quarantine/a1.json.part"),
        ("rename", "quarantine/a1.json"),
        ("rename", "quarantine/a1.quarantine"),
        ("fsync", "quarantine"),
    ]
    await quarantine.close()
    await storage.close()


async def test_room_is_reserved_as_it_is_needed_and_given_back(quarantine: Quarantine) -> None:
    first, second, _third = await quarantine.admit(), await quarantine.admit(), await quarantine.admit()
    with pytest.raises(StorageFull, match="objects"):
        await quarantine.admit()
    await first.grow(60)
    with pytest.raises(StorageFull, match="bytes"):
        await second.grow(41)
    await second.grow(40)
    first.close()
    first.close()
    await second.grow(60)
    await quarantine.admit()


async def test_open_sweeps_what_a_crash_left_and_nothing_else(
    tmp_path: Path, storage: FilesystemStorage, quarantine: Quarantine
) -> None:
    await _keep(storage, quarantine, "a1")
    await quarantine.close()
    folder = tmp_path / "quarantine"
    (folder / "a2.json").write_bytes(b"{}")
    (folder / "a3.json.part").write_bytes(b"{")
    (folder / "notes.json").write_text("an administrator's")
    (folder / "notes.quarantine").write_text("an administrator's")
    (folder / "a4.quarantine").write_bytes(b"without a record")
    await quarantine.open()
    assert sorted(path.name for path in folder.iterdir()) == [
        "a1.json",
        "a1.quarantine",
        "a4.quarantine",
        "notes.json",
        "notes.quarantine",
    ]
    assert quarantine.ids() == ["a1", "a4"]
    with pytest.raises(StorageError, match="missing or damaged"):
        await quarantine.record("a4")
    await quarantine.drop("a4")
    assert quarantine.ids() == ["a1"]


async def test_what_is_not_there_is_not_found_and_what_is_held_is_held_once(
    storage: FilesystemStorage, quarantine: Quarantine
) -> None:
    for unknown in ("ff", "../../etc/passwd", ""):
        with pytest.raises(ObjectNotFound):
            quarantine.hold(unknown)
        with pytest.raises(ObjectNotFound):
            await quarantine.record(unknown)
        with pytest.raises(ObjectNotFound):
            await quarantine.drop(unknown)
    await _keep(storage, quarantine, "a1")
    quarantine.hold("a1")
    with pytest.raises(StorageError, match="being released"):
        quarantine.hold("a1")
    quarantine.let_go("a1")
    quarantine.hold("a1")


async def test_lists_are_in_order_of_arrival_and_in_pages(
    storage: FilesystemStorage, quarantine: Quarantine
) -> None:
    for object_id in ("b2", "a1", "c3"):
        await _keep(storage, quarantine, object_id)
    assert quarantine.ids(most=2) == ["a1", "b2"]
    assert quarantine.ids("b2") == ["c3"]


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 10_000,
        b'{"version": 1}',
        _record("a1").to_json().replace(b'"version": 1', b'"version": 2'),
        _record("a1").to_json().replace(b'"why"', b"null"),
        _record("a1").to_json().replace(b'"status": 49152', b'"status": true'),
        _record("a1").to_json().replace(b'"status": 49152', b'"status": -1'),
        b"\xff\xfe",
    ],
)
def test_a_damaged_record_is_a_value_error(damaged: bytes) -> None:
    with pytest.raises(ValueError, match="the record"):
        record_from_json(damaged)


def test_a_record_survives_its_file() -> None:
    record = replace(_record("a1"), release_attempts=3)
    assert record.to_json().isascii()
    assert record_from_json(record.to_json()) == record
