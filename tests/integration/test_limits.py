"""Caps, timers and ends: what a peer that takes too much, or nothing, or never comes back may cost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from scp_server import Server
from scp_server.testing import wire
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import Rejection, ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDV, Control, PDUType, ProposedContext

StartServer = Callable[..., Awaitable[Server]]
VERIFICATION = [ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))]


async def _connected(server: Server) -> ScriptedPeer:
    return await ScriptedPeer.connect(*server.address)


async def _request(server: Server, **how: str) -> ScriptedPeer:
    peer = await _connected(server)
    await peer.send(wire.associate_rq(VERIFICATION, **how))  # type: ignore[arg-type]
    return peer


@pytest.mark.parametrize(
    "limits", [{"max_associations": 1}, {"max_associations_per_peer": 1}, {"max_associations_per_address": 1}]
)
async def test_above_a_cap_the_answer_is_2_3_2_until_a_place_is_free(
    start_server: StartServer, limits: dict[str, int]
) -> None:
    server = await start_server(limits=limits)
    first = await _connected(server)
    await first.associate(VERIFICATION)
    second = await _request(server)
    assert await second.expect_reject() == Rejection(2, 3, 2)
    assert await second.wait_eof(1) == b""
    await first.reset()
    async with asyncio.timeout(1):
        while True:
            third = await _connected(server)
            with contextlib.suppress(Exception):
                await third.associate(VERIFICATION)
                break
    assert await third.echo() == 0x0000
    await third.close()
    await second.close()


async def test_the_caps_of_one_calling_ae_title_do_not_concern_another(start_server: StartServer) -> None:
    server = await start_server(limits={"max_associations_per_peer": 1})
    async with await _connected(server) as first, await _connected(server) as second:
        await first.associate(VERIFICATION, calling_ae_title="ONE")
        await second.associate(VERIFICATION, calling_ae_title="TWO")
        assert await second.echo() == 0x0000


async def test_another_called_ae_title_is_1_1_7_where_ours_is_required(start_server: StartServer) -> None:
    server = await start_server(access={"require_called_ae_title": True}, listen={"ae_title": "ARCHIVE"})
    wrong = await _request(server, called_ae_title="OTHER")
    assert await wrong.expect_reject() == Rejection(1, 1, 7)
    await wrong.close()
    async with await _connected(server) as right:
        await right.associate(VERIFICATION, called_ae_title="ARCHIVE")


async def test_an_unknown_application_context_is_1_1_2(server: Server) -> None:
    peer = await _request(server, application_context="1.2.3.4")
    assert await peer.expect_reject() == Rejection(1, 1, 2)
    await peer.close()


async def test_a_silent_connection_ends_with_artim(start_server: StartServer) -> None:
    server = await start_server(timeouts={"artim_seconds": 0.2})
    began = time.monotonic()
    async with await _connected(server) as peer:
        assert await peer.wait_eof(2) == b""
    assert time.monotonic() - began >= 0.2


async def test_dripping_bytes_do_not_restart_artim(start_server: StartServer) -> None:
    server = await start_server(timeouts={"artim_seconds": 0.3})
    peer = await _connected(server)
    request = wire.associate_rq(VERIFICATION)
    with contextlib.suppress(ConnectionError):
        await peer.drip(request[:60], pause_seconds=0.01)
        assert await peer.wait_eof(2) == b""
    await peer.close()


async def test_a_pdu_above_our_maximum_aborts_at_its_header_and_the_end_is_seen_at_once(
    server: Server,
) -> None:
    async with await _connected(server) as peer:
        await peer.associate(VERIFICATION)
        await peer.send(b"\x04\x00\xff\xff\xff\xff")
        assert await peer.expect_abort() == (2, 6)
        began = time.monotonic()
        assert await peer.wait_eof(1) == b""
        assert time.monotonic() - began < 0.1


@pytest.mark.parametrize(
    "first_bytes", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01"]
)
async def test_another_protocol_is_aborted_at_once(server: Server, first_bytes: bytes) -> None:
    async with await _connected(server) as peer:
        began = time.monotonic()
        await peer.send(first_bytes)
        assert await peer.expect_abort() == (0, 0)
        assert await peer.wait_eof(1) == b""
        assert time.monotonic() - began < 0.1


async def test_an_abort_is_not_swallowed_by_a_reset_while_the_peer_goes_on_sending(server: Server) -> None:
    async with await _connected(server) as peer:
        await peer.associate(VERIFICATION)
        await peer.send(b"\x09" + bytes(5) + bytes(4_000_000))
        assert (await peer.expect_abort())[0] == 2


async def test_an_idle_association_is_aborted(start_server: StartServer) -> None:
    server = await start_server(timeouts={"idle_seconds": 0.2})
    async with await _connected(server) as peer:
        await peer.associate(VERIFICATION)
        assert await peer.expect_abort() == (0, 0)


async def test_an_idle_dicos_association_is_kept(start_server: StartServer) -> None:
    server = await start_server(timeouts={"idle_seconds": 0.1})
    async with await _connected(server) as peer:
        await peer.associate(VERIFICATION, application_context="1.2.840.10008.3.1.1.1.3")
        await asyncio.sleep(0.3)
        assert await peer.echo() == 0x0000


async def test_silence_inside_a_message_aborts(start_server: StartServer) -> None:
    server = await start_server(timeouts={"dimse_seconds": 0.2})
    stored = ct_image()
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
        await peer.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
        await peer.expect_abort()


async def _send_for_ever(peer: ScriptedPeer, data: bytes) -> None:
    async with asyncio.timeout(20):
        while True:
            await peer.send(data)


async def test_a_peer_that_never_reads_its_answers_is_reset(start_server: StartServer) -> None:
    server = await start_server(timeouts={"write_seconds": 0.5}, limits={"send_buffer_bytes": 4096})
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    narrow.connect(server.address)
    peer = ScriptedPeer(*await asyncio.open_connection(sock=narrow), timeout_seconds=20)
    await peer.associate(VERIFICATION)
    echo = wire.p_data_tf(PDV(1, Control.COMMAND | Control.LAST, wire.c_echo_rq(1)))
    peer._reader._transport.pause_reading()  # type: ignore[attr-defined]
    with pytest.raises((ConnectionError, TimeoutError)):
        await _send_for_ever(peer, echo * 500)
    async with await _connected(server) as other:
        await other.associate(VERIFICATION)
        assert await other.echo() == 0x0000
    await peer.close()


async def test_above_the_cap_on_sockets_the_oldest_half_open_one_goes(start_server: StartServer) -> None:
    server = await start_server(
        limits={
            "max_connections": 3,
            "max_associations": 3,
            "max_associations_per_peer": 3,
            "max_associations_per_address": 3,
        }
    )
    async with await _connected(server) as kept:
        await kept.associate(VERIFICATION)
        half_open = [await _connected(server) for _ in range(3)]
        with pytest.raises(ConnectionError):
            await half_open[0].wait_eof(1)
        assert await kept.echo() == 0x0000
        await half_open[2].associate(VERIFICATION)
        assert await half_open[2].echo() == 0x0000
        for peer in half_open:
            await peer.close()


async def test_an_echo_is_answered_while_many_are_half_open_idle_or_stalled(server: Server) -> None:
    stored = ct_image()
    peers = []
    for _ in range(30):
        half_open = await _connected(server)
        await half_open.send(b"\x01\x00\x00")
        idle = await _connected(server)
        await idle.associate(VERIFICATION)
        stalled = await _connected(server)
        await stalled.associate(storage_contexts(stored))
        command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
        await stalled.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
        peers += [half_open, idle, stalled]
    async with await _connected(server) as peer:
        await peer.associate(VERIFICATION)
        assert await peer.echo() == 0x0000
    for other in peers:
        await other.reset()


async def test_a_release_is_answered_after_the_operations_in_hand(server: Server) -> None:
    stored = ct_image(rows=512, columns=512)
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        await peer.send_store(stored)
        await peer.send(wire.release_rq())
        assert (await peer.read_response()).status == 0x0000
        assert (await peer.read_pdu()).pdu_type == PDUType.RELEASE_RP
        assert await peer.wait_eof(1) == b""


async def test_stopping_lets_a_transfer_end_and_then_releases(start_server: StartServer) -> None:
    server = await start_server()
    stored = ct_image(rows=256, columns=256)
    async with await _connected(server) as peer, await _connected(server) as idle:
        await peer.associate(storage_contexts(stored))
        await idle.associate(VERIFICATION)
        command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
        await peer.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
        await peer.send(wire.p_data_tf(PDV(3, Control.DATASET, stored.dataset[:1000])))
        await asyncio.sleep(0.05)
        stopping = asyncio.create_task(server.stop())
        assert (await idle.read_pdu()).pdu_type == PDUType.RELEASE_RQ
        await idle.send(wire.release_rp())
        with pytest.raises(OSError, match=r".*"):
            await _connected(server)
        for start in range(1000, len(stored.dataset), 100_000):
            part = stored.dataset[start : start + 100_000]
            last = start + 100_000 >= len(stored.dataset)
            await peer.send(wire.p_data_tf(PDV(3, Control.LAST if last else Control.DATASET, part)))
        assert (await peer.read_response()).status == 0x0000
        assert (await peer.read_pdu()).pdu_type == PDUType.RELEASE_RQ
        await peer.send(wire.release_rp())
        assert await stopping is True


async def test_what_outlives_the_drain_time_is_aborted(start_server: StartServer, tmp_path: Path) -> None:
    server = await start_server(drain_timeout_seconds=0.3)
    stored = ct_image()
    async with await _connected(server) as peer:
        await peer.associate(storage_contexts(stored))
        command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
        await peer.send(wire.p_data_tf(PDV(3, Control.COMMAND | Control.LAST, command)))
        await asyncio.sleep(0.05)
        assert await server.stop() is False
        await peer.expect_abort()
    assert not list(tmp_path.rglob("*.part"))
