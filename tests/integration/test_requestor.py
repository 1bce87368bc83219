"""Our requestor against another implementation, against our own server, and against peers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pynetdicom import AE, evt

from scp_server import Server
from scp_server.errors import (
    AssociationAborted,
    AssociationLost,
    AssociationRejected,
    AssociationReleased,
    ConnectFailed,
    LocalProtocolError,
)
from scp_server.net import requestor as requestor_module
from scp_server.net.association_transport import TransportConfig
from scp_server.net.requestor import Requestor, RequestorConfig
from scp_server.protocol.limits import Limits
from scp_server.testing import wire
from scp_server.testing.association_driver import CT_IMAGE_STORAGE
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.wire import PDV, Control, PDUType, Tag

StartServer = Callable[..., Awaitable[Server]]
Datasets = Callable[[], dict[str, list[bytes]]]
IMPLICIT = "1.2.840.10008.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
CONTEXTS = [(wire.VERIFICATION, [IMPLICIT]), (CT_IMAGE_STORAGE, [EXPLICIT])]
QUICK = RequestorConfig(
    limits=Limits(idle_seconds=0, response_seconds=0.2), connect_seconds=1, response_seconds=0.2
)


async def _pieces(data: bytes, size: int = 100_001) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def _endless() -> AsyncIterator[bytes]:
    while True:
        yield bytes(100_000)


async def _send(association: Requestor, stored: EncodedObject, size: int = 100_001) -> int:
    return (
        await association.store(
            stored.sop_class_uid,
            stored.sop_instance_uid,
            stored.transfer_syntax_uid,
            _pieces(stored.dataset, size),
        )
    ).status


@pytest.fixture(autouse=True)
async def nothing_is_left_behind() -> AsyncIterator[None]:
    """Neither a task nor an exception that nobody saw."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
    before = {asyncio.current_task()}
    before |= asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()
    assert unhandled == []


# -- another implementation ---------------------------------------------------------------------------------


@dataclass
class Archive:
    """What pynetdicom's SCP was told, and what it is to answer."""

    port: int = 0
    status: int = 0x0000
    delay: threading.Event | None = None
    datasets: list[bytes] = field(default_factory=list)
    happened: list[str] = field(default_factory=list)
    abort_store: bool = False

    def store(self, event: Any) -> int:
        """Handle C-STORE."""
        if self.abort_store:
            event.assoc.abort()
            return 0
        self.datasets.append(event.request.DataSet.getvalue())
        return self.status


@pytest.fixture
def archive() -> Iterator[Archive]:
    """A C-ECHO and CT storage SCP by pynetdicom."""
    archive = Archive()
    entity = AE(ae_title="ARCHIVE")
    entity.require_called_aet = True
    entity.add_supported_context(wire.VERIFICATION, IMPLICIT)
    entity.add_supported_context(CT_IMAGE_STORAGE, EXPLICIT)
    server: Any = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        evt_handlers=[
            (evt.EVT_C_STORE, archive.store),
            (evt.EVT_RELEASED, lambda _: archive.happened.append("released")),
            (evt.EVT_ABORTED, lambda _: archive.happened.append("aborted")),
        ],
    )
    archive.port = server.socket.getsockname()[1]
    yield archive
    server.shutdown()


async def _happened(archive: Archive, what: str) -> None:
    async with asyncio.timeout(5):
        while what not in archive.happened:
            await asyncio.sleep(0.005)


def _to(archive: Archive, **more: Any) -> Requestor:
    return Requestor("127.0.0.1", archive.port, **{"called_ae_title": "ARCHIVE", "contexts": CONTEXTS} | more)


async def test_pynetdicom_answers_echo_and_sees_a_release(archive: Archive) -> None:
    async with _to(archive) as association:
        assert await association.echo() == 0x0000
        assert await association.echo() == 0x0000
    await _happened(archive, "released")


@pytest.mark.parametrize("size", [1, 777, 16_383, 16_384, 10_000_000])
async def test_pynetdicom_gets_the_data_set_as_it_is_however_it_was_cut(archive: Archive, size: int) -> None:
    stored = ct_image(rows=64, columns=65)
    handed_on: list[int] = []
    async with _to(archive) as association:
        result = await association.store(
            stored.sop_class_uid,
            stored.sop_instance_uid,
            stored.transfer_syntax_uid,
            _pieces(stored.dataset, size),
            progress=handed_on.append,
        )
        assert result.status == 0x0000
        assert await association.echo() == 0x0000
    assert archive.datasets == [stored.dataset]
    assert sum(handed_on) == len(stored.dataset)


