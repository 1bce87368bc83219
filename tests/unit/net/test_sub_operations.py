"""C-STORE sub-operations on the association of the request behind them (PS3.4 C.4.3)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import pytest

from scp_server.errors import (
    AssociationAborted,
    AssociationError,
    AssociationLost,
    AssociationReleased,
    LocalProtocolError,
    StorageError,
)
from scp_server.interfaces import AcceptedContext, Operation, StoreOutcome
from scp_server.net.association_manager import AcceptorConfig
from scp_server.protocol.message import Message, Request, response_to
from scp_server.testing import wire
from scp_server.testing.acceptor_scene import (
    ANY_SIZE,
    AcceptorScene,
    StagedConnection,
    cancel_rq,
    dataset,
    echo_rq,
    echo_rsp,
    read_responses,
    settle,
    store_rq,
    store_rsp,
)
from scp_server.testing.association_driver import (
    CT_IMAGE_STORAGE,
    EXPLICIT_LITTLE_ENDIAN,
    STORAGE_CONTEXT_ID,
)
from scp_server.testing.wire import Control, PDUType, Tag

CT = AcceptedContext(STORAGE_CONTEXT_ID, CT_IMAGE_STORAGE, EXPLICIT_LITTLE_ENDIAN)
SCP_ROLE = wire.role_selection(CT_IMAGE_STORAGE, scu=True, scp=True)
GRANTING = replace(ANY_SIZE, grants_storage_scp_role=True)
PENDING = 0xFF00

Send = Callable[[Operation], Awaitable[object]]


async def pieces(*parts: bytes | Exception) -> AsyncGenerator[bytes, None]:
    """A data set that comes in these parts; an exception in its place."""
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part


async def store(operation: Operation, *parts: bytes | Exception, uid: str = "1.2.3") -> StoreOutcome:
    """Send one object on the operation's own association."""
    async with aclosing(pieces(*(parts or (b"dataset!",)))) as data:
        return await operation.sender.store(
            CT, sop_class_uid=CT_IMAGE_STORAGE, sop_instance_uid=uid, dataset=data
        )


class Fetching:
    """A service that performs `send`; what it returned or raised is `outcome`."""

    def __init__(self, send: Send = store) -> None:
        self.send = send
        self.outcome: object = None
        self.operation: Operation | None = None

    async def __call__(self, operation: Operation) -> Message:
        self.operation = operation
        try:
            self.outcome = await self.send(operation)
        except AssociationError as error:
            self.outcome = error
        assert isinstance(operation.request, Request)
        return response_to(operation.request, 0)


class Fetcher:
    """The requestor of an association whose SCP role was granted, on a scene."""

    def __init__(self, scene: AcceptorScene) -> None:
        self.scene = scene
        self.peer = scene.connect()
        self.peer.associate(user_items=SCP_ROLE)

    def ask(self, service: Fetching, message_id: int = 1) -> None:
        self.scene.services.service = service
        self.peer.send(echo_rq(message_id))

    def stores(self) -> list[tuple[dict[int, bytes], bytes]]:
        """Command set and data set of every whole C-STORE-RQ that has come since the last time."""
        return list(read_stores(self.peer))


def read_stores(peer: StagedConnection) -> list[tuple[dict[int, bytes], bytes]]:
    stores: list[tuple[dict[int, bytes], bytes]] = []
    command: dict[int, bytes] = {}
    data = b""
    for pdu_type, body in peer.received():
        assert pdu_type == PDUType.P_DATA_TF, f"PDU type {pdu_type}"
        for context_id, control, fragment in wire.read_pdvs(body):
            assert context_id == STORAGE_CONTEXT_ID
            if control & Control.COMMAND:
                command, data = wire.read_command_set(fragment), b""
                assert int.from_bytes(command[Tag.COMMAND_FIELD], "little") == 0x0001
                continue
            data += fragment
            if control & Control.LAST:
                stores.append((command, data))
    return stores


