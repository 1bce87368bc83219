"""Maintenance of an archive whose last process ended before the newest objects' files were durable."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server
from scp_server.errors import StorageError
from scp_server.index.base import Level, Scope
from scp_server.runtime.maintenance.backup import backup, restore
from scp_server.runtime.maintenance.deletion_record import Draft
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import rebuild
from scp_server.runtime.maintenance.verify import VerifyOptions, verify
from scp_server.services.unsettled import UnsettledLimits, UnsettledObjects
from scp_server.settings import Settings
from scp_server.storage.late_sync import LateSync
from scp_server.testing.archive import Archive
from scp_server.testing.objects import ct_image
from tests.unit.runtime.maintenance.conftest import Found

OBJECTS = [ct_image(seed=1), ct_image(seed=2), ct_image(seed=3, rows=512, columns=512)]
DURABLE: dict[str, Any] = {"storage": {"durability": "full"}}


@pytest.fixture
async def archive(tmp_path: Path) -> Archive:
    """Two objects that the index keeps, and a large one that it does not."""
    archive = Archive.at(tmp_path / "data", **DURABLE)
    unsettled = UnsettledObjects(UnsettledLimits())
    assert await archive.store(OBJECTS, unsettled=unsettled) == [0, 0, 0]
    return archive


def _cut_the_power(archive: Archive) -> tuple[str, str]:
    """Lose what was not synced; returns where it lay."""
    missing, empty, _ = [archive.location_of(stored) for stored in OBJECTS]
    (archive.data_dir / missing).unlink()
    (archive.data_dir / empty).write_bytes(b"")
    return missing, empty


async def _kept(archive: Archive) -> list[str]:
    async with archive.opened() as (_, index):
        return await index.unsynced()


async def test_verify_names_what_the_next_start_puts_back_and_changes_nothing(
    archive: Archive, found: Found
) -> None:
    lost = _cut_the_power(archive)
    rows, files = archive.rows(), archive.files()
    await verify(archive.settings, VerifyOptions(), found.append, NoProgress())
    assert found.by_kind()["left_over"] == sorted(lost)
    assert (archive.rows(), archive.files()) == (rows, files)
    assert sorted(await _kept(archive)) == sorted(lost)


async def test_verify_says_nothing_of_files_that_are_in_their_places(archive: Archive, found: Found) -> None:
    report = await verify(archive.settings, VerifyOptions(), found.append, NoProgress())
    assert report.findings.total == 0
    assert len(await _kept(archive)) == 2


async def test_a_repair_puts_them_back_and_drops_no_row(archive: Archive, found: Found) -> None:
    before = archive.files()
    lost = _cut_the_power(archive)
    report = await verify(
        archive.settings, VerifyOptions(repair=True, drop_danglers=True), found.append, NoProgress()
    )
    assert found.by_kind() == {"left_over": sorted(lost)}
    assert report.findings.left == 0
    assert archive.files() == before
    assert await _kept(archive) == []


async def test_a_rebuild_puts_them_back_before_the_old_index_goes(archive: Archive, found: Found) -> None:
    files, rows = archive.files(), archive.rows()
    _cut_the_power(archive)
    report = await rebuild(archive.settings, found.append, NoProgress())
    assert (report.objects, report.unreadable) == (3, 0)
    assert (archive.files(), archive.rows()) == (files, rows)
    assert await _kept(archive) == []


async def _rebuild(archive: Archive, found: Found) -> None:
    await rebuild(archive.settings, found.append, NoProgress())


async def _repair(archive: Archive, found: Found) -> None:
    options = VerifyOptions(repair=True, drop_danglers=True)
    await verify(archive.settings, options, found.append, NoProgress())


@pytest.mark.parametrize("run", [_rebuild, _repair])
async def test_where_one_cannot_be_put_back_its_row_stays(
    archive: Archive,
    found: Found,
    run: Callable[[Archive, Found], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    lost = _cut_the_power(archive)
    rows = archive.rows()
    with monkeypatch.context() as patched:
        patched.setattr(LateSync, "restore", fail)
        with pytest.raises(StorageError, match="2 files"):
            await run(archive, found)
    assert archive.rows() == rows
    assert sorted(await _kept(archive)) == sorted(lost)


async def test_a_restored_backup_is_settled_by_the_next_start(
    archive: Archive, found: Found, tmp_path: Path
) -> None:
    await backup(archive.settings, tmp_path / "backup", found.append, NoProgress(), copy_objects=True)
    back = Archive.at(tmp_path / "back", **DURABLE)
    await restore(back.settings, tmp_path / "backup", found.append, NoProgress())
    assert len(await _kept(back)) == 2
    _cut_the_power(back)
    await _start_and_stop(back)
    assert back.files() == archive.files()
    assert await _kept(back) == []


async def test_what_was_decided_to_be_deleted_is_not_put_back(archive: Archive) -> None:
    """The rows of a deletion go before anything is put back."""
    missing, empty = _cut_the_power(archive)
    draft = Draft(archive.data_dir)
    async with archive.opened() as (_, index):
        await draft.list(index, Scope(Level.INSTANCE, OBJECTS[0].sop_instance_uid), lambda: False)
    draft.decide()
    await _start_and_stop(archive)
    assert missing not in archive.files()
    assert archive.files()[empty].endswith(OBJECTS[1].dataset)


async def _start_and_stop(archive: Archive) -> None:
    sections: dict[str, Any] = {
        "listen": {"port": 0},
        "http": {"port": 0},
        "index": {"compare_at_start": False},
    }
    async with Server(Settings(data_dir=archive.data_dir, **sections, **DURABLE)):
        pass


async def test_an_index_that_is_gone_takes_what_only_it_had(archive: Archive, found: Found) -> None:
    """Nobody can know of it then; the large object is there."""
    _cut_the_power(archive)
    shutil.rmtree(archive.index_path.parent)
    report = await rebuild(archive.settings, found.append, NoProgress())
    assert (report.totals.parts, report.unreadable) == (1, 1)
