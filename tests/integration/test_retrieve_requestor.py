"""Our C-MOVE and C-GET against peers that do what a script says: helpful ones, wrong ones, hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from scp_server import ReceivedFolder, Requestor
from scp_server.errors import (
    AssociationAborted,
    AssociationLost,
    LocalProtocolError,
    OperationRefused,
    QueryError,
    RetrieveFailed,
)
from scp_server.interfaces import AcceptedContext
from scp_server.net.receiving import ObjectSinkWriter, ReceivedObject
from scp_server.net.requestor import RequestorConfig
from scp_server.net.retrieving import Retrieval, RetrieveProgress, RetrieveResult
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import CStoreRQ
from scp_server.testing import wire
from scp_server.testing.daemon import read_stored_file
from scp_server.testing.dicos_objects import DICOS_CT_IMAGE_STORAGE, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import CT_IMAGE_STORAGE, ct_image
from scp_server.testing.scripted_peer import Response, ScriptedPeer, UnexpectedAnswer
from scp_server.testing.wire import PDV, Control, PDUType, Tag

STUDY_MOVE, STUDY_GET = "1.2.840.10008.5.1.4.1.2.2.2", "1.2.840.10008.5.1.4.1.2.2.3"
EXPLICIT = "1.2.840.10008.1.2.1"
MOVE_ID, GET_ID, CT_ID, DICOS_ID = 1, 3, 5, 7
CONTEXTS = [(STUDY_MOVE, [EXPLICIT]), (STUDY_GET, [EXPLICIT])]
RECEIVES = [(CT_IMAGE_STORAGE, [EXPLICIT]), (DICOS_CT_IMAGE_STORAGE, [EXPLICIT])]
QUERY = {"StudyInstanceUID": "1.2"}
IMAGES = [ct_image(rows=8, columns=8, seed=seed) for seed in range(3)]
QUICK = RequestorConfig(
    limits=Limits(idle_seconds=0, response_seconds=2, dimse_seconds=2),
    response_seconds=0.5,
    cancel_seconds=0.5,
)
MOVE_DESTINATION = 0x0600

Script = Callable[["Archive"], Awaitable[None]]


class Archive(ScriptedPeer):
    """The acceptor of an association that is asked with C-MOVE or C-GET."""

    request: bytes = b""
    """The A-ASSOCIATE-RQ."""
    command: dict[int, bytes]
    identifier: bytes = b""
    context_id: int = 0

    async def accept(self) -> None:
        self.request = (await self.read_pdu()).body
        roles = b"".join(_role(uid) for uid, _ in RECEIVES)
        contexts = dict.fromkeys((MOVE_ID, GET_ID, CT_ID, DICOS_ID), (0, EXPLICIT))
        await self.send(wire.associate_ac(contexts, user_items=roles))

    async def read_request(self) -> int:
        """The message id of a C-MOVE-RQ or C-GET-RQ, its identifier read."""
        response = await self.read_response()
        self.command, self.context_id = response.elements, response.context_id
        ((_, control, self.identifier),) = wire.read_pdvs((await self.read_pdu()).body)
        assert control == Control.LAST
        return int.from_bytes(response.elements[Tag.MESSAGE_ID], "little")

    async def read_cancel(self) -> int:
        return cancelled(await self.read_response())

    async def give(self, one: EncodedObject, *, context_id: int = CT_ID, message_id: int = 9) -> int:
        """A C-STORE sub-operation; the status it was answered with."""
        await self.send(store(one, context_id=context_id, message_id=message_id))
        answer = await self.read_response()
        assert (answer.context_id, answer.message_id_responded_to) == (context_id, message_id)
        return answer.status

    async def expect_release(self) -> None:
        assert (await self.read_pdu()).pdu_type == PDUType.RELEASE_RQ
        await self.send(wire.release_rp())


def cancelled(response: Response) -> int:
    """The message id that a C-CANCEL-RQ names."""
    assert int.from_bytes(response.elements[Tag.COMMAND_FIELD], "little") == 0x0FFF
    return response.message_id_responded_to


def _role(uid: str) -> bytes:
    """We, the requestor, may be SCP of the class (PS3.7 D.3.3.4)."""
    return wire.item(0x54, len(uid).to_bytes(2, "big") + uid.encode() + b"\0\1")


def store(one: EncodedObject, *, context_id: int = CT_ID, message_id: int = 9, uid: str = "") -> bytes:
    command = wire.c_store_rq(message_id, one.sop_class_uid, uid or one.sop_instance_uid)
    return wire.p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, command)) + wire.p_data_tf(
        PDV(context_id, Control.LAST, one.dataset)
    )


def answer(
    message_id: int,
    status: int,
    counters: Sequence[int | None] = (),
    *,
    context_id: int = GET_ID,
    failed: Sequence[str] = (),
    comment: str = "",
) -> bytes:
    """A C-MOVE-RSP or C-GET-RSP; `counters` are remaining, completed, failed, warning."""
    elements: dict[int, int | str | bytes] = {
        Tag.COMMAND_FIELD: 0x8010 if context_id == GET_ID else 0x8021,
        Tag.MESSAGE_ID_RESPONDED_TO: message_id,
        Tag.DATASET_TYPE: 1 if failed else wire.NO_DATASET,
        Tag.STATUS: status,
    }
    elements |= {0x1020 + n: one for n, one in enumerate(counters) if one is not None}
    if comment:
        elements[Tag.ERROR_COMMENT] = comment
    data = wire.p_data_tf(PDV(context_id, Control.COMMAND | Control.LAST, wire.command_set(elements)))
    if failed:
        value = "\\".join(failed).encode()
        value += b"\0" * (len(value) % 2)
        element = b"\x08\x00\x58\x00UI" + len(value).to_bytes(2, "little") + value
        data += wire.p_data_tf(PDV(context_id, Control.LAST, element))
    return data


@contextlib.asynccontextmanager
async def peer(script: Script) -> AsyncIterator[Callable[..., Requestor]]:
    """A peer that follows a script to its end; what fails in it fails the test."""
    followers: list[asyncio.Task[None]] = []

    async def follow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        followers.append(task)
        async with Archive(reader, writer, 5) as acceptor:
            await acceptor.accept()
            await script(acceptor)

    server = await asyncio.start_server(follow, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield lambda config=QUICK: Requestor(
            "127.0.0.1", port, contexts=CONTEXTS, receives=RECEIVES, config=config
        )
    finally:
        server.close()
        async with asyncio.timeout(8):
            await asyncio.gather(*followers)


class Memory:
    """A sink that keeps what it was given, and can be told to fail."""

    def __init__(self, failure: Exception | None = None, where: str = "write") -> None:
        self.kept: list[tuple[str, bytes]] = []
        self.aborted = 0
        self.writing = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()
        self._failure = failure
        self._where = where

    async def begin(self, request: CStoreRQ, context: AcceptedContext) -> ObjectSinkWriter:
        self.may_fail("begin")
        return MemoryWriter(self, request.affected_sop_instance_uid)

    def may_fail(self, where: str) -> None:
        if self._failure is not None and self._where == where:
            raise self._failure


class MemoryWriter:
    def __init__(self, sink: Memory, uid: str) -> None:
        self._sink = sink
        self._uid = uid
        self._data = b""

    async def write(self, chunks: Sequence[memoryview]) -> None:
        self._sink.writing.set()
        await self._sink.go_on.wait()
        self._sink.may_fail("write")
        self._data += b"".join(chunks)

    async def commit(self) -> None:
        self._sink.may_fail("commit")
        self._sink.kept.append((self._uid, self._data))

    async def abort(self) -> None:
        self._sink.aborted += 1


async def progress_of(retrieval: Retrieval) -> list[tuple[int | None, ...]]:
    return [(one.remaining, one.completed, one.failed, one.warning) async for one in retrieval]


def files(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too, with its data set."""
    return {path.name: read_stored_file(path).dataset for path in folder.iterdir()}


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


