"""A deletion that was cut off: its rows go before the next start is ready, its files afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server
from scp_server.errors import IndexUnavailable, StorageError
from scp_server.index.base import Level, Scope
from scp_server.observability.logs import captured_logs
from scp_server.runtime.maintenance import carrying_out, deletion
from scp_server.runtime.maintenance.carrying_out import carry_out
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.maintenance.deletion_record import pending_deletions
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import rebuild
from scp_server.runtime.maintenance.verify import VerifyOptions, verify
from scp_server.services.storage import StorageService, StorageServiceConfig
from scp_server.storage.base import StoredObject
from scp_server.storage.filesystem import FilesystemStorage
from scp_server.testing.archive import Archive
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import ct_image
from scp_server.testing.watched_backends import Steps, WatchedIndex, WatchedStorage
from tests.unit.runtime.maintenance.conftest import Found, Stages

STUDY = "1.2.3.4"
GONE = Scope(Level.STUDY, STUDY)
KILLED = RuntimeError("killed here")


async def _cut_off(archive: Archive, step: str, error: Exception = KILLED) -> None:
    """Three instances of six are to go, and the deletion ends at a step; their directories stay in flight."""
    objects = [ct_image(seed=n, study_instance_uid=STUDY) for n in range(3)]

    class NeverTold(WatchedStorage):
        async def indexed(self, stored: StoredObject) -> None:
            """As if the process had ended before."""

    async with archive.opened() as (storage, index):
        service = StorageService(NeverTold(storage, Steps()), index, StorageServiceConfig())
        for each in [*objects, *(ct_image(seed=n) for n in range(10, 13))]:
            await service.store(store_operation(each))
        steps = Steps()
        steps.fail_at(step, error)
        watched = WatchedStorage(storage, steps), WatchedIndex(index, steps)
        try:
            await Deletions(archive.data_dir, *watched).delete(GONE)
        except (RuntimeError, IndexUnavailable):
            pass
    assert len(pending_deletions(archive.data_dir)) == 1
    assert len(archive.files()) == 6


def _server(archive: Archive) -> Server:
    settings = Archive.at(archive.data_dir, listen={"port": 0}, http={"port": 0}).settings
    return Server(settings)


async def _resumed() -> None:
    """Wait until what a start left for later is done."""
    await asyncio.gather(*_tasks("maintenance.resume_deletions"))


def _tasks(name: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]


@pytest.mark.parametrize("step", ["remove", "delete_many"])
async def test_ready_waits_for_the_rows_and_not_for_the_files(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await _cut_off(archive, step)
    reached, never = asyncio.Event(), asyncio.Event()

    async def stand(_storage: FilesystemStorage, _locations: Sequence[str]) -> Mapping[str, str]:
        reached.set()
        await never.wait()
        return {}

    with captured_logs() as logs:
        with monkeypatch.context() as patched:
            patched.setattr(FilesystemStorage, "delete_many", stand)
            server = _server(archive)
            async with asyncio.timeout(10):
                await server.start()
            # Nobody is shown half a study.
            assert (await server.index.totals()).parts == 3
            assert [page async for page in server.index.parts_below(GONE)] == []
            await reached.wait()
            assert await server._deletions.unfinished() == [], "it is being carried out"
            assert len(archive.files()) == 6
            assert await server.stop(), "it ends with the server"
        assert len(pending_deletions(archive.data_dir)) == 1
        async with _server(archive) as server:
            await _resumed()
            assert await server._deletions.doomed(archive.files()) == set()
    events = [record["event"] for record in logs]
    of_interest = ("deletion.resumed", "server.ready", "deletion.finished")
    assert [each for each in events if each in of_interest] == [*of_interest[:2], *of_interest]
    parts = [record["parts"] for record in logs if record["event"] == "deletion.resumed"]
    assert parts == [3 if step == "remove" else 0, 0]
    assert len(archive.files()) == 3
    assert pending_deletions(archive.data_dir) == []


async def test_a_deletion_that_waits_sees_the_one_before_it_move(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying_out, "FILES_TOGETHER", 1)
    await archive.store([ct_image(seed=n, study_instance_uid=STUDY) for n in range(4)])
    waits, progress = asyncio.Event(), Stages()

    class Waiting(Stages):
        def begin(self, stage: str, total: int | None) -> None:
            super().begin(stage, total)
            waits.set()

    class Slow(WatchedStorage):
        async def delete_many(self, locations: Sequence[str]) -> Mapping[str, str]:
            await waits.wait()
            return await super().delete_many(locations)

    waiting = Waiting()
    async with archive.opened() as (storage, index):
        deletions = Deletions(archive.data_dir, Slow(storage, Steps()), index)
        async with asyncio.TaskGroup() as group:
            group.create_task(deletions.delete(GONE, progress))
            group.create_task(deletions.delete(Scope(Level.STUDY, "1.2.3.5"), waiting))
    assert progress.of("deleting files") == [1, 1, 1, 1]
    seen = waiting.of("waiting for another deletion")
    assert len(seen) >= 4
    assert set(seen) == {0}


async def test_rows_that_have_gone_are_not_looked_for_again(archive: Archive) -> None:
    await _cut_off(archive, "delete_many")
    async with archive.opened() as (storage, index):
        steps = Steps()
        deletions = Deletions(archive.data_dir, storage, WatchedIndex(index, steps))
        await deletions.open()
        await deletions.finish()
    assert "remove" not in steps.log
    assert len(archive.files()) == 3


async def test_a_start_forgets_many_parts_in_one_transaction(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _cut_off(archive, "remove")
    monkeypatch.setattr(carrying_out, "ROWS_TOGETHER", 1)
    monkeypatch.setattr(deletion, "ROWS_BEFORE_READY", 2)
    async with archive.opened() as (storage, index):
        steps = Steps()
        await Deletions(archive.data_dir, storage, WatchedIndex(index, steps)).open()
    assert steps.log.count("remove") == 2


async def test_rows_that_cannot_be_removed_keep_the_server_from_starting(archive: Archive) -> None:
    """It would show what is deleted."""
    await _cut_off(archive, "remove")
    async with archive.opened() as (storage, index):
        steps = Steps()
        steps.fail_at("remove", IndexUnavailable("locked"))
        with pytest.raises(IndexUnavailable):
            await Deletions(archive.data_dir, storage, WatchedIndex(index, steps)).open()


async def test_a_record_that_cannot_be_read_does_not_keep_the_server_from_starting(archive: Archive) -> None:
    await _cut_off(archive, "remove")
    (record,) = pending_deletions(archive.data_dir)
    whole = record.read_bytes()
    record.write_bytes(whole.replace(b'"format": 1', b'"format": 9'))
    with captured_logs() as logs:
        async with _server(archive) as server:
            assert (await server.index.totals()).parts == 6
            await _resumed()
    assert [each["event"] for each in logs].count("deletion.failed") == 2
    record.write_bytes(whole)
    async with _server(archive) as server:
        assert (await server.index.totals()).parts == 3
        await _resumed()
    assert len(archive.files()) == 3


async def test_what_keeps_the_deletions_from_being_resumed_is_logged(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _cut_off(archive, "delete_many")
    async with archive.opened() as (storage, index):
        deletions = Deletions(archive.data_dir, storage, index)
        await deletions.open()

        def unreadable(_data_dir: Path) -> list[Path]:
            raise StorageError("the disk does not answer")

        monkeypatch.setattr(carrying_out, "pending_deletions", unreadable)
        with captured_logs() as logs:
            deletions.resume()
            await _resumed()
            await deletions.stop()
    (failed,) = [each for each in logs if each["event"] == "deletion.failed"]
    assert failed["error"] == "the disk does not answer"
    assert len(await deletions.unfinished()) == 1


def _let_no_file_go(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_storage: FilesystemStorage, locations: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(locations, "busy")

    monkeypatch.setattr(FilesystemStorage, "delete_many", refuse)


async def test_a_start_adopts_no_doomed_file_though_it_was_in_flight(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _cut_off(archive, "delete_many", StorageError("busy"))
    with captured_logs() as logs:
        with monkeypatch.context() as patched:
            _let_no_file_go(patched)
            async with _server(archive) as server:
                await _resumed()
                while _tasks("runtime.compare"):
                    await asyncio.wait(_tasks("runtime.compare"))
                assert (await server.index.totals()).parts == 3
        assert len(archive.files()) == 6
        assert "recovery.ended" in [each["event"] for each in logs], "the ledger named nothing"
        async with _server(archive) as server:
            await _resumed()
            assert (await server.index.totals()).parts == 3
    assert not {"object.recovered", "object.adopted"} & {each["event"] for each in logs}
    assert len(archive.files()) == 3


async def test_a_rebuild_adopts_no_doomed_file(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    await _cut_off(archive, "remove")
    with monkeypatch.context() as patched:
        _let_no_file_go(patched)
        report = await rebuild(archive.settings, lambda _finding: None, NoProgress())
    assert (report.totals.parts, len(archive.files())) == (3, 6)
    async with _server(archive):
        await _resumed()
    assert len(archive.files()) == 3


async def test_a_verification_without_a_server_takes_no_doomed_file_for_an_orphan(
    archive: Archive, found: Found
) -> None:
    await _cut_off(archive, "delete_many")
    await verify(archive.settings, VerifyOptions(), found.append, NoProgress())
    assert list(found.by_kind()) == ["left_over"]


async def test_the_record_goes_only_after_every_file_is_known_to_be_gone(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying_out, "FILES_TOGETHER", 2)
    await _cut_off(archive, "remove")
    (record,) = pending_deletions(archive.data_dir)
    async with archive.opened() as (storage, index):
        failing = iter([True, False])

        class Once(WatchedStorage):
            async def delete_many(self, locations: Sequence[str]) -> Mapping[str, str]:
                if next(failing):
                    raise StorageError("the disk does not answer")
                return await super().delete_many(locations)

        removed = await carry_out(record, Once(storage, Steps()), index, NoProgress())
        assert (removed.files, removed.failures) == (1, 2)
        assert set(removed.failed.values()) == {"the disk does not answer"}
        assert record.exists()
        assert (await carry_out(record, storage, index, NoProgress())).failures == 0
    assert not record.exists()
