"""Who is let in, how many, and how all of them end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scp_server.interfaces import Operation
from scp_server.net import association_manager
from scp_server.net.association_manager import AcceptorConfig
from scp_server.observability.logs import captured_logs
from scp_server.protocol.limits import Limits
from scp_server.protocol.message import Message
from scp_server.testing import wire
from scp_server.testing.acceptor_scene import (
    ANY_SIZE,
    AcceptorScene,
    StagedConnection,
    associate_rq,
    dataset,
    echo_rq,
    settle,
    store_rq,
    succeed,
)
from scp_server.testing.wire import PDUType

SMALL = AcceptorConfig(
    ANY_SIZE,
    limits=Limits(max_associate_pdu_bytes=1000),
    max_associations=3,
    max_associations_per_peer=2,
    max_associations_per_address=2,
    max_connections=5,
    half_open_buffer_bytes=1000,
)


@pytest.fixture
def small(scene: AcceptorScene) -> AcceptorScene:
    """The scene with small caps."""
    scene.manager.__init__(SMALL, scene.services)  # type: ignore[misc]
    return scene


def _answer(peer: StagedConnection, *, calling_ae_title: str = "SCRIPTED") -> tuple[int, bytes]:
    peer.send(associate_rq(calling_ae_title=calling_ae_title))
    ((pdu_type, body),) = peer.received()
    return pdu_type, body


def _is_let_in(peer: StagedConnection, *, calling_ae_title: str = "SCRIPTED") -> bool:
    pdu_type, body = _answer(peer, calling_ae_title=calling_ae_title)
    if pdu_type == PDUType.ASSOCIATE_RJ:
        assert tuple(body[1:4]) == (2, 3, 2)
    return pdu_type == PDUType.ASSOCIATE_AC


async def test_above_the_cap_of_all_the_answer_is_2_3_2(small: AcceptorScene) -> None:
    for number in range(3):
        assert _is_let_in(small.connect(f"192.0.2.{number}"), calling_ae_title=f"A{number}")
    assert not _is_let_in(small.connect("192.0.2.9"), calling_ae_title="A9")


async def test_above_the_cap_of_one_title_another_is_let_in(small: AcceptorScene) -> None:
    assert _is_let_in(small.connect("192.0.2.1"), calling_ae_title="A")
    assert _is_let_in(small.connect("192.0.2.2"), calling_ae_title="A")
    assert not _is_let_in(small.connect("192.0.2.3"), calling_ae_title="A")
    assert _is_let_in(small.connect("192.0.2.3"), calling_ae_title="B")


async def test_above_the_cap_of_one_address_another_is_let_in(small: AcceptorScene) -> None:
    assert _is_let_in(small.connect("192.0.2.1"), calling_ae_title="A")
    assert _is_let_in(small.connect("192.0.2.1"), calling_ae_title="B")
    assert not _is_let_in(small.connect("192.0.2.1"), calling_ae_title="C")
    assert _is_let_in(small.connect("192.0.2.2"), calling_ae_title="C")


@pytest.mark.parametrize("end", ["release", "abort", "ours", "eof", "reset", "garbage"])
async def test_a_place_is_free_the_moment_its_association_ends(small: AcceptorScene, end: str) -> None:
    peers = [small.associated(calling_ae_title="A") for _ in range(2)]
    _end(peers[0], end)
    if end == "reset":
        await settle()
    assert _is_let_in(small.connect(), calling_ae_title="A"), "the socket may stay, the place may not"
    assert not _is_let_in(small.connect("192.0.2.8"), calling_ae_title="A")


def _end(peer: StagedConnection, end: str) -> None:
    match end:
        case "release":
            peer.send(wire.release_rq())
        case "abort":
            peer.send(wire.abort())
        case "ours":
            peer.connection.abort_association("enough")
        case "eof":
            peer.end()
        case "reset":
            peer.transport.vanish(ConnectionResetError())
        case _:
            peer.send(b"\x77" * 20)


async def test_a_rejected_peer_takes_no_place(small: AcceptorScene) -> None:
    for _ in range(4):
        peer = small.connect()
        peer.send(associate_rq(application_context="1.2.3"))
        assert peer.received_types() == [PDUType.ASSOCIATE_RJ]
        peer.end()
        await settle()
    assert _is_let_in(small.connect())


async def test_an_answer_that_fails_gives_its_place_back(
    small: AcceptorScene, logs: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = small.connect()

    def fail(*_args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(peer.connection.association, "accept", fail)
    peer.send(associate_rq())
    assert peer.received_types() == [PDUType.ABORT]
    assert small.manager.association_count == 0
    logs.clear()


# -- sockets ------------------------------------------------------------------------------------------------


async def test_above_the_cap_on_sockets_the_oldest_draining_one_goes_first(small: AcceptorScene) -> None:
    half_open = small.connect()
    kept = small.associated()
    draining = [small.associated("192.0.2.9", calling_ae_title="OTHER") for _ in range(2)]
    for peer in draining:
        peer.connection.abort_association("enough")
    small.connect()
    newcomer = small.connect()
    assert draining[0].transport.aborted
    assert not any(peer.transport.aborted for peer in (half_open, kept, draining[1], newcomer))
    await settle()
    assert small.manager.connection_count == 5


async def test_without_a_draining_one_the_oldest_half_open_one_goes(small: AcceptorScene) -> None:
    kept = small.associated()
    half_open = [small.connect() for _ in range(5)]
    assert half_open[0].transport.aborted
    assert not any(peer.transport.aborted for peer in (kept, *half_open[1:]))


async def test_with_nothing_but_associations_the_newcomer_goes(scene: AcceptorScene) -> None:
    config = replace(SMALL, max_associations_per_peer=9, max_associations_per_address=9, max_connections=3)
    scene.manager.__init__(config, scene.services)  # type: ignore[misc]
    kept = [scene.associated() for _ in range(3)]
    newcomer = scene.connect()
    assert newcomer.transport.aborted
    assert not any(peer.transport.aborted for peer in kept)


async def test_several_displaced_in_one_step_are_different_ones(small: AcceptorScene) -> None:
    half_open = [small.connect() for _ in range(8)]
    assert [peer.transport.aborted for peer in half_open] == [True] * 3 + [False] * 5
    await settle()
    assert small.manager.connection_count == 5


async def test_above_the_bound_on_half_sent_requests_the_oldest_goes(small: AcceptorScene) -> None:
    whole = b"\x01\0\0\0\x03\xe8" + bytes(1000)
    first, second, third = (small.connect(f"192.0.2.{number}") for number in range(3))
    first.send(whole[:500])
    second.send(whole[:500])
    assert first.transport.fate == "open"
    first.send(whole[500:501])
    third.send(whole[:10])
    assert first.transport.fate == "aborted"
    assert first.connection.association.closed, "what it held is free before its socket is gone"
    assert not second.transport.aborted
    await settle()
    third.send(whole[10:400])
    assert not second.transport.aborted


async def test_a_whole_request_counts_no_longer(small: AcceptorScene) -> None:
    for _ in range(10):
        peer = small.connect()
        peer.send(associate_rq()[:200])
        peer.send(associate_rq()[200:])
        assert peer.received_types() == [PDUType.ASSOCIATE_AC]
        peer.send(wire.abort())
        await settle()
    assert small.manager._request_bytes == 0


async def test_the_longest_allowed_request_is_always_within_the_bound(scene: AcceptorScene) -> None:
    config = replace(SMALL, half_open_buffer_bytes=1)
    scene.manager.__init__(config, scene.services)  # type: ignore[misc]
    peer = scene.connect()
    peer.send(b"\x01\0\0\0\x03\xe8" + bytes(999))
    assert not peer.transport.aborted


# -- counting, under any order of events --------------------------------------------------------------------


STEPS: dict[str, Callable[[AcceptorScene, StagedConnection], None]] = {
    "associate": lambda _, peer: peer.send(associate_rq()),
    "half a request": lambda _, peer: peer.send(associate_rq()[:80]),
    "echo": lambda _, peer: peer.send(echo_rq(1)),
    "two echoes": lambda _, peer: peer.send(echo_rq(1) + echo_rq(1)),
    "begin to store": lambda _, peer: peer.send(store_rq() + dataset(bytes(3000))),
    "go on": lambda _, peer: peer.send(dataset(bytes(100))),
    "end of data": lambda _, peer: peer.send(dataset(b"", last=True)),
    "release": lambda _, peer: peer.send(wire.release_rq()),
    "released": lambda _, peer: peer.send(wire.release_rp()),
    "abort": lambda _, peer: peer.send(wire.abort()),
    "our abort": lambda _, peer: peer.connection.abort_association("enough"),
    "our release": lambda _, peer: peer.connection.release_when_idle(),
    "garbage": lambda _, peer: peer.send(b"\x42" * 7),
    "eof": lambda _, peer: peer.end(),
    "reset": lambda _, peer: peer.transport.vanish(ConnectionResetError()),
    "deaf": lambda _, peer: setattr(peer.transport, "deaf", True),
    "reads": lambda _, peer: peer.transport.take_waiting(100_000),
    "time": lambda scene, _: scene.loop.advance(31),
}


async def _read_half(operation: Operation) -> Message:
    async for chunks in operation.dataset.chunks():
        operation.dataset.release(sum(map(len, chunks)) // 2)
    return await succeed(operation)


@settings(max_examples=300)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(sorted(STEPS)), st.integers(0, 2)),
        min_size=5,
        max_size=40,
    )
)
def test_places_sockets_and_bytes_are_counted_once_in_any_order_of_events(
    steps: list[tuple[int, str, int]],
) -> None:
    asyncio.run(_any_order(steps))


async def _any_order(steps: list[tuple[int, str, int]]) -> None:
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unhandled.append(context))
    with captured_logs() as logs:
        scene = AcceptorScene(replace(SMALL, process_buffer_bytes=5000, association_buffer_bytes=4000))
        scene.services.service = _read_half
        peers = [scene.connect() for _ in range(4)]
        for number, step, pauses in steps:
            peer = peers[number]
            if not peer.transport.closed:
                STEPS[step](scene, peer)
            for _ in range(pauses):
                await asyncio.sleep(0)
            open_associations = sum(
                other.connection.info is not None and not other.connection.is_draining for other in peers
            )
            assert scene.manager.association_count == open_associations
            if peer.transport.lost and pauses:
                peers[number] = scene.connect()
        for peer in peers:
            peer.transport.vanish()
        await settle()
        await settle()
    assert scene.manager.connection_count == scene.manager.association_count == 0
    assert not scene.manager.places.per_peer
    assert not scene.manager.places.per_address
    assert scene.manager._request_bytes == 0
    assert scene.manager.budget.held_bytes == 0
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    assert [line for line in logs if "exception" in line] == []
    assert unhandled == []


# -- the end ------------------------------------------------------------------------------------------------


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets a whole second to see the end."""
    monkeypatch.setattr(association_manager, "_CLOSE_SECONDS", 0.02)