# -- C-MOVE -------------------------------------------------------------------------------------------------


async def test_a_move_names_its_destination_and_hands_on_the_peer_s_counters() -> None:
    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        assert archive.command[MOVE_DESTINATION].strip() == b"WORKSTATION"
        assert archive.identifier == b"\x08\0\x52\0CS\x06\0STUDY \x20\0\x0d\0UI\x04\x001.2\0"
        await archive.send(answer(number, 0xFF00, (2, 0, 0, 0), context_id=MOVE_ID))
        await archive.send(answer(number, 0xFF00, (1, 1, 0, 0), context_id=MOVE_ID))
        await archive.send(answer(number, 0x0000, (None, 2, 0, 0), context_id=MOVE_ID))
        await archive.expect_release()

    async with peer(script) as call, call() as association:
        moving = association.move(QUERY, destination="WORKSTATION")
        assert moving.result is None
        assert await progress_of(moving) == [(2, 0, 0, 0), (1, 1, 0, 0)]
        assert moving.result == RetrieveResult(0, RetrieveProgress(None, 2, 0, 0), (), "", cancelled=False)


async def test_a_warning_is_a_result_with_the_instances_that_failed() -> None:
    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        await archive.send(
            answer(number, 0xB000, (None, 1, 2, 0), context_id=MOVE_ID, failed=["1.2.3", "1.2.4"])
        )
        await archive.expect_release()

    async with peer(script) as call, call() as association:
        moving = association.move(QUERY, destination="WORKSTATION")
        assert await progress_of(moving) == []
        assert moving.result is not None
        assert moving.result.status == 0xB000
        assert moving.result.failed_sop_instance_uids == ("1.2.3", "1.2.4")


