"""The control socket of a whole server: `status` tells what happens, and its bounds are the settings'."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from scp_server import Server
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

StartServer = Callable[..., Awaitable[Server]]


async def _exchange(server: Server, line: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(
        server.settings.data_dir / "control.sock", limit=1 << 20
    )
    try:
        writer.write(line)
        async with asyncio.timeout(10):
            answer = json.loads(await reader.readline())
    finally:
        writer.close()
    assert isinstance(answer, dict)
    return answer


async def _status(server: Server) -> dict[str, Any]:
    answer = await _exchange(server, b'{"version": 1, "command": "status"}\n')
    assert answer["ok"] is True
    result = answer["result"]
    assert isinstance(result, dict)
    return result


async def test_status_tells_who_is_connected_what_came_and_what_is_kept(server: Server) -> None:
    stored, other = ct_image(seed=1), ct_image(seed=2)
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(stored), calling_ae_title="CT[1]", called_ae_title="ARCHIVE")
        assert await peer.store(stored) == 0x0000
        report = await _status(server)
        [association] = report["associations"]["list"]
        assert (association["calling_ae_title"], association["called_ae_title"]) == ("CT[1]", "ARCHIVE")
        assert (association["peer_host"], association["operations"]) == ("127.0.0.1", 1)
        assert association["dataset_bytes"] == len(stored.dataset)
        assert (report["associations"]["now"], report["associations"]["connections"]) == (1, 1)
        assert await peer.store(other) == 0x0000
        assert await peer.store(other, context_id=1) == 0x0122
        await peer.release()
        await peer.wait_eof()
    async with asyncio.timeout(10):
        # The index is not counted anew for every question.
        while (report := await _status(server))["index"]["instances"] < 2:
            await asyncio.sleep(0.02)
    assert report["associations"]["list"] == []
    received = len(stored.dataset) + 2 * len(other.dataset)
    assert report["totals"] == {
        "associations_accepted": 1,
        "associations_rejected": 0,
        "operations": 3,
        "operations_failed": 1,
        "dataset_bytes": received,
    }
    assert (report["index"]["instances"], report["index"]["parts"]) == (2, 2)
    assert report["space"]["total_bytes"] >= report["space"]["free_bytes"] > 0
    assert set(report["rates"]) == {"10", "60"}


async def test_a_rejected_association_is_counted(start_server: StartServer) -> None:
    server = await start_server(access={"require_called_ae_title": True})
    async with await ScriptedPeer.connect(*server.address) as peer:
        await _associate_wrongly(peer)
    totals = (await _status(server))["totals"]
    assert (totals["associations_accepted"], totals["associations_rejected"]) == (0, 1)


async def _associate_wrongly(peer: ScriptedPeer) -> None:
    from scp_server.testing.scripted_peer import UnexpectedAnswer

    try:
        await peer.associate(storage_contexts(ct_image()), called_ae_title="SOMEONE")
    except UnexpectedAnswer:
        return
    raise AssertionError("not rejected")


async def test_the_bounds_of_the_socket_are_the_settings(start_server: StartServer) -> None:
    server = await start_server(control={"max_request_bytes": 1_024, "max_connections": 1})
    padded = b'{"version": 1, "command": "status", "arguments": {}' + b" " * 2_000 + b"}\n"
    assert (await _exchange(server, padded))["code"] == "request"
    held, holder = await asyncio.open_unix_connection(server.settings.data_dir / "control.sock")
    holder.write(b'{"version": 1, "command": "status"}\n')
    await held.readline()
    other, writer = await asyncio.open_unix_connection(server.settings.data_dir / "control.sock")
    async with asyncio.timeout(10):
        assert await other.read() == b""
    writer.close()
    holder.close()


async def test_wrong_arguments_are_refused_by_name(server: Server) -> None:
    for command, arguments in (
        ("quarantine.show", {}),
        ("quarantine.drop", {"id": "../../etc"}),
        ("quarantine.release", {"id": ["a"]}),
        ("quarantine.list", {"after": 5}),
        ("quarantine.list", {"nonsense": ""}),
    ):
        request = {"version": 1, "command": command, "arguments": arguments}
        answer = await _exchange(server, json.dumps(request).encode() + b"\n")
        assert (answer["ok"], answer["code"]) == (False, "request"), command


async def test_the_socket_is_gone_when_the_server_has_stopped(server: Server) -> None:
    path = server.settings.data_dir / "control.sock"
    assert path.is_socket()
    await server.stop()
    assert not path.exists()
