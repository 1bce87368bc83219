"""The program of a satellite, alone; with a server it is tried by `tests/integration/test_workers.py`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from scp_server.observability.logs import captured_logs
from scp_server.runtime.server import Server
from scp_server.runtime.systemd import InheritedSockets
from scp_server.runtime.workers.worker_process import PROGRAM
from scp_server.settings import Settings
from scp_server.testing import wire
from scp_server.testing.scripted_peer import ScriptedPeer
from scp_server.testing.wire import ProposedContext

MakeSettings = Callable[..., Settings]
VERIFICATION = [ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))]
WAIT_SECONDS = 30


@pytest.mark.parametrize("last_words", [b"", b"\0\0\0\1x"], ids=["gone", "not understood"])
def test_it_ends_when_the_connection_to_the_primary_breaks(last_words: bytes) -> None:
    (control, control_there), (index, index_there) = socket.socketpair(), socket.socketpair()
    with control, index, control_there, index_there:
        passed = [control_there.fileno(), index_there.fileno()]
        satellite = subprocess.Popen(
            [sys.executable, "-m", PROGRAM, *map(str, passed), "-1", "-1", "-1"],
            pass_fds=passed,
            stderr=subprocess.DEVNULL,
        )
        control_there.close()
        control.sendall(last_words)
        if not last_words:
            control.close()
        with satellite:
            assert satellite.wait(WAIT_SECONDS) == 1


async def _echoed(server: Server, count: int) -> None:
    for _ in range(count):
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(VERIFICATION)
            assert await peer.echo() == 0x0000
            await peer.release()


async def test_a_server_in_a_program_has_workers_too(make_settings: MakeSettings) -> None:
    settings = make_settings(workers=2, listen={"host": "localhost"}, log={"level": "critical"})
    with captured_logs() as logs:
        async with Server(settings) as server:
            pids = server._workers.pids
            await _echoed(server, 30)
            await server._workers.look()
            samples = server._workers.samples()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pids[0], number)
            await _echoed(server, 10)
    ready = next(line for line in logs if line["event"] == "server.ready")
    assert ready["workers"] == 2
    assert samples["scp_associations_accepted_total", ()] > 0
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


async def test_workers_share_a_socket_that_was_inherited(make_settings: MakeSettings) -> None:
    inherited = socket.socket()
    inherited.bind(("127.0.0.1", 0))
    inherited.listen(100)
    inherited.setblocking(False)
    address = inherited.getsockname()
    async with Server(
        make_settings(workers=2, log={"level": "critical"}), InheritedSockets(dicom=inherited)
    ) as server:
        assert server.address == address
        accepted = 0.0
        async with asyncio.timeout(WAIT_SECONDS):
            while not accepted:
                await asyncio.gather(*(_echoed(server, 1) for _ in range(10)))
                await server._workers.look()
                accepted = server._workers.samples().get(("scp_associations_accepted_total", ()), 0.0)


async def test_a_start_that_fails_leaves_no_worker_behind(make_settings: MakeSettings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(make_settings(workers=2, listen={"port": port}, log={"level": "critical"}))
        with pytest.raises(Exception, match=r"listen: .*in use"):
            await server.start()
    assert not server._workers._processes
