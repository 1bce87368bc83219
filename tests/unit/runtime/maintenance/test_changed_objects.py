"""Objects that were changed on arrival, under all that looks after an archive: they stay what they were."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from scp_server.objects.part10 import read_file_meta
from scp_server.runtime.maintenance.backup import backup, restore
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import rebuild
from scp_server.runtime.maintenance.verify import VerifyOptions, VerifyReport, verify
from scp_server.testing.archive import Archive
from scp_server.testing.objects import ct_image
from tests.unit.runtime.maintenance.conftest import Found, varied_objects

RULE = {"name": "id", "set": {"PatientID": "CHANGED-{PatientID}"}, "remove": ["StudyID"]}


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """One whose medical objects are all changed when they come."""
    return Archive.at(tmp_path / "data", coerce=[RULE])


async def _verify(archive: Archive, found: Found, options: VerifyOptions | None = None) -> VerifyReport:
    found.clear()
    return await verify(archive.settings, options or VerifyOptions(), found.append, NoProgress())


def _changed(archive: Archive) -> list[str]:
    with closing(sqlite3.connect(archive.index_path)) as database:
        rows = database.execute(
            "SELECT location FROM parts WHERE stored_digest IS NOT NULL ORDER BY location"
        )
        return [location for (location,) in rows]


async def test_a_rebuilt_index_knows_them_by_what_was_received(archive: Archive) -> None:
    objects = varied_objects()
    assert await archive.store(objects) == [0x0000] * len(objects)
    rows, files = archive.rows(), archive.files()
    changed = _changed(archive)
    assert 0 < len(changed) < len(objects), "DICOS objects are not"
    shutil.rmtree(archive.index_path.parent)
    report = await rebuild(archive.settings, Found().append, NoProgress())
    assert (report.totals.parts, report.unreadable, report.duplicates) == (len(objects), 0, 0)
    assert (archive.rows(), archive.files(), _changed(archive)) == (rows, files, changed)
    assert await archive.store(objects) == [0x0000] * len(objects)
    assert archive.files() == files


async def test_verify_compares_them_with_what_was_stored(archive: Archive, found: Found) -> None:
    await archive.store(varied_objects())
    assert (await _verify(archive, found)).findings.total == 0
    damaged = archive.data_dir / _changed(archive)[0]
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    await _verify(archive, found)
    assert found.by_kind() == {"digest": [_changed(archive)[0]]}
    damaged.write_bytes(data)
    with closing(sqlite3.connect(archive.index_path)) as database:
        database.execute("UPDATE parts SET digest = ? WHERE location = ?", (bytes(32), _changed(archive)[0]))
        database.commit()
    await _verify(archive, found)
    assert found.by_kind() == {"unreadable": [_changed(archive)[0]]}, "its file says what was received"


async def test_those_that_the_index_has_forgotten_are_adopted_as_they_were(
    archive: Archive, found: Found
) -> None:
    await archive.store([ct_image(seed=1), ct_image(seed=2)])
    rows = archive.rows()
    with closing(sqlite3.connect(archive.index_path)) as database:
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("DELETE FROM parts")
        database.commit()
    await _verify(archive, found, VerifyOptions(repair=True))
    assert set(found.by_kind()) == {"orphan"}
    assert archive.rows()["parts"] == rows["parts"]


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_duplicate_goes_only_while_the_one_that_stays_is_whole(
    archive: Archive, found: Found, damaged: bool
) -> None:
    await archive.store([ct_image()])
    (location,) = _changed(archive)
    path = archive.data_dir / location
    data = path.read_bytes()
    meta = read_file_meta(data)
    assert meta.arrival_id is not None
    later = f"{int(meta.arrival_id, 16) + 1:0{len(meta.arrival_id)}x}"
    twin = path.with_name(path.name.replace(meta.arrival_id, later))
    twin.write_bytes(data.replace(meta.arrival_id.encode(), later.encode()))
    if damaged:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    await _verify(archive, found, VerifyOptions(repair=True))
    assert found.by_kind()["duplicate"] == [str(twin.relative_to(archive.data_dir))]
    assert twin.exists() == damaged


async def test_what_is_backed_up_and_restored_is_sound(
    archive: Archive, tmp_path: Path, found: Found
) -> None:
    await archive.store(varied_objects())
    report = await backup(archive.settings, tmp_path / "backup", found.append, NoProgress())
    assert report.findings.total == 0
    back = Archive.at(tmp_path / "back")
    await restore(back.settings, tmp_path / "backup", found.append, NoProgress())
    assert (back.rows(), back.files(), list(found)) == (archive.rows(), archive.files(), [])


async def test_another_rule_later_leaves_what_was_stored(archive: Archive, tmp_path: Path) -> None:
    stored = ct_image()
    await archive.store([stored])
    files = archive.files()
    later = Archive.at(archive.data_dir, coerce=[{"name": "other", "set": {"PatientID": "OTHER"}}])
    without = Archive.at(archive.data_dir)
    assert await later.store([stored]) == await without.store([stored]) == [0x0000]
    assert archive.files() == files
    (part,) = archive.rows()["parts"]
    assert blake3(stored.dataset).digest() in part
