"""A full disk and a locked index: refused with 0xA700, nothing left over, and on again once it is over."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scp_server import Server
from scp_server.errors import IndexUnavailable
from scp_server.testing.daemon import expect_stored
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.wire import Tag
from tests.integration.faults import (
    DISK_BYTES,
    OUT_OF_RESOURCES,
    associated,
    expect_well,
    left_over,
    settings_of,
    until_stored,
)


def _fill(disk: Path) -> Path:
    """Take all the space that is left."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert os.statvfs(disk).f_bavail == 0
    return ballast


@pytest.mark.parametrize("durability", ["full", "process"])
@pytest.mark.parametrize("side", [16, 512, 1536], ids=["small", "of one write", "of several writes"])
async def test_a_full_disk_is_a700_leaves_nothing_and_is_over_within_a_second_of_space(
    small_disk: Path, durability: str, side: int
) -> None:
    data_dir = small_disk / "data"
    kept, refused, other = ct_image(seed=1), ct_image(rows=side, columns=side, seed=2), ct_image(seed=3)
    async with Server(settings_of(data_dir, durability=durability)) as server:
        async with await associated(server, kept) as peer, await associated(server, other) as bystander:
            assert await peer.store(kept) == 0x0000
            ballast = _fill(small_disk)
            for _ in range(3):
                await peer.send_store(refused)
                response = await peer.read_response()
                assert response.status == OUT_OF_RESOURCES
                comment = response.error_comment
                assert comment in ("out of space", "the object cannot be indexed")
                assert str(small_disk) not in comment
                assert Tag.OFFENDING_ELEMENT not in response.elements
                assert await peer.echo() == 0x0000
            await expect_well(server, bystander)
            assert left_over(data_dir) == []
            expect_stored(data_dir, [kept])
            assert (await server.index.totals()).parts == 1
            ballast.unlink()
            await until_stored(peer, refused, 1.0)
            await until_stored(bystander, other, 1.0)
        expect_stored(data_dir, [kept, refused, other])
        assert (await server.index.totals()).parts == 3
    assert not list((data_dir / "incoming").iterdir()), "nothing is in flight any more"


async def test_objects_are_taken_until_the_disk_is_full_and_what_was_acknowledged_is_there(
    small_disk: Path,
) -> None:
    data_dir = small_disk / "data"
    objects = [ct_image(rows=256, columns=256, seed=seed) for seed in range(100)]
    kept = []
    async with Server(settings_of(data_dir)) as server, await associated(server, objects[0]) as peer:
        for stored in objects:
            status = await peer.store(stored)
            assert status in (0x0000, OUT_OF_RESOURCES)
            if status == 0x0000:
                kept.append(stored)
        assert 10 < len(kept) < len(objects)
        assert await peer.echo() == 0x0000
        assert left_over(data_dir) == []
        expect_stored(data_dir, kept)
        assert (await server.index.totals()).parts == len(kept)


async def test_an_index_on_a_full_disk_is_a700_and_what_it_cannot_record_is_taken_back(
    small_disk: Path, tmp_path: Path
) -> None:
    """The objects lie elsewhere: only the index has no room."""
    data_dir = tmp_path / "data"
    (data_dir).mkdir()
    (data_dir / "index").symlink_to(small_disk)
    objects = [ct_image(rows=8, columns=8, seed=seed) for seed in range(60)]
    async with Server(settings_of(data_dir)) as server, await associated(server, objects[0]) as peer:
        assert await peer.store(objects[0]) == 0x0000
        ballast = _fill(small_disk)
        kept, refused = [objects[0]], list[EncodedObject]()
        for stored in objects[1:]:
            status = await peer.store(stored)
            (kept if status == 0x0000 else refused).append(stored)
        assert refused, "the index had room after all"
        expect_stored(data_dir, kept)
        assert (await server.index.totals()).parts == len(kept)
        ballast.unlink()
        await until_stored(peer, refused[-1], 1.0)
        expect_stored(data_dir, [*kept, refused[-1]])


