"""What a reading of the metrics asks of the server, and what it does when the disk does not answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from scp_server.errors import StorageError
from scp_server.observability.loop_lag import LoopLag
from scp_server.runtime import sight
from scp_server.runtime.server import Server
from scp_server.settings import Settings
from scp_server.storage.sync import FreeSpace, SpaceReading

MakeSettings = Callable[..., Settings]


async def test_a_reading_tells_the_free_space_of_that_moment(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Server(make_settings()) as server:
        for free_bytes in (500, 400):
            reading = SpaceReading(free_bytes, 1000, 20)
            monkeypatch.setattr(FreeSpace, "read", lambda _self, reading=reading: reading)
            body, _ = await server._sight.scrape()
            assert f"scp_storage_free_bytes {free_bytes}.0\n".encode() in body
            assert b"scp_storage_size_bytes 1000.0\n" in body
            assert b"scp_storage_reserve_bytes 20.0\n" in body


async def test_a_disk_that_hangs_delays_a_reading_and_holds_one_thread(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), []

    def hang(_self: FreeSpace) -> SpaceReading:
        asked.append(threading.get_ident())
        answers.wait(10)
        return SpaceReading(500, 1000, 20)

    async with Server(make_settings()) as server:
        monkeypatch.setattr(sight, "SPACE_SECONDS", 0.01)
        with monkeypatch.context() as patched:
            patched.setattr(FreeSpace, "read", hang)
            for _ in range(3):
                body, _ = await server._sight.scrape()
                assert b"\nscp_storage_free_bytes" not in body
                assert b"\nscp_ready 1.0\n" in body
            looking = server._sight._looking
            assert looking is not None
            answers.set()
            await looking
        assert len(asked) == 1
        assert server._sight.levels().storage_free_bytes == 500


async def test_a_disk_that_fails_is_not_told_as_it_was(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_self: FreeSpace) -> SpaceReading:
        raise OSError(5, "Input/output error")

    async with Server(make_settings()) as server:
        await server._sight.scrape()
        assert server._sight.levels().storage_free_bytes is not None
        monkeypatch.setattr(FreeSpace, "read", fail)
        with pytest.raises(StorageError):
            await server._storage.space()
        body, _ = await server._sight.scrape()
        assert b"\nscp_storage_free_bytes" not in body


async def test_the_event_loop_is_watched_for_as_long_as_the_server_runs(make_settings: MakeSettings) -> None:
    server = Server(make_settings())
    lag: LoopLag = server._sight._lag
    await server.start()
    assert lag._timer is not None
    assert not lag._timer.cancelled()
    await server.stop()
    assert lag._timer is None


async def test_two_servers_in_a_process_count_for_themselves(
    make_settings: MakeSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = make_settings(data_dir=tmp_path_factory.mktemp("other"))
    async with Server(make_settings()) as first, Server(other) as second:
        _, writer = await asyncio.open_connection(*first.address)
        while not first._manager.connection_count:
            await asyncio.sleep(0)
        writer.close()
        assert b"\nscp_connections_opened_total 1.0\n" in (await first._sight.scrape())[0]
        assert b"\nscp_connections_opened_total 0.0\n" in (await second._sight.scrape())[0]
