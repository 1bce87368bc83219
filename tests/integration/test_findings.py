"""What validations find, through a daemon: stored beside the object, told, listed, found again."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
from typer.testing import CliRunner

from scp_server.cli.main import app
from scp_server.testing.daemon import DaemonProcess, stored_files
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.dicos_objects import dicos_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

SETTINGS = """
[[peers]]
ae_title = "REFUSED"
validation = "refuse"

[[peers]]
ae_title = "SET_ASIDE"
validation = "quarantine"

[[peers]]
ae_title = "UNSEEN"
validation = "off"
"""
BURNED_IN_ANNOTATION = 0x00280301
OFFENDING_ELEMENT = 0x0901
STORED = (0x0000, "", b"")
PATIENCE_SECONDS = 20


def invalid_ct(seed: int) -> EncodedObject:
    """A DICOS CT in which an attribute of type 1 is empty."""
    return dicos_ct(seed=seed, replacing=[Element(BURNED_IN_ANNOTATION, "CS", "")])


async def _send(port: int, title: str, stored: EncodedObject) -> tuple[int, str, bytes]:
    """Status, Error Comment and Offending Element of the answer."""
    async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
        await peer.associate(storage_contexts(stored), calling_ae_title=title)
        await peer.send_store(stored)
        response = await peer.read_response()
        await peer.release()
    return response.status, response.error_comment, response.elements.get(OFFENDING_ELEMENT, b"")


def _cli(data_dir: Path, *arguments: str) -> Any:
    result = CliRunner().invoke(app, [*arguments, "--data-dir", str(data_dir), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def _listed(data_dir: Path, *options: str) -> list[tuple[str, str, str]]:
    document = _cli(data_dir, "findings", "list", *options)
    assert document["findings_cut"] is False
    return [(each["sop_instance_uid"], each["code"], each["path"]) for each in document["findings"]]


async def _invalid_events(port: int, count: int) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    url = f"http://127.0.0.1:{port}/events?after=0&kinds=object.invalid"
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        httpx.AsyncClient(trust_env=False) as client,
        client.stream("GET", url) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if len(events) == count:
                    break
    return events


def test_an_invalid_object_is_treated_as_its_peers_policy_says(tmp_path: Path) -> None:
    data_dir, config = tmp_path / "data", tmp_path / "settings.toml"
    config.write_text(SETTINGS)
    recorded, refused, set_aside, unseen, valid = (*map(invalid_ct, range(4)), dicos_ct(seed=4))
    expected = [(recorded.sop_instance_uid, "empty-type-1", "(0028,0301)")]
    with DaemonProcess(data_dir, "--config", str(config)) as daemon:
        port = daemon.ready.dicom_port
        assert asyncio.run(_send(port, "ANYBODY", recorded)) == STORED
        assert asyncio.run(_send(port, "ANYBODY", valid)) == STORED
        assert asyncio.run(_send(port, "UNSEEN", unseen)) == STORED
        for title, invalid in (("REFUSED", refused), ("SET_ASIDE", set_aside)):
            status, comment, elements = asyncio.run(_send(port, title, invalid))
            assert (status, elements) == (0xC000, bytes.fromhex("28000103"))
            assert comment.startswith("BurnedInAnnotation (0028,0301)")
        assert {each.sop_instance_uid for each in stored_files(data_dir)} == {
            recorded.sop_instance_uid,
            unseen.sop_instance_uid,
            valid.sop_instance_uid,
        }
        kept = _cli(data_dir, "quarantine", "list")["objects"]
        assert [each["sop_instance_uid"] for each in kept] == [set_aside.sop_instance_uid]
        assert _listed(data_dir) == expected
        assert _listed(data_dir, "--severity", "warning") == []
        assert _listed(data_dir, "--code", "empty-type-1", "--study", recorded.study_instance_uid) == expected
        (event,) = asyncio.run(_invalid_events(daemon.ready.http_port, 1))
        assert event["sop_instance_uid"] == recorded.sop_instance_uid
        assert (event["errors"], event["error_codes"]) == (1, ["empty-type-1"])
        metrics = httpx.get(f"http://127.0.0.1:{daemon.ready.http_port}/metrics", trust_env=False).text
        assert 'scp_findings_total{severity="error"} 3.0' in metrics
    assert _listed(data_dir) == expected
    for index in (data_dir / "index").iterdir():
        index.unlink()
    result = CliRunner().invoke(
        app, ["index", "rebuild", "--config", str(config), "--data-dir", str(data_dir)]
    )
    assert result.exit_code == 0, result.output
    assert _listed(data_dir) == expected