@pytest.mark.parametrize("status", [0xA801, 0xA702, 0xA900, 0x0122, 0xFE00])
async def test_a_failure_is_raised_and_the_result_tells_its_counters(status: int) -> None:
    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        await archive.send(answer(number, 0xFF00, (3, 0, 1, 0), context_id=MOVE_ID))
        await archive.send(answer(number, status, context_id=MOVE_ID, comment="not there"))
        await archive.expect_release()

    async with peer(script) as call, call() as association:
        moving = association.move(QUERY, destination="NOBODY")
        with pytest.raises(RetrieveFailed, match=rf"status 0x{status:04X}: not there"):
            await progress_of(moving)
        assert moving.result is not None
        assert (moving.result.status, moving.result.counters.failed) == (status, 1)


async def test_leaving_a_move_early_cancels_it() -> None:
    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        await archive.send(answer(number, 0xFF00, (2, 1, 0, 0), context_id=MOVE_ID))
        assert await archive.read_cancel() == number
        await archive.send(answer(number, 0xFE00, (1, 2, 0, 0), context_id=MOVE_ID))
        await archive.expect_release()

    async with peer(script) as call, call() as association:
        moving = association.move(QUERY, destination="WORKSTATION")
        async for _ in moving:
            break
        await moving.aclose()
        assert moving.result == RetrieveResult(0xFE00, RetrieveProgress(1, 2, 0, 0), (), "", cancelled=True)


async def test_an_object_during_a_move_is_not_what_was_asked_for() -> None:
    async def script(archive: Archive) -> None:
        await archive.read_request()
        await archive.send(store(IMAGES[0]))
        await archive.expect_abort()

    async with peer(script) as call:
        with pytest.raises(AssociationAborted, match="nobody asked for"):
            async with call() as association:
                await progress_of(association.move(QUERY, destination="WORKSTATION"))


async def test_what_cannot_be_asked_is_said_before_anything_is_sent() -> None:
    async def script(archive: Archive) -> None:
        await archive.expect_release()

    async with peer(script) as call, call() as association:
        with pytest.raises(QueryError, match="destination"):
            association.move(QUERY, destination="A\\B")
        with pytest.raises(QueryError, match="unique keys"):
            association.move({"PatientName": "DOE"}, destination="WORKSTATION")
        with pytest.raises(LocalProtocolError, match="no presentation context"):
            association.get({"PatientID": "1"}, receive=Memory())


# -- C-GET --------------------------------------------------------------------------------------------------


async def test_objects_come_on_the_same_association_with_every_part_of_an_instance(tmp_path: Path) -> None:
    first, second = two_section_ct()

    async def script(archive: Archive) -> None:
        assert _role(CT_IMAGE_STORAGE) in archive.request
        number = await archive.read_request()
        assert archive.context_id == GET_ID
        assert await archive.give(IMAGES[0]) == 0x0000
        await archive.send(answer(number, 0xFF00, (2, 1, 0, 0)))
        assert await archive.give(first, context_id=DICOS_ID) == 0x0000
        assert await archive.give(second, context_id=DICOS_ID) == 0x0000
        assert await archive.give(first, context_id=DICOS_ID) == 0x0000
        await archive.send(answer(number, 0x0000, (None, 4, 0, 0)))
        await archive.expect_release()

    received: list[ReceivedObject] = []
    async with peer(script) as call, call() as association:
        with ReceivedFolder(tmp_path / "out") as folder:
            getting = association.get(QUERY, receive=folder, on_object=received.append)
            assert await progress_of(getting) == [(2, 1, 0, 0)]
    assert files(tmp_path / "out") == {
        f"{IMAGES[0].sop_instance_uid}.dcm": IMAGES[0].dataset,
        f"{first.sop_instance_uid}.dcm": first.dataset,
        f"{first.sop_instance_uid}_2.dcm": second.dataset,
    }
    assert [one.status for one in received] == [0, 0, 0, 0]
    assert received[0] == ReceivedObject(
        CT_IMAGE_STORAGE, IMAGES[0].sop_instance_uid, EXPLICIT, len(IMAGES[0].dataset), 0
    )


