"""The proxy passes everything on, and finds in it the data sets of both framings."""

from __future__ import annotations

import asyncio
from typing import Protocol

import pytest

from scp_server.testing import wire
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from scp_server.testing.objects import ct_image, structured_report
from scp_server.testing.recording_proxy import RecordingProxy
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import Control, Tag


class ReferenceSCP(Protocol):
    """What the fixture of that name gives."""

    port: int
    stored: list[tuple[str, bytes]]


async def test_recorded_data_sets_are_those_the_server_received(reference_scp: ReferenceSCP) -> None:
    objects = [ct_image(seed=seed, rows=200) for seed in range(3)] + [structured_report()]
    async with RecordingProxy("127.0.0.1", reference_scp.port) as proxy:
        async with await ScriptedPeer.connect("127.0.0.1", proxy.port) as peer:
            await peer.associate(storage_contexts(*objects), called_ae_title="PYNET")
            assert await peer.echo() == 0
            for stored in objects:
                assert await peer.store(stored, cuts=(10, 0)) == 0
            await peer.release()
        await proxy.drained()
    sent = proxy.stores()
    assert [(one.sop_instance_uid, one.dataset) for one in sent] == reference_scp.stored
    assert [one.dataset for one in sent] == [stored.dataset for stored in objects]
    assert {one.transfer_syntax_uid for one in sent} == {objects[0].transfer_syntax_uid}
    assert [one.sop_class_uid for one in sent] == [stored.sop_class_uid for stored in objects]
    assert not any(one.glued for one in sent)
    assert proxy.recordings[0].statuses() == [0] * 5


@pytest.mark.parametrize("maximum", [0, 4096])
async def test_glued_and_standard_framing_may_follow_each_other(maximum: int) -> None:
    objects = [dicos_ct(frames=9), dicos_tdr(), dicos_ct(seed=2)]
    contexts = storage_contexts(*objects)
    framings = [True, False, True]

    async def acceptor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with ScriptedPeer(reader, writer) as peer:
            await peer.read_pdu()
            syntaxes = {context.context_id: (0, context.transfer_syntaxes[0]) for context in contexts}
            await peer.send(wire.associate_ac(syntaxes, maximum_length=maximum))
            await peer.wait_eof()

    server = await asyncio.start_server(acceptor, "127.0.0.1", 0)
    async with server, RecordingProxy("127.0.0.1", server.sockets[0].getsockname()[1]) as proxy:
        async with await ScriptedPeer.connect("127.0.0.1", proxy.port) as peer:
            await peer.associate(contexts)
            for stored, glued in zip(objects, framings, strict=True):
                await peer.send_store(stored, framing="glued" if glued else "standard")
        await proxy.drained()
    sent = proxy.stores()
    assert [one.glued for one in sent] == framings
    assert [one.dataset for one in sent] == [stored.dataset for stored in objects]


async def test_a_cut_off_data_set_is_not_reported(reference_scp: ReferenceSCP) -> None:
    stored = ct_image()
    command = wire.c_store_rq(1, stored.sop_class_uid, stored.sop_instance_uid)
    async with RecordingProxy("127.0.0.1", reference_scp.port) as proxy:
        async with await ScriptedPeer.connect("127.0.0.1", proxy.port) as peer:
            await peer.associate(storage_contexts(stored), called_ae_title="PYNET")
            await peer.send(wire.p_data_tf(wire.PDV(3, Control.COMMAND | Control.LAST, command)))
            await peer.send(wire.p_data_tf(wire.PDV(3, Control.DATASET, stored.dataset[:100])))
            await peer.reset()
        await proxy.drained()
    assert proxy.stores() == []
    assert wire.read_command_set(command)[Tag.MESSAGE_ID] == b"\1\0"


async def test_port_before_start_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="not been started"):
        _ = RecordingProxy("127.0.0.1", 1).port