def message_id(command: dict[int, bytes]) -> int:
    return int.from_bytes(command[Tag.MESSAGE_ID], "little")


@pytest.fixture
async def fetcher(scene: AcceptorScene) -> Fetcher:
    scene.manager.reconfigure(
        AcceptorConfig(GRANTING, max_pending_operations=2, store_response_seconds=0.05), scene.services
    )
    return Fetcher(scene)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a timer of the loop brings about."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


# -- one sub-operation --------------------------------------------------------------------------------------


async def test_an_object_goes_out_whole_and_its_answer_comes_back(fetcher: Fetcher) -> None:
    service = Fetching(lambda operation: store(operation, b"abc", b"", b"defgh", b"i", uid="1.2.840.9"))
    fetcher.ask(service)
    await settle()
    ((command, data),) = fetcher.stores()
    assert data == b"abcdefghi"
    assert command[Tag.AFFECTED_SOP_CLASS_UID].rstrip(b"\0") == CT_IMAGE_STORAGE.encode()
    assert command[Tag.AFFECTED_SOP_INSTANCE_UID].rstrip(b"\0") == b"1.2.840.9"
    assert command[Tag.PRIORITY] == b"\0\0"
    assert Tag.MOVE_ORIGINATOR_AE_TITLE not in command
    fetcher.peer.send(store_rsp(message_id(command), 0xB007, error_comment="so so"))
    await settle()
    assert service.outcome == StoreOutcome(0xB007, "so so")
    assert fetcher.peer.responses() == [(1, 0)]


async def test_a_data_set_of_no_bytes_is_still_a_data_set(fetcher: Fetcher) -> None:
    fetcher.ask(Fetching(lambda operation: store(operation, b"")))
    await settle()
    ((command, data),) = fetcher.stores()
    assert data == b""
    fetcher.peer.send(store_rsp(message_id(command)))
    await settle()
    assert fetcher.peer.responses() == [(1, 0)]


async def test_priority_and_move_originator_are_said(fetcher: Fetcher) -> None:
    async def send(operation: Operation) -> StoreOutcome:
        return await operation.sender.store(
            CT,
            sop_class_uid=CT_IMAGE_STORAGE,
            sop_instance_uid="1.2",
            dataset=pieces(b"ab"),
            priority=2,
            move_originator=("MOVER", 77),
        )

    fetcher.ask(Fetching(send))
    await settle()
    ((command, _),) = fetcher.stores()
    assert command[Tag.PRIORITY] == b"\2\0"
    assert command[Tag.MOVE_ORIGINATOR_AE_TITLE].strip() == b"MOVER"
    assert command[Tag.MOVE_ORIGINATOR_MESSAGE_ID] == b"\x4d\0"
    fetcher.peer.send(store_rsp(message_id(command)))


async def test_our_message_ids_are_none_that_the_peer_uses(fetcher: Fetcher) -> None:
    async def send(operation: Operation) -> None:
        for _ in range(3):
            await store(operation)

    fetcher.ask(Fetching(send), message_id=2)
    used = []
    for _ in range(3):
        await settle()
        ((command, _),) = fetcher.stores()
        used.append(message_id(command))
        fetcher.peer.send(store_rsp(used[-1]))
    await settle()
    assert len(set(used)) == 3
    assert not {0, 2} & set(used)
    assert fetcher.peer.responses() == [(2, 0)]


async def test_message_ids_begin_anew_after_the_largest(fetcher: Fetcher) -> None:
    connection = fetcher.peer.connection
    ids = [connection.next_message_id() for _ in range(65_536)]
    assert (ids[0], ids[-2], ids[-1]) == (1, 65_535, 1)


