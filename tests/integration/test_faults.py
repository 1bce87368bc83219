"""A full disk and a locked index: refused with 0xA700, nothing left over, and on again once it is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scp_server import Server, Settings
from scp_server.errors import IndexUnavailable
from scp_server.testing.daemon import expect_stored
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import Tag

OUT_OF_RESOURCES = 0xA700
DISK_BYTES = 8 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs of its own needs root and mount(8)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _settings(data_dir: Path, *, busy_timeout_seconds: float = 0.2, durability: str = "full") -> Settings:
    sections = {
        "listen": {"port": 0},
        "http": {"port": 0},
        "data_dir": data_dir,
        "drain_timeout_seconds": 2,
        "storage": {"durability": durability, "reserve_bytes": 0},
        "index": {"busy_timeout_seconds": busy_timeout_seconds},
    }
    return Settings(**sections)  # type: ignore[arg-type]


def _fill(disk: Path) -> Path:
    """Take all the space that is left."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    assert os.statvfs(disk).f_bavail == 0
    return ballast


def _left_over(data_dir: Path) -> list[Path]:
    return list(data_dir.rglob("*.part"))


async def _peer(server: Server, *objects: EncodedObject) -> ScriptedPeer:
    peer = await ScriptedPeer.connect(*server.address)
    await peer.associate(storage_contexts(*objects))
    return peer


async def _until_stored(peer: ScriptedPeer, stored: EncodedObject, seconds: float) -> None:
    """Send until it is kept. Raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while (status := await peer.store(stored)) != 0x0000:
            assert status == OUT_OF_RESOURCES
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("durability", ["full", "process"])
@pytest.mark.parametrize("side", [16, 512, 1536], ids=["small", "of one write", "of several writes"])
async def test_a_full_disk_is_a700_leaves_nothing_and_is_over_within_a_second_of_space(
    small_disk: Path, durability: str, side: int
) -> None:
    data_dir = small_disk / "data"
    kept, refused = ct_image(seed=1), ct_image(rows=side, columns=side, seed=2)
    async with Server(_settings(data_dir, durability=durability)) as server:
        async with await _peer(server, kept) as peer:
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
            assert _left_over(data_dir) == []
            expect_stored(data_dir, [kept])
            assert (await server.index.totals()).parts == 1
            ballast.unlink()
            await _until_stored(peer, refused, 1.0)
        expect_stored(data_dir, [kept, refused])
        assert (await server.index.totals()).parts == 2
    assert not list((data_dir / "incoming").iterdir()), "nothing is in flight any more"


async def test_objects_are_taken_until_the_disk_is_full_and_what_was_acknowledged_is_there(
    small_disk: Path,
) -> None:
    data_dir = small_disk / "data"
    objects = [ct_image(rows=256, columns=256, seed=seed) for seed in range(100)]
    kept = []
    async with Server(_settings(data_dir)) as server, await _peer(server, objects[0]) as peer:
        for stored in objects:
            status = await peer.store(stored)
            assert status in (0x0000, OUT_OF_RESOURCES)
            if status == 0x0000:
                kept.append(stored)
        assert 10 < len(kept) < len(objects)
        assert await peer.echo() == 0x0000
        assert _left_over(data_dir) == []
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
    async with Server(_settings(data_dir)) as server, await _peer(server, objects[0]) as peer:
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
        await _until_stored(peer, refused[-1], 1.0)
        expect_stored(data_dir, [*kept, refused[-1]])


async def test_a_disk_that_is_full_at_the_start_is_said_and_harms_nothing(small_disk: Path) -> None:
    data_dir = small_disk / "data"
    async with Server(_settings(data_dir)) as server, await _peer(server, ct_image()) as peer:
        assert await peer.store(ct_image()) == 0x0000
    ballast = _fill(small_disk)
    with pytest.raises(IndexUnavailable, match=r"full|I/O error"):
        await Server(_settings(data_dir)).start()
    ballast.unlink()
    async with Server(_settings(data_dir)) as server:
        assert (await server.index.totals()).parts == 1
    expect_stored(data_dir, [ct_image()])


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
    stored = ct_image()
    async with Server(_settings(data_dir)) as server, await _peer(server, stored) as peer:
        with lock_index():
            await peer.send_store(stored)
            response = await peer.read_response()
            assert (response.status, response.error_comment) == (
                OUT_OF_RESOURCES,
                "the object cannot be indexed",
            )
            expect_stored(data_dir, [])
            assert await peer.echo() == 0x0000
        assert await peer.store(stored) == 0x0000
        expect_stored(data_dir, [stored])


async def test_a_short_lock_is_waited_for(
    tmp_path: Path, lock_index: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    stored = ct_image()
    server = Server(_settings(tmp_path / "data", busy_timeout_seconds=5))
    async with server, await _peer(server, stored) as peer, await _peer(server, stored) as other:
        with lock_index():
            began = time.monotonic()
            await peer.send_store(stored)
            assert await other.echo() == 0x0000
            assert time.monotonic() - began < 1, "the event loop does not wait for the index"
        assert (await peer.read_response()).status == 0x0000


async def test_an_index_that_is_locked_at_the_start_is_said(
    tmp_path: Path, lock_index: Callable[[], contextlib.AbstractContextManager[object]]
) -> None:
    async with Server(_settings(tmp_path / "data")):
        pass
    with lock_index(), pytest.raises(IndexUnavailable, match="locked"):
        await Server(_settings(tmp_path / "data")).start()
    async with Server(_settings(tmp_path / "data")) as server, await _peer(server, ct_image()) as peer:
        assert await peer.store(ct_image()) == 0x0000