async def test_a_disk_that_is_full_at_the_start_is_served_without_and_goes_on_with_space(
    small_disk: Path,
) -> None:
    data_dir = small_disk / "data"
    kept, refused = ct_image(seed=1), ct_image(rows=512, columns=512, seed=2)
    async with Server(settings_of(data_dir)) as server, await associated(server, kept) as peer:
        assert await peer.store(kept) == 0x0000
    # More than once: what makes room for the index is laid up again.
    for _ in range(2):
        ballast = _fill(small_disk)
        async with Server(settings_of(data_dir)) as server, await associated(server, refused) as peer:
            assert (await server.index.totals()).parts == 1
            assert await peer.echo() == 0x0000
            assert await peer.store(refused) == OUT_OF_RESOURCES
            expect_stored(data_dir, [kept])
            ballast.unlink()
            await until_stored(peer, refused, 1.0)
            expect_stored(data_dir, [kept, refused])
            (part,) = await server.index.parts(refused.sop_instance_uid)
            await server.storage.delete(part.location)
            await server.index.remove([part.location])


async def test_where_only_the_reserve_is_left_at_the_start_objects_are_refused(small_disk: Path) -> None:
    data_dir = small_disk / "data"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(DISK_BYTES // 2))
    settings = settings_of(data_dir, reserve_bytes=DISK_BYTES * 2 // 3)
    async with Server(settings) as server, await associated(server, ct_image()) as peer:
        for _ in range(2):
            assert await peer.store(ct_image()) == OUT_OF_RESOURCES
        assert await peer.echo() == 0x0000
        ballast.unlink()
        await until_stored(peer, ct_image(), 1.0)
    expect_stored(data_dir, [ct_image()])


@pytest.mark.parametrize("which", ["a new index", "one without its spare"])
async def test_a_disk_without_room_for_the_index_is_said_at_the_start_and_harms_nothing(
    small_disk: Path, which: str
) -> None:
    data_dir = small_disk / "data"
    async with Server(settings_of(data_dir)) as server, await associated(server, ct_image()) as peer:
        assert await peer.store(ct_image()) == 0x0000
    for file in (data_dir / "index").glob("*" if which == "a new index" else "spare"):
        file.unlink()
    ballast = _fill(small_disk)
    with pytest.raises(IndexUnavailable, match="its disk is full; make room and start again"):
        await Server(settings_of(data_dir)).start()
    ballast.unlink()
    async with Server(settings_of(data_dir)) as server, await associated(server, ct_image()) as peer:
        assert await peer.store(ct_image(seed=2)) == 0x0000
    expect_stored(data_dir, [ct_image(), ct_image(seed=2)])


@pytest.fixture
def lock_index(tmp_path: Path) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Inside the block another process's writer holds the database."""

    @contextlib.contextmanager
    def locked() -> Iterator[None]:
        path = tmp_path / "data" / "index" / "index.sqlite"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            yield
            database.execute("ROLLBACK")

    return locked


async def test_an_index_that_another_process_locks_is_a700_and_goes_on_when_it_is_free(
    tmp_path: Path, lock_index: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    data_dir = tmp_path / "data"
    stored, other = ct_image(), ct_image(seed=9)
    async with (
        Server(settings_of(data_dir)) as server,
        await associated(server, stored) as peer,
        await associated(server, other) as bystander,
    ):
        with lock_index():
            await peer.send_store(stored)
            response = await peer.read_response()
            assert (response.status, response.error_comment) == (
                OUT_OF_RESOURCES,
                "the object cannot be indexed",
            )
            expect_stored(data_dir, [])
            await expect_well(server, peer, bystander)
        await until_stored(peer, stored, 1.0)
        await until_stored(bystander, other, 1.0)
        expect_stored(data_dir, [stored, other])


async def test_a_short_lock_is_waited_for(
    tmp_path: Path, lock_index: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    stored = ct_image()
    server = Server(settings_of(tmp_path / "data", busy_timeout_seconds=5))
    async with server, await associated(server, stored) as peer, await associated(server, stored) as other:
        with lock_index():
            began = time.monotonic()
            await peer.send_store(stored)
            assert await other.echo() == 0x0000
            assert time.monotonic() - began < 1, "the event loop does not wait for the index"
        assert (await peer.read_response()).status == 0x0000


async def test_an_index_that_is_locked_at_the_start_is_said(
    tmp_path: Path, lock_index: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    async with Server(settings_of(tmp_path / "data")):
        pass
    with lock_index(), pytest.raises(IndexUnavailable, match="locked"):
        await Server(settings_of(tmp_path / "data")).start()
    async with Server(settings_of(tmp_path / "data")) as server, await associated(server, ct_image()) as peer:
        assert await peer.store(ct_image()) == 0x0000
