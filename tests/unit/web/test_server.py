from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from scp_server.errors import ConfigurationError
from scp_server.web.health import HealthState, health_app
from scp_server.web.server import HttpLimits, HttpServer

HEALTHZ = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
TIGHT = HttpLimits(max_connections=3, max_request_bytes=2_000, request_seconds=0.2, keep_alive_seconds=1)


@pytest.fixture
def state() -> HealthState:
    return HealthState()


@pytest.fixture
async def address(state: HealthState) -> AsyncIterator[tuple[str, int]]:
    server = HttpServer("127.0.0.1", 0, health_app(state), TIGHT)
    yield await server.start()
    await server.stop()


async def exchange(address: tuple[str, int], request: bytes) -> tuple[int, dict[str, str], Any]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(request)
        return await read_response(reader)
    finally:
        writer.close()


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, json.loads(body)


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        async with asyncio.timeout(5):
            return await reader.read(1) == b""
    except ConnectionError:
        return True


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode()


async def test_healthz_is_ok_while_not_ready(address: tuple[str, int]) -> None:
    status, headers, body = await exchange(address, get("/healthz"))
    assert (status, body) == (200, {"status": "ok"})
    assert headers["content-type"] == "application/json"
    assert "server" not in headers


async def test_readyz_follows_the_state(address: tuple[str, int], state: HealthState) -> None:
    status, _, body = await exchange(address, get("/readyz"))
    assert (status, body) == (503, {"status": "not ready", "reasons": ["the server starts"]})
    state.ready()
    status, _, body = await exchange(address, get("/readyz"))
    assert (status, body) == (200, {"status": "ready"})
    state.not_ready("the server stops", "the disk is full")
    status, _, body = await exchange(address, get("/readyz"))
    assert (status, body["reasons"]) == (503, ["the server stops", "the disk is full"])


@pytest.mark.parametrize("path", ["/", "/healthz/", "/metrics", "/%00", "/../etc/passwd"])
async def test_every_other_path_is_a_json_404(address: tuple[str, int], path: str) -> None:
    status, _, body = await exchange(address, get(path))
    assert (status, body) == (404, {"error": "not found"})


async def test_other_methods_are_a_json_405(address: tuple[str, int]) -> None:
    request = b"POST /healthz HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    status, headers, body = await exchange(address, request)
    assert (status, body) == (405, {"error": "method not allowed"})
    assert "GET" in headers["allow"]


async def test_connection_is_kept_for_further_requests(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    for _ in range(3):
        writer.write(HEALTHZ)
        assert (await read_response(reader))[0] == 200
    writer.close()


@pytest.mark.parametrize(
    "begun", [b"", b"GET /healthz HTTP/1.1\r\nx: ", b"POST /healthz HTTP/1.1\r\ncontent-length: 9\r\n\r\n"]
)
async def test_request_that_does_not_end_is_cut_off(address: tuple[str, int], begun: bytes) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(begun)
    async with asyncio.timeout(5):
        try:
            while await reader.read(4_096):
                pass
        except ConnectionError:
            pass
    writer.close()


async def test_dripping_bytes_does_not_move_the_deadline(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /healthz HTTP/1.1\r\n")
    loop = asyncio.get_running_loop()
    begun = loop.time()
    closed = asyncio.ensure_future(is_closed(reader))
    while not closed.done() and loop.time() < begun + 5:
        writer.write(b"x")
        await asyncio.wait({closed}, timeout=0.02)
    assert await closed
    assert loop.time() - begun < 2
    writer.close()


async def test_headers_without_end_are_cut_off_by_size(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"GET /healthz HTTP/1.1\r\n" + b"x: y\r\n" * 1_000)
    assert await is_closed(reader)
    writer.close()


async def test_silent_connections_do_not_keep_others_out(address: tuple[str, int]) -> None:
    silent = [await asyncio.open_connection(*address) for _ in range(TIGHT.max_connections)]
    status, _, _ = await exchange(address, HEALTHZ)
    assert status == 200
    assert await is_closed(silent[0][0])
    for _, writer in silent:
        writer.close()


async def test_garbage_is_a_400_and_the_end(address: tuple[str, int]) -> None:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"\x01\x00\x00\x00\x00\xcd" + b"\x00" * 205)
    assert (await reader.readline()).startswith(b"HTTP/1.1 400")
    await reader.read()
    writer.close()


async def test_address_in_use_is_a_configuration_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port}"):
            await HttpServer("127.0.0.1", port, health_app(HealthState())).start()
    with pytest.raises(ConfigurationError, match="cannot listen"):
        await HttpServer("no-such-host.invalid", 0, health_app(HealthState())).start()


async def test_signals_are_left_to_the_daemon_and_stop_is_repeatable() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    server = HttpServer("127.0.0.1", 0, health_app(HealthState()))
    address = await server.start()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    silent = await asyncio.open_connection(*address)
    async with asyncio.timeout(2):
        await server.stop()
        await server.stop()
    with pytest.raises(OSError, match=r"refused|Connect"):
        await asyncio.open_connection(*address)
    assert await is_closed(silent[0])
    silent[1].close()


async def test_failing_application_answers_json_500() -> None:
    class Failing(HealthState):
        @property
        def is_ready(self) -> bool:
            raise RuntimeError("broken")

    server = HttpServer("127.0.0.1", 0, health_app(Failing()))
    address = await server.start()
    try:
        status, _, body = await exchange(address, get("/readyz"))
    finally:
        await server.stop()
    assert (status, body) == (500, {"error": "internal error"})
