"""A read-only disk: said at the start, 0xA700 while it lasts, nothing left over, and on again after it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from scp_server import Server
from scp_server.errors import ConfigurationError, IndexUnavailable
from scp_server.testing import wire
from scp_server.testing.daemon import PROGRAM, expect_stored
from scp_server.testing.objects import ct_image
from scp_server.testing.wire import PDV, Control
from tests.integration.faults import (
    OUT_OF_RESOURCES,
    associated,
    expect_well,
    left_over,
    read_only,
    settings_of,
    until_stored,
)


@pytest.mark.parametrize("durability", ["full", "process"])
async def test_a_disk_that_turns_read_only_is_a700_and_over_within_a_second(
    small_disk: Path, durability: str
) -> None:
    data_dir = small_disk / "data"
    kept, refused, other = (ct_image(seed=seed) for seed in range(3))
    async with (
        Server(settings_of(data_dir, durability=durability)) as server,
        await associated(server, kept) as peer,
        await associated(server, other) as bystander,
    ):
        assert await peer.store(kept) == 0x0000
        with read_only(small_disk):
            for _ in range(3):
                await peer.send_store(refused)
                response = await peer.read_response()
                assert (response.status, response.error_comment) == (
                    OUT_OF_RESOURCES,
                    "the object cannot be written",
                )
            await expect_well(server, peer, bystander)
            expect_stored(data_dir, [kept])
        await until_stored(peer, refused, 1.0)
        await until_stored(bystander, other, 1.0)
        expect_stored(data_dir, [kept, refused, other])
        assert left_over(data_dir) == []
    assert not list((data_dir / "incoming").iterdir())


async def test_what_was_half_written_when_it_turned_is_gone_after_the_next_object(small_disk: Path) -> None:
    data_dir = small_disk / "data"
    halved, stored = ct_image(rows=512, columns=512, seed=1), ct_image(seed=2)
    settings = settings_of(data_dir, write_buffer_bytes=64 << 10)
    half, piece = 300_000, 50_000
    async with (
        Server(settings) as server,
        await associated(server, halved) as peer,
        await associated(server, stored) as bystander,
    ):
        command = wire.c_store_rq(1, halved.sop_class_uid, halved.sop_instance_uid)
        await peer.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
        for start in range(0, half, piece):
            await peer.send(wire.p_data_tf(PDV(3, Control.DATASET, halved.dataset[start : start + piece])))
        # Answered after what was sent before it has been read.
        assert await bystander.store(stored) == 0x0000
        assert left_over(data_dir), "nothing was written yet"
        with read_only(small_disk):
            for start in range(half, halved.size_bytes, piece):
                control = Control.LAST if start + piece >= halved.size_bytes else Control.DATASET
                await peer.send(wire.p_data_tf(PDV(3, control, halved.dataset[start : start + piece])))
            assert (await peer.read_response()).status == OUT_OF_RESOURCES
            await expect_well(server, peer, bystander)
        await until_stored(peer, halved, 1.0)
        assert left_over(data_dir) == []
        expect_stored(data_dir, [halved, stored])


async def test_a_start_on_a_read_only_disk_says_so_and_exits_2(small_disk: Path) -> None:
    data_dir = small_disk / "data"
    stored = ct_image()
    async with Server(settings_of(data_dir)) as server, await associated(server, stored) as peer:
        assert await peer.store(stored) == 0x0000
    with read_only(small_disk):
        for folder in (data_dir, small_disk / "new"):
            with pytest.raises(ConfigurationError, match=r"^data_dir: cannot use .*: Read-only file system$"):
                await Server(settings_of(folder)).start()
        ended = subprocess.run(
            [*PROGRAM, "serve", "--port", "0", "--http-port", "0", "--data-dir", str(data_dir)],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if "not_started" in line]
    assert "Read-only file system" in line
    assert "Traceback" not in ended.stderr
    async with Server(settings_of(data_dir)) as server, await associated(server, stored) as peer:
        assert await peer.store(stored) == 0x0000
        assert (await server.index.totals()).parts == 1


async def test_an_index_on_a_read_only_disk_is_said_at_the_start(small_disk: Path, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "index").symlink_to(small_disk)
    async with Server(settings_of(data_dir)) as server, await associated(server, ct_image()) as peer:
        assert await peer.store(ct_image()) == 0x0000
    with read_only(small_disk), pytest.raises(IndexUnavailable, match=r"index\.sqlite failed: "):
        await Server(settings_of(data_dir)).start()
    async with Server(settings_of(data_dir)) as server:
        assert (await server.index.totals()).parts == 1


async def test_an_index_whose_disk_turns_read_only_loses_nothing_that_was_acknowledged(
    small_disk: Path, tmp_path: Path
) -> None:
    """Its files are open, so it may go on; whatever it says must be true."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    (data_dir / "index").symlink_to(small_disk)
    objects = [ct_image(seed=seed) for seed in range(5)]
    async with Server(settings_of(data_dir)) as server, await associated(server, *objects) as peer:
        assert await peer.store(objects[0]) == 0x0000
        with read_only(small_disk):
            statuses = [await peer.store(stored) for stored in objects[1:]]
            await expect_well(server, peer)
        assert set(statuses) <= {0x0000, OUT_OF_RESOURCES}
        kept = [one for one, status in zip(objects, [0, *statuses], strict=True) if status == 0x0000]
        expect_stored(data_dir, kept)
        await until_stored(peer, objects[-1], 1.0)
    async with Server(settings_of(data_dir)) as server:
        for stored in kept:
            assert len(await server.index.parts(stored.sop_instance_uid)) == 1
