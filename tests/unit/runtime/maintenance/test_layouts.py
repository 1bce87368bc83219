"""An archive that three templates were used in, one after the other: everything finds all of it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from scp_server.index.base import Index, Level, Scope
from scp_server.observability.logs import captured_logs
from scp_server.runtime.build import build_storage_service_config
from scp_server.runtime.maintenance.backup import backup, restore
from scp_server.runtime.maintenance.carrying_out import finish_deletions
from scp_server.runtime.maintenance.comparison import Comparison, ComparisonReport
from scp_server.runtime.maintenance.deletion import Deletions
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import rebuild
from scp_server.runtime.maintenance.verify import VerifyOptions, verify
from scp_server.runtime.recovery import recover
from scp_server.services.storage import StorageService
from scp_server.storage.base import Storage
from scp_server.testing.archive import Archive
from scp_server.testing.dicos_objects import two_section_ct
from scp_server.testing.fake_operation import store_operation
from scp_server.testing.objects import Patient, ct_image
from scp_server.testing.watched_backends import Steps, WatchedIndex
from tests.unit.runtime.maintenance.conftest import Found, adopter_of, varied_objects

TEMPLATES = (
    "{study}/{series}/{instance}",
    "{patient}/{modality}/{study_date}/{study}/{series}/{instance}",
    "{calling_ae_title}-{study_year}/{series_uid}/{sop_class_uid}",
)
STUDY = "1.2.3.4"


def _at(data_dir: Path, template: str) -> Archive:
    return Archive.at(data_dir, storage={"durability": "process", "layout": template})


def _comparison(archive: Archive, storage: Storage, index: Index) -> Comparison:
    return Comparison(
        storage,
        index,
        adopter_of(archive, storage, index),
        objects_per_second=1_000_000,
        started_at_ns=time.time_ns(),
    )


@pytest.fixture
async def archives(tmp_path: Path) -> list[Archive]:
    """One folder, as each of the templates sees it; every one has put a part of the objects there."""
    archives = [_at(tmp_path / "data", template) for template in TEMPLATES]
    for number, archive in enumerate(archives):
        objects = varied_objects()[number::3]
        assert await archive.store(objects) == [0x0000] * len(objects)
    return archives


@pytest.fixture(params=range(3), ids=["default", "patient", "uids"])
def archive(archives: list[Archive], request: pytest.FixtureRequest) -> Archive:
    """The same folder under one of the templates."""
    number: int = request.param
    return archives[number]


def test_each_template_has_put_its_own_objects(archives: list[Archive]) -> None:
    depths = [name.count("/") for name in archives[0].files()]
    assert sorted(set(depths)) == [3, 4, 6]
    assert len(depths) == 11


async def test_a_listing_finds_all(archive: Archive) -> None:
    async with archive.opened() as (storage, index):
        listed = [stored async for stored in storage.list()]
        assert {stored.location: stored.size_bytes for stored in listed} == {
            name: len(data) for name, data in archive.files().items()
        }
        assert len(listed) == (await index.totals()).parts == 11


async def test_a_rebuilt_index_equals_what_it_was(archive: Archive, found: Found) -> None:
    rows, files = archive.rows(), archive.files()
    shutil.rmtree(archive.index_path.parent)
    report = await rebuild(archive.settings, found.append, NoProgress())
    assert (report.objects, report.totals.parts, found) == (11, 11, [])
    assert archive.rows() == rows
    assert archive.files() == files


async def test_verify_finds_nothing_wrong_and_what_is(archive: Archive, found: Found) -> None:
    report = await verify(archive.settings, VerifyOptions(), found.append, NoProgress())
    assert (report.objects, report.parts, found) == (11, 11, [])
    broken, gone, unknown = sorted(archive.files(), key=lambda name: name.count("/"))[::4]
    path = archive.data_dir / broken
    path.write_bytes(path.read_bytes()[:-2] + b"\xff\x00")
    (archive.data_dir / gone).unlink()
    async with archive.opened() as (_, index):
        await index.remove([unknown])
    await verify(archive.settings, VerifyOptions(), found.append, NoProgress())
    assert sorted(location for locations in found.by_kind().values() for location in locations) == sorted(
        [broken, gone, unknown]
    )


async def test_the_comparison_after_ready_adopts_all(archive: Archive) -> None:
    rows = archive.rows()
    async with archive.opened() as (storage, index):
        await index.remove(list(archive.files()))
        comparison = _comparison(archive, storage, index)
        await comparison.run()
    assert comparison.report == ComparisonReport(objects=11, parts=11, adopted=11)
    assert archive.rows() == rows


async def test_a_deletion_takes_every_file_and_the_folders_that_are_empty(tmp_path: Path) -> None:
    archives = [_at(tmp_path / "data", template) for template in TEMPLATES]
    for seed, each in enumerate(archives):
        await each.store([ct_image(seed=seed, study_instance_uid=STUDY)])
    archive = archives[0]
    async with archive.opened() as (storage, index):
        removed = await Deletions(archive.data_dir, storage, index).delete(Scope(Level.STUDY, STUDY))
    assert (removed.parts, removed.files, removed.failures) == (3, 3, 0)
    assert list((archive.data_dir / "objects").iterdir()) == []


async def test_a_deletion_that_a_crash_ended_is_finished(archive: Archive) -> None:
    locations = list(archive.files())
    record = archive.data_dir / "deletions" / "0123456789abcdef.deletion"
    record.parent.mkdir()
    record.write_text(
        "\n".join(['{"format": 1, "kind": "scp-server deletion", "rows": "kept"}', *locations, ""])
    )
    async with archive.opened() as (storage, index):
        assert await finish_deletions(archive.data_dir, storage, index) == 1
        assert (await index.totals()).parts == 0
    assert list((archive.data_dir / "objects").iterdir()) == []
    assert not record.exists()


@pytest.mark.parametrize("copy_objects", [False, True], ids=["links", "copies"])
async def test_what_is_restored_is_what_was_there(
    archives: list[Archive], tmp_path: Path, found: Found, copy_objects: bool
) -> None:
    taken = await backup(
        archives[1].settings, tmp_path / "backup", found.append, NoProgress(), copy_objects=copy_objects
    )
    back = _at(tmp_path / "back", TEMPLATES[2])
    await restore(back.settings, tmp_path / "backup", found.append, NoProgress())
    await verify(back.settings, VerifyOptions(), found.append, NoProgress())
    assert (taken.outline.objects, found) == (11, [])
    assert back.files() == archives[0].files()
    assert back.rows() == archives[0].rows()


async def test_the_same_bytes_again_are_kept_where_they_are(archive: Archive) -> None:
    files = archive.files()
    assert await archive.store(varied_objects()) == [0x0000] * 11
    assert archive.files() == files


async def test_what_is_replaced_goes_from_where_another_template_put_it(tmp_path: Path) -> None:
    first = ct_image(seed=1, sop_instance_uid="1.2.3")
    await _at(tmp_path, TEMPLATES[1]).store([first])
    other = Archive.at(
        tmp_path, storage={"durability": "process", "duplicates": "replace", "layout": TEMPLATES[0]}
    )
    second = ct_image(seed=2, sop_instance_uid="1.2.3")
    assert await other.store([second]) == [0x0000]
    assert list(other.files()) == [other.location_of(second)]
    assert len(list((tmp_path / "objects").iterdir())) == 1


@pytest.mark.parametrize("before", TEMPLATES)
async def test_what_was_in_flight_is_adopted_under_another_template(tmp_path: Path, before: str) -> None:
    after = _at(tmp_path, TEMPLATES[(TEMPLATES.index(before) + 1) % 3])
    objects = two_section_ct()
    config = build_storage_service_config(after.settings)
    async with _at(tmp_path, before).opened() as (storage, index):
        steps = Steps()
        steps.fail_at("add", RuntimeError("the process ends here"))
        service = StorageService(storage, WatchedIndex(index, steps), config)
        for each in objects:
            with pytest.raises(RuntimeError):
                await service.store(store_operation(each))
    async with after.opened() as (storage, index):
        report = await recover(storage, index, config)
        assert (report.examined, report.adopted) == (2, 2)
        parts = await index.parts(objects[0].sop_instance_uid)
    assert [part.location for part in parts] == [after.location_of(each) for each in objects]


async def test_the_log_names_no_patient_whose_number_is_in_the_path(tmp_path: Path) -> None:
    archive = _at(tmp_path, TEMPLATES[1])
    await archive.store([ct_image(seed=n, patient=Patient("Zebra^Zoe", "ZEBRA-1")) for n in range(3)])
    lost, broken, unknown = archive.files()
    assert all("ZEBRA-1" in name for name in (lost, broken, unknown))
    (tmp_path / lost).unlink()
    (tmp_path / broken).write_bytes(b"")
    async with archive.opened() as (storage, index):
        await index.remove([broken, unknown])
        with captured_logs("info") as logs:
            await _comparison(archive, storage, index).run()
    assert {line["event"] for line in logs} >= {"object.adopted", "object.unreadable", "object.missing"}
    assert "ZEBRA" not in str(logs)
    arrival_id = unknown.rpartition("-")[2]
    assert [line["location"] for line in logs if line["event"] == "object.adopted"] == [
        f"objects/**/*-{arrival_id}"
    ]
