"""C-GET requestors that read slowly, fall silent or vanish, byte by byte, against a whole server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from scp_server import Server
from scp_server.testing import wire
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import Response, ScriptedPeer, storage_contexts
from scp_server.testing.wire import PDV, Control, PDUType, ProposedContext, Tag

StartServer = Callable[..., Awaitable[Server]]
STUDY = make_uid("study")
STUDY_GET, EXPLICIT = "1.2.840.10008.5.1.4.1.2.2.3", "1.2.840.10008.1.2.1"
GET_ID, CT_ID = 1, 3
SMALL = ct_image(study_instance_uid=STUDY)
LARGE = ct_image(seed=1, rows=2_048, columns=2_048, study_instance_uid=STUDY)


def _element(group: int, element: int, vr: str, text: str) -> bytes:
    value = text.encode()
    value += (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    return (
        group.to_bytes(2, "little")
        + element.to_bytes(2, "little")
        + vr.encode()
        + len(value).to_bytes(2, "little")
        + value
    )


IDENTIFIER = _element(0x0008, 0x0052, "CS", "STUDY") + _element(0x0020, 0x000D, "UI", STUDY)


class Fetcher(ScriptedPeer):
    """Asks for the study with C-GET, and takes objects as a test says."""

    async def fetch(self) -> None:
        """Associate with the SCP role for CT, and send the C-GET-RQ."""
        contexts = [
            ProposedContext(GET_ID, STUDY_GET, [EXPLICIT]),
            ProposedContext(CT_ID, SMALL.sop_class_uid, [EXPLICIT]),
        ]
        roles = wire.role_selection(SMALL.sop_class_uid, scu=False, scp=True)
        answer = await self.associate(contexts, user_items=roles)
        assert answer.accepted() == {GET_ID: EXPLICIT, CT_ID: EXPLICIT}
        command = wire.command_set(
            {
                Tag.AFFECTED_SOP_CLASS_UID: STUDY_GET,
                Tag.COMMAND_FIELD: 0x0010,
                Tag.MESSAGE_ID: 1,
                Tag.PRIORITY: 0,
                Tag.DATASET_TYPE: 1,
            }
        )
        await self.send(
            wire.p_data_tf(PDV(GET_ID, Control.COMMAND | Control.LAST, command))
            + wire.p_data_tf(PDV(GET_ID, Control.LAST, IDENTIFIER))
        )

    async def read_command(self) -> Response:
        """The next command set but for pending responses."""
        while True:
            command = await self.read_response()
            if Tag.STATUS not in command.elements or command.status != 0xFF00:
                return command

    async def read_dataset(self) -> bytes:
        """The rest of a message, to its last fragment."""
        data = []
        while True:
            for _, control, fragment in wire.read_pdvs((await self.read_pdu()).body):
                data.append(fragment)
                if control & Control.LAST:
                    return b"".join(data)

    async def answer_store(self, store: Response, status: int = 0) -> None:
        """Answer a C-STORE-RQ."""
        message_id = int.from_bytes(store.elements[Tag.MESSAGE_ID], "little")
        response = wire.c_store_rsp(message_id, status)
        await self.send(wire.p_data_tf(PDV(CT_ID, Control.COMMAND | Control.LAST, response)))

    async def cancel(self) -> None:
        """C-CANCEL of the C-GET."""
        elements: dict[int, int | str | bytes] = {
            Tag.COMMAND_FIELD: 0x0FFF,
            Tag.MESSAGE_ID_RESPONDED_TO: 1,
            Tag.DATASET_TYPE: wire.NO_DATASET,
        }
        command = wire.command_set(elements)
        await self.send(wire.p_data_tf(PDV(GET_ID, Control.COMMAND | Control.LAST, command)))


async def _fetcher(server: Server, *stored: EncodedObject) -> Fetcher:
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(*stored))
        for one in stored:
            assert await peer.store(one) == 0
        await peer.release()
    fetcher = await Fetcher.connect(*server.address)
    await fetcher.fetch()
    return fetcher


def _count(response: Response, element: int) -> int:
    return int.from_bytes(response.elements[element], "little")


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
        final = await peer.read_command()
        assert taken == [one.dataset for one in objects]
        assert final.status == 0xB000
        assert [_count(final, element) for element in (0x1021, 0x1022, 0x1023)] == [1, 1, 1]
        await peer.read_dataset()
        await peer.release()


async def test_a_cancel_that_comes_inside_an_object_is_seen_though_the_requestor_reads_slowly(
    server: Server,
) -> None:
    async with await _fetcher(server, LARGE, SMALL) as peer:
        store = await peer.read_command()
        await peer.cancel()
        (operation,) = [one for each in server._manager.associations() for one in each.operations]
        read = 0
        while not operation.cancel_requested:
            read += len((await peer.read_pdu()).body)
            assert read < len(LARGE.dataset) // 2
        await peer.read_dataset()
        await peer.answer_store(store)
        final = await peer.read_command()
        assert final.status == 0xFE00
        assert [_count(final, element) for element in (0x1020, 0x1021)] == [1, 1]
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
    async def reset(peer: Fetcher) -> None:
        await peer.reset()

    async def abort(peer: Fetcher) -> None:
        await peer.abort()

    async def end(peer: Fetcher) -> None:
        peer.half_close()

    ways: Sequence[Callable[[Fetcher], Awaitable[Any]]] = (reset, abort, end)
    for way in ways:
        async with await _fetcher(server, LARGE) as peer:
            await peer.read_command()
            await way(peer)
            if way is not reset:
                await peer.wait_eof()
        await _ended(server)