async def test_an_object_of_any_size_is_never_held_whole() -> None:
    """The sink is stuck: what the peer can send until then is bounded, and goes on afterwards."""
    config = RequestorConfig(limits=Limits(idle_seconds=0), waiting_object_bytes=200_000)
    fragments = 1_000
    sent = 0

    async def script(archive: Archive) -> None:
        nonlocal sent
        number = await archive.read_request()
        command = wire.c_store_rq(9, CT_IMAGE_STORAGE, "1.2.3")
        await archive.send(wire.p_data_tf(PDV(CT_ID, Control.COMMAND | Control.LAST, command)))
        for fragment in range(fragments):
            control = Control.LAST if fragment == fragments - 1 else Control(0)
            await archive.send(wire.p_data_tf(PDV(CT_ID, control, bytes(60_000))))
            sent += 1
        assert (await archive.read_response()).status == 0x0000
        await archive.send(answer(number, 0x0000))
        await archive.expect_release()

    sink = Memory()
    sink.go_on.clear()
    async with peer(script) as call, call(config) as association:
        getting = asyncio.create_task(progress_of(association.get(QUERY, receive=sink)))
        connection = association._live()
        async with asyncio.timeout(5):
            while not connection._reading_stops:
                await asyncio.sleep(0)
        assert sent < fragments
        receiver: Any = connection.request_receiver
        assert receiver._held_bytes <= 200_000 + 262_144, "one read above the bound"
        sink.go_on.set()
        await getting
    assert [len(data) for _, data in sink.kept] == [60_000 * fragments]


@pytest.mark.parametrize(
    ("failure", "where", "status"),
    [
        (OperationRefused(0xC123, "no"), "begin", 0xC123),
        (OSError(errno.ENOSPC, "No space left on device"), "write", 0xA700),
        (RuntimeError("a bug"), "commit", 0x0110),
    ],
)
async def test_what_a_sink_raises_is_the_answer_for_that_object_alone(
    failure: Exception, where: str, status: int
) -> None:
    sink = Memory(failure, where)

    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        assert await archive.give(IMAGES[0]) == status
        sink._failure = None
        assert await archive.give(IMAGES[1]) == 0x0000
        await archive.send(answer(number, 0xB000, (None, 1, 1, 0)))
        await archive.expect_release()

    received: list[ReceivedObject] = []
    async with peer(script) as call, call() as association:
        await progress_of(association.get(QUERY, receive=sink, on_object=received.append))
    assert [one.status for one in received] == [status, 0]
    assert sink.aborted == (0 if where == "begin" else 1)
    assert len(sink.kept) == 1


async def test_a_path_as_uid_becomes_a_name_inside_the_folder(tmp_path: Path) -> None:
    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        for uid in ("../../x", "/etc/x", ".", "1.2/../../x", "CON", "1." * 40):
            await archive.send(store(IMAGES[0], uid=uid))
            assert (await archive.read_response()).status == 0x0000
        await archive.send(answer(number, 0x0000))
        await archive.expect_release()

    async with peer(script) as call, call() as association:
        with ReceivedFolder(tmp_path / "a" / "out") as folder:
            await progress_of(association.get(QUERY, receive=folder))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["out"]
    names = files(tmp_path / "a" / "out")
    assert len(names) == 6
    assert all(name.startswith("no-uid-") for name in names)


