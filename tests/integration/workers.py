"""A daemon of several workers, and associations that are known to be with this one or that."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import httpx
from prometheus_client.parser import text_string_to_metric_families as parse_text

from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.retrieving_peer import RetrievingPeer
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from scp_server.testing.wire import ProposedContext

WORKERS = 3
WAIT_SECONDS = 20.0
MOST_ATTEMPTS = 200
PROCESS = {
    "SCP_SERVER_STORAGE__DURABILITY": "process",
    "SCP_SERVER_LOG__LEVEL": "debug",
    "SCP_SERVER_INDEX__COMPARE_AT_START": "false",
    "SCP_SERVER_WORKER_SILENCE_SECONDS": "5",
}
_numbers = itertools.count()
T = TypeVar("T")


class Workers:
    """The daemon, seen by its workers. Each association made here has an AE title that nobody else has."""

    def __init__(self, daemon: DaemonProcess) -> None:
        self.daemon = daemon
        self.address = (daemon.ready.dicom_host, daemon.ready.dicom_port)

    def satellites(self) -> dict[int, int]:
        """Process ids of the satellites by their numbers, as the log has them."""
        events = ("worker.started", "worker.restarted")
        records = [each for each in self.daemon.log_records() if each["event"] in events]
        return {record["number"]: record["worker_pid"] for record in records}

    async def logged(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first log record of this event with these fields, once it is there."""
        return await self.until(
            lambda: next((r for r in self.daemon.log_records(event) if fields.items() <= r.items()), None)
        )

    async def until(self, found: Callable[[], T | None]) -> T:
        """What `found` gives, once it gives something."""
        async with asyncio.timeout(WAIT_SECONDS):
            while (answer := found()) is None:
                await asyncio.sleep(0.01)
        return answer

    async def worker_of(self, title: str) -> int:
        """Which worker let this AE title in."""
        record = await self.logged("association.accepted", calling_ae_title=title)
        return int(record["worker"])

    async def on_each(
        self, stack: AsyncExitStack, contexts: Sequence[ProposedContext], user_items: bytes = b""
    ) -> dict[int, RetrievingPeer]:
        """An association with each worker, by their numbers."""
        found: dict[int, RetrievingPeer] = {}
        for _ in range(MOST_ATTEMPTS):
            title = f"PEER{next(_numbers)}"
            peer = await RetrievingPeer.connect(*self.address)
            await peer.associate(contexts, calling_ae_title=title, user_items=user_items)
            worker = await self.worker_of(title)
            if worker in found:
                await peer.release()
                await peer.close()
                continue
            found[worker] = await stack.enter_async_context(peer)
            if len(found) == WORKERS:
                return found
        raise AssertionError(f"of {MOST_ATTEMPTS} associations all were with workers {sorted(found)}")

    async def metrics(self) -> dict[str, float]:
        """Value of each series, by its name and label values."""
        host, port = self.daemon.ready.http_host, self.daemon.ready.http_port
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://{host}:{port}/metrics")).text
        return {
            " ".join([sample.name, *sample.labels.values()]): sample.value
            for family in parse_text(text)
            for sample in family.samples
        }


def is_gone(pid: int) -> bool:
    """Whether a process has ended, whoever was to wait for it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


async def let_in(address: tuple[str, int], title: str) -> ScriptedPeer | None:
    """An association of this title; None where it is rejected with 2/3/2."""
    peer = await ScriptedPeer.connect(*address)
    try:
        await peer.associate(storage_contexts(), calling_ae_title=title)
    except AssertionError:
        await peer.close()
        return None
    return peer
