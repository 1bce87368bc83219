"""What systemd passes and what it is told, with a socket of the test in systemd's place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scp_server.observability.logs import captured_logs
from scp_server.runtime.daemon import serve
from scp_server.runtime.server import Server
from scp_server.runtime.systemd import InheritedSockets, Notifier, inherited_sockets
from scp_server.settings import Settings
from scp_server.testing import wire
from scp_server.testing.scripted_peer import ScriptedPeer
from scp_server.testing.wire import ProposedContext

MakeSettings = Callable[..., Settings]
VERIFICATION = [ProposedContext(1, wire.VERIFICATION, ("1.2.840.10008.1.2",))]
WAIT_SECONDS = 20.0


class FakeManager:
    """The receiving end of NOTIFY_SOCKET: hears what systemd would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)

    async def hear(self) -> list[str]:
        """The next message, as its assignments."""
        async with asyncio.timeout(WAIT_SECONDS):
            message = await asyncio.get_running_loop().sock_recv(self.socket, 4096)
        return message.decode().split("\n")

    async def hear_until(self, assignment: str) -> list[str]:
        """The first message that has `assignment`."""
        while assignment not in (message := await self.hear()):
            pass
        return message


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[FakeManager]:
    fake = FakeManager(tmp_path / "notify")
    with contextlib.closing(fake.socket):
        yield fake


def _listening() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def _inherited_in_a_child(descriptors: str, names: str, *, listens: bool = True) -> str:
    """What a process says whose descriptors 3 and on are sockets: it is a process of its own, as there the
    numbers are free."""
    script = (
        "import os, socket, sys\n"
        "from scp_server.errors import ConfigurationError\n"
        "from scp_server.runtime.systemd import inherited_sockets\n"
        f"listeners = [socket.socket() for _ in range(2)]\n"
        f"[one.bind(('127.0.0.1', 0)) or ({listens} and one.listen()) for one in listeners]\n"
        "copies = [os.dup2(one.detach(), 50 + n) for n, one in enumerate(listeners)]\n"
        "[os.dup2(copy, 3 + n) for n, copy in enumerate(copies)]\n"
        f"environment = {{'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': {descriptors!r},"
        f" 'LISTEN_FDNAMES': {names!r}}}\n"
        "try:\n    found = inherited_sockets(environment)\n"
        "except ConfigurationError as error:\n    print(error)\n    os._exit(0)\n"
        "for one in (found.dicom, found.http):\n"
        "    print(one and (one.fileno(), one.get_inheritable(), one.gettimeout()))\n"
        "sys.stdout.flush()\nos._exit(0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_sockets_are_found_by_name_and_kept_from_children() -> None:
    assert _inherited_in_a_child("2", "http:dicom") == "(4, False, 0.0)\n(3, False, 0.0)\n"
    assert _inherited_in_a_child("1", "dicom") == "(3, False, 0.0)\nNone\n"


@pytest.mark.parametrize(
    ("descriptors", "names", "text"),
    [
        ("1", "", "called neither dicom nor http"),
        ("1", "web", "'web' is called neither"),
        ("2", "dicom:dicom", "two sockets are called dicom"),
        ("17", "dicom", "no number of at most 16"),
        ("many", "dicom", "no number of at most 16"),
        ("-1", "dicom", "no number of at most 16"),
    ],
)
def test_sockets_that_cannot_be_meant_are_refused(descriptors: str, names: str, text: str) -> None:
    assert text in _inherited_in_a_child(descriptors, names)


def test_a_socket_that_does_not_listen_is_refused() -> None:
    assert "does not listen" in _inherited_in_a_child("1", "dicom", listens=False)


def test_sockets_for_another_process_are_left_alone() -> None:
    environment = {"LISTEN_PID": str(os.getpid() + 1), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "dicom"}
    assert inherited_sockets(environment) == InheritedSockets()
    assert inherited_sockets({}) == InheritedSockets()


async def test_a_server_accepts_on_the_sockets_that_it_was_given(make_settings: MakeSettings) -> None:
    sockets = InheritedSockets(_listening(), _listening())
    assert sockets.dicom is not None
    assert sockets.http is not None
    addresses = sockets.dicom.getsockname(), sockets.http.getsockname()
    async with Server(make_settings(), sockets) as server:
        assert (server.address, server.http_address) == addresses
        async with await ScriptedPeer.connect(*server.address) as peer:
            await peer.associate(VERIFICATION)
            assert await peer.echo() == 0x0000
    for host, port in addresses:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)


async def test_a_wrong_socket_ends_the_start_with_exit_2(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "telnet")
    with captured_logs() as logs:
        assert await serve(make_settings()) == 2
    assert "'telnet' is called neither" in logs[-1]["error"]


async def test_systemd_hears_ready_reload_and_stop_and_the_watchdog_is_fed(
    make_settings: MakeSettings, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    settings = make_settings()
    with captured_logs():
        running = asyncio.create_task(serve(settings, lambda: settings))
        ready = await manager.hear_until("READY=1")
        assert ready[1].startswith("STATUS=Accepting DICOM on 127.0.0.1 port ")
        for _ in range(3):
            await manager.hear_until("WATCHDOG=1")
        os.kill(os.getpid(), signal.SIGHUP)
        reloading = await manager.hear_until("RELOADING=1")
        assert reloading[1].startswith("MONOTONIC_USEC=")
        await manager.hear_until("READY=1")
        os.kill(os.getpid(), signal.SIGTERM)
        await manager.hear_until("STOPPING=1")
        assert await running == 0


async def test_systemd_hears_why_the_server_did_not_start(
    make_settings: MakeSettings, manager: FakeManager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(manager.path))
    (tmp_path / "data").write_text("a file")
    with captured_logs():
        assert await serve(make_settings()) == 2
    assert (await manager.hear())[0].startswith("STATUS=Not started: data_dir: cannot use ")


async def test_a_loop_that_hangs_does_not_feed_the_watchdog(manager: FakeManager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "100000"})
    notifier.feed_watchdog()
    assert await manager.hear() == ["WATCHDOG=1"]
    deadline = asyncio.get_running_loop().time() + 0.3
    while asyncio.get_running_loop().time() < deadline:
        pass  # hangs: no timer runs
    with pytest.raises(BlockingIOError):
        manager.socket.recv(4096)
    assert await manager.hear() == ["WATCHDOG=1"]
    notifier.close()


async def test_a_status_is_one_line(manager: FakeManager) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.path)})
    notifier.status("a\nREADY=1")
    notifier.close()
    assert await manager.hear() == ["STATUS=a READY=1"]


async def test_an_abstract_socket_is_reached() -> None:
    name = f"scp-server-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name)
        receiver.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}"})
        notifier.ready("x")
        notifier.close()
        assert receiver.recv(4096) == b"READY=1\nSTATUS=x"


async def test_a_manager_that_is_gone_is_logged_once_and_stops_nobody(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    with captured_logs() as logs:
        notifier.ready("x")
        notifier.status("y")
    notifier.close()
    assert [record["event"] for record in logs] == ["systemd.not_told"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "relative"},
    ],
)
async def test_a_watchdog_that_is_not_ours_is_not_fed(
    manager: FakeManager, environment: dict[str, str]
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(manager.path), **environment})
    notifier.feed_watchdog()
    with pytest.raises(BlockingIOError):
        manager.socket.recv(4096)
    notifier.close()
