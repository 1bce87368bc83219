"""`scp-server store` with what real sending needs, as a process of its own, into our daemon and others."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pynetdicom import AE, evt

from scp_server.testing import wire
from scp_server.testing.daemon import DaemonProcess, expect_stored, stored_files
from scp_server.testing.dicos_objects import dicos_ct, dicos_dx, dicos_tdr, two_section_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.objects import CT_IMAGE_STORAGE, ct_image
from scp_server.testing.recording_proxy import RecordingProxy
from scp_server.testing.scripted_peer import ScriptedPeer

DICOS = [dicos_ct(frames=3, rows=40, columns=40), dicos_dx(), *two_section_ct()]
DICOS.append(dicos_tdr(DICOS[0]))
PASSCODE = "open sesame"


class Done(NamedTuple):
    code: int | None
    document: dict[str, Any]
    output: str

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(file["outcome"] for file in self.document["files"])


async def start(port: int, *arguments: str | Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "scp_server", "store", "--port", str(port), "--json"),
        *map(str, arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def store(port: int, *arguments: str | Path) -> Done:
    process = await start(port, *arguments)
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    text = output.decode()
    return Done(process.returncode, json.loads(text) if text else {}, text + errors.decode())


def written(folder: Path, objects: list[EncodedObject]) -> Path:
    folder.mkdir()
    for number, one in enumerate(objects):
        (folder / f"{number:03}.dcm").write_bytes(one.part10())
    return folder


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[DaemonProcess]:
    with ExitStack() as stack:
        yield stack.enter_context(DaemonProcess(tmp_path / "data"))


@pytest.fixture
async def proxy(daemon: DaemonProcess) -> AsyncIterator[RecordingProxy]:
    async with RecordingProxy(daemon.ready.dicom_host, daemon.ready.dicom_port) as proxy:
        yield proxy


@pytest.mark.parametrize("context", ["dicom", "dicos-v03", "dicos-v02a", "dicos-v02a-alternate"])
@pytest.mark.parametrize("framing", ["standard", "glued"])
async def test_dicos_objects_arrive_in_either_framing_and_every_context(
    daemon: DaemonProcess, tmp_path: Path, context: str, framing: str
) -> None:
    folder = written(tmp_path / "out", DICOS)
    options = ("--application-context", context, "--framing", framing)
    done = await store(daemon.ready.dicom_port, "--input", folder, *options)
    assert done.code == 0, done.output
    assert done.outcomes == {"stored": len(DICOS)}
    expect_stored(daemon.data_dir, DICOS)


@pytest.mark.parametrize("framing", ["standard", "glued"])
async def test_glued_framing_puts_command_and_data_set_into_one_stream(
    proxy: RecordingProxy, tmp_path: Path, framing: str
) -> None:
    folder = written(tmp_path / "out", DICOS[:1])
    name = "1.2.840.10008.3.1.1.1.2"
    options = ("--framing", framing, "--application-context", name)
    done = await store(proxy.port, "--input", folder, *options)
    assert done.code == 0, done.output
    await proxy.drained()
    (recording,) = proxy.recordings
    assert wire.item(0x10, name.encode()) in recording.sent
    (sent,) = recording.stores()
    assert sent.glued is (framing == "glued")
    assert sent.dataset == DICOS[0].dataset


@pytest.mark.parametrize("with_passcode", [False, True], ids=["user", "passcode"])
async def test_a_user_identity_is_sent_and_its_passcode_said_nowhere(
    tmp_path: Path, with_passcode: bool
) -> None:
    requests: list[bytes] = []

    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with ScriptedPeer(reader, writer) as peer:
            requests.append((await peer.read_pdu()).body)
            await peer.send(wire.associate_rj(1, 2, 1))

    secret = tmp_path / "secret"
    secret.write_text(f"{PASSCODE}\nnot this\n")
    options = ["--user", "scanner-7"] + (["--passcode-file", str(secret)] if with_passcode else [])
    server = await asyncio.start_server(reject, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        done = await store(port, "--input", written(tmp_path / "out", DICOS[:1]), *options)
    assert done.code == 3
    assert PASSCODE not in done.output
    user = b"\x00\x09scanner-7"
    expected = b"\x02\x00" + user + b"\x00\x0b" + PASSCODE.encode() if with_passcode else b"\x01\x00" + user
    assert wire.item(0x58, expected if with_passcode else expected + b"\0\0") in requests[0]


async def test_our_daemon_takes_a_user_identity(daemon: DaemonProcess, tmp_path: Path) -> None:
    folder = written(tmp_path / "out", DICOS[:1])
    done = await store(daemon.ready.dicom_port, "--input", folder, "--user", "scanner-7")
    assert done.code == 0, done.output


async def test_several_associations_share_the_files_and_parts_stay_in_order(
    daemon: DaemonProcess, proxy: RecordingProxy, tmp_path: Path
) -> None:
    slices = [ct_image(rows=128, columns=128, seed=seed) for seed in range(40)]
    first, second = two_section_ct()
    objects = [first, *slices, second]
    done = await store(proxy.port, "--input", written(tmp_path / "out", objects), "--max-associations", "4")
    assert done.code == 0, done.output
    assert done.outcomes == {"stored": 42}
    await proxy.drained()
    assert len(proxy.recordings) == 4
    expect_stored(daemon.data_dir, objects)
    parts = [one for one in proxy.stores() if one.sop_instance_uid == first.sop_instance_uid]
    assert [part.dataset for part in parts] == [first.dataset, second.dataset]
    numbered = [
        one for one in stored_files(daemon.data_dir) if one.sop_instance_uid == first.sop_instance_uid
    ]
    assert len(numbered) == 2


def _ct_contexts() -> list[Any]:
    ae = AE()
    ae.add_supported_context(CT_IMAGE_STORAGE, "1.2.840.10008.1.2.1")
    return list(ae.supported_contexts)


class Holding:
    """A storage SCP that stops before one answer, until it is let go."""

    def __init__(self, hold_at: int) -> None:
        self.received: list[str] = []
        self.reached = threading.Event()
        self.go_on = threading.Event()
        self._hold_at = hold_at
        self.port = 0

    def store(self, event: Any) -> int:
        """Handle C-STORE."""
        self.received.append(event.request.AffectedSOPInstanceUID)
        if len(self.received) == self._hold_at:
            self.reached.set()
            self.go_on.wait(30)
        return 0


@pytest.fixture
def holding() -> Iterator[Holding]:
    holding = Holding(hold_at=4)
    server = AE("ANY-SCP").start_server(
        ("127.0.0.1", 0),
        block=False,
        contexts=_ct_contexts(),
        evt_handlers=[(evt.EVT_C_STORE, holding.store)],
    )
    assert server is not None
    holding.port = server.server_address[1]
    yield holding
    holding.go_on.set()
    server.shutdown()


async def test_killed_it_goes_on_with_what_was_not_acknowledged(holding: Holding, tmp_path: Path) -> None:
    slices = [ct_image(rows=8, columns=8, seed=seed) for seed in range(7)]
    folder, journal = written(tmp_path / "out", slices), tmp_path / "journal"
    process = await start(holding.port, "--input", folder, "--resume", journal)
    assert await asyncio.to_thread(holding.reached.wait, 20)
    process.send_signal(signal.SIGKILL)
    await process.wait()
    holding.go_on.set()
    # As a kill in the middle of a write would leave it.
    with journal.open("ab") as file:
        file.write(b'["/torn')
    done = await store(holding.port, "--input", folder, "--resume", journal)
    assert done.code == 0, done.output
    assert done.outcomes == {"stored_before": 3, "stored": 4}
    uids = [one.sop_instance_uid for one in slices]
    assert holding.received == [*uids[:4], *uids[3:]]
    # What has changed since is sent again, and nothing else.
    os.utime(folder / "005.dcm", ns=(1, 1))
    done = await store(holding.port, "--input", folder, "--resume", journal)
    assert done.outcomes == {"stored_before": 6, "stored": 1}
    done = await store(holding.port, "--input", folder, "--resume", journal)
    assert (done.code, done.outcomes) == (0, {"stored_before": 7})


async def test_a_journal_is_of_one_peer_and_of_one_process_at_a_time(
    holding: Holding, tmp_path: Path
) -> None:
    folder, journal = written(tmp_path / "out", [ct_image(seed=n) for n in range(5)]), tmp_path / "journal"
    process = await start(holding.port, "--input", folder, "--resume", journal)
    assert await asyncio.to_thread(holding.reached.wait, 20)
    done = await store(holding.port, "--input", folder, "--resume", journal)
    assert done.code == 2
    assert "in use" in done.output
    holding.go_on.set()
    await process.communicate()
    assert process.returncode == 0
    done = await store(holding.port, "--input", folder, "--resume", journal, "--ae-title", "OTHER")
    assert done.code == 2
    assert "another peer" in done.output
    journal.write_text("not a journal\n")
    assert (await store(holding.port, "--input", folder, "--resume", journal)).code == 2
    assert journal.read_text() == "not a journal\n"