async def test_a_failure_status_is_returned_and_the_association_goes_on(archive: Archive) -> None:
    archive.status = 0xA700
    async with _to(archive) as association:
        assert await _send(association, ct_image()) == 0xA700
        assert await association.echo() == 0x0000


async def test_refused_contexts_are_not_offered_and_not_used(archive: Archive) -> None:
    contexts = [*CONTEXTS, ("1.2.840.10008.5.1.4.1.1.4", [EXPLICIT]), (CT_IMAGE_STORAGE, [IMPLICIT])]
    async with _to(archive, contexts=contexts) as association:
        accepted = {(one.abstract_syntax, one.transfer_syntax) for one in association.accepted_contexts}
        assert accepted == {(wire.VERIFICATION, IMPLICIT), (CT_IMAGE_STORAGE, EXPLICIT)}
        assert association.accepted_context(CT_IMAGE_STORAGE) is not None
        assert association.accepted_context(CT_IMAGE_STORAGE, IMPLICIT) is None
        with pytest.raises(LocalProtocolError, match=r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.4"):
            await association.store("1.2.840.10008.5.1.4.1.1.4", "1.2.3", EXPLICIT, _pieces(b"data"))
        assert await association.echo() == 0x0000, "nothing was sent, so nothing is lost"


async def test_a_rejection_says_its_result_source_and_reason(archive: Archive) -> None:
    with pytest.raises(AssociationRejected) as rejected:
        async with _to(archive, called_ae_title="SOMEONE"):
            pytest.fail("the association was rejected")
    assert (rejected.value.result, rejected.value.source, rejected.value.reason) == (1, 1, 7)


async def test_a_peer_that_aborts_inside_a_message_is_an_association_aborted(archive: Archive) -> None:
    archive.abort_store = True
    async with _to(archive) as association:
        with pytest.raises(AssociationAborted):
            await _send(association, ct_image())
        with pytest.raises(AssociationAborted):
            await association.echo()


async def test_an_exception_in_the_block_aborts(archive: Archive) -> None:
    with pytest.raises(ZeroDivisionError):
        async with _to(archive):
            raise ZeroDivisionError
    await _happened(archive, "aborted")
    assert "released" not in archive.happened


# -- our own server -----------------------------------------------------------------------------------------


async def test_our_server_keeps_what_our_requestor_sends(server: Server, stored_datasets: Datasets) -> None:
    objects = [ct_image(rows=256, columns=257, seed=seed) for seed in range(5)]
    async with Requestor(*server.address, contexts=CONTEXTS) as association:
        for stored in objects:
            assert await _send(association, stored, 99_999) == 0x0000
    assert stored_datasets() == {stored.sop_instance_uid: [stored.dataset] for stored in objects}


async def test_a_data_set_that_fails_to_be_read_aborts_and_nothing_is_kept(
    server: Server, stored_datasets: Datasets
) -> None:
    stored = ct_image(rows=256, columns=256)

    async def broken() -> AsyncIterator[bytes]:
        yield stored.dataset[:70_000]
        yield stored.dataset[70_000:100_000]
        raise OSError("the disk is gone")

    async with Requestor(*server.address, contexts=CONTEXTS) as association:
        with pytest.raises(OSError, match="the disk is gone"):
            await association.store(
                stored.sop_class_uid, stored.sop_instance_uid, stored.transfer_syntax_uid, broken()
            )
        with pytest.raises(AssociationAborted):
            await association.echo()
    assert stored_datasets() == {}


async def test_a_caller_that_is_cancelled_while_it_sends_ends_the_association(server: Server) -> None:
    stored = ct_image()
    async with Requestor(*server.address, contexts=CONTEXTS) as association:
        sending = asyncio.create_task(
            association.store(
                stored.sop_class_uid, stored.sop_instance_uid, stored.transfer_syntax_uid, _endless()
            )
        )
        await asyncio.sleep(0.05)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        with pytest.raises(AssociationAborted):
            await association.echo()


async def test_a_server_that_stops_releases_and_that_is_told(start_server: StartServer) -> None:
    server = await start_server()
    async with Requestor(*server.address, contexts=CONTEXTS) as association:
        assert await association.echo() == 0x0000
        assert await server.stop() is True
        with pytest.raises(AssociationReleased):
            await association.echo()


async def test_ten_associations_at_once(server: Server, stored_datasets: Datasets) -> None:
    async def send(seed: int) -> int:
        async with Requestor(*server.address, contexts=CONTEXTS) as association:
            return await _send(association, ct_image(rows=128, columns=128, seed=seed), 5_001)

    assert set(await asyncio.gather(*(send(seed) for seed in range(10)))) == {0x0000}
    assert len(stored_datasets()) == 10


# -- peers that misbehave -----------------------------------------------------------------------------------

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
AC = wire.associate_ac({1: (0, IMPLICIT), 3: (0, EXPLICIT)})


async def _pdu(reader: asyncio.StreamReader) -> int:
    header = await reader.readexactly(6)
    await reader.readexactly(int.from_bytes(header[2:], "big"))
    return header[0]


@contextlib.asynccontextmanager
async def _peer(script: Script) -> AsyncIterator[Callable[..., Requestor]]:
    """A peer that follows a script, and a way to call it."""
    connections: list[asyncio.StreamWriter] = []
    followers: list[asyncio.Task[Any] | None] = []

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        followers.append(asyncio.current_task())
        try:
            with contextlib.suppress(ConnectionError, EOFError, asyncio.CancelledError):
                await script(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(follow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield lambda config=QUICK: Requestor("127.0.0.1", port, contexts=CONTEXTS, config=config)
    finally:
        server.close()
        for follower in followers:
            if follower is not None:
                follower.cancel()
        for writer in connections:
            writer.close()
        for writer in connections:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await asyncio.gather(*(one for one in followers if one is not None), return_exceptions=True)


def _response(command_field: int, message_id: int, *, context_id: int = 1) -> bytes:
    command = wire.command_set(
        {
            Tag.COMMAND_FIELD: command_field,
            Tag.MESSAGE_ID_RESPONDED_TO: message_id,
            Tag.DATASET_TYPE: wire.NO_DATASET,
            Tag.STATUS: 0,
        }
    )
    return wire.p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, command))


async def test_a_refused_connection_is_connect_failed() -> None:
    async with _peer(lambda *_: asyncio.sleep(0)) as call:
        requestor = call()
    with pytest.raises(ConnectFailed, match="Connection refused"):
        async with requestor:
            pytest.fail("nobody listens")


async def test_a_host_that_nobody_knows_is_connect_failed() -> None:
    with pytest.raises(ConnectFailed, match=r"no-such-host\.invalid"):
        async with Requestor("no-such-host.invalid", 104, contexts=CONTEXTS):
            pytest.fail("nobody is there")


async def test_a_connection_that_never_comes_is_connect_failed_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_args: object, **_more: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never)
    config = RequestorConfig(connect_seconds=0.05)
    with pytest.raises(ConnectFailed, match=r"within 0\.05 s"):
        async with Requestor("192.0.2.1", 104, contexts=CONTEXTS, config=config):
            pytest.fail("nobody is there")


