"""The units of `deploy/systemd`, as systemd's own tools see them, and a daemon that one of them starts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scp_server.runtime.process import open_files_needed
from scp_server.settings import load_settings
from scp_server.testing import wire
from scp_server.testing.scripted_peer import ScriptedPeer
from scp_server.testing.wire import ProposedContext

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "deploy" / "systemd"
MOST_EXPOSURE = 2.0
WAIT_SECONDS = 60.0
VERIFICATION = [ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))]
RequirePeer = Callable[[str, object], None]


def _service() -> dict[str, list[str]]:
    """The service's assignments, by name."""
    lines = (UNITS / "scp-server.service").read_text().splitlines()
    found: dict[str, list[str]] = {}
    for line in lines:
        if "=" in line and not line.startswith("#"):
            found.setdefault(line.partition("=")[0], []).append(line.partition("=")[2])
    return found


@pytest.fixture
def installed_units(tmp_path: Path, require_peer: RequirePeer) -> Path:
    """The units in a folder of their own, with a program that is there."""
    require_peer("systemd-analyze", shutil.which("systemd-analyze"))
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/scp-server/bin/scp-server", sys.executable)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


def _analyze(*arguments: str | Path) -> str:
    ended = subprocess.run(
        ["systemd-analyze", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
        env={**os.environ, "LC_ALL": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


@pytest.mark.interop
def test_systemd_finds_nothing_wrong_with_the_units(installed_units: Path) -> None:
    output = _analyze("verify", *sorted(installed_units.iterdir()))
    assert "scp-server" not in output


@pytest.mark.interop
def test_the_service_is_hardened(installed_units: Path) -> None:
    output = _analyze("security", "--offline=true", "--no-pager", installed_units / "scp-server.service")
    exposure = re.search(r"Overall exposure level for scp-server.service: ([0-9.]+)", output)
    assert exposure is not None, output
    assert float(exposure[1]) < MOST_EXPOSURE


def test_the_unit_agrees_with_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = _service()
    for assignment in service["Environment"][0].split():
        monkeypatch.setenv(*assignment.split("=", 1))
    config = tmp_path / "scp-server.toml"
    config.write_text("")
    settings = load_settings(config)
    assert str(settings.data_dir) == "/var/lib/" + service["StateDirectory"][0]
    stop_seconds = settings.drain_timeout_seconds + settings.close_timeout_seconds
    assert int(service["TimeoutStopSec"][0]) > stop_seconds
    limits = settings.limits
    needed = open_files_needed(limits.max_connections, limits.max_associations)
    assert int(service["LimitNOFILE"][0]) >= needed


class Activated:
    """`systemd-socket-activate` with two sockets, in whose place the daemon comes at the first connection.

    The tool takes no port 0, so the ports are such as were free a moment ago.
    """

    def __init__(self, data_dir: Path, output: Path) -> None:
        self.output = output
        self.ports = _free_ports(2)
        passed = [f"--setenv={name}" for name in ("PATH", "PYTHONPATH") if name in os.environ]
        listen = [f"--listen=127.0.0.1:{port}" for port in self.ports]
        command = ["systemd-socket-activate", *passed, *listen, "--fdname=dicom:http"]
        command += [sys.executable, "-m", "scp_server.cli.main", "serve", "--data-dir", str(data_dir)]
        # The ports of the options are not ours: what is inherited takes their place.
        command += ["--port", "1", "--http-port", "2", "--log-format", "json"]
        with output.open("wb") as stream:
            self.process = subprocess.Popen(command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL)

    async def listening(self) -> list[int]:
        """The ports for DICOM and HTTP, once both are open."""
        async with asyncio.timeout(WAIT_SECONDS):
            while " as 4." not in (output := self.output.read_text()):
                assert self.process.poll() is None, output
                await asyncio.sleep(0.01)
        return self.ports


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


@pytest.fixture
def activated(tmp_path: Path, require_peer: RequirePeer) -> Iterator[Activated]:
    require_peer("systemd-socket-activate", shutil.which("systemd-socket-activate"))
    activated = Activated(tmp_path / "data", tmp_path / "output")
    yield activated
    if activated.process.poll() is None:
        activated.process.kill()
    activated.process.wait(WAIT_SECONDS)


@pytest.mark.interop
async def test_a_daemon_that_the_first_connection_starts_serves_that_connection(activated: Activated) -> None:
    dicom_port, http_port = await activated.listening()
    async with await ScriptedPeer.connect("127.0.0.1", dicom_port, timeout_seconds=WAIT_SECONDS) as peer:
        await peer.associate(VERIFICATION)
        assert await peer.echo() == 0x0000
        await peer.release()
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()
    activated.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(activated.process.wait, WAIT_SECONDS) == 0, activated.output.read_text()
    assert '"event": "server.ready"' in activated.output.read_text()
