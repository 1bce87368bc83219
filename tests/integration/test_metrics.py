"""`/metrics` of a whole server: what was sent is what it counts."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Awaitable, Callable

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from scp_server import Server
from scp_server.runtime.control_commands import drop_object
from scp_server.settings.peers import PeerSettings
from scp_server.testing import wire
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import LATIN, ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import ProposedContext

StartServer = Callable[..., Awaitable[Server]]
RequirePeer = Callable[[str, object], None]
VERIFICATION = ProposedContext(99, wire.VERIFICATION, ("1.2.840.10008.1.2",))


async def _get(server: Server, accept: str = "") -> httpx.Response:
    host, port = server.http_address
    async with httpx.AsyncClient() as client:
        return await client.get(f"http://{host}:{port}/metrics", headers={"accept": accept})


async def _values(server: Server) -> dict[str, float]:
    """Value of each series that is not 0, by its name and label values."""
    response = await _get(server)
    assert response.status_code == 200
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in parse_text(response.text)
        for sample in family.samples
        if sample.value
    }


async def _send_everything(server: Server) -> int:
    """An echo, two objects, one again, and another under a known UID; returns the bytes of those kept."""
    first, second = ct_image(seed=1), ct_image(seed=2)
    other = ct_image(seed=1, private=True)
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate([*storage_contexts(first), VERIFICATION])
        assert await peer.echo() == 0x0000
        assert [await peer.store(each) for each in (first, second, first)] == [0x0000] * 3
        assert other.sop_instance_uid == first.sop_instance_uid
        assert await peer.store(other) == 0xC111
        await peer.release()
    return 2 * len(first.dataset) + len(second.dataset)


async def test_what_was_sent_is_what_it_counts(server: Server) -> None:
    before = await _values(server)
    kept_bytes = await _send_everything(server)
    found = await _values(server)
    wanted = {
        "scp_ready": 1,
        "scp_connections_opened_total": 1,
        "scp_associations_accepted_total": 1,
        "scp_associations_ended_total released": 1,
        "scp_operation_duration_seconds_count echo success": 1,
        "scp_operation_duration_seconds_count store success": 3,
        "scp_operation_duration_seconds_count store failure": 1,
        "scp_objects_received_total": 3,
        "scp_objects_received_bytes_total": kept_bytes,
        "scp_objects_refused_total 0xC111": 1,
        "scp_stage_duration_seconds_count receive": 4,
        "scp_stage_duration_seconds_count parse": 4,
        "scp_stage_duration_seconds_count persist": 4,
        "scp_stage_duration_seconds_count index": 4,
        "scp_peer_associations_accepted_total other": 1,
        "scp_peer_operations_total other success": 4,
        "scp_peer_operations_total other failure": 1,
        "scp_quarantine_objects": 1,
        "scp_quarantine_events_total kept": 1,
        "scp_index_batch_entries_sum": 4,
        "scp_index_batch_duration_seconds_count": 4,
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["scp_received_bytes_total"] > kept_bytes
    for stage in ("receive", "parse", "persist", "index"):
        assert found[f"scp_stage_duration_seconds_sum {stage}"] > 0
    for name in ("scp_associations_active", "scp_operations_in_flight", "scp_held_bytes"):
        assert name not in before
        assert name not in found
    assert found["scp_storage_free_bytes"] <= found["scp_storage_size_bytes"]
    assert "scp_process_resident_memory_bytes" in found


async def test_peers_of_the_settings_are_told_apart_also_after_a_reload(start_server: StartServer) -> None:
    server = await start_server(peers=[{"ae_title": "CT1"}, {"ae_title": "CT2", "address": "127.0.0.0/8"}])
    stored = ct_image()
    async with await _as("CT1", server, stored) as first, await _as("CT3", server, stored) as stranger:
        assert await first.store(stored) == 0x0000
        assert await stranger.echo() == 0x0000
        found = await _values(server)
        peers = {name: value for name, value in found.items() if name.startswith("scp_peer_")}
        assert peers == {
            "scp_peer_associations_active CT1": 1,
            "scp_peer_associations_active other": 1,
            "scp_peer_associations_accepted_total CT1": 1,
            "scp_peer_associations_accepted_total other": 1,
            "scp_peer_operations_total CT1 success": 1,
            "scp_peer_operations_total other success": 1,
            "scp_peer_received_bytes_total CT1": len(stored.dataset),
        }
        assert 'peer="CT2@127.0.0.0/8"' in (await _get(server)).text
        server.reload(server.settings.model_copy(update={"peers": (PeerSettings(ae_title="CT3"),)}))
        assert (await first.echo(), await stranger.echo()) == (0x0000, 0x0000)
        found = await _values(server)
        peers = {name: value for name, value in found.items() if name.startswith("scp_peer_operations")}
        assert peers == {"scp_peer_operations_total other success": 3}
        assert 'peer="CT1"' not in (await _get(server)).text


async def _as(calling_ae_title: str, server: Server, stored: EncodedObject) -> ScriptedPeer:
    peer = await ScriptedPeer.connect(*server.address)
    await peer.associate([*storage_contexts(stored), VERIFICATION], calling_ae_title=calling_ae_title)
    return peer


async def test_what_the_quarantine_holds_and_what_became_of_the_rest_is_counted(
    start_server: StartServer,
) -> None:
    server = await start_server(quarantine={"max_objects": 2})
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(ct_image()))
        assert await peer.store(ct_image(seed=1)) == 0x0000
        for extra in (True, False, True):
            conflicting = ct_image(seed=1, private=extra, sequences=True)
            assert await peer.store(conflicting) == 0xC111
    found = await _values(server)
    held_bytes = sum(path.stat().st_size for path in server.settings.data_dir.glob("quarantine/*.quarantine"))
    wanted = {
        "scp_quarantine_objects": 2,
        "scp_quarantine_objects_limit": 2,
        "scp_quarantine_bytes": held_bytes,
        "scp_quarantine_bytes_limit": 1 << 30,
        "scp_quarantine_events_total kept": 2,
        "scp_quarantine_events_total not_kept": 1,
    }
    assert {name: value for name, value in found.items() if name.startswith("scp_quarantine")} == wanted
    first, second = server._quarantine.ids()
    assert (await server._release.release(first)).released is False
    await drop_object(server._quarantine, second)
    await server.index.remove([part.location for part in await server.index.list_parts()])
    assert (await server._release.release(first)).released is True
    found = await _values(server)
    assert {name: value for name, value in found.items() if name.startswith("scp_quarantine_e")} == {
        "scp_quarantine_events_total kept": 2,
        "scp_quarantine_events_total not_kept": 1,
        "scp_quarantine_events_total release_refused": 1,
        "scp_quarantine_events_total released": 1,
        "scp_quarantine_events_total dropped": 1,
    }
    assert "scp_quarantine_objects" not in found


async def test_the_stages_add_up_to_no_more_than_the_operations_took(server: Server) -> None:
    await _send_everything(server)
    found = await _values(server)
    stages = sum(value for name, value in found.items() if name.startswith("scp_stage_duration_seconds_sum"))
    operations = sum(
        value for name, value in found.items() if name.startswith("scp_operation_duration_seconds_sum store")
    )
    assert 0 < stages <= operations


async def test_associations_and_operations_show_while_they_last(server: Server) -> None:
    stored = ct_image()
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(stored))
        await peer.send(wire.p_data_tf(_store_command(stored.sop_class_uid, stored.sop_instance_uid)))
        while not server._manager.operation_count:
            found = await _values(server)
        found = await _values(server)
        assert (found["scp_associations_active"], found["scp_operations_in_flight"]) == (1, 1)


def _store_command(sop_class_uid: str, sop_instance_uid: str) -> wire.PDV:
    command = wire.c_store_rq(1, sop_class_uid, sop_instance_uid)
    return wire.PDV(1, wire.Control.COMMAND | wire.Control.LAST, command)


async def test_a_conflicting_patient_is_counted(server: Server) -> None:
    first, second = ct_image(seed=1), ct_image(seed=2, patient=LATIN)
    async with await ScriptedPeer.connect(*server.address) as peer:
        await peer.associate(storage_contexts(first))
        assert await peer.store(first) == 0x0000
        assert "scp_patient_conflicts_total" not in await _values(server)
        assert await peer.store(second) == 0x0000
        assert (await _values(server))["scp_patient_conflicts_total"] == 1


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0", "application/openmetrics-text; version=1.0.0"),
    ],
)
async def test_the_format_is_the_one_asked_for(server: Server, accept: str, content_type: str) -> None:
    response = await _get(server, accept)
    assert response.headers["content-type"].startswith(content_type)
    assert response.headers["cache-control"] == "no-store"
    families = list((parse_openmetrics if accept else parse_text)(response.text))
    assert "scp_ready" in {family.name for family in families}


async def test_nothing_but_get_is_answered(server: Server) -> None:
    host, port = server.http_address
    async with httpx.AsyncClient() as client:
        assert (await client.post(f"http://{host}:{port}/metrics")).status_code == 405


@pytest.mark.interop
async def test_promtool_finds_nothing_to_complain_of(server: Server, require_peer: RequirePeer) -> None:
    promtool = shutil.which("promtool")
    require_peer("promtool", promtool)
    await _send_everything(server)
    scraped = (await _get(server)).content
    checked = subprocess.run(
        [promtool or "", "check", "metrics"], input=scraped, capture_output=True, timeout=60, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
