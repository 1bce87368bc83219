"""How an association is treated for the sake of the entry that it matched."""

from __future__ import annotations

from typing import Any

import pytest

from scp_server.interfaces import AssociationInfo, DicosMode, PeerRules
from scp_server.net.access import AccessRules, PeerEntry, PeerService, parse_network
from scp_server.net.admission import learn_is_dicos
from scp_server.net.association_manager import AcceptorConfig
from scp_server.observability.logs import captured_logs
from scp_server.protocol.limits import Limits
from scp_server.protocol.pdu import RejectReason
from scp_server.testing import wire
from scp_server.testing.acceptor_scene import ANY_SIZE, AcceptorScene, associate_rq
from scp_server.testing.wire import PDUType

DICOS = "1.2.840.10008.3.1.1.1.3"
NETWORK = parse_network("192.0.2.0/24")


def _scene(*entries: PeerEntry, known_peers_only: bool = False) -> AcceptorScene:
    return AcceptorScene(
        AcceptorConfig(
            ANY_SIZE,
            access=AccessRules(entries, known_peers_only),
            limits=Limits(idle_seconds=300, dicos_idle_seconds=40),
        )
    )


def _ask(scene: AcceptorScene, host: str = "192.0.2.7", **how: Any) -> tuple[int, bytes]:
    peer = scene.connect(host)
    peer.send(associate_rq(**how))
    ((pdu_type, body),) = peer.received()
    return pdu_type, body


async def test_each_rejection_is_one_line_with_its_reason_and_is_counted() -> None:
    scene = _scene(PeerEntry(PeerRules("CT", dicos=DicosMode.NEVER), "CT", NETWORK), known_peers_only=True)
    asked = [
        ({"host": "192.0.2.7", "calling_ae_title": "OTHER"}, (1, 1, 3)),
        ({"host": "198.51.100.7", "calling_ae_title": "CT"}, (1, 1, 3)),
        ({"host": "192.0.2.7", "calling_ae_title": "CT", "application_context": DICOS}, (1, 1, 2)),
    ]
    for how, expected in asked:
        with captured_logs() as logs:
            pdu_type, body = _ask(scene, **how)
        assert (pdu_type, tuple(body[1:4])) == (PDUType.ASSOCIATE_RJ, expected)
        (line,) = [record for record in logs if record["event"] == "association.rejected"]
        assert line["reason"] in RejectReason.__members__
    assert scene.manager.rejections == {
        RejectReason.CALLING_AE_TITLE_NOT_RECOGNIZED: 2,
        RejectReason.APPLICATION_CONTEXT_NOT_SUPPORTED: 1,
    }
    assert _ask(scene, calling_ae_title="CT")[0] == PDUType.ASSOCIATE_AC
    assert scene.manager.rejections.total() == 3


async def test_who_is_unknown_may_do_everything_unless_known_peers_only() -> None:
    scene = _scene(PeerEntry(PeerRules("CT"), "CT", NETWORK, allow=frozenset({PeerService.ECHO})))
    info = scene.associated(calling_ae_title="OTHER").connection.info
    assert info is not None
    assert (len(info.contexts), info.peer) == (2, None)
    assert scene.manager.refused_contexts == 0


async def test_refused_contexts_are_one_line_and_are_counted() -> None:
    scene = _scene(PeerEntry(PeerRules("ours"), "CT", allow=frozenset({PeerService.ECHO})))
    with captured_logs() as logs:
        peer = scene.associated(calling_ae_title="CT")
    assert peer.connection.info is not None
    assert [context.abstract_syntax for context in peer.connection.info.contexts.values()] == [
        wire.VERIFICATION
    ]
    (line,) = [record for record in logs if record["event"] == "association.restricted"]
    assert (line["peer"], line["contexts_refused"], line["contexts_accepted"]) == ("ours", 1, 1)
    assert line["reason"] == "USER_REJECTION"
    assert scene.manager.refused_contexts == 1


@pytest.mark.parametrize(
    ("entry", "application_context", "expires"),
    [
        (None, "", 300),
        (None, DICOS, 40),
        (PeerEntry(PeerRules("A")), "", 300),
        (PeerEntry(PeerRules("A"), idle_seconds=9), "", 9),
        (PeerEntry(PeerRules("A"), idle_seconds=9), DICOS, 9),
        (PeerEntry(PeerRules("A"), idle_seconds=0), "", None),
        (PeerEntry(PeerRules("A", dicos=DicosMode.ALWAYS)), "", 40),
        (PeerEntry(PeerRules("A", dicos=DicosMode.NEVER)), "", 300),
    ],
)
async def test_the_idle_timer_is_the_peers(
    entry: PeerEntry | None, application_context: str, expires: float | None
) -> None:
    scene = _scene(*([] if entry is None else [entry]))
    peer = scene.connect()
    peer.associate(application_context=application_context)
    deadline = peer.connection.association.next_timer()
    assert (None if deadline is None else deadline - scene.loop.time()) == expires


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (None, [False, True, True]),
        (DicosMode.AUTO, [False, True, True]),
        (DicosMode.ALWAYS, [True, True, True]),
        (DicosMode.NEVER, [False, False, False]),
    ],
)
def test_an_association_is_dicos_once_it_was_unless_its_peer_is_otherwise(
    mode: DicosMode | None, expected: list[bool]
) -> None:
    info = AssociationInfo("1", "A", "B", "192.0.2.7", 104, wire.DICOM_APPLICATION_CONTEXT)
    info.peer = None if mode is None else PeerRules("A", dicos=mode)
    found = []
    for seen in (False, True, False):
        learn_is_dicos(info, seen)
        found.append(info.is_dicos)
    assert found == expected
