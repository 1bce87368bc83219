"""What the acceptor counts of connections, associations, operations and back-pressure."""

from __future__ import annotations

import asyncio

import pytest

from scp_server.errors import OperationRefused
from scp_server.interfaces import Operation
from scp_server.net.association_manager import AcceptorConfig
from scp_server.observability.measures import UNANSWERED, ReadingStop, Service
from scp_server.protocol.message import Message
from scp_server.protocol.pdu import RejectReason
from scp_server.protocol.status import Status
from scp_server.testing import wire
from scp_server.testing.acceptor_scene import (
    ANY_SIZE,
    AcceptorScene,
    associate_rq,
    dataset,
    echo_rq,
    settle,
    store_rq,
    succeed,
)


def _operations(scene: AcceptorScene) -> dict[tuple[str, str], int]:
    return {
        (service, result): count
        for service, by_result in scene.manager.measures.operations.durations.items()
        for result, histogram in by_result.items()
        if (count := sum(histogram.counts))
    }


async def test_an_association_counts_when_it_is_accepted_and_by_how_it_ends(scene: AcceptorScene) -> None:
    released, aborted, lost, open_ = (scene.associated() for _ in range(4))
    released.send(wire.release_rq())
    aborted.send(wire.abort(0, 0))
    lost.transport.vanish()
    await settle()
    counts = scene.manager.measures.associations
    assert (counts.connections, counts.accepted) == (4, 4)
    assert counts.ended == {"released": 1, "aborted": 1, "lost": 1}
    assert scene.manager.association_count == 1
    open_.connection.reset()


async def test_a_rejection_counts_by_its_reason_and_not_as_an_association(scene: AcceptorScene) -> None:
    scene.connect().send(associate_rq(application_context="1.2.3.4"))
    await settle()
    counts = scene.manager.measures.associations
    found = {reason: count for reason, count in counts.rejected.items() if count}
    assert found == {RejectReason.APPLICATION_CONTEXT_NOT_SUPPORTED: 1}
    assert (counts.accepted, sum(counts.ended.values())) == (0, 0)


async def test_a_socket_that_ends_without_an_association_is_only_a_connection(scene: AcceptorScene) -> None:
    scene.connect().transport.vanish()
    counts = scene.manager.measures.associations
    assert (counts.connections, counts.accepted, sum(counts.ended.values())) == (1, 0, 0)


async def test_a_displaced_connection_counts() -> None:
    scene = AcceptorScene(AcceptorConfig(ANY_SIZE, max_connections=1))
    first, second = scene.connect(), scene.connect()
    assert first.transport.aborted
    assert scene.manager.measures.associations.displaced == 1
    second.connection.reset()
    await settle()


async def test_every_byte_that_arrives_counts(scene: AcceptorScene) -> None:
    peer = scene.connect()
    request = associate_rq()
    peer.send(request[:10])
    peer.send(request[10:])
    assert scene.manager.measures.associations.received_bytes == len(request)


async def test_an_operation_counts_once_it_is_answered(scene: AcceptorScene) -> None:
    peer = scene.associated()
    peer.send(store_rq(1) + dataset(bytes(1000)))
    await settle()
    assert (scene.manager.operation_count, _operations(scene)) == (1, {})
    peer.send(dataset(b"end.", last=True) + echo_rq(2))
    await settle()
    assert (scene.manager.operation_count, _operations(scene)) == (
        0,
        {(Service.STORE, "success"): 1, (Service.ECHO, "success"): 1},
    )
    measures = scene.manager.measures.operations
    assert (measures.objects, measures.object_bytes) == (1, 1004)


async def test_a_refused_object_counts_by_its_status(scene: AcceptorScene) -> None:
    async def refuse(_operation: Operation) -> Message:
        raise OperationRefused(Status.OUT_OF_RESOURCES, "no room")

    scene.services.service = refuse
    scene.associated().send(store_rq(1) + dataset(b"end.", last=True))
    await settle()
    measures = scene.manager.measures.operations
    assert measures.refused[Status.OUT_OF_RESOURCES] == sum(measures.refused.values()) == 1
    assert measures.objects == 0


async def test_an_operation_whose_association_ends_first_is_unanswered(scene: AcceptorScene) -> None:
    peer = scene.associated()
    peer.send(store_rq(1) + dataset(bytes(1000)))
    await settle()
    peer.transport.vanish()
    await settle()
    assert _operations(scene) == {(Service.STORE, UNANSWERED): 1}
    assert sum(scene.manager.measures.operations.refused.values()) == 0


async def _never(operation: Operation) -> Message:
    await asyncio.Event().wait()
    return await succeed(operation)


@pytest.mark.parametrize("gone", ["vanish", "abort"])
async def test_a_connection_that_ends_while_it_is_stopped_is_stopped_no_more(
    scene: AcceptorScene, gone: str
) -> None:
    scene.services.service = _never
    peer = scene.associated()
    peer.send(b"".join(echo_rq(number) for number in range(1, 5)))
    await settle()
    stop = scene.manager.measures.associations.stops[ReadingStop.OPERATIONS]
    assert (peer.transport.is_reading(), stop.count) == (False, 1)
    if gone == "vanish":
        peer.transport.vanish()
    else:
        peer.connection.abort_association("enough")
    await settle()
    assert stop.count == 0
    stopped_seconds = stop.seconds
    for operation in peer.connection.operations:
        if operation.task is not None:
            operation.task.cancel()
    await settle()
    assert (stop.count, stop.seconds) == (0, stopped_seconds)


async def test_each_kind_of_back_pressure_counts_under_its_own_name() -> None:
    hold = asyncio.Event()

    async def wait(operation: Operation) -> Message:
        await hold.wait()
        return await succeed(operation)

    for config, reason in (
        (AcceptorConfig(ANY_SIZE, association_buffer_bytes=10_000), ReadingStop.ASSOCIATION_BUFFER),
        (AcceptorConfig(ANY_SIZE, process_buffer_bytes=10_000), ReadingStop.PROCESS_BUDGET),
    ):
        hold.clear()
        scene = AcceptorScene(config)
        scene.services.service = wait
        peer = scene.associated()
        peer.send(store_rq(1) + dataset(bytes(20_000)))
        stops = scene.manager.measures.associations.stops
        assert {why for why, stop in stops.items() if stop.count} == {reason}
        hold.set()
        await settle()
        assert not any(stop.count for stop in stops.values())
        assert stops[reason].seconds > 0
        peer.transport.vanish()
        await settle()


async def test_a_peer_that_does_not_read_counts_as_such(scene: AcceptorScene) -> None:
    peer = scene.associated()
    peer.connection.pause_writing()
    stop = scene.manager.measures.associations.stops[ReadingStop.PEER_DOES_NOT_READ]
    assert stop.count == 1
    peer.connection.resume_writing()
    assert stop.count == 0
