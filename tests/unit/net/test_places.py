"""Where another process counts the associations of all, each place is asked for there, and given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from scp_server.interfaces import AssociationInfo, AssociationListener, AssociationVerdict
from scp_server.net.places import Places
from scp_server.protocol.pdu import RejectReason
from scp_server.testing import wire
from scp_server.testing.acceptor_scene import AcceptorScene, associate_rq, echo_rq, settle
from scp_server.testing.wire import PDUType


class Grants:
    """Answers when the test does."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answers: list[asyncio.Future[bool]] = []
        self.given_back: list[tuple[str, str]] = []

    def ask(self, calling_ae_title: str, host: str) -> asyncio.Future[bool]:
        self.asked.append((calling_ae_title, host))
        self.answers.append(asyncio.get_running_loop().create_future())
        return self.answers[-1]

    def give_back(self, calling_ae_title: str, host: str) -> None:
        self.given_back.append((calling_ae_title, host))


@pytest.fixture
def grants() -> Grants:
    return Grants()


@pytest.fixture
async def scene(grants: Grants) -> AcceptorScene:
    return AcceptorScene(grants=grants)


async def test_an_association_is_accepted_once_its_place_is_granted_and_gives_it_back(
    scene: AcceptorScene, grants: Grants
) -> None:
    peer = scene.connect()
    peer.send(associate_rq())
    await settle()
    assert peer.received() == []
    assert grants.asked == [("SCRIPTED", "192.0.2.7")]
    grants.answers[0].set_result(True)
    await settle()
    assert peer.received_types() == [PDUType.ASSOCIATE_AC]
    assert scene.manager._request_bytes == 0
    peer.send(wire.release_rq())
    await settle()
    assert grants.given_back == [("SCRIPTED", "192.0.2.7")]


@pytest.mark.parametrize("gone", [False, True])
async def test_without_a_place_the_answer_is_2_3_2(scene: AcceptorScene, grants: Grants, gone: bool) -> None:
    peer = scene.connect()
    peer.send(associate_rq())
    if gone:
        grants.answers[0].set_exception(ConnectionError("the other process has ended"))
    else:
        grants.answers[0].set_result(False)
    await settle()
    ((pdu_type, body),) = peer.received()
    assert (pdu_type, tuple(body[1:4])) == (PDUType.ASSOCIATE_RJ, (2, 3, 2))
    assert scene.manager.rejections == {RejectReason.LOCAL_LIMIT_EXCEEDED: 1}
    assert grants.given_back == []


async def test_who_does_not_wait_for_the_answer_is_aborted_and_has_no_place(
    scene: AcceptorScene, grants: Grants
) -> None:
    """P-DATA-TF in Sta3 (PS3.8 Table 9-10, AA-8)."""
    peer = scene.connect()
    peer.send(associate_rq())
    peer.send(echo_rq())
    assert peer.received_types() == [PDUType.ABORT]
    grants.answers[0].set_result(True)
    await settle()
    assert peer.received() == []
    assert grants.given_back == [("SCRIPTED", "192.0.2.7")]


async def test_a_peer_that_is_gone_when_the_answer_comes_gives_its_place_back(
    scene: AcceptorScene, grants: Grants
) -> None:
    peer = scene.connect()
    peer.send(associate_rq())
    peer.transport.vanish()
    await settle()
    grants.answers[0].set_result(True)
    await settle()
    assert grants.given_back == [("SCRIPTED", "192.0.2.7")]
    assert scene.manager.association_count == scene.manager.connection_count == 0


async def test_who_is_rejected_for_another_reason_is_not_asked_for(
    scene: AcceptorScene, grants: Grants
) -> None:
    peer = scene.connect()
    peer.send(associate_rq(application_context="1.2.3"))
    assert peer.received_types() == [PDUType.ASSOCIATE_RJ]
    assert grants.asked == []


async def test_the_server_that_drains_resets_who_still_waits(scene: AcceptorScene, grants: Grants) -> None:
    peer = scene.connect()
    peer.send(associate_rq())
    draining = asyncio.create_task(scene.manager.drain(0))
    await settle()
    grants.answers[0].set_result(True)
    await draining
    await settle()
    assert peer.received() == []
    assert grants.given_back == [("SCRIPTED", "192.0.2.7")]


async def test_places_are_taken_for_others_up_to_the_caps_of_all(scene: AcceptorScene) -> None:
    config = scene.manager.config
    for _ in range(config.max_associations_per_peer):
        assert scene.manager.take_place_for_another("CT1", "::1")
    assert not scene.manager.take_place_for_another("CT1", "::2")
    assert not scene.manager.take_place_for_another("CT2", "::1"), "as many from one address"
    assert scene.manager.take_place_for_another("CT2", "::2")
    scene.manager.places.give_back("CT1", "::1")
    assert scene.manager.take_place_for_another("CT1", "::1")


def test_no_name_is_remembered_once_it_has_no_place() -> None:
    places = Places()
    places.take("CT1", "::1")
    places.give_back("CT1", "::1")
    assert places.taken == 0
    assert not places.per_peer
    assert not places.per_address


class BrokenJudge(AssociationListener):
    """Breaks when it is asked, or already when it is to say whether it wants to be."""

    def __init__(self, breaks_at: str) -> None:
        self._breaks_at = breaks_at

    def judges(self, association: AssociationInfo) -> bool:
        if self._breaks_at == "judges":
            raise RuntimeError("broken")
        return True

    async def may_associate(self, association: AssociationInfo) -> AssociationVerdict:
        if self._breaks_at == "may_associate":
            raise RuntimeError("broken")
        return AssociationVerdict.YES

    def connected(self, peer_host: str, peer_port: int) -> None: ...
    def disconnected(self, peer_host: str, peer_port: int) -> None: ...
    def ended(
        self, association: AssociationInfo, outcome: str, operations: int, dataset_bytes: int
    ) -> None: ...
    def echoed(self, association: AssociationInfo) -> None: ...

    def accepted(self, association: AssociationInfo) -> None:
        if self._breaks_at == "accepted":
            raise RuntimeError("broken")


@pytest.mark.parametrize("breaks_at", ["judges", "may_associate", "accepted"])
async def test_a_place_is_given_back_once_where_judging_fails(
    scene: AcceptorScene, grants: Grants, logs: list[dict[str, Any]], breaks_at: str
) -> None:
    scene.manager.listener = BrokenJudge(breaks_at)
    peer = scene.connect()
    peer.send(associate_rq())
    grants.answers[0].set_result(True)
    await settle()
    assert peer.received_types()[-1] == PDUType.ABORT
    assert "association.failed" in [line["event"] for line in logs]
    logs.clear()
    peer.end()
    await settle()
    assert grants.given_back == [("SCRIPTED", "192.0.2.7")]
    assert scene.manager.association_count == 0


async def test_a_place_is_given_back_where_the_peer_ends_before_anybody_was_asked(
    scene: AcceptorScene, grants: Grants
) -> None:
    scene.manager.listener = BrokenJudge("never")
    peer = scene.connect()
    peer.send(associate_rq())
    grants.answers[0].set_result(True)
    grants.answers[0].add_done_callback(lambda _place: peer.send(wire.abort()))
    await settle()
    assert grants.given_back == [("SCRIPTED", "192.0.2.7")]
    peer.end()
