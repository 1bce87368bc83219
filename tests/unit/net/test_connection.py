"""The acceptor's connection: operations in order, how they end, and what a peer may send meanwhile."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from scp_server.errors import AssociationError, AssociationRejected, OperationRefused
from scp_server.interfaces import Operation
from scp_server.net.association_transport import MOST_FLUSHES_PUT_OFF
from scp_server.net.operation import PerformedOperation
from scp_server.protocol.message import CEchoRSP, Message, Request, response_to
from scp_server.testing import wire
from scp_server.testing.acceptor_scene import (
    AcceptorScene,
    StagedConnection,
    associate_rq,
    cancel_rq,
    dataset,
    echo_rq,
    echo_rsp,
    read_responses,
    settle,
    store_rq,
    succeed,
)
from scp_server.testing.wire import PDUType

Logs = list[dict[str, Any]]


class Gate:
    """A service that waits until the test lets it go on, one operation after another."""

    def __init__(self) -> None:
        self.begun: list[Operation] = []
        self.ended: list[str] = []
        self._gate = asyncio.Event()

    async def __call__(self, operation: Operation) -> Message:
        self.begun.append(operation)
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("cancel requested" if operation.cancel_requested else "done")
        return await succeed(operation)

    def open(self) -> None:
        self._gate.set()


@pytest.fixture
def gate(scene: AcceptorScene) -> Gate:
    """The service of the scene waits at it."""
    scene.services.service = gate = Gate()
    return gate


def _named(logs: Logs, event: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == event]


# -- operations ---------------------------------------------------------------------------------------------


async def test_operations_are_performed_one_after_another_in_the_order_of_their_requests(
    scene: AcceptorScene, gate: Gate
) -> None:
    peer = scene.associated()
    peer.send(echo_rq(1) + echo_rq(2))
    await settle()
    assert len(gate.begun) == 1
    gate.open()
    await settle()
    assert peer.responses() == [(1, 0), (2, 0)]


async def test_a_message_id_in_use_is_0210_and_may_be_used_again_once_answered(
    scene: AcceptorScene, gate: Gate
) -> None:
    peer = scene.associated()
    peer.send(echo_rq(7) + echo_rq(7))
    gate.open()
    await settle()
    assert peer.responses() == [(7, 0), (7, 0x0210)]
    peer.send(echo_rq(7))
    await settle()
    assert peer.responses() == [(7, 0)]


async def test_a_message_id_is_free_once_its_answer_is_written_even_if_the_peer_does_not_read_it(
    scene: AcceptorScene,
) -> None:
    peer = scene.associated()
    peer.transport.set_write_buffer_limits(high=50)
    peer.transport.deaf = True
    peer.send(echo_rq(7))
    await settle()
    assert not peer.transport.reading
    peer.transport.deaf = False
    peer.send(echo_rq(7))
    peer.transport.take_waiting(1000)
    await settle()
    assert peer.responses() == [(7, 0), (7, 0)]


async def test_a_c_cancel_is_seen_while_its_operation_runs(scene: AcceptorScene, gate: Gate) -> None:
    peer = scene.associated()
    peer.send(echo_rq(1) + echo_rq(2))
    peer.send(cancel_rq(2) + cancel_rq(99))
    await settle()
    gate.open()
    await settle()
    assert gate.ended == ["done", "cancel requested"]
    assert peer.responses() == [(1, 0), (2, 0)]


async def test_a_c_cancel_is_seen_by_a_service_that_only_sends(scene: AcceptorScene) -> None:
    peer = scene.associated()
    sent = 0

    async def send_until_cancelled(operation: Operation) -> Message:
        nonlocal sent
        while not operation.cancel_requested:
            assert sent < 100, "the connection never had its turn"
            assert isinstance(operation.request, Request)
            await operation.send(response_to(operation.request, 0xFF00))
            sent += 1
            if sent == 3:
                asyncio.get_running_loop().call_soon(peer.send, cancel_rq(1))
        return response_to(operation.request, 0xFE00)  # type: ignore[arg-type]

    scene.services.service = send_until_cancelled
    peer.send(echo_rq(1))
    await settle()
    assert peer.responses() == [(1, 0xFF00)] * sent + [(1, 0xFE00)]


async def test_a_c_cancel_with_a_data_set_aborts_and_is_no_failure_of_ours(
    scene: AcceptorScene, logs: Logs
) -> None:
    peer = scene.associated()
    peer.send(cancel_rq(1, dataset_type=1) + wire.p_data_tf(wire.PDV(1, wire.Control.LAST, b"data")))
    assert peer.received_types() == [PDUType.ABORT]
    assert _named(logs, "association.failed") == []


async def test_a_response_with_a_data_set_aborts_and_is_no_failure_of_ours(
    scene: AcceptorScene, logs: Logs
) -> None:
    peer = scene.associated()
    peer.send(echo_rsp(1, dataset_type=1) + dataset(b"data") + dataset(b"", last=True))
    assert peer.received_types() == [PDUType.ABORT]
    assert _named(logs, "association.failed") == []
    assert not peer.transport.closed, "the peer must get to see the A-ABORT"


@pytest.mark.parametrize(
    "bytes_behind", [b"\x0f" * 30, wire.abort(), wire.release_rq(), b"\x04\0\xff\xff\xff\xff"]
)
async def test_what_follows_a_request_in_the_same_segment_ends_the_association_once(
    scene: AcceptorScene, logs: Logs, bytes_behind: bytes
) -> None:
    peer = scene.associated()
    peer.send(store_rq() + dataset(b"data", last=True) + bytes_behind)
    await settle()
    assert len(_named(logs, "association.ended")) == 1
    assert scene.manager.association_count == 0


@pytest.mark.parametrize("bytes_behind", [b"\x0f" * 30, wire.abort(), wire.release_rq(), echo_rq()])
async def test_what_follows_an_a_associate_rq_before_its_answer_ends_it(
    scene: AcceptorScene, bytes_behind: bytes
) -> None:
    peer = scene.connect()
    peer.send(associate_rq() + bytes_behind)
    await settle()
    assert scene.manager.association_count == 0
    assert PDUType.ASSOCIATE_AC not in peer.received_types()


# -- services that fail -------------------------------------------------------------------------------------


class Strange(BaseException):
    """Something that is no Exception."""


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (OperationRefused(0xA700, "full"), 0xA700),
        (ValueError("a bug"), 0x0110),
        (RecursionError(), 0x0110),
        (MemoryError(), 0x0110),
        (TimeoutError(), 0x0110),
        (ExceptionGroup("several", [ValueError("one"), OSError("two")]), 0x0110),
        (StopIteration(), 0x0110),
        (AssociationRejected(1, 1, 1, "a C-MOVE's destination said no"), 0x0110),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_whatever_a_service_raises_becomes_a_status_and_the_association_goes_on(
    scene: AcceptorScene, logs: Logs, failure: Exception, status: int
) -> None:
    async def fail(operation: Operation) -> Message:
        raise failure

    scene.services.service = fail
    peer = scene.associated()
    peer.send(echo_rq(1))
    await settle()
    assert peer.responses() == [(1, status)]
    assert len(_named(logs, "operation.failed")) == (0 if isinstance(failure, OperationRefused) else 1)
    logs.clear()
    scene.services.service = succeed
    peer.send(echo_rq(2))
    await settle()
    assert peer.responses() == [(2, 0)]


async def test_a_failure_of_a_c_store_is_a_status_that_c_store_has(scene: AcceptorScene, logs: Logs) -> None:
    async def fail(operation: Operation) -> Message:
        raise ValueError("a bug")

    scene.services.service = fail
    peer = scene.associated()
    peer.send(store_rq() + dataset(b"data", last=True))
    await settle()
    assert peer.responses() == [(1, 0xC000)]
    logs.clear()


async def test_an_operation_that_is_cancelled_from_within_aborts_rather_than_stay_unanswered(
    scene: AcceptorScene,
) -> None:
    async def wait_for_what_was_cancelled(operation: Operation) -> Message:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future
        return await succeed(operation)

    scene.services.service = wait_for_what_was_cancelled
    peer = scene.associated()
    peer.send(echo_rq(1))
    await settle()
    assert peer.received_types() == [PDUType.ABORT]
    assert scene.manager.association_count == 0


@pytest.mark.parametrize(
    "answer",
    [
        None,
        CEchoRSP(message_id_being_responded_to=1, status=0, has_dataset=True),
        CEchoRSP(message_id_being_responded_to=1, status=0, error_comment="not ASCII: ü"),
        CEchoRSP(message_id_being_responded_to=1, status=0x1_0000),
    ],
    ids=["nothing", "a data set announced", "an unsendable comment", "an unsendable status"],
)
async def test_an_answer_that_cannot_be_sent_never_leaves_the_peer_waiting(
    scene: AcceptorScene, logs: Logs, answer: Any
) -> None:
    async def service(operation: Operation) -> Message:
        assert answer is None or isinstance(answer, Message)
        return answer  # type: ignore[return-value]

    scene.services.service = service
    peer = scene.associated()
    peer.send(echo_rq(1))
    await settle()
    pdus = peer.received()
    assert [pdu_type for pdu_type, _ in pdus] == [PDUType.ABORT] or read_responses(pdus) == [(1, 0x0110)]
    assert len(_named(logs, "operation.failed")) == 1
    logs.clear()


async def test_a_pending_response_that_cannot_be_sent_is_the_services_failure(
    scene: AcceptorScene, logs: Logs
) -> None:
    async def service(operation: Operation) -> Message:
        assert isinstance(operation.request, Request)
        await operation.send(response_to(operation.request, 0xFF00), b"a data set that was not announced")
        return await succeed(operation)

    scene.services.service = service
    peer = scene.associated()
    peer.send(echo_rq(1))
    await settle()
    assert peer.responses() == [(1, 0x0110)]
    logs.clear()


# -- data sets ----------------------------------------------------------------------------------------------


async def _read_nothing(operation: Operation) -> Message:
    return await succeed(operation)


async def _read_half(operation: Operation) -> Message:
    async for _ in operation.dataset.chunks():
        break
    return await succeed(operation)


async def _read_all(operation: Operation) -> Message:
    async for chunks in operation.dataset.chunks():
        operation.dataset.release(sum(map(len, chunks)))
    return await succeed(operation)


@pytest.mark.parametrize("service", [_read_nothing, _read_half, _read_all])
async def test_the_answer_follows_the_whole_data_set_however_much_of_it_the_service_reads(
    scene: AcceptorScene, service: Callable[[Operation], Awaitable[Message]]
) -> None:
    scene.services.service = service
    peer = scene.associated()
    for message_id in (1, 2):
        peer.send(store_rq(message_id) + dataset(bytes(5000)))
        await settle()
        assert peer.responses() == []
        peer.send(dataset(bytes(5000)) + dataset(b"end.", last=True))
        await settle()
        assert peer.responses() == [(message_id, 0)]
    assert scene.manager.budget.held_bytes == 0


async def test_reading_stops_while_the_association_holds_too_much_and_goes_on_at_half(
    scene: AcceptorScene,
) -> None:
    release = asyncio.Event()

    async def hold(operation: Operation) -> Message:
        held = 0
        async for chunks in operation.dataset.chunks():
            held += sum(map(len, chunks))
            if held > 2_000_000 and not release.is_set():
                await release.wait()
                operation.dataset.release(held)
                held = 0
        return await succeed(operation)

    scene.services.service = hold
    peer = scene.associated()
    peer.send(store_rq())
    sent = 0
    while peer.transport.is_reading():
        peer.send(dataset(bytes(100_000)))
        sent += 100_000
        await settle()
        assert sent < 3_000_000, "nothing stopped reading"
    assert scene.manager.budget.held_bytes == sent
    release.set()
    await settle()
    assert peer.transport.reading
    peer.send(dataset(b"end.", last=True))
    await settle()
    assert peer.responses() == [(1, 0)]


@pytest.mark.parametrize("end", ["abort", "eof", "reset", "garbage"])
async def test_an_association_that_ends_inside_a_data_set_tells_the_service_and_gives_all_back(
    scene: AcceptorScene, end: str
) -> None:
    seen: list[str] = []

    async def watch(operation: Operation) -> Message:
        try:
            async for _ in operation.dataset.chunks():
                pass
        except AssociationError as error:
            seen.append(f"{type(error).__name__} {operation.cancel_requested}")
            raise
        return await succeed(operation)

    scene.services.service = watch
    peer = scene.associated()
    peer.send(store_rq() + dataset(bytes(5000)))
    await settle()
    _end(peer, end)
    assert scene.manager.association_count == 0 or end == "reset"
    await settle()
    expected = "AssociationAborted" if end in ("abort", "garbage") else "AssociationLost"
    assert seen == [f"{expected} True"]
    assert scene.manager.association_count == 0
    assert scene.manager.budget.held_bytes == 0


def _end(peer: StagedConnection, end: str) -> None:
    if end == "abort":
        peer.send(wire.abort())
    elif end == "eof":
        peer.end()
    elif end == "reset":
        peer.transport.vanish(ConnectionResetError())
    else:
        peer.send(b"\x99" * 10)


@pytest.mark.parametrize("end", ["abort", "eof", "reset", "garbage"])
async def test_an_end_while_a_service_runs_asks_it_to_stop_but_does_not_cancel_it(
    scene: AcceptorScene, gate: Gate, end: str
) -> None:
    peer = scene.associated()
    peer.send(echo_rq(1))
    await settle()
    _end(peer, end)
    await settle()
    assert gate.begun[0].cancel_requested
    assert gate.ended == []
    assert scene.manager.association_count == 0, "the place is free while the service still runs"
    gate.open()
    await settle()
    assert gate.ended == ["cancel requested"]


class Held(bytearray):
    """Something large in a service's hands, which a weak reference can watch."""


