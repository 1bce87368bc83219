"""`index verify`: what is wrong between objects and index is found, both ways, and mended when asked."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from scp_server.errors import ConfigurationError, StorageError
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.verify import VerifyOptions, VerifyReport, verify
from scp_server.runtime.process import DataFolderLock
from scp_server.testing.archive import Archive
from scp_server.testing.dicos_objects import two_section_ct
from scp_server.testing.objects import ct_image
from tests.unit.runtime.maintenance.conftest import Found, Stages, varied_objects

QUICK = VerifyOptions(digest=False)
FULL = VerifyOptions()
REPAIR = VerifyOptions(repair=True)


async def _verify(archive: Archive, options: VerifyOptions, found: Found) -> VerifyReport:
    found.clear()
    return await verify(archive.settings, options, found.append, NoProgress())


def _forget(archive: Archive, *locations: str) -> None:
    """Rows vanish behind the server's back."""
    with closing(sqlite3.connect(archive.index_path)) as database:
        database.execute("PRAGMA foreign_keys = ON")
        for location in locations:
            database.execute("DELETE FROM parts WHERE location = ?", (location,))
        database.commit()


def _flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("options", [QUICK, FULL, REPAIR])
async def test_an_archive_in_order_has_no_findings(
    archive: Archive, found: Found, options: VerifyOptions
) -> None:
    await archive.store(varied_objects())
    rows, files = archive.rows(), archive.files()
    report = await _verify(archive, options, found)
    assert (report.objects, report.parts, report.findings.total, found) == (11, 11, 0, [])
    assert (archive.rows(), archive.files()) == (rows, files)


async def test_everything_wrong_is_found_and_nothing_is_changed(archive: Archive, found: Found) -> None:
    objects = [ct_image(seed=number) for number in range(5)]
    await archive.store(objects)
    whole, orphan, dangler, cut, flipped = [archive.location_of(each) for each in objects]
    _forget(archive, orphan)
    (archive.data_dir / dangler).unlink()
    with (archive.data_dir / cut).open("ab") as file:
        file.write(b"\0")
    _flip_last_byte(archive.data_dir / flipped)
    (archive.data_dir / "incoming" / "0a.part").write_bytes(b"half")
    rows, files = archive.rows(), archive.files()
    report = await _verify(archive, FULL, found)
    assert found.by_kind() == {
        "left_over": ["incoming/0a.part"],
        "orphan": [orphan],
        "dangler": [dangler],
        "size": [cut],
        "digest": [flipped],
    }
    assert (report.findings.left, report.objects, report.parts) == (5, 4, 4)
    assert (archive.rows(), archive.files()) == (rows, files)
    assert (archive.data_dir / "incoming" / "0a.part").exists()
    assert whole in files
    await _verify(archive, QUICK, found)
    assert set(found.by_kind()) == {"left_over", "orphan", "dangler", "size"}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda data: data.replace(b"DICM", b"XXXX", 1), "unreadable"),
        (lambda data: data.replace(b"SCPS", b"XXXX", 1), "unreadable"),
    ],
    ids=["no Part 10 file", "without arrival id"],
)
async def test_a_damaged_file_meta_is_found(archive: Archive, found: Found, spoil: object, kind: str) -> None:
    await archive.store([ct_image()])
    ((location, data),) = archive.files().items()
    assert callable(spoil)
    (archive.data_dir / location).write_bytes(spoil(data))
    await _verify(archive, FULL, found)
    assert found.by_kind() == {kind: [location]}


async def test_repair_adopts_orphans_in_order_of_arrival(archive: Archive, found: Found) -> None:
    await archive.store(varied_objects())
    rows = archive.rows()
    sections = [archive.location_of(section) for section in two_section_ct()]
    _forget(archive, *sections)
    report = await _verify(archive, REPAIR, found)
    assert found.by_kind() == {"orphan": sections}
    assert (report.findings.total, report.findings.left) == (2, 0)
    assert archive.rows()["parts"] == rows["parts"]
    assert archive.rows()["headers"] == rows["headers"]
    assert (await _verify(archive, FULL, found)).findings.total == 0


