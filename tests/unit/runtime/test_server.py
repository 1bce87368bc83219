"""The server's life: started whole or not at all, drained, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scp_server.errors import ConfigurationError, IndexFailure, IndexUnavailable, SCPServerError, StorageError
from scp_server.observability.logs import captured_logs
from scp_server.runtime.daemon import serve
from scp_server.runtime.process import DataFolderLock
from scp_server.runtime.server import Server
from scp_server.settings import Settings
from scp_server.testing import wire
from scp_server.testing.scripted_peer import ScriptedPeer
from scp_server.testing.wire import ProposedContext

MakeSettings = Callable[..., Settings]
VERIFICATION = [ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))]


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A loopback port that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


async def _http_status(address: tuple[str, int], path: str) -> int:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1])


def _expect_free(data_dir: Path) -> None:
    """Nobody holds the folder. Raises ConfigurationError."""
    lock = DataFolderLock(data_dir)
    lock.acquire()
    lock.release()


def _open_files() -> set[str]:
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return set(links)


async def test_a_rule_that_cannot_be_made_keeps_the_server_from_starting_and_a_reload_from_being(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    """Whole or not at all: exit code 2 at the start, and nothing changed by a reload."""
    rule = {"name": "hook", "url": "https://example.org", "secret_file": tmp_path / "secret"}
    assert await serve(make_settings(webhook=[rule])) == 2
    async with Server(make_settings()) as server:
        before = server.settings
        with pytest.raises(ConfigurationError, match=r"webhook hook: secret_file .* cannot be read"):
            server.reload(make_settings(webhook=[rule], limits={"max_associations": 3}))
        assert server.settings is before
        (tmp_path / "secret").write_text("key")
        changed = server.reload(make_settings(webhook=[rule]))
        assert [change.key for change in changed] == ["webhook"]


async def test_the_ready_line_tells_where_it_listens_once_both_listeners_accept(
    make_settings: MakeSettings,
) -> None:
    with captured_logs() as logs:
        async with Server(make_settings()) as server:
            (ready,) = [record for record in logs if record["event"] == "server.ready"]
            assert (ready["dicom_host"], ready["dicom_port"]) == server.address
            assert (ready["http_host"], ready["http_port"]) == server.http_address
            assert (ready["pid"], ready["durability"]) == (os.getpid(), "process")
            assert ready["memory_ceiling_bytes"] > 0
            assert await _http_status(server.http_address, "/readyz") == 200
            async with await ScriptedPeer.connect(*server.address) as peer:
                await peer.associate(VERIFICATION)
                assert await peer.echo() == 0x0000
        assert [record["clean"] for record in logs if record["event"] == "server.stopped"] == [True]


async def test_while_draining_it_lives_but_is_not_ready(make_settings: MakeSettings) -> None:
    server = Server(make_settings())
    await server.start()
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(VERIFICATION)
        stopping = asyncio.create_task(server.stop())
        assert (await peer.read_pdu()).pdu_type == wire.PDUType.RELEASE_RQ
        assert await _http_status(server.http_address, "/readyz") == 503
        assert await _http_status(server.http_address, "/healthz") == 200
        await peer.send(wire.release_rp())
        assert await stopping is True


async def test_stopping_twice_does_nothing_more(make_settings: MakeSettings) -> None:
    with captured_logs() as logs:
        async with Server(make_settings()) as server:
            assert await server.stop() is True
            assert await server.stop() is True
    assert len([record for record in logs if record["event"] == "server.stopped"]) == 1


async def test_stopped_from_two_places_at_once_it_stops(make_settings: MakeSettings) -> None:
    server = Server(make_settings())
    await server.start()
    assert all(await asyncio.gather(server.stop(), server.stop()))
    _expect_free(server.settings.data_dir)


async def test_a_stop_that_is_cancelled_can_be_repeated(make_settings: MakeSettings) -> None:
    server = Server(make_settings(drain_timeout_seconds=30))
    await server.start()
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(VERIFICATION)
        stopping = asyncio.create_task(server.stop())
        await peer.read_pdu()
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await peer.send(wire.release_rp())
    assert await server.stop() is True
    _expect_free(server.settings.data_dir)


async def test_stopping_what_was_never_started_does_nothing(make_settings: MakeSettings) -> None:
    assert await Server(make_settings()).stop() is True


async def test_a_server_is_started_once_and_a_second_try_does_it_no_harm(make_settings: MakeSettings) -> None:
    async with Server(make_settings()) as server:
        with pytest.raises(RuntimeError, match="once"):
            await server.start()
        assert await _http_status(server.http_address, "/readyz") == 200


async def test_everything_is_closed_though_one_part_fails_to(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(make_settings())
    close = server._index.close

    async def fail() -> None:
        await close()
        raise IndexUnavailable("disk is gone")

    monkeypatch.setattr(server._index, "close", fail)
    await server.start()
    with pytest.raises(IndexUnavailable):
        await server.stop()
    _expect_free(server.settings.data_dir)
    with pytest.raises(StorageError, match="closed"):
        await server._storage.begin("00", b"")


KNOWN = {"access": {"known_peers_only": True}, "peers": [{"ae_title": "CT1"}]}


@pytest.mark.parametrize(
    ("host", "rules", "warned"),
    [
        ("127.0.0.1", {}, 0),
        ("localhost", {}, 0),
        ("0.0.0.0", {}, 1),
        ("0.0.0.0", {"peers": KNOWN["peers"]}, 1),
        ("0.0.0.0", KNOWN, 0),
    ],
)
async def test_listening_beyond_loopback_without_rules_is_warned_of(
    make_settings: MakeSettings, host: str, rules: dict[str, Any], warned: int
) -> None:
    with captured_logs() as logs:
        async with Server(make_settings(listen={"host": host}, **rules)):
            pass
    assert len([record for record in logs if record["event"] == "server.open_to_network"]) == warned


@pytest.mark.parametrize(
    ("http_host", "events", "warned"),
    [
        ("127.0.0.1", {}, 0),
        ("0.0.0.0", {}, 1),
        ("0.0.0.0", {"max_followers": 0}, 0),
        ("0.0.0.0", {"token": "0123456789abcdef"}, 0),
    ],
)
async def test_events_that_anybody_beyond_loopback_may_follow_are_warned_of(
    make_settings: MakeSettings, http_host: str, events: dict[str, Any], warned: int
) -> None:
    with captured_logs() as logs:
        async with Server(make_settings(http={"host": http_host}, events=events)):
            pass
    assert len([record for record in logs if record["event"] == "events.open_to_network"]) == warned


async def test_the_warning_says_what_to_write_and_with_it_there_is_none(
    make_settings: MakeSettings,
) -> None:
    with captured_logs() as logs:
        async with Server(make_settings(listen={"host": "0.0.0.0"})):
            pass
    (warning,) = [record for record in logs if record["event"] == "server.open_to_network"]
    written = tomllib.loads("\n".join(warning["write_lines"]))
    with captured_logs() as logs:
        async with Server(make_settings(listen={"host": "0.0.0.0"}, **written)):
            pass
    assert not [record for record in logs if record["level"] == "warning"]


# --- failing to start


def _file_in_the_way(settings: Settings) -> None:
    settings.data_dir.write_text("not a folder")


def _objects_is_a_file(settings: Settings) -> None:
    settings.data_dir.mkdir()
    (settings.data_dir / "objects").write_text("not a folder")


def _index_is_no_database(settings: Settings) -> None:
    (settings.data_dir / "index").mkdir(parents=True)
    (settings.data_dir / "index" / "index.sqlite").write_bytes(b"this is no database at all" * 100)


def _index_is_newer(settings: Settings) -> None:
    (settings.data_dir / "index").mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(settings.data_dir / "index" / "index.sqlite")) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('9999_from_the_future')")
        database.commit()


def _index_is_a_folder(settings: Settings) -> None:
    (settings.data_dir / "index" / "index.sqlite").mkdir(parents=True)


SPOILT = [
    (_file_in_the_way, "data_dir"),
    (_objects_is_a_file, "cannot open the storage"),
    (_index_is_no_database, "is not a database"),
    (_index_is_newer, "9999_from_the_future"),
    (_index_is_a_folder, "index.sqlite"),
]


@pytest.mark.parametrize(("spoil", "text"), SPOILT, ids=lambda value: getattr(value, "__name__", ""))
async def test_a_start_that_fails_says_why_exits_2_and_leaves_nothing_open(
    make_settings: MakeSettings, spoil: Callable[[Settings], None], text: str
) -> None:
    settings = make_settings()
    spoil(settings)
    await _expect_not_started(settings, text)


@pytest.mark.parametrize("listener", ["listen", "http"])
async def test_a_port_in_use_says_which_exits_2_and_leaves_nothing_open(
    make_settings: MakeSettings, taken_port: int, listener: str
) -> None:
    settings = make_settings(**{listener: {"port": taken_port}})
    await _expect_not_started(settings, f"^{listener}: cannot listen on 127.0.0.1:{taken_port}: .*in use")


async def test_an_address_that_is_not_ours_exits_2(make_settings: MakeSettings) -> None:
    await _expect_not_started(
        make_settings(listen={"host": "192.0.2.1"}), "listen: cannot listen on 192.0.2.1"
    )


async def test_a_recovery_that_fails_leaves_nothing_open(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: object, **_options: object) -> None:
        raise IndexUnavailable("locked for good")

    monkeypatch.setattr("scp_server.runtime.server.recover", fail)
    await _expect_not_started(make_settings(), "locked for good")


async def _expect_not_started(settings: Settings, text: str) -> None:
    before, tasks = _open_files(), asyncio.all_tasks()
    with pytest.raises((ConfigurationError, IndexFailure, StorageError), match=text):
        await Server(settings).start()
    assert await _serve(settings, text) == 2
    await asyncio.sleep(0)
    assert {name for name in _open_files() - before if name.startswith("socket:")} == set()
    assert not [name for name in _open_files() - before if str(settings.data_dir) in name]
    assert asyncio.all_tasks() == tasks
    if settings.data_dir.is_dir():
        _expect_free(settings.data_dir)


async def _serve(settings: Settings, text: str) -> int:
    with captured_logs() as logs:
        code = await serve(settings)
    (record,) = [record for record in logs if record["event"] == "server.not_started"]
    assert text.removeprefix("^").split(":")[0] in record["error"]
    assert "\n" not in record["error"]
    return code


async def test_a_second_server_on_one_folder_is_refused_and_the_first_goes_on(
    make_settings: MakeSettings,
) -> None:
    async with Server(make_settings()) as first:
        with pytest.raises(ConfigurationError, match=f"process with id {os.getpid()}"):
            await Server(make_settings()).start()
        assert await _http_status(first.http_address, "/readyz") == 200


async def test_a_context_that_cannot_be_entered_is_not_left(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    (tmp_path / "data").write_text("")
    entered: list[Any] = []
    with pytest.raises(SCPServerError):
        async with Server(make_settings()) as server:
            entered.append(server)
    assert entered == []
