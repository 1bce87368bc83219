"""An index that is taken away or spoilt under the running server: no false Success, and a way back."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from scp_server import Server
from scp_server.observability.logs import captured_logs
from scp_server.runtime.maintenance.progress import NoProgress
from scp_server.runtime.maintenance.rebuild import rebuild
from scp_server.testing.daemon import expect_stored
from scp_server.testing.objects import ct_image
from tests.integration.faults import OUT_OF_RESOURCES, associated, expect_well, settings_of, until_stored

KEPT = [ct_image(seed=seed) for seed in range(3)]
REFUSED, OTHER = ct_image(seed=8), ct_image(seed=9)


def _delete_file(folder: Path) -> None:
    (folder / "index.sqlite").unlink()


def _delete_log(folder: Path) -> None:
    (folder / "index.sqlite-wal").unlink()


def _delete_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def _replace_file(folder: Path) -> None:
    """By an older copy, as somebody would who restores the index alone."""
    copy = folder / "copy"
    shutil.copyfile(folder / "index.sqlite", copy)
    copy.replace(folder / "index.sqlite")


def _spoil(folder: Path) -> None:
    """Every page but the first, and another process has written, so that they are read anew."""
    path = folder / "index.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA user_version = 1")
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


@pytest.mark.parametrize(
    ("lose", "why"),
    [
        (_delete_file, "was deleted, moved or replaced"),
        (_delete_log, "was deleted, moved or replaced"),
        (_delete_folder, "was deleted, moved or replaced"),
        (_move_folder, "was deleted, moved or replaced"),
        (_replace_file, "was deleted, moved or replaced"),
        (_spoil, "malformed"),
    ],
)
async def test_without_its_index_nothing_is_acknowledged_and_a_rebuild_finds_what_was(
    tmp_path: Path, lose: Callable[[Path], None], why: str
) -> None:
    data_dir = tmp_path / "data"
    async with (
        Server(settings_of(data_dir)) as server,
        await associated(server, *KEPT) as peer,
        await associated(server, OTHER) as bystander,
    ):
        assert [await peer.store(stored) for stored in KEPT] == [0x0000] * len(KEPT)
        lose(data_dir / "index")
        with captured_logs() as logs:
            for _ in range(2):
                await peer.send_store(REFUSED)
                response = await peer.read_response()
                assert (response.status, response.error_comment) == (
                    OUT_OF_RESOURCES,
                    "the object cannot be indexed",
                )
            assert await bystander.store(OTHER) == OUT_OF_RESOURCES
        failures = [record["error"] for record in logs if record["event"] == "index.failed"]
        assert len(failures) == 3
        assert all(why in failure for failure in failures)
        await expect_well(server, peer, bystander)
        expect_stored(data_dir, KEPT)
    await rebuild(settings_of(data_dir), lambda _finding: None, NoProgress())
    async with (
        Server(settings_of(data_dir)) as server,
        await associated(server, OTHER) as peer,
    ):
        for stored in KEPT:
            assert len(await server.index.parts(stored.sop_instance_uid)) == 1
        assert [await peer.store(stored) for stored in (*KEPT, REFUSED, OTHER)] == [0x0000] * 5
        assert (await server.index.totals()).parts == 5
    expect_stored(data_dir, [*KEPT, REFUSED, OTHER])


async def test_an_index_that_is_put_back_is_gone_on_with_within_a_second(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with (
        Server(settings_of(data_dir)) as server,
        await associated(server, *KEPT) as peer,
        await associated(server, OTHER) as bystander,
    ):
        assert await peer.store(KEPT[0]) == 0x0000
        _move_folder(data_dir / "index")
        assert await peer.store(REFUSED) == OUT_OF_RESOURCES
        (data_dir / "elsewhere").rename(data_dir / "index")
        await until_stored(peer, REFUSED, 1.0)
        await until_stored(bystander, OTHER, 1.0)
    async with Server(settings_of(data_dir)) as server:
        assert (await server.index.totals()).parts == 3
    expect_stored(data_dir, [KEPT[0], REFUSED, OTHER])


async def test_an_index_that_was_deleted_is_made_up_for_by_a_restart_alone(tmp_path: Path) -> None:
    """What the files know is adopted in the background; a rebuild keeps the order of parts as well."""
    data_dir = tmp_path / "data"
    async with Server(settings_of(data_dir)) as server, await associated(server, *KEPT) as peer:
        assert [await peer.store(stored) for stored in KEPT] == [0x0000] * len(KEPT)
        _delete_folder(data_dir / "index")
        assert await peer.store(REFUSED) == OUT_OF_RESOURCES
    async with Server(settings_of(data_dir)) as server, asyncio.timeout(10):
        while (await server.index.totals()).parts < len(KEPT):
            await asyncio.sleep(0.01)
        for stored in KEPT:
            assert len(await server.index.parts(stored.sop_instance_uid)) == 1