async def test_what_was_not_asked_for_is_refused_and_the_rest_goes_on() -> None:
    wanted, other, _ = IMAGES
    first, _second = two_section_ct()

    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        assert await archive.give(other) == 0xA900, "another instance than those asked for"
        assert await archive.give(first, context_id=CT_ID) == 0x0122, "another class than its context's"
        assert await archive.give(wanted, context_id=GET_ID) == 0x0122, "not a context for objects"
        assert await archive.give(wanted) == 0x0000
        await archive.send(answer(number, 0xB000, (None, 1, 3, 0)))
        await archive.expect_release()

    sink = Memory()
    query = {
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.3",
        "SOPInstanceUID": [wanted.sop_instance_uid, "9.9"],
    }
    async with peer(script) as call, call() as association:
        await progress_of(association.get(query, receive=sink))
    assert sink.kept == [(wanted.sop_instance_uid, wanted.dataset)]


@pytest.mark.parametrize(
    ("objects", "size_bytes", "why"),
    [(2, 0, "more than 2 objects"), (0, 2000, "more than 2000 bytes")],
    ids=["objects", "bytes"],
)
async def test_endless_objects_are_cancelled_at_the_limit(objects: int, size_bytes: int, why: str) -> None:
    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        for given in range(2):
            assert await archive.give(IMAGES[given]) == 0x0000
        await archive.send(store(IMAGES[2]))
        assert await archive.read_cancel() == number
        assert (await archive.read_response()).status == 0xA700
        assert await archive.give(IMAGES[0]) == 0xA700
        await archive.send(answer(number, 0xFE00, (7, 2, 2, 0)))
        await archive.expect_release()

    sink = Memory()
    config = RequestorConfig(
        limits=Limits(idle_seconds=0), max_retrieved_objects=objects, max_retrieved_bytes=size_bytes
    )
    async with peer(script) as call, call(config) as association:
        getting = association.get(QUERY, receive=sink)
        with pytest.raises(RetrieveFailed, match=why):
            await progress_of(getting)
        assert getting.result is not None
        assert getting.result.cancelled
    assert len(sink.kept) == 2


async def test_a_peer_that_never_ends_after_a_cancel_is_aborted() -> None:
    async def script(archive: Archive) -> None:
        await archive.read_request()
        with contextlib.suppress(ConnectionError, EOFError, UnexpectedAnswer):
            while True:
                await archive.send(store(IMAGES[0]))
                await archive.read_response()

    sink = Memory()
    async with peer(script) as call, call() as association:
        getting = association.get(QUERY, receive=sink)
        asking = asyncio.create_task(progress_of(getting))
        await sink.writing.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        with pytest.raises(AssociationAborted, match=r"no final response within 0\.5 s after C-CANCEL"):
            await progress_of(association.move(QUERY, destination="ANY"))


async def test_no_final_response_is_silence_that_ends() -> None:
    async def script(archive: Archive) -> None:
        await archive.read_request()
        assert await archive.give(IMAGES[0]) == 0x0000
        await archive.expect_abort()

    sink = Memory()
    async with peer(script) as call:
        with pytest.raises(AssociationLost, match=r"no response within 0\.5 s"):
            async with call() as association:
                await progress_of(association.get(QUERY, receive=sink))
    assert len(sink.kept) == 1, "what was answered is kept"


async def test_a_slow_sink_is_no_silence_of_the_peer() -> None:
    sink = Memory()
    sink.go_on.clear()
    waited = asyncio.Event()

    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        await archive.send(store(IMAGES[0]))
        await waited.wait()
        assert (await archive.read_response()).status == 0x0000
        await archive.send(answer(number, 0x0000))
        await archive.expect_release()

    config = RequestorConfig(limits=Limits(idle_seconds=0), response_seconds=0.05)
    async with peer(script) as call, call(config) as association:
        getting = asyncio.create_task(progress_of(association.get(QUERY, receive=sink)))
        await sink.writing.wait()
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.call_later(4 * 0.05, over.set)
        await over.wait()
        assert not getting.done()
        sink.go_on.set()
        waited.set()
        assert await getting == []


async def test_a_final_response_before_the_last_answer_waits_for_the_object() -> None:
    sink = Memory()
    sink.go_on.clear()

    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        await archive.send(store(IMAGES[0]))
        await archive.send(answer(number, 0x0000))
        await sink.writing.wait()
        sink.go_on.set()
        assert (await archive.read_response()).status == 0x0000
        await archive.expect_release()

    async with peer(script) as call, call() as association:
        getting = association.get(QUERY, receive=sink)
        assert await progress_of(getting) == []
        assert len(sink.kept) == 1


