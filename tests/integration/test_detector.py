"""From a bag's CT to a report at a second server: the example's detector in a real daemon."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scp_server import Server, Settings, TDRBuilder, callback, open_instance
from scp_server.reports.builder import OperatorIdentity
from scp_server.testing.daemon import DaemonProcess, stored_files
from scp_server.testing.dicos_objects import DICOS_TDR_STORAGE, dicos_ct
from scp_server.testing.encoded_object import EncodedObject
from scp_server.testing.phantom import LUGGAGE, slices
from scp_server.testing.scripted_peer import ScriptedPeer, UnexpectedAnswer, storage_contexts
from scp_server.views.threats import TDRView
from tests.interop.archives import free_port

ROOT = Path(__file__).parents[2]
INTEROP = ROOT / "tests/interop"
BAG = dicos_ct(frames=12, rows=24, columns=32, pixels=b"".join(slices(LUGGAGE, 12, 24, 32)))
SECONDS = 30
TRIES = 3
KILLS = int(os.environ.get("SCP_KILL_ROUNDS", "3"))


class BrokenServer:
    """Takes connections and ends them, until it has had enough."""

    def __init__(self) -> None:
        self.had_enough = asyncio.Event()
        self.tries = 0
        self.port = 0

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._end, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    def _end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del reader
        self.tries += 1
        writer.close()
        if self.tries == TRIES:
            self.had_enough.set()


async def run(*command: object) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(SECONDS):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


def settings_of_lane(port: int) -> dict[str, str]:
    """The environment of a server that has bags examined, and sends the reports to a port."""
    remote = {"ae_title": "OPERATOR", "host": "127.0.0.1", "port": port}
    rule = {"name": "reports", "to": ["OPERATOR"], "calling_ae_titles": ["density"]}
    return {
        "PYTHONPATH": str(ROOT / "examples"),
        "SCP_SERVER_PLUGINS": '["density_detector"]',
        "SCP_SERVER_REMOTES": json.dumps([remote]),
        "SCP_SERVER_FORWARD": json.dumps([rule]),
        "SCP_SERVER_TIMEOUTS__REMOTE_RETRY_SECONDS": "0",
        "SCP_SERVER_OUTBOX__FIRST_RETRY_SECONDS": "0.05",
        "SCP_SERVER_OUTBOX__MAX_RETRY_SECONDS": "0.2",
    }


@pytest.mark.interop
async def test_a_bags_report_reaches_a_server_that_was_down_first(
    tmp_path: Path, require_peer: Callable[[str, object], None]
) -> None:
    """The DICOS toolkit sends the bag, and reads the report."""
    require_peer("the DICOS toolkit (pydicos)", importlib.util.find_spec("pyDICOS"))
    broken, arrived = BrokenServer(), asyncio.Event()
    down = await broken.start()
    bag = tmp_path / "bag.dcs"
    bag.write_bytes(BAG.part10())

    @callback("stored")
    async def arrives(instance: Any) -> None:
        assert instance.association.calling_ae_title
        arrived.set()

    daemon = DaemonProcess(tmp_path / "lane", environment=settings_of_lane(broken.port))
    await asyncio.to_thread(daemon.start)
    try:
        await run(sys.executable, INTEROP / "dicos_client.py", daemon.ready.dicom_port, f"CT:{bag}")
        async with asyncio.timeout(SECONDS):
            await broken.had_enough.wait()
            down.close()
            await down.wait_closed()
            second: dict[str, Any] = {"listen": {"port": broken.port}, "http": {"port": 0}}
            folder = tmp_path / "second"
            async with Server(Settings(**second, data_dir=folder), callbacks=[arrives]):
                await arrived.wait()
    finally:
        await asyncio.to_thread(daemon.terminate)
    assert len(stored_files(tmp_path / "lane")) == 2
    (report,) = stored_files(tmp_path / "second")
    view = open_instance(report.path)
    assert isinstance(view, TDRView)
    assert view.sop_class_uid == DICOS_TDR_STORAGE
    assert (view.decision, view.total_objects) == ("ALARM", 2)
    assert view.references[0].sop_instance_uid == BAG.sop_instance_uid
    (reported,) = daemon.log_records("detector.reported")
    assert (reported["callback"], reported["decision"]) == ("density", "ALARM")
    said = json.loads(await run(sys.executable, INTEROP / "dicos_reader.py", f"TDR:{report.path}"))
    assert (said["read"], said["log"]) == (True, "")


async def send(port: int, one: EncodedObject) -> bool:
    """Whether it was acknowledged."""
    with contextlib.suppress(OSError, EOFError, UnexpectedAnswer, TimeoutError):
        async with await ScriptedPeer.connect("127.0.0.1", port) as peer:
            await peer.associate(storage_contexts(one))
            assert await peer.store(one) == 0x0000
            await peer.release()
            return True
    return False


async def is_acknowledged(port: int, objects: list[EncodedObject]) -> bool:
    """Send them one after another, until one is not."""
    for each in objects:
        if not await send(port, each):
            return False
    return True


@pytest.mark.slow
async def test_whenever_the_lane_is_killed_a_bag_ends_with_the_operators_decision(tmp_path: Path) -> None:
    """Its CT is examined, the report forwarded to a server that is down at first, and overridden."""
    file = tmp_path / "bag.dcs"
    file.write_bytes(BAG.part10())
    chance, port = random.Random(), free_port()
    guard = OperatorIdentity("G-7", "Guard", issuer="LANE 3", institution="T1")
    report = TDRBuilder(file, report_type="OPERATOR", operator=guard).build()
    verdict = EncodedObject(
        sop_class_uid=report.sop_class_uid,
        sop_instance_uid=report.sop_instance_uid,
        study_instance_uid=report.study_instance_uid,
        series_instance_uid="",
        transfer_syntax_uid=report.transfer_syntax_uid,
        dataset=report.dataset,
    )
    lane = DaemonProcess(tmp_path / "lane", environment=settings_of_lane(port))
    second = DaemonProcess(tmp_path / "second", "--port", str(port))
    acknowledged = False
    for _ in range(KILLS):
        ready = await asyncio.to_thread(lane.start)
        sending = asyncio.create_task(is_acknowledged(ready.dicom_port, [BAG, verdict]))
        await asyncio.wait({sending}, timeout=chance.uniform(0.02, 0.8))
        await asyncio.sleep(chance.uniform(0.0, 0.8))
        await asyncio.to_thread(lane.kill)
        acknowledged = await sending or acknowledged
    ready = await asyncio.to_thread(lane.start)
    await asyncio.to_thread(second.start)
    if not acknowledged:
        assert await is_acknowledged(ready.dicom_port, [BAG, verdict])
    async with asyncio.timeout(SECONDS):
        while not stored_files(tmp_path / "second"):
            await asyncio.sleep(0.05)
    query = json.dumps({"PatientID": "BAG0001", "AlarmDecision": "CLEAR", "TDRType": None})
    command = (sys.executable, "-m", "scp_server", "find", "--json", "--port", ready.dicom_port)
    # What it says to people follows.
    (found,), _ = json.JSONDecoder().raw_decode(await run(*command, "--query", query))
    assert (found["40101031"]["Value"], found["40101027"]["Value"]) == (["CLEAR"], ["OPERATOR"])
    for daemon in (lane, second):
        await asyncio.to_thread(daemon.terminate)
    (sent,) = stored_files(tmp_path / "second")
    kept = {one.sop_instance_uid: one.dataset for one in stored_files(tmp_path / "lane")}
    assert kept == {
        BAG.sop_instance_uid: BAG.dataset,
        verdict.sop_instance_uid: verdict.dataset,
        sent.sop_instance_uid: sent.dataset,
    }
    assert len(stored_files(tmp_path / "lane")) == len(kept)
    view = open_instance(sent.path)
    assert isinstance(view, TDRView)
    assert (view.report_type, view.decision, view.total_objects) == ("MACHINE", "ALARM", 2)


DETECTOR = """
import os
from pathlib import Path
from scp_server import detector