@pytest.mark.parametrize("end", ["abort", "eof", "reset", "garbage", "refusal", "failure"])
async def test_what_a_service_held_goes_with_it_and_needs_no_garbage_collection(
    scene: AcceptorScene, logs: Logs, end: str
) -> None:
    held: list[weakref.ref[Held]] = []

    async def hold(operation: Operation) -> Message:
        large = Held(1000)
        held.append(weakref.ref(large))
        async for _ in operation.dataset.chunks():
            large += b"more"
            if end == "refusal":
                raise OperationRefused(0xA700, "full")
            if end == "failure":
                raise ValueError("a bug")
        return await succeed(operation)

    scene.services.service = hold
    peer = scene.associated()
    gc.collect()
    gc.disable()
    try:
        peer.send(store_rq() + dataset(bytes(5000)))
        await settle()
        if end not in ("refusal", "failure"):
            _end(peer, end)
        await settle()
        assert [reference() for reference in held] == [None]
    finally:
        gc.enable()
    logs.clear()


async def test_operations_that_wait_are_not_begun_after_the_end(scene: AcceptorScene, gate: Gate) -> None:
    peer = scene.associated()
    peer.send(echo_rq(1))
    peer.send(store_rq(2) + dataset(bytes(5000), last=True))
    await settle()
    peer.send(wire.abort())
    gate.open()
    await settle()
    assert len(gate.begun) == 1
    assert scene.manager.budget.held_bytes == 0