async def test_adopting_many_is_no_silence(archive: Archive) -> None:
    await archive.store(varied_objects())
    _forget(archive, *archive.files())
    progress = Stages()
    await verify(archive.settings, REPAIR, lambda _: None, progress)
    assert progress.of("looking at files").count(0) == len(archive.files())
    assert sum(progress.of("looking at files")) == len(archive.files())


async def test_repair_leaves_what_cannot_be_read(archive: Archive, found: Found) -> None:
    await archive.store([ct_image(seed=1), ct_image(seed=2)])
    cut, flipped = archive.location_of(ct_image(seed=1)), archive.location_of(ct_image(seed=2))
    _forget(archive, cut)
    (archive.data_dir / cut).write_bytes(archive.files()[cut][:-100])
    _flip_last_byte(archive.data_dir / flipped)
    files = archive.files()
    report = await _verify(archive, REPAIR, found)
    assert found.by_kind() == {"unreadable": [cut], "digest": [flipped]}
    assert report.findings.left == 2
    assert archive.files() == files


@pytest.mark.parametrize("twin_is_sound", [True, False])
async def test_a_duplicate_goes_only_when_its_twin_is_sound(
    archive: Archive, found: Found, twin_is_sound: bool
) -> None:
    await archive.store([ct_image()])
    ((kept, data),) = archive.files().items()
    twin = kept.replace("-1", "-f")
    (archive.data_dir / twin).write_bytes(data)
    if not twin_is_sound:
        _flip_last_byte(archive.data_dir / kept)
    report = await _verify(archive, REPAIR, found)
    assert found.by_kind()["duplicate"] == [twin]
    assert set(archive.files()) == ({kept} if twin_is_sound else {kept, twin})
    assert report.findings.left == (0 if twin_is_sound else 2)


async def test_danglers_go_only_when_asked_for(archive: Archive, found: Found) -> None:
    await archive.store([ct_image(seed=1), ct_image(seed=2)])
    dangler = archive.location_of(ct_image(seed=1))
    (archive.data_dir / dangler).unlink()
    assert (await _verify(archive, REPAIR, found)).findings.left == 1
    assert len(archive.rows()["parts"]) == 2
    drop = VerifyOptions(repair=True, drop_danglers=True)
    assert (await _verify(archive, drop, found)).findings.left == 0
    assert found.by_kind() == {"dangler": [dangler]}
    assert len(archive.rows()["instances"]) == 1
    assert (await _verify(archive, FULL, found)).findings.total == 0


async def test_danglers_stay_when_every_object_is_missing(archive: Archive, found: Found) -> None:
    await archive.store([ct_image(seed=1), ct_image(seed=2)])
    (archive.data_dir / "objects").rename(archive.data_dir / "elsewhere")
    with pytest.raises(StorageError, match="another disk"):
        await _verify(archive, VerifyOptions(repair=True, drop_danglers=True), found)
    assert len(archive.rows()["parts"]) == 2


async def test_dropping_danglers_needs_repair(archive: Archive, found: Found) -> None:
    with pytest.raises(ConfigurationError, match="--repair"):
        await _verify(archive, VerifyOptions(drop_danglers=True), found)


async def test_left_overs_are_cleared_by_repair(archive: Archive, found: Found) -> None:
    await archive.store([ct_image()])
    (archive.data_dir / "incoming" / "0a.part").write_bytes(b"half")
    assert (await _verify(archive, REPAIR, found)).findings.left == 0
    assert not (archive.data_dir / "incoming" / "0a.part").exists()


async def test_a_running_server_and_a_missing_index_are_refused(archive: Archive, found: Found) -> None:
    await archive.store([ct_image()])
    lock = DataFolderLock(archive.data_dir)
    lock.acquire()
    with pytest.raises(ConfigurationError, match="in use by the process"):
        await _verify(archive, FULL, found)
    lock.release()
    archive.index_path.unlink()
    with pytest.raises(ConfigurationError, match="index rebuild"):
        await _verify(archive, FULL, found)
    assert not archive.index_path.exists()
