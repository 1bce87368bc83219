"""Thousands of idle associations in one process: what each costs, and that all are still served."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from scp_server.runtime.process import open_files_needed
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.scripted_peer import ScriptedPeer
from tests.integration.target import VERIFICATION, Target, hold_many

IDLE = 5_000
CROWD = 100
ASSOCIATION_BYTES = 20_000
MAX_ASSOCIATIONS, MAX_CONNECTIONS = 5_500, 5_800
CAPS = {
    "LIMITS__MAX_ASSOCIATIONS": str(MAX_ASSOCIATIONS),
    "LIMITS__MAX_ASSOCIATIONS_PER_PEER": str(MAX_ASSOCIATIONS),
    "LIMITS__MAX_ASSOCIATIONS_PER_ADDRESS": str(MAX_ASSOCIATIONS),
    "LIMITS__MAX_CONNECTIONS": str(MAX_CONNECTIONS),
    "TIMEOUTS__ARTIM_SECONDS": "30",
}


@pytest.fixture
def open_files() -> Iterator[None]:
    """As many as the daemon needs for so many associations, and so for this process's ends of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files_needed(MAX_CONNECTIONS, MAX_ASSOCIATIONS)
    if hard != resource.RLIM_INFINITY and hard < needed:
        pytest.skip(f"{IDLE} associations need {needed} open files, and the hard limit here is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def _idle(target: Target, count: int) -> list[ScriptedPeer]:
    async def associate() -> ScriptedPeer:
        peer = await target.connect()
        await peer.associate(VERIFICATION)
        return peer

    peers: list[ScriptedPeer] = []
    while len(peers) < count:
        peers += await asyncio.gather(*(associate() for _ in range(CROWD)))
    return peers


async def _all_answer(peers: list[ScriptedPeer]) -> None:
    for start in range(0, len(peers), CROWD):
        statuses = await asyncio.gather(*(peer.echo() for peer in peers[start : start + CROWD]))
        assert set(statuses) == {0x0000}


@pytest.mark.slow
@pytest.mark.usefixtures("open_files")
async def test_thousands_of_idle_associations_are_served_and_cost_20_kb_each(tmp_path: Path) -> None:
    environment = {f"SCP_SERVER_{name}": value for name, value in CAPS.items()}
    daemon = DaemonProcess(tmp_path, environment=environment)
    await asyncio.to_thread(daemon.start)
    peers: list[ScriptedPeer] = []
    try:
        target = Target(daemon)
        peers += await _idle(target, 2 * CROWD)
        await _all_answer(peers)
        before_bytes, before = target.usage.resident_bytes, len(peers)
        peers += await _idle(target, IDLE)
        await _all_answer(peers)
        each_bytes = (target.usage.resident_bytes - before_bytes) / (len(peers) - before)
        assert each_bytes <= ASSOCIATION_BYTES
        assert target.usage.threads < 50, "none of them has a thread"
        await target.answers_quickly()

        await hold_many(target, peers)
        await target.answers_quickly()
        await _all_answer(peers[: before + IDLE])
    finally:
        await asyncio.to_thread(daemon.kill)
        for peer in peers:
            with contextlib.suppress(OSError):
                await peer.close()