async def test_an_end_after_the_last_answer_leaves_nothing(scene: AcceptorScene) -> None:
    peer = scene.associated()
    peer.send(echo_rq(1))
    await settle()
    peer.end()
    await settle()
    assert scene.manager.connection_count == 0


# -- a flood of requests ------------------------------------------------------------------------------------


async def test_requests_sent_ahead_are_left_unread_and_nothing_is_made_of_them(
    scene: AcceptorScene, gate: Gate
) -> None:
    peer = scene.associated()
    peer.send(b"".join(echo_rq(number) for number in range(2000)))
    await settle()
    assert not peer.transport.reading
    assert len(peer.connection.operations) == 3, "two may wait, and one more stops reading"
    gate.open()
    answered: list[tuple[int, int]] = []
    while len(answered) < 2000:
        await settle()
        answered += peer.responses()
    assert answered == [(number, 0) for number in range(2000)]
    assert peer.transport.reading


async def test_many_requests_in_one_pdu_are_left_unread_too(scene: AcceptorScene, gate: Gate) -> None:
    peer = scene.associated()
    pdvs = [
        wire.PDV(1, wire.Control.COMMAND | wire.Control.LAST, wire.c_echo_rq(number)) for number in range(500)
    ]
    peer.send(wire.p_data_tf(*pdvs) + wire.release_rq())
    await settle()
    assert len(peer.connection.operations) == 3
    gate.open()
    pdus: list[tuple[int, bytes]] = []
    while len(pdus) < 501:
        await settle()
        pdus += peer.received()
    assert read_responses(pdus[:-1]) == [(number, 0) for number in range(500)]
    assert pdus[-1][0] == PDUType.RELEASE_RP


