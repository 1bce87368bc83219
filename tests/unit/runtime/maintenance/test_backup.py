"""`backup` and `restore`: what comes back is what was there, to the byte, and what is wrong is named."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server
from scp_server.errors import ConfigurationError, IndexUnavailable, StorageError
from scp_server.index.base import Level, Scope
from scp_server.runtime.maintenance import backup as module
from scp_server.runtime.maintenance import copying
from scp_server.runtime.maintenance.backup import BackupReport, backup, restore
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.verify import VerifyOptions, verify
from scp_server.runtime.process import DataFolderLock
from scp_server.storage.sync import write_all
from scp_server.testing.archive import Archive
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from tests.unit.runtime.maintenance.conftest import Found, varied_objects


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Where backups go."""
    return tmp_path / "backups" / "today"


@pytest.fixture
def back(tmp_path: Path) -> Archive:
    """Where they are restored to."""
    return Archive.at(tmp_path / "back")


async def _backup(archive: Archive, output: Path, found: Found, **options: bool) -> BackupReport:
    found.clear()
    return await backup(archive.settings, output, found.append, NoProgress(), **options)


async def _restore(archive: Archive, source: Path, found: Found) -> BackupReport:
    found.clear()
    return await restore(archive.settings, source, found.append, NoProgress())


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("copy_objects", [False, True], ids=["links", "copies"])
async def test_what_is_restored_is_what_was_there(
    archive: Archive, back: Archive, output: Path, found: Found, copy_objects: bool
) -> None:
    await archive.store(varied_objects())
    report = await _backup(archive, output, found, copy_objects=copy_objects)
    assert (report.outline.objects, report.outline.parts, report.findings.total) == (11, 11, 0)
    assert report.linked == (0 if copy_objects else 11)
    links = {path.stat().st_nlink for path in (output / "objects").rglob("*.dcm")}
    assert links == ({1} if copy_objects else {2})
    assert {path.name for path in output.iterdir()} == {"manifest.jsonl", "index", "objects"}
    assert [path.name for path in (output / "index").iterdir()] == ["index.sqlite"]
    restored = await _restore(back, output, found)
    assert (restored.outline, restored.findings.total) == (report.outline, 0)
    assert back.files() == archive.files()
    assert back.rows() == archive.rows()
    assert (await verify(back.settings, VerifyOptions(), found.append, NoProgress())).findings.total == 0
    assert await back.store(varied_objects()) == [0] * 11


async def test_a_backup_while_objects_come_and_go_is_whole(
    archive: Archive, back: Archive, output: Path, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 2)
    early = [ct_image(seed=n, study_instance_uid=f"1.2.{n}") for n in range(8)]
    await archive.store(early)
    last = max(early, key=archive.location_of)
    gone = archive.location_of(last)
    settings = Archive.at(archive.data_dir, listen={"port": 0}, http={"port": 0}).settings
    async with Server(settings) as server:
        loop, reached, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def link_later(source: Path, target: Path, location: str) -> bool:
            loop.call_soon_threadsafe(reached.set)
            assert go_on.wait(30)
            return copying.link(source, target, location)

        monkeypatch.setattr(module, "link", link_later)
        running = asyncio.create_task(_backup(archive, output, found))
        await reached.wait()
        scope = Scope(Level.STUDY, last.study_instance_uid)
        await server._deletions.delete(scope)
        late = [ct_image(seed=n) for n in range(20, 30)]
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(storage_contexts(*late))
            assert [await peer.store(each) for each in late] == [0] * 10
        go_on.set()
        report = await running
    assert (report.outline.objects, report.outline.parts, report.findings.left) == (7, 7, 0)
    assert found.by_kind() == {"deleted_meanwhile": [gone]}
    await _restore(back, output, found)
    assert (await verify(back.settings, VerifyOptions(), found.append, NoProgress())).findings.total == 0
    assert {data[-1000:] for data in back.files().values()} == {
        each.dataset[-1000:] for each in early if each is not last
    }


async def test_what_is_damaged_or_missing_is_named(
    archive: Archive, back: Archive, output: Path, found: Found
) -> None:
    await archive.store([ct_image(seed=n) for n in range(3)])
    damaged, missing, _ = [archive.location_of(ct_image(seed=n)) for n in range(3)]
    data = archive.files()[damaged]
    (archive.data_dir / damaged).write_bytes(data[:-1] + b"\xff" + data[len(data) :])
    (archive.data_dir / missing).unlink()
    report = await _backup(archive, output, found)
    assert found.by_kind() == {"dangler": [missing], "digest": [damaged]}
    assert (report.findings.left, report.outline.objects, report.outline.parts) == (2, 2, 3)
    restored = await _restore(back, output, found)
    assert found.by_kind() == {"digest": [damaged]}
    assert restored.findings.left == 1
    assert back.files() == archive.files()


