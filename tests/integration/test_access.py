"""Who may call, from where, and do what, against the whole server: each refusal as its peer sees it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from scp_server import Server
from scp_server.observability.logs import captured_logs
from scp_server.protocol.pdu import RejectReason
from scp_server.testing import wire
from scp_server.testing.dicos_objects import dicos_tdr, two_section_ct
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import Rejection, ScriptedPeer, storage_contexts
from scp_server.testing.wire import ProposedContext

StartServer = Callable[..., Awaitable[Server]]
Datasets = Callable[[], dict[str, list[bytes]]]
DICOS = "1.2.840.10008.3.1.1.1.3"
VERIFICATION = [ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))]
KNOWN_ONLY = {"known_peers_only": True}


@contextlib.asynccontextmanager
async def _calling_from(server: Server, address: str = "127.0.0.1") -> AsyncIterator[ScriptedPeer]:
    reader, writer = await asyncio.open_connection(*server.address, local_addr=(address, 0))
    async with ScriptedPeer(reader, writer) as peer:
        yield peer


async def _rejection(server: Server, address: str = "127.0.0.1", **how: Any) -> Rejection | None:
    """How a request for Verification is rejected; None where it is accepted and works."""
    async with _calling_from(server, address) as peer:
        await peer.send(wire.associate_rq(VERIFICATION, **how))
        with contextlib.suppress(AssertionError):
            return await peer.expect_reject()
    async with _calling_from(server, address) as peer:
        await peer.associate(VERIFICATION, **how)
        assert await peer.echo() == 0x0000
    return None


async def test_who_matches_no_entry_is_1_1_3_where_only_known_peers_may_call(
    start_server: StartServer,
) -> None:
    server = await start_server(
        access=KNOWN_ONLY,
        peers=[{"ae_title": "CT1", "address": "127.0.0.2"}, {"ae_title": "MR1", "address": "127.0.1.0/24"}],
    )
    with captured_logs() as logs:
        assert await _rejection(server, "127.0.0.2", calling_ae_title="CT1") is None
        assert await _rejection(server, "127.0.1.9", calling_ae_title="MR1") is None
        assert await _rejection(server, "127.0.0.3", calling_ae_title="CT1") == (1, 1, 3)
        assert await _rejection(server, "127.0.0.2", calling_ae_title="MR1") == (1, 1, 3)
        assert await _rejection(server, "127.0.0.2", calling_ae_title="OTHER") == (1, 1, 3)
    refused = [record for record in logs if record["event"] == "association.rejected"]
    assert [record["reason"] for record in refused] == ["CALLING_AE_TITLE_NOT_RECOGNIZED"] * 3
    assert [record["peer_host"] for record in refused] == ["127.0.0.3", "127.0.0.2", "127.0.0.2"]
    assert server._manager.rejections == {RejectReason.CALLING_AE_TITLE_NOT_RECOGNIZED: 3}


async def test_with_no_entry_known_peers_only_lets_nobody_in(start_server: StartServer) -> None:
    server = await start_server(access=KNOWN_ONLY)
    assert await _rejection(server) == (1, 1, 3)


async def test_a_wrong_called_title_is_1_1_7_for_known_peers_too(start_server: StartServer) -> None:
    server = await start_server(
        access={"require_called_ae_title": True, **KNOWN_ONLY}, peers=[{"ae_title": "CT1"}]
    )
    ours = {"called_ae_title": "SCP_SERVER"}
    assert await _rejection(server, calling_ae_title="CT1", called_ae_title="OTHER") == (1, 1, 7)
    assert await _rejection(server, calling_ae_title="CT1", **ours) is None
    assert await _rejection(server, calling_ae_title="CT2", **ours) == (1, 1, 3)


@pytest.mark.parametrize(
    ("allow", "results"),
    [
        (["echo", "store"], [0, 0, 0]),
        (["echo"], [0, 1, 1]),
        (["store"], [1, 0, 0]),
        (["find", "get", "move"], [1, 1, 1]),
    ],
)
async def test_the_contexts_of_what_is_not_allowed_get_result_1(
    start_server: StartServer, stored_datasets: Datasets, allow: list[str], results: list[int]
) -> None:
    server = await start_server(peers=[{"ae_title": "CT1", "allow": allow}])
    image, report = ct_image(), dicos_tdr()
    async with _calling_from(server) as peer:
        answer = await peer.associate(storage_contexts(image, report), calling_ae_title="CT1")
        assert [result for result, _ in answer.contexts.values()] == results
        if results[0] == 0:
            assert await peer.echo() == 0x0000
        if results[1] == 0:
            assert await peer.store(image) == 0x0000
    async with _calling_from(server) as peer:
        answer = await peer.associate(storage_contexts(image, report), calling_ae_title="OTHER")
        assert len(answer.accepted()) == 3, "an entry concerns nobody else"
    assert server._manager.refused_contexts == results.count(1)
    assert set(stored_datasets()) == ({image.sop_instance_uid} if results[1] == 0 else set())


async def test_a_message_on_a_refused_context_aborts_and_nothing_is_kept(
    start_server: StartServer, stored_datasets: Datasets
) -> None:
    server = await start_server(peers=[{"ae_title": "CT1", "allow": ["echo"]}])
    image = ct_image()
    async with _calling_from(server) as peer:
        await peer.associate(storage_contexts(image), calling_ae_title="CT1")
        with contextlib.suppress(ConnectionError):
            await peer.send_store(image, context_id=3)
        assert (await peer.expect_abort())[0] == 2
    assert stored_datasets() == {}


@pytest.mark.parametrize("allow", [["find"], ["get"], ["move"]])
async def test_query_and_retrieve_that_are_not_allowed_get_result_1(
    start_server: StartServer, allow: list[str]
) -> None:
    models = {
        "find": "1.2.840.10008.5.1.4.1.2.2.1",
        "move": "1.2.840.10008.5.1.4.1.2.2.2",
        "get": "1.2.840.10008.5.1.4.1.2.2.3",
    }
    server = await start_server(peers=[{"ae_title": "WS", "allow": allow}])
    contexts = [
        ProposedContext(2 * number + 1, uid, ("1.2.840.10008.1.2",))
        for number, uid in enumerate(models.values())
    ]
    async with _calling_from(server) as peer:
        answer = await peer.associate(contexts, calling_ae_title="WS")
        results = dict(zip(models, [result for result, _ in answer.contexts.values()], strict=True))
    assert {service for service, result in results.items() if result == 1} == {*models} - {*allow}


async def test_each_peer_has_its_own_policy_for_duplicates(
    start_server: StartServer, stored_datasets: Datasets
) -> None:
    server = await start_server(
        peers=[
            {"ae_title": "FIXER", "duplicates": "replace"},
            {"ae_title": "STRICT", "duplicates": "reject"},
            {"ae_title": "LANE", "dicos": "always"},
        ]
    )
    objects = [ct_image(seed=seed, sop_instance_uid=ct_image().sop_instance_uid) for seed in range(1, 6)]
    expected = [("CT1", 0), ("CT1", 0xC111), ("STRICT", 0xC112), ("FIXER", 0), ("LANE", 0)]
    for stored, (title, status) in zip(objects, expected, strict=True):
        async with _calling_from(server) as peer:
            await peer.associate(storage_contexts(stored), calling_ae_title=title)
            assert await peer.store(stored) == status, title
    ((_, kept),) = stored_datasets().items()
    assert kept == [objects[3].dataset, objects[4].dataset]
    sections = two_section_ct()
    async with _calling_from(server) as peer:
        await peer.associate(storage_contexts(sections[0]), calling_ae_title="STRICT")
        assert [await peer.store(section) for section in sections] == [0x0000, 0xC112]


async def test_a_peer_that_never_is_dicos_has_only_dicoms_application_context(
    start_server: StartServer,
) -> None:
    server = await start_server(peers=[{"ae_title": "CT1", "dicos": "never"}])
    assert await _rejection(server, calling_ae_title="CT1", application_context=DICOS) == (1, 1, 2)
    assert await _rejection(server, calling_ae_title="CT1") is None
    assert await _rejection(server, calling_ae_title="LANE", application_context=DICOS) is None


@pytest.mark.parametrize(
    ("peer", "aborted"),
    [
        ({"idle_seconds": 0.2}, True),
        ({"idle_seconds": 0}, False),
        ({"dicos": "always"}, True),
        ({"dicos": "always", "idle_seconds": 0}, False),
        ({"dicos": "never"}, False),
    ],
)
async def test_an_idle_association_ends_when_its_peers_rules_say(
    start_server: StartServer, peer: dict[str, Any], aborted: bool
) -> None:
    server = await start_server(
        timeouts={"idle_seconds": 30, "dicos_idle_seconds": 0.2}, peers=[{"ae_title": "CT1", **peer}]
    )
    async with _calling_from(server) as ours, _calling_from(server) as dicos:
        await ours.associate(VERIFICATION, calling_ae_title="CT1")
        await dicos.associate(VERIFICATION, calling_ae_title="LANE", application_context=DICOS)
        assert await dicos.expect_abort() == (0, 0), "the timer of all DICOS associations"
        if aborted:
            assert await ours.expect_abort() == (0, 0)
        else:
            assert await ours.echo() == 0x0000


@pytest.mark.parametrize("identity_type", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("wants_an_answer", [False, True])
async def test_any_user_identity_is_let_in_and_answered_only_when_asked_for(
    server: Server, identity_type: int, wants_an_answer: bool
) -> None:
    secondary = b"passcode" if identity_type == 2 else b""
    identity = wire.UserIdentity(identity_type, b"nobody knows this", secondary, wants_an_answer)
    with captured_logs() as logs:
        async with _calling_from(server) as peer:
            answer = await peer.associate(VERIFICATION, user_identity=identity)
            assert await peer.echo() == 0x0000
    assert (wire.ItemType.USER_IDENTITY_AC in dict(answer.user_items)) is wants_an_answer
    assert "nobody knows this" not in str(logs)
    assert "passcode" not in str(logs)