async def test_sub_operations_go_one_after_another(fetcher: Fetcher) -> None:
    async def send(operation: Operation) -> None:
        await asyncio.gather(store(operation, uid="1.1"), store(operation, uid="1.2"))

    fetcher.ask(Fetching(send))
    for uid in (b"1.1\0", b"1.2\0"):
        await settle()
        ((command, _),) = fetcher.stores()
        assert command[Tag.AFFECTED_SOP_INSTANCE_UID] == uid
        fetcher.peer.send(store_rsp(message_id(command)))
    await settle()
    assert fetcher.peer.responses() == [(1, 0)]


async def test_a_response_does_not_come_between_the_pieces_of_an_object(fetcher: Fetcher) -> None:
    more = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two "
        await more.wait()
        yield b"three "

    async def send(operation: Operation) -> None:
        assert isinstance(operation.request, Request)
        storing = asyncio.ensure_future(
            operation.sender.store(CT, sop_class_uid=CT_IMAGE_STORAGE, sop_instance_uid="1.2", dataset=slow())
        )
        await settle()
        pending = asyncio.ensure_future(operation.send(response_to(operation.request, PENDING)))
        await settle()
        assert not pending.done()
        more.set()
        await asyncio.gather(storing, pending)

    fetcher.ask(Fetching(send))
    await settle()
    await settle()
    await settle()
    pdus = fetcher.peer.received()
    assert read_responses(pdus[-1:]) == [(1, PENDING)]
    ((_, command),) = [wire.read_pdvs(body)[0][1:] for _, body in pdus[:1]]
    data = b"".join(fragment for _, body in pdus[1:-1] for _, _, fragment in wire.read_pdvs(body))
    assert data == b"one two three "
    fetcher.peer.send(store_rsp(message_id(wire.read_command_set(command))))
    await settle()
    assert fetcher.peer.responses() == [(1, 0)]


async def test_the_peer_that_does_not_read_is_waited_for(fetcher: Fetcher) -> None:
    given = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(40):
            given += 1
            yield bytes(10_000)

    async def send(operation: Operation) -> StoreOutcome:
        return await operation.sender.store(
            CT, sop_class_uid=CT_IMAGE_STORAGE, sop_instance_uid="1.2", dataset=large()
        )

    transport = fetcher.peer.transport
    transport.deaf = True
    fetcher.ask(Fetching(send))
    await settle()
    await settle()
    assert given < 10
    assert not transport.reading
    transport.deaf = False
    while given < 40:
        transport.take_waiting(1_000_000)
        await settle()
    transport.take_waiting(1_000_000)
    await settle()
    ((command, data),) = fetcher.stores()
    assert len(data) == 400_000
    fetcher.peer.send(store_rsp(message_id(command)))
    await settle()
    assert fetcher.peer.responses() == [(1, 0)]


async def test_a_response_with_a_data_set_is_passed_over(fetcher: Fetcher) -> None:
    service = Fetching()
    fetcher.ask(service)
    await settle()
    ((command, _),) = fetcher.stores()
    answer = wire.c_store_rsp(message_id(command), dataset_type=1)
    fetcher.peer.send(
        wire.p_data_tf(wire.PDV(STORAGE_CONTEXT_ID, Control.COMMAND | Control.LAST, answer))
        + dataset(b"what for?", last=True)
    )
    await settle()
    assert service.outcome == StoreOutcome(0)
    assert fetcher.peer.responses() == [(1, 0)]


