"""A bag from its scan to the operator's decision, on a server that is killed in between."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from scp_server.cli.main import app
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dataset_encoder import Element
from scp_server.testing.dicos_objects import Scan, dicos_ct, dicos_tdr
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts

BAG = Scan("BAG0042", "SCAN-42")
LATER = Element(0x4010102B, "DT", "20261120101300.000000+0000")
RUNNER = CliRunner()
KILLS = 2


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SCP_SERVER_"):
            monkeypatch.delenv(name)


def _json(*arguments: str) -> Any:
    result = RUNNER.invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


async def _send(port: int, objects: Sequence[EncodedObject], acknowledged: set[str]) -> None:
    with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
        async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
            await peer.associate(storage_contexts(*objects))
            for each in objects:
                assert await peer.store(each) == 0x0000
                acknowledged.add(each.sop_instance_uid)
            await peer.release()


@pytest.mark.slow
async def test_killed_while_a_bags_objects_come_it_ends_in_the_same_decision(tmp_path: Path) -> None:
    chance = random.Random()
    image = dicos_ct(scan=BAG)
    machine = dicos_tdr(image, scan=BAG, replacing=[LATER])
    operator = dicos_tdr(image, scan=BAG, tdr_type="OPERATOR", decision="CLEAR")
    truth = dicos_tdr(image, scan=BAG, tdr_type="GROUND TRUTH", replacing=[LATER])
    others = [dicos_ct(scan=Scan(f"BAG{number}"), seed=number) for number in range(30)]
    bag = [image, machine, operator, truth]
    acknowledged: set[str] = set()
    daemon = DaemonProcess(tmp_path, environment={"SCP_SERVER_DECISIONS__MISSING_AFTER_SECONDS": "0.5"})
    for _ in range(KILLS):
        ready = await asyncio.to_thread(daemon.start)
        arriving = [*bag, *others]
        chance.shuffle(arriving)
        sending = asyncio.create_task(_send(ready.dicom_port, arriving, acknowledged))
        await asyncio.wait({sending}, timeout=chance.uniform(0.0, 0.15))
        await asyncio.to_thread(daemon.kill)
        await sending
    ready = await asyncio.to_thread(daemon.start)
    await _send(ready.dicom_port, [*bag, *others], acknowledged)
    assert len(acknowledged) == len(bag) + len(others)

    await asyncio.to_thread(_shown, tmp_path, ready.dicom_port, operator.sop_instance_uid)
    missing = await _told_missing(ready.http_port)
    assert missing == {other.study_instance_uid for other in others}
    metrics = await asyncio.to_thread(_metrics, ready.http_port)
    assert "scp_reports_missing_total" in metrics
    await asyncio.to_thread(daemon.terminate)
    with closing(sqlite3.connect(tmp_path / "index" / "index.sqlite")) as database:
        events = database.execute("SELECT kind, data FROM events ORDER BY event_id").fetchall()
    changes = [json.loads(data) for kind, data in events if kind == "decision.changed"]
    assert [each["from"] for each in changes] == [None, *(each["to"] for each in changes[:-1])]
    assert (changes[-1]["to"], changes[-1]["sop_instance_uid"]) == ("CLEAR", operator.sop_instance_uid)
    assert [kind for kind, _ in events].count("tdr.received") == 3
    assert [kind for kind, _ in events].count("tdr.missing") >= len(others)
    assert not any("BAG0042" in data for _, data in events)


def _shown(data_dir: Path, port: int, deciding: str) -> None:
    """What an operator asks for."""
    query = json.dumps({"PatientID": "BAG0042", "AlarmDecision": "CLEAR", "TDRType": None})
    (found,) = _json("find", "--port", str(port), "--query", query)
    assert (found["40101031"]["Value"], found["40101027"]["Value"]) == (["CLEAR"], ["OPERATOR"])
    table = RUNNER.invoke(app, ["find", "--port", str(port), "--query", query])
    assert "CLEAR" in table.output
    for name in ("BAG0042", "SCAN-42", BAG.study_instance_uid):
        scan = _json("scan", "show", name, "--data-dir", str(data_dir))["scan"]
        assert scan["decision"]["sop_instance_uid"] == deciding
        assert scan["decision"]["reason"] == "OPERATOR counts before MACHINE"
        assert [len(scan[kind]) for kind in ("images", "reports", "orphans")] == [1, 3, 0]
    page = RUNNER.invoke(app, ["scan", "show", "BAG0042", "--data-dir", str(data_dir)])
    assert page.exit_code == 0
    assert "OPERATOR counts before MACHINE" in page.output
    waiting = _json("scan", "show", "BAG7", "--data-dir", str(data_dir))["scan"]
    assert (waiting["decision"], waiting["alarm_decision"]) == (None, None)
    nothing = RUNNER.invoke(app, ["scan", "show", "NOBODY", "--data-dir", str(data_dir)])
    assert nothing.exit_code == 1


async def _told_missing(port: int) -> set[str]:
    """The scans that are told of as missing a report, once all are."""
    missing: set[str] = set()
    async with (
        asyncio.timeout(20),
        httpx.AsyncClient(trust_env=False, timeout=20) as client,
        client.stream(
            "GET", f"http://127.0.0.1:{port}/events", params={"after": 0, "kinds": "tdr.missing"}
        ) as response,
    ):
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                missing.add(json.loads(line.removeprefix("data: "))["study_instance_uid"])
            if len(missing - {BAG.study_instance_uid}) == 30:
                break
    return missing - {BAG.study_instance_uid}


def _metrics(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
