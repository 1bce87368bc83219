"""An archive whose layout was changed twice: everything is found, whichever layout has placed it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from scp_server.index.base import Level, Scope
from scp_server.observability.logs import captured_logs
from scp_server.runtime.build import build_storage_service_config
from scp_server.runtime.maintenance.backup import backup, restore
from scp_server.runtime.maintenance.comparison import Comparison
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import rebuild
from scp_server.runtime.maintenance.verify import VerifyOptions, verify
from scp_server.runtime.recovery import recover
from scp_server.testing.archive import Archive
from scp_server.testing.objects import Patient, ct_image
from scp_server.testing.stored_objects import content, listed
from tests.unit.runtime.maintenance.conftest import Found, adopter_of, varied_objects

TEMPLATES = (
    "{study_shard}/{study}/{series}",
    "{year}-{month}/{patient}/{modality}/from_{calling_ae_title}/{study_uid}/{series_uid}",
    "{series}",
)
OBJECTS = varied_objects()


async def filled(data_dir: Path) -> Archive:
    """Each layout's share of the objects, the last one in force."""
    for number, template in enumerate(TEMPLATES):
        archive = Archive.at(data_dir, storage={"layout": template, "durability": "process"})
        share = OBJECTS[number::3]
        assert await archive.store(share) == [0x0000] * len(share)
    return archive


def folders(archive: Archive) -> set[int]:
    """How deep the files lie."""
    return {location.count("/") for location in archive.files()}


async def test_every_object_is_listed_read_and_verified(tmp_path: Path, found: Found) -> None:
    archive = await filled(tmp_path)
    files = archive.files()
    assert len(files) == len(OBJECTS)
    assert folders(archive) == {2, 4, 7}
    async with archive.opened() as (storage, index):
        assert await listed(storage) == {location: len(data) for location, data in files.items()}
        assert await index.unknown_locations(list(files)) == []
        for location, data in files.items():
            assert await content(storage, location) == data
    report = await verify(archive.settings, VerifyOptions(digest=True), found.append, NoProgress())
    assert (report.objects, report.parts, found) == (len(files), len(files), [])


async def test_the_index_is_rebuilt_from_all_of_them(tmp_path: Path, found: Found) -> None:
    archive = await filled(tmp_path)
    rows = archive.rows()
    shutil.rmtree(archive.index_path.parent)
    report = await rebuild(archive.settings, found.append, NoProgress())
    assert report.objects == len(OBJECTS)
    assert archive.rows() == rows


async def test_they_go_with_their_directories(tmp_path: Path) -> None:
    archive = await filled(tmp_path)
    async with archive.opened() as (storage, index):
        for study in {each.study_instance_uid for each in OBJECTS}:
            await Deletions(archive.data_dir, storage, index).delete(Scope(Level.STUDY, study))
    assert archive.files() == {}
    assert list((archive.data_dir / "objects").iterdir()) == []


async def test_a_backup_holds_all_and_comes_back(tmp_path: Path, found: Found) -> None:
    archive = await filled(tmp_path / "data")
    await backup(archive.settings, tmp_path / "backup", found.append, NoProgress())
    back = Archive.at(tmp_path / "back", storage={"layout": TEMPLATES[1], "durability": "process"})
    await restore(back.settings, tmp_path / "backup", found.append, NoProgress())
    assert found == []
    assert (back.files(), back.rows()) == (archive.files(), archive.rows())


async def test_a_start_adopts_what_was_in_flight_in_another_layout(tmp_path: Path) -> None:
    for number, template in enumerate(TEMPLATES):
        archive = Archive.at(tmp_path, storage={"layout": template, "durability": "process"})
        await archive.store(OBJECTS[number : number + 1])
        directory = archive.location_of(OBJECTS[number]).rpartition("/")[0]
        (archive.data_dir / "incoming" / f"directories.{number + 1}").write_text(f"{directory}\n")
    rows = archive.rows()
    shutil.rmtree(archive.index_path.parent)
    async with archive.opened() as (storage, index):
        await recover(storage, index, build_storage_service_config(archive.settings))
        assert (await index.totals()).parts == 3
    assert archive.rows() == rows


async def test_the_log_names_no_patient_whose_number_is_in_the_path(tmp_path: Path) -> None:
    archive = Archive.at(tmp_path, storage={"layout": TEMPLATES[1], "durability": "process"})
    await archive.store([ct_image(seed=n, patient=Patient("Zebra^Zoe", "ZEBRA-1")) for n in range(3)])
    lost, broken, unknown = archive.files()
    assert all("ZEBRA-1" in name for name in (lost, broken, unknown))
    (tmp_path / lost).unlink()
    (tmp_path / broken).write_bytes(b"")
    async with archive.opened() as (storage, index):
        await index.remove([broken, unknown])
        comparison = Comparison(
            storage,
            index,
            adopter_of(archive, storage, index),
            objects_per_second=1_000_000,
            started_at_ns=time.time_ns(),
        )
        with captured_logs("info") as logs:
            await comparison.run()
    assert {log["event"] for log in logs} >= {"object.missing", "object.unreadable", "object.adopted"}
    assert "ZEBRA" not in repr(logs)
    assert unknown.rpartition("-")[2] in repr(logs)
