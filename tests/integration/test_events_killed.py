"""kill -9 while objects come and somebody follows: the stream has no gap, no repeat, and tells the truth."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts

ROUNDS = 2
SENDERS = 4
PATIENCE_SECONDS = 20


class Follower:
    """Follows the stream over any number of lives of the server, by the id of what it saw last."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.last_id = "0"

    async def follow(self, port: int) -> None:
        """Until the connection is lost."""
        url = f"http://127.0.0.1:{port}/events"
        headers = {"last-event-id": self.last_id}
        with contextlib.suppress(httpx.HTTPError):
            async with (
                httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
                client.stream("GET", url, headers=headers) as response,
            ):
                block: dict[str, str] = {}
                async for line in response.aiter_lines():
                    if line:
                        name, _, value = line.partition(": ")
                        block[name] = value
                        continue
                    # Only a whole one counts, as a browser does it.
                    if "id" in block:
                        self.last_id = block["id"]
                    if "data" in block:
                        assert block["event"] != "gap"
                        self.events.append(json.loads(block["data"]))
                    block = {}

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["kind"] == kind]


async def _send_until_killed(port: int, first: int, acknowledged: set[str]) -> None:
    with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
        async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
            image = ct_image(seed=first)
            await peer.associate(storage_contexts(image))
            for number in range(first, first + 1_000):
                image = ct_image(seed=number)
                assert await peer.store(image) == 0x0000
                acknowledged.add(image.sop_instance_uid)


def _log(data_dir: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(data_dir / "index" / "index.sqlite")) as database:
        return database.execute("SELECT event_id, kind FROM events ORDER BY event_id").fetchall()


@pytest.mark.slow
async def test_a_follower_misses_nothing_and_gets_nothing_twice_whenever_the_server_is_killed(
    tmp_path: Path,
) -> None:
    moment, follower = random.Random(), Follower()
    acknowledged: set[str] = set()
    daemon = DaemonProcess(tmp_path, environment={"SCP_SERVER_OUTBOX__STUDY_SETTLE_SECONDS": "1000"})
    for round_number in range(ROUNDS):
        ready = await asyncio.to_thread(daemon.start)
        following = asyncio.create_task(follower.follow(ready.http_port))
        async with asyncio.TaskGroup() as senders:
            for sender in range(SENDERS):
                first = (round_number * SENDERS + sender) * 1_000
                senders.create_task(_send_until_killed(ready.dicom_port, first, acknowledged))
            await asyncio.sleep(moment.uniform(0.2, 0.6))
            if round_number == ROUNDS - 1:
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while len(acknowledged) <= ROUNDS * SENDERS:
                        await asyncio.sleep(0.01)
            await asyncio.to_thread(daemon.kill)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await following
    ready = await asyncio.to_thread(daemon.start)
    following = asyncio.create_task(follower.follow(ready.http_port))
    async with await ScriptedPeer.connect("127.0.0.1", ready.dicom_port) as peer:
        image = ct_image(seed=999_999)
        await peer.associate(storage_contexts(image))
        assert await peer.store(image) == 0x0000
        acknowledged.add(image.sop_instance_uid)
        await peer.release()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not any(event["outcome"] == "released" for event in follower.of("association.ended")):
            await asyncio.sleep(0.01)
    await asyncio.to_thread(daemon.terminate)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await following

    log = _log(tmp_path)
    assert [(event["event_id"], event["kind"]) for event in follower.events] == log
    assert [event_id for event_id, _ in log] == list(range(1, len(log) + 1))
    stored = [event["sop_instance_uid"] for event in follower.of("object.stored")]
    assert len(stored) == len(set(stored))
    assert acknowledged <= set(stored)
    began = {event["association_id"]: event["event_id"] for event in follower.of("association.accepted")}
    ended = {event["association_id"]: event for event in follower.of("association.ended")}
    assert began.keys() == ended.keys()
    assert [event["outcome"] for event in ended.values()].count("crashed") > 0
    assert follower.events[-1]["outcome"] == "released"
    for association_id, end in ended.items():
        parts = [event for event in follower.of("object.stored") if event["association_id"] == association_id]
        assert end["parts"] == len(parts)
        assert all(began[association_id] < part["event_id"] < end["event_id"] for part in parts)
