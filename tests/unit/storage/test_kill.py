"""A process that stores with eight writers is killed at random moments; its heir looks at what is left, and
has another layout."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from threading import Timer

import pytest

import scp_server
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.testing.stored_objects import content, in_flight, listed

_CHILD = """
import asyncio, os, random, sys, time
from hashlib import sha256
from pathlib import Path
from scp_server.storage.base import ObjectKey
from scp_server.storage.filesystem import Durability, FilesystemStorage, FilesystemStorageConfig
from scp_server.storage.template import LayoutTemplate

root, durability, seed = Path(sys.argv[1]), Durability(sys.argv[2]), int(sys.argv[3])
TEMPLATES = (
    "{study}/{series}/{instance}",
    "{patient}/{modality}/{study_date}/{study_uid}/{series_uid}/{instance_uid}",
    "{series}/{patient}",
)

def say(text):
    os.write(1, (text + "\\n").encode())

async def sender(storage, number):
    chance = random.Random(seed * 100 + number)
    count = 0
    while True:
        count += 1
        arrival = f"{time.time_ns():016x}{seed:02x}{number:02x}{count:06x}"
        data = chance.randbytes(chance.choice([100, 5_000, 60_000, 200_000]))
        writer = await storage.begin(arrival, sha256(data).digest())
        for start in range(0, len(data), 30_000):
            await writer.write([memoryview(data)[start : start + 30_000]])
        series = f"2.{number}.{count // 20}"
        stored = await writer.commit(ObjectKey(f"1.{number}", series, f"3.{count}", arrival))
        say(f"stored {stored.location}")
        await asyncio.sleep(0)
        if chance.random() < 0.9:
            say(f"indexed {stored.location}")
            await storage.indexed(stored)

async def main():
    layout = LayoutTemplate(TEMPLATES[seed % 3])
    config = FilesystemStorageConfig(
        root, durability, reserve_bytes=0, write_buffer_bytes=65_536, layout=layout
    )
    storage = FilesystemStorage(config)
    await storage.open()
    say("ready")
    await asyncio.gather(*(sender(storage, number) for number in range(8)))

asyncio.run(main())
"""


def _run_and_kill(script: Path, root: Path, durability: Durability, seed: int, after_lines: int) -> list[str]:
    """The child's whole lines up to its death, which comes when it has said so many."""
    environment = {**os.environ, "PYTHONPATH": str(Path(scp_server.__file__).parents[1])}
    command = [sys.executable, str(script), str(root), durability.value, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        hung = Timer(30, process.kill)
        hung.start()
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(after_lines)]
            assert process.poll() is None, "the child ended by itself"
            process.kill()
            lines += process.stdout.readlines()
        finally:
            hung.cancel()
            process.kill()
    return [line.decode().strip() for line in lines if line.endswith(b"\n")]


@pytest.mark.parametrize("durability", list(Durability))
async def test_kill_9_loses_nothing_acknowledged_and_shows_nothing_half_done(
    root: Path, tmp_path: Path, durability: Durability
) -> None:
    script = tmp_path / "child.py"
    script.write_text(_CHILD)
    acknowledged: set[str] = set()
    unknown = 0
    chance = random.Random(20)
    for seed in range(5):
        lines = _run_and_kill(script, root, durability, seed, chance.randrange(2, 400))
        stored = {line.split()[1] for line in lines if line.startswith("stored ")}
        indexed = {line.split()[1] for line in lines if line.startswith("indexed ")}
        storage = FilesystemStorage(FilesystemStorageConfig(root, durability, reserve_bytes=0))
        await storage.open()
        assert not list((root / "incoming").glob("*.part"))
        visible = set(await listed(storage))
        flying = await in_flight(storage)
        assert acknowledged | stored <= visible
        # What the index cannot know: stored and not reported, or visible and never told of at all.
        assert (visible - acknowledged - indexed) <= flying <= visible
        for location in visible - acknowledged:
            data = await content(storage, location)
            assert sha256(data[32:]).digest() == data[:32]
        unknown += len(visible - acknowledged - indexed)
        acknowledged |= visible
        await storage.settled()
        await storage.close()
        assert not list((root / "incoming").iterdir())
    assert acknowledged
    assert unknown, "no round ended with an object in flight"