async def test_an_end_in_the_middle_of_a_flood_drops_what_was_left_unread(
    scene: AcceptorScene, gate: Gate
) -> None:
    peer = scene.associated()
    peer.send(b"".join(echo_rq(number) for number in range(100)))
    await settle()
    peer.transport.vanish(ConnectionResetError())
    await settle()
    gate.open()
    await settle()
    assert len(gate.begun) == 1


async def test_nothing_is_read_while_the_peer_does_not_read_its_answers(scene: AcceptorScene) -> None:
    peer = scene.associated()
    peer.transport.deaf = True
    peer.transport.set_write_buffer_limits(high=1000)
    peer.send(b"".join(echo_rq(number) for number in range(200)))
    await settle()
    assert not peer.transport.reading
    assert len(peer.transport.waiting) < 1000 + 500
    peer.transport.deaf = False
    answered: list[tuple[int, int]] = []
    while len(answered) < 200:
        peer.transport.take_waiting(500)
        await settle()
        answered += peer.responses()
    assert peer.transport.reading


async def test_a_service_that_sends_to_a_deaf_peer_waits_and_ends_with_the_connection(
    scene: AcceptorScene,
) -> None:
    ended: list[type[BaseException]] = []

    async def flood(operation: Operation) -> Message:
        assert isinstance(operation.request, Request)
        try:
            while True:
                await operation.send(response_to(operation.request, 0xFF00))
        except AssociationError as error:
            ended.append(type(error))
            raise

    scene.services.service = flood
    peer = scene.associated()
    peer.transport.deaf = True
    peer.send(echo_rq(1))
    for _ in range(200):
        await settle()
    waiting = len(peer.transport.waiting)
    # The bound, and what one write more had in it.
    assert 65_536 < waiting < 65_536 + 100 * MOST_FLUSHES_PUT_OFF
    scene.loop.advance(31)
    assert peer.transport.aborted, "the write timer resets a deaf peer"
    await settle()
    assert len(ended) == 1
    assert scene.manager.association_count == 0


