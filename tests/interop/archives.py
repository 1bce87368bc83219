"""Real archives, DCMTK's dcmqrscp and Orthanc, and running our own commands against them."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scp_server.testing.objects import LATIN, Patient, ct_image

RequirePeer = Callable[[str, object], None]
START_SECONDS = 20
JANE = Patient("Doe^Jane", "PAT-1")
STUDIES = [("2.25.101", JANE, ("2.25.111", "2.25.112")), ("2.25.102", JANE, ("2.25.113",))]
FRENCH = ("2.25.103", LATIN, ("2.25.114",))
DCMQRSCP = """
NetworkTCPPort = {port}
MaxPDUSize = 16384
MaxAssociations = 16
HostTable BEGIN
viewer = (VIEWER, 127.0.0.1, {viewer_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
ARCHIVE {folder} RW (200, 1024mb) ANY
AETable END
"""


def objects() -> list[Any]:
    """Two images in each series."""
    found = []
    for study, patient, series_uids in [*STUDIES, FRENCH]:
        for series in series_uids:
            for image in (1, 2):
                found.append(
                    ct_image(
                        rows=2,
                        columns=2,
                        patient=patient,
                        study_instance_uid=study,
                        series_instance_uid=series,
                        sop_instance_uid=f"{series}.{image}",
                    )
                )
    return found


def free_port() -> int:
    """A port that nobody has, nor gets by asking for any: those are higher (ip_local_port_range of Linux)."""
    while True:
        port = random.randrange(20_000, 30_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@asynccontextmanager
async def running(*command: str | Path, port: int) -> AsyncIterator[None]:
    """A peer's daemon, from the moment that it accepts connections; terminated at the end."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(START_SECONDS):
            while True:
                assert process.returncode is None, f"{command} ended with {process.returncode}"
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError:
                    await asyncio.sleep(0.05)
                    continue
                writer.close()
                await writer.wait_closed()
                break
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(START_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


@dataclass(frozen=True)
class Archive:
    name: str
    ae_title: str
    port: int
    http_port: int = 0
    """Of Orthanc's REST interface."""

    async def rest(self, path: str, body: object = None) -> bytes:
        """What Orthanc answers to a GET, or to a POST of `body` as JSON."""
        data = None if body is None else json.dumps(body).encode()

        def ask() -> bytes:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.http_port}{path}", data, timeout=60
            ) as response:
                answer: bytes = response.read()
                return answer

        return await asyncio.to_thread(ask)


@dataclass(frozen=True)
class Done:
    """How a command of ours ended."""

    code: int | None
    output: str
    errors: str

    @property
    def matches(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.output)
        return found

    def values(self, tag: str) -> list[Any]:
        """The first value of an element in each match."""
        return sorted(match[tag]["Value"][0] for match in self.matches)


async def ask(archive: Archive, *arguments: str, command: str = "find") -> Done:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "scp_server",
        command,
        "--port",
        str(archive.port),
        "--ae-title",
        archive.ae_title,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    return Done(process.returncode, output.decode(), errors.decode())


@asynccontextmanager
async def dcmqrscp(require: RequirePeer, folder: Path, viewer_port: int = 104) -> AsyncIterator[Archive]:
    """VIEWER is its only move destination."""
    require("DCMTK's dcmqrscp", shutil.which("dcmqrscp"))
    port = free_port()
    (folder / "database").mkdir()
    configuration = folder / "dcmqrscp.cfg"
    configuration.write_text(DCMQRSCP.format(port=port, folder=folder / "database", viewer_port=viewer_port))
    async with running("dcmqrscp", "-c", configuration, port=port):
        yield Archive("dcmqrscp", "ARCHIVE", port)


@asynccontextmanager
async def orthanc(
    require: RequirePeer, folder: Path, viewer_port: int = 104, **more: object
) -> AsyncIterator[Archive]:
    """VIEWER is its only move destination; `more` are settings of its own."""
    program = shutil.which("Orthanc", path=os.environ.get("PATH", "") + ":/usr/sbin")
    require("Orthanc", program)
    assert program is not None
    port = free_port()
    configuration = folder / "orthanc.json"
    settings: dict[str, Any] = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": free_port(),
        "RemoteAccessAllowed": False,
        "DicomPort": port,
        "DicomAet": "ORTHANC",
        "DicomAlwaysAllowStore": True,
        "DicomAlwaysAllowFind": True,
        "DicomAlwaysAllowGet": True,
        "DicomAlwaysAllowMove": True,
        "DicomModalities": {"viewer": ["VIEWER", "127.0.0.1", viewer_port]},
        "Plugins": [],
        **more,
    }
    configuration.write_text(json.dumps(settings))
    async with running(program, configuration, port=settings["DicomPort"]):
        yield Archive("Orthanc", "ORTHANC", settings["DicomPort"], settings["HttpPort"])