async def test_draining_ends_every_kind_of_connection(scene: AcceptorScene, hurry: None) -> None:
    half_open, idle, busy, draining, deaf, rejected = (scene.connect() for _ in range(6))
    for peer in (idle, busy, draining, deaf):
        peer.associate()
    busy.send(store_rq() + dataset(bytes(3000)))
    draining.connection.abort_association("before")
    deaf.transport.deaf = True
    deaf.send(echo_rq(1))
    rejected.send(associate_rq(application_context="1.2.3"))
    await settle()
    assert await scene.manager.drain(0.02) is False
    assert half_open.transport.aborted
    assert idle.received_types() == [PDUType.RELEASE_RQ, PDUType.ABORT]
    assert busy.received_types() == [PDUType.ABORT]
    assert all(peer.transport.lost for peer in (half_open, idle, busy, draining, deaf, rejected)), (
        "whoever does not close is reset"
    )
    assert scene.manager.connection_count == 0


async def test_whoever_asks_while_draining_is_rejected(scene: AcceptorScene, hurry: None) -> None:
    kept = scene.associated()
    draining = asyncio.create_task(scene.manager.drain(5))
    await settle()
    late = scene.connect()
    assert not _is_let_in(late)
    kept.send(wire.release_rp())
    assert await draining is True