# -- releases -----------------------------------------------------------------------------------------------


async def test_a_release_waits_for_the_operations_in_hand(scene: AcceptorScene, gate: Gate) -> None:
    peer = scene.associated()
    peer.send(echo_rq(1) + echo_rq(2) + wire.release_rq())
    await settle()
    assert peer.received() == []
    gate.open()
    await settle()
    *answers, (last, _) = peer.received()
    assert read_responses(answers) == [(1, 0), (2, 0)]
    assert last == PDUType.RELEASE_RP
    assert peer.transport.eof_written


@pytest.mark.parametrize(
    "begun",
    [
        store_rq(),
        store_rq() + dataset(b"half"),
        wire.p_data_tf(wire.PDV(1, wire.Control.COMMAND, wire.c_echo_rq(1)[:20])),
    ],
    ids=["after a command", "in a data set", "in a command set"],
)
async def test_a_release_inside_a_message_aborts(scene: AcceptorScene, begun: bytes) -> None:
    peer = scene.associated()
    peer.send(begun + wire.release_rq())
    await settle()
    assert peer.received_types() == [PDUType.ABORT]


async def test_draining_releases_at_once_or_behind_the_operation_that_runs(
    scene: AcceptorScene, gate: Gate
) -> None:
    idle, busy = scene.associated(), scene.associated()
    busy.send(echo_rq(1))
    await settle()
    draining = asyncio.create_task(scene.manager.drain(5))
    await settle()
    assert idle.received_types() == [PDUType.RELEASE_RQ]
    assert busy.received() == []
    gate.open()
    await settle()
    assert busy.received_types() == [PDUType.P_DATA_TF, PDUType.RELEASE_RQ]
    idle.send(wire.release_rp())
    busy.send(wire.release_rp())
    assert await draining is True