async def test_a_backup_that_was_damaged_since_is_found_and_the_rest_restored(
    archive: Archive, back: Archive, output: Path, found: Found
) -> None:
    await archive.store([ct_image(seed=n) for n in range(3)])
    await _backup(archive, output, found, copy_objects=True)
    flipped, missing, whole = [archive.location_of(ct_image(seed=n)) for n in range(3)]
    data = (output / flipped).read_bytes()
    (output / flipped).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (output / missing).unlink()
    assert (await _restore(back, output, found)).findings.left == 2
    assert found.by_kind() in (
        {"digest": [flipped], "dangler": [missing]},
        {"dangler": [missing], "digest": [flipped]},
    )
    assert set(back.files()) == {whole}
    assert not list(back.data_dir.rglob("*.tmp"))
    assert len(back.rows()["parts"]) == 3


async def test_a_damaged_index_is_not_restored(
    archive: Archive, back: Archive, output: Path, found: Found
) -> None:
    await archive.store([ct_image()])
    await _backup(archive, output, found)
    with (output / "index" / "index.sqlite").open("ab") as file:
        file.write(b"x")
    with pytest.raises(StorageError, match="index rebuild"):
        await _restore(back, output, found)
    assert back.files() == archive.files()
    assert not back.index_path.exists()


async def test_where_links_are_impossible_objects_are_copied(
    archive: Archive, output: Path, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    await archive.store([ct_image(seed=n) for n in range(3)])
    monkeypatch.setattr("os.link", link)
    report = await _backup(archive, output, found)
    assert (report.linked, report.outline.objects, report.findings.total) == (0, 3, 0)


@pytest.mark.parametrize(("number", "error"), [(errno.ENOSPC, StorageError), (errno.EIO, None)])
async def test_a_full_disk_ends_a_backup_and_an_unreadable_file_does_not(
    archive: Archive,
    output: Path,
    found: Found,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    error: type[Exception] | None,
) -> None:
    await archive.store([ct_image(seed=n) for n in range(3)])
    calls = 0

    def fail_once(descriptor: int, buffers: list[bytes]) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(number, os.strerror(number))
        return write_all(descriptor, buffers)

    monkeypatch.setattr(copying, "write_all", fail_once)
    if error is not None:
        with pytest.raises(error):
            await _backup(archive, output, found, copy_objects=True)
        assert not (output / "manifest.jsonl").exists()
    else:
        report = await _backup(archive, output, found, copy_objects=True)
        assert (report.findings.left, report.outline.objects) == (1, 2)
        assert list(found.by_kind()) == ["unreadable"]
    assert not list(output.rglob("*.dcm.tmp"))


async def test_folders_that_cannot_be_meant_are_refused(
    archive: Archive, back: Archive, output: Path, found: Found
) -> None:
    await archive.store([ct_image()])
    files = archive.files()
    for wrong in (archive.data_dir, archive.data_dir / "objects" / "x"):
        with pytest.raises(ConfigurationError, match="data folder itself"):
            await _backup(archive, wrong, found)
    output.mkdir(parents=True)
    await _backup(archive, output, found)
    with pytest.raises(ConfigurationError, match="not empty"):
        await _backup(archive, output, found)
    with pytest.raises(ConfigurationError, match="is not empty"):
        await _restore(archive, output, found)
    assert archive.files() == files
    lock = DataFolderLock(back.data_dir)
    lock.acquire()
    with pytest.raises(ConfigurationError, match="in use by the process"):
        await _restore(back, output, found)
    lock.release()
    archive.index_path.unlink()
    with pytest.raises(IndexUnavailable, match="there is no index"):
        await _backup(archive, output.with_name("other"), found)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda lines: lines[:-1], "is not whole"),
        (lambda lines: lines[1:], "does not know"),
        (lambda lines: [lines[0], *lines[2:]], "is not whole"),
        (lambda lines: [{**lines[0], "format": 2}, *lines[1:]], "does not know"),
        (lambda lines: [lines[0], {**lines[1], "location": "../../x"}, *lines[2:]], "no object"),
        (lambda lines: [lines[0], {**lines[1], "location": 5}, *lines[2:]], "no object"),
        (lambda lines: [lines[0], {**lines[1], "digest": "x"}, *lines[2:]], "without a digest"),
        (lambda lines: [lines[0], {**lines[1], "size_bytes": -1}, *lines[2:]], "without size_bytes"),
        (lambda lines: [lines[0], [1], *lines[1:]], "no JSON object"),
        (lambda lines: [lines[0], "x" * 10_000, *lines[1:]], "no JSON object"),
        (lambda lines: [], "is not whole"),
    ],
)
async def test_a_manifest_is_not_trusted(
    archive: Archive, back: Archive, output: Path, found: Found, edit: Any, reason: str
) -> None:
    await archive.store([ct_image(seed=n) for n in range(2)])
    await _backup(archive, output, found)
    lines = edit(_lines(output))
    (output / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigurationError, match=reason):
        await _restore(back, output, found)
    assert not back.data_dir.exists()


async def test_a_folder_without_a_manifest_is_no_backup(back: Archive, tmp_path: Path, found: Found) -> None:
    with pytest.raises(ConfigurationError, match="is no backup"):
        await _restore(back, tmp_path, found)
    assert not back.data_dir.exists()
