"""What the tests of faults share: settings, associations, disks of their own, and going on afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx

from scp_server import Server, Settings
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts

OUT_OF_RESOURCES = 0xA700
DISK_BYTES = 8 << 20
HANGING_DAEMON = """
import os, sys, threading
from scp_server.cli.main import main
from scp_server.web.health import HealthState

real, hangs = getattr(os, sys.argv[1]), False


def call(target, *more, **named):
    name = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
    if hangs and name.endswith(sys.argv[2]):
        threading.Event().wait()
    return real(target, *more, **named)


setattr(os, sys.argv[1], call)
ready = HealthState.ready


def ready_then_hang(state):
    global hangs
    ready(state)
    hangs = True


HealthState.ready = ready_then_hang
main(sys.argv[3:])
"""


def settings_of(
    data_dir: Path,
    *,
    busy_timeout_seconds: float = 0.2,
    durability: str = "full",
    reserve_bytes: int = 0,
    write_buffer_bytes: int = 1 << 20,
) -> Settings:
    """Free loopback ports, and a disk that may be filled to its last byte."""
    sections = {
        "listen": {"port": 0},
        "http": {"port": 0},
        "data_dir": data_dir,
        "drain_timeout_seconds": 2,
        "storage": {
            "durability": durability,
            "reserve_bytes": reserve_bytes,
            "write_buffer_bytes": write_buffer_bytes,
        },
        "index": {"busy_timeout_seconds": busy_timeout_seconds},
    }
    return Settings(**sections)  # type: ignore[arg-type]


def left_over(data_dir: Path) -> list[Path]:
    """Files of objects that were not finished."""
    return list(data_dir.rglob("*.part"))


async def associated(server: Server, *objects: EncodedObject) -> ScriptedPeer:
    """A peer with an association for these objects and for C-ECHO."""
    peer = await ScriptedPeer.connect(*server.address)
    await peer.associate(storage_contexts(*objects))
    return peer


async def until_stored(peer: ScriptedPeer, stored: EncodedObject, seconds: float) -> None:
    """Send until it is kept. Raises TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while (status := await peer.store(stored)) != 0x0000:
            assert status == OUT_OF_RESOURCES
            await asyncio.sleep(0.05)


async def expect_well(server: Server, *bystanders: ScriptedPeer) -> None:
    """The process is healthy, accepts, and answers echoes on associations that were open before a fault."""
    host, port = server.http_address
    async with httpx.AsyncClient() as client:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await client.get(f"http://{host}:{port}{path}")).status_code == 200
    for peer in bystanders:
        assert await peer.echo() == 0x0000
    async with await ScriptedPeer.connect(*server.address) as newcomer:
        await newcomer.associate(storage_contexts())
        assert await newcomer.echo() == 0x0000


async def no_deletion_is_left(data_dir: Path) -> None:
    """Returns once all that were decided are carried out. Raises TimeoutError."""
    async with asyncio.timeout(60):
        while list((data_dir / "deletions").glob("*")):
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside the block nothing can be made, removed or opened for writing below `folder`, a mount point.

    What is open stays writable: another mount of the same filesystem, read-only, lies over it. A remount
    would be refused while files are open for writing.
    """
    _mount("--bind", str(folder), str(folder))
    try:
        _mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


def hanging_program(name: str, suffix: str) -> tuple[str, ...]:
    """A daemon whose disk hangs for ever, once it is ready, in one kind of call on one kind of file."""
    return (sys.executable, "-c", HANGING_DAEMON, name, suffix)