async def test_a_release_collision_while_draining_ends_in_order(scene: AcceptorScene) -> None:
    peer = scene.associated()
    draining = asyncio.create_task(scene.manager.drain(5))
    await settle()
    assert peer.received_types() == [PDUType.RELEASE_RQ]
    peer.send(wire.release_rq())
    assert peer.received() == [], "the requestor answers first (PS3.8 7.2.2.7)"
    peer.send(wire.release_rp())
    assert peer.received_types() == [PDUType.RELEASE_RP]
    peer.end()
    assert await draining is True


async def test_a_request_that_crosses_our_release_ends_without_an_answer(
    scene: AcceptorScene, logs: Logs
) -> None:
    peer = scene.associated()
    draining = asyncio.create_task(scene.manager.drain(5))
    await settle()
    peer.send(echo_rq(1))
    await settle()
    assert peer.received_types() == [PDUType.RELEASE_RQ]
    assert len(_named(logs, "operation.unanswered")) == 1
    peer.send(wire.release_rp())
    assert await draining is True


# -- what is said -------------------------------------------------------------------------------------------


async def test_a_bare_connect_costs_one_debug_line(scene: AcceptorScene, logs: Logs) -> None:
    peer = scene.connect()
    peer.end()
    await settle()
    assert [(line["event"], line["level"]) for line in logs] == [("connection.closed", "debug")]


async def test_an_association_ends_with_one_line_that_counts(scene: AcceptorScene, logs: Logs) -> None:
    scene.services.service = _read_all
    peer = scene.associated()
    peer.send(store_rq() + dataset(bytes(1000), last=True))
    await settle()
    peer.send(wire.release_rq())
    peer.end()
    await settle()
    (line,) = _named(logs, "association.ended")
    assert (line["outcome"], line["operations"], line["dataset_bytes"]) == ("released", 1, 1000)
    assert line["peer_host"] == "192.0.2.7"


async def test_the_peers_text_is_escaped_in_the_log(scene: AcceptorScene, logs: Logs) -> None:
    peer = scene.connect()
    peer.send(associate_rq(application_context='1.2"\n3'))
    await settle()
    (line,) = _named(logs, "association.rejected")
    assert "\n" not in line["application_context_name"]


async def test_a_cancelled_task_that_never_ran_gives_back_what_it_held(scene: AcceptorScene) -> None:
    peer = scene.associated()
    peer.send(store_rq() + dataset(bytes(5000), last=True))
    ending = scene.manager._end_now()
    peer.transport.vanish()
    await ending
    assert scene.manager.budget.held_bytes == 0
    assert peer.connection.operations == ()


def test_an_operation_is_what_services_are_promised() -> None:
    def takes(operation: Operation) -> None: ...

    takes(object.__new__(PerformedOperation))
