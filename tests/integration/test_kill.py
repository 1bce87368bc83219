"""kill -9 under load: nothing acknowledged is lost, nothing half-done is seen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from scp_server.objects.part10 import read_file_meta
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts

SENDERS = 8
ROUNDS = int(os.environ.get("SCP_KILL_ROUNDS", "6"))
READY_SECONDS = 20.0


class Daemon:
    """`scp-server serve` in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port

    @classmethod
    async def start(cls, data_dir: Path, durability: str) -> Daemon:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "scp_server.cli.main", "serve",
            "--port", "0", "--http-port", "0", "--data-dir", str(data_dir), "--log-format", "json",
            env={**os.environ, "SCP_SERVER_STORAGE__DURABILITY": durability},
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        async with asyncio.timeout(READY_SECONDS):
            while line := await process.stderr.readline():
                event = json.loads(line)
                if event["event"] == "server.ready":
                    daemon = cls(process, event["dicom_port"])
                    daemon.reading = asyncio.create_task(daemon._read_on())
                    return daemon
        raise AssertionError(f"the daemon ended with {await process.wait()} before it was ready")

    async def _read_on(self) -> None:
        assert self.process.stderr is not None
        while await self.process.stderr.readline():
            pass

    async def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self.reading

    async def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = await self.process.wait()
        await self.reading
        return code


async def _send_until_killed(
    port: int, objects: AsyncIterator[EncodedObject], kept: dict[str, bytes]
) -> None:
    """Send objects one after another, noting each that was acknowledged."""
    with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
        async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
            first = await anext(objects)
            await peer.associate(storage_contexts(first))
            while True:
                assert await peer.store(first) == 0
                kept[first.sop_instance_uid] = first.dataset
                first = await anext(objects)


async def _objects(seed: int) -> AsyncIterator[EncodedObject]:
    """Small and larger CT slices, of a few series."""
    number = 0
    while True:
        number += 1
        side = 256 if number % 3 == 0 else 16
        yield ct_image(rows=side, columns=side, seed=seed * 100_000 + number)


def _stored(data_dir: Path) -> dict[str, list[bytes]]:
    """Every object's data set on disk, by SOP Instance UID; every file must be whole enough to be read."""
    found: dict[str, list[bytes]] = {}
    for path in sorted((data_dir / "objects").rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            meta = read_file_meta(data)
            found.setdefault(meta.sop_instance_uid, []).append(data[meta.dataset_offset_bytes :])
    return found


def _indexed(data_dir: Path) -> set[str]:
    with contextlib.closing(sqlite3.connect(data_dir / "index" / "index.sqlite")) as database:
        return {uid for (uid,) in database.execute("SELECT sop_instance_uid FROM instances")}


@pytest.mark.slow
@pytest.mark.parametrize("durability", ["full", "process"])
async def test_nothing_acknowledged_is_lost_and_nothing_half_done_is_seen(
    tmp_path: Path, durability: str
) -> None:
    kept: dict[str, bytes] = {}
    moment = random.Random(20)
    for round_number in range(ROUNDS):
        daemon = await Daemon.start(tmp_path, durability)
        async with asyncio.TaskGroup() as senders:
            for sender in range(SENDERS):
                senders.create_task(
                    _send_until_killed(daemon.port, _objects(round_number * SENDERS + sender), kept)
                )
            await asyncio.sleep(moment.uniform(0.05, 0.6))
            await daemon.kill()

    daemon = await Daemon.start(tmp_path, durability)
    assert await daemon.terminate() == 0
    stored, indexed = _stored(tmp_path), _indexed(tmp_path)
    assert len(kept) > ROUNDS * SENDERS, "the daemon was killed before it did any work"
    assert {uid: stored.get(uid) for uid in kept} == {uid: [dataset] for uid, dataset in kept.items()}
    assert indexed == set(stored), "index and files differ"
    assert not list((tmp_path / "incoming").glob("*.part"))