@detector(name="slow", algorithm=("ACME", "1.0"))
def detect(bag):
    here = Path(__file__).parent
    begun, first = here / "begun", not (here / "again").exists()
    with begun.open("w"):  # Waits until the test reads.
        pass
    while first:
        os.read(os.open(here / "never", os.O_RDONLY), 1)
    return []
"""


async def test_killed_while_a_bag_is_examined_there_is_one_report_after_a_restart(tmp_path: Path) -> None:
    (tmp_path / "slow_detector.py").write_text(DETECTOR, encoding="utf-8")
    for name in ("begun", "never"):
        os.mkfifo(tmp_path / name)
    bag = tmp_path / "bag.dcs"
    bag.write_bytes(BAG.part10())
    settings = {"PYTHONPATH": str(tmp_path), "SCP_SERVER_PLUGINS": '["slow_detector"]'}
    daemon = DaemonProcess(tmp_path / "lane", environment=settings)
    await asyncio.to_thread(daemon.start)
    port = daemon.ready.dicom_port
    await run(sys.executable, "-m", "scp_server", "store", "--port", port, "--input", bag)
    async with asyncio.timeout(SECONDS):
        await asyncio.to_thread((tmp_path / "begun").read_bytes)
        daemon.kill()
        assert len(stored_files(tmp_path / "lane")) == 1
        (tmp_path / "again").touch()
        await asyncio.to_thread(daemon.start)
        await asyncio.to_thread((tmp_path / "begun").read_bytes)
        # What is under way may end.
        await asyncio.to_thread(daemon.terminate)
    assert len(stored_files(tmp_path / "lane")) == 2
    assert [one["decision"] for one in daemon.log_records("detector.reported")] == ["CLEAR"]