@pytest.mark.parametrize("case", ["after the end", "status inside", "no data set", "another request"])
async def test_messages_that_make_no_sense_abort_the_association(case: str) -> None:
    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        command = wire.c_store_rq(9, CT_IMAGE_STORAGE, "1.2.3")
        begun = wire.p_data_tf(PDV(CT_ID, Control.COMMAND | Control.LAST, command))
        begun += wire.p_data_tf(PDV(CT_ID, Control(0), bytes(1000)))
        bare = wire.command_set(
            {
                Tag.AFFECTED_SOP_CLASS_UID: CT_IMAGE_STORAGE,
                Tag.COMMAND_FIELD: 0x0001,
                Tag.MESSAGE_ID: 9,
                Tag.DATASET_TYPE: wire.NO_DATASET,
                Tag.AFFECTED_SOP_INSTANCE_UID: "1.2",
            }
        )
        await archive.send(
            {
                "after the end": answer(number, 0x0000) + store(IMAGES[0]),
                "status inside": begun + answer(number, 0x0000),
                "no data set": wire.p_data_tf(PDV(CT_ID, Control.COMMAND | Control.LAST, bare)),
                "another request": wire.p_data_tf(
                    PDV(CT_ID, Control.COMMAND | Control.LAST, wire.c_echo_rq(5))
                ),
            }[case]
        )
        await archive.expect_abort()

    sink = Memory()
    async with peer(script) as call, call() as association:
        with contextlib.suppress(AssociationAborted):
            await progress_of(association.get(QUERY, receive=sink))
        with pytest.raises(AssociationAborted):
            await progress_of(association.move(QUERY, destination="ANY"))
    assert sink.kept == []


async def test_an_association_that_dies_leaves_no_part_of_an_object(tmp_path: Path) -> None:
    dead = asyncio.Event()

    async def script(archive: Archive) -> None:
        await archive.read_request()
        assert await archive.give(IMAGES[0]) == 0x0000
        await archive.send(store(IMAGES[1])[:-100])
        await dead.wait()
        await archive.reset()

    received: list[ReceivedObject] = []
    async with peer(script) as call, call() as association:
        with ReceivedFolder(tmp_path) as folder:
            getting = association.get(QUERY, receive=folder, on_object=received.append)
            asking = asyncio.create_task(progress_of(getting))
            async with asyncio.timeout(5):
                while len(list(tmp_path.iterdir())) < 2:
                    await asyncio.sleep(0)
            dead.set()
            with pytest.raises(AssociationLost):
                await asking
            await getting.settled()
    assert files(tmp_path) == {f"{IMAGES[0].sop_instance_uid}.dcm": IMAGES[0].dataset}
    assert [one.status for one in received] == [0, None]


async def test_objects_sent_ahead_are_answered_one_by_one() -> None:
    """No window was negotiated, so nothing may be sent ahead; who does is served, and read no further."""

    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        await archive.send(b"".join(store(one, message_id=n) for n, one in enumerate(IMAGES, start=9)))
        for expected in (9, 10, 11):
            response = await archive.read_response()
            assert (response.status, response.message_id_responded_to) == (0, expected)
        await archive.send(answer(number, 0x0000))
        await archive.expect_release()

    sink = Memory()
    async with peer(script) as call, call() as association:
        await progress_of(association.get(QUERY, receive=sink))
    assert [data for _, data in sink.kept] == [one.dataset for one in IMAGES]


async def test_a_cancelled_get_keeps_the_object_in_hand_and_refuses_the_next() -> None:
    sink = Memory()
    sink.go_on.clear()

    async def script(archive: Archive) -> None:
        number = await archive.read_request()
        await archive.send(store(IMAGES[0]))
        assert await archive.read_cancel() == number
        sink.go_on.set()
        assert (await archive.read_response()).status == 0x0000
        assert await archive.give(IMAGES[1]) == 0xA700
        await archive.send(answer(number, 0xFE00, (1, 1, 1, 0)))
        await archive.expect_release()

    async with peer(script) as call, call() as association:
        getting = association.get(QUERY, receive=sink)
        asking = asyncio.create_task(progress_of(getting))
        await sink.writing.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert getting.result is not None
        assert (getting.result.status, getting.result.cancelled) == (0xFE00, True)
    assert [uid for uid, _ in sink.kept] == [IMAGES[0].sop_instance_uid]
