"""The control socket: who may speak, what is understood, and that nonsense harms nobody."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from scp_server.cli.control_client import CommandFailed, ControlClient, NoServerRuns
from scp_server.errors import ConfigurationError, StorageError
from scp_server.observability.logs import captured_logs
from scp_server.runtime.control import ControlConfig, ControlServer, WrongArguments
from scp_server.runtime.control_protocol import ITEMS_IN_LINE, socket_address
from scp_server.runtime.control_telling import Telling

REQUEST = b'{"version": 1, "command": "echo", "arguments": {"a": 1}}\n'
ECHOED = {"version": 1, "ok": True, "result": {"a": 1}}

Start = Callable[..., Awaitable[ControlServer]]


async def _echo(arguments: Mapping[str, Any]) -> Any:
    return dict(arguments)


async def _fail(arguments: Mapping[str, Any]) -> Any:
    kind = arguments["kind"]
    raise {"wrong": WrongArguments, "storage": StorageError, "unforeseen": ZeroDivisionError}[kind]("why\n")


async def _count(arguments: Mapping[str, Any], telling: Telling) -> Any:
    """Finds so many things, then ends, or never does."""
    telling.begin("counting", arguments["to"])
    for number in range(arguments["to"]):
        telling.add({"number": number})
        telling.advance()
        await telling.settle()
    if arguments.get("for_ever"):
        await asyncio.get_running_loop().create_future()
    return "counted"


async def _never(_arguments: Mapping[str, Any]) -> Any:
    await asyncio.get_running_loop().create_future()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    async with AsyncExitStack() as stack:

        async def start(folder: Path = tmp_path, **config: Any) -> ControlServer:
            commands = {"echo": _echo, "fail": _fail, "never": _never}
            server = ControlServer(folder, ControlConfig(**config), commands, {"count": _count})
            await server.start()
            stack.push_async_callback(server.stop)
            return server

        yield start


async def _say(folder: Path, data: bytes) -> list[dict[str, Any]]:
    """Send bytes, end, and read all answers."""
    reader, writer = await asyncio.open_unix_connection(folder / "control.sock")
    try:
        writer.write(data)
        writer.write_eof()
        async with asyncio.timeout(10):
            answers = await reader.read()
    finally:
        writer.close()
    return [json.loads(line) for line in answers.splitlines()]


async def test_only_the_owner_may_open_the_socket_and_it_goes_with_the_server(
    start: Start, tmp_path: Path
) -> None:
    server = await start()
    mode = (tmp_path / "control.sock").stat().st_mode
    assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
    await server.stop()
    assert list(tmp_path.iterdir()) == []


async def test_one_connection_may_ask_many_times(start: Start, tmp_path: Path) -> None:
    await start()
    assert await _say(tmp_path, REQUEST * 3) == [ECHOED] * 3


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\x00\x01" * 100 + b"\n",
        b"\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b'{"version": 2, "command": "echo"}\n',
        b'{"version": 1}\n',
        b'{"version": 1, "command": "nonsense"}\n',
        b'{"version": 1, "command": ["echo"]}\n',
        b'{"version": 1, "command": "echo", "arguments": []}\n',
        b"[" * 60_000 + b"\n",
        b'{"version": 1, "comm',
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
async def test_garbage_is_answered_once_and_the_next_connection_is_served(
    start: Start, tmp_path: Path, garbage: bytes
) -> None:
    await start()
    [answer] = await _say(tmp_path, garbage)
    assert (answer["version"], answer["ok"], answer["code"]) == (1, False, "request")
    assert await _say(tmp_path, REQUEST) == [ECHOED]


async def test_a_request_longer_than_max_request_bytes_ends_its_connection(
    start: Start, tmp_path: Path
) -> None:
    await start(max_request_bytes=1_024)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
    writer.write(b"x" * 5_000)
    async with asyncio.timeout(10):
        answer = json.loads(await reader.readline())
    assert answer["code"] == "request"
    writer.close()
    assert await _say(tmp_path, REQUEST) == [ECHOED]


async def test_a_connection_that_says_nothing_ends_after_request_seconds(
    start: Start, tmp_path: Path
) -> None:
    await start(request_seconds=0.05)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()


async def test_a_command_ends_after_command_seconds(start: Start, tmp_path: Path) -> None:
    await start(command_seconds=0.05)
    [answer] = await _say(tmp_path, b'{"version": 1, "command": "never"}\n')
    assert (answer["ok"], answer["code"]) == (False, "timeout")


async def test_a_connection_above_max_connections_is_closed_and_the_others_stay(
    start: Start, tmp_path: Path
) -> None:
    await start(max_connections=1)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
    writer.write(REQUEST)
    assert json.loads(await reader.readline()) == ECHOED
    other, other_writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
    async with asyncio.timeout(10):
        assert await other.read() == b""
    writer.write(REQUEST)
    assert json.loads(await reader.readline()) == ECHOED
    writer.close()
    other_writer.close()


@pytest.mark.parametrize(
    ("kind", "code", "error"),
    [
        ("wrong", "request", "why\\x0a"),
        ("storage", "failed", "why\\x0a"),
        ("unforeseen", "internal", "internal error"),
    ],
)
async def test_a_failing_command_says_why_and_the_connection_goes_on(
    start: Start, tmp_path: Path, kind: str, code: str, error: str
) -> None:
    await start()
    request = json.dumps({"version": 1, "command": "fail", "arguments": {"kind": kind}}).encode() + b"\n"
    failed, echoed = await _say(tmp_path, request + REQUEST)
    assert (failed["ok"], failed["code"], failed["error"]) == (False, code, error)
    assert echoed == ECHOED


async def test_a_stale_socket_is_replaced(start: Start, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control.sock"))
    await start()
    assert await _say(tmp_path, REQUEST) == [ECHOED]


async def test_a_file_in_the_sockets_place_is_left_alone(start: Start, tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("mine")
    with pytest.raises(ConfigurationError, match="is no socket"):
        await start()
    assert (tmp_path / "control.sock").read_text() == "mine"


async def test_a_folder_with_a_long_path_has_its_socket_too(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    await start(folder)
    assert await asyncio.to_thread(_ask, folder) == {"a": 1}
    with socket_address(folder) as address:
        assert len(address) < 100


def _ask(folder: Path) -> Any:
    with ControlClient(folder, 10.0) as client:
        return client.ask("echo", a=1)


async def test_the_client_tells_failures_apart(start: Start, tmp_path: Path) -> None:
    with pytest.raises(NoServerRuns, match="no server runs on"):
        ControlClient(tmp_path)
    server = await start()

    def ask() -> None:
        with ControlClient(tmp_path, 10.0) as client:
            with pytest.raises(CommandFailed, match="why") as failed:
                client.ask("fail", kind="storage")
            assert failed.value.code == "failed"
            assert client.ask("echo", a=2) == {"a": 2}

    await asyncio.to_thread(ask)
    client = ControlClient(tmp_path, 10.0)
    asked = asyncio.ensure_future(asyncio.to_thread(client.ask, "never"))
    while not any(task.get_name() == "control" for task in asyncio.all_tasks()):
        await asyncio.sleep(0)
    await server.stop()
    with client, pytest.raises(CommandFailed, match="gone away"):
        await asked
    with pytest.raises(NoServerRuns):
        ControlClient(tmp_path)


# --- long commands


@pytest.fixture
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """How far a command is, is told at once."""
    monkeypatch.setattr("scp_server.runtime.control.TELL_SECONDS", 0.005)


def _count_to(number: int, **arguments: Any) -> bytes:
    request = {"version": 1, "command": "count", "arguments": {"to": number, **arguments}}
    return json.dumps(request).encode() + b"\n"


async def test_what_a_long_command_finds_comes_in_bounded_lines_before_its_answer(
    start: Start, tmp_path: Path
) -> None:
    await start()
    count = 2 * ITEMS_IN_LINE + 1
    *lines, answer, echoed = await _say(tmp_path, _count_to(count) + REQUEST)
    assert (answer, echoed) == ({"version": 1, "ok": True, "result": "counted"}, ECHOED)
    found = [line["items"] for line in lines if "items" in line]
    assert max(map(len, found)) <= ITEMS_IN_LINE
    assert [item["number"] for items in found for item in items] == list(range(count))
    assert lines[-1]["progress"] == {"stage": "counting", "done": count, "total": count}


class _Bar:
    """Progress as it is shown."""

    def __init__(self) -> None:
        self.stages: dict[tuple[str, int | None], int] = {}
        self._stage: tuple[str, int | None] = ("", None)

    def begin(self, stage: str, total: int | None) -> None:
        self._stage = (stage, total)
        self.stages[self._stage] = 0

    def advance(self, count: int = 1) -> None:
        self.stages[self._stage] += count


async def test_the_client_shows_how_far_a_command_is_and_takes_what_it_finds(
    start: Start, tmp_path: Path
) -> None:
    await start()
    bar, found = _Bar(), list[Any]()

    def ask() -> Any:
        with ControlClient(tmp_path, 10.0) as client:
            assert client.follow("count", {"to": 500}, bar, found.append) == "counted"
            return client.ask("echo", a=1)

    assert await asyncio.to_thread(ask) == {"a": 1}
    assert bar.stages == {("counting", 500): 500}
    assert [item["number"] for item in found] == list(range(500))


@pytest.mark.usefixtures("_often")
async def test_a_long_command_that_does_not_move_for_command_seconds_is_given_up(
    start: Start, tmp_path: Path
) -> None:
    await start(command_seconds=0.05)
    with captured_logs() as logs:
        *_, answer = await _say(tmp_path, _count_to(1, for_ever=True))
    assert (answer["ok"], answer["code"]) == (False, "timeout")
    assert [(record["event"], record["command"]) for record in logs] == [("control.timed_out", "count")]
    assert not _counting()


@pytest.mark.usefixtures("_often")
async def test_a_long_command_is_cancelled_when_whoever_asked_is_gone(start: Start, tmp_path: Path) -> None:
    await start()
    with captured_logs() as logs:
        reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock")
        writer.write(_count_to(1, for_ever=True))
        assert json.loads(await reader.readline())["items"] == [{"number": 0}]
        (task,) = _counting()
        writer.close()
        async with asyncio.timeout(10):
            await asyncio.wait((task,))
            while not logs:
                await asyncio.sleep(0)
    assert task.cancelled()
    assert [(record["event"], record["command"]) for record in logs] == [("control.abandoned", "count")]


async def test_who_does_not_read_what_is_found_stops_the_command(start: Start, tmp_path: Path) -> None:
    await start(request_seconds=0.2)
    with captured_logs() as logs:
        _reader, writer = await asyncio.open_unix_connection(tmp_path / "control.sock", limit=1_024)
        writer.write(_count_to(1_000_000))
        async with asyncio.timeout(10):
            while not logs:
                await asyncio.sleep(0.01)
    assert [record["event"] for record in logs] == ["control.abandoned"]
    assert not _counting()
    writer.close()


def _counting() -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "control.count"]
