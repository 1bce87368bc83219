"""The real DICOS toolkit's server as the destination of a C-MOVE: CT, DX, TDR, and both sections of a CT."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from scp_server import Requestor
from scp_server.errors import RetrieveFailed
from scp_server.net.retrieving import RetrieveResult
from scp_server.testing.daemon import DaemonProcess
from scp_server.testing.dataset_encoder import TransferSyntax
from scp_server.testing.dicos_objects import dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject

pytestmark = pytest.mark.interop

SERVER = Path(__file__).with_name("dicos_server.py")
EXPLICIT = TransferSyntax.EXPLICIT_VR_LITTLE_ENDIAN.value
STUDY_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
FIRST, SECOND = two_section_ct()
SCAN = [FIRST, SECOND, dicos_dx(), dicos_tdr(FIRST)]


@dataclass(slots=True)
class Toolkit:
    """The toolkit's server, and what it has said once it has ended."""

    port: int
    output: str = ""


@contextlib.asynccontextmanager
async def toolkit() -> AsyncIterator[Toolkit]:
    """Run it. It reads the clock of the machine's zone, wrongly, hence UTC."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        running = Toolkit(free.getsockname()[1])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SERVER),
        str(running.port),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "TZ": "UTC"},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            while b"listening" not in await process.stdout.readline():
                assert process.returncode is None
        yield running
    finally:
        try:
            async with asyncio.timeout(30):
                running.output = (await process.communicate(b""))[0].decode(errors="replace")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@pytest.fixture(autouse=True)
def installed(require_peer: Callable[[str, object], None]) -> None:
    require_peer("the DICOS toolkit (pydicos)", importlib.util.find_spec("pyDICOS"))


def remote(port: int, application_context: str = "dicos") -> dict[str, str]:
    """The daemon's environment for the toolkit as a remote."""
    entry = {
        "ae_title": "DCSSRV",
        "host": "127.0.0.1",
        "port": port,
        "application_context": application_context,
    }
    return {"SCP_SERVER_REMOTES": json.dumps([entry])}


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def store(port: int, *objects: EncodedObject) -> None:
    kinds = dict.fromkeys((one.sop_class_uid, (one.transfer_syntax_uid,)) for one in objects)
    async with Requestor("127.0.0.1", port, contexts=list(kinds)) as association:
        for one in objects:
            result = await association.store(
                one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, _pieces(one.dataset)
            )
            assert result.status == 0x0000


async def move(port: int) -> RetrieveResult:
    """Have everything of the scan sent to the toolkit."""
    async with Requestor("127.0.0.1", port, contexts=[(STUDY_MOVE, [EXPLICIT])]) as association:
        moving = association.move({"StudyInstanceUID": FIRST.study_instance_uid}, destination="DCSSRV")
        with contextlib.suppress(RetrieveFailed):
            async for _ in moving:
                pass
        assert moving.result is not None
        return moving.result


@pytest.mark.parametrize("associations", [1, 4])
async def test_it_takes_ct_dx_and_tdr_and_both_sections(
    start_daemon: Callable[..., DaemonProcess], associations: int
) -> None:
    async with toolkit() as running:
        environment = remote(running.port) | {"SCP_SERVER_RETRIEVE__ASSOCIATIONS": str(associations)}
        daemon = await asyncio.to_thread(start_daemon, environment=environment)
        await store(daemon.ready.dicom_port, *SCAN)
        result = await move(daemon.ready.dicom_port)
        counters = result.counters
        assert (result.status, counters.completed, counters.failed, counters.warning) == (0x0000, 4, 0, 0)
    if associations == 1:
        # Of several, those that are not needed any more are aborted, which it calls an error.
        assert "Error" not in running.output


async def test_it_rejects_dicoms_own_application_context(start_daemon: Callable[..., DaemonProcess]) -> None:
    async with toolkit() as running:
        daemon = await asyncio.to_thread(start_daemon, environment=remote(running.port, "dicom"))
        await store(daemon.ready.dicom_port, FIRST)
        result = await move(daemon.ready.dicom_port)
        assert (result.status, result.counters.failed) == (0xA702, 1)
        (line,) = daemon.log_records("remote.unreachable")
        assert "result 1, source 1, reason 2" in line["error"]
    assert "Error: Unsupported DICOS Version" in running.output