async def test_peers_get_the_time_to_see_an_abort_before_the_sockets_close(scene: AcceptorScene) -> None:
    peer = scene.associated()
    peer.send(store_rq() + dataset(bytes(3000)))
    draining = asyncio.create_task(scene.manager.drain(0))
    await asyncio.sleep(0.05)
    assert peer.received_types() == [PDUType.ABORT]
    assert not peer.transport.closed, "closing with bytes unread would reset, and eat the A-ABORT"
    peer.end()
    assert await draining is False


async def test_an_operation_that_outlives_its_association_is_cancelled(
    scene: AcceptorScene, hurry: None
) -> None:
    ended: list[str] = []

    async def never(operation: Operation) -> Message:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return await succeed(operation)

    scene.services.service = never
    peer = scene.associated()
    peer.send(echo_rq(1) + echo_rq(2))
    await settle()
    assert await scene.manager.drain(0) is False
    assert ended == ["cancelled"], "and the one that waited was never begun"


async def test_an_operation_that_ignores_its_cancellation_cannot_hold_up_the_end(
    scene: AcceptorScene, hurry: None, logs: list[dict[str, Any]]
) -> None:
    release = asyncio.Event()

    async def stubborn(operation: Operation) -> Message:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return await succeed(operation)

    scene.services.service = stubborn
    peer = scene.associated()
    peer.send(echo_rq(1))
    await settle()
    async with asyncio.timeout(2):
        assert await scene.manager.drain(0) is False
    assert [line["operations"] for line in logs if line["event"] == "operation.stuck"] == [1]
    release.set()


async def test_draining_twice_at_once_and_again_afterwards_is_harmless(
    scene: AcceptorScene, hurry: None
) -> None:
    scene.associated()
    first, second = (asyncio.create_task(scene.manager.drain(0.02)) for _ in range(2))
    assert await first is False
    assert await second in (True, False)
    assert await scene.manager.drain(0.02) is True
