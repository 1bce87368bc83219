"""A whole server in the test's own loop, on free loopback ports and a temporary data folder."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server, Settings
from scp_server.objects.part10 import read_file_meta
from tests.integration.faults import DISK_BYTES

StartServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Start servers with sections of settings by name (`limits={...}`) and callbacks; all are stopped at the
    end."""
    async with AsyncExitStack() as running:

        async def start(*, callbacks: Sequence[object] = (), **sections: Any) -> Server:
            chosen: dict[str, Any] = {
                "listen": {"port": 0},
                "http": {"port": 0},
                "data_dir": tmp_path / "data",
                "drain_timeout_seconds": 2,
                "storage": {"durability": "process"},
            }
            for name, section in sections.items():
                known = chosen.get(name)
                chosen[name] = {**known, **section} if isinstance(known, dict) else section
            return await running.enter_async_context(Server(Settings(**chosen), callbacks=callbacks))

        yield start


@pytest.fixture
async def server(start_server: StartServer) -> Server:
    """A server with its defaults."""
    return await start_server()


@pytest.fixture
def stored_datasets(tmp_path: Path) -> Callable[[], dict[str, list[bytes]]]:
    """The data sets below the data folder, by SOP Instance UID, in order of arrival."""

    def read() -> dict[str, list[bytes]]:
        found: list[tuple[str, str, bytes]] = []
        for path in (tmp_path / "data" / "objects").rglob("*.dcm"):
            data = path.read_bytes()
            meta = read_file_meta(data)
            found.append((meta.arrival_id or "", meta.sop_instance_uid, data[meta.dataset_offset_bytes :]))
        datasets: dict[str, list[bytes]] = {}
        for _arrival, uid, dataset in sorted(found):
            datasets.setdefault(uid, []).append(dataset)
        return datasets

    return read


@pytest.fixture
def small_disk(tmp_path: Path, require_peer: Callable[[str, object], None]) -> Iterator[Path]:
    """A filesystem of DISK_BYTES of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    require_peer("a tmpfs of its own (root and mount(8))", mounted)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