# -- roles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "granted"),
    [
        (SCP_ROLE, True),
        (wire.role_selection(CT_IMAGE_STORAGE, scu=False, scp=True), True),
        (wire.role_selection(CT_IMAGE_STORAGE, scu=True, scp=False), False),
        (wire.role_selection("1.2.840.10008.5.1.4.1.1.4", scu=True, scp=True), False),
        (b"", False),
    ],
)
async def test_we_send_only_where_the_scp_role_was_asked_for_and_granted(
    scene: AcceptorScene, roles: bytes, granted: bool
) -> None:
    seen: list[tuple[AcceptedContext, ...]] = []

    async def look(operation: Operation) -> None:
        seen.append(operation.sender.contexts_for(CT_IMAGE_STORAGE))
        if not granted:
            with pytest.raises(LocalProtocolError, match="not the SCU"):
                await store(operation)

    for policy in (GRANTING, ANY_SIZE):
        scene.manager.reconfigure(AcceptorConfig(policy), scene.services)
        peer = scene.connect()
        peer.associate(user_items=roles)
        scene.services.service = Fetching(look)
        if policy is GRANTING or not granted:
            peer.send(echo_rq(1))
            await settle()
            assert peer.responses() == [(1, 0)]
        elif peer.connection.info is not None:
            assert not peer.connection.info.roles[CT_IMAGE_STORAGE].scp_role
    assert seen[0] == ((CT,) if granted else ())


async def test_who_gave_up_the_scu_role_may_not_store(scene: AcceptorScene) -> None:
    scene.manager.reconfigure(AcceptorConfig(GRANTING), scene.services)
    peer = scene.connect()
    peer.associate(user_items=wire.role_selection(CT_IMAGE_STORAGE, scu=False, scp=True))
    peer.send(store_rq(1) + dataset(b"abcd", last=True))
    await settle()
    assert peer.responses() == [(1, 0x0124)]


# -- what ends a sub-operation ------------------------------------------------------------------------------


async def test_a_c_cancel_is_seen_while_a_sub_operation_runs(fetcher: Fetcher) -> None:
    service = Fetching()
    fetcher.ask(service)
    await settle()
    ((command, _),) = fetcher.stores()
    operation = service.operation
    assert operation is not None
    cancelled: list[int] = []
    operation.when_cancelled(lambda: cancelled.append(1))
    assert cancelled == []
    fetcher.peer.send(cancel_rq(1))
    assert cancelled == [1]
    fetcher.peer.send(store_rsp(message_id(command)))
    await settle()
    assert service.outcome == StoreOutcome(0)
    assert fetcher.peer.responses() == [(1, 0)]


async def test_a_c_cancel_is_seen_while_an_object_is_sent_to_a_peer_that_reads_at_once(
    fetcher: Fetcher,
) -> None:
    sent = 0
    peer = fetcher.peer

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        assert service.operation is not None
        while not service.operation.cancel_requested:
            sent += 1
            assert sent < 100, "the connection never had its turn"
            if sent == 5:
                asyncio.get_running_loop().call_soon(peer.send, cancel_rq(1))
            yield b"more"

    async def send(operation: Operation) -> StoreOutcome:
        return await operation.sender.store(
            CT, sop_class_uid=CT_IMAGE_STORAGE, sop_instance_uid="1.2", dataset=endless()
        )

    service = Fetching(send)
    fetcher.ask(service)
    await settle()
    await settle()
    ((command, _),) = fetcher.stores()
    peer.send(store_rsp(message_id(command)))
    await settle()
    assert service.outcome == StoreOutcome(0)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        (lambda peer: peer.send(wire.abort()), AssociationAborted),
        (lambda peer: peer.end(), AssociationLost),
        (lambda peer: peer.transport.vanish(ConnectionResetError()), AssociationLost),
        (lambda peer: peer.send(wire.release_rq()), AssociationReleased),
    ],
    ids=["abort", "end", "reset", "release"],
)
async def test_the_associations_end_is_the_waiters_end_at_once(
    fetcher: Fetcher, end: Callable[[StagedConnection], None], error: type[AssociationError]
) -> None:
    service = Fetching()
    fetcher.ask(service)
    await settle()
    assert len(fetcher.stores()) == 1
    end(fetcher.peer)
    await settle()
    assert isinstance(service.outcome, error)
    assert fetcher.scene.manager.association_count == 0


