"""A file that a newcomer replaced, and that a crash left to be deleted, never comes back."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from scp_server.runtime.maintenance.comparison import Comparison
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import rebuild
from scp_server.runtime.maintenance.verify import VerifyOptions, verify
from scp_server.testing.archive import Archive
from scp_server.testing.objects import ct_image
from tests.unit.runtime.maintenance.conftest import Found, adopter_of

OLDER = ct_image(seed=1)
NEWER = ct_image(seed=2, sop_instance_uid=OLDER.sop_instance_uid)


@pytest.fixture
async def archive(tmp_path: Path) -> Archive:
    """An archive as it is between a replacement's commit and the deletion of the replaced file."""
    archive = Archive.at(tmp_path / "data", storage={"durability": "process", "duplicates": "replace"})
    await archive.store([OLDER])
    replaced = archive.location_of(OLDER)
    content = archive.files()[replaced]
    await archive.store([NEWER])
    assert replaced not in archive.files()
    (archive.data_dir / replaced).parent.mkdir(parents=True, exist_ok=True)
    (archive.data_dir / replaced).write_bytes(content)
    with closing(sqlite3.connect(archive.index_path)) as database:
        database.execute("INSERT OR IGNORE INTO discarded_objects VALUES (?)", (replaced,))
        database.commit()
    return archive


def _only_the_newer_is_kept(archive: Archive, rows: object) -> bool:
    return archive.rows() == rows and list(archive.files()) == [archive.location_of(NEWER)]


async def test_the_background_comparison_does_not_adopt_it(archive: Archive) -> None:
    rows = archive.rows()
    async with archive.opened() as (storage, index):
        adopter = adopter_of(archive, storage, index)
        comparison = Comparison(
            storage, index, adopter, objects_per_second=1_000_000, started_at_ns=time.time_ns()
        )
        await comparison.run()
    assert (comparison.report.objects, comparison.report.adopted) == (2, 0)
    assert archive.rows() == rows


async def test_verify_does_not_call_it_an_orphan_and_repair_deletes_it(
    archive: Archive, found: Found
) -> None:
    rows = archive.rows()
    await verify(archive.settings, VerifyOptions(digest=False), found.append, NoProgress())
    assert found == []
    await verify(archive.settings, VerifyOptions(repair=True), found.append, NoProgress())
    assert _only_the_newer_is_kept(archive, rows)


async def test_rebuild_deletes_it_before_it_looks_at_the_files(archive: Archive, found: Found) -> None:
    rows = archive.rows()
    report = await rebuild(archive.settings, found.append, NoProgress())
    assert report.totals.parts == 1
    assert _only_the_newer_is_kept(archive, rows)
