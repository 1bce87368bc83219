"""Somebody else is asked whether an association may be, and told what becomes of it, while its peer waits."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from scp_server.interfaces import AssociationInfo, AssociationVerdict, Operation
from scp_server.protocol.message import Message
from scp_server.testing import wire
from scp_server.testing.acceptor_scene import AcceptorScene, associate_rq, echo_rq, settle, succeed
from scp_server.testing.wire import PDUType

Logs = list[dict[str, Any]]


class Judge:
    """An `AssociationListener` that answers when the test lets it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.asked: list[AssociationInfo] = []
        self.cancelled = 0
        self.error: Exception | None = None
        self._verdict = asyncio.get_running_loop().create_future()

    def answer(self, verdict: AssociationVerdict) -> None:
        self._verdict.set_result(verdict)

    def connected(self, peer_host: str, peer_port: int) -> None:
        self.told.append(f"connected {peer_host} {peer_port}")

    def disconnected(self, peer_host: str, peer_port: int) -> None:
        self.told.append(f"disconnected {peer_host} {peer_port}")

    def judges(self, association: AssociationInfo) -> bool:
        return association.calling_ae_title != "TRUSTED"

    async def may_associate(self, association: AssociationInfo) -> AssociationVerdict:
        self.asked.append(association)
        if self.error is not None:
            raise self.error
        try:
            return await asyncio.shield(self._verdict)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def accepted(self, association: AssociationInfo) -> None:
        self.told.append("accepted")

    def ended(self, association: AssociationInfo, outcome: str, operations: int, dataset_bytes: int) -> None:
        self.told.append(f"ended {outcome} {operations} {dataset_bytes}")

    def echoed(self, association: AssociationInfo) -> None:
        self.told.append("echoed")


@pytest.fixture
async def judge(scene: AcceptorScene) -> Judge:
    scene.manager.listener = judge = Judge()
    return judge


async def test_the_peer_is_answered_once_there_is_a_verdict(scene: AcceptorScene, judge: Judge) -> None:
    staged = scene.connect()
    staged.send(associate_rq())
    await settle()
    assert staged.received() == []
    (asked,) = judge.asked
    assert asked.calling_ae_title == "SCRIPTED"
    assert scene.manager.association_count == 0
    judge.answer(AssociationVerdict.YES)
    await settle()
    assert staged.received_types() == [PDUType.ASSOCIATE_AC]
    assert scene.manager.association_count == 1
    staged.send(echo_rq())
    await settle()
    assert staged.responses() == [(1, 0)]
    staged.send(wire.release_rq())
    staged.end()
    await settle()
    assert judge.told == [
        "connected 192.0.2.7 40104",
        "accepted",
        "ended released 1 0",
        "disconnected 192.0.2.7 40104",
    ]


@pytest.mark.parametrize(
    ("verdict", "rejection"),
    [
        (AssociationVerdict.NO, bytes([0, 1, 1, 1])),
        (AssociationVerdict.CANNOT_SAY, bytes([0, 2, 3, 1])),
    ],
)
async def test_a_no_is_1_1_1_and_a_failure_is_transient(
    scene: AcceptorScene, judge: Judge, logs: Logs, verdict: AssociationVerdict, rejection: bytes
) -> None:
    staged = scene.connect()
    judge.answer(verdict)
    staged.send(associate_rq())
    await settle()
    assert staged.received() == [(PDUType.ASSOCIATE_RJ, rejection)]
    assert [line["event"] for line in logs] == ["association.rejected"]
    assert sum(scene.manager.rejections.values()) == 1
    staged.end()
    assert "accepted" not in judge.told


async def test_who_is_not_judged_is_answered_at_once(scene: AcceptorScene, judge: Judge) -> None:
    staged = scene.associated(calling_ae_title="TRUSTED")
    assert judge.asked == []
    assert judge.told[-1] == "accepted"
    staged.connection.reset()


@pytest.mark.parametrize("how", ["abort", "end", "data"])
async def test_a_peer_that_does_not_wait_ends_it(scene: AcceptorScene, judge: Judge, how: str) -> None:
    staged = scene.connect()
    staged.send(associate_rq())
    await settle()
    if how == "abort":
        staged.send(wire.abort())
    elif how == "data":
        staged.send(echo_rq())
    else:
        staged.end()
    await settle()
    assert judge.cancelled == 1
    # Sent in Sta3, P-DATA is no PDU that is expected (PS3.8 9.2, AA-8).
    assert staged.received_types() == ([PDUType.ABORT] if how == "data" else [])
    assert scene.manager.association_count == 0
    staged.end()
    await settle()
    assert judge.told == ["connected 192.0.2.7 40104", "disconnected 192.0.2.7 40104"]


async def test_a_cap_that_was_reached_meanwhile_holds(scene: AcceptorScene, judge: Judge) -> None:
    scene.manager.reconfigure(replace(scene.manager.config, max_associations=1), scene.services)
    first, second = scene.connect(), scene.connect()
    first.send(associate_rq())
    second.send(associate_rq())
    await settle()
    judge.answer(AssociationVerdict.YES)
    await settle()
    assert first.received_types() == [PDUType.ASSOCIATE_AC]
    assert second.received() == [(PDUType.ASSOCIATE_RJ, bytes([0, 2, 3, 2]))]
    second.end()
    first.connection.reset()


async def test_what_was_held_of_the_request_is_given_back(scene: AcceptorScene, judge: Judge) -> None:
    staged = scene.connect()
    staged.send(associate_rq())
    await settle()
    assert scene.manager.request_bytes > 0
    judge.answer(AssociationVerdict.YES)
    await settle()
    assert scene.manager.request_bytes == 0
    staged.connection.reset()


async def test_a_judge_that_breaks_aborts_the_association(
    scene: AcceptorScene, judge: Judge, logs: Logs
) -> None:
    judge.error = RuntimeError("broken")
    staged = scene.connect()
    staged.send(associate_rq())
    await settle()
    assert staged.received_types() == [PDUType.ABORT]
    assert "association.failed" in [line["event"] for line in logs]
    logs.clear()
    staged.end()


async def test_a_server_that_stops_waits_for_no_verdict(judge: Judge, scene: AcceptorScene) -> None:
    staged = scene.connect()
    staged.send(associate_rq())
    await settle()
    assert await scene.manager.drain(1.0)
    await settle()
    assert judge.cancelled == 1


async def test_an_association_has_ended_once_nothing_of_it_is_performed_any_more(
    scene: AcceptorScene, judge: Judge
) -> None:
    """Its peer is gone, and an object of it may still become safe: all that it brought is known only then."""
    go_on = asyncio.Event()

    async def wait(operation: Operation) -> Message:
        await go_on.wait()
        return await succeed(operation)

    scene.services.service = wait
    staged = scene.connect()
    staged.associate(calling_ae_title="TRUSTED")
    staged.send(echo_rq())
    await settle()
    staged.end()
    await settle()
    assert "disconnected" in judge.told[-1]
    go_on.set()
    await settle()
    assert judge.told[-1] == "ended lost 1 0"
    assert len([each for each in judge.told if each.startswith("ended")]) == 1