async def test_a_peer_that_never_answers_the_request_is_aborted_in_time() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with _peer(silent) as call, asyncio.timeout(2):
        with pytest.raises(AssociationAborted, match=r"0\.2 s"):
            async with call():
                pytest.fail("it was never answered")


async def test_a_peer_that_hangs_up_instead_of_answering_is_connect_failed() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _pdu(reader)
        writer.close()

    async with _peer(hang_up) as call:
        with pytest.raises(ConnectFailed):
            async with call():
                pytest.fail("it was never answered")


async def test_a_peer_that_answers_garbage_is_aborted() -> None:
    async def garble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with _peer(garble) as call:
        with pytest.raises(AssociationAborted):
            async with call():
                pytest.fail("it was never answered")


def _after_accepting(then: Script) -> Script:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _pdu(reader)
        writer.write(AC)
        await then(reader, writer)

    return accept


async def test_a_peer_that_never_answers_a_message_costs_response_seconds() -> None:
    seen: list[int] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await _pdu(reader))

    async with _peer(_after_accepting(silent)) as call, asyncio.timeout(3), call() as association:
        with pytest.raises(AssociationLost, match=r"no response within 0\.2 s"):
            await association.echo()
    assert seen == [PDUType.P_DATA_TF, PDUType.ABORT]


