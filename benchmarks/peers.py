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
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from scp_server.testing.daemon import PROGRAM

TOP = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
STOP_SECONDS = 40.0
AE_TITLE = "ARCHIVE"
MOST_SENDERS = 64
"""How many associations a server that has a thread or a place for each is let serve at once."""
MAXIMUM_PDU_BYTES = 131_072
"""What each is let announce; DCMTK takes no more."""
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
    """This server, with its defaults but for `durability = process`; `settings` are variables.

    Its log goes into a file, as the output of the others does: nobody reads it while it is measured.
    """
    environment = {"SCP_SERVER_STORAGE__DURABILITY": "process", **(settings or {})}
    remotes = [f"--remote={title}=127.0.0.1:{port}" for title, port in destinations.items()]
    port, data = free_port(), folder / "data"
    command = [
        *(*PROGRAM, "serve", "--port", str(port), "--http-port", "0", "--data-dir", str(data)),
        *("--log-format", "json", *remotes),
    ]
    peer = _started("scp_server", command, port, folder, environment)
    return replace(peer, address=Address(port, "SCP_SERVER"), folder=data)


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
                # The defaults of both, 4 and 16384, would have most senders wait and every PDU be small.
                "DicomThreadsCount": MOST_SENDERS,
                "MaximumPduLength": MAXIMUM_PDU_BYTES,
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


def start_storescp(folder: Path, *, bit_preserving: bool = False, fork: bool = True) -> Peer | None:
    """DCMTK's storescp, without an index; with `fork` a process for each association, else one at a time."""
    more = ["--fork"] * fork + ["+B"] * bit_preserving
    return _start_dcmtk("storescp", folder, ["--accept-all", *more])


def start_dcmrecv(folder: Path) -> Peer | None:
    """DCMTK's dcmrecv with +B: one association after the other, without an index."""
    configuration = folder / "dcmrecv.cfg"
    configuration.write_text(_DCMRECV, encoding="ascii")
    return _start_dcmtk("dcmrecv", folder, ["+B", "-xf", str(configuration), "Bench"])


def _start_dcmtk(program: str, folder: Path, options: list[str]) -> Peer | None:
    command = shutil.which(program)
    if command is None:
        return None
    port, storage = free_port(), folder / "storage"
    storage.mkdir()
    settings = ["--quiet", "--aetitle", AE_TITLE, "--max-pdu", str(MAXIMUM_PDU_BYTES)]
    return _started(program, [command, *settings, *options, "-od", str(storage), str(port)], port, folder)


def start_pynetdicom(folder: Path) -> Peer:
    """pynetdicom's storescp, a thread for each of ten associations; without an index."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "pynetdicom", "storescp", str(port), "--quiet", "-ba", "127.0.0.1"),
        *("-aet", AE_TITLE, "-pdu", str(MAXIMUM_PDU_BYTES), "-od", str(folder / "storage")),
    ]
    return _started("pynetdicom", command, port, folder)


def start_sink(folder: Path) -> Peer:
    """What takes everything and keeps nothing (`benchmarks/sink.py`): how fast the load generator can be."""
    port = free_port()
    return _started("null sink", [sys.executable, "-m", "benchmarks.sink", str(port)], port, folder)


_DCMRECV = r"""
[[TransferSyntaxes]]
[Sent]
TransferSyntax1 = LocalEndianExplicit
TransferSyntax2 = LittleEndianImplicit
TransferSyntax3 = JPEG2000LosslessOnly
[[PresentationContexts]]
[Sent]
PresentationContext1 = VerificationSOPClass\Sent
PresentationContext2 = CTImageStorage\Sent
PresentationContext3 = EnhancedCTImageStorage\Sent
PresentationContext4 = BasicTextSRStorage\Sent
[[Profiles]]
[Bench]
PresentationContexts = Sent
"""
"""By itself dcmrecv takes no compressed object, and the largest are those."""


def _started(
    name: str,
    command: list[str],
    port: int,
    folder: Path,
    environment: Mapping[str, str] | None = None,
) -> Peer:
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "TCP_NODELAY": "1",
                "PYTHONPATH": os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")]),
                **(environment or {}),
            },
            start_new_session=True,
        )

    def stop() -> None:
        if process.poll() is not None:
            return
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_SECONDS)

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
