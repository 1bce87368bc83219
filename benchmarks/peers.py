"""Servers started on loopback, each with an empty archive of its own, to be measured side by side.

A peer that is not installed is None. Whoever starts one ends it: every `Peer` is a context manager.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from scp_server.testing.daemon import DaemonProcess

START_SECONDS = 60.0
AE_TITLE = "ARCHIVE"
NOWHERE: Mapping[str, int] = {}


def free_port() -> int:
    """A port of loopback that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Address:
    """How a server is called; it lets `calling_ae_title` in."""

    port: int
    called_ae_title: str = AE_TITLE
    calling_ae_title: str = "BENCH"


@dataclass(frozen=True, slots=True)
class Peer:
    """A running server."""

    name: str
    address: Address
    pid: int
    """Of its first process; it may have children."""
    folder: Path
    """Where all of its files are."""
    stop: Callable[[], object]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


Destinations = Mapping[str, int]
"""Move destinations on loopback: their ports by AE title."""


def start_ours(
    folder: Path, settings: Mapping[str, str] | None = None, destinations: Destinations = NOWHERE
) -> Peer:
    """This server, with its defaults but for `durability = process`; `settings` are variables."""
    environment = {"SCP_SERVER_STORAGE__DURABILITY": "process", **(settings or {})}
    remotes = [f"--remote={title}=127.0.0.1:{port}" for title, port in destinations.items()]
    daemon = DaemonProcess(folder / "data", *remotes, environment=environment)
    ready = daemon.start()
    address = Address(ready.dicom_port, "SCP_SERVER")
    return Peer("scp_server", address, ready.pid, daemon.data_dir, daemon.terminate)


def start_orthanc(folder: Path, *, sync: bool = False, destinations: Destinations = NOWHERE) -> Peer | None:
    """Orthanc with its own index."""
    command = shutil.which("Orthanc")
    if command is None:
        return None
    port, http_port = free_port(), free_port()
    configuration = folder / "orthanc.json"
    configuration.write_text(
        json.dumps(
            {
                "Name": "BENCH",
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "index"),
                "DicomAet": AE_TITLE,
                "DicomPort": port,
                "DicomCheckCalledAet": False,
                "DicomAlwaysAllowEcho": True,
                "DicomAlwaysAllowStore": True,
                "DicomAlwaysAllowFind": True,
                "DicomAlwaysAllowGet": True,
                "DicomAlwaysAllowMove": True,
                "DicomModalities": {
                    title: [title, "127.0.0.1", number] for title, number in destinations.items()
                },
                "HttpPort": http_port,
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "SyncStorageArea": sync,
                "LimitFindResults": 0,
                "LimitFindInstances": 0,
                "Plugins": [],
            }
        ),
        encoding="utf-8",
    )
    return _started("Orthanc" + (" (sync)" if sync else ""), [command, str(configuration)], port, folder)


def start_dcmqrscp(folder: Path, *, destinations: Destinations = NOWHERE) -> Peer | None:
    """DCMTK's dcmqrscp, a process for each association."""
    command = shutil.which("dcmqrscp")
    if command is None:
        return None
    port, storage = free_port(), folder / "storage"
    storage.mkdir()
    configuration = folder / "dcmqrscp.cfg"
    hosts = "".join(
        f"{title.lower()} = ({title}, 127.0.0.1, {number})\n" for title, number in destinations.items()
    )
    configuration.write_text(
        f"NetworkTCPPort = {port}\nMaxPDUSize = 131072\nMaxAssociations = 64\n"
        f"HostTable BEGIN\n{hosts}HostTable END\nVendorTable BEGIN\nVendorTable END\n"
        f"AETable BEGIN\n{AE_TITLE} {storage} RW (100000, 100000mb) ANY\nAETable END\n",
        encoding="ascii",
    )
    return _started("dcmqrscp", [command, "-c", str(configuration)], port, folder)


def start_qrscp(folder: Path, *, destinations: Destinations = NOWHERE) -> Peer | None:
    """pynetdicom's qrscp."""
    port = free_port()
    configuration = folder / "qrscp.ini"
    sections = "".join(
        f"[{title}]\naddress: 127.0.0.1\nport: {number}\n" for title, number in destinations.items()
    )
    configuration.write_text(
        f"[DEFAULT]\nae_title: {AE_TITLE}\nport: {port}\nmax_pdu: 131072\nacse_timeout: 30\n"
        "dimse_timeout: 60\nnetwork_timeout: 600\nbind_address: 127.0.0.1\n"
        f"instance_location: {folder / 'instances'}\ndatabase_location: {folder / 'instances.sqlite'}\n"
        f"{sections}",
        encoding="ascii",
    )
    command = [sys.executable, "-m", "pynetdicom", "qrscp", "-c", str(configuration), "--quiet"]
    return _started("qrscp", command, port, folder)


def _started(name: str, command: list[str], port: int, folder: Path) -> Peer:
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TCP_NODELAY": "1"},
            start_new_session=True,
        )

    def stop() -> None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return Peer(name, Address(port), process.pid, folder, stop)
    stop()
    raise RuntimeError(
        f"{name} did not start: {(folder / 'output.txt').read_text('utf-8', 'replace')[-500:]}"
    )
