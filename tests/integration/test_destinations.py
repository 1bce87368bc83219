"""Objects sent to remotes: over sockets, to destinations that take them, refuse, die, stall or lie."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pynetdicom import AE, evt

from scp_server import Requestor, Server
from scp_server.errors import (
    AssociationError,
    AssociationLost,
    AssociationRejected,
    ConnectFailed,
    RetrieveFailed,
)
from scp_server.interfaces import Sender, StoreOutcome
from scp_server.net.association_transport import TransportConfig
from scp_server.net.destinations import DestinationPool, DestinationsConfig
from scp_server.net.outbound import Remote
from scp_server.net.requestor_connection import RequestorConfig
from scp_server.observability.measures import OutboundMeasures
from scp_server.protocol.limits import Limits
from scp_server.testing import wire
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dicos_objects import dicos_ct, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image, structured_report
from scp_server.testing.recording_proxy import RecordingProxy
from scp_server.testing.scripted_destination import Script, StorageScript, destination
from scp_server.testing.wire import Tag
from tests.integration.conftest import StartServer

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
DICOS_V03 = "1.2.840.10008.3.1.1.1.3"
CT = ct_image(seed=1)
REPORT = structured_report()
QUICK = RequestorConfig(
    limits=Limits(idle_seconds=0, response_seconds=0.3),
    transport=TransportConfig(write_seconds=0.2),
    response_seconds=0.3,
)
WANTED = [(one.sop_class_uid, [one.transfer_syntax_uid]) for one in (CT, REPORT)]


@contextlib.asynccontextmanager
async def pool_to(
    port: int, *, config: RequestorConfig = QUICK, **remote: Any
) -> AsyncIterator[DestinationPool]:
    """A pool with one remote, `DEST`, closed at the end."""
    entry = Remote("DEST", "127.0.0.1", port, **remote)
    pool = DestinationPool(
        DestinationsConfig("ARCHIVE", {"DEST": entry}, config), measures := OutboundMeasures()
    )
    try:
        yield pool
    finally:
        await pool.close()
        assert (measures.used, measures.idle, pool._open) == (0, 0, 0)


async def pieces(data: bytes, size: int = 100_001) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def send(sender: Sender, stored: EncodedObject, **how: Any) -> StoreOutcome:
    (context,) = sender.contexts_for(stored.sop_class_uid)
    assert context.transfer_syntax == stored.transfer_syntax_uid
    return await sender.store(
        context,
        sop_class_uid=stored.sop_class_uid,
        sop_instance_uid=stored.sop_instance_uid,
        dataset=pieces(stored.dataset),
        **how,
    )


@pytest.fixture(autouse=True)
async def nothing_is_left_behind() -> AsyncIterator[None]:
    """Neither a task nor an exception that nobody saw."""
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    assert asyncio.all_tasks() - before - {asyncio.current_task()} == set()
    assert unhandled == []


# -- a destination that takes them --------------------------------------------------------------------------


async def test_objects_arrive_as_they_are_over_one_association_that_is_released_at_the_end() -> None:
    taken: list[bytes] = []
    commands: list[dict[int, bytes]] = []
    requests: list[bytes] = []

    async def script(peer: StorageScript) -> None:
        await peer.accept(maximum_length=20_000)
        requests.append(peer.request)
        while (store := await peer.read_store()) is not None:
            commands.append(store[0])
            taken.append(store[1])
            await peer.respond(store[0])

    large = ct_image(rows=400, columns=400)
    async with destination(script) as port, pool_to(port) as pool:
        for stored in (CT, REPORT, large):
            async with pool.send_to("DEST", WANTED) as sender:
                outcome = await send(sender, stored, priority=1, move_originator=("MOVER", 9))
                assert outcome == StoreOutcome(0)
    assert taken == [CT.dataset, REPORT.dataset, large.dataset]
    (request,) = requests
    assert (request[4:20], request[20:36]) == (b"DEST".ljust(16), b"ARCHIVE".ljust(16))
    assert [int.from_bytes(command[Tag.MESSAGE_ID], "little") for command in commands] == [1, 2, 3]
    for command in commands:
        assert command[Tag.PRIORITY] == b"\1\0"
        assert command[Tag.MOVE_ORIGINATOR_AE_TITLE].strip() == b"MOVER"
        assert command[Tag.MOVE_ORIGINATOR_MESSAGE_ID] == b"\x09\0"


@pytest.mark.parametrize("glued", [False, True])
async def test_a_remote_is_sent_the_framing_that_it_wants(server: Server, glued: bool) -> None:
    dicos, tdr = dicos_ct(), dicos_tdr(dicos_ct())
    async with (
        RecordingProxy(*server.address) as proxy,
        pool_to(proxy.port, glued=glued, application_context_name=DICOS_V03) as pool,
    ):
        for stored in (dicos, tdr):
            async with pool.send_to("DEST", [(stored.sop_class_uid, [stored.transfer_syntax_uid])]) as sender:
                assert await send(sender, stored) == StoreOutcome(0)
    assert [(one.glued, one.dataset) for one in proxy.stores()] == [
        (glued, dicos.dataset),
        (glued, tdr.dataset),
    ]


async def test_parallel_senders_have_associations_of_their_own() -> None:
    accepted: list[int] = []
    both = asyncio.Event()

    async def script(peer: StorageScript) -> None:
        await peer.accept()
        accepted.append(1)
        if len(accepted) == 2:
            both.set()
        await both.wait()
        await peer.take_all()

    async with destination(script) as port, pool_to(port) as pool:

        async def one() -> None:
            async with pool.send_to("DEST", WANTED) as sender:
                assert await send(sender, CT) == StoreOutcome(0)

        await asyncio.gather(one(), one())
    assert len(accepted) == 2


async def test_every_context_is_of_one_class_and_one_syntax_and_may_be_refused_alone() -> None:
    contexts: list[wire.ProposedContext] = []

    async def script(peer: StorageScript) -> None:
        await peer.accept(refused=[REPORT.sop_class_uid])
        contexts.extend(wire.read_proposed(peer.request))
        await peer.take_all()

    async with (
        destination(script) as port,
        pool_to(port) as pool,
        pool.send_to(
            "DEST", [(CT.sop_class_uid, [EXPLICIT, IMPLICIT]), (REPORT.sop_class_uid, [EXPLICIT])]
        ) as sender,
    ):
        accepted = sender.contexts_for(CT.sop_class_uid)
        assert {context.transfer_syntax for context in accepted} == {EXPLICIT, IMPLICIT}
        assert sender.contexts_for(REPORT.sop_class_uid) == ()
        assert sender.contexts_for("1.2.3") == ()
    assert [len(context.transfer_syntaxes) for context in contexts] == [1, 1, 1]


async def test_128_contexts_are_negotiated_on_one_association() -> None:
    async def script(peer: StorageScript) -> None:
        await peer.accept()
        await peer.take_all()

    wanted = [(CT.sop_class_uid, [EXPLICIT, *(f"1.2.{number}" for number in range(127))])]
    async with destination(script) as port, pool_to(port) as pool, pool.send_to("DEST", wanted) as sender:
        assert len(sender.contexts_for(CT.sop_class_uid)) == 128


@pytest.mark.parametrize("refused", [[], [REPORT.sop_class_uid]])
async def test_the_dicos_toolkits_answer_is_understood(refused: list[str]) -> None:
    taken: list[bytes] = []

    async def script(peer: StorageScript) -> None:
        await peer.accept(malformed=True, refused=refused)
        await peer.take_all(taken)

    async with destination(script) as port, pool_to(port) as pool, pool.send_to("DEST", WANTED) as sender:
        assert await send(sender, CT) == StoreOutcome(0)
        assert len(sender.contexts_for(REPORT.sop_class_uid)) == (0 if refused else 1)
    assert taken == [CT.dataset]


@pytest.mark.parametrize("status", [0xB000, 0xB007, 0xA700, 0xA900, 0xC111, 0x0111, 0x0122])
async def test_warnings_and_failures_are_handed_on_and_the_association_goes_on(status: int) -> None:
    async def script(peer: StorageScript) -> None:
        await peer.accept()
        await peer.take_all(status=status, comment="not quite")

    async with destination(script) as port, pool_to(port) as pool, pool.send_to("DEST", WANTED) as sender:
        for stored in (CT, REPORT):
            assert await send(sender, stored) == StoreOutcome(status, "not quite")


async def test_pynetdicom_takes_them() -> None:
    taken: list[tuple[bytes, str]] = []

    def store(event: Any) -> int:
        request = event.request
        taken.append((request.DataSet.getvalue(), str(request.MoveOriginatorApplicationEntityTitle)))
        return 0x0000

    entity = AE(ae_title="DEST")
    entity.require_called_aet = True
    for one in (CT, REPORT):
        entity.add_supported_context(one.sop_class_uid, one.transfer_syntax_uid)
    server: Any = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        async with (
            pool_to(server.socket.getsockname()[1]) as pool,
            pool.send_to("DEST", WANTED) as sender,
        ):
            for one in (CT, REPORT):
                assert await send(sender, one, move_originator=("MOVER", 1)) == StoreOutcome(0)
    finally:
        server.shutdown()
    assert taken == [(CT.dataset, "MOVER"), (REPORT.dataset, "MOVER")]


# -- destinations that do not -------------------------------------------------------------------------------


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


async def test_one_that_is_down_fails_at_once_and_for_all() -> None:
    async with pool_to(unused_port()) as pool:

        async def ask() -> None:
            async with pool.send_to("DEST", WANTED):
                pass

        failures = await asyncio.gather(*(ask() for _ in range(20)), return_exceptions=True)
        assert all(isinstance(failure, ConnectFailed) for failure in failures)
        assert sum("so soon" in str(failure) for failure in failures) == 16
        assert pool._measures.failed == 4


async def test_one_that_rejects_says_why() -> None:
    async def script(peer: StorageScript) -> None:
        await peer.read_pdu()
        await peer.send(wire.associate_rj(1, 1, 7))
        await peer.wait_eof()

    async with destination(script) as port, pool_to(port) as pool:
        with pytest.raises(AssociationRejected) as caught:
            async with pool.send_to("DEST", WANTED):
                pass
    assert (caught.value.result, caught.value.source, caught.value.reason) == (1, 1, 7)


async def test_one_that_never_answers_the_request_is_given_up_in_time() -> None:
    async def script(peer: StorageScript) -> None:
        await peer.read_pdu()
        await peer.expect_abort()

    async with destination(script) as port, pool_to(port) as pool:
        with pytest.raises(AssociationError, match="no answer"):
            async with pool.send_to("DEST", WANTED):
                pass


async def _dies(peer: StorageScript) -> None:
    await peer.read_pdu()
    await peer.reset()


async def _aborts(peer: StorageScript) -> None:
    await peer.read_store()
    await peer.abort()
    await peer.wait_eof()


async def _stalls(peer: StorageScript) -> None:
    await peer.read_store()
    await peer.expect_abort()


async def _answers_another_request(peer: StorageScript) -> None:
    store = await peer.read_store()
    assert store is not None
    await peer.respond(store[0] | {Tag.MESSAGE_ID: b"\x63\0"})
    await peer.expect_abort()


@pytest.mark.parametrize("end", [_dies, _aborts, _stalls, _answers_another_request])
async def test_one_that_fails_inside_an_object_is_an_association_error_and_the_next_begins_anew(
    end: Script,
) -> None:
    ended = asyncio.Event()
    taken: list[bytes] = []

    async def script(peer: StorageScript) -> None:
        await peer.accept()
        if ended.is_set():
            await peer.take_all(taken)
        else:
            ended.set()
            await end(peer)

    large = ct_image(rows=512, columns=512)
    async with destination(script) as port, pool_to(port) as pool:
        with pytest.raises(AssociationError):
            async with pool.send_to("DEST", WANTED) as sender:
                await send(sender, large)
        async with pool.send_to("DEST", WANTED) as sender:
            assert await send(sender, CT) == StoreOutcome(0)
        assert (pool._measures.opened, pool._measures.reused) == (2, 0)
    assert taken == [CT.dataset]


async def test_one_that_reads_nothing_is_given_up_after_write_seconds() -> None:
    given_up = asyncio.Event()

    async def script(peer: StorageScript) -> None:
        await peer.accept()
        await given_up.wait()

    huge = ct_image(rows=4_096, columns=4_096)
    async with destination(script) as port, pool_to(port) as pool:
        with pytest.raises(AssociationLost):
            async with pool.send_to("DEST", WANTED) as sender:
                await send(sender, huge)
        given_up.set()


async def test_one_that_releases_while_idle_is_asked_again() -> None:
    released = asyncio.Event()
    taken: list[bytes] = []

    async def script(peer: StorageScript) -> None:
        await peer.accept()
        store = await peer.read_store()
        assert store is not None
        taken.append(store[1])
        await peer.respond(store[0])
        if not released.is_set():
            await peer.release()
            released.set()
        else:
            await peer.take_all()

    async with destination(script) as port, pool_to(port) as pool:
        for _ in range(2):
            async with pool.send_to("DEST", WANTED) as sender:
                assert await send(sender, CT) == StoreOutcome(0)
            await released.wait()
            while pool._measures.idle and len(taken) == 1:
                await asyncio.sleep(0.005)
        assert pool._measures.opened == 2
    assert taken == [CT.dataset] * 2


# -- the whole server ---------------------------------------------------------------------------------------

STUDY = make_uid("study")
STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"


async def move(port: int, destination_ae_title: str) -> tuple[int | None, int | None, int | None]:
    """Have the server send the study; status, completed and failed."""
    async with Requestor("127.0.0.1", port, contexts=[(STUDY_MOVE, [EXPLICIT])]) as association:
        moving = association.move({"StudyInstanceUID": STUDY}, destination=destination_ae_title)
        with contextlib.suppress(RetrieveFailed):
            async for _ in moving:
                pass
        assert moving.result is not None
        counters = moving.result.counters
        return moving.result.status, counters.completed, counters.failed


async def fill(port: int, count: int = 3) -> list[bytes]:
    """Store a study; its data sets."""
    stored = [ct_image(seed=number, study_instance_uid=STUDY) for number in range(count)]
    async with Requestor(
        "127.0.0.1", port, contexts=[(CT.sop_class_uid, [CT.transfer_syntax_uid])]
    ) as association:
        for one in stored:
            result = await association.store(
                one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, pieces(one.dataset)
            )
            assert result.status == 0
    return sorted(one.dataset for one in stored)


async def test_a_daemon_moves_to_its_remotes_keeps_the_association_and_releases_it_when_it_ends(
    tmp_path: Path,
) -> None:
    taken: list[bytes] = []
    released: list[int] = []

    async def script(peer: StorageScript) -> None:
        await peer.accept()
        await peer.take_all(taken)
        released.append(1)

    async with destination(script) as port:
        options = ("--remote", f"DEST=127.0.0.1:{port}", "--ae-title", "ARCHIVE")
        environment = {
            "SCP_SERVER_TIMEOUTS__OUTBOUND_IDLE_SECONDS": "60",
            "SCP_SERVER_RETRIEVE__ASSOCIATIONS": "1",
        }
        daemon = DaemonProcess(tmp_path / "data", *options, environment=environment)
        await asyncio.to_thread(daemon.start)
        try:
            datasets = await fill(daemon.ready.dicom_port)
            for _ in range(2):
                assert await move(daemon.ready.dicom_port, "DEST") == (0x0000, 3, 0)
            assert released == []
            metrics = await _metrics(daemon.ready.http_port)
            assert metrics["scp_outbound_associations_opened_total"] == 1
            assert metrics["scp_outbound_associations_reused_total"] == 1
            assert metrics['scp_outbound_associations{state="idle"}'] == 1
        finally:
            await asyncio.to_thread(daemon.terminate)
    assert sorted(taken) == sorted(datasets * 2)
    assert released == [1]


async def test_a_title_that_is_no_remote_is_0xa801_and_nothing_is_dialled(start_server: StartServer) -> None:
    dialled: list[int] = []

    async def script(_peer: StorageScript) -> None:
        dialled.append(1)

    async with destination(script) as port:
        remotes = [{"ae_title": "OTHER", "host": "127.0.0.1", "port": port}]
        server = await start_server(remotes=remotes)
        await fill(server.address[1])
        for title in ("DEST", f"127.0.0.1:{port}"[:16]):
            assert (await move(server.address[1], title))[0] == 0xA801
    assert dialled == []


async def test_remotes_are_reloaded_at_sighup(tmp_path: Path) -> None:
    taken: list[bytes] = []

    async def script(peer: StorageScript) -> None:
        await peer.accept()
        await peer.take_all(taken)

    config = tmp_path / "c.toml"
    config.write_text("")
    async with destination(script) as port:
        daemon = DaemonProcess(tmp_path / "data", "--config", str(config))
        await asyncio.to_thread(daemon.start)
        try:
            datasets = await fill(daemon.ready.dicom_port, 1)
            assert (await move(daemon.ready.dicom_port, "DEST"))[0] == 0xA801
            config.write_text(f"[[remotes]]\nae_title = 'DEST'\nhost = '127.0.0.1'\nport = {port}\n")
            daemon.process.send_signal(signal.SIGHUP)
            async with asyncio.timeout(10):
                while not any("settings.reloaded" in line for line in daemon.output):
                    await asyncio.sleep(0.01)
            assert await move(daemon.ready.dicom_port, "DEST") == (0x0000, 1, 0)
        finally:
            await asyncio.to_thread(daemon.terminate)
    assert taken == datasets


async def test_a_stalling_destination_fails_its_parts_and_the_requestor_hears_of_it(
    start_server: StartServer,
) -> None:
    async def script(peer: StorageScript) -> None:
        await peer.accept()
        await _stalls(peer)

    async with destination(script) as port:
        server: Server = await start_server(
            remotes=[{"ae_title": "DEST", "host": "127.0.0.1", "port": port}],
            timeouts={"store_response_seconds": 0.2},
            retrieve={"associations": 1},
        )
        await fill(server.address[1], 2)
        status, completed, failed = await move(server.address[1], "DEST")
        assert (status, completed, failed) == (0xA702, 0, 2)


async def _metrics(port: int) -> dict[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("scp_"))
    return {name: float(value) for name, _, value in lines}
