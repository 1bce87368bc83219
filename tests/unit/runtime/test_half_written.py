"""What a power cut leaves of an object that was neither synced nor acknowledged: kept, but out of the way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from scp_server.errors import StorageError
from scp_server.index.store import IndexConfig, SqlIndex
from scp_server.objects.uids import PRIVATE_INFORMATION_CREATOR_UID
from scp_server.observability.logs import captured_logs
from scp_server.runtime.recovery import RecoveryReport, recover
from scp_server.services.release import QuarantineRelease
from scp_server.services.storage import StorageService, StorageServiceConfig
from scp_server.storage.base import StoredObject
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.storage.quarantine import Quarantine, QuarantineConfig
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.storage_bench import StorageBench
from scp_server.testing.stored_objects import listed

CONFIG = StorageServiceConfig()


def _storage(folder: Path) -> FilesystemStorage:
    return FilesystemStorage(FilesystemStorageConfig(folder / "data", Durability.PROCESS, reserve_bytes=0))


class Started:
    """A process after the one that ended, over the same data folder."""

    def __init__(self, folder: Path, **quarantine: int) -> None:
        self.storage = _storage(folder)
        self.index = SqlIndex(IndexConfig(folder / "index.sqlite", synchronous_full=False))
        self.quarantine = Quarantine(QuarantineConfig(folder / "data", False, **quarantine), self.storage)

    async def open(self) -> None:
        await self.storage.open()
        await self.quarantine.open()
        await self.index.open()

    async def close(self) -> None:
        await self.index.close()
        await self.quarantine.close()
        await self.storage.close()

    async def recover(self, *, with_quarantine: bool = True) -> RecoveryReport:
        quarantine = self.quarantine if with_quarantine else None
        return await recover(self.storage, self.index, CONFIG, quarantine=quarantine)


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """An object whose process ended before the index had it."""
    async with StorageBench(tmp_path, _storage(tmp_path)) as bench:
        bench.steps.fail_at("add", RuntimeError("killed here"))
        with pytest.raises(RuntimeError):
            await bench.service.store(store_operation(ct_image()))
    (file,) = (tmp_path / "data" / "objects").rglob("*.dcm")
    return file


@pytest.fixture
async def started(tmp_path: Path, file: Path) -> AsyncIterator[Started]:
    started = Started(tmp_path)
    await started.open()
    yield started
    await started.close()


def _cut(file: Path, what: str) -> bytes:
    whole = file.read_bytes()
    left = {"all": b"", "end": whole[:-1], "meta": whole[:200], "bytes": bytes(len(whole))}[what]
    file.write_bytes(left)
    return left


@pytest.mark.parametrize("what", ["all", "end", "meta", "bytes"])
async def test_what_is_not_whole_goes_into_the_quarantine_byte_for_byte(
    started: Started, file: Path, what: str
) -> None:
    left = _cut(file, what)
    with captured_logs() as logs:
        report = await started.recover()
    assert report == RecoveryReport(examined=1, unreadable=1, quarantined=1)
    assert [line["event"] for line in logs if "quarant" in line["event"]] == ["object.quarantined"]
    assert await listed(started.storage) == {}
    (arrival_id,) = started.quarantine.ids()
    assert arrival_id in file.name
    assert b"".join([piece async for piece in started.quarantine.read(arrival_id)]) == left
    record = await started.quarantine.record(arrival_id)
    assert record.dataset_offset_bytes + record.dataset_bytes == len(left)
    if what == "end":
        assert record.sop_instance_uid == ct_image().sop_instance_uid
    assert await started.recover() == RecoveryReport()
    service = StorageService(started.storage, started.index, CONFIG)
    released = await QuarantineRelease(started.quarantine, service).release(arrival_id)
    assert not released.released


async def test_what_is_whole_is_adopted(started: Started) -> None:
    assert await started.recover() == RecoveryReport(examined=1, adopted=1)
    assert started.quarantine.ids() == []


@pytest.mark.parametrize("is_orphan", [True, False])
async def test_while_others_write_only_what_is_nobodys_goes_there(
    started: Started, file: Path, is_orphan: bool
) -> None:
    _cut(file, "end")

    async def orphans_among(seen: Sequence[StoredObject]) -> list[StoredObject]:
        return list(seen) if is_orphan else []

    storage, index, quarantine = started.storage, started.index, started.quarantine
    report = await recover(storage, index, CONFIG, quarantine=quarantine, orphans_among=orphans_among)
    assert report == RecoveryReport(examined=1, unreadable=is_orphan, quarantined=is_orphan)
    assert file.exists() is not is_orphan


async def test_without_a_quarantine_it_stays(started: Started, file: Path) -> None:
    left = _cut(file, "end")
    assert await started.recover(with_quarantine=False) == RecoveryReport(examined=1, unreadable=1)
    assert file.read_bytes() == left


@pytest.mark.parametrize("bound", [{"max_objects": 0}, {"max_bytes": 10}, {"max_bytes": 0}])
async def test_where_the_quarantine_has_no_room_it_stays(
    tmp_path: Path, file: Path, bound: dict[str, int]
) -> None:
    left = _cut(file, "end")
    started = Started(tmp_path, **bound)
    await started.open()
    with captured_logs() as logs:
        assert await started.recover() == RecoveryReport(examined=1, unreadable=1)
    assert file.read_bytes() == left
    # One that is switched off is not asked.
    not_kept = [line for line in logs if line["event"] == "object.not_quarantined"]
    assert len(not_kept) == (0 if bound == {"max_bytes": 0} else 1)
    await started.close()


async def test_what_another_program_wrote_stays(started: Started, file: Path) -> None:
    whole = file.read_bytes()
    creator = PRIVATE_INFORMATION_CREATOR_UID.encode()
    assert whole.count(creator) == 1
    file.write_bytes(whole.replace(creator, b"9" * len(creator)))
    assert await started.recover() == RecoveryReport(examined=1, unreadable=1)
    assert file.exists()


async def test_what_the_disk_does_not_give_stays_for_the_next_start(
    started: Started, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise StorageError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(started.storage, "read", read)
        assert await started.recover() == RecoveryReport(examined=1, unreadable=1)
    assert await started.recover() == RecoveryReport(examined=1, adopted=1)
    assert file.exists()
