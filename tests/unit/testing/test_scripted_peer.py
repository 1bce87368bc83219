"""The scripted peer is understood by pynetdicom, and puts on the wire what it is told."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import pytest

from scp_server.testing import wire
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image, large_ct, structured_report
from scp_server.testing.scripted_peer import (
    AbortReceived,
    Rejection,
    ScriptedPeer,
    UnexpectedAnswer,
    storage_contexts,
)
from scp_server.testing.wire import PDV, Control, PDUType, Tag


class ReferenceSCP(Protocol):
    """What the fixture of that name gives."""

    port: int
    status: int
    stored: list[tuple[str, bytes]]
    events: list[str]


Script = Callable[[ScriptedPeer], Awaitable[None]]


@asynccontextmanager
async def against(script: Script) -> AsyncIterator[ScriptedPeer]:
    """A scripted peer connected to another one that runs `script`; the script's failure is the test's."""
    outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with ScriptedPeer(reader, writer) as acceptor:
                await script(acceptor)
            outcome.set_result(None)
        except Exception as error:
            outcome.set_exception(error)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    async with server, await ScriptedPeer.connect("127.0.0.1", server.sockets[0].getsockname()[1]) as peer:
        yield peer
        await peer.close()
        async with asyncio.timeout(10):
            await outcome


async def test_echo_and_release_with_pynetdicom(reference_scp: ReferenceSCP) -> None:
    async with await ScriptedPeer.connect("127.0.0.1", reference_scp.port) as peer:
        answer = await peer.associate(storage_contexts(), called_ae_title="PYNET")
        assert answer.application_context == wire.DICOM_APPLICATION_CONTEXT
        assert answer.contexts[1] == (0, "1.2.840.10008.1.2")
        assert answer.maximum_length > 0
        assert await peer.echo() == 0x0000
        assert await peer.echo() == 0x0000
        await peer.release()
        assert await peer.wait_eof() == b""
    assert reference_scp.events == ["released"]


@pytest.mark.parametrize("cuts", [(), (1, 7, 0, 100), (0,)], ids=str)
async def test_pynetdicom_receives_the_data_set_however_it_is_cut(
    reference_scp: ReferenceSCP, cuts: tuple[int, ...]
) -> None:
    objects = [ct_image(seed=1), structured_report(depth=30)]
    async with await ScriptedPeer.connect("127.0.0.1", reference_scp.port) as peer:
        await peer.associate(storage_contexts(*objects), called_ae_title="PYNET")
        for stored in objects:
            assert await peer.store(stored, cuts=cuts) == 0x0000
        await peer.release()
    assert reference_scp.stored == [(stored.sop_instance_uid, stored.dataset) for stored in objects]


async def test_large_object_arrives_whole(reference_scp: ReferenceSCP) -> None:
    large = large_ct(3_000_000)
    async with await ScriptedPeer.connect("127.0.0.1", reference_scp.port) as peer:
        await peer.associate(storage_contexts(large), called_ae_title="PYNET")
        assert await peer.store(large) == 0x0000
    assert reference_scp.stored == [(large.sop_instance_uid, b"".join(large))]


async def test_failure_status_is_returned_not_raised(reference_scp: ReferenceSCP) -> None:
    reference_scp.status = 0xA700
    async with await ScriptedPeer.connect("127.0.0.1", reference_scp.port) as peer:
        await peer.associate(storage_contexts(ct_image()), called_ae_title="PYNET")
        assert await peer.store(ct_image()) == 0xA700


async def test_rejection_is_read_and_is_not_an_acceptance(reference_scp: ReferenceSCP) -> None:
    async with await ScriptedPeer.connect("127.0.0.1", reference_scp.port) as peer:
        await peer.send(wire.associate_rq(storage_contexts(), called_ae_title="OTHER"))
        assert await peer.expect_reject() == Rejection(1, 1, 7)
    async with await ScriptedPeer.connect("127.0.0.1", reference_scp.port) as peer:
        with pytest.raises(UnexpectedAnswer, match="expected ASSOCIATE_AC, received type 3"):
            await peer.associate(storage_contexts(), called_ae_title="OTHER")


async def test_dripped_bytes_are_the_same_bytes(reference_scp: ReferenceSCP) -> None:
    async with await ScriptedPeer.connect("127.0.0.1", reference_scp.port) as peer:
        await peer.drip(wire.associate_rq(storage_contexts(), called_ae_title="PYNET"), step_bytes=40)
        assert (await peer.expect_accept()).accepted() == {1: "1.2.840.10008.1.2"}
        await peer.drip(wire.release_rq())
        assert await peer.read_pdu() == (PDUType.RELEASE_RP, bytes(4))


async def test_a_context_nobody_accepted_is_named(reference_scp: ReferenceSCP) -> None:
    async with await ScriptedPeer.connect("127.0.0.1", reference_scp.port) as peer:
        await peer.associate(storage_contexts(), called_ae_title="PYNET")
        with pytest.raises(UnexpectedAnswer, match="no accepted context"):
            await peer.store(ct_image())


@pytest.mark.parametrize(
    ("maximum", "controls"),
    [(0, [3]), (16384, [1, 0, 0, 2])],
    ids=["unlimited-one-pdv", "limited-first-middle-last"],
)
async def test_glued_framing_puts_command_and_data_set_in_one_stream_of_pdvs(
    maximum: int, controls: list[int]
) -> None:
    stored = ct_image(rows=160, columns=160)
    pdvs: list[PDV] = []

    async def acceptor(peer: ScriptedPeer) -> None:
        await peer.read_pdu()
        await peer.send(wire.associate_ac({3: (0, stored.transfer_syntax_uid)}, maximum_length=maximum))
        while not pdvs or not pdvs[-1].control & Control.LAST:
            received = await peer.read_pdu()
            assert not maximum or len(received.body) <= maximum
            pdvs.extend(wire.read_pdvs(received.body))
        response: dict[int, int | str | bytes] = {
            Tag.STATUS: 0,
            Tag.MESSAGE_ID_RESPONDED_TO: 0,
            Tag.DATASET_TYPE: wire.NO_DATASET,
        }
        await peer.send(wire.p_data_tf(PDV(3, Control(3), wire.command_set(response))))

    async with against(acceptor) as peer:
        await peer.associate(storage_contexts(stored))
        assert await peer.store(stored, framing="glued", message_id=0) == 0x0000
    assert [pdv.control for pdv in pdvs] == controls
    stream = b"".join(pdv.fragment for pdv in pdvs)
    end = 12 + struct.unpack_from("<I", stream, 8)[0]
    command = wire.read_command_set(stream[:end])
    assert command[Tag.MESSAGE_ID] == b"\0\0"
    assert command[Tag.DATASET_TYPE] == b"\0\0"
    assert stream[end:] == stored.dataset


async def test_request_carries_what_was_asked_for() -> None:
    bodies: list[bytes] = []

    async def acceptor(peer: ScriptedPeer) -> None:
        bodies.append((await peer.read_pdu()).body)
        identity = wire.item(wire.ItemType.USER_IDENTITY_AC, b"\0\0")
        await peer.send(wire.associate_ac({1: (0, "1.2.840.10008.1.2"), 3: (4, "")}, user_items=identity))

    async with against(acceptor) as peer:
        answer = await peer.associate(
            storage_contexts(ct_image()),
            application_context=wire.DICOS_V03_APPLICATION_CONTEXT,
            called_ae_title="CALLED",
            calling_ae_title="SCANNER7",
            maximum_length=0,
            user_identity=wire.UserIdentity(2, b"guard", b"secret"),
        )
    assert answer.accepted() == {1: "1.2.840.10008.1.2"}
    assert answer.user_items[wire.ItemType.USER_IDENTITY_AC] == b"\0\0"
    assert bodies[0][4:36] == b"CALLED          SCANNER7        "
    kinds = dict(wire.items(bodies[0][68:]))
    assert kinds[wire.ItemType.APPLICATION_CONTEXT] == wire.DICOS_V03_APPLICATION_CONTEXT.encode()
    user_items = dict(wire.items(kinds[wire.ItemType.USER_INFORMATION]))
    assert user_items[wire.ItemType.MAXIMUM_LENGTH] == bytes(4)
    assert user_items[wire.ItemType.USER_IDENTITY_RQ] == b"\2\1\0\5guard\0\6secret"


async def test_reset_reaches_the_other_side_as_a_reset() -> None:
    async def acceptor(peer: ScriptedPeer) -> None:
        with pytest.raises(ConnectionResetError):
            await peer.wait_eof()

    async with against(acceptor) as peer:
        await peer.send(b"\1")
        await peer.reset()


async def test_abort_is_read_with_source_and_reason() -> None:
    async def acceptor(peer: ScriptedPeer) -> None:
        await peer.abort(2, 6)

    async with against(acceptor) as peer:
        assert await peer.expect_abort() == AbortReceived(2, 6)


async def test_half_close_ends_one_direction_only() -> None:
    async def acceptor(peer: ScriptedPeer) -> None:
        assert await peer.wait_eof() == wire.release_rq()
        await peer.send(wire.release_rp())

    async with against(acceptor) as peer:
        await peer.send(wire.release_rq())
        peer.half_close()
        assert await peer.read_pdu() == (PDUType.RELEASE_RP, bytes(4))
        assert await peer.wait_eof() == b""


async def test_silence_is_a_timeout_and_an_end_inside_a_pdu_an_eof_error() -> None:
    async def acceptor(peer: ScriptedPeer) -> None:
        await peer.read_pdu()
        await peer.send(wire.abort(2, 1)[:-1])

    async with against(acceptor) as peer:
        with pytest.raises(TimeoutError):
            await peer.read_pdu(timeout_seconds=0.05)
        await peer.send(wire.release_rq())
        with pytest.raises(EOFError):
            await peer.read_pdu()


async def test_close_delivers_what_was_sent_before_it() -> None:
    size = 3_000_000
    received: list[int] = []

    async def acceptor(peer: ScriptedPeer) -> None:
        received.append(len(await peer.wait_eof()))

    async with against(acceptor) as peer:
        peer_socket = peer._writer.get_extra_info("socket")
        assert peer_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await peer.send(bytes(size))
    assert received == [size]


def test_command_set_has_its_group_length_and_even_values() -> None:
    data = wire.c_store_rq(7, "1.2.3", "1.2.3.4", dicos=True)
    elements = wire.read_command_set(data)
    assert struct.unpack("<I", elements[Tag.GROUP_LENGTH])[0] == len(data) - 12
    assert elements[Tag.AFFECTED_SOP_CLASS_UID] == b"1.2.3\0"
    assert elements[Tag.MOVE_ORIGINATOR_MESSAGE_ID] == b"\7\0"
    assert list(elements) == sorted(elements)
    assert all(len(value) % 2 == 0 for value in elements.values())


@pytest.mark.parametrize("surplus", [-1, 1])
def test_lengths_that_do_not_fit_are_value_errors(surplus: int) -> None:
    body = wire.p_data_tf(PDV(1, Control.LAST, b"abcd"))[6:]
    with pytest.raises((ValueError, struct.error)):
        wire.read_pdvs(body[:surplus] if surplus < 0 else body + b"\0")
    item = wire.item(0x51, bytes(4))
    with pytest.raises((ValueError, struct.error)):
        list(wire.items(item[:surplus] if surplus < 0 else item + b"\0"))


def test_contexts_are_one_for_each_pair_of_class_and_syntax() -> None:
    explicit = ct_image()
    other = EncodedObject(explicit.sop_class_uid, "1.2", "1", "1", "1.2.840.10008.1.2", b"")
    contexts = storage_contexts(explicit, explicit, other)
    assert [context.context_id for context in contexts] == [1, 3, 5]
    assert [list(context.transfer_syntaxes) for context in contexts[1:]] == [
        ["1.2.840.10008.1.2.1"],
        ["1.2.840.10008.1.2"],
    ]
