"""`index rebuild`: the index is what it was, from the files alone."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from scp_server.errors import ConfigurationError, StorageError
from scp_server.runtime.build import build_index
from scp_server.runtime.maintenance import rebuild as module
from scp_server.runtime.maintenance.adoption import arrival_order
from scp_server.runtime.maintenance.arrival_plan import ArrivalPlan
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import RebuildReport, rebuild
from scp_server.runtime.process import DataFolderLock
from scp_server.storage.base import StoredObject
from scp_server.testing.archive import Archive
from scp_server.testing.dicos_objects import Scan, dicos_ct, dicos_tdr, two_section_ct
from scp_server.testing.objects import ct_image
from tests.unit.runtime.maintenance.conftest import Found, varied_objects


async def _rebuild(archive: Archive, found: Found | None = None) -> RebuildReport:
    return await rebuild(archive.settings, (Found() if found is None else found).append, NoProgress())


@pytest.mark.parametrize("before", ["whole", "deleted", "no database", "empty"])
async def test_the_rebuilt_index_equals_what_it_was(archive: Archive, before: str) -> None:
    objects = varied_objects()
    assert await archive.store(objects) == [0x0000] * len(objects)
    conflict = ct_image(seed=99, sop_instance_uid=objects[0].sop_instance_uid)
    assert await archive.store([conflict, objects[1]], "ELSEWHERE") == [0xC111, 0x0000]
    rows, files = archive.rows(), archive.files()
    if before == "deleted":
        shutil.rmtree(archive.index_path.parent)
    elif before == "no database":
        archive.index_path.write_bytes(b"nothing that SQLite knows" * 100)
    elif before == "empty":
        archive.index_path.write_bytes(b"")
    report = await _rebuild(archive)
    assert archive.rows() == rows
    assert archive.files() == files
    assert (report.objects, report.totals.parts, report.unreadable, report.duplicates) == (11, 11, 0, 0)
    assert report.totals.instances == 10
    assert (report.kept_copy is None) == (before == "deleted")
    left = {path.name for path in archive.index_path.parent.iterdir()} - {"spare"}
    assert left == {archive.index_path.name} | ({report.kept_copy.name} if report.kept_copy else set())


async def test_the_old_index_is_kept_with_what_its_log_held(archive: Archive) -> None:
    await archive.store([ct_image(seed=1)])
    rows = archive.rows()
    reader = sqlite3.connect(archive.index_path)
    reader.execute("SELECT count(*) FROM parts").fetchone()
    await archive.store([ct_image(seed=2)])
    assert archive.index_path.with_name("index.sqlite-wal").stat().st_size > 0
    both = archive.rows()
    reader.close()
    report = await _rebuild(archive)
    assert report.kept_copy is not None
    assert archive.rows() == both != rows
    shutil.copyfile(report.kept_copy, archive.index_path)
    assert archive.rows() == both


async def test_the_event_log_goes_on_and_what_is_found_again_is_not_told_of(archive: Archive) -> None:
    await archive.store([ct_image(seed=1), ct_image(seed=2)])
    index = build_index(archive.settings)
    await index.open()
    before = await index.event_log.rows(0, 1_000)
    await index.close()
    assert len(before) >= 2
    await _rebuild(archive)
    await index.open()
    assert await index.event_log.rows(0, 1_000) == before
    await index.close()


async def test_two_rebuilds_in_a_second_keep_two_copies(archive: Archive) -> None:
    await archive.store([ct_image()])
    copies = {(await _rebuild(archive)).kept_copy for _ in range(3)}
    assert len(copies) == 3
    assert all(copy is not None and copy.exists() for copy in copies)


async def test_an_archive_goes_on_after_a_rebuild(archive: Archive) -> None:
    objects = varied_objects()
    await archive.store(objects)
    await _rebuild(archive)
    third = two_section_ct(seed=7)[0]
    assert await archive.store([*objects, third]) == [0x0000] * 12
    assert len(archive.files()) == 12


async def test_unreadable_files_are_listed_and_left_and_the_rest_is_indexed(
    archive: Archive, found: Found
) -> None:
    objects = [ct_image(seed=number) for number in range(4)]
    await archive.store(objects)
    cut, empty = archive.location_of(objects[1]), archive.location_of(objects[3])
    (archive.data_dir / cut).write_bytes(archive.files()[cut][:-1])
    (archive.data_dir / empty).write_bytes(b"")
    files = archive.files()
    report = await _rebuild(archive, found)
    assert found.by_kind() == {"unreadable": [cut, empty]}
    assert all(finding.detail for finding in found)
    assert (report.unreadable, report.totals.parts) == (2, 2)
    assert archive.files() == files


async def test_the_same_bytes_twice_are_one_part_and_both_files_stay(archive: Archive, found: Found) -> None:
    await archive.store([ct_image()])
    ((location, data),) = archive.files().items()
    twin = location.replace("-1", "-f")
    (archive.data_dir / twin).write_bytes(data)
    report = await _rebuild(archive, found)
    assert (report.duplicates, report.totals.parts) == (1, 1)
    assert found.by_kind() == {"duplicate": [twin]}
    assert set(archive.files()) == {location, twin}


async def test_parts_that_a_policy_of_the_past_allowed_are_kept(tmp_path: Path) -> None:
    liberal = Archive.at(tmp_path, storage={"durability": "process", "duplicates": "parts"})
    first = ct_image(seed=1)
    assert await liberal.store([first, ct_image(seed=2, sop_instance_uid=first.sop_instance_uid)]) == [0, 0]
    rows = liberal.rows()
    await _rebuild(Archive.at(tmp_path))
    assert liberal.rows() == rows
    assert len(rows["parts"]) == 2


async def test_a_running_server_is_not_disturbed(archive: Archive) -> None:
    await archive.store([ct_image()])
    lock = DataFolderLock(archive.data_dir)
    lock.acquire()
    with pytest.raises(ConfigurationError, match="in use by the process"):
        await _rebuild(archive)
    lock.release()


async def test_a_folder_that_is_no_archive_is_refused_and_not_made(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigurationError, match="holds neither"):
            await _rebuild(Archive.at(folder))
    assert list(tmp_path.iterdir()) == []


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from scp_server.index.store import SqlIndex
from scp_server.runtime.maintenance import adoption, rebuild
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.testing.archive import Archive

adoption.ADDED_TOGETHER = 3
seen = 0
advance = NoProgress.advance

def count(self, number=1):
    global seen
    seen += number
    if seen == 12:
        os.kill(os.getpid(), signal.SIGKILL)

NoProgress.advance = count
rebuild.PAGE = 4
NoProgress.begin = lambda self, stage, total: globals().update(seen=0 if stage == "indexing" else -1_000)
asyncio.run(rebuild.rebuild(Archive.at(Path(sys.argv[1])).settings, print, NoProgress()))
"""