async def test_no_sub_operation_begins_once_the_peer_has_asked_to_release(fetcher: Fetcher) -> None:
    release = asyncio.Event()

    async def send(operation: Operation) -> StoreOutcome:
        await release.wait()
        return await store(operation)

    service = Fetching(send)
    fetcher.ask(service)
    fetcher.peer.send(wire.release_rq())
    release.set()
    await settle()
    assert isinstance(service.outcome, AssociationReleased)
    *answers, (last, _) = fetcher.peer.received()
    assert read_responses(answers) == [(1, 0)]
    assert last == PDUType.RELEASE_RP


async def test_a_peer_that_does_not_answer_in_time_is_aborted(fetcher: Fetcher) -> None:
    service = Fetching()
    fetcher.ask(service)
    await until(lambda: service.outcome is not None)
    assert isinstance(service.outcome, AssociationLost)
    await settle()
    assert fetcher.peer.received_types()[-1] == PDUType.ABORT
    assert fetcher.scene.manager.association_count == 0


async def test_nobody_is_idle_while_our_sub_operation_is_unanswered(fetcher: Fetcher) -> None:
    service = Fetching()
    connection = fetcher.peer.connection
    connection.config = replace(connection.config, store_response_seconds=1e6)
    fetcher.ask(service)
    await settle()
    ((command, _),) = fetcher.stores()
    fetcher.scene.loop.advance(100_000)
    assert connection.error is None
    fetcher.peer.send(store_rsp(message_id(command)))
    await settle()
    assert fetcher.peer.responses() == [(1, 0)]
    fetcher.scene.loop.advance(301)
    assert fetcher.peer.received_types() == [PDUType.ABORT]


async def test_what_fails_before_anything_was_sent_leaves_the_association(fetcher: Fetcher) -> None:
    async def send(operation: Operation) -> StoreOutcome:
        with pytest.raises(StorageError):
            await store(operation, StorageError("gone"))
        with pytest.raises(LocalProtocolError):
            await store(operation, uid="é")
        return await store(operation)

    service = Fetching(send)
    fetcher.ask(service)
    await settle()
    ((command, _),) = fetcher.stores()
    fetcher.peer.send(store_rsp(message_id(command)))
    await settle()
    assert service.outcome == StoreOutcome(0)


async def test_what_fails_inside_an_object_aborts(fetcher: Fetcher) -> None:
    async def send(operation: Operation) -> None:
        with pytest.raises(StorageError):
            await store(operation, b"half", StorageError("gone"))

    fetcher.ask(Fetching(send))
    await settle()
    assert fetcher.peer.received_types()[-1] == PDUType.ABORT


async def test_a_sub_operation_that_is_cancelled_from_within_aborts(fetcher: Fetcher) -> None:
    async def send(operation: Operation) -> None:
        storing = asyncio.ensure_future(store(operation))
        await settle()
        storing.cancel()
        with suppress(asyncio.CancelledError):
            await storing

    fetcher.ask(Fetching(send))
    await settle()
    await settle()
    assert fetcher.peer.received_types()[-1] == PDUType.ABORT


@pytest.mark.parametrize(
    "answers",
    [[store_rsp(999)], [echo_rsp(1)], [store_rsp(1), store_rsp(1)]],
    ids=["another-id", "another-command", "a-second-time"],
)
async def test_a_response_nobody_waits_for_aborts_while_an_operation_runs_too(
    fetcher: Fetcher, answers: list[bytes], logs: list[dict[str, Any]]
) -> None:
    async def send(operation: Operation) -> None:
        await store(operation)
        await asyncio.Event().wait()

    fetcher.ask(Fetching(send), message_id=5)
    for answer in answers:
        await settle()
        fetcher.peer.send(answer)
    await settle()
    assert fetcher.peer.received_types()[-1] == PDUType.ABORT
    (end,) = [line for line in logs if line["event"] == "association.ended"]
    assert "nothing that was asked" in end["text"]
    for operation in fetcher.peer.connection.operations:
        assert operation.task is not None
        operation.task.cancel()
    await settle()
