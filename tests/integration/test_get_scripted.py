"""C-GET requestors that read slowly, fall silent or vanish, byte by byte, against a whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from scp_server import Server
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image
from scp_server.testing.retrieving_peer import Final, RetrievingPeer
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDUType, Tag

StartServer = Callable[..., Awaitable[Server]]
STUDY = make_uid("study")
SMALL = ct_image(study_instance_uid=STUDY)
LARGE = ct_image(seed=1, rows=2_048, columns=2_048, study_instance_uid=STUDY)


async def _fetcher(server: Server, *stored: EncodedObject) -> RetrievingPeer:
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(*stored))
        for one in stored:
            assert await peer.store(one) == 0
        await peer.release()
    fetcher = await RetrievingPeer.connect(*server.address)
    await fetcher.associate_to_retrieve(stored)
    await fetcher.send_get(STUDY)
    return fetcher


async def _ended(server: Server) -> None:
    async with asyncio.timeout(5):
        while server._manager.association_count or server._manager.operation_count:
            await asyncio.sleep(0.005)


async def test_each_object_is_answered_by_the_requestor_and_counted(server: Server) -> None:
    objects = [ct_image(seed=seed, study_instance_uid=STUDY) for seed in range(3)]
    async with await _fetcher(server, *objects) as peer:
        taken = []
        for status in (0x0000, 0xB000, 0xA700):
            store = await peer.read_command()
            assert Tag.MOVE_ORIGINATOR_AE_TITLE not in store.elements
            taken.append(await peer.read_dataset())
            await peer.answer_store(store, status)
        assert taken == [one.dataset for one in objects]
        assert await peer.final() == Final(0xB000, (None, 1, 1, 1), (objects[2].sop_instance_uid,))
        await peer.release()


async def test_a_cancel_that_comes_inside_an_object_is_seen_though_the_requestor_reads_slowly(
    server: Server,
) -> None:
    async with await _fetcher(server, LARGE, SMALL) as peer:
        store = await peer.read_command()
        await peer.cancel_get(1)
        (operation,) = [one for each in server._manager.associations() for one in each.operations]
        read = 0
        while not operation.cancel_requested:
            read += len((await peer.read_pdu()).body)
            assert read < len(LARGE.dataset) // 2
        await peer.read_dataset()
        await peer.answer_store(store)
        assert await peer.final() == Final(0xFE00, (1, 1, 0, 0))
        await peer.release()


async def test_a_requestor_that_never_answers_is_aborted(start_server: StartServer) -> None:
    server = await start_server(timeouts={"store_response_seconds": 0.1})
    async with await _fetcher(server, SMALL) as peer:
        await peer.read_command()
        await peer.read_dataset()
        assert await peer.read_pdu() == (PDUType.ABORT, bytes(4))
    await _ended(server)


async def test_a_requestor_that_reads_nothing_is_reset(start_server: StartServer) -> None:
    server = await start_server(timeouts={"write_seconds": 0.1})
    huge = ct_image(rows=4_096, columns=4_096, study_instance_uid=STUDY)
    async with await _fetcher(server, huge) as peer:
        await peer.read_command()
        await _ended(server)


async def test_a_requestor_that_vanishes_ends_the_operation(server: Server) -> None:
    async def reset(peer: RetrievingPeer) -> None:
        await peer.reset()

    async def abort(peer: RetrievingPeer) -> None:
        await peer.abort()

    async def end(peer: RetrievingPeer) -> None:
        peer.half_close()

    ways: Sequence[Callable[[RetrievingPeer], Awaitable[Any]]] = (reset, abort, end)
    for way in ways:
        async with await _fetcher(server, LARGE) as peer:
            await peer.read_command()
            await way(peer)
            if way is not reset:
                await peer.wait_eof()
        await _ended(server)