def _kill_a_rebuild(archive: Archive) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(archive.data_dir)], check=False, capture_output=True, timeout=60
    )
    assert done.returncode == -9, done.stderr.decode()


async def _store_parts(archive: Archive) -> None:
    objects = [section for seed in range(5) for section in two_section_ct(seed=seed)]
    objects = objects[::2] + objects[1::2] + [ct_image(seed=number) for number in range(5)]
    assert await archive.store(objects) == [0] * 15


async def test_a_killed_rebuild_leaves_the_old_index_and_is_taken_up_again(archive: Archive) -> None:
    await _store_parts(archive)
    rows = archive.rows()
    await asyncio.to_thread(_kill_a_rebuild, archive)
    assert archive.rows() == rows
    report = await _rebuild(archive)
    assert 11 <= report.resumed < 15
    assert report.totals.parts == 15
    assert archive.rows() == rows


async def test_a_killed_rebuild_is_begun_anew_when_an_object_has_gone_since(archive: Archive) -> None:
    await _store_parts(archive)
    await asyncio.to_thread(_kill_a_rebuild, archive)
    first = min(archive.files(), key=lambda location: arrival_order(StoredObject(location, 0)))
    (archive.data_dir / first).unlink()
    report = await _rebuild(archive)
    assert (report.resumed, report.objects, report.totals.parts) == (0, 14, 14)
    numbers = [row for row in archive.rows()["parts"] if row[-1] == two_section_ct()[0].sop_instance_uid]
    assert [row[0] for row in numbers] == [1]


async def test_an_unfinished_index_that_is_damaged_is_begun_anew(archive: Archive) -> None:
    await _store_parts(archive)
    rows = archive.rows()
    archive.index_path.with_name("index.sqlite.rebuild").write_bytes(b"SQLite format 3\0" + b"x" * 5_000)
    assert (await _rebuild(archive)).resumed == 0
    assert archive.rows() == rows


async def test_a_failing_rebuild_leaves_the_old_index(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive.store([ct_image()])
    rows = archive.rows()

    def fail(*_arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, "sync_directory", fail)
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        await _rebuild(archive)
    monkeypatch.undo()
    assert archive.rows() == rows
    assert (await _rebuild(archive)).resumed == 1


def test_a_plan_of_many_objects_takes_no_memory(tmp_path: Path) -> None:
    def batch(start: int) -> list[StoredObject]:
        return [
            StoredObject(f"objects/aa/{n % 97:020x}/{n:020x}-{n * 7919 % 100_003:022x}.dcm", n)
            for n in range(start, start + 500)
        ]

    plan = ArrivalPlan(tmp_path / "plan")
    tracemalloc.start()
    try:
        for start in range(0, 100_000, 500):
            plan.add(batch(start))
        assert plan.sort() == 100_000
        last: StoredObject | None = None
        count, previous = 0, ("", "")
        while page := plan.page(last, 500):
            assert previous < arrival_order(page[0])
            assert page == sorted(page, key=arrival_order)
            last, previous = page[-1], arrival_order(page[-1])
            count += len(page)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        plan.close()
    assert count == 100_000
    assert peak < 4 << 20
    assert list(tmp_path.iterdir()) == []


async def test_a_rebuilt_index_has_every_report_on_its_scan_and_the_same_decisions(archive: Archive) -> None:
    scanned, other = dicos_ct(), dicos_ct(seed=1, scan=Scan("BAG2", "SCAN-2"))
    objects = [
        dicos_tdr(scanned, tdr_type="OPERATOR", decision="CLEAR"),
        scanned,
        dicos_tdr(scanned),
        other,
        dicos_tdr(other, scan=Scan("BAG2", "SCAN-2")),
    ]
    assert await archive.store(objects) == [0] * len(objects)
    before = archive.rows()
    assert len(before["scan_reports"]) == 3
    await _rebuild(archive)
    assert archive.rows() == before
