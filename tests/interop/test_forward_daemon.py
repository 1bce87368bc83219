"""A whole server with rules, to peers that are down at first: DCMTK, Orthanc, an HTTP server, and our own."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from scp_server import Server, Settings
from scp_server.testing.daemon import DaemonProcess, StoredFile, read_stored_file, stored_files
from scp_server.testing.encoded_object import EncodedObject, make_uid
from scp_server.testing.objects import ct_image
from scp_server.testing.scripted_peer import ScriptedPeer, storage_contexts
from tests.interop.archives import RequirePeer, free_port, orthanc, running

pytestmark = pytest.mark.interop

HERE = Path(__file__).parent
PATIENCE_SECONDS = 20
SECRET = "between the two of us"
STUDY = make_uid("forwarded by a daemon")
SLICES: list[EncodedObject] = [
    ct_image(seed=seed, rows=8, study_instance_uid=STUDY, series_instance_uid=f"{STUDY}.1")
    for seed in range(6)
]
SENT = [one.sop_instance_uid for one in SLICES]
DOWN_AT_FIRST = {"forward:all:STORESCP", "forward:all:ORTHANC", "webhook:hook"}


async def _until(holds: Callable[[], bool]) -> None:
    """Wait for what other processes do."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.02)


def _outcomes(daemon: DaemonProcess, outcome: str) -> dict[str, int]:
    """How many deliveries of each subscription ended so."""
    url = f"http://127.0.0.1:{daemon.ready.http_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as response:
        text = response.read().decode()
    line = r'^scp_outbox_deliveries_total\{outcome="%s",subscription="([^"]+)"\} (\d+)'
    return {name: int(count) for name, count in re.findall(line % outcome, text, re.MULTILINE)}


@asynccontextmanager
async def webhook_receiver(port: int) -> AsyncIterator[list[dict[str, object]]]:
    """Node's HTTP server; what it has taken, each with a signature that holds."""
    command = ("node", HERE / "webhook_receiver.js", str(port), SECRET)
    process = await asyncio.create_subprocess_exec(*map(str, command), stdout=asyncio.subprocess.PIPE)
    taken: list[dict[str, object]] = []
    assert process.stdout is not None
    lines = process.stdout

    async def read() -> None:
        async for line in lines:
            taken.append(json.loads(line))

    reading = asyncio.create_task(read(), name="webhook receiver")
    try:
        yield taken
    finally:
        process.terminate()
        await process.wait()
        await reading


async def test_peers_that_were_down_get_everything_once_and_in_order(
    require_peer: RequirePeer, tmp_path: Path
) -> None:
    require_peer("DCMTK's storescp", shutil.which("storescp"))
    require_peer("node", shutil.which("node"))
    port, orthanc_port, hook_port = free_port(), free_port(), free_port()
    out, orthanc_folder = tmp_path / "taken", tmp_path / "orthanc"
    out.mkdir()
    orthanc_folder.mkdir()
    async with AsyncExitStack() as stack:
        listens = {"listen": {"port": 0}, "http": {"port": 0}, "data_dir": tmp_path / "other"}
        other = await stack.enter_async_context(Server(Settings.model_validate(listens)))
        titles = {"STORESCP": port, "ORTHANC": orthanc_port, "OTHER": other.address[1]}
        daemon = DaemonProcess(
            tmp_path / "data",
            *(f"--remote={title}=127.0.0.1:{number}" for title, number in titles.items()),
            environment={
                "SCP_SERVER_FORWARD": json.dumps([{"name": "all", "to": list(titles)}]),
                "SCP_SERVER_WEBHOOK": json.dumps(
                    [
                        {
                            "name": "hook",
                            "url": f"http://127.0.0.1:{hook_port}/",
                            "kinds": ["object.stored"],
                            "secret": SECRET,
                        }
                    ]
                ),
                "SCP_SERVER_OUTBOX__FIRST_RETRY_SECONDS": "0.1",
                "SCP_SERVER_OUTBOX__MAX_RETRY_SECONDS": "0.2",
                "SCP_SERVER_TIMEOUTS__REMOTE_RETRY_SECONDS": "0",
            },
        )
        await asyncio.to_thread(daemon.start)
        stack.push(daemon)
        async with await ScriptedPeer.connect("127.0.0.1", daemon.ready.dicom_port) as peer:
            await peer.associate(storage_contexts(SLICES[0]))
            assert [await peer.store(one) for one in SLICES] == [0x0000] * len(SLICES)
            await peer.release()
        await _until(
            lambda: (
                {each["subscription"] for each in daemon.log_records("outbox.circuit_opened")}
                == DOWN_AT_FIRST
            )
        )
        await stack.enter_async_context(
            running("storescp", "--single-process", "+B", "+uf", "-od", out, str(port), port=port)
        )
        archive = await stack.enter_async_context(
            orthanc(require_peer, orthanc_folder, DicomPort=orthanc_port, OverwriteInstances=True)
        )
        taken = await stack.enter_async_context(webhook_receiver(hook_port))
        names = {*DOWN_AT_FIRST, "forward:all:OTHER"}
        await _until(lambda: _outcomes(daemon, "delivered") == dict.fromkeys(names, len(SLICES)))
        assert set(_outcomes(daemon, "failed").values()) == set(_outcomes(daemon, "dead").values()) == {0}

        files = sorted(out.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        assert [read_stored_file(path).sop_instance_uid for path in files] == SENT
        _expect_kept([read_stored_file(path) for path in files])
        changes = json.loads(await archive.rest("/changes?limit=100"))["Changes"]
        new = [each["ID"] for each in changes if each["ChangeType"] == "NewInstance"]
        tags = [json.loads(await archive.rest(f"/instances/{each}/simplified-tags")) for each in new]
        assert [each["SOPInstanceUID"] for each in tags] == SENT
        _expect_kept(stored_files(tmp_path / "other"))
        await _until(lambda: len(taken) > len(SLICES))
        # First, for peers wait long for associations of it that are idle.
        await asyncio.to_thread(daemon.terminate)
    assert [_uid_of(each) for each in taken[1:]] == SENT


def _expect_kept(files: list[StoredFile]) -> None:
    """All of what was sent, each once, as it was sent."""
    assert sorted(each.dataset for each in files) == sorted(one.dataset for one in SLICES)


def _uid_of(told: dict[str, object]) -> object:
    event = told["event"]
    assert isinstance(event, dict)
    return event["data"]["sop_instance_uid"]