@pytest.mark.parametrize("how", ["eof", "reset"])
async def test_a_peer_that_vanishes_inside_a_message_is_an_association_lost(how: str) -> None:
    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(200_000)
        if how == "reset":
            writer.transport.abort()
        else:
            writer.close()

    async with _peer(_after_accepting(vanish)) as call, asyncio.timeout(5), call() as association:
        with pytest.raises(AssociationLost):
            await association.store(CT_IMAGE_STORAGE, "1.2.3", EXPLICIT, _endless())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(_response(0x8030, 77), id="to another message"),
        pytest.param(_response(0x8001, 1), id="of another service"),
        pytest.param(
            wire.p_data_tf(PDV(1, Control.COMMAND | Control.LAST, wire.c_echo_rq(1))), id="a request"
        ),
        pytest.param(_response(0x8030, 77) + wire.abort(), id="an abort behind it"),
        pytest.param(_response(0x8030, 77) + wire.release_rq(), id="a release behind it"),
        pytest.param(_response(0x8030, 77) * 3, id="three times"),
    ],
)
async def test_what_nobody_asked_for_is_no_answer(answer: bytes) -> None:
    async def mislead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _pdu(reader)
        writer.write(answer)
        await reader.read()

    async with _peer(_after_accepting(mislead)) as call, call() as association:
        with pytest.raises((AssociationAborted, AssociationReleased)):
            await association.echo()


async def test_an_answer_that_comes_before_the_data_set_ends_is_the_answer() -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _pdu(reader)
        writer.write(_response(0x8001, 1, context_id=3))
        while await _pdu(reader) != PDUType.RELEASE_RQ:
            pass
        writer.write(wire.release_rp())
        await reader.read()

    async with _peer(_after_accepting(hasty)) as call, call() as association:
        result = await association.store(CT_IMAGE_STORAGE, "1.2.3", EXPLICIT, _pieces(bytes(900_000), 33_333))
        assert result.status == 0x0000


async def test_a_peer_that_releases_while_we_wait_is_an_association_released() -> None:
    async def release(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _pdu(reader)
        writer.write(wire.release_rq())
        assert await _pdu(reader) == PDUType.RELEASE_RP
        writer.close()

    async with _peer(_after_accepting(release)) as call, call() as association:
        with pytest.raises(AssociationReleased):
            await association.echo()


async def test_a_release_that_is_never_answered_ends_in_time_and_is_no_error() -> None:
    seen: list[int] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await _pdu(reader))

    async with _peer(_after_accepting(silent)) as call, asyncio.timeout(3), call():
        pass
    assert seen == [PDUType.RELEASE_RQ, PDUType.ABORT]


async def test_a_peer_that_reads_nothing_is_given_up_after_write_seconds() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(5)

    config = RequestorConfig(limits=QUICK.limits, transport=TransportConfig(write_seconds=0.2))
    async with _peer(_after_accepting(deaf)) as call, asyncio.timeout(3), call(config) as association:
        with pytest.raises(AssociationLost):
            await association.store(CT_IMAGE_STORAGE, "1.2.3", EXPLICIT, _endless())


@pytest.mark.parametrize("answered", [True, False])
async def test_a_cancelled_caller_leaves_at_once_whatever_the_peer_does(
    answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requestor_module, "_CLOSE_SECONDS", 0.1)

    async def stubborn(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answered:
            writer.write(AC)
        await asyncio.sleep(5)

    config = RequestorConfig()
    async with _peer(stubborn) as call, asyncio.timeout(3):

        async def use() -> None:
            async with call(config) as association:
                await association.echo()

        task = asyncio.create_task(use())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_nothing_can_be_asked_before_or_after_the_block(server: Server) -> None:
    requestor = Requestor(*server.address, contexts=CONTEXTS)
    with pytest.raises(LocalProtocolError):
        await requestor.echo()
    async with requestor:
        pass
    with pytest.raises(AssociationReleased):
        await requestor.echo()
